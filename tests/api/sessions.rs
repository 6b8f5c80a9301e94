//! A gateway writes its own entry of `status.sessions`, and nothing else of any status, whatever rights it is given.

use std::collections::BTreeSet;

use instance_access::api;
use serde_json::{Value, json};

use super::world::{World, owners, refused, world};
use crate::common::{Object, Person, decision, gateway_account, kubectl, ledger_entry, policy, request};

const NOTHING_ELSE: &str = "a gateway may write nothing of status but its entry of status.sessions";
const NOT_ITS_OWN: &str = "a gateway may write its own entry of status.sessions only";
const NOT_TAKEN_OUT: &str = "a gateway may take no entry out of status.sessions, not even its own";
const NO_WRITER: &str = "only the operator, system:serviceaccount:instance-access:operator, may write status";

fn entry(gateway: &str, open: i64, total: i64) -> Value {
    json!({"gateway": gateway, "open": open, "total": total, "lastStartTime": "2026-03-01T08:10:00Z"})
}

/// All that the operator writes into status, and another value of each that a CRD would take; none where it is written
/// once. A field that is new in the CRD fails the test until it stands here.
fn fields() -> Vec<(&'static str, Value, Value)> {
    let time = "2026-03-01T08:00:00Z";
    let condition = |status: &str| {
        json!([{
            "type": "Active", "status": status, "reason": "Granted", "message": "…", "observedGeneration": 1,
            "lastTransitionTime": time,
        }])
    };
    let approval = |name: &str| json!([{"name": name, "uid": "u", "approver": "erin", "principal": "erin", "decision": "Approve", "time": time}]);
    let command = |command: &str| json!({"method": "Direct", "address": "10.0.0.1", "port": 22, "command": command});
    let key = |pushes: i64| json!({"type": "ED25519", "bits": 256, "fingerprint": "SHA256:a", "pushes": pushes});
    let grant = |end: &str| json!({"id": "g-1", "startTime": time, "expirationTime": end});
    let verdict = |reason: &str| json!([{"policy": "developers", "verdict": "Admit", "reason": reason}]);
    let pin = |name: &str| json!({"name": name, "uid": "u", "generation": 1, "digest": "d"});
    vec![
        ("observedGeneration", json!(1), json!(2)),
        ("conditions", condition("True"), condition("False")),
        ("specDigest", json!("0".repeat(64)), json!("1".repeat(64))),
        ("policy", pin("developers"), pin("admins")),
        ("verdicts", verdict("a"), verdict("b")),
        ("approvalDeadlineTime", json!(time), json!("2026-03-01T08:00:01Z")),
        ("approvals", approval("a"), approval("b")),
        ("approvers", json!("erin"), json!("mallory")),
        ("grant", grant("2026-03-01T09:00:00Z"), grant("2026-03-01T08:30:00Z")),
        ("instance", json!({"instanceId": "i-0123456789abcdef0"}), json!({"instanceId": "i-0fedcba9876543210"})),
        ("connection", command("ssh a"), command("ssh b")),
        ("key", key(1), key(2)),
        ("revocation", json!({"cause": "Revoked"}), json!({"cause": "Expired"})),
        ("endTime", Value::Null, json!("2026-03-01T08:30:00Z")),
        ("audit", json!({"sequence": 1, "digest": "d"}), json!({"sequence": 2, "digest": "d"})),
    ]
}

fn status() -> Value {
    let fields = fields().into_iter().filter(|(_, value, _)| !value.is_null());
    fields.map(|(name, value, _)| (name.to_owned(), value)).collect::<serde_json::Map<_, _>>().into()
}

/// A request with a grant, of this name.
async fn granted(world: &World, name: &str) -> Object {
    let object = request(name);
    world.alice.create(&object).await.unwrap();
    world.operator.replace_status(&object.clone().with("/status", status())).await.unwrap();
    object
}

fn with_entries(object: &Object, entries: &[Value]) -> Object {
    object.clone().without("/spec").with("/status", json!({"sessions": entries}))
}

