//! A yardstick for lateness: how fast this machine lets anybody be, moment by moment.
//!
//! Whether a program is late cannot be told from a clock alone. A machine that stands still for ten seconds, or has twelve at
//! work on two cores, makes a correct program late as well; and a bound that takes this in takes in a slow program too. So
//! there is a thread that does the same little again and again, a rest and some work, and writes down how long it took. A
//! second counts as much as that thread got of it: all of it on an idle machine, where bounds are as tight as they look.
//!
//! The thread cannot tell whose work was in its way: a program that is late because it is busy itself is forgiven as well, and
//! so is one that waits for a timer, which runs by the clock. So each bound is one by the clock, too, and wider: [`LateMax`].
//! From that only standstills are taken, in which nobody got anything done.
//!
//! That no key is readable after its grant's end, and nothing ends before its time, is not judged by this, but by the clock alone.

use std::hint::black_box;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use jiff::{SignedDuration, Timestamp};

/// Rest between two pieces of work: as finely as a pause is seen.
const REST: Duration = Duration::from_millis(150);
/// A piece of work: six milliseconds or so. Longer than the scheduler gives at once where many wait, or it would not see them;
/// and four hundredths of one core, so that it makes nobody late itself.
const ROUNDS: u32 = 1_000_000;

/// What is more than this beyond a rest, or a piece of work, is a standstill of the whole machine: who slept is let on within
/// a moment, and for six milliseconds a second is enough beside three hundred at work on two cores.
const STILL_MIN: Duration = Duration::from_secs(1);
/// How many times as late by the clock as at the machine's pace something may be, if nothing else is said: the machine lets
/// one live a tenth of each second at least.
const CLOCK_FACTOR: f64 = 10.0;
/// How late by the clock a session may be cut, in seconds. On an idle machine it is a fiftieth of one; and no timer that
/// somebody might have taken instead, a look each ten seconds or a keep-alive, is as short. What is seen of a cut is also how
/// long sshd, its children and who looks for them take to go.
const CUT_CLOCK_MAX: f64 = 8.0;

/// How late something may be, in seconds: less than so many at the machine's pace, and less than so many by the clock.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LateMax {
    at_pace: f64,
    by_clock: f64,
    /// How early by the clock, if whoever told of what it came of was slow; else it came of something else.
    early: f64,
}

impl LateMax {
    /// For what a timer would bring, if it went wrong: by the clock, less than that timer.
    pub const fn new(at_pace: f64, by_clock: f64) -> Self {
        Self { at_pace, by_clock, early: f64::INFINITY }
    }

    /// For a session that is cut.
    pub const fn of_cut(at_pace: f64) -> Self {
        Self { at_pace, by_clock: CUT_CLOCK_MAX, early: CUT_CLOCK_MAX }
    }
}

impl From<f64> for LateMax {
    fn from(at_pace: f64) -> Self {
        Self::new(at_pace, CLOCK_FACTOR * at_pace)
    }
}

/// How late something was, in seconds.
#[derive(Clone, Copy, Debug)]
struct Lateness {
    by_clock: f64,
    at_pace: f64,
    /// For how long of it the machine stood still.
    stood: f64,
}

/// One rest, and one piece of work.
#[derive(Clone, Copy, Debug)]
struct Beat {
    begin_time: Timestamp,
    end_time: Timestamp,
    rested: Duration,
    worked: Duration,
}

static BEATS: OnceLock<Mutex<Vec<Beat>>> = OnceLock::new();

fn beats() -> MutexGuard<'static, Vec<Beat>> {
    let beats = BEATS.get_or_init(|| {
        // It ends with the process: nobody could say when the last bound was judged.
        thread::spawn(beat);
        Mutex::default()
    });
    beats.lock().unwrap_or_else(PoisonError::into_inner)
}

fn beat() {
    loop {
        let (begin_time, begin) = (Timestamp::now(), Instant::now());
        thread::sleep(REST);
        let rested = begin.elapsed();
        work();
        let worked = begin.elapsed() - rested;
        beats().push(Beat { begin_time, end_time: Timestamp::now(), rested, worked });
    }
}

fn work() {
    let mut sum = 0_u64;
    for round in 0..ROUNDS {
        sum = black_box(sum.rotate_left(7) ^ u64::from(round));
    }
    black_box(sum);
}

