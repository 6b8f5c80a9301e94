//! The life of a request, told in the page's own words.
//!
//! [`world`] is a cluster, an AWS and a clock that stand still until they are told to move; [`Life`] lives in it.
//! Everything in here runs `invariants` after every step.

mod again;
mod before;
mod called_off;
mod crash;
mod delegates;
mod driver;
mod enforcement;
mod histories;
mod hostile;
mod ledger;
mod limits;
mod live;
mod nodes;
mod objects;
mod on_connect;
mod over;
mod people;
mod session;
mod settled;
mod unseen;
mod windows;

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::ObjectMeta;

use super::Effect;
use super::*;
use crate::api::Effect as PolicyEffect;
use crate::api::*;
use crate::domain::cloud::{AccountId, Endpoint, FailureClass, Instance, InstanceId, InstanceState, Place};
use crate::domain::enforcement::Looks;
use crate::domain::policy::Policy;
use crate::domain::push::PushPermit;

pub(super) use driver::{Fate, Life};

pub(super) const ED25519: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFfcsBlCiP8zjAovSSo3q1ARxbGaJuUh3l6diFgdIU4t";
/// The part of it that no message may show.
pub(super) const KEY_BODY: &str = "AAAAC3NzaC1lZDI1NTE5AAAAIFfcsBlCiP8zjAovSSo3q1ARxbGaJuUh3l6diFgdIU4t";
pub(super) const INSTANCE: &str = "i-0123456789abcdef0";
pub(super) const UID: &str = "5a3f6a0e-5f0f-4b43-9c1a-0d4f3ad1c001";

/// So many seconds after the request was made, at 08:00:00Z.
pub(super) fn at(seconds: i64) -> Timestamp {
    let zero: Timestamp = "2026-03-01T08:00:00Z".parse().unwrap();
    zero + jiff::SignedDuration::from_secs(seconds)
}

pub(super) fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(super) fn alice() -> Identity {
    Identity {
        username: "alice".into(),
        uid: Some("u-alice".into()),
        groups: vec!["developers".into(), "system:authenticated".into()],
        ..Identity::default()
    }
}

pub(super) fn bob() -> Identity {
    Identity { username: "bob".into(), uid: Some("u-bob".into()), ..alice() }
}

pub(super) fn erin() -> Identity {
    Identity { username: "erin".into(), groups: vec!["leads".into()], ..Identity::default() }
}

/// A request by alice for ec2-user on the instance, for ten minutes, made at 08:00:00Z.
pub(super) fn request() -> InstanceAccess {
    InstanceAccess {
        metadata: ObjectMeta {
            name: Some("fix-web-1".into()),
            namespace: Some("team-a".into()),
            uid: Some(UID.into()),
            generation: Some(1),
            resource_version: Some("1".into()),
            creation_timestamp: Some(Time(at(0))),
            finalizers: Some(vec![FINALIZER.into()]),
            ..ObjectMeta::default()
        },
        spec: InstanceAccessSpec {
            requester: Some(alice()),
            subject: None,
            target: Target {
                instance_id: Some(INSTANCE.into()),
                node_name: None,
                tags: None,
                region: None,
                account_id: None,
            },
            os_user: "ec2-user".into(),
            ssh_public_key: ED25519.into(),
            connection: None,
            key_delivery: None,
            ttl_seconds: Some(600),
            start_time: None,
            end_time: None,
            approval_deadline_seconds: None,
            reason: Some("the disk is full".into()),
            ticket: None,
            policy_name: None,
            revoke: None,
        },
        status: Some(InstanceAccessStatus { observed_generation: Some(-1), ..InstanceAccessStatus::default() }),
    }
}

/// Developers as ec2-user on what is tagged env=dev, for half an hour, at most an hour.
pub(super) fn developers() -> InstanceAccessPolicy {
    policy("developers", PolicyEffect::Allow)
}

