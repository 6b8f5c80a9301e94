//! The limits of the policy that decides: the rows of one request, and a crowd that asks at once.

use std::sync::OnceLock;

use proptest::prelude::*;

use super::*;
use crate::domain::identity::PrincipalRule;

const GRANTED: &str = "Approved=True Active=True/Granted Ended=False/Granted";
const WAITING: &str = "Approved=Unknown Active=False/PendingApproval Reconciling=True";
const DENIED: &str = "Denied=True/LimitReached Active=False/Denied Ended=True/Denied Stalled=True";
const REVOKED: &str = "Approved=True Active=False/Revoked Ended=True/Revoked";

fn limits(subject: Option<i32>, instance: Option<i32>, hour: Option<i32>) -> Option<PolicyLimits> {
    Some(PolicyLimits { active_per_subject: subject, active_per_instance: instance, requests_per_hour: hour })
}

/// Another request of alice's for the same instance, granted just now.
fn granted(uid: String, now: Timestamp) -> InstanceAccess {
    static TEMPLATE: OnceLock<InstanceAccess> = OnceLock::new();
    let mut object = TEMPLATE.get_or_init(|| world().settled().object.unwrap()).clone();
    object.metadata.uid = Some(uid);
    let approved = object.status.as_mut().unwrap().conditions.iter_mut();
    approved.for_each(|condition| condition.last_transition_time = Time(whole_second(now)));
    object
}

impl Life {
    /// Another request of alice's is granted, under another policy.
    pub(super) fn other_is_granted(&mut self) {
        self.other_is_granted_to(|_| {});
    }

    fn other_is_granted_to(&mut self, change: impl FnOnce(&mut InstanceAccess)) {
        let mut other = granted(format!("other-{}", self.others.len()), self.now);
        change(&mut other);
        self.census.see(self.now, &self.settings.principals, &other);
        self.others.push(other);
    }

    /// One of the others ends.
    pub(super) fn other_ends(&mut self) {
        let Some(other) = self.others.iter_mut().find(|other| !is_over(other)) else { return };
        let status = other.status.as_mut().unwrap();
        condition::set(&mut status.conditions, Saying::ended(EndReason::Released, "over"), 1, self.now);
        let other = other.clone();
        self.census.see(self.now, &self.settings.principals, &other);
    }

    fn limited(self, limits: Option<PolicyLimits>) -> Self {
        self.under(|policy| policy.limits = limits)
    }

    fn with_others(mut self, count: usize) -> Self {
        (0..count).for_each(|_| self.other_is_granted());
        self
    }
}

/// Alice's one place is taken.
pub(super) fn full() -> Life {
    world().limited(limits(Some(1), None, None)).with_others(1).settled()
}

#[test]
fn below_its_limits_a_request_is_granted_and_they_end_nothing() {
    let mut life = world().limited(limits(Some(3), Some(3), Some(3))).with_others(2).until(100);
    life.shows(GRANTED);
    // More came under other policies, and the limits were lowered.
    (0..5).for_each(|_| life.other_is_granted());
    life.policies[0].spec.limits = limits(Some(1), Some(1), Some(1));
    life.until(200).shows(GRANTED);
}

#[test]
fn a_request_beyond_a_limit_is_refused_with_what_was_counted_and_the_remedy() {
    for (limits, words) in [
        (
            limits(Some(2), None, None),
            "policy developers leaves no room: limits.activePerSubject is 2, and alice has 2 live grants under whatever policy; release one (kubectl patch instanceaccess NAME --type merge -p '{\"spec\":{\"revoke\":{\"reason\":\"done\"}}}') or wait until one ends, then make a new request",
        ),
        (
            limits(None, Some(1), None),
            "policy developers leaves no room: limits.activePerInstance is 1, and i-0123456789abcdef0 has 2 live grants, whoever has them; wait until one ends or is released, then make a new request",
        ),
        (
            limits(Some(3), Some(3), Some(2)),
            "policy developers leaves no room: limits.requestsPerHour is 2, and 2 of alice's requests were admitted since 2026-03-01T07:00:00Z; make a new request after 2026-03-01T09:00:00Z",
        ),
    ] {
        let life = world().limited(limits).with_others(2).settled();
        life.shows(DENIED);
        assert_eq!(life.message(ConditionType::Denied), words);
        assert_eq!(life.status().policy.unwrap().name, "developers");
        assert_eq!(life.status().instance.unwrap().private_ip, None, "who is refused learns no address");
        assert_eq!(life.kinds(), [RecordKind::Denied]);
        assert_eq!(life.events, ["LimitReached"]);
    }
    let life = world().limited(limits(Some(1), Some(2), Some(2))).with_others(2).settled();
    for field in ["limits.activePerSubject is 1", "limits.activePerInstance is 2", "limits.requestsPerHour is 2"] {
        life.says(ConditionType::Denied, field);
    }
}

