//! What stands twice stands there the same: the chart's copies, its version, the IAM policy.

use std::collections::BTreeMap;
use std::fs;

use super::helm::{chart, file, read};

/// Set to write the copies anew.
pub const UPDATE: &str = "UPDATE_CHART";

/// The documents of a YAML stream, as they are written.
fn documents(path: &str) -> Vec<String> {
    read(path).split("---\n").map(str::to_owned).collect()
}

fn is_cluster_role(document: &str) -> bool {
    document.lines().any(|line| line == "kind: ClusterRole")
}

/// What the chart's folder `files` holds, made from where each stands first.
fn copies() -> BTreeMap<String, String> {
    let mut copies = BTreeMap::new();
    // helm renders no symbolic link that Flux's archives would carry, and takes no file from outside of a chart.
    for (from, to) in [("crds", "crds"), ("src/admission", "admission")] {
        for entry in fs::read_dir(file(from)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.ends_with(".yaml") {
                copies.insert(format!("{to}/{name}"), read(&format!("{from}/{name}")));
            }
        }
    }
    for who in ["operator", "gateway"] {
        let from = format!("examples/{who}-rbac.yaml");
        let roles: Vec<String> = documents(&from).into_iter().filter(|document| is_cluster_role(document)).collect();
        let [role] = &roles[..] else { panic!("{from} has one ClusterRole, not {}", roles.len()) };
        let (_, rules) = role.split_once("\nrules:\n").expect("a ClusterRole has rules");
        let head = format!("# Generated from {from}; make chart writes it anew.\n");
        copies.insert(format!("{who}-rules.yaml"), format!("{head}{rules}"));
    }
    let roles = documents("examples/user-rbac.yaml").into_iter().filter(|document| is_cluster_role(document));
    copies.insert("user-roles.yaml".to_owned(), roles.collect::<Vec<_>>().join("---\n"));
    copies
}

/// What the folder holds now.
fn standing() -> BTreeMap<String, String> {
    let mut standing = BTreeMap::new();
    let root = chart().join("files");
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(folder) else { continue };
        for path in entries.map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
                if name.starts_with("monitoring/") {
                    continue; // that is where it stands first
                }
                standing.insert(name, fs::read_to_string(&path).unwrap());
            }
        }
    }
    standing
}

#[test]
fn the_charts_copies_are_what_the_repository_has() {
    let (copies, root) = (copies(), chart().join("files"));
    if std::env::var_os(UPDATE).is_some() {
        for stale in standing().keys().filter(|name| !copies.contains_key(*name)) {
            fs::remove_file(root.join(stale)).unwrap();
        }
        for (name, text) in &copies {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }
    let standing = standing();
    let names = |all: &BTreeMap<String, String>| all.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&standing), names(&copies), "run make chart");
    for (name, text) in &copies {
        assert!(standing[name] == *text, "charts/instance-access/files/{name} is stale; run make chart");
    }
    // Both kinds of admission policies, and a CRD each.
    assert!(copies.len() >= 7, "{:?}", names(&copies));
}

#[test]
fn chart_and_program_have_one_version() {
    let chart = read("charts/instance-access/Chart.yaml");
    for field in ["version", "appVersion"] {
        let line = format!("\n{field}: {}\n", env!("CARGO_PKG_VERSION"));
        assert!(chart.contains(&line), "Chart.yaml: {field} must be that of Cargo.toml, {}", env!("CARGO_PKG_VERSION"));
    }
}

#[test]
fn the_iam_policy_on_the_page_is_the_file() {
    let page = read("README.md");
    let policy = read("examples/iam-policy.json");
    assert!(
        page.contains(&format!("```json\n{policy}```")),
        "README.md shows another policy than examples/iam-policy.json"
    );
}
