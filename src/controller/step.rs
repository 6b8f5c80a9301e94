//! One step of a turn: carries one plan out, records before writes, writes before pushes.
//!
//! What is still true is asked at the last moment, by the one closure `holds` of [`carry_out`]: before a status is sent, and
//! before a key is. An end is true whatever happens; of that, only its promise is asked about.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use crate::api::{AuditPointer, ConditionType, InstanceAccess, InstanceAccessStatus};
use crate::audit::Receipt;
use crate::domain::condition::find;
use crate::domain::lifecycle::{self, Effect, Lane, Plan};
use crate::domain::record::Record;
use crate::domain::time::{plus, since};
use crate::telemetry::chain;
use crate::traces::{Context, Span};

use super::contact::went_back;
use super::effects::begin;
use super::slots::Slot;
use super::turn::{Known, ask, set_gone};
use super::write::{Still, WRITE_TIMEOUT, WriteError};
use super::{Shared, spans};

/// Longest wait for one record to be durable: beyond it the sink counts as sick.
const AUDIT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for the record of an end, which goes on without it.
const AUDIT_TIMEOUT_OF_AN_END: Duration = Duration::from_secs(1);
const _: () = assert!(
    AUDIT_TIMEOUT_OF_AN_END.as_secs() < lifecycle::SEND_TIME_MAX.as_secs(),
    "an end whose record takes too long would be decided anew for ever"
);
// We hang up after one, and the API server gives up after another, which begins when it has read the request.
const _: () = assert!(
    lifecycle::SEND_TIME_MAX.as_secs() + 2 * WRITE_TIMEOUT.as_secs() <= lifecycle::STORE_TIME_MAX.as_secs(),
    "gateways push until they read of an end"
);

/// How one step went.
pub enum Step {
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

/// Carries a plan out. `known` is what it was made on; `is_contested` is for the next step of the same turn.
pub async fn carry_out(
    shared: &Arc<Shared>,
    slot: &Arc<Slot>,
    object: &Arc<InstanceAccess>,
    known: &Known,
    mut plan: Plan,
    is_contested: &mut bool,
    within: Context,
) -> Step {
    let (lane, is_end) = (plan.lane(), plan.is_end());
    // Of an end whose write met an edit, and took so long that it was decided anew: the next goes over edits at once.
    *is_contested &= is_end;
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
        let is_in_time = || plan.may_be_sent((shared.clock)());
        let still = match lane {
            // An end holds whatever else changes; what it promises does not hold for ever.
            Lane::End => Still { holds: &is_in_time, nudged: None },
            Lane::Grant | Lane::Word | Lane::Leave => Still { holds: &holds, nudged: Some(&slot.nudged) },
        };
        let mut stored = Err(WriteError::Conflict);
        if !*is_contested {
            let put = shared.writer.status(&object, status, lane, &still);
            stored = spans::write("write status", within, put).await;
        }
        let goes_over = is_end && matches!(stored, Err(WriteError::Conflict));
        if goes_over {
            stored = spans::write("write status", within, shared.writer.end(&object, status, &still)).await;
        }
        *is_contested = goes_over && matches!(stored, Err(WriteError::Stale));
        match stored {
            Ok(newer) => {
                observe(shared, &object, &newer);
                // Before the watch may say otherwise: from here on it was stored, whatever the API server forgets.
                slot.lock().sight.open().meet((shared.clock)(), &newer);
                object = take_in(shared, slot, newer);
            }
            Err(error) => {
                if error.may_be_stored() {
                    let mut state = slot.lock();
                    state.sight.open().stores_unheard(object.metadata.resource_version.as_deref());
                    if goes_over {
                        let until = plus((shared.clock)(), lifecycle::STORE_TIME_MAX);
                        state.sight.open().sends_end_unheard(until);
                    }
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
pub fn believe(shared: &Shared, slot: &Slot, known: &InstanceAccess, read: InstanceAccess) {
    shared.ledger.note(&read);
    // Before it is judged, by what is of another history.
    let is_undone = {
        let state = slot.lock();
        state.kept.is_version(&known.metadata) && state.kept.is_newer_than(&read)
    };
    if is_undone {
        went_back(shared);
    }
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
