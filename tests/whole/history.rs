//! What became of every request, version by version, as a watch shows it; and what each stage of it looks like.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use futures::StreamExt;
use jiff::Timestamp;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use serde_json::Value;

#[path = "../common/objects.rs"]
mod objects;
pub use objects::{condition, text, time};

/// One version of one request.
#[derive(Clone, Debug)]
pub struct Version {
    /// The whole object, as the API server has it.
    pub object: Value,
    /// Whether this is how it went.
    pub gone: bool,
    /// When the watch told of it.
    pub seen_time: Timestamp,
}

/// All versions of all requests, by uid.
#[derive(Clone, Default)]
pub struct History {
    versions: Arc<Mutex<HashMap<String, Vec<Version>>>>,
}

impl History {
    /// Watches from now on, as the bearer of the kubeconfig.
    pub async fn watch(kubeconfig: &std::path::Path) -> anyhow::Result<(Self, tokio::task::JoinHandle<()>)> {
        let kubeconfig = kube::config::Kubeconfig::read_from(kubeconfig)?;
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await?;
        let client = kube::Client::try_from(config)?;
        let kind = GroupVersionKind::gvk("instanceaccess.dev", "v1alpha1", "InstanceAccess");
        let resource = ApiResource::from_gvk_with_plural(&kind, "instanceaccesses");
        let api: Api<DynamicObject> = Api::all_with(client, &resource);
        let history = Self::default();
        let keeper = history.clone();
        let task = tokio::spawn(async move {
            let mut events = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
            while let Some(event) = events.next().await {
                match event {
                    Ok(Event::Apply(object) | Event::InitApply(object)) => keeper.keep(&object, false),
                    Ok(Event::Delete(object)) => keeper.keep(&object, true),
                    // The API server may be away: that is what some tests do.
                    Ok(Event::Init | Event::InitDone) | Err(_) => {}
                }
            }
        });
        Ok((history, task))
    }

    fn keep(&self, object: &DynamicObject, gone: bool) {
        let mut object = serde_json::to_value(object).expect("an object is JSON");
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.remove("managedFields");
        }
        let uid = text(&object, "/metadata/uid").to_owned();
        let mut versions = self.versions.lock().expect("no holder panics");
        let versions = versions.entry(uid).or_default();
        let is_known = versions.last().is_some_and(|last| {
            last.gone == gone
                && text(&last.object, "/metadata/resourceVersion") == text(&object, "/metadata/resourceVersion")
        });
        if !is_known {
            versions.push(Version { object, gone, seen_time: Timestamp::now() });
        }
    }

    /// The versions of one request, the oldest first.
    pub fn of(&self, uid: &str) -> Vec<Version> {
        self.versions.lock().expect("no holder panics").get(uid).cloned().unwrap_or_default()
    }
}

/// The reason of `Active`: the STATUS column.
pub fn stage(object: &Value) -> &str {
    condition(object, "Active").map_or("", |(_, reason, _)| reason)
}

/// A row of the design's table, in one line: `Approved=True AdmittedByPolicy, Active=True Granted, …`.
pub fn conditions(object: &Value) -> String {
    let said = ["Approved", "Denied", "Active", "Ended", "Reconciling", "Stalled"].into_iter().filter_map(|type_| {
        let (status, reason, _) = condition(object, type_)?;
        Some(format!("{type_}={status} {reason}"))
    });
    said.collect::<Vec<_>>().join(", ")
}
