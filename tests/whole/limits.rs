//! Limits, of hundreds of requests at once and through `kill -9`, on the real API server.

use lab::poll;
use serde_json::{Value, json};

use crate::history::{condition, conditions, text};
use crate::ledger::entries;
use crate::stand::{BOUND, Stand, policy};

/// How many ask at once: as many as cost few seconds. A thousand are walked through in `domain`.
const COUNT: usize = 300;

/// What became of them: granted ever, and refused for the limit.
fn counts(stand: &Stand, uids: &[String]) -> (usize, usize) {
    let newest = |uid: &String| stand.history.of(uid).pop().map(|version| version.object).unwrap_or_default();
    let objects: Vec<Value> = uids.iter().map(newest).collect();
    let granted = objects.iter().filter(|object| object.pointer("/status/grant").is_some()).count();
    let denied = |object: &&Value| condition(object, "Denied").is_some_and(|(_, reason, _)| reason == "LimitReached");
    (granted, objects.iter().filter(denied).count())
}

async fn until(stand: &Stand, uids: &[String], what: &str, is: impl Fn((usize, usize)) -> bool) {
    let come = poll::while_it_grows(what, BOUND, async || match counts(stand, uids) {
        counts if is(counts) => Ok(()),
        counts => Err((counts.0 + counts.1, format!("(granted, refused) is {counts:?}"))),
    });
    come.await.unwrap();
}

pub async fn of_hundreds_at_once_as_many_as_the_limit_are_granted_also_through_a_kill() {
    let stand = Stand::start("limits").await;
    stand.namespace("limits").await;
    let limits = json!({"limits": {"activePerSubject": 3}});
    stand.policy(&policy("limits", "limits", limits)).await;
    let ask = |name: &str| stand.request("alice", name).within("limits").with(json!({"ttlSeconds": 1800}));

    // All are there before anybody looks.
    stand.kill_controller().await;
    let key = stand.lab.new_key("crowd").await.unwrap();
    let instance_id = stand.lab.instance("web-1").id;
    let one = |number: usize| {
        json!({
            "apiVersion": "instanceaccess.dev/v1alpha1",
            "kind": "InstanceAccess",
            "metadata": {"name": format!("crowd-{number}"), "namespace": "limits"},
            "spec": {
                "target": {"instanceId": instance_id}, "osUser": "ec2-user", "sshPublicKey": key.public,
                "ttlSeconds": 1800, "reason": "INC-4711: all at once",
            },
        })
    };
    let items: Vec<Value> = (0..COUNT).map(one).collect();
    let all = stand.manifest(&json!({"apiVersion": "v1", "kind": "List", "items": items}));
    let made = stand.kubectl_ok("alice", &["create", "-f", &all, "-o", r#"jsonpath={.metadata.uid}{"\n"}"#]).await;
    let uids: Vec<String> = made.split_whitespace().map(str::to_owned).collect();
    assert_eq!(uids.len(), COUNT);

    // Killed in the midst of it, it goes on where it was.
    stand.start_controller().await;
    until(&stand, &uids, "a first grant", |(granted, _)| granted > 0).await;
    stand.kill_controller().await;
    stand.start_controller().await;
    until(&stand, &uids, "a word for everybody", |(granted, denied)| granted + denied == COUNT).await;
    assert_eq!(counts(&stand, &uids), (3, COUNT - 3));

    // Killed at rest, it counts them again.
    stand.kill_controller().await;
    stand.start_controller().await;
    let message = ask("fourth").applied().await.is_denied("LimitReached").await;
    for words in
        ["policy limits leaves no room", "limits.activePerSubject is 3", "alice has 3 live grants", "release one"]
    {
        assert!(message.contains(words), "{message:?} lacks {words:?}");
    }
    assert_eq!(counts(&stand, &uids), (3, COUNT - 3));

    // One released is one place.
    let is_granted = |uid: &&String| {
        stand.history.of(uid).last().is_some_and(|version| version.object.pointer("/status/grant").is_some())
    };
    let released = uids.iter().find(is_granted).unwrap();
    let name = text(&stand.history.of(released).pop().unwrap().object, "/metadata/name").to_owned();
    stand.kubectl_ok("alice", &["-n", "limits", "delete", "instanceaccess", &name, "--wait=false"]).await;
    let gone = poll::until_ok("the released one to go", BOUND + BOUND, || match stand.history.of(released).pop() {
        Some(version) if version.gone => Ok(()),
        last => Err(last.map_or_else(String::new, |version| conditions(&version.object))),
    });
    gone.await.unwrap();
    let next = ask("next").applied().await;
    next.becomes("Granted").await;
    next.gets_in().await;
    ask("fifth").applied().await.is_denied("LimitReached").await;
    next.keeps_its_promises().await;
    whoever_is_on_an_instance_and_whatever_was_granted_within_the_hour_counts(&stand, released).await;
}

/// After the crowd: alice was granted four requests within the hour. Three live on web-1, and one is gone.
async fn whoever_is_on_an_instance_and_whatever_was_granted_within_the_hour_counts(stand: &Stand, gone: &str) {
    // Each limit in a namespace of its own: a policy that changes may be judged by as it was for a moment yet.
    let limited = async |name: &str, limits: Value| {
        stand.namespace(name).await;
        stand.policy(&policy(name, name, json!({"limits": limits}))).await;
    };
    // Another who asks under another policy finds alice's there, and room elsewhere.
    limited("crowded", json!({"activePerInstance": 3})).await;
    limited("roomy", json!({"activePerInstance": 4})).await;
    let ask = |name: &str| stand.request("bob", name).within("crowded");
    let message = ask("no-room").applied().await.is_denied("LimitReached").await;
    let web_1 = stand.lab.instance("web-1").id;
    for words in ["limits.activePerInstance is 3", &format!("{web_1} has 3 live grants, whoever has them")] {
        assert!(message.contains(words), "{message:?} lacks {words:?}");
    }
    ask("elsewhere").on(&stand.instance("web-2").await).applied().await.becomes("Granted").await;
    ask("fourth").within("roomy").applied().await.becomes("Granted").await;

    // What is gone has its place in the hour from the ledger alone, and has it once.
    let entries = entries(stand, text(&stand.history.of(gone).pop().unwrap().object, "/metadata/name")).await;
    assert_eq!(text(&entries[0], "/spec/subject/principal"), "alice");
    stand.kill_controller().await;
    stand.start_controller().await;
    limited("hourly", json!({"requestsPerHour": 4})).await;
    limited("often", json!({"requestsPerHour": 5})).await;
    let ask = |name: &str| stand.request("alice", name).within("hourly");
    let message = ask("too-many").applied().await.is_denied("LimitReached").await;
    for words in ["limits.requestsPerHour is 4", "4 of alice's requests were admitted since"] {
        assert!(message.contains(words), "{message:?} lacks {words:?}");
    }
    ask("fifth").within("often").applied().await.becomes("Granted").await;
    ask("sixth").within("often").applied().await.is_denied("LimitReached").await;
}
