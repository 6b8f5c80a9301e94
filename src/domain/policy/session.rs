//! What a policy demands of sessions, as far as a request can meet it, and what it pins at the grant.

use super::{Policy, PolicySet, Problem, Question};
use crate::api::{InstanceAccessPolicySpec, KeyDelivery, PolicyPin, SessionRules};
use crate::domain::session::rules::{self, drain_seconds};

impl Policy {
    /// Why its session does not admit the request.
    pub(super) fn session_findings(&self, question: &Question<'_>) -> Vec<String> {
        let mut findings = Vec::new();
        let gateway_only = self.spec.session.and_then(|session| session.gateway_only) == Some(true);
        // A key that is renewed all the time lets in from wherever port 22 is reached.
        if gateway_only && question.key_delivery == KeyDelivery::Continuous {
            findings.push(
                "lets nobody in but through the gateway (session.gatewayOnly): set spec.keyDelivery to OnConnect"
                    .to_owned(),
            );
        }
        // Of a grant that lives one is only told that it is too late.
        let asked = question.ttl_seconds.or(self.spec.ttl.map(|ttl| ttl.default_seconds));
        if let (Some(drain), Some(asked), None) = (drain_seconds(self.spec.session), asked, question.granted)
            && asked <= drain
        {
            findings.push(format!(
                "opens no session in the last {drain} s of a grant (session.end): ask for more ttlSeconds than that, asked were {asked}"
            ));
        }
        findings
    }
}

/// What is wrong with a policy's session; the CRD refuses the same.
pub(super) fn session_problem(spec: &InstanceAccessPolicySpec) -> Option<Problem> {
    let invalid = |message: &str| Some(Problem { reason: "InvalidSpec", message: message.to_owned() });
    if !rules::is_end_sound(spec.session) {
        return invalid("spec.session.end.drainSeconds is for the strategy Drain, which needs it");
    }
    match (drain_seconds(spec.session), spec.ttl) {
        (Some(drain), Some(ttl)) if ttl.default_seconds <= drain => invalid(
            "spec.session.end.drainSeconds must be less than spec.ttl.defaultSeconds, or a grant of that length opens no session",
        ),
        _ => None,
    }
}

impl PolicySet {
    /// What binds the sessions of what a policy decided, as it stands now.
    pub fn session_of(&self, pin: &PolicyPin) -> Option<SessionRules> {
        let policy = self.policies.iter().find(|policy| policy.pin.name == pin.name && policy.pin.uid == pin.uid)?;
        rules::pinned(policy.spec.session)
    }
}
