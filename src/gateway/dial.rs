//! The instance's side of a session: who is dialled, and how its bytes come and go.
//!
//! Addresses are tried one after the other, not raced (RFC 8305): the loser of a race that connects late is a connection
//! without a login, and sshd penalises its source, which is the gateway, and so everybody who comes through it. From far
//! away, where the race is always on, that would be once a session.
//!
//! An endpoint's connections are few. They are taken before anything is done, and given back when the tunnel is closed.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use russh::ChannelOpenFailure;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::time::{Instant, timeout_at};

use crate::aws::{Bytes, Tunnel, Tunnels};
use crate::domain::cloud::{Failure, FailureClass, TunnelTo};
use crate::domain::session::{Destination, EndpointLimits, Endpoints, SessionEnd, SessionGrant, Spent, tunnel_end};
use crate::traces::{Context, Span};

use super::connection::not_now;
use super::metrics::GatewayMetrics;

/// How long an instance may take to answer, all its addresses together: two lost SYNs.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an address may take if there is another one: one lost SYN, and an answer from afar.
const ADDRESS_TIMEOUT: Duration = Duration::from_secs(3);
/// Bytes that are read from an instance at once: an SSH packet's most.
const CHUNK_BYTES: usize = 32 << 10;
/// SSH's code for a channel that leads nowhere. Source: RFC 4254, 5.1.
const CONNECT_FAILED: u32 = 2;

/// How instances are dialled.
pub struct Dialler {
    tunnels: Option<Arc<dyn Tunnels>>,
    count: Arc<Count>,
}

struct Count {
    endpoints: Mutex<Endpoints>,
    metrics: Arc<GatewayMetrics>,
}

impl Count {
    fn with<T>(&self, change: impl FnOnce(&mut Endpoints) -> T) -> T {
        let mut endpoints = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = change(&mut endpoints);
        self.metrics.endpoint_connections.set(i64::try_from(endpoints.open()).unwrap_or(i64::MAX));
        changed
    }
}

/// One connection of an endpoint, given back when this is dropped.
pub struct EndpointPlace {
    count: Arc<Count>,
    endpoint_id: String,
    user: String,
}

impl Drop for EndpointPlace {
    fn drop(&mut self) {
        self.count.with(|endpoints| endpoints.give_back(&self.endpoint_id, &self.user));
    }
}

/// What is dialled for one session. Dropping it gives back what it took.
pub struct Dial {
    to: Destination,
    _place: Option<EndpointPlace>,
    reached: OnceLock<SocketAddr>,
}

impl Dial {
    /// What was dialled, and once it was reached, what that was.
    pub fn destination(&self) -> String {
        self.reached.get().map_or_else(|| self.to.to_string(), ToString::to_string)
    }
}

impl Dialler {
    /// Through endpoints by `tunnels`, if there are any.
    pub fn new(tunnels: Option<Arc<dyn Tunnels>>, limits: EndpointLimits, metrics: Arc<GatewayMetrics>) -> Self {
        Self { tunnels, count: Arc::new(Count { endpoints: Mutex::new(Endpoints::new(limits)), metrics }) }
    }

    /// Takes what there are few of.
    pub fn place(&self, grant: &SessionGrant, to: &Destination) -> Result<Option<EndpointPlace>, Spent> {
        let Destination::Endpoint(TunnelTo { endpoint_id, .. }) = to else { return Ok(None) };
        self.count.with(|endpoints| endpoints.take(endpoint_id, &grant.subject))?;
        let (endpoint_id, user) = (endpoint_id.clone(), grant.subject.clone());
        Ok(Some(EndpointPlace { count: Arc::clone(&self.count), endpoint_id, user }))
    }

    /// A dial to come.
    pub fn prepare(&self, to: Destination, place: Option<EndpointPlace>) -> Dial {
        Dial { to, _place: place, reached: OnceLock::new() }
    }

    /// Dials. Dropping what comes of it closes it.
    ///
    /// # Errors
    /// What the client is told.
    pub async fn dial(&self, dial: &Dial, within: Context) -> Result<Instance, ChannelOpenFailure> {
        let mut span = Span::call(within, "dial");
        let outcome = self.dial_once(dial).await;
        span.set("instance_access.destination", dial.destination());
        if let Some(reached) = dial.reached.get() {
            span.set("server.address", reached.ip().to_string());
            span.set("server.port", reached.port());
        }
        if let Err(ChannelOpenFailure::Other { reason, .. }) = &outcome {
            span.fail("not_reached", reason);
        }
        outcome
    }

