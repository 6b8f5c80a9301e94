//! A gateway that is told the controllers' lease: it delivers keys while one of them leads, and its spans say what it did.

use std::time::Instant;

use lab::poll;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use serde_json::json;

use crate::client::Client;
use crate::collector::{Collector, path};
use crate::controller::Controller;
use crate::jump::Jump;
use crate::stand::{BOUND, Stand};

/// What the controllers and their gateways are told.
const LEASE: [&str; 2] = ["--lease", "instance-access/controller"];
/// Longer than a login takes on a busy machine, once its leader is dead.
const LEASE_SECONDS: [&str; 2] = ["--lease-seconds", "60"];
const RIGHTS: [&str; 2] = [
    concat!(env!("CARGO_MANIFEST_DIR"), "/examples/lease-rbac.yaml"),
    concat!(env!("CARGO_MANIFEST_DIR"), "/examples/gateway-lease-rbac.yaml"),
];

pub async fn a_gateway_pushes_while_a_controller_leads_and_no_longer_and_its_spans_say_what_it_did() {
    let stand = Stand::start("led").await;
    // It was alone so far; from here on there may be several.
    stand.kill_controller().await;
    stand.kubectl_ok("admin", &["apply", "--server-side", "-f", RIGHTS[0]]).await;
    let log = stand.lab.dir().join("controller.log");
    let leading = async || {
        let more = [LEASE, LEASE_SECONDS].concat();
        Controller::start_with(&stand.lab, &stand.audit, &log, &more).await.unwrap()
    };
    let controller = leading().await;
    let collector = Collector::start().await.unwrap();
    let env = [
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", format!("http://{}/v1/traces", collector.address)),
        ("OTEL_BSP_SCHEDULE_DELAY", "100".to_owned()),
    ];
    let jump = Jump::start_with(&stand, "gateway-led", &LEASE, &env).await;
    let on_connect = json!({"keyDelivery": "OnConnect", "ttlSeconds": 900});
    let instance = stand.lab.instance("web-1");
    let ask = async |name: &'static str| {
        let request = stand.request("alice", name).with(on_connect.clone()).applied().await;
        request.becomes("Granted").await;
        request
    };
    let (first, second, third) = tokio::join!(ask("first"), ask("second"), ask("third"));
    // It may not read the lease yet, and says so.
    let clients = [&first, &second, &third].map(|request| Client::of(request, &jump));
    let destination = format!("{}:{}", instance.id, stand.lab.ssh_port());
    let refused = clients[0].refused(&destination).await;
    assert!(refused.contains("the API server did not confirm the grant of first.team"), "{refused}");
    stand.kubectl_ok("admin", &["apply", "--server-side", "-f", RIGHTS[1]]).await;
    poll::until("a login while a controller leads", BOUND, async || {
        let shell = clients[0].typed(&[&instance.id, "id -un"]).await;
        if shell.success() { Ok(()) } else { Err(shell.stderr) }
    })
    .await
    .unwrap();
    let request_id = first.pushes()[0].request_id.clone();
    poll::until("the trace of a session", BOUND, async || {
        let spans = collector.spans();
        let push = spans.iter().find(|span| span.attributes.get("aws.request_id") == Some(&request_id));
        let push = push.ok_or("no push")?;
        let mut paths: Vec<_> =
            spans.iter().filter(|span| span.trace == push.trace).map(|span| path(&spans, span).join("/")).collect();
        paths.sort();
        let expected = [
            "connection",
            "connection/session",
            "connection/session/append audit record",
            "connection/session/deliver key",
            "connection/session/deliver key/append audit record",
            "connection/session/deliver key/push key",
            "connection/session/deliver key/read lease",
            "connection/session/deliver key/read request",
            "connection/session/dial",
        ];
        let session = spans.iter().find(|span| span.trace == push.trace && span.name == "session");
        let end = session.and_then(|session| session.attributes.get("instance_access.session.end"));
        match (paths == expected, end) {
            (true, Some(_)) => Ok(()),
            _ => Err(format!("{paths:#?} {session:?}")),
        }
    })
    .await
    .unwrap();
    let mut connections = collector.spans().into_iter().filter(|span| span.name == "connection");
    assert!(connections.all(|connection| connection.kind == SpanKind::Server));
    // Who has no grant is no span: strangers would crowd out the rest.
    assert!(collector.spans().iter().all(|span| span.service == "instance-access-gateway"));

    controller.kill();
    let killed = Instant::now();
    clients[1].gets_in(&[&instance.id]).await;
    assert_eq!(second.pushes().len(), 1, "the lease has not run out");
    poll::until_ok("a gateway that hears of no leader", BOUND, || {
        let log = jump.log();
        if log.contains("no controller leads") { Ok(()) } else { Err(log) }
    })
    .await
    .unwrap();
    eprintln!("no key is delivered {:.1} s after kill -9 of the controller", killed.elapsed().as_secs_f64());
    let refused = clients[2].refused(&destination).await;
    assert!(refused.contains("no controller of the operator's runs just now"), "{refused}");
    assert!(third.pushes().is_empty());
    assert!(jump.metric("instance_access_gateway_pushes_total{outcome=\"NoLeader\"}").await > 0.0);

    let _controller = leading().await;
    poll::until("a login while one leads again", BOUND * 2, async || {
        let shell = clients[2].typed(&[&instance.id, "id -un"]).await;
        if shell.success() { Ok(()) } else { Err(shell.stderr) }
    })
    .await
    .unwrap();
    assert_eq!(third.pushes().len(), 1);
    jump.verifies();
}
