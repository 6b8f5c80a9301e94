//! A request that had its grant, was deleted, and comes back: by hand, by self-heal, from a backup.

use std::fs;

use lab::standin::Api;
use lab::{poll, ssh};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::history::{condition, text};
use crate::request::Request;
use crate::stand::{BOUND, Stand, kinds, policy, shared};

/// The manifest, applied again; returns the new object's uid.
async fn applied_again<'a>(request: &Request<'a>, file: &str) -> Request<'a> {
    let apply = ["apply", "--server-side", "--force-conflicts", "--field-manager=argocd-controller", "-o", "json"];
    let made = request.kubectl(&[&apply[..], &["-f", file]].concat()).await;
    let uid = text(&serde_json::from_str(&made).unwrap(), "/metadata/uid").to_owned();
    assert_ne!(uid, request.uid);
    Request {
        stand: request.stand,
        who: request.who,
        name: request.name.clone(),
        namespace: request.namespace.clone(),
        uid,
        key: request.key.clone(),
        manifest: request.manifest.clone(),
    }
}

/// The entries about requests of a name.
pub async fn entries(stand: &Stand, name: &str) -> Vec<Value> {
    let list = stand.kubectl_ok("admin", &["get", "instanceaccessledgerentries", "-o", "json"]).await;
    let mut list: Value = serde_json::from_str(&list).unwrap();
    let mut items: Vec<Value> = serde_json::from_value(list["items"].take()).unwrap();
    items.retain(|entry| text(entry, "/spec/request/name") == name);
    items
}

/// Granted, deleted and gone; what was saved of it on the way, as a backup tool does: with its status, and without what
/// names this very object.
async fn consumed<'a>(stand: &'a Stand, name: &str) -> (Request<'a>, String) {
    let host = stand.instance(name).await;
    let request = stand.request("alice", name).on(&host).applied().await;
    let mut saved = request.becomes("Granted").await;
    assert!(entries(stand, name).await.is_empty(), "while it is there, its status is the record");
    request.delete().await;
    for field in ["uid", "resourceVersion", "generation", "creationTimestamp", "finalizers"] {
        saved["metadata"].as_object_mut().unwrap().remove(field);
    }
    saved["spec"].as_object_mut().unwrap().remove("requester");
    let backup = stand.lab.dir().join(format!("{name}.backup.json"));
    fs::write(&backup, saved.to_string()).unwrap();
    request.goes().await;
    request.keeps_its_promises().await;
    (request, backup.to_str().unwrap().to_owned())
}

pub async fn a_request_that_comes_back_as_it_was_is_granted_no_second_time_whatever_way_it_came() {
    // Of its own: others take rights away from the operator, without which nothing goes.
    let stand = &Stand::start("ledger").await;
    let (request, backup) = consumed(stand, "consumed").await;
    let (manifest, pushes) = (stand.manifest(&request.manifest), request.pushes().len());
    let grant_id = request.versions().iter().map(|version| text(&version.object, "/status/grant/id").to_owned()).max();

    let entry = entries(stand, "consumed").await.pop().expect("an entry stands when the object is gone");
    assert_eq!(text(&entry, "/spec/request/uid"), request.uid);
    assert_eq!(text(&entry, "/spec/subject/username"), "alice");
    assert_eq!(Some(text(&entry, "/spec/grantId").to_owned()), grant_id);
    // Self-heal.
    let healed = applied_again(&request, &manifest).await;
    let over = healed.ends("Consumed").await;
    let (_, _, message) = condition(&over, "Ended").unwrap();
    let until = text(&entry, "/spec/endTime");
    assert!(message.contains(&format!("granted before, as uid {}, until {until}", request.uid)), "{message}");
    assert!(message.contains("ask by another name, or change the spec"), "{message}");
    // What is over stays as it is, however often it is applied.
    let sync = ["--server-side", "--force-conflicts", "--field-manager=argocd-controller", "-f", &manifest];
    stand.kubectl_ok("alice", &[&["apply"], &sync[..]].concat()).await;
    let diff = stand.kubectl("alice", &[&["diff"], &sync[..]].concat()).await;
    assert_eq!((diff.status, diff.stdout.as_str()), (Some(0), ""), "{diff:?}");
    assert_eq!(healed.newest()["status"], over["status"]);
    healed.delete().await;
    healed.goes().await;

    // A backup, after a kill.
    stand.kill_controller().await;
    stand.start_controller().await;
    let restored = applied_again(&request, &backup).await;
    restored.ends("Consumed").await;
    // And by one who finds it there, and whose list of entries is read beside that of requests.
    stand.kill_controller().await;
    restored.delete().await;
    stand.start_controller().await;
    restored.goes().await;
    stand.kill_controller().await;
    let again = applied_again(&request, &manifest).await;
    stand.start_controller().await;
    again.ends("Consumed").await;
    assert_eq!((request.pushes().len(), entries(stand, "consumed").await.len()), (pushes, 1));
    for request in [healed, restored, again] {
        assert!(request.versions().iter().all(|version| version.object.pointer("/status/grant").is_none()));
        assert_eq!(kinds(&request.records()), [""; 0]);
    }
    an_entry_goes_when_its_time_is_over_and_comes_back_when_somebody_takes_it_away(stand).await;
}

