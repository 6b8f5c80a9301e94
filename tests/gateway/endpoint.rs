//! Instances behind an EC2 Instance Connect Endpoint: the stand-in's websocket, and a real sshd behind it.

use std::fs;

use jiff::Timestamp;
use lab::pace::LateMax;
use lab::standin::{Api, Endpoint, Entry, Fault, FaultKind};
use lab::{Instance, Launch, pace, poll, ssh};
use serde_json::json;

use crate::client::{Client, is_empty};
use crate::ends::is_soon;
use crate::history::{text, time};
use crate::jump::{Jump, both};
use crate::on_connect::by_a_short_grant;
use crate::request::{Draft, EXPIRATION, Request, seconds};
use crate::stand::{BOUND, END_BOUND, Stand, policy};
use crate::tunnel::{self, Tls, Vouched};

/// An endpoint's end may come so many seconds before the grant's: a tunnel lasts whole seconds, rounded down, less one for
/// AWS's answer.
const EARLY_SECONDS_MAX: f64 = 3.0;
/// And nothing comes later than so many seconds, at the machine's pace and by the clock.
const LATE_MAX: f64 = 1.0;
const CLOCK_LATE_MAX: f64 = 5.0;

/// An instance without a public address.
pub async fn private(stand: &Stand, name: &str) -> Instance {
    stand.lab.launch_instance(Launch::new(name).tag("env", "dev").private()).await.unwrap()
}

/// A request for an instance behind the endpoint, which connects to port 22 only.
pub fn behind<'a>(stand: &'a Stand, who: &'static str, name: &str, instance: &Instance) -> Draft<'a> {
    stand.request(who, name).on(instance).with(json!({"connection": {"port": 22}, "ttlSeconds": 600}))
}

/// Its owner, who asks for that port, wherever the lab's sshd listens.
pub fn owner<'a>(request: &'a Request<'a>, jump: &Jump, instance: &Instance) -> Client<'a> {
    // The first word counts in a configuration: this stands before the lab's own.
    let own = format!("  HostKeyAlias {}", instance.id);
    let client = Client::with(request, jump, "", &own);
    let config = fs::read_to_string(&client.config).unwrap();
    let path = client.config.with_extension("endpoint");
    fs::write(&path, format!("Host i-*\n  Port 22\n\n{config}")).unwrap();
    Client { request, config: path }
}

/// What AWS was asked for about an instance.
fn tunnels(stand: &Stand, instance: &Instance) -> Vec<Entry> {
    let mut journal = stand.lab.standin().journal();
    journal.retain(|entry| entry.api == Api::Tunnel && entry.instance_ids.contains(&instance.id));
    journal
}

/// Waits until AWS has closed every tunnel that it opened to an instance; returns how many.
async fn all_closed(stand: &Stand, instance: &Instance) -> usize {
    let closed = poll::until_ok("closed tunnels", BOUND, || {
        let entries = tunnels(stand, instance);
        let count = |action: &str| entries.iter().filter(|entry| entry.action == action).count();
        let (opened, closed) = (count("openTunnel"), count("closeTunnel"));
        if opened == closed { Ok(opened) } else { Err(format!("{opened} opened, {closed} closed")) }
    });
    closed.await.unwrap()
}

/// The moment was that of the grant's end, or shortly before.
async fn is_on_time(end_time: Timestamp, expiration: Timestamp) {
    is_hardly_later(end_time, expiration, 0.0).await;
}

/// The same, or so many seconds later.
async fn is_hardly_later(end_time: Timestamp, expiration: Timestamp, later: f64) {
    let early = seconds(end_time, expiration);
    assert!(early <= EARLY_SECONDS_MAX, "it ended {early} s before the grant");
    let late_max = LateMax::new(LATE_MAX + later, CLOCK_LATE_MAX + later);
    pace::soon("its end", expiration, end_time, late_max).await.unwrap();
}

