//! One turn of one request: asks `next`, obeys, and asks again until nothing is left to do.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use jiff::Timestamp;

use crate::api::{AuditPointer, ConditionType, InstanceAccess, InstanceAccessStatus};
use crate::audit::Receipt;
use crate::domain::approvals::Decisions;
use crate::domain::condition::find;
use crate::domain::enforcement::{Enforcement, Looks};
use crate::domain::lifecycle::{self, Effect, Lane, Plan, World};
use crate::domain::node::Nodes;
use crate::domain::policy::PolicySet;
use crate::domain::record::Record;
use crate::domain::time::{plus, since};
use crate::telemetry::chain;
use crate::traces::{Context, Span};

use super::census::Counter;
use super::effects::{begin, stop_push};
use super::slots::{Slot, Slots, State};
use super::write::{Still, WRITE_TIMEOUT, WriteError};
use super::{Shared, spans};

/// Longest wait for one record to be durable: beyond it the sink counts as sick.
const AUDIT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for the record of an end, which goes on without it.
const AUDIT_TIMEOUT_OF_AN_END: Duration = Duration::from_secs(1);
const _: () = assert!(
    AUDIT_TIMEOUT_OF_AN_END.as_secs() + WRITE_TIMEOUT.as_secs() < lifecycle::STORE_TIME_MAX.as_secs(),
    "gateways push until they read of an end"
);
/// Steps of one turn. A grant takes four; more than this is a plan that never comes to rest, which must not burn a core.
/// What others' changes called off is not among them: it is asked about as often as they change something.
const STEPS_MAX: u32 = 32;
/// First and longest wait after a failed write.
const WRITE_RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// What was known of the cluster when a plan was made.
struct Known {
    policies: Arc<PolicySet>,
    decisions: Arc<Decisions>,
    nodes: Arc<Nodes>,
    enforcement: Enforcement,
    /// How many looks there were by which enforcement is known. That there was another one changes nothing by itself.
    looks: Looks,
}

impl Known {
    fn now(shared: &Shared, slot: &Slot, state: &mut State) -> Self {
        let object = state.kept.open();
        let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
        let (enforcement, looks) = shared.guard.judged((shared.clock)());
        Self {
            policies: shared.policies(),
            decisions: shared.decisions.of(namespace, &slot.uid),
            nodes: shared.nodes(),
            enforcement,
            looks,
        }
    }

    /// Whether nothing has changed between the two for this request. Other nodes than its own do not count: whoever makes
    /// theirs change all the time must not hold up anybody's end.
    fn is(&self, other: &Self, request: &InstanceAccess) -> bool {
        let node_name = request.spec.target.node_name.as_deref();
        Arc::ptr_eq(&self.policies, &other.policies)
            && Arc::ptr_eq(&self.decisions, &other.decisions)
            && self.enforcement == other.enforcement
            && (Arc::ptr_eq(&self.nodes, &other.nodes)
                || node_name.is_none_or(|name| self.nodes.is_same_for(&other.nodes, name)))
    }
}

