//! Who leads: one process of several, by a Lease that all of them see and the API server keeps.
//!
//! ```text
//! read() ─────▶ Election ─ next() ─▶ Read | Write(record) | Wait(duration) | Lost
//! wrote(), failed() ─▶  └─ leads() ─▶ asked before every push and every write
//! ```
//! Pure. Two rules keep it at one leader, whatever is paused, delayed, lost or sent twice:
//!
//! - A leader counts its time from the moment at which its last renewal that succeeded was *sent*, and stops at two thirds of
//!   the lease.
//! - Whoever waits counts from the moment at which it *saw* the lease change for the last time, by its own ticks, and takes
//!   over at the whole of it. Nobody compares another's clock with its own.
//!
//! A write bears the version that it was decided on, so of two that take over the API server lets one. The one that bears
//! none, an end over others' edits, bears grant, key and place in the trail as they were decided on.
//!
//! # Caveats
//! - The clocks' ticks may differ by a third in speed, not by more.
//! - On a machine that is suspended ticks stand still, and the wall clock tells. Who suspends a machine and sets its clock
//!   back by as much can make it believe in a lease that is over; what it writes then is stale to the API server, or
//!   holds of the grant as the leader after it left it: an end.
//! - Whoever may write or delete the Lease can depose a leader.
//! - All who stand for one Lease have one and the same length of it: if it is deleted, nobody knows of a longer one.

mod bystander;
mod object;
#[cfg(test)]
mod tests;

use std::time::Duration;

use jiff::Timestamp;

use super::time::since;
pub use bystander::{Bystander, Leader};

/// The longest lease: what says that it holds for longer was not written by one of us.
pub const LEASE_MAX: Duration = Duration::from_secs(120);

/// How often whoever waits looks at the lease: a leader that steps down is followed within a second.
const LOOK: Duration = Duration::from_millis(500);

/// One moment on two clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Of a clock that nobody sets, since any beginning.
    pub ticks: Duration,
    /// The wall clock's.
    pub time: Timestamp,
}

impl Moment {
    /// How long ago something was, at the most: what either clock says.
    fn longest_since(self, earlier: Self) -> Duration {
        self.ticks.saturating_sub(earlier.ticks).max(since(self.time, earlier.time))
    }
}

/// What an election runs with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// This process, and no other one that ever was: a process that was started anew is another.
    pub identity: String,
    /// How long a lease holds that is not renewed.
    pub lease: Duration,
}

impl Terms {
    /// How long a leader leads after a renewal was sent.
    fn renew_deadline(&self) -> Duration {
        self.lease * 2 / 3
    }

    /// Gap between two renewals: four fit into the deadline.
    fn renew_interval(&self) -> Duration {
        self.lease / 6
    }

    /// Gap after a call that failed.
    fn retry_interval(&self) -> Duration {
        self.lease / 24
    }

    /// How long a call may take, so that a second one fits.
    pub fn call_timeout(&self) -> Duration {
        self.lease / 4
    }
}

/// A Lease, as far as it matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseRecord {
    /// The `resourceVersion`; none for one that is to be made.
    pub version: Option<String>,
    /// Who leads; none, if its holder stepped down, or if nobody ever led.
    pub holder: Option<String>,
    /// How long it holds from a renewal on, as its writer says.
    pub duration: Duration,
    /// When its holder began to lead.
    pub acquire_time: Option<Timestamp>,
    /// When it was renewed last, by its holder's clock: for people.
    pub renew_time: Option<Timestamp>,
    /// How often it changed hands.
    pub transitions: i32,
    /// The head of the audit trail.
    pub head: Option<TrailHead>,
}

/// The last record of the audit trail that a leader told of, as texts of the trail's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrailHead {
    /// Its receipt.
    pub receipt: String,
    /// The file that it stands in, if its writer said so: whoever takes over may have another one.
    pub file: Option<String>,
}

impl LeaseRecord {
    /// A lease where there was none. Somebody may have deleted it under a leader, who believes in it for a while: so nobody
    /// has it yet, and it is not free.
    fn made(duration: Duration) -> Self {
        Self { version: None, holder: None, duration, acquire_time: None, renew_time: None, transitions: 0, head: None }
    }

    /// Whether its holder stepped down.
    fn is_free(&self) -> bool {
        self.holder.is_none() && self.acquire_time.is_some()
    }
}

/// Why a process does not lead any more. It never will again: it ends, and the next one begins with nothing in its hands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Loss {
    /// No renewal came through in time, or this process stood still and could not send one.
    #[error(
        "the lease could not be renewed in time; is the API server slow or out of reach, or did this process stand still?"
    )]
    Late,
    /// Somebody else has it, or deleted it.
    #[error("the lease is not ours any more: another process took it, or somebody changed it")]
    Taken,
    /// We stepped down.
    #[error("the lease was given back")]
    Released,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Ask the API server what the lease is; then [`Election::read`] or [`Election::failed`].
    Read,
    /// Write the lease, if it is of that version still; then [`Election::wrote`] or [`Election::failed`].
    Write(LeaseRecord),
    /// Ask again after a while.
    Wait(Duration),
    /// Act no more, and end.
    Lost(Loss),
}

/// What was seen of the lease, and since when it is so.
#[derive(Clone, Debug)]
struct Seen {
    record: Option<LeaseRecord>,
    since: Duration,
}

/// One process's view of who leads.
#[derive(Clone, Debug)]
pub struct Election {
    terms: Terms,
    seen: Option<Seen>,
    /// What was seen may be another's by now: read before anything is written.
    is_stale: bool,
    /// When the renewal was sent that made us lead, the last one that succeeded.
    renewed: Option<Moment>,
    loss: Option<Loss>,
    /// When the API server last said what the lease is.
    heard: Option<Moment>,
    /// Nothing is asked before, in ticks.
    due: Duration,
}