pub async fn ssh_and_scp_lead_through_the_endpoint_and_leave_nothing_open() {
    let (stand, jump) = both().await;
    let instance = private(stand, "tunnelled").await;
    let request = behind(stand, "alice", "tunnelled", &instance).applied().await;
    let granted = request.becomes("Granted").await;
    assert_eq!(text(&granted, "/status/connection/method"), "Endpoint");
    let client = owner(&request, jump, &instance);
    client.gets_in(&[&instance.id]).await;
    // More than every window and frame on the way.
    let dir = stand.lab.dir().join("tunnelled");
    fs::create_dir_all(&dir).unwrap();
    let content: Vec<u8> = (0..8_u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let (there, back) = (dir.join("there"), dir.join("back"));
    fs::write(&there, &content).unwrap();
    for (from, to) in [
        (there.display().to_string(), format!("{}:carried", instance.id)),
        (format!("{}:carried", instance.id), back.display().to_string()),
    ] {
        let copied = ssh::run(client.program("scp").args([&from, &to])).await.unwrap();
        assert!(copied.success(), "scp {from} {to}: {copied:?}");
    }
    assert!(fs::read(&back).unwrap() == content, "not the same");

    let ended = jump.ended(&request.uid).await;
    let destination = format!("{}:22 through {}", instance.private_ip, stand.lab.endpoint_id());
    assert_eq!(ended["record"]["destination"], destination, "{ended}");
    assert_eq!(all_closed(stand, &instance).await, 3);
    // A client that dies says nothing: the tunnel is closed all the same.
    let mut live = client.stays(&instance.id).await;
    live.echoes().await;
    drop(live);
    is_empty(stand, &instance).await;
    assert_eq!(all_closed(stand, &instance).await, 4);
    for entry in tunnels(stand, &instance) {
        assert_eq!(entry.outcome, lab::standin::Outcome::Ok, "{entry:?}");
        assert_eq!(entry.endpoint_id.as_deref(), Some(stand.lab.endpoint_id()));
    }
    assert_eq!(jump.records(&request.uid, "SessionOpened").len(), 4);
    jump.verifies();
}

pub async fn a_session_through_the_endpoint_is_cut_at_the_end_of_its_grant_and_told_why() {
    let (stand, jump) = both().await;
    let instance = private(stand, "tunnel-ends").await;
    let request = behind(stand, "carol", "tunnel-ends", &instance).with(json!({"ttlSeconds": 120})).applied().await;
    let expiration = time(&request.becomes("Granted").await, EXPIRATION).unwrap();
    let mut live = owner(&request, jump, &instance).stays(&instance.id).await;
    live.echoes().await;
    let (cut_time, said) = live.is_cut(END_BOUND).await;
    is_on_time(cut_time, expiration).await;
    assert!(said.contains("the grant of tunnel-ends.team has ended: its time is over"), "{said}");
    is_empty(stand, &instance).await;
    assert_eq!(jump.ended(&request.uid).await["record"]["cause"], "Expired");
    assert_eq!(all_closed(stand, &instance).await, 1);
    request.ends("Expired").await;
    request.keeps_its_promises().await;
}

pub async fn with_the_gateway_alone_a_key_is_delivered_on_connect_through_the_endpoint_and_the_session_cut() {
    let (stand, jump) = both().await;
    stand.namespace("jump-behind").await;
    let only = json!({"session": {"gatewayOnly": true, "maxSessions": 2}});
    stand.policy(&policy("jump-behind", "jump-behind", only)).await;
    let instance = private(stand, "gateway-only").await;
    let asked = json!({"keyDelivery": "OnConnect", "ttlSeconds": 120});
    let ask = async |number| {
        let name = format!("gateway-only-{number}");
        behind(stand, "carol", &name, &instance).within("jump-behind").with(asked.clone()).applied().await
    };
    let stay = async |request: &Request<'_>| owner(request, jump, &instance).may_stay(&instance.id).await;
    let (request, mut live) = by_a_short_grant(ask, stay).await;
    let granted = request.newest();
    let expiration = time(&granted, EXPIRATION).unwrap();
    assert_eq!(granted["status"]["grant"]["session"], json!({"maxSessions": 2}));
    assert!(text(&granted, "/status/connection/command").starts_with("ssh -J gateway "), "{granted}");
    live.echoes().await;
    assert_eq!(request.pushes().len(), 1, "the gateway pushed");
    let (cut_time, said) = live.is_cut(END_BOUND).await;
    is_on_time(cut_time, expiration).await;
    let why = format!("the grant of {}.jump-behind has ended: its time is over", request.name);
    assert!(said.contains(&why), "{said}");
    is_empty(stand, &instance).await;
    assert_eq!(all_closed(stand, &instance).await, 1);
    assert_eq!(request.pushes().len(), 1);
    let ended = request.ends("Expired").await;
    assert_eq!(ended["status"]["sessions"][0]["total"], 1, "{ended}");
    jump.verifies();
}

pub async fn a_session_through_the_endpoint_is_cut_when_its_grant_is_revoked() {
    let (stand, jump) = both().await;
    let instance = private(stand, "tunnel-revoked").await;
    let request = behind(stand, "bob", "tunnel-revoked", &instance).applied().await;
    request.becomes("Granted").await;
    let mut live = owner(&request, jump, &instance).stays(&instance.id).await;
    live.echoes().await;
    let revoked_time = request.revoke("done").await;
    let (cut_time, said) = live.is_cut(BOUND).await;
    is_soon(cut_time, revoked_time).await;
    assert!(said.contains("the grant of tunnel-revoked.team has ended: it was revoked"), "{said}");
    is_empty(stand, &instance).await;
    assert_eq!(jump.ended(&request.uid).await["record"]["cause"], "Revoked");
    assert_eq!(all_closed(stand, &instance).await, 1);
}

pub async fn an_endpoint_proves_its_name() {
    let stand = Stand::start("gateway-tls").await;
    let db = stand.lab.instance("db-1");
    tunnel::named(&stand, &db);
    let request = behind(&stand, "alice", "tls", &db).applied().await;
    request.becomes("Granted").await;
    let tls = Tls::start(&stand, Vouched::ByAnAuthority).await;
    let jump = Jump::start_within(&tls, &stand, "gateway-tls").await;
    let client = owner(&request, &jump, &db);
    client.gets_in(&[&db.id]).await;
    assert_eq!(all_closed(&stand, &db).await, 1);
    // Whoever has another name is not spoken to: the stand-in hears nothing.
    let other = tunnel::NAME.replacen("eice-0", "eice-1", 1);
    let hosts = fs::read_to_string(tls.dir.join("hosts")).unwrap();
    fs::write(tls.dir.join("hosts"), hosts.replace(tunnel::NAME, &other)).unwrap();
    stand.lab.standin().put_endpoint(Endpoint {
        id: stand.lab.endpoint_id().to_owned(),
        vpc_id: db.vpc_id.clone(),
        subnet_id: db.subnet_id.clone(),
        dns_name: other,
        ..Endpoint::default()
    });
    let jump = Jump::start_within(&tls, &stand, "gateway-tls-other").await;
    let said = owner(&request, &jump, &db).refused(&format!("{}:22", db.id)).await;
    assert!(said.contains("no connection through eice-") && said.contains("certificate"), "{said}");
    assert_eq!(tunnels(&stand, &db).iter().filter(|entry| entry.action == "openTunnel").count(), 1);
}

pub async fn an_endpoints_connections_are_shared_out_and_what_aws_refuses_is_told() {
    let (stand, _) = both().await;
    let limits = ["--endpoint-connections-max", "2", "--endpoint-connections-per-user-max", "1"];
    let jump = Jump::start(stand, "gateway-endpoint", &limits).await;
    let instance = private(stand, "shared-out").await;
    let first = behind(stand, "alice", "shared-out-1", &instance).applied().await;
    let second = behind(stand, "bob", "shared-out-2", &instance).applied().await;
    let third = behind(stand, "carol", "shared-out-3", &instance).applied().await;
    for request in [&first, &second, &third] {
        request.becomes("Granted").await;
    }
    let of = |request| owner(request, &jump, &instance);
    let there = format!("{}:22", instance.id);
    let open = of(&first).stays(&instance.id).await;
    let said = of(&first).refused(&there).await;
    assert!(said.contains("you have 1 connections through eice-"), "{said}");
    let mut other = of(&second).stays(&instance.id).await;
    let said = of(&third).refused(&there).await;
    assert!(said.contains("carries 2 connections of this gateway"), "{said}");
    assert!((jump.metric("instance_access_gateway_endpoint_connections").await - 2.0).abs() < 0.5);
    drop(open);
    poll::until("a connection that is given back", BOUND, async || {
        let shell = of(&third).typed(&[&instance.id, "id -un"]).await;
        if shell.success() { Ok(()) } else { Err(shell.stderr) }
    })
    .await
    .unwrap();
    // And what AWS itself says, in each of its ways.
    let error = |code: &str, message: &str, status| {
        let (code, message) = (code.to_owned(), message.to_owned());
        FaultKind::Error { code, message, status }
    };
    for (kind, expected) in [
        (error("TooManyConnections", "The limit is reached.", 429), "takes no more connections: The limit is reached."),
        (FaultKind::Throttle, "try again when one has ended"),
        (FaultKind::Deny, "does not let the gateway in; tell the operators"),
        (error("InvalidParameter", "The specified PrivateIpAddress is odd.", 400), "PrivateIpAddress is odd"),
        (FaultKind::ServerError(503), "try again"),
        (FaultKind::Drop, "try again"),
        (FaultKind::Garbage, "try again"),
    ] {
        stand.lab.standin().set_fault(Fault::new(kind.clone()).on(Api::Tunnel).instance(&instance.id).times(1));
        let said = of(&third).refused(&there).await;
        assert!(said.contains(expected) && !said.contains("arn:"), "{kind:?}: {said}");
    }
    other.echoes().await;
    drop(other);
    is_empty(stand, &instance).await;
    let opened = tunnels(stand, &instance).into_iter();
    let ok = opened.filter(|entry| entry.action == "openTunnel" && entry.outcome == lab::standin::Outcome::Ok).count();
    assert_eq!(ok, 3, "somebody had more than a share");
    assert!(jump.metric("instance_access_gateway_refusals_total{reason=\"EndpointShare\"}").await > 0.0);
    assert!(jump.metric("instance_access_gateway_refusals_total{reason=\"EndpointFull\"}").await > 0.0);
    let log = jump.log();
    assert!(log.contains("is not authorized to perform") && !log.contains("X-Amz-Signature"), "{log}");
}

pub async fn without_the_gateway_a_tunnel_ends_all_the_same() {
    let (stand, _) = both().await;
    let killed = Jump::start(stand, "gateway-killed", &[]).await;
    let frozen = Jump::start(stand, "gateway-frozen", &[]).await;
    let (of_killed, of_frozen) = (private(stand, "tunnel-killed").await, private(stand, "tunnel-frozen").await);
    let first = behind(stand, "alice", "tunnel-killed", &of_killed).applied().await;
    let second = behind(stand, "alice", "tunnel-frozen", &of_frozen).with(json!({"ttlSeconds": 120})).applied().await;
    first.becomes("Granted").await;
    let expiration = time(&second.becomes("Granted").await, EXPIRATION).unwrap();
    let mut one = owner(&first, &killed, &of_killed).stays(&of_killed.id).await;
    let mut other = owner(&second, &frozen, &of_frozen).stays(&of_frozen.id).await;
    // A tunnel lasts for what is left of the grant when AWS is asked, from AWS's answer on: it ends later by what the machine
    // kept for others meanwhile.
    let opened = frozen.records(&second.uid, "SessionOpened");
    let asked_time = time(opened.last().unwrap(), "/time").unwrap();
    let stolen = pace::stolen(asked_time, Timestamp::now()).await;
    one.echoes().await;
    other.echoes().await;
    // One that closes nothing any more, and cuts nobody.
    frozen.signal("-STOP");
    killed.signal("-KILL");
    is_empty(stand, &of_killed).await;
    assert_eq!(all_closed(stand, &of_killed).await, 1);
    assert!(stand.lab.sessions_alive("tunnel-frozen") > 0);
    let gone = poll::until_ok("no session lives", END_BOUND, || match stand.lab.sessions_alive("tunnel-frozen") {
        0 => Ok(Timestamp::now()),
        alive => Err(format!("{alive} alive")),
    });
    is_hardly_later(gone.await.unwrap(), expiration, stolen).await;
    drop((one, other));
    second.ends("Expired").await;
}

pub async fn a_gateway_without_endpoints_says_the_way_that_there_is() {
    let (stand, _) = both().await;
    let jump = Jump::start(stand, "gateway-no-endpoint", &["--endpoint-connections-max", "0"]).await;
    let instance = private(stand, "no-endpoint").await;
    let request = behind(stand, "alice", "no-endpoint", &instance).applied().await;
    request.becomes("Granted").await;
    let said = owner(&request, &jump, &instance).refused(&format!("{}:22", instance.id)).await;
    assert!(said.contains("EC2 Instance Connect Endpoint") && said.contains("status.connection.command"), "{said}");
    assert_eq!(tunnels(stand, &instance).len(), 0);
}

pub async fn a_private_address_is_dialled_first_where_it_means_the_instance() {
    let (stand, _) = both().await;
    let instance = stand.instance("near").await;
    let jump = Jump::start(stand, "gateway-near", &["--private-vpcs", &instance.vpc_id]).await;
    let request = stand.request("alice", "near").on(&instance).with(json!({"ttlSeconds": 600})).applied().await;
    request.becomes("Granted").await;
    Client::of(&request, &jump).gets_in(&[&instance.id]).await;
    let ended = jump.ended(&request.uid).await;
    let (private, public) = (format!("{}:{}", instance.private_ip, instance.port), instance.address().to_string());
    assert_ne!(private, public);
    assert_eq!(ended["record"]["destination"], private, "{ended}");
    let opened = jump.records(&request.uid, "SessionOpened");
    assert_eq!(opened[0]["record"]["destination"], format!("{private}, {public}"));
}
