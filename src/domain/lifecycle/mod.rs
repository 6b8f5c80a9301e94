//! The life of a request: `next(now, request, world)` says what to do, and knows everything that can be decided wrongly.
//!
//! ```text
//!            ┌ Denied                 ┌ PendingApproval
//! request ───┤                       ┌ InstanceNotRunning, Throttled, …  (heals, or waits)
//!            └ look up ─ admit ─ Granting ─ Granted ─┬──────────────────── Ended (Expired)
//!                                                    └ RevocationPending ─ Ended (Released, Revoked)
//! ```
//! The shell carries the plan out, tells `Sight` what it saw, and asks again until nothing is left to do. A crash at any
//! point loses the `Sight` only; what follows from the stored status alone is then decided for the worst case.

mod again;
mod asked;
mod ledger;
mod limits;
mod live;
mod nodes;
mod on_connect;
mod pending;
mod people;
mod plan;
mod settled;
mod words;

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::api::{
    ConditionStatus, ConditionType, EndCause, FINALIZER, InstanceAccess, InstanceAccessStatus, Revocation,
};

use super::approvals::Decisions;
use super::census::{Census, Claim};
use super::cloud::{Failure, Region};
use super::condition::{self, ActiveReason, DenyReason, EndReason, Saying, bounded, bounded_bytes};
use super::connect::GatewayAddress;
use super::digest::spec_digest;
use super::enforcement::Enforcement;
use super::identity::PrincipalRule;
use super::ledger::Ledger;
use super::node::Nodes;
use super::policy::PolicySet;
use super::push::{KEY_WINDOW, PUSH_TIMEOUT};
use super::record::{Record, RecordKind};
use super::sight::Sight;
use super::time::{due, is_fresh, minus, plus, whole_second};

pub use again::Ground;
pub use on_connect::{SEND_TIME_MAX, STORE_TIME_MAX};
pub use plan::{Deadline, Effect, Lane, Plan};
pub use settled::is_settled;
use words::failure_words;

/// Longest time that a request may wait for its instance, for AWS or for the audit trail, from its creation or start:
/// nobody should be let in by a request that everybody has forgotten.
pub const GRANT_DEADLINE: Duration = Duration::from_secs(24 * 3600);
/// Gap between two looks at the instance of a live grant. A stopped instance, or changed tags, are noticed that late.
pub const REFRESH_INTERVAL: Duration = Duration::from_secs(60);
/// Oldest look at the instance on which a key is still pushed: three missed refreshes.
pub const FACTS_AGE_MAX: Duration = Duration::from_secs(240);
/// How long a key is still pushed without a word from the API server: a short restart of it closes nobody's access, and
/// whoever cuts the operator off keeps theirs no longer than this and a key's window.
pub const CONTACT_GRACE: Duration = Duration::from_secs(60);
/// How missing enforcement reads in status; the findings follow.
const ENFORCEMENT_MISSING: &str = "an administrator must mend what guards requests in the API server; until then who asks may be forged, so nothing is granted and no key is pushed";
/// Gap between two tries of an audit trail that takes no record.
pub const AUDIT_RETRY: Duration = Duration::from_secs(5);
/// Gap between two looks for an instance that is not there, or not running.
const ABSENCE_RETRY: Duration = Duration::from_secs(15);
/// How long a new instance may be unknown to DescribeInstances (it is eventually consistent) before we call it wrong.
const ABSENCE_GRACE: Duration = Duration::from_secs(300);
/// How far the clocks of two operators may be apart: a grant that seems this much younger than our lead may still be
/// another's, with pushes that we know nothing of. NTP keeps hosts within a fraction of it.
const CLOCK_SKEW_MAX: Duration = Duration::from_secs(5);
/// How long the shell may take from a plan to its `StopPush`, which stands first: so late a waiting push may still leave.
const STOP_LATENCY_MAX: Duration = Duration::from_secs(1);
/// The longest note of an event, in bytes. Source: Kubernetes, `noteLengthLimit`; a longer one is refused.
const NOTE_BYTES_MAX: usize = 1024;
/// Gap between two looks for what no waiting heals: somebody may mend it all the same.
const STALLED_RETRY: Duration = Duration::from_secs(600);

