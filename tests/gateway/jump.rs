//! A running gateway: the real binary under its own service account.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use lab::{Lab, poll, proc::MARK};
use serde_json::Value;
use tokio::sync::{Mutex, OnceCell};

use crate::controller::{PROGRAM, records};
use crate::stand::{BOUND, Stand, shared};
use crate::tunnel::{Tls, WITHIN};

/// The gateway's rights, as they are shipped.
const GATEWAY_RBAC: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/gateway-rbac.yaml");

/// A running gateway. Dropping it kills it, as `kill -9` does.
pub struct Jump {
    child: Child,
    pub ssh: SocketAddr,
    listen: SocketAddr,
    pub known_hosts: PathBuf,
    pub audit: PathBuf,
    log: PathBuf,
}

static SHARED: OnceCell<Mutex<Option<&'static Jump>>> = OnceCell::const_new();

/// The stand and the gateway of all tests that break neither.
pub async fn both() -> (&'static Stand, &'static Jump) {
    let stand = shared().await;
    let cell = SHARED.get_or_init(async || Mutex::new(None)).await;
    let mut jump = cell.lock().await;
    if jump.is_none() {
        *jump = Some(Box::leak(Box::new(Jump::start(stand, "gateway", &[]).await)));
    }
    (stand, jump.expect("made above"))
}

/// Ends the gateway that tests share.
pub async fn end() {
    if let Some(cell) = SHARED.get()
        && let Some(jump) = cell.lock().await.take()
    {
        // A static is never dropped.
        let _ = Command::new("kill").args(["-KILL", &jump.child.id().to_string()]).status();
    }
}

impl Jump {
    /// Starts one, with more arguments; returns when it is ready.
    pub async fn start(stand: &Stand, name: &str, more: &[&str]) -> Self {
        Self::start_by(Command::new(PROGRAM), stand, name, more, stand.lab.aws_env()).await
    }

    /// Starts one with more arguments, and more in its environment.
    pub async fn start_with(stand: &Stand, name: &str, more: &[&str], env: &[(&str, String)]) -> Self {
        let mut command = Command::new("/usr/bin/env");
        command.args(env.iter().map(|(variable, value)| format!("{variable}={value}"))).arg(PROGRAM);
        Self::start_by(command, stand, name, more, stand.lab.aws_env()).await
    }

    /// Starts one that has no AWS, and does not look for it in the network.
    pub async fn start_without_aws(stand: &Stand, name: &str) -> Self {
        let no_aws = ("AWS_EC2_METADATA_DISABLED".to_owned(), "true".to_owned());
        Self::start_by(Command::new(PROGRAM), stand, name, &[], vec![no_aws]).await
    }

    /// Starts one where an endpoint has a name, and TLS.
    pub async fn start_within(tls: &Tls, stand: &Stand, name: &str) -> Self {
        let mut command = Command::new("/usr/bin/env");
        command.args(["--unset=AWS_ENDPOINT_URL_EC2_INSTANCE_CONNECT", "PATH=/usr/bin:/bin"]);
        command.args(["unshare", "-m", "sh", "-c", WITHIN]).arg(&tls.dir).arg(PROGRAM);
        Self::start_by(command, stand, name, &[], stand.lab.aws_env()).await
    }

