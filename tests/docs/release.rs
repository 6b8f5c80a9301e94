//! What a release says of itself in several places: its version, its licence, its toolchain; and the way into the house.

use std::collections::BTreeSet;

use regex::Regex;

use super::{read, root};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The changelog's headings of versions, as (version, date); the first is `Unreleased`.
fn releases() -> Vec<(String, String)> {
    let heading = Regex::new(r"^## \[([^\]]+)\](?: - (\d{4}-\d{2}-\d{2}))?$").unwrap();
    let page = read("CHANGELOG.md");
    let headings = page.lines().filter(|line| line.starts_with("## "));
    let read = headings.map(|line| {
        let found = heading.captures(line).unwrap_or_else(|| panic!("{line}: write ## [VERSION] - YYYY-MM-DD"));
        (found[1].to_owned(), found.get(2).map_or(String::new(), |date| date.as_str().to_owned()))
    });
    read.collect()
}

fn parts(version: &str) -> Vec<u32> {
    let part = |it: &str| it.parse().unwrap_or_else(|_| panic!("{version} is no version of the form 1.2.3"));
    version.split('.').map(part).collect()
}

#[test]
fn the_changelog_has_the_form_of_keep_a_changelog_and_knows_this_version() {
    let releases = releases();
    assert_eq!(releases[0], ("Unreleased".to_owned(), String::new()), "what is not released yet stands first");
    for (version, date) in &releases[1..] {
        assert!(!date.is_empty(), "{version}: a release has a date");
    }
    let versions: Vec<Vec<u32>> = releases[1..].iter().map(|(version, _)| parts(version)).collect();
    assert!(versions.is_sorted_by(|newer, older| newer > older), "the newest first: {versions:?}");
    // Either this version is released, or it is the next one.
    let newest = versions.first().cloned().unwrap_or_default();
    assert!(newest <= parts(VERSION), "{newest:?} is released, and Cargo.toml says {VERSION}");

    let kinds = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"];
    for line in read("CHANGELOG.md").lines().filter_map(|line| line.strip_prefix("### ")) {
        assert!(kinds.contains(&line), "CHANGELOG.md: {line} is none of {kinds:?}");
    }
}

/// Pages and examples to copy, whose images have this version's tag; tests/chart holds Chart.yaml and docs/gitops to it.
#[test]
fn what_is_copied_names_this_version() {
    let tag = Regex::new(r"/instance-access:(\d[0-9A-Za-z.-]*)").unwrap();
    for path in ["docs/install.md", "examples/gateway.yaml", "Containerfile"] {
        let file = read(path);
        let named: BTreeSet<&str> = tag.captures_iter(&file).map(|found| found.get(1).unwrap().as_str()).collect();
        assert_eq!(named, BTreeSet::from([VERSION]), "{path}: of an image");
    }
    let locked = format!("[[package]]\nname = \"instance-access\"\nversion = \"{VERSION}\"\n");
    assert!(read("fuzz/Cargo.lock").contains(&locked), "cargo update --workspace --manifest-path fuzz/Cargo.toml");
}

/// Until there is a release every commit has this version: under a tag made of it a node starts what it had.
#[test]
fn whoever_brings_a_program_gives_its_image_a_tag() {
    let mut brought = 0;
    for page in ["README.md", "CHANGELOG.md", "docs/install.md", "docs/upgrading.md"] {
        for (_, line, text) in super::split(&read(page)).1 {
            let by_helm = text.contains("helm install ") || text.contains("helm upgrade ");
            // Those that change a value keep the program.
            if by_helm && !["--set audit.", "--set gateway."].iter().any(|value| text.contains(value)) {
                assert!(text.contains("--set-string image.tag=\"$tag\""), "{page}:{line}: which image?\n{text}");
                brought += 1;
            }
            assert!(
                !text.contains(" test instance-access --logs"),
                "{page}:{line}: helm shows no logs of a Job by that"
            );
        }
    }
    assert_eq!(brought, 5, "README, changelog, the installation, the upgrade twice");
}

