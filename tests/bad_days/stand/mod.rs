//! The stand: a real API server, AWS, and the real controller under its own service account.

mod ask;
mod controller;
mod disk;
mod watch;

use std::collections::HashMap;
use std::future::Future;
use std::net::Ipv4Addr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use instance_access::api::{InstanceAccess, InstanceAccessPolicy};
use jiff::Timestamp;
use k8s_openapi::api::rbac::v1::ClusterRole;
use kube::Client;
use kube::api::PostParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use lab::standin::{Api, Entry, Instance};
use lab::{Lab, Options};
use serde_json::json;
use tokio::sync::{Semaphore, SemaphorePermit};

pub use ask::{Ask, decide, decision};
pub use controller::{Controller, TooSlow};
pub use disk::Disk;
pub use watch::{days, expiration, is, named, reason, shown};

/// What a test comes to.
pub type Outcome = anyhow::Result<()>;
/// A test.
pub type Day = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// Whom the controller is.
const OPERATOR: (&str, &str) = ("instance-access", "operator");
/// The lease of a [`Special::with_lease`].
const LEASE: &str = "instance-access/controller";
/// Where people ask.
pub const NAMESPACE: &str = "team";
/// How long something may take that takes moments on a machine of its own.
pub const SOON: Duration = Duration::from_secs(120);
/// How late an end may be in status, or on record, in seconds at the machine's pace.
pub const LATE_MAX: f64 = 3.0;
/// API servers at once, beside the shared one: each takes 300 MiB, and all of a core while it starts.
static OWN: Semaphore = Semaphore::const_new(6);

/// Everything that a test needs.
pub struct Stand {
    pub lab: Lab,
    pub controller: Controller,
    pub key: String,
    people: Mutex<HashMap<String, Client>>,
    instances: AtomicU32,
    _place: Option<SemaphorePermit<'static>>,
}

/// What begins before a grant's end, and is over after it.
#[derive(Clone, Copy, Debug)]
pub enum Outage {
    ApiServerStopped,
    ApiServerFrozen,
    ControllerFrozen,
    /// The test does it all.
    Nothing,
}

/// What a stand has that others have not.
#[derive(Default)]
pub struct Special {
    /// The audit file is on this disk.
    pub disk: Option<Disk>,
    /// The controller's environment differs so.
    pub env: Vec<(&'static str, String)>,
    /// The operator's rights are changed so before they are applied.
    pub rbac: Option<fn(&str) -> String>,
}

impl Special {
    /// With a lease, as several replicas have it.
    pub fn with_lease() -> Self {
        let rbac: fn(&str) -> String =
            |rights| format!("{rights}\n---\n{}", include_str!("../../../examples/lease-rbac.yaml"));
        Self { env: vec![("INSTANCE_ACCESS_LEASE", LEASE.to_owned())], rbac: Some(rbac), disk: None }
    }

    /// The same, where the length of the lease is not the point: a leader that is not heard for 6 s ends, as it should, and
    /// beside forty other tests an API server may be as slow. Of this one it takes 20 s.
    pub fn with_long_lease() -> Self {
        let mut special = Self::with_lease();
        special.env.push(("INSTANCE_ACCESS_LEASE_SECONDS", "30".to_owned()));
        special
    }
}

static SHARED: tokio::sync::Mutex<Option<Arc<Stand>>> = tokio::sync::Mutex::const_new(None);

/// The stand that most tests share.
pub async fn shared() -> anyhow::Result<Arc<Stand>> {
    let mut shared = SHARED.lock().await;
    if shared.is_none() {
        *shared = Some(Arc::new(Stand::start(Special::default(), None).await?));
    }
    Ok(Arc::clone(shared.as_ref().expect("made above")))
}

/// Ends the shared stand, and says whether it is sound after all that was done to it.
pub async fn close_shared() -> Outcome {
    let Some(stand) = SHARED.lock().await.take() else { return Ok(()) };
    let said = stand.controller.verify(&[]).await.context("the shared stand's audit trail")?;
    eprintln!("the shared stand's audit trail: {}", said.lines().next().unwrap_or_default());
    anyhow::ensure!(stand.controller.death().is_none(), "the shared stand's controller died");
    let restless = stand.controller.metric("instance_access_restless_turns_total").await?;
    anyhow::ensure!(restless == 0.0, "{restless} turns came to no rest:\n{}", stand.controller.log_of("come to rest"));
    let panics = stand.controller.log_of("panicked");
    anyhow::ensure!(panics.is_empty(), "the controller panicked:\n{panics}");
    Ok(())
}

impl Stand {
    /// A stand for one test alone.
    pub async fn own(special: Special) -> anyhow::Result<Stand> {
        let place = OWN.acquire().await?;
        Stand::start(special, Some(place)).await
    }

