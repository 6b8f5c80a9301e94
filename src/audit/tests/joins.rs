//! One trail in several files: leaders that follow one another, are killed, freeze, and whoever meddles with what they left.

mod shipping;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::line::{Draft, Opening, Term, segment_opened};
use super::super::open::{self, Ready};
use super::super::tail::closed_beside;
use super::super::writer::Chain;
use super::super::{
    Begin, Expectation, Finding, Leader, OpenError, Opened, Place, Receipt, Sinks, Summary, VerifyError, verify,
    verify_files,
};
use super::{heads, now, record};

const LEASE_SECONDS: i64 = 9;

/// Replicas with a file each, the lease that they share, and all that was ever written.
struct World {
    dir: tempfile::TempDir,
    /// The head that the lease names, and its file.
    lease: Option<(Receipt, String)>,
    term: i64,
    now: Timestamp,
    written: Vec<Receipt>,
    /// A leader that stands still, and what it has yet to write.
    frozen: Option<(Chain, Vec<Draft>)>,
    /// At which size files are closed.
    file_bytes_max: Option<u64>,
}

/// How a term goes.
#[derive(Clone, Debug)]
struct Fate {
    replica: usize,
    /// Records that the lease still named; none, if its holder was not heard of since it opened the trail.
    named: Option<usize>,
    /// Those that it did not name: then the leader was killed or cut off.
    unnamed: usize,
    /// Of those, the ones that it wrote when it woke, after the next had begun.
    late: usize,
}

fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    World { dir, lease: None, term: 0, now: now(), written: Vec::new(), frozen: None, file_bytes_max: None }
}

fn steps_down(replica: usize, records: usize) -> Fate {
    Fate { replica, named: Some(records), unnamed: 0, late: 0 }
}

fn is_killed(replica: usize, named: usize, unnamed: usize) -> Fate {
    Fate { replica, named: Some(named), unnamed, late: 0 }
}

impl World {
    fn file(&self, replica: usize) -> PathBuf {
        self.dir.path().join(format!("replica-{replica}.jsonl"))
    }

    fn files(&self) -> Vec<PathBuf> {
        (0..3).flat_map(|replica| self.files_of(replica)).collect()
    }

    /// A replica's files, those that were full first.
    fn files_of(&self, replica: usize) -> Vec<PathBuf> {
        let open = self.file(replica);
        let mut files: Vec<PathBuf> = closed_beside(&open).unwrap().into_iter().map(|closed| closed.path).collect();
        files.extend(open.exists().then_some(open));
        files
    }

    fn begin(&mut self) -> Begin {
        self.term += 1;
        let (known_head, head_file) = self.lease.clone().unzip();
        let leader = Leader { term: self.term, lease_seconds: LEASE_SECONDS, head_file };
        Begin { now: self.now, known_head, leader: Some(leader) }
    }

    fn pass(&mut self, seconds: i64) -> Timestamp {
        self.now += SignedDuration::from_secs(seconds);
        self.now
    }

    fn drafts(&mut self, number: usize) -> Vec<Draft> {
        (0..number).map(|it| Draft::new(record(it).as_object().unwrap(), self.pass(1)).unwrap()).collect()
    }

    fn write(&mut self, chain: &mut Chain, drafts: &[Draft]) {
        let (_, receipts) = chain.commit(drafts.iter()).unwrap();
        self.written.extend(receipts);
    }

    /// Opens a replica's file as the next leader.
    fn open(&mut self, replica: usize) -> Result<(Chain, Opened), OpenError> {
        let sinks = Sinks { file: Some(self.file(replica)), stdout: false };
        let begin = self.begin();
        let bytes_max = self.file_bytes_max;
        open::open(sinks, begin).map(|Ready { chain, opened, .. }| (chain.closing_files_at(bytes_max), opened))
    }

    fn term(&mut self, Fate { replica, named, unnamed, late }: Fate) -> Opened {
        self.pass(LEASE_SECONDS);
        // It ended at last, or its lock would be in the way.
        let frozen = self.frozen.take();
        let (mut chain, opened) = match frozen {
            Some((mut before, drafts)) if before.head() != &Receipt::origin() && self.is_of(&before, replica) => {
                self.write(&mut before, &drafts);
                drop(before);
                self.open(replica).unwrap()
            }
            Some((mut before, drafts)) => {
                let opened = self.open(replica).unwrap();
                self.write(&mut before, &drafts);
                opened
            }
            None => self.open(replica).unwrap(),
        };
        self.written.push(opened.head.clone());
        if let Some(named) = named {
            let drafts = self.drafts(named);
            self.write(&mut chain, &drafts);
            let Place { head, file } = chain.place();
            self.lease = Some((head, file));
        }
        let drafts = self.drafts(unnamed);
        self.write(&mut chain, &drafts);
        let drafts = self.drafts(late);
        if !drafts.is_empty() {
            self.frozen = Some((chain, drafts));
        }
        opened
    }