/// What the decision needs besides the request.
#[derive(Clone, Copy, Debug)]
pub struct World<'a> {
    /// The operator's own place.
    pub settings: &'a Settings,
    /// Every policy of the cluster: the shell asks only after it has seen them all.
    pub policies: &'a PolicySet,
    /// What people decided about this request.
    pub decisions: &'a Decisions,
    /// The cluster's nodes.
    pub nodes: &'a Nodes,
    /// Whether what guards the requests stands in the API server.
    pub enforcement: &'a Enforcement,
    /// How many grants live, and whose.
    pub census: &'a Census,
    /// The grants that were consumed.
    pub ledger: &'a Ledger,
    /// What this process saw of the request.
    pub sight: &'a Sight,
}

/// What the operator's configuration says.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The operator's region: where a request's target is looked for, if it does not say.
    pub region: Option<Region>,
    /// Who is the same person.
    pub principals: PrincipalRule,
    /// Where people reach the gateway; none: there is none, and nobody could connect on a grant without pushes.
    pub gateway: Option<GatewayAddress>,
}

/// Says what to do for this request now.
///
/// Asked again on what it led to, it answers with an empty plan and the same deadline.
pub fn next(now: Timestamp, request: &InstanceAccess, world: World<'_>) -> Plan {
    let mut draft = Draft::new(now, request, world);
    if draft.is_terminal() {
        draft.after_the_end();
    } else if draft.status.grant.is_some() {
        draft.live();
    } else {
        draft.pending();
    }
    draft.call_off(draft.is_deleted());
    draft.into_plan()
}

/// Says what to do for a request that is gone although it had a grant: somebody took our finalizer off.
///
/// One that had none leaves nothing behind, but for the word that what was on record of it did not come about.
/// Nothing is pushed any more, and the record of the end is owed, as is its entry in the ledger; `status` has nowhere to
/// go. A plan that names no time to look again is the last.
pub fn vanished(now: Timestamp, settings: &Settings, request: &InstanceAccess, ledger: &Ledger, sight: &Sight) -> Plan {
    let (policies, decisions, nodes) = (&PolicySet::default(), &Decisions::default(), &Nodes::default());
    let (enforcement, census) = (&Enforcement::Unseen, &Census::default());
    let world = World { settings, policies, decisions, nodes, enforcement, census, ledger, sight };
    let mut draft = Draft::new(now, request, world);
    if draft.status.grant.is_none() {
        draft.call_off(true);
        return Plan { before: draft.before, ..Plan::default() };
    }
    let lives = !draft.is_terminal();
    let owes_record = !lives && draft.status.audit.is_none();
    // It is over when the last key has faded, and not when the object went. Tried again, the end is the same.
    let faded = draft.readable_until().unwrap_or(Timestamp::MIN);
    let end_time = sight.gone_time.unwrap_or(now).max(faded);
    if lives && faded > now {
        draft.wake(Deadline::KeyWindowClosed, faded);
    } else if (lives || owes_record)
        && let Some(again) = draft.audit_retry_time()
    {
        draft.wake(Deadline::Retry, again);
    } else if owes_record {
        let record = draft.end_record();
        draft.audit(true, record);
    } else if lives {
        draft.now = end_time.min(now);
        draft.end(EndCause::Released, "the request vanished from the API server while its grant lived");
        for effect in &mut draft.before {
            if let Effect::Audit { required, .. } = effect {
                *required = true;
            }
        }
    }
    // At once: whoever makes it again does not wait until the key has faded.
    let entry = draft.entry_owed(whole_second(end_time)).map(|entry| Effect::Enter(Box::new(entry)));
    Plan { before: draft.before, after: entry.into_iter().collect(), look_again: draft.look_again, ..Plan::default() }
}

/// Whether so little is heard of the API server since that time that no key may be pushed, nor one that waits leave.
pub fn is_contact_lost(now: Timestamp, lost_time: Option<Timestamp>) -> bool {
    lost_time.is_some_and(|time| !is_fresh(now, time, CONTACT_GRACE))
}

/// When the last push of a grant may leave, a whole second in UTC.
///
/// That is `KEY_WINDOW` and `PUSH_TIMEOUT` before `expiration_time` (I1).
pub fn last_push_time(expiration_time: Timestamp) -> Timestamp {
    whole_second(minus(minus(expiration_time, KEY_WINDOW), PUSH_TIMEOUT))
}

/// A plan in the making.
struct Draft<'a> {
    now: Timestamp,
    request: &'a InstanceAccess,
    world: World<'a>,
    generation: i64,
    status: InstanceAccessStatus,
    before: Vec<Effect>,
    after: Vec<Effect>,
    look_again: Option<(Deadline, Timestamp)>,
    /// Until when the status may leave, if its promise depends on that.
    last_send_time: Option<Timestamp>,
    /// The place under the policy's limits.
    claim: Option<Claim>,
    /// Set where nothing may be stored yet: the look-up is still out.
    silent: bool,
}

