use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use proptest::prelude::*;

use super::*;
use crate::api::{InstanceAccessStatus, Revocation};
use crate::domain::enforcement::{Lookout, Mark, Piece, State};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn grant(start: i64, expiration: i64) -> Grant {
    let time = |second| Time(at(second));
    Grant { id: "a".into(), start_time: time(start), expiration_time: time(expiration), session: None }
}

/// A request in that version, with that grant.
fn holding(version: &str, grant: Option<&Grant>) -> InstanceAccess {
    let status = InstanceAccessStatus { grant: grant.cloned(), ..InstanceAccessStatus::default() };
    let mut request: InstanceAccess = serde_json::from_value(serde_json::json!({
        "apiVersion": "instanceaccess.dev/v1alpha1",
        "kind": "InstanceAccess",
        "metadata": {"name": "it", "namespace": "team", "uid": "u", "resourceVersion": version},
        "spec": {"target": {"instanceId": "i-0123456789abcdef0"}, "osUser": "ec2-user", "sshPublicKey": "ssh-ed25519 AAAA"},
    }))
    .unwrap();
    request.status = Some(status);
    request
}

fn found(grant: &Grant) -> Sight {
    Sight { grant: GrantSight { found: Some(Term::of(grant)), ..GrantSight::default() }, ..Sight::new(at(0)) }
}

#[test]
fn a_grant_that_we_set_out_to_store_is_ours_and_one_that_says_more_is_not() {
    let mut sight = Sight::new(at(0));
    assert_eq!(sight.origin(&grant(0, 600)), Origin::Foreign, "it came while we looked");
    sight.stores(None, Some(&grant(0, 600)));
    for (term, origin) in [
        (grant(0, 600), Origin::Ours),
        (grant(0, 300), Origin::Ours),
        (grant(0, 601), Origin::Foreign),
        (grant(1, 600), Origin::Foreign),
        (grant(-1, 600), Origin::Foreign),
    ] {
        assert_eq!(sight.origin(&term), origin, "{term:?}");
    }
    // Taken back, it is not given again.
    sight.stores(Some(&grant(0, 600)), Some(&grant(0, 300)));
    assert_eq!(sight.origin(&grant(0, 600)), Origin::Foreign);
    assert_eq!(sight.origin(&grant(0, 300)), Origin::Ours);
}

#[test]
fn a_grant_that_the_leader_before_stored_just_now_is_ours_if_it_is_no_more_than_we_set_out_to_give() {
    let origin_at = |now: Timestamp, met: Option<Grant>, found: Grant| {
        let mut sight = Sight::new(at(0));
        sight.stores(None, Some(&grant(100, 700)));
        sight.meet(now, &holding("8", met.as_ref()));
        sight.meet(now, &holding("9", Some(&found)));
        sight.origin(&found)
    };
    let origin = |met, found| origin_at(at(101), met, found);
    // What was in flight has landed by then.
    assert_eq!(origin_at(at(160), None, grant(91, 691)), Origin::Ours);
    assert_eq!(origin_at(at(161), None, grant(91, 691)), Origin::Foreign);
    for (found, expected) in [
        (grant(100, 700), Origin::Ours),
        (grant(91, 691), Origin::Ours),
        // To an end that was asked for.
        (grant(91, 700), Origin::Ours),
        (grant(40, 640), Origin::Ours),
        (grant(39, 639), Origin::Foreign),
        (grant(91, 701), Origin::Foreign),
        (grant(101, 700), Origin::Foreign),
    ] {
        assert_eq!(origin(None, found.clone()), expected, "{found:?}");
    }
    // Where ours stood already, another one is somebody's doing.
    assert_eq!(origin(Some(grant(100, 700)), grant(91, 691)), Origin::Foreign);
    assert_eq!(origin(Some(grant(91, 691)), grant(90, 690)), Origin::Foreign);
    // A grant that we never set out to give is nobody's.
    let mut sight = Sight::new(at(0));
    sight.meet(at(101), &holding("9", Some(&grant(91, 691))));
    assert_eq!(sight.origin(&grant(91, 691)), Origin::Foreign);
    // One that was found is judged as it was found, whatever we set out to store since.
    let mut sight = found(&grant(10, 900));
    sight.stores(None, Some(&grant(30, 910)));
    sight.meet(at(31), &holding("9", Some(&grant(10, 910))));
    assert_eq!(sight.origin(&grant(10, 910)), Origin::Foreign);
}

