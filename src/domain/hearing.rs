//! Whether a watch tells what happens: one that is silent may be quiet or deaf, and does not say which.

use std::time::Duration;

use jiff::Timestamp;

use super::time::{is_fresh, plus};

/// Age up to which a failure counts, if nothing was told since: longer than a rest between two tries and a try together, so
/// that whoever fails again and again counts as deaf all the time.
pub const FAILURE_AGE_MAX: Duration = Duration::from_secs(45);

/// A watch that failed, and told nothing since. It may be well again, and quiet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failing {
    /// When it first failed.
    pub since_time: Timestamp,
    /// When it last failed.
    pub last_time: Timestamp,
    /// Whether it reads everything anew since: then it is not quiet, but behind, until it has.
    pub lists: bool,
}

impl Failing {
    /// It failed; `before` is how it was until then.
    pub fn again(before: Option<Self>, now: Timestamp) -> Self {
        let since_time = before.filter(|failing| failing.is_deaf(now)).map_or(now, |failing| failing.since_time);
        Self { since_time, last_time: now, lists: false }
    }

    /// Whether it counts as deaf. By a clock that was stepped back nobody can tell, and it does not.
    pub fn is_deaf(&self, now: Timestamp) -> bool {
        self.lists || is_fresh(now, self.last_time, FAILURE_AGE_MAX)
    }

    /// Until when it counts as deaf, if it neither fails again nor tells anything.
    pub fn end_time(&self) -> Timestamp {
        plus(self.last_time, FAILURE_AGE_MAX)
    }
}

/// Which list of three: one is read after those before it, or again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listed {
    /// The requests.
    Requests,
    /// The policies, by which they are judged.
    Policies,
    /// The decisions: which of them count is a matter of the other two.
    Decisions,
}

/// Whether requests, and what they are judged by, are of one history.
///
/// Where the API server's is undone (an etcd that is restored from a copy), each watch hears of it for itself, seconds apart,
/// and requests of the copy would be judged by policies and approvals that are not in it. So whenever requests are read anew,
/// the others are as well, and nothing is granted meanwhile. The default is that nothing is read anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rereading {
    since_time: Option<Timestamp>,
    requests: Reading,
    policies: Reading,
    decisions: Reading,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Reading {
    #[default]
    Done,
    Begun,
    /// A list is under way, which is let finish, and another one is owed.
    BegunAndOwed,
    Owed,
}

impl Rereading {
    /// Requests are read anew from here on: whatever list of the others is under way does not count. Policies are to be read.
    pub fn begins(&mut self, now: Timestamp) {
        *self = Self {
            since_time: self.since_time.or(Some(now)),
            requests: Reading::Begun,
            policies: Reading::Owed,
            decisions: Reading::Owed,
        };
    }

    /// Decisions are read anew: which of them count is another matter by now. Returns whether they are to be read now; if not,
    /// after what is read before them, or after the list that is under way: broken off each time, it would never end.
    pub fn begins_with_decisions(&mut self, now: Timestamp) -> bool {
        self.since_time = self.since_time.or(Some(now));
        let is_begun = matches!(self.decisions, Reading::Begun | Reading::BegunAndOwed);
        self.decisions = if is_begun { Reading::BegunAndOwed } else { Reading::Owed };
        !is_begun && self.decisions_may_begin()
    }

    /// A list is asked for.
    pub fn lists(&mut self, list: Listed) {
        let may_begin = list != Listed::Decisions || self.decisions_may_begin();
        let reading = self.of(list);
        if may_begin && matches!(reading, Reading::Owed | Reading::BegunAndOwed) {
            *reading = Reading::Begun;
        }
    }

    /// A list is through. Returns whether decisions are to be read now.
    pub fn listed(&mut self, list: Listed) -> bool {
        let could_begin = self.decisions_may_begin();
        let reading = self.of(list);
        let is_again = *reading == Reading::BegunAndOwed;
        match reading {
            Reading::Begun => *reading = Reading::Done,
            Reading::BegunAndOwed => *reading = Reading::Owed,
            Reading::Done | Reading::Owed => {}
        }
        if self.decisions == Reading::Done && self.decisions_may_begin() {
            self.since_time = None;
        }
        self.decisions == Reading::Owed && self.decisions_may_begin() && (is_again || !could_begin)
    }

    /// Since when something is still to be read; none: all was.
    pub fn since_time(&self) -> Option<Timestamp> {
        self.since_time
    }

    fn decisions_may_begin(&self) -> bool {
        self.requests == Reading::Done && self.policies == Reading::Done
    }

