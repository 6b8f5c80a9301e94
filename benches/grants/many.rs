//! What many live grants and many ended requests cost: memory, and the time until a fresh process has all their timers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use instance_access::domain::digest::{grant_id, spec_digest};
use jiff::{SignedDuration, Timestamp};
use kube::{Client, Config};
use serde_json::{Value, json};

use super::eyes::Eyes;
use super::objects::{self, NAMESPACE, OURS, Wish};
use super::report::Report;
use super::stand::{Controller, Stand};
use super::{CREATORS, PHASE_BOUND, lateness, plain, round, soon, wishes};

/// A re-push and a refresh of each, and the allocator's second thoughts.
const SETTLE: Duration = Duration::from_secs(65);
/// What the controller is started with: 10,000 keys every 45 s are 223 a second, more than the default allows.
const PACE: [&str; 2] = ["--pushes-per-second", "400"];
/// Aims, in MiB: with 10,000 live grants, and with 100,000 ended requests beside them.
const LIVE_AIM: f64 = 60.0;
const ENDED_AIM: f64 = 250.0;
/// The aim of a restart with 10,000 live grants, until every timer stands.
const RESTART_AIM: Duration = Duration::from_secs(2);
/// A grant that ends while all of them are read: how long it has, and how long before its end the process goes.
const LAST: Duration = Duration::from_secs(150);
const LAST_MOMENTS: Duration = Duration::from_secs(6);
/// The aim of its end in status, in milliseconds behind the promise.
const LAST_AIM: f64 = 1000.0;
/// Pages of the plain client's list: as the controller asks for them, and as clients do by default.
const PAGES: [u32; 2] = [50, 500];

/// Measures: many live grants as they come in, the same after a restart, and again with many ended requests.
pub async fn measure(
    stand: &mut Stand,
    eyes: &Eyes,
    report: &mut Report,
    live: usize,
    ended: usize,
) -> anyhow::Result<()> {
    let start = Instant::now();
    let controller = stand.controller(&PACE).await?;
    let cold = start.elapsed();
    report.row(
        "start to ready just after an installation, whose policies get 5 s",
        format!("{:.2} s", cold.as_secs_f64()),
        "-".to_owned(),
        "-".to_owned(),
        "-",
        None,
    );
    let empty = controller.memory()?;
    // Its last key fades while the others come.
    let model = one_that_is_revoked(stand, eyes).await?;
    let all = wishes(stand, "live", live, None);
    let requester = stand.requester.clone();
    let created = plain::all(all, CREATORS, move |wish| {
        let requester = requester.clone();
        async move { plain::create(&requester, OURS, &wish).await.map(drop) }
    });
    created.await?;
    eyes.active("live", live, PHASE_BOUND).await?;
    let full = controller.memory()?;
    tokio::time::sleep(SETTLE).await;
    let settled = controller.memory()?;
    let count = controller.metrics().await?.sum("instance_access_grants_live ");
    controller.stop().await?;

    let (controller, restart) = restarted(stand, live).await?;
    tokio::time::sleep(SETTLE).await;
    let after = controller.memory()?;
    report.detail(
        "memory_mib",
        json!({
            "empty": round(empty.now),
            "when_all_are_granted": round(full.now),
            "settled": round(settled.now),
            "settled_anonymous": round(settled.anonymous),
            "most": round(settled.most),
            "restarted": round(after.now),
            "restarted_most": round(after.most),
            "live_grants": count,
        }),
    );
    report.row(
        &format!("resident memory with {count:.0} live grants"),
        format!("{:.0} MiB", settled.now),
        "-".to_owned(),
        format!("at most {:.0}, restarted {:.0} MiB", settled.most, after.now),
        &format!("<= {LIVE_AIM:.0} MiB"),
        Some(settled.now <= LIVE_AIM),
    );
    report_restart(report, &format!("restart with {live} live grants"), restart, Some(RESTART_AIM));
    if ended == 0 {
        return controller.stop().await;
    }

    let model = as_it_ended(stand, eyes, &model).await?;
    // Beside a controller that watches: what hundreds of small events leave behind counts, too.
    put(stand, &model, ended).await?;
    until(&controller, "instance_access_requests ", live + ended).await?;
    let came = controller.memory()?;
    // By its name the last of all.
    let end_time = soon(LAST);
    let last = wishes(stand, "z-last", 1, Some(end_time)).remove(0);
    plain::create(&stand.requester, OURS, &last).await?;
    eyes.active_one(&last.name, PHASE_BOUND).await?;
    tokio::time::sleep(SETTLE).await;
    let settled = controller.memory()?;
    let lists = lists(stand).await?;
    let remaining = end_time.duration_since(Timestamp::now()) - SignedDuration::try_from(LAST_MOMENTS)?;
    tokio::time::sleep(remaining.try_into().context("the lists took too long for the grant that is to end")?).await;
    controller.stop().await?;
    let (controller, restart) = restarted(stand, live).await?;
    let loaded = controller.memory()?;
    let cpu = controller.cpu();
    eyes.ended("z-last", 1, PHASE_BOUND).await?;
    let late = lateness(eyes, "z-last");
    tokio::time::sleep(SETTLE).await;
    let after = controller.memory()?;
    report.detail("lists_by_a_plain_client_s", lists);
    report.detail("restart_cpu_s", json!(round(cpu)));
    report.detail(
        "memory_with_ended_mib",
        json!({
            "when_all_had_come": round(came.now),
            "settled": round(settled.now),
            "most": round(settled.most),
            "when_all_were_read": round(loaded.now),
            "restarted": round(after.now),
            "restarted_anonymous": round(after.anonymous),
            "restarted_most": round(after.most),
        }),
    );
    let worse = settled.now.max(after.now);
    report.row(
        &format!("resident memory with {live} live grants and {ended} ended requests"),
        format!("{:.0} MiB", settled.now),
        "-".to_owned(),
        format!("restarted {:.0}, then at most {:.0} MiB", after.now, after.most),
        &format!("<= {ENDED_AIM:.0} MiB"),
        Some(worse <= ENDED_AIM),
    );
    report_restart(report, &format!("restart with {live} live grants and {ended} ended requests"), restart, None);
    let late = late.first().copied().context("nobody heard of the end")?;
    report.row(
        "an end within that restart, of the last by name",
        format!("{late:.0} ms"),
        "-".to_owned(),
        "-".to_owned(),
        &format!("< {LAST_AIM:.0} ms"),
        Some(late < LAST_AIM),
    );
    controller.stop().await
}

