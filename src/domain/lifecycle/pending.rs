//! Before the grant: is the request right, does a policy admit it, is its instance there, and can it be served now.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::api::{
    ConditionType, ConnectionFacts, ConnectionMethod, EndCause, Grant, InstanceFacts, KeyFacts, SessionRules,
};
use crate::domain::approvals;
use crate::domain::cloud::{Instance, InstanceState, TargetQuery};
use crate::domain::condition::{ActiveReason, ApproveReason, DenyReason, Saying};
use crate::domain::connect::{self, Route};
use crate::domain::digest::{grant_id, spec_digest};
use crate::domain::policy::{ACCESS_MIN, Admission, asked_text};
use crate::domain::push::{KEY_WINDOW, PUSH_TIMEOUT, PushPermit};
use crate::domain::record::RecordKind;
use crate::domain::sight::Look;
use crate::domain::time::{due, is_fresh, minus, plus, since, until, whole_second};

use super::asked::{Asked, key_push};
use super::live::CONTACT_LOST;
use super::nodes::NodeTarget;
use super::words::back_off;
use super::{
    ABSENCE_GRACE, ABSENCE_RETRY, CONTACT_GRACE, Deadline, Draft, Effect, GRANT_DEADLINE, STALLED_RETRY, last_push_time,
};

/// How old a look at instance or endpoints may be when a grant is made on it.
const GRANT_FACTS_AGE_MAX: Duration = Duration::from_secs(30);

/// How many of the instances that tags match are judged: a policy's conditions cost time, and a person who must add tags
/// anyway is helped by a few.
const AMBIGUOUS_JUDGED_MAX: usize = 10;

/// How many instances a message names.
const AMBIGUOUS_NAMED_MAX: usize = 5;

/// How it reads that requests, policies and decisions take long to be read anew.
const REREADING: &str = "the operator reads anew what requests are judged by, and nothing is granted or refused before it has; if this lasts, its log says what it cannot read, or there is very much of it";

/// Why a request that was made in a gap is refused.
const REQUESTER_UNCHECKED: &str = "when this was made, the admission policies or the CRDs were missing, bent or only just applied, so nobody checked who asks and what was asked; make the request again";

/// What looking for the target came to.
enum Target {
    Found(Arc<Instance>),
    /// The plan is made; there is nothing more to judge now.
    Waiting,
}

