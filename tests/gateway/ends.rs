//! A session ends with its grant: cut from outside, with the reason on the terminal.

use std::fs::File;
use std::process::Stdio;

use jiff::Timestamp;
use lab::pace::LateMax;
use lab::{pace, poll, ssh};
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::process::Command;

use crate::client::{Client, is_empty};
use crate::history::time;
use crate::jump::{Jump, both};
use crate::request::EXPIRATION;
use crate::stand::{BOUND, END_BOUND, Stand, policy};

/// Within a second of its end a session is cut, at the machine's pace.
const CUT_LATE_MAX: LateMax = LateMax::of_cut(1.0);
/// Within two seconds of a revocation: a watch may be told a little after the API server has answered whoever revoked. Whoever
/// looked now and then would be later still.
const REVOKE_LATE_MAX: LateMax = LateMax::of_cut(2.0);

/// The moment was that of the end: not before it, and hardly after.
pub async fn is_on_time(cut_time: Timestamp, expiration_time: Timestamp) {
    pace::in_time("the cut", expiration_time, cut_time, CUT_LATE_MAX).await.unwrap();
}

/// The moment was that of a revocation, as whoever revoked, or a watch beside the gateway's, was told of it.
pub async fn is_soon(cut_time: Timestamp, revoked_time: Timestamp) {
    pace::soon("the cut", revoked_time, cut_time, REVOKE_LATE_MAX).await.unwrap();
}

pub async fn a_session_is_cut_at_the_end_of_its_grant_and_told_why() {
    let (stand, jump) = both().await;
    let instance = stand.instance("expires").await;
    let request = stand.request("alice", "expires").on(&instance).applied().await;
    let granted = request.becomes("Granted").await;
    let expiration = time(&granted, EXPIRATION).unwrap();
    let client = Client::of(&request, jump);
    let mut live = client.stays(&instance.id).await;
    live.echoes().await;
    assert!(stand.lab.sessions_alive("expires") > 0);
    let (cut_time, said) = live.is_cut(END_BOUND).await;
    is_on_time(cut_time, expiration).await;
    assert!(said.contains("the grant of expires.team has ended: its time is over"), "{said}");
    is_empty(stand, &instance).await;
    let ended = jump.ended(&request.uid).await;
    assert_eq!(ended["record"]["cause"], "Expired", "{ended}");
    assert!(jump.metric("instance_access_gateway_cut_lateness_seconds_count").await > 0.0);
    request.ends("Expired").await;
    let refused = client.typed(&[&instance.id, "id"]).await;
    assert!(refused.stderr.contains("Permission denied (publickey)"), "{refused:?}");
    jump.verifies();
    request.keeps_its_promises().await;
}

pub async fn a_session_is_cut_when_its_grant_is_revoked() {
    let (stand, jump) = both().await;
    let instance = stand.instance("revoked").await;
    let request = stand.request("alice", "revoked").on(&instance).with(json!({"ttlSeconds": 600})).applied().await;
    request.becomes("Granted").await;
    let client = Client::of(&request, jump);
    let mut live = client.stays(&instance.id).await;
    live.echoes().await;
    let revoked_time = request.revoke("done").await;
    let (cut_time, said) = live.is_cut(BOUND).await;
    is_soon(cut_time, revoked_time).await;
    assert!(said.contains("the grant of revoked.team has ended: it was revoked"), "{said}");
    is_empty(stand, &instance).await;
    assert_eq!(jump.ended(&request.uid).await["record"]["cause"], "Revoked");
    // The key may still be readable by the host: here it opens nothing any more.
    let refused = client.typed(&[&instance.id, "id"]).await;
    assert!(refused.stderr.contains("Permission denied (publickey)"), "{refused:?}");
}

