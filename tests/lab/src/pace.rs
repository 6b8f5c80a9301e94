//! A yardstick for lateness: how fast this machine lets anybody be, moment by moment.
//!
//! Whether a program is late cannot be told from a clock alone. A machine that stands still for ten seconds, or has twelve at
//! work on two cores, makes a correct program late as well; and a bound that takes this in takes in a slow program too. So
//! there is a thread that does the same little again and again, a rest and some work, and writes down how long it took. A
//! second counts as much as that thread got of it: all of it on an idle machine, where bounds are as tight as they look.
//!
//! What is promised by the clock, such as that no key is readable after its grant's end, is not judged by this.

use std::hint::black_box;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};

/// Rest between two pieces of work: as finely as a pause is seen.
const REST: Duration = Duration::from_millis(150);
/// A piece of work: six milliseconds or so. Longer than the scheduler gives at once where many wait, or it would not see them;
/// and four hundredths of one core, so that it makes nobody late itself.
const ROUNDS: u32 = 1_000_000;

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

/// The seconds from one instant to another as the machine lets one live them: as many as the clock says where it is idle,
/// fewer where it is busy or stood still. What lies before is negative, and told by the clock.
pub async fn seconds(from: Timestamp, to: Timestamp) -> f64 {
    let now = Timestamp::now();
    let to_here = to.min(now);
    loop {
        // The beat that is under way says nothing yet; only a pause makes it long.
        let at_pace = {
            let beats = beats();
            beats.last().is_some_and(|last| last.end_time >= to_here).then(|| paced(&beats, from, to))
        };
        if let Some(at_pace) = at_pace {
            return at_pace;
        }
        tokio::time::sleep(REST).await;
    }
}

/// How much of a time the machine kept for others, or stood still, in seconds.
pub async fn stolen(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64() - seconds(from, to).await
}

/// Whether something that was due came in time: not before, and less than so many seconds after, at the machine's pace.
/// Returns how late it was by the clock, in seconds.
///
/// # Errors
/// If not; it says both.
pub async fn in_time(what: &str, due: Timestamp, came: Timestamp, late_max: f64) -> anyhow::Result<f64> {
    let late = came.duration_since(due).as_secs_f64();
    anyhow::ensure!(late >= 0.0, "{what}: {:.3} s early", -late);
    soon(what, due, came, late_max).await
}

/// Whether something came soon enough after what it came of; it may have been there before that was seen.
/// Returns how late it was by the clock, in seconds.
///
/// # Errors
/// If not; it says both.
pub async fn soon(what: &str, since: Timestamp, came: Timestamp, late_max: f64) -> anyhow::Result<f64> {
    let (late, at_pace) = (came.duration_since(since).as_secs_f64(), seconds(since, came).await);
    let shown = format!("{late:.3} s late, of which this machine let one live {at_pace:.3} s");
    anyhow::ensure!(at_pace < late_max, "{what}: {shown}, and not less than {late_max} s");
    Ok(late)
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
