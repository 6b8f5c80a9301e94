//! The EC2 Instance Connect Endpoint's websocket: bytes to an instance of the endpoint's VPC.
//!
//! Source: AWS's command line client (the query, the presigned signature, binary frames) and AWS's documentation
//! (20 connections, an hour, ports 22 and 3389). Of AWS's errors, that of a wrong port is known word for word, and of the
//! reasons with which a websocket closes that of an instance that was not reached, as people report them; the codes of
//! the others, and those with which a websocket closes, are guesses.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::extract::FromRequestParts;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Response, StatusCode};
use axum::response::IntoResponse;
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Shared;
use super::api::{Refusal, refuse, respond};
use super::fault::FaultKind;
use super::http::Conn;
use super::journal::{Api, Entry, Outcome};
use super::sigv4;

const DURATION_SECONDS_MAX: u64 = 3600;
/// SSH and RDP.
const PORTS: [u16; 2] = [22, 3389];
/// How long the endpoint tries to reach the instance.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// One frame to the client: what AWS's client sends at most is 65,000.
const FRAME_BYTES_MAX: usize = 32 * 1024;

const NORMAL: u16 = 1000;
const GOING_AWAY: u16 = 1001;
const UNSUPPORTED: u16 = 1003;
const FAILED: u16 = 1011;
/// The reason that AWS gives for an instance that was not reached, whether it refuses or says nothing.
const UNREACHED: &str = "Unable to connect to target";

/// The connections that are open through each endpoint.
#[derive(Default)]
pub(super) struct Tunnels(Mutex<HashMap<String, usize>>);

impl Tunnels {
    pub(super) fn open(&self, endpoint_id: &str) -> usize {
        self.0.lock().expect("no holder panics").get(endpoint_id).copied().unwrap_or(0)
    }
}

/// A place among an endpoint's connections, free again when dropped.
struct Place {
    shared: Arc<Shared>,
    endpoint_id: String,
}

