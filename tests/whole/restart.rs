//! `kill -9` between every two steps of a grant: it goes on, ends on time, and is one grant.
//!
//! All on one stand, in turns: each kills the controller while it holds the stand, asserts that it died where it was
//! meant to, starts it again, and waits for the end beside the others, whose kills it has to survive as well.

use std::time::Duration;

use jiff::Timestamp;
use lab::ssh::Output;
use lab::standin::{Api, Fault, FaultKind};
use lab::{Instance, pace, poll};
use tokio::sync::MutexGuard;

use crate::history::{condition, stage, text, time};
use crate::ledger;
use crate::request::{EXPIRATION, Request};
use crate::stand::{BOUND, END_BOUND, OPERATOR_RBAC, Stand, breakable, kinds};

/// Longer than a kill takes, and shorter than what the controller takes for a lost call.
const SLOW: Duration = Duration::from_secs(6);

/// How long the controller tries to look an instance up, if no answer comes. Source: `CallLimits`.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long it waits, once it is told to stop, for a push or a write that it has begun, in seconds: `DRAIN` of src/controller.
const DRAIN: f64 = 15.0;
/// How soon it ends if there is none: to give up a lease and to close files takes moments.
const STOP_LATE_MAX: f64 = 3.0;

/// Tries to kill it where a test wants it to die: a machine that is busy or stands still may be past that. Returns the request
/// of the first try that was in time.
async fn in_time<'a>(name: &str, attempt: impl AsyncFn(&str) -> Option<Request<'a>>) -> Request<'a> {
    for number in 1..=4 {
        let name = format!("{name}-{number}");
        match attempt(&name).await {
            Some(request) => return request,
            None => eprintln!("{name}: it went on before it was killed"),
        }
    }
    panic!("{name}: it never died where it was meant to")
}

/// Waits until its grant is in status, which it may have got beyond.
async fn is_stored(request: &Request<'_>) {
    request.until("has a grant", BOUND, |object| ["Granting", "Granted"].contains(&stage(object))).await;
}

/// A request for an instance of its own, on which the first call of the kind meets a fault.
async fn asked<'a>(stand: &'a Stand, name: &str, fault: Option<(Api, &str, FaultKind)>) -> (Instance, Request<'a>) {
    let host = stand.instance(name).await;
    let is_faulty = fault.is_some();
    if let Some((api, action, kind)) = fault {
        stand.lab.standin().set_fault(Fault::new(kind).on(api).action(action).instance(&host.id).times(1));
    }
    let request = stand.request("alice", name).on(&host).applied().await;
    if is_faulty {
        stand.is_struck().await;
    }
    (host, request)
}

/// The grant goes on, and ends on time, whatever the others do to the controller meanwhile.
async fn goes_on_and_ends(request: &Request<'_>, guard: MutexGuard<'_, ()>) {
    request.becomes("Granted").await;
    drop(guard);
    request.gets_in().await;
    let ended = request.ends("Expired").await;
    assert_eq!(time(&ended, "/status/endTime"), time(&ended, EXPIRATION));
    request.is_locked_out().await;
    request.keeps_its_promises().await;
}

pub async fn killed_between_the_record_and_the_status_of_a_grant_it_grants_once() {
    let (stand, guard) = breakable().await;
    let request = in_time("recorded", async |name| {
        let slow = (Api::Ec2, "DescribeInstances", FaultKind::Slow(SLOW));
        let (_, request) = asked(stand, name, Some(slow)).await;
        stand.lab.freeze_api_server().unwrap();
        stand.record(&request.uid, "GrantIntended", BOUND).await;
        stand.kill_controller().await;
        stand.restart_api_server().await;
        let is_stored = request.newest().pointer("/status/grant").is_some();
        assert!(is_stored || request.pushes().is_empty(), "a key was pushed for a grant that no status holds");
        stand.start_controller().await;
        (!is_stored).then_some(request)
    })
    .await;
    goes_on_and_ends(&request, guard).await;
}

pub async fn killed_between_the_status_and_the_push_it_pushes() {
    let (stand, guard) = breakable().await;
    let request = in_time("stored", async |name| {
        let (_, request) = asked(stand, name, Some((Api::Eic, "SendSSHPublicKey", FaultKind::Slow(SLOW)))).await;
        is_stored(&request).await;
        stand.kill_controller().await;
        let is_pushed = request.is_key_active();
        stand.start_controller().await;
        (!is_pushed).then_some(request)
    })
    .await;
    goes_on_and_ends(&request, guard).await;
}

pub async fn killed_between_the_push_and_its_answer_it_grants_on() {
    let (stand, guard) = breakable().await;
    let request = in_time("pushed", async |name| {
        let slow = (Api::Eic, "SendSSHPublicKey", FaultKind::SlowAnswer(SLOW));
        let (_, request) = asked(stand, name, Some(slow)).await;
        is_stored(&request).await;
        stand.kill_controller().await;
        assert!(request.is_key_active());
        let is_told = stage(&request.newest()) != "Granting";
        stand.start_controller().await;
        (!is_told).then_some(request)
    })
    .await;
    goes_on_and_ends(&request, guard).await;
}

