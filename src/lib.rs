//! Instance Access.
pub mod domain;
