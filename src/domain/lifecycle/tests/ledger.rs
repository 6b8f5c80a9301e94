//! A request that had its grant, was deleted, and is made again.

use super::*;
use crate::domain::ledger::Standing;

const CONSUMED: &str = "Active=False/Consumed Ended=True/Consumed";

/// Granted, deleted, and gone at 150.
fn gone() -> Life {
    let mut life = world().until(100);
    life.delete();
    let life = life.until(150);
    assert_eq!(life.object, None);
    life
}

#[test]
fn a_request_made_again_as_it_was_is_over_at_once_and_says_why() {
    let mut life = gone();
    let (looks, records) = (life.look_ups, life.records.len());
    life.make_again(|_| {});
    life.settle();
    life.shows(CONSUMED);
    life.says(
        ConditionType::Ended,
        "this very request was granted before, as uid 5a3f6a0e-5f0f-4b43-9c1a-0d4f3ad1c001, until 2026-03-01T08:02:30Z, then deleted and made again; each is granted once. If access is needed again, ask by another name, or change the spec: another reason will do",
    );
    let status = life.status();
    assert_eq!((status.grant, status.key, status.instance), (None, None, None));
    assert_eq!(
        status.revocation,
        Some(Revocation { cause: EndCause::Consumed, key_window_closed_time: None }),
        "the cause is told"
    );
    assert_eq!((life.look_ups, life.records.len(), life.look_again), (looks, records, None), "it costs nothing");
}

#[test]
fn it_stays_so_over_a_restart_and_however_often_it_is_made() {
    let mut life = gone();
    for _ in 0..5 {
        life.crash();
        life.make_again(|_| {});
        life.settle();
        life.shows(CONSUMED);
        life.delete();
        life.settle();
        assert_eq!(life.object, None);
    }
    assert_eq!(life.book.entries.len(), 1, "who had no grant leaves no entry");
    let entry = life.book.entries.values().next().unwrap();
    assert_eq!(entry.spec.request.uid, UID, "the first one had it");
}

#[test]
fn another_spec_name_or_namespace_is_another_request() {
    type Change = fn(&mut InstanceAccess);
    let rows: [(Change, bool); 7] = [
        (|_| {}, true),
        // Who asks and the revocation are not what is asked for: the digest leaves them out.
        (|request| request.spec.requester = Some(bob()), true),
        (|request| request.metadata.labels = Some([("a".to_owned(), "b".to_owned())].into()), true),
        (|request| request.spec.reason = Some("the disk is full again".into()), false),
        (|request| request.spec.ttl_seconds = Some(601), false),
        (|request| request.metadata.name = Some("fix-web-2".into()), false),
        (|request| request.metadata.namespace = Some("team-b".into()), false),
    ];
    for (change, consumed) in rows {
        let mut life = gone();
        life.make_again(change);
        life.settle();
        let granted = "Approved=True Active=True/Granted Ended=False/Granted";
        life.shows(if consumed { CONSUMED } else { granted });
    }
}

#[test]
fn a_request_that_never_had_its_grant_is_judged_anew() {
    let mut stopped = world().on(|instance| instance.state = InstanceState::Stopped).settled();
    let mut denied = world().under(|policy| policy.subjects.clear()).settled();
    let mut revoked = world().with(|request| request.spec.start_time = Some(Time(at(50)))).settled();
    revoked.revoke();
    revoked.settle();
    for life in [&mut stopped, &mut denied, &mut revoked] {
        life.delete();
        life.settle();
        assert_eq!((life.object.as_ref(), life.book.entries.len()), (None, 0));
        life.change_policies(true, |policies| *policies = vec![developers()]);
        life.change_instance(|instance| instance.state = InstanceState::Running);
        life.make_again(|_| {});
        life.run_until(at(60));
        life.shows("Approved=True Active=True/Granted Ended=False/Granted");
    }
}

#[test]
fn past_its_end_time_or_revoked_it_says_so_and_made_in_a_gap_it_is_refused() {
    let mut life = world().with(|request| request.spec.end_time = Some(Time(at(300)))).until(400);
    life.delete();
    life.settle();
    life.make_again(|_| {});
    life.settle();
    life.shows("Active=False/Expired Ended=True/Expired");

    let mut life = gone();
    life.make_again(|request| request.spec.revoke = Some(Revoke { reason: None }));
    life.settle();
    life.shows("Active=False/Revoked Ended=True/Revoked");

    let mut life = gone();
    life.enforcement = Enforcement::Stands { since_time: at(200) };
    life.make_again(|_| {});
    life.settle();
    life.shows("Denied=True/RequesterUnchecked Active=False/Denied Ended=True/Denied Stalled=True");
}

