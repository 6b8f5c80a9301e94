//! Applied again, nothing changes: as Argo CD and Flux apply, server-side, and on a Kubernetes that does not serve all.

use std::collections::BTreeMap;

use lab::{Lab, Options};
use serde_json::Value;

use super::helm::of_kind;
use super::whole::{NAMESPACE, install, kubectl, uninstall_keeps_what_must_stay};

/// Each object of the release with its resourceVersion: it moves with every write that changes something.
async fn versions(lab: &Lab) -> BTreeMap<String, String> {
    let all = kubectl(lab, "admin", &["get", "-f", "release.yaml", "-o", "json"]).await;
    let all: Value = serde_json::from_str(&all).unwrap();
    let items = all["items"].as_array().expect("a list").iter();
    let version = |it: &Value| it["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    items.map(|it| (format!("{} {}", it["kind"], it["metadata"]["name"]), version(it))).collect()
}

/// Applies the release as it was rendered, server-side and strictly validated, and once more: the second time nothing is
/// written. So no tool has a difference to ignore.
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
    kubectl(lab, "admin", &apply).await;
    assert_eq!(once, versions(lab).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_kubernetes_takes_it_too() {
    let older = lab::older_kubernetes_version().to_owned();
    let options = Options { kubernetes_version: Some(older), ..Options::control_plane_only() };
    let lab = Lab::start(options).await.unwrap();
    kubectl(&lab, "admin", &["create", "namespace", NAMESPACE]).await;
    let rendered = install(&lab, 22).await;
    assert!(of_kind(&rendered, "MutatingAdmissionPolicy").is_empty(), "1.34 does not serve it");
    applied_twice_it_changes_nothing(&lab).await;
    uninstall_keeps_what_must_stay(&lab).await;
    lab.shutdown().await.unwrap();
}
