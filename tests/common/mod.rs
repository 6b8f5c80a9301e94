//! What every test of the whole begins with: the product's manifests in a lab's API server, and people to act there.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context;
use instance_access::domain::ledger::entry_name;
use instance_access::{
    admission::{self, ServiceAccount, Writers},
    api::{self, InstanceAccess, InstanceAccessDecision, InstanceAccessLedgerEntry, InstanceAccessPolicy},
};
use kube::{
    Api, Client, Config,
    api::{DeleteParams, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    core::{ApiResource, DynamicObject, Status},
};
use lab::{Lab, poll, ssh};
use serde_json::{Value, json};

/// How long anything may take until it is as it should be.
pub const BOUND: Duration = Duration::from_secs(120);
/// Who `kubectl` and clients are when they manage fields.
const FIELD_MANAGER: &str = "test";
/// A key that anybody may see.
pub const PUBLIC_KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIInStMRqROkTDl0mY88lWxAMlcGJXz3IjvFhijzUrfeX alice@laptop";

/// More rights on our resources than the operator has: what tests see refused is then refused by a CRD or by an admission
/// policy, as it would be if somebody gave the account too much. That its own rights are enough, `tests/chart` sees to.
const WIDER_RIGHTS: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: wider-rights}
rules:
- {apiGroups: [instanceaccess.dev], resources: ["*"], verbs: [get, list, watch, update, patch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: wider-rights}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: wider-rights}
subjects:
- {kind: ServiceAccount, name: operator, namespace: instance-access}
- {kind: ServiceAccount, name: gateway, namespace: instance-access}
"#;

/// The operator's service account, as `examples/operator-rbac.yaml` makes it.
pub fn operator_account() -> ServiceAccount {
    ServiceAccount::new("instance-access", "operator").expect("both are names")
}

/// The gateway's service account, as `examples/gateway-rbac.yaml` makes it.
pub fn gateway_account() -> ServiceAccount {
    ServiceAccount::new("instance-access", "gateway").expect("both are names")
}

/// Who may write status.
pub fn writers() -> Writers {
    Writers::new(operator_account(), vec![gateway_account()])
}

/// A file of this repository.
pub fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Applies the admission policies, the CRDs, and what the operator and developers may do; returns when all of it is in
/// force. `mutating`: whether `spec.requester` is filled in, as on Kubernetes 1.36.
///
/// Once a control plane: the first create within 2 s of a CRD's `Established` waits out those 2 s.
pub async fn install(lab: &Lab, mutating: bool) -> anyhow::Result<()> {
    // The policies first: there is no moment at which a request could be made without them.
    let mut all = vec![admission::yaml(&writers(), mutating)];
    all.extend(api::crds_yaml().into_iter().map(|(_, yaml)| yaml));
    for path in ["examples/operator-rbac.yaml", "examples/gateway-rbac.yaml", "examples/user-rbac.yaml"] {
        all.push(std::fs::read_to_string(file(path)).with_context(|| path.to_owned())?);
    }
    all.push(WIDER_RIGHTS.to_owned());
    kubectl_with(lab, "admin", &["apply", "--server-side", "-f", "-"], &all.join("---\n")).await?;
    let established = ["wait", "--for=condition=Established", "--timeout=150s", "crd", "--all"];
    kubectl(lab, "admin", &established).await?;

    let admin = Person::of(lab, "admin", "default").await?;
    let probe = policy("install-probe");
    poll::until("the policy of the probe", BOUND, async || {
        admin.create(&probe).await.map(drop).or_else(|refusal| refusal.if_not("AlreadyExists"))
    })
    .await?;
    poll::until("status to be the operator's alone", BOUND, async || {
        refused_by(
            "status.instanceaccess.dev",
            admin.dry_run().patch_status(&probe, &json!({"status": {"activeGrants": 1}})).await,
        )
    })
    .await?;
    admin.delete(&probe).await?;
    let forged = request("probe").with("/spec/requester", json!({"username": "nobody"}));
    poll::until("a forged requester to be refused", BOUND, async || {
        refused_by("requests.instanceaccess.dev", admin.dry_run().create(&forged).await)
    })
    .await?;
    let forged = decision("probe").with("/spec/approver", json!({"username": "nobody"}));
    poll::until("a forged approver to be refused", BOUND, async || {
        refused_by("decisions.instanceaccess.dev", admin.dry_run().create(&forged).await)
    })
    .await?;
    poll::until("the ledger to be the operator's alone", BOUND, async || {
        refused_by("ledger.instanceaccess.dev", admin.dry_run().create(&ledger_entry("probe")).await)
    })
    .await?;
    if mutating {
        poll::until("the approver to be filled in", BOUND, async || {
            admin.dry_run().create(&decision("probe")).await.map(drop)
        })
        .await?;
        poll::until("the requester to be filled in", BOUND, async || {
            admin.dry_run().create(&request("probe")).await.map(drop)
        })
        .await?;
    }
    Ok(())
}

