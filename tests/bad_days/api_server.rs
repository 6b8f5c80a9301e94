//! The API server is away, hangs, forgets its history, or is busy with somebody else.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context;
use instance_access::api::InstanceAccessDecision;
use jiff::{SignedDuration, Timestamp};
use kube::api::PostParams;
use kube::config::Kubeconfig;
use lab::standin::{Api, Fault, FaultKind};
use serde_json::{Value, json};

use crate::days;
use crate::stand::{
    Ask, DECIDERS, Day, LATE_MAX, NAMESPACE, Outage, Outcome, SOON, Special, Stand, apply, expiration, reason, shared,
    shown,
};

pub fn days() -> Vec<(&'static str, Day)> {
    days![
        a_grant_ends_in_time_and_on_record_while_the_api_server_is_away,
        a_revocation_is_heard_soon_after_an_api_server_that_was_away_for_long_is_back,
        who_cuts_the_operator_off_does_not_keep_access,
        a_grant_is_made_once_though_the_api_server_goes_away_in_the_middle,
        a_controller_that_starts_while_the_api_server_is_away_waits_for_it,
        a_watch_that_expired_misses_nothing,
        a_busy_neighbour_who_edits_the_request_all_the_time_neither_stops_nor_doubles_the_grant,
        a_busy_neighbour_who_edits_the_request_over_its_end_does_not_keep_status_from_saying_so,
        a_crowd_that_edits_the_request_without_a_pause_does_not_keep_its_revocation_from_gateways,
        an_object_that_cannot_be_read_is_counted_and_the_others_go_on,
        who_runs_as_no_service_account_or_without_its_rights_is_told_and_grants_nothing,
    ]
}

/// Waits until the trail has so many records of a kind for a request, whatever the API server does.
async fn until_recorded(stand: &Stand, object: &instance_access::api::InstanceAccess, kind: &str) -> Outcome {
    lab::poll::until_ok(&format!("a record {kind}"), SOON, || match stand.controller.recorded(object, kind) {
        0 => Err("none"),
        _ => Ok(()),
    })
    .await
}

/// Checks that one grant was made.
fn granted_once(stand: &Stand, object: &instance_access::api::InstanceAccess) -> Outcome {
    stand.controller.intended_once(object)?;
    anyhow::ensure!(stand.controller.recorded(object, "Granted") == 1, "told twice");
    Ok(())
}

const SECOND: SignedDuration = SignedDuration::from_secs(1);
/// How long before an end the API server goes, in seconds: also a machine that stands still for a while has it gone by then.
const AHEAD: i64 = 15;

/// How long a revocation may take that is made as soon as the API server is back: a rest of ten seconds between two tries of
/// the watch, two until the list, and a little. A rest of kube's own is 30 s or more by then.
const HEARD_LATE_MAX: lab::pace::LateMax = lab::pace::LateMax::new(15.0, 28.0);

fn name(object: &instance_access::api::InstanceAccess) -> anyhow::Result<&str> {
    object.metadata.name.as_deref().context("a name")
}

async fn a_grant_ends_in_time_and_on_record_while_the_api_server_is_away() -> Outcome {
    let stand = Stand::own(Special::default()).await?;
    // Gone over the end of the first.
    let stopped = Outage::ApiServerStopped;
    let (first, one) = stand.begun_before_the_end(|| Ask::new("stopped").ends_in(95), AHEAD, stopped).await?;
    until_recorded(&stand, &first, "Ended").await?;
    lab::pace::in_time("the record of the end", expiration(&first)?, Timestamp::now(), LATE_MAX).await?;
    anyhow::ensure!(stand.lab.standin().active_keys(&one, "ec2-user").is_empty(), "a key is readable after the end");
    stand.is_over(stopped).await?;
    let object = stand.until(name(&first)?, "Expired", &["the grant's time was over"]).await?;
    stand.ended_in_fact(&object, &one).await?;
    let status = object.status.as_ref().context("status")?;
    anyhow::ensure!(status.end_time.as_ref().map(|time| time.0) == Some(expiration(&object)?), "endTime is the end");
    anyhow::ensure!(stand.controller.recorded(&object, "Ended") == 1, "one end, one record");

    // Hanging over the end of the second.
    let frozen = Outage::ApiServerFrozen;
    let (second, two) = stand.begun_before_the_end(|| Ask::new("frozen").ends_in(95), AHEAD, frozen).await?;
    until_recorded(&stand, &second, "Ended").await?;
    lab::pace::in_time("the record of the end", expiration(&second)?, Timestamp::now(), LATE_MAX).await?;
    stand.is_over(frozen).await?;
    let other = stand.until(name(&second)?, "Expired", &[]).await?;
    stand.ended_in_fact(&other, &two).await?;
    anyhow::ensure!(stand.controller.recorded(&other, "Ended") == 1, "one end, one record");
    stand.controller.verify(&[&object, &other]).await?;
    Ok(())
}

