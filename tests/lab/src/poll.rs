//! Waiting for a condition on state: level, not edge; with a bound, and with the last thing seen in the failure.

use std::{fmt::Display, future::Future, time::Duration};

use jiff::Timestamp;
use tokio::time::Instant;

use crate::pace;

/// Gap between the first two looks; grows to [`GAP_MAX`], since a busy machine is not helped by being watched.
const GAP_MIN: Duration = Duration::from_millis(10);
/// Longest gap between two looks: what a test waits too long at most.
const GAP_MAX: Duration = Duration::from_millis(200);

/// Waits until `look` returns `Ok`, and returns what is in it.
///
/// An `Err` says what was seen instead; it is not a failure, only "not yet". A condition that can no longer come true
/// ends the wait as `Ok(Err(…))`, to be unwrapped with a second `?`.
///
/// # Errors
/// After `bound`, with `what` was awaited and the last thing seen. A look that hangs counts as nothing seen.
///
/// # Example
/// ```
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// # use std::time::Duration;
/// let mut n = 0;
/// let third = lab::poll::until("a third look", Duration::from_secs(5), || {
///     n += 1;
///     std::future::ready(if n == 3 { Ok(n) } else { Err(format!("look {n}")) })
/// });
/// assert_eq!(third.await.unwrap(), 3);
/// # });
/// ```
pub async fn until<T, E, F, Fut>(what: &str, bound: Duration, mut look: F) -> anyhow::Result<T>
where
    E: Display,
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    wait(what, bound, bound, || {
        let look = look();
        async move { look.await.map_err(|seen| (None, seen)) }
    })
    .await
}

/// Waits as [`until`] does, for something that comes by and by: an `Err` says how much of it has come, and what is seen. For as
/// long as more comes it may take ten times as long by the clock, and `bound` at the machine's pace ([`pace`]). Only more than
/// there ever was counts, or what flickers would be waited for.
///
/// # Errors
/// If no more came within `bound`, or all of it too slowly.
pub async fn while_it_grows<T, E, F, Fut>(what: &str, bound: Duration, mut look: F) -> anyhow::Result<T>
where
    E: Display,
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, (usize, E)>>,
{
    let begin = Timestamp::now();
    let all = wait(what, bound, 10 * bound, || {
        let look = look();
        async move { look.await.map_err(|(count, seen)| (Some(count), seen)) }
    })
    .await?;
    pace::soon(what, begin, Timestamp::now(), bound.as_secs_f64()).await?;
    Ok(all)
}

/// Waits for at most `bound` where the count does not grow, and for at most `all` in any case.
async fn wait<T, E, F, Fut>(what: &str, bound: Duration, all: Duration, mut look: F) -> anyhow::Result<T>
where
    E: Display,
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, (Option<usize>, E)>>,
{
    let start = Instant::now();
    let mut end = bound;
    let mut gap = GAP_MIN;
    let mut seen = None;
    let mut most = 0;
    loop {
        match tokio::time::timeout(end.saturating_sub(start.elapsed()), look()).await {
            Ok(Ok(it)) => return Ok(it),
            Ok(Err((count, other))) => {
                if let Some(more) = count.filter(|count| *count > most) {
                    most = more;
                    end = all.min(start.elapsed() + bound);
                }
                seen = Some(format!("{other:#}"));
            }
            Err(_) => {}
        }
        if start.elapsed() + gap > end {
            let seen = seen.unwrap_or_else(|| "nothing: the look itself hung".to_owned());
            anyhow::bail!("{what}: not within {end:?}; last seen: {seen}");
        }
        tokio::time::sleep(gap).await;
        gap = (gap * 3 / 2).min(GAP_MAX);
    }
}

/// Waits as [`until`] does, for a condition that is looked at without waiting.
///
/// # Errors
/// As [`until`].
pub async fn until_ok<T, E: Display>(
    what: &str,
    bound: Duration,
    mut look: impl FnMut() -> Result<T, E>,
) -> anyhow::Result<T> {
    until(what, bound, || std::future::ready(look())).await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Waits for the tenth look, by what each look before it counts.
    async fn tenth(count: impl Fn(usize) -> usize, bound: Duration, all: Duration) -> anyhow::Result<usize> {
        let mut looks = 0;
        let look = || {
            looks += 1;
            let come = count(looks);
            std::future::ready(if looks == 10 {
                Ok(looks)
            } else {
                Err((Some(come), format!("{come} at look {looks}")))
            })
        };
        wait("the tenth look", bound, all, look).await
    }

    #[tokio::test(start_paused = true)]
    async fn what_grows_is_waited_for_and_what_stands_still_or_flickers_is_not() {
        // Ten looks take more than half a second, and no two are farther apart than 200 ms.
        let (bound, all) = (Duration::from_millis(300), Duration::from_secs(60));
        assert_eq!(tenth(|look| look, bound, all).await.unwrap(), 10);
        type Count = fn(usize) -> usize;
        let rows: [(&str, Count); 3] =
            [("stands still", |look| look.min(3)), ("flickers", |look| 3 + look % 2), ("sinks", |look| 100 - look)];
        for (what, count) in rows {
            let error = tenth(count, bound, all).await.expect_err(what).to_string();
            assert!(error.starts_with("the tenth look: not within"), "{what}: {error}");
        }
        // What grows, but not within all the time that it may take.
        assert!(tenth(|look| look, bound, bound).await.is_err());
    }
}
