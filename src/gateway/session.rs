//! One session: asked for, recorded, dialled, relayed, and cut.
//!
//! ```text
//! permit ─▶ record SessionOpened, durable ─▶ dial ─▶ accept ─▶ relay ─┬─▶ bytes, both ways, never read
//!    └ refusal                                                        └─▶ cut: by the clock, by any grant it is held to
//! ```
//! The record comes before the dial: a connection that is opened and dropped again is what sshd penalises. Before the record
//! comes the key, if gateways push it (`push`), and whoever waited for that, or for their turn, is judged once more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use russh::server::{ChannelOpenHandle, Handle, Msg};
use russh::{Channel, ChannelId, ChannelMsg, ChannelOpenFailure};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::audit::AppendError;
use crate::domain::session::{
    DialPermit, Fate, Hold, SessionEnd, SessionRecord, Standing, fate, permit, printable, request_name,
};
use crate::domain::time::{since, until};
use crate::telemetry::chain;

use super::Shared;
use super::connection::{ProvedKey, Seat, no, not_now};
use super::dial::{Dial, Instance};
use super::idle::Idle;
use super::push::deliver;
use crate::traces::{Context, Span};

/// How long the record of an opening may take to be durable.
const AUDIT_TIMEOUT: Duration = Duration::from_secs(5);
/// Gap between two tries to write the record of an end down.
const AUDIT_RETRY: Duration = Duration::from_secs(1);
/// A timer is a hint: no session goes longer without a look at the wall clock, which may be stepped, or jump over a
/// machine's sleep. Half of the second within which a session is cut.
const LOOK_MAX: Duration = Duration::from_millis(500);
/// How long a channel's close may take to be queued; the byte path is closed by then.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// What a client asks for.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The host, as the client wrote it. It is compared, never resolved.
    pub host: String,
    /// The port.
    pub port: u32,
}

/// A grant that the session is held to, and how it stands.
struct Followed {
    hold: Hold,
    standing: watch::Receiver<Standing>,
}

