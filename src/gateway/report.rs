//! Writes this gateway's entry of `status.sessions`, by server-side apply; when and what, `domain::session` says.
//!
//! What is shown there is a hint for people. Nothing waits for it: no session, no end, and no record.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::core::{ApiResource, DynamicObject, Status};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::api::{GROUP, InstanceAccess, VERSION};
use crate::domain::record::RequestRef;
use crate::domain::session::{Next, Report, Reports, Written, reported};
use crate::telemetry::chain;

use super::grants::Uid;
use super::metrics::GatewayMetrics;

/// The longest that one write may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Writes at once: four clients saturate an API server on two cores.
const WRITES_MAX: usize = 4;
/// How long the last writes may take at a shutdown: with all else that a shutdown waits for, less than the 30 s that
/// Kubernetes gives a pod.
const LAST_WRITES: Duration = Duration::from_secs(3);
/// What a gateway's field manager begins with; its name follows.
const FIELD_MANAGER_PREFIX: &str = "instance-access-gateway-";

/// The one who writes.
pub struct Reporter {
    client: Client,
    gateway: String,
    reports: Mutex<Reports>,
    news: Notify,
    ends: AtomicBool,
    fails: AtomicBool,
    metrics: Arc<GatewayMetrics>,
}

/// A session that counts as open until this is dropped.
pub struct Counted {
    reporter: Arc<Reporter>,
    uid: String,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.reporter.change(|reports, now| reports.closed(now, &self.uid));
    }
}

impl Reporter {
    /// One for the gateway of this name; does nothing until it is run.
    pub fn new(client: Client, gateway: String, metrics: Arc<GatewayMetrics>) -> Arc<Self> {
        Arc::new(Self {
            client,
            gateway,
            reports: Mutex::default(),
            news: Notify::new(),
            ends: AtomicBool::new(false),
            fails: AtomicBool::new(false),
            metrics,
        })
    }

    /// Counts a session as open.
    pub fn open(self: &Arc<Self>, request: &RequestRef, start_time: Timestamp) -> Counted {
        self.change(|reports, now| reports.opened(now, request, start_time));
        Counted { reporter: Arc::clone(self), uid: request.uid.clone() }
    }

    /// Takes in what a request says.
    pub fn see(&self, request: &InstanceAccess) {
        let version = request.metadata.resource_version.as_deref().and_then(version);
        if let Some((name, ours)) = reported(request, &self.gateway) {
            self.change(|reports, now| reports.seen(now, &name, version, ours));
        }
    }

    /// A request is gone.
    pub fn gone(&self, uid: &str) {
        self.change(|reports, _| reports.gone(uid));
    }

    /// A list was read to its end.
    pub fn listed(&self, uids: &HashSet<Uid>) {
        self.change(|reports, _| reports.listed(uids));
    }

    /// Writes what is due, until it is told to finish and has.
    pub async fn run(self: Arc<Self>) {
        let mut writes = FuturesUnordered::new();
        loop {
            let mut wait = None;
            while writes.len() < WRITES_MAX {
                match self.change_silently(|reports, now| reports.next(now)) {
                    Next::Write(report) => writes.push(self.write(report)),
                    Next::At(time) => {
                        wait = Some(Instant::from_std(time));
                        break;
                    }
                    Next::Rest => break,
                }
            }
            if self.ends.load(Ordering::Acquire) && self.change_silently(|reports, _| reports.is_settled()) {
                return;
            }
            tokio::select! {
                Some((uid, outcome)) = writes.next() => {
                    self.change_silently(|reports, now| reports.written(now, &uid, outcome));
                }
                () = self.news.notified() => {}
                () = tokio::time::sleep_until(wait.unwrap_or_else(Instant::now)), if wait.is_some() => {}
            }
        }
    }

