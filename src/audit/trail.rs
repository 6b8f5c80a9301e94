//! The handle: what the rest of the program holds of a trail.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use super::Receipt;
use super::line::{self, Draft};
use super::open::{self, Begin, OpenError, Opened, Sinks};
use super::writer::{self, Message};

/// An open trail. Clones are handles of the same one.
///
/// When the last handle is dropped, what is queued is still written, in the background; [`Trail::close`] waits for it.
#[derive(Debug, Clone)]
pub struct Trail {
    queue: mpsc::Sender<Message>,
    shared: Arc<Shared>,
}

/// How much may wait for the writer. When full, appends fail with [`AppendError::Busy`], which [`Stats`] counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Records that wait or are being written. Default 4096: some seconds of the API server's 390 writes per second.
    pub queue_records_max: usize,
    /// Their bytes. Default 8 MiB, and no more than that: it bounds a batch, and with it what a crash can tear.
    pub queue_bytes_max: usize,
    /// Bytes of one record in its canonical form. Default 64 KiB; no more than fits a line of 1 MiB.
    pub record_bytes_max: usize,
    /// Bytes of a file: before it would grow beyond, it is closed, and the trail goes on in a new one. One batch always
    /// fits. Default none: one file takes all.
    pub file_bytes_max: Option<u64>,
}

/// The largest batch. `open` looks for a torn one within a larger piece of the file.
pub(super) const BATCH_BYTES_MAX: usize = 8 << 20;
/// The largest number of records in a batch, for the same reason: each adds its envelope.
pub(super) const BATCH_RECORDS_MAX: usize = 8192;

impl Default for Limits {
    fn default() -> Self {
        Limits {
            queue_records_max: 4096,
            queue_bytes_max: BATCH_BYTES_MAX,
            record_bytes_max: 64 << 10,
            file_bytes_max: None,
        }
    }
}

impl Limits {
    /// Returns limits that hold and that let at least one record through.
    fn clamped(self) -> Self {
        let record_bytes_max = self.record_bytes_max.clamp(1 << 10, line::LINE_BYTES_MAX - line::ENVELOPE_BYTES_MAX);
        Limits {
            queue_records_max: self.queue_records_max.clamp(1, BATCH_RECORDS_MAX),
            queue_bytes_max: self.queue_bytes_max.clamp(record_bytes_max, BATCH_BYTES_MAX),
            record_bytes_max,
            file_bytes_max: self.file_bytes_max,
        }
    }
}

/// What a trail has done since it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Records made durable by [`Trail::append`].
    pub appended: u64,
    /// Records answered with [`AppendError::Unavailable`].
    pub failed: u64,
    /// Records answered with [`AppendError::Busy`].
    pub refused: u64,
    /// Records that wait or are being written.
    pub queue_records: usize,
    /// Batches made durable: one write and one fsync each.
    pub commits: u64,
    /// Microseconds from the last such batch's linking to the end of its fsync.
    pub commit_micros_last: u64,
    /// Records that standard output, beside a file, did not take in time.
    pub copies_dropped: u64,
    /// Bytes of the file that is open.
    pub file_bytes: u64,
    /// Files that were full, and closed.
    pub files_closed: u64,
    /// How often one that was full could not be closed: then it grows on.
    pub file_close_failures: u64,
}

/// Who must act, and when to try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// Try again, backing off: the sink may heal.
    Retry,
    /// Try again, later: too much at once.
    Throttled,
    /// Not with this record.
    Invalid,
    /// Not with this trail.
    Gone,
}

/// Why there is no receipt.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AppendError {
    /// The record can never be written.
    #[error("audit record: {reason}")]
    Invalid {
        /// What is wrong with it.
        reason: String,
    },
    /// The queue is full. Nothing was written.
    #[error("audit queue is full, {queue_records} records wait; try again when they are written")]
    Busy {
        /// How many wait.
        queue_records: usize,
    },
    /// The sink does not take it. It was, or before the next write it will be, taken back; see the room's caveats.
    #[error("audit trail {sink} takes no records; later ones are tried anew")]
    Unavailable {
        /// The file, or `standard output`.
        sink: Arc<str>,
        /// What the operating system said.
        source: Arc<std::io::Error>,
    },
    /// The trail was closed.
    #[error("audit trail is closed")]
    Closed,
}