fn stands(since: i64) -> Enforcement {
    Enforcement::Stands { since_time: at(since) }
}

/// We came to lead at 100 and found the request waiting, in version 7; then it was seen in these versions, at these times.
fn waiting(seen: &[(i64, &str, Option<&Grant>)]) -> Sight {
    let mut sight = Sight::found_at_start(at(100), Some(&holding("7", None)));
    for (second, version, grant) in seen {
        sight.meet(at(*second), &holding(version, *grant));
    }
    sight
}

#[test]
fn what_lands_just_after_a_take_over_on_what_was_listed_is_as_good_as_found_and_nothing_else_is() {
    let theirs = grant(95, 695);
    #[track_caller]
    fn check(sight: &Sight, found: &Grant, expected: Origin) {
        assert_eq!(sight.origin(found), expected, "{found:?}");
    }
    check(&waiting(&[(101, "9", Some(&theirs))]), &theirs, Origin::Landed);
    check(&waiting(&[(100, "7", None), (160, "9", Some(&theirs))]), &theirs, Origin::Landed);
    // What was in flight has landed by then.
    check(&waiting(&[(100, "7", None), (161, "9", Some(&theirs))]), &theirs, Origin::Foreign);
    // Of a clock that was stepped back since: nobody knows how long we lead.
    check(&waiting(&[(99, "9", Some(&theirs))]), &theirs, Origin::Foreign);
    // Something else was stored since, so whatever was sent on version 7 is refused.
    check(&waiting(&[(101, "8", None), (102, "9", Some(&theirs))]), &theirs, Origin::Foreign);
    // It landed, and another one came after it.
    check(&waiting(&[(101, "8", Some(&theirs)), (102, "9", Some(&grant(96, 695)))]), &grant(96, 695), Origin::Foreign);
    check(&waiting(&[(101, "8", Some(&theirs)), (102, "9", Some(&grant(95, 696)))]), &grant(95, 696), Origin::Foreign);
    check(&waiting(&[(101, "8", Some(&theirs)), (102, "9", Some(&grant(95, 600)))]), &grant(95, 600), Origin::Landed);
    // The leader before decided before we led, and not long before.
    for (start, expected) in
        [(40, Origin::Landed), (39, Origin::Foreign), (100, Origin::Landed), (101, Origin::Foreign)]
    {
        let theirs = grant(start, start + 600);
        check(&waiting(&[(102, "9", Some(&theirs))]), &theirs, expected);
    }
    // What was made after our list was never before another's eyes, nor is what is over granted.
    for found in [None, Some(&holding("7", Some(&grant(1, 50))))] {
        let mut sight = Sight::found_at_start(at(100), found);
        sight.meet(at(101), &holding("9", Some(&theirs)));
        check(&sight, &theirs, Origin::Foreign);
    }
}

#[test]
fn what_landed_is_believed_only_by_a_look_that_was_begun_after_it_was_seen() {
    let theirs = grant(95, 695);
    let seen = || waiting(&[(103, "9", Some(&theirs))]);
    for (enforcement, looked, expected) in [
        (stands(10), None, Origin::Landed),
        (stands(10), Some(102), Origin::Landed),
        (stands(10), Some(103), Origin::Vouched),
        // It may have been written in a gap.
        (stands(95), Some(110), Origin::Landed),
        (stands(108), Some(110), Origin::Landed),
        (Enforcement::Missing("x".into()), Some(110), Origin::Landed),
    ] {
        let mut sight = seen();
        sight.vouch(&enforcement, looked.map(at));
        assert_eq!(sight.origin(&theirs), expected, "{enforcement:?}, looked at {looked:?}");
    }
    let mut sight = seen();
    sight.stores(Some(&theirs), Some(&theirs));
    assert_eq!(sight.origin(&theirs), Origin::Landed, "it is no better for being stored again");
    sight.vouch(&stands(10), Some(at(104)));
    sight.stores(Some(&theirs), Some(&grant(95, 300)));
    assert_eq!(sight.origin(&theirs), Origin::Foreign, "taken back, it is not given again");
    assert_eq!(sight.origin(&grant(95, 300)), Origin::Ours);
}

/// A look at the guard: how long after the one before it was begun, how long it took, and in which part of that it saw.
type Glance = (u16, u16, u16);

