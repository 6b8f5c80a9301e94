//! Grants whose key gateways push.

use super::*;

const GRANTED: &str = "Approved=True Active=True/Granted Ended=False/Granted";

/// The request as it comes where there is a gateway.
fn on_connect() -> Life {
    let mut life = world().with(|request| request.spec.key_delivery = Some(KeyDelivery::OnConnect));
    life.settings.gateway = Some("gateway.example.com:2222".parse().unwrap());
    life
}

fn command(life: &Life) -> String {
    life.status().connection.unwrap().command
}

#[test]
fn it_is_granted_in_one_write_and_the_operator_pushes_nothing() {
    let life = on_connect().settled();
    life.shows(GRANTED);
    life.says(ConditionType::Active, "connect through the gateway");
    assert_eq!(command(&life), "ssh -J gateway.example.com:2222 ec2-user@i-0123456789abcdef0");
    assert_eq!((life.kinds(), &*life.events, life.writes), (vec![RecordKind::GrantIntended], &["Granted"][..], 1));
    let key = life.status().key.unwrap();
    assert_eq!((key.pushes, key.first_request_id, key.last_request_id), (None, None, None));
    let mut life = life.until(599);
    life.shows(GRANTED);
    assert_eq!((life.writes, life.landed()), (1, 0));
    life = life.until(600);
    life.shows("Approved=True Active=False/Expired Ended=True/Expired");
    assert_eq!(life.kinds(), [RecordKind::GrantIntended, RecordKind::Ended]);
    assert_eq!(life.status().key.unwrap().pushes, None, "what gateways pushed is not counted here");
}

#[test]
fn without_a_gateway_it_is_refused_and_told_what_is_missing() {
    let mut life = on_connect();
    life.settings.gateway = None;
    life.settle();
    life.shows("Denied=True/InvalidSpec Active=False/Denied Ended=True/Denied Stalled=True");
    for part in ["spec.keyDelivery", "use Continuous", "--gateway-address"] {
        life.says(ConditionType::Denied, part);
    }
    assert_eq!(life.landed(), 0);
}

#[test]
fn a_policy_may_admit_one_delivery_and_not_the_other() {
    let only = |delivery| move |policy: &mut InstanceAccessPolicySpec| policy.key_delivery = Some(vec![delivery]);
    let life = on_connect().under(only(KeyDelivery::Continuous)).settled();
    life.shows("Denied=True/DeniedByPolicy Active=False/Denied Ended=True/Denied Stalled=True");
    life.says(ConditionType::Denied, "allows keyDelivery Continuous");
    on_connect().under(only(KeyDelivery::OnConnect)).settled().shows(GRANTED);
    let life = world().under(only(KeyDelivery::OnConnect)).settled();
    life.says(ConditionType::Denied, "allows keyDelivery OnConnect");
}

#[test]
fn a_gateway_that_moved_or_was_forgotten_ends_nothing() {
    let mut life = on_connect().settled();
    life.settings.gateway = Some("other:22".parse().unwrap());
    life.settle();
    life.shows(GRANTED);
    assert_eq!(command(&life), "ssh -J other:22 ec2-user@i-0123456789abcdef0");
    life.settings.gateway = None;
    life.crash();
    life = life.until(300);
    life.shows(GRANTED);
    assert_eq!(command(&life), "ssh -J other:22 ec2-user@i-0123456789abcdef0");
    life.change_instance(|instance| instance.public_ip = Some([203, 0, 113, 99].into()));
    life = life.until(400);
    assert_eq!(life.status().connection.unwrap().address, "203.0.113.99");
}

#[test]
fn what_keeps_the_operator_from_pushing_is_told_to_gateways_at_once() {
    let mut life = on_connect().settled();
    life.enforcement = Enforcement::Missing("It is missing; apply it".into());
    life.settle();
    life.shows("Approved=True Active=False/EnforcementMissing Reconciling=True");
    assert_eq!(life.connects().unwrap_err(), "NotNow");
    life.enforcement = Enforcement::Stands { since_time: at(-7200) };
    life.settle();
    life.shows(GRANTED);
    life.unreadable.push("odd".into());
    life.settle();
    life.shows("Approved=True Active=False/DecisionUnreadable Stalled=True");
    life.unreadable.clear();
    life.change_instance(|instance| instance.state = InstanceState::Stopped);
    life = life.until(70);
    life.shows("Approved=True Active=False/InstanceNotRunning Reconciling=True");
    life.change_instance(|instance| instance.state = InstanceState::Running);
    life = life.until(140);
    life.shows(GRANTED);
    life.connects().unwrap();
}

