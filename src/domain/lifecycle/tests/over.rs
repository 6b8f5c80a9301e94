//! The end: by the clock, by the requester, by another.

use super::*;

const PENDING: &str = "Approved=True Active=True/RevocationPending Reconciling=True";
const REVOKED: &str = "Approved=True Active=False/Revoked Ended=True/Revoked";

fn at_a_hundred() -> Life {
    // Pushes landed at 0, 45 and 90: the last is readable until 150.
    world().until(100)
}

#[test]
fn a_revocation_is_pending_until_the_last_key_has_faded_then_over() {
    let mut life = at_a_hundred();
    let landed = life.landed();
    life.revoke();
    life.settle();
    life.shows(PENDING);
    life.says(ConditionType::Active, "spec.revoke was set: done; no key is pushed any more, the last one is readable by the host until 2026-03-01T08:02:30Z");
    assert_eq!(life.expiration(), at(150));
    assert_eq!(life.look_again, Some((Deadline::KeyWindowClosed, at(150))));
    let revocation = life.status().revocation.unwrap();
    assert_eq!((revocation.cause, revocation.key_window_closed_time), (EndCause::Revoked, Some(Time(at(150)))));
    assert_eq!(life.status().observed_generation, Some(2));
    life = life.until(149);
    life.shows(PENDING);
    life = life.until(150);
    life.shows(REVOKED);
    assert_eq!((life.landed(), life.writes), (landed, 4));
    assert_eq!(life.status().end_time, Some(Time(at(150))));
    assert_eq!(life.kinds()[life.kinds().len() - 2..], [RecordKind::EndIntended, RecordKind::Ended]);
    assert_eq!(life.events, ["Granted", "RevocationPending", "Revoked"]);
}

#[test]
fn a_revocation_before_any_key_could_be_there_is_over_at_once() {
    let mut life = world();
    life.fate = Fate::Fails(FailureClass::Refused);
    life.settle();
    life.revoke();
    life.settle();
    life.shows(REVOKED);
    assert_eq!(life.status().end_time, Some(Time(at(0))));
    assert_eq!(life.status().key.unwrap().pushes, Some(0));
}

#[test]
fn a_revocation_while_the_push_waits_or_flies_assumes_that_it_lands() {
    for (queue, flight) in [(0, 8), (8, 0), (3, 9)] {
        let mut life = world();
        life.fate = Fate::Lands { queue: seconds(queue), flight: seconds(flight) };
        life = life.until(5);
        life.revoke();
        life.settle();
        life.shows(PENDING);
        assert!(life.expiration() >= at(75) && life.expiration() <= at(76), "{}", life.expiration());
        let key = life.expiration();
        life.run_until(key);
        life.shows(REVOKED);
        let evidence = life.status().key.unwrap();
        assert_eq!(evidence.first_request_id, evidence.last_request_id);
    }
}

#[test]
fn a_revocation_in_the_last_minute_does_not_move_the_end_later() {
    let mut life = world().until(550);
    life.crash();
    life.revoke();
    life.settle();
    life.shows(PENDING);
    assert_eq!(life.expiration(), at(600));
    life.until(600).shows(REVOKED);
}

#[test]
fn a_restart_right_before_a_revocation_assumes_a_push_that_it_did_not_see() {
    let mut life = at_a_hundred();
    life.fate = Fate::Fails(FailureClass::Refused);
    life.crash();
    life.revoke();
    life.settle();
    life.shows(PENDING);
    assert_eq!(life.expiration(), at(170));
    life.until(170).shows(REVOKED);
}

#[test]
fn a_restart_while_revocation_is_pending_waits_it_out() {
    let mut life = at_a_hundred();
    life.revoke();
    life.settle();
    life.crash();
    life.settle();
    life.shows(PENDING);
    assert_eq!((life.expiration(), life.writes), (at(150), 3));
    assert_eq!(life.look_again, Some((Deadline::KeyWindowClosed, at(150))));
    life.until(150).shows(REVOKED);
}

