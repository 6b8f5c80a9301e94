//! The census: how many grants live, of whom and on which instance, and who was admitted within the last hour.
//!
//! ```text
//! every version of a request ──▶ see ────▶ ┌────────┐ ◀─── room: what a decision reads
//! what is left of one, at start ▶ recall ▶ │        │
//! a decision, before it is stored ▶ claim ▶ │ census │
//! a grant that did not come about ▶ give_back └──────┘
//! ```
//! A limit is kept by `claim` alone: it judges and takes the place in one step, so that of a thousand decisions that all
//! read "two of three" one is carried out. Whoever holds the census lets one in at a time; in here nothing waits.
//!
//! # Guarantees
//! A place is counted once for one request, however often it is claimed or seen. What is seen to be live is counted
//! whether or not it was claimed: a policy may come to have limits at any time.
//!
//! # Memory
//! No text is kept: a digest stands for each name. A request takes some 100 bytes while its grant lives or while it counts
//! in the hour; all others take none. Of one subject no more than `HOUR_PLACES_MAX` places in the hour are kept.

use std::collections::hash_map::Entry as Slot;
use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::cloud::Instance;
use super::condition;
use super::identity::{Principal, PrincipalRule};
use super::subject::subject;
use super::time::{minus, plus};
use crate::api::{
    ConditionStatus, ConditionType, InstanceAccess, InstanceAccessLedgerEntrySpec, InstanceAccessSpec, PolicyLimits,
};

/// How long an admitted request counts against `limits.requestsPerHour`.
pub const HOUR: Duration = Duration::from_secs(3600);
/// The most places in the hour that are kept of one subject, the newest: the CRD bounds the limit by it, so that more
/// would change no answer.
pub const HOUR_PLACES_MAX: usize = 10_000;
/// Gap between two sweeps of places that no longer count: it walks all of them.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// Stands for a name, so that none is kept: half of its SHA-256, of which nobody makes two alike.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Mark([u8; 16]);

impl Mark {
    pub(super) fn of<'a>(parts: impl IntoIterator<Item = &'a str>) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            // With its length, or "ab", "c" would be "a", "bc".
            hash.update(part.len().to_be_bytes());
            hash.update(part);
        }
        let mut mark = [0; 16];
        mark.copy_from_slice(&hash.finalize()[..16]);
        Self(mark)
    }
}

impl std::fmt::Debug for Mark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0[..4].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// All that is counted. The default is the census that has seen neither every request nor every entry of the ledger.
#[derive(Clone, Debug, Default)]
pub struct Census {
    requests_seen: bool,
    entries_seen: bool,
    requests: HashMap<Mark, Entry>,
    subjects: HashMap<Mark, Subject>,
    instances: HashMap<Mark, u32>,
    swept_time: Option<Timestamp>,
}

/// What is counted of one request.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// None: it gets nobody in, by the rule of who is who.
    subject: Option<Mark>,
    hold: Hold,
    /// When it was admitted, while that counts.
    admitted: Option<Second>,
}

/// Seconds since 1970, in four bytes.
type Second = u32;

/// Whether a request takes the place of a live grant, and on which instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hold {
    No,
    /// Taken by a decision whose status has not been seen yet.
    Claimed(Option<Mark>),
    /// Its status shows a grant that has not ended.
    Live(Option<Mark>),
}

#[derive(Clone, Debug, Default)]
struct Subject {
    live: u32,
    /// The oldest first.
    hour: VecDeque<(Second, Mark)>,
}

/// A place that a decision takes: in the hour, and, for a grant, among those that live.
///
/// Carried out, it fits, or the decision falls.
#[derive(Clone, Debug, PartialEq)]
pub struct Claim {
    /// Of which request.
    pub uid: String,
    /// Who gets in.
    pub subject: Principal,
    /// Where.
    pub instance: InstanceMark,
    /// What is judged; a limit that is none is not.
    pub limits: PolicyLimits,
    /// When it was decided, a whole second.
    pub time: Timestamp,
    /// Whether it takes a place in the hour: it was not admitted before.
    pub is_new: bool,
    /// Whether it takes the place of a grant.
    pub is_grant: bool,
}

/// One EC2 instance: by account, region and id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstanceMark(Mark);

