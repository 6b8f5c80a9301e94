//! The watch over requests.
//!
//! ```text
//! at start, and when history expired: the list, by name, a page at a time ───▶ see
//!             └ takes long? the grants that live, by themselves, meanwhile ──▶ see
//! ```
//! Nothing but its own status is needed to end a grant, so each has its timer as soon as it is seen, and what revokes one is
//! heard. A hundred thousand requests that are over, with names that come first, must not put that off.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt};
use kube::Api;
use kube::api::ListParams;
use kube::runtime::watcher::Event;
use tokio_util::sync::CancellationToken;

use crate::api::{InstanceAccess, LIVE};
use crate::domain::hearing::Listed;
use crate::domain::sight::Sight;
use crate::kubernetes::pages;
use crate::kubernetes::watched::Watched;
use crate::telemetry::chain;

use super::Shared;
use super::effects::stop_push;
use super::slots::{Seen, Uid, prune};
use super::turn::{read_again, set_gone, wake};

/// How all watches are made.
pub use crate::kubernetes::watch_config as config;

/// How long the first list may take before the grants that live are asked for by themselves: ten thousand requests come in
/// less, and the API server would do that work twice.
const LONG_LIST: Duration = Duration::from_secs(1);

/// Pages of requests whose grant lives.
type Live = BoxStream<'static, kube::Result<Vec<Watched<InstanceAccess>>>>;

/// Takes in what happens to requests, until it is stopped.
pub async fn watch_requests(shared: Arc<Shared>, stop: CancellationToken) {
    let api: Api<Watched<InstanceAccess>> = Api::all(shared.client.clone());
    let mut stream = std::pin::pin!(shared.contact.watch(Listed::Requests, api, config()));
    // The uids of the list that is being read, to find out who vanished while we did not watch.
    let mut listed: Option<HashSet<Uid>> = None;
    // Only beside a list, and no longer than that lasts: what is read here later than its first page is in that
    // list, or the watch that follows tells of it.
    let (mut live, mut is_asked): (Live, bool) = (stream::empty().boxed(), true);
    // Whether what requests are judged by is still to be read anew with them.
    let mut begins_anew = false;
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => return,
            event = stream.next() => event,
            Some(page) = live.next() => {
                see_live(&shared, page, listed.as_mut());
                continue;
            }
        };
        match event {
            Some(Ok(Event::Init)) => {
                listed = Some(HashSet::new());
                live = stream::empty().boxed();
                is_asked = false;
                begins_anew = *shared.health.requests_listed.borrow();
                shared.contact.watch_lists(Listed::Requests);
            }
            Some(Ok(Event::InitApply(object))) => {
                // Not before: a list that fails again and again brings nothing.
                if std::mem::take(&mut begins_anew) {
                    shared.contact.begin_rereading((shared.clock)());
                }
                if !std::mem::replace(&mut is_asked, true) {
                    live = live_later(&shared);
                }
                see_listed(&shared, object, listed.as_mut());
            }
            Some(Ok(Event::InitDone)) => {
                live = stream::empty().boxed();
                if std::mem::take(&mut begins_anew) {
                    shared.contact.begin_rereading((shared.clock)());
                }
                if let Some(listed) = listed.take() {
                    for slot in shared.slots.all() {
                        if !listed.contains(&slot.uid) {
                            gone(&shared, &slot.uid);
                        }
                    }
                }
                shared.guard.listed();
                shared.census.requests_listed();
                shared.health.requests_listed.send_replace(true);
                shared.decisions.requests_listed();
                shared.contact.watch_listed(Listed::Requests);
            }
            Some(Ok(Event::Apply(object))) => {
                shared.contact.watch_heard(Listed::Requests);
                see(&shared, object, false);
            }
            Some(Ok(Event::Delete(object))) => {
                shared.contact.watch_heard(Listed::Requests);
                if let Some(uid) = uid_of(&object) {
                    shared.metrics.decodable(&uid);
                    gone(&shared, &uid);
                }
            }
            Some(Err(error)) => {
                live = stream::empty().boxed();
                shared.contact.watch_failed(Listed::Requests, (shared.clock)());
                shared.metrics.count_watch_error("instanceaccesses");
                tracing::warn!(error = chain(&error), "the watch over requests broke, trying again");
            }
            None => return,
        }
    }
}

