//! When a gateway pushes a key: for a session that is about to be dialled, on a grant that was read just then.
//!
//! ```text
//! the grants of the key, on the instance ─ logins() ─▶ whose keys must be there
//! the request, as the API server has it now ─ delivery() ─▶ PushPermit, good for seconds | NoKey
//! ```
//! A gateway has no lease: what it has is a read. What it knows by its watch may be old, and never leads to a push. Whether
//! a policy still admits the grant is the operator's to judge; here its word in status counts, as it stands now. Whether
//! there is an operator to give it is told by the Lease of the controllers (`domain::lease::Bystander`).

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::{SessionEnd, SessionGrant, Standing, request_name, standing};
use crate::api::{ConditionType, EndCause, InstanceAccess, KeyDelivery};
use crate::domain::cloud::{FailureClass, OsUser, Place, Region};
use crate::domain::condition::{ActiveReason, is_true};
use crate::domain::digest::{grant_id, spec_digest};
use crate::domain::key::PublicKey;
use crate::domain::lifecycle::last_push_time;
use crate::domain::push::{KEY_WINDOW, KeyPush, PUSH_TIMEOUT, PushPermit};
use crate::domain::record::RequestRef;
use crate::domain::time::{is_fresh, plus};

/// How long after the read of a request was begun a push on it may leave: what the API server is told meanwhile is not
/// heard. A read takes milliseconds, the record before the push as many.
pub const READ_AGE_MAX: Duration = Duration::from_secs(5);
/// How long after a push left the key counts as there: a login that begins at the end of it has half of the key's time
/// left, for the dial, and for a person who types a passphrase.
pub const KEY_REUSE: Duration = Duration::from_secs(30);
const _: () = assert!(KEY_REUSE.as_secs() * 2 <= KEY_WINDOW.as_secs());

/// The most logins on one instance whose keys are pushed for one session.
const LOGINS_MAX: usize = 8;

/// Why no key is delivered; the text says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoKey {
    /// The grant is over.
    #[error("{}", cause.farewell(request))]
    Over {
        /// The request.
        request: RequestRef,
        /// Why.
        cause: SessionEnd,
    },
    /// The grant is there, and cannot be used.
    #[error("{request} is {reason}; kubectl describe instanceaccess says why, and what to do")]
    NotNow {
        /// The request.
        request: String,
        /// The reason of `Active`.
        reason: String,
    },
    /// What stands in the request does not fit together, or is not what the session was permitted for.
    #[error(
        "{request} is not as it was granted, and no key is delivered on it; make a new request, and tell the operators"
    )]
    NotAsGranted {
        /// The request.
        request: String,
    },
    /// A key that is pushed now could outlive the grant.
    #[error(
        "the grant of {request} ends at {expiration_time}, and a key lives {} s on the instance: no new one is delivered in the last {} s; ask again with a new request",
        KEY_WINDOW.as_secs(), (KEY_WINDOW + PUSH_TIMEOUT).as_secs()
    )]
    TooLate {
        /// The request.
        request: String,
        /// When the grant ends.
        expiration_time: Timestamp,
    },
    /// The API server did not confirm the grant in time.
    #[error(
        "the API server did not confirm the grant of {request} just now, and no key is delivered without; try again, or tell the operators"
    )]
    Unconfirmed {
        /// The request.
        request: String,
    },
    /// No controller leads, who would judge whether the policy still admits it.
    #[error(
        "no controller of the operator's runs just now, which would say whether a policy still admits {request}; no key is delivered without; try again in a moment, or tell the operators"
    )]
    NoLeader {
        /// The request.
        request: String,
    },
    /// The gateway has no AWS.
    #[error("this gateway delivers no keys: it was built without AWS; tell the operators")]
    NoAws,
    /// There is no durable record of it.
    #[error("the gateway cannot write its audit trail, and delivers no key without; tell the operators")]
    AuditUnavailable,
    /// It waited its turn for too long.
    #[error("the gateway has more keys to deliver than it may just now; try again in a moment")]
    Busy,
    /// AWS did not take it.
    #[error("{}", failure_text(request, *class, code))]
    Failed {
        /// The request.
        request: String,
        /// What it means.
        class: FailureClass,
        /// AWS's own word for it.
        code: String,
    },
}

