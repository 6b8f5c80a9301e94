//! While the grant lives.

use super::*;

const GRANTED: &str = "Approved=True Active=True/Granted Ended=False/Granted";

/// Lives to `then` with pushes that go as `fate` says from the 30th second on.
fn with_pushes(fate: Fate, then: i64) -> Life {
    let mut life = world().until(30);
    life.shows(GRANTED);
    life.fate = fate;
    life.until(then)
}

#[test]
fn a_push_is_renewed_before_the_last_one_fades_and_never_after_its_last_time() {
    let life = world().until(600);
    let left: Vec<i64> = life
        .steps
        .iter()
        .filter(|(_, step)| step == "push left")
        .map(|(time, _)| time.as_second() - at(0).as_second())
        .collect();
    assert_eq!(left, (0..12).map(|turn| turn * 45).collect::<Vec<_>>());
    assert!(left.iter().all(|time| *time <= 530));
}

#[test]
fn no_key_is_pushed_past_an_end_that_nobody_heard_of_while_it_may_be_stored_yet() {
    let mut life = world().until(40);
    life.shows(GRANTED);
    // Its cause is undone since: nothing but this keeps the next key, due in the 45th second.
    life.sight.sends_end_unheard(at(55));
    let life = life.until(54);
    let pushes =
        |life: &Life| life.steps.iter().filter(|(_, step)| step == "push left").map(|(time, _)| *time).collect();
    let before: Vec<Timestamp> = pushes(&life);
    assert_eq!(before, [at(0)]);
    let life = life.until(120);
    let all: Vec<Timestamp> = pushes(&life);
    assert_eq!(all, [at(0), at(55), at(100)]);
    life.shows(GRANTED);
}

#[test]
fn throttling_is_told_once_access_is_really_gone() {
    let mut life = with_pushes(Fate::Fails(FailureClass::Throttled), 59);
    life.shows(GRANTED);
    life = life.until(61);
    life.shows("Approved=True Active=False/Throttled Reconciling=True");
    life.says(ConditionType::Active, "ThrottlingException");
    let writes = life.writes;
    life = life.until(120);
    assert_eq!(life.writes, writes);
    life.fate = Fate::Lands { queue: seconds(0), flight: seconds(1) };
    life = life.until(150);
    life.shows(GRANTED);
    assert_eq!(life.writes, writes + 1);
    // The start of the grant and its first request id are still those of the first push.
    assert_eq!(life.status().key.unwrap().first_request_id.as_deref(), Some("request-1"));
}

#[test]
fn what_pushes_come_to_is_told_by_class() {
    for (class, line) in [
        (FailureClass::Retry, "Approved=True Active=False/AwsUnavailable Reconciling=True"),
        (FailureClass::Throttled, "Approved=True Active=False/Throttled Reconciling=True"),
        (FailureClass::Refused, "Approved=True Active=False/AccessDenied Stalled=True"),
        (FailureClass::Invalid, "Approved=True Active=False/PushRefused Stalled=True"),
        (FailureClass::Gone, "Approved=True Active=False/InstanceNotRunning Reconciling=True"),
        (FailureClass::Bug, "Approved=True Active=False/AwsUnavailable Reconciling=True"),
    ] {
        // While people still get in, it is not told; the very second they do not, it is.
        let life = with_pushes(Fate::Fails(class), 59);
        life.shows(GRANTED);
        let life = life.until(60);
        life.shows(line);
        let life = life.until(599);
        life.shows(line);
        assert_eq!(life.writes, 3, "{class:?}");
        let pushes = life.kinds().iter().filter(|kind| **kind == RecordKind::PushIntended).count();
        assert!(pushes <= 50, "{class:?}: {pushes} tries");
        life.until(600).shows("Approved=True Active=False/Expired Ended=True/Expired");
    }
}

