//! One turn of one request: asks `next`, obeys, and asks again until nothing is left to do.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use jiff::Timestamp;

use crate::api::InstanceAccess;
use crate::domain::approvals::Decisions;
use crate::domain::enforcement::{Enforcement, Looks};
use crate::domain::lifecycle::{self, Effect, Lane, Plan, World};
use crate::domain::node::Nodes;
use crate::domain::policy::PolicySet;
use crate::domain::time::plus;
use crate::telemetry::chain;

use super::census::Counter;
use super::effects::stop_push;
use super::slots::{Slot, Slots, State};
use super::step::{Step, believe, carry_out};
use super::write::WriteError;
use super::{Shared, spans};

/// Steps of one turn. A grant takes four; more than this is a plan that never comes to rest, which must not burn a core.
/// What others' changes called off is not among them: it is asked about as often as they change something.
const STEPS_MAX: u32 = 32;
/// First and longest wait after a failed write.
const WRITE_RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// What was known of the cluster when a plan was made.
pub struct Known {
    /// Since when what else is known may be of another history than the request.
    rereading_since_time: Option<Timestamp>,
    policies: Arc<PolicySet>,
    decisions: Arc<Decisions>,
    nodes: Arc<Nodes>,
    enforcement: Enforcement,
    /// How many looks there were by which enforcement is known. That there was another one changes nothing by itself.
    looks: Looks,
}

impl Known {
    /// What is known now, of what one request is judged by.
    pub fn now(shared: &Shared, slot: &Slot, state: &mut State) -> Self {
        // First: what is known from here on is of a reading that begins later, or known to be.
        let rereading_since_time = shared.contact.rereading_since_time();
        let object = state.kept.open();
        let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
        let (enforcement, looks) = shared.guard.judged((shared.clock)());
        Self {
            rereading_since_time,
            policies: shared.policies(),
            decisions: shared.decisions.of(namespace, &slot.uid),
            nodes: shared.nodes(),
            enforcement,
            looks,
        }
    }

    /// Whether nothing has changed between the two for this request. Other nodes than its own do not count: whoever makes
    /// theirs change all the time must not hold up anybody's end.
    pub fn is(&self, other: &Self, request: &InstanceAccess) -> bool {
        let node_name = request.spec.target.node_name.as_deref();
        self.rereading_since_time == other.rereading_since_time
            && Arc::ptr_eq(&self.policies, &other.policies)
            && Arc::ptr_eq(&self.decisions, &other.decisions)
            && self.enforcement == other.enforcement
            && (Arc::ptr_eq(&self.nodes, &other.nodes)
                || node_name.is_none_or(|name| self.nodes.is_same_for(&other.nodes, name)))
    }
}

/// Lets a request have its turn; if it has one already, that one looks again. After the word to stop, nobody has. One for
/// which nothing is left to do needs none, and is packed: of those there are ten for each that lives.
pub fn wake(shared: &Arc<Shared>, slot: &Arc<Slot>) {
    if shared.is_stopping() {
        return;
    }
    {
        let mut state = slot.lock();
        if state.running {
            state.dirty = true;
            slot.nudged.notify_one();
            return;
        }
        if state.is_settled() {
            lay_down(&shared.slots, &shared.census, slot, &mut state);
            shared.timers.set(&slot.uid, None);
            return;
        }
        state.running = true;
    }
    let (shared_, slot) = (Arc::clone(shared), Arc::clone(slot));
    shared.tasks.spawn(async move {
        let shared = shared_;
        let turn = turn(Arc::clone(&shared), Arc::clone(&slot));
        // A panic is a bug of one request's; without this its turn would never come again, and its end neither.
        if AssertUnwindSafe(turn).catch_unwind().await.is_err() {
            shared.metrics.count_restless_turn();
            tracing::error!(uid = %slot.uid, "a turn panicked");
            let again = plus((shared.clock)(), WRITE_RETRY.1);
            rest(&shared, &slot, &mut slot.lock(), Some(again));
        }
    });
}

/// Packs a request for which nothing is left to do. A turn that was decided on an older version may have taken a place for it
/// after it was seen over, and nobody will ask again what to do about that.
fn lay_down(slots: &Slots, census: &Counter, slot: &Slot, state: &mut State) {
    if census.read().is_claimed(&slot.uid) {
        census.give_back(&slot.uid);
    }
    state.cause = None;
    slots.close(state);
}

/// Lets every request have its turn.
pub fn wake_all(shared: &Arc<Shared>) {
    for slot in shared.slots.all() {
        wake(shared, &slot);
    }
}

