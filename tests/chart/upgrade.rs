//! What helm changes of the objects that guard requests: each once, at an upgrade and at a rollback, and those alone that
//! differ. That, counted by the API server, is what a grant's life over an upgrade rests on (docs/upgrading.md).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use lab::{Lab, Options, ssh};
use serde_json::Value;

use super::helm::{self, IMAGE};

const NAMESPACE: &str = "instance-access";
const STATUS: &str = "ValidatingAdmissionPolicy status.instanceaccess.dev";
const CRD: &str = "CustomResourceDefinition instanceaccesses.instanceaccess.dev";

/// Uid and generation of each object that guards requests, by kind and name.
async fn versions(lab: &Lab) -> BTreeMap<String, (String, i64)> {
    let kinds = [
        "customresourcedefinitions",
        "validatingadmissionpolicies",
        "validatingadmissionpolicybindings",
        "mutatingadmissionpolicies",
        "mutatingadmissionpolicybindings",
    ];
    let mut kubectl = lab.kubectl("admin").unwrap();
    let done = ssh::run(kubectl.args(["get", &kinds.join(","), "-o", "json"])).await.unwrap();
    assert!(done.success(), "{}", done.stderr);
    let list: Value = serde_json::from_str(&done.stdout).unwrap();
    let version = |object: &Value| {
        let metadata = &object["metadata"];
        let name = metadata["name"].as_str()?;
        let told = (metadata["uid"].as_str()?.to_owned(), metadata["generation"].as_i64()?);
        name.ends_with("instanceaccess.dev").then(|| (format!("{} {name}", object["kind"].as_str().unwrap()), told))
    };
    list["items"].as_array().unwrap().iter().filter_map(version).collect()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// The chart of a release whose CRD has other words.
fn next_release(lab: &Lab) -> String {
    let chart = lab.dir().join("next");
    copy(&helm::chart(), &chart);
    let file = chart.join("files/crds/instanceaccesses.yaml");
    let crd = fs::read_to_string(&file).unwrap();
    let (word, other) = ("The ticket that this belongs to", "Which ticket this belongs to");
    assert!(crd.contains(word));
    fs::write(&file, crd.replace(word, other)).unwrap();
    chart.to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn helm_changes_what_guards_requests_once_an_upgrade_and_once_a_rollback() {
    let lab = Lab::start(Options::control_plane_only()).await.unwrap();
    let helm = async |arguments: &[&str]| {
        let mut command = helm::command(lab.dir());
        command.env("KUBECONFIG", lab.kubeconfig("admin").unwrap()).args(["--namespace", NAMESPACE]).args(arguments);
        let done = ssh::run(&mut command.into()).await.unwrap();
        assert!(done.success(), "helm {arguments:?}: {}{}", done.stdout, done.stderr);
    };
    let (first, next) = (helm::chart(), next_release(&lab));
    helm(&["install", "it", first.to_str().unwrap(), "--create-namespace", "--set", IMAGE]).await;
    let installed = versions(&lab).await;
    assert!(installed.len() > 12 && installed.values().all(|(_, generation)| *generation == 1), "{installed:?}");
    let changed = |times: i64| {
        let mut expected = installed.clone();
        for piece in [STATUS, CRD] {
            expected.get_mut(piece).unwrap().1 += times;
        }
        expected
    };
    let gateway = "settings.gatewayServiceAccount=instance-access/gateway";
    let upgrade = ["upgrade", "it", &next, "--reset-then-reuse-values", "--set", gateway];
    helm(&upgrade).await;
    assert_eq!(versions(&lab).await, changed(1), "an upgrade");
    helm(&upgrade).await;
    assert_eq!(versions(&lab).await, changed(1), "the same again");
    helm(&["rollback", "it", "1"]).await;
    assert_eq!(versions(&lab).await, changed(2), "a rollback");
    lab.shutdown().await.unwrap();
}