/// How one step went.
enum Step {
    /// Ask again.
    Done,
    /// Ask again: a required record could not be made durable, or a place was taken meanwhile, and the plan fell.
    Fell,
    /// Ask again: the world that was judged is another one by now, and what was decided on it was left undone.
    CalledOff,
    /// Ask again, but not before a while.
    Failed,
    /// There is nothing left to ask about.
    Gone,
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
        let step = Box::pin(carry_out(&shared, &slot, &object, &known, plan, span.context())).await;
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

fn ask(shared: &Shared, state: &mut State, known: &Known) -> Plan {
    let now = (shared.clock)();
    let Known { policies, decisions, nodes, enforcement, looks } = known;
    let sight = state.sight.open();
    // What cannot be read may be a revocation: the same as not hearing of one, and for ever.
    sight.contact_lost_time = if state.unreadable { Some(Timestamp::MIN) } else { shared.contact.lost_time(now) };
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

async fn carry_out(
    shared: &Arc<Shared>,
    slot: &Arc<Slot>,
    object: &Arc<InstanceAccess>,
    known: &Known,
    mut plan: Plan,
    within: Context,
) -> Step {
    let lane = plan.lane();
    let decided_on = Arc::clone(object);
    // The permit, and the status that promises it, hold for the world that was judged: another spec is another question,
    // and under other policies, decisions or nodes the same question must have the same answer (I2).
    let ground = plan.ground(&decided_on);
    let is_new_grant = ground.is_some() && decided_on.status.as_ref().is_none_or(|status| status.grant.is_none());
    let holds = || {
        let mut state = slot.lock();
        if state.gone || state.kept.is_changed_since(&decided_on) {
            return false;
        }
        let current = Known::now(shared, slot, &mut state);
        // The trail may have been read since, or another request had the grant meanwhile.
        if let Some(ground) = &ground {
            let ledger = shared.ledger.read();
            let is_free = if is_new_grant {
                ledger.admits(&decided_on, ground.expiration_time())
            } else {
                !ledger.is_over(&decided_on)
            };
            if !is_free {
                return false;
            }
        }
        if known.is(&current, &decided_on) {
            return true;
        }
        let Some(ground) = &ground else { return false };
        let new = ask(shared, &mut state, &current).ground(&state.kept.open());
        new.is_some_and(|new| ground.is_within(&new))
    };
    let mut object = Arc::clone(object);
    let mut receipt = None;
    for effect in std::mem::take(&mut plan.before) {
        match effect {
            // One at a time: whoever finds the place taken is asked again, with the newer counts.
            Effect::Claim(claim) if !shared.census.claim(&claim) => return Step::Fell,
            Effect::Claim(_) => {}
            Effect::GiveBack => shared.census.give_back(&slot.uid),
            Effect::Audit { record, required } => match append(shared, slot, &record, required, within).await {
                Ok(durable) => receipt = Some(Some(durable)),
                Err(()) if required => {
                    slot.lock().sight.open().audit_failed_time = Some((shared.clock)());
                    return Step::Fell;
                }
                Err(()) => receipt = Some(None),
            },
            Effect::AddFinalizer => {
                match spans::write("add finalizer", within, shared.writer.add_finalizer(&object)).await {
                    Ok(newer) => object = take_in(shared, slot, newer),
                    Err(error) => return failed(shared, slot, &object, "add the finalizer", error).await,
                }
            }
            effect => begin(shared, slot, &object, effect, within),
        }
    }
    if let Some(durable) = receipt {
        plan.point_to(durable.map(|Receipt { sequence, digest }| AuditPointer { sequence, digest }));
    }
    if let Some(status) = &plan.status {
        let before = object.status.as_ref().and_then(|status| status.grant.as_ref());
        slot.lock().sight.open().stores(before, status.grant.as_ref());
        let still = Still { holds: &holds, nudged: Some(&slot.nudged) };
        match spans::write("write status", within, shared.writer.status(&object, status, lane, &still)).await {
            Ok(newer) => {
                observe(shared, &object, &newer);
                // Before the watch may say otherwise: from here on it was stored, whatever the API server forgets.
                slot.lock().sight.open().meet((shared.clock)(), &newer);
                object = take_in(shared, slot, newer);
            }
            Err(error) => {
                if error.may_be_stored() {
                    slot.lock().sight.open().stores_unheard(object.metadata.resource_version.as_deref());
                }
                return failed(shared, slot, &object, "store the status", error).await;
            }
        }
    }
    for effect in plan.after {
        match effect {
            Effect::Enter(entry) => match spans::write("write ledger entry", within, shared.writer.enter(&entry)).await
            {
                Ok(()) => shared.ledger.entered(&entry),
                Err(error) => return unentered(&object, &error),
            },
            Effect::RemoveFinalizer => {
                match spans::write("remove finalizer", within, shared.writer.remove_finalizer(&object)).await {
                    Ok(newer) if newer.metadata.finalizers.as_ref().is_none_or(Vec::is_empty) => return Step::Gone,
                    Ok(newer) => object = take_in(shared, slot, newer),
                    Err(error) => return failed(shared, slot, &object, "remove the finalizer", error).await,
                }
            }
            // Dropping the permit is a refusal, and the next question is asked of what the world is now.
            Effect::Push(_) if !holds() => return Step::CalledOff,
            effect => begin(shared, slot, &object, effect, within),
        }
    }
    // Acted on: the next one, were it the same to the letter (a push tried again), is another event.
    slot.lock().last_record = None;
    Step::Done
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

/// Appends a record, once: the same one, told again after a failed write, keeps its receipt.
async fn append(shared: &Shared, slot: &Slot, record: &Record, required: bool, within: Context) -> Result<Receipt, ()> {
    let Ok(value) = serde_json::to_value(record) else {
        tracing::error!("a record does not serialise");
        return Err(());
    };
    let mut hasher = DefaultHasher::new();
    value.to_string().hash(&mut hasher);
    let hash = hasher.finish();
    if let Some((last, receipt)) = slot.lock().last_record.as_deref()
        && *last == hash
    {
        return Ok(receipt.clone());
    }
    // Whoever leads now continues the trail.
    if !(shared.leads)() {
        return Err(());
    }
    let mut span = Span::child_of(within, "append audit record");
    let bound = if required { AUDIT_TIMEOUT } else { AUDIT_TIMEOUT_OF_AN_END };
    slot.lock().sight.open().tells(record);
    let outcome = tokio::time::timeout(bound, shared.records.append(value, (shared.clock)())).await;
    match outcome {
        Ok(Ok(receipt)) => {
            let mut state = slot.lock();
            state.last_record = Some(Box::new((hash, receipt.clone())));
            state.sight.open().has_told(record);
            drop(state);
            span.set("instance_access.audit.sequence", receipt.sequence);
            Ok(receipt)
        }
        Ok(Err(error)) => {
            tracing::error!(kind = ?record.kind, uid = record.request.uid, error = chain(&error), "audit record was not taken");
            span.fail("refused", chain(&error));
            Err(())
        }
        Err(_) => {
            tracing::error!(kind = ?record.kind, uid = record.request.uid, "audit record took too long");
            span.fail("timeout", "no answer in time");
            Err(())
        }
    }
}

/// Takes in what a write returned, unless the watch was faster.
fn take_in(shared: &Shared, slot: &Slot, newer: InstanceAccess) -> Arc<InstanceAccess> {
    let newer = Arc::new(newer);
    let mut state = slot.lock();
    if state.kept.is_older_than(&newer) {
        shared.slots.keep(&mut state, Arc::clone(&newer));
    }
    newer
}

/// Takes in what a read returned: the truth, also where its version is a lower number (a restored etcd), unless the watch
/// told something else meanwhile.
fn believe(shared: &Shared, slot: &Slot, known: &InstanceAccess, read: InstanceAccess) {
    shared.ledger.note(&read);
    let mut state = slot.lock();
    if state.kept.is_version(&known.metadata) || state.kept.is_older_than(&read) {
        shared.slots.keep(&mut state, Arc::new(read));
        state.unreadable = false;
    }
}

/// Goes on after an entry that was not written: the object stays until it is.
fn unentered(object: &InstanceAccess, error: &WriteError) -> Step {
    let InstanceAccess { metadata, .. } = object;
    tracing::warn!(
        namespace = metadata.namespace,
        name = metadata.name,
        error = chain(error),
        "a ledger entry was not written, trying again; its request stays until then"
    );
    Step::Failed
}

/// Goes on after a failed write: a conflict is read anew at once, all else is tried again after a while.
async fn failed(shared: &Shared, slot: &Slot, object: &InstanceAccess, what: &str, error: WriteError) -> Step {
    let meta = &object.metadata;
    match error {
        WriteError::Stale => Step::CalledOff,
        WriteError::Gone => {
            set_gone(shared, slot);
            Step::Done
        }
        WriteError::Conflict | WriteError::Timeout => {
            let known = slot.lock().kept.open();
            match shared.writer.read(object).await {
                Ok(newer) => {
                    believe(shared, slot, &known, newer);
                    Step::Done
                }
                Err(WriteError::Gone) => {
                    set_gone(shared, slot);
                    Step::Done
                }
                Err(_) => Step::Failed,
            }
        }
        // This process ends, and the next begins with what is stored.
        WriteError::Deposed => Step::Failed,
        WriteError::Build(_) | WriteError::Refused(_) => {
            tracing::warn!(
                namespace = meta.namespace,
                name = meta.name,
                what,
                error = chain(&error),
                "a write failed, trying again"
            );
            Step::Failed
        }
    }
}

/// Counts what a stored status changed.
fn observe(shared: &Shared, before: &InstanceAccess, after: &InstanceAccess) {
    let (Some(new), old) = (&after.status, before.status.as_ref()) else { return };
    let granted = new.grant.is_some() && old.is_none_or(|old| old.grant.is_none());
    shared.ledger.note(after);
    if granted {
        shared.metrics.count_grant();
    }
    // Ended is said with False once access is possible, and not before; after a key it is not the first time.
    let says_ended = |status: &InstanceAccessStatus| find(&status.conditions, ConditionType::Ended).is_some();
    let had_a_key =
        |status: &InstanceAccessStatus| status.key.as_ref().is_some_and(|key| key.first_request_id.is_some());
    if let Some(grant) = &new.grant
        && new.end_time.is_none()
        && says_ended(new)
        && !old.is_some_and(|old| had_a_key(old) || says_ended(old))
    {
        shared.metrics.observe_usable(since((shared.clock)(), grant.start_time.0));
    }
    let ended = new.end_time.is_some() && old.is_none_or(|old| old.end_time.is_none());
    if ended && let (Some(grant), Some(revocation)) = (&new.grant, &new.revocation) {
        let lateness = since((shared.clock)(), grant.expiration_time.0);
        shared.metrics.count_end(revocation.cause, lateness);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::controller::slots::Seen;
    use crate::domain::census::{Claim, InstanceMark, who_gets_in};
    use crate::domain::cloud::Instance;
    use crate::domain::identity::PrincipalRule;
    use crate::domain::sight::Sight;

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
