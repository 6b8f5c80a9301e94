//! What the pacer counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// What happened so far, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PushStats {
    /// Calls made.
    pub calls: u64,
    /// Keys that AWS took.
    pub delivered: u64,
    /// Calls that failed, and surely delivered nothing, but for the two below.
    pub failed: u64,
    /// Calls that AWS refused, for who we are.
    pub refused: u64,
    /// Calls that AWS throttled.
    pub throttled: u64,
    /// Calls after which nobody knows whether AWS took the key.
    pub unsure: u64,
    /// Pushes not sent, since it was too late.
    pub too_late: u64,
    /// Pushes not sent, since we may no longer push.
    pub fenced: u64,
    /// Pushes not sent, since the caller went away.
    pub withdrawn: u64,
    /// Pushes turned away, since the queue was full.
    pub turned_away: u64,
    /// Pushes that wait now.
    pub waiting: u64,
    /// Pushes under way now.
    pub in_flight: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) calls: AtomicU64,
    pub(super) delivered: AtomicU64,
    pub(super) failed: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) throttled: AtomicU64,
    pub(super) unsure: AtomicU64,
    pub(super) too_late: AtomicU64,
    pub(super) fenced: AtomicU64,
    pub(super) withdrawn: AtomicU64,
    pub(super) turned_away: AtomicU64,
}

impl Counters {
    /// Returns what was counted; what waits and flies is for the caller to fill in.
    pub(super) fn read(&self) -> PushStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        PushStats {
            calls: read(&self.calls),
            delivered: read(&self.delivered),
            failed: read(&self.failed),
            refused: read(&self.refused),
            throttled: read(&self.throttled),
            unsure: read(&self.unsure),
            too_late: read(&self.too_late),
            fenced: read(&self.fenced),
            withdrawn: read(&self.withdrawn),
            turned_away: read(&self.turned_away),
            waiting: 0,
            in_flight: 0,
        }
    }
}

/// Counts one more.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
