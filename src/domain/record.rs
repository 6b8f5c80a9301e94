//! What the audit trail is told: one record an event in the life of a grant.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::{Deserialize, Serialize};

use super::condition::bounded;
use super::subject;
use crate::api::{Approval, EndCause, Identity, InstanceAccess, KeyDelivery, KeyFacts, PolicyPin};

/// What happened, or is about to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RecordKind {
    /// A request was refused.
    Denied,
    /// A grant is about to be made, and its key pushed for the first time. Durable before anything else happens.
    GrantIntended,
    /// The first push landed.
    Granted,
    /// The key is about to be pushed again. Durable before it is.
    PushIntended,
    /// Access is being taken back before its time.
    EndIntended,
    /// Access is over.
    Ended,
    /// What the record before told of did not come about: before its status was stored, the world had changed.
    CalledOff,
}

/// One record. Joins with the cluster by `request.uid`, with AWS by `requestId`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// What happened, or is about to.
    pub kind: RecordKind,
    /// The request.
    pub request: RequestRef,
    /// Who asked, as the API server authenticated them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requester: Option<Identity>,
    /// Who gets in, if the requester asked for another: the user name, by the requester's word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// The grant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grant_id: Option<String>,
    /// The instance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<String>,
    /// The region.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// The login.
    pub os_user: String,
    /// What the spec was.
    pub spec_digest: String,
    /// The policy that decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyPin>,
    /// The decisions that it stands on: of a grant the approvals, of a refusal or an end also the one that closed it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub approvals: Vec<Approval>,
    /// The key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_fingerprint: Option<String>,
    /// `OnConnect`, where gateways push the key: then no record here tells of a push.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_delivery: Option<KeyDelivery>,
    /// Why access was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The ticket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ticket: Option<String>,
    /// When the grant begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// When the grant ends, at the latest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expiration_time: Option<Time>,
    /// The request id of the newest landed push, as CloudTrail has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// How many pushes landed so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pushes: Option<i32>,
    /// Why it ended, or is about to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<EndCause>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_time: Option<Time>,
    /// Of `CalledOff`: which kind of record is taken back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub called_off: Option<RecordKind>,
    /// What a person should know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// The request that a record is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestRef {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

/// The most groups, and the longest text of an identity, that a record holds: with every other field at its bound, a
/// record stays below the trail's 256 KiB. Whoever is in more groups is still named, and status has all of them.
const GROUPS_MAX: usize = 64;
const TEXT_LENGTH_MAX: usize = 256;

/// An identity as a record holds it: username and uid whole, of groups and extra as much as is bounded.
fn briefly(identity: &Identity) -> Identity {
    let text = |text: &String| bounded(text.clone(), TEXT_LENGTH_MAX);
    Identity {
        username: identity.username.clone(),
        uid: identity.uid.clone(),
        groups: identity.groups.iter().take(GROUPS_MAX).map(text).collect(),
        extra: identity
            .extra
            .iter()
            .take(16)
            .map(|(key, values)| (text(key), values.iter().take(4).map(text).collect()))
            .collect(),
    }
}

impl Record {
    /// Makes a record of what request and status say; the caller adds what is particular to the kind.
    pub fn of(kind: RecordKind, request: &InstanceAccess, status: &crate::api::InstanceAccessStatus) -> Self {
        let meta = &request.metadata;
        let key: Option<&KeyFacts> = status.key.as_ref();
        Self {
            kind,
            request: RequestRef {
                namespace: meta.namespace.clone().unwrap_or_default(),
                name: meta.name.clone().unwrap_or_default(),
                uid: meta.uid.clone().unwrap_or_default(),
            },
            requester: request.spec.requester.as_ref().map(briefly),
            subject: subject::asserted(&request.spec).map(|subject| subject.username),
            grant_id: status.grant.as_ref().map(|grant| grant.id.clone()),
            instance_id: status
                .instance
                .as_ref()
                .map(|instance| instance.instance_id.clone())
                .or_else(|| request.spec.target.instance_id.clone()),
            region: status.instance.as_ref().and_then(|instance| instance.region.clone()),
            os_user: request.spec.os_user.clone(),
            spec_digest: status.spec_digest.clone().unwrap_or_default(),
            policy: status.policy.clone(),
            approvals: match kind {
                RecordKind::Denied | RecordKind::GrantIntended | RecordKind::EndIntended | RecordKind::Ended => {
                    status.approvals.clone()
                }
                // Every 45 s of a grant: the first record of it has them.
                RecordKind::Granted | RecordKind::PushIntended => Vec::new(),
                RecordKind::CalledOff => Vec::new(),
            },
            key_fingerprint: key.map(|key| key.fingerprint.clone()),
            key_delivery: request.spec.key_delivery.filter(|delivery| *delivery == KeyDelivery::OnConnect),
            reason: request.spec.reason.clone(),
            ticket: request.spec.ticket.clone(),
            start_time: status.grant.as_ref().map(|grant| grant.start_time.clone()),
            expiration_time: status.grant.as_ref().map(|grant| grant.expiration_time.clone()),
            request_id: None,
            pushes: None,
            cause: None,
            end_time: None,
            called_off: None,
            message: None,
        }
    }
}
