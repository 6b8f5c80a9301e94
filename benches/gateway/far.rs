//! The far end of many sessions: a server on loopback that sends and swallows. A real sshd takes four megabytes a session.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What it says first, as an sshd does.
pub const BANNER: &[u8] = b"SSH-2.0-far\r\n";
/// How much it sends or takes at once.
const CHUNK_BYTES: usize = 64 << 10;

/// What a session may be asked for.
#[derive(Clone, Copy, Debug)]
pub enum Order {
    /// Send so many bytes.
    Send(u64),
    /// Take so many bytes, and say so with one.
    Take(u64),
}

impl Order {
    /// As it goes over the wire.
    pub fn bytes(self) -> Vec<u8> {
        let (kind, count) = match self {
            Self::Send(count) => (b's', count),
            Self::Take(count) => (b't', count),
        };
        [&[kind][..], &count.to_be_bytes()].concat()
    }
}

/// When each session ended, as this end sees it.
#[derive(Clone, Debug, Default)]
pub struct Far {
    ends: Arc<Mutex<Vec<Timestamp>>>,
}

impl Far {
    /// Serves until the runtime ends.
    pub async fn start(address: SocketAddr) -> anyhow::Result<Self> {
        let (listener, far) = (TcpListener::bind(address).await?, Self::default());
        let here = far.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let here = here.clone();
                tokio::spawn(async move {
                    let _ = serve(stream).await; // an end is an end, however it comes
                    here.ends.lock().unwrap_or_else(PoisonError::into_inner).push(Timestamp::now());
                });
            }
        });
        Ok(far)
    }

    /// The ends since the last time.
    pub fn take_ends(&self) -> Vec<Timestamp> {
        std::mem::take(&mut self.ends.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(BANNER).await?;
    let mut order = [0; 9];
    loop {
        stream.read_exact(&mut order).await?;
        let [kind, count @ ..] = order;
        let mut left = u64::from_be_bytes(count);
        let mut chunk = vec![0; CHUNK_BYTES];
        while left > 0 {
            let most = usize::try_from(left.min(CHUNK_BYTES as u64)).unwrap_or(CHUNK_BYTES);
            let done = if kind == b's' {
                stream.write(&chunk[..most]).await?
            } else {
                stream.read(&mut chunk[..most]).await?
            };
            if done == 0 {
                return Ok(());
            }
            left -= done as u64;
        }
        if kind == b't' {
            stream.write_all(b".").await?;
        }
    }
}
