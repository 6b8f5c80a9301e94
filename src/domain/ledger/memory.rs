//! What the audit trail says of requests, for an API server that has forgotten it.
//!
//! ```text
//! trail, oldest record first ──▶ Memory ──▶ Ledger: who had their grant, until when, whose is over, who was refused
//! ```
//! A record is written before what it tells of is done. So an intention may have come to nothing: then the request may
//! still have that very grant, to the end that was intended. All the rest closes.

use std::collections::HashSet;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::Deserialize;

use super::{Consumer, Key, Ledger, entry_name, key_of_name, second, uid_bytes};
use crate::api::InstanceAccess;
use crate::domain::record::RecordKind;

/// How far back a trail is read. A request waits for people for 30 days at most, and for all the rest a day more; what is
/// older is over by itself. Another day bears with clocks.
pub const KEPT: Duration = Duration::from_secs(32 * 24 * 3600);
/// Requests that are over without a grant, in each of two halves: when the newer one is full, the older one is forgotten,
/// and those in it are judged anew if the API server forgets them as well. More than wait at once, in a megabyte or two.
const CLOSED_MAX: usize = 32 << 10;

/// The uids of requests that are over without a grant, or gone. Anybody can make them, so they are bounded.
#[derive(Clone, Debug, Default)]
pub struct Closed {
    newer: HashSet<[u8; 16]>,
    older: HashSet<[u8; 16]>,
}

impl Closed {
    /// Keeps one.
    pub(super) fn add(&mut self, uid: [u8; 16]) {
        if uid == super::UNKNOWN {
            return;
        }
        if self.newer.len() >= CLOSED_MAX && !self.newer.contains(&uid) {
            self.older = std::mem::take(&mut self.newer);
        }
        self.newer.insert(uid);
    }

    fn remove(&mut self, uid: [u8; 16]) {
        self.newer.remove(&uid);
        self.older.remove(&uid);
    }

    /// Whether it is one of them.
    pub(super) fn has(&self, uid: [u8; 16]) -> bool {
        self.newer.contains(&uid) || self.older.contains(&uid)
    }
}

/// What a trail says of requests.
#[derive(Clone, Debug, Default)]
pub struct Memory(Ledger);

/// A record, as far as it matters here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Said {
    kind: RecordKind,
    request: SaidOf,
    spec_digest: String,
    expiration_time: Option<Time>,
    end_time: Option<Time>,
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
        let Said { kind, request: SaidOf { namespace, name, uid }, spec_digest, expiration_time, end_time } = said;
        let uid = uid_bytes(&uid);
        let until_second = expiration_time.as_ref().map_or(0, |time| second(time.0));
        let consumer = Consumer { uid, end_second: 0, until_second, is_entered: false };
        let key = key_of_name(&entry_name(&namespace, &name, &spec_digest));
        match kind {
            RecordKind::Denied => self.0.closed.add(uid),
            RecordKind::GrantIntended | RecordKind::Granted | RecordKind::PushIntended => {
                self.0.closed.remove(uid);
                // Of two intentions the later one was stored, if any was. Of two requests the later one had it, or the
                // first would be over.
                let known = self.0.consumed.entry(key).or_insert(consumer);
                if !known.is_over() {
                    *known = consumer;
                }
            }
            RecordKind::EndIntended | RecordKind::Ended => {
                let end_second = second(end_time.or(expiration_time).map_or(time, |time| time.0)).max(1);
                self.0.consume(key, Consumer { end_second, ..consumer });
            }
        }
    }

    /// Takes in a request as it was.
    pub fn see(&mut self, request: &InstanceAccess) {
        self.0.note(request);
    }

    /// A request went.
    pub fn went(&mut self, uid: &str) {
        self.0.went(uid);
    }

    /// Takes in what else is remembered.
    pub fn add(&mut self, other: &Self) {
        self.0.recall(other);
    }

    /// How many grants it knows of.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it knows of none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Ledger {
    /// Takes in what a trail says. What is known already has it first.
    pub fn recall(&mut self, memory: &Memory) {
        for (key, consumer) in &memory.0.consumed {
            let (key, consumer): (Key, Consumer) = (*key, *consumer);
            self.consume(key, consumer);
        }
        for uid in memory.0.closed.older.iter().chain(&memory.0.closed.newer) {
            self.closed.add(*uid);
        }
    }
}

#[cfg(test)]
mod tests;
