//! Disks that fill up, fail, and heal.

use std::fs;
use std::io::{self, Write};
use std::process::Command;
use std::sync::mpsc;

use futures::future::join_all;

use super::super::store::{Copier, FileStore, OnDisk, OutputStore, Store};
use super::super::writer::Chain;
use super::super::{AppendError, Class, Limits, Receipt, Trail, verify};
use super::{Disk, heads, now, open, record, verified};

#[track_caller]
fn unavailable(result: Result<Receipt, AppendError>) {
    let error = result.expect_err("this disk takes nothing");
    assert!(matches!(error, AppendError::Unavailable { .. }), "{error}");
    assert_eq!(error.class(), Class::Retry);
    assert!(std::error::Error::source(&error).is_some());
}

#[tokio::test]
async fn a_full_disk_keeps_no_partial_line_and_heals_by_itself() {
    let disk = Disk::default();
    let trail = disk.trail();
    let first = trail.append(record(1), now()).await.unwrap();
    let durable = disk.platter().written.len();
    for room in [durable, durable + 1, durable + 100] {
        disk.platter().room = Some(room);
        unavailable(trail.append(record(2), now()).await);
        assert_eq!(disk.platter().written.len(), durable);
        assert_eq!(trail.head(), first);
    }
    disk.platter().room = None;
    let second = trail.append(record(3), now()).await.unwrap();
    assert_eq!(second.sequence, 2);
    assert_eq!(disk.verified(&[first, second]).records, 2);
    let stats = trail.stats();
    assert_eq!((stats.appended, stats.failed, stats.commits), (2, 3, 2));
}

#[tokio::test]
async fn short_writes_are_completed() {
    let disk = Disk::default();
    disk.platter().write_bytes_max = Some(7);
    let trail = disk.trail();
    let receipts = join_all((0..5).map(|number| trail.append(record(number), now()))).await;
    let receipts: Vec<_> = receipts.into_iter().map(Result::unwrap).collect();
    assert_eq!(disk.verified(&receipts).records, 5);
}

#[tokio::test]
async fn after_a_failed_sync_the_bytes_are_written_anew_and_never_just_synced_again() {
    let disk = Disk::default();
    let trail = disk.trail();
    let first = trail.append(record(1), now()).await.unwrap();
    disk.platter().syncs_to_fail = 1;
    unavailable(trail.append(record(2), now()).await);
    assert_eq!(disk.verified(std::slice::from_ref(&first)).records, 1);
    assert_eq!(disk.syncs(), 3, "the cut was not synced");
    let second = trail.append(record(3), now()).await.unwrap();
    assert_eq!(disk.verified(&[first, second]).records, 2);
}

#[tokio::test]
async fn nothing_is_written_behind_bytes_that_could_not_be_taken_back() {
    let disk = Disk::default();
    let trail = disk.trail();
    let first = trail.append(record(1), now()).await.unwrap();
    // The write's own sync, then the taking back twice by truncation and once by its sync.
    disk.platter().syncs_to_fail = 1;
    disk.platter().truncates_to_fail = 2;
    unavailable(trail.append(record(2), now()).await);
    assert_eq!(verify(disk.platter().written.as_slice(), heads(&[])).unwrap().records, 2, "the caveat of the room");
    unavailable(trail.append(record(3), now()).await);
    disk.platter().syncs_to_fail = 1;
    unavailable(trail.append(record(4), now()).await);
    let second = trail.append(record(5), now()).await.unwrap();
    assert_eq!(second.sequence, 2);
    assert_eq!(disk.verified(&[first, second]).records, 2);
}

#[tokio::test]
async fn a_batch_fails_or_succeeds_as_a_whole() {
    let disk = Disk::default();
    let (trail, gate) = (disk.trail(), disk.shut());
    // What is queued while the thread waits for this one's sync is one batch.
    let mut first = Box::pin(trail.append(record(0), now()));
    assert!(futures::poll!(&mut first).is_pending());
    while disk.platter().written.is_empty() {
        tokio::task::yield_now().await;
    }
    disk.platter().room = Some(1000); // room for some of the batch
    let appends = join_all((1..=20).map(|number| trail.append(record(number), now())));
    let (first, results, ()) = futures::join!(first, appends, async { drop(gate) });
    assert_eq!(results.len(), 20);
    results.into_iter().for_each(unavailable);
    assert_eq!(disk.verified(&[first.unwrap()]).records, 1);
}

