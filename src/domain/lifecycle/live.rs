//! While the grant lives: push again and again, look after instance and policy, and end it — by the clock, by the
//! requester, by another.
//!
//! The end is judged first and from status and clock alone: nothing that AWS, the audit trail or a requester does or
//! leaves undone can put it off (I6).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::api::{ConditionType, ConnectionMethod, EndCause, InstanceAccessSpec, KeyDelivery, Revocation};
use crate::domain::approvals::{self, Decision};
use crate::domain::cloud::{FailureClass, Instance, InstanceState};
use crate::domain::condition::{self, ActiveReason, Saying};
use crate::domain::connect::{self, Route};
use crate::domain::digest::{grant_id, spec_digest};
use crate::domain::enforcement::Enforcement;
use crate::domain::policy::Granted;
use crate::domain::push::{KEY_WINDOW, PUSH_TIMEOUT, PushPermit, REPUSH_INTERVAL};
use crate::domain::record::{Record, RecordKind};
use crate::domain::session::rules;
use crate::domain::sight::Origin;
use crate::domain::time::{due, is_fresh, plus, since, until, whole_second_up};

use super::asked::{Asked, key_push};
use super::nodes::NodeTarget;
use super::pending::{instance_facts, look_up, state_words};
use super::words::{back_off, refresh_time};
use super::{Deadline, Draft, Effect, FACTS_AGE_MAX, STOP_LATENCY_MAX, is_active, last_push_time};

/// How many passing failures in a row are worth a word in status; the first ones mostly heal before anybody reads it.
const FAILURES_WORTH_A_WORD: u32 = 3;

/// Gap between two questions whether there was a look at what guards the requests: one is begun at each.
const LANDED_RETRY: Duration = Duration::from_secs(1);

/// Why no key can be pushed now, as status tells it.
pub(super) struct Obstacle {
    pub(super) reason: ActiveReason,
    pub(super) message: String,
    pub(super) heals: bool,
    pub(super) tell: Tell,
}

/// When an obstacle is worth a word in status.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Tell {
    /// At once: an earlier key is of no use either.
    AtOnce,
    /// When the last key has faded: until then people still get in.
    OnceFaded,
    /// The same of our own keys. Where gateways push, at once: nobody may, and status is all that they hear.
    Guard,
    /// It passes by itself in a moment.
    Never,
}

/// How lost contact reads in status, once it can be written again.
pub(super) const CONTACT_LOST: &str = "the operator does not hear the API server, or its right to watch is gone; it would not hear of a revocation, so it pushes no key until it does";