#[test]
fn a_grant_of_another_operator_with_a_clock_ahead_is_not_taken_for_our_own() {
    // Its start lies 3 s after our lead began, by its clock; its push we never saw.
    let mut life = world().until(3);
    life.crash();
    life.step_back(seconds(3));
    life.fate = Fate::Fails(FailureClass::Refused);
    life.revoke();
    life.settle();
    life.shows(PENDING);
}

#[test]
fn a_deletion_ends_the_grant_first_and_lets_the_object_go_last() {
    let mut life = at_a_hundred();
    life.delete();
    life.settle();
    life.shows(PENDING);
    life.says(ConditionType::Active, "the request was deleted");
    life = life.until(149);
    assert!(life.object.is_some());
    life = life.until(150);
    assert_eq!(life.object, None);
    assert_eq!(life.writes, 4);
    let last: Vec<&str> = life.steps.iter().rev().take(5).map(|(_, step)| step.as_str()).collect();
    assert_eq!(last, ["finalizer removed", "entered", "event Released", "status", "audit Ended"]);
}

#[test]
fn a_deletion_after_the_end_costs_no_status_write() {
    let mut life = world().until(700);
    life.delete();
    life.settle();
    assert_eq!((life.object.as_ref(), life.writes), (None, 3));
}

#[test]
fn another_finalizer_is_left_alone() {
    let mut life = world()
        .with(|request| request.metadata.finalizers.get_or_insert_default().push("example.com/other".into()))
        .until(700);
    let plan = {
        life.object.as_mut().unwrap().metadata.deletion_timestamp = Some(Time(at(700)));
        life.sync();
        life.ask()
    };
    assert!(matches!(&plan.after[..], [Effect::Enter(_), Effect::RemoveFinalizer]));
}

#[test]
fn revoked_and_deleted_at_once_is_one_end() {
    for deleted_first in [true, false] {
        let mut life = at_a_hundred();
        if deleted_first {
            life.delete();
            life.settle();
        }
        life.revoke();
        life.settle();
        if !deleted_first {
            life.delete();
            life.settle();
        }
        life = life.until(150);
        assert_eq!(life.object, None);
        let ends = life.kinds().iter().filter(|kind| **kind == RecordKind::Ended).count();
        assert_eq!(ends, 1);
    }
}

#[test]
fn a_policy_that_no_longer_admits_takes_access_back() {
    type Change = fn(&mut Vec<InstanceAccessPolicy>);
    let changes: [(Change, &str); 12] = [
        (Vec::clear, "policy developers was deleted"),
        (|policies| policies[0].metadata.uid = Some("another".into()), "policy developers was deleted"),
        (|policies| policies[0].spec.subjects.clear(), "is not for this requester"),
        (|policies| policies[0].spec.os_users = vec!["ops".into()], "allows osUsers ops"),
        (
            |policies| policies[0].spec.ttl = Some(PolicyTtl { default_seconds: 300, max_seconds: 300 }),
            "at most ttlSeconds 300",
        ),
        (|policies| policies[0].spec.targets.instance_tags = None, "names no targets"),
        (
            |policies| policies[0].spec.connection_methods = Some(vec![PolicyConnectionMethod::Endpoint]),
            "connectionMethods Endpoint",
        ),
        (|policies| policies[0].spec.delegates = Some(vec![]), "cannot be enforced"),
        (|policies| policies[0].spec.windows = Some(vec![]), "its windows are never open"),
        (
            |policies| policies[0].spec.windows = Some(vec![hours(Weekday::Sun, "08:00", "08:05")]),
            "allows access until 2026-03-01T08:05:00Z, when its window closes, and this was granted until 2026-03-01T08:10:00Z",
        ),
        (|policies| policies[0].spec.effect = PolicyEffect::Deny, "denies this"),
        (|policies| policies.push(policy("freeze", PolicyEffect::Deny)), "policy freeze denies this"),
    ];
    for (change, part) in changes {
        let mut life = at_a_hundred();
        life.change_policies(false, change);
        life.settle();
        life.shows(PENDING);
        life.says(ConditionType::Active, part);
        // Coming back does not bring it back.
        life.change_policies(true, |policies| *policies = vec![developers()]);
        life = life.until(150);
        life.shows(REVOKED);
        assert_eq!(life.status().revocation.unwrap().cause, EndCause::PolicyChanged);
    }
}

