//! `InstanceAccess`: one request for access, and what became of it.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{
    CustomResource, KubeSchema,
    core::{Reason, Rule},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

mod status;

pub use status::*;

/// Selects the requests whose grant lives: a field that is absent compares as empty.
pub const LIVE: &str = "status.grant.id!=,status.endTime=";

/// A request for time-boxed SSH access to one EC2 instance. Immutable, except that spec.revoke may be added once.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "instanceaccess.dev",
    version = "v1alpha1",
    kind = "InstanceAccess",
    plural = "instanceaccesses",
    singular = "instanceaccess",
    shortname = "ia",
    category = "instance-access",
    namespaced,
    status = "InstanceAccessStatus",
    derive = "PartialEq",
    doc = "A request for time-boxed SSH access to one EC2 instance, and what became of it.",
    printcolumn(
        name = "Instance",
        type_ = "string",
        json_path = ".status.instance.instanceId",
        description = "The EC2 instance"
    ),
    printcolumn(
        name = "User",
        type_ = "string",
        json_path = ".spec['subject','requester'].username",
        description = "Who gets in"
    ),
    printcolumn(
        name = "Policy",
        type_ = "string",
        json_path = ".status.policy.name",
        description = "The policy that decided"
    ),
    printcolumn(
        name = "Status",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Active\")].reason",
        description = "Whether access is possible now, and why"
    ),
    printcolumn(
        name = "Expires",
        type_ = "string",
        json_path = ".status.grant.expirationTime",
        description = "When access ends"
    ),
    printcolumn(
        name = "Sessions",
        type_ = "integer",
        json_path = ".status.sessions[?(@.open>0)].open",
        description = "Open sessions through the gateway; of several gateways, those of the first that has any"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Approvers",
        type_ = "string",
        json_path = ".status.approvers",
        priority = 1,
        description = "Whose decisions counted"
    ),
    printcolumn(
        name = "Ticket",
        type_ = "string",
        json_path = ".spec.ticket",
        priority = 1,
        description = "The ticket"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".spec.reason",
        priority = 1,
        description = "Why access is asked for"
    ),
    // Which grants live can be asked for by themselves: see `LIVE`.
    selectable = ".status.grant.id",
    selectable = ".status.endTime"
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.startTime) || !has(self.endTime) || self.startTime < self.endTime").message("must be later than spec.startTime").field_path(".endTime").reason(Reason::FieldValueForbidden))]
#[x_kube(validation = Rule::new("!has(oldSelf.revoke) || (has(self.revoke) && self.revoke == oldSelf.revoke)").message("cannot be taken back or changed; make a new request").field_path(".revoke").reason(Reason::FieldValueForbidden))]
pub struct InstanceAccessSpec {
    /// Who asks. Filled in at admission from the caller's authenticated identity, and checked there: leave it out. On
    /// Kubernetes below 1.36 write here what `kubectl auth whoami -o yaml` shows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requester: Option<Identity>,
    /// Who gets in, if not the requester. Only a service account may set it that a policy names in spec.delegates; it must
    /// set endTime, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<SubjectName>,
    /// Which instance: exactly one of instanceId, nodeName and tags.
    pub target: Target,
    /// The login on the instance, for example ec2-user.
    #[schemars(length(min = 1, max = 32), regex(pattern = r"^[A-Za-z_][A-Za-z0-9@._-]{0,30}[A-Za-z0-9$_-]?$"))]
    pub os_user: String,
    /// The public key to let in: ssh-ed25519, or ssh-rsa with 2048 or 4096 bits, in OpenSSH's one-line form or as an
    /// SSH2 (RFC 4716) block. Never a private key.
    #[schemars(length(min = 1, max = 8192))]
    #[x_kube(validation = forbidden(&format!("!({KEY_IS_PRIVATE})"), "this is a private key: treat it as compromised, make a new pair with ssh-keygen -t ed25519, and give the .pub file"))]
    #[x_kube(validation = forbidden(&format!("!({KEY_IS_UNDELIVERABLE})"), "EC2 Instance Connect takes ssh-rsa (2048 or 4096 bits) and ssh-ed25519 only, no ECDSA, sk- or DSA keys; make one with ssh-keygen -t ed25519"))]
    #[x_kube(validation = forbidden(&format!("({KEY_IS_PUBLIC}) || ({KEY_IS_UNDELIVERABLE}) || ({KEY_IS_PRIVATE})"), "this is no public key in OpenSSH's or RFC 4716's form; give the one line of a .pub file, ssh-ed25519 AAAA… or ssh-rsa AAAA…"))]
    pub ssh_public_key: String,
    /// How to reach the instance. Left out: method Auto, port 22.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection: Option<Connection>,
    /// When the key is pushed: Continuous (all the time that the grant lives) or OnConnect (when a client connects to
    /// the gateway). Left out: Continuous.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "KeyDelivery")]
    pub key_delivery: Option<KeyDelivery>,
    /// How long access is asked for, in seconds: 120 to 604800. The clock starts at the grant, not at the request.
    /// Left out: what the policy gives by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 120, max = 604_800))]
    pub ttl_seconds: Option<i32>,
    /// The earliest moment of access, for example 2026-03-01T08:00:00Z. Left out: now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self < timestamp('9999-01-01T00:00:00Z')").message("must lie before the year 9999").reason(Reason::FieldValueForbidden))]
    #[schemars(regex(pattern = r"^[^.]+([.][0-9]{1,9}[^0-9].*)?$"))]
    pub start_time: Option<Time>,
    /// The latest moment of access, for example 2026-03-01T17:00:00Z, whatever ttlSeconds says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self < timestamp('9999-01-01T00:00:00Z')").message("must lie before the year 9999").reason(Reason::FieldValueForbidden))]
    #[schemars(regex(pattern = r"^[^.]+([.][0-9]{1,9}[^0-9].*)?$"))]
    pub end_time: Option<Time>,
    /// How long the request waits for people's approval, in seconds from its creation, if the policy asks for any: 60
    /// to 2592000. Left out: as long as the policy lets it; it can only be made shorter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 60, max = 2_592_000))]
    pub approval_deadline_seconds: Option<i32>,
    /// Why access is needed, for people and for the policy's pattern.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub reason: Option<String>,
    /// The ticket that this belongs to, for example INC-4711.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub ticket: Option<String>,
    /// The one InstanceAccessPolicy that may admit this. Left out: the operator chooses. A Deny policy always counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub policy_name: Option<String>,
    /// Set it to end access now. One-way: it cannot be taken back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoke: Option<Revoke>,
}

