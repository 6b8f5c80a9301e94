//! The watch over requests, and whether the API server is heard.
//!
//! Who hears nothing of a revocation must let nobody new in. A watch that is silent may be quiet or cut off, and does not
//! say which: so a small question is asked now and then, and for a while after the watch failed, answers to it count for
//! nothing. One that was resumed and is quiet says nothing either: so the time of its last failure tells.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use kube::Api;
use kube::api::ListParams;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::Event;

use crate::api::InstanceAccess;
use crate::domain::hearing::Failing;
use crate::domain::session::{fading, standing};
use crate::domain::time::is_fresh;
use crate::kubernetes::watched::Watched;
use crate::kubernetes::{History, watch_config};
use crate::telemetry::chain;

use super::Shared;
use super::grants::Uid;

/// The longest gap between two questions, whatever the limit of silence.
const INTERVAL_MAX: Duration = Duration::from_secs(10);
/// Since when the API server is heard.
#[derive(Debug)]
pub struct Contact {
    /// Whether the API server still has the history that it told.
    history: History,
    heard_time: Mutex<Timestamp>,
    failing: Mutex<Option<Failing>>,
    listed: AtomicBool,
    silence_max: Duration,
}

/// Why no session is opened: the gateway's view may be old.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsure {
    /// It has not read all requests yet.
    #[error("the gateway has not read the grants yet; try again in a moment")]
    NotListed,
    /// It does not hear the API server.
    #[error(
        "the gateway has not heard the API server since {since}, and opens no session meanwhile; try again, or tell the operators"
    )]
    Silent {
        /// Since when.
        since: Timestamp,
    },
}

impl Contact {
    /// Nothing was heard yet.
    pub fn new(silence_max: Duration) -> Self {
        Self {
            history: History::default(),
            heard_time: Mutex::new(Timestamp::MIN),
            failing: Mutex::new(None),
            listed: AtomicBool::new(false),
            silence_max,
        }
    }

    /// Whether what is known may be acted upon. A clock that was stepped back is no contact until the next answer.
    ///
    /// # Errors
    /// An [`Unsure`] says why not.
    pub fn is_sure(&self, now: Timestamp) -> Result<(), Unsure> {
        if !self.listed.load(Ordering::Acquire) {
            return Err(Unsure::NotListed);
        }
        let since = *self.heard_time.lock().unwrap_or_else(PoisonError::into_inner);
        if is_fresh(now, since, self.silence_max) { Ok(()) } else { Err(Unsure::Silent { since }) }
    }

    fn failing(&self) -> MutexGuard<'_, Option<Failing>> {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn heard(&self, now: Timestamp) {
        if self.failing().is_none_or(|failing| !failing.is_deaf(now)) {
            *self.heard_time.lock().unwrap_or_else(PoisonError::into_inner) = now;
        }
    }

    fn watch_heard(&self, now: Timestamp) {
        *self.failing() = None;
        self.heard(now);
    }

    fn watch_failed(&self, now: Timestamp) {
        let mut failing = self.failing();
        *failing = Some(Failing::again(*failing, now));
    }

    fn watch_lists(&self) {
        if let Some(failing) = &mut *self.failing() {
            failing.lists = true;
        }
    }
}

/// Takes in what happens to requests, for as long as it is awaited.
pub async fn watch_requests(shared: Arc<Shared>) {
    let api: Api<Watched<InstanceAccess>> = Api::all(shared.client.clone());
    let mut stream = std::pin::pin!(shared.contact.history.watch(api, watch_config()));
    // The uids of the list that is being read, to find out who vanished while we did not watch.
    let mut listed: HashSet<Uid> = HashSet::new();
    while let Some(event) = stream.next().await {
        let now = (shared.clock)();
        match event {
            Ok(Event::Init) => {
                listed.clear();
                shared.contact.watch_lists();
            }
            Ok(Event::InitApply(object)) => {
                if let Some(uid) = see(&shared, &object, now) {
                    listed.insert(uid);
                }
            }
            Ok(Event::InitDone) => {
                shared.reporter.listed(&listed);
                shared.grants.listed(&std::mem::take(&mut listed), now);
                shared.contact.watch_heard(now);
                shared.contact.listed.store(true, Ordering::Release);
            }
            Ok(Event::Apply(object)) => {
                see(&shared, &object, now);
                shared.contact.watch_heard(now);
            }
            Ok(Event::Delete(object)) => {
                if let Some(uid) = &object.metadata.uid {
                    shared.grants.gone(uid, now);
                    shared.reporter.gone(uid);
                }
                shared.contact.watch_heard(now);
            }
            Err(error) => {
                shared.contact.watch_failed(now);
                shared.metrics.watch_errors.inc();
                tracing::warn!(error = chain(&error), "the watch over requests broke, trying again");
            }
        }
        shared.metrics.grants.set(i64::try_from(shared.grants.len()).unwrap_or(i64::MAX));
    }
}

