//! Who may get what, row by row.

use kube::api::ObjectMeta;
use proptest::prelude::*;

use super::*;
use crate::api::{
    InstanceAccessPolicy, PolicyApproval, PolicyCondition, PolicyConnectionMethod, PolicyDelegate, PolicyKeys,
    PolicyTargets, PolicyTtl, PolicyWindow, ServiceAccountName, TagExpression, Weekday,
};
use crate::api::{SubjectKind, TagOperator, TagSelector};
use crate::domain::cloud::{AccountId, InstanceId, InstanceState, Region};
use crate::domain::node::Node;

mod delegates;
mod session;

const ED25519: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFfcsBlCiP8zjAovSSo3q1ARxbGaJuUh3l6diFgdIU4t";
const RSA_2048: &str = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQC6n6bekvkcY0vVwCXHP/z2+M75iMPnam3e4t/850mxBs1eaUU9TtXk7SFGvaEHINrYaPFvsC9wu7FouNAtCDJ+9XnGLZHSrsUEmSqQNy/LuJnrRGNKm5dXxhMdqNfwF82NYkycOQ5AJo/InNQLNQTl+0wSD1DsdKTlgHvzykJcH1eKg6wk6NcONLtwcqAHx3gWFsMkAG6ud2s7JiPpD03l2I38CaoWTNrzHVYxQdsoWKA+hteFkhTuouwkd31YokX9fRfmwOvoWMLjRrpVBCfvVgGowY5/+X5l/Cd6Wq/lj1+iHjW1qJrKFqS6c88EUsmVpvW8bfT+5H2QbBx4P1zz";

const MONDAY_NOON: &str = "2026-03-02T12:00:00Z";

/// A question with everything in it owned.
#[derive(Clone, Debug)]
struct Ask {
    now: Timestamp,
    granted: Option<Granted>,
    spec: InstanceAccessSpec,
    node: Option<Node>,
    requester: Identity,
    subject: Option<Identity>,
    created_time: Timestamp,
    namespace: String,
    os_user: String,
    key: &'static str,
    ttl_seconds: Option<i32>,
    key_delivery: KeyDelivery,
    reason: Option<String>,
    ticket: Option<String>,
    policy_name: Option<String>,
    instance: Option<Instance>,
    method: ConnectionMethod,
}

/// What the rows ask besides: only conditions read it.
fn spec() -> InstanceAccessSpec {
    serde_json::from_value(serde_json::json!({
        "target": {"tags": {"Name": "web-1"}, "region": "us-west-2"},
        "osUser": "ec2-user",
        "sshPublicKey": ED25519,
        "startTime": "2026-03-02T11:00:00Z",
    }))
    .unwrap()
}

fn ask() -> Ask {
    Ask {
        now: MONDAY_NOON.parse().unwrap(),
        granted: None,
        spec: spec(),
        node: None,
        requester: person("alice", &["developers", "system:authenticated"]),
        subject: None,
        created_time: MONDAY_NOON.parse().unwrap(),
        namespace: "team-a".into(),
        os_user: "ec2-user".into(),
        key: ED25519,
        ttl_seconds: Some(600),
        key_delivery: KeyDelivery::Continuous,
        reason: None,
        ticket: None,
        policy_name: None,
        instance: Some(instance()),
        method: ConnectionMethod::Direct,
    }
}

impl Ask {
    fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    fn of(&self, policies: &PolicySet) -> Outcome {
        let key = PublicKey::parse(self.key).unwrap();
        policies.evaluate(&self.question(&key))
    }

    fn question<'a>(&'a self, key: &'a PublicKey) -> Question<'a> {
        Question {
            now: self.now,
            granted: self.granted,
            requester: &self.requester,
            subject: self.subject.as_ref(),
            created_time: self.created_time,
            name: "fix-web-1",
            namespace: &self.namespace,
            spec: &self.spec,
            port: 22,
            region: None,
            instance_id: None,
            node: self.node.as_ref().map_or(AskedNode::None, AskedNode::Known),
            os_user: &self.os_user,
            key,
            ttl_seconds: self.ttl_seconds,
            key_delivery: self.key_delivery,
            reason: self.reason.as_deref(),
            ticket: self.ticket.as_deref(),
            policy_name: self.policy_name.as_deref(),
            instance: self.instance.as_ref(),
            method: self.method,
        }
    }
}

fn person(name: &str, groups: &[&str]) -> Identity {
    Identity {
        username: name.into(),
        groups: groups.iter().map(|group| (*group).to_owned()).collect(),
        ..Identity::default()
    }
}

fn instance() -> Instance {
    Instance {
        id: InstanceId::parse("i-0123456789abcdef0").unwrap(),
        account_id: AccountId::parse("123456789012").unwrap(),
        region: Region::parse("us-west-2").unwrap(),
        state: InstanceState::Running,
        availability_zone: None,
        vpc_id: Some("vpc-1".into()),
        subnet_id: None,
        private_ip: None,
        public_ip: None,
        ipv6: None,
        tags: [("env".to_owned(), "dev".to_owned()), ("empty".to_owned(), String::new())].into(),
    }
}

fn allow(name: &str) -> InstanceAccessPolicy {
    InstanceAccessPolicy {
        metadata: ObjectMeta { name: Some(name.into()), uid: Some(format!("uid-{name}")), ..ObjectMeta::default() },
        spec: InstanceAccessPolicySpec {
            effect: Effect::Allow,
            priority: None,
            subjects: vec![subject(SubjectKind::Group, "developers")],
            namespaces: vec!["*".into()],
            targets: PolicyTargets { instance_ids: Some(vec!["*".into()]), ..PolicyTargets::default() },
            os_users: vec!["ec2-user".into()],
            connection_methods: None,
            key_delivery: None,
            ttl: Some(PolicyTtl { default_seconds: 1800, max_seconds: 3600 }),
            keys: None,
            reason: None,
            ticket: None,
            approval: None,
            windows: None,
            limits: None,
            delegates: None,
            conditions: None,
            session: None,
        },
        status: None,
    }
}