    /// Whether a chain is written to that replica's file.
    fn is_of(&self, chain: &Chain, replica: usize) -> bool {
        let is_there = |path: &PathBuf| fs::read_to_string(path).is_ok_and(|text| text.contains(&chain.head().digest));
        self.files_of(replica).iter().any(is_there)
    }

    #[track_caller]
    fn verified(&self) -> Summary {
        verify_files(&self.files(), heads(&self.written)).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Changes one replica's lines.
    fn edit(&self, replica: usize, change: impl FnOnce(&mut Vec<String>)) {
        let text = fs::read_to_string(self.file(replica)).unwrap();
        let mut lines: Vec<String> = text.split_inclusive('\n').map(str::to_owned).collect();
        change(&mut lines);
        fs::write(self.file(replica), lines.concat()).unwrap();
    }

    #[track_caller]
    fn finds(&self, expect: Expectation, words: &str) -> VerifyError {
        let error = verify_files(&self.files(), expect).expect_err("this trail should not verify");
        assert!(error.to_string().contains(words), "{error}");
        error
    }
}

/// Two replicas of which the first is killed with two records that the lease did not name, and leads again at last.
fn killed_and_back() -> World {
    let mut world = world();
    world.term(is_killed(0, 2, 2));
    world.term(steps_down(1, 3));
    world.term += 1; // of somebody who led and never opened the trail
    world.term(steps_down(0, 1));
    world
}

#[test]
fn what_a_killed_leader_left_is_a_tail_that_its_next_term_names() {
    let mut world = world();
    world.term(is_killed(0, 2, 2));
    let second = world.term(steps_down(1, 3));
    assert_eq!((second.head.sequence, second.previous_head.map(|head| head.sequence)), (4, Some(3)));
    let summary = world.verified();
    assert_eq!((summary.records, summary.segments), (9, 2));
    assert_eq!(summary.head.as_ref().map(|head| head.sequence), Some(7));
    let digest = &summary.tails[0].head.digest;
    let said = summary.to_string().replace(digest, "…");
    assert!(
        said.contains("tail: 2 records of term 1 were written after record 3, the last is 5:…; its leader was killed or cut off before the lease named them, so term 2 did not continue them; they took 1 s of a lease of 9 s"),
        "{said}"
    );
    assert!(said.contains("no later record of the same file names the last of them yet"), "{said}");

    let third = world.term(steps_down(0, 1));
    assert_eq!((third.head.sequence, third.file_head.map(|head| head.sequence)), (8, Some(5)));
    let summary = world.verified();
    assert_eq!(summary.tails[0].named_by, Some(8));
    assert!(summary.to_string().contains("record 8 of the same file names the last of them"), "{summary}");
}

#[test]
fn a_leader_that_follows_itself_leaves_no_tail() {
    let mut world = world();
    world.term(is_killed(0, 2, 2));
    let opened = world.term(steps_down(0, 1));
    assert_eq!((opened.head.sequence, opened.file_head), (6, None));
    assert_eq!(world.verified().tails, []);
}

#[test]
fn a_leader_that_opened_its_file_twice_in_one_term_forks_nothing() {
    let mut world = world();
    world.term(steps_down(1, 1));
    // Its disk failed in the midst of the first opening, and nobody was told of that record.
    world.term(Fate { replica: 0, named: None, unnamed: 0, late: 0 });
    world.term -= 1;
    let again = world.term(Fate { replica: 0, named: None, unnamed: 1, late: 0 });
    assert_eq!((again.head.sequence, again.file_head), (4, None));
    assert_eq!(world.verified().tails, []);
    world.term(steps_down(1, 1));
    assert_eq!(world.verified().tails.len(), 2);
}

#[test]
fn a_file_that_the_lease_calls_by_another_name_is_continued_all_the_same() {
    let mut world = world();
    world.term(steps_down(0, 2));
    world.lease = world.lease.take().map(|(head, _)| (head, "somebody's".to_owned()));
    let opened = world.term(is_killed(0, 1, 1));
    assert_eq!((opened.head.sequence, opened.file_head), (4, None));
    world.lease = world.lease.take().map(|(head, _)| (head, "somebody's".to_owned()));
    let opened = world.term(steps_down(0, 1));
    assert_eq!((opened.head.sequence, opened.file_head.map(|head| head.sequence)), (6, Some(6)));
    assert_eq!(world.verified().tails.len(), 1);
}

#[test]
fn a_number_that_a_file_has_twice_is_compared_where_the_trail_went_on() {
    let mut world = world();
    world.term(is_killed(0, 0, 1));
    world.term(steps_down(1, 0));
    // It names its own record 2, and begins 3.
    let opened = world.term(steps_down(0, 0));
    assert_eq!((opened.head.sequence, opened.file_head.map(|head| head.sequence)), (3, Some(2)));
    world.term(steps_down(1, 0));
    world.term(Fate { replica: 1, named: None, unnamed: 0, late: 0 });
    world.term(Fate { replica: 0, named: Some(0), unnamed: 0, late: 0 });
    world.term(Fate { replica: 0, named: Some(0), unnamed: 0, late: 0 });
    world.verified();
}

#[test]
fn a_leader_that_was_killed_before_it_was_heard_of_is_a_tail_of_its_own() {
    let mut world = world();
    world.term(is_killed(0, 2, 2));
    world.term(Fate { replica: 1, named: None, unnamed: 1, late: 0 });
    // The lease still names the first one's record, in the first one's file: that goes on where it ended.
    let opened = world.term(steps_down(0, 1));
    assert_eq!(opened.head.sequence, 6);
    let tails = world.verified().tails;
    assert_eq!(tails.iter().map(|tail| (tail.term, tail.records, tail.after)).collect::<Vec<_>>(), [(2, 2, 3)]);
    // The second one begins once more, and names what it had written.
    let opened = world.term(steps_down(1, 0));
    assert_eq!(opened.file_head.map(|head| head.sequence), Some(5));
    assert!(world.verified().tails[0].named_by.is_some());
}

#[test]
fn the_first_leader_of_all_may_be_killed_before_the_lease_names_anything() {
    let mut world = world();
    world.term(Fate { replica: 0, named: None, unnamed: 1, late: 0 });
    world.term(steps_down(1, 1));
    let summary = world.verified();
    assert_eq!(summary.first, Some(world.written[2].clone()));
    assert!(summary.to_string().contains("tail: 2 records of term 1 were written after the beginning"), "{summary}");
    assert_eq!(world.term(steps_down(0, 0)).file_head, Some(world.written[1].clone()));
    world.verified();
}

#[test]
fn each_kind_of_meddling_has_its_own_message() {
    let none = Expectation::default;
    let edited = |replica: usize, change: fn(&mut Vec<String>)| {
        let world = killed_and_back();
        world.edit(replica, change);
        world
    };
    // The first one's file: 1 2 3 4 5, then 8 9, of which 8 continues the second one's 7.
    edited(0, |l| l[4] = l[4].replace("ec2-user", "root")).finds(none(), "edited after it was written");
    edited(0, |l| drop(l.remove(4))).finds(none(), "this file ended with record 5 before, but record 4 stands there");
    edited(0, |l| drop(l.remove(5))).finds(none(), "expected record 6, found 9");
    edited(0, |l| drop(l.remove(0))).finds(none(), "goes on from record 1, which is in none of the files");
    edited(0, |l| l.truncate(5)).finds(heads(&killed_and_back().written[8..]), "record 8");
    edited(1, |l| drop(l.pop())).finds(none(), "record 8 goes on from record 7, which is in none of the files");
    edited(1, |l| drop(l.remove(0))).finds(none(), "record 5 goes on from record 4");
    let world = killed_and_back();
    fs::remove_file(world.file(1)).unwrap();
    let error = world.finds(none(), "goes on from record 7, which is in none of the files");
    assert!(error.to_string().contains("give the files of all replicas"), "{error}");
    assert!(error.file.is_some_and(|file| file == world.file(0)) && error.line == 6, "{}", error.line);
    let world = killed_and_back();
    fs::remove_file(world.file(0)).unwrap();
    world.finds(none(), "begins with record 4, expected 1; what came before was cut off, or stands in another file");
    let world = killed_and_back();
    fs::copy(world.file(1), world.file(2)).unwrap();
    world.finds(none(), "record 4 stands in another file, too");
    let world = killed_and_back();
    fs::write(world.file(2), super::text(1, 2).0).unwrap();
    world.finds(none(), "begins a trail, and another file begins one, too");
}

#[test]
fn the_end_of_a_tail_that_nothing_names_yet_is_missed_by_heads_alone() {
    let mut world = world();
    world.term(is_killed(0, 2, 2));
    world.term(steps_down(1, 3));
    world.edit(0, |lines| drop(lines.pop()));
    let tails = verify_files(&world.files(), Expectation::default()).unwrap().tails;
    assert_eq!(tails[0].records, 1, "it looks like a shorter one");
    let finding = world.finds(heads(&world.written), "or the receipt is of a tail that was cut off").finding;
    assert!(matches!(finding, Finding::Rewritten { sequence: 5, .. }), "{finding}");
}

/// Adds a segment of a term after a record that is there, in a file of its own, a record every `gap` seconds.
fn forge(world: &World, term: Option<Term>, after: &Receipt, from: Timestamp, gap: i64) {
    let (mut text, mut head) = (String::new(), after.clone());
    let opening = segment_opened(after, None, &Opening { term, ..Opening::default() });
    for (number, record) in [opening, record(0).as_object().unwrap().clone()].into_iter().enumerate() {
        let time = from + SignedDuration::from_secs(gap * i64::try_from(number).unwrap());
        head = Draft::new(&record, time).unwrap().link(&head, &mut text);
    }
    fs::write(world.file(2), text).unwrap();
}

#[test]
fn a_fork_is_taken_for_a_killed_leaders_only_where_it_can_be_one() {
    let lease = |number, lease_seconds| Some(Term { number, lease_seconds });
    // (term, the record that it continues by its place in `written`, seconds after the beginning, gap, what is found)
    let rows = [
        // Record 3 is followed by the tail of term 1 and by term 2. Term 4 is the last.
        (None, 2, 0, 1, "without a later term that explains it"),
        (lease(1, 9), 2, 12, 1, "without a later term that explains it"),
        (lease(2, 9), 2, 12, 1, "without a later term that explains it"),
        (lease(5, 9), 2, 12, 1, "without a later term that explains it"),
        // Behind what the trail went on from.
        (lease(3, 9), 3, 12, 1, "without a later term that explains it"),
        // At last one that could be; and this is what bounds it.
        (lease(3, 9), 2, 12, 1, ""),
        (lease(3, 9), 2, 12, 80, "two led at once, or records were added"),
        (lease(3, 9), 2, 500, 1, "two led at once, or records were added"),
        // Whatever it says itself of its lease.
        (lease(3, 1_000_000), 2, 12, 2000, "two led at once, or records were added"),
    ];
    for (term, place, seconds, gap, words) in rows {
        let world = killed_and_back();
        let from = now() + SignedDuration::from_secs(LEASE_SECONDS + seconds);
        forge(&world, term, &world.written[place], from, gap);
        if words.is_empty() {
            // Nobody signs: a short one is told of, and is for people to judge.
            assert_eq!(verify_files(&world.files(), Expectation::default()).unwrap().tails.len(), 2);
        } else {
            world.finds(Expectation::default(), words);
        }
    }
    // One that leads to a later term makes a dead end of the true one, which led for too long for that.
    let world = killed_and_back();
    let forged = lease(3, 9);
    forge(&world, forged, &world.written[2], now() + SignedDuration::from_secs(12), 1);
    let (mut text, after) = (String::new(), fs::read_to_string(world.file(2)).unwrap());
    let last: Value = serde_json::from_str(after.lines().last().unwrap()).unwrap();
    let last: Receipt =
        serde_json::from_value(json!({"sequence": last["sequence"], "digest": last["digest"]})).unwrap();
    let opening = segment_opened(&last, None, &Opening { term: lease(6, 9), ..Opening::default() });
    Draft::new(&opening, world.now).unwrap().link(&last, &mut text);
    fs::write(world.file(2), after + &text).unwrap();
    world.finds(Expectation::default(), "two led at once, or records were added");
}

#[test]
fn whoever_is_alone_leaves_no_tail() {
    let (text, receipts) = super::text(1, 3);
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("1"), dir.path().join("2"));
    fs::write(&first, text).unwrap();
    let mut other = String::new();
    let opening = segment_opened(&receipts[1], None, &Opening::default());
    Draft::new(&opening, now()).unwrap().link(&receipts[1], &mut other);
    fs::write(&second, other).unwrap();
    let error = verify_files(&[first, second], Expectation::default()).unwrap_err();
    assert!(matches!(error.finding, Finding::Fork { first: Receipt { sequence: 3, .. } }), "{error}");
}

