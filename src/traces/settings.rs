//! What of OpenTelemetry's variables its crates do not read, or would take silently or wrong. Pure: the environment is an
//! argument.
//!
//! Source: the specification's pages "Environment Variable Specification", "OTLP Exporter Configuration" and "Trace SDK".
//! Of the crates, as of 0.33: the exporter sends HTTP to what is for gRPC, leaves out headers that it cannot read, and knows
//! no certificates; the SDK spins at a delay of 0, ends the process at a queue of 10^11 spans, keeps no trace at a ratio of
//! `nan`, decodes no attribute, and cannot be disabled. So they are given values; of what is named here the exporter reads no more
//! than the headers again, and finds the same.
//!
//! An empty variable is one that is not set. What decides where spans go, or who may read them there, is followed to the
//! letter or not at all: then none are sent. Of what only says how, a mistake leaves its default. No warning has a header's
//! value in it, nor an endpoint, which may have a password.

use std::borrow::Cow;
use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Uri};
use percent_encoding::percent_decode_str;

/// How spans are sent.
#[derive(Clone, Debug, PartialEq)]
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
    /// What made the spans; of two with one name, the later stands.
    pub resource: Vec<(String, String)>,
    /// The part of the traces that is kept.
    pub ratio: f64,
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

    fn warn(&mut self, text: impl Into<String>) {
        self.warnings.push(text.into());
    }

    /// Says why no spans are sent, and what to do about it.
    fn refuse<T>(&mut self, text: impl Display) -> Option<T> {
        self.warn(format!("{text}; no spans are sent"));
        None
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
        // An operator without any endpoint set never asked, whatever else stands there.
        let (name, value) = reader.of_traces("ENDPOINT")?;
        if exporter.is_some_and(|exporter| !exporter.eq_ignore_ascii_case("otlp")) {
            return reader.refuse("OTEL_TRACES_EXPORTER must be otlp or none");
        }
        let Some(endpoint) = endpoint(&name, &value) else {
            return reader.refuse(format!(
                "{name} must be a URL such as http://collector:4318, without user and password, which belong into OTEL_EXPORTER_OTLP_HEADERS"
            ));
        };
        if let Some((name, value)) = reader.of_traces("PROTOCOL")
            && value != "http/protobuf"
        {
            return reader.refuse(format!(
                "{name} must be http/protobuf, the one protocol that is spoken here; set it so, and the endpoint to the collector's port for it, 4318 as a rule"
            ));
        }
        let (name, value) = reader.of_traces("HEADERS").unwrap_or_default();
        let Some(headers) = headers(&value) else {
            return reader.refuse(format!("{name} must be NAME=VALUE with commas between, in percent-encoding"));
        };
        let path = |what| reader.of_traces(what).map(|(_, path)| PathBuf::from(path));
        let certificate = path("CERTIFICATE");
        let client = match (path("CLIENT_CERTIFICATE"), path("CLIENT_KEY")) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => {
                return reader.refuse(
                    "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and OTEL_EXPORTER_OTLP_CLIENT_KEY must both be set, or neither",
                );
            }
        };
        if let Some((name, value)) = reader.of_traces("COMPRESSION")
            && value != "none"
        {
            reader.warn(format!("{name} must be none; spans are sent as they are"));
        }
        let timeout = reader.of_traces("TIMEOUT");
        let timeout = Duration::from_millis(reader.number(timeout, TIME_MS, 10_000));
        let delay = reader.named("OTEL_BSP_SCHEDULE_DELAY");
        let delay = Duration::from_millis(reader.number(delay, TIME_MS, 5_000));
        let queue = reader.named("OTEL_BSP_MAX_QUEUE_SIZE");
        let queue_spans_max = reader.number(queue, QUEUE_SPANS, 2048);
        let batch = reader.named("OTEL_BSP_MAX_EXPORT_BATCH_SIZE");
        let batch_spans_max = reader.number(batch, QUEUE_SPANS, 512).min(queue_spans_max);
        let resource = resource(service, reader);
        let ratio = ratio(reader);
        Some(Self {
            endpoint,
            headers,
            timeout,
            certificate,
            client,
            resource,
            ratio,
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
    let is_code = |after: &str| {
        after.as_bytes().first_chunk().is_some_and(|code: &[u8; 2]| code.iter().all(u8::is_ascii_hexdigit))
    };
    let decoded = || percent_decode_str(text).decode_utf8().ok().map(Cow::into_owned);
    text.split('%').skip(1).all(is_code).then(decoded).flatten()
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
                "OTEL_RESOURCE_ATTRIBUTES must be NAME=VALUE with commas between, in percent-encoding; it is left out",
            );
            Vec::new()
        }
    };
    let named = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let ours = [named("service.name", service), named("service.version", env!("CARGO_PKG_VERSION"))];
    let name = reader.get("OTEL_SERVICE_NAME").map(|name| named("service.name", &name));
    ours.into_iter().chain(given).chain(name).collect()
}

fn ratio<F: Fn(&str) -> Option<String>>(reader: &mut Reader<F>) -> f64 {
    // What begins here has no parent elsewhere, so with one or without is the same.
    match reader.get("OTEL_TRACES_SAMPLER").as_deref() {
        None | Some("always_on" | "parentbased_always_on") => 1.0,
        Some("always_off" | "parentbased_always_off") => 0.0,
        Some("traceidratio" | "parentbased_traceidratio") => {
            let ratio = reader.named("OTEL_TRACES_SAMPLER_ARG");
            reader.number(ratio, (0.0, 1.0), 1.0)
        }
        Some(_) => {
            reader.warn(
                "OTEL_TRACES_SAMPLER must be always_on, always_off or traceidratio, or one of these after parentbased_; all spans are sent",
            );
            1.0
        }
    }
}
