//! What a person's machine does: keys, `ssh`, and what came of it.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::Context;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::proc;

/// How long a command may take before it counts as hung. A login takes 0.2 s on an idle machine; AWS's command line took more
/// than a minute on two cores with twelve at work.
const COMMAND_BOUND: Duration = Duration::from_secs(180);
/// How long `ssh` waits for the other side's banner, which a jump host sends once it has let its client in.
const CONNECT_SECONDS: u32 = 120;

/// A key pair in files, as `ssh-keygen` makes it.
#[derive(Clone, Debug)]
pub struct KeyPair {
    /// The private half's file, for `ssh -i`.
    pub private: PathBuf,
    /// The public half: one line, without its end.
    pub public: String,
}

/// What a command left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a command whose outcome nobody reads may as well have failed"]
pub struct Output {
    /// Its exit status; of `ssh`, the remote command's, or 255. `None` if a signal ended it.
    pub status: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Output {
    /// Whether the command says that it succeeded.
    pub fn success(&self) -> bool {
        self.status == Some(0)
    }
}

/// Runs a command to its end and keeps all it says.
///
/// # Errors
/// If it cannot be started, or has not ended after three minutes: then it is killed.
pub async fn run(command: &mut Command) -> anyhow::Result<Output> {
    until_it_ends(command.stdin(Stdio::null()), None).await
}

/// Runs a command as [`run`] does, with a text on its standard input.
///
/// # Errors
/// As [`run`].
pub async fn run_with(command: &mut Command, input: &str) -> anyhow::Result<Output> {
    until_it_ends(command.stdin(Stdio::piped()), Some(input)).await
}

async fn until_it_ends(command: &mut Command, input: Option<&str>) -> anyhow::Result<Output> {
    let shown = format!("{:?}", command.as_std());
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn();
    let mut child = child.with_context(|| format!("starting {shown}"))?;
    let stdin = child.stdin.take();
    let all = async {
        if let (Some(mut stdin), Some(input)) = (stdin, input) {
            stdin.write_all(input.as_bytes()).await?;
        }
        child.wait_with_output().await
    };
    let ended = tokio::time::timeout(COMMAND_BOUND, all).await;
    let ended = ended.with_context(|| format!("{shown} did not end within {COMMAND_BOUND:?}"))??;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Output { status: ended.status.code(), stdout: text(&ended.stdout), stderr: text(&ended.stderr) })
}

/// Makes a key without passphrase at `path`, replacing what is there; `arguments` say which kind.
pub(crate) async fn keygen(path: &Path, arguments: &[&str]) -> anyhow::Result<KeyPair> {
    let public = PathBuf::from(format!("{}.pub", path.display()));
    for old in [path, &public] {
        let _ = std::fs::remove_file(old);
    }
    let mut keygen = Command::new(proc::program("ssh-keygen")?);
    let made = run(keygen.args(["-q", "-N", "", "-C", ""]).args(arguments).arg("-f").arg(path)).await?;
    anyhow::ensure!(made.success(), "ssh-keygen {arguments:?}: {}", made.stderr);
    let public = std::fs::read_to_string(public)?.trim_end().to_owned();
    Ok(KeyPair { private: path.to_owned(), public })
}

/// A client's configuration file. A file, since options on the command line do not reach a jump host.
pub(crate) fn config(key: &KeyPair, known_hosts: &Path, more: &str) -> String {
    format!(
        "{more}\nHost *\n  IdentityFile {}\n  IdentitiesOnly yes\n  IdentityAgent none\n  BatchMode yes\n  \
         UserKnownHostsFile {}\n  GlobalKnownHostsFile /dev/null\n  StrictHostKeyChecking yes\n  UpdateHostKeys no\n  \
         ConnectTimeout {CONNECT_SECONDS}\n  LogLevel ERROR\n",
        key.private.display(),
        known_hosts.display(),
    )
}

/// A host as `known_hosts` spells it.
pub(crate) fn known_host(host: &str, port: u16) -> String {
    if port == 22 { host.to_owned() } else { format!("[{host}]:{port}") }
}

/// Names under which clients may ask for an instance: its addresses, and its id, as through a jump host.
pub(crate) fn known_hosts_line(id: &str, addresses: &[IpAddr], port: u16, host_key: &str) -> String {
    let mut names = vec![id.to_owned(), known_host(id, port)];
    names.extend(addresses.iter().map(|address| known_host(&address.to_string(), port)));
    names.dedup();
    format!("{} {host_key}\n", names.join(","))
}
