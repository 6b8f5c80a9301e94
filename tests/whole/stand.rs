//! The stand: a lab with the product installed on it and a controller at work.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use lab::ssh::{self, Output};
use lab::{Instance, Lab, Launch, Options, pace, poll};
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::sync::{Mutex, MutexGuard, OnceCell};

use crate::controller::{Controller, GATEWAYS, PROGRAM, records};
use crate::history::{History, text};
use crate::request::{Draft, seconds};

/// How long anything may take that takes moments on an idle machine.
pub const BOUND: Duration = Duration::from_secs(120);
/// How long the end of a grant of 120 s may take from its beginning.
pub const END_BOUND: Duration = Duration::from_secs(300);

/// A lab with the product installed on it.
pub struct Stand {
    // Dropped from the top: the controller before the lab that it works on.
    controller: Mutex<Option<Controller>>,
    watch: tokio::task::JoinHandle<()>,
    breaking: Mutex<()>,
    pub history: History,
    pub audit: PathBuf,
    pub lab: Lab,
}

/// The operator's rights, as they are shipped.
pub const OPERATOR_RBAC: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/operator-rbac.yaml");

static SHARED: OnceCell<Stand> = OnceCell::const_new();
static BREAKABLE: OnceCell<Stand> = OnceCell::const_new();

/// The stand of all tests that break nothing.
pub async fn shared() -> &'static Stand {
    SHARED.get_or_init(|| Stand::start("shared")).await
}

/// The stand of the tests that kill the controller. What they break, they mend before they let the guard go.
pub async fn breakable() -> (&'static Stand, MutexGuard<'static, ()>) {
    let stand = BREAKABLE.get_or_init(|| Stand::start("breakable")).await;
    (stand, stand.breaking().await)
}

impl Stand {
    /// Starts one more. With `INSTANCE_ACCESS_WHOLE_DIR` set, its logs stay there under its name.
    pub async fn start(name: &str) -> Self {
        let dir = std::env::var_os("INSTANCE_ACCESS_WHOLE_DIR").map(|dir| Path::new(&dir).join(name));
        let instances = [
            Launch::new("web-1").tag("env", "dev"),
            Launch::new("db-1").tag("env", "dev").private(),
            Launch::new("vault-1").tag("env", "prod"),
        ];
        let lab = Lab::start(Options { dir, ..Options::default() }.instances(instances)).await.unwrap();
        install(&lab).await;
        let (history, watch) = History::watch(&lab.kubeconfig("admin").unwrap()).await.unwrap();
        let audit = lab.dir().join("audit.jsonl");
        let stand = Self { controller: Mutex::default(), watch, breaking: Mutex::default(), history, audit, lab };
        stand.apply(&developers()).await;
        stand.start_controller().await;
        stand
    }

    /// Starts the controller again, with the same audit trail.
    pub async fn start_controller(&self) {
        let log = self.lab.dir().join("controller.log");
        *self.controller.lock().await = Some(Controller::start(&self.lab, &self.audit, &log).await.unwrap());
    }

    /// Takes the controller away from the stand, to end it.
    pub async fn controller(&self) -> Controller {
        self.controller.lock().await.take().expect("a controller runs")
    }

    /// `kill -9`.
    pub async fn kill_controller(&self) {
        self.controller().await.kill();
    }

    /// A sample on the controller's metrics page, by its name and labels; zero if it is not there.
    pub async fn metric(&self, sample: &str) -> f64 {
        let page = self.metrics().await;
        page.lines().find_map(|line| line.strip_prefix(sample)?.trim().parse().ok()).unwrap_or_default()
    }

    /// The controller's metrics page.
    pub async fn metrics(&self) -> String {
        let controller = self.controller.lock().await;
        let (status, page) = controller.as_ref().expect("a controller runs").get("/metrics").await.unwrap();
        assert_eq!(status, 200, "{page}");
        page
    }

    /// A request in the making, by one of `lab::PEOPLE`, of that name in the namespace `team`.
    pub fn request<'a>(&'a self, who: &'static str, name: &str) -> Draft<'a> {
        Draft::new(self, who, name)
    }

