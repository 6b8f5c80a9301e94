//! What the audit trail says of requests, for an API server that has forgotten it.
//!
//! ```text
//! trail, oldest record first ──▶ Memory ──▶ Ledger: who had their grant, until when, whose is over, who was refused
//! ```
//! A record is written before what it tells of is done, and that may be called off or refused. So a grant counts from a
//! record on that tells of its key: before each push but the first there is one, and after the first that landed. Who dies
//! between the first push and its answer leaves an intention alone, which says nothing: after a restore that request is
//! judged anew. Where gateways push, no such record comes, and the intention itself counts. In the same way an end that was
//! only intended is taken back by a later record of a key; one that happened never is. An operator that goes on says itself
//! what was called off; one that died in between does not, and what it was about to do counts as if it had. Of two records
//! of one intention nobody can say which came about, so neither is called off: the first may have been stored, and forgotten
//! by an etcd that was restored.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::Deserialize;

use super::{Consumer, Key, Ledger, entry_name, key_of_name, second, uid_bytes};
use crate::api::{InstanceAccess, KeyDelivery};
use crate::domain::record::RecordKind;
use crate::domain::time::minus;

/// How far back a trail is read. A request waits for people for 30 days at most, and for all the rest a day more; what is
/// older is over by itself. Another day bears with clocks.
pub const KEPT: Duration = Duration::from_secs(32 * 24 * 3600);
/// Requests that are over without a grant, in each of two halves: when the newer one is full, the older one is forgotten,
/// and those in it are judged anew if the API server forgets them as well. More than wait at once, in a megabyte or two.
const CLOSED_MAX: usize = 32 << 10;
/// So few grants are not looked through: they are in a few ten kilobytes.
const PRUNED_ABOVE: usize = 1 << 10;

/// The uids of requests that are over without a grant, or gone. Anybody can make them, so they are bounded.
#[derive(Clone, Debug, Default)]
pub struct Closed {
    newer: HashMap<[u8; 16], Known>,
    older: HashMap<[u8; 16], Known>,
}

/// By what a request is known to be over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// One record of a refusal, and nothing else: that may be called off.
    ByOneRecord,
    /// A status, or more records than one.
    Surely,
}

impl Closed {
    /// Keeps one.
    pub(super) fn add(&mut self, uid: [u8; 16]) {
        self.keep(uid, Known::Surely);
    }

    /// Keeps one of whose refusal a record tells.
    fn tell(&mut self, uid: [u8; 16]) {
        let known = if self.has(uid) { Known::Surely } else { Known::ByOneRecord };
        self.keep(uid, known);
    }

    fn keep(&mut self, uid: [u8; 16], known: Known) {
        if uid == super::UNKNOWN {
            return;
        }
        if self.newer.len() >= CLOSED_MAX && !self.newer.contains_key(&uid) {
            self.older = std::mem::take(&mut self.newer);
        }
        self.newer.insert(uid, known);
    }

    /// A refusal was called off.
    fn take_back(&mut self, uid: [u8; 16]) {
        if self.newer.get(&uid).or_else(|| self.older.get(&uid)) == Some(&Known::ByOneRecord) {
            self.remove(uid);
        }
    }

    fn remove(&mut self, uid: [u8; 16]) {
        self.newer.remove(&uid);
        self.older.remove(&uid);
    }

    /// Whether it is one of them.
    pub(super) fn has(&self, uid: [u8; 16]) -> bool {
        self.newer.contains_key(&uid) || self.older.contains_key(&uid)
    }
}

/// What a trail says of requests.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    ledger: Ledger,
    /// The grants whose end was intended, and is not known to have happened: none that is not in the ledger.
    ends_intended: HashSet<Key>,
    /// The grants that are known by one record of their intention alone, since gateways push their keys: none that is not
    /// in the ledger.
    grants_intended: HashSet<Key>,
    /// At how many grants it is looked through for what may go: twice as many as were left the last time.
    prune_above: usize,
}

/// A record, as far as it matters here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Said {
    kind: RecordKind,
    request: SaidOf,
    spec_digest: String,
    key_delivery: Option<KeyDelivery>,
    expiration_time: Option<Time>,
    end_time: Option<Time>,
    called_off: Option<RecordKind>,
}

#[derive(Deserialize)]
struct SaidOf {
    namespace: String,
    name: String,
    uid: String,
}

