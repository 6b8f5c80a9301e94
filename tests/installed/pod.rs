//! What a kubelet does with a pod, less the container: a process with exactly what the pod's specification says.
//!
//! Replaced are, and nothing else:
//! - the image, by the program that is tested;
//! - `0.0.0.0`, by the pod's address; the ports stay;
//! - paths below a mount, by the volume's directory (a path below none would be on a read-only file system: refused);
//! - the service account's files, by a kubeconfig with the same three things in it: address, certificate, token;
//! - EKS's way to AWS, by an access key of the pod's own, so that AWS's journal names who pushed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use base64::prelude::{BASE64_STANDARD, Engine};
use jiff::Timestamp;
use lab::standin::Credential;
use lab::{Lab, proc::MARK};
use serde_json::{Value, json};

use crate::cluster::{BOUND, NAMESPACE, kubectl};
use crate::http::get;
use crate::link::Link;
use crate::objects::text;

/// The program that is tested.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_instance-access");
/// How often the kubelet looks whether a container has ended.
const LOOK: Duration = Duration::from_millis(20);
/// The certificate's name for those inside of a cluster.
const IN_CLUSTER: &str = "kubernetes.default.svc";

/// The access keys that AWS knows beside the lab's own, one for each pod.
pub fn credentials() -> Vec<Credential> {
    let credential = |number| Credential {
        access_key_id: format!("AKIAIOSFODNN7EXAMPL{number}"),
        secret_access_key: format!("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKE{number}"),
        session_token: None,
        account_id: lab::ACCOUNT_ID.to_owned(),
    };
    (0..4).map(credential).collect()
}

/// One life of a pod's container.
#[derive(Clone, Debug)]
pub struct Life {
    pub pid: u32,
    /// How long the pod's log was when it began, in bytes.
    log_begin: u64,
    pub end: Option<(Timestamp, ExitStatus)>,
}

/// A pod and its one container.
pub struct Pod {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub address: Ipv4Addr,
    pub link: Link,
    pub access_key_id: String,
    pub log: PathBuf,
    grace: Duration,
    container: Value,
    mounts: Vec<(String, PathBuf)>,
    arguments: Vec<String>,
    environment: BTreeMap<String, String>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    child: Option<Child>,
    lives: Vec<Life>,
    /// Whether its node is down: the kubelet restarts nothing.
    down: bool,
}

impl Pod {
    /// Makes the pod of a workload in the API server, and all that its process needs; starts nothing.
    pub async fn new(
        lab: &Lab,
        workload: &Value,
        ordinal: u64,
        address: Ipv4Addr,
        key: Credential,
    ) -> anyhow::Result<Self> {
        let name = format!("{}-{ordinal}", text(workload, "/metadata/name"));
        let mut pod = workload["spec"]["template"].clone();
        pod["apiVersion"] = json!("v1");
        pod["kind"] = json!("Pod");
        pod["metadata"]["name"] = json!(name);
        pod["metadata"]["namespace"] = json!(NAMESPACE);
        let claims = workload["spec"]["volumeClaimTemplates"].as_array().cloned().unwrap_or_default();
        for claim in &claims {
            let claim = text(claim, "/metadata/name");
            let volume = json!({"name": claim, "persistentVolumeClaim": {"claimName": format!("{claim}-{name}")}});
            if pod["spec"]["volumes"].is_null() {
                pod["spec"]["volumes"] = json!([]);
            }
            pod["spec"]["volumes"].as_array_mut().context("a list of volumes")?.push(volume);
        }
        let manifest = lab.dir().join(format!("pod-{name}.json"));
        fs::write(&manifest, pod.to_string())?;
        let made = ["create", "-o", "json", "-f", manifest.to_str().context("a path in UTF-8")?];
        let pod: Value = serde_json::from_str(&kubectl(lab, "admin", &made).await?)?;

        let dir = lab.dir().join("pods").join(&name);
        fs::create_dir_all(&dir)?;
        let containers = pod["spec"]["containers"].as_array().context("containers")?;
        ensure!(containers.len() == 1, "one container a pod is known here: {containers:?}");
        let container = containers[0].clone();
        ensure!(container["command"].is_null(), "the image's own entry point is known here: {container}");
        let mut this = Self {
            labels: serde_json::from_value(pod["metadata"]["labels"].clone())?,
            address,
            link: Link::new(SocketAddr::from((address, 6443)), api_server(lab)?).await?,
            access_key_id: key.access_key_id.clone(),
            log: dir.join("log"),
            // The API server fills in 30 where the chart says nothing.
            grace: Duration::from_secs(
                pod["spec"]["terminationGracePeriodSeconds"].as_u64().context("a grace period")?,
            ),
            container,
            mounts: Vec::new(),
            arguments: Vec::new(),
            environment: BTreeMap::new(),
            state: Mutex::default(),
            name,
        };
        this.mounts = this.mounted(lab, &pod).await?;
        this.set_environment(&pod)?;
        let own = [
            ("AWS_ACCESS_KEY_ID", key.access_key_id),
            ("AWS_SECRET_ACCESS_KEY", key.secret_access_key),
            ("KUBECONFIG", this.kubeconfig(lab, &pod, &dir).await?),
            // What a container has from its image.
            ("HOME", dir.display().to_string()),
            // So that it goes with the lab, however the test ends.
            (MARK, lab.dir().display().to_string()),
        ];
        for (name, value) in own {
            let given = this.environment.insert(name.to_owned(), value);
            ensure!(given.is_none(), "the chart sets {name} itself");
        }
        Ok(this)
    }

