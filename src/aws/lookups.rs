//! Look-ups, batched: a thousand questions at once become a handful of calls.
//!
//! The first question of a quiet region leaves at once. Those that come close behind another gather until a gap comes, or
//! 200 ids wait, or a second or two have gone by: a crowd arrives as fast as the API server lets it in, over seconds. What can
//! wait fills up the calls that leave for others. Two calls at a time and a token bucket keep us far below EC2's limits,
//! which we share with everything else in the account. Every question is answered, with the error of its call if need be;
//! a caller that goes away disturbs nobody.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::domain::cloud::{Endpoint, Failure, FailureClass, Instance, Place, TargetQuery};

use super::bucket::Bucket;
use super::class::{self, failure};
use super::lanes::Lanes;
use super::{Cloud, locked};

mod cache;
mod queue;

use cache::EndpointCache;
use queue::{Answer, Question, State, UnderWay, Waiter, Work};

/// How fast we look things up, and how many may wait.
#[derive(Clone, Copy, Debug)]
pub struct LookupLimits {
    /// Calls under way at once in one region.
    pub calls_max: usize,
    /// Calls a second in one region, of EC2's 20.
    pub rate_per_second: f64,
    /// Calls at once after a quiet time, of EC2's 100.
    pub burst: f64,
    /// The gap between two questions that ends a batch: those that come closer to each other share a call.
    pub gap: Duration,
    /// The same while a crowd arrives: more than a handful within a second.
    pub gap_of_a_crowd: Duration,
    /// The longest that a batch gathers, unless it is half full by then: that one gathers twice as long.
    pub linger: Duration,
    /// How long a question that can wait does so for company.
    pub linger_of_refreshes: Duration,
    /// The longest that one call may take, its pages and the SDK's retries included.
    pub call_timeout: Duration,
    /// The longest that a question waits for its answer, the queue included.
    pub wait_timeout: Duration,
    /// How long endpoints are taken to stay as they were seen.
    pub endpoints_kept: Duration,
    /// Questions that may wait at once; the next is `Throttled`.
    pub waiting_max: usize,
}

impl Default for LookupLimits {
    fn default() -> Self {
        Self {
            // One on its way while another comes back. More would only make smaller batches.
            calls_max: 2,
            // A quarter of EC2's rate and a fifth of its burst: 1,000 ids a second, and the account's other tenants
            // (autoscalers, load balancers) keep the rest.
            rate_per_second: 5.0,
            burst: 20.0,
            // A fraction of a usual answer's time: nobody notices.
            gap: Duration::from_millis(30),
            // An API server that lets in a crowd tells of it in clumps, with up to 100 ms between them. Who comes last in
            // a crowd waits anyway, for all the others' grants to be written.
            gap_of_a_crowd: Duration::from_millis(250),
            // 200 requests, at the rate at which a small API server stores them. Reached only under a steady stream of
            // more than 30 a second, which would otherwise take a call for every few.
            linger: Duration::from_secs(1),
            // A grant's instance is looked at every minute; nobody notices two seconds more.
            linger_of_refreshes: Duration::from_secs(2),
            // The SDK gives up on a page after 20 s; this is for a page more, and for whatever else hangs.
            call_timeout: Duration::from_secs(25),
            // A full queue of 20,000 ids is 100 calls: 20 s at our rate, and a call or two on top.
            wait_timeout: Duration::from_secs(60),
            // An endpoint takes minutes to make; a person who just made one waits half a minute at most.
            endpoints_kept: Duration::from_secs(30),
            // Twice the 10,000 requests that a cluster may hold, each of which asks once after a restart.
            waiting_max: 20_000,
        }
    }
}

