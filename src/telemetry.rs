//! Logs and metrics. Labels are bounded: never a user, an instance, a namespace or an object's name.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text::encode};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tracing_subscriber::EnvFilter;

use crate::api::EndCause;
use crate::audit;
use crate::aws::{LookupStats, PushStats};

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
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,kube_runtime=error,russh=error"));
    // What cannot be written is lost, and no more: the complaint about it would go the same way, and panic there. A log
    // on a full disk must not stop an end.
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false);
    match format {
        LogFormat::Text => builder.with_ansi(false).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
}

/// The longest error in a log line, in characters: kube's errors tell the same thing three times over.
const ERROR_LENGTH_MAX: usize = 400;

/// An error with its causes, in one line for the log.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string);
    let mut line = String::new();
    for cause in causes {
        if !line.contains(&cause) {
            let between = if line.is_empty() { "" } else { ": " };
            line = format!("{line}{between}{cause}");
        }
    }
    crate::domain::condition::bounded(line.replace(['\n', '\r'], " "), ERROR_LENGTH_MAX)
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
    enforcement_losses: Counter,
    restless_turns: Counter,
    undecodable: Gauge,
    undecodable_uids: Mutex<HashSet<String>>,
    source: Arc<OnceLock<Source>>,
}

/// What other rooms count, read when the page is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reading {
    /// The pacer's counts.
    pub pushes: PushStats,
    /// The batcher's counts.
    pub lookups: LookupStats,
    /// The trail's counts.
    pub audit: audit::Stats,
    /// Requests in the cluster.
    pub requests: usize,
    /// Decisions that are kept, of all that there are in the cluster.
    pub decisions: usize,
    /// Grants that the ledger knows: of requests that are there, and of deleted ones.
    pub ledger_grants: usize,
    /// Grants that have not ended.
    pub grants_live: usize,
    /// Requests that are looked at again at a time of their own, such as a grant's end.
    pub timers: usize,
    /// Whether what guards the requests stands in the API server.
    pub enforcement_stands: bool,
    /// Whether this process may act.
    pub leads: bool,
}

type Source = Box<dyn Fn() -> Reading + Send + Sync>;

/// Asks the other rooms at each scrape.
struct Rooms(Arc<OnceLock<Source>>);

impl std::fmt::Debug for Rooms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Rooms")
    }
}

impl Collector for Rooms {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let Some(source) = self.0.get() else { return Ok(()) };
        let Reading {
            pushes,
            lookups,
            audit,
            requests,
            decisions,
            ledger_grants,
            grants_live,
            timers,
            enforcement_stands,
            leads,
        } = source();
        let outcomes = [
            ("delivered", pushes.delivered),
            ("failed", pushes.failed),
            ("throttled", pushes.throttled),
            ("unsure", pushes.unsure),
            ("too_late", pushes.too_late),
            ("fenced", pushes.fenced),
            ("withdrawn", pushes.withdrawn),
            ("turned_away", pushes.turned_away),
        ];
        counters(
            &mut encoder,
            "pushes",
            "Pushes of keys, by outcome; throttled and unsure ones are among the failed",
            &outcomes,
        )?;
        let outcomes = [
            ("asked", lookups.asked),
            ("calls", lookups.calls),
            ("failed", lookups.failed),
            ("throttled", lookups.throttled),
            ("turned_away", lookups.turned_away),
        ];
        counters(
            &mut encoder,
            "lookups",
            "Look-ups at EC2: questions asked, calls made of them, and how those went",
            &outcomes,
        )?;
        let outcomes = [
            ("appended", audit.appended),
            ("failed", audit.failed),
            ("refused", audit.refused),
            ("copy_dropped", audit.copies_dropped),
        ];
        counters(&mut encoder, "audit_records", "Audit records, by outcome", &outcomes)?;
        gauge(&mut encoder, "pushes_waiting", "Pushes that wait their turn", pushes.waiting)?;
        gauge(&mut encoder, "pushes_in_flight", "Pushes under way", pushes.in_flight)?;
        gauge(&mut encoder, "lookups_waiting", "Look-ups that wait their turn", lookups.waiting)?;
        gauge(
            &mut encoder,
            "audit_records_queued",
            "Audit records that wait to be durable",
            audit.queue_records as u64,
        )?;
        gauge(
            &mut encoder,
            "enforcement_stands",
            "Whether admission policies and CRDs stand as shipped; while 0, nothing is granted and no key pushed",
            enforcement_stands.into(),
        )?;
        gauge(&mut encoder, "leader", "Whether this process leads; without --lease it always does", leads.into())?;
        gauge(&mut encoder, "requests", "Requests in the cluster", requests as u64)?;
        gauge(&mut encoder, "decisions_kept", "Decisions that may count, of all in the cluster", decisions as u64)?;
        gauge(
            &mut encoder,
            "ledger_grants",
            "Grants that are not given again, of requests that are there and of deleted ones",
            ledger_grants as u64,
        )?;
        gauge(&mut encoder, "timers", "Requests that are looked at again at a time of their own", timers as u64)?;
        gauge(&mut encoder, "grants_live", "Grants that have not ended", grants_live as u64)
    }
}

