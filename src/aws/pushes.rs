//! Pushes, paced: the one place that delivers a key, and only against a permit.
//!
//! Waiting pushes leave in the order of their deadlines, at most so many a second and so many at once in a region;
//! when AWS throttles, the pace halves, and recovers bit by bit. Just before a push leaves, its permit is redeemed
//! against the wall clock, and the fence is asked whether we are still the one who may push; the [`super::Gate`] asks
//! both once more when the bytes are ready to go, because fetching credentials takes time and a machine can be
//! suspended between two lines. A caller that goes away withdraws its push, unless it has left.
//!
//! One push is one call, never repeated here: whoever makes permits decides on the next attempt.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, sleep, timeout};

use crate::domain::cloud::{Failure, FailureClass, Place};
use crate::domain::push::{PUSH_TIMEOUT, PushPermit};

use super::bucket::Pace;
use super::class::{self, failure};
use super::lanes::Lanes;
use super::{Cloud, Gate, locked};

mod queue;
mod stats;

use queue::{Entry, Queue};
pub use stats::PushStats;
use stats::{Counters, count};

/// The wall clock.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Whether we are still the one who may push: the lease is ours. Asked often; answers from memory.
pub type Fence = Arc<dyn Fn() -> bool + Send + Sync>;

/// How fast we push, and how many may wait.
#[derive(Clone, Copy, Debug)]
pub struct PushLimits {
    /// Pushes a second in one region, at most; AWS's throttling lowers it for a while. At least 1.
    pub rate_per_second_max: f64,
    /// Pushes under way at once in one region.
    pub in_flight_max: usize,
    /// Pushes that may wait in one region; the next is `Throttled`.
    pub waiting_max: usize,
}

impl Default for PushLimits {
    fn default() -> Self {
        Self {
            // EC2 Instance Connect publishes no limit. This re-pushes 2,250 grants every 45 s; if it is too much, AWS
            // says so and we halve.
            rate_per_second_max: 50.0,
            // An answer takes a fraction of a second, so the rate needs a dozen; the rest is for slow days. More would
            // only crowd the sockets while AWS hangs.
            in_flight_max: 64,
            // One for each of the 10,000 requests that a cluster may hold: about 10 MB of keys.
            waiting_max: 10_000,
        }
    }
}

/// AWS took the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// EC2 Instance Connect's request id.
    pub request_id: String,
    /// When the answer came, unrounded: the host may read the key for at most `KEY_WINDOW` from here.
    pub answer_time: Timestamp,
}

/// Why a push did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// The permit ran out while it waited. Nothing was sent.
    #[error("the push was not sent: its permit ended at {not_after}")]
    TooLate {
        /// When it had to leave.
        not_after: Timestamp,
    },
    /// We are no longer the one who may push. Nothing was sent.
    #[error("the push was not sent: this replica may no longer push")]
    Fenced,
    /// The call failed, or was never made.
    #[error("the push failed")]
    Failed {
        /// Why, and in which class.
        #[source]
        failure: Failure,
        /// Set if AWS may have taken the key all the same (no answer, or one that leaves it open): when we gave up,
        /// unrounded. The host may read the key for at most `KEY_WINDOW` from here.
        unsure_time: Option<Timestamp>,
    },
}

impl PushError {
    /// Returns the class, if AWS or our queue said no; the other two mean that this permit is spent.
    pub fn class(&self) -> Option<FailureClass> {
        match self {
            PushError::TooLate { .. } | PushError::Fenced => None,
            PushError::Failed { failure, .. } => Some(failure.class),
        }
    }
}

/// The pacer. Cheap to clone; all clones share their queues.
#[derive(Clone)]
pub struct Pushes {
    shared: Arc<Shared>,
}

struct Shared {
    cloud: Arc<dyn Cloud>,
    limits: PushLimits,
    clock: Clock,
    fence: Fence,
    lanes: Lanes<Lane>,
    counters: Counters,
}

/// One region's queue, slots and pace.
struct Lane {
    queue: Mutex<Queue>,
    slots: Arc<Semaphore>,
    pace: Mutex<Pace>,
}

/// Sets its flag on drop: the caller has gone away, or has its answer.
struct Withdraw(Arc<AtomicBool>);

impl Drop for Withdraw {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

impl Pushes {
    /// Makes a pacer before `cloud`.
    pub fn new(cloud: Arc<dyn Cloud>, limits: PushLimits, clock: Clock, fence: Fence) -> Self {
        let shared = Shared { cloud, limits, clock, fence, lanes: Lanes::new(), counters: Counters::default() };
        Self { shared: Arc::new(shared) }
    }

