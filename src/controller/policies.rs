//! The watch over policies: compiles each once, says in its status whether it is in force, and wakes every request when
//! one changes.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use kube::Api;
use kube::api::PostParams;
use kube::core::{ApiResource, DynamicObject};
use kube::runtime::watcher::Event;
use tokio_util::sync::CancellationToken;

use crate::api::{InstanceAccessPolicy, InstanceAccessPolicyStatus};
use crate::domain::condition;
use crate::domain::hearing::Listed;
use crate::domain::policy::{Policy, PolicySet};
use crate::kubernetes::again;
use crate::telemetry::chain;

use super::Shared;
use super::turn::wake_all;
use super::watch::config;
use super::write::WRITE_TIMEOUT;

/// How often the live grants of each policy are counted: a hint for people, at a write a policy and interval at most.
const COUNT_INTERVAL: Duration = Duration::from_secs(15);

/// Takes in what happens to policies, until it is stopped.
pub async fn watch_policies(shared: Arc<Shared>, stop: CancellationToken) {
    // Untyped, so that one that does not decode can still be asked whether it is an Allow.
    let api: Api<DynamicObject> =
        Api::all_with(shared.client.clone(), &ApiResource::erase::<InstanceAccessPolicy>(&()));
    let mut stream = std::pin::pin!(shared.contact.watch(Listed::Policies, api, config()));
    let mut known: HashMap<String, Arc<Policy>> = HashMap::new();
    let mut listing: Option<HashMap<String, Compiled>> = None;
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => return,
            event = stream.next() => event,
        };
        match event {
            Some(Ok(Event::Init)) => {
                shared.contact.watch_lists(Listed::Policies);
                listing = Some(HashMap::new());
            }
            Some(Ok(Event::InitApply(object))) => {
                if let (Some(listing), Some((name, compiled))) = (listing.as_mut(), compiled(&shared, object)) {
                    listing.insert(name, compiled);
                }
            }
            Some(Ok(Event::InitDone)) => {
                if let Some(listed) = listing.take() {
                    known =
                        listed.iter().map(|(name, compiled)| (name.clone(), Arc::clone(&compiled.policy))).collect();
                    publish(&shared, &known);
                    listed.into_values().for_each(|compiled| tell(&shared, compiled));
                    // Which decisions count is a matter of these.
                    shared.contact.watch_listed(Listed::Policies);
                    shared.health.policies_listed.send_replace(true);
                    wake_all(&shared);
                }
            }
            Some(Ok(Event::Apply(object))) => {
                shared.contact.watch_heard(Listed::Policies);
                let Some((name, compiled)) = compiled(&shared, object) else { continue };
                // Our own status comes back through the watch: the pin tells whether anything is new.
                if known.get(&name).is_none_or(|old| old.pin() != compiled.policy.pin()) {
                    known.insert(name, Arc::clone(&compiled.policy));
                    publish(&shared, &known);
                    wake_all(&shared);
                }
                tell(&shared, compiled);
            }
            Some(Ok(Event::Delete(object))) => {
                shared.contact.watch_heard(Listed::Policies);
                let metadata = object.metadata;
                if let Some(uid) = &metadata.uid {
                    shared.metrics.decodable(uid);
                }
                if let Some(name) = metadata.name {
                    known.remove(&name);
                    publish(&shared, &known);
                    wake_all(&shared);
                }
            }
            Some(Err(error)) => {
                shared.contact.watch_failed(Listed::Policies, (shared.clock)());
                shared.metrics.count_watch_error("instanceaccesspolicies");
                tracing::warn!(error = chain(&error), "the watch over policies broke, trying again");
            }
            None => return,
        }
    }
}

/// Judges by these from now on.
pub fn publish(shared: &Shared, known: &HashMap<String, Arc<Policy>>) {
    let set = PolicySet::new(known.values().cloned());
    let before = shared.policies();
    // For the first list of decisions policies are waited for anyway.
    let has_new_approvers = before.is_seen() && set.has_new_approvers(&before);
    let read_decisions = || {
        if has_new_approvers {
            shared.contact.begin_rereading_decisions((shared.clock)());
        }
    };
    // Before anybody is judged by it: a no of theirs may have been said, and not kept. And after: a list that was begun before
    // it was known whose word counts does not count itself.
    read_decisions();
    *shared.policies.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(set);
    read_decisions();
}

/// A policy as it is understood, and what to tell people of that; nothing, if it cannot be decoded.
struct Compiled {
    policy: Arc<Policy>,
    object: Option<InstanceAccessPolicy>,
}

