//! One read and one push for whoever asks, and none where the API server, the watch, the disk or AWS say no.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use jiff::SignedDuration;
use serde_json::{Value, json};
use std::collections::BTreeMap;

use super::*;
use crate::audit::{Begin, Limits, Sinks, Trail};
use crate::aws::{Cloud, Gate, Pushed, Reply};
use crate::domain::cloud::{Endpoint, Failure, Instance, InstanceId, Place};
use crate::domain::digest::{grant_id, spec_digest};
use crate::domain::key::PublicKey;
use crate::domain::push::KeyPush;
use crate::domain::session::{Dialling, EndpointLimits, Networks, standing};
use crate::gateway::{Gateway, GatewayLimits, GatewayMetrics, GatewayParts, HostKeys, LeaderLease};
use crate::traces::Context;

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIInStMRqROkTDl0mY88lWxAMlcGJXz3IjvFhijzUrfeX";

/// An API server that has one object, or says something else.
#[derive(Default)]
struct ApiServer {
    answer: Mutex<Option<(StatusCode, Value)>>,
    /// The controllers' lease, if there is one.
    lease: Mutex<Option<Value>>,
    hangs: Mutex<bool>,
    reads: AtomicUsize,
    asked: Mutex<Vec<String>>,
}

async fn answer(State(api): State<Arc<ApiServer>>, uri: axum::http::Uri) -> Response {
    let is_lease = uri.path().contains("/leases/");
    if !is_lease {
        api.reads.fetch_add(1, Ordering::SeqCst);
        api.asked.lock().unwrap().push(uri.to_string());
        if *api.hangs.lock().unwrap() {
            return std::future::pending().await;
        }
    }
    let said = if is_lease {
        api.lease.lock().unwrap().clone().map(|lease| (StatusCode::OK, lease))
    } else {
        api.answer.lock().unwrap().clone()
    };
    let (status, body) = said.unwrap_or_else(|| {
        let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404,
                            "message": "not found", "metadata": {}});
        (StatusCode::NOT_FOUND, status)
    });
    (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

/// What the next push comes to.
type Fate = Box<dyn Fn() -> Option<Failure> + Send + Sync>;

/// AWS: waits before it asks the gate, as one that fetches credentials does.
struct Aws {
    before: Duration,
    fate: Fate,
    pushes: Mutex<Vec<String>>,
    /// Called before the gate is asked.
    meanwhile: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Cloud for Aws {
    fn describe_by_ids<'a>(&'a self, _: &'a Place, _: &'a [InstanceId]) -> Reply<'a, Vec<Instance>> {
        unreachable!("a gateway looks for nothing")
    }

    fn describe_by_tags<'a>(&'a self, _: &'a Place, _: &'a BTreeMap<String, String>) -> Reply<'a, Vec<Instance>> {
        unreachable!("a gateway looks for nothing")
    }

    fn describe_endpoints<'a>(&'a self, _: &'a Place, _: &'a str) -> Reply<'a, Vec<Endpoint>> {
        unreachable!("a gateway looks for nothing")
    }

    fn send_ssh_public_key<'a>(&'a self, push: &'a KeyPush, gate: Gate) -> Reply<'a, Pushed> {
        async move {
            tokio::time::sleep(self.before).await;
            if let Some(meanwhile) = self.meanwhile.lock().unwrap().take() {
                meanwhile();
            }
            let no = |class, code: &str| Failure { class, code: code.into(), message: "as the test wants it".into() };
            if !gate() {
                return Err(no(crate::domain::cloud::FailureClass::Bug, "GateShut"));
            }
            self.pushes.lock().unwrap().push(push.os_user.as_str().to_owned());
            (self.fate)().map_or_else(|| Ok(Pushed { request_id: "request-1".into() }), Err)
        }
        .boxed()
    }
}

struct World {
    shared: Arc<Shared>,
    api: Arc<ApiServer>,
    aws: Arc<Aws>,
    step: Arc<Mutex<SignedDuration>>,
    audit: PathBuf,
    _dir: tempfile::TempDir,
}

