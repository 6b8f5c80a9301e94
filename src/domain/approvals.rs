//! Whose word counts: judges people's decisions about one request.
//!
//! ```text
//! decisions ─▶ about this request? ─▶ by whom, as a canonical principal? ─▶ Approve: of this digest, in time, by
//!                                                                           somebody else whom the policy names
//!                                                                           Deny, Revoke: by an approver, or one's own
//! ```
//! An approval counts for exactly one uid and spec digest (I4). A word that closes is never too late, needs no digest,
//! and never opens anything.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::api::{
    Approval, DecisionKind, Identity, InstanceAccessDecision, InstanceAccessSpec, PolicyApproval, PolicySubject,
};

use super::condition::bounded;
use super::identity::{Principal, PrincipalRule};
use super::policy::{names, subject_text};
use super::time::{is_fresh, plus, whole_second};

mod relist;
mod unreadable;

pub use relist::{GAP_MIN, ORPHAN_AGE_MAX, Relist, Why, is_late};
pub use unreadable::{Unreadable, request_uid};

/// How long a request waits for approval, where neither it nor its policy says: a day.
pub const APPROVAL_DEADLINE: Duration = Duration::from_secs(24 * 3600);
/// How far the clocks of two API servers may be apart, one of which made the request and the other the decision. NTP
/// keeps them within a fraction of it.
const CLOCK_SKEW_MAX: Duration = Duration::from_secs(5);
/// The most approvals of one person that are kept, and of each other kind: one counts. Of more, the newest are the ones
/// they mean.
const OF_ONE_PERSON_MAX: usize = 4;
/// The most decisions about one request that are kept: the largest policy asks for 32 people.
pub const OF_ONE_REQUEST_MAX: usize = 512;
/// The most decisions about one request that cannot be decoded and are kept: one holds it back as well as many.
const UNREADABLE_MAX: usize = 8;
/// The longest user name in status, in characters.
const NAME_LENGTH_MAX: usize = 256;
/// The longest reason that is kept of a decision, in characters.
const REASON_LENGTH_MAX: usize = 256;

/// A person's decision: as much of it as judging needs.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// The object's name.
    pub name: String,
    /// The object's uid.
    pub uid: String,
    /// The uid of the request.
    pub request_uid: Arc<str>,
    /// What was seen of it.
    pub spec_digest: Option<String>,
    /// What was decided.
    pub kind: DecisionKind,
    /// When: the object's creation.
    pub time: Timestamp,
    /// Why.
    pub reason: Option<String>,
    /// Whose word it is, as policies name people: user name and groups.
    pub approver: Identity,
    /// Who that is.
    pub principal: Principal,
}

impl Decision {
    /// Reads a decision. `None`: it is nobody's word, or an approval that is being taken back, and counts for nothing.
    pub fn read(object: &InstanceAccessDecision, rule: &PrincipalRule) -> Option<Self> {
        let spec = &object.spec;
        let approver = spec.approver.as_ref().filter(|approver| !approver.username.is_empty())?;
        let principal = rule.principal(approver)?;
        if object.metadata.deletion_timestamp.is_some() && spec.decision == DecisionKind::Approve {
            return None; // a finalizer may hold the object; its author has spoken
        }
        Some(Self {
            name: object.metadata.name.clone()?,
            uid: object.metadata.uid.clone()?,
            request_uid: spec.request_ref.uid.as_str().into(),
            spec_digest: spec.request_ref.spec_digest.clone(),
            kind: spec.decision,
            time: object.metadata.creation_timestamp.as_ref()?.0,
            reason: spec.reason.clone().map(|reason| bounded(reason, REASON_LENGTH_MAX)),
            approver: Identity {
                username: approver.username.clone(),
                groups: approver.groups.clone(),
                ..Identity::default()
            },
            principal,
        })
    }

    /// As it stands in status.
    pub fn told(&self) -> Approval {
        Approval {
            name: self.name.clone(),
            uid: self.uid.clone(),
            approver: bounded(self.approver.username.clone(), NAME_LENGTH_MAX),
            principal: self.principal.to_string(),
            decision: self.kind,
            time: Time(whole_second(self.time)),
            reason: self.reason.clone(),
        }
    }

