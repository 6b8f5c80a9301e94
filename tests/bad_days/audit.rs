//! The audit trail's disk is full, or somebody else has the file: no new grants, and running ones end on time.

use std::path::PathBuf;

use anyhow::Context;
use instance_access::api::InstanceAccess;
use serde_json::json;

use crate::days;
use crate::long_trail::{files, lengthen};
use crate::stand::{Ask, Day, Disk, Outcome, SOON, Special, Stand, is, named, reason, shared, shown, tell};

pub fn days() -> Vec<(&'static str, Day)> {
    days![
        a_full_disk_stops_new_grants_and_no_end_and_heals_when_there_is_room,
        a_controller_that_starts_on_a_full_disk_ends_what_runs_and_heals_when_there_is_room,
        a_second_controller_on_the_same_audit_file_is_refused_in_clear_words,
        a_full_audit_file_is_closed_under_live_grants_and_the_trail_goes_on_over_kills,
    ]
}

async fn on_a_small_disk() -> anyhow::Result<Stand> {
    Stand::own(Special { disk: Some(Disk::new()?), ..Special::default() }).await
}

fn fill(stand: &Stand) -> Outcome {
    stand.controller.disk().fill(stand.controller.pid(), &stand.controller.disk().dir().join("audit.jsonl"))
}

fn free(stand: &Stand) -> Outcome {
    stand.controller.disk().free(stand.controller.pid())
}

/// Asks until a request finds the disk full: the trail's last page may have room for a record or two. Returns that
/// request's name and its instance.
async fn until_full(stand: &Stand, prefix: &str) -> anyhow::Result<(String, String)> {
    for number in 0..20 {
        let (name, id) = (format!("{prefix}-{number}"), stand.running());
        stand.ask(Ask::new(&name).instance(&id).with("ttlSeconds", json!(3600))).await?;
        let object = stand
            .until_within(&name, "granted, or told of the disk", SOON, |object| match reason(object) {
                "AuditUnavailable" | "Granted" => Ok(object.clone()),
                _ => Err(shown(object)),
            })
            .await?;
        if reason(&object) == "AuditUnavailable" {
            return Ok((name, id));
        }
    }
    anyhow::bail!("a full disk takes every record")
}

/// What must be made up for once there is room.
async fn until_made_up(stand: &Stand, name: &str) -> anyhow::Result<InstanceAccess> {
    let pointed = |object: &InstanceAccess| match object.status.as_ref().and_then(|status| status.audit.as_ref()) {
        Some(_) => Ok(object.clone()),
        None => Err("status.audit is missing".to_owned()),
    };
    let object = stand.until_within(name, "on record", SOON, pointed).await?;
    let ends = stand.controller.recorded(&object, "Ended");
    anyhow::ensure!(ends == 1, "{name} has {ends} records of its end");
    Ok(object)
}

async fn a_full_disk_stops_new_grants_and_no_end_and_heals_when_there_is_room() -> Outcome {
    let stand = on_a_small_disk().await?;
    let (revoked, deleted) = (stand.running(), stand.running());
    stand.ask(Ask::new("revoked").instance(&revoked).with("ttlSeconds", json!(600))).await?;
    stand.ask(Ask::new("deleted").instance(&deleted).with("ttlSeconds", json!(600))).await?;
    for name in ["revoked", "deleted"] {
        stand.until_granted(name).await?;
    }
    let (short, short_id) =
        named(&stand.granted_for(|| Ask::new("short").instance(&stand.running()).ends_in(90)).await?)?;

    fill(&stand)?;
    let (held, held_id) = until_full(&stand, "held").await?;
    let words = ["the audit trail takes no record", "nothing is granted without one", "an administrator must look"];
    let object = stand.until(&held, "AuditUnavailable", &words).await?;
    is(&object, "Reconciling", "True").map_err(anyhow::Error::msg)?;
    anyhow::ensure!(object.status.as_ref().is_some_and(|status| status.grant.is_none()), "{held} has a grant");
    let full = std::fs::metadata(stand.controller.audit())?.len();

    // Ends need no room.
    stand.merge("alice", "revoked", json!({"spec": {"revoke": {"reason": "done"}}})).await?;
    stand.until("revoked", "RevocationPending", &["spec.revoke was set: done"]).await?;
    stand.delete("alice", "deleted").await?;
    stand.until("deleted", "RevocationPending", &["the request was deleted"]).await?;
    let (ended, taken_back, released) = tokio::join!(
        stand.ended_well(&short, &short_id),
        stand.ended_well("revoked", &revoked),
        stand.ended_well("deleted", &deleted),
    );
    let ended = ended?;
    taken_back?;
    // It stays for as long as its end is not on record.
    let released = released?;
    let missing = ended.status.as_ref().context("status")?.audit.is_none();
    anyhow::ensure!(missing, "the end points at a record that a full disk cannot hold");
    anyhow::ensure!(stand.pushes(&held_id).is_empty(), "a key was pushed without a record");
    anyhow::ensure!(std::fs::metadata(stand.controller.audit())?.len() == full, "something was written to a full disk");
    stand.controller.verify(&[]).await?;

    free(&stand)?;
    stand.until_granted(&held).await?;
    let short = until_made_up(&stand, &short).await?;
    let revoked = until_made_up(&stand, "revoked").await?;
    lab::poll::until("the deleted request to be gone", SOON, async || match stand.get("deleted").await {
        Ok(object) => Err(shown(&object)),
        Err(_) => Ok(()),
    })
    .await?;
    anyhow::ensure!(stand.controller.recorded(&released, "Ended") == 1, "the end of what was deleted is not on record");
    let held = stand.get(&held).await?;
    stand.controller.intended_once(&held)?;
    stand.controller.verify(&[&short, &revoked, &held]).await?;
    Ok(())
}

