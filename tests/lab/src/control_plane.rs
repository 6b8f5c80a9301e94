//! The control plane: a real etcd and a real kube-apiserver, and kubeconfigs for people and service accounts.
//!
//! There are no controllers: no garbage collection, no namespace deletion, no pods.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use anyhow::Context;
use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::{Value, json};

use crate::{ids, poll, proc, process::Process, ssh, workspace::Workspace};

/// The people who may talk to the API server, each with their groups. What they may do there is for RBAC to say.
pub const PEOPLE: [(&str, &[&str]); 7] = [
    ("admin", &["system:masters"]),
    ("alice", &["developers"]),
    ("bob", &["developers"]),
    ("carol", &["developers"]),
    ("erin", &["leads"]),
    ("sam", &["security"]),
    ("mallory", &[]),
];

/// How long the API server may take to be ready: 3 s on an idle machine, more on a starved one.
const READY_BOUND: Duration = Duration::from_secs(180);
/// How long one question to the API server may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a service account's token lives: longer than any test, and less than the API server's maximum.
const TOKEN_SECONDS: u32 = 8 * 3600;

/// What the API server writes down where it is to: who asked for what, of service accounts; no bodies.
const AUDIT_POLICY: &str = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: Metadata, userGroups: ["system:serviceaccounts"]}
- {level: None}
"#;

/// The Kubernetes version that `setup.sh` builds unless told otherwise.
///
/// It stands in one place, the `go.mod` that it is built from.
pub fn default_kubernetes_version() -> &'static str {
    let go_mod = include_str!("../control-plane/kubernetes/go.mod");
    let required = go_mod.lines().find_map(|line| line.strip_prefix("require k8s.io/kubernetes v"));
    required.expect("the module requires k8s.io/kubernetes").trim()
}

/// The Kubernetes version below 1.36 that the tests run on besides, and that `make test` has built.
pub fn older_kubernetes_version() -> &'static str {
    include_str!("../control-plane/older").trim()
}

/// A running control plane.
#[derive(Debug)]
pub(crate) struct ControlPlane {
    dir: PathBuf,
    bin: PathBuf,
    log: PathBuf,
    audit_log: Option<PathBuf>,
    address: SocketAddr,
    etcd_url: String,
    etcd_peer: String,
    etcd_data: Mutex<PathBuf>,
    etcd_log: PathBuf,
    tokens: BTreeMap<String, String>,
    etcd: Mutex<Option<Process>>,
    api_server: Mutex<Option<Process>>,
}

impl ControlPlane {
    /// Starts etcd and the API server; returns when the API server says that it is ready.
    pub async fn start(workspace: &Workspace, version: Option<&str>, audit_log: bool) -> anyhow::Result<Self> {
        let bin = binaries(version)?;
        let ip = workspace.address(1);
        let dir = workspace.dir.join("control-plane");
        fs::create_dir_all(&dir)?;

        let mut people = String::new();
        let mut tokens = BTreeMap::new();
        for (name, groups) in PEOPLE {
            let token = ids::token();
            people += &format!("{token},{name},{name},\"{}\"\n", groups.join(","));
            tokens.insert(name.to_owned(), token);
        }
        fs::write(dir.join("people.csv"), people)?;
        let signing_key = dir.join("service-account.key");
        if !signing_key.exists() {
            ssh::keygen(&signing_key, &["-t", "ecdsa", "-m", "PEM"]).await?;
        }

        let this = Self {
            etcd_url: format!("http://{ip}:2379"),
            etcd_peer: format!("http://{ip}:2380"),
            etcd_data: Mutex::new(dir.join("etcd")),
            etcd_log: workspace.log("etcd"),
            address: SocketAddr::new(ip, 6443),
            log: workspace.log("kube-apiserver"),
            audit_log: audit_log.then(|| workspace.log("kube-apiserver-audit")),
            dir,
            bin,
            tokens,
            etcd: Mutex::default(),
            api_server: Mutex::default(),
        };
        this.start_etcd()?;
        this.start_api_server().await?;
        Ok(this)
    }

