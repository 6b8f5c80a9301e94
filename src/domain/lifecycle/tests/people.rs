//! Where people are asked: the table's rows, and what an attacker tries.

use super::*;
use DecisionKind::{Approve, Deny, Revoke};

const WAITING: &str = "Approved=Unknown Active=False/PendingApproval Reconciling=True";
const GRANTED: &str = "Approved=True Active=True/Granted Ended=False/Granted";
const DENIED: &str = "Denied=True/DeniedByApprover Active=False/Denied Ended=True/Denied Stalled=True";
const REVOKED: &str = "Active=False/Revoked Ended=True/Revoked";

/// One lead must approve, within an hour.
pub(super) fn one_lead() -> PolicyApproval {
    PolicyApproval {
        count: 1,
        approvers: vec![PolicySubject { kind: SubjectKind::Group, name: "leads".into() }],
        one_from_each: None,
        deadline_seconds: Some(3600),
    }
}

fn asked() -> Life {
    world().under(|policy| policy.approval = Some(one_lead()))
}

fn waiting() -> Life {
    let life = asked().settled();
    life.shows(WAITING);
    life
}

#[test]
fn a_request_waits_for_people_and_says_for_whom_until_when_and_for_what() {
    let life = waiting();
    assert_eq!(life.look_again, Some((Deadline::Approval, at(3600))));
    for part in [
        "policy developers waits for 1 of Group leads until 2026-03-01T09:00:00Z",
        "alice may not",
        UID,
        &life.status().spec_digest.unwrap(),
    ] {
        life.says(ConditionType::Active, part);
    }
    let status = life.status();
    assert_eq!(status.approval_deadline_time, Some(Time(at(3600))));
    assert!(status.grant.is_none() && status.approvals.is_empty() && life.kinds().is_empty());
    // Who is not approved yet learns no address.
    assert_eq!(status.instance.as_ref().map(|facts| facts.public_ip.clone()), Some(None));
    assert_eq!(life.events, ["PendingApproval"]);
    // Nothing wakes it, and nothing is written, while people think; whoever looks all the same looks at the instance once.
    let (writes, look_ups) = (life.writes, life.look_ups);
    let life = life.until(3000);
    assert_eq!((life.writes, life.look_ups), (writes, look_ups + 1));
}

#[test]
fn access_starts_when_the_last_approval_comes_and_its_clock_then() {
    let mut life = waiting().until(1000);
    life.decide(&erin(), Approve);
    let life = life.settled();
    life.shows(GRANTED);
    let status = life.status();
    assert_eq!(status.grant.as_ref().unwrap().start_time.0, at(1000));
    assert_eq!(status.approvals.len(), 1);
    let told = &status.approvals[0];
    assert_eq!((told.approver.as_str(), told.decision, told.time.0), ("erin", Approve, at(1000)));
    life.says(ConditionType::Approved, "erin approved it");
    let intended = &life.records[0].1;
    assert_eq!((intended.kind, &intended.approvals), (RecordKind::GrantIntended, &status.approvals));
    // No more to it than to any other grant.
    assert_eq!(life.writes, 3, "that it waits, the grant, and the landing");
}

#[test]
fn two_people_are_two_and_one_person_many_times_is_one() {
    let mut life = world().under(|policy| policy.approval = Some(PolicyApproval { count: 2, ..one_lead() }));
    for _ in 0..5 {
        life.decide(&erin(), Approve);
    }
    let mut life = life.settled();
    life.shows(WAITING);
    life.says(ConditionType::Active, "1 of Group leads");
    life.says(ConditionType::Active, "(erin approved)");
    assert_eq!(life.status().approvals.len(), 1);
    let frank = Identity { username: "frank".into(), groups: vec!["leads".into()], ..Identity::default() };
    life.decide(&frank, Approve);
    life.settled().shows(GRANTED);
}

