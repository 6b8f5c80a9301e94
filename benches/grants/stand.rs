//! What is measured: a lab without instances' sshds, the admission policies, and the real controller process.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::Context;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use lab::{Lab, standin};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use super::objects::{LOOP, OURS};

/// The operator's service account.
const OPERATOR: (&str, &str) = ("instance-access", "controller");
/// Who asks.
const REQUESTER: &str = "alice";
/// How long the controller may take to be ready, or to stop.
const START_BOUND: Duration = Duration::from_secs(60);

/// What every account may do, in both groups; the policies decide the rest.
const RBAC: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: bench-operator}
rules:
- {apiGroups: [instanceaccess.dev, loop.example], resources: ["*"], verbs: [get, list, watch, update, patch]}
- {apiGroups: [events.k8s.io, ""], resources: [events], verbs: [create, patch, update]}
- {apiGroups: [admissionregistration.k8s.io, apiextensions.k8s.io], resources: ["*"], verbs: [get, list, watch]}
- {apiGroups: [""], resources: [nodes], verbs: [get, list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: bench-operator}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: bench-operator}
subjects: [{kind: ServiceAccount, namespace: instance-access, name: controller}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: bench-requester}
rules:
- {apiGroups: [instanceaccess.dev, loop.example], resources: [instanceaccesses], verbs: [get, list, watch, create]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: bench-requester}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: bench-requester}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: developers}]
---
apiVersion: v1
kind: Namespace
metadata: {name: bench}
"#;

const POLICY: &str = r#"
apiVersion: instanceaccess.dev/v1alpha1
kind: InstanceAccessPolicy
metadata: {name: developers}
spec:
  effect: Allow
  subjects: [{kind: Group, name: developers}]
  namespaces: [bench]
  targets: {instanceTags: {matchLabels: {env: dev}}}
  osUsers: [ec2-user]
  ttl: {defaultSeconds: 3600, maxSeconds: 3600}
  reason: {required: true, pattern: "^[A-Z]+-[0-9]+: "}
"#;

/// The lab with everything installed in it.
pub struct Stand {
    pub lab: Lab,
    program: PathBuf,
    operator_kubeconfig: PathBuf,
    /// As the requester.
    pub requester: Client,
    /// As the operator's service account.
    pub operator: Client,
    instances: u32,
}

impl Stand {
    /// Starts a lab and installs the product in it; the controller comes later.
    pub async fn start(program: PathBuf) -> anyhow::Result<Self> {
        let aws = standin::Config { journal_entries_max: 1_000_000, ..standin::Config::default() };
        let lab = Lab::start(lab::Options { aws: Some(aws), instances: Vec::new(), ..lab::Options::default() }).await?;
        let (namespace, name) = OPERATOR;
        let operator_kubeconfig = lab.kubeconfig_for_service_account(namespace, name).await?;
        let crds = printed(&program, &["crds"]).await?;
        let account = format!("{namespace}/{name}");
        let admission = printed(&program, &["admission", "--operator-service-account", &account]).await?;
        anyhow::ensure!(
            admission.contains("kind: MutatingAdmissionPolicy"),
            "the admission policies are part of what is measured"
        );
        for group in [OURS, LOOP] {
            apply(&lab, &group.own(&crds)).await?;
        }
        for group in [OURS, LOOP] {
            let name = format!("crd/instanceaccesses.{}", group.0);
            let mut wait = lab.kubectl("admin")?;
            wait.args(["wait", "--for", "condition=Established", "--timeout", "60s", &name]);
            run(wait, "").await?;
            apply(&lab, &group.own(&admission)).await?;
        }
        apply(&lab, RBAC).await?;
        apply(&lab, POLICY).await?;
        let requester = client(&lab.kubeconfig(REQUESTER)?).await?;
        let operator = client(&operator_kubeconfig).await?;
        Ok(Self { lab, program, operator_kubeconfig, requester, operator, instances: 0 })
    }

    /// Makes instances, each seen by AWS alone: nobody logs in.
    pub fn instances(&mut self, count: usize) -> Vec<String> {
        let make = |_| {
            self.instances += 1;
            let number = self.instances;
            let id = format!("i-0bec{number:013x}");
            let [_, a, b, c] = number.to_be_bytes();
            self.lab.standin().put_instance(standin::Instance {
                id: id.clone(),
                region: lab::REGION.to_owned(),
                availability_zone: format!("{}a", lab::REGION),
                private_ip: Some([10, a, b, c].into()),
                public_ip: Some([198, 18 + (b & 1), b, c].into()),
                tags: BTreeMap::from([
                    ("env".to_owned(), "dev".to_owned()),
                    ("Name".to_owned(), format!("bench-{number}")),
                ]),
                ..standin::Instance::default()
            });
            id
        };
        (0..count).map(make).collect()
    }

