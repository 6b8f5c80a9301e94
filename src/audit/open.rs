//! Opening a trail: the sinks, the record that opens a segment, and all that can be in the way.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;

use super::line::{self, Draft, Opening};
use super::store::{Copier, Names, OnDisk, OutputStore, StandardOutput, Store};
use super::tail::{self, Found, TORN_FILES_MAX};
use super::writer::Chain;
use super::{Finding, Receipt};

/// Where the lines go. With both, the file is the trail and standard output gets a copy of each durable line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sinks {
    /// A file in a directory that exists.
    pub file: Option<PathBuf>,
    /// The process's standard output.
    pub stdout: bool,
}

/// What a new segment begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Begin {
    /// The opening record's time.
    pub now: Timestamp,
    /// The trail's head as it is known from elsewhere, such as a lease, if it is.
    ///
    /// A file that ends before it has lost its end, and is refused, unless it stands in another file than this one. A new
    /// file, another file and standard output continue it, so that leaders without a common volume write one chain. `None`
    /// for a trail that nobody else writes or remembers.
    pub known_head: Option<Receipt>,
    /// The writer, if it is one of several that lead in turn.
    pub leader: Option<Leader>,
}

/// A leader, and what the one before it left word of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leader {
    /// Its term. Each leader's is greater than all before.
    pub term: i64,
    /// How long, in seconds, one may lead that is not heard of any more.
    pub lease_seconds: i64,
    /// The file in which the known head stands, as [`Opened::file`] called it; none if nobody said, and then it is ours.
    pub head_file: Option<String>,
}

/// What [`Opened::file`] says for standard output, which begins anew with each process.
pub const STANDARD_OUTPUT: &str = "-";

/// What was found, and done, at opening.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// The record that opens the segment, durable.
    pub head: Receipt,
    /// The head that it continues; `None` for the first record of all.
    pub previous_head: Option<Receipt>,
    /// What was torn off the file's end.
    pub torn: Option<Torn>,
    /// What tells this file from others: its first line's digest, or [`STANDARD_OUTPUT`].
    pub file: String,
    /// The line that the file ended with, if something else is continued: the tail of an earlier term.
    pub file_head: Option<Receipt>,
}

/// The end of a file that a crash had left, taken off and set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Torn {
    /// Where it is now.
    pub path: PathBuf,
    /// Its length, 1 at least.
    pub bytes: u64,
    /// SHA-256 in lower-case hex; it stands in the record, too.
    pub digest: String,
}

