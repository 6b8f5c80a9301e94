//! The Grafana dashboard, as far as it can be judged without Grafana: what it asks for, alerts.rs holds to the metrics.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::helm::{read, rendered, the};
use super::monitoring::{DASHBOARD, panels};

/// The kinds of panels that it uses.
const KINDS: [&str; 3] = ["row", "stat", "timeseries"];
/// Grafana's own names of units, of those that it uses.
const UNITS: [&str; 6] = ["none", "s", "bytes", "Bps", "ops", "percentunit"];
/// The width of Grafana's grid.
const WIDTH: u64 = 24;

#[test]
fn it_has_what_grafana_wants_of_a_dashboard() {
    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)).unwrap();
    assert_eq!(dashboard["schemaVersion"], 39, "the form of Grafana 11; a later one reads it, and converts it");
    assert!(dashboard["id"].is_null(), "Grafana gives ids");
    let uid = dashboard["uid"].as_str().unwrap();
    assert!(uid.len() <= 40 && uid.chars().all(|it| it.is_ascii_alphanumeric() || it == '-'), "{uid}");
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let names: Vec<&str> = variables.iter().map(|variable| variable["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["datasource", "namespace"]);
    assert_eq!((&variables[0]["type"], &variables[0]["query"]), (&json!("datasource"), &json!("prometheus")));
    let source = json!({"type": "prometheus", "uid": "${datasource}"});
    assert_eq!(variables[1]["datasource"], source);
    let (mut ids, mut taken) = (BTreeSet::new(), BTreeSet::new());
    for panel in panels() {
        let title = panel["title"].as_str().unwrap().to_owned();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: its id is another's");
        let kind = panel["type"].as_str().unwrap();
        assert!(KINDS.contains(&kind), "{title}: {kind}");
        let at = |side: &str| panel["gridPos"][side].as_u64().unwrap_or_else(|| panic!("{title}: {side}"));
        assert!(at("w") > 0 && at("h") > 0 && at("x") + at("w") <= WIDTH, "{title}: {}", panel["gridPos"]);
        for cell in (at("x")..at("x") + at("w")).flat_map(|x| (at("y")..at("y") + at("h")).map(move |y| (x, y))) {
            assert!(taken.insert(cell), "{title} lies over another at {cell:?}");
        }
        if kind == "row" {
            assert_eq!((&panel["panels"], &panel["collapsed"]), (&json!([]), &json!(false)), "{title}");
            continue;
        }
        assert_eq!(panel["datasource"], source, "{title}");
        let defaults = &panel["fieldConfig"]["defaults"];
        assert!(UNITS.contains(&defaults["unit"].as_str().unwrap()), "{title}: {}", defaults["unit"]);
        if let Some(steps) = defaults["thresholds"]["steps"].as_array() {
            assert!(steps[0]["value"].is_null(), "{title}: the first step begins nowhere");
            let values: Vec<f64> = steps[1..].iter().map(|step| step["value"].as_f64().unwrap()).collect();
            assert!(values.is_sorted(), "{title}: {values:?}");
        }
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{title} shows nothing");
        let mut refs = BTreeSet::new();
        for target in targets {
            assert_eq!(target["datasource"], source, "{title}");
            assert!(refs.insert(target["refId"].as_str().unwrap().to_owned()), "{title}: two of one refId");
            assert_eq!(target["instant"] == true, kind == "stat", "{title}");
        }
    }
    assert!(ids.len() > 30, "{ids:?}");
}

#[test]
fn it_is_a_config_map_that_the_sidecar_finds_when_asked_for() {
    let is_dashboard = |object: &Value| object["metadata"]["name"] == "access-instance-access-dashboard";
    assert!(!rendered(&[]).iter().any(is_dashboard), "off by default");
    let objects = rendered(&["--set=dashboard.enabled=true,dashboard.annotations.grafana_folder=Access"]);
    let map = the(&objects, "ConfigMap");
    assert!(is_dashboard(map));
    assert_eq!(map["metadata"]["labels"]["grafana_dashboard"], "1");
    assert_eq!(map["metadata"]["annotations"]["grafana_folder"], "Access");
    let text = map["data"]["instance-access.json"].as_str().unwrap();
    let (ours, file): (Value, Value) =
        (serde_json::from_str(text).unwrap(), serde_json::from_str(&read(DASHBOARD)).unwrap());
    assert!(ours == file, "it is the file as it is");
}
