//! Files that are full: closed, named, gone on from, through crashes at every step, and whoever meddles with them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde_json::Value;

use super::super::files::{closed_name, closed_path, next_path};
use super::super::line::{Draft, file_continued};
use super::super::open::{self, Ready};
use super::super::tail::closed_beside;
use super::super::writer::Chain;
use super::super::{
    AppendError, Begin, Expectation, Finding, Leader, Limits, OpenError, Opened, Receipt, STANDARD_OUTPUT, Sinks,
    Trail, VerifyError, read_back, verify_files,
};
use super::{Disk, begin, draft, heads, now, record};

/// A few records.
pub(super) const FILE_BYTES_MAX: u64 = 1500;

pub(super) struct Folder {
    pub directory: tempfile::TempDir,
    pub open: PathBuf,
}

pub(super) fn folder() -> Folder {
    let directory = tempfile::tempdir().unwrap();
    Folder { open: directory.path().join("audit.jsonl"), directory }
}

impl Folder {
    pub fn path(&self) -> PathBuf {
        self.directory.path().to_owned()
    }

    pub fn closed(&self) -> Vec<PathBuf> {
        closed_beside(&self.open).unwrap().into_iter().map(|closed| closed.path).collect()
    }

    /// All files of the trail, the oldest first.
    fn files(&self) -> Vec<PathBuf> {
        self.closed().into_iter().chain([self.open.clone()]).collect()
    }

    pub fn open(&self, begin: Begin) -> Result<(Chain, Opened), OpenError> {
        let sinks = Sinks { file: Some(self.open.clone()), stdout: false };
        let ready = open::open(sinks, begin)?;
        let Ready { chain, opened, .. } = ready;
        Ok((chain.closing_files_at(Some(FILE_BYTES_MAX)), opened))
    }

    /// Writes so many records, each in a batch of its own, and returns all receipts.
    pub fn write(&self, records: usize) -> Vec<Receipt> {
        let (mut chain, opened) = self.open(begin()).unwrap();
        let mut receipts = vec![opened.head];
        for number in 0..records {
            receipts.extend(commit(&mut chain, number));
        }
        receipts
    }

    #[track_caller]
    pub fn verified(&self, receipts: &[Receipt]) -> u64 {
        verify_files(&[self.path()], heads(receipts)).unwrap_or_else(|error| panic!("{error}")).records
    }

    #[track_caller]
    fn finds(&self, expect: Expectation, words: &str) -> VerifyError {
        let error = verify_files(&[self.path()], expect).expect_err("this trail should not verify");
        assert!(error.to_string().contains(words), "{error}");
        error
    }
}

pub(super) fn commit(chain: &mut Chain, number: usize) -> Vec<Receipt> {
    chain.commit(std::iter::once(&draft(&record(number)))).unwrap().1
}

pub(super) fn first_line(path: &Path) -> Value {
    serde_json::from_str(fs::read_to_string(path).unwrap().lines().next().unwrap()).unwrap()
}

pub(super) fn receipt_of(line: &Value) -> Receipt {
    serde_json::from_value(serde_json::json!({"sequence": line["sequence"], "digest": line["digest"]})).unwrap()
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<String>)) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    let text = fs::read_to_string(path).unwrap();
    let mut lines: Vec<String> = text.split_inclusive('\n').map(str::to_owned).collect();
    change(&mut lines);
    fs::write(path, lines.concat()).unwrap();
}

