//! Several controllers, of which one leads: it dies, freezes, is told to go, loses sight of the API server or its lease.

use std::time::{Duration, Instant};

use anyhow::Context;
use instance_access::api::InstanceAccess;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;

use crate::days;
use crate::stand::{Ask, Controller, Day, Outcome, SOON, Special, Stand, expiration, reason, shown};

pub fn days() -> Vec<(&'static str, Day)> {
    days![
        a_leader_that_is_killed_is_followed_and_one_that_stops_is_followed_at_once,
        a_leader_that_freezes_longer_than_its_lease_does_nothing_when_it_wakes,
        a_leader_whose_lease_is_taken_or_deleted_ends_and_there_is_never_a_second_one,
    ]
}

const LEASE: &str = "instance-access/controller";

async fn two() -> anyhow::Result<(Stand, Controller)> {
    let env = vec![("INSTANCE_ACCESS_LEASE", LEASE.to_owned())];
    let rbac: fn(&str) -> String =
        |rights| format!("{rights}\n---\n{}", include_str!("../../examples/lease-rbac.yaml"));
    let stand = Stand::own(Special { env, rbac: Some(rbac), ..Special::default() }).await?;
    leads(&stand.controller).await?;
    let other = stand.controller.beside("other")?;
    other.start()?;
    until_log(&other, "stands by").await?;
    // Whoever stands by is ready: it sees that somebody leads.
    other.until_ready().await?;
    Ok((stand, other))
}

async fn until_log(controller: &Controller, words: &str) -> Outcome {
    lab::poll::until(words, SOON, async || match controller.log_of(words) {
        found if found.is_empty() => Err(controller.log_of("")),
        _ => Ok(()),
    })
    .await
}

async fn leads(controller: &Controller) -> Outcome {
    until_log(controller, "opened the audit trail").await
}

async fn gone(controller: &Controller) -> anyhow::Result<std::process::ExitStatus> {
    lab::poll::until("the controller to end", SOON, async || controller.death().ok_or("it runs")).await
}

async fn a_leader_that_is_killed_is_followed_and_one_that_stops_is_followed_at_once() -> Outcome {
    let (stand, other) = two().await?;
    let (id, others) = (stand.running(), stand.running());
    stand.ask(Ask::new("before").instance(&id).ends_in(130)).await?;
    stand.until_granted("before").await?;
    anyhow::ensure!(stand.controller.death().is_none(), "the first one leads");

    stand.controller.kill();
    let killed = Instant::now();
    stand.ask(Ask::new("after").instance(&others)).await?;
    leads(&other).await?;
    stand.until_granted("after").await?;
    let followed = killed.elapsed();
    eprintln!("a grant {:.1} s after kill -9 of the leader", followed.as_secs_f64());
    anyhow::ensure!(followed > Duration::from_secs(2), "the lease was not waited for: {followed:?}");
    anyhow::ensure!(followed < Duration::from_secs(30), "{followed:?}");

    // The other way round, and this time it steps down.
    let third = stand.controller.beside("third")?;
    third.start()?;
    until_log(&third, "stands by").await?;
    other.signal("-TERM").await?;
    let told = Instant::now();
    anyhow::ensure!(gone(&other).await?.success(), "{}", other.log_of("error"));
    stand.ask(Ask::new("at-last").instance(&others)).await?;
    stand.until_granted("at-last").await?;
    let followed = told.elapsed();
    eprintln!("a grant {:.1} s after SIGTERM to the leader", followed.as_secs_f64());
    anyhow::ensure!(!other.log_of("gave the lease back").is_empty(), "the lease was not given back");
    anyhow::ensure!(followed < Duration::from_secs(30), "{followed:?}");

    // What the first one granted, the third ends, on time and once; and it is one chain.
    let ended = stand.ended_well("before", &id).await?;
    anyhow::ensure!(reason(&ended) == "Expired", "{}", shown(&ended));
    let records = ["GrantIntended", "Granted", "Ended"].map(|kind| third.recorded(&ended, kind));
    anyhow::ensure!(records == [1, 1, 1], "records {records:?}");
    let after = stand.get("after").await?;
    let said = third.verify(&[&ended, &after]).await?;
    anyhow::ensure!(said.contains("in 3 segments"), "{said}");
    third.signal("-TERM").await?;
    gone(&third).await?;
    let lease = lease(&stand).await?;
    let head = lease.metadata.annotations.unwrap_or_default().remove("instanceaccess.dev/audit-head");
    let head = head.context("the lease names the head of the trail")?;
    anyhow::ensure!(third.verify(&[]).await?.contains(&head), "{head} is not the trail's head");
    Ok(())
}

async fn lease(stand: &Stand) -> anyhow::Result<Lease> {
    let leases: Api<Lease> = Api::namespaced(stand.client("admin").await?, "instance-access");
    Ok(leases.get("controller").await?)
}

