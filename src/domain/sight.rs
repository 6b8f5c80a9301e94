//! What this process saw of one request since it started: the facts that status does not keep.
//!
//! All of it may be lost in a crash; `lifecycle` then assumes the worst. The shell tells it what happened, in the words
//! of the methods; what follows from it is judged here. It serialises so that it can lie packed in memory, nowhere else.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::cloud::{Endpoint, Failure, FailureClass, Instance};
use super::condition::bounded;
use super::enforcement::{Enforcement, Looks};
use super::lifecycle::is_over;
use super::push::{KEY_WINDOW, PUSH_TIMEOUT};
use super::record::{Record, RecordKind};
use super::time::{is_fresh, plus};
use crate::api::{Grant, InstanceAccess};

/// The bound of `status.key.lastRequestId`: a longer one would keep every later status from being stored, the end's too.
const REQUEST_ID_LENGTH_MAX: usize = 128;

/// Grants of one request whose storing was never heard of, that are remembered: each costs a write's whole time, and a
/// second of another start.
const INTENDED_MAX: usize = 8;

/// How long a grant that was on record and not stored may be stored as it stands on record: a busy API server lets a
/// write wait for seconds, and one that was called off meanwhile is tried again. An older intention is made anew, since
/// it would cost the requester as much of their time.
const INTENT_AGE_MAX: Duration = Duration::from_secs(10);

/// How much older than our own decision, or than our lead, that of the leader before us may be, whose status was on its way
/// to a slow API server when we took over; and how long after we came to lead it may land. It stopped sending at two thirds
/// of a lease, and a PUT is given up after 34 s; before that it waited for its record and its turn for some seconds. What
/// comes later, as from a process that was frozen between its last question and its write, is nobody's.
const PREDECESSOR_AGE_MAX: Duration = Duration::from_secs(60);

/// What this process saw of one request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sight {
    /// When this process began to lead (not when it started: a standby may be older than the grant): of pushes before,
    /// it knows nothing. Everything that another process sent had left by then.
    pub since_time: Timestamp,
    /// The instances that the target matched.
    pub instances: Look<Vec<Arc<Instance>>>,
    /// The endpoints of the instance's VPC.
    pub endpoints: Look<Vec<Endpoint>>,
    /// The pushes of the grant.
    pub push: PushSight,
    /// When the audit trail last refused a record that this request needed.
    pub audit_failed_time: Option<Timestamp>,
    /// Since when neither revocations nor policies are heard of: the API server, or its watches, are out of reach.
    pub contact_lost_time: Option<Timestamp>,
    /// Since when requests, policies and decisions are read anew, and not all of one history yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rereading_since_time: Option<Timestamp>,
    /// When the request was found gone.
    pub gone_time: Option<Timestamp>,
    grant: GrantSight,
    /// The resourceVersion on which a status was sent whose answer was never heard.
    unheard: Option<String>,
    /// Until when an end may be stored that was sent to be stored over others' edits, and whose answer was never heard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    end_lands_until: Option<Timestamp>,
    /// What the trail was told that status was to say, does not say yet, and no later record takes back: each kind once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    told: Vec<RecordKind>,
}

/// Where the request's grant comes from, as far as this process saw it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct GrantSight {
    /// The grant that status held at the start of this process, if a leader before may have decided it.
    found: Option<Term>,
    /// Whether that was written under enforcement, as was known when it still could be told.
    vouched: bool,
    /// The grants that this process set out to store, of each the newest form. More than one only where an answer was
    /// never heard and the next try had another start.
    intended: Vec<Term>,
    /// Whether a grant of ours was seen in status: from then on it is what it is.
    met: bool,
    /// The version in which the request was found waiting. On that one, and on no other, a status of the leader before us
    /// may land still: it was sent before we listed, for what the request was by then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    waited: Option<String>,
    /// Whether the grant landed so that `found` has.
    #[serde(default)]
    landed: bool,
    /// How many looks at the guard had been begun when that was first asked about: of it, they say nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    looks_before: Option<u64>,
}

