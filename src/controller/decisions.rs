//! The watch over people's decisions, and the decisions by request: pruned, bounded, and each waking its request alone.
//!
//! ```text
//! decision ─▶ of nobody, of no use to any request? ─▶ dropped
//!         └─▶ cannot be decoded, and may be a no ───▶ kept like one that may count: its request is held back
//!         └─▶ its request is not known (yet) ───────▶ kept for a minute, a thousand at most
//!         └─▶ may count ────────────────────────────▶ kept with its request, until that is over; the request is woken
//! ```
//! Which may count is decided in `domain`. What was not kept for want of room, because no policy named its author, or
//! because its request was not known for too long, comes back with the next list. When that is read is decided there, too.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::runtime::watcher::Event;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::api::InstanceAccessDecision;
use crate::domain::approvals::{
    Decision, Decisions, GAP_MIN, ORPHAN_AGE_MAX, Parties, Relist, Unreadable, Why, is_late, may_count, request_uid,
};
use crate::domain::hearing::Listed;
use crate::domain::lifecycle::is_over;
use crate::domain::time::is_fresh;
use crate::kubernetes::watched::Watched;
use crate::telemetry::chain;

use super::Shared;
use super::turn::{wake, wake_all};
use super::watch::config;

/// The most decisions that wait for their requests. When full, further ones are dropped, and the list is read again.
const ORPHANS_MAX: usize = 1024;

/// A request, as a decision names it.
type Key = (String, Arc<str>);

/// The decisions of the cluster that may count.
pub struct Index {
    filed: Mutex<Filed>,
    /// What a request reads before the first list, and what one without decisions.
    unseen: Arc<Decisions>,
    none: Arc<Decisions>,
    relist: Mutex<Relist>,
    /// Told when the list is to be read again.
    asked: Notify,
}

/// Decisions, by the request that they are about.
#[derive(Default)]
struct Filed {
    seen: bool,
    by_request: HashMap<Key, File>,
    orphans: usize,
    overflowed: bool,
}

/// The decisions about one request.
struct File {
    decisions: Arc<Decisions>,
    /// Some were kept before their request was known: anybody's no, since it might be a party's.
    has_orphans: bool,
}

/// What somebody said about a request.
enum Word {
    Decided(Decision),
    /// Nobody knows what.
    Unreadable(Unreadable),
}

impl Word {
    fn time(&self) -> Timestamp {
        match self {
            Self::Decided(decision) => decision.time,
            Self::Unreadable(decision) => decision.time,
        }
    }
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
            filed: Mutex::default(),
            unseen: Arc::new(Decisions::default()),
            none: Arc::new(Decisions::none()),
            relist: Mutex::default(),
            asked: Notify::new(),
        }
    }
}

impl Index {
    fn lock(&self) -> MutexGuard<'_, Filed> {
        self.filed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn relist(&self) -> MutexGuard<'_, Relist> {
        self.relist.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask_for_list(&self, why: Why) {
        self.relist().ask(why);
        self.asked.notify_one();
    }

    /// The decisions about a request; the same pointer until they change.
    pub fn of(&self, namespace: &str, uid: &Arc<str>) -> Arc<Decisions> {
        let filed = self.lock();
        if !filed.seen {
            return Arc::clone(&self.unseen);
        }
        // Few requests have any: without them there is nothing to hash.
        if filed.by_request.is_empty() {
            return Arc::clone(&self.none);
        }
        let key = (namespace.to_owned(), Arc::clone(uid));
        Arc::clone(filed.by_request.get(&key).map_or(&self.none, |file| &file.decisions))
    }

    /// How many are kept.
    pub fn len(&self) -> usize {
        self.lock().by_request.values().map(|file| file.decisions.len()).sum()
    }

    /// Reads the list again: requests came to be known that were not when their decisions were heard and dropped.
    pub fn requests_listed(&self) {
        self.ask_for_list(Why::News);
    }

