//! What a process that stands by remembers of requests: all that their statuses said while it watched.
//!
//! It has nothing else in its hands, and begins to lead by reading everything anew. But the API server may be another by
//! then: a restore of etcd takes longer than a lease, so the leader that saw what is forgotten has ended, and its trail may
//! lie on a volume of its own.

use std::sync::Arc;

use futures::StreamExt;
use kube::runtime::watcher::Event;
use kube::{Api, Client};

use crate::api::InstanceAccess;
use crate::kubernetes::History;
use crate::telemetry::chain;

use super::records::Records;
use super::watch::config;
use super::watched::Watched;

/// Watches requests and remembers them, for as long as it is awaited.
pub async fn remember(client: Client, records: Arc<Records>) {
    let api: Api<Watched<InstanceAccess>> = Api::all(client);
    let mut stream = std::pin::pin!(History::default().watch(api, config()));
    while let Some(event) = stream.next().await {
        match event {
            Ok(Event::InitApply(object) | Event::Apply(object)) => hear(&records, &object),
            Ok(Event::Delete(object)) => {
                // The last that was true of it.
                hear(&records, &object);
                records.hear_gone(object.metadata.uid.as_deref().unwrap_or_default());
            }
            Ok(Event::Init | Event::InitDone) => {}
            Err(error) => {
                tracing::warn!(error = chain(&error), "the watch over requests broke while standing by, trying again");
            }
        }
    }
}

fn hear(records: &Records, object: &Watched<InstanceAccess>) {
    if let Ok(request) = object.decode() {
        records.hear(&request);
    }
}
