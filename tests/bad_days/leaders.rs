//! Several controllers, of which one leads: it dies, freezes, is told to go, loses sight of the API server or its lease.

use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::Context;
use futures::future::BoxFuture;
use futures::{FutureExt, TryStreamExt};
use instance_access::api::InstanceAccess;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicyBinding;
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::json;

use crate::days;
use crate::stand::{
    Ask, Controller, Day, Outcome, SOON, Special, Stand, TooSlow, expiration, named, reason, shown, tell,
};

pub fn days() -> Vec<(&'static str, Day)> {
    days![
        a_leader_that_is_killed_is_followed_and_one_that_stops_is_followed_at_once,
        a_leader_that_freezes_longer_than_its_lease_does_nothing_when_it_wakes,
        a_leader_whose_lease_is_taken_or_deleted_ends_and_there_is_never_a_second_one,
        leaders_with_a_file_each_write_one_trail_and_no_change_to_any_of_it_goes_unseen,
        a_status_of_the_leader_before_that_lands_after_the_take_over_goes_on_and_a_forged_one_is_ended,
    ]
}

/// How the second is made.
type Second = fn(&Controller, &str) -> anyhow::Result<Controller>;
/// What is done while the first leads.
type Prepare<T> = for<'a> fn(&'a Stand) -> BoxFuture<'a, anyhow::Result<T>>;

/// Two of them, of which the first leads, and what is prepared under it. If it loses its lease by then to a slow machine, anew.
async fn two_and<T>(second: Second, prepare: Prepare<T>) -> anyhow::Result<(Stand, Controller, T)> {
    for _ in 0..4 {
        let made = async {
            let stand = Stand::own(Special::with_lease()).await?;
            let both = async { anyhow::Ok((beside(&stand, second).await?, prepare(&stand).await?)) }.await;
            if stand.controller.is_lost_to_the_machine().await {
                return Err(anyhow::Error::from(TooSlow));
            }
            let (other, prepared) = both?;
            Ok((stand, other, prepared))
        };
        match made.await {
            Err(error) if error.is::<TooSlow>() => eprintln!("begun anew: {error}"),
            made => return made,
        }
    }
    anyhow::bail!("too slow a machine for a lease of nine seconds")
}

async fn two() -> anyhow::Result<(Stand, Controller)> {
    two_of(Controller::beside).await
}

async fn two_of(second: Second) -> anyhow::Result<(Stand, Controller)> {
    let (stand, other, ()) = two_and(second, |_| async { Ok(()) }.boxed()).await?;
    Ok((stand, other))
}

