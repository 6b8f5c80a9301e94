//! What is refused, where, and in which words.

use serde_json::{Value, json};

use crate::history::{condition, conditions};
use crate::stand::shared;

pub async fn a_refusal_names_what_was_wrong_and_what_would_be_right() {
    let stand = shared().await;
    let vault = stand.lab.instance("vault-1").id;
    let rows: &[(&str, &'static str, Value, &str, &[&str])] = &[
        ("stranger", "mallory", json!({}), "DeniedByPolicy", &["mallory", "no policy is for this requester"]),
        ("too-long", "alice", json!({"ttlSeconds": 7200}), "DeniedByPolicy", &["3600"]),
        ("root", "alice", json!({"osUser": "root"}), "DeniedByPolicy", &["osUser", "ec2-user"]),
        ("prod", "alice", json!({"target": {"instanceId": vault}}), "DeniedByPolicy", &["env"]),
        ("no-reason", "alice", json!({"reason": null}), "DeniedByPolicy", &["reason"]),
        ("no-such-policy", "alice", json!({"policyName": "nowhere"}), "DeniedByPolicy", &["nowhere"]),
        ("for-bob", "alice", json!({"subject": {"username": "bob"}}), "InvalidSpec", &["alice may not ask for bob"]),
    ];
    for (name, who, more, reason, words) in rows {
        let request = stand.request(who, name).with(more.clone()).applied().await;
        let message = request.is_denied(reason).await;
        for word in *words {
            assert!(message.contains(word), "{name}: {message:?} lacks {word:?}");
        }
        assert_eq!(
            conditions(&request.newest()),
            format!("Denied=True {reason}, Active=False Denied, Ended=True Denied, Stalled=True Denied"),
            "{name}"
        );
        let told = request.records();
        assert_eq!(told.len(), 1, "{name}: {told:?}");
        request.keeps_its_promises().await;
    }
}

pub async fn a_target_that_is_not_there_is_waited_for_and_a_wrong_one_stalls() {
    let stand = shared().await;
    let web = stand.lab.instance("web-1").id;
    let rows = [
        ("unknown", json!({"instanceId": "i-0fffffffffffffff0"}), "TargetNotFound", "Reconciling"),
        ("no-match", json!({"tags": {"role": "nobody's"}}), "TargetNotFound", "Reconciling"),
        ("two-match", json!({"tags": {"env": "dev"}}), "TargetAmbiguous", "Stalled"),
        ("elsewhere", json!({"instanceId": web, "accountId": "210987654321"}), "TargetNotFound", "Stalled"),
    ];
    for (name, target, reason, how) in rows {
        let request = stand.request("alice", name).with(json!({"target": target})).applied().await;
        let waiting = request.becomes(reason).await;
        assert_eq!(conditions(&waiting), format!("Active=False {reason}, {how}=True {reason}"), "{name}");
        request.delete().await;
        request.goes().await;
        assert!(request.pushes().is_empty());
    }
}

pub async fn what_can_be_seen_at_the_door_is_refused_there() {
    let stand = shared().await;
    let rsa = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAQQDJ alice";
    let rows = [
        ("forged", json!({"requester": {"username": "bob"}}), "spec.requester.username must be your own"),
        (
            "forged-uid",
            json!({"requester": {"username": "alice", "uid": "bob"}}),
            "spec.requester.uid must be your own",
        ),
        (
            "forged-group",
            json!({"requester": {"username": "alice", "uid": "alice", "groups": ["system:masters"]}}),
            "spec.requester.groups must be your own",
        ),
        ("minute", json!({"ttlSeconds": 60}), "spec.ttlSeconds"),
        ("ecdsa", json!({"sshPublicKey": "ecdsa-sha2-nistp256 AAAA"}), "ssh-keygen -t ed25519"),
        ("sk", json!({"sshPublicKey": "sk-ssh-ed25519@openssh.com AAAA"}), "ssh-keygen -t ed25519"),
        ("private", json!({"sshPublicKey": "-----BEGIN OPENSSH PRIVATE KEY-----\nb3Blbg"}), "this is a private key"),
        ("id", json!({"target": {"instanceId": "i-WEB"}}), "spec.target.instanceId"),
        ("two-targets", json!({"target": {"instanceId": "i-0123456789abcdef0", "nodeName": "n"}}), "exactly one of"),
        ("user", json!({"osUser": "$(reboot)"}), "spec.osUser"),
        ("window", json!({"startTime": "2030-01-02T00:00:00Z", "endTime": "2030-01-01T00:00:00Z"}), "spec.endTime"),
    ];
    for (name, more, words) in rows {
        let refusal = stand.request("alice", name).with(more).refused().await;
        assert!(refusal.contains(words), "{name}: {refusal}");
    }
    let weak = stand.request("alice", "weak").with(json!({"sshPublicKey": rsa})).applied().await;
    weak.is_denied("InvalidSpec").await;
    weak.keeps_its_promises().await;
}

pub async fn a_status_that_an_administrator_forges_is_refused() {
    let stand = shared().await;
    let request = stand.request("mallory", "self-made").applied().await;
    request.is_denied("DeniedByPolicy").await;
    let forged = json!({"status": {"conditions": []}}).to_string();
    let patch = ["-n", "team", "patch", "ia", "self-made", "--subresource", "status", "--type", "merge", "-p", &forged];
    for who in ["admin", "mallory"] {
        let refused = stand.kubectl(who, &patch).await;
        assert!(!refused.success(), "{who} wrote status: {}", refused.stdout);
        assert!(who != "admin" || refused.stderr.contains("only the operator"), "{refused:?}");
    }
    assert!(condition(&request.newest(), "Denied").is_some());
}
