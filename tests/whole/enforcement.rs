//! Somebody takes away, or bends, what guards the requests. Each on a stand of its own.

use jiff::{SignedDuration, Timestamp};
use lab::pace::LateMax;
use lab::{pace, poll};
use serde_json::{Value, json};

use crate::history::{conditions, stage, text, time};
use crate::outage::end;
use crate::request::{EXPIRATION, Request, is_over};
use crate::stand::{BOUND, Stand, in_its_time};

/// How soon the operator must have noticed: a watch tells it within a moment. Whoever reads all anew each half minute would be
/// later, by the clock.
const NOTICED: LateMax = LateMax::new(5.0, 20.0);
const STANDS: &str = "instance_access_enforcement_stands";

/// Waits until the controller has noticed that something is wrong, and names it.
async fn notices(stand: &Stand, what: &str) {
    let bent_time = Timestamp::now();
    poll::until(&format!("{what} to be noticed"), BOUND, async || match stand.readiness().await {
        (503, why) if why.contains(what) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await
    .unwrap();
    pace::soon(&format!("the word that {what}"), bent_time, Timestamp::now(), NOTICED).await.unwrap();
    assert_eq!(stand.metric(STANDS).await, 0.0);
}

/// Deletes one of the policies or bindings.
async fn delete(stand: &Stand, kind: &str, name: &str) {
    stand.kubectl_ok("admin", &["delete", kind, name]).await;
}

/// Makes a request, as soon as the API server lets it in.
async fn slips_in<'a>(stand: &'a Stand, name: &str, spec: &Value) -> Request<'a> {
    let made = poll::until("the forged request to be let in", BOUND, async || {
        stand.request("mallory", name).with(spec.clone()).tried().await
    });
    made.await.unwrap()
}

/// Nothing was done for it, and nothing told about our instances.
fn got_nothing(request: &Request<'_>) {
    assert!(request.pushes().is_empty(), "{}: a key was pushed", request.name);
    let told = request.versions().iter().any(|version| version.object.pointer("/status/instance/privateIp").is_some());
    assert!(!told, "{} learnt where the instance is", request.name);
}

fn alice() -> Value {
    json!({"requester": {"username": "alice", "uid": "alice", "groups": ["developers", "system:authenticated"]}})
}

pub async fn a_requester_forged_while_nothing_checks_is_served_neither_then_nor_later() {
    let stand = Stand::start("forged").await;
    forged(&stand).await;
    end(stand).await;
}

async fn forged(stand: &Stand) {
    let honest = stand.request("alice", "honest").with(json!({"ttlSeconds": 600})).applied().await;
    honest.becomes("Granted").await;
    let refusal = stand.request("mallory", "forged").with(alice()).refused().await;
    assert!(refusal.contains("spec.requester.username must be your own"), "{refusal}");

    let (torn_out, pushes) = in_its_time("torn-out", async |name| {
        let torn_out = stand.request("alice", name).with(json!({"ttlSeconds": 600})).applied().await;
        torn_out.becomes("Granted").await;
        delete(stand, "validatingadmissionpolicybinding", "requests.instanceaccess.dev").await;
        notices(stand, "ValidatingAdmissionPolicyBinding requests.instanceaccess.dev is missing").await;
        match is_torn_out(&torn_out).await {
            Ok(pushes) => Ok((torn_out, pushes)),
            Err(why) => {
                stand.install_admission().await;
                Err(why)
            }
        }
    })
    .await;
    let forged = slips_in(stand, "forged", &alice()).await;
    let held = forged.becomes("EnforcementMissing").await;
    assert_eq!(text(&held, "/spec/requester/username"), "alice", "the attack was none");
    got_nothing(&forged);
    // Who was let in before gets no new key, and is told once the last one has faded.
    let told = honest.until("is told", BOUND + BOUND, |object| stage(object) == "EnforcementMissing").await;
    let message = &told["status"]["conditions"].to_string();
    assert!(
        message.contains("instance-access admission --operator-service-account instance-access/operator"),
        "{message}"
    );
    assert!(!honest.is_key_active());
    honest.is_locked_out().await;

    stand.install_admission().await;
    let message = forged.is_denied("RequesterUnchecked").await;
    assert!(message.contains("make the request again"), "{message}");
    got_nothing(&forged);
    stand.request("alice", "after").applied().await.becomes("Granted").await;
    // Nothing is pushed for what was torn out, and its end is on record once its last key has faded.
    let ended = stand.record(&torn_out.uid, "Ended", BOUND + BOUND).await;
    assert_eq!((text(&ended, "/record/cause"), torn_out.pushes().len()), ("Released", pushes));
    // The grant goes on, and what its owner does with it as well.
    honest.becomes("Granted").await;
    honest.gets_in().await;
    honest.delete().await;
    honest.goes().await;
    for request in [&honest, &forged] {
        request.keeps_its_promises().await;
    }

    // As below Kubernetes 1.36: nothing is filled in, and all else holds.
    for kind in ["mutatingadmissionpolicybinding", "mutatingadmissionpolicy"] {
        delete(stand, kind, "requests.instanceaccess.dev").await;
    }
    let unsaid = stand.request("alice", "unsaid");
    let refused = poll::until("nothing to be filled in", BOUND, async || {
        let asked = unsaid.dry_run().await;
        if asked.success() { Err(asked.stdout) } else { Ok(asked.stderr) }
    });
    let refusal = refused.await.unwrap();
    assert!(refusal.contains("spec.requester is missing, and this cluster does not fill it in"), "{refusal}");
    let refusal = stand.request("mallory", "forged-again").with(alice()).refused().await;
    assert!(refusal.contains("spec.requester.username must be your own"), "{refusal}");
    assert_eq!((stand.readiness().await.0, stand.metric(STANDS).await), (200, 1.0));
    let said = stand.request("alice", "said").with(alice()).applied().await;
    said.becomes("Granted").await;
    said.gets_in().await;
}

