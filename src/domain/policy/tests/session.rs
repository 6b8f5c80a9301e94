//! What a policy's session demands of a request, and of whoever writes the policy.

use super::*;
use crate::api::{PolicySession, PolicySessionEnd, SessionEndStrategy, SessionRules};

fn drain(seconds: i32) -> Option<PolicySessionEnd> {
    Some(PolicySessionEnd { strategy: SessionEndStrategy::Drain, drain_seconds: Some(seconds) })
}

fn by(session: PolicySession) -> InstanceAccessPolicy {
    policy(allow("gateway"), |spec| spec.session = Some(session))
}

const GATEWAY_ONLY: PolicySession =
    PolicySession { gateway_only: Some(true), max_sessions: None, idle_timeout_seconds: None, end: None };
const BY_GATEWAY: &str =
    "lets nobody in but through the gateway (session.gatewayOnly): set spec.keyDelivery to OnConnect";
const TOO_SHORT: &str =
    "opens no session in the last 600 s of a grant (session.end): ask for more ttlSeconds than that, asked were 600";

/// A session, one change of the request, and what is said where the two do not fit.
type Row = (PolicySession, fn(&mut Ask), &'static str);

#[test]
fn each_field_of_a_session_does_what_its_doc_says() {
    let late = PolicySession { end: drain(600), ..PolicySession::default() };
    let not_only = PolicySession { gateway_only: Some(false), ..GATEWAY_ONLY };
    let bounds = PolicySession { max_sessions: Some(1), idle_timeout_seconds: Some(60), ..PolicySession::default() };
    #[rustfmt::skip]
    let rows: &[Row] = &[
        (PolicySession::default(), |_| {}, ""),
        (bounds, |_| {}, ""),
        (GATEWAY_ONLY, |_| {}, BY_GATEWAY),
        (GATEWAY_ONLY, |a| a.key_delivery = KeyDelivery::OnConnect, ""),
        (not_only, |_| {}, ""),
        // A grant that lives is taken back by it: its key is renewed all the time.
        (GATEWAY_ONLY, |a| a.granted = granted("2026-03-02T12:10:00Z"), BY_GATEWAY),
        (late, |_| {}, TOO_SHORT),
        (late, |a| a.ttl_seconds = Some(601), ""),
        (late, |a| a.ttl_seconds = None, ""),
        // A grant that lives is not: it is only too late for another session.
        (late, |a| a.granted = granted("2026-03-02T12:10:00Z"), ""),
        (PolicySession { end: drain(600), ..GATEWAY_ONLY }, |_| {}, "OnConnect and opens no session in the last 600 s"),
    ];
    for (number, (session, change, expected)) in rows.iter().enumerate() {
        let ask = ask().with(change);
        match decision(&[by(*session)], &ask) {
            Ok(_) => assert_eq!(*expected, "", "row {number} is admitted"),
            Err(refusal) => {
                assert!(
                    !expected.is_empty() && refusal.contains(expected),
                    "row {number}: {refusal:?}, not {expected:?}"
                );
            }
        }
    }
}

#[test]
fn a_policy_without_a_session_admits_what_one_with_it_does_not_and_the_highest_priority_decides_what_binds() {
    let bounds = PolicySession { max_sessions: Some(1), ..PolicySession::default() };
    let bound = policy(by(bounds), |spec| spec.priority = Some(2));
    let free = allow("free");
    let session = |policies: &[InstanceAccessPolicy]| ask().of(&set(policies)).decision.unwrap().session;
    let one = SessionRules { max_sessions: Some(1), ..SessionRules::default() };
    assert_eq!(session(&[bound.clone(), free.clone()]), Some(one));
    assert_eq!(session(&[policy(by(GATEWAY_ONLY), |spec| spec.priority = Some(2)), free.clone()]), None);
    // What stands for a live grant is its own policy's word, as it is now.
    let pin = Policy::compile(&bound).pin().clone();
    assert_eq!(set(&[bound.clone(), free.clone()]).session_of(&pin), Some(one));
    assert_eq!(set(&[allow("gateway"), free.clone()]).session_of(&pin), None);
    assert_eq!(set(&[free]).session_of(&pin), None);
}

#[test]
fn a_session_that_contradicts_itself_is_a_mistake_that_is_told() {
    let end = |strategy, drain_seconds| {
        by(PolicySession { end: Some(PolicySessionEnd { strategy, drain_seconds }), ..PolicySession::default() })
    };
    use SessionEndStrategy::{Cut, Drain};
    let seconds = "spec.session.end.drainSeconds is for the strategy Drain, which needs it";
    for (policy, expected) in [
        (end(Cut, None), None),
        (end(Drain, Some(1799)), None),
        (end(Drain, None), Some(seconds)),
        (end(Cut, Some(60)), Some(seconds)),
        (end(Drain, Some(1800)), Some("spec.session.end.drainSeconds must be less than spec.ttl.defaultSeconds")),
    ] {
        let problem = Policy::compile(&policy).problem().map(|problem| problem.message.clone());
        match expected {
            None => assert_eq!(problem, None),
            Some(expected) => assert!(problem.as_deref().is_some_and(|told| told.starts_with(expected)), "{problem:?}"),
        }
    }
}