    async fn start_by(
        mut command: Command,
        stand: &Stand,
        name: &str,
        more: &[&str],
        aws: Vec<(String, String)>,
    ) -> Self {
        let lab = &stand.lab;
        let kubeconfig = lab.kubeconfig_for_service_account("instance-access", "gateway").await.unwrap();
        stand.kubectl_ok("admin", &["apply", "--server-side", "-f", GATEWAY_RBAC]).await;
        let dir = lab.dir().join(name);
        fs::create_dir_all(&dir).unwrap();
        let (audit, log, host_key) = (dir.join("audit.jsonl"), dir.join("log"), dir.join("host_key"));
        let file = File::options().create(true).append(true).open(&log).unwrap();
        // One of this name may have been there before.
        let begin = usize::try_from(file.metadata().unwrap().len()).unwrap();
        command.env_clear().envs(aws).env("KUBECONFIG", kubeconfig).env("HOME", lab.dir()).env(MARK, lab.dir());
        command.env("RUST_LOG", "info,instance_access=debug");
        command.arg("gateway").args(["--name", name]).arg("--audit-file").arg(&audit).args(more);
        // Endpoints connect to 22 only, wherever an instance's sshd listens.
        let port = format!("{},22", lab.ssh_port());
        for (flag, value) in [
            ("--host-key-file", host_key.to_str().unwrap()),
            ("--listen", "127.0.0.1:0"),
            ("--ssh-listen", "127.0.0.1:0"),
            // The lab's instances have loopback addresses; the gateway's own is not one of theirs.
            ("--never-dial", "127.0.0.1/32,::1/128"),
            ("--ports", &port),
            // All tests are one source, and many at once.
            ("--connections-per-source-max", "2000"),
        ] {
            if !more.contains(&flag) {
                command.args([flag, value]);
            }
        }
        command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let known_hosts = dir.join("known_hosts");
        let mut jump = Self { child: command.spawn().unwrap(), ssh: nowhere, listen: nowhere, known_hosts, audit, log };
        (jump.ssh, jump.listen) = poll::until_ok("the gateway's start", BOUND, || {
            let log = jump.log().split_off(begin);
            if let Ok(Some(status)) = jump.child.try_wait() {
                return Ok(Err(anyhow::anyhow!("the gateway ended with {status}:\n{log}")));
            }
            let at = |line: &str, name| line.split_once(name)?.1.split(' ').next()?.trim().parse().ok();
            let started = log.lines().find_map(|line| Some((at(line, "ssh_listen=")?, at(line, " listen=")?)));
            started.map(Ok).ok_or(log)
        })
        .await
        .unwrap()
        .unwrap();
        let host = format!("[{}]:{}", jump.ssh.ip(), jump.ssh.port());
        let given = more.iter().position(|flag| *flag == "--host-key-file").map(|at| PathBuf::from(more[at + 1]));
        fs::write(&jump.known_hosts, known_hosts_lines(given.as_ref().unwrap_or(&host_key), &host)).unwrap();
        poll::until("a ready gateway", BOUND, async || match jump.get("/readyz").await {
            Ok((200, _)) => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await
        .unwrap();
        jump
    }

    /// All that it logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Asks its own server; returns the status and the body.
    pub async fn get(&self, path: &str) -> anyhow::Result<(u16, String)> {
        crate::controller::get(self.listen, path).await
    }

    /// A sample on its metrics page, by its name and labels; zero if it is not there.
    pub async fn metric(&self, sample: &str) -> f64 {
        let (_, page) = self.get("/metrics").await.unwrap();
        page.lines().find_map(|line| line.strip_prefix(sample)?.trim().parse().ok()).unwrap_or_default()
    }

    /// Its records about a request, of one kind.
    pub fn records(&self, uid: &str, kind: &str) -> Vec<Value> {
        let mut found = records(&self.audit);
        found.retain(|line| line["record"]["request"]["uid"] == uid && line["record"]["kind"] == kind);
        found
    }

    /// Waits for the record of a session's end; returns it.
    pub async fn ended(&self, uid: &str) -> Value {
        let found = poll::until_ok("the record of a session's end", BOUND, || {
            self.records(uid, "SessionEnded").pop().ok_or_else(|| format!("{:?}", records(&self.audit)))
        });
        found.await.unwrap()
    }

    /// `instance-access audit verify`, which must succeed.
    pub fn verifies(&self) {
        let verified = Command::new(PROGRAM).args(["audit", "verify"]).arg(&self.audit).output().unwrap();
        assert!(verified.status.success(), "{verified:?}");
    }

    /// How much memory it has, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let status = fs::read_to_string(Path::new("/proc").join(self.child.id().to_string()).join("status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux says so");
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// Tells it to stop.
    pub fn told_to_stop(&self) {
        self.signal("-TERM");
    }

    /// Sends it a signal.
    pub fn signal(&self, name: &str) {
        let told = Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap();
        assert!(told.success(), "{told}");
    }

    /// Waits for its end.
    pub async fn stops(&mut self, bound: Duration) -> ExitStatus {
        let end = poll::until_ok("the gateway's end", bound, || match self.child.try_wait() {
            Ok(Some(status)) => Ok(status),
            other => Err(format!("{other:?}")),
        });
        end.await.unwrap()
    }

    /// What a client's configuration says of it: the host `gateway`, and every instance behind it.
    pub fn config(&self, lab: &Lab, jump_more: &str, target_more: &str) -> String {
        format!(
            "Host gateway\n  HostName {}\n  Port {}\n  User whoever\n  UserKnownHostsFile {}\n  LogLevel INFO\n{jump_more}\n\
             Host i-* *.team *.internal\n  ProxyJump gateway\n  Port {}\n  User ec2-user\n{target_more}\n",
            self.ssh.ip(),
            self.ssh.port(),
            self.known_hosts.display(),
            lab.ssh_port(),
        )
    }
}

/// What `instance-access host-key` prints.
pub fn known_hosts_lines(host_key_file: &Path, host: &str) -> String {
    let printed = Command::new(PROGRAM).args(["host-key", "--host-key-file"]).arg(host_key_file).arg(host).output();
    let printed = printed.unwrap();
    assert!(printed.status.success(), "{printed:?}");
    String::from_utf8(printed.stdout).unwrap()
}

impl Drop for Jump {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
