//! Conditions: one constructor per type, whose reason is that type's own enum, so that an impossible pair does not
//! compile and a message is always there.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::api::{Condition, ConditionStatus, ConditionType, InstanceAccessStatus};

use super::time::whole_second;

/// The longest message of a condition, in characters.
pub const MESSAGE_LENGTH_MAX: usize = 2048;

/// Why `Approved` is what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApproveReason {
    /// A policy admits the request, and the people approved whom it asks.
    AdmittedByPolicy,
}

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DenyReason {
    /// No policy admits it, or a Deny policy matches it.
    DeniedByPolicy,
    /// The request itself cannot be served as it is written.
    InvalidSpec,
    /// It was made while what checks the requester did not stand: nobody knows who asks.
    RequesterUnchecked,
    /// Somebody whom the policy names as an approver said no.
    DeniedByApprover,
    /// The approvals that the policy asks for did not come in time.
    ApprovalTimeout,
}

/// Why access is possible now, or not: the STATUS column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ActiveReason {
    /// The policy wants people's approval, and they have not all given it yet.
    PendingApproval,
    /// Before `spec.startTime`.
    Scheduled,
    /// Granted; the first push is under way.
    Granting,
    /// Usable now.
    Granted,
    /// Access is being taken back; the last pushed key is still readable by the host.
    RevocationPending,
    /// Over, by the clock.
    Expired,
    /// Over: the request was deleted.
    Released,
    /// Over: `spec.revoke`, or the policy's change of mind.
    Revoked,
    /// Over before it began: the same request was granted before.
    Consumed,
    /// Refused.
    Denied,
    /// No such instance.
    TargetNotFound,
    /// More than one instance.
    TargetAmbiguous,
    /// The instance does not run; it may again.
    InstanceNotRunning,
    /// The instance is gone for ever.
    InstanceTerminated,
    /// No way to the instance by the wanted method.
    NoRoute,
    /// AWS says no to the operator's identity.
    AccessDenied,
    /// AWS says no to the push's arguments.
    PushRefused,
    /// AWS asks to slow down.
    Throttled,
    /// AWS does not answer, or with a fault of its own.
    AwsUnavailable,
    /// The audit trail takes no record, and without a record nothing is granted.
    AuditUnavailable,
    /// The API server is not heard, so a revocation would not be heard either, and no key is pushed.
    ContactLost,
    /// What guards the requests in the API server is missing or bent: who asks may be forged, and no key is pushed.
    EnforcementMissing,
}

impl ActiveReason {
    /// Every reason, for tables and metrics.
    pub const ALL: [Self; 22] = [
        Self::PendingApproval,
        Self::Scheduled,
        Self::Granting,
        Self::Granted,
        Self::RevocationPending,
        Self::Expired,
        Self::Released,
        Self::Revoked,
        Self::Consumed,
        Self::Denied,
        Self::TargetNotFound,
        Self::TargetAmbiguous,
        Self::InstanceNotRunning,
        Self::InstanceTerminated,
        Self::NoRoute,
        Self::AccessDenied,
        Self::PushRefused,
        Self::Throttled,
        Self::AwsUnavailable,
        Self::AuditUnavailable,
        Self::ContactLost,
        Self::EnforcementMissing,
    ];

    /// The word, as it stands in status, metrics, audit and the runbook.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PendingApproval => "PendingApproval",
            Self::Scheduled => "Scheduled",
            Self::Granting => "Granting",
            Self::Granted => "Granted",
            Self::RevocationPending => "RevocationPending",
            Self::Expired => "Expired",
            Self::Released => "Released",
            Self::Revoked => "Revoked",
            Self::Consumed => "Consumed",
            Self::Denied => "Denied",
            Self::TargetNotFound => "TargetNotFound",
            Self::TargetAmbiguous => "TargetAmbiguous",
            Self::InstanceNotRunning => "InstanceNotRunning",
            Self::InstanceTerminated => "InstanceTerminated",
            Self::NoRoute => "NoRoute",
            Self::AccessDenied => "AccessDenied",
            Self::PushRefused => "PushRefused",
            Self::Throttled => "Throttled",
            Self::AwsUnavailable => "AwsUnavailable",
            Self::AuditUnavailable => "AuditUnavailable",
            Self::ContactLost => "ContactLost",
            Self::EnforcementMissing => "EnforcementMissing",
        }
    }
}

impl DenyReason {
    /// The word, as it stands in status, metrics, audit and the runbook.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DeniedByPolicy => "DeniedByPolicy",
            Self::InvalidSpec => "InvalidSpec",
            Self::RequesterUnchecked => "RequesterUnchecked",
            Self::DeniedByApprover => "DeniedByApprover",
            Self::ApprovalTimeout => "ApprovalTimeout",
        }
    }
}

/// How a request that has an end reads: the reason of `Active` and of `Ended`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EndReason {
    /// By the clock.
    Expired,
    /// The request was deleted.
    Released,
    /// `spec.revoke`, or the policy's change of mind.
    Revoked,
    /// Over before it began: the same request was granted before.
    Consumed,
    /// Over before it began: refused.
    Denied,
}

impl EndReason {
    /// The same word as a reason of `Active`.
    pub fn active(self) -> ActiveReason {
        match self {
            Self::Expired => ActiveReason::Expired,
            Self::Released => ActiveReason::Released,
            Self::Revoked => ActiveReason::Revoked,
            Self::Consumed => ActiveReason::Consumed,
            Self::Denied => ActiveReason::Denied,
        }
    }
}