#[test]
fn the_limits_of_the_policy_that_decides_are_no_reason_to_take_the_next() {
    let mut life = world().limited(limits(Some(1), None, None)).with_others(1);
    life.policies[0].spec.priority = Some(10);
    life.policies.push(policy("unlimited", PolicyEffect::Allow));
    life.settled().shows(DENIED);
}

#[test]
fn empty_limits_are_none() {
    world().limited(limits(None, None, None)).with_others(9).settled().shows(GRANTED);
}

#[test]
fn others_of_other_people_elsewhere_do_not_count() {
    let mut life = world().limited(limits(Some(1), Some(1), Some(1)));
    life.other_is_granted_to(|other| {
        other.spec.requester = Some(bob());
        other.status.as_mut().unwrap().instance.as_mut().unwrap().instance_id = "i-0123456789abcdef1".into();
    });
    life.settled().shows(GRANTED);
}

#[test]
fn one_person_under_two_user_names_is_one() {
    let rule: PrincipalRule = "user.uid".parse().unwrap();
    for (uid, line) in [("u-alice", DENIED), ("u-other", GRANTED)] {
        let mut life = world().limited(limits(Some(1), None, None));
        life.settings.principals = rule.clone();
        life.other_is_granted_to(|other| {
            let requester = other.spec.requester.as_mut().unwrap();
            (requester.username, requester.uid) = ("alice-admin".into(), Some(uid.into()));
        });
        life.settled().shows(line);
    }
}

#[test]
fn nobody_is_asked_for_what_the_limits_refuse() {
    for limits in [limits(Some(1), None, None), limits(None, Some(1), None), limits(None, None, Some(1))] {
        let life = world().limited(limits).under(|policy| policy.approval = Some(people::one_lead()));
        let life = life.with_others(1).settled();
        life.shows(DENIED);
        assert_eq!(life.events, ["LimitReached"]);
    }
}

/// Waits for people, admitted; then another grant takes the only place.
fn waiting(limits: Option<PolicyLimits>) -> Life {
    let mut life = world().limited(limits).under(|policy| policy.approval = Some(people::one_lead())).settled();
    life.shows(WAITING);
    life.other_is_granted();
    life.label();
    let life = life.until(60);
    life.shows(WAITING);
    life
}

#[test]
fn whoever_waits_for_people_is_judged_again_at_the_grant_and_not_before() {
    let mut life = waiting(limits(Some(1), None, None));
    life.decide(&erin(), DecisionKind::Approve);
    life = life.settled();
    life.shows(DENIED);
    let mut life = waiting(limits(Some(1), None, None));
    life.other_ends();
    life.decide(&erin(), DecisionKind::Approve);
    life.settled().shows(GRANTED);
}

#[test]
fn a_request_has_its_place_in_the_hour_once_however_long_people_take() {
    for restarts in [false, true] {
        let mut life = waiting(limits(None, None, Some(1)));
        life = life.until(3500);
        if restarts {
            life.crash();
        }
        life.decide(&erin(), DecisionKind::Approve);
        life.settled().shows(GRANTED);
    }
}

#[test]
fn a_start_that_is_to_come_is_not_judged_by_what_lives_now() {
    let scheduled = || {
        let life = world().with(|request| request.spec.start_time = Some(Time(at(300))));
        life.limited(limits(Some(1), None, Some(2))).with_others(1).settled()
    };
    let mut life = scheduled();
    life.shows("Approved=True Active=False/Scheduled Reconciling=True");
    life.other_ends();
    life.until(310).shows(GRANTED);
    let life = scheduled().until(310);
    life.shows(REVOKED);
    life.says(ConditionType::Ended, "limits.activePerSubject is 1, and alice has 1 live grants");
    let mut life = world().with(|request| request.spec.start_time = Some(Time(at(300))));
    life = life.limited(limits(None, None, Some(1))).with_others(1).settled();
    life.shows(DENIED);
}

#[test]
fn before_every_request_was_seen_nothing_is_granted_under_limits() {
    let mut life = world().limited(limits(Some(1), None, None));
    life.requests_read = false;
    life.settle();
    life.shows("");
    assert!(life.kinds().is_empty());
    life.requests_read = true;
    life.settled().shows(GRANTED);

    let mut life = world();
    life.requests_read = false;
    life.settled().shows(GRANTED);
}

