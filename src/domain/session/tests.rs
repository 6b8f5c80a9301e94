use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::domain::time::plus;

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIInStMRqROkTDl0mY88lWxAMlcGJXz3IjvFhijzUrfeX alice@laptop";
pub(super) const INSTANCE: &str = "i-0123456789abcdef0";
const OTHER_INSTANCE: &str = "i-0fedcba9876543210";

pub(super) fn now() -> Timestamp {
    "2026-03-01T09:00:00Z".parse().unwrap()
}

pub(super) fn at(seconds: i64) -> Timestamp {
    if seconds < 0 {
        crate::domain::time::minus(now(), Duration::from_secs(seconds.unsigned_abs()))
    } else {
        plus(now(), Duration::from_secs(seconds.unsigned_abs()))
    }
}

fn fingerprint() -> String {
    PublicKey::parse(KEY).unwrap().fingerprint().to_owned()
}

/// A request as it stands while its grant lives.
pub(super) fn granted() -> InstanceAccess {
    serde_json::from_value(json!({
        "apiVersion": "instanceaccess.dev/v1alpha1",
        "kind": "InstanceAccess",
        "metadata": {"name": "web-1", "namespace": "team", "uid": "u1"},
        "spec": {
            "requester": {"username": "alice"},
            "target": {"instanceId": INSTANCE},
            "osUser": "ec2-user",
            "sshPublicKey": KEY,
        },
        "status": {
            "conditions": [condition("Active", "True", "Granted")],
            "grant": {"id": "g1", "startTime": "2026-03-01T08:59:00Z", "expirationTime": "2026-03-01T09:10:00Z"},
            "instance": {"instanceId": INSTANCE},
            "connection": {"method": "Direct", "address": "203.0.113.17", "port": 22, "command": "ssh"},
            "key": {"type": "ED25519", "bits": 256, "fingerprint": fingerprint()},
        },
    }))
    .unwrap()
}

fn condition(type_: &str, status: &str, reason: &str) -> serde_json::Value {
    json!({"type": type_, "status": status, "reason": reason, "message": "", "observedGeneration": 1,
           "lastTransitionTime": "2026-03-01T08:59:00Z"})
}

/// The request with something else at a JSON pointer; null takes it away.
fn bent(pointer: &str, value: serde_json::Value) -> InstanceAccess {
    let mut object = serde_json::to_value(granted()).unwrap();
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    let parent = object.pointer_mut(parent).unwrap();
    if let serde_json::Value::Array(items) = parent {
        items[field.parse::<usize>().unwrap()] = value;
    } else if value.is_null() {
        parent.as_object_mut().unwrap().remove(field).unwrap();
    } else {
        parent[field] = value;
    }
    serde_json::from_value(object).unwrap()
}

pub(super) fn grant() -> SessionGrant {
    match standing(&granted()) {
        Standing::Live(grant) => (*grant).clone(),
        other => panic!("{other:?}"),
    }
}

pub(super) fn arcs(grants: &[SessionGrant]) -> Vec<Arc<SessionGrant>> {
    grants.iter().cloned().map(Arc::new).collect()
}

/// No loopback, and two ports.
pub(super) fn dialling() -> Dialling {
    Dialling {
        never: Networks::new(vec!["127.0.0.0/8".parse().unwrap()]),
        ports: vec![22, 2222],
        private_vpcs: vec!["vpc-near".into()],
        endpoints: true,
    }
}

/// Asks for a session with the key of all these grants.
pub(super) fn asked(grants: &[SessionGrant], host: &str, port: u32) -> Result<DialPermit, Refusal> {
    let all = arcs(grants);
    let on = |id: &InstanceId| all.iter().filter(|grant| grant.instance_id == *id).cloned().collect();
    permit(now(), &all, on, host, port, &dialling())
}

#[track_caller]
pub(super) fn refused(grants: &[SessionGrant], host: &str, port: u32, word: &str) -> String {
    let refusal = asked(grants, host, port).expect_err("it was permitted");
    assert_eq!(refusal.as_str(), word, "{host:?}:{port}: {refusal}");
    refusal.to_string()
}