    /// Has what is true now written, without waiting for its turn, within a bound.
    pub async fn finish(&self, mut running: JoinHandle<()>) {
        self.ends.store(true, Ordering::Release);
        self.change(|reports, _| reports.hurry());
        if tokio::time::timeout(LAST_WRITES, &mut running).await.is_err() {
            running.abort();
            tracing::warn!(
                "some entries of status.sessions were not written; the next gateway of this name sets them right"
            );
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut Reports, std::time::Instant) -> T) -> T {
        let changed = self.change_silently(change);
        self.news.notify_one();
        changed
    }

    fn change_silently<T>(&self, change: impl FnOnce(&mut Reports, std::time::Instant) -> T) -> T {
        let now = Instant::now().into_std();
        change(&mut self.reports.lock().unwrap_or_else(PoisonError::into_inner), now)
    }

    async fn write(&self, report: Report) -> (String, Written) {
        let Report { request, count } = report;
        let kind = ApiResource::erase::<InstanceAccess>(&());
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &request.namespace, &kind);
        let body = json!({
            "apiVersion": format!("{GROUP}/{VERSION}"),
            "kind": kind.kind,
            "metadata": {"name": request.name},
            "status": {"sessions": [count.entry(&self.gateway)]},
        });
        // By force: whoever else wrote this entry, it is this gateway's.
        let params = PatchParams::apply(&format!("{FIELD_MANAGER_PREFIX}{}", self.gateway)).force();
        let patch = Patch::Apply(&body);
        let written = tokio::time::timeout(TIMEOUT, api.patch_status(&request.name, &params, &patch)).await;
        let outcome = match written {
            // Made again under this name, which the watch had not told yet. The API server heeds no uid in a write of status,
            // and no such write shows more than a wrong figure, until the watch tells.
            Ok(Ok(object)) if object.metadata.uid.as_ref() != Some(&request.uid) => Written::Gone,
            Ok(Ok(object)) => {
                self.fails.store(false, Ordering::Release);
                Written::Stored { version: object.metadata.resource_version.as_deref().and_then(version) }
            }
            Ok(Err(kube::Error::Api(status))) if is_gone(&status, &request) => Written::Gone,
            Ok(Err(error)) => self.failed(&request, &chain(&error)),
            Err(_) => self.failed(&request, &format!("no answer within {} s", TIMEOUT.as_secs())),
        };
        self.metrics.count_report(match outcome {
            Written::Stored { .. } => "stored",
            Written::Gone => "gone",
            Written::Failed => "failed",
        });
        (request.uid, outcome)
    }

    /// Told once for each time that it begins: without its right, a gateway would tell of every session.
    fn failed(&self, request: &RequestRef, error: &str) -> Written {
        if !self.fails.swap(true, Ordering::AcqRel) {
            tracing::warn!(
                namespace = request.namespace,
                name = request.name,
                gateway = self.gateway,
                error,
                "its entry of status.sessions was not written, trying again; sessions do not wait for it"
            );
        }
        Written::Failed
    }
}

/// Whether that request is not there any more. A proxy's 404 on the way says no such thing.
fn is_gone(status: &Status, request: &RequestRef) -> bool {
    let is_named = status.details.as_ref().is_some_and(|details| details.name == request.name);
    status.code == 404 && status.reason == "NotFound" && is_named
}

fn version(text: &str) -> Option<u64> {
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn a_request_is_gone_if_the_api_server_says_so_of_its_name() {
        let request = RequestRef { namespace: "team".to_owned(), name: "web-1".to_owned(), uid: "a".to_owned() };
        let answer = |answer: Value| is_gone(&serde_json::from_value(answer).unwrap(), &request);
        let said = |code: u16, reason: &str, name: &str| {
            answer(json!({"status": "Failure", "code": code, "reason": reason, "details": {"name": name}}))
        };
        assert!(said(404, "NotFound", "web-1"));
        // The CRD, a proxy on the way, a right that is missing, a conflict.
        assert!(!said(404, "NotFound", ""));
        assert!(!answer(json!({"code": 404})));
        assert!(!said(403, "Forbidden", "web-1") && !said(409, "Conflict", "web-1"));
    }
}
