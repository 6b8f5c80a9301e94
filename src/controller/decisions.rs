//! The watch over people's decisions, and the decisions by request: pruned, bounded, and each waking its request alone.
//!
//! ```text
//! decision ─▶ of nobody, of no use to any request? ─▶ dropped
//!         └─▶ its request is not known (yet) ───────▶ kept for a minute, a thousand at most
//!         └─▶ may count ────────────────────────────▶ kept with its request, until that is over; the request is woken
//! ```
//! Which may count is decided in `domain`. What was not kept for want of room, because no policy named its author, or
//! because its request was not known for too long, comes back with the next list, which is read when that changes.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use kube::Api;
use kube::core::DeserializeGuard;
use kube::runtime::utils::StreamBackoff;
use kube::runtime::watcher::{self, Event, watcher};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::api::InstanceAccessDecision;
use crate::domain::approvals::{Decision, Decisions, Parties, may_count};
use crate::domain::lifecycle::is_over;
use crate::domain::policy::PolicySet;
use crate::domain::time::is_fresh;
use crate::telemetry::chain;

use super::Shared;
use super::contact::Watch;
use super::turn::{wake, wake_all};
use super::watch::config;

/// Gap between two sweeps of decisions that are of no use any more.
const SWEEP_INTERVAL: Duration = Duration::from_secs(15);
/// How long a decision may wait for its request: two watches of one API server are seconds apart, not minutes.
const ORPHAN_AGE_MAX: Duration = Duration::from_secs(60);
/// The most decisions that wait for their requests. When full, further ones are dropped, and the list is read again.
const ORPHANS_MAX: usize = 1024;

/// A request, as a decision names it.
type Key = (String, Arc<str>);

/// The decisions of the cluster that may count.
pub struct Index {
    kept: Mutex<Kept>,
    /// What a request reads before the first list, and what one without decisions.
    unseen: Arc<Decisions>,
    none: Arc<Decisions>,
    relist: Notify,
}

#[derive(Default)]
struct Kept {
    seen: bool,
    by_request: HashMap<Key, Arc<Decisions>>,
    orphans: usize,
    overflowed: bool,
}

/// What is known of the request that a decision is about.
enum Request {
    /// It is asked by these, or for them.
    Open(Option<Parties>),
    /// Nothing is judged any more.
    Over,
    /// It is not known, or not yet.
    Unknown,
}

impl Default for Index {
    fn default() -> Self {
        Self {
            kept: Mutex::default(),
            unseen: Arc::new(Decisions::default()),
            none: Arc::new(Decisions::none()),
            relist: Notify::new(),
        }
    }
}

impl Index {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The decisions about a request; the same pointer until they change.
    pub fn of(&self, namespace: &str, uid: &Arc<str>) -> Arc<Decisions> {
        let kept = self.lock();
        if !kept.seen {
            return Arc::clone(&self.unseen);
        }
        // Few requests have any: without them there is nothing to hash.
        if kept.by_request.is_empty() {
            return Arc::clone(&self.none);
        }
        let key = (namespace.to_owned(), Arc::clone(uid));
        Arc::clone(kept.by_request.get(&key).unwrap_or(&self.none))
    }

    /// How many are kept.
    pub fn len(&self) -> usize {
        self.lock().by_request.values().map(|decisions| decisions.len()).sum()
    }

    /// Reads the list again: requests came to be known that were not when their decisions were heard and dropped.
    pub fn requests_listed(&self) {
        // Before the first list, it is to come.
        if self.lock().seen {
            self.relist.notify_one();
        }
    }

    /// Reads the list again, if there are approvers whose word was of no use before.
    pub fn policies_changed(&self, before: &PolicySet, after: &PolicySet) {
        let names = |set: &PolicySet| -> BTreeSet<String> { set.approvers().map(|it| format!("{it:?}")).collect() };
        if before.is_seen() && !names(after).is_subset(&names(before)) {
            self.relist.notify_one();
        }
    }
}

