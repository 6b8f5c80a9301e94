//! The audit trail as the controller sees it: there, or not there yet.
//!
//! A trail that cannot be opened (a full disk, a volume that is not mounted yet) must not keep the controller from
//! ending grants. So it is opened in the background, and until it is, every append fails: nothing is granted.

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
    /// Returns at once what no waiting mends: no sink, a path that is no file, another process that writes to it, a
    /// trail that does not verify.
    pub async fn open(&self, sinks: Sinks, clock: &Clock, stop: &CancellationToken) -> Result<(), OpenError> {
        loop {
            let begin = Begin { now: clock(), known_head: None };
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
                Err(error) => return Err(error),
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(OPEN_RETRY) => {}
            }
        }
    }
}