/// What happened so far, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LookupStats {
    /// Questions asked.
    pub asked: u64,
    /// Questions about endpoints that memory answered.
    pub remembered: u64,
    /// Calls made.
    pub calls: u64,
    /// Calls that AWS answered.
    pub answered: u64,
    /// Calls that failed, but for the two below.
    pub failed: u64,
    /// Calls that AWS refused, for who we are.
    pub refused: u64,
    /// Calls that AWS throttled.
    pub throttled: u64,
    /// Questions turned away, since the queue was full.
    pub turned_away: u64,
    /// Questions that wait now.
    pub waiting: u64,
}

#[derive(Debug, Default)]
struct Counters {
    asked: AtomicU64,
    remembered: AtomicU64,
    calls: AtomicU64,
    answered: AtomicU64,
    failed: AtomicU64,
    refused: AtomicU64,
    throttled: AtomicU64,
    turned_away: AtomicU64,
}

/// The batcher. Cheap to clone; all clones share their queues.
#[derive(Clone)]
pub struct Lookups {
    shared: Arc<Shared>,
}

struct Shared {
    cloud: Arc<dyn Cloud>,
    limits: LookupLimits,
    lanes: Lanes<Lane>,
    endpoints: EndpointCache,
    counters: Counters,
    waiting: AtomicUsize,
}

/// What is waiting for one region, and its share of calls.
struct Lane {
    state: Mutex<State>,
    slots: Arc<Semaphore>,
    bucket: Mutex<Bucket>,
    /// Rung when a batch need not linger any more.
    ready: Notify,
}

impl Lookups {
    /// Makes a batcher before `cloud`.
    pub fn new(cloud: Arc<dyn Cloud>, limits: LookupLimits) -> Self {
        let shared = Shared {
            cloud,
            limits,
            lanes: Lanes::new(),
            endpoints: EndpointCache::new(limits.endpoints_kept),
            counters: Counters::default(),
            waiting: AtomicUsize::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Finds what `query` names: for an id one instance or none, in whatever state; for tags those that may run again,
    /// at most [`super::TAGGED_INSTANCES_MAX`]. An id that `can_wait` does so for a while, for company.
    ///
    /// # Errors
    /// The failure of the call, shared by all that it was made for; `Throttled` with the code `QueueFull` if too many
    /// wait; `Retry` with the code `Timeout` if no answer came.
    pub async fn find(&self, place: &Place, query: TargetQuery, can_wait: bool) -> Result<Vec<Instance>, Failure> {
        let found = match query {
            TargetQuery::Id(id) => self.ask(place, |state, waiter| state.want(id, can_wait, waiter)).await?,
            TargetQuery::Tags(tags) if tags.is_empty() => {
                let text = "no tags were named, which would mean every instance";
                return Err(failure(FailureClass::Invalid, "InvalidParameterValue", text));
            }
            TargetQuery::Tags(tags) => {
                self.ask(place, |state, waiter| state.question(Question::Tags(tags), waiter)).await?
            }
        };
        match found {
            Answer::Instances(instances) => Ok(instances),
            Answer::Endpoints(_) => Err(lost()),
        }
    }

    /// Returns the endpoints of a VPC that take connections, as seen at most half a minute ago.
    ///
    /// # Errors
    /// As [`Lookups::find`].
    pub async fn endpoints(&self, place: &Place, vpc_id: &str) -> Result<Vec<Endpoint>, Failure> {
        if let Some(endpoints) = self.shared.endpoints.fresh(place, vpc_id, Instant::now()) {
            self.shared.counters.remembered.fetch_add(1, Ordering::Relaxed);
            return Ok(endpoints);
        }
        let question = Question::Endpoints(vpc_id.to_owned());
        match self.ask(place, |state, waiter| state.question(question, waiter)).await? {
            Answer::Endpoints(endpoints) => Ok(endpoints),
            Answer::Instances(_) => Err(lost()),
        }
    }

    /// Returns what happened so far.
    pub fn stats(&self) -> LookupStats {
        let counters = &self.shared.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        LookupStats {
            asked: read(&counters.asked),
            remembered: read(&counters.remembered),
            calls: read(&counters.calls),
            answered: read(&counters.answered),
            failed: read(&counters.failed),
            refused: read(&counters.refused),
            throttled: read(&counters.throttled),
            turned_away: read(&counters.turned_away),
            waiting: self.shared.waiting.load(Ordering::Relaxed) as u64,
        }
    }

    async fn ask(&self, place: &Place, enter: impl FnOnce(&mut State, Waiter)) -> Result<Answer, Failure> {
        let shared = &self.shared;
        shared.counters.asked.fetch_add(1, Ordering::Relaxed);
        let _waiting = shared.admit()?;
        let lane = shared.lanes.lane(place, || Lane::new(&shared.limits)).inspect_err(|_| shared.turn_away())?;
        let (waiter, answer) = oneshot::channel();
        let (ready, start) = {
            let mut state = locked(&lane.state);
            enter(&mut state, waiter);
            let start = !std::mem::replace(&mut state.dispatching, true);
            (state.rings(), start)
        };
        if ready {
            lane.ready.notify_one();
        }
        if start {
            tokio::spawn(dispatch(shared.clone(), lane.clone(), place.clone()));
        }
        match timeout(shared.limits.wait_timeout, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(lost()),
            Err(_) => {
                let text =
                    format!("no answer within {} s, most of it in our own queue", shared.limits.wait_timeout.as_secs());
                Err(failure(FailureClass::Retry, class::TIMEOUT, &text))
            }
        }
    }
}

/// A task of ours panicked.
fn lost() -> Failure {
    failure(FailureClass::Bug, class::CALL_LOST, "the call ended without an answer; the log says why")
}

/// One place in the queue, given back on drop.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Shared {
    fn admit(&self) -> Result<Waiting<'_>, Failure> {
        let place = Waiting(&self.waiting);
        if self.waiting.fetch_add(1, Ordering::Relaxed) < self.limits.waiting_max {
            return Ok(place);
        }
        self.turn_away();
        let text = format!("{} look-ups are waiting already; ask again later", self.limits.waiting_max);
        Err(failure(FailureClass::Throttled, class::QUEUE_FULL, &text))
    }