/// From when to when; the grant's id follows from the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Term {
    start: Timestamp,
    expiration: Timestamp,
}

impl Term {
    fn of(grant: &Grant) -> Self {
        Self { start: grant.start_time.0, expiration: grant.expiration_time.0 }
    }

    /// Whether that may have become of it: an end only moves earlier, and one that was taken back is not given again.
    fn becomes(self, later: Self) -> bool {
        self.start == later.start && later.expiration <= self.expiration
    }

    /// Whether the request asks for as much: no operator gives more.
    fn is_asked_for_by(self, request: &InstanceAccess) -> bool {
        let seconds = request.spec.ttl_seconds.map(|seconds| u64::try_from(seconds).unwrap_or_default());
        let is_short = seconds.is_none_or(|seconds| self.expiration <= plus(self.start, Duration::from_secs(seconds)));
        is_short && request.spec.end_time.as_ref().is_none_or(|end| self.expiration <= end.0)
    }

    /// Whether that is no more than this: it ends no later, and began a little before.
    fn includes(self, other: Self) -> bool {
        other.start <= self.start
            && plus(other.start, PREDECESSOR_AGE_MAX) >= self.start
            && other.expiration <= self.expiration
    }
}

/// Whose word a grant in status is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This process'.
    Ours,
    /// It stood there when this process started, and nobody but an operator could have written it.
    Vouched,
    /// It stood there when this process started, and began before that.
    Found,
    /// It came just after, where a status of the leader before may land, and nobody has looked since at what guards the
    /// requests: is it the one before's, or that of whoever took the guard away for a moment?
    Landed,
    /// Somebody else's: it came while we looked, or says other than what we wrote.
    Foreign,
}

/// A look-up that is repeated: what it last found, and how it last failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Look<T> {
    under_way: bool,
    seen: Option<(Timestamp, T)>,
    failure: Option<(Timestamp, Failure)>,
    failures: u32,
}

/// The pushes of one grant, as far as this process made them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PushSight {
    under_way: Option<Timestamp>,
    landed_time: Option<Timestamp>,
    first_request_id: Option<String>,
    request_id: Option<String>,
    landed: i32,
    failure: Option<(Timestamp, Failure)>,
    failures: u32,
    readable_until: Option<Timestamp>,
}

impl Sight {
    /// Nothing was seen yet.
    pub fn new(since_time: Timestamp) -> Self {
        Self {
            since_time,
            instances: Look::default(),
            endpoints: Look::default(),
            push: PushSight::default(),
            audit_failed_time: None,
            contact_lost_time: None,
            rereading_since_time: None,
            gone_time: None,
            grant: GrantSight::default(),
            unheard: None,
            end_lands_until: None,
            told: Vec::new(),
        }
    }

    /// Of a request that is seen for the first time: as this process found it at its start, none if it came later.
    ///
    /// A grant that starts after we came to lead is not found but foreign, since no leader before us decided it: enforcement
    /// vouches for what was written after a gap, and only a start that lies before the writing says when that was.
    pub fn found_at_start(since_time: Timestamp, request: Option<&InstanceAccess>) -> Self {
        let status = request.and_then(|request| request.status.as_ref());
        let grant = status.and_then(|status| status.grant.as_ref()).map(Term::of);
        let found = grant.filter(|grant| grant.start <= since_time);
        let waiting = request.filter(|request| grant.is_none() && !is_over(request));
        let waited = waiting.and_then(|request| request.metadata.resource_version.clone());
        Self { grant: GrantSight { found, waited, ..GrantSight::default() }, ..Self::new(since_time) }
    }

