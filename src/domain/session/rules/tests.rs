//! What binds sessions, row by row; and that nothing but time and a new grant ever loosens it.

use proptest::prelude::*;

use super::super::tests::{INSTANCE, arcs, asked, at, dialling, grant, held, now, other, refused};
use super::super::{Fate, Standing, fate, permit};
use super::*;
use crate::api::PolicySessionEnd;

fn rules(max_sessions: Option<i32>, idle_timeout_seconds: Option<i32>, drain_seconds: Option<i32>) -> SessionRules {
    SessionRules { max_sessions, idle_timeout_seconds, drain_seconds }
}

fn bound(grant: SessionGrant, rules: SessionRules) -> SessionGrant {
    SessionGrant { rules, ..grant }
}

#[test]
fn a_policy_pins_what_binds_and_nothing_else() {
    let drain = PolicySessionEnd { strategy: SessionEndStrategy::Drain, drain_seconds: Some(300) };
    let cut = PolicySessionEnd { strategy: SessionEndStrategy::Cut, drain_seconds: None };
    let gateway_only = PolicySession { gateway_only: Some(true), ..PolicySession::default() };
    let all = PolicySession {
        gateway_only: Some(true),
        max_sessions: Some(2),
        idle_timeout_seconds: Some(600),
        end: Some(drain),
    };
    for (session, expected) in [
        (None, None),
        (Some(PolicySession::default()), None),
        (Some(gateway_only), None),
        (Some(PolicySession { end: Some(cut), ..gateway_only }), None),
        (Some(PolicySession { end: Some(drain), ..gateway_only }), Some(rules(None, None, Some(300)))),
        (Some(PolicySession { end: Some(cut), ..all }), Some(rules(Some(2), Some(600), None))),
        (Some(all), Some(rules(Some(2), Some(600), Some(300)))),
    ] {
        assert_eq!(pinned(session), expected, "{session:?}");
    }
}

#[test]
fn an_edit_binds_a_live_grant_more_and_never_less() {
    let strict = rules(Some(1), Some(60), Some(600));
    for (pinned, policy, expected) in [
        (None, None, None),
        (None, Some(strict), Some(strict)),
        (Some(strict), None, Some(strict)),
        (Some(strict), Some(rules(Some(9), Some(90), Some(9))), Some(strict)),
        (Some(rules(Some(9), Some(90), Some(9))), Some(strict), Some(strict)),
        (
            Some(rules(Some(2), None, Some(9))),
            Some(rules(Some(1), Some(60), None)),
            Some(rules(Some(1), Some(60), Some(9))),
        ),
    ] {
        assert_eq!(tightened(pinned, policy), expected, "{pinned:?} {policy:?}");
    }
}

fn any_rules() -> impl Strategy<Value = SessionRules> {
    let field = || proptest::option::of(1..100_i32);
    (field(), field(), field()).prop_map(|(sessions, idle, drain)| rules(sessions, idle, drain))
}

/// Whether one lets no session do what the other does not.
fn is_within(one: SessionRules, other: SessionRules) -> bool {
    let lower = |one: Option<i32>, other: Option<i32>| other.is_none_or(|other| one.is_some_and(|one| one <= other));
    lower(one.max_sessions, other.max_sessions)
        && lower(one.idle_timeout_seconds, other.idle_timeout_seconds)
        && one.drain_seconds.unwrap_or(0) >= other.drain_seconds.unwrap_or(0)
}

