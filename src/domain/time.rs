//! Time, as the API keeps it: whole seconds in UTC.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// Rounds down to the whole second: a Kubernetes `Time` drops the fraction when it is serialised, and memory and store
/// must agree.
pub fn whole_second(time: Timestamp) -> Timestamp {
    let second = time.as_second();
    let floor = if time.subsec_nanosecond() < 0 { second - 1 } else { second };
    Timestamp::from_second(floor).unwrap_or(Timestamp::MIN)
}

/// Rounds up to the whole second.
pub fn whole_second_up(time: Timestamp) -> Timestamp {
    let floor = whole_second(time);
    if floor == time { floor } else { plus(floor, Duration::from_secs(1)) }
}

/// Adds, and stays within the calendar: a hostile `endTime` in the year 9999 must not panic.
pub fn plus(time: Timestamp, duration: Duration) -> Timestamp {
    SignedDuration::try_from(duration)
        .ok()
        .and_then(|duration| time.checked_add(duration).ok())
        .unwrap_or(Timestamp::MAX)
}

/// Subtracts, and stays within the calendar.
pub fn minus(time: Timestamp, duration: Duration) -> Timestamp {
    SignedDuration::try_from(duration)
        .ok()
        .and_then(|duration| time.checked_sub(duration).ok())
        .unwrap_or(Timestamp::MIN)
}

/// When what follows `time` by `gap` is due.
///
/// A `time` that is still to come was read off a clock that has been stepped back since: then it is due now, lest
/// everything rests until that clock is reached again.
pub fn due(now: Timestamp, time: Timestamp, gap: Duration) -> Timestamp {
    if time > now { now } else { plus(time, gap) }
}

/// Whether something of `time` is at most that old; what is of the future (see [`due`]) is of no known age.
pub fn is_fresh(now: Timestamp, time: Timestamp, age_max: Duration) -> bool {
    time <= now && since(now, time) <= age_max
}

/// How long until then; zero if it is past.
pub fn until(now: Timestamp, then: Timestamp) -> Duration {
    Duration::try_from(then.duration_since(now)).unwrap_or(Duration::ZERO)
}

/// How long since then; zero if it is still to come.
pub fn since(now: Timestamp, then: Timestamp) -> Duration {
    until(then, now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_seconds_round_down_also_before_1970() {
        for (text, floor, ceiling) in [
            ("2026-03-01T08:00:00.999999999Z", "2026-03-01T08:00:00Z", "2026-03-01T08:00:01Z"),
            ("2026-03-01T08:00:00Z", "2026-03-01T08:00:00Z", "2026-03-01T08:00:00Z"),
            ("1969-12-31T23:59:58.5Z", "1969-12-31T23:59:58Z", "1969-12-31T23:59:59Z"),
        ] {
            let time: Timestamp = text.parse().unwrap();
            assert_eq!(whole_second(time), floor.parse().unwrap(), "{text}");
            assert_eq!(whole_second_up(time), ceiling.parse().unwrap(), "{text}");
        }
    }

    #[test]
    fn what_is_of_the_future_is_due_now_and_not_fresh() {
        let now: Timestamp = "2026-03-01T08:00:00Z".parse().unwrap();
        let gap = Duration::from_secs(60);
        assert_eq!(due(now, minus(now, gap), gap), now);
        assert_eq!(due(now, now, gap), plus(now, gap));
        assert_eq!(due(now, plus(now, gap), gap), now);
        assert!(is_fresh(now, minus(now, gap), gap));
        assert!(!is_fresh(now, minus(now, gap * 2), gap));
        assert!(!is_fresh(now, plus(now, gap), gap));
    }

    #[test]
    fn sums_stay_within_the_calendar() {
        assert_eq!(plus(Timestamp::MAX, Duration::from_secs(1)), Timestamp::MAX);
        assert_eq!(minus(Timestamp::MIN, Duration::from_secs(1)), Timestamp::MIN);
        assert_eq!(plus(Timestamp::UNIX_EPOCH, Duration::MAX), Timestamp::MAX);
    }
}
