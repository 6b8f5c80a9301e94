//! The fuzz targets' bodies on the stable toolchain: the corpus, what grows from it, and whatever random makes; some seconds.
//!
//! libFuzzer takes hours and finds more: `fuzz/README.md`. An input that it finds goes into `fuzz/corpus/`, and is tried here
//! ever after. `UPDATE_CORPUS=1 cargo test --test fuzz` writes the well-formed ones of `bodies.rs` there anew.

#[path = "../fuzz/bodies.rs"]
mod bodies;

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestRunner};

const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus");
/// What everything together may take in memory beyond the first connection: a few of an SSH packet's most.
const BYTES_MAX: u64 = 64 << 20;

/// The inputs of a target that are kept.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(CORPUS).join(target);
    let mut paths: Vec<PathBuf> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} is empty", dir.display());
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// Tries the corpus, then so many inputs that grew from it, then so many random ones.
#[track_caller]
fn tried(target: &str, body: fn(&[u8]), grown: u32, random: u32) {
    let corpus = corpus(target);
    for input in &corpus {
        body(input);
    }
    let runner = |cases| {
        // A failure is to become a file in the corpus, not a line that only proptest reads.
        TestRunner::new(Config { cases, failure_persistence: None, max_shrink_iters: 200, ..Config::default() })
    };
    let change = (any::<Index>(), any::<u8>(), 0..4_u8);
    let grows = (select(corpus), prop::collection::vec(change, 1..12)).prop_map(|(mut input, changes)| {
        for (at, byte, how) in changes {
            let at = at.index(input.len() + 1);
            match how {
                0 if at < input.len() => input[at] = byte,
                1 if at < input.len() => input[at] ^= 1 << (byte % 8),
                2 => input.truncate(at),
                _ => input.insert(at, byte),
            }
        }
        input
    });
    let holds = |input: Vec<u8>| {
        body(&input);
        Ok(())
    };
    runner(grown).run(&grows, holds).unwrap();
    runner(random).run(&prop::collection::vec(any::<u8>(), 0..2048), holds).unwrap();
}

fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux says so");
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[test]
fn nothing_that_is_read_before_a_login_lets_in_or_stays_or_takes_memory() {
    bodies::owner();
    // One of each, so that what is made once is made.
    bodies::stranger(b"");
    bodies::guest(b"");
    let before = resident_bytes();
    tried("stranger", bodies::stranger, 600, 200);
    tried("guest", bodies::guest, 300, 50);
    let more = resident_bytes().saturating_sub(before);
    assert!(more < BYTES_MAX, "{more} bytes more");
}

#[test]
fn a_key_that_is_taken_reads_as_itself() {
    tried("key", bodies::key, 5000, 1000);
}

#[test]
fn a_destination_leads_to_the_grant_of_that_name_or_nowhere() {
    tried("destination", bodies::destination, 5000, 1000);
}

#[test]
fn whatever_an_endpoint_sends_every_wait_ends_and_no_more_comes_out() {
    bodies::endpoint(&[3]);
    let before = resident_bytes();
    tried("endpoint", bodies::endpoint, 3000, 1000);
    let more = resident_bytes().saturating_sub(before);
    assert!(more < BYTES_MAX, "{more} bytes more");
}

#[test]
fn the_corpus_has_what_is_well_formed() {
    let dir = Path::new(CORPUS).join("guest");
    for (name, bytes) in bodies::seeds() {
        let path = dir.join(name);
        if std::env::var_os("UPDATE_CORPUS").is_some() {
            fs::create_dir_all(&dir).unwrap();
            fs::write(&path, &bytes).unwrap();
        }
        let kept = fs::read(&path).unwrap_or_default();
        assert!(kept == bytes, "{} is out of date; UPDATE_CORPUS=1 cargo test --test fuzz", path.display());
    }
}
