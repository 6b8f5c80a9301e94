//! No push but on a grant that was read just then, and none that could outlive it.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::domain::cloud::InstanceId;
use crate::domain::time::{minus, since};

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIInStMRqROkTDl0mY88lWxAMlcGJXz3IjvFhijzUrfeX alice@laptop";
const OTHER_KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFfcsBlCiP8zjAovSSo3q1ARxbGaJuUh3l6diFgdIU4t";
const INSTANCE: &str = "i-0123456789abcdef0";

/// The grant ends at 09:10:00Z; so many seconds after 09:00:00Z.
fn at(seconds: i64) -> Timestamp {
    let zero: Timestamp = "2026-03-01T09:00:00Z".parse().unwrap();
    zero + jiff::SignedDuration::from_secs(seconds)
}

fn condition(type_: &str, status: &str, reason: &str) -> Value {
    json!({"type": type_, "status": status, "reason": reason, "message": "", "observedGeneration": 1,
           "lastTransitionTime": "2026-03-01T08:59:00Z"})
}

/// A request as it stands while its grant lives, with something else at a JSON pointer; null takes it away.
fn bent(pointer: &str, value: Value) -> InstanceAccess {
    let object = whole(|object| put(object, pointer, value.clone()));
    serde_json::from_value(object).unwrap()
}

/// The same, granted as it is: digest and id fit what it asks for.
fn asking(pointer: &str, value: Value) -> InstanceAccess {
    let mut object = whole(|object| put(object, pointer, value.clone()));
    let request: InstanceAccess = serde_json::from_value(object.clone()).unwrap();
    let digest = spec_digest(&request.spec);
    object["status"]["grant"]["id"] = json!(grant_id("u1", &digest));
    object["status"]["specDigest"] = json!(digest);
    serde_json::from_value(object).unwrap()
}

fn granted() -> InstanceAccess {
    asking("/spec/osUser", json!("ec2-user"))
}

fn put(object: &mut Value, pointer: &str, value: Value) {
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    let parent = object.pointer_mut(parent).unwrap();
    match (parent, value) {
        (Value::Array(items), value) => items[field.parse::<usize>().unwrap()] = value,
        (parent, Value::Null) => drop(parent.as_object_mut().unwrap().remove(field).unwrap()),
        (parent, value) => parent[field] = value,
    }
}

fn whole(change: impl FnOnce(&mut Value)) -> Value {
    let mut object = json!({
        "apiVersion": "instanceaccess.dev/v1alpha1",
        "kind": "InstanceAccess",
        "metadata": {"name": "web-1", "namespace": "team", "uid": "u1"},
        "spec": {
            "requester": {"username": "alice"},
            "target": {"instanceId": INSTANCE, "region": "us-west-2", "accountId": "123456789012"},
            "osUser": "ec2-user",
            "sshPublicKey": KEY,
            "keyDelivery": "OnConnect",
        },
        "status": {
            "conditions": [condition("Active", "True", "Granted"), condition("Approved", "True", "AdmittedByPolicy")],
            "grant": {"id": "", "startTime": "2026-03-01T08:59:00Z", "expirationTime": "2026-03-01T09:10:00Z"},
            "instance": {"instanceId": INSTANCE, "region": "us-west-2", "accountId": "123456789012",
                         "availabilityZone": "us-west-2a"},
            "connection": {"method": "Direct", "address": "203.0.113.17", "port": 22, "command": "ssh"},
            "key": {"type": "ED25519", "bits": 256, "fingerprint": PublicKey::parse(KEY).unwrap().fingerprint()},
        },
    });
    let request: InstanceAccess = serde_json::from_value(object.clone()).unwrap();
    let digest = spec_digest(&request.spec);
    object["status"]["grant"]["id"] = json!(grant_id("u1", &digest));
    object["status"]["specDigest"] = json!(digest);
    change(&mut object);
    object
}

