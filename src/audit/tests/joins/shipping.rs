//! Files that were shipped and deleted, the notes that stand for them, and who makes use of a note that is old.

use std::time::Duration;

use super::*;
use crate::audit::Part;
use crate::audit::line::{FILE_CONTINUED, file_continued};

fn after(receipts: &[Receipt]) -> Expectation {
    Expectation { after: receipts.to_vec(), ..Expectation::default() }
}

fn receipt_of(line: &str) -> Receipt {
    let line: Value = serde_json::from_str(line).unwrap();
    serde_json::from_value(json!({"sequence": line["sequence"], "digest": line["digest"]})).unwrap()
}

fn lines_of(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
}

fn last_of(path: &Path) -> Receipt {
    receipt_of(lines_of(path).last().unwrap())
}

/// As [`World::term`], with each record in a batch of its own, so that files are closed in between.
fn leads(world: &mut World, replica: usize, named: usize, unnamed: usize) {
    world.pass(LEASE_SECONDS);
    let (mut chain, opened) = world.open(replica).unwrap();
    world.written.push(opened.head);
    for number in 0..named + unnamed {
        let drafts = world.drafts(1);
        world.write(&mut chain, &drafts);
        if number + 1 == named {
            let Place { head, file } = chain.place();
            world.lease = Some((head, file));
        }
    }
}

/// A leader of a long term whose oldest files were shipped: what their last records are.
fn shipped(files: usize, records: usize) -> (World, Vec<Receipt>) {
    let mut world = World { file_bytes_max: Some(1500), ..world() };
    world.term(steps_down(1, 1));
    let (mut chain, opened) = world.open(0).unwrap();
    world.written.push(opened.head);
    for _ in 0..records {
        world.pass(600);
        let drafts = world.drafts(1);
        world.write(&mut chain, &drafts);
    }
    let Place { head, file } = chain.place();
    world.lease = Some((head, file));
    drop(chain);
    let closed: Vec<PathBuf> = world.files_of(0).into_iter().take(files).collect();
    let notes = closed.iter().map(|path| last_of(path)).collect();
    for path in closed {
        fs::remove_file(path).unwrap();
    }
    (world, notes)
}

#[test]
fn whoever_adds_a_file_that_goes_on_from_an_old_note_is_found() {
    let lease = |number| Some(Term { number, lease_seconds: LEASE_SECONDS });
    let opens = |note: &Receipt, term| segment_opened(note, None, &Opening { term, ..Opening::default() });
    let goes_on = |note: &Receipt, term| file_continued(note, &"f".repeat(64), term);
    type First<'a> = &'a dyn Fn(&Receipt) -> serde_json::Map<String, Value>;
    // Term 1 was the second replica's, term 2 is that of all files that are left of the first one's.
    let rows: [(First<'_>, &str); 6] = [
        (&|_| record(0).as_object().unwrap().clone(), "neither opens a segment nor goes on from a full file"),
        (&|note| goes_on(note, lease(2)), "in the same term"),
        (&|note| opens(note, lease(2)), "in the same term"),
        (&|note| goes_on(note, lease(3)), "in the order of other terms"),
        (&|note| opens(note, lease(99)), "in the order of other terms"),
        (&|note| opens(note, lease(1)), "in the same term"),
    ];
    for (first, words) in rows {
        let (world, notes) = shipped(3, 30);
        assert!(verify_files(&world.files(), after(&notes[2..])).is_ok());
        let (stale, mut text) = (&notes[0], String::new());
        let late = world.now + SignedDuration::from_secs(3600);
        let head = Draft::new(&first(stale), late).unwrap().link(stale, &mut text);
        Draft::new(record(1).as_object().unwrap(), late).unwrap().link(&head, &mut text);
        fs::write(world.file(2), text).unwrap();
        world.finds(after(&notes), words);
        // Whoever gives what is needed and no more is not even asked.
        world.finds(after(&notes[2..]), "which is in none of the files");
    }
}

#[test]
fn a_writer_without_a_lease_has_one_part() {
    let mut text = String::new();
    let mut head = Receipt { sequence: 100, digest: "a".repeat(64) };
    let stale = Receipt { sequence: 50, digest: "b".repeat(64) };
    let needed = head.clone();
    for record in [file_continued(&head, &"c".repeat(64), None), record(1).as_object().unwrap().clone()] {
        head = Draft::new(&record, now()).unwrap().link(&head, &mut text);
    }
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("audit.jsonl"), &text).unwrap();
    let folder = [dir.path().to_owned()];
    let both = || after(&[stale.clone(), needed.clone()]);
    assert_eq!(verify_files(&folder, both()).unwrap().unused, std::slice::from_ref(&stale));
    for record in [file_continued(&stale, &"d".repeat(64), None), segment_opened(&stale, None, &Opening::default())] {
        let mut forged = String::new();
        Draft::new(&record, now()).unwrap().link(&stale, &mut forged);
        fs::write(dir.path().join("x.jsonl"), forged).unwrap();
        let error = verify_files(&folder, both()).unwrap_err();
        assert!(matches!(error.finding, Finding::SecondPart { .. }), "{error}");
    }
}