    /// `kubectl`, to its end.
    pub async fn kubectl(&self, who: &str, arguments: &[&str]) -> Output {
        let mut kubectl = self.lab.kubectl(who).unwrap();
        ssh::run(kubectl.args(arguments)).await.unwrap()
    }

    /// `kubectl`, which must succeed; returns what it printed.
    pub async fn kubectl_ok(&self, who: &str, arguments: &[&str]) -> String {
        let done = self.kubectl(who, arguments).await;
        assert!(done.success(), "kubectl {arguments:?}: {}", done.stderr);
        done.stdout
    }

    /// Writes a manifest down, for kubectl.
    pub fn manifest(&self, object: &Value) -> String {
        let part = |pointer| text(object, pointer);
        let (kind, namespace, name) = (part("/kind"), part("/metadata/namespace"), part("/metadata/name"));
        let name = format!("{kind}.{namespace}.{name}.json");
        let dir = self.lab.dir().join("manifests");
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join(name);
        fs::write(&path, object.to_string()).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// `kubectl apply`, as the administrator.
    pub async fn apply(&self, object: &Value) {
        self.kubectl_ok("admin", &["apply", "-f", &self.manifest(object)]).await;
    }

    /// Applies a policy, and waits until the controller judges by it.
    pub async fn policy(&self, policy: &Value) {
        self.apply(policy).await;
        let name = format!("instanceaccesspolicy/{}", policy["metadata"]["name"].as_str().unwrap());
        self.kubectl_ok("admin", &["wait", "--for", "condition=Ready", "--timeout", "150s", &name]).await;
    }

    /// Kills the API server, and starts it again: what it had not read by then never happened.
    pub async fn restart_api_server(&self) {
        self.lab.stop_api_server();
        self.lab.start_api_server().await.unwrap();
        enforced(&self.lab).await;
    }

    /// Puts the admission policies back, and waits until they are in force.
    pub async fn install_admission(&self) {
        let file = self.lab.dir().join("admission.yaml");
        self.kubectl_ok("admin", &["apply", "--server-side", "--force-conflicts", "-f", file.to_str().unwrap()]).await;
        enforced(&self.lab).await;
        self.is_ready().await;
    }

    /// The controller's own word on whether it can do its work: the status and the body.
    pub async fn readiness(&self) -> (u16, String) {
        let controller = self.controller.lock().await;
        controller.as_ref().expect("a controller runs").get("/readyz").await.unwrap()
    }

    /// Waits until the controller can do its work.
    pub async fn is_ready(&self) {
        let ready = async || match self.readiness().await {
            (200, _) => Ok(()),
            other => Err(format!("{other:?}")),
        };
        poll::until("a ready controller", BOUND, ready).await.unwrap();
    }

    /// Waits until every fault that is to strike so often has.
    pub async fn is_struck(&self) {
        let struck = poll::until_ok("the faults' strikes", BOUND, || {
            let left: Vec<_> = self.lab.standin().faults().into_iter().filter(|fault| fault.times.is_some()).collect();
            if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
        });
        struck.await.unwrap();
    }

    /// A namespace of a test's own, so that its policies meet nobody else's requests.
    pub async fn namespace(&self, name: &str) {
        self.kubectl_ok("admin", &["create", "namespace", name]).await;
    }

    /// The kubeconfig of a service account of a namespace, which may decide as people do.
    pub async fn service_account(&self, namespace: &str, name: &str) -> PathBuf {
        let kubeconfig = self.lab.kubeconfig_for_service_account(namespace, name).await.unwrap();
        let (role, who) = ("--clusterrole=instance-access-approver", format!("--serviceaccount={namespace}:{name}"));
        self.kubectl_ok("admin", &["-n", namespace, "create", "rolebinding", name, role, &who]).await;
        kubeconfig
    }

    /// Where the lab's kubectl is.
    pub fn programs(&self) -> PathBuf {
        let kubectl = self.lab.kubectl("admin").unwrap();
        Path::new(kubectl.as_std().get_program()).parent().expect("an absolute path").to_owned()
    }

    /// The kubeconfig of somebody who works in a namespace.
    pub fn kubeconfig_in(&self, who: &str, namespace: &str) -> PathBuf {
        let text = fs::read_to_string(self.lab.kubeconfig(who).unwrap()).unwrap();
        let mut config: Value = serde_json::from_str(&text).unwrap();
        config["contexts"][0]["context"]["namespace"] = json!(namespace);
        let path = self.lab.dir().join(format!("{who}.{namespace}.kubeconfig"));
        fs::write(&path, config.to_string()).unwrap();
        path
    }

    /// Lets others break the stand. Only who holds this may kill, freeze, and talk to the API server.
    pub async fn breaking(&self) -> MutexGuard<'_, ()> {
        self.breaking.lock().await
    }