fn sessions(object: &Value) -> BTreeSet<String> {
    object["status"]["sessions"].as_array().into_iter().flatten().map(Value::to_string).collect()
}

fn set(entries: &[Value]) -> BTreeSet<String> {
    entries.iter().map(Value::to_string).collect()
}

async fn gateway(world: &World, pod: &str) -> Person {
    Person::gateway(world.lab, pod, &world.namespace).await.unwrap()
}

#[tokio::test]
async fn each_gateway_keeps_its_own_entry_and_the_operator_carries_all_of_them() {
    let world = world().await;
    let object = granted(&world, "kept").await;
    let (zero, one) = (gateway(&world, "gateway-0").await, gateway(&world, "gateway-1").await);
    let before = world.admin.get(&object).await.unwrap();
    zero.apply_status(&with_entries(&object, &[entry("gateway-0", 1, 1)]), "zero").await.unwrap();
    let both = one.apply_status(&with_entries(&object, &[entry("gateway-1", 2, 5)]), "one").await.unwrap();
    assert_eq!(sessions(&both), set(&[entry("gateway-0", 1, 1), entry("gateway-1", 2, 5)]));
    // All else is as it was, and the generation, by which people and tools know a change, too.
    let without = |object: &Value| {
        let object = Object(object.clone()).with("/metadata/managedFields", Value::Null);
        object.with("/metadata/resourceVersion", Value::Null).with("/status/sessions", Value::Null).0
    };
    assert_eq!(without(&both), without(&before));

    // The operator writes what it read, with a field changed; whose entry is whose stays.
    let put = Object(both.clone()).with("/status/audit/sequence", json!(7)).without("/metadata/managedFields");
    let put = world.operator.replace_status(&put).await.unwrap();
    assert_eq!(sessions(&put), sessions(&both));
    assert_eq!(owners(&put, &["status", "sessions"]), ["one", "zero"]);
    // And so the gateway's next write meets no conflict, forced or not.
    let next = with_entries(&object, &[entry("gateway-0", 0, 1)]);
    let done = zero.apply_status_unforced(&next, "zero").await.unwrap();
    assert_eq!(sessions(&done), set(&[entry("gateway-0", 0, 1), entry("gateway-1", 2, 5)]));

    // The operator's write on an older version falls, and is made anew.
    let stale = json!({"metadata": {"resourceVersion": put["metadata"]["resourceVersion"]}, "status": {"audit": null}});
    refused(world.operator.patch_status(&object, &stale).await, "the object has been modified");
}

#[tokio::test]
async fn a_gateway_writes_no_other_field_of_status_by_whatever_verb() {
    let world = world().await;
    let object = granted(&world, "fields").await;
    let zero = gateway(&world, "gateway-0").await;
    let unbound = world.service_account("instance-access/gateway").await;
    let crd = serde_json::to_value(api::crds()).unwrap();
    let schemas = crd.as_array().unwrap().iter().filter(|crd| crd["spec"]["names"]["kind"] == "InstanceAccess");
    let schema = schemas.map(|crd| &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]).next().unwrap();
    let of_schema: BTreeSet<&str> =
        schema["properties"]["status"]["properties"].as_object().unwrap().keys().map(String::as_str).collect();
    let listed: BTreeSet<&str> = fields().iter().map(|(name, _, _)| *name).chain(["sessions"]).collect();
    assert_eq!(listed, of_schema, "list each field of status here, with two values of it");

    let stored = world.admin.get(&object).await.unwrap();
    for (field, value, other) in fields() {
        let words = NOTHING_ELSE;
        let merge = json!({"status": {field: other}});
        refused(zero.patch_status(&object, &merge).await, words);
        refused(zero.dry_run().patch_status(&object, &merge).await, words);
        refused(unbound.patch_status(&object, &merge).await, words);
        let add = json!([{"op": "add", "path": format!("/status/{field}"), "value": other}]);
        refused(zero.patch_json_status(&object, add).await, words);
        let apply = object.clone().without("/spec").with(&format!("/status/{field}"), other.clone());
        refused(zero.apply_status(&apply, "zero").await, words);
        let put = Object(stored.clone()).with(&format!("/status/{field}"), other.clone());
        refused(zero.replace_status(&put).await, words);
        // Under cover of an entry of its own.
        let both = json!({"status": {field: other, "sessions": [entry("gateway-0", 1, 1)]}});
        refused(zero.patch_status(&object, &both).await, words);
        // Away with it; a grant and an end are the CRD's to keep.
        if !value.is_null() && field != "grant" {
            refused(zero.patch_status(&object, &json!({"status": {field: null}})).await, words);
        }
    }
    refused(zero.patch_status(&object, &json!({"status": null})).await, "is written once");
    let conditions = json!([{"op": "replace", "path": "/status/conditions/0/reason", "value": "Expired"}]);
    refused(zero.patch_json_status(&object, conditions).await, NOTHING_ELSE);
    assert_eq!(world.admin.get(&object).await.unwrap(), stored);
}