/// How long a client takes that lists all requests and looks at none: what of a restart is the API server's.
async fn lists(stand: &Stand) -> anyhow::Result<Value> {
    #[derive(serde::Deserialize)]
    struct Page {
        metadata: PageMeta,
        items: Vec<serde::de::IgnoredAny>,
    }
    #[derive(serde::Deserialize)]
    struct PageMeta {
        #[serde(rename = "continue")]
        next: Option<String>,
    }
    let list = async |limit: u32, selector: &str| {
        let (start, mut count, mut next) = (Instant::now(), 0, String::new());
        loop {
            let uri = format!("{}?limit={limit}{selector}&continue={next}", OURS.requests());
            let page: Page = stand.operator.request(http::Request::get(uri).body(Vec::new())?).await?;
            count += page.items.len();
            next = page.metadata.next.unwrap_or_default();
            if next.is_empty() {
                return anyhow::Ok(json!({"requests": count, "seconds": round(start.elapsed().as_secs_f64())}));
            }
        }
    };
    let mut told = serde_json::Map::new();
    for limit in PAGES {
        told.insert(format!("pages_of_{limit}"), list(limit, "").await?);
    }
    let selector = "&fieldSelector=status.grant.id!%3D,status.endTime%3D";
    // An older build's CRD does not know these fields.
    let live = list(PAGES[0], selector).await.unwrap_or_else(|error| json!(format!("{error:#}")));
    told.insert(format!("live_pages_of_{}", PAGES[0]), live);
    Ok(Value::Object(told))
}

/// How long a fresh process took: to be ready, and until as many timers stand as grants live.
#[derive(Clone, Copy, Debug)]
struct Restart {
    ready: Duration,
    timers: Duration,
}