    /// The directories that are mounted, by the path in the container.
    async fn mounted(&self, lab: &Lab, pod: &Value) -> anyhow::Result<Vec<(String, PathBuf)>> {
        let volumes = pod["spec"]["volumes"].as_array().cloned().unwrap_or_default();
        let mut mounts = Vec::new();
        for mount in self.container["volumeMounts"].as_array().into_iter().flatten() {
            let name = text(mount, "/name");
            let volume =
                volumes.iter().find(|volume| volume["name"] == name).with_context(|| format!("volume {name}"))?;
            ensure!(
                mount["subPath"].is_null() && mount["subPathExpr"].is_null(),
                "a whole volume is known here: {mount}"
            );
            let dir = if let Some(claim) = volume.pointer("/persistentVolumeClaim/claimName").and_then(Value::as_str) {
                ensure!(mount["readOnly"] != true, "a trail is written: {mount}");
                let dir = lab.dir().join("volumes").join(claim);
                fs::create_dir_all(&dir)?;
                dir
            } else if let Some(secret) = volume.get("secret") {
                let dir = lab.dir().join("pods").join(&self.name).join(name);
                secret_volume(lab, secret, &dir).await?;
                dir
            } else {
                bail!("no kind of volume that is known here: {volume}")
            };
            mounts.push((text(mount, "/mountPath").to_owned(), dir));
        }
        Ok(mounts)
    }

    fn set_environment(&mut self, pod: &Value) -> anyhow::Result<()> {
        for variable in self.container["env"].as_array().into_iter().flatten() {
            let field = variable.pointer("/valueFrom/fieldRef/fieldPath").and_then(Value::as_str);
            let value = match (variable["value"].as_str(), field) {
                (Some(value), None) => value,
                (None, Some("metadata.name")) => text(pod, "/metadata/name"),
                (None, Some("metadata.namespace")) => text(pod, "/metadata/namespace"),
                (None, Some("metadata.uid")) => text(pod, "/metadata/uid"),
                _ => bail!("no variable that is known here: {variable}"),
            };
            ensure!(!value.contains("$("), "no variable inside of another is known here: {variable}");
            self.environment.insert(text(variable, "/name").to_owned(), self.here(value)?);
        }
        for argument in self.container["args"].as_array().into_iter().flatten() {
            let argument = argument.as_str().context("an argument is text")?;
            let argument = match argument.split_once('=') {
                Some((flag, value)) => format!("{flag}={}", self.here(value)?),
                None => self.here(argument)?,
            };
            self.arguments.push(argument);
        }
        Ok(())
    }

    /// A value of the pod's, as it is on this machine.
    fn here(&self, value: &str) -> anyhow::Result<String> {
        let part = |part: &str| {
            if let Some(port) = part.strip_prefix("0.0.0.0:") {
                return Ok(format!("{}:{port}", self.address));
            }
            if !part.starts_with('/') {
                return Ok(part.to_owned());
            }
            let below =
                self.mounts.iter().find_map(|(mount, dir)| Some(dir.join(Path::new(part).strip_prefix(mount).ok()?)));
            let below =
                below.with_context(|| format!("{part} is on no volume, and the root file system is read-only"))?;
            Ok(below.display().to_string())
        };
        Ok(value.split(',').map(part).collect::<anyhow::Result<Vec<_>>>()?.join(","))
    }

