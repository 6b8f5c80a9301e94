//! Whatever AWS does while a grant lives, it ends on time; and nobody is hammered meanwhile.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use lab::standin::{Api, Fault, FaultKind};
use serde_json::json;

use crate::days;
use crate::stand::{Ask, Day, Outcome, SOON, is, named, reason, shared, shown};

pub fn days() -> Vec<(&'static str, Day)> {
    days![
        a_grant_ends_on_time_whatever_aws_does_from_its_first_push_on,
        a_grant_whose_first_push_never_succeeds_ends_on_time,
        a_push_that_fails_later_leaves_access_until_the_key_fades_and_then_says_why,
        an_instance_that_stops_during_the_grant_is_told_and_gets_no_key,
    ]
}

fn faults() -> Vec<(&'static str, FaultKind)> {
    let second = Duration::from_secs(1);
    let gone = FaultKind::Error {
        code: "EC2InstanceNotFoundException".to_owned(),
        message: "not today".to_owned(),
        status: 400,
    };
    vec![
        ("throttled", FaultKind::Throttle),
        ("server-error", FaultKind::ServerError(500)),
        ("reset", FaultKind::Drop),
        ("lost-answers", FaultKind::DoThenDrop),
        ("garbage", FaultKind::Garbage),
        ("denied", FaultKind::Deny),
        ("expired", FaultKind::ExpiredCredentials),
        ("skew", FaultKind::ClockSkew(900)),
        ("gone", gone),
        ("hanging", FaultKind::SlowAnswer(30 * second)),
        ("slow", FaultKind::Slow(8 * second)),
    ]
}

async fn a_grant_ends_on_time_whatever_aws_does_from_its_first_push_on() -> Outcome {
    let stand = shared().await?;
    let mut asked = Vec::new();
    for (number, (fault, kind)) in faults().into_iter().enumerate() {
        for api in [Api::Eic, Api::Ec2] {
            let service = if api == Api::Ec2 { "ecc" } else { "eic" };
            let (name, region) = (format!("outlast-{service}-{fault}"), format!("{service}-out-{number}"));
            let (kind, stand) = (kind.clone(), &stand);
            let ask = move || {
                let id = stand.instance(|instance| instance.region = region.clone());
                // The first call is let through, so that there is a grant.
                stand.lab.standin().set_fault(Fault::new(kind.clone()).on(api).instance(&id).after(1));
                let target = json!({"instanceId": id, "region": region});
                Ask::new(&name).with("target", target).ends_in(100)
            };
            asked.push(stand.granted_for(ask));
        }
    }
    let granted = futures::future::try_join_all(asked).await?;
    let granted = granted.iter().map(named).collect::<anyhow::Result<Vec<_>>>()?;
    let stand = &stand;
    let ends = granted.iter().map(|(name, id)| async move {
        let object = stand.ended_well(name, id).await.map_err(|error| format!("{name}: {error:#}"))?;
        if reason(&object) != "Expired" {
            return Err(format!("{name}: {}", shown(&object)));
        }
        stand.controller.intended_once(&object).map_err(|error| format!("{name}: {error:#}"))?;
        let records = ["Granted", "Ended"].map(|kind| stand.controller.recorded(&object, kind));
        if records != [1, 1] {
            return Err(format!("{name}: records {records:?}"));
        }
        // Re-pushes at 45 s at most, with a back-off that grows to 15 s (and to 60 s for what no waiting heals).
        let pushes = stand.pushes(id).len();
        if pushes > 12 {
            return Err(format!("{name} was hammered: {pushes} pushes"));
        }
        Ok(object)
    });
    let ends: Vec<_> = futures::future::join_all(ends).await;
    let failed: Vec<&String> = ends.iter().filter_map(|end| end.as_ref().err()).collect();
    anyhow::ensure!(failed.is_empty(), "{failed:#?}");
    stand.controller.verify(&ends.iter().flatten().collect::<Vec<_>>()).await?;
    Ok(())
}

async fn a_grant_whose_first_push_never_succeeds_ends_on_time() -> Outcome {
    let stand = shared().await?;
    let mut asked = Vec::new();
    for (fault, kind) in faults().into_iter().filter(|(fault, _)| *fault != "slow") {
        let name = format!("never-{fault}");
        let stand = &stand;
        let ask = move || {
            let id = stand.running();
            stand.lab.standin().set_fault(Fault::new(kind.clone()).on(Api::Eic).instance(&id));
            Ask::new(&name).instance(&id).ends_in(110)
        };
        asked.push(stand.held_for(ask));
    }
    let held = futures::future::try_join_all(asked).await?;
    let held = held.iter().map(named).collect::<anyhow::Result<Vec<_>>>()?;
    let stand = &stand;
    let ends = held.iter().map(|(name, id)| async move {
        let object = stand.ended_well(name, id).await.map_err(|error| format!("{name}: {error:#}"))?;
        stand.controller.intended_once(&object).map_err(|error| format!("{name}: {error:#}"))?;
        let records = ["Granted", "Ended"].map(|kind| stand.controller.recorded(&object, kind));
        if records != [0, 1] {
            return Err(format!("{name}: records {records:?}"));
        }
        let pushes = stand.pushes(id).len();
        // As above, over the 40 s in which one may leave.
        if pushes > 10 {
            return Err(format!("{name} was hammered: {pushes} pushes in 40 s"));
        }
        Ok(())
    });
    let failed: Vec<String> = futures::future::join_all(ends).await.into_iter().filter_map(Result::err).collect();
    anyhow::ensure!(failed.is_empty(), "{failed:#?}");
    Ok(())
}

async fn a_push_that_fails_later_leaves_access_until_the_key_fades_and_then_says_why() -> Outcome {
    let stand = shared().await?;
    let id = stand.running();
    stand.lab.standin().set_fault(Fault::new(FaultKind::Throttle).on(Api::Eic).instance(&id).after(1));
    stand.ask(Ask::new("fades").instance(&id).with("ttlSeconds", json!(180))).await?;
    stand.until_granted("fades").await?;
    let landed = stand.pushes(&id)[0].time;
    // While the key is there, people get in: a word against it would be a lie.
    let faded =
        stand.until_within("fades", "no longer Active", SOON + SOON, |object| is(object, "Active", "False")).await?;
    let faded_time = landed + SignedDuration::from_secs(60);
    lab::pace::in_time("the word that access is over", faded_time, Timestamp::now(), 15.0).await?;
    anyhow::ensure!(reason(&faded) == "Throttled", "{}", shown(&faded));
    anyhow::ensure!(stand.pushes(&id).len() > 1, "nobody tried again");
    let object = stand.ended_well("fades", &id).await?;
    stand.controller.verify(&[&object]).await?;
    Ok(())
}

async fn an_instance_that_stops_during_the_grant_is_told_and_gets_no_key() -> Outcome {
    let stand = shared().await?;
    let id = stand.running();
    stand.ask(Ask::new("stops").instance(&id).with("ttlSeconds", json!(150))).await?;
    stand.until_granted("stops").await?;
    stand.instance(|instance| {
        instance.id = id.clone();
        instance.state = "stopped".to_owned();
    });
    let told = stand.until_within("stops", "told", SOON + SOON, |object| is(object, "Active", "False")).await?;
    anyhow::ensure!(reason(&told) == "InstanceNotRunning", "{}", shown(&told));
    let pushes = stand.pushes(&id).len();
    let object = stand.ended_well("stops", &id).await?;
    anyhow::ensure!(stand.pushes(&id).len() == pushes, "a stopped instance got a key");
    stand.controller.verify(&[&object]).await?;
    Ok(())
}
