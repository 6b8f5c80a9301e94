//! When access may be had: the windows of a policy, in the wall-clock time of an IANA zone.
//!
//! A window opens at the first instant at which its zone's clock reads `start` or later, and closes at the first at which
//! it reads `end` or later. So an hour that is skipped belongs to no window, and an hour that comes twice counts the first
//! time: each window of a day opens once and closes once.

use std::sync::LazyLock;

use jiff::civil::{Date, DateTime, Time};
use jiff::tz::{AmbiguousOffset, TimeZone, TimeZoneDatabase};
use jiff::{SignedDuration, Span, Timestamp};

use crate::api::{PolicyWindow, Weekday};

/// How far ahead an end of the windows, or the next opening, is looked for, in days: a week, in which every weekday
/// comes, a day for a window that crosses midnight, and one for a date that a zone skipped.
const HORIZON_DAYS: i32 = 9;
/// How many days before the present one a window may have opened: it lasts a day at most, and the date is the zone's.
const BACK_DAYS: i32 = 2;
/// The longest ttl of a policy, in seconds: see `PolicyTtl`. Windows that leave no gap before the horizon never end one.
const TTL_SECONDS_MAX: i32 = 604_800;
const _: () = assert!(HORIZON_DAYS * 86_400 > TTL_SECONDS_MAX + 86_400);

/// The zones, as this version knows them. Never the machine's own: an image without files has none, and two replicas must
/// not differ about when a window opens.
static ZONES: LazyLock<TimeZoneDatabase> = LazyLock::new(TimeZoneDatabase::bundled);

/// The windows of one policy.
#[derive(Clone, Debug)]
pub struct Windows(Vec<Window>);

#[derive(Clone, Debug)]
struct Window {
    days: Vec<Weekday>,
    start: Time,
    end: Time,
    zone: TimeZone,
    text: String,
}

/// Whether a policy's windows are open at an instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// They are, until then; none: for longer than any grant may last.
    Open(Option<Timestamp>),
    /// They are not, and open next then; none: never.
    Closed(Option<Timestamp>),
}

impl Windows {
    /// Reads the windows, or says what is wrong with each: the field, the value, and what would be right.
    pub fn compile(windows: &[PolicyWindow]) -> Result<Self, Vec<String>> {
        let mut findings = Vec::new();
        let mut compiled = Vec::with_capacity(windows.len());
        for (number, window) in windows.iter().enumerate() {
            let field = |name: &str| format!("spec.windows[{number}].{name}");
            let mut time = |name: &str, text: &str| {
                let time = clock_time(text);
                if time.is_none() {
                    findings.push(format!("{}: {text} is no time of day; write one such as 08:00", field(name)));
                }
                time
            };
            let (start, end) = (time("start", &window.start), time("end", &window.end));
            let zone = ZONES.get(&window.time_zone).ok();
            if zone.is_none() {
                findings.push(format!(
                    "{}: {} is no IANA time zone that this version knows; write one such as Europe/Berlin or UTC",
                    field("timeZone"),
                    window.time_zone
                ));
            }
            if let (Some(start), Some(end), Some(zone)) = (start, end, zone) {
                let days: Vec<String> = window.days.iter().map(|day| format!("{day:?}")).collect();
                let text = format!("{} {}-{} {}", days.join(","), window.start, window.end, window.time_zone);
                compiled.push(Window { days: window.days.clone(), start, end, zone, text });
            }
        }
        if findings.is_empty() { Ok(Self(compiled)) } else { Err(findings) }
    }

    /// Whether they are open at that instant, and when this ends. Windows that touch or overlap are one.
    pub fn at(&self, time: Timestamp) -> Opening {
        let mut spans: Vec<(Timestamp, Timestamp)> =
            self.0.iter().flat_map(|window| window.spans(time)).filter(|(open, close)| open < close).collect();
        spans.sort_unstable();
        let mut closes = None;
        for (open, close) in &spans {
            let reached = closes.unwrap_or(time);
            if *open <= reached && reached < *close {
                closes = Some(*close);
            }
        }
        let horizon = time.checked_add(SignedDuration::from_secs(i64::from(TTL_SECONDS_MAX)));
        match closes {
            Some(closes) if horizon.is_ok_and(|horizon| closes > horizon) => Opening::Open(None),
            Some(closes) => Opening::Open(Some(closes)),
            None => Opening::Closed(spans.iter().map(|(open, _)| *open).find(|open| *open > time)),
        }
    }

    /// How they read in a refusal.
    pub fn texts(&self) -> Vec<String> {
        self.0.iter().map(|window| window.text.clone()).collect()
    }
}

impl Window {
    /// When it opens and closes on the days around that instant.
    fn spans(&self, time: Timestamp) -> impl Iterator<Item = (Timestamp, Timestamp)> {
        let today = self.zone.to_datetime(time).date();
        (-BACK_DAYS..=HORIZON_DAYS).filter_map(move |offset| {
            let date = today.checked_add(Span::new().days(offset)).ok()?;
            if !self.days.contains(&weekday(date)) {
                return None;
            }
            // An end that is not later than the start is on the next day; the same time is the whole day.
            let last = if self.end > self.start { date } else { date.tomorrow().ok()? };
            let opens = first_instant(&self.zone, date.to_datetime(self.start))?;
            let closes = first_instant(&self.zone, last.to_datetime(self.end))?;
            Some((opens, closes))
        })
    }
}

/// The first instant at which the zone's clock reads that date and time, or later.
fn first_instant(zone: &TimeZone, time: DateTime) -> Option<Timestamp> {
    match zone.to_ambiguous_timestamp(time).offset() {
        AmbiguousOffset::Unambiguous { offset } => offset.to_timestamp(time).ok(),
        AmbiguousOffset::Fold { before, .. } => before.to_timestamp(time).ok(),
        AmbiguousOffset::Gap { before, .. } => {
            // The clock skips it: then the instant of the skip, which is the last one before `time` by the old offset.
            let later = before.to_timestamp(time).ok()?.checked_add(SignedDuration::from_secs(1)).ok()?;
            zone.preceding(later).next().map(|transition| transition.timestamp())
        }
    }
}

fn clock_time(text: &str) -> Option<Time> {
    let (hour, minute) = text.split_once(':')?;
    let two = |digits: &str| {
        (digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_digit())).then(|| digits.parse().ok()).flatten()
    };
    Time::new(two(hour)?, two(minute)?, 0, 0).ok()
}

fn weekday(date: Date) -> Weekday {
    match date.weekday() {
        jiff::civil::Weekday::Monday => Weekday::Mon,
        jiff::civil::Weekday::Tuesday => Weekday::Tue,
        jiff::civil::Weekday::Wednesday => Weekday::Wed,
        jiff::civil::Weekday::Thursday => Weekday::Thu,
        jiff::civil::Weekday::Friday => Weekday::Fri,
        jiff::civil::Weekday::Saturday => Weekday::Sat,
        jiff::civil::Weekday::Sunday => Weekday::Sun,
    }
}

#[cfg(test)]
mod tests;
