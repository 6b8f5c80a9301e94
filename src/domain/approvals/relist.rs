//! When the list of decisions is read again: words that were not kept may count by now.
//!
//! Reading is work for the API server, and whoever may make decisions can make them run out of room again and again. So
//! what ran out of room is read ever more rarely, until it is calm again.

use std::time::Duration;

use jiff::Timestamp;

use crate::domain::time::{due, is_fresh, minus, since};

use super::CLOCK_SKEW_MAX;

/// How long a decision may wait for its request: two watches of one API server are seconds apart, not minutes.
pub const ORPHAN_AGE_MAX: Duration = Duration::from_secs(60);
/// The least gap between two readings, and the first: what can be kept is looked over as often.
pub const GAP_MIN: Duration = Duration::from_secs(15);
/// The longest gap: so late is a word heard, at worst, that came in a flood and before its request.
const GAP_MAX: Duration = Duration::from_secs(240);
/// For so long beyond its gap there must have been room for it to be calm: two looks.
const CALM: Duration = Duration::from_secs(30);

/// Why the list is to be read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// There was no room for some.
    Room,
    /// A policy or a request is there by which some may count that were dropped.
    News,
}

/// When it was read, and whether it is to be read again.
#[derive(Clone, Debug)]
pub struct Relist {
    owed: Option<Why>,
    is_reading: bool,
    last_time: Option<Timestamp>,
    gap: Duration,
}

impl Default for Relist {
    fn default() -> Self {
        Self { owed: None, is_reading: false, last_time: None, gap: GAP_MIN }
    }
}

impl Relist {
    /// Asks for it to be read again.
    pub fn ask(&mut self, why: Why) {
        self.owed = self.owed.max(Some(why));
    }

    /// Whether to read it now. A reading that is under way is never broken off: one that takes long would never end.
    pub fn is_due(&self, now: Timestamp) -> bool {
        let gap = match self.owed {
            None => return false,
            Some(Why::News) => GAP_MIN,
            Some(Why::Room) => self.gap,
        };
        !self.is_reading && self.last_time.is_none_or(|last_time| due(now, last_time, gap) <= now)
    }

    /// A reading begins: what is asked for from now on is not in it.
    pub fn begins(&mut self, now: Timestamp) {
        if self.owed == Some(Why::Room)
            && let Some(last_time) = self.last_time
        {
            let is_calm = since(now, last_time) > self.gap + CALM;
            self.gap = if is_calm { GAP_MIN } else { (self.gap * 2).min(GAP_MAX) };
        }
        self.owed = None;
        self.is_reading = true;
    }

    /// It was read to its end.
    pub fn ended(&mut self, now: Timestamp) {
        self.is_reading = false;
        self.last_time = Some(now);
    }
}

/// Whether a decision about a request that is heard of only now may have waited too long for it, and been dropped.
pub fn is_late(now: Timestamp, created_time: Timestamp) -> bool {
    !is_fresh(now, minus(created_time, CLOCK_SKEW_MAX), ORPHAN_AGE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    /// When the list is read, of looks every 15 s, if these seconds ask for it; each reading takes two seconds.
    fn read_at(until: i64, asks: impl Fn(i64) -> Option<Why>) -> Vec<i64> {
        let mut relist = Relist::default();
        relist.begins(at(0));
        relist.ended(at(0));
        let mut read = Vec::new();
        for second in (15..=until).step_by(15) {
            if let Some(why) = asks(second) {
                relist.ask(why);
            }
            if relist.is_due(at(second)) {
                relist.begins(at(second));
                relist.ended(at(second));
                read.push(second);
            }
        }
        read
    }

    #[test]
    fn a_flood_makes_it_be_read_ever_more_rarely_and_calm_ends_that() {
        use Why::{News, Room};
        type Asks = fn(i64) -> Option<Why>;
        let rows: [(&str, Asks, &[i64]); 5] = [
            ("nobody", |_| None, &[]),
            ("once", |second| (second == 60).then_some(Room), &[60]),
            ("a flood", |_| Some(Room), &[15, 45, 105, 225, 465, 705, 945]),
            // Calm from 105 to 300: from then on as at first.
            (
                "two floods",
                |second| (second <= 105 || second >= 300).then_some(Room),
                &[15, 45, 105, 300, 315, 345, 405, 525, 765],
            ),
            // What may count by now does not wait for the flood.
            (
                "news in a flood",
                |second| Some(if second == 300 { News } else { Room }),
                &[15, 45, 105, 225, 300, 540, 780],
            ),
        ];
        for (what, asks, expected) in rows {
            assert_eq!(read_at(945, asks), expected, "{what}");
        }
    }

    #[test]
    fn a_reading_is_not_broken_off_and_what_is_asked_for_meanwhile_is_read_after_it() {
        let mut relist = Relist::default();
        relist.begins(at(0));
        relist.ask(Why::News);
        assert!(!relist.is_due(at(100)));
        relist.ended(at(100));
        assert!(!relist.is_due(at(114)));
        assert!(relist.is_due(at(115)));
        // Of a clock that was stepped back.
        assert!(relist.is_due(at(50)));
        relist.begins(at(115));
        relist.ended(at(116));
        assert!(!relist.is_due(at(1000)), "nobody has asked since");
    }

    #[test]
    fn a_request_is_late_when_its_earliest_decision_may_have_been_dropped() {
        for (age, late) in [(0, false), (55, false), (56, true), (3600, true), (-1, false), (-6, true)] {
            assert_eq!(is_late(at(0), at(-age)), late, "{age} s old");
        }
    }
}
