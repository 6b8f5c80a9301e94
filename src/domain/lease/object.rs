//! The Lease as Kubernetes keeps it: read in this one place, for who would lead and for who looks on, and written in it.
//!
//! Anybody may have written it who may: what is not there, or out of its bounds, proves nothing and holds for nothing.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

use super::{LEASE_MAX, LeaseRecord, TrailHead};

/// The annotation of the Lease that bears the head of the audit trail, `SEQUENCE:DIGEST`.
const HEAD: &str = "instanceaccess.dev/audit-head";
/// The annotation that names the file in which the head stands, so that whoever has another one knows that it is no longer.
const FILE: &str = "instanceaccess.dev/audit-file";

impl LeaseRecord {
    /// Reads a Lease.
    pub fn of(lease: &Lease) -> Self {
        let metadata = &lease.metadata;
        let spec = lease.spec.clone().unwrap_or_default();
        let time = |time: Option<MicroTime>| time.map(|MicroTime(time)| time);
        let annotation = |name| metadata.annotations.as_ref().and_then(|annotations| annotations.get(name)).cloned();
        let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        Self {
            version: metadata.resource_version.clone(),
            holder: spec.holder_identity.filter(|holder| !holder.is_empty()),
            duration: Duration::from_secs(seconds.unwrap_or_default()),
            acquire_time: time(spec.acquire_time),
            renew_time: time(spec.renew_time),
            transitions: spec.lease_transitions.unwrap_or_default(),
            head: annotation(HEAD).map(|receipt| TrailHead { receipt, file: annotation(FILE) }),
        }
    }

