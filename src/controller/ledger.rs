//! The ledger of consumed grants, as the API server keeps it and as memory has it.
//!
//! ```text
//! requests with a grant ──┐
//! our own entries ────────┼─▶ Book ─▶ asked before every grant
//! the watch over entries ─┘     └─▶ chores: entries whose time is over go, those that somebody else deleted come back
//!   └─ its first list ─▶ census: who was let in within the hour, by requests that are gone
//! ```
//! Memory is never behind our own writes, and forgets only what it was told to let go: a list that is read again adds to
//! it. What follows from it is decided in `domain`.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use kube::Api;
use kube::api::{DeleteParams, Preconditions};
use kube::core::{ApiResource, DynamicObject};
use kube::runtime::watcher::Event;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio_util::sync::CancellationToken;

use crate::api::{InstanceAccess, InstanceAccessLedgerEntry, InstanceAccessLedgerEntrySpec};
use crate::domain::ledger::memory::Memory;
use crate::domain::ledger::{Ledger, is_past, is_sound};
use crate::domain::lifecycle::is_over;
use crate::telemetry::chain;

use super::Shared;
use super::turn::wake_all;
use super::watch::config;
use super::write::{WRITE_TIMEOUT, WriteError};

/// Entries a page, ten times as many as requests: an entry is a fraction of one, and nothing is granted before all came in.
const PAGE_SIZE: u32 = 500;
/// How often the list is read again, to find entries whose time is over. They are kept for months: a day more is nothing.
const LIST_INTERVAL: Duration = Duration::from_secs(24 * 3600);
/// The same, while there were more of them than are dealt with at once.
const LIST_INTERVAL_BEHIND: Duration = Duration::from_secs(600);
/// Entries that wait to go, or to come back. Of those that go, the next list has what found no room.
const CHORES_MAX: usize = 1000;
/// Gap between two chores: five writes a second are little over one in a hundred of those that an API server on two cores
/// does, and nobody waits for them.
const GAP: Duration = Duration::from_millis(200);
/// Gap after a chore that failed.
const RETRY: Duration = Duration::from_secs(5);

/// The ledger in memory.
#[derive(Default)]
pub struct Book(RwLock<Ledger>);

impl Book {
    /// The ledger as it is now.
    pub fn read(&self) -> RwLockReadGuard<'_, Ledger> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Ledger> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in a request: if it has a grant, nobody else gets that; and if it is over, it stays so.
    pub fn note(&self, request: &InstanceAccess) {
        if request.status.as_ref().is_some_and(|status| status.grant.is_some()) || is_over(request) {
            self.write().note(request);
        }
    }

    /// Takes in that a request went.
    pub fn went(&self, uid: &str) {
        self.write().went(uid);
    }

    /// Takes in what the audit trail says of requests.
    fn recall(&self, memory: &Memory) {
        self.write().recall(memory);
    }

    /// Takes in an entry that stands.
    pub fn entered(&self, entry: &InstanceAccessLedgerEntry) {
        let InstanceAccessLedgerEntry { metadata, spec } = entry;
        let name = metadata.name.as_deref().unwrap_or_default();
        self.write().enter(name, Some(&spec.request.uid), Some(spec.end_time.0));
    }
}

/// Something that nobody waits for.
enum Chore {
    /// The time of an entry is over: it goes.
    Prune { name: String, uid: Option<String> },
    /// Somebody else deleted it: it comes back.
    Restore(Box<InstanceAccessLedgerEntry>),
}

/// Takes in what happens to entries, and keeps them as long as they should be, until it is stopped.
pub async fn keep_ledger(shared: Arc<Shared>, stop: CancellationToken) {
    let (queue, waiting) = mpsc::channel(CHORES_MAX);
    tokio::join!(watch(&shared, queue, &stop), work(&shared, waiting, &stop), recall(&shared, &stop));
}

/// Takes in what the audit trail says, once it was read. Until then it takes no record: so nothing is granted and no key
/// is pushed that it would veto.
async fn recall(shared: &Arc<Shared>, stop: &CancellationToken) {
    let memory = tokio::select! {
        () = stop.cancelled() => return,
        memory = shared.records.memory() => memory,
    };
    shared.ledger.recall(&memory);
    shared.records.remembered();
    wake_all(shared);
}

