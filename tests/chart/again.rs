//! Applied again, nothing changes: as Argo CD and Flux apply, server-side, and on a Kubernetes that does not serve all. And
//! the next version is an upgrade.

use std::collections::BTreeMap;

use lab::{Lab, Options};
use serde_json::{Value, json};

use super::helm::{chart, objects, of_kind, read, run, variable};
use super::versions::values;
use super::whole::{NAMESPACE, install, kubectl, uninstall_keeps_what_must_stay, upgrade};

/// Each object of the release with its resourceVersion: it moves with every write that changes something.
async fn versions(lab: &Lab) -> BTreeMap<String, String> {
    let all = kubectl(lab, "admin", &["get", "-f", "release.yaml", "-o", "json"]).await;
    let all: Value = serde_json::from_str(&all).unwrap();
    let items = all["items"].as_array().expect("a list").iter();
    let version = |it: &Value| it["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    items.map(|it| (format!("{} {}", it["kind"], it["metadata"]["name"]), version(it))).collect()
}

/// Whether every field is kept as it is written: what the API server writes in another way (a quantity, a default in a list)
/// is a difference for ever to a tool that compares texts.
fn is_kept(path: &str, written: &Value, live: &Value) {
    match (written, live) {
        (Value::Object(fields), Value::Object(_)) => {
            fields.iter().for_each(|(name, field)| is_kept(&format!("{path}.{name}"), field, &live[name]));
        }
        (Value::Array(items), Value::Array(there)) => {
            assert_eq!(items.len(), there.len(), "{path}: {items:?} became {there:?}");
            for (number, (item, there)) in items.iter().zip(there).enumerate() {
                is_kept(&format!("{path}[{number}]"), item, there);
            }
        }
        (Value::Number(number), Value::Number(there)) => assert_eq!(number.as_f64(), there.as_f64(), "{path}"),
        _ => assert_eq!(written, live, "{path}"),
    }
}

/// Applies the release as it was rendered, server-side and strictly validated, and once more: the second time nothing is
/// written, and every field stands as it was rendered. So no tool has a difference to ignore.
pub async fn applied_twice_it_changes_nothing(lab: &Lab) {
    let apply = [
        "apply",
        "--server-side",
        "--force-conflicts",
        "--validate=strict",
        "--field-manager=argocd",
        "-f",
        "release.yaml",
    ];
    kubectl(lab, "admin", &apply).await;
    let once = versions(lab).await;
    assert!(once.len() > 20, "{once:?}");
    let live: Value =
        serde_json::from_str(&kubectl(lab, "admin", &["get", "-f", "release.yaml", "-o", "json"]).await).unwrap();
    for written in objects(&std::fs::read_to_string(lab.dir().join("release.yaml")).unwrap()) {
        let (kind, name) = (&written["kind"], &written["metadata"]["name"]);
        let is_it = |it: &&Value| it["kind"] == *kind && it["metadata"]["name"] == *name;
        let there = live["items"].as_array().unwrap().iter().find(is_it).expect("it was applied");
        is_kept(&format!("{kind} {name}"), &written, there);
    }
    kubectl(lab, "admin", &apply).await;
    assert_eq!(once, versions(lab).await);
}

/// Asks the API server whether it would take what every one of the chart's values renders to, each field of it.
///
/// Without what the release has anyway: CRDs, admission policies.
pub async fn every_values_is_taken_strictly(lab: &Lab, version: &str) {
    let apart = ["apiextensions.k8s.io/v1", "admissionregistration.k8s.io/v1"];
    // Service accounts and people's roles have the same names in every release.
    let mut arguments: Vec<String> =
        ["apply", "--dry-run=server", "--server-side", "--force-conflicts", "--validate=strict"]
            .map(str::to_owned)
            .into();
    for (number, values) in values().iter().enumerate() {
        let chart = chart();
        // Another name than the release's: they are made, not changed.
        let template = ["template", "strict", chart.to_str().unwrap(), "--namespace", NAMESPACE];
        let done = run(&[&template[..], &["--values", values, "--kube-version", version]].concat());
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let mut objects = objects(&String::from_utf8(done.stdout).unwrap());
        objects.retain(|it| !apart.contains(&it["apiVersion"].as_str().unwrap()));
        let path = lab.dir().join(format!("strict-{number}.json"));
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        std::fs::write(&path, list.to_string()).unwrap();
        arguments.extend(["-f".to_owned(), path.display().to_string()]);
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let taken = kubectl(lab, "admin", &arguments).await;
    for name in [
        "statefulset.apps/strict-instance-access-gateway",
        "networkpolicy.networking.k8s.io/strict-",
        "configmap/strict-instance-access-dashboard",
        "prometheusrule.monitoring.coreos.com/strict-instance-access ",
        "prometheusrule.monitoring.coreos.com/strict-instance-access-extra",
        "servicemonitor.monitoring.coreos.com/strict-instance-access ",
        "servicemonitor.monitoring.coreos.com/strict-instance-access-gateway",
    ] {
        assert!(taken.contains(name), "{taken}");
    }
    // It is judged at all.
    let path = lab.dir().join("strict-typo.json");
    let typo = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "typo", "namespace": NAMESPACE},
        "spec": {"ports": [{"port": 22, "targetport": "ssh"}]}});
    std::fs::write(&path, typo.to_string()).unwrap();
    let arguments = ["apply", "--dry-run=server", "--server-side", "--validate=strict", "-f", path.to_str().unwrap()];
    let refused = lab::ssh::run(lab.kubectl("admin").unwrap().args(arguments)).await.unwrap();
    assert!(!refused.success() && refused.stderr.contains("targetport"), "{refused:?}");
}

