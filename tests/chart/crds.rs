//! What the Prometheus operator has to say, by its own CRDs in a real API server and by its own judgement of rules: what the
//! schema of the values lets through both take, and what the schema refuses one of them would.
//!
//! Each object is judged alone, as there: one that is refused, or dropped later, takes nothing else with it.

use std::process::Command;

use lab::{Lab, ssh};
use serde_json::{Value, json};

use super::helm::{IMAGE, file, objects, of_kind, template_in};
use super::monitoring::wrong_to_the_operator;
use super::whole::{NAMESPACE, kubectl};

/// Values that are odd and right.
fn taken() -> Vec<Value> {
    let long = "x".repeat(63);
    vec![
        json!({
            "serviceMonitor": {"interval": "1h30m", "labels": {"app.kubernetes.io/name": "another", "release": ""}},
            "prometheusRule": {
                "labels": {"a.b-c/D_e.f": long, "app.kubernetes.io/part-of": "kube-prometheus"},
                "alertLabels": {"severity": "page", "team": "{b} {{ $labels.namespace }} \"ä\"\n- x: y {", "_": ""},
                "runbookUrl": "https://git.example/a%20b/#\"'/",
                "extraRules": [
                    {"alert": "Ä b", "expr": "vector(1)", "for": "0", "keep_firing_for": "1m", "labels": {"a": "b"},
                        "annotations": {"a_B": "{{ $value }}"}},
                    {"record": "a:b", "expr": 1},
                ],
            },
            "dashboard": {"labels": {"grafana_dashboard": "", "helm.sh/chart": "another"},
                "annotations": {"grafana_folder": "a b/ä: 'x'"}},
        }),
        json!({"serviceMonitor": {"interval": "0"}}),
        json!({"serviceMonitor": {"interval": "1y2w3d4h5m6s7ms"}, "prometheusRule": {"extraRules": []}}),
    ]
}

/// Values that are wrong, each for one reason.
fn refused() -> Vec<Value> {
    let (monitor, rule) = (|it: Value| json!({"serviceMonitor": it}), |it: Value| json!({"prometheusRule": it}));
    let extra = |it: Value| json!({"prometheusRule": {"extraRules": [it]}});
    vec![
        monitor(json!({"interval": "30s1m"})),
        monitor(json!({"interval": "1.5m"})),
        monitor(json!({"interval": "30"})),
        monitor(json!({"labels": {"a": "b c"}})),
        monitor(json!({"labels": {"a": "x".repeat(64)}})),
        monitor(json!({"labels": {"a_": "b"}})),
        monitor(json!({"labels": {"A/b": "c"}})),
        rule(json!({"labels": {"a": "-"}})),
        json!({"dashboard": {"labels": {"a": "b\n"}}}),
        // Rules that Prometheus would not load: the operator drops the object, and each alert with it.
        rule(json!({"alertLabels": {"a-b": "c"}})),
        rule(json!({"alertLabels": {"__name__": "c"}})),
        rule(json!({"alertLabels": {"a": "{{ if"}})),
        rule(json!({"alertLabels": {"a": "{{ $nobody }}"}})),
        rule(json!({"runbookUrl": "https://git.example/{{/"})),
        extra(json!({"expr": "1"})),
        extra(json!({"alert": "A"})),
        extra(json!({"alert": "A", "record": "a", "expr": "1"})),
        extra(json!({"record": "a", "expr": "1", "for": "1m"})),
        extra(json!({"record": "a", "expr": "1", "annotations": {"a": "b"}})),
        extra(json!({"record": "a-b", "expr": "1"})),
        extra(json!({"alert": "A", "expr": "1", "for": "soon"})),
        extra(json!({"alert": "A", "expr": "1", "annotation": {"a": "b"}})),
        extra(json!({"alert": "A", "expr": "1", "labels": {"a": 1}})),
        extra(json!({"alert": "A", "expr": "1", "labels": {"a-b": "c"}})),
        extra(json!({"alert": "A", "expr": "1", "labels": {"__name__": "c"}})),
        extra(json!({"alert": "A", "expr": "1", "annotations": {"a-b": "c"}})),
    ]
}

