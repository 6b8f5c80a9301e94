//! Connections: each can be reset without an answer, and all end with the stand-in.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use axum::body::Body;
use axum::http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// One client's connection.
pub(super) struct Conn {
    pub(super) peer: SocketAddr,
    is_cut: AtomicBool,
    cut: Notify,
}

impl Conn {
    /// Resets the connection. Does not come back.
    pub(super) async fn reset(&self) -> Infallible {
        self.is_cut.store(true, Ordering::Relaxed);
        self.cut.notify_one();
        std::future::pending().await
    }
}

/// Serves until it is dropped.
pub(super) async fn serve<F, A>(listener: TcpListener, answer: F)
where
    F: Fn(Arc<Conn>, Request<Incoming>) -> A + Clone + Send + 'static,
    A: Future<Output = Response<Body>> + Send + 'static,
{
    // dropping the set ends the connections
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    let _ = stream.set_nodelay(true);
                    connections.spawn(converse(stream, peer, answer.clone()));
                }
                // too many open files, most likely: others must close first
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn converse<F, A>(stream: TcpStream, peer: SocketAddr, answer: F)
where
    F: Fn(Arc<Conn>, Request<Incoming>) -> A + Send + 'static,
    A: Future<Output = Response<Body>> + Send + 'static,
{
    let conn = Arc::new(Conn { peer, is_cut: AtomicBool::new(false), cut: Notify::new() });
    let io = Io { stream, conn: conn.clone() };
    let owned = conn.clone();
    let service = service_fn(move |request| {
        let answer = answer(owned.clone(), request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let serving = http1::Builder::new().serve_connection(TokioIo::new(io), service).with_upgrades();
    tokio::select! {
        // a client that hangs up is no error of ours
        _ = serving => {}
        () = conn.cut.notified() => {}
    }
}

/// The socket, which goes with a reset if the connection was cut.
struct Io {
    stream: TcpStream,
    conn: Arc<Conn>,
}

impl Drop for Io {
    fn drop(&mut self) {
        if self.conn.is_cut.load(Ordering::Relaxed) {
            let _ = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
