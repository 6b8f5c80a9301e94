//! One lane for each place, so that a slow or throttled region holds up no other.

use std::sync::{Arc, Mutex};

use crate::domain::cloud::{Failure, FailureClass, Place};

use super::class::{self, failure};
use super::recent::Recent;
use super::{PLACES_MAX, locked};

/// The lanes in use, at most [`PLACES_MAX`]: when a new one needs room, the idle one unused for longest goes.
#[derive(Debug)]
pub(super) struct Lanes<L> {
    all: Mutex<Recent<Place, Arc<L>>>,
}

impl<L> Lanes<L> {
    pub(super) fn new() -> Self {
        Self { all: Mutex::new(Recent::new()) }
    }

    /// Returns the lane of `place`, made if there is none.
    ///
    /// # Errors
    /// `Throttled` if every lane is busy; the caller comes back.
    pub(super) fn lane(&self, place: &Place, make: impl FnOnce() -> L) -> Result<Arc<L>, Failure> {
        let mut all = locked(&self.all);
        if let Some(lane) = all.get(place) {
            return Ok(lane);
        }
        // A lane that nobody else holds has neither waiters nor calls.
        if !all.make_room(PLACES_MAX, |lane| Arc::strong_count(lane) == 1) {
            let text = format!("calls to {PLACES_MAX} regions are under way; {} waits for one to end", place.region);
            return Err(failure(FailureClass::Throttled, class::QUEUE_FULL, &text));
        }
        let lane = Arc::new(make());
        all.insert(place.clone(), lane.clone());
        Ok(lane)
    }

    /// Returns every lane there is.
    pub(super) fn all(&self) -> Vec<(Place, Arc<L>)> {
        locked(&self.all).iter().map(|(place, lane)| (place.clone(), lane.clone())).collect()
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
