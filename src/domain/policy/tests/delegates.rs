//! Who may ask for whom, row by row: what a delegate may not assert is as if nobody had asked.

use super::*;
use crate::api::SubjectKind::{Group, ServiceAccount, User};

const ROBOT: &str = "system:serviceaccount:argocd:robot";
const ROBOTS: [&str; 3] = ["system:serviceaccounts", "system:serviceaccounts:argocd", "system:authenticated"];
/// When the request was made: an hour before it is judged.
const MADE: &str = "2026-03-02T11:00:00Z";

fn delegate(namespace: &str, name: &str, usernames: Option<&[&str]>) -> PolicyDelegate {
    PolicyDelegate {
        service_account: ServiceAccountName { namespace: namespace.into(), name: name.into() },
        subject_usernames: usernames.map(|all| all.iter().map(|one| (*one).to_owned()).collect()),
        max_window_seconds: 28_800,
    }
}

fn robot(usernames: Option<&[&str]>) -> PolicyDelegate {
    delegate("argocd", "robot", usernames)
}

/// Alice, by her name, or whom else a robot asks for, as long as these delegates may.
fn by(delegates: &[PolicyDelegate]) -> InstanceAccessPolicy {
    policy(allow("git"), |spec| {
        spec.subjects =
            vec![subject(User, "alice"), subject(Group, "developers"), subject(ServiceAccount, "ci/runner")];
        spec.delegates = Some(delegates.to_vec());
    })
}

/// The robot asks for somebody, until seven hours after it was asked.
fn asserts(username: &str) -> Ask {
    ask().with(|ask| {
        ask.requester = person(ROBOT, &ROBOTS);
        ask.subject = Some(person(username, &[]));
        ask.created_time = MADE.parse().unwrap();
        ask.spec.end_time = time("2026-03-02T18:00:00Z");
    })
}

fn time(text: &str) -> Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time> {
    Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(text.parse().unwrap()))
}

#[test]
fn a_delegate_may_ask_for_those_whom_the_policy_lets_it() {
    let runner = "system:serviceaccount:ci:runner";
    #[rustfmt::skip]
    let rows: &[(Option<&[&str]>, &str, bool)] = &[
        // Left out: whom spec.subjects names by user name, and nobody by a group.
        (None, "alice", true),
        (None, runner, true),
        (None, "bob", false),
        (None, "Alice", false),
        (None, "alice ", false),
        (None, "developers", false),
        (None, "system:serviceaccount:ci:other", false),
        (None, "*", false),
        // A list is the whole of it.
        (Some(&["bob"]), "bob", true),
        (Some(&["bob"]), "alice", false),
        (Some(&["bob"]), runner, false),
        (Some(&[]), "alice", false),
        (Some(&[]), "bob", false),
        (Some(&[""]), "alice", false),
        (Some(&["*"]), "alice", true),
        (Some(&["*"]), "bob", true),
        (Some(&["bo*"]), "bob", false),
        // Everybody is every person.
        (Some(&["*"]), runner, false),
        (Some(&["*"]), "system:admin", false),
        (Some(&["*"]), "System:admin", false),
        (Some(&["*", runner]), runner, true),
        (Some(&["*", "system:admin"]), "system:admin", true),
    ];
    for (usernames, username, expected) in rows {
        let outcome = decision(&[by(&[robot(*usernames)])], &asserts(username));
        assert_eq!(outcome.is_ok(), *expected, "{usernames:?} for {username}: {outcome:?}");
        if let Err(refusal) = outcome {
            let part = format!(
                "no policy admits {username} (asked for by {ROBOT}) as ec2-user on what has the tags Name=web-1; nearest is git, which lets this delegate ask for others, and not for this spec.subject"
            );
            assert!(refusal.starts_with(&part), "{refusal}");
        }
    }
    // Two entries for one account: what either may.
    let two = by(&[robot(Some(&["bob"])), robot(None)]);
    admits(std::slice::from_ref(&two), &asserts("bob"), "git");
    admits(&[two], &asserts("alice"), "git");
}