async fn a_leader_that_freezes_longer_than_its_lease_does_nothing_when_it_wakes() -> Outcome {
    let (stand, other) = two().await?;
    let id = stand.running();
    stand.ask(Ask::new("frozen").instance(&id).ends_in(150)).await?;
    let granted = stand.until_granted("frozen").await?;
    let frozen = Timestamp::now();
    stand.controller.signal("-STOP").await?;
    until_log(&other, "leads").await?;
    // It has the trail's lock, even now: so nothing is granted and no key is pushed; ends go on.
    until_log(&other, "has not let go of the audit trail").await?;
    // Its next push is overdue when it wakes.
    let due = expiration(&granted)? - SignedDuration::from_secs(150 - 47);
    let until_due = Duration::try_from(due.duration_since(Timestamp::now())).unwrap_or_default();
    tokio::time::sleep(until_due).await;
    let pushes = stand.pushes(&id).len();
    anyhow::ensure!(pushes == 1, "{pushes} pushes, although nobody can record one");
    stand.controller.signal("-CONT").await?;
    let status = gone(&stand.controller).await?;
    anyhow::ensure!(!status.success(), "who lost its lease says so");
    anyhow::ensure!(
        stand.controller.log_of("the lease").contains("renewed in time"),
        "{}",
        stand.controller.log_of("")
    );
    // Without it the trail is free, and the new leader goes on where it stopped.
    leads(&other).await?;
    let opened = Timestamp::now();
    stand.ask(Ask::new("thawed").instance(&stand.running())).await?;
    stand.until_granted("thawed").await?;
    let ended = stand.ended_well("frozen", &id).await?;
    anyhow::ensure!(reason(&ended) == "Expired", "{}", shown(&ended));
    // All that is between is silence: the deposed one appended nothing, and nothing was pushed before its successor could
    // say so.
    let text = std::fs::read_to_string(other.audit())?;
    let times = text.lines().map(|line| -> anyhow::Result<(Timestamp, bool)> {
        let line: serde_json::Value = serde_json::from_str(line)?;
        let time = line["time"].as_str().context("a time")?.parse()?;
        Ok((time, line["record"]["kind"] == "SegmentOpened"))
    });
    let times = times.collect::<anyhow::Result<Vec<_>>>()?;
    let second = times.iter().rposition(|(_, opens)| *opens).context("a segment")?;
    anyhow::ensure!(second > 0 && times[second].0 <= opened, "the successor opened a segment of its own");
    anyhow::ensure!(times[..second].iter().all(|(time, _)| *time <= frozen), "the deposed one appended: {text}");
    let pushes = stand.pushes(&id);
    anyhow::ensure!(pushes.len() >= 2, "the successor pushed: {pushes:?}");
    anyhow::ensure!(pushes[1..].iter().all(|push| push.time >= times[second].0), "the deposed one pushed: {pushes:?}");
    other.verify(&[&ended]).await?;
    Ok(())
}

async fn a_leader_whose_lease_is_taken_or_deleted_ends_and_there_is_never_a_second_one() -> Outcome {
    let (stand, other) = two().await?;
    let leases: Api<Lease> = Api::namespaced(stand.client("admin").await?, "instance-access");
    leases.delete("controller", &DeleteParams::default()).await?;
    gone(&stand.controller).await?;
    let ended = Instant::now();
    anyhow::ensure!(other.log_of("leads").is_empty(), "a second one leads: {}", other.log_of("leads"));
    leads(&other).await?;
    anyhow::ensure!(ended.elapsed() > Duration::from_secs(2), "a lease that is new is nobody's for a while");
    // Somebody writes another name into it.
    let mallory = json!({"spec": {"holderIdentity": "mallory"}});
    leases.patch("controller", &PatchParams::default(), &Patch::Merge(mallory)).await?;
    let status = gone(&other).await?;
    anyhow::ensure!(!status.success() && !other.log_of("not ours any more").is_empty(), "{}", other.log_of("error"));
    // And never renews it: so the next one leads.
    stand.controller.start()?;
    let id = stand.running();
    stand.ask(Ask::new("still").instance(&id)).await?;
    stand.until_granted("still").await?;
    // A head that is none, or none of this trail's, keeps grants back and no end.
    let broken = async |head: &str, words: &str, name: &str| {
        stand.controller.signal("-TERM").await?;
        gone(&stand.controller).await?;
        let broken = json!({"metadata": {"annotations": {"instanceaccess.dev/audit-head": head}}});
        leases.patch("controller", &PatchParams::default(), &Patch::Merge(broken)).await?;
        stand.controller.start()?;
        until_log(&stand.controller, words).await?;
        stand.ask(Ask::new(name).instance(&id)).await?;
        stand.until(name, "AuditUnavailable", &[]).await
    };
    broken("far", "is no SEQUENCE:DIGEST", "not-now").await?;
    stand.delete("alice", "still").await?;
    // It stays until its end is on record, and has ended.
    let over = |object: &InstanceAccess| match reason(object) {
        "Released" => Ok(()),
        _ => Err(shown(object)),
    };
    stand.until_within("still", "Released", Duration::from_secs(90), over).await?;
    broken(&format!("99999:{}", "a".repeat(64)), "not the one that the lease names", "nor-now").await?;
    Ok(())
}
