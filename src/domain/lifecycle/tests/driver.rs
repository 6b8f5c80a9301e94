//! A small cluster, AWS and audit trail, and a shell that carries plans out one effect at a time.
//!
//! It may crash after any step (its `Sight` and its queue are lost; what has left for AWS lands all the same), see the
//! object late, lose a race for it, and be slow. Time is a number that only [`Life`] moves.

mod again;
mod gateways;
mod invariants;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::*;
use crate::api::SessionReport;
use crate::domain::approvals::{Decision, Unreadable};
use crate::domain::cloud::Failure;
use crate::domain::key::PublicKey;
use crate::domain::sight::was_answered;

/// The most rounds of asking that one moment may take.
const ROUNDS_MAX: usize = 12;

/// What becomes of pushes from now on.
#[derive(Clone, Debug)]
pub(in super::super) enum Fate {
    /// Leave after `queue`, land `flight` later; the answer comes then.
    Lands { queue: Duration, flight: Duration },
    /// Land `flight` after they left, and nobody hears of it.
    LandsUnheard { flight: Duration },
    /// AWS says no.
    Fails(FailureClass),
}

/// A push on its way.
#[derive(Debug)]
enum Push {
    Waits {
        permit: PushPermit,
        leaves: Timestamp,
        fate: Fate,
    },
    Flies {
        instance_id: String,
        lands: Option<Timestamp>,
        answers: Timestamp,
        answer: Result<String, Failure>,
        known: bool,
    },
}

/// A key on an instance.
#[derive(Debug)]
struct Key {
    from: Timestamp,
    until: Timestamp,
}

/// One life of one request, and the world around it.
#[derive(Debug)]
pub(in super::super) struct Life {
    pub now: Timestamp,
    /// The object in the store; none: gone.
    pub object: Option<InstanceAccess>,
    /// The object as the shell sees it.
    view: Option<InstanceAccess>,
    /// Whether the watch is late: the shell sees its own writes, and of others' nothing new.
    pub lagging: bool,
    pub policies: Vec<InstanceAccessPolicy>,
    /// What people decided, about whatever.
    pub decisions: Vec<InstanceAccessDecision>,
    pub decided: usize,
    /// Decisions that cannot be decoded, by name.
    pub unreadable: Vec<String>,
    /// Whether the shell has read policies and decisions yet.
    pub policies_read: bool,
    /// Whether what guards the requests stands, as the shell knows it.
    pub enforcement: Enforcement,
    /// How many looks there were by which the shell knows it.
    pub guard_looks: Looks,
    compiled: RefCell<(Vec<InstanceAccessPolicy>, PolicySet)>,
    pub settings: Settings,
    pub nodes: Nodes,
    /// What the shell counts; and whether it has seen every request yet.
    pub census: Census,
    pub requests_read: bool,
    /// The other requests of the cluster.
    pub others: Vec<InstanceAccess>,
    pub instances: Vec<Arc<Instance>>,
    pub endpoints: Vec<Endpoint>,
    pub look_failure: Option<Failure>,
    pub look_delay: Duration,
    pub fate: Fate,
    pub audit_works: bool,
    /// How long each step takes.
    pub pace: Duration,
    /// How long the API server takes to store a status; somebody connects just before it has.
    pub store_time: Duration,
    /// The steps after which it crashes, by number; and what it had just done when it did.
    pub crash_after: Option<usize>,
    pub crashed_at: Option<String>,
    pub steps: Vec<(Timestamp, String)>,
    pub records: Vec<(Timestamp, Record)>,
    pub events: Vec<&'static str>,
    /// The newest status that was stored, also of an object that is gone.
    pub last_status: Option<InstanceAccessStatus>,
    pub writes: usize,
    pub plans: usize,
    pub look_ups: usize,
    pub look_again: Option<(Deadline, Timestamp)>,
    last_record: Option<Record>,
    pub sight: Sight,
    push: Vec<Push>,
    looks: Vec<(Timestamp, Effect)>,
    keys: Vec<Key>,
    /// What gateways are about to push.
    knocks: Vec<gateways::Knock>,
    redeemed: usize,
    landed: usize,
    /// The grants that there ever were, by what was granted.
    grants: BTreeMap<[Option<String>; 3], String>,
    pub book: again::Book,
    promise: Option<Timestamp>,
    /// What was last seen to bind its sessions, each smaller the stricter.
    bounds: [Option<i32>; 3],
    stuck: Vec<Condition>,
    policy_admits: bool,
    /// When the window of the policy closes, as it stands; and when its condition on `now` ceases to hold.
    pub closes: Option<Timestamp>,
    pub holds_until: Option<Timestamp>,
    finalizer_stripped: bool,
}

