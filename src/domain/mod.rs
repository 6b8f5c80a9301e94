//! Pure decisions: policy, lifecycle, schedule, identity, keys.
//!
//! Nothing in here reads a clock, a file or a socket; facts come in as arguments, answers go out as values.

pub mod cloud;
pub mod key;
pub mod push;