#[test]
fn what_is_no_approval_of_this_request_is_none() {
    type Bend = fn(&mut InstanceAccessDecision);
    let rows: [(&str, Bend); 8] = [
        ("another uid", |it| it.spec.request_ref.uid = "another".into()),
        ("another digest", |it| it.spec.request_ref.spec_digest = Some("0".repeat(64))),
        ("no digest", |it| it.spec.request_ref.spec_digest = None),
        ("made before the request", |it| it.metadata.creation_timestamp = Some(Time(at(-6)))),
        ("by nobody", |it| it.spec.approver = None),
        ("by the requester", |it| it.spec.approver = Some(Identity { groups: vec!["leads".into()], ..alice() })),
        ("by one not named", |it| it.spec.approver.as_mut().unwrap().groups = vec!["developers".into()]),
        ("by a service account", |it| {
            it.spec.approver.as_mut().unwrap().username = "system:serviceaccount:team-a:robot".into();
        }),
    ];
    for (what, bend) in rows {
        let mut life = waiting();
        life.decide(&erin(), Approve);
        bend(life.decisions.last_mut().unwrap());
        let writes = life.writes;
        let mut life = life.settled();
        assert_eq!((life.line().as_str(), life.writes), (WAITING, writes), "{what}");
        life.decide(&erin(), Approve);
        life.settled().shows(GRANTED);
    }
}

#[test]
fn one_person_with_two_names_approves_nothing_of_their_own() {
    let mut life = waiting();
    life.settings.principals = "user.username.startsWith('alice') ? 'alice' : user.username".parse().unwrap();
    life.decide(&Identity { username: "alice-admin".into(), ..erin() }, Approve);
    life.settle();
    life.shows(WAITING);
    life.decide(&erin(), Approve);
    life.settled().shows(GRANTED);
}

#[test]
fn who_is_nobody_by_the_operators_rule_may_not_ask() {
    let mut life = world();
    life.settings.principals = "user.username == 'alice' ? '' : user.username".parse().unwrap();
    life.settle();
    life.shows("Denied=True/InvalidSpec Active=False/Denied Ended=True/Denied Stalled=True");
    life.says(ConditionType::Denied, "--principal");
}

#[test]
fn a_no_of_an_approver_is_final() {
    for kind in [Deny, Revoke] {
        let mut life = waiting().until(60);
        life.decide(&erin(), kind);
        let mut life = life.settled();
        life.shows(if kind == Deny { DENIED } else { REVOKED });
        life.says(ConditionType::Active, "erin");
        assert_eq!(life.status().approvals.last().unwrap().decision, kind);
        // Neither its deletion nor an approval brings it back.
        life.decisions.clear();
        life.decide(&erin(), Approve);
        let line = life.line();
        life.until(4000).shows(&line);
    }
    // Before the approval that would have been enough.
    let mut life = waiting();
    life.decide(&erin(), Approve);
    let frank = Identity { username: "frank".into(), groups: vec!["leads".into()], ..Identity::default() };
    life.decide(&frank, Deny);
    let life = life.settled();
    life.shows(DENIED);
    life.says(ConditionType::Denied, "frank denied it: as said");
    assert_eq!(life.kinds(), [RecordKind::Denied]);
    assert_eq!(life.records[0].1.approvals.len(), 2, "what stood for it and against it");
}

#[test]
fn a_no_is_heard_while_the_instance_cannot_be_looked_at_or_reached() {
    type Trouble = fn(&mut Life);
    let troubles: [(&str, Trouble); 4] = [
        ("AWS does not answer", |life| life.look_failure = Some(failure(FailureClass::Retry))),
        ("there is no instance", |life| life.instances.clear()),
        ("there is no way", |life| {
            life.endpoints.clear();
            life.change_instance(|instance| instance.public_ip = None);
        }),
        ("it is terminated", |life| life.change_instance(|instance| instance.state = InstanceState::Terminated)),
    ];
    for (what, trouble) in troubles {
        for kind in [Deny, Revoke] {
            let mut life = asked();
            trouble(&mut life);
            let mut life = life.until(30);
            assert_ne!(life.line(), WAITING, "{what}");
            life.decide(&bob(), kind);
            let line = life.line();
            life.settle();
            life.shows(&line);
            life.decide(&erin(), kind);
            life.settle();
            // Deleted before anything heals.
            life.decisions.clear();
            life.look_failure = None;
            let life = life.until(900);
            life.shows(if kind == Deny { DENIED } else { REVOKED });
            life.says(ConditionType::Active, "erin");
            assert_eq!(life.status().approvals.last().unwrap().decision, kind, "{what}");
        }
    }
}

