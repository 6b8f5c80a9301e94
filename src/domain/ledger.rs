//! The ledger of consumed grants: what keeps a request that was deleted and made again from being granted twice.
//!
//! ```text
//! granted ──────▶ its status is the record ──▶ deleted: an entry is written, then the object goes
//!    └──────────────▶ Ledger, in memory ◀──────────┘
//!                          └─▶ the same namespace, name and spec again: Consumed
//! ```
//! A grant is consumed by the first request that had it; the key is namespace, name and spec digest. So a grant costs no
//! write here, and a request that never had one leaves nothing behind. When an entry is owed is judged in `lifecycle`.
//!
//! An etcd that is restored from an older copy goes back with requests and entries together. What this process saw, and
//! what the audit trail says, does not: it closes what came back open, and never opens anything ([`memory`]).

pub mod memory;

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use sha2::{Digest, Sha256};

use super::census::who_gets_in;
use super::digest::{hex, spec_digest};
use super::identity::PrincipalRule;
use super::lifecycle::is_over;
use super::time::{plus, whole_second_up};
use crate::api::{
    Grant, InstanceAccess, InstanceAccessLedgerEntry, InstanceAccessLedgerEntrySpec, InstanceAccessStatus,
    LedgerRequest, LedgerSubject,
};

/// How long an entry outlives the `endTime` of its request. From `endTime` on, whoever makes the request again finds it
/// over at once; a day more bears with clocks, and with an operator that was away.
const KEPT_AFTER_END_TIME: Duration = Duration::from_secs(24 * 3600);
/// How long an entry is kept at most, from the end of access on: a year, which is how long people keep backups that they
/// restore from, and a month in which they notice.
const KEPT_MAX: Duration = Duration::from_secs(400 * 24 * 3600);

/// Namespace, name and spec digest of a request, as one short text: half of SHA-256 over the three. Two that are the
/// same by chance do not happen, and whoever makes two on purpose makes only the second of their own wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key([u8; 16]);

/// Whose the grant was, small: a hundred thousand of them lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Consumer {
    /// The request's uid; zero, if it is none that Kubernetes makes.
    uid: [u8; 16],
    /// When its access ended or began to be taken back, in seconds since 1970; zero, while it lives or if that is not known.
    end_second: u32,
    /// Until when it was granted at the most, in seconds since 1970; zero, if that is not known.
    until_second: u32,
    /// Whether its entry stands, so that the request may go.
    is_entered: bool,
}

/// The grants that were consumed, and by whom.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    seen: bool,
    consumed: HashMap<Key, Consumer>,
    closed: memory::Closed,
}

/// What the ledger says of a request without a grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nobody has read it yet.
    Unseen,
    /// The request may have its grant.
    Free,
    /// The request had it, or was about to, and its status does not say so: it may have that one, and no longer.
    Its {
        /// Until when it was granted.
        until: Timestamp,
    },
    /// The request had its grant, which is over, and its status does not say so.
    Over {
        /// When its access ended, if that is known.
        end_time: Option<Timestamp>,
    },
    /// The request was refused, or withdrawn before it was granted, and its status does not say so.
    Closed,
    /// Another request had it.
    Consumed {
        /// The uid of that one, if it is known.
        uid: Option<String>,
        /// When its access ended, if that is known, and it did.
        end_time: Option<Timestamp>,
    },
}

impl Ledger {
    /// All entries were read.
    pub fn set_seen(&mut self) {
        self.seen = true;
    }

    /// How many grants are known.
    pub fn len(&self) -> usize {
        self.consumed.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.consumed.is_empty()
    }

    /// Takes in a request: if it has its grant, from then on nobody else gets that, whatever becomes of the object; and if
    /// it is over without one, it stays so.
    pub fn note(&mut self, request: &InstanceAccess) {
        let Some(status) = &request.status else { return };
        let uid = uid_bytes(request.metadata.uid.as_deref().unwrap_or_default());
        let Some(grant) = &status.grant else {
            if is_over(request) {
                self.closed.add(uid);
            }
            return;
        };
        let closing = status.revocation.as_ref().and_then(|revocation| revocation.key_window_closed_time.as_ref());
        let end_second = status.end_time.as_ref().or(closing).map_or(0, |time| second(time.0));
        let until_second = second(grant.expiration_time.0);
        self.consume(
            key_of_name(&name_of(request, status)),
            Consumer { uid, end_second, until_second, is_entered: false },
        );
    }

    /// A request went: whatever comes back by its uid is of a history that was undone.
    pub fn went(&mut self, uid: &str) {
        self.closed.add(uid_bytes(uid));
    }

