//! What guards the requests is upgraded under live grants, and rolled back; and somebody hides behind that.
//!
//! Two releases are played by one binary. The admission policies of one name no gateway, and those of the other do: so each
//! ships another policy, and finds the other's `EnforcementMissing`, as two versions would. An older CRD is this one without
//! a field, and then the Lease has what an older operator, which ships that, would have written.

use std::time::Instant;

use anyhow::Context;
use instance_access::api::InstanceAccess;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use serde_json::{Value, json};

use crate::days;
use crate::stand::{Ask, Controller, Day, Outcome, SOON, Special, Stand, apply, reason, shown, tell};

pub fn days() -> Vec<(&'static str, Day)> {
    days![
        a_grant_outlives_an_upgrade_and_its_rollback_and_who_waited_is_served,
        a_grant_outlives_the_upgrade_of_a_crd_that_lacked_a_field,
        whoever_hides_behind_an_upgrade_gains_nothing,
    ]
}

const ENFORCEMENT: &str = "instanceaccess.dev/enforcement";
const STATUS_POLICY: &str = "ValidatingAdmissionPolicy status.instanceaccess.dev";
const REQUESTS: &str = "instanceaccesses.instanceaccess.dev";
/// How long a key may be missing altogether where a release follows another at once, in seconds at the machine's pace: seen,
/// never.
const KEYLESS_MAX: f64 = 60.0;

async fn stand() -> anyhow::Result<(Stand, Controller)> {
    let stand = Stand::own(Special::with_long_lease()).await?;
    let newer = stand.controller.beside("newer")?;
    newer.set_env("INSTANCE_ACCESS_GATEWAY_SERVICE_ACCOUNT", "instance-access/gateway");
    Ok((stand, newer))
}

/// Applies the admission policies of one of the two releases.
async fn ship(stand: &Stand, is_newer: bool) -> Outcome {
    let newer = ["--gateway-service-account", "instance-access/gateway"];
    let older = ["admission", "--operator-service-account", "instance-access/operator"];
    let arguments = if is_newer { [&older[..], &newer].concat() } else { older.to_vec() };
    apply(&stand.lab, &tell(&arguments).await?).await
}

async fn leases(stand: &Stand) -> anyhow::Result<Api<Lease>> {
    Ok(Api::namespaced(stand.client("admin").await?, "instance-access"))
}

/// What the Lease says of what stood.
async fn vouched(stand: &Stand) -> anyhow::Result<Value> {
    let lease = leases(stand).await?.get("controller").await?;
    let text = lease.metadata.annotations.unwrap_or_default().remove(ENFORCEMENT).context("the leader said nothing")?;
    Ok(serde_json::from_str(&text)?)
}

/// Waits until the Lease says that this generation of a piece stood.
async fn until_vouched(stand: &Stand, piece: &str, generation: i64) -> anyhow::Result<Value> {
    lab::poll::until("the leader's word", SOON, async || match vouched(stand).await {
        Ok(said) if said["pieces"][piece][1] == generation => Ok(said),
        other => Err(format!("{other:?}")),
    })
    .await
}

