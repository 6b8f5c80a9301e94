//! The census against a plain list, and what an attacker tries.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::api::{Identity, InstanceAccessLedgerEntry};
use crate::domain::ledger;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

/// A request as its status tells of it: whether it has a grant, whether it is over, since when it is admitted.
fn request(uid: &str, who: &str, instance: &str, has_grant: bool, over: bool, admitted: Option<i64>) -> InstanceAccess {
    let time = |seconds| serde_json::to_value(Time(at(seconds))).unwrap();
    let condition = |type_: &str, seconds| json!({"type": type_, "status": "True", "reason": "X", "message": "x", "observedGeneration": 1, "lastTransitionTime": time(seconds)});
    let mut conditions: Vec<_> = admitted.map(|seconds| condition("Approved", seconds)).into_iter().collect();
    if over {
        conditions.push(condition("Ended", 0));
    }
    let mut status = json!({"conditions": conditions});
    if has_grant {
        status["grant"] = json!({"id": "g", "startTime": time(0), "expirationTime": time(600)});
        status["instance"] = json!({"instanceId": instance, "region": "us-west-2", "accountId": "123456789012"});
    }
    let object = json!({
        "apiVersion": "instanceaccess.dev/v1alpha1", "kind": "InstanceAccess",
        "metadata": {"name": "a", "namespace": "b", "uid": uid},
        "spec": {
            "requester": {"username": who, "groups": []}, "target": {"instanceId": instance},
            "osUser": "ec2-user", "sshPublicKey": "ssh-ed25519 AAAA",
        },
        "status": status,
    });
    serde_json::from_value(object).unwrap()
}

fn principal(name: &str) -> Principal {
    PrincipalRule::default().principal(&Identity { username: name.to_owned(), ..Identity::default() }).unwrap()
}

fn limits(subject: Option<i32>, instance: Option<i32>, hour: Option<i32>) -> PolicyLimits {
    PolicyLimits { active_per_subject: subject, active_per_instance: instance, requests_per_hour: hour }
}

fn claim(uid: &str, who: &str, instance: &str, limits: PolicyLimits, seconds: i64) -> Claim {
    let instance = InstanceMark(Mark::of(["123456789012", "us-west-2", instance]));
    Claim {
        uid: uid.to_owned(),
        subject: principal(who),
        instance,
        limits,
        time: at(seconds),
        is_new: true,
        is_grant: true,
    }
}

fn see(census: &mut Census, seconds: i64, request: &InstanceAccess) {
    census.see(at(seconds), &PrincipalRule::default(), request);
}

#[test]
fn a_place_is_taken_once_however_often_it_is_claimed_and_seen() {
    let mut census = Census::default();
    let two = limits(Some(2), None, Some(2));
    for _ in 0..3 {
        assert_eq!(census.claim(at(0), &claim("1", "alice", "i-1", two, 0)), Ok(()));
        see(&mut census, 0, &request("1", "alice", "i-1", false, false, None));
    }
    for _ in 0..3 {
        see(&mut census, 1, &request("1", "alice", "i-1", true, false, Some(0)));
        census.give_back("1");
    }
    assert_eq!(census.claim(at(2), &claim("2", "alice", "i-2", two, 2)), Ok(()));
    let full = census.claim(at(3), &claim("3", "alice", "i-3", two, 3)).unwrap_err();
    let free_time = at(3600);
    assert_eq!(full, [Full::Subject { live: 2 }, Full::Hour { admitted: 2, free_time }]);
    assert_eq!(census.claim(at(3), &claim("3", "bob", "i-3", two, 3)), Ok(()), "another's places are another's");
}

/// Something that happens to a census, with its name.
type Step<'a> = (&'static str, &'a dyn Fn(&mut Census));

