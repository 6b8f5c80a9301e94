//! How the grants stand that have not ended: how many, how many of them are being taken back, and how late the latest is.
//!
//! A counter of ends says nothing of an end that does not come; this does.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;

use super::census::Mark;
use super::condition::{ActiveReason, find};
use super::time::since;
use crate::api::{ConditionType, InstanceAccess};

/// The grants that have not ended, by their requests' uids. As many as the API server holds.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    live: HashMap<Mark, Live>,
}

#[derive(Clone, Copy, Debug)]
struct Live {
    expiration_time: Timestamp,
    is_taken_back: bool,
}

/// How they stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Grants that have not ended.
    pub live: usize,
    /// Of these, the ones that are being taken back: no key is pushed, and the last one fades.
    pub taken_back: usize,
    /// How far the longest overdue end lies behind its `expirationTime`; zero if none is overdue.
    pub overdue: Duration,
}

impl Tally {
    /// Takes in the version of a request that is kept from now on.
    pub fn see(&mut self, request: &InstanceAccess) {
        let (Some(uid), status) = (request.metadata.uid.as_deref(), request.status.as_ref()) else { return };
        let live = status.filter(|status| status.end_time.is_none()).and_then(|status| {
            let reason = find(&status.conditions, ConditionType::Active).map(|active| active.reason.as_str());
            Some(Live {
                expiration_time: status.grant.as_ref()?.expiration_time.0,
                is_taken_back: reason == Some(ActiveReason::RevocationPending.as_str()),
            })
        });
        match live {
            Some(live) => drop(self.live.insert(Mark::of([uid]), live)),
            None => self.forget(uid),
        }
    }

    /// The request is gone, and its end is settled.
    pub fn forget(&mut self, uid: &str) {
        self.live.remove(&Mark::of([uid]));
    }

    /// How they stand now.
    pub fn standing(&self, now: Timestamp) -> Standing {
        let all = self.live.values();
        Standing {
            live: self.live.len(),
            taken_back: all.clone().filter(|live| live.is_taken_back).count(),
            overdue: all.map(|live| since(now, live.expiration_time)).max().unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn request(uid: &str, status: Value) -> InstanceAccess {
        serde_json::from_value(json!({
            "apiVersion": "instanceaccess.dev/v1alpha1",
            "kind": "InstanceAccess",
            "metadata": {"name": uid, "namespace": "team", "uid": uid},
            "spec": {"target": {"instanceId": "i-0123456789abcdef0"}, "osUser": "ec2-user", "sshPublicKey": "ssh-ed25519 A"},
            "status": status,
        }))
        .unwrap()
    }

    fn granted(uid: &str, expiration: i64, reason: &str, end: Option<i64>) -> InstanceAccess {
        let active = json!({
            "type": "Active", "status": "True", "reason": reason, "message": "", "observedGeneration": 1,
            "lastTransitionTime": at(0),
        });
        let mut status = json!({
            "conditions": [active],
            "grant": {"id": "g-1", "startTime": at(0), "expirationTime": at(expiration)},
        });
        if let Some(end) = end {
            status["endTime"] = json!(at(end));
        }
        request(uid, status)
    }

    #[test]
    fn an_end_that_does_not_come_is_overdue_by_the_second_until_it_comes() {
        let mut tally = Tally::default();
        assert_eq!(tally.standing(at(0)), Standing::default());
        tally.see(&request("waits", json!({})));
        tally.see(&granted("a", 100, "Granted", None));
        tally.see(&granted("b", 130, "Granted", None));
        let seconds = |now: i64, tally: &Tally| tally.standing(at(now)).overdue.as_secs();
        assert_eq!(tally.standing(at(50)), Standing { live: 2, ..Standing::default() });
        assert_eq!([seconds(100, &tally), seconds(101, &tally), seconds(140, &tally)], [0, 1, 40]);
        tally.see(&granted("a", 100, "Granted", Some(140)));
        assert_eq!(seconds(140, &tally), 10, "of the two that are late the later one counts");
        tally.see(&granted("b", 130, "Expired", Some(141)));
        assert_eq!(tally.standing(at(900)), Standing::default());
    }

    #[test]
    fn a_grant_that_is_taken_back_counts_as_that_until_it_ended_or_is_gone() {
        let mut tally = Tally::default();
        tally.see(&granted("a", 100, "Granted", None));
        // Its expirationTime moves to when the last key has faded.
        tally.see(&granted("a", 60, "RevocationPending", None));
        let standing = tally.standing(at(75));
        assert_eq!(standing, Standing { live: 1, taken_back: 1, overdue: Duration::from_secs(15) });
        tally.forget("a");
        assert_eq!(tally.standing(at(75)), Standing::default());
    }
}