pub(super) fn policy(name: &str, effect: PolicyEffect) -> InstanceAccessPolicy {
    let is_allow = effect == PolicyEffect::Allow;
    InstanceAccessPolicy {
        metadata: ObjectMeta {
            name: Some(name.into()),
            uid: Some(format!("uid-of-{name}")),
            generation: Some(1),
            ..ObjectMeta::default()
        },
        spec: InstanceAccessPolicySpec {
            effect,
            priority: None,
            subjects: vec![PolicySubject { kind: SubjectKind::Group, name: "developers".into() }],
            namespaces: vec!["*".into()],
            targets: PolicyTargets {
                instance_tags: Some(TagSelector {
                    match_labels: Some([("env".to_owned(), "dev".to_owned())].into()),
                    match_expressions: None,
                }),
                ..PolicyTargets::default()
            },
            os_users: vec!["ec2-user".into()],
            connection_methods: None,
            key_delivery: None,
            ttl: is_allow.then_some(PolicyTtl { default_seconds: 1800, max_seconds: 3600 }),
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

/// On one day of the week, in UTC. The world begins on a Sunday.
pub(super) fn hours(day: Weekday, start: &str, end: &str) -> PolicyWindow {
    PolicyWindow { days: vec![day], start: start.into(), end: end.into(), time_zone: "UTC".into() }
}

/// A running instance with a public address, tagged env=dev.
pub(super) fn instance() -> Instance {
    Instance {
        id: InstanceId::parse(INSTANCE).unwrap(),
        account_id: AccountId::parse("123456789012").unwrap(),
        region: Region::parse("us-west-2").unwrap(),
        state: InstanceState::Running,
        availability_zone: Some("us-west-2a".into()),
        vpc_id: Some("vpc-1".into()),
        subnet_id: Some("subnet-1".into()),
        private_ip: Some([10, 0, 1, 7].into()),
        public_ip: Some([203, 0, 113, 7].into()),
        ipv6: None,
        tags: [("env".to_owned(), "dev".to_owned()), ("Name".to_owned(), "web-1".to_owned())].into(),
    }
}

pub(super) fn endpoint() -> Endpoint {
    Endpoint {
        id: "eice-1".into(),
        vpc_id: "vpc-1".into(),
        subnet_id: "subnet-1".into(),
        dns_name: "eice-1.example".into(),
    }
}

pub(super) fn failure(class: FailureClass) -> Failure {
    let code = match class {
        FailureClass::Retry => "ServiceException",
        FailureClass::Throttled => "ThrottlingException",
        FailureClass::Refused => "AccessDeniedException",
        FailureClass::Invalid => "InvalidArgsException",
        FailureClass::Gone => "EC2InstanceNotFoundException",
        FailureClass::Bug => "Surprise",
    };
    Failure { class, code: code.into(), message: "AWS's own words".into() }
}

/// One request, one policy that admits it, one instance that runs, all of AWS and the audit trail well.
pub(super) fn world() -> Life {
    Life::new(request(), vec![developers()], vec![Arc::new(instance())])
}

impl Life {
    /// Changes the request before anybody has seen it.
    pub fn with(mut self, change: impl FnOnce(&mut InstanceAccess)) -> Self {
        change(self.object.as_mut().expect("nothing has happened yet"));
        self.book.first = self.object.clone().expect("as above");
        self.sync();
        self
    }

    /// Changes the instance.
    pub fn on(mut self, change: impl FnOnce(&mut Instance)) -> Self {
        self.change_instance(change);
        self
    }

    /// Changes the policy.
    pub fn under(mut self, change: impl FnOnce(&mut InstanceAccessPolicySpec)) -> Self {
        change(&mut self.policies[0].spec);
        self
    }

    /// Somebody decides about the request as it stands.
    pub fn decide(&mut self, who: &Identity, kind: DecisionKind) {
        let object = self.object.as_ref().expect("something to decide about");
        let number = self.decided;
        self.decided += 1;
        self.decisions.push(InstanceAccessDecision {
            metadata: ObjectMeta {
                name: Some(format!("decision-{number}")),
                namespace: Some("team-a".into()),
                uid: Some(format!("uid-of-decision-{number:04}")),
                creation_timestamp: Some(Time(whole_second(self.now))),
                ..ObjectMeta::default()
            },
            spec: InstanceAccessDecisionSpec {
                request_ref: RequestRef {
                    name: "fix-web-1".into(),
                    uid: object.metadata.uid.clone().unwrap(),
                    spec_digest: Some(spec_digest(&object.spec)),
                },
                decision: kind,
                reason: Some("as said".into()),
                approver: Some(who.clone()),
            },
        });
    }

    /// Does whatever there is to do now, and lets AWS answer.
    pub fn settled(mut self) -> Self {
        self.settle();
        self
    }

    /// Lets the clock run until then, in seconds after the request.
    pub fn until(mut self, seconds: i64) -> Self {
        self.run_until(at(seconds));
        self
    }

    /// The conditions in one line, in the order of the design's table.
    pub fn line(&self) -> String {
        use ConditionType::{Active, Approved, Denied, Ended, Ready, Reconciling, Stalled};
        let status = self.status();
        [Approved, Denied, Active, Ended, Reconciling, Stalled, Ready]
            .into_iter()
            .filter_map(|type_| condition::find(&status.conditions, type_))
            .map(|condition| {
                let name = condition.type_;
                let value = condition.status;
                match name {
                    Denied | Active | Ended => format!("{name:?}={value:?}/{}", condition.reason),
                    Approved | Reconciling | Stalled | Ready => format!("{name:?}={value:?}"),
                }
            })
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[track_caller]
    pub fn shows(&self, expected: &str) {
        assert_eq!(self.line(), expected, "at {}, log:\n{}", self.now, self.log());
    }

    pub fn message(&self, type_: ConditionType) -> String {
        condition::find(&self.status().conditions, type_).map(|condition| condition.message.clone()).unwrap_or_default()
    }

    #[track_caller]
    pub fn says(&self, type_: ConditionType, part: &str) {
        let message = self.message(type_);
        assert!(message.contains(part), "{type_:?} says {message:?}, not {part:?}");
    }

    pub fn expiration(&self) -> Timestamp {
        self.status().grant.expect("a grant").expiration_time.0
    }

    pub fn kinds(&self) -> Vec<RecordKind> {
        self.records.iter().map(|(_, record)| record.kind).collect()
    }
}
