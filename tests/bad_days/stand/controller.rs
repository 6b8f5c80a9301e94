//! The controller, as a process.

use std::ffi::OsString;
use std::fs::File;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use super::{Disk, SOON};
use anyhow::Context;
use instance_access::api::InstanceAccess;
use jiff::{SignedDuration, Timestamp};
use lab::Lab;
use serde_json::Value;

#[path = "../../common/http.rs"]
mod http;

/// A leader lost its lease to a slow machine before the test did anything to it: it is begun anew.
#[derive(Debug, thiserror::Error)]
#[error("the leader could not renew its lease, on a machine that let it live less than three of eight seconds")]
pub struct TooSlow;

/// The real binary, with all that it needs to be started again and again.
pub struct Controller {
    env: Mutex<Vec<(OsString, OsString)>>,
    /// The audit file as the process names it.
    audit: PathBuf,
    disk: Option<Disk>,
    log: PathBuf,
    listen: SocketAddr,
    /// For those beside it.
    addresses: Addresses,
    child: Mutex<Option<Child>>,
}

/// Addresses of the lab's own. Each controller has one for itself: its port is nobody's while it does not run, and among forty
/// tests that ask for any port of one address, it would soon be another's.
type Addresses = Arc<Mutex<Vec<IpAddr>>>;

/// Where the next one listens.
fn listen(addresses: &Addresses) -> anyhow::Result<SocketAddr> {
    let address =
        addresses.lock().expect("no holder panics").pop().context("a lab has addresses for 44 controllers")?;
    // A port that nobody has on all addresses.
    Ok(TcpListener::bind((address, 0))?.local_addr()?)
}

impl Controller {
    /// Prepares it.
    pub fn new(lab: &Lab, kubeconfig: &Path, disk: Option<Disk>, special: Vec<(&str, String)>) -> anyhow::Result<Self> {
        let mut env: Vec<(OsString, OsString)> = vec![
            ("KUBECONFIG".into(), kubeconfig.into()),
            ("PATH".into(), std::env::var_os("PATH").unwrap_or_default()),
            ("HOME".into(), lab.dir().into()),
            ("RUST_LOG".into(), "info,instance_access=debug".into()),
            // So that it goes with the lab, however the test ends.
            (lab::proc::MARK.into(), lab.dir().into()),
        ];
        let aws = lab.aws_env().into_iter().map(|(name, value)| (name.into(), value.into()));
        env.extend(aws);
        env.extend(special.into_iter().map(|(name, value)| (name.into(), value.into())));
        let addresses: Addresses = Arc::new(Mutex::new(lab.spare_addresses()));
        let audit = disk.as_ref().map_or(lab.dir(), Disk::dir).join("audit.jsonl");
        // The log is on the same disk: it must not matter either.
        let log = disk
            .as_ref()
            .map_or_else(|| lab.dir().join("controller.log"), |disk| disk.outside(&disk.dir().join("controller.log")));
        let listen = listen(&addresses)?;
        Ok(Self { env: Mutex::new(env), audit, disk, log, listen, addresses, child: Mutex::default() })
    }

    /// Another one beside it, on the same audit file, with a log of its own.
    pub fn beside(&self, name: &str) -> anyhow::Result<Self> {
        Ok(Self {
            env: Mutex::new(self.env.lock().expect("no holder panics").clone()),
            audit: self.audit.clone(),
            disk: None,
            log: self.log.with_file_name(format!("{name}.log")),
            listen: listen(&self.addresses)?,
            addresses: Arc::clone(&self.addresses),
            child: Mutex::default(),
        })
    }

    /// The same, on an audit file of its own.
    pub fn apart(&self, name: &str) -> anyhow::Result<Self> {
        let mut other = self.beside(name)?;
        other.audit = self.audit.with_file_name(format!("{name}.jsonl"));
        Ok(other)
    }

    /// Changes its environment; the next start sees it.
    pub fn set_env(&self, name: &str, value: &str) {
        self.env.lock().expect("no holder panics").push((name.into(), value.into()));
    }