    /// Reads the list again, if this request came to be known so late that its decisions may have been dropped.
    pub fn request_heard(&self, now: Timestamp, request: &ObjectMeta) {
        if request.creation_timestamp.as_ref().is_none_or(|created| is_late(now, created.0)) {
            self.ask_for_list(Why::News);
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
    let mut sweeps = tokio::time::interval(GAP_MIN);
    sweeps.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        shared.decisions.relist().begins((shared.clock)());
        let api: Api<Watched<InstanceAccessDecision>> = Api::all(shared.client.clone());
        let mut stream = std::pin::pin!(shared.contact.watch(Listed::Decisions, api, config()));
        let mut listing: Option<Filed> = None;
        loop {
            let event = tokio::select! {
                () = stop.cancelled() => return,
                () = shared.decisions.asked.notified() => None,
                _ = sweeps.tick() => {
                    sweep(&shared);
                    None
                }
                event = stream.next() => Some(event),
            };
            let Some(event) = event else {
                if shared.decisions.relist().is_due((shared.clock)()) {
                    tracing::info!(
                        kept = shared.decisions.len(),
                        "decisions are read again: some may count that were not kept"
                    );
                    break;
                }
                continue;
            };
            match event {
                Some(Ok(event)) => see(&shared, event, &mut listing),
                Some(Err(error)) => {
                    shared.contact.watch_failed(Listed::Decisions, (shared.clock)());
                    shared.metrics.count_watch_error("instanceaccessdecisions");
                    tracing::warn!(error = chain(&error), "the watch over decisions broke, trying again");
                }
                None => return,
            }
        }
    }
}

fn see(shared: &Arc<Shared>, event: Event<Watched<InstanceAccessDecision>>, listing: &mut Option<Filed>) {
    match event {
        Event::Init => {
            shared.contact.watch_lists(Listed::Decisions);
            // Also where the watch lists by itself, since it broke.
            shared.decisions.relist().begins((shared.clock)());
            *listing = Some(Filed::default());
        }
        Event::InitApply(object) => {
            if let (Some(listing), Some(Read { key, word: Some(word), .. })) = (listing.as_mut(), read(shared, &object))
            {
                let about = request(shared, &key);
                keep(shared, listing, key, word, &about);
            }
        }
        Event::InitDone => {
            shared.decisions.relist().ended((shared.clock)());
            let Some(mut listed) = listing.take() else { return };
            listed.seen = true;
            let before = std::mem::replace(&mut *shared.decisions.lock(), listed);
            let is_awaited = shared.contact.watch_listed(Listed::Decisions);
            if before.seen && !is_awaited {
                let after: Vec<Key> = shared.decisions.lock().by_request.keys().cloned().collect();
                before.by_request.keys().chain(&after).for_each(|(_, uid)| wake_request(shared, uid));
            } else {
                shared.health.decisions_listed.send_replace(true);
                wake_all(shared);
            }
        }
        Event::Apply(object) => {
            shared.contact.watch_heard(Listed::Decisions);
            let Some(Read { key, uid, word }) = read(shared, &object) else { return };
            let Some(word) = word else { return forget(shared, &key, &uid) };
            let request_uid = Arc::clone(&key.1);
            // The request is looked at without the index in hand: a turn takes them the other way round.
            let about = request(shared, &key);
            if keep(shared, &mut shared.decisions.lock(), key, word, &about) {
                wake_request(shared, &request_uid);
            }
        }
        Event::Delete(object) => {
            shared.contact.watch_heard(Listed::Decisions);
            let decision_uid = object.metadata.uid.clone().unwrap_or_default();
            shared.metrics.decodable(&decision_uid);
            if let (Some(uid), Some(namespace)) = (request_uid(&object.plain()), object.metadata.namespace) {
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
    word: Option<Word>,
}

fn read(shared: &Shared, watched: &Watched<InstanceAccessDecision>) -> Option<Read> {
    let metadata = &watched.metadata;
    let (namespace, uid) = (metadata.namespace.clone()?, metadata.uid.clone()?);
    match watched.decode() {
        Ok(object) => {
            let word = Decision::read(&object, &shared.settings.principals).map(Word::Decided);
            shared.metrics.decodable(&uid);
            Some(Read { key: (namespace, object.spec.request_ref.uid.into()), uid, word })
        }
        Err(error) => {
            shared.metrics.undecodable(&uid);
            let plain = watched.plain();
            let word = Unreadable::read(&plain).map(Word::Unreadable);
            tracing::error!(
                namespace,
                name = metadata.name,
                request_uid = request_uid(&plain),
                holds_back = word.is_some(),
                error = chain(&error),
                "a decision cannot be decoded; is the CRD of another version?"
            );
            Some(Read { key: (namespace, request_uid(&plain)?.into()), uid, word })
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

/// Keeps what may count; true if that changes what its request reads.
fn keep(shared: &Shared, filed: &mut Filed, key: Key, word: Word, about: &Request) -> bool {
    let parties = match about {
        Request::Over => return false,
        Request::Open(parties) => parties.as_ref(),
        Request::Unknown => {
            if !is_fresh((shared.clock)(), word.time(), ORPHAN_AGE_MAX) {
                return false;
            }
            None
        }
    };
    let is_unknown = matches!(about, Request::Unknown);
    if let Word::Decided(decision) = &word
        && !may_count(decision, parties, is_unknown, shared.policies().approvers())
    {
        return false;
    }
    if is_unknown {
        if filed.orphans >= ORPHANS_MAX {
            filed.overflowed = true;
            return false;
        }
        filed.orphans += 1;
    }
    let none = || File { decisions: Arc::clone(&shared.decisions.none), has_orphans: false };
    let file = filed.by_request.entry(key).or_insert_with(none);
    file.has_orphans |= is_unknown;
    let decisions = Arc::make_mut(&mut file.decisions);
    match word {
        Word::Decided(decision) => decisions.take(Arc::new(decision)),
        Word::Unreadable(decision) => decisions.take_unreadable(Arc::new(decision)),
    }
}

fn forget(shared: &Arc<Shared>, key: &Key, decision_uid: &str) {
    let mut filed = shared.decisions.lock();
    let Some(file) = filed.by_request.get_mut(key) else { return };
    if !Arc::make_mut(&mut file.decisions).forget(decision_uid) {
        return;
    }
    // What stood behind it in the queue is not known here: the next sweep has the list read again.
    let was_full = file.decisions.is_overflowed();
    if file.decisions.is_empty() {
        filed.by_request.remove(key);
    }
    filed.overflowed |= was_full;
    drop(filed);
    wake_request(shared, &key.1);
}

/// Drops what no request reads any more, and asks for the list where something was dropped for want of room.
fn sweep(shared: &Shared) {
    let now: Timestamp = (shared.clock)();
    let keys: Vec<(Key, bool)> = {
        let filed = shared.decisions.lock();
        filed.by_request.iter().map(|(key, file)| (key.clone(), file.has_orphans)).collect()
    };
    let policies = shared.policies();
    let mut orphans = 0;
    for (key, has_orphans) in keys {
        let about = match shared.slots.find(&key.1) {
            None => Request::Unknown,
            Some(slot) if slot.lock().kept.is_over() => Request::Over,
            // Judged when it was heard; the request is not opened for it again.
            Some(_) if !has_orphans => continue,
            Some(_) => request(shared, &key),
        };
        let mut filed = shared.decisions.lock();
        let Some(file) = filed.by_request.get_mut(&key) else { continue };
        let is_kept = match about {
            Request::Over => false,
            Request::Open(parties) => {
                file.has_orphans = false;
                let may_count = |it: &Decision| may_count(it, parties.as_ref(), false, policies.approvers());
                Arc::make_mut(&mut file.decisions).retain(may_count);
                !file.decisions.is_empty()
            }
            Request::Unknown => {
                let is_waited_for = file.decisions.is_any_fresh(now, ORPHAN_AGE_MAX);
                orphans += if is_waited_for { file.decisions.len() } else { 0 };
                is_waited_for
            }
        };
        if !is_kept {
            filed.by_request.remove(&key);
        }
    }
    let overflowed = {
        let mut filed = shared.decisions.lock();
        filed.orphans = orphans;
        std::mem::take(&mut filed.overflowed)
    };
    if overflowed {
        shared.decisions.relist().ask(Why::Room);
    }
}

fn wake_request(shared: &Arc<Shared>, uid: &str) {
    if let Some(slot) = shared.slots.find(uid) {
        wake(shared, &slot);
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    #[test]
    fn a_request_that_is_heard_late_has_the_list_read_again_and_one_that_was_just_made_has_not() {
        let at = |second: i64| Timestamp::from_second(1_800_000_000 + second).unwrap();
        for (age, is_read_again) in [(0, false), (50, false), (61, true), (7200, true)] {
            let index = Index::default();
            index.relist().begins(at(-100));
            index.relist().ended(at(-100));
            let made = ObjectMeta { creation_timestamp: Some(Time(at(-age))), ..ObjectMeta::default() };
            index.request_heard(at(0), &made);
            assert_eq!(index.relist().is_due(at(0)), is_read_again, "{age} s old");
        }
    }
}