#[test]
fn a_request_counts_while_its_grant_lives_and_whatever_speaks_of_an_end_counts_at_once() {
    assert!(matches!(standing(&granted()), Standing::Live(_)));
    for (pointer, value, expected) in [
        ("/status", json!(null), Standing::Nothing),
        ("/status/grant", json!(null), Standing::Nothing),
        ("/metadata/deletionTimestamp", json!("2026-03-01T09:00:00Z"), Standing::Over(EndCause::Released)),
        ("/spec/revoke", json!({"reason": "done"}), Standing::Over(EndCause::Revoked)),
        ("/status/revocation", json!({"cause": "PolicyChanged"}), Standing::Over(EndCause::PolicyChanged)),
        ("/status/endTime", json!("2026-03-01T09:00:00Z"), Standing::Over(EndCause::Expired)),
        ("/status/conditions/0", condition("Ended", "True", "Expired"), Standing::Over(EndCause::Expired)),
        // What does not fit together opens nothing.
        ("/status/key/fingerprint", json!("SHA256:another"), Standing::Nothing),
        ("/spec/sshPublicKey", json!("ssh-ed25519 nonsense"), Standing::Nothing),
        ("/status/key", json!(null), Standing::Nothing),
        ("/status/connection", json!(null), Standing::Nothing),
        ("/status/connection/address", json!("web-1.example.com"), Standing::Nothing),
        ("/status/connection/port", json!(0), Standing::Nothing),
        ("/status/connection/port", json!(65536), Standing::Nothing),
        ("/status/connection/method", json!("Auto"), Standing::Nothing),
        ("/status/instance/instanceId", json!("web-1"), Standing::Nothing),
        ("/spec/requester", json!(null), Standing::Nothing),
        ("/metadata/uid", json!(null), Standing::Nothing),
    ] {
        assert_eq!(standing(&bent(pointer, value.clone())), expected, "{pointer} = {value}");
    }
}

#[test]
fn a_delegate_is_not_who_gets_in() {
    let of = |subject: &str| match standing(&bent("/spec/subject", json!({"username": subject}))) {
        Standing::Live(grant) => SessionGrant { key_fingerprint: subject.into(), ..(*grant).clone() },
        other => panic!("{other:?}"),
    };
    let (carol, dave) = (of("carol"), SessionGrant { os_user: "root".into(), grant_id: "g2".into(), ..of("dave") });
    assert_eq!((carol.requester.as_str(), carol.subject.as_str()), ("alice", "carol"));
    let others = |_: &InstanceId| arcs(&[carol.clone(), dave]);
    let permit = permit(now(), &arcs(std::slice::from_ref(&carol)), others, INSTANCE, 22, &dialling()).unwrap();
    assert_eq!(held(&permit), ["g1"], "two people of one delegate are two");
}

#[test]
fn only_what_is_granted_now_opens_a_session() {
    for (status, reason) in [
        ("False", "Granting"),
        ("False", "EnforcementMissing"),
        ("False", "ContactLost"),
        ("False", "InstanceNotRunning"),
        ("True", "RevocationPending"),
        ("False", "Granted"),
        ("Unknown", "Granted"),
    ] {
        let request = bent("/status/conditions/0", condition("Active", status, reason));
        let Standing::Live(grant) = standing(&request) else { panic!("{reason} is no end") };
        let told = refused(&[(*grant).clone()], INSTANCE, 22, "NotNow");
        assert!(told.contains("web-1.team") && told.contains(reason), "{told}");
    }
    let Standing::Live(unsaid) = standing(&bent("/status/conditions", json!([]))) else { panic!("no end") };
    refused(&[(*unsaid).clone()], INSTANCE, 22, "NotNow");
}

#[test]
fn a_grant_leads_to_its_instance_by_any_of_its_names() {
    let node = SessionGrant { node_name: Some("ip-10-0-1-2.ec2.internal".into()), ..grant() };
    for host in [INSTANCE, "web-1.team", "ip-10-0-1-2.ec2.internal"] {
        let permit = asked(std::slice::from_ref(&node), host, 22).unwrap();
        let (to, holds) = permit.redeem(now()).unwrap();
        assert_eq!(to.to_string(), "203.0.113.17:22", "{host}");
        assert_eq!(holds.iter().map(|hold| hold.grant_id.as_str()).collect::<Vec<_>>(), ["g1"]);
    }
}

/// A direct way, by these addresses of an instance in that VPC.
fn direct(chosen: &str, ipv6: Option<&str>, private: Option<&str>, vpc_id: &str) -> Way {
    let parsed = |text: &str| text.parse().unwrap();
    let (ipv6, private) = (ipv6.map(parsed), private.map(parsed));
    Way::Direct(Addresses { chosen: parsed(chosen), ipv6, private, vpc_id: Some(vpc_id.into()) })
}