pub async fn killed_while_granted_it_pushes_on_and_says_nothing_new() {
    let (stand, guard) = breakable().await;
    let (_, request) = asked(stand, "granted", None).await;
    request.becomes("Granted").await;
    let pushes = request.pushes().len();
    stand.kill_controller().await;
    stand.start_controller().await;
    request.is_pushed(pushes + 1, BOUND).await;
    goes_on_and_ends(&request, guard).await;
    let stages: Vec<String> = request.versions().iter().map(|version| stage(&version.object).to_owned()).collect();
    let first = stages.iter().position(|stage| stage == "Granted").unwrap();
    assert!(stages[first..].iter().all(|stage| stage == "Granted" || stage == "Expired"), "{stages:?}");
}

pub async fn killed_while_a_revocation_is_pending_it_pushes_no_more_and_ends() {
    let (stand, guard) = breakable().await;
    let (_, request) = asked(stand, "revoking", None).await;
    request.becomes("Granted").await;
    request.revoke("while it is killed").await;
    let pending = request.becomes("RevocationPending").await;
    let pushes = request.pushes().len();
    stand.kill_controller().await;
    stand.start_controller().await;
    drop(guard);
    let ended = request.ends("Revoked").await;
    assert!(time(&ended, EXPIRATION) <= time(&pending, EXPIRATION));
    assert_eq!(request.pushes().len(), pushes);
    request.is_locked_out().await;
    request.keeps_its_promises().await;
}

pub async fn killed_between_the_entry_of_a_deleted_request_and_its_release_it_lets_it_go_and_grants_no_second() {
    let (stand, guard) = breakable().await;
    let (_, request) = asked(stand, "released", None).await;
    request.becomes("Granted").await;
    // Without this right it may end the request and write its entry, and not let it go.
    let patch = r#"[{"op": "replace", "path": "/rules/0/verbs", "value": ["get", "list", "watch"]}]"#;
    stand
        .kubectl_ok("admin", &["patch", "clusterrole", "instance-access-operator", "--type", "json", "-p", patch])
        .await;
    let question = ["auth", "can-i", "patch", "instanceaccesses.instanceaccess.dev"];
    let operator = ["--as=system:serviceaccount:instance-access:operator", "-n", "team"];
    poll::until("a right taken away", BOUND, || async {
        let Output { stdout, .. } = stand.kubectl("admin", &[&question[..], &operator[..]].concat()).await;
        if stdout.trim() == "no" { Ok(()) } else { Err(stdout) }
    })
    .await
    .unwrap();
    request.delete().await;
    drop(guard);
    let is_ended =
        |object: &serde_json::Value| condition(object, "Ended").is_some_and(|(_, reason, _)| reason == "Released");
    request.until("is released", END_BOUND, is_ended).await;

    let guard = stand.breaking().await;
    poll::until("the entry of a request that may not go", BOUND, || async {
        let entered = ledger::entries(stand, "released").await.len();
        if entered == 1 { Ok(()) } else { Err(entered) }
    })
    .await
    .unwrap();
    stand.kill_controller().await;
    assert!(request.versions().last().is_some_and(|version| !version.gone), "it went without the right to let it go");
    stand.kubectl_ok("admin", &["apply", "--server-side", "--force-conflicts", "-f", OPERATOR_RBAC]).await;
    stand.start_controller().await;
    drop(guard);
    request.goes().await;
    assert!(!request.is_key_active());
    assert_eq!(kinds(&request.records()).iter().filter(|kind| **kind == "Ended").count(), 1);
    let guard = stand.breaking().await;
    ledger::comes_back_consumed(&request).await;
    drop(guard);
    request.keeps_its_promises().await;
}

pub async fn told_to_stop_it_waits_for_no_look_up_that_hangs_and_pushes_nothing_more() {
    let (stand, guard) = breakable().await;
    let request = in_time("stopping", async |name| {
        let host = stand.instance(name).await;
        // No look-up is answered while it has patience, and the first one says that it is under way.
        let look_up = |kind| Fault::new(kind).on(Api::Ec2).action("DescribeInstances").instance(&host.id);
        stand.lab.standin().set_fault(look_up(FaultKind::Slow(2 * PATIENCE)));
        stand.lab.standin().set_fault(look_up(FaultKind::Slow(Duration::ZERO)).times(1));
        let request = stand.request("alice", name).on(&host).applied().await;
        stand.is_struck().await;
        let told_time = Timestamp::now();
        let status = stand.controller().await.terminate(BOUND).await.unwrap();
        let end_time = Timestamp::now();
        stand.lab.standin().clear_faults_on(&host.id);
        assert!(status.success(), "{status}");
        // Nobody needs the look-up's answer any more, and the lease is given back behind it.
        pace::soon("its end", told_time, end_time, STOP_LATE_MAX).await.unwrap();
        pace::before_a_timer("its end", told_time, end_time, DRAIN).await.unwrap();
        let pushes = request.pushes();
        assert!(pushes.iter().all(|push| push.time <= told_time), "pushed after SIGTERM: {pushes:?}");
        assert!(!pushes.is_empty() || stage(&request.newest()) != "Granted");
        stand.start_controller().await;
        pushes.is_empty().then_some(request)
    })
    .await;
    goes_on_and_ends(&request, guard).await;
    assert_eq!(text(&request.newest(), "/status/revocation/cause"), "Expired");
}
