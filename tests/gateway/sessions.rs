//! `status.sessions`: what is open through a gateway stands in the request, soon, in few writes, and right in the end.

use jiff::Timestamp;
use lab::pace::{self, LateMax};
use serde_json::{Value, json};

use crate::client::Client;
use crate::history::time;
use crate::jump::{Jump, both};
use crate::request::{Request, seconds};
use crate::stand::BOUND;

/// Between two writes of one request a gateway waits so long.
const GAP_SECONDS: f64 = 10.0;

/// What the entry of a gateway says: open and total.
fn figures(object: &Value, gateway: &str) -> Option<(i64, i64)> {
    let entries = object["status"]["sessions"].as_array()?;
    let entry = entries.iter().find(|entry| entry["gateway"] == gateway)?;
    Some((entry["open"].as_i64()?, entry["total"].as_i64()?))
}

/// Waits until the entry says so; returns the request.
async fn shows(request: &Request<'_>, gateway: &str, expected: (i64, i64)) -> Value {
    let what = format!("{gateway} shows {expected:?}");
    request.until(&what, BOUND, |object| figures(object, gateway) == Some(expected)).await
}

/// The figures of a gateway in each version of the request that changed them.
fn history(request: &Request<'_>, gateway: &str) -> Vec<(i64, i64)> {
    let mut all: Vec<_> = request.versions().iter().filter_map(|version| figures(&version.object, gateway)).collect();
    all.dedup();
    all
}

/// A request without what a gateway writes: nothing else of it may change by that.
fn beside(object: &Value) -> Value {
    let mut object = object.clone();
    object["status"]["sessions"] = Value::Null;
    object["metadata"]["managedFields"] = Value::Null;
    object["metadata"]["resourceVersion"] = Value::Null;
    object
}

pub async fn open_sessions_stand_in_status_within_seconds_and_the_end_of_the_last_too() {
    let (stand, jump) = both().await;
    let instance = stand.instance("shown").await;
    let request = stand.request("alice", "shown").on(&instance).with(json!({"ttlSeconds": 600})).applied().await;
    let granted = request.becomes("Granted").await;
    let client = Client::of(&request, jump);
    let asked_time = Timestamp::now();
    let mut live = client.stays(&instance.id).await;
    let shown = shows(&request, "gateway", (1, 1)).await;
    // Of the first session at once, and not when the gap is over that lies between two writes.
    let opened = jump.records(&request.uid, "SessionOpened");
    let opened_time = time(&opened[0], "/time").unwrap();
    let shown_time = request.is_seen("shown", |it| figures(&it.object, "gateway") == Some((1, 1))).await;
    let late_max = LateMax::new(GAP_SECONDS / 2.0, GAP_SECONDS);
    pace::soon("the first session in status", opened_time, shown_time, late_max).await.unwrap();
    // Nothing else changed, and nothing that GitOps compares.
    assert_eq!(beside(&shown), beside(&granted));
    let last = time(&shown, "/status/sessions/0/lastStartTime").unwrap();
    // A whole second, rounded down.
    assert!(seconds(last, asked_time) < 1.0 && last <= shown_time, "{last}, asked for at {asked_time}");
    let table = request.kubectl(&["get", "ia", "shown"]).await;
    let columns: Vec<&str> = table.lines().last().unwrap().split_whitespace().collect();
    assert_eq!(columns[6], "1", "{table}");
    let mut other = client.stays(&instance.id).await;
    shows(&request, "gateway", (2, 2)).await;
    live.echoes().await;
    other.echoes().await;
    // An end cuts both, and is written by the operator in spite of the gateway's writes.
    request.revoke("done").await;
    live.is_cut(BOUND).await;
    other.is_cut(BOUND).await;
    shows(&request, "gateway", (0, 2)).await;
    request.ends("Revoked").await;
    let ended = shows(&request, "gateway", (0, 2)).await;
    assert_eq!(ended["status"]["conditions"].as_array().unwrap().len(), 3, "{ended}");
    assert_eq!(jump.records(&request.uid, "SessionOpened").len(), 2);
    request.keeps_its_promises().await;
}

