//! Plans that wait their turn, and what may change meanwhile.

use super::people::one_lead;
use super::*;

/// About to be granted, by a policy that says how long.
fn about_to_be_granted() -> Life {
    let mut life =
        world().under(|policy| policy.approval = Some(one_lead())).with(|request| request.spec.ttl_seconds = None);
    life.decide(&erin(), DecisionKind::Approve);
    life.sight.instances.answered(life.now, Ok(life.instances.clone()));
    life
}

/// Whether a plan that is made now may still be carried out when its turn comes, after a change.
#[track_caller]
fn check(mut life: Life, change: impl FnOnce(&mut Life), still: bool, what: &str) {
    let ground = |life: &Life| life.ask().ground(life.object.as_ref().unwrap());
    let before = ground(&life).expect("it pushes");
    change(&mut life);
    let after = ground(&life);
    assert_eq!(after.as_ref().is_some_and(|after| before.is_within(after)), still, "{what}: {before:#?} {after:#?}");
}

fn edit(life: &mut Life, change: impl FnOnce(&mut InstanceAccessPolicySpec)) {
    change(&mut life.policies[0].spec);
    *life.policies[0].metadata.generation.get_or_insert(1) += 1;
}

#[test]
fn a_grant_that_waits_to_be_stored_falls_if_it_would_be_another_by_then() {
    let frank = Identity { username: "frank".into(), groups: vec!["leads".into()], ..Identity::default() };
    type Change = fn(&mut Life);
    let rows: [(&str, Change, bool); 13] = [
        ("nothing", |_| {}, true),
        ("time passes", |life| life.now = plus(life.now, seconds(12)), true),
        ("a policy denies it", |life| life.policies.push(policy("another", PolicyEffect::Deny)), false),
        (
            "a policy comes that is not for her",
            |life| {
                let mut other = policy("other", PolicyEffect::Allow);
                other.spec.subjects.clear();
                life.policies.push(other);
            },
            true,
        ),
        ("the policy is edited, in what does not matter", |life| edit(life, |policy| policy.priority = Some(1)), false),
        (
            "it allows less time",
            |life| edit(life, |policy| policy.ttl = Some(PolicyTtl { default_seconds: 300, max_seconds: 300 })),
            false,
        ),
        (
            "it allows a little less time",
            |life| life.policies[0].spec.ttl = Some(PolicyTtl { default_seconds: 1790, max_seconds: 3600 }),
            false,
        ),
        ("it asks for two", |life| edit(life, |policy| policy.approval.as_mut().unwrap().count = 2), false),
        (
            "another policy decides, which asks nobody",
            |life| {
                let mut first = policy("first", PolicyEffect::Allow);
                first.spec.priority = Some(9);
                life.policies.push(first);
            },
            false,
        ),
        ("the policy is deleted", |life| life.policies.clear(), false),
        ("the approval is deleted", |life| life.decisions.clear(), false),
        ("somebody says no", |life| life.decide(&erin(), DecisionKind::Deny), false),
        ("what guards requests is not known to stand", |life| life.enforcement = Enforcement::Unseen, false),
    ];
    for (what, change, still) in rows {
        check(about_to_be_granted(), change, still, what);
    }
    let second = |life: &mut Life| life.decide(&frank, DecisionKind::Approve);
    check(about_to_be_granted(), second, true, "another yes, which is not needed");
    let instead = |life: &mut Life| {
        life.decisions.clear();
        life.decide(&frank, DecisionKind::Approve);
    };
    check(about_to_be_granted(), instead, false, "another's yes instead");
}

#[test]
fn a_key_that_waits_to_be_pushed_again_falls_only_if_its_grant_does() {
    let due = || {
        let mut life = about_to_be_granted().until(44);
        life.now = at(45);
        life
    };
    check(due(), |_| {}, true, "nothing");
    check(due(), |life| edit(life, |policy| policy.priority = Some(1)), true, "an edit that still admits it");
    check(due(), |life| life.decisions.clear(), true, "the approval is deleted after the grant");
    check(due(), |life| edit(life, |policy| policy.os_users.clear()), false, "an edit that does not");
    check(due(), |life| life.decide(&alice(), DecisionKind::Revoke), false, "a revocation");
    check(due(), |life| life.unreadable = vec!["odd".into()], false, "a decision that may be a no");
    check(due(), Life::revoke, false, "spec.revoke");
}
