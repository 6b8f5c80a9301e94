//! The jump host: lets in whoever holds the key of a live grant, to that grant's instance, until that grant's end.
//!
//! ```text
//! client ─SSH─▶ connection: who is it? ─▶ session: may it? record, dial ─TCP─▶ instance's sshd
//!                    ▲                         ▲    relays what it cannot read
//! API server ─watch─▶ grants ──────────────────┘    and is cut: by the clock, by a grant's end
//! ```
//! Who may what is decided in `domain::session`. In here nobody compares times of grants, and nobody reads a byte of the
//! inner SSH. Whatever of russh's cannot be trusted to end by itself is ended under it (`stream`).
//!
//! # Guarantees
//! - No session without a record of its opening that is durable, and no key pushed without one of that.
//! - No key is pushed but on a grant that was read from the API server just then (`push`), nor, if it is told which lease
//!   they have, while no controller leads (`leader`).
//! - A session is cut within a second of the end of any grant that it is held to, also when nothing else of the system is
//!   there; and within a second of whatever the watch says.
//!
//! # Caveats
//! A cut closes the byte path: processes that the session started may live on.

mod connection;
mod dial;
mod grants;
mod host_key;
mod idle;
mod leader;
mod limits;
mod metrics;
mod push;
mod report;
mod session;
mod stream;
mod watch;

use std::borrow::Cow;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use russh::keys::{Algorithm, HashAlg};
use russh::{MethodKind, MethodSet, SshId, cipher, compression, kex, mac};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::InstanceAccess;
use crate::audit::Trail;
use crate::aws::{ComingCloud, Tunnels};
use crate::clock::Clock;
use crate::domain::session::{Dialling, EndpointLimits, standing};

use dial::Dialler;
use grants::Grants;
pub use host_key::{HostKeyError, HostKeys, known_hosts_lines};
pub use leader::LeaderLease;
use leader::{Leaders, keep_leader};
use limits::{Pace, Place, Places, source};
pub use metrics::{CONNECTIONS, GatewayMetrics, KEYS, PUSHES, REFUSALS};
use push::KeyPushes;
use report::Reporter;
use watch::Contact;

/// Keys that one connection may offer in vain. An agent that holds two dozen is served; who guesses needs a connection for
/// every sixty.
const OFFERS_MAX: usize = 60;
/// How long each of them takes at least: half a minute of guessing is sixty keys, and an agent's twenty are two seconds.
const OFFER_TIME: Duration = Duration::from_millis(100);
/// How often a client is asked for a sign of life, and how often in vain: a dead one is noticed after two minutes, if there
/// is nothing else to be sent to it.
const KEEPALIVE: (Duration, usize) = (Duration::from_secs(30), 3);
/// How long a client may take nothing of what is sent to it: as long as it may be silent.
///
/// While bytes wait for a client russh waits with them, and looks at no keepalive: who loses the network during a copy would
/// be held until TCP gives up, after a quarter of an hour. Linux counts from the last byte that was acknowledged, or from the
/// last at which the client's window was open. A slow client moves either. An SSH client reads on while whoever it works for
/// does not, as a pager does, for a channel has a window of its own; one that stops reading is one that is suspended, and
/// answers no keepalive either. Source: tcp(7), TCP_USER_TIMEOUT; Linux, `tcp_probe_timer`.
const UNTAKEN_MAX: Duration = Duration::from_secs(120);
const _: () = assert!(UNTAKEN_MAX.as_secs() == KEEPALIVE.0.as_secs() * (KEEPALIVE.1 as u64 + 1));
/// Bytes of a channel that a client may send before it is told to go on; OpenSSH's own.
const WINDOW_BYTES: u32 = 2 << 20;
/// Packets of a channel that wait for a slow instance, 32 KiB each at most; then the client's connection waits. With 16 the
/// same stream takes as much CPU, and twice the memory stays with a session that was busy once (`make bench-gateway`).
const PACKETS_WAITING_MAX: usize = 4;
/// Packets that wait for a slow client, of all channels of its connection. russh seals what waits into one buffer, and keeps
/// that for as long as the connection lives: 10, its own number, cost half as much memory again as 4; with 2 or 1 a stream
/// takes a third more CPU.
const PACKETS_UNSENT_MAX: usize = 4;
/// How long what is left may take at a shutdown, once all is cut: a close, and a record.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// Pause after a connection could not be accepted: too many open files heal by themselves.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Bounds of the gateway.
#[derive(Clone, Copy, Debug)]
pub struct GatewayLimits {
    /// Connections, logged in or not.
    pub connections_max: usize,
    /// Of these, from one source.
    pub connections_per_source_max: usize,
    /// Connections that have not logged in yet.
    pub logins_max: usize,
    /// Of these, from one source.
    pub logins_per_source_max: usize,
    /// How long a login may take.
    pub login: Duration,
    /// Connections of one key.
    pub connections_per_key_max: usize,
    /// Sessions of one grant.
    pub sessions_per_grant_max: usize,
    /// How long a session may idle, whatever its policy says; none: as long as that lets it.
    pub idle_max: Option<Duration>,
    /// Connections of endpoints.
    pub endpoints: EndpointLimits,
    /// Silence of the API server after which no session is opened.
    pub silence_max: Duration,
    /// How long sessions may go on at a shutdown.
    pub drain: Duration,
}