    /// One more instance, in the environment dev.
    pub async fn instance(&self, name: &str) -> Instance {
        self.lab.launch_instance(Launch::new(name).tag("env", "dev")).await.unwrap()
    }

    /// The audit records about a request, in order.
    pub fn records(&self, uid: &str) -> Vec<Value> {
        let about = |line: &Value| line.pointer("/record/request/uid").and_then(Value::as_str) == Some(uid);
        records(&self.audit).into_iter().filter(about).collect()
    }

    /// Waits for an audit record.
    pub async fn record(&self, uid: &str, kind: &str, bound: Duration) -> Value {
        let what = format!("the record {kind}");
        let found = poll::until_ok(&what, bound, || {
            let records = self.records(uid);
            let found = records.iter().rev().find(|line| line["record"]["kind"] == kind);
            found.cloned().ok_or_else(|| format!("{:?}", kinds(&records)))
        });
        found.await.unwrap()
    }

    /// `instance-access audit verify`, with the heads that statuses named.
    pub async fn verify(&self, heads: &[String]) -> Output {
        let mut verify = Command::new(PROGRAM);
        verify.args(["audit", "verify"]);
        for head in heads {
            verify.args(["--head", head]);
        }
        ssh::run(verify.arg(&self.audit)).await.unwrap()
    }
}

