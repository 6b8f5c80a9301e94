//! How the segments of a trail hang together, whichever files they stand in: what goes on, what is a tail, what is wrong.
//!
//! A *run* is a piece of one file: from the record that opens a leader's segment, or from the file's beginning, to the
//! next. Each continues a line of another run, or its own file's. Where something was written behind that line, the trail
//! forks, and one branch ends: a leader was killed, or cut off, after it had been heard of for the last time; perhaps it led
//! again, and continued its own file, and was not heard of once more. That is the one fork which is accepted, and only in
//! one file, within the time that a lease allows each term, and with a later term to explain it.
//!
//! Pure: the files are read in [`super::verify_files`].

use std::cmp::Ordering;
use std::fmt;

use jiff::Timestamp;

use super::line::{Opening, Term};
use super::{Finding, Receipt};

/// The longest lease that a segment is believed, as the operator allows it: a forged one must not excuse more.
const LEASE_SECONDS_MAX: i64 = 120;
/// How much longer than a lease a tail may be. A line bears the time at which it was handed over, and waits for the disk
/// after that, while the lease is renewed. Nobody waits a minute for a disk that is well.
const SLOW_DISK_SECONDS: i64 = 60;

/// A piece of one file.
#[derive(Debug, Clone)]
pub(super) struct Run {
    /// How it begins, if it opens a segment.
    pub opening: Option<Opening>,
    pub first: Receipt,
    pub first_time: Timestamp,
    pub last: Receipt,
    pub last_time: Timestamp,
    pub attach: Attach,
    /// Whether it continues the line before it in the same file.
    pub follows: bool,
    /// The run that ends with the line which its file ended with before, if it names one.
    pub names: Named,
}

/// What a run continues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attach {
    /// Nothing: it is the trail's beginning, or what was said to come before it.
    Beginning,
    /// A line of a run.
    At(Spot),
    /// A line that is in no file.
    Nowhere,
}

/// Where a line was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spot {
    pub run: usize,
    /// The time of the line behind it in the same run; none for the last.
    pub next_time: Option<Timestamp>,
}

/// What is known of the line that a run names as its file's last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Named {
    /// It names none, or one that was said to come before.
    Nothing,
    /// A line of a run.
    At(usize),
    /// A line that is in no file.
    Nowhere,
}

/// Records that nobody continued: true, and beside the line of the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tail {
    /// Whose they are.
    pub term: i64,
    /// How many.
    pub records: i64,
    /// The line that they continue, and behind which the trail forks.
    pub after: i64,
    /// Who led next.
    pub next_term: i64,
    /// From the first to the last of them.
    pub seconds: i64,
    /// How long a lease was.
    pub lease_seconds: i64,
    /// The last of them.
    pub head: Receipt,
    /// The record of the same file that names their last.
    pub named_by: Option<i64>,
}

/// As `audit verify` prints it: whole lines.
impl fmt::Display for Tail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { term, records, after, next_term, seconds, lease_seconds, head, named_by } = self;
        let after = if *after > 0 { format!("record {after}") } else { "the beginning".to_owned() };
        writeln!(
            f,
            "tail: {records} records of term {term} were written after {after}, the last is {head}; its leader was killed or cut off before the lease named them, so term {next_term} did not continue them; they took {seconds} s of a lease of {lease_seconds} s, and are as true as the others"
        )?;
        match named_by {
            Some(record) => {
                writeln!(f, "  record {record} of the same file names the last of them, so none was cut off since")
            }
            None => writeln!(
                f,
                "  no later record of the same file names the last of them yet: whether more were there, only heads of status.audit tell; give them with --head"
            ),
        }
    }
}

/// What was judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Judgement {
    /// In the order of the trail.
    pub tails: Vec<Tail>,
    /// The run that the trail begins with.
    pub first: Option<usize>,
    /// The run that it ends with.
    pub last: Option<usize>,
}

/// Judges all runs of a trail. The error names the run that is wrong.
pub(super) fn judge(runs: &[Run]) -> Result<Judgement, (usize, Finding)> {
    no_run_is_there_twice(runs)?;
    let tree = Tree::of(runs)?;
    let (mut tails, mut on_the_way, mut last) = (Vec::new(), Vec::new(), tree.root());
    while let Some((next, spot)) = tree.goes_on(last)? {
        for (child, _) in tree.children[last].iter().filter(|(child, _)| *child != next) {
            tree.dead(*child, last, next, &mut tails)?;
        }
        if let Some(from) = spot.next_time {
            tails.push(tree.left(last, next, from)?);
        }
        on_the_way.push(next);
        last = next;
    }
    tails.sort_by_key(|tail| (tail.after, tail.term));
    Ok(Judgement { tails, first: on_the_way.first().copied(), last: on_the_way.last().copied() })
}

