//! Keys that are pushed for a session, before it is dialled.
//!
//! ```text
//! deliver ─▶ one flight for each grant ─▶ GET lease, GET request ─ domain judges ─▶ record, durable ─▶ push ─▶ record
//!                   ▲ others wait for it, and for a while rely on it
//! ```
//! A flight goes on when the client that it was begun for hangs up: what came of it is on record, and the next one needs
//! it. Its push leaves only while the read is young, by both clocks, and as long as the watch says nothing against it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use kube::Api;
use tokio::sync::{OnceCell, Semaphore, watch};
use tokio::time::{Instant, timeout};

use crate::api::InstanceAccess;
use crate::aws::{ComingCloud, Delivered, Fence, PushError, PushLimits, Pushes};
use crate::domain::push::PushPermit;
use crate::domain::session::{
    KEY_REUSE, NoKey, PushRecord, READ_AGE_MAX, SessionEnd, SessionGrant, Standing, delivery, is_in_time, logins,
    request_name,
};
use crate::domain::time::is_fresh;
use crate::telemetry::chain;
use crate::traces::{Context, Span};

use super::Shared;
use super::leader::{Leaders, NotLed};
use super::session::{opened, write_down};
use crate::domain::lease::Leader;

/// How long the API server may take to confirm a grant, the wait for a place among the readers aside.
const READ_TIMEOUT: Duration = Duration::from_secs(3);
const _: () = assert!(READ_TIMEOUT.as_secs() < READ_AGE_MAX.as_secs());
/// Reads at once: a thousand clients that come back after an outage are no flood to the API server.
const READS_MAX: usize = 16;
/// How long a read may wait for its place.
const PLACE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a session waits for the keys of other logins that it may turn out to be.
const OTHERS_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a failure stands for all who ask on that grant: whoever tries without end costs AWS one call in that time.
const FAILURE_KEPT: Duration = Duration::from_secs(1);
/// Grants of which a flight is remembered; beyond that, those of no more use are forgotten.
const REMEMBERED_MAX: usize = 1024;
/// Pushes that may wait their turn in one region: more would come too late for their reads.
const WAITING_MAX: usize = 256;

/// How a flight ended: when its push left, by both clocks, or why there is no key, and since when that is known.
type Outcome = Result<(Instant, Timestamp), (Instant, NoKey)>;

/// The gateway's pushes.
pub struct KeyPushes {
    cloud: ComingCloud,
    pushes: OnceCell<Option<Pushes>>,
    reads: Semaphore,
    // By grant id. At most as many as were asked for within the last half minute, and a few.
    flights: Mutex<HashMap<String, watch::Receiver<Option<Outcome>>>>,
}

impl KeyPushes {
    /// Nothing was pushed yet.
    pub fn new(cloud: ComingCloud) -> Self {
        Self { cloud, pushes: OnceCell::new(), reads: Semaphore::new(READS_MAX), flights: Mutex::default() }
    }

    async fn pushes(&self, shared: &Shared) -> Option<Pushes> {
        let made = async || {
            let limits = PushLimits { waiting_max: WAITING_MAX, ..PushLimits::default() };
            // Who may push is asked for each by itself: no lease is this one's.
            let cloud = self.cloud.clone().await?;
            Some(Pushes::new(cloud, limits, Arc::clone(&shared.clock), Arc::new(|| true)))
        };
        self.pushes.get_or_init(made).await.clone()
    }
}

/// Sees to it that the keys are on the instance which a session under `chosen` may need; returns when they are.
///
/// # Errors
/// If that of `chosen` is not. The others are other logins on that instance, of which this session may be none.
pub async fn deliver(
    shared: &Arc<Shared>,
    chosen: &Arc<SessionGrant>,
    key_fingerprint: &str,
    host: &str,
    source: SocketAddr,
    within: Context,
) -> Result<(), NoKey> {
    let now = (shared.clock)();
    let needed = logins(now, chosen, &shared.grants.of_key(key_fingerprint), host);
    let flights = needed.into_iter().map(async |grant| {
        let is_chosen = grant.grant_id == chosen.grant_id;
        let flying = fly_or_join(shared, &grant, source, within);
        // What the inner SSH asks for is not known here.
        let outcome = if is_chosen { flying.await } else { timeout(OTHERS_TIMEOUT, flying).await.unwrap_or(Ok(())) };
        if let Err(no_key) = &outcome {
            tracing::info!(grant_id = grant.grant_id, %source, reason = no_key.as_str(), "delivered no key");
        }
        outcome.or_else(|no_key| if is_chosen { Err(no_key) } else { Ok(()) })
    });
    join_all(flights).await.into_iter().collect()
}

