//! How a failed call reads in status, and when it is tried again.

use std::time::Duration;

use jiff::Timestamp;

use crate::domain::cloud::{Failure, FailureClass};
use crate::domain::condition::ActiveReason;

use super::{REFRESH_INTERVAL, STALLED_RETRY};

/// How a failed call reads in status: the reason, the text, and whether waiting heals it.
pub(super) fn failure_words(what: &str, failure: &Failure) -> (ActiveReason, String, bool) {
    let Failure { class, code, message } = failure;
    match class {
        FailureClass::Throttled => (
            ActiveReason::Throttled,
            format!("AWS asks to wait before it will {what} ({code}); trying again by itself"),
            true,
        ),
        FailureClass::Retry => (
            ActiveReason::AwsUnavailable,
            format!("AWS did not {what} ({code}: {message}); trying again by itself"),
            true,
        ),
        FailureClass::Bug => (
            ActiveReason::AwsUnavailable,
            format!(
                "AWS did not {what}, for a reason that this version does not know ({code}: {message}); trying again by itself"
            ),
            true,
        ),
        FailureClass::Refused => (
            ActiveReason::AccessDenied,
            format!(
                "AWS does not let the operator {what} ({code}: {message}); an administrator must mend the operator's credentials or IAM policy"
            ),
            false,
        ),
        FailureClass::Invalid => (
            ActiveReason::PushRefused,
            format!("AWS refuses to {what} ({code}: {message}); make a new request without the mistake"),
            false,
        ),
        FailureClass::Gone => (
            ActiveReason::InstanceNotRunning,
            format!("the instance takes no key now ({code}: {message}); trying again by itself"),
            true,
        ),
    }
}

/// How long to wait after the n-th failure in a row: doubling, with a jitter that is fixed for a request, so that a
/// thousand requests that failed together do not come back together, and the plan stays a function of its arguments.
pub(super) fn back_off(class: FailureClass, failures: u32, uid: &str) -> Duration {
    let (first, most) = match class {
        FailureClass::Retry | FailureClass::Gone => (Duration::from_millis(500), Duration::from_secs(15)),
        FailureClass::Throttled => (Duration::from_secs(1), Duration::from_secs(15)),
        FailureClass::Refused | FailureClass::Bug => (Duration::from_secs(15), Duration::from_secs(60)),
        FailureClass::Invalid => (STALLED_RETRY, STALLED_RETRY),
    };
    let doubled = first.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(most);
    let jitter = uid.bytes().fold(failures, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into())) % 50;
    doubled + doubled * jitter / 100
}

/// The slot, of twelve in a minute, in which a target is looked at again: all grants on one instance share it, so that
/// their look-ups are one.
pub(super) fn refresh_time(seen: Timestamp, target: &str) -> Timestamp {
    let period = i64::try_from(REFRESH_INTERVAL.as_secs()).expect("a minute fits");
    let slot = target.bytes().fold(7u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into())) % 12;
    let offset = i64::from(slot) * (period / 12);
    let turn = (seen.as_second() - offset).div_euclid(period) + 1;
    Timestamp::from_second(turn * period + offset).unwrap_or(Timestamp::MAX)
}
