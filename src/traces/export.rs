//! Between OpenTelemetry's SDK and its exporter: counts, tells, and speaks TLS as we do.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{ExporterBuildError, Protocol, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::resource::TelemetryResourceDetector;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider, Span, SpanData, SpanExporter, SpanProcessor,
};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::runtime::Runtime;

use super::COUNTS;
use super::settings::Settings;
use crate::telemetry::chain;

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
    /// The exporter has a reason of its own.
    #[error("OpenTelemetry's exporter could not be made of its variables")]
    Exporter(#[source] ExporterBuildError),
}

/// Starts what sends, on threads of its own.
pub fn start(settings: Settings) -> Result<SdkTracerProvider, StartError> {
    let error = Arc::default();
    let hyper = HyperClient::new(connector(&settings)?, settings.timeout, None);
    let text = |value: &http::HeaderValue| value.to_str().unwrap_or_default().to_owned();
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_http_client(Client { hyper, error: Arc::clone(&error) })
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(settings.endpoint.to_string())
        .with_headers(settings.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect())
        .with_timeout(settings.timeout)
        .build()
        .map_err(StartError::Exporter)?;
    // Of many threads, that is of one beside the one that waits: it looks after a connection between two batches.
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(1).thread_name("spans").enable_all().build().map_err(StartError::Thread)?;
    // Not to be dropped: that would wait for a name that is being resolved.
    let runtime = Box::leak(Box::new(runtime));
    let Settings { endpoint, timeout, delay, queue_spans_max, batch_spans_max, .. } = settings;
    let exporter = Teller { exporter, runtime, endpoint, timeout, error, told: Mutex::default() };
    let batches = BatchConfigBuilder::default()
        .with_scheduled_delay(delay)
        .with_max_queue_size(queue_spans_max)
        .with_max_export_batch_size(batch_spans_max);
    let batches = BatchSpanProcessor::new(exporter, batches.build());
    let resource = Resource::builder_empty()
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_attributes(settings.resource.into_iter().map(|(key, value)| KeyValue::new(key, value)));
    Ok(SdkTracerProvider::builder()
        .with_span_processor(Queue { batches, spans_max: queue_spans_max })
        .with_sampler(Sampler::TraceIdRatioBased(settings.ratio))
        .with_resource(resource.build())
        .build())
}

/// The SDK's queue, with what finds it full counted, which the SDK keeps to itself.
#[derive(Debug)]
struct Queue {
    batches: BatchSpanProcessor,
    spans_max: usize,
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if span.name == super::DISCARDED {
            return;
        }
        // Never less than those in the SDK's queue: counted before they come, and until they have left.
        if COUNTS.waiting.fetch_add(1, Ordering::AcqRel) < self.spans_max {
            self.batches.on_end(span);
        } else {
            COUNTS.waiting.fetch_sub(1, Ordering::AcqRel);
            COUNTS.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.batches.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.batches.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.batches.set_resource(resource);
    }
}

/// Why the last request had no answer; the exporter says of it no more than `network error`.
type LastError = Arc<Mutex<Option<String>>>;

#[derive(Debug)]
struct Client {
    hyper: HyperClient<HttpsConnector<HttpConnector>>,
    error: LastError,
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let answer = self.hyper.send_bytes(request).await;
        *self.error.lock().unwrap_or_else(PoisonError::into_inner) = answer.as_ref().err().map(|error| chain(&**error));
        answer
    }
}

/// The exporter, on a runtime, which the SDK's thread is not; counts what became of the spans, and tells of the lost.
#[derive(Debug)]
struct Teller {
    exporter: opentelemetry_otlp::SpanExporter,
    runtime: &'static Runtime,
    endpoint: http::Uri,
    timeout: Duration,
    error: LastError,
    /// When it was told last that spans were not sent, and of how many it was not.
    told: Mutex<(Option<Instant>, usize)>,
}

impl SpanExporter for Teller {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len();
        COUNTS.waiting.fetch_sub(count, Ordering::AcqRel);
        // The exporter's own bound ends no try that hangs. This thread is the SDK's for just this, and may be blocked.
        let sent = async { tokio::time::timeout(self.timeout, self.exporter.export(batch)).await };
        let sent = self.runtime.block_on(sent).unwrap_or(Err(OTelSdkError::Timeout(self.timeout)));
        let counter = if sent.is_ok() { &COUNTS.exported } else { &COUNTS.failed };
        counter.fetch_add(count as u64, Ordering::Relaxed);
        let cause = self.error.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Err(error) = &sent {
            let (told, untold) = &mut *self.told.lock().unwrap_or_else(PoisonError::into_inner);
            *untold += count;
            if told.is_none_or(|told| told.elapsed() >= TOLD_INTERVAL) {
                *told = Some(Instant::now());
                let error = cause.unwrap_or_else(|| error.to_string());
                let spans = std::mem::take(untold);
                tracing::warn!(endpoint = %self.endpoint, error, spans, "spans were not sent, and are lost");
            }
        }
        sent
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

fn connector(settings: &Settings) -> Result<HttpsConnector<HttpConnector>, StartError> {
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
    Ok(HttpsConnectorBuilder::new().with_tls_config(config).https_or_http().enable_http1().wrap_connector(connector))
}

/// Whom the system trusts.
fn native() -> Result<Vec<CertificateDer<'static>>, StartError> {
    let found = rustls_native_certs::load_native_certs();
    match found.errors.into_iter().next() {
        Some(error) if found.certs.is_empty() => Err(StartError::Roots(std::io::Error::other(error))),
        _ => Ok(found.certs),
    }
}

fn certificates(variable: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, StartError> {
    let error = |source| StartError::File { variable, path: path.to_owned(), what: "certificate", source };
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let read = read.map_err(|source| error(Some(source)))?;
    if read.is_empty() { Err(error(None)) } else { Ok(read) }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, StartError> {
    PrivateKeyDer::from_pem_file(path).map_err(|source| StartError::File {
        variable: "OTEL_EXPORTER_OTLP_CLIENT_KEY",
        path: path.to_owned(),
        what: "private key",
        source: Some(source),
    })
}
