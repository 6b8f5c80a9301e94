//! AWS refuses, hangs, or lies: what status says while it lasts, and that it heals by itself.

use std::time::Duration;

use lab::standin::{Api, Fault, FaultKind};
use serde_json::json;

use crate::days;
use crate::stand::{Ask, Day, Outcome, Special, Stand, shared};

pub fn days() -> Vec<(&'static str, Day)> {
    days![
        pushes_that_aws_refuses_for_a_while_say_why_and_heal,
        look_ups_that_aws_refuses_for_a_while_say_why_and_heal,
        a_slow_answer_or_a_lost_one_delays_a_grant_and_no_more,
        credentials_that_are_missing_or_wrong_are_told_and_heal_when_mended,
    ]
}

fn error(code: &str) -> FaultKind {
    FaultKind::Error { code: code.to_owned(), message: "not today".to_owned(), status: 400 }
}

/// An instance in a region of its own, whose calls share no batch with those of other tests.
fn in_own_region(stand: &Stand, region: &str) -> String {
    stand.instance(|instance| {
        instance.region = region.to_owned();
        instance.availability_zone = format!("{region}a");
    })
}

/// One fault, and what status says while it lasts.
struct Row {
    name: &'static str,
    kind: FaultKind,
    reason: &'static str,
    words: &'static [&'static str],
}

/// Asks for an instance that the fault strikes; waits for the word, mends it, and waits for the grant.
async fn heals(api: Api, number: usize, row: Row) -> Outcome {
    let stand = shared().await?;
    let Row { name, kind, reason, words } = row;
    let service = if api == Api::Ec2 { "ec2" } else { "eic" };
    let (region, name) = (format!("{service}-lab-{number}").replace("ec2", "ecc"), format!("{service}-{name}"));
    let id = in_own_region(&stand, &region);
    stand.lab.standin().set_fault(Fault::new(kind).on(api).instance(&id));
    stand.ask(Ask::new(&name).with("target", json!({"instanceId": id, "region": region}))).await?;
    let object = stand.until(&name, reason, words).await?;
    let (type_, other) = if reason == "AccessDenied" { ("Stalled", "Reconciling") } else { ("Reconciling", "Stalled") };
    crate::stand::is(&object, type_, "True").map_err(anyhow::Error::msg)?;
    anyhow::ensure!(crate::stand::is(&object, other, "True").is_err(), "both: {}", crate::stand::shown(&object));
    stand.lab.standin().clear_faults_on(&id);
    let object = stand.until_granted(&name).await?;
    anyhow::ensure!(crate::stand::is(&object, "Stalled", "True").is_err(), "stalled: {}", crate::stand::shown(&object));
    stand.controller.intended_once(&object)?;
    let landed = stand.pushes(&id).iter().filter(|push| push.outcome == lab::standin::Outcome::Ok).count();
    anyhow::ensure!(landed >= 1, "{name}: nothing landed");
    Ok(())
}

async fn all(api: Api, rows: Vec<Row>) -> Outcome {
    let rows = rows.into_iter().enumerate().map(|(number, row)| async move {
        let name = row.name;
        heals(api, number, row).await.map_err(|error| format!("{name}: {error:#}"))
    });
    let failed: Vec<String> = futures::future::join_all(rows).await.into_iter().filter_map(Result::err).collect();
    anyhow::ensure!(failed.is_empty(), "{}", failed.join("\n\n"));
    Ok(())
}

async fn pushes_that_aws_refuses_for_a_while_say_why_and_heal() -> Outcome {
    let row = |name, kind, reason, words| Row { name, kind, reason, words };
    // What passes by itself is worth a word after three failures; what somebody must mend, at once.
    let passing: &[&str] = &["trying again by itself"];
    let somebody: &[&str] = &["AWS does not let the operator", "an administrator must mend"];
    let rows = vec![
        row("throttled", FaultKind::Throttle, "Throttled", &["AWS asks to wait", "ThrottlingException"]),
        row("server-error", FaultKind::ServerError(500), "AwsUnavailable", passing),
        row("bad-gateway", FaultKind::ServerError(502), "AwsUnavailable", passing),
        row("reset", FaultKind::Drop, "AwsUnavailable", passing),
        row("lost-answer", FaultKind::DoThenDrop, "AwsUnavailable", passing),
        row("garbage", FaultKind::Garbage, "AwsUnavailable", passing),
        row("unavailable", error("EC2InstanceUnavailableException"), "AwsUnavailable", &["EC2InstanceUnavailable"]),
        row("novel", error("NovelException"), "AwsUnavailable", &["does not know (NovelException: not today)"]),
        row("state", error("EC2InstanceStateInvalidException"), "InstanceNotRunning", passing),
        row("denied", FaultKind::Deny, "AccessDenied", somebody),
        row("expired", FaultKind::ExpiredCredentials, "AccessDenied", somebody),
        row("signature", FaultKind::BadSignature, "AccessDenied", somebody),
        row("skew", FaultKind::ClockSkew(900), "AccessDenied", somebody),
        row("skew-behind", FaultKind::ClockSkew(-900), "AccessDenied", somebody),
    ];
    all(Api::Eic, rows).await
}

