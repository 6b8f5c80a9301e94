//! Kubernetes nodes, as far as a request by `nodeName` needs them: which EC2 instance a node says it is, and its labels.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock};

use jiff::Timestamp;
use regex::Regex;

use super::cloud::{InstanceId, Region};
use super::hearing::Failing;

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its `spec.providerID`, as it stands there.
    pub provider_id: Option<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// The cluster's nodes. The default is the set that nobody has seen yet.
#[derive(Clone, Debug, Default)]
pub struct Nodes {
    /// By name.
    pub by_name: HashMap<String, Arc<Node>>,
    /// Whether they were listed once.
    pub seen: bool,
    /// The failures of their watch since it last told something.
    pub failing: Option<Failing>,
}

/// The node that a request asks for, as policies are asked about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AskedNode<'a> {
    /// It asks for no node.
    None,
    /// It asks for one that is not there yet.
    Unknown,
    /// This one.
    Known(&'a Node),
}

/// Where a node's instance is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeInstance {
    /// Its region.
    pub region: Region,
    /// Its id.
    pub id: InstanceId,
}

impl Node {
    /// The instance that its providerID names, such as `aws:///us-west-2a/i-0123456789abcdef0`.
    ///
    /// # Errors
    /// If it is of another form: what is wrong, for people.
    pub fn instance(&self) -> Result<NodeInstance, String> {
        // Zones: us-west-2a, us-west-2-lax-1a, us-east-1-wl1-bos-wlz-1. The region is the part before.
        static FORM: LazyLock<Regex> = LazyLock::new(|| {
            Regex::new(
                r"\Aaws:///([a-z]{2,4}(?:-[a-z]{2,12}){1,3}-[0-9]{1,2})(?:[a-z]|-[a-z0-9-]{1,32})/(i-[a-f0-9]{8,30})\z",
            )
            .expect("a constant pattern, compiled by a test")
        });
        let name = &self.name;
        let Some(provider_id) = self.provider_id.as_deref().filter(|provider_id| !provider_id.is_empty()) else {
            return Err(format!("node {name} has no spec.providerID yet; the cloud controller manager sets it"));
        };
        let parts = FORM.captures(provider_id).and_then(|parts| {
            Some(NodeInstance { region: Region::parse(&parts[1]).ok()?, id: InstanceId::parse(&parts[2]).ok()? })
        });
        parts.ok_or_else(|| {
            let shown: String = provider_id.chars().take(80).collect();
            format!("node {name} has the spec.providerID {shown}, which names no EC2 instance; one reads aws:///us-west-2a/i-0123456789abcdef0")
        })
    }
}

impl Nodes {
    /// Notes that the watch failed. A failure long after the last one is a new outage.
    pub fn watch_failed(&mut self, now: Timestamp) {
        self.failing = Some(Failing::again(self.failing, now));
    }

    /// Whether both say the same of the node of that name.
    pub fn is_same_for(&self, other: &Self, name: &str) -> bool {
        self.seen == other.seen && self.failing == other.failing && self.find(name) == other.find(name)
    }

    /// Returns a node by name.
    pub fn find(&self, name: &str) -> Option<&Node> {
        self.by_name.get(name).map(AsRef::as_ref)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_provider_id_names_one_instance_in_one_region_or_nothing() {
        let node = |provider_id: &str| Node {
            name: "n".into(),
            provider_id: Some(provider_id.to_owned()),
            labels: BTreeMap::new(),
        };
        for (provider_id, region) in [
            ("aws:///us-west-2a/i-0123456789abcdef0", "us-west-2"),
            ("aws:///us-west-2-lax-1a/i-0123456789abcdef0", "us-west-2"),
            ("aws:///us-east-1-wl1-bos-wlz-1/i-01234567", "us-east-1"),
            ("aws:///us-gov-west-1b/i-01234567", "us-gov-west-1"),
        ] {
            let instance = node(provider_id).instance().unwrap();
            assert_eq!(instance.region.as_str(), region, "{provider_id}");
            assert!(provider_id.ends_with(instance.id.as_str()));
        }
        for provider_id in [
            "",
            "aws:///i-0123456789abcdef0",
            "aws://us-west-2a/i-0123456789abcdef0",
            "aws:///us-west-2/i-0123456789abcdef0",
            "aws:///us-west-2a/i-0123456789abcdef0/x",
            "aws:///us-west-2a/i-0123456789abcdef0\n",
            " aws:///us-west-2a/i-0123456789abcdef0",
            "AWS:///us-west-2a/i-0123456789abcdef0",
            "aws:///us-west-2a/i-0123456789ABCDEF0",
            "aws:///us-west-2a/mi-0123456789abcdef0",
            "aws:///us-west-2a/0f1e2d3c/fargate-ip-10-0-1-2",
            "aws:///evil.example.com/i-0123456789abcdef0",
            "gce://project/us-west1-a/i-01234567",
            "kind://docker/kind/kind-control-plane",
        ] {
            assert!(node(provider_id).instance().unwrap_err().starts_with("node n has "), "{provider_id}");
        }
        assert!(Node::default().instance().unwrap_err().contains("no spec.providerID yet"));
        let long = node(&"x".repeat(10_000)).instance().unwrap_err();
        assert!(long.len() < 400, "{}", long.len());
    }
}
