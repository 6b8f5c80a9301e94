use proptest::prelude::*;

use super::*;
use crate::api::{RequestRef, SubjectKind};

const UID: &str = "uid-1";
const DIGEST: &str = "d1";

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn identity(username: &str, groups: &[&str]) -> Identity {
    let groups = groups.iter().map(|group| (*group).to_owned()).collect();
    Identity { username: username.to_owned(), groups, ..Identity::default() }
}

/// By name: the people of these tests, each with their groups.
fn person(name: &str) -> Identity {
    match name {
        "erin" | "ernie" => identity(name, &["leads"]),
        "sam" | "sue" => identity(name, &["security"]),
        "frank" => identity(name, &["leads", "security"]),
        "robot" => identity("system:serviceaccount:team:robot", &["leads", "system:serviceaccounts"]),
        other => identity(other, &["developers"]),
    }
}

fn decided(kind: DecisionKind, who: &str, second: i64) -> Decision {
    let object = InstanceAccessDecision {
        metadata: kube::api::ObjectMeta {
            name: Some(format!("{who}-{second}")),
            uid: Some(format!("{kind:?}-{who}-{second}")),
            creation_timestamp: Some(Time(at(second))),
            ..kube::api::ObjectMeta::default()
        },
        spec: crate::api::InstanceAccessDecisionSpec {
            request_ref: RequestRef { name: "web-1".into(), uid: UID.into(), spec_digest: Some(DIGEST.into()) },
            decision: kind,
            reason: None,
            approver: Some(person(who)),
        },
    };
    Decision::read(&object, &rule()).expect("somebody's word")
}

/// alice and alice-admin are one person.
fn rule() -> PrincipalRule {
    "user.username == 'alice-admin' ? 'alice' : user.username".parse().unwrap()
}

fn approved(who: &str, second: i64) -> Decision {
    decided(DecisionKind::Approve, who, second)
}

fn kept(decisions: Vec<Decision>) -> Decisions {
    let mut kept = Decisions::none();
    for decision in decisions {
        kept.take(Arc::new(decision));
    }
    kept
}

fn group(name: &str) -> PolicySubject {
    PolicySubject { kind: SubjectKind::Group, name: name.to_owned() }
}

fn leads(count: i32) -> PolicyApproval {
    PolicyApproval { count, approvers: vec![group("leads")], one_from_each: None, deadline_seconds: None }
}

fn with_security(count: i32) -> PolicyApproval {
    PolicyApproval { one_from_each: Some(vec![group("security")]), ..leads(count) }
}

fn alice() -> Parties {
    Parties::new(&rule(), &person("alice"), None).unwrap()
}

/// Who counts, and who is missing, for a request that alice made at second 100.
#[track_caller]
fn check(approval: &PolicyApproval, decisions: Vec<Decision>, counted: &[&str], missing: &[(usize, &str)]) {
    let (parties, decisions) = (alice(), kept(decisions));
    let case = Case { uid: UID, spec_digest: DIGEST, created_time: at(100), parties: &parties };
    let standing = standing(&case, approval, at(1000), &decisions);
    let names: Vec<&str> = standing.counted.iter().map(|it| it.approver.username.as_str()).collect();
    assert_eq!(names, counted);
    let whom: Vec<(usize, &str)> = standing.missing.iter().map(|(count, whom)| (*count, whom.as_str())).collect();
    assert_eq!(whom, missing);
    assert_eq!(standing.is_complete(), missing.is_empty());
}

