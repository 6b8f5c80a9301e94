//! The lab: a real API server, an AWS stand-in and real sshds, for tests and for a look around.
//!
//! ```text
//! this process ── threads ── AWS stand-in: EC2, EIC, STS, metadata, endpoint tunnels
//!              ── children ─ etcd ◀─ kube-apiserver        127.a.b.1
//!                          ─ sshd of web-1, db-1, …        127.a.b.10…, 127.a.b.110…, asks the metadata for keys
//!                          ─ warden: cleans up, should this process die
//! ```
//! Labs run side by side: each has a directory, a block of loopback addresses and ids of its own. Whatever ends the
//! process, `SIGKILL` included, nothing of its lab stays. It runs as root and as an ordinary user; `setup.sh` beside
//! this crate installs what it needs.
//!
//! Nothing of the product's is known here: a belief shared by both sides is tested by neither.

mod control_plane;
mod ids;
pub mod instances;
pub mod pace;
pub mod poll;
pub mod proc;
mod process;
pub mod ssh;
pub mod standin;
mod workspace;

use std::{
    collections::BTreeMap,
    fmt, fs,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use tokio::process::Command;

use control_plane::ControlPlane;
pub use control_plane::{PEOPLE, default_kubernetes_version, older_kubernetes_version};
use instances::Fleet;
pub use instances::{Instance, Launch, OS_USERS, REGION};
pub use proc::SessionProcess;
use ssh::{KeyPair, Output};
pub use standin::ACCOUNT_ID;
use standin::StandIn;
use workspace::Workspace;

/// Whether a lab runs in a directory that was given as [`Options::dir`].
pub fn is_running(dir: &Path) -> bool {
    workspace::is_running(dir)
}

/// The processes of the lab in a directory, the one that holds the lab aside, seen from outside.
pub fn processes(dir: &Path) -> Vec<i32> {
    proc::of_lab(dir)
}

/// Where the command `lab` keeps its lab unless told otherwise, in the user's cache.
///
/// # Errors
/// If the user has no home.
pub fn default_dir() -> anyhow::Result<PathBuf> {
    Ok(control_plane::cache_dir()?.join("lab"))
}

/// What the lab's AWS knows its client as. AWS's own documentation's example, so that no scanner takes it for a leak.
const ACCESS_KEY: (&str, &str) = ("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY");

/// Called with a line on what is being done.
pub type Progress = Arc<dyn Fn(&str) + Send + Sync>;

/// Which parts a lab has. The default is all of them, in a temporary directory.
#[derive(Clone)]
pub struct Options {
    /// Its directory: made, used again, and never removed. `None`: one in the temporary directory, gone with the lab.
    pub dir: Option<PathBuf>,
    /// Whether there is an API server.
    pub control_plane: bool,
    /// Another Kubernetes version than `setup.sh` builds by default, such as `1.34.4`, and than `KUBEBUILDER_ASSETS`.
    pub kubernetes_version: Option<String>,
    /// Whether the API server writes down what service accounts ask of it, in the log `kube-apiserver-audit`.
    pub audit_log: bool,
    /// How AWS behaves; `None`: there is no AWS, and no instance.
    pub aws: Option<standin::Config>,
    /// What instances there are at the start.
    pub instances: Vec<Launch>,
    /// Told what is being done.
    pub progress: Option<Progress>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            dir: None,
            control_plane: true,
            kubernetes_version: None,
            audit_log: false,
            aws: Some(standin::Config::default()),
            instances: vec![
                Launch::new("web-1").tag("env", "dev"),
                Launch::new("db-1").tag("env", "prod").private(),
                Launch::new("old-1").tag("env", "dev").stopped(),
            ],
            progress: None,
        }
    }
}

impl Options {
    /// An API server, and nothing else.
    pub fn control_plane_only() -> Self {
        Self { aws: None, instances: Vec::new(), ..Self::default() }
    }

