//! A stand-in for AWS: EC2 look-ups, EC2 Instance Connect, endpoint tunnels, instance metadata, STS.
//!
//! It refuses what AWS refuses, with AWS's words. It knows nothing of the product: a belief shared by both sides
//! would be tested by neither.
//!
//! # Guesses
//!
//! AWS publishes neither of these; nothing should be built on how the stand-in has them:
//! - the rate of SendSSHPublicKey; HTTP statuses of EC2 Instance Connect (its pages disagree; 400, and 500 for
//!   `ServiceException`); that a *pending* instance is `EC2InstanceStateInvalidException` too;
//! - a tunnel's errors but that of a wrong port, the status beyond its limit of connections (429), the codes with
//!   which its websocket closes;
//! - the wording of most messages, and how EC2 words a page size above 1,000.
//!
//! Not there at all: IAM policies (but [`FaultKind::Deny`]), eventual consistency, any order of answers but by id.
//!
//! # Parts
//!
//! ```text
//!  SDK, CLI ──► api_addr ──┬─ Query form ──────► ec2, sts ─┐
//!                          ├─ X-Amz-Target ────► eic ──────┤ sigv4 · fault · bucket ──► journal
//!  gateway ────────────────┼─ /openTunnel ─────► tunnel ───┤       world · keys
//!  other processes ────────┴─ /_lab/… ─────────► control   │
//!  sshd's key command ──► metadata_addr ───────► metadata ─┘
//! ```

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::AbortHandle;

mod api;
mod bucket;
mod clock;
mod control;
mod ec2;
mod eic;
mod fault;
mod http;
mod journal;
mod keys;
mod metadata;
mod sigv4;
mod sts;
mod tunnel;
mod world;
mod xml;

pub use bucket::{Bucket, Rates};
pub use fault::{Fault, FaultKind};
pub use journal::{Api, Entry, Outcome};
pub use keys::{ActiveKey, KEY_WINDOW};
pub use world::{Endpoint, Instance};

/// The account of callers and instances that name no other.
pub const ACCOUNT_ID: &str = "123456789012";

/// A long-term or temporary credential whose secret the stand-in knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// The access key's id.
    pub access_key_id: String,
    /// Its secret.
    pub secret_access_key: String,
    /// The token of a temporary credential.
    pub session_token: Option<String>,
    /// Whose it is.
    pub account_id: String,
}

/// How the stand-in behaves. Without rates and credentials it neither throttles nor judges signatures themselves.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the API listens.
    pub api_addr: SocketAddr,
    /// Where the metadata service listens.
    pub metadata_addr: SocketAddr,
    /// The account of callers whose access key is in no list.
    pub account_id: String,
    /// If not empty, only these access keys and those that AssumeRole gave are known, and their signatures judged.
    pub credentials: Vec<Credential>,
    /// How far a signature's time may be off. AWS: five minutes.
    pub clock_skew_max: Duration,
    /// Request rates; without them nothing is throttled.
    pub rates: Option<Rates>,
    /// Connections through one endpoint. AWS: 20.
    pub tunnel_connections_max: usize,
    /// Ports beside 22 and 3389 that a tunnel may go to, for labs that an ordinary user runs. AWS: none.
    pub extra_tunnel_ports: Vec<u16>,
    /// Entries that the journal keeps.
    pub journal_entries_max: usize,
    /// How long a terminated instance is shown.
    pub terminated_shown_for: Duration,
    /// Counts what a filter drops towards a page, so that a page may be short or empty and yet not the last.
    /// EC2 was seen to do this.
    pub sparse_pages: bool,
    /// For the dice of faults with a probability.
    pub random_seed: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            api_addr: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            metadata_addr: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            account_id: ACCOUNT_ID.into(),
            credentials: Vec::new(),
            clock_skew_max: Duration::from_secs(300),
            rates: None,
            tunnel_connections_max: 20,
            extra_tunnel_ports: Vec::new(),
            journal_entries_max: 200_000,
            terminated_shown_for: ec2::TERMINATED_SHOWN_FOR,
            sparse_pages: false,
            random_seed: 0x9e37_79b9_7f4a_7c15,
        }
    }
}

/// What all parts see.
struct Shared {
    config: Config,
    clock: clock::Clock,
    world: world::World,
    keyring: keys::Keyring,
    journal: journal::Journal,
    faults: fault::Faults,
    buckets: bucket::Buckets,
    sessions: sts::Sessions,
    tunnels: tunnel::Tunnels,
    stopped: watch::Sender<bool>,
}

impl Shared {
    fn put_instance(&self, instance: Instance) {
        if instance.state == "terminated" {
            self.keyring.remove_instance(&instance.id);
        }
        self.world.put_instance(instance, self.clock.now());
    }

    fn remove_instance(&self, id: &str) -> bool {
        self.keyring.remove_instance(id);
        self.world.remove_instance(id)
    }
}

/// The running stand-in. Clones are handles to the same one; it stops when the last is dropped.
#[derive(Clone)]
pub struct StandIn {
    shared: Arc<Shared>,
    running: Arc<Running>,
}

