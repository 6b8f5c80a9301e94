//! Whether somebody leads, as seen by who never will: a gateway, which pushes keys only while policies are judged.
//!
//! ```text
//! read(asked, record) ─▶ Bystander ─ leader(now) ─▶ Lives | Unclear until … | Nobody
//! ```
//! A time stamp that somebody wrote proves nothing, neither does a holder's name: a Lease that was left behind years ago has
//! both. What proves a leader is that the Lease changed between two reads of our own, by a quorum. The renewal was then sent
//! no earlier than the first of them was begun, and counts from there: the answer errs on the side of nobody. So who has
//! just started waits for one renewal to happen before its eyes, and if none does within a lease, nobody leads.
//!
//! # Caveats
//! As those of [`super`]; and whoever may write the Lease can feign a leader, as he can depose one.

use std::time::Duration;

use super::{LeaseRecord, Moment};

/// How long a lease that was given back, or is new, may be without a holder before nobody leads: the next one looks twice a
/// second, and takes it at once.
const HAND_OVER: Duration = Duration::from_secs(2);

/// Whether somebody leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leader {
    /// Somebody does: was seen to renew, and that was not longer ago than the lease holds.
    Lives,
    /// It is too early to say; look again soon.
    Unclear,
    /// Nobody does, or nobody that we hear of.
    Nobody,
}

#[derive(Clone, Debug)]
struct Seen {
    lease: Option<LeaseRecord>,
    /// When the read that first saw it came back.
    since: Moment,
    /// When the last read that saw it was begun.
    last: Moment,
    /// When it was renewed, at the earliest; none if nobody saw that.
    renewed: Option<Moment>,
}

/// What one process saw of a Lease that it reads now and then.
#[derive(Clone, Debug, Default)]
pub struct Bystander(Option<Seen>);

impl Bystander {
    /// Takes in what the API server said, by a quorum: none, if there is no such Lease. `asked` is when the read was begun,
    /// `now` when its answer came. What was asked for before another that is known already is old, and says nothing.
    pub fn read(&mut self, asked: Moment, now: Moment, lease: Option<LeaseRecord>) {
        match &mut self.0 {
            Some(seen) if asked.ticks < seen.last.ticks => {}
            Some(seen) if seen.lease.as_ref().map(|it| &it.version) == lease.as_ref().map(|it| &it.version) => {
                seen.last = asked;
            }
            seen => {
                let holds = lease.as_ref().is_some_and(|lease| lease.holder.is_some());
                // It was another version still when this was asked for, so what made it this one came after that. One that
                // was not there is none that somebody renewed: who made it may have copied it.
                let before = seen.as_ref().filter(|seen| holds && seen.lease.is_some()).map(|seen| seen.last);
                *seen = Some(Seen { lease, since: now, last: asked, renewed: before });
            }
        }
    }