#[test]
fn a_place_that_no_grant_came_of_is_given_back() {
    let mut life = world().limited(limits(Some(1), None, Some(1)));
    life.audit_works = false;
    life.settle();
    life.shows("Approved=True Active=False/AuditUnavailable Reconciling=True");
    assert!(!life.census.is_claimed(UID));
    // Another took it meanwhile.
    life.other_is_granted();
    life.audit_works = true;
    life.until(60).shows(REVOKED);
}

#[test]
fn after_a_restart_what_lives_is_counted_again() {
    let mut life = world().limited(limits(Some(1), None, Some(5))).with_others(1);
    life.crash();
    life.settled().shows(DENIED);
    let mut life = world().limited(limits(None, None, Some(1))).with_others(1);
    life.other_ends();
    life.crash();
    life.settled().shows(DENIED);
}

#[test]
fn a_granted_request_that_was_deleted_counts_in_its_hour_after_a_restart_too() {
    let mut life = world().limited(limits(Some(1), Some(1), Some(1))).until(10);
    life.shows(GRANTED);
    life.delete();
    let mut life = life.until(100);
    assert_eq!(life.object, None);
    life.crash();
    life.make_again(|request| request.spec.reason = Some("another".into()));
    life.settle();
    life.shows(DENIED);
    life.says(ConditionType::Denied, "limits.requestsPerHour is 1");
    let message = condition::find(&life.status().conditions, ConditionType::Denied).unwrap().message.clone();
    assert!(!message.contains("active"), "nothing lives: {message}");
    life.delete();
    let mut life = life.until(3599);
    life.crash();
    let mut life = life.until(3600);
    life.make_again(|request| request.spec.reason = Some("a third".into()));
    life.settled().shows(GRANTED);
}

/// Many requests of alice's, and one operator for all of them, which carries each plan out one step at a time.
struct Crowd {
    now: Timestamp,
    settings: Settings,
    policies: PolicySet,
    enforcement: Enforcement,
    census: Census,
    members: Vec<Member>,
    limit: usize,
}

struct Member {
    stored: InstanceAccess,
    version: u64,
    view: (InstanceAccess, u64),
    sight: Sight,
    /// What is left of a plan.
    plan: Option<Plan>,
    /// A status that the API server may store yet: on which version.
    late: Option<(u64, InstanceAccessStatus)>,
}

/// What becomes of a write.
#[derive(Clone, Copy, Debug)]
enum Write {
    Stored,
    /// Stored, and nobody hears of it.
    StoredUnheard,
    /// Nobody hears of it, and it may be stored yet.
    Late,
    /// Refused.
    Lost,
}

impl Crowd {
    fn new(count: usize, limit: usize) -> Self {
        let limits = limits(Some(i32::try_from(limit).unwrap()), None, None);
        let mut policy = developers();
        policy.spec.limits = limits;
        let mut crowd = Self {
            now: at(0),
            settings: Settings { region: Some(Region::parse("us-west-2").unwrap()), ..Settings::default() },
            policies: PolicySet::new([Arc::new(Policy::compile(&policy))]),
            enforcement: Enforcement::Stands { since_time: at(-7200) },
            census: Census::default(),
            members: Vec::new(),
            limit,
        };
        crowd.census.requests_listed();
        crowd.census.entries_listed();
        (0..count).for_each(|_| crowd.asks());
        crowd
    }

    /// One more asks.
    fn asks(&mut self) {
        let mut object = request();
        object.metadata.uid = Some(format!("member-{}", self.members.len()));
        object.metadata.resource_version = Some("1".into());
        object.metadata.creation_timestamp = Some(Time(whole_second(self.now)));
        let view = (object.clone(), 1);
        let sight = Sight::found_at_start(at(-3600), None);
        self.members.push(Member { stored: object, version: 1, view, sight, plan: None, late: None });
    }

