//! The audit trail as the controller sees it: there, or not there yet.
//!
//! A trail that cannot be opened (a full disk, a volume that is not mounted yet) must not keep the controller from
//! ending grants. So it is opened in the background, and until it is, every append fails: nothing is granted.
//!
//! A leader continues the trail of the one before, of which the lease names the head: in its own file, or in one that all
//! of them write in turn.
//!
//! Before it takes a first record it is read back: an API server that was restored from an older copy has forgotten what
//! the trail says, and nothing is granted or pushed before that is known.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{oneshot, watch as signal};
use tokio_util::sync::CancellationToken;

use crate::api::InstanceAccess;
use crate::audit::{
    AppendError, Begin, Leader, Limits, OpenError, Place, ReadBack, Receipt, Sinks, Stats, Trail, read_back,
};
use crate::clock::Clock;
use crate::domain::lease::TrailHead;
use crate::domain::ledger::memory::{KEPT, Memory};
use crate::domain::time::minus;
use crate::telemetry::chain;

use super::leader::Won;

/// Gap between two tries to open the trail.
const OPEN_RETRY: Duration = Duration::from_secs(5);

/// The longest record. The greatest identity, reason and message together stay below half of it.
const RECORD_BYTES_MAX: usize = 256 << 10;

/// Whose trail it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Term {
    /// No other process ever writes it.
    Alone,
    /// Leaders write it, one after the other.
    Next {
        /// The head that the lease named when this one began to lead.
        known_head: Option<Receipt>,
        /// What else a leader knows.
        leader: Leader,
    },
    /// The same, but what the lease says of the head is no receipt.
    Unclear {
        /// What it says.
        head: String,
    },
}

impl Term {
    /// The term of a leader, by what it won and for how long a lease holds.
    pub fn next(won: Won, lease_seconds: u16) -> Self {
        let Won { term, head } = won;
        let (receipt, head_file) = head.map_or((None, None), |head| (Some(head.receipt), head.file));
        match receipt.map(|receipt| receipt.parse().map_err(|_| receipt)).transpose() {
            Ok(known_head) => {
                // Only what somebody else wrote into the lease is negative.
                let leader = Leader { term: term.max(0).into(), lease_seconds: lease_seconds.into(), head_file };
                Self::Next { known_head, leader }
            }
            Err(head) => Self::Unclear { head },
        }
    }
}

/// The trail, once it is open.
#[derive(Debug, Default)]
pub struct Records {
    trail: OnceLock<Trail>,
    memory: signal::Sender<Recall>,
    heard: Mutex<Memory>,
}

/// What became of the records that were there before.
#[derive(Clone, Debug, Default)]
enum Recall {
    /// They were not read yet.
    #[default]
    Unread,
    /// They were read, and are to be taken in.
    Read(Arc<Memory>),
    /// They are remembered.
    Remembered,
}

impl Records {
    /// Appends a record; `Closed` while the trail is not open.
    pub async fn append(&self, record: serde_json::Value, time: Timestamp) -> Result<Receipt, AppendError> {
        match self.trail.get() {
            Some(trail) => trail.append(record, time).await,
            None => Err(AppendError::Closed),
        }
    }

    /// The last durable record and its file, for the lease; none while the trail is not open.
    pub fn head(&self) -> Option<TrailHead> {
        let Place { head, file } = self.trail.get()?.place();
        Some(TrailHead { receipt: head.to_string(), file: Some(file) })
    }

    /// What the trail counted; nothing while it is not open.
    pub fn stats(&self) -> Stats {
        self.trail.get().map(Trail::stats).unwrap_or_default()
    }

    /// Closes the trail, if it was opened.
    pub async fn close(&self) {
        if let Some(trail) = self.trail.get() {
            trail.clone().close().await;
        }
    }

    fn heard(&self) -> MutexGuard<'_, Memory> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers a request as it was while this process stood by.
    pub fn hear(&self, now: Timestamp, request: &InstanceAccess) {
        self.heard().see(now, request);
    }

    /// Remembers that a request went.
    pub fn hear_gone(&self, uid: &str) {
        self.heard().went(uid);
    }

    /// What the trail said before it was opened, and what was heard before it was ours; waits until it was read.
    pub async fn memory(&self) -> Arc<Memory> {
        let mut recall = self.memory.subscribe();
        loop {
            if let Recall::Read(memory) = &*recall.borrow_and_update() {
                return Arc::clone(memory);
            }
            // The sender lives as long as we do.
            let _ = recall.changed().await;
        }
    }

    /// What it said was taken in: from now on it takes records.
    pub fn remembered(&self) {
        self.memory.send_replace(Recall::Remembered);
    }

    /// Reads the trail back, and waits until that was taken in; false, if the word to stop came first.
    async fn recall(&self, file: Option<PathBuf>, clock: &Clock, stop: &CancellationToken) -> std::io::Result<bool> {
        let mut memory = match file {
            Some(file) => read(file, minus(clock(), KEPT)).await?,
            None => {
                tracing::info!(
                    "the audit trail is standard output and cannot be read back: if etcd is restored from an older copy and this process ends, nothing tells what that copy lacks"
                );
                Memory::default()
            }
        };
        memory.add(&std::mem::take(&mut *self.heard()));
        let mut taken = self.memory.subscribe();
        self.memory.send_replace(Recall::Read(Arc::new(memory)));
        Ok(tokio::select! {
            () = stop.cancelled() => false,
            taken = taken.wait_for(|recall| matches!(recall, Recall::Remembered)) => taken.is_ok(),
        })
    }