    fn command(&self, listen: &str) -> Command {
        let mut command = self.disk.as_ref().map_or_else(|| Command::new(BINARY), |disk| disk.command(BINARY));
        command.env_clear().envs(self.env.lock().expect("no holder panics").iter().cloned());
        command.arg("controller").arg("--audit-file").arg(&self.audit).args(["--listen", listen]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
        command
    }

    /// Starts it.
    pub fn start(&self) -> anyhow::Result<()> {
        let mut command = self.command(&self.listen.to_string());
        command.stderr(File::options().create(true).append(true).open(&self.log)?);
        *self.child.lock().expect("no holder panics") = Some(command.spawn().context("starting the controller")?);
        Ok(())
    }

    /// Starts another one beside it, which is expected to give up: returns what it says.
    pub async fn start_another(&self) -> anyhow::Result<(Option<i32>, String)> {
        let mut command = tokio::process::Command::from(self.command("127.0.0.1:0"));
        let output = tokio::time::timeout(SOON, command.stderr(Stdio::piped()).kill_on_drop(true).output());
        let output = output.await.context("another controller on the same audit file did not give up")??;
        Ok((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()))
    }

    /// SIGKILL.
    pub fn kill(&self) {
        if let Some(mut child) = self.child.lock().expect("no holder panics").take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Sends it a signal, by `kill`'s own word for it.
    pub async fn signal(&self, name: &str) -> anyhow::Result<()> {
        let pid = self.pid().context("it runs")?.to_string();
        let output = lab::ssh::run(tokio::process::Command::new("kill").args([name, &pid])).await?;
        anyhow::ensure!(output.success(), "kill {name}: {}", output.stderr);
        Ok(())
    }

    /// Its process id.
    pub fn pid(&self) -> Option<u32> {
        self.child.lock().expect("no holder panics").as_ref().map(Child::id)
    }

    /// How it ended, if it did.
    pub fn death(&self) -> Option<ExitStatus> {
        self.child.lock().expect("no holder panics").as_mut().and_then(|child| child.try_wait().ok().flatten())
    }

    /// Whether it ended since it could not renew its lease of nine seconds in time, on a machine so slow that this is right: of
    /// the six seconds for which a leader leads unheard, and two to its end, less than three could be lived.
    pub async fn is_lost_to_the_machine(&self) -> bool {
        let is_late = self.death().is_some() && !self.log_of("the lease could not be renewed in time").is_empty();
        // Its last word is that it is late, and bears no time.
        let said = std::fs::metadata(&self.log).and_then(|log| log.modified()).ok();
        let Some(end_time) = said.and_then(|time| Timestamp::try_from(time).ok()).filter(|_| is_late) else {
            return false;
        };
        lab::pace::seconds(end_time - SignedDuration::from_secs(8), end_time).await < 3.0
    }

    /// Waits until it has read the lists.
    pub async fn until_ready(&self) -> anyhow::Result<()> {
        let ready = lab::poll::until("the controller to be ready", SOON, async || {
            if let Some(status) = self.death() {
                if self.is_lost_to_the_machine().await {
                    return Ok(Err(TooSlow.into()));
                }
                return Ok(Err(anyhow::anyhow!("the controller ended, {status}: {}", self.log_of("error"))));
            }
            match self.page("/readyz").await {
                Ok((200, _)) => Ok(Ok(())),
                Ok((status, body)) => Err(format!("{status} {body}")),
                Err(error) => Err(format!("{error:#}")),
            }
        });
        ready.await?
    }

    /// Reads one of its pages.
    pub async fn page(&self, path: &str) -> anyhow::Result<(u16, String)> {
        http::get(self.listen, path).await
    }

    /// The value of a metric that has no labels.
    pub async fn metric(&self, name: &str) -> anyhow::Result<f64> {
        let (_, page) = self.page("/metrics").await?;
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok());
        value.with_context(|| format!("{name} is not among the metrics"))
    }

    /// The log.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The newest lines of the log that name something.
    pub fn log_of(&self, name: &str) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(name)).collect();
        lines[lines.len().saturating_sub(8)..].join("\n")
    }

    /// The audit file as we name it.
    pub fn audit(&self) -> PathBuf {
        self.disk.as_ref().map_or_else(|| self.audit.clone(), |disk| disk.outside(&self.audit))
    }

    /// The disk that the audit file is on.
    pub fn disk(&self) -> &Disk {
        self.disk.as_ref().expect("this stand has no disk of its own")
    }

    /// The audit records of one request, by its uid.
    pub fn records(&self, object: &InstanceAccess) -> Vec<Value> {
        let uid = object.metadata.uid.as_deref().unwrap_or_default();
        let text = std::fs::read_to_string(self.audit()).unwrap_or_default();
        let records = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        records.map(|mut line| line["record"].take()).filter(|record| record["request"]["uid"] == uid).collect()
    }

    /// When the trail took the record of a request's end; none, if it has none.
    pub fn end_recorded_time(&self, object: &InstanceAccess) -> Option<Timestamp> {
        let uid = object.metadata.uid.as_deref().unwrap_or_default();
        let text = std::fs::read_to_string(self.audit()).unwrap_or_default();
        let mut lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let line = lines.find(|line| line["record"]["request"]["uid"] == uid && line["record"]["kind"] == "Ended")?;
        line["time"].as_str()?.parse().ok()
    }

    /// How many records of a kind one request has.
    pub fn recorded(&self, object: &InstanceAccess, kind: &str) -> usize {
        self.records(object).iter().filter(|record| record["kind"] == kind).count()
    }

    /// Checks that one grant was intended. An intention that no write followed, as where the API server was busy, is told
    /// again; it is always the same grant.
    pub fn intended_once(&self, object: &InstanceAccess) -> anyhow::Result<()> {
        let records = self.records(object);
        let grant = object.status.as_ref().and_then(|status| status.grant.as_ref()).context("a grant")?;
        let intended = records.iter().filter(|record| record["kind"] == "GrantIntended").count();
        anyhow::ensure!((1..20).contains(&intended), "{intended} intentions");
        anyhow::ensure!(
            records.iter().all(|record| record["grantId"] == grant.id.as_str()),
            "two grants: {records:#?}"
        );
        // The same id has whoever is granted anew.
        let kinds: Vec<_> = records.iter().filter_map(|record| record["kind"].as_str()).collect();
        let since_granted = kinds.iter().skip_while(|kind| **kind != "Granted");
        anyhow::ensure!(!since_granted.into_iter().any(|kind| *kind == "GrantIntended"), "granted again: {kinds:?}");
        Ok(())
    }

    /// Verifies the trail, against the receipts that these requests' statuses hold.
    pub async fn verify(&self, objects: &[&InstanceAccess]) -> anyhow::Result<String> {
        let audit = self.audit();
        let mut arguments = vec!["audit".to_owned(), "verify".to_owned()];
        for object in objects {
            let pointer = object.status.as_ref().and_then(|status| status.audit.as_ref()).context("status.audit")?;
            arguments.extend(["--head".to_owned(), format!("{}:{}", pointer.sequence, pointer.digest)]);
        }
        arguments.push(audit.to_str().context("a path in UTF-8")?.to_owned());
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        super::tell(&arguments).await
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.kill();
    }
}

const BINARY: &str = env!("CARGO_BIN_EXE_instance-access");