#[test]
fn a_no_counts_by_the_policy_that_decides_as_far_as_the_instance_is_known() {
    // The first admits production alone, and asks leads; the second admits the rest, and asks nobody.
    let mut life = world();
    let mut prod = policy("prod", PolicyEffect::Allow);
    prod.spec.priority = Some(100);
    prod.spec.approval = Some(one_lead());
    prod.spec.targets.instance_tags.as_mut().unwrap().match_labels =
        Some([("env".to_owned(), "prod".to_owned())].into());
    life.policies.push(prod);
    life.look_delay = seconds(5);
    life.settings.region = Some(Region::parse("us-west-2").unwrap());
    let mut life = life.until(6);
    life.shows(GRANTED);
    // Not reachable, and known: leads have no say.
    let mut unreachable = world();
    unreachable.policies.clone_from(&life.policies);
    unreachable.endpoints.clear();
    unreachable.change_instance(|instance| instance.public_ip = None);
    unreachable.settle();
    unreachable.shows("Active=False/NoRoute Reconciling=True");
    unreachable.decide(&erin(), Deny);
    unreachable.settled().shows("Active=False/NoRoute Reconciling=True");
    life.decide(&erin(), Deny);
    life.settled().shows(GRANTED);
}

#[test]
fn a_no_of_somebody_whose_word_does_not_count_changes_nothing() {
    for kind in [Deny, Revoke] {
        let mut life = waiting();
        life.decide(&bob(), kind);
        let writes = life.writes;
        let mut life = life.settled();
        assert_eq!((life.line().as_str(), life.writes), (WAITING, writes));
        life.decide(&erin(), Approve);
        let mut life = life.settled();
        life.shows(GRANTED);
        life.decide(&bob(), kind);
        life.until(100).shows(GRANTED);
    }
}

#[test]
fn approvals_that_do_not_come_in_time_end_the_wait() {
    let life = waiting().until(3599);
    life.shows(WAITING);
    let mut life = life.until(3600);
    life.shows("Denied=True/ApprovalTimeout Active=False/Denied Ended=True/Denied Stalled=True");
    life.says(ConditionType::Denied, "0 of 1 approvals came by 2026-03-01T09:00:00Z, missing: 1 of Group leads");
    life.decide(&erin(), Approve);
    life.until(4000).shows("Denied=True/ApprovalTimeout Active=False/Denied Ended=True/Denied Stalled=True");
    // The request can make it shorter.
    let life = asked().with(|request| request.spec.approval_deadline_seconds = Some(60)).settled();
    assert_eq!(life.look_again, Some((Deadline::Approval, at(60))));
    // Days are no matter, though anything else that long would be given up.
    let days = |policy: &mut InstanceAccessPolicySpec| {
        policy.approval = Some(PolicyApproval { deadline_seconds: Some(3 * 86_400), ..one_lead() });
    };
    let mut life = world().under(days).until(2 * 86_400);
    life.shows(WAITING);
    life.decide(&erin(), Approve);
    life.settled().shows(GRANTED);
}

#[test]
fn an_approval_that_came_in_time_counts_also_where_aws_was_late() {
    let mut life = waiting();
    life.look_failure = Some(failure(FailureClass::Retry));
    let mut life = life.until(3590);
    life.decide(&erin(), Approve);
    let mut life = life.until(3700);
    assert!(life.status().grant.is_none());
    life.look_failure = None;
    life.until(3800).shows(GRANTED);
}