async fn turn(shared: Arc<Shared>, slot: Arc<Slot>) {
    let mut steps = 0;
    let mut place = None;
    let mut span = None;
    let mut is_contested = false;
    loop {
        let (plan, object, known, was_gone, is_live) = {
            let mut state = slot.lock();
            state.dirty = false;
            // What called is looked at now: it must not call off what is decided on it.
            let _ = slot.nudged.notified().now_or_never();
            let known = Known::now(&shared, &slot, &mut state);
            let plan = if state.gone { vanished(&shared, &mut state) } else { ask(&shared, &mut state, &known) };
            if plan.is_empty() || steps >= STEPS_MAX || shared.is_stopping() {
                if !state.dirty {
                    state.cause = None;
                }
                let again = plan.look_again.map(|(_, time)| time);
                let again = if plan.is_empty() { again } else { Some(plus((shared.clock)(), WRITE_RETRY.1)) };
                if steps >= STEPS_MAX && !shared.is_stopping() {
                    shared.metrics.count_restless_turn();
                    tracing::error!(uid = %slot.uid, "a turn did not come to rest");
                }
                rest(&shared, &slot, &mut state, again);
                return;
            }
            (plan, state.kept.open(), known, state.gone, state.kept.is_live())
        };
        let queue = (plan.lane(), is_live);
        let is_last = was_gone && plan.look_again.is_none();
        // Of what goes, the write is the entry.
        let wants_place = plan.status.is_some() || queue.0 == Lane::Leave;
        if wants_place && place.as_ref().is_none_or(|(held, _)| *held != queue) {
            drop(place.take());
            place = shared.places.of(queue).try_acquire().ok().map(|permit| (queue, permit));
        }
        // Thousands that ask at once wait here, with nothing in their hands, and are asked anew when it is their turn.
        if wants_place && place.is_none() {
            let stops = plan.before.contains(&Effect::StopPush);
            // Its deadlines come while it waits, too: an end then goes where ends go.
            shared.timers.set(&slot.uid, plan.look_again.map(|(_, time)| time));
            drop((plan, object, known));
            {
                let mut state = slot.lock();
                // What an end must not wait for, even here.
                if stops {
                    stop_push(&shared, &mut state);
                }
                shared.slots.close(&mut state);
            }
            place = tokio::select! {
                biased;
                permit = shared.places.of(queue).acquire() => permit.ok().map(|permit| (queue, permit)),
                () = slot.nudged.notified() => None,
            };
            continue;
        }
        let span = span.get_or_insert_with(|| spans::turn(&object, slot.lock().cause.take()));
        // In a box of its own: of the turns that wait above there are thousands.
        let step = Box::pin(carry_out(&shared, &slot, &object, &known, plan, &mut is_contested, span.context())).await;
        let mut state = slot.lock();
        let others_did = matches!(step, Step::CalledOff)
            && (state.dirty || !known.is(&Known::now(&shared, &slot, &mut state), &object));
        steps += u32::from(!others_did);
        match step {
            Step::Done if is_last => {
                state.running = false;
                shared.timers.set(&slot.uid, None);
                shared.slots.forget(&slot.uid);
                return;
            }
            Step::Done | Step::Fell | Step::CalledOff => state.failures = 0,
            Step::Failed => {
                state.failures = state.failures.saturating_add(1);
                let wait = WRITE_RETRY.0.saturating_mul(1 << (state.failures - 1).min(10)).min(WRITE_RETRY.1);
                // A revocation that was heard meanwhile needs no write to stop a push: it is asked about soon.
                let wait = if state.dirty { WRITE_RETRY.0 } else { wait };
                let again = plus((shared.clock)(), wait);
                state.dirty = false;
                rest(&shared, &slot, &mut state, Some(again));
                return;
            }
            Step::Gone => {
                state.running = false;
                shared.timers.set(&slot.uid, None);
                shared.slots.forget(&slot.uid);
                return;
            }
        }
    }
}

/// Asks what to do about a request, the world being as it is known.
pub fn ask(shared: &Shared, state: &mut State, known: &Known) -> Plan {
    let now = (shared.clock)();
    let Known { rereading_since_time, policies, decisions, nodes, enforcement, looks } = known;
    let sight = state.sight.open();
    // What cannot be read may be a revocation: the same as not hearing of one, and for ever.
    sight.contact_lost_time = if state.unreadable { Some(Timestamp::MIN) } else { shared.contact.lost_time(now) };
    sight.rereading_since_time = *rereading_since_time;
    let object = state.kept.open();
    sight.meet(now, &object);
    sight.vouch(enforcement, *looks);
    if sight.awaits_look() {
        shared.guard.look_soon();
    }
    let census = &*shared.census.read();
    let ledger = &shared.ledger.read();
    let world = World { settings: &shared.settings, policies, decisions, nodes, enforcement, census, ledger, sight };
    lifecycle::next(now, &object, world)
}

fn vanished(shared: &Shared, state: &mut State) -> Plan {
    lifecycle::vanished(
        (shared.clock)(),
        &shared.settings,
        &state.kept.open(),
        &shared.ledger.read(),
        state.sight.open(),
    )
}

/// Ends the turn. The lock is held, so that whoever wakes the slot now starts another.
fn rest(shared: &Arc<Shared>, slot: &Arc<Slot>, state: &mut State, again: Option<Timestamp>) {
    state.running = false;
    if state.gone && again.is_none() {
        shared.timers.set(&slot.uid, None);
        shared.slots.forget(&slot.uid);
        return;
    }
    // A wake-up that came between the last question and here is answered at once.
    let again = if state.dirty {
        Some((shared.clock)())
    } else {
        shared.slots.close(state);
        again
    };
    shared.timers.set(&slot.uid, again);
}