fn deny(name: &str) -> InstanceAccessPolicy {
    policy(allow(name), |spec| {
        spec.effect = Effect::Deny;
        spec.ttl = None;
    })
}

fn policy(
    mut policy: InstanceAccessPolicy,
    change: impl FnOnce(&mut InstanceAccessPolicySpec),
) -> InstanceAccessPolicy {
    change(&mut policy.spec);
    policy
}

fn subject(kind: SubjectKind, name: &str) -> PolicySubject {
    PolicySubject { kind, name: name.into() }
}

fn set(policies: &[InstanceAccessPolicy]) -> PolicySet {
    PolicySet::new(policies.iter().map(|policy| Arc::new(Policy::compile(policy))))
}

/// Who decides, or the refusal.
fn decision(policies: &[InstanceAccessPolicy], ask: &Ask) -> Result<String, String> {
    ask.of(&set(policies)).decision.map(|admission| admission.policy.name)
}

#[track_caller]
fn admits(policies: &[InstanceAccessPolicy], ask: &Ask, name: &str) {
    assert_eq!(decision(policies, ask).as_deref(), Ok(name));
}

#[track_caller]
fn refuses(policies: &[InstanceAccessPolicy], ask: &Ask, part: &str) {
    let refusal = decision(policies, ask).expect_err("it should be refused");
    assert!(refusal.contains(part), "{refusal:?} does not say {part:?}");
}

#[test]
fn a_subject_is_matched_by_its_kind() {
    use SubjectKind::{Group, ServiceAccount, User};
    let robot = "system:serviceaccount:argocd:controller";
    let robots = ["system:serviceaccounts", "system:serviceaccounts:argocd", "system:authenticated", "developers"];
    let alice = ["developers", "system:authenticated"];
    #[rustfmt::skip]
    let rows: &[(SubjectKind, &str, &str, &[&str], bool)] = &[
        (User, "alice", "alice", &alice, true),
        (User, "alice", "Alice", &alice, false),
        (User, "alice", "alice2", &alice, false),
        (User, "alice", "", &alice, false),
        (User, "*", "alice", &alice, false),
        (User, "developers", "alice", &alice, false),
        (User, robot, robot, &robots, false),
        (User, "system:serviceaccount", "system:serviceaccount", &[], true),
        (User, "argocd/controller", robot, &robots, false),
        (Group, "developers", "alice", &alice, true),
        (Group, "alice", "alice", &alice, false),
        (Group, "developer", "alice", &alice, false),
        (Group, "*", "alice", &alice, false),
        (Group, "system:authenticated", "alice", &alice, true),
        (Group, "system:authenticated", robot, &robots, false),
        (Group, "developers", robot, &robots, false),
        (Group, "system:serviceaccounts", robot, &robots, true),
        (Group, "system:serviceaccounts:argocd", robot, &robots, true),
        (Group, "system:serviceaccounts:other", robot, &robots, false),
        (Group, "system:serviceaccountsx", robot, &["system:serviceaccountsx"], false),
        (Group, "system:serviceaccounts", "alice", &alice, false),
        (ServiceAccount, "argocd/controller", robot, &robots, true),
        (ServiceAccount, "argocd/other", robot, &robots, false),
        (ServiceAccount, "other/controller", robot, &robots, false),
        (ServiceAccount, "argocd:controller", robot, &robots, false),
        (ServiceAccount, robot, robot, &robots, false),
        (ServiceAccount, "argocd/*", robot, &robots, false),
        (ServiceAccount, "*", robot, &robots, false),
        (ServiceAccount, "/", "system:serviceaccount::", &robots, true),
        (ServiceAccount, "argocd/controller", "argocd/controller", &alice, false),
        (ServiceAccount, "argocd/controller", "system:serviceaccount:argocd:controller:more", &robots, false),
        (ServiceAccount, "argocd/controller:more", "system:serviceaccount:argocd:controller:more", &robots, true),
        (ServiceAccount, "argocd/controller", "system:serviceaccount:argocd", &robots, false),
        (ServiceAccount, "argocd/controller", "xsystem:serviceaccount:argocd:controller", &robots, false),
    ];
    for (kind, name, username, groups, expected) in rows {
        let found = names(&subject(*kind, name), &person(username, groups));
        assert_eq!(found, *expected, "{kind:?} {name} for {username} of {groups:?}");
    }
}