#[test]
fn the_policy_is_asked_again_at_the_grant() {
    // Approved, and waiting for its time.
    let scheduled = || {
        let mut life = asked().with(|request| request.spec.start_time = Some(Time(at(600)))).settled();
        life.decide(&erin(), Approve);
        let life = life.settled();
        life.shows("Approved=True Active=False/Scheduled Reconciling=True");
        life
    };
    let life = scheduled().until(600);
    life.shows(GRANTED);
    // erin is no approver any more; two are asked for; erin takes it back; all before the grant.
    let gone = "Approved=True Active=False/Revoked Ended=True/Revoked";
    let mut life = scheduled();
    life.policies[0].spec.approval.as_mut().unwrap().approvers[0].name = "chiefs".into();
    life.until(600).shows(gone);
    let mut life = scheduled();
    life.policies[0].spec.approval.as_mut().unwrap().count = 2;
    life.until(600).shows(gone);
    let mut life = scheduled();
    life.decisions.clear();
    let life = life.until(600);
    life.shows(gone);
    assert_eq!(life.landed(), 0);
    let mut life = scheduled();
    life.decide(&erin(), Deny);
    let life = life.settled();
    life.shows(gone);
    life.says(ConditionType::Ended, "erin revoked it before access was granted");
    // A policy that asks nobody any more lets it through; one that begins to ask does not.
    let mut life = waiting();
    life.policies[0].spec.approval = None;
    let life = life.settled();
    life.shows(GRANTED);
    assert!(life.status().approval_deadline_time.is_none());
    let mut life = waiting();
    life.policies[0].spec.approval.as_mut().unwrap().approvers[0].name = "chiefs".into();
    life.decide(&erin(), Approve);
    life.settled().shows(WAITING);
}

#[test]
fn what_was_granted_stands_on_what_was_decided_then() {
    let mut life = waiting();
    life.decide(&erin(), Approve);
    let mut life = life.settled();
    let approvals = life.status().approvals;
    // The decision is deleted, and erin named no more: a grant was made, and its record says on whose word.
    life.decisions.clear();
    life.policies[0].spec.approval.as_mut().unwrap().approvers[0].name = "chiefs".into();
    let life = life.until(300);
    life.shows(GRANTED);
    assert_eq!(life.status().approvals, approvals);
    life.until(600).shows("Approved=True Active=False/Expired Ended=True/Expired");
}

#[test]
fn a_revoke_ends_a_grant_at_once_and_its_deletion_does_not_bring_it_back() {
    for (who, kind) in [(erin(), Revoke), (erin(), Deny), (alice(), Revoke)] {
        let mut life = waiting();
        life.decide(&erin(), Approve);
        let mut life = life.until(100);
        life.shows(GRANTED);
        life.decide(&who, kind);
        let mut life = life.settled();
        life.shows("Approved=True Active=True/RevocationPending Reconciling=True");
        life.says(ConditionType::Active, &format!("{} revoked it: as said", who.username));
        life.decisions.clear();
        let life = life.until(200);
        life.shows("Approved=True Active=False/Revoked Ended=True/Revoked");
        life.says(ConditionType::Ended, &format!("{} revoked it: as said", who.username));
        let ended = life.records.last().unwrap();
        assert_eq!((ended.1.kind, ended.1.cause), (RecordKind::Ended, Some(EndCause::Revoked)));
        assert_eq!(ended.1.approvals.last().map(|told| (told.decision, told.time.0)), Some((kind, at(100))));
    }
}

#[test]
fn where_no_policy_asks_anybody_the_requester_alone_may_revoke_by_a_decision() {
    let mut life = world().until(100);
    life.decide(&erin(), Revoke);
    life.settle();
    life.shows(GRANTED);
    life.decide(&alice(), Revoke);
    life.until(200).shows("Approved=True Active=False/Revoked Ended=True/Revoked");
    let mut life = world().with(|request| request.spec.target.instance_id = Some("i-00000000000000000".into()));
    life.instances = Vec::new();
    life.settle();
    life.decide(&alice(), Revoke);
    life.settled().shows(REVOKED);
}

