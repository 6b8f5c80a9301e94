//! Least privilege: what service accounts were given, and what they used of it; what AWS was asked for, and what the IAM
//! policies allow.

use std::collections::BTreeSet;

use lab::standin::{Api, Entry};
use serde_json::Value;

/// A right: verb, resource.
pub type Right = (String, String);
/// A right that need not be used: verb, resource, and the reason why its holder has it.
pub type Excused = (&'static str, &'static str, &'static str);

/// Rights of the operator that no main job uses.
pub const SELDOM_USED: [Excused; 5] = [
    ("get", "instanceaccesses.instanceaccess.dev", "a request is read anew after a write that was refused or lost"),
    ("patch", "instanceaccesses.instanceaccess.dev/status", "an end whose write met another's edit of the request"),
    ("get", "instanceaccesspolicies.instanceaccess.dev/status", "to tell how many grants a policy has, now and then"),
    (
        "create",
        "instanceaccessledgerentries.instanceaccess.dev",
        "for a granted request that goes; tests/whole/ledger.rs does so, under the same rules",
    ),
    ("delete", "instanceaccessledgerentries.instanceaccess.dev", "for entries whose time is over, 400 days later"),
];

/// What these objects give a service account, through their bindings.
pub fn given(objects: &[Value], namespace: &str, account: &str) -> BTreeSet<Right> {
    let is_bound = |object: &&Value| {
        let subjects = object["subjects"].as_array();
        subjects.into_iter().flatten().any(|it| it["name"] == account && it["namespace"] == namespace)
    };
    let mut given = BTreeSet::new();
    for binding in objects.iter().filter(is_bound) {
        let role = &binding["roleRef"];
        let is_its = |object: &&Value| object["kind"] == role["kind"] && object["metadata"]["name"] == role["name"];
        let role = objects.iter().find(is_its).unwrap_or_else(|| panic!("no {role}"));
        for rule in role["rules"].as_array().expect("rules") {
            let all = |field: &str| rule[field].as_array().into_iter().flatten().filter_map(Value::as_str);
            for (group, resource) in all("apiGroups").flat_map(|group| all("resources").map(move |it| (group, it))) {
                let (name, sub) = resource.split_once('/').unwrap_or((resource, ""));
                given.extend(all("verbs").map(|verb| (verb.to_owned(), spelt(group, name, sub))));
            }
        }
    }
    given
}

/// What a service account asked the API server for, by its audit log; the error is what it was refused.
pub fn used(audit_log: &[Value], namespace: &str, account: &str) -> Result<BTreeSet<Right>, String> {
    let username = format!("system:serviceaccount:{namespace}:{account}");
    let mut used = BTreeSet::new();
    for line in audit_log.iter().filter(|line| line["user"]["username"] == username.as_str()) {
        if line["responseStatus"]["code"] == 403 {
            return Err(format!("{account} asked for what it may not do: {line}"));
        }
        let part = |field: &str| line["objectRef"][field].as_str().unwrap_or_default();
        let verb = line["verb"].as_str().unwrap_or_default();
        used.insert((verb.to_owned(), spelt(part("apiGroup"), part("resource"), part("subresource"))));
    }
    Ok(used)
}

/// `nodes.`, `instanceaccesses.instanceaccess.dev/status`.
fn spelt(group: &str, resource: &str, subresource: &str) -> String {
    let of = if subresource.is_empty() { String::new() } else { format!("/{subresource}") };
    format!("{resource}.{group}{of}")
}

/// Whether all that was given was used, but for what is excused.
pub fn none_is_idle(given: &BTreeSet<Right>, used: &BTreeSet<Right>, excused: &[Excused]) -> Result<(), String> {
    let excused: BTreeSet<Right> = excused.iter().map(|(verb, name, _)| ((*verb).into(), (*name).into())).collect();
    let idle: Vec<_> = given.difference(used).filter(|right| !excused.contains(*right)).collect();
    if !idle.is_empty() {
        return Err(format!("used nothing of {idle:?}: take it out of the role in examples, or give a reason"));
    }
    if !excused.is_subset(given) {
        return Err(format!("excused are rights that were not given: {excused:?}"));
    }
    // The log was read at all, and is this account's.
    let writes = |it: &Right| it.1 == "instanceaccesses.instanceaccess.dev/status" && it.0 != "get";
    if used.iter().any(writes) { Ok(()) } else { Err(format!("wrote no status: {used:?}")) }
}

/// The actions that an IAM policy allows.
pub fn allowed(policy: &str) -> BTreeSet<String> {
    let policy: Value = serde_json::from_str(policy).expect("a policy is JSON");
    let statements = policy["Statement"].as_array().expect("statements");
    let actions = |statement: &Value| match &statement["Action"] {
        Value::Array(actions) => actions.clone(),
        action => vec![action.clone()],
    };
    statements.iter().flat_map(actions).map(|action| action.as_str().expect("a text").to_owned()).collect()
}

/// The actions that AWS was asked for. A tunnel is none of the SDK's calls, though it is signed as one.
pub fn asked<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> BTreeSet<String> {
    let action = |entry: &Entry| match entry.api {
        Api::Ec2 => Some(format!("ec2:{}", entry.action)),
        Api::Eic => Some(format!("ec2-instance-connect:{}", entry.action)),
        Api::Sts => Some(format!("sts:{}", entry.action)),
        Api::Metadata | Api::Tunnel => None,
    };
    entries.into_iter().filter_map(action).collect()
}
