use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use proptest::prelude::*;

use super::*;
use crate::api::{InstanceAccessStatus, Revocation};
use crate::domain::enforcement::{Lookout, Looks, Mark, Piece, State};

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
    let looks = |begun, answered| Looks { begun, answered };
    // How many looks there were when it was first asked about, and then.
    for (enforcement, before, then, expected) in [
        (stands(10), looks(0, 0), looks(1, 0), Origin::Landed),
        (stands(10), looks(0, 0), looks(1, 1), Origin::Vouched),
        (stands(10), looks(3, 3), looks(3, 3), Origin::Landed),
        // One was under way.
        (stands(10), looks(4, 3), looks(4, 4), Origin::Landed),
        (stands(10), looks(4, 3), looks(5, 4), Origin::Landed),
        (stands(10), looks(4, 3), looks(5, 5), Origin::Vouched),
        (stands(10), looks(4, 3), looks(6, 6), Origin::Vouched),
        // The API server went back, and what was seen of it before proves nothing.
        (stands(10), looks(4, 3), looks(5, 0), Origin::Landed),
        // It may have been written in a gap.
        (stands(95), looks(3, 3), looks(4, 4), Origin::Landed),
        (stands(108), looks(3, 3), looks(4, 4), Origin::Landed),
        (Enforcement::Missing("x".into()), looks(3, 3), looks(4, 4), Origin::Landed),
    ] {
        let mut sight = seen();
        sight.vouch(&enforcement, before);
        assert_eq!((sight.origin(&theirs), sight.awaits_look()), (Origin::Landed, true), "{before:?}");
        sight.vouch(&enforcement, then);
        assert_eq!(sight.origin(&theirs), expected, "{enforcement:?}, looks {before:?}, then {then:?}");
        assert_eq!(sight.awaits_look(), expected == Origin::Landed);
    }
    let mut sight = seen();
    sight.stores(Some(&theirs), Some(&theirs));
    assert_eq!(sight.origin(&theirs), Origin::Landed, "it is no better for being stored again");
    sight.vouch(&stands(10), looks(1, 1));
    sight.vouch(&stands(10), looks(2, 2));
    sight.stores(Some(&theirs), Some(&grant(95, 300)));
    assert_eq!(sight.origin(&theirs), Origin::Foreign, "taken back, it is not given again");
    assert_eq!(sight.origin(&grant(95, 300)), Origin::Ours);
}

