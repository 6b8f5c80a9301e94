//! Reads a trail from one end to the other and says the first thing that is wrong with it.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::Receipt;
use super::finding::Finding;
use super::join::{self, Attach, Fork, Judgement, Named, Run, Spot, Tail, judge};
use super::line::{self, LINE_BYTES_MAX, Link, Term};

/// What is known of a trail from elsewhere. The default knows nothing: the trail begins at number 1, and ends anywhere.
#[derive(Debug, Clone, Default)]
pub struct Expectation {
    /// Lines that are known and in no file: what the trail continues, if it does not begin at number 1, and what the files
    /// ended with before. A trail goes on from each of them, or [`Summary::unused`] has it.
    pub after: Vec<Receipt>,
    /// Lines that must be there, in any order: from a lease, from objects' statuses. Lines may follow the last.
    pub heads: Vec<Receipt>,
    /// The first records of branches that people answer for: the lease was deleted, or restored with etcd.
    pub forks: Vec<Receipt>,
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
    /// Records that leaders left which were killed or cut off.
    pub tails: Vec<Tail>,
    /// Forks that were acknowledged.
    pub forks: Vec<Fork>,
    /// Its parts, if one of them goes on from what is elsewhere.
    pub parts: Vec<Part>,
    /// Those of [`Expectation::after`] that nothing goes on from.
    pub unused: Vec<Receipt>,
}

/// A part of a trail whose older files are elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The record that it goes on from; none for the trail's beginning.
    pub after: Option<Receipt>,
    /// How many lines, those of its tails among them.
    pub records: i64,
    /// The first line.
    pub first: Receipt,
    /// Its time.
    pub first_time: Timestamp,
    /// The line that it ends with.
    pub last: Receipt,
    /// Its time.
    pub last_time: Timestamp,
}

/// As `audit verify` prints it: a whole line.
impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { after, records, first, first_time, last, last_time } = self;
        write!(f, "part: {records} records, from {first} at {first_time} to {last} at {last_time}; ")?;
        match after {
            Some(after) => writeln!(f, "it goes on from {after}, which is in none of the files"),
            None => writeln!(f, "it begins the trail"),
        }
    }
}

/// As `audit verify` prints it: whole lines.
impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { records, segments, first_time, last_time, first: _, head, tails, forks, parts, unused: _ } = self;
        let time = |time: &Option<Timestamp>| time.map_or_else(|| "never".to_owned(), |time| time.to_string());
        let (first, last) = (time(first_time), time(last_time));
        writeln!(f, "verified: {records} records in {segments} segments, from {first} to {last}")?;
        parts.iter().try_for_each(|part| part.fmt(f))?;
        forks.iter().try_for_each(|fork| fork.fmt(f))?;
        tails.iter().try_for_each(|tail| tail.fmt(f))?;
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

/// Reads a trail that stands in one piece, holding one line of at most 1 MiB at a time.
///
/// # Errors
/// The first finding. A cut end, and a chain that was computed anew, are found only through `expect.heads`.
pub fn verify(reader: impl BufRead, expect: Expectation) -> Result<Summary, VerifyError> {
    let mut verifier = Verifier::new(expect, None, true);
    verifier.read(None, None, reader)?;
    verifier.finish()
}

/// Reads the files of one trail, in whichever order: of replicas, pieces of one file, and those that were full. Of a folder all
/// of its files, and nothing in it may be anything else than a file or a folder. See [`verify()`].
///
/// Each is read twice: for what its segments continue and which file it goes on from, and then for all. Files that go on from
/// one another are read as if they were one. Memory grows with segments and files, not with records.
///
/// # Errors
/// The first finding within a file, else the first that is wrong between them; or the first file that cannot be opened.
pub fn verify_files(paths: &[PathBuf], expect: Expectation) -> Result<Summary, VerifyError> {
    verify_while(paths, expect, || {})
}

