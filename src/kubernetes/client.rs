//! How the API server is asked: how long an answer is waited for, and what is asked again.

use std::time::Duration;

use http::{Method, Request, Response};
use kube::client::retry::RetryPolicy;
use kube::client::{Body, ClientBuilder};
use kube::{Client, Config};
use tower::BoxError;
use tower::buffer::BufferLayer;
use tower::retry::{Policy, RetryLayer};
use tower::util::MapFutureLayer;

use super::WATCH_SECONDS;

/// Longest silence on a connection: a watch, and a little. What is silent for longer is a dead peer.
const READ_TIMEOUT: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 10);
/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for an answer to begin, the connection included: then a try has failed. The API server begins the answer to a
/// watch at once, and that to a page of a list when it has the page.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(25);
/// Gap between a question that the API server could not answer just now, and the same again.
const AGAIN_GAP: Duration = Duration::from_millis(250);
/// Requests that wait to be sent, as many as in kube's own buffer.
const BUFFER: usize = 1024;

/// Makes a client as kubectl would: from KUBECONFIG, ~/.kube/config, or the pod's service account.
///
/// What only reads is tried again by itself, for two seconds or so, where the API server says 429, 503 or 504: a list of many
/// pages would be begun anew for one of them. kube's own repetition goes on for minutes, and a watch that sleeps in it is deaf
/// and tells nobody; and of a write that was stored, and repeated, it would say that it met a conflict. Whoever writes
/// what may be written twice, and once only, does it by [`again`].
pub async fn client() -> Result<Client, ClientError> {
    let config = Config::infer().await.map_err(|error| ClientError::Infer(Box::new(error)))?;
    client_of(config)
}

pub(super) fn client_of(mut config: Config) -> Result<Client, ClientError> {
    config.read_timeout = Some(READ_TIMEOUT);
    // Else a connection that nobody used for a while has little of that left.
    config.reset_reader_on_write = true;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.default_retry = false;
    let builder = ClientBuilder::try_from(config).map_err(|error| ClientError::Build(Box::new(error)))?;
    Ok(builder
        // A try wants a service that can be had again, which is what a buffer is.
        .with_layer(&BufferLayer::new(BUFFER))
        .with_layer(&RetryLayer::new(Reads::default()))
        .with_layer(&MapFutureLayer::new(answered_in_time))
        .build())
}

/// Tries again what only reads.
#[derive(Clone)]
struct Reads(RetryPolicy);

impl Default for Reads {
    fn default() -> Self {
        let (min, max, tries) = (Duration::from_millis(200), Duration::from_secs(1), 3);
        Self(RetryPolicy::new(min, max, tries, false).expect("bounds that are no contradiction"))
    }
}

impl<T> Policy<Request<Body>, Response<T>, BoxError> for Reads {
    type Future = <RetryPolicy as Policy<Request<Body>, Response<T>, BoxError>>::Future;

    fn retry(
        &mut self,
        request: &mut Request<Body>,
        answer: &mut Result<Response<T>, BoxError>,
    ) -> Option<Self::Future> {
        if *request.method() == Method::GET { self.0.retry(request, answer) } else { None }
    }

    fn clone_request(&mut self, request: &Request<Body>) -> Option<Request<Body>> {
        if *request.method() == Method::GET {
            Policy::<Request<Body>, Response<T>, BoxError>::clone_request(&mut self.0, request)
        } else {
            None
        }
    }
}

async fn answered_in_time<T>(answer: impl Future<Output = Result<T, BoxError>>) -> Result<T, BoxError> {
    tokio::time::timeout(ANSWER_TIMEOUT, answer).await?
}

/// Asks, and asks again while the API server, or what stands before it, says that it cannot just now. Whoever calls bounds
/// how long that goes on.
pub async fn again<T, A: Future<Output = kube::Result<T>>>(mut ask: impl FnMut() -> A) -> kube::Result<T> {
    loop {
        match ask().await {
            Err(kube::Error::Api(status)) if matches!(status.code, 429 | 503 | 504) => {}
            answered => return answered,
        }
        tokio::time::sleep(AGAIN_GAP).await;
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
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::api::PostParams;
    use kube::core::Status;
    use tokio::time::Instant;

    use super::super::fake::{busy, served};
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_does_not_begin_in_time_is_a_failure() {
        let begin = Instant::now();
        let error = answered_in_time(std::future::pending::<Result<(), BoxError>>()).await.unwrap_err();
        assert!(error.is::<tokio::time::error::Elapsed>(), "{error}");
        assert!(begin.elapsed() < ANSWER_TIMEOUT + Duration::from_secs(1));
        assert!(answered_in_time(async { Ok(()) }).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_asked_again_is_what_could_not_be_answered_just_now_and_nothing_else() {
        for (code, expected) in [(429, 4), (503, 4), (504, 4), (409, 1), (500, 1), (403, 1)] {
            let times = AtomicUsize::new(0);
            let ask = || {
                let time = times.fetch_add(1, Ordering::Relaxed) + 1;
                let refusal = || kube::Error::Api(Status::failure("no", "No").with_code(code).boxed());
                std::future::ready(if time < 4 { Err(refusal()) } else { Ok(()) })
            };
            let answer = again(ask).await;
            assert_eq!((times.load(Ordering::Relaxed), answer.is_ok()), (expected, expected > 1), "{code}");
        }
    }

    #[tokio::test]
    async fn what_reads_is_tried_again_and_what_writes_is_not() {
        let times = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&times);
        let answer = async move || {
            count.fetch_add(1, Ordering::Relaxed);
            busy()
        };
        let api = served(answer).await;
        let is_refused = |error: kube::Error| matches!(error, kube::Error::Api(status) if status.code == 503);
        assert!(is_refused(api.get("it").await.unwrap_err()));
        assert_eq!(times.swap(0, Ordering::Relaxed), 4);
        assert!(is_refused(api.create(&PostParams::default(), &ConfigMap::default()).await.unwrap_err()));
        assert_eq!(times.load(Ordering::Relaxed), 1);
    }
}
