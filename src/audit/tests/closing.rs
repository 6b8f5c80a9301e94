//! Closing a full file, step by step: in which order, with each step failing, and with a power cut after each.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use super::super::files::closed_path;
use super::super::open;
use super::super::store::{Names, OnDisk};
use super::super::tail::closed_back;
use super::super::writer::Chain;
use super::super::{Begin, Leader, OpenError, Receipt, Sinks, verify_files};
use super::rotation::{FILE_BYTES_MAX, Folder, commit, first_line, folder, receipt_of};
use super::{begin, draft, heads, now, record};

/// A folder as it may be after a power cut: names, and the files that they are of.
type Snapshot = Vec<(PathBuf, File)>;

/// What is done to a folder's names.
#[derive(Clone, Debug)]
struct Steps(Arc<Mutex<Done>>);

#[derive(Debug)]
struct Done {
    folder: PathBuf,
    /// Each step that was taken, or failed.
    steps: Vec<String>,
    /// Which ones fail.
    fails: Range<usize>,
    /// As the folder was made durable last, and after each step since.
    possible: Vec<Snapshot>,
}

impl Steps {
    fn of(folder: &Folder) -> Self {
        let folder = folder.path();
        let possible = vec![snapshot(&folder)];
        Steps(Arc::new(Mutex::new(Done { folder, steps: Vec::new(), fails: 0..0, possible })))
    }

    fn done(&self) -> MutexGuard<'_, Done> {
        self.0.lock().unwrap()
    }

    fn step<T>(&self, what: String, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let mut done = self.done();
        let at = done.steps.len();
        done.steps.push(what);
        if done.fails.contains(&at) {
            return Err(io::Error::from_raw_os_error(5)); // EIO
        }
        let result = act();
        let after = snapshot(&done.folder);
        done.possible.push(after);
        result
    }

    /// Opens the trail in a folder as its one writer.
    fn open(&self, path: &Path) -> Result<(Chain, Receipt), OpenError> {
        let sinks = Sinks { file: Some(path.to_owned()), stdout: false };
        let ready = open::open_on(Box::new(self.clone()), sinks, begin())?;
        Ok((ready.chain.closing_files_at(Some(FILE_BYTES_MAX)), ready.opened.head))
    }
}

impl Names for Steps {
    fn create(&self, path: &Path) -> io::Result<File> {
        self.step(format!("create {}", name(path)), || OnDisk.create(path))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step(format!("rename {} to {}", name(from), name(to)), || OnDisk.rename(from, to))
    }

    fn sync_file(&self, file: &File) -> io::Result<()> {
        self.step("sync the file".to_owned(), || OnDisk.sync_file(file))
    }