#[test]
fn older_files_may_be_elsewhere_if_their_last_records_are_known() {
    let world = killed_and_back();
    // The first one's older lines are in an archive, and so is all of the second one's file.
    world.edit(0, |lines| drop(lines.drain(..5)));
    fs::remove_file(world.file(1)).unwrap();
    let (tail, before) = (world.written[4].clone(), world.written[8].clone());
    assert_eq!((tail.sequence, before.sequence), (5, 7));
    let after = |receipts: &[&Receipt]| Expectation {
        after: receipts.iter().map(|it| (*it).clone()).collect(),
        ..Expectation::default()
    };
    assert_eq!(verify_files(&world.files(), after(&[&before, &tail])).unwrap().records, 2);
    world.finds(after(&[&before]), "goes on from record 5, which is in none of the files");
    world.finds(after(&[&tail]), "begins with record 8, expected 6");
}

#[test]
fn what_stands_between_files_that_are_elsewhere_is_a_part_of_its_own() {
    let mut world = world();
    world.term(steps_down(0, 2));
    world.term(steps_down(1, 3));
    world.pass(3600);
    world.term(steps_down(0, 3));
    world.term(steps_down(0, 3));
    world.term(steps_down(1, 1));
    // The first one's records 1 to 3 and 8 to 11 were shipped. The second one's 4 to 7 stand between them.
    world.edit(0, |lines| drop(lines.drain(..7)));
    let (first, second) = (world.written[2].clone(), world.written[10].clone());
    assert_eq!((first.sequence, second.sequence), (3, 11));
    let after = |receipts: &[&Receipt]| Expectation {
        after: receipts.iter().map(|it| (*it).clone()).collect(),
        heads: world.written[3..7].iter().chain(&world.written[11..]).cloned().collect(),
        ..Expectation::default()
    };
    let summary = verify_files(&world.files(), after(&[&first, &second])).unwrap();
    assert_eq!((summary.records, summary.tails.len()), (10, 0));
    assert_eq!((summary.first.as_ref(), summary.head.as_ref()), (Some(&world.written[3]), world.written.last()));
    world.finds(after(&[&second]), "goes on from record 3, which is in none of the files");
    world.finds(after(&[&first]), "goes on from record 11, which is in none of the files");
    // Nothing else is excused by it: no second one that goes on from the same record, and no gap within a part.
    forge(&world, Some(Term { number: 9, lease_seconds: 9 }), &second, now() + SignedDuration::from_secs(20), 1);
    let error = world.finds(after(&[&first, &second]), "");
    assert!(matches!(error.finding, Finding::Fork { .. } | Finding::LongTail { .. }), "{error}");
    fs::remove_file(world.file(2)).unwrap();
    world.edit(1, |lines| drop(lines.remove(2)));
    world.finds(after(&[&first, &second]), "expected record 6, found 7");
}

