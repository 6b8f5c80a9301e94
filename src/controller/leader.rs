//! Carries out an election: reads and writes the Lease, and tells everybody else whether we lead.
//!
//! What a step is, and why, is decided in [`crate::domain::lease`]. Whoever waits holds no trail and no timer, and
//! watches only to remember ([`super::remember`]); a leader that has lost the lease ends. So each term begins by reading
//! everything from the API server.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::domain::lease::{Election, LeaseRecord, Loss, Moment, Step, Terms, TrailHead};
use crate::telemetry::chain;

use super::FIELD_MANAGER;

/// The annotation of the Lease that bears the head of the audit trail, `SEQUENCE:DIGEST`.
const HEAD: &str = "instanceaccess.dev/audit-head";
/// The annotation that names the file in which the head stands, so that whoever has another one knows that it is no longer.
const FILE: &str = "instanceaccess.dev/audit-file";

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
    pub async fn until_leads(&mut self, stop: &CancellationToken) -> Option<Won> {
        let mut told = None;
        loop {
            let wait = self.step().await.unwrap_or(self.timeout);
            let (leads, holder) = {
                let (now, mut election) = (self.watch.now(), self.watch.election());
                (election.leads(now), election.holder().map(str::to_owned))
            };
            if leads {
                tracing::info!(lease = self.name, "leads");
                let election = self.watch.election();
                return Some(Won { term: election.transitions(), head: election.head().cloned() });
            }
            if told.as_ref() != Some(&holder) {
                tracing::info!(lease = self.name, leader = holder.as_deref().unwrap_or("nobody yet"), "stands by");
                told = Some(holder);
            }
            tokio::select! {
                () = stop.cancelled() => return None,
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
                    self.watch.election().read(now, lease.as_ref().map(record_of));
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
                    let record = lease.as_ref().map(record_of);
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
                    self.watch.election().wrote(sent, now, record_of(&lease));
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
        let mut lease = lease(known, &self.name, wanted);
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

/// A Lease as the election sees it. What is not there, or out of its bounds, is as if it had been there for long.
fn record_of(lease: &Lease) -> LeaseRecord {
    let metadata = &lease.metadata;
    let spec = lease.spec.clone().unwrap_or_default();
    let time = |time: Option<MicroTime>| time.map(|MicroTime(time)| time);
    let annotation = |name| metadata.annotations.as_ref().and_then(|annotations| annotations.get(name)).cloned();
    let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    LeaseRecord {
        version: metadata.resource_version.clone(),
        holder: spec.holder_identity.filter(|holder| !holder.is_empty()),
        duration: Duration::from_secs(seconds.unwrap_or_default()),
        acquire_time: time(spec.acquire_time),
        renew_time: time(spec.renew_time),
        transitions: spec.lease_transitions.unwrap_or_default(),
        head: annotation(HEAD).map(|receipt| TrailHead { receipt, file: annotation(FILE) }),
    }
}

/// The Lease to write, with all that others have put on it.
fn lease(known: Lease, name: &str, wanted: &LeaseRecord) -> Lease {
    let mut lease = known;
    lease.metadata.name = Some(name.to_owned());
    lease.metadata.resource_version.clone_from(&wanted.version);
    lease.metadata.managed_fields = None;
    if let Some(TrailHead { receipt, file }) = &wanted.head {
        let annotations = lease.metadata.annotations.get_or_insert_default();
        annotations.insert(HEAD.to_owned(), receipt.clone());
        match file {
            Some(file) => drop(annotations.insert(FILE.to_owned(), file.clone())),
            None => drop(annotations.remove(FILE)),
        }
    }
    let time = |time: Option<Timestamp>| time.map(MicroTime);
    lease.spec = Some(LeaseSpec {
        holder_identity: Some(wanted.holder.clone().unwrap_or_default()),
        lease_duration_seconds: Some(i32::try_from(wanted.duration.as_secs()).unwrap_or(i32::MAX)),
        acquire_time: time(wanted.acquire_time),
        renew_time: time(wanted.renew_time),
        lease_transitions: Some(wanted.transitions),
        ..lease.spec.unwrap_or_default()
    });
    lease
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_others_put_on_the_lease_stays_there() {
        let known: Lease = serde_json::from_value(json!({
            "metadata": {"name": "it", "uid": "u", "resourceVersion": "7", "labels": {"app": "it"}, "annotations": {"theirs": "1"}},
            "spec": {"holderIdentity": "", "leaseDurationSeconds": 9, "strategy": "OldestEmulationVersion"},
        }))
        .unwrap();
        let seen = record_of(&known);
        assert_eq!((seen.holder.as_deref(), seen.version.as_deref()), (None, Some("7")));
        let head = TrailHead { receipt: "4:ab".to_owned(), file: Some("cd".to_owned()) };
        let wanted = LeaseRecord { holder: Some("a".to_owned()), head: Some(head.clone()), ..seen };
        let written = serde_json::to_value(lease(known, "it", &wanted)).unwrap();
        // With it a PUT makes no Lease where one was deleted.
        assert_eq!(written["metadata"]["uid"], "u");
        assert_eq!(written["metadata"]["labels"], json!({"app": "it"}));
        assert_eq!(written["metadata"]["annotations"], json!({"theirs": "1", HEAD: "4:ab", FILE: "cd"}));
        let stored: Lease = serde_json::from_value(written.clone()).unwrap();
        assert_eq!(record_of(&stored).head, Some(head));
        // A head of one file and the name of another would say that the one lost its end.
        let unnamed = LeaseRecord { head: Some(TrailHead { receipt: "5:ab".to_owned(), file: None }), ..wanted };
        let unnamed = serde_json::to_value(lease(stored, "it", &unnamed)).unwrap();
        assert_eq!(unnamed["metadata"]["annotations"], json!({"theirs": "1", HEAD: "5:ab"}));
        assert_eq!(written["spec"]["holderIdentity"], "a");
        assert_eq!(written["spec"]["strategy"], "OldestEmulationVersion");
    }

    #[test]
    fn a_lease_without_a_spec_is_nobodys_and_not_free() {
        let seen = record_of(&Lease::default());
        assert_eq!((seen.holder, seen.acquire_time, seen.duration), (None, None, Duration::ZERO));
    }
}
