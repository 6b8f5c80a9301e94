//! A call to AWS: batched, paced, timed out, its error put in a class. The one place that pushes, and only against a
//! permit.
//!
//! ```text
//! find(query) ─▶ Lookups ──── one DescribeInstances for 200 ids ──────┐
//! endpoints(vpc) ─▶ Lookups ─ kept for half a minute ─────────────────┼─▶ Cloud ─▶ SdkCloud ─▶ AWS
//! push(permit) ─▶ Pushes ──── earliest deadline first, paced, fenced ─┘
//! open(tunnel) ─▶ Tunnels ─── endpoints(vpc), signed ─▶ an endpoint's websocket
//! ```
//!
//! [`Cloud`] is the raw API, thin enough to fake. It knows neither Kubernetes nor who asks, nor why. Retrying a push is
//! left to whoever makes permits.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::future::{BoxFuture, Shared};

use crate::domain::cloud::{Endpoint, Failure, Instance, InstanceId, Place};
use crate::domain::push::KeyPush;

mod bucket;
pub mod class;
mod lanes;
mod lookups;
mod message;
mod pushes;
mod recent;
#[cfg_attr(not(feature = "aws"), allow(dead_code, reason = "without the SDK nobody signs for a tunnel"))]
mod tunnel;

#[cfg(feature = "aws")]
mod convert;
#[cfg(feature = "aws")]
mod sdk;

#[cfg(test)]
mod fake;

pub use lookups::{LookupLimits, LookupStats, Lookups};
pub use pushes::{Clock, Delivered, Fence, PushError, PushLimits, PushStats, Pushes};
#[cfg(feature = "aws")]
pub use sdk::{CallLimits, SdkCloud};
#[cfg(feature = "aws")]
pub use tunnel::SdkTunnels;
pub use tunnel::{Bytes, ComingTunnels, Tunnel, Tunnels, Wire};

/// The most ids that one look-up asks for. Source: EC2 takes 200 values of a filter.
pub const LOOKUP_IDS_MAX: usize = 200;
/// The most instances that a look-up by tags returns. Two already make it ambiguous; fifty are enough to name.
pub const TAGGED_INSTANCES_MAX: usize = 50;
/// The most regions that are kept track of at once: AWS has about 40, and a made-up name must not cost memory for ever.
pub const PLACES_MAX: usize = 64;

/// A cloud whose configuration may still be being read, which may ask the network; none, in a binary without one.
pub type ComingCloud = Shared<BoxFuture<'static, Option<Arc<dyn Cloud>>>>;

/// What a call comes back with, some time.
pub type Reply<'a, T> = BoxFuture<'a, Result<T, Failure>>;

/// The last question before a push leaves: `true` if it still may.
pub type Gate = Arc<dyn Fn() -> bool + Send + Sync>;

/// AWS took the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// EC2 Instance Connect's request id, as CloudTrail has it.
    pub request_id: String,
}

/// The raw API, one method for each call that we make. It bounds its own time, and batches and paces nothing.
///
/// Callers use [`Lookups`] and [`Pushes`] instead.
pub trait Cloud: Send + Sync + 'static {
    /// Describes at most [`LOOKUP_IDS_MAX`] instances, by the filter `instance-id`: absent ones are simply missing.
    fn describe_by_ids<'a>(&'a self, place: &'a Place, ids: &'a [InstanceId]) -> Reply<'a, Vec<Instance>>;

    /// Describes the pending, running, stopping and stopped instances that carry each of `tags` by its exact value.
    ///
    /// Stops at [`TAGGED_INSTANCES_MAX`]. No tags at all is `Invalid`: it would mean every instance.
    fn describe_by_tags<'a>(&'a self, place: &'a Place, tags: &'a BTreeMap<String, String>)
    -> Reply<'a, Vec<Instance>>;

    /// Describes the EC2 Instance Connect Endpoints of a VPC that take connections.
    fn describe_endpoints<'a>(&'a self, place: &'a Place, vpc_id: &'a str) -> Reply<'a, Vec<Endpoint>>;

    /// Pushes a key: one attempt, never repeated. Only [`Pushes`] may call this, which has redeemed a permit.
    ///
    /// Asks `gate` when all is ready, credentials included, just before bytes leave; at a no, sends nothing and
    /// returns any error.
    fn send_ssh_public_key<'a>(&'a self, push: &'a KeyPush, gate: Gate) -> Reply<'a, Pushed>;
}

/// Locks; a panic elsewhere leaves no half-written state in this room, so poison means nothing.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
