use k8s_openapi::apimachinery::pkg::apis::meta::v1::{FieldsV1, ManagedFieldsEntry, Time};

use super::*;
use crate::admission::ServiceAccount;

fn writers() -> Writers {
    of("access/broker", &["access/gateway"])
}

fn of(operator: &str, gateways: &[&str]) -> Writers {
    let account = |text: &&str| text.parse::<ServiceAccount>().unwrap();
    Writers::new(account(&operator), gateways.iter().map(account).collect())
}

fn time(second: i64) -> Time {
    Time(Timestamp::from_second(second).unwrap())
}

/// The objects as an API server has them.
fn live(piece: &Piece) -> DynamicObject {
    let mut live = piece.ours.clone();
    live.metadata.uid = Some("1".to_owned());
    live.metadata.generation = Some(1);
    live.metadata.creation_timestamp = Some(time(100));
    live.metadata.managed_fields = Some(vec![entry(100, "f:spec", None)]);
    live
}

fn entry(second: i64, field: &str, subresource: Option<&str>) -> ManagedFieldsEntry {
    ManagedFieldsEntry {
        fields_v1: Some(FieldsV1(json!({field: {}}))),
        subresource: subresource.map(str::to_owned),
        time: Some(time(second)),
        ..ManagedFieldsEntry::default()
    }
}

fn of_kind(kind: &str) -> Vec<Piece> {
    let pieces: Vec<_> = pieces(&writers()).into_iter().filter(|piece| piece.kind == kind).collect();
    assert!(!pieces.is_empty(), "no {kind}");
    pieces
}

#[track_caller]
fn bent(kind: &str, bend: impl Fn(&mut DynamicObject)) {
    for piece in of_kind(kind) {
        let mut object = live(&piece);
        bend(&mut object);
        assert_ne!(object, live(&piece), "{} has no such field", piece.title());
        assert_eq!(piece.compare(Some(&object)), Standing::Bent("is not as it was shipped"), "{}", piece.title());
    }
}

#[track_caller]
fn sound(kind: &str, bend: impl Fn(&mut DynamicObject)) {
    for piece in of_kind(kind) {
        let mut object = live(&piece);
        bend(&mut object);
        let standing = piece.compare(Some(&object));
        assert!(matches!(standing, Standing::Sound { .. }), "{}: {standing:?}", piece.title());
    }
}

const KINDS: [&str; 5] = [
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
    "MutatingAdmissionPolicy",
    "MutatingAdmissionPolicyBinding",
    "CustomResourceDefinition",
];
const CRD: &str = "CustomResourceDefinition";

#[test]
fn all_that_is_shipped_is_looked_for_and_only_what_fills_in_may_be_absent() {
    for kind in KINDS {
        for piece in of_kind(kind) {
            assert_eq!(piece.compare(None), Standing::Absent { needed: !kind.starts_with("Mutating") });
        }
    }
    let yaml = format!(
        "{}---\n{}",
        super::super::yaml(&writers(), true),
        api::crds_yaml().iter().map(|(_, yaml)| format!("---\n{yaml}")).collect::<String>()
    );
    assert_eq!(pieces(&writers()).len(), yaml.matches("\nkind: ").count(), "{yaml}");
}

