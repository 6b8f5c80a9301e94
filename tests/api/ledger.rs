//! The ledger of consumed grants: the operator's alone, and there to be read.

use instance_access::api::InstanceAccessLedgerEntry;
use kube::Api;
use kube::api::{DeleteParams, ListParams};
use serde_json::{Value, json};

use super::world::{refused, world};
use crate::common::{Object, kubectl, ledger_entry};

const OURS: &str = "only the operator, system:serviceaccount:instance-access:operator, may write the ledger";

/// Who may write an entry can keep another's request from its grant, who may delete one can have a grant twice: RBAC
/// refuses an administrator nothing, so the refusal is ours.
#[tokio::test]
async fn nobody_but_the_operator_writes_deletes_or_changes_an_entry() {
    let world = world().await;
    let (entry, other) = (ledger_entry("kept"), ledger_entry("forged"));
    world.operator.create(&entry).await.unwrap();
    for person in [&world.admin, &world.admin.dry_run()] {
        refused(person.create(&other).await, OURS);
        refused(person.apply(&other, "gitops").await, OURS);
        refused(person.apply(&entry, "gitops").await, OURS);
        refused(person.replace(&entry.clone().with("/metadata/labels", json!({"a": "b"}))).await, OURS);
        // A later collection of garbage, or a deletion that never ends.
        let owner = json!([{"apiVersion": "v1", "kind": "Namespace", "name": "gone", "uid": "1"}]);
        refused(person.patch(&entry, &json!({"metadata": {"ownerReferences": owner}})).await, OURS);
        refused(person.patch(&entry, &json!({"metadata": {"finalizers": ["example.com/a"]}})).await, OURS);
    }
    refused(world.admin.delete(&entry).await.map(|()| Value::Null), OURS);
    let all: Api<InstanceAccessLedgerEntry> = Api::all(world.admin.client());
    let wiped = all.delete_collection(&DeleteParams::default(), &ListParams::default()).await.unwrap_err();
    assert!(wiped.to_string().contains(OURS), "{wiped}");
    for person in [&world.alice, &world.person("erin").await] {
        refused(person.create(&other).await, "cannot create resource");
        refused(person.delete(&entry).await.map(|()| Value::Null), "cannot delete resource");
        refused(person.get(&entry).await, "cannot get resource");
    }
    // Nor does the operator change what it wrote, had it the right to.
    refused(
        world.operator.patch(&entry, &json!({"spec": {"grantId": "g-2"}})).await,
        "spec.grantId: Forbidden: is immutable",
    );
    world.operator.delete(&entry).await.unwrap();
}

#[tokio::test]
async fn no_field_of_an_entry_changes() {
    let world = world().await;
    let entry = ledger_entry("fixed");
    let stored = world.operator.create(&entry).await.unwrap();
    let Object(made) = &entry;
    assert_eq!(stored["spec"], made["spec"]);
    for field in made["spec"].as_object().unwrap().keys() {
        let other = match field.as_str() {
            "request" => json!({"name": "another"}),
            "subject" => json!({"username": "bob"}),
            "grantId" | "instanceId" => json!("another"),
            _ => json!("2030-01-01T00:00:00Z"),
        };
        let words = format!("spec.{field}: Forbidden: is immutable; what was granted stays so");
        refused(world.admin.patch(&entry, &json!({"spec": {field: other}})).await, &words);
    }
}

#[tokio::test]
async fn whoever_may_look_sees_who_got_in_where_and_until_when() {
    let world = world().await;
    world.operator.create(&ledger_entry("seen")).await.unwrap();
    let bind = ["create", "clusterrolebinding", "auditors", "--clusterrole=instance-access-viewer", "--user=carol"];
    kubectl(world.lab, "admin", &bind).await.unwrap();
    let table = async |more: &[&str]| {
        let table = kubectl(world.lab, "carol", &[&["get", "iale"], more].concat()).await.unwrap();
        let line = |line: &str| line.split_whitespace().skip(1).collect::<Vec<_>>().join(" ");
        let shown = |text: &&str| text.starts_with("NAME ") || text.contains(" seen ");
        table.lines().filter(shown).map(line).collect::<Vec<_>>()
    };
    let (head, row) =
        ("NAMESPACE REQUEST USER INSTANCE ENDED", "team seen alice i-0123456789abcdef0 2026-03-01T08:30:00Z");
    assert_eq!(table(&[]).await, [head, row]);
    assert_eq!(
        table(&["-o", "wide"]).await,
        [format!("{head} GRANT KEPT-UNTIL"), format!("{row} g-da0a142574368aceb40ae198baca56c4 2027-04-05T08:30:00Z")]
    );
}