impl<'a> Draft<'a> {
    fn new(now: Timestamp, request: &'a InstanceAccess, world: World<'a>) -> Self {
        Self {
            now,
            request,
            world,
            generation: request.metadata.generation.unwrap_or_default(),
            status: request.status.clone().unwrap_or_default(),
            before: Vec::new(),
            after: Vec::new(),
            look_again: None,
            last_send_time: None,
            claim: None,
            silent: false,
        }
    }

    fn into_plan(mut self) -> Plan {
        self.settle_claim();
        if !self.silent {
            self.status.observed_generation = Some(self.generation);
            // What is still said is said of this generation: who waits for a condition reads no older one.
            for condition in &mut self.status.conditions {
                condition.observed_generation = self.generation;
            }
            if self.status.spec_digest.is_none() {
                self.status.spec_digest = Some(spec_digest(&self.request.spec));
            }
        }
        let changed = !self.silent && Some(&self.status) != self.request.status.as_ref();
        // A record that was made up for is worth a write: its receipt is the proof that it is not missing any more.
        let owed = self
            .before
            .iter()
            .any(|effect| matches!(effect, Effect::Audit { record, .. } if record.kind == RecordKind::Ended));
        Plan {
            before: self.before,
            status: (changed || owed).then(|| Box::new(self.status)),
            last_send_time: self.last_send_time,
            after: self.after,
            look_again: self.look_again,
        }
    }

    fn holds(&self, type_: ConditionType) -> bool {
        condition::is_true(&self.status.conditions, type_)
    }

    fn is_terminal(&self) -> bool {
        self.holds(ConditionType::Ended) || self.holds(ConditionType::Denied)
    }

    fn is_deleted(&self) -> bool {
        self.request.metadata.deletion_timestamp.is_some()
    }

