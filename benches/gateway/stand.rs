//! What is measured: the real gateway process, before a real API server, a real sshd, and a stand-in for many.
//!
//! No controller runs: grants are written as it writes them, so that a thousand of them are there at once, and end at one
//! instant. The gateway reads nothing but them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use http::Request;
use jiff::{SignedDuration, Timestamp};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use lab::ssh::KeyPair;
use lab::{Instance, Lab, Launch, standin};
use russh::keys::HashAlg;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

/// The gateway's rights, as they are shipped.
const GATEWAY_RBAC: &str = include_str!("../../examples/gateway-rbac.yaml");
/// Where all requests are.
const NAMESPACE: &str = "bench";
/// How long the gateway may take to be ready, or any command.
const START_BOUND: Duration = Duration::from_secs(60);
/// How long grants last, unless they are told to end: longer than the benchmark.
const GRANT: SignedDuration = SignedDuration::from_secs(3600);

/// The lab with what the gateway needs in it.
pub struct Stand {
    pub lab: Lab,
    /// The instance with a real sshd.
    pub instance: Instance,
    program: PathBuf,
    admin: Client,
    numbers: AtomicU32,
}

/// A grant, as it stands in the API server.
pub struct Grant {
    pub key: KeyPair,
    pub instance_id: String,
    object: Value,
}

impl Stand {
    /// Starts a lab and installs the product's resources in it; gateways come later.
    pub async fn start(program: PathBuf) -> anyhow::Result<Self> {
        let options = lab::Options::default().instances([Launch::new("web-1")]);
        let lab = Lab::start(options).await?;
        let crds = printed(&program, &["crds"]).await?;
        apply(&lab, &crds).await?;
        let mut wait = lab.kubectl("admin")?;
        wait.args(["wait", "--for", "condition=Established", "--timeout", "60s", "crd", "--all"]);
        run(wait, "").await?;
        let mut namespace = lab.kubectl("admin")?;
        namespace.args(["create", "namespace", NAMESPACE]);
        run(namespace, "").await?;
        lab.kubeconfig_for_service_account("instance-access", "gateway").await?;
        apply(&lab, GATEWAY_RBAC).await?;
        let kubeconfig = Kubeconfig::read_from(lab.kubeconfig("admin")?)?;
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        let (admin, instance) = (Client::try_from(config)?, lab.instance("web-1"));
        Ok(Self { lab, instance, program, admin, numbers: AtomicU32::new(0) })
    }

    /// An address of the lab's own that no instance has.
    pub fn spare_address(&self) -> anyhow::Result<SocketAddr> {
        let IpAddr::V4(taken) = self.instance.private_ip else { anyhow::bail!("the lab's instances have no IPv4") };
        let [a, b, c, _] = taken.octets();
        Ok(SocketAddr::from(([a, b, c, 250], self.lab.ssh_port())))
    }

    /// A number that no made-up instance has yet.
    pub fn next_number(&self) -> u32 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Makes a grant with a key of its own: on the real instance, or on one of that number behind `address`.
    pub async fn grant(&self, name: &str, made_up: Option<(u32, SocketAddr)>) -> anyhow::Result<Grant> {
        let key = self.lab.new_key(name).await?;
        let (instance_id, address) = match made_up {
            None => (self.instance.id.clone(), self.instance.address()),
            Some((number, address)) => {
                let id = format!("i-0bec{number:013x}");
                // AWS knows it, should the gateway ask.
                self.lab.standin().put_instance(standin::Instance {
                    id: id.clone(),
                    region: lab::REGION.to_owned(),
                    availability_zone: format!("{}a", lab::REGION),
                    public_ip: Some(address.ip()),
                    tags: BTreeMap::from([("Name".to_owned(), name.to_owned())]),
                    ..standin::Instance::default()
                });
                (id, address)
            }
        };
        let public = russh::keys::ssh_key::PublicKey::from_openssh(&key.public)?;
        let now = Timestamp::now().round(jiff::Unit::Second)?;
        let object = json!({
            "apiVersion": "instanceaccess.dev/v1alpha1",
            "kind": "InstanceAccess",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {
                "requester": {"username": name},
                "target": {"instanceId": instance_id},
                "osUser": lab::OS_USERS[0],
                "sshPublicKey": key.public,
                "ttlSeconds": 3600,
                "reason": "INC-4711: measuring",
            },
        });
        let status = json!({
            "observedGeneration": 1,
            "conditions": [{
                "type": "Active", "status": "True", "reason": "Granted", "message": "log in",
                "observedGeneration": 1, "lastTransitionTime": now,
            }],
            "grant": {"id": format!("grant-{name}"), "startTime": now, "expirationTime": now + GRANT},
            "instance": {"instanceId": instance_id, "availabilityZone": format!("{}a", lab::REGION)},
            "connection": {
                "method": "Direct", "address": address.ip(), "port": address.port(),
                "command": format!("ssh {}@{}", lab::OS_USERS[0], address.ip()),
            },
            "key": {"type": "ED25519", "bits": 256, "fingerprint": public.fingerprint(HashAlg::Sha256).to_string()},
        });
        let uri = format!("/apis/instanceaccess.dev/v1alpha1/namespaces/{NAMESPACE}/instanceaccesses");
        let request = Request::post(uri).header("content-type", "application/json").body(object.to_string().into())?;
        let mut grant = Grant { key, instance_id, object: self.admin.request(request).await? };
        grant.object["status"] = status;
        self.write(&mut grant).await?;
        Ok(grant)
    }