pub async fn while_the_key_of_a_login_that_was_taken_back_fades_its_owner_opens_no_other_there() {
    let (stand, jump) = both().await;
    stand.namespace("jump-root").await;
    stand.policy(&policy("jump-root", "jump-root", json!({"osUsers": ["root"]}))).await;
    let instance = stand.instance("fades").await;
    let long = json!({"ttlSeconds": 600});
    let plain = stand.request("alice", "plain").on(&instance).with(long.clone()).applied().await;
    plain.becomes("Granted").await;
    let root = json!({"osUser": "root", "sshPublicKey": plain.key.public, "ttlSeconds": 600});
    let root = stand.request("alice", "root").on(&instance).within("jump-root").with(root).applied().await;
    root.becomes("Granted").await;
    let client = Client::of(&plain, jump);
    client.gets_in(&[&instance.id]).await;
    root.revoke("done").await;
    let there = format!("{}:{}", instance.id, stand.lab.ssh_port());
    let told = poll::until("the gateway to hear of it", BOUND, async || {
        let said = client.typed(&["-W", &there, "gateway"]).await.stderr;
        if said.contains("your login root of root.jump-root was taken back") { Ok(said) } else { Err(said) }
    });
    let said = told.await.unwrap();
    assert!(said.contains("no session is opened here under another login; try again then"), "{said}");
    // When the operator says that it is over, the key has faded, and the other login is as it was.
    root.ends("Revoked").await;
    client.gets_in(&[&instance.id]).await;
}

pub async fn a_session_is_cut_when_its_request_is_deleted() {
    let (stand, jump) = both().await;
    let instance = stand.instance("deleted").await;
    let request = stand.request("alice", "deleted").on(&instance).with(json!({"ttlSeconds": 600})).applied().await;
    request.becomes("Granted").await;
    let mut live = Client::of(&request, jump).stays(&instance.id).await;
    live.echoes().await;
    let deleted_time = request.delete().await;
    let (cut_time, said) = live.is_cut(BOUND).await;
    is_soon(cut_time, deleted_time).await;
    assert!(said.contains("the grant of deleted.team has ended: the request was deleted"), "{said}");
    is_empty(stand, &instance).await;
    assert_eq!(jump.ended(&request.uid).await["record"]["cause"], "Released");
}

pub async fn a_session_is_cut_when_its_policy_goes_and_others_go_on() {
    let (stand, jump) = both().await;
    stand.namespace("jump-policy").await;
    stand.policy(&policy("jump-policy", "jump-policy", json!({}))).await;
    let (own, other) = (stand.instance("policy-goes").await, stand.instance("policy-stays").await);
    let long = json!({"ttlSeconds": 600});
    let request = stand.request("alice", "jump-policy").on(&own).within("jump-policy").with(long).applied().await;
    let same_key = json!({"sshPublicKey": request.key.public, "ttlSeconds": 600});
    let second = stand.request("alice", "policy-stays").on(&other).with(same_key).applied().await;
    request.becomes("Granted").await;
    second.becomes("Granted").await;
    // Over one connection, which must go on with what is left on it.
    let socket = stand.lab.dir().join("cm-policy");
    let master = format!("  ControlMaster auto\n  ControlPath {}\n  ControlPersist 60", socket.display());
    let client = Client::with(&request, jump, &master, "");
    let mut live = client.stays(&own.id).await;
    let mut goes_on = client.stays(&other.id).await;
    live.echoes().await;
    stand.kubectl_ok("admin", &["delete", "instanceaccesspolicy", "jump-policy"]).await;
    live.is_cut(BOUND).await;
    is_empty(stand, &own).await;
    assert_eq!(jump.ended(&request.uid).await["record"]["cause"], "PolicyChanged");
    goes_on.echoes().await;
    assert!(client.typed(&["-O", "exit", "gateway"]).await.success());
}

pub async fn a_client_that_stands_still_is_cut_all_the_same() {
    let (stand, jump) = both().await;
    let instance = stand.instance("stalled").await;
    let request = stand.request("alice", "stalled").on(&instance).with(json!({"ttlSeconds": 600})).applied().await;
    request.becomes("Granted").await;
    let client = Client::of(&request, jump);
    // The instance talks without end; the client, and its own client of the jump host, take nothing from one moment on.
    let mut command = client.ssh();
    command.args([&instance.id, "yes"]).process_group(0).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let group = format!("-{}", child.id().expect("it runs"));
    let mut first = [0; 2];
    child.stdout.as_mut().expect("it is piped").read_exact(&mut first).await.unwrap();
    let signal = async |name: &str| {
        let sent = ssh::run(Command::new("kill").args([name, "--", &group])).await.unwrap();
        assert!(sent.success(), "{sent:?}");
    };
    signal("-STOP").await;
    let revoked_time = request.revoke("done").await;
    is_empty(stand, &instance).await;
    is_soon(Timestamp::now(), revoked_time).await;
    assert_eq!(jump.ended(&request.uid).await["record"]["cause"], "Revoked");
    signal("-CONT").await;
    signal("-KILL").await;
}

