//! The watch over Kubernetes nodes, for requests by `nodeName`. Without the right to it, everything else goes on.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Node as ClusterNode;
use kube::Api;
use kube::runtime::watcher::Event;
use tokio_util::sync::CancellationToken;

use crate::domain::hearing::Failing;
use crate::domain::node::{Node, Nodes};
use crate::telemetry::chain;

use super::Shared;
use super::slots::{Slots, Uid};
use super::turn::wake;
use super::watch::config;

/// Who asks for which node, so that news of a node wake those alone. At most twice as many as there are requests, and a
/// few: beyond that, those who have gone are forgotten.
#[derive(Default)]
pub struct Askers(Mutex<Table>);

#[derive(Default)]
struct Table {
    by_node: HashMap<String, HashSet<Uid>>,
    /// How many uids there are in all.
    count: usize,
}

/// How many may have gone before anybody sweeps.
const GONE_MAX: usize = 64;

impl Askers {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a request asks for a node; `slots` are the requests that there are.
    pub fn note(&self, node_name: &str, uid: &str, slots: &Slots) {
        let mut table = self.lock();
        let Table { by_node, count } = &mut *table;
        let askers = match by_node.get_mut(node_name) {
            Some(askers) => askers,
            None => by_node.entry(node_name.to_owned()).or_default(),
        };
        if !askers.contains(uid) {
            askers.insert(uid.into());
            *count += 1;
        }
        if *count > 2 * slots.len() + GONE_MAX {
            table.keep(|uid| slots.find(uid).is_some());
        }
    }
}

impl Table {
    fn keep(&mut self, is_there: impl Fn(&str) -> bool) {
        self.by_node.retain(|_, askers| {
            askers.retain(|uid| is_there(uid));
            !askers.is_empty()
        });
        self.count = self.by_node.values().map(HashSet::len).sum();
    }
}

/// Takes in what happens to nodes, until it is stopped.
pub async fn watch_nodes(shared: Arc<Shared>, stop: CancellationToken) {
    let api: Api<ClusterNode> = Api::all(shared.client.clone());
    let mut stream = std::pin::pin!(shared.contact.history.watch(api, config()));
    let mut listing: HashMap<String, Arc<Node>> = HashMap::new();
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => return,
            event = stream.next() => event,
        };
        match event {
            Some(Ok(Event::Init)) => {
                listing.clear();
                if shared.nodes().failing.is_some_and(|failing| !failing.lists) {
                    change(&shared, |nodes| {
                        nodes.failing = nodes.failing.map(|failing| Failing { lists: true, ..failing })
                    });
                }
            }
            Some(Ok(Event::InitApply(node))) => {
                let node = pruned(node);
                listing.insert(node.name.clone(), Arc::new(node));
            }
            Some(Ok(Event::InitDone)) => {
                let by_name = std::mem::take(&mut listing);
                change(&shared, |nodes| *nodes = Nodes { by_name, seen: true, failing: None });
                wake_those(&shared, |_| true);
            }
            Some(Ok(Event::Apply(node))) => {
                let node = pruned(node);
                // A heartbeat changes nothing that anybody asks for.
                let known = shared.nodes();
                if known.find(&node.name) == Some(&node) && known.failing.is_none() {
                    continue;
                }
                let name = node.name.clone();
                change(&shared, |nodes| {
                    nodes.failing = None;
                    nodes.by_name.insert(name.clone(), Arc::new(node));
                });
                // Heard again: that is news to whoever asks for any node.
                wake_those(&shared, |asked| known.failing.is_some() || asked == name);
            }
            Some(Ok(Event::Delete(node))) => {
                let name = node.metadata.name.unwrap_or_default();
                let was_failing = shared.nodes().failing.is_some();
                change(&shared, |nodes| {
                    nodes.failing = None;
                    nodes.by_name.remove(&name);
                });
                wake_those(&shared, |asked| was_failing || asked == name);
            }
            Some(Err(error)) => {
                shared.metrics.count_watch_error("nodes");
                // Said once: without the right to it, it breaks every ten seconds, and whoever asks by node is told.
                if shared.nodes().failing.is_none() {
                    tracing::warn!(error = chain(&error), "the watch over nodes broke, trying again");
                }
                let now = (shared.clock)();
                change(&shared, |nodes| nodes.watch_failed(now));
                wake_those(&shared, |_| true);
            }
            None => return,
        }
    }
}

fn change(shared: &Shared, change: impl FnOnce(&mut Nodes)) {
    let mut nodes = shared.nodes.write().unwrap_or_else(PoisonError::into_inner);
    let mut changed = Nodes::clone(&nodes);
    change(&mut changed);
    *nodes = Arc::new(changed);
}

/// Lets those requests have their turn that ask for a node of such a name.
fn wake_those(shared: &Arc<Shared>, is_asked: impl Fn(&str) -> bool) {
    let table = shared.askers.lock();
    let asked = table.by_node.iter().filter(|(node_name, _)| is_asked(node_name));
    for uid in asked.flat_map(|(_, askers)| askers) {
        if let Some(slot) = shared.slots.find(uid) {
            wake(shared, &slot);
        }
    }
}

/// Keeps what a decision needs: of a node's ten kilobytes, one.
fn pruned(node: ClusterNode) -> Node {
    Node {
        name: node.metadata.name.unwrap_or_default(),
        provider_id: node.spec.and_then(|spec| spec.provider_id),
        labels: node.metadata.labels.unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::census::Counter;
    use super::*;
    use crate::domain::identity::PrincipalRule;

    #[test]
    fn requests_that_come_and_go_leave_nothing_behind() {
        let counter = Counter::new(Arc::new(|| jiff::Timestamp::UNIX_EPOCH), PrincipalRule::default());
        let (askers, slots) = (Askers::default(), Slots::new(Arc::new(counter)));
        for number in 0..10_000 {
            askers.note(&format!("node-{number}"), &format!("uid-{number}"), &slots);
            askers.note("one", &format!("uid-{number}"), &slots);
            assert!(askers.lock().count <= GONE_MAX + 1);
        }
        assert!(askers.lock().by_node.len() <= GONE_MAX + 1);
    }
}