    /// AWS and the instances, without an API server.
    pub fn aws_only() -> Self {
        Self { control_plane: false, ..Self::default() }
    }

    /// With other instances at the start.
    pub fn instances(mut self, instances: impl IntoIterator<Item = Launch>) -> Self {
        self.instances = instances.into_iter().collect();
        self
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { dir, control_plane, kubernetes_version, audit_log, aws, instances, progress: _ } = self;
        let mut it = f.debug_struct("Options");
        it.field("dir", dir).field("control_plane", control_plane).field("kubernetes_version", kubernetes_version);
        it.field("audit_log", audit_log).field("aws", aws).field("instances", instances).finish_non_exhaustive()
    }
}

/// A running lab. Dropping it ends everything in it.
#[must_use = "a lab ends when it is dropped"]
pub struct Lab {
    // Dropped from the top: first what runs, last the directories.
    control_plane: Option<ControlPlane>,
    fleet: Option<Fleet>,
    aws: Option<Aws>,
    workspace: Arc<Workspace>,
}

impl fmt::Debug for Lab {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lab").field("dir", &self.dir()).finish_non_exhaustive()
    }
}

impl Lab {
    /// Starts a lab; returns when all of it answers.
    ///
    /// # Errors
    /// If something is missing (the error says what to do), or does not come up.
    pub async fn start(options: Options) -> anyhow::Result<Lab> {
        let Options { dir, control_plane, kubernetes_version, audit_log, aws, instances, progress } = options;
        let start = Instant::now();
        let say = |line: String| {
            if let Some(progress) = &progress {
                progress(&format!("{line} ({:.1} s)", start.elapsed().as_secs_f32()));
            }
        };
        let workspace = Arc::new(Workspace::new(dir.as_deref())?);
        let home = workspace.dir.display();
        say(format!("lab in {home}"));

        let control = async {
            if !control_plane {
                return Ok(None);
            }
            let started = ControlPlane::start(&workspace, kubernetes_version.as_deref(), audit_log).await?;
            say(format!("API server ready at {}", started.url("")));
            anyhow::Ok(Some(started))
        };
        let cloud = async {
            let Some(mut config) = aws else {
                anyhow::ensure!(instances.is_empty(), "instances need AWS: set Options.aws");
                return Ok((None, None));
            };
            let port = workspace.ssh_port()?;
            config.extra_tunnel_ports.push(port); // an ordinary user's sshd cannot have 22
            // Known to the stand-in, so that it judges signatures and refuses strangers, as AWS does.
            config.credentials.push(standin::Credential {
                access_key_id: ACCESS_KEY.0.to_owned(),
                secret_access_key: ACCESS_KEY.1.to_owned(),
                session_token: None,
                account_id: ACCOUNT_ID.to_owned(),
            });
            let aws = Aws::start(config).await?;
            say(format!("AWS stand-in ready at http://{}", aws.standin.api_addr()));
            let fleet = Fleet::new(workspace.clone(), aws.standin.clone(), port)?;
            for launch in instances {
                let instance = fleet.launch(launch).await?;
                say(format!("instance {} is {} at {}", instance.name, instance.state, instance.address()));
            }
            anyhow::Ok((Some(aws), Some(fleet)))
        };
        // Not try_join: both must have ended before the directories go.
        let (control_plane, cloud) = tokio::join!(control, cloud);
        let (aws, fleet) = cloud?;
        Ok(Lab { control_plane: control_plane?, fleet, aws, workspace })
    }

    /// Ends the lab; when this returns, nothing of it is left.
    ///
    /// # Errors
    /// If it had to be given up on.
    pub async fn shutdown(self) -> anyhow::Result<()> {
        // Killing and waiting for the killed blocks, though not for long.
        tokio::task::spawn_blocking(|| drop(self)).await.context("ending the lab")
    }

    /// The lab's directory, mode 0700.
    pub fn dir(&self) -> &Path {
        &self.workspace.dir
    }

