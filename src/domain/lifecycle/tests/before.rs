//! Before the grant.

use super::*;

const LOOKING: &str = "";

#[test]
fn a_request_that_a_policy_admits_is_granted_and_its_key_pushed() {
    let mut life = world();
    assert_eq!(life.ask().after.len(), 1, "it looks first, and says nothing yet");
    life.look_delay = seconds(1);
    life.reconcile();
    life.shows(LOOKING);
    assert_eq!(life.status().observed_generation, Some(-1));
    life.look_delay = seconds(0);
    life.fate = Fate::Lands { queue: seconds(0), flight: seconds(2) };
    let mut life = life.until(1);
    life.shows("Approved=True Active=False/Granting Reconciling=True");
    assert_eq!(life.landed(), 0);
    assert_eq!(life.kinds(), [RecordKind::GrantIntended]);
    life = life.until(3);
    life.shows("Approved=True Active=True/Granted Ended=False/Granted");
    assert_eq!(life.kinds(), [RecordKind::GrantIntended, RecordKind::Granted]);
    let status = life.status();
    let grant = status.grant.unwrap();
    assert_eq!((grant.start_time.0, grant.expiration_time.0), (at(1), at(601)));
    assert_eq!(status.policy.unwrap().name, "developers");
    assert_eq!(status.connection.unwrap().command, "ssh ec2-user@203.0.113.7");
    assert_eq!(status.observed_generation, Some(1));
    assert_eq!(status.key.unwrap().first_request_id.as_deref(), Some("request-1"));
    assert_eq!(life.events, ["Granted"]);
}

#[test]
fn an_undisturbed_life_takes_three_status_writes_and_none_per_push() {
    let mut life = world().until(599);
    assert_eq!(life.writes, 2);
    assert!(life.landed() >= 12, "{} pushes", life.landed());
    life = life.until(600);
    assert_eq!(life.writes, 3);
    life.shows("Approved=True Active=False/Expired Ended=True/Expired");
    life = life.until(4000);
    assert_eq!(life.writes, 3);
    assert_eq!(life.look_again, None);
    let key = life.status().key.unwrap();
    assert_eq!(key.pushes, Some(i32::try_from(life.landed()).unwrap()));
    assert_eq!(key.last_request_id, Some(format!("request-{}", life.landed())));
}

#[track_caller]
fn refused(life: Life, part: &str) -> Life {
    let mut life = life.settled();
    life.shows("Denied=True/DeniedByPolicy Active=False/Denied Ended=True/Denied Stalled=True");
    life.says(ConditionType::Denied, part);
    is_refused_for_good(&mut life);
    life
}

#[track_caller]
fn invalid(life: Life, part: &str) {
    let mut life = life.settled();
    life.shows("Denied=True/InvalidSpec Active=False/Denied Ended=True/Denied Stalled=True");
    life.says(ConditionType::Denied, part);
    assert_eq!(life.look_ups, 0);
    is_refused_for_good(&mut life);
}

#[track_caller]
fn is_refused_for_good(life: &mut Life) {
    assert_eq!(life.kinds(), [RecordKind::Denied]);
    assert_eq!((life.writes, life.landed(), life.look_again), (1, 0, None));
    life.change_policies(true, |policies| policies.push(developers()));
    life.run_until(at(100));
    assert_eq!((life.writes, life.landed()), (1, 0));
    life.delete();
    life.settle();
    assert_eq!(life.object, None);
}

#[test]
fn who_is_admitted_nowhere_costs_no_look_up() {
    for life in [
        world().under(|policy| policy.subjects.clear()),
        world().under(|policy| policy.namespaces = vec!["other".into()]),
        world().under(|policy| policy.os_users = vec!["ops".into()]),
        world().with(|request| request.spec.policy_name = Some("other".into())),
        world().with(|request| request.spec.ttl_seconds = Some(3601)),
        world().under(|policy| policy.windows = Some(vec![])),
        world().under(|policy| policy.windows = Some(vec![hours(Weekday::Sun, "08:01", "09:00")])),
    ] {
        let life = refused(life, "no policy admits alice as ec2-user on the target");
        assert_eq!(life.look_ups, 0);
        assert_eq!(life.status().instance, None);
    }
    let mut nobody = world();
    nobody.policies.clear();
    refused(nobody, "no policy is for this requester in namespace team-a");
}