    /// A status is about to be stored, with a grant that was made now or stood there before; that it was stored, one may
    /// never hear. A doubtful grant is no better for being stored again.
    pub fn stores(&mut self, before: Option<&Grant>, grant: Option<&Grant>) {
        let Some(term) = grant.map(Term::of) else { return };
        match before.map(|before| self.origin(before)) {
            Some(Origin::Found | Origin::Landed | Origin::Foreign) => {}
            None | Some(Origin::Ours | Origin::Vouched) => {
                let intended = &mut self.grant.intended;
                intended.retain(|known| known.start != term.start);
                if intended.len() == INTENDED_MAX {
                    intended.remove(0);
                }
                intended.push(term);
            }
        }
    }

    /// A status was sent on this resourceVersion, and nobody heard whether it was stored: it may be yet.
    pub fn stores_unheard(&mut self, resource_version: Option<&str>) {
        self.unheard = resource_version.map(str::to_owned);
    }

    /// An end was sent, to be stored over others' edits, and nobody heard whether it was: until then it may be, whatever the
    /// resourceVersion is.
    pub fn sends_end_unheard(&mut self, until: Timestamp) {
        self.end_lands_until = Some(until);
    }

    /// Until when an end may be stored yet that nobody heard of; none if there is no such end.
    pub fn end_lands_until(&self, now: Timestamp) -> Option<Timestamp> {
        self.end_lands_until.filter(|until| *until > now)
    }

    /// Whether a status that was sent on this resourceVersion may be stored yet. On another one it was, or never will be, but
    /// for an end that goes over others' edits ([`Sight::end_lands_until`]).
    pub fn is_unheard(&self, resource_version: Option<&str>) -> bool {
        self.unheard.is_some() && self.unheard.as_deref() == resource_version
    }

    /// When the grant starts that this process set out to store just now, and could not: it is on record already.
    pub fn intended_start(&self, now: Timestamp) -> Option<Timestamp> {
        let start = self.grant.intended.last()?.start;
        is_fresh(now, start, INTENT_AGE_MAX).then_some(start)
    }

    /// Remembers that the grant which was found is an operator's, before a gap in enforcement makes it doubtful.
    /// `looks` are those by which enforcement is known: of what landed, one that was begun before says nothing.
    pub fn vouch(&mut self, enforcement: &Enforcement, looks: Looks) {
        let GrantSight { found, vouched, landed, looks_before, .. } = &mut self.grant;
        let is_looked_at = !*landed || looks.answered > *looks_before.get_or_insert(looks.begun);
        *vouched |= is_looked_at && found.is_some_and(|found| enforcement.covers(found.start));
    }

    /// Whether a grant landed that only a look at the guard can tell from a forged one, which is still to begin.
    pub fn awaits_look(&self) -> bool {
        let GrantSight { found, vouched, landed, .. } = &self.grant;
        *landed && !*vouched && found.is_some()
    }

    /// Takes in what the request is, before anybody asks whose the grant is that its status holds.
    ///
    /// A leader may find that the one before got through with the same grant, by its id. After we had decided to give it and
    /// before we stored it, the API server refuses ours, as of an old version. Of the two that one is the shorter, so whoever
    /// wrote it has no more than we set out to give, and it is as good as ours. Only the first that is seen, since what comes
    /// to stand where ours stood is somebody's doing; and only while ours is young, since what was in flight has landed by then.
    ///
    /// Before we had decided, it is judged as if our list had come a moment later, and as found there, if it is the first
    /// change of what we listed as waiting. That proves nothing by itself, since whoever may write it may do so then. What
    /// proves it is that nobody else could, and so the guard must have been looked at since ([`vouch`](Self::vouch)): a gap
    /// in which it was written is one after we came to lead. So its start must lie before that, or no gap would make it doubtful.
    pub fn meet(&mut self, now: Timestamp, request: &InstanceAccess) {
        let status = request.status.as_ref();
        let grant = status.and_then(|status| status.grant.as_ref());
        self.told.retain(|told| match told {
            RecordKind::Denied => !is_over(request),
            RecordKind::EndIntended => !is_over(request) && status.is_none_or(|status| status.revocation.is_none()),
            RecordKind::GrantIntended
            | RecordKind::Granted
            | RecordKind::PushIntended
            | RecordKind::Ended
            | RecordKind::CalledOff => grant.is_none(),
        });
        let since_time = self.since_time;
        let may_land = is_fresh(now, since_time, PREDECESSOR_AGE_MAX);
        let GrantSight { found, intended, met, waited, landed, vouched, looks_before: _ } = &mut self.grant;
        // Of a clock that was stepped back since we came to lead: only what began before it was seen tells when it was written.
        found.take_if(|found| !*vouched && found.start > now);
        let version = request.metadata.resource_version.as_deref();
        let is_first = waited.take_if(|waited| !may_land || Some(waited.as_str()) != version).is_some() && may_land;
        let (Some(term), false) = (grant.map(Term::of), *met) else { return };
        if intended.iter().any(|known| known.becomes(term)) {
            *met = true;
        } else if found.is_some() {
            // It is judged as it was found.
        } else if intended
            .last()
            .is_some_and(|known| is_fresh(now, known.start, PREDECESSOR_AGE_MAX) && known.includes(term))
        {
            intended.push(term);
            if intended.len() > INTENDED_MAX {
                intended.remove(0);
            }
            *met = true;
        } else if is_first && is_fresh(since_time, term.start, PREDECESSOR_AGE_MAX) && term.is_asked_for_by(request) {
            *found = Some(term);
            *landed = true;
        }
    }