#[test]
fn addresses_are_tried_in_order_each_once_and_a_private_one_where_it_means_the_instance() {
    let (public, six, private) = ("203.0.113.17", "2001:db8::17", "10.0.0.5");
    for (way, port, expected) in [
        (direct(public, None, None, "vpc-far"), 22, "203.0.113.17:22"),
        (direct(six, None, None, "vpc-far"), 2222, "[2001:db8::17]:2222"),
        (direct(six, Some(six), Some(private), "vpc-far"), 22, "[2001:db8::17]:22"),
        // Elsewhere 10.0.0.5 is somebody else.
        (direct(public, Some(six), Some(private), "vpc-far"), 22, "203.0.113.17:22, [2001:db8::17]:22"),
        (direct(private, None, Some(private), "vpc-far"), 22, "10.0.0.5:22"),
        (direct(public, Some(six), Some(private), "vpc-near"), 22, "10.0.0.5:22, 203.0.113.17:22, [2001:db8::17]:22"),
        (direct(private, None, Some(private), "vpc-near"), 22, "10.0.0.5:22"),
        // What is never dialled is left out.
        (direct(public, Some(six), Some("127.0.0.9"), "vpc-near"), 22, "203.0.113.17:22, [2001:db8::17]:22"),
        (direct("127.0.0.9", Some("fe80::1"), Some(private), "vpc-near"), 22, "10.0.0.5:22"),
    ] {
        let (to, _) = asked(&[SessionGrant { way: way.clone(), port, ..grant() }], INSTANCE, port.into())
            .unwrap()
            .redeem(now())
            .unwrap();
        assert_eq!(to.to_string(), expected, "{way:?}");
    }
    let never =
        SessionGrant { way: direct("127.0.0.9", Some("fe80::1"), Some("169.254.169.254"), "vpc-near"), ..grant() };
    refused(&[never], INSTANCE, 22, "NeverDialled");
}

#[test]
fn the_addresses_are_those_of_status() {
    let of = |facts: serde_json::Value| match standing(&bent("/status/instance", facts)) {
        Standing::Live(grant) => grant.way.clone(),
        other => panic!("{other:?}"),
    };
    let facts = json!({"instanceId": INSTANCE, "publicIp": "198.51.100.1", "ipv6": "2001:db8::17",
                       "privateIp": "10.0.0.5", "vpcId": "vpc-1"});
    let expected = direct("203.0.113.17", Some("2001:db8::17"), Some("10.0.0.5"), "vpc-1");
    assert_eq!(of(facts), expected, "of public ones only the operator's, which it keeps up to date");
    let nonsense = json!({"instanceId": INSTANCE, "ipv6": "10.0.0.6", "privateIp": "web-1", "vpcId": "vpc-1"});
    assert_eq!(of(nonsense), direct("203.0.113.17", None, None, "vpc-1"));
}

