//! Kubernetes below 1.36, on a real API server of 1.34: it serves no MutatingAdmissionPolicy of v1, so nothing is filled
//! in, and the same checks hold.

mod common;
#[path = "whole/controller.rs"]
#[allow(dead_code, reason = "the tests of the whole use the rest")]
mod controller;
#[path = "common/counts.rs"]
mod counts;

use instance_access::api::FINALIZER;
use lab::{Lab, Launch, Options, poll};
use serde_json::{Value, json};

use common::{BOUND, Object, Person, Refusal, decision, install, kubectl, policy, request};
use controller::Controller;

/// Who somebody is, as `kubectl auth whoami` tells them to write it down.
async fn whoami(lab: &Lab, user: &str) -> Value {
    let said = kubectl(lab, user, &["auth", "whoami", "-o", "json"]).await.unwrap();
    serde_json::from_str::<Value>(&said).unwrap()["status"]["userInfo"].take()
}

/// Asserts that it was refused, in these words.
#[track_caller]
fn refused(answer: Result<Value, Refusal>, words: &str) {
    match answer {
        Err(refusal) => assert!(refusal.to_string().contains(words), "refused, but not with {words:?}: {refusal}"),
        Ok(object) => panic!("{words:?} did not refuse: {object}"),
    }
}

/// Waits for a reason of Active; returns the request.
async fn becomes(person: &Person, object: &Object, reason: &str) -> Value {
    poll::until(reason, BOUND, async || {
        let now = person.get(object).await.map_err(|refusal| refusal.to_string())?;
        let conditions = now["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let active = conditions.iter().find(|condition| condition["type"] == "Active");
        if active.is_some_and(|active| active["reason"] == reason) { Ok(now) } else { Err(format!("{conditions:?}")) }
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn on_an_older_kubernetes_people_say_who_they_are_cannot_lie_and_get_in() {
    let version = lab::older_kubernetes_version();
    let options = Options { kubernetes_version: Some(version.to_owned()), ..Options::default() };
    let lab = Lab::start(options.instances([Launch::new("web-1").tag("env", "dev")])).await.unwrap();
    let instance_id = lab.instance("web-1").id.clone();
    install(&lab, false).await.unwrap();
    let (alice, erin) =
        (Person::of(&lab, "alice", "default").await.unwrap(), Person::of(&lab, "erin", "default").await.unwrap());
    let admin = Person::of(&lab, "admin", "default").await.unwrap();

    // It is the older one, and has no such policy.
    let server: Value =
        serde_json::from_str(&kubectl(&lab, "admin", &["version", "-o", "json"]).await.unwrap()).unwrap();
    assert_eq!(server["serverVersion"]["gitVersion"], format!("v{version}"));
    let served = kubectl(&lab, "admin", &["api-resources", "--api-group=admissionregistration.k8s.io"]).await.unwrap();
    assert!(
        served.contains("validatingadmissionpolicies") && !served.contains("mutatingadmissionpolicies"),
        "{served}"
    );

    // Nothing is filled in, and nobody is somebody else.
    let object = request("web-1").with("/spec/target", json!({"instanceId": instance_id}));
    refused(alice.create(&object).await, "spec.requester is missing, and this cluster does not fill it in");
    let object = object.with("/spec/requester", whoami(&lab, "alice").await);
    refused(admin.create(&object).await, "spec.requester.username must be your own");
    let groups = object.clone().with("/spec/requester/groups", json!(["developers", "leads", "system:authenticated"]));
    refused(alice.create(&groups).await, "spec.requester.groups must be your own");

    let approval = json!({"count": 1, "approvers": [{"kind": "Group", "name": "leads"}]});
    let rule = policy("developers")
        .with("/spec/subjects", json!([{"kind": "Group", "name": "developers"}]))
        .with("/spec/approval", approval);
    admin.create(&rule).await.unwrap();
    let log = lab.dir().join("controller.log");
    // Ready, though there are no mutating policies.
    let controller = Controller::start(&lab, &lab.dir().join("audit.jsonl"), &log).await.unwrap();

    let stored = alice.create(&object).await.unwrap();
    assert_eq!(stored["metadata"].get("finalizers"), None);
    let pending = becomes(&alice, &object, "PendingApproval").await;
    refused(admin.patch_status(&object, &json!({"status": {"observedGeneration": 7}})).await, "may write status");
    refused(alice.replace(&object.clone().with("/spec/ttlSeconds", json!(900))).await, "is immutable");

    // A decision likewise: by its author alone.
    let yes = decision("yes")
        .with("/spec/requestRef/uid", pending["metadata"]["uid"].clone())
        .with("/spec/requestRef/specDigest", pending["status"]["specDigest"].clone());
    refused(erin.create(&yes).await, "spec.approver is missing, and this cluster does not fill it in");
    let yes = yes.with("/spec/approver", whoami(&lab, "erin").await);
    refused(admin.create(&yes).await, "spec.approver.username must be your own");
    erin.create(&yes).await.unwrap();

    // The operator puts its finalizer on by itself, and delivers the key.
    let granted = becomes(&alice, &object, "Granted").await;
    assert_eq!(granted["metadata"]["finalizers"], json!([FINALIZER]));
    assert_eq!(granted["status"]["approvals"][0]["approver"], "erin");
    assert_eq!(lab.standin().active_keys(&instance_id, "ec2-user").len(), 1);
    let bare = json!({"metadata": {"finalizers": null}});
    refused(alice.patch(&object, &bare).await, "metadata.finalizers must keep instanceaccess.dev/end-grant");

    // A gateway shows its own sessions, and nothing else.
    let gateway = Person::gateway(&lab, "gateway-0", "default").await.unwrap();
    let entry = |name: &str| json!({"gateway": name, "open": 1, "total": 1, "lastStartTime": "2026-03-01T08:00:00Z"});
    let shows = |name: &str| object.clone().without("/spec").with("/status/sessions", json!([entry(name)]));
    refused(gateway.apply_status(&shows("gateway-1"), "gateway").await, "a gateway may write its own entry");
    let more = shows("gateway-0").with("/status/approvers", json!("mallory"));
    refused(gateway.apply_status(&more, "gateway").await, "a gateway may write nothing of status but");
    let shown = gateway.apply_status(&shows("gateway-0"), "gateway").await.unwrap();
    assert_eq!(shown["status"]["sessions"], json!([entry("gateway-0")]));

    // And a no ends it.
    let no = yes.with("/metadata/name", json!("no")).with("/spec/decision", json!("Revoke"));
    erin.create(&no).await.unwrap();
    becomes(&alice, &object, "RevocationPending").await;
    assert_eq!(controller.get("/readyz").await.unwrap().0, 200);
    // It counts as the newer one does.
    counts::counts(admin.client(), false).await;
    controller.kill();
    lab.shutdown().await.unwrap();
}
