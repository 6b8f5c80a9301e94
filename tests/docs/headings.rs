//! Words that programs say have a heading in the runbook.

use std::collections::BTreeSet;

use instance_access::domain::condition::{ActiveReason, DenyReason};
use regex::Regex;

use super::read;

/// The headings of a page that are one word in code font: `### `Word``.
fn headings(file: &str) -> BTreeSet<String> {
    let heading = Regex::new(r"(?m)^#{2,4} `([A-Za-z0-9]+)`\s*$").unwrap();
    heading.captures_iter(&read(file)).map(|found| found[1].to_owned()).collect()
}

#[track_caller]
fn has(file: &str, words: impl IntoIterator<Item = String>) {
    let there = headings(file);
    let words: BTreeSet<String> = words.into_iter().collect();
    assert!(!words.is_empty(), "no words to look for: this test no longer reads the source");
    let missing: Vec<_> = words.difference(&there).collect();
    assert!(missing.is_empty(), "{file} has no heading for {missing:?}: cause, how to check, remedy");
}

/// Every reason of a refusal. A new variant does not compile here until it is listed.
fn deny_reasons() -> Vec<DenyReason> {
    let all = vec![
        DenyReason::DeniedByPolicy,
        DenyReason::InvalidSpec,
        DenyReason::RequesterUnchecked,
        DenyReason::DeniedByApprover,
        DenyReason::ApprovalTimeout,
        DenyReason::LimitReached,
    ];
    for reason in &all {
        match reason {
            DenyReason::DeniedByPolicy
            | DenyReason::InvalidSpec
            | DenyReason::RequesterUnchecked
            | DenyReason::DeniedByApprover
            | DenyReason::ApprovalTimeout
            | DenyReason::LimitReached => {}
        }
    }
    all
}

/// The variants of an enum, read from its source.
fn variants(file: &str, name: &str) -> Vec<String> {
    let source = read(file);
    let start = source.find(&format!("pub enum {name} {{")).unwrap_or_else(|| panic!("{file} has no enum {name}"));
    let body = &source[start..];
    let body = &body[..body.find("\n}").unwrap()];
    let variant = Regex::new(r"(?m)^    ([A-Z][A-Za-z]+)( \{|\(|,)").unwrap();
    variant.captures_iter(body).map(|found| found[1].to_owned()).collect()
}

#[test]
fn every_reason_of_status_has_a_heading_in_the_runbook() {
    let active = ActiveReason::ALL.into_iter().map(|reason| reason.as_str().to_owned());
    let denied = deny_reasons().into_iter().map(|reason| reason.as_str().to_owned());
    has("docs/troubleshooting.md", active.chain(denied));
}

#[test]
fn the_runbook_has_no_reason_that_status_no_longer_says() {
    let known: BTreeSet<String> = ActiveReason::ALL
        .into_iter()
        .map(|reason| reason.as_str().to_owned())
        .chain(deny_reasons().into_iter().map(|reason| reason.as_str().to_owned()))
        .chain(variants("src/audit/finding.rs", "Finding"))
        .chain(policy_problems())
        .collect();
    let stale: Vec<_> = headings("docs/troubleshooting.md").into_iter().filter(|word| !known.contains(word)).collect();
    assert!(stale.is_empty(), "docs/troubleshooting.md speaks of {stale:?}, which nothing says");
}

#[test]
fn every_finding_of_audit_verify_has_a_heading_in_the_runbook() {
    has("docs/troubleshooting.md", variants("src/audit/finding.rs", "Finding"));
}

/// The reasons for which a policy is not in force.
fn policy_problems() -> Vec<String> {
    let reason = Regex::new(r#"reason: "([A-Za-z]+)","#).unwrap();
    reason.captures_iter(&read("src/domain/policy/compile.rs")).map(|found| found[1].to_owned()).collect()
}

#[test]
fn every_reason_for_a_policy_that_is_not_ready_has_a_heading_in_the_runbook() {
    has("docs/troubleshooting.md", policy_problems());
}

#[test]
fn every_kind_of_audit_record_has_a_heading() {
    has(
        "docs/audit.md",
        variants("src/domain/record.rs", "RecordKind")
            .into_iter()
            .chain(variants("src/domain/session/record.rs", "SessionRecordKind"))
            .chain(variants("src/domain/session/pushed.rs", "PushRecordKind"))
            .chain(["SegmentOpened".to_owned()]),
    );
}

/// How the names of metrics begin that pages may name: ours, every exporter's, Kubernetes', the node's.
const METRICS: [&str; 6] = ["instance_access_", "process_", "kubelet_", "container_", "apiserver_", "node_"];

#[test]
fn every_test_that_the_pages_name_is_there() {
    let mut sources = String::new();
    let mut folders = vec![super::root().join("src"), super::root().join("tests")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                sources.push_str(&std::fs::read_to_string(path).unwrap());
            }
        }
    }
    // A name of four words or more is a test's.
    let test = Regex::new(r"`([a-z0-9]+(?:_[a-z0-9]+){3,})`").unwrap();
    let mut named = 0;
    for path in super::pages() {
        for found in test.captures_iter(&std::fs::read_to_string(&path).unwrap()) {
            if METRICS.iter().any(|prefix| found[1].starts_with(prefix)) {
                continue; // a metric
            }
            named += 1;
            assert!(
                sources.contains(&format!("fn {}(", &found[1])),
                "{}: there is no test {}",
                path.display(),
                &found[1]
            );
        }
    }
    assert!(named > 10, "the pages name only {named} tests");
}

/// The text of every source below `src`, its YAML included.
fn sources() -> String {
    let mut text = String::new();
    let mut folders = vec![super::root().join("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if let Ok(source) = std::fs::read_to_string(&path) {
                text.push_str(&source);
            }
        }
    }
    text
}

#[test]
fn the_runbook_quotes_the_operator_and_the_admission_policies_word_for_word() {
    // Headings in people's own words, and those that quote Kubernetes.
    let own = ["TLS", "A namespace stays in Terminating", "no matches for kind"];
    let sources = sources();
    let page = read("docs/troubleshooting.md");
    let mut quoted = 0;
    for section in ["## What the API server says\n", "## What the operator's log says\n"] {
        let start = page.find(section).unwrap_or_else(|| panic!("no section {section}")) + section.len();
        let section = page[start..].split("\n## ").next().unwrap_or_default();
        for heading in section.lines().filter_map(|line| line.strip_prefix("### ")) {
            if own.iter().any(|own| heading.starts_with(own)) {
                continue;
            }
            quoted += 1;
            for piece in heading.split(['…', ':']).map(str::trim).filter(|piece| piece.len() > 4) {
                assert!(
                    sources.contains(piece),
                    "the runbook's heading {heading:?} quotes {piece:?}, which nothing in src says"
                );
            }
        }
    }
    assert!(quoted > 10, "{quoted}");
}
