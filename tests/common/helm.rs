//! helm, as a program, and the objects that it renders.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use serde::Deserialize;
use serde_json::Value;

/// A file of the repository.
pub fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Reads a file of the repository.
#[track_caller]
pub fn read(path: &str) -> String {
    std::fs::read_to_string(file(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The chart.
pub fn chart() -> PathBuf {
    file("charts/instance-access")
}

/// helm's program, built once by the script that `make test` runs.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let built = Command::new(file("tests/lab/setup-go-tool.sh")).arg("helm").output().expect("bash runs it");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        Path::new(String::from_utf8(built.stdout).expect("a path").trim()).join("helm")
    })
}

/// A `helm` that reads no setting of whoever runs the tests, and keeps what it keeps below `home`.
pub fn command(home: &Path) -> Command {
    let mut helm = Command::new(program());
    helm.env_clear().env("HOME", home).current_dir(home);
    helm
}

/// Runs a `helm` that needs no cluster.
pub fn run(arguments: &[&str]) -> Output {
    let home = tempfile::tempdir().unwrap();
    command(home.path()).args(arguments).output().unwrap()
}

/// `helm template` of the release `access` in a namespace; the error is helm's words.
pub fn template_in(namespace: &str, arguments: &[&str]) -> Result<String, String> {
    let chart = chart();
    let mut all = vec!["template", "access", chart.to_str().unwrap(), "--namespace", namespace];
    all.extend(arguments);
    let done = run(&all);
    if done.status.success() {
        Ok(String::from_utf8(done.stdout).unwrap())
    } else {
        Err(String::from_utf8_lossy(&done.stderr).into_owned())
    }
}

/// The objects of a YAML stream.
#[track_caller]
pub fn objects(yaml: &str) -> Vec<Value> {
    let documents = serde_yaml::Deserializer::from_str(yaml).map(Value::deserialize);
    documents.map(|it| it.unwrap_or_else(|error| panic!("{error}:\n{yaml}"))).filter(|it| !it.is_null()).collect()
}