impl InstanceMark {
    /// Of an instance that was looked up.
    pub fn of(instance: &Instance) -> Self {
        Self(Mark::of([instance.account_id.as_str(), instance.region.as_str(), instance.id.as_str()]))
    }

    /// Of the instance that status tells of.
    fn told(request: &InstanceAccess) -> Option<Self> {
        let facts = request.status.as_ref()?.instance.as_ref()?;
        let or_none = |text: &Option<String>| text.clone().unwrap_or_default();
        Some(Self(Mark::of([or_none(&facts.account_id).as_str(), &or_none(&facts.region), &facts.instance_id])))
    }
}

/// A limit that leaves no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// `activePerSubject`: so many of the subject's other grants live.
    Subject {
        /// How many.
        live: u32,
    },
    /// `activePerInstance`: so many other grants live on the instance.
    Instance {
        /// How many.
        live: u32,
    },
    /// `requestsPerHour`: so many of the subject's other requests were admitted within the hour.
    Hour {
        /// How many.
        admitted: u32,
        /// When there is room again, if nothing else is admitted.
        free_time: Timestamp,
    },
}

/// Returns who gets in by a request, as one person; `None` is nobody. Who names themselves is who they are without it.
pub fn who_gets_in(rule: &PrincipalRule, spec: &InstanceAccessSpec) -> Option<Principal> {
    rule.principal(subject(spec)?.as_ref())
}

impl Census {
    /// Every request of the cluster was seen once.
    pub fn requests_listed(&mut self) {
        self.requests_seen = true;
    }

    /// Every entry of the ledger was recalled once.
    pub fn entries_listed(&mut self) {
        self.entries_seen = true;
    }

    /// Whether all requests that are there, and all that are gone, were seen once: from then on the counts are right, and
    /// before nothing may be granted where there are limits.
    pub fn is_seen(&self) -> bool {
        self.requests_seen && self.entries_seen
    }

    /// Takes in a request as it stands now; never an older version after a newer one.
    pub fn see(&mut self, now: Timestamp, rule: &PrincipalRule, request: &InstanceAccess) {
        self.sweep(now);
        let Some(uid) = &request.metadata.uid else { return };
        let key = Mark::of([uid.as_str()]);
        let status = request.status.as_ref();
        let is_over = super::lifecycle::is_over(request);
        let has_grant = status.is_some_and(|status| status.grant.is_some());
        let before = self.requests.get(&key).copied();
        let hold = match (has_grant && !is_over, before.map_or(Hold::No, |entry| entry.hold)) {
            (true, _) => Hold::Live(InstanceMark::told(request).map(|instance| instance.0)),
            (false, _) if is_over => Hold::No,
            // The decision is not stored yet. Or a store that lost its memory lost the grant, and it may come back.
            (false, Hold::Claimed(instance) | Hold::Live(instance)) => Hold::Claimed(instance),
            (false, Hold::No) => Hold::No,
        };
        let admitted = admitted_time(request).filter(|time| is_within_hour(now, *time)).map(second);
        if before.is_none() && hold == Hold::No && admitted.is_none() {
            return;
        }
        let entry = before.unwrap_or_else(|| Entry {
            // What a spec says of people does not change: read once.
            subject: who_gets_in(rule, &request.spec).map(|subject| Mark::of([subject.as_str()])),
            hold: Hold::No,
            admitted: None,
        });
        self.put(key, Entry { hold, admitted: entry.admitted.or(admitted), ..entry });
    }

    /// Takes in what is left of a request, as it is listed at start: a place in the hour, from the start of its grant on,
    /// since nobody knows any more when it was admitted; never one that lives. Of a request that is counted it says
    /// nothing new.
    pub fn recall(&mut self, now: Timestamp, entry: &InstanceAccessLedgerEntrySpec) {
        let key = Mark::of([entry.request.uid.as_str()]);
        let Some(principal) = &entry.subject.principal else { return };
        if self.requests.contains_key(&key) || !is_within_hour(now, entry.start_time.0) {
            return;
        }
        let (subject, admitted) = (Some(Mark::of([principal.as_str()])), Some(second(entry.start_time.0)));
        self.put(key, Entry { subject, hold: Hold::No, admitted });
    }

