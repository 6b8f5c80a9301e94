//! The variables, row by row. What then comes to a collector is in `tests/bad_days` and `tests/gateway`.

use std::collections::HashMap;

use opentelemetry::trace::{Span as _, Tracer as _};

use super::*;

const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");

fn read(variables: &[(&str, &str)]) -> (Option<Settings>, Vec<String>) {
    let variables: HashMap<&str, &str> = variables.iter().copied().collect();
    Settings::read("service", |name| variables.get(name).map(|value| (*value).to_owned()))
}

/// With an endpoint and these, spans are sent, and nothing is to be said.
#[track_caller]
fn sends(variables: &[(&str, &str)]) -> Settings {
    let (settings, warnings) = read(&[&[ENDPOINT], variables].concat());
    assert_eq!(warnings, Vec::<String>::new());
    settings.expect("spans are sent")
}

/// With an endpoint and these, something is to be said that names the variable; returns whether spans are sent.
#[track_caller]
fn warns(variables: &[(&str, &str)], name: &str) -> bool {
    let (settings, warnings) = read(&[&[ENDPOINT], variables].concat());
    assert!(matches!(&warnings[..], [warning] if warning.starts_with(name)), "{warnings:?}");
    for (_, value) in variables {
        assert!(value.len() < 8 || !warnings[0].contains(value), "the value is told: {warnings:?}");
    }
    settings.is_some()
}

