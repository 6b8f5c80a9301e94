//! What binds the sessions of a grant stands at the grant, and an edit of the policy reaches it in one direction.

use super::*;

const GRANTED: &str = "Approved=True Active=True/Granted Ended=False/Granted";
const REVOKED: &str = "Approved=True Active=False/Revoked Ended=True/Revoked";

fn idle(seconds: i32) -> PolicySession {
    PolicySession { idle_timeout_seconds: Some(seconds), ..PolicySession::default() }
}

impl Life {
    fn edited(&mut self, session: Option<PolicySession>) {
        self.change_policies(true, |policies| policies[0].spec.session = session);
        self.settle();
        self.shows(GRANTED);
    }

    fn idle_seconds(&self) -> Option<i32> {
        self.status().grant.unwrap().session.and_then(|rules| rules.idle_timeout_seconds)
    }
}

#[test]
fn a_grant_says_what_binds_its_sessions_from_its_first_write_on() {
    let life = world().under(|policy| policy.session = Some(idle(600))).settled();
    life.shows(GRANTED);
    let expected = SessionRules { idle_timeout_seconds: Some(600), ..SessionRules::default() };
    assert_eq!(life.status().grant.unwrap().session, Some(expected));
    assert_eq!(world().settled().status().grant.unwrap().session, None);
}

#[test]
fn an_edit_that_binds_more_reaches_a_live_grant_with_one_write_and_one_that_binds_less_does_not() {
    let mut life = world().settled();
    for (session, expected, writes) in [
        (Some(idle(600)), Some(600), 1),
        (Some(idle(60)), Some(60), 1),
        (Some(idle(600)), Some(60), 0),
        (None, Some(60), 0),
        (Some(PolicySession { max_sessions: Some(3), ..PolicySession::default() }), Some(60), 1),
    ] {
        let before = life.writes;
        life.edited(session);
        assert_eq!((life.idle_seconds(), life.writes - before), (expected, writes), "{session:?}");
    }
    assert_eq!(life.status().grant.unwrap().session.unwrap().max_sessions, Some(3));
    // A process that knows nothing but status goes on from there.
    life.edited(None);
    life.crash();
    life.settle();
    life.shows(GRANTED);
    assert_eq!(life.idle_seconds(), Some(60));
}

#[test]
fn a_policy_that_comes_to_demand_the_gateway_takes_back_what_is_renewed_without_it() {
    let gateway_only = Some(PolicySession { gateway_only: Some(true), ..PolicySession::default() });
    let mut life = world().settled();
    life.change_policies(false, |policies| policies[0].spec.session = gateway_only);
    life.settle();
    let life = life.until(120);
    life.shows(REVOKED);
    assert_eq!(life.status().revocation.unwrap().cause, EndCause::PolicyChanged);
    // And admits nobody new.
    let life = world().under(|policy| policy.session = gateway_only).settled();
    life.shows("Denied=True/DeniedByPolicy Active=False/Denied Ended=True/Denied Stalled=True");
    life.says(ConditionType::Denied, "(session.gatewayOnly): set spec.keyDelivery to OnConnect");
    assert_eq!(life.status().grant, None);
}
