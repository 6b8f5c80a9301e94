//! Grants whose key the gateway delivers when somebody connects: none before, one for many, and none that could outlive
//! its grant.

use std::process::Stdio;
use std::time::Duration;

use futures::future::join_all;
use jiff::{SignedDuration, Timestamp};
use lab::ssh;
use lab::standin::{Api, Fault, FaultKind};
use lab::{pace, poll};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::client::{Client, Live, TRIES_MAX, is_empty, is_worth_another_try};
use crate::history::{stage, text, time};
use crate::jump::{Jump, both};
use crate::request::{EXPIRATION, KEY_WINDOW, Request};
use crate::stand::{BOUND, END_BOUND, Stand, kinds, policy, until_time};

/// How long a gateway relies on its push.
const KEY_REUSE: SignedDuration = SignedDuration::from_secs(30);

/// Delivered on connect, for as long as a test may take.
fn on_connect() -> Value {
    json!({"keyDelivery": "OnConnect", "ttlSeconds": 600})
}

/// How long the grants of [`by_a_short_grant`] last, the shortest that there are: nobody waits longer for the end of one.
const SHORT: SignedDuration = SignedDuration::from_secs(120);
/// How much of the 50 s in which such a grant's key is delivered the machine must have kept for others, in seconds, for
/// somebody to come too late. A login takes some seconds.
const KEPT_MIN: f64 = 25.0;

/// Stays by a grant of two minutes whose key is delivered on connect; returns both. Who connects 70 s before its end is too
/// late: on a machine that kept the time for others there is another grant, which `ask` asks for by a number.
pub async fn by_a_short_grant<'a>(
    ask: impl AsyncFn(usize) -> Request<'a>,
    stay: impl AsyncFn(&Request<'a>) -> Result<Live, String>,
) -> (Request<'a>, Live) {
    for number in 1..=TRIES_MAX {
        let request = ask(number).await;
        let expiration = time(&request.becomes("Granted").await, EXPIRATION).unwrap();
        assert!(request.pushes().is_empty(), "the operator pushed");
        let said = match stay(&request).await {
            Ok(live) => return (request, live),
            Err(said) => said,
        };
        assert!(said.contains("no new one is delivered in the last 70 s"), "{said}");
        let stolen = pace::stolen(expiration - SHORT, Timestamp::now()).await;
        assert!(stolen > KEPT_MIN, "the machine kept {stolen:.1} s for others: {said}");
        eprintln!("{}: {said}", request.name);
    }
    panic!("no session by {TRIES_MAX} grants")
}

/// Where the inner SSH of `Client::refused` would go.
fn destination(stand: &Stand, instance: &lab::Instance) -> String {
    format!("{}:{}", instance.id, stand.lab.ssh_port())
}

/// Types the command that status gives, by this client's configuration, which knows the gateway's host and key.
async fn typed_as_told(request: &Request<'_>, client: &Client<'_>) -> ssh::Output {
    let newest = request.newest();
    let command = text(&newest, "/status/connection/command");
    assert!(command.starts_with("ssh -J gateway "), "{command}");
    let line = format!("exec {command} -F {} 'id -un'", client.config.display());
    let mut sh = Command::new("sh");
    sh.args(["-c", &line]).env(lab::proc::MARK, request.stand.lab.dir()).env_remove("SSH_AUTH_SOCK");
    ssh::run(sh.stdin(Stdio::null())).await.unwrap()
}

/// So many log in at once, as status tells them; returns how many did. They wait for one push, and where the machine kept the
/// gateway from it, all of them come once more.
async fn all_log_in(request: &Request<'_>, client: &Client<'_>, count: usize) -> usize {
    let mut logged_in = 0;
    for number in 1..=TRIES_MAX {
        let begin = Timestamp::now();
        let all = join_all((0..count).map(|_| typed_as_told(request, client))).await;
        let (shells, refused): (Vec<_>, Vec<_>) = all.into_iter().partition(ssh::Output::success);
        assert!(shells.iter().all(|shell| shell.stdout.trim() == "ec2-user"), "{shells:?}");
        logged_in += shells.len();
        if refused.is_empty() {
            return logged_in;
        }
        for shell in refused {
            assert!(is_worth_another_try(begin, &shell.stderr).await, "try {number}: {shell:?}");
            eprintln!("try {number}: {}", shell.stderr.trim());
        }
    }
    panic!("not all of {count} had a shell in {TRIES_MAX} tries")
}