    /// A program with nothing of our environment but what it needs: proxies and tokens are not its business.
    fn program(&self, path: &Path) -> Command {
        let mut command = Command::new(path);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", &self.dir);
        command.env(proc::MARK, self.dir.parent().unwrap_or(&self.dir)).current_dir(&self.dir);
        command
    }

    /// Starts the API server, with the same address, identity and data as before; returns when it is ready.
    pub async fn start_api_server(&self) -> anyhow::Result<()> {
        let mut command = self.program(&self.bin.join("kube-apiserver"));
        // It is CPU-bound: four times the memory between two collections makes it 1.4 times as fast.
        command.env("GOGC", "400");
        // But a hundred thousand requests would be 24 GB of garbage, more than a machine has.
        command.env("GOMEMLIMIT", "8GiB");
        let path = |name: &str| self.dir.join(name).display().to_string();
        let ip = self.address.ip().to_string();
        for (flag, value) in [
            ("etcd-servers", self.etcd_url.as_str()),
            ("bind-address", &ip),
            ("advertise-address", &ip),
            ("secure-port", &self.address.port().to_string()),
            ("cert-dir", &path("certificates")),
            // The Service `kubernetes` must not point at a loopback address, and nobody looks for it here.
            ("endpoint-reconciler-type", "none"),
            ("service-cluster-ip-range", "10.96.0.0/16"),
            ("authorization-mode", "RBAC"),
            ("token-auth-file", &path("people.csv")),
            ("service-account-issuer", "https://kubernetes.default.svc"),
            ("service-account-key-file", &path("service-account.key")),
            ("service-account-signing-key-file", &path("service-account.key")),
            // It would make every pod wait for a controller that is not there.
            ("disable-admission-plugins", "ServiceAccount"),
        ] {
            command.arg(format!("--{flag}={value}"));
        }
        if let Some(log) = &self.audit_log {
            fs::write(self.dir.join("audit-policy.yaml"), AUDIT_POLICY)?;
            command.arg(format!("--audit-policy-file={}", path("audit-policy.yaml")));
            command.arg(format!("--audit-log-path={}", log.display()));
        }
        {
            let mut api_server = lock(&self.api_server);
            if api_server.as_mut().is_some_and(|it| it.death().is_none()) {
                return Ok(());
            }
            *api_server = Some(Process::spawn("kube-apiserver", command, self.log.clone())?);
        }
        let ready = poll::until("the API server to be ready", READY_BOUND, async || {
            for part in [&self.etcd, &self.api_server] {
                if let Some(death) = lock(part).as_mut().and_then(Process::death) {
                    return Ok(Err(anyhow::anyhow!(death)));
                }
            }
            let answer = self.client()?.get(self.url("/readyz")).bearer_auth(&self.tokens["admin"]).send().await?;
            let (status, body) = (answer.status(), answer.text().await?);
            let unready: Vec<_> = body.lines().filter(|line| line.starts_with("[-]")).collect();
            if status.is_success() { Ok(Ok(())) } else { Err(anyhow::anyhow!("{status}: {}", unready.join(", "))) }
        });
        ready.await?
    }

    pub fn etcd_url(&self) -> &str {
        &self.etcd_url
    }