fn no_run_is_there_twice(runs: &[Run]) -> Result<(), (usize, Finding)> {
    let mut firsts = std::collections::HashSet::new();
    match runs.iter().position(|run| !firsts.insert(&run.first)) {
        Some(run) => Err((run, Finding::Copied { sequence: runs[run].first.sequence })),
        None => Ok(()),
    }
}

/// The runs, each below the one that it continues.
struct Tree<'a> {
    runs: &'a [Run],
    /// Of each run: those that continue a line of it, and where. Of one more: those that begin the trail, of which the first
    /// leader of all may be one that was killed before the lease named anything.
    children: Vec<Vec<(usize, Spot)>>,
    /// Of each run: the record that names its last line as the last one of its file.
    named_by: Vec<Option<i64>>,
    /// Of each run: the latest term in which it, or what continues it, was written; -1 for none.
    latest: Vec<i64>,
    /// Each term with its beginning.
    terms: Vec<(i64, Timestamp)>,
}

impl<'a> Tree<'a> {
    fn of(runs: &'a [Run]) -> Result<Self, (usize, Finding)> {
        let mut tree = Self {
            runs,
            children: vec![Vec::new(); runs.len() + 1],
            named_by: vec![None; runs.len()],
            latest: Vec::new(),
            terms: Vec::new(),
        };
        let mut nowhere = None;
        for (number, run) in runs.iter().enumerate() {
            let missing = Finding::NoParent { sequence: run.first.sequence, missing: run.first.sequence - 1 };
            match run.attach {
                Attach::Beginning => {
                    let root = tree.root();
                    tree.children[root].push((number, Spot { run: root, next_time: None }));
                }
                Attach::At(spot) => tree.children[spot.run].push((number, spot)),
                Attach::Nowhere => drop(nowhere.get_or_insert((number, missing))),
            }
            if let Some(term) = run.opening.as_ref().and_then(|opening| opening.term) {
                // A leader whose disk failed while it opened its file opens it again.
                let again = run.follows && tree.terms.last().is_some_and(|(before, _)| *before == term.number);
                if !again {
                    tree.terms.push((term.number, run.first_time));
                }
            }
            let Some(head) = run.opening.as_ref().and_then(|opening| opening.file_head.as_ref()) else { continue };
            match run.names {
                Named::Nothing => {}
                Named::At(named) if runs[named].last == *head => tree.named_by[named] = Some(run.first.sequence),
                Named::At(named) => {
                    let (expected, found) = (head.sequence, runs[named].last.sequence);
                    return Err((number, Finding::OtherEnd { sequence: run.first.sequence, expected, found }));
                }
                Named::Nowhere => {
                    let missing = Finding::NoParent { sequence: run.first.sequence, missing: head.sequence };
                    nowhere.get_or_insert((number, missing));
                }
            }
        }
        if let Some(wrong) = nowhere {
            return Err(wrong);
        }
        tree.latest = (0..runs.len()).map(|run| tree.number(run)).collect();
        // What continues another has greater numbers.
        let mut order: Vec<usize> = (0..runs.len()).collect();
        order.sort_by_key(|run| std::cmp::Reverse(runs[*run].first.sequence));
        for run in order {
            if let Attach::At(spot) = runs[run].attach {
                tree.latest[spot.run] = tree.latest[spot.run].max(tree.latest[run]);
            }
        }
        Ok(tree)
    }

    /// What those continue that begin the trail.
    fn root(&self) -> usize {
        self.runs.len()
    }

    /// With which of those that continue a run the trail went on: with the one that leads to the latest term.
    fn goes_on(&self, run: usize) -> Result<Option<(usize, Spot)>, (usize, Finding)> {
        let mut latest: Option<(usize, Spot)> = None;
        for (child, spot) in &self.children[run] {
            match latest.map(|(latest, _)| self.latest[*child].cmp(&self.latest[latest])) {
                None | Some(Ordering::Greater) => latest = Some((*child, *spot)),
                Some(Ordering::Less) => {}
                // Of two no later one tells.
                Some(Ordering::Equal) => return Err((*child, self.fork(*child))),
            }
        }
        Ok(latest)
    }