    async fn dial_once(&self, dial: &Dial) -> Result<Instance, ChannelOpenFailure> {
        match &dial.to {
            Destination::Direct(addresses) => {
                let instance =
                    one_of(addresses).await.map_err(|why| failed(format!("{why}; look at its security group")))?;
                let _ = instance.set_nodelay(true); // a socket that takes no options is one that is gone
                if let Ok(address) = instance.peer_addr() {
                    let _ = dial.reached.set(address); // once, here
                }
                Ok(Instance::Direct(instance))
            }
            Destination::Endpoint(to) => {
                let Some(tunnels) = &self.tunnels else {
                    return Err(failed("this gateway dials no endpoints; tell the operators".to_owned()));
                };
                match tunnels.open(to).await {
                    Ok(tunnel) => Ok(Instance::Tunnel(Box::new(tunnel), to.clone())),
                    Err(failure) => {
                        let Failure { class, code, message } = &failure;
                        let endpoint_id = &to.endpoint_id;
                        tracing::warn!(endpoint_id, ?class, code, error = message, "no tunnel was opened");
                        Err(told(to, &failure))
                    }
                }
            }
        }
    }
}

fn failed(reason: String) -> ChannelOpenFailure {
    ChannelOpenFailure::Other { code: CONNECT_FAILED, reason }
}

/// What a client reads of a tunnel that was not opened. Of what AWS says to the gateway's own identity it reads nothing.
fn told(to: &TunnelTo, failure: &Failure) -> ChannelOpenFailure {
    let (endpoint_id, message) = (&to.endpoint_id, &failure.message);
    match failure.class {
        FailureClass::Throttled => not_now(format!(
            "{endpoint_id} takes no more connections: {message} An endpoint has few, for everybody; try again when one has ended"
        )),
        FailureClass::Refused => {
            failed(format!("{endpoint_id} does not let the gateway in; tell the operators: the gateway's log says why"))
        }
        FailureClass::Invalid | FailureClass::Gone => failed(format!(
            "{endpoint_id} did not connect to the instance: {message}; look at the security groups: the instance's must take the port from the endpoint's"
        )),
        FailureClass::Retry | FailureClass::Bug => {
            failed(format!("no connection through {endpoint_id}: {message}; try again"))
        }
    }
}

/// Connects to the first of these that answers.
async fn one_of(addresses: &[SocketAddr]) -> Result<TcpStream, String> {
    let give_up = Instant::now() + DIAL_TIMEOUT;
    let mut why = "the instance has no address".to_owned();
    for (number, address) in addresses.iter().enumerate() {
        let is_last = number + 1 == addresses.len();
        let until = if is_last { give_up } else { give_up.min(Instant::now() + ADDRESS_TIMEOUT) };
        why = match timeout_at(until, TcpStream::connect(address)).await {
            Ok(Ok(instance)) => return Ok(instance),
            Ok(Err(error)) => format!("the instance was not reached from the gateway: {error}"),
            Err(_) => format!("the instance did not answer the gateway within {} s", DIAL_TIMEOUT.as_secs()),
        };
    }
    Err(why)
}

/// An instance's sshd, connected.
#[derive(Debug)]
pub enum Instance {
    /// By its address.
    Direct(TcpStream),
    /// Through an endpoint.
    Tunnel(Box<Tunnel>, TunnelTo),
}

