//! What binds a grant's sessions besides its end: how many there are at once, how long one may idle, until when one is
//! opened.
//!
//! ```text
//! policy.session ─ pinned() ─▶ status.grant.session ─▶ SessionGrant.rules ─▶ Hold.rules of each session
//!                    edited: only stricter() ─▲                               seen anew: only stricter()
//! ```
//! The gateway reads no policies: what binds stands at the grant, and follows an edit in one direction alone (I3's rule for
//! `expirationTime`). As with the end, a session keeps the rules of every login that its client has on the instance, since
//! the inner SSH may be any of them.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::{DialPermit, Hold, NAMES_MAX, Refusal, SessionGrant, request_name};
use crate::api::{PolicySession, SessionEndStrategy, SessionRules};
use crate::domain::record::RequestRef;
use crate::domain::time::minus;

/// What a policy writes into its grants; none where it binds nothing.
pub fn pinned(session: Option<PolicySession>) -> Option<SessionRules> {
    let PolicySession { gateway_only: _, max_sessions, idle_timeout_seconds, end } = session?;
    // Another strategy than Drain has no such seconds, says the CRD; if it has, they are meant.
    let drain_seconds = end.and_then(|end| end.drain_seconds);
    let rules = SessionRules { max_sessions, idle_timeout_seconds, drain_seconds };
    (rules != SessionRules::default()).then_some(rules)
}

/// How long before the end a policy opens no session.
pub fn drain_seconds(session: Option<PolicySession>) -> Option<i32> {
    pinned(session)?.drain_seconds
}

/// Whether a strategy has the seconds that it needs, and no others.
pub fn is_end_sound(session: Option<PolicySession>) -> bool {
    session.and_then(|session| session.end).is_none_or(|end| match end.strategy {
        SessionEndStrategy::Cut => end.drain_seconds.is_none(),
        SessionEndStrategy::Drain => end.drain_seconds.is_some(),
    })
}

/// Of each rule the stricter.
pub fn stricter(one: SessionRules, other: SessionRules) -> SessionRules {
    let lower = |one: Option<i32>, other: Option<i32>| [one, other].into_iter().flatten().min();
    SessionRules {
        max_sessions: lower(one.max_sessions, other.max_sessions),
        idle_timeout_seconds: lower(one.idle_timeout_seconds, other.idle_timeout_seconds),
        drain_seconds: one.drain_seconds.max(other.drain_seconds),
    }
}

/// What binds a live grant from now on: what binds it already, and what its policy says now.
pub fn tightened(pinned: Option<SessionRules>, policy: Option<SessionRules>) -> Option<SessionRules> {
    match (pinned, policy) {
        (Some(pinned), Some(policy)) => Some(stricter(pinned, policy)),
        (pinned, policy) => pinned.or(policy),
    }
}

/// How long a session under all of these may idle; `own_max` is the gateway's. None: as long as it likes.
pub fn idle_max(rules: impl IntoIterator<Item = SessionRules>, own_max: Option<Duration>) -> Option<Duration> {
    // Below zero, which the CRD refuses, is not at all.
    let seconds = |seconds: i32| Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
    let all = rules.into_iter().filter_map(|rules| rules.idle_timeout_seconds.map(seconds));
    all.chain(own_max).min()
}

/// What a session takes of one grant: a place among this many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// The request.
    pub request: RequestRef,
    /// How many sessions it may have.
    pub sessions_max: usize,
}

impl Share {
    /// Why a session is not opened if no place is left.
    pub fn full(&self) -> String {
        let name = request_name(&self.request);
        format!("{name} has as many sessions as one grant may, {}; close one", self.sessions_max)
    }
}

impl DialPermit {
    /// The places that the session takes: one of its grant's, which are no more than `sessions_max`, and one of each other
    /// grant that it is held to and whose policy counts.
    pub fn shares(&self, sessions_max: usize) -> Vec<Share> {
        let own_max = |hold: &Hold| hold.rules.max_sessions.map(|most| usize::try_from(most).unwrap_or_default());
        let is_own = |hold: &Hold| hold.request.uid == self.grant.request.uid;
        let share = |hold: &Hold| match own_max(hold) {
            Some(most) => Some(most.min(sessions_max)),
            None => is_own(hold).then_some(sessions_max),
        };
        let shares = self.holds.iter().filter_map(|hold| Some((hold, share(hold)?)));
        shares.map(|(hold, sessions_max)| Share { request: hold.request.clone(), sessions_max }).collect()
    }
}

/// When the last session is opened under a grant that ends then.
fn last_open_time(cut_time: Timestamp, rules: SessionRules) -> Timestamp {
    let drain = rules.drain_seconds.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or_default();
    minus(cut_time, Duration::from_secs(drain))
}

impl SessionGrant {
    /// Whether its policy still opens sessions.
    pub(super) fn is_open(&self, now: Timestamp) -> bool {
        now < last_open_time(self.expiration_time, self.rules)
    }
}

impl Hold {
    /// Why no session that is held to it is opened now, if so.
    pub(super) fn refusal(&self, now: Timestamp) -> Option<Refusal> {
        let request = request_name(&self.request);
        if self.cut_time <= now {
            return Some(Refusal::Over { request, expiration_time: self.cut_time });
        }
        let last_open_time = last_open_time(self.cut_time, self.rules);
        (last_open_time <= now).then_some(Refusal::Draining { request, last_open_time, cut_time: self.cut_time })
    }
}

/// What a client may be told when it is let in: until when it gets where.
pub fn ends(now: Timestamp, of_key: &[Arc<SessionGrant>]) -> String {
    let mut living: Vec<_> = of_key.iter().filter(|grant| now < grant.expiration_time).collect();
    living.sort_by_key(|grant| (grant.expiration_time, request_name(&grant.request)));
    let ends = living.iter().take(NAMES_MAX).map(|grant| {
        let name = request_name(&grant.request);
        match last_open_time(grant.expiration_time, grant.rules) {
            last if last < grant.expiration_time => {
                format!("{name} ends at {}, and opens no session from {last}", grant.expiration_time)
            }
            _ => format!("{name} ends at {}", grant.expiration_time),
        }
    });
    ends.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests;