/// What a condition should say; `set` adds the times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saying {
    type_: ConditionType,
    status: ConditionStatus,
    reason: &'static str,
    message: String,
}

impl Saying {
    fn new(type_: ConditionType, status: ConditionStatus, reason: &'static str, message: impl Into<String>) -> Self {
        Self { type_, status, reason, message: message.into() }
    }

    /// A policy admits the request.
    pub fn approved(reason: ApproveReason, message: impl Into<String>) -> Self {
        let reason = match reason {
            ApproveReason::AdmittedByPolicy => "AdmittedByPolicy",
        };
        Self::new(ConditionType::Approved, ConditionStatus::True, reason, message)
    }

    /// People are asked.
    pub fn unapproved(message: impl Into<String>) -> Self {
        let reason = ActiveReason::PendingApproval.as_str();
        Self::new(ConditionType::Approved, ConditionStatus::Unknown, reason, message)
    }

    /// The request is refused.
    pub fn denied(reason: DenyReason, message: impl Into<String>) -> Self {
        Self::new(ConditionType::Denied, ConditionStatus::True, reason.as_str(), message)
    }

    /// Access is possible now.
    pub fn active(message: impl Into<String>) -> Self {
        Self::new(ConditionType::Active, ConditionStatus::True, ActiveReason::Granted.as_str(), message)
    }

    /// Access is being taken back, and may still be possible.
    pub fn revocation_pending(message: impl Into<String>) -> Self {
        Self::new(ConditionType::Active, ConditionStatus::True, ActiveReason::RevocationPending.as_str(), message)
    }

    /// Access is not possible now.
    pub fn inactive(reason: ActiveReason, message: impl Into<String>) -> Self {
        Self::new(ConditionType::Active, ConditionStatus::False, reason.as_str(), message)
    }

    /// The request is over.
    pub fn ended(reason: EndReason, message: impl Into<String>) -> Self {
        Self::new(ConditionType::Ended, ConditionStatus::True, reason.active().as_str(), message)
    }

    /// The operator is at work, or waits.
    pub fn reconciling(reason: ActiveReason, message: impl Into<String>) -> Self {
        Self::new(ConditionType::Reconciling, ConditionStatus::True, reason.as_str(), message)
    }

    /// The request is not over: said once access is possible, so that `Ended` can be waited for either way.
    pub fn not_ended() -> Self {
        let reason = ActiveReason::Granted.as_str();
        Self::new(ConditionType::Ended, ConditionStatus::False, reason, "the grant lives")
    }

    /// Somebody must act.
    pub fn stalled(reason: ActiveReason, message: impl Into<String>) -> Self {
        Self::new(ConditionType::Stalled, ConditionStatus::True, reason.as_str(), message)
    }

    /// A policy is in force.
    pub fn policy_ready(message: impl Into<String>) -> Self {
        Self::new(ConditionType::Ready, ConditionStatus::True, "Understood", message)
    }

    /// A policy has a mistake.
    pub fn policy_not_ready(reason: &'static str, message: impl Into<String>) -> Self {
        Self::new(ConditionType::Ready, ConditionStatus::False, reason, message)
    }
}

/// Returns the condition of this type, if it is there.
pub fn find(conditions: &[Condition], type_: ConditionType) -> Option<&Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// Whether the condition of this type is there and True.
pub fn is_true(conditions: &[Condition], type_: ConditionType) -> bool {
    find(conditions, type_).is_some_and(|condition| condition.status == ConditionStatus::True)
}

/// Sets a condition; keeps `lastTransitionTime` unless the status flips.
pub fn set(conditions: &mut Vec<Condition>, saying: Saying, generation: i64, now: Timestamp) {
    let Saying { type_, status, reason, message } = saying;
    let message = bounded(message, MESSAGE_LENGTH_MAX);
    match conditions.iter_mut().find(|condition| condition.type_ == type_) {
        Some(condition) => {
            if condition.status != status {
                condition.status = status;
                condition.last_transition_time = Time(whole_second(now));
            }
            if condition.reason != reason {
                condition.reason = reason.to_owned();
            }
            condition.message = message;
            condition.observed_generation = generation;
        }
        None => conditions.push(Condition {
            type_,
            status,
            reason: reason.to_owned(),
            message,
            observed_generation: generation,
            last_transition_time: Time(whole_second(now)),
        }),
    }
}

/// Drops a condition that has nothing more to say. `Approved`, `Denied` and `Ended` stay for ever.
pub fn drop(conditions: &mut Vec<Condition>, type_: ConditionType) {
    conditions.retain(|condition| condition.type_ != type_);
}

/// The reason of `Active`, the STATUS column, if it is set.
pub fn active_reason(status: &InstanceAccessStatus) -> Option<&str> {
    find(&status.conditions, ConditionType::Active).map(|condition| condition.reason.as_str())
}

/// Cuts a text at a character's edge, so that it is at most that many bytes.
pub fn bounded_bytes(mut text: String, bytes_max: usize) -> String {
    if text.len() > bytes_max {
        text.truncate(text.floor_char_boundary(bytes_max.saturating_sub('…'.len_utf8())));
        text.push('…');
    }
    text
}

/// Cuts a text at a character's edge, so that it fits a bound of the CRD.
pub fn bounded(mut text: String, length_max: usize) -> String {
    if text.chars().count() > length_max {
        text = text.chars().take(length_max.saturating_sub(1)).collect();
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests;
