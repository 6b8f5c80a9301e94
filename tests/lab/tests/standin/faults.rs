//! Faults on demand, and the lab's own door.

use std::time::{Duration, Instant};

use lab::standin::{Api, Fault, FaultKind, Outcome};
use serde_json::{Value, json};

use super::client::{ID, push_body, world};

#[tokio::test]
async fn each_service_fails_in_its_own_words() {
    let world = world().await;
    let error =
        FaultKind::Error { code: "EC2InstanceUnavailableException".into(), message: "wait".into(), status: 400 };
    for (kind, ec2, eic, sts) in [
        (FaultKind::Throttle, (503, "RequestLimitExceeded"), (400, "ThrottlingException"), (400, "Throttling")),
        (FaultKind::ServerError(503), (503, "Unavailable"), (503, "ServiceException"), (503, "InternalFailure")),
        (FaultKind::ServerError(500), (500, "InternalError"), (500, "ServiceException"), (500, "InternalFailure")),
        (FaultKind::Deny, (403, "UnauthorizedOperation"), (400, "AccessDeniedException"), (403, "AccessDenied")),
        (FaultKind::ExpiredCredentials, (400, "RequestExpired"), (400, "ExpiredTokenException"), (403, "ExpiredToken")),
        (
            FaultKind::ClockSkew(301),
            (400, "RequestExpired"),
            (400, "InvalidSignatureException"),
            (403, "SignatureDoesNotMatch"),
        ),
        (
            FaultKind::ClockSkew(-310),
            (401, "AuthFailure"),
            (400, "InvalidSignatureException"),
            (403, "SignatureDoesNotMatch"),
        ),
        (
            FaultKind::BadSignature,
            (401, "AuthFailure"),
            (400, "InvalidSignatureException"),
            (403, "SignatureDoesNotMatch"),
        ),
        (
            error,
            (400, "EC2InstanceUnavailableException"),
            (400, "EC2InstanceUnavailableException"),
            (400, "EC2InstanceUnavailableException"),
        ),
    ] {
        world.stand_in.clear_faults();
        world.stand_in.set_fault(Fault::new(kind.clone()));
        let answers = [
            world.look_up(&[("InstanceId.1", ID)]).await,
            world.push(&push_body(json!({}))).await,
            world.send(world.query("sts", &[("Action", "GetCallerIdentity")])).await,
        ];
        for (answer, (status, code)) in answers.iter().zip([ec2, eic, sts]) {
            assert_eq!((answer.status, answer.code().as_deref()), (status, Some(code)), "{kind:?}: {}", answer.body);
        }
        assert!(world.stand_in.active_keys(ID, "ec2-user").is_empty(), "{kind:?}");
    }
    world.stand_in.clear_faults();
    assert_eq!(world.push(&push_body(json!({}))).await.status, 200);
}

#[tokio::test]
async fn a_dropped_push_is_not_done_and_a_lost_answer_is() {
    let world = world().await;
    for (kind, keys, outcome) in
        [(FaultKind::Drop, 0, Outcome::Dropped), (FaultKind::DoThenDrop, 1, Outcome::DoneThenDropped)]
    {
        world.stand_in.set_fault(Fault::new(kind).on(Api::Eic).times(1));
        let error = world.try_send(world.push_request(&push_body(json!({})))).await.unwrap_err();
        assert!(error.is_request(), "{error}");
        assert_eq!(world.stand_in.active_keys(ID, "ec2-user").len(), keys);
        assert_eq!(world.stand_in.journal().pop().unwrap().outcome, outcome);
    }
    assert_eq!(world.push(&push_body(json!({}))).await.status, 200);
}

