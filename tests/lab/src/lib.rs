//! The lab.

pub mod standin;