fn refused_by(policy: &str, answer: Result<Value, Refusal>) -> Result<(), String> {
    match answer {
        Err(refusal) if refusal.to_string().contains(policy) => Ok(()),
        other => Err(format!("{other:?}")),
    }
}

/// Runs `kubectl` as somebody; fails if it does.
pub async fn kubectl(lab: &Lab, user: &str, args: &[&str]) -> anyhow::Result<String> {
    let mut kubectl = lab.kubectl(user)?;
    let output = ssh::run(kubectl.args(args)).await?;
    anyhow::ensure!(output.success(), "kubectl {}: {}{}", args.join(" "), output.stdout, output.stderr);
    Ok(output.stdout)
}

/// Runs `kubectl` as somebody, with a manifest on its standard input; fails if it does.
pub async fn kubectl_with(lab: &Lab, user: &str, args: &[&str], manifest: &str) -> anyhow::Result<String> {
    let output = ssh::run_with(lab.kubectl(user)?.args(args), manifest).await?;
    anyhow::ensure!(output.success(), "kubectl {}: {}{}", args.join(" "), output.stdout, output.stderr);
    Ok(output.stdout)
}

/// An object as JSON, to be bent.
#[derive(Clone, Debug)]
pub struct Object(pub Value);

impl Object {
    /// With another value at a JSON pointer; objects on the way are made.
    pub fn with(mut self, pointer: &str, value: Value) -> Self {
        let mut place = &mut self.0;
        for part in pointer.split('/').skip(1) {
            place = match place {
                Value::Array(items) => &mut items[part.parse::<usize>().expect("an index")],
                other => &mut other[part],
            };
        }
        *place = value;
        self
    }

    /// Without what is at a JSON pointer.
    pub fn without(mut self, pointer: &str) -> Self {
        let (parent, field) = pointer.rsplit_once('/').expect("a pointer");
        self.0.pointer_mut(parent).and_then(Value::as_object_mut).expect("an object").remove(field);
        self
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.0["metadata"]["name"].as_str().unwrap_or_default()
    }

    fn typed(&self) -> DynamicObject {
        serde_json::from_value(self.0.clone()).expect("an object has metadata")
    }
}

/// A request that nothing is wrong with.
pub fn request(name: &str) -> Object {
    Object(json!({
        "apiVersion": "instanceaccess.dev/v1alpha1",
        "kind": "InstanceAccess",
        "metadata": {"name": name},
        "spec": {
            "target": {"instanceId": "i-0123456789abcdef0"},
            "osUser": "ec2-user",
            "sshPublicKey": PUBLIC_KEY,
        },
    }))
}

/// An approval that nothing is wrong with, of a request that is not there.
pub fn decision(name: &str) -> Object {
    Object(json!({
        "apiVersion": "instanceaccess.dev/v1alpha1",
        "kind": "InstanceAccessDecision",
        "metadata": {"name": name},
        "spec": {
            "decision": "Approve",
            "requestRef": {"name": "web-1", "uid": "5a3f6a0e-5f0f-4b43-9c1a-0d4f3ad1c001", "specDigest": "0".repeat(64)},
        },
    }))
}

/// An entry that nothing is wrong with, for a request that never was.
pub fn ledger_entry(request: &str) -> Object {
    let digest = "0".repeat(64);
    Object(json!({
        "apiVersion": "instanceaccess.dev/v1alpha1",
        "kind": "InstanceAccessLedgerEntry",
        "metadata": {"name": entry_name("team", request, &digest)},
        "spec": {
            "request": {
                "namespace": "team",
                "name": request,
                "uid": "5a3f6a0e-5f0f-4b43-9c1a-0d4f3ad1c001",
                "specDigest": digest,
            },
            "grantId": "g-da0a142574368aceb40ae198baca56c4",
            "subject": {"username": "alice"},
            "instanceId": "i-0123456789abcdef0",
            "startTime": "2026-03-01T08:00:00Z",
            "expirationTime": "2026-03-01T09:00:00Z",
            "endTime": "2026-03-01T08:30:00Z",
            "keepUntilTime": "2027-04-05T08:30:00Z",
        },
    }))
}

