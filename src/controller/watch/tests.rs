//! What a long list may hold up, and what it may not.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::super::{Controller, Parts};
use super::*;
use crate::aws::{Cloud, Gate, LookupLimits, PushLimits, Pushed, Reply};
use crate::domain::cloud::{Endpoint, Instance, InstanceId, Place};
use crate::domain::lifecycle::Settings;
use crate::domain::push::KeyPush;

/// Nobody is let in in here.
struct NoCloud;

impl Cloud for NoCloud {
    fn describe_by_ids<'a>(&'a self, _: &'a Place, _: &'a [InstanceId]) -> Reply<'a, Vec<Instance>> {
        std::future::pending().boxed()
    }

    fn describe_by_tags<'a>(&'a self, _: &'a Place, _: &'a BTreeMap<String, String>) -> Reply<'a, Vec<Instance>> {
        std::future::pending().boxed()
    }

    fn describe_endpoints<'a>(&'a self, _: &'a Place, _: &'a str) -> Reply<'a, Vec<Endpoint>> {
        std::future::pending().boxed()
    }

    fn send_ssh_public_key<'a>(&'a self, _: &'a KeyPush, _: Gate) -> Reply<'a, Pushed> {
        std::future::pending().boxed()
    }
}

/// An API server whose list has two pages: one of what is over, and one with what lives, which it holds back.
struct Lister {
    /// Whether its CRD is of this version.
    selects: bool,
    was_asked: AtomicBool,
    second: Notify,
}

fn object(name: &str, number: u32, status: &Value) -> Value {
    json!({
        "apiVersion": "instanceaccess.dev/v1alpha1",
        "kind": "InstanceAccess",
        "metadata": {
            "name": name, "namespace": "team", "uid": format!("00000000-0000-4000-8000-{number:012}"), "generation": 1,
            "resourceVersion": number.to_string(), "creationTimestamp": Timestamp::now(),
        },
        "spec": {"target": {"instanceId": "i-0123456789abcdef0"}, "osUser": "ec2-user", "sshPublicKey": "ssh-ed25519 A"},
        "status": status,
    })
}

fn condition(type_: &str, reason: &str) -> Value {
    json!({
        "type": type_, "status": "True", "reason": reason, "message": "", "observedGeneration": 1,
        "lastTransitionTime": Timestamp::now(),
    })
}

fn over() -> Value {
    let status = json!({"observedGeneration": 1, "specDigest": "ab", "conditions": [condition("Ended", "Denied")]});
    object("a-first-by-name", 1, &status)
}

fn living(name: &str, number: u32) -> Value {
    let (start, end) = (Timestamp::now(), Timestamp::now() + SignedDuration::from_secs(600));
    let status = json!({
        "observedGeneration": 1, "specDigest": "ab", "conditions": [condition("Active", "Granted")],
        "grant": {"id": "g-1", "startTime": start, "expirationTime": end},
    });
    object(name, number, &status)
}

async fn answer(State(lister): State<Arc<Lister>>, uri: Uri) -> Response {
    let query = uri.query().unwrap_or_default();
    let list = |items: Vec<Value>, next: &str| {
        let list = json!({
            "apiVersion": "instanceaccess.dev/v1alpha1", "kind": "InstanceAccessList",
            "metadata": {"resourceVersion": "9", "continue": next}, "items": items,
        });
        (StatusCode::OK, list)
    };
    let (status, body) = if query.contains("watch=") {
        return std::future::pending().await;
    } else if query.contains("fieldSelector=") {
        lister.was_asked.store(true, Ordering::SeqCst);
        if lister.selects {
            // The last one was made after the list began; the watch that follows would tell of it.
            list(vec![living("z-last-by-name", 2), living("z-newer", 10)], "")
        } else {
            let status = json!({
                "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "BadRequest", "code": 400,
                "message": "field label not supported: status.grant.id", "metadata": {},
            });
            (StatusCode::BAD_REQUEST, status)
        }
    } else if query.contains("continue=") {
        lister.second.notified().await;
        list(vec![living("z-last-by-name", 2)], "")
    } else {
        list(vec![over()], "more")
    };
    (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

/// A controller of which nothing runs but its watch over requests.
async fn watching(selects: bool) -> (Arc<Shared>, Arc<Lister>, CancellationToken) {
    // As main does; another test of this process may have been first.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let lister = Arc::new(Lister { selects, was_asked: AtomicBool::new(false), second: Notify::new() });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new().fallback(answer).with_state(Arc::clone(&lister));
    tokio::spawn(async move { axum::serve(listener, router).await });
    let controller = Controller::new(Parts {
        client: kube::Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap(),
        cloud: Arc::new(NoCloud),
        push_limits: PushLimits::default(),
        lookup_limits: LookupLimits::default(),
        records: Arc::default(),
        leads: Arc::new(|| true),
        vouched: None,
        clock: Arc::new(Timestamp::now),
        settings: Settings::default(),
        gateways: Vec::new(),
        metrics: Arc::default(),
    });
    let (shared, stop) = (controller.shared, CancellationToken::new());
    tokio::spawn(watch_requests(Arc::clone(&shared), stop.clone()));
    (shared, lister, stop)
}

/// Waits until it holds.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(30), async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "not within 30 s: {what}");
}

fn is_listed(shared: &Shared) -> bool {
    *shared.health.requests_listed.borrow()
}

#[tokio::test]
async fn a_grant_that_lives_has_its_timer_before_a_long_list_comes_to_it() {
    let (shared, lister, stop) = watching(true).await;
    until("both grants that live have their timers", || shared.timers.len() == 2).await;
    assert!(!is_listed(&shared), "the list has not come to it");
    assert_eq!(shared.slots.len(), 3);
    lister.second.notify_one();
    until("the list is through", || is_listed(&shared)).await;
    // Also the one that the list does not have.
    assert!(shared.slots.all().iter().all(|slot| !slot.lock().gone), "none of them vanished");
    assert_eq!((shared.slots.len(), shared.timers.len()), (3, 2), "what is over has no timer");
    stop.cancel();
}

#[tokio::test]
async fn an_older_crd_that_cannot_be_asked_for_live_grants_only_makes_them_wait_for_the_list() {
    let (shared, lister, stop) = watching(false).await;
    until("it is asked for live grants", || lister.was_asked.load(Ordering::SeqCst)).await;
    lister.second.notify_one();
    until("the grant that lives has its timer", || shared.timers.len() == 1).await;
    until("the list is through", || is_listed(&shared)).await;
    assert_eq!(shared.slots.len(), 2);
    stop.cancel();
}
