//! Pure decisions: policy, lifecycle, schedule, identity, keys.
//!
//! Nothing in here reads a clock, a file or a socket; facts come in as arguments, answers go out as values.

pub mod approvals;
pub mod census;
pub mod cloud;
pub mod condition;
pub mod connect;
pub mod digest;
pub mod enforcement;
pub mod expression;
pub mod hearing;
pub mod identity;
pub mod key;
pub mod lease;
pub mod ledger;
pub mod lifecycle;
pub mod node;
pub mod policy;
pub mod push;
pub mod record;
pub mod session;
pub mod sight;
pub mod subject;
pub mod tally;
pub mod time;
pub mod window;
