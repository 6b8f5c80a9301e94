//! Each Kubernetes that the chart is for, with each of the values in the chart's folder `ci`: rendered, and passed by helm's
//! own lint.

use std::collections::BTreeSet;
use std::sync::Mutex;

use serde_json::Value;

use super::helm::{chart, objects, run, template};

/// The minor versions of Kubernetes 1 that the chart is for.
const MINORS: std::ops::RangeInclusive<u32> = 32..=37;

/// Every kind that the chart makes: its API, whether it is the cluster's, and since which minor version it is served.
const KINDS: [(&str, &str, bool, u32); 18] = [
    ("v1", "Service", false, 0),
    ("v1", "ServiceAccount", false, 0),
    ("v1", "ConfigMap", false, 0),
    ("apps/v1", "StatefulSet", false, 9),
    ("batch/v1", "Job", false, 2),
    ("policy/v1", "PodDisruptionBudget", false, 21),
    ("networking.k8s.io/v1", "NetworkPolicy", false, 7),
    ("rbac.authorization.k8s.io/v1", "Role", false, 8),
    ("rbac.authorization.k8s.io/v1", "RoleBinding", false, 8),
    ("rbac.authorization.k8s.io/v1", "ClusterRole", true, 8),
    ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding", true, 8),
    ("apiextensions.k8s.io/v1", "CustomResourceDefinition", true, 16),
    ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicy", true, 30),
    ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicyBinding", true, 30),
    ("admissionregistration.k8s.io/v1", "MutatingAdmissionPolicy", true, 36),
    ("admissionregistration.k8s.io/v1", "MutatingAdmissionPolicyBinding", true, 36),
    // The Prometheus operator's, and only where they are asked for.
    ("monitoring.coreos.com/v1", "ServiceMonitor", false, 0),
    ("monitoring.coreos.com/v1", "PrometheusRule", false, 0),
];

/// The files with values: what the chart is mostly run with.
pub fn values() -> Vec<String> {
    let entries = std::fs::read_dir(chart().join("ci")).unwrap();
    let mut found: Vec<String> = entries.map(|it| it.unwrap().path().to_str().unwrap().to_owned()).collect();
    found.sort();
    for wanted in ["minimal", "everything", "gateway", "irsa", "pod-identity", "replicas"] {
        assert!(found.iter().any(|it| it.ends_with(&format!("/{wanted}-values.yaml"))), "{found:?}: no {wanted}");
    }
    found
}

/// Whether all objects are ones that this Kubernetes serves, each once and where it belongs.
#[track_caller]
fn check(about: &str, minor: u32, objects: &[Value]) {
    let mut seen = BTreeSet::new();
    for object in objects {
        let (api, kind, name) = (&object["apiVersion"], &object["kind"], &object["metadata"]["name"]);
        let known = KINDS.iter().find(|(its_api, its_kind, ..)| api == its_api && kind == its_kind);
        let (.., of_cluster, since) = known.unwrap_or_else(|| panic!("{about}: {api} {kind} is not in KINDS"));
        assert!(*since <= minor, "{about}: {kind} is served since 1.{since}");
        let namespace = object["metadata"]["namespace"].as_str();
        assert_eq!(namespace, (!of_cluster).then_some("ops"), "{about}: {kind} {name}");
        assert!(seen.insert(format!("{kind} {name}")), "{about}: {kind} {name} twice");
        // A label's 63 characters; of a StatefulSet's name and 11 more Kubernetes makes a label of its pods.
        let name_length_max = if kind == "StatefulSet" { 52 } else { 63 };
        assert!(name.as_str().unwrap().len() <= name_length_max || *of_cluster, "{about}: {kind} {name} is too long");
    }
    assert!(seen.len() > 15, "{about}: {seen:?}");
}

#[test]
fn every_kubernetes_it_is_for_takes_it_with_every_values() {
    let mut work: Vec<(u32, String)> =
        MINORS.flat_map(|minor| values().into_iter().map(move |file| (minor, file))).collect();
    work.reverse();
    assert!(work.len() >= 36);
    let work = Mutex::new(work);
    // helm is a program that waits little: two of them fill two cores.
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let Some((minor, file)) = work.lock().unwrap().pop() else { break };
                    let version = format!("1.{minor}.0");
                    let about = format!("Kubernetes {version}, {file}");
                    let yaml = template(&["--values", &file, "--kube-version", &version]);
                    check(&about, minor, &objects(&yaml.unwrap_or_else(|error| panic!("{about}: {error}"))));
                    let chart = chart();
                    let lint = ["lint", "--strict", chart.to_str().unwrap(), "--values", &file];
                    let linted = run(&[&lint[..], &["--kube-version", &version]].concat());
                    assert!(linted.status.success(), "{about}: {}", String::from_utf8_lossy(&linted.stdout));
                }
            });
        }
    });
}

#[test]
fn every_values_renders_the_same_twice() {
    for file in values() {
        let once = template(&["--values", &file]).unwrap();
        assert!(once == template(&["--values", &file]).unwrap(), "{file}");
    }
}

#[test]
fn the_longest_name_of_a_release_is_short_enough() {
    // helm itself takes 53 characters.
    let release = "a".repeat(53);
    let chart = chart();
    let file = values().into_iter().find(|it| it.contains("everything")).unwrap();
    let done = run(&["template", &release, chart.to_str().unwrap(), "--namespace", "ops", "--values", &file]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    check("a long release", 37, &objects(&String::from_utf8(done.stdout).unwrap()));
}
