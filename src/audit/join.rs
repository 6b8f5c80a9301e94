//! How the segments of a trail hang together, whichever files they stand in: what goes on, what is a tail, what is wrong.
//!
//! A *run* is a piece of one file: from the record that opens a leader's segment, or from the file's beginning, to the
//! next. Each continues a line of another run, or its own file's. Where something was written behind that line, the trail
//! forks, and one branch ends: a leader was killed, or cut off, after it had been heard of for the last time; perhaps it led
//! again, and continued its own file, and was not heard of once more. That is the one fork which is accepted, and only in
//! one file, within the time that a lease allows each term, and with a later term to explain it.
//!
//! A Lease that was deleted, or restored with etcd, names less than was written: whoever leads then goes on from an earlier
//! line, in a term whose number may be there already. No file tells that from a forgery, so people do: a fork that they
//! acknowledge cuts the trail in two there, and each part is judged by itself, as strictly as a whole one.
//!
//! Where older files are kept elsewhere, what goes on from them is a part of its own in the same way: one for each record in
//! them that something here goes on from. What is elsewhere cannot be asked, so those parts are held against each other: a
//! writer's files go the oldest first, so a term stands in one part, and a later part has the later terms.
//!
//! Pure: the files are read in [`super::verify_files`].

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
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
    /// The term that its first record says it goes on in, if that begins a file after a full one.
    pub continued: Option<Term>,
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
    /// Nothing: it is the trail's beginning.
    Beginning,
    /// What was said to come before it and to be elsewhere: which of those that were.
    After(usize),
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

/// A fork that somebody acknowledged: the lease was deleted, or restored with etcd, and the trail went on from an earlier line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fork {
    /// The record that begins the branch which was acknowledged.
    pub first: Receipt,
    /// The last one of that branch.
    pub head: Receipt,
    /// The last one of the other branch.
    pub other: Receipt,
}

/// As `audit verify` prints it: a whole line.
impl fmt::Display for Fork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, head, other } = self;
        let after =
            if first.sequence > 1 { format!("record {}", first.sequence - 1) } else { "the beginning".to_owned() };
        writeln!(
            f,
            "forked at {after}, acknowledged: record {first} begins a branch that ends with {head}, the other ends with {other}; both were verified"
        )
    }
}

/// What was judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Judgement {
    /// In the order of the trail.
    pub tails: Vec<Tail>,
    /// Those that were acknowledged, in the order of the trail.
    pub forks: Vec<Fork>,
    /// What begins the trail, and what goes on from what is elsewhere, in the order of their first records.
    pub parts: Vec<Part>,
    /// The run that the trail begins with.
    pub first: Option<usize>,
    /// The run that it ends with: of several parts that of the one with the latest term, of several branches that of the one
    /// that was written to last.
    pub last: Option<usize>,
}

/// A part of a trail, with its branches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    /// Which of those that are elsewhere it goes on from; none for the trail's beginning.
    pub after: Option<usize>,
    /// Its first run, and the one that it ends with.
    pub first: usize,
    pub last: usize,
    /// The records of all its runs.
    pub records: i64,
    /// The latest term in it; -1 for none.
    latest: i64,
}

/// Judges all runs of a trail. `acknowledged` are the first records of branches that people answer for. The error names the run
/// that is wrong; the one behind the last, if it is none of them.
pub(super) fn judge(runs: &[Run], acknowledged: &[Receipt]) -> Result<Judgement, (usize, Finding)> {
    no_run_is_there_twice(runs)?;
    let tree = Tree::of(runs, acknowledged)?;
    let (mut tails, mut ends) = (Vec::new(), Vec::new());
    for part in 0..tree.parts() {
        ends.push(walk(&tree, part, &mut tails)?);
    }
    tails.sort_by_key(|tail| (tail.after, tail.term));
    let end_of =
        |part: usize| ends[part].map_or_else(Receipt::origin, |(_, last): (usize, usize)| runs[last].last.clone());
    let fork = |(run, part): &(usize, usize)| Fork {
        first: runs[*run].first.clone(),
        head: end_of(*part),
        other: end_of(tree.above(*run)),
    };
    let mut forks: Vec<Fork> = tree.cuts.iter().map(fork).collect();
    forks.sort_by_key(|fork| fork.first.sequence);
    let first = ends.iter().flatten().map(|(first, _)| *first).min_by_key(|first| runs[*first].first.sequence);
    let parts = parts(&tree, &ends)?;
    // A time is whatever a forger writes; a later term is held against all that is numbered behind it.
    let newest = parts.iter().max_by_key(|part| (part.latest, runs[part.first].first.sequence)).map(|part| part.last);
    let branches = tree.cuts.iter().filter_map(|(_, part)| ends[*part]).map(|(_, last)| last);
    let last = newest.into_iter().chain(branches).max_by_key(|last| runs[*last].last_time);
    Ok(Judgement { tails, forks, parts, first, last })
}