/// A request with a live grant, for this login, that ends in so many seconds.
fn request(name: &str, os_user: &str, seconds: i64) -> Value {
    let now = Timestamp::now();
    let time = |seconds| (now + SignedDuration::from_secs(seconds)).strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let condition = |type_: &str, reason: &str| {
        json!({"type": type_, "status": "True", "reason": reason, "message": "x", "observedGeneration": 1,
               "lastTransitionTime": time(-10)})
    };
    let mut object = json!({
        "apiVersion": "instanceaccess.dev/v1alpha1", "kind": "InstanceAccess",
        "metadata": {"name": name, "namespace": "team", "uid": format!("uid-of-{name}")},
        "spec": {"requester": {"username": "alice"}, "target": {"instanceId": "i-0123456789abcdef0"}, "osUser": os_user,
                 "sshPublicKey": KEY, "keyDelivery": "OnConnect"},
    });
    let spec: InstanceAccess = serde_json::from_value(object.clone()).unwrap();
    let digest = spec_digest(&spec.spec);
    object["status"] = json!({
        "specDigest": digest,
        "conditions": [condition("Active", "Granted"), condition("Approved", "AdmittedByPolicy")],
        "grant": {"id": grant_id(&format!("uid-of-{name}"), &digest), "startTime": time(-10), "expirationTime": time(seconds)},
        "instance": {"instanceId": "i-0123456789abcdef0", "region": "us-west-2"},
        "connection": {"method": "Direct", "address": "203.0.113.17", "port": 22, "command": "ssh"},
        "key": {"type": "ED25519", "bits": 256, "fingerprint": PublicKey::parse(KEY).unwrap().fingerprint()},
    });
    object
}

async fn world(before: Duration, fate: Fate) -> World {
    world_of(before, fate, None).await
}

/// One that asks whether a controller leads.
async fn led_world(before: Duration) -> World {
    let lease = LeaderLease { namespace: "instance-access".to_owned(), name: "controller".to_owned() };
    world_of(before, lands(), Some(lease)).await
}

async fn world_of(before: Duration, fate: Fate, lease: Option<LeaderLease>) -> World {
    // As main does; another test of this process may have been first.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let dir = tempfile::tempdir().unwrap();
    let audit = dir.path().join("audit.jsonl");
    let sinks = Sinks { file: Some(audit.clone()), stdout: false };
    let begin = Begin { now: Timestamp::now(), known_head: None, leader: None };
    let (trail, _) = Trail::open(sinks, Limits::default(), begin).await.unwrap();
    let api = Arc::new(ApiServer::default());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new().fallback(answer).with_state(Arc::clone(&api));
    tokio::spawn(async move { axum::serve(listener, router).await });
    let aws = Arc::new(Aws { before, fate, pushes: Mutex::default(), meanwhile: Mutex::default() });
    let step = Arc::new(Mutex::new(SignedDuration::ZERO));
    let cloud = Arc::clone(&aws) as Arc<dyn Cloud>;
    let seconds = Duration::from_secs;
    let gateway = Gateway::new(GatewayParts {
        client: kube::Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap(),
        cloud: std::future::ready(Some(cloud)).boxed().shared(),
        trail,
        clock: Arc::new({
            let step = Arc::clone(&step);
            move || Timestamp::now() + *step.lock().unwrap()
        }),
        name: "gateway".into(),
        host_keys: HostKeys::load(&[dir.path().join("host_key")]).unwrap(),
        limits: GatewayLimits {
            connections_max: 1,
            connections_per_source_max: 1,
            logins_max: 1,
            logins_per_source_max: 1,
            login: seconds(1),
            connections_per_key_max: 1,
            sessions_per_grant_max: 1,
            idle_max: None,
            endpoints: EndpointLimits { per_endpoint_max: 1, per_user_max: 1 },
            silence_max: seconds(1),
            drain: seconds(1),
        },
        dialling: Dialling { never: Networks::new(vec![]), ports: vec![22], private_vpcs: vec![], endpoints: false },
        tunnels: None,
        lease,
        metrics: Arc::new(GatewayMetrics::default()),
    });
    World { shared: gateway.shared, api, aws, step, audit, _dir: dir }
}

fn lands() -> Fate {
    Box::new(|| None)
}