#[test]
fn a_place_is_free_when_the_grant_ended_vanished_or_was_given_back() {
    let one = limits(Some(1), Some(1), None);
    let ends: [Step; 3] = [
        ("ended", &|census| see(census, 2, &request("1", "alice", "i-1", true, true, Some(0)))),
        ("vanished", &|census| census.forget("1")),
        ("given back", &|census| {
            see(census, 2, &request("1", "alice", "i-1", false, false, None));
            census.give_back("1");
        }),
    ];
    for (what, end) in ends {
        let mut census = Census::default();
        census.claim(at(0), &claim("1", "alice", "i-1", one, 0)).unwrap();
        if what != "given back" {
            see(&mut census, 1, &request("1", "alice", "i-1", true, false, Some(0)));
        }
        assert!(census.room(at(1), &claim("2", "alice", "i-1", one, 1)).is_err(), "{what}");
        end(&mut census);
        assert_eq!(census.claim(at(3), &claim("2", "alice", "i-1", one, 3)), Ok(()), "{what}");
    }
}

#[test]
fn what_was_never_claimed_counts_when_it_is_seen_to_live() {
    let mut census = Census::default();
    for number in 0..5 {
        see(&mut census, 1, &request(&number.to_string(), "ALICE ", "i-1", true, false, Some(0)));
    }
    let full = census.room(at(1), &claim("x", "alice", "i-1", limits(Some(5), Some(5), Some(5)), 1)).unwrap_err();
    let free_time = at(3600);
    assert_eq!(
        full,
        [Full::Subject { live: 5 }, Full::Instance { live: 5 }, Full::Hour { admitted: 5, free_time }],
        "one person by another spelling is one"
    );
    assert_eq!(census.room(at(1), &claim("x", "alice", "i-2", limits(Some(6), Some(1), Some(6)), 1)), Ok(()));
}

#[test]
fn a_claim_that_is_tried_again_for_another_instance_takes_the_place_there() {
    let mut census = Census::default();
    let one = limits(None, Some(1), None);
    for instance in ["i-1", "i-2"] {
        assert_eq!(census.claim(at(0), &claim("1", "alice", instance, one, 0)), Ok(()));
    }
    assert_eq!(census.room(at(0), &claim("2", "bob", "i-2", one, 0)), Err(vec![Full::Instance { live: 1 }]));
    assert_eq!(census.room(at(0), &claim("2", "bob", "i-1", one, 0)), Ok(()));
}

#[test]
fn a_limit_that_only_a_bent_crd_lets_through_admits_nobody() {
    for limit in [0, -1, i32::MIN] {
        let all = limits(Some(limit), Some(limit), Some(limit));
        let full = Census::default().claim(at(0), &claim("1", "alice", "i-1", all, 0)).unwrap_err();
        assert_eq!(full.len(), 3, "{limit}");
    }
}

#[test]
fn an_instance_of_the_same_id_elsewhere_is_another() {
    let mark = |account, region| InstanceMark(Mark::of([account, region, "i-1"]));
    assert_ne!(mark("1", "us-west-2"), mark("2", "us-west-2"));
    assert_ne!(mark("1", "us-west-2"), mark("1", "us-west-1"));
    assert_ne!(Mark::of(["ab", "c"]), Mark::of(["a", "bc"]));
}

#[test]
fn the_hour_slides_and_says_when_there_is_room_again() {
    let mut census = Census::default();
    let three = limits(None, None, Some(3));
    for (number, seconds) in [0, 600, 1200].into_iter().enumerate() {
        census.claim(at(seconds), &claim(&number.to_string(), "alice", "i-1", three, seconds)).unwrap();
    }
    for (seconds, expected) in
        [(1200, Some(3600)), (3599, Some(3600)), (3600, None), (4199, None), (4200, None), (9000, None)]
    {
        let room = census.room(at(seconds), &claim("x", "alice", "i-1", three, seconds));
        let expected = expected.map(|free| vec![Full::Hour { admitted: 3, free_time: at(free) }]);
        assert_eq!(room.err(), expected, "{seconds}");
    }
    let one = limits(None, None, Some(1));
    let full = census.room(at(1200), &claim("x", "alice", "i-1", one, 1200)).unwrap_err();
    assert_eq!(full, [Full::Hour { admitted: 3, free_time: at(4800) }], "all but none must have left");
}

