//! Whether the API server is heard: who hears nothing of a revocation must not go on pushing.
//!
//! A watch that is silent may be quiet or cut off, and does not say which. So a small question is asked now and then,
//! and a watch that fails again and again counts as deaf although questions are answered (its right may be gone).

use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::Stream;
use jiff::Timestamp;
use kube::api::ListParams;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::watch as signal;
use tokio_util::sync::CancellationToken;

use crate::api::InstanceAccess;
use crate::domain::hearing::{Failing, Listed, Rereading};
use crate::domain::time::is_fresh;
use crate::kubernetes::{History, watch_anew};

use super::Shared;
use super::turn::wake_all;

/// Gap between two questions.
const INTERVAL: Duration = Duration::from_secs(15);
/// Gap after one that was not answered: who comes back may have forgotten something, and is asked soon.
const RETRY: Duration = Duration::from_secs(2);
/// The longest that one may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Age from which the last answer is no sign of contact: one question and its answer, and a little.
const ANSWER_AGE_MAX: Duration = Duration::from_secs(30);

/// What was heard when.
#[derive(Debug)]
pub struct Contact {
    /// Whether the API server still has the history that it told.
    pub history: History,
    heard: Mutex<Heard>,
    policies_anew: signal::Sender<u64>,
    decisions_anew: signal::Sender<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Heard {
    answer_time: Timestamp,
    failing: [Option<Failing>; 3],
    rereading: Rereading,
}

impl Contact {
    /// Counts the start as contact.
    pub fn new(now: Timestamp) -> Self {
        let heard = Heard { answer_time: now, failing: [None; 3], rereading: Rereading::default() };
        Self {
            history: History::default(),
            heard: Mutex::new(heard),
            policies_anew: signal::Sender::default(),
            decisions_anew: signal::Sender::default(),
        }
    }

