//! What a policy asks of sessions, of real ones: how many, how long idle, until when one is opened.

use jiff::{SignedDuration, Timestamp};
use lab::pace::LateMax;
use lab::{pace, poll};
use serde_json::{Value, json};

use crate::client::{Client, Live, is_empty};
use crate::ends::{is_on_time, is_soon};
use crate::history::{text, time};
use crate::jump::{Jump, both};
use crate::request::{EXPIRATION, seconds};
use crate::stand::{BOUND, END_BOUND, Stand, policy};

/// How late an idle session may be cut: a look of the gateway, and some; by the clock, less than another idle time.
const LATE_MAX: LateMax = LateMax::new(5.0, 15.0);

/// It was cut when it had been idle so long: not before that since nobody had sent anything yet, and hardly after since the
/// last byte was here.
async fn idled(cut_time: Timestamp, (sent_time, back_time): (Timestamp, Timestamp), length: SignedDuration) {
    let after = cut_time.duration_since(sent_time);
    assert!(after >= length - SignedDuration::from_millis(500), "cut {after} after the last byte was sent");
    pace::soon("the cut of an idle session", back_time + length, cut_time, LATE_MAX).await.unwrap();
}

/// Sends a line through and back; returns when it had not been sent, and when it was back.
async fn last_bytes(live: &mut Live) -> (Timestamp, Timestamp) {
    let sent_time = Timestamp::now();
    live.echoes().await;
    (sent_time, Timestamp::now())
}

/// How long a session of that gateway may be idle: thirteen times as long as a keepalive is away, which a busy machine delays.
const IDLE_SECONDS: u32 = 40;

/// A namespace with a policy of its own, of the same name.
async fn bound(stand: &Stand, name: &str, session: Value) {
    stand.namespace(name).await;
    stand.policy(&policy(name, name, json!({"session": session}))).await;
}

pub async fn an_idle_session_is_cut_and_one_with_a_keepalive_is_not() {
    let (stand, _) = both().await;
    let jump = Jump::start(stand, "gateway-idle", &["--idle-timeout-seconds", &IDLE_SECONDS.to_string()]).await;
    let instance = stand.instance("idles").await;
    let request = stand.request("alice", "idles").on(&instance).with(json!({"ttlSeconds": 600})).applied().await;
    request.becomes("Granted").await;
    let client = Client::of(&request, &jump);
    let alive = Client::with(&request, &jump, "", "  ServerAliveInterval 3");
    let mut kept = alive.stays(&instance.id).await;
    let mut live = client.stays(&instance.id).await;
    let last = last_bytes(&mut live).await;
    let (cut_time, said) = live.is_cut(BOUND).await;
    idled(cut_time, last, SignedDuration::from_secs(IDLE_SECONDS.into())).await;
    let why = format!("the session of idles.team was idle for {IDLE_SECONDS} s; connect again");
    assert!(said.contains(&why), "{said}");
    assert_eq!(jump.ended(&request.uid).await["record"]["cause"], "Idle");
    assert!(jump.metric("instance_access_gateway_session_ends_total{cause=\"Idle\"}").await > 0.0);
    // It was opened before the other one, and nothing passed through it but its keepalives.
    kept.echoes().await;
    jump.verifies();
}

pub async fn a_policy_that_is_edited_reaches_the_idle_session_of_a_live_grant() {
    let (stand, jump) = both().await;
    bound(stand, "jump-idle", json!({"idleTimeoutSeconds": 3600})).await;
    let instance = stand.instance("idle-policy").await;
    let long = json!({"ttlSeconds": 600});
    let request = stand.request("alice", "idle").on(&instance).within("jump-idle").with(long).applied().await;
    let granted = request.becomes("Granted").await;
    assert_eq!(granted["status"]["grant"]["session"], json!({"idleTimeoutSeconds": 3600}));
    let mut live = Client::of(&request, jump).stays(&instance.id).await;
    let last = last_bytes(&mut live).await;
    stand.policy(&policy("jump-idle", "jump-idle", json!({"session": {"idleTimeoutSeconds": 60}}))).await;
    let idle_seconds = "/status/grant/session/idleTimeoutSeconds";
    request.until("is bound by the edit", BOUND, |object| object.pointer(idle_seconds) == Some(&json!(60))).await;
    // What makes it wider again reaches no grant that lives.
    stand.policy(&policy("jump-idle", "jump-idle", json!({}))).await;
    let (cut_time, said) = live.is_cut(END_BOUND).await;
    idled(cut_time, last, SignedDuration::from_secs(60)).await;
    assert!(said.contains("the session of idle.jump-idle was idle for 60 s"), "{said}");
    is_empty(stand, &instance).await;
    assert_eq!(jump.ended(&request.uid).await["record"]["cause"], "Idle");
    // The grant goes on, bound as before.
    let newest = request.newest();
    assert_eq!(newest["status"]["grant"]["session"], json!({"idleTimeoutSeconds": 60}));
    Client::of(&request, jump).gets_in(&[&instance.id]).await;
}

