//! The metadata service, as far as a host needs it: the keys that it may accept now.
//!
//! A real instance asks at a link-local address. Here, the source address of the connection says who asks.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;

use super::Shared;
use super::api::respond;
use super::fault::FaultKind;
use super::http::Conn;
use super::journal::{Api, Outcome};

const ACTIVE_KEYS: &str = "managed-ssh-keys/active-keys/";

pub(super) async fn answer(shared: Arc<Shared>, conn: Arc<Conn>, request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let stored = shared.world.instance_of_host(conn.peer.ip());
    let mut entry = shared.arrived(Api::Metadata, path.clone(), None);
    if let Some(it) = &stored {
        entry.instance_ids = vec![it.instance.id.clone()];
        entry.region.clone_from(&it.instance.region);
        entry.account_id.clone_from(&it.instance.account_id);
    }
    let topic = path.strip_prefix("/latest/meta-data/");
    entry.os_user = topic.and_then(|it| it.strip_prefix(ACTIVE_KEYS)).map(decode);

    let mishap = shared.faults.strike(Api::Metadata, &path, &entry.instance_ids);
    if !mishap.delay.is_zero() {
        tokio::time::sleep(mishap.delay).await;
    }
    let status = match &mishap.end {
        Some(FaultKind::Drop | FaultKind::DoThenDrop) => {
            shared.decided(entry, Outcome::Dropped);
            match conn.reset().await {}
        }
        Some(FaultKind::ServerError(status) | FaultKind::Error { status, .. }) => Some(*status),
        Some(FaultKind::Throttle) => Some(503),
        Some(FaultKind::Deny) => Some(403),
        _ => None,
    };
    if let Some(status) = status {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
        shared.decided(entry, Outcome::Error(status.as_u16().to_string()));
        return problem(status);
    }

    // the second generation's session token is handed out but not asked for, as on an instance where it is optional
    if request.method() == Method::PUT && path == "/latest/api/token" {
        shared.decided(entry, Outcome::Ok);
        return respond(StatusCode::OK, "text/plain", uuid::Uuid::new_v4().simple().to_string());
    }
    let body = match (&stored, topic) {
        (Some(it), Some(topic)) if it.instance.state == "running" => match topic.strip_prefix(ACTIVE_KEYS) {
            Some(os_user) => {
                let keys = shared.keyring.active(&it.instance.id, &decode(os_user), shared.clock.now());
                entry.answered = Some(keys.len());
                (!keys.is_empty()).then(|| keys.join("\n") + "\n")
            }
            None => match topic {
                "instance-id" | "instance-id/" => Some(it.instance.id.clone()),
                "placement/availability-zone" | "placement/availability-zone/" => {
                    Some(it.instance.availability_zone.clone())
                }
                "placement/region" => Some(it.instance.region.clone()),
                "local-ipv4" => it.instance.private_ip.map(|it| it.to_string()),
                "public-ipv4" => it.instance.public_ip.map(|it| it.to_string()),
                _ => None,
            },
        },
        _ => None,
    };
    if !mishap.answer_delay.is_zero() {
        tokio::time::sleep(mishap.answer_delay).await;
    }
    match body {
        Some(body) => {
            shared.decided(entry, Outcome::Ok);
            respond(StatusCode::OK, "text/plain", body)
        }
        None => {
            shared.decided(entry, Outcome::Error("404".into()));
            problem(StatusCode::NOT_FOUND)
        }
    }
}

/// Takes percent-encoding off: some clients send `@` and `$` that way.
fn decode(text: &str) -> String {
    // a form's decoder, but here a plus is a plus
    let form = format!("it={}", text.replace('+', "%2B"));
    form_urlencoded::parse(form.as_bytes()).next().map(|(_, it)| it.into_owned()).unwrap_or_default()
}

fn problem(status: StatusCode) -> Response<Body> {
    let title = format!("{} - {}", status.as_u16(), status.canonical_reason().unwrap_or_default());
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"iso-8859-1\"?>\n\
         <html xmlns=\"http://www.w3.org/1999/xhtml\" xml:lang=\"en\" lang=\"en\">\n \
         <head>\n  <title>{title}</title>\n </head>\n <body>\n  <h1>{title}</h1>\n </body>\n</html>\n"
    );
    respond(status, "text/html", body)
}