fn prod(instance: &mut Instance) {
    instance.tags.insert("env".into(), "prod".into());
}

fn by_tag(life: Life, key: &str, value: &str) -> Life {
    life.with(|request| {
        request.spec.target.instance_id = None;
        request.spec.target.tags = Some([(key.into(), value.into())].into());
    })
}

/// Status, events and all: nothing that the requester can read has this.
#[track_caller]
fn nobody_reads(life: &Life, secret: &str) {
    let status = serde_json::to_string(life.last_status.as_ref().unwrap()).unwrap();
    assert!(!status.contains(secret), "{status}");
}

#[test]
fn who_is_refused_by_tags_learns_no_id_and_the_trail_has_it() {
    for life in [
        world().on(prod),
        world().on(prod).on(|instance| instance.state = InstanceState::Stopped),
        world().on(prod).on(|instance| instance.public_ip = None),
        world().under(|policy| policy.targets.accounts = Some(vec!["210987654321".into()])),
    ] {
        let mut life = by_tag(life, "app", "web");
        life.endpoints.clear();
        let part = "no policy admits alice as ec2-user on what has the tags app=web; nearest is developers, which";
        let life = refused(life, part);
        nobody_reads(&life, "i-0");
        assert_eq!(life.records[0].1.instance_id.as_deref(), Some(INSTANCE));
    }
    let mut life = by_tag(world(), "app", "web");
    life.policies.push(policy("freeze", PolicyEffect::Deny));
    let life = refused(life, "policy freeze denies alice as ec2-user on what has the tags app=web");
    nobody_reads(&life, "i-0");
}

#[test]
fn of_several_instances_only_those_are_named_that_policies_admit() {
    let several = |tags: &[&str]| {
        let mut life = by_tag(world(), "app", "web");
        life.instances = (1..)
            .zip(tags)
            .map(|(number, env)| {
                let id = InstanceId::parse(&format!("i-{number:017x}")).unwrap();
                let mut found = Instance { id, ..instance() };
                found.tags.insert("env".into(), (*env).to_owned());
                Arc::new(found)
            })
            .collect();
        life
    };
    let two = several(&["prod", "dev", "prod", "dev"]);
    let named = "spec.target.tags match more than one instance, 2 or more that you may ask for (i-00000000000000002, i-00000000000000004); add";
    waits(two, "TargetAmbiguous", false, named);
    let one = several(&["prod", "dev", "prod"]).settled();
    one.says(ConditionType::Active, "1 or more that you may ask for (i-00000000000000002)");
    nobody_reads(&one, "i-00000000000000001");
    assert_eq!(one.landed(), 0, "nobody chooses for them");
    let many = several(&["dev"; 12]).settled();
    many.says(ConditionType::Active, "10 or more that you may ask for");
    many.says(ConditionType::Active, "i-00000000000000005); add");
    for none in [several(&["prod", "prod"]), several(&["prod"; 50])] {
        let none = refused(none, "on what has the tags app=web; nearest is developers, which selects instances by");
        nobody_reads(&none, "i-0");
        assert_eq!(none.records[0].1.instance_id, None, "of several it was none");
    }
}

#[test]
fn what_is_told_of_a_dead_instance_is_what_was_asked_for() {
    let mut dead = world().on(|instance| instance.state = InstanceState::Terminated).settled();
    dead.says(ConditionType::Active, "i-0123456789abcdef0 is terminated; ask for another instance");
    assert_eq!(dead.status().instance.unwrap().instance_id, INSTANCE);
    dead = by_tag(world(), "app", "web").on(|instance| instance.state = InstanceState::Terminated).settled();
    dead.says(ConditionType::Active, "what has the tags app=web is terminated");
    nobody_reads(&dead, "i-0");
}