    /// Addresses of the lab's own that nothing of it uses: nobody else takes a port there, also while it is let go.
    pub fn spare_addresses(&self) -> Vec<IpAddr> {
        self.workspace.spare_addresses()
    }

    /// The log of one part: `kube-apiserver`, `etcd`, or an instance's name.
    pub fn log(&self, part: &str) -> PathBuf {
        self.workspace.log(part)
    }

    #[track_caller]
    fn control_plane(&self) -> &ControlPlane {
        self.control_plane.as_ref().expect("this lab was started without a control plane")
    }

    #[track_caller]
    fn fleet(&self) -> &Fleet {
        self.fleet.as_ref().expect("this lab was started without AWS")
    }
}

/// The control plane.
impl Lab {
    /// Whether there is one; without, the other functions here panic.
    pub fn has_control_plane(&self) -> bool {
        self.control_plane.is_some()
    }

    /// A kubeconfig for one of [`PEOPLE`], for `kubectl` and for a client crate.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn kubeconfig(&self, user: &str) -> anyhow::Result<PathBuf> {
        self.control_plane().kubeconfig(user)
    }

    /// A kubeconfig for a service account, with a real token; makes the namespace and the account where missing.
    ///
    /// # Errors
    /// If the API server refuses.
    pub async fn kubeconfig_for_service_account(&self, namespace: &str, name: &str) -> anyhow::Result<PathBuf> {
        self.control_plane().kubeconfig_for_service_account(namespace, name).await
    }

    /// `kubectl`, of the API server's version, as one of [`PEOPLE`].
    ///
    /// # Errors
    /// If the kubeconfig cannot be written.
    pub fn kubectl(&self, user: &str) -> anyhow::Result<Command> {
        let mut kubectl = Command::new(self.control_plane().bin().join("kubectl"));
        // A home of the lab's own: kubectl keeps what it discovered there.
        kubectl.env("KUBECONFIG", self.kubeconfig(user)?).env("HOME", self.dir().join("home"));
        Ok(kubectl)
    }

    /// Where etcd is served, without TLS and to this machine alone.
    pub fn etcd_url(&self) -> &str {
        self.control_plane().etcd_url()
    }

    /// Where the programs `kubectl`, `kube-apiserver` and `etcd` are.
    pub fn control_plane_bin(&self) -> &Path {
        self.control_plane().bin()
    }

    /// Kills the API server.
    pub fn stop_api_server(&self) {
        self.control_plane().stop_api_server();
    }

    /// Starts the API server again, at the same address and with the same data; returns when it is ready.
    ///
    /// # Errors
    /// If it does not come up.
    pub async fn start_api_server(&self) -> anyhow::Result<()> {
        self.control_plane().start_api_server().await
    }

    /// Takes a snapshot of etcd.
    ///
    /// # Errors
    /// If etcd does not give it.
    pub async fn snapshot_etcd(&self, to: &std::path::Path) -> anyhow::Result<()> {
        self.control_plane().snapshot_etcd(to).await
    }

    /// Stops the API server, and puts etcd back to what a snapshot has; `bump_revision` versions are skipped.
    ///
    /// # Errors
    /// If `etcdutl` is not built, or does not take the snapshot.
    pub async fn restore_etcd(&self, snapshot: &std::path::Path, bump_revision: u64) -> anyhow::Result<()> {
        self.control_plane().restore_etcd(snapshot, bump_revision).await
    }

    /// Makes the API server hang: connections stay open, nothing is answered.
    ///
    /// # Errors
    /// If it is stopped.
    pub fn freeze_api_server(&self) -> anyhow::Result<()> {
        self.control_plane().freeze_api_server()
    }

    /// Ends a freeze.
    ///
    /// # Errors
    /// If it is stopped.
    pub fn thaw_api_server(&self) -> anyhow::Result<()> {
        self.control_plane().thaw_api_server()
    }
}

/// AWS and the instances.
impl Lab {
    /// The stand-in: its journal, its faults, its instances.
    pub fn standin(&self) -> &StandIn {
        &self.aws.as_ref().expect("this lab was started without AWS").standin
    }