impl AppendError {
    /// Returns who must act.
    pub fn class(&self) -> Class {
        match self {
            AppendError::Invalid { .. } => Class::Invalid,
            AppendError::Busy { .. } => Class::Throttled,
            AppendError::Unavailable { .. } => Class::Retry,
            AppendError::Closed => Class::Gone,
        }
    }
}

impl Trail {
    /// Opens a trail, mends what a crash left of it, and appends the record that opens a segment.
    ///
    /// The file is created with mode 0600, its directory is not; it is locked until the trail is closed. Of a file
    /// that is there, the last 16 MiB are read and verified; [`super::verify()`] reads all. What stands behind the
    /// last whole line, or holds NUL bytes (pages that a power cut left unwritten), was never answered with a receipt:
    /// it is moved to `<file>.torn-<n>`, and its length and digest stand in the record.
    ///
    /// Without a file, a line is durable once standard output has taken it.
    ///
    /// # Errors
    /// See [`OpenError`]; each says what to do. Nothing is cut from a file that does not verify.
    pub async fn open(sinks: Sinks, limits: Limits, begin: Begin) -> Result<(Trail, Opened), OpenError> {
        let (answer, opened) = oneshot::channel();
        let thread = std::thread::Builder::new().name("audit".into());
        thread
            .spawn(move || match open::open(sinks, begin) {
                Err(error) => drop(answer.send(Err(error))),
                Ok(open::Ready { chain, copier, sink, opened }) => {
                    let chain = chain.closing_files_at(limits.file_bytes_max);
                    let (trail, queue) = Trail::new(limits, &chain);
                    let shared = trail.shared.clone();
                    // If nobody waits for it any more, the handle goes, and `run` ends at once.
                    drop(answer.send(Ok((trail, opened))));
                    writer::run(chain, queue, copier, &shared, &sink);
                }
            })
            .map_err(OpenError::Thread)?;
        opened.await.unwrap_or_else(|_| Err(OpenError::Thread(std::io::Error::other("it ended"))))
    }

    fn new(limits: Limits, chain: &writer::Chain) -> (Trail, mpsc::Receiver<Message>) {
        let limits = limits.clamped();
        // Twice: `Shared` bounds the appends, and a `Close` always finds room.
        let (queue, messages) = mpsc::channel(limits.queue_records_max * 2);
        (Trail { queue, shared: Arc::new(Shared::new(limits, chain)) }, messages)
    }

    /// Runs a trail on any chain.
    #[cfg(test)]
    pub(super) fn on(chain: writer::Chain, copier: Option<super::store::Copier>, limits: Limits) -> Trail {
        let chain = chain.closing_files_at(limits.file_bytes_max);
        let (trail, queue) = Trail::new(limits, &chain);
        let shared = trail.shared.clone();
        std::thread::spawn(move || writer::run(chain, queue, copier, &shared, &Arc::from("test")));
        trail
    }

    /// Appends a record and returns once it is durable. Waits for the disk, and never blocks the thread.
    ///
    /// The record is an object of at most `record_bytes_max` bytes, nested at most 64 deep, with no other numbers than
    /// integers within ±(2^53 − 1), and of no kind that is the trail's own. `time` is written as it is.
    ///
    /// # Errors
    /// See [`AppendError`]. After `Unavailable` the trail heals by itself: the next append begins anew.
    pub async fn append(&self, record: Value, time: Timestamp) -> Result<Receipt, AppendError> {
        let draft = self.draft(&record, time)?;
        let bytes = draft.bytes();
        self.shared.enter_queue(bytes)?;
        let (sender, answer) = oneshot::channel();
        if self.queue.try_send(Message::Append(draft, sender)).is_err() {
            self.shared.leave_queue(1, bytes);
            return Err(AppendError::Closed);
        }
        answer.await.unwrap_or(Err(AppendError::Closed))
    }

    fn draft(&self, record: &Value, time: Timestamp) -> Result<Draft, AppendError> {
        let invalid = |reason| AppendError::Invalid { reason };
        let Value::Object(members) = record else {
            return Err(invalid("not an object".to_owned()));
        };
        let own = members.get("kind").and_then(|kind| line::OWN_KINDS.into_iter().find(|own| kind == own));
        if let Some(own) = own {
            return Err(invalid(format!("the kind {own} is the trail's own")));
        }
        let draft = Draft::new(members, time).map_err(invalid)?;
        let (bytes, bytes_max) = (draft.bytes(), self.shared.limits.record_bytes_max);
        if bytes > bytes_max {
            return Err(invalid(format!("{bytes} bytes, at most {bytes_max} are allowed")));
        }
        Ok(draft)
    }

