//! Random histories: whatever happens in whatever order, the invariants hold after every step.

use proptest::prelude::*;

use super::*;

/// Something that happens.
#[derive(Clone, Debug)]
pub(super) enum Turn {
    Wait(u32),
    Suspend(u32),
    Revoke,
    Delete,
    MakeAgain(Again),
    Ledger(bool),
    CrashBeforeTheLedgerIsRead,
    LedgerRead,
    Label,
    Lag,
    Crash,
    CrashAfter(usize),
    Pace(u64),
    PolicyGone,
    PolicyBack,
    PolicyRecreated,
    Deny,
    Window(Option<u32>),
    Condition(u32),
    Fate(Fate),
    LookFails(Option<FailureClass>, u64),
    Audit(bool),
    CrashBeforePoliciesAreRead,
    PoliciesRead,
    Rereads(bool),
    Decide(Who, DecisionKind, Bend),
    TakeBack,
    AskPeople(Option<i32>),
    Delegates(delegates::May),
    Limit(Option<(i32, i32)>),
    OtherGranted,
    OtherEnds,
    CrashBeforeRequestsAreRead,
    EditSpec,
    State(InstanceState),
    Tag(&'static str),
    Gone(bool),
    EnforcementGone,
    EnforcementBack(bool),
    Unreadable(bool),
    Session(Option<i32>),
    Connect(u64, u64, bool),
    Gateway(bool),
    EditDelivery(KeyDelivery),
}

/// How a request is made again.
#[derive(Clone, Copy, Debug)]
pub(super) enum Again {
    Same,
    /// For another reason, each time the same one.
    Other,
}

/// Who decides.
#[derive(Clone, Copy, Debug)]
pub(super) enum Who {
    Alice,
    Bob,
    Erin,
    Frank,
    Robot,
}

/// What is wrong with a decision.
#[derive(Clone, Copy, Debug)]
pub(super) enum Bend {
    Nothing,
    OtherUid,
    OtherDigest,
    Early,
}

fn any_decision() -> impl Strategy<Value = Turn> {
    let who =
        prop::sample::select(vec![Who::Alice, Who::Bob, Who::Erin, Who::Erin, Who::Frank, Who::Frank, Who::Robot]);
    let kinds =
        prop_oneof![6 => Just(DecisionKind::Approve), 1 => Just(DecisionKind::Deny), 1 => Just(DecisionKind::Revoke)];
    let bends = prop_oneof![
        5 => Just(Bend::Nothing),
        1 => Just(Bend::OtherUid),
        1 => Just(Bend::OtherDigest),
        1 => Just(Bend::Early)
    ];
    (who, kinds, bends).prop_map(|(who, kind, bend)| Turn::Decide(who, kind, bend))
}

fn any_class() -> impl Strategy<Value = FailureClass> {
    use FailureClass::{Bug, Gone, Invalid, Refused, Retry, Throttled};
    prop::sample::select(vec![Retry, Throttled, Refused, Invalid, Gone, Bug])
}

fn any_fate() -> impl Strategy<Value = Fate> {
    let millis = |max: u64| (0..=max).prop_map(Duration::from_millis);
    prop_oneof![
        4 => (millis(0), millis(900)).prop_map(|(queue, flight)| Fate::Lands { queue, flight }),
        2 => (millis(40_000), millis(10_000)).prop_map(|(queue, flight)| Fate::Lands { queue, flight }),
        1 => millis(10_000).prop_map(|flight| Fate::LandsUnheard { flight }),
        1 => any_class().prop_map(Fate::Fails),
    ]
}

/// Somebody connects, mostly so that the push leaves and lands as late as it may; and now and then it is revoked just then.
fn any_connect() -> impl Strategy<Value = Turn> {
    let queue = prop_oneof![2 => Just(5_000), 1 => 0..6_000u64];
    let flight = prop_oneof![2 => Just(10_000), 1 => 0..=10_000u64];
    (queue, flight, any::<bool>()).prop_map(|(queue, flight, revoked)| Turn::Connect(queue, flight, revoked))
}

pub(super) fn any_turn() -> impl Strategy<Value = Turn> {
    prop_oneof![
        10 => (0..90u32).prop_map(Turn::Wait),
        2 => (90..400u32).prop_map(Turn::Wait),
        2 => (0..200u32).prop_map(Turn::Suspend),
        2 => Just(Turn::Revoke),
        3 => Just(Turn::Delete),
        8 => prop::sample::select(vec![Again::Same, Again::Same, Again::Other]).prop_map(Turn::MakeAgain),
        1 => any::<bool>().prop_map(Turn::Ledger),
        1 => Just(Turn::CrashBeforeTheLedgerIsRead),
        1 => Just(Turn::LedgerRead),
        2 => Just(Turn::Label),
        1 => Just(Turn::Lag),
        2 => Just(Turn::Crash),
        4 => (0..12usize).prop_map(Turn::CrashAfter),
        2 => prop::sample::select(vec![0, 100, 333, 3000]).prop_map(Turn::Pace),
        1 => Just(Turn::PolicyGone),
        1 => Just(Turn::PolicyBack),
        1 => Just(Turn::PolicyRecreated),
        1 => Just(Turn::Deny),
        2 => prop::option::of(1..30u32).prop_map(Turn::Window),
        1 => (1..30u32).prop_map(Turn::Condition),
        4 => any_fate().prop_map(Turn::Fate),
        2 => (prop::option::of(any_class()), 0..20_000u64).prop_map(|(class, delay)| Turn::LookFails(class, delay)),
        2 => any::<bool>().prop_map(Turn::Audit),
        1 => Just(Turn::CrashBeforePoliciesAreRead),
        1 => Just(Turn::PoliciesRead),
        1 => any::<bool>().prop_map(Turn::Rereads),
        8 => any_decision(),
        1 => Just(Turn::TakeBack),
        2 => prop::option::of(1..3i32).prop_map(Turn::AskPeople),
        3 => prop::sample::select(delegates::May::ALL.to_vec()).prop_map(Turn::Delegates),
        2 => prop::option::of((1..4i32, 1..4i32)).prop_map(Turn::Limit),
        3 => Just(Turn::OtherGranted),
        2 => Just(Turn::OtherEnds),
        1 => Just(Turn::CrashBeforeRequestsAreRead),
        1 => Just(Turn::EditSpec),
        2 => prop::sample::select(vec![InstanceState::Running, InstanceState::Stopped, InstanceState::Terminated])
            .prop_map(Turn::State),
        1 => prop::sample::select(vec!["dev", "prod"]).prop_map(Turn::Tag),
        1 => any::<bool>().prop_map(Turn::Gone),
        1 => Just(Turn::EnforcementGone),
        2 => any::<bool>().prop_map(Turn::EnforcementBack),
        2 => any::<bool>().prop_map(Turn::Unreadable),
        2 => prop::option::of(60..90i32).prop_map(Turn::Session),
        6 => any_connect(),
        1 => any::<bool>().prop_map(Turn::Gateway),
        1 => prop::sample::select(vec![KeyDelivery::Continuous, KeyDelivery::OnConnect]).prop_map(Turn::EditDelivery),
    ]
}

/// Developers, changed so, instead of whatever policies there are.
fn instead(life: &mut Life, change: impl FnOnce(&mut InstanceAccessPolicy)) {
    (life.closes, life.holds_until) = (None, None);
    life.change_policies(true, |policies| {
        let mut policy = delegates::developers();
        change(&mut policy);
        *policies = vec![policy];
    });
}

pub(super) fn happen(life: &mut Life, turn: &Turn) {
    let millis = |life: &Life, count: u64| plus(life.now, Duration::from_millis(count));
    match turn {
        Turn::Wait(seconds) => {
            let time = millis(life, u64::from(*seconds) * 1000 + 137);
            life.run_until(time);
        }
        Turn::Suspend(seconds) => {
            let time = millis(life, u64::from(*seconds) * 1000 + 59);
            life.suspend_until(time);
        }
        Turn::Revoke => life.revoke(),
        Turn::Delete => life.delete(),
        // What comes at once has tests of its own: here, keys of the one before would be taken for the new one's.
        Turn::MakeAgain(again) => {
            if life.is_still() {
                life.make_again(|request| match again {
                    Again::Same => {}
                    Again::Other => request.spec.reason = Some("the disk is full again".into()),
                });
            }
        }
        Turn::Ledger(works) => life.book.works = *works,
        Turn::CrashBeforeTheLedgerIsRead => {
            life.crash();
            life.book.is_read = false;
        }
        Turn::LedgerRead => life.book.is_read = true,
        Turn::Label => life.label(),
        Turn::Lag => life.lagging = true,
        Turn::Crash => life.crash(),
        Turn::CrashAfter(steps) => life.crash_after = Some(*steps),
        Turn::Pace(pace) => life.pace = Duration::from_millis(*pace),
        Turn::PolicyGone => life.change_policies(false, Vec::clear),
        Turn::PolicyBack => instead(life, |_| {}),
        Turn::PolicyRecreated => instead(life, |policy| policy.metadata.uid = Some("another".into())),
        // It opened before the world began, and closes so many minutes later.
        Turn::Window(minutes) => {
            instead(life, |policy| {
                policy.spec.windows =
                    minutes.map(|minutes| vec![hours(Weekday::Sun, "07:00", &format!("08:{minutes:02}"))]);
            });
            life.closes = minutes.map(|minutes| at(i64::from(minutes) * 60));
        }
        Turn::Condition(minutes) => {
            instead(life, |policy| {
                let expression =
                    format!("now < timestamp('2026-03-01T08:{minutes:02}:00Z') && instance.tags.env != 'prod'");
                policy.spec.conditions = Some(vec![PolicyCondition { expression, message: "too late".into() }]);
            });
            life.holds_until = Some(at(i64::from(*minutes) * 60));
        }
        Turn::Deny => life.change_policies(true, |policies| {
            // Counts once the instance was seen, so that `policy_admits` cannot be told from here.
            policies.push(policy("no", PolicyEffect::Deny));
        }),
        Turn::Fate(fate) => life.fate = fate.clone(),
        Turn::LookFails(class, delay) => {
            life.look_failure = class.map(failure);
            life.look_delay = Duration::from_millis(*delay);
        }
        Turn::Audit(works) => life.audit_works = *works,
        Turn::CrashBeforePoliciesAreRead => {
            life.crash();
            life.policies_read = false;
        }
        Turn::CrashBeforeRequestsAreRead => {
            life.crash();
            life.requests_read = false;
        }
        Turn::Rereads(begins) => life.sight.rereading_since_time = begins.then_some(life.now),
        Turn::PoliciesRead => (life.policies_read, life.requests_read) = (true, true),
        Turn::Decide(..) if life.object.is_none() => {}
        Turn::Decide(who, kind, bend) => {
            let leads = |name: &str| Identity { username: name.into(), ..erin() };
            let who = match who {
                Who::Alice => Identity { groups: vec!["developers".into(), "leads".into()], ..alice() },
                Who::Bob => bob(),
                Who::Erin => erin(),
                Who::Frank => leads("frank"),
                Who::Robot => delegates::robot(),
            };
            life.decide(&who, *kind);
            let decision = life.decisions.last_mut().expect("just made");
            match bend {
                Bend::Nothing => {}
                Bend::OtherUid => decision.spec.request_ref.uid = "another".into(),
                Bend::OtherDigest => decision.spec.request_ref.spec_digest = Some("0".repeat(64)),
                Bend::Early => decision.metadata.creation_timestamp = Some(Time(at(-3600))),
            }
        }
        Turn::TakeBack => {
            life.decisions.pop();
        }
        Turn::AskPeople(count) => {
            let mut approvers = people::one_lead().approvers;
            approvers.push(PolicySubject { kind: SubjectKind::ServiceAccount, name: "argocd/robot".into() });
            let approval = count.map(|count| PolicyApproval { count, approvers, ..people::one_lead() });
            life.policies.iter_mut().filter(|policy| policy.spec.effect == PolicyEffect::Allow).for_each(|policy| {
                policy.spec.approval = approval.clone();
            });
        }
        // Whether it still admits is for `is_delegated` to say.
        Turn::Delegates(may) => life.policies.iter_mut().for_each(|policy| may.change(&mut policy.spec)),
        Turn::Limit(limits) => {
            let limits = limits.map(|(subject, instance)| PolicyLimits {
                active_per_subject: Some(subject),
                active_per_instance: Some(instance),
                requests_per_hour: Some(6),
            });
            life.policies.iter_mut().filter(|policy| policy.spec.effect == PolicyEffect::Allow).for_each(|policy| {
                policy.spec.limits = limits;
            });
        }
        // Whichever binds: what a grant says of it is for the invariants.
        Turn::Session(seconds) => life.policies.iter_mut().for_each(|policy| {
            let drain_seconds = seconds.map(|seconds| 100 - seconds);
            let end = Some(PolicySessionEnd { strategy: SessionEndStrategy::Drain, drain_seconds });
            let bound = PolicySession { idle_timeout_seconds: *seconds, end, ..PolicySession::default() };
            let is_allow = policy.spec.effect == PolicyEffect::Allow;
            policy.spec.session = seconds.is_some().then_some(bound).filter(|_| is_allow);
        }),
        Turn::OtherGranted => life.other_is_granted(),
        Turn::OtherEnds => life.other_ends(),
        Turn::EditSpec => life.edit_spec(|spec| spec.ticket = Some("INC-1".into())),
        Turn::EditDelivery(delivery) => life.edit_spec(|spec| spec.key_delivery = Some(*delivery)),
        Turn::State(state) => life.change_instance(|instance| instance.state = *state),
        Turn::Tag(value) => life.change_instance(|instance| {
            instance.tags.insert("env".into(), (*value).into());
        }),
        Turn::EnforcementGone => life.enforcement = Enforcement::Missing("It is missing; apply it".into()),
        Turn::EnforcementBack(gap) => {
            let since_time = if *gap { plus(life.now, seconds(5)) } else { at(-7200) };
            life.enforcement = Enforcement::Stands { since_time };
        }
        Turn::Unreadable(is_there) => {
            life.unreadable = is_there.then(|| "odd".to_owned()).into_iter().collect();
            life.settle();
        }
        // Whether it may is for the gateway to say, and what comes of it for the invariants.
        Turn::Connect(queue, flight, revoked) => {
            let connected = life.knocks_for(Duration::from_millis(*queue), Duration::from_millis(*flight));
            if connected.is_ok() && *revoked {
                life.revoke();
            }
        }
        Turn::Gateway(is_known) => life.settings.gateway = is_known.then(|| "gateway:2222".parse().unwrap()),
        Turn::Gone(gone) => life.instances = if *gone { Vec::new() } else { vec![Arc::new(instance())] },
    }
}

pub(super) fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(768)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 4096, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_invariants_hold(
        ttl in 120..900i32,
        end in prop::option::of(100..1200i64),
        start in prop::option::of(1..300i64),
        has_finalizer in any::<bool>(),
        early in any::<bool>(),
        window in prop::option::of((1..20u32).prop_map(Some)),
        people in prop::option::of(1..3i32),
        asserted in any::<bool>(),
        limits in prop::option::of((1..4i32, 1..4i32)),
        on_connect in prop::bool::weighted(0.3),
        turns in prop::collection::vec(any_turn(), 1..40),
    ) {
        let mut life = world().with(|request| {
            request.spec.ttl_seconds = Some(ttl);
            request.spec.end_time = end.map(|end| Time(at(end)));
            request.spec.start_time = start.filter(|start| end.is_none_or(|end| *start < end)).map(|start| Time(at(start)));
            if asserted {
                delegates::asserts_alice(request);
                request.spec.end_time = Some(Time(at(end.unwrap_or(900))));
                request.spec.start_time = start.filter(|start| *start < end.unwrap_or(900)).map(|start| Time(at(start)));
            }
            if !has_finalizer {
                request.metadata.finalizers = None;
            }
            if on_connect {
                request.spec.key_delivery = Some(KeyDelivery::OnConnect);
            }
        });
        life.settings.gateway = Some("gateway:2222".parse().unwrap());
        happen(&mut life, &Turn::PolicyBack);
        if let Some(window) = window {
            happen(&mut life, &Turn::Window(window));
        }
        if early {
            life.crash();
        }
        happen(&mut life, &Turn::AskPeople(people));
        happen(&mut life, &Turn::Limit(limits));
        for turn in &turns {
            if matches!(turn, Turn::State(_) | Turn::Tag(_)) && life.instances.is_empty() {
                life.instances = vec![Arc::new(instance())];
            }
            happen(&mut life, turn);
        }
        life.crash_after = None;
        life.unreadable.clear();
        life.heals_and_ends();
    }
}
