//! What the gateway's audit trail is told of a key that it pushes: once before, once when it is known what came of it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::Serialize;

use super::{NoKey, SessionGrant, USERNAME_LENGTH_MAX};
use crate::domain::condition::bounded;
use crate::domain::record::RequestRef;
use crate::domain::time::whole_second;

/// The longest request id of AWS's that a record holds, in characters.
const REQUEST_ID_LENGTH_MAX: usize = 128;

/// What happened, or is about to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum PushRecordKind {
    /// A key is about to be pushed. Durable before it is.
    KeyPushIntended,
    /// AWS took it.
    KeyPushed,
    /// It was not sent, or AWS did not take it, or nobody knows.
    KeyNotPushed,
}

/// One record. Joins with the operator's trail by `grantId`, with the cluster by `request.uid`, with CloudTrail by
/// `requestId`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PushRecord {
    /// What happened, or is about to.
    pub kind: PushRecordKind,
    /// The gateway's name.
    pub gateway: String,
    /// The request.
    pub request: RequestRef,
    /// Who asked, by user name.
    pub requester: String,
    /// Who gets in, by user name.
    pub subject: String,
    /// The grant.
    pub grant_id: String,
    /// The key.
    pub key_fingerprint: String,
    /// The instance.
    pub instance_id: String,
    /// The login that it is for.
    pub os_user: String,
    /// Where the client came from that was the first to ask for it, address and port.
    pub source: String,
    /// When the grant ends, at the latest.
    pub expiration_time: Time,
    /// The number of its `KeyPushIntended`, in this trail.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub intended_sequence: Option<i64>,
    /// EC2 Instance Connect's request id, as CloudTrail has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// Why it was not pushed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<&'static str>,
    /// AWS's own word for that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Set where nobody knows: AWS may have taken the key, and not answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub may_have_landed: Option<bool>,
}

impl PushRecord {
    /// The record of an intention.
    pub fn intended(gateway: &str, grant: &SessionGrant, source: String) -> Self {
        Self {
            kind: PushRecordKind::KeyPushIntended,
            gateway: gateway.to_owned(),
            request: grant.request.clone(),
            requester: bounded(grant.requester.clone(), USERNAME_LENGTH_MAX),
            subject: bounded(grant.subject.clone(), USERNAME_LENGTH_MAX),
            grant_id: grant.grant_id.clone(),
            key_fingerprint: grant.key_fingerprint.clone(),
            instance_id: grant.instance_id.as_str().to_owned(),
            os_user: grant.os_user.clone(),
            source,
            expiration_time: Time(whole_second(grant.expiration_time)),
            intended_sequence: None,
            request_id: None,
            cause: None,
            code: None,
            may_have_landed: None,
        }
    }

    /// The record of the push that this one intended.
    pub fn pushed(self, intended_sequence: i64, request_id: String) -> Self {
        Self {
            kind: PushRecordKind::KeyPushed,
            intended_sequence: Some(intended_sequence),
            request_id: Some(bounded(request_id, REQUEST_ID_LENGTH_MAX)),
            ..self
        }
    }

    /// The record that nothing came of it, as far as is known.
    pub fn not_pushed(self, intended_sequence: i64, why: &NoKey, may_have_landed: bool) -> Self {
        let code = if let NoKey::Failed { code, .. } = why { Some(code.clone()) } else { None };
        Self {
            kind: PushRecordKind::KeyNotPushed,
            intended_sequence: Some(intended_sequence),
            cause: Some(why.as_str()),
            code,
            may_have_landed: may_have_landed.then_some(true),
            ..self
        }
    }
}
