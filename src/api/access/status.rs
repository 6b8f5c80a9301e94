//! What became of a request for access.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ConnectionMethod;
use crate::api::{Condition, DecisionKind};

/// What became of a request. Only the operator writes it, but for sessions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(oldSelf.grant) || has(self.grant)").message("is written once").field_path(".grant").reason(Reason::FieldValueForbidden))]
#[x_kube(validation = Rule::new("!has(oldSelf.endTime) || (has(self.endTime) && self.endTime == oldSelf.endTime)").message("is written once").field_path(".endTime").reason(Reason::FieldValueForbidden))]
#[x_kube(validation = Rule::new("!has(self.sessions) || self.sessions.size() == 0 || has(self.grant)").message("are there under a grant only").field_path(".sessions").reason(Reason::FieldValueForbidden))]
pub struct InstanceAccessStatus {
    /// The metadata.generation that this status is about; -1 before the operator has looked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -1))]
    pub observed_generation: Option<i64>,
    /// Approved, Denied, Active, Ended, Reconciling and Stalled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_string()]))]
    pub conditions: Vec<Condition>,
    /// SHA-256 over the JCS form of the spec without requester and revoke, in hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 64, max = 64))]
    pub spec_digest: Option<String>,
    /// The policy that decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyPin>,
    /// Why each policy did or did not admit the request; the nearest 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub verdicts: Vec<PolicyVerdict>,
    /// Until when approvals may come, if the policy asks for any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval_deadline_time: Option<Time>,
    /// The decisions that counted: the approvals so far, or those that the grant stands on, and the Deny or Revoke that
    /// ended it. What is written here stays, whatever becomes of the InstanceAccessDecision objects.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub approvals: Vec<Approval>,
    /// Their user names in one line, for kubectl's table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub approvers: Option<String>,
    /// The permission that the request became. Written once; expirationTime may only move earlier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant: Option<Grant>,
    /// The instance that the target proved to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<InstanceFacts>,
    /// How to connect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection: Option<ConnectionFacts>,
    /// The delivered key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyFacts>,
    /// Sessions through gateways. Each gateway writes its own entry, and nothing else of status. Hints for people: the
    /// evidence is the gateways' audit trail.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["gateway".to_string()]))]
    pub sessions: Vec<SessionReport>,
    /// How access was taken back: the evidence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revocation: Option<Revocation>,
    /// When access really ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_time: Option<Time>,
    /// The newest audit record of this request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<AuditPointer>,
}

/// A policy as it stood when it decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyPin {
    /// Its name.
    #[schemars(length(max = 253))]
    pub name: String,
    /// Its uid.
    #[schemars(length(max = 64))]
    pub uid: String,
    /// Its metadata.generation.
    pub generation: i64,
    /// SHA-256 over the JCS form of its spec, in hex.
    #[schemars(length(max = 64))]
    pub digest: String,
}

/// What one policy says of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum Verdict {
    /// An Allow policy admits it.
    Admit,
    /// A Deny policy matches it.
    Deny,
    /// An Allow policy is for this requester, but something in the request does not fit.
    Refuse,
    /// The policy is not about this request.
    NoMatch,
    /// The policy has a mistake, and admits nothing until it is mended.
    Invalid,
}

/// What one policy says of one request, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyVerdict {
    /// The policy's name.
    #[schemars(length(max = 253))]
    pub policy: String,
    /// What it says.
    pub verdict: Verdict,
    /// Why.
    #[schemars(length(max = 1024))]
    pub reason: String,
}

/// A person's decision that counted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Approval {
    /// The name of the InstanceAccessDecision.
    #[schemars(length(max = 253))]
    pub name: String,
    /// Its uid.
    #[schemars(length(max = 64))]
    pub uid: String,
    /// Whose word it is, by user name.
    #[schemars(length(max = 256))]
    pub approver: String,
    /// Who that is: the canonical principal, by which people are told apart.
    #[schemars(length(max = 256))]
    pub principal: String,
    /// What was decided.
    pub decision: DecisionKind,
    /// When.
    pub time: Time,
    /// Why, if it was said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub reason: Option<String>,
}