/// What a gateway is made of.
pub struct GatewayParts {
    /// The API server.
    pub client: Client,
    /// AWS, for grants whose key is pushed when somebody connects.
    pub cloud: ComingCloud,
    /// Its own audit trail, open.
    pub trail: Trail,
    /// The wall clock.
    pub clock: Clock,
    /// Its name in the trail and in `status.sessions`, of which each gateway has another.
    pub name: String,
    /// What clients know it by.
    pub host_keys: HostKeys,
    /// Bounds.
    pub limits: GatewayLimits,
    /// What may be dialled at all.
    pub dialling: Dialling,
    /// How endpoints are dialled, if they are.
    pub tunnels: Option<Arc<dyn Tunnels>>,
    /// The lease of the controllers, of which one must lead when a key is pushed; none: nobody looks.
    pub lease: Option<LeaderLease>,
    /// Counters.
    pub metrics: Arc<GatewayMetrics>,
}

/// Everything that connections and sessions share.
struct Shared {
    client: Client,
    trail: Trail,
    clock: Clock,
    name: String,
    ssh: Arc<russh::server::Config>,
    limits: GatewayLimits,
    dialling: Dialling,
    dialler: Dialler,
    metrics: Arc<GatewayMetrics>,
    keys_pushed: KeyPushes,
    leaders: Option<Arc<Leaders>>,
    reporter: Arc<Reporter>,
    grants: Grants,
    contact: Contact,
    connections: Arc<Places<IpAddr>>,
    logins: Arc<Places<IpAddr>>,
    keys: Arc<Places<String>>,
    sessions: Arc<Places<String>>,
    pace: Pace,
    tasks: TaskTracker,
    /// No connection and no session is opened any more.
    stop: CancellationToken,
    /// Sessions are cut, whoever they are.
    cut_all: CancellationToken,
    /// What is not on record by now is not written any more.
    give_up: CancellationToken,
}

/// A gateway that runs once [`Gateway::run`] is awaited.
pub struct Gateway {
    shared: Arc<Shared>,
}

/// Whether a gateway can do its work.
#[derive(Clone)]
pub struct GatewayHealth {
    shared: Arc<Shared>,
}

impl GatewayHealth {
    /// Why no session could be opened now, if so.
    pub fn why_not_ready(&self) -> Option<String> {
        let now = (self.shared.clock)();
        self.shared.contact.is_sure(now).err().map(|unsure| unsure.to_string())
    }
}

impl Gateway {
    /// Puts a gateway together; does nothing yet.
    pub fn new(parts: GatewayParts) -> Self {
        let GatewayParts { client, cloud, trail, clock, name, host_keys, limits, dialling, tunnels, lease, metrics } =
            parts;
        let shared = Shared {
            reporter: Reporter::new(client.clone(), name.clone(), Arc::clone(&metrics)),
            leaders: lease.map(|lease| Arc::new(Leaders::new(client.clone(), &lease, Arc::clone(&clock)))),
            client,
            trail,
            clock,
            name,
            ssh: Arc::new(ssh_config(&host_keys)),
            limits,
            dialling: Dialling { endpoints: tunnels.is_some(), ..dialling },
            dialler: Dialler::new(tunnels, limits.endpoints, Arc::clone(&metrics)),
            metrics,
            keys_pushed: KeyPushes::new(cloud),
            grants: Grants::default(),
            contact: Contact::new(limits.silence_max),
            connections: Places::new(limits.connections_per_source_max, limits.connections_max),
            logins: Places::new(limits.logins_per_source_max, limits.logins_max),
            keys: Places::new(limits.connections_per_key_max, usize::MAX),
            sessions: Places::new(limits.sessions_per_grant_max, usize::MAX),
            pace: Pace::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            cut_all: CancellationToken::new(),
            give_up: CancellationToken::new(),
        };
        let shared = Arc::new(shared);
        let weak = Arc::downgrade(&shared);
        shared.metrics.read_from(move || match weak.upgrade() {
            Some(shared) => (shared.trail.stats(), shared.contact.is_sure((shared.clock)()).is_ok()),
            None => Default::default(),
        });
        Self { shared }
    }