#[test]
fn standard_output_of_several_lives_verifies_in_one_file_and_in_several() {
    let lives = |ends: &[(usize, usize)]| {
        let (mut texts, mut lease, mut at) = (Vec::new(), Receipt::origin(), now());
        for (term, (named, unnamed)) in ends.iter().enumerate() {
            let term = Some(Term { number: i64::try_from(term).unwrap() + 1, lease_seconds: LEASE_SECONDS });
            let opening = segment_opened(&lease, None, &Opening { term, is_output: true, ..Opening::default() });
            let records = (0..named + unnamed).map(|number| record(number).as_object().unwrap().clone());
            let (mut text, mut head) = (String::new(), lease.clone());
            for (number, record) in std::iter::once(opening).chain(records).enumerate() {
                at += SignedDuration::from_secs(1);
                head = Draft::new(&record, at).unwrap().link(&head, &mut text);
                if number == *named {
                    lease = head.clone();
                }
            }
            at += SignedDuration::from_secs(LEASE_SECONDS);
            texts.push(text);
        }
        texts
    };
    let texts = lives(&[(2, 2), (3, 0), (0, 1), (1, 0)]);
    let dir = tempfile::tempdir().unwrap();
    let one = dir.path().join("all");
    fs::write(&one, texts.concat()).unwrap();
    let several: Vec<PathBuf> = (0..texts.len()).map(|number| dir.path().join(number.to_string())).collect();
    for (path, text) in several.iter().zip(&texts) {
        fs::write(path, text).unwrap();
    }
    for paths in [vec![one], several.clone(), several.into_iter().rev().collect()] {
        let summary = verify_files(&paths, Expectation::default()).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((summary.records, summary.tails.len()), (13, 2), "{summary}");
    }
}