impl World {
    /// The watch hears of a request; returns its grant.
    fn sees(&self, object: &Value) -> Arc<SessionGrant> {
        let request: InstanceAccess = serde_json::from_value(object.clone()).unwrap();
        let standing = standing(&request);
        self.shared.grants.see(request.metadata.uid.as_deref().unwrap(), standing.clone(), Timestamp::now());
        let Standing::Live(grant) = standing else { panic!("{standing:?}") };
        grant
    }

    /// The API server has it.
    fn stores(&self, object: &Value) {
        *self.api.answer.lock().unwrap() = Some((StatusCode::OK, object.clone()));
    }

    /// Both.
    fn granted(&self, object: &Value) -> Arc<SessionGrant> {
        self.stores(object);
        self.sees(object)
    }

    async fn connects(&self, grant: &Arc<SessionGrant>, host: &str) -> Result<(), NoKey> {
        let source = "192.0.2.1:4711".parse().unwrap();
        deliver(&self.shared, grant, &grant.key_fingerprint, host, source, Context::default()).await
    }

    /// A controller renews its lease of four seconds, that often and that many times.
    async fn renews(&self, times: u32, gap: Duration) {
        for version in 0..times {
            self.lease(version, "a");
            tokio::time::sleep(gap).await;
        }
    }

    fn lease(&self, version: u32, holder: &str) {
        *self.api.lease.lock().unwrap() = Some(json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": "controller", "namespace": "instance-access", "resourceVersion": version.to_string()},
            "spec": {"holderIdentity": holder, "leaseDurationSeconds": 4, "renewTime": "2099-01-01T00:00:00.000000Z"},
        }));
    }

    async fn is_refused(&self, grant: &Arc<SessionGrant>, word: &str) -> String {
        let no_key = self.connects(grant, "i-0123456789abcdef0").await.expect_err("a key was delivered");
        assert_eq!(no_key.as_str(), word, "{no_key}");
        no_key.to_string()
    }

    fn reads(&self) -> usize {
        self.api.reads.load(Ordering::SeqCst)
    }

    fn pushes(&self) -> usize {
        self.aws.pushes.lock().unwrap().len()
    }

    /// What stands in the trail, once nothing more is on its way there.
    async fn records(&self) -> Vec<Value> {
        self.shared.tasks.close();
        timeout(Duration::from_secs(20), self.shared.tasks.wait()).await.expect("records in time");
        self.shared.tasks.reopen();
        let text = std::fs::read_to_string(&self.audit).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["record"].clone());
        lines.filter(|record| record["kind"] != "SegmentOpened").collect()
    }
}

