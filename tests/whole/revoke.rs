//! Access taken back before its time: by `spec.revoke`, and by deleting the request.

use jiff::Timestamp;
use lab::{pace, poll};
use serde_json::json;

use crate::history::{condition, conditions, stage, text, time};
use crate::request::{EXPIRATION, KEY_WINDOW, seconds};
use crate::stand::{BOUND, kinds, shared};

pub async fn a_revoked_grant_is_pushed_no_more_and_ends_once_the_last_key_has_faded() {
    let stand = shared().await;
    let request = stand.request("alice", "revoked").applied().await;
    let granted = request.becomes("Granted").await;
    let granted_time = Timestamp::now();
    request.gets_in().await;
    request.revoke("the laptop is lost").await;
    let pending = request.becomes("RevocationPending").await;
    assert_eq!(
        conditions(&pending),
        "Approved=True AdmittedByPolicy, Active=True RevocationPending, Reconciling=True RevocationPending"
    );
    assert!(condition(&pending, "Active").unwrap().2.contains("the laptop is lost"), "{}", conditions(&pending));
    let pushes = request.pushes();
    let closed = time(&pending, EXPIRATION).unwrap();
    assert!(closed < time(&granted, EXPIRATION).unwrap(), "expirationTime did not move earlier");
    // It reckons from when the push was answered; and if the controller started in the very second of the grant, with a push of
    // the process before it.
    let last = pushes.last().unwrap();
    let wait = seconds(last.time + KEY_WINDOW, closed);
    let on_its_way = pace::stolen(last.time, granted_time).await;
    assert!((0.0..12.0 + on_its_way).contains(&wait), "the end is {wait} s after the last key fades");

    let ended = request.ends("Revoked").await;
    assert_eq!(conditions(&ended), "Approved=True AdmittedByPolicy, Active=False Revoked, Ended=True Revoked");
    assert_eq!(text(&ended, "/status/revocation/cause"), "Revoked");
    assert!(!request.is_key_active());
    request.is_locked_out().await;
    assert_eq!(request.pushes().len(), pushes.len());
    let records = request.records();
    assert_eq!(kinds(&records)[records.len() - 2..], ["EndIntended", "Ended"]);
    assert_eq!(text(records.last().unwrap(), "/record/cause"), "Revoked");
    request.keeps_its_promises().await;
}

pub async fn a_deleted_request_stays_until_its_last_key_has_faded() {
    let stand = shared().await;
    let request = stand.request("alice", "deleted").applied().await;
    request.becomes("Granted").await;
    request.delete().await;
    let pending = request.becomes("RevocationPending").await;
    assert!(pending.pointer("/metadata/deletionTimestamp").is_some());
    assert!(request.is_key_active());
    request.goes().await;
    assert!(!request.is_key_active());
    request.is_locked_out().await;
    let versions = request.versions();
    let last = &versions[versions.len() - 2].object;
    assert_eq!(conditions(last), "Approved=True AdmittedByPolicy, Active=False Released, Ended=True Released");
    let records = request.records();
    assert_eq!(kinds(&records)[records.len() - 2..], ["EndIntended", "Ended"]);
    assert_eq!(text(records.last().unwrap(), "/record/cause"), "Released");
    request.keeps_its_promises().await;
}

pub async fn what_was_never_granted_is_deleted_at_once() {
    let stand = shared().await;
    stand.lab.launch_instance(lab::Launch::new("asleep").tag("env", "dev").stopped()).await.unwrap();
    let pending = stand.request("alice", "deleted-pending").on(&stand.lab.instance("asleep")).applied().await;
    pending.becomes("InstanceNotRunning").await;
    let denied = stand.request("mallory", "deleted-denied").applied().await;
    denied.is_denied("DeniedByPolicy").await;
    for request in [pending, denied] {
        request.delete().await;
        request.goes().await;
        let versions = request.versions();
        let gone = &versions.last().unwrap().object;
        let (deleted_time, gone_time) =
            (time(gone, "/metadata/deletionTimestamp").unwrap(), versions.last().unwrap().seen_time);
        pace::soon(&format!("the end of {}", request.name), deleted_time, gone_time, 20.0).await.unwrap();
        assert!(request.pushes().is_empty());
        request.keeps_its_promises().await;
    }
}

