//! The stand-in's clock: monotonic, and movable forward, so that a test need not wait a minute for a key to fade.

use std::time::{Duration, Instant};

use tokio::sync::watch;

/// Monotonic time since the start, plus what tests have skipped.
pub(super) struct Clock {
    start: Instant,
    skipped: watch::Sender<Duration>,
}

impl Clock {
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), skipped: watch::Sender::new(Duration::ZERO) }
    }

    /// Time since the start.
    pub(super) fn now(&self) -> Duration {
        self.start.elapsed() + *self.skipped.borrow()
    }

    /// Moves the clock forward.
    pub(super) fn advance(&self, by: Duration) {
        self.skipped.send_modify(|skipped| *skipped += by);
    }

    /// Waits until the clock shows `at`, whether by waiting or by `advance`.
    pub(super) async fn reaches(&self, at: Duration) {
        let mut skips = self.skipped.subscribe();
        loop {
            let left = at.saturating_sub(self.now());
            if left.is_zero() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(left) => {}
                _ = skips.changed() => {}
            }
        }
    }
}
