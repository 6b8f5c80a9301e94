//! A tunnel: the websocket of an EC2 Instance Connect Endpoint, as bytes to and from an instance's sshd.
//!
//! ```text
//! request ─▶ GET /openTunnel, signed ─▶ 101 ─▶ binary frames, both ways ─▶ close frame, of whoever is done
//!                 └ any other status: {"ErrorCode", "Message"}      └ or none, if the wire breaks
//! ```
//! AWS documents none of it. Source: AWS's own command line client (`ec2instanceconnect/websocket.py`, `eicesigner.py`):
//! binary frames carry bytes; a text frame is an error; a close frame with a code other than 1000 has a reason; what is
//! answered with another status than 101 has a body that says why. The handshake knows nothing of the instance: whether
//! that was reached shows in the first frame, which sshd's greeting is in, or in a close frame.
//!
//! # Guarantees
//! - Every wait has a bound, but those for the instance's bytes and for room to send: who relays bounds these.
//! - No more is held than a frame each way. A frame is sent when the wire takes it: a slow endpoint slows the client.
//! - Dropping a tunnel says goodbye, without waiting, and closes the wire.
//!
//! # Caveats
//! A websocket has no half-close: [`Tunnel::end`] ends both directions.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::{BoxFuture, Shared};
use futures::{FutureExt, Sink, Stream};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout};
use tokio_tungstenite::WebSocketStream;
pub use tokio_tungstenite::tungstenite::Bytes;
use tokio_tungstenite::tungstenite::handshake::client::{Response, generate_key};
use tokio_tungstenite::tungstenite::handshake::{derive_accept_key, machine::TryParse};
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::domain::cloud::{Failure, FailureClass, TUNNEL_SECONDS_MAX, TunnelTo};

use super::class::{self, failure, failure_of_answer};
use super::{Reply, locked};

#[cfg(feature = "aws")]
mod sdk;

#[cfg(feature = "aws")]
pub use sdk::SdkTunnels;

/// How long an endpoint may take to answer the request for a tunnel: what an instance has to answer a dial.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long sshd's greeting is waited for, which it sends unasked. Later, who waits for it is the client.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an endpoint may take to close what we have closed: what is under way comes in, and no more.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the body of a refusal may take.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(2);
/// The longest head of an answer; AWS's have a tenth of it.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// The longest body of a refusal that is looked at.
const REFUSAL_BYTES_MAX: usize = 8 << 10;
/// The longest frame that is sent: half of what AWS's own client sends, and as much as an SSH packet has.
const SENT_BYTES_MAX: usize = 32 << 10;
/// The longest frame, and the longest message of several, that is taken: 16 times what AWS's own client sends.
const TAKEN_BYTES_MAX: usize = 1 << 20;
/// What is read from the wire at once.
const READ_BYTES: usize = 16 << 10;
/// Frames that wait for the wire: one, and a pong or a close.
const WAITING_BYTES_MAX: usize = SENT_BYTES_MAX + (1 << 10);
/// AWS counts a tunnel's time by its own clock, and in whole seconds.
const OVER_SLACK: Duration = Duration::from_secs(1);

/// The codes of failures that only a tunnel has.
const CLOSED: &str = "TunnelClosed";
const NO_WEBSOCKET: &str = "NoWebsocket";
/// The code of a failure to read AWS's configuration.
const NO_AWS: &str = "NoAws";

/// Opens tunnels.
pub trait Tunnels: Send + Sync + 'static {
    /// Opens a tunnel, and waits a while for the first word of the instance's sshd.
    fn open<'a>(&'a self, to: &'a TunnelTo) -> Reply<'a, Tunnel>;
}

/// Tunnels by a configuration that may still be being read, which may ask the network; none, in a binary without AWS.
pub struct ComingTunnels(pub Shared<BoxFuture<'static, Option<Arc<dyn Tunnels>>>>);

impl Tunnels for ComingTunnels {
    fn open<'a>(&'a self, to: &'a TunnelTo) -> Reply<'a, Tunnel> {
        Box::pin(async move {
            match self.0.clone().await {
                Some(tunnels) => tunnels.open(to).await,
                None => Err(failure(FailureClass::Refused, NO_AWS, "there is no AWS configuration")),
            }
        })
    }
}

/// What a websocket runs on: TLS, or the bare wire of a stand-in.
pub trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// An open tunnel.
pub struct Tunnel {
    socket: Mutex<WebSocketStream<Box<dyn Wire>>>,
    /// The instance's first bytes, until they are asked for.
    greeting: Mutex<Option<Bytes>>,
    /// Why it closed, if it did.
    closed: Mutex<Option<String>>,
    asked: Instant,
    lasts: Duration,
}

impl std::fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tunnel").field("lasts", &self.lasts).field("closed", &self.closed).finish_non_exhaustive()
    }
}

