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
        self.own.register_collector(Box::new(late.clone()));
        late
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

/// The process, as every exporter shows it (`process_…`), read from /proc; elsewhere than on Linux there is nothing.
mod process {
    use std::fs;

    use super::{Sample, Value};

    /// Ticks of a second in /proc/self/stat: USER_HZ, which Linux has never had otherwise on the machines that we build for.
    const TICKS: f64 = 100.0;
    /// Bytes of a page in /proc/self/statm, if the auxiliary vector names none.
    const PAGE_BYTES: u64 = 4096;
    /// The auxiliary vector's key of a page's size.
    const AT_PAGESZ: u64 = 6;

    pub fn samples() -> Vec<Sample> {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let (stat, machine, memory) = (read("/proc/self/stat"), read("/proc/stat"), read("/proc/self/statm"));
        let page_bytes = page_bytes(&fs::read("/proc/self/auxv").unwrap_or_default()).unwrap_or(PAGE_BYTES);
        let mut samples = times(&stat, &machine).unwrap_or_default();
        samples.extend(bytes(&memory, page_bytes).unwrap_or_default());
        // One of them is the directory that is being read.
        if let Ok(open) = fs::read_dir("/proc/self/fd") {
            let open = (open.count() as u64).saturating_sub(1);
            samples.push(Sample::now("process_open_fds", "Open file descriptors", open));
        }
        let limit = files_max(&read("/proc/self/limits"));
        samples.extend(limit.map(|limit| Sample::now("process_max_fds", "File descriptors that may be open", limit)));
        samples
    }

    /// The processor's time and the start. The second word is the program's name in brackets, and may hold anything.
    fn times(stat: &str, machine: &str) -> Option<Vec<Sample>> {
        let words: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        // Numbers of proc(5), which counts from 1 and has two before these.
        let word = |number: usize| words.get(number - 3)?.parse::<f64>().ok();
        let (user, system, start) = (word(14)?, word(15)?, word(22)?);
        let boot: f64 = machine.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())?;
        Some(vec![
            Sample {
                name: "process_cpu_seconds",
                help: "Processor time, of user and system together",
                value: Value::TotalSeconds((user + system) / TICKS),
            },
            Sample {
                name: "process_start_time_seconds",
                help: "When the process started, in seconds since 1970",
                value: Value::Seconds(boot + start / TICKS),
            },
        ])
    }

    fn bytes(memory: &str, page_bytes: u64) -> Option<Vec<Sample>> {
        let mut pages = memory.split_whitespace().map_while(|word| word.parse::<u64>().ok());
        let (all, resident) = (pages.next()?, pages.next()?);
        Some(vec![
            Sample::now("process_virtual_memory_bytes", "Virtual memory", all * page_bytes),
            Sample::now("process_resident_memory_bytes", "Resident memory", resident * page_bytes),
        ])
    }

    /// Pairs of machine words, key and value.
    fn page_bytes(auxiliary: &[u8]) -> Option<u64> {
        let word = |bytes: &[u8]| bytes.try_into().ok().map(u64::from_ne_bytes);
        auxiliary.chunks_exact(16).find(|pair| word(&pair[..8]) == Some(AT_PAGESZ)).and_then(|pair| word(&pair[8..]))
    }

    fn files_max(limits: &str) -> Option<u64> {
        let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
        line.split_whitespace().next()?.parse().ok()
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_program_may_have_any_name_and_its_times_are_found() {
            let tail = "S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 9 0 12300 1000 25";
            let found = times(&format!("4711 (a b) c) {tail}"), "cpu 1 2\nbtime 1000\nctxt 5").unwrap();
            let values: Vec<Value> = found.into_iter().map(|sample| sample.value).collect();
            assert_eq!(values, [Value::TotalSeconds(3.0), Value::Seconds(1123.0)]);
            assert_eq!(times("4711 (a", "btime 1000"), None);
            assert_eq!(times(&format!("4711 (a) {tail}"), "no time"), None);
        }

        #[test]
        fn memory_is_in_pages_of_the_machine() {
            let pair = |key: u64, value: u64| [key.to_ne_bytes(), value.to_ne_bytes()].concat();
            let auxiliary = [pair(33, 7), pair(6, 65536), pair(0, 0)].concat();
            assert_eq!(page_bytes(&auxiliary), Some(65536));
            assert_eq!(page_bytes(&[0; 7]), None);
            let found = bytes("1000 25 3 0 0 0 0", 65536).unwrap();
            assert_eq!(found[1].value, Value::Now(1_638_400));
            assert_eq!(files_max("Limit Soft Hard\nMax open files            1024   524288   files\n"), Some(1024));
            assert_eq!(files_max("Max open files            unlimited   unlimited   files\n"), None);
        }
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
