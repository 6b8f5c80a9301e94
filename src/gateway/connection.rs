//! One client's connection: who it is, what it may ask for, and when it goes.
//!
//! russh's callbacks become three things: a key that was offered, a key that was proved, a session that is asked for. All
//! else is refused: shells, commands, subsystems, X11, agents, remote forwarding, sockets.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use russh::keys::{Algorithm, HashAlg};
use russh::server::{
    Auth, ChannelOpenHandle, Handle, Handler, Msg, PublicKeyOffer, RunningSession, Session, VerifiedPublicKey,
};
use russh::{Channel, ChannelOpenFailure, Disconnect};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::domain::session::lets_in;
use crate::domain::session::rules::ends;

use super::Shared;
use super::limits::Place;
use super::session::{self, Asked};
use super::stream::CutStream;
use crate::traces::{Context, Span};

/// Sessions of one connection, opening ones included: a `ControlMaster` on the jump host shares one among its clients.
const SESSIONS_MAX: usize = 64;
/// Sessions that a connection may ask for in vain: who asks for more is trying doors, at a line of the log each.
const REFUSALS_MAX: usize = 100;
/// How often a connection is looked at: whether a login came in time, and whether its key still has a grant.
const LOOK: Duration = Duration::from_secs(1);
/// How long a disconnect message may take to reach the client.
const FAREWELL: Duration = Duration::from_millis(500);
/// SSH's code for a channel that is refused by decision. Source: RFC 4254, 5.1.
const ADMINISTRATIVELY_PROHIBITED: u32 = 1;
/// SSH's code for a channel that is refused for want of something. Source: RFC 4254, 5.1.
const RESOURCE_SHORTAGE: u32 = 4;
/// What is said of everything that is no session.
const JUMP_ONLY: &str = "this gateway is a jump host and nothing else; type ssh -J GATEWAY USER@INSTANCE";

/// A key whose private half the client proved to have. Only a verified signature makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProvedKey {
    fingerprint: String,
}

impl ProvedKey {
    fn of(verified: VerifiedPublicKey<'_>) -> Self {
        Self { fingerprint: verified.public_key.fingerprint(HashAlg::Sha256).to_string() }
    }

    /// `SHA256:…`
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

/// What the sessions of a connection, and who looks after it, have in common.
#[derive(Debug)]
pub struct Connection {
    /// Where it came from.
    pub source: SocketAddr,
    key: OnceLock<(ProvedKey, Place<String>)>,
    sessions: AtomicUsize,
    refusals: AtomicUsize,
    farewell: watch::Sender<Option<String>>,
    /// The client is gone, or is shown out: nothing is relayed any more.
    pub gone: CancellationToken,
    /// As spans have it.
    pub trace: Context,
    login: Mutex<Option<Place<std::net::IpAddr>>>,
}

/// A session's place in its connection.
#[derive(Debug)]
pub struct Seat {
    connection: Arc<Connection>,
    is_left: bool,
}

impl Seat {
    /// The connection.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Gives the place up, and has the connection ended with these words if it was the last one; others go on. Returns
    /// whether it ends: then the session's channel is not closed, lest the client be gone before it reads why. Of several
    /// that are cut at once one is the last.
    pub fn leave(&mut self, text: &str) -> bool {
        let is_last = self.left();
        if is_last {
            self.connection.dismiss(text.to_owned());
        }
        is_last
    }

    fn left(&mut self) -> bool {
        !std::mem::replace(&mut self.is_left, true) && self.connection.sessions.fetch_sub(1, Ordering::AcqRel) == 1
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.left();
    }
}

impl Connection {
    fn new(source: SocketAddr, login: Place<std::net::IpAddr>, gone: CancellationToken, trace: Context) -> Self {
        Self {
            source,
            key: OnceLock::new(),
            sessions: AtomicUsize::new(0),
            refusals: AtomicUsize::new(0),
            farewell: watch::Sender::new(None),
            gone,
            trace,
            login: Mutex::new(Some(login)),
        }
    }