/// The grants that live, in a while.
fn live_later(shared: &Shared) -> Live {
    let api: Api<Watched<InstanceAccess>> = Api::all(shared.client.clone());
    let pages = pages(api, ListParams::default().fields(LIVE));
    tokio::time::sleep(LONG_LIST).map(|()| pages).flatten_stream().fuse().boxed()
}

fn see_live(
    shared: &Arc<Shared>,
    page: kube::Result<Vec<Watched<InstanceAccess>>>,
    mut listed: Option<&mut HashSet<Uid>>,
) {
    match page {
        Ok(page) => page.into_iter().for_each(|object| see_listed(shared, object, listed.as_deref_mut())),
        // The list goes on, and has them all.
        Err(error) => tracing::warn!(
            error = chain(&error),
            "live grants cannot be read before all else; with many requests, those that come last by name may end late in status; is the CRD of an older version, or the API server slow?"
        ),
    }
}

/// Takes in what a list has, and notes that it is there.
fn see_listed(shared: &Arc<Shared>, object: Watched<InstanceAccess>, listed: Option<&mut HashSet<Uid>>) {
    let uid = uid_of(&object);
    see(shared, object, true);
    // By the name that its slot has already; one that has none cannot vanish.
    let slot = uid.and_then(|uid| shared.slots.find(&uid));
    if let (Some(listed), Some(slot)) = (listed, slot) {
        listed.insert(Arc::clone(&slot.uid));
    }
}

fn uid_of(watched: &Watched<InstanceAccess>) -> Option<Uid> {
    watched.metadata.uid.as_deref().map(Uid::from)
}

fn see(shared: &Arc<Shared>, watched: Watched<InstanceAccess>, listed: bool) {
    let metadata = &watched.metadata;
    if shared.slots.knows(metadata) {
        return;
    }
    let uid = metadata.uid.as_deref().unwrap_or_default();
    match watched.decode() {
        Ok(mut object) => {
            prune(&mut object);
            shared.metrics.decodable(uid);
            // Before anybody else of its name has a turn.
            shared.ledger.note(&object);
            // Grants that were there before us are another process'; one that comes later and is not ours is nobody's.
            let is_first_list = !*shared.health.requests_listed.borrow();
            let sight = Sight::found_at_start(shared.since_time, is_first_list.then_some(&object));
            let node_name = object.spec.target.node_name.clone();
            let metadata = object.metadata.clone();
            let mut is_new = false;
            let seen = shared.slots.see(object, || {
                is_new = true;
                sight
            });
            // Of those that are listed, the whole list is told when it ends.
            if is_new && !listed {
                shared.decisions.request_heard((shared.clock)(), &metadata);
            }
            // After it is there to be woken, and before its turn: so it misses no news.
            if let (Some(node_name), Some(Seen::News(slot))) = (&node_name, &seen) {
                shared.askers.note(node_name, &slot.uid, &shared.slots);
            }
            match seen {
                Some(Seen::News(slot)) => wake(shared, &slot),
                // A list that is older than what we know is either late, or the truth again after a restore: ask.
                Some(Seen::Behind(slot)) if listed => read_again(shared, &slot),
                Some(Seen::Behind(_) | Seen::Old) | None => {}
            }
        }
        // The others go on. If it was known before, its grant ends by what is known, and no key is pushed meanwhile.
        Err(error) => {
            if let Some(slot) = shared.slots.find(uid) {
                let mut state = slot.lock();
                state.unreadable = true;
                stop_push(shared, &mut state);
                drop(state);
                wake(shared, &slot);
            }
            shared.metrics.undecodable(uid);
            tracing::error!(
                namespace = metadata.namespace,
                name = metadata.name,
                error = chain(&error),
                "a request cannot be decoded and is left alone; is the CRD of another version?"
            );
        }
    }
}

fn gone(shared: &Arc<Shared>, uid: &str) {
    shared.ledger.went(uid);
    if let Some(slot) = shared.slots.find(uid) {
        set_gone(shared, &slot);
        wake(shared, &slot);
    }
}

#[cfg(test)]
mod tests;
