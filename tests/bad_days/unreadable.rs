//! A decision that was stored under a bent CRD, and cannot be decoded: it may be a no.

use std::time::Duration;

use anyhow::Context;
use serde_json::json;

use crate::api_server::relaxed;
use crate::days;
use crate::stand::{Ask, Day, NAMESPACE, Outcome, SOON, Special, Stand, apply, is, reason, tell};

pub fn days() -> Vec<(&'static str, Day)> {
    days![a_decision_that_cannot_be_read_keeps_keys_away_until_an_administrator_deletes_it]
}

/// A key's window, and what it takes to see that it is over.
const FADED: Duration = Duration::from_secs(120);

async fn a_decision_that_cannot_be_read_keeps_keys_away_until_an_administrator_deletes_it() -> Outcome {
    let stand = Stand::own(Special::default()).await?;
    let (held_on, other_on) = (stand.running(), stand.running());
    stand.ask(Ask::new("held").instance(&held_on)).await?;
    stand.ask(Ask::new("other").instance(&other_on)).await?;
    stand.until_granted("other").await?;
    let uid = stand.until_granted("held").await?.metadata.uid.context("a uid")?;

    let crds = tell(&["crds"]).await?;
    apply(&stand.lab, &relaxed(&crds, &["reason"])).await?;
    let odd = json!({
        "apiVersion": "instanceaccess.dev/v1alpha1",
        "kind": "InstanceAccessDecision",
        "metadata": {"name": "odd", "namespace": NAMESPACE},
        "spec": {"decision": "Deny", "requestRef": {"name": "held", "uid": uid}, "reason": 42},
    });
    lab::poll::until("a decision that cannot be read to be stored", SOON, async || {
        apply(&stand.lab, &odd.to_string()).await.map_err(|error| format!("{error:#}"))
    })
    .await?;
    apply(&stand.lab, &crds).await?;
    stand.controller.until_ready().await?;

    // All stands again, so the other has a key; the one that it is about has none.
    stand
        .until_within("held", "being held back", FADED, |object| {
            is(object, "Stalled", "True")?;
            match reason(object) {
                "DecisionUnreadable" => Ok(()),
                other => Err(other.to_owned()),
            }
        })
        .await?;
    let held = stand.until("held", "DecisionUnreadable", &["the InstanceAccessDecision odd"]).await?;
    anyhow::ensure!(held.status.is_some_and(|status| status.end_time.is_none()), "it was ended");
    let keys = |id: &str| stand.lab.standin().active_keys(id, "ec2-user").len();
    anyhow::ensure!(keys(&held_on) == 0 && keys(&other_on) > 0, "{} and {}", keys(&held_on), keys(&other_on));
    let log = stand.controller.log_of("a decision cannot be decoded");
    anyhow::ensure!(log.contains("name=\"odd\"") && log.contains("holds_back=true"), "the log says {log}");

    let mut delete = stand.lab.kubectl("admin")?;
    delete.args(["delete", "instanceaccessdecision", "odd", "--namespace", NAMESPACE]);
    let deleted = lab::ssh::run(&mut delete).await?;
    anyhow::ensure!(deleted.success(), "kubectl delete: {}", deleted.stderr);
    stand.until_granted("held").await?;
    anyhow::ensure!(
        stand.controller.metric("instance_access_undecodable_objects").await? == 0.0,
        "it is still counted"
    );
    Ok(())
}