#[test]
fn whatever_else_is_asked_for_is_refused_and_what_could_be_asked_for_is_told() {
    for host in [
        "169.254.169.254",
        "[169.254.169.254]",
        "::ffff:169.254.169.254",
        "fd00:ec2::254",
        "127.0.0.1",
        "localhost",
        "::1",
        "0.0.0.0",
        "0",
        "2130706433",
        "0x7f.1",
        "203.0.113.17", // the instance's own address: names only, so that no address is ever the client's choice
        "::ffff:203.0.113.17",
        "10.96.0.1",
        "kubernetes.default.svc",
        OTHER_INSTANCE,
        "I-0123456789ABCDEF0",
        "i-0123456789abcdef0.",
        "i-0123456789abcdef",
        "i-0123456789abcdef00",
        "i-0123456789abcdef0\0",
        "i-0123456789abcdef0 ",
        " i-0123456789abcdef0",
        "i-0123456789abcdef0\n169.254.169.254",
        "web-1",
        "web-1.",
        "web-1.team.",
        "web-1.team.svc",
        ".team",
        "team.web-1",
        "web-1..team",
        "web-1.other",
        "",
        "*",
        "$(id)",
        "web-1.team;id",
        "wéb-1.team",
        "\u{202e}maet.1-bew",
    ] {
        let told = refused(&[grant()], host, 22, "UnknownDestination");
        assert!(told.contains("ask for i-0123456789abcdef0 (web-1.team)"), "{told}");
        assert!(told.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{told:?}");
    }
    let long = "a".repeat(100_000);
    assert!(refused(&[grant()], &long, 22, "UnknownDestination").len() < 400);
    assert!(refused(&[], INSTANCE, 22, "UnknownDestination").contains("make a request"));
}

#[test]
fn another_port_is_refused_and_the_granted_one_is_told() {
    for port in [0, 21, 23, 80, 2222, 65535, 65536 + 22, u32::MAX] {
        let told = refused(&[grant()], INSTANCE, port, "WrongPort");
        assert!(told.contains("ask for port 22"), "{told}");
    }
}

#[test]
fn a_port_that_the_requester_chose_and_the_gateway_does_not_dial_is_refused() {
    for port in [1, 21, 443, 5432, 65535] {
        let told = refused(&[SessionGrant { port, ..grant() }], INSTANCE, port.into(), "PortNotServed");
        assert!(told.contains(&port.to_string()) && told.contains("22, 2222"), "{told}");
    }
}

#[test]
fn an_ended_grant_is_refused_to_the_second_and_says_when_it_ended() {
    let ends = |time| SessionGrant { expiration_time: time, ..grant() };
    let told = refused(&[ends(now())], INSTANCE, 22, "Over");
    assert!(told.contains("ended at 2026-03-01T09:00:00Z"), "{told}");
    refused(&[ends(at(-3600))], INSTANCE, 22, "Over");
    let permit = asked(&[ends(at(1))], INSTANCE, 22).unwrap();
    let late = permit.redeem(at(1)).unwrap_err();
    assert_eq!(late.as_str(), "Over", "a permit that waited too long is of no use");
    assert!(!lets_in(now(), &arcs(&[ends(now())])));
    assert!(lets_in(now(), &arcs(&[ends(now()), ends(at(1))])));
    assert!(!lets_in(now(), &[]));
}

#[test]
fn an_address_that_no_instance_has_is_never_dialled_whatever_status_says() {
    for address in
        ["169.254.169.254", "127.0.0.1", "::ffff:127.0.0.1", "0.0.0.0", "224.0.0.1", "fd00:ec2::254", "fe80::1"]
    {
        let forged = bent("/status/connection/address", json!(address));
        let Standing::Live(grant) = standing(&forged) else { panic!("{address}") };
        refused(&[(*grant).clone()], INSTANCE, 22, "NeverDialled");
    }
}

/// A request whose instance is behind an endpoint, with something else at a JSON pointer.
fn behind_an_endpoint(pointer: &str, value: serde_json::Value) -> InstanceAccess {
    let mut object = serde_json::to_value(granted()).unwrap();
    object["status"]["connection"] = json!({"method": "Endpoint", "address": "10.0.0.5", "port": 22,
                                            "endpointId": "eice-1", "command": "ssh"});
    object["status"]["instance"] = json!({"instanceId": INSTANCE, "region": "us-west-2", "vpcId": "vpc-1"});
    if !pointer.is_empty() {
        *object.pointer_mut(pointer).unwrap() = value;
    }
    serde_json::from_value(object).unwrap()
}

#[test]
fn a_grant_through_an_endpoint_leads_to_a_tunnel_that_does_not_outlive_it() {
    let Standing::Live(grant) = standing(&behind_an_endpoint("", json!(null))) else { panic!("it is granted") };
    let root = SessionGrant { os_user: "root".into(), expiration_time: at(90), ..(*grant).clone() };
    let all = arcs(&[(*grant).clone(), root]);
    let others = |_: &InstanceId| all.clone();
    let permit = |now| permit(now, &all[..1], others, INSTANCE, 22, &dialling()).unwrap();
    let (to, holds) = permit(now()).redeem(now()).unwrap();
    assert_eq!(to.to_string(), "10.0.0.5:22 through eice-1");
    let Destination::Endpoint(to) = to else { panic!("{to:?}") };
    assert_eq!((to.place.region.as_str(), to.vpc_id.as_str()), ("us-west-2", "vpc-1"));
    assert_eq!(holds.len(), 2);
    assert_eq!(to.end_time, at(90), "it ends with the first login that it is held to");
    assert!(permit(at(87)).redeem(at(88)).is_ok());
    let over = Refusal::Over { request: "web-1.team".into(), expiration_time: at(90) };
    assert_eq!(permit(at(88)).redeem(at(89)), Err(over), "no tunnel for the last second");
}

#[test]
fn a_grant_through_an_endpoint_is_refused_with_the_way_that_there_is() {
    let Standing::Live(grant) = standing(&behind_an_endpoint("", json!(null))) else { panic!("it is granted") };
    let without = Dialling { endpoints: false, ..dialling() };
    let refusal = permit(now(), &[Arc::clone(&grant)], |_| Vec::new(), INSTANCE, 22, &without).unwrap_err();
    assert_eq!(refusal.as_str(), "Endpoint");
    assert!(refusal.to_string().contains("status.connection.command"), "{refusal}");
    // An endpoint's own rule, before the gateway's.
    let told = refused(&[SessionGrant { port: 2222, ..(*grant).clone() }], INSTANCE, 2222, "EndpointPort");
    assert!(told.contains("eice-1 connects to 22 and 3389 only"), "{told}");
    refused(&[SessionGrant { port: 3389, ..(*grant).clone() }], INSTANCE, 3389, "PortNotServed");
    let Standing::Live(forged) = standing(&behind_an_endpoint("/status/connection/address", json!("169.254.169.254")))
    else {
        panic!("it is granted")
    };
    refused(&[(*forged).clone()], INSTANCE, 22, "NeverDialled");
}

#[test]
fn an_endpoint_that_cannot_be_one_opens_nothing() {
    for (pointer, value) in [
        ("/status/connection/endpointId", json!(null)),
        ("/status/connection/endpointId", json!("")),
        ("/status/connection/endpointId", json!("eice-1&remotePort=5432")),
        ("/status/connection/endpointId", json!("../eice-1")),
        ("/status/connection/address", json!("localhost")),
        ("/status/instance/vpcId", json!(null)),
        ("/status/instance/vpcId", json!("vpc-*")),
        ("/status/instance/region", json!(null)),
        ("/status/instance/region", json!("example.com/")),
    ] {
        let request = behind_an_endpoint(pointer, value.clone());
        assert_eq!(standing(&request), Standing::Nothing, "{pointer} = {value}");
    }
}

/// One more grant: on an instance, of a name, for a login, for so many seconds.
pub(super) fn other(instance: &str, name: &str, os_user: &str, seconds: i64) -> SessionGrant {
    let request = RequestRef { name: name.into(), namespace: "team".into(), uid: format!("uid-{name}") };
    SessionGrant {
        request,
        grant_id: format!("g-{name}"),
        instance_id: InstanceId::parse(instance).unwrap(),
        os_user: os_user.into(),
        expiration_time: at(seconds),
        ..grant()
    }
}

pub(super) fn held(permit: &DialPermit) -> Vec<&str> {
    permit.holds().iter().map(|hold| hold.grant_id.as_str()).collect()
}

#[test]
fn several_grants_of_one_key_are_told_apart_by_destination() {
    let grants = [other(INSTANCE, "a", "ec2-user", 60), other(OTHER_INSTANCE, "b", "ec2-user", 60)];
    assert_eq!(held(&asked(&grants, INSTANCE, 22).unwrap()), ["g-a"]);
    assert_eq!(held(&asked(&grants, OTHER_INSTANCE, 22).unwrap()), ["g-b"]);
    assert_eq!(held(&asked(&grants, "b.team", 22).unwrap()), ["g-b"]);
}

#[test]
fn of_two_grants_for_one_login_the_longer_is_taken_and_a_name_picks_its_own() {
    let grants = [other(INSTANCE, "old", "ec2-user", 60), other(INSTANCE, "new", "ec2-user", 600)];
    for order in [grants.clone(), [grants[1].clone(), grants[0].clone()]] {
        assert_eq!(held(&asked(&order, INSTANCE, 22).unwrap()), ["g-new"]);
        assert_eq!(held(&asked(&order, "old.team", 22).unwrap()), ["g-old"]);
    }
    let unusable = SessionGrant { not_now: Some("Granting".into()), ..grants[1].clone() };
    assert_eq!(held(&asked(&[grants[0].clone(), unusable], INSTANCE, 22).unwrap()), ["g-old"]);
}

#[test]
fn a_session_outlives_no_other_login_that_its_client_has_there() {
    let (plain, root) = (other(INSTANCE, "plain", "ec2-user", 3600), other(INSTANCE, "root", "root", 60));
    let again = other(INSTANCE, "again", "root", 120);
    for host in [INSTANCE, "plain.team"] {
        // The inner SSH may log in as root, whatever grant opened the way: with root's end the session ends.
        assert_eq!(held(&asked(&[plain.clone(), root.clone()], host, 22).unwrap()), ["g-plain", "g-root"]);
        // Root is granted for longer by another request: that one counts.
        let all = [plain.clone(), root.clone(), again.clone()];
        assert_eq!(held(&asked(&all, host, 22).unwrap()), ["g-plain", "g-again"]);
    }
    // Also with another key of the same person; not with another person's grant, or on another instance, or one that is over.
    let own_other_key = SessionGrant { key_fingerprint: "SHA256:other".into(), ..root.clone() };
    let elsewhere = SessionGrant { instance_id: InstanceId::parse(OTHER_INSTANCE).unwrap(), ..root.clone() };
    let over = SessionGrant { expiration_time: now(), ..root.clone() };
    let bobs = SessionGrant { subject: "bob".into(), ..own_other_key.clone() };
    for (on_instance, expected) in [
        (own_other_key, &["g-plain", "g-root"][..]),
        (elsewhere, &["g-plain"]),
        (over, &["g-plain"]),
        (bobs, &["g-plain"]),
    ] {
        let others = |_: &InstanceId| arcs(&[plain.clone(), on_instance]);
        let permit = permit(now(), &arcs(std::slice::from_ref(&plain)), others, INSTANCE, 22, &dialling()).unwrap();
        assert_eq!(held(&permit), expected);
    }
}

#[test]
fn a_session_goes_on_until_its_grant_ends_and_is_cut_then() {
    let hold = || asked(&[grant()], INSTANCE, 22).unwrap().holds()[0].clone();
    let live = |seconds| Standing::Live(Arc::new(SessionGrant { expiration_time: at(seconds), ..grant() }));
    let another = Standing::Live(Arc::new(SessionGrant { grant_id: "g2".into(), ..grant() }));
    for (now, standing, expected) in [
        (at(0), live(600), Fate::Until(at(600))),
        (at(599), live(600), Fate::Until(at(600))),
        (at(600), live(600), Fate::Cut(SessionEnd::Expired)),
        (at(9999), live(600), Fate::Cut(SessionEnd::Expired)),
        // An end that moves earlier is followed, one that moves later is not.
        (at(0), live(60), Fate::Until(at(60))),
        (at(60), live(60), Fate::Cut(SessionEnd::Expired)),
        (at(600), live(6000), Fate::Cut(SessionEnd::Expired)),
        (at(0), Standing::Over(EndCause::Released), Fate::Cut(SessionEnd::Released)),
        (at(0), Standing::Over(EndCause::Revoked), Fate::Cut(SessionEnd::Revoked)),
        (at(0), Standing::Over(EndCause::PolicyChanged), Fate::Cut(SessionEnd::PolicyChanged)),
        (at(0), Standing::Nothing, Fate::Cut(SessionEnd::GrantChanged)),
        (at(0), another, Fate::Cut(SessionEnd::GrantChanged)),
    ] {
        assert_eq!(fate(now, &mut hold(), &standing), expected, "{now} {standing:?}");
    }
    let mut once_earlier = hold();
    assert_eq!(fate(at(0), &mut once_earlier, &live(60)), Fate::Until(at(60)));
    assert_eq!(fate(at(60), &mut once_earlier, &live(600)), Fate::Cut(SessionEnd::Expired), "an end never moves later");
}

#[test]
fn a_farewell_says_why_in_one_line_that_ssh_shows_whole() {
    let request = RequestRef { name: "n".repeat(253), namespace: "s".repeat(63), uid: String::new() };
    for end in SessionEnd::ALL {
        let text = end.farewell(&request);
        // OpenSSH shows 400 characters of a disconnect message.
        assert!(text.len() <= 400 && !text.contains('\n') && text.is_ascii(), "{end:?}: {text}");
    }
    insta::assert_snapshot!(SessionEnd::ALL.map(|end| end.farewell(&grant().request)).join("\n"), @"
    the grant of web-1.team has ended: its time is over; ask again with a new request
    the grant of web-1.team has ended: the request was deleted
    the grant of web-1.team has ended: it was revoked
    the grant of web-1.team has ended: the policy no longer admits it
    the grant of web-1.team is not the one that this session was opened under
    the session of web-1.team was idle for too long; connect again
    the gateway stops; connect again
    the session of web-1.team has ended
    the session of web-1.team has ended
    the session of web-1.team has ended
    the session of web-1.team has ended: an endpoint keeps none for over an hour; connect again
    ");
}

#[test]
fn the_records_of_a_session_name_who_and_where_and_what_passed() {
    let grant = grant();
    let permit = asked(std::slice::from_ref(&grant), INSTANCE, 22).unwrap();
    let opened = SessionRecord::opened(
        "gateway-0",
        &grant,
        permit.holds(),
        "192.0.2.7:50000".into(),
        printable("web-1.team:22"),
        "203.0.113.17:22".into(),
    );
    assert_eq!(opened.expiration_time, Time("2026-03-01T09:10:00Z".parse().unwrap()));
    let ended = opened.clone().ended(7, (1, u64::MAX), SessionEnd::Revoked, now());
    insta::assert_snapshot!(serde_json::to_string(&opened).unwrap(), @r#"{"kind":"SessionOpened","gateway":"gateway-0","request":{"namespace":"team","name":"web-1","uid":"u1"},"requester":"alice","subject":"alice","grantId":"g1","heldTo":["g1"],"keyFingerprint":"SHA256:+mVxjKne3xLrTNMqF9E3VUFQ1I7XmcajmMqwnrQqH4I","instanceId":"i-0123456789abcdef0","osUser":"ec2-user","source":"192.0.2.7:50000","asked":"web-1.team:22","destination":"203.0.113.17:22","expirationTime":"2026-03-01T09:10:00Z"}"#);
    let ended = serde_json::to_value(&ended).unwrap();
    assert_eq!(ended["openedSequence"], 7);
    assert_eq!((&ended["bytesToInstance"], &ended["bytesFromInstance"]), (&json!(1), &json!((1_u64 << 53) - 1)));
    assert_eq!((&ended["cause"], &ended["endTime"]), (&json!("Revoked"), &json!("2026-03-01T09:00:00Z")));
}

fn hosts() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(INSTANCE.to_owned()),
        Just("a.team".to_owned()),
        Just("169.254.169.254".to_owned()),
        ".{0,80}",
        "[a-z0-9.:-]{0,40}",
        proptest::collection::vec(any::<char>(), 0..200).prop_map(|chars| chars.into_iter().collect()),
    ]
}

proptest! {
    /// Whatever is asked for, nothing but a grant's own address and port is dialled, and never after its end.
    #[test]
    fn nothing_is_dialled_but_what_a_live_grant_of_the_key_names(
        host in hosts(),
        port in prop_oneof![Just(22_u32), any::<u32>()],
        grants in proptest::collection::vec((any::<bool>(), "[ab]", "(ec2-user|root)", -5_i64..5, any::<bool>()), 0..6),
    ) {
        let grants: Vec<SessionGrant> = grants
            .into_iter()
            .map(|(first, name, os_user, seconds, usable)| SessionGrant {
                not_now: (!usable).then(|| "Granting".to_owned()),
                ..other(if first { INSTANCE } else { OTHER_INSTANCE }, &name, &os_user, seconds)
            })
            .collect();
        match asked(&grants, &host, port) {
            Ok(permit) => {
                let grant = Arc::clone(permit.grant());
                prop_assert!(grants.contains(&grant) && now() < grant.expiration_time && grant.not_now.is_none());
                prop_assert!(host == grant.instance_id.as_str() || host == request_name(&grant.request));
                prop_assert_eq!(port, u32::from(grant.port));
                let earliest = permit.holds().iter().map(|hold| hold.cut_time).min().unwrap();
                prop_assert!(earliest <= grant.expiration_time);
                let (to, _) = permit.redeem(now()).unwrap();
                let Way::Direct(addresses) = &grant.way else { panic!("it is direct") };
                let own = std::net::SocketAddr::new(addresses.chosen, grant.port);
                prop_assert_eq!(to, Destination::Direct(vec![own]));
            }
            Err(refusal) => {
                let text = refusal.to_string();
                prop_assert!(text.len() < 1000 && text.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{}", text);
            }
        }
    }

    /// What a client sent is harmless wherever it is shown.
    #[test]
    fn what_a_client_sent_is_shown_bounded_and_plain(text in any::<String>()) {
        let shown = printable(&text);
        prop_assert!(shown.len() <= 67 && shown.chars().all(|c| c.is_ascii_graphic()), "{}", shown);
    }
}
