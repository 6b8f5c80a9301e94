//! Ten thousand of everything, as fast as the API server takes it: memory is bounded, and others are served on time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::Context;
use futures::{StreamExt, TryStreamExt};
use instance_access::api::InstanceAccess;
use jiff::Timestamp;
use lab::pace::LateMax;
use serde_json::{Value, json};

use crate::days;
use crate::stand::{
    Ask, DECIDERS, Day, GUARDED, Outcome, SOON, Special, Stand, apply, decide, decision, named, reason,
};

pub fn days() -> Vec<(&'static str, Day)> {
    days![ten_thousand_junk_decisions_and_requests_cost_little_memory_and_delay_neither_grant_nor_end]
}

/// Junk of each kind.
const JUNK: usize = 10_000;
/// Who makes it, one after the other; each has clients at once.
const MAKERS: [&str; 3] = ["mallory", "bob", "sam"];
const CLIENTS: usize = 8;
/// How long a grant may take from what it waited for: a second without the flood, of which the machine is full, and three with
/// it, by the clock. Of what makes the machine slow here the operator is a part, so the clock has the last word.
const GRANT_MAX: LateMax = LateMax::new(20.0, 30.0);
/// Growth of the operator's resident memory, in KiB: a request at rest takes 2.5 KiB (docs/performance.md), so 10,000
/// take 25 MiB; a thousand orphans take one; as much again for what waits and for what the allocator keeps.
const GROWTH_KIB_MAX: u64 = 60 << 10;
/// The decisions that may be kept: 1024 whose request is not known, and a handful of honest ones.
const KEPT_MAX: f64 = 1040.0;

/// What nobody waits for: noes about requests that there are not, and all kinds of words about one that there is, by
/// people whom no policy names.
fn junk(number: usize, besieged: &InstanceAccess) -> anyhow::Result<Value> {
    let nobody = format!("00000000-0000-4000-8000-{number:012x}");
    let uid = besieged.metadata.uid.as_deref().context("a uid")?;
    let digest = besieged.status.as_ref().and_then(|status| status.spec_digest.as_deref()).context("a digest")?;
    let name = format!("junk-{number}");
    Ok(match number % 4 {
        // More than there is room for within a minute, also where the machine takes four minutes for all of it.
        kind if number < JUNK / 2 => {
            decision(&name, "besieged", if kind % 2 == 0 { "Deny" } else { "Revoke" }, &nobody, digest)
        }
        0 => decision(&name, "besieged", "Approve", &nobody, digest),
        1 => decision(&name, "besieged", "Approve", uid, digest),
        2 => decision(&name, "besieged", "Deny", uid, digest),
        _ => decision(&name, "besieged", "Revoke", uid, digest),
    })
}

fn resident_kib(stand: &Stand) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", stand.controller.pid().context("it runs")?))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("a size")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

