//! Least privilege: what the chart's roles give is what its pods used, and AWS was asked for what the IAM policies allow.

#[path = "../common/rights.rs"]
mod common;

use std::sync::Arc;

use anyhow::{Context, Error, ensure};

use crate::cluster::{Cluster, NAMESPACE};
use crate::findings::api_server_audit;
use crate::helm;
use crate::pod::Pod;
use common::{Excused, SELDOM_USED};

/// Other rights of the operator that the day need not use.
const UNUSED: [Excused; 2] = [
    ("update", "instanceaccesspolicies.instanceaccess.dev/status", "likewise; tests/chart sees it used"),
    ("patch", "instanceaccesses.instanceaccess.dev", "the finalizer, of a request that goes; tests/chart sees it used"),
];

/// Actions of the IAM policies that the day need not use: all its instances have an address.
const UNUSED_ACTIONS: [(&str, &str); 2] = [
    (
        "ec2:DescribeInstanceConnectEndpoints",
        "for instances that are reached through an endpoint: tests/gateway/endpoint.rs",
    ),
    ("ec2-instance-connect:OpenTunnel", "likewise; signed as a call is, and no call of the SDK's"),
];

impl Cluster {
    /// No right was missing, and none of the chart's was unused.
    pub fn rights_are_those_that_are_used(&self) -> anyhow::Result<()> {
        let log = api_server_audit(self)?;
        for (pods, excused) in [(&self.controllers, [&SELDOM_USED[..], &UNUSED].concat()), (&self.gateways, vec![])] {
            let account = self.account(pods)?;
            let name = account.rsplit(':').next().context("a name")?;
            let given = common::given(&self.rendered, NAMESPACE, name);
            let used = common::used(&log, NAMESPACE, name).map_err(Error::msg)?;
            common::none_is_idle(&given, &used, &excused).map_err(Error::msg).context(account)?;
        }
        Ok(())
    }

    /// AWS was asked by each pod for nothing that its IAM policy does not allow, and for all that it does.
    pub fn iam_policies_are_what_is_asked(&self) -> anyhow::Result<()> {
        let journal = self.lab.standin().journal();
        for (pods, policy) in
            [(&self.controllers, "examples/iam-policy.json"), (&self.gateways, "examples/gateway-iam-policy.json")]
        {
            let of_pods = |pods: &[Arc<Pod>], key: &str| pods.iter().any(|pod| pod.access_key_id == key);
            let allowed = common::allowed(&helm::read(policy));
            let asked = common::asked(journal.iter().filter(|entry| of_pods(pods, &entry.access_key_id)));
            ensure!(!asked.is_empty() && asked.is_subset(&allowed), "asked {asked:?}, {policy} allows {allowed:?}");
            let is_excused = |action: &&String| UNUSED_ACTIONS.iter().any(|(excused, _)| excused == action);
            let idle: Vec<_> = allowed.difference(&asked).filter(|action| !is_excused(action)).collect();
            ensure!(idle.is_empty(), "nobody asked for {idle:?} of {policy}: take it out, or give a reason");
        }
        Ok(())
    }
}