/// Begins to measure. What was before counts as if the machine had been idle.
pub fn begin() {
    drop(beats());
}

/// What is made of the beats, once they reach to a moment, or to now.
async fn measured<T>(to: Timestamp, of: impl Fn(&[Beat]) -> T) -> T {
    let to_here = to.min(Timestamp::now());
    loop {
        // The beat that is under way says nothing yet; only a pause makes it long.
        let made = {
            let beats = beats();
            beats.last().is_some_and(|last| last.end_time >= to_here).then(|| of(&beats))
        };
        if let Some(made) = made {
            return made;
        }
        tokio::time::sleep(REST).await;
    }
}

/// The seconds from one instant to another as the machine lets one live them: as many as the clock says where it is idle,
/// fewer where it is busy or stood still. What lies before is negative, and told by the clock.
pub async fn seconds(from: Timestamp, to: Timestamp) -> f64 {
    measured(to, |beats| paced(beats, from, to)).await
}

/// How much of a time the machine kept for others, or stood still, in seconds.
pub async fn stolen(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64() - seconds(from, to).await
}

/// Whether something that was due came in time: not before, and less than so many seconds after, at the machine's pace and by
/// the clock. Returns how late it was by the clock, in seconds.
///
/// # Errors
/// If not; it says both.
pub async fn in_time(what: &str, due: Timestamp, came: Timestamp, late_max: impl Into<LateMax>) -> anyhow::Result<f64> {
    let late = came.duration_since(due).as_secs_f64();
    anyhow::ensure!(late >= 0.0, "{what}: {:.3} s early", -late);
    soon(what, due, came, late_max).await
}

/// Whether something came soon enough after what it came of; it may have been there a little before that was seen.
/// Returns how late it was by the clock, in seconds.
///
/// # Errors
/// If not; it says both.
pub async fn soon(what: &str, since: Timestamp, came: Timestamp, late_max: impl Into<LateMax>) -> anyhow::Result<f64> {
    let late_max = late_max.into();
    let by_clock = came.duration_since(since).as_secs_f64();
    let lateness = measured(came, |beats| Lateness {
        by_clock,
        at_pace: paced(beats, since, came),
        stood: stood(beats, since, came),
    })
    .await;
    judged(what, lateness, late_max)?;
    if by_clock >= late_max.at_pace {
        eprintln!("{what}: {by_clock:.3} s late, on a machine too slow to tell whether it took {} s", late_max.at_pace);
    }
    Ok(by_clock)
}

fn judged(what: &str, lateness: Lateness, late_max: LateMax) -> anyhow::Result<()> {
    let Lateness { by_clock, at_pace, stood } = lateness;
    let LateMax { at_pace: at_pace_max, by_clock: by_clock_max, early: early_max } = late_max;
    let shown = format!("{what}: {by_clock:.3} s late, of which this machine let one live {at_pace:.3} s");
    anyhow::ensure!(by_clock > -early_max, "{what}: {:.3} s early: it came of something else", -by_clock);
    anyhow::ensure!(at_pace < at_pace_max, "{shown}, and not less than {at_pace_max} s");
    anyhow::ensure!(
        by_clock - stood < by_clock_max,
        "{shown}; but it stood still for {stood:.3} s only, and the rest is not less than {by_clock_max} s by the clock"
    );
    Ok(())
}

/// Whether something came by itself, and not by a timer of so many seconds, which takes as long by the clock on every machine;
/// `false` if that cannot be told, since the machine let one live less than a third of the timer until then.
///
/// # Errors
/// If it came by the timer, or as late as if.
pub async fn before_a_timer(what: &str, since: Timestamp, came: Timestamp, timer: f64) -> anyhow::Result<bool> {
    let by_clock = came.duration_since(since).as_secs_f64();
    let at_pace = seconds(since, came).await;
    told_from(timer, by_clock, at_pace).with_context(|| what.to_owned())
}

fn told_from(timer: f64, by_clock: f64, at_pace: f64) -> anyhow::Result<bool> {
    anyhow::ensure!(
        by_clock < timer || at_pace < timer / 3.0,
        "{by_clock:.3} s late, of which this machine let one live {at_pace:.3} s: a timer of {timer} s was waited for"
    );
    Ok(by_clock < timer)
}

