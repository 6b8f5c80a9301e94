//! What OpenTelemetry's variables say. Pure: the environment is an argument.
//!
//! Source: the specification's pages "Environment Variable Specification", "OTLP Exporter Configuration" and "Trace SDK".
//! An empty variable is one that is not set. What decides where spans go, or who may read them there, is followed to the
//! letter or not at all: then none are sent. Of what only says how, a mistake leaves its default. No warning has a header's
//! value in it, nor an endpoint, which may have a password.

use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Uri};

/// Of the traces that begin, which are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sampler {
    /// All.
    All,
    /// None.
    None,
    /// Those whose id is below this, of 2^63.
    Below(u64),
}

impl Sampler {
    /// A part of all. As everybody's SDK has it: the last eight bytes of the id, less one bit.
    fn ratio(ratio: f64) -> Self {
        const ALL: u64 = 1 << 63;
        if ratio >= 1.0 {
            return Self::All;
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "0 to 1 of 2^63, and nobody counts the last bits"
        )]
        let below = (ratio * ALL as f64) as u64;
        Self::Below(below)
    }

    /// Whether a trace of this id is kept.
    pub fn takes(self, trace: &[u8; 16]) -> bool {
        let last = trace.last_chunk().map_or(0, |last| u64::from_be_bytes(*last));
        match self {
            Self::All => true,
            Self::None => false,
            Self::Below(bound) => last >> 1 < bound,
        }
    }
}

/// How spans are sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where to.
    pub endpoint: Uri,
    /// With these headers; they are marked as secrets.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// How long a batch may take, tries and all.
    pub timeout: Duration,
    /// Whom to trust there, in place of whom the system does.
    pub certificate: Option<PathBuf>,
    /// Who we are there: a certificate and its key.
    pub client: Option<(PathBuf, PathBuf)>,
    /// What made the spans.
    pub resource: Vec<(String, String)>,
    /// Which are kept.
    pub sampler: Sampler,
    /// How long a span may wait for others.
    pub delay: Duration,
    /// Spans that may wait.
    pub queue_spans_max: usize,
    /// Spans of one message.
    pub batch_spans_max: usize,
}

/// The bounds of what is counted, whatever a variable says.
const QUEUE_SPANS: (usize, usize) = (1, 65_536);
/// Of times, in milliseconds.
const TIME_MS: (u64, u64) = (1, 600_000);

struct Reader<F> {
    variable: F,
    warnings: Vec<String>,
}

impl<F: Fn(&str) -> Option<String>> Reader<F> {
    fn get(&self, name: &str) -> Option<String> {
        (self.variable)(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
    }

    /// What holds for traces alone, or else for all; with the name of the variable that says so.
    fn of_traces(&self, what: &str) -> Option<(String, String)> {
        ["OTEL_EXPORTER_OTLP_TRACES_", "OTEL_EXPORTER_OTLP_"].into_iter().find_map(|prefix| {
            let name = format!("{prefix}{what}");
            self.get(&name).map(|value| (name, value))
        })
    }

    fn warn(&mut self, text: String) {
        self.warnings.push(text);
    }

    fn number<T: FromStr + PartialOrd + Display + Copy>(
        &mut self,
        found: Option<(String, String)>,
        (least, most): (T, T),
        default: T,
    ) -> T {
        let Some((name, value)) = found else { return default };
        match value.parse() {
            Ok(number) if (least..=most).contains(&number) => number,
            _ => {
                self.warn(format!("{name} must be a number from {least} to {most}; {default} is used"));
                default
            }
        }
    }

    fn named(&self, name: &str) -> Option<(String, String)> {
        self.get(name).map(|value| (name.to_owned(), value))
    }
}

impl Settings {
    /// Reads the variables; none, if no spans are to be sent. Also what of them is not followed, and what to do about it.
    pub fn read(service: &str, variable: impl Fn(&str) -> Option<String>) -> (Option<Self>, Vec<String>) {
        let mut reader = Reader { variable, warnings: Vec::new() };
        let settings = Self::read_with(service, &mut reader);
        (settings, reader.warnings)
    }