/// Waits until the API server serves what a revocation and whoever hears of it need: a list, a watch and a PATCH. For a moment
/// after it is ready it may refuse each, and a watch that it refuses rests once more.
async fn until_served(stand: &Stand, name: &str) -> Outcome {
    let kind = format!("/apis/instanceaccess.dev/v1alpha1/namespaces/{}/instanceaccesses", crate::stand::NAMESPACE);
    let served = async || {
        stand.list().await?;
        stand.read(&format!("{kind}?watch=1&timeoutSeconds=1")).await?;
        stand.merge("alice", name, json!({"metadata": {"labels": {"served": "yes"}}})).await
    };
    lab::poll::until("the API server to serve", SOON, async || served().await.map_err(|error| format!("{error:#}")))
        .await?;
    Ok(())
}

async fn a_revocation_is_heard_soon_after_an_api_server_that_was_away_for_long_is_back() -> Outcome {
    let stand = Stand::own(Special::default()).await?;
    let id = stand.running();
    stand.ask(Ask::new("revoked").instance(&id).ends_in(900)).await?;
    stand.until_granted("revoked").await?;
    stand.lab.stop_api_server();
    // Six in a row: a rest that doubled each time would be half a minute by now.
    let failed = r#"instance_access_watch_errors_total{resource="instanceaccesses"}"#;
    let failures = async || stand.controller.metric(failed).await.unwrap_or_default();
    let before = failures().await;
    lab::poll::until("the watch to fail six times", SOON, async || match failures().await - before {
        6.0.. => Ok(()),
        times => Err(format!("{times} times")),
    })
    .await?;
    stand.lab.start_api_server().await?;
    until_served(&stand, "revoked").await?;
    stand.merge("alice", "revoked", json!({"spec": {"revoke": {"reason": "done"}}})).await?;
    let revocation_time = Timestamp::now();
    // Over at once, if no key is readable any more.
    stand
        .until_within("revoked", "revoked", SOON, |object| match reason(object) {
            "RevocationPending" | "Revoked" if shown(object).contains("spec.revoke was set: done") => Ok(()),
            _ => Err(shown(object)),
        })
        .await?;
    lab::pace::soon("the revocation", revocation_time, Timestamp::now(), HEARD_LATE_MAX).await?;
    Ok(())
}

async fn who_cuts_the_operator_off_does_not_keep_access() -> Outcome {
    let stand = Stand::own(Special::default()).await?;
    let one = stand.running();
    stand.ask(Ask::new("cut-off").instance(&one).ends_in(420)).await?;
    stand.until_granted("cut-off").await?;
    let keys = || stand.lab.standin().active_keys(&one, "ec2-user").len();

    // Nobody hears of a revocation now, so nobody may go on pushing: a minute of patience, a push of that minute, its key.
    stand.lab.freeze_api_server()?;
    lab::poll::until_ok("the last key fades", SOON + SOON, || match keys() {
        0 => Ok(()),
        keys => Err(format!("{keys} keys are readable")),
    })
    .await?;
    let (code, _) = stand.controller.page("/readyz").await?;
    anyhow::ensure!(code == 503, "it says that it is ready: {code}");
    anyhow::ensure!(stand.pushes(&one).len() <= 4, "{} pushes", stand.pushes(&one).len());

    // And it heals.
    stand.lab.thaw_api_server()?;
    lab::poll::until_ok("a key is pushed again", SOON, || match keys() {
        0 => Err("no key yet"),
        _ => Ok(()),
    })
    .await?;
    stand.until_granted("cut-off").await?;
    Ok(())
}

