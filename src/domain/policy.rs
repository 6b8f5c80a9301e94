//! Who may get what: evaluates a request against all policies, purely.
//!
//! A Deny that matches wins. Of several Allow policies that admit the request, the one with the highest priority decides
//! alone (a tie: the first by name). What needs the instance's facts is left open until they are there, so that a request
//! that no policy could admit costs no look-up.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use regex::Regex;

use crate::api::{
    ConnectionMethod, Effect, Identity, InstanceAccessPolicySpec, InstanceAccessSpec, KeyDelivery, KeyType,
    PolicyApproval, PolicyLimits, PolicyPin, PolicySubject, PolicyTargets, PolicyText, PolicyVerdict, SessionRules,
    Target, Verdict,
};

use super::cloud::Instance;
use super::condition::bounded;
use super::expression::{Conditions, Facts};
use super::key::PublicKey;
use super::node::AskedNode;
use super::push::{KEY_WINDOW, PUSH_TIMEOUT};
use super::session::rules;
use super::time::until;
use super::window::{Opening, Windows};

mod compile;
mod delegate;
mod selector;
mod session;
mod subject;

use selector::{selector_text, selects};
pub use subject::{names, subject_text};

/// The most verdicts that a status shows; further ones are the least near.
pub const VERDICTS_MAX: usize = 32;
/// The least RSA length, where a policy names none. Source: EC2 Instance Connect takes 2048 and 4096.
const RSA_BITS_MIN: i32 = 2048;
/// The least that must be left of a window when a grant is made: a key lives so long, and must be gone when it closes.
pub const ACCESS_MIN: Duration = Duration::from_secs(KEY_WINDOW.as_secs() + PUSH_TIMEOUT.as_secs());
/// How many near misses a refusal names.
const NEAREST_MAX: usize = 3;
/// How many entries of a list a finding shows.
const SHOWN_MAX: usize = 8;
/// How much of the tags that were asked for a message repeats, in characters: what follows them is what helps.
const TAGS_LENGTH_MAX: usize = 256;
/// The list entry that is everything.
const EVERYTHING: &str = "*";

/// A policy as it stands in the cluster, compiled once.
#[derive(Clone, Debug)]
pub struct Policy {
    pin: PolicyPin,
    spec: InstanceAccessPolicySpec,
    reason: Option<Regex>,
    ticket: Option<Regex>,
    windows: Option<Windows>,
    conditions: Conditions,
    problem: Option<Problem>,
    /// Whether it is about everybody, whatever its subjects say.
    for_all: bool,
}

/// Why a policy is not in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// One word, for programs.
    pub reason: &'static str,
    /// The field, what is wrong, and the remedy.
    pub message: String,
}

/// Everything that is asked of a request, in values that are right.
#[derive(Debug)]
pub struct Question<'a> {
    /// The instant that is judged: now, or `spec.startTime` while that is to come.
    pub now: Timestamp,
    /// What was granted, if a grant lives.
    pub granted: Option<Granted>,
    /// Who asks; and who gets in, unless a subject is asserted.
    pub requester: &'a Identity,
    /// Who gets in, if a delegate asks for another: of them the user name alone is known.
    pub subject: Option<&'a Identity>,
    /// When the request was made.
    pub created_time: Timestamp,
    /// The request's name.
    pub name: &'a str,
    /// The request's namespace.
    pub namespace: &'a str,
    /// What was asked for, as it was written.
    pub spec: &'a InstanceAccessSpec,
    /// The port of sshd.
    pub port: u16,
    /// The region that is asked for.
    pub region: Option<&'a str>,
    /// The instance that is asked for, if it is by id.
    pub instance_id: Option<&'a str>,
    /// The node that is asked for, if it is by name.
    pub node: AskedNode<'a>,
    /// The login.
    pub os_user: &'a str,
    /// The key.
    pub key: &'a PublicKey,
    /// How long is asked for, in seconds; none: the policy's default.
    pub ttl_seconds: Option<i32>,
    /// When the key is delivered.
    pub key_delivery: KeyDelivery,
    /// Why.
    pub reason: Option<&'a str>,
    /// The ticket.
    pub ticket: Option<&'a str>,
    /// The only Allow policy that may admit it, if the request names one.
    pub policy_name: Option<&'a str>,
    /// The instance, once it was looked up.
    pub instance: Option<&'a Instance>,
    /// The way that was chosen, once it was; `Auto` is open.
    pub method: ConnectionMethod,
}

/// A grant that lives, and is asked about again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    /// Its length, in seconds.
    pub seconds: i32,
    /// Its expiration.
    pub until: Timestamp,
}

