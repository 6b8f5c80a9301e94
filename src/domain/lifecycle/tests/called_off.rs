//! What was put on record, and then called off: whoever reads the trail back must not take it for done.

use super::*;
use crate::domain::ledger::Standing;
use crate::domain::ledger::memory::Memory;

/// The plan's records are in the trail; then the world changes, and its status is never sent.
fn stale(life: &mut Life) -> RecordKind {
    let plan = life.ask();
    let records = plan.before.into_iter().filter_map(|effect| match effect {
        Effect::Audit { record, .. } => Some(*record),
        _ => None,
    });
    let mut kind = None;
    for record in records {
        life.sight.tells(&record);
        life.sight.has_told(&record);
        kind = Some(record.kind);
        life.records.push((life.now, record));
    }
    kind.expect("a record")
}

/// What the next operator knows, which reads the trail back.
fn restart(life: &mut Life) -> Ledger {
    let mut memory = Memory::default();
    for (time, record) in &life.records {
        memory.hear(*time, &serde_json::to_value(record).unwrap().to_string());
    }
    life.crash();
    life.book.known.recall(&memory);
    life.book.known.clone()
}

fn deny(life: &mut Life) {
    life.change_policies(false, |policies| policies.push(policy("no", PolicyEffect::Deny)));
}

fn admit(life: &mut Life) {
    life.change_policies(true, |policies| policies.truncate(1));
}

/// A request that waits for a lead.
fn waiting() -> Life {
    world().under(|policy| policy.approval = Some(super::people::one_lead())).settled()
}

#[test]
fn a_refusal_that_was_called_off_and_met_by_a_restart_is_forgotten_and_the_request_is_granted_once() {
    let mut life = waiting();
    let line = life.line();
    deny(&mut life);
    assert_eq!(stale(&mut life), RecordKind::Denied);
    admit(&mut life);
    life.settle();
    assert_eq!(life.kinds(), [RecordKind::Denied, RecordKind::CalledOff]);
    life.shows(&line);
    let mut life = life.until(10);
    assert_eq!(life.kinds().len(), 2, "once");
    let ledger = restart(&mut life);
    assert_eq!(ledger.standing(life.object.as_ref().unwrap()), Standing::Free);
    life.decide(&erin(), DecisionKind::Approve);
    let mut life = life.until(20);
    life.shows("Approved=True Active=True/Granted Ended=False/Granted");
    // And having had it, it gets no other one.
    let ledger = restart(&mut life);
    assert!(matches!(ledger.standing(life.object.as_ref().unwrap()), Standing::Its { .. }));
}

#[test]
fn a_refusal_whose_operator_died_before_its_status_ends_the_request_in_words_that_are_true() {
    let mut life = waiting();
    deny(&mut life);
    assert_eq!(stale(&mut life), RecordKind::Denied);
    restart(&mut life);
    // Judged by what is now: it is refused again, and told why.
    let mut again = life.until(5);
    again.shows("Denied=True/DeniedByPolicy Active=False/Denied Ended=True/Denied Stalled=True");
    assert_eq!(again.kinds(), [RecordKind::Denied, RecordKind::Denied]);
    // Where it would be admitted now, it is said who refused it, and that it may be this.
    again = waiting();
    deny(&mut again);
    stale(&mut again);
    restart(&mut again);
    admit(&mut again);
    let again = again.until(5);
    again.shows("Active=False/Consumed Ended=True/Consumed");
    again.says(ConditionType::Ended, "after the operator ended between its record and its write");
}

/// A request whose key gateways would push: its instance is known, and nothing is decided.
fn undecided() -> Life {
    let mut life = world().with(|request| request.spec.key_delivery = Some(KeyDelivery::OnConnect));
    life.settings.gateway = Some("gateway.example.com:2222".parse().unwrap());
    life.policies_read = false;
    life.settle();
    look(&mut life);
    life.policies_read = true;
    life
}

fn look(life: &mut Life) {
    life.sight.instances.answered(life.now, Ok(life.instances.clone()));
}

fn stop(life: &mut Life) {
    life.change_instance(|instance| instance.state = InstanceState::Stopped);
    look(life);
}