fn see(shared: &Shared, object: &Watched<InstanceAccess>, now: Timestamp) -> Option<Uid> {
    let uid: Uid = object.metadata.uid.as_deref()?.into();
    let is_deleted = object.metadata.deletion_timestamp.is_some();
    match object.decode() {
        Ok(request) => {
            shared.grants.see(&uid, standing(&request), now);
            if let Some(fading) = fading(now, &request) {
                shared.grants.fade(&uid, fading, now);
            }
            shared.reporter.see(&request);
        }
        Err(error) => {
            // That it was deleted can be read all the same.
            if is_deleted {
                shared.grants.gone(&uid, now);
            } else {
                shared.grants.undecodable(&uid, now);
            }
            shared.metrics.undecodable.inc();
            tracing::error!(
                uid = &*uid,
                error = chain(&error),
                "a request cannot be decoded; is the CRD of another version?"
            );
        }
    }
    Some(uid)
}

/// Asks the API server now and then, for as long as it is awaited.
pub async fn keep_contact(shared: Arc<Shared>) {
    let api: Api<PartialObjectMeta<InstanceAccess>> = Api::all(shared.client.clone());
    let gap = (shared.contact.silence_max / 3).min(INTERVAL_MAX);
    let mut interval = tokio::time::interval(gap);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut was_sure = false;
    loop {
        interval.tick().await;
        // A list, since that is the right which a watch needs; of one, and by a quorum, since that is the truth. It counts
        // from when it was asked.
        let asked_time = (shared.clock)();
        let one = ListParams::default().limit(1);
        let asked = api.list_metadata(&one);
        if let Ok(Ok(list)) = tokio::time::timeout(gap, asked).await {
            if shared.contact.history.is_undone(list.metadata.resource_version.as_deref()) {
                tracing::error!(
                    "the API server has gone back to an older state, as after etcd was restored from a copy; everything is read again"
                );
                shared.contact.history.begin_anew();
            }
            shared.contact.heard(asked_time);
        }
        let is_sure = shared.contact.is_sure((shared.clock)()).is_ok();
        if was_sure && !is_sure {
            tracing::warn!("the API server is not heard; no session is opened, and open ones run to their end");
        } else if is_sure && !was_sure {
            tracing::info!("the API server is heard");
        }
        was_sure = is_sure;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn nobody_new_comes_in_before_the_first_list_or_after_a_long_silence_or_while_the_watch_fails() {
        let contact = Contact::new(Duration::from_secs(60));
        contact.heard(at(0));
        assert_eq!(contact.is_sure(at(1)), Err(Unsure::NotListed));
        contact.listed.store(true, Ordering::Release);
        assert_eq!(contact.is_sure(at(60)), Ok(()));
        assert_eq!(contact.is_sure(at(61)), Err(Unsure::Silent { since: at(0) }));
        contact.watch_failed(at(58));
        contact.heard(at(60));
        assert_eq!(contact.is_sure(at(61)), Err(Unsure::Silent { since: at(0) }), "the watch is deaf");
        contact.watch_heard(at(62));
        assert_eq!(contact.is_sure(at(63)), Ok(()));
        assert_eq!(contact.is_sure(at(10)), Err(Unsure::Silent { since: at(62) }), "a clock that was stepped back");
    }

    #[test]
    fn a_watch_that_failed_once_and_is_quiet_since_is_not_deaf_for_ever() {
        let contact = Contact::new(Duration::from_secs(60));
        contact.listed.store(true, Ordering::Release);
        contact.watch_heard(at(0));
        contact.watch_failed(at(10));
        for second in (20..=50).step_by(10) {
            contact.heard(at(second));
        }
        assert_eq!(contact.is_sure(at(61)), Err(Unsure::Silent { since: at(0) }), "it may be trying in vain");
        contact.heard(at(60));
        assert_eq!(contact.is_sure(at(61)), Ok(()), "it would have failed again by now");
        // One that goes on to fail is deaf for as long as it does.
        for second in (70..=200).step_by(10) {
            if second % 30 == 10 {
                contact.watch_failed(at(second));
            }
            contact.heard(at(second));
        }
        assert_eq!(contact.is_sure(at(200)), Err(Unsure::Silent { since: at(60) }));
    }
}