    /// Does the next thing for one of them; false if there is nothing to do.
    fn step(&mut self, number: usize, write: Write) -> bool {
        let Self { now, settings, policies, enforcement, census, members, .. } = self;
        let (now, member) = (*now, &mut members[number]);
        let Some(mut plan) = member.plan.take() else {
            member.sight.vouch(enforcement, Looks::default());
            let (decisions, nodes) = (&Decisions::none(), &Nodes { seen: true, ..Nodes::default() });
            let mut ledger = Ledger::default();
            ledger.set_seen();
            let (ledger, sight) = (&ledger, &member.sight);
            let world = World { settings, policies, decisions, nodes, enforcement, census, ledger, sight };
            let plan = next(now, &member.view.0, world);
            let is_empty = plan.is_empty();
            member.plan = (!is_empty).then_some(plan);
            return !is_empty;
        };
        if !plan.before.is_empty() {
            match plan.before.remove(0) {
                Effect::Claim(claim) if census.claim(now, &claim).is_err() => return true,
                Effect::Claim(_) | Effect::StopPush => {}
                Effect::Audit { .. } => plan.point_to(Some(AuditPointer { sequence: 1, digest: "d".repeat(64) })),
                Effect::GiveBack => census.give_back(member.stored.metadata.uid.as_deref().unwrap()),
                other => panic!("{other:?}"),
            }
            member.plan = Some(plan);
        } else if let Some(status) = plan.status.take() {
            let before = member.view.0.status.as_ref().and_then(|status| status.grant.clone());
            member.sight.stores(before.as_ref(), status.grant.as_ref());
            let is_current = member.view.1 == member.version;
            let version = member.view.0.metadata.resource_version.clone();
            match write {
                Write::Stored if is_current => {
                    member.store(*status);
                    self.read(number);
                    self.members[number].plan = Some(plan);
                }
                // Read anew, and asked again.
                Write::Stored => self.read(number),
                Write::StoredUnheard | Write::Late => {
                    member.sight.stores_unheard(version.as_deref());
                    match write {
                        Write::StoredUnheard if is_current => member.store(*status),
                        Write::Late => member.late = Some((member.view.1, *status)),
                        Write::StoredUnheard | Write::Stored | Write::Lost => {}
                    }
                }
                Write::Lost => {}
            }
        } else {
            for effect in plan.after {
                match effect {
                    Effect::LookUpInstance { .. } => {
                        member.sight.instances.answered(now, Ok(vec![Arc::new(instance())]))
                    }
                    Effect::Push(_) => member.sight.push.landed(now, "request".into()),
                    Effect::Event { .. } => {}
                    other => panic!("{other:?}"),
                }
            }
        }
        self.invariant();
        true
    }

    /// The watch tells of the newest version.
    fn read(&mut self, number: usize) {
        let member = &mut self.members[number];
        if member.view.1 < member.version {
            member.view = (member.stored.clone(), member.version);
            self.census.see(self.now, &self.settings.principals, &member.view.0);
        }
    }

    /// What was sent is stored after all, if it still may be.
    fn arrives(&mut self, number: usize) {
        let member = &mut self.members[number];
        if let Some((version, status)) = member.late.take()
            && version == member.version
        {
            member.store(status);
        }
        self.invariant();
    }

    fn revoke(&mut self, number: usize) {
        let member = &mut self.members[number];
        member.stored.spec.revoke.get_or_insert(Revoke { reason: None });
        member.bump();
    }

    /// `kill -9`, and another one starts, which lists all.
    fn crash(&mut self) {
        self.census = Census::default();
        for number in 0..self.members.len() {
            self.arrives(number);
            let member = &mut self.members[number];
            member.plan = None;
            member.view = (member.stored.clone(), member.version);
            member.sight = Sight::found_at_start(self.now, Some(&member.stored));
            self.census.see(self.now, &self.settings.principals, &member.view.0);
        }
        self.census.requests_listed();
        self.census.entries_listed();
    }

    /// All is heard and done.
    fn settle(&mut self) {
        for number in 0..self.members.len() {
            self.arrives(number);
            self.read(number);
        }
        for round in 0.. {
            let busy = (0..self.members.len()).filter(|number| self.step(*number, Write::Stored)).count();
            if busy == 0 {
                break;
            }
            let plans: Vec<&Plan> = self.members.iter().filter_map(|member| member.plan.as_ref()).collect();
            assert!(round < 200, "never settles: {plans:?}");
        }
    }

    fn live(&self) -> usize {
        let is_live = |object: &InstanceAccess| {
            object.status.as_ref().is_some_and(|status| status.grant.is_some()) && !is_over(object)
        };
        self.members.iter().filter(|member| is_live(&member.stored)).count()
    }

    fn denied(&self, reason: &str) -> usize {
        let denied = |member: &&Member| {
            let conditions = member.stored.status.as_ref().map(|status| status.conditions.as_slice());
            condition::find(conditions.unwrap_or_default(), ConditionType::Denied).is_some_and(|it| it.reason == reason)
        };
        self.members.iter().filter(denied).count()
    }

    #[track_caller]
    fn invariant(&self) {
        assert!(self.live() <= self.limit, "{} live, the limit is {}", self.live(), self.limit);
    }
}

impl Member {
    fn store(&mut self, status: InstanceAccessStatus) {
        self.stored.status = Some(status);
        self.bump();
    }