/// The permission that a request became.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.id == oldSelf.id && self.startTime == oldSelf.startTime").message("is written once").reason(Reason::FieldValueForbidden))]
#[x_kube(validation = Rule::new("self.expirationTime <= oldSelf.expirationTime").message("may only move earlier").field_path(".expirationTime").reason(Reason::FieldValueForbidden))]
#[x_kube(validation = Rule::new("!has(oldSelf.session) || has(self.session)").message("may only become stricter").field_path(".session").reason(Reason::FieldValueForbidden))]
pub struct Grant {
    /// The grant's id, the same in the audit trail.
    #[schemars(length(min = 1, max = 64))]
    pub id: String,
    /// When access began.
    pub start_time: Time,
    /// When access ends, at the latest.
    pub expiration_time: Time,
    /// What binds its sessions through the gateway, besides its end: as the policy that decided said when the grant was
    /// made, or stricter if it was edited since. Left out: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionRules>,
}

/// What binds the sessions of a grant. It may only become stricter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(oldSelf.maxSessions) || has(self.maxSessions) && self.maxSessions <= oldSelf.maxSessions").message("may only become stricter").field_path(".maxSessions").reason(Reason::FieldValueForbidden))]
#[x_kube(validation = Rule::new("!has(oldSelf.idleTimeoutSeconds) || has(self.idleTimeoutSeconds) && self.idleTimeoutSeconds <= oldSelf.idleTimeoutSeconds").message("may only become stricter").field_path(".idleTimeoutSeconds").reason(Reason::FieldValueForbidden))]
#[x_kube(validation = Rule::new("!has(oldSelf.drainSeconds) || has(self.drainSeconds) && self.drainSeconds >= oldSelf.drainSeconds").message("may only become stricter").field_path(".drainSeconds").reason(Reason::FieldValueForbidden))]
pub struct SessionRules {
    /// How many are open at once, in each replica of the gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_sessions: Option<i32>,
    /// After how many seconds without a byte either way one is cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 60, max = 86400))]
    pub idle_timeout_seconds: Option<i32>,
    /// In how many seconds before expirationTime none is opened any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3600))]
    pub drain_seconds: Option<i32>,
}

/// The instance as EC2 showed it when the grant was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstanceFacts {
    /// Its id.
    #[schemars(length(max = 32))]
    pub instance_id: String,
    /// Its region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub region: Option<String>,
    /// The account that owns it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 12))]
    pub account_id: Option<String>,
    /// For example us-west-2a.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub availability_zone: Option<String>,
    /// The primary private IPv4 address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 45))]
    pub private_ip: Option<String>,
    /// The public IPv4 address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 45))]
    pub public_ip: Option<String>,
    /// The first IPv6 address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 45))]
    pub ipv6: Option<String>,
    /// Its VPC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub vpc_id: Option<String>,
    /// Its subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub subnet_id: Option<String>,
}

/// How to connect, as it was chosen when the grant was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionFacts {
    /// Direct or Endpoint.
    pub method: ConnectionMethod,
    /// The address of the instance.
    #[schemars(length(max = 45))]
    pub address: String,
    /// The port of sshd.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
    /// The EC2 Instance Connect Endpoint, for the method Endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub endpoint_id: Option<String>,
    /// What to type. Add `-i` with your private key if it is not in your agent.
    #[schemars(length(max = 512))]
    pub command: String,
}

/// The delivered key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeyFacts {
    /// Its type.
    #[serde(rename = "type")]
    pub type_: KeyType,
    /// Its length in bits.
    pub bits: i32,
    /// As ssh-keygen -l prints it, SHA256:…
    #[schemars(length(max = 64))]
    pub fingerprint: String,
    /// The request id of the first push, as CloudTrail has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub first_request_id: Option<String>,
    /// The request id of the last push; written when the grant ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub last_request_id: Option<String>,
    /// How many pushes this grant took; counted on from the last status after a restart, written when the grant ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub pushes: Option<i32>,
}

