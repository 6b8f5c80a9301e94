//! The alerts: each fires when it should and not just before, has a page that says what to do, and is rendered as it is.
//!
//! promtool judges, with Prometheus' own rules engine. When each alert fires stands in alerts.yaml.

use std::collections::{BTreeMap, BTreeSet};

use instance_access::gateway::GatewayMetrics;
use instance_access::telemetry::{Metrics, Reading};
use regex::Regex;
use serde::Deserialize;
use serde_json::{Value, json};

use super::helm::{IMAGE, file, named, read, rendered, template, the};
use super::monitoring::{
    RULES, every_series_is_there, promtool, rules, series_that_prometheus_reads, wrong_to_the_operator,
};

/// A row of alerts.yaml.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    quiet: Option<String>,
    firing: Option<String>,
    at: String,
    every: Option<String>,
    series: BTreeMap<String, Value>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

fn alerts() -> BTreeMap<String, Value> {
    let alerts = rules().into_iter().filter(|rule| rule["alert"].is_string());
    alerts.map(|rule| (rule["alert"].as_str().unwrap().to_owned(), rule)).collect()
}

/// A text of an alert, with the labels put in.
fn expanded(text: &str, labels: &BTreeMap<String, String>) -> String {
    let label = Regex::new(r"\{\{ \$labels\.(\w+) \}\}").unwrap();
    let text = label.replace_all(text, |found: &regex::Captures<'_>| {
        labels.get(&found[1]).cloned().unwrap_or_else(|| panic!("{text}: its alert has no label {}", &found[1]))
    });
    assert!(!text.contains("{{"), "{text}: of labels alone, which a test can expand");
    text.into_owned()
}

/// The values of one series. A number would be YAML's reading of what is none: 0x40.
fn values(series: &str, values: &Value) -> String {
    match values {
        Value::String(text) => text.clone(),
        other => panic!("{series}: put quotes around {other}"),
    }
}

#[test]
fn every_alert_fires_when_it_should_and_not_just_before() {
    let cases: BTreeMap<String, Vec<Case>> = serde_yaml::from_str(&read("tests/chart/alerts.yaml")).unwrap();
    let alerts = alerts();
    assert_eq!(cases.keys().collect::<Vec<_>>(), alerts.keys().collect::<Vec<_>>(), "each alert has its cases");
    // By the distance of samples, which is that of evaluations as well: days in steps of half a minute take long.
    let mut tests: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for (name, cases) in &cases {
        assert!(cases.iter().any(|case| case.quiet.is_some()), "{name}: when does it not fire?");
        assert!(cases.iter().any(|case| case.firing.is_some()), "{name}: when does it fire?");
        for case in cases {
            let (why, alert) = match (&case.quiet, &case.firing) {
                (Some(why), None) => (why, None),
                (None, Some(why)) => {
                    let texts = alerts[name]["annotations"].as_object().unwrap().iter();
                    let texts: BTreeMap<_, _> =
                        texts.map(|(key, text)| (key, expanded(text.as_str().unwrap(), &case.labels))).collect();
                    let mut labels = json!(case.labels);
                    labels["severity"] = alerts[name]["labels"]["severity"].clone();
                    (why, Some(json!({"exp_labels": labels, "exp_annotations": texts})))
                }
                _ => panic!("{name}: quiet or firing, one of them: {case:?}"),
            };
            let series =
                case.series.iter().map(|(series, all)| json!({"series": series, "values": values(series, all)}));
            let every = case.every.clone().unwrap_or_else(|| "30s".to_owned());
            tests.entry(every.clone()).or_default().push(json!({
                "name": format!("{name}, {why}"),
                "interval": every,
                "input_series": series.collect::<Vec<_>>(),
                "alert_rule_test": [
                    {"eval_time": case.at, "alertname": name, "exp_alerts": alert.into_iter().collect::<Vec<_>>()},
                ],
            }));
        }
    }
    let plain: Value = serde_yaml::from_str(&read(RULES)).unwrap();
    let order: Vec<&str> = plain["groups"].as_array().unwrap().iter().filter_map(|it| it["name"].as_str()).collect();
    let dir = tempfile::tempdir().unwrap();
    let files: Vec<String> = tests
        .into_iter()
        .map(|(every, tests)| {
            let path = dir.path().join(format!("{every}.yaml"));
            // Without an order promtool has none, and alerts may see what was recorded a step before.
            let all = json!({
                "rule_files": [file(RULES)], "evaluation_interval": every, "group_eval_order": order, "tests": tests,
            });
            std::fs::write(&path, all.to_string()).unwrap();
            path.to_str().unwrap().to_owned()
        })
        .collect();
    let mut arguments = vec!["test", "rules"];
    arguments.extend(files.iter().map(String::as_str));
    let done = promtool(&arguments);
    assert!(
        done.status.success(),
        "{}{}",
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr)
    );
}