    fn bump(&mut self) {
        self.version += 1;
        self.stored.metadata.resource_version = Some(self.version.to_string());
    }
}

#[test]
fn of_a_thousand_that_all_read_that_there_is_room_three_are_granted() {
    let mut crowd = Crowd::new(1000, 3);
    // Look-ups first; then each decides to be granted before any of them has claimed.
    for number in 0..1000 {
        while crowd.members[number].plan.as_ref().is_none_or(|plan| plan.status.is_none()) {
            assert!(crowd.step(number, Write::Stored));
        }
    }
    let intends = |member: &Member| matches!(member.plan.as_ref().unwrap().before[0], Effect::Claim(_));
    assert!(crowd.members.iter().all(intends));
    crowd.settle();
    assert_eq!((crowd.live(), crowd.denied("LimitReached")), (3, 997));
    crowd.crash();
    crowd.asks();
    crowd.settle();
    assert_eq!((crowd.live(), crowd.denied("LimitReached")), (3, 998), "counted right after a restart");
    let granted = crowd.members.iter().position(|member| member.stored.status.as_ref().unwrap().grant.is_some());
    crowd.revoke(granted.unwrap());
    crowd.settle();
    crowd.now = at(90);
    crowd.settle();
    assert_eq!(crowd.live(), 2);
    crowd.asks();
    crowd.asks();
    crowd.settle();
    assert_eq!((crowd.live(), crowd.denied("LimitReached")), (3, 999));
}

#[test]
fn a_place_stays_taken_while_a_status_that_was_sent_may_be_stored_yet() {
    let mut crowd = Crowd::new(2, 1);
    let is_sent = |plan: &Plan| plan.before.is_empty() && plan.status.is_some();
    while !crowd.members[0].plan.as_ref().is_some_and(is_sent) {
        assert!(crowd.step(0, Write::Stored));
    }
    crowd.step(0, Write::Late);
    // The look at the instance is too old for a grant now: no grant is planned.
    crowd.now = at(40);
    crowd.step(0, Write::Stored);
    let plan = crowd.members[0].plan.as_ref().unwrap();
    assert!(plan.status.is_none() && matches!(plan.after[..], [Effect::LookUpInstance { .. }]), "{plan:?}");
    crowd.step(0, Write::Stored);
    while crowd.step(1, Write::Stored) {}
    crowd.arrives(0);
    crowd.settle();
    assert_eq!((crowd.live(), crowd.denied("LimitReached")), (1, 1));
}

#[derive(Clone, Copy, Debug)]
enum Turn {
    Step(usize, Write),
    Read(usize),
    Arrives(usize),
    Revoke(usize),
    Asks,
    Wait(u64),
    Crash,
}

fn any_turn() -> impl Strategy<Value = Turn> {
    let who = 0..64usize;
    let write = prop_oneof![
        8 => Just(Write::Stored),
        1 => Just(Write::StoredUnheard),
        1 => Just(Write::Late),
        1 => Just(Write::Lost)
    ];
    prop_oneof![
        30 => (who.clone(), write).prop_map(|(who, write)| Turn::Step(who, write)),
        2 => who.clone().prop_map(Turn::Read),
        2 => who.clone().prop_map(Turn::Arrives),
        2 => who.prop_map(Turn::Revoke),
        2 => Just(Turn::Asks),
        1 => (0..120u64).prop_map(Turn::Wait),
        1 => Just(Turn::Crash),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn in_whatever_order_and_whatever_is_lost_no_more_live_than_the_limit_and_no_place_is_lost(
        count in 2..7usize,
        limit in 1..4usize,
        turns in prop::collection::vec(any_turn(), 1..150),
    ) {
        let mut crowd = Crowd::new(count, limit);
        for turn in turns {
            let count = crowd.members.len();
            match turn {
                Turn::Step(who, write) => {
                    crowd.step(who % count, write);
                }
                Turn::Read(who) => crowd.read(who % count),
                Turn::Arrives(who) => crowd.arrives(who % count),
                Turn::Revoke(who) => crowd.revoke(who % count),
                Turn::Asks => crowd.asks(),
                Turn::Wait(seconds) => crowd.now = plus(crowd.now, Duration::from_secs(seconds)),
                Turn::Crash => crowd.crash(),
            }
            crowd.invariant();
        }
        crowd.settle();
        // Every place that is free is given to the next that asks, and no other.
        let free = limit - crowd.live();
        let denied = crowd.denied("LimitReached");
        (0..=free).for_each(|_| crowd.asks());
        crowd.settle();
        prop_assert_eq!((crowd.live(), crowd.denied("LimitReached")), (limit, denied + 1));
    }
}
