//! Reads a trail from one end to the other and says the first thing that is wrong with it.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::Receipt;
use super::line::{self, LINE_BYTES_MAX, Link};

/// What is known of a trail from elsewhere. The default knows nothing: the trail begins at number 1, and ends anywhere.
#[derive(Debug, Clone, Default)]
pub struct Expectation {
    /// The line that the first one continues, if the trail does not begin at number 1: the head of an older file.
    pub after: Option<Receipt>,
    /// Lines that must be there, in any order: from a lease, from objects' statuses. Lines may follow the last.
    pub heads: Vec<Receipt>,
}

/// What was read of a trail that verifies.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Summary {
    /// How many lines.
    pub records: u64,
    /// How many of them open a segment.
    pub segments: u64,
    /// The first line's time.
    pub first_time: Option<Timestamp>,
    /// The last line's time. Clocks step: it may lie before the first.
    pub last_time: Option<Timestamp>,
    /// The first line: two trails that have it in common are one.
    pub first: Option<Receipt>,
    /// The last line.
    pub head: Option<Receipt>,
}

/// As `audit verify` prints it: whole lines.
impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { records, segments, first_time, last_time, first: _, head } = self;
        let time = |time: &Option<Timestamp>| time.map_or_else(|| "never".to_owned(), |time| time.to_string());
        let (first, last) = (time(first_time), time(last_time));
        writeln!(f, "verified: {records} records in {segments} segments, from {first} to {last}")?;
        head.iter().try_for_each(|head| writeln!(f, "head: {}:{}", head.sequence, head.digest))
    }
}

/// The first thing that is wrong with a trail, and where.
#[derive(Debug, thiserror::Error)]
#[error("{}line {line}: {finding}", file.as_ref().map_or(String::new(), |file| format!("{}, ", file.display())))]
pub struct VerifyError {
    /// The file, if more than a reader is known.
    pub file: Option<PathBuf>,
    /// The line's number in that file, from 1. For what is missing at the end: the line after the last.
    pub line: u64,
    /// What is wrong there.
    pub finding: Finding,
}

/// What can be wrong with a line, or with its place.
#[derive(Debug, thiserror::Error)]
pub enum Finding {
    /// The trail could not be read to its end. Says nothing about what stands in it.
    #[error("it could not be read ({0}); read it again, or from another copy")]
    Read(io::Error),
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
    /// Opens a segment, and names another head than the line before.
    #[error(
        "record {sequence} opens a segment, and its previousHead or segment is not the record before; it was not written by a trail"
    )]
    Misjoined {
        /// The line's own number.
        sequence: i64,
    },
    /// The trail does not begin where it should.
    #[error(
        "the trail begins with record {found}, expected {expected}; what came before was cut off: give the older files first, or the receipt of the record that this one continues"
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
        "record {sequence} has the digest {found}, but a receipt for it says {expected}; the chain was computed anew after that receipt was given"
    )]
    Rewritten {
        /// The number of both.
        sequence: i64,
        /// What the receipt says.
        expected: String,
        /// What stands in the trail.
        found: String,
    },
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

/// Reads a trail to its end, holding one line of at most 1 MiB at a time.
///
/// # Errors
/// The first finding. A cut end, and a chain that was computed anew, are found only through `expect.heads`.
pub fn verify(reader: impl BufRead, expect: Expectation) -> Result<Summary, VerifyError> {
    let mut verifier = Verifier::new(expect);
    let lines = verifier.read(None, reader)?;
    verifier.finish(None, lines)
}

/// Reads files that continue one another, oldest first. See [`verify()`].
///
/// # Errors
/// The first finding, or the first file that cannot be opened.
pub fn verify_files(paths: &[PathBuf], expect: Expectation) -> Result<Summary, VerifyError> {
    let mut verifier = Verifier::new(expect);
    let mut lines = 0;
    for path in paths {
        let file = File::open(path).map_err(|source| wrong(Some(path), 0, Finding::Read(source)))?;
        lines = verifier.read(Some(path), BufReader::new(file))?;
    }
    verifier.finish(paths.last().map(PathBuf::as_path), lines)
}

fn wrong(file: Option<&Path>, line: u64, finding: Finding) -> VerifyError {
    VerifyError { file: file.map(Path::to_path_buf), line, finding }
}