#[test]
fn nothing_is_sent_unless_an_endpoint_is_named_and_nothing_else_says_no() {
    for variables in [
        &[][..],
        &[("OTEL_SERVICE_NAME", "it")],
        &[("OTEL_TRACES_EXPORTER", "otlp")],
        &[("OTEL_TRACES_EXPORTER", "console"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")],
        &[("OTEL_EXPORTER_OTLP_ENDPOINT", "")],
        &[("OTEL_EXPORTER_OTLP_ENDPOINT", "  ")],
        &[ENDPOINT, ("OTEL_SDK_DISABLED", "true")],
        &[ENDPOINT, ("OTEL_SDK_DISABLED", "TRUE")],
        &[ENDPOINT, ("OTEL_TRACES_EXPORTER", "none")],
        &[("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://collector:4318")],
    ] {
        assert_eq!(read(variables), (None, vec![]), "{variables:?}");
    }
    sends(&[("OTEL_SDK_DISABLED", "false"), ("OTEL_TRACES_EXPORTER", "otlp")]);
}

#[test]
fn the_endpoint_of_all_has_the_path_below_it_and_the_traces_own_stands() {
    for (value, expected) in [
        ("http://collector:4318", "http://collector:4318/v1/traces"),
        ("https://collector", "https://collector/v1/traces"),
        ("http://collector:4318/", "http://collector:4318/v1/traces"),
        ("http://[::1]:4318/otlp/", "http://[::1]:4318/otlp/v1/traces"),
    ] {
        assert_eq!(sends(&[("OTEL_EXPORTER_OTLP_ENDPOINT", value)]).endpoint.to_string(), expected);
    }
    let own = sends(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://other:1/api?x=y")]);
    assert_eq!(own.endpoint.to_string(), "https://other:1/api?x=y");
    for value in
        ["nowhere:4318", "grpc://collector:4317", "http://user:secret@collector", "http://", "/v1/traces", "http://a?b"]
    {
        assert!(!warns(&[("OTEL_EXPORTER_OTLP_ENDPOINT", value)], "OTEL_EXPORTER_OTLP_ENDPOINT"), "{value}");
    }
}

#[test]
fn what_decides_who_reads_the_spans_is_followed_to_the_letter_or_none_are_sent() {
    for (name, value) in [
        ("OTEL_TRACES_EXPORTER", "zipkin,otlp"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization Bearer-abcdef"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=%zzBearerabcdef"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=a%0d%0ainjected: yes"),
        ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "=nameless-value"),
        ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "/etc/otel/tls.crt"),
        ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/etc/otel/tls.key"),
    ] {
        let told = if name.contains("CLIENT") { "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE" } else { name };
        assert!(!warns(&[(name, value)], told), "{name}={value}");
    }
    // The traces' own word goes before.
    sends(&[("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"), ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")]);
    let settings = sends(&[
        ("OTEL_EXPORTER_OTLP_HEADERS", " authorization=Bearer%20abc , x-tenant=7,"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem"),
        ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "/tls.crt"),
        ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/tls.key"),
    ]);
    let headers: Vec<_> = settings.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
    assert_eq!(headers, [("authorization", &b"Bearer abc"[..]), ("x-tenant", b"7")]);
    assert!(!format!("{settings:?}").contains("Bearer"));
    assert_eq!(settings.certificate.as_deref(), Some("/ca.pem".as_ref()));
    assert_eq!(settings.client, Some(("/tls.crt".into(), "/tls.key".into())));
}

#[test]
fn of_what_says_only_how_a_mistake_leaves_its_default() {
    let default = sends(&[]);
    assert_eq!((default.timeout, default.delay), (Duration::from_secs(10), Duration::from_secs(5)));
    assert_eq!((default.queue_spans_max, default.batch_spans_max), (2048, 512));
    for (name, value) in [
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "0"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
        ("OTEL_BSP_SCHEDULE_DELAY", "-1"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "99999999999"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "0"),
        ("OTEL_RESOURCE_ATTRIBUTES", "novalue"),
        ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
    ] {
        assert!(warns(&[(name, value)], name), "{name}={value}");
        assert_eq!(read(&[ENDPOINT, (name, value)]).0.as_ref(), Some(&default));
    }
    let ratio = ("OTEL_TRACES_SAMPLER", "traceidratio");
    for value in ["2", "-0.1", "nan", "half"] {
        assert!(warns(&[ratio, ("OTEL_TRACES_SAMPLER_ARG", value)], "OTEL_TRACES_SAMPLER_ARG"));
    }
    let own = sends(&[
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "1"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "2500"),
        ("OTEL_BSP_SCHEDULE_DELAY", "100"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "10"),
    ]);
    assert_eq!((own.timeout, own.delay), (Duration::from_millis(2500), Duration::from_millis(100)));
    assert_eq!((own.queue_spans_max, own.batch_spans_max), (10, 10), "a batch fits into the queue");
}

#[test]
fn who_made_the_spans_is_named_by_the_service_then_the_attributes_then_the_default() {
    let named = |variables: &[(&str, &str)]| {
        let resource: HashMap<_, _> = sends(variables).resource.into_iter().collect();
        (resource["service.name"].clone(), resource.get("team").cloned())
    };
    let attributes = ("OTEL_RESOURCE_ATTRIBUTES", "service.name=theirs,team=a%2Cb");
    assert_eq!(named(&[]), ("service".to_owned(), None));
    assert_eq!(named(&[attributes]), ("theirs".to_owned(), Some("a,b".to_owned())));
    assert_eq!(named(&[attributes, ("OTEL_SERVICE_NAME", "ours")]).0, "ours");
}

#[test]
fn a_sampler_is_the_part_of_the_traces_that_it_keeps() {
    let part = |variables: &[(&str, &str)]| sends(variables).ratio;
    assert!(part(&[]) >= 1.0);
    assert!(part(&[("OTEL_TRACES_SAMPLER", "always_off"), ("OTEL_TRACES_SAMPLER_ARG", "1")]) <= 0.0);
    assert!(part(&[("OTEL_TRACES_SAMPLER", "parentbased_always_on"), ("OTEL_TRACES_SAMPLER_ARG", "0")]) >= 1.0);
    let ratio = ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio");
    assert!(part(&[ratio]) >= 1.0);
    assert!((part(&[ratio, ("OTEL_TRACES_SAMPLER_ARG", "0.25")]) - 0.25).abs() < f64::EPSILON);
}

#[test]
fn a_text_is_cut_where_a_character_begins() {
    let bytes = |text: String| Value::from(text).0.as_str().len();
    assert_eq!(bytes("é".repeat(2000)), TEXT_BYTES_MAX);
    assert_eq!(bytes(format!("a{}", "é".repeat(2000))), TEXT_BYTES_MAX - 1);
    assert_eq!(Value::from(u64::MAX).0, i64::MAX.into());
}

#[test]
fn whoever_asked_for_no_spans_gets_none_and_pays_for_none() {
    let mut span = Span::root("turn");
    span.set("a", "b");
    assert!(span.0.is_none() && span.context() == Context::default());
    assert!(Span::child_of(span.context(), "write status").0.is_none());
}

#[test]
fn a_file_that_cannot_be_read_is_told_with_its_variable_and_spans_are_not_sent_without_it() {
    // As main does; another test of this process may have been first.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().join("empty.pem");
    std::fs::write(&empty, "").unwrap();
    let https = ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector:4318");
    let empty = empty.to_str().unwrap();
    for (name, variables) in [
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", vec![("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere/ca.pem")]),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", vec![("OTEL_EXPORTER_OTLP_CERTIFICATE", empty)]),
        (
            "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
            vec![
                ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", empty),
                ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/nowhere/tls.key"),
            ],
        ),
    ] {
        let (settings, warnings) = read(&[&[https][..], &variables].concat());
        assert_eq!(warnings, Vec::<String>::new());
        let Err(error) = export::start(settings.unwrap()) else { panic!("{variables:?}") };
        assert!(error.to_string().starts_with(name), "{error}");
    }
}

#[test]
fn every_span_is_counted_once_though_the_collector_hangs() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    // It takes connections, and never reads.
    let hangs = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", hangs.local_addr().unwrap());
    let provider = export::start(sends(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "200"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "4"),
    ]))
    .unwrap();
    let tracer = provider.tracer("test");
    for _ in 0..1000 {
        tracer.start("told").end();
        tracer.start(DISCARDED).end();
    }
    provider.shutdown_with_timeout(Duration::from_secs(60)).unwrap();
    let [exported, dropped, failed] =
        [&COUNTS.exported, &COUNTS.dropped, &COUNTS.failed].map(|count| count.load(Ordering::Relaxed));
    assert_eq!((exported, dropped + failed), (0, 1000));
    // The batch that is on its way, and those that came meanwhile and found no room.
    assert!(failed >= 4 && dropped > 0, "{failed} failed, {dropped} dropped");
    assert_eq!(COUNTS.waiting.load(Ordering::Relaxed), 0);
}