proptest! {
    #[test]
    fn whatever_a_policy_becomes_a_live_grant_is_bound_by_the_strictest_of_all(
        first in proptest::option::of(any_rules()),
        edits in proptest::collection::vec(proptest::option::of(any_rules()), 0..6),
    ) {
        let mut standing = first;
        for edit in &edits {
            let next = tightened(standing, *edit);
            prop_assert!(is_within(next.unwrap_or_default(), standing.unwrap_or_default()), "looser than before");
            prop_assert!(is_within(next.unwrap_or_default(), edit.unwrap_or_default()), "looser than the policy");
            prop_assert_eq!(tightened(next, *edit), next, "seen twice");
            standing = next;
        }
        let mut backwards = edits.clone();
        backwards.reverse();
        prop_assert_eq!(backwards.into_iter().chain([first]).reduce(tightened).flatten(), standing, "by their order");
    }

    /// Whatever the grants of one client are: what is dialled is held to all their rules, and none of them refuses it.
    #[test]
    fn no_session_is_opened_against_the_rules_of_any_login_that_it_could_be(
        all in proptest::collection::vec((any_rules(), 1..120_i64, prop_oneof![Just("a"), Just("b"), Just("c")]), 1..5),
        at_second in 0..120_i64,
    ) {
        let grants: Vec<SessionGrant> = all
            .iter()
            .enumerate()
            .map(|(number, (rules, ends, os_user))| {
                bound(other(INSTANCE, &format!("n{number}"), os_user, *ends), *rules)
            })
            .collect();
        let now = at(at_second);
        let grants = arcs(&grants);
        if let Ok(permit) = permit(now, &grants, |_| grants.clone(), INSTANCE, 22, &dialling()) {
            for hold in permit.holds() {
                let of = grants.iter().find(|grant| grant.grant_id == hold.grant_id).unwrap();
                prop_assert_eq!(hold.rules, of.rules);
                prop_assert!(of.is_open(now), "{} drains", hold.grant_id);
                let share = permit.shares(50).into_iter().find(|share| share.request == hold.request);
                let own = hold.request.uid == permit.grant().request.uid;
                prop_assert_eq!(share.is_some(), own || of.rules.max_sessions.is_some());
            }
            prop_assert!(permit.redeem(now).is_ok());
        }
    }
}

#[test]
fn a_grant_that_drains_opens_no_session_and_keeps_those_that_are_open() {
    let drains = bound(other(INSTANCE, "web-1", "ec2-user", 600), rules(None, None, Some(60)));
    let ask =
        |seconds| permit(at(seconds), &arcs(std::slice::from_ref(&drains)), |_| vec![], INSTANCE, 22, &dialling());
    assert!(ask(539).is_ok());
    assert_eq!(
        ask(540).unwrap_err().to_string(),
        "web-1.team ends at 2026-03-01T09:10:00Z, and its policy opens no session from 2026-03-01T09:09:00Z on; ask again with a new request"
    );
    assert_eq!(ask(540).unwrap_err().as_str(), "Draining");
    assert_eq!(ask(600).unwrap_err().as_str(), "Over");
    // Also of who waited their turn meanwhile.
    assert_eq!(ask(539).unwrap().redeem(at(540)).unwrap_err().as_str(), "Draining");
    assert_eq!(ask(539).unwrap().redeem(at(600)).unwrap_err().as_str(), "Over");
    // The promise stays: what is open is cut at expirationTime, and at once for any other reason.
    let mut hold = ask(539).unwrap().holds()[0].clone();
    let live = Standing::Live(Arc::new(drains.clone()));
    assert_eq!(fate(at(540), &mut hold, &live), Fate::Until(at(600)));
    assert_eq!(fate(at(600), &mut hold, &live), Fate::Cut(super::super::SessionEnd::Expired));
    let revoked = Standing::Over(crate::api::EndCause::Revoked);
    assert_eq!(fate(at(541), &mut hold, &revoked), Fate::Cut(super::super::SessionEnd::Revoked));
}

#[test]
fn another_grant_of_the_login_is_taken_instead_of_one_that_drains() {
    let drains = bound(other(INSTANCE, "long", "ec2-user", 600), rules(None, None, Some(600)));
    let open = other(INSTANCE, "short", "ec2-user", 60);
    assert_eq!(held(&asked(&[drains.clone(), open.clone()], INSTANCE, 22).unwrap()), ["g-short"]);
    assert!(refused(&[drains.clone(), open.clone()], "long.team", 22, "Draining").contains("long.team"));
    // Another login is no way around it: the inner SSH could be either.
    let root = bound(other(INSTANCE, "root", "root", 600), rules(None, None, Some(600)));
    assert!(refused(&[root, open], "short.team", 22, "Draining").contains("root.team"));
}