struct Verifier {
    /// The last line, or what the first has to continue.
    previous: Receipt,
    /// Sorted by number.
    heads: Vec<Receipt>,
    heads_seen: usize,
    summary: Summary,
}

impl Verifier {
    fn new(expect: Expectation) -> Self {
        let Expectation { after, mut heads } = expect;
        heads.sort_by_key(|head| head.sequence);
        Verifier { previous: after.unwrap_or_else(Receipt::origin), heads, heads_seen: 0, summary: Summary::default() }
    }

    /// Reads all lines of one file and returns their number.
    fn read(&mut self, file: Option<&Path>, mut reader: impl BufRead) -> Result<u64, VerifyError> {
        let mut line = Vec::new();
        let mut number = 0;
        loop {
            number += 1;
            line.clear();
            let found = match reader.by_ref().take(LINE_BYTES_MAX as u64 + 1).read_until(b'\n', &mut line) {
                Err(source) => Err(Finding::Read(source)),
                Ok(0) => return Ok(number - 1),
                Ok(_) if line.pop_if(|last| *last == b'\n').is_some() => self.next(&line),
                Ok(_) if line.len() > LINE_BYTES_MAX => Err(Finding::TooLong),
                Ok(_) => Err(Finding::Torn),
            };
            found.map_err(|finding| wrong(file, number, finding))?;
        }
    }

    fn next(&mut self, line: &[u8]) -> Result<(), Finding> {
        let link = line::read(line)?;
        let first = self.summary.records == 0;
        follows(&self.previous, &link).map_err(|finding| match finding {
            Finding::Gap { expected, found } if first => Finding::CutBeginning { expected, found },
            other => other,
        })?;
        let Link { receipt, time, opens_segment, .. } = link;
        if first {
            self.look_for_heads(&self.previous.clone())?;
        }
        self.look_for_heads(&receipt)?;
        self.summary.records += 1;
        self.summary.segments += u64::from(opens_segment);
        self.summary.first_time.get_or_insert(time);
        self.summary.first.get_or_insert_with(|| receipt.clone());
        self.summary.last_time = Some(time);
        self.previous = receipt;
        Ok(())
    }

    /// Compares a line with the heads up to it.
    fn look_for_heads(&mut self, line: &Receipt) -> Result<(), Finding> {
        while let Some(head) = self.heads.get(self.heads_seen).filter(|head| head.sequence <= line.sequence) {
            if head.sequence < line.sequence {
                let reached = format!("begins after record {}", line.sequence);
                return Err(Finding::Missing { expected: head.sequence, reached });
            }
            compare(head, line)?;
            self.heads_seen += 1;
        }
        Ok(())
    }

    fn finish(mut self, file: Option<&Path>, lines: u64) -> Result<Summary, VerifyError> {
        if self.summary.records == 0 {
            self.look_for_heads(&self.previous.clone()).map_err(|finding| wrong(file, lines + 1, finding))?;
        }
        let reached = match self.summary.records {
            0 => "is empty".to_owned(),
            _ => format!("ends at record {}", self.previous.sequence),
        };
        if let Some(head) = self.heads.get(self.heads_seen) {
            return Err(wrong(file, lines + 1, Finding::Missing { expected: head.sequence, reached }));
        }
        self.summary.head = (self.summary.records > 0).then_some(self.previous);
        Ok(self.summary)
    }
}

/// Checks that a line continues the one before.
pub(super) fn follows(previous: &Receipt, link: &Link) -> Result<(), Finding> {
    let (expected, found) = (previous.sequence.saturating_add(1), link.receipt.sequence);
    if found > expected {
        return Err(Finding::Gap { expected, found });
    }
    if found < expected {
        return Err(Finding::Repeated { expected, found });
    }
    if link.previous_digest != previous.digest {
        let (expected, found) = (previous.digest.clone(), link.previous_digest.clone());
        return Err(Finding::Unlinked { sequence: link.receipt.sequence, expected, found });
    }
    Ok(())
}

/// Checks a line against a receipt of the same number.
pub(super) fn compare(receipt: &Receipt, line: &Receipt) -> Result<(), Finding> {
    if receipt.digest == line.digest {
        return Ok(());
    }
    let (expected, found) = (receipt.digest.clone(), line.digest.clone());
    Err(Finding::Rewritten { sequence: line.sequence, expected, found })
}