    fn seat(self: &Arc<Self>) -> Option<Seat> {
        let one_more = |sessions| (sessions < SESSIONS_MAX).then_some(sessions + 1);
        self.sessions.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more).ok()?;
        Some(Seat { connection: Arc::clone(self), is_left: false })
    }

    /// Counts a session that was refused; with too many the connection ends, and whatever is open on it.
    pub fn count_refusal(&self) {
        if self.refusals.fetch_add(1, Ordering::AcqRel) + 1 >= REFUSALS_MAX {
            self.dismiss(format!("{REFUSALS_MAX} sessions were refused; connect again"));
        }
    }

    /// Has the connection ended with these words.
    fn dismiss(&self, text: String) {
        self.farewell.send_replace(Some(text));
    }
}

/// Why a channel is not opened, as the client reads it.
pub fn no(text: impl Into<String>) -> ChannelOpenFailure {
    ChannelOpenFailure::Other { code: ADMINISTRATIVELY_PROHIBITED, reason: text.into() }
}

/// Why a channel is not opened just now.
pub fn not_now(text: impl Into<String>) -> ChannelOpenFailure {
    ChannelOpenFailure::Other { code: RESOURCE_SHORTAGE, reason: text.into() }
}

/// Answers a client.
struct Door {
    shared: Arc<Shared>,
    connection: Arc<Connection>,
}

impl Door {
    fn lets_in(&self, fingerprint: &str) -> bool {
        lets_in((self.shared.clock)(), &self.shared.grants.of_key(fingerprint))
    }
}

impl Handler for Door {
    type Error = russh::Error;

    async fn auth_publickey_offered(&mut self, _: &str, offer: PublicKeyOffer<'_>) -> Result<Auth, russh::Error> {
        // SHA-1 signatures can be forged by whoever can pay for a collision; sshd takes none either.
        let is_sha1 = matches!(offer.algorithm, Algorithm::Rsa { hash: None } | Algorithm::Dsa);
        // A key that is merely named proves nothing: this only spares a signature that would be in vain.
        let is_known = !is_sha1 && self.lets_in(&offer.public_key.fingerprint(HashAlg::Sha256).to_string());
        self.shared.metrics.count_key(if is_known { "known" } else { "unknown" });
        Ok(if is_known { Auth::Accept } else { Auth::reject() })
    }

