//! Nobody can make a request so large that its end finds no room.

use instance_access::api::FINALIZER;
use serde_json::{Map, Value, json};

use super::world::{refused, world};
use crate::common::{Object, Person, request};

/// What etcd takes as one object: 1.5 MiB, `--max-request-bytes`.
const STORED_BYTES_MAX: usize = 1_572_864;

/// So many labels, finalizers' names or annotations, as long as Kubernetes lets them be.
fn names(count: usize) -> impl Iterator<Item = String> {
    (0..count).map(|n| format!("{}.{n:04}/{n:063}", vec!["d".repeat(48); 5].join(".")))
}

fn map(count: usize, value: &str) -> Value {
    names(count).map(|name| (name, json!(value))).collect::<Map<_, _>>().into()
}

fn labels(count: usize) -> Value {
    map(count, &"v".repeat(63))
}

/// So many of ours and others', of which the first is ours.
fn finalizers(count: usize) -> Value {
    std::iter::once(FINALIZER.to_owned()).chain(names(count - 1)).collect()
}

/// Owners of so many characters each.
fn owners(count: usize, characters: usize) -> Value {
    let owner = |n: usize| {
        let short = format!("v1Pod{n:03}");
        json!({"apiVersion": "v1", "kind": "Pod", "name": "x".repeat(characters - short.len()), "uid": format!("{n:03}")})
    };
    (0..count).map(owner).collect()
}

/// What somebody says that so many managers own, each so many labels.
fn managed(count: usize, fields: usize) -> Value {
    let owned: Map<_, _> = (0..fields).map(|n| (format!("f:{n:06}"), json!({}))).collect();
    let entry = |n: usize| {
        json!({
            "manager": format!("manager-{n}"),
            "operation": "Apply",
            "apiVersion": "instanceaccess.dev/v1alpha1",
            "time": "2026-03-01T08:00:00Z",
            "fieldsType": "FieldsV1",
            "fieldsV1": {"f:metadata": {"f:labels": owned}},
        })
    };
    (0..count).map(entry).collect()
}

/// All that Kubernetes or we bound, at its bound.
fn full(name: &str) -> Object {
    // An annotation's text takes the most room where each character is escaped.
    let annotations = json!({"a": "\u{1}".repeat(32_767)});
    let tags: Map<_, _> = (0..50).map(|n| (format!("{n:0128}"), json!("\u{1}".repeat(256)))).collect();
    request(name)
        .with("/spec/target", json!({"tags": tags}))
        .with("/metadata/generateName", json!("g".repeat(253)))
        .with("/metadata/labels", labels(32))
        .with("/metadata/finalizers", finalizers(16))
        .with("/metadata/ownerReferences", owners(16, 256))
        .with("/metadata/annotations", annotations)
        .with("/spec/reason", json!("\u{1}".repeat(1024)))
}

#[tokio::test]
async fn what_pads_a_request_is_refused_by_the_name_of_the_field() {
    let world = world().await;
    let base = request("padded");
    world.alice.create(&base).await.unwrap();
    let annotation = |characters: usize| json!({"example.com/novel": "é".repeat(characters - 17)});
    for (field, most, more) in [
        ("generateName", json!("g".repeat(253)), json!("g".repeat(254))),
        ("labels", labels(32), labels(33)),
        ("labels", labels(32), map(4000, "")),
        ("finalizers", finalizers(16), finalizers(17)),
        ("annotations", map(32, ""), map(33, "")),
        ("annotations", annotation(32_768), annotation(32_769)),
        ("ownerReferences", owners(16, 256), owners(17, 20)),
        ("ownerReferences", owners(1, 4096), owners(1, 4097)),
        ("managedFields", managed(20, 100), managed(20, 200)),
        ("managedFields", managed(1, 1), managed(2000, 1)),
    ] {
        let pointer = format!("/metadata/{field}");
        let words = format!("metadata.{field}");
        for person in [&world.alice, &world.admin] {
            let person = person.dry_run();
            person.create(&request("new").with(&pointer, most.clone())).await.unwrap();
            person.patch(&base, &json!({"metadata": {field: most}})).await.unwrap();
            let made = refused(person.create(&request("new").with(&pointer, more.clone())).await, &words);
            assert!(made.json().len() < 2000, "{made}");
            refused(person.patch(&base, &json!({"metadata": {field: more}})).await, &words);
        }
    }
    // By an entry that is nested deeper than our fields are, and by one that costs more to judge than is given to it.
    let mut deep = managed(1, 1);
    deep[0]["fieldsV1"] = json!({"f:spec": {"f:a": {"f:b": {"f:c": {"f:d": {}}}}}});
    refused(world.alice.patch(&base, &json!({"metadata": {"managedFields": &deep}})).await, "metadata.managedFields ");
    // Nor with a revocation, which has more room: who hides something below our fields has it grow later.
    let hidden = json!({"metadata": {"managedFields": deep}, "spec": {"revoke": {"reason": "over"}}});
    refused(world.alice.patch(&base, &hidden).await, "metadata.managedFields ");
    let endless = json!({"metadata": {"managedFields": managed(1, 90_000)}});
    refused(world.alice.patch(&base, &endless).await, "requests.instanceaccess.dev");
    // What else a client may write into metadata is not kept.
    for field in ["selfLink", "clusterName", "anything"] {
        let long = json!({"metadata": {field: "m".repeat(1_000_000)}});
        let stored = world.alice.patch(&base, &long).await.unwrap();
        assert!(stored.to_string().len() < 10_000, "metadata.{field} was kept");
    }
}