#[tokio::test]
async fn a_gateway_changes_nothing_beside_status() {
    let world = world().await;
    let object = granted(&world, "beside").await;
    let zero = gateway(&world, "gateway-0").await;
    let stored = world.admin.get(&object).await.unwrap();
    // The API server takes nothing but status out of a write of status, and the entry is a good one.
    let smuggled = json!({
        "metadata": {
            "labels": {"a": "b"}, "annotations": {"a": "b"}, "finalizers": [], "generation": 9,
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "a", "uid": "u"}],
        },
        "spec": {"osUser": "root", "revoke": {"reason": "mallory"}},
        "status": {"sessions": [entry("gateway-0", 1, 1)]},
    });
    let answer = zero.patch_status(&object, &smuggled).await.unwrap();
    assert_eq!(answer["spec"], stored["spec"]);
    for field in ["labels", "annotations", "finalizers", "generation", "ownerReferences", "deletionTimestamp"] {
        assert_eq!(answer["metadata"][field], stored["metadata"][field], "{field}");
    }
    // Who wrote what is metadata that comes through as the API server has it, whatever the body says.
    let forged = json!([{
        "manager": "mallory", "operation": "Update", "apiVersion": "instanceaccess.dev/v1alpha1",
        "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {"f:osUser": {}}}, "time": "2026-03-01T08:00:00Z",
    }]);
    for (total, fields) in [(2, json!([{}])), (3, json!([])), (4, forged)] {
        let entries = json!({"sessions": [entry("gateway-0", 1, total)]});
        let patch = json!({"metadata": {"managedFields": fields}, "status": entries});
        let answer = zero.patch_status(&object, &patch).await.unwrap();
        assert_eq!(owners(&answer, &["spec"]), owners(&stored, &["spec"]));
        assert_eq!(owners(&answer, &["status", "grant"]), owners(&stored, &["status", "grant"]));
    }
    // Whatever RBAC gave it beside status: the finalizer stays, and the rest is others'. What is shipped gives it none of
    // that, as tests/gateway sees.
    let bare = zero.patch(&object, &json!({"metadata": {"finalizers": null}})).await.unwrap();
    assert_eq!(bare["metadata"]["finalizers"], stored["metadata"]["finalizers"]);
    refused(zero.patch(&object, &json!({"spec": {"osUser": "root"}})).await, "is immutable");
    refused(zero.create(&ledger_entry("beside")).await, "cannot create");
    refused(zero.create(&decision("beside")).await, "cannot create");
    let rule = policy(&world.namespace);
    world.admin.create(&rule).await.unwrap();
    refused(zero.patch_status(&rule, &json!({"status": {"activeGrants": 3}})).await, NO_WRITER);
}