    async fn start(special: Special, place: Option<SemaphorePermit<'static>>) -> anyhow::Result<Stand> {
        let lab = Lab::start(Options::default().instances([])).await?;
        let Special { disk, env, rbac } = special;
        apply(&lab, &tell(&["crds"]).await?).await?;
        let rights = include_str!("../../../examples/operator-rbac.yaml");
        apply(&lab, &rbac.map_or(rights.to_owned(), |change| change(rights))).await?;
        apply(&lab, RIGHTS).await?;
        let kubeconfig = lab.kubeconfig_for_service_account(OPERATOR.0, OPERATOR.1).await?;
        apply(
            &lab,
            &tell(&["admission", "--operator-service-account", &format!("{}/{}", OPERATOR.0, OPERATOR.1)]).await?,
        )
        .await?;
        let mut wait = lab.kubectl("admin")?;
        wait.args(["wait", "--for=condition=Established", "--timeout=150s", "crd", "--all"]);
        succeed(wait).await?;
        apply(&lab, DEVELOPERS).await?;
        let key = lab.new_key("alice").await?.public;
        let controller = Controller::new(&lab, &kubeconfig, disk, env)?;
        let stand =
            Stand { lab, controller, key, people: Mutex::default(), instances: AtomicU32::default(), _place: place };
        stand.until_admission().await?;
        stand.controller.start()?;
        stand.controller.until_ready().await?;
        Ok(stand)
    }

    /// Waits until the API server fills in who asks: it takes policies up a moment after they are stored.
    async fn until_admission(&self) -> anyhow::Result<()> {
        let probe = Ask::new("probe").instance("i-0123456789abcdef0");
        lab::poll::until("the admission policies to be in force", SOON, async || {
            let made = self.dry_run("alice", &probe).await.map_err(|error| error.to_string())?;
            let requester = made.spec.requester.as_ref().map(|requester| requester.username.as_str());
            if requester != Some("alice") {
                return Err(format!("requester is {requester:?}"));
            }
            match self.dry_run("alice", &probe.clone().with("requester", json!({"username": "bob"}))).await {
                Err(_) => Ok(()),
                Ok(_) => Err("a forged requester is let in".to_owned()),
            }
        })
        .await
    }

    /// Waits until a policy says whether it is in force; returns what it says. Whoever asks before is refused for good.
    pub async fn until_policy(&self, name: &str, wanted: &str) -> anyhow::Result<(String, String)> {
        let policies: kube::Api<InstanceAccessPolicy> = kube::Api::all(self.client("admin").await?);
        let what = format!("policy {name} to be Ready={wanted}");
        lab::poll::until(&what, SOON, async || {
            let policy = policies.get(name).await.map_err(|error| error.to_string())?;
            let status = policy.status.unwrap_or_default();
            if status.observed_generation != policy.metadata.generation {
                return Err(format!("only generation {:?} was seen", status.observed_generation));
            }
            let ready = status.conditions.iter().find(|condition| format!("{:?}", condition.type_) == "Ready");
            match ready {
                Some(ready) if format!("{:?}", ready.status) == wanted => {
                    Ok((ready.reason.clone(), ready.message.clone()))
                }
                other => Err(format!("{other:?}")),
            }
        })
        .await
    }

    /// Lets the operator read policies, or not. One that never could decides nothing, and writes no status.
    pub async fn may_read_policies(&self, may: bool) -> Outcome {
        let roles: kube::Api<ClusterRole> = kube::Api::all(self.client("admin").await?);
        let mut role = roles.get("instance-access-operator").await?;
        let (policies, decisions) = ("instanceaccesspolicies".to_owned(), "instanceaccessdecisions".to_owned());
        let both = role.rules.iter_mut().flatten().filter_map(|rule| rule.resources.as_mut());
        let listed =
            both.filter(|resources| resources.contains(&decisions)).last().context("the rule for decisions")?;
        *listed = if may { vec![policies, decisions] } else { vec![decisions] };
        roles.replace("instance-access-operator", &PostParams::default(), &role).await?;
        Ok(())
    }