    /// Has a grant end then.
    pub async fn end_at(&self, grant: &mut Grant, time: Timestamp) -> anyhow::Result<()> {
        // A merge: the gateway has written into status.sessions meanwhile.
        let name = grant.object["metadata"]["name"].as_str().unwrap_or_default();
        let uri = format!("/apis/instanceaccess.dev/v1alpha1/namespaces/{NAMESPACE}/instanceaccesses/{name}/status");
        let body = json!({"status": {"grant": {"expirationTime": time}}}).to_string().into();
        let request = Request::patch(uri).header("content-type", "application/merge-patch+json").body(body)?;
        grant.object = self.admin.request(request).await?;
        Ok(())
    }

    async fn write(&self, grant: &mut Grant) -> anyhow::Result<()> {
        let name = grant.object["metadata"]["name"].as_str().unwrap_or_default();
        let uri = format!("/apis/instanceaccess.dev/v1alpha1/namespaces/{NAMESPACE}/instanceaccesses/{name}/status");
        let body = grant.object.to_string().into();
        let request = Request::put(uri).header("content-type", "application/json").body(body)?;
        grant.object = self.admin.request(request).await?;
        Ok(())
    }

    /// Starts a gateway; returns when it has read all grants.
    pub async fn gateway(&self, name: &str) -> anyhow::Result<Gateway> {
        let dir = self.lab.dir().join(name);
        std::fs::create_dir_all(&dir)?;
        let (host_key, log) = (dir.join("host_key"), dir.join("log"));
        // Freed just now, and asked for again at once: another process would have to be very quick.
        let free = || anyhow::Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?);
        let (ssh, listen) = (free()?, free()?);
        let host = format!("[{}]:{}", ssh.ip(), ssh.port());
        let known_hosts = dir.join("known_hosts");
        let host_key_path = host_key.display().to_string();
        std::fs::write(
            &known_hosts,
            printed(&self.program, &["host-key", "--host-key-file", &host_key_path, &host]).await?,
        )?;
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&log)?;
        let mut command = Command::new(&self.program);
        let kubeconfig = self.lab.kubeconfig_for_service_account("instance-access", "gateway").await?;
        command.env_clear().envs(self.lab.aws_env()).env("KUBECONFIG", kubeconfig).env("HOME", self.lab.dir());
        for name in ["PATH", "RUST_LOG", "_RJEM_MALLOC_CONF", "TOKIO_WORKER_THREADS"] {
            command.envs(std::env::var_os(name).map(|value| (name, value)));
        }
        // So that the lab's warden ends it, should this process be killed.
        command.env(lab::proc::MARK, self.lab.dir());
        command.arg("gateway").arg("--host-key-file").arg(&host_key);
        command.arg("--audit-file").arg(dir.join("audit.jsonl"));
        command.args(["--ssh-listen", &ssh.to_string(), "--listen", &listen.to_string()]);
        // The lab's instances have loopback addresses; the gateway's own is not one of theirs.
        command.args(["--never-dial", "127.0.0.1/32,::1/128", "--ports", &self.lab.ssh_port().to_string()]);
        command.args(["--drain-seconds", "0", "--connections-per-source-max", "20000"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file).kill_on_drop(true);
        let child = command.spawn().context("starting the gateway")?;
        let mut gateway = Gateway { child, ssh, listen, known_hosts };
        let start = Instant::now();
        while !gateway.ask("/readyz").await.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")) {
            if let Some(status) = gateway.child.try_wait()? {
                let log = std::fs::read_to_string(&log).unwrap_or_default();
                anyhow::bail!("the gateway ended with {status}: {}", log.lines().last().unwrap_or_default());
            }
            anyhow::ensure!(start.elapsed() < START_BOUND, "the gateway was not ready within {START_BOUND:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(gateway)
    }

    /// Has the real instance read a key for the next minute.
    pub async fn push(&self, grant: &Grant) -> anyhow::Result<()> {
        self.lab.push_key(&self.instance, lab::OS_USERS[0], &grant.key).await
    }
}