    fn turn_away(&self) {
        self.counters.turned_away.fetch_add(1, Ordering::Relaxed);
    }

    /// Makes the call within its time, and counts it.
    async fn timed<T>(&self, lane: &Lane, call: super::Reply<'_, T>) -> Result<T, Failure> {
        self.counters.calls.fetch_add(1, Ordering::Relaxed);
        let result = timeout(self.limits.call_timeout, call).await.unwrap_or_else(|_| {
            let text = format!("no answer within {} s", self.limits.call_timeout.as_secs());
            Err(failure(FailureClass::Retry, class::TIMEOUT, &text))
        });
        let counter = match result.as_ref().map_err(|error| error.class) {
            Ok(_) => &self.counters.answered,
            Err(FailureClass::Throttled) => {
                // AWS's bucket is empty, whatever ours says.
                locked(&lane.bucket).drain(Instant::now());
                &self.counters.throttled
            }
            Err(FailureClass::Refused) => &self.counters.refused,
            Err(FailureClass::Retry | FailureClass::Invalid | FailureClass::Gone | FailureClass::Bug) => {
                &self.counters.failed
            }
        };
        counter.fetch_add(1, Ordering::Relaxed);
        result
    }
}

impl Lane {
    fn new(limits: &LookupLimits) -> Self {
        Self {
            state: Mutex::default(),
            slots: Arc::new(Semaphore::new(limits.calls_max.max(1))),
            bucket: Mutex::new(Bucket::new(limits.rate_per_second, limits.burst, Instant::now())),
            ready: Notify::new(),
        }
    }