/// What all policies together say.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The policy that admits it and decides, or the refusal for the requester to read.
    pub decision: Result<Admission, String>,
    /// What each policy says, the nearest first; at most `VERDICTS_MAX`.
    pub verdicts: Vec<PolicyVerdict>,
}

/// The policy that admits a request, and what it gives.
#[derive(Clone, Debug, PartialEq)]
pub struct Admission {
    /// The policy.
    pub policy: PolicyPin,
    /// How long the grant may last, in seconds.
    pub ttl_seconds: i32,
    /// When the policy's windows close: the grant may not last longer. None: they set no end.
    pub closes: Option<Timestamp>,
    /// Whose consent it takes.
    pub approval: Option<PolicyApproval>,
    /// How much access at once it leaves, if it has limits. They are no reason to fall to the next policy.
    pub limits: Option<PolicyLimits>,
    /// What binds the grant's sessions through the gateway.
    pub session: Option<SessionRules>,
}

/// All policies of the cluster, in the order of precedence. The default is the set that nobody has seen yet.
#[derive(Clone, Debug, Default)]
pub struct PolicySet {
    policies: Vec<Arc<Policy>>,
    seen: bool,
}

impl Policy {
    /// What stands in status of what it decided.
    pub fn pin(&self) -> &PolicyPin {
        &self.pin
    }

    /// Why it is not in force, if it is not.
    pub fn problem(&self) -> Option<&Problem> {
        self.problem.as_ref()
    }

    /// Whether it is about whoever asks and gets in, in this namespace.
    fn is_for(&self, question: &Question<'_>) -> bool {
        (self.for_all || self.is_about(question)) && listed(&self.spec.namespaces, question.namespace)
    }

    /// Whether the target, the login and the way fit; the findings say what does not. An unknown instance fits.
    fn target_findings(&self, question: &Question<'_>) -> Vec<String> {
        let spec = &self.spec;
        let mut findings = Vec::new();
        if let Some(instance) = question.instance {
            let targets = &spec.targets;
            let mut facet = |list: &Option<Vec<String>>, value: Option<&str>, what: &str| {
                if let Some(list) = list
                    && !value.map_or_else(|| list.iter().any(|entry| entry == EVERYTHING), |value| listed(list, value))
                {
                    findings.push(format!("allows {what} {}", shown(list)));
                }
            };
            facet(&targets.accounts, Some(instance.account_id.as_str()), "accounts");
            facet(&targets.regions, Some(instance.region.as_str()), "regions");
            facet(&targets.instance_ids, Some(instance.id.as_str()), "instances");
            facet(&targets.vpc_ids, instance.vpc_id.as_deref(), "VPCs");
            if let Some(selector) = &targets.instance_tags
                && !selects(selector, &instance.tags)
            {
                findings.push(format!("selects instances by the tags {}", selector_text(selector)));
            }
            if *targets == PolicyTargets::default() {
                findings.push("names no targets".to_owned());
            }
        }
        // Who asks for the same instance by its id is not asked for the node's labels: a Deny does not narrow by them.
        if spec.effect == Effect::Allow
            && let Some(selector) = &spec.targets.node_labels
            && match question.node {
                AskedNode::None => true,
                AskedNode::Unknown => false,
                AskedNode::Known(node) => !selects(selector, &node.labels),
            }
        {
            findings
                .push(format!("selects nodes, by spec.target.nodeName, with the labels {}", selector_text(selector)));
        }
        if question.instance.is_none() {
            // What the request itself says is judged without a look-up: no calls go to regions that nobody allows.
            let mut asked = |list: &Option<Vec<String>>, value: Option<&str>, what: &str| {
                if let (Some(list), Some(value)) = (list, value)
                    && !listed(list, value)
                {
                    findings.push(format!("allows {what} {}", shown(list)));
                }
            };
            asked(&spec.targets.regions, question.region, "regions");
            asked(&spec.targets.instance_ids, question.instance_id, "instances");
        }
        if !listed(&spec.os_users, question.os_user) {
            findings.push(format!("allows osUsers {}", shown(&spec.os_users)));
        }
        if let Some(methods) = &spec.connection_methods
            && (question.method != ConnectionMethod::Auto || methods.is_empty())
            && !methods.iter().any(|method| method.is(question.method))
        {
            let names: Vec<String> = methods.iter().map(|method| format!("{method:?}")).collect();
            findings.push(format!("allows connectionMethods {}", shown(&names)));
        }
        if let Some(deliveries) = &spec.key_delivery
            && !deliveries.contains(&question.key_delivery)
        {
            let names: Vec<String> = deliveries.iter().map(|delivery| format!("{delivery:?}")).collect();
            findings.push(format!("allows keyDelivery {}", shown(&names)));
        }
        findings
    }