async fn fly_or_join(
    shared: &Arc<Shared>,
    grant: &Arc<SessionGrant>,
    source: SocketAddr,
    within: Context,
) -> Result<(), NoKey> {
    let (mut flight, is_new) = flight(shared, grant, source, within)?;
    let lost = || NoKey::Unconfirmed { request: request_name(&grant.request) };
    let outcome = match flight.wait_for(Option::is_some).await {
        Ok(outcome) => outcome.clone().unwrap_or_else(|| Err((Instant::now(), lost()))),
        // Its task panicked: a bug, which the log tells.
        Err(_) => Err((Instant::now(), lost())),
    };
    let word = match &outcome {
        Ok(_) if is_new => "delivered",
        Ok(_) => "reused",
        Err((_, no_key)) => no_key.as_str(),
    };
    shared.metrics.count_push(word);
    outcome.map(|_| ()).map_err(|(_, no_key)| no_key)
}

/// The flight that serves this grant now, and whether it was begun for it.
fn flight(
    shared: &Arc<Shared>,
    grant: &Arc<SessionGrant>,
    source: SocketAddr,
    within: Context,
) -> Result<(watch::Receiver<Option<Outcome>>, bool), NoKey> {
    let now = ((shared.clock)(), Instant::now());
    let mut flights = shared.keys_pushed.flights.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(flight) = flights.get(&grant.grant_id).filter(|flight| serves(flight, now)) {
        return Ok((flight.clone(), false));
    }
    is_in_time(now.0, grant).inspect_err(|no_key| shared.metrics.count_push(no_key.as_str()))?;
    if flights.len() >= REMEMBERED_MAX {
        flights.retain(|_, flight| serves(flight, now));
    }
    let (tell, flight) = watch::channel(None);
    flights.insert(grant.grant_id.clone(), flight.clone());
    let (shared_, grant) = (Arc::clone(shared), Arc::clone(grant));
    shared.tasks.spawn(async move {
        let outcome = {
            let mut span =
                Span::child_of(within, "deliver key").with("instance_access.grant.id", grant.grant_id.as_str());
            let outcome = fly(&shared_, &grant, source, span.context()).await;
            if let Err(no_key) = &outcome {
                span.fail(no_key.as_str(), no_key);
            }
            outcome
        };
        tell.send_replace(Some(outcome.map_err(|no_key| (Instant::now(), no_key))));
    });
    Ok((flight, true))
}

/// Whether a flight is of use to whoever asks now. A machine's sleep is seen by the wall clock alone, a step of that by the
/// other.
fn serves(flight: &watch::Receiver<Option<Outcome>>, (time, instant): (Timestamp, Instant)) -> bool {
    let is_under_way = flight.has_changed().is_ok();
    match &*flight.borrow() {
        None => is_under_way,
        Some(Ok((left, left_time))) => {
            instant.saturating_duration_since(*left) < KEY_REUSE && is_fresh(time, *left_time, KEY_REUSE)
        }
        Some(Err((known, _))) => instant.saturating_duration_since(*known) < FAILURE_KEPT,
    }
}

/// Reads, judges, records, pushes, records; returns when the push left.
async fn fly(
    shared: &Arc<Shared>,
    grant: &SessionGrant,
    source: SocketAddr,
    within: Context,
) -> Result<(Instant, Timestamp), NoKey> {
    let pushes = shared.keys_pushed.pushes(shared).await.ok_or(NoKey::NoAws)?;
    let released = || NoKey::Over { request: grant.request.clone(), cause: SessionEnd::Released };
    let standing = shared.grants.follow(&grant.request.uid).ok_or_else(released)?;
    // Before the grant is read: what that says grows old.
    led(shared, grant, within).await?;
    let (permit, asked) = confirmed(shared, grant, within).await?;
    let record = PushRecord::intended(&shared.name, grant, source.to_string());
    let late = record.clone();
    let late = move |sequence| serde_json::to_value(late.not_pushed(sequence, &NoKey::AuditUnavailable, false));
    let sequence = opened(shared, serde_json::to_value(&record), late, within).await.map_err(|why| {
        shared.metrics.count_audit_failure();
        tracing::error!(error = why, "a key was not pushed: there is no durable record of it");
        NoKey::AuditUnavailable
    })?;
    let fence = still(standing.clone(), grant.grant_id.clone(), asked, shared.leaders.clone());
    let (left, left_time) = (Instant::now(), (shared.clock)());
    let mut span = Span::call(within, "push key")
        .with("rpc.system.name", "aws-api")
        .with("rpc.service", "ec2-instance-connect")
        .with("rpc.method", "SendSSHPublicKey")
        .with("cloud.region", permit.place().region.as_str());
    let pushed = pushes.push_while(permit, fence).await;
    match &pushed {
        Ok(delivered) => span.set("aws.request_id", delivered.request_id.as_str()),
        Err(PushError::Failed { failure, .. }) => span.fail(&failure.code, &failure.message),
        Err(PushError::TooLate { .. } | PushError::Fenced) => span.set("instance_access.outcome", "not sent"),
    }
    drop(span);
    let (record, outcome) = match pushed {
        Ok(Delivered { request_id, .. }) => {
            let elapsed_ms = u64::try_from(left.elapsed().as_millis()).unwrap_or(u64::MAX);
            tracing::info!(grant_id = grant.grant_id, eic_request_id = request_id, elapsed_ms, "pushed key");
            (record.pushed(sequence, request_id), Ok((left, left_time)))
        }
        Err(error) => {
            let (no_key, may_have_landed) = told(error, grant, &standing, is_led(shared.leaders.as_ref()));
            tracing::warn!(grant_id = grant.grant_id, reason = no_key.as_str(), may_have_landed, "push failed");
            (record.not_pushed(sequence, &no_key, may_have_landed), Err(no_key))
        }
    };
    let (shared_, record) = (Arc::clone(shared), serde_json::to_value(&record));
    shared.tasks.spawn(async move { write_down(&shared_, record).await });
    outcome
}