    /// The term in which a run was written; a file that was cut in two goes on with that of its first piece.
    fn term(&self, mut run: usize) -> Option<Term> {
        loop {
            let Run { opening, attach, .. } = self.runs.get(run)?;
            match (opening, *attach) {
                (Some(opening), _) => return opening.term,
                (None, Attach::At(spot)) => run = spot.run,
                (None, Attach::Beginning | Attach::Nowhere) => return None,
            }
        }
    }

    fn number(&self, run: usize) -> i64 {
        self.term(run).map_or(-1, |term| term.number)
    }

    fn fork(&self, run: usize) -> Finding {
        let sequence = self.runs[run].first.sequence;
        match self.runs[run].attach {
            Attach::Beginning => Finding::SecondBeginning { sequence },
            Attach::At(_) | Attach::Nowhere => Finding::Fork { sequence, after: sequence - 1 },
        }
    }

    /// Judges a run beside the one with which the trail went on from `parent`, and those that continue it: by terms of the
    /// same leader that were not heard of either.
    fn dead(&self, run: usize, parent: usize, went_on: usize, tails: &mut Vec<Tail>) -> Result<(), (usize, Finding)> {
        let (mut run, mut parent) = (run, parent);
        // Whoever began it knew no later line than those who went on, or continued its own file's end.
        let is_early = self.runs[run].first.sequence <= self.runs[went_on].first.sequence;
        if !is_early && !self.runs[run].follows {
            return Err((run, self.fork(run)));
        }
        loop {
            let Run { first, first_time, last, .. } = &self.runs[run];
            let is_later = self.number(run) > self.number(parent);
            if !is_later && !(self.runs[run].follows && self.number(run) == self.number(parent)) {
                return Err((run, self.fork(run)));
            }
            tails.push(self.tail(run, run, last.sequence - first.sequence + 1, *first_time)?);
            match self.children[run][..] {
                [] => return Ok(()),
                [(child, _)] if self.runs[child].follows => (parent, run) = (run, child),
                [(child, _), ..] => return Err((child, self.fork(child))),
            }
        }
    }

    /// Whether a run continues the last line of another.
    fn is_at_the_end(&self, run: usize) -> bool {
        matches!(self.runs[run].attach, Attach::At(Spot { next_time: None, .. }))
    }

    /// The record that names the last line of a run as its file's last, or of what continues that line.
    fn named_by(&self, run: usize) -> Option<i64> {
        let mut run = run;
        loop {
            match (self.named_by[run], self.children[run].iter().find(|(child, _)| self.is_at_the_end(*child))) {
                (Some(record), _) => return Some(record),
                (None, Some((child, _))) => run = *child,
                (None, None) => return None,
            }
        }
    }

    /// Judges the end of a run from which `next` continued an earlier line; the first record of it was handed over at `from`.
    fn left(&self, run: usize, next: usize, from: Timestamp) -> Result<Tail, (usize, Finding)> {
        if self.number(next) <= self.number(run) {
            return Err((next, self.fork(next)));
        }
        self.tail(run, next, self.runs[run].last.sequence - self.runs[next].first.sequence + 1, from)
    }

    /// Judges the last records of a run. `fork` is the run that begins where the trail forks.
    fn tail(&self, run: usize, fork: usize, records: i64, from: Timestamp) -> Result<Tail, (usize, Finding)> {
        let Run { last, last_time, .. } = &self.runs[run];
        let unexplained = || (fork, self.fork(fork));
        let Term { number, lease_seconds } = self.term(run).ok_or_else(unexplained)?;
        // What explains that nobody continued it: somebody led next.
        if self.terms.iter().filter(|(other, _)| *other == number).count() > 1 {
            return Err(unexplained());
        }
        let later = self.terms.iter().filter(|(later, _)| *later > number);
        let (next_term, next_time) = later.min().ok_or_else(unexplained)?;
        let lease_seconds = lease_seconds.min(LEASE_SECONDS_MAX);
        let (seconds, overlap) =
            (last_time.duration_since(from).as_secs(), last_time.duration_since(*next_time).as_secs());
        let tail = Tail {
            term: number,
            records,
            after: self.runs[fork].first.sequence - 1,
            next_term: *next_term,
            seconds: seconds.max(0),
            lease_seconds,
            head: last.clone(),
            named_by: self.named_by(run),
        };
        // Two machines' clocks tell these times, and may differ by somewhat less than a lease.
        if seconds > lease_seconds + SLOW_DISK_SECONDS || overlap > lease_seconds {
            return Err((run, Finding::LongTail { tail: Box::new(tail), overlap_seconds: overlap.max(0) }));
        }
        Ok(tail)
    }
}