impl<'a> Draft<'a> {
    pub(super) fn live(&mut self) {
        let Some(grant) = self.status.grant.clone() else { return };
        let expiration = grant.expiration_time.0;
        let begun = self.status.revocation.as_ref().map(|revocation| revocation.cause);
        if self.now >= expiration {
            let cause = begun.unwrap_or(EndCause::Expired);
            return self.end(cause, self.end_message(cause, expiration));
        }
        if begun.is_some() {
            self.keep_finalizer();
            return self.wake(Deadline::KeyWindowClosed, expiration);
        }
        self.wake(Deadline::Expiration, expiration);
        if self.is_deleted() {
            return self.begin_end(EndCause::Released, "the request was deleted".to_owned(), expiration);
        }
        if let Some(revoke) = &self.request.spec.revoke {
            let why = revoke.reason.as_deref().unwrap_or("no reason given");
            return self.begin_end(EndCause::Revoked, format!("spec.revoke was set: {why}"), expiration);
        }
        if let Some(decision) = self.revoking_decision() {
            self.note_decision(decision);
            let message = format!("{} revoked it: {}", decision.approver.username, decision.why());
            return self.begin_end(EndCause::Revoked, message, expiration);
        }
        let is_seen = self.world.policies.is_seen()
            && self.world.decisions.is_seen()
            && self.world.enforcement != &Enforcement::Unseen;
        if !is_seen || matches!(self.node(), NodeTarget::Unseen) {
            self.silent = true;
            return;
        }
        if let Err(why) = self.own_grant() {
            return self.begin_end(EndCause::PolicyChanged, why.to_owned(), expiration);
        }
        if self.status.spec_digest.as_deref() != Some(&spec_digest(&self.request.spec)) {
            // Immutable, says the CRD: so somebody has changed the CRD. What was granted was another spec (I4).
            let why = "the spec is not the one that was granted; make a new request";
            return self.begin_end(EndCause::PolicyChanged, why.to_owned(), expiration);
        }
        let asked = match self.asked() {
            Ok(asked) => asked,
            // The spec is immutable, so this is another version of the operator, or of its settings: fail closed.
            Err(findings) => return self.begin_end(EndCause::PolicyChanged, findings.join("; "), expiration),
        };
        if let Some(why) = self.node_changed(&asked) {
            return self.begin_end(EndCause::PolicyChanged, why, expiration);
        }
        self.wake_when_unheard();
        if self.has_landed_unseen() {
            self.wake(Deadline::Retry, plus(self.now, LANDED_RETRY));
        }
        let (seen_time, instance) = match self.world.sight.instances.seen() {
            Some((time, found)) => (Some(time), self.own_instance(found)),
            None => (None, None),
        };
        // Also while nodes are not heard of; what only they could tell is left open.
        if let Err(why) = self.policy_admits(&asked, instance.as_deref(), expiration) {
            return self.begin_end(EndCause::PolicyChanged, why, expiration);
        }
        self.tighten_session();
        // Nor does one leave that waits its turn: whoever said that may have meant it to stop.
        if self.world.decisions.unreadable().is_some() && self.world.sight.push.is_under_way() {
            self.before.push(Effect::StopPush);
        }
        if let NodeTarget::Unheard(why) = &asked.node {
            self.keep_finalizer();
            let heard =
                Obstacle { reason: ActiveReason::ContactLost, message: why.clone(), heals: true, tell: Tell::Guard };
            return self.tell(Some(heard), expiration);
        }
        self.keep_finalizer();
        if let Some(instance) = &instance {
            self.follow_address(&asked, instance);
        }
        self.follow_gateway(&asked);
        self.refresh(&asked, seen_time);
        self.note_landing(&asked, expiration);
        if self.is_in_vain(expiration) {
            let why = match self.world.sight.push.failure() {
                Some((_, failure, _)) => format!("{}: {}", failure.code, failure.message),
                None => "every push came too late".to_owned(),
            };
            let message = format!(
                "no key was delivered ({why}), and with {} s left none can be any more, since a key lives {} s on the instance; make a new request",
                until(self.now, expiration).as_secs(),
                KEY_WINDOW.as_secs()
            );
            return self.end(EndCause::Expired, message);
        }
        let obstacle = self.obstacle(seen_time, instance.as_deref());
        let sound = obstacle.is_none();
        self.tell(obstacle, expiration);
        if let (true, false, Some(instance)) = (sound, self.is_on_connect(), instance) {
            self.push(&asked, &instance, expiration);
        }
    }