/// The gateway's process; it dies with this.
pub struct Gateway {
    child: Child,
    /// Where clients connect.
    pub ssh: SocketAddr,
    listen: SocketAddr,
    /// Its host key.
    pub known_hosts: PathBuf,
}

impl Gateway {
    /// CPU time so far, in seconds.
    pub fn cpu(&self) -> f64 {
        cpu(self.pid())
    }

    /// Its process.
    pub fn pid(&self) -> i32 {
        self.child.id().map_or(0, |pid| pid.cast_signed())
    }

    /// Resident memory now, in KiB.
    pub fn resident(&self) -> anyhow::Result<f64> {
        self.memory("VmRSS:")
    }

    /// The most resident memory since [`Gateway::forget_most`], in KiB.
    pub fn resident_most(&self) -> anyhow::Result<f64> {
        self.memory("VmHWM:")
    }

    /// Starts a new measure of the most.
    pub fn forget_most(&self) -> anyhow::Result<()> {
        Ok(std::fs::write(format!("/proc/{}/clear_refs", self.pid()), "5")?)
    }

    fn memory(&self, field: &str) -> anyhow::Result<f64> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = text.lines().find_map(|line| line.strip_prefix(field));
        let kib = line.and_then(|line| line.split_whitespace().next()).and_then(|number| number.parse().ok());
        kib.with_context(|| format!("the kernel tells no {field}"))
    }

    async fn ask(&self, path: &str) -> anyhow::Result<String> {
        let mut stream = tokio::net::TcpStream::connect(&self.listen).await?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    /// The sum over all series of its metrics whose line starts so.
    pub async fn metric(&self, series: &str) -> anyhow::Result<f64> {
        let page = self.ask("/metrics").await?;
        let values = page.lines().filter_map(|line| line.strip_prefix(series));
        Ok(values.filter_map(|rest| rest.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }

    /// The bound, in seconds, below which this share of its cuts lay.
    pub async fn cuts_below(&self, share: f64) -> anyhow::Result<String> {
        let page = self.ask("/metrics").await?;
        let series = "instance_access_gateway_cut_lateness_seconds_bucket{le=\"";
        let bucket = |line: &str| {
            let (bound, count) = line.strip_prefix(series)?.split_once("\"} ")?;
            Some((bound.to_owned(), count.parse::<f64>().ok()?))
        };
        let buckets: Vec<_> = page.lines().filter_map(bucket).collect();
        let all = buckets.last().context("no cut was counted")?.1;
        let reached = buckets.into_iter().find(|(_, count)| *count >= all * share);
        Ok(reached.context("no cut was counted")?.0)
    }
}

/// CPU time so far of a process of ours, in seconds.
pub fn cpu(pid: i32) -> f64 {
    /// Ticks a second; Linux has told userspace 100 for ever.
    const TICKS: f64 = 100.0;
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    fields.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / TICKS
}

async fn apply(lab: &Lab, manifest: &str) -> anyhow::Result<()> {
    let mut kubectl = lab.kubectl("admin")?;
    kubectl.args(["apply", "--server-side", "-f", "-"]);
    run(kubectl, manifest).await.map(drop)
}

async fn printed(program: &Path, args: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new(program);
    command.args(args);
    run(command, "").await
}

/// Runs a command to its end, which must be a success; returns what it printed.
pub async fn run(mut command: Command, input: &str) -> anyhow::Result<String> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().with_context(|| format!("starting {command:?}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // It may have ended without reading; its own words tell why.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
    let output = tokio::time::timeout(START_BOUND, child.wait_with_output()).await.context("it takes too long")??;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    anyhow::ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(text)
}
