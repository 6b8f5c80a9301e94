//! Below Kubernetes 1.36: nothing is filled in, and the same checks hold.

use instance_access::{
    admission::{self, Standing},
    api::FINALIZER,
};
use lab::{Lab, Options};
use serde_json::{Value, json};

use super::world::{refused, standings};
use crate::common::{Person, decision, install, kubectl, kubectl_with, operator_account, request, writers};

#[tokio::test]
async fn where_nothing_is_filled_in_the_client_says_who_it_is_and_cannot_lie() {
    let lab = Lab::start(Options::control_plane_only()).await.unwrap();
    install(&lab, false).await.unwrap();
    let alice = Person::of(&lab, "alice", "default").await.unwrap();
    let admin = Person::of(&lab, "admin", "default").await.unwrap();
    let operator = Person::service_account(&lab, &operator_account(), "default").await.unwrap();

    let object = request("said");
    let refusal =
        refused(alice.create(&object).await, "spec.requester is missing, and this cluster does not fill it in");
    assert!(refusal.to_string().contains("kubectl auth whoami -o yaml"), "{refusal}");

    // What the message tells to do.
    let who = kubectl(&lab, "alice", &["auth", "whoami", "-o", "json"]).await.unwrap();
    let who: Value = serde_json::from_str(&who).unwrap();
    let said = object.clone().with("/spec/requester", who["status"]["userInfo"].clone());
    refused(admin.create(&said).await, "spec.requester.username must be your own, admin");
    let mut more = who["status"]["userInfo"].clone();
    more["groups"].as_array_mut().unwrap().push(json!("leads"));
    refused(
        alice.create(&request("more").with("/spec/requester", more)).await,
        "spec.requester.groups must be your own",
    );
    let stored = alice.create(&said).await.unwrap();
    assert_eq!(stored["spec"]["requester"]["username"], "alice");
    assert_eq!(stored["metadata"].get("finalizers"), None);

    // What is left out is not kept, so it is refused.
    refused(alice.replace(&object).await, "spec.requester: Forbidden: is immutable");
    let revoked = said.clone().with("/spec/revoke", json!({"reason": "lost"}));
    alice.replace(&revoked).await.unwrap();
    refused(alice.replace(&said).await, "spec.revoke: Forbidden: cannot be taken back");

    // A decision likewise.
    let yes = decision("said");
    refused(alice.create(&yes).await, "spec.approver is missing, and this cluster does not fill it in");
    let said = yes.with("/spec/approver", who["status"]["userInfo"].clone());
    refused(admin.create(&said).await, "spec.approver.username must be your own, admin");
    assert_eq!(alice.create(&said).await.unwrap()["spec"]["approver"]["username"], "alice");

    // The operator puts its finalizer on itself; from then on it stays.
    operator.patch(&object, &json!({"metadata": {"finalizers": [FINALIZER]}})).await.unwrap();
    let words = "metadata.finalizers must keep instanceaccess.dev/end-grant";
    refused(alice.patch(&object, &json!({"metadata": {"finalizers": null}})).await, words);
    refused(admin.patch_status(&object, &json!({"status": {"observedGeneration": 1}})).await, "may write status");
    operator.patch(&object, &json!({"metadata": {"finalizers": null}})).await.unwrap();

    what_the_operator_sees_of_its_own_protection(&lab, &operator).await;
    lab.shutdown().await.unwrap();
}

/// A change of each piece that leaves it as weak as it was, or weaker.
fn changes() -> [(&'static str, Value); 5] {
    let other = json!({"matchConstraints": {"namespaceSelector": {"matchLabels": {"guarded": "true"}}}});
    [
        ("ValidatingAdmissionPolicy", json!({"spec": other})),
        ("ValidatingAdmissionPolicyBinding", json!({"spec": {"validationActions": ["Audit"]}})),
        ("MutatingAdmissionPolicy", json!({"spec": {"failurePolicy": "Ignore"}})),
        ("MutatingAdmissionPolicyBinding", json!({"spec": {"matchResources": {"namespaceSelector": {}}}})),
        ("CustomResourceDefinition", json!({"spec": {"preserveUnknownFields": false, "names": {"shortNames": ["x"]}}})),
    ]
}

/// With its own rights, as they are shipped.
async fn what_the_operator_sees_of_its_own_protection(lab: &Lab, operator: &Person) {
    let seen = async || standings(operator).await;
    let apply = async |yaml: &str| {
        kubectl_with(lab, "admin", &["apply", "--server-side", "--force-conflicts", "-f", "-"], yaml).await.unwrap();
    };
    let absent = Standing::Absent { needed: false };
    let without = seen().await;
    for (title, standing) in &without {
        let (expected, sound) = (title.starts_with("Mutating"), matches!(standing, Standing::Sound { .. }));
        assert_eq!((expected, !expected), (*standing == absent, sound), "{title}: {standing:?}");
    }
    let all = admission::yaml(&writers(), true);
    apply(&all).await;
    let before = seen().await;
    for ((title, was), (_, standing)) in without.iter().zip(&before) {
        let Standing::Sound { changed_time, .. } = standing else { panic!("{title}: {standing:?}") };
        // By its own account, which applying it once more unchanged leaves alone.
        assert!(changed_time.is_some() && (*was == absent || was == standing), "{title}: {was:?}, {standing:?}");
    }
    for (kind, change) in changes() {
        let of_kind = before.iter().enumerate().filter(|(_, (title, _))| title.split(' ').next() == Some(kind));
        for (index, (title, was)) in of_kind {
            let (kind, name) = title.split_once(' ').unwrap();
            let kubectl = async |args: &[&str]| kubectl(lab, "admin", args).await.unwrap();
            let patch = async |patch: &str| kubectl(&["patch", kind, name, "--type=merge", "-p", patch]).await;
            let now = async || seen().await.swap_remove(index).1;
            let versions = |standing: &Standing| match standing {
                Standing::Sound { uid, generation, .. } => (uid.clone(), *generation),
                other => panic!("{title}: {other:?}"),
            };

            // What is no part of the spec is no change, and a change that was undone is one all the same.
            patch(r#"{"metadata": {"labels": {"a": "b"}}}"#).await;
            assert_eq!(versions(&now().await), versions(was), "{title}");
            patch(&change.to_string()).await;
            if kind == "CustomResourceDefinition" {
                assert!(versions(&now().await).1 > versions(was).1, "{title}");
            } else {
                assert_eq!(now().await, Standing::Bent("is not as it was shipped"), "{title}");
                apply(&all).await;
                // An apply leaves what it never owned; the runbook tells to delete it first.
                if now().await == Standing::Bent("is not as it was shipped") {
                    kubectl(&["delete", kind, name]).await;
                    assert!(matches!(now().await, Standing::Absent { .. }), "{title}");
                    apply(&all).await;
                }
            }
            assert_ne!(versions(&now().await), versions(was), "{title}");

            // Who takes the account of changes away is seen to have done so.
            patch(r#"{"metadata": {"managedFields": [{}]}}"#).await;
            assert!(matches!(now().await, Standing::Sound { changed_time: None, .. }), "{title}: {:?}", now().await);
        }
    }
    // Of others it may not even know that they are there.
    for (resource, name) in [("validatingadmissionpolicies", "another"), ("customresourcedefinitions", "another")] {
        for verb in ["get", "list", "watch"] {
            let subject = format!("--as={}", operator_account().username());
            let can = kubectl(lab, "admin", &["auth", "can-i", verb, &format!("{resource}/{name}"), &subject]).await;
            assert!(can.is_err(), "{verb} {resource}/{name}: {can:?}");
        }
    }
}