pub async fn a_grant_has_as_many_sessions_as_its_policy_says() {
    let (stand, jump) = both().await;
    bound(stand, "jump-one", json!({"maxSessions": 1})).await;
    let instance = stand.instance("one-session").await;
    let long = json!({"ttlSeconds": 600});
    let request = stand.request("alice", "one").on(&instance).within("jump-one").with(long.clone()).applied().await;
    request.becomes("Granted").await;
    let client = Client::of(&request, jump);
    let mut live = client.stays(&instance.id).await;
    let destination = format!("{}:{}", instance.id, stand.lab.ssh_port());
    let refused = client.refused(&destination).await;
    assert!(refused.contains("one.jump-one has as many sessions as one grant may, 1; close one"), "{refused}");
    live.echoes().await;
    drop(live);
    poll::until("a place that is given back", BOUND, async || {
        let shell = client.typed(&[&instance.id, "id -un"]).await;
        if shell.success() { Ok(()) } else { Err(shell.stderr) }
    })
    .await
    .unwrap();
}

pub async fn a_grant_that_drains_opens_no_session_and_ends_those_that_are_open_on_time() {
    let (stand, jump) = both().await;
    bound(stand, "jump-drain", json!({"end": {"strategy": "Drain", "drainSeconds": 60}})).await;
    let (own, other) = (stand.instance("drains").await, stand.instance("drains-revoked").await);
    // Two minutes to come in.
    let long = json!({"ttlSeconds": 180});
    let request = stand.request("alice", "drains").on(&own).within("jump-drain").with(long.clone()).applied().await;
    let revoked = stand.request("alice", "revoked").on(&other).within("jump-drain").with(long).applied().await;
    let expiration = time(&request.becomes("Granted").await, EXPIRATION).unwrap();
    let revoked_expiration = time(&revoked.becomes("Granted").await, EXPIRATION).unwrap();
    let (client, second) = (Client::of(&request, jump), Client::of(&revoked, jump));
    let mut live = client.stays(&own.id).await;
    let mut short = second.stays(&other.id).await;
    let drained = |expiration: Timestamp| seconds(Timestamp::now(), expiration) <= 60.0;
    let both_drain = || if drained(expiration) && drained(revoked_expiration) { Ok(()) } else { Err("not yet") };
    poll::until_ok("two grants that drain", END_BOUND, both_drain).await.unwrap();
    for (client, instance, name) in [(&client, &own, "drains"), (&second, &other, "revoked")] {
        let said = client.refused(&format!("{}:{}", instance.id, stand.lab.ssh_port())).await;
        assert!(
            said.contains(&format!("{name}.jump-drain ends at")) && said.contains("opens no session from"),
            "{said}"
        );
    }
    live.echoes().await;
    short.echoes().await;
    // A revocation waits for no drain.
    let revoked_time = revoked.revoke("done").await;
    let (cut_time, said) = short.is_cut(BOUND).await;
    is_soon(cut_time, revoked_time).await;
    assert!(said.contains("the grant of revoked.jump-drain has ended: it was revoked"), "{said}");
    let (cut_time, said) = live.is_cut(END_BOUND).await;
    is_on_time(cut_time, expiration).await;
    assert!(said.contains("the grant of drains.jump-drain has ended: its time is over"), "{said}");
    is_empty(stand, &own).await;
    is_empty(stand, &other).await;
    request.ends("Expired").await;
    assert!(jump.metric("instance_access_gateway_refusals_total{reason=\"Draining\"}").await > 0.0);
}

pub async fn a_policy_that_demands_the_gateway_refuses_a_key_that_is_renewed_without_it() {
    let (stand, _) = both().await;
    bound(stand, "jump-only", json!({"gatewayOnly": true})).await;
    let request = stand.request("alice", "direct").within("jump-only").applied().await;
    let denied = request.becomes("Denied").await;
    let said = denied.to_string();
    let remedy = "lets nobody in but through the gateway (session.gatewayOnly): set spec.keyDelivery to OnConnect";
    assert!(said.contains(remedy), "{said}");
    assert_eq!(denied["status"]["grant"], Value::Null);
}

pub async fn the_end_is_told_at_the_login_to_whoever_asks_ssh_to_be_verbose() {
    let (stand, jump) = both().await;
    let instance = stand.instance("verbose").await;
    let request = stand.request("alice", "verbose").on(&instance).with(json!({"ttlSeconds": 600})).applied().await;
    let granted = request.becomes("Granted").await;
    let client = Client::of(&request, jump);
    let told = format!("Remote: verbose.team ends at {}", text(&granted, EXPIRATION));
    let verbose = client.typed(&["-v", &instance.id, "id -un"]).await;
    assert!(verbose.success() && verbose.stderr.contains(&told), "{verbose:?}");
    // OpenSSH asks for nothing to be displayed that nobody asked for: no program that reads its output is disturbed.
    for more in [&[][..], &["-o", "LogLevel=QUIET"]] {
        let plain = client.typed(&[more, &[&instance.id, "id -un"]].concat()).await;
        assert!(plain.success() && plain.stdout.trim() == "ec2-user" && plain.stderr.is_empty(), "{plain:?}");
    }
}
