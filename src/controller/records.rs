//! The audit trail as the controller sees it: there, or not there yet.
//!
//! A trail that cannot be opened (a full disk, a volume that is not mounted yet) must not keep the controller from
//! ending grants. So it is opened in the background, and until it is, every append fails: nothing is granted.
//!
//! A leader continues the trail of the one before, of which the lease names the head.

use std::sync::OnceLock;
use std::time::Duration;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::audit::{AppendError, Begin, Limits, OpenError, Receipt, Sinks, Stats, Trail};
use crate::clock::Clock;
use crate::telemetry::chain;

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
    },
    /// The same, but what the lease says of the head is no receipt.
    Unclear {
        /// What it says.
        head: String,
    },
}

impl Term {
    /// The term of a leader whose lease says so of the head.
    pub fn next(head: Option<String>) -> Self {
        match head.map(|head| head.parse().map_err(|_| head)).transpose() {
            Ok(known_head) => Self::Next { known_head },
            Err(head) => Self::Unclear { head },
        }
    }
}

/// The trail, once it is open.
#[derive(Debug, Default)]
pub struct Records {
    trail: OnceLock<Trail>,
}

impl Records {
    /// Appends a record; `Closed` while the trail is not open.
    pub async fn append(&self, record: serde_json::Value, time: Timestamp) -> Result<Receipt, AppendError> {
        match self.trail.get() {
            Some(trail) => trail.append(record, time).await,
            None => Err(AppendError::Closed),
        }
    }

    /// The last durable record; none while the trail is not open.
    pub fn head(&self) -> Option<Receipt> {
        self.trail.get().map(Trail::head)
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

    /// Opens the trail, and tries again for as long as somebody may mend what is in the way.
    ///
    /// # Errors
    /// Returns at once what no waiting mends: no sink, a path that is no file, another process that writes to it, a trail that
    /// does not verify. One of several leaders ends grants all the same: what the lease and the file say may be anybody's
    /// doing, so it goes on trying.
    pub async fn open(
        &self,
        sinks: Sinks,
        term: &Term,
        clock: &Clock,
        stop: &CancellationToken,
    ) -> Result<(), OpenError> {
        loop {
            let known_head = match term {
                Term::Alone => None,
                Term::Next { known_head } => known_head.clone(),
                Term::Unclear { head } => {
                    tracing::error!(
                        head,
                        "the lease names a head of the audit trail that is no SEQUENCE:DIGEST, so nothing is granted; ends go on; put its annotation right, or take it off, and start the controller again"
                    );
                    stop.cancelled().await;
                    return Ok(());
                }
            };
            let begin = Begin { now: clock(), known_head };
            match Trail::open(sinks.clone(), Limits { record_bytes_max: RECORD_BYTES_MAX, ..Limits::default() }, begin)
                .await
            {
                Ok((trail, opened)) => {
                    if let Some(torn) = &opened.torn {
                        tracing::warn!(path = %torn.path.display(), bytes = torn.bytes, "set aside the torn end of the audit trail");
                    }
                    tracing::info!(
                        sequence = opened.head.sequence,
                        digest = opened.head.digest,
                        "opened the audit trail"
                    );
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
                Err(error @ (OpenError::Behind { .. } | OpenError::Broken { .. }))
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