async fn a_controller_that_starts_on_a_full_disk_ends_what_runs_and_heals_when_there_is_room() -> Outcome {
    let stand = on_a_small_disk().await?;
    let running = stand.granted_for(|| Ask::new("running").instance(&stand.running()).ends_in(100)).await?;
    let (running, id) = named(&running)?;
    fill(&stand)?;
    until_full(&stand, "filler").await?;
    stand.controller.kill();
    stand.controller.start()?;
    if stand.controller.pid().is_some() && !is_root() {
        // The limit was the old process's.
        fill(&stand)?;
    }
    stand.controller.until_ready().await?;
    let waiting = stand.running();
    stand.ask(Ask::new("waiting").instance(&waiting)).await?;
    stand.until("waiting", "AuditUnavailable", &["the audit trail takes no record"]).await?;
    stand.ended_well(&running, &id).await?;
    anyhow::ensure!(stand.controller.death().is_none(), "the controller died of a full disk");
    anyhow::ensure!(stand.pushes(&waiting).is_empty(), "a key was pushed without a record");

    free(&stand)?;
    let granted = stand.until_granted("waiting").await?;
    let running = until_made_up(&stand, &running).await?;
    stand.controller.verify(&[&running, &granted]).await?;
    Ok(())
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|it| std::os::unix::fs::MetadataExt::uid(&it) == 0)
}

async fn a_second_controller_on_the_same_audit_file_is_refused_in_clear_words() -> Outcome {
    let stand = shared().await?;
    let (status, said) = stand.controller.start_another().await?;
    anyhow::ensure!(status == Some(1), "it ended with {status:?}: {said}");
    let audit = stand.controller.audit();
    for words in ["another process writes to it", "each trail has one writer", audit.to_str().context("UTF-8")?] {
        anyhow::ensure!(said.contains(words), "{words:?} is not in: {said}");
    }
    // The first one goes on.
    let id = stand.running();
    stand.ask(Ask::new("beside-another").instance(&id)).await?;
    let object = stand.until_granted("beside-another").await?;
    stand.controller.verify(&[&object]).await?;
    Ok(())
}

async fn a_full_audit_file_is_closed_under_live_grants_and_the_trail_goes_on_over_kills() -> Outcome {
    let env = vec![("INSTANCE_ACCESS_AUDIT_FILE_MAX_MEBIBYTES", "1".to_owned())];
    let stand = Stand::own(Special { env, ..Special::default() }).await?;
    let audit = stand.controller.audit();
    let mut objects = Vec::new();
    let ids = [stand.running(), stand.running(), stand.running()];
    for (number, id) in ids.iter().enumerate() {
        let name = format!("file-{number}");
        stand.ask(Ask::new(&name).instance(id).ends_in(150)).await?;
        objects.push(stand.until_granted(&name).await?);
        if number < 2 {
            stand.controller.kill();
            lengthen(&audit).await?;
            stand.controller.start()?;
            stand.controller.until_ready().await?;
        }
    }
    anyhow::ensure!(stand.controller.metric("instance_access_audit_files_closed_total").await? == 1.0);
    // Those of the first files are known and end, and nothing is granted twice.
    for (number, id) in ids.iter().enumerate() {
        objects.push(stand.ended_well(&format!("file-{number}"), id).await?);
    }
    let files = files(&audit)?;
    anyhow::ensure!(files.len() == 3, "{files:?}");
    let mut arguments = vec!["audit".to_owned(), "verify".to_owned()];
    for object in &objects {
        let pointer = object.status.as_ref().and_then(|status| status.audit.as_ref()).context("status.audit")?;
        arguments.push(format!("--head={}:{}", pointer.sequence, pointer.digest));
    }
    let verified = async |files: &[PathBuf]| {
        let files = files.iter().map(|path| path.display().to_string());
        let arguments: Vec<String> = arguments.iter().cloned().chain(files).collect();
        tell(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).await
    };
    verified(&files).await?;
    for missing in 0..files.len() {
        let mut rest = files.clone();
        let missing = rest.remove(missing);
        anyhow::ensure!(verified(&rest).await.is_err(), "{} is not missed", missing.display());
    }
    Ok(())
}
