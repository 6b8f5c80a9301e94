//! Who asks: filled in at admission, and never another.

use serde_json::{Value, json};

use super::world::{assert_unchanged, owners, refused, world};
use crate::common::{Person, kubectl, request};

const OURS: &str = "ValidatingAdmissionPolicy 'requests.instanceaccess.dev'";

#[tokio::test]
async fn a_request_names_its_requester_without_the_manifest_saying_so() {
    let world = world().await;
    let stored = world.alice.create(&request("one")).await.unwrap();
    let alice = json!({"username": "alice", "uid": "alice", "groups": ["developers", "system:authenticated"]});
    assert_eq!(stored["spec"]["requester"], alice);
    assert_eq!(stored["metadata"]["finalizers"], json!([instance_access::api::FINALIZER]));
    assert_eq!(stored["status"], json!({"observedGeneration": -1}));

    let dry = world.bob.dry_run().create(&request("two")).await.unwrap();
    assert_eq!(dry["spec"]["requester"]["username"], "bob");
    refused(world.bob.get(&request("two")).await, "not found");

    let mut generated = request("");
    generated.0["metadata"] = json!({"generateName": "shell-"});
    let generated = world.bob.create(&generated).await.unwrap();
    assert_eq!(generated["spec"]["requester"]["username"], "bob");
}

#[tokio::test]
async fn a_requester_that_is_null_is_filled_in_as_well() {
    let world = world().await;
    let stored = world.alice.create(&request("null").with("/spec/requester", Value::Null)).await.unwrap();
    assert_eq!(stored["spec"]["requester"]["username"], "alice");
}

#[tokio::test]
async fn a_service_account_is_named_with_what_its_token_says() {
    let world = world().await;
    let account = format!("{}/robot", world.namespace);
    let robot = world.service_account(&account).await;
    let bind = ["create", "clusterrolebinding", &world.namespace, "--clusterrole=instance-access-requester"];
    let who = format!("--serviceaccount={}", account.replace('/', ":"));
    kubectl(world.lab, "admin", &[&bind[..], &[&who]].concat()).await.unwrap();

    let stored = robot.create(&request("robot")).await.unwrap();
    let requester = &stored["spec"]["requester"];
    assert_eq!(requester["username"], format!("system:serviceaccount:{}:robot", world.namespace));
    let credential = &requester["extra"]["authentication.kubernetes.io/credential-id"][0];
    assert!(credential.as_str().is_some_and(|id| id.starts_with("JTI=")), "{requester}");

    let mut forged = requester.clone();
    forged["extra"]["authentication.kubernetes.io/credential-id"] = json!(["JTI=another"]);
    refused(
        robot.create(&request("forged").with("/spec/requester", forged)).await,
        "spec.requester.extra must be your own",
    );
    let mut silent = requester.clone();
    silent.as_object_mut().unwrap().remove("extra");
    refused(
        robot.create(&request("silent").with("/spec/requester", silent)).await,
        "spec.requester.extra must be your own",
    );
    robot.create(&request("said").with("/spec/requester", requester.clone())).await.unwrap();
}

#[tokio::test]
async fn an_impersonated_person_is_the_requester() {
    let world = world().await;
    let manifest = request("as-carol").0.to_string();
    let args = ["create", "-n", &world.namespace, "--as=carol", "--as-group=developers", "-o", "json", "-f", "-"];
    let stored = crate::common::kubectl_with(world.lab, "admin", &args, &manifest).await.unwrap();
    let stored: Value = serde_json::from_str(&stored).unwrap();
    // Nobody said a uid: it is absent, not empty.
    let carol = json!({"username": "carol", "groups": ["developers", "system:authenticated"]});
    assert_eq!(stored["spec"]["requester"], carol);
}

#[tokio::test]
async fn nobody_asks_in_anothers_name() {
    let world = world().await;
    let alice = json!({"username": "alice", "uid": "alice", "groups": ["developers", "system:authenticated"]});
    let forged = |field: &str, value: Value| {
        let mut forged = alice.clone();
        forged[field] = value;
        request("forged").with("/spec/requester", forged)
    };
    let rows = [
        ("username", json!("bob"), "spec.requester.username must be your own, alice; leave spec.requester out"),
        ("username", json!("Alice"), "spec.requester.username must be your own, alice"),
        ("username", json!("alice "), "spec.requester.username must be your own, alice"),
        ("uid", json!("0"), "spec.requester.uid must be your own"),
        ("uid", json!(""), "spec.requester.uid must be your own"),
        ("groups", json!([]), "spec.requester.groups must be your own"),
        ("groups", json!(["developers"]), "spec.requester.groups must be your own"),
        ("groups", json!(["developers", "system:authenticated", "leads"]), "spec.requester.groups must be your own"),
        ("groups", json!(["developers", "system:masters"]), "spec.requester.groups must be your own"),
        ("extra", json!({"principalId": ["AROA"]}), "spec.requester.extra must be your own"),
        ("extra", json!({"": []}), "spec.requester.extra must be your own"),
    ];
    for (field, value, words) in rows {
        let refusal = refused(world.alice.create(&forged(field, value)).await, words);
        assert!(refusal.to_string().contains(OURS), "{refusal}");
    }
    refused(
        world.alice.create(&request("x").with("/spec/requester", json!({}))).await,
        "spec.requester.username: Required",
    );
    refused(world.alice.apply(&forged("username", json!("bob")), "gitops").await, OURS);
    // An administrator is no exception.
    refused(world.admin.create(&forged("username", json!("alice"))).await, OURS);
    // Nor is the operator: it asks for nobody, and RBAC lets it create nothing.
    refused(world.operator.create(&request("x")).await, "cannot create resource");
    world.alice.create(&request("own").with("/spec/requester", alice.clone())).await.unwrap();
}