#[test]
fn before_the_ledger_was_read_nothing_is_granted_and_what_lives_goes_on() {
    let mut life = world();
    life.book.is_read = false;
    let mut life = life.until(30);
    assert_eq!((life.writes, life.look_ups), (0, 0));
    life.book.is_read = true;
    let mut life = life.until(60);
    life.shows("Approved=True Active=True/Granted Ended=False/Granted");
    let landed = life.landed();
    life.crash();
    life.book.is_read = false;
    let mut life = life.until(200);
    assert!(life.landed() > landed, "a grant needs no leave to go on");
    life.delete();
    assert_eq!(life.until(300).object, None);
}

#[test]
fn the_object_stays_until_its_entry_is_durable_and_its_end_does_not_wait_for_it() {
    let mut life = world().until(100);
    life.book.works = false;
    life.delete();
    let mut life = life.until(150);
    life.shows("Approved=True Active=False/Released Ended=True/Released");
    assert_eq!(life.kinds().last(), Some(&RecordKind::Ended));
    life = life.until(200);
    assert!(life.object.is_some());
    life.book.works = true;
    life = life.until(202);
    assert_eq!((life.object.as_ref(), life.book.entries.len()), (None, 1));
}

#[test]
fn an_end_by_the_clock_leaves_its_entry_when_the_request_is_deleted_and_not_before() {
    let mut life = world().until(700);
    assert!(life.book.entries.is_empty());
    life.delete();
    life.settle();
    assert_eq!((life.object.as_ref(), life.writes), (None, 3));
    let entry = life.book.entries.values().next().unwrap();
    assert_eq!(entry.spec.end_time, Time(at(600)));
}

#[test]
fn a_request_that_was_granted_and_vanished_is_not_granted_again_not_even_in_the_same_moment() {
    for restarts in [false, true] {
        let mut life = world().until(100);
        life.strip_finalizer();
        // The shell puts it back at its next turn; the deletion comes first.
        life.delete();
        assert_eq!(life.object, None);
        if restarts {
            life.reconcile();
            life.crash();
        }
        life.make_again(|_| {});
        assert!(matches!(life.book.known.standing(life.object.as_ref().unwrap()), Standing::Consumed { .. }));
        let entry = life.book.entries.values().next().expect("written down at once");
        assert_eq!(entry.spec.request.uid, UID);
    }
}

#[test]
fn a_list_that_shows_the_new_one_before_the_old_is_known_to_be_gone_grants_nothing() {
    let mut life = world().until(100);
    let (old, settings) = (life.object.clone().unwrap(), life.settings.clone());
    let mut new = request();
    new.metadata.uid = Some("5a3f6a0e-5f0f-4b43-9c1a-0d4f3ad1d001".into());
    life.book.known.note(&new);
    assert_eq!(life.book.known.standing(&new), Standing::Consumed { uid: Some(UID.into()), end_time: None });
    assert!(matches!(life.book.known.standing(&old), Standing::Its { .. }), "its own grant is not another's");
    let plan = next(
        at(100),
        &new,
        World {
            settings: &settings,
            policies: &PolicySet::new([Arc::new(Policy::compile(&developers()))]),
            decisions: &Decisions::none(),
            nodes: &life.nodes,
            enforcement: &life.enforcement,
            census: &Census::default(),
            ledger: &life.book.known,
            sight: &Sight::new(at(-3600)),
        },
    );
    assert_eq!(plan.status.unwrap().revocation.unwrap().cause, EndCause::Consumed);
}

#[test]
fn a_request_that_vanished_while_its_grant_lived_owes_the_record_of_its_end_and_its_entry() {
    let mut life = world().until(100);
    let object = life.object.clone().unwrap();
    let (settings, ledger) = (&Settings::default(), &Ledger::default());
    let plan = vanished(at(100), settings, &object, ledger, &Sight::new(at(0)));
    assert!(
        matches!(&plan.before[..], [Effect::StopPush, Effect::Audit { required: true, record }] if record.kind == RecordKind::Ended)
    );
    assert!(plan.status.is_none() && matches!(&plan.after[..], [Effect::Enter(_)]) && plan.look_again.is_none());
    // The entry waits neither for the trail nor for the key to fade.
    let mut failing = Sight::new(at(0));
    failing.audit_failed_time = Some(at(98));
    let mut fading = Sight::new(at(0));
    fading.push.landed(at(95), "request".into());
    for (sight, again) in [(&failing, (Deadline::Retry, at(103))), (&fading, (Deadline::KeyWindowClosed, at(155)))] {
        let wait = vanished(at(100), settings, &object, ledger, sight);
        assert!(wait.before.is_empty() && matches!(&wait.after[..], [Effect::Enter(_)]), "{wait:?}");
        assert_eq!(wait.look_again, Some(again));
    }
    // Of a clock that was stepped back.
    failing.audit_failed_time = Some(at(4000));
    assert!(!vanished(at(100), settings, &object, ledger, &failing).before.is_empty());
    // Tried again later, it is the same record to the letter.
    let mut gone = Sight::new(at(0));
    gone.gone_time = Some(at(100));
    assert_eq!(
        vanished(at(100), settings, &object, ledger, &gone),
        vanished(at(104), settings, &object, ledger, &gone)
    );

    life = life.until(700);
    let over = vanished(at(700), settings, life.object.as_ref().unwrap(), ledger, &Sight::new(at(0)));
    assert!(over.before.is_empty() && matches!(&over.after[..], [Effect::Enter(_)]), "{over:?}");
    let [Effect::Enter(entry)] = &over.after[..] else { panic!("{over:?}") };
    let mut ledger = Ledger::default();
    assert!(ledger.enter(entry.metadata.name.as_deref().unwrap(), Some(UID), None));
    assert!(vanished(at(700), settings, life.object.as_ref().unwrap(), &ledger, &Sight::new(at(0))).is_empty());
    assert!(
        vanished(at(700), settings, &request(), &Ledger::default(), &Sight::new(at(0))).is_empty(),
        "it never had a grant"
    );
}

