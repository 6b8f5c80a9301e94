//! The map of the house, enforced: who may import whom, who may read a clock, and the house rules.
//!
//! It reads the sources and compiles nothing. What it forbids, and why, stands in `docs/architecture.md`; each message
//! says what to use instead. A new arrow between rooms is a change of design: change the table below and that page.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;

/// What the files below one folder may name.
struct Room {
    name: &'static str,
    /// Crates of `Cargo.toml`. What is not listed is foreign.
    crates: &'static [&'static str],
    /// Other rooms, as they stand behind `crate::`; `domain::cloud` lets in that module alone.
    rooms: &'static [&'static str],
    /// Words that must not stand in it, each with what to use instead.
    forbidden: &'static [(&'static str, &'static str)],
    /// What to do about a foreign crate or room.
    instead: &'static str,
}

/// Reads of the wall clock. `src/clock.rs` has the one that is handed down.
const WALL_CLOCKS: [&str; 4] = ["Timestamp::now", "Zoned::now", "SystemTime::now", "SystemTime::UNIX_EPOCH"];

/// What no room that only computes may do.
const NO_WORLD: [(&str, &str); 7] = [
    ("Instant::now", "take `now: Timestamp` as an argument"),
    ("std::fs", "take the contents as an argument"),
    ("std::env", "take the setting as an argument, from config.rs"),
    ("std::process", "return an Effect, and let the controller carry it out"),
    ("std::thread", "return an Effect, and let the controller carry it out"),
    ("async fn", "return an Effect, and let the controller wait for it"),
    ("println!", "return the text; a log line belongs into the controller"),
];

const ROOMS: [Room; 9] = [
    Room {
        name: "api",
        crates: &["serde", "serde_json", "serde_yaml", "schemars", "kube", "k8s_openapi"],
        rooms: &["api"],
        forbidden: &[
            ("kube::Client", "keep to kube's derive; a client belongs into controller"),
            ("kube::Api", "keep to kube's derive; a client belongs into controller"),
            ("kube::client", "keep to kube's derive; a client belongs into controller"),
            ("kube::runtime", "keep to kube's derive; a watch belongs into controller"),
        ],
        instead: "a field states its type, bounds, CEL rules and doc; what it means is decided in domain",
    },
    Room {
        name: "domain",
        crates: &[
            "serde",
            "serde_json",
            "serde_json_canonicalizer",
            "k8s_openapi",
            "jiff",
            "sha2",
            "base64",
            "regex",
            "cel",
            "chrono",
            "thiserror",
        ],
        rooms: &["api", "domain"],
        forbidden: &[],
        instead: "take facts as arguments (World, Sight) and return an Effect; the controller fetches and carries out",
    },
    Room {
        name: "aws",
        crates: &[
            "aws_config",
            "aws_sdk_ec2",
            "aws_sdk_ec2instanceconnect",
            "aws_smithy_types",
            "aws_smithy_runtime_api",
            "aws_credential_types",
            "aws_types",
            "aws_sigv4",
            "serde_json",
            "tokio",
            "tokio_rustls",
            "tokio_tungstenite",
            "rustls_native_certs",
            "futures",
            "jiff",
            "regex",
            "thiserror",
            "tracing",
        ],
        rooms: &["aws", "domain::cloud", "domain::push", "domain::key"],
        forbidden: &[],
        instead: "speak in the value types of domain::cloud, domain::push and domain::key; Kubernetes, and why a call is made, stay with controller and domain",
    },
    Room {
        name: "audit",
        crates: &["serde", "serde_json", "serde_json_canonicalizer", "sha2", "jiff", "tokio", "futures", "thiserror"],
        rooms: &["audit"],
        forbidden: &[],
        instead: "take the record as a JSON value and the time as an argument: a link does not know what it says",
    },
    Room {
        name: "admission",
        crates: &["kube", "k8s_openapi", "serde", "serde_json", "serde_yaml", "jiff", "thiserror"],
        rooms: &["api", "admission"],
        forbidden: &[],
        instead: "the API server judges by the YAML in this room; who may get what is decided in domain",
    },
    Room {
        name: "controller",
        crates: &[
            "kube",
            "k8s_openapi",
            "serde",
            "serde_json",
            "http",
            "jiff",
            "lz4_flex",
            "tokio",
            "tokio_util",
            "futures",
            "thiserror",
            "tracing",
        ],
        rooms: &[
            "controller",
            "domain",
            "api",
            "aws",
            "audit",
            "admission",
            "clock",
            "telemetry",
            "traces",
            "kubernetes",
        ],
        forbidden: &[
            ("aws::class", "read the FailureClass that domain judges by; AWS's error names stay in aws"),
            ("Exception\"", "read the FailureClass that domain judges by; AWS's error names stay in aws"),
        ],
        instead: "carry out what the Plan says; AWS is reached through aws, the metrics through telemetry",
    },
    Room {
        name: "gateway",
        crates: &[
            "kube",
            "k8s_openapi",
            "serde_json",
            "jiff",
            "russh",
            "rustls",
            "socket2",
            "tokio",
            "tokio_util",
            "futures",
            "prometheus_client",
            "thiserror",
            "tracing",
        ],
        rooms: &["gateway", "domain", "api", "aws", "audit", "clock", "telemetry", "metrics", "traces", "kubernetes"],
        forbidden: &[
            ("lookup_host", "no name is resolved here: dial what a DialPermit names"),
            ("to_socket_addrs", "no name is resolved here: dial what a DialPermit names"),
        ],
        instead: "ask domain::session who may what; the bytes of a session are nobody's to read",
    },
    Room {
        name: "kubernetes",
        crates: &["kube", "k8s_openapi", "serde", "serde_json", "http", "tower", "tokio", "thiserror"],
        rooms: &["kubernetes"],
        forbidden: &[],
        instead: "the API server is asked, and what a watch tells is read, for controller and gateway alike; what it means is theirs to ask",
    },
    Room {
        name: "traces",
        crates: &[
            "async_trait",
            "http",
            "hyper_rustls",
            "hyper_util",
            "opentelemetry",
            "opentelemetry_http",
            "opentelemetry_otlp",
            "opentelemetry_sdk",
            "percent_encoding",
            "prometheus_client",
            "rustls",
            "rustls_native_certs",
            "thiserror",
            "tokio",
            "tracing",
        ],
        rooms: &["traces", "telemetry"],
        forbidden: &[("std::env", "take the variables as an argument; main reads them")],
        instead: "a span says what whoever makes it wrote into it; it knows nobody else's types",
    },
];

