//! What can be wrong with a trail, in words that say what to do next.

use std::fmt;
use std::io;

use super::Receipt;
use super::join::Tail;
use super::line::LINE_BYTES_MAX;

/// What can be wrong with a line, or with its place.
#[derive(Debug, thiserror::Error)]
pub enum Finding {
    /// The trail could not be read to its end. Says nothing about what stands in it.
    #[error("it could not be read ({0}); read it again, or from another copy")]
    Read(io::Error),
    /// A pipe, a device, or a link to one.
    #[error("it is no regular file; no trail leaves such a one: look who put it there, or give files")]
    NotAFile,
    /// Longer than any line that is written.
    #[error(
        "more than {LINE_BYTES_MAX} bytes without a newline; no trail writes such a line: it was put there, or newlines were taken out"
    )]
    TooLong,
    /// The last line has no newline.
    #[error(
        "the last line has no newline: its writer crashed or is still writing, or the end was cut; the next opening of the trail mends a crash"
    )]
    Torn,
    /// Not the JSON object that a line is.
    #[error(
        "expected a line of the trail, found something else ({reason}); the line was overwritten, or torn by a crash"
    )]
    Unreadable {
        /// What the parser said.
        reason: String,
    },
    /// Says the same in other bytes than ours.
    #[error(
        "record {sequence} is not spelled as the trail writes it (white space, order, escapes, a name twice); it was edited"
    )]
    Respelled {
        /// The line's own number.
        sequence: i64,
    },
    /// Does not have the digest that it carries.
    #[error("record {sequence} has the digest {expected} but carries {found}; it was edited after it was written")]
    Edited {
        /// The line's own number.
        sequence: i64,
        /// The digest of what stands there.
        expected: String,
        /// The digest that the line claims.
        found: String,
    },
    /// Opens a segment or a file, and names another head than the line before.
    #[error(
        "record {sequence} opens a segment or a file, and its previousHead, segment or previousFile is not what a trail writes there; it was not written by one"
    )]
    Misjoined {
        /// The line's own number.
        sequence: i64,
    },
    /// The trail does not begin where it should.
    #[error(
        "the trail begins with record {found}, expected {expected}; what came before was cut off, or stands in another file: give the files of all replicas, the older ones too, or with --after the receipt of the record that this one continues"
    )]
    CutBeginning {
        /// The number that should stand first.
        expected: i64,
        /// The number that does.
        found: i64,
    },
    /// Numbers are missing between two lines.
    #[error("expected record {expected}, found {found}; those between were taken out, or moved to another place")]
    Gap {
        /// The number after the line before.
        expected: i64,
        /// The number found.
        found: i64,
    },
    /// A number that was there already.
    #[error(
        "expected record {expected}, found {found} again; lines were repeated or reordered, or there were two writers, or another trail begins here: give that with --trail"
    )]
    Repeated {
        /// The number after the line before.
        expected: i64,
        /// The number found.
        found: i64,
    },
    /// The right number, in a chain that is not this one.
    #[error(
        "record {sequence} continues a record with the digest {found}, but the one before it has {expected}; from here on it is another trail, or one before was replaced"
    )]
    Unlinked {
        /// The line's own number.
        sequence: i64,
        /// The digest of the line before.
        expected: String,
        /// The digest that the line names as that.
        found: String,
    },
    /// A receipt from elsewhere names another digest.
    #[error(
        "record {sequence} has the digest {found}, but a receipt for it says {expected}; the chain was computed anew after that receipt was given, or the receipt is of a tail that was cut off"
    )]
    Rewritten {
        /// The number of both.
        sequence: i64,
        /// What the receipt says.
        expected: String,
        /// What stands in the trail.
        found: String,
    },
    /// A segment that continues another than the line before it, in a file that ended otherwise.
    #[error(
        "record {sequence} says that this file ended with record {expected} before, but record {found} stands there; what was between was cut off, or the file was put together of others"
    )]
    OtherEnd {
        /// The line's own number.
        sequence: i64,
        /// What it names.
        expected: i64,
        /// What stands there.
        found: i64,
    },
    /// What a segment continues, or what its file ended with before, is in no file.
    #[error(
        "record {sequence} goes on from record {missing}, which is in none of the files; a file is missing, or its end was cut off: give the files of all replicas, or the receipt of that record with --after"
    )]
    NoParent {
        /// The line's own number.
        sequence: i64,
        /// The number of the one that is missing.
        missing: i64,
    },
    /// The same segment twice.
    #[error(
        "record {sequence} stands in another file, too; one is a copy of the other, or a part of it: give one of them"
    )]
    Copied {
        /// Its number.
        sequence: i64,
    },
    /// Two files that nothing joins.
    #[error(
        "record {} begins a trail, and another file begins one, too; if the one is a gateway's, or was there before, give it with --trail. {}", first.sequence, Acknowledge(first)
    )]
    SecondBeginning {
        /// It.
        first: Receipt,
    },
    /// Goes on from a record of `--after`, and is nothing with which a file begins.
    #[error(
        "record {sequence} goes on from a record that was given with --after, and neither opens a segment nor goes on from a full file; no file of a trail begins so: it was added, or the beginning of its file was cut off"
    )]
    Misbegun {
        /// The line's own number.
        sequence: i64,
    },
    /// Two parts that no trail has whose files were deleted the oldest first.
    #[error(
        "record {first} goes on from what is elsewhere, or begins the trail, and so does record {other}: in the same term, or in the order of other terms; a file was added that goes on from an old --after, or one that stood between is missing. Give only those --after that are still needed, or the older files themselves"
    )]
    SecondPart {
        /// The record that begins the one.
        first: Receipt,
        /// The record that begins the other.
        other: Receipt,
    },
    /// A record was given with `--after`, and nothing needs it.
    #[error(
        "--after names record {after}, and nothing goes on from it that is not here itself; an old one lets others add a file that goes on from it: take it out, or look for the file that is missing"
    )]
    NoAfter {
        /// The record.
        after: Receipt,
    },
    /// Two that continue one record, and no leader's death explains it.
    #[error(
        "record {} continues record {}, and so does another, without a later term that explains it; the lease was deleted, written by somebody or restored with etcd, or records were added: look who wrote it in the API server's audit log. {}", first.sequence, first.sequence - 1, Acknowledge(first)
    )]
    Fork {
        /// The record that begins the later branch.
        first: Receipt,
    },
    /// A tail that no killed leader leaves.
    #[error(
        "{records} records of term {term} were written after record {after}, over {seconds} s, the last {overlap_seconds} s after term {next} began; a leader stops within its lease of {lease} s: two led at once, or records were added, or two clocks differ by more than that, or the lease was restored with etcd. {}", Acknowledge(fork),
        records = tail.records, term = tail.term, after = tail.after, seconds = tail.seconds, next = tail.next_term,
        lease = tail.lease_seconds
    )]
    LongTail {
        /// What it would be.
        tail: Box<Tail>,
        /// By how much two terms overlap.
        overlap_seconds: i64,
        /// The record that begins the other branch.
        fork: Receipt,
    },
    /// Somebody answers for a fork that is none.
    #[error(
        "--fork names record {acknowledged}, and no branch beside another begins with it; take it out, or look for the record that a finding named"
    )]
    NoFork {
        /// The record.
        acknowledged: Receipt,
    },
    /// The file was written to while it was read.
    #[error("a segment was added while the files were read; verify once more")]
    Changed,
    /// A receipt from elsewhere names a line that is not there.
    #[error(
        "a receipt was given for record {expected}, but the trail {reached}; it was cut, or a file is missing, or the receipt is of another trail"
    )]
    Missing {
        /// The receipt's number.
        expected: i64,
        /// How far the trail goes, in words.
        reached: String,
    },
}

/// How people answer for a fork, and when they may.
struct Acknowledge<'a>(&'a Receipt);

impl fmt::Display for Acknowledge<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(first) = self;
        write!(
            f,
            "Only if you know that etcd was restored or the lease deleted just before that record's time, acknowledge it, and verify all else: --fork {first}"
        )
    }
}