/// Whether a controller leads, if that is asked for: nobody else judges whether a policy still admits the grant.
async fn led(shared: &Shared, grant: &SessionGrant, within: Context) -> Result<(), NoKey> {
    let Some(leaders) = &shared.leaders else { return Ok(()) };
    let _span = Span::call(within, "read lease");
    let request = request_name(&grant.request);
    leaders.confirm().await.map_err(|why| match why {
        NotLed::Nobody => NoKey::NoLeader { request },
        NotLed::Unread => NoKey::Unconfirmed { request },
    })
}

/// Asks the API server itself, by a quorum (no resourceVersion), and judges what it says; returns also when it was asked.
async fn confirmed(shared: &Shared, grant: &SessionGrant, within: Context) -> Result<(PushPermit, Instant), NoKey> {
    let _span = Span::call(within, "read request");
    let unconfirmed = |why: &dyn std::fmt::Display| {
        tracing::warn!(grant_id = grant.grant_id, error = %why, "the API server did not confirm a grant");
        NoKey::Unconfirmed { request: request_name(&grant.request) }
    };
    let place = timeout(PLACE_TIMEOUT, shared.keys_pushed.reads.acquire()).await;
    let Ok(Ok(_place)) = place else { return Err(NoKey::Busy) };
    let api: Api<InstanceAccess> = Api::namespaced(shared.client.clone(), &grant.request.namespace);
    let (asked, asked_time) = (Instant::now(), (shared.clock)());
    let read = match timeout(READ_TIMEOUT, api.get_opt(&grant.request.name)).await {
        Ok(Ok(read)) => read,
        Ok(Err(error)) => return Err(unconfirmed(&chain(&error))),
        Err(_) => return Err(unconfirmed(&format!("no answer within {} s", READ_TIMEOUT.as_secs()))),
    };
    let permit = delivery((shared.clock)(), asked_time, grant, read.as_ref())?;
    Ok((permit, asked))
}

/// Whether a controller leads, as far as this one knows and cares.
fn is_led(leaders: Option<&Arc<Leaders>>) -> bool {
    leaders.is_none_or(|leaders| leaders.leader() == Leader::Lives)
}

/// Whether a push may still leave: its read is young by a clock that never steps, the watch has heard nothing since, and a
/// controller leads still.
fn still(
    standing: watch::Receiver<Standing>,
    grant_id: String,
    asked: Instant,
    leaders: Option<Arc<Leaders>>,
) -> Fence {
    Arc::new(move || {
        let stands =
            matches!(&*standing.borrow(), Standing::Live(now) if now.grant_id == grant_id && now.not_now.is_none());
        stands && is_led(leaders.as_ref()) && asked.elapsed() <= READ_AGE_MAX
    })
}

/// Why there is no key, and whether there may be one after all.
fn told(error: PushError, grant: &SessionGrant, standing: &watch::Receiver<Standing>, is_led: bool) -> (NoKey, bool) {
    match error {
        PushError::TooLate { .. } => (NoKey::Busy, false),
        PushError::Fenced => match &*standing.borrow() {
            Standing::Over(cause) => (NoKey::Over { request: grant.request.clone(), cause: (*cause).into() }, false),
            Standing::Live(live) => match &live.not_now {
                Some(reason) => (NoKey::NotNow { request: request_name(&live.request), reason: reason.clone() }, false),
                None if !is_led => (NoKey::NoLeader { request: request_name(&live.request) }, false),
                None => (NoKey::Busy, false),
            },
            Standing::Nothing => (NoKey::NotAsGranted { request: request_name(&grant.request) }, false),
        },
        PushError::Failed { failure, unsure_time } => {
            let request = request_name(&grant.request);
            let no_key = NoKey::Failed { request, class: failure.class, code: failure.code };
            (no_key, unsure_time.is_some())
        }
    }
}

#[cfg(test)]
mod tests;
