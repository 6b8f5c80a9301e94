//! Kubernetes Events: hints for people who watch, de-duplicated, gone after an hour, never the audit.

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::Resource;
use tokio::sync::Semaphore;

use crate::api::InstanceAccess;
use crate::telemetry::Metrics;

/// Events that wait or are under way; further ones are dropped and counted, since a flood of hints is none.
const PLACES_MAX: usize = 1000;
/// Events under way at once: a third of what grants may write at once, which they must not slow.
const UNDER_WAY_MAX: usize = 4;
/// The longest that one may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The longest note that the API server takes, in bytes.
const NOTE_BYTES_MAX: usize = 1000;

/// Sends Events, in the background.
pub struct Events {
    recorder: Recorder,
    places: Arc<Semaphore>,
    senders: Arc<Semaphore>,
    metrics: Arc<Metrics>,
}

impl Events {
    /// Makes a sender.
    pub fn new(client: Client, metrics: Arc<Metrics>) -> Self {
        let reporter = Reporter { controller: "instanceaccess.dev/controller".to_owned(), instance: None };
        let (places, senders) = (Arc::new(Semaphore::new(PLACES_MAX)), Arc::new(Semaphore::new(UNDER_WAY_MAX)));
        Self { recorder: Recorder::new(client, reporter), places, senders, metrics }
    }

    /// Sends one, if there is room.
    pub fn tell(&self, object: &InstanceAccess, warning: bool, reason: &'static str, mut note: String) {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            self.metrics.count_event("dropped");
            return;
        };
        note.truncate(note.floor_char_boundary(NOTE_BYTES_MAX));
        let event = Event {
            type_: if warning { EventType::Warning } else { EventType::Normal },
            reason: reason.to_owned(),
            note: Some(note),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        let reference = object.object_ref(&());
        let recorder = self.recorder.clone();
        let senders = Arc::clone(&self.senders);
        let metrics = Arc::clone(&self.metrics);
        tokio::spawn(async move {
            let _place = place;
            let Ok(_sender) = senders.acquire_owned().await else { return };
            match tokio::time::timeout(TIMEOUT, recorder.publish(&event, &reference)).await {
                Ok(Ok(())) => metrics.count_event("sent"),
                Ok(Err(error)) => {
                    metrics.count_event("failed");
                    tracing::debug!(%error, "an event was not sent");
                }
                Err(_) => metrics.count_event("failed"),
            }
        });
    }
}