#[test]
fn nobody_else_asks_for_others() {
    let policies = [by(&[robot(Some(&["*"]))])];
    let rows: &[(&str, &[&str])] = &[
        ("system:serviceaccount:argocd:other", &ROBOTS),
        ("system:serviceaccount:flux:robot", &["system:serviceaccounts", "system:serviceaccounts:flux"]),
        // Called like it, and no service account; or of another namespace's.
        (ROBOT, &["developers", "system:authenticated"]),
        (ROBOT, &["system:serviceaccounts", "system:serviceaccounts:flux"]),
        (ROBOT, &[]),
        ("argocd/robot", &ROBOTS),
        ("argocd:robot", &ROBOTS),
        ("robot", &ROBOTS),
        // Whom the policy names as subjects may ask for themselves alone.
        ("alice", &["developers", "system:authenticated"]),
        ("bob", &["developers", "system:authenticated"]),
        ("system:serviceaccount:ci:runner", &["system:serviceaccounts", "system:serviceaccounts:ci"]),
    ];
    for (username, groups) in rows {
        let asked = asserts("alice").with(|ask| ask.requester = person(username, groups));
        refuses(&policies, &asked, "no policy names who asks in spec.delegates, for namespace team-a");
        let verdict = &asked.of(&set(&policies)).verdicts[0];
        assert_eq!(
            (verdict.verdict, verdict.reason.as_str()),
            (Verdict::NoMatch, "is not for this delegate in this namespace")
        );
    }
    let none: &[Option<Vec<PolicyDelegate>>] = &[None, Some(vec![])];
    for delegates in none {
        let policies = [policy(by(&[]), |spec| spec.delegates.clone_from(delegates))];
        refuses(&policies, &asserts("alice"), "no policy names who asks in spec.delegates");
    }
    // A delegate in one namespace is none in another, and none of another policy.
    let elsewhere = policy(by(&[robot(None)]), |spec| spec.namespaces = vec!["team-b".into()]);
    refuses(&[elsewhere, allow("developers")], &asserts("alice"), "no policy names who asks in spec.delegates");
    // Names that could be read two ways are nobody's.
    let odd =
        by(&[delegate("argocd:robot", "x", None), delegate("argocd", "robot:x", None), delegate("", ROBOT, None)]);
    refuses(&[odd], &asserts("alice"), "no policy names who asks in spec.delegates");
}

#[test]
fn an_asserted_subject_is_in_no_group() {
    for group in ["developers", "system:authenticated", "system:serviceaccounts", "system:serviceaccounts:argocd"] {
        let policies = [policy(by(&[robot(None)]), |spec| spec.subjects = vec![subject(Group, group)])];
        refuses(&policies, &asserts("alice"), "and not for this spec.subject");
        refuses(&policies, &asserts(ROBOT), "and not for this spec.subject");
    }
    // Nor is a condition about groups true of them, whichever way it asks.
    for expression in [
        "'developers' in subject.groups",
        "!('contractors' in subject.groups)",
        "subject.groups.all(g, g != 'contractors')",
        "size(subject.extra) == 0",
        "subject.uid != 'u-mallory'",
    ] {
        let asked = policy(by(&[robot(None)]), |spec| spec.conditions = when(expression, "no"));
        refuses(&[asked], &asserts("alice"), "has a condition that does not hold: no");
    }
    for expression in [
        "subject.username == 'alice'",
        "request.requester.username == 'system:serviceaccount:argocd:robot'",
        "!has(subject.groups) && !has(subject.extra) && !has(subject.uid)",
    ] {
        let asked = policy(by(&[robot(None)]), |spec| spec.conditions = when(expression, "no"));
        admits(&[asked], &asserts("alice"), "git");
    }
}

#[test]
fn a_delegate_must_say_until_when_and_not_for_too_long() {
    let until = |text: &str| asserts("alice").with(|ask| ask.spec.end_time = time(text));
    let policies = [by(&[robot(None)])];
    for text in ["2026-03-02T19:00:00Z", "2026-03-02T12:01:00Z", "2026-03-02T10:00:00Z"] {
        admits(&policies, &until(text), "git");
    }
    for text in ["2026-03-02T19:00:01Z", "2026-03-02T19:00:00.000000001Z", "9998-12-31T23:59:59Z"] {
        refuses(
            &policies,
            &until(text),
            "allows its delegates a spec.endTime 28800 s after the request was made at the latest (maxWindowSeconds), which is 2026-03-02T19:00:00Z, asked was ",
        );
    }
    let endless = asserts("alice").with(|ask| ask.spec.end_time = None);
    refuses(
        &policies,
        &endless,
        "requires spec.endTime of its delegates, 28800 s after the request was made at the latest, which is 2026-03-02T19:00:00Z",
    );
    // It is the same whenever it is judged: the window is the request's, and not the look's.
    for now in ["2026-03-02T11:00:00Z", "2026-03-02T18:59:00Z", "2026-03-03T11:00:00Z"] {
        admits(&policies, &until("2026-03-02T19:00:00Z").with(|ask| ask.now = now.parse().unwrap()), "git");
        refuses(
            &policies,
            &until("2026-03-02T19:00:01Z").with(|ask| ask.now = now.parse().unwrap()),
            "(maxWindowSeconds)",
        );
    }
    // Of two entries the one that may assert the subject counts, and its longest.
    let seconds = |usernames, max_window_seconds| PolicyDelegate { max_window_seconds, ..robot(usernames) };
    let long_for_bob = by(&[seconds(Some(&["bob"]), 2_592_000), seconds(None, 3600)]);
    refuses(std::slice::from_ref(&long_for_bob), &until("2026-03-02T12:00:01Z"), "3600 s");
    admits(&[long_for_bob], &until("2026-03-02T12:00:00Z"), "git");
    admits(&[by(&[seconds(None, 120), seconds(Some(&["*"]), 3600)])], &until("2026-03-02T12:00:00Z"), "git");
    // A length that the CRD refuses admits nothing that is to come.
    for seconds in [by(&[seconds(None, 0)]), by(&[seconds(None, -1)]), by(&[seconds(None, i32::MIN)])] {
        refuses(&[seconds], &until("2026-03-02T11:00:01Z"), "(maxWindowSeconds)");
    }
}

