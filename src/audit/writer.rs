//! The writer's thread: takes all that waits, links it, writes once, syncs once, answers all.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tokio::sync::{mpsc, oneshot};

use super::Receipt;
use super::files;
use super::line::{self, Draft, ENVELOPE_BYTES_MAX, INTEGER_MAX, Term};
use super::open::STANDARD_OUTPUT;
use super::store::{Copier, Store};
use super::trail::{AppendError, Place, Shared};

/// By how much a file that could not be closed grows before that is tried again: some thousand records, so that a folder that
/// takes no names is not asked with each.
const CLOSE_AGAIN_BYTES: u64 = 1 << 20;

/// The chain's end, and where it is kept.
pub(super) struct Chain {
    store: Box<dyn Store>,
    head: Receipt,
    /// The length up to which every byte was synced. Only whole lines.
    bytes_durable: u64,
    /// Whether there may be anything behind `bytes_durable`, or an unsynced truncation.
    doubtful: bool,
    /// The first line of the open file; none if it has none yet, or its first line is none.
    first: Option<Receipt>,
    /// Whether this is standard output, which is no file.
    is_output: bool,
    /// The leader's term in which this is written; none for a writer that is alone.
    term: Option<Term>,
    /// The file before, by its first line's digest, as long as the open one does not say that it goes on from it.
    previous_file: Option<String>,
    /// Before it would grow beyond, the open file is closed.
    file_bytes_max: Option<u64>,
    /// No other try to close the open file before it is that long.
    close_again_at: u64,
    files_closed: u64,
    file_close_failures: u64,
}

impl Chain {
    /// Continues `head`, which ends at `bytes_durable` of the store.
    pub fn new(store: Box<dyn Store>, head: Receipt, bytes_durable: u64) -> Self {
        Chain {
            store,
            head,
            bytes_durable,
            doubtful: false,
            first: None,
            is_output: false,
            term: None,
            previous_file: None,
            file_bytes_max: None,
            close_again_at: 0,
            files_closed: 0,
            file_close_failures: 0,
        }
    }

    /// The same, in a file that begins with this line.
    pub fn in_file(mut self, first: Option<Receipt>) -> Self {
        self.first = first;
        self
    }

    /// The same, on standard output.
    pub fn on_output(mut self) -> Self {
        self.is_output = true;
        self
    }

    /// The same, by the leader of this term.
    pub fn in_term(mut self, term: Option<Term>) -> Self {
        self.term = term;
        self
    }

    /// The same, and from now on a file that is full is closed. Standard output never is.
    pub fn closing_files_at(mut self, file_bytes_max: Option<u64>) -> Self {
        self.file_bytes_max = file_bytes_max.filter(|_| !self.is_output);
        self
    }

    pub fn head(&self) -> &Receipt {
        &self.head
    }

    /// The head, and the file that it stands in: of a new one that has no line yet, the one before.
    pub fn place(&self) -> Place {
        let file = match &self.previous_file {
            _ if self.is_output => STANDARD_OUTPUT.to_owned(),
            Some(file) => file.clone(),
            None => self.first.as_ref().map(|first| first.digest.clone()).unwrap_or_default(),
        };
        Place { head: self.head.clone(), file }
    }

    /// How many bytes the open file has.
    pub fn bytes(&self) -> u64 {
        self.bytes_durable
    }

    /// How many files were closed, and how often one could not be.
    pub fn closings(&self) -> (u64, u64) {
        (self.files_closed, self.file_close_failures)
    }

    /// Links drafts, makes them durable, and returns their lines and receipts: all or none.
    ///
    /// After an error the chain ends where it ended before. A failed fsync is not tried again on the same bytes: the
    /// kernel has by then marked them clean, and a second fsync would succeed without writing them; and reading them
    /// back would show the cache, not the disk. They are cut off instead, the cut is synced, and only then does the
    /// next batch write at that place. As long as the cut fails, so does every commit.
    ///
    /// A file that is full is closed before, and the new one begins with a line that names it. That line is in the text, and
    /// has no receipt. A file that cannot be closed grows on: nothing is refused for that, but as long as it has not its name
    /// back, and durably.
    pub fn commit<'a>(
        &mut self,
        drafts: impl Iterator<Item = &'a Draft> + Clone,
    ) -> io::Result<(String, Vec<Receipt>)> {
        self.take_back()?;
        self.store.check(self.bytes_durable)?;
        if self.close_if_full(drafts.clone().map(|draft| (draft.bytes() + ENVELOPE_BYTES_MAX) as u64).sum()) {
            self.store.check(self.bytes_durable)?; // of the new one; or the full one is put back
        }
        let (mut text, mut receipts, mut head) = (String::new(), Vec::new(), self.head.clone());
        let continued = match (&self.previous_file, drafts.clone().next()) {
            (Some(file), Some(draft)) => {
                let record = line::file_continued(&head, file, self.term);
                Some(Draft::new(&record, draft.time()).map_err(io::Error::other)?)
            }
            (Some(_) | None, _) => None,
        };
        let mut first = None;
        for (draft, is_asked) in continued.iter().map(|draft| (draft, false)).chain(drafts.map(|it| (it, true))) {
            if head.sequence >= INTEGER_MAX {
                return Err(io::Error::other("its numbers are used up; begin a new trail"));
            }
            head = draft.link(&head, &mut text);
            first.get_or_insert_with(|| head.clone());
            if is_asked {
                receipts.push(head.clone());
            }
        }
        self.doubtful = true;
        if let Err(error) = self.write(text.as_bytes()) {
            let _ = self.take_back(); // if this fails too, the next commit begins with it
            return Err(error);
        }
        self.doubtful = false;
        if self.bytes_durable == 0 {
            self.first = first;
        }
        self.bytes_durable += text.len() as u64;
        self.head = head;
        if !text.is_empty() {
            self.previous_file = None;
        }
        Ok((text, receipts))
    }

    /// Closes the open file, if it would grow too long by so many bytes. Returns whether that was tried.
    fn close_if_full(&mut self, more: u64) -> bool {
        let Some(bytes_max) = self.file_bytes_max else { return false };
        if self.bytes_durable < self.close_again_at || !files::is_full(self.bytes_durable, more, bytes_max) {
            return false;
        }
        match self.first.as_ref().map(|first| self.store.close(first)) {
            Some(Ok(())) => {
                self.files_closed += 1;
                self.close_again_at = 0;
                self.bytes_durable = 0;
                self.previous_file = self.first.take().map(|first| first.digest);
            }
            // A file whose first line is none has no name.
            Some(Err(_)) | None => {
                self.file_close_failures += 1;
                self.close_again_at = self.bytes_durable.saturating_add(CLOSE_AGAIN_BYTES);
            }
        }
        true
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
            shared.note(chain);
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