    /// Opens the trail, and tries again for as long as somebody may mend what is in the way. A file of so many bytes is full,
    /// and another one follows.
    ///
    /// # Errors
    /// Returns at once what no waiting mends: no sink, a path that is no file, another process that writes to it, a trail that
    /// does not verify. One of several leaders ends grants all the same: what the lease and the file say may be anybody's
    /// doing, so it goes on trying.
    pub async fn open(
        &self,
        sinks: Sinks,
        file_bytes_max: Option<u64>,
        term: &Term,
        clock: &Clock,
        stop: &CancellationToken,
    ) -> Result<(), OpenError> {
        loop {
            let (known_head, leader) = match term {
                Term::Alone => (None, None),
                Term::Next { known_head, leader } => (known_head.clone(), Some(leader.clone())),
                Term::Unclear { head } => {
                    tracing::error!(
                        head,
                        "the lease names a head of the audit trail that is no SEQUENCE:DIGEST, so nothing is granted; ends go on; put its annotation right, or take it off, and start the controller again"
                    );
                    stop.cancelled().await;
                    return Ok(());
                }
            };
            let begin = Begin { now: clock(), known_head, leader };
            let limits = Limits { record_bytes_max: RECORD_BYTES_MAX, file_bytes_max, ..Limits::default() };
            match Trail::open(sinks.clone(), limits, begin).await {
                Ok((trail, opened)) => {
                    if let Some(torn) = &opened.torn {
                        tracing::warn!(path = %torn.path.display(), bytes = torn.bytes, "set aside the torn end of the audit trail");
                    }
                    if let Some(tail) = &opened.file_head {
                        let (sequence, digest) = (tail.sequence, &tail.digest);
                        tracing::info!(sequence, digest, "named the end of the file's earlier term in the audit trail");
                    }
                    tracing::info!(
                        sequence = opened.head.sequence,
                        digest = opened.head.digest,
                        "opened the audit trail"
                    );
                    // From here on it is ours, and nobody else writes to it.
                    loop {
                        match self.recall(sinks.file.clone(), clock, stop).await {
                            Ok(true) => break,
                            Ok(false) => return Ok(()),
                            Err(error) => {
                                tracing::error!(
                                    error = chain(&error),
                                    "the audit trail cannot be read back, so nothing is granted; ends go on; trying again"
                                );
                                tokio::select! {
                                    () = stop.cancelled() => return Ok(()),
                                    () = tokio::time::sleep(OPEN_RETRY) => {}
                                }
                            }
                        }
                    }
                    if self.trail.set(trail).is_err() {
                        tracing::error!("the audit trail was opened twice");
                    }
                    return Ok(());
                }
                Err(
                    error @ (OpenError::Io { .. }
                    | OpenError::Thread(_)
                    | OpenError::NoDirectory { .. }
                    | OpenError::TooTorn { .. }),
                ) => {
                    tracing::error!(
                        error = chain(&error),
                        "the audit trail cannot be opened, so nothing is granted; ends go on; trying again"
                    );
                }
                // It may be frozen, or on its way out.
                Err(error @ OpenError::Locked { .. }) if matches!(term, Term::Next { .. }) => {
                    tracing::warn!(
                        error = chain(&error),
                        "the leader before has not let go of the audit trail, so nothing is granted; ends go on; trying again"
                    );
                }
                Err(error @ (OpenError::Behind { .. } | OpenError::Broken { .. } | OpenError::Gap { .. }))
                    if matches!(term, Term::Next { .. }) =>
                {
                    tracing::error!(
                        error = chain(&error),
                        "the audit trail is not the one that the lease names, so nothing is granted; ends go on; trying again"
                    );
                }
                Err(error) => return Err(error),
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(OPEN_RETRY) => {}
            }
        }
    }
}

/// Reads what a file says since then. In a thread of its own: it may be long, and one that hangs on its volume must not
/// keep the process, whose lease may be lost, from ending, as one of the runtime's would.
async fn read(file: PathBuf, since: Timestamp) -> std::io::Result<Memory> {
    let (tell, told) = oneshot::channel();
    let reading = move || {
        let mut memory = Memory::default();
        let read = read_back(&file, since, |time, record| memory.hear(time, record));
        // Whoever asked may be gone.
        let _ = tell.send(read.map(|read| (memory, read)));
    };
    std::thread::Builder::new().name("audit-read".to_owned()).spawn(reading)?;
    let (memory, ReadBack { records, cut_off }) = told.await.map_err(std::io::Error::other)??;
    tracing::info!(records, grants = memory.len(), "read the audit trail back");
    if let Some(since_time) = cut_off {
        tracing::warn!(
            %since_time,
            "the audit trail is longer than is read back; of a restored etcd, what ended before this time would not be known to have ended"
        );
    }
    Ok(memory)
}
