//! One line: how a record is linked to the one before, spelled, and read back.

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::{Finding, Receipt};

/// The longest line, without its newline, that is written or read: what `verify` holds in memory.
pub(super) const LINE_BYTES_MAX: usize = 1 << 20;
/// Room in a line for all but the record: 2 digests, a number, a time, 5 names. Tried: at most 260.
pub(super) const ENVELOPE_BYTES_MAX: usize = 512;
/// How deep a record may nest. serde_json reads 127 levels and no more; what is written must be readable.
pub(super) const DEPTH_MAX: usize = 64;
/// The largest integer that JCS, whose numbers are doubles, writes without loss.
pub(super) const INTEGER_MAX: i64 = (1 << 53) - 1;
/// The kinds of the records that a trail writes by itself: one begins a segment, the other a file.
pub(super) const SEGMENT_OPENED: &str = "SegmentOpened";
pub(super) const FILE_CONTINUED: &str = "FileContinued";
/// The kinds that nobody else may write.
pub(super) const OWN_KINDS: [&str; 2] = [SEGMENT_OPENED, FILE_CONTINUED];

const _: () = assert!(ENVELOPE_BYTES_MAX < LINE_BYTES_MAX && DEPTH_MAX < 127);

/// A record in its canonical form, not yet linked.
#[derive(Debug)]
pub(super) struct Draft {
    time: Timestamp,
    record: String,
}

impl Draft {
    /// Canonicalises a record. Errors: a sentence on what cannot be written.
    pub(super) fn new(record: &Map<String, Value>, time: Timestamp) -> Result<Self, String> {
        record
            .iter()
            .try_for_each(|(name, value)| writable(value, DEPTH_MAX).map_err(|why| format!("{name}: {why}")))?;
        let record = serde_json_canonicalizer::to_string(record).map_err(|error| error.to_string())?;
        if record.len() > LINE_BYTES_MAX - ENVELOPE_BYTES_MAX {
            return Err(format!("{} bytes are more than a line holds", record.len()));
        }
        Ok(Draft { time, record })
    }

    /// Returns the line's time.
    pub(super) fn time(&self) -> Timestamp {
        self.time
    }

    /// Returns the bytes that the record takes in a line.
    pub(super) fn bytes(&self) -> usize {
        self.record.len()
    }

    /// Appends the line that continues `previous` to `text`, newline included, and returns its receipt.
    pub(super) fn link(&self, previous: &Receipt, text: &mut String) -> Receipt {
        let Draft { time, record } = self;
        let (sequence, previous) = (previous.sequence + 1, &previous.digest);
        // The JCS form of the line's object without `digest`: names sorted, and the time needs no escapes.
        let linked =
            format!(r#"{{"previousDigest":"{previous}","record":{record},"sequence":{sequence},"time":"{time}"}}"#);
        let digest = sha256(linked.as_bytes());
        text.push_str(&spelled(sequence, *time, previous, &digest, record));
        text.push('\n');
        Receipt { sequence, digest }
    }
}

/// A line that was read, and proved to be spelled as we spell and to carry its own digest.
#[derive(Debug)]
pub(super) struct Link {
    pub receipt: Receipt,
    pub previous_digest: String,
    pub time: Timestamp,
    /// There, if it opens a segment.
    pub opening: Option<Opening>,
    /// There, if it goes on from a file that was full.
    pub continued: Option<Continued>,
}

impl Link {
    /// The line that it continues.
    pub fn previous(&self) -> Receipt {
        Receipt { sequence: self.receipt.sequence - 1, digest: self.previous_digest.clone() }
    }

    /// What tells the file from others that its own goes on from, if it says that of one.
    pub fn previous_file(&self) -> Option<&str> {
        let opened = self.opening.as_ref().and_then(|opening| opening.previous_file.as_deref());
        opened.or(self.continued.as_ref().map(|continued| continued.previous_file.as_str()))
    }

    /// The term that it says it is written in, if it opens a segment or goes on from a full file.
    pub fn term(&self) -> Option<Term> {
        let opened = self.opening.as_ref().and_then(|opening| opening.term);
        opened.or(self.continued.as_ref().and_then(|continued| continued.term))
    }

