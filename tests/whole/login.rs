//! A grant that nobody disturbs: in, in again with a later key, and out.

use jiff::SignedDuration;
use lab::standin::Outcome;
use lab::{pace, poll};
use serde_json::json;

use crate::history::{Version, condition, conditions, stage, text, time};
use crate::request::{ENDS_IN, EXPIRATION, KEY_WINDOW, TWO_PUSHES, seconds, whole_second_in};
use crate::stand::{BOUND, END_BOUND, in_its_time, kinds, shared};

/// From one push of a key to the next.
const REPUSH_INTERVAL: SignedDuration = SignedDuration::from_secs(45);

pub async fn a_request_lets_its_owner_in_until_it_ends_and_no_longer() {
    let stand = shared().await;
    let web = stand.lab.instance("web-1");
    let request = stand.request("alice", "look").with(json!({"ttlSeconds": TWO_PUSHES})).applied().await;
    let granted = request.becomes("Granted").await;
    assert_eq!(conditions(&granted), "Approved=True AdmittedByPolicy, Active=True Granted, Ended=False Granted");
    assert_eq!(text(&granted, "/spec/requester/username"), "alice");
    assert_eq!(text(&granted, "/status/policy/name"), "developers");
    assert_eq!(text(&granted, "/status/connection/method"), "Direct");
    assert_eq!(text(&granted, "/status/connection/address"), web.public_ip.unwrap().to_string());
    assert_eq!(text(&granted, "/status/key/fingerprint"), request.fingerprint());
    let (start, expiration) = (time(&granted, "/status/grant/startTime").unwrap(), time(&granted, EXPIRATION).unwrap());
    assert_eq!(seconds(start, expiration), f64::from(TWO_PUSHES));
    request.gets_in().await;
    let columns = request.kubectl(&["get", "ia", "look"]).await;
    let columns: Vec<Vec<&str>> = columns.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(columns[0], ["NAME", "INSTANCE", "USER", "POLICY", "STATUS", "EXPIRES", "SESSIONS", "AGE"]);
    assert_eq!(columns[1][..6], ["look", &web.id, "alice", "developers", "Granted", text(&granted, EXPIRATION)]);

    // The first key has faded, and only one pushed later can open the door. The last one leaves 70 s before the end.
    request.is_pushed(2, END_BOUND).await;
    let pushes = request.pushes();
    // Not much sooner than it is due, or AWS is hammered: the first may have been long on its way. And hardly later: it is due
    // so long after the first was answered, which this machine may have kept from the controller for a while.
    let gap = seconds(pushes[0].time, pushes[1].time);
    assert!(gap >= 30.0, "{gap} s between two pushes");
    let told_time = time(&stand.record(&request.uid, "Granted", BOUND).await, "/time").unwrap();
    let kept = SignedDuration::from_secs_f64(pace::stolen(pushes[0].time, told_time).await);
    let due = pushes[0].time + kept + REPUSH_INTERVAL;
    pace::soon("the second push", due, pushes[1].time, 5.0).await.unwrap();
    let first_key_gone = pushes[0].time + KEY_WINDOW;
    request.until("outlives its first key", END_BOUND, |_| jiff::Timestamp::now() > first_key_gone).await;
    request.gets_in().await;

    let ended = request.ends("Expired").await;
    assert_eq!(conditions(&ended), "Approved=True AdmittedByPolicy, Active=False Expired, Ended=True Expired");
    assert_eq!(time(&ended, "/status/endTime"), Some(expiration));
    assert_eq!(text(&ended, "/status/revocation/cause"), "Expired");
    request.is_locked_out().await;

    let pushes = request.pushes();
    assert!(
        pushes.iter().all(|push| push.outcome == Outcome::Ok && push.os_user.as_deref() == Some("ec2-user")),
        "{pushes:?}"
    );
    assert_eq!(ended["status"]["key"]["pushes"], pushes.len());
    assert_eq!(text(&ended, "/status/key/firstRequestId"), pushes[0].request_id);
    assert_eq!(text(&ended, "/status/key/lastRequestId"), pushes.last().unwrap().request_id);

    let versions = request.versions().iter().map(|version| conditions(&version.object)).collect::<Vec<_>>();
    let created = &request.versions()[0].object;
    assert_eq!(created["status"], json!({"observedGeneration": -1}), "kstatus must see it as in progress");
    assert_eq!(created["metadata"]["finalizers"], json!(["instanceaccess.dev/end-grant"]));
    assert_eq!(versions.len(), 4, "one create and three writes of status: {versions:#?}");

    let records = stand.records(&request.uid);
    let mut expected = vec!["GrantIntended", "Granted"];
    expected.extend(vec!["PushIntended"; pushes.len() - 1]);
    expected.push("Ended");
    assert_eq!(kinds(&records), expected);
    let joined = |kind: &str| {
        records.iter().find(|line| line["record"]["kind"] == kind).map(|line| text(line, "/record/requestId"))
    };
    assert_eq!(joined("Granted"), Some(pushes[0].request_id.as_str()));
    assert_eq!(joined("Ended"), Some(pushes.last().unwrap().request_id.as_str()));
    assert!(records.iter().all(|line| text(line, "/record/requester/username") == "alice"));
    request.keeps_its_promises().await;

    let events = request.kubectl(&["get", "events.events.k8s.io", "-o", "json"]).await;
    let events: serde_json::Value = serde_json::from_str(&events).unwrap();
    let mine = events["items"].as_array().unwrap().iter().filter(|event| text(event, "/regarding/uid") == request.uid);
    let mut reasons: Vec<&str> = mine.map(|event| text(event, "/reason")).collect();
    reasons.sort();
    assert_eq!(reasons, ["Expired", "Granted"]);
}

