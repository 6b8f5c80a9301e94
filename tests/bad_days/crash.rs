//! kill -9 under load.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::time::Duration;

use anyhow::Context;
use futures::{StreamExt, TryStreamExt};
use instance_access::api::InstanceAccess;
use jiff::Timestamp;
use serde_json::Value;

use crate::days;
use crate::stand::{Ask, Day, Outage, Outcome, SOON, Special, Stand, expiration, is, shown};

pub fn days() -> Vec<(&'static str, Day)> {
    days![
        a_controller_that_slept_over_an_end_tells_it_when_it_wakes_and_pushes_nothing_late,
        fifty_requests_survive_a_kill_in_the_middle_each_granted_once,
        five_hundred_that_are_deleted_at_once_all_go_and_none_is_forgotten_over_a_kill,
        sixty_that_come_and_go_while_its_metrics_are_read_all_the_time_leave_it_alive,
    ]
}

/// The records of one kind, as (uid of the request, id of the grant).
fn records(stand: &Stand, kind: &str) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(stand.controller.audit()).unwrap_or_default();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let of_kind = lines.map(|line| line["record"].clone()).filter(|record| record["kind"] == kind);
    of_kind.map(|record| (text(&record["request"]["uid"]), text(&record["grantId"]))).collect()
}

/// Of a look that failed: nothing more has come.
fn unseen(error: anyhow::Error) -> (usize, String) {
    (0, format!("{error:#}"))
}

/// How many are granted.
fn granted(objects: &[InstanceAccess]) -> usize {
    objects.iter().filter(|object| is(object, "Active", "True").is_ok()).count()
}

/// Whether all of so many are gone, or how many are.
async fn gone(stand: &Stand, all: usize) -> Result<(), (usize, String)> {
    match stand.list().await.map_err(unseen)?.len() {
        0 => Ok(()),
        left => Err((all.saturating_sub(left), format!("{left} are left"))),
    }
}

async fn a_controller_that_slept_over_an_end_tells_it_when_it_wakes_and_pushes_nothing_late() -> Outcome {
    let stand = Stand::own(Special::default()).await?;
    // As a suspended machine: from before the second push to after the end.
    let outage = Outage::ControllerFrozen;
    let (granted, id) = stand.begun_before_the_end(|| Ask::new("slept").ends_in(90), 90, outage).await?;
    let end = expiration(&granted)?;
    let rest = Duration::try_from(end.duration_since(Timestamp::now())).unwrap_or_default();
    tokio::time::sleep(rest + Duration::from_secs(1)).await;
    stand.is_over(outage).await?;
    let name = granted.metadata.name.as_deref().context("a name")?;
    let object = stand.until(name, "Expired", &["the grant's time was over"]).await?;
    stand.ended_in_fact(&object, &id).await?;
    let end_time = object.status.as_ref().and_then(|status| status.end_time.as_ref()).map(|time| time.0);
    anyhow::ensure!(end_time == Some(end), "endTime is {end_time:?}, not {end}: access ended then");
    anyhow::ensure!(stand.pushes(&id).len() == 1, "{} pushes", stand.pushes(&id).len());
    stand.controller.verify(&[&object]).await?;
    Ok(())
}

async fn fifty_requests_survive_a_kill_in_the_middle_each_granted_once() -> Outcome {
    let stand = Stand::own(Special::default()).await?;
    let ids: Vec<String> = (0..50).map(|_| stand.running()).collect();
    let asks = ids.iter().enumerate().map(|(number, id)| stand.ask(Ask::new(&format!("load-{number}")).instance(id)));
    let asks = futures::future::join_all(asks);
    // Twice: once while grants are being made, once while they are being told.
    let kills = async {
        for (kind, count) in [("GrantIntended", 5), ("Granted", 15)] {
            lab::poll::until_ok(&format!("{count} records {kind}"), SOON, || match records(&stand, kind).len() {
                few if few < count => Err(few),
                _ => Ok(()),
            })
            .await?;
            stand.controller.kill();
            if kind == "Granted" {
                // As if the last write had been torn by the crash.
                let mut audit = std::fs::File::options().append(true).open(stand.controller.audit())?;
                audit.write_all(br#"{"sequence":"#)?;
            }
            stand.controller.start()?;
        }
        anyhow::Ok(())
    };
    let (asked, killed) = tokio::join!(asks, kills);
    killed?;
    for asked in asked {
        asked?;
    }
    let all = async || {
        let objects = stand.list().await.map_err(unseen)?;
        let granted = granted(&objects);
        match objects.iter().find(|object| is(object, "Active", "True").is_err()) {
            None if objects.len() == 50 => Ok(objects),
            None => Err((granted, format!("{} requests", objects.len()))),
            Some(object) => Err((granted, format!("{:?}: {}", object.metadata.name, shown(object)))),
        }
    };
    let objects = lab::poll::while_it_grows("all fifty to be granted", SOON, all).await?;

    let mut grants: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (uid, grant) in records(&stand, "GrantIntended") {
        grants.entry(uid).or_default().insert(grant);
    }
    let told = records(&stand, "Granted");
    for object in &objects {
        let uid = object.metadata.uid.as_deref().context("a uid")?;
        let id = &object.status.as_ref().and_then(|status| status.grant.as_ref()).context("a grant")?.id;
        // An intention may be written twice, before and after the crash; it is the same one.
        anyhow::ensure!(grants.get(uid) == Some(&BTreeSet::from([id.clone()])), "{:?}, {id}", grants.get(uid));
        anyhow::ensure!(told.iter().any(|(told, _)| told == uid), "{:?} was never told", object.metadata.name);
    }
    anyhow::ensure!(grants.len() == 50, "{} grants", grants.len());
    let said = stand.controller.verify(&objects.iter().collect::<Vec<_>>()).await?;
    anyhow::ensure!(said.contains("3 segments"), "{said}");
    let torn = std::fs::read_dir(stand.lab.dir())?
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().contains("torn"));
    anyhow::ensure!(torn.count() >= 1, "the torn end was not set aside");
    Ok(())
}