    /// Returns the last durable line's receipt: what to keep outside of the trail.
    pub fn head(&self) -> Receipt {
        self.place().head
    }

    /// Returns the last durable line's receipt with the file that it stands in.
    pub fn place(&self) -> Place {
        self.shared.place.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns what was done so far. The numbers are read one by one, not at one instant.
    pub fn stats(&self) -> Stats {
        let shared = &self.shared;
        Stats {
            appended: shared.appended.load(Ordering::Relaxed),
            failed: shared.failed.load(Ordering::Relaxed),
            refused: shared.refused.load(Ordering::Relaxed),
            queue_records: shared.queue_records.load(Ordering::Relaxed),
            commits: shared.commits.load(Ordering::Relaxed),
            commit_micros_last: shared.commit_micros_last.load(Ordering::Relaxed),
            copies_dropped: shared.copies_dropped.load(Ordering::Relaxed),
            file_bytes: shared.file_bytes.load(Ordering::Relaxed),
            files_closed: shared.files_closed.load(Ordering::Relaxed),
            file_close_failures: shared.file_close_failures.load(Ordering::Relaxed),
        }
    }

    /// Writes what is queued, closes the sinks and lets go of the lock, for all handles.
    pub async fn close(self) {
        let (closer, closed) = oneshot::channel();
        if self.queue.send(Message::Close(closer)).await.is_ok() {
            let _ = closed.await; // an error says that the thread is gone, which is what we wait for
        }
    }
}

/// A trail's end, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The last durable line.
    pub head: Receipt,
    /// What tells its file from others: as [`Opened::file`], and another one after each file that was full.
    pub file: String,
}

/// What handles and the writer's thread both see.
#[derive(Debug)]
pub(super) struct Shared {
    pub limits: Limits,
    pub appended: AtomicU64,
    pub failed: AtomicU64,
    pub commits: AtomicU64,
    pub commit_micros_last: AtomicU64,
    pub copies_dropped: AtomicU64,
    file_bytes: AtomicU64,
    files_closed: AtomicU64,
    file_close_failures: AtomicU64,
    refused: AtomicU64,
    queue_records: AtomicUsize,
    queue_bytes: AtomicUsize,
    place: Mutex<Place>,
}

impl Shared {
    fn new(limits: Limits, chain: &writer::Chain) -> Self {
        Shared {
            limits,
            appended: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            commits: AtomicU64::new(0),
            commit_micros_last: AtomicU64::new(0),
            copies_dropped: AtomicU64::new(0),
            file_bytes: AtomicU64::new(chain.bytes()),
            files_closed: AtomicU64::new(0),
            file_close_failures: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            queue_records: AtomicUsize::new(0),
            queue_bytes: AtomicUsize::new(0),
            place: Mutex::new(chain.place()),
        }
    }

    fn enter_queue(&self, bytes: usize) -> Result<(), AppendError> {
        let queue_records = self.queue_records.fetch_add(1, Ordering::Relaxed);
        let queue_bytes = self.queue_bytes.fetch_add(bytes, Ordering::Relaxed);
        if queue_records < self.limits.queue_records_max && queue_bytes + bytes <= self.limits.queue_bytes_max {
            return Ok(());
        }
        self.leave_queue(1, bytes);
        self.refused.fetch_add(1, Ordering::Relaxed);
        Err(AppendError::Busy { queue_records })
    }

    pub fn leave_queue(&self, records: usize, bytes: usize) {
        self.queue_records.fetch_sub(records, Ordering::Relaxed);
        self.queue_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Tells where the chain is now.
    pub fn note(&self, chain: &writer::Chain) {
        *self.place.lock().unwrap_or_else(PoisonError::into_inner) = chain.place();
        let (closed, failed) = chain.closings();
        self.file_bytes.store(chain.bytes(), Ordering::Relaxed);
        self.files_closed.store(closed, Ordering::Relaxed);
        self.file_close_failures.store(failed, Ordering::Relaxed);
    }
}
