//! A request is what it was when it was made, except that it may be revoked.

use serde_json::{Value, json};

use super::world::{refused, world};
use crate::common::request;

#[tokio::test]
async fn no_field_of_a_request_changes_comes_or_goes_and_the_refusal_names_it() {
    let world = world().await;
    let full = json!({
        "subject": {"username": "carol"},
        "target": {"instanceId": "i-0123456789abcdef0", "region": "us-west-2"},
        "osUser": "ec2-user",
        "connection": {"method": "Direct", "port": 22},
        "keyDelivery": "Continuous",
        "ttlSeconds": 600,
        "startTime": "2026-03-01T08:00:00Z",
        "endTime": "2026-03-01T09:00:00Z",
        "approvalDeadlineSeconds": 600,
        "reason": "why",
        "ticket": "INC-1",
        "policyName": "developers",
        "sshPublicKey": crate::common::PUBLIC_KEY,
    });
    let bare = request("bare");
    let rich = request("rich").with("/spec", full.clone());
    world.alice.create(&bare).await.unwrap();
    world.alice.create(&rich).await.unwrap();
    let others = json!({
        "subject": {"username": "dave"},
        "target": {"instanceId": "i-00000000000000000"},
        "osUser": "root",
        "connection": {"method": "Endpoint"},
        "keyDelivery": "OnConnect",
        "ttlSeconds": 1200,
        "startTime": "2026-03-01T07:00:00Z",
        "endTime": "2026-03-01T10:00:00Z",
        "approvalDeadlineSeconds": 60,
        "reason": "because",
        "ticket": "INC-2",
        "policyName": "others",
        "sshPublicKey": format!("{} ", crate::common::PUBLIC_KEY),
    });
    for (field, other) in others.as_object().unwrap() {
        let words = format!("spec.{field}: Forbidden: is immutable; delete the request and make a new one");
        refused(world.alice.patch(&rich, &json!({"spec": {field: other}})).await, &words);
        if bare.0["spec"].get(field).is_none() {
            refused(world.alice.patch(&rich, &json!({"spec": {field: null}})).await, &words);
            refused(world.alice.patch(&bare, &json!({"spec": {field: full[field]}})).await, &words);
        }
    }
    // A field that this test forgets is a field that nobody tried to change.
    let crd = &instance_access::api::crds()[0];
    let crd: Value = serde_json::to_value(crd).unwrap();
    let spec = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"];
    for field in spec.as_object().unwrap().keys() {
        let elsewhere = ["requester", "revoke"].contains(&field.as_str());
        assert!(elsewhere || others.get(field).is_some(), "spec.{field} is not tried");
    }
}

#[tokio::test]
async fn a_revocation_is_not_taken_back_or_changed() {
    let world = world().await;
    let object = request("revoked");
    world.alice.create(&object).await.unwrap();
    world.bob.patch(&object, &json!({"spec": {"revoke": {"reason": "lost"}}})).await.unwrap();
    let words = "spec.revoke: Forbidden: cannot be taken back or changed";
    refused(world.bob.patch(&object, &json!({"spec": {"revoke": {"reason": "found"}}})).await, words);
    refused(world.bob.patch(&object, &json!({"spec": {"revoke": {"reason": null}}})).await, words);
    refused(world.admin.patch(&object, &json!({"spec": {"revoke": {"reason": "found"}}})).await, words);
    refused(world.operator.patch(&object, &json!({"spec": {"revoke": {"reason": "found"}}})).await, words);
    // Leaving it out is no wish to take it back: the one who applies a manifest may not know of it.
    for person in [&world.alice, &world.admin, &world.operator] {
        let kept = person.patch(&object, &json!({"spec": {"revoke": null}})).await.unwrap();
        assert_eq!(kept["spec"]["revoke"], json!({"reason": "lost"}));
    }
    let applied = world.alice.apply(&object, "gitops").await.unwrap();
    assert_eq!(applied["spec"]["revoke"], json!({"reason": "lost"}));
}

#[tokio::test]
async fn a_revocation_needs_no_reason() {
    let world = world().await;
    let object = request("revoked");
    world.alice.create(&object).await.unwrap();
    let stored = world.alice.patch(&object, &json!({"spec": {"revoke": {}}})).await.unwrap();
    assert_eq!(stored["spec"]["revoke"], json!({}));
    let words = "spec.revoke: Forbidden: cannot be taken back or changed";
    refused(world.alice.patch(&object, &json!({"spec": {"revoke": {"reason": "late"}}})).await, words);
}

#[tokio::test]
async fn labels_and_annotations_are_anybodys_who_may_update() {
    let world = world().await;
    let object = request("labelled");
    world.alice.create(&object).await.unwrap();
    let labels = json!({"metadata": {"labels": {"team": "a"}, "annotations": {"seen": "yes"}}});
    let stored = world.bob.patch(&object, &labels).await.unwrap();
    assert_eq!(stored["metadata"]["labels"], json!({"team": "a"}));
    assert_eq!(stored["metadata"]["generation"], 1);
}