#[test]
fn a_full_file_is_closed_under_a_name_of_its_own_and_the_next_one_names_it() {
    let folder = folder();
    let receipts = folder.write(30);
    let files = folder.files();
    assert!(files.len() > 5, "{files:?}");
    let mut before: Option<Value> = None;
    for path in &files {
        let bytes = fs::metadata(path).unwrap().len();
        assert!(bytes <= FILE_BYTES_MAX, "{path:?} has {bytes} bytes");
        let first = first_line(path);
        if let Some(before) = before {
            assert_eq!(first["record"]["kind"], "FileContinued");
            assert_eq!(first["record"]["previousFile"], before["digest"]);
        }
        let mode = fs::metadata(path).unwrap().permissions().mode() & 0o777;
        if *path == folder.open {
            assert_eq!(mode, 0o600);
        } else {
            assert_eq!(mode, 0o400, "{path:?}");
            assert_eq!(*path, closed_path(&folder.open, &receipt_of(&first)));
        }
        before = Some(first);
    }
    let mut sorted = folder.closed();
    sorted.sort();
    assert_eq!(sorted, folder.closed(), "names sort as they were written");
    // By the folder, by the files in any order, and each record that somebody was told of.
    let records = folder.verified(&receipts);
    assert_eq!(records, receipts.len() as u64 + files.len() as u64 - 1);
    let backwards: Vec<PathBuf> = files.into_iter().rev().collect();
    assert_eq!(verify_files(&backwards, heads(&receipts)).unwrap().records, records);
}

#[test]
fn what_is_read_back_goes_over_closed_files_in_their_order() {
    let folder = folder();
    folder.write(30);
    let mut numbers = Vec::new();
    let read = read_back(&folder.open, now(), |_, record| {
        let record: Value = serde_json::from_str(record).unwrap();
        numbers.extend(record["number"].as_u64());
    });
    assert_eq!(numbers, (0..30).collect::<Vec<_>>());
    assert_eq!(read.unwrap().cut_off, None);
    // Whoever ships files and deletes them hears that something is missing.
    let closed = folder.closed();
    fs::remove_file(&closed[0]).unwrap();
    assert_eq!(read_back(&folder.open, now(), |_, _| {}).unwrap().cut_off, Some(now()));
    for path in &closed[1..] {
        fs::remove_file(path).unwrap();
    }
    assert_eq!(read_back(&folder.open, now(), |_, _| {}).unwrap().cut_off, Some(now()));
    fs::remove_file(&folder.open).unwrap();
    assert_eq!(read_back(&folder.open, now(), |_, _| {}).unwrap().records, 0);
}

#[tokio::test]
async fn a_trail_counts_its_files_and_says_in_which_one_its_head_stands() {
    let folder = folder();
    let sinks = Sinks { file: Some(folder.open.clone()), stdout: false };
    let limits = Limits { file_bytes_max: Some(FILE_BYTES_MAX), ..Limits::default() };
    let (trail, opened) = Trail::open(sinks, limits, begin()).await.unwrap();
    assert_eq!(trail.place().file, opened.file);
    let mut receipts = vec![opened.head];
    for number in 0..20 {
        receipts.push(trail.append(record(number), now()).await.unwrap());
        let place = trail.place();
        assert_eq!(Some(&place.head), receipts.last());
        assert_eq!(place.file, first_line(&folder.open)["digest"].as_str().unwrap());
    }
    let stats = trail.stats();
    assert_eq!(stats.files_closed, folder.closed().len() as u64);
    assert_eq!((stats.file_close_failures, stats.file_bytes), (0, fs::metadata(&folder.open).unwrap().len()));
    let error = trail.append(serde_json::json!({"kind": "FileContinued"}), now()).await.unwrap_err();
    assert!(matches!(&error, AppendError::Invalid { reason } if reason.contains("the trail's own")), "{error}");
    trail.close().await;
    folder.verified(&receipts);
}

#[test]
fn standard_output_is_never_closed_and_keeps_its_name() {
    let store = super::super::store::OutputStore::new(Vec::new());
    let mut chain =
        Chain::new(Box::new(store), Receipt::origin(), 0).on_output().closing_files_at(Some(FILE_BYTES_MAX));
    for number in 0..50 {
        commit(&mut chain, number);
    }
    assert_eq!((chain.place().file.as_str(), chain.closings()), (STANDARD_OUTPUT, (0, 0)));
}