#[test]
fn a_file_that_lost_its_end_is_refused_only_by_whoever_is_told_that_it_is_the_one() {
    let mut world = world();
    world.term(steps_down(0, 3));
    world.term(steps_down(1, 3));
    // The second one's file lacks its end, and the lease names that file.
    world.edit(1, |lines| drop(lines.pop()));
    let Err(error) = world.open(1) else { panic!("it lacks its end") };
    assert!(matches!(error, OpenError::Behind { found: 7, known: 8, .. }), "{error}");
    // Whoever has another file is not behind, however short it is.
    let (chain, opened) = world.open(0).unwrap();
    assert_eq!((opened.head.sequence, opened.file_head.map(|head| head.sequence)), (9, Some(4)));
    drop(chain);
    // Nobody said whose it is: then it is ours.
    world.lease = world.lease.take().map(|(head, _)| (Receipt { sequence: 20, ..head }, String::new()));
    let mut begin = world.begin();
    begin.leader.as_mut().unwrap().head_file = None;
    let sinks = || Sinks { file: Some(world.file(0)), stdout: false };
    assert!(matches!(open::open(sinks(), begin.clone()), Err(OpenError::Behind { found: 9, known: 20, .. })));
    // Whose a file is cannot be told by a first line that is none.
    world.edit(0, |lines| lines[0] = lines[0].replace("SegmentOpened", "SegmentopeneD"));
    begin.leader.as_mut().unwrap().head_file = Some("f".repeat(64));
    let before = fs::read(world.file(0)).unwrap();
    assert!(matches!(open::open(sinks(), begin), Err(OpenError::Broken { offset: 0, .. })));
    assert_eq!(fs::read(world.file(0)).unwrap(), before);
}

