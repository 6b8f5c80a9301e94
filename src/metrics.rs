//! What both metrics pages are made of: names, labels with a fixed few values, and the process itself.
//!
//! Names are Prometheus' own way: base units, `_total` on what only rises, `_seconds` and `_bytes` at the end. A label has
//! values that this program knows beforehand, and each of them is on the page from the start, at 0: what appears with its
//! first event at 1 looks to `increase()` as if nothing had happened. They add up: no event counts under two of them.

use std::fmt;
use std::sync::{Arc, OnceLock};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, LabelSetEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::process;

/// Bounds of how late something was, in seconds. What is promised is one second, so that is one of them; below, what is
/// usual; above, what pages somebody, to a minute, which is a push's life.
const LATENESS: [f64; 12] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0];

/// A label and its value.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
struct Label(&'static str, &'static str);

impl EncodeLabelSet for Label {
    fn encode(&self, encoder: &mut LabelSetEncoder) -> fmt::Result {
        [(self.0, self.1)].encode(encoder)
    }
}

/// Counters that differ in one label.
#[derive(Clone, Debug)]
pub struct Counts {
    label: &'static str,
    family: Family<Label, Counter>,
}

impl Counts {
    /// One more of those. A value that was not told beforehand counts too, from its first time on.
    pub fn inc(&self, value: &'static str) {
        self.family.get_or_create(&Label(self.label, value)).inc();
    }

    /// The counter of one value, for what is counted often.
    pub fn of(&self, value: &'static str) -> Counter {
        self.family.get_or_create_owned(&Label(self.label, value))
    }
}

/// What is read when the page is.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Its name, without the page's prefix.
    pub name: &'static str,
    /// What it means.
    pub help: &'static str,
    /// What it says.
    pub value: Value,
}

/// What a sample says.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// How many there are.
    Now(u64),
    /// How long something lasts, or when it was, in seconds.
    Seconds(f64),
    /// How often something happened.
    Total(u64),
    /// How many seconds something took, in all.
    TotalSeconds(f64),
    /// The same, by the values of a label.
    Totals(&'static str, Vec<(&'static str, u64)>),
}

impl Sample {
    /// How many there are.
    pub fn now(name: &'static str, help: &'static str, value: u64) -> Self {
        Self { name, help, value: Value::Now(value) }
    }

    /// How long something lasts; zero if it does not.
    pub fn seconds(name: &'static str, help: &'static str, value: std::time::Duration) -> Self {
        Self { name, help, value: Value::Seconds(value.as_secs_f64()) }
    }

    /// How often something happened.
    pub fn total(name: &'static str, help: &'static str, value: u64) -> Self {
        Self { name, help, value: Value::Total(value) }
    }

    /// How often something happened, by the values of a label.
    pub fn totals<const N: usize>(
        name: &'static str,
        help: &'static str,
        label: &'static str,
        values: [(&'static str, u64); N],
    ) -> Self {
        Self { name, help, value: Value::Totals(label, values.to_vec()) }
    }

    fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let kind = match self.value {
            Value::Now(_) | Value::Seconds(_) => MetricType::Gauge,
            Value::Total(_) | Value::TotalSeconds(_) | Value::Totals(..) => MetricType::Counter,
        };
        let mut metric = encoder.encode_descriptor(self.name, self.help, None, kind)?;
        match &self.value {
            Value::Now(value) => ConstGauge::new(*value).encode(metric),
            Value::Seconds(value) => ConstGauge::new(*value).encode(metric),
            Value::Total(value) => ConstCounter::new(*value).encode(metric),
            Value::TotalSeconds(value) => ConstCounter::new(*value).encode(metric),
            Value::Totals(label, values) => values.iter().try_for_each(|(value, count)| {
                ConstCounter::new(*count).encode(metric.encode_family(&Label(label, value))?)
            }),
        }
    }
}

/// Says what is now. Asked at each scrape.
pub type Source = Box<dyn Fn() -> Vec<Sample> + Send + Sync>;

/// Where to read what others count; nothing, until somebody says so.
#[derive(Clone, Default)]
pub struct Late(Arc<OnceLock<Source>>);

impl Late {
    /// Says where. The first word stands.
    pub fn read_from(&self, source: impl Fn() -> Vec<Sample> + Send + Sync + 'static) {
        // A second one in one process would be a bug of main's, and counting the first is right then.
        let _ = self.0.set(Box::new(source));
    }
}

impl fmt::Debug for Late {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Late")
    }
}