/// [`seconds`], by these beats.
fn paced(beats: &[Beat], from: Timestamp, to: Timestamp) -> f64 {
    let all = to.duration_since(from).as_secs_f64();
    if all <= 0.0 {
        return all;
    }
    let idle = beats.iter().map(|beat| beat.worked).min().unwrap_or_default();
    let first = beats.partition_point(|beat| beat.end_time <= from);
    let stolen = beats[first..].iter().take_while(|beat| beat.begin_time < to).map(|beat| {
        let within = beat.end_time.min(to).duration_since(beat.begin_time.max(from)).max(SignedDuration::ZERO);
        let share = |alone: Duration, took: Duration| {
            if took > alone { alone.as_secs_f64() / took.as_secs_f64() } else { 1.0 }
        };
        within.as_secs_f64() * (1.0 - share(REST, beat.rested) * share(idle, beat.worked))
    });
    (all - stolen.sum::<f64>()).max(0.0)
}

/// How long the machine stood still between two instants, in seconds, by these beats.
fn stood(beats: &[Beat], from: Timestamp, to: Timestamp) -> f64 {
    let idle = beats.iter().map(|beat| beat.worked).min().unwrap_or_default();
    let first = beats.partition_point(|beat| beat.end_time <= from);
    let still = beats[first..].iter().take_while(|beat| beat.begin_time < to).map(|beat| {
        let beyond = [beat.rested.saturating_sub(REST), beat.worked.saturating_sub(idle)];
        let still: Duration = beyond.into_iter().filter(|beyond| *beyond > STILL_MIN).sum();
        let within = beat.end_time.min(to).duration_since(beat.begin_time.max(from)).max(SignedDuration::ZERO);
        still.as_secs_f64() * (within.as_secs_f64() / (beat.rested + beat.worked).as_secs_f64()).min(1.0)
    });
    still.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millisecond(1_767_225_600_000 + ms).unwrap()
    }

    /// Beats one after the other: how long each rested and worked, in milliseconds.
    fn beats(all: &[(i64, i64)]) -> Vec<Beat> {
        let mut now = 0;
        let one = |&(rested, worked): &(i64, i64)| {
            let begin_time = at(now);
            now += rested + worked;
            let ms = |it: i64| Duration::from_millis(it.unsigned_abs());
            Beat { begin_time, end_time: at(now), rested: ms(rested), worked: ms(worked) }
        };
        all.iter().map(one).collect()
    }

    #[track_caller]
    fn check(all: &[(i64, i64)], (from, to): (i64, i64), expected: f64) {
        let found = paced(&beats(all), at(from), at(to));
        assert!((found - expected).abs() < 0.002, "{all:?} from {from} to {to}: {found}, not {expected}");
    }

    #[test]
    fn a_second_counts_as_much_as_one_got_of_it() {
        let idle = [(150, 6); 100];
        check(&idle, (0, 15_600), 15.6);
        check(&idle, (1234, 2234), 1.0);
        check(&idle, (2000, 1000), -1.0);
        // What nobody measured is taken for idle, before and after.
        check(&idle, (-1000, 16_600), 17.6);
        check(&[], (0, 1000), 1.0);
        // Ten seconds of nothing, at rest or at work, count as one beat at most.
        let pause = |beat| [&idle[..10], &[beat], &idle[..10]].concat();
        check(&pause((10_150, 6)), (1560, 11_716), 0.15);
        check(&pause((10_150, 6)), (1500, 11_800), 0.06 + 0.15 + 0.084);
        check(&pause((150, 10_006)), (1560, 11_716), 0.006);
        // Of a pause only what lies within.
        check(&pause((10_150, 6)), (0, 2000), 1.5665);
        // Six at work for one core.
        let busy = [&idle[..1], &[(150, 36); 100]].concat();
        check(&busy, (156, 18_756), 18.6 / 6.0);
    }

    #[test]
    fn of_a_busy_machine_nothing_stood_still_and_of_a_pause_what_lies_within() {
        #[track_caller]
        fn check(all: &[(i64, i64)], (from, to): (i64, i64), expected: f64) {
            let found = stood(&beats(all), at(from), at(to));
            assert!((found - expected).abs() < 0.002, "{all:?} from {from} to {to}: {found}, not {expected}");
        }
        let idle = [(150, 6); 10];
        check(&idle, (0, 1560), 0.0);
        check(&[], (0, 1000), 0.0);
        // A hundred at work for one core, and a rest that nearly all of them come before.
        check(&[&idle[..], &[(900, 600); 10]].concat(), (0, 16_560), 0.0);
        let pause = |beat| [&idle[..], &[beat], &idle[..]].concat();
        check(&pause((10_150, 6)), (0, 13_000), 10.0);
        check(&pause((150, 10_006)), (0, 13_000), 10.0);
        check(&pause((10_150, 6)), (0, 1560 + 5078), 5.0);
        check(&pause((10_150, 6)), (12_000, 13_000), 0.0);
    }

    #[test]
    fn no_machine_is_so_busy_that_the_clock_no_longer_counts() {
        #[track_caller]
        fn check((by_clock, at_pace, stood): (f64, f64, f64), late_max: LateMax, words: Option<&str>) {
            let found = judged("it", Lateness { by_clock, at_pace, stood }, late_max).map_err(|it| it.to_string());
            match (&found, words) {
                (Ok(()), None) => {}
                (Err(said), Some(words)) if said.contains(words) => {}
                _ => panic!("{by_clock}, {at_pace}, {stood} by {late_max:?}: {found:?}, not {words:?}"),
            }
        }
        let (cut, other) = (LateMax::of_cut(1.0), LateMax::from(3.0));
        for late_max in [cut, other] {
            check((0.02, 0.02, 0.0), late_max, None);
            check((3.9, 0.9, 0.0), late_max, None);
            check((3.0, 3.0, 0.0), late_max, Some("and not less than"));
            // It was seen before what it came of.
            check((-1.0, -1.0, 0.0), late_max, None);
        }
        check((-31.0, -31.0, 0.0), other, None);
        check((-9.0, -9.0, 0.0), cut, Some("it came of something else"));
        // A cut that is 9 s late by a timer of its own, where the machine lets one live a tenth of each second.
        check((9.0, 0.9, 0.0), cut, Some("by the clock"));
        check((29.9, 0.9, 0.0), other, None);
        check((30.0, 0.9, 0.0), other, Some("by the clock"));
        // Nobody did anything for ten seconds.
        check((10.5, 0.2, 10.0), cut, None);
        check((18.5, 0.2, 10.0), cut, Some("by the clock"));
    }

    #[test]
    fn whoever_waits_for_a_timer_is_caught_on_a_machine_that_is_not_too_slow_to_tell() {
        #[track_caller]
        fn check((by_clock, at_pace): (f64, f64), expected: Option<bool>) {
            assert_eq!(told_from(9.0, by_clock, at_pace).ok(), expected, "{by_clock}, {at_pace}");
        }
        check((2.4, 2.4), Some(true));
        check((8.9, 1.0), Some(true));
        // However busy the machine, a timer is not sooner than it is; here it was busy for half, and then two thirds of it.
        check((9.1, 9.1), None);
        check((9.1, 4.5), None);
        check((9.1, 3.0), None);
        check((9.1, 2.9), Some(false));
    }

    #[tokio::test]
    async fn what_is_too_late_says_by_how_much_and_what_is_early_too() {
        begin();
        let now = Timestamp::now();
        let second = SignedDuration::from_secs(1);
        // Before anybody measured: the clock alone.
        let (due, came) = (now - 10 * second, now - 8 * second);
        assert!((in_time("it", due, came, 2.5).await.unwrap() - 2.0).abs() < 0.001);
        let late = in_time("it", due, came, 1.5).await.unwrap_err().to_string();
        assert_eq!(late, "it: 2.000 s late, of which this machine let one live 2.000 s, and not less than 1.5 s");
        assert_eq!(in_time("it", came, due, 1.5).await.unwrap_err().to_string(), "it: 2.000 s early");
        assert!(soon("it", came, due, 1.5).await.unwrap() < 0.0);
        // Measured: on however busy a machine never more than the clock says.
        let lived = seconds(now, Timestamp::now()).await;
        assert!((0.0..=Timestamp::now().duration_since(now).as_secs_f64()).contains(&lived), "{lived}");
    }
}
