use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::tests::{UID, again, at, request};
use super::super::{Ledger, Standing};
use super::*;
use crate::api::InstanceAccess;
use crate::domain::record::Record;

/// What the trail says of the request that was granted at eight for an hour, and over at half past.
fn record(kind: RecordKind) -> Value {
    let request = request();
    let mut status = request.status.clone().unwrap();
    match kind {
        RecordKind::Denied | RecordKind::CalledOff => status.grant = None,
        RecordKind::EndIntended => status.grant.as_mut().unwrap().expiration_time = Time(at("2026-03-01T08:25:00Z")),
        RecordKind::GrantIntended | RecordKind::Granted | RecordKind::PushIntended | RecordKind::Ended => {}
    }
    let mut record = Record::of(kind, &request, &status);
    record.end_time = status.end_time.clone().filter(|_| kind == RecordKind::Ended);
    serde_json::to_value(record).unwrap()
}

/// An end was called off: the grant lives.
fn end_called_off() -> Value {
    let mut record = record(RecordKind::GrantIntended);
    record["kind"] = json!(RecordKind::CalledOff);
    record["calledOff"] = json!(RecordKind::EndIntended);
    record
}

/// That a record of this kind is taken back.
fn called_off(kind: RecordKind) -> Value {
    let mut record = record(RecordKind::CalledOff);
    record["calledOff"] = json!(kind);
    record
}

/// What is on record by these kinds; what is called off is the record before it.
fn told(kinds: &[RecordKind], tell: fn(RecordKind) -> Value) -> Vec<Value> {
    let is_word = |kind: &&RecordKind| **kind == RecordKind::CalledOff;
    let before = |place: usize| kinds[..place].iter().rfind(|kind| !is_word(kind));
    let tell = |(place, kind): (usize, &RecordKind)| match before(place).filter(|_| is_word(&kind)) {
        Some(before) => called_off(*before),
        None => tell(*kind),
    };
    kinds.iter().enumerate().map(tell).collect()
}

fn heard(records: &[Value]) -> Memory {
    let mut memory = Memory::default();
    for record in records {
        memory.hear(at("2026-03-01T08:20:00Z"), &record.to_string());
    }
    memory
}

fn recalled(records: &[Value]) -> Ledger {
    let mut ledger = Ledger::default();
    ledger.set_seen();
    ledger.recall(&heard(records));
    ledger
}

/// The same request, as an etcd has it that was restored from before its grant.
fn forgotten() -> InstanceAccess {
    let mut forgotten = request();
    forgotten.status = None;
    forgotten
}