    /// What a pod finds in `/var/run/secrets/kubernetes.io/serviceaccount`, with a token that names the pod.
    async fn kubeconfig(&self, lab: &Lab, pod: &Value, dir: &Path) -> anyhow::Result<String> {
        ensure!(pod["spec"]["automountServiceAccountToken"] != false, "the pod of {} has no token", self.name);
        let account = text(pod, "/spec/serviceAccountName");
        let bound = ["--bound-object-kind=Pod", "--bound-object-name", &self.name, "--duration=8h"];
        let token =
            kubectl(lab, "admin", &[&["-n", NAMESPACE, "create", "token", account], &bound[..]].concat()).await?;
        let token_file = dir.join("token");
        fs::write(&token_file, token.trim())?;
        let admin = kubeconfig_of_admin(lab)?;
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "it", "cluster": {
                "server": format!("https://{}:6443", self.address),
                "tls-server-name": IN_CLUSTER,
                "certificate-authority-data": admin["clusters"][0]["cluster"]["certificate-authority-data"],
            }}],
            "users": [{"name": "it", "user": {"tokenFile": token_file}}],
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
            "current-context": "it",
        });
        let path = dir.join("kubeconfig");
        fs::write(&path, config.to_string())?;
        Ok(path.display().to_string())
    }

    /// Starts the container.
    pub fn start(&self) -> anyhow::Result<()> {
        let mut state = self.state();
        let log = File::options().create(true).append(true).open(&self.log)?;
        let log_begin = log.metadata()?.len();
        let mut command = Command::new(PROGRAM);
        command.args(&self.arguments).env_clear().envs(&self.environment).current_dir("/").process_group(0);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("starting {}", self.name))?;
        state.lives.push(Life { pid: child.id(), log_begin, end: None });
        state.child = Some(child);
        state.down = false;
        Ok(())
    }

    /// Looks after the container: one that ended is started again, unless its node is down.
    fn look_after(&self) -> anyhow::Result<()> {
        let ended = {
            let mut state = self.state();
            let ended = state.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            if let Some(status) = ended {
                state.child = None;
                state.lives.last_mut().context("it lived")?.end = Some((Timestamp::now(), status));
            }
            ended.is_some() && !state.down
        };
        if ended { self.start() } else { Ok(()) }
    }

    /// `kill -9`, and its node with it: it comes back when [`Pod::start`] is called.
    pub fn dies(&self) -> anyhow::Result<()> {
        let mut state = self.state();
        state.down = true;
        state.child.as_mut().context("it runs")?.kill()?;
        Ok(())
    }

    /// Sends the process a signal, by `kill`'s own word for it.
    pub fn signal(&self, name: &str) -> anyhow::Result<()> {
        let pid = self.life().context("it runs")?.pid.to_string();
        let sent = Command::new("kill").args([name, &pid]).status()?;
        ensure!(sent.success(), "kill {name}: {sent}");
        Ok(())
    }

    /// Tells it to stop for good, as a deletion of the pod does, and waits for its end: it has its grace period.
    pub async fn goes(&self) -> anyhow::Result<()> {
        self.state().down = true;
        self.signal("-TERM")?;
        let gone = || match self.life() {
            None => Ok(()),
            Some(life) => Err(format!("process {} runs", life.pid)),
        };
        let gone = lab::poll::until_ok("its end, within the grace period", self.grace, gone).await;
        gone.with_context(|| self.last_words(""))
    }

    /// The life that it has now; none if it does not run.
    pub fn life(&self) -> Option<Life> {
        self.state().lives.last().filter(|life| life.end.is_none()).cloned()
    }

    /// All its lives.
    pub fn lives(&self) -> Vec<Life> {
        self.state().lives.clone()
    }

    /// The life that bears this name in the Lease.
    pub fn life_of(&self, holder: &str) -> Option<Life> {
        self.lives().into_iter().find(|life| holder.split('_').any(|part| part == life.pid.to_string()))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    /// The address of one of its ports, by the port's name.
    pub fn port(&self, name: &str) -> anyhow::Result<SocketAddr> {
        let mut ports = self.container["ports"].as_array().into_iter().flatten();
        let port =
            ports.find(|port| port["name"] == name).with_context(|| format!("a port {name} of {}", self.name))?;
        let number = port["containerPort"].as_u64().context("a number")?;
        Ok((self.address, u16::try_from(number)?).into())
    }

    /// Asks what its readiness probe asks.
    pub async fn probe(&self) -> anyhow::Result<()> {
        let probe = &self.container["readinessProbe"]["httpGet"];
        let address = self.port(text(probe, "/port"))?;
        let (status, body) = get(address, text(probe, "/path")).await?;
        ensure!((200..400).contains(&status), "{}: {status}: {body}", self.name);
        Ok(())
    }

    /// Waits until it is ready, as its readiness probe has it.
    pub async fn until_ready(&self) -> anyhow::Result<()> {
        let ready = lab::poll::until(&format!("{} to be ready", self.name), BOUND, || self.probe()).await;
        ready.with_context(|| self.last_words(""))
    }

    /// Whether it runs this command of the program's.
    pub fn runs(&self, command: &str) -> bool {
        self.arguments.first().is_some_and(|it| it == command)
    }

    /// The file that its trail is in.
    pub fn trail(&self) -> anyhow::Result<PathBuf> {
        Ok(self.environment.get("INSTANCE_ACCESS_AUDIT_FILE").context("an audit file")?.into())
    }

    /// A variable that the chart gave it.
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.environment.get(name).map(String::as_str)
    }

    /// What it has logged since a life of it began, and before the next one did.
    pub fn said(&self, life: &Life) -> anyhow::Result<String> {
        let mut log = fs::read(&self.log)?;
        let next = self.lives().into_iter().map(|it| it.log_begin).find(|begin| *begin > life.log_begin);
        if let Some(end) = next {
            log.truncate(usize::try_from(end)?);
        }
        let said = log.get(usize::try_from(life.log_begin)?..).context("a log only grows")?;
        Ok(String::from_utf8_lossy(said).into_owned())
    }

    /// The newest lines of its log that hold something.
    pub fn last_words(&self, holding: &str) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(holding)).collect();
        format!("{}: {}", self.name, lines[lines.len().saturating_sub(12)..].join("\n"))
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if let Some(mut child) = self.state().child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Looks after pods until the last of them is dropped.
pub fn kubelet(pods: &[Arc<Pod>]) {
    let pods: Vec<Weak<Pod>> = pods.iter().map(Arc::downgrade).collect();
    tokio::spawn(async move {
        loop {
            let left: Vec<Arc<Pod>> = pods.iter().filter_map(Weak::upgrade).collect();
            if left.is_empty() {
                return;
            }
            for pod in left {
                if let Err(error) = pod.look_after() {
                    eprintln!("{}: {error:#}", pod.name);
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    });
}

/// A Secret as a volume: the links and the mode that a kubelet gives it.
async fn secret_volume(lab: &Lab, volume: &Value, dir: &Path) -> anyhow::Result<()> {
    let name = text(volume, "/secretName");
    let secret = kubectl(lab, "admin", &["-n", NAMESPACE, "get", "secret", name, "-o", "json"]).await?;
    let secret: Value = serde_json::from_str(&secret)?;
    let data = dir.join("..2026_03_01");
    fs::create_dir_all(&data)?;
    symlink("..2026_03_01", dir.join("..data"))?;
    let mode = u32::try_from(volume["defaultMode"].as_u64().unwrap_or(0o644))?;
    let items = match volume["items"].as_array() {
        Some(items) => {
            items.iter().map(|item| (text(item, "/key").to_owned(), text(item, "/path").to_owned())).collect()
        }
        None => secret["data"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, _)| (key.clone(), key.clone()))
            .collect::<Vec<_>>(),
    };
    for (key, path) in items {
        let content = secret["data"][&key].as_str().with_context(|| format!("{name} has no {key}"))?;
        fs::write(data.join(&path), BASE64_STANDARD.decode(content)?)?;
        fs::set_permissions(data.join(&path), PermissionsExt::from_mode(mode))?;
        symlink(Path::new("..data").join(&path), dir.join(&path))?;
    }
    Ok(())
}

fn kubeconfig_of_admin(lab: &Lab) -> anyhow::Result<Value> {
    Ok(serde_json::from_slice(&fs::read(lab.kubeconfig("admin")?)?)?)
}

fn api_server(lab: &Lab) -> anyhow::Result<SocketAddr> {
    let admin = kubeconfig_of_admin(lab)?;
    let server = text(&admin, "/clusters/0/cluster/server");
    Ok(server.strip_prefix("https://").context("an address by https")?.parse()?)
}