impl<'a> Draft<'a> {
    pub(super) fn pending(&mut self) {
        if self.is_deleted() {
            self.silent = true;
            if self.has_finalizer() {
                self.after.push(Effect::RemoveFinalizer);
            }
            return;
        }
        let spec = &self.request.spec;
        if let Some(revoke) = &spec.revoke {
            let why = revoke.reason.as_deref().unwrap_or("no reason given");
            return self.end(EndCause::Revoked, format!("spec.revoke was set before access was granted: {why}"));
        }
        let created = self.created_time();
        let start_time = spec.start_time.as_ref().map(|time| time.0);
        // Who had to wait for people has the same time for all the rest.
        let asked_until = self.status.approval_deadline_time.as_ref().map_or(created, |time| time.0);
        let give_up_time = plus(start_time.unwrap_or(created).max(created).max(asked_until), GRANT_DEADLINE);
        let end_time = spec.end_time.as_ref().map(|time| time.0);
        if let Some(end_time) = end_time
            && end_time <= self.now
        {
            return self.end(
                EndCause::Expired,
                format!("spec.endTime {end_time} is past; make a new request with a later one"),
            );
        }
        if give_up_time <= self.now {
            return self.end(
                EndCause::Expired,
                "access could not be granted within 24 hours; make a new request if it is still needed",
            );
        }
        self.wake(Deadline::GiveUp, end_time.map_or(give_up_time, |end_time| end_time.min(give_up_time)));
        let is_seen = self.world.policies.is_seen() && self.world.decisions.is_seen();
        if !is_seen || matches!(self.node(), NodeTarget::Unseen) {
            self.silent = true;
            return;
        }
        if let Some(since_time) = self.world.sight.rereading_since_time {
            if is_fresh(self.now, since_time, CONTACT_GRACE) {
                self.silent = true;
            } else {
                self.hold(ActiveReason::ContactLost, REREADING, true);
            }
            return self.wake(Deadline::Retry, plus(self.now, ABSENCE_RETRY));
        }
        if let Err(why) = self.enforced() {
            // Nobody knows who asks: they are not told what policies and instances there are.
            match why {
                Some(why) => self.hold(ActiveReason::EnforcementMissing, why, true),
                None => self.silent = true,
            }
            return;
        }
        let made = self.request.metadata.creation_timestamp.as_ref().map(|time| time.0);
        if !made.is_some_and(|made| self.world.enforcement.covers(made)) {
            return self.refuse(DenyReason::RequesterUnchecked, REQUESTER_UNCHECKED);
        }
        if self.is_consumed() {
            return;
        }
        let asked = match self.asked() {
            Ok(asked) => asked,
            Err(mut findings) => {
                findings.sort();
                return self.refuse(DenyReason::InvalidSpec, findings.join("; "));
            }
        };
        let digest = spec_digest(spec);
        if let Some(decision) = approvals::closing(&self.case(&digest, &asked.parties), None, self.world.decisions) {
            return self.close(&asked, decision);
        }
        // Without the instance: who is admitted nowhere costs no look-up, and learns nothing of our instances.
        let outline = self.world.policies.evaluate(&asked.question(self.begin_time(), spec, None, asked.method));
        if let Err(refusal) = outline.decision {
            self.status.verdicts = outline.verdicts;
            return self.refuse(DenyReason::DeniedByPolicy, refusal);
        }
        if let Some(why) = self.unreadable_decision() {
            self.hold(ActiveReason::DecisionUnreadable, why, false);
            return self.hear_no(&asked);
        }
        let Target::Found(instance) = self.target(&asked) else { return self.hear_no(&asked) };
        self.judge(&asked, &instance, start_time, end_time);
    }

    fn judge(
        &mut self,
        asked: &Asked<'_>,
        instance: &Instance,
        start_time: Option<Timestamp>,
        end_time: Option<Timestamp>,
    ) {
        // Who is not admitted learns nothing of the instance: no id that they did not name, no address, no network, no
        // missing endpoint.
        let is_dead = matches!(instance.state, InstanceState::ShuttingDown | InstanceState::Terminated);
        if is_dead {
            // Of the dead, EC2 no longer tells what policies ask for: as if none admitted it.
            self.status.instance = self.told_unadmitted(instance);
            self.wait_for_state(asked, &asked_text(&self.request.spec.target), instance);
            return self.hear_no(asked);
        }
        if self.admit(asked, instance, asked.method).is_none() {
            return;
        }
        let Some(route) = self.route(asked, instance) else { return self.hear_no(asked) };
        let Some(admission) = self.admit(asked, instance, method_of(&route)) else { return };
        if admission.approval.is_some() && (!self.has_room(asked, instance, &admission, false) || self.is_closed()) {
            return;
        }
        if !self.is_approved(asked, instance, &admission, end_time) {
            return;
        }
        let begins = start_time.is_none_or(|start_time| start_time <= self.now);
        if instance.state == InstanceState::Running && !self.has_room(asked, instance, &admission, begins) {
            return;
        }
        if self.is_closed() {
            return;
        }
        if admission.approval.is_some() {
            // Whoever was asked has answered, whatever else is waited for.
            self.approve(asked, &admission);
        }
        self.status.instance = Some(instance_facts(instance));
        if instance.state != InstanceState::Running {
            return self.wait_for_state(asked, instance.id.as_str(), instance);
        }
        self.approve(asked, &admission);
        if let Some(start_time) = start_time
            && start_time > self.now
        {
            let message = format!("access starts at {start_time}");
            self.say(Saying::inactive(ActiveReason::Scheduled, message.clone()));
            self.say(Saying::reconciling(ActiveReason::Scheduled, message));
            self.unsay(ConditionType::Stalled);
            return self.wake(Deadline::Start, start_time);
        }
        // One grant, one record: tried again, it starts when it was first going to.
        let start = self.world.sight.intended_start(self.now).unwrap_or_else(|| whole_second(self.now));
        let ttl = Duration::from_secs(u64::try_from(admission.ttl_seconds).unwrap_or_default());
        // Whichever is first. That the window shortens it stands in Approved: it moves while people wait, so nobody could
        // ask for just the time that is left of it.
        let limits = [Some(plus(start, ttl)), end_time, admission.closes, self.granted_until()];
        let expiration = whole_second(limits.into_iter().flatten().min().unwrap_or(start));
        if last_push_time(expiration) < self.now {
            return self.end(
                EndCause::Expired,
                format!(
                    "spec.endTime leaves {} s; a key lives {} s on the instance and must be gone by then, so there is no time left for access",
                    until(self.now, expiration).as_secs(),
                    KEY_WINDOW.as_secs()
                ),
            );
        }
        if self.contact_is_lost() {
            self.hold(ActiveReason::ContactLost, CONTACT_LOST, true);
            return self.wake(Deadline::Retry, plus(self.now, ABSENCE_RETRY));
        }
        if let Some(again) = self.audit_retry_time() {
            self.hold(ActiveReason::AuditUnavailable, "the audit trail takes no record, and nothing is granted without one; an administrator must look at the operator's disk", true);
            return self.wake(Deadline::Retry, again);
        }
        self.grant(asked, instance, &route, start, expiration, admission.session);
    }