impl NoKey {
    /// The word for it: the metric's label, and the record's cause. Of what AWS says it is the word of status.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Over { .. } => "Over",
            Self::NotNow { .. } => "NotNow",
            Self::NotAsGranted { .. } => "NotAsGranted",
            Self::TooLate { .. } => "TooLate",
            Self::Unconfirmed { .. } => ActiveReason::ContactLost.as_str(),
            Self::NoLeader { .. } => "NoLeader",
            Self::NoAws => "NoAws",
            Self::AuditUnavailable => ActiveReason::AuditUnavailable.as_str(),
            Self::Busy => "Busy",
            Self::Failed { class, .. } => match class {
                FailureClass::Throttled => ActiveReason::Throttled.as_str(),
                FailureClass::Refused => ActiveReason::AccessDenied.as_str(),
                FailureClass::Invalid => ActiveReason::PushRefused.as_str(),
                FailureClass::Gone => ActiveReason::InstanceNotRunning.as_str(),
                FailureClass::Retry | FailureClass::Bug => ActiveReason::AwsUnavailable.as_str(),
            },
        }
    }

    /// Whether it may be otherwise in a moment, without anybody's doing.
    pub fn passes(&self) -> bool {
        match self {
            Self::Unconfirmed { .. }
            | Self::NoLeader { .. }
            | Self::Busy
            | Self::AuditUnavailable
            | Self::NotNow { .. } => true,
            Self::Failed { class, .. } => matches!(class, FailureClass::Throttled | FailureClass::Retry),
            Self::Over { .. } | Self::NotAsGranted { .. } | Self::TooLate { .. } | Self::NoAws => false,
        }
    }
}

fn failure_text(request: &str, class: FailureClass, code: &str) -> String {
    match class {
        FailureClass::Throttled => {
            format!("AWS asks to wait before it takes the key of {request} ({code}); try again in a few seconds")
        }
        FailureClass::Retry | FailureClass::Bug => {
            format!("AWS did not take the key of {request} ({code}); try again, or tell the operators")
        }
        FailureClass::Refused => format!(
            "AWS does not let this gateway deliver the key of {request} ({code}); the operators must mend its credentials or IAM policy"
        ),
        FailureClass::Invalid => {
            format!("AWS refuses the key of {request} ({code}); make a new request without the mistake")
        }
        FailureClass::Gone => {
            format!("the instance of {request} takes no key now ({code}); start it, or ask for another one")
        }
    }
}

/// The grants whose keys must be on the instance before a session under `chosen` is dialled; those that gateways push.
///
/// The gateway cannot see which login the inner SSH is. So it is each that the client's key has there, of several grants of
/// one login the one that lasts longest; but where the client named a request, that one alone. `chosen` comes first.
pub fn logins(
    now: Timestamp,
    chosen: &Arc<SessionGrant>,
    of_key: &[Arc<SessionGrant>],
    host: &str,
) -> Vec<Arc<SessionGrant>> {
    let mut longest: Vec<&Arc<SessionGrant>> = vec![chosen];
    let fits = |other: &SessionGrant| {
        other.key_fingerprint == chosen.key_fingerprint
            && other.instance_id == chosen.instance_id
            && other.port == chosen.port
            && other.not_now.is_none()
            && now < other.expiration_time
    };
    let others = of_key.iter().filter(|other| host != request_name(&chosen.request) && fits(other));
    for other in others {
        match longest.iter_mut().skip(1).find(|held| held.os_user == other.os_user) {
            _ if other.os_user == chosen.os_user => {}
            Some(held) if held.expiration_time < other.expiration_time => *held = other,
            Some(_) => {}
            None => longest.push(other),
        }
    }
    let mut pushed: Vec<_> = longest.into_iter().filter(|it| it.delivery == KeyDelivery::OnConnect).cloned().collect();
    pushed.truncate(LOGINS_MAX);
    pushed
}