/// Takes in what happens to decisions, until it is stopped.
///
/// Begins when requests and policies are known: by then it can be told which decisions may count.
pub async fn watch_decisions(shared: Arc<Shared>, stop: CancellationToken) {
    let (mut requests, mut policies) =
        (shared.health.requests_listed.subscribe(), shared.health.policies_listed.subscribe());
    tokio::select! {
        () = stop.cancelled() => return,
        // The senders live as long as we do.
        _ = async { let _ = requests.wait_for(|listed| *listed).await; policies.wait_for(|listed| *listed).await.is_ok() } => {}
    }
    let mut sweeps = tokio::time::interval(SWEEP_INTERVAL);
    sweeps.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let api: Api<DeserializeGuard<InstanceAccessDecision>> = Api::all(shared.client.clone());
        let stream = watcher(api, config());
        let mut stream = std::pin::pin!(StreamBackoff::new(stream, watcher::DefaultBackoff::default()));
        let mut listing: Option<Kept> = None;
        loop {
            let event = tokio::select! {
                () = stop.cancelled() => return,
                () = shared.decisions.relist.notified() => break,
                _ = sweeps.tick() => {
                    sweep(&shared);
                    continue;
                }
                event = stream.next() => event,
            };
            match event {
                Some(Ok(event)) => see(&shared, event, &mut listing),
                Some(Err(error)) => {
                    shared.contact.watch_failed(Watch::Decisions, (shared.clock)());
                    shared.metrics.count_watch_error("instanceaccessdecisions");
                    tracing::warn!(error = chain(&error), "the watch over decisions broke, trying again");
                }
                None => return,
            }
        }
    }
}

fn see(shared: &Arc<Shared>, event: Event<DeserializeGuard<InstanceAccessDecision>>, listing: &mut Option<Kept>) {
    match event {
        Event::Init => *listing = Some(Kept::default()),
        Event::InitApply(object) => {
            if let (Some(listing), Some(Read { key, decision: Some(decision), .. })) =
                (listing.as_mut(), read(shared, object))
            {
                let about = request(shared, &key);
                keep(shared, listing, key, decision, &about);
            }
        }
        Event::InitDone => {
            shared.contact.watch_heard(Watch::Decisions);
            let Some(mut listed) = listing.take() else { return };
            listed.seen = true;
            let before = std::mem::replace(&mut *shared.decisions.lock(), listed);
            if before.seen {
                let after: Vec<Key> = shared.decisions.lock().by_request.keys().cloned().collect();
                before.by_request.keys().chain(&after).for_each(|(_, uid)| wake_request(shared, uid));
            } else {
                shared.health.decisions_listed.send_replace(true);
                wake_all(shared);
            }
        }
        Event::Apply(object) => {
            shared.contact.watch_heard(Watch::Decisions);
            let Some(Read { key, uid, decision }) = read(shared, object) else { return };
            let Some(decision) = decision else { return forget(shared, &key, &uid) };
            let request_uid = Arc::clone(&key.1);
            // The request is looked at without the index in hand: a turn takes them the other way round.
            let about = request(shared, &key);
            if keep(shared, &mut shared.decisions.lock(), key, decision, &about) {
                wake_request(shared, &request_uid);
            }
        }
        Event::Delete(object) => {
            shared.contact.watch_heard(Watch::Decisions);
            let (metadata, uid) = match object.0 {
                Ok(object) => (object.metadata, Some(object.spec.request_ref.uid)),
                Err(invalid) => (invalid.metadata, None),
            };
            let decision_uid = metadata.uid.unwrap_or_default();
            shared.metrics.decodable(&decision_uid);
            if let (Some(uid), Some(namespace)) = (uid, metadata.namespace) {
                forget(shared, &(namespace, uid.into()), &decision_uid);
            }
        }
    }
}

/// An object, as far as it is of use.
struct Read {
    /// The request that it is about.
    key: Key,
    /// Its own uid.
    uid: String,
    /// What it says; none, if it counts for nothing (any more).
    decision: Option<Decision>,
}

