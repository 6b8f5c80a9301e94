//! People who try: floods, and values at the edge of what the API server stores.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::days;
use crate::stand::{Ask, Day, Outcome, SOON, apply, is, reason, shared, shown};

pub fn days() -> Vec<(&'static str, Day)> {
    days![
        three_hundred_junk_requests_do_not_delay_another_persons_grant,
        a_request_that_is_padded_as_far_as_it_can_be_is_granted_and_revoked,
        a_start_in_the_year_9998_waits_and_harms_nobody,
        a_time_that_we_could_not_read_is_refused_at_the_door,
        names_of_the_greatest_length_are_served,
        text_that_would_forge_a_line_of_the_log_or_the_trail_stays_in_its_line,
    ]
}

async fn three_hundred_junk_requests_do_not_delay_another_persons_grant() -> Outcome {
    let stand = shared().await?;
    let id = stand.running();
    let junk = async |number: usize| {
        let target = json!({"instanceId": format!("i-{number:017x}")});
        let ask = Ask::new(&format!("junk-{number}")).with("target", target).with("reason", json!("x".repeat(1000)));
        stand.create("mallory", &ask).await
    };
    let flood = async {
        for start in (0..300).step_by(30) {
            for made in futures::future::join_all((start..start + 30).map(junk)).await {
                made?;
            }
        }
        anyhow::Ok(())
    };
    let alice = async {
        // In the thick of it.
        let under_way = async || stand.get("junk-100").await.map_err(|error| format!("{error:#}"));
        lab::poll::until("the flood", SOON, under_way).await?;
        let asked_time = Timestamp::now();
        stand.ask(Ask::new("in-the-flood").instance(&id)).await?;
        stand.until_granted("in-the-flood").await?;
        lab::pace::soon("alice's grant", asked_time, Timestamp::now(), 10.0).await
    };
    let (flood, alice) = tokio::join!(flood, alice);
    flood?;
    alice?;
    let denied = stand.until("junk-299", "Denied", &["no policy admits mallory"]).await?;
    anyhow::ensure!(stand.controller.recorded(&denied, "Denied") == 1, "a refusal has no record");
    Ok(())
}

async fn a_request_that_is_padded_as_far_as_it_can_be_is_granted_and_revoked() -> Outcome {
    let stand = shared().await?;
    let id = stand.running();
    let pair = |number: usize| (format!("{}/{number:063}", "d".repeat(60)), json!("v".repeat(63)));
    let labels = |count: usize| Value::Object((0..count).map(pair).collect());
    let ask = Ask::new("huge")
        .instance(&id)
        .with_metadata("labels", labels(32))
        .with_metadata("annotations", json!({"example.com/novel": "\u{1}".repeat(32_000)}));
    stand.ask(ask).await?;
    let object = stand.until_granted("huge").await?;
    anyhow::ensure!(object.metadata.labels.as_ref().is_some_and(|labels| labels.len() == 32), "labels were lost");
    let record = stand.controller.records(&object);
    anyhow::ensure!(record.iter().all(|record| record.to_string().len() < 10_000), "the trail swallowed the novel");

    // Then by all that Kubernetes does not bound, until hardly a byte is left of what etcd stores.
    let pad =
        async |field: &str, value: Value| match stand.merge("alice", "huge", json!({"metadata": {field: value}})).await
        {
            Ok(_) => anyhow::bail!("metadata.{field} was let in"),
            Err(error) => {
                anyhow::ensure!(format!("{error:#}").contains(&format!("metadata.{field} ")), "{field}: {error:#}");
                Ok(())
            }
        };
    pad("labels", labels(4000)).await?;
    pad("generateName", json!("g".repeat(1_000_000))).await?;
    pad("finalizers", (0..4000).map(|number| format!("example.com/{number}")).collect()).await?;
    let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": "n".repeat(1_000_000), "uid": "u"});
    pad("ownerReferences", json!([owner])).await?;
    let owned: serde_json::Map<_, _> = (0..1000).map(|n| (format!("f:{n:01000}"), json!({}))).collect();
    let entry = json!({
        "manager": "mallory",
        "operation": "Apply",
        "apiVersion": "instanceaccess.dev/v1alpha1",
        "time": "2026-03-01T08:00:00Z",
        "fieldsType": "FieldsV1",
        "fieldsV1": {"f:metadata": {"f:labels": owned}},
    });
    pad("managedFields", json!([entry])).await?;

    let reason = "r".repeat(1024);
    stand.merge("admin", "huge", json!({"spec": {"revoke": {"reason": reason}}})).await?;
    stand.until("huge", "RevocationPending", &["spec.revoke was set: rrr"]).await?;
    Ok(())
}

async fn a_start_in_the_year_9998_waits_and_harms_nobody() -> Outcome {
    let stand = shared().await?;
    let id = stand.running();
    let last = json!("9998-12-31T23:59:59Z");
    stand.ask(Ask::new("far-start").instance(&id).with("startTime", last.clone())).await?;
    stand.ask(Ask::new("far-end").instance(&id).with("endTime", last)).await?;
    let object = stand.until("far-start", "Scheduled", &["access starts at 9998-12-31T23:59:59Z"]).await?;
    is(&object, "Approved", "True").map_err(anyhow::Error::msg)?;
    let object = stand.until_granted("far-end").await?;
    let expiration = crate::stand::expiration(&object)?;
    anyhow::ensure!(expiration.duration_since(Timestamp::now()).as_secs() <= 600, "the grant lives until {expiration}");
    anyhow::ensure!(stand.pushes(&id).len() == 1, "{} pushes", stand.pushes(&id).len());
    stand.merge("alice", "far-start", json!({"spec": {"revoke": {"reason": "changed my mind"}}})).await?;
    stand.until("far-start", "Revoked", &["changed my mind"]).await?;
    Ok(())
}

