//! The audit trail: an append-only file of JSON lines, each of which names the digest of the one before.
//!
//! ```text
//! append ─▶ bounded queue ─▶ writer's thread: link all that waits ─▶ one write ─▶ one fdatasync ─▶ answer all
//!                                                                                      └─▶ copy to standard output
//! {"sequence":2,"time":"2026-03-01T09:00:00Z","previousDigest":"…","digest":"…","record":{…}}
//! ```
//!
//! `digest` is SHA-256, in lower-case hex, over the JCS form (RFC 8785) of the line's object without `digest`.
//! A line has one spelling only: the five members in this order, no white space, `record` in its JCS form.
//! Each opening of a trail appends a record `{"kind":"SegmentOpened",…}`, which names the head that it continues.
//!
//! Leaders that follow one another write one trail, each into a file of its own or all into one:
//! ```text
//! file a   1 ─ 2 ─ 3 ─ 4 ─ 5          9 ─ 10     9 continues 8, and its fileHead is 5
//!                  └───────┐         ╱
//! file b                   4 ─ … ─ 8             4 continues 3, the last that the Lease named: a was killed
//! ```
//! 4 and 5 of file a are a tail: true, and continued by nobody. Within its file each line names the one before it, and
//! each segment names the line of any file that it continues.
//!
//! A file that is full is closed, and another one follows: within its writer's they are as one.
//! ```text
//! audit.0000000000000001-….jsonl   1 ─ … ─ 9 ┐
//! audit.jsonl                     ┌──────────┘
//!                                 10 ─ 11 ─ …        10 is `FileContinued`, and names the file before by its first line
//! ```
//!
//! # Guarantees
//! - A [`Receipt`] is given for a line that is durable, and receipts are given in the order of the lines.
//! - After a failed write or fsync the trail is taken back to its last durable line before anything else is written.
//! - [`verify_files()`] finds an edit, a gap, a reorder, a repeated line, a cut beginning, a swapped segment, a missing
//!   file and two that lead at once; a cut end and a chain that was computed anew it finds if it is given a receipt from
//!   elsewhere (a status, a lease).
//! - A tail is named by the next segment of its file, and from then on its end cannot be cut either.
//!
//! # Caveats
//! - An append that failed, or whose future was dropped, may still be found in the trail: a crash can come between
//!   the write and the taking back. One that succeeded is always found.
//! - Without a receipt kept elsewhere, a chain proves nothing against someone who may rewrite the whole file.
//! - A file that somebody else renames or removes under its writer makes appends fail, not vanish. One that cannot be closed
//!   when it is full grows on.
//! - Nothing is deleted here.
//!
//! What a record means, and who waits for it, is left to others.

mod files;
mod finding;
mod join;
mod line;
mod memory;
mod open;
mod store;
mod tail;
mod trail;
mod verify;
mod writer;

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use finding::Finding;
pub use join::{Fork, Tail};
pub use memory::{ReadBack, read_back};
pub use open::{Begin, Leader, OpenError, Opened, STANDARD_OUTPUT, Sinks, Torn};
pub use trail::{AppendError, Class, Limits, Place, Stats, Trail};
pub use verify::{Expectation, Part, Summary, VerifyError, verify, verify_files};

/// Proof that a record is in the trail: its number and its line's digest.
///
/// Kept outside of the trail (in a status, in a lease), it is what makes a cut end visible.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Receipt {
    /// The line's number, from 1, without gaps; at most 2^53 − 1.
    pub sequence: i64,
    /// SHA-256 of the line, 64 lower-case hex digits.
    pub digest: String,
}

impl std::fmt::Display for Receipt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.sequence, self.digest)
    }
}

/// The text is no receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be SEQUENCE:DIGEST, as status.audit has them, for example 42:9f86d0…")]
pub struct NoReceipt;

impl std::str::FromStr for Receipt {
    type Err = NoReceipt;

    /// Reads `SEQUENCE:DIGEST`.
    fn from_str(text: &str) -> Result<Self, NoReceipt> {
        let (sequence, digest) = text.split_once(':').ok_or(NoReceipt)?;
        let sequence = sequence.parse().ok().filter(|sequence: &i64| *sequence > 0).ok_or(NoReceipt)?;
        let receipt = Receipt { sequence, digest: digest.to_owned() };
        if receipt.is_plausible() { Ok(receipt) } else { Err(NoReceipt) }
    }
}

impl Receipt {
    /// Returns what the first line of all continues: number 0, and a digest of 64 zeros.
    pub(crate) fn origin() -> Self {
        Receipt { sequence: 0, digest: "0".repeat(64) }
    }

    /// Returns whether this is a receipt that a trail could have given.
    fn is_one(&self) -> bool {
        self.sequence > 0 && self.is_plausible()
    }

    /// Returns whether this is a receipt that a trail could have given, or the origin.
    fn is_plausible(&self) -> bool {
        (0..=line::INTEGER_MAX).contains(&self.sequence) && line::is_digest(&self.digest)
    }
}
