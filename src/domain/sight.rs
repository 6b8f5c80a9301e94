//! What this process saw of one request since it started: the facts that status does not keep.
//!
//! All of it may be lost in a crash; `lifecycle` then assumes the worst. The shell tells it what happened, in the words
//! of the methods; what follows from it is judged here. It serialises so that it can lie packed in memory, nowhere else.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::cloud::{Endpoint, Failure, FailureClass, Instance};
use super::condition::bounded;
use super::push::{KEY_WINDOW, PUSH_TIMEOUT};
use super::time::plus;

/// The bound of `status.key.lastRequestId`: a longer one would keep every later status from being stored, the end's too.
const REQUEST_ID_LENGTH_MAX: usize = 128;

/// What this process saw of one request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sight {
    /// When this process began to lead (not when it started: a standby may be older than the grant): of pushes before,
    /// it knows nothing. Everything that another process sent had left by then.
    pub since_time: Timestamp,
    /// The instances that the target matched.
    pub instances: Look<Vec<Arc<Instance>>>,
    /// The endpoints of the instance's VPC.
    pub endpoints: Look<Vec<Endpoint>>,
    /// The pushes of the grant.
    pub push: PushSight,
    /// When the audit trail last refused a record that this request needed.
    pub audit_failed_time: Option<Timestamp>,
    /// Since when neither revocations nor policies are heard of: the API server, or its watches, are out of reach.
    pub contact_lost_time: Option<Timestamp>,
}

/// A look-up that is repeated: what it last found, and how it last failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Look<T> {
    under_way: bool,
    seen: Option<(Timestamp, T)>,
    failure: Option<(Timestamp, Failure)>,
    failures: u32,
}

/// The pushes of one grant, as far as this process made them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PushSight {
    under_way: Option<Timestamp>,
    landed_time: Option<Timestamp>,
    first_request_id: Option<String>,
    request_id: Option<String>,
    landed: i32,
    failure: Option<(Timestamp, Failure)>,
    failures: u32,
    readable_until: Option<Timestamp>,
}

impl Sight {
    /// Nothing was seen yet.
    pub fn new(since_time: Timestamp) -> Self {
        Self {
            since_time,
            instances: Look::default(),
            endpoints: Look::default(),
            push: PushSight::default(),
            audit_failed_time: None,
            contact_lost_time: None,
        }
    }
}

impl<T> Default for Look<T> {
    fn default() -> Self {
        Self { under_way: false, seen: None, failure: None, failures: 0 }
    }
}

impl<T> Look<T> {
    /// The look-up was sent.
    pub fn started(&mut self) {
        self.under_way = true;
    }

    /// The look-up came back.
    pub fn answered(&mut self, now: Timestamp, answer: Result<T, Failure>) {
        self.under_way = false;
        match answer {
            Ok(found) => {
                self.seen = Some((now, found));
                self.failure = None;
                self.failures = 0;
            }
            Err(failure) => {
                self.failure = Some((now, failure));
                self.failures = self.failures.saturating_add(1);
            }
        }
    }

    /// Whether an answer is being waited for.
    pub fn is_under_way(&self) -> bool {
        self.under_way
    }

    /// What was last found, and when.
    pub fn seen(&self) -> Option<(Timestamp, &T)> {
        self.seen.as_ref().map(|(time, found)| (*time, found))
    }

    /// How it failed since it last succeeded: when, why, and how often in a row.
    pub fn failure(&self) -> Option<(Timestamp, &Failure, u32)> {
        self.failure.as_ref().map(|(time, failure)| (*time, failure, self.failures))
    }
}

impl PushSight {
    /// A push is handed over; from here on the key may land at any moment.
    pub fn started(&mut self, now: Timestamp) {
        self.under_way = Some(now);
    }

    /// The push landed.
    pub fn landed(&mut self, now: Timestamp, request_id: String) {
        self.under_way = None;
        self.landed_time = Some(now);
        let request_id = bounded(request_id, REQUEST_ID_LENGTH_MAX);
        self.first_request_id.get_or_insert_with(|| request_id.clone());
        self.request_id = Some(request_id);
        self.landed = self.landed.saturating_add(1);
        self.failure = None;
        self.failures = 0;
        self.readable(plus(now, KEY_WINDOW));
    }

    /// The push failed. If AWS answered, no key landed; if nobody answered, one may have.
    pub fn failed(&mut self, now: Timestamp, failure: Failure, answered: bool) {
        self.under_way = None;
        if !answered {
            self.readable(plus(plus(now, PUSH_TIMEOUT), KEY_WINDOW));
        }
        self.failure = Some((now, failure));
        self.failures = self.failures.saturating_add(1);
    }

    /// The push was not sent: it was too late, or it was called back while it waited its turn.
    pub fn unsent(&mut self) {
        self.under_way = None;
    }

    /// The push was called back, and nobody knows whether it had been sent.
    pub fn stopped(&mut self, now: Timestamp) {
        if self.under_way.take().is_some() {
            self.readable(plus(plus(now, PUSH_TIMEOUT), KEY_WINDOW));
        }
    }

