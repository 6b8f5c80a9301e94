//! A policy's change of mind, each in a namespace of its own.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::history::{condition, conditions, stage, text};
use crate::request::{Request, is_over, whole_second_in};
use crate::stand::{BOUND, Stand, in_its_time, policy, shared};

/// A grant under a policy and in a namespace of its own, that does not end by itself while the test lasts.
async fn granted<'a>(stand: &'a Stand, name: &str) -> Request<'a> {
    granted_for(stand, name, 600).await
}

/// The same, for so many seconds.
async fn granted_for<'a>(stand: &'a Stand, name: &str, seconds: u32) -> Request<'a> {
    stand.namespace(name).await;
    stand.policy(&policy(name, name, json!({}))).await;
    let request = stand.request("alice", "look").within(name).with(json!({"ttlSeconds": seconds})).applied().await;
    let granted = request.becomes("Granted").await;
    assert_eq!(text(&granted, "/status/policy/name"), name);
    request
}

/// It is taken back, with these words in its status.
async fn is_taken_back(request: &Request<'_>, words: &str) {
    let ended = request.ends("Revoked").await;
    assert_eq!(text(&ended, "/status/revocation/cause"), "PolicyChanged");
    let told = request
        .versions()
        .iter()
        .any(|version| condition(&version.object, "Active").is_some_and(|(_, _, message)| message.contains(words)));
    assert!(told, "no status said {words:?}: {:?}", condition(&ended, "Ended"));
    request.is_locked_out().await;
    request.keeps_its_promises().await;
}

pub async fn a_policy_edited_so_that_it_no_longer_admits_a_grant_ends_it() {
    let stand = shared().await;
    let request = granted(stand, "edited").await;
    stand.policy(&policy("edited", "edited", json!({"osUsers": ["ops"]}))).await;
    is_taken_back(&request, "policy edited no longer admits this").await;
}

pub async fn a_deleted_policy_ends_its_grants() {
    let stand = shared().await;
    let request = granted(stand, "dropped").await;
    stand.kubectl_ok("admin", &["delete", "instanceaccesspolicy", "dropped"]).await;
    is_taken_back(&request, "policy dropped was deleted").await;
}

pub async fn a_deny_that_is_added_ends_what_it_matches() {
    let stand = shared().await;
    let request = granted(stand, "denied-later").await;
    let deny = json!({"effect": "Deny", "ttl": null, "reason": null, "osUsers": ["*"]});
    stand.policy(&policy("nobody", "denied-later", deny)).await;
    is_taken_back(&request, "policy nobody denies this").await;
    let message =
        stand.request("alice", "again").within("denied-later").applied().await.is_denied("DeniedByPolicy").await;
    assert!(message.contains("nobody"), "{message}");
}

pub async fn an_edit_that_still_admits_a_grant_leaves_it_alone() {
    let stand = shared().await;
    let request = granted_for(stand, "tightened", 200).await;
    let versions = request.versions().len();
    stand.policy(&policy("tightened", "tightened", json!({"ttl": {"defaultSeconds": 120, "maxSeconds": 600}}))).await;
    let longer = stand.request("alice", "longer").within("tightened").with(json!({"ttlSeconds": 3600})).applied().await;
    let message = longer.is_denied("DeniedByPolicy").await;
    assert!(message.contains("600"), "{message}");
    assert_eq!((stage(&request.newest()), request.versions().len()), ("Granted", versions));
    request.ends("Expired").await;
    request.keeps_its_promises().await;
}

