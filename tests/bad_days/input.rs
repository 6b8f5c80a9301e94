//! What people write wrong besides the key, and instances that are not as they think.

use jiff::Timestamp;
use lab::standin::Api;
use serde_json::json;

use crate::days;
use crate::stand::{Ask, Day, Outcome, SOON, named, shared};

pub fn days() -> Vec<(&'static str, Day)> {
    days![
        a_value_of_the_wrong_shape_is_refused_at_the_door_and_the_field_is_named,
        a_login_that_only_aws_refuses_is_told_and_asked_once,
        an_unknown_instance_is_not_found_and_heals_when_it_appears,
        an_instance_in_another_region_is_not_found_and_the_region_is_named,
        a_terminated_instance_is_final,
        a_stopped_instance_heals_when_it_is_started,
        a_pending_instance_heals_when_it_runs,
        a_private_instance_without_an_endpoint_has_no_route_until_there_is_one,
        an_instance_of_another_account_is_not_found,
        tags_that_match_none_or_two_are_told_and_one_that_matches_is_found,
        an_end_time_that_is_past_or_too_near_ends_without_a_grant,
        more_time_than_the_policy_allows_is_refused_with_the_maximum,
    ]
}

async fn a_value_of_the_wrong_shape_is_refused_at_the_door_and_the_field_is_named() -> Outcome {
    let stand = shared().await?;
    let good = Ask::new("shape").instance("i-0123456789abcdef0");
    let rows = [
        ("target", json!({"instanceId": "web-1"}), "spec.target.instanceId"),
        ("target", json!({"instanceId": "i-0123456789ABCDEF0"}), "spec.target.instanceId"),
        ("target", json!({"instanceId": "i-0123456789abcdef0 "}), "spec.target.instanceId"),
        ("target", json!({"instanceId": format!("i-{}", "0".repeat(40))}), "spec.target.instanceId"),
        ("target", json!({}), "exactly one of instanceId, nodeName and tags"),
        ("target", json!({"tags": {}}), "spec.target.tags"),
        ("target", json!({"instanceId": "i-0123456789abcdef0", "tags": {"a": "b"}}), "exactly one of"),
        ("target", json!({"instanceId": "i-0123456789abcdef0", "region": "eu west 1"}), "spec.target.region"),
        ("target", json!({"instanceId": "i-0123456789abcdef0", "accountId": "12"}), "spec.target.accountId"),
        ("osUser", json!("root; rm -rf /"), "spec.osUser"),
        ("osUser", json!("-oProxyCommand=x"), "spec.osUser"),
        ("osUser", json!("u".repeat(33)), "spec.osUser"),
        ("ttlSeconds", json!(119), "spec.ttlSeconds"),
        ("ttlSeconds", json!(604_801), "spec.ttlSeconds"),
        ("ttlSeconds", json!(-1), "spec.ttlSeconds"),
        ("endTime", json!("tomorrow"), "spec.endTime"),
        ("connection", json!({"port": 0}), "spec.connection.port"),
        ("connection", json!({"port": 65536}), "spec.connection.port"),
        ("connection", json!({"method": "Telnet"}), "spec.connection.method"),
        ("reason", json!("r".repeat(1025)), "spec.reason"),
        ("ticket", json!(""), "spec.ticket"),
    ];
    for (field, value, words) in rows {
        let (message, _) = stand.refusal("alice", &good.clone().with(field, value.clone())).await?;
        anyhow::ensure!(message.contains(words), "{field}: {value}: {words:?} is not in: {message}");
    }
    let both = good.with("startTime", json!("2030-01-02T00:00:00Z")).with("endTime", json!("2030-01-01T00:00:00Z"));
    let (message, _) = stand.refusal("alice", &both).await?;
    anyhow::ensure!(message.contains("spec.endTime: Forbidden: must be later than spec.startTime"), "{message}");
    Ok(())
}

async fn a_login_that_only_aws_refuses_is_told_and_asked_once() -> Outcome {
    let stand = shared().await?;
    let refusal = lab::standin::FaultKind::Error {
        code: "InvalidArgsException".to_owned(),
        message: "instanceOSUser is not one that we like".to_owned(),
        status: 400,
    };
    let ask = || {
        let id = stand.running();
        stand.lab.standin().set_fault(lab::standin::Fault::new(refusal.clone()).on(Api::Eic).instance(&id));
        Ask::new("login-refused").instance(&id).ends_in(110)
    };
    let (name, id) = named(&stand.held_for(ask).await?)?;
    let words = ["InvalidArgsException", "instanceOSUser is not one that we like", "make a new request"];
    stand.until(&name, "PushRefused", &words).await?;
    let object = stand.ended_well(&name, &id).await?;
    anyhow::ensure!(stand.pushes(&id).len() == 1, "a final refusal was asked for again: {:?}", stand.pushes(&id));
    anyhow::ensure!(stand.controller.recorded(&object, "Ended") == 1, "the end has no record");
    Ok(())
}