    /// The environment in which AWS's SDKs and command line find the stand-in.
    pub fn aws_env(&self) -> Vec<(String, String)> {
        let api = format!("http://{}", self.standin().api_addr());
        let (id, secret) = ACCESS_KEY;
        [
            ("AWS_ENDPOINT_URL_EC2", api.as_str()),
            ("AWS_ENDPOINT_URL_EC2_INSTANCE_CONNECT", &api),
            ("AWS_ENDPOINT_URL_STS", &api),
            ("AWS_REGION", REGION),
            ("AWS_ACCESS_KEY_ID", id),
            ("AWS_SECRET_ACCESS_KEY", secret),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
    }

    /// The port of every instance's sshd: 22 as root, where it is free.
    pub fn ssh_port(&self) -> u16 {
        self.fleet().port()
    }

    /// The instance of that name, as it is now.
    ///
    /// # Panics
    /// If there is none.
    #[track_caller]
    pub fn instance(&self, name: &str) -> Instance {
        self.fleet().instance(name)
    }

    /// All instances, by name.
    pub fn instances(&self) -> Vec<Instance> {
        self.fleet().instances()
    }

    /// The endpoint through which private instances are reached.
    pub fn endpoint_id(&self) -> &str {
        self.fleet().endpoint_id()
    }

    /// Makes one more instance.
    ///
    /// # Errors
    /// If the name is taken, or its sshd does not come up.
    pub async fn launch_instance(&self, launch: Launch) -> anyhow::Result<Instance> {
        self.fleet().launch(launch).await
    }

    /// Starts a stopped instance; returns when its sshd listens.
    ///
    /// # Errors
    /// If it is not stopped, or its sshd does not come up.
    pub async fn start_instance(&self, name: &str) -> anyhow::Result<Instance> {
        self.fleet().start(name).await
    }

    /// Stops an instance, with everything that lives in sessions on it.
    ///
    /// # Errors
    /// If something on it would not die.
    pub async fn stop_instance(&self, name: &str) -> anyhow::Result<Instance> {
        self.fleet().stop(name).await
    }

    /// Ends an instance for ever. AWS goes on describing it, as terminated.
    ///
    /// # Errors
    /// If something on it would not die.
    pub async fn terminate_instance(&self, name: &str) -> anyhow::Result<Instance> {
        self.fleet().terminate(name).await
    }

    /// Makes an instance fall silent: connections stay open, and nothing is answered, as in a black hole.
    ///
    /// # Errors
    /// If it does not run.
    pub fn freeze_instance(&self, name: &str) -> anyhow::Result<()> {
        self.fleet().freeze(name)
    }

    /// Ends a freeze.
    ///
    /// # Errors
    /// If it does not run.
    pub fn thaw_instance(&self, name: &str) -> anyhow::Result<()> {
        self.fleet().thaw(name)
    }

    /// Replaces an instance's tags.
    pub fn retag_instance(&self, name: &str, tags: BTreeMap<String, String>) -> Instance {
        self.fleet().retag(name, tags)
    }

    /// How many logins on an instance still have a process alive, seen from outside.
    pub fn sessions_alive(&self, name: &str) -> usize {
        let processes = self.session_processes(name);
        processes.into_iter().map(|process| process.connection).collect::<std::collections::BTreeSet<_>>().len()
    }

    /// What lives in sessions on an instance, seen from outside.
    pub fn session_processes(&self, name: &str) -> Vec<SessionProcess> {
        self.fleet().session_processes(name)
    }

    /// Pushes a key as AWS's own client does: signed, and over HTTP. For what tests need done past the product.
    ///
    /// # Errors
    /// If AWS refuses: with its answer.
    pub async fn push_key(&self, instance: &Instance, os_user: &str, key: &KeyPair) -> anyhow::Result<()> {
        let body = serde_json::json!({
            "InstanceId": instance.id,
            "InstanceOSUser": os_user,
            "SSHPublicKey": key.public,
            "AvailabilityZone": instance.availability_zone,
        });
        let mut curl = Command::new(proc::program("curl")?);
        curl.args(["--silent", "--show-error", "--fail-with-body", "--noproxy", "*", "--max-time", "10"]);
        curl.args(["--aws-sigv4", &format!("aws:amz:{REGION}:ec2-instance-connect")]);
        curl.args(["--user", &format!("{}:{}", ACCESS_KEY.0, ACCESS_KEY.1)]);
        curl.args(["--header", "X-Amz-Target: AWSEC2InstanceConnectService.SendSSHPublicKey"]);
        curl.args(["--header", "Content-Type: application/x-amz-json-1.1"]);
        curl.args(["--data-raw", &body.to_string()]).arg(format!("http://{}/", self.standin().api_addr()));
        let pushed = ssh::run(&mut curl).await?;
        anyhow::ensure!(pushed.success(), "SendSSHPublicKey: {}{}", pushed.stdout, pushed.stderr);
        Ok(())
    }
}

/// What a person does.
impl Lab {
    /// Makes an ED25519 key in the lab's directory.
    ///
    /// # Errors
    /// If `ssh-keygen` fails.
    pub async fn new_key(&self, name: &str) -> anyhow::Result<KeyPair> {
        ssh::keygen(&self.dir().join("keys").join(name), &["-t", "ed25519"]).await
    }

