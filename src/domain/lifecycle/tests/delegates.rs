//! A robot asks for alice: who is told, who may approve, and what takes it back.

use super::*;
use DecisionKind::{Approve, Revoke};

const ROBOT: &str = "system:serviceaccount:argocd:robot";
const GRANTED: &str = "Approved=True Active=True/Granted Ended=False/Granted";
const WAITING: &str = "Approved=Unknown Active=False/PendingApproval Reconciling=True";
const DENIED: &str = "Denied=True/DeniedByPolicy Active=False/Denied Ended=True/Denied Stalled=True";
const INVALID: &str = "Denied=True/InvalidSpec Active=False/Denied Ended=True/Denied Stalled=True";

pub(super) fn robot() -> Identity {
    let groups = ["system:serviceaccounts", "system:serviceaccounts:argocd", "system:authenticated"];
    Identity {
        username: ROBOT.into(),
        uid: Some("u-robot".into()),
        groups: groups.map(str::to_owned).to_vec(),
        ..Identity::default()
    }
}

pub(super) fn is_robot(who: &Identity) -> bool {
    who.username == ROBOT
}

/// The robot asks for alice, until a quarter past eight.
pub(super) fn asserts_alice(request: &mut InstanceAccess) {
    request.spec.requester = Some(robot());
    request.spec.subject = Some(SubjectName { username: "alice".into() });
    request.spec.end_time = Some(Time(at(900)));
}

/// As the developers' policy, for alice by name as well; the robot may ask for her, for 20 minutes from then on.
pub(super) fn developers() -> InstanceAccessPolicy {
    let mut policy = super::developers();
    policy.spec.subjects.push(PolicySubject { kind: SubjectKind::User, name: "alice".into() });
    May::Alice.change(&mut policy.spec);
    policy
}

/// What a policy lets delegates do.
#[derive(Clone, Copy, Debug)]
pub(super) enum May {
    Alice,
    Everybody,
    Bob,
    Nobody,
    NoDelegate,
    Another,
    NotSoLong,
}

impl May {
    pub(super) const ALL: [Self; 7] =
        [Self::Alice, Self::Everybody, Self::Bob, Self::Nobody, Self::NoDelegate, Self::Another, Self::NotSoLong];

    pub(super) fn change(self, spec: &mut InstanceAccessPolicySpec) {
        let usernames = |all: &[&str]| Some(all.iter().map(|one| (*one).to_owned()).collect());
        let mut delegate = PolicyDelegate {
            service_account: ServiceAccountName { namespace: "argocd".into(), name: "robot".into() },
            subject_usernames: None,
            max_window_seconds: 1200,
        };
        match self {
            Self::Alice => {}
            Self::Everybody => delegate.subject_usernames = usernames(&["*"]),
            Self::Bob => delegate.subject_usernames = usernames(&["bob"]),
            Self::Nobody => delegate.subject_usernames = usernames(&[]),
            Self::NoDelegate => {}
            Self::Another => delegate.service_account.name = "another".into(),
            Self::NotSoLong => delegate.max_window_seconds = 120,
        }
        if spec.effect == PolicyEffect::Allow {
            spec.delegates = (!matches!(self, Self::NoDelegate)).then(|| vec![delegate]);
        }
    }
}

fn asked() -> Life {
    Life::new(request(), vec![developers()], vec![Arc::new(instance())]).with(asserts_alice)
}

fn lead(name: &str) -> Identity {
    Identity { username: name.into(), ..erin() }
}

/// Somebody must approve, and alice and the robot are named for it.
fn waiting() -> Life {
    let named = |kind, name: &str| PolicySubject { kind, name: name.into() };
    let life = asked().under(|policy| {
        let approvers = vec![
            named(SubjectKind::Group, "leads"),
            named(SubjectKind::User, "alice"),
            named(SubjectKind::ServiceAccount, "argocd/robot"),
        ];
        policy.approval = Some(PolicyApproval { approvers, ..people::one_lead() });
    });
    let life = life.settled();
    life.shows(WAITING);
    life
}