/// Whether the shell still stands.
type Step = Result<(), Stop>;
enum Stop {
    Crashed,
    /// The plan falls; ask again.
    Fell,
    /// The store said no; ask again, but not before a while.
    Failed,
}

impl Life {
    pub fn new(object: InstanceAccess, policies: Vec<InstanceAccessPolicy>, instances: Vec<Arc<Instance>>) -> Self {
        Self {
            // Long after the process came to lead.
            now: at(0),
            sight: Sight::found_at_start(at(-3600), Some(&object)),
            book: again::Book::new(&object),
            view: Some(object.clone()),
            object: Some(object),
            lagging: false,
            policies,
            decisions: Vec::new(),
            decided: 0,
            unreadable: Vec::new(),
            policies_read: true,
            enforcement: Enforcement::Stands { since_time: at(-7200) },
            guard_looks: Looks { begun: 1, answered: 1 },
            compiled: RefCell::new((Vec::new(), PolicySet::new([]))),
            settings: Settings { region: Some(Region::parse("us-west-2").unwrap()), ..Settings::default() },
            nodes: Nodes { seen: true, ..Nodes::default() },
            census: Census::default(),
            requests_read: true,
            others: Vec::new(),
            instances,
            endpoints: vec![endpoint()],
            look_failure: None,
            look_delay: Duration::ZERO,
            fate: Fate::Lands { queue: Duration::ZERO, flight: Duration::ZERO },
            audit_works: true,
            pace: Duration::ZERO,
            store_time: Duration::ZERO,
            crash_after: None,
            crashed_at: None,
            steps: Vec::new(),
            records: Vec::new(),
            events: Vec::new(),
            last_status: None,
            writes: 0,
            plans: 0,
            look_ups: 0,
            look_again: None,
            last_record: None,
            push: Vec::new(),
            looks: Vec::new(),
            keys: Vec::new(),
            knocks: Vec::new(),
            redeemed: 0,
            landed: 0,
            grants: BTreeMap::new(),
            promise: None,
            bounds: [None; 3],
            stuck: Vec::new(),
            policy_admits: true,
            closes: None,
            holds_until: None,
            finalizer_stripped: false,
        }
    }

    pub fn status(&self) -> InstanceAccessStatus {
        self.object.as_ref().and_then(|object| object.status.clone()).unwrap_or_default()
    }

    pub fn log(&self) -> String {
        let lines = self.steps.iter().rev().take(60).rev();
        lines.map(|(time, step)| format!("  {time} {step}\n")).collect()
    }

    /// Asks once, and carries nothing out.
    pub fn ask(&self) -> Plan {
        let mut compiled = self.compiled.borrow_mut();
        if compiled.0 != self.policies {
            let set = PolicySet::new(self.policies.iter().map(|policy| Arc::new(Policy::compile(policy))));
            *compiled = (self.policies.clone(), set);
        }
        let unread = PolicySet::default();
        let policies = if self.policies_read { &compiled.1 } else { &unread };
        let decisions = &if self.policies_read { self.decisions() } else { Decisions::default() };
        let Self { settings, nodes, enforcement, sight, book, .. } = self;
        let mut census = self.census.clone();
        if self.requests_read {
            census.requests_listed();
        }
        if self.book.is_read {
            census.entries_listed();
        }
        let ledger = if book.is_read { &book.known } else { &Ledger::default() };
        let world = World { settings, policies, decisions, nodes, enforcement, census: &census, ledger, sight };
        let request = self.view.as_ref().expect("something to ask about");
        let plan = next(self.now, request, world);
        let is_idle = plan.is_empty() && plan.look_again.is_none();
        assert!(!is_settled(request) || is_idle, "it is settled, and {plan:?}\n{}", self.log());
        plan
    }