/// Waits until what came of pushes is on record: who connects does not wait for that.
async fn has_records(request: &Request<'_>, jump: &Jump, kind: &str, count: usize) {
    let found = poll::until_ok(kind, BOUND, || {
        let records = jump.records(&request.uid, kind);
        if records.len() >= count { Ok(()) } else { Err(format!("{records:?}")) }
    });
    found.await.unwrap();
}

/// What holds for every push of a gateway's: a durable record before it, one of what came of it, and none too late.
async fn keeps_its_promises(request: &Request<'_>, jump: &Jump) {
    let landed = request.pushes().iter().filter(|push| push.outcome.took_effect()).count();
    has_records(request, jump, "KeyPushed", landed).await;
    let intended = jump.records(&request.uid, "KeyPushIntended");
    let expiration = time(&request.newest(), EXPIRATION).expect("it has a grant");
    for (index, push) in request.pushes().iter().enumerate() {
        let before = intended.iter().filter(|line| time(line, "/time").is_some_and(|time| time <= push.time)).count();
        assert!(before > index, "push {} has no record before it: {intended:?}", index + 1);
        if push.outcome.took_effect() {
            let landed = push.time + SignedDuration::try_from(push.elapsed).unwrap();
            assert!(landed + KEY_WINDOW <= expiration, "a key is readable after {expiration}");
            let records = jump.records(&request.uid, "KeyPushed");
            assert!(records.iter().any(|line| line["record"]["requestId"] == push.request_id), "{records:?}");
        }
    }
    jump.verifies();
}

pub async fn the_first_who_connects_has_the_key_delivered_and_the_next_rely_on_it() {
    let (stand, jump) = both().await;
    let instance = stand.instance("on-connect").await;
    let request = stand.request("alice", "on-connect").on(&instance).with(on_connect()).applied().await;
    let granted = request.becomes("Granted").await;
    assert!(granted.pointer("/status/key/pushes").is_none() && !text(&granted, "/status/key/fingerprint").is_empty());
    assert!(request.pushes().is_empty(), "the operator pushed");
    let client = Client::of(&request, jump);
    let logged_in = all_log_in(&request, &client, 10).await;
    client.gets_in(&[&instance.id]).await;
    // One is enough for all of them; on a machine that takes half a minute for that, one each half minute. By the gateway's
    // own clock: when a push arrives, says as much of the way there. What it was too late for is told to be no push.
    let intended = || -> Vec<Timestamp> {
        let mut unsent = jump.records(&request.uid, "KeyNotPushed");
        unsent.retain(|line| line["record"]["mayHaveLanded"].is_null());
        let is_sent = |line: &Value| unsent.iter().all(|it| it["record"]["intendedSequence"] != line["sequence"]);
        let mut intended = jump.records(&request.uid, "KeyPushIntended");
        intended.retain(is_sent);
        intended.iter().map(|line| time(line, "/time").unwrap()).collect()
    };
    let are_apart = |times: &[Timestamp]| times.windows(2).all(|pair| pair[1].duration_since(pair[0]) >= KEY_REUSE);
    let times = intended();
    assert!(!times.is_empty() && are_apart(&times), "pushed at {times:?}");
    let first = request.pushes().len();
    assert_eq!(first, times.len());
    // Half a minute later it is pushed anew: whoever types a passphrase needs time.
    until_time(Timestamp::now() + SignedDuration::from_secs(31)).await;
    let later = Timestamp::now();
    client.gets_in(&[&instance.id]).await;
    assert_eq!(request.pushes().iter().filter(|push| push.time >= later).count(), 1);
    let live = client.stays(&instance.id).await;
    let (pushes, times) = (request.pushes().len(), intended());
    assert!(times.len() == pushes && are_apart(&times), "{pushes} pushes at {times:?}");
    // Whoever did not push relied on one that was.
    let opened = jump.records(&request.uid, "SessionOpened").len();
    assert_eq!(opened, logged_in + 3, "who came at once, one, another one, and who stays");
    let reused = jump.metric("instance_access_gateway_pushes_total{outcome=\"reused\"}").await;
    let others = u32::try_from(opened - pushes).unwrap();
    assert!(reused >= f64::from(others), "{reused} of {opened} relied on {pushes} pushes");
    request.revoke("done").await;
    live.is_cut(BOUND).await;
    is_empty(stand, &instance).await;
    let refused = client.typed(&[&instance.id, "id"]).await;
    assert!(refused.stderr.contains("Permission denied (publickey)"), "{refused:?}");
    // The end is not said before the key that the gateway pushed has faded.
    let pending = request.becomes("RevocationPending").await;
    let last = request.pushes().pop().unwrap();
    assert!(time(&pending, EXPIRATION).unwrap() >= last.time + KEY_WINDOW, "{pending}");
    assert_eq!(kinds(&request.records())[..2], ["GrantIntended", "EndIntended"]);
    keeps_its_promises(&request, jump).await;
    assert_eq!(request.pushes().len(), pushes);
}

