//! Spans: there when somebody asks for them, and no grant, end or hand-over waits for whoever takes them.

use anyhow::Context;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use lab::pace::LateMax;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;

use crate::collector::{Collector, Mood, Span, path};
use crate::days;
use crate::stand::{Ask, Day, Outcome, SOON, Special, Stand, reason, shown};

pub fn days() -> Vec<(&'static str, Day)> {
    days![a_grant_is_one_trace_and_a_collector_that_hangs_delays_neither_end_nor_hand_over]
}

/// How long the process may take to end after it was told to: it gives its spans one second, and the collector a minute, by the
/// clock.
const END_MAX: LateMax = LateMax::new(20.0, 40.0);

fn of<'a>(spans: &'a [Span], name: &str, key: &str, value: &str) -> Option<&'a Span> {
    let is = |span: &&Span| span.name == name && span.attributes.get(key).is_some_and(|found| found == value);
    spans.iter().find(is)
}

async fn a_grant_is_one_trace_and_a_collector_that_hangs_delays_neither_end_nor_hand_over() -> Outcome {
    let collector = Collector::start().await?;
    let env = vec![
        ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", collector.address)),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20t0ken-of-ours".to_owned()),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "60000".to_owned()),
        ("OTEL_BSP_SCHEDULE_DELAY", "100".to_owned()),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "16".to_owned()),
        ("OTEL_SERVICE_NAME", "of-ours".to_owned()),
    ];
    let mut special = Special::with_long_lease();
    special.env.extend(env);
    let stand = Stand::own(special).await?;
    let id = stand.running();
    stand.ask(Ask::new("traced").instance(&id)).await?;
    let granted = stand.until_granted("traced").await?;
    let request_id = stand.pushes(&id).first().context("a push")?.request_id.clone();
    let told = lab::poll::until("the trace of a grant", SOON, async || {
        let spans = collector.spans();
        let push = of(&spans, "push key", "aws.request_id", &request_id).ok_or("no push")?;
        let paths: Vec<_> =
            spans.iter().filter(|span| span.trace == push.trace).map(|span| path(&spans, span).join("/")).collect();
        // What is within another ends before that, or after it: none of them may be missing.
        if paths.iter().any(|path| path.contains('?')) {
            return Err(format!("{paths:?}"));
        }
        for wanted in [
            "turn",
            "turn/look up instance",
            "turn/look up instance/turn/append audit record",
            "turn/look up instance/turn/write status",
            "turn/look up instance/turn/push key",
            "turn/look up instance/turn/push key/turn/write status",
        ] {
            if !paths.iter().any(|path| path == wanted) {
                return Err(format!("no {wanted} in {paths:#?}"));
            }
        }
        Ok(spans)
    });
    let spans = told.await?;
    let uid = granted.metadata.uid.as_deref().context("a uid")?;
    let push = of(&spans, "push key", "aws.request_id", &request_id).context("found above")?;
    let root = spans.iter().find(|span| span.trace == push.trace && span.parent.is_empty()).context("a root")?;
    anyhow::ensure!(root.attributes["instance_access.request.uid"] == uid, "{root:?}");
    anyhow::ensure!(root.attributes["k8s.namespace.name"] == "team" && root.service == "of-ours", "{root:?}");
    anyhow::ensure!((root.kind, push.kind) == (SpanKind::Internal, SpanKind::Client), "{root:?}, {push:?}");
    anyhow::ensure!(push.attributes["rpc.method"] == "SendSSHPublicKey" && push.error.is_none(), "{push:?}");
    // Who may log in there reads no key, and no group of anybody's.
    let key = stand.key.split_whitespace().nth(1).context("a key")?.to_owned();
    let secrets = [key.as_str(), "developers", "t0ken-of-ours"];
    let said = format!("{spans:?}");
    anyhow::ensure!(!secrets.iter().any(|secret| said.contains(secret)), "{said}");
    anyhow::ensure!(collector.header("authorization").as_deref() == Some("Bearer t0ken-of-ours"), "no header");
    anyhow::ensure!(stand.controller.log_of("t0ken").is_empty(), "{}", stand.controller.log_of("t0ken"));
    // A failure says so.
    stand.lab.standin().set_fault(lab::standin::Fault::new(lab::standin::FaultKind::Deny).on(lab::standin::Api::Eic));
    let refused = stand.running();
    stand.ask(Ask::new("refused").instance(&refused)).await?;
    lab::poll::until("the span of a push that failed", SOON, async || {
        let failed = collector.spans().into_iter().find(|span| span.name == "push key" && span.error.is_some());
        failed.ok_or("none")
    })
    .await?;
    stand.lab.standin().clear_faults();

    collector.becomes(Mood::Hangs);
    let before = collector.asked();
    let hung = stand.running();
    stand.ask(Ask::new("hung").instance(&hung).ends_in(125)).await?;
    stand.until_granted("hung").await?;
    lab::poll::until("a collector that hangs", SOON, async || match collector.asked() {
        asked if asked > before => Ok(()),
        asked => Err(asked),
    })
    .await?;
    let ended = stand.ended_well("hung", &hung).await?;
    anyhow::ensure!(reason(&ended) == "Expired", "{}", shown(&ended));
    // Another flood than the queue's is dropped, and counted.
    for number in 0..10 {
        stand.ask(Ask::new(&format!("more-{number}")).instance(&hung)).await?;
    }
    lab::poll::until("spans to be dropped", SOON, async || {
        let dropped = stand.controller.metric("instance_access_spans_total{outcome=\"dropped\"}").await;
        match dropped {
            Ok(dropped) if dropped > 0.0 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await?;
    stand.controller.signal("-TERM").await?;
    let told_time = Timestamp::now();
    let leases: Api<Lease> = Api::namespaced(stand.client("admin").await?, "instance-access");
    let free = async || {
        let lease = leases.get("controller").await.map_err(|error| error.to_string())?;
        let holder = lease.spec.and_then(|spec| spec.holder_identity).unwrap_or_default();
        if holder.is_empty() { Ok(()) } else { Err(holder) }
    };
    lab::poll::until("the lease to be given back", SOON, free).await?;
    let given_back = Timestamp::now().duration_since(told_time).as_secs_f64();
    eprintln!("gave the lease back {given_back:.2} s after SIGTERM, before a collector that hangs");
    let end = async || stand.controller.death().ok_or("it runs");
    let status = lab::poll::until("the controller to end", SOON, end).await?;
    let ended = lab::pace::soon("the end after SIGTERM", told_time, Timestamp::now(), END_MAX).await?;
    eprintln!("ended {ended:.2} s after SIGTERM");
    anyhow::ensure!(status.success(), "{status}");
    anyhow::ensure!(!stand.controller.log_of("the last spans were not sent in time").is_empty(), "nobody waited");
    Ok(())
}