#[test]
fn who_is_refused_once_the_instance_is_known_learns_no_more_than_the_id_that_they_asked_for() {
    for life in [
        world().on(prod),
        world().on(|instance| drop(instance.tags.remove("env"))),
        world().on(|instance| instance.state = InstanceState::Stopped).on(prod),
        // A refusal comes before a missing way is told.
        world().on(|instance| instance.public_ip = None).on(prod),
        world().under(|policy| policy.targets.accounts = Some(vec!["210987654321".into()])),
    ] {
        let mut life = life;
        life.endpoints.clear();
        let life = refused(life, "on i-0123456789abcdef0; nearest is developers, which");
        let known = life.status_before_it_went();
        assert_eq!(known.instance_id, INSTANCE);
        assert_eq!((known.public_ip, known.private_ip, known.vpc_id, known.account_id), (None, None, None, None));
    }
}

#[test]
fn a_deny_that_matches_wins() {
    let mut life = world();
    life.policies.push(policy("freeze", PolicyEffect::Deny));
    refused(life, "policy freeze denies alice as ec2-user on i-0123456789abcdef0");
    let mut life = world();
    life.policies.push(policy("freeze", PolicyEffect::Deny));
    life.policies[1].spec.connection_methods = Some(vec![PolicyConnectionMethod::Endpoint]);
    life.settled().shows("Approved=True Active=True/Granted Ended=False/Granted");
}

#[test]
fn what_cannot_be_served_as_it_is_written_is_refused_with_all_findings() {
    invalid(world().with(|request| request.spec.requester = None), "spec.requester is missing");
    invalid(
        world().with(|request| request.spec.requester.as_mut().unwrap().username.clear()),
        "spec.requester is missing",
    );
    invalid(
        world().with(|request| request.spec.subject = Some(SubjectName { username: "bob".into() })),
        "spec.subject: alice may not ask for bob",
    );
    invalid(world().with(|request| request.spec.ssh_public_key = "ssh-dss AAAA".into()), "spec.sshPublicKey");
    invalid(world().with(|request| request.spec.os_user = "-oProxyCommand=x".into()), "spec.osUser must be");
    invalid(world().with(|request| request.spec.target.region = Some("evil.example/".into())), "spec.target.region");
    invalid(world().with(|request| request.spec.target.account_id = Some("1".into())), "spec.target.accountId");
    invalid(world().with(|request| request.spec.target.instance_id = Some("i-xyz".into())), "spec.target.instanceId");
    invalid(world().with(|request| request.spec.target.instance_id = None), "exactly one of");
    invalid(
        world().with(|request| request.spec.target.tags = Some([("a".into(), "b".into())].into())),
        "exactly one of",
    );
    invalid(
        world().with(|request| {
            request.spec.target.instance_id = None;
            request.spec.target.tags = Some([].into());
        }),
        "exactly one of",
    );
    invalid(
        world().with(|request| {
            request.spec.target.instance_id = None;
            request.spec.target.node_name = Some("not-there".into());
            request.spec.ssh_public_key = "ssh-dss AAAA".into();
        }),
        "spec.sshPublicKey",
    );
    invalid(world().with(|request| request.spec.key_delivery = Some(KeyDelivery::OnConnect)), "--gateway-address");
    for port in [0, -1, 65536] {
        let connection = Connection { method: None, port: Some(port) };
        invalid(world().with(|request| request.spec.connection = Some(connection)), "spec.connection.port");
    }
    let mut nowhere = world();
    nowhere.settings.region = None;
    invalid(nowhere, "spec.target.region is missing");
    let several = world().with(|request| {
        request.spec.requester = None;
        request.spec.os_user = "0".into();
    });
    invalid(several, "such as ec2-user; spec.requester is missing");
}

#[test]
fn the_subject_may_be_the_requester() {
    let subject = SubjectName { username: "alice".into() };
    let life = world().with(|request| request.spec.subject = Some(subject)).settled();
    life.shows("Approved=True Active=True/Granted Ended=False/Granted");
}

#[test]
fn the_policy_gives_its_default_where_no_ttl_is_asked_for() {
    let life = world().with(|request| request.spec.ttl_seconds = None).settled();
    assert_eq!(life.expiration(), at(1800));
    let life = world().with(|request| request.spec.ttl_seconds = Some(3600)).settled();
    assert_eq!(life.expiration(), at(3600));
}