async fn look_ups_that_aws_refuses_for_a_while_say_why_and_heal() -> Outcome {
    let row = |name, kind, reason, words| Row { name, kind, reason, words };
    let passing: &[&str] = &["describe the instance", "trying again by itself"];
    let somebody: &[&str] = &["AWS does not let the operator describe the instance", "an administrator must mend"];
    let rows = vec![
        row("throttled", FaultKind::Throttle, "Throttled", &["AWS asks to wait", "RequestLimitExceeded"]),
        row("server-error", FaultKind::ServerError(503), "AwsUnavailable", passing),
        row("reset", FaultKind::Drop, "AwsUnavailable", passing),
        row("garbage", FaultKind::Garbage, "AwsUnavailable", passing),
        row("denied", FaultKind::Deny, "AccessDenied", somebody),
        row("expired", FaultKind::ExpiredCredentials, "AccessDenied", somebody),
        row("signature", FaultKind::BadSignature, "AccessDenied", somebody),
        row("skew", FaultKind::ClockSkew(900), "AccessDenied", somebody),
    ];
    all(Api::Ec2, rows).await
}

async fn a_slow_answer_or_a_lost_one_delays_a_grant_and_no_more() -> Outcome {
    let stand = shared().await?;
    let second = Duration::from_secs(1);
    // The last two are longer than we wait: a push 10 s, a look-up 8 s.
    let rows = [
        ("slow-push", Api::Eic, FaultKind::Slow(3 * second)),
        ("lost-push", Api::Eic, FaultKind::DoThenDrop),
        ("slow-look-up", Api::Ec2, FaultKind::Slow(3 * second)),
        ("reset-look-up", Api::Ec2, FaultKind::Drop),
        ("hanging-push", Api::Eic, FaultKind::SlowAnswer(15 * second)),
        ("hanging-look-up", Api::Ec2, FaultKind::SlowAnswer(15 * second)),
    ];
    let mut asked = Vec::new();
    for (number, (name, api, kind)) in rows.into_iter().enumerate() {
        let region = format!("slow-lab-{number}");
        let id = in_own_region(&stand, &region);
        stand.lab.standin().set_fault(Fault::new(kind).on(api).instance(&id).times(1));
        stand.ask(Ask::new(name).with("target", json!({"instanceId": id, "region": region}))).await?;
        asked.push((name, id));
    }
    for (name, id) in asked {
        let object = stand.until_granted(name).await?;
        stand.controller.intended_once(&object)?;
        anyhow::ensure!(stand.pushes(&id).len() <= 2, "{name} was hammered: {:?}", stand.pushes(&id));
    }
    Ok(())
}

async fn credentials_that_are_missing_or_wrong_are_told_and_heal_when_mended() -> Outcome {
    let none = [("AWS_ACCESS_KEY_ID", ""), ("AWS_SECRET_ACCESS_KEY", "")].map(|(name, value)| (name, value.to_owned()));
    let stand = Stand::own(Special { env: none.to_vec(), ..Special::default() }).await?;
    let id = stand.running();
    stand.ask(Ask::new("no-credentials").instance(&id)).await?;
    let words =
        ["AWS does not let the operator describe the instance", "CredentialsUnavailable", "operator's credentials"];
    stand.until("no-credentials", "AccessDenied", &words).await?;

    let right = stand.lab.aws_env();
    stand.controller.kill();
    stand.controller.set_env("AWS_ACCESS_KEY_ID", "AKIAI44QH8DHBEXAMPLE");
    stand.controller.set_env("AWS_SECRET_ACCESS_KEY", "je7MtGbClwBF/2Zp9Utk/h3yCo8nvbEXAMPLEKEY");
    stand.controller.start()?;
    stand.controller.until_ready().await?;
    stand.ask(Ask::new("wrong-credentials").instance(&id)).await?;
    stand.until("wrong-credentials", "AccessDenied", &["AuthFailure", "operator's credentials"]).await?;
    for secret in ["je7MtGbClwBF", "AKIAI44QH8DHBEXAMPLE"] {
        let log = std::fs::read_to_string(stand.controller.log())?;
        anyhow::ensure!(!log.contains(secret), "{secret} is in the log: {}", stand.controller.log_of(secret));
    }

    stand.controller.kill();
    for (name, value) in right {
        stand.controller.set_env(&name, &value);
    }
    stand.controller.start()?;
    for name in ["no-credentials", "wrong-credentials"] {
        stand.until_granted(name).await?;
    }
    stand.controller.verify(&[]).await?;
    Ok(())
}