#[test]
fn an_intention_for_gateways_that_was_called_off_costs_the_request_nothing() {
    let start = |life: &mut Life| life.change_instance(|instance| instance.state = InstanceState::Running);
    let mut life = undecided();
    assert_eq!(stale(&mut life), RecordKind::GrantIntended);
    stop(&mut life);
    life.settle();
    assert_eq!(life.kinds(), [RecordKind::GrantIntended, RecordKind::CalledOff]);
    life.shows("Active=False/InstanceNotRunning Reconciling=True");
    // Long after the grant would have been over, which it never had.
    let mut life = life.until(2000);
    assert_eq!(restart(&mut life).standing(life.object.as_ref().unwrap()), Standing::Free);
    start(&mut life);
    let life = life.until(2020);
    life.shows("Approved=True Active=True/Granted Ended=False/Granted");
    assert!(life.expiration() >= at(2600), "the whole of what it asked for: {}", life.expiration());

    // Refused instead, it is on record in this order, and the same request made again is not taken for one that had it.
    let mut life = undecided();
    stale(&mut life);
    deny(&mut life);
    life.settle();
    assert_eq!(life.kinds(), [RecordKind::GrantIntended, RecordKind::CalledOff, RecordKind::Denied]);
    let ledger = restart(&mut life);
    assert_eq!(ledger.standing(life.object.as_ref().unwrap()), Standing::Closed);

    // Its operator died: it may have what it was about to get, and no longer, and is told so.
    let mut life = undecided();
    stale(&mut life);
    restart(&mut life);
    let life = life.until(5);
    assert_eq!(life.expiration(), at(600));
    let mut life = undecided();
    stale(&mut life);
    life.now = at(2000);
    restart(&mut life);
    let life = life.until(2001);
    life.shows("Active=False/Consumed Ended=True/Consumed");
    life.says(ConditionType::Ended, "this request was granted until 2026-03-01T08:10:00Z, or about to be;");
}

#[test]
fn an_end_that_was_called_off_and_met_by_a_restart_ends_no_grant() {
    let on_connect = || {
        let mut life = world().with(|request| request.spec.key_delivery = Some(KeyDelivery::OnConnect));
        life.settings.gateway = Some("gateway.example.com:2222".parse().unwrap());
        life.until(100)
    };
    let mut life = on_connect();
    let before = life.status();
    deny(&mut life);
    assert_eq!(stale(&mut life), RecordKind::EndIntended);
    admit(&mut life);
    life.settle();
    assert_eq!(life.kinds(), [RecordKind::GrantIntended, RecordKind::EndIntended, RecordKind::CalledOff]);
    assert_eq!(life.status().grant, before.grant);
    let ledger = restart(&mut life);
    assert!(!ledger.is_over(life.object.as_ref().unwrap()));
    let life = life.until(300);
    life.shows("Approved=True Active=True/Granted Ended=False/Granted");
    life.until(600).shows("Approved=True Active=False/Expired Ended=True/Expired");
    // One that comes about after all is not called off.
    let mut life = on_connect();
    deny(&mut life);
    stale(&mut life);
    life.settle();
    assert!(!life.kinds().contains(&RecordKind::CalledOff));
    let ledger = restart(&mut life);
    assert!(ledger.is_over(life.object.as_ref().unwrap()));
}

#[test]
fn nothing_is_called_off_that_may_be_stored_yet_nor_while_the_trail_takes_no_record() {
    let called_off = |plan: &Plan| {
        plan.before
            .iter()
            .any(|effect| matches!(effect, Effect::Audit { record, .. } if record.kind == RecordKind::CalledOff))
    };
    let mut life = waiting();
    deny(&mut life);
    stale(&mut life);
    let version = life.object.as_ref().unwrap().metadata.resource_version.clone();
    life.sight.stores_unheard(version.as_deref());
    admit(&mut life);
    assert!(!called_off(&life.ask()));
    life.label();
    assert!(called_off(&life.ask()));

    let mut life = waiting();
    deny(&mut life);
    stale(&mut life);
    admit(&mut life);
    life.audit_works = false;
    let mut life = life.until(60);
    assert_eq!(life.kinds(), [RecordKind::Denied]);
    assert!(life.plans < 100, "{} plans for a trail that takes no record", life.plans);
    life.audit_works = true;
    let mut life = life.until(70);
    assert_eq!(life.kinds(), [RecordKind::Denied, RecordKind::CalledOff]);
    // Whoever withdraws it meanwhile waits for no record.
    deny(&mut life);
    stale(&mut life);
    admit(&mut life);
    life.audit_works = false;
    life.revoke();
    life.until(71).shows("Active=False/Revoked Ended=True/Revoked");
}