/// The parts that no acknowledged fork made, held against each other.
fn parts(tree: &Tree<'_>, ends: &[Option<(usize, usize)>]) -> Result<Vec<Part>, (usize, Finding)> {
    let runs = tree.runs;
    let part_of = tree.part_of();
    let mut parts = Vec::new();
    // Of each part its runs.
    let mut members: HashMap<usize, Vec<usize>> = HashMap::new();
    for (run, part) in part_of.iter().enumerate() {
        members.entry(*part).or_default().push(run);
    }
    let afters = tree.afters.iter().map(|(after, part)| (Some(*after), *part));
    for (after, part) in std::iter::once((None, 0)).chain(afters) {
        let Some((first, last)) = ends[part] else { continue };
        let members = members.remove(&part).unwrap_or_default();
        let records = members.iter().map(|run| runs[*run].last.sequence - runs[*run].first.sequence + 1).sum();
        let latest = members.iter().map(|run| tree.number(*run)).max().unwrap_or(-1);
        parts.push((Part { after, first, last, records, latest }, members));
    }
    parts.sort_by_key(|(part, _)| runs[part.first].first.sequence);
    let mut terms = BTreeMap::new();
    for (part, members) in &parts {
        for run in members {
            let other = *terms.entry(tree.number(*run)).or_insert(part.first);
            if other != part.first {
                return Err(second_part(runs, part.first, other));
            }
        }
    }
    for (later, within) in &parts {
        for (earlier, members) in parts.iter().filter(|(other, _)| other.latest < later.latest) {
            let is_before = runs[earlier.first].first.sequence < runs[later.first].first.sequence;
            if !is_before && !members.iter().all(|run| tree.may_be_a_tail(*run, earlier.latest, within)) {
                return Err(second_part(runs, later.first, earlier.first));
            }
        }
    }
    Ok(parts.into_iter().map(|(part, _)| part).collect())
}

fn second_part(runs: &[Run], run: usize, other: usize) -> (usize, Finding) {
    (run, Finding::SecondPart { first: runs[run].first.clone(), other: runs[other].first.clone() })
}

/// Goes along a part of the trail, from its beginning to its end, and judges what lies beside. Returns its first and its last
/// run, if it has any.
fn walk(tree: &Tree<'_>, part: usize, tails: &mut Vec<Tail>) -> Result<Option<(usize, usize)>, (usize, Finding)> {
    let (mut ends, mut last) = (None, tree.root(part));
    while let Some((next, spot)) = tree.goes_on(last)? {
        for (child, _) in tree.children[last].iter().filter(|(child, _)| *child != next) {
            tree.dead(*child, last, next, tails)?;
        }
        if let Some(from) = spot.next_time {
            tails.push(tree.left(last, next, from)?);
        }
        ends = Some((ends.map_or(next, |(first, _)| first), next));
        last = next;
    }
    Ok(ends)
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
    /// leader of all may be one that was killed before the lease named anything. Of one more for each part: those that begin it.
    children: Vec<Vec<(usize, Spot)>>,
    /// The runs that begin a part of their own, since the fork there is acknowledged, and which part that is.
    cuts: Vec<(usize, usize)>,
    /// The parts that go on from what is elsewhere, each with the number of that.
    afters: Vec<(usize, usize)>,
    /// Of each run: the record that names its last line as the last one of its file.
    named_by: Vec<Option<i64>>,
    /// Of each run: the latest term in which it, or what continues it, was written; -1 for none.
    latest: Vec<i64>,
    /// Each term with its beginning, and a run of it.
    terms: Vec<(i64, Timestamp, usize)>,
}