impl Drop for Stand {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

/// Tries what has a time of its own, under up to four names: `attempt` returns why nothing came of it if that time was over.
/// Whoever calls leaves ten times as long as it takes on an idle machine. So that is the machine's doing only if it kept more
/// than half of the time since for others, and otherwise the product's.
pub async fn in_its_time<T>(name: &str, attempt: impl AsyncFn(&str) -> Result<T, String>) -> T {
    for number in 1..=4 {
        let name = if number == 1 { name.to_owned() } else { format!("{name}-{number}") };
        let begin_time = Timestamp::now();
        let why = match attempt(&name).await {
            Ok(done) => return done,
            Err(why) => why,
        };
        let end_time = Timestamp::now();
        let (took, stolen) = (seconds(begin_time, end_time), pace::stolen(begin_time, end_time).await);
        assert!(stolen > took / 2.0, "{name}: {why}, on a machine that took {stolen:.1} s of {took:.1}");
        eprintln!("{name}: {why}, on a machine that took {stolen:.1} s of {took:.1}");
    }
    panic!("{name}: too slow a machine for it, four times")
}

/// Waits for an instant.
pub async fn until_time(time: Timestamp) {
    let bound = END_BOUND + Duration::from_secs(120);
    let what = time.to_string();
    let come = poll::until_ok(&what, bound, || {
        let now = Timestamp::now();
        if now >= time { Ok(()) } else { Err(format!("{now}")) }
    });
    come.await.unwrap();
}

/// What kinds of records these are.
pub fn kinds(records: &[Value]) -> Vec<&str> {
    records.iter().map(|line| line["record"]["kind"].as_str().unwrap_or_default()).collect()
}

/// The policy that is there from the start: developers may log in to dev instances.
fn developers() -> Value {
    policy("developers", "team", json!({}))
}

/// A policy as [`developers`], for one namespace; `more` overrides fields of its spec.
pub fn policy(name: &str, namespace: &str, more: Value) -> Value {
    let mut spec = json!({
        "effect": "Allow",
        "subjects": [{"kind": "Group", "name": "developers"}],
        "namespaces": [namespace],
        "targets": {"instanceTags": {"matchLabels": {"env": "dev"}}},
        "osUsers": ["ec2-user"],
        "ttl": {"defaultSeconds": 120, "maxSeconds": 3600},
        "reason": {"required": true},
    });
    merge(&mut spec, more);
    json!({
        "apiVersion": "instanceaccess.dev/v1alpha1",
        "kind": "InstanceAccessPolicy",
        "metadata": {"name": name},
        "spec": spec,
    })
}

/// Overrides fields; `null` takes one away.
pub fn merge(base: &mut Value, more: Value) {
    let Value::Object(more) = more else { panic!("{more} is no object") };
    for (field, value) in more {
        match value {
            Value::Null => drop(base.as_object_mut().unwrap().remove(&field)),
            value => base[field] = value,
        }
    }
}

/// Installs the product as its README says: resources, rights, admission policies.
async fn install(lab: &Lab) {
    let dir = lab.dir();
    let print = async |arguments: &[&str]| {
        let printed = ssh::run(Command::new(PROGRAM).args(arguments)).await.unwrap();
        assert!(printed.success(), "{arguments:?}: {}", printed.stderr);
        printed.stdout
    };
    fs::write(dir.join("crds.yaml"), print(&["crds"]).await).unwrap();
    let accounts = ["--operator-service-account", "instance-access/operator", GATEWAYS[0], GATEWAYS[1]];
    let admission = print(&[&["admission"][..], &accounts].concat()).await;
    fs::write(dir.join("admission.yaml"), admission).unwrap();
    fs::write(dir.join("people.yaml"), include_str!("people.yaml")).unwrap();
    let [operator, users] = [OPERATOR_RBAC, concat!(env!("CARGO_MANIFEST_DIR"), "/examples/user-rbac.yaml")];
    let kubectl = async |arguments: &[&str]| {
        let done = ssh::run(lab.kubectl("admin").unwrap().current_dir(dir).args(arguments)).await.unwrap();
        assert!(done.success(), "kubectl {arguments:?}: {}", done.stderr);
    };
    kubectl(&["create", "namespace", "team"]).await;
    // The policies first: there is no moment at which a request could be made without them.
    let files = ["admission.yaml", "crds.yaml", operator, users, "people.yaml"];
    let mut apply = vec!["apply", "--server-side"];
    apply.extend(files.iter().flat_map(|file| ["-f", *file]));
    kubectl(&apply).await;
    kubectl(&["wait", "--for", "condition=Established", "--timeout", "150s", "crd", "--all"]).await;
    enforced(lab).await;
}

/// Waits until the API server judges by the admission policies: it takes a moment to compile them.
async fn enforced(lab: &Lab) {
    let forged = json!({
        "apiVersion": "instanceaccess.dev/v1alpha1",
        "kind": "InstanceAccess",
        "metadata": {"name": "forged", "namespace": "team"},
        "spec": {
            "requester": {"username": "mallory"},
            "target": {"instanceId": "i-0123456789abcdef0"},
            "osUser": "ec2-user",
            "sshPublicKey": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINlqJLg1yvgNZnTXVvxxmWtfD7kBJOkWtnxqJHVL2wRf",
        },
    });
    let path = lab.dir().join("forged.json");
    fs::write(&path, forged.to_string()).unwrap();
    poll::until("admission policies in force", BOUND, || async {
        let mut kubectl = lab.kubectl("alice")?;
        let asked = ssh::run(kubectl.args(["create", "--dry-run=server", "-f"]).arg(&path)).await?;
        if asked.stderr.contains("spec.requester.username must be your own") {
            Ok(())
        } else {
            Err(anyhow::anyhow!("{asked:?}"))
        }
    })
    .await
    .unwrap();
}

/// Ends the stands that tests share.
pub async fn end() {
    // Statics are never dropped: the controllers end here, and the labs' wardens end the rest.
    for cell in [&SHARED, &BREAKABLE] {
        if let Some(stand) = cell.get() {
            stand.watch.abort();
            drop(stand.controller.lock().await.take());
        }
    }
}