/// A policy that nothing is wrong with, and that is about nobody.
pub fn policy(name: &str) -> Object {
    Object(json!({
        "apiVersion": "instanceaccess.dev/v1alpha1",
        "kind": "InstanceAccessPolicy",
        "metadata": {"name": name},
        "spec": {
            "effect": "Allow",
            "subjects": [],
            "namespaces": ["*"],
            "targets": {"instanceIds": ["*"]},
            "osUsers": ["ec2-user"],
            "ttl": {"defaultSeconds": 600, "maxSeconds": 3600},
        },
    }))
}

/// What the API server said no with.
#[derive(Debug)]
pub enum Refusal {
    /// Its answer.
    Status(Box<Status>),
    /// There was none.
    Other(kube::Error),
}

impl Refusal {
    /// All of the answer.
    pub fn json(&self) -> String {
        match self {
            Self::Status(status) => serde_json::to_string(status).expect("a status is plain data"),
            Self::Other(error) => error.to_string(),
        }
    }

    fn if_not(self, reason: &str) -> Result<(), Self> {
        match &self {
            Self::Status(status) if status.reason == reason => Ok(()),
            _ => Err(self),
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Status(status) => f.write_str(&status.message),
            Self::Other(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Refusal {}

impl From<kube::Error> for Refusal {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::Status(status),
            other => Self::Other(other),
        }
    }
}

/// Somebody who acts in one namespace, by a token of their own.
#[derive(Clone)]
pub struct Person {
    client: Client,
    namespace: String,
    dry_run: bool,
}

impl Person {
    /// One of [`lab::PEOPLE`].
    pub async fn of(lab: &Lab, user: &str, namespace: &str) -> anyhow::Result<Self> {
        Self::by(&lab.kubeconfig(user)?, namespace).await
    }

    /// A service account.
    pub async fn service_account(lab: &Lab, account: &ServiceAccount, namespace: &str) -> anyhow::Result<Self> {
        Self::by(&lab.kubeconfig_for_service_account(account.namespace(), account.name()).await?, namespace).await
    }

    /// A gateway that runs as a pod of this name: with a token that is bound to it, as a kubelet gives it one.
    pub async fn gateway(lab: &Lab, pod: &str, namespace: &str) -> anyhow::Result<Self> {
        let account = gateway_account();
        let manifest = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": pod, "namespace": account.namespace()},
            "spec": {"serviceAccountName": account.name(), "containers": [{"name": "gateway", "image": "gateway"}]},
        });
        kubectl_with(lab, "admin", &["apply", "--server-side", "-f", "-"], &manifest.to_string()).await?;
        let bound = ["--bound-object-kind", "Pod", "--bound-object-name", pod];
        let create = ["create", "token", account.name(), "-n", account.namespace()];
        let token = kubectl(lab, "admin", &[&create[..], &bound].concat()).await?;
        let mut kubeconfig = Kubeconfig::read_from(lab.kubeconfig("admin")?)?;
        let user = kubeconfig.auth_infos[0].auth_info.as_mut().context("admin has credentials")?;
        user.token = Some(token.trim().to_owned().into());
        Self::with(kubeconfig, namespace).await
    }

    async fn by(kubeconfig: &Path, namespace: &str) -> anyhow::Result<Self> {
        Self::with(Kubeconfig::read_from(kubeconfig)?, namespace).await
    }

    async fn with(kubeconfig: Kubeconfig, namespace: &str) -> anyhow::Result<Self> {
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        Ok(Self { client: Client::try_from(config)?, namespace: namespace.to_owned(), dry_run: false })
    }

    /// The same person, for whom nothing is stored.
    pub fn dry_run(&self) -> Self {
        Self { dry_run: true, ..self.clone() }
    }

