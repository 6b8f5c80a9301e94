use serde_json::json;

use super::*;
use crate::domain::digest::grant_id;

pub(super) const UID: &str = "5a3f6a0e-5f0f-4b43-9c1a-0d4f3ad1c001";

pub(super) fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// Granted at eight for an hour, and over at half past.
pub(super) fn request() -> InstanceAccess {
    let mut request: InstanceAccess = serde_json::from_value(json!({
        "apiVersion": "instanceaccess.dev/v1alpha1",
        "kind": "InstanceAccess",
        "metadata": {"namespace": "team-a", "name": "fix-web-1", "uid": UID},
        "spec": {
            "requester": {"username": "alice", "groups": ["developers"]},
            "target": {"instanceId": "i-0123456789abcdef0"},
            "osUser": "ec2-user",
            "sshPublicKey": "ssh-ed25519 AAAA",
        },
        "status": {
            "grant": {
                "id": "g-1",
                "startTime": "2026-03-01T08:00:00Z",
                "expirationTime": "2026-03-01T09:00:00Z",
            },
            "instance": {"instanceId": "i-0123456789abcdef0"},
            "endTime": "2026-03-01T08:30:00Z",
        },
    }))
    .unwrap();
    let digest = spec_digest(&request.spec);
    let status = request.status.as_mut().unwrap();
    status.grant.as_mut().unwrap().id = grant_id(UID, &digest);
    status.spec_digest = Some(digest);
    request
}

pub(super) fn entry_of(request: &InstanceAccess) -> InstanceAccessLedgerEntry {
    let rule = PrincipalRule::default();
    entry(&rule, request, request.status.as_ref().unwrap(), at("2026-03-01T08:45:00Z")).expect("it had a grant")
}

/// The same, made again by somebody.
pub(super) fn again() -> InstanceAccess {
    let mut again = request();
    again.metadata.uid = Some("5a3f6a0e-5f0f-4b43-9c1a-0d4f3ad1c002".into());
    again.status = None;
    again
}

fn ledger() -> Ledger {
    let mut ledger = Ledger::default();
    ledger.set_seen();
    ledger
}

#[test]
fn an_entry_says_who_had_what_and_until_when() {
    let entry = entry_of(&request());
    assert!(is_sound(&entry));
    let spec = &entry.spec;
    assert_eq!((spec.request.namespace.as_str(), spec.request.name.as_str()), ("team-a", "fix-web-1"));
    assert_eq!((spec.request.uid.as_str(), spec.subject.username.as_str()), (UID, "alice"));
    assert_eq!(spec.subject.principal.as_deref(), Some("alice"));
    assert_eq!(spec.instance_id.as_deref(), Some("i-0123456789abcdef0"));
    assert_eq!(spec.grant_id, grant_id(UID, &spec.request.spec_digest));
    assert_eq!(spec.end_time, Time(at("2026-03-01T08:30:00Z")));
    assert_eq!(entry_of(&request()), entry, "each time the same");

    let mut for_bob = request();
    for_bob.spec.subject = Some(crate::api::SubjectName { username: "bob".into() });
    assert_eq!(entry_of(&for_bob).spec.subject.username, "bob", "who got in, not who asked");
    // By the operator's rule, and not by the user name.
    let rule: PrincipalRule = "'person of ' + user.groups[0]".parse().unwrap();
    let by_rule = super::entry(&rule, &request(), request().status.as_ref().unwrap(), at("2026-03-01T08:45:00Z"));
    assert_eq!(by_rule.unwrap().spec.subject.principal.as_deref(), Some("person of developers"));
    let mut vanished = request();
    vanished.status.as_mut().unwrap().end_time = None;
    assert_eq!(entry_of(&vanished).spec.end_time, Time(at("2026-03-01T08:45:00Z")));
    let mut never = request();
    never.status.as_mut().unwrap().grant = None;
    assert_eq!(
        super::entry(&PrincipalRule::default(), &never, never.status.as_ref().unwrap(), at("2026-03-01T08:45:00Z")),
        None
    );
}

#[test]
fn the_name_of_an_entry_is_the_same_in_every_version() {
    // printf team-a/fix-web-1/0000…0000 | sha256sum, with 64 zeros.
    let name = entry_name("team-a", "fix-web-1", &"0".repeat(64));
    assert_eq!(name, "153f2ffd1a4d7ac066885738675889a11dad373024c7665216c5bc0f297f3197");
    let names = [
        entry_name("a", "b", "c"),
        entry_name("a", "b-c", ""),
        entry_name("ab", "", "c"),
        entry_name("", "ab", "c"),
        entry_name("b", "a", "c"),
        entry_name("a", "c", "b"),
    ];
    let distinct: std::collections::BTreeSet<_> = names.iter().collect();
    assert_eq!(distinct.len(), names.len(), "and the borders count");
}

