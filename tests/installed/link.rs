//! A pod's way to the API server, which can be cut: bytes get lost and connections stay open, or nothing answers at all.

use std::net::SocketAddr;

use anyhow::{Context, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What becomes of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// They arrive.
    Open,
    /// They are lost, both ways. Connections stay open, new ones are taken, and nobody is told.
    Hole,
    /// Connections are closed, and new ones refused.
    Closed,
}

/// A relay between a pod and the API server. Bytes that were lost do not come later: a connection that lived through a
/// [`Way::Hole`] carries nothing any more.
pub struct Link {
    way: watch::Sender<Way>,
    task: JoinHandle<()>,
}

impl Link {
    /// Listens at `address` for `server`.
    pub async fn new(address: SocketAddr, server: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(address).await.with_context(|| format!("listening on {address}"))?;
        let way = watch::Sender::new(Way::Open);
        let task = tokio::spawn(serve(address, listener, server, way.subscribe()));
        Ok(Self { way, task })
    }

    /// From now on it is so.
    ///
    /// # Errors
    /// If nobody carries anything any more.
    pub fn set(&self, way: Way) -> anyhow::Result<()> {
        ensure!(!self.task.is_finished(), "the link has ended");
        self.way.send_replace(way);
        Ok(())
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(address: SocketAddr, first: TcpListener, server: SocketAddr, mut way: watch::Receiver<Way>) {
    let mut listener = Some(first);
    loop {
        let now = *way.borrow_and_update();
        if now == Way::Closed {
            listener = None;
        } else if listener.is_none() {
            listener = TcpListener::bind(address).await.ok();
        }
        let Some(open) = &listener else {
            if way.changed().await.is_err() {
                return;
            }
            continue;
        };
        tokio::select! {
            changed = way.changed() => if changed.is_err() { return },
            Ok((client, _)) = open.accept() => drop(tokio::spawn(carry(client, server, way.clone()))),
        }
    }
}

/// Carries one connection, for as long as the way is open; then holds it until it is no hole any more.
async fn carry(mut client: TcpStream, server: SocketAddr, mut way: watch::Receiver<Way>) {
    let mut cut = way.clone();
    let relay = async {
        let mut upstream = TcpStream::connect(server).await?;
        let _ = (client.set_nodelay(true), upstream.set_nodelay(true));
        let (mut from_client, mut to_client) = client.split();
        let (mut from_server, mut to_server) = upstream.split();
        let there = pump(&mut from_client, &mut to_server);
        let back = pump(&mut from_server, &mut to_client);
        tokio::select! {
            done = there => done?,
            done = back => done?,
            _ = cut.wait_for(|way| *way != Way::Open) => {}
        }
        // Both ends stay open through a hole.
        let _ = way.wait_for(|way| *way != Way::Hole).await;
        std::io::Result::Ok(())
    };
    let _ = relay.await;
}

async fn pump(from: &mut (impl AsyncReadExt + Unpin), to: &mut (impl AsyncWriteExt + Unpin)) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..read]).await?;
    }
}