    /// A record is about to be put into the trail, and may be in it whatever is answered. Until it surely is, it takes
    /// nothing back.
    pub fn tells(&mut self, record: &Record) {
        let counts = match record.kind {
            RecordKind::Denied | RecordKind::EndIntended => true,
            // Where gateways push, the intention alone counts for whoever reads the trail back.
            RecordKind::GrantIntended => record.key_delivery.is_some(),
            RecordKind::Granted | RecordKind::PushIntended | RecordKind::Ended | RecordKind::CalledOff => false,
        };
        if counts && !self.told.contains(&record.kind) {
            self.told.push(record.kind);
        }
    }

    /// A record is in the trail, and takes back what it takes back for whoever reads it.
    pub fn has_told(&mut self, record: &Record) {
        match record.kind {
            RecordKind::Denied | RecordKind::EndIntended => {}
            RecordKind::GrantIntended => self.told.retain(|told| *told != RecordKind::Denied),
            RecordKind::Granted | RecordKind::PushIntended | RecordKind::Ended => self.told.clear(),
            RecordKind::CalledOff => self.told.retain(|told| Some(*told) != record.called_off),
        }
    }

    /// What the trail was told that status was to say, and surely does not come to say by what was sent so far.
    pub fn told(&self, now: Timestamp, request: &InstanceAccess) -> &[RecordKind] {
        let is_unheard =
            self.is_unheard(request.metadata.resource_version.as_deref()) || self.end_lands_until(now).is_some();
        if is_unheard { &[] } else { &self.told }
    }

    /// Whose word this grant is.
    pub fn origin(&self, grant: &Grant) -> Origin {
        let GrantSight { found, vouched, intended, landed, met: _, waited: _, looks_before: _ } = &self.grant;
        let term = Term::of(grant);
        if intended.iter().any(|known| known.becomes(term)) {
            return Origin::Ours;
        }
        // What we have stored since counts, and not what we found.
        let is_found =
            found.is_some_and(|found| found.becomes(term) && !intended.iter().any(|it| it.start == found.start));
        match (is_found, vouched, landed) {
            (true, true, _) => Origin::Vouched,
            (true, false, false) => Origin::Found,
            (true, false, true) => Origin::Landed,
            (false, ..) => Origin::Foreign,
        }
    }
}

impl<T> Default for Look<T> {
    fn default() -> Self {
        Self { under_way: false, seen: None, failure: None, failures: 0 }
    }
}

impl<T> Look<T> {
    /// The look-up was sent.
    pub fn started(&mut self) {
        self.under_way = true;
    }