    fn decisions(&self) -> Decisions {
        let mut kept = Decisions::none();
        for object in &self.decisions {
            if let Some(decision) = Decision::read(object, &self.settings.principals) {
                kept.take(Arc::new(decision));
            }
        }
        for name in &self.unreadable {
            let (name, uid, time) = (name.clone(), format!("uid-of-{name}"), at(0));
            kept.take_unreadable(Arc::new(Unreadable { name, uid, request_uid: self.uid().into(), time }));
        }
        kept
    }

    // --- what others do -------------------------------------------------------------------------------------------

    fn edit(&mut self, name: &str, change: impl FnOnce(&mut InstanceAccess)) {
        if let Some(object) = self.object.as_mut() {
            change(object);
            bump(object);
            self.note(name);
        }
        if !self.lagging {
            self.sync();
        }
    }

    pub fn revoke(&mut self) {
        self.edit("user: revoke", |object| {
            object.spec.revoke.get_or_insert(Revoke { reason: Some("done".into()) });
            *object.metadata.generation.get_or_insert(1) += 1;
        });
    }

    pub fn delete(&mut self) {
        let (now, mut gone) = (self.now, false);
        self.edit("user: delete", |object| {
            gone = object.metadata.finalizers.iter().flatten().count() == 0;
            if object.metadata.deletion_timestamp.is_none() {
                object.metadata.deletion_timestamp = Some(Time(whole_second(now)));
                *object.metadata.generation.get_or_insert(1) += 1;
            }
        });
        if gone {
            let was = self.view.clone();
            self.object = None;
            self.sync();
            self.finds_gone(was);
        }
    }

    pub fn label(&mut self) {
        self.edit("user: label", |object| {
            let labels = object.metadata.labels.get_or_insert_default();
            let count = labels.len();
            labels.insert(format!("label-{count}"), "x".into());
        });
    }

    /// What only a bent CRD lets through.
    pub fn edit_spec(&mut self, change: impl FnOnce(&mut InstanceAccessSpec)) {
        self.edit("user: edit the spec", |object| {
            change(&mut object.spec);
            *object.metadata.generation.get_or_insert(1) += 1;
        });
    }

    pub fn strip_finalizer(&mut self) {
        self.finalizer_stripped = true;
        self.edit("user: strip finalizer", |object| object.metadata.finalizers = None);
    }

    pub fn change_policies(&mut self, admits: bool, change: impl FnOnce(&mut Vec<InstanceAccessPolicy>)) {
        change(&mut self.policies);
        self.policy_admits = admits;
        self.note(if admits { "policies changed: admitted" } else { "policies changed: not admitted" });
    }

    pub fn change_instance(&mut self, change: impl FnOnce(&mut Instance)) {
        let mut instance = Instance::clone(&self.instances[0]);
        change(&mut instance);
        self.instances[0] = Arc::new(instance);
    }

    /// The watch catches up.
    pub fn sync(&mut self) {
        self.view = self.object.clone();
        match &self.view {
            Some(view) => {
                self.census.see(self.now, &self.settings.principals, view);
                self.book.known.note(view);
            }
            None => self.census.forget(&self.uid()),
        }
    }

    /// The process dies and comes back: what it saw and what waited is lost; what has left, flies.
    pub fn crash(&mut self) {
        self.note("crash");
        self.sight = Sight::found_at_start(self.now, self.object.as_ref());
        self.census = Census::default();
        for other in &self.others {
            self.census.see(self.now, &self.settings.principals, other);
        }
        self.push.retain(|push| matches!(push, Push::Flies { .. }));
        for push in &mut self.push {
            if let Push::Flies { known, .. } = push {
                *known = false;
            }
        }
        self.looks.clear();
        self.last_record = None;
        self.look_again = None;
        self.lagging = false;
        self.book.restarts();
        for entry in self.book.entries.values() {
            self.census.recall(self.now, &entry.spec);
        }
        self.sync();
    }

    // --- the shell ------------------------------------------------------------------------------------------------

