//! How the API server is reached, and whether it still has the history that it told.

mod client;
#[cfg(test)]
mod fake;
pub mod watched;

use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use backon::ExponentialBuilder;
use futures::stream::{BoxStream, Stream, StreamExt, unfold};
use kube::api::ListParams;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Event, ExponentialBackoff, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::watch as signal;

use crate::domain::hearing::FAILURE_AGE_MAX;

use client::ANSWER_TIMEOUT;
pub use client::{ClientError, again, client};

/// After how many seconds the API server ends each watch. One whose connection alone is dead looks like a quiet cluster until
/// then, and a revocation is late by that; the client gives it ten seconds more.
const WATCH_SECONDS: u32 = 30;
const _: () = assert!(
    ANSWER_TIMEOUT.as_secs() + BACK_OFF_MAX.as_secs() < FAILURE_AGE_MAX.as_secs(),
    "a watch that fails again and again would count as quiet between two failures"
);

/// Objects a page: 10,000 come in with a third of the memory that pages of 500 take.
pub const PAGE_SIZE: u32 = 50;

/// Longest rest between two tries of a watch that fails, which chance alone makes so long.
///
/// A third of kube's own, client-go's (30 s, of which its chance makes 60 s): nobody hears of a revocation meanwhile, and
/// whoever is deaf must not count as quiet before the next failure.
pub const BACK_OFF_MAX: Duration = Duration::from_secs(10);

/// A watch that rests after each failure, the longer the more there were. It rests shortly again after the first answer of an
/// API server that was not there, which may be a refusal while that starts, and where history has expired: what that wants is
/// a list.
pub fn patient<K>(
    watch: impl Stream<Item = watcher::Result<Event<K>>>,
) -> impl Stream<Item = watcher::Result<Event<K>>> {
    let begin = (Box::pin(watch), rests(), Last::Told);
    unfold(begin, async |(mut watch, mut rests, last)| {
        if let Last::Failed { rest, .. } = last {
            tokio::time::sleep(rest).await;
        }
        let event = watch.next().await?;
        let error = match &event {
            Err(error) => error,
            // It says no more than that a list will be asked for.
            Ok(Event::Init) => return Some((event, (watch, rests, last.rested()))),
            Ok(_) => {
                rests.reset();
                return Some((event, (watch, rests, Last::Told)));
            }
        };
        let answer = answer_code(error);
        if answer == Some(410) || answer.is_some() && matches!(last, Last::Failed { is_answered: false, .. }) {
            rests.reset();
        }
        let rest = rests.next().unwrap_or(BACK_OFF_MAX);
        Some((event, (watch, rests, Last::Failed { rest, is_answered: answer.is_some() })))
    })
}

/// What a watch did last.
enum Last {
    Told,
    Failed { rest: Duration, is_answered: bool },
}

impl Last {
    fn rested(self) -> Self {
        match self {
            Self::Told => Self::Told,
            Self::Failed { is_answered, .. } => Self::Failed { rest: Duration::ZERO, is_answered },
        }
    }
}

fn rests() -> ExponentialBackoff {
    let rests = ExponentialBuilder::new().with_min_delay(Duration::from_millis(800)).with_max_delay(BACK_OFF_MAX / 2);
    // As much again by chance, so that they do not all come at once to an API server that is back.
    rests.with_jitter().without_max_times().into()
}

/// The code that the API server, or what stands before it, answered; none if nobody did.
fn answer_code(error: &watcher::Error) -> Option<u16> {
    match error {
        watcher::Error::WatchError(status)
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::InitialListFailed(kube::Error::Api(status)) => Some(status.code),
        _ => None,
    }
}

/// How all watches are made: pages, and an end of each watch that the API server keeps, so that a dead connection does
/// not look like a quiet cluster for ever.
pub fn watch_config() -> watcher::Config {
    watcher::Config::default().page_size(PAGE_SIZE).timeout(WATCH_SECONDS)
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
    /// whether it went back.
    ///
    /// Versions compare as numbers. Source: Kubernetes, which promises it since 1.35, and made them so before.
    pub fn is_undone(&self, resource_version: Option<&str>) -> bool {
        let Some(version) = resource_version.and_then(|text| text.parse::<u64>().ok()) else { return false };
        version < self.newest.swap(version, Ordering::AcqRel)
    }

    /// All watches begin anew.
    pub fn begin_anew(&self) {
        self.undone.send_modify(|times| *times += 1);
    }

    /// Told when all watches begin anew.
    pub fn undone(&self) -> signal::Receiver<u64> {
        self.undone.subscribe()
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
        watch_anew(api, config, self.undone())
    }
}

