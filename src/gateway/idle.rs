//! How long nothing passes through a session.
//!
//! A session looks at its end twice a second anyway, and its relay counts bytes: so this is a comparison at each look, no
//! timer, and nothing that a packet has to touch. A byte counts from the look that sees it: a session is cut never early,
//! and late by a second at most.

use std::time::Duration;

use tokio::time::Instant;

use crate::api::SessionRules;
use crate::domain::record::RequestRef;
use crate::domain::session::rules::idle_max;
use crate::domain::session::{SessionEnd, request_name};

/// The silence of one session.
#[derive(Debug)]
pub struct Idle {
    own_max: Option<Duration>,
    passed: (u64, u64),
    since: Instant,
    over: Option<Duration>,
}

impl Idle {
    /// Begins now; `own_max` is the gateway's own limit.
    pub fn new(own_max: Option<Duration>) -> Self {
        Self { own_max, passed: (0, 0), since: Instant::now(), over: None }
    }

    /// Takes in how many bytes have passed each way by now; returns whether it was idle for as long as all these rules, and
    /// the gateway, let it. Rules may become stricter meanwhile.
    pub fn is_over(&mut self, passed: (u64, u64), rules: impl IntoIterator<Item = SessionRules>) -> bool {
        if passed != self.passed {
            self.passed = passed;
            self.since = Instant::now();
        }
        self.over = idle_max(rules, self.own_max).filter(|max| *max <= self.since.elapsed());
        self.over.is_some()
    }

    /// What the client reads when it is cut.
    pub fn farewell(&self, end: SessionEnd, request: &RequestRef) -> String {
        match self.over {
            Some(max) if end == SessionEnd::Idle => {
                format!("the session of {} was idle for {} s; connect again", request_name(request), max.as_secs())
            }
            _ => end.farewell(request),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn rules(idle: Option<i32>) -> [SessionRules; 2] {
        [SessionRules::default(), SessionRules { idle_timeout_seconds: idle, ..SessionRules::default() }]
    }

    fn request() -> RequestRef {
        RequestRef { namespace: "default".into(), name: "web-1".into(), uid: "u".into() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_byte_of_either_direction_begins_the_silence_anew() {
        let mut idle = Idle::new(None);
        for passed in [(0, 0), (1, 0), (1, 1)] {
            assert!(!idle.is_over(passed, rules(Some(60))), "{passed:?}");
            advance(60 * SECOND - Duration::from_millis(1)).await;
            assert!(!idle.is_over(passed, rules(Some(60))), "{passed:?}");
        }
        advance(Duration::from_millis(1)).await;
        assert!(idle.is_over((1, 1), rules(Some(60))));
        assert_eq!(
            idle.farewell(SessionEnd::Idle, &request()),
            "the session of web-1.default was idle for 60 s; connect again"
        );
        assert_eq!(idle.farewell(SessionEnd::Revoked, &request()), SessionEnd::Revoked.farewell(&request()));
    }

    #[tokio::test(start_paused = true)]
    async fn the_stricter_of_gateway_and_policy_counts_also_when_it_comes_later() {
        let mut idle = Idle::new(Some(90 * SECOND));
        advance(70 * SECOND).await;
        assert!(!idle.is_over((0, 0), rules(None)));
        assert!(!idle.is_over((0, 0), rules(Some(600))), "the gateway's is shorter");
        assert!(idle.is_over((0, 0), rules(Some(60))), "the policy was edited");
        advance(20 * SECOND).await;
        assert!(idle.is_over((0, 0), rules(None)));
        assert!(idle.farewell(SessionEnd::Idle, &request()).contains("idle for 90 s"));
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_it_idles_for_as_long_as_it_likes() {
        let mut idle = Idle::new(None);
        advance(604_800 * SECOND).await;
        assert!(!idle.is_over((0, 0), rules(None)));
    }
}