#[test]
fn a_delegate_that_asks_for_itself_says_until_when_where_the_policy_names_it_as_one() {
    let own = asserts("x").with(|ask| ask.subject = None);
    let endless = own.clone().with(|ask| ask.spec.end_time = None);
    let named = policy(allow("own"), |spec| spec.subjects = vec![subject(ServiceAccount, "argocd/robot")]);
    admits(std::slice::from_ref(&named), &endless, "own");
    let both = policy(named, |spec| spec.delegates = Some(vec![robot(Some(&[]))]));
    refuses(std::slice::from_ref(&both), &endless, "requires spec.endTime of its delegates");
    admits(&[both], &own, "own");
    // To be a delegate is no access of one's own.
    refuses(&[by(&[robot(Some(&["*"]))])], &own, "no policy is for this requester");
}

#[test]
fn a_deny_is_about_whom_it_names_whether_they_ask_or_get_in() {
    let policies = |kind, name: &str| {
        let mut deny = deny("freeze");
        deny.spec.subjects = vec![subject(kind, name)];
        [by(&[robot(Some(&["*", ROBOT, "system:admin"]))]), deny]
    };
    for (kind, name) in [
        (User, "alice"),
        (ServiceAccount, "argocd/robot"),
        (Group, "system:serviceaccounts"),
        (Group, "system:serviceaccounts:argocd"),
        // Everybody is in it who has a name, so that a freeze for all people is one.
        (Group, "system:authenticated"),
    ] {
        refuses(
            &policies(kind, name),
            &asserts("alice"),
            &format!("policy freeze denies alice (asked for by {ROBOT}) as ec2-user"),
        );
    }
    // What it cannot see, or is not about.
    for (kind, name) in [(User, "bob"), (User, ROBOT), (Group, "developers"), (ServiceAccount, "argocd/alice")] {
        admits(&policies(kind, name), &asserts("alice"), "git");
    }
    // A service account is no person, whoever asserts it.
    admits(&policies(Group, "system:authenticated"), &asserts("system:admin"), "git");
    // One that cannot be read is about everybody.
    let mut all: Vec<_> = [by(&[robot(None)])].iter().map(|policy| Arc::new(Policy::compile(policy))).collect();
    all.push(Arc::new(Policy::undecodable(
        &ObjectMeta { name: Some("odd".into()), ..ObjectMeta::default() },
        false,
        "?",
    )));
    assert!(asserts("alice").of(&PolicySet::new(all)).decision.unwrap_err().starts_with("policy odd denies alice"));
}

#[test]
fn a_policy_with_delegates_is_what_it_was_for_people() {
    admits(&[by(&[robot(Some(&["*"]))])], &ask(), "git");
    admits(&[by(&[])], &ask(), "git");
    assert_eq!(Policy::compile(&by(&[robot(None)])).problem(), None);
    assert_eq!(Policy::compile(&by(&[])).problem(), None);
}

#[test]
fn a_request_by_a_delegate_may_name_the_policy_that_admits_it_and_no_other() {
    let named = |name: &str| asserts("alice").with(|ask| ask.policy_name = Some(name.into()));
    let policies = [by(&[robot(None)]), allow("developers")];
    admits(&policies, &named("git"), "git");
    refuses(&policies, &named("developers"), "no policy names who asks in spec.delegates");
}

#[test]
fn taking_the_delegate_or_the_subject_out_ends_what_it_was_granted() {
    let pin = Policy::compile(&by(&[robot(None)])).pin().clone();
    let key = PublicKey::parse(ED25519).unwrap();
    let asked = asserts("alice")
        .with(|ask| ask.granted = Some(Granted { seconds: 600, until: "2026-03-02T12:10:00Z".parse().unwrap() }));
    let still = |policy: InstanceAccessPolicy| set(&[policy]).still_admits(&pin, &asked.question(&key));
    assert_eq!(still(by(&[robot(None)])), Ok(()));
    assert_eq!(still(by(&[robot(Some(&["alice"]))])), Ok(()));
    let ended = |policy: InstanceAccessPolicy, part: &str| {
        let why = still(policy).expect_err(part);
        assert!(why.contains(part), "{why}");
    };
    ended(by(&[]), "is not for this delegate in this namespace");
    ended(by(&[delegate("argocd", "other", None)]), "is not for this delegate");
    ended(by(&[robot(Some(&[]))]), "and not for this spec.subject");
    ended(
        policy(by(&[robot(None)]), |spec| spec.subjects.retain(|it| it.kind == Group)),
        "and not for this spec.subject",
    );
    let shorter = PolicyDelegate { max_window_seconds: 3600, ..robot(None) };
    ended(by(&[shorter]), "(maxWindowSeconds)");
}
