//! When a gateway writes its entry of `status.sessions`: at once, and then seldom.
//!
//! ```text
//! a session opens or closes ─┐
//! what the API server has ───┼─▶ Reports ─ next(now) ─▶ Write(the newest truth of one request) | At(time) | Rest
//! a write came to this end ──┘
//! ```
//! Of each request the newest truth counts, and no older one is ever written: a thousand sessions that open and close
//! between two writes are one write.
//!
//! # Guarantees
//! - Of one request at most one write in [`REPORT_GAP`]; of all together [`RATE_PER_SECOND`], after a burst of as many.
//! - What is true when nothing changes any more is written in the end, for as long as the request is there.
//!
//! # Caveats
//! Of a request no more is remembered than one small entry while the API server has it and the gateway has one in it. Two
//! gateways of one name overwrite each other; each yields more and more.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::api::{InstanceAccess, SESSIONS_TOTAL_MAX, SessionReport};
use crate::domain::record::RequestRef;
use crate::domain::time::whole_second;

/// The shortest gap between two writes of one request. Who looks at a table does so every few seconds; whoever opens and
/// closes sessions without end costs six writes a minute.
pub const REPORT_GAP: Duration = Duration::from_secs(10);
/// Writes a second, of all requests: a fortieth of what an API server on two cores does, by our benchmark.
const RATE_PER_SECOND: u32 = 10;
/// The gap between two writes by that.
const PACE: Duration = Duration::from_millis(1000 / RATE_PER_SECOND as u64);
/// After how many doublings of [`REPORT_GAP`] the wait after failures grows no more: five minutes.
const DOUBLINGS_MAX: u32 = 5;
/// The longest name of a gateway: a field manager of 128 bytes holds it, behind its own prefix.
const NAME_LENGTH_MAX: usize = 100;

/// Sessions of one grant through this gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionCount {
    /// Open now.
    pub open: i32,
    /// Opened so far, also by those who had the gateway's name before.
    pub total: i64,
    /// When the last one was opened, a whole second.
    pub last_start_time: Timestamp,
}

/// What is to be written now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Into which request.
    pub request: RequestRef,
    /// What.
    pub count: SessionCount,
}

/// What to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Write this, and tell what came of it.
    Write(Report),
    /// Ask again then.
    At(Instant),
    /// Nothing, until something changes.
    Rest,
}

/// What came of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// It is stored, in this version of the request.
    Stored {
        /// The resourceVersion as a number, if it is one.
        version: Option<u64>,
    },
    /// The request is not there any more, or another one has its name.
    Gone,
    /// It is not stored, or nobody knows.
    Failed,
}

/// What is true of each request, what the API server has of it, and when the next write is due.
#[derive(Debug, Default)]
pub struct Reports {
    by_uid: HashMap<String, Tally>,
    /// Those that differ from what the API server has, by when they may be written; the one that waits longest is first.
    queue: BTreeSet<(Instant, String)>,
    /// When the burst is whole again.
    rests_from: Option<Instant>,
    hurries: bool,
}

#[derive(Debug)]
struct Tally {
    request: RequestRef,
    truth: SessionCount,
    stored: Option<SessionCount>,
    version: Option<u64>,
    in_flight: Option<SessionCount>,
    not_before: Option<Instant>,
    queued: Option<Instant>,
    failures: u32,
    /// Times that somebody else wrote this gateway's entry.
    disputes: u32,
}

impl Tally {
    fn new(request: RequestRef, truth: SessionCount) -> Self {
        Self {
            request,
            truth,
            stored: None,
            version: None,
            in_flight: None,
            not_before: None,
            queued: None,
            failures: 0,
            disputes: 0,
        }
    }

    fn is_settled(&self) -> bool {
        self.in_flight.is_none() && self.stored.as_ref() == Some(&self.truth)
    }
}