#[test]
fn a_first_push_that_fails_is_told() {
    let mut life = world();
    life.fate = Fate::Fails(FailureClass::Refused);
    life.settle();
    life.shows("Approved=True Active=False/AccessDenied Stalled=True");
    life.says(ConditionType::Stalled, "an administrator must mend the operator's credentials or IAM policy");
    life.fate = Fate::Lands { queue: seconds(0), flight: seconds(0) };
    life = life.until(60);
    life.shows(GRANTED);
}

#[test]
fn one_passing_failure_is_worth_no_word() {
    let mut life = world();
    life.fate = Fate::Fails(FailureClass::Retry);
    life.settle();
    life.shows("Approved=True Active=False/Granting Reconciling=True");
    life.fate = Fate::Lands { queue: seconds(0), flight: seconds(0) };
    let life = life.until(2);
    life.shows(GRANTED);
    assert_eq!(life.writes, 2);
}

#[test]
fn a_push_that_aws_calls_invalid_is_not_tried_again() {
    let mut life = world();
    life.fate = Fate::Fails(FailureClass::Invalid);
    let life = life.until(500);
    assert_eq!(life.kinds(), [RecordKind::GrantIntended]);
    life.shows("Approved=True Active=False/PushRefused Stalled=True");
}

#[test]
fn a_grant_whose_key_never_landed_ends_when_none_can_land_any_more() {
    for (fate, why) in [
        (Fate::Fails(FailureClass::Retry), "ServiceException: AWS's own words"),
        (Fate::Fails(FailureClass::Invalid), "InvalidArgsException: AWS's own words"),
        // Waits its turn for longer than its permit holds.
        (Fate::Lands { queue: seconds(540), flight: seconds(1) }, "every push came too late"),
    ] {
        let mut life = world();
        life.fate = fate;
        let life = life.until(530);
        assert!(life.line().starts_with("Approved=True Active=False/"), "{}", life.line());
        assert!(!life.line().contains("Ended"), "{}", life.line());
        let life = life.until(600);
        life.shows("Approved=True Active=False/Expired Ended=True/Expired");
        life.says(ConditionType::Ended, why);
        life.says(ConditionType::Ended, "make a new request");
        assert!(life.status().end_time.unwrap().0 < life.expiration());
    }
}

#[test]
fn a_push_that_nobody_answers_is_tried_again() {
    let mut life = world();
    life.fate = Fate::LandsUnheard { flight: seconds(5) };
    let life = life.until(40);
    assert!(life.landed() >= 2);
    life.shows("Approved=True Active=False/AwsUnavailable Reconciling=True");
}

#[test]
fn an_instance_that_goes_is_told_when_it_is_seen_and_gets_no_key() {
    type Change = fn(&mut Life);
    let states: [(Change, &str); 5] = [
        (
            |life| life.change_instance(|instance| instance.state = InstanceState::Stopped),
            "InstanceNotRunning Reconciling=True",
        ),
        (
            |life| life.change_instance(|instance| instance.state = InstanceState::Stopping),
            "InstanceNotRunning Reconciling=True",
        ),
        (
            |life| life.change_instance(|instance| instance.state = InstanceState::Terminated),
            "InstanceTerminated Stalled=True",
        ),
        (
            |life| life.change_instance(|instance| instance.state = InstanceState::Unknown),
            "InstanceNotRunning Reconciling=True",
        ),
        (|life| life.instances.clear(), "TargetNotFound Reconciling=True"),
    ];
    for (change, line) in states {
        let mut life = world().until(100);
        change(&mut life);
        life = life.until(100 + 60);
        life.shows(&format!("Approved=True Active=False/{line}"));
        let landed = life.landed();
        life = life.until(300);
        assert_eq!((life.landed(), life.writes), (landed, 3));
        life.instances = vec![Arc::new(instance())];
        life = life.until(361);
        life.shows(GRANTED);
        life.until(600).shows("Approved=True Active=False/Expired Ended=True/Expired");
    }
}

