//! While what guards the requests does not stand, and after.

use proptest::prelude::*;

use super::*;

fn missing() -> Enforcement {
    Enforcement::Missing("ValidatingAdmissionPolicy requests.instanceaccess.dev is missing; apply it".into())
}

/// It stands; what was written until then, in seconds after the request, may have been written without it.
fn stands(since: i64) -> Enforcement {
    Enforcement::Stands { since_time: at(since) }
}

const GRANTED: &str = "Approved=True Active=True/Granted Ended=False/Granted";
const HELD: &str = "Active=False/EnforcementMissing Reconciling=True";

#[test]
fn while_it_is_missing_a_request_waits_and_learns_nothing() {
    let mut life = world();
    life.enforcement = missing();
    let mut life = life.until(100);
    life.shows(HELD);
    life.says(ConditionType::Active, "ValidatingAdmissionPolicy requests.instanceaccess.dev is missing; apply it");
    let status = life.status();
    assert_eq!((life.look_ups, status.verdicts.len(), status.instance), (0, 0, None));
    assert_eq!(life.writes, 1, "{}", life.log());
    // Nothing that is wrong with it is told either: whose it is, nobody knows.
    life.policies.clear();
    life = life.until(200);
    life.shows(HELD);
}

#[test]
fn before_anybody_has_looked_nothing_is_said_and_nothing_done() {
    let mut life = world();
    life.enforcement = Enforcement::Unseen;
    life = life.until(100);
    assert_eq!((life.writes, life.look_ups, life.landed()), (0, 0, 0));
    life.enforcement = stands(-60);
    life.until(101).shows("Approved=True Active=True/Granted Ended=False/Granted");
}

#[test]
fn a_request_that_was_made_before_it_stood_and_was_taken_up_is_refused_with_the_remedy() {
    for (since, refused) in [(-3600, false), (-1, false), (0, true), (1, true), (3600, true)] {
        let mut life = world();
        life.enforcement = stands(since);
        let life = life.until(10);
        let denied = condition::find(&life.status().conditions, ConditionType::Denied).cloned();
        assert_eq!(
            denied.as_ref().map(|denied| denied.reason.as_str()),
            refused.then_some("RequesterUnchecked"),
            "{since}"
        );
        assert_eq!(life.landed(), usize::from(!refused));
        if refused {
            life.says(ConditionType::Denied, "make the request again");
            assert_eq!(life.look_ups, 0);
            assert_eq!(life.kinds(), [RecordKind::Denied]);
        }
    }
    // Nor one that cannot say when it was made.
    let life = world().with(|request| request.metadata.creation_timestamp = None).until(10);
    life.says(ConditionType::Denied, "make the request again");
}

#[test]
fn a_request_that_waited_through_a_gap_is_refused_and_one_through_a_look_that_failed_is_granted() {
    for (since, line) in [
        (20, "Denied=True/RequesterUnchecked Active=False/Denied Ended=True/Denied Stalled=True"),
        (-60, "Approved=True Active=True/Granted Ended=False/Granted"),
    ] {
        let mut life = world();
        life.enforcement = missing();
        life = life.until(20);
        life.enforcement = stands(since);
        life.until(21).shows(line);
    }
}

#[test]
fn what_was_approved_for_later_before_a_gap_is_taken_back_after_it() {
    let mut life = world().with(|request| request.spec.start_time = Some(Time(at(300)))).until(10);
    life.shows("Approved=True Active=False/Scheduled Reconciling=True");
    life.enforcement = missing();
    life = life.until(20);
    life.shows(&format!("Approved=True {HELD}"));
    life.enforcement = stands(25);
    let life = life.until(400);
    life.shows("Approved=True Active=False/Revoked Ended=True/Revoked");
    assert_eq!(life.landed(), 0);
}