#[test]
fn a_file_that_cannot_be_closed_grows_on_and_refuses_nothing() {
    let folder = folder();
    let (mut chain, opened) = folder.open(begin()).unwrap();
    // Somebody put another file where it would go.
    let planted = closed_path(&folder.open, &opened.head);
    fs::write(&planted, "theirs").unwrap();
    let mut receipts = vec![opened.head];
    for number in 0..20 {
        receipts.extend(commit(&mut chain, number));
    }
    assert_eq!(chain.closings(), (0, 1), "a folder is not asked with each record");
    assert_eq!(fs::read_to_string(&planted).unwrap(), "theirs");
    assert!(fs::metadata(&folder.open).unwrap().len() > FILE_BYTES_MAX);
    drop(chain);
    fs::remove_file(&planted).unwrap();
    // The next opening tries again.
    let (mut chain, opened) = folder.open(begin()).unwrap();
    receipts.push(opened.head);
    receipts.extend(commit(&mut chain, 20));
    assert_eq!(chain.closings(), (1, 0));
    folder.verified(&receipts);
}

#[test]
fn a_link_to_the_file_is_followed_and_the_closed_ones_are_where_the_file_is() {
    let (folder, links) = (folder(), tempfile::tempdir().unwrap());
    let link = links.path().join("link.jsonl");
    std::os::unix::fs::symlink(&folder.open, &link).unwrap();
    let elsewhere = Folder { directory: links, open: link };
    let receipts = elsewhere.write(10);
    assert!(!folder.closed().is_empty());
    assert!(elsewhere.open.is_symlink() && elsewhere.open.parent().unwrap().read_dir().unwrap().count() == 1);
    let records = folder.verified(&receipts);
    assert_eq!(u64::try_from(elsewhere.write(1)[0].sequence).unwrap(), records + 1);
}

