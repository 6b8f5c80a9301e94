//! Whose word a decision is: filled in at admission, never another's, and never changed.

use serde_json::{Value, json};

use super::world::{assert_unchanged, owners, refused, world};
use crate::common::{Object, decision, kubectl, policy};

const OURS: &str = "ValidatingAdmissionPolicy 'decisions.instanceaccess.dev'";

fn erin() -> Value {
    json!({"username": "erin", "uid": "erin", "groups": ["leads", "system:authenticated"]})
}

#[tokio::test]
async fn a_decision_names_its_approver_without_the_manifest_saying_so() {
    let world = world().await;
    let lead = world.person("erin").await;
    let stored = lead.create(&decision("one")).await.unwrap();
    assert_eq!(stored["spec"]["approver"], erin());
    assert_eq!(stored["metadata"].get("finalizers"), None);
    let said = decision("said").with("/spec/approver", erin());
    assert_eq!(lead.create(&said).await.unwrap()["spec"]["approver"], erin());
    let null = decision("null").with("/spec/approver", Value::Null);
    assert_eq!(lead.create(&null).await.unwrap()["spec"]["approver"], erin());
    let dry = world.alice.dry_run().create(&decision("two")).await.unwrap();
    assert_eq!(dry["spec"]["approver"]["username"], "alice");
    refused(world.person("mallory").await.create(&decision("x")).await, "cannot create resource");
}

#[tokio::test]
async fn a_service_account_decides_as_what_its_token_says() {
    let world = world().await;
    let account = format!("{}/robot", world.namespace);
    let robot = world.service_account(&account).await;
    let bind = ["create", "clusterrolebinding", &world.namespace, "--clusterrole=instance-access-approver"];
    let who = format!("--serviceaccount={}", account.replace('/', ":"));
    kubectl(world.lab, "admin", &[&bind[..], &[&who]].concat()).await.unwrap();
    let stored = robot.create(&decision("robot")).await.unwrap();
    let approver = &stored["spec"]["approver"];
    assert_eq!(approver["username"], format!("system:serviceaccount:{}:robot", world.namespace));
    assert!(approver["extra"]["authentication.kubernetes.io/credential-id"].is_array(), "{approver}");
    let mut silent = approver.clone();
    silent.as_object_mut().unwrap().remove("extra");
    refused(
        robot.create(&decision("silent").with("/spec/approver", silent)).await,
        "spec.approver.extra must be your own",
    );
    refused(
        robot.create(&decision("forged").with("/spec/approver", erin())).await,
        "spec.approver.username must be your own",
    );
}

#[tokio::test]
async fn nobody_decides_in_anothers_name() {
    let world = world().await;
    let lead = world.person("erin").await;
    let rows = [
        ("username", json!("sam"), "spec.approver.username must be your own, erin; leave spec.approver out"),
        ("username", json!("Erin"), "spec.approver.username must be your own"),
        ("uid", json!("0"), "spec.approver.uid must be your own"),
        ("uid", json!(""), "spec.approver.uid must be your own"),
        ("groups", json!([]), "spec.approver.groups must be your own"),
        ("groups", json!(["leads", "system:authenticated", "security"]), "spec.approver.groups must be your own"),
        ("groups", json!(["system:authenticated", "leads"]), "spec.approver.groups must be your own"),
        ("extra", json!({"sessionName": ["sam"]}), "spec.approver.extra must be your own"),
    ];
    for (field, value, words) in rows {
        let mut forged = erin();
        forged[field] = value;
        let forged = decision("forged").with("/spec/approver", forged);
        let refusal = refused(lead.create(&forged).await, words);
        assert!(refusal.to_string().contains(OURS), "{refusal}");
        refused(world.admin.apply(&forged, "gitops").await, OURS);
    }
    // An administrator is no exception, nor is the operator; RBAC lets it create nothing.
    refused(world.admin.create(&decision("x").with("/spec/approver", erin())).await, OURS);
    refused(world.operator.create(&decision("x")).await, "cannot create resource");
}

