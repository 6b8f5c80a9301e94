//! The API server away at the worst moment, and labs side by side. Each on stands of its own.

use jiff::{SignedDuration, Timestamp};
use lab::{pace, poll};
use serde_json::json;

use crate::history::{text, time};
use crate::request::{EXPIRATION, Request, TWO_PUSHES, is_over};
use crate::stand::{BOUND, Stand, kinds, shared, until_time};

/// How long before an end the API server goes: it must not be there any more, also if the machine stands still for a while.
const AHEAD: SignedDuration = SignedDuration::from_secs(20);

/// A grant before whose end something was done: if the machine was so slow that it was not done by then, it is undone, and
/// another one is asked for. Returns it, its end, and how many were asked for.
async fn done_before_the_end<'a>(
    stand: &'a Stand,
    act: impl Fn(),
    undo: impl AsyncFn(),
) -> (Request<'a>, Timestamp, u32) {
    for number in 1..=4 {
        let request = stand.request("alice", &format!("look-{number}")).applied().await;
        let expiration = time(&request.becomes("Granted").await, EXPIRATION).unwrap();
        until_time(expiration - AHEAD).await;
        act();
        if Timestamp::now() < expiration {
            return (request, expiration, number);
        }
        eprintln!("{}: it was over before this machine came to do anything", request.name);
        undo().await;
        request.ends("Expired").await;
    }
    panic!("too slow a machine to do anything before a grant's end")
}

pub async fn an_end_is_recorded_on_time_while_the_api_server_is_away_and_told_once_it_is_back() {
    let stand = Stand::start("away").await;
    let start = async || stand.lab.start_api_server().await.unwrap();
    let (request, expiration, number) = done_before_the_end(&stand, || stand.lab.stop_api_server(), &start).await;
    let ended = stand.record(&request.uid, "Ended", BOUND).await;
    pace::in_time("the record of the end", expiration, time(&ended, "/time").unwrap(), 2.0).await.unwrap();
    request.is_locked_out().await;
    start().await;
    let ended = request.ends("Expired").await;
    assert_eq!(time(&ended, "/status/endTime"), Some(expiration));
    assert_eq!(kinds(&request.records()).iter().filter(|kind| **kind == "Ended").count(), 1);
    let stored = stand.metric("instance_access_status_writes_total{outcome=\"stored\"}").await;
    assert_eq!(stored, f64::from(3 * number), "three writes of status for one grant, also through an outage");
    request.keeps_its_promises().await;
    end(stand).await;
}

pub async fn an_api_server_that_hangs_holds_up_neither_the_end_nor_a_shutdown() {
    let stand = Stand::start("hung").await;
    let (freeze, thaw) = (|| stand.lab.freeze_api_server().unwrap(), async || stand.lab.thaw_api_server().unwrap());
    let (request, expiration, _) = done_before_the_end(&stand, freeze, thaw).await;
    let ended = stand.record(&request.uid, "Ended", BOUND).await;
    pace::in_time("the record of the end", expiration, time(&ended, "/time").unwrap(), 2.0).await.unwrap();
    // Long enough for a write to be given up, and tried again.
    until_time(expiration + SignedDuration::from_secs(12)).await;
    stand.lab.thaw_api_server().unwrap();
    let ended = request.ends("Expired").await;
    assert_eq!(time(&ended, "/status/endTime"), Some(expiration));
    request.is_locked_out().await;
    request.keeps_its_promises().await;

    stand.lab.freeze_api_server().unwrap();
    let status = stand.controller().await.terminate(BOUND).await.unwrap();
    assert!(status.success(), "{status}");
    stand.lab.thaw_api_server().unwrap();
    end(stand).await;
}

pub async fn killed_between_the_record_and_the_status_of_an_end_it_ends_the_grant_all_the_same() {
    let stand = Stand::start("frozen").await;
    let (freeze, thaw) = (|| stand.lab.freeze_api_server().unwrap(), async || stand.lab.thaw_api_server().unwrap());
    let (request, expiration, _) = done_before_the_end(&stand, freeze, thaw).await;
    stand.record(&request.uid, "Ended", BOUND).await;
    stand.kill_controller().await;
    stand.restart_api_server().await;
    assert!(!is_over(&request.newest()), "the status was stored after all");
    stand.start_controller().await;
    let ended = request.ends("Expired").await;
    assert_eq!(time(&ended, "/status/endTime"), Some(expiration));
    let records = request.records();
    let ends = records.iter().filter(|line| line["record"]["kind"] == "Ended");
    assert!(
        ends.clone().count() >= 1 && ends.clone().all(|line| line["record"]["endTime"] == ended["status"]["endTime"]),
        "{records:?}"
    );
    request.is_locked_out().await;
    request.keeps_its_promises().await;
    end(stand).await;
}

pub async fn two_labs_at_once_do_not_disturb_each_other() {
    let (here, there) = tokio::join!(shared(), Stand::start("other"));
    let longer = json!({"ttlSeconds": TWO_PUSHES});
    let (mine, yours) = (here.request("alice", "twin").with(longer), there.request("alice", "twin"));
    let (mine, yours) = tokio::join!(mine.applied(), yours.applied());
    let (granted, other) = tokio::join!(mine.becomes("Granted"), yours.becomes("Granted"));
    assert_ne!(text(&granted, "/status/instance/instanceId"), text(&other, "/status/instance/instanceId"));
    assert_ne!(text(&granted, "/status/grant/id"), text(&other, "/status/grant/id"));
    mine.gets_in().await;
    yours.gets_in().await;
    let strangers = |stand: &Stand, fingerprint: String| {
        let journal = stand.lab.standin().journal();
        journal.iter().any(|entry| entry.key_fingerprint.as_deref() == Some(&fingerprint))
    };
    assert!(!strangers(here, yours.fingerprint()) && !strangers(&there, mine.fingerprint()), "a key went astray");

    there.kill_controller().await;
    let (lost, audit) = (there.lab.dir().to_owned(), there.audit.clone());
    drop(yours);
    end(there).await;
    let swept = poll::until_ok("a lab without processes", BOUND, || match lab::processes(&lost) {
        left if left.is_empty() => Ok(()),
        left => Err(format!("{left:?} of {}", audit.display())),
    });
    swept.await.unwrap();
    mine.ends("Expired").await;
    assert!(mine.pushes().len() >= 2);
    mine.keeps_its_promises().await;
}

/// Ends a stand; killing and waiting for the killed blocks.
pub async fn end(stand: Stand) {
    let ended = tokio::task::spawn_blocking(|| drop(stand));
    tokio::time::timeout(BOUND, ended).await.expect("a lab that ends").expect("no panic");
}