/// Where the ledger is.
const LEDGER: &str = "/apis/instanceaccess.dev/v1alpha1/instanceaccessledgerentries";
/// How many requests are deleted at once.
const DELETED: usize = 500;

async fn five_hundred_that_are_deleted_at_once_all_go_and_none_is_forgotten_over_a_kill() -> Outcome {
    let stand = Stand::own(Special::default()).await?;
    let id = stand.running();
    let made =
        futures::stream::iter(0..DELETED).map(|number| stand.ask(Ask::new(&format!("many-{number}")).instance(&id)));
    made.buffer_unordered(16).try_collect::<Vec<_>>().await?;
    let uids = async || {
        let objects = stand.list().await.map_err(unseen)?;
        let granted = objects.iter().filter(|object| expiration(object).is_ok());
        let uids: BTreeSet<String> = granted.filter_map(|object| object.metadata.uid.clone()).collect();
        if uids.len() == DELETED { Ok(uids) } else { Err((uids.len(), format!("{} are granted", uids.len()))) }
    };
    let uids = lab::poll::while_it_grows("all to be granted", SOON, uids).await?;
    let entered = async || -> anyhow::Result<BTreeSet<String>> {
        let list: Value = serde_json::from_str(&stand.read(LEDGER).await?)?;
        let items = list["items"].as_array().context("items")?;
        Ok(items.iter().filter_map(|entry| Some(entry["spec"]["request"]["uid"].as_str()?.to_owned())).collect())
    };
    stand.delete_all("alice").await?;
    // All of them wait for their last key to fade, and then come at once.
    lab::poll::while_it_grows("a hundred entries", SOON, async || match entered().await.map_err(unseen)?.len() {
        some if some >= 100 => Ok(()),
        some => Err((some, some.to_string())),
    })
    .await?;
    stand.controller.kill();
    stand.controller.start()?;
    lab::poll::while_it_grows("all to go", SOON, async || gone(&stand, DELETED).await).await?;
    anyhow::ensure!(entered().await? == uids, "the ledger has {} of {DELETED}", entered().await?.len());
    let ended: BTreeSet<String> = records(&stand, "Ended").into_iter().map(|(uid, _)| uid).collect();
    anyhow::ensure!(ended == uids, "{} ends are on record", ended.len());
    let restless = stand.controller.metric("instance_access_restless_turns_total").await?;
    anyhow::ensure!(restless == 0.0, "{restless} turns came to no rest");
    let known = stand.controller.metric("instance_access_ledger_grants").await?;
    anyhow::ensure!(known >= 500.0, "{known} are known");
    Ok(())
}

/// How many requests come and go under the eyes of so many readers.
const WATCHED: usize = 60;
const READERS: usize = 4;

async fn sixty_that_come_and_go_while_its_metrics_are_read_all_the_time_leave_it_alive() -> Outcome {
    // As on a larger machine: with a thread or two, locks that are taken in two orders hardly ever meet.
    let stand =
        Stand::own(Special { env: vec![("TOKIO_WORKER_THREADS", "8".to_owned())], ..Special::default() }).await?;
    let id = stand.running();
    let read = async |path: &'static str| -> anyhow::Result<()> {
        loop {
            let (status, page) = stand.controller.page(path).await.with_context(|| format!("no answer to {path}"))?;
            anyhow::ensure!(status == 200, "{path}: {status} {page}");
            // A pace, not a wait: four readers without one would take both cores from what they read of.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let come_and_go = async {
        for number in 0..WATCHED {
            stand.ask(Ask::new(&format!("watched-{number}")).instance(&id)).await?;
        }
        lab::poll::while_it_grows("all to be granted", SOON, async || {
            let all = stand.list().await.map_err(unseen)?;
            match granted(&all) {
                WATCHED => Ok(()),
                granted => Err((granted, format!("{:?}", all.iter().map(shown).collect::<Vec<_>>()))),
            }
        })
        .await?;
        stand.delete_all("alice").await?;
        // Their last keys fade first.
        lab::poll::while_it_grows("all to go", SOON, async || gone(&stand, WATCHED).await).await?;
        anyhow::Ok(())
    };
    tokio::select! {
        done = come_and_go => done?,
        failed = futures::future::select_all((0..READERS).map(|_| Box::pin(read("/metrics")))) => failed.0?,
        failed = read("/livez") => failed?,
    }
    anyhow::ensure!(records(&stand, "Ended").len() == WATCHED, "{} ends are on record", records(&stand, "Ended").len());
    Ok(())
}