pub async fn the_owner_of_a_private_instance_is_told_the_tunnel_to_it() {
    let stand = shared().await;
    let db = stand.lab.instance("db-1");
    let request = stand.request("bob", "private").on(&db).applied().await;
    let granted = request.becomes("Granted").await;
    assert_eq!(text(&granted, "/status/connection/method"), "Endpoint");
    assert_eq!(text(&granted, "/status/connection/endpointId"), stand.lab.endpoint_id());
    assert_eq!(text(&granted, "/status/connection/address"), db.private_ip.to_string());
    let port = match stand.lab.ssh_port() {
        22 => String::new(),
        port => format!(" --remote-port {port}"),
    };
    let expected = format!(
        "ssh -o ProxyCommand='aws ec2-instance-connect open-tunnel --instance-id {id} --region us-west-2{port} --max-tunnel-duration 120' ec2-user@{id}",
        id = db.id
    );
    assert_eq!(text(&granted, "/status/connection/command"), expected);
    request.ends("Expired").await;
    request.keeps_its_promises().await;
}

pub async fn a_private_instance_is_served_directly_to_whoever_asks_for_that() {
    let stand = shared().await;
    let db = stand.lab.instance("db-1");
    let connection = json!({"method": "Direct", "port": stand.lab.ssh_port()});
    let request =
        stand.request("bob", "private-direct").on(&db).with(json!({"connection": connection})).applied().await;
    let granted = request.becomes("Granted").await;
    assert_eq!(text(&granted, "/status/connection/address"), db.private_ip.to_string());
    assert_eq!(text(&granted, "/status/connection/method"), "Direct");
    request.gets_in().await;
    request.revoke("done").await;
    request.ends("Revoked").await;
    request.keeps_its_promises().await;
}

