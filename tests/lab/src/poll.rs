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
pub async fn until<T, E, F, Fut>(what: &str, bound: Duration, mut look: F) -> anyhow::Result<T>
where
    E: Display,
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    let start = Instant::now();
    let mut gap = GAP_MIN;
    let mut seen = None;
    loop {
        match tokio::time::timeout(bound.saturating_sub(start.elapsed()), look()).await {
            Ok(Ok(it)) => return Ok(it),
            Ok(Err(other)) => seen = Some(format!("{other:#}")),
            Err(_) => {}
        }
        if start.elapsed() + gap > bound {
            let seen = seen.unwrap_or_else(|| "nothing: the look itself hung".to_owned());
            anyhow::bail!("{what}: not within {bound:?}; last seen: {seen}");
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
