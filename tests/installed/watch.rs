//! What the API server says, version by version, with the moment at which it was seen: of every request, and of the Lease.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex};

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, Resource, ResourceExt};
use lab::Lab;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::cluster::{NAMESPACE, TEAM};
use crate::objects::{condition, text, time};

/// One version of a request.
#[derive(Clone, Debug)]
pub struct Version {
    pub seen_time: Timestamp,
    pub object: Value,
}

/// One holder's time with the Lease.
#[derive(Clone, Debug)]
pub struct Term {
    pub holder: String,
    /// When it took the Lease, by its own clock, which is ours: a moment before the API server had it.
    pub acquire_time: Timestamp,
    /// When it last renewed it.
    pub renew_time: Timestamp,
    pub transitions: i32,
    /// When it was seen to have given it back.
    pub release_time: Option<Timestamp>,
}

/// All that was seen.
pub struct Watch {
    requests: Arc<Mutex<BTreeMap<String, Vec<Version>>>>,
    leases: Arc<Mutex<Vec<(Timestamp, Lease)>>>,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Somebody's client.
pub async fn client(lab: &Lab, who: &str) -> anyhow::Result<Client> {
    let kubeconfig = kube::config::Kubeconfig::read_from(lab.kubeconfig(who)?)?;
    Ok(Client::try_from(kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await?)?)
}

/// Requests, for a client that does not need their type.
pub fn requests(client: Client) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("instanceaccess.dev", "v1alpha1", "InstanceAccess");
    Api::namespaced_with(client, TEAM, &ApiResource::from_gvk_with_plural(&kind, "instanceaccesses"))
}

impl Watch {
    /// Watches from now on.
    pub async fn start(lab: &Lab, lease: &str) -> anyhow::Result<Self> {
        let client = client(lab, "admin").await?;
        let (requests, leases) =
            (Arc::<Mutex<BTreeMap<String, Vec<Version>>>>::default(), Arc::<Mutex<Vec<_>>>::default());
        let keeper = Arc::clone(&requests);
        let keep = move |object: DynamicObject| {
            let seen_time = Timestamp::now();
            let object = serde_json::to_value(object).expect("an object is JSON");
            let name = text(&object, "/metadata/name").to_owned();
            keeper.lock().expect("no holder panics").entry(name).or_default().push(Version { seen_time, object });
        };
        let of_requests = tokio::spawn(follow(self::requests(client.clone()), watcher::Config::default(), keep));
        let keeper = Arc::clone(&leases);
        let keep = move |lease: Lease| keeper.lock().expect("no holder panics").push((Timestamp::now(), lease));
        let only = watcher::Config::default().fields(&format!("metadata.name={lease}"));
        let of_leases = tokio::spawn(follow(Api::namespaced(client, NAMESPACE), only, keep));
        Ok(Self { requests, leases, tasks: [of_requests, of_leases] })
    }

    /// The versions of one request, the oldest first.
    pub fn of(&self, name: &str) -> Vec<Version> {
        self.requests.lock().expect("no holder panics").get(name).cloned().unwrap_or_default()
    }

    /// The newest version of one request.
    pub fn newest(&self, name: &str) -> Value {
        let requests = self.requests.lock().expect("no holder panics");
        requests.get(name).and_then(|versions| Some(versions.last()?.object.clone())).unwrap_or_default()
    }

    /// The names of all requests.
    pub fn names(&self) -> Vec<String> {
        self.requests.lock().expect("no holder panics").keys().cloned().collect()
    }

    /// The heads of the audit trail that the Lease named, one version after the other.
    pub fn heads(&self) -> BTreeSet<String> {
        let leases = self.leases.lock().expect("no holder panics");
        let head = |(_, lease): &(Timestamp, Lease)| lease.annotations().get("instanceaccess.dev/audit-head").cloned();
        leases.iter().filter_map(head).collect()
    }

    /// Who led when, the first one first.
    pub fn terms(&self) -> Vec<Term> {
        let mut terms: Vec<Term> = Vec::new();
        for (seen_time, lease) in self.leases.lock().expect("no holder panics").iter() {
            let Some(spec) = &lease.spec else { continue };
            let holder = spec.holder_identity.clone().unwrap_or_default();
            let transitions = spec.lease_transitions.unwrap_or_default();
            let (Some(acquired), Some(renewed)) = (&spec.acquire_time, &spec.renew_time) else { continue };
            match terms.last_mut() {
                Some(last) if holder.is_empty() => drop(last.release_time.get_or_insert(*seen_time)),
                Some(last) if last.holder == holder => last.renew_time = renewed.0,
                _ if holder.is_empty() => {}
                _ => terms.push(Term {
                    holder,
                    acquire_time: acquired.0,
                    renew_time: renewed.0,
                    transitions,
                    release_time: None,
                }),
            }
        }
        terms
    }
}

async fn follow<K>(api: Api<K>, config: watcher::Config, keep: impl Fn(K))
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut events = std::pin::pin!(watcher(api, config).default_backoff());
    while let Some(event) = events.next().await {
        if let Ok(Event::Apply(object) | Event::InitApply(object)) = event {
            keep(object);
        }
    }
}

/// Whether a condition is True.
pub fn is(object: &Value, type_: &str) -> bool {
    condition(object, type_).is_some_and(|(status, _, _)| status == "True")
}

/// When a grant ends.
pub fn expiration(object: &Value) -> Option<Timestamp> {
    time(object, "/status/grant/expirationTime")
}

/// The conditions of a request, for a failure's message.
pub fn shown(object: &Value) -> String {
    let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
    let said = conditions.into_iter().flatten().map(|it| {
        let part = |pointer| text(it, pointer);
        format!("{}={} {}: {}", part("/type"), part("/status"), part("/reason"), part("/message"))
    });
    said.collect::<Vec<_>>().join(" | ")
}
