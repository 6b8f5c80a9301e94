//! The world of these tests: a disk that fails as it is told to, and trails on it and on real files.

mod closing;
mod crash;
mod faults;
mod joins;
mod order;
mod rotation;
mod spelling;
mod tamper;

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, mpsc};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::line::{Draft, Opening, segment_opened};
use super::store::Store;
use super::writer::Chain;
use super::{Begin, Expectation, Limits, OpenError, Opened, Receipt, Sinks, Summary, Trail, verify, verify_files};

fn now() -> Timestamp {
    Timestamp::from_second(1_772_355_600).unwrap()
}

fn record(number: usize) -> Value {
    json!({ "kind": "Pushed", "number": number, "osUser": "ec2-user" })
}

fn begin() -> Begin {
    Begin { now: now(), known_head: None, leader: None }
}

async fn open(path: &Path) -> Result<(Trail, Opened), OpenError> {
    open_after(path, None).await
}

async fn open_after(path: &Path, known_head: Option<Receipt>) -> Result<(Trail, Opened), OpenError> {
    let sinks = Sinks { file: Some(path.to_owned()), stdout: false };
    Trail::open(sinks, Limits::default(), Begin { known_head, ..begin() }).await
}

/// Writes a trail of one segment and `records` records, and returns all receipts.
async fn write_segment(path: &Path, records: usize) -> Vec<Receipt> {
    let (trail, opened) = open(path).await.unwrap();
    let mut receipts = vec![opened.head];
    for number in 0..records {
        receipts.push(trail.append(record(number), now()).await.unwrap());
    }
    trail.close().await;
    receipts
}

/// Returns the text of a trail, without a disk: `segments` of one opening and `records` records each.
fn text(segments: usize, records: usize) -> (String, Vec<Receipt>) {
    let (mut text, mut head, mut receipts) = (String::new(), Receipt::origin(), Vec::new());
    for _ in 0..segments {
        let opening = Draft::new(&segment_opened(&head, None, &Opening::default()), now()).unwrap();
        let records = (0..records).map(|number| draft(&record(number)));
        for draft in std::iter::once(opening).chain(records) {
            head = draft.link(&head, &mut text);
            receipts.push(head.clone());
        }
    }
    (text, receipts)
}

fn draft(record: &Value) -> Draft {
    Draft::new(record.as_object().unwrap(), now()).unwrap()
}

fn heads(heads: &[Receipt]) -> Expectation {
    Expectation { heads: heads.to_vec(), ..Expectation::default() }
}

#[track_caller]
fn verified(path: &Path, receipts: &[Receipt]) -> Summary {
    verify_files(&[path.to_owned()], heads(receipts)).unwrap_or_else(|error| panic!("{error}"))
}

/// A disk in memory. `store()` is a hand on it; the test keeps another.
#[derive(Debug, Clone, Default)]
struct Disk(Arc<Mutex<Platter>>);

#[derive(Debug, Default)]
struct Platter {
    written: Vec<u8>,
    /// Bytes that fit.
    room: Option<usize>,
    /// The most that one write takes.
    write_bytes_max: Option<usize>,
    syncs: usize,
    /// How many of the next syncs, and truncations, fail.
    syncs_to_fail: usize,
    truncates_to_fail: usize,
    closes_to_fail: usize,
    closed: Vec<Vec<u8>>,
    /// A sync waits for this, once.
    gate: Option<mpsc::Receiver<()>>,
}

impl Disk {
    fn platter(&self) -> MutexGuard<'_, Platter> {
        self.0.lock().unwrap()
    }

    fn syncs(&self) -> usize {
        self.platter().syncs
    }

    fn trail(&self) -> Trail {
        self.trail_within(Limits::default())
    }

    fn trail_within(&self, limits: Limits) -> Trail {
        Trail::on(Chain::new(Box::new(self.clone()), Receipt::origin(), 0), None, limits)
    }

    /// Makes the next sync wait until the sender sends, or is dropped.
    fn shut(&self) -> mpsc::Sender<()> {
        let (sender, gate) = mpsc::channel();
        self.platter().gate = Some(gate);
        sender
    }

    #[track_caller]
    fn verified(&self, receipts: &[Receipt]) -> Summary {
        verify(self.platter().written.as_slice(), heads(receipts)).unwrap_or_else(|error| panic!("{error}"))
    }
}

impl Store for Disk {
    fn check(&mut self, bytes: u64) -> io::Result<()> {
        assert_eq!(self.platter().written.len() as u64, bytes, "something stayed behind the last durable line");
        Ok(())
    }

    fn write_at(&mut self, text: &[u8], offset: u64) -> io::Result<usize> {
        let mut platter = self.platter();
        assert_eq!(platter.written.len() as u64, offset, "a write overlaps, or leaves a hole");
        let room = platter.room.map_or(text.len(), |room| room.saturating_sub(platter.written.len()));
        let taken = text.len().min(room).min(platter.write_bytes_max.unwrap_or(usize::MAX));
        platter.written.extend_from_slice(&text[..taken]);
        if taken == 0 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(taken) }
    }

    fn sync(&mut self) -> io::Result<()> {
        let gate = self.platter().gate.take();
        if let Some(gate) = gate {
            let _ = gate.recv();
        }
        let mut platter = self.platter();
        platter.syncs += 1;
        fail(&mut platter.syncs_to_fail)
    }

    fn truncate(&mut self, bytes: u64) -> io::Result<()> {
        let mut platter = self.platter();
        fail(&mut platter.truncates_to_fail)?;
        platter.written.truncate(usize::try_from(bytes).unwrap());
        Ok(())
    }

    fn close(&mut self, _first: &Receipt) -> io::Result<()> {
        let mut platter = self.platter();
        fail(&mut platter.closes_to_fail)?;
        let full = std::mem::take(&mut platter.written);
        platter.closed.push(full);
        Ok(())
    }
}

fn fail(times: &mut usize) -> io::Result<()> {
    match times.checked_sub(1) {
        None => Ok(()),
        Some(left) => {
            *times = left;
            Err(io::Error::from_raw_os_error(5)) // EIO
        }
    }
}
