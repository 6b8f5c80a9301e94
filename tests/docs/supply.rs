//! What is let in of others: what `deny.toml` says of licences and sources, asked of every crate of the lock file that is
//! built for Linux. cargo-deny (`make deny`) asks more, and is too dear for each run.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::OnceLock;

use regex::Regex;
use serde_json::Value;

use super::{read, root};

/// What cargo knows of every crate that is built for this machine's kind, in programs and in tests.
fn packages() -> &'static [Value] {
    static PACKAGES: OnceLock<Vec<Value>> = OnceLock::new();
    PACKAGES.get_or_init(|| {
        let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
        let asked = ["metadata", "--locked", "--offline", "--format-version=1", "--filter-platform", &host];
        let told = Command::new(env!("CARGO")).args(asked).current_dir(root()).output().unwrap();
        assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
        let mut told: Value = serde_json::from_slice(&told.stdout).unwrap();
        let Value::Array(packages) = told["packages"].take() else { panic!("cargo metadata names no packages") };
        assert!(packages.len() > 300, "{} crates", packages.len());
        packages
    })
}

fn text<'a>(package: &'a Value, field: &str) -> &'a str {
    package[field].as_str().unwrap_or_default()
}

/// The texts of a list in `deny.toml`: those between its name and the bracket that closes it.
fn listed(name: &str) -> Vec<String> {
    let list = Regex::new(&format!(r"(?s)\n{name} = \[(.*?)\n?\]")).unwrap();
    let file = read("deny.toml");
    let found = list.captures(&file).unwrap_or_else(|| panic!("deny.toml has no list {name}"));
    Regex::new(r#""([^"]*)""#).unwrap().captures_iter(&found[1]).map(|text| text[1].to_owned()).collect()
}

/// Whether a licence expression of SPDX can be met with the licences that are allowed: OR binds looser than AND.
fn is_met(expression: &str, allowed: &[String]) -> bool {
    let words = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = words.split_whitespace().collect();
    let mut at = 0;
    let met = any(&words, &mut at, allowed);
    assert_eq!(at, words.len(), "{expression}: not read to its end");
    met
}

fn any(words: &[&str], at: &mut usize, allowed: &[String]) -> bool {
    let mut met = all(words, at, allowed);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        met |= all(words, at, allowed);
    }
    met
}

fn all(words: &[&str], at: &mut usize, allowed: &[String]) -> bool {
    let mut met = one(words, at, allowed);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        met &= one(words, at, allowed);
    }
    met
}

fn one(words: &[&str], at: &mut usize, allowed: &[String]) -> bool {
    let word = *words.get(*at).unwrap_or_else(|| panic!("{words:?} ends early"));
    *at += 1;
    if word == "(" {
        let met = any(words, at, allowed);
        assert_eq!(words.get(*at), Some(&")"), "{words:?}: a bracket is open");
        *at += 1;
        return met;
    }
    let mut licence = word.to_owned();
    if words.get(*at) == Some(&"WITH") {
        licence = format!("{word} WITH {}", words[*at + 1]);
        *at += 2;
    }
    allowed.contains(&licence)
}

#[test]
fn a_licence_is_met_as_spdx_reads_it() {
    let allowed = ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned);
    for (expression, met) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("Apache-2.0", false),
        ("Apache-2.0 WITH LLVM-exception", true),
        ("MIT WITH Classpath-exception-2.0", false),
        ("GPL-3.0 OR MIT", true),
        ("GPL-3.0/MIT", true),
        ("MIT AND GPL-3.0", false),
        ("MIT AND ISC", true),
        ("GPL-3.0 OR MIT AND GPL-2.0", false),
        ("GPL-3.0 AND GPL-2.0 OR ISC", true),
        ("(GPL-3.0 OR MIT) AND ISC", true),
        ("(GPL-3.0 OR MIT) AND (GPL-2.0 OR GPL-3.0)", false),
    ] {
        assert_eq!(is_met(expression, &allowed), met, "{expression}");
    }
}

#[test]
fn every_crate_has_a_licence_that_deny_toml_allows() {
    let allowed = listed("allow");
    assert!(allowed.contains(&"MIT".to_owned()), "{allowed:?}");
    let (mut refused, mut used) = (Vec::new(), BTreeMap::<&str, usize>::new());
    for package in packages() {
        let licence = text(package, "license");
        if licence.is_empty() || !is_met(licence, &allowed) {
            refused.push(format!("{} {}: {licence:?}", text(package, "name"), text(package, "version")));
        }
        *used.entry(licence).or_default() += 1;
    }
    assert!(refused.is_empty(), "a licence that deny.toml does not allow: {refused:#?}");
    for licence in &allowed {
        assert!(used.keys().any(|it| it.contains(licence)), "deny.toml allows {licence}, which no crate has");
    }
}

#[test]
fn every_crate_comes_from_crates_io_or_is_our_own() {
    let registries: Vec<String> = listed("allow-registry").into_iter().map(|it| format!("registry+{it}")).collect();
    assert!(listed("allow-git").is_empty());
    for package in packages() {
        let (name, source) = (text(package, "name"), text(package, "source"));
        let is_ours = source.is_empty() && text(package, "manifest_path").starts_with(root().to_str().unwrap());
        assert!(is_ours || registries.iter().any(|it| it == source), "{name} comes from {source:?}");
    }
    // The lock file knows each of them by its digest; what has none is ours.
    let without = read("Cargo.lock").split("[[package]]").skip(1).filter(|it| !it.contains("\nchecksum = ")).count();
    assert_eq!(without, 2, "instance-access and lab");
}

#[test]
fn no_crate_asks_for_a_newer_rust_than_we_say() {
    let of = |version: &str| -> Vec<u32> { version.split('.').map(|part| part.parse().unwrap()).collect() };
    let ours = of(env!("CARGO_PKG_RUST_VERSION"));
    for package in packages() {
        let (name, asks) = (text(package, "name"), text(package, "rust_version"));
        assert!(asks.is_empty() || of(asks) <= ours, "{name} wants Rust {asks}, Cargo.toml says {ours:?}");
    }
}

#[test]
fn one_tls_stack_is_built_and_nothing_that_deny_toml_bans() {
    let banned = Regex::new(r#"\{ crate = "([a-z0-9_-]+)","#).unwrap();
    let file = read("deny.toml");
    let bans = file.split("\ndeny = [").nth(1).and_then(|it| it.split("\n]").next()).expect("deny.toml has bans");
    let banned: Vec<&str> = banned.captures_iter(bans).map(|found| found.get(1).unwrap().as_str()).collect();
    assert!(banned.contains(&"openssl-sys") && banned.contains(&"ring"), "{banned:?}");
    let told = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--offline", "--edges=normal,build", "--prefix=none", "--format={p}"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    let built = String::from_utf8(told.stdout).unwrap();
    let built: Vec<&str> = built.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(built.contains(&"rustls") && built.contains(&"aws-lc-rs"), "{built:?}");
    for name in banned {
        assert!(!built.contains(&name), "{name} is built; see deny.toml");
    }
}