#[test]
fn an_end_never_waits_for_the_audit_trail_and_its_record_comes_later() {
    let mut life = at_a_hundred();
    life.audit_works = false;
    life.revoke();
    life.settle();
    life.shows(PENDING);
    life = life.until(150);
    life.shows(REVOKED);
    assert_eq!(life.status().audit, None);
    life.delete();
    life = life.until(300);
    assert!(life.object.is_some(), "it goes once its record is durable");
    assert!(life.plans < 200, "{} plans", life.plans);
    life.audit_works = true;
    life = life.until(310);
    assert_eq!(life.object, None);
    assert!(life.last_status.as_ref().unwrap().audit.is_some());
    assert_eq!(life.kinds().last(), Some(&RecordKind::Ended));
}

#[test]
fn the_clock_ends_what_nobody_watched() {
    let mut life = at_a_hundred();
    life.suspend_until(at(4000));
    life.shows("Approved=True Active=False/Expired Ended=True/Expired");
    assert_eq!(life.status().end_time, Some(Time(at(600))));
    let mut restarted = at_a_hundred();
    restarted.look_failure = Some(failure(FailureClass::Refused));
    restarted.policies.clear();
    let looks = restarted.look_ups;
    restarted.now = at(4000);
    restarted.crash();
    restarted.settle();
    restarted.shows("Approved=True Active=False/Expired Ended=True/Expired");
    assert_eq!(restarted.look_ups, looks, "an end looks at nothing");
}

#[test]
fn a_late_revocation_of_what_is_over_moves_the_observed_generations_alone() {
    let over = world().until(700);
    let refused = world().under(|policy| policy.subjects.clear()).settled();
    for mut life in [over, refused] {
        let mut expected = life.status();
        life.revoke();
        life.settle();
        // Those of the conditions too: who waits for one (kubectl wait) reads none of an older generation.
        expected.observed_generation = Some(2);
        for condition in &mut expected.conditions {
            condition.observed_generation = 2;
        }
        assert_eq!(life.status(), expected);
    }
}

#[test]
fn what_is_over_is_never_looked_at_again() {
    for mut life in [
        world().until(600),
        world().under(|policy| policy.subjects.clear()).settled(),
        world().with(|request| request.spec.end_time = Some(Time(at(-1)))).settled(),
    ] {
        let (writes, looks) = (life.writes, life.look_ups);
        life.change_policies(true, |policies| *policies = vec![developers()]);
        life.crash();
        life.label();
        life.run_until(at(90_000));
        assert_eq!((life.writes, life.look_ups, life.look_again), (writes, looks, None));
    }
}

#[test]
fn the_record_of_an_end_tells_how_it_went() {
    let life = at_a_hundred();
    let mut life = life;
    life.revoke();
    life = life.until(200);
    let (_, record) = life.records.last().unwrap();
    assert_eq!(record.cause, Some(EndCause::Revoked));
    assert_eq!(record.end_time, Some(Time(at(150))));
    assert_eq!((record.pushes, record.request_id.as_deref()), (Some(3), Some("request-3")));
    assert_eq!(record.grant_id, life.status().grant.map(|grant| grant.id));
    assert_eq!((record.instance_id.as_deref(), record.os_user.as_str()), (Some(INSTANCE), "ec2-user"));
}