#[tokio::test]
async fn nobody_who_may_not_ask_gets_as_far_as_admission() {
    let world = world().await;
    let mallory = world.person("mallory").await;
    refused(mallory.create(&request("x")).await, "cannot create resource");
}

#[tokio::test]
async fn applying_a_manifest_again_changes_nothing_and_nobody_owns_the_requester() {
    let world = world().await;
    let manifest = request("again");
    let first = world.alice.apply(&manifest, "gitops").await.unwrap();
    let second = world.alice.apply(&manifest, "gitops").await.unwrap();
    let again = world.alice.apply(&manifest, "gitops").await.unwrap();
    assert_unchanged(&[first.clone(), second.clone(), again]);
    assert_eq!(owners(&second, &["spec", "osUser"]), ["gitops"]);
    assert_eq!(owners(&second, &["spec", "requester"]), [""; 0]);
    assert_eq!(owners(&second, &["metadata", "finalizers"]), [""; 0]);

    // By another, and by another way, with the same result.
    let third = world.bob.apply(&manifest, "other").await.unwrap();
    assert_eq!(third["spec"], first["spec"]);
    assert_eq!(third["metadata"]["generation"], 1);
    world.bob.replace(&manifest).await.unwrap();
    for way in [&["diff", "--server-side", "--force-conflicts"][..], &["diff"]] {
        let args = [way, &["-n", &world.namespace, "-f", "-"]].concat();
        // kubectl diff fails where there is a difference.
        let differs = crate::common::kubectl_with(world.lab, "alice", &args, &manifest.0.to_string()).await.unwrap();
        assert_eq!(differs, "");
    }
}

#[tokio::test]
async fn a_put_without_requester_revoke_and_finalizer_keeps_them() {
    let world = world().await;
    let object = request("put");
    let stored = world.alice.create(&object).await.unwrap();
    world.bob.patch(&object, &json!({"spec": {"revoke": {"reason": "laptop lost"}}})).await.unwrap();
    // bob's, and the requester stays alice.
    let put = world.bob.replace(&object).await.unwrap();
    assert_eq!(put["spec"]["requester"], stored["spec"]["requester"]);
    assert_eq!(put["spec"]["revoke"], json!({"reason": "laptop lost"}));
    assert_eq!(put["metadata"]["finalizers"], stored["metadata"]["finalizers"]);
    assert_eq!(put["metadata"]["generation"], 2);
}

/// Every way to change a field, as (name, answer).
async fn tries(person: &Person, name: &str) -> Vec<(&'static str, Value)> {
    let object = request(name);
    let remove = json!([{"op": "remove", "path": "/spec/requester"}]);
    vec![
        ("merge patch", person.patch(&object, &json!({"spec": {"requester": null}})).await.unwrap()),
        ("JSON patch", person.patch_json(&object, remove).await.unwrap()),
        ("PUT", person.replace(&object).await.unwrap()),
    ]
}

#[tokio::test]
async fn taking_the_requester_out_has_no_effect_whoever_tries() {
    let world = world().await;
    let stored = world.alice.create(&request("kept")).await.unwrap();
    for person in [&world.alice, &world.bob, &world.admin] {
        for (way, answer) in tries(person, "kept").await {
            assert_eq!(answer["spec"], stored["spec"], "{way}");
            assert_eq!(answer["metadata"]["generation"], 1, "{way}");
        }
    }
}

#[tokio::test]
async fn another_requester_is_refused_whoever_tries_and_by_whatever_way() {
    let world = world().await;
    let object = request("taken");
    let stored = world.alice.create(&object).await.unwrap();
    let words = "spec.requester: Forbidden: is immutable";
    for person in [&world.bob, &world.admin, &world.operator] {
        let username = json!([{"op": "replace", "path": "/spec/requester/username", "value": "bob"}]);
        refused(person.patch_json(&object, username).await, words);
        let moved = json!([
            {"op": "remove", "path": "/spec/requester"},
            {"op": "add", "path": "/spec/requester", "value": {"username": "bob", "groups": ["system:masters"]}},
        ]);
        refused(person.patch_json(&object, moved).await, words);
        refused(person.patch(&object, &json!({"spec": {"requester": {"groups": ["leads"]}}})).await, words);
        refused(person.patch(&object, &json!({"spec": {"requester": {"uid": null}}})).await, words);
        let bob = json!({"username": "bob"});
        refused(person.replace(&object.clone().with("/spec/requester", bob.clone())).await, words);
        refused(person.apply(&object.clone().with("/spec/requester", bob), "other").await, words);
    }
    // Owning the field by server-side apply does not help to drop it.
    let own = object.clone().with("/spec/requester", stored["spec"]["requester"].clone());
    let owned = world.alice.apply(&own, "mine").await.unwrap();
    assert_eq!(owners(&owned, &["spec", "requester"]), ["mine"]);
    let dropped = world.alice.apply(&object, "mine").await.unwrap();
    assert_eq!(dropped["spec"], stored["spec"]);
}