/// The record that a finding names to be acknowledged.
fn named(finding: Finding) -> Receipt {
    match finding {
        Finding::SecondBeginning { first } | Finding::Fork { first } => first,
        Finding::LongTail { fork, .. } => fork,
        other => panic!("no fork: {other}"),
    }
}

fn acknowledged(forks: &[Receipt]) -> Expectation {
    Expectation { forks: forks.to_vec(), ..Expectation::default() }
}

/// The lease goes back to the end of the first term. Before, the second replica and the first one led; now the second one.
fn restored() -> World {
    let mut world = world();
    world.term(steps_down(0, 2));
    let copy = (world.lease.clone(), world.term);
    world.term(steps_down(1, 3));
    world.term(steps_down(0, 2));
    (world.lease, world.term) = copy;
    world.pass(3600);
    world.term(steps_down(1, 1));
    world
}

#[test]
fn a_fork_that_a_restored_lease_made_is_accepted_once_it_is_acknowledged_and_no_other_is() {
    let mut world = restored();
    let error = world.finds(Expectation::default(), "record 4 continues record 3, and so does another");
    assert_eq!((error.file.as_ref(), error.line), (Some(&world.file(1)), 5));
    let said = error.to_string();
    let fork = named(error.finding);
    assert!(said.ends_with(&format!("--fork {fork}")), "{said}");
    assert_eq!(fork, world.written[10]);
    let summary = verify_files(&world.files(), acknowledged(&[fork.clone(), fork.clone()])).unwrap();
    let (head, other) = (&world.written[11], &world.written[9]);
    let said = format!(
        "forked at record 3, acknowledged: record {fork} begins a branch that ends with {head}, the other ends with {other}; both were verified\n"
    );
    assert!(summary.to_string().contains(&said), "{summary}");
    assert_eq!((summary.records, summary.tails.len(), summary.head.as_ref()), (12, 0, Some(head)));

    // The next leaders go on, and so does a tail; terms that were there before the restore explain nothing and forbid nothing.
    world.term(is_killed(0, 1, 2));
    world.term(steps_down(1, 1));
    let summary = verify_files(&world.files(), acknowledged(std::slice::from_ref(&fork))).unwrap();
    assert_eq!((summary.tails.len(), summary.forks.len()), (1, 1), "{summary}");

    // It excuses no other branch, neither at the same place nor behind it, whatever its term.
    for (place, number) in [(2, 3), (2, 9), (4, 9), (10, 9)] {
        let term = Some(Term { number, lease_seconds: LEASE_SECONDS });
        forge(&world, term, &world.written[place], now() + SignedDuration::from_secs(20), 1);
        let error = world.finds(acknowledged(std::slice::from_ref(&fork)), "");
        assert!(matches!(error.finding, Finding::Fork { .. } | Finding::LongTail { .. }), "{place}: {error}");
    }
}

#[test]
fn a_lease_that_was_deleted_and_one_that_went_back_within_a_term_are_acknowledged_alike() {
    // A replica with a new volume led next, and began at 1.
    let mut world = killed_and_back();
    (world.lease, world.term) = (None, 0);
    world.pass(3600);
    world.term(steps_down(2, 1));
    let error = world.finds(Expectation::default(), "begins a trail, and another file begins one, too");
    let fork = named(error.finding);
    assert_eq!(fork.sequence, 1);
    let summary = verify_files(&world.files(), acknowledged(std::slice::from_ref(&fork))).unwrap();
    assert!(summary.to_string().contains("forked at the beginning, acknowledged"), "{summary}");
    assert_eq!(summary.tails.len(), 1);

    // The lease named a record in the midst of a long term.
    let mut world = world_of_a_long_term();
    let fork = named(world.finds(Expectation::default(), "two led at once").finding);
    assert_eq!(fork, world.written[103]);
    world.term(steps_down(0, 1));
    assert_eq!(verify_files(&world.files(), acknowledged(&[fork])).unwrap().tails, []);
}

fn world_of_a_long_term() -> World {
    let mut world = world();
    world.term(is_killed(0, 2, 100));
    world.term(steps_down(1, 1));
    world
}

#[test]
fn an_acknowledgement_that_names_no_fork_is_an_error() {
    let world = restored();
    let fork = world.written[10].clone();
    let nobody = Receipt { sequence: 4, digest: "f".repeat(64) };
    for wrong in [&world.written[0], &world.written[1], &world.written[7], &nobody] {
        let words = format!("--fork names record {wrong}, and no branch beside another begins with it");
        world.finds(acknowledged(&[fork.clone(), wrong.clone()]), &words);
    }
    let alone = killed_and_back();
    alone.finds(acknowledged(&[alone.written[8].clone()]), "no branch beside another begins with it");
    let (text, receipts) = super::text(1, 1);
    assert!(verify(text.as_bytes(), acknowledged(&receipts[..1])).is_err());
    assert!(verify(&b""[..], acknowledged(&receipts[..1])).is_err());
}