    /// Delivers the permit's key once, as soon as the pace allows; drop the future to withdraw it.
    ///
    /// # Errors
    /// See [`PushError`]. Never later than `PUSH_TIMEOUT` after the call left.
    pub async fn push(&self, permit: PushPermit) -> Result<Delivered, PushError> {
        self.push_while(permit, Arc::new(|| true)).await
    }

    /// The same, as long as `fence` says that this one still may; it is asked whenever that of all is, and as quick.
    ///
    /// # Errors
    /// See [`PushError`]; `Fenced` if either said no.
    pub async fn push_while(&self, permit: PushPermit, fence: Fence) -> Result<Delivered, PushError> {
        let shared = &self.shared;
        let place = permit.place().clone();
        let lane =
            shared.lanes.lane(&place, || Lane::new(&shared.limits)).map_err(|failure| shared.turn_away(failure))?;
        let (reply, answer) = oneshot::channel();
        let withdraw = Withdraw(Arc::default());
        let start = {
            let mut queue = locked(&lane.queue);
            let entered = queue.enter(permit, reply, (withdraw.0.clone(), fence), shared.limits.waiting_max);
            if !entered {
                let text = format!("{} pushes to {} are waiting already", shared.limits.waiting_max, place.region);
                return Err(shared.turn_away(failure(FailureClass::Throttled, class::QUEUE_FULL, &text)));
            }
            !std::mem::replace(&mut queue.dispatching, true)
        };
        if start {
            tokio::spawn(dispatch(shared.clone(), lane.clone(), place));
        }
        // Bounded: the permit ends, and a call takes PUSH_TIMEOUT at most.
        answer.await.unwrap_or_else(|_| {
            let text = "the push ended without an answer; the log says why";
            let failure = failure(FailureClass::Bug, class::CALL_LOST, text);
            Err(PushError::Failed { failure, unsure_time: Some((shared.clock)()) })
        })
    }

    /// Returns what happened so far.
    pub fn stats(&self) -> PushStats {
        let mut stats = self.shared.counters.read();
        for (_, lane) in self.shared.lanes.all() {
            stats.waiting += locked(&lane.queue).len() as u64;
            let slots = self.shared.limits.in_flight_max.max(1);
            stats.in_flight += slots.saturating_sub(lane.slots.available_permits()) as u64;
        }
        stats
    }

    /// Returns each region's present pace, in pushes a second.
    pub fn paces(&self) -> BTreeMap<Place, f64> {
        let lanes = self.shared.lanes.all();
        lanes.into_iter().map(|(place, lane)| (place, locked(&lane.pace).rate())).collect()
    }
}

impl Shared {
    fn turn_away(&self, failure: Failure) -> PushError {
        count(&self.counters.turned_away);
        PushError::Failed { failure, unsure_time: None }
    }
}

impl Lane {
    fn new(limits: &PushLimits) -> Self {
        Self {
            queue: Mutex::default(),
            slots: Arc::new(Semaphore::new(limits.in_flight_max.max(1))),
            pace: Mutex::new(Pace::new(limits.rate_per_second_max, Instant::now())),
        }
    }

    async fn token(&self) {
        loop {
            let taken = locked(&self.pace).take(Instant::now());
            match taken {
                Ok(()) => return,
                Err(wait) => sleep(wait).await,
            }
        }
    }