#[test]
fn access_waits_for_its_start_and_starts_then() {
    let mut life = world().with(|request| request.spec.start_time = Some(Time(at(7200)))).settled();
    life.shows("Approved=True Active=False/Scheduled Reconciling=True");
    assert_eq!(life.look_again, Some((Deadline::Start, at(7200))));
    life = life.until(7199);
    assert_eq!((life.writes, life.landed()), (1, 0));
    assert!(life.look_ups <= 2);
    life = life.until(7200);
    life.shows("Approved=True Active=True/Granted Ended=False/Granted");
    assert_eq!(life.expiration(), at(7800));
    assert_eq!(life.writes, 3);
}

#[test]
fn a_start_in_the_past_is_now() {
    let life = world().with(|request| request.spec.start_time = Some(Time(at(-999)))).settled();
    assert_eq!(life.expiration(), at(600));
}

#[test]
fn an_event_while_scheduled_costs_one_look_up_at_most() {
    let mut life = world().with(|request| request.spec.start_time = Some(Time(at(7200)))).until(1000);
    for _ in 0..5 {
        life.label();
        life.settle();
    }
    assert_eq!((life.look_ups, life.writes), (2, 1));
    assert_eq!(life.look_again, Some((Deadline::Start, at(7200))));
}

#[test]
fn what_was_approved_and_is_no_longer_admitted_ends_before_it_starts() {
    let mut life = world().with(|request| request.spec.start_time = Some(Time(at(7200)))).until(60);
    life.change_policies(false, Vec::clear);
    life.settle();
    life.shows("Approved=True Active=False/Revoked Ended=True/Revoked");
    assert_eq!(life.status().revocation.unwrap().cause, EndCause::PolicyChanged);
    assert_eq!(life.kinds(), [RecordKind::Denied]);
    let mut life = life.until(8000);
    assert_eq!(life.landed(), 0);
    life.delete();
    life.settle();
    assert_eq!(life.object, None);
}

#[test]
fn an_end_time_that_is_past_ends_it_at_once() {
    for end in [-1, 0] {
        let life = world().with(|request| request.spec.end_time = Some(Time(at(end)))).settled();
        life.shows("Active=False/Expired Ended=True/Expired");
        assert_eq!((life.look_ups, life.status().grant), (0, None));
    }
}

#[test]
fn an_end_time_that_is_too_near_leaves_no_time_for_access() {
    for (end, is_granted) in [(1, false), (60, false), (69, false), (70, true), (71, true), (130, true)] {
        let life = world().with(|request| request.spec.end_time = Some(Time(at(end)))).settled();
        if is_granted {
            assert_eq!(life.expiration(), at(end), "{end}");
        } else {
            life.shows("Approved=True Active=False/Expired Ended=True/Expired");
            life.says(ConditionType::Ended, &format!("spec.endTime leaves {end} s"));
            assert_eq!(life.landed(), 0);
        }
    }
}

#[test]
fn the_end_time_wins_over_a_longer_ttl() {
    let life = world().with(|request| request.spec.end_time = Some(Time(at(300)))).settled();
    assert_eq!(life.expiration(), at(300));
    let life = world().with(|request| request.spec.end_time = Some(Time(at(900)))).settled();
    assert_eq!(life.expiration(), at(600));
}

#[test]
fn revoked_before_the_grant_is_over() {
    let mut life = world();
    life.instances.clear();
    life.settle();
    life.revoke();
    life.settle();
    life.shows("Active=False/Revoked Ended=True/Revoked");
    assert_eq!(life.status().observed_generation, Some(2));
    assert_eq!(life.status().revocation.unwrap().key_window_closed_time, None);
    assert_eq!(life.kinds(), []);
}

#[test]
fn deleted_before_the_grant_goes_at_once_and_without_a_write() {
    let mut life = world();
    life.look_delay = seconds(5);
    life.settle();
    life.delete();
    life.settle();
    assert_eq!((life.object.as_ref(), life.writes), (None, 0));
}