async fn a_grant_is_made_once_though_the_api_server_goes_away_in_the_middle() -> Outcome {
    let stand = Stand::own(Special::default()).await?;
    // Gone between the look-up and the first write: no look-up succeeds before the API server is stopped.
    let one = stand.running();
    stand.lab.standin().set_fault(Fault::new(FaultKind::ServerError(503)).on(Api::Ec2).instance(&one));
    let first = stand.ask(Ask::new("looked-up").instance(&one)).await?;
    let asked = || if stand.calls(Api::Ec2, &one).is_empty() { Err("none yet") } else { Ok(()) };
    lab::poll::until_ok("a look-up", SOON, asked).await?;
    stand.lab.stop_api_server();
    stand.lab.standin().clear_faults_on(&one);
    until_recorded(&stand, &first, "GrantIntended").await?;
    anyhow::ensure!(stand.pushes(&one).is_empty(), "a key was pushed for a grant that no status holds");
    stand.lab.start_api_server().await?;
    let first = stand.until_granted("looked-up").await?;

    // Hanging while the key is being pushed.
    let two = stand.running();
    let slow = FaultKind::Slow(Duration::from_secs(6));
    stand.lab.standin().set_fault(Fault::new(slow).on(Api::Eic).instance(&two).times(1));
    let second = stand.ask(Ask::new("pushed").instance(&two)).await?;
    // A machine that is slow may be past that, and shows less then.
    stand
        .until_within("pushed", "Granting", SOON, |object| match reason(object) {
            "Granting" | "Granted" => Ok(()),
            _ => Err(shown(object)),
        })
        .await?;
    stand.lab.freeze_api_server()?;
    lab::poll::until_ok("the push", SOON, || if stand.pushes(&two).is_empty() { Err("none") } else { Ok(()) }).await?;
    until_recorded(&stand, &second, "Granted").await?;
    stand.lab.thaw_api_server()?;
    let second = stand.until_granted("pushed").await?;
    for (object, id) in [(&first, &one), (&second, &two)] {
        granted_once(&stand, object)?;
        // The next one is due after 45 s.
        let pushes: Vec<_> = stand.pushes(id).into_iter().map(|push| push.time).collect();
        let doubled = pushes.iter().filter(|time| time.duration_since(pushes[0]).as_secs() < 40).count();
        anyhow::ensure!(doubled == 1, "{pushes:?}");
    }
    stand.controller.verify(&[&first, &second]).await?;
    Ok(())
}

async fn a_controller_that_starts_while_the_api_server_is_away_waits_for_it() -> Outcome {
    let stand = Stand::own(Special::default()).await?;
    let (one, two) = (stand.running(), stand.running());
    stand.ask(Ask::new("before").instance(&one).with("ttlSeconds", json!(600))).await?;
    let before = stand.until_granted("before").await?;
    stand.controller.kill();
    stand.ask(Ask::new("meanwhile").instance(&two)).await?;
    stand.lab.stop_api_server();
    stand.controller.start()?;
    let pages = async || {
        let live = stand.controller.page("/livez").await.map_err(|error| format!("{error:#}"))?;
        let ready = stand.controller.page("/readyz").await.map_err(|error| format!("{error:#}"))?;
        let is_so = (live.0, ready.0) == (200, 503) && ready.1 != "starting";
        if is_so { Ok(ready.1) } else { Err(format!("{live:?}, {ready:?}")) }
    };
    let why = lab::poll::until("it to live, and not to be ready", SOON, pages).await?;
    anyhow::ensure!(why.contains("has not been heard to list instanceaccesses, "), "/readyz says {why:?}");
    stand.lab.start_api_server().await?;
    stand.controller.until_ready().await?;
    stand.until_granted("meanwhile").await?;
    let same = stand.get("before").await?;
    let grant = |object: &instance_access::api::InstanceAccess| object.status.as_ref().and_then(|it| it.grant.clone());
    anyhow::ensure!(grant(&same) == grant(&before), "the grant changed: {:?}", grant(&same));
    anyhow::ensure!(stand.controller.death().is_none(), "the controller died");
    stand.controller.verify(&[&same]).await?;
    Ok(())
}