pub async fn a_login_that_is_granted_while_another_ones_key_is_delivered_counts_for_the_session() {
    let (stand, jump) = both().await;
    stand.namespace("jump-later").await;
    stand.policy(&policy("jump-later", "jump-later", json!({"osUsers": ["root"]}))).await;
    // What matters happens within one push: a machine that is too slow for that has some tries.
    for number in 1..=4 {
        if is_held_to_both(stand, jump, &format!("later-{number}")).await {
            return;
        }
    }
    panic!("nothing was granted within a push: too slow a machine to tell");
}

/// Has another login granted while the key of the first is on its way; whether that was in time for the session, which then
/// must be held to both.
async fn is_held_to_both(stand: &Stand, jump: &Jump, name: &str) -> bool {
    let instance = stand.instance(name).await;
    let request = stand.request("alice", name).on(&instance).with(on_connect()).applied().await;
    request.becomes("Granted").await;
    // Long enough for a grant, and not too long for a push.
    let slow = FaultKind::Slow(Duration::from_secs(6));
    stand.lab.standin().set_fault(Fault::new(slow).on(Api::Eic).instance(&instance.id));
    let client = Client::of(&request, jump);
    let asked = async {
        poll::until_ok("the gateway to ask", BOUND, || {
            let intended = jump.records(&request.uid, "KeyPushIntended");
            if intended.is_empty() { Err("nothing is on record") } else { Ok(()) }
        })
        .await
        .unwrap();
        let root = json!({"osUser": "root", "sshPublicKey": request.key.public, "keyDelivery": "OnConnect", "ttlSeconds": 600});
        let root = stand.request("alice", name).on(&instance).within("jump-later").with(root).applied().await;
        let granted = root.becomes("Granted").await;
        let seen_time = root.is_seen("granted", |version| stage(&version.object) == "Granted").await;
        (text(&granted, "/status/grant/id").to_owned(), seen_time)
    };
    let (mut live, (root, granted_time)) = tokio::join!(client.stays(&instance.id), asked);
    live.echoes().await;
    let opened = jump.records(&request.uid, "SessionOpened");
    let held: Vec<_> = opened[0]["record"]["heldTo"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let opened_time = time(&opened[0], "/time").unwrap();
    if pace::seconds(granted_time, opened_time).await < 1.0 {
        eprintln!("{name}: granted at {granted_time}, opened at {opened_time}");
        return false;
    }
    assert!(held.len() == 2 && held.contains(&root.as_str()), "{held:?} without {root}");
    true
}

pub async fn in_the_last_minute_no_key_is_delivered_and_an_open_session_goes_on_to_its_end() {
    let (stand, jump) = both().await;
    let instance = stand.instance("last-minute").await;
    let short = json!({"keyDelivery": "OnConnect", "ttlSeconds": SHORT.as_secs()});
    let ask = async |number| {
        let name = format!("last-minute-{number}");
        stand.request("alice", &name).on(&instance).with(short.clone()).applied().await
    };
    let stay = async |request: &Request<'_>| Client::of(request, jump).may_stay(&instance.id).await;
    let (request, mut live) = by_a_short_grant(ask, stay).await;
    let expiration = time(&request.newest(), EXPIRATION).unwrap();
    let client = Client::of(&request, jump);
    until_time(expiration - SignedDuration::from_secs(69)).await;
    let refused = client.refused(&destination(stand, &instance)).await;
    assert!(refused.contains("no new one is delivered in the last 70 s"), "{refused}");
    live.echoes().await;
    assert_eq!(stage(&request.newest()), "Granted");
    let (cut_time, said) = live.is_cut(END_BOUND).await;
    assert!(cut_time >= expiration && said.contains("its time is over"), "{cut_time} {said}");
    let ended = request.ends("Expired").await;
    assert!(ended.pointer("/status/key/pushes").is_none(), "{ended}");
    assert_eq!(request.pushes().len(), 1);
    keeps_its_promises(&request, jump).await;
}

pub async fn what_aws_says_to_a_push_is_told_to_who_connects() {
    let (stand, jump) = both().await;
    let instance = stand.instance("unwilling").await;
    let request = stand.request("alice", "unwilling").on(&instance).with(on_connect()).applied().await;
    request.becomes("Granted").await;
    let client = Client::of(&request, jump);
    let no = |kind| Fault::new(kind).on(Api::Eic).instance(&instance.id);
    for (kind, words) in [
        (FaultKind::Throttle, "AWS asks to wait before it takes the key of unwilling.team (ThrottlingException)"),
        (FaultKind::Deny, "the operators must mend its credentials or IAM policy"),
    ] {
        stand.lab.standin().set_fault(no(kind));
        // What was said a moment ago stands for a moment.
        let told = poll::until(words, BOUND, async || {
            let refused = client.refused(&destination(stand, &instance)).await;
            if refused.contains(words) { Ok(()) } else { Err(refused) }
        });
        told.await.unwrap();
        stand.lab.standin().clear_faults_on(&instance.id);
    }
    stand.lab.stop_instance("unwilling").await.unwrap();
    let told = poll::until("that it is stopped", BOUND, async || {
        let refused = client.refused(&destination(stand, &instance)).await;
        if refused.contains("takes no key now (EC2InstanceStateInvalidException)") { Ok(()) } else { Err(refused) }
    });
    told.await.unwrap();
    assert!(request.pushes().iter().all(|push| !push.outcome.took_effect()));
    assert_eq!(jump.records(&request.uid, "SessionOpened").len(), 0);
    has_records(&request, jump, "KeyNotPushed", 3).await;
    stand.lab.start_instance("unwilling").await.unwrap();
    let in_again = poll::until("a login", BOUND, async || {
        let shell = client.typed(&[&instance.id, "id -un"]).await;
        if shell.success() { Ok(()) } else { Err(shell.stderr) }
    });
    in_again.await.unwrap();
    keeps_its_promises(&request, jump).await;
}

pub async fn a_gateway_without_aws_serves_whom_the_operator_delivers_to_and_tells_the_others() {
    let (stand, _) = both().await;
    stand.namespace("no-aws").await;
    // A policy chooses who may have it how.
    let only = json!({"keyDelivery": ["Continuous"]});
    stand.policy(&policy("no-aws", "no-aws", only)).await;
    let jump = Jump::start_without_aws(stand, "gateway-no-aws").await;
    let instance = stand.instance("no-aws").await;
    let continuous = stand.request("alice", "continuous").within("no-aws").on(&instance).applied().await;
    let denied = stand.request("alice", "denied").within("no-aws").on(&instance).with(on_connect()).applied().await;
    let message = denied.is_denied("DeniedByPolicy").await;
    assert!(message.contains("allows keyDelivery Continuous"), "{message}");
    continuous.becomes("Granted").await;
    Client::of(&continuous, &jump).gets_in(&[&instance.id]).await;
    let request = stand.request("alice", "no-aws").on(&instance).with(on_connect()).applied().await;
    request.becomes("Granted").await;
    let refused = Client::of(&request, &jump).refused(&destination(stand, &instance)).await;
    assert!(refused.contains("CredentialsUnavailable") && refused.contains("the operators must mend"), "{refused}");
    assert!(request.pushes().is_empty());
}