/// Starts a controller over what there is; returns when it is ready and the timers stand.
async fn restarted(stand: &Stand, live: usize) -> anyhow::Result<(Controller, Restart)> {
    let start = Instant::now();
    let mut controller = stand.spawn(&PACE)?;
    let (mut ready, mut timers) = (None, None);
    loop {
        if ready.is_none() && controller.is_ready().await? {
            ready = Some(start.elapsed());
        }
        // It answers before it is ready, but not before it is there.
        let standing = controller.metrics().await.map_or(0.0, |metrics| metrics.sum("instance_access_timers "));
        if timers.is_none() && standing >= live as f64 {
            timers = Some(start.elapsed());
        }
        if let (Some(ready), Some(timers)) = (ready, timers) {
            return Ok((controller, Restart { ready, timers }));
        }
        anyhow::ensure!(start.elapsed() < PHASE_BOUND, "{standing} timers after {PHASE_BOUND:?}, ready {ready:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn report_restart(report: &mut Report, what: &str, restart: Restart, aim: Option<Duration>) {
    report.row(
        &format!("{what}, until every timer stands"),
        format!("{:.2} s", restart.timers.as_secs_f64()),
        "-".to_owned(),
        format!("ready after {:.2} s", restart.ready.as_secs_f64()),
        &aim.map_or("-".to_owned(), |aim| format!("< {} s", aim.as_secs())),
        aim.map(|aim| restart.timers < aim),
    );
}

/// Waits until a gauge has reached a number.
async fn until(controller: &Controller, gauge: &str, count: usize) -> anyhow::Result<()> {
    let start = Instant::now();
    loop {
        let value = controller.metrics().await?.sum(gauge);
        if value >= count as f64 {
            return Ok(());
        }
        anyhow::ensure!(start.elapsed() < PHASE_BOUND, "{gauge}is {value} after {PHASE_BOUND:?}, not {count}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Has one request granted and revoked, and returns its name.
async fn one_that_is_revoked(stand: &mut Stand, eyes: &Eyes) -> anyhow::Result<String> {
    let wish = wishes(stand, "model", 1, None).remove(0);
    plain::create(&stand.requester, OURS, &wish).await?;
    eyes.active_one(&wish.name, PHASE_BOUND).await?;
    stand.revoke(NAMESPACE, &wish.name).await?;
    Ok(wish.name)
}

/// That request when it has ended, as etcd has it.
async fn as_it_ended(stand: &Stand, eyes: &Eyes, name: &str) -> anyhow::Result<Value> {
    eyes.ended("model", 1, PHASE_BOUND).await?;
    let found = etcd(stand)?.call("range", &json!({"key": encoded(&key(name))})).await?;
    let value = found["kvs"][0]["value"].as_str().context("etcd does not have the request that ended")?;
    Ok(serde_json::from_slice(&BASE64_STANDARD.decode(value)?)?)
}

/// Puts copies of an ended request into etcd, past the API server, which would take half an hour for so many. It hears of
/// them as of any other's writes, and so do those who watch. One at a time: no two objects have one revision, and who
/// takes a watch up again after one of two would miss the other.
async fn put(stand: &mut Stand, model: &Value, count: usize) -> anyhow::Result<()> {
    let etcd = Arc::new(etcd(stand)?);
    let model = Arc::new(model.clone());
    let put = plain::all(wishes(stand, "ended", count, None), CREATORS, move |wish| {
        let (etcd, model) = (Arc::clone(&etcd), Arc::clone(&model));
        async move {
            let value = BASE64_STANDARD.encode(serde_json::to_vec(&copy(&model, &wish)?)?);
            etcd.call("put", &json!({"key": encoded(&key(&wish.name)), "value": value})).await.map(drop)
        }
    });
    put.await.map(drop)
}

/// With a key, an instance and ids of its own, as real ones have: what is equal in all would pack too well.
fn copy(model: &Value, wish: &Wish) -> anyhow::Result<Value> {
    let mut object = model.clone();
    let uid = uuid::Uuid::new_v4().to_string();
    object["spec"]["target"]["instanceId"] = json!(wish.instance_id);
    object["spec"]["sshPublicKey"] = json!(objects::public_key());
    let digest = spec_digest(&serde_json::from_value(object["spec"].clone())?);
    object["status"]["grant"]["id"] = json!(grant_id(&uid, &digest));
    object["status"]["specDigest"] = json!(digest);
    object["metadata"]["name"] = json!(wish.name);
    object["metadata"]["uid"] = json!(uid);
    Ok(object)
}

/// Where the API server keeps a request.
fn key(name: &str) -> String {
    format!("/registry/{}/instanceaccesses/{NAMESPACE}/{name}", OURS.0)
}

fn encoded(text: &str) -> String {
    BASE64_STANDARD.encode(text)
}

/// etcd's API as JSON.
struct Etcd(Client);

fn etcd(stand: &Stand) -> anyhow::Result<Etcd> {
    let config = Config::new(stand.lab.etcd_url().parse()?);
    Ok(Etcd(Client::try_from(config)?))
}

impl Etcd {
    async fn call(&self, what: &str, body: &Value) -> anyhow::Result<Value> {
        let request = http::Request::post(format!("/v3/kv/{what}")).body(serde_json::to_vec(body)?)?;
        Ok(self.0.request(request).await?)
    }
}