    fn grant(
        &mut self,
        asked: &Asked<'_>,
        instance: &Instance,
        route: &Route,
        start: Timestamp,
        expiration: Timestamp,
        session: Option<SessionRules>,
    ) {
        self.claim_grant();
        let uid = self.request.metadata.uid.clone().unwrap_or_default();
        let digest = spec_digest(&self.request.spec);
        self.status.spec_digest = Some(digest.clone());
        let (start_time, expiration_time) = (Time(start), Time(expiration));
        self.status.grant = Some(Grant { id: grant_id(&uid, &digest), start_time, expiration_time, session });
        let (address, endpoint_id) = match route {
            Route::Direct { address } => (*address, None),
            Route::Endpoint { endpoint_id, address } => (*address, Some(endpoint_id.clone())),
        };
        let tunnel_seconds = u16::try_from(until(start, expiration).as_secs()).unwrap_or(u16::MAX);
        self.status.connection = Some(ConnectionFacts {
            method: method_of(route),
            address: address.to_string(),
            port: asked.port.into(),
            endpoint_id,
            command: self.command_through(asked, &instance.id).unwrap_or_else(|| {
                connect::command(route, &instance.id, &instance.region, &asked.os_user, asked.port, tunnel_seconds)
            }),
        });
        self.status.key = Some(KeyFacts {
            type_: asked.key.key_type(),
            bits: asked.key.bits(),
            fingerprint: asked.key.fingerprint().to_owned(),
            first_request_id: None,
            last_request_id: None,
            pushes: None,
        });
        if self.is_on_connect() {
            self.say_on_connect(expiration);
        } else {
            let message = "granted; the first push of the key is under way";
            self.say(Saying::inactive(ActiveReason::Granting, message));
            self.say(Saying::reconciling(ActiveReason::Granting, message));
            self.unsay(ConditionType::Stalled);
        }
        if !self.has_finalizer() {
            self.before.push(Effect::AddFinalizer);
        }
        let record = self.record(RecordKind::GrantIntended);
        self.audit(true, record);
        self.look_again = None;
        self.wake(Deadline::Expiration, expiration);
        self.wake_when_unheard();
        self.refresh(asked, self.world.sight.instances.seen().map(|(time, _)| time));
        if self.is_on_connect() {
            let note = format!(
                "{} can log in as {} until {expiration}, through the gateway",
                asked.subject_name(),
                asked.os_user
            );
            return self.event(false, ActiveReason::Granted.as_str(), note);
        }
        self.after.push(Effect::Push(PushPermit::new(last_push_time(expiration), key_push(asked, instance))));
    }