    fn has_finalizer(&self) -> bool {
        self.request.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER)
    }

    fn say(&mut self, saying: Saying) {
        condition::set(&mut self.status.conditions, saying, self.generation, self.now);
    }

    fn unsay(&mut self, type_: ConditionType) {
        condition::drop(&mut self.status.conditions, type_);
    }

    fn wake(&mut self, deadline: Deadline, time: Timestamp) {
        if self.look_again.is_none_or(|(_, earliest)| time < earliest) {
            self.look_again = Some((deadline, time));
        }
    }

    fn event(&mut self, warning: bool, reason: &'static str, note: impl Into<String>) {
        self.after.push(Effect::Event { warning, reason, note: bounded_bytes(note.into(), NOTE_BYTES_MAX) });
    }

    fn audit(&mut self, required: bool, mut record: Record) {
        record.message = record.message.map(|message| bounded(message, condition::MESSAGE_LENGTH_MAX));
        self.before.push(Effect::Audit { record: Box::new(record), required });
    }

    fn record(&self, kind: RecordKind) -> Record {
        Record::of(kind, self.request, &self.status)
    }

    /// Over: what is left is a missing record, a stale observedGeneration, and letting the object go.
    fn after_the_end(&mut self) {
        let owes_record = self.status.grant.is_some() && self.status.audit.is_none();
        if owes_record {
            if let Some(again) = self.audit_retry_time() {
                self.wake(Deadline::Retry, again);
                return;
            }
            let record = self.end_record();
            self.audit(true, record);
            return;
        }
        if self.is_deleted() && self.has_finalizer() {
            // It goes: that its status speaks of the generation before is not worth a write.
            self.silent = true;
            self.let_go();
        }
    }

    /// Whether so little is heard of the API server that no key may be pushed.
    fn contact_is_lost(&self) -> bool {
        is_contact_lost(self.now, self.world.sight.contact_lost_time)
    }

    /// Whether the API server enforces all that a grant and a push stand on.
    ///
    /// `Err` has the words for status; none, if nobody has looked yet: then there is nothing to say.
    fn enforced(&self) -> Result<(), Option<String>> {
        match self.world.enforcement {
            Enforcement::Stands { .. } => Ok(()),
            Enforcement::Unseen => Err(None),
            Enforcement::Missing(why) => Err(Some(format!("{ENFORCEMENT_MISSING}: {why}"))),
        }
    }

    /// When to try the audit trail again, while it is known to take no record.
    fn audit_retry_time(&self) -> Option<Timestamp> {
        let again = due(self.now, self.world.sight.audit_failed_time?, AUDIT_RETRY);
        (self.now < again).then_some(again)
    }

    /// Ends the request now, with or without a grant.
    fn end(&mut self, cause: EndCause, message: impl Into<String>) {
        let message = message.into();
        let reason = end_reason(cause);
        let end_time = match &self.status.grant {
            Some(grant) => whole_second(self.now.min(grant.expiration_time.0)),
            None => whole_second(self.now),
        };
        if self.status.grant.is_some() {
            // What was promised when access began to be taken back stands; else the worst of what is known.
            let promised =
                self.status.revocation.as_ref().and_then(|revocation| revocation.key_window_closed_time.clone());
            let closed =
                promised.unwrap_or_else(|| Time(whole_second(self.readable_until().unwrap_or(end_time).min(end_time))));
            self.status.revocation = Some(Revocation { cause, key_window_closed_time: Some(closed) });
        } else {
            self.status.revocation = Some(Revocation { cause, key_window_closed_time: None });
        }
        self.status.end_time = Some(Time(end_time));
        self.forget_waiting_for_approval();
        self.count_pushes();
        self.say(Saying::inactive(reason.active(), message.clone()));
        self.say(Saying::ended(reason, message.clone()));
        self.unsay(ConditionType::Reconciling);
        self.unsay(ConditionType::Stalled);
        self.look_again = None;
        if self.status.grant.is_some() {
            // The shell puts in the receipt of the record below; without one, the record is owed.
            self.status.audit = None;
            self.before.push(Effect::StopPush);
            let record = self.end_record();
            self.audit(false, record);
        } else if cause == EndCause::PolicyChanged {
            // Approved, and refused before it began: that is on record as any refusal.
            let message = Some(message.clone());
            let record = Record { cause: Some(cause), message, ..self.record(RecordKind::Denied) };
            self.audit(false, record);
        }
        self.event(false, reason.active().as_str(), message);
    }

    /// Says in the trail that what it was told does not come about. Whoever reads it back would believe that the request was
    /// refused, granted, or its access taken back, and end who waits or has it.
    ///
    /// Of one that goes that matters for its grant alone: whoever makes it again would find that consumed.
    fn call_off(&mut self, goes: bool) {
        let World { ledger, sight, .. } = self.world;
        if is_over(self.request) {
            return;
        }
        let (has_grant, is_terminal) = (self.status.grant.is_some(), self.is_terminal());
        // It is worth a wait for the trail, but no end waits, and nothing that goes.
        let required = !is_terminal && !goes;
        // After the call that stops a push, and before any record of what comes instead.
        let mut place = usize::from(self.before.first() == Some(&Effect::StopPush));
        for told in sight.told(self.now, self.request) {
            // What is known otherwise was so before this process put it on record, or came about: an etcd that was restored
            // has forgotten it, and whoever took it back would give it anew.
            let (comes, is_known, what) = match told {
                RecordKind::Denied => (has_grant || is_terminal || goes, ledger.is_closed(self.request), "the refusal"),
                RecordKind::EndIntended => {
                    let is_revoked = self.status.revocation.is_some();
                    (is_revoked || is_terminal || goes, ledger.is_over(self.request), "the end")
                }
                RecordKind::GrantIntended => (has_grant, ledger.is_consumed(self.request), "the grant"),
                RecordKind::Granted | RecordKind::PushIntended | RecordKind::Ended | RecordKind::CalledOff => continue,
            };
            if comes || is_known {
                continue;
            }
            if let (true, Some(again)) = (required, self.audit_retry_time()) {
                return self.wake(Deadline::Retry, again);
            }
            let message = Some(format!("{what} that was on record was called off before its status was stored"));
            // Of a request that has no status yet, too: whoever reads it back finds what it is about by this.
            let digest = self.status.spec_digest.clone().unwrap_or_else(|| spec_digest(&self.request.spec));
            let record = self.record(RecordKind::CalledOff);
            let record = Box::new(Record { message, spec_digest: digest, called_off: Some(*told), ..record });
            self.before.insert(place, Effect::Audit { record, required });
            place += 1;
        }
    }

    fn end_record(&self) -> Record {
        let ended = condition::find(&self.status.conditions, ConditionType::Ended);
        Record {
            request_id: self.status.key.as_ref().and_then(|key| key.last_request_id.clone()),
            pushes: self.status.key.as_ref().and_then(|key| key.pushes),
            cause: self.status.revocation.as_ref().map(|revocation| revocation.cause),
            end_time: self.status.end_time.clone(),
            message: ended.map(|ended| ended.message.clone()),
            ..self.record(RecordKind::Ended)
        }
    }

    /// Brings the count of pushes into status; only where a status is written anyway.
    fn count_pushes(&mut self) {
        if self.is_on_connect() {
            return;
        }
        let ours = self.first_push_is_ours();
        let push = &self.world.sight.push;
        if let Some(key) = self.status.key.as_mut() {
            // What was stored before and is not ours was counted by another process.
            let stored = if ours { 0 } else { key.pushes.unwrap_or_default() };
            key.pushes = Some(stored.saturating_add(push.landed_count()));
            key.first_request_id = key.first_request_id.take().or_else(|| push.first_request_id().map(str::to_owned));
            if let Some(request_id) = push.request_id() {
                key.last_request_id = Some(request_id.to_owned());
            }
        }
    }

    /// Whether the first landed push that status tells of, if any, was made by this process.
    fn first_push_is_ours(&self) -> bool {
        let told = self.status.key.as_ref().and_then(|key| key.first_request_id.as_deref());
        told.is_none_or(|told| self.world.sight.push.first_request_id() == Some(told))
    }

    /// Whether the grant may be older than this process' lead, which then knows nothing of its first pushes.
    fn is_restarted(&self) -> bool {
        let since = plus(whole_second(self.world.sight.since_time), CLOCK_SKEW_MAX);
        self.status.grant.as_ref().is_some_and(|grant| grant.start_time.0 <= since)
    }

    /// Refuses. What was approved before can only end.
    fn refuse(&mut self, reason: DenyReason, message: impl Into<String>) {
        let message = message.into();
        if self.holds(ConditionType::Approved) {
            return self.end(EndCause::PolicyChanged, message);
        }
        self.forget_waiting_for_approval();
        self.say(Saying::denied(reason, message.clone()));
        self.say(Saying::inactive(ActiveReason::Denied, message.clone()));
        self.say(Saying::ended(EndReason::Denied, message.clone()));
        self.unsay(ConditionType::Reconciling);
        self.say(Saying::stalled(ActiveReason::Denied, "refused for good; make a new request"));
        self.look_again = None;
        let record = Record { message: Some(message.clone()), ..self.record(RecordKind::Denied) };
        self.audit(false, record);
        self.event(true, reason.as_str(), message);
    }

    /// How a failed call reads in status.
    ///
    /// AWS puts ids and encoded texts into its messages, another one each time: while the failure is the same, the words
    /// that stand are kept, or each retry would be a write.
    fn failure_told(&self, what: &str, failure: &Failure) -> (ActiveReason, String, bool) {
        let (reason, message, heals) = failure_words(what, failure);
        let stem = failure_words(what, &Failure { message: "\0".to_owned(), ..failure.clone() }).1;
        let stem = stem.split('\0').next().unwrap_or_default();
        let standing = condition::find(&self.status.conditions, ConditionType::Active)
            .filter(|active| active.reason == reason.as_str() && active.message.starts_with(stem));
        (reason, standing.map_or(message, |standing| standing.message.clone()), heals)
    }

    /// Cannot be served now: says why, whether it heals, and when to try again.
    fn hold(&mut self, reason: ActiveReason, message: impl Into<String>, heals: bool) {
        let message = message.into();
        let before = condition::active_reason(&self.status).map(str::to_owned);
        self.unsay(ConditionType::Ended);
        self.say(Saying::inactive(reason, message.clone()));
        if heals {
            self.say(Saying::reconciling(reason, message.clone()));
            self.unsay(ConditionType::Stalled);
        } else {
            self.unsay(ConditionType::Reconciling);
            self.say(Saying::stalled(reason, message.clone()));
        }
        if before.as_deref() != Some(reason.as_str()) {
            self.event(true, reason.as_str(), message);
        }
    }
}

/// The word of an end's cause.
pub fn end_reason(cause: EndCause) -> EndReason {
    match cause {
        EndCause::Expired => EndReason::Expired,
        EndCause::Released => EndReason::Released,
        EndCause::Revoked | EndCause::PolicyChanged => EndReason::Revoked,
        EndCause::Consumed => EndReason::Consumed,
    }
}

/// Whether nothing is judged of a request any more.
pub fn is_over(request: &InstanceAccess) -> bool {
    let conditions = request.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    condition::is_true(conditions, ConditionType::Ended) || condition::is_true(conditions, ConditionType::Denied)
}

/// Whether `Active` stands at True.
fn is_active(status: &InstanceAccessStatus) -> bool {
    condition::find(&status.conditions, ConditionType::Active)
        .is_some_and(|condition| condition.status == ConditionStatus::True)
}

#[cfg(test)]
mod tests;