#[test]
fn it_stands_whatever_the_api_server_adds() {
    for kind in KINDS {
        sound(kind, |_| {});
        sound(kind, |live| live.metadata.labels = Some([("a".to_owned(), "b".to_owned())].into()));
        sound(kind, |live| live.data["status"] = json!({"observedGeneration": 1}));
    }
    sound(CRD, |live| live.data["spec"]["conversion"] = json!({"strategy": "None"}));
    sound(CRD, |live| live.data["spec"]["names"]["listKind"] = json!("Things"));
    sound(CRD, |live| live.data["spec"]["versions"][0]["additionalPrinterColumns"] = json!([]));
    sound(CRD, |live| {
        live.data["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["description"] = json!("other words");
    });
}

#[test]
fn what_is_being_deleted_does_not_stand() {
    for kind in KINDS {
        for piece in of_kind(kind) {
            let mut object = live(&piece);
            object.metadata.deletion_timestamp = Some(time(100));
            assert_eq!(piece.compare(Some(&object)), Standing::Bent("is being deleted"));
        }
    }
}

#[test]
fn a_policy_that_was_bent_does_not_stand() {
    for kind in ["ValidatingAdmissionPolicy", "MutatingAdmissionPolicy"] {
        bent(kind, |live| live.data["spec"]["failurePolicy"] = json!("Ignore"));
        bent(kind, |live| live.data["spec"]["matchConditions"] = json!([{"name": "never", "expression": "false"}]));
        bent(kind, |live| live.data["spec"]["matchConstraints"]["resourceRules"][0]["operations"] = json!(["DELETE"]));
        bent(kind, |live| {
            live.data["spec"]["matchConstraints"]["excludeResourceRules"] = json!([{"resources": ["*"]}])
        });
        bent(kind, |live| {
            live.data["spec"]["matchConstraints"]["namespaceSelector"] = json!({"matchLabels": {"a": "b"}});
        });
        bent(kind, |live| live.data["spec"]["aFieldOfALaterKubernetes"] = json!(true));
    }
    bent("ValidatingAdmissionPolicy", |live| live.data["spec"]["validations"][0]["expression"] = json!("true"));
    bent("MutatingAdmissionPolicy", |live| {
        live.data["spec"]["mutations"][0]["jsonPatch"]["expression"] = json!("[]");
    });
    for kind in ["ValidatingAdmissionPolicyBinding", "MutatingAdmissionPolicyBinding"] {
        bent(kind, |live| live.data["spec"]["policyName"] = json!("another"));
        bent(kind, |live| live.data["spec"]["paramRef"] = json!({"name": "a"}));
        bent(kind, |live| live.data["spec"]["matchResources"] = json!({"objectSelector": {}}));
    }
    for actions in [json!([]), json!(["Audit"]), json!(["Warn"]), json!(["Deny", "Audit"])] {
        bent("ValidatingAdmissionPolicyBinding", |live| live.data["spec"]["validationActions"] = actions.clone());
    }
}

#[test]
fn a_crd_that_was_bent_does_not_stand() {
    let version = |live: &mut DynamicObject| live.data["spec"]["versions"][0].clone();
    let schema = "/spec/versions/0/schema/openAPIV3Schema/properties/spec";
    bent(CRD, |live| {
        let mut more = version(live);
        more["name"] = json!("v1beta1");
        more["storage"] = json!(false);
        live.data["spec"]["versions"].as_array_mut().unwrap().push(more);
    });
    bent(CRD, |live| live.data["spec"]["versions"][0]["subresources"] = json!({}));
    bent(CRD, |live| live.data["spec"]["versions"][0]["served"] = json!(false));
    bent(CRD, |live| live.data["spec"]["conversion"] = json!({"strategy": "Webhook", "webhook": {}}));
    bent(CRD, |live| live.data["spec"]["preserveUnknownFields"] = json!(true));
    bent(CRD, |live| live.data["spec"]["scope"] = json!("Galaxy"));
    bent(CRD, |live| live.data["spec"]["versions"][0]["schema"] = json!({"openAPIV3Schema": {"type": "object"}}));
    bent(CRD, |live| live.data.pointer_mut(schema).unwrap()["x-kubernetes-preserve-unknown-fields"] = json!(true));
    bent(CRD, |live| live.data.pointer_mut(schema).unwrap()["x-kubernetes-validations"] = json!([]));
    bent(CRD, |live| live.data.pointer_mut(schema).unwrap()["required"] = json!([]));
    bent(CRD, |live| live.data.pointer_mut(schema).unwrap()["properties"]["more"] = json!({"type": "string"}));
}

#[test]
fn what_is_made_for_another_operator_does_not_stand() {
    let other = pieces(&of("access/other", &["access/gateway"]));
    let ours = pieces(&writers());
    let standings = ours.iter().zip(&other).map(|(ours, other)| (ours.kind.as_str(), ours.compare(Some(&live(other)))));
    let bent: Vec<_> = standings.filter(|(_, standing)| matches!(standing, Standing::Bent(_))).collect();
    assert!(bent.iter().all(|(kind, _)| kind.ends_with("AdmissionPolicy")), "a binding or CRD names it: {bent:?}");
    assert!(bent.len() >= 3, "{bent:?}");
    // One gateway more, or none: the one policy that lets it in.
    for gateways in [&["access/gateway", "mallory/gateway"][..], &["access/gateway-2"], &[]] {
        let other = pieces(&of("access/broker", gateways));
        let bent = ours
            .iter()
            .zip(&other)
            .filter(|(ours, other)| matches!(ours.compare(Some(&live(other))), Standing::Bent(_)));
        let names: Vec<String> = bent.map(|(ours, _)| ours.title()).collect();
        assert_eq!(names, ["ValidatingAdmissionPolicy status.instanceaccess.dev"], "{gateways:?}");
    }
}

#[test]
fn when_it_was_changed_is_told_by_the_entries_that_own_its_spec() {
    let piece = &of_kind(CRD)[0];
    let changed = |entries: Vec<ManagedFieldsEntry>| {
        let mut object = live(piece);
        object.metadata.managed_fields = Some(entries);
        match piece.compare(Some(&object)) {
            Standing::Sound { changed_time, .. } => changed_time.map(Timestamp::as_second),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(changed(vec![entry(100, "f:spec", None)]), Some(100));
    assert_eq!(changed(vec![entry(100, "f:spec", None), entry(300, "f:spec", Some(""))]), Some(300));
    assert_eq!(changed(vec![entry(50, "f:spec", None)]), Some(100), "not before it was made");
    assert_eq!(changed(vec![entry(100, "f:spec", None), entry(900, "f:status", Some("status"))]), Some(100));
    assert_eq!(changed(vec![entry(100, "f:spec", None), entry(900, "f:metadata", None)]), Some(100));
    // Somebody took the account away, or wrote it himself.
    assert_eq!(changed(vec![]), None);
    assert_eq!(changed(vec![entry(100, "f:metadata", None)]), None);
    let timeless = ManagedFieldsEntry { time: None, ..entry(0, "f:spec", None) };
    assert_eq!(changed(vec![entry(100, "f:spec", None), timeless]), None);
}
