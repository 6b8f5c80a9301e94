//! Status is the operator's word, and grants live there.

use instance_access::api::LIVE;
use serde_json::{Value, json};

use super::world::{World, refused, world};
use crate::common::{Object, Person, policy, request};

const OURS: &str = "only the operator, system:serviceaccount:instance-access:operator, may write status";

fn granted() -> Value {
    json!({
        "observedGeneration": 1,
        "conditions": [condition("Approved", "True", "AdmittedByPolicy"), condition("Active", "True", "Granted")],
        "grant": {"id": "g-1", "startTime": "2026-03-01T08:00:00Z", "expirationTime": "2026-03-01T09:00:00Z"},
    })
}

fn condition(type_: &str, status: &str, reason: &str) -> Value {
    json!({
        "type": type_, "status": status, "reason": reason, "message": "…", "observedGeneration": 1,
        "lastTransitionTime": "2026-03-01T08:00:00Z",
    })
}

async fn forge(person: &Person, object: &Object, status: Value, words: &str) {
    let full = object.clone().with("/status", status.clone());
    refused(person.patch_status(object, &json!({"status": status})).await, words);
    refused(person.replace_status(&full).await, words);
    refused(person.apply_status(&full, "forger").await, words);
    refused(person.dry_run().patch_status(object, &json!({"status": status})).await, words);
}

#[tokio::test]
async fn nobody_but_the_operator_writes_status() {
    let world = world().await;
    let object = request("forged");
    world.alice.create(&object).await.unwrap();
    // RBAC alone keeps alice out; nothing but the policy an administrator, and another service account with all rights.
    forge(&world.alice, &object, granted(), "cannot").await;
    forge(&world.admin, &object, granted(), OURS).await;
    let other = world.service_account("instance-access/other").await;
    let name = format!("{}-other", world.namespace);
    let bind = [
        "create",
        "clusterrolebinding",
        &name,
        "--clusterrole=cluster-admin",
        "--serviceaccount=instance-access:other",
    ];
    crate::common::kubectl(world.lab, "admin", &bind).await.unwrap();
    forge(&other, &object, granted(), OURS).await;

    let rule = policy(&world.namespace);
    world.admin.create(&rule).await.unwrap();
    forge(&world.admin, &rule, json!({"activeGrants": 3}), OURS).await;
    world.operator.patch_status(&rule, &json!({"status": {"activeGrants": 3}})).await.unwrap();
    let stored = world.operator.replace_status(&object.clone().with("/status", granted())).await.unwrap();
    assert_eq!(stored["status"]["grant"]["id"], "g-1");
}

#[tokio::test]
async fn a_status_beside_the_spec_is_dropped() {
    let world = world().await;
    let object = request("smuggled").with("/status", granted());
    let fresh = json!({"observedGeneration": -1});
    assert_eq!(world.alice.create(&object).await.unwrap()["status"], fresh);
    assert_eq!(world.admin.replace(&object).await.unwrap()["status"], fresh);
    assert_eq!(world.admin.patch(&object, &json!({"status": granted()})).await.unwrap()["status"], fresh);
    let object = request("applied").with("/status", granted());
    assert_eq!(world.alice.apply(&object, "gitops").await.unwrap()["status"], fresh);
}

#[tokio::test]
async fn writing_status_changes_nothing_else() {
    let world = world().await;
    let object = request("only-status");
    let stored = world.alice.create(&object).await.unwrap();
    let bent =
        object.with("/spec/osUser", json!("root")).with("/metadata/finalizers", json!([])).with("/status", granted());
    let answer = world.operator.replace_status(&bent).await.unwrap();
    assert_eq!(answer["spec"], stored["spec"]);
    assert_eq!(answer["metadata"]["finalizers"], stored["metadata"]["finalizers"]);
}

async fn with_grant(world: &World, name: &str) -> Object {
    let object = request(name);
    world.alice.create(&object).await.unwrap();
    world.operator.replace_status(&object.clone().with("/status", granted())).await.unwrap();
    object
}

