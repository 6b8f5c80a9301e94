//! Takes spans from whoever ends them, and brings them to the collector.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::mpsc as blocking;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, USER_AGENT};
use http::{HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout_at};

use super::settings::Settings;
use super::{COUNTS, Data, wire};

/// First pause before what a collector could not take just now is sent again; each is twice the one before.
const RETRY: Duration = Duration::from_millis(500);
/// Bytes of a collector's answer that are read, and thrown away.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// How often it is told at most that spans were not sent.
const TOLD_INTERVAL: Duration = Duration::from_secs(60);

/// Why no spans can be sent.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A file could not be read, or has nothing in it.
    #[error("{variable}: {path} has no {what} in PEM form that can be read")]
    File {
        /// The variable that names it.
        variable: &'static str,
        /// The file.
        path: PathBuf,
        /// What should be in it.
        what: &'static str,
        #[source]
        source: Option<rustls::pki_types::pem::Error>,
    },
    /// The certificate cannot be used, or not with that key.
    #[error(
        "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and OTEL_EXPORTER_OTLP_CLIENT_KEY must be a certificate (X.509, version 3) and its key"
    )]
    Client(#[source] rustls::Error),
    /// The system trusts nobody.
    #[error("no certificates of authorities were found; name a file in OTEL_EXPORTER_OTLP_CERTIFICATE")]
    Roots(#[source] std::io::Error),
    /// No thread could be started.
    #[error("no thread could be started for spans")]
    Thread(#[source] std::io::Error),
}

/// Where ended spans go. Full, it drops the newest.
pub struct Queue {
    spans: mpsc::Sender<Box<Data>>,
    flush: mpsc::UnboundedSender<blocking::SyncSender<()>>,
}

impl Queue {
    /// Takes a span, or drops it. Never waits.
    pub fn put(&self, span: Box<Data>) {
        if self.spans.try_send(span).is_err() {
            COUNTS.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Has everything sent that was put before, and waits for it, but no longer than this.
    pub fn flush(&self, bound: Duration) {
        let (done, told) = blocking::sync_channel(1);
        if self.flush.send(done).is_ok() && told.recv_timeout(bound).is_err() {
            tracing::warn!("the last spans were not sent in time");
        }
    }
}

/// Starts the thread that sends.
pub fn start(settings: Settings) -> Result<Queue, StartError> {
    let client = client(&settings)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(StartError::Thread)?;
    let (spans, waiting) = mpsc::channel(settings.queue_spans_max);
    let (flush, flushes) = mpsc::unbounded_channel();
    let exporter = Exporter { client, settings, told: None, untold: 0 };
    let work = move || runtime.block_on(exporter.work(waiting, flushes));
    std::thread::Builder::new().name("spans".to_owned()).spawn(work).map_err(StartError::Thread)?;
    Ok(Queue { spans, flush })
}

type HttpClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

fn client(settings: &Settings) -> Result<HttpClient, StartError> {
    let Settings { endpoint, certificate, client, .. } = settings;
    let mut roots = RootCertStore::empty();
    // Who is spoken to in the clear is not asked for a certificate.
    if endpoint.scheme_str() == Some("https") {
        roots.add_parsable_certificates(match certificate {
            Some(path) => certificates("OTEL_EXPORTER_OTLP_CERTIFICATE", path)?,
            None => native()?,
        });
    }
    let config = rustls::ClientConfig::builder().with_root_certificates(roots);
    let config = match client {
        None => config.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = certificates("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", certificate)?;
            config.with_client_auth_cert(chain, private_key(key)?).map_err(StartError::Client)?
        }
    };
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    let connector =
        HttpsConnectorBuilder::new().with_tls_config(config).https_or_http().enable_http1().wrap_connector(connector);
    Ok(Client::builder(TokioExecutor::new()).build(connector))
}

/// Whom the system trusts.
fn native() -> Result<Vec<CertificateDer<'static>>, StartError> {
    let found = rustls_native_certs::load_native_certs();
    match found.errors.into_iter().next() {
        Some(error) if found.certs.is_empty() => Err(StartError::Roots(std::io::Error::other(error))),
        _ => Ok(found.certs),
    }
}

fn certificates(variable: &'static str, path: &PathBuf) -> Result<Vec<CertificateDer<'static>>, StartError> {
    let error = |source| StartError::File { variable, path: path.clone(), what: "certificate", source };
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let read = read.map_err(|source| error(Some(source)))?;
    if read.is_empty() { Err(error(None)) } else { Ok(read) }
}

fn private_key(path: &PathBuf) -> Result<PrivateKeyDer<'static>, StartError> {
    PrivateKeyDer::from_pem_file(path).map_err(|source| StartError::File {
        variable: "OTEL_EXPORTER_OTLP_CLIENT_KEY",
        path: path.clone(),
        what: "private key",
        source: Some(source),
    })
}

struct Exporter {
    client: HttpClient,
    settings: Settings,
    /// When it was told last that spans were not sent.
    told: Option<Instant>,
    /// Spans of which it was not told that they were not sent.
    untold: usize,
}

impl Exporter {
    /// Sends, until nobody can put anything into the queue any more.
    async fn work(
        mut self,
        mut waiting: mpsc::Receiver<Box<Data>>,
        mut flushes: mpsc::UnboundedReceiver<blocking::SyncSender<()>>,
    ) {
        let batch_max = self.settings.batch_spans_max;
        let mut batch = Vec::new();
        loop {
            // For the first, however long; for more, as long as is agreed.
            let mut flush = tokio::select! {
                count = waiting.recv_many(&mut batch, batch_max) => {
                    if count == 0 {
                        return;
                    }
                    None
                }
                flush = flushes.recv() => flush,
            };
            let due = Instant::now() + self.settings.delay;
            while flush.is_none() && batch.len() < batch_max {
                let more = batch_max - batch.len();
                tokio::select! {
                    read = timeout_at(due, waiting.recv_many(&mut batch, more)) => match read {
                        Ok(count) if count > 0 => {}
                        Ok(_) | Err(_) => break,
                    },
                    asked = flushes.recv() => flush = asked,
                }
            }
            loop {
                if !batch.is_empty() {
                    self.send(&batch).await;
                    batch.clear();
                }
                // What is there is sent before who asked is told.
                let more = flush.is_some().then(|| waiting.try_recv().ok()).flatten();
                let Some(first) = more else { break };
                batch.push(first);
                while batch.len() < batch_max
                    && let Ok(next) = waiting.try_recv()
                {
                    batch.push(next);
                }
            }
            if let Some(done) = flush {
                let _ = done.try_send(()); // who asked may have left
            }
        }
    }

    async fn send(&mut self, batch: &[Box<Data>]) {
        let body = Bytes::from(wire::request(&self.settings.resource, batch));
        let give_up = Instant::now() + self.settings.timeout;
        let mut pause = RETRY;
        let why = loop {
            let why = match timeout_at(give_up, self.try_once(body.clone())).await {
                Ok(Ok(())) => {
                    COUNTS.exported.fetch_add(batch.len() as u64, Ordering::Relaxed);
                    return;
                }
                Ok(Err(Failure::Final(why))) => break why,
                Ok(Err(Failure::Passes(why))) => why,
                Err(_) => break format!("no answer within {} ms", self.settings.timeout.as_millis()),
            };
            if Instant::now() + pause >= give_up {
                break why;
            }
            sleep(pause).await;
            pause *= 2;
        };
        COUNTS.failed.fetch_add(batch.len() as u64, Ordering::Relaxed);
        self.untold += batch.len();
        if self.told.is_none_or(|told| told.elapsed() >= TOLD_INTERVAL) {
            self.told = Some(Instant::now());
            tracing::warn!(
                endpoint = %self.settings.endpoint,
                error = why,
                spans = std::mem::take(&mut self.untold),
                "spans were not sent, and are lost"
            );
        }
    }

    async fn try_once(&self, body: Bytes) -> Result<(), Failure> {
        let mut request = Request::post(self.settings.endpoint.clone()).body(Full::new(body)).map_err(Failure::of)?;
        let headers = request.headers_mut();
        headers.extend(self.settings.headers.iter().map(|(name, value)| (name.clone(), value.clone())));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        headers.insert(
            USER_AGENT,
            HeaderValue::from_static(concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION"))),
        );
        let answer = self.client.request(request).await.map_err(Failure::of)?;
        let status = answer.status();
        // Read, so that the connection serves again.
        let _ = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        match status {
            _ if status.is_success() => Ok(()),
            // Source: OTLP, "Retryable Response Codes".
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => Err(Failure::Passes(format!("the collector said {status}"))),
            _ => Err(Failure::Final(format!("the collector said {status}"))),
        }
    }
}

/// Why a batch was not taken.
enum Failure {
    /// It may be in a moment.
    Passes(String),
    /// It never will be.
    Final(String),
}

impl Failure {
    fn of(error: impl std::error::Error + 'static) -> Self {
        Self::Passes(crate::telemetry::chain(&error))
    }
}