/// Deletes it past the finalizer, in the way that the admission policy's own words name, should the operator be gone for
/// good; returns how often its key was pushed until then. Only while its key lives, a minute, is there something to tear out:
/// after that the operator lets it go, and that is the error.
async fn is_torn_out(request: &Request<'_>) -> Result<usize, String> {
    request.delete().await;
    let pushes = request.pushes().len();
    let tear = r#"{"metadata": {"finalizers": null}}"#;
    let arguments = ["-n", "team", "patch", "ia", &request.name, "--type", "merge", "-p", tear];
    // The API server takes a moment to judge by the policy no more.
    let is_let_in = poll::until("the finalizer to be taken off", BOUND, async || {
        let torn = request.stand.kubectl("admin", &arguments).await;
        if torn.success() || torn.stderr.contains("NotFound") { Ok(torn.success()) } else { Err(torn.stderr) }
    });
    let is_let_in = is_let_in.await.unwrap();
    request.goes().await;
    let is_let_go = !is_let_in || is_over(&request.newest());
    if request.is_key_active() {
        assert!(!is_let_go, "let go before its key had faded: {}", conditions(&request.newest()));
        return Ok(pushes);
    }
    Err("its last key had faded before it was torn out".to_owned())
}

pub async fn whatever_is_bent_is_noticed_and_named_and_the_grant_ends_on_time() {
    let stand = Stand::start("bent").await;
    bent(&stand).await;
    end(stand).await;
}

async fn bent(stand: &Stand) {
    // Over all that is bent and mended again.
    let outlasts = stand.request("alice", "outlasts").with(json!({"ttlSeconds": 3600})).applied().await;
    let granted = outlasts.becomes("Granted").await;
    let policy = "validatingadmissionpolicy";
    let binding = "validatingadmissionpolicybinding";
    let schema = "/spec/versions/0/schema/openAPIV3Schema/properties";
    let rows = [
        (
            policy,
            "requests.instanceaccess.dev",
            json!({"op": "replace", "path": "/spec/failurePolicy", "value": "Ignore"}),
        ),
        (
            policy,
            "requests.instanceaccess.dev",
            json!({"op": "add", "path": "/spec/matchConditions", "value": [{"name": "never", "expression": "false"}]}),
        ),
        (
            policy,
            "requests.instanceaccess.dev",
            json!({"op": "replace", "path": "/spec/validations/1/expression", "value": "true"}),
        ),
        (
            policy,
            "status.instanceaccess.dev",
            json!({"op": "replace", "path": "/spec/validations/0/expression", "value": "true"}),
        ),
        (
            binding,
            "requests.instanceaccess.dev",
            json!({"op": "replace", "path": "/spec/validationActions", "value": ["Audit"]}),
        ),
        (
            binding,
            "status.instanceaccess.dev",
            json!({"op": "replace", "path": "/spec/policyName", "value": "requests.instanceaccess.dev"}),
        ),
        (
            "mutatingadmissionpolicy",
            "requests.instanceaccess.dev",
            json!({"op": "replace", "path": "/spec/failurePolicy", "value": "Ignore"}),
        ),
        (
            "crd",
            "instanceaccesses.instanceaccess.dev",
            json!({"op": "remove", "path": format!("{schema}/spec/x-kubernetes-validations")}),
        ),
        (
            "crd",
            "instanceaccesses.instanceaccess.dev",
            json!({"op": "remove", "path": "/spec/versions/0/subresources"}),
        ),
        (
            "crd",
            "instanceaccesspolicies.instanceaccess.dev",
            json!({"op": "remove", "path": format!("{schema}/spec/required")}),
        ),
    ];
    for (kind, name, bend) in rows {
        let kept = stand.kubectl_ok("admin", &["get", kind, name, "-o", "json"]).await;
        let mut kept: Value = serde_json::from_str(&kept).unwrap();
        kept["metadata"].as_object_mut().unwrap().remove("resourceVersion");
        kept.as_object_mut().unwrap().remove("status");
        stand.kubectl_ok("admin", &["patch", kind, name, "--type=json", "-p", &json!([bend]).to_string()]).await;
        notices(stand, &format!("{name} is not as it was shipped")).await;
        stand.kubectl_ok("admin", &["replace", "-f", &stand.manifest(&kept)]).await;
        let mended = poll::until("it to stand again", BOUND, async || match stand.metric(STANDS).await {
            1.0 => Ok(()),
            other => Err(other),
        });
        mended.await.unwrap();
    }
    assert!(stand.metric("instance_access_enforcement_losses_total").await >= 10.0);
    outlasts.until("goes on", BOUND, |object| stage(object) == "Granted").await;
    assert_eq!(time(&outlasts.newest(), EXPIRATION), time(&granted, EXPIRATION));
    // Over a grant's end: what is missing does not put it off.
    stand.is_ready().await;
    let request = stand.request("alice", "honest").applied().await;
    let expiration = time(&request.becomes("Granted").await, EXPIRATION).unwrap();
    delete(stand, policy, "status.instanceaccess.dev").await;
    notices(stand, "ValidatingAdmissionPolicy status.instanceaccess.dev is missing").await;
    assert!(Timestamp::now() < expiration, "the machine was too slow for this test");
    let ended = request.ends("Expired").await;
    let ended_time = request.is_seen("over", |version| is_over(&version.object)).await;
    pace::in_time("the end", expiration, ended_time, 5.0).await.unwrap();
    assert_eq!(time(&ended, EXPIRATION), Some(expiration));
    request.is_locked_out().await;
    request.keeps_its_promises().await;
}