#[test]
fn what_the_first_list_shows_is_found_if_it_began_before_we_led_and_before_it_was_seen() {
    // When it starts, and when we asked about it first; we came to lead at 100.
    for (start, now, expected) in [
        (-5_000, 101, Origin::Found),
        (99, 101, Origin::Found),
        (100, 101, Origin::Found),
        (101, 101, Origin::Foreign),
        (101, 500, Origin::Foreign),
        (3_700, 101, Origin::Foreign),
        (3_700, 4_000, Origin::Foreign),
        // Of a clock that was stepped back since.
        (90, 90, Origin::Found),
        (91, 90, Origin::Foreign),
    ] {
        let theirs = grant(start, start + 600);
        let request = holding("9", Some(&theirs));
        let mut sight = Sight::found_at_start(at(100), Some(&request));
        sight.meet(at(now), &request);
        assert_eq!(sight.origin(&theirs), expected, "{start}, seen at {now}");
        sight.vouch(&stands(-7_200), Looks { begun: 1, answered: 1 });
        let vouched = if expected == Origin::Found { Origin::Vouched } else { Origin::Foreign };
        assert_eq!(sight.origin(&theirs), vouched, "{start}, seen at {now}");
        // What was vouched for stays so, whatever the clock says; what is nobody's does, too.
        sight.meet(at(-6_000), &request);
        sight.meet(at(110), &holding("10", Some(&theirs)));
        assert_eq!(sight.origin(&theirs), vouched, "{start}, seen at {now}");
    }
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
            lookout.begins();
            lookout.looked(milli(asked + took), &[Piece { name: "It".into(), needed: true, state }], "");
            asked + took
        };
        let mut now = 0;
        if is_looked_at_before {
            look(&mut lookout, -6_000, (0, 0, 0));
        }
        lookout.listed();
        let mut asked_after = false;
        for one in looks {
            let asked = now + i64::from(one.0);
            // It is asked about when it is heard of, and after each look.
            if now <= seen && seen <= asked {
                sight.meet(milli(seen), &holding("9", Some(&term)));
                sight.vouch(&lookout.judged(milli(seen)), lookout.looks());
            }
            now = look(&mut lookout, asked, one);
            if seen > asked && seen <= now {
                sight.meet(milli(seen), &holding("9", Some(&term)));
            }
            let is_heard = seen <= now;
            if is_heard {
                sight.vouch(&lookout.judged(milli(now)), lookout.looks());
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

proptest! {
    /// The same while the first list is read, of what it or the live page beside it shows; and of a gap before we led, if what
    /// the leader before saw was handed on.
    #[test]
    fn no_forged_status_that_the_first_list_shows_becomes_a_grant_and_an_honest_one_does(
        looks in prop::collection::vec((0_u16..12_000, 0_u16..5_000, 0_u16..=1_000), 1..12),
        is_handed_on in any::<bool>(),
        gap in prop::option::of((-5_000_i64..30_000, 1_i64..20_000, 0_i64..1_000)),
        (written, lag, rest) in (0_i64..30_000, 0_i64..8_000, 0_i64..8_000),
        (start, length) in (-80_i64..80, 61_i64..4_000),
        is_made_again in any::<bool>(),
        skew in -4_000_i64..4_000,
    ) {
        let gap = gap.map(|(from, length, part)| (if is_handed_on { from } else { from.max(0) }, length, part));
        let gap_times = gap.map(|(from, length, _)| (from, from + length));
        let written = gap.map_or(written, |(from, length, part)| from + length * part / 1_000);
        // The list shows it, and goes on.
        let seen = written.max(0) + lag;
        let (listed, term) = (seen + rest, grant(start, start + length));
        let request = holding("9", Some(&term));
        let mut lookout = Lookout::default();
        let look_at = |at: i64| [Piece {
            name: "It".into(),
            needed: true,
            state: guard(at, gap_times, is_made_again, skew),
        }];
        if is_handed_on {
            lookout.looked(milli(-6_000), &look_at(-6_000), "");
            lookout = Lookout::after(milli(0), lookout.vouched().expect("it stood").clone());
        }
        let mut sight: Option<Sight> = None;
        let (mut now, mut asked_after) = (0, false);
        for (wait, took, part) in looks {
            let asked = now + i64::from(wait);
            if listed <= asked {
                lookout.listed();
            }
            lookout.begins();
            now = asked + i64::from(took);
            // It is asked about before the look that is under way answers, and after.
            let answers = look_at(asked + i64::from(took) * i64::from(part) / 1_000);
            for answer in [None, Some(answers)] {
                if let Some(answer) = answer {
                    lookout.looked(milli(now), &answer, "");
                }
                if seen <= now {
                    let sight = sight.get_or_insert_with(|| Sight::found_at_start(at(0), Some(&request)));
                    sight.meet(milli(now), &request);
                    sight.vouch(&lookout.judged(milli(now)), lookout.looks());
                }
            }
            if listed <= now {
                lookout.listed();
            }
            asked_after |= asked >= listed;
            let origin = sight.as_ref().map(|sight| sight.origin(&term));
            if gap.is_some() {
                prop_assert!(!matches!(origin, Some(Origin::Ours | Origin::Vouched)), "{origin:?} at {now}, {term:?}");
            }
        }
        if gap.is_none() && asked_after {
            let sight = sight.expect("it was seen");
            let expected = if start <= 0 { Origin::Vouched } else { Origin::Foreign };
            prop_assert_eq!(sight.origin(&term), expected);
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
        assert_eq!(having_told(records).told(at(0), &holding("7", None)), expected, "{kinds:?}");
    }
    // Its write may be stored yet, for as long as the request is of that version.
    let mut unheard = having_told(&[record(Denied, None)]);
    unheard.stores_unheard(Some("7"));
    assert_eq!(unheard.told(at(0), &holding("7", None)), []);
    assert_eq!(unheard.told(at(0), &holding("8", None)), [Denied]);
    // An end that goes over others' edits may be stored on any version, for a while.
    let mut patched = having_told(&[record(EndIntended, None)]);
    patched.sends_end_unheard(at(30));
    for (second, told) in [(0, &[][..]), (29, &[]), (30, &[EndIntended])] {
        assert_eq!(patched.told(at(second), &holding("9", None)), told, "{second}");
    }

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
        assert_eq!(sight.told(at(0), status).is_empty(), is_said, "{kind:?}");
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
            let told = sight.told(at(0), &holding("7", None));
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
    sight.vouch(&stands(10), Looks::default());
    sight.vouch(&Enforcement::Unseen, Looks::default());
    sight.vouch(&Enforcement::Missing("x".into()), Looks::default());
    assert_eq!(sight.origin(&grant(10, 600)), Origin::Found);
    sight.vouch(&stands(9), Looks::default());
    sight.vouch(&stands(500), Looks::default());
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