#[test]
fn a_deleted_request_goes_on_counting_in_the_hour_and_a_refused_one_never_counts() {
    let mut census = Census::default();
    let one = limits(None, None, Some(1));
    see(&mut census, 0, &request("refused", "alice", "i-1", false, true, None));
    assert_eq!(census.claim(at(0), &claim("1", "alice", "i-1", one, 0)), Ok(()));
    see(&mut census, 1, &request("1", "alice", "i-1", true, true, Some(0)));
    census.forget("1");
    assert!(census.room(at(3599), &claim("2", "alice", "i-1", one, 3599)).is_err());
    assert_eq!(census.room(at(3600), &claim("2", "alice", "i-1", one, 3600)), Ok(()));
}

#[test]
fn a_clock_that_is_set_back_frees_no_place() {
    let mut census = Census::default();
    let one = limits(None, None, Some(1));
    census.claim(at(5000), &claim("1", "alice", "i-1", one, 5000)).unwrap();
    see(&mut census, 0, &request("other", "bob", "i-1", false, false, None));
    assert!(census.room(at(0), &claim("2", "alice", "i-1", one, 0)).is_err());
}

#[test]
fn what_no_longer_counts_takes_no_memory_and_no_subject_takes_more_than_its_share() {
    assert!(size_of::<(Mark, Entry)>() <= 64, "{}", size_of::<(Mark, Entry)>());
    let mut census = Census::default();
    for number in 0..2000 {
        let (uid, who) = (format!("uid-{number}"), format!("user-{number}"));
        census.claim(at(0), &claim(&uid, &who, &uid, PolicyLimits::default(), 0)).unwrap();
        see(&mut census, 0, &request(&uid, &who, &uid, true, true, Some(0)));
    }
    assert_eq!((census.requests.len(), census.instances.len()), (2000, 0));
    see(&mut census, 3700, &request("refused", "alice", "i-1", false, true, None));
    assert_eq!((census.requests.len(), census.subjects.len()), (0, 0));
    assert!(census.requests.capacity() < 100, "{}", census.requests.capacity());

    let many = HOUR_PLACES_MAX + 500;
    for number in 0..many {
        let seconds = 4000 + i64::try_from(number).unwrap() / 10;
        let claim =
            Claim { is_grant: false, ..claim(&number.to_string(), "eve", "i-1", PolicyLimits::default(), seconds) };
        census.claim(at(seconds), &claim).unwrap();
    }
    assert_eq!(census.requests.len(), HOUR_PLACES_MAX);
    assert_eq!(census.subjects.values().map(|subject| subject.hour.len()).sum::<usize>(), HOUR_PLACES_MAX);
    let most = limits(None, None, Some(10_000));
    assert!(census.room(at(5500), &claim("x", "eve", "i-1", most, 5500)).is_err(), "the largest limit is still kept");
}

/// What is left of a request of `who` whose grant began then.
fn left(uid: &str, who: &str, start: i64) -> InstanceAccessLedgerEntry {
    let mut request = request(uid, who, "i-1", true, true, Some(start));
    let status = request.status.as_mut().unwrap();
    status.grant.as_mut().unwrap().start_time = Time(at(start));
    ledger::entry(&PrincipalRule::default(), &request, request.status.as_ref().unwrap(), at(start)).unwrap()
}