/// What the gateway knew of it before.
fn known(request: &InstanceAccess) -> SessionGrant {
    match standing(request) {
        Standing::Live(grant) => (*grant).clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_grant_that_was_read_just_now_has_its_key_pushed_where_it_says() {
    let push = delivery(at(1), at(0), &known(&granted()), Some(&granted())).unwrap().redeem(at(5)).unwrap();
    assert_eq!(push.place.region.as_str(), "us-west-2");
    assert_eq!((push.instance_id.as_str(), push.os_user.as_str()), (INSTANCE, "ec2-user"));
    assert_eq!(push.availability_zone.as_deref(), Some("us-west-2a"));
    assert_eq!(push.key.fingerprint(), known(&granted()).key_fingerprint);
    assert!(delivery(at(1), at(0), &known(&granted()), Some(&granted())).unwrap().redeem(at(6)).is_none(), "it is old");
}

#[test]
fn whatever_the_read_says_of_an_end_or_does_not_say_as_it_was_granted_pushes_nothing() {
    let digest = "0".repeat(64);
    for (read, word) in [
        (bent("/metadata/uid", json!("u2")), "Over"),
        (bent("/metadata/uid", json!(null)), "Over"),
        (bent("/metadata/deletionTimestamp", json!("2026-03-01T09:00:00Z")), "Over"),
        (bent("/spec/revoke", json!({"reason": "done"})), "Over"),
        (bent("/status/revocation", json!({"cause": "PolicyChanged"})), "Over"),
        (bent("/status/endTime", json!("2026-03-01T09:00:00Z")), "Over"),
        (bent("/status/conditions/0", condition("Ended", "True", "Expired")), "Over"),
        (bent("/status/conditions/0", condition("Active", "False", "EnforcementMissing")), "NotNow"),
        (bent("/status/conditions/0", condition("Active", "False", "Granted")), "NotNow"),
        (bent("/status/conditions/0", condition("Active", "True", "RevocationPending")), "NotNow"),
        (bent("/status/conditions/0", condition("Approved", "True", "AdmittedByPolicy")), "NotNow"),
        (bent("/status/conditions/1", condition("Approved", "Unknown", "PendingApproval")), "NotAsGranted"),
        (bent("/status/conditions/1", condition("Denied", "True", "DeniedByPolicy")), "NotAsGranted"),
        (bent("/status", json!(null)), "NotAsGranted"),
        (bent("/status/grant", json!(null)), "NotAsGranted"),
        (bent("/status/grant/id", json!("g-0")), "NotAsGranted"),
        (bent("/status/specDigest", json!(digest)), "NotAsGranted"),
        (bent("/status/specDigest", json!(null)), "NotAsGranted"),
        (bent("/status/key/fingerprint", json!("SHA256:another")), "NotAsGranted"),
        (bent("/status/instance/instanceId", json!("i-0fedcba9876543210")), "NotAsGranted"),
        (bent("/status/instance/region", json!("eu-west-1")), "NotAsGranted"),
        (bent("/status/instance/region", json!(null)), "NotAsGranted"),
        (bent("/status/instance/accountId", json!("210987654321")), "NotAsGranted"),
        (bent("/status/instance/accountId", json!(null)), "NotAsGranted"),
        // Another spec, under the grant of the first: the CRD was bent.
        (bent("/spec/osUser", json!("root")), "NotAsGranted"),
        (bent("/spec/keyDelivery", json!(null)), "NotAsGranted"),
        (bent("/spec/ttlSeconds", json!(7200)), "NotAsGranted"),
        // Granted in itself, and another than the session was permitted under.
        (asking("/spec/osUser", json!("root")), "NotAsGranted"),
        (asking("/spec/keyDelivery", json!("Continuous")), "NotAsGranted"),
        (asking("/spec/reason", json!("another")), "NotAsGranted"),
        (bent("/status/grant/expirationTime", json!("2026-03-01T09:01:00Z")), "TooLate"),
        (bent("/status/grant/expirationTime", json!("2026-03-01T08:00:00Z")), "TooLate"),
    ] {
        let no_key = delivery(at(1), at(0), &known(&granted()), Some(&read));
        let no_key = no_key.expect_err(&format!("a push on {}", serde_json::to_string(&read).unwrap()));
        assert_eq!(no_key.as_str(), word, "{}", serde_json::to_string(&read).unwrap());
        assert!(no_key.to_string().contains("web-1.team"), "{no_key}");
    }
    let gone = delivery(at(1), at(0), &known(&granted()), None).unwrap_err();
    assert_eq!(gone.to_string(), "the grant of web-1.team has ended: the request was deleted");
    // Another key in the spec, and status agrees.
    let mut other = asking("/spec/sshPublicKey", json!(OTHER_KEY));
    other.status.as_mut().unwrap().key.as_mut().unwrap().fingerprint =
        PublicKey::parse(OTHER_KEY).unwrap().fingerprint().to_owned();
    let no_key = delivery(at(1), at(0), &known(&granted()), Some(&other)).unwrap_err();
    assert_eq!(no_key.as_str(), "NotAsGranted");
}

#[test]
fn a_read_is_good_for_five_seconds_by_a_clock_that_does_not_step() {
    let ask = |now, asked| delivery(now, asked, &known(&granted()), Some(&granted())).map(|permit| permit.not_after());
    assert_eq!(ask(at(0), at(0)), Ok(at(5)));
    assert_eq!(ask(at(5), at(0)), Ok(at(5)));
    assert_eq!(ask(at(6), at(0)), Err(NoKey::Unconfirmed { request: "web-1.team".into() }));
    assert_eq!(ask(at(0), at(1)), Err(NoKey::Unconfirmed { request: "web-1.team".into() }), "it was stepped back");
    // 09:10:00 less 60 s and 10 s.
    assert_eq!(ask(at(529), at(528)), Ok(at(530)), "the grant's own end is nearer");
    assert_eq!(ask(at(530), at(530)), Ok(at(530)));
    let late = ask(at(531), at(531)).unwrap_err();
    assert_eq!(late.as_str(), "TooLate");
    assert!(late.to_string().contains("no new one is delivered in the last 70 s"), "{late}");
}

#[test]
fn an_end_that_was_known_to_be_earlier_counts() {
    let earlier = SessionGrant { expiration_time: at(100), ..known(&granted()) };
    let ask = |now| delivery(now, now, &earlier, Some(&granted())).map(|permit| permit.not_after());
    assert_eq!(ask(at(28)), Ok(at(30)));
    assert_eq!(ask(at(31)).unwrap_err().as_str(), "TooLate");
}

/// A grant as the gateway knows it: by name, login, delivery and the minute of its end.
fn login(name: &str, os_user: &str, delivery: KeyDelivery, minute: i64) -> Arc<SessionGrant> {
    let mut grant = known(&granted());
    grant.request.name = name.into();
    (grant.os_user, grant.delivery, grant.expiration_time) = (os_user.into(), delivery, at(minute * 60));
    Arc::new(grant)
}

#[test]
fn every_login_that_the_inner_ssh_may_be_has_its_key_pushed_and_only_what_gateways_push() {
    use KeyDelivery::{Continuous, OnConnect};
    let names = |chosen: &Arc<SessionGrant>, all: &[Arc<SessionGrant>], host: &str| {
        logins(at(0), chosen, all, host).iter().map(|grant| grant.request.name.clone()).collect::<Vec<_>>()
    };
    let own = login("own", "ec2-user", OnConnect, 10);
    let (root, root_longer) = (login("root", "root", OnConnect, 5), login("root-longer", "root", OnConnect, 8));
    let operators = login("operators", "ops", Continuous, 9);
    let bent = |change: &dyn Fn(&mut SessionGrant)| {
        let mut grant = (*login("bent", "admin", OnConnect, 9)).clone();
        change(&mut grant);
        Arc::new(grant)
    };
    let strangers = [
        bent(&|grant| grant.key_fingerprint = "SHA256:another".into()),
        bent(&|grant| grant.instance_id = InstanceId::parse("i-0fedcba9876543210").unwrap()),
        bent(&|grant| grant.port = 2222),
        bent(&|grant| grant.not_now = Some("ContactLost".into())),
        bent(&|grant| grant.expiration_time = at(0)),
    ];
    let mut all = vec![own.clone(), root, root_longer, operators.clone(), login("shorter", "ec2-user", OnConnect, 3)];
    all.extend(strangers);
    assert_eq!(names(&own, &all, INSTANCE), ["own", "root-longer"]);
    assert_eq!(names(&own, &all, "own.team"), ["own"], "a request's own name picks that request");
    assert_eq!(names(&operators, &all, INSTANCE), ["own", "root-longer"]);
    assert_eq!(names(&operators, &all, "operators.team"), [""; 0], "the operator pushes that one");
    let crowd: Vec<_> = (0..20).map(|n| login(&format!("n{n}"), &format!("u{n}"), OnConnect, 9)).collect();
    assert_eq!(logins(at(0), &crowd[3], &crowd, INSTANCE).len(), LOGINS_MAX);
    assert_eq!(logins(at(0), &crowd[3], &crowd, INSTANCE)[0], crowd[3]);
}

#[test]
fn what_aws_says_is_told_with_who_must_act() {
    for (class, word, part, passes) in [
        (FailureClass::Throttled, "Throttled", "try again in a few seconds", true),
        (FailureClass::Retry, "AwsUnavailable", "try again", true),
        (FailureClass::Bug, "AwsUnavailable", "tell the operators", false),
        (FailureClass::Refused, "AccessDenied", "the operators must mend its credentials or IAM policy", false),
        (FailureClass::Invalid, "PushRefused", "make a new request", false),
        (FailureClass::Gone, "InstanceNotRunning", "start it", false),
    ] {
        let failed = NoKey::Failed { request: "web-1.team".into(), class, code: "SomeException".into() };
        assert_eq!((failed.as_str(), failed.passes()), (word, passes));
        let text = failed.to_string();
        assert!(text.contains(part) && text.contains("web-1.team") && text.contains("SomeException"), "{text}");
    }
}

proptest! {
    /// In whatever order reads, ends, moved ends and steps of the clock come: no push leaves that could outlive the grant,
    /// none on a read that is older than its bound by the clock of both moments, none of a request that had ended when it was
    /// read.
    #[test]
    fn no_push_leaves_after_its_last_moment_and_none_on_a_request_that_is_over(
        known_end in 60..900i64, read_end in 60..900i64, asked in -100..900i64, judged in -100..900i64, left in -100..900i64,
        over in prop::option::of(0..5usize),
    ) {
        let grant = SessionGrant { expiration_time: at(known_end), ..known(&granted()) };
        let end = json!(at(read_end).to_string());
        let mut object = whole(|object| put(object, "/status/grant/expirationTime", end));
        let ends = [
            ("/spec/revoke", json!({})), ("/status/revocation", json!({"cause": "Revoked"})),
            ("/metadata/deletionTimestamp", json!("2026-03-01T09:00:00Z")), ("/metadata/uid", json!("u2")),
            ("/status/conditions/0", condition("Active", "True", "RevocationPending")),
        ];
        if let Some(over) = over {
            put(&mut object, ends[over].0, ends[over].1.clone());
        }
        let read: InstanceAccess = serde_json::from_value(object).unwrap();
        let permit = delivery(at(judged), at(asked), &grant, Some(&read));
        if let Some(_push) = permit.ok().and_then(|permit| permit.redeem(at(left))) {
            prop_assert!(over.is_none());
            prop_assert!(asked <= judged && judged <= asked + 5);
            prop_assert!(left <= asked + 5);
            let last = minus(minus(at(known_end.min(read_end)), KEY_WINDOW), PUSH_TIMEOUT);
            prop_assert!(at(left) <= last && since(last, at(judged)) <= since(last, at(asked)));
        }
    }
}