    /// Starts the controller; returns when it is ready.
    pub async fn controller(&self, args: &[&str]) -> anyhow::Result<Controller> {
        let mut controller = self.spawn(args)?;
        let start = Instant::now();
        while !controller.is_ready().await? {
            anyhow::ensure!(start.elapsed() < START_BOUND, "the controller was not ready within {START_BOUND:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(controller)
    }

    /// Starts the controller; returns at once.
    pub fn spawn(&self, args: &[&str]) -> anyhow::Result<Controller> {
        // Freed just now, and asked for again at once: another process would have to be very quick.
        let port = std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let listen = format!("127.0.0.1:{port}");
        let dir = self.lab.dir();
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.lab.log("controller"))?;
        let mut command = Command::new(&self.program);
        command.arg("controller").args(["--listen", &listen, "--audit-file"]).arg(dir.join("audit.jsonl")).args(args);
        command.env_clear().envs(self.lab.aws_env()).env("KUBECONFIG", &self.operator_kubeconfig).env("HOME", dir);
        for name in ["PATH", "RUST_LOG", "MALLOC_ARENA_MAX", "MALLOC_CONF", "TOKIO_WORKER_THREADS"] {
            command.envs(std::env::var_os(name).map(|value| (name, value)));
        }
        // So that the lab's warden ends it, should this process be killed.
        command.env(lab::proc::MARK, dir);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).kill_on_drop(true);
        let child = command.spawn().context("starting the controller")?;
        Ok(Controller { child, listen, log: self.lab.log("controller") })
    }

    /// Revokes a request, as an administrator.
    pub async fn revoke(&self, namespace: &str, name: &str) -> anyhow::Result<()> {
        let mut kubectl = self.lab.kubectl("admin")?;
        kubectl.args(["--namespace", namespace, "patch", "instanceaccess", name, "--type", "merge", "--patch"]);
        kubectl.arg(r#"{"spec":{"revoke":{"reason":"measuring"}}}"#);
        run(kubectl, "").await.map(drop)
    }

    /// CPU time so far, in seconds, of the API server and etcd.
    pub fn api_cpu(&self) -> f64 {
        let name = |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let pids = lab::processes(self.lab.dir());
        pids.iter().filter(|pid| ["kube-apiserver", "etcd"].contains(&name(pid).trim())).map(|pid| cpu(*pid)).sum()
    }
}

/// The controller's process; it dies with this.
pub struct Controller {
    child: Child,
    listen: String,
    log: PathBuf,
}

/// Resident memory, in MiB.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Now.
    pub now: f64,
    /// At most, since its start.
    pub most: f64,
    /// Of it now: not pages of the program's own file.
    pub anonymous: f64,
}

impl Controller {
    fn pid(&self) -> i32 {
        self.child.id().map_or(0, |pid| pid.cast_signed())
    }

    /// CPU time so far, in seconds.
    pub fn cpu(&self) -> f64 {
        cpu(self.pid())
    }

    /// What it holds.
    pub fn memory(&self) -> anyhow::Result<Memory> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let number =
                line.and_then(|line| line.split_whitespace().next()).and_then(|number| number.parse::<f64>().ok());
            number.map(|kib| kib / 1024.0).with_context(|| format!("the kernel tells no {name}"))
        };
        Ok(Memory { now: field("VmRSS:")?, most: field("VmHWM:")?, anonymous: field("RssAnon:")? })
    }

    async fn ask(&self, path: &str) -> anyhow::Result<String> {
        let mut stream = tokio::net::TcpStream::connect(&self.listen).await?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    /// Whether it can do its work.
    ///
    /// # Errors
    /// If it ended.
    pub async fn is_ready(&mut self) -> anyhow::Result<bool> {
        if let Some(status) = self.child.try_wait()? {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            anyhow::bail!("the controller ended with {status}: {}", log.lines().last().unwrap_or_default());
        }
        Ok(self.ask("/readyz").await.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")))
    }

    /// Its metrics.
    pub async fn metrics(&self) -> anyhow::Result<Metrics> {
        Ok(Metrics(self.ask("/metrics").await?))
    }

    /// Ends it as Kubernetes does.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        let mut kill = Command::new("kill");
        kill.arg(self.pid().to_string());
        run(kill, "").await?;
        let status =
            tokio::time::timeout(START_BOUND, self.child.wait()).await.context("the controller does not stop")??;
        anyhow::ensure!(status.success(), "the controller ended with {status}");
        Ok(())
    }
}

/// A page of metrics.
#[derive(Clone, Debug)]
pub struct Metrics(String);

impl Metrics {
    /// The sum over all series whose line starts so.
    pub fn sum(&self, series: &str) -> f64 {
        let values = self.0.lines().filter_map(|line| line.strip_prefix(series));
        values.filter_map(|rest| rest.rsplit(' ').next()?.parse::<f64>().ok()).sum()
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

async fn client(kubeconfig: &std::path::Path) -> anyhow::Result<Client> {
    let config =
        Config::from_custom_kubeconfig(Kubeconfig::read_from(kubeconfig)?, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

async fn apply(lab: &Lab, manifest: &str) -> anyhow::Result<()> {
    let mut kubectl = lab.kubectl("admin")?;
    kubectl.args(["apply", "--server-side", "-f", "-"]);
    run(kubectl, manifest).await.map(drop)
}

async fn printed(program: &std::path::Path, args: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new(program);
    command.args(args);
    run(command, "").await
}

async fn run(mut command: Command, input: &str) -> anyhow::Result<String> {
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