    /// Their client.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    fn api(&self, object: &Object) -> Api<DynamicObject> {
        match object.0["kind"].as_str() {
            Some("InstanceAccess") => {
                Api::namespaced_with(self.client.clone(), &self.namespace, &ApiResource::erase::<InstanceAccess>(&()))
            }
            Some("InstanceAccessDecision") => {
                let kind = ApiResource::erase::<InstanceAccessDecision>(&());
                Api::namespaced_with(self.client.clone(), &self.namespace, &kind)
            }
            Some("InstanceAccessLedgerEntry") => {
                Api::all_with(self.client.clone(), &ApiResource::erase::<InstanceAccessLedgerEntry>(&()))
            }
            _ => Api::all_with(self.client.clone(), &ApiResource::erase::<InstanceAccessPolicy>(&())),
        }
    }

    fn post(&self) -> PostParams {
        PostParams { dry_run: self.dry_run, field_manager: Some(FIELD_MANAGER.to_owned()) }
    }

    fn patching(&self) -> PatchParams {
        PatchParams { dry_run: self.dry_run, ..PatchParams::default() }
    }

    pub async fn create(&self, object: &Object) -> Result<Value, Refusal> {
        answer(self.api(object).create(&self.post(), &object.typed()).await)
    }

    pub async fn get(&self, object: &Object) -> Result<Value, Refusal> {
        answer(self.api(object).get(object.name()).await)
    }

    /// A PUT, with the resourceVersion that is there unless the object names one.
    pub async fn replace(&self, object: &Object) -> Result<Value, Refusal> {
        let object = self.at_present(object).await?;
        answer(self.api(&object).replace(object.name(), &self.post(), &object.typed()).await)
    }

    /// A PUT of status, likewise.
    pub async fn replace_status(&self, object: &Object) -> Result<Value, Refusal> {
        let object = self.at_present(object).await?;
        answer(self.api(&object).replace_status(object.name(), &self.post(), &object.typed()).await)
    }

    async fn at_present(&self, object: &Object) -> Result<Object, Refusal> {
        let version = self.get(object).await?["metadata"]["resourceVersion"].clone();
        Ok(object.clone().with("/metadata/resourceVersion", version))
    }

    pub async fn patch(&self, object: &Object, patch: &Value) -> Result<Value, Refusal> {
        answer(self.api(object).patch(object.name(), &self.patching(), &Patch::Merge(patch)).await)
    }

    pub async fn patch_json(&self, object: &Object, patch: Value) -> Result<Value, Refusal> {
        let patch = Patch::Json::<()>(serde_json::from_value(patch).expect("a JSON patch"));
        answer(self.api(object).patch(object.name(), &self.patching(), &patch).await)
    }

    /// Server-side apply.
    pub async fn apply(&self, object: &Object, manager: &str) -> Result<Value, Refusal> {
        let params = PatchParams { field_manager: Some(manager.to_owned()), force: true, ..self.patching() };
        answer(self.api(object).patch(object.name(), &params, &Patch::Apply(&object.0)).await)
    }

    pub async fn patch_status(&self, object: &Object, patch: &Value) -> Result<Value, Refusal> {
        answer(self.api(object).patch_status(object.name(), &self.patching(), &Patch::Merge(patch)).await)
    }

    pub async fn patch_json_status(&self, object: &Object, patch: Value) -> Result<Value, Refusal> {
        let patch = Patch::Json::<()>(serde_json::from_value(patch).expect("a JSON patch"));
        answer(self.api(object).patch_status(object.name(), &self.patching(), &patch).await)
    }

    pub async fn apply_status(&self, object: &Object, manager: &str) -> Result<Value, Refusal> {
        let params = PatchParams { field_manager: Some(manager.to_owned()), force: true, ..self.patching() };
        answer(self.api(object).patch_status(object.name(), &params, &Patch::Apply(&object.0)).await)
    }

    pub async fn apply_status_unforced(&self, object: &Object, manager: &str) -> Result<Value, Refusal> {
        let params = PatchParams { field_manager: Some(manager.to_owned()), ..self.patching() };
        answer(self.api(object).patch_status(object.name(), &params, &Patch::Apply(&object.0)).await)
    }

    pub async fn delete(&self, object: &Object) -> Result<(), Refusal> {
        self.api(object).delete(object.name(), &DeleteParams::default()).await.map(drop).map_err(Refusal::from)
    }
}

fn answer(answer: Result<DynamicObject, kube::Error>) -> Result<Value, Refusal> {
    Ok(serde_json::to_value(answer?).expect("an object is plain data"))
}
