//! Watches requests, people's decisions, policies, nodes and what guards them, carries plans out, writes status.
//!
//! ```text
//! watch requests ─┐                    ┌ audit, then status, then push, look-up, event
//! watch policies ─┼─> Slots ── turn ───┤
//! watch nodes ────┤                    │
//! decisions, time ┘    (one turn a request at a time; next() decides, turn obeys)
//! ```
//! Why anything is done is decided in `domain`; in here nobody compares times or reads the names of AWS's errors.

mod census;
mod contact;
mod decisions;
mod effects;
mod enforcement;
mod events;
mod kept;
mod leader;
mod ledger;
mod nodes;
mod policies;
mod records;
mod slots;
mod spans;
mod standby;
mod step;
mod timers;
mod turn;
mod watch;
mod write;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use kube::Client;
use tokio::sync::{Semaphore, watch as signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admission::ServiceAccount;
use crate::aws::{Cloud, LookupLimits, Lookups, PushLimits, Pushes};
use crate::clock::Clock;
use crate::domain::enforcement::Enforcement;
use crate::domain::lifecycle::{self, Lane, Settings};
use crate::domain::node::Nodes;
use crate::domain::policy::PolicySet;
use crate::telemetry::{Metrics, Reading};

use contact::Contact;
use enforcement::Guard;
pub use leader::{Candidate, Head, Leads, WhyNotReady, Won};
pub use records::{Records, Term};
use slots::Slots;
pub use standby::remember;
use timers::Timers;
use write::Writer;

/// The name under which the operator reports Events and writes status.
pub const FIELD_MANAGER: &str = "instance-access";
/// Plans with a write in them that are carried out at once, in each lane: some for each of the writer's places, so that
/// none of those is idle, and few enough that a flood of requests waits as requests, not as plans.
const PLACES: usize = 64;
/// How long running turns may take to finish at shutdown: one push and one write.
const DRAIN: Duration = Duration::from_secs(15);

/// What a controller is made of.
pub struct Parts {
    /// The API server.
    pub client: Client,
    /// The cloud.
    pub cloud: Arc<dyn Cloud>,
    /// How fast keys are pushed.
    pub push_limits: PushLimits,
    /// How fast instances are looked up.
    pub lookup_limits: LookupLimits,
    /// The audit trail.
    pub records: Arc<Records>,
    /// Whether this process may act; one that is alone always may.
    pub leads: Leads,
    /// What the leader before this one said of what guards the requests.
    pub vouched: Option<String>,
    /// The wall clock.
    pub clock: Clock,
    /// The operator's own place.
    pub settings: Settings,
    /// The gateways' service accounts, which the admission policies name beside its own.
    pub gateways: Vec<ServiceAccount>,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

/// Everything that a turn needs, shared by all of them.
struct Shared {
    client: Client,
    writer: Writer,
    lookups: Lookups,
    pushes: Pushes,
    records: Arc<Records>,
    clock: Clock,
    settings: Settings,
    gateways: Vec<ServiceAccount>,
    metrics: Arc<Metrics>,
    policies: RwLock<Arc<PolicySet>>,
    places: Places,
    nodes: RwLock<Arc<Nodes>>,
    ledger: ledger::Book,
    askers: nodes::Askers,
    decisions: decisions::Index,
    census: Arc<census::Counter>,
    slots: Slots,
    timers: Timers,
    events: events::Events,
    tasks: TaskTracker,
    /// Ends the look-ups: nobody has a turn after the word to stop, and so nobody waits for their answers.
    look_ups_end: CancellationToken,
    may_push: Arc<AtomicBool>,
    leads: Leads,
    /// When this process began to look.
    since_time: Timestamp,
    contact: Arc<Contact>,
    guard: Arc<Guard>,
    health: Health,
}

/// Turns that may have a plan with a write in their hands, by lane: no lane waits for another, and whoever has access
/// already does not queue behind those who want it.
struct Places {
    ends: Semaphore,
    live: Semaphore,
    grants: Semaphore,
    words: Semaphore,
    leaving: Semaphore,
}

impl Default for Places {
    fn default() -> Self {
        let places = || Semaphore::new(PLACES);
        Self { ends: places(), live: places(), grants: places(), words: places(), leaving: places() }
    }
}

impl Places {
    /// The places of a lane, for a request whose grant lives, or not.
    fn of(&self, (lane, is_live): (Lane, bool)) -> &Semaphore {
        match (lane, is_live) {
            (Lane::End, _) => &self.ends,
            (Lane::Grant, true) => &self.live,
            (Lane::Grant, false) => &self.grants,
            (Lane::Word, _) => &self.words,
            (Lane::Leave, _) => &self.leaving,
        }
    }
}

impl Shared {
    /// The policies as they are known now.
    fn policies(&self) -> Arc<PolicySet> {
        Arc::clone(&self.policies.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The nodes as they are known now.
    fn nodes(&self) -> Arc<Nodes> {
        Arc::clone(&self.nodes.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether the word to stop was given, or another process leads: nothing is pushed any more, and no turn begins.
    fn is_stopping(&self) -> bool {
        !self.may_push.load(Ordering::Acquire) || !(self.leads)()
    }
}

/// Whether the controller is there, and whether it can do its work.
#[derive(Clone)]
pub struct Health {
    requests_listed: signal::Sender<bool>,
    policies_listed: signal::Sender<bool>,
    decisions_listed: signal::Sender<bool>,
    ledger_listed: signal::Sender<bool>,
    beat: signal::Sender<Timestamp>,
    contact: Arc<Contact>,
    guard: Arc<Guard>,
}

impl Health {
    fn new(now: Timestamp, contact: Arc<Contact>, guard: Arc<Guard>) -> Self {
        Self {
            contact,
            guard,
            requests_listed: signal::channel(false).0,
            policies_listed: signal::channel(false).0,
            decisions_listed: signal::channel(false).0,
            ledger_listed: signal::channel(false).0,
            beat: signal::channel(now).0,
        }
    }

    /// Why a request that is made now would not be granted; none, if the operator can do its work.
    pub fn why_not_ready(&self, now: Timestamp) -> Option<String> {
        let unread: Vec<&str> =
            self.lists().into_iter().filter(|(_, listed)| !*listed.borrow()).map(|(name, _)| name).collect();
        if !unread.is_empty() {
            return Some(format!(
                "the API server has not been heard to list {}, or does not allow it; the log says why",
                unread.join(", ")
            ));
        }
        if !self.hears(now) {
            return Some("the API server is not heard; the log says why".to_owned());
        }
        match self.guard.enforcement(now) {
            Enforcement::Unseen => Some("what guards the requests has not been looked at yet".to_owned()),
            Enforcement::Missing(findings) => Some(findings.to_string()),
            stands if !stands.covers(now) => Some(
                "what guards the requests was applied just now, and the API server takes it up within seconds"
                    .to_owned(),
            ),
            Enforcement::Stands { .. } => None,
        }
    }

    /// Whether all lists were read once (before, nothing is decided), and the API server is heard.
    pub fn hears(&self, now: Timestamp) -> bool {
        let listed = self.lists().into_iter().all(|(_, listed)| *listed.borrow());
        listed && self.contact.lost_time(now).is_none()
    }

    /// What must be read once before anything is decided, by resource, and whether it was.
    fn lists(&self) -> [(&'static str, &signal::Sender<bool>); 4] {
        [
            ("instanceaccesses", &self.requests_listed),
            ("instanceaccesspolicies", &self.policies_listed),
            ("instanceaccessdecisions", &self.decisions_listed),
            ("instanceaccessledgerentries", &self.ledger_listed),
        ]
    }

    /// Whether the timers still turn.
    pub fn is_live(&self, now: Timestamp) -> bool {
        crate::domain::time::since(now, *self.beat.borrow()) < Duration::from_secs(60)
    }
}

/// A controller that has not started.
pub struct Controller {
    shared: Arc<Shared>,
}

impl Controller {
    /// Puts a controller together.
    pub fn new(parts: Parts) -> Self {
        let Parts {
            client,
            cloud,
            push_limits,
            lookup_limits,
            records,
            leads,
            vouched,
            clock,
            settings,
            gateways,
            metrics,
        } = parts;
        let since_time = clock();
        let may_push = Arc::new(AtomicBool::new(true));
        let contact = Arc::new(Contact::new(since_time));
        let guard = Arc::new(Guard::after(since_time, vouched.as_deref()));
        let fence = {
            let (may_push, guard, clock) = (Arc::clone(&may_push), Arc::clone(&guard), Arc::clone(&clock));
            let (contact, leads) = (Arc::clone(&contact), Arc::clone(&leads));
            Arc::new(move || {
                let now = clock();
                may_push.load(Ordering::Acquire)
                    && leads()
                    && guard.enforcement(now).stands()
                    && !lifecycle::is_contact_lost(now, contact.lost_time(now))
            })
        };
        let census = Arc::new(census::Counter::new(Arc::clone(&clock), settings.principals.clone()));
        let shared = Shared {
            writer: Writer::new(client.clone(), Arc::clone(&leads), Arc::clone(&metrics)),
            lookups: Lookups::new(Arc::clone(&cloud), lookup_limits),
            pushes: Pushes::new(cloud, push_limits, Arc::clone(&clock), fence),
            events: events::Events::new(client.clone(), Arc::clone(&leads), Arc::clone(&clock), Arc::clone(&metrics)),
            client,
            records,
            clock,
            settings,
            gateways,
            metrics,
            policies: RwLock::default(),
            places: Places::default(),
            nodes: RwLock::default(),
            ledger: ledger::Book::default(),
            askers: nodes::Askers::default(),
            decisions: decisions::Index::default(),
            slots: Slots::new(Arc::clone(&census)),
            census,
            timers: Timers::default(),
            tasks: TaskTracker::new(),
            look_ups_end: CancellationToken::new(),
            may_push,
            leads,
            since_time,
            health: Health::new(since_time, Arc::clone(&contact), Arc::clone(&guard)),
            contact,
            guard,
        };
        let shared = Arc::new(shared);
        let rooms = Arc::downgrade(&shared);
        shared.metrics.read_from(move || {
            let Some(shared) = rooms.upgrade() else { return Reading::default() };
            // A guard lives as long as the expression that it is part of: inside of the one below it would be held while
            // requests are locked, and a turn locks them the other way round.
            let ledger_grants = shared.ledger.read().len();
            let now = (shared.clock)();
            Reading {
                pushes: shared.pushes.stats(),
                lookups: shared.lookups.stats(),
                audit: shared.records.stats(),
                audit_is_open: shared.records.head().is_some(),
                requests: shared.slots.len(),
                decisions: shared.decisions.len(),
                ledger_grants,
                grants: shared.census.standing(),
                timers: shared.timers.len(),
                enforcement_stands: shared.guard.enforcement(now).stands(),
                api_server_heard: shared.health.hears(now),
                expects_gateway: shared.settings.gateway.is_some() || !shared.gateways.is_empty(),
            }
        });
        Self { shared }
    }

    /// Whether it is there and can work; for the probes.
    pub fn health(&self) -> Health {
        self.shared.health.clone()
    }

    /// What it vouches for, for the Lease.
    pub fn vouched(&self) -> leader::Vouched {
        let guard = Arc::clone(&self.shared.guard);
        Arc::new(move || guard.vouched())
    }

    /// Runs until it is cancelled, then lets running turns finish.
    ///
    /// From the cancellation on nothing is pushed any more.
    ///
    /// # Errors
    /// If one of its tasks ended by itself: then it heard or saw too little to go on.
    pub async fn run(self, stop: CancellationToken) -> Result<(), TaskDied> {
        let shared = self.shared;
        let mut tasks = JoinSet::new();
        tasks.spawn(policies::watch_policies(Arc::clone(&shared), stop.clone()));
        tasks.spawn(nodes::watch_nodes(Arc::clone(&shared), stop.clone()));
        tasks.spawn(policies::count_grants(Arc::clone(&shared), stop.clone()));
        tasks.spawn(decisions::watch_decisions(Arc::clone(&shared), stop.clone()));
        tasks.spawn(ledger::keep_ledger(Arc::clone(&shared), stop.clone()));
        tasks.spawn(watch::watch_requests(Arc::clone(&shared), stop.clone()));
        tasks.spawn(timers::keep_time(Arc::clone(&shared), stop.clone()));
        tasks.spawn(enforcement::keep_enforcement(Arc::clone(&shared), stop.clone()));
        tasks.spawn(contact::keep_contact(Arc::clone(&shared), stop.clone()));
        // None of them ends before it is told to. One that does leaves us deaf, or without a clock.
        let died = tokio::select! {
            biased;
            () = stop.cancelled() => Ok(()),
            _ = tasks.join_next() => Err(TaskDied),
        };
        shared.may_push.store(false, Ordering::Release);
        stop.cancel();
        shared.look_ups_end.cancel();
        while tasks.join_next().await.is_some() {}
        shared.tasks.close();
        if tokio::time::timeout(DRAIN, shared.tasks.wait()).await.is_err() {
            tracing::warn!(
                turns = shared.tasks.len(),
                "stopped with turns unfinished; status has all that the next start needs"
            );
        }
        died
    }
}

/// A part of the controller ended by itself: a bug. The log has its panic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a part of the controller died; start it again, and report what the log says")]
pub struct TaskDied;