#[test]
fn the_subject_gets_in_and_is_told_and_the_trail_names_both() {
    let life = asked().settled();
    life.shows(GRANTED);
    life.says(ConditionType::Approved, &format!("policy developers admits alice (asked for by {ROBOT}) for 600 s"));
    assert_eq!(life.kinds(), [RecordKind::GrantIntended, RecordKind::Granted]);
    let life = life.until(700);
    life.shows("Approved=True Active=False/Expired Ended=True/Expired");
    for (_, record) in &life.records {
        let who = record.requester.as_ref().map(|requester| requester.username.as_str());
        assert_eq!((who, record.subject.as_deref()), (Some(ROBOT), Some("alice")), "{:?}", record.kind);
    }
    // Of one's own request the trail names no subject.
    let own = world().settled();
    assert!(own.records.iter().all(|(_, record)| record.subject.is_none()) && !own.records.is_empty());
}

#[test]
fn the_end_time_ends_it_and_what_is_made_anew_after_it_never_begins() {
    let long = |request: &mut InstanceAccess| request.spec.ttl_seconds = Some(3600);
    let life = asked().with(long).settled();
    assert_eq!(life.expiration(), at(900));
    life.until(900).shows("Approved=True Active=False/Expired Ended=True/Expired");

    let anew = |request: &mut InstanceAccess| request.spec.end_time = Some(Time(at(0)));
    let life = asked().with(anew).settled();
    life.shows("Active=False/Expired Ended=True/Expired");
    life.says(ConditionType::Ended, "spec.endTime 2026-03-01T08:00:00Z is past");
    assert_eq!((life.status().grant, life.look_ups), (None, 0));
}

#[test]
fn whoever_asks_for_others_and_may_not_is_refused_for_what_is_wrong() {
    type Change = fn(&mut InstanceAccess);
    let rows: &[(Change, &str, &str)] = &[
        (|it| it.spec.requester = Some(alice()), GRANTED, ""),
        (
            |it| it.spec.requester = Some(bob()),
            INVALID,
            "spec.subject: bob may not ask for alice; only a service account",
        ),
        (
            // Called like the robot, by an authenticator that lets people choose.
            |it| it.spec.requester = Some(Identity { username: ROBOT.into(), ..alice() }),
            INVALID,
            "may not ask for alice; only a service account",
        ),
        (
            |it| it.spec.subject.as_mut().unwrap().username = "alice ".into(),
            INVALID,
            "spec.subject.username has blanks",
        ),
        (
            |it| it.spec.subject.as_mut().unwrap().username = "al\nice".into(),
            INVALID,
            "spec.subject.username has blanks",
        ),
        (|it| it.spec.subject.as_mut().unwrap().username = "mallory".into(), DENIED, "not for this spec.subject"),
        (|it| it.spec.subject.as_mut().unwrap().username = "developers".into(), DENIED, "not for this spec.subject"),
        (|it| it.spec.subject = None, DENIED, "no policy is for this requester"),
        (|it| it.spec.end_time = None, DENIED, "requires spec.endTime of its delegates"),
        (|it| it.spec.end_time = Some(Time(at(1201))), DENIED, "(maxWindowSeconds), which is 2026-03-01T08:20:00Z"),
        (|it| it.spec.policy_name = Some("other".into()), DENIED, "not the policy"),
    ];
    for (change, line, part) in rows {
        let life = asked().with(change).settled();
        assert_eq!(life.line(), *line, "{part}");
        let told = format!("{}{:?}", life.message(ConditionType::Denied), life.status().verdicts);
        assert!(told.contains(part), "{told}, not {part}");
        assert_eq!(life.landed() > 0, *line == GRANTED);
    }
}

#[test]
fn neither_the_subject_nor_who_asked_for_them_approves() {
    let mut life = waiting();
    life.says(ConditionType::Active, &format!("neither alice nor {ROBOT} may, and each person counts once"));
    life.decide(&alice(), Approve);
    // Alice, as whom a rule knows by more than her user name: the name is enough to be her.
    life.decide(&Identity { extra: [("sessionName".into(), vec!["a".into()])].into(), ..alice() }, Approve);
    life.decide(&Identity { username: "alice".into(), ..erin() }, Approve);
    life.decide(&robot(), Approve);
    life.settle();
    life.shows(WAITING);
    assert!(life.status().approvals.is_empty());
    life.decide(&erin(), Approve);
    let life = life.settled();
    life.shows(GRANTED);
    assert_eq!(life.status().approvers.as_deref(), Some("erin"));
}

#[test]
fn who_is_the_subject_by_another_name_is_for_the_operators_rule_to_say() {
    let admin = lead("alice-admin");
    let mut life = waiting();
    life.decide(&admin, Approve);
    life.settled().shows(GRANTED);
    let mut life = waiting();
    life.settings.principals = "user.username.startsWith('alice') ? 'alice' : user.username".parse().unwrap();
    life.decide(&admin, Approve);
    life.settled().shows(WAITING);
}

