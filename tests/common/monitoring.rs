//! What Prometheus and Grafana ask for, read by Prometheus' own parser, and held to what a metrics page has.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use regex::Regex;
use serde::Deserialize;
use serde_json::Value;

/// The rules, as they stand in the chart.
pub const RULES: &str = "charts/instance-access/files/monitoring/rules.yaml";
/// The dashboard, as it stands in the chart.
pub const DASHBOARD: &str = "charts/instance-access/files/monitoring/dashboard.json";

/// Series of others that queries may name: Kubernetes', and what every exporter has.
const FOREIGN: [&str; 4] = [
    "kubelet_volume_stats_available_bytes",
    "kubelet_volume_stats_capacity_bytes",
    "container_memory_working_set_bytes",
    "kube_pod_container_resource_limits",
];
/// Labels that scraping adds, and those of others' series.
const ADDED: [&str; 6] = ["cluster", "namespace", "pod", "container", "persistentvolumeclaim", "component"];

/// A file of the repository.
pub fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Reads a file of the repository.
#[track_caller]
pub fn read(path: &str) -> String {
    std::fs::read_to_string(file(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Where the programs are, built once by the script that `make test` runs.
fn programs() -> &'static Path {
    static PROGRAMS: OnceLock<PathBuf> = OnceLock::new();
    PROGRAMS.get_or_init(|| {
        let built = Command::new(file("tests/lab/setup-go-tool.sh")).arg("promtool").output().expect("bash runs it");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        PathBuf::from(String::from_utf8(built.stdout).expect("a path").trim())
    })
}

/// Runs promtool to its end.
pub fn promtool(arguments: &[&str]) -> Output {
    Command::new(programs().join("promtool")).args(arguments).output().expect("it was built")
}

/// What a query asks for.
#[derive(Debug, Deserialize)]
pub struct Finding {
    /// Why it is no PromQL, if so.
    #[serde(default)]
    error: String,
    selectors: Vec<Selector>,
    /// The labels that it joins and groups by.
    labels: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Selector {
    metric: String,
    matchers: Vec<Matcher>,
}

#[derive(Debug, Deserialize)]
struct Matcher {
    label: String,
    op: String,
    value: String,
}

/// What the program answers to a text.
#[track_caller]
fn selectors(arguments: &[&str], input: &str) -> Vec<u8> {
    let mut child = Command::new(programs().join("selectors"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it was built");
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin.write_all(input.as_bytes()).expect("it reads all before it answers");
    drop(stdin);
    let done = child.wait_with_output().expect("it ends");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    done.stdout
}

/// How many series Prometheus' own parser of OpenMetrics reads on a page, to its end.
#[track_caller]
pub fn series_that_prometheus_reads(page: &str) -> usize {
    String::from_utf8(selectors(&["page"], page)).expect("a number").trim().parse().expect("a number")
}

/// What the Prometheus operator finds wrong with each of these specs of PrometheusRules. One with a finding it drops as a
/// whole; its webhook, where there is one, refuses it.
#[track_caller]
pub fn wrong_to_the_operator(specs: &[Value]) -> Vec<Vec<String>> {
    let answer = selectors(&["rules"], &serde_json::to_string(specs).expect("values are JSON"));
    let findings: Vec<Vec<String>> = serde_json::from_slice(&answer).expect("a list of lists");
    assert_eq!(findings.len(), specs.len());
    findings
}

#[track_caller]
fn asked_for(queries: &[String]) -> Vec<Finding> {
    let input = serde_json::to_string(queries).expect("texts are JSON");
    let findings: Vec<Finding> = serde_json::from_slice(&selectors(&[], &input)).expect("a list of findings");
    assert_eq!(findings.len(), queries.len());
    findings
}

/// The rules' groups.
pub fn rules() -> Vec<Value> {
    let all: Value = serde_yaml::from_str(&read(RULES)).unwrap();
    let groups = all["groups"].as_array().unwrap().iter();
    groups.flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
}

/// The dashboard's panels.
pub fn panels() -> Vec<Value> {
    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)).unwrap();
    dashboard["panels"].as_array().unwrap().clone()
}

/// Every query, with where it stands. Grafana's own variables are put in as it would.
fn queries() -> Vec<(String, String)> {
    let mut all = Vec::new();
    for rule in rules() {
        let name = rule["alert"].as_str().or(rule["record"].as_str()).unwrap();
        all.push((name.to_owned(), rule["expr"].as_str().unwrap().to_owned()));
    }
    assert!(all.len() > 30, "{all:?}");
    for panel in panels() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().unwrap().replace("$__rate_interval", "5m").replace("$namespace", ".*");
            assert!(!query.contains('$'), "{query}: which variable?");
            all.push((format!("the panel {}", panel["title"]), query));
        }
    }
    all
}

/// What pages show: of each sample's name, the labels and their values.
type Shown = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

fn shown(pages: &[&str]) -> Shown {
    let sample = Regex::new(r"(?m)^(\w+)(?:\{(.*)\})? \S+$").unwrap();
    let label = Regex::new(r#"(\w+)="([^"]*)""#).unwrap();
    let mut shown = Shown::new();
    for found in pages.iter().flat_map(|page| sample.captures_iter(page)) {
        let labels = shown.entry(found[1].to_owned()).or_default();
        for found in label.captures_iter(found.get(2).map_or("", |labels| labels.as_str())) {
            labels.entry(found[1].to_owned()).or_default().insert(found[2].to_owned());
        }
    }
    shown
}

/// Holds every query to these pages, the controller's and a gateway's: each series that one asks for is on them, with the
/// labels and values that it is picked by; or it is recorded by a rule, or somebody else's.
#[track_caller]
pub fn every_series_is_there(pages: &[&str]) {
    let shown = shown(pages);
    let recorded: BTreeSet<String> =
        rules().iter().filter_map(|rule| rule["record"].as_str().map(str::to_owned)).collect();
    let queries = queries();
    let texts: Vec<String> = queries.iter().map(|(_, query)| query.clone()).collect();
    let mut wrong = Vec::new();
    for ((place, query), found) in queries.iter().zip(asked_for(&texts)) {
        let mut say = |what: String| wrong.push(format!("{place}: {what}, in {query}"));
        if !found.error.is_empty() {
            say(found.error.clone());
        }
        let mut labels: BTreeSet<&str> = ADDED.into();
        for Selector { metric, matchers } in &found.selectors {
            if FOREIGN.contains(&metric.as_str()) || recorded.contains(metric) {
                continue;
            }
            let Some(own) = shown.get(metric) else {
                say(format!("there is no {metric}"));
                continue;
            };
            labels.extend(own.keys().map(String::as_str));
            for Matcher { label, op, value } in matchers {
                match own.get(label) {
                    None if ADDED.contains(&label.as_str()) => {}
                    None => say(format!("{metric} has no label {label}")),
                    Some(_) if op.starts_with('!') => {}
                    Some(there) => {
                        for value in value.split('|').filter(|value| *value != ".*" && !there.contains(*value)) {
                            say(format!("{metric} has no {label}={value:?}, only {there:?}"));
                        }
                    }
                }
            }
        }
        for label in found.labels.iter().filter(|label| !labels.contains(label.as_str()) && *label != "le") {
            say(format!("nothing has the label {label}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
