//! A deletion waits until the operator has ended access.

use instance_access::api::FINALIZER;
use serde_json::{Value, json};

use super::world::{refused, world};
use crate::common::request;

const WORDS: &str = "metadata.finalizers must keep instanceaccess.dev/end-grant";

#[tokio::test]
async fn a_deletion_waits_for_the_operator_and_for_nobody_else() {
    let world = world().await;
    let object = request("deleted");
    world.alice.create(&object).await.unwrap();
    world.alice.delete(&object).await.unwrap();
    let stored = world.alice.get(&object).await.unwrap();
    assert!(stored["metadata"]["deletionTimestamp"].is_string(), "{stored}");

    let none = json!({"metadata": {"finalizers": null}});
    let remove = json!([{"op": "remove", "path": "/metadata/finalizers/0"}]);
    for person in [&world.alice, &world.bob, &world.admin] {
        refused(person.patch(&object, &none).await, WORDS);
        refused(person.patch_json(&object, remove.clone()).await, WORDS);
        refused(person.replace(&object).await, WORDS);
        refused(person.dry_run().patch(&object, &none).await, WORDS);
    }
    world.operator.patch(&object, &json!({"metadata": {"finalizers": []}})).await.unwrap();
    refused(world.alice.get(&object).await, "not found");
}

#[tokio::test]
async fn taking_the_finalizer_out_of_a_living_request_has_no_effect() {
    let world = world().await;
    let object = request("alive");
    world.alice.create(&object).await.unwrap();
    let other = request("alive").with("/metadata/finalizers", json!(["example.com/other"]));
    for person in [&world.alice, &world.admin] {
        let kept = person.patch(&object, &json!({"metadata": {"finalizers": null}})).await.unwrap();
        assert_eq!(kept["metadata"]["finalizers"], json!([FINALIZER]));
        let kept = person.replace(&other).await.unwrap();
        assert_eq!(kept["metadata"]["finalizers"], json!(["example.com/other", FINALIZER]));
    }
    // The operator's word counts.
    let gone =
        world.operator.patch(&object, &json!({"metadata": {"finalizers": ["example.com/other"]}})).await.unwrap();
    assert_eq!(gone["metadata"]["finalizers"], json!(["example.com/other"]));
    // And is not undone by the next who writes.
    let still = world.alice.patch(&object, &json!({"metadata": {"labels": {"a": "b"}}})).await.unwrap();
    assert_eq!(still["metadata"]["finalizers"], json!(["example.com/other"]));
}

#[tokio::test]
async fn others_may_have_finalizers_of_their_own() {
    let world = world().await;
    let object = request("shared").with("/metadata/finalizers", json!(["example.com/first"]));
    let stored = world.alice.create(&object).await.unwrap();
    assert_eq!(stored["metadata"]["finalizers"], json!(["example.com/first", FINALIZER]));
    let removed = world.bob.patch(&object, &json!({"metadata": {"finalizers": [FINALIZER]}})).await.unwrap();
    assert_eq!(removed["metadata"]["finalizers"], json!([FINALIZER]));

    // What the garbage collector puts on and takes off, in a foreground deletion.
    let with: Value = json!({"metadata": {"finalizers": [FINALIZER, "foregroundDeletion"]}});
    world.admin.patch(&object, &with).await.unwrap();
    world.alice.delete(&object).await.unwrap();
    let left = world.admin.patch(&object, &json!({"metadata": {"finalizers": [FINALIZER]}})).await.unwrap();
    assert_eq!(left["metadata"]["finalizers"], json!([FINALIZER]));
    world.operator.patch(&object, &json!({"metadata": {"finalizers": null}})).await.unwrap();
}

#[tokio::test]
async fn a_manifest_that_names_the_finalizer_itself_does_not_get_it_twice() {
    let world = world().await;
    let object = request("named").with("/metadata/finalizers", json!([FINALIZER]));
    let stored = world.alice.apply(&object, "gitops").await.unwrap();
    assert_eq!(stored["metadata"]["finalizers"], json!([FINALIZER]));
    // The manager owned it; dropping it from the manifest has no effect.
    let stored = world.alice.apply(&request("named"), "gitops").await.unwrap();
    assert_eq!(stored["metadata"]["finalizers"], json!([FINALIZER]));
}