    /// Whether a leader's term begins with it.
    pub fn opens_term(&self) -> bool {
        self.opening.as_ref().is_some_and(|opening| opening.term.is_some())
    }
}

/// What a record says that opens a segment, beside the head that it continues.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Opening {
    /// The leader's term; none for a writer that is alone.
    pub term: Option<Term>,
    /// The line that the file ended with before, if that is not the one that is continued.
    pub file_head: Option<Receipt>,
    /// Whether it is written to standard output, where nobody knows what stood before it.
    pub is_output: bool,
    /// The file of the same writer that its own goes on from, if the segment begins a file beside closed ones.
    pub previous_file: Option<String>,
}

/// What a record says that goes on from a file that was full, beside the head that it continues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Continued {
    /// What tells that file from others.
    pub previous_file: String,
    /// The leader's term, which the file before opened, or goes on with: that file may be elsewhere one day.
    pub term: Option<Term>,
}

/// A leader's term, as far as it matters for what it left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Term {
    pub number: i64,
    pub lease_seconds: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Written {
    sequence: i64,
    time: Timestamp,
    previous_digest: String,
    digest: String,
    record: Map<String, Value>,
}

/// Reads one line, without its newline. What it follows is for the caller to compare.
pub(super) fn read(line: &[u8]) -> Result<Link, Finding> {
    let written: Written =
        serde_json::from_slice(line).map_err(|error| Finding::Unreadable { reason: error.to_string() })?;
    let Written { sequence, time, previous_digest, digest, record } = written;
    if !(1..=INTEGER_MAX).contains(&sequence) {
        return Err(Finding::Unreadable { reason: format!("sequence {sequence} is not within 1..{INTEGER_MAX}") });
    }
    let draft = Draft::new(&record, time).map_err(|reason| Finding::Unreadable { reason })?;
    // Byte for byte, so that a repeated name, of which JSON readers take whichever they like, hides nothing.
    if spelled(sequence, time, &previous_digest, &digest, &draft.record).as_bytes() != line {
        return Err(Finding::Respelled { sequence });
    }
    let previous = Receipt { sequence: sequence - 1, digest: previous_digest };
    let receipt = draft.link(&previous, &mut String::new());
    if receipt.digest != digest {
        return Err(Finding::Edited { sequence, expected: receipt.digest, found: digest });
    }
    let misjoined = Finding::Misjoined { sequence };
    let (opening, continued) = match record.get("kind").and_then(Value::as_str) {
        Some(SEGMENT_OPENED) => (Some(opening(&record, &previous).ok_or(misjoined)?), None),
        Some(FILE_CONTINUED) => (None, Some(continued(&record, &previous).ok_or(misjoined)?)),
        Some(_) | None => (None, None),
    };
    Ok(Link { receipt, previous_digest: previous.digest, time, opening, continued })
}

/// Returns the record that opens a segment.
///
/// `segment` is its own number, `previousHead` what it continues, `tornBytes` and `tornDigest` what a crash had left
/// at the file's end and was set aside. Of a leader `term` and `leaseSeconds`, and `fileHead`, the line that the file ended
/// with, where that is not what is continued, or `output`, where there is none. `previousFile` is what tells the file from
/// others that was closed before this one, where the segment begins a file.
pub(super) fn segment_opened(
    previous: &Receipt,
    torn: Option<(u64, &str)>,
    Opening { term, file_head, is_output, previous_file }: &Opening,
) -> Map<String, Value> {
    let mut record = Map::new();
    record.insert("kind".into(), SEGMENT_OPENED.into());
    record.insert("segment".into(), (previous.sequence + 1).into());
    record.insert("previousHead".into(), head_value(previous));
    record.insert("tornBytes".into(), torn.map_or(0, |(bytes, _)| bytes).into());
    if let Some((_, digest)) = torn {
        record.insert("tornDigest".into(), digest.into());
    }
    insert_term(&mut record, *term);
    if let Some(head) = file_head {
        record.insert("fileHead".into(), head_value(head));
    }
    if *is_output {
        record.insert("output".into(), true.into());
    }
    if let Some(file) = previous_file {
        record.insert("previousFile".into(), file.as_str().into());
    }
    record
}

/// Returns the record that begins a file where the one before was full: what it continues, what tells that file from others,
/// and of a leader its term.
pub(super) fn file_continued(previous: &Receipt, previous_file: &str, term: Option<Term>) -> Map<String, Value> {
    let mut record = Map::new();
    record.insert("kind".into(), FILE_CONTINUED.into());
    record.insert("previousHead".into(), head_value(previous));
    record.insert("previousFile".into(), previous_file.into());
    insert_term(&mut record, term);
    record
}