/// Seconds in thousandths, after we came to lead.
fn milli(milli: i64) -> Timestamp {
    Timestamp::from_millisecond(at(0).as_millisecond() + milli).unwrap()
}

/// How the guard is at some time: taken away in a gap, from then until then, and put back.
fn guard(now: i64, gap: Option<(i64, i64)>, is_made_again: bool, skew: i64) -> State {
    let mark = |uid: &str, generation, changed| {
        State::Sound(Mark { uid: uid.into(), generation, changed_time: Some(milli(changed)) })
    };
    match gap {
        Some((from, until)) if now >= from && now < until => State::Wrong("is bent".into()),
        Some((_, until)) if now >= until && is_made_again => mark("b", 1, until + skew),
        Some((_, until)) if now >= until => mark("a", 3, until + skew),
        _ => mark("a", 1, -7_200_000),
    }
}

proptest! {
    /// Whoever takes the guard away writes what they like while it is gone, and puts it back before the next look: it is
    /// never an operator's grant. Where nobody did, the grant of the leader before is, once somebody has looked.
    #[test]
    fn no_forged_status_becomes_a_grant_and_the_one_of_the_leader_before_does(
        looks in prop::collection::vec((0_u16..12_000, 0_u16..5_000, 0_u16..=1_000), 1..12),
        is_looked_at_before in any::<bool>(),
        gap in prop::option::of((0_i64..50_000, 1_i64..20_000, 0_i64..1_000)),
        (written, lag) in (0_i64..50_000, 0_i64..8_000),
        (start, length) in (-80_i64..80, 61_i64..4_000),
        is_made_again in any::<bool>(),
        skew in -4_000_i64..4_000,
    ) {
        let gap_times = gap.map(|(from, length, _)| (from, from + length));
        // In the gap, if there is one.
        let written = gap.map_or(written, |(from, length, part)| from + length * part / 1_000);
        let (seen, term) = (written + lag, grant(start, start + length));
        let mut sight = Sight::found_at_start(at(0), Some(&holding("7", None)));
        let mut lookout = Lookout::default();
        let look = |lookout: &mut Lookout, asked: i64, (_, took, part): Glance| {
            let (took, saw) = (i64::from(took), asked + i64::from(took) * i64::from(part) / 1_000);
            let state = guard(saw, gap_times, is_made_again, skew);
            lookout.begins(milli(asked));
            lookout.looked(milli(asked + took), &[Piece { name: "It".into(), needed: true, state }], "");
            asked + took
        };
        let mut now = 0;
        if is_looked_at_before {
            look(&mut lookout, -6_000, (0, 0, 0));
        }
        let mut asked_after = false;
        for one in looks {
            let asked = now + i64::from(one.0);
            // It is asked about when it is heard of, and after each look.
            if now <= seen && seen <= asked {
                sight.meet(milli(seen), &holding("9", Some(&term)));
                sight.vouch(&lookout.enforcement(milli(seen)), lookout.asked_time());
            }
            now = look(&mut lookout, asked, one);
            if seen > asked && seen <= now {
                sight.meet(milli(seen), &holding("9", Some(&term)));
            }
            let is_heard = seen <= now;
            if is_heard {
                sight.vouch(&lookout.enforcement(milli(now)), lookout.asked_time());
            } else {
                sight.meet(milli(now), &holding("7", None));
            }
            asked_after |= is_heard && asked >= seen;
            if gap.is_some() && written >= gap_times.map_or(0, |(from, _)| from) {
                let origin = sight.origin(&term);
                prop_assert!(!matches!(origin, Origin::Ours | Origin::Vouched), "{origin:?} at {now}, {term:?}");
            }
        }
        if gap.is_none() && (-60..=0).contains(&start) && asked_after {
            prop_assert_eq!(sight.origin(&term), Origin::Vouched);
            // No later end is the same grant's.
            prop_assert_eq!(sight.origin(&grant(start, start + length + 1)), Origin::Foreign);
        }
    }
}

/// A record of a request; `delivery` says whether gateways push its key.
fn record(kind: RecordKind, delivery: Option<crate::api::KeyDelivery>) -> Record {
    let mut request = holding("7", None);
    request.spec.key_delivery = delivery;
    Record::of(kind, &request, &InstanceAccessStatus::default())
}

fn word(kind: RecordKind) -> Record {
    Record { called_off: Some(kind), ..record(RecordKind::CalledOff, None) }
}