    /// Whether somebody leads now. The answer is good for no longer.
    pub fn leader(&self, now: Moment) -> Leader {
        let Some(seen) = &self.0 else { return Leader::Unclear };
        let Some(lease) = &seen.lease else { return Leader::Nobody };
        let waited = now.longest_since(seen.since);
        match (&lease.holder, seen.renewed) {
            (Some(_), Some(renewed)) if now.longest_since(renewed) < lease.holds() => Leader::Lives,
            // Seen to lead, and not seen to renew since.
            (Some(_), Some(_)) => Leader::Nobody,
            (Some(_), None) if waited < lease.holds() => Leader::Unclear,
            (None, _) if waited < HAND_OVER => Leader::Unclear,
            (Some(_) | None, None) | (None, Some(_)) => Leader::Nobody,
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use proptest::prelude::*;

    use super::*;
    use crate::domain::time::plus;

    const LEASE: Duration = Duration::from_secs(9);

    fn at(ticks: f64) -> Moment {
        let ticks = Duration::from_secs_f64(ticks);
        Moment { ticks, time: plus(Timestamp::UNIX_EPOCH, Duration::from_secs(1_000_000) + ticks) }
    }

    fn held(version: u64) -> Option<LeaseRecord> {
        let made = LeaseRecord::made(LEASE);
        Some(LeaseRecord { version: Some(version.to_string()), holder: Some("a".to_owned()), ..made })
    }

    fn free(version: u64) -> Option<LeaseRecord> {
        held(version).map(|lease| LeaseRecord { holder: None, ..lease })
    }

    /// Reads, each asked for and answered at these times, and what is then said at others.
    #[track_caller]
    fn check(reads: &[(f64, f64, Option<LeaseRecord>)], expected: &[(f64, Leader)]) {
        let mut bystander = Bystander::default();
        for (asked, answered, lease) in reads {
            bystander.read(at(*asked), at(*answered), lease.clone());
        }
        for (time, leader) in expected {
            assert_eq!(bystander.leader(at(*time)), *leader, "at {time} after {reads:?}");
        }
    }

    #[test]
    fn a_leader_lives_for_a_lease_from_the_last_moment_at_which_it_had_not_renewed() {
        use Leader::{Lives, Nobody, Unclear};
        check(&[], &[(0.0, Unclear), (1e6, Unclear)]);
        // One look proves nothing, whoever's name stands there.
        check(&[(0.0, 0.1, held(1))], &[(0.1, Unclear), (9.0, Unclear), (9.2, Nobody)]);
        check(&[(0.0, 0.1, held(1)), (8.0, 8.1, held(1))], &[(8.2, Unclear), (9.2, Nobody)]);
        // A renewal does, and counts from the look before it.
        check(&[(0.0, 0.1, held(1)), (1.0, 1.1, held(2))], &[(1.1, Lives), (8.9, Lives), (9.1, Nobody)]);
        check(
            &[(0.0, 0.1, held(1)), (2.0, 2.1, held(1)), (3.0, 5.0, held(2))],
            &[(5.0, Lives), (10.9, Lives), (11.1, Nobody)],
        );
        // Looks that are further apart than the lease prove no more than that somebody led in between.
        check(&[(0.0, 0.1, held(1)), (20.0, 20.1, held(2))], &[(20.1, Nobody), (28.0, Nobody)]);
        check(&[(0.0, 0.1, held(1)), (20.0, 20.1, held(2)), (21.0, 21.1, held(3))], &[(21.1, Lives), (28.9, Lives)]);
        // Given back: the next one is waited for, and not for long.
        let given = [(0.0, 0.1, held(1)), (1.0, 1.1, held(2)), (2.0, 2.1, free(3))];
        check(&given, &[(2.1, Unclear), (4.0, Unclear), (4.2, Nobody)]);
        check(&[&given[..], &[(3.0, 3.1, held(4))]].concat(), &[(3.1, Lives), (10.9, Lives), (11.1, Nobody)]);
        // An answer that was overtaken is no change.
        check(&[(0.0, 0.1, held(1)), (2.0, 2.1, held(2)), (1.0, 8.0, held(1))], &[(8.5, Lives), (9.1, Nobody)]);
        // Deleted, and made again.
        check(&[(0.0, 0.1, held(1)), (1.0, 1.1, held(2)), (2.0, 2.1, None)], &[(2.1, Nobody)]);
        check(&[(0.0, 0.1, None), (1.0, 1.1, held(5))], &[(1.1, Unclear), (10.2, Nobody)]);
    }

    #[test]
    fn a_machine_that_was_suspended_believes_in_no_leader_of_before_although_its_ticks_stood_still() {
        let mut bystander = Bystander::default();
        bystander.read(at(0.0), at(0.1), held(1));
        bystander.read(at(1.0), at(1.1), held(2));
        assert_eq!(bystander.leader(Moment { ticks: at(2.0).ticks, ..at(100.0) }), Leader::Nobody);
    }

    proptest! {
        /// Renewals at any times, reads at any times that take any time: whenever a leader is said to live, it did renew
        /// within a lease before. And with both often enough, it is said.
        #[test]
        fn whoever_is_said_to_live_has_renewed_within_a_lease(
            gaps in prop::collection::vec(0.1_f64..20.0, 0..12),
            reads in prop::collection::vec((0.0_f64..6.0, 0.0_f64..4.0, 0.0_f64..1.0), 0..40),
        ) {
            // The lease is there from the start, renewed by nobody knows whom, nobody knows when.
            let renewals: Vec<f64> = gaps.iter().scan(0.0, |time, gap| { *time += gap; Some(*time) }).collect();
            let mut bystander = Bystander::default();
            let mut now = 0.0;
            for (gap, took, part) in reads {
                let asked = now + gap;
                // The API server looks at some moment in between.
                let looked = asked + took * part;
                let version = renewals.iter().filter(|time| **time <= looked).count();
                now = asked + took;
                bystander.read(at(asked), at(now), held(version as u64));
                for later in [0.0, 1.0, 5.0, 8.5, 9.5, 30.0] {
                    let time = now + later;
                    let last = renewals.iter().copied().rfind(|renewal| *renewal <= time);
                    if bystander.leader(at(time)) == Leader::Lives {
                        prop_assert!(last.is_some_and(|last| time - last < LEASE.as_secs_f64()), "{time} {renewals:?}");
                    }
                }
            }
        }

        #[test]
        fn a_leader_that_renews_as_it_does_is_never_doubted_by_who_looks_each_second(offset in 0.0_f64..1.5) {
            let mut bystander = Bystander::default();
            for second in 0..30 {
                let asked = f64::from(second);
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small count")]
                let version = ((asked + offset) / 1.5) as u64;
                bystander.read(at(asked), at(asked + 0.2), held(version));
                if second >= 2 {
                    prop_assert_eq!(bystander.leader(at(asked + 0.9)), Leader::Lives);
                }
            }
        }
    }
}
