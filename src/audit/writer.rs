//! The writer's thread: takes all that waits, links it, writes once, syncs once, answers all.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tokio::sync::{mpsc, oneshot};

use super::Receipt;
use super::line::{Draft, INTEGER_MAX};
use super::store::{Copier, Store};
use super::trail::{AppendError, Shared};

/// The chain's end, and where it is kept.
pub(super) struct Chain {
    store: Box<dyn Store>,
    head: Receipt,
    /// The length up to which every byte was synced. Only whole lines.
    bytes_durable: u64,
    /// Whether there may be anything behind `bytes_durable`, or an unsynced truncation.
    doubtful: bool,
}

impl Chain {
    /// Continues `head`, which ends at `bytes_durable` of the store.
    pub fn new(store: Box<dyn Store>, head: Receipt, bytes_durable: u64) -> Self {
        Chain { store, head, bytes_durable, doubtful: false }
    }

    pub fn head(&self) -> &Receipt {
        &self.head
    }

    /// Links drafts, makes them durable, and returns their lines and receipts: all or none.
    ///
    /// After an error the chain ends where it ended before. A failed fsync is not tried again on the same bytes: the
    /// kernel has by then marked them clean, and a second fsync would succeed without writing them; and reading them
    /// back would show the cache, not the disk. They are cut off instead, the cut is synced, and only then does the
    /// next batch write at that place. As long as the cut fails, so does every commit.
    pub fn commit<'a>(&mut self, drafts: impl Iterator<Item = &'a Draft>) -> io::Result<(String, Vec<Receipt>)> {
        self.take_back()?;
        self.store.check(self.bytes_durable)?;
        let (mut text, mut receipts) = (String::new(), Vec::new());
        for draft in drafts {
            let previous = receipts.last().unwrap_or(&self.head);
            if previous.sequence >= INTEGER_MAX {
                return Err(io::Error::other("its numbers are used up; begin a new trail"));
            }
            let receipt = draft.link(previous, &mut text);
            receipts.push(receipt);
        }
        self.doubtful = true;
        if let Err(error) = self.write(text.as_bytes()) {
            let _ = self.take_back(); // if this fails too, the next commit begins with it
            return Err(error);
        }
        self.doubtful = false;
        self.bytes_durable += text.len() as u64;
        if let Some(last) = receipts.last() {
            self.head.clone_from(last);
        }
        Ok((text, receipts))
    }

    fn write(&mut self, text: &[u8]) -> io::Result<()> {
        let mut written = 0;
        while written < text.len() {
            match self.store.write_at(&text[written..], self.bytes_durable + written as u64) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => written += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.store.sync()
    }

    fn take_back(&mut self) -> io::Result<()> {
        if self.doubtful {
            self.store.truncate(self.bytes_durable)?;
            self.store.sync()?;
            self.doubtful = false;
        }
        Ok(())
    }
}

pub(super) type Answer = Result<Receipt, AppendError>;

/// What a trail's handles say to its thread.
#[derive(Debug)]
pub(super) enum Message {
    Append(Draft, oneshot::Sender<Answer>),
    Close(oneshot::Sender<()>),
}

/// Runs until a `Close`, or until the last handle is gone; both let what is queued be written first.
pub(super) fn run(
    mut chain: Chain,
    mut queue: mpsc::Receiver<Message>,
    copier: Option<Copier>,
    shared: &Shared,
    sink: &Arc<str>,
) {
    let mut closers = Vec::new();
    while let Some(first) = queue.blocking_recv() {
        let mut batch = Vec::new();
        let mut next = Some(first);
        while let Some(message) = next {
            match message {
                Message::Append(draft, answer) => batch.push((draft, answer)),
                Message::Close(closer) => {
                    queue.close();
                    closers.push(closer);
                }
            }
            // What arrives while we take waits for the next batch, or a flood would put off every answer.
            next = if batch.len() < shared.limits.queue_records_max { queue.try_recv().ok() } else { None };
        }
        if !batch.is_empty() {
            commit(&mut chain, batch, copier.as_ref(), shared, sink);
        }
    }
    drop(chain); // lets go of the lock before anyone hears that we are closed
    if let Some(copier) = copier {
        copier.close();
    }
    for closer in closers {
        let _ = closer.send(()); // nobody may be waiting any more
    }
}

fn commit(
    chain: &mut Chain,
    batch: Vec<(Draft, oneshot::Sender<Answer>)>,
    copier: Option<&Copier>,
    shared: &Shared,
    sink: &Arc<str>,
) {
    let start = Instant::now();
    let committed = chain.commit(batch.iter().map(|(draft, _)| draft));
    let records = batch.len() as u64;
    let bytes = batch.iter().map(|(draft, _)| draft.bytes()).sum();
    shared.leave_queue(batch.len(), bytes);
    // The future behind an answer may be gone; its record stays.
    match committed {
        Ok((text, receipts)) => {
            shared.commit_micros_last.store(micros(start), Ordering::Relaxed);
            shared.commits.fetch_add(1, Ordering::Relaxed);
            shared.appended.fetch_add(records, Ordering::Relaxed);
            shared.set_head(chain.head());
            for ((_, answer), receipt) in batch.into_iter().zip(receipts) {
                let _ = answer.send(Ok(receipt));
            }
            if copier.is_some_and(|copier| !copier.copy(text)) {
                shared.copies_dropped.fetch_add(records, Ordering::Relaxed);
            }
        }
        Err(source) => {
            shared.failed.fetch_add(records, Ordering::Relaxed);
            let error = AppendError::Unavailable { sink: sink.clone(), source: Arc::new(source) };
            for (_, answer) in batch {
                let _ = answer.send(Err(error.clone()));
            }
        }
    }
}

fn micros(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX)
}
