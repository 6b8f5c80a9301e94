//! What a long list may hold up, and what it may not.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::super::policies::publish;
use super::super::{Controller, Parts};
use super::*;
use crate::aws::{Cloud, Gate, LookupLimits, PushLimits, Pushed, Reply};
use crate::domain::cloud::{Endpoint, Instance, InstanceId, Place};
use crate::domain::lifecycle::Settings;
use crate::domain::policy::Policy;
use crate::domain::push::KeyPush;
use crate::domain::sight::Origin;

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
#[derive(Default)]
struct Lister {
    /// What each list has, the last one for ever: its first page, and its second; none: that fails.
    lists: Vec<(Vec<Value>, Option<Vec<Value>>)>,
    /// What live grants there are, by page; none: it fails.
    live: Vec<Option<Vec<Value>>>,
    /// Who goes once the list is through, in their last versions.
    deleted: Vec<Value>,
    /// What there is, for whoever asks by name.
    newest: Vec<Value>,
    lists_begun: AtomicUsize,
    live_asked: AtomicUsize,
    reads: AtomicUsize,
    second: Notify,
}

fn uid(number: u32) -> String {
    format!("00000000-0000-4000-8000-{number:012}")
}

fn object(name: &str, number: u32, status: &Value) -> Value {
    json!({
        "apiVersion": "instanceaccess.dev/v1alpha1",
        "kind": "InstanceAccess",
        "metadata": {
            "name": name, "namespace": "team", "uid": uid(number), "generation": 1,
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

/// One whose grant began a minute ago.
fn living(name: &str, number: u32) -> Value {
    beginning(name, number, SignedDuration::from_secs(-60))
}

fn beginning(name: &str, number: u32, from_now: SignedDuration) -> Value {
    let start = Timestamp::now() + from_now;
    let end = start + SignedDuration::from_secs(600);
    let status = json!({
        "observedGeneration": 1, "specDigest": "ab", "conditions": [condition("Active", "Granted")],
        "grant": {"id": "g-1", "startTime": start, "expirationTime": end},
    });
    object(name, number, &status)
}

/// The same, of that version.
fn of_version(mut object: Value, version: u32) -> Value {
    object["metadata"]["resourceVersion"] = json!(version.to_string());
    object
}

fn refusal(code: u16, reason: &str, message: &str) -> (StatusCode, Value) {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code, "message": message,
        "metadata": {},
    });
    (StatusCode::from_u16(code).unwrap(), status)
}

async fn answer(State(lister): State<Arc<Lister>>, method: Method, uri: Uri) -> Response {
    let query = uri.query().unwrap_or_default();
    let list = |items: &[Value], next: &str| {
        let list = json!({
            "apiVersion": "instanceaccess.dev/v1alpha1", "kind": "InstanceAccessList",
            "metadata": {"resourceVersion": "9", "continue": next}, "items": items,
        });
        (StatusCode::OK, list)
    };
    let (status, body) = if method != Method::GET {
        return std::future::pending().await;
    } else if let Some((_, name)) = uri.path().split_once("/namespaces/team/instanceaccesses/") {
        lister.reads.fetch_add(1, Ordering::SeqCst);
        match lister.newest.iter().find(|object| object["metadata"]["name"] == name) {
            Some(object) => (StatusCode::OK, object.clone()),
            None => refusal(404, "NotFound", "it is not there"),
        }
    } else if query.contains("watch=") {
        // Its type first, as an API server tells it: what comes after that is read as it lies.
        let told = |object: &Value| Ok::<_, std::io::Error>(format!("{{\"type\":\"DELETED\",\"object\":{object}}}\n"));
        let events: Vec<_> = lister.deleted.iter().map(told).collect();
        return Body::from_stream(stream::iter(events).chain(stream::pending())).into_response();
    } else if query.contains("fieldSelector=") {
        let page = match query.split_once("continue=live-") {
            Some((_, page)) => page.split('&').next().unwrap().parse().unwrap(),
            None => {
                lister.live_asked.fetch_add(1, Ordering::SeqCst);
                0
            }
        };
        let next = if page + 1 < lister.live.len() { format!("live-{}", page + 1) } else { String::new() };
        match &lister.live[page] {
            Some(items) => list(items, &next),
            None => refusal(400, "BadRequest", "field label not supported: status.grant.id"),
        }
    } else {
        let is_second = query.contains("continue=");
        let begun = if is_second {
            lister.second.notified().await;
            lister.lists_begun.load(Ordering::SeqCst)
        } else {
            lister.lists_begun.fetch_add(1, Ordering::SeqCst) + 1
        };
        match (&lister.lists[begun.min(lister.lists.len()) - 1], is_second) {
            ((first, _), false) => list(first, "more"),
            ((_, Some(second)), true) => list(second, ""),
            ((_, None), true) => refusal(500, "InternalError", "it broke"),
        }
    };
    (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

/// One list, of what is over and what lives.
fn one_list() -> Vec<(Vec<Value>, Option<Vec<Value>>)> {
    vec![(vec![over()], Some(vec![living("z-last-by-name", 2)]))]
}

/// A controller of which nothing runs but its watch over requests.
async fn watching(lister: Lister) -> (Arc<Shared>, Arc<Lister>, CancellationToken) {
    // As main does; another test of this process may have been first.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let lister = Arc::new(lister);
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

/// Whose word the grant is that it has.
fn origin(shared: &Shared, number: u32) -> Origin {
    let slot = shared.slots.find(&uid(number)).expect("it is known");
    let mut state = slot.lock();
    let object = state.kept.open();
    let grant = object.status.as_ref().and_then(|status| status.grant.as_ref()).expect("it has a grant");
    state.sight.open().origin(grant)
}

fn is_gone(shared: &Shared, number: u32) -> bool {
    shared.slots.find(&uid(number)).is_none_or(|slot| slot.lock().gone)
}

#[tokio::test]
async fn a_grant_that_lives_has_its_timer_before_a_long_list_comes_to_it() {
    // The last one was made after the list began; the watch that follows would tell of it.
    let live = vec![Some(vec![living("z-last-by-name", 2), living("z-newer", 10)])];
    let (shared, lister, stop) = watching(Lister { lists: one_list(), live, ..Lister::default() }).await;
    until("both grants that live have their timers", || shared.timers.len() == 2).await;
    assert!(!is_listed(&shared), "the list has not come to it");
    assert_eq!(shared.slots.len(), 3);
    lister.second.notify_one();
    until("the list is through", || is_listed(&shared)).await;
    // Also the one that the list does not have.
    assert!(shared.slots.all().iter().all(|slot| !slot.lock().gone), "none of them vanished");
    assert_eq!((shared.slots.len(), shared.timers.len()), (3, 2), "what is over has no timer");
    assert_eq!((origin(&shared, 2), origin(&shared, 10)), (Origin::Found, Origin::Found));
    stop.cancel();
}

#[tokio::test]
async fn an_older_crd_that_cannot_be_asked_for_live_grants_only_makes_them_wait_for_the_list() {
    let lister = Lister { lists: one_list(), live: vec![None], ..Lister::default() };
    let (shared, lister, stop) = watching(lister).await;
    until("it is asked for live grants", || lister.live_asked.load(Ordering::SeqCst) == 1).await;
    lister.second.notify_one();
    until("the grant that lives has its timer", || shared.timers.len() == 1).await;
    until("the list is through", || is_listed(&shared)).await;
    assert_eq!(shared.slots.len(), 2);
    stop.cancel();
}

#[tokio::test]
async fn live_grants_that_fail_on_their_second_page_come_with_the_list() {
    let lists = vec![(vec![over()], Some(vec![living("y", 2), living("z", 3)]))];
    let live = vec![Some(vec![living("y", 2)]), None];
    let (shared, lister, stop) = watching(Lister { lists, live, ..Lister::default() }).await;
    until("the grant of the first page has its timer", || shared.timers.len() == 1).await;
    assert!(!is_listed(&shared));
    lister.second.notify_one();
    until("the list is through", || is_listed(&shared)).await;
    until("the other one has its timer", || shared.timers.len() == 2).await;
    assert_eq!(lister.live_asked.load(Ordering::SeqCst), 1, "the list has them all");
    assert!(!is_gone(&shared, 2) && !is_gone(&shared, 3));
    stop.cancel();
}

#[tokio::test]
async fn a_version_that_only_live_grants_have_yet_is_not_undone_by_the_list() {
    let newer = of_version(living("z", 2), 12);
    let waiting = object("z", 2, &json!({"observedGeneration": 1, "specDigest": "ab", "conditions": []}));
    let lists = vec![(vec![over()], Some(vec![waiting]))];
    let lister = Lister { lists, live: vec![Some(vec![newer.clone()])], newest: vec![newer], ..Lister::default() };
    let (shared, lister, stop) = watching(lister).await;
    until("the grant that lives has its timer", || shared.timers.len() == 1).await;
    lister.second.notify_one();
    until("the list is through", || is_listed(&shared)).await;
    // Late, or the truth again after a restore: the API server says which.
    until("it is read again", || lister.reads.load(Ordering::SeqCst) == 1).await;
    let version = || shared.slots.find(&uid(2)).unwrap().lock().kept.open().metadata.resource_version.clone();
    assert_eq!((version().as_deref(), origin(&shared, 2)), (Some("12"), Origin::Found));
    assert_eq!((is_gone(&shared, 2), shared.timers.len()), (false, 1));
    stop.cancel();
}

#[tokio::test]
async fn one_that_goes_while_the_first_list_is_read_is_gone_though_live_grants_had_it() {
    let live = vec![Some(vec![living("z-last-by-name", 2), living("z-newer", 10)])];
    let deleted = vec![of_version(living("z-newer", 10), 11)];
    let (shared, lister, stop) = watching(Lister { lists: one_list(), live, deleted, ..Lister::default() }).await;
    until("both grants that live have their timers", || shared.timers.len() == 2).await;
    assert!(!is_gone(&shared, 10));
    lister.second.notify_one();
    until("the list is through, and the watch tells of it", || is_listed(&shared) && is_gone(&shared, 10)).await;
    assert!(!is_gone(&shared, 2));
    stop.cancel();
}

#[tokio::test]
async fn a_first_list_that_broke_is_begun_again_and_is_the_first_one_still() {
    let lists = vec![
        (vec![over(), living("b-gone-by-then", 4)], None),
        (vec![over()], Some(vec![living("z-last-by-name", 2)])),
    ];
    let live = vec![Some(vec![living("z-last-by-name", 2)])];
    let (shared, lister, stop) = watching(Lister { lists, live, ..Lister::default() }).await;
    until("the grants have their timers", || shared.timers.len() == 2).await;
    lister.second.notify_one();
    until("the list is begun again", || lister.lists_begun.load(Ordering::SeqCst) == 2).await;
    assert!(!is_listed(&shared) && !is_gone(&shared, 4));
    until("live grants are asked for again", || lister.live_asked.load(Ordering::SeqCst) == 2).await;
    lister.second.notify_one();
    until("the list is through", || is_listed(&shared)).await;
    until("who is not in it is gone", || is_gone(&shared, 4)).await;
    assert_eq!((is_gone(&shared, 2), origin(&shared, 2)), (false, Origin::Found));
    stop.cancel();
}

#[tokio::test]
async fn a_grant_that_begins_after_we_led_is_nobodys_whichever_list_shows_it_first() {
    let hour = SignedDuration::from_secs(3_600);
    let lists = vec![(vec![over(), beginning("b", 3, hour)], Some(vec![beginning("z", 2, hour), living("y", 5)]))];
    let live = vec![Some(vec![beginning("z", 2, hour), living("y", 5)])];
    let (shared, lister, stop) = watching(Lister { lists, live, ..Lister::default() }).await;
    until("the grants have their timers", || shared.timers.len() == 3).await;
    assert!(!is_listed(&shared));
    assert_eq!((origin(&shared, 2), origin(&shared, 3)), (Origin::Foreign, Origin::Foreign));
    assert_eq!(origin(&shared, 5), Origin::Found);
    lister.second.notify_one();
    until("the list is through", || is_listed(&shared)).await;
    assert_eq!((origin(&shared, 2), origin(&shared, 5)), (Origin::Foreign, Origin::Found));
    stop.cancel();
}

#[tokio::test]
async fn what_requests_are_judged_by_is_read_anew_with_them_but_for_the_first_list() {
    let list = || one_list().remove(0);
    let (shared, lister, stop) =
        watching(Lister { lists: vec![list(), list()], live: vec![Some(Vec::new())], ..Lister::default() }).await;
    until("the list is begun", || lister.lists_begun.load(Ordering::SeqCst) == 1).await;
    lister.second.notify_one();
    until("the list is through", || is_listed(&shared)).await;
    let contact = &shared.contact;
    assert!(contact.rereading_since_time().is_none(), "for the first list the others are waited for anyway");
    contact.history.begin_anew();
    until("requests are read anew", || contact.rereading_since_time().is_some()).await;
    let read = |list: Listed| {
        contact.watch_lists(list);
        contact.watch_listed(list)
    };
    assert!(!read(Listed::Policies) && !read(Listed::Decisions), "requests are not through");
    lister.second.notify_one();
    until("the list is through", || lister.lists_begun.load(Ordering::SeqCst) == 2 && read(Listed::Decisions)).await;
    assert!(contact.rereading_since_time().is_none());
    stop.cancel();
}

#[tokio::test]
async fn a_request_that_is_older_when_it_is_read_again_tells_of_a_history_that_was_undone() {
    let newer = of_version(living("z", 2), 12);
    let older = object("z", 2, &json!({"observedGeneration": 1, "specDigest": "ab", "conditions": []}));
    let lists = vec![(vec![over()], Some(vec![older.clone()]))];
    let lister = Lister { lists, live: vec![Some(vec![newer])], newest: vec![older], ..Lister::default() };
    let (shared, lister, stop) = watching(lister).await;
    until("the grant that lives has its timer", || shared.timers.len() == 1).await;
    lister.second.notify_one();
    until("all is read anew", || lister.lists_begun.load(Ordering::SeqCst) == 2).await;
    assert!(shared.contact.rereading_since_time().is_some(), "it is judged by what was heard before");
    let version = || shared.slots.find(&uid(2)).unwrap().lock().kept.open().metadata.resource_version.clone();
    until("the older one counts", || version().as_deref() == Some("2")).await;
    stop.cancel();
}

#[tokio::test]
async fn before_anybody_is_judged_by_a_policy_with_new_approvers_decisions_are_read_anew() {
    let (shared, _, stop) =
        watching(Lister { lists: one_list(), live: vec![Some(Vec::new())], ..Lister::default() }).await;
    let named = |approvers: &[&str]| {
        let approvers: Vec<_> = approvers.iter().map(|name| json!({"kind": "User", "name": name})).collect();
        let policy = json!({
            "apiVersion": "instanceaccess.dev/v1alpha1", "kind": "InstanceAccessPolicy", "metadata": {"name": "p"},
            "spec": {
                "effect": "Allow", "subjects": [{"kind": "User", "name": "alice"}], "namespaces": ["team"],
                "targets": {"instanceIds": ["*"]}, "osUsers": ["*"],
                "ttl": {"defaultSeconds": 600, "maxSeconds": 600}, "approval": {"count": 1, "approvers": approvers},
            },
        });
        let policy = Policy::compile(&serde_json::from_value(policy).unwrap());
        std::collections::HashMap::from([("p".to_owned(), Arc::new(policy))])
    };
    let is_rereading = || shared.contact.rereading_since_time().is_some();
    publish(&shared, &named(&["erin"]));
    assert!(!is_rereading(), "of the first policies nobody has read a decision yet");
    publish(&shared, &named(&["erin"]));
    assert!(!is_rereading(), "nobody is new");
    publish(&shared, &named(&["erin", "frank"]));
    assert!(is_rereading());
    shared.contact.watch_lists(Listed::Decisions);
    assert!(shared.contact.watch_listed(Listed::Decisions) && !is_rereading());
    stop.cancel();
}