    /// A client of one of the lab's people.
    pub async fn client(&self, who: &str) -> anyhow::Result<Client> {
        if let Some(client) = self.people.lock().expect("no holder panics").get(who) {
            return Ok(client.clone());
        }
        let kubeconfig = Kubeconfig::read_from(self.lab.kubeconfig(who)?)?;
        let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        // A look that hangs on a frozen API server must not hang the test.
        config.read_timeout = Some(Duration::from_secs(60));
        let client = Client::try_from(config)?;
        self.people.lock().expect("no holder panics").insert(who.to_owned(), client.clone());
        Ok(client)
    }

    /// An instance that only AWS knows: no sshd stands behind it. `change` makes it what the test needs.
    pub fn instance(&self, change: impl FnOnce(&mut Instance)) -> String {
        let number = self.instances.fetch_add(1, Ordering::Relaxed);
        let [.., high, low] = number.to_be_bytes();
        let mut instance = Instance {
            id: format!("i-{}", &uuid::Uuid::new_v4().simple().to_string()[..17]),
            private_ip: Some(Ipv4Addr::new(10, 0, high, low).into()),
            public_ip: Some(Ipv4Addr::new(198, 18, high, low).into()),
            ..Instance::default()
        };
        change(&mut instance);
        let id = instance.id.clone();
        self.lab.standin().put_instance(instance);
        id
    }

    /// A running instance.
    pub fn running(&self) -> String {
        self.instance(|_| {})
    }

    /// The calls of one service that named an instance.
    pub fn calls(&self, api: Api, instance_id: &str) -> Vec<Entry> {
        let named = |entry: &Entry| entry.api == api && entry.instance_ids.iter().any(|id| id == instance_id);
        self.lab.standin().journal().into_iter().filter(named).collect()
    }

    /// The pushes to an instance, whether they succeeded or not.
    pub fn pushes(&self, instance_id: &str) -> Vec<Entry> {
        self.calls(Api::Eic, instance_id)
    }

    /// Checks what an end promises: on time, no key readable, no push that could outlive it, a record for everything.
    pub async fn ended_well(&self, name: &str, instance_id: &str) -> anyhow::Result<InstanceAccess> {
        let object = self.get(name).await?;
        let (expiration, begin_time) = (watch::expiration(&object)?, Timestamp::now());
        let wait = Duration::try_from(expiration.duration_since(Timestamp::now())).unwrap_or_default();
        let object = self.until_within(name, "Ended", wait + SOON, |object| watch::is(object, "Ended", "True")).await?;
        let (expiration, seen_time) = (watch::expiration(&object)?, Timestamp::now());
        // A grant whose key can never be there any more is over before its time.
        // That this came late itself says nothing of the operator; then the record does, which is written just before.
        let recorded_time = self.controller.end_recorded_time(&object).filter(|_| begin_time > expiration);
        if let Some(recorded_time) = recorded_time {
            lab::pace::soon(&format!("the record of the end of {name}"), expiration, recorded_time, LATE_MAX).await?;
        }
        let due = expiration.max(begin_time);
        lab::pace::soon(&format!("the end of {name} in status"), due, seen_time, LATE_MAX).await?;
        self.ended_in_fact(&object, instance_id).await?;
        Ok(object)
    }

    /// alice gets a grant by what she asks, on an instance of its own, and an outage begins so many seconds before its end:
    /// if the machine was so slow that it began later, it is over, and she asks again. Returns the grant and its
    /// instance.
    pub async fn begun_before_the_end(
        &self,
        ask: impl Fn() -> Ask,
        seconds: i64,
        outage: Outage,
    ) -> anyhow::Result<(InstanceAccess, String)> {
        let wanted = ask().name;
        for number in 1..=4 {
            let anew = || {
                let mut ask = ask().instance(&self.running());
                if number > 1 {
                    ask.name += &format!("-anew-{number}");
                }
                ask
            };
            let granted = self.granted_for(anew).await?;
            let (name, id) = watch::named(&granted)?;
            let end = watch::expiration(&granted)?;
            let due = end - jiff::SignedDuration::from_secs(seconds);
            // A moment that is past is not waited for.
            tokio::time::sleep(Duration::try_from(due.duration_since(Timestamp::now())).unwrap_or_default()).await;
            self.begins(outage).await?;
            if Timestamp::now() < end {
                return Ok((granted, id));
            }
            eprintln!("{name}: it was over before this machine came to do anything");
            self.is_over(outage).await?;
        }
        anyhow::bail!("{wanted}: too slow a machine to do anything before a grant's end")
    }

