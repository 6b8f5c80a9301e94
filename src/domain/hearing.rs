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

    proptest! {
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