/// Notes that a request is not there any more. Its push is called back at once: there is no plan for what is gone.
pub fn set_gone(shared: &Shared, slot: &Slot) {
    let mut state = slot.lock();
    state.gone = true;
    stop_push(shared, &mut state);
    state.sight.open().gone_time.get_or_insert((shared.clock)());
}

/// Asks the API server what a request is now, and believes it.
pub fn read_again(shared: &Arc<Shared>, slot: &Arc<Slot>) {
    let (shared_, slot) = (Arc::clone(shared), Arc::clone(slot));
    shared.tasks.spawn(async move {
        let shared = shared_;
        let known = slot.lock().kept.open();
        match shared.writer.read(&known).await {
            Ok(newer) => believe(&shared, &slot, &known, newer),
            Err(WriteError::Gone) => set_gone(&shared, &slot),
            // The next list says it again.
            Err(error) => tracing::warn!(uid = %slot.uid, error = chain(&error), "a request could not be read again"),
        }
        wake(&shared, &slot);
    });
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use serde_json::json;

    use super::*;
    use crate::controller::slots::Seen;
    use crate::domain::census::{Claim, InstanceMark, who_gets_in};
    use crate::domain::cloud::Instance;
    use crate::domain::identity::PrincipalRule;
    use crate::domain::sight::Sight;

    #[test]
    fn what_was_decided_before_all_is_read_anew_is_decided_again() {
        let known = |second: Option<i64>| Known {
            rereading_since_time: second.map(|second| Timestamp::from_second(second).unwrap()),
            policies: Arc::clone(&POLICIES),
            decisions: Arc::clone(&DECISIONS),
            nodes: Arc::default(),
            enforcement: Enforcement::Unseen,
            looks: Looks::default(),
        };
        static POLICIES: LazyLock<Arc<PolicySet>> = LazyLock::new(Arc::default);
        static DECISIONS: LazyLock<Arc<Decisions>> = LazyLock::new(Arc::default);
        let request: InstanceAccess = serde_json::from_value(json!({
            "apiVersion": "instanceaccess.dev/v1alpha1", "kind": "InstanceAccess", "metadata": {"name": "a"},
            "spec": {"target": {"instanceId": "i-0123456789abcdef0"}, "osUser": "ec2-user", "sshPublicKey": ""},
        }))
        .unwrap();
        for (before, now, same) in
            [(None, None, true), (Some(7), Some(7), true), (None, Some(7), false), (Some(7), None, false)]
        {
            assert_eq!(known(before).is(&known(now), &request), same, "{before:?}, {now:?}");
        }
    }

    #[test]
    fn a_place_that_was_taken_for_what_is_over_by_now_is_given_back() {
        let census = Arc::new(Counter::new(Arc::new(|| Timestamp::UNIX_EPOCH), PrincipalRule::default()));
        let slots = Slots::new(Arc::clone(&census));
        let request = |version: &str, status: serde_json::Value| -> InstanceAccess {
            serde_json::from_value(json!({
                "apiVersion": "instanceaccess.dev/v1alpha1",
                "kind": "InstanceAccess",
                "metadata": {"name": "fix", "namespace": "team-a", "uid": "u", "resourceVersion": version, "generation": 1},
                "spec": {
                    "requester": {"username": "alice"}, "target": {"instanceId": "i-0123456789abcdef0"},
                    "osUser": "ec2-user", "sshPublicKey": "ssh-ed25519 AAAA",
                },
                "status": status,
            }))
            .unwrap()
        };
        let new_sight = || Sight::new(Timestamp::UNIX_EPOCH);
        let seen = slots.see(request("1", json!({"observedGeneration": -1, "conditions": []})), new_sight);
        let Some(Seen::News(slot)) = seen else { panic!("it is new") };
        let over = json!({"observedGeneration": 1, "specDigest": "ab", "conditions": [{
            "type": "Denied", "status": "True", "reason": "DeniedByPolicy", "message": "no",
            "observedGeneration": 1, "lastTransitionTime": "2026-03-01T08:00:00Z",
        }]});
        slots.see(request("2", over), new_sight);
        assert!(slot.lock().is_settled());
        let instance = json!({
            "id": "i-0123456789abcdef0", "account_id": "123456789012", "region": "us-west-2", "state": "Running", "tags": {},
        });
        let instance: Instance = serde_json::from_value(instance).unwrap();
        let subject = who_gets_in(&PrincipalRule::default(), &request("1", json!({"conditions": []})).spec).unwrap();
        let claim = Claim {
            uid: "u".into(),
            subject,
            instance: InstanceMark::of(&instance),
            limits: crate::api::PolicyLimits::default(),
            time: Timestamp::UNIX_EPOCH,
            is_new: true,
            is_grant: true,
        };
        assert!(census.claim(&claim));
        assert!(census.read().is_claimed("u"));
        lay_down(&slots, &census, &slot, &mut slot.lock());
        assert!(!census.read().is_claimed("u"));
    }
}
