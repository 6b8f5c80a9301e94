//! Least privilege: what the chart's roles give is what its pods used, and AWS was asked for what the IAM policies allow.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context, ensure};
use lab::standin::Api;
use serde_json::Value;

use crate::cluster::{Cluster, NAMESPACE, text};
use crate::findings::api_server_audit;
use crate::helm;
use crate::pod::Pod;

/// A right: verb, resource.
type Right = (String, String);

/// Rights of the operator that the day need not use, each with the reason for it.
const UNUSED: [(&str, &str, &str); 6] = [
    ("get", "instanceaccesses.instanceaccess.dev", "a request is read anew after a write that was refused or lost"),
    ("get", "instanceaccesspolicies.instanceaccess.dev/status", "to tell how many grants a policy has, now and then"),
    ("update", "instanceaccesspolicies.instanceaccess.dev/status", "likewise; tests/chart sees it used"),
    ("patch", "instanceaccesses.instanceaccess.dev", "the finalizer, of a request that goes; tests/chart sees it used"),
    (
        "create",
        "instanceaccessledgerentries.instanceaccess.dev",
        "for a granted request that goes: tests/whole/ledger.rs",
    ),
    ("delete", "instanceaccessledgerentries.instanceaccess.dev", "for entries whose time is over, 400 days later"),
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
        for (pods, excused) in [(&self.controllers, &UNUSED[..]), (&self.gateways, &[])] {
            let account = self.account(pods)?;
            let (given, used) = (self.given(&account)?, self.used(&account)?);
            let excused: BTreeSet<Right> =
                excused.iter().map(|(verb, name, _)| ((*verb).into(), (*name).into())).collect();
            ensure!(excused.is_subset(&given), "UNUSED speaks of rights that {account} has not: {excused:?}");
            let idle: Vec<_> = given.difference(&used).filter(|right| !excused.contains(right)).collect();
            ensure!(
                idle.is_empty(),
                "{account} used nothing of {idle:?}: take it out of its role, or give UNUSED a reason"
            );
            ensure!(!given.is_empty() && !used.is_empty(), "{account} has, or did, nothing");
        }
        Ok(())
    }

    /// What the chart's roles give an account, through its bindings.
    fn given(&self, account: &str) -> anyhow::Result<BTreeSet<Right>> {
        let name = account.rsplit(':').next().context("a name")?;
        let is_bound = |object: &&Value| {
            let subjects = object["subjects"].as_array();
            subjects.into_iter().flatten().any(|it| it["name"] == name && it["namespace"] == NAMESPACE)
        };
        let mut given = BTreeSet::new();
        for binding in self.rendered.iter().filter(is_bound) {
            let role = self.rendered.iter().find(|object| {
                object["kind"] == binding["roleRef"]["kind"] && object["metadata"]["name"] == binding["roleRef"]["name"]
            });
            for rule in role.context("a role")?["rules"].as_array().context("rules")? {
                let all = |field: &str| rule[field].as_array().into_iter().flatten().filter_map(Value::as_str);
                for group in all("apiGroups") {
                    for resource in all("resources") {
                        given.extend(all("verbs").map(|verb| (verb.to_owned(), spelt(group, resource))));
                    }
                }
            }
        }
        Ok(given)
    }

    /// What an account asked the API server for, which refused it nothing.
    fn used(&self, account: &str) -> anyhow::Result<BTreeSet<Right>> {
        let mut used = BTreeSet::new();
        for line in api_server_audit(self)?.iter().filter(|line| text(line, "/user/username") == account) {
            ensure!(line["responseStatus"]["code"] != 403, "{account} asked for what it may not do: {line}");
            let part = |field: &str| line["objectRef"][field].as_str().unwrap_or_default();
            let sub = if part("subresource").is_empty() { String::new() } else { format!("/{}", part("subresource")) };
            let resource = spelt(part("apiGroup"), &format!("{}{sub}", part("resource")));
            used.insert((text(line, "/verb").to_owned(), resource));
        }
        Ok(used)
    }

    /// AWS was asked by each pod for nothing that its IAM policy does not allow, and for all that it does.
    pub fn iam_policies_are_what_is_asked(&self) -> anyhow::Result<()> {
        for (pods, policy) in
            [(&self.controllers, "examples/iam-policy.json"), (&self.gateways, "examples/gateway-iam-policy.json")]
        {
            let policy: Value = serde_json::from_str(&helm::read(policy))?;
            let statements = policy["Statement"].as_array().context("statements")?;
            let allowed: BTreeSet<&str> = statements.iter().flat_map(|it| actions(&it["Action"])).collect();
            let asked = self.asked(pods);
            ensure!(!asked.is_empty(), "AWS was asked for nothing");
            ensure!(
                asked.iter().all(|action| allowed.contains(action.as_str())),
                "asked {asked:?}, allowed {allowed:?}"
            );
            let is_excused = |action: &&str| UNUSED_ACTIONS.iter().any(|(excused, _)| excused == action);
            let idle: Vec<_> =
                allowed.iter().filter(|action| !asked.contains(**action) && !is_excused(action)).collect();
            ensure!(idle.is_empty(), "nobody asked for {idle:?}: take it out, or give UNUSED_ACTIONS a reason");
        }
        Ok(())
    }

    fn asked(&self, pods: &[Arc<Pod>]) -> BTreeSet<String> {
        let of_pods = |key: &str| pods.iter().any(|pod| pod.access_key_id == key);
        let journal = self.lab.standin().journal();
        let asked = journal.iter().filter(|entry| of_pods(&entry.access_key_id)).filter_map(|entry| match entry.api {
            Api::Ec2 => Some(format!("ec2:{}", entry.action)),
            Api::Eic => Some(format!("ec2-instance-connect:{}", entry.action)),
            Api::Sts => Some(format!("sts:{}", entry.action)),
            Api::Metadata | Api::Tunnel => None,
        });
        asked.collect()
    }
}

fn actions(value: &Value) -> Vec<&str> {
    match value {
        Value::Array(all) => all.iter().filter_map(Value::as_str).collect(),
        one => one.as_str().into_iter().collect(),
    }
}

/// `nodes.`, `instanceaccesses.instanceaccess.dev/status`.
fn spelt(group: &str, resource: &str) -> String {
    match resource.split_once('/') {
        Some((name, sub)) => format!("{name}.{group}/{sub}"),
        None => format!("{resource}.{group}"),
    }
}