async fn a_watch_that_expired_misses_nothing() -> Outcome {
    let stand = Stand::own(Special::default()).await?;
    let ids = [stand.running(), stand.running(), stand.running()];
    stand.ask(Ask::new("kept").instance(&ids[0])).await?;
    stand.ask(Ask::new("vanishing").instance(&ids[1])).await?;
    stand.until_granted("kept").await?;
    stand.until_granted("vanishing").await?;
    // While the controller hears nothing: one comes, one is revoked; and history is forgotten up to now.
    stand.controller.signal("-STOP").await?;
    stand.merge("alice", "vanishing", json!({"spec": {"revoke": {"reason": "done"}}})).await?;
    let last = stand.ask(Ask::new("new").instance(&ids[2])).await?;
    let revision: i64 = last.metadata.resource_version.context("a version")?.parse()?;
    compact(&stand, revision).await?;
    stand.lab.stop_api_server();
    stand.lab.start_api_server().await?;
    stand.controller.signal("-CONT").await?;
    stand.until_granted("new").await?;
    // Over at once, if it took so long that no key is readable any more.
    stand
        .until_within("vanishing", "revoked", SOON, |object| {
            let told = shown(object);
            match reason(object) {
                _ if !told.contains("spec.revoke was set: done") => Err(told),
                "RevocationPending" if told.contains("readable by the host until") => Ok(()),
                "Revoked" => Ok(()),
                _ => Err(told),
            }
        })
        .await?;
    stand.until_granted("kept").await?;
    Ok(())
}

/// Makes etcd forget what was before a revision.
async fn compact(stand: &Stand, revision: i64) -> Outcome {
    let kubeconfig = Kubeconfig::read_from(stand.lab.kubeconfig("admin")?)?;
    let server = kubeconfig.clusters[0].cluster.as_ref().and_then(|it| it.server.clone()).context("a server")?;
    let host = server.trim_start_matches("https://").split(':').next().context("a host")?.to_owned();
    let mut curl = tokio::process::Command::new("curl");
    curl.args(["-sSf", "--noproxy", "*", "-X", "POST", "--data-raw"]);
    curl.arg(json!({"revision": revision.to_string(), "physical": true}).to_string());
    let done = lab::ssh::run(curl.arg(format!("http://{host}:2379/v3/kv/compaction"))).await?;
    anyhow::ensure!(done.success(), "compaction: {}{}", done.stdout, done.stderr);
    Ok(())
}

async fn a_busy_neighbour_who_edits_the_request_over_its_end_does_not_keep_status_from_saying_so() -> Outcome {
    let stand = shared().await?;
    // Objects that nobody made: where garbage is collected, a request that is owned by them goes, which is an end as well.
    let owner = |number: u32, controller: bool| {
        let uid = format!("5a3f6a0e-5f0f-4b43-9c1a-{number:012}");
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "name": "nobody", "uid": uid,
            "controller": controller, "blockOwnerDeletion": true,
        })
    };
    let ask = || {
        let owners = json!([owner(0, true)]);
        Ask::new("edited-to-the-end").with_metadata("ownerReferences", owners).ends_in(95)
    };
    let (granted, id) = stand.begun_before_the_end(ask, 2, Outage::Nothing).await?;
    let (end, name) = (expiration(&granted)?, name(&granted)?);
    let edits = async |who: &str| {
        // Over the end, however quick the API server is.
        for number in (0..).take_while(|number| *number < 150 || Timestamp::now() < end + SECOND) {
            let novel = json!({who: number.to_string()});
            let owners = [owner(number, number % 2 == 0), owner(number + 1, false)];
            let edit = json!({"metadata": {"labels": novel, "annotations": novel, "ownerReferences": owners}});
            stand.merge(who, name, edit).await?;
        }
        anyhow::Ok(())
    };
    let (alice, bob, ended) = tokio::join!(edits("alice"), edits("bob"), stand.ended_well(name, &id));
    alice?;
    bob?;
    let ended = ended?;
    anyhow::ensure!(expiration(&ended)? == end, "the edits moved the end from {end}");
    let owners = stand.get(name).await?.metadata.owner_references.map_or(0, |owners| owners.len());
    anyhow::ensure!(owners == 2, "{owners} owners: the edits were lost");
    stand.controller.verify(&[&ended]).await?;
    Ok(())
}