/// The same, with something that happens when it is known which files there are.
pub(super) fn verify_while(
    paths: &[PathBuf],
    expect: Expectation,
    meanwhile: impl FnOnce(),
) -> Result<Summary, VerifyError> {
    let mut wanted = Vec::new();
    let mut files = Vec::new();
    let found = files_of(paths)?;
    meanwhile();
    for path in &found {
        let (reader, id) = open(path)?;
        let first = look_for_segments(reader, &mut wanted);
        let first = first.map_err(|source| wrong(Some(path), 0, Finding::Read(source)))?;
        files.push(Seen { path: path.clone(), id, first });
    }
    // One that was full was closed meanwhile, and has a name that was not there before.
    if files_of(paths)? != found {
        return Err(wrong(paths.first().map(PathBuf::as_path), 0, Finding::Changed));
    }
    let mut names = HashMap::new();
    for Seen { path, id: _, first } in &files {
        if let Some(first) = first
            && names.insert(first.receipt.digest.as_str(), path).is_some()
        {
            return Err(wrong(Some(path), 1, Finding::Copied { sequence: first.receipt.sequence }));
        }
    }
    let links: Vec<_> = files.iter().map(|file| (file.name(), file.previous_file())).collect();
    let rows = super::files::in_rows(&links);
    let mut verifier = Verifier::new(expect, Some(wanted), rows.len() == 1);
    for row in &rows {
        let mut previous = None;
        for Seen { path, id, first: _ } in row.iter().map(|file| &files[*file]) {
            let (reader, found) = open(path)?;
            // One that was full was closed meanwhile, and another stands at its path.
            if found != *id {
                return Err(wrong(Some(path), 1, Finding::Changed));
            }
            previous = verifier.read(Some(path), previous, reader)?;
        }
    }
    verifier.finish()
}

/// A file that was read once.
struct Seen {
    path: PathBuf,
    /// The device and the number by which the system knows it.
    id: (u64, u64),
    first: Option<Link>,
}

impl Seen {
    fn name(&self) -> Option<&str> {
        self.first.as_ref().map(|first| first.receipt.digest.as_str())
    }

    fn previous_file(&self) -> Option<&str> {
        self.first.as_ref().and_then(Link::previous_file)
    }
}

/// The files that are meant: of a folder those in it, but for hidden ones and what crashes had torn off.
fn files_of(paths: &[PathBuf]) -> Result<Vec<PathBuf>, VerifyError> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let list = || {
            let mut found = Vec::new();
            for entry in fs::read_dir(path)? {
                let path = entry?.path();
                if super::files::is_of_a_trail(&path) && !path.is_dir() {
                    found.push(path);
                }
            }
            // An empty folder is one that was not mounted, and no trail that verifies.
            if found.is_empty() { Err(io::Error::other("no file of a trail is in this folder")) } else { Ok(found) }
        };
        let mut found = list().map_err(|source| wrong(Some(path), 0, Finding::Read(source)))?;
        found.sort();
        files.extend(found);
    }
    Ok(files)
}

fn open(path: &Path) -> Result<(BufReader<File>, (u64, u64)), VerifyError> {
    let read = |source| wrong(Some(path), 0, Finding::Read(source));
    // Before it is opened: that waits for whoever writes to a pipe. And none but a file can be read twice.
    if !fs::metadata(path).map_err(read)?.is_file() {
        return Err(wrong(Some(path), 0, Finding::NotAFile));
    }
    let file = File::open(path).map_err(read)?;
    let metadata = file.metadata().map_err(read)?;
    Ok((BufReader::with_capacity(READ_BYTES, file), (metadata.dev(), metadata.ino())))
}

/// How much is read at once.
const READ_BYTES: usize = 64 << 10;

/// Notes what the segments of a file continue, and returns its first line. What is wrong with a line is for the verifier to say.
fn look_for_segments(mut reader: impl BufRead, wanted: &mut Vec<Receipt>) -> io::Result<Option<Link>> {
    let opens = format!("\"kind\":\"{}\"", line::SEGMENT_OPENED);
    let (mut line, mut is_first, mut first) = (Vec::new(), true, None);
    loop {
        line.clear();
        if reader.by_ref().take(LINE_BYTES_MAX as u64 + 1).read_until(b'\n', &mut line)? == 0 {
            return Ok(first);
        }
        // It may have no end; nothing behind it is read.
        if line.pop_if(|last| *last == b'\n').is_none() && line.len() > LINE_BYTES_MAX {
            return Ok(first);
        }
        let may_open = line.windows(opens.len()).any(|part| part == opens.as_bytes());
        if (may_open || is_first)
            && let Ok(link) = line::read(&line)
        {
            wanted.push(link.previous());
            wanted.extend(link.opening.as_ref().and_then(|opening| opening.file_head.clone()));
            if is_first {
                first = Some(link);
            }
        }
        is_first = false;
    }
}