    /// Waits as long as it pays to: not at all for a question that comes alone, or if the batch is full.
    async fn linger(&self, limits: &LookupLimits) {
        loop {
            let leave = {
                let state = locked(&self.state);
                match (state.gathering(), state.refreshes_since()) {
                    _ if state.need_not_linger() => return,
                    (Some(gathering), _) => {
                        let idle = self.slots.available_permits() >= limits.calls_max.max(1);
                        let gap = if gathering.is_crowd { limits.gap_of_a_crowd } else { limits.gap };
                        if idle && gathering.came_alone(gap) {
                            return;
                        }
                        // A call that is half full is worth as long again, which fills it.
                        let linger = if state.is_half_full() { limits.linger * 2 } else { limits.linger };
                        (gathering.last + gap).min(gathering.since + linger)
                    }
                    (None, Some(since)) => since + limits.linger_of_refreshes,
                    (None, None) => return,
                }
            };
            if leave <= Instant::now() {
                return;
            }
            // Whoever comes meanwhile puts off the end, so look again.
            let _ = timeout_at(leave, self.ready.notified()).await;
        }
    }

    /// Waits for a token.
    async fn token(&self) {
        loop {
            let taken = locked(&self.bucket).take(Instant::now());
            match taken {
                Ok(()) => return,
                Err(wait) => sleep(wait).await,
            }
        }
    }
}

/// Sends what waits in a lane, and ends when nothing does.
async fn dispatch(shared: Arc<Shared>, lane: Arc<Lane>, place: Place) {
    // Whoever asks at this very moment comes along.
    tokio::task::yield_now().await;
    loop {
        {
            let mut state = locked(&lane.state);
            if state.is_empty() {
                state.dispatching = false;
                return;
            }
        }
        lane.linger(&shared.limits).await;
        let slot = lane.slots.clone().acquire_owned().await.expect("nobody closes the semaphore");
        lane.token().await;
        // As late as possible, so that all who came meanwhile are in.
        let Some(work) = locked(&lane.state).take() else { continue };
        tokio::spawn(call(shared.clone(), lane.clone(), place.clone(), work, slot));
    }
}

/// Makes one call and answers everyone it was made for.
async fn call(shared: Arc<Shared>, lane: Arc<Lane>, place: Place, work: Work, _slot: OwnedSemaphorePermit) {
    match work {
        Work::Ids(batch) => {
            let ids: Vec<_> = batch.iter().map(|(id, _)| id.clone()).collect();
            let result = shared.timed(&lane, shared.cloud.describe_by_ids(&place, &ids)).await;
            for (id, waiters) in batch {
                let own = result
                    .as_ref()
                    .map(|all| Answer::Instances(all.iter().filter(|instance| instance.id == id).cloned().collect()));
                answer(waiters, own.map_err(Failure::clone));
            }
        }
        Work::Question(question) => {
            // Dropped on a panic, it lets the question go, and all who wait for it with an error.
            let entry = UnderWay::new(&lane.state, question.clone());
            let result = match &question {
                Question::Tags(tags) => {
                    let result = shared.timed(&lane, shared.cloud.describe_by_tags(&place, tags)).await;
                    result.map(|mut instances| {
                        // A filter is a pattern; what we promise is equality.
                        instances
                            .retain(|instance| tags.iter().all(|(key, value)| instance.tags.get(key) == Some(value)));
                        Answer::Instances(instances)
                    })
                }
                Question::Endpoints(vpc_id) => {
                    let result = shared.timed(&lane, shared.cloud.describe_endpoints(&place, vpc_id)).await;
                    if let Ok(endpoints) = &result {
                        shared.endpoints.keep(&place, vpc_id, endpoints.clone(), Instant::now());
                    }
                    result.map(Answer::Endpoints)
                }
            };
            answer(entry.finish(), result);
        }
    }
}

fn answer(waiters: Vec<Waiter>, result: Result<Answer, Failure>) {
    for waiter in waiters {
        // Who has gone away needs no answer.
        let _ = waiter.send(result.clone());
    }
}

#[cfg(test)]
mod tests;