impl Tunnel {
    /// Asks for a tunnel over `wire`: `target` is the signed path and query, `host` whom it was signed for.
    ///
    /// # Errors
    /// What the endpoint says against it, or that it does not answer as a websocket.
    pub async fn ask(wire: Box<dyn Wire>, host: &str, target: &str, lasts: Duration) -> Result<Self, Failure> {
        let asked = Instant::now();
        let Ok(answered) = timeout(ANSWER_TIMEOUT, shake_hands(wire, host, target)).await else {
            let text = format!("the endpoint did not answer within {} s", ANSWER_TIMEOUT.as_secs());
            return Err(failure(FailureClass::Retry, class::TIMEOUT, &text));
        };
        let tunnel = Self::new(answered?, asked, lasts);
        tunnel.greeted().await?;
        Ok(tunnel)
    }

    /// A tunnel over a wire that was asked for it already. What an endpoint sends is fuzzed through this (`fuzz/`).
    pub async fn over(wire: Box<dyn Wire>, lasts: Duration) -> Self {
        Self::new(framed(wire, Vec::new()).await, Instant::now(), lasts)
    }

    fn new(socket: WebSocketStream<Box<dyn Wire>>, asked: Instant, lasts: Duration) -> Self {
        Self { socket: Mutex::new(socket), greeting: Mutex::new(None), closed: Mutex::new(None), asked, lasts }
    }

    /// Waits for the instance's first bytes. Silence is no failure: it may be a slow sshd.
    async fn greeted(&self) -> Result<(), Failure> {
        let Ok(greeting) = timeout(GREETING_TIMEOUT, self.next()).await else { return Ok(()) };
        match greeting {
            Some(bytes) => {
                *locked(&self.greeting) = Some(bytes);
                Ok(())
            }
            None => {
                let text = self.why_closed().unwrap_or_else(|| "the endpoint closed it without a reason".to_owned());
                Err(failure(FailureClass::Gone, CLOSED, &text))
            }
        }
    }

    /// Returns the instance's next bytes, never none; `None` when the tunnel is closed, and from then on.
    pub async fn next(&self) -> Option<Bytes> {
        if let Some(greeting) = locked(&self.greeting).take() {
            return Some(greeting);
        }
        if locked(&self.closed).is_some() {
            return None;
        }
        let why = loop {
            let message = poll_fn(|context| Pin::new(&mut *locked(&self.socket)).poll_next(context)).await;
            match message {
                Some(Ok(Message::Binary(bytes))) if bytes.is_empty() => {}
                Some(Ok(Message::Binary(bytes))) => return Some(bytes),
                // Pings are answered below this.
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Text(_))) => break "the endpoint sent text, which no byte of sshd's is".to_owned(),
                Some(Ok(Message::Frame(_))) => break "the endpoint sent a frame that is none".to_owned(),
                Some(Ok(Message::Close(Some(frame)))) => {
                    let reason = class::shown(frame.reason.as_str());
                    break if reason.is_empty() { format!("code {}", u16::from(frame.code)) } else { reason };
                }
                Some(Ok(Message::Close(None))) | None => break "the endpoint closed it".to_owned(),
                Some(Err(error)) => break class::shown(&error.to_string()),
            }
        };
        *locked(&self.closed) = Some(why);
        None
    }

    /// Sends bytes to the instance; returns when the wire has taken them.
    ///
    /// # Errors
    /// If the tunnel is closed.
    pub async fn send(&self, bytes: &[u8]) -> io::Result<()> {
        for part in bytes.chunks(SENT_BYTES_MAX) {
            // Pongs may wait: the frame must find room beside them.
            self.drive(|socket, context| socket.poll_flush(context)).await?;
            let frame = Message::Binary(Bytes::copy_from_slice(part));
            Pin::new(&mut *locked(&self.socket)).start_send(frame).map_err(broken)?;
            self.drive(|socket, context| socket.poll_flush(context)).await?;
        }
        Ok(())
    }

    /// Tells the endpoint that the client is done, and gives it a moment to close. Meanwhile [`Tunnel::next`] returns what
    /// was under way.
    pub async fn end(&self) {
        let close = async {
            let _ = self.drive(|socket, context| socket.poll_close(context)).await; // broken is closed
            futures::future::pending::<()>().await;
        };
        let _ = timeout(CLOSE_TIMEOUT, close).await;
    }

    /// Why it closed, if it did: one line for a person.
    pub fn why_closed(&self) -> Option<String> {
        locked(&self.closed).clone()
    }

    /// Whether the time that it was asked for is over, at which AWS ends it.
    pub fn is_over(&self) -> bool {
        self.asked.elapsed() + OVER_SLACK >= self.lasts
    }

    /// Whether it was asked for as long as there is: then its end says nothing of the grant's.
    pub fn is_whole(&self) -> bool {
        self.lasts.as_secs() >= TUNNEL_SECONDS_MAX.into()
    }

    async fn drive(
        &self,
        mut poll: impl FnMut(Pin<&mut WebSocketStream<Box<dyn Wire>>>, &mut Context<'_>) -> Poll<Result<(), Error>>,
    ) -> io::Result<()> {
        poll_fn(|context| poll(Pin::new(&mut *locked(&self.socket)), context)).await.map_err(broken)
    }
}

