//! Logs and metrics. Labels are bounded: never a user, an instance, a namespace or an object's name.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tracing_subscriber::EnvFilter;

use crate::api::EndCause;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines: one JSON object a line.
    Json,
}

/// Starts logging to standard error; `RUST_LOG` overrules the level.
pub fn start_logs(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.with_ansi(false).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Cause {
    cause: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Resource {
    resource: &'static str,
}

/// Everything that is counted.
pub struct Metrics {
    registry: Registry,
    grants: Counter,
    ends: Family<Cause, Counter>,
    end_lateness: Histogram,
    status_writes: Family<Outcome, Counter>,
    events: Family<Outcome, Counter>,
    watch_errors: Family<Resource, Counter>,
    restless_turns: Counter,
    undecodable: Gauge,
    undecodable_uids: Mutex<HashSet<String>>,
    requests: Gauge,
    grants_live: Gauge,
    pushes: Family<Outcome, Gauge>,
    lookups: Family<Outcome, Gauge>,
    audit: Family<Outcome, Gauge>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("instance_access");
        let grants = Counter::default();
        registry.register("grants", "Grants stored in status", grants.clone());
        let ends = Family::<Cause, Counter>::default();
        registry.register("ends", "Ends of grants stored in status, by cause", ends.clone());
        // From a tenth of the aim (100 ms at the 99th percentile) to what pages somebody.
        let end_lateness = Histogram::new([0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0]);
        registry.register(
            "end_lateness_seconds",
            "How far the stored end lies behind expirationTime",
            end_lateness.clone(),
        );
        let status_writes = Family::<Outcome, Counter>::default();
        registry.register("status_writes", "Writes of requests' status, by outcome", status_writes.clone());
        let events = Family::<Outcome, Counter>::default();
        registry.register("events", "Kubernetes Events, by outcome", events.clone());
        let watch_errors = Family::<Resource, Counter>::default();
        registry.register("watch_errors", "Watches that broke, by resource", watch_errors.clone());
        let restless_turns = Counter::default();
        registry.register("restless_turns", "Turns that did not come to rest: a bug, report it", restless_turns.clone());
        let undecodable = Gauge::default();
        registry.register("undecodable_objects", "Objects that cannot be decoded and are left alone", undecodable.clone());
        let requests = Gauge::default();
        registry.register("requests", "Requests in the cluster", requests.clone());
        let grants_live = Gauge::default();
        registry.register("grants_live", "Grants that have not ended", grants_live.clone());
        let pushes = Family::<Outcome, Gauge>::default();
        registry.register("pushes", "Pushes of keys since the start, by outcome; waiting and in_flight are now", pushes.clone());
        let lookups = Family::<Outcome, Gauge>::default();
        registry.register("lookups", "Look-ups at EC2 since the start, by outcome; waiting is now", lookups.clone());
        let audit = Family::<Outcome, Gauge>::default();
        registry.register("audit_records", "Audit records since the start, by outcome; queued is now", audit.clone());
        Self {
            registry,
            grants,
            ends,
            end_lateness,
            status_writes,
            events,
            watch_errors,
            restless_turns,
            undecodable,
            undecodable_uids: Mutex::default(),
            requests,
            grants_live,
            pushes,
            lookups,
            audit,
        }
    }
}

fn gauge(family: &Family<Outcome, Gauge>, outcome: &'static str, value: u64) {
    family.get_or_create(&Outcome { outcome }).set(i64::try_from(value).unwrap_or(i64::MAX));
}

impl Metrics {
    /// The metrics page, in the OpenMetrics text format.
    pub fn page(&self) -> String {
        let mut page = String::new();
        encode(&mut page, &self.registry).expect("writing to a String does not fail");
        page
    }

    /// A grant was stored.
    pub fn count_grant(&self) {
        self.grants.inc();
    }

    /// An end was stored, so late.
    pub fn count_end(&self, cause: EndCause, lateness: Duration) {
        let cause = match cause {
            EndCause::Expired => "Expired",
            EndCause::Released => "Released",
            EndCause::Revoked => "Revoked",
            EndCause::PolicyChanged => "PolicyChanged",
        };
        self.ends.get_or_create(&Cause { cause }).inc();
        self.end_lateness.observe(lateness.as_secs_f64());
    }

    /// A write of a request's status came out so.
    pub fn count_status_write(&self, outcome: &'static str) {
        self.status_writes.get_or_create(&Outcome { outcome }).inc();
    }

    /// An Event came out so.
    pub fn count_event(&self, outcome: &'static str) {
        self.events.get_or_create(&Outcome { outcome }).inc();
    }

    /// A watch broke.
    pub fn count_watch_error(&self, resource: &'static str) {
        self.watch_errors.get_or_create(&Resource { resource }).inc();
    }

    /// A turn did not come to rest.
    pub fn count_restless_turn(&self) {
        self.restless_turns.inc();
    }

    /// An object cannot be decoded. As many are remembered as the API server holds.
    pub fn undecodable(&self, uid: &str) {
        let mut uids = self.undecodable_uids.lock().unwrap_or_else(PoisonError::into_inner);
        uids.insert(uid.to_owned());
        self.undecodable.set(i64::try_from(uids.len()).unwrap_or(i64::MAX));
    }

    /// An object can be decoded, or is gone.
    pub fn decodable(&self, uid: &str) {
        let mut uids = self.undecodable_uids.lock().unwrap_or_else(PoisonError::into_inner);
        if uids.remove(uid) {
            self.undecodable.set(i64::try_from(uids.len()).unwrap_or(i64::MAX));
        }
    }

    /// How many requests there are, and how many grants live.
    pub fn observe_requests(&self, requests: usize, live: usize) {
        self.requests.set(i64::try_from(requests).unwrap_or(i64::MAX));
        self.grants_live.set(i64::try_from(live).unwrap_or(i64::MAX));
    }

    /// Takes over what the pacer counted.
    pub fn observe_pushes(&self, stats: &crate::aws::PushStats) {
        gauge(&self.pushes, "delivered", stats.delivered);
        gauge(&self.pushes, "failed", stats.failed);
        gauge(&self.pushes, "throttled", stats.throttled);
        gauge(&self.pushes, "unsure", stats.unsure);
        gauge(&self.pushes, "too_late", stats.too_late);
        gauge(&self.pushes, "fenced", stats.fenced);
        gauge(&self.pushes, "withdrawn", stats.withdrawn);
        gauge(&self.pushes, "turned_away", stats.turned_away);
        gauge(&self.pushes, "waiting", stats.waiting);
        gauge(&self.pushes, "in_flight", stats.in_flight);
    }

    /// Takes over what the batcher counted.
    pub fn observe_lookups(&self, stats: &crate::aws::LookupStats) {
        gauge(&self.lookups, "asked", stats.asked);
        gauge(&self.lookups, "calls", stats.calls);
        gauge(&self.lookups, "failed", stats.failed);
        gauge(&self.lookups, "throttled", stats.throttled);
        gauge(&self.lookups, "turned_away", stats.turned_away);
        gauge(&self.lookups, "waiting", stats.waiting);
    }

    /// Takes over what the trail counted.
    pub fn observe_audit(&self, stats: &crate::audit::Stats) {
        gauge(&self.audit, "appended", stats.appended);
        gauge(&self.audit, "failed", stats.failed);
        gauge(&self.audit, "refused", stats.refused);
        gauge(&self.audit, "queued", stats.queue_records as u64);
        gauge(&self.audit, "commits", stats.commits);
    }
}