fn having_told(records: &[Record]) -> Sight {
    let mut sight = Sight::new(at(0));
    for record in records {
        sight.tells(record);
        sight.has_told(record);
    }
    sight
}

const ON_CONNECT: Option<crate::api::KeyDelivery> = Some(crate::api::KeyDelivery::OnConnect);

#[test]
fn what_the_trail_was_told_is_remembered_until_status_says_it_or_the_trail_takes_it_back() {
    use RecordKind::{Denied, EndIntended, Ended, GrantIntended, Granted, PushIntended};
    let rows: [(&[Record], &[RecordKind]); 13] = [
        (&[record(Denied, None)], &[Denied]),
        (&[record(Denied, None), record(Denied, None)], &[Denied]),
        (&[record(EndIntended, None)], &[EndIntended]),
        (&[record(GrantIntended, ON_CONNECT)], &[GrantIntended]),
        // Alone it says nothing to whoever reads the trail back, and takes back the refusal before it.
        (&[record(Denied, None), record(GrantIntended, None)], &[]),
        (&[record(Denied, None), record(GrantIntended, ON_CONNECT)], &[GrantIntended]),
        // A refusal takes back no intention.
        (&[record(GrantIntended, ON_CONNECT), record(Denied, None)], &[GrantIntended, Denied]),
        (&[record(GrantIntended, ON_CONNECT), record(Denied, None), word(GrantIntended)], &[Denied]),
        (&[record(EndIntended, None), record(PushIntended, None)], &[]),
        (&[record(EndIntended, None), record(Granted, None)], &[]),
        (&[record(Denied, None), word(Denied)], &[]),
        (&[record(Denied, None), word(EndIntended)], &[Denied]),
        // An end on record is never taken back.
        (&[record(Ended, None)], &[]),
    ];
    for (records, expected) in rows {
        let kinds: Vec<_> = records.iter().map(|record| record.kind).collect();
        assert_eq!(having_told(records).told(&holding("7", None)), expected, "{kinds:?}");
    }
    // Its write may be stored yet, for as long as the request is of that version.
    let mut unheard = having_told(&[record(Denied, None)]);
    unheard.stores_unheard(Some("7"));
    assert_eq!(unheard.told(&holding("7", None)), []);
    assert_eq!(unheard.told(&holding("8", None)), [Denied]);

    let live = holding("8", Some(&grant(1, 600)));
    let mut closing = live.clone();
    let revocation = Revocation { cause: crate::api::EndCause::Revoked, key_window_closed_time: None };
    closing.status.as_mut().unwrap().revocation = Some(revocation);
    for (kind, delivery, status, is_said) in [
        (GrantIntended, ON_CONNECT, &live, true),
        (EndIntended, None, &live, false),
        (EndIntended, None, &closing, true),
        (Denied, None, &live, false),
    ] {
        let mut sight = having_told(&[record(kind, delivery)]);
        sight.meet(at(1), status);
        assert_eq!(sight.told(status).is_empty(), is_said, "{kind:?}");
    }
}

#[test]
fn a_record_that_the_trail_may_have_refused_takes_nothing_back() {
    use RecordKind::{Denied, EndIntended, Ended, GrantIntended, Granted, PushIntended};
    let taking_back = [Granted, PushIntended, Ended].map(|kind| record(kind, None));
    let taking_back = taking_back.into_iter().chain([Denied, EndIntended, GrantIntended].map(word));
    for after in taking_back.chain([record(GrantIntended, None), record(GrantIntended, ON_CONNECT)]) {
        for owed in [record(Denied, None), record(EndIntended, None), record(GrantIntended, ON_CONNECT)] {
            let mut sight = having_told(std::slice::from_ref(&owed));
            sight.tells(&after);
            let told = sight.told(&holding("7", None));
            assert!(told.contains(&owed.kind), "{:?}, then {:?}", owed.kind, after.kind);
        }
    }
}

#[test]
fn a_write_that_nobody_answered_may_have_been_stored_after_all() {
    let mut sight = Sight::new(at(0));
    for start in 0..20 {
        sight.stores(None, Some(&grant(start, 600)));
    }
    assert_eq!(sight.origin(&grant(18, 600)), Origin::Ours);
    assert_eq!(sight.grant.intended.len(), INTENDED_MAX);
}