/// What the operator writes for a grant, for a request that waits for its start.
async fn forge(stand: &Stand, request: &Request<'_>, honest: &Value) {
    let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap();
    let mut status = honest["status"].clone();
    status["grant"] = json!({
        "id": grant_id(&request.uid, text(&request.newest(), "/status/specDigest")),
        "startTime": now.to_string(),
        "expirationTime": (now + SignedDuration::from_secs(3600)).to_string(),
    });
    status["specDigest"] = request.newest()["status"]["specDigest"].clone();
    let patch = json!({"status": status}).to_string();
    let name = request.name.clone();
    let arguments = ["-n", "team", "patch", "ia", &name, "--subresource=status", "--type=merge", "-p", &patch];
    poll::until("a forged status to be let in", BOUND, async || {
        let done = stand.kubectl("admin", &arguments).await;
        if done.success() { Ok(()) } else { Err(done.stderr) }
    })
    .await
    .unwrap();
}

/// As src/domain/digest.rs makes it; whoever can read can forge it.
fn grant_id(uid: &str, digest: &str) -> String {
    use sha2::{Digest, Sha256};
    let hash = Sha256::digest(format!("{uid}/{digest}"));
    let hex: String = hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("g-{hex}")
}

/// It ends without a key, and said why.
async fn is_taken_back(request: &Request<'_>, words: &str) {
    request.ends("Revoked").await;
    let told =
        request.versions().iter().any(|version| version.object["status"]["conditions"].to_string().contains(words));
    assert!(told, "{}: no status said {words:?}", request.name);
    assert!(request.pushes().is_empty(), "{}: a key was pushed", request.name);
}

pub async fn a_grant_that_somebody_writes_into_status_lets_nobody_in() {
    let stand = Stand::start("written").await;
    written(&stand).await;
    end(stand).await;
}

async fn written(stand: &Stand) {
    let honest = stand.request("alice", "honest").with(json!({"ttlSeconds": 600})).applied().await;
    let granted = honest.becomes("Granted").await;
    assert_eq!(text(&granted, "/status/grant/id"), grant_id(&honest.uid, text(&granted, "/status/specDigest")));
    let later = (Timestamp::now() + SignedDuration::from_secs(3600)).to_string();
    let scheduled = async |name| {
        let request = stand.request("alice", name).with(json!({"startTime": later})).applied().await;
        request.becomes("Scheduled").await;
        request
    };

    // While the operator looks.
    let seen = scheduled("seen").await;
    delete(stand, "validatingadmissionpolicybinding", "status.instanceaccess.dev").await;
    forge(stand, &seen, &granted).await;
    is_taken_back(&seen, "status holds a grant that the operator did not make").await;
    stand.install_admission().await;
    // Its own grants it knows.
    honest.until("goes on", BOUND + BOUND, |object| stage(object) == "Granted").await;
    let pushes = honest.pushes().len();
    honest.is_pushed(pushes + 1, BOUND + BOUND).await;

    // While it does not.
    let unseen = scheduled("unseen").await;
    stand.kill_controller().await;
    delete(stand, "validatingadmissionpolicybinding", "status.instanceaccess.dev").await;
    forge(stand, &unseen, &granted).await;
    let file = stand.lab.dir().join("admission.yaml");
    stand.kubectl_ok("admin", &["apply", "--server-side", "-f", file.to_str().unwrap()]).await;
    stand.start_controller().await;
    is_taken_back(&unseen, "the grant is older than the admission policies or CRDs that stand now").await;
    // And nobody can tell that an old grant is honest, which then is safe to end.
    honest.ends("Revoked").await;
    honest.is_locked_out().await;
    honest.keeps_its_promises().await;
}