/// The most sessions that an entry counts: a thousand a second for thirty years.
pub const SESSIONS_TOTAL_MAX: i64 = 1_000_000_000_000;

/// Sessions of one grant through one gateway, as the gateway last said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.open <= self.total").message("must be among total").field_path(".open").reason(Reason::FieldValueForbidden))]
#[x_kube(validation = Rule::new("self.total >= oldSelf.total").message("may only grow").field_path(".total").reason(Reason::FieldValueForbidden))]
#[x_kube(validation = Rule::new("self.lastStartTime >= oldSelf.lastStartTime").message("may only move later").field_path(".lastStartTime").reason(Reason::FieldValueForbidden))]
pub struct SessionReport {
    /// The gateway's name: of one that runs as a pod, the pod's.
    #[schemars(length(min = 1, max = 100), regex(pattern = r"^[a-z0-9]+([.-]+[a-z0-9]+)*$"))]
    pub gateway: String,
    /// Sessions that were open when it last said so; some seconds old at most, unless that gateway or its network died.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub open: i32,
    /// Sessions that it opened so far: as many as its audit trail has SessionOpened records of this request.
    #[schemars(range(min = 1, max = SESSIONS_TOTAL_MAX))]
    pub total: i64,
    /// When it opened the last one.
    // A gateway is trusted less than the operator: whatever it writes here, the operator can read.
    #[x_kube(validation = Rule::new("self < timestamp('9999-01-01T00:00:00Z')").message("must lie before the year 9999").reason(Reason::FieldValueForbidden))]
    #[schemars(regex(pattern = r"^[^.]+([.][0-9]{1,9}[^0-9].*)?$"))]
    pub last_start_time: Time,
}

/// A key type that EC2 Instance Connect takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum KeyType {
    /// ssh-ed25519.
    ED25519,
    /// ssh-rsa.
    RSA,
}

/// Why access ended, or is about to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum EndCause {
    /// The clock: expirationTime, or spec.endTime.
    Expired,
    /// The request was deleted.
    Released,
    /// spec.revoke was set, or a decision revoked it.
    Revoked,
    /// The policy that decided is gone or no longer admits the request, or a Deny policy now matches.
    PolicyChanged,
    /// It never began: the same request was granted before, deleted and made again.
    Consumed,
}

impl EndCause {
    /// Every cause, for tables and metrics.
    pub const ALL: [Self; 5] = [Self::Expired, Self::Released, Self::Revoked, Self::PolicyChanged, Self::Consumed];

    /// The word, as it stands in status, audit and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "Expired",
            Self::Released => "Released",
            Self::Revoked => "Revoked",
            Self::PolicyChanged => "PolicyChanged",
            Self::Consumed => "Consumed",
        }
    }
}

/// How access was taken back: the evidence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Revocation {
    /// Why access ended, or is about to.
    pub cause: EndCause,
    /// When the last pushed key stopped (or will have stopped) being readable by the host: from then on no new login.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_window_closed_time: Option<Time>,
}

/// A pointer into the audit trail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuditPointer {
    /// The record's number.
    #[schemars(range(min = 1))]
    pub sequence: i64,
    /// The record's SHA-256, in hex.
    #[schemars(length(max = 64))]
    pub digest: String,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::EndCause;

    #[test]
    fn an_end_has_the_same_word_everywhere_and_all_lists_every_one() {
        for cause in EndCause::ALL {
            assert_eq!(serde_json::to_value(cause).unwrap(), cause.as_str());
        }
        let schema = serde_json::to_value(schemars::schema_for!(EndCause)).unwrap();
        let words = schema["oneOf"].as_array().unwrap().iter().map(|it| it["const"].as_str().unwrap());
        assert_eq!(words.collect::<BTreeSet<_>>(), EndCause::ALL.map(EndCause::as_str).into());
    }
}