    /// It begins.
    pub async fn begins(&self, outage: Outage) -> Outcome {
        match outage {
            Outage::ApiServerStopped => self.lab.stop_api_server(),
            Outage::ApiServerFrozen => self.lab.freeze_api_server()?,
            Outage::ControllerFrozen => self.controller.signal("-STOP").await?,
            Outage::Nothing => {}
        }
        Ok(())
    }

    /// It is over.
    pub async fn is_over(&self, outage: Outage) -> Outcome {
        match outage {
            Outage::ApiServerStopped => self.lab.start_api_server().await,
            Outage::ApiServerFrozen => self.lab.thaw_api_server(),
            Outage::ControllerFrozen => self.controller.signal("-CONT").await,
            Outage::Nothing => Ok(()),
        }
    }

    /// What was true at the end, whenever status came to say so.
    pub async fn ended_in_fact(&self, object: &InstanceAccess, instance_id: &str) -> anyhow::Result<()> {
        let expiration = watch::expiration(object)?;
        for push in self.pushes(instance_id) {
            let latest = expiration - jiff::SignedDuration::from_secs(60);
            anyhow::ensure!(push.time <= latest, "a push at {} for a grant until {expiration}", push.time);
        }
        let keys = self.lab.standin().active_keys(instance_id, "ec2-user");
        anyhow::ensure!(keys.is_empty(), "a key is readable after the end: {keys:?}");
        let end = object.status.as_ref().and_then(|status| status.end_time.as_ref()).context("no endTime")?;
        anyhow::ensure!(end.0 <= expiration, "endTime {} is after {expiration}", end.0);
        Ok(())
    }
}

/// Runs the product to its end and returns what it prints.
pub async fn tell(arguments: &[&str]) -> anyhow::Result<String> {
    let mut program = tokio::process::Command::new(env!("CARGO_BIN_EXE_instance-access"));
    program.args(arguments);
    succeed(program).await
}

async fn succeed(mut command: tokio::process::Command) -> anyhow::Result<String> {
    let done = lab::ssh::run(&mut command).await?;
    printed(&command, done)
}

/// `kubectl apply`, as the administrator.
pub async fn apply(lab: &Lab, yaml: &str) -> anyhow::Result<()> {
    let mut kubectl = lab.kubectl("admin")?;
    kubectl.args(["apply", "--server-side", "--force-conflicts", "-f", "-"]);
    let done = lab::ssh::run_with(&mut kubectl, yaml).await?;
    printed(&kubectl, done).map(drop)
}

fn printed(command: &tokio::process::Command, done: lab::ssh::Output) -> anyhow::Result<String> {
    anyhow::ensure!(done.success(), "{:?}: {}{}", command.as_std(), done.stdout, done.stderr);
    Ok(done.stdout)
}

/// What people may do: the door is open, policy decides.
const RIGHTS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: team}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: people}
rules:
- {apiGroups: [instanceaccess.dev], resources: [instanceaccesses], verbs: ["*"]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: people}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: people}
subjects: [{kind: Group, apiGroup: rbac.authorization.k8s.io, name: "system:authenticated"}]
"#;

/// Who may decide, where decisions are wanted: everybody.
pub const DECIDERS: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: deciders}
rules:
- {apiGroups: [instanceaccess.dev], resources: [instanceaccessdecisions], verbs: [create, get, list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: deciders}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: deciders}
subjects: [{kind: Group, apiGroup: rbac.authorization.k8s.io, name: "system:authenticated"}]
"#;

/// Where carol gets in once a lead has said yes.
pub const GUARDED: &str = r#"
apiVersion: instanceaccess.dev/v1alpha1
kind: InstanceAccessPolicy
metadata: {name: guarded}
spec:
  effect: Allow
  priority: 10
  subjects: [{kind: User, name: carol}]
  namespaces: [team]
  targets: {instanceIds: ["*"]}
  osUsers: [ec2-user]
  ttl: {defaultSeconds: 600, maxSeconds: 3600}
  approval: {count: 1, approvers: [{kind: Group, name: leads}]}
"#;

/// Who may get what, unless a test adds to it.
const DEVELOPERS: &str = r#"
apiVersion: instanceaccess.dev/v1alpha1
kind: InstanceAccessPolicy
metadata: {name: developers}
spec:
  effect: Allow
  subjects: [{kind: Group, name: developers}]
  namespaces: [team]
  targets: {instanceIds: ["*"]}
  osUsers: [ec2-user]
  ttl: {defaultSeconds: 600, maxSeconds: 3600}
"#;