    /// What else an Allow policy asks; each finding is a reason why it does not admit.
    fn demand_findings(&self, question: &Question<'_>) -> Vec<String> {
        let spec = &self.spec;
        let mut findings = Vec::new();
        findings.extend(self.delegation_finding(question));
        let asked = question.ttl_seconds.or(question.granted.map(|granted| granted.seconds));
        if let (Some(ttl), Some(asked)) = (spec.ttl, asked)
            && asked > ttl.max_seconds
        {
            findings.push(format!("allows at most ttlSeconds {}, asked were {asked}", ttl.max_seconds));
        }
        let key = question.key;
        if let Some(types) = spec.keys.as_ref().and_then(|keys| keys.types.as_ref())
            && !types.contains(&key.key_type())
        {
            let names: Vec<String> = types.iter().map(|type_| format!("{type_:?}")).collect();
            findings.push(format!("allows keys of the types {}", shown(&names)));
        }
        let rsa_bits_min = spec.keys.as_ref().and_then(|keys| keys.min_rsa_bits).unwrap_or(RSA_BITS_MIN);
        if key.key_type() == KeyType::RSA && key.bits() < rsa_bits_min {
            findings.push(format!("wants RSA keys of at least {rsa_bits_min} bits, this has {}", key.bits()));
        }
        findings.extend(text_finding("reason", &spec.reason, &self.reason, question.reason));
        findings.extend(text_finding("ticket", &spec.ticket, &self.ticket, question.ticket));
        findings.extend(self.closing(question).err());
        findings.extend(self.session_findings(question));
        if !self.conditions.is_empty() {
            findings.extend(self.conditions.findings(&Facts::of(question)));
        }
        findings
    }

    /// When the windows close that are open; none: they set no end. The finding says when they open.
    ///
    /// A grant never lives outside of them: it ends when they close, as they stood when it was made, and is taken back
    /// if they are edited to close before.
    fn closing(&self, question: &Question<'_>) -> Result<Option<Timestamp>, String> {
        let Some(windows) = &self.windows else { return Ok(None) };
        let closed = |opens: Option<Timestamp>| match opens {
            Some(opens) => format!(
                "allows access only at {}, next from {opens}: ask then, or set spec.startTime to it",
                shown(&windows.texts())
            ),
            None => "allows access at no time: its windows are never open".to_owned(),
        };
        match (windows.at(question.now), question.granted) {
            (Opening::Open(Some(closes)), Some(granted)) if closes < granted.until => Err(format!(
                "allows access until {closes}, when its window closes, and this was granted until {}; make a new request",
                granted.until
            )),
            // A key could not be delivered and be gone again in what is left.
            (Opening::Open(Some(closes)), None) if until(question.now, closes) <= ACCESS_MIN => {
                match windows.at(closes) {
                    Opening::Closed(opens) => Err(closed(opens)),
                    Opening::Open(_) => Err(closed(None)),
                }
            }
            (Opening::Open(closes), _) => Ok(closes),
            (Opening::Closed(opens), _) => Err(closed(opens)),
        }
    }

    fn verdict(&self, question: &Question<'_>) -> (Verdict, Vec<String>) {
        if !self.is_for(question) {
            let whom = if question.subject.is_some() { "delegate" } else { "requester" };
            return (Verdict::NoMatch, vec![format!("is not for this {whom} in this namespace")]);
        }
        match self.spec.effect {
            // A Deny has no demands (the CRD sees to it); one with a problem still denies.
            Effect::Deny => match self.target_findings(question) {
                findings if findings.is_empty() => (Verdict::Deny, vec!["denies this".to_owned()]),
                _ => (Verdict::NoMatch, vec!["is not about this target".to_owned()]),
            },
            Effect::Allow => {
                if let Some(problem) = &self.problem {
                    return (Verdict::Invalid, vec![problem.message.clone()]);
                }
                if question.policy_name.is_some_and(|name| name != self.pin.name) {
                    return (Verdict::NoMatch, vec!["is not the policy that spec.policyName names".to_owned()]);
                }
                let mut findings = self.target_findings(question);
                findings.extend(self.demand_findings(question));
                if findings.is_empty() {
                    (Verdict::Admit, vec!["admits this".to_owned()])
                } else {
                    (Verdict::Refuse, findings)
                }
            }
        }
    }
}