impl Memory {
    /// Takes in a record, in the order of the trail. What is none of ours says nothing.
    pub fn hear(&mut self, time: Timestamp, record: &str) {
        let Ok(said) = serde_json::from_str::<Said>(record) else { return };
        let Said {
            kind,
            request: SaidOf { namespace, name, uid },
            spec_digest,
            key_delivery,
            expiration_time,
            end_time,
            called_off,
        } = said;
        let uid = uid_bytes(&uid);
        let until_second = expiration_time.as_ref().map_or(0, |time| second(time.0));
        let consumer = Consumer { uid, end_second: 0, until_second, is_entered: false };
        let key = key_of_name(&entry_name(&namespace, &name, &spec_digest));
        match kind {
            RecordKind::Denied => self.ledger.closed.tell(uid),
            // Whoever is granted was not refused after all.
            RecordKind::GrantIntended => {
                self.ledger.closed.remove(uid);
                if key_delivery == Some(KeyDelivery::OnConnect) {
                    if self.ledger.consumed.contains_key(&key) {
                        self.grants_intended.remove(&key);
                    } else {
                        self.grants_intended.insert(key);
                    }
                    self.stands(key, consumer);
                }
            }
            RecordKind::Granted | RecordKind::PushIntended => {
                self.ledger.closed.remove(uid);
                self.lives(key, uid);
                self.grants_intended.remove(&key);
                self.stands(key, consumer);
            }
            RecordKind::CalledOff => match called_off {
                Some(RecordKind::Denied) => self.ledger.closed.take_back(uid),
                Some(RecordKind::GrantIntended) => self.never_stood(key, uid),
                Some(RecordKind::EndIntended) => self.lives(key, uid),
                // What happened is not called off, nor is what is not named.
                Some(RecordKind::Granted | RecordKind::PushIntended | RecordKind::Ended | RecordKind::CalledOff)
                | None => {}
            },
            RecordKind::EndIntended | RecordKind::Ended => {
                self.grants_intended.remove(&key);
                let end_second = second(end_time.or(expiration_time).map_or(time, |time| time.0)).max(1);
                self.ends(key, Consumer { end_second, ..consumer }, kind == RecordKind::EndIntended);
            }
        }
    }

    /// A key was pushed for it: whatever end was intended before was called off.
    fn lives(&mut self, key: Key, uid: [u8; 16]) {
        if let Some(known) = self.ledger.consumed.get_mut(&key)
            && known.uid == uid
            && self.ends_intended.remove(&key)
        {
            known.end_second = 0;
        }
    }

    /// It was about to be granted, and was not: unless more is known of that grant than the one intention.
    fn never_stood(&mut self, key: Key, uid: [u8; 16]) {
        if self.ledger.consumed.get(&key).is_some_and(|known| known.uid == uid) && self.grants_intended.remove(&key) {
            self.ledger.consumed.remove(&key);
        }
    }

    /// Of two requests the later one had it, or the first would be over; of one, the earliest end counts.
    fn stands(&mut self, key: Key, news: Consumer) {
        match self.ledger.consumed.get(&key) {
            Some(known) if known.uid != news.uid && !known.is_over() => {
                self.ledger.consumed.insert(key, news);
            }
            Some(_) | None => self.ledger.consume(key, news),
        }
    }

    fn ends(&mut self, key: Key, news: Consumer, is_intended: bool) {
        let known = self.ledger.consumed.get(&key).filter(|known| known.uid == news.uid);
        let was_over = known.is_some_and(Consumer::is_over);
        // How much of it is left is no promise while the end is not.
        let news = Consumer { until_second: if is_intended { 0 } else { news.until_second }, ..news };
        self.ledger.consume(key, news);
        let is_its = self.ledger.consumed.get(&key).is_some_and(|known| known.uid == news.uid);
        if is_intended && is_its && !was_over {
            self.ends_intended.insert(key);
        } else if !is_intended && is_its {
            self.ends_intended.remove(&key);
        }
    }

    /// Takes in a request as it was.
    pub fn see(&mut self, now: Timestamp, request: &InstanceAccess) {
        self.ledger.note(request);
        if self.len() > self.prune_above.max(PRUNED_ABOVE) {
            self.prune(now);
            self.prune_above = 2 * self.len();
        }
    }

    /// Forgets what is over for longer than a trail is read back: no request waits that long. What is left are the grants
    /// that live, and those of a month.
    fn prune(&mut self, now: Timestamp) {
        let since_second = second(minus(now, KEPT));
        self.ledger.consumed.retain(|_, consumer| consumer.end_second.max(consumer.until_second) >= since_second);
        let consumed = &self.ledger.consumed;
        self.ends_intended.retain(|key| consumed.contains_key(key));
        self.grants_intended.retain(|key| consumed.contains_key(key));
    }

    /// A request went.
    pub fn went(&mut self, uid: &str) {
        self.ledger.went(uid);
    }

    /// Takes in what else is remembered.
    pub fn add(&mut self, other: &Self) {
        self.ledger.recall(other);
    }

    /// How many grants it knows of.
    pub fn len(&self) -> usize {
        self.ledger.len()
    }

    /// Whether it knows of none.
    pub fn is_empty(&self) -> bool {
        self.ledger.is_empty()
    }
}

impl Ledger {
    /// Takes in what a trail says. What is known already has it first.
    pub fn recall(&mut self, memory: &Memory) {
        for (key, consumer) in &memory.ledger.consumed {
            let (key, consumer): (Key, Consumer) = (*key, *consumer);
            self.consume(key, consumer);
        }
        for uid in memory.ledger.closed.older.keys().chain(memory.ledger.closed.newer.keys()) {
            self.closed.add(*uid);
        }
    }
}

#[cfg(test)]
mod tests;