/// Applies the operator's CRDs that our objects are of, and waits until they are served.
pub async fn the_prometheus_operators_crds_are_there(lab: &Lab) {
    let fetched = Command::new(file("tests/lab/setup-prometheus-crds.sh")).output().expect("bash runs it");
    assert!(fetched.status.success(), "{}", String::from_utf8_lossy(&fetched.stderr));
    let dir = String::from_utf8(fetched.stdout).expect("a path");
    let files =
        ["servicemonitors", "prometheusrules"].map(|name| format!("{}/monitoring.coreos.com_{name}.yaml", dir.trim()));
    let apply = ["apply", "--server-side", "-f", &files[0], "-f", &files[1]];
    kubectl(lab, "admin", &apply).await;
    kubectl(lab, "admin", &["wait", "--for=condition=Established", "--timeout=150s", "-f", &files[0], "-f", &files[1]])
        .await;
}

/// Renders what there is to be watched by, with these values; the error is helm's.
fn rendered(values: &Value, more: &[&str]) -> Result<Vec<Value>, String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), values.to_string()).unwrap();
    let on = "serviceMonitor.enabled=true,prometheusRule.enabled=true,dashboard.enabled=true";
    let arguments = ["--set", IMAGE, "--set", on, "--values", file.path().to_str().unwrap()];
    let mut objects = objects(&template_in(NAMESPACE, &[&arguments[..], more].concat())?);
    objects.retain(|it| ["ServiceMonitor", "PrometheusRule", "ConfigMap"].contains(&it["kind"].as_str().unwrap()));
    assert!(objects.len() >= 3, "{objects:?}");
    Ok(objects)
}

/// What the API server says of objects, strictly; the error is its words.
async fn asked(lab: &Lab, objects: &[Value]) -> Result<(), String> {
    let path = lab.dir().join("odd.json");
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    std::fs::write(&path, list.to_string()).unwrap();
    let apply = ["apply", "--dry-run=server", "--server-side", "--validate=strict", "-f", path.to_str().unwrap()];
    let done = ssh::run(lab.kubectl("admin").unwrap().args(apply)).await.unwrap();
    if done.success() {
        return Ok(());
    }
    let judged =
        ["is invalid", "Invalid value", "strict decoding error", "Unsupported value", "failed to create typed patch"];
    assert!(judged.iter().any(|words| done.stderr.contains(words)), "no judgement: {}", done.stderr);
    Err(done.stderr)
}

/// What the operator says of the PrometheusRules among objects.
fn wrong_rules(objects: &[Value]) -> Vec<String> {
    let specs: Vec<Value> = of_kind(objects, "PrometheusRule").iter().map(|it| it["spec"].clone()).collect();
    wrong_to_the_operator(&specs).concat()
}

pub async fn what_the_schema_says_of_an_odd_value_the_others_say_too(lab: &Lab) {
    for values in taken() {
        let objects = rendered(&values, &[]).unwrap_or_else(|error| panic!("{values}: {error}"));
        asked(lab, &objects).await.unwrap_or_else(|error| panic!("{values}: {error}"));
        assert_eq!(wrong_rules(&objects), Vec::<String>::new(), "{values}");
    }
    for values in refused() {
        let error = rendered(&values, &[]).expect_err(&values.to_string());
        assert!(error.contains("don't meet the specifications of the schema"), "{values}: {error}");
        let objects =
            rendered(&values, &["--skip-schema-validation"]).unwrap_or_else(|error| panic!("{values}: {error}"));
        let wrong = wrong_rules(&objects);
        assert!(!wrong.is_empty() || asked(lab, &objects).await.is_err(), "{values} is refused for nothing");
    }
    // A mistake that no schema sees is the operator's to find, and costs the object that it stands in: none of ours.
    let unseen = json!({"prometheusRule": {"extraRules": [{"alert": "A", "expr": "up ="}]}});
    let objects = rendered(&unseen, &[]).unwrap();
    assert_eq!(wrong_rules(&objects).len(), 1);
    let (own, shipped): (Vec<Value>, Vec<Value>) =
        objects.into_iter().partition(|it| it["metadata"]["name"].as_str().unwrap().ends_with("-extra"));
    assert_eq!((wrong_rules(&own).len(), wrong_rules(&shipped).len()), (1, 0));
}