    async fn auth_publickey(&mut self, _: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, russh::Error> {
        let key = ProvedKey::of(key);
        if !self.lets_in(key.fingerprint()) {
            return Ok(Auth::reject());
        }
        let Some(place) = self.shared.keys.take(key.fingerprint().to_owned()) else {
            // Let in to be told why: without its key the connection opens nothing, and ends when a login is due.
            self.shared.metrics.count_key("too_many");
            return Ok(Auth::Accept);
        };
        self.shared.metrics.count_key("proved");
        tracing::info!(source = %self.connection.source, key_fingerprint = key.fingerprint(), "let a key in");
        // Once a connection: SSH knows no second login.
        if self.connection.key.set((key, place)).is_err() {
            return Ok(Auth::reject());
        }
        drop(self.connection.login.lock().unwrap_or_else(PoisonError::into_inner).take());
        Ok(Auth::Accept)
    }

    /// Says when access ends, in the one place that SSH has for it after the key is proved: OpenSSH shows it with -v.
    async fn auth_succeeded(&mut self, client: &mut Session) -> Result<(), russh::Error> {
        if let Some((key, _)) = self.connection.key.get() {
            let text = ends((self.shared.clock)(), &self.shared.grants.of_key(key.fingerprint()));
            client.debug(true, &text, "en")?;
        }
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        client: &mut Session,
    ) -> Result<(), russh::Error> {
        let Some((key, _)) = self.connection.key.get() else {
            self.shared.metrics.count_refusal("TooManyConnections");
            self.connection.count_refusal();
            reply.reject(not_now("your key has as many connections as one may; close one")).await;
            return Ok(());
        };
        let Some(seat) = self.connection.seat() else {
            reply.reject(not_now(format!("at most {SESSIONS_MAX} sessions share a connection; open another"))).await;
            return Ok(());
        };
        let asked = Asked { host: host.to_owned(), port };
        let opening =
            session::open(Arc::clone(&self.shared), seat, key.clone(), asked, channel, reply, client.handle());
        // Not awaited: a dial takes its time, and the connection must go on meanwhile.
        self.shared.tasks.spawn(opening);
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        _: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        self.shared.metrics.count_refusal("NoShell");
        self.connection.count_refusal();
        reply.reject(no(JUMP_ONLY)).await;
        Ok(())
    }

    async fn channel_open_direct_streamlocal(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        self.shared.metrics.count_refusal("NoSocket");
        self.connection.count_refusal();
        reply.reject(no(JUMP_ONLY)).await;
        Ok(())
    }
}

/// Serves a client until it goes, is told to, or is cut.
pub async fn serve(
    shared: Arc<Shared>,
    socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    source: SocketAddr,
    login: Place<std::net::IpAddr>,
) {
    let cut = CancellationToken::new();
    // Whichever way this function is left, the stream ends, and with it russh's own task, and the sessions.
    let _cut = cut.clone().drop_guard();
    let span =
        Span::served("connection").with("client.address", source.ip().to_string()).with("client.port", source.port());
    let connection = Arc::new(Connection::new(source, login, cut.clone(), span.context()));
    let door = Door { shared: Arc::clone(&shared), connection: Arc::clone(&connection) };
    let login_time_max = Instant::now() + shared.limits.login;
    let started = russh::server::run_stream(Arc::clone(&shared.ssh), CutStream::new(socket, &cut), door);
    let running = match tokio::time::timeout_at(login_time_max, started).await {
        Ok(Ok(running)) => running,
        Ok(Err(_)) => {
            span.discard();
            return shared.metrics.count_connection("no_ssh");
        }
        Err(_) => {
            span.discard();
            return shared.metrics.count_connection("no_login");
        }
    };
    look_after(&shared, &connection, running, login_time_max).await;
    // Strangers, who come by the thousand, must not push others' spans out of the queue.
    if connection.key.get().is_none() {
        span.discard();
    }
}

async fn look_after(
    shared: &Shared,
    connection: &Connection,
    mut running: RunningSession<Door>,
    login_time_max: Instant,
) {
    let handle = running.handle();
    let mut farewell = connection.farewell.subscribe();
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let text = loop {
        tokio::select! {
            _ = &mut running => {
                let outcome = if connection.key.get().is_some() { "left" } else { "not_authenticated" };
                return shared.metrics.count_connection(outcome);
            }
            changed = farewell.changed() => {
                let text = farewell.borrow().clone();
                if let (Ok(()), Some(text)) = (changed, text) {
                    shared.metrics.count_connection("cut");
                    break text;
                }
            }
            _ = look.tick() => {}
        }
        let is_idle = connection.sessions.load(Ordering::Acquire) == 0;
        match connection.key.get() {
            None if Instant::now() >= login_time_max => {
                shared.metrics.count_connection("no_login");
                break format!("no login within {} s", shared.limits.login.as_secs());
            }
            None => {}
            Some((key, _)) if is_idle && !lets_in((shared.clock)(), &shared.grants.of_key(key.fingerprint())) => {
                shared.metrics.count_connection("no_grant");
                break "no grant of your key is live any more".to_owned();
            }
            Some(_) => {}
        }
        if is_idle && shared.stop.is_cancelled() {
            shared.metrics.count_connection("gateway_stopped");
            break "the gateway stops; connect again".to_owned();
        }
    };
    say_goodbye(&handle, running, text).await;
}

/// Sends the disconnect message, if the client takes it in time; whoever called ends the stream in any case.
async fn say_goodbye(handle: &Handle, running: RunningSession<Door>, text: String) {
    let said = async {
        let told = handle.disconnect(Disconnect::ByApplication, text, "en".to_owned()).await;
        if told.is_ok() {
            let _ = running.await; // however it ends, it has ended
        }
    };
    let _ = tokio::time::timeout(FAREWELL, said).await; // then without
}