#[test]
fn sessions_are_counted_for_every_login_that_they_could_be() {
    let shares = |grants: &[SessionGrant], host: &str| {
        let shares = asked(grants, host, 22).unwrap().shares(50);
        shares.into_iter().map(|share| (share.request.name, share.sessions_max)).collect::<Vec<_>>()
    };
    let plain = other(INSTANCE, "plain", "ec2-user", 600);
    let root = bound(other(INSTANCE, "root", "root", 600), rules(Some(1), None, None));
    let wide = bound(other(INSTANCE, "wide", "ops", 600), rules(Some(1000), None, None));
    let expected =
        |names: &[(&str, usize)]| names.iter().map(|(name, max)| ((*name).to_owned(), *max)).collect::<Vec<_>>();
    assert_eq!(shares(std::slice::from_ref(&plain), "plain.team"), expected(&[("plain", 50)]));
    assert_eq!(shares(std::slice::from_ref(&root), "root.team"), expected(&[("root", 1)]));
    // The gateway's own bound is the upper one.
    assert_eq!(shares(&[wide], "wide.team"), expected(&[("wide", 50)]));
    let both = [plain, root];
    assert_eq!(shares(&both, "plain.team"), expected(&[("plain", 50), ("root", 1)]));
    assert_eq!(shares(&both, "root.team"), expected(&[("root", 1)]));
    let full = asked(&both, "plain.team", 22).unwrap().shares(50)[1].full();
    assert_eq!(full, "root.team has as many sessions as one grant may, 1; close one");
}

#[test]
fn the_shortest_silence_counts_and_reaches_sessions_that_are_open() {
    let seconds = |seconds| Some(Duration::from_secs(seconds));
    let idle = |first, second, own| idle_max([rules(None, first, None), rules(None, second, None)], own);
    for (first, second, own, expected) in [
        (None, None, None, None),
        (None, None, seconds(90), seconds(90)),
        (Some(60), None, None, seconds(60)),
        (Some(60), Some(120), seconds(90), seconds(60)),
        (Some(600), Some(120), seconds(90), seconds(90)),
        (Some(-1), None, None, seconds(0)),
    ] {
        assert_eq!(idle(first, second, own), expected, "{first:?} {second:?} {own:?}");
    }
    let mut hold = asked(&[grant()], INSTANCE, 22).unwrap().holds()[0].clone();
    let live = |idle| Standing::Live(Arc::new(bound(grant(), rules(None, idle, None))));
    for (seen, expected) in
        [(None, None), (Some(600), Some(600)), (Some(60), Some(60)), (Some(600), Some(60)), (None, Some(60))]
    {
        fate(now(), &mut hold, &live(seen));
        assert_eq!(hold.rules.idle_timeout_seconds, expected, "after {seen:?}");
    }
}

#[test]
fn who_is_let_in_may_read_when_it_ends() {
    let long = other(INSTANCE, "long", "ec2-user", 3600);
    let short = bound(other(INSTANCE, "short", "root", 600), rules(None, None, Some(60)));
    let over = other(INSTANCE, "over", "ops", 0);
    assert_eq!(
        ends(now(), &arcs(&[long, short, over])),
        "short.team ends at 2026-03-01T09:10:00Z, and opens no session from 2026-03-01T09:09:00Z; long.team ends at 2026-03-01T10:00:00Z"
    );
    let many: Vec<_> = (0..100).map(|n| other(INSTANCE, &"n".repeat(253 - n % 2), "ec2-user", 60)).collect();
    assert!(ends(now(), &arcs(&many)).len() < 4096);
}