    fn with<T>(&self, change: impl FnOnce(&mut Heard) -> T) -> T {
        change(&mut self.heard.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Watches, with a back-off after each failure; policies and decisions begin anew when requests did, requests when
    /// history was undone.
    pub fn watch<K>(
        &self,
        watch: Listed,
        api: Api<K>,
        config: watcher::Config,
    ) -> impl Stream<Item = watcher::Result<Event<K>>> + use<K>
    where
        K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    {
        let anew = match watch {
            Listed::Requests => self.history.undone(),
            Listed::Policies => self.policies_anew.subscribe(),
            Listed::Decisions => self.decisions_anew.subscribe(),
        };
        watch_anew(api, config, anew)
    }

    /// Requests are read anew, and so is all that they are judged by.
    pub fn begin_rereading(&self, now: Timestamp) {
        self.with(|heard| heard.rereading.begins(now));
        self.policies_anew.send_modify(|times| *times += 1);
        tracing::info!(
            "requests are read anew, and policies and decisions with them; nothing is granted before all are"
        );
    }

    /// Decisions are read anew, since there are policies by which others of them count.
    pub fn begin_rereading_decisions(&self, now: Timestamp) {
        let (is_new, reads) =
            self.with(|heard| (heard.rereading.since_time().is_none(), heard.rereading.begins_with_decisions(now)));
        if is_new {
            tracing::info!(
                "a policy names new approvers, so decisions are read anew; nothing is granted before they are"
            );
        }
        if reads {
            self.decisions_anew.send_modify(|times| *times += 1);
        }
    }

    /// Since when requests, policies and decisions are not all of one history.
    pub fn rereading_since_time(&self) -> Option<Timestamp> {
        self.with(|heard| heard.rereading.since_time())
    }

    /// History was undone: all watches begin anew, and none waits for another to hear what it can.
    fn begin_anew(&self, now: Timestamp) {
        self.begin_rereading(now);
        self.decisions_anew.send_modify(|times| *times += 1);
        self.history.begin_anew();
    }

    /// A watch told something.
    pub fn watch_heard(&self, watch: Listed) {
        self.with(|heard| heard.failing[watch as usize] = None);
    }

    /// A watch has read everything. Returns whether that was the last that requests waited for.
    pub fn watch_listed(&self, watch: Listed) -> bool {
        self.watch_heard(watch);
        let (reads_decisions, is_over) = self.with(|heard| {
            let was_under_way = heard.rereading.since_time().is_some();
            let reads_decisions = heard.rereading.listed(watch);
            (reads_decisions, was_under_way && heard.rereading.since_time().is_none())
        });
        if reads_decisions {
            self.decisions_anew.send_modify(|times| *times += 1);
        }
        if is_over {
            tracing::info!("what was to be read anew was read");
        }
        is_over
    }

    /// A watch failed.
    pub fn watch_failed(&self, watch: Listed, now: Timestamp) {
        self.with(|heard| {
            let failing = &mut heard.failing[watch as usize];
            *failing = Some(Failing::again(*failing, now));
        });
    }

    /// A watch reads everything anew.
    pub fn watch_lists(&self, watch: Listed) {
        self.with(|heard| {
            heard.rereading.lists(watch);
            if let Some(failing) = &mut heard.failing[watch as usize] {
                failing.lists = true;
            }
        });
    }

    fn answered(&self, now: Timestamp) {
        self.with(|heard| heard.answer_time = now);
    }

    /// Since when the API server is not heard; none while it is.
    pub fn lost_time(&self, now: Timestamp) -> Option<Timestamp> {
        let Heard { answer_time, failing, rereading: _ } = self.with(|heard| *heard);
        let unanswered = (!is_fresh(now, answer_time, ANSWER_AGE_MAX)).then_some(answer_time);
        let deaf =
            failing.into_iter().flatten().filter(|failing| failing.is_deaf(now)).map(|failing| failing.since_time);
        deaf.chain(unanswered).min()
    }
}

/// The API server has gone back to an older state: what was heard of it before proves nothing.
pub fn went_back(shared: &Shared) {
    tracing::error!(
        "the API server has gone back to an older state, as after etcd was restored from a copy; everything is read again, and what is known to be over stays so"
    );
    shared.slots.doubt();
    shared.guard.doubt();
    shared.guard.look_soon();
    // Last: from here on the watches bring what is true now.
    shared.contact.begin_anew((shared.clock)());
}

/// Asks the API server now and then, until it is stopped; wakes everybody when it is heard again.
pub async fn keep_contact(shared: Arc<Shared>, stop: CancellationToken) {
    let api: Api<PartialObjectMeta<InstanceAccess>> = Api::all(shared.client.clone());
    let mut was_lost = false;
    let mut rest = Duration::ZERO;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(rest) => {}
        }
        // A list, since that is the right which a watch needs; of one, and by a quorum, since that is the truth.
        let one = ListParams::default().limit(1);
        let asked = api.list_metadata(&one);
        rest = RETRY;
        if let Ok(Ok(list)) = tokio::time::timeout(TIMEOUT, asked).await {
            rest = INTERVAL;
            if shared.contact.history.is_undone(list.metadata.resource_version.as_deref()) {
                went_back(&shared);
            }
            shared.contact.answered((shared.clock)());
        }
        let is_lost = shared.contact.lost_time((shared.clock)()).is_some();
        if was_lost && !is_lost {
            tracing::info!("the API server is heard again");
            wake_all(&shared);
        } else if is_lost && !was_lost {
            tracing::warn!(
                "the API server is not heard; soon nothing is pushed any more, as a revocation would not be heard either"
            );
        }
        was_lost = is_lost;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn silence_is_lost_contact_from_the_last_answer_on() {
        let contact = Contact::new(at(0));
        assert_eq!(contact.lost_time(at(30)), None);
        assert_eq!(contact.lost_time(at(31)), Some(at(0)));
        contact.answered(at(40));
        assert_eq!(contact.lost_time(at(60)), None);
    }

    #[test]
    fn a_watch_that_keeps_failing_is_deaf_although_questions_are_answered() {
        let contact = Contact::new(at(0));
        for second in [10, 20, 30] {
            contact.watch_failed(Listed::Policies, at(second));
            contact.answered(at(second));
        }
        assert_eq!(contact.lost_time(at(35)), Some(at(10)));
        contact.watch_heard(Listed::Policies);
        assert_eq!(contact.lost_time(at(35)), None);
    }

    #[test]
    fn a_watch_that_failed_once_and_is_quiet_since_is_not_deaf() {
        let contact = Contact::new(at(0));
        contact.watch_failed(Listed::Requests, at(10));
        contact.answered(at(60));
        assert_eq!(contact.lost_time(at(60)), None);
    }

    #[test]
    fn a_watch_that_reads_everything_anew_after_a_failure_is_deaf_until_it_has() {
        let contact = Contact::new(at(0));
        contact.watch_lists(Listed::Requests);
        assert_eq!(contact.lost_time(at(20)), None, "the first list is waited for elsewhere");
        contact.watch_failed(Listed::Requests, at(20));
        contact.watch_lists(Listed::Requests);
        contact.answered(at(200));
        assert_eq!(contact.lost_time(at(200)), Some(at(20)));
        contact.watch_heard(Listed::Requests);
        assert_eq!(contact.lost_time(at(200)), None);
    }

    #[test]
    fn policies_are_read_anew_with_requests_and_decisions_after_both() {
        let contact = Contact::new(at(0));
        let anew = [contact.policies_anew.subscribe(), contact.decisions_anew.subscribe()];
        let told = || anew.each_ref().map(|anew| *anew.borrow());
        assert_eq!((contact.rereading_since_time().is_some(), told()), (false, [0, 0]));
        contact.begin_rereading(at(5));
        assert_eq!((contact.rereading_since_time().is_some(), told()), (true, [1, 0]));
        assert!(!contact.watch_listed(Listed::Requests));
        contact.watch_lists(Listed::Policies);
        assert!(!contact.watch_listed(Listed::Policies));
        assert_eq!((contact.rereading_since_time().is_some(), told()), (true, [1, 1]));
        contact.watch_lists(Listed::Decisions);
        assert!(contact.watch_listed(Listed::Decisions), "that was the last");
        assert_eq!((contact.rereading_since_time().is_some(), told()), (false, [1, 1]));
        assert!(!contact.watch_listed(Listed::Decisions), "nobody waited for it");
    }

    #[test]
    fn when_history_was_undone_no_watch_waits_for_another_to_hear_what_it_can() {
        let contact = Contact::new(at(0));
        let undone = contact.history.undone();
        let anew = [contact.policies_anew.subscribe(), contact.decisions_anew.subscribe(), undone];
        contact.begin_anew(at(5));
        assert!(anew.iter().all(|anew| anew.has_changed().unwrap()));
        assert_eq!(contact.rereading_since_time(), Some(at(5)));
    }

    #[test]
    fn a_clock_that_was_stepped_back_is_no_contact_until_the_next_answer() {
        let contact = Contact::new(at(1000));
        assert_eq!(contact.lost_time(at(500)), Some(at(1000)));
    }
}