    fn sync_folder_of(&self, path: &Path) -> io::Result<()> {
        self.step("sync the folder".to_owned(), || OnDisk.sync_folder_of(path))?;
        let mut done = self.done();
        if path.parent() == Some(&done.folder) {
            let durable = done.possible.pop();
            done.possible = durable.into_iter().collect();
        }
        Ok(())
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

fn snapshot(folder: &Path) -> Snapshot {
    let paths = folder.read_dir().unwrap().map(|entry| entry.unwrap().path());
    paths.map(|path| (PathBuf::from(name(&path)), File::open(path).unwrap())).collect()
}

/// Cuts the power, amid a batch that nobody was told of, and opens what may be left in each case: it is one chain that goes
/// on and has all that was told.
#[track_caller]
fn cut_power(folder: &Folder, steps: &Steps, chain: &Chain, told: &[Receipt]) {
    let mut text = String::new();
    draft(&record(99)).link(chain.head(), &mut text);
    let written_to = fs::metadata(&folder.open).ok().filter(|open| open.len() > 0).map(|open| open.ino());
    let done = steps.done();
    for (number, possible) in done.possible.iter().enumerate() {
        for torn in [0, 20, text.len() - 1, text.len()] {
            let left = super::rotation::folder();
            for (name, mut file) in possible.iter().map(|(name, file)| (name, file)) {
                let mut whole = String::new();
                file.seek(SeekFrom::Start(0)).unwrap();
                file.read_to_string(&mut whole).unwrap();
                if Some(file.metadata().unwrap().ino()) == written_to {
                    whole.push_str(&text[..torn]);
                }
                fs::write(left.path().join(name), whole).unwrap();
            }
            let what =
                format!("possibility {number}, {torn} bytes torn, after {:?}, {:?} failing", done.steps, done.fails);
            let place = chain.place();
            let leader = Leader { term: 1, lease_seconds: 9, head_file: Some(place.file) };
            let by_lease = Begin { known_head: Some(place.head), leader: Some(leader), ..begin() };
            let begin = if torn == 20 { by_lease } else { begin() };
            let (mut chain, opened) = left.open(begin).unwrap_or_else(|error| panic!("{error}: {what}"));
            let mut told = told.to_vec();
            told.push(opened.head);
            told.extend(commit(&mut chain, 100));
            let summary = verify_files(&[left.path()], heads(&told)).unwrap_or_else(|error| panic!("{error}: {what}"));
            assert_eq!((summary.head.as_ref(), summary.tails), (told.last(), vec![]), "{what}");
        }
    }
}

/// Writes until a file is full, lets steps fail, counted from the first one of closing it, and goes on; with a power cut after
/// each batch. Returns the steps, and how many batches were refused.
#[track_caller]
fn closing(fails: Range<usize>) -> (Vec<String>, usize) {
    let folder = folder();
    let steps = Steps::of(&folder);
    let (mut chain, opened) = steps.open(&folder.open).unwrap();
    let mut told = vec![opened];
    steps.done().steps.clear();
    steps.done().fails = fails;
    let (mut refused, mut after) = (0, 0);
    for number in 0.. {
        match chain.commit(std::iter::once(&draft(&record(number)))) {
            Ok((_, receipts)) => told.extend(receipts),
            Err(_) => refused += 1,
        }
        if !steps.done().steps.is_empty() {
            cut_power(&folder, &steps, &chain, &told);
            after += 1;
        }
        if after == 4 {
            break;
        }
    }
    let taken = steps.done().steps.clone();
    drop(chain);
    // Whatever it was, the next start closes the file, or has closed it.
    let (mut chain, opened) = folder.open(begin()).unwrap();
    told.push(opened.head);
    for number in 0..10 {
        told.extend(commit(&mut chain, number));
    }
    assert_eq!(chain.closings().1, 0);
    assert!(!folder.closed().is_empty());
    folder.verified(&told);
    (taken, refused)
}

#[test]
fn a_file_is_closed_in_an_order_in_which_a_power_cut_loses_nothing() {
    let (steps, refused) = closing(0..0);
    let closed = steps[2].rsplit(' ').next().unwrap().to_owned();
    assert!(closed.starts_with("audit.0000000000000001-"), "{steps:?}");
    let expected = [
        "sync the file".to_owned(),
        "create .audit.jsonl.next".to_owned(),
        format!("rename audit.jsonl to {closed}"),
        "sync the folder".to_owned(),
        "rename .audit.jsonl.next to audit.jsonl".to_owned(),
        "sync the folder".to_owned(),
    ];
    assert_eq!((&steps[..6], refused), (&expected[..], 0));
}

#[test]
fn whichever_step_of_closing_fails_nothing_confirmed_is_lost_and_what_follows_heals() {
    // (how often it is refused if that one step fails, if the next one fails as well)
    for (step, (once, twice)) in [(0, 0), (0, 0), (0, 1), (0, 1), (0, 1), (1, 2)].into_iter().enumerate() {
        for (more, expected) in [(1, once), (2, twice)] {
            let (steps, refused) = closing(step..step + more);
            assert!(steps.len() > step, "step {step} was not reached: {steps:?}");
            assert_eq!(refused, expected, "{more} from step {step} on failed: {steps:?}");
        }
    }
    // The name that it had comes back, and durably so, before anything else is written.
    let (steps, _) = closing(3..4);
    assert!(steps[2].starts_with("rename audit.jsonl to audit."), "{steps:?}");
    assert!(steps[4].starts_with("rename audit.") && steps[4].ends_with(" to audit.jsonl"), "{steps:?}");
    assert_eq!(&steps[5..], ["sync the folder"]);
}

#[test]
fn a_disk_that_dies_at_any_step_of_closing_has_all_that_was_confirmed() {
    for (step, refused_expected) in [0, 0, 4, 4, 4, 4].into_iter().enumerate() {
        let (steps, refused) = closing(step..usize::MAX);
        assert!(steps.len() > step, "step {step} was not reached: {steps:?}");
        assert_eq!(refused, refused_expected, "all from step {step} on failed: {steps:?}");
    }
}

#[test]
fn a_file_that_a_link_leads_to_has_a_durable_name_where_it_is() {
    let (folder, links) = (folder(), tempfile::tempdir().unwrap());
    let link = links.path().join("link.jsonl");
    std::os::unix::fs::symlink(&folder.open, &link).unwrap();
    let mut told = folder.write(3);
    // Between the two renames: the link leads nowhere.
    let closed = closed_path(&folder.open, &told[0]);
    fs::rename(&folder.open, &closed).unwrap();
    let steps = Steps::of(&folder);
    let (mut chain, opened) = steps.open(&link).unwrap();
    told.push(opened);
    told.extend(commit(&mut chain, 4));
    cut_power(&folder, &steps, &chain, &told);
    drop(chain);

    // What a crash had left is set aside there, too.
    let mut whole = fs::read(&folder.open).unwrap();
    whole.extend_from_slice(b"{\"seq");
    fs::write(&folder.open, whole).unwrap();
    drop(Steps::of(&folder).open(&link).unwrap());
    assert!(folder.path().join("audit.jsonl.torn-1").exists());
    assert_eq!(links.path().read_dir().unwrap().count(), 1);
}

#[test]
fn the_torn_end_of_a_file_that_has_its_closed_name_is_set_aside_unless_it_lost_what_is_known() {
    let folder = folder();
    let mut told = folder.write(3);
    let closed = closed_path(&folder.open, &told[0]);
    fs::rename(&folder.open, &closed).unwrap();
    let whole = fs::read_to_string(&closed).unwrap();
    let (cut, file) = (&whole[..whole.len() - 10], first_line(&closed)["digest"].as_str().unwrap().to_owned());
    let led = |head: &Receipt| {
        let leader = Leader { term: 1, lease_seconds: 9, head_file: Some(file.clone()) };
        Begin { now: now(), known_head: Some(head.clone()), leader: Some(leader) }
    };
    let refused = |begin: Begin| {
        let before = fs::read_to_string(&closed).unwrap();
        let error = folder.open(begin).err().unwrap();
        assert_eq!(fs::read_to_string(&closed).unwrap(), before, "nothing was changed");
        error
    };
    // The last record that the lease names is the torn one.
    fs::write(&closed, cut).unwrap();
    let error = refused(led(&told[3]));
    assert!(matches!(error, OpenError::Behind { found: 3, known: 4, .. }), "{error}");
    // Something was begun behind it.
    fs::write(&closed, format!("{whole}{{\"seq")).unwrap();
    fs::write(&folder.open, "{\"seq").unwrap();
    let error = refused(led(&told[3]));
    assert!(matches!(&error, OpenError::Broken { path, .. } if *path == closed), "{error}");
    fs::write(&folder.open, "").unwrap();
    fs::set_permissions(&closed, std::os::unix::fs::PermissionsExt::from_mode(0o400)).unwrap();
    let (chain, opened) = folder.open(led(&told[3])).unwrap();
    let torn = opened.torn.unwrap();
    assert_eq!((torn.bytes, name(&torn.path)), (5, format!("{}.torn-1", name(&closed))));
    assert_eq!(fs::read_to_string(&closed).unwrap(), whole);
    assert!(fs::metadata(&closed).unwrap().permissions().readonly());
    assert_eq!(first_line(&folder.open)["record"]["tornDigest"], torn.digest);
    drop(chain);
    told.push(opened.head);
    folder.verified(&told);
}

#[test]
fn a_gap_among_closed_files_is_gone_on_behind_only_where_the_lease_says_so() {
    let folder = folder();
    folder.write(20);
    let closed = folder.closed();
    let firsts: Vec<Receipt> = closed.iter().map(|path| receipt_of(&first_line(path))).collect();
    assert!(closed.len() > 4);
    fs::remove_file(&closed[2]).unwrap();
    fs::remove_file(&folder.open).unwrap();
    let led = |head: &Receipt, file: &Receipt| {
        let leader = Leader { term: 1, lease_seconds: 9, head_file: Some(file.digest.clone()) };
        Begin { now: now(), known_head: Some(head.clone()), leader: Some(leader) }
    };
    let error = folder.open(led(&firsts[1], &firsts[1])).err().unwrap();
    assert!(matches!(error, OpenError::Gap { .. }), "{error}");
    assert!(error.to_string().contains("Put back what is missing; or move away all"), "{error}");
    assert_eq!(fs::metadata(&folder.open).unwrap().len(), 0, "nothing is written");
    let (_chain, opened) = folder.open(led(&firsts[3], &firsts[3])).unwrap();
    assert_eq!(first_line(&folder.open)["record"]["previousFile"], firsts.last().unwrap().digest);
    assert_eq!(opened.file_head, None);
}

#[test]
fn no_more_closed_files_are_looked_into_than_are_read_back_unless_one_is_missing() {
    let folder = folder();
    folder.write(30);
    let all = folder.closed();
    let [.., before, newest] = &all[..] else { panic!("{all:?}") };
    let bytes = fs::metadata(newest).unwrap().len();
    #[track_caller]
    fn check(folder: &Folder, bytes_min: u64, named: Option<&Receipt>, expected: &[PathBuf]) {
        let back = closed_back(&folder.open, bytes_min, named.map(|first| first.digest.as_str())).unwrap();
        assert_eq!(back.into_iter().map(|closed| closed.path).collect::<Vec<_>>(), expected, "{bytes_min}, {named:?}");
    }
    check(&folder, 0, None, &[]);
    check(&folder, bytes, None, std::slice::from_ref(newest));
    check(&folder, bytes + 1, None, &[before.clone(), newest.clone()]);
    check(&folder, u64::MAX, None, &all);
    // The one that the lease names, wherever that is, and none that nobody has.
    let first = receipt_of(&first_line(&all[0]));
    check(&folder, 1, Some(&first), &[all[0].clone(), newest.clone()]);
    check(&folder, 1, Some(&receipt_of(&first_line(newest))), std::slice::from_ref(newest));
    check(&folder, 1, Some(&Receipt { digest: "f".repeat(64), ..first }), std::slice::from_ref(newest));
    // Whoever renamed one leads astray, and then all are looked into; so it is where one is missing.
    let renamed = folder.path().join("audit.0000000000000002-ffffffffffffffff.jsonl");
    fs::rename(newest, &renamed).unwrap();
    let mut expected = all.clone();
    *expected.last_mut().unwrap() = renamed.clone();
    check(&folder, 1, None, &expected);
    fs::rename(&renamed, newest).unwrap();
    fs::remove_file(before).unwrap();
    let left: Vec<PathBuf> = all.iter().filter(|path| *path != before).cloned().collect();
    check(&folder, bytes + 1, None, &left);
    // Shipped, the oldest first: then nothing is missing between.
    for path in &all[..all.len() - 1] {
        let _ = fs::remove_file(path);
    }
    check(&folder, u64::MAX, None, std::slice::from_ref(newest));
    // The open one has no line yet.
    fs::write(&folder.open, "").unwrap();
    check(&folder, 1, None, std::slice::from_ref(newest));
}

#[test]
fn a_lease_that_names_a_shipped_file_names_ours_if_one_that_is_here_goes_on_from_it() {
    let folder = folder();
    folder.write(20);
    let closed = folder.closed();
    let shipped = receipt_of(&first_line(&closed[0]));
    let before = fs::read_to_string(&folder.open).unwrap();
    let own = receipt_of(&serde_json::from_str(before.lines().last().unwrap()).unwrap());
    fs::remove_file(&closed[0]).unwrap();
    let leader = Leader { term: 9, lease_seconds: 9, head_file: Some(shipped.digest.clone()) };
    let restored = Begin { now: now(), known_head: Some(shipped), leader: Some(leader) };
    let (_chain, opened) = folder.open(restored).unwrap();
    assert_eq!((opened.previous_head, opened.file_head), (Some(own), None), "it goes on, and not behind itself");
}
