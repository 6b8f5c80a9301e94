//! Before the cluster's policies were read.

use super::*;

fn plan(request: &InstanceAccess, sight: &Sight) -> Plan {
    let region = Some(crate::domain::cloud::Region::parse("us-west-2").unwrap());
    let settings = &Settings { region, ..Settings::default() };
    let enforcement = &Enforcement::Stands { since_time: at(-60) };
    let (policies, decisions, nodes) = (&PolicySet::default(), &Decisions::default(), &Nodes::default());
    let mut ledger = Ledger::default();
    ledger.set_seen();
    let ledger = &ledger;
    next(at(5), request, World { settings, policies, decisions, nodes, enforcement, ledger, sight })
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
