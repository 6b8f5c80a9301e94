//! What is over and owes nothing is left alone; that `next` agrees, the driver says at every step of every test.

use super::*;

/// A life that was granted and has expired.
fn expired() -> Life {
    world().until(600)
}

#[track_caller]
fn is(life: &Life, expected: bool) {
    let request = life.object.as_ref().expect("a request");
    assert_eq!(is_settled(request), expected, "{} at {}, log:\n{}", life.line(), life.now, life.log());
}

#[test]
fn whatever_ends_is_settled_when_nothing_is_owed_and_not_before() {
    is(&world(), false);
    let mut life = world().until(100);
    is(&life, false);
    life.revoke();
    is(&life, false);
    life.settle();
    is(&life, false);
    is(&life.until(150), true);
    is(&expired(), true);
    let refused = world().under(|policy| policy.os_users = vec!["nobody".into()]).settled();
    refused.shows("Denied=True/DeniedByPolicy Active=False/Denied Ended=True/Denied Stalled=True");
    is(&refused, true);
}

#[test]
fn an_end_whose_record_is_owed_is_not_settled_until_it_is_on_record() {
    let mut life = world().until(599);
    life.audit_works = false;
    let mut life = life.until(601);
    life.shows("Approved=True Active=False/Expired Ended=True/Expired");
    is(&life, false);
    life.audit_works = true;
    is(&life.until(700), true);
}

#[test]
fn an_end_that_something_is_left_to_do_about_is_not_settled() {
    let over = expired().object.unwrap();
    let changed = |change: fn(&mut InstanceAccess)| {
        let mut request = over.clone();
        change(&mut request);
        is_settled(&request)
    };
    assert!(changed(|_| {}));
    type Change = (&'static str, fn(&mut InstanceAccess));
    let changes: [Change; 7] = [
        ("is deleted", |it| it.metadata.deletion_timestamp = Some(Time(at(700)))),
        ("was revoked since, which status does not say", |it| it.metadata.generation = Some(2)),
        ("says it of an older generation", |it| it.status.as_mut().unwrap().conditions[0].observed_generation = 0),
        ("has no digest", |it| it.status.as_mut().unwrap().spec_digest = None),
        ("has no receipt", |it| it.status.as_mut().unwrap().audit = None),
        ("has not ended", |it| condition::drop(&mut it.status.as_mut().unwrap().conditions, ConditionType::Ended)),
        ("was never looked at", |it| it.status = None),
    ];
    for (what, change) in changes {
        assert!(!changed(change), "it {what}");
    }
}

#[test]
fn an_older_copy_of_what_was_settled_is_not() {
    // As a restore of etcd brings it back.
    let granted = world().until(100).object.unwrap();
    assert!(!is_settled(&granted));
    assert!(!is_settled(&request()));
}

#[test]
fn no_world_gives_what_is_settled_anything_to_do() {
    let mut life = expired();
    let idle = |life: &Life| {
        let plan = life.ask();
        assert!(plan.is_empty() && plan.look_again.is_none(), "{plan:?}");
    };
    life.crash();
    idle(&life);
    life.policies.clear();
    idle(&life);
    life.policies_read = false;
    life.requests_read = false;
    idle(&life);
    life.enforcement = Enforcement::Missing("a policy".into());
    idle(&life);
    life.sight.contact_lost_time = Some(Timestamp::MIN);
    life.sight.audit_failed_time = Some(life.now);
    idle(&life);
    life.decide(&erin(), DecisionKind::Revoke);
    idle(&life);
}