    fn of(&mut self, list: Listed) -> &mut Reading {
        match list {
            Listed::Requests => &mut self.requests,
            Listed::Policies => &mut self.policies,
            Listed::Decisions => &mut self.decisions,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_watch_that_failed_once_and_is_quiet_since_is_deaf_for_a_while() {
        let failing = Failing::again(None, at(10));
        for (second, expected) in [(10, true), (55, true), (56, false), (9, false)] {
            assert_eq!(failing.is_deaf(at(second)), expected, "{second}");
        }
        assert_eq!(Failing::again(Some(failing), at(300)).since_time, at(300), "it was well in between");
    }

    #[test]
    fn a_watch_that_lists_anew_is_deaf_until_it_has_read_all_however_long_that_takes() {
        let failing = Failing { lists: true, ..Failing::again(None, at(10)) };
        assert!(failing.is_deaf(at(10_000)));
        let again = Failing::again(Some(failing), at(20_000));
        assert_eq!((again.since_time, again.lists), (at(10), false), "the list failed");
    }

    use Listed::{Decisions, Policies, Requests};

    fn read(reading: &mut Rereading, list: Listed) -> bool {
        reading.lists(list);
        reading.listed(list)
    }

    #[test]
    fn decisions_are_read_once_requests_and_policies_were_in_either_order() {
        for (first, second) in [(Requests, Policies), (Policies, Requests)] {
            let mut reading = Rereading::default();
            assert!(reading.since_time().is_none());
            reading.begins(at(7));
            assert!(!read(&mut reading, first), "{second:?} are owed");
            assert!(read(&mut reading, second), "now decisions are to be read");
            assert!(reading.since_time().is_some());
            assert!(!read(&mut reading, Decisions) && reading.since_time().is_none());
        }
    }

    #[test]
    fn a_list_that_was_begun_before_requests_were_read_anew_does_not_count() {
        let mut reading = Rereading::default();
        reading.lists(Policies);
        reading.lists(Decisions);
        reading.begins(at(7));
        assert!(!reading.listed(Requests) && !reading.listed(Policies) && !reading.listed(Decisions));
        assert!(reading.since_time().is_some());
        assert!(read(&mut reading, Policies));
        // Begun too early, when it was not known yet which decisions count.
        reading.begins(at(7));
        reading.lists(Decisions);
        assert!(!reading.listed(Requests));
        assert!(read(&mut reading, Policies));
        assert!(!reading.listed(Decisions));
        assert!(reading.since_time().is_some());
        assert!(!read(&mut reading, Decisions) && reading.since_time().is_none());
    }

    #[test]
    fn requests_that_are_read_anew_once_more_begin_it_all_anew() {
        let mut reading = Rereading::default();
        reading.begins(at(7));
        assert!(!reading.listed(Requests));
        assert!(read(&mut reading, Policies));
        reading.lists(Decisions);
        reading.begins(at(9));
        assert!(!reading.listed(Decisions));
        assert_eq!(reading.since_time(), Some(at(7)), "who waits, waits since then");
    }

    #[test]
    fn decisions_alone_are_read_anew_and_not_before_what_is_read_before_them() {
        let mut reading = Rereading::default();
        reading.lists(Decisions);
        assert!(reading.begins_with_decisions(at(7)), "at once");
        assert!(!reading.listed(Decisions) && reading.since_time() == Some(at(7)), "the list that was begun before");
        assert!(!read(&mut reading, Decisions) && reading.since_time().is_none());
        reading.begins(at(8));
        assert!(!reading.listed(Requests));
        reading.lists(Policies);
        assert!(!reading.begins_with_decisions(at(9)));
        assert!(reading.listed(Policies), "now");
        assert!(!read(&mut reading, Decisions) && reading.since_time().is_none());
    }

    #[test]
    fn a_list_of_decisions_that_counts_is_let_finish_and_one_more_follows_however_often_that_is_asked_for() {
        let mut reading = Rereading::default();
        assert!(reading.begins_with_decisions(at(7)));
        reading.lists(Decisions);
        for _ in 0..3 {
            assert!(!reading.begins_with_decisions(at(8)), "it is not broken off");
        }
        assert!(reading.listed(Decisions), "and read again");
        assert_eq!(reading.since_time(), Some(at(7)));
        assert!(!read(&mut reading, Decisions) && reading.since_time().is_none());
        // One that failed is begun again, and has it all.
        assert!(reading.begins_with_decisions(at(9)));
        reading.lists(Decisions);
        assert!(!reading.begins_with_decisions(at(9)));
        reading.lists(Decisions);
        assert!(!reading.listed(Decisions) && reading.since_time().is_none());
    }

    #[test]
    fn lists_that_nobody_asked_for_change_nothing() {
        let mut reading = Rereading::default();
        for list in [Decisions, Policies, Requests, Policies] {
            assert!(!read(&mut reading, list) && reading.since_time().is_none());
        }
    }

    proptest! {
        #[test]
        fn it_is_over_only_when_all_three_were_read_since_the_last_beginning_decisions_last(
            steps in prop::collection::vec((0..3_usize, 0..3_usize), 1..60)
        ) {
            let lists = [Requests, Policies, Decisions];
            let (mut reading, mut owed) = (Rereading::default(), [false; 3]);
            // When each list that is under way was begun, and when the others were through.
            let (mut begun, mut through, mut began) = ([None::<usize>; 3], [0; 3], 0);
            for (now, (what, which)) in steps.into_iter().enumerate() {
                let now = now + 1;
                match what {
                    0 => {
                        reading.begins(at(7));
                        (owed, began, begun[0]) = ([true; 3], now, Some(now));
                    }
                    1 => {
                        reading.lists(lists[which]);
                        begun[which] = Some(now);
                    }
                    _ => {
                        reading.listed(lists[which]);
                        // Requests are read anew from the beginning on, whenever their list was asked for.
                        let since = begun[which].take().filter(|since| *since >= began);
                        let others = which < 2 || !owed[0] && !owed[1] && since.is_some_and(|since| since > through[0].max(through[1]));
                        if (since.is_some() || which == 0) && others && owed[which] {
                            owed[which] = false;
                            through[which] = now;
                        }
                    }
                }
                prop_assert_eq!(reading.since_time().is_some(), owed != [false; 3]);
            }
        }

        #[test]
        fn a_watch_that_goes_on_to_fail_is_deaf_all_the_time_since_it_first_did(gaps in prop::collection::vec(1..=45_i64, 1..50)) {
            let (mut now, mut failing) = (100, Failing::again(None, at(100)));
            for gap in gaps {
                for second in now..=now + gap {
                    prop_assert!(failing.is_deaf(at(second)));
                    prop_assert_eq!(failing.since_time, at(100));
                }
                now += gap;
                failing = Failing::again(Some(failing), at(now));
            }
        }
    }
}