impl<'a> Tree<'a> {
    fn of(runs: &'a [Run], acknowledged: &[Receipt]) -> Result<Self, (usize, Finding)> {
        let mut tree = Self {
            runs,
            children: vec![Vec::new(); runs.len() + 1],
            cuts: Vec::new(),
            afters: Vec::new(),
            named_by: vec![None; runs.len()],
            latest: Vec::new(),
            terms: Vec::new(),
        };
        let mut nowhere = None;
        for (number, run) in runs.iter().enumerate() {
            let missing = Finding::NoParent { sequence: run.first.sequence, missing: run.first.sequence - 1 };
            match run.attach {
                Attach::Beginning => {
                    let root = tree.root(0);
                    tree.children[root].push((number, Spot { run: root, next_time: None }));
                }
                Attach::After(elsewhere) => {
                    let part = tree.after(elsewhere).unwrap_or_else(|| {
                        let part = tree.begin_part();
                        tree.afters.push((elsewhere, part));
                        part
                    });
                    let root = tree.root(part);
                    tree.children[root].push((number, Spot { run: root, next_time: None }));
                }
                Attach::At(spot) => tree.children[spot.run].push((number, spot)),
                Attach::Nowhere => drop(nowhere.get_or_insert((number, missing))),
            }
            // A part may begin in the midst of a term, too.
            let begins = run.opening.as_ref().map_or(run.continued, |opening| opening.term);
            let is_begun = run.opening.is_some() || matches!(run.attach, Attach::After(_));
            if let Some(term) = begins.filter(|_| is_begun) {
                // A leader whose disk failed while it opened its file opens it again.
                let again = run.follows && tree.terms.last().is_some_and(|(before, ..)| *before == term.number);
                if !again || acknowledged.contains(&run.first) {
                    tree.terms.push((term.number, run.first_time, number));
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
        tree.cut(acknowledged)?;
        tree.latest = (0..runs.len()).map(|run| tree.number(run)).collect();
        // What continues another has greater numbers.
        let mut order: Vec<usize> = (0..runs.len()).collect();
        order.sort_by_key(|run| std::cmp::Reverse(runs[*run].first.sequence));
        for run in order {
            if let Attach::At(spot) = runs[run].attach
                && tree.cut_at(run).is_none()
            {
                tree.latest[spot.run] = tree.latest[spot.run].max(tree.latest[run]);
            }
        }
        Ok(tree)
    }

    /// What those continue that begin the trail, or one of the parts that it was cut into.
    fn root(&self, part: usize) -> usize {
        self.runs.len() + part
    }

    fn parts(&self) -> usize {
        self.children.len() - self.runs.len()
    }

    /// Adds a part that nothing begins yet.
    fn begin_part(&mut self) -> usize {
        self.children.push(Vec::new());
        self.parts() - 1
    }

    /// The part that goes on from what is elsewhere, if there is one.
    fn after(&self, elsewhere: usize) -> Option<usize> {
        self.afters.iter().find(|(other, _)| *other == elsewhere).map(|(_, part)| *part)
    }

    /// The part that a run begins, since the fork there is acknowledged.
    fn cut_at(&self, run: usize) -> Option<usize> {
        self.cuts.iter().find(|(cut, _)| *cut == run).map(|(_, part)| *part)
    }

    /// Cuts the trail at the forks that were acknowledged.
    fn cut(&mut self, acknowledged: &[Receipt]) -> Result<(), (usize, Finding)> {
        let root = self.root(0);
        let whole: Vec<usize> = self.children.iter().map(Vec::len).collect();
        for first in acknowledged {
            let none = || (root, Finding::NoFork { acknowledged: first.clone() });
            let run = self.runs.iter().position(|run| run.first == *first).ok_or_else(none)?;
            if self.cut_at(run).is_some() {
                continue;
            }
            let (parent, is_amid) = match self.runs[run].attach {
                Attach::At(spot) => (spot.run, spot.next_time.is_some()),
                Attach::Beginning | Attach::After(_) | Attach::Nowhere => (self.root(self.above(run)), false),
            };
            // What all of them continue stays whole.
            let is_last = parent >= root && self.children[parent].len() == 1;
            if !is_amid && whole[parent] < 2 || is_last {
                return Err(none());
            }
            self.children[parent].retain(|(child, _)| *child != run);
            let part = self.begin_part();
            let begun = self.root(part);
            self.children[begun].push((run, Spot { run: begun, next_time: None }));
            self.cuts.push((run, part));
        }
        Ok(())
    }

    /// The part in which each run stands.
    fn part_of(&self) -> Vec<usize> {
        // What continues another has greater numbers.
        let mut order: Vec<usize> = (0..self.runs.len()).collect();
        order.sort_by_key(|run| self.runs[*run].first.sequence);
        let mut parts = vec![0; self.runs.len()];
        for run in order {
            parts[run] = match (self.cut_at(run), self.runs[run].attach) {
                (Some(part), _) => part,
                (None, Attach::At(spot)) => parts[spot.run],
                (None, Attach::Beginning | Attach::After(_) | Attach::Nowhere) => self.above(run),
            };
        }
        parts
    }

    /// Whether a run may be what a killed leader left of a part whose latest term this is, beside the runs of another part.
    fn may_be_a_tail(&self, run: usize, latest: i64, beside: &[usize]) -> bool {
        let Run { first_time, last_time, .. } = &self.runs[run];
        let next = beside.iter().filter(|other| self.number(**other) > latest);
        let next_time = next.min_by_key(|other| self.number(**other)).map(|other| self.runs[*other].first_time);
        let (Some(term), Some(next_time)) = (self.term(run), next_time) else { return false };
        let lease_seconds = term.lease_seconds.min(LEASE_SECONDS_MAX);
        let (seconds, overlap) =
            (last_time.duration_since(*first_time).as_secs(), last_time.duration_since(next_time).as_secs());
        seconds <= lease_seconds + SLOW_DISK_SECONDS && overlap <= lease_seconds
    }

    /// The part in which a run stands.
    fn part(&self, mut run: usize) -> usize {
        loop {
            if let Some(part) = self.cut_at(run) {
                return part;
            }
            match self.runs[run].attach {
                Attach::At(spot) => run = spot.run,
                Attach::Beginning | Attach::After(_) | Attach::Nowhere => return self.above(run),
            }
        }
    }

    /// The part in which that stands which a run continues.
    fn above(&self, run: usize) -> usize {
        match self.runs[run].attach {
            Attach::At(spot) => self.part(spot.run),
            Attach::After(elsewhere) => self.after(elsewhere).unwrap_or(0),
            Attach::Beginning | Attach::Nowhere => 0,
        }
    }

    /// With which of those that continue a run the trail went on: with the one that leads to the latest term.
    fn goes_on(&self, run: usize) -> Result<Option<(usize, Spot)>, (usize, Finding)> {
        let mut latest: Option<(usize, Spot)> = None;
        for (child, spot) in &self.children[run] {
            match latest.map(|(latest, _)| self.latest[*child].cmp(&self.latest[latest])) {
                None | Some(Ordering::Greater) => latest = Some((*child, *spot)),
                Some(Ordering::Less) => {}
                // Of two no later one tells.
                Some(Ordering::Equal) => {
                    let fork = latest.map_or(*child, |(latest, _)| self.later(*child, latest));
                    return Err((fork, self.fork(fork)));
                }
            }
        }
        Ok(latest)
    }

    /// The term in which a run was written; a file that was cut in two goes on with that of its first piece, and one whose
    /// first piece is elsewhere with the one that it names.
    fn term(&self, mut run: usize) -> Option<Term> {
        loop {
            let Run { opening, continued, attach, .. } = self.runs.get(run)?;
            match (opening, *attach) {
                (Some(opening), _) => return opening.term,
                (None, Attach::At(spot)) => run = spot.run,
                (None, Attach::Beginning | Attach::After(_) | Attach::Nowhere) => return *continued,
            }
        }
    }

    fn number(&self, run: usize) -> i64 {
        self.term(run).map_or(-1, |term| term.number)
    }

    /// Which of two branches began later, and so is the one that went back.
    fn later(&self, run: usize, other: usize) -> usize {
        if self.runs[other].first_time > self.runs[run].first_time { other } else { run }
    }

    fn fork(&self, run: usize) -> Finding {
        let first = self.runs[run].first.clone();
        match self.runs[run].attach {
            Attach::Beginning => Finding::SecondBeginning { first },
            Attach::At(_) | Attach::After(_) | Attach::Nowhere => Finding::Fork { first },
        }
    }

    /// Judges a run beside the one with which the trail went on from `parent`, and those that continue it: by terms of the
    /// same leader that were not heard of either.
    fn dead(&self, run: usize, parent: usize, went_on: usize, tails: &mut Vec<Tail>) -> Result<(), (usize, Finding)> {
        let (mut run, mut parent) = (run, parent);
        let fork = self.later(run, went_on);
        let unexplained = || (fork, self.fork(fork));
        // Whoever began it knew no later line than those who went on, or continued its own file's end.
        let is_early = self.runs[run].first.sequence <= self.runs[went_on].first.sequence;
        if !is_early && !self.runs[run].follows {
            return Err(unexplained());
        }
        loop {
            let Run { first, first_time, last, .. } = &self.runs[run];
            let (number, before) = (self.number(run), self.number(parent));
            let goes_on = if self.runs[run].follows { number >= before } else { number > before };
            if !goes_on {
                return Err(unexplained());
            }
            tails.push(self.tail(run, fork, first.sequence - 1, last.sequence - first.sequence + 1, *first_time)?);
            match self.children[run][..] {
                [] => return Ok(()),
                [(child, _)] if self.runs[child].follows => (parent, run) = (run, child),
                [_, ..] => return Err(unexplained()),
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
        let after = self.runs[next].first.sequence - 1;
        self.tail(run, next, after, self.runs[run].last.sequence - after, from)
    }

    /// Judges the last records of a run, behind the record `after`. `fork` is the run to name, if they are not to be explained.
    fn tail(
        &self,
        run: usize,
        fork: usize,
        after: i64,
        records: i64,
        from: Timestamp,
    ) -> Result<Tail, (usize, Finding)> {
        let Run { last, last_time, .. } = &self.runs[run];
        let unexplained = || (fork, self.fork(fork));
        let Term { number, lease_seconds } = self.term(run).ok_or_else(unexplained)?;
        // What explains that nobody continued it: somebody led next.
        // What stands behind a fork that people explain, explains nothing on this side of it.
        let part = self.part(run);
        let terms = || self.terms.iter().filter(|(.., run)| self.part(*run) == part);
        if terms().filter(|(other, ..)| *other == number).count() > 1 {
            return Err(unexplained());
        }
        let later = terms().filter(|(later, ..)| *later > number);
        let (next_term, next_time, _) = later.min().ok_or_else(unexplained)?;
        let lease_seconds = lease_seconds.min(LEASE_SECONDS_MAX);
        let (seconds, overlap) =
            (last_time.duration_since(from).as_secs(), last_time.duration_since(*next_time).as_secs());
        let tail = Tail {
            term: number,
            records,
            after,
            next_term: *next_term,
            seconds: seconds.max(0),
            lease_seconds,
            head: last.clone(),
            named_by: self.named_by(run),
        };
        // Two machines' clocks tell these times, and may differ by somewhat less than a lease.
        if seconds > lease_seconds + SLOW_DISK_SECONDS || overlap > lease_seconds {
            let fork = self.runs[fork].first.clone();
            return Err((run, Finding::LongTail { tail: Box::new(tail), overlap_seconds: overlap.max(0), fork }));
        }
        Ok(tail)
    }
}