impl Reports {
    /// A session was opened.
    pub fn opened(&mut self, now: Instant, request: &RequestRef, start_time: Timestamp) {
        let last_start_time = whole_second(start_time);
        let tally = self
            .by_uid
            .entry(request.uid.clone())
            .or_insert_with(|| Tally::new(request.clone(), SessionCount { open: 0, total: 0, last_start_time }));
        let truth = &mut tally.truth;
        truth.open = truth.open.saturating_add(1);
        truth.total = truth.total.saturating_add(1).min(SESSIONS_TOTAL_MAX);
        truth.last_start_time = truth.last_start_time.max(last_start_time);
        self.settle(now, &request.uid);
    }

    /// A session was closed.
    pub fn closed(&mut self, now: Instant, uid: &str) {
        let Some(tally) = self.by_uid.get_mut(uid) else { return };
        tally.truth.open = tally.truth.open.saturating_sub(1).max(0);
        self.settle(now, uid);
    }

    /// The API server has this of a request, in this version.
    ///
    /// An entry that nobody here wrote is of a life before this one: its sessions are gone, and its total goes on.
    pub fn seen(&mut self, now: Instant, request: &RequestRef, version: Option<u64>, stored: Option<SessionCount>) {
        match (self.by_uid.get_mut(&request.uid), stored) {
            (None, None) => return,
            (None, Some(stored)) => {
                let mut tally = Tally::new(request.clone(), SessionCount { open: 0, ..stored.clone() });
                (tally.stored, tally.version) = (Some(stored), version);
                self.by_uid.insert(request.uid.clone(), tally);
            }
            (Some(tally), stored) => {
                if version.zip(tally.version).is_some_and(|(seen, known)| seen <= known) {
                    return;
                }
                tally.version = version;
                if tally.stored == stored {
                    return;
                }
                // Our own write may be heard of before it is answered.
                let is_ours = stored.is_some() && (tally.in_flight == stored || stored.as_ref() == Some(&tally.truth));
                if !is_ours {
                    tally.disputes = tally.disputes.saturating_add(1);
                    tally.not_before = later(tally.not_before, now + wait(tally.disputes));
                }
                if let Some(stored) = &stored {
                    tally.truth.total = tally.truth.total.max(stored.total);
                    tally.truth.last_start_time = tally.truth.last_start_time.max(stored.last_start_time);
                }
                tally.stored = stored;
            }
        }
        self.settle(now, &request.uid);
    }

    /// The request is gone.
    pub fn gone(&mut self, uid: &str) {
        if let Some(tally) = self.by_uid.remove(uid)
            && let Some(queued) = tally.queued
        {
            self.queue.remove(&(queued, tally.request.uid));
        }
    }

    /// A list was read to its end: whoever is not on it is gone.
    pub fn listed<S: std::borrow::Borrow<str> + std::hash::Hash + Eq>(&mut self, uids: &HashSet<S>) {
        let gone: Vec<String> = self.by_uid.keys().filter(|uid| !uids.contains(uid.as_str())).cloned().collect();
        for uid in gone {
            self.gone(&uid);
        }
    }

    /// Says what to write now, if anything.
    pub fn next(&mut self, now: Instant) -> Next {
        let Some((due, uid)) = self.queue.first().cloned() else { return Next::Rest };
        let ahead = self.rests_from.map_or(Duration::ZERO, |time| time.saturating_duration_since(now));
        let at = due.max(now + ahead.saturating_sub(PACE * (RATE_PER_SECOND - 1)));
        if now < at && !self.hurries {
            return Next::At(at);
        }
        self.queue.pop_first();
        self.rests_from = Some(self.rests_from.map_or(now, |time| time.max(now)) + PACE);
        let tally = self.by_uid.get_mut(&uid).expect("what is queued is there");
        tally.queued = None;
        tally.not_before = Some(now + REPORT_GAP);
        tally.in_flight = Some(tally.truth.clone());
        Next::Write(Report { request: tally.request.clone(), count: tally.truth.clone() })
    }