#[test]
fn what_is_left_of_a_request_takes_its_place_in_the_hour_and_none_of_those_that_live() {
    let mut census = Census::default();
    for entry in [left("1", "ALICE ", 0), left("2", "alice", 60), left("3", "bob", 60), left("old", "alice", -3000)] {
        census.recall(at(600), &entry.spec);
    }
    let all = |hour| limits(Some(1), Some(1), Some(hour));
    assert_eq!(census.room(at(600), &claim("x", "alice", "i-1", all(3), 600)), Ok(()));
    let full = census.room(at(600), &claim("x", "alice", "i-1", all(2), 600)).unwrap_err();
    assert_eq!(full, [Full::Hour { admitted: 2, free_time: at(3600) }]);
    assert_eq!(census.room(at(3600), &claim("x", "alice", "i-1", all(2), 3600)), Ok(()));
}

#[test]
fn what_is_left_of_a_request_and_the_request_are_one_place_whichever_is_told_first() {
    let ends = request("1", "alice", "i-1", true, true, Some(0));
    let lives = request("1", "alice", "i-1", true, false, Some(0));
    let entry = left("1", "alice", 0).spec;
    let steps: [Step; 4] = [
        ("entry", &|census| census.recall(at(1), &entry)),
        ("ended", &|census| see(census, 1, &ends)),
        ("claimed", &|census| {
            census.claim(at(0), &claim("1", "alice", "i-1", limits(None, None, None), 0)).unwrap();
            see(census, 1, &lives);
            census.forget("1");
        }),
        ("entry again", &|census| census.recall(at(2), &entry)),
    ];
    for (first, one) in &steps {
        for (second, other) in &steps {
            let mut census = Census::default();
            one(&mut census);
            other(&mut census);
            let full =
                census.room(at(3), &claim("x", "alice", "i-1", limits(Some(1), Some(1), Some(1)), 3)).unwrap_err();
            assert_eq!(full, [Full::Hour { admitted: 1, free_time: at(3600) }], "{first}, then {second}");
        }
    }
    // It is there yet, and lives.
    let mut census = Census::default();
    see(&mut census, 1, &lives);
    census.recall(at(2), &entry);
    assert!(census.room(at(3), &claim("x", "bob", "i-1", limits(None, Some(1), None), 3)).is_err());
}

#[test]
fn what_is_left_counts_for_the_principal_and_not_for_the_user_name() {
    let mut entry = left("1", "arn:aws:sts::123456789012:assumed-role/dev/alice", 0).spec;
    entry.subject.principal = Some("alice".into());
    let mut census = Census::default();
    census.recall(at(1), &entry);
    let one = limits(None, None, Some(1));
    assert!(census.room(at(1), &claim("x", "alice", "i-1", one, 1)).is_err());
    assert_eq!(census.room(at(1), &claim("x", &entry.subject.username, "i-1", one, 1)), Ok(()));
    entry.subject.principal = None;
    let mut census = Census::default();
    census.recall(at(1), &entry);
    assert!(census.requests.is_empty() && census.subjects.is_empty(), "nobody knows whose it is");
}

#[test]
fn the_counts_are_right_when_requests_and_entries_were_both_seen() {
    let (mut requests, mut entries) = (Census::default(), Census::default());
    requests.requests_listed();
    entries.entries_listed();
    assert!(!requests.is_seen() && !entries.is_seen() && !Census::default().is_seen());
    requests.entries_listed();
    assert!(requests.is_seen());
}

/// What happens to a request of a small world.
#[derive(Clone, Copy, Debug)]
enum Turn {
    Claim { request: usize, is_grant: bool },
    Granted(usize),
    Ended(usize),
    GiveBack(usize),
    Forget(usize),
    Wait(i64),
}

const REQUESTS: usize = 8;

fn any_turn() -> impl Strategy<Value = Turn> {
    let request = 0..REQUESTS;
    prop_oneof![
        6 => (request.clone(), any::<bool>()).prop_map(|(request, is_grant)| Turn::Claim { request, is_grant }),
        3 => request.clone().prop_map(Turn::Granted),
        2 => request.clone().prop_map(Turn::Ended),
        2 => request.clone().prop_map(Turn::GiveBack),
        1 => request.prop_map(Turn::Forget),
        2 => (1..2000i64).prop_map(Turn::Wait),
    ]
}