#[test]
fn every_alert_has_a_page_that_says_what_to_do_and_every_page_an_alert() {
    let parts = ["What it means", "Who is affected", "How to see it", "What to do", "When it is over"];
    let alerts = alerts();
    for (name, alert) in &alerts {
        assert!(name.starts_with("InstanceAccess"), "{name}: whose is it?");
        assert!(["critical", "warning"].contains(&alert["labels"]["severity"].as_str().unwrap()), "{name}");
        assert!(alert["labels"].as_object().unwrap().len() == 1, "{name}: a label that makes it another alert");
        assert!(!alert["annotations"]["summary"].as_str().unwrap().contains("{{"), "{name}: one summary for all of it");
        let path = format!("docs/runbooks/{name}.md");
        assert_eq!(alert["annotations"]["runbook_url"], path.as_str());
        let page = read(&path);
        assert!(page.starts_with(&format!("# {name}\n")), "{path}");
        let headings: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("## ")).collect();
        assert_eq!(headings, parts, "{path}");
        let severity = alert["labels"]["severity"].as_str().unwrap();
        let wait = alert["for"].as_str().map_or("At once.".to_owned(), |wait| format!("For: {wait}."));
        assert!(page.contains(&format!("\nSeverity: {severity}. {wait}\n")), "{path}: {severity}, {wait}");
    }
    let pages: BTreeSet<String> = std::fs::read_dir(file("docs/runbooks"))
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .filter(|name| name != "README")
        .collect();
    assert_eq!(pages, alerts.into_keys().collect());
}

#[test]
fn every_query_of_the_rules_and_the_dashboard_names_what_is_there() {
    let (metrics, gateway) = (Metrics::default(), GatewayMetrics::default());
    metrics.led_by(|| true);
    metrics.read_from(Reading::default);
    gateway.read_from(Default::default);
    let pages = [metrics.page(), gateway.page()];
    for page in &pages {
        assert!(series_that_prometheus_reads(page) > 50, "{page}");
    }
    every_series_is_there(&[&pages[0], &pages[1]]);
}

/// What promtool says of rules, as an error.
fn checked(rules: &Value) -> Result<(), String> {
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    std::fs::write(file.path(), rules.to_string()).unwrap();
    let done = promtool(&["check", "rules", "--lint=all", "--lint-fatal", file.path().to_str().unwrap()]);
    if done.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&done.stderr).into_owned()) }
}

#[test]
fn the_rules_are_rendered_as_they_are_and_as_the_values_say() {
    assert!(rendered(&[]).iter().all(|object| object["kind"] != "PrometheusRule"), "off by default");
    let plain: Value = serde_yaml::from_str(&read(RULES)).unwrap();
    checked(&plain).unwrap();
    assert!(checked(&json!({"groups": [{"name": "a", "rules": [{"alert": "A", "expr": "up ="}]}]})).is_err());
    let on = ["--set", "prometheusRule.enabled=true"];
    assert_eq!(the(&rendered(&on), "PrometheusRule")["spec"], plain);

    let objects = rendered(&[
        "--set=prometheusRule.enabled=true,prometheusRule.labels.release=prometheus",
        "--set=prometheusRule.disabled={InstanceAccessEndLate,InstanceAccessGatewayAbsent}",
        "--set=prometheusRule.runbookUrl=https://git.example/access/blob/main/",
        "--set=prometheusRule.alertLabels.team=platform,prometheusRule.alertLabels.severity=none",
        "--set-json=prometheusRule.extraRules=[{\"alert\":\"Own\",\"expr\":\"vector(1)\",\"annotations\":{\"a\":\"{{ $value }}\"}}]",
    ]);
    // Rules of one's own are in an object of their own, so that a mistake in them takes none of ours along.
    let both =
        ["access-instance-access", "access-instance-access-extra"].map(|it| named(&objects, "PrometheusRule", it));
    for rule in both {
        assert_eq!(rule["metadata"]["labels"]["release"], "prometheus");
        checked(&rule["spec"]).unwrap();
    }
    let specs = both.map(|rule| rule["spec"].clone());
    assert_eq!(wrong_to_the_operator(&specs), vec![Vec::<String>::new(); 2]);
    let rules = |rule: &Value| -> Vec<Value> {
        let groups = rule["spec"]["groups"].as_array().unwrap().iter();
        groups.flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
    };
    assert_eq!(rules(both[1]).len(), 1);
    let all: Vec<Value> = both.into_iter().flat_map(rules).collect();
    let mut left: BTreeSet<String> = alerts().into_keys().collect();
    left.remove("InstanceAccessEndLate");
    left.remove("InstanceAccessGatewayAbsent");
    left.insert("Own".to_owned());
    let rendered: BTreeSet<String> = all.iter().filter_map(|rule| rule["alert"].as_str().map(str::to_owned)).collect();
    assert_eq!(rendered, left);
    for alert in all.iter().filter(|rule| rule["alert"].is_string() && rule["alert"] != "Own") {
        let name = alert["alert"].as_str().unwrap();
        let url = format!("https://git.example/access/blob/main/docs/runbooks/{name}.md");
        assert_eq!(alert["annotations"]["runbook_url"], url.as_str());
        assert_eq!((&alert["labels"]["team"], alert["labels"]["severity"] == "none"), (&json!("platform"), false));
    }
    assert!(all.iter().any(|rule| rule["record"].is_string()), "recording rules stay");

    let typo = ["--set", IMAGE, "--set", "prometheusRule.enabled=true,prometheusRule.disabled={InstanceAccessDaef}"];
    let refused = template(&typo).unwrap_err();
    assert!(refused.contains("there is no alert \"InstanceAccessDaef\""), "{refused}");
    for value in ["prometheusRule.disabled={daef}", "prometheusRule.runbookUrl=git.example", "prometheusRule.on=true"] {
        let refused = template(&["--set", IMAGE, "--set", value]).expect_err(value);
        assert!(refused.contains("don't meet the specifications of the schema"), "{value}: {refused}");
    }
}
