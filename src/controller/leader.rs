//! Carries out an election: reads and writes the Lease, and tells everybody else whether we lead.
//!
//! What a step is, and why, is decided in [`crate::domain::lease`]. Whoever waits holds no trail and no timer, and
//! watches only to remember ([`super::remember`]); a leader that has lost the lease ends. So each term begins by reading
//! everything from the API server.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::domain::lease::{Election, LeaseRecord, Loss, Moment, Step, Terms, TrailHead};
use crate::telemetry::chain;

use super::FIELD_MANAGER;

/// Whether this process may act now. Asked often; answers from memory.
pub type Leads = Arc<dyn Fn() -> bool + Send + Sync>;
/// Why a process that stands by would not take over, if so.
pub type WhyNotReady = Arc<dyn Fn() -> Option<&'static str> + Send + Sync>;
/// The head of the trail that this process writes, once there is one.
pub type Head = Arc<dyn Fn() -> Option<TrailHead> + Send + Sync>;

/// What a process knows that begins to lead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Won {
    /// The number of its term.
    pub term: i32,
    /// The head of the audit trail that the lease names.
    pub head: Option<TrailHead>,
}

/// How often it is told at most that the lease cannot be asked for.
const TOLD_INTERVAL: Duration = Duration::from_secs(10);

/// The annotation of the Lease that says which admission policies, bindings and CRDs stood when a leader last saw all of them
/// stand.
const ENFORCEMENT: &str = "instanceaccess.dev/enforcement";
/// What this process vouches for of what guards the requests, once it has looked.
pub type Vouched = Arc<dyn Fn() -> Option<String> + Send + Sync>;

/// A process that would lead.
pub struct Candidate {
    leases: Api<Lease>,
    name: String,
    timeout: Duration,
    watch: Watch,
    head: Head,
    vouched: Option<Vouched>,
    /// The Lease as it was read last, with all that others wrote into it.
    last: Option<Lease>,
    /// When it was told last that the Lease cannot be asked for.
    told: Option<Instant>,
}

/// The election and the clocks that it is judged by.
#[derive(Clone)]
struct Watch {
    election: Arc<Mutex<Election>>,
    clock: Clock,
    origin: Instant,
}

impl Watch {
    fn election(&self) -> MutexGuard<'_, Election> {
        self.election.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Moment {
        Moment { ticks: self.origin.elapsed(), time: (self.clock)() }
    }
}

/// What the API server said to a write.
enum Written {
    Stored(Box<Lease>),
    /// Another version stands, or none any more.
    Stale,
}

impl Candidate {
    /// Stands for election by the Lease of this name; `head` is asked at each renewal.
    pub fn new(client: Client, namespace: &str, name: &str, terms: Terms, clock: Clock, head: Head) -> Self {
        let timeout = terms.call_timeout();
        let watch = Watch { election: Arc::new(Mutex::new(Election::new(terms))), clock, origin: Instant::now() };
        Self {
            leases: Api::namespaced(client, namespace),
            name: name.to_owned(),
            timeout,
            watch,
            head,
            vouched: None,
            last: None,
            told: None,
        }
    }

    /// Whether this process leads, for whoever acts.
    pub fn leads(&self) -> Leads {
        let watch = self.watch.clone();
        Arc::new(move || {
            let now = watch.now();
            watch.election().leads(now)
        })
    }

    /// Why this process would not take over, for the probes while it stands by.
    pub fn why_not_ready(&self) -> WhyNotReady {
        let watch = self.watch.clone();
        Arc::new(move || watch.election().why_not_ready(watch.now()))
    }

