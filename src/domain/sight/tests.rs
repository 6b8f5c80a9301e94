use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn grant(start: i64, expiration: i64) -> Grant {
    let time = |second| Time(at(second));
    Grant { id: "a".into(), start_time: time(start), expiration_time: time(expiration), session: None }
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
        sight.meet(now, met.as_ref());
        sight.meet(now, Some(&found));
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
    sight.meet(at(101), Some(&grant(91, 691)));
    assert_eq!(sight.origin(&grant(91, 691)), Origin::Foreign);
    // One that was found is judged as it was found, whatever we set out to store since.
    let mut sight = found(&grant(10, 900));
    sight.stores(None, Some(&grant(30, 910)));
    sight.meet(at(31), Some(&grant(10, 910)));
    assert_eq!(sight.origin(&grant(10, 910)), Origin::Foreign);
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
    sight.vouch(&stands(10));
    sight.vouch(&Enforcement::Unseen);
    sight.vouch(&Enforcement::Missing("x".into()));
    assert_eq!(sight.origin(&grant(10, 600)), Origin::Found);
    sight.vouch(&stands(9));
    sight.vouch(&stands(500));
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