    fn read_with<F: Fn(&str) -> Option<String>>(service: &str, reader: &mut Reader<F>) -> Option<Self> {
        let is = |value: Option<String>, word: &str| value.is_some_and(|value| value.eq_ignore_ascii_case(word));
        if is(reader.get("OTEL_SDK_DISABLED"), "true") {
            return None;
        }
        let exporter = reader.get("OTEL_TRACES_EXPORTER");
        if is(exporter.clone(), "none") {
            return None;
        }
        let found = reader.of_traces("ENDPOINT");
        // An operator without any endpoint set never asked, whatever stands here.
        if found.is_some() && exporter.is_some_and(|exporter| !exporter.eq_ignore_ascii_case("otlp")) {
            reader.warn("OTEL_TRACES_EXPORTER must be otlp or none; no spans are sent".to_owned());
            return None;
        }
        let (name, value) = found?;
        let Some(endpoint) = endpoint(&name, &value) else {
            reader.warn(format!(
                "{name} must be a URL such as http://collector:4318, without user and password, which belong into OTEL_EXPORTER_OTLP_HEADERS; no spans are sent"
            ));
            return None;
        };
        if let Some((name, value)) = reader.of_traces("PROTOCOL")
            && value != "http/protobuf"
        {
            reader.warn(format!(
                "{name} must be http/protobuf, the one protocol that is spoken here; set it so, and the endpoint to the collector's port for it, 4318 as a rule; no spans are sent"
            ));
            return None;
        }
        let headers = match reader.of_traces("HEADERS") {
            None => Vec::new(),
            Some((name, value)) => match headers(&value) {
                Some(headers) => headers,
                None => {
                    reader.warn(format!(
                        "{name} must be NAME=VALUE with commas between, in percent-encoding; no spans are sent"
                    ));
                    return None;
                }
            },
        };
        let path = |found: Option<(String, String)>| found.map(|(_, path)| PathBuf::from(path));
        let client = (path(reader.of_traces("CLIENT_CERTIFICATE")), path(reader.of_traces("CLIENT_KEY")));
        let client = match client {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => {
                reader.warn(
                    "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and OTEL_EXPORTER_OTLP_CLIENT_KEY must both be set, or neither; no spans are sent".to_owned(),
                );
                return None;
            }
        };
        if let Some((name, value)) = reader.of_traces("COMPRESSION")
            && value != "none"
        {
            reader.warn(format!("{name} must be none; spans are sent as they are"));
        }
        let certificate = path(reader.of_traces("CERTIFICATE"));
        let timeout = reader.of_traces("TIMEOUT");
        let timeout = Duration::from_millis(reader.number(timeout, TIME_MS, 10_000));
        let delay = reader.named("OTEL_BSP_SCHEDULE_DELAY");
        let delay = Duration::from_millis(reader.number(delay, TIME_MS, 5_000));
        let queue = reader.named("OTEL_BSP_MAX_QUEUE_SIZE");
        let queue_spans_max = reader.number(queue, QUEUE_SPANS, 2048);
        let batch = reader.named("OTEL_BSP_MAX_EXPORT_BATCH_SIZE");
        let batch_spans_max = reader.number(batch, QUEUE_SPANS, 512).min(queue_spans_max);
        let resource = resource(service, reader);
        let sampler = sampler(reader);
        Some(Self {
            endpoint,
            headers,
            timeout,
            certificate,
            client,
            resource,
            sampler,
            delay,
            queue_spans_max,
            batch_spans_max,
        })
    }
}

/// The endpoint of all signals has the traces' path below it; that of the traces is one already.
fn endpoint(name: &str, value: &str) -> Option<Uri> {
    let text = match name {
        "OTEL_EXPORTER_OTLP_ENDPOINT" if value.contains('?') => return None,
        "OTEL_EXPORTER_OTLP_ENDPOINT" => format!("{}/v1/traces", value.trim_end_matches('/')),
        _ => value.to_owned(),
    };
    let uri: Uri = text.parse().ok()?;
    let is_http = matches!(uri.scheme_str(), Some("http" | "https"));
    let is_plain = uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
    (is_http && is_plain && uri.host().is_some_and(|host| !host.is_empty())).then_some(uri)
}

/// `NAME=VALUE,…`, percent-encoded, with spaces around.
fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let members = text.split(',').map(str::trim).filter(|member| !member.is_empty());
    let pair = |member: &str| {
        let (key, value) = member.split_once('=')?;
        let (key, value) = (decoded(key.trim())?, decoded(value.trim())?);
        (!key.is_empty()).then_some((key, value))
    };
    members.map(pair).collect()
}

fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        if first != b'%' {
            bytes.push(first);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2)?;
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        bytes.push(digit(digits[0])? << 4 | digit(digits[1])?);
        rest = after;
    }
    String::from_utf8(bytes).ok()
}

fn headers(text: &str) -> Option<Vec<(HeaderName, HeaderValue)>> {
    let header = |(name, value): (String, String)| {
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        let mut value = HeaderValue::from_str(&value).ok()?;
        value.set_sensitive(true);
        Some((name, value))
    };
    pairs(text)?.into_iter().map(header).collect()
}

fn resource<F: Fn(&str) -> Option<String>>(service: &str, reader: &mut Reader<F>) -> Vec<(String, String)> {
    let given = match reader.get("OTEL_RESOURCE_ATTRIBUTES").map(|text| pairs(&text)) {
        None => Vec::new(),
        Some(Some(given)) => given,
        Some(None) => {
            reader.warn(
                "OTEL_RESOURCE_ATTRIBUTES must be NAME=VALUE with commas between, in percent-encoding; it is left out"
                    .to_owned(),
            );
            Vec::new()
        }
    };
    let mut resource = vec![
        ("service.name".to_owned(), service.to_owned()),
        ("service.version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ("telemetry.sdk.name".to_owned(), env!("CARGO_PKG_NAME").to_owned()),
        ("telemetry.sdk.language".to_owned(), "rust".to_owned()),
    ];
    let name = reader.get("OTEL_SERVICE_NAME").map(|name| ("service.name".to_owned(), name));
    // The later one stands.
    for (key, value) in given.into_iter().chain(name) {
        resource.retain(|(other, _)| *other != key);
        resource.push((key, value));
    }
    resource
}

fn sampler<F: Fn(&str) -> Option<String>>(reader: &mut Reader<F>) -> Sampler {
    // What begins here has no parent elsewhere, so with one or without is the same.
    match reader.get("OTEL_TRACES_SAMPLER").as_deref() {
        None | Some("always_on" | "parentbased_always_on") => Sampler::All,
        Some("always_off" | "parentbased_always_off") => Sampler::None,
        Some("traceidratio" | "parentbased_traceidratio") => {
            let ratio = reader.named("OTEL_TRACES_SAMPLER_ARG");
            Sampler::ratio(reader.number(ratio, (0.0, 1.0), 1.0))
        }
        Some(_) => {
            reader.warn(
                "OTEL_TRACES_SAMPLER must be always_on, always_off or traceidratio, or one of these after parentbased_; all spans are sent".to_owned(),
            );
            Sampler::All
        }
    }
}
