//! One lane for each place, so that a slow or throttled region holds up no other.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crate::domain::cloud::{Failure, FailureClass, Place};

use super::class::{self, failure};
use super::{PLACES_MAX, locked};

/// The lanes in use, at most [`PLACES_MAX`]: when a new one needs room, the idle one unused for longest goes.
#[derive(Debug)]
pub(super) struct Lanes<L> {
    all: Mutex<(u64, HashMap<Place, (u64, Arc<L>)>)>,
}

impl<L> Lanes<L> {
    pub(super) fn new() -> Self {
        Self { all: Mutex::new((0, HashMap::new())) }
    }

    /// Returns the lane of `place`, made if there is none.
    ///
    /// # Errors
    /// `Throttled` if every lane is busy; the caller comes back.
    pub(super) fn lane(&self, place: &Place, make: impl FnOnce() -> L) -> Result<Arc<L>, Failure> {
        let mut guard = locked(&self.all);
        let (uses, lanes) = &mut *guard;
        *uses += 1;
        if let Some((used, lane)) = lanes.get_mut(place) {
            *used = *uses;
            return Ok(lane.clone());
        }
        if lanes.len() >= PLACES_MAX {
            // A lane that nobody else holds has neither waiters nor calls.
            let idle = lanes.iter().filter(|(_, (_, lane))| Arc::strong_count(lane) == 1);
            let oldest = idle.min_by_key(|(_, (used, _))| *used).map(|(place, _)| place.clone());
            let Some(oldest) = oldest else {
                return Err(failure(
                    FailureClass::Throttled,
                    class::QUEUE_FULL,
                    &format!("calls to {PLACES_MAX} regions are under way; {} waits for one to end", place.region),
                ));
            };
            lanes.remove(&oldest);
        }
        let lane = Arc::new(make());
        lanes.insert(place.clone(), (*uses, lane.clone()));
        Ok(lane)
    }

    /// Returns every lane there is.
    pub(super) fn all(&self) -> Vec<(Place, Arc<L>)> {
        locked(&self.all).1.iter().map(|(place, (_, lane))| (place.clone(), lane.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::cloud::Region;

    fn place(n: usize) -> Place {
        Place { region: Region::parse(&format!("us-west-{n}")).unwrap() }
    }

    #[test]
    fn the_idle_lane_unused_for_longest_makes_room_and_a_busy_one_never() {
        let lanes = Lanes::new();
        let busy: Vec<_> = (0..PLACES_MAX - 1).map(|n| lanes.lane(&place(n), || n).unwrap()).collect();
        drop(lanes.lane(&place(98), || 98).unwrap());
        let last = lanes.lane(&place(99), || 99).unwrap();
        assert_eq!(lanes.lane(&place(97), || 97).unwrap_err().class, FailureClass::Throttled);
        drop(last);
        assert_eq!(*lanes.lane(&place(97), || 97).unwrap(), 97);
        assert_eq!(busy.len() + 1, lanes.all().len());
    }
}
