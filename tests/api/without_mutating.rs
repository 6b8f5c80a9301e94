//! Below Kubernetes 1.36: nothing is filled in, and the same checks hold.

use instance_access::{admission, api::FINALIZER};
use lab::{Lab, Options};
use serde_json::{Value, json};

use super::world::refused;
use crate::common::{Person, decision, install, kubectl, operator_account, request};

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

    // What the operator sees of its own protection.
    let seen = async || admission::findings(&operator.client(), &operator_account()).await.unwrap();
    assert_eq!(seen().await, [""; 0]);
    let weaker = r#"{"spec": {"validationActions": ["Audit"]}}"#;
    let binding = ["validatingadmissionpolicybinding", "requests.instanceaccess.dev"];
    kubectl(&lab, "admin", &[&["patch"], &binding[..], &["--type=merge", "-p", weaker]].concat()).await.unwrap();
    let name = "ValidatingAdmissionPolicyBinding requests.instanceaccess.dev";
    assert_eq!(seen().await, [format!("{name} is not as it was shipped")]);
    kubectl(&lab, "admin", &[&["delete"], &binding[..]].concat()).await.unwrap();
    assert_eq!(seen().await, [format!("{name} is missing")]);
    lab.shutdown().await.unwrap();
}