#[test]
fn what_can_be_added_to_an_old_note_all_the_same_is_told_as_a_part_and_is_no_head() {
    // The second replica leads last; all that it wrote before was shipped, and so were the first one's older files.
    let (mut world, notes) = shipped(3, 30);
    world.pass(3600);
    world.term(steps_down(1, 1));
    let closed = world.files_of(1).remove(0);
    let needed = [notes[2].clone(), last_of(&closed)];
    fs::remove_file(closed).unwrap();
    let before = verify_files(&world.files(), after(&needed)).unwrap();
    assert_eq!((before.parts.len(), before.unused.len()), (2, 0), "{before}");
    // A term that nothing here was written in, before all that is here.
    let (stale, mut text) = (&notes[0], String::new());
    let opening = segment_opened(
        stale,
        None,
        &Opening { term: Some(Term { number: 0, lease_seconds: 9 }), ..Opening::default() },
    );
    let late = world.now + SignedDuration::from_secs(3600);
    let forged = Draft::new(&opening, late).unwrap().link(stale, &mut text);
    fs::write(world.file(2), text).unwrap();
    let told = verify_files(&world.files(), after(&[&needed[..], std::slice::from_ref(stale)].concat())).unwrap();
    assert_eq!(told.head, before.head);
    let part = Part {
        after: Some(stale.clone()),
        records: 1,
        first: forged.clone(),
        first_time: late,
        last: forged,
        last_time: late,
    };
    assert_eq!(told.parts, [vec![part], before.parts].concat());
    let said = format!(
        "part: 1 records, from {0} at {late} to {0} at {late}; it goes on from {stale}, which is in none of the files\n",
        told.parts[0].first
    );
    assert!(told.to_string().contains(&said), "{told}");
}

#[test]
fn what_a_killed_leader_left_is_a_tail_though_the_file_that_opened_its_term_was_shipped() {
    let mut world = World { file_bytes_max: Some(1500), ..world() };
    world.term(steps_down(1, 1));
    leads(&mut world, 0, 30, 2);
    let files = world.files_of(0);
    assert!(files.len() > 5);
    world.term(steps_down(1, 1));
    let first = lines_of(&files[3]).remove(0);
    let first: Value = serde_json::from_str(&first).unwrap();
    assert_eq!((&first["record"]["kind"], &first["record"]["term"]), (&FILE_CONTINUED.into(), &2.into()));
    assert_eq!(first["record"]["leaseSeconds"], LEASE_SECONDS);
    let note = last_of(&files[2]);
    for path in &files[..3] {
        fs::remove_file(path).unwrap();
    }
    let summary =
        verify_files(&world.files(), after(std::slice::from_ref(&note))).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(summary.tails.iter().map(|tail| (tail.term, tail.records)).collect::<Vec<_>>(), [(2, 3)]);
    assert_eq!(summary.unused, []);
    // One record of those is what begins a file. A longer tail is none, as ever.
    let mut world = World { file_bytes_max: Some(1500), ..super::world() };
    leads(&mut world, 0, 30, 100);
    let files = world.files_of(0);
    world.term(steps_down(1, 1));
    let note = last_of(&files[0]);
    fs::remove_file(&files[0]).unwrap();
    world.finds(after(&[note]), "two led at once");
}

#[test]
fn a_file_that_goes_on_in_another_term_than_the_one_before_is_found() {
    let mut world = World { file_bytes_max: Some(1500), ..world() };
    world.term(steps_down(0, 5));
    let files = world.files_of(0);
    make_writable(&files);
    let (before, continued) = (&files[0], &files[1]);
    let mut lines = lines_of(continued);
    let mut head = last_of(before);
    let mut text = String::new();
    for (number, line) in lines.drain(..).enumerate() {
        let mut record = serde_json::from_str::<Value>(&line).unwrap()["record"].as_object().unwrap().clone();
        if number == 0 {
            assert_eq!(record.insert("term".into(), 7.into()), Some(1.into()));
        }
        head = Draft::new(&record, world.now).unwrap().link(&head, &mut text);
    }
    fs::write(continued, text).unwrap();
    let error = world.finds(Expectation::default(), "is not what a trail writes there");
    assert!(matches!(error.finding, Finding::Misjoined { .. }));
}

/// Runs this on a thread of its own, and fails if that is not done in time: it would wait for ever.
fn ends<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || sender.send(run()));
    receiver.recv_timeout(Duration::from_secs(60)).expect("it never ends")
}