impl Drop for Tunnel {
    /// A close frame, and TLS's own, as far as the wire takes them at once. Nothing is waited for: this is how a session
    /// is cut.
    fn drop(&mut self) {
        let socket = self.socket.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        let goodbye = poll_fn(|context| {
            let _ = Pin::new(&mut *socket).poll_close(context); // what is not said now is not said
            Pin::new(socket.get_mut()).poll_shutdown(context)
        });
        // Also for a task that has used its turn up, which tokio would have wait.
        let _ = tokio::task::unconstrained(goodbye).now_or_never();
    }
}

fn broken(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        other => io::Error::new(io::ErrorKind::BrokenPipe, other),
    }
}

/// Asks for a websocket, and judges the answer. By hand: the crate's own handshake drops what a refusal says.
async fn shake_hands(
    mut wire: Box<dyn Wire>,
    host: &str,
    target: &str,
) -> Result<WebSocketStream<Box<dyn Wire>>, Failure> {
    let key = generate_key();
    let request = format!(
        "GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\nUser-Agent: instance-access\r\n\r\n"
    );
    let hung_up = |error: io::Error| failure(FailureClass::Retry, class::DISPATCH_FAILURE, &error.to_string());
    wire.write_all(request.as_bytes()).await.map_err(hung_up)?;
    wire.flush().await.map_err(hung_up)?;
    let mut read = Vec::new();
    let (head, response) = loop {
        if !more(&mut wire, &mut read).await.map_err(hung_up)? {
            return Err(no_websocket("the endpoint hung up in the middle of its answer"));
        }
        match Response::try_parse(&read) {
            Ok(Some(parsed)) => break parsed,
            Ok(None) if read.len() < HEAD_BYTES_MAX => {}
            Ok(None) => return Err(no_websocket("the endpoint's answer has a head without end")),
            Err(_) => return Err(no_websocket("the endpoint's answer is no HTTP")),
        }
    };
    let rest = read.split_off(head);
    let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let status = response.status().as_u16();
    tracing::info!(status, eic_request_id = class::shown(header("x-amzn-requestid")), "an endpoint answered");
    if status != 101 {
        let length = header("content-length").parse().unwrap_or(REFUSAL_BYTES_MAX);
        return Err(refusal(wire, rest, length, status).await);
    }
    let is_websocket = header("upgrade").eq_ignore_ascii_case("websocket")
        && header("connection").split(',').any(|token| token.trim().eq_ignore_ascii_case("upgrade"))
        && header("sec-websocket-accept") == derive_accept_key(key.as_bytes())
        && header("sec-websocket-extensions").is_empty()
        && header("sec-websocket-protocol").is_empty();
    if !is_websocket {
        return Err(no_websocket("the endpoint's answer does not fit the question"));
    }
    Ok(framed(wire, rest).await)
}

/// The websocket on a wire, of which these bytes were read already.
async fn framed(wire: Box<dyn Wire>, read: Vec<u8>) -> WebSocketStream<Box<dyn Wire>> {
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BYTES)
        .write_buffer_size(0)
        .max_write_buffer_size(WAITING_BYTES_MAX)
        .max_frame_size(Some(TAKEN_BYTES_MAX))
        .max_message_size(Some(TAKEN_BYTES_MAX));
    WebSocketStream::from_partially_read(wire, read, Role::Client, Some(config)).await
}

fn no_websocket(text: &str) -> Failure {
    failure(FailureClass::Retry, NO_WEBSOCKET, text)
}

/// Reads some more; `false` at the end.
async fn more(wire: &mut Box<dyn Wire>, read: &mut Vec<u8>) -> io::Result<bool> {
    let mut chunk = [0; 2048];
    let length = wire.read(&mut chunk).await?;
    read.extend_from_slice(&chunk[..length]);
    Ok(length > 0)
}

/// Reads why there is no tunnel, as far as it comes, and puts it in a class.
async fn refusal(mut wire: Box<dyn Wire>, mut body: Vec<u8>, length: usize, status: u16) -> Failure {
    let rest = async {
        while body.len() < length.min(REFUSAL_BYTES_MAX) && more(&mut wire, &mut body).await.unwrap_or(false) {}
    };
    let _ = timeout(REFUSAL_TIMEOUT, rest).await; // what has come by then
    // However it was framed: one object, and nothing else with braces.
    let object = body.iter().position(|byte| *byte == b'{').zip(body.iter().rposition(|byte| *byte == b'}'));
    let object = object.and_then(|(first, last)| body.get(first..=last));
    let said: serde_json::Value = object.and_then(|object| serde_json::from_slice(object).ok()).unwrap_or_default();
    let text = said["Message"].as_str().or(said["message"].as_str()).unwrap_or("the endpoint does not say why");
    let failed = failure_of_answer(said["ErrorCode"].as_str(), status, text);
    match failed.class {
        // A name that nobody knows, such as that of a full endpoint: then the status says who must act.
        FailureClass::Bug => Failure { class: class::class_of_status(status), ..failed },
        _ => failed,
    }
}

#[cfg(test)]
mod tests;
