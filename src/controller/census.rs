//! The census, shared by all turns: told of every version of a request, asked at each decision, and one claim at a time.
//!
//! Whoever holds it takes no other lock, so it may be asked with a request in hand.

use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::api::{InstanceAccess, InstanceAccessLedgerEntrySpec};
use crate::clock::Clock;
use crate::domain::census::{Census, Claim};
use crate::domain::identity::PrincipalRule;
use crate::domain::tally::{Standing, Tally};

/// Who counts.
pub struct Counter {
    census: RwLock<Census>,
    tally: Mutex<Tally>,
    clock: Clock,
    principals: PrincipalRule,
}

impl Counter {
    /// Counts nothing yet.
    pub fn new(clock: Clock, principals: PrincipalRule) -> Self {
        Self { census: RwLock::default(), tally: Mutex::default(), clock, principals }
    }

    /// The counts as they are now; they stay so while this is held.
    pub fn read(&self) -> RwLockReadGuard<'_, Census> {
        self.census.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Census> {
        self.census.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in the version of a request that is kept from now on, under that request's lock: an older one must not come
    /// after a newer.
    pub fn see(&self, request: &InstanceAccess) {
        self.write().see((self.clock)(), &self.principals, request);
        self.tally().see(request);
    }

    /// Every request was seen once.
    pub fn requests_listed(&self) {
        self.write().requests_listed();
    }

    /// Takes in an entry of the ledger, as it is listed at start.
    pub fn recall(&self, entry: &InstanceAccessLedgerEntrySpec) {
        self.write().recall((self.clock)(), entry);
    }

    /// Every entry was recalled once.
    pub fn entries_listed(&self) {
        self.write().entries_listed();
    }

    /// Takes a place; false if there is no room.
    pub fn claim(&self, claim: &Claim) -> bool {
        self.write().claim((self.clock)(), claim).is_ok()
    }

    /// Gives the place of a request back that no grant came of.
    pub fn give_back(&self, uid: &str) {
        self.write().give_back(uid);
    }

    /// The request is gone, and its end is settled.
    pub fn forget(&self, uid: &str) {
        self.write().forget(uid);
        self.tally().forget(uid);
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the grants stand that have not ended; for the metrics.
    pub fn standing(&self) -> Standing {
        self.tally().standing((self.clock)())
    }
}
