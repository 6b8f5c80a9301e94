//! Bounds: on who waits at the door, and on how long a gateway that is told to stop goes on.

use std::time::{Duration, Instant};

use lab::poll;
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::client::{Client, is_empty};
use crate::jump::{Jump, both};
use crate::stand::BOUND;

/// For so long sessions go on: an echo comes within that on a busy machine.
const DRAIN_SECONDS: u64 = 30;

pub async fn a_gateway_that_stops_lets_sessions_go_on_for_a_while_and_then_cuts_them() {
    let (stand, _) = both().await;
    let mut jump = Jump::start(stand, "gateway-stops", &["--drain-seconds", &DRAIN_SECONDS.to_string()]).await;
    let instance = stand.instance("drain").await;
    let request = stand.request("alice", "drain").on(&instance).with(json!({"ttlSeconds": 600})).applied().await;
    request.becomes("Granted").await;
    let client = Client::of(&request, &jump);
    let mut live = client.stays(&instance.id).await;
    let told = Instant::now();
    jump.told_to_stop();
    live.echoes().await;
    let (_, said) = live.is_cut(BOUND).await;
    assert!(told.elapsed() >= Duration::from_secs(DRAIN_SECONDS - 1), "cut after {:?}", told.elapsed());
    assert!(said.contains("the gateway stops; connect again"), "{said}");
    let status = jump.stops(BOUND).await;
    assert!(status.success(), "{status}");
    is_empty(stand, &instance).await;
    assert_eq!(jump.ended(&request.uid).await["record"]["cause"], "GatewayStopped");
    jump.verifies();
}

/// For so long one may be silent: four connections are made within that, and four logins, also by a machine that stands still
/// for a while.
const LOGIN_SECONDS: &str = "40";

pub async fn whoever_does_not_log_in_takes_few_places_and_not_for_long() {
    let (stand, _) = both().await;
    let jump =
        Jump::start(stand, "gateway-logins", &["--logins-per-source-max", "3", "--login-seconds", LOGIN_SECONDS]).await;
    let instance = stand.instance("logins").await;
    let request = stand.request("alice", "logins").on(&instance).with(json!({"ttlSeconds": 600})).applied().await;
    request.becomes("Granted").await;
    let read = async |stream: &mut TcpStream| {
        let mut text = vec![0; 64];
        let read = tokio::time::timeout(BOUND, stream.read(&mut text)).await.expect("an answer, or an end");
        text.truncate(read.unwrap_or(0));
        String::from_utf8(text).unwrap()
    };
    let start = Instant::now();
    let mut silent = Vec::new();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(jump.ssh).await.unwrap();
        assert_eq!(read(&mut stream).await, "SSH-2.0-InstanceAccess\r\n");
        silent.push(stream);
    }
    let mut fourth = TcpStream::connect(jump.ssh).await.unwrap();
    assert_eq!(read(&mut fourth).await, "", "a fourth one was answered");
    let bound = Duration::from_secs(LOGIN_SECONDS.parse().unwrap());
    assert!(start.elapsed() < bound, "too slow a machine to tell");
    for mut stream in silent {
        assert_eq!(read(&mut stream).await, "");
    }
    assert!(start.elapsed() >= bound - Duration::from_secs(1), "cut after {:?}", start.elapsed());
    // One that is logged in takes none of these places.
    let client = Client::of(&request, &jump);
    let mut open = Vec::new();
    for _ in 0..4 {
        open.push(client.stays(&instance.id).await);
    }
    for live in &mut open {
        live.echoes().await;
    }
}

async fn a_place_is_given_back(client: &Client<'_>, instance_id: &str) {
    let lets_in = poll::until("a place that is given back", BOUND, async || {
        let shell = client.typed(&[instance_id, "id -un"]).await;
        if shell.success() { Ok(()) } else { Err(shell.stderr) }
    });
    lets_in.await.unwrap();
}

pub async fn one_source_has_so_many_connections_logged_in_or_not() {
    let (stand, _) = both().await;
    let jump = Jump::start(stand, "gateway-sources", &["--connections-per-source-max", "2"]).await;
    let instance = stand.instance("sources").await;
    let request = stand.request("alice", "sources").on(&instance).with(json!({"ttlSeconds": 600})).applied().await;
    request.becomes("Granted").await;
    let client = Client::of(&request, &jump);
    let mut open = vec![client.stays(&instance.id).await, client.stays(&instance.id).await];
    let third = client.typed(&[&instance.id, "id -un"]).await;
    assert!(!third.success() && third.stdout.is_empty(), "{third:?}");
    let turned_away = jump.metric("instance_access_gateway_connections_total{outcome=\"too_many\"}").await;
    assert!(turned_away > 0.0, "{turned_away}");
    for live in &mut open {
        live.echoes().await;
    }
    drop(open.pop());
    a_place_is_given_back(&client, &instance.id).await;
}

pub async fn one_key_has_so_many_connections_and_one_grant_so_many_sessions() {
    let (stand, _) = both().await;
    let limits = ["--connections-per-key-max", "2", "--sessions-per-grant-max", "2"];
    let jump = Jump::start(stand, "gateway-bounds", &limits).await;
    let instance = stand.instance("bounded").await;
    let request = stand.request("alice", "bounded").on(&instance).with(json!({"ttlSeconds": 600})).applied().await;
    request.becomes("Granted").await;
    let client = Client::of(&request, &jump);
    let mut open = vec![client.stays(&instance.id).await, client.stays(&instance.id).await];
    let said = client.typed(&[&instance.id, "id"]).await;
    assert!(!said.success() && said.stderr.contains("as many connections as one may"), "{said:?}");
    drop(open.pop());
    a_place_is_given_back(&client, &instance.id).await;
    // Two sessions over one connection, and a third.
    drop(open);
    let socket = stand.lab.dir().join("cm-bounds");
    let master = format!("  ControlMaster auto\n  ControlPath {}\n  ControlPersist 60", socket.display());
    let shared = Client::with(&request, &jump, &master, "");
    poll::until("an empty gateway", BOUND, async || match jump.metric("instance_access_gateway_sessions_open").await {
        none if none < 1.0 => Ok(()),
        some => Err(format!("{some}")),
    })
    .await
    .unwrap();
    let mut open = vec![shared.stays(&instance.id).await, shared.stays(&instance.id).await];
    let third = shared.typed(&[&instance.id, "id"]).await;
    assert!(!third.success(), "{third:?}");
    assert!(jump.metric("instance_access_gateway_refusals_total{reason=\"TooManySessions\"}").await > 0.0);
    for live in &mut open {
        live.echoes().await;
    }
    assert!(shared.typed(&["-O", "exit", "gateway"]).await.success());
}