fn wrong(file: Option<&Path>, line: u64, finding: Finding) -> VerifyError {
    VerifyError { file: file.map(Path::to_path_buf), line, finding }
}

/// A place in a file, by the line's number from 1.
type Place = (Option<PathBuf>, u64);

/// A line that is looked for, and where it is.
struct Wanted {
    receipt: Receipt,
    spot: Option<Spot>,
    /// The digest of a line of the same number, if that is another.
    other: Option<(String, Place)>,
}

struct Verifier {
    after: Vec<Receipt>,
    heads: Vec<Receipt>,
    forks: Vec<Receipt>,
    /// By number.
    wanted: HashMap<i64, Vec<Wanted>>,
    /// Whether what the segments continue is among what is wanted.
    is_prepared: bool,
    /// All of it stands in one file, so that what begins that begins the trail.
    is_one_piece: bool,
    begun: Vec<Begun>,
    /// The line before, if it is wanted.
    passed: Option<Receipt>,
    records: u64,
    segments: u64,
    /// Where the last line stands.
    end: Place,
}

/// A run that was begun.
struct Begun {
    run: Run,
    place: Place,
    /// What it continues, unless that is the end of the run before.
    parent: Option<Receipt>,
    /// Whether a writer begins a file with its first record.
    begins_a_file: bool,
}

impl Begun {
    fn term(&self) -> Option<Term> {
        self.run.opening.as_ref().map_or(self.run.continued, |opening| opening.term)
    }
}

impl Verifier {
    fn new(expect: Expectation, segments: Option<Vec<Receipt>>, is_one_piece: bool) -> Self {
        let Expectation { mut after, mut heads, forks } = expect;
        let mut given = HashSet::new();
        after.retain(|after| given.insert(after.clone()));
        heads.sort_by_key(|head| head.sequence);
        let is_prepared = segments.is_some();
        let mut wanted = HashMap::<i64, Vec<Wanted>>::new();
        for receipt in segments.into_iter().flatten().chain(heads.iter().cloned()) {
            let of_number = wanted.entry(receipt.sequence).or_default();
            if of_number.iter().all(|it| it.receipt != receipt) {
                of_number.push(Wanted { receipt, spot: None, other: None });
            }
        }
        Verifier {
            after,
            heads,
            forks,
            wanted,
            is_prepared,
            is_one_piece,
            begun: Vec::new(),
            passed: None,
            records: 0,
            segments: 0,
            end: (None, 0),
        }
    }

    /// Reads all lines of one file. `previous` is the last line of the file that it goes on from, if that was read just before.
    /// Returns the last line.
    fn read(
        &mut self,
        file: Option<&Path>,
        mut previous: Option<Receipt>,
        mut reader: impl BufRead,
    ) -> Result<Option<Receipt>, VerifyError> {
        let mut line = Vec::new();
        self.end = (file.map(Path::to_path_buf), 0);
        if previous.is_none() {
            self.passed = None;
        }
        loop {
            self.end.1 += 1;
            line.clear();
            let found = match reader.by_ref().take(LINE_BYTES_MAX as u64 + 1).read_until(b'\n', &mut line) {
                Err(source) => Err(Finding::Read(source)),
                Ok(0) => return Ok(previous),
                Ok(_) if line.pop_if(|last| *last == b'\n').is_some() => self.next(previous.as_ref(), &line),
                Ok(_) if line.len() > LINE_BYTES_MAX => Err(Finding::TooLong),
                Ok(_) => Err(Finding::Torn),
            };
            previous = Some(found.map_err(|finding| wrong(file, self.end.1, finding))?);
        }
    }