/// The second, which stands by.
async fn beside(stand: &Stand, second: Second) -> anyhow::Result<Controller> {
    leads(&stand.controller).await?;
    let other = second(&stand.controller, "other")?;
    other.start()?;
    until_log(&other, "stands by").await?;
    // Whoever stands by is ready: it sees that somebody leads.
    other.until_ready().await?;
    let leader = "instance_access_leader";
    let both = [stand.controller.metric(leader).await?, other.metric(leader).await?];
    anyhow::ensure!(both == [1.0, 0.0], "{leader} is {both:?}");
    Ok(other)
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
    let prepare: Prepare<String> = |stand| {
        async move {
            let id = stand.running();
            stand.ask(Ask::new("before").instance(&id).ends_in(130)).await?;
            stand.until_granted("before").await?;
            Ok(id)
        }
        .boxed()
    };
    let (stand, other, id) = two_and(Controller::beside, prepare).await?;
    let others = stand.running();
    anyhow::ensure!(stand.controller.death().is_none(), "the first one leads");

    stand.controller.kill();
    let killed_time = Timestamp::now();
    stand.ask(Ask::new("after").instance(&others)).await?;
    leads(&other).await?;
    stand.until_granted("after").await?;
    let followed = lab::pace::soon("a grant after kill -9 of the leader", killed_time, Timestamp::now(), 30.0).await?;
    eprintln!("a grant {followed:.1} s after kill -9 of the leader");
    anyhow::ensure!(followed > 2.0, "the lease was not waited for: {followed} s");

    // The other way round, and this time it steps down; again, if the machine was too slow to tell.
    let (mut third, mut segments) = (other, 2);
    loop {
        let leader = third;
        third = stand.controller.beside(&format!("follower-{segments}"))?;
        third.start()?;
        until_log(&third, "stands by").await?;
        let before = lease(&stand).await?;
        leader.signal("-TERM").await?;
        let told = Instant::now();
        anyhow::ensure!(gone(&leader).await?.success(), "{}", leader.log_of("error"));
        let name = format!("at-last-{segments}");
        stand.ask(Ask::new(&name).instance(&others)).await?;
        stand.until_granted(&name).await?;
        let followed = told.elapsed();
        eprintln!("a grant {:.1} s after SIGTERM to the leader", followed.as_secs_f64());
        anyhow::ensure!(!leader.log_of("gave the lease back").is_empty(), "the lease was not given back");
        segments += 1;
        if was_given_back(&stand, &before).await? {
            break;
        }
        anyhow::ensure!(segments < 6, "too slow a machine to tell whether the lease was waited out");
    }

    // What the first one granted, the third ends, on time and once; and it is one chain.
    let ended = stand.ended_well("before", &id).await?;
    anyhow::ensure!(reason(&ended) == "Expired", "{}", shown(&ended));
    third.intended_once(&ended)?;
    let records = ["Granted", "Ended"].map(|kind| third.recorded(&ended, kind));
    anyhow::ensure!(records == [1, 1], "records {records:?}");
    let after = stand.get("after").await?;
    let said = third.verify(&[&ended, &after]).await?;
    anyhow::ensure!(said.contains(&format!("in {segments} segments")), "{said}");
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

/// From this version of the Lease on its holder left it empty, and only then the next one took it, before it would have run
/// out: or on a machine too slow to tell, which is `false`.
async fn was_given_back(stand: &Stand, before: &Lease) -> anyhow::Result<bool> {
    let leases: Api<Lease> = Api::namespaced(stand.client("admin").await?, "instance-access");
    let version = before.metadata.resource_version.as_deref().context("a version")?;
    let held = before.spec.as_ref().context("a spec")?;
    let length: f64 = held.lease_duration_seconds.context("a length")?.into();
    // All that was written since, in its order: a watch leaves out nothing.
    let watched = leases.watch(&WatchParams::default().fields("metadata.name=controller"), version).await?;
    let mut watched = pin!(watched);
    let mut last_time = held.renew_time.clone();
    let mut is_free = false;
    let next = async {
        while let Some(event) = watched.try_next().await? {
            let WatchEvent::Modified(Lease { spec: Some(spec), .. }) = event else { anyhow::bail!("{event:?}") };
            if spec.holder_identity.as_deref().is_none_or(str::is_empty) {
                is_free = true;
            } else if spec.holder_identity != held.holder_identity {
                return Ok(spec);
            } else {
                anyhow::ensure!(!is_free, "it took up again what it gave back");
                last_time = spec.renew_time;
            }
        }
        anyhow::bail!("the watch ended")
    };
    let next = tokio::time::timeout(SOON, next).await.context("nobody took the lease")??;
    anyhow::ensure!(is_free, "it was taken from who held it");
    let (last, taken) = (last_time.context("a renewal")?.0, next.acquire_time.context("a time")?.0);
    // Whoever waits for the end of a lease does so by the clock.
    lab::pace::before_a_timer("the take-over after the last renewal", last, taken, length).await
}

async fn a_leader_that_freezes_longer_than_its_lease_does_nothing_when_it_wakes() -> Outcome {
    let prepare: Prepare<InstanceAccess> = |stand| {
        async move {
            stand.ask(Ask::new("frozen").instance(&stand.running()).ends_in(180)).await?;
            stand.until_granted("frozen").await
        }
        .boxed()
    };
    let (stand, other, granted) = two_and(Controller::beside, prepare).await?;
    let (_, id) = named(&granted)?;
    let frozen = Timestamp::now();
    stand.controller.signal("-STOP").await?;
    until_log(&other, "leads").await?;
    // It has the trail's lock, even now: so nothing is granted and no key is pushed; ends go on.
    until_log(&other, "has not let go of the audit trail").await?;
    // Its next push is overdue when it wakes.
    let due = expiration(&granted)? - SignedDuration::from_secs(180 - 47);
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

/// When a controller said these words: a line of its log begins with its time.
fn logged_times(controller: &Controller, words: &str) -> Vec<Timestamp> {
    let log = std::fs::read_to_string(controller.log()).unwrap_or_default();
    let lines = log.lines().filter(|line| line.contains(words));
    lines.filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect()
}

async fn a_leader_whose_lease_is_taken_or_deleted_ends_and_there_is_never_a_second_one() -> Outcome {
    let (stand, other) = two().await?;
    let leases: Api<Lease> = Api::namespaced(stand.client("admin").await?, "instance-access");
    leases.delete("controller", &DeleteParams::default()).await?;
    gone(&stand.controller).await?;
    leads(&other).await?;
    // By their own clocks: when we saw it, says nothing of which came first.
    let ended_time = logged_times(&stand.controller, "").pop().context("it said something")?;
    let led_time = *logged_times(&other, "opened the audit trail").first().context("it leads")?;
    let since = led_time.duration_since(ended_time);
    anyhow::ensure!(
        since > SignedDuration::from_secs(2),
        "it led {since} later: a lease that is new is nobody's for a while"
    );
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
    stand.until_within("still", "Released", SOON + SOON, over).await?;
    broken(&format!("99999:{}", "a".repeat(64)), "not the one that the lease names", "nor-now").await?;
    Ok(())
}

/// The head of the trail that the lease names.
async fn head(stand: &Stand) -> anyhow::Result<String> {
    let head = lease(stand).await?.metadata.annotations.unwrap_or_default().remove("instanceaccess.dev/audit-head");
    head.context("the lease names the head of the trail")
}

/// The last line of a file, as a receipt.
fn last(controller: &Controller) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(controller.audit())?;
    let line: serde_json::Value = serde_json::from_str(text.lines().last().context("a line")?)?;
    Ok(format!("{}:{}", line["sequence"], line["digest"].as_str().context("a digest")?))
}

/// How often a controller began to lead.
fn terms(controller: &Controller) -> usize {
    std::fs::read_to_string(controller.log()).unwrap_or_default().matches("opened the audit trail").count()
}

async fn leads_again(controller: &Controller, before: usize) -> Outcome {
    lab::poll::until("it to lead", SOON, async || match terms(controller) {
        now if now > before => Ok(()),
        _ => Err(controller.log_of("")),
    })
    .await
}

async fn leaders_with_a_file_each_write_one_trail_and_no_change_to_any_of_it_goes_unseen() -> Outcome {
    let (stand, second) = two_of(Controller::apart).await?;
    let first = &stand.controller;
    let mut names = Vec::new();
    let mut granted = async |name: String| {
        stand.ask(Ask::new(&name).instance(&stand.running())).await?;
        stand.until_granted(&name).await?;
        names.push(name);
        anyhow::Ok(())
    };

    // It is killed when it has written what the lease, which names some of it, does not name yet.
    lab::poll::until("the lease to name a head", SOON, async || head(&stand).await).await?;
    for number in 0.. {
        anyhow::ensure!(number < 20, "whenever it stopped, the lease named all that it had written");
        granted(format!("before-{number}")).await?;
        first.signal("-STOP").await?;
        if head(&stand).await? != last(first)? {
            break;
        }
        first.signal("-CONT").await?;
    }
    first.kill();
    leads_again(&second, 0).await?;
    granted("after-a-kill".to_owned()).await?;
    lab::poll::until("the lease to name what the second wrote", SOON, async || {
        let (named, last) = (head(&stand).await?, last(&second)?);
        anyhow::ensure!(named == last, "it names {named}, and {last} was written");
        Ok(())
    })
    .await?;

    // The second freezes for longer than its lease. Nobody waits for its lock: the files are apart.
    first.start()?;
    second.signal("-STOP").await?;
    leads_again(first, 1).await?;
    until_log(first, "named the end of the file's earlier term").await?;
    granted("while-one-is-frozen".to_owned()).await?;
    second.signal("-CONT").await?;
    anyhow::ensure!(!gone(&second).await?.success(), "who lost its lease says so");

    // And in turn, by SIGTERM, back to the first.
    second.start()?;
    first.signal("-TERM").await?;
    anyhow::ensure!(gone(first).await?.success(), "{}", first.log_of("error"));
    leads_again(&second, 1).await?;
    granted("after-a-hand-over".to_owned()).await?;
    first.start()?;
    second.signal("-TERM").await?;
    anyhow::ensure!(gone(&second).await?.success(), "{}", second.log_of("error"));
    leads_again(first, 2).await?;
    granted("at-last".to_owned()).await?;
    first.signal("-TERM").await?;
    anyhow::ensure!(gone(first).await?.success(), "{}", first.log_of("error"));

    // All that any status points at is there, and the end is the one that the lease names.
    let mut heads = vec![head(&stand).await?];
    for name in &names {
        let pointer = stand.get(name).await?.status.and_then(|status| status.audit).context("status.audit")?;
        heads.push(format!("{}:{}", pointer.sequence, pointer.digest));
    }
    let files = [second.audit(), first.audit()];
    let verify = async |heads: &[String]| {
        let mut arguments = vec!["audit".to_owned(), "verify".to_owned()];
        arguments.extend(heads.iter().map(|head| format!("--head={head}")));
        arguments.extend(files.iter().filter(|file| file.exists()).map(|file| file.display().to_string()));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        tell(&arguments).await
    };
    let said = verify(&heads).await?;
    eprintln!("{said}");
    anyhow::ensure!(said.contains("in 5 segments") && said.contains(&format!("head: {}", heads[0])), "{said}");
    anyhow::ensure!(said.contains("of term 1 were written after record"), "the tail is told of: {said}");
    anyhow::ensure!(said.contains("of the same file names the last of them"), "it is named by the next term: {said}");

    // Each single change, by whoever has one of the volumes, and without any head.
    let change = |lines: &mut Vec<String>, kind: &str, at: usize| match kind {
        "edit" => lines[at] = lines[at].replacen("ec2-user", "root", 1).replacen("\"segment\":", "\"segment\":1", 1),
        "remove" => drop(lines.remove(at)),
        "swap" => lines.swap(at, at + 1),
        "repeat" => lines.insert(at, lines[at].clone()),
        _ => lines.clear(),
    };
    for file in &files {
        let text = std::fs::read_to_string(file)?;
        let lines: Vec<String> = text.split_inclusive('\n').map(str::to_owned).collect();
        for at in [0, lines.len() / 2, lines.len() - 2] {
            for kind in ["edit", "remove", "swap", "repeat", "clear"] {
                let mut changed = lines.clone();
                change(&mut changed, kind, at);
                anyhow::ensure!(changed != lines, "{kind} at {at} is none");
                std::fs::write(file, changed.concat())?;
                if let Ok(said) = verify(&[]).await {
                    anyhow::bail!("{kind} at line {} of {} goes unseen: {said}", at + 1, file.display());
                }
            }
        }
        // The very last record is nobody's predecessor: the lease has it.
        std::fs::write(file, lines[..lines.len() - 1].concat())?;
        anyhow::ensure!(verify(&heads).await.is_err(), "the end of {} was cut", file.display());
        std::fs::write(file, text)?;
    }
    verify(&heads).await?;
    Ok(())
}

/// Waits until a controller that leads has listed the requests, and decides nothing for want of policies.
async fn until_undecided(controller: &Controller) -> Outcome {
    leads(controller).await?;
    lab::poll::until("nothing but policies to be missing", SOON, async || match controller.page("/readyz").await {
        Ok((503, body)) if body.contains("heard to list instanceaccesspolicies") => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await
}

/// A request with the status by which an operator would have granted it at that time, as it granted another.
fn as_granted(honest: &InstanceAccess, waiting: &InstanceAccess, start: Timestamp) -> anyhow::Result<InstanceAccess> {
    let uid = waiting.metadata.uid.as_deref().context("a uid")?;
    let digest = instance_access::domain::digest::spec_digest(&waiting.spec);
    let mut status = serde_json::to_value(honest.status.as_ref().context("a status")?)?;
    status["grant"]["id"] = json!(instance_access::domain::digest::grant_id(uid, &digest));
    status["grant"]["startTime"] = json!(start);
    status["grant"]["expirationTime"] = json!(start + SignedDuration::from_secs(600));
    status["specDigest"] = json!(digest);
    status["instance"]["instanceId"] = json!(waiting.spec.target.instance_id);
    let key = status["key"].as_object_mut().context("a key")?;
    for pushed in ["firstRequestId", "lastRequestId", "pushes"] {
        key.remove(pushed);
    }
    Ok(InstanceAccess { status: Some(serde_json::from_value(status)?), ..waiting.clone() })
}

async fn a_status_of_the_leader_before_that_lands_after_the_take_over_goes_on_and_a_forged_one_is_ended() -> Outcome {
    let prepare: Prepare<InstanceAccess> = |stand| {
        async move {
            stand.ask(Ask::new("model").instance(&stand.running())).await?;
            stand.until_granted("model").await
        }
        .boxed()
    };
    let (stand, other, model) = two_and(Controller::beside, prepare).await?;
    let (late, forged) = (stand.running(), stand.running());
    let now = || Timestamp::from_second(Timestamp::now().as_second());
    stand.may_read_policies(false).await?;
    stand.controller.kill();
    stand.ask(Ask::new("late").instance(&late)).await?;
    stand.ask(Ask::new("touched").instance(&stand.running())).await?;
    let start = now()?;
    let [waits, touched] = [stand.get("late").await?, stand.get("touched").await?];
    until_undecided(&other).await?;

    // What the killed one had sent lands now: under its account, on the version that it decided on.
    let kubeconfig = stand.lab.kubeconfig_for_service_account("instance-access", "operator").await?;
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    let before: Api<InstanceAccess> = Api::namespaced(kube::Client::try_from(config)?, crate::stand::NAMESPACE);
    before.replace_status("late", &PostParams::default(), &as_granted(&model, &waits, start)?).await?;
    // Where somebody has changed the request since, it cannot.
    stand.merge("alice", "touched", json!({"metadata": {"labels": {"touched": "yes"}}})).await?;
    match before.replace_status("touched", &PostParams::default(), &as_granted(&model, &touched, start)?).await {
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        other => anyhow::bail!("what was decided on an older version was stored: {other:?}"),
    }
    stand.may_read_policies(true).await?;
    let is_pushed = |object: &InstanceAccess| crate::stand::is(object, "Active", "True").map(|_| object.clone());
    let landed = stand.until_within("late", "served", SOON, is_pushed).await?;
    lab::poll::until_ok("a key", SOON, || if stand.pushes(&late).is_empty() { Err("none") } else { Ok(()) }).await?;
    let grant = landed.status.as_ref().and_then(|status| status.grant.clone()).context("a grant")?;
    let end = start + SignedDuration::from_secs(600);
    anyhow::ensure!((grant.start_time.0, grant.expiration_time.0) == (start, end), "it is another grant: {grant:?}");
    anyhow::ensure!(other.recorded(&landed, "GrantIntended") == 0, "it was granted a second time");
    let anew = stand.until_granted("touched").await?;
    // What did not land is granted by the next.
    other.intended_once(&anew)?;

    // And somebody who takes the guard away for a moment, at the next take-over.
    stand.may_read_policies(false).await?;
    other.signal("-TERM").await?;
    gone(&other).await?;
    stand.ask(Ask::new("forged").instance(&forged)).await?;
    let start = now()?;
    stand.controller.start()?;
    until_undecided(&stand.controller).await?;
    let name = "status.instanceaccess.dev";
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(stand.client("admin").await?);
    let mut binding = bindings.get(name).await?;
    bindings.delete(name, &DeleteParams::default()).await?;
    let requests: Api<InstanceAccess> = Api::namespaced(stand.client("admin").await?, crate::stand::NAMESPACE);
    let forgery = as_granted(&model, &stand.get("forged").await?, start)?;
    lab::poll::until("a forged status to be let in", SOON, async || {
        requests.replace_status("forged", &PostParams::default(), &forgery).await.map_err(|error| error.to_string())
    })
    .await?;
    (binding.metadata.resource_version, binding.metadata.uid) = (None, None);
    bindings.create(&PostParams::default(), &binding).await?;
    stand.may_read_policies(true).await?;
    let ended = stand
        .until_within("forged", "taken back", SOON + SOON, |object| match reason(object) {
            "Revoked" => Ok(object.clone()),
            _ => Err(shown(object)),
        })
        .await?;
    anyhow::ensure!(stand.pushes(&forged).is_empty(), "a key was pushed: {}", shown(&ended));
    Ok(())
}