    /// The host keys of all instances, under their addresses and ids.
    pub fn known_hosts(&self) -> PathBuf {
        self.fleet().known_hosts()
    }

    /// Writes a client's configuration that uses `key` and trusts the instances; `more` comes first in it, such as a
    /// jump host's own `Host` section.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn ssh_config(&self, key: &KeyPair, more: &str) -> anyhow::Result<PathBuf> {
        let path = self.dir().join("keys").join(format!("config-{}", ids::hex(8)));
        fs::write(&path, ssh::config(key, &self.known_hosts(), more))?;
        Ok(path)
    }

    /// `ssh` with that configuration.
    ///
    /// # Errors
    /// If it is not installed.
    pub fn ssh(&self, config: &Path) -> anyhow::Result<Command> {
        let mut ssh = Command::new(proc::program("ssh")?);
        // Marked, so that a client whose test died goes with the lab.
        ssh.arg("-F").arg(config).env(proc::MARK, self.dir()).env_remove("SSH_AUTH_SOCK").kill_on_drop(true);
        Ok(ssh)
    }

    /// Logs in as `ec2-user`, straight at the instance's address, and runs a command there.
    ///
    /// # Errors
    /// If `ssh` cannot be run, or does not end within a minute. A refusal is an [`Output`].
    pub async fn ssh_login(&self, key: &KeyPair, instance: &Instance, command: &str) -> anyhow::Result<Output> {
        let config = self.ssh_config(key, "")?;
        let mut ssh = self.ssh(&config)?;
        let address = instance.address();
        ssh.args(["-p", &address.port().to_string(), &format!("{}@{}", OS_USERS[0], address.ip()), command]);
        ssh::run(&mut ssh).await
    }
}

/// The stand-in's own thread: tests bring runtimes of their own, which end, and which may be paused.
struct Aws {
    standin: Arc<StandIn>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Aws {
    async fn start(config: standin::Config) -> anyhow::Result<Self> {
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let (started, start) = tokio::sync::oneshot::channel();
        let thread = std::thread::Builder::new().name("lab-aws".to_owned()).spawn(move || {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return drop(started.send(Err(error.into()))),
            };
            runtime.block_on(async {
                let _ = started.send(StandIn::start(config).await.map(Arc::new));
                let _ = stopped.await;
            });
            runtime.shutdown_timeout(Duration::from_secs(1));
        })?;
        let standin = start.await.context("the stand-in's thread died")??;
        Ok(Self { standin, stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Aws {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
