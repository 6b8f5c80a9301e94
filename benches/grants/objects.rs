//! What is asked for, and how much of the answers a benchmark reads.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

/// The product's API group.
pub const OURS: Group = Group("instanceaccess.dev");
/// The same resources and admission policies under another name, which no controller watches: the loop's.
pub const LOOP: Group = Group("loop.example");
/// Where all requests are.
pub const NAMESPACE: &str = "bench";

/// One of the two API groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group(pub &'static str);

impl Group {
    /// The path of all requests in the namespace.
    pub fn requests(self) -> String {
        format!("/apis/{}/v1alpha1/namespaces/{NAMESPACE}/instanceaccesses", self.0)
    }

    /// The path of one request.
    pub fn request(self, name: &str) -> String {
        format!("{}/{name}", self.requests())
    }

    /// A manifest of ours, as this group's.
    pub fn own(self, manifest: &str) -> String {
        manifest.replace(OURS.0, self.0)
    }
}

/// A request that is asked for.
#[derive(Clone, Debug)]
pub struct Wish {
    pub name: String,
    pub instance_id: String,
    pub end_time: Option<Timestamp>,
}

impl Wish {
    /// The object to create. Each has a key of its own, by which the stand-in's journal tells pushes apart.
    pub fn object(&self, group: Group) -> Value {
        let mut spec = json!({
            "target": {"instanceId": self.instance_id},
            "osUser": "ec2-user",
            "sshPublicKey": public_key(),
            "ttlSeconds": TTL_SECONDS,
            "reason": "INC-4711: measuring",
        });
        if let Some(end_time) = self.end_time {
            spec["endTime"] = json!(end_time);
        }
        json!({
            "apiVersion": format!("{}/v1alpha1", group.0),
            "kind": "InstanceAccess",
            "metadata": {"name": self.name},
            "spec": spec,
        })
    }
}

/// How long access is asked for: longer than the benchmark takes, so that `endTime` alone decides.
const TTL_SECONDS: u32 = 3600;

/// 32 random bytes as an ED25519 key. Nobody logs in with it: whether it lies on the curve, only sshd would ask.
pub fn public_key() -> String {
    let mut blob = b"\0\0\0\x0bssh-ed25519\0\0\0\x20".to_vec();
    blob.extend(uuid::Uuid::new_v4().into_bytes());
    blob.extend(uuid::Uuid::new_v4().into_bytes());
    format!("ssh-ed25519 {} bench", BASE64_STANDARD.encode(blob))
}

/// As much of an object as is looked at: decoding the rest would be charged to the machine that is measured.
#[derive(Clone, Debug, Deserialize)]
pub struct Light {
    pub metadata: LightMeta,
    #[serde(default)]
    pub status: LightStatus,
}

/// Its identity.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LightMeta {
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub uid: String,
    #[serde(default)]
    pub resource_version: String,
}

/// What became of it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LightStatus {
    #[serde(default)]
    pub conditions: Vec<LightCondition>,
    pub grant: Option<LightGrant>,
    pub key: Option<LightKey>,
}

/// A condition.
#[derive(Clone, Debug, Deserialize)]
pub struct LightCondition {
    #[serde(rename = "type")]
    pub type_: String,
    pub status: String,
    #[serde(default)]
    pub reason: String,
    #[serde(default)]
    pub message: String,
}

/// A grant.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LightGrant {
    pub expiration_time: Timestamp,
}

/// A delivered key.
#[derive(Clone, Debug, Deserialize)]
pub struct LightKey {
    pub fingerprint: String,
}

impl LightStatus {
    /// Whether a condition stands at True.
    pub fn holds(&self, type_: &str) -> bool {
        self.conditions.iter().any(|condition| condition.type_ == type_ && condition.status == "True")
    }
}