#[test]
fn what_the_trail_says_closes_what_a_restored_api_server_would_open_again() {
    use RecordKind::{CalledOff, Denied, EndIntended, Ended, GrantIntended, Granted, PushIntended};
    let nine = at("2026-03-01T09:00:00Z");
    let its = Standing::Its { until: nine };
    let over = |time: &str| Standing::Over { end_time: Some(at(time)) };
    let rows: [(&[RecordKind], Standing); 28] = [
        (&[], Standing::Free),
        // Called off, or its write failed: nobody ever had access.
        (&[GrantIntended], Standing::Free),
        (&[GrantIntended, PushIntended], its.clone()),
        (&[Denied, GrantIntended, PushIntended], its.clone()),
        (&[GrantIntended, Granted], its.clone()),
        (&[PushIntended], its.clone()),
        (&[GrantIntended, Granted, PushIntended, EndIntended], over("2026-03-01T08:25:00Z")),
        (&[EndIntended], over("2026-03-01T08:25:00Z")),
        // Its write was refused, and the policy put back.
        (&[PushIntended, EndIntended, PushIntended], its.clone()),
        (&[PushIntended, EndIntended, Granted], its.clone()),
        (&[EndIntended, PushIntended], its.clone()),
        (&[EndIntended, GrantIntended], over("2026-03-01T08:25:00Z")),
        (&[PushIntended, Ended, EndIntended, PushIntended, Granted], over("2026-03-01T08:30:00Z")),
        (&[EndIntended, Ended], over("2026-03-01T08:30:00Z")),
        (&[GrantIntended, Ended], over("2026-03-01T08:30:00Z")),
        (&[Ended], over("2026-03-01T08:30:00Z")),
        (&[Denied], Standing::Closed),
        // It was refused, and that was called off: the world had changed.
        (&[Denied, GrantIntended], Standing::Free),
        // An operator that went on said so itself.
        (&[CalledOff], Standing::Free),
        (&[Denied, CalledOff], Standing::Free),
        (&[Denied, CalledOff, Denied], Standing::Closed),
        (&[Denied, CalledOff, Denied, CalledOff], Standing::Free),
        // The first may have been stored, and forgotten by an etcd that was restored.
        (&[Denied, Denied, CalledOff], Standing::Closed),
        (&[Denied, Denied, CalledOff, CalledOff], Standing::Closed),
        // Neither a key that was pushed nor an end on record is called off.
        (&[GrantIntended, PushIntended, CalledOff], its.clone()),
        (&[GrantIntended, Granted, CalledOff, CalledOff], its.clone()),
        (&[Ended, CalledOff], over("2026-03-01T08:30:00Z")),
        (&[PushIntended, EndIntended, Ended, CalledOff], over("2026-03-01T08:30:00Z")),
    ];
    for (kinds, expected) in rows {
        let ledger = recalled(&told(kinds, record));
        assert_eq!(ledger.standing(&forgotten()), expected, "{kinds:?}");
        let is_over = matches!(expected, Standing::Over { .. });
        assert_eq!(ledger.is_over(&request()), is_over, "{kinds:?}, restored as live");
        // Made again by another name of the same: who was only refused is judged anew.
        let had_it = kinds.iter().any(|kind| !matches!(kind, Denied | GrantIntended | CalledOff));
        assert_eq!(matches!(ledger.standing(&again()), Standing::Consumed { .. }), had_it, "{kinds:?}, made again");
        assert!(!ledger.is_over(&again()), "{kinds:?}: another's end is not one's own");
        for (until, fits) in [(nine, true), (at("2026-03-01T09:00:01Z"), false)] {
            let admits = match &expected {
                Standing::Free => true,
                Standing::Its { .. } => fits,
                Standing::Unseen | Standing::Over { .. } | Standing::Closed | Standing::Consumed { .. } => false,
            };
            assert_eq!(ledger.admits(&forgotten(), until), admits, "{kinds:?}, until {until}");
        }
    }
}

#[test]
fn an_end_that_was_called_off_is_none_and_one_on_record_stays() {
    use RecordKind::{Denied, EndIntended, Ended, GrantIntended, PushIntended};
    let its = Standing::Its { until: at("2026-03-01T09:00:00Z") };
    let over = |time: &str| Standing::Over { end_time: Some(at(time)) };
    let rows: [(&[RecordKind], &[RecordKind], Standing); 7] = [
        (&[PushIntended, EndIntended], &[], its.clone()),
        (&[PushIntended, EndIntended], &[EndIntended], over("2026-03-01T08:25:00Z")),
        // The trail did not take what was called off.
        (&[PushIntended], &[], its.clone()),
        (&[PushIntended, Ended], &[], over("2026-03-01T08:30:00Z")),
        (&[PushIntended, Ended, EndIntended], &[], over("2026-03-01T08:30:00Z")),
        (&[PushIntended, EndIntended, Ended], &[], over("2026-03-01T08:30:00Z")),
        // It takes back no refusal.
        (&[GrantIntended, Denied], &[], Standing::Closed),
    ];
    for (before, after, expected) in rows {
        for tell in [record, on_connect] {
            let mut records: Vec<Value> = before.iter().map(|kind| tell(*kind)).collect();
            records.push(end_called_off());
            records.extend(after.iter().map(|kind| tell(*kind)));
            assert_eq!(recalled(&records).standing(&forgotten()), expected, "{before:?}, called off, {after:?}");
        }
    }
    // Where gateways push, that it is called off says that it was granted.
    let records = [on_connect(GrantIntended), end_called_off()];
    assert_eq!(recalled(&records).standing(&forgotten()), its);
    let records = [on_connect(GrantIntended), on_connect(EndIntended), end_called_off()];
    assert_eq!(recalled(&records).standing(&forgotten()), its);
}