#[test]
fn what_is_no_file_is_told_and_neither_waited_for_nor_left_out() {
    for is_link in [false, true] {
        let mut world = world();
        world.term(steps_down(0, 1));
        let strange = world.dir.path().join("strange");
        if is_link {
            std::os::unix::fs::symlink("/dev/zero", &strange).unwrap();
        } else {
            assert!(std::process::Command::new("mkfifo").arg(&strange).status().unwrap().success());
        }
        fs::create_dir(world.dir.path().join("lost+found")).unwrap();
        for given in [world.dir.path().to_owned(), strange.clone()] {
            let error = ends(move || verify_files(&[given], Expectation::default())).unwrap_err();
            assert!(matches!(error.finding, Finding::NotAFile), "{error}");
            assert_eq!(error.file.as_ref(), Some(&strange));
        }
        fs::remove_file(strange).unwrap();
        verify_files(&[world.dir.path().to_owned()], heads(&world.written)).unwrap();
    }
}

#[test]
fn a_line_without_an_end_is_read_no_further_than_a_line_may_be_long() {
    let mut world = world();
    world.term(steps_down(0, 1));
    let long = world.dir.path().join("long");
    // A hole of a tebibyte takes no room, and longer to read than anybody waits.
    fs::File::create(&long).unwrap().set_len(1 << 40).unwrap();
    let folder = world.dir.path().to_owned();
    let error = ends(move || verify_files(&[folder], Expectation::default())).unwrap_err();
    assert!(matches!(error.finding, Finding::TooLong) && error.file == Some(long), "{error}");
}

#[test]
fn a_file_that_is_closed_before_it_is_read_is_no_missing_file() {
    let mut world = World { file_bytes_max: Some(1500), ..world() };
    let (mut chain, opened) = world.open(0).unwrap();
    world.written.push(opened.head);
    let drafts = world.drafts(1);
    world.write(&mut chain, &drafts);
    let before = world.files();
    let folder = [world.dir.path().to_owned()];
    let error = crate::audit::verify::verify_while(&folder, Expectation::default(), || {
        while world.files().len() == before.len() {
            let drafts = world.drafts(1);
            world.write(&mut chain, &drafts);
        }
    })
    .unwrap_err();
    assert!(matches!(error.finding, Finding::Changed), "{error}");
    assert!(verify_files(&folder, heads(&world.written)).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn what_is_left_after_shipping_verifies_with_the_notes_that_it_needs_and_with_no_fewer(
        fates in prop::collection::vec(fate(), 1..7),
        shipped in prop::collection::vec(any::<prop::sample::Index>(), 3),
        file_bytes_max in 1..3000_u64,
    ) {
        let mut world = World { file_bytes_max: Some(file_bytes_max), ..world() };
        for fate in fates {
            world.term(fate);
        }
        let frozen = world.frozen.take();
        if let Some((mut chain, drafts)) = frozen {
            world.write(&mut chain, &drafts);
        }
        let whole = world.verified();
        // Of each replica the oldest ones, and never the open one.
        for (replica, shipped) in shipped.iter().enumerate() {
            let files = world.files_of(replica);
            for path in files.iter().take(if files.is_empty() { 0 } else { shipped.index(files.len()) }) {
                fs::remove_file(path).unwrap();
            }
        }
        let lines: Vec<String> = all_lines(&world.files()).into_iter().flat_map(|(_, lines)| lines).collect();
        let left: HashSet<Receipt> = lines.iter().map(|line| receipt_of(line)).collect();
        let mut notes: Vec<Receipt> = lines.iter().flat_map(|line| references(line))
            .map(|(sequence, digest)| Receipt { sequence, digest }).filter(|note| !left.contains(note)).collect();
        notes.sort_by_key(|note| (note.sequence, note.digest.clone()));
        notes.dedup();
        let heads: Vec<Receipt> = world.written.iter().filter(|head| left.contains(*head)).cloned().collect();
        let expect = |notes: &[Receipt]| Expectation { heads: heads.clone(), ..after(notes) };
        let summary = match verify_files(&world.files(), expect(&notes)) {
            Ok(summary) => summary,
            Err(error) => return Err(TestCaseError::fail(format!("{error}\n{}\n{notes:?}", lines.concat()))),
        };
        prop_assert_eq!((summary.records, &summary.unused), (lines.len() as u64, &vec![]));
        prop_assert!(summary.parts.is_empty() || summary.parts.iter().map(|part| part.records).sum::<i64>() == i64::try_from(summary.records).unwrap());
        if whole.head.as_ref().is_some_and(|head| left.contains(head)) {
            prop_assert_eq!(&summary.head, &whole.head);
        }
        for at in 0..notes.len() {
            let mut fewer = notes.clone();
            fewer.remove(at);
            prop_assert!(verify_files(&world.files(), expect(&fewer)).is_err());
        }
        let stale = Receipt { sequence: 1, digest: "0123456789abcdef".repeat(4) };
        let more = [notes, vec![stale.clone()]].concat();
        prop_assert_eq!(verify_files(&world.files(), expect(&more)).unwrap().unused, vec![stale]);
    }
}