/// What a line refers to: the record that it continues, and the one that it names as its file's last.
fn references(line: &str) -> Vec<(i64, String)> {
    let line: Value = serde_json::from_str(line).unwrap_or_default();
    let receipt = |sequence: &Value, digest: &Value, less| {
        Some((sequence.as_i64()? - less, digest.as_str()?.to_owned())).filter(|(sequence, _)| *sequence > 0)
    };
    let named = &line["record"]["fileHead"];
    let before = receipt(&line["sequence"], &line["previousDigest"], 1);
    before.into_iter().chain(receipt(&named["sequence"], &named["digest"], 0)).collect()
}

/// Whoever meddles may do that, too.
fn make_writable(files: &[PathBuf]) {
    for path in files {
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    }
}

fn all_lines(files: &[PathBuf]) -> Vec<(PathBuf, Vec<String>)> {
    let lines = |path: &Path| fs::read_to_string(path).unwrap().split_inclusive('\n').map(str::to_owned).collect();
    files.iter().map(|path| (path.clone(), lines(path))).collect()
}

fn fate() -> impl Strategy<Value = Fate> {
    (0..3_usize, prop::option::weighted(0.8, 0..3_usize), 0..3_usize, prop_oneof![3 => Just(0), 1 => 1..3_usize])
        .prop_map(|(replica, named, unnamed, late)| Fate { replica, named, unnamed, late })
}