#[tokio::test]
async fn a_grant_is_written_once_and_only_ever_ends_earlier() {
    let world = world().await;
    let object = with_grant(&world, "granted").await;
    let set = async |field: &str, value: Value| {
        world.operator.patch_status(&object, &json!({"status": {"grant": {field: value}}})).await
    };
    refused(set("id", json!("g-2")).await, "status.grant: Forbidden: is written once");
    refused(set("startTime", json!("2026-03-01T08:00:01Z")).await, "status.grant: Forbidden: is written once");
    let later = "status.grant.expirationTime: Forbidden: may only move earlier";
    refused(set("expirationTime", json!("2026-03-01T09:00:01Z")).await, later);
    // An instant, not a text: this is 09:00:01Z.
    refused(set("expirationTime", json!("2026-03-01T07:00:01-02:00")).await, later);
    set("expirationTime", json!("2026-03-01T08:30:00Z")).await.unwrap();
    refused(set("expirationTime", json!("2026-03-01T08:30:01Z")).await, later);

    let none = "status.grant: Forbidden: is written once";
    refused(world.operator.patch_status(&object, &json!({"status": {"grant": null}})).await, none);
    refused(world.operator.patch_status(&object, &json!({"status": null})).await, none);
    refused(world.operator.replace_status(&object).await, none);
    refused(world.operator.replace_status(&object.clone().with("/status", json!({}))).await, none);
}

#[tokio::test]
async fn what_binds_the_sessions_of_a_grant_only_ever_becomes_stricter() {
    let world = world().await;
    let object = with_grant(&world, "bound").await;
    let set = async |session: Value| {
        world.operator.patch_status(&object, &json!({"status": {"grant": {"session": session}}})).await
    };
    refused(set(json!({"maxSessions": 0})).await, "status.grant.session.maxSessions");
    refused(set(json!({"idleTimeoutSeconds": 1})).await, "status.grant.session.idleTimeoutSeconds");
    refused(set(json!({"drainSeconds": 3601})).await, "status.grant.session.drainSeconds");
    set(json!({"maxSessions": 3})).await.unwrap();
    set(json!({"maxSessions": 2, "idleTimeoutSeconds": 600, "drainSeconds": 60})).await.unwrap();
    for (field, looser) in [
        ("maxSessions", json!(3)),
        ("maxSessions", Value::Null),
        ("idleTimeoutSeconds", json!(601)),
        ("idleTimeoutSeconds", Value::Null),
        ("drainSeconds", json!(59)),
        ("drainSeconds", Value::Null),
    ] {
        let words = format!("status.grant.session.{field}: Forbidden: may only become stricter");
        refused(set(json!({field: looser})).await, &words);
    }
    refused(set(Value::Null).await, "status.grant.session: Forbidden: may only become stricter");
    set(json!({"maxSessions": 1, "idleTimeoutSeconds": 60, "drainSeconds": 61})).await.unwrap();
}

#[tokio::test]
async fn the_end_is_written_once() {
    let world = world().await;
    let object = with_grant(&world, "ended").await;
    let set = async |value: Value| world.operator.patch_status(&object, &json!({"status": {"endTime": value}})).await;
    set(json!("2026-03-01T08:30:00Z")).await.unwrap();
    for value in [json!("2026-03-01T08:30:01Z"), json!("2026-03-01T08:29:59Z"), Value::Null] {
        refused(set(value).await, "status.endTime: Forbidden: is written once");
    }
}

#[tokio::test]
async fn a_list_of_conditions_has_one_of_each_type() {
    let world = world().await;
    let object = request("twice");
    world.alice.create(&object).await.unwrap();
    let two = json!([condition("Active", "True", "Granted"), condition("Active", "False", "Expired")]);
    refused(world.operator.patch_status(&object, &json!({"status": {"conditions": two}})).await, "Duplicate value");
    let unknown = json!([condition("Ready!", "True", "Granted")]);
    let words = "status.conditions[0].type: Unsupported value: \"Ready!\"";
    refused(world.operator.patch_status(&object, &json!({"status": {"conditions": unknown}})).await, words);
}

#[tokio::test]
async fn the_grants_that_live_can_be_asked_for_by_themselves() {
    let world = world().await;
    world.alice.create(&request("pending")).await.unwrap();
    with_grant(&world, "lives").await;
    let over = request("over");
    world.alice.create(&over).await.unwrap();
    let mut ended = granted();
    ended["endTime"] = json!("2026-03-01T08:30:00Z");
    world.operator.replace_status(&over.with("/status", ended)).await.unwrap();
    let select = ["get", "instanceaccesses", "-n", &world.namespace, "--field-selector", LIVE, "-o", "name"];
    let found = crate::common::kubectl(world.lab, "admin", &select).await.unwrap();
    assert_eq!(found.trim(), "instanceaccess.instanceaccess.dev/lives");
}