impl PolicySet {
    /// Orders the policies: the highest priority first, then by name.
    pub fn new(policies: impl IntoIterator<Item = Arc<Policy>>) -> Self {
        let mut policies: Vec<_> = policies.into_iter().collect();
        policies.sort_by(|a, b| {
            let priority = |policy: &Policy| policy.spec.priority.unwrap_or_default();
            priority(b).cmp(&priority(a)).then_with(|| a.pin.name.cmp(&b.pin.name))
        });
        Self { policies, seen: true }
    }

    /// Whether the cluster's policies were read. Until then nothing is refused, granted or taken back for their sake:
    /// an end by the clock or by the requester does not wait for them.
    pub fn is_seen(&self) -> bool {
        self.seen
    }

    /// The policies, in the order of precedence.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.iter()
    }

    /// Whether the policy that made a grant still admits it, and no Deny has come since. The error is for people.
    ///
    /// Another policy that would admit it does not count: the grant is that policy's word.
    pub fn still_admits(&self, pin: &PolicyPin, question: &Question<'_>) -> Result<(), String> {
        let Some(policy) = self.policies.iter().find(|policy| policy.pin.name == pin.name && policy.pin.uid == pin.uid)
        else {
            return Err(format!("policy {} was deleted", pin.name));
        };
        match policy.verdict(question) {
            (Verdict::Admit, _) => {}
            (Verdict::Refuse | Verdict::Invalid | Verdict::NoMatch | Verdict::Deny, findings) => {
                return Err(format!("policy {} no longer admits this: it {}", pin.name, findings.join(" and ")));
            }
        }
        match self.denial(question) {
            Some(denier) => Err(format!("policy {} denies this", denier.pin.name)),
            None => Ok(()),
        }
    }

    /// Whose word counts for what a policy decided, as it stands now: none, if it is gone or asks nobody.
    pub fn approval_of(&self, pin: &PolicyPin) -> Option<&PolicyApproval> {
        let policy = self.policies.iter().find(|policy| policy.pin.name == pin.name && policy.pin.uid == pin.uid)?;
        policy.spec.approval.as_ref()
    }

    /// Everybody whom some policy names as one whose word counts.
    pub fn approvers(&self) -> impl Iterator<Item = &PolicySubject> {
        let approvals = self.policies.iter().filter_map(|policy| policy.spec.approval.as_ref());
        approvals.flat_map(|approval| approval.approvers.iter().chain(approval.one_from_each.iter().flatten()))
    }

    /// Whether somebody's word counts whose did not before: what they said may not have been kept.
    pub fn has_new_approvers(&self, before: &Self) -> bool {
        let known: HashSet<_> = before.approvers().map(|it| (it.kind, it.name.as_str())).collect();
        self.approvers().any(|it| !known.contains(&(it.kind, it.name.as_str())))
    }

    /// The Deny policy that matches, once the instance is known, and the way if the policy asks for it: before, it might
    /// still be about others.
    fn denial(&self, question: &Question<'_>) -> Option<&Policy> {
        let is_certain = |policy: &Policy| {
            question.instance.is_some()
                && (question.method != ConnectionMethod::Auto || policy.spec.connection_methods.is_none())
        };
        self.policies
            .iter()
            .find(|policy| {
                policy.spec.effect == Effect::Deny && is_certain(policy) && policy.verdict(question).0 == Verdict::Deny
            })
            .map(AsRef::as_ref)
    }

    /// Asks every policy.
    pub fn evaluate(&self, question: &Question<'_>) -> Outcome {
        let mut asked: Vec<(&Policy, Verdict, Vec<String>)> = self
            .policies
            .iter()
            .map(|policy| {
                let (verdict, findings) = policy.verdict(question);
                (policy.as_ref(), verdict, findings)
            })
            .collect();
        let denied = self.denial(question);
        let admitted = asked.iter().find(|(_, verdict, _)| *verdict == Verdict::Admit);
        let decision = match (denied, admitted) {
            (Some(policy), _) => Err(format!(
                "policy {} denies {} as {} on {}",
                policy.pin.name,
                who_text(question),
                question.os_user,
                target_text(question)
            )),
            (None, Some((policy, ..))) => {
                let ttl = policy.spec.ttl.expect("an Allow policy without ttl has a problem, and admits nothing");
                Ok(Admission {
                    policy: policy.pin.clone(),
                    ttl_seconds: question.ttl_seconds.unwrap_or(ttl.default_seconds),
                    closes: policy.closing(question).unwrap_or(Some(question.now)),
                    approval: policy.spec.approval.clone(),
                    limits: policy.spec.limits.filter(|limits| *limits != PolicyLimits::default()),
                    session: rules::pinned(policy.spec.session),
                })
            }
            (None, None) => Err(refusal(question, &asked)),
        };
        asked.sort_by_key(|(_, verdict, findings)| (nearness(*verdict), findings.len()));
        let verdicts = asked
            .into_iter()
            .take(VERDICTS_MAX)
            .map(|(policy, verdict, findings)| PolicyVerdict {
                policy: policy.pin.name.clone(),
                verdict,
                reason: bounded(findings.join("; "), 1024),
            })
            .collect();
        Outcome { decision, verdicts }
    }
}