#[test]
fn a_target_by_tags_that_now_matches_two_gets_no_more_keys() {
    let mut life = world()
        .with(|request| {
            request.spec.target.instance_id = None;
            request.spec.target.tags = Some([("Name".into(), "web-1".into())].into());
        })
        .until(100);
    life.shows(GRANTED);
    let other = Instance { id: InstanceId::parse("i-00000000000000001").unwrap(), ..instance() };
    life.instances.push(Arc::new(other.clone()));
    life = life.until(170);
    life.shows("Approved=True Active=False/TargetNotFound Reconciling=True");
    let landed = life.landed();
    // Another instance in its place is not the one that was granted.
    life.instances = vec![Arc::new(other)];
    life = life.until(400);
    assert_eq!(life.landed(), landed);
    life.shows("Approved=True Active=False/TargetNotFound Reconciling=True");
}

#[test]
fn an_instance_that_is_tagged_otherwise_ends_the_grant() {
    let mut life = world().until(100);
    life.change_instance(|instance| drop(instance.tags.insert("env".into(), "prod".into())));
    life = life.until(160);
    life.shows("Approved=True Active=True/RevocationPending Reconciling=True");
    life.says(
        ConditionType::Active,
        "policy developers no longer admits this: it selects instances by the tags env=dev",
    );
    life = life.until(230);
    life.shows("Approved=True Active=False/Revoked Ended=True/Revoked");
    assert_eq!(life.status().revocation.unwrap().cause, EndCause::PolicyChanged);
}

#[test]
fn no_key_is_pushed_on_an_instance_that_was_not_seen_for_four_minutes() {
    let mut life = world().with(|request| request.spec.ttl_seconds = Some(3600)).until(10);
    life.look_failure = Some(failure(FailureClass::Throttled));
    life = life.until(200);
    life.shows(GRANTED);
    life = life.until(280);
    let landed = life.landed();
    life = life.until(310);
    life.shows("Approved=True Active=False/Throttled Reconciling=True");
    life.says(ConditionType::Active, "describe the instance");
    life = life.until(900);
    assert_eq!(life.landed(), landed);
    life.look_failure = None;
    life = life.until(930);
    life.shows(GRANTED);
}

#[test]
fn without_the_audit_trail_no_key_is_pushed_and_it_is_told_when_the_last_has_faded() {
    let mut life = world().until(10);
    life.audit_works = false;
    life = life.until(59);
    life.shows(GRANTED);
    let writes = life.writes;
    life = life.until(61);
    life.shows("Approved=True Active=False/AuditUnavailable Reconciling=True");
    assert_eq!((life.landed(), life.writes), (1, writes + 1));
    life = life.until(300);
    assert_eq!((life.landed(), life.writes), (1, writes + 1));
    assert!(life.look_ups >= 4, "looking at the instance goes on: {}", life.look_ups);
    life.audit_works = true;
    life = life.until(310);
    life.shows(GRANTED);
}

#[test]
fn the_last_minute_is_quiet() {
    let mut life = world().until(535);
    let (writes, plans) = (life.writes, life.plans);
    life.fate = Fate::Fails(FailureClass::Refused);
    life.audit_works = false;
    life = life.until(599);
    life.shows(GRANTED);
    assert_eq!(life.writes, writes);
    assert!(life.plans - plans < 10, "{} plans", life.plans - plans);
}

#[test]
fn a_restart_pushes_at_once_and_writes_nothing() {
    let mut life = world().until(100);
    let (landed, writes) = (life.landed(), life.writes);
    life.crash();
    life.settle();
    assert_eq!((life.landed(), life.writes), (landed + 1, writes));
    life.shows(GRANTED);
    let life = life.until(600);
    assert_eq!(life.writes, 3);
    assert_eq!(life.status().key.unwrap().pushes, Some(1 + i32::try_from(life.landed() - landed).unwrap()));
}