    /// The request is there no more: nothing of it lives. Its place in the hour stays.
    pub fn forget(&mut self, uid: &str) {
        self.set_hold(uid, Hold::No);
    }

    /// The grant that was claimed did not come about. A grant that was seen stays.
    pub fn give_back(&mut self, uid: &str) {
        if self.is_claimed(uid) {
            self.set_hold(uid, Hold::No);
        }
    }

    /// Whether a place is taken for a grant that was not seen yet.
    pub fn is_claimed(&self, uid: &str) -> bool {
        let entry = self.requests.get(&Mark::of([uid]));
        entry.is_some_and(|entry| matches!(entry.hold, Hold::Claimed(_)))
    }

    /// Takes the place, if there is room; a place that the request has already is not taken twice.
    ///
    /// # Errors
    /// Which limits leave no room. Nothing is taken then.
    pub fn claim(&mut self, now: Timestamp, claim: &Claim) -> Result<(), Vec<Full>> {
        self.sweep(now);
        self.room(now, claim)?;
        let key = Mark::of([claim.uid.as_str()]);
        let subject = Some(Mark::of([claim.subject.as_str()]));
        let before = self.requests.get(&key).copied().unwrap_or(Entry { subject, hold: Hold::No, admitted: None });
        let hold = match before.hold {
            // Tried again, it may be for another instance.
            Hold::No | Hold::Claimed(_) if claim.is_grant => Hold::Claimed(Some(claim.instance.0)),
            held => held,
        };
        let admitted = before.admitted.or(claim.is_new.then(|| second(claim.time)));
        self.put(key, Entry { hold, admitted, ..before });
        Ok(())
    }

    /// Whether there is room for a claim, or which limits leave none. Before [`Self::is_seen`], nobody knows.
    ///
    /// # Errors
    /// Which limits leave no room.
    pub fn room(&self, now: Timestamp, claim: &Claim) -> Result<(), Vec<Full>> {
        let own = self.requests.get(&Mark::of([claim.uid.as_str()]));
        let mark = Mark::of([claim.subject.as_str()]);
        let subject = self.subjects.get(&mark);
        let mut full = Vec::new();
        if let Some(limit) = claim.limits.active_per_subject {
            let is_own = own.is_some_and(|own| own.hold != Hold::No && own.subject == Some(mark));
            let live = subject.map_or(0, |subject| subject.live).saturating_sub(u32::from(is_own));
            if is_reached(live, limit) {
                full.push(Full::Subject { live });
            }
        }
        if let Some(limit) = claim.limits.active_per_instance {
            let on = self.instances.get(&claim.instance.0).copied().unwrap_or_default();
            let is_own = own.is_some_and(|own| own.hold.instance() == Some(claim.instance.0));
            let live = on.saturating_sub(u32::from(is_own));
            if is_reached(live, limit) {
                full.push(Full::Instance { live });
            }
        }
        if let (Some(limit), true) = (claim.limits.requests_per_hour, own.is_none_or(|own| own.admitted.is_none())) {
            let hour = subject.map(|subject| &subject.hour);
            let mut counting = hour.into_iter().flatten().filter(|(time, _)| is_within_hour(now, timestamp(*time)));
            let admitted = u32::try_from(counting.clone().count()).unwrap_or(u32::MAX);
            if is_reached(admitted, limit) {
                // So many must leave the hour first.
                let surplus = admitted.saturating_sub(u32::try_from(limit).unwrap_or_default().max(1));
                let surplus = usize::try_from(surplus).unwrap_or_default();
                let free_time = counting.nth(surplus).map_or(now, |(time, _)| plus(timestamp(*time), HOUR));
                full.push(Full::Hour { admitted, free_time });
            }
        }
        if full.is_empty() { Ok(()) } else { Err(full) }
    }

    fn set_hold(&mut self, uid: &str, hold: Hold) {
        let key = Mark::of([uid]);
        if let Some(entry) = self.requests.get(&key).copied() {
            self.put(key, Entry { hold, ..entry });
        }
    }