    /// Whether it closes access, or keeps it closed.
    pub fn is_closing(&self) -> bool {
        match self.kind {
            DecisionKind::Approve => false,
            DecisionKind::Deny | DecisionKind::Revoke => true,
        }
    }

    /// Why, in the approver's words, for a message.
    pub fn why(&self) -> &str {
        self.reason.as_deref().unwrap_or("no reason given")
    }
}

/// The decisions about one request that are kept, the earliest first; bounded. The default is the list that nobody has
/// read yet.
#[derive(Clone, Debug, Default)]
pub struct Decisions {
    kept: Vec<Arc<Decision>>,
    seen: bool,
    /// Those that cannot be decoded, and may be a no; bounded.
    unreadable: Vec<Arc<Unreadable>>,
    /// Whether some were not kept: should one of those kept be deleted, those come into their own.
    overflowed: bool,
}

impl Decisions {
    /// No decisions, as far as anybody knows.
    pub fn none() -> Self {
        Self { seen: true, ..Self::default() }
    }

    /// Whether the cluster's decisions were read. Until then nothing is granted: a Deny may be among them.
    pub fn is_seen(&self) -> bool {
        self.seen
    }

    /// Whether some were not kept.
    pub fn is_overflowed(&self) -> bool {
        self.overflowed
    }

    /// Takes a decision in; false if that changes nothing.
    ///
    /// Of one person's, the newest few of each kind are kept. Where no room is left, a word that closes takes the place of
    /// the newest approval.
    pub fn take(&mut self, decision: Arc<Decision>) -> bool {
        // It was stored anew, and can be read now.
        let unread = self.unreadable.iter().position(|known| known.uid == decision.uid);
        if let Some(place) = unread {
            self.unreadable.remove(place);
        }
        self.insert(decision) || unread.is_some()
    }

    fn insert(&mut self, decision: Arc<Decision>) -> bool {
        if self.kept.iter().any(|known| known.uid == decision.uid) {
            return false;
        }
        let alike = |known: &Arc<Decision>| known.principal == decision.principal && known.kind == decision.kind;
        if self.kept.iter().filter(|known| alike(known)).count() >= OF_ONE_PERSON_MAX {
            self.overflowed = true;
            let oldest = self.kept.iter().position(alike).expect("there are some");
            if order(&self.kept[oldest]) >= order(&decision) {
                return false;
            }
            self.kept.remove(oldest);
        } else if self.kept.len() >= OF_ONE_REQUEST_MAX {
            self.overflowed = true;
            match self.kept.iter().rposition(|known| !known.is_closing()) {
                Some(newest) if decision.is_closing() => drop(self.kept.remove(newest)),
                _ => return false,
            }
        }
        let place = self.kept.partition_point(|known| order(known) < order(&decision));
        self.kept.insert(place, decision);
        true
    }

    /// Takes in one that cannot be decoded, and may be a no; false if that changes nothing: one says all that many do.
    pub fn take_unreadable(&mut self, decision: Arc<Unreadable>) -> bool {
        if self.unreadable.iter().any(|known| known.uid == decision.uid) {
            return false;
        }
        if self.unreadable.len() >= UNREADABLE_MAX {
            self.overflowed = true;
            return false;
        }
        self.unreadable.push(decision);
        true
    }

    /// The name of one that cannot be decoded, and may be a no: while there is any, nobody knows whether it was one.
    pub fn unreadable(&self) -> Option<&str> {
        self.unreadable.first().map(|decision| decision.name.as_str())
    }

    /// Forgets a decision that was deleted; false if it was not kept.
    pub fn forget(&mut self, uid: &str) -> bool {
        let before = self.len();
        self.kept.retain(|known| known.uid != uid);
        self.unreadable.retain(|known| known.uid != uid);
        self.len() < before
    }

    /// Whether one of those that are kept was made within that time.
    pub fn is_any_fresh(&self, now: Timestamp, age_max: Duration) -> bool {
        let times = self.kept.iter().map(|decision| decision.time);
        times.chain(self.unreadable.iter().map(|decision| decision.time)).any(|time| is_fresh(now, time, age_max))
    }

    /// Drops those that `judge` says are of no use.
    pub fn retain(&mut self, judge: impl Fn(&Decision) -> bool) {
        self.kept.retain(|decision| judge(decision));
    }