/// The next version is an upgrade: nothing that Kubernetes lets nobody change has a version in it. And gateways that are
/// switched off are gone, with what they were allowed.
async fn the_next_version_and_the_one_without_gateways_are_upgrades(lab: &Lab) {
    let next = lab.dir().join("next");
    let copied = std::process::Command::new("cp").arg("-r").arg(chart()).arg(&next).status().unwrap();
    assert!(copied.success());
    let about = read("charts/instance-access/Chart.yaml").replace(env!("CARGO_PKG_VERSION"), "99.0.0");
    std::fs::write(next.join("Chart.yaml"), about).unwrap();
    // It was applied by another tool before, as when helm takes a release over from Argo CD.
    upgrade(lab, &next, 22, &["--force-conflicts"]).await;
    let images = "jsonpath={.items[*].spec.template.spec.containers[*].image}";
    let images = kubectl(lab, "admin", &["-n", NAMESPACE, "get", "statefulset", "-o", images]).await;
    assert_eq!(images.matches("registry.example/instance-access:99.0.0").count(), 2, "{images}");

    let gateway = format!("system:serviceaccount:{NAMESPACE}:gateway");
    let policies = ["get", "validatingadmissionpolicy", "-o", "yaml"];
    assert!(kubectl(lab, "admin", &policies).await.contains(&gateway));
    upgrade(lab, &next, 22, &["--force-conflicts", "--set=gateway.enabled=false"]).await;
    assert!(!kubectl(lab, "admin", &policies).await.contains(&gateway));
    let kinds = "statefulset,service,serviceaccount,poddisruptionbudget,networkpolicy,clusterrole,clusterrolebinding";
    let left = kubectl(lab, "admin", &["-n", NAMESPACE, "get", kinds, "-o", "name"]).await;
    assert!(left.contains("statefulset.apps/instance-access\n") && !left.contains("gateway"), "{left}");
}

/// Runs what docs/install.md has for good, where the controller has left its Lease: a new trail would go on from its head.
async fn what_is_removed_for_good_is_gone(lab: &Lab, rendered: &[Value]) {
    let lease = variable(rendered, "INSTANCE_ACCESS_LEASE").unwrap();
    let (namespace, name) = lease.split_once('/').unwrap();
    let path = lab.dir().join("lease.json");
    let left = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": name, "namespace": namespace, "annotations": {"instanceaccess.dev/audit-head": "1:ab"}}});
    std::fs::write(&path, left.to_string()).unwrap();
    kubectl(lab, "admin", &["create", "-f", path.to_str().unwrap()]).await;
    kubectl(lab, "admin", &["-n", NAMESPACE, "create", "secret", "generic", "gateway-host-key"]).await;

    let page = read("docs/install.md");
    let (_, removing) = page.split_once("\nFor good").unwrap();
    let commands = removing.split("```").nth(1).unwrap().strip_prefix("sh\n").unwrap();
    let path = format!("{}:{}", lab.control_plane_bin().display(), std::env::var("PATH").unwrap());
    let mut shell = std::process::Command::new("bash");
    shell.args(["-euo", "pipefail", "-c", commands]).env("PATH", path);
    shell.env("KUBECONFIG", lab.kubeconfig("admin").unwrap()).env("HOME", lab.dir().join("home"));
    let done = lab::ssh::run(&mut shell.into()).await.unwrap();
    assert!(done.success(), "{commands}{}{}", done.stdout, done.stderr);
    let kinds = "lease,persistentvolumeclaim,secret";
    let left = kubectl(lab, "admin", &["-n", NAMESPACE, "get", kinds, "-o", "name"]).await;
    assert_eq!(left, "");
    assert!(!kubectl(lab, "admin", &["get", "crd", "-o", "name"]).await.contains("instanceaccess.dev"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_kubernetes_takes_it_too() {
    let older = lab::older_kubernetes_version().to_owned();
    let options = Options { kubernetes_version: Some(older.clone()), ..Options::control_plane_only() };
    let lab = Lab::start(options).await.unwrap();
    kubectl(&lab, "admin", &["create", "namespace", NAMESPACE]).await;
    let rendered = install(&lab, 22).await;
    assert!(of_kind(&rendered, "MutatingAdmissionPolicy").is_empty(), "1.34 does not serve it");
    applied_twice_it_changes_nothing(&lab).await;
    every_values_is_taken_strictly(&lab, &older).await;
    the_next_version_and_the_one_without_gateways_are_upgrades(&lab).await;
    uninstall_keeps_what_must_stay(&lab).await;
    what_is_removed_for_good_is_gone(&lab, &rendered).await;
    lab.shutdown().await.unwrap();
}
