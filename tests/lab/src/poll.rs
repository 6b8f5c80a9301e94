//! Waiting for a condition on state: level, not edge; with a bound, and with the last thing seen in the failure.

use std::{
    fmt::Display,
    future::Future,
    time::{Duration, Instant},
};

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
pub async fn until<T, E, F, Fut>(what: &str, bound: Duration, look: F) -> anyhow::Result<T>
where
    E: Display,
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    wait(what, bound, bound, look).await
}

/// Waits as [`until`] does, for something that comes by and by: for as long as something else is seen than before, it may take
/// ten times as long.
///
/// # Errors
/// If nothing moved within `bound`.
pub async fn while_it_moves<T, E, F, Fut>(what: &str, bound: Duration, look: F) -> anyhow::Result<T>
where
    E: Display,
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    wait(what, bound, 10 * bound, look).await
}

/// Waits for at most `bound` where nothing moves, and for at most `all` in any case.
async fn wait<T, E, F, Fut>(what: &str, bound: Duration, all: Duration, mut look: F) -> anyhow::Result<T>
where
    E: Display,
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    let start = Instant::now();
    let mut end = bound;
    let mut gap = GAP_MIN;
    let mut seen = None;
    loop {
        match tokio::time::timeout(end.saturating_sub(start.elapsed()), look()).await {
            Ok(Ok(it)) => return Ok(it),
            Ok(Err(other)) => {
                let now = Some(format!("{other:#}"));
                if all > bound && now != seen {
                    end = all.min(start.elapsed() + bound);
                }
                seen = now;
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

    /// Counts to ten, and stays at `stops`; what is seen of it.
    async fn counted(stops: u32, bound: Duration) -> anyhow::Result<u32> {
        let mut count = 0;
        let look = || {
            count = stops.min(count + 1);
            std::future::ready(if count == 10 { Ok(count) } else { Err(format!("{count} of 10")) })
        };
        while_it_moves("ten", bound, look).await
    }

    #[tokio::test]
    async fn what_moves_is_waited_for_and_what_stands_still_is_not() {
        // The looks to ten take more than half a second, and no two are farther apart than 200 ms.
        assert_eq!(counted(10, Duration::from_millis(300)).await.unwrap(), 10);
        let error = counted(3, Duration::from_millis(300)).await.unwrap_err().to_string();
        assert!(error.ends_with("last seen: 3 of 10"), "{error}");
    }
}
