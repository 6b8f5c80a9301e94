//! What was asked of the stand-in, when, by whom, and what came of it.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Instance ids kept over all entries. A look-up names up to 1,000 of them, and 2 million are some 100 MB.
const INSTANCE_IDS_MAX: usize = 2_000_000;

/// The service that a call was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Api {
    /// EC2's Query API.
    Ec2,
    /// EC2 Instance Connect.
    Eic,
    /// STS.
    Sts,
    /// An instance's metadata.
    Metadata,
    /// An EC2 Instance Connect Endpoint's websocket.
    Tunnel,
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// It was done and answered.
    Ok,
    /// It was refused with this error code, and nothing was done.
    Error(String),
    /// The connection was reset before anything was done.
    Dropped,
    /// It was done, and then the connection was reset without an answer.
    DoneThenDropped,
}

impl Outcome {
    /// Whether the call took effect, answered or not.
    pub fn took_effect(&self) -> bool {
        match self {
            Outcome::Ok | Outcome::DoneThenDropped => true,
            Outcome::Error(_) | Outcome::Dropped => false,
        }
    }

    /// The error code, if the call was refused.
    pub fn error_code(&self) -> Option<&str> {
        match self {
            Outcome::Error(code) => Some(code),
            Outcome::Ok | Outcome::Dropped | Outcome::DoneThenDropped => None,
        }
    }
}

/// One call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// Counts from 0 without gaps, in the order in which calls ended.
    pub sequence: u64,
    /// When the call arrived, by the wall clock.
    pub time: Timestamp,
    /// When the call arrived, by the stand-in's own clock since its start (it includes what tests skipped).
    pub offset: Duration,
    /// From arrival to decision. A key's 60 s begin at `offset + elapsed`.
    pub elapsed: Duration,
    /// The service.
    pub api: Api,
    /// The action, such as `SendSSHPublicKey`; `openTunnel` and `closeTunnel` for a tunnel, the path for metadata.
    pub action: String,
    /// From the signature's scope; empty if there was none.
    pub region: String,
    /// From the signature; empty if there was none.
    pub access_key_id: String,
    /// The account that the access key belongs to; empty if unknown.
    pub account_id: String,
    /// The instances that were named (by id, by filter, or by the address of the tunnel or of the asking host).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub instance_ids: Vec<String>,
    /// The login on the instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os_user: Option<String>,
    /// SHA-256 of the key's blob, as `ssh-keygen -l` shows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_fingerprint: Option<String>,
    /// The endpoint of a tunnel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint_id: Option<String>,
    /// Instances, endpoints or keys in the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered: Option<usize>,
    /// How it ended.
    pub outcome: Outcome,
    /// The id that the answer carried.
    pub request_id: String,
}

/// The journal: bounded, the oldest entries go first and are counted.
pub(super) struct Journal {
    entries_max: usize,
    book: Mutex<Book>,
}

#[derive(Default)]
struct Book {
    entries: VecDeque<Entry>,
    instance_ids: usize,
    next: u64,
    dropped: u64,
}

impl Journal {
    pub(super) fn new(entries_max: usize) -> Self {
        Self { entries_max: entries_max.max(1), book: Mutex::default() }
    }

    pub(super) fn record(&self, mut entry: Entry) {
        let mut book = self.book.lock().expect("no holder panics");
        entry.sequence = book.next;
        book.next += 1;
        book.instance_ids += entry.instance_ids.len();
        book.entries.push_back(entry);
        while book.entries.len() > self.entries_max || (book.instance_ids > INSTANCE_IDS_MAX && book.entries.len() > 1)
        {
            let gone = book.entries.pop_front().expect("it is not empty");
            book.instance_ids -= gone.instance_ids.len();
            book.dropped += 1;
        }
    }

    /// The entries from `sequence` on, and how many fell out of the journal since the start.
    pub(super) fn since(&self, sequence: u64) -> (Vec<Entry>, u64) {
        let book = self.book.lock().expect("no holder panics");
        let first = book.next - book.entries.len() as u64;
        let skip = usize::try_from(sequence.saturating_sub(first)).unwrap_or(usize::MAX);
        (book.entries.iter().skip(skip).cloned().collect(), book.dropped)
    }

    pub(super) fn next_sequence(&self) -> u64 {
        self.book.lock().expect("no holder panics").next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        Entry {
            sequence: 0,
            time: Timestamp::now(),
            offset: Duration::ZERO,
            elapsed: Duration::ZERO,
            api: Api::Eic,
            action: "SendSSHPublicKey".into(),
            region: String::new(),
            access_key_id: String::new(),
            account_id: String::new(),
            instance_ids: vec![],
            os_user: None,
            key_fingerprint: None,
            endpoint_id: None,
            answered: None,
            outcome: Outcome::Ok,
            request_id: String::new(),
        }
    }

    #[test]
    fn a_full_journal_forgets_the_oldest_and_counts_them() {
        let journal = Journal::new(3);
        (0..5).for_each(|_| journal.record(entry()));
        let (entries, dropped) = journal.since(0);
        assert_eq!(entries.iter().map(|e| e.sequence).collect::<Vec<_>>(), [2, 3, 4]);
        assert_eq!(dropped, 2);
        assert_eq!(journal.since(4).0.len(), 1);
        assert!(journal.since(9).0.is_empty());
    }
}