fn insert_term(record: &mut Map<String, Value>, term: Option<Term>) {
    if let Some(Term { number, lease_seconds }) = term {
        record.insert("term".into(), number.into());
        record.insert("leaseSeconds".into(), lease_seconds.into());
    }
}

/// Returns SHA-256 in lower-case hex.
pub(super) fn sha256(bytes: &[u8]) -> String {
    use std::fmt::Write;
    Sha256::digest(bytes).iter().fold(String::with_capacity(64), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}"); // a String takes all
        hex
    })
}

/// Reads a record that opens a segment; none if no trail writes such a one after `previous`.
fn opening(record: &Map<String, Value>, previous: &Receipt) -> Option<Opening> {
    let names_it = record.get("previousHead") == Some(&head_value(previous))
        && record.get("segment") == Some(&Value::from(previous.sequence + 1));
    if !names_it {
        return None;
    }
    let term = term(record)?;
    let file_head = match record.get("fileHead") {
        None => None,
        Some(value) => Some(serde_json::from_value(value.clone()).ok().filter(Receipt::is_one)?),
    };
    let is_output = match record.get("output") {
        None => false,
        Some(value) => value.as_bool().filter(|is_output| *is_output)?,
    };
    let previous_file = match record.get("previousFile") {
        None => None,
        Some(value) => Some(value.as_str().filter(|file| is_digest(file))?.to_owned()),
    };
    // Who is alone continues its file, and standard output has none.
    let is_joint = file_head.is_some() || is_output;
    let is_of_file = file_head.is_some() || previous_file.is_some();
    if term.is_none() && is_joint || is_of_file && is_output || file_head.as_ref() == Some(previous) {
        return None;
    }
    Some(Opening { term, file_head, is_output, previous_file })
}

/// Reads a record that goes on from another file; none if no trail writes such a one after `previous`.
fn continued(record: &Map<String, Value>, previous: &Receipt) -> Option<Continued> {
    let file = record.get("previousFile")?.as_str().filter(|file| is_digest(file))?;
    let term = term(record)?;
    (record == &file_continued(previous, file, term)).then(|| Continued { previous_file: file.to_owned(), term })
}

/// Reads the term of a record, if it has one; none if it has half of one.
fn term(record: &Map<String, Value>) -> Option<Option<Term>> {
    let number = |name: &str| match record.get(name) {
        None => Some(None),
        Some(value) => value.as_i64().filter(|number| *number >= 0).map(Some),
    };
    match (number("term")?, number("leaseSeconds")?) {
        (Some(number), Some(lease_seconds)) => Some(Some(Term { number, lease_seconds })),
        (None, None) => Some(None),
        (Some(_), None) | (None, Some(_)) => None,
    }
}

/// Whether this is SHA-256 as a trail spells it.
pub(super) fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn head_value(head: &Receipt) -> Value {
    match head.sequence {
        0 => Value::Null,
        sequence => serde_json::json!({ "sequence": sequence, "digest": head.digest }),
    }
}

fn spelled(sequence: i64, time: Timestamp, previous: &str, digest: &str, record: &str) -> String {
    format!(
        r#"{{"sequence":{sequence},"time":"{time}","previousDigest":"{previous}","digest":"{digest}","record":{record}}}"#
    )
}

/// Says what in a value would not come back as it was written.
fn writable(value: &Value, depth_left: usize) -> Result<(), String> {
    if depth_left == 0 {
        return Err(format!("nested more than {DEPTH_MAX} deep"));
    }
    match value {
        Value::Null | Value::Bool(_) | Value::String(_) => Ok(()),
        Value::Number(number) => match number.as_i64() {
            Some(integer) if (-INTEGER_MAX..=INTEGER_MAX).contains(&integer) => Ok(()),
            Some(_) | None => Err(format!("{number} is not an integer within ±{INTEGER_MAX}; write it as a string")),
        },
        Value::Array(items) => items.iter().try_for_each(|item| writable(item, depth_left - 1)),
        Value::Object(members) => members.values().try_for_each(|member| writable(member, depth_left - 1)),
    }
}
