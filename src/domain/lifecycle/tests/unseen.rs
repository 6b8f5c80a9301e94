//! Before the cluster's policies were read, and while they are read anew.

use super::*;

fn plan(request: &InstanceAccess, sight: &Sight) -> Plan {
    let region = Some(crate::domain::cloud::Region::parse("us-west-2").unwrap());
    let settings = &Settings { region, ..Settings::default() };
    let enforcement = &Enforcement::Stands { since_time: at(-60) };
    let (policies, decisions, nodes) = (&PolicySet::default(), &Decisions::default(), &Nodes::default());
    let census = &Census::default();
    let mut ledger = Ledger::default();
    ledger.set_seen();
    let ledger = &ledger;
    next(at(5), request, World { settings, policies, decisions, nodes, enforcement, census, ledger, sight })
}

#[test]
fn before_the_policies_were_read_nobody_is_refused_or_granted() {
    assert!(plan(&request(), &Sight::new(at(0))).is_empty());
}

#[test]
fn before_the_policies_were_read_an_end_by_the_requester_goes_on() {
    let mut revoked = request();
    revoked.spec.revoke = Some(Revoke { reason: None });
    let status = plan(&revoked, &Sight::new(at(0))).status.unwrap();
    assert_eq!(condition::active_reason(&status), Some("Revoked"));
}

#[test]
fn before_the_policies_were_read_a_grant_is_neither_pushed_nor_taken_back_and_its_clock_goes_on() {
    let mut life = world().until(100);
    let landed = life.landed();
    life.crash();
    life.policies_read = false;
    life.policies.clear();
    let mut life = life.until(400);
    life.shows("Approved=True Active=True/Granted Ended=False/Granted");
    assert_eq!(life.landed(), landed);
    life.until(600).shows("Approved=True Active=False/Expired Ended=True/Expired");
    life = world().until(100);
    life.crash();
    life.policies_read = false;
    life.delete();
    life.settle();
    life.shows("Approved=True Active=True/RevocationPending Reconciling=True");
    assert_eq!(life.until(170).object, None);
}

#[test]
fn while_all_is_read_anew_nobody_is_granted_or_refused_and_it_is_made_up_for() {
    for admits in [true, false] {
        let mut life = world();
        life.sight.rereading_since_time = Some(at(0));
        if !admits {
            life.policies.clear();
        }
        let mut life = life.until(50);
        assert!(life.status().conditions.is_empty() && life.look_ups == 0, "{}", life.log());
        life.sight.rereading_since_time = None;
        let shown = if admits {
            "Approved=True Active=True/Granted Ended=False/Granted"
        } else {
            "Denied=True/DeniedByPolicy Active=False/Denied Ended=True/Denied Stalled=True"
        };
        life.until(70).shows(shown);
    }
}

#[test]
fn while_all_is_read_anew_a_request_is_withdrawn_and_expires_as_ever() {
    let rereading = || {
        let mut life = world().with(|request| request.spec.end_time = Some(Time(at(200))));
        life.sight.rereading_since_time = Some(at(0));
        life
    };
    let mut withdrawn = rereading();
    withdrawn.revoke();
    withdrawn.settle();
    withdrawn.shows("Active=False/Revoked Ended=True/Revoked");
    rereading().until(200).shows("Active=False/Expired Ended=True/Expired");
}

#[test]
fn while_all_is_read_anew_a_grant_goes_on_and_ends_as_ever() {
    let mut life = world().until(100);
    let landed = life.landed();
    life.sight.rereading_since_time = Some(at(0));
    let mut life = life.until(200);
    life.shows("Approved=True Active=True/Granted Ended=False/Granted");
    assert!(life.landed() > landed, "{}", life.log());
    life.revoke();
    life.until(300).shows("Approved=True Active=False/Revoked Ended=True/Revoked");
}

#[test]
fn who_waits_while_all_is_read_anew_is_told_once_that_takes_too_long_and_served_after_it() {
    let mut life = world();
    life.sight.rereading_since_time = Some(at(0));
    let mut life = life.until(60);
    assert!(life.status().conditions.is_empty(), "{}", life.log());
    life = life.until(80);
    assert_eq!(condition::active_reason(&life.status()), Some("ContactLost"), "{}", life.log());
    life.sight.rereading_since_time = None;
    life.until(100).shows("Approved=True Active=True/Granted Ended=False/Granted");
}