    /// When access would begin: the instant that policies judge.
    pub(super) fn begin_time(&self) -> Timestamp {
        self.request.spec.start_time.as_ref().map_or(self.now, |time| time.0.max(self.now))
    }

    /// Asks the policies, now that the instance is known; refuses if none admits it.
    fn admit(&mut self, asked: &Asked<'_>, instance: &Instance, method: ConnectionMethod) -> Option<Admission> {
        let question = asked.question(self.begin_time(), &self.request.spec, Some(instance), method);
        let outcome = self.world.policies.evaluate(&question);
        self.status.verdicts = outcome.verdicts;
        match outcome.decision {
            Ok(admission) => {
                if let Some(closes) = admission.closes {
                    self.wake(Deadline::WindowClosed, minus(closes, ACCESS_MIN));
                }
                Some(admission)
            }
            Err(refusal) => {
                // The trail has the id; the requester has it only from themselves.
                self.status.instance = Some(instance_id_alone(instance));
                self.refuse(DenyReason::DeniedByPolicy, refusal);
                self.status.instance = self.told_unadmitted(instance);
                None
            }
        }
    }

    /// What status may tell of an instance that no policy admits: its id, if that is what was asked for.
    fn told_unadmitted(&self, instance: &Instance) -> Option<InstanceFacts> {
        self.request.spec.target.instance_id.as_ref().map(|_| instance_id_alone(instance))
    }

    fn approve(&mut self, asked: &Asked<'_>, admission: &Admission) {
        self.status.policy = Some(admission.policy.clone());
        let whom = asked.subject.as_ref().map_or_else(|| "it".to_owned(), |_| asked.who_text());
        let mut message = format!("policy {} admits {whom} for {} s", admission.policy.name, admission.ttl_seconds);
        if let Some(closes) = admission.closes {
            message = format!("{message}, and not beyond {closes}, when its window closes");
        }
        if admission.approval.is_some() {
            let who: Vec<&str> = self.status.approvals.iter().map(|told| told.approver.as_str()).collect();
            message = format!("{message}, and {} approved it", who.join(", "));
        }
        self.say(Saying::approved(ApproveReason::AdmittedByPolicy, message));
    }

    /// Finds the one instance that is asked for, or plans how to go on.
    fn target(&mut self, asked: &Asked<'_>) -> Target {
        let Some(query) = &asked.query else {
            self.wait_for_node(asked);
            return Target::Waiting;
        };
        let look_up = || look_up(asked, query, false);
        let look = &self.world.sight.instances;
        // A node may have become another instance since the look. What failed since is tried again below.
        if let (TargetQuery::Id(id), Some((time, [instance])), None) =
            (query, look.seen().map(|(time, found)| (time, &found[..])), look.failure())
            && instance.id != *id
        {
            self.silent = true;
            let again = due(self.now, time, ABSENCE_RETRY);
            if again > self.now {
                self.wake(Deadline::Retry, again);
            } else if !look.is_under_way() {
                self.after.push(look_up());
            }
            return Target::Waiting;
        }
        let Some(found) = self.looked(look, look_up, GRANT_FACTS_AGE_MAX, "describe the instance") else {
            return Target::Waiting;
        };
        match found.as_slice() {
            [] => {
                let created = self.request.metadata.creation_timestamp.as_ref().map_or(self.now, |time| time.0);
                let heals = since(self.now, created) < ABSENCE_GRACE;
                self.absent(
                    asked,
                    ActiveReason::TargetNotFound,
                    format!("no instance matches spec.target in region {}; check the id or the tags, the region, and that it is not terminated", asked.place.region),
                    heals,
                );
                Target::Waiting
            }
            [instance] => {
                if let Some(account_id) = &asked.account_id
                    && *account_id != instance.account_id
                {
                    self.absent(
                        asked,
                        ActiveReason::TargetNotFound,
                        format!("the instance does not belong to spec.target.accountId {account_id}; the operator serves its own account only"),
                        false,
                    );
                    return Target::Waiting;
                }
                Target::Found(Arc::clone(instance))
            }
            several => {
                self.ambiguous(asked, several);
                Target::Waiting
            }
        }
    }