/// One change of the policy, one of the request, and what is said where it does not fit.
type Row = (&'static str, fn(&mut InstanceAccessPolicySpec), fn(&mut Ask));

fn tags(spec: &mut InstanceAccessPolicySpec, key: &str, operator: TagOperator, values: &[&str]) {
    spec.targets = PolicyTargets {
        instance_tags: Some(TagSelector {
            match_labels: None,
            match_expressions: Some(vec![TagExpression {
                key: key.into(),
                operator,
                values: (!values.is_empty()).then(|| values.iter().map(|value| (*value).to_owned()).collect()),
            }]),
        }),
        ..PolicyTargets::default()
    };
}

fn node_labels(spec: &mut InstanceAccessPolicySpec, labels: &[(&str, &str)]) {
    let match_labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    spec.targets.node_labels = Some(TagSelector { match_labels: Some(match_labels), match_expressions: None });
}

fn by_node(ask: &mut Ask) {
    let labels = [("role".to_owned(), "worker".to_owned())].into();
    ask.node = Some(Node { name: "ip-10-0-1-7".into(), provider_id: None, labels });
}

fn labels(spec: &mut InstanceAccessPolicySpec, labels: &[(&str, &str)]) {
    spec.targets = PolicyTargets {
        instance_tags: Some(TagSelector {
            match_labels: Some(labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()),
            match_expressions: None,
        }),
        ..PolicyTargets::default()
    };
}

fn some(value: &str) -> Option<Vec<String>> {
    Some(vec![value.to_owned()])
}

fn when(expression: &str, message: &str) -> Option<Vec<PolicyCondition>> {
    Some(vec![PolicyCondition { expression: expression.into(), message: message.into() }])
}

fn granted(until: &str) -> Option<Granted> {
    Some(Granted { seconds: 600, until: until.parse().unwrap() })
}

/// On Mondays, in UTC.
fn hours(start: &str, end: &str) -> PolicyWindow {
    PolicyWindow { days: vec![Weekday::Mon], start: start.into(), end: end.into(), time_zone: "UTC".into() }
}

fn text(required: bool, pattern: Option<&str>) -> Option<PolicyText> {
    Some(PolicyText { required: Some(required), pattern: pattern.map(str::to_owned) })
}

/// An empty word: it is admitted.
#[rustfmt::skip]
const ROWS: &[Row] = &[
    ("", |_| {}, |_| {}),
    // Subjects and namespaces.
    ("no policy is for this requester", |p| p.subjects.clear(), |_| {}),
    ("no policy is for this requester", |p| p.namespaces.clear(), |_| {}),
    ("no policy is for this requester", |p| p.namespaces = vec!["team".into()], |_| {}),
    ("no policy is for this requester", |p| p.namespaces = vec!["team-*".into()], |_| {}),
    ("", |p| p.namespaces = vec!["x".into(), "team-a".into()], |_| {}),
    ("no policy is for this requester", |_| {}, |a| a.requester.groups.clear()),
    // Logins.
    ("allows osUsers none", |p| p.os_users.clear(), |_| {}),
    ("allows osUsers ec2-user", |_| {}, |a| a.os_user = "root".into()),
    ("allows osUsers ec2-user", |_| {}, |a| a.os_user = "EC2-USER".into()),
    ("", |p| p.os_users = vec!["*".into()], |a| a.os_user = "root".into()),
    // Targets.
    ("names no targets", |p| p.targets = PolicyTargets::default(), |_| {}),
    ("allows accounts 1", |p| p.targets.accounts = some("1"), |_| {}),
    ("", |p| p.targets.accounts = some("123456789012"), |_| {}),
    ("allows accounts none", |p| p.targets.accounts = Some(vec![]), |_| {}),
    ("allows regions eu-central-1", |p| p.targets.regions = some("eu-central-1"), |_| {}),
    ("", |p| p.targets.regions = some("us-west-2"), |_| {}),
    ("allows regions none", |p| p.targets.regions = Some(vec![]), |_| {}),
    ("allows instances i-1", |p| p.targets.instance_ids = some("i-1"), |_| {}),
    ("", |p| p.targets.instance_ids = some("i-0123456789abcdef0"), |_| {}),
    ("allows instances none", |p| p.targets.instance_ids = Some(vec![]), |_| {}),
    ("allows VPCs vpc-2", |p| p.targets.vpc_ids = some("vpc-2"), |_| {}),
    ("", |p| p.targets.vpc_ids = some("vpc-1"), |_| {}),
    ("allows VPCs vpc-1", |p| p.targets.vpc_ids = some("vpc-1"), |a| a.instance.as_mut().unwrap().vpc_id = None),
    ("", |p| p.targets.vpc_ids = some("*"), |a| a.instance.as_mut().unwrap().vpc_id = None),
    ("allows VPCs none", |p| p.targets.vpc_ids = Some(vec![]), |a| a.instance.as_mut().unwrap().vpc_id = None),
    // An instance that is not known yet fits every target.
    ("", |p| p.targets.accounts = some("1"), |a| a.instance = None),
    ("", |p| labels(p, &[("env", "prod")]), |a| a.instance = None),
    ("", |p| p.targets = PolicyTargets::default(), |a| a.instance = None),
    // Tags.
    ("", |p| labels(p, &[("env", "dev")]), |_| {}),
    ("", |p| labels(p, &[("env", "dev"), ("empty", "")]), |_| {}),
    ("tags env=prod", |p| labels(p, &[("env", "prod")]), |_| {}),
    ("tags env=Dev", |p| labels(p, &[("env", "Dev")]), |_| {}),
    ("tags Env=dev", |p| labels(p, &[("Env", "dev")]), |_| {}),
    ("tags env=dev, x=y", |p| labels(p, &[("env", "dev"), ("x", "y")]), |_| {}),
    ("tags x=", |p| labels(p, &[("x", "")]), |_| {}),
    ("tags env=*", |p| labels(p, &[("env", "*")]), |_| {}),
    ("tags none", |p| labels(p, &[]), |_| {}),
    ("tags none", |p| p.targets = PolicyTargets { instance_tags: Some(TagSelector::default()), ..PolicyTargets::default() }, |_| {}),
    ("", |p| tags(p, "env", TagOperator::In, &["prod", "dev"]), |_| {}),
    ("tags env in (prod)", |p| tags(p, "env", TagOperator::In, &["prod"]), |_| {}),
    ("tags x in (prod)", |p| tags(p, "x", TagOperator::In, &["prod"]), |_| {}),
    ("tags env in ()", |p| tags(p, "env", TagOperator::In, &[]), |_| {}),
    ("tags env not in (dev)", |p| tags(p, "env", TagOperator::NotIn, &["dev"]), |_| {}),
    ("", |p| tags(p, "env", TagOperator::NotIn, &["prod"]), |_| {}),
    ("", |p| tags(p, "x", TagOperator::NotIn, &["prod"]), |_| {}),
    ("", |p| tags(p, "env", TagOperator::Exists, &[]), |_| {}),
    ("", |p| tags(p, "empty", TagOperator::Exists, &[]), |_| {}),
    ("tags x", |p| tags(p, "x", TagOperator::Exists, &[]), |_| {}),
    ("", |p| tags(p, "x", TagOperator::DoesNotExist, &[]), |_| {}),
    ("tags no env", |p| tags(p, "env", TagOperator::DoesNotExist, &[]), |_| {}),
    ("tags env=dev", |p| labels(p, &[("env", "dev")]), |a| a.instance.as_mut().unwrap().tags.clear()),
    // Nodes.
    ("", |p| node_labels(p, &[("role", "worker")]), by_node),
    ("selects nodes, by spec.target.nodeName, with the labels role=worker", |p| node_labels(p, &[("role", "worker")]), |_| {}),
    ("with the labels role=worker, x=y", |p| node_labels(p, &[("role", "worker"), ("x", "y")]), by_node),
    ("with the labels none", |p| node_labels(p, &[]), by_node),
    ("tags env=prod", |p| { labels(p, &[("env", "prod")]); node_labels(p, &[("role", "worker")]); }, by_node),
    // Known before the instance: it costs no look-up.
    ("with the labels role=db", |p| node_labels(p, &[("role", "db")]), |a| { by_node(a); a.instance = None; }),
    // Ways.
    ("", |p| p.connection_methods = Some(vec![PolicyConnectionMethod::Direct]), |_| {}),
    ("allows connectionMethods Endpoint", |p| p.connection_methods = Some(vec![PolicyConnectionMethod::Endpoint]), |_| {}),
    ("", |p| p.connection_methods = Some(vec![PolicyConnectionMethod::Endpoint]), |a| a.method = ConnectionMethod::Endpoint),
    ("", |p| p.connection_methods = Some(vec![PolicyConnectionMethod::Endpoint]), |a| a.method = ConnectionMethod::Auto),
    ("allows connectionMethods none", |p| p.connection_methods = Some(vec![]), |_| {}),
    ("allows connectionMethods none", |p| p.connection_methods = Some(vec![]), |a| a.method = ConnectionMethod::Auto),
    ("", |p| p.key_delivery = Some(vec![KeyDelivery::Continuous]), |_| {}),
    ("allows keyDelivery OnConnect", |p| p.key_delivery = Some(vec![KeyDelivery::OnConnect]), |_| {}),
    ("allows keyDelivery none", |p| p.key_delivery = Some(vec![]), |_| {}),
    // Time.
    ("", |_| {}, |a| a.ttl_seconds = Some(3600)),
    ("allows at most ttlSeconds 3600, asked were 3601", |_| {}, |a| a.ttl_seconds = Some(3601)),
    ("", |_| {}, |a| a.ttl_seconds = None),
    ("which has a mistake: spec.ttl is required", |p| p.ttl = None, |_| {}),
    ("spec.ttl.defaultSeconds must", |p| p.ttl = Some(PolicyTtl { default_seconds: 3601, max_seconds: 3600 }), |a| a.ttl_seconds = None),
    ("spec.ttl.defaultSeconds must", |p| p.ttl = Some(PolicyTtl { default_seconds: 0, max_seconds: 3600 }), |_| {}),
    // Keys.
    ("", |_| {}, |a| a.key = RSA_2048),
    ("allows keys of the types ED25519", |p| p.keys = Some(PolicyKeys { types: Some(vec![KeyType::ED25519]), min_rsa_bits: None }), |a| a.key = RSA_2048),
    ("allows keys of the types RSA", |p| p.keys = Some(PolicyKeys { types: Some(vec![KeyType::RSA]), min_rsa_bits: None }), |_| {}),
    ("allows keys of the types none", |p| p.keys = Some(PolicyKeys { types: Some(vec![]), min_rsa_bits: None }), |_| {}),
    ("wants RSA keys of at least 4096 bits, this has 2048", |p| p.keys = Some(PolicyKeys { types: None, min_rsa_bits: Some(4096) }), |a| a.key = RSA_2048),
    ("", |p| p.keys = Some(PolicyKeys { types: None, min_rsa_bits: Some(4096) }), |_| {}),
    ("", |p| p.keys = Some(PolicyKeys { types: None, min_rsa_bits: Some(2048) }), |a| a.key = RSA_2048),
    // Texts.
    ("requires spec.reason", |p| p.reason = text(true, None), |_| {}),
    ("requires spec.reason", |p| p.reason = text(true, None), |a| a.reason = Some(" \n".into())),
    ("", |p| p.reason = text(true, None), |a| a.reason = Some("x".into())),
    ("requires spec.reason, of the form ^INC-", |p| p.reason = text(true, Some("^INC-")), |_| {}),
    ("requires spec.reason of the form ^INC-", |p| p.reason = text(true, Some("^INC-")), |a| a.reason = Some("no INC-1".into())),
    ("requires spec.reason of the form ^INC-[0-9]+$", |p| p.reason = text(true, Some("^INC-[0-9]+$")), |a| a.reason = Some("INC-1\n".into())),
    ("requires spec.reason of the form ^INC-[0-9]+$", |p| p.reason = text(true, Some("^INC-[0-9]+$")), |a| a.reason = Some("x\nINC-1".into())),
    ("", |p| p.reason = text(true, Some("^INC-")), |a| a.reason = Some("INC-1".into())),
    ("", |p| p.reason = text(false, Some("^INC-")), |_| {}),
    ("requires spec.reason of the form ^INC-", |p| p.reason = text(false, Some("^INC-")), |a| a.reason = Some("x".into())),
    ("", |p| p.reason = Some(PolicyText::default()), |_| {}),
    ("requires spec.ticket", |p| p.ticket = text(true, None), |a| a.reason = Some("x".into())),
    ("requires spec.ticket of the form ^T", |p| p.ticket = text(true, Some("^T")), |a| a.ticket = Some("X".into())),
    ("", |p| p.ticket = text(true, Some("^T")), |a| a.ticket = Some("T".into())),
    // Windows. It is Monday, noon.
    ("", |p| p.windows = Some(vec![hours("08:00", "18:00")]), |_| {}),
    ("", |p| p.windows = Some(vec![hours("12:00", "12:02")]), |_| {}),
    ("", |p| p.windows = Some(vec![hours("08:00", "08:00")]), |_| {}),
    ("allows access at no time", |p| p.windows = Some(vec![]), |_| {}),
    ("allows access only at Mon 12:01-13:00 UTC, next from 2026-03-02T12:01:00Z: ask then, or set spec.startTime to it", |p| p.windows = Some(vec![hours("12:01", "13:00")]), |_| {}),
    ("allows access only at Mon 08:00-12:00 UTC, next from 2026-03-09T08:00:00Z", |p| p.windows = Some(vec![hours("08:00", "12:00")]), |_| {}),
    // Too little is left to deliver a key in, and have it gone again.
    ("next from 2026-03-09T08:00:00Z", |p| p.windows = Some(vec![hours("08:00", "12:01")]), |_| {}),
    ("", |p| p.windows = Some(vec![hours("08:00", "12:01"), hours("12:01", "12:03")]), |_| {}),
    // What lives, lives until the window closes, and not longer.
    ("", |p| p.windows = Some(vec![hours("08:00", "12:01")]), |a| a.granted = granted("2026-03-02T12:01:00Z")),
    ("allows access until 2026-03-02T12:01:00Z, when its window closes, and this was granted until 2026-03-02T12:01:01Z", |p| p.windows = Some(vec![hours("08:00", "12:01")]), |a| a.granted = granted("2026-03-02T12:01:01Z")),
    ("allows access only at", |p| p.windows = Some(vec![hours("08:00", "12:00")]), |a| a.granted = granted("2026-03-02T12:00:01Z")),
    // The named policy.
    ("", |_| {}, |a| a.policy_name = Some("developers".into())),
    ("spec.policyName names other, which is no policy for this requester", |_| {}, |a| a.policy_name = Some("other".into())),
];

#[test]
fn each_field_of_a_policy_does_what_its_doc_says() {
    for (number, (expected, change_policy, change_ask)) in ROWS.iter().enumerate() {
        let policies = [policy(allow("developers"), change_policy)];
        let ask = ask().with(change_ask);
        match decision(&policies, &ask) {
            Ok(_) => assert_eq!(*expected, "", "row {number} is admitted"),
            Err(refusal) => {
                assert!(
                    !expected.is_empty() && refusal.contains(expected),
                    "row {number}: {refusal:?}, not {expected:?}"
                );
            }
        }
    }
}

/// What narrows a Deny, narrows it; what is left out or unknown does not make it wider.
#[test]
fn a_deny_denies_what_it_matches_and_nothing_else() {
    #[rustfmt::skip]
    type Row = (bool, fn(&mut InstanceAccessPolicySpec), fn(&mut Ask));
    let rows: &[Row] = &[
        (true, |_| {}, |_| {}),
        (true, |p| p.os_users = vec!["*".into()], |_| {}),
        (true, |p| labels(p, &[("env", "dev")]), |_| {}),
        (true, |p| tags(p, "x", TagOperator::DoesNotExist, &[]), |_| {}),
        (true, |p| p.connection_methods = Some(vec![PolicyConnectionMethod::Direct]), |_| {}),
        (true, |_| {}, |a| a.method = ConnectionMethod::Auto),
        (true, |_| {}, |a| a.policy_name = Some("developers".into())),
        (true, |p| p.priority = Some(-9), |_| {}),
        // What it cannot enforce narrows it not.
        (true, |p| p.windows = Some(vec![]), |_| {}),
        (true, |p| node_labels(p, &[("role", "db")]), |_| {}),
        (true, |p| p.reason = text(true, Some("(")), |_| {}),
        (false, |p| p.os_users = vec!["root".into()], |_| {}),
        (false, |p| p.subjects.clear(), |_| {}),
        (false, |p| p.namespaces.clear(), |_| {}),
        (false, |p| labels(p, &[("env", "prod")]), |_| {}),
        (false, |p| p.connection_methods = Some(vec![PolicyConnectionMethod::Endpoint]), |_| {}),
        (
            false,
            |p| p.connection_methods = Some(vec![PolicyConnectionMethod::Endpoint]),
            |a| a.method = ConnectionMethod::Auto,
        ),
        (false, |p| p.key_delivery = Some(vec![KeyDelivery::OnConnect]), |_| {}),
        // Not before the instance is known.
        (false, |_| {}, |a| a.instance = None),
        (false, |p| labels(p, &[("env", "dev")]), |a| a.instance = None),
    ];
    for (number, (denies, change_policy, change_ask)) in rows.iter().enumerate() {
        let policies = [allow("developers"), policy(deny("freeze"), change_policy)];
        let ask = ask().with(change_ask);
        let found = decision(&policies, &ask);
        assert_eq!(found.is_err(), *denies, "row {number}: {found:?}");
        let key = PublicKey::parse(ask.key).unwrap();
        let pin = Policy::compile(&policies[0]).pin().clone();
        assert_eq!(set(&policies).still_admits(&pin, &ask.question(&key)).is_err(), *denies, "row {number}");
    }
    refuses(&[deny("freeze")], &ask(), "policy freeze denies alice as ec2-user on what has the tags Name=web-1");
}

#[test]
fn the_highest_priority_that_admits_decides_and_a_tie_goes_by_name() {
    let with = |name: &str, priority: i32| policy(allow(name), |spec| spec.priority = Some(priority));
    admits(&[with("b", 1), with("a", 1)], &ask(), "a");
    admits(&[with("a", 1), with("b", 2)], &ask(), "b");
    admits(&[allow("b"), with("a", -1)], &ask(), "b");
    admits(&[with("z", i32::MAX), with("a", i32::MIN)], &ask(), "z");
    let unfit = policy(with("a", 9), |spec| spec.os_users.clear());
    admits(&[unfit, with("b", 1)], &ask(), "b");
    // The one that decides gives its own default.
    let short = policy(with("a", 9), |spec| spec.ttl = Some(PolicyTtl { default_seconds: 120, max_seconds: 900 }));
    let outcome = ask().with(|ask| ask.ttl_seconds = None).of(&set(&[allow("b"), short]));
    assert_eq!(outcome.decision.unwrap().ttl_seconds, 120);
    admits(&[with("a", 9), with("b", 1)], &ask().with(|ask| ask.policy_name = Some("b".into())), "b");
}

#[test]
fn a_policy_with_a_mistake_admits_nothing_and_the_others_go_on() {
    let broken = |change: fn(&mut InstanceAccessPolicySpec)| policy(allow("a-broken"), change);
    #[rustfmt::skip]
    type Row = (&'static str, &'static str, fn(&mut InstanceAccessPolicySpec));
    let rows: &[Row] = &[
        ("InvalidPattern", "spec.reason.pattern", |p| p.reason = text(false, Some("("))),
        ("InvalidPattern", "spec.ticket.pattern", |p| p.ticket = text(false, Some("(?=x)"))),
        ("InvalidPattern", "spec.reason.pattern", |p| p.reason = text(true, Some(r"(x)\1"))),
        ("InvalidPattern", "spec.reason.pattern", |p| p.reason = text(true, Some("((a{999}){999}){999}"))),
        ("InvalidSpec", "spec.approval.approvers names nobody", |p| {
            p.approval =
                Some(PolicyApproval { count: 1, approvers: vec![], one_from_each: None, deadline_seconds: None })
        }),
        ("InvalidWindow", "spec.windows[1].timeZone: Mars/Base is no IANA time zone", |p| {
            p.windows = Some(vec![
                hours("08:00", "18:00"),
                PolicyWindow { time_zone: "Mars/Base".into(), ..hours("08:00", "18:00") },
            ]);
        }),
        ("InvalidWindow", "spec.windows[0].end: 24:00", |p| p.windows = Some(vec![hours("08:00", "24:00")])),
        ("InvalidCondition", "spec.conditions[0].expression: at line 1, column ", |p| {
            p.conditions = when("request.", "x")
        }),
        ("InvalidSpec", "spec.ttl is required", |p| p.ttl = None),
    ];
    for (reason, part, change) in rows {
        let compiled = Policy::compile(&broken(*change));
        let problem = compiled.problem().unwrap_or_else(|| panic!("{part}: no problem"));
        assert_eq!(problem.reason, *reason, "{part}");
        assert!(problem.message.contains(part), "{}", problem.message);
        refuses(&[broken(*change)], &ask(), "a-broken, which has a mistake: ");
        admits(&[broken(*change), allow("good")], &ask(), "good");
        let verdicts = ask().of(&set(&[broken(*change), allow("good")])).verdicts;
        assert_eq!(verdicts[1].verdict, Verdict::Invalid);
        let key = PublicKey::parse(ED25519).unwrap();
        assert!(set(&[broken(*change)]).still_admits(compiled.pin(), &ask().question(&key)).is_err());
    }
    let several = Policy::compile(&broken(|p| {
        p.reason = text(true, Some("("));
        p.windows = Some(vec![hours("08:00", "24:00")]);
    }));
    assert!(several.problem().unwrap().message.contains("; spec.windows[0].end: 24:00"));
    assert_eq!(Policy::compile(&allow("good")).problem(), None);
}

#[test]
fn what_is_admitted_is_told_when_the_window_closes() {
    let closes = |windows: &[PolicyWindow]| {
        let policies = set(&[policy(allow("a"), |spec| spec.windows = Some(windows.to_vec()))]);
        ask().of(&policies).decision.unwrap().closes.map(|closes| closes.to_string())
    };
    assert_eq!(closes(&[hours("08:00", "18:00")]).as_deref(), Some("2026-03-02T18:00:00Z"));
    assert_eq!(closes(&[hours("08:00", "18:00"), hours("17:00", "19:00")]).as_deref(), Some("2026-03-02T19:00:00Z"));
    assert_eq!(ask().of(&set(&[allow("a")])).decision.unwrap().closes, None);
}

#[test]
fn a_grant_is_the_word_of_one_policy_alone() {
    let key = PublicKey::parse(ED25519).unwrap();
    let pin = Policy::compile(&allow("developers")).pin().clone();
    let still = |policies: &[InstanceAccessPolicy]| set(policies).still_admits(&pin, &ask().question(&key));
    assert_eq!(still(&[allow("developers")]), Ok(()));
    assert_eq!(still(&[]), Err("policy developers was deleted".to_owned()));
    assert_eq!(still(&[allow("others")]), Err("policy developers was deleted".to_owned()));
    let mut again = allow("developers");
    again.metadata.uid = Some("another".into());
    assert_eq!(still(&[again]), Err("policy developers was deleted".to_owned()));
    assert_eq!(
        still(&[policy(allow("developers"), |spec| spec.os_users = vec!["ops".into()]), allow("others")]),
        Err("policy developers no longer admits this: it allows osUsers ops".to_owned())
    );
    // A better one changes nothing.
    assert_eq!(still(&[allow("developers"), policy(allow("a"), |spec| spec.priority = Some(9))]), Ok(()));
    assert_eq!(still(&[allow("developers"), deny("freeze")]), Err("policy freeze denies this".to_owned()));
}

#[test]
fn a_refusal_names_the_nearest_misses() {
    let refusal = |policies: &[InstanceAccessPolicy], ask: &Ask| decision(policies, ask).unwrap_err();
    insta::assert_snapshot!(refusal(&[], &ask()), @"no policy admits alice as ec2-user on what has the tags Name=web-1: no policy is for this requester in namespace team-a; ask whoever writes the InstanceAccessPolicies");
    let oncall = policy(allow("prod-oncall"), |spec| spec.os_users = vec!["ops".into(), "ec2-user".into()]);
    let root = ask().with(|ask| ask.os_user = "root".into());
    insta::assert_snapshot!(refusal(std::slice::from_ref(&oncall), &root), @"no policy admits alice as root on what has the tags Name=web-1; nearest is prod-oncall, which allows osUsers ops, ec2-user");
    let strict = policy(allow("a-strict"), |spec| {
        spec.reason = text(true, None);
        labels(spec, &[("env", "prod")]);
    });
    let secret = policy(allow("secret"), |spec| spec.subjects = vec![subject(SubjectKind::Group, "spies")]);
    insta::assert_snapshot!(refusal(&[strict, oncall, secret], &root.with(|ask| ask.ttl_seconds = Some(9999))), @"no policy admits alice as root on what has the tags Name=web-1; nearest is prod-oncall, which allows osUsers ops, ec2-user and allows at most ttlSeconds 3600, asked were 9999; then a-strict, which selects instances by the tags env=prod and allows osUsers ec2-user and allows at most ttlSeconds 3600, asked were 9999 and requires spec.reason");
    let many = policy(allow("many"), |spec| {
        spec.targets.instance_ids = Some((10..1000).map(|number| format!("i-{number:03}")).collect());
    });
    insta::assert_snapshot!(refusal(&[many], &ask()), @"no policy admits alice as ec2-user on what has the tags Name=web-1; nearest is many, which allows instances i-010, i-011, i-012, i-013, i-014, i-015, i-016, i-017 and 982 more");
}

#[test]
fn verdicts_are_ordered_by_nearness_and_bounded() {
    let policies = [
        policy(allow("no-match"), |spec| spec.subjects.clear()),
        policy(allow("invalid"), |spec| spec.ttl = None),
        policy(allow("far"), |spec| {
            spec.os_users.clear();
            spec.targets.regions = Some(vec![]);
        }),
        policy(allow("near"), |spec| spec.os_users.clear()),
        allow("admits"),
        deny("denies"),
    ];
    let names = |verdicts: Vec<PolicyVerdict>| verdicts.into_iter().map(|verdict| verdict.policy).collect::<Vec<_>>();
    let outcome = ask().of(&set(&policies));
    assert_eq!(names(outcome.verdicts), ["denies", "admits", "near", "far", "invalid", "no-match"]);
    let many: Vec<_> = (0..100).map(|number| allow(&format!("p{number:03}"))).chain([deny("zzz")]).collect();
    let verdicts = ask().of(&set(&many)).verdicts;
    assert_eq!((verdicts.len(), verdicts[0].policy.as_str()), (VERDICTS_MAX, "zzz"));
    let long = policy(allow("long"), |spec| spec.os_users = vec!["ü".repeat(5000)]);
    assert_eq!(ask().of(&set(&[long])).verdicts[0].reason.chars().count(), 1024);
}

fn any_policy() -> impl Strategy<Value = InstanceAccessPolicy> {
    (0..ROWS.len(), 0..ROWS.len(), any::<bool>(), -2..2i32, 0..6usize).prop_map(
        |(first, second, denies, priority, name)| {
            let base = if denies { deny(&format!("p{name}")) } else { allow(&format!("p{name}")) };
            policy(base, |spec| {
                ROWS[first].1(spec);
                ROWS[second].1(spec);
                spec.priority = Some(priority);
            })
        },
    )
}

fn any_ask() -> impl Strategy<Value = Ask> {
    (0..ROWS.len(), 0..ROWS.len(), any::<bool>()).prop_map(|(first, second, known)| {
        let mut ask = ask();
        ROWS[first].2(&mut ask);
        if ask.instance.is_some() || second < first {
            ask.instance.get_or_insert_with(instance);
            ROWS[second].2(&mut ask);
        }
        if !known {
            ask.instance = None;
        }
        ask
    })
}

proptest! {
    #[test]
    fn a_deny_more_never_admits_more(policies in prop::collection::vec(any_policy(), 0..5), more in any_policy(), ask in any_ask()) {
        let mut more = more;
        more.spec.effect = Effect::Deny;
        more.metadata.name = Some("more".into());
        let before = decision(&policies, &ask);
        let after = decision(&[policies.as_slice(), &[more]].concat(), &ask);
        prop_assert!(after.is_err() || after == before);
    }

    #[test]
    fn without_policies_nobody_is_admitted(policies in prop::collection::vec(any_policy(), 0..5), ask in any_ask()) {
        prop_assert!(decision(&[], &ask).is_err());
        let denies: Vec<_> = policies.into_iter().filter(|policy| policy.spec.effect == Effect::Deny).collect();
        prop_assert!(decision(&denies, &ask).is_err());
    }

    #[test]
    fn the_order_in_which_policies_were_seen_does_not_matter(policies in prop::collection::vec(any_policy(), 0..6), ask in any_ask(), turn in 0..6usize) {
        let mut policies = policies;
        policies.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        policies.dedup_by(|a, b| a.metadata.name == b.metadata.name);
        let outcome = ask.of(&set(&policies));
        let mut turned: Vec<_> = policies.iter().cycle().skip(turn).take(policies.len()).cloned().collect();
        turned.reverse();
        prop_assert_eq!(ask.of(&set(&turned)), outcome);
    }

    #[test]
    fn what_evaluates_to_a_grant_is_still_admitted_by_the_policy_that_made_it(policies in prop::collection::vec(any_policy(), 1..5), ask in any_ask()) {
        let mut policies = policies;
        policies.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        policies.dedup_by(|a, b| a.metadata.name == b.metadata.name);
        let policies = set(&policies);
        let key = PublicKey::parse(ask.key).unwrap();
        if let Ok(admission) = ask.of(&policies).decision {
            prop_assert_eq!(policies.still_admits(&admission.policy, &ask.question(&key)), Ok(()));
        }
    }

    #[test]
    fn what_is_refused_without_the_instance_is_refused_with_it(policies in prop::collection::vec(any_policy(), 0..5), ask in any_ask()) {
        let open = ask.clone().with(|ask| { ask.instance = None; ask.method = ConnectionMethod::Auto; });
        if decision(&policies, &open).is_err() {
            prop_assert!(decision(&policies, &ask).is_err());
        }
    }

    #[test]
    fn no_pattern_and_no_text_panics(pattern in ".{0,60}", reason in ".{0,60}", name in ".{0,40}", username in ".{0,40}") {
        let odd = policy(allow(&name), |spec| {
            spec.reason = text(true, Some(&pattern));
            spec.subjects.push(subject(SubjectKind::ServiceAccount, &name));
        });
        let ask = ask().with(|ask| { ask.reason = Some(reason); ask.requester.username = username; });
        let outcome = ask.of(&set(&[odd]));
        prop_assert!(outcome.verdicts.iter().all(|verdict| verdict.reason.chars().count() <= 1024));
    }
}

#[test]
fn a_target_reads_as_it_was_asked_for() {
    let long = "x".repeat(250);
    for (target, text) in [
        (serde_json::json!({"instanceId": "i-0123456789abcdef0"}), "i-0123456789abcdef0".to_owned()),
        (serde_json::json!({"nodeName": "ip-10-0-1-7"}), "the instance of node ip-10-0-1-7".to_owned()),
        (serde_json::json!({"tags": {"app": "web", "env": "dev"}}), "what has the tags app=web, env=dev".to_owned()),
        (serde_json::json!({"tags": {"app": long, "env": "development"}}), format!("what has the tags app={long},…")),
    ] {
        assert_eq!(asked_text(&serde_json::from_value(target).unwrap()), text);
    }
}

#[test]
fn a_policy_that_names_somebody_new_makes_more_words_count_and_one_that_goes_does_not() {
    let set = |policies: &[(&str, &[&str])]| {
        let policy = |(name, leads): &(&str, &[&str])| -> Arc<Policy> {
            let approvers: Vec<_> =
                leads.iter().map(|name| serde_json::json!({"kind": "User", "name": name})).collect();
            let policy = serde_json::json!({
                "apiVersion": "instanceaccess.dev/v1alpha1", "kind": "InstanceAccessPolicy",
                "metadata": {"name": name, "uid": name, "generation": 1},
                "spec": {
                    "effect": "Allow", "subjects": [{"kind": "User", "name": "alice"}], "namespaces": ["team"],
                    "targets": {"instanceIds": ["*"]}, "osUsers": ["*"],
                    "ttl": {"defaultSeconds": 600, "maxSeconds": 600}, "approval": {"count": 1, "approvers": approvers},
                },
            });
            Arc::new(Policy::compile(&serde_json::from_value(policy).unwrap()))
        };
        PolicySet::new(policies.iter().map(policy))
    };
    let before = set(&[("one", &["erin"]), ("two", &["frank"])]);
    for (after, expected) in [
        (set(&[("one", &["erin"]), ("two", &["frank"])]), false),
        (set(&[("one", &["erin"])]), false),
        (set(&[]), false),
        // Whose word counts, for whatever policy, was kept.
        (set(&[("one", &["frank"]), ("three", &["erin", "frank"])]), false),
        (set(&[("one", &["erin", "grace"]), ("two", &["frank"])]), true),
        (set(&[("one", &["erin"]), ("two", &["frank"]), ("three", &["grace"])]), true),
    ] {
        assert_eq!(after.has_new_approvers(&before), expected, "{after:?}");
    }
}