#[test]
fn no_later_record_of_a_grant_lengthens_it() {
    let shorter = |kind| {
        let mut record = record(kind);
        record["expirationTime"] = json!("2026-03-01T08:59:00Z");
        record
    };
    let until = at("2026-03-01T08:59:00Z");
    for (first, second) in [
        (shorter(RecordKind::PushIntended), record(RecordKind::PushIntended)),
        (record(RecordKind::PushIntended), shorter(RecordKind::PushIntended)),
    ] {
        let ended = record(RecordKind::EndIntended);
        let between = [first.clone(), ended, second.clone()];
        assert_eq!(recalled(&between).standing(&forgotten()), Standing::Its { until }, "an end between them");
        assert_eq!(recalled(&[first, second]).standing(&forgotten()), Standing::Its { until });
    }
}

#[test]
fn where_gateways_push_the_intention_itself_counts() {
    use RecordKind::{CalledOff, Denied, EndIntended, Ended, GrantIntended, PushIntended};
    assert!(record(GrantIntended).get("keyDelivery").is_none());
    let its = Standing::Its { until: at("2026-03-01T09:00:00Z") };
    let rows: [(&[RecordKind], Standing); 9] = [
        (&[GrantIntended], its.clone()),
        (&[GrantIntended, GrantIntended], its.clone()),
        (&[GrantIntended, CalledOff], Standing::Free),
        (&[GrantIntended, CalledOff, GrantIntended, CalledOff], Standing::Free),
        // The first may have been stored and used, and forgotten by an etcd that was restored.
        (&[GrantIntended, GrantIntended, CalledOff], its.clone()),
        (&[GrantIntended, GrantIntended, CalledOff, CalledOff], its.clone()),
        // A refusal that is called off says nothing of the grant.
        (&[GrantIntended, Denied, CalledOff], its.clone()),
        (&[GrantIntended, CalledOff, GrantIntended], its.clone()),
        (&[GrantIntended, CalledOff, Denied], Standing::Closed),
    ];
    for (kinds, expected) in rows {
        assert_eq!(recalled(&told(kinds, on_connect)).standing(&forgotten()), expected, "{kinds:?}");
    }
    // It had its grant, or there would be no key or end of it.
    for (kind, expected) in [
        (EndIntended, Standing::Over { end_time: Some(at("2026-03-01T08:25:00Z")) }),
        (PushIntended, its.clone()),
        (Ended, Standing::Over { end_time: Some(at("2026-03-01T08:30:00Z")) }),
    ] {
        let records = [on_connect(GrantIntended), on_connect(kind), called_off(GrantIntended)];
        assert_eq!(recalled(&records).standing(&forgotten()), expected, "{kind:?}");
    }
    // What another request of that name called off was its own, and what it was about to have stood before.
    let by_another = |mut record: Value| {
        record["request"]["uid"] = json!(again().metadata.uid);
        record
    };
    let others = by_another(called_off(GrantIntended));
    assert_eq!(recalled(&[on_connect(GrantIntended), others.clone()]).standing(&forgotten()), its);
    let ledger = recalled(&[on_connect(GrantIntended), by_another(on_connect(GrantIntended)), others]);
    assert_ne!(ledger.standing(&forgotten()), Standing::Free);
    assert!(ledger.is_consumed(&again()));
}

#[test]
fn what_names_nothing_that_can_be_called_off_calls_nothing_off() {
    use RecordKind::{CalledOff, Denied, EndIntended, Ended, GrantIntended, Granted, PushIntended};
    let its = Standing::Its { until: at("2026-03-01T09:00:00Z") };
    let over = |time: &str| Standing::Over { end_time: Some(at(time)) };
    let nothing = [Granted, PushIntended, Ended, CalledOff].map(called_off);
    // The last one names nothing at all.
    for word in nothing.into_iter().chain([record(CalledOff)]) {
        for (kind, expected) in [
            (Denied, Standing::Closed),
            (GrantIntended, its.clone()),
            (EndIntended, over("2026-03-01T08:25:00Z")),
            (Ended, over("2026-03-01T08:30:00Z")),
        ] {
            assert_eq!(recalled(&[on_connect(kind), word.clone()]).standing(&forgotten()), expected, "{kind:?} {word}");
        }
    }
}

/// The same, of a request whose key gateways push.
fn on_connect(kind: RecordKind) -> Value {
    let mut request = request();
    request.spec.key_delivery = Some(KeyDelivery::OnConnect);
    let told = Record::of(kind, &request, request.status.as_ref().unwrap());
    let mut record = record(kind);
    record["keyDelivery"] = serde_json::to_value(told).unwrap()["keyDelivery"].clone();
    record
}

