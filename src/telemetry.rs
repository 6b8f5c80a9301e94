//! Logs and metrics. Labels are bounded: never a user, an instance, a namespace or an object's name.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use tracing_subscriber::EnvFilter;

use crate::api::EndCause;
use crate::audit;
use crate::aws::{LookupStats, PushStats};
use crate::domain::tally::Standing;
use crate::metrics::{Counts, Late, Page, Sample};
use crate::traces::SpanCounts;

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

/// Everything that the controller counts.
pub struct Metrics {
    page: Page,
    grants: Counter,
    usable: Histogram,
    ends: Counts,
    end_lateness: Histogram,
    status_writes: Counts,
    events: Counts,
    watch_errors: Counts,
    enforcement_losses: Counter,
    restless_turns: Counter,
    undecodable: Gauge,
    undecodable_uids: Mutex<HashSet<String>>,
    leader: Late,
    rooms: Late,
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
    /// Whether the trail was opened.
    pub audit_is_open: bool,
    /// Requests in the cluster.
    pub requests: usize,
    /// Decisions that are kept, of all that there are in the cluster.
    pub decisions: usize,
    /// Grants that the ledger knows: of requests that are there, and of deleted ones.
    pub ledger_grants: usize,
    /// The grants that have not ended.
    pub grants: Standing,
    /// Requests that are looked at again at a time of their own, such as a grant's end.
    pub timers: usize,
    /// Whether what guards the requests stands in the API server.
    pub enforcement_stands: bool,
    /// Whether all lists were read, and the API server is heard.
    pub api_server_heard: bool,
    /// Whether the settings name a gateway.
    pub expects_gateway: bool,
}

fn samples(reading: Reading) -> Vec<Sample> {
    let Reading {
        pushes,
        lookups,
        audit,
        audit_is_open,
        requests,
        decisions,
        ledger_grants,
        grants,
        timers,
        enforcement_stands,
        api_server_heard,
        expects_gateway,
    } = reading;
    let mut samples = vec![
        Sample::totals("pushes", "Pushes of keys, by outcome", "outcome", outcomes_of(&pushes)),
        Sample::now("pushes_waiting", "Pushes that wait their turn", pushes.waiting),
        Sample::now("pushes_in_flight", "Pushes under way", pushes.in_flight),
        Sample::total(
            "lookups",
            "Questions about EC2's instances and endpoints that memory did not answer",
            lookups.asked,
        ),
        Sample::total(
            "lookups_turned_away",
            "Of these questions, the ones turned away, since the queue was full",
            lookups.turned_away,
        ),
        Sample::totals(
            "lookup_calls",
            "Calls of EC2 that look-ups came to, by outcome",
            "outcome",
            [
                ("answered", lookups.answered),
                ("throttled", lookups.throttled),
                ("refused", lookups.refused),
                ("failed", lookups.failed),
            ],
        ),
        Sample::now("lookups_waiting", "Look-ups that wait their turn", lookups.waiting),
    ];
    samples.extend(of_trail(audit, audit_is_open));
    samples.extend([
        Sample::now(
            "enforcement_stands",
            "Whether admission policies and CRDs stand as shipped; while 0, nothing is granted and no key pushed",
            enforcement_stands.into(),
        ),
        Sample::now(
            "api_server_heard",
            "Whether all lists were read, and the API server is heard; while 0, soon no key is pushed",
            api_server_heard.into(),
        ),
        Sample::now(
            "expects_gateway",
            "Whether the settings name a gateway, or a service account of one",
            expects_gateway.into(),
        ),
        Sample::now("requests", "Requests in the cluster", requests as u64),
        Sample::now("decisions_kept", "Decisions that may count, of all in the cluster", decisions as u64),
        Sample::now(
            "ledger_grants",
            "Grants that are not given again, of requests that are there and of deleted ones",
            ledger_grants as u64,
        ),
        Sample::now("grants_live", "Grants that have not ended", grants.live as u64),
        Sample::now("timers", "Requests that are looked at again at a time of their own", timers as u64),
        Sample::now(
            "revocations_pending",
            "Grants that are being taken back: no key is pushed, and the last one fades",
            grants.taken_back as u64,
        ),
        Sample::seconds(
            "end_overdue_seconds",
            "How far the longest overdue end lies behind its expirationTime; 0 if none is overdue",
            grants.overdue,
        ),
    ]);
    samples
}