fn read(shared: &Shared, object: DeserializeGuard<InstanceAccessDecision>) -> Option<Read> {
    match object.0 {
        Ok(object) => {
            let decision = Decision::read(&object, &shared.settings.principals);
            let uid = object.metadata.uid?;
            shared.metrics.decodable(&uid);
            let key = (object.metadata.namespace?, object.spec.request_ref.uid.into());
            Some(Read { key, uid, decision })
        }
        Err(invalid) => {
            shared.metrics.undecodable(invalid.metadata.uid.as_deref().unwrap_or_default());
            tracing::error!(
                namespace = invalid.metadata.namespace,
                name = invalid.metadata.name,
                error = invalid.error,
                "a decision cannot be decoded and does not count; is the CRD of another version?"
            );
            None
        }
    }
}

fn request(shared: &Shared, (namespace, uid): &Key) -> Request {
    let Some(slot) = shared.slots.find(uid) else { return Request::Unknown };
    let object = slot.lock().kept.read();
    if is_over(&object) {
        return Request::Over;
    }
    // Its uid in another namespace is no word about it.
    if object.metadata.namespace.as_ref() != Some(namespace) {
        return Request::Over;
    }
    Request::Open(Parties::of(&shared.settings.principals, &object.spec))
}

/// Keeps a decision if it may count; true if that changes what its request reads.
fn keep(shared: &Shared, kept: &mut Kept, key: Key, decision: Decision, about: &Request) -> bool {
    let parties = match about {
        Request::Over => return false,
        Request::Open(parties) => parties.as_ref(),
        Request::Unknown => {
            if !is_fresh((shared.clock)(), decision.time, ORPHAN_AGE_MAX) {
                return false;
            }
            None
        }
    };
    let is_unknown = matches!(about, Request::Unknown);
    if !may_count(&decision, parties, is_unknown, shared.policies().approvers()) {
        return false;
    }
    if is_unknown {
        if kept.orphans >= ORPHANS_MAX {
            kept.overflowed = true;
            return false;
        }
        kept.orphans += 1;
    }
    let decisions = kept.by_request.entry(key).or_insert_with(|| Arc::clone(&shared.decisions.none));
    Arc::make_mut(decisions).take(Arc::new(decision))
}

fn forget(shared: &Arc<Shared>, key: &Key, decision_uid: &str) {
    let mut kept = shared.decisions.lock();
    let Some(decisions) = kept.by_request.get_mut(key) else { return };
    if !Arc::make_mut(decisions).forget(decision_uid) {
        return;
    }
    // What stood behind it in the queue is not known here: the next sweep has the list read again.
    let was_full = decisions.is_overflowed();
    if decisions.is_empty() {
        kept.by_request.remove(key);
    }
    kept.overflowed |= was_full;
    drop(kept);
    wake_request(shared, &key.1);
}

/// Drops what no request reads any more; reads the list again, if something was dropped for want of room.
fn sweep(shared: &Shared) {
    let now: Timestamp = (shared.clock)();
    let keys: Vec<Key> = shared.decisions.lock().by_request.keys().cloned().collect();
    let mut orphans = 0;
    for key in keys {
        let is_kept = match request(shared, &key) {
            Request::Over => false,
            Request::Open(_) => true,
            Request::Unknown => {
                let kept = shared.decisions.lock();
                let waiting = kept.by_request.get(&key);
                let is_waited_for =
                    waiting.is_some_and(|waiting| waiting.iter().any(|it| is_fresh(now, it.time, ORPHAN_AGE_MAX)));
                orphans += waiting.filter(|_| is_waited_for).map_or(0, |waiting| waiting.len());
                is_waited_for
            }
        };
        if !is_kept {
            shared.decisions.lock().by_request.remove(&key);
        }
    }
    let mut kept = shared.decisions.lock();
    kept.orphans = orphans;
    if std::mem::take(&mut kept.overflowed) {
        shared.decisions.relist.notify_one();
    }
}

fn wake_request(shared: &Arc<Shared>, uid: &str) {
    if let Some(slot) = shared.slots.find(uid) {
        wake(shared, &slot);
    }
}