    /// Those that are kept and can be read, the earliest first.
    pub fn iter(&self) -> impl Iterator<Item = &Decision> {
        self.kept.iter().map(AsRef::as_ref)
    }

    /// How many are kept.
    pub fn len(&self) -> usize {
        self.kept.len() + self.unreadable.len()
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn order(decision: &Decision) -> (Timestamp, &str) {
    (decision.time, &decision.uid)
}

/// A request, as far as its approval goes.
#[derive(Clone, Debug)]
pub struct Case<'a> {
    /// Its uid.
    pub uid: &'a str,
    /// The digest of what is asked for now.
    pub spec_digest: &'a str,
    /// When it was made.
    pub created_time: Timestamp,
    /// Those who are asking for themselves.
    pub parties: &'a Parties,
}

/// Requester and subject: who may revoke a request, and never approve it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parties {
    principals: Vec<Principal>,
    /// The subject is named by user name alone, so that name is enough to be it, however it is spelt.
    subject_username: Option<Principal>,
}

impl Parties {
    /// Says who asks, and for whom; `None` if one of them is nobody.
    pub fn new(rule: &PrincipalRule, requester: &Identity, subject: Option<&str>) -> Option<Self> {
        let mut principals = vec![rule.principal(requester)?];
        // Who names themselves is known better than by their user name.
        if let Some(username) = subject.filter(|username| *username != requester.username) {
            let identity = Identity { username: username.to_owned(), ..Identity::default() };
            principals.push(rule.principal(&identity)?);
        }
        Some(Self { principals, subject_username: subject.and_then(Principal::canonical) })
    }

    /// Says who asks by a spec, and for whom; `None` if one of them is nobody.
    pub fn of(rule: &PrincipalRule, spec: &InstanceAccessSpec) -> Option<Self> {
        Self::new(rule, spec.requester.as_ref()?, spec.subject.as_ref().map(|subject| subject.username.as_str()))
    }

    /// Whether a decision is a party's own.
    pub fn made(&self, decision: &Decision) -> bool {
        self.principals.contains(&decision.principal)
            || self.subject_username.is_some()
                && self.subject_username == Principal::canonical(&decision.approver.username)
    }
}

/// How far the approval of a request has come.
#[derive(Clone, Debug, PartialEq)]
pub struct Standing<'a> {
    /// The approvals that count, one a person, each for one of the places that the policy has.
    pub counted: Vec<&'a Decision>,
    /// Who is missing, as (how many, of whom).
    pub missing: Vec<(usize, String)>,
}

impl Standing<'_> {
    /// Whether nobody is missing.
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty()
    }
}

/// The earliest decision that closes this request: one's own, or that of somebody whom the policy names.
pub fn closing<'a>(
    case: &Case<'_>,
    approval: Option<&PolicyApproval>,
    decisions: &'a Decisions,
) -> Option<&'a Decision> {
    decisions.iter().find(|decision| {
        *decision.request_uid == *case.uid
            && decision.is_closing()
            && (case.parties.made(decision) || approval.is_some_and(|approval| is_named(approval, decision)))
    })
}

/// Whether a decision may ever count for its request, under the policies as they are: what else there is need not be
/// kept. Of a request that is not known yet, anybody's word that closes may be its requester's.
pub fn may_count<'a>(
    decision: &Decision,
    parties: Option<&Parties>,
    is_unknown: bool,
    mut approvers: impl Iterator<Item = &'a PolicySubject>,
) -> bool {
    let is_own = decision.is_closing() && (is_unknown || parties.is_some_and(|parties| parties.made(decision)));
    is_own || approvers.any(|subject| names(subject, &decision.approver))
}

/// Whether a policy names somebody as one whose word counts.
pub fn is_named(approval: &PolicyApproval, decision: &Decision) -> bool {
    let all = approval.approvers.iter().chain(approval.one_from_each.iter().flatten());
    all.into_iter().any(|subject| names(subject, &decision.approver))
}

/// Everybody whose word counts.
pub fn all_named(approval: &PolicyApproval) -> Vec<PolicySubject> {
    let mut all: Vec<PolicySubject> = Vec::new();
    for subject in approval.one_from_each.iter().flatten().chain(&approval.approvers) {
        if !all.contains(subject) {
            all.push(subject.clone());
        }
    }
    all
}