pub async fn a_request_revoked_before_its_grant_never_has_one() {
    let stand = shared().await;
    stand.lab.launch_instance(lab::Launch::new("sleeper").tag("env", "dev").stopped()).await.unwrap();
    let request = stand.request("alice", "revoked-pending").on(&stand.lab.instance("sleeper")).applied().await;
    request.becomes("InstanceNotRunning").await;
    request.revoke("not needed").await;
    let ended = request.ends("Revoked").await;
    assert!(ended["status"].get("grant").is_none());
    stand.lab.start_instance("sleeper").await.unwrap();
    request.delete().await;
    request.goes().await;
    assert!(request.pushes().is_empty());
}

pub async fn a_revocation_can_neither_be_taken_back_nor_forgotten_by_an_apply() {
    let stand = shared().await;
    let request = stand.request("alice", "one-way").applied().await;
    request.becomes("Granted").await;
    request.revoke("once").await;
    let patch = |value| json!([{"op": "replace", "path": "/spec/revoke", "value": value}]).to_string();
    let other = patch(json!({"reason": "twice"}));
    let refused =
        stand.kubectl("alice", &["-n", "team", "patch", "ia", "one-way", "--type", "json", "-p", &other]).await;
    assert!(refused.stderr.contains("cannot be taken back or changed"), "{refused:?}");
    // As GitOps does, again and again: the manifest knows nothing of the revocation.
    let applied = stand.kubectl("alice", &["apply", "-f", &stand.manifest(&request.manifest)]).await;
    assert!(applied.success(), "{applied:?}");
    assert!(applied.stdout.contains("unchanged") || applied.stdout.contains("configured"), "{applied:?}");
    assert_eq!(text(&request.newest(), "/spec/revoke/reason"), "once");
    request.ends("Revoked").await;
    request.keeps_its_promises().await;
}

pub async fn a_spec_cannot_be_edited_and_a_re_applied_one_is_not_granted_again() {
    let stand = shared().await;
    let request = stand.request("alice", "fixed").applied().await;
    request.becomes("Granted").await;
    for edit in [
        json!({"spec": {"ttlSeconds": 3600}}),
        json!({"spec": {"osUser": "root"}}),
        json!({"spec": {"reason": "other"}}),
    ] {
        let patch = edit.to_string();
        let refused =
            stand.kubectl("alice", &["-n", "team", "patch", "ia", "fixed", "--type", "merge", "-p", &patch]).await;
        assert!(!refused.success() && refused.stderr.contains("immutable"), "{edit}: {refused:?}");
    }
    request.ends("Expired").await;
    let applied = stand.kubectl("alice", &["apply", "-f", &stand.manifest(&request.manifest)]).await;
    assert!(applied.success() && applied.stdout.contains("unchanged"), "{applied:?}");
    let pushes = request.pushes().len();
    // A later request has its turn; by then this one would have had its.
    let later = stand.request("alice", "after-fixed").applied().await;
    later.becomes("Granted").await;
    later.delete().await;
    assert_eq!((stage(&request.newest()), request.pushes().len()), ("Expired", pushes));
    let grants = kinds(&request.records()).iter().filter(|kind| **kind == "GrantIntended").count();
    assert_eq!(grants, 1);
    let settled = poll::until_ok("an end that stays", BOUND, || match stage(&request.newest()) {
        "Expired" => Ok(()),
        other => Err(other.to_owned()),
    });
    settled.await.unwrap();
    request.keeps_its_promises().await;
}

pub async fn a_request_made_again_under_its_old_name_with_another_spec_is_a_request_of_its_own() {
    let stand = shared().await;
    let first = stand.request("alice", "again").applied().await;
    let granted = first.becomes("Granted").await;
    first.delete().await;
    first.goes().await;
    let pushes = first.pushes().len();
    let other = json!({"reason": "INC-4712: look at the logs again"});
    let second = stand.request("alice", "again").with(other).applied().await;
    assert_ne!(first.uid, second.uid);
    let anew = second.becomes("Granted").await;
    assert_ne!(text(&granted, "/status/grant/id"), text(&anew, "/status/grant/id"));
    second.gets_in().await;
    assert_eq!(first.pushes().len(), pushes);
    for request in [first, second] {
        request.keeps_its_promises().await;
    }
}