    /// Several instances match: names those that policies admit for this request, or refuses if there is none.
    fn ambiguous(&mut self, asked: &Asked<'_>, several: &[Arc<Instance>]) {
        let mut judged: Vec<&Instance> = several.iter().map(AsRef::as_ref).collect();
        judged.sort_unstable_by_key(|instance| instance.id.as_str());
        judged.truncate(AMBIGUOUS_JUDGED_MAX);
        let mut ids = Vec::new();
        let mut refused = None;
        for instance in judged {
            let question = asked.question(self.begin_time(), &self.request.spec, Some(instance), asked.method);
            let outcome = self.world.policies.evaluate(&question);
            match outcome.decision {
                Ok(_) => ids.push(instance.id.as_str()),
                Err(refusal) => {
                    refused.get_or_insert((refusal, outcome.verdicts));
                }
            }
        }
        match refused {
            Some((refusal, verdicts)) if ids.is_empty() => {
                self.status.verdicts = verdicts;
                self.status.instance = None;
                self.refuse(DenyReason::DeniedByPolicy, refusal);
            }
            Some(_) | None => {
                let count = ids.len();
                ids.truncate(AMBIGUOUS_NAMED_MAX);
                self.absent(
                    asked,
                    ActiveReason::TargetAmbiguous,
                    format!("spec.target.tags match more than one instance, {count} or more that you may ask for ({}); add tags until one is left, or use instanceId", ids.join(", ")),
                    false,
                );
            }
        }
    }

    fn route(&mut self, asked: &Asked<'_>, instance: &Instance) -> Option<Route> {
        let vpc_id = instance.vpc_id.clone();
        let endpoints = match vpc_id.filter(|_| connect::needs_endpoints(asked.method, instance)) {
            None => Vec::new(),
            Some(vpc_id) => {
                let look_up = || Effect::LookUpEndpoints { place: asked.place.clone(), vpc_id };
                let look = &self.world.sight.endpoints;
                self.looked(look, look_up, GRANT_FACTS_AGE_MAX, "describe the Instance Connect Endpoints")?.clone()
            }
        };
        match connect::choose(asked.method, instance, &endpoints) {
            Ok(route) => Some(route),
            Err(no_route) => {
                self.status.instance = Some(instance_facts(instance));
                if instance.state == InstanceState::Running {
                    self.absent(asked, ActiveReason::NoRoute, no_route.to_string(), true);
                } else {
                    self.wait_for_state(asked, instance.id.as_str(), instance);
                }
                None
            }
        }
    }