impl fmt::Debug for StandIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StandIn")
            .field("api_addr", &self.running.api_addr)
            .field("metadata_addr", &self.running.metadata_addr)
            .finish_non_exhaustive()
    }
}

struct Running {
    api_addr: SocketAddr,
    metadata_addr: SocketAddr,
    tasks: [AbortHandle; 2],
    shared: Arc<Shared>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shared.stopped.send_replace(true);
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl StandIn {
    /// Binds its listeners and serves on the current tokio runtime.
    ///
    /// # Errors
    /// An address cannot be bound.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        let bind = async |addr: SocketAddr| {
            let listener = TcpListener::bind(addr).await.with_context(|| format!("cannot listen on {addr}"))?;
            let addr = listener.local_addr().context("a listener without address")?;
            anyhow::Ok((listener, addr))
        };
        let (api, api_addr) = bind(config.api_addr).await?;
        let (metadata, metadata_addr) = bind(config.metadata_addr).await?;
        let shared = Arc::new(Shared {
            clock: clock::Clock::new(),
            world: world::World::new(config.terminated_shown_for),
            keyring: keys::Keyring::default(),
            journal: journal::Journal::new(config.journal_entries_max),
            faults: fault::Faults::new(config.random_seed),
            buckets: bucket::Buckets::new(config.rates),
            sessions: sts::Sessions::default(),
            tunnels: tunnel::Tunnels::default(),
            stopped: watch::Sender::new(false),
            config,
        });
        let api = {
            let shared = shared.clone();
            http::serve(api, move |conn, request| api::answer(shared.clone(), conn, request))
        };
        let metadata = {
            let shared = shared.clone();
            http::serve(metadata, move |conn, request| metadata::answer(shared.clone(), conn, request))
        };
        let tasks = [tokio::spawn(api).abort_handle(), tokio::spawn(metadata).abort_handle()];
        let running = Running { api_addr, metadata_addr, tasks, shared: shared.clone() };
        Ok(Self { shared, running: Arc::new(running) })
    }

    /// Where EC2, EC2 Instance Connect, STS, tunnels and the lab's control are served, on plain HTTP.
    pub fn api_addr(&self) -> SocketAddr {
        self.running.api_addr
    }

    /// Where hosts read their metadata.
    pub fn metadata_addr(&self) -> SocketAddr {
        self.running.metadata_addr
    }

    /// Adds an instance, or replaces the one with its id.
    pub fn put_instance(&self, instance: Instance) {
        self.shared.put_instance(instance);
    }

    /// Forgets an instance and its keys, as if it had never been.
    pub fn remove_instance(&self, id: &str) {
        self.shared.remove_instance(id);
    }

    /// Adds an endpoint, or replaces the one with its id. Open tunnels go on.
    pub fn put_endpoint(&self, endpoint: Endpoint) {
        self.shared.world.put_endpoint(endpoint);
    }

    /// Forgets an endpoint. Open tunnels go on.
    pub fn remove_endpoint(&self, id: &str) {
        self.shared.world.remove_endpoint(id);
    }

    /// The calls so far, in the order in which they ended.
    pub fn journal(&self) -> Vec<Entry> {
        self.journal_since(0)
    }

    /// The calls from this sequence number on.
    pub fn journal_since(&self, sequence: u64) -> Vec<Entry> {
        self.shared.journal.since(sequence).0
    }

    /// How many calls fell out of the journal because it was full.
    pub fn journal_dropped(&self) -> u64 {
        self.shared.journal.since(u64::MAX).1
    }

    /// Adds a fault.
    pub fn set_fault(&self, fault: Fault) {
        self.shared.faults.set(fault);
    }

    /// The faults that are still to act: one that has acted its times is gone.
    pub fn faults(&self) -> Vec<Fault> {
        self.shared.faults.list()
    }

    /// Takes all faults away.
    pub fn clear_faults(&self) {
        self.shared.faults.clear();
    }

    /// Takes the faults of one instance away.
    pub fn clear_faults_on(&self, instance_id: &str) {
        self.shared.faults.clear_on(instance_id);
    }

    /// The keys that the instance may read for this login now, oldest first.
    pub fn active_keys(&self, instance_id: &str, os_user: &str) -> Vec<String> {
        self.shared.keyring.active(instance_id, os_user, self.shared.clock.now())
    }

    /// Every key that any host may read now.
    pub fn all_active_keys(&self) -> Vec<ActiveKey> {
        self.shared.keyring.all(self.shared.clock.now())
    }

    /// The connections that are open through an endpoint.
    pub fn open_tunnels(&self, endpoint_id: &str) -> usize {
        self.shared.tunnels.open(endpoint_id)
    }

    /// Moves the stand-in's own clock forward: keys fade, tunnels end, buckets fill. The wall clock, by which
    /// signatures and the credentials of roles are judged, stays.
    pub fn advance(&self, by: Duration) {
        self.shared.clock.advance(by);
    }

    /// The stand-in's own clock: time since its start and what was skipped.
    pub fn elapsed(&self) -> Duration {
        self.shared.clock.now()
    }
}
