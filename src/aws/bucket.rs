//! Token buckets: how fast calls may leave. They count waiting, so they run on the monotonic clock.

use std::time::Duration;

use tokio::time::Instant;

/// A bucket that fills at `rate` tokens a second up to `burst`; a call costs one.
#[derive(Debug)]
pub(super) struct Bucket {
    rate: f64,
    burst: f64,
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    /// Makes a full bucket. Rates below one token in a quarter of an hour mean just that.
    pub(super) fn new(rate: f64, burst: f64, now: Instant) -> Self {
        let (rate, burst) = (rate.max(0.001), burst.max(1.0));
        Self { rate, burst, tokens: burst, filled: now }
    }

    /// Takes a token, or says how long until there may be one.
    pub(super) fn take(&mut self, now: Instant) -> Result<(), Duration> {
        self.fill(now);
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        // One millisecond more: the timer's grain, so that nobody wakes a hair too early.
        Err(Duration::from_secs_f64((1.0 - self.tokens) / self.rate) + Duration::from_millis(1))
    }

    /// Empties the bucket: AWS has counted otherwise.
    pub(super) fn drain(&mut self, now: Instant) {
        self.fill(now);
        self.tokens = 0.0;
    }

    fn set(&mut self, rate: f64, burst: f64, now: Instant) {
        self.fill(now);
        (self.rate, self.burst) = (rate, burst.max(1.0));
        self.tokens = self.tokens.min(self.burst);
    }

    fn fill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = (self.tokens + elapsed * self.rate).min(self.burst);
        self.filled = now;
    }
}

/// The slowest pace, in calls a second: even then a region with 45 grants is re-pushed in time.
const RATE_MIN: f64 = 1.0;
/// By how much the pace recovers in each second of accepted calls, in calls a second.
const RECOVERY: f64 = 1.0;

/// A bucket that halves its rate when AWS throttles, and recovers bit by bit when it does not.
#[derive(Debug)]
pub(super) struct Pace {
    bucket: Bucket,
    rate: f64,
    rate_max: f64,
    halved: Option<Instant>,
}

impl Pace {
    /// Makes a pace of at most `rate_max` calls a second, with one second's worth of burst.
    pub(super) fn new(rate_max: f64, now: Instant) -> Self {
        let rate_max = rate_max.max(RATE_MIN);
        Self { bucket: Bucket::new(rate_max, rate_max, now), rate: rate_max, rate_max, halved: None }
    }

    /// Takes a token, or says how long until there may be one.
    pub(super) fn take(&mut self, now: Instant) -> Result<(), Duration> {
        self.bucket.take(now)
    }

    /// Returns the present rate, in calls a second.
    pub(super) fn rate(&self) -> f64 {
        self.rate
    }

    /// Notes that a call which left at `left` was throttled. Calls that were under way at the last halving say
    /// nothing new: a full house of them must not bring the pace to its minimum at one blow.
    pub(super) fn throttled(&mut self, left: Instant, now: Instant) {
        if self.halved.is_some_and(|halved| left <= halved) {
            return;
        }
        self.halved = Some(now);
        self.change((self.rate / 2.0).max(RATE_MIN), now);
        self.bucket.drain(now);
    }

    /// Notes that a call was answered and not throttled.
    pub(super) fn accepted(&mut self, now: Instant) {
        if self.rate < self.rate_max {
            self.change((self.rate + RECOVERY / self.rate).min(self.rate_max), now);
        }
    }

    fn change(&mut self, rate: f64, now: Instant) {
        self.rate = rate;
        self.bucket.set(rate, rate, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(10.0, 3.0, start);
        let taken = (0..5).filter(|_| bucket.take(start).is_ok()).count();
        assert_eq!(taken, 3);
        let wait = bucket.take(start).unwrap_err();
        assert!(wait >= Duration::from_millis(100) && wait < Duration::from_millis(110), "{wait:?}");
        assert!(bucket.take(start + wait).is_ok());
        // An hour later no more than the burst has gathered.
        let later = start + Duration::from_secs(3600);
        assert_eq!((0..9).filter(|_| bucket.take(later).is_ok()).count(), 3);
    }

    #[test]
    fn a_pace_halves_once_for_all_calls_under_way_and_recovers_by_one_a_second() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut pace = Pace::new(64.0, start);
        for _ in 0..50 {
            pace.throttled(at(0), at(100));
        }
        assert_eq!(pace.rate(), 32.0);
        pace.throttled(at(101), at(200));
        assert_eq!(pace.rate(), 16.0);
        for _ in 0..16 {
            pace.accepted(at(300));
        }
        assert!(pace.rate() > 16.9 && pace.rate() < 17.1, "{}", pace.rate());
        for n in 0..20 {
            pace.throttled(at(1000 + n), at(1000 + n));
        }
        assert_eq!(pace.rate(), RATE_MIN);
        for _ in 0..10_000 {
            pace.accepted(at(2000));
        }
        assert_eq!(pace.rate(), 64.0);
    }
}
