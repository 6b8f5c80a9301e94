//! A policy as it was written, made ready to judge by; its mistakes found.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use regex::RegexBuilder;

use super::{EVERYTHING, Policy, Problem};
use crate::api::{Effect, InstanceAccessPolicy, InstanceAccessPolicySpec, PolicyPin, PolicyTargets, PolicyText};
use crate::domain::digest::policy_digest;
use crate::domain::expression::Conditions;
use crate::domain::window::Windows;

/// The most memory that one compiled pattern may take, in bytes: a hostile `(a{999}){999}` is refused, not compiled.
const PATTERN_BYTES_MAX: usize = 1 << 20;

impl Policy {
    /// Compiles a policy. One with a mistake is kept, with its problem: it admits nothing, and still denies.
    pub fn compile(object: &InstanceAccessPolicy) -> Self {
        let spec = object.spec.clone();
        let pin = PolicyPin {
            name: object.metadata.name.clone().unwrap_or_default(),
            uid: object.metadata.uid.clone().unwrap_or_default(),
            generation: object.metadata.generation.unwrap_or_default(),
            digest: policy_digest(&spec),
        };
        let mut problems = Vec::new();
        let mut pattern = |field: &str, text: &Option<PolicyText>| {
            let source = text.as_ref()?.pattern.as_ref()?;
            match RegexBuilder::new(source).size_limit(PATTERN_BYTES_MAX).build() {
                Ok(regex) => Some(regex),
                Err(error) => {
                    let error = error.to_string();
                    let error = error.lines().last().unwrap_or_default().trim().to_owned();
                    problems.push(Problem {
                        reason: "InvalidPattern",
                        message: format!(
                            "spec.{field}.pattern: {error}; the syntax is that of Rust's regex (RE2, no look-around)"
                        ),
                    });
                    None
                }
            }
        };
        let reason = pattern("reason", &spec.reason);
        let ticket = pattern("ticket", &spec.ticket);
        let windows = spec.windows.as_ref().and_then(|windows| {
            Windows::compile(windows)
                .map_err(|findings| problems.push(Problem { reason: "InvalidWindow", message: findings.join("; ") }))
                .ok()
        });
        let conditions =
            Conditions::compile(spec.conditions.as_deref().unwrap_or_default()).unwrap_or_else(|findings| {
                problems.push(Problem { reason: "InvalidCondition", message: findings.join("; ") });
                Conditions::default()
            });
        if spec.effect == Effect::Allow && spec.ttl.is_none() {
            problems.push(Problem {
                reason: "InvalidSpec",
                message: "spec.ttl is required of an Allow policy: {defaultSeconds, maxSeconds}".to_owned(),
            });
        }
        if let Some(approval) = &spec.approval
            && approval.approvers.is_empty()
            && approval.one_from_each.iter().flatten().count() < usize::try_from(approval.count).unwrap_or(usize::MAX)
        {
            problems.push(Problem {
                reason: "InvalidSpec",
                message: format!(
                    "spec.approval asks for {} people, and spec.approval.approvers names nobody; name who may approve",
                    approval.count
                ),
            });
        }
        if let Some(ttl) = spec.ttl
            && !(1..=ttl.max_seconds).contains(&ttl.default_seconds)
        {
            problems.push(Problem {
                reason: "InvalidSpec",
                message: "spec.ttl.defaultSeconds must be positive and must not exceed spec.ttl.maxSeconds".to_owned(),
            });
        }
        problems.extend(super::session::session_problem(&spec));
        let problem = problems.into_iter().reduce(|first, next| Problem {
            reason: first.reason,
            message: format!("{}; {}", first.message, next.message),
        });
        Self { pin, spec, reason, ticket, windows, conditions, problem, for_all: false }
    }

    /// A policy that cannot be read. It admits nothing; unless it is an Allow, it is a Deny of nobody knows what, and
    /// denies everything until it can be read.
    pub fn undecodable(metadata: &ObjectMeta, is_allow: bool, error: &str) -> Self {
        let everything = || vec![EVERYTHING.to_owned()];
        let targets = PolicyTargets { instance_ids: Some(everything()), ..PolicyTargets::default() };
        let spec = InstanceAccessPolicySpec {
            effect: if is_allow { Effect::Allow } else { Effect::Deny },
            priority: None,
            subjects: Vec::new(),
            namespaces: everything(),
            targets,
            os_users: everything(),
            connection_methods: None,
            key_delivery: None,
            ttl: None,
            keys: None,
            reason: None,
            ticket: None,
            approval: None,
            windows: None,
            limits: None,
            delegates: None,
            conditions: None,
            session: None,
        };
        let pin = PolicyPin {
            name: metadata.name.clone().unwrap_or_default(),
            uid: metadata.uid.clone().unwrap_or_default(),
            generation: metadata.generation.unwrap_or_default(),
            digest: String::new(),
        };
        let problem = Problem { reason: "Undecodable", message: format!("it cannot be read ({error})") };
        Self {
            pin,
            spec,
            reason: None,
            ticket: None,
            windows: None,
            conditions: Conditions::default(),
            problem: Some(problem),
            for_all: !is_allow,
        }
    }
}