pub async fn a_broken_pattern_is_told_by_its_policy_and_the_others_go_on() {
    let stand = shared().await;
    stand.namespace("broken").await;
    stand
        .apply(&policy("broken", "broken", json!({"reason": {"required": true, "pattern": "(?<="}, "priority": 100})))
        .await;
    let wait = ["wait", "--for", "condition=Ready=false", "--timeout", "150s", "instanceaccesspolicy/broken"];
    stand.kubectl_ok("admin", &wait).await;
    let said = stand
        .kubectl_ok(
            "admin",
            &["get", "instanceaccesspolicy", "broken", "-o", "jsonpath={.status.conditions[0].message}"],
        )
        .await;
    assert!(said.contains("spec.reason.pattern"), "{said}");
    let message = stand.request("alice", "look").within("broken").applied().await.is_denied("DeniedByPolicy").await;
    assert!(message.contains("broken"), "{message}");
    stand.policy(&policy("whole", "broken", json!({}))).await;
    let request = stand.request("alice", "again").within("broken").applied().await;
    request.becomes("Granted").await;
    request.delete().await;
    request.goes().await;
    request.keeps_its_promises().await;
}

/// Every day in UTC, between two whole minutes.
fn window(start: Timestamp, end: Timestamp) -> Value {
    let minute = |time: Timestamp| time.strftime("%H:%M").to_string();
    json!([{
        "days": ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"],
        "start": minute(start), "end": minute(end), "timeZone": "Etc/UTC",
    }])
}

pub async fn a_window_and_a_condition_refuse_then_admit_and_the_window_ends_the_grant() {
    let stand = shared().await;
    stand.namespace("hours").await;
    let now = Timestamp::now();
    let minutes = |count: i64| Timestamp::from_second(now.as_second() / 60 * 60 + count * 60).unwrap();
    let under = |windows: Value| {
        policy(
            "hours",
            "hours",
            json!({"windows": windows, "conditions": [
                {"expression": "request.reason.startsWith('INC-')", "message": "begin spec.reason with INC-"},
                {"expression": "instance.tags.env == 'dev'", "message": "not there"},
            ]}),
        )
    };
    let ask = |name: &str, reason: &str| {
        let more = json!({"reason": reason, "ttlSeconds": 3600});
        stand.request("alice", name).within("hours").with(more)
    };
    let closed = under(window(minutes(120), minutes(180)));
    stand.policy(&closed).await;
    let message = ask("both", "just so").applied().await.is_denied("DeniedByPolicy").await;
    let opens = minutes(120).to_string();
    for words in ["hours, which allows access only at", &opens, "does not hold: begin spec.reason with INC-"] {
        assert!(message.contains(words), "{message:?} lacks {words:?}");
    }
    stand.policy(&under(window(minutes(-60), minutes(60)))).await;
    let message = ask("condition", "just so").applied().await.is_denied("DeniedByPolicy").await;
    assert!(!message.contains("only at") && message.contains("begin spec.reason with INC-"), "{message}");
    // A window that closes in two to three minutes: nobody is let in any more in the last seventy seconds of it.
    let (request, granted, closes) = in_its_time("granted", async |name| {
        let closes = Timestamp::from_second(whole_second_in(115 + 59).as_second() / 60 * 60).unwrap();
        stand.policy(&under(window(minutes(-60), closes))).await;
        let request = ask(name, "INC-1: the disk is full").applied().await;
        let judged = request.until("is judged", BOUND, |object| stage(object) == "Granted" || is_over(object)).await;
        if stage(&judged) == "Granted" {
            return Ok((request, judged, closes));
        }
        let shown = format!("{} for a window that closes at {closes}", conditions(&judged));
        let is_late = Timestamp::now() >= closes - SignedDuration::from_secs(70);
        assert!(is_late && request.pushes().is_empty(), "{name}: {shown}");
        Err(shown)
    })
    .await;
    assert_eq!(text(&granted, "/status/grant/expirationTime"), closes.to_string());
    let (_, _, approved) = condition(&granted, "Approved").unwrap();
    assert!(approved.contains(&format!("not beyond {closes}, when its window closes")), "{approved}");
    request.gets_in().await;
    request.ends("Expired").await;
    request.is_locked_out().await;
    request.keeps_its_promises().await;
}