    /// Returns what a look-up found, if it is fresh; otherwise plans the look-up, or the wait for the next.
    fn looked<T>(
        &mut self,
        look: &'a Look<T>,
        look_up: impl FnOnce() -> Effect,
        age_max: Duration,
        what: &str,
    ) -> Option<&'a T> {
        if let Some((time, found)) = look.seen()
            && is_fresh(self.now, time, age_max)
            && look.failure().is_none()
        {
            return Some(found);
        }
        // Nothing new to tell: what stands in status still holds.
        self.silent = true;
        if look.is_under_way() {
            return None;
        }
        if let Some((time, failure, failures)) = look.failure() {
            let uid = self.request.metadata.uid.as_deref().unwrap_or_default();
            let again = due(self.now, time, back_off(failure.class, failures, uid));
            if self.now < again {
                let (reason, message, heals) = self.failure_told(what, failure);
                self.silent = false;
                self.hold(reason, message, heals);
                self.wake(Deadline::Retry, again);
                return None;
            }
        } else if let Some((time, _)) = look.seen() {
            // An answer that was of no use is asked for again, but not at once.
            let again = due(self.now, time, self.absence_retry());
            if self.now < again {
                self.wake(Deadline::Retry, again);
                return None;
            }
        }
        self.after.push(look_up());
        None
    }

    fn absence_retry(&self) -> Duration {
        if self.holds(ConditionType::Stalled) { STALLED_RETRY } else { ABSENCE_RETRY }
    }

    fn wait_for_state(&mut self, asked: &Asked<'_>, name: &str, instance: &Instance) {
        let (reason, message, heals) = state_words(name, instance.state);
        self.absent(asked, reason, message, heals);
    }

    /// The instance is not there, or not ready: says so, and looks again later.
    fn absent(&mut self, asked: &Asked<'_>, reason: ActiveReason, message: String, heals: bool) {
        self.hold(reason, message, heals);
        let look = &self.world.sight.instances;
        let retry = if heals { ABSENCE_RETRY } else { STALLED_RETRY };
        let again = look.seen().map_or(self.now, |(time, _)| due(self.now, time, retry));
        if again > self.now {
            self.wake(Deadline::Retry, again);
        } else if let (false, Some(query)) = (look.is_under_way(), &asked.query) {
            self.after.push(look_up(asked, query, false));
        }
    }
}

pub(super) fn look_up(asked: &Asked<'_>, query: &TargetQuery, can_wait: bool) -> Effect {
    Effect::LookUpInstance { place: asked.place.clone(), query: query.clone(), can_wait }
}

/// How an instance that does not run reads in status.
pub(super) fn state_words(name: &str, state: InstanceState) -> (ActiveReason, String, bool) {
    match state {
        InstanceState::ShuttingDown | InstanceState::Terminated => {
            (ActiveReason::InstanceTerminated, format!("{name} is terminated; ask for another instance"), false)
        }
        InstanceState::Pending => {
            (ActiveReason::InstanceNotRunning, format!("{name} is starting; access follows by itself"), true)
        }
        InstanceState::Stopping | InstanceState::Stopped => (
            ActiveReason::InstanceNotRunning,
            format!("{name} is stopped; start it, and access follows by itself"),
            true,
        ),
        InstanceState::Running | InstanceState::Unknown => {
            (ActiveReason::InstanceNotRunning, format!("{name} is in no state that takes keys"), true)
        }
    }
}

fn method_of(route: &Route) -> ConnectionMethod {
    match route {
        Route::Direct { .. } => ConnectionMethod::Direct,
        Route::Endpoint { .. } => ConnectionMethod::Endpoint,
    }
}

/// What may be known of an instance before access to it is approved.
pub(super) fn instance_id_alone(instance: &Instance) -> InstanceFacts {
    InstanceFacts {
        instance_id: instance.id.to_string(),
        region: Some(instance.region.to_string()),
        account_id: None,
        availability_zone: None,
        private_ip: None,
        public_ip: None,
        ipv6: None,
        vpc_id: None,
        subnet_id: None,
    }
}

pub(super) fn instance_facts(instance: &Instance) -> InstanceFacts {
    InstanceFacts {
        instance_id: instance.id.to_string(),
        region: Some(instance.region.to_string()),
        account_id: Some(instance.account_id.to_string()),
        availability_zone: instance.availability_zone.clone(),
        private_ip: instance.private_ip.map(|address| IpAddr::from(address).to_string()),
        public_ip: instance.public_ip.map(|address| IpAddr::from(address).to_string()),
        ipv6: instance.ipv6.map(|address| IpAddr::from(address).to_string()),
        vpc_id: instance.vpc_id.clone(),
        subnet_id: instance.subnet_id.clone(),
    }
}

const _: () = assert!(GRANT_FACTS_AGE_MAX.as_secs() > ABSENCE_RETRY.as_secs());
const _: () = assert!(PUSH_TIMEOUT.as_secs() < KEY_WINDOW.as_secs());
