//! What the program does, as spans, sent by OTLP if the standard `OTEL_…` variables ask for it.
//!
//! ```text
//! Span ─ ends ─▶ queue, bounded ─▶ a thread with a runtime of its own ─ HTTP, protobuf ─▶ collector
//!                  └ full: dropped, and counted
//! ```
//! Nobody waits for a collector: whoever ends a span puts it into the queue, or drops it, and goes on. The thread shares
//! nothing with those who grant and end, not even the runtime's threads for names to be resolved; at the end it is given a
//! second ([`finish`]), and left.
//!
//! The spans are few and their attributes are ours, so their twenty fields are written out by hand (`wire`), which brings
//! no crate that was not there; OpenTelemetry's own messages read them in the tests. They have no key in them, no group and
//! no `extra` of anybody, and nothing of a session's bytes. What the log tells is told by `RUST_LOG`, and by that alone.

mod export;
mod settings;
mod wire;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;

use crate::clock::Clock;

use export::Queue;
pub use settings::{Sampler, Settings};

/// How long the last spans may take at the end.
const FINISH_TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes of an attribute's text; an error of kube's can be longer.
const TEXT_BYTES_MAX: usize = 1024;

static TRACER: OnceLock<Tracer> = OnceLock::new();

struct Tracer {
    sampler: Sampler,
    clock: Clock,
    queue: Queue,
}

/// Begins to make spans, if these variables ask for it; tells the log what of them cannot be followed. It is no reason not
/// to start: who ends grants does not stay down for want of a trace. The first call stands.
pub fn start(service: &str, variable: impl Fn(&str) -> Option<String>, clock: Clock) {
    let (settings, warnings) = Settings::read(service, variable);
    for warning in warnings {
        tracing::warn!(warning, "a variable of OpenTelemetry's is not followed");
    }
    let Some(settings) = settings else { return };
    let (endpoint, sampler) = (settings.endpoint.to_string(), settings.sampler);
    match export::start(settings) {
        Ok(queue) => {
            if TRACER.set(Tracer { sampler, clock, queue }).is_ok() {
                tracing::info!(endpoint, "sends spans");
            }
        }
        Err(error) => {
            let error = crate::telemetry::chain(&error);
            tracing::warn!(error, "no spans are sent; set the variable right and start again");
        }
    }
}

/// Sends what was not sent yet, for a second at most.
pub fn finish() {
    if let Some(tracer) = TRACER.get() {
        tracer.queue.flush(FINISH_TIMEOUT);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ids {
    trace: [u8; 16],
    span: [u8; 8],
}

/// A span as those know it who belong below it; none if it is not recorded, and then they are not either.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Context(Option<Ids>);

/// On which side of a call a span stands. The numbers are OTLP's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// On none.
    Internal = 1,
    /// Of whoever is called.
    Server = 2,
    /// Of whoever calls.
    Client = 3,
}

/// What an attribute says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A text.
    Text(String),
    /// A number.
    Number(i64),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text[..text.floor_char_boundary(TEXT_BYTES_MAX)].to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<u16> for Value {
    fn from(number: u16) -> Self {
        Self::Number(number.into())
    }
}

/// A span that has ended, or has not yet.
#[derive(Clone, Debug)]
struct Data {
    ids: Ids,
    parent: Option<[u8; 8]>,
    name: &'static str,
    side: Side,
    start_time: Timestamp,
    start: Instant,
    elapsed: Duration,
    attributes: Vec<(&'static str, Value)>,
    /// Why it failed, if it did.
    error: Option<Value>,
}

/// Something that is being done; it ends when this is dropped. None, if nobody asked for it.
#[derive(Debug, Default)]
pub struct Span(Option<Box<Data>>);

impl Span {
    /// Begins a trace, if one is wanted.
    pub fn root(name: &'static str) -> Self {
        let Some(tracer) = TRACER.get() else { return Self(None) };
        let Some(ids) = new_ids() else { return Self(None) };
        if !tracer.sampler.takes(&ids.trace) {
            return Self(None);
        }
        Self::begin(tracer, ids, None, name)
    }

    /// Begins a part of what `within` is.
    pub fn child_of(within: Context, name: &'static str) -> Self {
        let (Some(tracer), Some(parent)) = (TRACER.get(), within.0) else { return Self(None) };
        let Some(new) = new_ids() else { return Self(None) };
        Self::begin(tracer, Ids { trace: parent.trace, span: new.span }, Some(parent.span), name)
    }

    fn begin(tracer: &Tracer, ids: Ids, parent: Option<[u8; 8]>, name: &'static str) -> Self {
        Self(Some(Box::new(Data {
            ids,
            parent,
            name,
            side: Side::Internal,
            start_time: (tracer.clock)(),
            start: Instant::now(),
            elapsed: Duration::ZERO,
            attributes: Vec::new(),
            error: None,
        })))
    }

    /// Says on which side of a call it stands.
    #[must_use]
    pub fn on(mut self, side: Side) -> Self {
        if let Some(data) = &mut self.0 {
            data.side = side;
        }
        self
    }

    /// Adds an attribute.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl Into<Value>) -> Self {
        self.set(key, value);
        self
    }

    /// Adds an attribute.
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        if let Some(data) = &mut self.0 {
            data.attributes.push((key, value.into()));
        }
    }

    /// Says that it failed: a word of a few, and what somebody reads.
    pub fn fail(&mut self, word: &str, message: impl std::fmt::Display) {
        if let Some(data) = &mut self.0 {
            data.attributes.push(("error.type", word.into()));
            data.error = Some(message.to_string().into());
        }
    }

    /// What belongs below it names it by this.
    pub fn context(&self) -> Context {
        Context(self.0.as_ref().map(|data| data.ids))
    }

    /// Forgets it: it was nothing.
    pub fn discard(mut self) {
        self.0 = None;
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let (Some(mut data), Some(tracer)) = (self.0.take(), TRACER.get()) {
            data.elapsed = data.start.elapsed();
            tracer.queue.put(data);
        }
    }
}

/// Ids that nobody has. None if the system has no chance to give, and then there is no span.
fn new_ids() -> Option<Ids> {
    let mut bytes = [0; 24];
    rustls::crypto::CryptoProvider::get_default()?.secure_random.fill(&mut bytes).ok()?;
    let (trace, span) = bytes.split_at(16);
    Some(Ids { trace: trace.try_into().ok()?, span: span.try_into().ok()? })
}

/// How many spans went where.
#[derive(Debug)]
struct Counts {
    exported: AtomicU64,
    dropped: AtomicU64,
    failed: AtomicU64,
}

static COUNTS: Counts = Counts { exported: AtomicU64::new(0), dropped: AtomicU64::new(0), failed: AtomicU64::new(0) };

/// The same, on a page of metrics: `…_spans_total`, by outcome.
#[derive(Debug)]
pub struct SpanCounts;

impl Collector for SpanCounts {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let help = "Spans by outcome; dropped ones found the queue full, failed ones no collector that took them";
        let mut family = encoder.encode_descriptor("spans", help, None, MetricType::Counter)?;
        let Counts { exported, dropped, failed } = &COUNTS;
        for (outcome, count) in [("exported", exported), ("dropped", dropped), ("failed", failed)] {
            let count = ConstCounter::new(count.load(Ordering::Relaxed));
            count.encode(family.encode_family(&[("outcome", outcome)])?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
