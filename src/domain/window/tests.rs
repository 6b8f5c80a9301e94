//! Windows against the clock on the wall, minute by minute.

use proptest::prelude::*;

use super::*;
use Weekday::{Fri, Mon, Sat, Sun, Thu, Tue, Wed};

fn window(days: &[Weekday], start: &str, end: &str, zone: &str) -> PolicyWindow {
    PolicyWindow { days: days.to_vec(), start: start.into(), end: end.into(), time_zone: zone.into() }
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

const WORKDAYS: [Weekday; 5] = [Mon, Tue, Wed, Thu, Fri];
const EVERY_DAY: [Weekday; 7] = [Mon, Tue, Wed, Thu, Fri, Sat, Sun];

/// `closes` or `opens` is empty where there is no such instant.
#[track_caller]
fn check(windows: &[PolicyWindow], time: &str, closes: Result<&str, &str>) {
    let some = |text: &str| (!text.is_empty()).then(|| at(text));
    let expected = match closes {
        Ok(closes) => Opening::Open(some(closes)),
        Err(opens) => Opening::Closed(some(opens)),
    };
    assert_eq!(Windows::compile(windows).unwrap().at(at(time)), expected, "at {time}");
}

#[test]
fn a_window_is_open_from_its_first_minute_to_the_minute_after_the_last() {
    // Berlin is one hour ahead in winter, two in summer. 2026-03-02 is a Monday.
    let office = [window(&WORKDAYS, "08:00", "18:00", "Europe/Berlin")];
    check(&office, "2026-03-02T06:59:59Z", Err("2026-03-02T07:00:00Z"));
    check(&office, "2026-03-02T07:00:00Z", Ok("2026-03-02T17:00:00Z"));
    check(&office, "2026-03-02T16:59:59.5Z", Ok("2026-03-02T17:00:00Z"));
    check(&office, "2026-03-02T17:00:00Z", Err("2026-03-03T07:00:00Z"));
    // From Friday evening to Monday.
    check(&office, "2026-03-06T17:00:00Z", Err("2026-03-09T07:00:00Z"));
    // Over the change to summer time, on 2026-03-29.
    check(&office, "2026-03-27T17:00:00Z", Err("2026-03-30T06:00:00Z"));
    check(&office, "2026-03-30T06:00:00Z", Ok("2026-03-30T16:00:00Z"));
}

#[test]
fn the_day_is_that_of_the_windows_start_in_its_own_zone() {
    // Friday night, until Saturday morning.
    let night = [window(&[Fri], "22:00", "06:00", "Europe/Berlin")];
    check(&night, "2026-03-06T21:00:00Z", Ok("2026-03-07T05:00:00Z"));
    check(&night, "2026-03-07T04:59:59Z", Ok("2026-03-07T05:00:00Z"));
    check(&night, "2026-03-07T05:00:00Z", Err("2026-03-13T21:00:00Z"));
    check(&night, "2026-03-06T04:00:00Z", Err("2026-03-06T21:00:00Z"));
    // Monday in Auckland begins on Sunday in UTC.
    let auckland = [window(&[Mon], "09:00", "10:00", "Pacific/Auckland")];
    check(&auckland, "2026-03-01T20:30:00Z", Ok("2026-03-01T21:00:00Z"));
    let honolulu = [window(&[Sun], "20:00", "23:59", "Pacific/Honolulu")];
    check(&honolulu, "2026-03-02T07:00:00Z", Ok("2026-03-02T09:59:00Z"));
}

#[test]
fn the_same_start_and_end_is_the_whole_day() {
    let monday = [window(&[Mon], "00:00", "00:00", "UTC")];
    check(&monday, "2026-03-01T23:59:59Z", Err("2026-03-02T00:00:00Z"));
    check(&monday, "2026-03-02T00:00:00Z", Ok("2026-03-03T00:00:00Z"));
    check(&monday, "2026-03-03T00:00:00Z", Err("2026-03-09T00:00:00Z"));
}

#[test]
fn windows_that_touch_or_overlap_are_one() {
    let halves = [
        window(&[Mon], "12:00", "18:00", "UTC"),
        window(&[Mon], "08:00", "12:00", "UTC"),
        window(&[Mon], "17:00", "19:00", "UTC"),
        window(&[Mon], "19:01", "20:00", "UTC"),
    ];
    check(&halves, "2026-03-02T09:00:00Z", Ok("2026-03-02T19:00:00Z"));
    check(&halves, "2026-03-02T19:00:00Z", Err("2026-03-02T19:01:00Z"));
    // What never closes closes no grant.
    check(&[window(&EVERY_DAY, "00:00", "00:00", "America/New_York")], "2026-03-02T09:00:00Z", Ok(""));
    check(&[window(&WORKDAYS, "00:00", "00:00", "UTC")], "2026-03-02T09:00:00Z", Ok("2026-03-07T00:00:00Z"));
}

#[test]
fn no_window_is_never_open() {
    check(&[], "2026-03-02T09:00:00Z", Err(""));
    check(&[window(&[], "08:00", "18:00", "UTC")], "2026-03-02T09:00:00Z", Err(""));
}

#[test]
fn an_hour_that_is_skipped_belongs_to_no_window_and_one_that_comes_twice_counts_once() {
    // In Berlin, 2026-03-29 has no 02:00 to 03:00: at 01:00Z the clock goes from 02:00 to 03:00.
    let skipped = |start, end| [window(&[Sun], start, end, "Europe/Berlin")];
    check(&skipped("02:10", "02:50"), "2026-03-29T01:00:00Z", Err("2026-04-05T00:10:00Z"));
    check(&skipped("02:30", "04:00"), "2026-03-29T00:59:59Z", Err("2026-03-29T01:00:00Z"));
    check(&skipped("02:30", "04:00"), "2026-03-29T01:00:00Z", Ok("2026-03-29T02:00:00Z"));
    check(&skipped("01:00", "02:30"), "2026-03-29T00:59:59Z", Ok("2026-03-29T01:00:00Z"));
    check(&skipped("01:00", "02:30"), "2026-03-29T01:00:00Z", Err("2026-04-04T23:00:00Z"));
    // 2026-10-25 has 02:00 to 03:00 twice: from 00:00Z and from 01:00Z.
    check(&skipped("02:10", "02:50"), "2026-10-25T00:10:00Z", Ok("2026-10-25T00:50:00Z"));
    check(&skipped("02:10", "02:50"), "2026-10-25T01:10:00Z", Err("2026-11-01T01:10:00Z"));
    check(&skipped("01:00", "05:00"), "2026-10-24T23:00:00Z", Ok("2026-10-25T04:00:00Z"));
    // Samoa had no 2011-12-30, a Friday.
    let samoa = [window(&[Fri], "09:00", "17:00", "Pacific/Apia")];
    check(&samoa, "2011-12-30T10:00:00Z", Err("2012-01-05T19:00:00Z"));
}

#[test]
fn a_mistake_names_its_field_and_what_would_be_right() {
    let wrong = [
        window(&[Mon], "24:00", "8:00", "Mars/Base"),
        window(&[Mon], "08:00", "18:00", "UTC"),
        window(&[Mon], "08:60", "+8:00", "../../etc/localtime"),
    ];
    insta::assert_snapshot!(Windows::compile(&wrong).unwrap_err().join("\n"), @r"
    spec.windows[0].start: 24:00 is no time of day; write one such as 08:00
    spec.windows[0].end: 8:00 is no time of day; write one such as 08:00
    spec.windows[0].timeZone: Mars/Base is no IANA time zone that this version knows; write one such as Europe/Berlin or UTC
    spec.windows[2].start: 08:60 is no time of day; write one such as 08:00
    spec.windows[2].end: +8:00 is no time of day; write one such as 08:00
    spec.windows[2].timeZone: ../../etc/localtime is no IANA time zone that this version knows; write one such as Europe/Berlin or UTC
    ");
}

/// The first minute at which the clock on the wall reads that, or later: found by looking at the wall.
fn first_minute(zone: &TimeZone, wanted: DateTime) -> Timestamp {
    let minute = SignedDuration::from_mins(1);
    let mut time = TimeZone::UTC.to_timestamp(wanted).unwrap() - SignedDuration::from_hours(27);
    while zone.to_datetime(time) < wanted {
        time += minute;
    }
    time
}

/// When the windows are open around a date, by the wall alone.
fn on_the_wall(windows: &[PolicyWindow], around: Date) -> Vec<(Timestamp, Timestamp)> {
    let mut spans = Vec::new();
    for window in windows {
        let zone = ZONES.get(&window.time_zone).unwrap();
        let read = |text: &str| -> Time { text.parse().unwrap() };
        for offset in -3..=3 {
            let date = around + Span::new().days(offset);
            let is_day = format!("{:?}", date.weekday()).starts_with(&format!("{:?}", window.days[0]));
            if is_day || window.days.len() == 7 {
                let crosses = window.end <= window.start;
                let last = date + Span::new().days(i32::from(crosses));
                spans.push((
                    first_minute(&zone, date.to_datetime(read(&window.start))),
                    first_minute(&zone, last.to_datetime(read(&window.end))),
                ));
            }
        }
    }
    spans
}

/// Zones and dates at which their clocks change: forth, back, by half an hour, at midnight, by two hours, by a day.
const CHANGES: [(&str, &str); 14] = [
    ("Europe/Berlin", "2026-03-29"),
    ("Europe/Berlin", "2026-10-25"),
    ("America/New_York", "2026-03-08"),
    ("America/New_York", "2035-11-04"),
    ("Australia/Lord_Howe", "2026-04-05"),
    ("Australia/Lord_Howe", "2026-10-04"),
    ("America/Havana", "2026-03-08"),
    ("America/Havana", "2026-11-01"),
    ("Africa/Cairo", "2026-10-29"),
    ("Antarctica/Troll", "2026-03-29"),
    ("Pacific/Apia", "2011-12-30"),
    ("America/Sao_Paulo", "2017-10-15"),
    ("Africa/Casablanca", "2026-02-15"),
    ("Asia/Kathmandu", "2026-03-29"),
];

fn any_window(zone: &'static str) -> impl Strategy<Value = PolicyWindow> {
    // Mostly at night, when clocks change.
    let hour = prop_oneof![4 => 0..5u8, 2 => 20..24u8, 1 => 0..24u8];
    let time = (hour, prop::sample::select(vec![0u8, 1, 30, 59]));
    let days =
        prop_oneof![Just(EVERY_DAY.to_vec()), prop::sample::select(EVERY_DAY.to_vec()).prop_map(|day| vec![day])];
    (days, time.clone(), time).prop_map(move |(days, start, end)| {
        let text = |(hour, minute): (u8, u8)| format!("{hour:02}:{minute:02}");
        window(&days, &text(start), &text(end), zone)
    })
}

fn any_change() -> impl Strategy<Value = (Vec<PolicyWindow>, Date)> {
    prop::sample::select(CHANGES.to_vec())
        .prop_flat_map(|(zone, date)| (prop::collection::vec(any_window(zone), 1..3), Just(date.parse().unwrap())))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn windows_are_open_when_the_clock_on_the_wall_says_so((windows, date) in any_change(), shift in 0..7i64) {
        let spans = on_the_wall(&windows, date);
        let compiled = Windows::compile(&windows).unwrap();
        let is_open = |time: Timestamp| spans.iter().any(|(open, close)| *open <= time && time < *close);
        let noon = TimeZone::UTC.to_timestamp(date.at(12, 0, 0, 0)).unwrap();
        // A day before and a day after, every few minutes and at every edge.
        let steps = (-1440..1440).step_by(7).map(|minutes| noon + SignedDuration::from_mins(minutes + shift));
        let edges = spans.iter().flat_map(|(open, close)| [*open, *close])
            .filter(|edge| edge.duration_since(noon).abs() < SignedDuration::from_hours(24))
            .flat_map(|edge| [edge, edge - SignedDuration::from_secs(1)]);
        for time in steps.chain(edges) {
            match compiled.at(time) {
                Opening::Open(closes) => {
                    prop_assert!(is_open(time), "{} is open at {}", windows.len(), time);
                    if let Some(closes) = closes.filter(|closes| closes.duration_since(noon) < SignedDuration::from_hours(48)) {
                        prop_assert!(!is_open(closes), "still open at {} when it closes", closes);
                        prop_assert!(is_open(closes - SignedDuration::from_secs(1)));
                        let between = spans.iter().map(|(_, close)| *close).filter(|close| time < *close && *close < closes);
                        prop_assert!(between.into_iter().all(is_open), "closed before {}", closes);
                    }
                }
                Opening::Closed(opens) => {
                    prop_assert!(!is_open(time), "closed at {}", time);
                    let expected = spans.iter().filter(|(open, close)| *open > time && open < close).map(|(open, _)| *open).min();
                    if let Some(expected) = expected.filter(|open| open.duration_since(noon) < SignedDuration::from_hours(48)) {
                        prop_assert_eq!(opens, Some(expected));
                    }
                }
            }
        }
    }
}
