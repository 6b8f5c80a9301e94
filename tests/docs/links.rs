//! Links inside the repository lead somewhere.

use std::collections::BTreeSet;

use regex::Regex;

use super::{pages, root, split};

/// The anchors of a page, as GitHub makes them of its headings.
fn anchors(page: &str) -> BTreeSet<String> {
    let (prose, _) = split(page);
    let headings =
        prose.lines().filter_map(|line| line.strip_prefix('#').map(|rest| rest.trim_start_matches('#').trim()));
    headings
        .map(|heading| {
            let kept = heading
                .to_lowercase()
                .chars()
                .filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c))
                .collect::<String>();
            kept.replace(' ', "-")
        })
        .collect()
}

#[test]
fn every_link_inside_the_repository_leads_somewhere() {
    let link = Regex::new(r"\]\(([^)\s]+)\)").unwrap();
    let mut broken = Vec::new();
    for path in pages() {
        let text = std::fs::read_to_string(&path).unwrap();
        let (prose, _) = split(&text);
        for found in link.captures_iter(&prose) {
            let target = &found[1];
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let to = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            let leads = if anchor.is_empty() {
                to.exists()
            } else {
                std::fs::read_to_string(&to).is_ok_and(|page| anchors(&page).contains(anchor))
            };
            if !leads {
                broken.push(format!("{}: {target}", path.strip_prefix(root()).unwrap().display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn every_make_target_that_the_pages_name_is_there() {
    let makefile = super::read("Makefile");
    let target = Regex::new(r"`make ([a-z-]+)`").unwrap();
    for path in pages() {
        for found in target.captures_iter(&std::fs::read_to_string(&path).unwrap()) {
            let rule = Regex::new(&format!(r"(?m)^{}:", &found[1])).unwrap();
            assert!(rule.is_match(&makefile), "{}: make {} is not in the Makefile", path.display(), &found[1]);
        }
    }
}