    fn note(&mut self, step: impl Into<String>) {
        self.steps.push((self.now, step.into()));
        self.invariants();
    }

    /// A step of the shell: it may be the last.
    fn step(&mut self, step: impl Into<String>) -> Step {
        let step = step.into();
        self.note(step.clone());
        if self.pace > Duration::ZERO {
            self.pass_until(plus(self.now, self.pace), false);
        }
        if let Some(left) = self.crash_after.as_mut() {
            if *left == 0 {
                self.crash_after = None;
                self.crashed_at = Some(step);
                self.crash();
                return Err(Stop::Crashed);
            }
            *left -= 1;
        }
        Ok(())
    }

    /// A step in memory alone, which takes no time however slow the shell is: were it to take some, a shell that must ask
    /// the audit trail again and again would never come to rest.
    fn step_at_once(&mut self, step: impl Into<String>) -> Step {
        let pace = std::mem::take(&mut self.pace);
        let result = self.step(step);
        self.pace = pace;
        result
    }

    /// Asks until there is nothing left to do at this moment; answers may be out.
    pub fn reconcile(&mut self) {
        for round in 0.. {
            if self.view.is_none() {
                return self.mourn();
            }
            let asked_time = self.now;
            self.sight.meet(self.now, self.view.as_ref().expect("it is there"));
            self.sight.vouch(&self.enforcement, self.guard_looks);
            let plan = self.ask();
            self.plans += 1;
            assert!(round < ROUNDS_MAX, "still busy at {}: {plan:?}\n{}", self.now, self.log());
            let is_over = {
                let status = self.view.as_ref().and_then(|view| view.status.clone()).unwrap_or_default();
                condition::is_true(&status.conditions, ConditionType::Ended)
            };
            if plan.is_empty() {
                if let Some((deadline, time)) = plan.look_again {
                    assert!(time > self.now, "{deadline:?} at {time} is not after {}\n{}", self.now, self.log());
                } else {
                    let is_going = self.view.as_ref().is_some_and(|view| view.metadata.deletion_timestamp.is_some());
                    assert!(is_over || is_going, "nothing will wake it:\n{}", self.log());
                }
                self.look_again = plan.look_again;
                return;
            }
            if is_over {
                assert!(!has_push(&plan), "a push after the end");
            }
            let deadline = plan.look_again;
            match self.carry_out(plan) {
                Ok(()) if self.now == asked_time && self.audit_works => self.is_at_rest(deadline),
                Ok(()) | Err(Stop::Fell) => {}
                Err(Stop::Crashed) => {}
                Err(Stop::Failed) => {
                    self.look_again = Some((Deadline::Retry, plus(self.now, seconds(1))));
                    return;
                }
            }
        }
    }

    /// Asked again on what a plan led to, nothing is left, but to let the object go; and the deadline is the same.
    fn is_at_rest(&self, deadline: Option<(Deadline, Timestamp)>) {
        if self.view.is_none() {
            return;
        }
        let again = self.ask();
        let lets_go = |effect: &Effect| matches!(effect, Effect::Enter(_) | Effect::RemoveFinalizer);
        let only_lets_go = again.before.is_empty() && again.status.is_none() && again.after.iter().all(lets_go);
        assert!(again.is_empty() || only_lets_go, "a second plan: {again:?}\n{}", self.log());
        assert_eq!(again.look_again, deadline, "another deadline on its own result\n{}", self.log());
    }