    /// For the probes.
    pub fn health(&self) -> GatewayHealth {
        GatewayHealth { shared: Arc::clone(&self.shared) }
    }

    /// Takes in how a request stands, as the watch does: for whoever drives a gateway without an API server.
    pub fn see(&self, request: &InstanceAccess) {
        let uid = request.metadata.uid.as_deref().unwrap_or_default();
        self.shared.grants.see(uid, standing(request), (self.shared.clock)());
    }

    /// Serves one client over any stream, as [`Gateway::run`] serves each that connects; returns when it is gone. What is
    /// read before a login is fuzzed through this (`fuzz/`).
    pub async fn serve_one(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, peer: SocketAddr) {
        if let (Some(connection), Some(login)) =
            (self.shared.connections.take(source(peer.ip())), self.shared.logins.take(source(peer.ip())))
        {
            serve(Arc::clone(&self.shared), stream, peer, connection, login).await;
        }
    }

    /// Serves until `stop` is cancelled, then lets sessions go on for a while, cuts them, and returns when all is closed.
    pub async fn run(self, listener: TcpListener, stop: CancellationToken) {
        let shared = self.shared;
        let looking = tokio::spawn({
            let shared = Arc::clone(&shared);
            let leaders = shared.leaders.clone();
            async move {
                let watching = watch::watch_requests(Arc::clone(&shared));
                tokio::join!(watching, watch::keep_contact(shared), keep_leader(leaders))
            }
        });
        let reporting = tokio::spawn(Arc::clone(&shared.reporter).run());
        tokio::select! {
            () = stop.cancelled() => {}
            () = accept(&shared, &listener) => {}
        }
        drop(listener);
        shared.stop.cancel();
        shared.tasks.close();
        // The watch goes on: an end that comes meanwhile is followed.
        if tokio::time::timeout(shared.limits.drain, shared.tasks.wait()).await.is_err() {
            shared.cut_all.cancel();
            if tokio::time::timeout(LAST_WORDS, shared.tasks.wait()).await.is_err() {
                shared.give_up.cancel();
                tracing::error!("some sessions' ends are not on record");
            }
        }
        shared.reporter.finish(reporting).await;
        looking.abort();
        shared.trail.clone().close().await;
    }
}