    /// Takes the push with the earliest deadline of those that may still leave; answers the late ones on the way,
    /// since they need neither slot nor token.
    fn next(&self, shared: &Shared) -> Option<Entry> {
        loop {
            let entry = locked(&self.queue).pop()?;
            if entry.is_withdrawn() {
                count(&shared.counters.withdrawn);
            } else if entry.not_after() < (shared.clock)() {
                count(&shared.counters.too_late);
                let not_after = entry.not_after();
                entry.answer(Err(PushError::TooLate { not_after }));
            } else {
                return Some(entry);
            }
        }
    }
}

/// Sends what waits in a lane, and ends when nothing does.
async fn dispatch(shared: Arc<Shared>, lane: Arc<Lane>, place: Place) {
    // Whoever asks at this very moment is put in order with the first.
    tokio::task::yield_now().await;
    loop {
        {
            let mut queue = locked(&lane.queue);
            if queue.len() == 0 {
                queue.dispatching = false;
                return;
            }
        }
        let slot = lane.slots.clone().acquire_owned().await.expect("nobody closes the semaphore");
        lane.token().await;
        // As late as possible: the earliest deadline may have come a moment ago.
        let Some(entry) = lane.next(&shared) else { continue };
        tokio::spawn(call(shared.clone(), lane.clone(), place.clone(), entry, slot));
    }
}

// What the gate has said.
const UNASKED: u8 = 0;
const OPEN: u8 = 1;
const LATE: u8 = 2;
const FENCED: u8 = 3;
const WITHDRAWN: u8 = 4;

/// Pushes once.
async fn call(shared: Arc<Shared>, lane: Arc<Lane>, place: Place, entry: Entry, _slot: OwnedSemaphorePermit) {
    let Entry { permit, reply, withdrawn, fence: own, .. } = entry;
    let not_after = permit.not_after();
    let said = Arc::new(AtomicU8::new(UNASKED));
    let gate: Gate = {
        let (clock, fence, said) = (shared.clock.clone(), shared.fence.clone(), said.clone());
        Arc::new(move || {
            let verdict = if clock() > not_after {
                LATE
            } else if !fence() || !own() {
                FENCED
            } else if withdrawn.load(Ordering::Acquire) {
                WITHDRAWN
            } else {
                OPEN
            };
            said.store(verdict, Ordering::Release);
            verdict == OPEN
        })
    };
    // Spends the permit; then the gate's first time. Its second is when the bytes are ready.
    let push = permit.redeem((shared.clock)());
    let result = match push.filter(|_| gate()) {
        None => Err(None),
        Some(push) => {
            said.store(UNASKED, Ordering::Release);
            let left = Instant::now();
            count(&shared.counters.calls);
            let answer = timeout(PUSH_TIMEOUT, shared.cloud.send_ssh_public_key(&push, gate)).await;
            let answer = answer.unwrap_or_else(|_| {
                let text = format!("no answer within {} s", PUSH_TIMEOUT.as_secs());
                Err(failure(FailureClass::Retry, class::TIMEOUT, &text))
            });
            note_pace(&lane, &place, left, answer.as_ref().err());
            answer.map_err(Some)
        }
    };
    let answer_time = (shared.clock)();
    let counters = &shared.counters;
    let outcome = match (result, said.load(Ordering::Acquire)) {
        (Ok(pushed), _) => {
            count(&counters.delivered);
            Ok(Delivered { request_id: pushed.request_id, answer_time })
        }
        (Err(_), FENCED) => {
            count(&counters.fenced);
            Err(PushError::Fenced)
        }
        // Nobody reads this answer: the caller has gone.
        (Err(_), WITHDRAWN) => {
            count(&counters.withdrawn);
            Err(PushError::Fenced)
        }
        (Err(None), _) | (Err(_), LATE) => {
            count(&counters.too_late);
            Err(PushError::TooLate { not_after })
        }
        (Err(Some(failure)), verdict) => {
            let unsure = verdict == OPEN && leaves_open(failure.class);
            count(match failure.class {
                FailureClass::Throttled => &counters.throttled,
                FailureClass::Refused => &counters.refused,
                FailureClass::Retry | FailureClass::Bug if unsure => &counters.unsure,
                FailureClass::Retry | FailureClass::Bug | FailureClass::Invalid | FailureClass::Gone => {
                    &counters.failed
                }
            });
            Err(PushError::Failed { failure, unsure_time: unsure.then_some(answer_time) })
        }
    };
    let _ = reply.send(outcome);
}

/// Tells whether AWS may have taken the key in spite of a failure: only a clear no rules it out.
fn leaves_open(class: FailureClass) -> bool {
    match class {
        FailureClass::Retry | FailureClass::Bug => true,
        FailureClass::Throttled | FailureClass::Refused | FailureClass::Invalid | FailureClass::Gone => false,
    }
}

/// Lets the pace learn from an answer. No answer teaches nothing.
fn note_pace(lane: &Lane, place: &Place, left: Instant, failure: Option<&Failure>) {
    let mut pace = locked(&lane.pace);
    match failure.map(|failure| failure.class) {
        Some(FailureClass::Throttled) => {
            let before = pace.rate();
            pace.throttled(left, Instant::now());
            if pace.rate() < before {
                tracing::warn!(region = %place.region, rate_per_second = pace.rate(), "slowed pushes down");
            }
        }
        Some(FailureClass::Retry | FailureClass::Bug) => {}
        None | Some(FailureClass::Refused | FailureClass::Invalid | FailureClass::Gone) => {
            pace.accepted(Instant::now())
        }
    }
}

#[cfg(test)]
mod tests;