    /// Counts a request as it is now, and no longer as it was.
    fn put(&mut self, key: Mark, mut entry: Entry) {
        let before = self.requests.get(&key).copied();
        if let Some(before) = before {
            self.count(before.hold, before.subject, -1);
        }
        self.count(entry.hold, entry.subject, 1);
        if let (Some(subject), Some(time), None) = (entry.subject, entry.admitted, before.and_then(|it| it.admitted))
            && !self.admit(subject, time, key)
        {
            entry.admitted = None;
        }
        if entry.hold == Hold::No && entry.admitted.is_none() {
            self.requests.remove(&key);
        } else {
            self.requests.insert(key, entry);
        }
        if let Some(subject) = entry.subject
            && self.subjects.get(&subject).is_some_and(Subject::is_empty)
        {
            self.subjects.remove(&subject);
        }
    }

    fn count(&mut self, hold: Hold, subject: Option<Mark>, by: i32) {
        if hold == Hold::No {
            return;
        }
        if let Some(subject) = subject {
            let live = &mut self.subjects.entry(subject).or_default().live;
            *live = live.saturating_add_signed(by);
        }
        if let Some(instance) = hold.instance() {
            let live = self.instances.entry(instance).or_default();
            *live = live.saturating_add_signed(by);
            if *live == 0 {
                self.instances.remove(&instance);
            }
        }
    }

    /// Gives a place in the hour, unless so many newer ones have one. The oldest makes room, since it leaves first anyway.
    fn admit(&mut self, subject: Mark, time: Second, key: Mark) -> bool {
        let hour = &mut self.subjects.entry(subject).or_default().hour;
        let at = hour.partition_point(|place| *place <= (time, key));
        hour.insert(at, (time, key));
        if hour.len() <= HOUR_PLACES_MAX {
            return true;
        }
        let Some((_, oldest)) = hour.pop_front() else { return true };
        if let Slot::Occupied(mut entry) = self.requests.entry(oldest) {
            entry.get_mut().admitted = None;
            if entry.get().hold == Hold::No {
                entry.remove();
            }
        }
        oldest != key
    }

    /// Forgets what no longer counts, once in a while.
    fn sweep(&mut self, now: Timestamp) {
        let is_due = self.swept_time.is_none_or(|time| time > now || plus(time, SWEEP_INTERVAL) <= now);
        if !is_due {
            return;
        }
        self.swept_time = Some(now);
        let counts = |time: Second| is_within_hour(now, timestamp(time));
        self.requests.retain(|_, entry| {
            entry.admitted = entry.admitted.filter(|time| counts(*time));
            entry.hold != Hold::No || entry.admitted.is_some()
        });
        self.subjects.retain(|_, subject| {
            subject.hour.retain(|(time, _)| counts(*time));
            subject.hour.shrink_to(2 * subject.hour.len());
            !subject.is_empty()
        });
        self.requests.shrink_to(2 * self.requests.len());
    }
}

impl Hold {
    fn instance(self) -> Option<Mark> {
        match self {
            Self::No => None,
            Self::Claimed(instance) | Self::Live(instance) => instance,
        }
    }
}

impl Subject {
    fn is_empty(&self) -> bool {
        self.live == 0 && self.hour.is_empty()
    }
}

/// When a request was admitted, as its status tells: since then it waits for people, for its start, or is granted.
fn admitted_time(request: &InstanceAccess) -> Option<Timestamp> {
    let approved = condition::find(&request.status.as_ref()?.conditions, ConditionType::Approved)?;
    (approved.status != ConditionStatus::False).then_some(approved.last_transition_time.0)
}

/// Whether a place still counts. One that seems to be of the future was taken before the clock was set back.
fn is_within_hour(now: Timestamp, time: Timestamp) -> bool {
    time > minus(now, HOUR)
}

/// Whether a limit leaves no room for one more. A limit below one would admit nobody; the CRD has none.
fn is_reached(count: u32, limit: i32) -> bool {
    u32::try_from(limit).map_or(true, |limit| count >= limit)
}

fn second(time: Timestamp) -> Second {
    Second::try_from(time.as_second()).unwrap_or(if time < Timestamp::UNIX_EPOCH { 0 } else { Second::MAX })
}

fn timestamp(second: Second) -> Timestamp {
    Timestamp::from_second(second.into()).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests;
