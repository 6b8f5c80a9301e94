//! Kubernetes Events: hints for people who watch, gone after an hour, never the audit.
//!
//! An Event is a write like a status, and the API server is what limits us: a flood of them would cost every fourth
//! grant. So one is sent at a time, and few a second; what finds the queue full is dropped and counted, the news before
//! the warnings.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client, Resource};
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::time::Instant;

use crate::api::InstanceAccess;
use crate::clock::Clock;
use crate::kubernetes::again;
use crate::telemetry::Metrics;

use super::leader::Leads;

/// Who reports.
const REPORTER: &str = "instanceaccess.dev/controller";
/// Events that may wait: what the pace below clears in a minute. Older ones would only confuse.
const WAITING_MAX: usize = 300;
/// Of these, places that only warnings take: somebody waits for the reason, while a grant shows in status.
const KEPT_FOR_WARNINGS: usize = 100;
/// Gap between two Events under load: five a second are little over one in a hundred of the writes that an API server on
/// two cores does.
const GAP: Duration = Duration::from_millis(200);
/// Events that may leave at once after a quiet time, as many as client-go allows: a person's handful is never late.
const BURST: u32 = 25;
/// The longest that one may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The longest note that the API server takes, in bytes.
const NOTE_BYTES_MAX: usize = 1000;
/// The longest part of an object's name in its Event's: 253 bytes are allowed, and 17 are ours.
const NAME_BYTES_MAX: usize = 230;

/// Sends Events, in the background.
pub struct Events {
    queue: Sender<Event>,
    clock: Clock,
    metrics: Arc<Metrics>,
}

impl Events {
    /// Makes a sender, which ends when this is dropped.
    pub fn new(client: Client, leads: Leads, clock: Clock, metrics: Arc<Metrics>) -> Self {
        let (queue, waiting) = mpsc::channel(WAITING_MAX);
        tokio::spawn(send(client, leads, waiting, Arc::clone(&metrics)));
        Self { queue, clock, metrics }
    }

    /// Sends one, if there is room.
    pub fn tell(&self, object: &InstanceAccess, warning: bool, reason: &'static str, note: String) {
        let room = self.queue.capacity() > if warning { 0 } else { KEPT_FOR_WARNINGS };
        if !room || self.queue.try_send(event(object, warning, reason, note, (self.clock)())).is_err() {
            self.metrics.count_event("dropped");
        }
    }
}

fn event(object: &InstanceAccess, warning: bool, reason: &str, mut note: String, now: Timestamp) -> Event {
    note.truncate(note.floor_char_boundary(NOTE_BYTES_MAX));
    // Of the object only what names it: its version would make every Event look like another's.
    let regarding = ObjectReference { resource_version: None, ..object.object_ref(&()) };
    let name = regarding.name.as_deref().unwrap_or_default();
    let name = &name[..name.floor_char_boundary(NAME_BYTES_MAX)];
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{name}.{:x}", now.as_nanosecond())),
            namespace: regarding.namespace.clone(),
            ..ObjectMeta::default()
        },
        action: Some("Reconcile".to_owned()),
        event_time: Some(MicroTime(now)),
        note: Some(note),
        reason: Some(reason.to_owned()),
        regarding: Some(regarding),
        reporting_controller: Some(REPORTER.to_owned()),
        reporting_instance: Some(REPORTER.to_owned()),
        type_: Some(if warning { "Warning" } else { "Normal" }.to_owned()),
        ..Event::default()
    }
}

async fn send(client: Client, leads: Leads, mut waiting: Receiver<Event>, metrics: Arc<Metrics>) {
    // When the next may leave, if no burst were allowed.
    let mut next = Instant::now();
    while let Some(event) = waiting.recv().await {
        let now = Instant::now();
        next = next.max(now) + GAP;
        tokio::time::sleep_until(next - GAP * BURST).await;
        if !leads() {
            continue;
        }
        let api: Api<Event> = Api::namespaced(client.clone(), event.metadata.namespace.as_deref().unwrap_or("default"));
        let params = PostParams::default();
        let sent = again(|| api.create(&params, &event));
        match tokio::time::timeout(TIMEOUT, sent).await {
            Ok(Ok(_)) => metrics.count_event("sent"),
            Ok(Err(error)) => {
                metrics.count_event("failed");
                tracing::debug!(%error, "an event was not sent");
            }
            Err(_) => metrics.count_event("failed"),
        }
    }
}