#[tokio::test]
async fn a_gateway_writes_nobody_elses_entry() {
    let world = world().await;
    let object = granted(&world, "entries").await;
    let (zero, one) = (gateway(&world, "gateway-0").await, gateway(&world, "gateway-1").await);
    let unbound = world.service_account("instance-access/gateway").await;
    one.apply_status(&with_entries(&object, &[entry("gateway-1", 1, 1)]), "one").await.unwrap();
    let first = |entries: &[Value]| json!({"status": {"sessions": entries}});
    let (own, others) = (entry("gateway-0", 1, 1), entry("gateway-1", 0, 9));
    for (entries, words) in [
        (vec![others.clone()], NOT_ITS_OWN),
        (vec![own.clone(), others.clone()], NOT_ITS_OWN),
        (vec![entry("gateway-1", 1, 1), entry("gateway-2", 1, 1)], NOT_ITS_OWN),
        (vec![own.clone()], NOT_TAKEN_OUT),
        (vec![], NOT_TAKEN_OUT),
    ] {
        refused(zero.patch_status(&object, &first(&entries)).await, words);
        refused(zero.dry_run().patch_status(&object, &first(&entries)).await, words);
        let put = Object(world.admin.get(&object).await.unwrap()).with("/status/sessions", json!(entries));
        refused(zero.replace_status(&put).await, words);
    }
    let by_index = json!([{"op": "replace", "path": "/status/sessions/0/open", "value": 0}]);
    refused(zero.patch_json_status(&object, by_index).await, NOT_ITS_OWN);
    let renamed = json!([{"op": "replace", "path": "/status/sessions/0/gateway", "value": "gateway-0"}]);
    refused(zero.patch_json_status(&object, renamed).await, NOT_TAKEN_OUT);
    refused(
        zero.patch_json_status(&object, json!([{"op": "remove", "path": "/status/sessions/0"}])).await,
        NOT_TAKEN_OUT,
    );
    // Under the other's field manager, to take the entry out by applying nothing; and by applying the other's.
    refused(zero.apply_status(&with_entries(&object, std::slice::from_ref(&own)), "one").await, NOT_TAKEN_OUT);
    refused(zero.apply_status(&with_entries(&object, std::slice::from_ref(&others)), "zero").await, NOT_ITS_OWN);
    zero.apply_status(&with_entries(&object, std::slice::from_ref(&own)), "zero").await.unwrap();
    // Nor its own away.
    refused(zero.apply_status(&with_entries(&object, &[]), "zero").await, NOT_TAKEN_OUT);

    // A token that names no pod, of a gateway outside of the cluster: any one entry at a time, and none away.
    let two = [entry("gateway-0", 0, 2), others.clone()];
    refused(unbound.patch_status(&object, &first(&two)).await, NOT_ITS_OWN);
    refused(unbound.patch_status(&object, &first(&two[..1])).await, NOT_TAKEN_OUT);
    let outside = unbound.apply_status(&with_entries(&object, &[entry("edge", 1, 1)]), "edge").await.unwrap();
    assert_eq!(sessions(&outside), set(&[own, entry("gateway-1", 1, 1), entry("edge", 1, 1)]));

    // Nobody else is a gateway: not by name of a pod, not by another account, not by being an administrator.
    for person in [&world.alice, &world.bob] {
        refused(person.apply_status(&with_entries(&object, &[entry("alice", 1, 1)]), "alice").await, "cannot patch");
    }
    refused(world.admin.apply_status(&with_entries(&object, &[entry("admin", 1, 1)]), "admin").await, NO_WRITER);
    let other = world.service_account("instance-access/gateway-2").await;
    let name = format!("{}-gateway-2", world.namespace);
    let account = "--serviceaccount=instance-access:gateway-2";
    kubectl(world.lab, "admin", &["create", "clusterrolebinding", &name, "--clusterrole=cluster-admin", account])
        .await
        .unwrap();
    refused(other.apply_status(&with_entries(&object, &[entry("gateway-2", 1, 1)]), "other").await, NO_WRITER);
    assert_eq!(gateway_account().to_string(), "instance-access/gateway");
}