/// What the conditions say of an instance that is not as it should be, and how long until the next look.
#[track_caller]
fn waits(life: Life, reason: &str, heals: bool, part: &str) {
    let mut life = life.settled();
    let work = if heals { "Reconciling=True" } else { "Stalled=True" };
    life.shows(&format!("Active=False/{reason} {work}"));
    life.says(ConditionType::Active, part);
    let wait = if heals { 15 } else { 600 };
    assert_eq!(life.look_again, Some((Deadline::Retry, at(wait))));
    let writes = life.writes;
    life = life.until(200);
    let looks = life.look_ups;
    assert_eq!((looks, life.writes), (if heals { 14 } else { 1 }, writes), "{}", life.log());
    life.instances = vec![Arc::new(instance())];
    life.endpoints = vec![endpoint()];
    life = life.until(660);
    life.shows("Approved=True Active=True/Granted Ended=False/Granted");
}

#[test]
fn an_instance_that_is_not_ready_is_waited_for_without_haste() {
    let mut gone = world();
    gone.instances.clear();
    waits(gone, "TargetNotFound", true, "no instance matches spec.target in region us-west-2");
    waits(
        world().on(|instance| instance.state = InstanceState::Stopped),
        "InstanceNotRunning",
        true,
        "is stopped; start it",
    );
    waits(world().on(|instance| instance.state = InstanceState::Pending), "InstanceNotRunning", true, "is starting");
    waits(
        world().on(|instance| instance.state = InstanceState::Terminated),
        "InstanceTerminated",
        false,
        "is terminated",
    );
    let mut no_route = world().on(|instance| instance.public_ip = None);
    no_route.endpoints.clear();
    waits(no_route, "NoRoute", true, "vpc-1 has no EC2 Instance Connect Endpoint");
    let mut old = world().with(|request| request.metadata.creation_timestamp = Some(Time(at(-300))));
    old.instances.clear();
    waits(old, "TargetNotFound", false, "no instance matches");
    let by_tags = |life: Life| {
        life.with(|request| {
            request.spec.target.instance_id = None;
            request.spec.target.tags = Some([("env".into(), "dev".into())].into());
        })
    };
    let mut two = by_tags(world());
    let other = Instance { id: InstanceId::parse("i-00000000000000001").unwrap(), ..instance() };
    two.instances.push(Arc::new(other));
    waits(two, "TargetAmbiguous", false, "2 or more that you may ask for (i-00000000000000001, i-0123456789abcdef0)");
    let foreign = world().on(|instance| instance.account_id = AccountId::parse("210987654321").unwrap());
    let account_id = Some("123456789012".to_owned());
    waits(
        foreign.with(|request| request.spec.target.account_id = account_id),
        "TargetNotFound",
        false,
        "does not belong",
    );
    let mut none = by_tags(world());
    none.instances.clear();
    waits(none, "TargetNotFound", true, "no instance matches");
}

#[test]
fn an_instance_that_stays_away_is_called_wrong_after_five_minutes() {
    let mut life = world();
    life.instances.clear();
    life = life.until(299);
    life.shows("Active=False/TargetNotFound Reconciling=True");
    life = life.until(330);
    life.shows("Active=False/TargetNotFound Stalled=True");
    let looks = life.look_ups;
    life = life.until(330 + 1800);
    assert_eq!((life.look_ups - looks, life.writes), (3, 2));
}

#[test]
fn what_nobody_could_serve_for_a_day_is_over() {
    for start in [0, 3600] {
        let mut life = world().with(|request| request.spec.start_time = Some(Time(at(start))));
        life.instances.clear();
        life = life.until(start + 24 * 3600 - 1);
        assert!(!life.line().contains("Ended"));
        life = life.until(start + 24 * 3600);
        life.shows("Active=False/Expired Ended=True/Expired");
        assert!(life.plans < 2000, "{} plans in a day", life.plans);
        assert_eq!(life.look_again, None);
    }
}

