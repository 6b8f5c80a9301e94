//! Instance Access.