async fn a_crowd_that_edits_the_request_without_a_pause_does_not_keep_its_revocation_from_gateways() -> Outcome {
    const CROWD: usize = 20;
    // Not by the clock: how slow everybody is under such a crowd, the machine says. Who waits for a moment without an edit
    // meets some twenty and more; an end meets one, and one more for each answer that came too late.
    const CONFLICTS_MAX: f64 = 5.0;
    let stand = Stand::own(Special::default()).await?;
    apply(&stand.lab, DECIDERS).await?;
    let id = stand.running();
    stand.ask(Ask::new("crowded").instance(&id).ends_in(900)).await?;
    let granted = stand.until_granted("crowded").await?;
    let digest = granted.status.as_ref().and_then(|status| status.spec_digest.clone()).context("a digest")?;
    let revoke = json!({
        "apiVersion": "instanceaccess.dev/v1alpha1", "kind": "InstanceAccessDecision", "metadata": {"name": "revoke"},
        "spec": {
            "decision": "Revoke", "reason": "done",
            "requestRef": {"name": "crowded", "uid": granted.metadata.uid, "specDigest": digest},
        },
    });
    let decisions: kube::Api<InstanceAccessDecision> = kube::Api::namespaced(stand.client("alice").await?, NAMESPACE);
    let edits = AtomicUsize::new(0);
    let conflicts =
        async || stand.controller.metric(r#"instance_access_status_writes_total{outcome="conflict"}"#).await;
    // The API server tries each again by itself where it meets another's.
    let editor = async |who: usize| {
        for number in 0_u64.. {
            let label = json!({"metadata": {"labels": {format!("editor-{who}"): number.to_string()}}});
            stand.merge("bob", "crowded", label).await?;
            edits.fetch_add(1, Ordering::Relaxed);
        }
        anyhow::Ok(())
    };
    let revoked = async {
        lab::poll::until_ok("the crowd", SOON, || match edits.load(Ordering::Relaxed) {
            count if count > 10 * CROWD => Ok(()),
            count => Err(format!("{count} edits")),
        })
        .await?;
        let (before, conflicts_before) = (edits.load(Ordering::Relaxed), conflicts().await?);
        decisions.create(&PostParams::default(), &serde_json::from_value(revoke)?).await?;
        stand.until("crowded", "RevocationPending", &["alice revoked it: done"]).await?;
        anyhow::Ok((edits.load(Ordering::Relaxed) - before, conflicts().await? - conflicts_before))
    };
    let (meanwhile, conflicts) = tokio::select! {
        edited = futures::future::try_join_all((0..CROWD).map(editor)) => anyhow::bail!("the crowd went home: {edited:?}"),
        revoked = revoked => revoked?,
    };
    anyhow::ensure!(meanwhile > 0, "nobody edited it meanwhile");
    eprintln!("a crowd of {CROWD}: {meanwhile} edits until the revocation stood, {conflicts} conflicts");
    anyhow::ensure!(
        conflicts < CONFLICTS_MAX,
        "the end met {conflicts} edits: it came by luck, after {meanwhile} of them"
    );
    let restless = stand.controller.metric("instance_access_restless_turns_total").await?;
    anyhow::ensure!(restless == 0.0, "{restless} turns came to no rest:\n{}", stand.controller.log_of("come to rest"));
    Ok(())
}

async fn a_busy_neighbour_who_edits_the_request_all_the_time_neither_stops_nor_doubles_the_grant() -> Outcome {
    let stand = shared().await?;
    let id = stand.running();
    let slow = |api| Fault::new(FaultKind::Slow(Duration::from_secs(1))).on(api).instance(&id).times(1);
    stand.lab.standin().set_fault(slow(Api::Ec2));
    stand.lab.standin().set_fault(slow(Api::Eic));
    stand.ask(Ask::new("edited").instance(&id)).await?;
    let edits = async {
        for number in 0..150 {
            let label = json!({"metadata": {"labels": {"edit": number.to_string()}}});
            stand.merge("bob", "edited", label).await?;
        }
        anyhow::Ok(())
    };
    let begun = tokio::time::Instant::now();
    let (edits, object) = tokio::join!(edits, stand.until_granted("edited"));
    edits?;
    let object = object?;
    granted_once(&stand, &object)?;
    // The key is renewed after 45 s, if all those edits take as long.
    let (pushes, lasted) = (stand.pushes(&id).len(), begun.elapsed());
    let renewed = lasted.as_secs() / 45;
    anyhow::ensure!((1..=1 + renewed).contains(&u64::try_from(pushes)?), "{pushes} pushes in {lasted:?}");
    Ok(())
}

/// Lets the API server store what cannot be read: a number where there should be a word, or the other way round.
pub fn relaxed(yaml: &str, relaxed_fields: &[&str]) -> String {
    let mut relaxed = String::new();
    for document in yaml.split("---\n").filter(|it| !it.trim().is_empty()) {
        let mut crd: Value = serde_yaml::from_str(document).expect("a CRD is YAML");
        let spec = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties";
        let fields = crd.pointer_mut(spec).expect("a CRD has a schema");
        for field in relaxed_fields {
            if fields.get(field).is_some() {
                fields[*field] = json!({"x-kubernetes-int-or-string": true});
            }
        }
        relaxed.push_str(&format!("---\n{}", serde_yaml::to_string(&crd).expect("it was YAML")));
    }
    relaxed
}

async fn an_object_that_cannot_be_read_is_counted_and_the_others_go_on() -> Outcome {
    let stand = Stand::own(Special::default()).await?;
    let id = stand.running();
    let crds = crate::stand::tell(&["crds"]).await?;
    let stored = async |policy: &str| {
        crate::stand::apply(&stand.lab, &relaxed(&crds, &["osUser", "priority"])).await?;
        let stored = async || crate::stand::apply(&stand.lab, policy).await.map_err(|error| format!("{error:#}"));
        lab::poll::until("a policy that cannot be read to be stored", SOON, stored).await
    };
    // What the operator grants on must stand again before anything is granted beside.
    let mended = async || {
        crate::stand::apply(&stand.lab, &crds).await?;
        stand.controller.until_ready().await
    };
    let broken = async |stand: &Stand| stand.controller.metric("instance_access_undecodable_objects").await;
    anyhow::ensure!(broken(&stand).await? == 0.0, "some object is undecodable before any was stored");
    // One that comes through the watch, and, after a restart, through the list. They are stored as by another version.
    let policy = "apiVersion: instanceaccess.dev/v1alpha1\nkind: InstanceAccessPolicy\nmetadata: {name: unreadable}\nspec:\n  \
                  effect: Allow\n  priority: high\n  subjects: [{kind: Group, name: developers}]\n  namespaces: [team]\n  \
                  targets: {instanceIds: ['*']}\n  osUsers: ['*']\n  ttl: {defaultSeconds: 600, maxSeconds: 600}\n";
    stored(policy).await?;
    let mut ask = Ask::new("unreadable").instance(&id);
    ask.spec["osUser"] = json!(42);
    stand.client("alice").await?;
    lab::poll::until("a request that cannot be read to be stored", SOON, async || {
        match stand.create("alice", &ask).await.map_err(|error| error.downcast::<kube::Error>()) {
            Ok(_) => Err("our own types read it".to_owned()),
            Err(Ok(kube::Error::Api(status))) if status.reason == "AlreadyExists" => Ok(()),
            Err(error) => Err(format!("{error:?}")),
        }
    })
    .await?;
    lab::poll::until("two undecodable objects", SOON, async || match broken(&stand).await {
        Ok(2.0) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await?;
    mended().await?;
    for round in ["watched", "listed"] {
        lab::poll::until("two undecodable objects", SOON, async || match broken(&stand).await {
            Ok(2.0) => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await?;
        let log = stand.controller.log_of("cannot be decoded");
        anyhow::ensure!(log.contains("unreadable"), "the log does not name it: {log}");
        stand.ask(Ask::new(&format!("beside-{round}")).instance(&id)).await?;
        stand.until_granted(&format!("beside-{round}")).await?;
        stand.controller.kill();
        stand.controller.start()?;
        stand.controller.until_ready().await?;
    }
    // An unreadable policy that may be a Deny denies everything, since nobody knows what it forbids.
    let deny = policy.replace("Allow", "Deny").replace("unreadable", "unreadable-deny");
    stored(&deny.replace("\n  ttl: {defaultSeconds: 600, maxSeconds: 600}", "")).await?;
    mended().await?;
    lab::poll::until("a third", SOON, async || match broken(&stand).await {
        Ok(3.0) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await?;
    stand.ask(Ask::new("under-deny").instance(&id)).await?;
    stand.until_denied("under-deny", "DeniedByPolicy", &["unreadable-deny"]).await?;
    stand.controller.verify(&[]).await?;
    Ok(())
}

async fn who_runs_as_no_service_account_or_without_its_rights_is_told_and_grants_nothing() -> Outcome {
    let stand = Stand::own(Special::default()).await?;
    let id = stand.running();
    let told = async |words: &str| {
        lab::poll::until(words, SOON, async || match stand.controller.page("/readyz").await {
            Ok((503, why)) if why.contains(words) => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await
    };
    // The rights of the version before, which could look at two kinds and watch none.
    let kubectl = async |arguments: &[&str]| {
        let done = lab::ssh::run(stand.lab.kubectl("admin")?.args(arguments)).await?;
        anyhow::ensure!(done.success(), "kubectl {arguments:?}: {}", done.stderr);
        anyhow::Ok(())
    };
    let role = lab::ssh::run(stand.lab.kubectl("admin")?.args([
        "get",
        "clusterrole",
        "instance-access-operator",
        "-o",
        "json",
    ]))
    .await?;
    let mut fewer: Value = serde_json::from_str(&role.stdout)?;
    let kept = fewer["rules"].as_array_mut().context("a role has rules")?;
    kept.retain(|rule| rule["apiGroups"][0] != "apiextensions.k8s.io");
    let patch = json!({"rules": fewer["rules"]}).to_string();
    kubectl(&["patch", "clusterrole", "instance-access-operator", "--type=merge", "-p", &patch]).await?;
    told("CustomResourceDefinition instanceaccesses.instanceaccess.dev may not be looked at; apply examples/operator-rbac.yaml").await?;
    stand.ask(Ask::new("unseen").instance(&id)).await?;
    stand.until("unseen", "EnforcementMissing", &["may not be looked at"]).await?;
    crate::stand::apply(&stand.lab, include_str!("../../examples/operator-rbac.yaml")).await?;
    // Nothing was changed meanwhile, by its own account: whoever waited is served.
    stand.until_granted("unseen").await?;

    stand.controller.kill();
    let kubeconfig = stand.lab.kubeconfig("admin")?;
    stand.controller.set_env("KUBECONFIG", kubeconfig.to_str().context("a path in UTF-8")?);
    stand.controller.start()?;
    told("the operator runs as \"admin\", which is no service account").await?;
    stand.ask(Ask::new("as-admin").instance(&id)).await?;
    anyhow::ensure!(stand.pushes(&id).len() == 1, "a key was pushed by nobody knows whom");
    Ok(())
}
