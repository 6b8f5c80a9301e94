//! What the gateway counts. Labels are bounded: never a user, a key, an instance or an address.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::domain::session::SessionEnd;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Cause {
    cause: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

/// Everything that the gateway counts.
pub struct GatewayMetrics {
    registry: Registry,
    connections: Family<Outcome, Counter>,
    keys: Family<Outcome, Counter>,
    /// Sessions that are open.
    pub sessions_open: Gauge,
    /// Connections of endpoints that are taken.
    pub endpoint_connections: Gauge,
    ends: Family<Cause, Counter>,
    refusals: Family<Reason, Counter>,
    pushes: Family<Outcome, Counter>,
    cut_lateness: Histogram,
    reports: Family<Outcome, Counter>,
    audit_failures: Counter,
    /// Grants that are served.
    pub grants: Gauge,
    /// Watches that broke.
    pub watch_errors: Counter,
    /// Requests that could not be decoded.
    pub undecodable: Counter,
}

impl Default for GatewayMetrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("instance_access_gateway");
        registry.register_collector(Box::new(crate::traces::SpanCounts));
        macro_rules! registered {
            ($name:expr, $help:expr, $metric:expr) => {{
                let metric = $metric;
                registry.register($name, $help, metric.clone());
                metric
            }};
        }
        Self {
            connections: registered!("connections", "Connections of clients, by outcome", Family::default()),
            keys: registered!("keys", "Keys that clients offered, by outcome", Family::default()),
            sessions_open: registered!("sessions_open", "Sessions that are open", Gauge::default()),
            endpoint_connections: registered!(
                "endpoint_connections",
                "Connections of endpoints that are taken",
                Gauge::default()
            ),
            ends: registered!("session_ends", "Sessions that ended, by cause", Family::default()),
            refusals: registered!("refusals", "Sessions that were not opened, by reason", Family::default()),
            pushes: registered!("pushes", "Keys that sessions needed, by outcome", Family::default()),
            cut_lateness: registered!(
                "cut_lateness_seconds",
                "How far the cut of a session lies behind expirationTime",
                Histogram::new([0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0])
            ),
            reports: registered!("report_writes", "Writes into status.sessions, by outcome", Family::default()),
            audit_failures: registered!(
                "audit_failures",
                "Records of sessions that were not made durable at once",
                Counter::default()
            ),
            grants: registered!("grants", "Grants that are served", Gauge::default()),
            watch_errors: registered!("watch_errors", "Times that the watch over requests broke", Counter::default()),
            undecodable: registered!("undecodable", "Times that a request could not be decoded", Counter::default()),
            registry,
        }
    }
}

impl GatewayMetrics {
    /// The metrics page, in the OpenMetrics text format.
    pub fn page(&self) -> String {
        let mut page = String::new();
        encode(&mut page, &self.registry).expect("writing to a String does not fail");
        page
    }

    /// A connection came, and this came of it.
    pub fn count_connection(&self, outcome: &'static str) {
        self.connections.get_or_create(&Outcome { outcome }).inc();
    }

    /// A key was offered, and this came of it.
    pub fn count_key(&self, outcome: &'static str) {
        self.keys.get_or_create(&Outcome { outcome }).inc();
    }

    /// A session was not opened.
    pub fn count_refusal(&self, reason: &'static str) {
        self.refusals.get_or_create(&Reason { reason }).inc();
    }

    /// A session needed a key, and this came of it.
    pub fn count_push(&self, outcome: &'static str) {
        self.pushes.get_or_create(&Outcome { outcome }).inc();
    }

    /// A session ended.
    pub fn count_end(&self, cause: SessionEnd) {
        self.ends.get_or_create(&Cause { cause: cause.as_str() }).inc();
    }

    /// A session was cut at its time, so late.
    pub fn observe_cut(&self, lateness: Duration) {
        self.cut_lateness.observe(lateness.as_secs_f64());
    }

    /// An entry of `status.sessions` was written, or not.
    pub fn count_report(&self, outcome: &'static str) {
        self.reports.get_or_create(&Outcome { outcome }).inc();
    }

    /// A record was not made durable.
    pub fn count_audit_failure(&self) {
        self.audit_failures.inc();
    }
}