#[test]
fn a_grant_gets_no_new_key_while_it_is_missing_and_goes_on_when_it_stands_again() {
    let mut life = world().until(100);
    let landed = life.landed();
    life.enforcement = missing();
    life = life.until(149);
    // The last key, of second 90, still lets its owner in.
    life.shows("Approved=True Active=True/Granted Ended=False/Granted");
    life = life.until(150);
    life.shows(&format!("Approved=True {HELD}"));
    life = life.until(300);
    assert_eq!((life.landed(), life.expiration()), (landed, at(600)));
    life.enforcement = stands(305);
    life = life.until(301);
    life.shows("Approved=True Active=True/Granted Ended=False/Granted");
    assert_eq!(life.landed(), landed + 1);
    life.until(600).shows("Approved=True Active=False/Expired Ended=True/Expired");
}

#[test]
fn while_it_is_missing_every_end_goes_on() {
    let gap = |life: Life| {
        let mut life = life.until(100);
        life.enforcement = missing();
        life.until(170)
    };
    gap(world()).until(600).shows("Approved=True Active=False/Expired Ended=True/Expired");
    let mut revoked = gap(world());
    revoked.revoke();
    revoked.until(171).shows("Approved=True Active=False/Revoked Ended=True/Revoked");
    let mut deleted = gap(world());
    deleted.delete();
    assert_eq!(deleted.until(171).object, None);
    let mut withdrawn = gap(world());
    withdrawn.change_policies(false, Vec::clear);
    withdrawn.until(171).shows("Approved=True Active=False/Revoked Ended=True/Revoked");
}

/// A grant that somebody else wrote: alice's request reads as the operator would have written it.
fn forge(life: &mut Life, change: impl FnOnce(&mut InstanceAccessStatus)) {
    let mut honest = world().until(5);
    let mut status = honest.status();
    change(&mut status);
    honest.object = None;
    let object = life.object.as_mut().unwrap();
    object.status = Some(status);
    object.metadata.resource_version = Some("1000".into());
    life.records.push((life.now, Record::of(RecordKind::GrantIntended, object, &InstanceAccessStatus::default())));
    life.sync();
}

#[test]
fn a_grant_that_appears_while_we_look_and_is_not_ours_is_ended_without_a_key() {
    for enforcement in [missing(), stands(-3600), stands(3600)] {
        let mut life = world();
        life.enforcement = enforcement;
        life.fate = Fate::Fails(FailureClass::Refused);
        life.policies_read = false;
        life.settle();
        forge(&mut life, |_| {});
        life.policies_read = true;
        let life = life.until(30);
        life.shows("Approved=True Active=False/Revoked Ended=True/Revoked");
        life.says(ConditionType::Ended, "status holds a grant that the operator did not make");
        assert_eq!((life.landed(), life.kinds().contains(&RecordKind::PushIntended)), (0, false));
    }
}

#[test]
fn a_grant_whose_status_was_under_way_when_its_leader_was_lost_goes_on_under_the_next() {
    // The next one decides five seconds later, and has not heard of it when its own status leaves.
    let other = |change: fn(&mut InstanceAccessStatus)| {
        let mut before = world().until(5);
        let mut status = before.status();
        before.object = None;
        change(&mut status);
        let mut life = world();
        life.look_delay = seconds(5);
        life.lagging = true;
        let object = life.object.as_mut().unwrap();
        object.status = Some(status);
        object.metadata.resource_version = Some("1000".into());
        let record = Record::of(RecordKind::GrantIntended, object, &InstanceAccessStatus::default());
        life.records.push((life.now, record));
        life.until(30)
    };
    let life = other(|_| {});
    life.shows("Approved=True Active=True/Granted Ended=False/Granted");
    assert!(life.log().contains("status: conflict"), "{}", life.log());
    assert_eq!(life.status().grant.unwrap().start_time, Time(at(0)), "it is the first one's, and no longer than that");
    assert!(life.landed() > 0);
    // One that is more than the next would give is nobody's.
    let life = other(|status| status.grant.as_mut().unwrap().expiration_time = Time(at(5000)));
    life.shows("Approved=True Active=False/Revoked Ended=True/Revoked");
    assert_eq!(life.landed(), 0);
}

/// We came to lead when the request was made; two seconds later, before anything was decided, its status reads as the leader
/// before would have written it, but for a change. Decided is at three; the guard was last looked at a second after we led.
fn landed(change: impl FnOnce(&mut InstanceAccess)) -> Life {
    landed_at(2, change).until(3)
}