    /// The decision that ends the grant: a party's own, or that of an approver of the policy that made it, as that policy
    /// stands now. A Deny that comes late means the same.
    fn revoking_decision(&self) -> Option<&'a Decision> {
        let decisions = self.world.decisions;
        if decisions.is_empty() {
            return None;
        }
        let parties = self.parties()?;
        let approval = self.status.policy.as_ref().and_then(|pin| self.world.policies.approval_of(pin));
        approvals::closing(&self.case("", &parties), approval, decisions)
    }

    /// Keeps the command right: an instance that was stopped and started has another public address, and the old one may
    /// be somebody else's by now.
    fn follow_address(&mut self, asked: &Asked<'_>, instance: &Instance) {
        let Some(connection) = self.status.connection.as_mut() else { return };
        if connection.method != ConnectionMethod::Direct || instance.state != InstanceState::Running {
            return;
        }
        let own = [
            instance.public_ip.map(IpAddr::from),
            instance.ipv6.map(IpAddr::from),
            instance.private_ip.map(IpAddr::from),
        ];
        if own.into_iter().flatten().any(|address| address.to_string() == connection.address) {
            return;
        }
        let Ok(route @ Route::Direct { address }) = connect::choose(ConnectionMethod::Direct, instance, &[]) else {
            return;
        };
        connection.address = address.to_string();
        if self.request.spec.key_delivery != Some(KeyDelivery::OnConnect) {
            connection.command =
                connect::command(&route, &instance.id, &instance.region, &asked.os_user, asked.port, 0);
        }
        self.status.instance = Some(instance_facts(instance));
    }

    /// Whether no key ever landed, and none can any more: then there is nothing to wait for, nor to take back.
    fn is_in_vain(&mut self, expiration: Timestamp) -> bool {
        if self.is_on_connect()
            || self.has_landed()
            || self.now <= last_push_time(expiration)
            || self.world.sight.push.is_under_way()
        {
            return false;
        }
        match self.readable_until() {
            Some(faded) if faded > self.now => {
                self.wake(Deadline::KeyWindowClosed, faded.min(expiration));
                false
            }
            _ => true,
        }
    }

    /// Whether status knows of a key that landed.
    fn has_landed(&self) -> bool {
        self.status.key.as_ref().is_none_or(|key| key.first_request_id.is_some())
    }

    /// Looks again when no push may leave any more, if none has landed: see `is_in_vain`.
    fn wake_in_vain(&mut self, last_push_time: Timestamp) {
        if !self.has_landed() {
            self.wake(Deadline::GiveUp, plus(last_push_time, Duration::from_secs(1)));
        }
    }

    fn end_message(&self, cause: EndCause, expiration: Timestamp) -> String {
        let how = match cause {
            EndCause::Expired => "the grant's time was over".to_owned(),
            EndCause::Released => "the request was deleted".to_owned(),
            EndCause::Revoked if let Some(told) = self.closing_decision() => {
                format!("{} revoked it: {}", told.approver, told.reason.as_deref().unwrap_or("no reason given"))
            }
            EndCause::Revoked => {
                let reason = self.request.spec.revoke.as_ref().and_then(|revoke| revoke.reason.as_deref());
                format!("spec.revoke was set: {}", reason.unwrap_or("no reason given"))
            }
            // No grant ends as `Consumed`: it is the end of a request that never had one.
            EndCause::PolicyChanged | EndCause::Consumed => "no policy stands behind it any more".to_owned(),
        };
        format!(
            "{how}; no key is readable by the host since {expiration}, and no new login is possible. Sessions through a gateway are cut; others that were open are not"
        )
    }

    /// Puts the finalizer back: whoever may edit the request may take it off, and a deletion would then not end the
    /// grant first (I6).
    fn keep_finalizer(&mut self) {
        if !self.is_deleted() && !self.has_finalizer() {
            self.before.push(Effect::AddFinalizer);
        }
    }

    /// The instance that the grant is for, among those that the target matches now.
    fn own_instance(&self, found: &[Arc<Instance>]) -> Option<Arc<Instance>> {
        let id = self.status.instance.as_ref().map(|instance| instance.instance_id.as_str());
        match found {
            [instance] if Some(instance.id.as_str()) == id => Some(Arc::clone(instance)),
            _ => None,
        }
    }

    /// Whether the grant came while the leader before may have been storing it, and nobody has looked since at what guards
    /// the requests: then it lives, as far as is known, and no key is pushed for it.
    fn has_landed_unseen(&self) -> bool {
        self.status.grant.as_ref().is_some_and(|grant| self.world.sight.origin(grant) == Origin::Landed)
    }

    /// Whether the grant in status is the operator's: status is anybody's who may write it while nothing guards it.
    fn own_grant(&self) -> Result<(), &'static str> {
        let Some(grant) = &self.status.grant else { return Ok(()) };
        if self.world.ledger.is_over(self.request) {
            return Err(
                "this grant was ended, or began to be; the operator remembers it or reads it in its audit trail, and the API server does not, as after etcd was restored from an older copy, or after the operator ended between its record and its write; make a new request",
            );
        }
        let uid = self.request.metadata.uid.as_deref().unwrap_or_default();
        if self.status.spec_digest.as_deref().is_none_or(|digest| grant.id != grant_id(uid, digest)) {
            return Err("the grant in status is another request's, or another spec's; make a new request");
        }
        match (self.world.sight.origin(grant), self.world.enforcement) {
            (Origin::Ours | Origin::Vouched, _) => Ok(()),
            (Origin::Foreign, _) => Err("status holds a grant that the operator did not make; make a new request"),
            // Not yet decided, and no key is pushed.
            (Origin::Found | Origin::Landed, Enforcement::Unseen | Enforcement::Missing(_)) => Ok(()),
            (Origin::Found | Origin::Landed, stands) if stands.covers(grant.start_time.0) => Ok(()),
            (Origin::Found | Origin::Landed, Enforcement::Stands { .. }) => Err(
                "the grant is older than the admission policies or CRDs that stand now, and the operator was restarted since, so nobody knows whether it is the operator's; make a new request",
            ),
        }
    }

    fn policy_admits(
        &self,
        asked: &Asked<'_>,
        instance: Option<&Instance>,
        expiration: Timestamp,
    ) -> Result<(), String> {
        let Some(pin) = &self.status.policy else {
            return Err("the grant names no policy".to_owned());
        };
        let method = self.status.connection.as_ref().map_or(ConnectionMethod::Auto, |connection| connection.method);
        let spec: &InstanceAccessSpec = &self.request.spec;
        let mut question = asked.question(self.now, spec, instance, method);
        let start = self.status.grant.as_ref().map_or(expiration, |grant| grant.start_time.0);
        let seconds = i32::try_from(until(start, expiration).as_secs()).unwrap_or(i32::MAX);
        question.granted = Some(Granted { seconds, until: expiration });
        self.world.policies.still_admits(pin, &question)
    }

    /// Has an edit of the policy reach the grant's sessions, where it binds them more.
    fn tighten_session(&mut self) {
        if let (Some(pin), Some(grant)) = (&self.status.policy, self.status.grant.as_mut()) {
            grant.session = rules::tightened(grant.session, self.world.policies.session_of(pin));
        }
    }

    /// Takes access back: at once where no key can be on the instance, else when the last one has faded.
    fn begin_end(&mut self, cause: EndCause, message: String, expiration: Timestamp) {
        let readable_until = self.readable_until();
        self.last_send_time = self.last_send_time();
        let closed = match readable_until {
            Some(until) if until > self.now => whole_second_up(until).min(expiration),
            _ => return self.end(cause, message),
        };
        if let Some(grant) = self.status.grant.as_mut() {
            grant.expiration_time = Time(closed);
        }
        self.status.revocation = Some(Revocation { cause, key_window_closed_time: Some(Time(closed)) });
        let told = format!("{message}; no key is pushed any more, the last one is readable by the host until {closed}");
        self.unsay(ConditionType::Ended);
        self.say(Saying::revocation_pending(told.clone()));
        self.say(Saying::reconciling(ActiveReason::RevocationPending, told.clone()));
        self.unsay(ConditionType::Stalled);
        self.before.push(Effect::StopPush);
        let record = Record { cause: Some(cause), message: Some(message), ..self.record(RecordKind::EndIntended) };
        self.audit(false, record);
        self.event(false, ActiveReason::RevocationPending.as_str(), told);
        self.look_again = None;
        self.wake(Deadline::KeyWindowClosed, closed);
    }

    /// Until when a key of this grant may be readable by the host; of pushes before this process started, the worst is
    /// assumed: that one left just then.
    pub(super) fn readable_until(&self) -> Option<Timestamp> {
        let sight = self.world.sight;
        let by_gateways = self.readable_by_gateways();
        if self.is_on_connect() {
            return by_gateways;
        }
        // A first push that is not ours was another process', whatever our clocks say of who came first.
        let unknown = (self.is_restarted() || !self.first_push_is_ours())
            .then(|| plus(plus(sight.since_time, PUSH_TIMEOUT), KEY_WINDOW));
        let flying =
            sight.push.is_under_way().then(|| plus(plus(plus(self.now, STOP_LATENCY_MAX), PUSH_TIMEOUT), KEY_WINDOW));
        unknown.max(flying).max(sight.push.readable_until()).max(by_gateways)
    }

    /// Looks at the instance again, in its slot of the minute.
    pub(super) fn refresh(&mut self, asked: &Asked<'_>, seen_time: Option<Timestamp>) {
        let look = &self.world.sight.instances;
        if look.is_under_way() {
            return;
        }
        let uid = self.request.metadata.uid.as_deref().unwrap_or_default();
        let again = match (look.failure(), seen_time) {
            (Some((time, failure, failures)), _) => due(self.now, time, back_off(failure.class, failures, uid)),
            // Of a clock that was stepped back since.
            (None, Some(time)) if time > self.now => self.now,
            (None, Some(time)) => {
                let target = self.status.instance.as_ref().map_or("", |instance| instance.instance_id.as_str());
                refresh_time(time, target)
            }
            (None, None) => self.now,
        };
        let Some(query) = &asked.query else { return };
        if again <= self.now {
            // Keys are pushed on the last look for as long again.
            let can_wait = seen_time.is_some_and(|time| is_fresh(self.now, time, FACTS_AGE_MAX / 2));
            self.after.push(look_up(asked, query, can_wait));
        } else {
            self.wake(Deadline::Refresh, again);
        }
    }

    /// The first landed push is told; those after it are not.
    fn note_landing(&mut self, asked: &Asked<'_>, expiration: Timestamp) {
        let push = &self.world.sight.push;
        let Some(request_id) = push.request_id().map(str::to_owned) else { return };
        let first = self.status.key.as_ref().is_some_and(|key| key.first_request_id.is_none());
        if first && let Some(key) = self.status.key.as_mut() {
            key.first_request_id = Some(request_id.clone());
            key.last_request_id = Some(request_id.clone());
            key.pushes = Some(push.landed_count());
        }
        if first {
            let record = Record { request_id: Some(request_id), ..self.record(RecordKind::Granted) };
            self.audit(false, record);
            let note = format!("{} can log in as {} until {expiration}", asked.subject_name(), asked.os_user);
            self.event(false, ActiveReason::Granted.as_str(), note);
        }
    }

    /// What keeps a key from being pushed, or from being of use.
    fn obstacle(&self, seen_time: Option<Timestamp>, instance: Option<&Instance>) -> Option<Obstacle> {
        let sight = self.world.sight;
        let guard = |reason, message, heals| Some(Obstacle { reason, message, heals, tell: Tell::Guard });
        let unseen = |reason, message, heals| Some(Obstacle { reason, message, heals, tell: Tell::OnceFaded });
        if self.contact_is_lost() {
            return guard(ActiveReason::ContactLost, CONTACT_LOST.to_owned(), true);
        }
        if let Err(why) = self.enforced() {
            return guard(ActiveReason::EnforcementMissing, why.unwrap_or_default(), true);
        }
        if self.has_landed_unseen() {
            let message = "its status came while the operator took over; it counts once the operator has looked at what guards the requests, in a moment".to_owned();
            let reason = ActiveReason::EnforcementMissing;
            // Gateways go by status alone, and it may be a forged one's word that they may push.
            let tell = if self.is_on_connect() { Tell::Guard } else { Tell::Never };
            return Some(Obstacle { reason, message, heals: true, tell });
        }
        if let Some(why) = self.unreadable_decision() {
            return guard(ActiveReason::DecisionUnreadable, why, false);
        }
        if seen_time.is_none_or(|time| !is_fresh(self.now, time, FACTS_AGE_MAX)) {
            return match sight.instances.failure() {
                Some((_, failure, _)) => {
                    let (reason, message, heals) = self.failure_told("describe the instance", failure);
                    unseen(reason, message, heals)
                }
                None => Some(Obstacle {
                    reason: ActiveReason::AwsUnavailable,
                    message: "looking at the instance".to_owned(),
                    heals: true,
                    tell: Tell::Never,
                }),
            };
        }
        let at_once = |reason, message, heals| Some(Obstacle { reason, message, heals, tell: Tell::AtOnce });
        match instance {
            None => {
                return at_once(
                    ActiveReason::TargetNotFound,
                    "spec.target no longer matches the granted instance, or not it alone".to_owned(),
                    true,
                );
            }
            Some(instance) if instance.state != InstanceState::Running => {
                let (reason, message, heals) = state_words(instance.id.as_str(), instance.state);
                return at_once(reason, message, heals);
            }
            Some(_) => {}
        }
        if self.audit_retry_time().is_some() {
            let message = "the audit trail takes no record, and no key is pushed without one; an administrator must look at the operator's disk";
            return guard(ActiveReason::AuditUnavailable, message.to_owned(), true);
        }
        None
    }

    /// Says whether access is possible now. Written only where the answer changes.
    fn tell(&mut self, obstacle: Option<Obstacle>, expiration: Timestamp) {
        if self.is_on_connect() {
            return self.tell_on_connect(obstacle, expiration);
        }
        let push = &self.world.sight.push;
        let fresh = push.landed_time().is_some_and(|time| self.now < due(self.now, time, KEY_WINDOW));
        let good = fresh || is_active(&self.status) && self.may_still_be_good(expiration);
        if let Some(Obstacle { reason, message, heals, tell }) = obstacle {
            match tell {
                Tell::OnceFaded | Tell::Guard if good => self.wake_when_faded(),
                Tell::AtOnce | Tell::OnceFaded | Tell::Guard => self.hold(reason, message, heals),
                Tell::Never => {}
            }
            if let Some(again) = self.audit_retry_time() {
                self.wake(Deadline::Retry, again);
            }
            return;
        }
        if let Some((_, failure, failures)) = push.failure() {
            let passing = matches!(failure.class, FailureClass::Retry | FailureClass::Throttled);
            if good {
                self.wake_when_faded();
            } else if !(passing && failures < FAILURES_WORTH_A_WORD) {
                let (reason, message, heals) = self.failure_told("take the key", failure);
                self.hold(reason, message, heals);
            }
            return;
        }
        if fresh && condition::active_reason(&self.status) != Some(ActiveReason::Granted.as_str()) {
            self.say(Saying::active(format!(
                "the key is on the instance and renewed every {} s until {expiration}; that AWS took it proves neither that the login {} exists nor that sshd asks EC2 Instance Connect",
                REPUSH_INTERVAL.as_secs(),
                self.request.spec.os_user
            )));
            self.say(Saying::not_ended());
            self.unsay(ConditionType::Reconciling);
            self.unsay(ConditionType::Stalled);
        }
    }

    /// Whether access that stood at True may still be: in the grant's last minute no key is pushed any more, as was
    /// promised; and just after a restart the key is there that the process before us pushed.
    fn may_still_be_good(&self, expiration: Timestamp) -> bool {
        let sight = self.world.sight;
        let fading = self.now > last_push_time(expiration);
        let inherited = sight.push.landed_time().is_none() && since(self.now, sight.since_time) < KEY_WINDOW;
        fading || inherited
    }

    /// While no key can be pushed, looks again when the last one fades: from then on status must not say otherwise.
    fn wake_when_faded(&mut self) {
        let sight = self.world.sight;
        let faded = plus(sight.push.landed_time().unwrap_or(sight.since_time), KEY_WINDOW);
        if faded > self.now {
            self.wake(Deadline::KeyWindowClosed, faded);
        }
    }

    /// Pushes if it is time to, and may.
    fn push(&mut self, asked: &Asked<'_>, instance: &Instance, expiration: Timestamp) {
        let push = &self.world.sight.push;
        let not_after = last_push_time(expiration);
        if push.is_under_way() || self.now > not_after {
            return;
        }
        // What it says of the last key would be of the one before.
        if let Some(until) = self.world.sight.end_lands_until(self.now) {
            return self.wake(Deadline::Retry, until);
        }
        let uid = self.request.metadata.uid.as_deref().unwrap_or_default();
        let due_time = match (push.failure(), push.landed_time()) {
            (Some((time, failure, failures)), _) => match failure.class {
                // It would be refused again: the request is wrong, and immutable.
                FailureClass::Invalid => return self.wake_in_vain(not_after),
                FailureClass::Retry
                | FailureClass::Throttled
                | FailureClass::Refused
                | FailureClass::Gone
                | FailureClass::Bug => due(self.now, time, back_off(failure.class, failures, uid)),
            },
            (None, Some(time)) => due(self.now, time, REPUSH_INTERVAL),
            (None, None) => self.now,
        };
        if due_time > self.now {
            if due_time <= not_after {
                self.wake(Deadline::Repush, due_time);
            } else {
                self.wake_in_vain(not_after);
            }
            return;
        }
        let record = Record {
            request_id: push.request_id().map(str::to_owned),
            pushes: Some(push.landed_count()),
            // Each try has a record of its own, also where nothing landed between them: one that nobody answered may have.
            message: push
                .failure()
                .map(|(_, failure, failures)| format!("try {} after {}", failures + 1, failure.code)),
            ..self.record(RecordKind::PushIntended)
        };
        self.audit(true, record);
        self.after.push(Effect::Push(PushPermit::new(not_after, key_push(asked, instance))));
    }
}

const _: () = assert!(FACTS_AGE_MAX.as_secs() > 3 * super::REFRESH_INTERVAL.as_secs());