    /// Takes in one line. `previous` is the one before it in the same file, or in the one that its file goes on from.
    fn next(&mut self, previous: Option<&Receipt>, line: &[u8]) -> Result<Receipt, Finding> {
        let link = line::read(line)?;
        let joint = match previous {
            None if self.is_one_piece => self.begins(&link).map(|()| Joint::Begins)?,
            None => Joint::Begins,
            Some(previous) => match follows_in_file(previous, &link) {
                // Standard output of several processes, one behind the other.
                Err(_) if link.opening.as_ref().is_some_and(|opening| opening.is_output) => Joint::Begins,
                joint => joint?,
            },
        };
        let passed = self.passed.take();
        match self.begun.last_mut() {
            Some(begun) if joint == Joint::Follows && !link.opens_term() => {
                if let (Some(said), Some(known)) = (link.term(), begun.term())
                    && said != known
                {
                    return Err(Finding::Misjoined { sequence: link.receipt.sequence });
                }
                begun.run.last.clone_from(&link.receipt);
                begun.run.last_time = link.time;
                if let Some(passed) = passed {
                    self.note(&passed, link.time);
                }
            }
            _ => self.begin(joint, &link),
        }
        let run = self.begun.len() - 1;
        for wanted in self.wanted.get_mut(&link.receipt.sequence).into_iter().flatten() {
            if wanted.receipt == link.receipt {
                // Of a copy the first counts; that there is one is found by its segment.
                wanted.spot.get_or_insert(Spot { run, next_time: None });
                self.passed = Some(link.receipt.clone());
            } else {
                wanted.other.get_or_insert_with(|| (link.receipt.digest.clone(), self.end.clone()));
            }
        }
        self.records += 1;
        self.segments += u64::from(link.opening.is_some());
        Ok(link.receipt)
    }

    /// Checks that a line begins the trail, or continues what is known.
    fn begins(&self, link: &Link) -> Result<(), Finding> {
        let (origin, previous) = (Receipt::origin(), link.previous());
        if previous == origin || self.after.contains(&previous) {
            return Ok(());
        }
        let of_number = self.after.iter().find(|after| after.sequence == previous.sequence);
        follows(of_number.or(self.after.first()).unwrap_or(&origin), link).map_err(|finding| match finding {
            Finding::Gap { expected, found } => Finding::CutBeginning { expected, found },
            other => other,
        })
    }

    fn begin(&mut self, joint: Joint, link: &Link) {
        let before = self.begun.len().checked_sub(1);
        let (attach, names) = match (joint, before) {
            (Joint::Follows, Some(run)) => (Attach::At(Spot { run, next_time: None }), Named::Nothing),
            (Joint::Joins, Some(run)) => (Attach::Nowhere, Named::At(run)),
            (Joint::Begins, _) | (_, None) => (Attach::Nowhere, Named::Nothing),
        };
        let run = Run {
            opening: link.opening.clone(),
            continued: link.continued.as_ref().and_then(|continued| continued.term),
            first: link.receipt.clone(),
            first_time: link.time,
            last: link.receipt.clone(),
            last_time: link.time,
            attach,
            follows: joint == Joint::Follows,
            names,
        };
        let parent = (joint != Joint::Follows).then(|| link.previous());
        let begins_a_file = link.opening.is_some() || link.continued.is_some();
        self.begun.push(Begun { run, place: self.end.clone(), parent, begins_a_file });
    }

    /// Notes the time of the line behind one that is wanted.
    fn note(&mut self, wanted: &Receipt, time: Timestamp) {
        let run = self.begun.len() - 1;
        let of_number = self.wanted.get_mut(&wanted.sequence).into_iter().flatten();
        let spots = of_number.filter(|it| it.receipt == *wanted).filter_map(|it| it.spot.as_mut());
        for spot in spots.filter(|spot| spot.run == run) {
            spot.next_time.get_or_insert(time);
        }
    }

    fn find(&self, receipt: &Receipt) -> Option<&Wanted> {
        self.wanted.get(&receipt.sequence)?.iter().find(|it| it.receipt == *receipt)
    }

    /// What a run continues, once all files are read.
    fn attach(&self, parent: &Receipt) -> Result<Attach, Finding> {
        match self.find(parent).map(|wanted| wanted.spot) {
            Some(Some(spot)) => Ok(Attach::At(spot)),
            _ if *parent == Receipt::origin() => Ok(Attach::Beginning),
            found => match self.after.iter().position(|after| after == parent) {
                Some(elsewhere) => Ok(Attach::After(elsewhere)),
                None if found.is_none() && self.is_prepared => Err(Finding::Changed),
                None => Ok(Attach::Nowhere),
            },
        }
    }

    /// What a run names as its file's end, if it stands at a file's beginning.
    fn names(&self, head: &Receipt) -> Named {
        match self.find(head).and_then(|wanted| wanted.spot) {
            Some(spot) => Named::At(spot.run),
            None if self.after.contains(head) => Named::Nothing,
            None => Named::Nowhere,
        }
    }

