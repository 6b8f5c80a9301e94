//! The endpoint's websocket.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use lab::standin::{Api, Config, Endpoint, Fault, FaultKind, Instance};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use super::client::{ID, World, instance, world_with};

pub type Tunnel = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// A host that says back what it hears.
pub async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
            });
        }
    });
    addr
}

pub async fn check_echo(tunnel: &mut Tunnel) {
    let sent: Vec<u8> = (0..200_000u32).map(|n| n as u8).collect();
    for part in sent.chunks(65_000) {
        tunnel.send(Message::binary(part.to_vec())).await.unwrap();
    }
    let mut heard = Vec::new();
    while heard.len() < sent.len() {
        match tunnel.next().await.expect("it is open").expect("it is sound") {
            Message::Binary(bytes) => heard.extend_from_slice(&bytes),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(heard, sent);
}

/// The status and the code with which a tunnel is refused.
pub async fn refusal(url: &str) -> (u16, String) {
    match connect_async(url).await {
        Err(Error::Http(response)) => {
            let body: Value = serde_json::from_slice(response.body().as_ref().expect("a body")).expect("JSON");
            assert!(response.headers().contains_key("x-amzn-requestid"));
            (response.status().as_u16(), body["ErrorCode"].as_str().expect("a code").to_owned())
        }
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("{url} opened"),
    }
}

async fn world_to(host: SocketAddr) -> World {
    let config = Config { extra_tunnel_ports: vec![host.port()], ..Config::default() };
    let world = world_with(config).await;
    world.stand_in.put_instance(Instance { host_addr: Some(host), ..instance(ID) });
    world.stand_in.put_endpoint(Endpoint::default());
    world
}

/// Parameters with their new values.
type Changes<'a> = &'a [(&'a str, &'a str)];

/// The address of a tunnel with some parameters changed; an empty value takes one away.
fn url(world: &World, changes: Changes<'_>) -> String {
    let date = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
    let credential = format!("AKIDEXAMPLE/{}/us-west-2/ec2-instance-connect/aws4_request", &date[..8]);
    let digest = "0".repeat(64);
    let mut parameters = vec![
        ("instanceConnectEndpointId", "eice-0123456789abcdef0"),
        ("remotePort", "22"),
        ("privateIpAddress", "10.0.0.5"),
        ("X-Amz-Algorithm", "AWS4-HMAC-SHA256"),
        ("X-Amz-Credential", &credential),
        ("X-Amz-Date", &date),
        ("X-Amz-Expires", "60"),
        ("X-Amz-SignedHeaders", "host"),
        ("X-Amz-Signature", &digest),
    ];
    for (name, value) in changes {
        parameters.retain(|(it, _)| it != name);
        if !value.is_empty() {
            parameters.push((name, value));
        }
    }
    let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(parameters).finish();
    format!("ws://{}/openTunnel?{query}", world.stand_in.api_addr())
}

/// What the tunnel's end says.
async fn end(tunnel: &mut Tunnel) -> (CloseCode, String) {
    let wait = async {
        loop {
            match tunnel.next().await {
                Some(Ok(Message::Close(Some(frame)))) => {
                    return (frame.code, frame.reason.to_string());
                }
                Some(Ok(Message::Binary(_))) => {}
                other => panic!("{other:?}"),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(5), wait).await.expect("the tunnel ends")
}

#[tokio::test]
async fn bytes_go_through_both_ways_and_the_hosts_end_is_the_tunnels_end() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let world = world_to(listener.local_addr().unwrap()).await;
    let (mut tunnel, _) = connect_async(url(&world, &[])).await.unwrap();
    let (mut host, _) = listener.accept().await.unwrap();
    tunnel.send(Message::binary(b"SSH-2.0-a\r\n".to_vec())).await.unwrap();
    let mut heard = [0; 11];
    host.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"SSH-2.0-a\r\n");
    host.write_all(b"SSH-2.0-b\r\n").await.unwrap();
    assert_eq!(tunnel.next().await.unwrap().unwrap(), Message::binary(b"SSH-2.0-b\r\n".to_vec()));
    drop(host);
    assert_eq!(end(&mut tunnel).await.0, CloseCode::Normal);

    // and the other way round
    let (mut tunnel, _) = connect_async(url(&world, &[])).await.unwrap();
    let (mut host, _) = listener.accept().await.unwrap();
    tunnel.close(None).await.unwrap();
    assert_eq!(host.read(&mut [0; 1]).await.unwrap(), 0);
    let actions: Vec<_> = world.stand_in.journal().into_iter().map(|it| it.action).collect();
    assert_eq!(actions[..3], ["openTunnel", "closeTunnel", "openTunnel"]);
}

#[tokio::test]
async fn a_large_transfer_arrives_whole() {
    let world = world_to(echo().await).await;
    let (mut tunnel, _) = connect_async(url(&world, &[])).await.unwrap();
    check_echo(&mut tunnel).await;
}

#[tokio::test]
async fn only_the_endpoints_own_vpc_and_known_ports_are_reached() {
    let host = echo().await;
    let world = world_to(host).await;
    world.stand_in.put_instance(Instance {
        vpc_id: "vpc-other".into(),
        private_ip: Some(IpAddr::from([10, 0, 0, 6])),
        host_addr: Some(host),
        ..instance("i-0fedcba9876543210")
    });
    world.stand_in.put_endpoint(Endpoint {
        id: "eice-far".into(),
        region: "eu-central-1".into(),
        ..Endpoint::default()
    });
    world.stand_in.put_endpoint(Endpoint {
        id: "eice-new".into(),
        state: "create-in-progress".into(),
        ..Endpoint::default()
    });
    let invalid = "InvalidParameter";
    let rows: &[(Changes<'_>, &str)] = &[
        (&[("privateIpAddress", "10.0.0.6")], invalid),
        (&[("privateIpAddress", "169.254.169.254")], invalid),
        (&[("privateIpAddress", "127.0.0.1")], invalid),
        (&[("privateIpAddress", "localhost")], invalid),
        (&[("privateIpAddress", "")], invalid),
        (&[("remotePort", "5432")], invalid),
        (&[("remotePort", "")], invalid),
        (&[("remotePort", "65536")], invalid),
        (&[("maxTunnelDuration", "0")], invalid),
        (&[("maxTunnelDuration", "3601")], invalid),
        (&[("maxTunnelDuration", "1h")], invalid),
        (&[("instanceConnectEndpointId", "eice-none")], invalid),
        (&[("instanceConnectEndpointId", "eice-far")], invalid),
        (&[("instanceConnectEndpointId", "eice-new")], invalid),
        (&[("X-Amz-Date", "20200101T000000Z")], "IncompleteSignature"),
        (&[("X-Amz-Signature", "")], "IncompleteSignature"),
        (&[("X-Amz-Signature", ""), ("X-Amz-Algorithm", "")], "MissingAuthenticationToken"),
    ];
    for (changes, expected) in rows {
        let (status, code) = refusal(&url(&world, changes)).await;
        // the code is what AWS is known to say, or a guess; the status of a bad signature is not known
        assert_eq!(code, *expected, "{changes:?}");
        assert!((400..404).contains(&status), "{changes:?} {status}");
    }
    let port = host.port().to_string();
    let (mut tunnel, _) = connect_async(url(&world, &[("remotePort", &port)])).await.expect("an extra port");
    check_echo(&mut tunnel).await;
}

#[tokio::test]
async fn the_twenty_first_connection_is_refused_until_one_ends() {
    let world = world_to(echo().await).await;
    let mut tunnels = Vec::new();
    for _ in 0..20 {
        tunnels.push(connect_async(url(&world, &[])).await.unwrap().0);
    }
    assert_eq!(refusal(&url(&world, &[])).await, (429, "TooManyConnections".into()));
    assert_eq!(world.stand_in.open_tunnels("eice-0123456789abcdef0"), 20);
    tunnels.pop();
    for _ in 0..500 {
        if world.stand_in.open_tunnels("eice-0123456789abcdef0") < 20 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (mut tunnel, _) = connect_async(url(&world, &[])).await.expect("a place is free");
    check_echo(&mut tunnel).await;
}

#[tokio::test]
async fn a_tunnel_ends_at_its_duration_and_no_later_than_an_hour() {
    let world = world_to(echo().await).await;
    let (mut short, _) = connect_async(url(&world, &[("maxTunnelDuration", "60")])).await.unwrap();
    let (mut long, _) = connect_async(url(&world, &[])).await.unwrap();
    world.stand_in.advance(Duration::from_secs(59));
    check_echo(&mut short).await;
    world.stand_in.advance(Duration::from_secs(1));
    assert_eq!(end(&mut short).await, (CloseCode::Away, "the maximum tunnel duration is reached".into()));
    check_echo(&mut long).await;
    world.stand_in.advance(Duration::from_secs(3600));
    assert_eq!(end(&mut long).await.0, CloseCode::Away);
    // and by waiting
    let (mut real, _) = connect_async(url(&world, &[("maxTunnelDuration", "1")])).await.unwrap();
    assert_eq!(end(&mut real).await.0, CloseCode::Away);
}

#[tokio::test]
async fn a_host_that_refuses_shows_only_after_the_handshake() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let world = world_to(listener.local_addr().unwrap()).await;
    drop(listener);
    let (mut tunnel, _) = connect_async(url(&world, &[])).await.expect("the handshake knows nothing of the host");
    assert_eq!(end(&mut tunnel).await, (CloseCode::Error, "Unable to connect to target".into()));
}

#[tokio::test]
async fn text_is_no_tunnelled_byte() {
    let world = world_to(echo().await).await;
    let (mut tunnel, _) = connect_async(url(&world, &[])).await.unwrap();
    tunnel.send(Message::text("hello")).await.unwrap();
    assert_eq!(end(&mut tunnel).await.0, CloseCode::Unsupported);
}

#[tokio::test]
async fn tunnels_fail_on_demand_and_end_with_the_stand_in() {
    let world = world_to(echo().await).await;
    world.stand_in.set_fault(Fault::new(FaultKind::ServerError(503)).on(Api::Tunnel).times(1));
    world.stand_in.set_fault(Fault::new(FaultKind::Drop).on(Api::Tunnel).instance(ID).times(1));
    assert_eq!(refusal(&url(&world, &[])).await, (503, "InternalError".into()));
    assert!(matches!(connect_async(url(&world, &[])).await, Err(Error::Io(_) | Error::Protocol(_))));
    let (mut tunnel, _) = connect_async(url(&world, &[])).await.unwrap();
    drop(world);
    assert_eq!(end(&mut tunnel).await, (CloseCode::Away, "the endpoint is gone".into()));
}
