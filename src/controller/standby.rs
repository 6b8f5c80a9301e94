//! What a process that stands by remembers of requests: all that their statuses said while it watched.
//!
//! It has nothing else in its hands, and begins to lead by reading everything anew. But the API server may be another by
//! then: a restore of etcd takes longer than a lease, so the leader that saw what is forgotten has ended, and its trail may
//! lie on a volume of its own.

use std::collections::HashSet;
use std::sync::Arc;

use futures::StreamExt;
use kube::runtime::watcher::Event;
use kube::{Api, Client};

use crate::api::InstanceAccess;
use crate::clock::Clock;
use crate::kubernetes::History;
use crate::kubernetes::watched::Watched;
use crate::telemetry::chain;

use super::records::Records;
use super::watch::config;

/// Watches requests and remembers them, for as long as it is awaited.
pub async fn remember(client: Client, records: Arc<Records>, clock: Clock) {
    let api: Api<Watched<InstanceAccess>> = Api::all(client);
    let mut stream = std::pin::pin!(History::default().watch(api, config()));
    let hear = |object: &Watched<InstanceAccess>| hear(&records, &clock, object);
    // Those that are there, and those of the list that is being read: who is in the first alone vanished unheard.
    let (mut known, mut listed) = (HashSet::new(), HashSet::new());
    while let Some(event) = stream.next().await {
        match event {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(object)) => {
                hear(&object);
                listed.extend(object.metadata.uid);
            }
            Ok(Event::InitDone) => {
                let before = std::mem::replace(&mut known, std::mem::take(&mut listed));
                for uid in before.difference(&known) {
                    records.hear_gone(uid);
                }
            }
            Ok(Event::Apply(object)) => {
                hear(&object);
                known.extend(object.metadata.uid);
            }
            Ok(Event::Delete(object)) => {
                // The last that was true of it.
                hear(&object);
                let uid = object.metadata.uid.unwrap_or_default();
                known.remove(&uid);
                records.hear_gone(&uid);
            }
            Err(error) => {
                tracing::warn!(error = chain(&error), "the watch over requests broke while standing by, trying again");
            }
        }
    }
}

fn hear(records: &Records, clock: &Clock, object: &Watched<InstanceAccess>) {
    match object.decode() {
        Ok(request) => records.hear(clock(), &request),
        Err(error) => tracing::error!(
            namespace = object.metadata.namespace,
            name = object.metadata.name,
            error = chain(&error),
            "a request cannot be decoded and is not remembered while standing by; is the CRD of another version?"
        ),
    }
}
