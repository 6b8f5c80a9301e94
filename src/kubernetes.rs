//! How the API server is reached.

use std::time::Duration;

use kube::runtime::watcher;
use kube::{Client, Config};

/// Longest silence on a connection. Watches are ended by the API server after 240 s at the latest ([`watch_config`]); a
/// silence longer than that is a dead peer, which the client would otherwise wait for without end.
const READ_TIMEOUT: Duration = Duration::from_secs(270);
/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Objects a page: 10,000 come in with a third of the memory that pages of 500 take.
pub const PAGE_SIZE: u32 = 50;

/// How all watches are made: pages, and an end of each watch that the API server keeps, so that a dead connection does
/// not look like a quiet cluster for ever.
pub fn watch_config() -> watcher::Config {
    watcher::Config::default().page_size(PAGE_SIZE).timeout(240)
}

/// Makes a client as kubectl would: from KUBECONFIG, ~/.kube/config, or the pod's service account.
pub async fn client() -> Result<Client, ClientError> {
    client_with(READ_TIMEOUT).await
}

/// The same, for watches that end more often.
pub async fn client_with(read_timeout: Duration) -> Result<Client, ClientError> {
    let mut config = Config::infer().await.map_err(|error| ClientError::Infer(Box::new(error)))?;
    config.read_timeout = Some(read_timeout);
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    Client::try_from(config).map_err(|error| ClientError::Build(Box::new(error)))
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing says where the API server is.
    #[error("no Kubernetes configuration was found; set KUBECONFIG, or run inside a pod")]
    Infer(#[source] Box<kube::config::InferConfigError>),
    /// What was found cannot be used.
    #[error("the Kubernetes configuration cannot be used")]
    Build(#[source] Box<kube::Error>),
}