proptest! {
    /// Whatever is called off, and whatever else is on record: a grant that ended stays so, and one of which a key is known
    /// is not given anew.
    #[test]
    fn what_is_called_off_opens_nothing_that_was_granted(
        told in prop::collection::vec(anything(), 0..12),
        is_on_connect in any::<bool>(),
    ) {
        use RecordKind::{EndIntended, Ended, Granted, PushIntended};
        let records: Vec<Value> = told.iter().map(|told| said(*told, is_on_connect)).collect();
        let standing = recalled(&records).standing(&forgotten());
        let has = |kinds: &[RecordKind]| told.iter().any(|told| matches!(told, Ok(kind) if kinds.contains(kind)));
        if has(&[Ended]) {
            prop_assert!(matches!(standing, Standing::Over { .. } | Standing::Closed), "{standing:?} {told:?}");
        }
        if has(&[Granted, PushIntended, EndIntended]) {
            prop_assert!(standing != Standing::Free, "{told:?}");
        }
        // As far as a grant goes that it may have.
        prop_assert!(!recalled(&records).admits(&forgotten(), at("2026-03-01T09:00:01Z")) || standing == Standing::Free);
    }

    /// Whatever the trail says, it says no less after somebody put the same on record once more, and called that off: what
    /// was there may have been stored, and forgotten by an etcd that was restored.
    #[test]
    fn what_was_on_record_before_is_not_called_off_with_what_came_after(
        told in prop::collection::vec(anything(), 0..12),
        kind in prop::sample::select(vec![RecordKind::Denied, RecordKind::GrantIntended]),
        words in 1_usize..4,
        is_on_connect in any::<bool>(),
    ) {
        let mut records: Vec<Value> = told.iter().map(|told| said(*told, is_on_connect)).collect();
        let before = recalled(&records);
        records.push(said(Ok(kind), is_on_connect));
        records.extend(std::iter::repeat_n(called_off(kind), words));
        let after = recalled(&records);
        // Whoever is granted was not refused after all; otherwise a refusal stands.
        if kind == RecordKind::Denied {
            prop_assert_eq!(after.is_closed(&forgotten()), before.is_closed(&forgotten()), "{:?}", told);
        }
        prop_assert_eq!(after.is_consumed(&forgotten()), before.is_consumed(&forgotten()), "{:?}", told);
        prop_assert_eq!(after.is_over(&forgotten()), before.is_over(&forgotten()), "{:?}", told);
    }
}

/// A kind of record, or that one of a kind is called off.
fn anything() -> impl Strategy<Value = Result<RecordKind, RecordKind>> {
    use RecordKind::{Denied, EndIntended, Ended, GrantIntended, Granted, PushIntended};
    let told = vec![Denied, GrantIntended, Granted, PushIntended, EndIntended, Ended];
    let called_off = vec![Denied, GrantIntended, EndIntended];
    prop_oneof![
        2 => prop::sample::select(told).prop_map(Ok),
        1 => prop::sample::select(called_off).prop_map(Err),
    ]
}

fn said(told: Result<RecordKind, RecordKind>, is_on_connect: bool) -> Value {
    match told {
        Ok(kind) if is_on_connect => on_connect(kind),
        Ok(kind) => record(kind),
        Err(RecordKind::EndIntended) => end_called_off(),
        Err(kind) => called_off(kind),
    }
}

#[test]
fn of_two_requests_the_later_one_had_it_unless_the_first_is_over() {
    let by_another = |kind| {
        let mut record = record(kind);
        record["request"]["uid"] = json!(again().metadata.uid);
        record
    };
    let (first, second) = (record(RecordKind::PushIntended), by_another(RecordKind::PushIntended));
    let ledger = recalled(&[first.clone(), second.clone(), by_another(RecordKind::Ended)]);
    assert!(matches!(ledger.standing(&again()), Standing::Over { .. }));
    assert!(matches!(ledger.standing(&forgotten()), Standing::Consumed { .. }));
    let ledger = recalled(&[first, record(RecordKind::Ended), second]);
    assert!(matches!(ledger.standing(&forgotten()), Standing::Over { .. }));
    assert!(matches!(ledger.standing(&again()), Standing::Consumed { .. }));
}

