//! What a person's machine does with a gateway.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use jiff::Timestamp;
use lab::ssh::{self, Output};
use lab::{Instance, pace, poll};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};

use crate::jump::Jump;
use crate::request::Request;
use crate::stand::BOUND;

/// How often a machine may be too slow for a login, one time after the other.
pub const TRIES_MAX: usize = 4;

/// A configuration and a key, for one gateway.
pub struct Client<'a> {
    pub request: &'a Request<'a>,
    pub config: PathBuf,
}

impl<'a> Client<'a> {
    /// The owner of a request.
    pub fn of(request: &'a Request<'a>, jump: &Jump) -> Self {
        Self::with(request, jump, "", "")
    }

    /// With more in the sections of the jump host and of the instances.
    pub fn with(request: &'a Request<'a>, jump: &Jump, jump_more: &str, target_more: &str) -> Self {
        let lab = &request.stand.lab;
        let config = lab.ssh_config(&request.key, &jump.config(lab, jump_more, target_more)).unwrap();
        Self { request, config }
    }

    /// `ssh`, by this configuration.
    pub fn ssh(&self) -> Command {
        self.request.stand.lab.ssh(&self.config).unwrap()
    }

    /// Another of OpenSSH's programs, by this configuration.
    pub fn program(&self, name: &str) -> Command {
        let mut command = Command::new(name);
        command.arg("-F").arg(&self.config).env(lab::proc::MARK, self.request.stand.lab.dir());
        command.env_remove("SSH_AUTH_SOCK").kill_on_drop(true);
        command
    }

    /// Runs `ssh` with these arguments, to its end.
    pub async fn typed(&self, arguments: &[&str]) -> Output {
        ssh::run(self.ssh().args(arguments)).await.unwrap()
    }

    /// Logs in through the gateway, which must work.
    pub async fn gets_in(&self, arguments: &[&str]) {
        let mut all = arguments.to_vec();
        all.push("id -un");
        for number in 1..=TRIES_MAX {
            let begin = Timestamp::now();
            let shell = self.typed(&all).await;
            if shell.success() {
                assert_eq!(shell.stdout.trim(), "ec2-user");
                return;
            }
            assert!(is_worth_another_try(begin, &shell.stderr).await, "{arguments:?}, try {number}: {shell:?}");
            eprintln!("{arguments:?}, try {number}: {}", shell.stderr.trim());
        }
        panic!("{arguments:?}: no shell in {TRIES_MAX} tries");
    }

    /// Asks the gateway for a connection as `ssh -W` does, which it must refuse; returns what the client reads.
    pub async fn refused(&self, destination: &str) -> String {
        let output = self.typed(&["-W", destination, "gateway"]).await;
        assert!(!output.success() && output.stdout.is_empty(), "{destination}: {output:?}");
        assert!(output.stderr.contains("open failed"), "{destination}: {output:?}");
        output.stderr
    }

    /// Logs in, and stays until it is cut; returns when the shell answers.
    pub async fn stays(&self, host: &str) -> Live {
        self.may_stay(host).await.unwrap_or_else(|said| panic!("{host}: no shell: {said}"))
    }

    /// The same, if it is let in.
    ///
    /// # Errors
    /// What the terminal shows, once that is no reason to try again, or was one too often.
    pub async fn may_stay(&self, host: &str) -> Result<Live, String> {
        let mut tries = 0;
        loop {
            let begin = Timestamp::now();
            let mut command = self.ssh();
            command.arg(host).arg("echo in; cat");
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = command.spawn().unwrap();
            // Apart: to wait for a child closes what it still holds of it.
            let stdin = child.stdin.take().expect("it is piped");
            let mut out = BufReader::new(child.stdout.take().expect("it is piped"));
            let mut line = String::new();
            tokio::time::timeout(BOUND, out.read_line(&mut line)).await.expect("a shell in time").unwrap();
            if line == "in\n" {
                return Ok(Live { child, stdin, out });
            }
            let mut said = String::new();
            child.stderr.take().expect("it is piped").read_to_string(&mut said).await.unwrap();
            tries += 1;
            let shown = format!("{host}, try {tries}: {line}{}", said.trim());
            if tries == TRIES_MAX || !is_worth_another_try(begin, &said).await {
                return Err(shown);
            }
            eprintln!("{shown}");
        }
    }
}

/// Whether the gateway says to try again, after a machine that took seconds away from it: so long it waits for no answer of
/// the API server's. On a machine that did not, it must let in who comes.
pub async fn is_worth_another_try(begin: Timestamp, said: &str) -> bool {
    said.contains("try again") && pace::stolen(begin, Timestamp::now()).await > 2.0
}

/// A shell that is open, and echoes.
pub struct Live {
    child: Child,
    stdin: ChildStdin,
    out: BufReader<tokio::process::ChildStdout>,
}

impl Live {
    /// Sends a line through and back.
    pub async fn echoes(&mut self) {
        self.stdin.write_all(b"still here\n").await.unwrap();
        let mut line = String::new();
        tokio::time::timeout(BOUND, self.out.read_line(&mut line)).await.expect("an echo in time").unwrap();
        assert_eq!(line, "still here\n");
    }

    /// Waits until it is cut; returns when that was, and what the terminal shows.
    #[expect(clippy::wrong_self_convention, reason = "what was cut is over, and nobody may use it again")]
    pub async fn is_cut(mut self, bound: Duration) -> (Timestamp, String) {
        let status = tokio::time::timeout(bound, self.child.wait()).await.expect("it was not cut in time").unwrap();
        let time = Timestamp::now();
        let mut said = String::new();
        self.child.stderr.take().expect("it is piped").read_to_string(&mut said).await.unwrap();
        assert_eq!(status.code(), Some(255), "{said}");
        (time, said)
    }
}

/// Waits until nothing of any session lives on an instance.
pub async fn is_empty(stand: &crate::stand::Stand, instance: &Instance) {
    let empty = poll::until_ok("no session lives", BOUND, || match stand.lab.sessions_alive(&instance.name) {
        0 => Ok(()),
        alive => Err(format!("{alive} alive")),
    });
    empty.await.unwrap();
}