#[test]
fn an_approval_counts_for_exactly_what_was_seen() {
    let bent = |change: fn(&mut Decision)| {
        let mut decision = approved("erin", 200);
        change(&mut decision);
        vec![decision]
    };
    let none = [(1, "Group leads")];
    check(&leads(1), bent(|_| {}), &["erin"], &[]);
    check(&leads(1), bent(|it| it.request_uid = "uid-2".into()), &[], &none);
    check(&leads(1), bent(|it| it.spec_digest = Some("d2".into())), &[], &none);
    check(&leads(1), bent(|it| it.spec_digest = Some("D1".into())), &[], &none);
    check(&leads(1), bent(|it| it.spec_digest = None), &[], &none);
    check(&leads(1), bent(|it| it.kind = DecisionKind::Deny), &[], &none);
    check(&leads(1), bent(|it| it.kind = DecisionKind::Revoke), &[], &none);
    // Prepared before the request exists; two API servers' clocks may be a little apart.
    check(&leads(1), bent(|it| it.time = at(94)), &[], &none);
    check(&leads(1), bent(|it| it.time = at(95)), &["erin"], &[]);
    // At the deadline it is too late.
    check(&leads(1), bent(|it| it.time = at(999)), &["erin"], &[]);
    check(&leads(1), bent(|it| it.time = at(1000)), &[], &none);
}

#[test]
fn nobody_approves_their_own_request_by_whatever_name() {
    let everybody = PolicyApproval { approvers: vec![group("developers"), group("leads")], ..leads(1) };
    let missing = [(1, "Group developers, Group leads")];
    check(&everybody, vec![approved("alice", 200)], &[], &missing);
    check(&everybody, vec![approved("alice-admin", 200)], &[], &missing);
    check(&everybody, vec![approved("bob", 200)], &["bob"], &[]);
    // Of a request for another, neither approves; nor a subject by the name alone.
    let parties = Parties::new(&rule(), &person("bob"), Some("Carol")).unwrap();
    for (who, made) in [("bob", true), ("carol", true), ("Carol", true), ("alice", false)] {
        assert_eq!(parties.made(&approved(who, 200)), made, "{who}");
    }
    // Known by another name, as a session of EKS is: the user name is enough, however it is spelt.
    let mut by_session = approved("erin", 200);
    by_session.approver.username = "CAROL".to_owned();
    assert!(parties.made(&by_session));
    let nobody: PrincipalRule = "user.username == 'bob' ? 'bob' : ''".parse().unwrap();
    assert_eq!(Parties::new(&nobody, &person("alice"), None), None);
    assert_eq!(Parties::new(&nobody, &person("bob"), Some("carol")), None);
    // Who names themselves is who they are anyhow, also by a rule that asks for more than a user name.
    let strict: PrincipalRule = "user.groups.size() > 0 ? user.username : ''".parse().unwrap();
    let own = Parties::new(&strict, &identity("bob", &["x"]), Some("bob")).unwrap();
    assert!(own.made(&approved("bob", 200)) && !own.made(&approved("carol", 200)));
    assert_eq!(Parties::new(&strict, &identity("bob", &["x"]), Some("carol")), None);
}

#[test]
fn a_service_account_is_no_person_whatever_groups_it_has() {
    check(&leads(1), vec![approved("robot", 200)], &[], &[(1, "Group leads")]);
    let account = PolicySubject { kind: SubjectKind::ServiceAccount, name: "team/robot".to_owned() };
    let named = PolicyApproval { approvers: vec![account], ..leads(1) };
    check(&named, vec![approved("robot", 200)], &["system:serviceaccount:team:robot"], &[]);
}