    fn start_etcd(&self) -> anyhow::Result<()> {
        let (url, peer) = (&self.etcd_url, &self.etcd_peer);
        let mut etcd = self.program(&self.bin.join("etcd"));
        etcd.arg("--data-dir").arg(&*self.etcd_data.lock().expect("no holder of this lock panics"));
        etcd.args(["--listen-client-urls", url, "--advertise-client-urls", url]);
        etcd.args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]);
        // Its data need not survive a power cut, and the disk is the slowest thing on a test machine.
        etcd.args(["--initial-cluster", &format!("default={peer}"), "--unsafe-no-fsync", "--log-level", "warn"]);
        *lock(&self.etcd) = Some(Process::spawn("etcd", etcd, self.etcd_log.clone())?);
        Ok(())
    }

    /// Takes a snapshot of etcd, by its own maintenance API.
    pub async fn snapshot_etcd(&self, to: &Path) -> anyhow::Result<()> {
        let client = reqwest::Client::builder().no_proxy().timeout(ASK_TIMEOUT).build()?;
        let answer = client.post(format!("{}/v3/maintenance/snapshot", self.etcd_url)).body("{}").send().await?;
        let pieces = answer.error_for_status()?.bytes().await?;
        let mut snapshot = Vec::new();
        for piece in serde_json::Deserializer::from_slice(&pieces).into_iter::<Value>() {
            let piece = piece?;
            let blob = piece["result"]["blob"].as_str().with_context(|| format!("a piece of a snapshot: {piece}"))?;
            snapshot.extend(BASE64_STANDARD.decode(blob)?);
        }
        Ok(fs::write(to, snapshot)?)
    }

    /// Puts etcd back to what a snapshot has, as an administrator does: the API server is stopped before, and stays so.
    ///
    /// `bump_revision` is how many versions are skipped, so that none is given twice; Kubernetes' manual wants many.
    pub async fn restore_etcd(&self, snapshot: &Path, bump_revision: u64) -> anyhow::Result<()> {
        self.stop_api_server();
        *lock(&self.etcd) = None;
        let data = self.dir.join(format!("etcd-{}", ids::hex(8)));
        let mut etcdutl = self.program(&etcdutl()?);
        etcdutl.args(["snapshot", "restore"]).arg(snapshot).arg("--data-dir").arg(&data);
        etcdutl.args(["--initial-advertise-peer-urls", &self.etcd_peer]);
        etcdutl.args(["--initial-cluster", &format!("default={}", self.etcd_peer)]);
        if bump_revision > 0 {
            etcdutl.args(["--bump-revision", &bump_revision.to_string(), "--mark-compacted"]);
        }
        let restored = ssh::run(&mut tokio::process::Command::from(etcdutl)).await?;
        anyhow::ensure!(restored.success(), "etcdutl: {}{}", restored.stdout, restored.stderr);
        *self.etcd_data.lock().expect("no holder of this lock panics") = data;
        self.start_etcd()
    }

    /// Kills the API server. etcd and its data stay.
    pub fn stop_api_server(&self) {
        *lock(&self.api_server) = None;
    }

    /// Makes the API server hang: connections stay open, nothing is answered.
    pub fn freeze_api_server(&self) -> anyhow::Result<()> {
        lock(&self.api_server).as_ref().context("the API server is stopped")?.freeze()
    }

    /// Ends a freeze.
    pub fn thaw_api_server(&self) -> anyhow::Result<()> {
        lock(&self.api_server).as_ref().context("the API server is stopped")?.thaw()
    }

    /// The directory with the programs.
    pub fn bin(&self) -> &Path {
        &self.bin
    }

    pub fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.address)
    }

    /// The kubeconfig of one of [`PEOPLE`].
    ///
    /// # Panics
    /// If there is no such person: the test is wrong.
    pub fn kubeconfig(&self, user: &str) -> anyhow::Result<PathBuf> {
        let known = || PEOPLE.map(|(name, _)| name).join(", ");
        let token = self.tokens.get(user).unwrap_or_else(|| panic!("nobody is called {user}; there are {}", known()));
        self.write_kubeconfig(user, token, "default")
    }

    /// The kubeconfig of a service account, with a token that the API server issued; makes both where they are missing.
    pub async fn kubeconfig_for_service_account(&self, namespace: &str, name: &str) -> anyhow::Result<PathBuf> {
        let metadata = |name: &str| json!({"metadata": {"name": name}});
        self.create("/api/v1/namespaces", metadata(namespace)).await?;
        let accounts = format!("/api/v1/namespaces/{namespace}/serviceaccounts");
        self.create(&accounts, metadata(name)).await?;
        let request = json!({"spec": {"expirationSeconds": TOKEN_SECONDS}});
        let token = self.create(&format!("{accounts}/{name}/token"), request).await?;
        let token =
            token.as_ref().and_then(|it| it["status"]["token"].as_str()).context("the API server issued no token")?;
        self.write_kubeconfig(&format!("{namespace}.{name}"), token, namespace)
    }

    /// Creates an object as admin; `None` if it was there.
    async fn create(&self, path: &str, body: Value) -> anyhow::Result<Option<Value>> {
        let answer = self.client()?.post(self.url(path)).bearer_auth(&self.tokens["admin"]).json(&body).send().await?;
        let status = answer.status();
        let body: Value = answer.json().await.with_context(|| format!("POST {path}: {status}"))?;
        match status {
            reqwest::StatusCode::CONFLICT => Ok(None),
            _ if status.is_success() => Ok(Some(body)),
            _ => anyhow::bail!("POST {path}: {status}: {}", body["message"].as_str().unwrap_or_default()),
        }
    }

    fn write_kubeconfig(&self, name: &str, token: &str, namespace: &str) -> anyhow::Result<PathBuf> {
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "lab", "cluster": {
                "server": self.url(""),
                "certificate-authority-data": BASE64_STANDARD.encode(self.certificate()?),
            }}],
            "users": [{"name": name, "user": {"token": token}}],
            "contexts": [{"name": name, "context": {"cluster": "lab", "user": name, "namespace": namespace}}],
            "current-context": name,
        });
        let path = self.dir.join(format!("{name}.kubeconfig"));
        // JSON is YAML. Replaced in one step: somebody may be reading it.
        let new = self.dir.join(format!(".{name}.{}", ids::hex(8)));
        fs::write(&new, serde_json::to_vec_pretty(&config)?)?;
        fs::rename(&new, &path)?;
        Ok(path)
    }

    /// The API server's own certificate, which it signed itself when it first started.
    fn certificate(&self) -> anyhow::Result<Vec<u8>> {
        fs::read(self.dir.join("certificates/apiserver.crt")).context("the API server has no certificate yet")
    }

    fn client(&self) -> anyhow::Result<reqwest::Client> {
        let roots = reqwest::Certificate::from_pem_bundle(&self.certificate()?)?;
        Ok(reqwest::Client::builder().no_proxy().tls_certs_only(roots).timeout(ASK_TIMEOUT).build()?)
    }
}

