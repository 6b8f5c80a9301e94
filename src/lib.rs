//! Instance Access.

pub mod audit;