impl Election {
    /// Begins with nothing known.
    pub fn new(terms: Terms) -> Self {
        Self { terms, seen: None, is_stale: true, renewed: None, loss: None, heard: None, due: Duration::ZERO }
    }

    /// Whether this process leads now. Ask just before each act; the answer is good for no longer. Once it was late it is lost:
    /// whatever it did not do meanwhile, nobody would do.
    pub fn leads(&mut self, now: Moment) -> bool {
        let Some(renewed) = self.renewed else { return false };
        if now.longest_since(renewed) >= self.terms.renew_deadline() {
            self.loss.get_or_insert(Loss::Late);
        }
        self.loss.is_none()
    }

    /// Why this process would not take over if it had to, while it stands by.
    pub fn why_not_ready(&self, now: Moment) -> Option<&'static str> {
        match self.heard {
            Some(heard) if now.longest_since(heard) < self.terms.lease => {}
            _ => return Some("the lease cannot be read; the log says why"),
        }
        self.holder().is_none().then_some("nobody leads yet; whoever takes the lease does within seconds")
    }

    /// Who holds the lease, as far as this process saw.
    pub fn holder(&self) -> Option<&str> {
        self.record()?.holder.as_deref()
    }

    /// The head of the audit trail that the lease names, as far as this process saw.
    pub fn head(&self) -> Option<&TrailHead> {
        self.record()?.head.as_ref()
    }

    /// How often the lease changed hands, as far as this process saw: of a leader, the number of its term.
    pub fn transitions(&self) -> i32 {
        self.record().map_or(0, |record| record.transitions)
    }

    fn record(&self) -> Option<&LeaseRecord> {
        self.seen.as_ref()?.record.as_ref()
    }

    /// Says what to do now. `head` is the head of the audit trail that this process writes, if it does.
    pub fn next(&mut self, now: Moment, head: Option<TrailHead>) -> Step {
        self.leads(now);
        if let Some(loss) = self.loss {
            return Step::Lost(loss);
        }
        if let Some(rest) = self.due.checked_sub(now.ticks).filter(|rest| !rest.is_zero()) {
            return Step::Wait(rest);
        }
        let Some(seen) = self.seen.as_ref().filter(|_| !self.is_stale) else { return Step::Read };
        let unchanged = now.ticks.saturating_sub(seen.since);
        match &seen.record {
            Some(record) if record.holder.as_ref() == Some(&self.terms.identity) => {
                Step::Write(LeaseRecord { head: head.or_else(|| record.head.clone()), ..self.renewal(now, record) })
            }
            Some(record) if record.is_free() || unchanged >= self.terms.lease.max(record.holds()) => {
                Step::Write(LeaseRecord {
                    holder: Some(self.terms.identity.clone()),
                    acquire_time: Some(now.time),
                    transitions: record.transitions.saturating_add(1),
                    ..self.renewal(now, record)
                })
            }
            Some(_) => Step::Read,
            None => Step::Write(LeaseRecord::made(self.terms.lease)),
        }
    }

    fn renewal(&self, now: Moment, record: &LeaseRecord) -> LeaseRecord {
        LeaseRecord { duration: self.terms.lease, renew_time: Some(now.time), ..record.clone() }
    }

    /// Takes in what the API server says that the lease is, none if there is none. `now` is when the answer came.
    pub fn read(&mut self, now: Moment, record: Option<LeaseRecord>) {
        let version = |record: Option<&LeaseRecord>| record.map(|record| record.version.clone());
        let is_new = self.seen.as_ref().is_none_or(|seen| version(seen.record.as_ref()) != version(record.as_ref()));
        let is_ours = record.as_ref().is_some_and(|record| record.holder.as_ref() == Some(&self.terms.identity));
        if self.renewed.is_some() && !is_ours {
            self.loss.get_or_insert(Loss::Taken);
        }
        if is_new {
            self.seen = Some(Seen { record, since: now.ticks });
        }
        self.heard = Some(now);
        // The next question is answered from this, and if that is nothing to write, from another look a little later.
        self.is_stale = false;
        if !matches!(self.next(now, None), Step::Write(_)) {
            self.is_stale = true;
            self.due = now.ticks + LOOK;
        }
    }

    /// Takes in that a write was stored, as the API server answered it. `sent` is when it left.
    pub fn wrote(&mut self, sent: Moment, now: Moment, record: LeaseRecord) {
        // An answer that came late is no cure.
        self.leads(now);
        let is_ours = record.holder.as_ref() == Some(&self.terms.identity);
        self.seen = Some(Seen { record: Some(record), since: now.ticks });
        self.heard = Some(now);
        self.is_stale = !is_ours;
        self.due = if is_ours { sent.ticks + self.terms.renew_interval() } else { now.ticks + LOOK };
        if is_ours {
            self.renewed = Some(sent);
        }
    }

    /// Takes in that a call failed, was refused for another version, or was not answered in time: then it may have been
    /// stored, or will be.
    pub fn failed(&mut self, now: Moment) {
        self.is_stale = true;
        self.due = now.ticks + self.terms.retry_interval();
    }

    /// Steps down, whatever comes of it: from here on this process does not lead. Returns what to write, if the lease is ours.
    pub fn release(&mut self, now: Moment, head: Option<TrailHead>) -> Option<LeaseRecord> {
        self.loss.get_or_insert(Loss::Released);
        let record = self.record().filter(|record| record.holder.as_ref() == Some(&self.terms.identity))?;
        let head = head.or_else(|| record.head.clone());
        Some(LeaseRecord { holder: None, head, ..self.renewal(now, record) })
    }
}