/// The same, so many seconds after we came to lead; nothing was decided on it yet.
fn landed_at(second: i64, change: impl FnOnce(&mut InstanceAccess)) -> Life {
    landed_in(world(), second, change)
}

/// The world, where there is a gateway that pushes.
fn with_gateway() -> Life {
    let mut life = world().with(|request| request.spec.key_delivery = Some(KeyDelivery::OnConnect));
    life.settings.gateway = Some("gateway.example.com:2222".parse().unwrap());
    life
}

fn landed_in(mut life: Life, second: i64, change: impl FnOnce(&mut InstanceAccess)) -> Life {
    let is_on_connect = life.object.as_ref().unwrap().spec.key_delivery.is_some();
    let theirs = {
        let mut before = if is_on_connect { with_gateway() } else { world() };
        before.fate = Fate::Lands { queue: seconds(40), flight: seconds(0) };
        before.settle();
        before.shows(if is_on_connect { GRANTED } else { "Approved=True Active=False/Granting Reconciling=True" });
        before.status()
    };
    life.sight = Sight::found_at_start(at(0), life.object.as_ref());
    life.policies_read = false;
    life = life.until(second);
    let object = life.object.as_mut().unwrap();
    object.status = Some(theirs);
    object.metadata.resource_version = Some("1000".into());
    change(object);
    life.records.push((life.now, Record::of(RecordKind::GrantIntended, object, &InstanceAccessStatus::default())));
    life.sync();
    life.policies_read = true;
    life
}

/// A look that was begun just now comes to an answer.
fn looked(mut life: Life) -> Life {
    life.guard_looks.begun += 1;
    life.guard_looks.answered = life.guard_looks.begun;
    life
}

proptest! {
    /// Whatever it says, whenever it lands, and however long the next look at the guard takes: what was written in a gap gets
    /// no key, and its end comes no later for it.
    #[test]
    fn no_status_that_was_forged_in_a_gap_gets_a_key_or_more_time(
        lands in 0_i64..70,
        (start, length) in (-80_i64..80, 61_i64..5_000),
        look in 0_i64..12,
        (is_revoked, is_on_connect) in any::<(bool, bool)>(),
    ) {
        let life = if is_on_connect { with_gateway() } else { world() };
        let mut life = landed_in(life, lands, |object| {
            let grant = object.status.as_mut().unwrap().grant.as_mut().unwrap();
            (grant.start_time, grant.expiration_time) = (Time(at(start)), Time(at(start + length)));
        });
        life = life.until(lands + look);
        // Nor does a gateway push on it, before anybody has looked.
        prop_assert!(life.connects().is_err() && !life.line().contains("Granted"), "{}", life.line());
        // The look finds that the guard was away until it landed at least, and that takes five seconds to settle.
        life.enforcement = stands(lands + 5);
        life = looked(life);
        if is_revoked {
            life.revoke();
        }
        let life = life.until(lands + 200);
        prop_assert!(life.landed() == 0 && !life.kinds().contains(&RecordKind::PushIntended), "{}", life.log());
        let status = life.status();
        prop_assert!(condition::is_true(&status.conditions, ConditionType::Ended), "{}", life.line());
        prop_assert!(status.grant.unwrap().expiration_time.0 <= at(start + length));
    }
}

#[test]
fn a_grant_whose_status_lands_before_its_successor_has_decided_goes_on_once_the_guard_was_looked_at() {
    let life = landed(|_| {});
    // Nobody knows yet whose it is: it is neither ended nor served.
    let mut life = life.until(12);
    life.shows("Approved=True Active=False/Granting Reconciling=True");
    assert_eq!((life.landed(), life.writes, life.kinds()), (0, 0, vec![RecordKind::GrantIntended]));
    life = looked(life);
    let life = life.until(14);
    life.shows(GRANTED);
    let grant = life.status().grant.unwrap();
    assert_eq!(
        (grant.start_time, grant.expiration_time),
        (Time(at(0)), Time(at(600))),
        "it is the one that was stored"
    );
    assert!(life.landed() > 0);
    let life = life.until(600);
    life.shows("Approved=True Active=False/Expired Ended=True/Expired");
    assert_eq!(life.kinds().iter().filter(|kind| **kind == RecordKind::GrantIntended).count(), 1, "granted once");
}