#[tokio::test]
async fn an_entry_is_bounded_and_only_grows_and_stands_under_a_grant() {
    let world = world().await;
    let object = granted(&world, "bounds").await;
    let unbound = world.service_account("instance-access/gateway").await;
    let write = async |entry: Value| unbound.apply_status(&with_entries(&object, &[entry]), "edge").await;
    let at = |time: &str| Object(entry("edge", 0, 1)).with("/lastStartTime", json!(time)).0;
    for (bad, words) in [
        (entry("edge", 2, 1), "must be among total"),
        (entry("edge", -1, 1), "status.sessions[0].open"),
        (entry("edge", 0, 0), "status.sessions[0].total"),
        (entry("Edge", 0, 1), "status.sessions[0].gateway"),
        (entry("", 0, 1), "status.sessions[0].gateway"),
        (entry(&"a".repeat(101), 0, 1), "status.sessions[0].gateway"),
        (entry("edge", 1_000_001, 1_000_001), "status.sessions[0].open"),
        (entry("edge", 0, i64::MAX), "status.sessions[0].total"),
        (json!({"gateway": "edge", "open": 0, "total": 1}), "lastStartTime"),
        // What the operator could not decode: it would lose the request, and with it the word that ends it.
        (at("9999-12-31T23:59:59Z"), "must lie before the year 9999"),
        (at("2026-03-01T08:10:00.1234567890Z"), "status.sessions[0].lastStartTime"),
        (at("yesterday"), "status.sessions[0].lastStartTime"),
        (Object(entry("edge", 0, 1)).with("/total", json!(1e21)).0, "status.sessions[0].total"),
        (Object(entry("edge", 0, 1)).with("/open", json!(0.5)).0, "status.sessions[0].open"),
    ] {
        refused(write(bad).await, words);
    }
    write(entry("edge", 1, 3)).await.unwrap();
    refused(write(entry("edge", 1, 2)).await, "may only grow");
    let earlier = Object(entry("edge", 1, 3)).with("/lastStartTime", json!("2026-03-01T08:09:59Z")).0;
    refused(write(earlier).await, "may only move later");
    for number in 1..16 {
        let name = format!("edge-{number}");
        unbound.apply_status(&with_entries(&object, &[entry(&name, 1, 1)]), &name).await.unwrap();
    }
    let seventeenth = unbound.apply_status(&with_entries(&object, &[entry("edge-16", 1, 1)]), "edge-16").await;
    refused(seventeenth, "must have at most 16 items");
    // Those that are there go on.
    write(entry("edge", 0, 4)).await.unwrap();

    let waiting = request("waiting");
    world.alice.create(&waiting).await.unwrap();
    let refusal = unbound.apply_status(&with_entries(&waiting, &[entry("edge", 1, 1)]), "edge").await;
    refused(refusal, "are there under a grant only");
    // And one that is not there is not made.
    let nobody = unbound.apply_status(&with_entries(&request("nobody"), &[entry("edge", 1, 1)]), "edge").await;
    refused(nobody, "not found");
}

#[tokio::test]
async fn the_table_shows_that_sessions_are_open() {
    let world = world().await;
    let object = granted(&world, "shown").await;
    let column = async || {
        let get = ["get", "ia", "shown", "-n", &world.namespace, "--no-headers=false"];
        let table = kubectl(world.lab, "alice", &get).await.unwrap();
        let lines: Vec<&str> = table.lines().collect();
        let at = lines[0].find("SESSIONS").expect("a column");
        lines[1][at..].split_whitespace().next().unwrap().to_owned()
    };
    let age = |text: &str| text.ends_with('s');
    assert!(age(&column().await), "none is open: the cell is empty");
    let unbound = world.service_account("instance-access/gateway").await;
    for (name, open, total, shown) in [("edge-0", 0, 4, None), ("edge-1", 3, 3, Some("3")), ("edge-2", 2, 2, Some("3"))]
    {
        unbound.apply_status(&with_entries(&object, &[entry(name, open, total)]), name).await.unwrap();
        let cell = column().await;
        match shown {
            Some(shown) => assert_eq!(cell, shown),
            None => assert!(age(&cell), "{cell}"),
        }
    }
}
