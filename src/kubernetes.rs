//! How the API server is reached.

use std::time::Duration;

use kube::{Client, Config};

/// Longest silence on a connection. Watches are ended by the API server after 240 s (`controller::watch`); a silence
/// longer than that is a dead peer, which the client would otherwise wait for without end.
const READ_TIMEOUT: Duration = Duration::from_secs(270);
/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Makes a client as kubectl would: from KUBECONFIG, ~/.kube/config, or the pod's service account.
pub async fn client() -> Result<Client, ClientError> {
    let mut config = Config::infer().await.map_err(|error| ClientError::Infer(Box::new(error)))?;
    config.read_timeout = Some(READ_TIMEOUT);
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
