//! What a turn begins and does not wait for: look-ups and pushes at AWS, Events. Each outcome wakes the request again.

use std::sync::Arc;

use crate::api::InstanceAccess;
use crate::aws::PushError;
use crate::domain::cloud::{Failure, Place, TargetQuery};
use crate::domain::lifecycle::Effect;
use crate::domain::push::PushPermit;
use crate::domain::sight::{Look, Sight};
use crate::domain::time::since;
use crate::traces::{Context, Span};

use super::slots::{Slot, State};
use super::turn::wake;
use super::{Shared, spans};

/// Begins an effect that takes its time; its outcome wakes the slot.
pub fn begin(shared: &Arc<Shared>, slot: &Arc<Slot>, object: &InstanceAccess, effect: Effect, within: Context) {
    match effect {
        Effect::LookUpInstance { place, query, can_wait } => {
            look_up_instance(shared, slot, place, query, can_wait, within);
        }
        Effect::LookUpEndpoints { place, vpc_id } => look_up_endpoints(shared, slot, place, vpc_id, within),
        Effect::Push(permit) => push(shared, slot, permit, within),
        Effect::StopPush => {
            stop_push(shared, &mut slot.lock());
        }
        Effect::Event { warning, reason, note } => {
            let meta = &object.metadata;
            let grant_id =
                object.status.as_ref().and_then(|status| status.grant.as_ref()).map(|grant| grant.id.as_str());
            tracing::info!(
                namespace = meta.namespace,
                name = meta.name,
                uid = meta.uid,
                grant_id,
                reason,
                note,
                "told"
            );
            shared.events.tell(object, warning, reason, note);
        }
        Effect::Claim(_)
        | Effect::GiveBack
        | Effect::Audit { .. }
        | Effect::AddFinalizer
        | Effect::Enter(_)
        | Effect::RemoveFinalizer => {
            tracing::error!("a plan has an effect where it cannot be carried out");
        }
    }
}

fn look_up_instance(
    shared: &Arc<Shared>,
    slot: &Arc<Slot>,
    place: Place,
    query: TargetQuery,
    can_wait: bool,
    within: Context,
) {
    let span = spans::aws("look up instance", &place, "ec2", "DescribeInstances", within);
    let what = format!("an instance in {}", place.region);
    let looking = Arc::clone(shared);
    let looked = async move {
        let found = looking.lookups.find(&place, query, can_wait).await?;
        Ok(found.into_iter().map(Arc::new).collect())
    };
    look_up(shared, slot, (what, span), looked, |sight| &mut sight.instances);
}

fn look_up_endpoints(shared: &Arc<Shared>, slot: &Arc<Slot>, place: Place, vpc_id: String, within: Context) {
    let span = spans::aws("look up endpoints", &place, "ec2", "DescribeInstanceConnectEndpoints", within);
    let what = format!("the endpoints of {vpc_id} in {}", place.region);
    let looking = Arc::clone(shared);
    let looked = async move { looking.lookups.endpoints(&place, &vpc_id).await };
    look_up(shared, slot, (what, span), looked, |sight| &mut sight.endpoints);
}

fn look_up<T: Send + 'static>(
    shared: &Arc<Shared>,
    slot: &Arc<Slot>,
    (what, mut span): (String, Span),
    looked: impl Future<Output = Result<T, Failure>> + Send + 'static,
    seen: fn(&mut Sight) -> &mut Look<T>,
) {
    seen(slot.lock().sight.open()).started();
    let (shared_, slot) = (Arc::clone(shared), Arc::clone(slot));
    shared.tasks.spawn(async move {
        let shared = shared_;
        let Some(answer) = shared.look_ups_end.run_until_cancelled(looked).await else { return };
        if let Err(failure) = &answer {
            tracing::warn!(uid = %slot.uid, what, code = failure.code, message = failure.message, "a look-up failed");
            span.fail(&failure.code, &failure.message);
        }
        let now = (shared.clock)();
        let mut state = slot.lock();
        seen(state.sight.open()).answered(now, answer);
        state.cause = Some(Box::new(span.context()));
        drop((state, span));
        wake(&shared, &slot);
    });
}

/// Calls a push back. It may have left already, and then is assumed to.
pub fn stop_push(shared: &Shared, state: &mut State) {
    if let Some(push) = state.push.take() {
        push.abort();
    }
    state.sight.open().push.stopped((shared.clock)());
}

fn push(shared: &Arc<Shared>, slot: &Arc<Slot>, permit: PushPermit, within: Context) {
    let mut span = spans::aws("push key", permit.place(), "ec2-instance-connect", "SendSSHPublicKey", within);
    let started = (shared.clock)();
    let mut state = slot.lock();
    state.sight.open().push.started(started);
    let (shared_, slot_) = (Arc::clone(shared), Arc::clone(slot));
    let task = shared.tasks.spawn(async move {
        let (shared, slot) = (shared_, slot_);
        let outcome = shared.pushes.push(permit).await;
        let now = (shared.clock)();
        let mut state = slot.lock();
        state.push = None;
        let object = state.kept.open();
        let grant = object.status.as_ref().and_then(|status| status.grant.as_ref());
        let grant_id = grant.map(|grant| grant.id.as_str());
        match outcome {
            Ok(delivered) => {
                let elapsed_ms = since(now, started).as_millis();
                tracing::debug!(grant_id, eic_request_id = delivered.request_id, elapsed_ms, "pushed key");
                span.set("aws.request_id", delivered.request_id.as_str());
                state.sight.open().push.landed(delivered.answer_time, delivered.request_id);
            }
            Err(PushError::TooLate { .. } | PushError::Fenced) => {
                span.set("instance_access.outcome", "not sent");
                state.sight.open().push.unsent();
            }
            Err(PushError::Failed { failure, unsure_time }) => {
                tracing::warn!(grant_id, code = failure.code, message = failure.message, "push failed");
                span.fail(&failure.code, &failure.message);
                state.sight.open().push.failed(now, failure, unsure_time.is_none());
            }
        }
        state.cause = Some(Box::new(span.context()));
        drop((state, span));
        wake(&shared, &slot);
    });
    state.push = Some(task.abort_handle());
}
