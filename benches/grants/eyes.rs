//! The benchmark's own watch over the requests: what happened to each, and when it was heard of.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::Context;
use futures::{TryStreamExt, pin_mut};
use jiff::Timestamp;
use kube::Client;
use kube::core::WatchEvent;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::objects::{Group, Light};

/// What happened to one request.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// When it was first seen usable.
    pub active: Option<Instant>,
    /// When it was first seen ended, by the wall clock.
    pub ended: Option<Timestamp>,
    /// The promised end, as last seen.
    pub expiration: Option<Timestamp>,
    /// The key, as the stand-in's journal names it.
    pub fingerprint: Option<String>,
    /// Changes that were seen.
    pub changes: u32,
    /// The last word of its conditions, for a failure's text.
    pub words: String,
}

#[derive(Debug, Default)]
struct Counts {
    active: usize,
    ended: usize,
}

#[derive(Debug, Default)]
struct Book {
    all: HashMap<String, Seen>,
    /// By what stands before the last `-` of the name: one phase each.
    phases: HashMap<String, Counts>,
    resumed: u32,
}

/// The watch.
#[derive(Debug)]
pub struct Eyes {
    book: Arc<Mutex<Book>>,
    news: watch::Receiver<u64>,
    task: JoinHandle<()>,
}

impl Drop for Eyes {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Eyes {
    /// Starts to watch.
    pub async fn open(client: Client, group: Group) -> anyhow::Result<Self> {
        let book = Arc::<Mutex<Book>>::default();
        let (heard, news) = watch::channel(0);
        let task = tokio::spawn({
            let book = Arc::clone(&book);
            async move {
                let mut version = "0".to_owned();
                loop {
                    if let Err(error) = look(&client, group, &mut version, &book, &heard).await {
                        // Whoever waits hears that the channel is closed.
                        eprintln!("bench: the watch over the requests broke: {error:#}");
                        return;
                    }
                    // The API server ends the watch of whoever reads slowly; nothing is lost, but it was heard of late.
                    book.lock().expect("no holder panics").resumed += 1;
                }
            }
        });
        Ok(Self { book, news, task })
    }

    /// How often the watch had to be taken up again.
    pub fn resumed(&self) -> u32 {
        self.lock().resumed
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().expect("no holder panics")
    }

    /// Waits until as many requests of a phase were seen active.
    pub async fn active(&self, phase: &str, count: usize, bound: Duration) -> anyhow::Result<()> {
        self.until(phase, "active", count, bound, |counts| counts.active).await
    }

    /// Waits until as many requests of a phase were seen ended.
    pub async fn ended(&self, phase: &str, count: usize, bound: Duration) -> anyhow::Result<()> {
        self.until(phase, "ended", count, bound, |counts| counts.ended).await
    }

    /// Waits until one request was seen active.
    pub async fn active_one(&self, name: &str, bound: Duration) -> anyhow::Result<()> {
        let mut news = self.news.clone();
        let waited = tokio::time::timeout(bound, async {
            while self.lock().all.get(name).is_none_or(|seen| seen.active.is_none()) {
                news.changed().await.context("the benchmark's watch is gone")?;
            }
            anyhow::Ok(())
        });
        waited.await.with_context(|| format!("{name} is not active after {bound:?}; {}", self.one(name).words))?
    }

    async fn until(
        &self,
        phase: &str,
        what: &str,
        count: usize,
        bound: Duration,
        look: impl Fn(&Counts) -> usize,
    ) -> anyhow::Result<()> {
        let mut news = self.news.clone();
        let reached = || self.lock().phases.get(phase).map_or(0, &look);
        let waited = tokio::time::timeout(bound, async {
            while reached() < count {
                news.changed().await.context("the benchmark's watch is gone")?;
            }
            anyhow::Ok(())
        });
        match waited.await {
            Ok(done) => done,
            Err(_) => {
                let last = self
                    .lock()
                    .all
                    .iter()
                    .filter(|(name, seen)| phase_of(name) == phase && seen.active.is_none())
                    .map(|(name, seen)| format!("{name}: {}", seen.words))
                    .next();
                anyhow::bail!(
                    "after {bound:?}, {} of {count} requests of phase {phase} are {what}; {}",
                    reached(),
                    last.unwrap_or_default()
                )
            }
        }
    }

    /// What happened to one request.
    pub fn one(&self, name: &str) -> Seen {
        self.lock().all.get(name).cloned().unwrap_or_default()
    }

    /// What happened to the requests of a phase, in no order.
    pub fn phase(&self, phase: &str) -> Vec<Seen> {
        self.lock().all.iter().filter(|(name, _)| phase_of(name) == phase).map(|(_, seen)| seen.clone()).collect()
    }

    /// What happened to all requests, in no order.
    pub fn all(&self) -> Vec<Seen> {
        self.lock().all.values().cloned().collect()
    }
}

/// The phase that a request's name tells.
pub fn phase_of(name: &str) -> &str {
    name.rsplit_once('-').map_or(name, |(phase, _)| phase)
}

/// Watches from a version on, until the API server ends it.
async fn look(
    client: &Client,
    group: Group,
    version: &mut String,
    book: &Mutex<Book>,
    heard: &watch::Sender<u64>,
) -> anyhow::Result<()> {
    // An hour: longer than the benchmark may take.
    let uri = format!("{}?watch=true&resourceVersion={version}&timeoutSeconds=3600", group.requests());
    let events = client.request_events::<Light>(http::Request::get(uri).body(Vec::new())?).await?;
    pin_mut!(events);
    while let Some(event) = events.try_next().await? {
        match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                version.clone_from(&object.metadata.resource_version);
                note(book, object);
                heard.send_modify(|count| *count += 1);
            }
            WatchEvent::Deleted(_) | WatchEvent::Bookmark(_) => {}
            WatchEvent::Error(status) => anyhow::bail!("{}", status.message),
        }
    }
    Ok(())
}

fn note(book: &Mutex<Book>, object: Light) {
    let (now, wall) = (Instant::now(), Timestamp::now());
    let mut book = book.lock().expect("no holder panics");
    let Book { all, phases, resumed: _ } = &mut *book;
    let Light { metadata, status } = object;
    let seen = all.entry(metadata.name.clone()).or_default();
    let counts = phases.entry(phase_of(&metadata.name).to_owned()).or_default();
    seen.changes += 1;
    if seen.active.is_none() && status.holds("Active") {
        seen.active = Some(now);
        counts.active += 1;
    }
    if seen.ended.is_none() && status.holds("Ended") {
        seen.ended = Some(wall);
        counts.ended += 1;
    }
    if let Some(last) = status.conditions.last() {
        seen.words = format!("{}={} {}: {}", last.type_, last.status, last.reason, last.message);
    }
    seen.expiration = status.grant.map(|grant| grant.expiration_time).or(seen.expiration);
    seen.fingerprint = status.key.map(|key| key.fingerprint).or(seen.fingerprint.take());
}
