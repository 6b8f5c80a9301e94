//! The lab's own door, below `/_lab/`, for processes that cannot call the library. Loopback only.
//!
//! | request | effect |
//! |---|---|
//! | `GET journal?since=N` | `{entries, dropped, next}` |
//! | `GET keys` | every key that a host may read now |
//! | `GET faults`, `POST faults`, `DELETE faults` | one fault or a list of them |
//! | `POST instances`, `DELETE instances/ID` | one instance or a list of them |
//! | `POST endpoints`, `DELETE endpoints/ID` | one endpoint or a list of them |
//! | `POST advance` | `{"seconds": N}`: moves the stand-in's clock forward |

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{Method, Response, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Shared;
use super::api::respond;
use super::fault::Fault;
use super::http::Conn;
use super::world::{Endpoint, Instance};

#[derive(Deserialize)]
struct Advance {
    seconds: f64,
}

pub(super) fn answer(shared: &Arc<Shared>, conn: &Conn, parts: &Parts, body: &[u8]) -> Response<Body> {
    if !conn.peer.ip().is_loopback() {
        return respond(StatusCode::FORBIDDEN, "text/plain", "only from loopback".into());
    }
    let path = parts.uri.path().trim_start_matches("/_lab/");
    let (topic, id) = path.split_once('/').unwrap_or((path, ""));
    match (&parts.method, topic, id) {
        (&Method::GET, "journal", "") => {
            let since = form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes())
                .find(|(key, _)| key == "since")
                .and_then(|(_, value)| value.parse().ok())
                .unwrap_or(0);
            let (entries, dropped) = shared.journal.since(since);
            let next = entries.last().map_or_else(|| shared.journal.next_sequence(), |it| it.sequence + 1);
            good(&json!({ "entries": entries, "dropped": dropped, "next": next }))
        }
        (&Method::GET, "keys", "") => good(&shared.keyring.all(shared.clock.now())),
        (&Method::GET, "faults", "") => good(&shared.faults.list()),
        (&Method::POST, "faults", "") => each(body, |it: Fault| shared.faults.set(it)),
        (&Method::DELETE, "faults", "") => {
            shared.faults.clear();
            good(&json!({}))
        }
        (&Method::POST, "instances", "") => each(body, |it: Instance| shared.put_instance(it)),
        (&Method::DELETE, "instances", id) => found(shared.remove_instance(id)),
        (&Method::POST, "endpoints", "") => each(body, |it: Endpoint| shared.world.put_endpoint(it)),
        (&Method::DELETE, "endpoints", id) => found(shared.world.remove_endpoint(id)),
        (&Method::POST, "advance", "") => match serde_json::from_slice::<Advance>(body) {
            Ok(Advance { seconds }) => match Duration::try_from_secs_f64(seconds) {
                Ok(by) => {
                    shared.clock.advance(by);
                    good(&json!({}))
                }
                Err(error) => bad(&error.to_string()),
            },
            Err(error) => bad(&error.to_string()),
        },
        _ => respond(StatusCode::NOT_FOUND, "text/plain", format!("there is no {} {path}\n", parts.method)),
    }
}

fn each<T: for<'de> Deserialize<'de>>(body: &[u8], put: impl FnMut(T)) -> Response<Body> {
    let is_list = body.iter().find(|it| !it.is_ascii_whitespace()) == Some(&b'[');
    let read: Result<Vec<T>, _> =
        if is_list { serde_json::from_slice(body) } else { serde_json::from_slice(body).map(|it| vec![it]) };
    match read {
        Ok(read) => {
            read.into_iter().for_each(put);
            good(&json!({}))
        }
        Err(error) => bad(&error.to_string()),
    }
}

fn good(body: &impl Serialize) -> Response<Body> {
    let text = serde_json::to_string(body).expect("plain data can be written");
    respond(StatusCode::OK, "application/json", text)
}

fn bad(text: &str) -> Response<Body> {
    respond(StatusCode::BAD_REQUEST, "text/plain", format!("{text}\n"))
}

fn found(is_found: bool) -> Response<Body> {
    if is_found { good(&json!({})) } else { respond(StatusCode::NOT_FOUND, "text/plain", "not found\n".into()) }
}