#[test]
fn a_restart_into_an_outage_does_not_claim_access_for_longer_than_a_key_lives() {
    let mut life = world().until(100);
    life.fate = Fate::Fails(FailureClass::Refused);
    life.crash();
    life = life.until(159);
    life.shows(GRANTED);
    life = life.until(161);
    life.shows("Approved=True Active=False/AccessDenied Stalled=True");
}

#[test]
fn a_restart_while_granting_pushes_under_the_same_grant() {
    let mut life = world();
    life.fate = Fate::Lands { queue: seconds(5), flight: seconds(5) };
    life.settle();
    let grant = life.status().grant;
    assert_eq!(life.line(), "Approved=True Active=False/Granting Reconciling=True");
    life.crash();
    life = life.until(11);
    life.shows(GRANTED);
    assert_eq!(life.status().grant, grant);
}

#[test]
fn a_policy_that_changes_and_still_admits_changes_nothing() {
    let mut life = world().until(100);
    let pin = life.status().policy;
    life.change_policies(true, |policies| {
        policies[0].metadata.generation = Some(2);
        policies[0].spec.os_users.push("ops".into());
        policies.push(policy("more", PolicyEffect::Allow));
        policies[1].spec.priority = Some(9);
        policies.push(policy("others", PolicyEffect::Deny));
        policies[2].spec.os_users = vec!["root".into()];
    });
    life = life.until(200);
    life.shows(GRANTED);
    assert_eq!((life.status().policy, life.writes), (pin, 2));
}

#[test]
fn the_finalizer_is_put_back_while_the_grant_lives() {
    let mut life = world().until(100);
    life.strip_finalizer();
    life.settle();
    assert!(life.object.as_ref().unwrap().metadata.finalizers.iter().flatten().any(|name| name == FINALIZER));
    life.delete();
    life.settle();
    life.shows("Approved=True Active=True/RevocationPending Reconciling=True");
    let mut pending = world().until(100);
    pending.revoke();
    pending.settle();
    pending.strip_finalizer();
    pending.settle();
    pending.delete();
    pending.settle();
    assert!(pending.object.is_some(), "gone while a key is readable");
    pending = pending.until(200);
    assert_eq!(pending.object, None);
}

#[test]
fn a_label_an_annotation_and_a_race_move_nothing() {
    let mut life = world().until(100);
    for second in 100..300 {
        life.label();
        life.lagging = second % 3 == 0;
        life = life.until(second);
    }
    life.shows(GRANTED);
    assert_eq!(life.writes, 2);
    life.until(600).shows("Approved=True Active=False/Expired Ended=True/Expired");
}

#[test]
fn a_spec_that_is_not_the_granted_one_any_more_gets_no_key() {
    let mut life = world().until(100);
    life.fate = Fate::Fails(FailureClass::Bug);
    let object = life.object.as_mut().unwrap();
    object.spec.ttl_seconds = Some(601);
    life.label();
    life.settle();
    life.shows("Approved=True Active=True/RevocationPending Reconciling=True");
    life.says(ConditionType::Active, "the spec is not the one that was granted");
}

#[test]
fn an_operator_that_lost_its_region_takes_access_back() {
    let mut life = world().until(100);
    life.settings.region = None;
    life.settle();
    life.shows("Approved=True Active=True/RevocationPending Reconciling=True");
}

#[test]
fn a_stepped_clock_neither_stops_the_pushes_nor_the_looks() {
    let mut life = world().with(|request| request.spec.ttl_seconds = Some(3600)).until(1000);
    let (landed, looks) = (life.landed(), life.look_ups);
    life.audit_works = false;
    life = life.until(1050);
    life.audit_works = true;
    life.step_back(seconds(900));
    assert!(life.landed() > landed && life.look_ups > looks, "{}", life.log());
    life = life.until(400);
    life.shows(GRANTED);
    assert!(life.landed() >= landed + 5);
}