/// Until when approvals may come: as long as the policy lets it, or the request, whichever is earlier.
pub fn deadline_time(created_time: Timestamp, approval: &PolicyApproval, asked_seconds: Option<i32>) -> Timestamp {
    let seconds = |seconds: i32| Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
    let policy = approval.deadline_seconds.map_or(APPROVAL_DEADLINE, seconds);
    plus(whole_second(created_time), asked_seconds.map(seconds).unwrap_or(policy).min(policy))
}

/// Counts the approvals.
///
/// A policy has a place for each of `oneFromEach`, and as many for `approvers` as are missing to `count`. Each person
/// fills one place, whatever names they have and however often they decide; as many places are filled as can be.
pub fn standing<'a>(
    case: &Case<'_>,
    approval: &PolicyApproval,
    deadline_time: Timestamp,
    decisions: &'a Decisions,
) -> Standing<'a> {
    let counts = |decision: &&Decision| {
        *decision.request_uid == *case.uid
            && decision.kind == DecisionKind::Approve
            && decision.spec_digest.as_deref() == Some(case.spec_digest)
            && plus(decision.time, CLOCK_SKEW_MAX) >= whole_second(case.created_time)
            && decision.time < deadline_time
            && !case.parties.made(decision)
    };
    // In the order in which each person first approved.
    let mut people: Vec<Vec<&'a Decision>> = Vec::new();
    let mut known: BTreeMap<&Principal, usize> = BTreeMap::new();
    for decision in decisions.iter().filter(counts) {
        let person = *known.entry(&decision.principal).or_insert_with(|| {
            people.push(Vec::new());
            people.len() - 1
        });
        people[person].push(decision);
    }
    let places = places(approval);
    let fits = |person: usize, place: usize| {
        people[person].iter().copied().find(|decision| places[place].iter().any(|it| names(it, &decision.approver)))
    };
    let mut filled: Vec<Option<usize>> = vec![None; places.len()];
    for person in 0..people.len() {
        let mut tried = vec![false; places.len()];
        seat(person, &mut filled, &mut tried, &|person, place| fits(person, place).is_some());
    }
    let mut counted: Vec<&Decision> =
        filled.iter().enumerate().filter_map(|(place, person)| fits((*person)?, place)).collect();
    counted.sort_by(|a, b| order(a).cmp(&order(b)));
    let mut missing: Vec<(usize, String)> = Vec::new();
    for (place, _) in filled.iter().enumerate().filter(|(_, person)| person.is_none()) {
        let whom = subjects_text(places[place]);
        match missing.iter_mut().find(|(_, of)| *of == whom) {
            Some((count, _)) => *count += 1,
            None => missing.push((1, whom)),
        }
    }
    Standing { counted, missing }
}

/// The places that people must fill, each with those who may.
fn places(approval: &PolicyApproval) -> Vec<&[PolicySubject]> {
    let each = approval.one_from_each.as_deref().unwrap_or_default();
    // One at least, whatever a bent CRD lets through.
    let count = usize::try_from(approval.count).unwrap_or_default().max(1);
    let rest = count.saturating_sub(each.len());
    let of_approvers = std::iter::repeat_n(approval.approvers.as_slice(), rest);
    each.iter().map(std::slice::from_ref).chain(of_approvers).collect()
}

/// Finds a place for a person, moving others on if need be (Kuhn's matching): nobody who could help is left standing
/// because somebody else sat down first.
fn seat(person: usize, filled: &mut [Option<usize>], tried: &mut [bool], fits: &dyn Fn(usize, usize) -> bool) -> bool {
    for place in 0..filled.len() {
        if tried[place] || !fits(person, place) {
            continue;
        }
        tried[place] = true;
        if filled[place].is_none_or(|other| seat(other, filled, tried, fits)) {
            filled[place] = Some(person);
            return true;
        }
    }
    false
}

/// People, as a policy names them.
pub fn subjects_text(subjects: &[PolicySubject]) -> String {
    let few: Vec<String> = subjects.iter().take(8).map(subject_text).collect();
    match subjects.len() {
        0 => "nobody".to_owned(),
        many if many > few.len() => format!("{} and {} more", few.join(", "), many - few.len()),
        _ => few.join(", "),
    }
}

#[cfg(test)]
mod tests;