#[test]
fn a_batch_that_fails_in_a_new_file_begins_it_again_with_the_name_of_the_one_before() {
    let disk = Disk::default();
    let mut chain = Chain::new(Box::new(disk.clone()), Receipt::origin(), 0).closing_files_at(Some(FILE_BYTES_MAX));
    let mut receipts = Vec::new();
    let mut begun_again = 0;
    for number in 0..30 {
        let before = chain.place();
        let fails = |chain: &mut Chain| {
            assert!(chain.commit(std::iter::once(&draft(&record(number)))).is_err());
            assert_eq!(chain.place(), before, "nobody was told of more");
        };
        disk.platter().syncs_to_fail = 1;
        fails(&mut chain);
        if disk.platter().written.is_empty() {
            disk.platter().room = Some(100);
            fails(&mut chain);
            disk.platter().room = None;
            begun_again += usize::from(number > 0);
        }
        receipts.extend(commit(&mut chain, number));
    }
    assert_eq!(begun_again, disk.platter().closed.len());
    assert!(begun_again > 3);
    let directory = tempfile::tempdir().unwrap();
    let platter = disk.platter();
    for (at, text) in platter.closed.iter().chain([&platter.written]).enumerate() {
        fs::write(directory.path().join(at.to_string()), text).unwrap();
    }
    verify_files(&[directory.path().to_owned()], heads(&receipts)).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn a_second_writer_that_comes_between_two_files_is_refused() {
    let folder = folder();
    let (mut chain, opened) = folder.open(begin()).unwrap();
    commit(&mut chain, 1);
    // As it is between the two renames: the full file has its closed name, its lock is held, and none has the path.
    fs::rename(&folder.open, closed_path(&folder.open, &opened.head)).unwrap();
    let error = folder.open(begin()).err().unwrap();
    assert!(matches!(error, OpenError::Locked { .. }), "{error}");
    drop(chain);
    assert_eq!(folder.open(begin()).unwrap().1.head.sequence, 3);
}

#[test]
fn each_kind_of_meddling_with_closed_files_has_its_own_message() {
    let none = Expectation::default;
    let world = || {
        let folder = folder();
        let receipts = folder.write(12);
        (folder, receipts)
    };
    let (folder, _) = world();
    let closed = folder.closed();
    assert!(closed.len() >= 3);
    // One in the middle, and the one before the open one.
    for missing in [1, closed.len() - 1] {
        let aside = folder.path().join(".aside");
        fs::rename(&closed[missing], &aside).unwrap();
        let error = folder.finds(none(), "which is in none of the files; a file is missing, or its end was cut off");
        let next = folder.files()[missing].clone();
        assert_eq!((error.file.as_ref(), error.line), (Some(&next), 1));
        fs::rename(&aside, &closed[missing]).unwrap();
    }
    folder.verified(&[]);
    // The first one: what comes before is asked for, and verifies with the record that ended it.
    let last = fs::read_to_string(&closed[0]).unwrap().lines().last().unwrap().to_owned();
    let after = receipt_of(&serde_json::from_str(&last).unwrap());
    fs::remove_file(&closed[0]).unwrap();
    folder.finds(none(), "what came before was cut off, or stands in another file");
    assert!(verify_files(&[folder.path()], Expectation { after: vec![after], ..none() }).is_ok());
    let other = Receipt { sequence: after_of(&closed[1]).sequence, digest: "f".repeat(64) };
    folder.finds(Expectation { after: vec![other], ..none() }, "another trail");

    let (folder, _) = world();
    let closed = folder.closed();
    change(&closed[1], |lines| lines[1] = lines[1].replace("ec2-user", "root"));
    let error = folder.finds(none(), "edited after it was written");
    assert_eq!((error.file.as_ref(), error.line), (Some(&closed[1]), 2));

    // Their names may be swapped: what is in them counts.
    let (folder, receipts) = world();
    let closed = folder.closed();
    let aside = folder.path().join("aside");
    fs::rename(&closed[0], &aside).unwrap();
    fs::rename(&closed[1], &closed[0]).unwrap();
    fs::rename(&aside, &closed[1]).unwrap();
    folder.verified(&receipts);

    // An end that was cut, where another file goes on.
    let (folder, _) = world();
    let closed = folder.closed();
    change(&closed[1], |lines| drop(lines.pop()));
    let error = folder.finds(none(), "those between were taken out, or moved to another place");
    assert_eq!((error.file.as_ref(), error.line), (Some(&closed[2]), 1));

    // A beginning that was cut, and one that names another file than the one it goes on from.
    let (folder, _) = world();
    let closed = folder.closed();
    change(&closed[1], |lines| drop(lines.remove(0)));
    folder.finds(none(), "which is in none of the files");

    // A copy under another name.
    let (folder, _) = world();
    let closed = folder.closed();
    fs::copy(&closed[1], folder.path().join("copy")).unwrap();
    let error = folder.finds(none(), "stands in another file, too");
    assert!(matches!(error.finding, Finding::Copied { .. }));

    // One of another trail, with the number that fits.
    let (folder, _) = world();
    let (stranger, _) = world_of(7);
    let (closed, theirs) = (folder.closed(), stranger.closed());
    change(&closed[1], |lines| *lines = vec![fs::read_to_string(&theirs[1]).unwrap()]);
    folder.finds(none(), "");

    // A second file that goes on from the same one.
    let (folder, _) = world();
    let closed = folder.closed();
    let before = receipt_of(&first_line(&closed[1]));
    let mut forged = String::new();
    let head = after_of(&closed[1]);
    Draft::new(
        &file_continued(&head, first_line(&closed[0])["digest"].as_str().unwrap(), None),
        now() + jiff::SignedDuration::from_secs(1),
    )
    .unwrap()
    .link(&head, &mut forged);
    assert_eq!(before.sequence, head.sequence + 1);
    fs::write(folder.path().join("forged"), forged).unwrap();
    let error = folder.finds(none(), "");
    assert!(matches!(error.finding, Finding::Fork { .. }), "{error}");

    // The open file is gone: only heads miss what was in it alone.
    let (folder, receipts) = world();
    fs::remove_file(&folder.open).unwrap();
    assert!(verify_files(&[folder.path()], none()).is_ok());
    folder.finds(heads(&receipts), "it was cut, or a file is missing");
    // And a folder without any is no trail.
    for path in folder.closed() {
        fs::remove_file(path).unwrap();
    }
    fs::write(next_path(&folder.open), "x").unwrap();
    folder.finds(none(), "no file of a trail is in this folder");
}

/// The record that a file goes on from.
fn after_of(path: &Path) -> Receipt {
    let first = first_line(path);
    Receipt {
        sequence: first["sequence"].as_i64().unwrap() - 1,
        digest: first["previousDigest"].as_str().unwrap().to_owned(),
    }
}

fn world_of(number: usize) -> (Folder, Vec<Receipt>) {
    let folder = folder();
    let (mut chain, _) = folder.open(begin()).unwrap();
    let receipts = (number..number + 12).flat_map(|number| commit(&mut chain, number)).collect();
    (folder, receipts)
}

#[test]
fn a_lease_that_names_a_closed_file_names_ours_and_what_that_lost_is_missed() {
    let led = |term: i64, head: Option<(&Receipt, String)>| {
        let (known_head, head_file) = head.map(|(head, file)| (head.clone(), file)).unzip();
        Begin { now: now(), known_head, leader: Some(Leader { term, lease_seconds: 9, head_file }) }
    };
    let folder = folder();
    let (mut chain, opened) = folder.open(led(1, None)).unwrap();
    let told: Vec<Receipt> = (0..12).flat_map(|number| commit(&mut chain, number)).collect();
    drop(chain);
    let closed = folder.closed();
    let lines = fs::read_to_string(&closed[0]).unwrap();
    let last = receipt_of(&serde_json::from_str(lines.lines().last().unwrap()).unwrap());

    // The lease was renewed for the last time before the first file was full.
    let (chain, again) = folder.open(led(2, Some((&last, opened.file.clone())))).unwrap();
    assert_eq!(again.previous_head.as_ref(), told.last());
    assert_eq!(again.file_head, None, "it is our own line");
    drop(chain);
    // It names a record that the closed file should have.
    let beyond = Receipt { sequence: last.sequence + 1, digest: "a".repeat(64) };
    let error = folder.open(led(3, Some((&beyond, opened.file.clone())))).err().unwrap();
    assert!(matches!(&error, OpenError::Behind { path, .. } if *path == closed[0]), "{error}");
    let other = Receipt { digest: "a".repeat(64), ..last.clone() };
    let error = folder.open(led(3, Some((&other, opened.file.clone())))).err().unwrap();
    assert!(matches!(&error, OpenError::Broken { path, .. } if *path == closed[0]), "{error}");
    // The closed file was shipped since. If it is the one before the open one, that says so.
    let newest = closed.last().unwrap();
    let name = first_line(newest)["digest"].as_str().unwrap().to_owned();
    let known = after_of(&folder.open);
    for path in &closed {
        fs::remove_file(path).unwrap();
    }
    let (_chain, again) = folder.open(led(3, Some((&known, name)))).unwrap();
    assert_eq!(again.file_head, None, "it is our own line");
}

/// Where a process dies.
#[derive(Clone, Copy, Debug)]
enum Crash {
    /// Between two batches.
    Anywhere,
    /// After so many bytes of a batch that nobody was told of.
    AmidABatch(prop::sample::Index),
    /// When the next file is made, with something in it.
    NextIsMade,
    /// Between the two renames.
    BetweenRenames,
    /// After the second.
    NextIsEmpty,
    /// After so many bytes of the first batch of the new file.
    AmidTheFirstBatch(prop::sample::Index),
}

fn crash() -> impl Strategy<Value = Crash> {
    let at = any::<prop::sample::Index>;
    prop_oneof![
        Just(Crash::Anywhere),
        at().prop_map(Crash::AmidABatch),
        Just(Crash::NextIsMade),
        Just(Crash::BetweenRenames),
        Just(Crash::NextIsEmpty),
        at().prop_map(Crash::AmidTheFirstBatch),
    ]
}

/// Leaves the folder as a process that dies there leaves it.
fn die(folder: &Folder, chain: Chain, crash: Crash) {
    let (place, first) = (chain.place(), receipt_of(&first_line(&folder.open)));
    let name = first.digest.clone();
    let close = |next: &str| {
        fs::rename(&folder.open, closed_path(&folder.open, &first)).unwrap();
        fs::write(&folder.open, next).unwrap();
    };
    let batch = |drafts: &[Draft]| {
        let (mut text, mut head) = (String::new(), place.head.clone());
        for draft in drafts {
            head = draft.link(&head, &mut text);
        }
        text
    };
    match crash {
        Crash::Anywhere => {}
        Crash::AmidABatch(at) => {
            let text = batch(&[draft(&record(7)), draft(&record(8))]);
            let whole = fs::read_to_string(&folder.open).unwrap();
            fs::write(&folder.open, whole + &text[..at.index(text.len() + 1)]).unwrap();
        }
        Crash::NextIsMade => fs::write(next_path(&folder.open), "rubbish").unwrap(),
        Crash::BetweenRenames => {
            close("");
            fs::rename(&folder.open, next_path(&folder.open)).unwrap();
        }
        Crash::NextIsEmpty => close(""),
        Crash::AmidTheFirstBatch(at) => {
            let continued = Draft::new(&file_continued(&place.head, &name, None), now()).unwrap();
            let text = batch(&[continued, draft(&record(7))]);
            close(&text[..at.index(text.len() + 1)]);
        }
    }
    drop(chain);
}

proptest! {
    // Each opens real files, and syncs them.
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn a_process_that_dies_at_any_step_leaves_one_chain_that_goes_on(
        lives in prop::collection::vec((0..12_usize, crash()), 1..6),
        by_lease in any::<bool>(),
    ) {
        let folder = folder();
        let (mut told, mut lease) = (Vec::new(), None);
        let mut torn = 0;
        for (life, (records, crash)) in lives.into_iter().enumerate() {
            let (known_head, head_file): (Option<Receipt>, _) = lease.clone().unzip();
            let term = i64::try_from(life).unwrap() + 1;
            let leader = by_lease.then_some(Leader { term, lease_seconds: 9, head_file });
            let known_head = known_head.filter(|_| by_lease);
            let (mut chain, opened) = folder.open(Begin { known_head, leader, ..begin() }).unwrap();
            torn += usize::from(opened.torn.is_some());
            told.push(opened.head);
            // It is renewed now and then, so that it names less than was written.
            let place = chain.place();
            lease = Some((place.head, place.file));
            for number in 0..records {
                told.extend(commit(&mut chain, number));
            }
            die(&folder, chain, crash);
        }
        let (known_head, head_file): (Option<Receipt>, _) = lease.unzip();
        let leader = by_lease.then_some(Leader { term: 100, lease_seconds: 9, head_file });
        let (chain, opened) = folder.open(Begin { known_head: known_head.filter(|_| by_lease), leader, ..begin() }).unwrap();
        torn += usize::from(opened.torn.is_some());
        told.push(opened.head);
        drop(chain);

        let summary = verify_files(&[folder.path()], heads(&told)).unwrap_or_else(|error| panic!("{error}"));
        prop_assert_eq!(summary.head.as_ref(), told.last());
        prop_assert_eq!(summary.tails, vec![]);
        let files = folder.path().read_dir().unwrap().map(|entry| entry.unwrap().path());
        prop_assert_eq!(files.filter(|path| path.to_string_lossy().contains(".torn-")).count(), torn);
        for path in folder.closed() {
            prop_assert!(closed_name(&folder.open, &path).is_some());
            prop_assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o222, 0, "{:?} may be written", path);
        }
    }
}