#[tokio::test]
async fn a_file_that_is_replaced_or_touched_under_its_writer_takes_no_records_until_it_is_back() {
    let directory = tempfile::tempdir().unwrap();
    let (path, away) = (directory.path().join("audit.jsonl"), directory.path().join("audit.1"));
    let (trail, opened) = open(&path).await.unwrap();

    fs::rename(&path, &away).unwrap();
    unavailable(trail.append(record(1), now()).await);
    fs::write(&path, "").unwrap();
    unavailable(trail.append(record(1), now()).await);
    fs::rename(&away, &path).unwrap();
    let first = trail.append(record(1), now()).await.unwrap();

    let whole = fs::read(&path).unwrap();
    fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{}\n").unwrap();
    unavailable(trail.append(record(2), now()).await);
    assert_eq!(fs::read(&path).unwrap().len(), whole.len() + 3, "what another wrote is evidence, and stays");
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(whole.len() as u64).unwrap();
    let second = trail.append(record(2), now()).await.unwrap();
    trail.close().await;
    assert_eq!(verified(&path, &[opened.head, first, second]).records, 3);
}

#[test]
fn taking_back_never_fills_up_a_file_that_someone_else_cut() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    let file = fs::OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
    let mut store = FileStore::new(path.clone(), file, Box::new(OnDisk));
    assert_eq!(store.write_at(b"12345", 0).unwrap(), 5);
    assert!(store.truncate(6).is_err());
    store.truncate(4).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"1234");
}

/// A small disk of its own, for root; others have the one in memory.
struct Mount(tempfile::TempDir);

impl Mount {
    fn new() -> Option<Mount> {
        let directory = tempfile::tempdir().unwrap();
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"]).arg(directory.path()).output();
        mounted.is_ok_and(|output| output.status.success()).then_some(Mount(directory))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).output();
    }
}

#[tokio::test]
async fn a_real_disk_fills_up_and_heals() {
    let Some(mount) = Mount::new() else {
        return; // not root, or no mounts here
    };
    let (path, ballast) = (mount.0.path().join("audit.jsonl"), mount.0.path().join("ballast"));
    let (trail, opened) = open(&path).await.unwrap();
    let mut receipts = vec![opened.head];
    fs::write(&ballast, vec![1; 40 << 10]).unwrap();
    let error = loop {
        match trail.append(record(receipts.len()), now()).await {
            Ok(receipt) => receipts.push(receipt),
            Err(error) => break error,
        }
    };
    let AppendError::Unavailable { source, .. } = error else { panic!("{error}") };
    assert_eq!(source.kind(), io::ErrorKind::StorageFull);
    assert_eq!(verified(&path, &receipts).records, receipts.len() as u64);
    fs::remove_file(ballast).unwrap();
    receipts.push(trail.append(record(0), now()).await.unwrap());
    trail.close().await;
    assert_eq!(verified(&path, &receipts).records, receipts.len() as u64);
}

/// An output that takes so many bytes and then breaks.
struct Output {
    room: usize,
    taken: mpsc::Sender<Vec<u8>>,
}

impl Write for Output {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        let taken = text.len().min(self.room);
        if taken == 0 {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.room -= taken;
        let _ = self.taken.send(text[..taken].to_vec());
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn an_output_that_broke_off_in_a_line_takes_no_more() {
    let (taken, texts) = mpsc::channel();
    let store = OutputStore::new(Output { room: 400, taken });
    let trail = Trail::on(Chain::new(Box::new(store), Receipt::origin(), 0), None, Limits::default());
    let first = trail.append(record(1), now()).await.unwrap();
    unavailable(trail.append(record(2), now()).await);
    unavailable(trail.append(record(3), now()).await);
    trail.close().await;
    let text = texts.iter().collect::<Vec<_>>().concat();
    let whole = text.iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
    assert_eq!(verify(&text[..whole], heads(&[first])).unwrap().records, 1);
}

#[tokio::test]
async fn a_copy_holds_what_the_file_holds_and_its_failure_stops_nothing() {
    let (taken, texts) = mpsc::channel();
    let (disk, copier) = (Disk::default(), Copier::start(Output { room: 1000, taken }).unwrap());
    let chain = Chain::new(Box::new(disk.clone()), Receipt::origin(), 0);
    let trail = Trail::on(chain, Some(copier), Limits::default());
    let mut receipts = Vec::new();
    while trail.stats().copies_dropped == 0 {
        receipts.push(trail.append(record(receipts.len()), now()).await.unwrap());
    }
    trail.close().await;
    let copied = texts.iter().collect::<Vec<_>>().concat();
    assert_eq!(copied, disk.platter().written[..1000]);
    assert_eq!(disk.verified(&receipts).records, receipts.len() as u64);
}