    /// A write came to this end.
    pub fn written(&mut self, now: Instant, uid: &str, outcome: Written) {
        let Some(tally) = self.by_uid.get_mut(uid) else { return };
        let sent = tally.in_flight.take();
        match outcome {
            Written::Stored { version } => {
                // What the watch told meanwhile may be newer.
                if version.zip(tally.version).is_none_or(|(sent, known)| sent >= known) {
                    (tally.stored, tally.version) = (sent, version);
                }
                tally.failures = 0;
            }
            Written::Gone => return self.gone(uid),
            // At the end of the gateway's life each has one try.
            Written::Failed if self.hurries => return self.gone(uid),
            Written::Failed => {
                tally.failures = tally.failures.saturating_add(1);
                tally.not_before = later(tally.not_before, now + wait(tally.failures));
            }
        }
        self.settle(now, uid);
    }

    /// From now on nothing waits its turn: the gateway ends.
    pub fn hurry(&mut self) {
        self.hurries = true;
    }

    /// Whether the API server has all that is true.
    pub fn is_settled(&self) -> bool {
        self.queue.is_empty() && self.by_uid.values().all(|tally| tally.in_flight.is_none())
    }

    /// Queues a request that differs from what the API server has, or takes it out.
    fn settle(&mut self, now: Instant, uid: &str) {
        let Some(tally) = self.by_uid.get_mut(uid) else { return };
        let wanted = !tally.is_settled() && tally.in_flight.is_none();
        let due = match tally.queued {
            // It keeps its place.
            Some(queued) if wanted => Some(later(tally.not_before, queued).unwrap_or(queued)),
            None if wanted => Some(later(tally.not_before, now).unwrap_or(now)),
            Some(_) | None => None,
        };
        let before = std::mem::replace(&mut tally.queued, due);
        if before == due {
            return;
        }
        if let Some(before) = before {
            self.queue.remove(&(before, uid.to_owned()));
        }
        if let Some(due) = due {
            self.queue.insert((due, uid.to_owned()));
        }
    }
}

fn later(one: Option<Instant>, other: Instant) -> Option<Instant> {
    Some(one.map_or(other, |one| one.max(other)))
}

/// How long to wait after so many failures in a row.
fn wait(times: u32) -> Duration {
    REPORT_GAP * 2_u32.pow(times.saturating_sub(1).min(DOUBLINGS_MAX))
}

impl SessionCount {
    /// As an entry of `status.sessions`.
    pub fn entry(&self, gateway: &str) -> SessionReport {
        SessionReport {
            gateway: gateway.to_owned(),
            open: self.open,
            total: self.total,
            last_start_time: Time(self.last_start_time),
        }
    }
}

/// Which request an object is, and what it says of this gateway's sessions; none of one that is not named.
pub fn reported(request: &InstanceAccess, gateway: &str) -> Option<(RequestRef, Option<SessionCount>)> {
    let metadata = &request.metadata;
    let name =
        RequestRef { namespace: metadata.namespace.clone()?, name: metadata.name.clone()?, uid: metadata.uid.clone()? };
    let mut entries = request.status.iter().flat_map(|status| &status.sessions);
    let ours = entries.find(|entry| entry.gateway == gateway).map(|entry| SessionCount {
        open: entry.open,
        total: entry.total,
        last_start_time: entry.last_start_time.0,
    });
    Some((name, ours))
}

/// Reads the name of a gateway: what can stand in `status.sessions`, and be a pod's.
///
/// # Errors
/// If it is too long, or has other characters.
pub fn gateway_name(text: &str) -> Result<String, String> {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-' || c == b'.';
    let is_end = |c: Option<&u8>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let bytes = text.as_bytes();
    let fits = bytes.len() <= NAME_LENGTH_MAX && bytes.iter().copied().all(inner);
    if fits && is_end(bytes.first()) && is_end(bytes.last()) {
        Ok(text.to_owned())
    } else {
        Err(format!("must be 1 to {NAME_LENGTH_MAX} of a-z, 0-9, - and ., with neither end one of the last two"))
    }
}

#[cfg(test)]
mod tests;