/// What came of pushes. No push is among two of them.
pub fn outcomes_of(pushes: &PushStats) -> [(&'static str, u64); 9] {
    [
        ("delivered", pushes.delivered),
        ("throttled", pushes.throttled),
        ("refused", pushes.refused),
        ("unsure", pushes.unsure),
        ("failed", pushes.failed),
        ("too_late", pushes.too_late),
        ("fenced", pushes.fenced),
        ("withdrawn", pushes.withdrawn),
        ("turned_away", pushes.turned_away),
    ]
}

/// What an audit trail counts; both pages have it.
pub fn of_trail(audit: audit::Stats, is_open: bool) -> [Sample; 7] {
    [
        Sample::totals(
            "audit_records",
            "Audit records, by outcome",
            "outcome",
            [("appended", audit.appended), ("failed", audit.failed), ("refused", audit.refused)],
        ),
        Sample::total(
            "audit_copies_dropped",
            "Records that are in the file, and were not copied to standard output, since that was too slow",
            audit.copies_dropped,
        ),
        Sample::now("audit_records_queued", "Audit records that wait to be durable", audit.queue_records as u64),
        Sample::now("audit_file_bytes", "Bytes of the audit file that is open", audit.file_bytes),
        Sample::total("audit_files_closed", "Audit files that were full, and closed", audit.files_closed),
        Sample::total(
            "audit_file_close_failures",
            "How often a full audit file could not be closed; it grows on",
            audit.file_close_failures,
        ),
        Sample::now("audit_open", "Whether the audit trail was opened", is_open.into()),
    ]
}

impl Default for Metrics {
    fn default() -> Self {
        let mut page = Page::new("instance_access", "controller");
        page.collect(SpanCounts);
        Self {
            grants: page.counter("grants", "Grants stored in status"),
            // startTime is a whole second, so this is up to one too much.
            usable: page.histogram(
                "grant_latency_seconds",
                "How long after its startTime the first key of a grant was delivered, or could be, and status said so",
                [0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0, 300.0],
            ),
            ends: page.counts(
                "ends",
                "Ends of grants stored in status, by cause",
                "cause",
                &EndCause::ALL.map(EndCause::as_str),
            ),
            end_lateness: page.lateness(
                "end_lateness_seconds",
                "How far the stored end lies behind expirationTime; ends that came before it are not in here",
            ),
            status_writes: page.counts(
                "status_writes",
                "Writes of requests' status, by outcome",
                "outcome",
                &["stored", "stale", "conflict", "gone", "timeout", "refused", "deposed"],
            ),
            events: page.counts("events", "Kubernetes Events, by outcome", "outcome", &["sent", "failed", "dropped"]),
            watch_errors: page.counts(
                "watch_errors",
                "Watches that broke, by resource",
                "resource",
                &[
                    "instanceaccesses",
                    "instanceaccesspolicies",
                    "instanceaccessdecisions",
                    "instanceaccessledgerentries",
                    "nodes",
                    "enforcement",
                ],
            ),
            enforcement_losses: page.counter(
                "enforcement_losses",
                "Times that admission policies or CRDs were found missing, bent or out of sight",
            ),
            restless_turns: page.counter("restless_turns", "Turns that did not come to rest: a bug, report it"),
            undecodable: page.gauge("undecodable_objects", "Objects that cannot be decoded and are left alone"),
            undecodable_uids: Mutex::default(),
            leader: page.late(),
            rooms: page.late(),
            page,
        }
    }
}

impl Metrics {
    /// The metrics page, in the OpenMetrics text format.
    pub fn page(&self) -> String {
        self.page.text()
    }

    /// A grant was stored.
    pub fn count_grant(&self) {
        self.grants.inc();
    }

    /// A grant can be used for the first time, so long after its start.
    pub fn observe_usable(&self, latency: Duration) {
        self.usable.observe(latency.as_secs_f64());
    }

    /// An end was stored, so late. One that came before its time says nothing of how punctual we are: those that people or
    /// policies make early would hide the ones that are late.
    pub fn count_end(&self, cause: EndCause, lateness: Duration) {
        let is_due = match cause {
            EndCause::Expired => true,
            EndCause::Released | EndCause::Revoked | EndCause::PolicyChanged | EndCause::Consumed => false,
        };
        self.ends.inc(cause.as_str());
        if is_due || !lateness.is_zero() {
            self.end_lateness.observe(lateness.as_secs_f64());
        }
    }

    /// A write of a request's status came out so.
    pub fn count_status_write(&self, outcome: &'static str) {
        self.status_writes.inc(outcome);
    }

    /// An Event came out so.
    pub fn count_event(&self, outcome: &'static str) {
        self.events.inc(outcome);
    }

    /// A watch broke.
    pub fn count_watch_error(&self, resource: &'static str) {
        self.watch_errors.inc(resource);
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

    /// Says where to read whether this process leads: one that stands by has this, and none of the next.
    pub fn led_by(&self, leads: impl Fn() -> bool + Send + Sync + 'static) {
        self.leader.read_from(move || {
            vec![Sample::now("leader", "Whether this process leads; without --lease it always does", leads().into())]
        });
    }

    /// Says where to read what other rooms count. The first word stands.
    pub fn read_from(&self, source: impl Fn() -> Reading + Send + Sync + 'static) {
        self.rooms.read_from(move || samples(source()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_counters_with_the_ecosystems_names_and_labels_that_are_bounded() {
        let metrics = Metrics::default();
        metrics.led_by(|| false);
        let stands_by = metrics.page();
        assert!(stands_by.contains("\ninstance_access_leader 0\n"), "{stands_by}");
        assert!(!stands_by.contains("enforcement_stands"), "who stands by has not looked: {stands_by}");
        metrics.read_from(|| Reading {
            pushes: PushStats { delivered: 7, ..PushStats::default() },
            grants: Standing { overdue: Duration::from_millis(1500), ..Standing::default() },
            ..Reading::default()
        });
        metrics.count_end(EndCause::Expired, Duration::from_millis(30));
        metrics.undecodable("a");
        metrics.undecodable("a");
        let page = metrics.page();
        for line in [
            "instance_access_pushes_total{outcome=\"delivered\"} 7",
            "instance_access_pushes_total{outcome=\"refused\"} 0",
            "instance_access_ends_total{cause=\"Expired\"} 1",
            "instance_access_ends_total{cause=\"Revoked\"} 0",
            "instance_access_end_lateness_seconds_bucket{le=\"0.05\"} 1",
            "instance_access_end_overdue_seconds 1.5",
            "instance_access_undecodable_objects 1",
            "instance_access_grants_live 0",
        ] {
            assert!(page.lines().any(|found| found == line), "no {line} in\n{page}");
        }
        metrics.decodable("a");
        assert!(metrics.page().contains("instance_access_undecodable_objects 0"));
    }

    #[test]
    fn an_end_before_its_time_is_no_punctual_one_and_a_late_one_is_late_whatever_its_cause() {
        let metrics = Metrics::default();
        let counted = || -> Vec<u64> {
            let page = metrics.page();
            let value =
                |name: &str| page.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap();
            ["_bucket{le=\"1.0\"}", "_count"]
                .map(|end| value(&format!("instance_access_end_lateness_seconds{end}")))
                .to_vec()
        };
        metrics.count_end(EndCause::Released, Duration::ZERO);
        assert_eq!(counted(), [0, 0]);
        metrics.count_end(EndCause::Expired, Duration::ZERO);
        assert_eq!(counted(), [1, 1]);
        metrics.count_end(EndCause::Revoked, Duration::from_secs(3));
        assert_eq!(counted(), [1, 2]);
    }
}
