//! What the operator's belief over an upgrade rests on: an API server counts every change of the spec of what guards
//! requests in `metadata.generation`, by one, and counts nothing else, and nobody can set it.

use futures::future::join_all;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, Client};
use lab::poll;
use serde_json::{Value, json};

use crate::common::BOUND;

/// An object of each kind, which guards nothing, and two patches that change its spec: there, and back.
fn objects(mutating: bool) -> Vec<(Value, Value, Value)> {
    let name = "things.count.instanceaccess.dev";
    let matches = |operation: &str| {
        json!({"resourceRules": [{
            "apiGroups": ["count.instanceaccess.dev"], "apiVersions": ["*"], "operations": [operation], "resources": ["things"],
        }]})
    };
    let object = |group: &str, kind: &str, spec: Value| json!({"apiVersion": format!("{group}/v1"), "kind": kind, "metadata": {"name": name}, "spec": spec});
    let admission = |kind: &str, spec: Value| object("admissionregistration.k8s.io", kind, spec);
    let to_ignore = json!({"spec": {"failurePolicy": "Ignore"}});
    let to_fail = json!({"spec": {"failurePolicy": "Fail"}});
    let bound = |to: &str| json!({"spec": {"policyName": to}});
    let validations = json!([{"expression": "true"}]);
    let mutations =
        json!([{"patchType": "JSONPatch", "jsonPatch": {"expression": "[JSONPatch{op: 'remove', path: '/spec'}]"}}]);
    let validating =
        json!({"failurePolicy": "Fail", "matchConstraints": matches("CREATE"), "validations": validations});
    let mutation = json!({
        "failurePolicy": "Fail", "reinvocationPolicy": "IfNeeded", "matchConstraints": matches("CREATE"), "mutations": mutations,
    });
    let schema = json!({"openAPIV3Schema": {"type": "object", "description": "One thing"}});
    let other_schema = json!({"openAPIV3Schema": {"type": "object", "description": "Another thing"}});
    let versions = |schema: &Value| json!([{"name": "v1", "served": true, "storage": true, "schema": schema, "subresources": {"status": {}}}]);
    let crd = json!({
        "group": "count.instanceaccess.dev",
        "scope": "Cluster",
        "names": {"kind": "Thing", "plural": "things", "singular": "thing", "listKind": "ThingList"},
        "versions": versions(&schema),
    });
    let mut objects = vec![
        (admission("ValidatingAdmissionPolicy", validating), to_ignore.clone(), to_fail.clone()),
        (
            admission("ValidatingAdmissionPolicyBinding", json!({"policyName": name, "validationActions": ["Deny"]})),
            bound("another"),
            bound(name),
        ),
        (
            object("apiextensions.k8s.io", "CustomResourceDefinition", crd),
            json!({"spec": {"versions": versions(&other_schema)}}),
            json!({"spec": {"versions": versions(&schema)}}),
        ),
    ];
    if mutating {
        objects.push((admission("MutatingAdmissionPolicy", mutation), to_ignore, to_fail));
        objects.push((
            admission("MutatingAdmissionPolicyBinding", json!({"policyName": name})),
            bound("another"),
            bound(name),
        ));
    }
    objects
}

/// Asserts it of every kind.
pub async fn counts(admin: Client, mutating: bool) {
    join_all(objects(mutating).into_iter().map(|(object, there, back)| counts_one(&admin, object, there, back))).await;
}

async fn counts_one(admin: &Client, object: Value, there: Value, back: Value) {
    let kind = object["kind"].as_str().unwrap().to_owned();
    let (group, version) = object["apiVersion"].as_str().unwrap().split_once('/').unwrap();
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &kind));
    let api = Api::<DynamicObject>::all_with(admin.clone(), &resource);
    let object: DynamicObject = serde_json::from_value(object).unwrap();
    let name = object.metadata.name.clone().unwrap();
    let merge = async |patch: &Value| {
        let patched = api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await;
        counted(&patched.unwrap_or_else(|error| panic!("{kind}: {patch}: {error}")))
    };

    let made = counted(&api.create(&PostParams::default(), &object).await.unwrap());
    assert_eq!(made.1, 1, "{kind}");
    let (uid, count) = (made.0.clone(), |generation: i64| (made.0.clone(), generation));
    let apply = PatchParams::apply("counts").force();
    let applied = async || counted(&api.patch(&name, &apply, &Patch::Apply(&object)).await.unwrap());
    // Whatever does not change the spec is not counted, nor can anybody set the count back or on.
    assert_eq!(applied().await, count(1), "{kind}: applied as it was");
    assert_eq!(
        merge(&json!({"metadata": {"labels": {"a": "b"}, "annotations": {"c": "d"}}})).await,
        count(1),
        "{kind}"
    );
    assert_eq!(merge(&json!({"metadata": {"generation": 7}})).await, count(1), "{kind}: set on");
    if !kind.ends_with("Binding") && !kind.starts_with("Mutating") {
        let status = json!({"metadata": {"generation": 9}, "status": {"conditions": []}});
        let patched = api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
        assert_eq!(counted(&patched), count(1), "{kind}: status");
    }
    // Each change of the spec is, whichever way it is written, and back again is one more.
    assert_eq!(merge(&there).await, count(2), "{kind}");
    let mut set_back = back.clone();
    set_back["metadata"] = json!({"generation": 1});
    assert_eq!(merge(&set_back).await, count(3), "{kind}: set back");
    assert_eq!(merge(&there).await, count(4), "{kind}");
    assert_eq!(applied().await, count(5), "{kind}: applied");
    assert_eq!(applied().await, count(5), "{kind}: applied twice");
    // Deleted and made again it is another one, also if it asks to be the old one.
    api.delete(&name, &DeleteParams::default()).await.unwrap();
    poll::until("it to go", BOUND, async || match api.get_opt(&name).await {
        Ok(None) => Ok(()),
        other => Err(format!("{kind}: {other:?}")),
    })
    .await
    .unwrap();
    let mut again = object;
    (again.metadata.uid, again.metadata.generation) = (Some(uid.clone()), Some(5));
    let made = counted(&api.create(&PostParams::default(), &again).await.unwrap());
    assert!(made.0 != uid && made.1 == 1, "{kind}: {made:?}, once {uid}");
    api.delete(&name, &DeleteParams::default()).await.unwrap();
}

fn counted(object: &DynamicObject) -> (String, i64) {
    (object.metadata.uid.clone().unwrap(), object.metadata.generation.unwrap())
}