async fn accept(shared: &Arc<Shared>, listener: &TcpListener) {
    loop {
        let (socket, peer) = match take(listener).await {
            Ok(taken) => taken,
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        // Who is turned away is not answered: an answer costs more than the question.
        let Some(connection) = shared.connections.take(source(peer.ip())) else {
            shared.metrics.count_connection("too_many");
            continue;
        };
        let Some(login) = shared.logins.take(source(peer.ip())) else {
            shared.metrics.count_connection("too_many_logins");
            continue;
        };
        shared.tasks.spawn(serve(Arc::clone(shared), socket, peer, connection, login));
    }
}

/// Takes the next connection, which waits for nobody and is not waited for without end.
async fn take(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    let (socket, peer) = listener.accept().await?;
    // A socket that takes no options is one that is gone.
    let _ = socket.set_nodelay(true);
    let _ = give_up_after(&socket, UNTAKEN_MAX);
    // One that listens on [::] sees IPv4 in IPv6's coat.
    Ok((socket, SocketAddr::new(peer.ip().to_canonical(), peer.port())))
}

/// Has a connection fail whose peer takes nothing of what is sent to it for so long.
#[cfg(target_os = "linux")]
fn give_up_after(socket: &TcpStream, untaken_max: Duration) -> io::Result<()> {
    socket2::SockRef::from(socket).set_tcp_user_timeout(Some(untaken_max))
}

/// Elsewhere TCP alone decides.
#[cfg(not(target_os = "linux"))]
fn give_up_after(_: &TcpStream, _: Duration) -> io::Result<()> {
    Ok(())
}

async fn serve(
    shared: Arc<Shared>,
    socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: SocketAddr,
    connection: Place<IpAddr>,
    login: Place<IpAddr>,
) {
    connection::serve(shared, socket, peer, login).await;
    drop(connection);
}

/// What is spoken: nothing old, and nothing that is read before a login but what a login needs.
/// The first line that the gateway says to whoever connects, without a version: who tries doors learns nothing from it.
pub const GREETING: &str = "SSH-2.0-InstanceAccess";

fn ssh_config(host_keys: &HostKeys) -> russh::server::Config {
    let preferred = russh::Preferred {
        kex: Cow::Borrowed(&[
            kex::MLKEM768X25519_SHA256,
            kex::CURVE25519,
            kex::CURVE25519_PRE_RFC_8731,
            kex::EXTENSION_SUPPORT_AS_SERVER,
            kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER,
        ]),
        // Also what clients are told that they may log in with: RSA without SHA-1.
        key: Cow::Owned(
            [
                &[Algorithm::Ed25519][..],
                &[HashAlg::Sha512, HashAlg::Sha256].map(|hash| Algorithm::Rsa { hash: Some(hash) }),
                &host_keys.more_algorithms(),
            ]
            .concat(),
        ),
        cipher: Cow::Borrowed(&[
            cipher::CHACHA20_POLY1305,
            cipher::AES_256_GCM,
            cipher::AES_128_GCM,
            cipher::AES_256_CTR,
        ]),
        mac: Cow::Borrowed(&[mac::HMAC_SHA256_ETM, mac::HMAC_SHA512_ETM]),
        // A compressed stream is read by a decompressor; there is none.
        compression: Cow::Borrowed(&[compression::NONE]),
        ..russh::Preferred::DEFAULT
    };
    russh::server::Config {
        server_id: SshId::Standard(Cow::Borrowed(GREETING)),
        methods: MethodSet::from(&[MethodKind::PublicKey][..]),
        auth_rejection_time: OFFER_TIME,
        // Every client asks first, with none, what there is.
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys: host_keys.private(),
        preferred,
        max_auth_attempts: OFFERS_MAX,
        window_size: WINDOW_BYTES,
        channel_buffer_size: PACKETS_WAITING_MAX,
        event_buffer_size: PACKETS_UNSENT_MAX,
        // The keepalives tell who is dead, or the socket (`UNTAKEN_MAX`). Who idles in an open shell is not.
        inactivity_timeout: None,
        keepalive_interval: Some(KEEPALIVE.0),
        keepalive_max: KEEPALIVE.1,
        nodelay: true,
        ..russh::server::Config::default()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// In place of [`UNTAKEN_MAX`]: the kernel has no paused time.
    const PATIENCE: Duration = Duration::from_secs(3);

    /// A client, and the gateway's end of its connection.
    async fn connected() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (socket, peer) = take(&listener).await.unwrap();
        assert_eq!(peer, client.local_addr().unwrap());
        (client, socket)
    }

    /// Reads a little at a time for longer than the patience. Returns what came of it, and the longest gap between two reads.
    async fn read_slowly(client: &mut TcpStream) -> (io::Result<()>, Duration) {
        let (mut buffer, mut gap_max) = (vec![0; 128 << 10], Duration::ZERO);
        let begin = Instant::now();
        let mut last = begin;
        while begin.elapsed() < 2 * PATIENCE {
            let read = client.read_exact(&mut buffer).await;
            gap_max = gap_max.max(last.elapsed());
            last = Instant::now();
            if let Err(error) = read {
                return (Err(error), gap_max);
            }
            tokio::time::sleep(PATIENCE / 30).await; // it is slow: that is the test
        }
        (Ok(()), gap_max)
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_client_that_takes_nothing_of_a_copy_is_given_up_and_a_slow_one_is_not() {
        for _ in 0..10 {
            let (mut client, mut socket) = connected().await;
            let set = socket2::SockRef::from(&socket).tcp_user_timeout().unwrap();
            assert_eq!(set, Some(UNTAKEN_MAX), "of a connection that was taken");
            give_up_after(&socket, PATIENCE).unwrap();
            let copying = tokio::spawn(async move {
                loop {
                    if let Err(error) = socket.write_all(&[0; 32 << 10]).await {
                        return error;
                    }
                }
            });
            let (read, gap_max) = read_slowly(&mut client).await;
            // Slower than it was meant to be, by a machine that stood still: that says nothing.
            if gap_max > PATIENCE / 2 {
                continue;
            }
            read.unwrap();
            assert!(!copying.is_finished(), "a slow client was given up");
            let ended = tokio::time::timeout(20 * PATIENCE, copying).await;
            let error = ended.expect("a client that takes nothing is waited for").unwrap();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
            return;
        }
        panic!("the machine stood still ten times");
    }
}
