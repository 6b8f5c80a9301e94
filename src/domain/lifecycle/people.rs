//! Where people are asked: their decisions are counted under the policy as it stands now, and a no is final.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::api::{Approval, ConditionType, DecisionKind, EndCause, Identity, PolicyApproval};
use crate::domain::approvals::{self, Case, Decision, Parties, Standing};
use crate::domain::cloud::{Instance, TargetQuery};
use crate::domain::condition::{self, ActiveReason, DenyReason, Saying, bounded};
use crate::domain::digest::spec_digest;
use crate::domain::policy::{ACCESS_MIN, Admission};
use crate::domain::subject::shown;
use crate::domain::time::minus;

use super::asked::Asked;
use super::pending::instance_id_alone;
use super::{Deadline, Draft, World};

/// The longest line of names, in characters: what the CRD takes.
const APPROVERS_LENGTH_MAX: usize = 1024;

impl Draft<'_> {
    /// Asks people, if the policy that decides wants it: counts their decisions under that policy as it stands now.
    pub(super) fn is_approved(
        &mut self,
        asked: &Asked<'_>,
        instance: &Instance,
        admission: &Admission,
        end_time: Option<Timestamp>,
    ) -> bool {
        let Some(approval) = &admission.approval else {
            // Of a policy that decided before, or that was edited meanwhile.
            self.tell_approvals(Vec::new());
            self.status.approval_deadline_time = None;
            return true;
        };
        let decisions = self.world.decisions;
        let digest = spec_digest(&self.request.spec);
        let deadline =
            approvals::deadline_time(self.created_time(), approval, self.request.spec.approval_deadline_seconds);
        let case = self.case(&digest, &asked.parties);
        let closing = approvals::closing(&case, Some(approval), decisions);
        let standing = approvals::standing(&case, approval, deadline, decisions);
        // What an approver sees is what is asked for now.
        self.status.spec_digest = Some(digest);
        self.status.approval_deadline_time = Some(Time(deadline));
        self.tell_approvals(standing.counted.iter().map(|decision| decision.told()).collect());
        if let Some(decision) = closing {
            self.close(asked, decision);
            return false;
        }
        if standing.is_complete() {
            return true;
        }
        self.status.policy = Some(admission.policy.clone());
        self.status.instance = Some(instance_id_alone(instance));
        if self.holds(ConditionType::Approved) {
            let message = format!(
                "it was approved, and before its grant policy {} came to want {} more, or an approval was taken back; make a new request",
                admission.policy.name,
                missing_text(&standing)
            );
            self.end(EndCause::PolicyChanged, message);
            return false;
        }
        if deadline <= self.now {
            let message = format!(
                "{} of {} approvals came by {deadline}, missing: {}; make a new request if it is still needed",
                standing.counted.len(),
                standing.counted.len() + standing.missing.iter().map(|(count, _)| count).sum::<usize>(),
                missing_text(&standing)
            );
            self.refuse(DenyReason::ApprovalTimeout, message);
            return false;
        }
        self.wait_for_people(asked, approval, &admission.policy.name, &standing, deadline);
        self.look_again = None;
        self.wake(Deadline::Approval, deadline);
        // A yes of the next morning is none to what was asked for this evening.
        if let Some(closes) = admission.closes {
            self.wake(Deadline::WindowClosed, minus(closes, ACCESS_MIN));
        }
        if let Some(end_time) = end_time {
            self.wake(Deadline::GiveUp, end_time);
        }
        false
    }

    fn wait_for_people(
        &mut self,
        asked: &Asked<'_>,
        approval: &PolicyApproval,
        policy: &str,
        standing: &Standing<'_>,
        deadline: Timestamp,
    ) {
        let so_far = match standing.counted.len() {
            0 => String::new(),
            _ => {
                let who: Vec<&str> = standing.counted.iter().map(|it| it.approver.username.as_str()).collect();
                format!(" ({} approved)", who.join(", "))
            }
        };
        let message = format!(
            "policy {policy} waits for {} until {deadline}{so_far}; {}, and each person counts once. They approve uid {} with digest {} by an InstanceAccessDecision; one Deny of {} is final",
            missing_text(standing),
            asked.parties_text(),
            self.request.metadata.uid.as_deref().unwrap_or_default(),
            self.status.spec_digest.as_deref().unwrap_or_default(),
            approvals::subjects_text(&approvals::all_named(approval)),
        );
        let is_new = condition::active_reason(&self.status) != Some(ActiveReason::PendingApproval.as_str());
        self.say(Saying::unapproved(message.clone()));
        self.say(Saying::inactive(ActiveReason::PendingApproval, message.clone()));
        self.say(Saying::reconciling(ActiveReason::PendingApproval, message.clone()));
        self.unsay(ConditionType::Stalled);
        self.unsay(ConditionType::Ended);
        if is_new {
            self.event(false, ActiveReason::PendingApproval.as_str(), message);
        }
    }

    /// Somebody whose word counts said no before the grant.
    pub(super) fn close(&mut self, asked: &Asked<'_>, decision: &Decision) {
        self.note_decision(decision);
        let (who, why) = (&decision.approver.username, decision.why());
        let is_own = asked.parties.made(decision);
        match decision.kind {
            DecisionKind::Deny if !is_own && !self.holds(ConditionType::Approved) => {
                self.refuse(DenyReason::DeniedByApprover, format!("{who} denied it: {why}"));
            }
            DecisionKind::Deny | DecisionKind::Revoke | DecisionKind::Approve => {
                self.end(EndCause::Revoked, format!("{who} revoked it before access was granted: {why}"));
            }
        }
    }

    /// Hears a no also where it is not people's turn yet, since the instance cannot be looked at or reached: it might be
    /// deleted before it is. It counts by the policy that decides, as far as that can be told.
    pub(super) fn hear_no(&mut self, asked: &Asked<'_>) {
        let World { decisions, policies, sight, .. } = self.world;
        if self.is_terminal() || !decisions.iter().any(Decision::is_closing) {
            return;
        }
        let spec = &self.request.spec;
        let admission = |instance| {
            let question = asked.question(self.begin_time(), spec, instance, asked.method);
            policies.evaluate(&question).decision.ok()
        };
        let seen = sight.instances.seen().and_then(|(_, found)| match (found.as_slice(), &asked.query) {
            ([instance], Some(TargetQuery::Id(id))) if instance.id != *id => None,
            ([instance], Some(_)) => Some(&**instance),
            _ => None,
        });
        // Of the dead, EC2 does not tell what policies ask for.
        let admission = seen.and_then(|instance| admission(Some(instance))).or_else(|| admission(None));
        let approval = admission.and_then(|admission| admission.approval);
        let digest = spec_digest(spec);
        let closing = approvals::closing(&self.case(&digest, &asked.parties), approval.as_ref(), decisions);
        if let Some(decision) = closing {
            // Instead of whatever was planned: it looks for nothing any more, and waits for nothing.
            self.after.clear();
            self.silent = false;
            self.close(asked, decision);
        }
    }

    /// Why nobody can tell whether somebody said no, if so.
    pub(super) fn unreadable_decision(&self) -> Option<String> {
        let name = self.world.decisions.unreadable()?;
        Some(format!(
            "the InstanceAccessDecision {name} about this request cannot be read by this version of the operator and may be a no, so nothing is granted and no key is pushed; an administrator must read it, act on it, and delete it"
        ))
    }

    /// `Approved` is Unknown while people are asked; what is over asks nobody.
    pub(super) fn forget_waiting_for_approval(&mut self) {
        if !self.holds(ConditionType::Approved) {
            self.unsay(ConditionType::Approved);
        }
    }

    /// The request, as people's decisions are judged on it.
    pub(super) fn case<'c>(&'c self, spec_digest: &'c str, parties: &'c Parties) -> Case<'c> {
        Case {
            uid: self.request.metadata.uid.as_deref().unwrap_or_default(),
            spec_digest,
            created_time: self.created_time(),
            parties,
        }
    }

    pub(super) fn created_time(&self) -> Timestamp {
        self.request.metadata.creation_timestamp.as_ref().map_or(self.now, |time| time.0)
    }

    /// Who asks, and for whom; `None` if one of them is nobody.
    pub(super) fn parties(&self) -> Option<Parties> {
        Parties::of(&self.world.settings.principals, &self.request.spec)
    }

    /// Which of requester and subject the operator's rule makes nobody of, for people.
    pub(super) fn nobody_text(&self, requester: &Identity, subject: Option<&Identity>) -> String {
        let rule = &self.world.settings.principals;
        match subject.filter(|_| rule.principal(requester).is_some()) {
            None => format!(
                "spec.requester: the operator's rule of who is who (--principal) makes nobody of {}, and nobody may ask; ask whoever runs the operator",
                requester.username
            ),
            Some(subject) => format!(
                "spec.subject: the operator's rule of who is who (--principal) makes nobody of {}, of whom the user name alone is known, and nobody gets in; ask whoever runs the operator for a rule that falls back on user.username",
                shown(subject)
            ),
        }
    }

    /// Writes down that a decision counted.
    pub(super) fn note_decision(&mut self, decision: &Decision) {
        let told = decision.told();
        if !self.status.approvals.contains(&told) {
            let mut approvals = std::mem::take(&mut self.status.approvals);
            approvals.push(told);
            self.tell_approvals(approvals);
        }
    }

    fn tell_approvals(&mut self, approvals: Vec<Approval>) {
        let names: Vec<&str> = approvals.iter().map(|told| told.approver.as_str()).collect();
        self.status.approvers = (!names.is_empty()).then(|| bounded(names.join(", "), APPROVERS_LENGTH_MAX));
        self.status.approvals = approvals;
    }

    /// The decision that closed this request, if one did.
    pub(super) fn closing_decision(&self) -> Option<&Approval> {
        let closing = |told: &&Approval| told.decision != DecisionKind::Approve;
        self.status.approvals.iter().find(closing)
    }
}

/// Who is missing, for people.
fn missing_text(standing: &Standing<'_>) -> String {
    let each: Vec<String> = standing.missing.iter().map(|(count, whom)| format!("{count} of {whom}")).collect();
    each.join(" and ")
}