async fn an_unknown_instance_is_not_found_and_heals_when_it_appears() -> Outcome {
    let stand = shared().await?;
    let id = format!("i-{}", &uuid::Uuid::new_v4().simple().to_string()[..17]);
    stand.ask(Ask::new("unknown").instance(&id)).await?;
    let words = ["no instance matches spec.target", "us-west-2", "check the id or the tags"];
    stand.until("unknown", "TargetNotFound", &words).await?;
    // It is as if AWS had been slow to tell of a new instance.
    stand.instance(|instance| instance.id = id.clone());
    stand.until_granted("unknown").await?;
    Ok(())
}

async fn an_instance_in_another_region_is_not_found_and_the_region_is_named() -> Outcome {
    let stand = shared().await?;
    let abroad = stand.instance(|instance| {
        instance.region = "eu-west-1".to_owned();
        instance.availability_zone = "eu-west-1a".to_owned();
    });
    stand.ask(Ask::new("abroad").instance(&abroad)).await?;
    stand.until("abroad", "TargetNotFound", &["in region us-west-2", "the region"]).await?;
    let target = json!({"instanceId": abroad, "region": "eu-west-1"});
    stand.ask(Ask::new("abroad-by-name").with("target", target)).await?;
    stand.until_granted("abroad-by-name").await?;
    anyhow::ensure!(stand.pushes(&abroad).iter().all(|push| push.region == "eu-west-1"), "pushed to the wrong region");
    let home = stand.running();
    let target = json!({"instanceId": home, "region": "eu-west-1"});
    stand.ask(Ask::new("wrong-region").with("target", target)).await?;
    stand.until("wrong-region", "TargetNotFound", &["in region eu-west-1"]).await?;
    Ok(())
}

async fn a_terminated_instance_is_final() -> Outcome {
    let stand = shared().await?;
    for state in ["terminated", "shutting-down"] {
        let id = stand.instance(|instance| instance.state = state.to_owned());
        stand.ask(Ask::new(state).instance(&id)).await?;
        let object = stand.until(state, "InstanceTerminated", &[&id, "ask for another instance"]).await?;
        crate::stand::is(&object, "Stalled", "True").map_err(anyhow::Error::msg)?;
        anyhow::ensure!(stand.pushes(&id).is_empty(), "{state} got a key");
    }
    Ok(())
}

async fn a_stopped_instance_heals_when_it_is_started() -> Outcome {
    let stand = shared().await?;
    let instance = stand.lab.launch_instance(lab::Launch::new("sleepy").stopped()).await?;
    stand.ask(Ask::new("stopped").instance(&instance.id)).await?;
    stand.until("stopped", "InstanceNotRunning", &[&instance.id, "is stopped; start it"]).await?;
    anyhow::ensure!(stand.pushes(&instance.id).is_empty(), "a stopped instance got a key");
    stand.lab.start_instance("sleepy").await?;
    stand.until_granted("stopped").await?;
    Ok(())
}

async fn a_pending_instance_heals_when_it_runs() -> Outcome {
    let stand = shared().await?;
    let id = stand.instance(|instance| instance.state = "pending".to_owned());
    stand.ask(Ask::new("pending").instance(&id)).await?;
    stand.until("pending", "InstanceNotRunning", &[&id, "is starting; access follows by itself"]).await?;
    stand.instance(|instance| instance.id = id.clone());
    stand.until_granted("pending").await?;
    Ok(())
}

