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

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a String does not fail");
        text
    })
}