    fn readable(&mut self, until: Timestamp) {
        self.readable_until = self.readable_until.max(Some(until));
    }

    /// Whether a push waits or flies.
    pub fn is_under_way(&self) -> bool {
        self.under_way.is_some()
    }

    /// When the newest push landed.
    pub fn landed_time(&self) -> Option<Timestamp> {
        self.landed_time
    }

    /// The request id of the first push that this process landed.
    pub fn first_request_id(&self) -> Option<&str> {
        self.first_request_id.as_deref()
    }

    /// The request id of the newest landed push.
    pub fn request_id(&self) -> Option<&str> {
        self.request_id.as_deref()
    }

    /// How many pushes landed.
    pub fn landed_count(&self) -> i32 {
        self.landed
    }

    /// How it failed since it last landed: when, why, and how often in a row.
    pub fn failure(&self) -> Option<(Timestamp, &Failure, u32)> {
        self.failure.as_ref().map(|(time, failure)| (*time, failure, self.failures))
    }

    /// Until when the host may be able to read a key that this process pushed; none if it pushed none.
    pub fn readable_until(&self) -> Option<Timestamp> {
        self.readable_until
    }
}

/// Whether a failed call was answered by AWS: if so, it had no effect.
pub fn was_answered(failure: &Failure) -> bool {
    match failure.class {
        FailureClass::Throttled | FailureClass::Refused | FailureClass::Invalid | FailureClass::Gone => true,
        // A 5xx says nothing of what was done before it; neither does silence.
        FailureClass::Retry | FailureClass::Bug => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn failure(class: FailureClass) -> Failure {
        Failure { class, code: "X".into(), message: "x".into() }
    }

    #[test]
    fn a_key_is_readable_for_a_minute_after_the_last_push_that_may_have_landed() {
        let mut push = PushSight::default();
        assert_eq!(push.readable_until(), None);
        push.started(at(0));
        assert_eq!(push.readable_until(), None, "what waits is not there yet");
        push.unsent();
        assert_eq!((push.readable_until(), push.is_under_way()), (None, false));
        push.started(at(1));
        push.failed(at(2), failure(FailureClass::Throttled), true);
        assert_eq!(push.readable_until(), None, "AWS said no");
        push.started(at(3));
        push.landed(at(5), "a".into());
        assert_eq!(push.readable_until(), Some(at(65)));
        push.started(at(6));
        push.failed(at(16), failure(FailureClass::Retry), false);
        assert_eq!(push.readable_until(), Some(at(86)), "it may land still");
        push.started(at(17));
        push.landed(at(18), "b".into());
        assert_eq!(push.readable_until(), Some(at(86)), "an earlier bound does not shorten a later one");
        push.started(at(30));
        push.stopped(at(31));
        assert_eq!((push.readable_until(), push.is_under_way()), (Some(at(101)), false));
        push.stopped(at(90));
        assert_eq!(push.readable_until(), Some(at(101)), "nothing was under way");
    }

    #[test]
    fn a_landing_forgets_failures_and_keeps_the_first_request_id() {
        let mut push = PushSight::default();
        push.failed(at(0), failure(FailureClass::Bug), false);
        push.failed(at(1), failure(FailureClass::Bug), false);
        assert_eq!(push.failure().map(|(time, _, count)| (time, count)), Some((at(1), 2)));
        push.landed(at(2), "a".into());
        push.landed(at(3), "b".repeat(1000));
        assert!(push.failure().is_none());
        assert_eq!((push.landed_count(), push.first_request_id(), push.landed_time()), (2, Some("a"), Some(at(3))));
        assert_eq!(push.request_id().unwrap().chars().count(), 128, "the CRD's bound");
    }

    #[test]
    fn a_look_keeps_what_it_found_through_failures() {
        let mut look = Look::default();
        look.started();
        assert!(look.is_under_way());
        look.answered(at(0), Ok(7));
        look.started();
        look.answered(at(1), Err(failure(FailureClass::Retry)));
        look.answered(at(2), Err(failure(FailureClass::Retry)));
        assert_eq!(look.seen(), Some((at(0), &7)));
        assert_eq!(look.failure().map(|(time, _, count)| (time, count)), Some((at(2), 2)));
        look.answered(at(3), Ok(8));
        assert_eq!((look.seen(), look.failure().is_some(), look.is_under_way()), (Some((at(3), &8)), false, false));
    }

    #[test]
    fn only_a_clear_no_proves_that_nothing_landed() {
        for (class, answered) in [
            (FailureClass::Throttled, true),
            (FailureClass::Refused, true),
            (FailureClass::Invalid, true),
            (FailureClass::Gone, true),
            (FailureClass::Retry, false),
            (FailureClass::Bug, false),
        ] {
            assert_eq!(was_answered(&failure(class)), answered, "{class:?}");
        }
    }
}