    /// The first one had it; that it ended is news, that there is another is not. An end only moves earlier.
    fn consume(&mut self, key: Key, news: Consumer) {
        let consumer = self.consumed.entry(key).or_insert(news);
        if consumer.uid == news.uid {
            consumer.end_second = consumer.end_second.max(news.end_second);
            consumer.until_second = match (consumer.until_second, news.until_second) {
                (0, until) | (until, 0) => until,
                (known, until) => known.min(until),
            };
        }
    }

    /// Takes in an entry, by its own name; what cannot be read of it is not known, and it counts all the same. False, if
    /// it is none of ours: its name is no key.
    pub fn enter(&mut self, name: &str, uid: Option<&str>, end_time: Option<Timestamp>) -> bool {
        if !is_key(name) {
            return false;
        }
        let consumer = Consumer {
            uid: uid_bytes(uid.unwrap_or_default()),
            end_second: end_time.map_or(0, second),
            until_second: 0,
            is_entered: true,
        };
        self.consumed.insert(key_of_name(name), consumer);
        true
    }

    /// An entry went whose time was over. A request that is there keeps its grant for itself.
    pub fn forget(&mut self, name: &str) {
        let key = key_of_name(name);
        if is_key(name) && self.consumed.get(&key).is_some_and(|consumer| consumer.is_entered) {
            self.consumed.remove(&key);
        }
    }

    /// Whether an entry for the same grant stands, or one did.
    pub fn has(&self, entry: &InstanceAccessLedgerEntry) -> bool {
        let name = entry.metadata.name.as_deref().unwrap_or_default();
        self.consumed.get(&key_of_name(name)).is_some_and(|consumer| consumer.is_entered)
    }

    /// Says whether a request that has no grant may have one.
    pub fn standing(&self, request: &InstanceAccess) -> Standing {
        if !self.seen {
            return Standing::Unseen;
        }
        let own = uid_bytes(request.metadata.uid.as_deref().unwrap_or_default());
        if self.closed.has(own) {
            return Standing::Closed;
        }
        let Some(consumer) = self.consumer(request) else { return Standing::Free };
        let time = |second: u32| Timestamp::from_second(second.into()).ok().filter(|_| second > 0);
        let end_time = time(consumer.end_second);
        if consumer.uid != own || own == UNKNOWN {
            return Standing::Consumed { uid: uid_text(consumer.uid), end_time };
        }
        match time(consumer.until_second) {
            Some(until) if !consumer.is_over() => Standing::Its { until },
            Some(_) | None => Standing::Over { end_time },
        }
    }

    /// Whether a request that has no grant may have one until then.
    pub fn admits(&self, request: &InstanceAccess, expiration_time: Timestamp) -> bool {
        match self.standing(request) {
            Standing::Free => true,
            Standing::Its { until } => expiration_time <= until,
            Standing::Unseen | Standing::Over { .. } | Standing::Closed | Standing::Consumed { .. } => false,
        }
    }

    /// Whether the grant of a request is over, whatever its status says.
    pub fn is_over(&self, request: &InstanceAccess) -> bool {
        let own = uid_bytes(request.metadata.uid.as_deref().unwrap_or_default());
        let consumer = self.consumer(request).filter(|consumer| consumer.uid == own && own != UNKNOWN);
        consumer.is_some_and(|consumer| consumer.is_over())
    }

    /// Whether a grant of this namespace, name and spec is known, whosever it is.
    pub fn is_consumed(&self, request: &InstanceAccess) -> bool {
        self.consumer(request).is_some()
    }

    /// Whether the request is known to have been refused, or withdrawn before it was granted, or gone.
    pub fn is_closed(&self, request: &InstanceAccess) -> bool {
        self.closed.has(uid_bytes(request.metadata.uid.as_deref().unwrap_or_default()))
    }

    fn consumer(&self, request: &InstanceAccess) -> Option<&Consumer> {
        let metadata = &request.metadata;
        let (namespace, name) = (metadata.namespace.as_deref(), metadata.name.as_deref());
        let name = entry_name(namespace.unwrap_or_default(), name.unwrap_or_default(), &spec_digest(&request.spec));
        self.consumed.get(&key_of_name(&name))
    }
}

impl Consumer {
    /// Whether its access ended, or began to be taken back: an entry is written when the request goes.
    fn is_over(&self) -> bool {
        self.end_second > 0 || self.is_entered
    }
}