/// The longest source, in lines: more is two rooms in one.
const SOURCE_LINES_MAX: usize = 700;
/// The longest file of tests, in lines: tables of rows are long, and easy to read.
const TEST_LINES_MAX: usize = 1100;

#[derive(Default)]
struct Findings(Vec<String>);

impl Findings {
    fn say(&mut self, file: &Path, line: usize, what: impl std::fmt::Display) {
        self.0.push(format!("{}:{line}: {what}", file.strip_prefix(root()).unwrap_or(file).display()));
    }

    #[track_caller]
    fn are_none(self) {
        let text = self.0.iter().fold(String::new(), |mut text, finding| {
            let _ = write!(text, "\n  {finding}"); // a String takes all
            text
        });
        assert!(self.0.is_empty(), "{} findings:{text}", self.0.len());
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files below a folder, except what builds and version control leave there.
fn files(below: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![below.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_symlink() || [".git", "target", "node_modules"].contains(&name.as_str()) {
                continue;
            }
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    found
}

fn sources(below: &str) -> Vec<PathBuf> {
    let is_source = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "rs");
    files(&root().join(below)).into_iter().filter(is_source).collect()
}

/// Whether a file of `src` is compiled for tests only: by its name, which its parent declares under `cfg(test)`.
fn is_for_tests(path: &Path) -> bool {
    path.components().any(|part| ["tests", "tests.rs", "fake.rs"].iter().any(|name| part.as_os_str() == *name))
}

/// The lines of a source, numbered from 1, without comments and without its own `mod tests`.
fn code(path: &Path) -> Vec<(usize, String)> {
    let text = fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let lines = text.lines().enumerate().map(|(number, line)| (number + 1, without_comment(line)));
    lines.filter(|(_, line)| !line.trim().is_empty()).collect()
}

/// Cuts `// …` off, unless it stands in a text such as a URL.
fn without_comment(line: &str) -> String {
    let mut quoted = false;
    let mut previous = ' ';
    for (at, character) in line.char_indices() {
        match character {
            '"' if previous != '\\' => quoted = !quoted,
            '/' if !quoted && line[at..].starts_with("//") => return line[..at].to_owned(),
            _ => {}
        }
        previous = character;
    }
    line.to_owned()
}

fn manifest(path: &str) -> Vec<(usize, String)> {
    let text = fs::read_to_string(root().join(path)).unwrap();
    text.lines().enumerate().map(|(number, line)| (number + 1, line.to_owned())).collect()
}

/// The lines of a manifest that name a dependency, each as (line, name, whether a comment stands above its group).
fn dependencies(path: &str) -> Vec<(usize, String, bool)> {
    let mut found = Vec::new();
    let (mut within, mut explained) = (false, false);
    for (number, line) in manifest(path) {
        let line = line.trim();
        if line.starts_with('[') {
            within = line.ends_with("dependencies]");
            explained = false;
        } else if line.is_empty() {
            explained = false;
        } else if line.starts_with('#') {
            explained = true;
        } else if within && let Some((name, _)) = line.split_once('=') {
            found.push((number, name.trim().to_owned(), explained));
        }
    }
    assert!(!found.is_empty(), "{path} names no dependencies: this test no longer reads it");
    found
}

#[test]
fn no_room_knows_more_than_it_may() {
    let names: Vec<String> =
        dependencies("Cargo.toml").into_iter().map(|(_, name, _)| name.replace('-', "_")).collect();
    let foreign = Regex::new(&format!(r"(?:^|[^:\w.])(?:::)?({})::", names.join("|"))).unwrap();
    let rooms = Regex::new(r"(?:^|[^\w])crate::(\{|[a-z_]+(?:::[a-z_]+)?)").unwrap();
    let mut findings = Findings::default();
    for room in &ROOMS {
        let Room { name, crates, rooms: may, forbidden, instead } = room;
        let sources = sources(&format!("src/{name}"));
        assert!(!sources.is_empty(), "src/{name} is gone: change the table of this test");
        for path in sources.iter().filter(|path| !is_for_tests(path)) {
            for (number, line) in code(path) {
                for found in foreign.captures_iter(&line).map(|found| found[1].to_owned()) {
                    if !crates.contains(&found.as_str()) {
                        findings.say(path, number, format!("{name} may not use {found}; {instead}"));
                    }
                }
                for found in rooms.captures_iter(&line).map(|found| found[1].to_owned()) {
                    let first = found.split("::").next().unwrap_or_default();
                    if found == "{" {
                        findings.say(path, number, "one `use` names one room, so that this test can read it");
                    } else if !may.contains(&first) && !may.contains(&found.as_str()) {
                        findings.say(path, number, format!("{name} may not know crate::{found}; {instead}"));
                    }
                }
                let pure = if ["api", "domain"].contains(name) { &NO_WORLD[..] } else { &[] };
                for (word, instead) in forbidden.iter().chain(pure) {
                    if line.contains(word) {
                        findings.say(path, number, format!("{name} may not have {word}; {instead}"));
                    }
                }
            }
        }
    }
    findings.are_none();
}

#[test]
fn every_folder_of_src_is_a_room_of_the_table() {
    for entry in fs::read_dir(root().join("src")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            assert!(ROOMS.iter().any(|room| room.name == name), "src/{name} is in no table: say here what it may know");
        }
    }
}

#[test]
fn only_the_clock_room_reads_the_wall_clock() {
    let mut findings = Findings::default();
    for path in sources("src").iter().filter(|path| !is_for_tests(path) && !path.ends_with("src/clock.rs")) {
        for (number, line) in code(path) {
            for clock in WALL_CLOCKS {
                if line.contains(clock) {
                    findings.say(
                        path,
                        number,
                        format!("{clock}: take a `Clock` or a `now` that main hands down from clock.rs"),
                    );
                }
            }
        }
    }
    findings.are_none();
}

#[test]
fn the_sdk_of_aws_is_named_in_its_room_only() {
    let sdk = Regex::new(r"\baws_(config|sdk_|smithy_|credential_|types|sigv4)\w*::").unwrap();
    let mut findings = Findings::default();
    for path in sources("src").iter().filter(|path| !path.starts_with(root().join("src/aws"))) {
        for (number, line) in code(path) {
            if let Some(found) = sdk.find(&line) {
                findings.say(path, number, format!("{} belongs into src/aws; use the trait Cloud", found.as_str()));
            }
        }
    }
    findings.are_none();
}

#[test]
fn the_lab_believes_nothing_that_the_code_under_test_believes() {
    let mut findings = Findings::default();
    let needles = ["instance_access::", concat!("instance", "-access = {")];
    let manifest = root().join("tests/lab/Cargo.toml");
    for path in sources("tests/lab").into_iter().chain([manifest]) {
        for (number, line) in fs::read_to_string(&path).unwrap().lines().enumerate() {
            for needle in needles {
                if line.contains(needle) {
                    findings.say(
                        &path,
                        number + 1,
                        "the lab may not know this project's crate; write down what AWS says, from AWS's pages",
                    );
                }
            }
        }
    }
    findings.are_none();
}

#[test]
fn nothing_is_left_undone_and_nothing_unwraps_in_silence() {
    let undone = [concat!("to", "do!("), concat!("unimple", "mented!("), concat!("db", "g!(")];
    let mut findings = Findings::default();
    for path in sources("src").iter().chain(&sources("tests")) {
        for (number, line) in code(path) {
            for word in undone {
                if line.contains(word) {
                    findings.say(
                        path,
                        number,
                        format!("{word}…): finish it, or return an error that says what is missing"),
                    );
                }
            }
        }
    }
    for path in sources("src").iter().filter(|path| !is_for_tests(path)) {
        for (number, line) in code(path) {
            if line.contains(".unwrap()") || line.contains(".expect(\"\")") {
                findings.say(path, number, "return the error, or say in `.expect(…)` what proves that there is none");
            }
        }
    }
    findings.are_none();
}

#[test]
fn no_file_is_two_rooms_in_one() {
    let mut findings = Findings::default();
    for path in sources("src").iter().chain(&sources("tests")) {
        let in_src = path.starts_with(root().join("src")) && !is_for_tests(path);
        let lines_max = if in_src { SOURCE_LINES_MAX } else { TEST_LINES_MAX };
        let lines = fs::read_to_string(path).unwrap().lines().count();
        if lines > lines_max {
            findings.say(path, lines, format!("{lines} lines, at most {lines_max}: cut it where two subjects meet"));
        }
    }
    findings.are_none();
}

#[test]
fn every_dependency_says_why_it_is_there() {
    let mut findings = Findings::default();
    for manifest in ["Cargo.toml", "tests/lab/Cargo.toml"] {
        for (number, name, explained) in dependencies(manifest) {
            if !explained {
                findings.say(Path::new(manifest), number, format!("{name}: write a line above it on why it is there"));
            }
        }
    }
    findings.are_none();
}

#[test]
fn no_file_names_a_path_of_somebodys_machine() {
    let homes = [concat!("/ro", "ot/"), concat!("/ho", "me/"), concat!("/Us", "ers/")];
    let mut findings = Findings::default();
    for path in files(root()) {
        // What is not text names no path that anybody reads.
        let Ok(text) = fs::read_to_string(&path) else { continue };
        for (number, line) in text.lines().enumerate() {
            for home in homes {
                if line.contains(home) {
                    findings.say(&path, number + 1, format!("{home}: a path of one machine; use $HOME, a temporary directory, or a path in the repository"));
                }
            }
        }
    }
    findings.are_none();
}

#[test]
fn comments_are_cut_off_and_urls_are_not() {
    assert_eq!(without_comment("let a = 1; // tokio::spawn"), "let a = 1; ");
    assert_eq!(without_comment(r#"let url = "http://x"; // y"#), r#"let url = "http://x"; "#);
    assert_eq!(without_comment("/// kube::Client"), "");
}
