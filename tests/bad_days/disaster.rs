//! Disasters, as docs/disaster.md tells them: etcd goes back to an older copy, the API server is away for long, the operator
//! is removed before what it looks after.

use std::time::Duration;

use anyhow::Context;
use instance_access::api::InstanceAccess;
use jiff::Timestamp;
use serde_json::json;

use crate::days;
use crate::stand::{
    Ask, Controller, DECIDERS, Day, GUARDED, Outcome, SOON, Special, Stand, apply, decide, decision, expiration, is,
    named, reason, shown,
};

pub fn days() -> Vec<(&'static str, Day)> {
    days![
        an_etcd_that_is_restored_under_a_running_operator_gives_nothing_twice_and_is_heard,
        an_operator_that_starts_on_a_restored_etcd_gives_nothing_twice_by_its_trail,
        a_replica_that_stood_by_and_leads_after_a_restore_gives_nothing_twice_by_what_it_heard,
        over_a_long_silence_of_the_api_server_two_replicas_end_on_time_and_go_on,
        a_trail_that_is_taken_away_stops_grants_and_is_gone_on_with_when_it_is_back,
        what_stays_behind_a_removed_operator_is_taken_over_or_let_go_as_the_page_says,
    ]
}

async fn kubectl(stand: &Stand, arguments: &[&str]) -> anyhow::Result<String> {
    let done = lab::ssh::run(stand.lab.kubectl("admin")?.args(arguments)).await?;
    anyhow::ensure!(done.success(), "kubectl {arguments:?}: {}{}", done.stdout, done.stderr);
    Ok(done.stdout)
}

/// Waits until access has ended, or is being taken back.
async fn until_taken_back(stand: &Stand, name: &str) -> anyhow::Result<InstanceAccess> {
    stand
        .until_within(name, "taken back", SOON, |object| match reason(object) {
            "RevocationPending" | "Revoked" => Ok(object.clone()),
            _ => Err(shown(object)),
        })
        .await
}

async fn until_ended(stand: &Stand, name: &str) -> anyhow::Result<InstanceAccess> {
    stand.until_within(name, "ended", SOON + SOON, |object| is(object, "Ended", "True")).await
}

async fn until_gone(stand: &Stand, name: &str, bound: Duration) -> Outcome {
    lab::poll::until(&format!("{name} to be gone"), bound, async || match stand.get(name).await {
        Ok(object) => Err(shown(&object)),
        Err(error) if error.to_string().contains("not found") => Ok(()),
        Err(error) => Err(format!("{error:#}")),
    })
    .await
}

async fn an_etcd_that_is_restored_under_a_running_operator_gives_nothing_twice_and_is_heard() -> Outcome {
    // Without `--bump-revision`, as it should not be done: what was told before is told again under the same numbers.
    restored(Stand::own(Special::default()).await?, 0, Survivor::Running).await
}

async fn an_operator_that_starts_on_a_restored_etcd_gives_nothing_twice_by_its_trail() -> Outcome {
    restored(Stand::own(Special::with_long_lease()).await?, 1_000_000_000, Survivor::Restarted).await
}

async fn a_replica_that_stood_by_and_leads_after_a_restore_gives_nothing_twice_by_what_it_heard() -> Outcome {
    restored(Stand::own(Special::with_long_lease()).await?, 1_000_000_000, Survivor::StoodBy).await
}

/// Who is there after a restore.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Survivor {
    /// The operator that was, all the while.
    Running,
    /// It was stopped, and is started after.
    Restarted,
    /// It is gone, and another one leads, whose trail is empty.
    StoodBy,
}

