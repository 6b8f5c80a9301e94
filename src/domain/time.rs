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
    fn sums_stay_within_the_calendar() {
        assert_eq!(plus(Timestamp::MAX, Duration::from_secs(1)), Timestamp::MAX);
        assert_eq!(minus(Timestamp::MIN, Duration::from_secs(1)), Timestamp::MIN);
        assert_eq!(plus(Timestamp::UNIX_EPOCH, Duration::MAX), Timestamp::MAX);
    }
}
