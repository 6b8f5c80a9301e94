//! What the gateway counts. Labels are bounded: never a user, a key, an instance or an address.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use crate::audit::Stats;
use crate::domain::session::SessionEnd;
use crate::metrics::{Counts, Late, Page, Sample};
use crate::telemetry::of_trail;
use crate::traces::SpanCounts;

/// What may come of a connection.
pub const CONNECTIONS: [&str; 9] = [
    "left",
    "not_authenticated",
    "cut",
    "no_grant",
    "no_login",
    "no_ssh",
    "too_many",
    "too_many_logins",
    "gateway_stopped",
];
/// What may come of a key that is offered.
pub const KEYS: [&str; 4] = ["known", "unknown", "proved", "too_many"];
/// Why a session may not be opened, beside the words for a key that was not delivered.
pub const REFUSALS: [&str; 19] = [
    "UnknownDestination",
    "WrongPort",
    "Over",
    "Draining",
    "Fading",
    "NotNow",
    "Endpoint",
    "EndpointPort",
    "EndpointFull",
    "EndpointShare",
    "PortNotServed",
    "NeverDialled",
    "ContactLost",
    "TooManyConnections",
    "TooManySessions",
    "AuditUnavailable",
    "GatewayStopped",
    "NoShell",
    "NoSocket",
];
/// What may come of a key that a session needs: the first two are there, the others are not.
pub const PUSHES: [&str; 16] = [
    "delivered",
    "reused",
    "Over",
    "NotNow",
    "NotAsGranted",
    "TooLate",
    "ContactLost",
    "NoAws",
    "NoLeader",
    "AuditUnavailable",
    "Busy",
    "Throttled",
    "AccessDenied",
    "PushRefused",
    "InstanceNotRunning",
    "AwsUnavailable",
];

/// Everything that the gateway counts.
pub struct GatewayMetrics {
    page: Page,
    connections: Counts,
    keys: Counts,
    /// Sessions that are open.
    pub sessions_open: Gauge,
    /// Connections of endpoints that are taken.
    pub endpoint_connections: Gauge,
    ends: Counts,
    refusals: Counts,
    pushes: Counts,
    cut_lateness: Histogram,
    reports: Counts,
    audit_failures: Counter,
    /// Bytes that sessions carried to instances.
    pub bytes_to_instances: Counter,
    /// Bytes that sessions carried from instances.
    pub bytes_from_instances: Counter,
    /// Grants that are served.
    pub grants: Gauge,
    /// Watches that broke.
    pub watch_errors: Counter,
    /// Requests that could not be decoded.
    pub undecodable: Counter,
    rooms: Late,
}

impl Default for GatewayMetrics {
    fn default() -> Self {
        let mut page = Page::new("instance_access_gateway", "gateway");
        page.collect(SpanCounts);
        let bytes = page.counts(
            "bytes",
            "Bytes that sessions carried, still under the inner SSH's cipher",
            "direction",
            &["to_instance", "from_instance"],
        );
        let refusals: Vec<&str> = REFUSALS.into_iter().chain(PUSHES.into_iter().skip(2)).collect();
        Self {
            connections: page.counts("connections", "Connections of clients, by outcome", "outcome", &CONNECTIONS),
            keys: page.counts("keys", "Keys that clients offered, and keys that were proved", "outcome", &KEYS),
            sessions_open: page.gauge("sessions_open", "Sessions that are open"),
            endpoint_connections: page.gauge("endpoint_connections", "Connections of endpoints that are taken"),
            ends: page.counts(
                "session_ends",
                "Sessions that ended, by cause",
                "cause",
                &SessionEnd::ALL.map(SessionEnd::as_str),
            ),
            refusals: page.counts("refusals", "Sessions that were not opened, by reason", "reason", &refusals),
            pushes: page.counts("pushes", "Keys that sessions needed, by outcome", "outcome", &PUSHES),
            cut_lateness: page
                .lateness("cut_lateness_seconds", "How far the cut of a session lies behind expirationTime"),
            reports: page.counts(
                "report_writes",
                "Writes into status.sessions, by outcome",
                "outcome",
                &["stored", "gone", "failed"],
            ),
            audit_failures: page.counter("audit_failures", "Records of sessions that were not made durable at once"),
            bytes_to_instances: bytes.of("to_instance"),
            bytes_from_instances: bytes.of("from_instance"),
            grants: page.gauge("grants", "Grants that are served"),
            watch_errors: page.counter("watch_errors", "Times that the watch over requests broke"),
            undecodable: page.counter("undecodable", "Times that a request could not be decoded"),
            rooms: page.late(),
            page,
        }
    }
}

impl GatewayMetrics {
    /// The metrics page, in the OpenMetrics text format.
    pub fn page(&self) -> String {
        self.page.text()
    }

    /// Says where to read what the trail counts, and whether the API server is heard. The first word stands.
    pub fn read_from(&self, source: impl Fn() -> (Stats, bool) + Send + Sync + 'static) {
        self.rooms.read_from(move || {
            let (audit, is_heard) = source();
            let heard = Sample::now(
                "api_server_heard",
                "Whether the grants were read, and the API server is heard; while 0, no session is opened",
                is_heard.into(),
            );
            // Without a trail it does not start.
            of_trail(audit, true).into_iter().chain([heard]).collect()
        });
    }

    /// A connection came, and this came of it.
    pub fn count_connection(&self, outcome: &'static str) {
        self.connections.inc(outcome);
    }

    /// A key was offered, and this came of it.
    pub fn count_key(&self, outcome: &'static str) {
        self.keys.inc(outcome);
    }

    /// A session was not opened.
    pub fn count_refusal(&self, reason: &'static str) {
        self.refusals.inc(reason);
    }

    /// A session needed a key, and this came of it.
    pub fn count_push(&self, outcome: &'static str) {
        self.pushes.inc(outcome);
    }

    /// A session ended.
    pub fn count_end(&self, cause: SessionEnd) {
        self.ends.inc(cause.as_str());
    }

    /// A session was cut at its time, so late.
    pub fn observe_cut(&self, lateness: Duration) {
        self.cut_lateness.observe(lateness.as_secs_f64());
    }

    /// An entry of `status.sessions` was written, or not.
    pub fn count_report(&self, outcome: &'static str) {
        self.reports.inc(outcome);
    }

    /// A record was not made durable.
    pub fn count_audit_failure(&self) {
        self.audit_failures.inc();
    }
}