#[test]
fn one_licence_is_named_everywhere() {
    let licence = env!("CARGO_PKG_LICENSE");
    assert_eq!(licence, "Apache-2.0");
    let text = read("LICENSE");
    assert!(text.contains("Apache License") && text.contains("Version 2.0, January 2004"), "LICENSE is another's");
    let chart = read("charts/instance-access/Chart.yaml");
    assert!(chart.contains(&format!("\n  artifacthub.io/license: {licence}\n")), "Chart.yaml names another licence");
    assert!(read("CONTRIBUTING.md").contains(licence), "CONTRIBUTING.md names another licence");
}

#[test]
fn the_toolchains_are_said_alike_and_the_image_is_built_by_one_that_will_do() {
    let least = env!("CARGO_PKG_RUST_VERSION");
    for page in ["README.md", "CONTRIBUTING.md", "tests/demo/needs-cargo.sh"] {
        assert!(read(page).contains(&format!("Rust {least} ")), "{page}: Cargo.toml's rust-version is {least}");
    }
    let newer = Regex::new(r"(?m)^go (\d+\.\d+\.\d+)$").unwrap();
    let modules = ["control-plane/etcd", "control-plane/kubernetes", "helm", "promtool", "etcdutl", "../gitops"];
    let asked =
        modules.map(|it| newer.captures(&read(&format!("tests/lab/{it}/go.mod"))).expect("a version")[1].to_owned());
    let newest = asked.iter().max_by_key(|it| parts(it)).expect("modules");
    for page in ["README.md", "CONTRIBUTING.md"] {
        assert!(read(page).contains(&format!("Go {newest}")), "{page}: a module of the tests asks for Go {newest}");
    }
    let recipe = read("Containerfile");
    let image = Regex::new(r"(?m)^FROM \S+/rust:([0-9.]+)-").unwrap();
    let pinned = image.captures(&recipe).expect("the Containerfile begins with an image of rust")[1].to_owned();
    assert!(parts(&pinned) >= parts(least), "the image is built by {pinned}, older than {least}");
    for page in ["CONTRIBUTING.md", "docs/releasing.md"] {
        assert!(read(page).contains(&format!("Rust {pinned}")), "{page}: releases are built by {pinned}");
    }
    // It would be asked for by rustup at each command, README's two among them, and fetched from the network.
    for file in ["rust-toolchain", "rust-toolchain.toml"] {
        assert!(!root().join(file).exists(), "{file}: CONTRIBUTING.md says that there is none, and why");
    }
}

#[test]
fn whoever_contributes_is_shown_every_room_and_every_suite_of_tests() {
    let page = read("CONTRIBUTING.md");
    let names = |folder: &str| -> BTreeSet<String> {
        let entries = std::fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path());
        let folders = entries.filter(|path| path.is_dir());
        folders.map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
    };
    for room in names("src") {
        assert!(page.contains(&format!("src/{room}")), "CONTRIBUTING.md does not show src/{room}");
    }
    // A suite is a file below tests, or a folder with a main.
    let entries = std::fs::read_dir(root().join("tests")).unwrap().map(|entry| entry.unwrap().path());
    let suites = entries.filter(|path| path.extension().is_some_and(|it| it == "rs") || path.join("main.rs").is_file());
    let mut count = 0;
    for suite in suites {
        let name = suite.file_stem().unwrap().to_string_lossy().into_owned();
        assert!(page.contains(&format!("`{name}`")), "CONTRIBUTING.md does not say what the suite {name} is for");
        count += 1;
    }
    assert!(count > 5, "{count} suites");
}

#[test]
fn every_script_of_a_release_is_told_of_and_may_be_run() {
    use std::os::unix::fs::PermissionsExt as _;
    let page = read("docs/releasing.md");
    for entry in std::fs::read_dir(root().join("release")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        assert!(page.contains(&format!("release/{name}")), "docs/releasing.md does not tell of release/{name}");
        let mode = path.metadata().unwrap().permissions().mode();
        assert!(mode & 0o111 == 0o111, "release/{name} may not be run: {mode:o}");
    }
}