#[tokio::test]
async fn a_decision_is_never_changed_whoever_tries_and_by_whatever_way() {
    let world = world().await;
    let lead = world.person("erin").await;
    let object = decision("fixed").with("/spec/reason", json!("seen"));
    let stored = lead.create(&object).await.unwrap();
    let others = [
        ("decision", json!("Deny")),
        ("requestRef", json!({"name": "web-1", "uid": "another", "specDigest": "0".repeat(64)})),
        ("reason", json!("seen it not")),
        ("reason", Value::Null),
        ("approver", json!({"username": "sam", "groups": ["security"]})),
    ];
    for (field, value) in others {
        let words = format!("spec.{field}: Forbidden: is immutable; make a new decision");
        refused(world.admin.patch(&object, &json!({"spec": {field: value}})).await, &words);
        if !value.is_null() {
            let bent = object.clone().with(&format!("/spec/{field}"), value);
            refused(world.admin.replace(&bent).await, &words);
            refused(world.admin.apply(&bent, "other").await, &words);
        }
    }
    refused(lead.patch(&object, &json!({"metadata": {"labels": {"a": "b"}}})).await, "cannot patch resource");
    // Who leaves the approver out, or takes it out, keeps it.
    for answer in [
        world.admin.replace(&object).await,
        world.admin.patch(&object, &json!({"spec": {"approver": null}})).await,
        world.admin.patch_json(&object, json!([{"op": "remove", "path": "/spec/approver"}])).await,
    ] {
        let answer = answer.unwrap();
        assert_eq!((&answer["spec"], &answer["metadata"]["generation"]), (&stored["spec"], &json!(1)));
    }
    let first = world.admin.apply(&object, "gitops").await.unwrap();
    let second = world.admin.apply(&object, "gitops").await.unwrap();
    assert_unchanged(&[first, second.clone()]);
    assert_eq!(owners(&second, &["spec", "approver"]), [""; 0]);
}

#[tokio::test]
async fn an_approval_says_what_was_seen_and_a_no_need_not() {
    let world = world().await;
    let lead = world.person("erin").await;
    let blind = |kind: &str| {
        decision(&kind.to_lowercase()).with("/spec/decision", json!(kind)).without("/spec/requestRef/specDigest")
    };
    refused(
        lead.create(&blind("Approve")).await,
        "spec.requestRef.specDigest: Required value: is required of an Approve",
    );
    lead.create(&blind("Deny")).await.unwrap();
    lead.create(&blind("Revoke")).await.unwrap();
    let rows = [
        ("/spec/decision", json!("Maybe"), "spec.decision: Unsupported value"),
        ("/spec/decision", Value::Null, "spec.decision: Required value"),
        ("/spec/requestRef", Value::Null, "spec.requestRef: Required value"),
        ("/spec/requestRef/uid", json!(""), "spec.requestRef.uid"),
        ("/spec/requestRef/uid", json!("u".repeat(65)), "spec.requestRef.uid: Too long"),
        ("/spec/requestRef/name", json!("n".repeat(254)), "spec.requestRef.name: Too long"),
        ("/spec/requestRef/specDigest", json!("0".repeat(63)), "spec.requestRef.specDigest"),
        ("/spec/requestRef/specDigest", json!("X".repeat(64)), "spec.requestRef.specDigest"),
        ("/spec/reason", json!(""), "spec.reason"),
        ("/spec/reason", json!("r".repeat(1025)), "spec.reason: Too long"),
    ];
    for (pointer, value, words) in rows {
        refused(lead.create(&decision("bent").with(pointer, value)).await, words);
    }
}

#[tokio::test]
async fn a_request_may_shorten_the_wait_within_bounds() {
    let world = world().await;
    for (seconds, is_taken) in [(59, false), (60, true), (2_592_000, true), (2_592_001, false)] {
        let object: Object =
            crate::common::request(&format!("wait-{seconds}")).with("/spec/approvalDeadlineSeconds", json!(seconds));
        let answer = world.alice.dry_run().create(&object).await;
        assert_eq!(answer.is_ok(), is_taken, "{seconds}: {answer:?}");
    }
    let asked =
        policy("asks").with("/spec/approval", json!({"count": 1, "approvers": [{"kind": "Group", "name": "leads"}]}));
    world.admin.dry_run().create(&asked).await.unwrap();
}