pub async fn a_session_with_an_instance_that_stands_still_is_cut_all_the_same() {
    let (stand, jump) = both().await;
    let instance = stand.instance("frozen").await;
    let request = stand.request("alice", "frozen").on(&instance).with(json!({"ttlSeconds": 600})).applied().await;
    request.becomes("Granted").await;
    let client = Client::of(&request, jump);
    // The client sends without end; the instance takes nothing from one moment on.
    let mut command = client.ssh();
    command.args([&instance.id, "cat >/dev/null"]).stdin(File::open("/dev/zero").unwrap());
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    let alive = poll::until_ok("a session", BOUND, || match stand.lab.sessions_alive("frozen") {
        0 => Err("none"),
        _ => Ok(()),
    });
    alive.await.unwrap();
    stand.lab.freeze_instance("frozen").unwrap();
    let revoked_time = request.revoke("done").await;
    let said = tokio::time::timeout(BOUND, child.wait_with_output()).await.expect("it was not cut").unwrap();
    is_soon(Timestamp::now(), revoked_time).await;
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    // Its connection goes with its last session, and it was busy sending: which of both it tells is its own affair.
    let told = ["the grant of frozen.team has ended: it was revoked", "no grant of your key is live any more"];
    assert!(told.iter().any(|words| said.contains(words)), "{said}");
    assert_eq!(jump.ended(&request.uid).await["record"]["cause"], "Revoked");
    stand.lab.thaw_instance("frozen").unwrap();
    is_empty(stand, &instance).await;
}

pub async fn without_api_server_and_controller_nobody_new_comes_in_and_the_end_comes_on_time() {
    let stand = Stand::start("gateway-alone").await;
    let jump = Jump::start(&stand, "gateway-alone", &["--api-silence-seconds", "20"]).await;
    let instance = stand.lab.instance("web-1");
    let request = stand.request("alice", "alone").with(json!({"ttlSeconds": 200})).applied().await;
    let granted = request.becomes("Granted").await;
    let expiration = time(&granted, EXPIRATION).unwrap();
    let client = Client::of(&request, &jump);
    let mut live = client.stays(&instance.id).await;
    let on_connect = json!({"keyDelivery": "OnConnect", "ttlSeconds": 600});
    let delivered = stand.request("alice", "delivered").with(on_connect).applied().await;
    delivered.becomes("Granted").await;
    let destination = format!("{}:{}", instance.id, stand.lab.ssh_port());
    let other = stand.request("alice", "killed").with(json!({"ttlSeconds": 600})).applied().await;
    other.becomes("Granted").await;
    let mut revoked = Client::of(&other, &jump).stays(&instance.id).await;
    stand.kill_controller().await;
    // Nobody is there to act on it but the gateway.
    revoked.echoes().await;
    let revoked_time = other.revoke("done").await;
    let (cut_time, said) = revoked.is_cut(BOUND).await;
    is_soon(cut_time, revoked_time).await;
    assert!(said.contains("the grant of killed.team has ended: it was revoked"), "{said}");
    stand.lab.stop_api_server();
    // The silence is short yet, and what was read before is not enough for a key.
    let refused = Client::of(&delivered, &jump).refused(&destination).await;
    let (unconfirmed, silent) = ("did not confirm the grant of delivered.team", "has not heard the API server since");
    assert!(refused.contains(unconfirmed) || refused.contains(silent), "{refused}");
    assert!(delivered.pushes().is_empty());
    let silent = poll::until("a gateway that hears nothing", BOUND, async || match jump.get("/readyz").await {
        Ok((503, why)) => Ok(why),
        other => Err(format!("{other:?}")),
    });
    assert!(silent.await.unwrap().contains("has not heard the API server since"));
    let refused = client.refused(&destination).await;
    assert!(refused.contains("has not heard the API server since"), "{refused}");
    live.echoes().await;
    let (cut_time, said) = live.is_cut(END_BOUND).await;
    is_on_time(cut_time, expiration).await;
    assert!(said.contains("its time is over"), "{said}");
    is_empty(&stand, &instance).await;
    assert_eq!(jump.ended(&request.uid).await["record"]["cause"], "Expired");
    jump.verifies();
    stand.lab.start_api_server().await.unwrap();
}