#[test]
fn each_person_fills_one_place_and_as_many_places_are_filled_as_can_be() {
    let missing_lead = [(1, "Group leads")];
    let missing_security = [(1, "Group security")];
    check(&leads(2), vec![], &[], &[(2, "Group leads")]);
    check(&leads(2), vec![approved("erin", 200), approved("erin", 201)], &["erin"], &missing_lead);
    check(&leads(2), vec![approved("erin", 200), approved("ernie", 201)], &["erin", "ernie"], &[]);
    check(&leads(1), vec![approved("ernie", 201), approved("erin", 200)], &["erin"], &[]);
    check(&with_security(2), vec![approved("erin", 200)], &["erin"], &missing_security);
    check(&with_security(2), vec![approved("sam", 200), approved("erin", 201)], &["sam", "erin"], &[]);
    // Two of security are not one of each.
    check(&with_security(2), vec![approved("sam", 200), approved("sue", 201)], &["sam"], &missing_lead);
    // frank is of both groups and one person; he takes the place that nobody else can.
    check(&with_security(2), vec![approved("frank", 200)], &["frank"], &missing_lead);
    check(&with_security(2), vec![approved("frank", 200), approved("sam", 201)], &["frank", "sam"], &[]);
    check(&with_security(2), vec![approved("frank", 200), approved("erin", 201)], &["frank", "erin"], &[]);
    // More groups than people asked for: each group has its own.
    let both = PolicyApproval { one_from_each: Some(vec![group("security"), group("leads")]), ..leads(1) };
    check(&both, vec![approved("frank", 200)], &["frank"], &missing_lead);
    check(&both, vec![approved("frank", 200), approved("erin", 201)], &["frank", "erin"], &[]);
    // An empty list names nobody, and a count below one is one.
    check(&PolicyApproval { approvers: vec![], ..leads(1) }, vec![approved("erin", 200)], &[], &[(1, "nobody")]);
    check(&leads(0), vec![], &[], &missing_lead);
    check(&leads(-7), vec![approved("erin", 200)], &["erin"], &[]);
}

#[test]
fn whoever_the_policy_names_or_asked_may_close_and_nobody_else() {
    let parties = alice();
    let case = Case { uid: UID, spec_digest: "another", created_time: at(100), parties: &parties };
    let closes = |decision: Decision, approval: Option<&PolicyApproval>| {
        closing(&case, approval, &kept(vec![decision])).is_some()
    };
    let (deny, revoke) = (DecisionKind::Deny, DecisionKind::Revoke);
    for kind in [deny, revoke] {
        assert!(closes(decided(kind, "erin", 200), Some(&with_security(1))));
        assert!(closes(decided(kind, "sam", 200), Some(&with_security(1))));
        assert!(closes(decided(kind, "alice-admin", 200), None));
        assert!(closes(decided(kind, "erin", 5), Some(&leads(1))), "closing is never too early");
        assert!(!closes(decided(kind, "erin", 200), None));
        assert!(!closes(decided(kind, "bob", 200), Some(&leads(1))));
        assert!(!closes(decided(kind, "robot", 200), Some(&leads(1))));
        let mut elsewhere = decided(kind, "erin", 200);
        elsewhere.request_uid = "uid-2".into();
        assert!(!closes(elsewhere, Some(&leads(1))));
    }
    assert!(!closes(approved("erin", 200), Some(&leads(1))));
    let both = kept(vec![decided(revoke, "sam", 201), decided(deny, "erin", 200)]);
    assert_eq!(closing(&case, Some(&with_security(1)), &both).unwrap().approver.username, "erin", "the first");
}

#[test]
fn approvals_may_come_until_the_earlier_of_both_deadlines() {
    let within = |seconds| PolicyApproval { deadline_seconds: seconds, ..leads(1) };
    for (policy, asked, expected) in [
        (None, None, 86_400),
        (Some(600), None, 600),
        (None, Some(600), 600),
        (Some(600), Some(60), 60),
        (Some(60), Some(600), 60),
        (None, Some(2_592_000), 86_400),
        (Some(-1), Some(600), 0),
    ] {
        assert_eq!(deadline_time(at(100), &within(policy), asked), at(100 + expected), "{policy:?} {asked:?}");
    }
}

#[test]
fn what_can_never_count_need_not_be_kept() {
    let approvers = [group("leads")];
    let parties = alice();
    let counts = |kind, who: &str, parties: Option<&Parties>, unknown| {
        may_count(&decided(kind, who, 200), parties, unknown, approvers.iter())
    };
    let (approve, revoke) = (DecisionKind::Approve, DecisionKind::Revoke);
    assert!(counts(approve, "erin", Some(&parties), false) && counts(approve, "erin", None, true));
    assert!(!counts(approve, "bob", Some(&parties), false) && !counts(approve, "bob", None, true));
    assert!(!counts(approve, "alice", Some(&parties), false));
    assert!(counts(revoke, "alice-admin", Some(&parties), false) && counts(revoke, "bob", None, true));
    assert!(!counts(revoke, "bob", Some(&parties), false));
}