/// Whether the last moment is past in which a key may be pushed, as far as is known without a read.
///
/// # Errors
/// [`NoKey::TooLate`]. An end only moves earlier: what is too late now is no less so by a read.
pub fn is_in_time(now: Timestamp, grant: &SessionGrant) -> Result<(), NoKey> {
    if now <= last_push_time(grant.expiration_time) {
        return Ok(());
    }
    Err(NoKey::TooLate { request: request_name(&grant.request), expiration_time: grant.expiration_time })
}

/// Judges a request that was read from the API server itself, by a read that was begun at `asked_time`, for the grant that
/// a session was permitted under. `None`: there is no such request.
///
/// # Errors
/// A [`NoKey`].
pub fn delivery(
    now: Timestamp,
    asked_time: Timestamp,
    grant: &SessionGrant,
    read: Option<&InstanceAccess>,
) -> Result<PushPermit, NoKey> {
    let request = || request_name(&grant.request);
    let over = |cause| NoKey::Over { request: grant.request.clone(), cause };
    // Also of a clock that was stepped back meanwhile.
    if !is_fresh(now, asked_time, READ_AGE_MAX) {
        return Err(NoKey::Unconfirmed { request: request() });
    }
    let read = read.filter(|read| read.metadata.uid.as_deref() == Some(&grant.request.uid));
    let Some(read) = read else { return Err(over(EndCause::Released.into())) };
    let live = match standing(read) {
        Standing::Live(live) => live,
        Standing::Over(cause) => return Err(over(cause.into())),
        Standing::Nothing => return Err(NoKey::NotAsGranted { request: request() }),
    };
    if let Some(reason) = &live.not_now {
        return Err(NoKey::NotNow { request: request(), reason: reason.clone() });
    }
    let push = key_push(grant, &live, read).ok_or_else(|| NoKey::NotAsGranted { request: request() })?;
    // The earliest that was ever seen (I3).
    let expiration_time = live.expiration_time.min(grant.expiration_time);
    is_in_time(now, &SessionGrant { expiration_time, ..(*live).clone() })?;
    let not_after = last_push_time(expiration_time).min(plus(asked_time, READ_AGE_MAX));
    Ok(PushPermit::new(not_after, push))
}

/// What is pushed, if the request is what was granted, to the letter.
fn key_push(grant: &SessionGrant, live: &SessionGrant, read: &InstanceAccess) -> Option<KeyPush> {
    let (spec, status) = (&read.spec, read.status.as_ref()?);
    let digest = spec_digest(spec);
    let is_own = status.spec_digest.as_deref() == Some(&digest)
        && live.grant_id == grant_id(&grant.request.uid, &digest)
        && live.grant_id == grant.grant_id;
    // The session is dialled by what was known before.
    let is_same = live.key_fingerprint == grant.key_fingerprint
        && live.instance_id == grant.instance_id
        && live.os_user == grant.os_user
        && live.delivery == KeyDelivery::OnConnect;
    let is_approved =
        is_true(&status.conditions, ConditionType::Approved) && !is_true(&status.conditions, ConditionType::Denied);
    let instance = status.instance.as_ref()?;
    let is_where = |asked: &Option<String>, is: Option<&str>| asked.is_none() || asked.as_deref() == is;
    let target = &spec.target;
    let is_there = is_where(&target.instance_id, Some(&instance.instance_id))
        && is_where(&target.region, instance.region.as_deref())
        && is_where(&target.account_id, instance.account_id.as_deref());
    if !(is_own && is_same && is_approved && is_there) {
        return None;
    }
    Some(KeyPush {
        place: Place { region: Region::parse(instance.region.as_deref()?).ok()? },
        instance_id: live.instance_id.clone(),
        availability_zone: instance.availability_zone.clone(),
        os_user: OsUser::parse(&spec.os_user).ok()?,
        key: PublicKey::parse(&spec.ssh_public_key).ok()?,
    })
}

#[cfg(test)]
mod tests;
