//! Whether a controller leads: who pushes keys asks first, as nobody else judges policies.
//!
//! What a read proves is decided in `domain::lease`. Reads are by a quorum, one at a time; there is one each second, and one
//! just before a push.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client};
use tokio::sync::Mutex as Turn;
use tokio::time::{sleep, timeout};

use crate::clock::Clock;
use crate::domain::lease::{Bystander, Leader, LeaseRecord, Moment};
use crate::telemetry::chain;

/// Gap between two looks: of a lease of 9 s, which is renewed each 1.5 s, little is lost.
const LOOK: Duration = Duration::from_secs(1);
/// How long the API server may take to answer.
const READ_TIMEOUT: Duration = Duration::from_secs(3);
/// How long whoever needs a leader waits for one to be seen: the longest lease, of 120 s, is renewed every 20 s.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(25);

/// A Lease, by namespace and name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaderLease {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// Why no key is pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotLed {
    /// Nobody leads.
    Nobody,
    /// The lease could not be read.
    Unread,
}

/// The lease of the controllers, as this gateway saw it.
pub struct Leaders {
    leases: Api<Lease>,
    name: String,
    clock: Clock,
    origin: Instant,
    bystander: Mutex<Bystander>,
    /// When the newest read was begun, and how it went.
    reading: Turn<Option<(Instant, Result<(), String>)>>,
}

impl Leaders {
    /// Nothing was seen yet.
    pub fn new(client: Client, lease: &LeaderLease, clock: Clock) -> Self {
        Self {
            leases: Api::namespaced(client, &lease.namespace),
            name: lease.name.clone(),
            clock,
            origin: Instant::now(),
            bystander: Mutex::default(),
            reading: Turn::default(),
        }
    }

    fn bystander(&self) -> MutexGuard<'_, Bystander> {
        self.bystander.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Moment {
        Moment { ticks: self.origin.elapsed(), time: (self.clock)() }
    }

    /// Whether somebody leads, as far as was seen. Answers from memory.
    pub fn leader(&self) -> Leader {
        let now = self.now();
        self.bystander().leader(now)
    }

    /// Reads the lease now; a read that somebody else began since is as good.
    async fn look(&self) -> Result<(), String> {
        let wanted = Instant::now();
        let mut reading = self.reading.lock().await;
        if let Some((begun, read)) = &*reading
            && *begun >= wanted
        {
            return read.clone();
        }
        let (begun, asked) = (Instant::now(), self.now());
        let read = match timeout(READ_TIMEOUT, self.leases.get_opt(&self.name)).await {
            Ok(Ok(lease)) => {
                let now = self.now();
                self.bystander().read(asked, now, lease.as_ref().map(LeaseRecord::of));
                Ok(())
            }
            Ok(Err(error)) => Err(chain(&error)),
            Err(_) => Err(format!("no answer within {} s", READ_TIMEOUT.as_secs())),
        };
        *reading = Some((begun, read.clone()));
        read
    }

    /// Asks the API server whether somebody leads, and waits for as long as it may yet turn out.
    ///
    /// # Errors
    /// Why nothing may be pushed.
    pub async fn confirm(&self) -> Result<(), NotLed> {
        let confirmed = async {
            loop {
                if let Err(error) = self.look().await {
                    tracing::warn!(lease = self.name, error, "the lease of the controllers could not be read");
                    return Err(NotLed::Unread);
                }
                match self.leader() {
                    Leader::Lives => return Ok(()),
                    Leader::Nobody => return Err(NotLed::Nobody),
                    Leader::Unclear => sleep(LOOK).await,
                }
            }
        };
        timeout(CONFIRM_TIMEOUT, confirmed).await.unwrap_or(Err(NotLed::Nobody))
    }
}

/// Looks at the lease each second, for as long as it is awaited; tells when it becomes another thing.
pub async fn keep_leader(leaders: Option<Arc<Leaders>>) {
    let Some(leaders) = leaders else { return };
    let mut told = None;
    loop {
        let read = leaders.look().await;
        let leader = leaders.leader();
        if told != Some(leader) {
            match (leader, &read) {
                (Leader::Lives, _) => tracing::info!(lease = leaders.name, "a controller leads"),
                (Leader::Unclear, Ok(())) => {}
                (Leader::Unclear, Err(error)) => tracing::warn!(
                    lease = leaders.name,
                    error,
                    "the lease of the controllers cannot be read; keyDelivery OnConnect is refused until it can"
                ),
                (Leader::Nobody, _) => tracing::warn!(
                    lease = leaders.name,
                    "no controller leads, and nobody judges policies; keyDelivery OnConnect is refused until one does"
                ),
            }
            told = Some(leader);
        }
        sleep(LOOK).await;
    }
}