#[tokio::test]
async fn who_takes_part_in_a_request_finds_room() {
    let world = world().await;
    let labels: Map<_, _> = (0..32).map(|n| (format!("app.example.com/label-{n}"), json!("v"))).collect();
    let object = request("shared").with("/metadata/labels", labels.into());
    for n in 0..20 {
        world.alice.apply(&object, &format!("manager-{n}")).await.unwrap();
    }
}

#[tokio::test]
async fn a_request_that_is_padded_to_its_bounds_has_room_for_its_end() {
    let world = world().await;
    let object = full("full");
    world.alice.create(&object).await.unwrap();
    // To the last entry that is let in.
    let mut last = 0;
    while world.alice.patch(&object, &json!({"metadata": {"managedFields": managed(last + 1, 100)}})).await.is_ok() {
        last += 1;
    }
    assert!(last > 20, "{last} entries");
    let stored = world.alice.get(&object).await.unwrap();

    // Another client's word adds an entry.
    let revoke = json!({"spec": {"revoke": {"reason": "\u{1}".repeat(1024)}}});
    let revoked = world.admin.patch(&object, &revoke).await.unwrap();
    let entries = |object: &Value| object["metadata"]["managedFields"].as_array().unwrap().len();
    assert_eq!(entries(&revoked), entries(&stored) + 1, "the revocation is another client's");
    let left = STORED_BYTES_MAX - revoked.to_string().len();
    assert!(left > 600_000, "{left} bytes are left for status");

    // The most that conditions may say, and where each character takes six bytes.
    let text = "\u{1}".repeat(4096);
    let condition = |kind: &str| {
        json!({
            "type": kind,
            "status": "True",
            "observedGeneration": 2,
            "reason": "Revoked",
            "message": text,
            "lastTransitionTime": "2026-03-01T08:00:00Z",
        })
    };
    let conditions: Vec<_> = ["Denied", "Active", "Ended", "Reconciling", "Stalled"].map(condition).into();
    let status = json!({"status": {"conditions": conditions}});
    let told = world.operator.patch_status(&object, &status).await.unwrap();
    assert_eq!(told["status"]["conditions"][4]["message"], text);

    world.alice.delete(&object).await.unwrap();
    world.operator.patch(&object, &json!({"metadata": {"finalizers": null}})).await.unwrap();
    refused(world.alice.get(&object).await, "not found");
}

#[tokio::test]
async fn what_is_beyond_a_bound_already_may_stay_or_get_less_and_be_revoked() {
    let world = world().await;
    // As one from before there were bounds: the operator may write anything, and pads nothing.
    let object = request("old");
    let old = json!({"metadata": {
        "generateName": "g".repeat(300),
        "labels": labels(40),
        "finalizers": finalizers(20),
        "annotations": {"a": "n".repeat(50_000), "b": "n"},
        "ownerReferences": owners(20, 300),
        "managedFields": managed(20, 300),
    }});
    world.alice.create(&object).await.unwrap();
    world.operator.patch(&object, &old).await.unwrap();

    let alice = world.alice.dry_run();
    for (field, less, more) in [
        ("generateName", json!("g".repeat(299)), json!("g".repeat(301))),
        ("labels", json!({ (names(1).next().unwrap()): null }), json!({"more": "v"})),
        ("finalizers", finalizers(19), finalizers(21)),
        ("annotations", json!({"b": null}), json!({"b": "nn"})),
        ("ownerReferences", owners(19, 300), owners(20, 301)),
        ("managedFields", managed(19, 300), managed(30, 300)),
    ] {
        alice.patch(&object, &json!({"metadata": {field: less}})).await.unwrap();
        refused(alice.patch(&object, &json!({"metadata": {field: more}})).await, &format!("metadata.{field} "));
    }
    // Nor is one entry exchanged for another, which may be longer.
    let first = names(1).next().unwrap();
    let mut exchanged = finalizers(20);
    exchanged[19] = json!("example.com/another");
    for (field, other) in [
        ("labels", json!({ (first.as_str()): null, "another": "v" })),
        ("labels", json!({ (first.as_str()): "w" })),
        ("finalizers", exchanged),
        ("annotations", json!({"b": null, "c": "n"})),
    ] {
        refused(alice.patch(&object, &json!({"metadata": {field: other}})).await, &format!("metadata.{field} "));
    }
    world.alice.patch(&object, &json!({"spec": {"revoke": {"reason": "over"}}})).await.unwrap();
    world.alice.delete(&object).await.unwrap();
    let cleared = world.alice.patch(&object, &json!({"metadata": {"managedFields": [{}]}})).await.unwrap();
    assert!(cleared["metadata"]["managedFields"].to_string().len() < 1000, "{cleared}");
    for left in (1..20).rev() {
        world.alice.patch(&object, &json!({"metadata": {"finalizers": finalizers(left)}})).await.unwrap();
    }
    world.operator.patch(&object, &json!({"metadata": {"finalizers": null}})).await.unwrap();
    refused(world.alice.get(&object).await, "not found");
}

#[tokio::test]
async fn the_garbage_collector_is_not_bound() {
    let world = world().await;
    let object = request("collected");
    world.alice.create(&object).await.unwrap();
    let collector = world.service_account("kube-system/generic-garbage-collector").await;
    let person: &Person = &collector;
    let bind = [
        "create",
        "clusterrolebinding",
        "padding-collector",
        "--clusterrole=instance-access-requester",
        "--serviceaccount=kube-system:generic-garbage-collector",
    ];
    crate::common::kubectl(world.lab, "admin", &bind).await.unwrap();
    let many = json!({"metadata": {"ownerReferences": owners(17, 20)}});
    person.patch(&object, &many).await.unwrap();
}