/// Opens the session that is asked for, or says no; returns when it is over.
pub async fn open(
    shared: Arc<Shared>,
    mut seat: Seat,
    key: ProvedKey,
    asked: Asked,
    channel: Channel<Msg>,
    reply: ChannelOpenHandle,
    handle: Handle,
) {
    let mut span = Span::child_of(seat.connection().trace, "session");
    let permit = match judge(&shared, &key, &asked) {
        Ok(permit) => permit,
        Err((reason, failure)) => {
            span.set("instance_access.refusal", reason);
            shared.metrics.count_refusal(reason);
            tracing::info!(
                source = %seat.connection().source,
                key_fingerprint = key.fingerprint(),
                asked = printable(&asked.host),
                port = asked.port,
                reason,
                "refused a session"
            );
            seat.connection().count_refusal();
            return reply.reject(failure).await;
        }
    };
    let grant = Arc::clone(permit.grant());
    span.set("k8s.namespace.name", grant.request.namespace.as_str());
    span.set("instance_access.request.name", grant.request.name.as_str());
    span.set("instance_access.request.uid", grant.request.uid.as_str());
    span.set("instance_access.grant.id", grant.grant_id.as_str());
    span.set("host.id", grant.instance_id.as_str());
    let shares = permit.shares(shared.limits.sessions_per_grant_max);
    let wanted = shares.iter().map(|share| (share.request.uid.clone(), share.sessions_max));
    let _places = match shared.sessions.take_each(wanted) {
        Ok(places) => places,
        Err(full) => {
            span.set("instance_access.refusal", "TooManySessions");
            shared.metrics.count_refusal("TooManySessions");
            seat.connection().count_refusal();
            return reply.reject(not_now(shares[full].full())).await;
        }
    };
    let endpoint_place = match shared.dialler.place(&grant, permit.to()) {
        Ok(place) => place,
        Err(spent) => {
            span.set("instance_access.refusal", spent.as_str());
            shared.metrics.count_refusal(spent.as_str());
            seat.connection().count_refusal();
            return reply.reject(not_now(spent.to_string())).await;
        }
    };
    let source = seat.connection().source;
    let waiting = async {
        // Each writes two records to a disk: whoever opens and closes without end must not fill it.
        let wait = shared.pace.turn(&grant.request.uid, Instant::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        deliver(&shared, &grant, key.fingerprint(), &asked.host, source, span.context()).await
    };
    let delivered = tokio::select! {
        delivered = waiting => delivered,
        // Who has hung up takes no place any more.
        () = seat.connection().gone.cancelled() => return,
    };
    if let Err(no_key) = delivered {
        span.set("instance_access.refusal", no_key.as_str());
        shared.metrics.count_refusal(no_key.as_str());
        let text = no_key.to_string();
        return reply.reject(if no_key.passes() { not_now(text) } else { no(text) }).await;
    }
    // That took its time: what is dialled, and what the session is held to, is judged by what is known now. By the request's
    // own name, so that another grant that came meanwhile is held to, and not taken instead.
    let same = Asked { host: request_name(&grant.request), port: asked.port };
    let permit = match judge(&shared, &key, &same) {
        Ok(again) if again.is_as(&permit) => again,
        Ok(_) => return reply.reject(not_now("what you may reach has just changed; try again")).await,
        Err((reason, failure)) => {
            span.set("instance_access.refusal", reason);
            shared.metrics.count_refusal(reason);
            return reply.reject(failure).await;
        }
    };
    let mut followed = Vec::new();
    for hold in permit.holds() {
        // One that has just ended: the next try is told why.
        let Some(standing) = shared.grants.follow(&hold.request.uid) else {
            return reply.reject(no(SessionEnd::Released.farewell(&hold.request))).await;
        };
        followed.push(Followed { hold: hold.clone(), standing });
    }
    let (to, holds) = match permit.redeem((shared.clock)()) {
        Ok(redeemed) => redeemed,
        Err(refusal) => {
            span.set("instance_access.refusal", refusal.as_str());
            shared.metrics.count_refusal(refusal.as_str());
            return reply.reject(no(refusal.to_string())).await;
        }
    };
    let dial = shared.dialler.prepare(to, endpoint_place);
    let asked_text = printable(&format!("{}:{}", asked.host, asked.port));
    let record =
        SessionRecord::opened(&shared.name, &grant, &holds, source.to_string(), asked_text, dial.destination());
    let (late, clock) = (record.clone(), Arc::clone(&shared.clock));
    let late = move |sequence| serde_json::to_value(late.ended(sequence, (0, 0), SessionEnd::NotReached, clock()));
    let sequence = match opened(&shared, serde_json::to_value(&record), late, span.context()).await {
        Ok(sequence) => sequence,
        Err(why) => {
            shared.metrics.count_audit_failure();
            span.fail("AuditUnavailable", "no durable record of the session");
            shared.metrics.count_refusal("AuditUnavailable");
            tracing::error!(error = why, "a session was not opened: there is no durable record of it");
            let text = "the gateway cannot write its audit trail, and opens no session without; tell the operators";
            return reply.reject(not_now(text)).await;
        }
    };
    shared.metrics.sessions_open.inc();
    let counted = shared.reporter.open(&grant.request, (shared.clock)());
    let bytes = Bytes::new(&shared);
    let (id, mut cut_by) = (channel.id(), None);
    let mut idle = Idle::new(shared.limits.idle_max);
    let end = tokio::select! {
        biased;
        (cause, hold) = cut(&shared, &mut followed, &mut idle, &bytes) => {
            cut_by = hold;
            cause
        }
        // russh does not tell while the instance takes nothing.
        () = seat.connection().gone.cancelled() => SessionEnd::ClientLeft,
        end = carry(&shared, &dial, channel, reply, &bytes, span.context()) => end,
    };
    // The byte path is closed: what was dialled went with `carry`.
    let record = SessionRecord { destination: dial.destination(), ..record };
    drop(dial);
    shared.metrics.sessions_open.dec();
    drop(counted);
    shared.metrics.count_end(end);
    let told_by = match (&cut_by, end) {
        (Some(hold), _) => Some(&hold.request),
        // A tunnel's end is AWS's doing, and looks like the instance's.
        (None, SessionEnd::GatewayStopped | SessionEnd::Idle | SessionEnd::Expired | SessionEnd::TunnelOver) => {
            Some(&grant.request)
        }
        (None, _) => None,
    };
    if let (Some(hold), SessionEnd::Expired) = (&cut_by, end) {
        shared.metrics.observe_cut(since((shared.clock)(), hold.cut_time));
    }
    if !told_by.is_some_and(|request| seat.leave(&idle.farewell(end, request))) {
        close(&handle, id).await;
    }
    let ended = record.ended(sequence, bytes.read(), end, (shared.clock)());
    tracing::info!(
        grant_id = grant.grant_id,
        source = %source,
        instance_id = %grant.instance_id,
        cause = end.as_str(),
        bytes_to_instance = bytes.read().0,
        bytes_from_instance = bytes.read().1,
        "a session ended"
    );
    span.set("instance_access.session.end", end.as_str());
    span.set("instance_access.session.bytes_to_instance", bytes.read().0);
    span.set("instance_access.session.bytes_from_instance", bytes.read().1);
    drop((seat, span));
    write_down(&shared, serde_json::to_value(&ended)).await;
}

/// Whether the session may be dialled.
fn judge(shared: &Shared, key: &ProvedKey, asked: &Asked) -> Result<DialPermit, (&'static str, ChannelOpenFailure)> {
    let now = (shared.clock)();
    if shared.stop.is_cancelled() {
        return Err(("GatewayStopped", not_now("the gateway stops; connect again")));
    }
    shared.contact.is_sure(now).map_err(|unsure| ("ContactLost", not_now(unsure.to_string())))?;
    let of_key = shared.grants.of_key(key.fingerprint());
    let others = |instance_id: &_| shared.grants.on_instance(instance_id);
    permit(now, &of_key, others, &asked.host, asked.port, &shared.dialling)
        .map_err(|refusal| (refusal.as_str(), no(refusal.to_string())))
}

/// Makes the record of what is about to happen durable; returns its number. What becomes durable too late for that did not
/// happen, and the record that `undone` makes says so.
pub(super) async fn opened(
    shared: &Arc<Shared>,
    record: serde_json::Result<Value>,
    undone: impl FnOnce(i64) -> serde_json::Result<Value> + Send + 'static,
    within: Context,
) -> Result<i64, String> {
    let mut span = Span::child_of(within, "append audit record");
    let value = record.map_err(|error| chain(&error))?;
    let mut appending = tokio::spawn({
        let shared = Arc::clone(shared);
        async move { shared.trail.append(value, (shared.clock)()).await }
    });
    match tokio::time::timeout(AUDIT_TIMEOUT, &mut appending).await {
        Ok(Ok(Ok(receipt))) => {
            span.set("instance_access.audit.sequence", receipt.sequence);
            Ok(receipt.sequence)
        }
        Ok(Ok(Err(error))) => {
            span.fail("refused", chain(&error));
            Err(chain(&error))
        }
        Ok(Err(error)) => Err(chain(&error)),
        Err(_) => {
            span.fail("timeout", "no answer in time");
            let shared_ = Arc::clone(shared);
            shared.tasks.spawn(async move {
                if let Ok(Ok(receipt)) = appending.await {
                    write_down(&shared_, undone(receipt.sequence)).await;
                }
            });
            Err(format!("no answer within {} s", AUDIT_TIMEOUT.as_secs()))
        }
    }
}

/// Writes the record of what has happened down, and tries again for as long as the gateway lives. While it cannot be
/// written no session is opened, and no key pushed, either: so no more wait than were open.
pub(super) async fn write_down(shared: &Shared, record: serde_json::Result<Value>) {
    let value = match record {
        Ok(value) => value,
        Err(error) => return tracing::error!(error = chain(&error), "a record is no JSON"),
    };
    let mut is_told = false;
    loop {
        match shared.trail.append(value.clone(), (shared.clock)()).await {
            Ok(_) => return,
            Err(error @ (AppendError::Closed | AppendError::Invalid { .. })) => {
                shared.metrics.count_audit_failure();
                return tracing::error!(error = chain(&error), record = %value, "what happened is not on record");
            }
            Err(error @ (AppendError::Unavailable { .. } | AppendError::Busy { .. })) => {
                if !std::mem::replace(&mut is_told, true) {
                    shared.metrics.count_audit_failure();
                    tracing::error!(error = chain(&error), "what happened is not on record yet, trying again");
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(AUDIT_RETRY) => {}
            () = shared.give_up.cancelled() => {
                return tracing::error!(record = %value, "what happened is not on record");
            }
        }
    }
}

/// Waits for the moment at which the session is to be cut; returns why, and by which grant.
async fn cut(shared: &Shared, followed: &mut [Followed], idle: &mut Idle, bytes: &Bytes) -> (SessionEnd, Option<Hold>) {
    loop {
        let now = (shared.clock)();
        let mut next = LOOK_MAX;
        for Followed { hold, standing } in followed.iter_mut() {
            let standing = standing.borrow_and_update().clone();
            match fate(now, hold, &standing) {
                Fate::Cut(cause) => return (cause, Some(hold.clone())),
                Fate::Until(cut_time) => next = next.min(until(now, cut_time)),
            }
        }
        if !bytes.is_open.load(Ordering::Relaxed) {
            // What is still being dialled does not idle.
            *idle = Idle::new(shared.limits.idle_max);
        } else if idle.is_over(bytes.read(), followed.iter().map(|followed| followed.hold.rules)) {
            return (SessionEnd::Idle, None);
        }
        let changed = followed.iter_mut().map(|followed| Box::pin(followed.standing.changed()));
        tokio::select! {
            () = shared.cut_all.cancelled() => return (SessionEnd::GatewayStopped, None),
            _ = futures::future::select_all(changed) => {}
            () = tokio::time::sleep(next) => {}
        }
    }
}

/// What passed through, in bytes.
#[derive(Debug)]
struct Bytes {
    /// They may flow: the session was accepted.
    is_open: AtomicBool,
    to_instance: AtomicU64,
    from_instance: AtomicU64,
    /// Those of all sessions.
    all: [Counter; 2],
}

impl Bytes {
    fn new(shared: &Shared) -> Self {
        let all = [shared.metrics.bytes_to_instances.clone(), shared.metrics.bytes_from_instances.clone()];
        Self {
            is_open: AtomicBool::default(),
            to_instance: AtomicU64::default(),
            from_instance: AtomicU64::default(),
            all,
        }
    }

    fn went(&self, bytes: usize) {
        self.to_instance.fetch_add(bytes as u64, Ordering::Relaxed);
        self.all[0].inc_by(bytes as u64);
    }

    fn came(&self, bytes: usize) {
        self.from_instance.fetch_add(bytes as u64, Ordering::Relaxed);
        self.all[1].inc_by(bytes as u64);
    }

    fn read(&self) -> (u64, u64) {
        (self.to_instance.load(Ordering::Relaxed), self.from_instance.load(Ordering::Relaxed))
    }
}

/// Dials, accepts and relays, to the end of either side. Dropping it closes what it dialled.
async fn carry(
    shared: &Shared,
    dial: &Dial,
    channel: Channel<Msg>,
    reply: ChannelOpenHandle,
    bytes: &Bytes,
    within: Context,
) -> SessionEnd {
    let mut instance = match shared.dialler.dial(dial, within).await {
        Ok(instance) => instance,
        Err(failure) => {
            reply.reject(failure).await;
            return SessionEnd::NotReached;
        }
    };
    reply.accept().await;
    bytes.is_open.store(true, Ordering::Relaxed);
    let end = relay(channel, &mut instance, bytes).await;
    instance.cause(end)
}

async fn relay(channel: Channel<Msg>, instance: &mut Instance, bytes: &Bytes) -> SessionEnd {
    let (mut from_client, to_client) = channel.split();
    let (mut from_instance, mut to_instance) = instance.split();
    let client_has_ended = AtomicBool::new(false);
    let up = async {
        while let Some(message) = from_client.wait().await {
            match message {
                ChannelMsg::Data { data } => {
                    if to_instance.send(&data).await.is_err() {
                        return SessionEnd::InstanceLeft;
                    }
                    bytes.went(data.len());
                }
                ChannelMsg::Eof => {
                    client_has_ended.store(true, Ordering::Relaxed);
                    if to_instance.end().await {
                        break;
                    }
                }
                ChannelMsg::Close => break,
                _ => {} // russh's own list, which grows: whatever carries no bytes of ours
            }
        }
        SessionEnd::ClientLeft
    };
    let down = async {
        while let Some(chunk) = from_instance.next().await {
            let length = chunk.len();
            if to_client.data_bytes(chunk).await.is_err() {
                return SessionEnd::ClientLeft;
            }
            bytes.came(length);
        }
        // Who is cut is told why first: at this end it would hang up before.
        if !from_instance.is_cut() {
            let _ = to_client.eof().await; // a client that is gone needs no end
        }
        if client_has_ended.load(Ordering::Relaxed) { SessionEnd::ClientLeft } else { SessionEnd::InstanceLeft }
    };
    tokio::select! {
        end = up => end,
        end = down => end,
    }
}

async fn close(handle: &Handle, id: ChannelId) {
    // A client that reads nothing gets no close either: it is told when its connection goes.
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, handle.close(id)).await;
}