/// Made again as it was, a request that is gone finds its one entry, and is over.
pub async fn comes_back_consumed(request: &Request<'_>) {
    assert_eq!(entries(request.stand, &request.name).await.len(), 1);
    let again = applied_again(request, &request.stand.manifest(&request.manifest)).await;
    again.ends("Consumed").await;
}

pub async fn a_service_account_that_deletes_and_applies_again_and_again_gets_one_grant() {
    let stand = shared().await;
    stand.namespace("healed").await;
    let subject = json!({"subjects": [{"kind": "ServiceAccount", "name": "healed/argocd"}]});
    stand.policy(&policy("healed", "healed", subject)).await;
    let kubeconfig = stand.lab.kubeconfig_for_service_account("healed", "argocd").await.unwrap();
    let (role, who) = ("--clusterrole=instance-access-requester", "--serviceaccount=healed:argocd");
    stand.kubectl_ok("admin", &["-n", "healed", "create", "rolebinding", "argocd", role, who]).await;
    let kubectl = async |arguments: &[&str]| {
        let mut kubectl = tokio::process::Command::new(stand.programs().join("kubectl"));
        kubectl.env("KUBECONFIG", &kubeconfig).args(["-n", "healed"]).args(arguments);
        let done = ssh::run(&mut kubectl).await.unwrap();
        assert!(done.success(), "kubectl {arguments:?}: {}", done.stderr);
        done.stdout
    };
    let host = stand.instance("healed").await;
    let manifest = stand.manifest(&json!({
        "apiVersion": "instanceaccess.dev/v1alpha1",
        "kind": "InstanceAccess",
        "metadata": {"name": "looped", "namespace": "healed"},
        "spec": {
            "target": {"instanceId": host.id},
            "osUser": "ec2-user",
            "sshPublicKey": stand.lab.new_key("looped").await.unwrap().public,
            "reason": "INC-4711: look at the logs",
        },
    }));
    let pushes = || {
        let journal = stand.lab.standin().journal();
        journal.iter().filter(|entry| entry.api == Api::Eic && entry.instance_ids.contains(&host.id)).count()
    };
    let mut first = 0;
    for round in 0..4 {
        assert!(kubectl(&["apply", "--server-side", "-f", &manifest]).await.contains("serverside-applied"));
        let waited = if round == 0 { "condition=Active" } else { "condition=Ended" };
        assert!(kubectl(&["wait", "--for", waited, "--timeout", "150s", "ia/looped"]).await.contains("condition met"));
        let stage = r#"jsonpath={.status.conditions[?(@.type=="Active")].reason}"#;
        let stage = kubectl(&["get", "ia/looped", "-o", stage]).await;
        assert_eq!(stage, if round == 0 { "Granted" } else { "Consumed" }, "round {round}");
        assert!(kubectl(&["delete", "ia/looped", "--wait=false"]).await.contains("deleted"));
        poll::until("the object to go", BOUND + BOUND, || async {
            let left = kubectl(&["get", "ia/looped", "--ignore-not-found", "-o", "name"]).await;
            if left.is_empty() { Ok(()) } else { Err(left) }
        })
        .await
        .unwrap();
        if round == 0 {
            first = pushes();
        }
    }
    assert_eq!((pushes(), entries(stand, "looped").await.len()), (first, 1));
}