#[test]
fn a_grant_that_a_restored_api_server_forgot_is_not_called_off_with_what_was_about_to_be_made_of_it() {
    let granted = undecided().until(1);
    assert_eq!(granted.expiration(), at(600));
    let granted = granted.object.unwrap();
    // Etcd goes back to before the grant; whoever leads knows of it from its memory, or from the trail.
    let knows: [fn(&mut Life, &InstanceAccess); 2] =
        [|life, granted| life.book.known.note(granted), |life, _| drop(restart(life))];
    for knows in knows {
        let mut life = undecided();
        life.records.push((at(0), Record::of(RecordKind::GrantIntended, &granted, granted.status.as_ref().unwrap())));
        knows(&mut life, &granted);
        look(&mut life);
        // It is about to get the same once more, and does not.
        assert_eq!(stale(&mut life), RecordKind::GrantIntended);
        stop(&mut life);
        life.settle();
        life.shows("Active=False/InstanceNotRunning Reconciling=True");
        assert_eq!(life.kinds(), [RecordKind::GrantIntended, RecordKind::GrantIntended]);
        let ledger = restart(&mut life);
        let request = life.object.as_ref().unwrap();
        assert_eq!(ledger.standing(request), Standing::Its { until: at(600) });
    }
}

#[test]
fn a_refusal_that_a_restored_api_server_forgot_is_not_called_off_with_the_next_one() {
    let mut other = waiting();
    deny(&mut other);
    other.settle();
    let refused = other.object.unwrap();
    assert!(is_over(&refused));
    let mut life = waiting();
    life.book.known.note(&refused);
    deny(&mut life);
    assert_eq!(stale(&mut life), RecordKind::Denied);
    // Nobody admits it now, and nobody refuses it for good.
    life.policies_read = false;
    life.settle();
    assert_eq!(life.kinds(), [RecordKind::Denied]);
    assert_eq!(restart(&mut life).standing(life.object.as_ref().unwrap()), Standing::Closed);
}

#[test]
fn a_refusal_stays_owed_while_the_trail_refuses_the_intention_that_takes_it_back() {
    let mut life = world();
    look(&mut life);
    deny(&mut life);
    assert_eq!(stale(&mut life), RecordKind::Denied);
    admit(&mut life);
    life.audit_works = false;
    life.settle();
    assert_eq!(life.kinds(), [RecordKind::Denied]);
    assert!(life.steps.iter().any(|(_, step)| step == "audit GrantIntended refused"), "{}", life.log());
    // There is room again, and it is not granted.
    stop(&mut life);
    life.audit_works = true;
    let mut life = life.until(30);
    assert_eq!(life.kinds(), [RecordKind::Denied, RecordKind::CalledOff]);
    assert_eq!(restart(&mut life).standing(life.object.as_ref().unwrap()), Standing::Free);
}

#[test]
fn an_intention_is_called_off_when_its_request_goes_and_the_same_one_made_again_is_granted() {
    // Let go by us, and gone without us.
    for finalizers in [vec![FINALIZER.to_owned()], vec![]] {
        for audit_works in [true, false] {
            let mut life = undecided();
            life.object.as_mut().unwrap().metadata.finalizers = Some(finalizers.clone());
            life.label();
            assert_eq!(stale(&mut life), RecordKind::GrantIntended);
            life.audit_works = audit_works;
            life.delete();
            life.settle();
            assert_eq!(life.object, None, "it waits for no record");
            life.audit_works = true;
            let expected: &[RecordKind] = &[RecordKind::GrantIntended, RecordKind::CalledOff];
            assert_eq!(life.kinds(), expected[..1 + usize::from(audit_works)], "{finalizers:?}");
            life.make_again(|_| {});
            let ledger = restart(&mut life);
            let standing = ledger.standing(life.object.as_ref().unwrap());
            assert_eq!(standing == Standing::Free, audit_works, "{standing:?}");
        }
    }
}

#[test]
fn a_grant_that_somebody_had_is_not_called_off_when_its_request_goes() {
    for finalizers in [vec![FINALIZER.to_owned()], vec![]] {
        let mut life = undecided();
        life.object.as_mut().unwrap().metadata.finalizers = Some(finalizers.clone());
        life.label();
        assert_eq!(stale(&mut life), RecordKind::GrantIntended);
        // It was stored, and seen so; and an etcd that was restored has forgotten it.
        life.book.known.note(&undecided().until(1).object.unwrap());
        life.delete();
        life.settle();
        assert_eq!(life.kinds(), [RecordKind::GrantIntended], "{finalizers:?}");
    }
}
