//! Before the cluster's policies were read.

use super::*;

fn plan(request: &InstanceAccess, sight: &Sight) -> Plan {
    let settings = Settings { region: Some(crate::domain::cloud::Region::parse("us-west-2").unwrap()) };
    next(at(5), request, World { settings: &settings, policies: &PolicySet::default(), sight })
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