/// An entry, kept until then, as the operator writes it.
fn entry(name: &str, keep_until: &str) -> Value {
    let digest = "0".repeat(64);
    let key = Sha256::digest(format!("team/{name}/{digest}"));
    let key: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    json!({
        "apiVersion": "instanceaccess.dev/v1alpha1",
        "kind": "InstanceAccessLedgerEntry",
        "metadata": {"name": key},
        "spec": {
            "request": {"namespace": "team", "name": name, "uid": "5a3f6a0e-5f0f-4b43-9c1a-0d4f3ad1c001", "specDigest": digest},
            "grantId": "g-da0a142574368aceb40ae198baca56c4",
            "subject": {"username": "alice"},
            "startTime": "2020-03-01T08:00:00Z",
            "expirationTime": "2020-03-01T09:00:00Z",
            "endTime": "2020-03-01T08:30:00Z",
            "keepUntilTime": keep_until,
        },
    })
}

/// On a stand that is of no use afterwards.
async fn an_entry_goes_when_its_time_is_over_and_comes_back_when_somebody_takes_it_away(stand: &Stand) {
    stand.kill_controller().await;
    let operator = stand.lab.kubeconfig_for_service_account("instance-access", "operator").await.unwrap();
    for (name, keep_until) in [("past", "2021-04-05T08:30:00Z"), ("kept", "9998-04-05T08:30:00Z")] {
        let mut kubectl = tokio::process::Command::new(stand.programs().join("kubectl"));
        let file = stand.manifest(&entry(name, keep_until));
        let created = ssh::run(kubectl.env("KUBECONFIG", &operator).args(["create", "-f", &file])).await.unwrap();
        assert!(created.success(), "{created:?}");
    }
    stand.start_controller().await;
    let until = async |what: &str, name: &str, is: &dyn Fn(&[Value]) -> bool| {
        let seen = poll::until(what, BOUND, || async {
            let entries = entries(stand, name).await;
            if is(&entries) { Ok(entries) } else { Err(format!("{entries:?}")) }
        });
        seen.await.unwrap()
    };
    until("the entry of the past to go", "past", &|entries| entries.is_empty()).await;
    let kept = until("the other to stay", "kept", &|entries| entries.len() == 1).await;
    // Nobody may take it away, so an attacker takes away what says so.
    let name = text(&kept[0], "/metadata/name");
    let delete = ["delete", "instanceaccessledgerentry", name];
    let refused = stand.kubectl("admin", &delete).await;
    assert!(refused.stderr.contains("may write the ledger"), "{refused:?}");
    let binding = ["delete", "validatingadmissionpolicybinding", "ledger.instanceaccess.dev"];
    stand.kubectl_ok("admin", &binding).await;
    poll::until("the entry to be deleted", BOUND, || async {
        let done = stand.kubectl("admin", &delete).await;
        if done.success() { Ok(()) } else { Err(done.stderr) }
    })
    .await
    .unwrap();
    let uid = |entries: &[Value]| entries.first().map(|entry| text(entry, "/metadata/uid").to_owned());
    let before = uid(&kept);
    let back = until("the entry to come back", "kept", &|entries| entries.len() == 1 && uid(entries) != before).await;
    assert_eq!(back[0]["spec"], kept[0]["spec"]);
    let (status, body) = stand.readiness().await;
    assert!(status == 503 && body.contains("ledger.instanceaccess.dev is missing"), "{status}: {body}");
}