/// What is written down of a request that goes; none, if it never had a grant. `end_time` is when its access ends, for a
/// status that does not say; `rule` says who got in, for the hour of those who start after it is gone.
///
/// The same request leaves the same entry, however often that is tried.
pub fn entry(
    rule: &PrincipalRule,
    request: &InstanceAccess,
    status: &InstanceAccessStatus,
    end_time: Timestamp,
) -> Option<InstanceAccessLedgerEntry> {
    let Grant { id, start_time, expiration_time, session: _ } = status.grant.clone()?;
    let metadata = &request.metadata;
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let end_time = status.end_time.clone().unwrap_or(Time(end_time));
    let (subject, requester) = (&request.spec.subject, &request.spec.requester);
    let username = subject.as_ref().map(|subject| &subject.username);
    let username = username.or(requester.as_ref().map(|requester| &requester.username)).cloned().unwrap_or_default();
    let principal = who_gets_in(rule, &request.spec).map(|principal| principal.as_str().to_owned());
    let spec = InstanceAccessLedgerEntrySpec {
        request: LedgerRequest {
            namespace: text(&metadata.namespace),
            name: text(&metadata.name),
            uid: text(&metadata.uid),
            spec_digest: granted_digest(request, status),
        },
        grant_id: id,
        subject: LedgerSubject { username, principal },
        instance_id: status.instance.as_ref().map(|instance| instance.instance_id.clone()),
        start_time,
        expiration_time,
        keep_until_time: Time(keep_until_time(end_time.0, request.spec.end_time.as_ref().map(|time| time.0))),
        end_time,
    };
    Some(InstanceAccessLedgerEntry::new(&name_of(request, status), spec))
}

/// Whether an entry bears the name of what it is about.
pub fn is_sound(entry: &InstanceAccessLedgerEntry) -> bool {
    let LedgerRequest { namespace, name, uid: _, spec_digest } = &entry.spec.request;
    entry.metadata.name.as_ref() == Some(&entry_name(namespace, name, spec_digest))
}

/// When an entry may go: from then on the request is over by itself, or nobody restores it any more.
fn keep_until_time(end_time: Timestamp, asked_until: Option<Timestamp>) -> Timestamp {
    let most = plus(end_time, KEPT_MAX);
    whole_second_up(asked_until.map_or(most, |asked| plus(asked, KEPT_AFTER_END_TIME).min(most)))
}

/// Whether an entry that may go from then on may go now.
pub fn is_past(now: Timestamp, keep_until_time: Timestamp) -> bool {
    keep_until_time <= now
}

/// The name of the entry for a request: SHA-256 over namespace, name and spec digest, in lower-case hex. Neither of the
/// first two has a slash in it.
pub fn entry_name(namespace: &str, name: &str, spec_digest: &str) -> String {
    let mut hasher = Sha256::new();
    for part in [namespace, "/", name, "/", spec_digest] {
        hasher.update(part.as_bytes());
    }
    hex(&hasher.finalize())
}

fn name_of(request: &InstanceAccess, status: &InstanceAccessStatus) -> String {
    let part = |text: &Option<String>| text.clone().unwrap_or_default();
    let metadata = &request.metadata;
    entry_name(&part(&metadata.namespace), &part(&metadata.name), &granted_digest(request, status))
}

/// The digest of what was granted: status has it, and it is the spec's, which is immutable.
fn granted_digest(request: &InstanceAccess, status: &InstanceAccessStatus) -> String {
    status.spec_digest.clone().unwrap_or_else(|| spec_digest(&request.spec))
}

/// A uid that is not known is nobody's.
const UNKNOWN: [u8; 16] = [0; 16];

fn is_key(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn key_of_name(name: &str) -> Key {
    Key(hex_bytes(name.bytes()).unwrap_or_default())
}

/// Reads the first 32 hex digits.
fn hex_bytes(digits: impl Iterator<Item = u8>) -> Option<[u8; 16]> {
    let mut digits = digits.map(|byte| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok()));
    let mut bytes = [0; 16];
    for byte in &mut bytes {
        *byte = digits.next()?? << 4 | digits.next()??;
    }
    Some(bytes)
}

/// Reads a uid as Kubernetes makes them.
fn uid_bytes(uid: &str) -> [u8; 16] {
    let bytes = hex_bytes(uid.bytes().filter(|byte| *byte != b'-')).unwrap_or(UNKNOWN);
    if uid_text(bytes).as_deref() == Some(uid) { bytes } else { UNKNOWN }
}

fn uid_text(bytes: [u8; 16]) -> Option<String> {
    let hex = hex(&bytes);
    let text = format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]);
    (bytes != UNKNOWN).then_some(text)
}

fn second(time: Timestamp) -> u32 {
    u32::try_from(time.as_second()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
