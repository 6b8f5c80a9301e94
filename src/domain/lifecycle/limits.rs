//! The limits of the policy that decides: judged when a request is first admitted, so that nobody is asked in vain, and
//! at the grant, where they bind.
//!
//! What is read of the census may be old when the plan is carried out. So the plan claims the place first of all; where
//! that fails, the plan falls, and this is asked again with the newer counts.

use jiff::Timestamp;

use crate::api::{ConditionType, PolicyLimits};
use crate::domain::census::{Claim, Full, HOUR, InstanceMark, who_gets_in};
use crate::domain::cloud::Instance;
use crate::domain::condition::{self, DenyReason};
use crate::domain::policy::Admission;
use crate::domain::time::{minus, whole_second};

use super::asked::Asked;
use super::pending::instance_id_alone;
use super::{Draft, Effect};

/// How somebody ends what they no longer need.
const RELEASE: &str = r#"kubectl patch instanceaccess NAME --type merge -p '{"spec":{"revoke":{"reason":"done"}}}'"#;

impl Draft<'_> {
    /// Whether the limits leave room; refuses if they do not. `is_grant`: the grant would be made now.
    ///
    /// Between the first admission and the grant nothing is judged: whoever waits for people is not refused for what
    /// lives meanwhile. What lives now says nothing of a start that is to come.
    pub(super) fn has_room(
        &mut self,
        asked: &Asked<'_>,
        instance: &Instance,
        admission: &Admission,
        is_grant: bool,
    ) -> bool {
        let Some(limits) = admission.limits else { return true };
        let is_new = condition::find(&self.status.conditions, ConditionType::Approved).is_none();
        if !is_new && !is_grant {
            return true;
        }
        let subject = who_gets_in(&self.world.settings.principals, &self.request.spec);
        let (true, Some(subject)) = (self.world.census.is_seen(), subject) else {
            // Nothing is counted right yet, or nobody asks: then nothing is granted.
            self.silent = true;
            return false;
        };
        let starts = self.request.spec.start_time.as_ref().is_none_or(|start| start.0 <= self.now);
        let claim = Claim {
            uid: self.request.metadata.uid.clone().unwrap_or_default(),
            subject,
            instance: InstanceMark::of(instance),
            limits: PolicyLimits {
                active_per_subject: limits.active_per_subject.filter(|_| starts),
                active_per_instance: limits.active_per_instance.filter(|_| starts),
                requests_per_hour: limits.requests_per_hour.filter(|_| is_new),
            },
            time: whole_second(self.now),
            is_new,
            is_grant: false,
        };
        match self.world.census.room(self.now, &claim) {
            Ok(()) => {
                self.claim = Some(claim);
                true
            }
            Err(full) => {
                let who = asked.subject_name();
                let words: Vec<String> =
                    full.iter().map(|full| full_words(*full, limits, who, instance.id.as_str(), self.now)).collect();
                self.status.policy = Some(admission.policy.clone());
                self.status.instance = Some(instance_id_alone(instance));
                self.refuse(
                    DenyReason::LimitReached,
                    format!("policy {} leaves no room: {}", admission.policy.name, words.join("; ")),
                );
                false
            }
        }
    }

    /// The plan is one of a grant: its claim is one, too.
    pub(super) fn claim_grant(&mut self) {
        if let Some(claim) = self.claim.as_mut() {
            claim.is_grant = true;
        }
    }

    /// Puts the claim before all else that the plan does. Without one, gives back what an earlier plan took and did not
    /// use, unless its status may have been stored after all.
    pub(super) fn settle_claim(&mut self) {
        let is_wanted = !self.silent && !self.is_terminal();
        let claim = self.claim.take().filter(|claim| is_wanted && (claim.is_new || claim.is_grant));
        let has_grant = self.request.status.as_ref().is_some_and(|status| status.grant.is_some());
        let is_grant = has_grant || claim.as_ref().is_some_and(|claim| claim.is_grant);
        let uid = self.request.metadata.uid.as_deref().unwrap_or_default();
        if !is_grant
            && self.world.census.is_claimed(uid)
            && !self.world.sight.is_unheard(self.request.metadata.resource_version.as_deref())
        {
            self.before.push(Effect::GiveBack);
        }
        if let Some(claim) = claim {
            self.before.insert(0, Effect::Claim(Box::new(claim)));
        }
    }
}

/// How a limit that leaves no room reads: what it counted, without a name of others, and the remedy.
fn full_words(full: Full, limits: PolicyLimits, who: &str, instance_id: &str, now: Timestamp) -> String {
    let limit = |limit: Option<i32>| limit.unwrap_or_default();
    match full {
        Full::Subject { live } => format!(
            "limits.activePerSubject is {}, and {who} has {live} live grants under whatever policy; release one ({RELEASE}) or wait until one ends, then make a new request",
            limit(limits.active_per_subject)
        ),
        Full::Instance { live } => format!(
            "limits.activePerInstance is {}, and {instance_id} has {live} live grants, whoever has them; wait until one ends or is released, then make a new request",
            limit(limits.active_per_instance)
        ),
        Full::Hour { admitted, free_time } => format!(
            "limits.requestsPerHour is {}, and {admitted} of {who}'s requests were admitted since {}; make a new request after {free_time}",
            limit(limits.requests_per_hour),
            whole_second(minus(now, HOUR))
        ),
    }
}