#[test]
fn what_this_process_saw_stored_closes_the_same() {
    let mut ledger = Ledger::default();
    ledger.set_seen();
    let mut live = request();
    live.status.as_mut().unwrap().end_time = None;
    ledger.note(&live);
    assert_eq!(ledger.standing(&forgotten()), Standing::Its { until: at("2026-03-01T09:00:00Z") });
    assert!(!ledger.is_over(&live));
    let mut revoked = live.clone();
    let status = revoked.status.as_mut().unwrap();
    let closed = Some(Time(at("2026-03-01T08:15:00Z")));
    status.revocation =
        Some(crate::api::Revocation { cause: crate::api::EndCause::Revoked, key_window_closed_time: closed });
    ledger.note(&revoked);
    assert!(ledger.is_over(&live), "restored from before its revocation");

    let mut refused = forgotten();
    refused.status = serde_json::from_value(json!({"conditions": [{
        "type": "Denied", "status": "True", "reason": "DeniedByPolicy", "message": "no",
        "observedGeneration": 1, "lastTransitionTime": "2026-03-01T08:00:00Z",
    }]}))
    .unwrap();
    let mut ledger = Ledger::default();
    ledger.set_seen();
    ledger.note(&refused);
    assert_eq!(ledger.standing(&forgotten()), Standing::Closed);
    assert_eq!(ledger.standing(&again()), Standing::Free, "made again it is judged anew");
}

#[test]
fn an_entry_of_the_request_itself_says_that_it_went() {
    let mut ledger = Ledger::default();
    ledger.set_seen();
    let name = super::super::tests::entry_of(&request()).metadata.name.unwrap();
    assert!(ledger.enter(&name, Some(UID), Some(at("2026-03-01T08:30:00Z"))));
    assert_eq!(ledger.standing(&forgotten()), Standing::Over { end_time: Some(at("2026-03-01T08:30:00Z")) });
    assert!(ledger.is_over(&request()));
}

#[test]
fn what_is_no_record_of_a_request_says_nothing() {
    let of_a_gateway = json!({"kind": "SessionOpened", "request": {"namespace": "a", "name": "b", "uid": UID}});
    let half = json!({"kind": "Ended", "request": {"namespace": "a", "name": "b"}, "specDigest": "x"});
    let opened = json!({"kind": "SegmentOpened", "segment": 1});
    let memory = heard(&[of_a_gateway, half, opened, json!([]), json!("Ended")]);
    assert!(memory.is_empty() && memory.ledger.closed.newer.is_empty());
}

#[test]
fn a_flood_of_refusals_pushes_out_older_refusals_and_no_grant() {
    let mut memory = heard(&[record(RecordKind::Denied), record(RecordKind::Ended)]);
    let flood = |memory: &mut Memory, count: usize| {
        for number in 0..count as u64 {
            let mut uid = [1; 16];
            uid[..8].copy_from_slice(&number.to_be_bytes());
            memory.ledger.closed.add(uid);
        }
    };
    flood(&mut memory, CLOSED_MAX);
    assert!(memory.ledger.closed.has(uid_bytes(UID)));
    flood(&mut memory, 4 * CLOSED_MAX);
    assert!(!memory.ledger.closed.has(uid_bytes(UID)));
    assert!(memory.ledger.closed.newer.len() + memory.ledger.closed.older.len() <= 2 * CLOSED_MAX);
    let mut ledger = Ledger::default();
    ledger.set_seen();
    ledger.recall(&memory);
    assert!(matches!(ledger.standing(&forgotten()), Standing::Over { .. }));
}

#[test]
fn what_is_over_for_longer_than_a_trail_is_read_is_forgotten() {
    let now = at("2026-03-01T10:00:00Z");
    let mut memory = heard(&[record(RecordKind::Ended)]);
    let flood = |memory: &mut Memory, from: u64, time: Timestamp| {
        for number in from..from + 2 * PRUNED_ABOVE as u64 {
            let mut key = [1; 16];
            key[..8].copy_from_slice(&number.to_be_bytes());
            let until_second = second(time);
            let consumer = Consumer { uid: [2; 16], end_second: until_second, until_second, is_entered: false };
            memory.ledger.consumed.insert(Key(key), consumer);
        }
    };
    flood(&mut memory, 0, minus(now, KEPT + Duration::from_secs(1)));
    memory.see(now, &request());
    assert_eq!(memory.len(), 1, "only the grant of today is left");
    flood(&mut memory, 0, minus(now, KEPT));
    memory.see(now, &request());
    assert_eq!(memory.len(), 1 + 2 * PRUNED_ABOVE, "what may still wait is remembered");
}