/// Compiles a policy.
///
/// One that cannot be decoded admits nothing, and unless it is an Allow it denies everything: it is a Deny of nobody
/// knows what.
fn compiled(shared: &Arc<Shared>, object: DynamicObject) -> Option<(String, Compiled)> {
    let name = object.metadata.name.clone()?;
    let uid = object.metadata.uid.clone().unwrap_or_default();
    let is_allow = object.data.pointer("/spec/effect").and_then(|effect| effect.as_str()) == Some("Allow");
    let metadata = object.metadata.clone();
    match object.try_parse::<InstanceAccessPolicy>() {
        Ok(object) => {
            shared.metrics.decodable(&uid);
            let policy = Arc::new(Policy::compile(&object));
            Some((name, Compiled { policy, object: Some(object) }))
        }
        Err(error) => {
            shared.metrics.undecodable(&uid);
            tracing::error!(name, error = chain(&error), "a policy cannot be decoded; is the CRD of another version?");
            let policy = Arc::new(Policy::undecodable(&metadata, is_allow, &error.to_string()));
            Some((name, Compiled { policy, object: None }))
        }
    }
}

/// Says in a policy's status how it is understood. From then on people count on it: it is in force before.
fn tell(shared: &Arc<Shared>, Compiled { policy, object }: Compiled) {
    let Some(object) = object else { return };
    let now = (shared.clock)();
    let generation = object.metadata.generation.unwrap_or_default();
    let mut status = object.status.clone().unwrap_or_default();
    let problem = policy.problem().map(|problem| (problem.reason, problem.message.as_str()));
    condition::set_policy(&mut status.conditions, problem, generation, now);
    status.observed_generation = Some(generation);
    store(shared, object, status);
}

/// Counts the live grants of each policy now and then, until it is stopped.
pub async fn count_grants(shared: Arc<Shared>, stop: CancellationToken) {
    let mut interval = tokio::time::interval(COUNT_INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut told: HashMap<String, i32> = HashMap::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = interval.tick() => {}
        }
        if !shared.health.hears((shared.clock)()) {
            continue;
        }
        let mut counts: HashMap<String, i32> = HashMap::new();
        for slot in shared.slots.all() {
            if let Some(policy) = slot.lock().kept.live_policy() {
                match counts.get_mut(policy) {
                    Some(count) => *count += 1,
                    None => drop(counts.insert(policy.to_owned(), 1)),
                }
            }
        }
        let names: Vec<String> = {
            let policies = shared.policies.read().unwrap_or_else(PoisonError::into_inner);
            policies.iter().map(|policy| policy.pin().name.clone()).collect()
        };
        for name in names {
            let count = counts.get(&name).copied().unwrap_or_default();
            if told.get(&name) == Some(&count) {
                continue;
            }
            let api: Api<InstanceAccessPolicy> = Api::all(shared.client.clone());
            if let Ok(Ok(object)) = tokio::time::timeout(WRITE_TIMEOUT, api.get_status(&name)).await {
                let mut status = object.status.clone().unwrap_or_default();
                if status.active_grants.unwrap_or_default() != count || status.active_grants.is_none() {
                    status.active_grants = Some(count);
                    store(&shared, object, status);
                }
                told.insert(name, count);
            }
        }
    }
}

/// Stores a policy's status in the background; a conflict is nothing: its newer version comes through the watch.
fn store(shared: &Arc<Shared>, mut object: InstanceAccessPolicy, status: InstanceAccessPolicyStatus) {
    if object.status.as_ref() == Some(&status) {
        return;
    }
    object.status = Some(status);
    object.metadata.managed_fields = None;
    let api: Api<InstanceAccessPolicy> = Api::all(shared.client.clone());
    if !(shared.leads)() {
        return;
    }
    shared.tasks.spawn(async move {
        let name = object.metadata.name.clone().unwrap_or_default();
        let params = PostParams { field_manager: Some(super::FIELD_MANAGER.to_owned()), ..PostParams::default() };
        let write = again(|| api.replace_status(&name, &params, &object));
        match tokio::time::timeout(WRITE_TIMEOUT, write).await {
            Ok(Ok(_)) => {}
            Ok(Err(kube::Error::Api(error))) if error.code == 409 || error.code == 404 => {}
            Ok(Err(error)) => {
                tracing::warn!(name, error = chain(&error), "a policy's status was not stored");
            }
            Err(_) => tracing::warn!(name, "a policy's status was not stored in time"),
        }
    });
}
