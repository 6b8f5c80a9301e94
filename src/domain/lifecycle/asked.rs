//! What is asked for: the spec, read into values that are right, or every mistake in it.

use jiff::Timestamp;

use crate::api::{ConnectionMethod, Identity};
use crate::domain::approvals::Parties;
use crate::domain::cloud::{AccountId, Instance, InstanceId, OsUser, Place, Region, TargetQuery};
use crate::domain::key::PublicKey;
use crate::domain::node::AskedNode;
use crate::domain::policy::Question;
use crate::domain::push::KeyPush;
use crate::domain::subject::{self, shown};

use super::Draft;
use super::nodes::NodeTarget;

/// The port of sshd, where the request names none.
const SSH_PORT: u16 = 22;

/// The request's spec, in values that are right.
pub(super) struct Asked<'a> {
    pub requester: &'a Identity,
    /// Who gets in, if not the requester.
    pub subject: Option<Identity>,
    pub created_time: Timestamp,
    pub name: &'a str,
    pub namespace: &'a str,
    pub key: PublicKey,
    pub os_user: OsUser,
    pub place: Place,
    pub account_id: Option<AccountId>,
    /// What to look for; none while the node that is asked for is no instance.
    pub query: Option<TargetQuery>,
    pub node: NodeTarget<'a>,
    pub method: ConnectionMethod,
    pub port: u16,
    pub parties: Parties,
}

impl Asked<'_> {
    /// The user name of who gets in.
    pub(super) fn subject_name(&self) -> &str {
        &self.subject.as_ref().unwrap_or(self.requester).username
    }

    /// Who gets in, and who asked for it, for people.
    pub(super) fn who_text(&self) -> String {
        subject::text(self.requester, self.subject.as_ref())
    }

    /// That requester and subject may not approve, for people.
    pub(super) fn parties_text(&self) -> String {
        match &self.subject {
            None => format!("{} may not", self.requester.username),
            Some(subject) => format!("neither {} nor {} may", shown(subject), shown(self.requester)),
        }
    }

    pub(super) fn question<'q>(
        &'q self,
        now: Timestamp,
        spec: &'q crate::api::InstanceAccessSpec,
        instance: Option<&'q Instance>,
        method: ConnectionMethod,
    ) -> Question<'q> {
        Question {
            now,
            granted: None,
            requester: self.requester,
            subject: self.subject.as_ref(),
            created_time: self.created_time,
            name: self.name,
            namespace: self.namespace,
            spec,
            port: self.port,
            region: self.query.as_ref().map(|_| self.place.region.as_str()),
            instance_id: match &self.query {
                Some(TargetQuery::Id(id)) => Some(id.as_str()),
                Some(TargetQuery::Tags(_)) | None => None,
            },
            node: match &self.node {
                NodeTarget::NotAsked => AskedNode::None,
                NodeTarget::Unseen | NodeTarget::Unheard(_) | NodeTarget::Absent(_) => AskedNode::Unknown,
                NodeTarget::Found(node, _) => AskedNode::Known(node),
            },
            os_user: self.os_user.as_str(),
            key: &self.key,
            ttl_seconds: spec.ttl_seconds,
            key_delivery: spec.key_delivery.unwrap_or_default(),
            reason: spec.reason.as_deref(),
            ticket: spec.ticket.as_deref(),
            policy_name: spec.policy_name.as_deref(),
            instance,
            method,
        }
    }
}