#[test]
fn what_goes_waits_in_a_lane_of_its_own() {
    let mut life = world().until(700);
    life.object.as_mut().unwrap().metadata.deletion_timestamp = Some(Time(at(700)));
    life.sync();
    assert_eq!(life.ask().lane(), Lane::Leave);
    let mut ending = world().until(100);
    ending.delete();
    let ending = ending.until(149);
    let mut now = ending;
    now.now = at(150);
    assert_eq!(now.ask().lane(), Lane::End);
}

#[test]
fn a_request_whose_status_goes_back_to_before_its_grant_gets_no_other_one() {
    let forget = |life: &mut Life| {
        life.object.as_mut().unwrap().status = None;
        life.sync();
    };
    // Its grant would live still: that one, to the end that was promised, and no longer.
    let mut life = world().until(100);
    let before = life.status().grant.unwrap();
    forget(&mut life);
    let plan = life.ask();
    let grant = plan.status.expect("a status").grant.expect("a grant");
    assert_eq!((&grant.id, &grant.expiration_time), (&before.id, &before.expiration_time));
    assert!(grant.start_time.0 > before.start_time.0);

    // What is left is too little for a key.
    let mut life = world().until(100);
    let before = life.expiration();
    forget(&mut life);
    life.now = before;
    let status = life.ask().status.expect("a status");
    assert_eq!((status.grant, status.revocation.unwrap().cause), (None, EndCause::Consumed));

    // It is over, however that came.
    let expired = world().until(700);
    let mut revoked = world().until(100);
    revoked.revoke();
    let revoked = revoked.until(300);
    let mut closing = world().until(100);
    closing.revoke();
    closing.settle();
    closing.shows("Approved=True Active=True/RevocationPending Reconciling=True");
    for mut life in [expired, revoked, closing] {
        forget(&mut life);
        life.object.as_mut().unwrap().spec.revoke = None;
        life.sync();
        let plan = life.ask();
        assert!(plan.ground(life.object.as_ref().unwrap()).is_none(), "{plan:?}");
        let status = plan.status.expect("a status");
        assert_eq!((status.grant, status.revocation.unwrap().cause), (None, EndCause::Consumed));
        let ended = condition::find(&status.conditions, ConditionType::Ended).unwrap();
        assert!(ended.message.contains("as after etcd was restored from an older copy"), "{}", ended.message);
    }

    let refused = || world().under(|policy| policy.subjects.clear()).settled();
    let mut denied = refused();
    forget(&mut denied);
    let status = denied.ask().status.expect("a status");
    assert!(condition::is_true(&status.conditions, ConditionType::Denied), "who is refused now as well is told why");
    let mut denied = super::limits::full();
    forget(&mut denied);
    let status = denied.ask().status.expect("a status");
    let told =
        condition::find(&status.conditions, ConditionType::Denied).expect("who finds no place now as well is told so");
    assert_eq!(told.reason, "LimitReached");
    // The instance is looked at first: whoever is refused for its sake, or for want of a place, is told that.
    let mut denied = world().under(|policy| policy.targets.accounts = Some(vec!["210987654321".into()])).settled();
    denied.change_policies(true, |policies| *policies = vec![developers()]);
    forget(&mut denied);
    let status = denied.ask().status.expect("a status");
    let ended = condition::find(&status.conditions, ConditionType::Ended).unwrap();
    assert!(ended.message.starts_with("this request was refused, or withdrawn"), "{}", ended.message);
}

#[test]
fn a_grant_whose_end_is_forgotten_is_ended_again_and_gets_no_key() {
    let mut life = world().until(100);
    let live = life.object.clone();
    life.revoke();
    let mut life = life.until(300);
    life.shows("Approved=True Active=False/Revoked Ended=True/Revoked");
    life.object = live;
    life.sync();
    let plan = life.ask();
    assert!(plan.ground(life.object.as_ref().unwrap()).is_none(), "{plan:?}");
    assert_eq!(plan.lane(), Lane::End);
    let status = plan.status.expect("a status");
    assert_eq!(status.revocation.unwrap().cause, EndCause::PolicyChanged);
}