proptest! {
    // Each opens real files, and syncs them.
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn whoever_leads_is_killed_or_freezes_the_files_verify_and_no_single_change_goes_unseen(
        fates in prop::collection::vec(fate(), 1..7),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        file_bytes_max in prop_oneof![1 => Just(None), 2 => (1..3000_u64).prop_map(Some)],
    ) {
        let mut world = World { file_bytes_max, ..world() };
        for fate in fates {
            world.term(fate);
        }
        let frozen = world.frozen.take();
        if let Some((mut chain, drafts)) = frozen {
            world.write(&mut chain, &drafts);
        }
        let summary = world.verified();
        let lines: usize = all_lines(&world.files()).iter().map(|(_, lines)| lines.len()).sum();
        prop_assert_eq!(summary.records, lines as u64);
        // Of what begins a file that goes on from a full one, nobody is told.
        prop_assert!(lines == world.written.len() || file_bytes_max.is_some() && lines > world.written.len());
        let folder = [world.dir.path().to_owned()];
        prop_assert_eq!(&verify_files(&folder, heads(&world.written)).unwrap(), &summary);
        let mut backwards = world.files();
        backwards.reverse();
        prop_assert_eq!(&verify_files(&backwards, Expectation::default()).unwrap(), &summary);

        // What is not on the way back from the head is a tail, and nothing else is.
        let files = all_lines(&world.files());
        let parents: HashMap<String, String> = files.iter().flat_map(|(_, lines)| lines).map(|line| {
            let line: Value = serde_json::from_str(line).unwrap();
            (line["digest"].as_str().unwrap().to_owned(), line["previousDigest"].as_str().unwrap().to_owned())
        }).collect();
        let head = summary.head.as_ref().unwrap().digest.as_str();
        let on_the_way = std::iter::successors(Some(head), |digest| parents.get(*digest).map(String::as_str)).count() - 1;
        let tails: i64 = summary.tails.iter().map(|tail| tail.records).sum();
        prop_assert_eq!(on_the_way + usize::try_from(tails).unwrap(), lines);

        let places: Vec<(usize, usize)> =
            (0..files.len()).flat_map(|file| (0..files[file].1.len()).map(move |line| (file, line))).collect();
        let (file, line) = places[at.index(places.len())];
        let (path, lines) = &files[file];
        let mut without: Vec<PathBuf> = world.files();
        without.retain(|other| other != path);
        if !without.is_empty() {
            prop_assert!(verify_files(&without, heads(&world.written)).is_err(), "{path:?} is missing");
        }
        make_writable(&world.files());
        let tampered = |change: &dyn Fn(&mut Vec<String>)| {
            let mut changed = lines.clone();
            change(&mut changed);
            fs::write(path, changed.concat()).unwrap();
            let found = (
                verify_files(&world.files(), Expectation::default()).is_err(),
                verify_files(&world.files(), heads(&world.written)).is_err(),
            );
            fs::write(path, lines.concat()).unwrap();
            let left: HashSet<(i64, String)> = all_lines(&world.files()).iter().enumerate()
                .flat_map(|(number, (_, lines))| if number == file { changed.clone() } else { lines.clone() })
                .flat_map(|line| references(&line)).collect();
            (found, left)
        };
        let ((found, _), _) = tampered(&|lines| {
            let mut bytes = lines[line].clone().into_bytes();
            let place = at.index(bytes.len());
            bytes[place] = if bytes[place] == byte { byte.wrapping_add(1) } else { byte };
            lines[line] = bytes.into_iter().map(|byte| if byte.is_ascii() { char::from(byte) } else { '?' }).collect();
            if !lines[line].starts_with('{') || serde_json::from_str::<Value>(&lines[line]).is_err() {
                lines[line].insert(0, '!');
            }
        });
        prop_assert!(found, "an edit of line {line} of {path:?}");
        // Taken out: found at once where anything left refers to it, and by a head in any case.
        let gone: Value = serde_json::from_str(&lines[line]).unwrap();
        let gone = (gone["sequence"].as_i64().unwrap(), gone["digest"].as_str().unwrap().to_owned());
        let ((found, found_by_head), left) = tampered(&|lines| drop(lines.remove(line)));
        prop_assert!(found_by_head, "line {line} of {path:?} was taken out");
        prop_assert!(found || !left.contains(&gone), "line {line} of {path:?} was taken out, and others refer to it");
        let ((_, found_by_head), _) = tampered(&|lines| lines.truncate(line));
        prop_assert!(found_by_head, "{path:?} was cut at {line}");
        let ((found, _), _) = tampered(&|lines| lines.insert(line, lines[line].clone()));
        prop_assert!(found, "line {line} of {path:?} is there twice");
        if line + 1 < lines.len() {
            let ((found, _), _) = tampered(&|lines| lines.swap(line, line + 1));
            prop_assert!(found, "lines {line} and the next of {path:?} were swapped");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]

    #[test]
    fn a_restored_history_verifies_with_its_forks_acknowledged_and_no_single_change_goes_unseen(
        before in prop::collection::vec(fate(), 1..5),
        after in prop::collection::vec(fate(), 1..4),
        at in any::<prop::sample::Index>(),
        file_bytes_max in prop_oneof![1 => Just(None), 2 => (1..3000_u64).prop_map(Some)],
    ) {
        let mut world = World { file_bytes_max, ..world() };
        let thaw = |world: &mut World| if let Some((mut chain, drafts)) = world.frozen.take() {
            world.write(&mut chain, &drafts);
        };
        // The first copy is none: the lease was deleted.
        let mut copies = vec![(None, 0)];
        for fate in before {
            world.term(fate);
            copies.push((world.lease.clone(), world.term));
        }
        thaw(&mut world);
        (world.lease, world.term) = copies.swap_remove(at.index(copies.len()));
        world.pass(3600);
        for fate in after {
            world.term(fate);
        }
        thaw(&mut world);
        let mut forks = Vec::new();
        let summary = loop {
            match verify_files(&world.files(), acknowledged(&forks)) {
                Ok(summary) => break summary,
                Err(error) => {
                    let fork = named(error.finding);
                    prop_assert!(!forks.contains(&fork), "{fork} was acknowledged");
                    forks.push(fork);
                }
            }
        };
        let lines: usize = all_lines(&world.files()).iter().map(|(_, lines)| lines.len()).sum();
        prop_assert_eq!((summary.records, summary.forks.len()), (lines as u64, forks.len()));
        let all = || Expectation { heads: world.written.clone(), ..acknowledged(&forks) };
        prop_assert!(verify_files(&world.files(), all()).is_ok());

        let files = all_lines(&world.files());
        let places: Vec<(usize, usize)> =
            (0..files.len()).flat_map(|file| (0..files[file].1.len()).map(move |line| (file, line))).collect();
        let (file, line) = places[at.index(places.len())];
        let (path, lines) = &files[file];
        make_writable(&world.files());
        let is_found = |change: &dyn Fn(&mut Vec<String>), expect| {
            let mut changed = lines.clone();
            change(&mut changed);
            fs::write(path, changed.concat()).unwrap();
            let found = verify_files(&world.files(), expect).is_err();
            fs::write(path, lines.concat()).unwrap();
            found
        };
        let is_edited = |lines: &mut Vec<String>| lines[line] = lines[line].replacen("Z\"", "1Z\"", 1);
        prop_assert!(is_found(&is_edited, acknowledged(&forks)), "an edit of line {line} of {path:?}");
        prop_assert!(is_found(&|lines| lines.insert(line, lines[line].clone()), acknowledged(&forks)), "line {line} twice");
        prop_assert!(is_found(&|lines| drop(lines.remove(line)), all()), "line {line} of {path:?} was taken out");
        prop_assert!(is_found(&|lines| lines.truncate(line), all()), "{path:?} was cut at {line}");
    }
}

#[test]
fn a_reader_in_one_piece_finds_that_others_are_missing() {
    let world = killed_and_back();
    let text = fs::read(world.file(0)).unwrap();
    let error = verify(text.as_slice(), Expectation::default()).unwrap_err();
    assert!(matches!(error.finding, Finding::NoParent { sequence: 8, missing: 7 }), "{error}");
}