    /// The look-up came back.
    pub fn answered(&mut self, now: Timestamp, answer: Result<T, Failure>) {
        self.under_way = false;
        match answer {
            Ok(found) => {
                self.seen = Some((now, found));
                self.failure = None;
                self.failures = 0;
            }
            Err(failure) => {
                self.failure = Some((now, failure));
                self.failures = self.failures.saturating_add(1);
            }
        }
    }

    /// Whether an answer is being waited for.
    pub fn is_under_way(&self) -> bool {
        self.under_way
    }

    /// What was last found, and when.
    pub fn seen(&self) -> Option<(Timestamp, &T)> {
        self.seen.as_ref().map(|(time, found)| (*time, found))
    }

    /// How it failed since it last succeeded: when, why, and how often in a row.
    pub fn failure(&self) -> Option<(Timestamp, &Failure, u32)> {
        self.failure.as_ref().map(|(time, failure)| (*time, failure, self.failures))
    }
}

impl PushSight {
    /// A push is handed over; from here on the key may land at any moment.
    pub fn started(&mut self, now: Timestamp) {
        self.under_way = Some(now);
    }

    /// The push landed.
    pub fn landed(&mut self, now: Timestamp, request_id: String) {
        self.under_way = None;
        self.landed_time = Some(now);
        let request_id = bounded(request_id, REQUEST_ID_LENGTH_MAX);
        self.first_request_id.get_or_insert_with(|| request_id.clone());
        self.request_id = Some(request_id);
        self.landed = self.landed.saturating_add(1);
        self.failure = None;
        self.failures = 0;
        self.readable(plus(now, KEY_WINDOW));
    }

    /// The push failed. If AWS answered, no key landed; if nobody answered, one may have.
    pub fn failed(&mut self, now: Timestamp, failure: Failure, answered: bool) {
        self.under_way = None;
        if !answered {
            self.readable(plus(plus(now, PUSH_TIMEOUT), KEY_WINDOW));
        }
        self.failure = Some((now, failure));
        self.failures = self.failures.saturating_add(1);
    }

    /// The push was not sent: it was too late, or it was called back while it waited its turn.
    pub fn unsent(&mut self) {
        self.under_way = None;
    }

    /// The push was called back, and nobody knows whether it had been sent.
    pub fn stopped(&mut self, now: Timestamp) {
        if self.under_way.take().is_some() {
            self.readable(plus(plus(now, PUSH_TIMEOUT), KEY_WINDOW));
        }
    }

    fn readable(&mut self, until: Timestamp) {
        self.readable_until = self.readable_until.max(Some(until));
    }

    /// Whether a push waits or flies.
    pub fn is_under_way(&self) -> bool {
        self.under_way.is_some()
    }

    /// When the newest push landed.
    pub fn landed_time(&self) -> Option<Timestamp> {
        self.landed_time
    }

    /// The request id of the first push that this process landed.
    pub fn first_request_id(&self) -> Option<&str> {
        self.first_request_id.as_deref()
    }

    /// The request id of the newest landed push.
    pub fn request_id(&self) -> Option<&str> {
        self.request_id.as_deref()
    }

    /// How many pushes landed.
    pub fn landed_count(&self) -> i32 {
        self.landed
    }

    /// How it failed since it last landed: when, why, and how often in a row.
    pub fn failure(&self) -> Option<(Timestamp, &Failure, u32)> {
        self.failure.as_ref().map(|(time, failure)| (*time, failure, self.failures))
    }

    /// Until when the host may be able to read a key that this process pushed; none if it pushed none.
    pub fn readable_until(&self) -> Option<Timestamp> {
        self.readable_until
    }
}

/// Whether a failed call was answered by AWS: if so, it had no effect.
pub fn was_answered(failure: &Failure) -> bool {
    match failure.class {
        FailureClass::Throttled | FailureClass::Refused | FailureClass::Invalid | FailureClass::Gone => true,
        // A 5xx says nothing of what was done before it; neither does silence.
        FailureClass::Retry | FailureClass::Bug => false,
    }
}

#[cfg(test)]
mod tests;
