//! Requests by the name of a Kubernetes node: which instance that is now, and what happens where it is none.
//!
//! Before the grant a node that is not there is waited for, as an instance is. A grant is for the instance that the node
//! was then: if the node goes, or is another instance, the grant ends.

use std::time::Duration;

use crate::domain::cloud::Region;
use crate::domain::condition::{ActiveReason, DenyReason};
use crate::domain::node::{Node, NodeInstance};
use crate::domain::time::{is_fresh, plus, since};

use super::asked::Asked;
use super::{ABSENCE_GRACE, ABSENCE_RETRY, CONTACT_GRACE, Deadline, Draft, STALLED_RETRY};

/// How it reads that nodes are not heard of. The log has the error, which speaks of the operator's own account.
const UNHEARD: &str = "the operator does not hear of nodes, so it would not hear that one is another instance now; let it list and watch them, as examples/operator-rbac.yaml does, or use spec.target.instanceId";

/// What is known of the node that is asked for.
#[derive(Clone, Debug)]
pub(super) enum NodeTarget<'a> {
    /// The request is not by node.
    NotAsked,
    /// The nodes were not listed yet: nothing is decided before.
    Unseen,
    /// Nodes are not heard of.
    Unheard(String),
    /// There is no such node, or it is no instance.
    Absent(String),
    /// It is this instance.
    Found(&'a Node, NodeInstance),
}

impl<'a> Draft<'a> {
    /// What is known of the node that is asked for.
    pub(super) fn node(&self) -> NodeTarget<'a> {
        let Some(name) = &self.request.spec.target.node_name else { return NodeTarget::NotAsked };
        let nodes = self.world.nodes;
        if let Some(failing) = nodes.failing
            && (!nodes.seen || failing.is_deaf(self.now) && !is_fresh(self.now, failing.since_time, CONTACT_GRACE))
        {
            return NodeTarget::Unheard(UNHEARD.to_owned());
        }
        if !nodes.seen {
            return NodeTarget::Unseen;
        }
        match nodes.find(name) {
            None => NodeTarget::Absent(format!(
                "there is no node {name}; check spec.target.nodeName with kubectl get nodes"
            )),
            Some(node) => match node.instance() {
                Ok(instance) => NodeTarget::Found(node, instance),
                Err(why) => NodeTarget::Absent(why),
            },
        }
    }

    /// The region where the target is, if the request names none: the node's, of a grant the one that it is for, else the
    /// operator's.
    pub(super) fn region_of(&self, node: &NodeTarget<'_>) -> Option<Region> {
        let own = self.world.settings.region.clone();
        match node {
            NodeTarget::Found(_, instance) => Some(instance.region.clone()),
            NodeTarget::NotAsked => own,
            NodeTarget::Unseen | NodeTarget::Unheard(_) | NodeTarget::Absent(_) => {
                let granted = self.status.grant.as_ref().and(self.status.instance.as_ref());
                let granted = granted.and_then(|facts| facts.region.as_deref());
                granted.and_then(|region| Region::parse(region).ok()).or(own)
            }
        }
    }

    /// The node that is waited for is not there: says so, and looks again later. News of it wake the request as well.
    pub(super) fn wait_for_node(&mut self, asked: &Asked<'_>) {
        match &asked.node {
            NodeTarget::Absent(why) => {
                let created = self.request.metadata.creation_timestamp.as_ref().map_or(self.now, |time| time.0);
                let heals = since(self.now, created) < ABSENCE_GRACE;
                self.hold(ActiveReason::TargetNotFound, why.clone(), heals);
                self.wake(Deadline::Retry, plus(self.now, if heals { ABSENCE_RETRY } else { STALLED_RETRY }));
            }
            NodeTarget::Unheard(why) => {
                self.hold(ActiveReason::ContactLost, why.clone(), false);
                self.wake(Deadline::Retry, plus(self.now, ABSENCE_RETRY));
            }
            NodeTarget::Found(node, _) => self.refuse(DenyReason::InvalidSpec, elsewhere(asked, node)),
            NodeTarget::NotAsked | NodeTarget::Unseen => self.silent = true,
        }
    }

    /// Why the node is no longer the instance that was granted, if it is not.
    pub(super) fn node_changed(&self, asked: &Asked<'_>) -> Option<String> {
        match &asked.node {
            NodeTarget::Absent(why) => Some(why.clone()),
            NodeTarget::Found(node, _) if asked.query.is_none() => Some(elsewhere(asked, node)),
            NodeTarget::Found(node, instance) => {
                let granted = self.status.instance.as_ref().map_or("", |facts| facts.instance_id.as_str());
                (instance.id.as_str() != granted).then(|| {
                    format!("node {} is {} now, and {granted} was granted; make a new request", node.name, instance.id)
                })
            }
            NodeTarget::NotAsked | NodeTarget::Unseen | NodeTarget::Unheard(_) => None,
        }
    }

    /// Looks again when nodes will have been unheard of for too long, or their watch been quiet long enough to be well.
    pub(super) fn wake_when_unheard(&mut self) {
        let (Some(_), Some(failing)) = (&self.request.spec.target.node_name, self.world.nodes.failing) else { return };
        for time in [plus(failing.since_time, CONTACT_GRACE), failing.end_time()] {
            let time = plus(time, Duration::from_secs(1));
            if time > self.now {
                self.wake(Deadline::Retry, time);
            }
        }
    }
}

/// How it reads that a node is not in the region that was asked for. Where it is instead is not for everybody.
fn elsewhere(asked: &Asked<'_>, node: &Node) -> String {
    format!("spec.target.region: node {} is not in {}; leave the region out", node.name, asked.place.region)
}