async fn watch(shared: &Arc<Shared>, chores: Sender<Chore>, stop: &CancellationToken) {
    let kind = ApiResource::erase::<InstanceAccessLedgerEntry>(&());
    // Later on the census has what is gone from the requests themselves, and since when they count.
    let mut is_first = true;
    loop {
        // Untyped, so that one that does not decode counts by its name.
        let api: Api<DynamicObject> = Api::all_with(shared.client.clone(), &kind);
        let mut stream = std::pin::pin!(shared.contact.history.watch(api, config().page_size(PAGE_SIZE)));
        let mut is_behind = false;
        let began = tokio::time::Instant::now();
        loop {
            let again = began + if is_behind { LIST_INTERVAL_BEHIND } else { LIST_INTERVAL };
            let event = tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep_until(again) => break,
                event = stream.next() => event,
            };
            match event {
                Some(Ok(Event::Init)) => {}
                Some(Ok(Event::InitApply(object))) => {
                    let Some(read) = take_in(shared, &object) else { continue };
                    if let Some(spec) = read.spec.as_ref().filter(|_| is_first) {
                        shared.census.recall(spec);
                    }
                    if read.is_past((shared.clock)()) {
                        let name = read.name;
                        let prune = Chore::Prune { name, uid: object.metadata.uid };
                        is_behind |= chores.try_send(prune).is_err();
                    }
                }
                Some(Ok(Event::InitDone)) => {
                    is_first = false;
                    shared.ledger.write().set_seen();
                    shared.census.entries_listed();
                    if !shared.health.ledger_listed.send_replace(true) {
                        wake_all(shared);
                    }
                }
                Some(Ok(Event::Apply(object))) => drop(take_in(shared, &object)),
                Some(Ok(Event::Delete(object))) => deleted(shared, &chores, &object),
                Some(Err(error)) => {
                    shared.metrics.count_watch_error("instanceaccessledgerentries");
                    tracing::warn!(error = chain(&error), "the watch over ledger entries broke, trying again");
                }
                None => return,
            }
        }
    }
}

/// An entry, as far as it could be read.
struct Read {
    name: String,
    spec: Option<InstanceAccessLedgerEntrySpec>,
}

impl Read {
    /// Whether its time is known to be over.
    fn is_past(&self, now: Timestamp) -> bool {
        self.spec.as_ref().is_some_and(|spec| is_past(now, spec.keep_until_time.0))
    }
}

/// Reads an entry; none, if it is one that the operator never writes.
fn read(object: &DynamicObject) -> Option<Read> {
    let name = object.metadata.name.clone()?;
    let Ok(entry) = object.clone().try_parse::<InstanceAccessLedgerEntry>() else {
        return Some(Read { name, spec: None });
    };
    if !is_sound(&entry) {
        tracing::warn!(name, "a ledger entry does not bear the name of what it is about, and does not count");
        return None;
    }
    Some(Read { name, spec: Some(entry.spec) })
}

fn take_in(shared: &Shared, object: &DynamicObject) -> Option<Read> {
    let read = read(object)?;
    let spec = read.spec.as_ref();
    let (uid, end_time) = (spec.map(|spec| spec.request.uid.as_str()), spec.map(|spec| spec.end_time.0));
    shared.ledger.write().enter(&read.name, uid, end_time).then_some(read)
}

/// An entry is gone: because its time was over, or because somebody took it away.
fn deleted(shared: &Shared, chores: &Sender<Chore>, object: &DynamicObject) {
    let Some(read) = read(object) else { return };
    if read.is_past((shared.clock)()) {
        return shared.ledger.write().forget(&read.name);
    }
    let Read { name, spec } = read;
    tracing::error!(
        name,
        "somebody deleted a ledger entry; its grant is not given again while this process runs, and the entry is written again"
    );
    if let Some(spec) = spec {
        let restore = Chore::Restore(Box::new(InstanceAccessLedgerEntry::new(&name, spec)));
        if chores.try_send(restore).is_err() {
            tracing::error!(name, "more ledger entries were deleted than can be written again");
        }
    }
}

/// Does one chore after the other, at leisure.
async fn work(shared: &Shared, mut waiting: Receiver<Chore>, stop: &CancellationToken) {
    let mut undone = None;
    loop {
        let chore = match undone.take() {
            Some(chore) => chore,
            None => tokio::select! {
                () = stop.cancelled() => return,
                chore = waiting.recv() => match chore {
                    Some(chore) => chore,
                    None => return,
                },
            },
        };
        let rest = match done(shared, &chore).await {
            Ok(()) => GAP,
            Err(error) => {
                tracing::warn!(error = chain(&*error), "the ledger could not be put in order, trying again");
                // What is to go, the next list has again.
                undone = matches!(chore, Chore::Restore(_)).then_some(chore);
                RETRY
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(rest) => {}
        }
    }
}

async fn done(shared: &Shared, chore: &Chore) -> Result<(), Box<dyn std::error::Error>> {
    if !(shared.leads)() {
        return Err(WriteError::Deposed.into());
    }
    match chore {
        Chore::Restore(entry) => Ok(shared.writer.enter(entry).await?),
        Chore::Prune { name, uid } => {
            let api: Api<InstanceAccessLedgerEntry> = Api::all(shared.client.clone());
            let this = Preconditions { uid: uid.clone(), ..Preconditions::default() };
            let params = DeleteParams { preconditions: Some(this), ..DeleteParams::default() };
            match tokio::time::timeout(WRITE_TIMEOUT, api.delete(name, &params)).await? {
                Ok(_) => shared.ledger.write().forget(name),
                // Gone already, which the watch tells; or another one by now, which stays.
                Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => {}
                Err(error) => return Err(error.into()),
            }
            Ok(())
        }
    }
}