#[test]
fn a_rule_that_makes_nobody_of_a_bare_user_name_lets_nobody_be_asserted() {
    let mut life = asked();
    life.settings.principals = "user.uid".parse().unwrap();
    life.settle();
    life.shows(INVALID);
    life.says(
        ConditionType::Denied,
        "spec.subject: the operator's rule of who is who (--principal) makes nobody of alice",
    );
    let mut life = asked();
    life.settings.principals = "user.username == 'alice' ? 'alice' : ''".parse().unwrap();
    life.settle();
    life.says(
        ConditionType::Denied,
        &format!("spec.requester: the operator's rule of who is who (--principal) makes nobody of {ROBOT}"),
    );
}

#[test]
fn the_subject_and_who_asked_may_end_it() {
    for who in [alice(), robot()] {
        let mut life = asked().until(100);
        life.shows(GRANTED);
        life.decide(&who, Revoke);
        life.settle();
        life.shows("Approved=True Active=True/RevocationPending Reconciling=True");
        life.until(200).shows("Approved=True Active=False/Revoked Ended=True/Revoked");
    }
    let mut life = asked().until(100);
    life.decide(&bob(), Revoke);
    life.settled().shows(GRANTED);
}

#[test]
fn a_policy_that_no_longer_lets_the_robot_ask_takes_access_back() {
    let changes: &[(May, &str)] = &[
        (May::Bob, "not for this spec.subject"),
        (May::Nobody, "not for this spec.subject"),
        (May::NoDelegate, "is not for this delegate"),
        (May::Another, "is not for this delegate"),
        (May::NotSoLong, "(maxWindowSeconds)"),
    ];
    let ended = |change: &dyn Fn(&mut InstanceAccessPolicySpec), part: &str| {
        let mut life = asked().until(100);
        life.change_policies(false, |policies| change(&mut policies[0].spec));
        life.settle();
        life.shows("Approved=True Active=True/RevocationPending Reconciling=True");
        life.says(ConditionType::Active, part);
        life.change_policies(true, |policies| *policies = vec![developers()]);
        let life = life.until(160);
        life.shows("Approved=True Active=False/Revoked Ended=True/Revoked");
        assert_eq!(life.status().revocation.unwrap().cause, EndCause::PolicyChanged);
    };
    for (may, part) in changes {
        ended(&|spec| may.change(spec), part);
    }
    ended(&|spec| spec.subjects.retain(|named| named.kind == SubjectKind::Group), "not for this spec.subject");
    // What still lets it changes nothing.
    let mut life = asked().until(100);
    life.change_policies(true, |policies| May::Everybody.change(&mut policies[0].spec));
    life.until(200).shows(GRANTED);
    // A Deny that names either ends it.
    for named in [("alice", SubjectKind::User), ("argocd/robot", SubjectKind::ServiceAccount)] {
        let mut life = asked().until(100);
        life.change_policies(false, |policies| {
            let mut no = policy("no", PolicyEffect::Deny);
            no.spec.subjects = vec![PolicySubject { kind: named.1, name: named.0.into() }];
            policies.push(no);
        });
        life.settle();
        life.says(ConditionType::Active, "policy no denies this");
    }
}

#[test]
fn an_approval_counts_for_the_subject_that_was_seen() {
    let mut life = waiting();
    life.decide(&erin(), Approve);
    // Immutable, says the CRD; should somebody have changed that, the digest is another.
    life.edit_spec(|spec| spec.subject.as_mut().unwrap().username = "mallory".into());
    May::Everybody.change(&mut life.policies[0].spec);
    life.settle();
    life.shows(WAITING);
    let mut granted = asked().until(100);
    May::Everybody.change(&mut granted.policies[0].spec);
    granted.edit_spec(|spec| spec.subject.as_mut().unwrap().username = "mallory".into());
    granted.settle();
    granted.says(ConditionType::Active, "the spec is not the one that was granted");
}

#[test]
fn a_grant_for_another_survives_a_crash_and_is_the_same() {
    let mut life = asked().until(100);
    let grant = life.status().grant;
    life.crash();
    let life = life.until(200);
    life.shows(GRANTED);
    assert_eq!(life.status().grant, grant);
}