/// Why a trail could not be opened, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Neither a file nor standard output.
    #[error("the audit trail has no sink; name a file, or standard output")]
    NoSink,
    /// The file's directory is not there.
    #[error("audit trail {path}: its directory does not exist; make it, or mount the volume")]
    NoDirectory {
        /// The file.
        path: PathBuf,
    },
    /// A directory, a pipe, a device.
    #[error(
        "audit trail {path}: not a regular file, so nothing in it is durable; name another, or use standard output"
    )]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// Another writer has it.
    #[error(
        "audit trail {path}: another process writes to it; stop that one, or name another file: each trail has one writer"
    )]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// It does not verify, and nothing was changed.
    #[error(
        "audit trail {path}: the line at byte {offset} does not verify: {finding}; keep the file as evidence: move it aside, and the next opening begins a new one"
    )]
    Broken {
        /// The file.
        path: PathBuf,
        /// Where the line begins.
        offset: u64,
        /// What is wrong with it.
        finding: Finding,
    },
    /// It ends before a head that was given a receipt.
    #[error(
        "audit trail {path}: ends at record {found}, but record {known} was written; its end was cut, or an older copy restored. Find the newer file; or move this one aside, and the next opening continues after {known}"
    )]
    Behind {
        /// The file.
        path: PathBuf,
        /// Its last record; 0 for none.
        found: i64,
        /// The last record that is known.
        known: i64,
    },
    /// Closed files are missing, and which of those that are there was closed last cannot be told.
    #[error(
        "audit trail {path}: it is empty, and of the closed files beside it some between others are missing, so which one it goes on from cannot be told. Put back what is missing; or move away all that were closed before the missing ones, and the next opening goes on from the newest"
    )]
    Gap {
        /// The open file.
        path: PathBuf,
    },
    /// `Begin::known_head` is no receipt.
    #[error("the known head of the audit trail, record {sequence}, is no receipt; look at where it is kept")]
    NoReceipt {
        /// Its number.
        sequence: i64,
    },
    /// Many crashes' remains lie beside it.
    #[error(
        "audit trail {path}: {TORN_FILES_MAX} torn pieces lie beside it; look why its writer crashes, and move them away"
    )]
    TooTorn {
        /// The file.
        path: PathBuf,
    },
    /// An operation on a sink failed.
    #[error("audit trail {sink}: cannot {action}")]
    Io {
        /// The file, or `standard output`.
        sink: Arc<str>,
        /// What was tried.
        action: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
    /// No thread for the writer.
    #[error("audit trail: its thread did not start")]
    Thread(#[source] io::Error),
}

/// What the writer's thread runs on.
pub(super) struct Ready {
    pub chain: Chain,
    pub copier: Option<Copier>,
    pub sink: Arc<str>,
    pub opened: Opened,
}

/// Opens the sinks and appends the opening record. Blocks.
pub(super) fn open(sinks: Sinks, begin: Begin) -> Result<Ready, OpenError> {
    open_on(Box::new(OnDisk), sinks, begin)
}

/// The same, where names are given to files in this way.
pub(super) fn open_on(names: Box<dyn Names>, sinks: Sinks, begin: Begin) -> Result<Ready, OpenError> {
    let Begin { now, known_head, leader } = begin;
    let head_file = leader.as_ref().and_then(|leader| leader.head_file.as_deref());
    if let Some(known) = known_head.as_ref().filter(|known| !known.is_plausible()) {
        return Err(OpenError::NoReceipt { sequence: known.sequence });
    }
    let mut is_stdout = false;
    let (sink, store, found, copier): (Arc<str>, Box<dyn Store>, Found, _) = match sinks {
        Sinks { file: Some(path), stdout } => {
            let sink: Arc<str> = path.display().to_string().into();
            let store = tail::lock(path, names, &sink)?;
            let found = tail::mend(&store, known_head.as_ref(), head_file, &sink)?;
            let copier = if stdout { Some(copier().map_err(failed(&sink, "copy to standard output"))?) } else { None };
            (sink, Box::new(store), found, copier)
        }
        Sinks { file: None, stdout: true } => {
            let sink: Arc<str> = "standard output".into();
            let output = StandardOutput::new().map_err(failed(&sink, "open it"))?;
            is_stdout = true;
            (sink, Box::new(OutputStore::new(output)), Found::default(), None)
        }
        Sinks { file: None, stdout: false } => return Err(OpenError::NoSink),
    };
    let Found { head, bytes, torn, first, previous_file, is_known, opens } = found;
    // An opening that failed half way, as far as anybody knew, continues the known head already.
    let is_ours = is_known || opens.is_some() && opens == leader.as_ref().map(|it| it.term).zip(known_head.clone());
    let (previous_head, file_head) = match known_head {
        Some(known) if !is_ours => {
            let file_head = head.filter(|head| *head != known);
            (Some(known), file_head)
        }
        known => (head.or(known), None),
    };
    let previous_head = previous_head.filter(|head| head.sequence > 0);
    let previous = previous_head.clone().unwrap_or_else(Receipt::origin);
    let mut chain = Chain::new(store, previous.clone(), bytes).in_file(first);
    if is_stdout {
        chain = chain.on_output();
    }
    let term = leader.map(|Leader { term, lease_seconds, .. }| line::Term { number: term, lease_seconds });
    chain = chain.in_term(term);
    let is_output = term.is_some() && is_stdout;
    let opening = Opening { term, file_head: file_head.clone(), is_output, previous_file };
    let torn_off = torn.as_ref().map(|torn| (torn.bytes, torn.digest.as_str()));
    let record = line::segment_opened(&previous, torn_off, &opening);
    let (text, _) = Draft::new(&record, now)
        .map_err(io::Error::other)
        .and_then(|draft| chain.commit(std::iter::once(&draft)))
        .map_err(failed(&sink, "append the record that opens a segment"))?;
    if let Some(copier) = &copier {
        copier.copy(text); // taken: the queue is still empty
    }
    let head = chain.head().clone();
    let opened = Opened { head, previous_head, torn, file: chain.place().file, file_head };
    Ok(Ready { chain, copier, sink, opened })
}

fn copier() -> io::Result<Copier> {
    Copier::start(StandardOutput::new()?)
}

/// Names the sink of an error, and what was tried.
pub(super) fn failed(sink: &Arc<str>, action: &'static str) -> impl FnOnce(io::Error) -> OpenError {
    let sink = sink.clone();
    move |source| OpenError::Io { sink, action, source }
}