#[test]
fn a_flood_of_one_person_or_of_many_is_bounded_and_a_no_is_always_heard() {
    let mut kept = Decisions::none();
    for second in 0..10_000 {
        kept.take(Arc::new(approved("erin", second)));
    }
    assert_eq!((kept.len(), kept.is_overflowed()), (OF_ONE_PERSON_MAX, true));
    assert_eq!(kept.iter().last().unwrap().time, at(9999), "the newest are the ones that are meant");
    for person in 0..2_000 {
        kept.take(Arc::new(approved(&format!("person-{person}"), person)));
    }
    assert_eq!(kept.len(), OF_ONE_REQUEST_MAX);
    assert!(kept.take(Arc::new(decided(DecisionKind::Deny, "erin", 20_000))));
    assert!(kept.iter().any(|decision| decision.kind == DecisionKind::Deny));
    assert_eq!(kept.len(), OF_ONE_REQUEST_MAX);
    let uid = kept.iter().next().unwrap().uid.clone();
    assert!(kept.forget(&uid) && !kept.forget(&uid));
    assert!(kept.is_overflowed() && !Decisions::none().is_overflowed());
}

#[test]
fn nobodys_word_is_read_as_none() {
    let object = |approver: Option<Identity>| {
        let mut object = InstanceAccessDecision::new(
            "x",
            crate::api::InstanceAccessDecisionSpec {
                request_ref: RequestRef { name: "web-1".into(), uid: UID.into(), spec_digest: None },
                decision: DecisionKind::Deny,
                reason: Some("r".repeat(1000)),
                approver,
            },
        );
        object.metadata.uid = Some("u".into());
        object.metadata.creation_timestamp = Some(Time(at(0)));
        object
    };
    let nobody: PrincipalRule = "''".parse().unwrap();
    assert!(Decision::read(&object(None), &rule()).is_none());
    assert!(Decision::read(&object(Some(identity("", &["leads"]))), &rule()).is_none());
    assert!(Decision::read(&object(Some(person("erin"))), &nobody).is_none());
    // Being deleted, held by a finalizer: a yes is taken back, a no stays.
    let mut going = object(Some(person("erin")));
    going.metadata.deletion_timestamp = Some(Time(at(1)));
    assert!(Decision::read(&going, &rule()).is_some());
    going.spec.decision = DecisionKind::Approve;
    assert!(Decision::read(&going, &rule()).is_none());
    let read = Decision::read(&object(Some(person("erin"))), &rule()).unwrap();
    assert!(read.approver.extra.is_empty() && read.why().chars().count() == 256);
}

const PEOPLE: [&str; 9] = ["alice", "alice-admin", "bob", "erin", "ernie", "sam", "sue", "frank", "robot"];

fn any_decision() -> impl Strategy<Value = Decision> {
    let kinds = [DecisionKind::Approve, DecisionKind::Approve, DecisionKind::Approve, DecisionKind::Deny];
    let parts = (prop::sample::select(kinds.to_vec()), 0..PEOPLE.len(), 90..1010i64, 0..8u8);
    parts.prop_map(|(kind, who, second, bend)| {
        let mut decision = decided(kind, PEOPLE[who], second);
        match bend {
            0 => decision.request_uid = "uid-2".into(),
            1 => decision.spec_digest = Some("d2".into()),
            _ => {}
        }
        decision
    })
}