/// Watches, with a back-off after each failure; begins anew, with a list, whenever `anew` changes.
pub fn watch_anew<K>(
    api: Api<K>,
    config: watcher::Config,
    anew: signal::Receiver<u64>,
) -> impl Stream<Item = watcher::Result<Event<K>>> + use<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let begin = move || patient(watcher(api.clone(), config.clone())).boxed();
    let watch: BoxStream<'static, watcher::Result<Event<K>>> = begin();
    unfold((watch, anew, begin), async |(mut watch, mut anew, begin)| {
        loop {
            tokio::select! {
                biased;
                Ok(()) = anew.changed() => watch = begin(),
                event = watch.next() => return event.map(|event| (event, (watch, anew, begin))),
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    use axum::http::Uri;
    use axum::response::{IntoResponse, Response};
    use futures::stream;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::core::Status;
    use serde_json::json;
    use tokio::time::Instant;

    use super::fake::{busy, served};
    use super::*;

    /// An API server that answers all lists with nothing, and watches by `watched`, which is told how many there were.
    async fn api_server(watched: impl Fn(usize) -> Response + Clone + Send + Sync + 'static) -> Api<ConfigMap> {
        let times = Arc::new(AtomicUsize::new(0));
        let answer = async move |uri: Uri| {
            if uri.query().unwrap_or_default().contains("watch=true") {
                return watched(times.fetch_add(1, Ordering::Relaxed));
            }
            let list =
                json!({"kind": "ConfigMapList", "apiVersion": "v1", "metadata": {"resourceVersion": "7"}, "items": []});
            axum::Json(list).into_response()
        };
        served(answer).await
    }

    #[tokio::test]
    async fn a_watch_that_is_refused_for_now_says_so_each_time_and_is_heard_soon_after() {
        let told = json!({"type": "ADDED", "object": {
            "kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "told", "namespace": "team-a", "resourceVersion": "8"},
        }});
        let told = format!("{told}\n");
        let api = api_server(move |times| if times < 8 { busy() } else { told.clone().into_response() }).await;
        let mut watch = std::pin::pin!(History::default().watch(api, watch_config()));
        let heard = async {
            let mut failures = 0;
            loop {
                match watch.next().await.expect("it never ends") {
                    Ok(Event::Apply(_)) => return failures,
                    Ok(_) => {}
                    Err(_) => failures += 1,
                }
            }
        };
        let failures = tokio::time::timeout(Duration::from_secs(60), heard).await.expect("nothing was heard");
        assert_eq!(failures, 2);
    }

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
    async fn a_watch_that_is_answered_after_nobody_was_there_is_tried_again_soon_but_not_for_ever() {
        let mut times = 0;
        let results = move || {
            times += 1;
            let refusal = || watcher::Error::WatchError(Status::failure("no", "Forbidden").with_code(403).boxed());
            Err(if times <= 10 { watcher::Error::NoResourceVersion } else { refusal() })
        };
        let rests = rests_after(40, results).await;
        assert!(rests[9] >= Duration::from_secs(5), "nobody is there: {:?}", rests[9]);
        assert!(rests[10] < Duration::from_secs(2), "the first refusal: {:?}", rests[10]);
        assert!(rests[30..].iter().all(|rest| *rest >= Duration::from_secs(5)), "{:?}", rests[30..].iter().min());
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_whose_list_fails_again_and_again_rests_the_longer_although_it_says_each_time_that_it_lists() {
        let mut lists = [true, false].into_iter().cycle();
        let refusal = || kube::Error::Api(Status::failure("no", "Forbidden").with_code(403).boxed());
        let next = move || {
            if lists.next() == Some(true) { Ok(Event::Init) } else { Err(watcher::Error::InitialListFailed(refusal())) }
        };
        let rests = rests_after(40, next).await;
        let longest = rests[30..].iter().max().unwrap();
        assert!((Duration::from_secs(5)..=BACK_OFF_MAX + Duration::from_millis(1)).contains(longest), "{rests:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_tells_something_rests_as_if_it_had_never_failed() {
        let told = || Ok(Event::InitDone);
        assert!(rests_after(100, told).await.iter().all(Duration::is_zero), "it rests without a failure");
        let mut results = [false, false, false, false, false, true, false].into_iter().cycle();
        let next = move || match results.next() {
            Some(true) => Ok(Event::InitDone),
            _ => Err(watcher::Error::NoResourceVersion),
        };
        // After the seventh, the first failure since.
        let rest = rests_after(7, next).await[6];
        assert!(rest < Duration::from_secs(2), "{rest:?}");
    }

    #[test]
    fn a_version_that_is_lower_than_the_one_before_is_history_undone_once() {
        let history = History::default();
        for (version, expected) in [("7", false), ("7", false), ("1000", false), ("999", true), ("1000", false)] {
            assert_eq!(history.is_undone(Some(version)), expected, "{version}");
        }
        assert!(!history.is_undone(None) && !history.is_undone(Some("")) && !history.is_undone(Some("new")));
        assert!(history.is_undone(Some("0")), "an etcd that begins with nothing");
    }
}
