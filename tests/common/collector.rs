//! A collector of spans: OTLP by HTTP, read by OpenTelemetry's own messages. It takes them, refuses them, or hangs.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message;
use tokio::task::JoinHandle;

/// A span, as a person reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    pub trace: Vec<u8>,
    pub id: Vec<u8>,
    pub parent: Vec<u8>,
    pub service: String,
    pub name: String,
    pub kind: SpanKind,
    pub attributes: HashMap<String, String>,
    /// What its status says, if that is an error.
    pub error: Option<String>,
}

/// What it does with spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    Takes,
    Hangs,
}

struct Inner {
    mood: Mood,
    spans: Vec<Span>,
    /// Requests that came.
    asked: usize,
    /// The headers of the last one.
    headers: HeaderMap,
}

/// A running one.
pub struct Collector {
    pub address: SocketAddr,
    inner: Arc<Mutex<Inner>>,
    task: JoinHandle<()>,
}

impl Collector {
    /// Starts one that takes all.
    pub async fn start() -> anyhow::Result<Self> {
        let inner = Inner { mood: Mood::Takes, spans: vec![], asked: 0, headers: HeaderMap::new() };
        let inner = Arc::new(Mutex::new(inner));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let router = Router::new().route("/v1/traces", post(take)).with_state(Arc::clone(&inner));
        let task = tokio::spawn(async move {
            axum::serve(listener, router).await.expect("a bound listener serves");
        });
        Ok(Self { address, inner, task })
    }

    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder panics")
    }

    /// From here on it does so.
    pub fn becomes(&self, mood: Mood) {
        self.inner().mood = mood;
    }

    /// What came so far.
    pub fn spans(&self) -> Vec<Span> {
        self.inner().spans.clone()
    }

    /// How many requests came.
    pub fn asked(&self) -> usize {
        self.inner().asked
    }

    /// A header of the last request.
    pub fn header(&self, name: &str) -> Option<String> {
        Some(self.inner().headers.get(name)?.to_str().ok()?.to_owned())
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn take(State(inner): State<Arc<Mutex<Inner>>>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let mood = {
        let mut inner = inner.lock().expect("no holder panics");
        inner.asked += 1;
        inner.headers = headers;
        inner.mood
    };
    if mood == Mood::Hangs {
        std::future::pending::<()>().await;
    }
    let Ok(request) = ExportTraceServiceRequest::decode(body) else { return StatusCode::BAD_REQUEST };
    let mut inner = inner.lock().expect("no holder panics");
    for of_resource in request.resource_spans {
        let resource = attributes(of_resource.resource.unwrap_or_default().attributes);
        for span in of_resource.scope_spans.into_iter().flat_map(|of_scope| of_scope.spans) {
            inner.spans.push(Span {
                kind: span.kind(),
                trace: span.trace_id,
                id: span.span_id,
                parent: span.parent_span_id,
                service: resource.get("service.name").cloned().unwrap_or_default(),
                name: span.name,
                attributes: attributes(span.attributes),
                error: span.status.filter(|status| status.code == 2).map(|status| status.message),
            });
        }
    }
    StatusCode::OK
}

fn attributes(pairs: Vec<opentelemetry_proto::tonic::common::v1::KeyValue>) -> HashMap<String, String> {
    let text = |value: Option<Any>| match value {
        Some(Any::StringValue(text)) => text,
        Some(Any::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    pairs.into_iter().map(|pair| (pair.key, text(pair.value.and_then(|value| value.value)))).collect()
}

/// The names of a span and of all that it is within, from the outermost.
pub fn path(spans: &[Span], span: &Span) -> Vec<String> {
    let mut names = vec![span.name.clone()];
    let mut at = span;
    while let Some(parent) = spans.iter().find(|other| other.trace == at.trace && other.id == at.parent) {
        names.push(parent.name.clone());
        at = parent;
    }
    if !at.parent.is_empty() {
        names.push("?".to_owned());
    }
    names.reverse();
    names
}