/// How OpenSSH's line and an RFC 4716 block begin, for the types that EC2 Instance Connect takes.
const KEY_IS_PUBLIC: &str = r"self.matches('^[ \\r\\n]*((ssh-rsa|ssh-ed25519)[ \\t]|---- BEGIN SSH2 PUBLIC KEY ----)')";
/// The other types that a `.pub` file may hold.
const KEY_IS_UNDELIVERABLE: &str = r"self.matches('^[ \\r\\n]*(ecdsa-|sk-|ssh-dss)')";
/// The armour of a private key, PuTTY's words, and both of them as base64: what must not even reach etcd. A public key's
/// comment may say "private key" in small letters.
const KEY_IS_PRIVATE: &str = r"self.contains('PRIVATE KEY') || self.matches('(?i)--[ ]*(begin|end)[a-z0-9\\s]*private\\s*key|putty-user-key-file|private-lines:|private-mac:') || self.contains('b3BlbnNzaC1rZXktdjE') || self.matches('LS0tLS1CRUdJTi(BPUEVO|BSU0Eg|BQUklW|BFTkNS|BFQyB|BEU0Eg)')";

/// A rule whose refusal does not repeat the value: the API server quotes what it calls invalid, in answers and logs.
fn forbidden(rule: &str, message: &str) -> Rule {
    Rule::new(rule).message(message).reason(Reason::FieldValueForbidden)
}

/// An authenticated identity, as the API server knows it (`UserInfo`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// The user name, for example alice@example.com.
    #[schemars(length(min = 1, max = 1024))]
    pub username: String,
    /// The authenticator's own id of the user; may be absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub uid: Option<String>,
    /// The groups of the user at the moment of the request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 512), inner(length(max = 1024)))]
    pub groups: Vec<String>,
    /// What else the authenticator said of the user.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "extra_schema")]
    pub extra: BTreeMap<String, Vec<String>>,
}

fn extra_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "maxProperties": 64,
        "additionalProperties": {
            "type": "array",
            "maxItems": 64,
            "items": { "type": "string", "maxLength": 4096 },
        },
    })
}

/// A person named by another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SubjectName {
    /// The user name of who gets in, for example alice@example.com. Of another than the requester no group counts.
    #[schemars(length(min = 1, max = 1024))]
    pub username: String,
}

/// Which instance is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.instanceId), has(self.nodeName), has(self.tags)].filter(x, x).size() == 1").message("must have exactly one of instanceId, nodeName and tags"))]
pub struct Target {
    /// The EC2 instance's id, for example i-0123456789abcdef0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 10, max = 32), regex(pattern = r"^i-[a-f0-9]+$"))]
    pub instance_id: Option<String>,
    /// The name of a Kubernetes node, whose providerID names the instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub node_name: Option<String>,
    /// EC2 tags, each by its exact value; together they must match exactly one instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "tags_schema")]
    pub tags: Option<BTreeMap<String, String>>,
    /// The AWS region, for example us-west-2. Left out: the operator's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 6, max = 32), regex(pattern = r"^[a-z]{2,4}(-[a-z]{2,12}){1,3}-[0-9]{1,2}$"))]
    pub region: Option<String>,
    /// The AWS account that the instance must belong to, for example 123456789012. Left out: the operator's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 12, max = 12), regex(pattern = r"^[0-9]{12}$"))]
    pub account_id: Option<String>,
}

fn tags_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "minProperties": 1,
        "maxProperties": 50,
        "additionalProperties": { "type": "string", "maxLength": 256 },
    })
}

/// How the instance is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Connection {
    /// Auto, Direct, or Endpoint (through an EC2 Instance Connect Endpoint). Left out: Auto, which takes the public IPv4
    /// address, else an endpoint, else IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "ConnectionMethod")]
    pub method: Option<ConnectionMethod>,
    /// The port of sshd. Left out: 22.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<i32>,
}

/// A way to the instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum ConnectionMethod {
    /// Public IPv4 directly, else private IPv4 through an endpoint, else IPv6 directly.
    #[default]
    Auto,
    /// Straight to an address of the instance.
    Direct,
    /// Through an EC2 Instance Connect Endpoint of its VPC.
    Endpoint,
}

/// When the key is pushed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum KeyDelivery {
    /// All the time that the grant lives, so that a login works at any moment of it.
    #[default]
    Continuous,
    /// When a client connects to the gateway.
    OnConnect,
}

/// The wish to end access now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Revoke {
    /// Why, for the audit trail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub reason: Option<String>,
}