fn lock(process: &Mutex<Option<Process>>) -> MutexGuard<'_, Option<Process>> {
    process.lock().expect("no holder of this lock panics")
}

/// Where the programs are: `KUBEBUILDER_ASSETS`, unless a version is asked for; else where `setup.sh` puts them.
fn binaries(version: Option<&str>) -> anyhow::Result<PathBuf> {
    let assets = std::env::var_os("KUBEBUILDER_ASSETS").filter(|it| !it.is_empty());
    let (bin, advice) = match (assets, version) {
        (Some(assets), None) => (PathBuf::from(assets), "KUBEBUILDER_ASSETS names this directory".to_owned()),
        (_, version) => {
            let advice = version.map_or_else(String::new, |it| format!(" --kubernetes {it}"));
            let bin =
                cache_dir()?.join("control-plane").join(version.unwrap_or(default_kubernetes_version())).join("bin");
            (bin, format!("run tests/lab/setup.sh{advice}"))
        }
    };
    for program in ["etcd", "kube-apiserver", "kubectl"] {
        anyhow::ensure!(bin.join(program).is_file(), "there is no {program} in {}; {advice}", bin.display());
    }
    Ok(bin)
}

/// etcd's tool for snapshots, where `setup-go-tool.sh` puts it.
fn etcdutl() -> anyhow::Result<PathBuf> {
    let go_mod = include_str!("../etcdutl/go.mod");
    let version = go_mod.lines().find_map(|line| line.split_once("go.etcd.io/etcd/etcdutl/v3 v"));
    let version = version.and_then(|(_, rest)| rest.split_whitespace().next()).context("a version of etcdutl")?;
    let program = cache_dir()?.join("etcdutl").join(version).join("etcdutl");
    anyhow::ensure!(program.is_file(), "there is no {}; run tests/lab/setup-go-tool.sh etcdutl", program.display());
    Ok(program)
}

/// This user's cache, where `setup.sh` builds.
pub(crate) fn cache_dir() -> anyhow::Result<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|it| !it.is_empty()).map(PathBuf::from);
    let cache = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
    Ok(cache.context("neither HOME nor XDG_CACHE_HOME is set")?.join("instance-access"))
}