/// Takes a copy of etcd; grants, revokes, refuses and deletes after it; and puts the copy back.
async fn restored(stand: Stand, bump_revision: u64, survivor: Survivor) -> Outcome {
    let other = stand.controller.apart("other")?;
    if survivor == Survivor::StoodBy {
        other.start()?;
        other.until_ready().await?;
    }
    let leader = if survivor == Survivor::StoodBy { &other } else { &stand.controller };
    let hour = json!(3600);
    let [kept, revoked, deleted] = ["kept", "revoked", "deleted"].map(|name| (name, stand.running()));
    for (name, id) in [&kept, &revoked, &deleted] {
        stand.ask(Ask::new(name).instance(id).with("ttlSeconds", hour.clone())).await?;
        stand.until_granted(name).await?;
    }
    let waiting = || stand.instance(|instance| instance.state = "pending".to_owned());
    let [ended, denied, resumed] = ["ended", "denied", "resumed"].map(|name| (name, waiting()));
    for (name, id) in [&ended, &denied, &resumed] {
        stand.ask(Ask::new(name).instance(id).with("ttlSeconds", hour.clone())).await?;
        stand.until(name, "InstanceNotRunning", &[]).await?;
    }
    apply(&stand.lab, DECIDERS).await?;
    apply(&stand.lab, GUARDED).await?;
    stand.until_policy("guarded", "True").await?;
    let approved = ("approved", stand.running());
    stand.create("carol", &Ask::new(approved.0).instance(&approved.1).with("ttlSeconds", hour.clone())).await?;
    let asked = stand.until(approved.0, "PendingApproval", &["Group leads"]).await?;
    let yes = async |name: &str| {
        let digest = asked.status.as_ref().and_then(|status| status.spec_digest.as_deref()).context("a digest")?;
        let uid = asked.metadata.uid.as_deref().context("a uid")?;
        decide(&stand.client("erin").await?, &decision(name, approved.0, "Approve", uid, digest)).await
    };
    stand.ask(Ask::new("withdrawn").instance(&waiting())).await?;
    stand.until("withdrawn", "InstanceNotRunning", &[]).await?;
    let snapshot = stand.lab.dir().join("snapshot.db");
    // Who ran through it hears of the requests in the copy, and for a while not of the policies.
    let reads_late = survivor == Survivor::Running;
    if reads_late {
        stand.may_read_policies(false).await?;
    }
    stand.lab.snapshot_etcd(&snapshot).await?;
    if reads_late {
        stand.may_read_policies(true).await?;
    }

    let deny = format!(
        "apiVersion: instanceaccess.dev/v1alpha1\nkind: InstanceAccessPolicy\nmetadata: {{name: not-there}}\nspec:\n  \
         effect: Deny\n  subjects: [{{kind: Group, name: developers}}]\n  namespaces: [team]\n  \
         targets: {{instanceIds: [{}]}}\n  osUsers: ['*']\n",
        denied.1
    );
    apply(&stand.lab, &deny).await?;
    stand.until_denied(denied.0, "DeniedByPolicy", &["not-there"]).await?;
    for (_, id) in [&ended, &denied, &resumed] {
        stand.instance(|instance| instance.id.clone_from(id));
    }
    stand.until_granted(ended.0).await?;
    let before = stand.until_granted(resumed.0).await?;
    yes("once").await?;
    let approved_before = stand.until_granted(approved.0).await?;
    for name in [ended.0, revoked.0] {
        stand.merge("alice", name, json!({"spec": {"revoke": {"reason": "done"}}})).await?;
    }
    stand.delete("alice", deleted.0).await?;
    stand.delete("alice", "withdrawn").await?;
    let (first, second, third) = tokio::join!(
        until_ended(&stand, ended.0),
        until_ended(&stand, revoked.0),
        until_gone(&stand, deleted.0, SOON + SOON),
    );
    let over = [first?, second?];
    third?;

    if survivor != Survivor::Running {
        stand.controller.kill();
    }
    stand.lab.restore_etcd(&snapshot, bump_revision).await?;
    let back = Timestamp::now();
    stand.lab.start_api_server().await?;
    if survivor == Survivor::Restarted {
        stand.controller.start()?;
    }
    if reads_late {
        let object = until_taken_back(&stand, revoked.0).await?;
        anyhow::ensure!(shown(&object).contains("ended, or began to be"), "{}", shown(&object));
        // By the policy that the copy does not have it would be refused now, for good. Told after a minute that it waits.
        let waits = stand.get(denied.0).await?;
        anyhow::ensure!(["InstanceNotRunning", "ContactLost"].contains(&reason(&waits)), "{}", shown(&waits));
        stand.may_read_policies(true).await?;
    }
    if survivor == Survivor::Running {
        leader.until_ready().await?;
    } else {
        // Whoever stands by is ready, and waits out the lease first.
        lab::poll::until("somebody to lead", SOON, async || match leader.metric("instance_access_leader").await {
            Ok(1.0) => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await?;
    }
    // They are as they were, and nothing in them tells what came after.
    for name in [ended.0, denied.0] {
        let words = ["the API server does not, as after etcd was restored", "ask by another name"];
        stand.until(name, "Consumed", &words).await?;
    }
    // Of this no record tells: who did not see it go takes it for what it was.
    let withdrawn = if survivor == Survivor::Restarted { "InstanceNotRunning" } else { "Consumed" };
    stand.until("withdrawn", withdrawn, &[]).await?;
    for name in [revoked.0, deleted.0] {
        let object = until_taken_back(&stand, name).await?;
        anyhow::ensure!(shown(&object).contains("ended, or began to be"), "{name}: {}", shown(&object));
    }
    let after = stand.until_granted(resumed.0).await?;
    anyhow::ensure!(expiration(&after)? == expiration(&before)?, "it ends at {} now", expiration(&after)?);
    // The yes is not in the copy.
    stand.until(approved.0, "PendingApproval", &["Group leads"]).await?;
    let unapproved: Vec<_> = stand.pushes(&approved.1).into_iter().filter(|push| push.time > back).collect();
    anyhow::ensure!(unapproved.is_empty(), "let in without a yes: {unapproved:?}");
    yes("again").await?;
    let after_a_yes = stand.until_granted(approved.0).await?;
    let (end, end_before) = (expiration(&after_a_yes)?, expiration(&approved_before)?);
    anyhow::ensure!(end == end_before, "it ends at {end} now, and was to end at {end_before}");

    // Who is hears: a grant that lived goes on, a new one is made, a revocation counts.
    stand.ask(Ask::new("fresh").instance(&stand.running())).await?;
    stand.until_granted("fresh").await?;
    lab::poll::until_ok("a key that is renewed", SOON + SOON, || {
        let renewed = stand.pushes(&kept.1).iter().any(|push| push.time > back);
        if renewed { Ok(()) } else { Err("no push since") }
    })
    .await?;
    stand.merge("alice", kept.0, json!({"spec": {"revoke": {"reason": "done"}}})).await?;
    let heard = until_taken_back(&stand, kept.0).await?;
    anyhow::ensure!(shown(&heard).contains("spec.revoke was set: done"), "{}", shown(&heard));

    for (name, _) in [&revoked, &deleted] {
        until_ended(&stand, name).await?;
    }
    for (name, id) in [&ended, &revoked, &deleted, &denied] {
        let late: Vec<_> = stand.pushes(id).into_iter().filter(|push| push.time > back).collect();
        anyhow::ensure!(late.is_empty(), "{name} was let in again: {late:?}");
    }
    anyhow::ensure!(stand.pushes(&denied.1).is_empty(), "a key was pushed for who was refused");
    anyhow::ensure!(leader.death().is_none(), "the controller died");
    let told = leader.log_of("gone back to an older state");
    anyhow::ensure!(told.is_empty() == (survivor != Survivor::Running), "the log says {told:?}");
    // The receipts of what was forgotten are in the trail for good.
    let mut receipts = vec![&over[0], &over[1]];
    if survivor == Survivor::StoodBy {
        let text = std::fs::read_to_string(other.audit())?;
        anyhow::ensure!(text.contains("EndIntended") && text.contains("Granted"), "it wrote to its own trail: {text}");
    } else {
        receipts.push(&after);
    }
    stand.controller.verify(&receipts).await?;
    Ok(())
}

/// How long the API server is away: longer than a lease (9 s), a write (10 s), the time for which keys are pushed unheard
/// (60 s) and a key's life (60 s) together, so that nothing still waits for an answer of before. By hand, ten minutes.
fn silence() -> Duration {
    let seconds = std::env::var("DISASTER_SILENCE_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(145))
}

async fn over_a_long_silence_of_the_api_server_two_replicas_end_on_time_and_go_on() -> Outcome {
    let stand = Stand::own(Special::with_lease()).await?;
    let other = stand.controller.beside("other")?;
    other.start()?;
    let (revoked, living) = (stand.running(), stand.running());
    let length = json!(2 * silence().as_secs() + 600);
    stand.ask(Ask::new("living").instance(&living).with("ttlSeconds", length.clone())).await?;
    stand.ask(Ask::new("revoked").instance(&revoked).with("ttlSeconds", length)).await?;
    for name in ["living", "revoked"] {
        stand.until_granted(name).await?;
    }
    let over = stand.granted_for(|| Ask::new("over").instance(&stand.running()).ends_in(100)).await?;
    let (end, (over_name, over)) = (expiration(&over)?, named(&over)?);
    stand.merge("alice", "revoked", json!({"spec": {"revoke": {"reason": "done"}}})).await?;
    let closed = expiration(&until_taken_back(&stand, "revoked").await?)?;

    stand.lab.stop_api_server();
    let away = tokio::time::Instant::now();
    let keys = |id: &str| stand.lab.standin().active_keys(id, "ec2-user").len();
    let (mut deaths, mut late) = (0, Vec::new());
    while away.elapsed() < silence() {
        // Whoever cannot renew the lease ends, and is started again, as a kubelet does.
        for one in [&stand.controller, &other] {
            deaths += u32::from(started_again(one)?);
        }
        for (name, id, end) in [("over", &over, end), ("revoked", &revoked, closed)] {
            if Timestamp::now() > end && keys(id) > 0 {
                late.push(name);
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await; // a kubelet's look around, not a wait for anything
    }
    anyhow::ensure!(late.is_empty(), "keys outlived their grants: {late:?}");
    anyhow::ensure!(keys(&living) == 0, "keys are pushed although no revocation would be heard");
    anyhow::ensure!((1..20).contains(&deaths), "{deaths} ends of controllers, which is no loop and not none");

    let back = tokio::time::Instant::now();
    stand.lab.start_api_server().await?;
    let told = async {
        let over = stand.until_within(&over_name, "told", SOON, |object| is(object, "Ended", "True")).await?;
        let taken = until_ended(&stand, "revoked").await?;
        stand.until_granted("living").await?;
        lab::poll::until_ok("a key again", SOON, || if keys(&living) > 0 { Ok(()) } else { Err("none") }).await?;
        anyhow::Ok((over, taken))
    };
    let (ended, taken) = tokio::select! {
        told = told => told?,
        died = kubelet([&stand.controller, &other]) => return Err(died),
    };
    eprintln!("all is told and pushed again {:.0} s after the API server was started", back.elapsed().as_secs_f64());
    for (object, id, end, cause) in [(&ended, &over, end, "Expired"), (&taken, &revoked, closed, "Revoked")] {
        anyhow::ensure!(reason(object) == cause, "{}", shown(object));
        stand.ended_in_fact(object, id).await?;
        let told = object.status.as_ref().and_then(|status| status.end_time.as_ref()).context("endTime")?.0;
        anyhow::ensure!(told == end, "it is said to have ended at {told}, and did at {end}");
        anyhow::ensure!(stand.controller.recorded(object, "Ended") >= 1, "the end is on record");
    }
    stand.controller.verify(&[&ended, &taken]).await?;
    Ok(())
}

/// Starts a controller that ended by itself; whether it had.
fn started_again(controller: &Controller) -> anyhow::Result<bool> {
    let Some(status) = controller.death() else { return Ok(false) };
    anyhow::ensure!(status.code() == Some(1), "it ended with {status}");
    controller.start()?;
    Ok(true)
}

/// Starts controllers that end, until one ends as none should.
async fn kubelet(controllers: [&Controller; 2]) -> anyhow::Error {
    loop {
        for controller in controllers {
            if let Err(died) = started_again(controller) {
                return died;
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await; // a look around, not a wait for anything
    }
}

async fn a_trail_that_is_taken_away_stops_grants_and_is_gone_on_with_when_it_is_back() -> Outcome {
    let stand = Stand::own(Special::default()).await?;
    let (one, two) = (stand.running(), stand.running());
    stand.ask(Ask::new("before").instance(&one)).await?;
    stand.until_granted("before").await?;
    let trail = stand.controller.audit();
    let aside = trail.with_extension("aside");
    std::fs::rename(&trail, &aside)?;
    stand.ask(Ask::new("held").instance(&two)).await?;
    stand.until("held", "AuditUnavailable", &["the audit trail takes no record"]).await?;
    anyhow::ensure!(stand.pushes(&two).is_empty(), "a key was pushed without a record");
    anyhow::ensure!(!trail.exists(), "another trail was begun beside the one that is gone");
    std::fs::rename(&aside, &trail)?;
    let held = stand.until_granted("held").await?;
    anyhow::ensure!(stand.controller.death().is_none(), "it was restarted");
    stand.controller.verify(&[&stand.get("before").await?, &held]).await?;
    Ok(())
}

/// The commands of the page that stand under a heading.
fn commands(heading: &str) -> String {
    let page = include_str!("../../docs/disaster.md");
    let section = page.split_once(&format!("\n## {heading}\n")).expect("the page has the heading").1;
    let section = section.split("\n## ").next().expect("a first piece");
    let blocks = section.split("```sh\n").skip(1).map(|block| block.split("```").next().expect("a first piece"));
    blocks.collect()
}

/// Types them, as the administrator.
async fn type_in(stand: &Stand, commands: &str) -> anyhow::Result<String> {
    let kubectl = stand.lab.kubectl("admin")?;
    let program = std::path::PathBuf::from(kubectl.as_std().get_program());
    let bin = program.parent().context("kubectl lies somewhere")?.display().to_string();
    let path = std::env::var("PATH").unwrap_or_default();
    let mut shell = tokio::process::Command::new("sh");
    shell.args(["-euc", commands]).env("PATH", format!("{bin}:{path}"));
    shell.env("KUBECONFIG", stand.lab.kubeconfig("admin")?);
    let done = lab::ssh::run(&mut shell).await?;
    anyhow::ensure!(done.success(), "{commands}: {}{}", done.stdout, done.stderr);
    Ok(done.stdout)
}

async fn what_stays_behind_a_removed_operator_is_taken_over_or_let_go_as_the_page_says() -> Outcome {
    let stand = Stand::own(Special::default()).await?;
    is_taken_over(&stand).await?;
    is_let_go(&stand).await
}

/// For good: the operator first, then the CRD, by the commands of the page.
async fn is_let_go(stand: &Stand) -> Outcome {
    let (one, two) = (stand.running(), stand.running());
    stand.ask(Ask::new("stuck").instance(&one)).await?;
    stand.ask(Ask::new("also-stuck").instance(&two)).await?;
    stand.until_granted("stuck").await?;
    stand.until_granted("also-stuck").await?;

    let crd = "customresourcedefinition/instanceaccesses.instanceaccess.dev";
    stand.controller.kill();
    kubectl(stand, &["delete", "--wait=false", crd]).await?;
    lab::poll::until("deleting to have begun", SOON, async || match stand.get("stuck").await {
        Ok(object) if object.metadata.deletion_timestamp.is_some() => Ok(()),
        other => Err(format!("{:?}", other.map(|object| object.metadata.deletion_timestamp))),
    })
    .await?;
    // Nobody takes the finalizer off while the policies stand; alice and the administrator are told how.
    let off = json!({"metadata": {"finalizers": null}});
    for who in ["alice", "admin"] {
        let refused = stand.merge(who, "stuck", off.clone()).await.err().context("it was let through")?.to_string();
        anyhow::ensure!(refused.contains("first delete ValidatingAdmissionPolicyBinding"), "{who} is told {refused}");
    }
    let keys = || [&one, &two].map(|id| stand.lab.standin().active_keys(id, "ec2-user").len());
    lab::poll::until_ok("the keys to fade", SOON, || match keys() {
        [0, 0] => Ok(()),
        keys => Err(format!("{keys:?}")),
    })
    .await?;

    type_in(stand, &commands("The operator was removed before its requests")).await?;
    lab::poll::until("the CRD to be gone", SOON, async || match kubectl(stand, &["get", crd]).await {
        Ok(there) => Err(there),
        Err(error) if error.to_string().contains("NotFound") => Ok(()),
        Err(error) => Err(format!("{error:#}")),
    })
    .await?;
    anyhow::ensure!(keys() == [0, 0], "a key was pushed by nobody");
    Ok(())
}

/// Removed, and installed again under the same name.
async fn is_taken_over(stand: &Stand) -> Outcome {
    let [living, gone] = [stand.running(), stand.running()];
    for (name, id) in [("living", &living), ("gone", &gone)] {
        stand.ask(Ask::new(name).instance(id).with("ttlSeconds", json!(3600))).await?;
    }
    for name in ["living", "gone"] {
        stand.until_granted(name).await?;
    }
    let over = stand.granted_for(|| Ask::new("over").instance(&stand.running()).ends_in(100)).await?;
    let (end, (over, _)) = (expiration(&over)?, named(&over)?);
    // As `helm uninstall` does it: all but the CRDs and their objects.
    stand.controller.kill();
    let policies = "validatingadmissionpolicies,validatingadmissionpolicybindings,mutatingadmissionpolicies,mutatingadmissionpolicybindings";
    kubectl(stand, &["delete", policies, "--selector=app.kubernetes.io/part-of=instance-access"]).await?;
    stand.delete("alice", "gone").await?;
    lab::poll::until_ok(
        "the end to pass",
        SOON + SOON,
        || {
            if Timestamp::now() > end { Ok(()) } else { Err("not yet") }
        },
    )
    .await?;
    let pushes = stand.pushes(&living).len();
    apply(
        &stand.lab,
        &crate::stand::tell(&["admission", "--operator-service-account", "instance-access/operator"]).await?,
    )
    .await?;
    stand.controller.start()?;
    stand.controller.until_ready().await?;
    let ended = stand.until(&over, "Expired", &["the grant's time was over"]).await?;
    let told = ended.status.as_ref().and_then(|status| status.end_time.as_ref()).context("endTime")?.0;
    anyhow::ensure!(told == end, "it is said to have ended at {told}, and did at {end}");
    // Nobody guarded status meanwhile: what it says may be anybody's word.
    let living_now = until_taken_back(stand, "living").await?;
    anyhow::ensure!(shown(&living_now).contains("older than the admission policies"), "{}", shown(&living_now));
    until_gone(stand, "gone", SOON + SOON).await?;
    anyhow::ensure!(stand.pushes(&living).len() == pushes, "a key was pushed on a status that nobody guarded");
    stand.ask(Ask::new("new").instance(&living)).await?;
    stand.until_granted("new").await?;
    stand.controller.verify(&[&ended]).await?;
    Ok(())
}