#[test]
fn an_entry_is_kept_until_the_request_is_over_by_itself_or_nobody_restores_it_any_more() {
    let end = at("2026-03-01T08:30:00Z");
    let far = at("9998-01-01T00:00:00Z");
    for (asked_until, kept_until) in [
        (None, "2027-04-05T08:30:00Z"),
        (Some(at("2026-03-01T09:00:00Z")), "2026-03-02T09:00:00Z"),
        (Some(at("2026-03-01T09:00:00.25Z")), "2026-03-02T09:00:01Z"),
        (Some(far), "2027-04-05T08:30:00Z"),
    ] {
        let kept = keep_until_time(end, asked_until);
        assert_eq!(kept, at(kept_until), "{asked_until:?}");
        assert!(is_past(kept, kept) && !is_past(plus(end, Duration::from_secs(1)), kept));
    }
}

#[test]
fn whoever_had_the_grant_first_has_it_for_good() {
    let mut ledger = ledger();
    assert_eq!(ledger.standing(&again()), Standing::Free);
    ledger.note(&again());
    assert_eq!(ledger.len(), 0, "who has no grant took none");

    let mut live = request();
    live.status.as_mut().unwrap().end_time = None;
    ledger.note(&live);
    let own = Standing::Its { until: at("2026-03-01T09:00:00Z") };
    assert_eq!(ledger.standing(&live), own, "one's own");
    let taken = |end_time| Standing::Consumed { uid: Some(UID.to_owned()), end_time };
    assert_eq!(ledger.standing(&again()), taken(None));
    ledger.note(&request());
    let ended = taken(Some(at("2026-03-01T08:30:00Z")));
    assert_eq!(ledger.standing(&again()), ended);
    // A second one with a grant in its status changes nothing: somebody wrote it there.
    let mut forged = request();
    forged.metadata.uid = again().metadata.uid;
    ledger.note(&forged);
    assert_eq!(ledger.standing(&again()), ended);

    let entry = entry_of(&request());
    assert!(!ledger.has(&entry), "that a request has it is no entry");
    let name = entry.metadata.name.as_deref().unwrap();
    ledger.forget(name);
    assert_eq!(ledger.standing(&again()), ended, "an entry of before went, and the request is there");
    assert!(ledger.enter(name, Some(UID), Some(entry.spec.end_time.0)) && ledger.has(&entry));
    ledger.note(&live);
    assert!(ledger.has(&entry));
    assert_eq!(ledger.standing(&again()), ended);
    ledger.forget(name);
    assert_eq!(ledger.standing(&again()), Standing::Free);
}

#[test]
fn what_cannot_be_read_of_an_entry_lets_nobody_in() {
    let name = entry_of(&request()).metadata.name.unwrap();
    for uid in [None, Some(""), Some("uid-1"), Some("5A3F6A0E-5F0F-4B43-9C1A-0D4F3AD1C001"), Some(&UID[1..])] {
        let mut ledger = ledger();
        assert!(ledger.enter(&name, uid, None));
        assert_eq!(ledger.standing(&again()), Standing::Consumed { uid: None, end_time: None }, "{uid:?}");
        assert_eq!(ledger.standing(&request()), Standing::Consumed { uid: None, end_time: None }, "{uid:?}");
        assert!(!ledger.is_over(&request()), "{uid:?}: nobody's entry ends nobody's grant");
    }
    let mut ledger = ledger();
    for junk in ["", "a", "junk", &name[1..], &name.to_uppercase(), &format!("{name}0"), &"g".repeat(64)] {
        assert!(!ledger.enter(junk, Some(UID), None), "{junk}");
    }
    assert!(ledger.is_empty());
}

#[test]
fn an_entry_by_another_name_than_its_own_is_not_sound() {
    let sound = entry_of(&request());
    type Bend = fn(&mut InstanceAccessLedgerEntry);
    let bends: [Bend; 4] = [
        |entry| entry.metadata.name = Some("0".repeat(64)),
        |entry| entry.spec.request.namespace = "team-b".into(),
        |entry| entry.spec.request.name = "fix-web-2".into(),
        |entry| entry.spec.request.spec_digest = "0".repeat(64),
    ];
    for bend in bends {
        let mut bent = sound.clone();
        bend(&mut bent);
        assert!(!is_sound(&bent), "{:?}", bent.spec.request);
    }
}

#[test]
fn unread_it_says_nothing_and_keeps_what_it_is_told() {
    let mut ledger = Ledger::default();
    assert_eq!(ledger.standing(&again()), Standing::Unseen);
    ledger.note(&request());
    ledger.set_seen();
    assert!(matches!(ledger.standing(&again()), Standing::Consumed { .. }));
}

#[test]
fn a_hundred_thousand_grants_take_a_few_megabytes() {
    let mut ledger = ledger();
    for number in 0..100_000 {
        let name = entry_name("team-a", &number.to_string(), &"0".repeat(64));
        assert!(ledger.enter(&name, Some(UID), Some(at("2026-03-01T08:30:00Z"))));
    }
    // As hashbrown lays it out: a power of two of places, of which seven in eight may be full, and a byte for each.
    let places = (ledger.consumed.capacity() * 8 / 7).next_power_of_two();
    let bytes = places * (size_of::<Key>() + size_of::<Consumer>() + 1);
    assert!(ledger.len() == 100_000 && bytes < 6 << 20, "{bytes} bytes");
}
