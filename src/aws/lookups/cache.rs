//! What was seen of endpoints a moment ago.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use crate::aws::locked;
use crate::domain::cloud::{Endpoint, Place};

/// The most VPCs that are remembered: ten times what a large account has. The oldest makes room.
const VPCS_MAX: usize = 1024;

/// Endpoints by VPC, each with the time at which it was seen.
pub(super) struct EndpointCache {
    kept: Duration,
    seen: Mutex<HashMap<(Place, String), Seen>>,
}

/// When, and what.
type Seen = (Instant, Vec<Endpoint>);

impl EndpointCache {
    pub(super) fn new(kept: Duration) -> Self {
        Self { kept, seen: Mutex::default() }
    }

    /// Returns what was seen, if that is recent enough.
    pub(super) fn fresh(&self, place: &Place, vpc_id: &str, now: Instant) -> Option<Vec<Endpoint>> {
        let seen = locked(&self.seen);
        let (time, endpoints) = seen.get(&(place.clone(), vpc_id.to_owned()))?;
        (now.saturating_duration_since(*time) < self.kept).then(|| endpoints.clone())
    }

    /// Remembers what was seen just now.
    pub(super) fn keep(&self, place: &Place, vpc_id: &str, endpoints: Vec<Endpoint>, now: Instant) {
        let mut seen = locked(&self.seen);
        if seen.len() >= VPCS_MAX {
            seen.retain(|_, (time, _)| now.saturating_duration_since(*time) < self.kept);
        }
        if seen.len() >= VPCS_MAX
            && let Some(oldest) = seen.iter().min_by_key(|(_, (time, _))| *time).map(|(key, _)| key.clone())
        {
            seen.remove(&oldest);
        }
        seen.insert((place.clone(), vpc_id.to_owned()), (now, endpoints));
    }
}