fn nearness(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Deny => 0,
        Verdict::Admit => 1,
        Verdict::Refuse => 2,
        Verdict::Invalid => 3,
        Verdict::NoMatch => 4,
    }
}

/// The refusal where nothing admits: all findings of the nearest policies, and none of those that are for others.
fn refusal(question: &Question<'_>, asked: &[(&Policy, Verdict, Vec<String>)]) -> String {
    let what = format!("no policy admits {} as {} on {}", who_text(question), question.os_user, target_text(question));
    let mut near: Vec<_> =
        asked.iter().filter(|(_, verdict, _)| matches!(verdict, Verdict::Refuse | Verdict::Invalid)).collect();
    near.sort_by(|a, b| a.2.len().cmp(&b.2.len()).then_with(|| a.0.pin.name.cmp(&b.0.pin.name)));
    if near.is_empty() {
        return match question.policy_name {
            _ if question.subject.is_some() => format!(
                "{what}: no policy names who asks in spec.delegates, for namespace {}; have it named there, or leave spec.subject out",
                question.namespace
            ),
            Some(name) => format!(
                "{what}: spec.policyName names {name}, which is no policy for this requester in namespace {}; leave it out to let the operator choose",
                question.namespace
            ),
            None => format!(
                "{what}: no policy is for this requester in namespace {}; ask whoever writes the InstanceAccessPolicies",
                question.namespace
            ),
        };
    }
    let nearest: Vec<String> = near
        .iter()
        .take(NEAREST_MAX)
        .map(|(policy, verdict, findings)| match verdict {
            Verdict::Invalid => format!("{}, which has a mistake: {}", policy.pin.name, findings.join(" and ")),
            _ => format!("{}, which {}", policy.pin.name, findings.join(" and ")),
        })
        .collect();
    format!("{what}; nearest is {}", nearest.join("; then "))
}

fn who_text(question: &Question<'_>) -> String {
    super::subject::text(question.requester, question.subject)
}

/// The target for whoever may be refused: once it was looked up, as it was asked for, never as what it proved to be.
fn target_text(question: &Question<'_>) -> String {
    question.instance.map_or_else(|| "the target".to_owned(), |_| asked_text(&question.spec.target))
}

/// The target as it was asked for: no id that the request does not name.
pub fn asked_text(target: &Target) -> String {
    match (&target.instance_id, &target.node_name, &target.tags) {
        (Some(id), ..) => id.clone(),
        (None, Some(name), _) => format!("the instance of node {name}"),
        (None, None, Some(tags)) => {
            let tags: Vec<String> = tags.iter().map(|(key, value)| format!("{key}={value}")).collect();
            format!("what has the tags {}", bounded(shown(&tags), TAGS_LENGTH_MAX))
        }
        (None, None, None) => "the target".to_owned(),
    }
}

fn text_finding(
    field: &str,
    rule: &Option<PolicyText>,
    pattern: &Option<Regex>,
    value: Option<&str>,
) -> Option<String> {
    let rule = rule.as_ref()?;
    let value = value.filter(|value| !value.trim().is_empty());
    match (value, pattern) {
        (None, _) if rule.required == Some(true) => Some(match &rule.pattern {
            Some(pattern) => format!("requires spec.{field}, of the form {pattern}"),
            None => format!("requires spec.{field}"),
        }),
        (Some(value), Some(pattern)) if !pattern.is_match(value) => {
            Some(format!("requires spec.{field} of the form {}", pattern.as_str()))
        }
        _ => None,
    }
}

/// Whether a list names a value. An empty list names nothing; `*` is everything.
fn listed(list: &[String], value: &str) -> bool {
    list.iter().any(|entry| entry == EVERYTHING || entry == value)
}

/// A list as a refusal shows it: a policy may name a thousand instances, a reader takes in a few.
fn shown(list: &[String]) -> String {
    match list {
        [] => "none".to_owned(),
        few if few.len() <= SHOWN_MAX => few.join(", "),
        many => format!("{} and {} more", many[..SHOWN_MAX].join(", "), many.len() - SHOWN_MAX),
    }
}

#[cfg(test)]
mod tests;