pub async fn fifty_sessions_at_once_are_few_writes() {
    let (stand, jump) = both().await;
    let instance = stand.instance("flood").await;
    let request = stand.request("alice", "flood").on(&instance).with(json!({"ttlSeconds": 900})).applied().await;
    request.becomes("Granted").await;
    // Over one connection, to the inner banner and back: what counts is that they open and close.
    let socket = stand.lab.dir().join("cm-flood");
    let master = format!("  ControlMaster auto\n  ControlPath {}\n  ControlPersist 60", socket.display());
    let client = Client::with(&request, jump, &master, "");
    let destination = format!("{}:{}", instance.id, stand.lab.ssh_port());
    let arguments = ["-W", &destination, "gateway"];
    let begin = Timestamp::now();
    let first = client.typed(&arguments).await;
    let rest = futures::future::join_all((0..49).map(|_| client.typed(&arguments))).await;
    let failed: Vec<_> = rest.iter().chain([&first]).filter(|output| !output.stdout.starts_with("SSH-2.0-")).collect();
    assert!(failed.is_empty(), "{failed:?}");
    assert!(client.typed(&["-O", "exit", "gateway"]).await.success());
    shows(&request, "gateway", (0, 50)).await;
    let took = seconds(begin, Timestamp::now());
    // Each version of the object that a watch of the API server tells is one write: one at once, and one in each gap.
    let writes = history(&request, "gateway");
    #[expect(clippy::cast_precision_loss, reason = "few")]
    let count = writes.len() as f64;
    assert!(count <= 1.0 + (took / GAP_SECONDS).ceil(), "{count} writes in {took} s: {writes:?}");
    assert!(writes.is_sorted_by_key(|(_, total)| *total), "{writes:?}");
    assert_eq!(jump.records(&request.uid, "SessionOpened").len(), 50);
}

pub async fn a_gateway_that_was_killed_sets_its_entry_right_when_it_is_back_and_one_that_stops_before_it_goes() {
    let (stand, _) = both().await;
    let name = "gateway-0";
    let mut jump = Jump::start(stand, name, &["--drain-seconds", "0"]).await;
    let instance = stand.instance("killed").await;
    let request = stand.request("alice", "killed").on(&instance).with(json!({"ttlSeconds": 900})).applied().await;
    request.becomes("Granted").await;
    let live = Client::of(&request, &jump).stays(&instance.id).await;
    shows(&request, name, (1, 1)).await;
    drop(jump); // as kill -9 does
    drop(live);
    // It stays as it was last said, until somebody of this name is back.
    assert_eq!(figures(&request.newest(), name), Some((1, 1)));
    jump = Jump::start(stand, name, &["--drain-seconds", "0"]).await;
    shows(&request, name, (0, 1)).await;
    let live = Client::of(&request, &jump).stays(&instance.id).await;
    shows(&request, name, (1, 2)).await;
    // Told to stop, it cuts, writes, and goes.
    jump.told_to_stop();
    let stopped = jump.stops(BOUND).await;
    assert!(stopped.success(), "{stopped}");
    assert_eq!(figures(&request_now(&request).await, name), Some((0, 2)));
    drop(live);
    let line = jump.log();
    assert!(!line.contains("was not written"), "{line}");
    // Those of another gateway would stand beside it: nobody went through that.
    assert_eq!(figures(&request_now(&request).await, "gateway"), None);
}

pub async fn a_gateway_has_the_rights_that_are_shipped_and_no_others() {
    let (stand, _) = both().await;
    let gateway = "--as=system:serviceaccount:instance-access:gateway";
    let can = async |verb: &str, what: &str, subresource: &str| {
        let subresource = format!("--subresource={subresource}");
        stand.kubectl("admin", &["auth", "can-i", verb, what, "-A", gateway, &subresource]).await.stdout.trim() == "yes"
    };
    assert!(can("patch", "instanceaccesses.instanceaccess.dev", "status").await);
    let questions = [
        ("update", "instanceaccesses.instanceaccess.dev", "status"),
        ("patch", "instanceaccesses.instanceaccess.dev", ""),
        ("update", "instanceaccesses.instanceaccess.dev", ""),
        ("create", "instanceaccesses.instanceaccess.dev", ""),
        ("delete", "instanceaccesses.instanceaccess.dev", ""),
        ("patch", "instanceaccesspolicies.instanceaccess.dev", "status"),
        ("create", "instanceaccessdecisions.instanceaccess.dev", ""),
        ("create", "instanceaccessledgerentries.instanceaccess.dev", ""),
        ("get", "secrets", ""),
    ];
    let answers =
        futures::future::join_all(questions.map(|(verb, what, subresource)| can(verb, what, subresource))).await;
    let granted: Vec<_> = questions.iter().zip(answers).filter(|(_, yes)| *yes).collect();
    assert!(granted.is_empty(), "{granted:?}");
}

/// The request as the API server has it now.
async fn request_now(request: &Request<'_>) -> Value {
    let text = request.kubectl(&["get", "ia", &request.name, "-o", "json"]).await;
    serde_json::from_str(&text).unwrap()
}