#[test]
fn the_way_is_chosen_as_awss_command_line_would() {
    let through = world().on(|instance| instance.public_ip = None).settled().status().connection.unwrap();
    assert_eq!((through.method, through.endpoint_id.as_deref()), (ConnectionMethod::Endpoint, Some("eice-1")));
    assert!(through.command.contains("--max-tunnel-duration 600"), "{}", through.command);
    let connection = Connection { method: Some(ConnectionMethod::Direct), port: Some(2222) };
    let direct =
        world().with(|request| request.spec.connection = Some(connection)).settled().status().connection.unwrap();
    assert_eq!((direct.method, direct.endpoint_id, direct.port), (ConnectionMethod::Direct, None, 2222));
}

#[test]
fn without_the_audit_trail_nothing_is_granted_and_nothing_pushed() {
    let mut life = world();
    life.audit_works = false;
    life = life.until(60);
    life.shows("Approved=True Active=False/AuditUnavailable Reconciling=True");
    assert_eq!((life.status().grant, life.landed(), life.writes), (None, 0, 1));
    assert!(life.plans < 60);
    life.audit_works = true;
    life = life.until(70);
    life.shows("Approved=True Active=True/Granted Ended=False/Granted");
}

#[test]
fn a_look_up_that_fails_is_told_and_tried_again() {
    for (class, line, tries_max) in [
        (FailureClass::Retry, "Active=False/AwsUnavailable Reconciling=True", 14),
        (FailureClass::Throttled, "Active=False/Throttled Reconciling=True", 12),
        (FailureClass::Refused, "Active=False/AccessDenied Stalled=True", 5),
        (FailureClass::Bug, "Active=False/AwsUnavailable Reconciling=True", 5),
        (FailureClass::Gone, "Active=False/InstanceNotRunning Reconciling=True", 14),
        (FailureClass::Invalid, "Active=False/PushRefused Stalled=True", 1),
    ] {
        let mut life = world();
        life.look_failure = Some(failure(class));
        for second in 0..120 {
            // AWS's texts differ each time.
            life.look_failure.as_mut().unwrap().message = format!("encoded message {second}");
            life = life.until(second);
        }
        life.shows(line);
        assert_eq!(life.writes, 1, "{class:?}: a write per retry");
        assert!(life.look_ups <= tries_max, "{class:?}: {} look-ups in 2 min", life.look_ups);
        life.look_failure = None;
        life = life.until(120 + 900);
        assert!(life.landed() > 0, "{class:?}: {}", life.line());
    }
}

#[test]
fn a_restart_before_the_grant_looks_again_and_grants_once() {
    let mut life = world();
    life.look_delay = seconds(5);
    life.settle();
    life.crash();
    let life = life.until(10);
    life.shows("Approved=True Active=True/Granted Ended=False/Granted");
    assert_eq!(life.look_ups, 2);
}

#[test]
fn a_missing_finalizer_is_put_on_before_the_grant() {
    let life = world().with(|request| request.metadata.finalizers = None).settled();
    let added = life.steps.iter().position(|(_, step)| step == "finalizer added").unwrap();
    let granted = life.steps.iter().position(|(_, step)| step == "status").unwrap();
    assert!(added < granted);
    life.shows("Approved=True Active=True/Granted Ended=False/Granted");
}

impl Life {
    fn status_before_it_went(&self) -> InstanceFacts {
        self.last_status.as_ref().unwrap().instance.clone().expect("an instance")
    }
}

#[test]
fn a_grant_that_was_on_record_and_not_stored_is_the_same_grant_a_moment_later_and_another_after_a_while() {
    for (now, started, start) in [(20, 18, 18), (20, 10, 10), (20, 9, 20)] {
        let mut life = world();
        life.policies_read = false;
        life.run_until(at(now));
        let intended = Grant {
            id: "g".into(),
            start_time: Time(at(started)),
            expiration_time: Time(at(started + 600)),
            session: None,
        };
        life.sight.stores(None, Some(&intended));
        life.policies_read = true;
        let life = life.settled();
        life.shows("Approved=True Active=True/Granted Ended=False/Granted");
        let grant = life.status().grant.unwrap();
        assert_eq!((grant.start_time.0, grant.expiration_time.0), (at(start), at(start + 600)));
    }
}