fn counters(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    outcomes: &[(&'static str, u64)],
) -> Result<(), std::fmt::Error> {
    let mut family = encoder.encode_descriptor(name, help, None, prometheus_client::metrics::MetricType::Counter)?;
    for (outcome, value) in outcomes {
        ConstCounter::new(*value).encode(family.encode_family(&Outcome { outcome })?)?;
    }
    Ok(())
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> Result<(), std::fmt::Error> {
    let encoder = encoder.encode_descriptor(name, help, None, prometheus_client::metrics::MetricType::Gauge)?;
    ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(encoder)
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
        let enforcement_losses = Counter::default();
        registry.register(
            "enforcement_losses",
            "Times that admission policies or CRDs were found missing, bent or out of sight",
            enforcement_losses.clone(),
        );
        let restless_turns = Counter::default();
        registry.register(
            "restless_turns",
            "Turns that did not come to rest: a bug, report it",
            restless_turns.clone(),
        );
        let undecodable = Gauge::default();
        registry.register(
            "undecodable_objects",
            "Objects that cannot be decoded and are left alone",
            undecodable.clone(),
        );
        let source = Arc::new(OnceLock::new());
        registry.register_collector(Box::new(Rooms(Arc::clone(&source))));
        registry.register_collector(Box::new(crate::traces::SpanCounts));
        Self {
            registry,
            grants,
            ends,
            end_lateness,
            status_writes,
            events,
            watch_errors,
            enforcement_losses,
            restless_turns,
            undecodable,
            undecodable_uids: Mutex::default(),
            source,
        }
    }
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
            EndCause::Consumed => "Consumed",
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

    /// What guards the requests was found missing.
    pub fn count_enforcement_loss(&self) {
        self.enforcement_losses.inc();
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

    /// Says where to read what other rooms count. The first word stands.
    pub fn read_from(&self, source: impl Fn() -> Reading + Send + Sync + 'static) {
        // A second controller in one process would be a bug of main's, and counting the first is right then.
        let _ = self.source.set(Box::new(source));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_counters_with_the_ecosystems_names_and_labels_that_are_bounded() {
        let metrics = Metrics::default();
        metrics
            .read_from(|| Reading { pushes: PushStats { delivered: 7, ..PushStats::default() }, ..Reading::default() });
        metrics.count_end(EndCause::Expired, Duration::from_millis(30));
        metrics.undecodable("a");
        metrics.undecodable("a");
        let page = metrics.page();
        for line in [
            "instance_access_pushes_total{outcome=\"delivered\"} 7",
            "instance_access_ends_total{cause=\"Expired\"} 1",
            "instance_access_end_lateness_seconds_bucket{le=\"0.05\"} 1",
            "instance_access_undecodable_objects 1",
            "instance_access_grants_live 0",
        ] {
            assert!(page.lines().any(|found| found == line), "no {line} in\n{page}");
        }
        metrics.decodable("a");
        assert!(metrics.page().contains("instance_access_undecodable_objects 0"));
    }
}