    fn carry_out(&mut self, mut plan: Plan) -> Result<(), Stop> {
        if let (Some(status), Some(_)) = (&plan.status, self.sight.rereading_since_time) {
            let is_denied =
                |status: &InstanceAccessStatus| condition::is_true(&status.conditions, ConditionType::Denied);
            let judged = |status: &InstanceAccessStatus| (status.grant.is_some(), is_denied(status));
            assert!(
                !(self.status().grant.is_none() && judged(status) != judged(&self.status())),
                "judged by what may be of another history\n{}",
                self.log()
            );
        }
        if has_push(&plan) {
            let delivery = self.view.as_ref().and_then(|view| view.spec.key_delivery);
            assert_ne!(delivery, Some(KeyDelivery::OnConnect), "a push that is the gateways'\n{}", self.log());
            let status = plan.status.as_deref().cloned().unwrap_or_else(|| self.status());
            let expiration = status.grant.expect("I2: a push without a grant").expiration_time.0;
            assert!(
                self.closes.is_none_or(|closes| expiration <= closes),
                "I2: a push for a grant until {expiration}, beyond its window\n{}",
                self.log()
            );
            assert!(
                self.holds_until.is_none_or(|until| self.now < until),
                "I2: a push after its condition ceased to hold\n{}",
                self.log()
            );
            assert!(
                self.enforcement.stands(),
                "I2: a push is planned, and nothing guards the requests\n{}",
                self.log()
            );
            assert!(
                self.policies_read && self.policy_admits,
                "I2: a push is planned, and no policy admits it\n{}",
                self.log()
            );
            assert!(!self.is_closed(), "I2: a push is planned, and somebody said no\n{}", self.log());
            self.is_delegated();
        }
        let mut receipt = None;
        for effect in std::mem::take(&mut plan.before) {
            match effect {
                Effect::Audit { record, required } => {
                    self.sight.tells(&record);
                    if self.audit_works {
                        self.sight.has_told(&record);
                        let name = format!("audit {:?}", record.kind);
                        self.is_bounded(&record);
                        // As the controller does: the same record, told again after a failed write, is one record.
                        if self.last_record.as_ref() != Some(&*record) {
                            self.records.push((self.now, (*record).clone()));
                            self.last_record = Some(*record);
                        }
                        let sequence = i64::try_from(self.records.len()).unwrap();
                        receipt = Some(AuditPointer { sequence, digest: "d".repeat(64) });
                        self.step(name)?;
                    } else {
                        self.sight.audit_failed_time = Some(self.now);
                        self.step(format!("audit {:?} refused", record.kind))?;
                        if required {
                            return Err(Stop::Fell);
                        }
                    }
                }
                other => self.effect(other)?,
            }
        }
        plan.point_to(receipt);
        let may_be_sent = plan.may_be_sent(self.now);
        if let Some(status) = plan.status {
            let before = self.view.as_ref().and_then(|view| view.status.as_ref()).and_then(|it| it.grant.clone());
            self.sight.stores(before.as_ref(), status.grant.as_ref());
            if !may_be_sent {
                self.step_at_once("status: it waited for too long")?;
                return Err(Stop::Failed);
            }
            if self.store_time > Duration::ZERO {
                self.pass_until(plus(self.now, self.store_time), false);
                let _ = self.connects();
            }
            self.last_status = Some((*status).clone());
            self.writes += 1;
            self.write("status", |object| {
                let theirs = object.status.take().unwrap_or_default().sessions;
                assert_eq!(status.sessions, theirs, "what gateways wrote is theirs");
                object.status = Some(*status);
                opens_a_session(object);
            })?;
        }
        for effect in plan.after {
            self.effect(effect)?;
        }
        // As the controller does: acted on, the same one to the letter is another event.
        self.last_record = None;
        Ok(())
    }

    fn effect(&mut self, effect: Effect) -> Step {
        match effect {
            Effect::Audit { .. } => panic!("an audit record stands before the status"),
            Effect::LookUpInstance { .. } => {
                self.look_ups += 1;
                self.sight.instances.started();
                self.looks.push((plus(self.now, self.look_delay), effect));
                self.step("look up instance")
            }
            Effect::LookUpEndpoints { .. } => {
                self.sight.endpoints.started();
                self.looks.push((plus(self.now, self.look_delay), effect));
                self.step("look up endpoints")
            }
            Effect::Push(permit) => {
                self.sight.push.started(self.now);
                let fate = self.fate.clone();
                let queue = if let Fate::Lands { queue, .. } = &fate { *queue } else { Duration::ZERO };
                self.push.push(Push::Waits { permit, leaves: plus(self.now, queue), fate });
                self.step("push handed over")
            }
            Effect::StopPush => {
                let waited = self.push.iter().any(|push| matches!(push, Push::Waits { .. }));
                self.push.retain(|push| matches!(push, Push::Flies { .. }));
                if waited {
                    self.sight.push.unsent()
                } else {
                    self.sight.push.stopped(self.now)
                }
                self.step("push stopped")
            }
            Effect::Claim(claim) => match self.census.claim(self.now, &claim) {
                Ok(()) => self.step_at_once("place claimed"),
                Err(_) => {
                    self.step_at_once("no place left")?;
                    Err(Stop::Fell)
                }
            },
            Effect::GiveBack => {
                self.census.give_back(&self.uid());
                self.step_at_once("place given back")
            }
            Effect::AddFinalizer => self.write("finalizer added", |object| {
                object.metadata.finalizers.get_or_insert_default().push(FINALIZER.into());
            }),
            Effect::Enter(entry) => self.enter(*entry),
            Effect::RemoveFinalizer => self.write("finalizer removed", |object| object.metadata.finalizers = None),
            Effect::Event { reason, note, .. } => {
                assert!(note.len() <= 1024 && !note.is_empty(), "{note}");
                assert!(!note.contains(KEY_BODY), "{note}");
                self.events.push(reason);
                self.step(format!("event {reason}"))
            }
        }
    }

