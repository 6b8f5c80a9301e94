//! The real binary, as a process under the operator's service account.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use lab::{Lab, poll, proc::MARK};

#[path = "../common/http.rs"]
mod http;
pub use http::get;

/// How long a start may take: half a second on an idle machine.
const START_BOUND: Duration = Duration::from_secs(120);

/// The program that is tested.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_instance-access");

/// The gateways' service account, as the controller and the admission policies are told of it.
pub const GATEWAYS: [&str; 2] = ["--gateway-service-account", "instance-access/gateway"];

/// A running controller. Dropping it kills it, as `kill -9` does.
pub struct Controller {
    child: Child,
    listen: SocketAddr,
}

impl Controller {
    /// Starts it; returns when it is ready.
    pub async fn start(lab: &Lab, audit: &Path, log: &Path) -> anyhow::Result<Self> {
        Self::start_with(lab, audit, log, &[]).await
    }

    /// The same, with more arguments.
    pub async fn start_with(lab: &Lab, audit: &Path, log: &Path, more: &[&str]) -> anyhow::Result<Self> {
        let kubeconfig = lab.kubeconfig_for_service_account("instance-access", "operator").await?;
        let file = File::options().create(true).append(true).open(log)?;
        let begin = usize::try_from(file.metadata()?.len())?;
        let mut command = Command::new(PROGRAM);
        // Nothing of whoever runs the tests: an AWS_PROFILE of theirs would lead away from the lab.
        command.env_clear().envs(lab.aws_env()).env("KUBECONFIG", kubeconfig).env("HOME", lab.dir());
        command.env(MARK, lab.dir()).env("RUST_LOG", "info,instance_access=debug");
        command
            .arg("controller")
            .arg("--audit-file")
            .arg(audit)
            .args(["--listen", "127.0.0.1:0"])
            .args(GATEWAYS)
            .args(more);
        // One person may have several names: whoever is called alice is alice.
        command.env("INSTANCE_ACCESS_PRINCIPAL", "user.username.startsWith('alice') ? 'alice' : user.username");
        // As people's configurations of SSH know it, in the tests of the gateway.
        command.env("INSTANCE_ACCESS_GATEWAY_ADDRESS", "gateway");
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let mut controller = Self { child: command.spawn()?, listen: SocketAddr::from(([127, 0, 0, 1], 0)) };
        controller.listen = poll::until_ok("the controller's start", START_BOUND, || {
            let log = fs::read_to_string(log).unwrap_or_default();
            let log = log.get(begin..).unwrap_or_default();
            if let Ok(Some(status)) = controller.child.try_wait() {
                return Ok(Err(anyhow::anyhow!("the controller ended with {status}:\n{log}")));
            }
            let address = log.lines().find_map(|line| line.split_once(" started listen=")?.1.trim().parse().ok());
            address.map(Ok).ok_or_else(|| format!("its log: {log}"))
        })
        .await??;
        poll::until("a ready controller", START_BOUND, || async {
            let ready = controller.get("/readyz").await?;
            if ready.0 == 200 { Ok(()) } else { Err(anyhow::anyhow!("{ready:?}")) }
        })
        .await?;
        Ok(controller)
    }

    /// Asks its own server; returns the status and the body.
    pub async fn get(&self, path: &str) -> anyhow::Result<(u16, String)> {
        get(self.listen, path).await
    }

    /// Kills it where it stands.
    pub fn kill(mut self) {
        self.child.kill().expect("a child can be killed");
        self.child.wait().expect("a killed child can be waited for");
    }

    /// Tells it to stop, and waits for its end.
    pub async fn terminate(mut self, bound: Duration) -> anyhow::Result<ExitStatus> {
        let told = Command::new("sh").args(["-c", &format!("kill -TERM {}", self.child.id())]).status()?;
        anyhow::ensure!(told.success(), "SIGTERM was not sent: {told}");
        let end = poll::until_ok("the controller's end", bound, || match self.child.try_wait() {
            Ok(Some(status)) => Ok(status),
            other => Err(format!("{other:?}")),
        });
        end.await
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The records of an audit trail, as far as its last line is whole.
pub fn records(trail: &PathBuf) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(trail).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}