impl Collector for Late {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        self.0
            .get()
            .map(|source| source())
            .unwrap_or_default()
            .iter()
            .try_for_each(|sample| sample.encode(&mut encoder))
    }
}

/// A metrics page in the making, and then the page.
#[derive(Debug)]
pub struct Page {
    own: Registry,
    process: Registry,
}

impl Page {
    /// The page of a `controller` or a `gateway`; `prefix` stands before each of its own metrics.
    pub fn new(prefix: &'static str, component: &'static str) -> Self {
        let mut process = Registry::default();
        let build = Family::<Vec<(&str, &str)>, Gauge>::default();
        build.get_or_create(&vec![("version", env!("CARGO_PKG_VERSION")), ("component", component)]).set(1);
        process.register("instance_access_build_info", "The program's version, and what it runs as; always 1", build);
        let late = Late::default();
        late.read_from(process::samples);
        process.register_collector(Box::new(late));
        Self { own: Registry::with_prefix(prefix), process }
    }

    /// A counter; `_total` is put behind its name.
    pub fn counter(&mut self, name: &str, help: &str) -> Counter {
        let counter = Counter::default();
        self.own.register(name, help, counter.clone());
        counter
    }

    /// A gauge.
    pub fn gauge(&mut self, name: &str, help: &str) -> Gauge {
        let gauge = Gauge::default();
        self.own.register(name, help, gauge.clone());
        gauge
    }

    /// Counters that differ in one label, with the values that it may have.
    pub fn counts(&mut self, name: &str, help: &str, label: &'static str, values: &[&'static str]) -> Counts {
        let counts = Counts { label, family: Family::default() };
        for value in values {
            drop(counts.of(value));
        }
        self.own.register(name, help, counts.family.clone());
        counts
    }

    /// How late something was.
    pub fn lateness(&mut self, name: &str, help: &str) -> Histogram {
        self.histogram(name, help, LATENESS)
    }

    /// A histogram with these bounds.
    pub fn histogram<const N: usize>(&mut self, name: &str, help: &str, bounds: [f64; N]) -> Histogram {
        let histogram = Histogram::new(bounds);
        self.own.register(name, help, histogram.clone());
        histogram
    }

    /// A place for what others count.
    pub fn late(&mut self) -> Late {
        let late = Late::default();
        self.collect(late.clone());
        late
    }

    /// Puts what a collector shows on the page.
    pub fn collect(&mut self, collector: impl Collector) {
        self.own.register_collector(Box::new(collector));
    }

    /// The page as it is now, in the OpenMetrics text format.
    pub fn text(&self) -> String {
        let mut text = String::new();
        [&self.own, &self.process]
            .into_iter()
            .try_for_each(|registry| encode_registry(&mut text, registry))
            .and_then(|()| encode_eof(&mut text))
            .expect("writing to a String does not fail");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_of_a_label_is_there_before_anything_happened() {
        let mut page = Page::new("it", "controller");
        let doors = page.counts("doors", "Doors", "state", &["open", "shut"]);
        doors.inc("open");
        let late = page.late();
        assert!(!page.text().contains("it_keys"), "nobody says so yet");
        late.read_from(|| vec![Sample::totals("keys", "Keys", "fit", [("yes", 1), ("no", 0)])]);
        let text = page.text();
        for line in [
            "it_doors_total{state=\"open\"} 1",
            "it_doors_total{state=\"shut\"} 0",
            "it_keys_total{fit=\"no\"} 0",
            &format!(
                "instance_access_build_info{{version=\"{}\",component=\"controller\"}} 1",
                env!("CARGO_PKG_VERSION")
            ),
        ] {
            assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
        }
        assert!(text.ends_with("# EOF\n") && text.matches("# EOF").count() == 1, "{text}");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_process_is_on_the_page_under_the_names_that_every_exporter_has() {
        let text = Page::new("it", "gateway").text();
        let value = |name: &str| -> f64 {
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok()).expect(name)
        };
        assert!(value("process_resident_memory_bytes") > 1e6);
        assert!(value("process_virtual_memory_bytes") > value("process_resident_memory_bytes"));
        assert!(value("process_start_time_seconds") > 1.5e9);
        assert!(value("process_open_fds") >= 3.0 && value("process_open_fds") <= value("process_max_fds"));
        assert!(value("process_cpu_seconds_total") >= 0.0);
    }
}