async fn a_time_that_we_could_not_read_is_refused_at_the_door() -> Outcome {
    // What the API server stores and we cannot decode would have no status for ever.
    let stand = shared().await?;
    let times = [
        "9999-12-31T23:59:59Z",
        "9999-12-31T23:59:59-23:59",
        "9999-01-01T00:00:00Z",
        "0000-01-01T00:00:00Z",
        "0000-01-01T00:00:00+23:59",
        "2030-01-01T00:00:00z",
        "2030-01-01t00:00:00Z",
        "2030-01-01 00:00:00Z",
        "2030-01-01T00:00:00,5Z",
        "2030-01-01T00:00:00.123456789123Z",
        "2030-01-01T00:00:00+99:99",
        "2030-01-01T00:00:00+24:00",
        "2030-01-01T24:00:00Z",
        "2030-12-31T23:59:60Z",
        "2030-02-30T00:00:00Z",
        "2030-01-01T00:00Z",
        "2030-01-01T00:00:00",
        "2030-01-01",
        "20300101T000000Z",
        "10000-01-01T00:00:00Z",
        "-001-01-01T00:00:00Z",
    ];
    let mut unreadable = Vec::new();
    for field in ["startTime", "endTime"] {
        for time in times {
            let ask = Ask::new("odd-time").instance("i-0123456789abcdef0").with(field, json!(time));
            match stand.dry_run("alice", &ask).await {
                Ok(_) => {}
                Err(error) => match error.downcast_ref::<kube::Error>() {
                    Some(kube::Error::Api(status)) if status.message.contains(&format!("spec.{field}")) => {}
                    _ => unreadable.push(format!("{field}: {time}: {error:#}")),
                },
            }
        }
    }
    anyhow::ensure!(unreadable.is_empty(), "{unreadable:#?}");
    Ok(())
}

async fn names_of_the_greatest_length_are_served() -> Outcome {
    let stand = shared().await?;
    let namespace = "n".repeat(63);
    apply(&stand.lab, &format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}}}\n")).await?;
    let policy = format!(
        "apiVersion: instanceaccess.dev/v1alpha1\nkind: InstanceAccessPolicy\nmetadata: {{name: {}}}\nspec:\n  \
         effect: Allow\n  subjects: [{{kind: User, name: alice}}]\n  namespaces: [{namespace}]\n  \
         targets: {{instanceIds: ['*']}}\n  osUsers: ['*']\n  ttl: {{defaultSeconds: 600, maxSeconds: 600}}\n",
        "p".repeat(253)
    );
    apply(&stand.lab, &policy).await?;
    stand.until_policy(&"p".repeat(253), "True").await?;
    let id = stand.running();
    let mut ask = Ask::new(&"r".repeat(253)).instance(&id).with("osUser", json!("u".repeat(32)));
    ask.namespace.clone_from(&namespace);
    ask.spec["reason"] = json!("\u{1f511}".repeat(1024));
    ask.spec["ticket"] = json!("t".repeat(128));
    stand.ask(ask.clone()).await?;
    let uri = format!("/apis/instanceaccess.dev/v1alpha1/namespaces/{namespace}/instanceaccesses/{}", ask.name);
    lab::poll::until("the grant with the long names", SOON, async || {
        let text = stand.read(&uri).await.map_err(|error| format!("{error:#}"))?;
        let object = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        is(&object, "Active", "True").map(|_| ())
    })
    .await?;
    Ok(())
}

async fn text_that_would_forge_a_line_of_the_log_or_the_trail_stays_in_its_line() -> Outcome {
    let stand = shared().await?;
    let id = stand.running();
    let forged =
        "fine\n{\"sequence\":1,\"record\":{\"kind\":\"Granted\"}}\n2026-01-01T00:00:00Z ERROR forged\u{1b}[2J\u{202e}";
    stand.ask(Ask::new("forger").instance(&id).with("reason", json!(forged)).with("ticket", json!(forged))).await?;
    let object = stand.until_granted("forger").await?;
    stand.merge("alice", "forger", json!({"spec": {"revoke": {"reason": forged}}})).await?;
    let object = stand
        .until_within("forger", "being taken back", SOON, |seen| match reason(seen) {
            "RevocationPending" => Ok(object.clone()),
            _ => Err(shown(seen)),
        })
        .await?;
    let records = stand.controller.records(&object);
    anyhow::ensure!(records.iter().any(|record| record["reason"] == json!(forged)), "the trail lost what was said");
    let log = std::fs::read_to_string(stand.controller.log())?;
    anyhow::ensure!(
        !log.lines().any(|line| line.starts_with("2026-01-01T00:00:00Z ERROR forged")),
        "a line was forged"
    );
    anyhow::ensure!(!log.contains('\u{1b}'), "the log holds escape sequences");
    stand.controller.verify(&[]).await?;
    Ok(())
}
