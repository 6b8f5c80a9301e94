//! Who asks for others: the API server says who asks, whatever they say of whom they ask for.

use serde_json::{Value, json};

use super::world::{World, assert_unchanged, owners, refused, world};
use crate::common::{Object, Person, decision, kubectl, kubectl_with, request};

/// Argo CD's service account in a test's own namespace, by a token of TokenRequest.
struct Robot {
    person: Person,
    username: String,
    groups: Value,
}

async fn robot(world: &World) -> Robot {
    let namespace = &world.namespace;
    let account = format!("{namespace}/application-controller");
    let person = world.service_account(&account).await;
    for role in ["requester", "approver"] {
        let name = format!("{namespace}-{role}");
        let role = format!("--clusterrole=instance-access-{role}");
        let who = format!("--serviceaccount={}", account.replace('/', ":"));
        kubectl(world.lab, "admin", &["create", "clusterrolebinding", &name, &role, &who]).await.unwrap();
    }
    Robot {
        person,
        username: format!("system:serviceaccount:{namespace}:application-controller"),
        groups: json!([
            "system:serviceaccounts",
            format!("system:serviceaccounts:{namespace}"),
            "system:authenticated"
        ]),
    }
}

/// As it stands in Git.
fn for_alice(name: &str) -> Object {
    request(name)
        .with("/spec/subject", json!({"username": "alice"}))
        .with("/spec/endTime", json!("2026-03-02T18:00:00Z"))
}

#[tokio::test]
async fn a_delegate_says_for_whom_it_asks_and_the_api_server_who_it_is() {
    let world = world().await;
    let robot = robot(&world).await;
    let object = for_alice("of-robot");
    let stored = robot.person.apply(&object, "argocd-controller").await.unwrap();
    let requester = &stored["spec"]["requester"];
    assert_eq!((&requester["username"], &requester["groups"]), (&json!(robot.username), &robot.groups));
    assert_eq!(stored["spec"]["subject"], json!({"username": "alice"}));
    assert_eq!(owners(&stored, &["spec", "requester"]), [""; 0]);

    let words = "spec.requester.username must be your own";
    for other in [json!({"username": "alice"}), json!({"username": "alice", "groups": ["developers"]})] {
        refused(robot.person.create(&for_alice("forged").with("/spec/requester", other)).await, words);
    }
    // Alice does not become the robot, nor does she take its groups.
    let as_robot = json!({"username": robot.username, "groups": robot.groups});
    refused(world.alice.create(&for_alice("forged").with("/spec/requester", as_robot)).await, words);
    let groups = json!({"username": "alice", "uid": "alice", "groups": robot.groups});
    refused(
        world.alice.create(&for_alice("forged").with("/spec/requester", groups)).await,
        "spec.requester.groups must be your own",
    );
    // Of a subject there is a user name, and nothing that anybody could add.
    let more = for_alice("more").with("/spec/subject/groups", json!(["leads"]));
    let apply = ["apply", "-n", &world.namespace, "-f", "-"];
    let error = kubectl_with(world.lab, "alice", &apply, &more.0.to_string()).await.unwrap_err().to_string();
    assert!(error.contains("unknown field \"spec.subject.groups\""), "{error}");
}

#[tokio::test]
async fn the_subject_stays_whoever_was_asked_for() {
    let world = world().await;
    let robot = robot(&world).await;
    let object = for_alice("fixed");
    robot.person.create(&object).await.unwrap();
    let words = "spec.subject: Forbidden: is immutable; delete the request and make a new one";
    for person in [&robot.person, &world.admin, &world.operator] {
        let other = object.clone().with("/spec/subject/username", json!("mallory"));
        refused(person.apply(&other, "argocd-controller").await, words);
        refused(person.replace(&other).await, words);
        refused(person.replace(&object.clone().without("/spec/subject")).await, words);
        refused(person.patch(&object, &json!({"spec": {"subject": null}})).await, words);
        refused(person.patch(&object, &json!({"spec": {"subject": {"username": "Alice"}}})).await, words);
        let later = json!({"spec": {"endTime": "2027-03-02T18:00:00Z"}});
        refused(person.patch(&object, &later).await, "spec.endTime: Forbidden: is immutable");
    }
}