async fn ten_thousand_junk_decisions_and_requests_cost_little_memory_and_delay_neither_grant_nor_end() -> Outcome {
    let stand = Stand::own(Special::default()).await?;
    apply(&stand.lab, DECIDERS).await?;
    apply(&stand.lab, GUARDED).await?;
    stand.until_policy("guarded", "True").await?;
    let (besieged_on, ending_on, quick_on) = (stand.running(), stand.running(), stand.running());
    stand.create("carol", &Ask::new("besieged").instance(&besieged_on)).await?;
    let besieged = stand.until("besieged", "PendingApproval", &["Group leads"]).await?;
    let before = resident_kib(&stand)?;
    // It ends in the thick of the flood.
    let ending = stand.granted_for(|| Ask::new("ending").instance(&ending_on).ends_in(78)).await?;
    let (ending, _) = named(&ending)?;

    let made = AtomicUsize::new(0);
    let begun = Instant::now();
    let flood = async {
        let mut makers = Vec::new();
        for who in MAKERS {
            makers.push(stand.client(who).await?);
        }
        let one = async |number: usize| {
            let who = number % MAKERS.len();
            decide(&makers[who], &junk(number, &besieged)?).await?;
            let target = json!({"instanceId": format!("i-{number:017x}")});
            // bob is a developer, and admitted to whatever there is: nothing is there, and he is told to wait.
            let ask = Ask::new(&format!("junk-{number}")).with("target", target);
            stand.create(MAKERS[who], &ask).await.with_context(|| ask.name.clone())?;
            made.fetch_add(1, Ordering::Relaxed);
            anyhow::Ok(())
        };
        let all = futures::stream::iter(0..JUNK).map(one).buffer_unordered(CLIENTS * MAKERS.len());
        all.try_collect::<Vec<()>>().await?;
        anyhow::Ok(begun.elapsed())
    };
    let honest = async {
        lab::poll::until_ok("the thick of it", SOON, || match made.load(Ordering::Relaxed) {
            made if made >= JUNK / 5 => Ok(()),
            made => Err(format!("{made} made")),
        })
        .await?;
        // None of it moved her request.
        let still = stand.get("besieged").await?;
        anyhow::ensure!(reason(&still) == "PendingApproval", "it is {}", reason(&still));
        let kept = stand.controller.metric("instance_access_decisions_kept").await?;
        anyhow::ensure!(kept <= KEPT_MAX, "{kept} decisions are kept");
        let asked_time = Timestamp::now();
        stand.ask(Ask::new("quick").instance(&quick_on)).await?;
        stand.until_granted("quick").await?;
        let quick = lab::pace::soon("a grant", asked_time, Timestamp::now(), GRANT_MAX).await?;
        let digest = besieged.status.as_ref().and_then(|status| status.spec_digest.clone()).context("a digest")?;
        let uid = besieged.metadata.uid.clone().context("a uid")?;
        let asked_time = Timestamp::now();
        decide(&stand.client("erin").await?, &decision("honest", "besieged", "Approve", &uid, &digest)).await?;
        let granted = stand.until_granted("besieged").await?;
        let approved = lab::pace::soon("a grant upon a yes", asked_time, Timestamp::now(), GRANT_MAX).await?;
        let status = granted.status.context("a status")?;
        let approvers: Vec<&str> = status.approvals.iter().map(|told| told.approver.as_str()).collect();
        anyhow::ensure!(approvers == ["erin"], "approved by {approvers:?}");
        anyhow::Ok((quick, approved, made.load(Ordering::Relaxed)))
    };
    let (flood, honest, ended) = tokio::join!(flood, honest, stand.ended_well(&ending, &ending_on));
    let (flood, (quick, approved, at)) = (flood.context("the flood")?, honest?);
    ended?;

    let all_known = async || match stand.controller.metric("instance_access_requests").await {
        Ok(known) if known >= JUNK as f64 => Ok(()),
        Ok(known) => Err((known as usize, known.to_string())),
        Err(error) => Err((0, format!("{error:#}"))),
    };
    lab::poll::while_it_grows("the operator to have heard of all of it", SOON, all_known).await?;
    let (after, kept) = (resident_kib(&stand)?, stand.controller.metric("instance_access_decisions_kept").await?);
    let reread = std::fs::read_to_string(stand.controller.log())?.matches("decisions are read again").count();
    eprintln!(
        "flood: {} of each in {flood:.0?}, quick {quick:.1} s, approved {approved:.1} s when {at} were made, {before} to {after} KiB, {kept} decisions kept, read again {reread} times",
        JUNK
    );
    anyhow::ensure!(at < JUNK, "the flood was over before the honest were served");
    anyhow::ensure!(kept <= KEPT_MAX, "{kept} decisions are kept");
    anyhow::ensure!(after.saturating_sub(before) < GROWTH_KIB_MAX, "memory grew from {before} to {after} KiB");
    // There was no room for some, so the list was read again; and not each time that one looked.
    let looks = usize::try_from(begun.elapsed().as_secs())? / 15;
    anyhow::ensure!((1..=looks.div_ceil(2)).contains(&reread), "read again {reread} times in {looks} looks");
    let restless = stand.controller.metric("instance_access_restless_turns_total").await?;
    anyhow::ensure!(restless == 0.0, "{restless} turns came to no rest");
    stand.controller.verify(&[]).await?;
    Ok(())
}
