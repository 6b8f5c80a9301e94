//! The custom resources, group `instanceaccess.dev`, as Rust types; `crds/` is generated from here.
//!
//! A field's doc comment is its `kubectl explain` text. Every string and list has a bound; nothing is nullable; nothing
//! here decides anything.

#![allow(clippy::duplicated_attributes, reason = "rust-clippy#13238: each printcolumn has a type of its own")]

mod access;
mod condition;
mod crd;
mod decision;
mod ledger;
mod policy;

pub use access::*;
pub use condition::*;
pub use crd::{crds, crds_yaml};
pub use decision::*;
pub use ledger::*;
pub use policy::*;

/// The API group of every resource of this project.
pub const GROUP: &str = "instanceaccess.dev";
/// The version that is served and stored.
pub const VERSION: &str = "v1alpha1";
/// The finalizer that lets a deletion end the grant first.
pub const FINALIZER: &str = "instanceaccess.dev/end-grant";