async fn a_private_instance_without_an_endpoint_has_no_route_until_there_is_one() -> Outcome {
    let stand = shared().await?;
    let vpc_id = "vpc-00000000000000bad";
    let id = stand.instance(|instance| {
        instance.public_ip = None;
        instance.vpc_id = vpc_id.to_owned();
    });
    stand.ask(Ask::new("no-route").instance(&id)).await?;
    stand.until("no-route", "NoRoute", &[vpc_id, "has no EC2 Instance Connect Endpoint", "create one"]).await?;
    stand.lab.standin().put_endpoint(lab::standin::Endpoint {
        id: "eice-00000000000000bad".to_owned(),
        vpc_id: vpc_id.to_owned(),
        dns_name: stand.lab.standin().api_addr().to_string(),
        ..lab::standin::Endpoint::default()
    });
    // Endpoints are remembered for half a minute, and looked for again as seldom.
    let bound = SOON + SOON;
    let object =
        stand.until_within("no-route", "Granted", bound, |object| crate::stand::is(object, "Active", "True")).await?;
    let connection = object.status.and_then(|status| status.connection).expect("it is granted");
    anyhow::ensure!(connection.endpoint_id.as_deref() == Some("eice-00000000000000bad"), "{connection:?}");
    Ok(())
}

async fn an_instance_of_another_account_is_not_found() -> Outcome {
    let stand = shared().await?;
    let id = stand.running();
    let target = json!({"instanceId": id, "accountId": "210987654321"});
    stand.ask(Ask::new("another-account").with("target", target)).await?;
    let words = ["spec.target.accountId 210987654321", "its own account only"];
    let object = stand.until("another-account", "TargetNotFound", &words).await?;
    crate::stand::is(&object, "Stalled", "True").map_err(anyhow::Error::msg)?;
    // Whose it really is, is nobody's business who named the wrong one.
    anyhow::ensure!(object.status.is_some_and(|status| status.instance.is_none()), "it tells of the instance");
    anyhow::ensure!(stand.pushes(&id).is_empty(), "it got a key");
    Ok(())
}

async fn tags_that_match_none_or_two_are_told_and_one_that_matches_is_found() -> Outcome {
    let stand = shared().await?;
    let tagged = |role: &str| {
        let role = role.to_owned();
        stand.instance(move |instance| {
            instance.tags.insert("role".to_owned(), role);
        })
    };
    stand.ask(Ask::new("tags-none").with("target", json!({"tags": {"role": "none-yet"}}))).await?;
    stand.until("tags-none", "TargetNotFound", &["spec.target", "the tags"]).await?;
    let (one, two) = (tagged("twin"), tagged("twin"));
    stand.ask(Ask::new("tags-two").with("target", json!({"tags": {"role": "twin"}}))).await?;
    let words = ["spec.target.tags", &one, &two, "add tags until one is left, or use instanceId"];
    stand.until("tags-two", "TargetAmbiguous", &words).await?;
    let late = tagged("none-yet");
    stand.until_granted("tags-none").await?;
    anyhow::ensure!(!stand.pushes(&late).is_empty(), "the key went elsewhere");
    anyhow::ensure!(stand.pushes(&one).is_empty() && stand.pushes(&two).is_empty(), "one of two got a key");
    Ok(())
}

async fn an_end_time_that_is_past_or_too_near_ends_without_a_grant() -> Outcome {
    let stand = shared().await?;
    let id = stand.running();
    for (name, seconds, words) in [
        ("past", -5, ["spec.endTime", "is past; make a new request"]),
        ("too-near", 50, ["spec.endTime leaves", "no time left for access"]),
    ] {
        stand.ask(Ask::new(name).instance(&id).ends_in(seconds)).await?;
        let object = stand.until(name, "Expired", &words).await?;
        crate::stand::is(&object, "Ended", "True").map_err(anyhow::Error::msg)?;
        let status = object.status.as_ref().expect("it has conditions");
        anyhow::ensure!(status.grant.is_none(), "{name} has a grant");
        anyhow::ensure!(status.end_time.as_ref().is_some_and(|time| time.0 <= Timestamp::now()), "{name}: endTime");
    }
    anyhow::ensure!(stand.pushes(&id).is_empty(), "something was pushed");
    Ok(())
}

async fn more_time_than_the_policy_allows_is_refused_with_the_maximum() -> Outcome {
    let stand = shared().await?;
    let id = stand.running();
    stand.ask(Ask::new("greedy").instance(&id).with("ttlSeconds", json!(3601))).await?;
    let words = ["no policy admits alice as ec2-user", "developers", "at most ttlSeconds 3600, asked were 3601"];
    stand.until_denied("greedy", "DeniedByPolicy", &words).await?;
    stand.ask(Ask::new("modest").instance(&id).with("ttlSeconds", json!(3600))).await?;
    stand.until_granted("modest").await?;
    Ok(())
}
