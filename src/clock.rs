//! The wall clock, handed down from `main`: nobody else reads it.

use std::sync::Arc;

use jiff::Timestamp;

/// Reads the wall clock.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// The machine's own clock.
pub fn system() -> Clock {
    Arc::new(Timestamp::now)
}
