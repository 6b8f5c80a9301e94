//! A grant that nobody disturbs: in, in again with a later key, and out.

use lab::standin::Outcome;

use crate::history::{conditions, text, time};
use crate::request::{EXPIRATION, KEY_WINDOW, seconds};
use crate::stand::{END_BOUND, kinds, shared};

pub async fn a_request_lets_its_owner_in_until_it_ends_and_no_longer() {
    let stand = shared().await;
    let web = stand.lab.instance("web-1");
    let request = stand.request("alice", "look").applied().await;
    let granted = request.becomes("Granted").await;
    assert_eq!(conditions(&granted), "Approved=True AdmittedByPolicy, Active=True Granted, Reconciling=False Granted");
    assert_eq!(text(&granted, "/spec/requester/username"), "alice");
    assert_eq!(text(&granted, "/status/policy/name"), "developers");
    assert_eq!(text(&granted, "/status/connection/method"), "Direct");
    assert_eq!(text(&granted, "/status/connection/address"), web.public_ip.unwrap().to_string());
    assert_eq!(text(&granted, "/status/key/fingerprint"), request.fingerprint());
    let (start, expiration) = (time(&granted, "/status/grant/startTime").unwrap(), time(&granted, EXPIRATION).unwrap());
    assert_eq!(seconds(start, expiration), 120.0);
    request.gets_in().await;

    // The first key has faded, and only one pushed later can open the door. The last one leaves 70 s before the end.
    request.is_pushed(2, END_BOUND).await;
    let pushes = request.pushes();
    let gap = seconds(pushes[0].time, pushes[1].time);
    assert!((44.0..50.0).contains(&gap), "{gap} s between two pushes");
    let first_key_gone = pushes[0].time + KEY_WINDOW;
    request.until("outlives its first key", END_BOUND, |_| jiff::Timestamp::now() > first_key_gone).await;
    request.gets_in().await;

    let ended = request.ends("Expired").await;
    assert_eq!(conditions(&ended), "Approved=True AdmittedByPolicy, Active=False Expired, Ended=True Expired");
    assert_eq!(time(&ended, "/status/endTime"), Some(expiration));
    assert_eq!(text(&ended, "/status/revocation/cause"), "Expired");
    request.is_locked_out().await;

    let pushes = request.pushes();
    assert!(pushes.iter().all(|push| push.outcome == Outcome::Ok && push.os_user.as_deref() == Some("ec2-user")), "{pushes:?}");
    assert_eq!(ended["status"]["key"]["pushes"], pushes.len());
    assert_eq!(text(&ended, "/status/key/firstRequestId"), pushes[0].request_id);
    assert_eq!(text(&ended, "/status/key/lastRequestId"), pushes.last().unwrap().request_id);

    let versions = request.versions().iter().map(|version| conditions(&version.object)).collect::<Vec<_>>();
    assert_eq!(versions.len(), 4, "one create and three writes of status: {versions:#?}");

    let records = stand.records(&request.uid);
    let mut expected = vec!["GrantIntended", "Granted"];
    expected.extend(vec!["PushIntended"; pushes.len() - 1]);
    expected.push("Ended");
    assert_eq!(kinds(&records), expected);
    let joined = |kind: &str| records.iter().find(|line| line["record"]["kind"] == kind).map(|line| text(line, "/record/requestId"));
    assert_eq!(joined("Granted"), Some(pushes[0].request_id.as_str()));
    assert_eq!(joined("Ended"), Some(pushes.last().unwrap().request_id.as_str()));
    assert!(records.iter().all(|line| text(line, "/record/requester/username") == "alice"));
    request.keeps_its_promises().await;
}