impl<'a> Draft<'a> {
    /// Reads the spec into values that are right, or returns every finding.
    pub(super) fn asked(&self) -> Result<Asked<'a>, Vec<String>> {
        let spec = &self.request.spec;
        let mut findings = Vec::new();
        let requester = spec.requester.as_ref().filter(|requester| !requester.username.is_empty());
        if requester.is_none() {
            findings.push(
                "spec.requester is missing: the admission policies of this project are not in force, or Kubernetes is below 1.36; write there what kubectl auth whoami -o yaml shows"
                    .to_owned(),
            );
        }
        let subject = subject::asserted(spec);
        if let (Some(requester), Some(subject)) = (requester, &subject) {
            findings.extend(subject::finding(requester, subject));
        }
        let parties = self.parties();
        if let (Some(requester), None) = (requester, &parties) {
            findings.push(self.nobody_text(requester, subject.as_ref()));
        }
        let key = PublicKey::parse(&spec.ssh_public_key).map_err(|error| findings.push(error.to_string())).ok();
        let os_user = parsed("spec.osUser", &spec.os_user, OsUser::parse, &mut findings);
        let target = &spec.target;
        let node = self.node();
        let region = match (&target.region, self.region_of(&node)) {
            (Some(region), _) => parsed("spec.target.region", region, Region::parse, &mut findings),
            (None, Some(region)) => Some(region),
            (None, None) => {
                findings.push(
                    "spec.target.region is missing, and the operator has no region of its own; name one".to_owned(),
                );
                None
            }
        };
        let account_id = target
            .account_id
            .as_ref()
            .and_then(|account_id| parsed("spec.target.accountId", account_id, AccountId::parse, &mut findings));
        let query = match (&target.instance_id, &target.tags, &target.node_name) {
            (Some(id), None, None) => parsed("spec.target.instanceId", id, InstanceId::parse, &mut findings)
                .map(|id| Some(TargetQuery::Id(id))),
            (None, Some(tags), None) if !tags.is_empty() => Some(Some(TargetQuery::Tags(tags.clone()))),
            (None, None, Some(_)) => match &node {
                // In another region than was asked for: nobody is told so before a policy was asked.
                NodeTarget::Found(_, instance) if region.as_ref().is_none_or(|region| *region == instance.region) => {
                    Some(Some(TargetQuery::Id(instance.id.clone())))
                }
                NodeTarget::NotAsked
                | NodeTarget::Unseen
                | NodeTarget::Unheard(_)
                | NodeTarget::Absent(_)
                | NodeTarget::Found(..) => Some(None),
            },
            _ => {
                findings.push("spec.target must have exactly one of instanceId, nodeName and tags".to_owned());
                None
            }
        };
        // Once granted it is the gateways' business: a flag that got lost takes nothing back.
        if self.is_on_connect() && self.world.settings.gateway.is_none() && self.status.grant.is_none() {
            findings.push(
                "spec.keyDelivery: OnConnect needs a gateway, and the operator knows of none; use Continuous, or have an administrator run one and start the controller with --gateway-address"
                    .to_owned(),
            );
        }
        let connection = spec.connection.unwrap_or_default();
        let port = connection.port.map_or(Some(SSH_PORT), |port| u16::try_from(port).ok().filter(|port| *port > 0));
        if port.is_none() {
            findings.push("spec.connection.port must be 1 to 65535".to_owned());
        }
        match (requester, parties, key, os_user, region, query, port) {
            (Some(requester), Some(parties), Some(key), Some(os_user), Some(region), Some(query), Some(port))
                if findings.is_empty() =>
            {
                Ok(Asked {
                    requester,
                    subject,
                    created_time: self.created_time(),
                    name: self.request.metadata.name.as_deref().unwrap_or_default(),
                    namespace: self.request.metadata.namespace.as_deref().unwrap_or_default(),
                    key,
                    os_user,
                    place: Place { region },
                    account_id,
                    query,
                    node,
                    method: connection.method.unwrap_or_default(),
                    port,
                    parties,
                })
            }
            _ => Err(findings),
        }
    }
}

/// What is pushed, and where.
pub(super) fn key_push(asked: &Asked<'_>, instance: &Instance) -> KeyPush {
    KeyPush {
        place: asked.place.clone(),
        instance_id: instance.id.clone(),
        availability_zone: instance.availability_zone.clone(),
        os_user: asked.os_user.clone(),
        key: asked.key.clone(),
    }
}

fn parsed<T, E: std::fmt::Display>(
    field: &str,
    text: &str,
    parse: impl FnOnce(&str) -> Result<T, E>,
    findings: &mut Vec<String>,
) -> Option<T> {
    parse(text).map_err(|error| findings.push(format!("{field} {error}"))).ok()
}
