//! The near end of many sessions: russh as a client, in this process. A thousand `ssh` would be the machine's whole memory.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use russh::client::{self, Handle, Msg};
use russh::keys::{PrivateKey, PrivateKeyWithHashAlg, PublicKeyOrCertificate};
use russh::{Channel, ChannelMsg};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::far::{BANNER, Order};

/// Talks to a gateway that this process started, on loopback.
pub struct Trusting;

impl client::Handler for Trusting {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        Ok(true)
    }
}

/// Connects and logs in.
pub async fn connect(gateway: SocketAddr, key: &Arc<PrivateKey>) -> anyhow::Result<Handle<Trusting>> {
    let config = client::Config { nodelay: true, channel_buffer_size: 16, ..client::Config::default() };
    let mut handle = client::connect(Arc::new(config), gateway, Trusting).await?;
    let key = PrivateKeyWithHashAlg::new(Arc::clone(key), None);
    anyhow::ensure!(handle.authenticate_publickey("bench", key).await?.success(), "the gateway refused the key");
    Ok(handle)
}

/// Opens a session; returns when the far end has said its first words, of which this reads no more.
pub async fn open(handle: &Handle<Trusting>, host: &str, port: u16) -> anyhow::Result<Channel<Msg>> {
    let mut channel = handle.channel_open_direct_tcpip(host, port.into(), "127.0.0.1", 0).await?;
    loop {
        match channel.wait().await.context("the session was closed")? {
            ChannelMsg::Data { data } => {
                anyhow::ensure!(data.starts_with(&BANNER[..4]), "no banner: {data:?}");
                return Ok(channel);
            }
            ChannelMsg::Eof | ChannelMsg::Close => anyhow::bail!("the session was closed"),
            _ => {} // the window
        }
    }
}

/// Has the far end send so many bytes, and reads them.
pub async fn receive(channel: &mut Channel<Msg>, count: u64) -> anyhow::Result<()> {
    channel.data_bytes(Order::Send(count).bytes()).await?;
    let mut left = count;
    while left > 0 {
        if let ChannelMsg::Data { data } = channel.wait().await.context("the session was closed")? {
            left = left.checked_sub(data.len() as u64).context("more came than was asked for")?;
        }
    }
    Ok(())
}

/// Sends so many bytes, and waits until the far end has them.
pub async fn send(channel: &mut Channel<Msg>, count: u64) -> anyhow::Result<()> {
    channel.data_bytes(Order::Take(count).bytes()).await?;
    let chunk = vec![0; 32 << 10];
    let mut left = count;
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len());
        channel.data_bytes(chunk[..most].to_vec()).await?;
        left -= most as u64;
    }
    // Whatever else comes is about the window.
    while !matches!(channel.wait().await.context("the session was closed")?, ChannelMsg::Data { .. }) {}
    Ok(())
}

/// Waits for the session's end.
pub async fn ended(mut channel: Channel<Msg>) {
    while let Some(message) = channel.wait().await {
        if matches!(message, ChannelMsg::Eof | ChannelMsg::Close) {
            return;
        }
    }
}

/// The first words of a server that is connected to straight.
pub async fn straight_banner(address: SocketAddr) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    let mut word = [0; 4];
    stream.read_exact(&mut word).await?;
    anyhow::ensure!(word == BANNER[..4], "no banner: {word:?}");
    Ok(())
}