    /// Waits until this process leads. None, if it was stopped before.
    ///
    /// # Errors
    /// Why it never will: it took the lease, and stood still until that was too long ago to lead by. Whoever calls ends, and
    /// the process that is started next stands for election with nothing in its hands.
    pub async fn until_leads(&mut self, stop: &CancellationToken) -> Result<Option<Won>, Loss> {
        let mut told = None;
        loop {
            let wait = self.step().await?;
            let (leads, holder) = {
                let (now, mut election) = (self.watch.now(), self.watch.election());
                (election.leads(now), election.holder().map(str::to_owned))
            };
            if leads {
                tracing::info!(lease = self.name, "leads");
                let election = self.watch.election();
                return Ok(Some(Won { term: election.transitions(), head: election.head().cloned() }));
            }
            if told.as_ref() != Some(&holder) {
                tracing::info!(lease = self.name, leader = holder.as_deref().unwrap_or("nobody yet"), "stands by");
                told = Some(holder);
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(None),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// What a leader before us vouched for of what guards the requests, as the Lease has it.
    pub fn vouched(&self) -> Option<String> {
        self.last.as_ref()?.metadata.annotations.as_ref()?.get(ENFORCEMENT).cloned()
    }

    /// From now on each renewal bears what `vouched` says.
    pub fn vouch(&mut self, vouched: Vouched) {
        self.vouched = Some(vouched);
    }

    /// Renews the lease for as long as it can.
    ///
    /// # Errors
    /// Why this process leads no more, once it does not; `Ok` if it was told to stop, and then it leads still.
    pub async fn keep(&mut self, stop: &CancellationToken) -> Result<(), Loss> {
        loop {
            let wait = self.step().await?;
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Gives the lease back, so that the next leader need not wait for its end. From here on this process does not lead.
    pub async fn release(&mut self) {
        // Twice: a renewal that nobody heard of may have made it another version.
        for _ in 0..2 {
            let head = (self.head)();
            let now = self.watch.now();
            let released = self.watch.election().release(now, head);
            let Some(record) = released else { return };
            let known = match self.write(&record).await {
                Ok(Written::Stored(_)) => return tracing::info!(lease = self.name, "gave the lease back"),
                Ok(Written::Stale) => self.read().await,
                Err(error) => Err(error),
            };
            match known {
                Ok(lease) => {
                    let now = self.watch.now();
                    self.watch.election().read(now, lease.as_ref().map(LeaseRecord::of));
                    self.last = lease;
                }
                Err(error) => {
                    tracing::warn!(lease = self.name, error = chain(&*error), "the lease was not given back");
                    break;
                }
            }
        }
        tracing::warn!(lease = self.name, "the lease runs out by itself");
    }

    /// Takes one step; returns how long to wait before the next.
    async fn step(&mut self) -> Result<Duration, Loss> {
        let head = (self.head)();
        let sent = self.watch.now();
        let step = self.watch.election().next(sent, head);
        let outcome = match step {
            Step::Wait(wait) => return Ok(wait),
            Step::Lost(loss) => return Err(loss),
            Step::Read => match self.read().await {
                Ok(lease) => {
                    let record = lease.as_ref().map(LeaseRecord::of);
                    self.last = lease;
                    let now = self.watch.now();
                    self.watch.election().read(now, record);
                    Ok(())
                }
                Err(error) => Err(error),
            },
            Step::Write(wanted) => match self.write(&wanted).await {
                Ok(Written::Stored(lease)) => {
                    let now = self.watch.now();
                    self.watch.election().wrote(sent, now, LeaseRecord::of(&lease));
                    self.last = Some(*lease);
                    Ok(())
                }
                Ok(Written::Stale) => {
                    let now = self.watch.now();
                    self.watch.election().failed(now);
                    Ok(())
                }
                Err(error) => Err(error),
            },
        };
        if let Err(error) = outcome {
            if self.told.is_none_or(|told| told.elapsed() >= TOLD_INTERVAL) {
                self.told = Some(Instant::now());
                tracing::warn!(lease = self.name, error = chain(&*error), "the lease could not be asked for");
            }
            let now = self.watch.now();
            self.watch.election().failed(now);
        }
        Ok(Duration::ZERO)
    }

    async fn read(&self) -> Result<Option<Lease>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(tokio::time::timeout(self.timeout, self.leases.get_opt(&self.name)).await??)
    }

    async fn write(&self, wanted: &LeaseRecord) -> Result<Written, Box<dyn std::error::Error + Send + Sync>> {
        let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        let known = self.last.clone().filter(|_| wanted.version.is_some()).unwrap_or_default();
        let mut lease = wanted.onto(known, &self.name);
        if let Some(vouched) = self.vouched.as_ref().and_then(|vouched| vouched()) {
            lease.metadata.annotations.get_or_insert_default().insert(ENFORCEMENT.to_owned(), vouched);
        }
        let answer = if wanted.version.is_some() {
            tokio::time::timeout(self.timeout, self.leases.replace(&self.name, &params, &lease)).await?
        } else {
            tokio::time::timeout(self.timeout, self.leases.create(&params, &lease)).await?
        };
        match answer {
            Ok(stored) => Ok(Written::Stored(Box::new(stored))),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(Written::Stale),
            // Without a version it is the namespace that is not there.
            Err(kube::Error::Api(status)) if status.code == 404 && wanted.version.is_some() => Ok(Written::Stale),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::extract::State;
    use axum::http::Method;
    use jiff::{SignedDuration, Timestamp};
    use serde_json::{Value, json};

    use super::*;

    const LEASE: Duration = Duration::from_secs(9);
    /// Longer than any step that a candidate takes, on paused time.
    const SOON: Duration = Duration::from_secs(60);

    /// An API server with a Lease that was given back. Before a candidate reads what came of its write, time passes.
    struct ApiServer {
        lease: Mutex<Value>,
        now: Mutex<Timestamp>,
        pause: SignedDuration,
    }

    async fn answer(State(api): State<Arc<ApiServer>>, method: Method, body: String) -> String {
        let mut lease = api.lease.lock().unwrap();
        if method == Method::PUT {
            *lease = serde_json::from_str(&body).unwrap();
            lease["metadata"]["resourceVersion"] = "8".into();
            *api.now.lock().unwrap() += api.pause;
        }
        lease.to_string()
    }

    /// What becomes of a candidate that stands still for so many seconds while it takes the lease over.
    async fn outcome(pause: i64) -> Result<Option<Won>, Loss> {
        let lease = json!({
            "metadata": {"name": "controller", "resourceVersion": "7"},
            "spec": {"holderIdentity": "", "leaseDurationSeconds": LEASE.as_secs(), "leaseTransitions": 2,
                "acquireTime": "2026-03-01T09:00:00.000000Z"},
        });
        let api = Arc::new(ApiServer {
            lease: Mutex::new(lease),
            now: Mutex::new("2026-03-01T10:00:00Z".parse().unwrap()),
            pause: SignedDuration::from_secs(pause),
        });
        let client = Client::new(Router::new().fallback(answer).with_state(Arc::clone(&api)), "default");
        let clock: Clock = {
            let api = Arc::clone(&api);
            Arc::new(move || *api.now.lock().unwrap())
        };
        let terms = Terms { identity: "a".to_owned(), lease: LEASE };
        let mut candidate = Candidate::new(client, "default", "controller", terms, clock, Arc::new(|| None));
        let stop = CancellationToken::new();
        let outcome = tokio::time::timeout(SOON, candidate.until_leads(&stop)).await;
        assert_eq!(api.lease.lock().unwrap()["spec"]["holderIdentity"], "a", "it took the lease over");
        outcome.expect("it stands by, although it can never lead")
    }

    #[tokio::test(start_paused = true)]
    async fn a_candidate_that_stands_still_while_it_takes_over_ends_as_a_leader_does_that_is_late() {
        let won = Ok(Some(Won { term: 3, head: None }));
        for (pause, expected) in [(0, won.clone()), (5, won), (6, Err(Loss::Late)), (600, Err(Loss::Late))] {
            assert_eq!(outcome(pause).await, expected, "after {pause} s");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_candidate_that_cannot_ask_waits_until_it_is_told_to_stop() {
        let unreachable = Router::new().fallback(|| async { axum::http::StatusCode::SERVICE_UNAVAILABLE });
        let terms = Terms { identity: "a".to_owned(), lease: LEASE };
        let clock: Clock = Arc::new(|| Timestamp::UNIX_EPOCH);
        let client = Client::new(unreachable, "default");
        let mut candidate = Candidate::new(client, "default", "controller", terms, clock, Arc::new(|| None));
        let stop = CancellationToken::new();
        let waits = tokio::time::timeout(SOON, candidate.until_leads(&stop)).await;
        assert!(waits.is_err(), "an API server that is away for a while is no loss: {waits:?}");
        stop.cancel();
        assert_eq!(candidate.until_leads(&stop).await, Ok(None));
    }
}