    /// Writes with the resourceVersion that was read.
    fn write(&mut self, name: &str, change: impl FnOnce(&mut InstanceAccess)) -> Step {
        let view = self.view.as_ref().expect("something was planned on");
        let seen = view.metadata.resource_version.clone();
        match self.object.as_mut() {
            Some(object) if object.metadata.resource_version == seen => {
                change(object);
                // The store keeps whole seconds.
                let stored = serde_json::to_value(&object.status).unwrap();
                let read: Option<InstanceAccessStatus> = serde_json::from_value(stored).unwrap();
                assert_eq!(read, object.status, "it reads back as written");
                bump(object);
                let is_gone = object.metadata.deletion_timestamp.is_some()
                    && object.metadata.finalizers.iter().flatten().count() == 0;
                if is_gone {
                    self.object = None;
                    self.lets_go();
                }
                self.sync();
                self.step(name)
            }
            _ => {
                self.lagging = false;
                self.sync();
                self.step(format!("{name}: conflict"))?;
                Err(Stop::Fell)
            }
        }
    }

    // --- time -----------------------------------------------------------------------------------------------------

    fn next_answer_time(&self) -> Option<Timestamp> {
        let pushes = self.push.iter().map(|push| match push {
            Push::Waits { leaves, .. } => *leaves,
            Push::Flies { lands, answers, .. } => lands.unwrap_or(*answers),
        });
        let knocks = self.knocks.iter().map(|knock| knock.leaves);
        pushes.chain(self.looks.iter().map(|(time, _)| *time)).chain(knocks).min()
    }

    /// Does what is due in the outer world now; true if the shell has heard of something. Asleep, it hears nothing, and
    /// nothing that waits in it leaves.
    fn answers(&mut self, asleep: bool) -> bool {
        let now = self.now;
        let mut heard = false;
        // They run elsewhere, whatever becomes of this machine.
        self.gateways_push();
        let mut rest = Vec::new();
        for push in std::mem::take(&mut self.push) {
            match push {
                Push::Waits { permit, leaves, fate } if leaves <= now && !asleep => match permit.redeem(now) {
                    None => {
                        self.sight.push.unsent();
                        self.note("push too late");
                        heard = true;
                    }
                    Some(push) => {
                        self.redeem(&push.instance_id.to_string(), &push.key);
                        rest.push(self.fly(push.instance_id.to_string(), fate));
                    }
                },
                Push::Flies { instance_id, lands: Some(lands), answers, answer, known } if lands <= now => {
                    self.keys.push(Key { from: lands, until: plus(lands, KEY_WINDOW) });
                    self.landed += 1;
                    self.note(format!("landed on {instance_id}"));
                    rest.push(Push::Flies { instance_id, lands: None, answers, answer, known });
                }
                Push::Flies { lands: None, answers, answer, known, .. } if answers <= now && !asleep => {
                    if known {
                        match answer {
                            Ok(request_id) => self.sight.push.landed(now, request_id),
                            Err(failure) => {
                                let answered = was_answered(&failure);
                                self.sight.push.failed(now, failure, answered);
                            }
                        }
                        self.note("push answered");
                        heard = true;
                    }
                }
                other => rest.push(other),
            }
        }
        rest.append(&mut self.push);
        self.push = rest;
        if !asleep {
            for (_, effect) in self.looks.extract_if(.., |(time, _)| *time <= now).collect::<Vec<_>>() {
                self.answer_look(effect);
                heard = true;
            }
        }
        heard
    }