    fn finish(self) -> Result<Summary, VerifyError> {
        let at = |(file, line): &Place, finding| wrong(file.as_deref(), *line, finding);
        let mut runs = Vec::with_capacity(self.begun.len());
        let mut used = HashSet::new();
        for Begun { run, place, parent, begins_a_file } in &self.begun {
            let mut run = run.clone();
            if let Some(parent) = parent {
                run.attach = self.attach(parent).map_err(|finding| at(place, finding))?;
            }
            if let Attach::After(elsewhere) = run.attach {
                // A piece that is all there is may begin anywhere.
                if !begins_a_file && !self.is_one_piece {
                    return Err(at(place, Finding::Misbegun { sequence: run.first.sequence }));
                }
                used.insert(self.after[elsewhere].clone());
            }
            let head = run.opening.as_ref().and_then(|opening| opening.file_head.as_ref());
            if let (Some(head), Named::Nothing) = (head, run.names) {
                run.names = self.names(head);
                if run.names == Named::Nothing {
                    used.insert(head.clone());
                }
            }
            runs.push(run);
        }
        let Judgement { tails, forks, parts, first, last } = judge(&runs, &self.forks)
            .map_err(|(run, finding)| at(self.begun.get(run).map_or(&self.end, |begun| &begun.place), finding))?;
        self.look_for_heads(&runs)?;
        let part = |join::Part { after, first, last, records, .. }: &join::Part| Part {
            after: after.map(|after| self.after[after].clone()),
            records: *records,
            first: runs[*first].first.clone(),
            first_time: runs[*first].first_time,
            last: runs[*last].last.clone(),
            last_time: runs[*last].last_time,
        };
        let is_whole = parts.iter().all(|part| part.after.is_none());
        let parts = if is_whole { Vec::new() } else { parts.iter().map(part).collect() };
        let (root, last) = (first.map(|first| &runs[first]), last.map(|last| &runs[last]));
        Ok(Summary {
            records: self.records,
            segments: self.segments,
            first_time: root.map(|root| root.first_time),
            last_time: last.map(|last| last.last_time),
            first: root.map(|root| root.first.clone()),
            head: last.map(|last| last.last.clone()),
            tails,
            forks,
            parts,
            unused: self.after.iter().filter(|after| !used.contains(*after)).cloned().collect(),
        })
    }

    fn look_for_heads(&self, runs: &[Run]) -> Result<(), VerifyError> {
        let is_beginning = |run: &Run| matches!(run.attach, Attach::Beginning | Attach::After(_));
        let first = runs.iter().zip(&self.begun).find(|(run, _)| is_beginning(run));
        for head in &self.heads {
            let found = self.find(head);
            if self.after.contains(head) || found.is_some_and(|found| found.spot.is_some()) {
                continue;
            }
            let expected = head.sequence;
            if let Some((digest, (file, line))) = found.and_then(|found| found.other.as_ref()) {
                let (expected, found) = (head.digest.clone(), digest.clone());
                let finding = Finding::Rewritten { sequence: head.sequence, expected, found };
                return Err(wrong(file.as_deref(), *line, finding));
            }
            let ((file, line), reached) = match (first, runs.iter().map(|run| run.last.sequence).max()) {
                (Some((run, begun)), _) if run.first.sequence > expected => {
                    (begun.place.clone(), format!("begins after record {}", run.first.sequence - 1))
                }
                (_, Some(last)) => (self.end.clone(), format!("ends at record {last}")),
                (_, None) => (self.end.clone(), "is empty".to_owned()),
            };
            return Err(wrong(file.as_deref(), line, Finding::Missing { expected, reached }));
        }
        Ok(())
    }
}

/// How a line stands to the one before it in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Joint {
    /// It continues that.
    Follows,
    /// It continues another file's, and names that as what its own file ended with.
    Joins,
    /// There is none before it.
    Begins,
}

/// Checks that a line continues the one before in its file, or opens a segment that says of it that it is the file's last.
pub(super) fn follows_in_file(previous: &Receipt, link: &Link) -> Result<Joint, Finding> {
    match link.opening.as_ref().and_then(|opening| opening.file_head.as_ref()) {
        None => follows(previous, link).map(|()| Joint::Follows),
        Some(head) if head == previous => Ok(Joint::Joins),
        Some(head) => {
            let (expected, found) = (head.sequence, previous.sequence);
            Err(Finding::OtherEnd { sequence: link.receipt.sequence, expected, found })
        }
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