/// Waits until the key is there.
async fn arrival(world: &super::client::World) {
    let start = Instant::now();
    while world.stand_in.active_keys(ID, "ec2-user").is_empty() {
        assert!(start.elapsed() < Duration::from_secs(60), "no key came: {:?}", world.stand_in.journal());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_push_that_the_client_gave_up_on_still_lands() {
    let world = world().await;
    let delay = Duration::from_secs(2);
    world.stand_in.set_fault(Fault::new(FaultKind::Slow(delay)).on(Api::Eic).times(1));
    let request = world.push_request(&push_body(json!({}))).timeout(Duration::from_secs(1));
    assert!(world.try_send(request).await.unwrap_err().is_timeout());
    assert!(world.stand_in.active_keys(ID, "ec2-user").is_empty());
    arrival(&world).await;
    let entry = world.stand_in.journal().pop().unwrap();
    assert!(entry.elapsed >= delay && entry.outcome == Outcome::Ok);
}

#[tokio::test]
async fn a_slow_answer_follows_an_effect_at_once() {
    let world = world().await;
    let delay = Duration::from_secs(2);
    world.stand_in.set_fault(Fault::new(FaultKind::SlowAnswer(delay)).on(Api::Eic));
    let start = Instant::now();
    let body = push_body(json!({}));
    let (answer, ()) = tokio::join!(world.push(&body), arrival(&world));
    assert!(answer.status == 200 && start.elapsed() >= delay);
    assert!(world.stand_in.journal().pop().unwrap().elapsed < delay);
}

#[tokio::test]
async fn garbage_is_no_answer_of_any_service() {
    let world = world().await;
    world.stand_in.set_fault(Fault::new(FaultKind::Garbage).times(1));
    let answer = world.push(&push_body(json!({}))).await;
    assert!(answer.status == 200 && serde_json::from_str::<Value>(&answer.body).is_err());
}

#[tokio::test]
async fn another_process_reads_and_sets_all_of_it_over_http() {
    let world = world().await;
    let get = async |path: &str| world.send(world.http.get(world.url(path))).await.json();
    let post =
        async |path: &str, body: Value| world.send(world.http.post(world.url(path)).body(body.to_string())).await;
    let other = "i-0fedcba9876543210";
    let answer =
        post("/_lab/instances", json!([{ "id": other, "hostAddr": "127.0.0.9:22", "tags": { "a": "b" } }])).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(world.push(&push_body(json!({ "InstanceId": other }))).await.status, 200);
    let keys = get("/_lab/keys").await;
    assert_eq!((&keys[0]["instanceId"], &keys[0]["osUser"]), (&json!(other), &json!("ec2-user")));

    assert_eq!(post("/_lab/faults", json!({ "api": "eic", "kind": "throttle", "times": 1 })).await.status, 200);
    assert_eq!(world.push(&push_body(json!({}))).await.code().as_deref(), Some("ThrottlingException"));
    assert_eq!(post("/_lab/faults", json!({ "kind": { "slow": 60_000 } })).await.status, 200);
    assert_eq!(get("/_lab/faults").await.as_array().unwrap().len(), 1);
    world.send(world.http.delete(world.url("/_lab/faults"))).await;
    assert_eq!(get("/_lab/faults").await, json!([]));
    assert_eq!(post("/_lab/faults", json!({ "kind": "nonsense" })).await.status, 400);

    let journal = get("/_lab/journal").await;
    assert_eq!(journal["entries"].as_array().unwrap().len(), 2);
    assert_eq!(journal["entries"][0]["outcome"], "ok");
    assert_eq!(journal["entries"][1]["outcome"], json!({ "error": "ThrottlingException" }));
    assert_eq!(get("/_lab/journal?since=1").await["entries"].as_array().unwrap().len(), 1);
    assert_eq!(get("/_lab/journal?since=2").await["next"], 2);

    assert_eq!(post("/_lab/advance", json!({ "seconds": 60 })).await.status, 200);
    assert_eq!(get("/_lab/keys").await, json!([]));
    let gone = world.send(world.http.delete(world.url(&format!("/_lab/instances/{other}")))).await;
    assert_eq!(gone.status, 200);
    assert_eq!(
        world.push(&push_body(json!({ "InstanceId": other }))).await.code().as_deref(),
        Some("EC2InstanceNotFoundException")
    );
    assert_eq!(get("/_lab/journal").await["dropped"], 0);
}

#[tokio::test]
async fn everything_stops_when_the_last_handle_is_dropped() {
    let world = world().await;
    let handle = world.stand_in.clone();
    let url = world.url("/_lab/keys");
    let http = world.http.clone();
    drop(world);
    assert!(http.get(&url).send().await.is_ok(), "a clone keeps it alive");
    drop(handle);
    for _ in 0..100 {
        if http.get(&url).send().await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it still answers");
}

#[tokio::test]
async fn no_body_however_odd_breaks_the_stand_in() {
    let world = world().await;
    let mut dice = 0x2545_f491_4f6c_dd1d_u64;
    let mut roll = |below: usize| {
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        (dice >> 33) as usize % below
    };
    let good = push_body(json!({})).to_string().into_bytes();
    let form =
        b"Action=DescribeInstances&Version=2016-11-15&Filter.1.Name=tag%3Aa&Filter.1.Value.1=%2A&MaxResults=5".to_vec();
    for n in 0..400 {
        let is_push = n % 2 == 0;
        let mut body = if is_push { good.clone() } else { form.clone() };
        for _ in 0..=roll(4) {
            let (at, byte) = (roll(body.len()), roll(256) as u8);
            match roll(3) {
                0 => body[at] = byte,
                1 => body.insert(at, byte),
                _ => body.truncate(at.max(1)),
            }
        }
        let service = if is_push { "ec2-instance-connect" } else { "ec2" };
        let mut request = world.http.post(world.url("/")).body(body.clone());
        if is_push {
            request = request.header("x-amz-target", "AWSEC2InstanceConnectService.SendSSHPublicKey");
        }
        for (name, value) in super::client::authorization(service, "us-west-2") {
            request = request.header(name, value);
        }
        let answer = world.send(request).await;
        assert!(answer.status < 500, "{}: {}", String::from_utf8_lossy(&body), answer.body);
        // what is accepted although it was changed is still one key, for one login, on one instance
        for key in world.stand_in.all_active_keys() {
            assert!(key.instance_id == ID && !key.key.contains('\n') && !key.os_user.contains(['\n', ' ', '/']));
        }
    }
    assert_eq!(world.stand_in.journal().len(), 400);
}
