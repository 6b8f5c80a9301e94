//! What becomes of a grant when its instance changes under it.

use std::collections::BTreeMap;
use std::time::Duration;

use lab::Launch;
use serde_json::json;

use crate::history::{conditions, stage, text};
use crate::stand::{policy, shared};

/// An instance is looked at every minute; on a busy machine it takes a little longer.
const NOTICED: Duration = Duration::from_secs(120);

pub async fn a_stopped_instance_is_told_and_served_again_once_it_runs() {
    let stand = shared().await;
    let host = stand.instance("naps").await;
    let request = stand.request("alice", "naps").on(&host).with(json!({"ttlSeconds": 600})).applied().await;
    request.becomes("Granted").await;
    stand.lab.stop_instance("naps").await.unwrap();
    let told = request.until("tells of the stop", NOTICED, |object| stage(object) == "InstanceNotRunning").await;
    assert_eq!(
        conditions(&told),
        "Approved=True AdmittedByPolicy, Active=False InstanceNotRunning, Reconciling=True InstanceNotRunning"
    );
    let before = request.pushes().iter().filter(|push| push.outcome.took_effect()).count();
    stand.lab.start_instance("naps").await.unwrap();
    request.until("is granted again", NOTICED, |object| stage(object) == "Granted").await;
    request.is_pushed(before + 1, NOTICED).await;
    request.gets_in().await;
    request.revoke("done").await;
    request.ends("Revoked").await;
    request.keeps_its_promises().await;
}

pub async fn a_terminated_instance_stalls_the_grant_until_it_ends() {
    let stand = shared().await;
    let host = stand.instance("dies").await;
    let request = stand.request("alice", "dies").on(&host).with(json!({"ttlSeconds": 180})).applied().await;
    request.becomes("Granted").await;
    stand.lab.terminate_instance("dies").await.unwrap();
    let told = request.until("tells of the end", NOTICED, |object| stage(object) == "InstanceTerminated").await;
    assert_eq!(
        conditions(&told),
        "Approved=True AdmittedByPolicy, Active=False InstanceTerminated, Stalled=True InstanceTerminated"
    );
    let ended = request.ends("Expired").await;
    assert_eq!(conditions(&ended), "Approved=True AdmittedByPolicy, Active=False Expired, Ended=True Expired");
    request.keeps_its_promises().await;
}

pub async fn a_retagged_instance_that_the_policy_no_longer_covers_is_closed() {
    let stand = shared().await;
    let host = stand.instance("moves").await;
    let request = stand.request("alice", "moves").on(&host).with(json!({"ttlSeconds": 600})).applied().await;
    request.becomes("Granted").await;
    stand.lab.retag_instance("moves", BTreeMap::from([("env".to_owned(), "prod".to_owned())]));
    request.until("is taken back", NOTICED, |object| stage(object) == "RevocationPending").await;
    let ended = request.ends("Revoked").await;
    assert_eq!(text(&ended, "/status/revocation/cause"), "PolicyChanged");
    request.is_locked_out().await;
    request.keeps_its_promises().await;
}

pub async fn a_request_for_a_stopped_instance_waits_for_it() {
    let stand = shared().await;
    stand.lab.launch_instance(Launch::new("wakes").tag("env", "dev").stopped()).await.unwrap();
    let request = stand.request("alice", "wakes").on(&stand.lab.instance("wakes")).applied().await;
    let waiting = request.becomes("InstanceNotRunning").await;
    assert_eq!(conditions(&waiting), "Active=False InstanceNotRunning, Reconciling=True InstanceNotRunning");
    stand.lab.start_instance("wakes").await.unwrap();
    request.becomes("Granted").await;
    request.gets_in().await;
    request.ends("Expired").await;
    request.keeps_its_promises().await;
}

pub async fn tags_that_match_one_instance_lead_to_it() {
    let stand = shared().await;
    let host = stand.lab.launch_instance(Launch::new("tagged").tag("env", "dev").tag("role", "only")).await.unwrap();
    let request = stand.request("bob", "tagged").with(json!({"target": {"tags": {"role": "only"}}})).applied().await;
    let granted = request.becomes("Granted").await;
    assert_eq!(text(&granted, "/status/instance/instanceId"), host.id);
    request.gets_in().await;
    request.delete().await;
    request.goes().await;
    request.keeps_its_promises().await;
}

pub async fn a_node_leads_to_its_instance_and_its_end_ends_the_grant() {
    let stand = shared().await;
    let host = stand.lab.launch_instance(Launch::new("node-1").tag("env", "dev")).await.unwrap();
    stand.namespace("nodes").await;
    let targets =
        json!({"targets": {"nodeLabels": {"matchLabels": {"node-restriction.kubernetes.io/pool": "workers"}}}});
    stand.policy(&policy("nodes", "nodes", targets)).await;
    let node = |name: &str, pool: &str, provider_id: &str| {
        json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "namespace": "", "labels": {"node-restriction.kubernetes.io/pool": pool}},
            "spec": {"providerID": provider_id},
        })
    };
    let provider_id = format!("aws:///us-west-2a/{}", host.id);
    let ask = |name: &str, node: &str| {
        stand.request("alice", name).within("nodes").with(json!({"target": {"nodeName": node}, "ttlSeconds": 600}))
    };
    // Asked for before the node is there.
    let request = ask("early", "node-1").applied().await;
    let waiting = request.becomes("TargetNotFound").await;
    assert_eq!(conditions(&waiting), "Active=False TargetNotFound, Reconciling=True TargetNotFound");
    stand.apply(&node("node-1", "workers", &provider_id)).await;
    let granted = request.becomes("Granted").await;
    assert_eq!(text(&granted, "/status/instance/instanceId"), host.id);
    request.gets_in().await;
    // By its labels, and by nothing else.
    stand.apply(&node("node-2", "others", &provider_id)).await;
    stand.apply(&node("node-3", "workers", "kind://docker/kind/node-3")).await;
    let message = ask("other-pool", "node-2").applied().await.is_denied("DeniedByPolicy").await;
    assert!(message.contains("with the labels node-restriction.kubernetes.io/pool=workers"), "{message}");
    let by_id = stand.request("alice", "by-id").within("nodes").on(&host).applied().await;
    let message = by_id.is_denied("DeniedByPolicy").await;
    assert!(message.contains("by spec.target.nodeName"), "{message}");
    stand.kubectl_ok("admin", &["delete", "node", "node-1"]).await;
    let ended = request.ends("Revoked").await;
    assert_eq!(text(&ended, "/status/revocation/cause"), "PolicyChanged");
    request.is_locked_out().await;
    request.keeps_its_promises().await;
}
