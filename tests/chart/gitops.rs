//! The examples for Argo CD and Flux: the values in them are ones that the chart takes, and lead to one and the same.
//!
//! Neither runs here. Flux's own types read its example in tests/gitops; Argo CD's cannot be built outside of its repository.

use serde_json::{Value, json};

use super::helm::{chart, file, named, objects, of_gateway, of_kind, read, run, the};

/// What the chart renders for the values of an example, as the tool would have it rendered.
fn rendered(values: &Value, release: &Value, namespace: &Value) -> Vec<Value> {
    let values_file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(values_file.path(), values.to_string()).unwrap();
    let (chart, values) = (chart(), values_file.path().to_str().unwrap());
    let mut arguments = vec!["template", release.as_str().unwrap(), chart.to_str().unwrap(), "--values", values];
    // Argo CD passes the cluster's kinds; Flux is helm, and asks the cluster.
    arguments.extend(["--namespace", namespace.as_str().unwrap(), "--kube-version", "1.36.0", "--skip-tests"]);
    let done = run(&arguments);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    objects(&String::from_utf8(done.stdout).unwrap())
}

#[test]
fn the_examples_for_argo_cd_and_flux_render_and_are_the_same_release() {
    let application = objects(&read("docs/gitops/argocd-application.yaml"));
    let source = &the(&application, "Application")["spec"]["source"];
    let destination = &the(&application, "Application")["spec"]["destination"]["namespace"];
    let argo = rendered(&source["helm"]["valuesObject"], &source["helm"]["releaseName"], destination);

    let flux = objects(&read("docs/gitops/flux-helmrelease.yaml"));
    let release = &the(&flux, "HelmRelease")["spec"];
    let from_flux = rendered(&release["values"], &release["releaseName"], &release["targetNamespace"]);
    assert!(argo == from_flux, "the examples differ in values, name or namespace");

    // It is the release that docs/install.md makes, with gateways.
    named(&argo, "Service", "instance-access-gateway");
    assert_eq!(of_gateway(&argo, "StatefulSet")["metadata"]["namespace"], "instance-access");

    // Both take the chart from this repository, by the tag of its version, and Flux by the source beside it.
    let tag = format!("v{}", env!("CARGO_PKG_VERSION"));
    let repository = the(&flux, "GitRepository");
    assert_eq!((&source["targetRevision"], &repository["spec"]["ref"]["tag"]), (&json!(tag), &json!(tag)));
    assert_eq!(source["repoURL"], repository["spec"]["url"]);
    let from = &release["chart"]["spec"];
    assert_eq!(from["sourceRef"]["name"], repository["metadata"]["name"]);
    for path in [&source["path"], &from["chart"]] {
        assert!(file(path.as_str().unwrap()).join("Chart.yaml").is_file(), "{path}");
    }
    // Flux rolls back nothing: that would be a gap. How its own types read this, tests/gitops asserts.
    for action in ["install", "upgrade"] {
        let action = &release[action];
        assert_eq!(action["strategy"]["name"], "RetryOnFailure", "{action}");
        assert!(action["remediation"].is_null(), "{action}");
    }
    // A test, which the examples pass by, is nothing that Argo CD keeps: it runs helm's tests at no time.
    assert_eq!(release["test"]["enable"], true);
}

#[test]
fn what_must_stay_says_so_to_argo_cd() {
    let application = objects(&read("docs/gitops/argocd-application.yaml"));
    let source = &the(&application, "Application")["spec"]["source"];
    let argo = rendered(&source["helm"]["valuesObject"], &json!("instance-access"), &json!("instance-access"));
    // Of a claim that a StatefulSet makes, Argo CD may think that it is its own, by its label.
    let crds = of_kind(&argo, "CustomResourceDefinition").into_iter();
    let claims = of_kind(&argo, "StatefulSet").into_iter().map(|it| &it["spec"]["volumeClaimTemplates"][0]);
    let stays: Vec<&Value> = crds.chain(claims).collect();
    assert!(stays.len() >= 6, "{stays:?}");
    for object in stays {
        assert_eq!(object["metadata"]["annotations"]["argocd.argoproj.io/sync-options"], "Prune=false,Delete=false");
    }
}