/// Its bytes.
pub enum FromInstance<'a> {
    /// By its address.
    Direct(ReadHalf<'a>),
    /// Through an endpoint.
    Tunnel(&'a Tunnel),
}

/// The client's.
pub enum ToInstance<'a> {
    /// By its address.
    Direct(WriteHalf<'a>),
    /// Through an endpoint.
    Tunnel(&'a Tunnel),
}

impl Instance {
    /// Both directions, to be used by one task.
    pub fn split(&mut self) -> (FromInstance<'_>, ToInstance<'_>) {
        match self {
            Self::Direct(instance) => {
                let (from, to) = instance.split();
                (FromInstance::Direct(from), ToInstance::Direct(to))
            }
            Self::Tunnel(tunnel, _) => (FromInstance::Tunnel(tunnel), ToInstance::Tunnel(tunnel)),
        }
    }

    /// Why a session ended that ended like this: AWS closes a tunnel whose time is over as if the instance did.
    pub fn cause(&self, end: SessionEnd) -> SessionEnd {
        let Self::Tunnel(tunnel, to) = self else { return end };
        if let Some(why) = tunnel.why_closed() {
            tracing::info!(endpoint_id = to.endpoint_id, why, "a tunnel closed");
        }
        tunnel_end(end, tunnel.is_over(), tunnel.is_whole())
    }
}

impl FromInstance<'_> {
    /// The next bytes, never none; `None` at the end.
    pub async fn next(&mut self) -> Option<Bytes> {
        match self {
            Self::Direct(from) => loop {
                // No buffer while nothing comes: most sessions idle most of the time.
                from.readable().await.ok()?;
                let mut chunk = Vec::with_capacity(CHUNK_BYTES);
                match from.try_read_buf(&mut chunk) {
                    Ok(0) => return None,
                    Ok(_) => return Some(chunk.into()),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(_) => return None,
                }
            },
            Self::Tunnel(tunnel) => tunnel.next().await,
        }
    }

    /// Whether the end was no end of the instance's: AWS's, of a tunnel whose time is over.
    pub fn is_cut(&self) -> bool {
        match self {
            Self::Direct(_) => false,
            Self::Tunnel(tunnel) => tunnel.is_over(),
        }
    }
}

impl ToInstance<'_> {
    /// Sends all of them.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Direct(to) => to.write_all(bytes).await,
            Self::Tunnel(tunnel) => tunnel.send(bytes).await,
        }
    }

    /// Says that no more comes; returns whether that was the end of the other direction as well.
    pub async fn end(&mut self) -> bool {
        match self {
            Self::Direct(to) => {
                let _ = to.shutdown().await; // if it fails, the other direction hears of it
                false
            }
            Self::Tunnel(tunnel) => {
                tunnel.end().await;
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use futures::FutureExt;
    use tokio::net::TcpListener;
    use tokio::time::timeout;

    use super::*;
    use crate::domain::cloud::{Place, Region};

    async fn listening(address: &str) -> TcpListener {
        TcpListener::bind(address).await.unwrap()
    }

    #[tokio::test]
    async fn the_first_address_that_answers_is_taken_and_no_other_one_is_knocked_at() {
        let (first, second) = (listening("127.0.0.2:0").await, listening("127.0.0.3:0").await);
        let (a, b) = (first.local_addr().unwrap(), second.local_addr().unwrap());
        assert_eq!(one_of(&[a, b]).await.unwrap().peer_addr().unwrap(), a);
        drop(first);
        assert_eq!(one_of(&[a, b]).await.unwrap().peer_addr().unwrap(), b);
        let (_, knocked) = second.accept().await.unwrap();
        assert!(knocked.ip().is_loopback());
        assert!(second.accept().now_or_never().is_none(), "it was knocked at twice");
        drop(second);
        let why = one_of(&[a, b]).await.unwrap_err();
        assert!(why.contains("was not reached from the gateway"), "{why}");
    }

    #[tokio::test]
    async fn an_address_that_does_not_answer_is_left_for_the_next_after_a_while() {
        // A queue of one that is full: whoever comes then hears nothing.
        let silent = tokio::net::TcpSocket::new_v4().unwrap();
        silent.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        let silent = silent.listen(1).unwrap();
        let address = silent.local_addr().unwrap();
        let mut queued = Vec::new();
        while let Ok(stream) = timeout(Duration::from_millis(300), TcpStream::connect(address)).await {
            queued.push(stream.unwrap());
            assert!(queued.len() < 10, "its queue has no end");
        }
        let answers = listening("127.0.0.3:0").await;
        let start = Instant::now();
        let reached = one_of(&[address, answers.local_addr().unwrap()]).await.unwrap();
        assert_eq!(reached.peer_addr().unwrap(), answers.local_addr().unwrap());
        assert!(start.elapsed() >= ADDRESS_TIMEOUT && start.elapsed() < DIAL_TIMEOUT, "{:?}", start.elapsed());
    }

    #[test]
    fn what_a_client_reads_of_a_refused_tunnel_says_what_to_do_and_nothing_of_the_gateways_identity() {
        let to = TunnelTo {
            place: Place { region: Region::parse("us-west-2").unwrap() },
            vpc_id: "vpc-1".into(),
            endpoint_id: "eice-1".into(),
            address: IpAddr::from([10, 0, 0, 5]),
            port: 22,
            end_time: "2026-03-01T09:00:00Z".parse().unwrap(),
        };
        let of =
            |class, message: &str| match told(&to, &Failure { class, code: "Code".into(), message: message.into() }) {
                ChannelOpenFailure::Other { code, reason } => (code, reason),
                other => panic!("{other:?}"),
            };
        let (code, full) = of(FailureClass::Throttled, "The limit is reached.");
        assert!(code == 4 && full.contains("The limit is reached.") && full.contains("try again when one"), "{full}");
        let (_, refused) = of(FailureClass::Refused, "arn:aws:sts::123456789012:assumed-role/gateway");
        assert!(!refused.contains("arn:") && refused.contains("tell the operators"), "{refused}");
        let (code, gone) = of(FailureClass::Gone, "Unable to connect to target");
        assert!(code == 2 && gone.contains("Unable to connect to target; look at the security groups"), "{gone}");
        let (_, odd) = of(FailureClass::Retry, "it hung up");
        assert!(odd.contains("it hung up; try again"), "{odd}");
    }
}