    fn fly(&mut self, instance_id: String, fate: Fate) -> Push {
        let (now, request_id) = (self.now, format!("request-{}", self.redeemed));
        let timeout = Failure { class: FailureClass::Retry, code: "Timeout".into(), message: "no answer".into() };
        let (lands, answers, answer) = match fate {
            Fate::Lands { flight, .. } => (Some(plus(now, flight)), plus(now, flight), Ok(request_id)),
            Fate::LandsUnheard { flight } => (Some(plus(now, flight)), plus(now, PUSH_TIMEOUT), Err(timeout)),
            Fate::Fails(class) => (None, now, Err(failure(class))),
        };
        Push::Flies { instance_id, lands, answers, answer, known: true }
    }

    fn answer_look(&mut self, effect: Effect) {
        let failure = self.look_failure.clone();
        if matches!(effect, Effect::LookUpEndpoints { .. }) {
            self.sight.endpoints.answered(self.now, failure.map_or_else(|| Ok(self.endpoints.clone()), Err));
        } else {
            let answer = failure.map_or_else(|| Ok(self.instances.clone()), Err);
            self.sight.instances.answered(self.now, answer);
        }
        self.note("look-up answered");
    }

    /// Does and hears all that happens at this moment.
    pub fn settle(&mut self) {
        for round in 0.. {
            assert!(round < 40, "never settles:\n{}", self.log());
            self.reconcile();
            if !self.answers(false) && self.next_answer_time().is_none_or(|time| time > self.now) {
                return;
            }
        }
    }

    /// Lets the outer world go on; asleep, the shell hears nothing of it.
    fn pass_until(&mut self, time: Timestamp, asleep: bool) {
        while let Some(next) = self.next_answer_time().filter(|next| *next <= time) {
            self.now = self.now.max(next);
            let left = |life: &Self| life.push.len() + life.keys.len() + life.looks.len() + life.knocks.len();
            let (before, knocks) = (left(self), self.knocks.len());
            self.answers(asleep);
            if before == left(self) && knocks == self.knocks.len() {
                break; // what is left waits for the shell to wake
            }
        }
        self.now = self.now.max(time);
        self.invariants();
    }

    /// The machine is suspended until then.
    pub fn suspend_until(&mut self, time: Timestamp) {
        self.pass_until(time, true);
        self.settle();
    }

    /// The clock is set back; the shell looks, as it would at its next event.
    pub fn step_back(&mut self, by: Duration) {
        self.now = minus(self.now, by);
        self.settle();
    }

    /// Lets the clock run, and the shell with it.
    pub fn run_until(&mut self, time: Timestamp) {
        self.settle();
        loop {
            let wake = self.look_again.map(|(_, time)| time);
            let Some(next) = wake.into_iter().chain(self.next_answer_time()).min().filter(|next| *next <= time) else {
                break;
            };
            self.now = self.now.max(next);
            self.answers(false);
            self.settle();
        }
        self.now = self.now.max(time);
        self.settle();
    }
}

fn has_push(plan: &Plan) -> bool {
    plan.after.iter().any(|effect| matches!(effect, Effect::Push(_)))
}

fn bump(object: &mut InstanceAccess) {
    let version: u64 = object.metadata.resource_version.as_deref().unwrap().parse().unwrap();
    object.metadata.resource_version = Some((version + 1).to_string());
}

/// A gateway writes its entry, once there is a grant.
fn opens_a_session(object: &mut InstanceAccess) {
    let Some(status) = object.status.as_mut() else { return };
    let Some(grant) = &status.grant else { return };
    let last_start_time = grant.start_time.clone();
    status.sessions = vec![SessionReport { gateway: "gateway-0".into(), open: 1, total: 1, last_start_time }];
}
