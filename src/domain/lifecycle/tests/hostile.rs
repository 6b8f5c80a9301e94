//! Those who want in, or want to stay in; and clocks and texts that are not as one would like them.

use proptest::prelude::*;

use super::*;

#[test]
fn times_at_the_edge_of_the_calendar_neither_panic_nor_grant_for_ever() {
    let edges = [Timestamp::MIN, at(-1), at(1), at(130), Timestamp::MAX, "9999-12-30T00:00:00Z".parse().unwrap()];
    for start in edges {
        for end in edges {
            for created in [Some(Timestamp::MIN), Some(at(0)), Some(Timestamp::MAX), None] {
                let mut life = world().with(|request| {
                    request.spec.start_time = Some(Time(whole_second(start)));
                    request.spec.end_time = Some(Time(whole_second(end)));
                    request.metadata.creation_timestamp = created.map(|time| Time(whole_second(time)));
                });
                life.settle();
                if let Some(grant) = life.status().grant {
                    assert!(grant.expiration_time.0 <= at(600));
                }
            }
        }
    }
}

#[test]
fn fractions_of_seconds_never_reach_the_status() {
    let mut life = world().with(|request| {
        request.spec.start_time = Some(Time(at(10) + jiff::SignedDuration::from_millis(250)));
        request.spec.end_time = Some(Time(at(300) + jiff::SignedDuration::from_millis(999)));
    });
    life.now = at(10) + jiff::SignedDuration::from_nanos(999_999_999);
    life.fate = Fate::Lands { queue: Duration::from_millis(7), flight: Duration::from_millis(77) };
    life = life.until(60);
    assert_eq!(life.expiration(), at(300));
    life.now += jiff::SignedDuration::from_millis(1);
    life.revoke();
    life.settle();
    life.heals_and_ends();
}

#[test]
fn a_ttl_that_the_schema_would_refuse_gives_nothing() {
    for ttl in [i32::MIN, -1, 0, 1, 69] {
        let life = world().with(|request| request.spec.ttl_seconds = Some(ttl)).settled();
        assert_eq!(life.status().grant, None, "{ttl}");
    }
    let life = world().with(|request| request.spec.ttl_seconds = Some(i32::MAX)).settled();
    assert!(life.line().starts_with("Denied=True"));
}

#[test]
fn a_new_request_of_the_same_name_is_another_grant() {
    let first = world().settled().status().grant.unwrap().id;
    let again = world().settled().status().grant.unwrap().id;
    assert_eq!(first, again);
    assert_ne!(first, grant_id_of(|request| request.metadata.uid = Some("another".into())));
    assert_ne!(first, grant_id_of(|request| request.spec.ttl_seconds = Some(601)));
}

fn grant_id_of(change: impl FnOnce(&mut InstanceAccess)) -> String {
    let mut request = request();
    change(&mut request);
    crate::domain::digest::grant_id(request.metadata.uid.as_deref().unwrap(), &spec_digest(&request.spec))
}

#[test]
fn whoever_changes_the_object_in_every_moment_loses_access_all_the_same() {
    let mut life = world().until(100);
    life.revoke();
    for second in 100..160 {
        // Each of our writes loses its first race.
        life.label();
        life.lagging = true;
        life.label();
        life = life.until(second);
    }
    assert!(life.line().contains("Ended=True"), "{}", life.line());
}

#[test]
fn long_texts_are_cut_at_a_characters_edge() {
    let mut life = world().until(10);
    life.object.as_mut().unwrap().spec.revoke = Some(Revoke { reason: Some("ü".repeat(100_000)) });
    life.label();
    life.settle();
    assert!(life.message(ConditionType::Active).ends_with('…'));
    let mut refused = world();
    refused.policies = (0..60)
        .map(|number| {
            let mut long = policy(&format!("policy-{number:02}"), PolicyEffect::Allow);
            long.spec.targets.instance_ids = Some((0..1000).map(|id| format!("i-{id:017}")).collect());
            long.spec.reason = Some(PolicyText { required: None, pattern: Some("x{400}".into()) });
            long
        })
        .collect();
    let life = refused.settled();
    assert!(life.line().starts_with("Denied=True"));
    assert_eq!(life.status().verdicts.len(), 32);
    assert!(life.status().verdicts.iter().all(|verdict| verdict.reason.chars().count() <= 1024));
    assert!(life.message(ConditionType::Denied).len() < 1000, "{}", life.message(ConditionType::Denied));
}

#[test]
fn a_private_key_shows_nowhere() {
    let secret = format!("-----BEGIN OPENSSH PRIVATE KEY-----\n{KEY_BODY}\n-----END OPENSSH PRIVATE KEY-----");
    let life = world().with(|request| request.spec.ssh_public_key = secret).settled();
    life.shows("Denied=True/InvalidSpec Active=False/Denied Ended=True/Denied Stalled=True");
    assert!(!serde_json::to_string(&life.status()).unwrap().contains(KEY_BODY));
}

#[test]
fn a_permit_is_of_no_use_a_second_too_late() {
    let life = world().settled();
    let not_after = last_push_time(life.expiration());
    assert_eq!(not_after, at(530));
    let push = || {
        let key = crate::domain::key::PublicKey::parse(ED25519).unwrap();
        crate::domain::push::KeyPush {
            place: Place { region: Region::parse("us-west-2").unwrap() },
            instance_id: InstanceId::parse(INSTANCE).unwrap(),
            availability_zone: None,
            os_user: crate::domain::cloud::OsUser::parse("ec2-user").unwrap(),
            key,
        }
    };
    assert!(PushPermit::new(not_after, push()).redeem(at(530)).is_some());
    assert!(PushPermit::new(not_after, push()).redeem(at(530) + jiff::SignedDuration::from_nanos(1)).is_none());
}

#[test]
fn a_suspended_machine_pushes_nothing_when_it_wakes_after_the_end() {
    for wake in [529, 530, 531, 599, 600, 601] {
        let mut life = world();
        life.fate = Fate::Lands { queue: seconds(400), flight: seconds(10) };
        life.settle();
        life.suspend_until(at(wake));
        assert_eq!(life.steps.iter().any(|(_, step)| step == "push left"), wake <= 530, "{wake}");
        life.heals_and_ends();
    }
}

proptest! {
    #[test]
    fn no_text_and_no_number_of_a_request_panics(
        os_user in ".{0,40}", key in ".{0,200}", id in proptest::option::of(".{0,40}"), region in proptest::option::of(".{0,40}"),
        reason in proptest::option::of(".{0,40}"), port in proptest::option::of(any::<i32>()), ttl in proptest::option::of(any::<i32>()),
        start in proptest::option::of(-377_705_000_000i64..253_402_000_000), end in proptest::option::of(-377_705_000_000i64..253_402_000_000),
        now in 0i64..253_402_000_000,
    ) {
        let mut life = world().with(|request| {
            request.spec.os_user = os_user;
            if key.len() % 2 == 0 { request.spec.ssh_public_key = key; }
            request.spec.target.instance_id = id;
            request.spec.target.region = region;
            request.spec.reason = reason;
            request.spec.connection = Some(Connection { method: None, port });
            request.spec.ttl_seconds = ttl;
            request.spec.start_time = start.map(|start| Time(Timestamp::from_second(start).unwrap()));
            request.spec.end_time = end.map(|end| Time(Timestamp::from_second(end).unwrap()));
        });
        life.now = Timestamp::from_second(now).unwrap();
        life.settle();
    }
}
