//! Digests: SHA-256 over the JCS form (RFC 8785), in lower-case hex.

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::api::{InstanceAccessPolicySpec, InstanceAccessSpec};

/// Returns the digest that a person's decision binds to: the spec without `requester` and `revoke`.
pub fn spec_digest(spec: &InstanceAccessSpec) -> String {
    let mut bound = spec.clone();
    bound.requester = None;
    bound.revoke = None;
    hex_of_canonical(&bound)
}

/// Returns the digest of a policy's spec.
pub fn policy_digest(spec: &InstanceAccessPolicySpec) -> String {
    hex_of_canonical(spec)
}

/// Returns the id of the one grant that a request can become.
///
/// It is made of uid and spec digest, so that a repetition after a crash is the same grant (I3).
pub fn grant_id(uid: &str, spec_digest: &str) -> String {
    let mut hasher = Sha256::new();
    hasher.update(uid.as_bytes());
    hasher.update(b"/");
    hasher.update(spec_digest.as_bytes());
    format!("g-{}", hex(&hasher.finalize()[..16]))
}

fn hex_of_canonical(value: &impl Serialize) -> String {
    let canonical = serde_json_canonicalizer::to_vec(value).expect("API types are plain data with finite numbers");
    hex(&Sha256::digest(&canonical))
}

/// Writes bytes in lower-case hex.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a String does not fail");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Connection, ConnectionMethod, Identity, KeyDelivery, Revoke, SubjectName, Target};

    fn spec() -> InstanceAccessSpec {
        serde_json::from_value(serde_json::json!({
            "target": {"instanceId": "i-0123456789abcdef0"},
            "osUser": "ec2-user",
            "sshPublicKey": "ssh-ed25519 AAAA",
            "ttlSeconds": 600,
            "startTime": "2026-03-01T08:00:00Z",
        }))
        .unwrap()
    }

    #[test]
    fn the_digest_is_the_same_in_every_version() {
        // sha256 of {"osUser":"ec2-user","sshPublicKey":"ssh-ed25519 AAAA","startTime":"2026-03-01T08:00:00Z",
        // "target":{"instanceId":"i-0123456789abcdef0"},"ttlSeconds":600}, without the line break and the blank.
        assert_eq!(spec_digest(&spec()), "05b91e9392e836db93bd82eb919935d11d3dbf5b168628bb3b2acb6e01e29ba4");
        assert_eq!(grant_id("uid", "digest"), "g-f0b19a93045f80978ca5bb8579a9275c");
    }

    #[test]
    fn who_asks_and_the_revocation_do_not_count() {
        let mut asked = spec();
        asked.requester = Some(Identity { username: "alice".into(), ..Identity::default() });
        asked.revoke = Some(Revoke { reason: Some("done".into()) });
        assert_eq!(spec_digest(&asked), spec_digest(&spec()));
    }

    #[test]
    fn everything_else_counts() {
        type Change = fn(&mut InstanceAccessSpec);
        let changes: [(&str, Change); 20] = [
            ("nothing", |_| {}),
            ("subject", |spec| spec.subject = Some(SubjectName { username: "bob".into() })),
            ("instanceId", |spec| spec.target.instance_id = Some("i-0123456789abcdef1".into())),
            ("nodeName", |spec| spec.target = Target { node_name: Some("n".into()), ..spec.target.clone() }),
            ("tags", |spec| spec.target.tags = Some([("a".to_owned(), "b".to_owned())].into())),
            ("other tags", |spec| spec.target.tags = Some([("a".to_owned(), "c".to_owned())].into())),
            ("region", |spec| spec.target.region = Some("us-west-2".into())),
            ("accountId", |spec| spec.target.account_id = Some("123456789012".into())),
            ("osUser", |spec| spec.os_user = "root".into()),
            ("key", |spec| spec.ssh_public_key.push('B')),
            ("method", |spec| {
                spec.connection = Some(Connection { method: Some(ConnectionMethod::Direct), port: None })
            }),
            ("port", |spec| spec.connection = Some(Connection { method: None, port: Some(22) })),
            ("keyDelivery", |spec| spec.key_delivery = Some(KeyDelivery::Continuous)),
            ("ttlSeconds", |spec| spec.ttl_seconds = Some(601)),
            ("startTime", |spec| spec.start_time = None),
            ("endTime", |spec| spec.end_time = spec.start_time.clone()),
            ("approvalDeadlineSeconds", |spec| spec.approval_deadline_seconds = Some(60)),
            ("reason", |spec| spec.reason = Some("x".into())),
            ("ticket", |spec| spec.ticket = Some("x".into())),
            ("policyName", |spec| spec.policy_name = Some("x".into())),
        ];
        let mut digests = std::collections::BTreeSet::new();
        for (what, change) in changes {
            let mut changed = spec();
            change(&mut changed);
            assert!(digests.insert(spec_digest(&changed)), "{what} does not count");
        }
        // A field more needs a row more.
        let InstanceAccessSpec {
            requester: _,
            subject: _,
            target: _,
            os_user: _,
            ssh_public_key: _,
            connection: _,
            key_delivery: _,
            ttl_seconds: _,
            start_time: _,
            end_time: _,
            approval_deadline_seconds: _,
            reason: _,
            ticket: _,
            policy_name: _,
            revoke: _,
        } = spec();
    }

    #[test]
    fn a_grants_id_depends_on_uid_and_digest_and_their_border() {
        let ids = [grant_id("a", "b"), grant_id("a", "c"), grant_id("b", "b"), grant_id("ab", ""), grant_id("", "ab")];
        let distinct: std::collections::BTreeSet<_> = ids.iter().collect();
        assert_eq!(distinct.len(), ids.len());
        assert!(ids.iter().all(|id| id.len() <= 64));
    }
}