#[test]
fn a_look_that_fails_just_after_a_restart_closes_nothing_for_a_minute() {
    let mut life = on_connect().until(10);
    life.look_failure = Some(failure(FailureClass::Retry));
    life.crash();
    life = life.until(69);
    life.shows(GRANTED);
    life = life.until(75);
    life.shows("Approved=True Active=False/AwsUnavailable Reconciling=True");
}

#[test]
fn its_end_counts_the_key_that_a_gateway_may_just_have_pushed() {
    // What is in the object, gateways see by themselves; of all else they read the status.
    for (name, end, closed, wait) in [
        ("revoked", (|life: &mut Life| life.revoke()) as fn(&mut Life), 100, 75),
        ("deleted", |life| life.delete(), 100, 75),
        ("policy gone", |life| life.change_policies(false, Vec::clear), 100, 98),
        ("revoked at the end", |life| life.revoke(), 560, 40),
    ] {
        let mut life = on_connect().until(closed);
        let _ = life.connects();
        end(&mut life);
        life.settle();
        life.shows("Approved=True Active=True/RevocationPending Reconciling=True");
        assert_eq!(life.expiration(), at(closed + wait), "{name}");
        assert!(life.connects().is_err(), "{name}");
        let life = life.until(closed + wait);
        assert!(life.object.is_none() || life.line().contains("Ended=True"), "{name}: {}", life.line());
    }
}

#[test]
fn no_key_outlives_the_promise_however_late_its_status_is_stored() {
    let at_once = |life: &mut Life| life.settle();
    // Each of the two steps before it takes so long.
    let slowly = |life: &mut Life| {
        life.pace = Duration::from_millis(1500);
        life.settle();
    };
    let too_slowly = |life: &mut Life| {
        life.pace = Duration::from_millis(1600);
        life.settle();
        life.shows(GRANTED);
        life.pace = Duration::ZERO;
        life.run_until(plus(life.now, seconds(1)));
    };
    for (name, sends, promise) in [
        ("at once", at_once as fn(&mut Life), 198),
        ("as late as may be", slowly, 198),
        // Decided anew, 3.2 s later.
        ("too late", too_slowly, 202),
    ] {
        let mut life = on_connect().until(100);
        // Read by the API server after ten seconds, and stored after ten more.
        life.store_time = seconds(20);
        life.change_policies(false, Vec::clear);
        sends(&mut life);
        life.shows("Approved=True Active=True/RevocationPending Reconciling=True");
        assert_eq!(life.expiration(), at(promise), "{name}");
        life.store_time = Duration::ZERO;
        life.until(promise).shows("Approved=True Active=False/Revoked Ended=True/Revoked");
    }
}

#[test]
fn a_spec_that_was_bent_into_another_delivery_hides_no_key_of_a_gateway() {
    for bent in [None, Some(KeyDelivery::Continuous)] {
        let mut life = on_connect().until(100);
        life.connects().unwrap();
        life.edit_spec(|spec| spec.key_delivery = bent);
        life.settle();
        life.shows("Approved=True Active=True/RevocationPending Reconciling=True");
        assert_eq!(life.expiration(), at(198));
        life.until(198).shows("Approved=True Active=False/Revoked Ended=True/Revoked");
    }
}

#[test]
fn a_grant_whose_plan_waited_is_judged_by_what_it_stands_on() {
    let mut life = on_connect();
    life.settle();
    let granted = life.object.clone().unwrap();
    let plan = Plan { status: granted.status.clone().map(Box::new), ..Plan::default() };
    let before = request();
    assert!(plan.ground(&before).is_some(), "a grant is made on something, also without a push");
    assert!(plan.ground(&granted).is_none(), "what is told of it later gives nothing");
}
