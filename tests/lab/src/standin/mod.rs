//! Placeholder for the AWS stand-in: instances, pushed keys, and the metadata that sshd asks for.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    extract::{ConnectInfo, Path, State},
    http::StatusCode,
    routing::{get, post},
};
use serde_json::{Value, json};

/// How the stand-in behaves.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Ports beside 22 and 3389 that a tunnel may go to.
    pub extra_tunnel_ports: Vec<u16>,
}

/// The account of callers and instances that name no other.
pub const ACCOUNT_ID: &str = "123456789012";

/// An instance as AWS describes it.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "placeholder")]
pub struct Instance {
    pub id: String,
    pub state: String,
    pub availability_zone: String,
    pub region: String,
    pub account_id: String,
    pub vpc_id: String,
    pub subnet_id: String,
    pub private_ip: Option<IpAddr>,
    pub public_ip: Option<IpAddr>,
    pub ipv6: Option<IpAddr>,
    pub tags: BTreeMap<String, String>,
    pub host_addr: Option<SocketAddr>,
}

/// An Instance Connect Endpoint as AWS describes it.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "placeholder")]
pub struct Endpoint {
    pub id: String,
    pub region: String,
    pub vpc_id: String,
    pub subnet_id: String,
    pub state: String,
    pub dns_name: String,
}

#[derive(Debug, Default)]
struct World {
    instances: BTreeMap<String, Instance>,
    endpoints: BTreeMap<String, Endpoint>,
    keys: Vec<(String, String, String, Instant)>,
    ahead: Duration,
}

/// The stand-in.
#[derive(Debug)]
pub struct StandIn {
    api_addr: SocketAddr,
    metadata_addr: SocketAddr,
    world: Arc<Mutex<World>>,
}

impl StandIn {
    /// Binds and serves on the current runtime.
    ///
    /// # Errors
    /// If no port is free.
    pub async fn start(_config: Config) -> anyhow::Result<StandIn> {
        let world = Arc::new(Mutex::new(World::default()));
        let api = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let metadata = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let this = StandIn { api_addr: api.local_addr()?, metadata_addr: metadata.local_addr()?, world: world.clone() };
        let app = Router::new().route("/", post(push)).with_state(world.clone());
        tokio::spawn(async move { axum::serve(api, app).await });
        let app = Router::new().route("/latest/meta-data/managed-ssh-keys/active-keys/{user}", get(keys)).with_state(world);
        let app = app.into_make_service_with_connect_info::<SocketAddr>();
        tokio::spawn(async move { axum::serve(metadata, app).await });
        Ok(this)
    }
    /// Where EC2, EIC and STS answer.
    pub fn api_addr(&self) -> SocketAddr {
        self.api_addr
    }
    /// Where instances ask for keys.
    pub fn metadata_addr(&self) -> SocketAddr {
        self.metadata_addr
    }
    /// Adds or replaces an instance.
    pub fn put_instance(&self, instance: Instance) {
        self.world.lock().unwrap().instances.insert(instance.id.clone(), instance);
    }
    /// Removes an instance.
    pub fn remove_instance(&self, id: &str) {
        self.world.lock().unwrap().instances.remove(id);
    }
    /// Lets time pass at once.
    pub fn advance(&self, by: Duration) {
        self.world.lock().unwrap().ahead += by;
    }
    /// Adds or replaces an endpoint.
    pub fn put_endpoint(&self, endpoint: Endpoint) {
        self.world.lock().unwrap().endpoints.insert(endpoint.id.clone(), endpoint);
    }
}

type Shared = State<Arc<Mutex<World>>>;

async fn push(State(world): Shared, body: String) -> (StatusCode, Json<Value>) {
    let body: Value = serde_json::from_str(&body).unwrap();
    let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
    let mut world = world.lock().unwrap();
    if world.instances.get(&text("InstanceId")).is_none_or(|it| it.state != "running") {
        return (StatusCode::BAD_REQUEST, Json(json!({"__type": "EC2InstanceNotFoundException", "Message": "no"})));
    }
    world.keys.push((text("InstanceId"), text("InstanceOSUser"), text("SSHPublicKey"), Instant::now()));
    (StatusCode::OK, Json(json!({"RequestId": "placeholder", "Success": true})))
}

async fn keys(State(world): Shared, ConnectInfo(from): ConnectInfo<SocketAddr>, Path(user): Path<String>) -> (StatusCode, String) {
    let world = world.lock().unwrap();
    let asks = world.instances.values().find(|it| it.host_addr.is_some_and(|host| host.ip() == from.ip()));
    let Some(asks) = asks else { return (StatusCode::NOT_FOUND, String::new()) };
    let live = world.keys.iter().filter(|(id, os_user, _, at)| *id == asks.id && *os_user == user && at.elapsed() + world.ahead < Duration::from_secs(60));
    let keys: String = live.map(|(_, _, key, _)| format!("{key}\n")).collect();
    if keys.is_empty() { (StatusCode::NOT_FOUND, keys) } else { (StatusCode::OK, keys) }
}