    /// The Lease to write under this name, with all that others have put on the one that was read.
    pub fn onto(&self, known: Lease, name: &str) -> Lease {
        let mut lease = known;
        lease.metadata.name = Some(name.to_owned());
        lease.metadata.resource_version.clone_from(&self.version);
        lease.metadata.managed_fields = None;
        if let Some(TrailHead { receipt, file }) = &self.head {
            let annotations = lease.metadata.annotations.get_or_insert_default();
            annotations.insert(HEAD.to_owned(), receipt.clone());
            match file {
                Some(file) => drop(annotations.insert(FILE.to_owned(), file.clone())),
                None => drop(annotations.remove(FILE)),
            }
        }
        let time = |time: Option<Timestamp>| time.map(MicroTime);
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(self.holder.clone().unwrap_or_default()),
            lease_duration_seconds: Some(i32::try_from(self.duration.as_secs()).unwrap_or(i32::MAX)),
            acquire_time: time(self.acquire_time),
            renew_time: time(self.renew_time),
            lease_transitions: Some(self.transitions),
            ..lease.spec.unwrap_or_default()
        });
        lease
    }

    /// For how long it holds from a renewal on, whoever wrote it.
    pub(super) fn holds(&self) -> Duration {
        self.duration.min(LEASE_MAX)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::{Bystander, Election, Leader, Moment, Step, Terms};
    use super::*;
    use crate::domain::time::plus;

    fn lease(value: Value) -> Lease {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn what_others_put_on_the_lease_stays_there() {
        let known = lease(json!({
            "metadata": {"name": "it", "uid": "u", "resourceVersion": "7", "labels": {"app": "it"}, "annotations": {"theirs": "1"}},
            "spec": {"holderIdentity": "", "leaseDurationSeconds": 9, "strategy": "OldestEmulationVersion"},
        }));
        let seen = LeaseRecord::of(&known);
        assert_eq!((seen.holder.as_deref(), seen.version.as_deref()), (None, Some("7")));
        let head = TrailHead { receipt: "4:ab".to_owned(), file: Some("cd".to_owned()) };
        let wanted = LeaseRecord { holder: Some("a".to_owned()), head: Some(head.clone()), ..seen };
        let written = serde_json::to_value(wanted.onto(known, "it")).unwrap();
        // With it a PUT makes no Lease where one was deleted.
        assert_eq!(written["metadata"]["uid"], "u");
        assert_eq!(written["metadata"]["labels"], json!({"app": "it"}));
        assert_eq!(written["metadata"]["annotations"], json!({"theirs": "1", HEAD: "4:ab", FILE: "cd"}));
        let stored = lease(written.clone());
        assert_eq!(LeaseRecord::of(&stored).head, Some(head));
        // A head of one file and the name of another would say that the one lost its end.
        let unnamed = LeaseRecord { head: Some(TrailHead { receipt: "5:ab".to_owned(), file: None }), ..wanted };
        let unnamed = serde_json::to_value(unnamed.onto(stored, "it")).unwrap();
        assert_eq!(unnamed["metadata"]["annotations"], json!({"theirs": "1", HEAD: "5:ab"}));
        assert_eq!(written["spec"]["holderIdentity"], "a");
        assert_eq!(written["spec"]["strategy"], "OldestEmulationVersion");
    }

    #[test]
    fn what_is_written_reads_back() {
        let record = LeaseRecord {
            version: Some("7".to_owned()),
            holder: Some("a".to_owned()),
            duration: Duration::from_secs(9),
            acquire_time: Some(Timestamp::UNIX_EPOCH),
            renew_time: Some(plus(Timestamp::UNIX_EPOCH, Duration::from_micros(1_500_001))),
            transitions: 3,
            head: Some(TrailHead { receipt: "4:ab".to_owned(), file: None }),
        };
        let stored = lease(serde_json::to_value(record.onto(Lease::default(), "it")).unwrap());
        assert_eq!(LeaseRecord::of(&stored), record);
    }

    /// What stands in the spec, who holds it, and for how long: for both who read it.
    #[test]
    fn a_lease_that_says_nonsense_holds_for_nothing_or_for_what_is_the_most() {
        let rows = [
            (json!(null), None, 0),
            (json!({}), None, 0),
            (json!({"holderIdentity": "a"}), Some("a"), 0),
            (json!({"holderIdentity": ""}), None, 0),
            (json!({"holderIdentity": "", "leaseDurationSeconds": 9}), None, 9),
            (json!({"holderIdentity": "a", "leaseDurationSeconds": 0}), Some("a"), 0),
            (json!({"holderIdentity": "a", "leaseDurationSeconds": -1}), Some("a"), 0),
            (
                json!({"holderIdentity": "a", "leaseDurationSeconds": i32::MIN, "leaseTransitions": i32::MIN}),
                Some("a"),
                0,
            ),
            (json!({"holderIdentity": "a", "leaseDurationSeconds": 9, "leaseTransitions": i32::MAX}), Some("a"), 9),
            (json!({"holderIdentity": "a", "leaseDurationSeconds": 121}), Some("a"), 120),
            (json!({"holderIdentity": "a", "leaseDurationSeconds": i32::MAX}), Some("a"), 120),
        ];
        for (spec, holder, seconds) in rows {
            let record = LeaseRecord::of(&lease(json!({"metadata": {"resourceVersion": "1"}, "spec": spec})));
            let held = Duration::from_secs(seconds);
            assert_eq!((record.holder.as_deref(), record.holds()), (holder, held), "{spec}");
            let at = |ticks: Duration| Moment { ticks, time: plus(Timestamp::UNIX_EPOCH, ticks) };

            // Who would lead waits for as long, for its own lease at least, and wherever nobody stepped down.
            let own = Duration::from_secs(9);
            let patience = held.max(own);
            let takes = |after: Duration| {
                let mut election = Election::new(Terms { identity: "b".to_owned(), lease: own });
                election.read(at(Duration::ZERO), Some(record.clone()));
                election.read(at(after), Some(record.clone()));
                matches!(election.next(at(after), None), Step::Write(_))
            };
            assert!(!takes(patience - Duration::from_millis(1)), "{spec}: taken too early");
            assert!(takes(patience), "{spec}: never taken");

            // Who looks on believes in a holder that renewed for as long, and in none that is nobody.
            let mut bystander = Bystander::default();
            let other = LeaseRecord { version: Some("0".to_owned()), ..record.clone() };
            bystander.read(at(Duration::ZERO), at(Duration::ZERO), Some(other));
            let second = Duration::from_secs(1);
            bystander.read(at(second), at(second), Some(record.clone()));
            let lives = |ticks: Duration| bystander.leader(at(ticks)) == Leader::Lives;
            assert_eq!(lives(second), holder.is_some() && held > second, "{spec}");
            assert!(!lives(held.max(second)), "{spec}: believed in for too long");
        }
    }

    #[test]
    fn a_lease_without_a_spec_is_nobodys_and_not_free() {
        let seen = LeaseRecord::of(&Lease::default());
        assert_eq!((seen.holder.as_deref(), seen.acquire_time, seen.duration), (None, None, Duration::ZERO));
        assert!(!seen.is_free());
    }
}