#[tokio::test]
async fn a_delegate_decides_as_itself_and_as_nobody_else() {
    let world = world().await;
    let robot = robot(&world).await;
    let erin = json!({"username": "erin", "uid": "erin", "groups": ["leads", "system:authenticated"]});
    for approver in [erin, json!({"username": "alice"})] {
        let forged = decision("forged").with("/spec/approver", approver);
        for answer in [robot.person.create(&forged).await, robot.person.dry_run().create(&forged).await] {
            refused(answer, "spec.approver.username must be your own");
        }
    }
    let own = robot.person.create(&decision("own")).await.unwrap();
    assert_eq!(own["spec"]["approver"]["username"], json!(robot.username));
}

#[tokio::test]
async fn who_is_impersonated_as_a_service_account_has_its_groups_and_who_is_called_like_one_has_not() {
    let world = world().await;
    let robot = robot(&world).await;
    // Flux applies so, where a Kustomization names a service account.
    let made = async |name: &str, groups: &[&str]| {
        let user = format!("--as={}", robot.username);
        let groups: Vec<String> = groups.iter().map(|group| format!("--as-group={group}")).collect();
        let mut create = vec!["create", "-n", &world.namespace, "-o", "json", "-f", "-", &user];
        create.extend(groups.iter().map(String::as_str));
        let made = kubectl_with(world.lab, "admin", &create, &for_alice(name).0.to_string()).await.unwrap();
        serde_json::from_str::<Value>(&made).unwrap()["spec"]["requester"].clone()
    };
    let flux = made("of-flux", &[]).await;
    assert_eq!((&flux["username"], &flux["groups"]), (&json!(robot.username), &robot.groups));
    let called = made("of-somebody", &["instance-access-requesters", "system:masters"]).await;
    assert_eq!(called["username"], json!(robot.username));
    assert_eq!(called["groups"], json!(["instance-access-requesters", "system:masters", "system:authenticated"]));
}

#[tokio::test]
async fn the_table_shows_who_gets_in() {
    let world = world().await;
    let robot = robot(&world).await;
    robot.person.create(&for_alice("asserted")).await.unwrap();
    robot.person.create(&request("own")).await.unwrap();
    world.bob.create(&request("of-bob")).await.unwrap();
    let get = ["get", "ia", "-n", &world.namespace, "--no-headers"];
    let table = kubectl(world.lab, "alice", &get).await.unwrap();
    let users: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().take(2).collect()).collect();
    // What is not known yet is blank: the user stands next to the name.
    assert_eq!(users, [["asserted", "alice"], ["of-bob", "bob"], ["own", &robot.username]], "{table}");
}

#[tokio::test]
async fn git_applies_a_request_that_is_over_again_and_again_and_nothing_changes() {
    let world = world().await;
    let robot = robot(&world).await;
    let object = for_alice("over");
    robot.person.apply(&object, "argocd-controller").await.unwrap();
    let ended = |type_: &str, status: &str| {
        json!({
            "type": type_, "status": status, "reason": "Expired", "message": "over", "observedGeneration": 1,
            "lastTransitionTime": "2026-03-02T18:00:00Z",
        })
    };
    let status = json!({
        "observedGeneration": 1,
        "endTime": "2026-03-02T18:00:00Z",
        "conditions": [ended("Active", "False"), ended("Ended", "True")],
    });
    world.operator.replace_status(&object.clone().with("/status", status)).await.unwrap();
    let before = robot.person.get(&object).await.unwrap();
    for manager in ["argocd-controller", "kustomize-controller"] {
        robot.person.apply(&object, manager).await.unwrap();
    }
    let before_again = robot.person.get(&object).await.unwrap();
    assert_eq!((&before["spec"], &before["status"]), (&before_again["spec"], &before_again["status"]));
    let mut answers = Vec::new();
    for person in [robot.person.dry_run(), robot.person.clone(), robot.person.dry_run()] {
        for manager in ["argocd-controller", "kustomize-controller"] {
            answers.push(person.apply(&object, manager).await.unwrap());
        }
        answers.push(person.replace(&object).await.unwrap());
    }
    assert_unchanged(&answers);
    assert_eq!(answers[0]["status"], before["status"]);
    // Made anew after its endTime it is taken, too: that it is over is for the operator to say.
    world.operator.patch_json(&object, json!([{"op": "remove", "path": "/metadata/finalizers"}])).await.unwrap();
    robot.person.delete(&object).await.unwrap();
    let anew = robot.person.apply(&object, "argocd-controller").await.unwrap();
    assert_ne!(anew["metadata"]["uid"], before["metadata"]["uid"]);
}