/// A request of the plain list.
#[derive(Clone, Copy, Debug, Default)]
struct Plain {
    claimed: bool,
    live: bool,
    over: bool,
    admitted: Option<i64>,
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_census_counts_as_a_plain_list_does(turns in prop::collection::vec(any_turn(), 1..60)) {
        let who = |request: usize| ["alice", "bob"][request % 2];
        let on = |request: usize| ["i-1", "i-2", "i-3"][request % 3];
        let limits = limits(Some(2), Some(2), Some(3));
        let (mut census, mut plain, mut now) = (Census::default(), [Plain::default(); REQUESTS], 0);
        for turn in turns {
            match turn {
                Turn::Claim { request, .. } if plain[request].over => {}
                Turn::Claim { request, is_grant } => {
                    let others = |alike: &dyn Fn(usize) -> bool| {
                        (0..REQUESTS).filter(|other| *other != request && alike(*other) && (plain[*other].live || plain[*other].claimed)).count()
                    };
                    let own = plain[request];
                    // A place that left the hour is not asked for again: the request was admitted.
                    let is_new = own.admitted.is_none();
                    let counts = |other: usize| plain[other].admitted.is_some_and(|time| time > now - 3600);
                    let hour = (0..REQUESTS).filter(|other| who(*other) == who(request) && counts(*other)).count();
                    let fits = others(&|other| who(other) == who(request)) < 2
                        && others(&|other| on(other) == on(request)) < 2
                        && (!is_new || hour < 3);
                    let limits = PolicyLimits { requests_per_hour: limits.requests_per_hour.filter(|_| is_new), ..limits };
                    let claim = Claim { is_grant, is_new, ..claim(&request.to_string(), who(request), on(request), limits, now) };
                    prop_assert_eq!(census.claim(at(now), &claim).is_ok(), fits, "{:?} of {:?}", claim, plain);
                    if fits {
                        plain[request].claimed |= is_grant && !own.live;
                        plain[request].admitted = own.admitted.or(Some(now));
                    }
                }
                Turn::Granted(request) | Turn::Ended(request) if plain[request].over || !(plain[request].claimed || plain[request].live) => {}
                Turn::Granted(one) => {
                    plain[one] = Plain { claimed: false, live: true, ..plain[one] };
                    see(&mut census, now, &request(&one.to_string(), who(one), on(one), true, false, plain[one].admitted));
                }
                Turn::Ended(one) => {
                    plain[one] = Plain { claimed: false, live: false, over: true, ..plain[one] };
                    see(&mut census, now, &request(&one.to_string(), who(one), on(one), true, true, plain[one].admitted));
                }
                Turn::GiveBack(request) => {
                    prop_assert_eq!(census.is_claimed(&request.to_string()), plain[request].claimed);
                    plain[request].claimed = false;
                    census.give_back(&request.to_string());
                }
                Turn::Forget(request) => {
                    plain[request] = Plain { claimed: false, live: false, over: true, ..plain[request] };
                    census.forget(&request.to_string());
                }
                Turn::Wait(seconds) => now += seconds,
            }
        }
    }
}

#[test]
fn who_names_themselves_is_counted_as_who_they_are_without_it() {
    // On EKS a person is their session's name; of a subject that is asserted nothing but the user name is known.
    let mut object = request("1", "arn:aws:sts::1:assumed-role/dev/alice", "i-1", false, false, None);
    let requester = object.spec.requester.as_mut().unwrap();
    requester.extra.insert("sessionName".into(), vec!["alice".into()]);
    let rule = PrincipalRule::default();
    let without = who_gets_in(&rule, &object.spec);
    assert_eq!(without, Some(principal("alice")));
    let username = object.spec.requester.as_ref().unwrap().username.clone();
    object.spec.subject = Some(crate::api::SubjectName { username });
    assert_eq!(who_gets_in(&rule, &object.spec), without, "twice the places by writing one's own name");
}
