//! What the program does, as spans, sent by OTLP if the standard `OTEL_…` variables ask for it.
//!
//! ```text
//! Span ─ ends ─▶ the SDK's queue, bounded ─▶ the SDK's thread, a runtime of its own ─ HTTP, protobuf ─▶ collector
//!                  └ full: dropped, and counted
//! ```
//! The work is that of OpenTelemetry's own crates. What is added here: which spans there are to be (none, if nobody asked),
//! what of the variables those crates take silently or wrong (`settings`), the counts and the TLS (`export`).
//!
//! Nobody waits for a collector: whoever ends a span puts it into the queue, or drops it, and goes on. What sends shares
//! nothing with those who grant and end, not even the runtime's threads for names to be resolved; at the end it is given a
//! second ([`finish`]), and left.
//!
//! Spans have no key in them, no group and no `extra` of anybody, and nothing of a session's bytes. What the log tells is
//! told by `RUST_LOG`, and by that alone.

mod export;
mod settings;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId, TraceState,
    Tracer as _, TracerProvider as _,
};
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;

use settings::Settings;

/// How long the last spans may take at the end.
const FINISH_TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes of an attribute's text; an error of kube's can be longer, and the SDK has no bound.
const TEXT_BYTES_MAX: usize = 1024;
/// The name of a span that was nothing; the SDK forgets none that began.
const DISCARDED: &str = "";

static TRACER: OnceLock<(SdkTracerProvider, SdkTracer)> = OnceLock::new();

/// Begins to make spans, if these variables ask for it; tells the log what of them cannot be followed. It is no reason not
/// to start: who ends grants does not stay down for want of a trace. The first call stands.
pub fn start(service: &str, variable: impl Fn(&str) -> Option<String>) {
    let (settings, warnings) = Settings::read(service, variable);
    for warning in warnings {
        tracing::warn!(warning, "a variable of OpenTelemetry's is not followed");
    }
    let Some(settings) = settings else { return };
    let endpoint = settings.endpoint.to_string();
    match export::start(settings) {
        Ok(provider) => {
            let tracer = provider.tracer(env!("CARGO_PKG_NAME"));
            if TRACER.set((provider, tracer)).is_ok() {
                tracing::info!(endpoint, "sends spans");
            }
        }
        Err(error) => {
            let error = crate::telemetry::chain(&error);
            tracing::warn!(error, "no spans are sent; set the variable right and start again");
        }
    }
}

/// Sends what was not sent yet, for a second at most. What ends later is no span any more.
pub fn finish() {
    if let Some((provider, _)) = TRACER.get()
        && provider.shutdown_with_timeout(FINISH_TIMEOUT).is_err()
    {
        tracing::warn!("the last spans were not sent in time");
    }
}

/// A span as those know it who belong below it; none if it is not recorded, and then they are not either.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Context(Option<(TraceId, SpanId)>);

/// What an attribute says: a number, or a text, cut if it is too long.
#[derive(Debug)]
pub struct Value(opentelemetry::Value);

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self(text[..text.floor_char_boundary(TEXT_BYTES_MAX)].to_owned().into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self(number.into())
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        i64::try_from(number).unwrap_or(i64::MAX).into()
    }
}

impl From<u16> for Value {
    fn from(number: u16) -> Self {
        i64::from(number).into()
    }
}

/// Something that is being done; it ends when this is dropped. None, if nobody asked for it.
#[derive(Debug, Default)]
pub struct Span(Option<Box<opentelemetry_sdk::trace::Span>>);

impl Span {
    /// Begins a trace, if one is wanted.
    pub fn root(name: &'static str) -> Self {
        Self::begin(name, SpanKind::Internal, opentelemetry::Context::new())
    }

    /// Begins a trace of what somebody else asked us for, if one is wanted.
    pub fn served(name: &'static str) -> Self {
        Self::begin(name, SpanKind::Server, opentelemetry::Context::new())
    }

    /// Begins a part of what `within` is.
    pub fn child_of(within: Context, name: &'static str) -> Self {
        Self::part(within, name, SpanKind::Internal)
    }

    /// Begins a part of what `within` is: we ask somebody else.
    pub fn call(within: Context, name: &'static str) -> Self {
        Self::part(within, name, SpanKind::Client)
    }

    fn part(within: Context, name: &'static str, kind: SpanKind) -> Self {
        let Some((trace, span)) = within.0 else { return Self(None) };
        let parent = SpanContext::new(trace, span, TraceFlags::SAMPLED, false, TraceState::default());
        Self::begin(name, kind, opentelemetry::Context::new().with_remote_span_context(parent))
    }

    fn begin(name: &'static str, kind: SpanKind, within: opentelemetry::Context) -> Self {
        let Some((_, tracer)) = TRACER.get() else { return Self(None) };
        let span = tracer.build_with_context(SpanBuilder::from_name(name).with_kind(kind), &within);
        Self(span.is_recording().then(|| Box::new(span)))
    }

    /// Adds an attribute.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl Into<Value>) -> Self {
        self.set(key, value);
        self
    }

    /// Adds an attribute.
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        if let Some(span) = &mut self.0 {
            span.set_attribute(KeyValue::new(key, value.into().0));
        }
    }

    /// Says that it failed: a word of a few, and what somebody reads.
    pub fn fail(&mut self, word: &str, message: impl std::fmt::Display) {
        self.set("error.type", word);
        if let Some(span) = &mut self.0 {
            span.set_status(Status::error(Value::from(message.to_string()).0.to_string()));
        }
    }

    /// What belongs below it names it by this.
    pub fn context(&self) -> Context {
        let context = self.0.as_ref().map(|span| span.span_context());
        Context(context.map(|context| (context.trace_id(), context.span_id())))
    }

    /// Forgets it: it was nothing.
    pub fn discard(mut self) {
        if let Some(span) = &mut self.0 {
            span.update_name(DISCARDED);
        }
    }
}

/// How many spans went where.
#[derive(Debug)]
struct Counts {
    /// In the queue, now.
    waiting: AtomicUsize,
    exported: AtomicU64,
    dropped: AtomicU64,
    failed: AtomicU64,
}

static COUNTS: Counts = Counts {
    waiting: AtomicUsize::new(0),
    exported: AtomicU64::new(0),
    dropped: AtomicU64::new(0),
    failed: AtomicU64::new(0),
};

/// The same, on a page of metrics: `…_spans_total`, by outcome.
#[derive(Debug)]
pub struct SpanCounts;

impl Collector for SpanCounts {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let help = "Spans by outcome; dropped ones found the queue full, failed ones no collector that took them";
        let mut family = encoder.encode_descriptor("spans", help, None, MetricType::Counter)?;
        let Counts { waiting: _, exported, dropped, failed } = &COUNTS;
        for (outcome, count) in [("exported", exported), ("dropped", dropped), ("failed", failed)] {
            let count = ConstCounter::new(count.load(Ordering::Relaxed));
            count.encode(family.encode_family(&[("outcome", outcome)])?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