/// Tries every choice of people for the places, and says how many places can be filled.
fn most(places: &[&[PolicySubject]], people: &[Vec<Identity>]) -> usize {
    let Some((first, rest)) = places.split_first() else { return 0 };
    let without = most(rest, people);
    let with = (0..people.len())
        .filter(|person| people[*person].iter().any(|identity| first.iter().any(|subject| names(subject, identity))));
    let with = with.map(|person| {
        let mut others = people.to_vec();
        others.remove(person);
        1 + most(rest, &others)
    });
    with.max().unwrap_or_default().max(without)
}

proptest! {
    #[test]
    fn the_count_is_that_of_the_best_choice_of_people_and_no_order_changes_it(
        decisions in prop::collection::vec(any_decision(), 0..8),
        count in 1..4i32,
        each in prop::sample::subsequence(vec!["security", "leads", "developers"], 0..3),
    ) {
        let each = (!each.is_empty()).then(|| each.iter().map(|name| group(name)).collect());
        let approval = PolicyApproval { one_from_each: each, ..leads(count) };
        let parties = alice();
        let case = Case { uid: UID, spec_digest: DIGEST, created_time: at(100), parties: &parties };
        let (there, back) = (kept(decisions.clone()), kept(decisions.iter().rev().cloned().collect()));
        let found = standing(&case, &approval, at(1000), &there);
        // By hand: who is somebody else, and said yes to this, in time.
        let mut people: BTreeMap<String, Vec<Identity>> = BTreeMap::new();
        for it in &decisions {
            let is_about_it = &*it.request_uid == UID && it.spec_digest.as_deref() == Some(DIGEST);
            let in_time = (95..1000).contains(&(it.time.as_second() - 1_800_000_000));
            if it.kind == DecisionKind::Approve && is_about_it && in_time && !it.approver.username.starts_with("alice") {
                people.entry(it.principal.to_string()).or_default().push(it.approver.clone());
            }
        }
        let people: Vec<Vec<Identity>> = people.into_values().collect();
        let places = places(&approval);
        prop_assert_eq!(found.counted.len(), most(&places, &people));
        prop_assert_eq!(found.counted.len() + found.missing.iter().map(|(count, _)| count).sum::<usize>(), places.len());
        let mut principals: Vec<_> = found.counted.iter().map(|it| &it.principal).collect();
        principals.sort();
        principals.dedup();
        prop_assert_eq!(principals.len(), found.counted.len(), "each person once");
        prop_assert_eq!(found, standing(&case, &approval, at(1000), &back));
    }
}

#[test]
fn of_what_cannot_be_decoded_a_few_are_kept_and_each_can_be_deleted_or_read_after_all() {
    let unreadable = |number: usize| {
        let (name, uid) = (format!("odd-{number}"), format!("uid-of-odd-{number}"));
        Arc::new(Unreadable { name, uid, request_uid: UID.into(), time: at(200) })
    };
    let mut kept = kept(vec![approved("erin", 200)]);
    for number in 0..10_000 {
        kept.take_unreadable(unreadable(number));
    }
    assert_eq!((kept.len(), kept.unreadable(), kept.is_overflowed()), (1 + UNREADABLE_MAX, Some("odd-0"), true));
    assert!(!kept.take_unreadable(unreadable(1)), "once each");
    assert!(
        kept.is_any_fresh(at(260), Duration::from_secs(60)) && !kept.is_any_fresh(at(261), Duration::from_secs(60))
    );
    // It was stored anew; and those that were deleted.
    let mut said = approved("ernie", 300);
    said.uid = "uid-of-odd-0".into();
    assert!(kept.take(Arc::new(said.clone())) && !kept.take(Arc::new(said)));
    assert_eq!(kept.unreadable(), Some("odd-1"));
    for number in 1..UNREADABLE_MAX {
        assert!(kept.forget(&format!("uid-of-odd-{number}")));
    }
    assert_eq!((kept.len(), kept.unreadable()), (2, None));
    kept.retain(|decision| decision.approver.username == "erin");
    assert_eq!(kept.len(), 1);
}
