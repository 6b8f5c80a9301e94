//! How the API server is reached, and whether it still has the history that it told.

use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::stream::{BoxStream, Stream, StreamExt, unfold};
use kube::api::ListParams;
use kube::runtime::utils::StreamBackoff;
use kube::runtime::watcher::{self, DefaultBackoff, Event, watcher};
use kube::{Api, Client, Config, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::watch as signal;

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

/// The pages of a list, one at a time; ends with the first that fails. Each is asked for when it is wanted.
pub fn pages<K>(api: Api<K>, params: ListParams) -> impl Stream<Item = kube::Result<Vec<K>>> + use<K>
where
    K: Clone + DeserializeOwned + Debug + Send + 'static,
{
    let first = Some(params.limit(PAGE_SIZE));
    unfold((api, first), async |(api, params)| {
        let params = params?;
        match api.list(&params).await {
            Ok(list) => {
                let next = list.metadata.continue_.filter(|token| !token.is_empty());
                Some((Ok(list.items), (api, next.map(|token| params.continue_token(&token)))))
            }
            Err(error) => Some((Err(error), (api, None))),
        }
    })
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

/// Whether the API server still has the history that it told.
///
/// An etcd that is restored from an older copy counts its versions from there, unless it is told to skip some
/// (`--bump-revision`). A watch that goes on from a version which is not there again yet is silent until it is, and says
/// nothing of that; so it is begun anew, with a list.
#[derive(Debug, Default)]
pub struct History {
    newest: AtomicU64,
    undone: signal::Sender<u64>,
}

impl History {
    /// The API server said what version its newest is, to a question that was asked after the answer before came. Returns
    /// whether it went back; then all watches begin anew.
    ///
    /// Versions compare as numbers. Source: Kubernetes, which promises it since 1.35, and made them so before.
    pub fn is_undone(&self, resource_version: Option<&str>) -> bool {
        let Some(version) = resource_version.and_then(|text| text.parse::<u64>().ok()) else { return false };
        let is_undone = version < self.newest.swap(version, Ordering::AcqRel);
        if is_undone {
            self.undone.send_modify(|times| *times += 1);
        }
        is_undone
    }

    /// Watches, with a back-off after each failure; begins anew when history was undone.
    pub fn watch<K>(
        &self,
        api: Api<K>,
        config: watcher::Config,
    ) -> impl Stream<Item = watcher::Result<Event<K>>> + use<K>
    where
        K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    {
        let begin = move || StreamBackoff::new(watcher(api.clone(), config.clone()), DefaultBackoff::default()).boxed();
        let watch: BoxStream<'static, watcher::Result<Event<K>>> = begin();
        unfold((watch, self.undone.subscribe(), begin), async |(mut watch, mut undone, begin)| {
            loop {
                tokio::select! {
                    biased;
                    Ok(()) = undone.changed() => watch = begin(),
                    event = watch.next() => return event.map(|event| (event, (watch, undone, begin))),
                }
            }
        })
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_that_is_lower_than_the_one_before_is_history_undone_once() {
        let history = History::default();
        let undone = history.undone.subscribe();
        for (version, expected) in [("7", false), ("7", false), ("1000", false), ("999", true), ("1000", false)] {
            assert_eq!(history.is_undone(Some(version)), expected, "{version}");
        }
        assert!(!history.is_undone(None) && !history.is_undone(Some("")) && !history.is_undone(Some("new")));
        assert_eq!(*undone.borrow(), 1);
        assert!(history.is_undone(Some("0")), "an etcd that begins with nothing");
    }
}