#[test]
fn where_gateways_push_status_says_that_a_grant_which_landed_waits_for_a_look() {
    let mut life = landed_in(with_gateway(), 2, |_| {});
    life.shows(GRANTED);
    life = life.until(12);
    life.shows(&format!("Approved=True {HELD}"));
    life.says(ConditionType::Active, "counts once the operator has looked at what guards the requests");
    assert_eq!((life.connects(), life.writes), (Err("NotNow"), 1), "{}", life.log());
    // One that was under way when it landed says nothing of it.
    life.guard_looks.answered = life.guard_looks.begun;
    life = looked(life.until(14));
    life.shows(&format!("Approved=True {HELD}"));
    let mut life = life.until(16);
    life.shows(GRANTED);
    life.connects().unwrap();
    assert_eq!((life.writes, life.expiration()), (2, at(600)));
}

#[test]
fn a_grant_that_was_found_and_begins_later_than_we_led_is_ended_without_a_key_whatever_stands() {
    for (is_on_connect, enforcement) in
        [(false, stands(-3600)), (false, stands(8)), (false, missing()), (true, stands(8))]
    {
        let life = if is_on_connect { with_gateway() } else { world() };
        let mut life = landed_in(life, 2, |object| {
            let grant = object.status.as_mut().unwrap().grant.as_mut().unwrap();
            (grant.start_time, grant.expiration_time) = (Time(at(3_600)), Time(at(4_200)));
        });
        life.enforcement = enforcement;
        // The list shows it, and not the watch.
        life.sight = Sight::found_at_start(at(0), life.object.as_ref());
        life.settle();
        life.says(ConditionType::Active, "status holds a grant that the operator did not make");
        assert!(life.connects().is_err(), "{}", life.line());
        let life = looked(life).until(200);
        life.shows("Approved=True Active=False/Revoked Ended=True/Revoked");
        assert_eq!((life.landed(), life.kinds().contains(&RecordKind::PushIntended)), (0, false));
    }
}

#[test]
fn what_lands_at_a_take_over_and_cannot_be_the_leaders_before_is_ended_without_a_key() {
    let grant = |object: &mut InstanceAccess, change: fn(&mut Grant)| {
        change(object.status.as_mut().unwrap().grant.as_mut().unwrap());
    };
    let not_ours = "status holds a grant that the operator did not make";
    for (mut life, words) in [
        // The guard was away when it was written.
        (landed(|_| {}), "the grant is older than the admission policies or CRDs that stand now"),
        // It begins after its leader was gone, or long before.
        (landed(|object| grant(object, |grant| grant.start_time = Time(at(1)))), not_ours),
        (landed(|object| grant(object, |grant| grant.start_time = Time(at(-61)))), not_ours),
        // It is more than was asked for, which no operator gives.
        (landed(|object| grant(object, |grant| grant.expiration_time = Time(at(601)))), not_ours),
    ] {
        if words.starts_with("the grant is older") {
            life.enforcement = stands(8);
        }
        let life = looked(life).until(10);
        life.says(ConditionType::Active, words);
        let life = life.until(200);
        life.shows("Approved=True Active=False/Revoked Ended=True/Revoked");
        assert_eq!((life.landed(), life.kinds().contains(&RecordKind::PushIntended)), (0, false), "{words}");
    }
    // Something else was stored since we listed: whatever the leader before sent is refused.
    let mut life = world();
    life.sight = Sight::found_at_start(at(0), life.object.as_ref());
    life.policies_read = false;
    life = life.until(1);
    life.label();
    life.settle();
    forge(&mut life, |_| {});
    life.policies_read = true;
    let life = looked(life).until(10);
    life.says(ConditionType::Active, not_ours);
    assert_eq!(life.until(200).landed(), 0);
}