#[test]
fn a_grant_that_was_found_is_vouched_for_by_enforcement_that_stood_before_it() {
    let stands = |since| Enforcement::Stands { since_time: at(since) };
    let mut sight = found(&grant(10, 600));
    sight.vouch(&stands(10), None);
    sight.vouch(&Enforcement::Unseen, None);
    sight.vouch(&Enforcement::Missing("x".into()), None);
    assert_eq!(sight.origin(&grant(10, 600)), Origin::Found);
    sight.vouch(&stands(9), None);
    sight.vouch(&stands(500), None);
    assert_eq!(sight.origin(&grant(10, 600)), Origin::Vouched, "a later gap does not make it doubtful");
    assert_eq!(sight.origin(&grant(10, 900)), Origin::Foreign);
}

#[test]
fn a_doubtful_grant_is_no_better_for_being_stored_again() {
    for term in [grant(10, 600), grant(10, 900)] {
        let mut sight = found(&grant(10, 600));
        let before = sight.origin(&term);
        sight.stores(Some(&term), Some(&term));
        assert_eq!(sight.origin(&term), before);
    }
}

fn failure(class: FailureClass) -> Failure {
    Failure { class, code: "X".into(), message: "x".into() }
}

#[test]
fn a_key_is_readable_for_a_minute_after_the_last_push_that_may_have_landed() {
    let mut push = PushSight::default();
    assert_eq!(push.readable_until(), None);
    push.started(at(0));
    assert_eq!(push.readable_until(), None, "what waits is not there yet");
    push.unsent();
    assert_eq!((push.readable_until(), push.is_under_way()), (None, false));
    push.started(at(1));
    push.failed(at(2), failure(FailureClass::Throttled), true);
    assert_eq!(push.readable_until(), None, "AWS said no");
    push.started(at(3));
    push.landed(at(5), "a".into());
    assert_eq!(push.readable_until(), Some(at(65)));
    push.started(at(6));
    push.failed(at(16), failure(FailureClass::Retry), false);
    assert_eq!(push.readable_until(), Some(at(86)), "it may land still");
    push.started(at(17));
    push.landed(at(18), "b".into());
    assert_eq!(push.readable_until(), Some(at(86)), "an earlier bound does not shorten a later one");
    push.started(at(30));
    push.stopped(at(31));
    assert_eq!((push.readable_until(), push.is_under_way()), (Some(at(101)), false));
    push.stopped(at(90));
    assert_eq!(push.readable_until(), Some(at(101)), "nothing was under way");
}

#[test]
fn a_landing_forgets_failures_and_keeps_the_first_request_id() {
    let mut push = PushSight::default();
    push.failed(at(0), failure(FailureClass::Bug), false);
    push.failed(at(1), failure(FailureClass::Bug), false);
    assert_eq!(push.failure().map(|(time, _, count)| (time, count)), Some((at(1), 2)));
    push.landed(at(2), "a".into());
    push.landed(at(3), "b".repeat(1000));
    assert!(push.failure().is_none());
    assert_eq!((push.landed_count(), push.first_request_id(), push.landed_time()), (2, Some("a"), Some(at(3))));
    assert_eq!(push.request_id().unwrap().chars().count(), 128, "the CRD's bound");
}

#[test]
fn a_look_keeps_what_it_found_through_failures() {
    let mut look = Look::default();
    look.started();
    assert!(look.is_under_way());
    look.answered(at(0), Ok(7));
    look.started();
    look.answered(at(1), Err(failure(FailureClass::Retry)));
    look.answered(at(2), Err(failure(FailureClass::Retry)));
    assert_eq!(look.seen(), Some((at(0), &7)));
    assert_eq!(look.failure().map(|(time, _, count)| (time, count)), Some((at(2), 2)));
    look.answered(at(3), Ok(8));
    assert_eq!((look.seen(), look.failure().is_some(), look.is_under_way()), (Some((at(3), &8)), false, false));
}

#[test]
fn only_a_clear_no_proves_that_nothing_landed() {
    for (class, answered) in [
        (FailureClass::Throttled, true),
        (FailureClass::Refused, true),
        (FailureClass::Invalid, true),
        (FailureClass::Gone, true),
        (FailureClass::Retry, false),
        (FailureClass::Bug, false),
    ] {
        assert_eq!(was_answered(&failure(class)), answered, "{class:?}");
    }
}