pub async fn a_start_time_to_come_is_waited_for() {
    let stand = shared().await;
    let (request, start, scheduled) = in_its_time("later", async |name| {
        let start = whole_second_in(60);
        let request = stand.request("alice", name).with(json!({"startTime": start.to_string()})).applied().await;
        // Of all versions: it may be granted before this looks.
        let is_scheduled = |version: &Version| stage(&version.object) == "Scheduled";
        let scheduled = || request.versions().into_iter().find(is_scheduled).map(|version| version.object);
        request.until("waits or begins", BOUND, |object| scheduled().is_some() || stage(object) == "Granted").await;
        match scheduled() {
            Some(scheduled) => Ok((request, start, scheduled)),
            None => {
                let newest = request.newest();
                assert!(
                    time(&newest, "/status/grant/startTime") >= Some(start),
                    "before {start}: {}",
                    newest["status"]
                );
                Err(format!("its start, {start}, was past before anybody judged it"))
            }
        }
    })
    .await;
    assert_eq!(
        conditions(&scheduled),
        "Approved=True AdmittedByPolicy, Active=False Scheduled, Reconciling=True Scheduled"
    );
    let granted = request.until("is granted", END_BOUND, |object| stage(object) == "Granted").await;
    let granted_time = time(&granted, "/status/grant/startTime").unwrap();
    pace::in_time("the grant", start, granted_time, 10.0).await.unwrap();
    let first = request.pushes().remove(0);
    assert!(first.time >= start, "{first:?} before {start}");
    request.ends("Expired").await;
    request.keeps_its_promises().await;
}

pub async fn an_end_time_cuts_the_grant_short() {
    let stand = shared().await;
    let end = whole_second_in(ENDS_IN);
    let request =
        stand.request("alice", "short").with(json!({"endTime": end.to_string(), "ttlSeconds": 3600})).applied().await;
    let granted = request.becomes("Granted").await;
    assert_eq!(time(&granted, EXPIRATION), Some(end));
    request.ends("Expired").await;
    request.is_locked_out().await;
    request.keeps_its_promises().await;
}

pub async fn an_end_time_that_leaves_no_time_ends_the_request_without_a_push() {
    let stand = shared().await;
    for (name, seconds, words) in [("past", -60, "is past"), ("no-time", 60, "no time left for access")] {
        let end = whole_second_in(seconds);
        let request = stand.request("alice", name).with(json!({"endTime": end.to_string()})).applied().await;
        let ended = request.ends("Expired").await;
        let (_, _, message) = condition(&ended, "Ended").unwrap();
        assert!(message.contains(words), "{message}");
        assert!(ended["status"].get("grant").is_none());
        assert!(request.pushes().is_empty());
        request.keeps_its_promises().await;
    }
}

pub async fn a_session_that_is_open_at_the_end_lives_on_and_status_says_so() {
    let stand = shared().await;
    let host = stand.instance("linger").await;
    let request = stand.request("alice", "linger").on(&host).applied().await;
    request.becomes("Granted").await;
    let mut session = request.stays();
    let opened = poll::until_ok("a session", BOUND, || match stand.lab.sessions_alive("linger") {
        1 => Ok(()),
        other => Err(format!("{other} sessions")),
    });
    opened.await.unwrap();
    let ended = request.ends("Expired").await;
    request.is_locked_out().await;
    assert_eq!(stand.lab.sessions_alive("linger"), 1, "it was cut after all: say so in status");
    assert!(session.try_wait().unwrap().is_none());
    let (_, _, message) = condition(&ended, "Ended").unwrap();
    assert!(message.contains("Sessions through a gateway are cut; others that were open are not"), "{message}");
    assert!(ended.pointer("/status/revocation/connectionsCut").is_none(), "{}", ended["status"]["revocation"]);
    request.keeps_its_promises().await;
}

pub async fn two_grants_on_one_instance_do_not_disturb_each_other() {
    let stand = shared().await;
    let host = stand.instance("both").await;
    let alices = stand.request("alice", "hers").on(&host).with(json!({"ttlSeconds": 600})).applied().await;
    let bobs = stand.request("bob", "his").on(&host).with(json!({"ttlSeconds": 600})).applied().await;
    for request in [&alices, &bobs] {
        request.becomes("Granted").await;
        request.gets_in().await;
    }
    alices.revoke("she is done").await;
    alices.ends("Revoked").await;
    alices.is_locked_out().await;
    bobs.gets_in().await;
    bobs.delete().await;
    bobs.goes().await;
    bobs.is_locked_out().await;
    for request in [alices, bobs] {
        request.keeps_its_promises().await;
    }
}
