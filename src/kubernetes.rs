//! How the API server is reached, and whether it still has the history that it told.

pub mod watched;

use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use backon::ExponentialBuilder;
use futures::stream::{BoxStream, Stream, StreamExt, unfold};
use kube::api::ListParams;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Event, ExponentialBackoff, watcher};
use kube::{Api, Client, Config, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::watch as signal;

/// Longest silence on a connection. Watches are ended by the API server after 240 s at the latest ([`watch_config`]); a
/// silence longer than that is a dead peer, which the client would otherwise wait for without end.
const READ_TIMEOUT: Duration = Duration::from_secs(270);
/// Longest wait for a connection.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Objects a page: 10,000 come in with a third of the memory that pages of 500 take.
pub const PAGE_SIZE: u32 = 50;

/// Longest rest between two tries of a watch that fails, which chance alone makes so long.
///
/// A third of kube's own, client-go's (30 s, of which its chance makes 60 s): nobody hears of a revocation meanwhile, and
/// whoever is deaf must not count as quiet before the next failure.
pub const BACK_OFF_MAX: Duration = Duration::from_secs(10);

/// A watch that rests after each failure. That history has expired is told by an API server that is there, as after it was
/// started anew: the list that this wants is asked for soon.
pub fn patient<K>(
    watch: impl Stream<Item = watcher::Result<Event<K>>>,
) -> impl Stream<Item = watcher::Result<Event<K>>> {
    unfold((Box::pin(watch), rests(), Duration::ZERO), async |(mut watch, mut rests, rest)| {
        tokio::time::sleep(rest).await;
        let event = watch.next().await?;
        if event.as_ref().err().is_none_or(has_expired) {
            rests.reset();
        }
        let rest = if event.is_err() { rests.next().unwrap_or(BACK_OFF_MAX) } else { Duration::ZERO };
        Some((event, (watch, rests, rest)))
    })
}

fn rests() -> ExponentialBackoff {
    let rests = ExponentialBuilder::new().with_min_delay(Duration::from_millis(800)).with_max_delay(BACK_OFF_MAX / 2);
    // As much again by chance, so that they do not all come at once to an API server that is back.
    rests.with_jitter().without_max_times().into()
}

fn has_expired(error: &watcher::Error) -> bool {
    let (watcher::Error::WatchError(status)
    | watcher::Error::WatchStartFailed(kube::Error::Api(status))
    | watcher::Error::InitialListFailed(kube::Error::Api(status))) = error
    else {
        return false;
    };
    status.code == 410
}

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
        let begin = move || patient(watcher(api.clone(), config.clone())).boxed();
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
    use futures::stream;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::core::Status;
    use tokio::time::Instant;

    use super::*;

    type Told = watcher::Result<Event<ConfigMap>>;

    /// The rests after each of so many results of a watch.
    async fn rests_after(times: usize, result: impl FnMut() -> Told) -> Vec<Duration> {
        let mut watch = std::pin::pin!(patient(stream::repeat_with(result)));
        watch.next().await;
        let mut rests = Vec::new();
        for _ in 0..times {
            let begin = Instant::now();
            watch.next().await;
            rests.push(begin.elapsed());
        }
        rests
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_fails_is_tried_again_within_ten_seconds_however_often_it_failed() {
        let rests = rests_after(1000, || Err(watcher::Error::NoResourceVersion)).await;
        assert!(rests[0] < Duration::from_secs(2), "soon at first: {:?}", rests[0]);
        assert!(rests.iter().all(|rest| *rest <= BACK_OFF_MAX + Duration::from_millis(1)), "{:?}", rests.iter().max());
        assert!(rests[900..].iter().all(|rest| *rest >= Duration::from_secs(5)), "{:?}", rests[900..].iter().min());
        assert!(rests[900..].iter().any(|rest| *rest != rests[999]), "all at once");
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_whose_history_has_expired_is_tried_again_soon_but_not_at_once() {
        let expired = || Err(watcher::Error::WatchError(Status::failure("too old", "Expired").with_code(410).boxed()));
        for rest in rests_after(100, expired).await {
            assert!((Duration::from_millis(800)..Duration::from_secs(2)).contains(&rest), "{rest:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_tells_something_rests_as_if_it_had_never_failed() {
        assert!(rests_after(100, || Ok(Event::Init)).await.iter().all(Duration::is_zero), "it rests without a failure");
        let mut results = [false, false, false, false, false, true, false].into_iter().cycle();
        let next = move || match results.next() {
            Some(true) => Ok(Event::Init),
            _ => Err(watcher::Error::NoResourceVersion),
        };
        // After the seventh, the first failure since.
        let rest = rests_after(7, next).await[6];
        assert!(rest < Duration::from_secs(2), "{rest:?}");
    }

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