#[tokio::test]
async fn ten_clients_at_once_are_one_read_and_one_push_and_the_next_ones_rely_on_it() {
    let world = world(Duration::from_millis(200), lands()).await;
    let grant = world.granted(&request("web-1", "ec2-user", 600));
    let all = join_all((0..10).map(|_| world.connects(&grant, "i-0123456789abcdef0"))).await;
    assert!(all.iter().all(Result::is_ok), "{all:?}");
    world.connects(&grant, "web-1.team").await.unwrap();
    assert_eq!((world.reads(), world.pushes()), (1, 1));
    let asked = world.api.asked.lock().unwrap().clone();
    assert_eq!(
        asked,
        ["/apis/instanceaccess.dev/v1alpha1/namespaces/team/instanceaccesses/web-1"],
        "no cache may answer"
    );
    let records = world.records().await;
    let kinds: Vec<_> = records.iter().map(|record| record["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["KeyPushIntended", "KeyPushed"]);
    assert_eq!(records[1]["requestId"], "request-1");
    assert_eq!(records[1]["intendedSequence"], 2, "after the segment's own record");
    assert_eq!((&records[0]["grantId"], &records[0]["source"]), (&json!(grant.grant_id), &json!("192.0.2.1:4711")));
    // A clock that says it is long ago is believed, and one that was stepped back is not.
    for step in [31, -5] {
        *world.step.lock().unwrap() += SignedDuration::from_secs(step);
        world.connects(&grant, "i-0123456789abcdef0").await.unwrap();
    }
    assert_eq!((world.reads(), world.pushes()), (3, 3));
}

#[tokio::test]
async fn a_revocation_that_the_watch_has_not_brought_yet_pushes_nothing() {
    let world = world(Duration::ZERO, lands()).await;
    let mut object = request("web-1", "ec2-user", 600);
    let grant = world.sees(&object);
    object["spec"]["revoke"] = json!({"reason": "done"});
    world.stores(&object);
    assert!(world.is_refused(&grant, "Over").await.contains("it was revoked"));
    *world.api.answer.lock().unwrap() = None;
    tokio::time::sleep(FAILURE_KEPT).await;
    assert!(world.is_refused(&grant, "Over").await.contains("the request was deleted"));
    assert_eq!((world.reads(), world.pushes(), world.records().await.len()), (2, 0, 0));
}

#[tokio::test]
async fn an_api_server_that_fails_or_hangs_confirms_nothing() {
    let world = world(Duration::ZERO, lands()).await;
    let (one, two) = (request("web-1", "ec2-user", 600), request("web-2", "ec2-user", 600));
    let (grant, other) = (world.sees(&one), world.sees(&two));
    *world.api.answer.lock().unwrap() = Some((StatusCode::FORBIDDEN, json!({"kind": "Status", "code": 403})));
    world.is_refused(&grant, "ContactLost").await;
    *world.api.hangs.lock().unwrap() = true;
    world.is_refused(&other, "ContactLost").await;
    assert_eq!((world.pushes(), world.records().await.len()), (0, 0));
}

#[tokio::test]
async fn a_revocation_that_comes_while_the_push_waits_keeps_it_from_leaving() {
    let world = world(Duration::from_millis(50), lands()).await;
    let object = request("web-1", "ec2-user", 600);
    let grant = world.granted(&object);
    let shared = Arc::clone(&world.shared);
    let mut revoked = object.clone();
    revoked["spec"]["revoke"] = json!({"reason": "done"});
    let standing = standing(&serde_json::from_value::<InstanceAccess>(revoked).unwrap());
    *world.aws.meanwhile.lock().unwrap() =
        Some(Box::new(move || shared.grants.see("uid-of-web-1", standing, Timestamp::now())));
    assert!(world.is_refused(&grant, "Over").await.contains("it was revoked"));
    assert_eq!(world.pushes(), 0);
    let records = world.records().await;
    assert_eq!((&records[1]["kind"], &records[1]["cause"]), (&json!("KeyNotPushed"), &json!("Over")));
    assert_eq!(records[1].get("mayHaveLanded"), None);
}

#[tokio::test]
async fn a_push_that_waits_for_longer_than_its_read_is_good_does_not_leave() {
    let world = world(READ_AGE_MAX + Duration::from_millis(200), lands()).await;
    // The wall clock is stepped back meanwhile: it alone would let the push go.
    let grant = world.granted(&request("web-1", "ec2-user", 600));
    let step = Arc::clone(&world.step);
    *world.aws.meanwhile.lock().unwrap() =
        Some(Box::new(move || *step.lock().unwrap() -= SignedDuration::from_secs(60)));
    world.is_refused(&grant, "Busy").await;
    assert_eq!(world.pushes(), 0);
}

#[tokio::test]
async fn what_aws_says_is_told_and_asked_again_only_after_a_while() {
    let no = |class, code: &'static str| {
        Box::new(move || Some(Failure { class, code: code.into(), message: "as the test wants it".into() })) as Fate
    };
    use crate::domain::cloud::FailureClass::{Refused, Retry, Throttled};
    for (class, code, word, may_have_landed) in [
        (Throttled, "ThrottlingException", "Throttled", None),
        (Refused, "AccessDeniedException", "AccessDenied", None),
        (Retry, "ServiceException", "AwsUnavailable", Some(true)),
    ] {
        let world = world(Duration::ZERO, no(class, code)).await;
        let grant = world.granted(&request("web-1", "ec2-user", 600));
        assert!(world.is_refused(&grant, word).await.contains(code));
        world.is_refused(&grant, word).await;
        assert_eq!(world.pushes(), 1, "the second one knows already");
        let records = world.records().await;
        assert_eq!((&records[1]["kind"], &records[1]["cause"]), (&json!("KeyNotPushed"), &json!(word)));
        assert_eq!((records[1]["code"].as_str(), records[1]["mayHaveLanded"].as_bool()), (Some(code), may_have_landed));
        tokio::time::sleep(FAILURE_KEPT).await;
        world.is_refused(&grant, word).await;
        assert_eq!(world.pushes(), 2);
    }
}

#[tokio::test]
async fn without_a_record_no_push_and_in_the_last_minute_not_even_a_read() {
    let world = world(Duration::ZERO, lands()).await;
    let late = world.granted(&request("late", "ec2-user", 65));
    assert!(world.is_refused(&late, "TooLate").await.contains("no new one is delivered in the last 70 s"));
    assert_eq!(world.reads(), 0);
    let grant = world.granted(&request("web-1", "ec2-user", 600));
    std::fs::rename(&world.audit, world.audit.with_extension("aside")).unwrap();
    world.is_refused(&grant, "AuditUnavailable").await;
    assert_eq!((world.reads(), world.pushes()), (1, 0));
}

#[tokio::test]
async fn another_login_of_the_same_key_has_its_key_too_and_closes_nothing_if_it_has_not() {
    let world = world(Duration::ZERO, lands()).await;
    let root = world.sees(&request("root", "root", 60));
    let own = world.granted(&request("web-1", "ec2-user", 600));
    world.connects(&own, "i-0123456789abcdef0").await.unwrap();
    assert_eq!(*world.aws.pushes.lock().unwrap(), ["ec2-user"], "of root it is the last minute");
    world.is_refused(&root, "TooLate").await;
}

#[tokio::test]
async fn flights_are_forgotten_when_they_are_of_no_more_use() {
    let world = world(Duration::ZERO, lands()).await;
    for number in 0..REMEMBERED_MAX + 5 {
        let (_, known) = watch::channel(Some(Ok((Instant::now(), Timestamp::MIN))));
        let mut flights = world.shared.keys_pushed.flights.lock().unwrap();
        if flights.len() < REMEMBERED_MAX {
            flights.insert(number.to_string(), known);
        }
    }
    let grant = world.granted(&request("web-1", "ec2-user", 600));
    world.connects(&grant, "i-0123456789abcdef0").await.unwrap();
    assert_eq!(world.shared.keys_pushed.flights.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn without_a_controller_that_was_seen_to_renew_nothing_is_pushed() {
    let world = led_world(Duration::ZERO).await;
    let grant = world.granted(&request("web-1", "ec2-user", 600));
    world.is_refused(&grant, "NoLeader").await;
    // A lease that was left behind has a name in it, and a time of renewal, whatever it says.
    world.lease(7, "somebody");
    tokio::time::sleep(FAILURE_KEPT).await;
    let text = world.is_refused(&grant, "NoLeader").await;
    assert!(text.contains("no controller") && text.contains("try again"), "{text}");
    assert_eq!((world.pushes(), world.reads()), (0, 0), "the grant is not even asked about");
    assert!(world.records().await.is_empty());
    // One renewal before our eyes is enough, and whoever waits for it is served.
    tokio::time::sleep(FAILURE_KEPT).await;
    let (connected, ()) =
        tokio::join!(world.connects(&grant, "i-0123456789abcdef0"), world.renews(30, Duration::from_millis(100)));
    connected.unwrap();
    assert_eq!(world.pushes(), 1);
}

#[tokio::test]
async fn a_push_does_not_leave_once_the_controllers_lease_has_run_out_meanwhile() {
    let world = led_world(Duration::from_millis(3500)).await;
    let grant = world.granted(&request("web-1", "ec2-user", 600));
    let renewing = world.renews(30, Duration::from_millis(50));
    let (refused, ()) = tokio::join!(world.is_refused(&grant, "NoLeader"), renewing);
    assert!(refused.contains("no controller"), "{refused}");
    assert_eq!(world.pushes(), 0);
    let records = world.records().await;
    assert_eq!(
        records.iter().map(|record| record["kind"].as_str().unwrap()).collect::<Vec<_>>(),
        ["KeyPushIntended", "KeyNotPushed"]
    );
}
