//! Windows: no access outside of them, and no surprise inside.

use super::*;

/// As `world`, with access on Sundays from 08:00 until then.
fn open_until(end: &str) -> Life {
    world().under(|policy| policy.windows = Some(vec![hours(Weekday::Sun, "08:00", end)]))
}

#[test]
fn a_grant_ends_when_the_window_closes_and_says_so_from_the_start() {
    let mut life = open_until("08:05").settled();
    life.shows("Approved=True Active=True/Granted Ended=False/Granted");
    assert_eq!(life.expiration(), at(300));
    life.says(ConditionType::Approved, "for 600 s, and not beyond 2026-03-01T08:05:00Z, when its window closes");
    let writes = life.writes;
    life = life.until(299);
    life.shows("Approved=True Active=True/Granted Ended=False/Granted");
    assert_eq!(life.writes, writes);
    let last_push = life.steps.iter().rev().find(|(_, step)| step == "push left").unwrap().0;
    assert!(last_push <= at(230), "{last_push}");
    let life = life.until(300);
    life.shows("Approved=True Active=False/Expired Ended=True/Expired");
    assert_eq!(life.status().revocation.unwrap().cause, EndCause::Expired);
}

#[test]
fn a_window_that_closes_later_shortens_nothing() {
    let life = open_until("08:10").settled();
    assert_eq!(life.expiration(), at(600));
    life.until(599).shows("Approved=True Active=True/Granted Ended=False/Granted");
}

#[test]
fn outside_of_the_windows_a_request_is_refused_and_told_when_they_open() {
    let life = world().under(|policy| policy.windows = Some(vec![hours(Weekday::Mon, "08:00", "18:00")])).settled();
    life.shows("Denied=True/DeniedByPolicy Active=False/Denied Ended=True/Denied Stalled=True");
    life.says(
        ConditionType::Denied,
        "allows access only at Mon 08:00-18:00 UTC, next from 2026-03-02T08:00:00Z: ask then, or set spec.startTime to it",
    );
    assert_eq!(life.look_ups, 0);
}

#[test]
fn a_request_for_later_is_judged_by_when_it_starts() {
    let scheduled = |start: i64| {
        world()
            .with(|request| request.spec.start_time = Some(Time(at(start))))
            .under(|policy| policy.windows = Some(vec![hours(Weekday::Sun, "08:30", "08:40")]))
    };
    let life = scheduled(1800).settled();
    life.shows("Approved=True Active=False/Scheduled Reconciling=True");
    assert_eq!(life.look_again, Some((Deadline::Start, at(1800))));
    let life = life.until(1800);
    life.shows("Approved=True Active=True/Granted Ended=False/Granted");
    assert_eq!(life.expiration(), at(2400));
    for start in [1799, 2400] {
        scheduled(start)
            .settled()
            .shows("Denied=True/DeniedByPolicy Active=False/Denied Ended=True/Denied Stalled=True");
    }
    // Edited while it waits.
    let mut life = scheduled(1800).settled();
    life.change_policies(false, |policies| {
        policies[0].spec.windows = Some(vec![hours(Weekday::Sun, "09:00", "10:00")]);
    });
    life.settle();
    life.shows("Approved=True Active=False/Revoked Ended=True/Revoked");
}

#[test]
fn a_request_that_waits_is_told_the_second_that_too_little_is_left_of_the_window() {
    let mut life = open_until("08:05");
    life.change_instance(|instance| instance.state = InstanceState::Stopped);
    let life = life.until(229);
    life.shows("Active=False/InstanceNotRunning Reconciling=True");
    assert_eq!(life.look_again, Some((Deadline::WindowClosed, at(230))));
    let life = life.until(230);
    life.shows("Denied=True/DeniedByPolicy Active=False/Denied Ended=True/Denied Stalled=True");
    life.says(ConditionType::Denied, "next from 2026-03-08T08:00:00Z");
    // Approved before, it can only end.
    let mut life = open_until("08:05");
    life.audit_works = false;
    let life = life.until(230);
    life.shows("Approved=True Active=False/Revoked Ended=True/Revoked");
    assert!(life.status().grant.is_none());
}

#[test]
fn a_condition_that_no_longer_holds_ends_the_grant_before_the_next_push() {
    let until = |minute: u32| {
        world().under(|policy| {
            let expression = format!("now < timestamp('2026-03-01T08:{minute:02}:00Z') && instance.tags.env == 'dev'");
            policy.conditions = Some(vec![PolicyCondition { expression, message: "ask the owner".into() }]);
        })
    };
    let life = until(2).settled();
    life.shows("Approved=True Active=True/Granted Ended=False/Granted");
    let life = life.until(119);
    life.shows("Approved=True Active=True/Granted Ended=False/Granted");
    let life = life.until(300);
    life.shows("Approved=True Active=False/Revoked Ended=True/Revoked");
    assert_eq!(life.status().revocation.unwrap().cause, EndCause::PolicyChanged);
    let pushes: Vec<_> = life.steps.iter().filter(|(_, step)| step == "push left").map(|(time, _)| *time).collect();
    assert_eq!(pushes, [at(0), at(45), at(90)]);
    // Before the instance is known, what needs it is left open; the clock is not.
    let life = until(0).settled();
    life.shows("Denied=True/DeniedByPolicy Active=False/Denied Ended=True/Denied Stalled=True");
    life.says(ConditionType::Denied, "has a condition that does not hold: ask the owner");
    let retagged = until(2).on(|instance| drop(instance.tags.insert("env".into(), "prod".into())));
    let life = retagged.under(|policy| policy.targets.instance_tags = None);
    let life = life.under(|policy| policy.targets.instance_ids = Some(vec!["*".into()])).settled();
    life.says(ConditionType::Denied, "on i-0123456789abcdef0; nearest is developers, which has a condition");
}

#[test]
fn who_waits_for_people_is_refused_when_the_window_closes_and_not_let_in_the_next_morning() {
    // Open for an hour of today, and again tomorrow.
    let mut life = world()
        .under(|policy| {
            policy.approval = Some(PolicyApproval { deadline_seconds: None, ..super::people::one_lead() });
            policy.windows = Some(vec![PolicyWindow {
                days: vec![
                    Weekday::Mon,
                    Weekday::Tue,
                    Weekday::Wed,
                    Weekday::Thu,
                    Weekday::Fri,
                    Weekday::Sat,
                    Weekday::Sun,
                ],
                start: "08:00".into(),
                end: "09:00".into(),
                time_zone: "UTC".into(),
            }]);
        })
        .settled();
    life.shows("Approved=Unknown Active=False/PendingApproval Reconciling=True");
    life.run_until(at(3600));
    life.shows("Denied=True/DeniedByPolicy Active=False/Denied Ended=True/Denied Stalled=True");
    life.run_until(at(24 * 3600 + 60));
    life.decide(&erin(), DecisionKind::Approve);
    life.settle();
    assert!(life.status().grant.is_none());
}