#[test]
fn while_nobody_knows_whose_a_grant_is_its_end_comes_all_the_same() {
    let ends = |act: fn(&mut Life)| {
        let mut life = landed(|_| {});
        act(&mut life);
        let life = life.until(200);
        assert_eq!((life.landed(), life.kinds().contains(&RecordKind::PushIntended)), (0, false));
        life
    };
    ends(Life::revoke).shows("Approved=True Active=False/Revoked Ended=True/Revoked");
    ends(|life| life.change_policies(false, Vec::clear)).shows("Approved=True Active=False/Revoked Ended=True/Revoked");
    assert_eq!(ends(Life::delete).object, None);
    let life = landed(|_| {}).until(600);
    life.shows("Approved=True Active=False/Expired Ended=True/Expired");
    assert_eq!(life.landed(), 0);
}

#[test]
fn an_end_that_somebody_moved_later_ends_the_grant_at_once() {
    let mut life = world().until(100);
    let landed = life.landed();
    let object = life.object.as_mut().unwrap();
    let grant = object.status.as_mut().unwrap().grant.as_mut().unwrap();
    grant.expiration_time = Time(at(5000));
    let mut sight = Sight::new(at(-3600));
    sight.stores(None, Some(&Grant { expiration_time: Time(at(600)), ..grant.clone() }));
    let (settings, policies) = (life.settings.clone(), PolicySet::new([Arc::new(Policy::compile(&developers()))]));
    let world = World {
        settings: &settings,
        policies: &policies,
        decisions: &Decisions::none(),
        nodes: &Nodes::default(),
        enforcement: &stands(-60),
        census: &Census::default(),
        ledger: &Ledger::default(),
        sight: &sight,
    };
    let plan = next(at(100), object, world);
    assert!(plan.before.contains(&Effect::StopPush) && plan.after.iter().all(|it| !matches!(it, Effect::Push(_))));
    assert_eq!(landed, 3);
}

#[test]
fn after_a_restart_in_a_gap_nobody_knows_whose_a_grant_is_and_it_ends() {
    // Since when it stands, in seconds after the request; the grant began at once.
    for (since, line) in [
        (-1, "Approved=True Active=True/Granted Ended=False/Granted"),
        (0, "Approved=True Active=False/Revoked Ended=True/Revoked"),
        (170, "Approved=True Active=False/Revoked Ended=True/Revoked"),
    ] {
        let mut life = world().until(100);
        let landed = life.landed();
        life.enforcement = missing();
        life.crash();
        life = life.until(170);
        life.shows(&format!("Approved=True {HELD}"));
        life.enforcement = stands(since);
        let life = life.until(250);
        life.shows(line);
        assert_eq!(life.landed() > landed, since < 0);
    }
}

#[test]
fn a_grant_that_was_found_while_it_stood_outlives_a_gap() {
    let mut life = world().until(100);
    life.crash();
    life = life.until(110);
    life.enforcement = missing();
    life = life.until(300);
    life.enforcement = stands(305);
    life.until(301).shows("Approved=True Active=True/Granted Ended=False/Granted");
}

#[test]
fn a_grant_of_another_requests_id_is_ended() {
    let mut life = world();
    life.policies_read = false;
    life.settle();
    let mut other = life.object.clone().unwrap();
    let mut status = world().until(5).status();
    status.grant.as_mut().unwrap().id = "g-00000000000000000000000000000000".into();
    other.status = Some(status);
    let sight = Sight::found_at_start(at(-3600), Some(&other));
    let policies = PolicySet::new([Arc::new(Policy::compile(&developers()))]);
    let world = World {
        settings: &life.settings,
        policies: &policies,
        decisions: &Decisions::none(),
        nodes: &life.nodes,
        enforcement: &stands(-60),
        census: &Census::default(),
        ledger: &Ledger::default(),
        sight: &sight,
    };
    let plan = next(at(10), &other, world);
    let status = plan.status.expect("it is told");
    assert!(status.revocation.is_some() && plan.after.iter().all(|it| !matches!(it, Effect::Push(_))));
}
