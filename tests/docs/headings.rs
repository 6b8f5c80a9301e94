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
    let all = vec![DenyReason::DeniedByPolicy, DenyReason::InvalidSpec];
    for reason in &all {
        match reason {
            DenyReason::DeniedByPolicy | DenyReason::InvalidSpec => {}
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
        .chain(variants("src/audit/verify.rs", "Finding"))
        .chain(policy_problems())
        .collect();
    let stale: Vec<_> = headings("docs/troubleshooting.md").into_iter().filter(|word| !known.contains(word)).collect();
    assert!(stale.is_empty(), "docs/troubleshooting.md speaks of {stale:?}, which nothing says");
}

#[test]
fn every_finding_of_audit_verify_has_a_heading_in_the_runbook() {
    has("docs/troubleshooting.md", variants("src/audit/verify.rs", "Finding"));
}

/// The reasons for which a policy is not in force.
fn policy_problems() -> Vec<String> {
    let reason = Regex::new(r#"reason: "([A-Za-z]+)","#).unwrap();
    reason.captures_iter(&read("src/domain/policy.rs")).map(|found| found[1].to_owned()).collect()
}

#[test]
fn every_reason_for_a_policy_that_is_not_ready_has_a_heading_in_the_runbook() {
    has("docs/troubleshooting.md", policy_problems());
}

#[test]
fn every_kind_of_audit_record_has_a_heading() {
    has("docs/audit.md", variants("src/domain/record.rs", "RecordKind").into_iter().chain(["SegmentOpened".to_owned()]));
}
