//! What the gateway's audit trail is told of a session: once before it is dialled, once when it has ended.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::Serialize;

use super::{Hold, SessionEnd, SessionGrant};
use crate::domain::condition::bounded;
use crate::domain::record::RequestRef;
use crate::domain::time::whole_second;

/// The longest user name that a record holds, in characters; the bound of the CRD.
pub(super) const USERNAME_LENGTH_MAX: usize = 1024;

/// What happened, or is about to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum SessionRecordKind {
    /// A session is about to be dialled. Durable before anything else happens.
    SessionOpened,
    /// It is over, and its byte path closed.
    SessionEnded,
}

/// One record. Joins with the operator's trail by `grantId`, with the cluster by `request.uid`, with the host's log by the
/// time and the gateway's address.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionRecord {
    /// What happened, or is about to.
    pub kind: SessionRecordKind,
    /// The gateway's name.
    pub gateway: String,
    /// The request.
    pub request: RequestRef,
    /// Who asked, by user name.
    pub requester: String,
    /// Who gets in, by user name.
    pub subject: String,
    /// The grant that the session was opened under.
    pub grant_id: String,
    /// All grants that it is held to: it ends with the first of them.
    pub held_to: Vec<String>,
    /// The key that the client proved to have.
    pub key_fingerprint: String,
    /// The instance.
    pub instance_id: String,
    /// The grant's login. The inner SSH may have been another one that the same client has there.
    pub os_user: String,
    /// Where the client came from, address and port.
    pub source: String,
    /// What it asked for, host and port, printable.
    pub asked: String,
    /// What was dialled, address and port.
    pub destination: String,
    /// When it is cut, as far as was known at the opening.
    pub expiration_time: Time,
    /// The number of its `SessionOpened`, in this trail.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub opened_sequence: Option<i64>,
    /// Bytes from the client to the instance; ciphertext, as all that passes here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_to_instance: Option<u64>,
    /// Bytes from the instance to the client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_from_instance: Option<u64>,
    /// Why it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<&'static str>,
    /// When.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_time: Option<Time>,
}

/// The largest integer that a record holds: JCS knows doubles only.
const INTEGER_MAX: u64 = (1 << 53) - 1;

impl SessionRecord {
    /// The record of an opening.
    pub fn opened(
        gateway: &str,
        grant: &SessionGrant,
        holds: &[Hold],
        source: String,
        asked: String,
        destination: String,
    ) -> Self {
        let cut_time = holds.iter().map(|hold| hold.cut_time).min().unwrap_or(grant.expiration_time);
        Self {
            kind: SessionRecordKind::SessionOpened,
            gateway: gateway.to_owned(),
            request: grant.request.clone(),
            requester: bounded(grant.requester.clone(), USERNAME_LENGTH_MAX),
            subject: bounded(grant.subject.clone(), USERNAME_LENGTH_MAX),
            grant_id: grant.grant_id.clone(),
            held_to: holds.iter().map(|hold| hold.grant_id.clone()).collect(),
            key_fingerprint: grant.key_fingerprint.clone(),
            instance_id: grant.instance_id.as_str().to_owned(),
            os_user: grant.os_user.clone(),
            source,
            asked,
            destination,
            expiration_time: Time(whole_second(cut_time)),
            opened_sequence: None,
            bytes_to_instance: None,
            bytes_from_instance: None,
            cause: None,
            end_time: None,
        }
    }

    /// The record of the end of the session that this one opened.
    pub fn ended(self, opened_sequence: i64, bytes: (u64, u64), cause: SessionEnd, now: jiff::Timestamp) -> Self {
        Self {
            kind: SessionRecordKind::SessionEnded,
            opened_sequence: Some(opened_sequence),
            bytes_to_instance: Some(bytes.0.min(INTEGER_MAX)),
            bytes_from_instance: Some(bytes.1.min(INTEGER_MAX)),
            cause: Some(cause.as_str()),
            end_time: Some(Time(whole_second(now))),
            ..self
        }
    }
}