impl Place {
    fn take(shared: &Arc<Shared>, endpoint_id: &str) -> Option<Self> {
        let mut open = shared.tunnels.0.lock().expect("no holder panics");
        let count = open.entry(endpoint_id.to_owned()).or_default();
        if *count >= shared.config.tunnel_connections_max {
            return None;
        }
        *count += 1;
        Some(Self { shared: shared.clone(), endpoint_id: endpoint_id.to_owned() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.shared.tunnels.0.lock().expect("no holder panics");
        if let Some(count) = open.get_mut(&self.endpoint_id) {
            *count -= 1;
        }
    }
}

/// Where a tunnel goes, and for how long.
struct Route {
    to: SocketAddr,
    lasts: Duration,
    place: Place,
}

pub(super) async fn answer(shared: Arc<Shared>, conn: Arc<Conn>, mut parts: Parts) -> Response<Body> {
    let signature = sigv4::read(&parts);
    let query: HashMap<String, String> =
        form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes()).into_owned().collect();
    let mut entry = shared.arrived(Api::Tunnel, "openTunnel".into(), signature.as_ref().ok());
    entry.endpoint_id = query.get("instanceConnectEndpointId").cloned();
    let address: Option<IpAddr> = query.get("privateIpAddress").and_then(|it| it.parse().ok());
    let endpoint = entry.endpoint_id.as_ref().and_then(|id| shared.world.endpoint(id));
    if let (Some(endpoint), Some(address)) = (&endpoint, address)
        && let Some(it) = shared.world.instance_in_vpc(&endpoint.region, &endpoint.vpc_id, address)
    {
        entry.instance_ids = vec![it.instance.id.clone()];
    }

    let mishap = shared.faults.strike(Api::Tunnel, "openTunnel", &entry.instance_ids);
    let delay = mishap.delay + mishap.answer_delay;
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    if matches!(mishap.end, Some(FaultKind::Drop | FaultKind::DoThenDrop)) {
        shared.decided(entry, Outcome::Dropped);
        match conn.reset().await {}
    }
    if mishap.end == Some(FaultKind::Garbage) {
        shared.decided(entry, Outcome::Error("Garbage".into()));
        return respond(StatusCode::OK, "text/html", "<html><body>Welcome to the hotel".into());
    }
    let route = shared.authenticate(Api::Tunnel, signature, &parts, b"", &mishap).and_then(|caller| {
        entry.account_id.clone_from(&caller.account_id);
        shared.afflict(Api::Tunnel, &mishap, &caller, "openTunnel")?;
        let endpoint = endpoint
            .filter(|it| it.region == caller.region)
            .ok_or_else(|| invalid("The specified InstanceConnectEndpointId does not exist."))?;
        plan(&shared, &endpoint, &query, address)
    });
    let upgrade = WebSocketUpgrade::from_request_parts(&mut parts, &()).await;
    let outcome = route.and_then(|route| match upgrade {
        Ok(upgrade) => Ok((route, upgrade)),
        Err(rejection) => Err(Refusal {
            status: rejection.into_response().status().as_u16(),
            ..Refusal::new("InvalidParameter", "The request is no websocket handshake.")
        }),
    });
    let request_id = entry.request_id.clone();
    let mut response = match outcome {
        Ok((route, upgrade)) => {
            let closing = Entry { action: "closeTunnel".into(), ..entry.clone() };
            shared.decided(entry, Outcome::Ok);
            upgrade.on_upgrade(move |socket| relay(shared, socket, route, closing))
        }
        Err(refusal) => {
            shared.decided(entry, Outcome::Error(refusal.code.clone()));
            refuse(Api::Tunnel, &refusal, &request_id)
        }
    };
    if let Ok(id) = HeaderValue::from_str(&request_id) {
        response.headers_mut().insert("x-amzn-requestid", id);
    }
    response
}

fn invalid(text: &str) -> Refusal {
    Refusal::new("InvalidParameter", text)
}

fn plan(
    shared: &Arc<Shared>,
    endpoint: &super::world::Endpoint,
    query: &HashMap<String, String>,
    address: Option<IpAddr>,
) -> Result<Route, Refusal> {
    if !matches!(&*endpoint.state, "create-complete" | "update-in-progress" | "update-complete" | "update-failed") {
        return Err(invalid("The specified InstanceConnectEndpoint is not available."));
    }
    let port = query
        .get("remotePort")
        .and_then(|it| it.parse::<u16>().ok())
        .filter(|port| PORTS.contains(port) || shared.config.extra_tunnel_ports.contains(port))
        .ok_or_else(|| {
            invalid(
                "The specified RemotePort is not valid. Specify either 22 or 3389 as the RemotePort and retry your \
                 request.",
            )
        })?;
    let seconds = match query.get("maxTunnelDuration") {
        None => DURATION_SECONDS_MAX,
        Some(text) => text
            .parse()
            .ok()
            .filter(|it| (1..=DURATION_SECONDS_MAX).contains(it))
            .ok_or_else(|| invalid("The specified MaxTunnelDuration is not valid. Specify 1 to 3600 seconds."))?,
    };
    let address = address.ok_or_else(|| invalid("The specified PrivateIpAddress is not valid."))?;
    let host = shared
        .world
        .instance_in_vpc(&endpoint.region, &endpoint.vpc_id, address)
        .and_then(|it| it.instance.host_addr)
        .ok_or_else(|| invalid("The specified PrivateIpAddress is not in the VPC of the endpoint."))?;
    let place = Place::take(shared, &endpoint.id).ok_or_else(|| Refusal {
        status: 429,
        ..Refusal::new("TooManyConnections", "The endpoint's limit of concurrent connections is reached.")
    })?;
    // a lab's sshd may listen above 1023: port 22 is wherever it listens
    let to = if port == 22 { host } else { SocketAddr::new(host.ip(), port) };
    Ok(Route { to, lasts: Duration::from_secs(seconds), place })
}

/// Why a tunnel closed: the websocket's code and reason.
type End = (u16, &'static str);

async fn relay(shared: Arc<Shared>, socket: WebSocket, route: Route, mut closing: Entry) {
    let ends = shared.clock.now() + route.lasts;
    let mut stopped = shared.stopped.subscribe();
    let (mut sink, mut frames) = socket.split();
    let tcp = tokio::time::timeout(DIAL_TIMEOUT, TcpStream::connect(route.to)).await;
    let (code, reason) = match tcp {
        Ok(Ok(tcp)) => {
            let _ = tcp.set_nodelay(true);
            let (mut from_host, mut to_host) = tcp.into_split();
            let up = async {
                loop {
                    match frames.next().await {
                        Some(Ok(Message::Binary(bytes))) => {
                            if to_host.write_all(&bytes).await.is_err() {
                                return (NORMAL, "");
                            }
                        }
                        Some(Ok(Message::Text(_))) => {
                            return (UNSUPPORTED, "text frames are not supported");
                        }
                        Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                        Some(Ok(Message::Close(_)) | Err(_)) | None => return (NORMAL, ""),
                    }
                }
            };
            let down = async {
                let mut buffer = vec![0; FRAME_BYTES_MAX];
                loop {
                    match from_host.read(&mut buffer).await {
                        Ok(0) | Err(_) => return (NORMAL, ""),
                        Ok(n) => {
                            let frame = Message::Binary(buffer[..n].to_vec().into());
                            if sink.send(frame).await.is_err() {
                                return (NORMAL, "");
                            }
                        }
                    }
                }
            };
            let end: End = tokio::select! {
                end = up => end,
                end = down => end,
                () = shared.clock.reaches(ends) => (GOING_AWAY, "the maximum tunnel duration is reached"),
                _ = stopped.wait_for(|it| *it) => (GOING_AWAY, "the endpoint is gone"),
            };
            end
        }
        Ok(Err(_)) | Err(_) => (FAILED, UNREACHED),
    };
    let _ = sink.send(Message::Close(Some(CloseFrame { code, reason: reason.into() }))).await;
    drop(route.place);
    closing.time = jiff::Timestamp::now();
    closing.offset = shared.clock.now();
    let outcome = if code == NORMAL { Outcome::Ok } else { Outcome::Error(format!("{code} {reason}")) };
    shared.decided(closing, outcome);
}