#[test]
fn a_decision_that_cannot_be_decoded_holds_its_request_back_until_it_is_gone() {
    let held = "Active=False/DecisionUnreadable Stalled=True";
    let mut life = world();
    life.unreadable = vec!["odd".into()];
    let mut life = life.settled();
    life.shows(held);
    life.says(ConditionType::Active, "the InstanceAccessDecision odd about this request cannot be read");
    assert_eq!((life.look_ups, life.kinds()), (0, Vec::new()));
    life.unreadable.clear();
    life.settled().shows(GRANTED);

    // Whatever people say beside it: a yes opens nothing, a no closes.
    let mut life = asked();
    life.unreadable = vec!["odd".into()];
    life.decide(&erin(), Approve);
    let mut life = life.settled();
    life.shows(held);
    life.decide(&erin(), Deny);
    life.settled().shows(DENIED);
    // Who is admitted nowhere is told so, and no request waits for ever.
    let mut life = world().under(|policy| policy.subjects.clear());
    life.unreadable = vec!["odd".into()];
    life.settled().shows("Denied=True/DeniedByPolicy Active=False/Denied Ended=True/Denied Stalled=True");
    let mut life = world();
    life.unreadable = vec!["odd".into()];
    life.until(24 * 3600).shows("Active=False/Expired Ended=True/Expired");
}

#[test]
fn no_key_is_pushed_while_a_decision_cannot_be_decoded_and_the_end_goes_on() {
    let mut life = world().until(100);
    let landed = life.landed();
    life.unreadable = vec!["odd".into()];
    life.settle();
    life.shows(GRANTED);
    let mut life = life.until(200);
    life.shows("Approved=True Active=False/DecisionUnreadable Stalled=True");
    assert_eq!(life.landed(), landed);
    life.unreadable.clear();
    life.settle();
    life.shows(GRANTED);
    assert!(life.landed() > landed);
    life.unreadable = vec!["odd".into()];
    life.decide(&alice(), Revoke);
    life.until(400).shows("Approved=True Active=False/Revoked Ended=True/Revoked");
    // Also one that waits its turn already.
    let mut life = world().until(30);
    life.fate = Fate::Lands { queue: seconds(20), flight: seconds(0) };
    let mut life = life.until(50);
    let landed = life.landed();
    life.unreadable = vec!["odd".into()];
    assert_eq!(life.until(300).landed(), landed);
    let mut life = world().until(100);
    life.unreadable = vec!["odd".into()];
    life.until(600).shows("Approved=True Active=False/Expired Ended=True/Expired");
}

#[test]
fn before_the_decisions_were_read_nothing_is_granted_pushed_or_timed_out() {
    let mut life = asked();
    life.policies_read = false;
    life.decide(&erin(), Deny);
    let mut life = life.until(4000);
    assert_eq!(life.writes, 0);
    life.policies_read = true;
    life.settled().shows(DENIED);
}

#[test]
fn a_request_made_again_needs_its_own_approval_and_so_does_another_spec() {
    let mut life = waiting();
    life.decide(&erin(), Approve);
    let old = life.decisions.clone();
    // Re-created under its name, wider; the clock went on.
    let mut again = asked().with(|request| {
        request.metadata.uid = Some("another".into());
        request.spec.ttl_seconds = Some(3600);
    });
    again.decisions = old.clone();
    again.settled().shows(WAITING);
    // Its CRD no longer forbids it: the spec is edited in place, after the approval.
    let mut life = waiting();
    life.decisions = old;
    life.edit_spec(|spec| spec.ttl_seconds = Some(3000));
    let life = life.settled();
    life.shows(WAITING);
    life.says(ConditionType::Active, &crate::domain::digest::spec_digest(&life.object.as_ref().unwrap().spec));
}