/// Waits until the operator finds something wrong, in these words.
async fn until_missing(controller: &Controller, words: &str) -> Outcome {
    lab::poll::until("what guards requests to be found missing", SOON, async || {
        match controller.page("/readyz").await {
            Ok((503, body)) if body.contains(words) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await
}

/// Waits until a controller sees that another one leads.
async fn until_stands_by(controller: &Controller) -> Outcome {
    lab::poll::until_ok("it to stand by", SOON, || match controller.log_of("stands by") {
        told if told.is_empty() => Err(controller.log_of("")),
        _ => Ok(()),
    })
    .await
}

/// Tells a controller to stop, and waits until it did.
async fn stop(controller: &Controller) -> Outcome {
    controller.signal("-TERM").await?;
    let status = lab::poll::until("the controller to end", SOON, async || controller.death().ok_or("it runs")).await?;
    anyhow::ensure!(status.success(), "{status}: {}", controller.log_of("error"));
    Ok(())
}

/// Waits for one push more than there are.
async fn until_pushed_again(stand: &Stand, id: &str) -> Outcome {
    let before = stand.pushes(id).len();
    lab::poll::until_ok("another push", SOON, || match stand.pushes(id).len() {
        now if now > before => Ok(()),
        now => Err(format!("{now} pushes")),
    })
    .await
}

/// How long no key could be read until now, since the first push: in seconds by the clock, and at the machine's pace.
async fn keyless(stand: &Stand, id: &str) -> (f64, f64) {
    let mut times: Vec<Timestamp> = stand.pushes(id).iter().map(|push| push.time).collect();
    times.push(Timestamp::now());
    let (mut by_clock, mut at_pace) = (0.0, 0.0);
    for pair in times.windows(2) {
        let faded = pair[0] + SignedDuration::from_secs(60);
        let gap = pair[1].duration_since(faded).as_secs_f64().max(0.0);
        by_clock += gap;
        if gap > 0.0 {
            at_pace += gap - lab::pace::stolen(faded, pair[1]).await;
        }
    }
    (by_clock, at_pace)
}

/// It is the grant that it was, and never ended.
async fn is_as_granted(stand: &Stand, granted: &InstanceAccess) -> Outcome {
    let name = granted.metadata.name.as_deref().context("a name")?;
    let now = stand.until_granted(name).await?;
    let grant = |object: &InstanceAccess| object.status.as_ref().and_then(|status| status.grant.clone());
    anyhow::ensure!(grant(&now) == grant(granted), "{:?} was {:?}", grant(&now), grant(granted));
    Ok(())
}

async fn a_grant_outlives_an_upgrade_and_its_rollback_and_who_waited_is_served() -> Outcome {
    let (stand, newer) = stand().await?;
    let older = &stand.controller;
    let (id, stopped) = (stand.running(), stand.lab.launch_instance(lab::Launch::new("sleepy").stopped()).await?);
    stand.ask(Ask::new("live").instance(&id)).await?;
    let live = stand.until_granted("live").await?;
    stand.ask(Ask::new("waits").instance(&stopped.id)).await?;
    stand.until("waits", "InstanceNotRunning", &[]).await?;
    let said = until_vouched(&stand, STATUS_POLICY, 1).await?;

    // The objects of the newer release come first, as by helm; a CRD has other words, which are not in anybody's way.
    ship(&stand, true).await?;
    until_missing(older, "status.instanceaccess.dev is not as it was shipped").await?;
    stand.ask(Ask::new("asked-meanwhile").instance(&id)).await?;
    stand.until("asked-meanwhile", "EnforcementMissing", &[]).await?;
    let words =
        json!([{"op": "replace", "path": "/spec/versions/0/schema/openAPIV3Schema/description", "value": "Words"}]);
    let words: Patch<()> = Patch::Json(serde_json::from_value(words)?);
    let crds: Api<CustomResourceDefinition> = Api::all(stand.client("admin").await?);
    crds.patch(REQUESTS, &PatchParams::default(), &words).await?;
    // What the older one vouched for stays, also when it is told to stop, and it ends nothing. Nor does another one of the
    // older release, which leads for a while where the leader's pod is replaced before the others.
    let another = older.beside("another")?;
    another.start()?;
    until_stands_by(&another).await?;
    stop(older).await?;
    until_missing(&another, "status.instanceaccess.dev is not as it was shipped").await?;
    stand.ask(Ask::new("asked-of-another").instance(&id)).await?;
    stand.until("asked-of-another", "EnforcementMissing", &[]).await?;
    newer.start()?;
    until_stands_by(&newer).await?;
    stop(&another).await?;
    anyhow::ensure!(vouched(&stand).await? == said, "the older one vouched for what it does not ship");

    newer.until_ready().await?;
    let since = &newer.log_of("what guards the requests stands");
    stand.until_granted("asked-meanwhile").await?;
    stand.until_granted("asked-of-another").await?;
    until_pushed_again(&stand, &id).await?;
    is_as_granted(&stand, &live).await?;
    let (missing, at_pace) = keyless(&stand, &id).await;
    let missing =
        format!("no key for {missing:.1} s in all over an upgrade, of which this machine let one live {at_pace:.1} s");
    eprintln!("{missing}");
    anyhow::ensure!(at_pace <= KEYLESS_MAX, "{missing}");
    let now = until_vouched(&stand, STATUS_POLICY, 2).await?;
    anyhow::ensure!(
        now["toldTime"] == said["toldTime"] && now.get("seenTime").is_none(),
        "{said}, then {now}; {since}"
    );
    let crd = format!("CustomResourceDefinition {REQUESTS}");
    anyhow::ensure!(now["pieces"][&crd][1] == 2, "{now}");

    // And back; this time the leader is killed, and the older one begins before it finds its own objects.
    newer.kill();
    older.start()?;
    until_missing(older, "status.instanceaccess.dev is not as it was shipped").await?;
    ship(&stand, false).await?;
    older.until_ready().await?;
    until_pushed_again(&stand, &id).await?;
    is_as_granted(&stand, &live).await?;
    stand.until_granted("asked-meanwhile").await?;
    let back = until_vouched(&stand, STATUS_POLICY, 3).await?;
    anyhow::ensure!(back["toldTime"] == said["toldTime"] && back.get("seenTime").is_none(), "{said}, then {back}");
    stand.lab.start_instance("sleepy").await?;
    stand.until_granted("waits").await?;
    stand.delete("alice", "live").await?;
    older.intended_once(&live)?;
    anyhow::ensure!(older.recorded(&live, "Granted") == 1, "told twice");
    older.verify(&[&live]).await?;
    Ok(())
}

async fn a_grant_outlives_the_upgrade_of_a_crd_that_lacked_a_field() -> Outcome {
    let (stand, _) = stand().await?;
    let id = stand.running();
    stand.ask(Ask::new("live").instance(&id).with("ticket", json!("INC-1"))).await?;
    let live = stand.until_granted("live").await?;
    let piece = format!("CustomResourceDefinition {REQUESTS}");
    let mut said = until_vouched(&stand, &piece, 1).await?;
    stop(&stand.controller).await?;

    // An older release, which knew no tickets, and its operator's word. What its CRD does not know is not shown, ...
    let crds: Api<CustomResourceDefinition> = Api::all(stand.client("admin").await?);
    let newer = crds.get(REQUESTS).await?;
    let without = |value: &mut Value| {
        let spec = value.pointer_mut("/spec/versions/0/schema/openAPIV3Schema/properties/spec").expect("a schema");
        let fields = spec["properties"].as_object_mut().expect("fields");
        fields.remove("ticket").expect("tickets are known");
        let rules = spec["x-kubernetes-validations"].as_array_mut().expect("rules");
        rules.retain(|rule| !rule.to_string().contains("ticket"));
    };
    let mut older = serde_json::to_value(&newer)?;
    without(&mut older);
    crds.replace(REQUESTS, &PostParams::default(), &serde_json::from_value(older)?).await?;
    said["pieces"][&piece][1] = json!(2);
    let word = json!({"metadata": {"annotations": {ENFORCEMENT: said.to_string()}}});
    leases(&stand).await?.patch("controller", &PatchParams::default(), &Patch::Merge(word)).await?;
    lab::poll::until("no tickets", SOON, async || match stand.get("live").await {
        Ok(object) if object.spec.ticket.is_none() => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await?;

    // ... and is there again when this one does, for nobody wrote the object meanwhile.
    let mut again = newer;
    again.metadata.resource_version = crds.get(REQUESTS).await?.metadata.resource_version;
    crds.replace(REQUESTS, &PostParams::default(), &again).await?;
    lab::poll::until("tickets", SOON, async || match stand.get("live").await {
        Ok(object) if object.spec.ticket.as_deref() == Some("INC-1") => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await?;
    stand.controller.start()?;
    stand.controller.until_ready().await?;
    until_pushed_again(&stand, &id).await?;
    is_as_granted(&stand, &live).await?;
    until_vouched(&stand, &piece, 3).await?;
    Ok(())
}

/// An object that guards requests.
struct Guarding {
    api: Api<DynamicObject>,
    name: &'static str,
}

impl Guarding {
    async fn new(stand: &Stand, kind: &str, name: &'static str) -> anyhow::Result<Self> {
        let group = if kind.starts_with("Custom") { "apiextensions.k8s.io" } else { "admissionregistration.k8s.io" };
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, "v1", kind));
        Ok(Self { api: Api::all_with(stand.client("admin").await?, &resource), name })
    }

    async fn bend(&self, patch: Value) -> Outcome {
        let patch: Patch<()> = Patch::Json(serde_json::from_value(patch)?);
        self.api.patch(self.name, &PatchParams::default(), &patch).await?;
        Ok(())
    }
}

/// mallory asks in alice's name, as soon as nothing keeps her from it.
async fn forge_request(stand: &Stand, name: &str, id: &str) -> Outcome {
    let ask = Ask::new(name).instance(id).with("requester", json!({"username": "alice", "groups": ["developers"]}));
    lab::poll::until("a forged request to be let in", SOON, async || {
        stand.create("mallory", &ask).await.map_err(|error| format!("{error:#}"))
    })
    .await?;
    Ok(())
}

/// The status of a live grant, for a request that waits for its start, as the operator would write it.
async fn forge_status(stand: &Stand, honest: &InstanceAccess, name: &str) -> Outcome {
    let target = stand.get(name).await?;
    let (uid, status) = (target.metadata.uid.context("a uid")?, target.status.context("a status")?);
    let digest = status.spec_digest.context("a digest")?;
    let now = Timestamp::from_second(Timestamp::now().as_second())?;
    let mut forged = serde_json::to_value(honest.status.as_ref().context("a status")?)?;
    forged["grant"]["id"] = json!(instance_access::domain::digest::grant_id(&uid, &digest));
    forged["grant"]["startTime"] = json!(now);
    forged["grant"]["expirationTime"] = json!(now + SignedDuration::from_secs(3000));
    forged["specDigest"] = json!(digest);
    let patch = json!({"status": forged});
    let api: Api<InstanceAccess> = Api::namespaced(stand.client("admin").await?, crate::stand::NAMESPACE);
    lab::poll::until("a forged status to be let in", SOON, async || {
        api.patch_status(name, &PatchParams::default(), &Patch::Merge(&patch)).await.map_err(|error| error.to_string())
    })
    .await?;
    Ok(())
}

/// Each row with no operator at work, which is the best time for it, and then an upgrade, a rollback or nothing at all.
async fn whoever_hides_behind_an_upgrade_gains_nothing() -> Outcome {
    let (stand, newer) = stand().await?;
    let older = &stand.controller;
    let binding = Guarding::new(&stand, "ValidatingAdmissionPolicyBinding", "requests.instanceaccess.dev").await?;
    let policy = Guarding::new(&stand, "ValidatingAdmissionPolicy", "status.instanceaccess.dev").await?;
    let crd = Guarding::new(&stand, "CustomResourceDefinition", REQUESTS).await?;
    let begin = Instant::now();
    let (mut is_newer, mut loots) = (false, Vec::new());
    let rows = [
        "deleted and made again",
        "loosened and put back",
        "loosened and upgraded",
        "a CRD bent and put back",
        // What would be believed, were it not for the word.
        "upgraded by another era",
    ];
    for row in rows {
        let leader = if is_newer { &newer } else { older };
        let names =
            ["live", "starts-later", "forged"].map(|name| format!("{name}-{}", row.replace(' ', "-").to_lowercase()));
        let [live, later, forged] = &names;
        let (id, loot) = (stand.running(), stand.running());
        stand.ask(Ask::new(live).instance(&id)).await?;
        let granted = stand.until_granted(live).await?;
        let start = Timestamp::from_second(Timestamp::now().as_second() + 3000)?;
        stand.ask(Ask::new(later).instance(&loot).with("startTime", json!(start))).await?;
        stand.until(later, "Scheduled", &[]).await?;
        let stood = policy.api.get(policy.name).await?.metadata.generation.context("a generation")?;
        let mut word = until_vouched(&stand, STATUS_POLICY, stood).await?;
        stop(leader).await?;

        let loosen = json!([{"op": "replace", "path": "/spec/validations/0/expression", "value": "true"}]);
        let is_forged = match row {
            "deleted and made again" => {
                let mut kept = binding.api.get(binding.name).await?;
                binding.api.delete(binding.name, &DeleteParams::default()).await?;
                forge_request(&stand, forged, &loot).await?;
                (kept.metadata.resource_version, kept.metadata.uid) = (None, None);
                binding.api.create(&PostParams::default(), &kept).await?;
                true
            }
            "loosened and put back" => {
                policy.bend(loosen).await?;
                forge_status(&stand, &granted, later).await?;
                ship(&stand, is_newer).await?;
                false
            }
            "loosened and upgraded" => {
                policy.bend(loosen).await?;
                forge_status(&stand, &granted, later).await?;
                is_newer = !is_newer;
                ship(&stand, is_newer).await?;
                false
            }
            "upgraded by another era" => {
                word["era"] = json!(2);
                let word = json!({"metadata": {"annotations": {ENFORCEMENT: word.to_string()}}});
                leases(&stand).await?.patch("controller", &PatchParams::default(), &Patch::Merge(word)).await?;
                is_newer = !is_newer;
                ship(&stand, is_newer).await?;
                false
            }
            _ => {
                // The rule that a requester stays who it was, for one moment.
                let mut kept = crd.api.get(crd.name).await?;
                let rules = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/x-kubernetes-validations";
                crd.bend(json!([{"op": "remove", "path": rules}])).await?;
                kept.metadata.resource_version = crd.api.get(crd.name).await?.metadata.resource_version;
                crd.api.replace(crd.name, &PostParams::default(), &kept).await?;
                false
            }
        };
        let leader = if is_newer { &newer } else { older };
        leader.start()?;
        let taken_back = |object: &InstanceAccess| match reason(object) {
            "RevocationPending" | "Revoked" => Ok(()),
            _ => Err(shown(object)),
        };
        if is_forged {
            stand.until_denied(forged, "RequesterUnchecked", &["make the request again"]).await?;
        }
        // Nobody can tell any more that what was honest is: it gets no key, and waits or is over.
        stand.until_within(later, "taken back", SOON, taken_back).await?;
        stand.until_within(live, "taken back", SOON, taken_back).await?;
        anyhow::ensure!(stand.pushes(&loot).is_empty(), "{row}: a key was pushed");
        leader.until_ready().await?;
        loots.push((loot, names));
        let stands = policy.api.get(policy.name).await?.metadata.generation.context("a generation")?;
        let said = until_vouched(&stand, STATUS_POLICY, stands).await?;
        if row == "upgraded by another era" {
            anyhow::ensure!(said["toldTime"].as_str() > word["toldTime"].as_str(), "{row}: {word}, then {said}");
            anyhow::ensure!(leader.log_of("is not believed").contains("era 2"), "{}", leader.log_of("is not believed"));
        } else {
            anyhow::ensure!(said.get("seenTime").is_some(), "{row}: nothing was seen: {said}");
        }
    }
    for (loot, [live, later, _]) in &loots {
        for name in [live, later] {
            let over = |object: &InstanceAccess| if reason(object) == "Revoked" { Ok(()) } else { Err(shown(object)) };
            stand.until_within(name, "Revoked", SOON + SOON, over).await?;
        }
        anyhow::ensure!(stand.pushes(loot).is_empty(), "{later}: a key was pushed");
    }
    eprintln!("{} attacks in {:.0} s", rows.len(), begin.elapsed().as_secs_f64());
    // Of what was made after it, all goes on.
    let id = stand.running();
    stand.ask(Ask::new("after").instance(&id)).await?;
    stand.until_granted("after").await?;
    Ok(())
}
