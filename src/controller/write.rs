//! Writes to the API server: status with the resourceVersion that was decided on, but for an end over others' edits, and our
//! finalizer.
//!
//! Four lanes: ends never queue behind grants, neither behind a flood of refusals, and nobody behind a flood of deletions.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request};
use kube::api::PostParams;
use kube::core::Status;
use kube::{Api, Client};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::{Notify, Semaphore};

use crate::api::{
    FINALIZER, GROUP, InstanceAccess, InstanceAccessLedgerEntry, InstanceAccessSpec, InstanceAccessStatus, VERSION,
};
use crate::domain::lifecycle::Lane;
use crate::telemetry::{Metrics, chain};

use super::leader::Leads;

/// The longest that one write may take: a sick API server should not hold a lane. It would itself give up a write after 34 s,
/// and is told to do so as soon as we do: what is stored later is not what was decided.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Writes at once. The API server is CPU-bound: four clients saturate two cores, more only wait in its queue.
const GRANT_WRITES_MAX: usize = 12;
/// Writes of ends at once, besides those.
const END_WRITES_MAX: usize = 12;
/// Writes at once that tell people no, or to wait, besides those. A third of a grant's share: whoever floods us with
/// requests that nobody admits should wait for his answers, and nobody else.
const WORD_WRITES_MAX: usize = 4;

/// Writes at once for requests that go, besides those: their entry in the ledger, and our finalizer. A third as well:
/// nobody gets in or stays in by them, and four clients saturate an API server on two cores.
const LEAVE_WRITES_MAX: usize = 4;

/// Why a write did not happen, or may not have.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// What was decided on changed while the write waited its turn; nothing was sent.
    #[error("the world changed before the write left")]
    Stale,
    /// The object is newer than what was decided on.
    #[error("the object changed meanwhile")]
    Conflict,
    /// The object is gone.
    #[error("the object is gone")]
    Gone,
    /// Another process leads; nothing was sent.
    #[error("this process does not lead any more")]
    Deposed,
    /// The API server did not answer in time; the write may have happened.
    #[error("the API server did not answer within {WRITE_TIMEOUT:?}")]
    Timeout,
    /// The request could not be put together.
    #[error("the request could not be built")]
    Build(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Anything else.
    #[error("the API server refused the write, or could not be reached")]
    Refused(#[source] Box<kube::Error>),
}

impl WriteError {
    /// The word for it: the metric's label.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Stale => "stale",
            Self::Conflict => "conflict",
            Self::Gone => "gone",
            Self::Deposed => "deposed",
            Self::Timeout => "timeout",
            Self::Build(_) | Self::Refused(_) => "refused",
        }
    }

    /// Whether what was sent may be stored all the same, now or in a moment.
    pub fn may_be_stored(&self) -> bool {
        match self {
            Self::Timeout | Self::Refused(_) => true,
            Self::Stale | Self::Conflict | Self::Gone | Self::Deposed | Self::Build(_) => false,
        }
    }
}

/// A status, with as much of its object as says which one is meant, in which version.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct StatusPut<'a> {
    api_version: String,
    kind: &'a str,
    metadata: Identity<'a>,
    spec: &'a InstanceAccessSpec,
    status: &'a InstanceAccessStatus,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Identity<'a> {
    name: &'a Option<String>,
    namespace: &'a Option<String>,
    uid: &'a Option<String>,
    resource_version: &'a Option<String>,
}

/// How a write is put to the API server.
struct Call {
    method: Method,
    uri: String,
    content_type: &'static str,
}

/// Whether a write is still wanted when its turn comes.
#[derive(Clone, Copy)]
pub struct Still<'a> {
    /// Asked once, just before it leaves.
    pub holds: &'a (dyn Fn() -> bool + Send + Sync),
    /// Calls it off while it waits.
    pub nudged: Option<&'a Notify>,
}

/// The writer.
pub struct Writer {
    client: Client,
    leads: Leads,
    grants: Semaphore,
    ends: Semaphore,
    words: Semaphore,
    leaving: Semaphore,
    metrics: Arc<Metrics>,
}

impl Writer {
    /// Makes a writer.
    pub fn new(client: Client, leads: Leads, metrics: Arc<Metrics>) -> Self {
        Self {
            client,
            leads,
            grants: Semaphore::new(GRANT_WRITES_MAX),
            ends: Semaphore::new(END_WRITES_MAX),
            words: Semaphore::new(WORD_WRITES_MAX),
            leaving: Semaphore::new(LEAVE_WRITES_MAX),
            metrics,
        }
    }

    /// Stores a status, if the object still is what was decided on; returns the object as it is now.
    ///
    /// A PUT, and of nothing but identity and status: the API server takes spec and metadata from what it has.
    pub async fn status(
        &self,
        object: &InstanceAccess,
        status: &InstanceAccessStatus,
        lane: Lane,
        still: &Still<'_>,
    ) -> Result<InstanceAccess, WriteError> {
        let body = StatusPut {
            api_version: format!("{GROUP}/{VERSION}"),
            kind: "InstanceAccess",
            metadata: Identity {
                name: &object.metadata.name,
                namespace: &object.metadata.namespace,
                uid: &object.metadata.uid,
                resource_version: &object.metadata.resource_version,
            },
            spec: &object.spec,
            status,
        };
        let uri = format!("{}/status?{}", path(object), query());
        let call = Call { method: Method::PUT, uri, content_type: "application/json" };
        let outcome = self.send(call, &body, object, lane, Some(still)).await;
        self.metrics.count_status_write(match &outcome {
            Ok(_) => "stored",
            Err(error) => error.as_str(),
        });
        outcome
    }

    /// Stores an end that was decided on an older version of the object, if nobody has ended it since, nor begun to; returns
    /// the object as it is now.
    ///
    /// Whoever edits a request without a pause would put off its end, were that to wait for a moment in which nobody does: the
    /// API server tries a patch again by itself, where it meets another's write.
    pub async fn end(
        &self,
        object: &InstanceAccess,
        status: &InstanceAccessStatus,
        still: &Still<'_>,
    ) -> Result<InstanceAccess, WriteError> {
        let body = end_patch(object, status).map_err(|error| WriteError::Build(Box::new(error)))?;
        let uri = format!("{}/status?{}", path(object), query());
        let call = Call { method: Method::PATCH, uri, content_type: "application/json-patch+json" };
        let outcome = match self.send(call, &body, object, Lane::End, Some(still)).await {
            // Its status is another by now. Or our role is of a version that did not patch: the next look tries it by a PUT.
            Err(WriteError::Refused(error)) if is_answered_with(&error, &[403, 422]) => {
                let name = object.metadata.name.as_deref();
                tracing::warn!(name, error = chain(&error), "an end was not taken over others' edits, trying again");
                Err(WriteError::Conflict)
            }
            outcome => outcome,
        };
        self.metrics.count_status_write(match &outcome {
            Ok(_) => "stored",
            Err(error) => error.as_str(),
        });
        outcome
    }

    /// Puts our finalizer on.
    pub async fn add_finalizer(&self, object: &InstanceAccess) -> Result<InstanceAccess, WriteError> {
        let mut finalizers = object.metadata.finalizers.clone().unwrap_or_default();
        finalizers.push(FINALIZER.to_owned());
        self.finalizers(object, &finalizers, Lane::Grant).await
    }

    /// Takes our finalizer off.
    pub async fn remove_finalizer(&self, object: &InstanceAccess) -> Result<InstanceAccess, WriteError> {
        let finalizers: Vec<String> =
            object.metadata.finalizers.iter().flatten().filter(|name| *name != FINALIZER).cloned().collect();
        // Whoever makes and deletes requests that never had a grant does not fill the lane of those that had one.
        let had_grant = object.status.as_ref().is_some_and(|status| status.grant.is_some());
        self.finalizers(object, &finalizers, if had_grant { Lane::Leave } else { Lane::Word }).await
    }

    /// Writes an entry of the ledger; that it stands already is as good.
    pub async fn enter(&self, entry: &InstanceAccessLedgerEntry) -> Result<(), WriteError> {
        let _place = self.leaving.acquire().await.expect("the lanes are never closed");
        let api: Api<InstanceAccessLedgerEntry> = Api::all(self.client.clone());
        let params = PostParams { field_manager: Some(super::FIELD_MANAGER.to_owned()), ..PostParams::default() };
        if !(self.leads)() {
            return Err(WriteError::Deposed);
        }
        match tokio::time::timeout(WRITE_TIMEOUT, api.create(&params, entry)).await {
            Err(_) => Err(WriteError::Timeout),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(kube::Error::Api(status))) if status.reason == "AlreadyExists" => Ok(()),
            Ok(Err(error)) => Err(WriteError::Refused(Box::new(error))),
        }
    }

    async fn finalizers(
        &self,
        object: &InstanceAccess,
        finalizers: &[String],
        lane: Lane,
    ) -> Result<InstanceAccess, WriteError> {
        // With the resourceVersion, so that a finalizer that somebody else put on meanwhile is not lost.
        let body = json!({
            "metadata": {
                "uid": object.metadata.uid,
                "resourceVersion": object.metadata.resource_version,
                "finalizers": finalizers,
            },
        });
        let uri = format!("{}?{}", path(object), query());
        let call = Call { method: Method::PATCH, uri, content_type: "application/merge-patch+json" };
        self.send(call, &body, object, lane, None).await
    }

    /// Reads the object as it is now.
    pub async fn read(&self, object: &InstanceAccess) -> Result<InstanceAccess, WriteError> {
        let request = Request::builder().method(Method::GET).uri(path(object)).body(Vec::new());
        self.request(request.map_err(|error| WriteError::Build(Box::new(error)))?, object).await
    }

    async fn send(
        &self,
        call: Call,
        body: &impl Serialize,
        object: &InstanceAccess,
        lane: Lane,
        still: Option<&Still<'_>>,
    ) -> Result<InstanceAccess, WriteError> {
        let (places, still) = match lane {
            Lane::End => (&self.ends, still),
            Lane::Grant => (&self.grants, still),
            Lane::Word => (&self.words, still),
            Lane::Leave => (&self.leaving, None),
        };
        let Still { holds, nudged } = still.copied().unwrap_or(Still { holds: &|| true, nudged: None });
        let nudge = async {
            match nudged {
                Some(nudged) => nudged.notified().await,
                None => std::future::pending().await,
            }
        };
        let _place = tokio::select! {
            biased;
            place = places.acquire() => place.expect("the lanes are never closed"),
            () = nudge => return Err(WriteError::Stale),
        };
        if !holds() {
            return Err(WriteError::Stale);
        }
        // Only now: a thousand bodies that wait their turn would be memory that nobody gives back.
        let body = serde_json::to_vec(body).map_err(|error| WriteError::Build(Box::new(error)))?;
        let Call { method, uri, content_type } = call;
        let request = Request::builder().method(method).uri(uri).header("content-type", content_type).body(body);
        let request = request.map_err(|error| WriteError::Build(Box::new(error)))?;
        if !(self.leads)() {
            return Err(WriteError::Deposed);
        }
        self.request(request, object).await
    }

    async fn request(&self, request: Request<Vec<u8>>, about: &InstanceAccess) -> Result<InstanceAccess, WriteError> {
        let answer = tokio::time::timeout(WRITE_TIMEOUT, self.client.request::<InstanceAccess>(request)).await;
        match answer {
            Err(_) => Err(WriteError::Timeout),
            Ok(Ok(mut object)) => {
                // The same name, another object: ours is gone.
                if object.metadata.uid != about.metadata.uid {
                    return Err(WriteError::Gone);
                }
                super::slots::prune(&mut object);
                Ok(object)
            }
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => Err(WriteError::Conflict),
            Ok(Err(kube::Error::Api(status))) if is_gone(&status, about) => Err(WriteError::Gone),
            Ok(Err(error)) => Err(WriteError::Refused(Box::new(error))),
        }
    }
}

/// What an end changes in status, as a JSON Patch. It holds only where grant and end stand as they stood when it was decided,
/// and leaves alone what gateways write.
fn end_patch(object: &InstanceAccess, status: &InstanceAccessStatus) -> Result<Vec<Value>, serde_json::Error> {
    let (before, after) = (serde_json::to_value(&object.status)?, serde_json::to_value(status)?);
    let mut patch = vec![json!({"op": "test", "path": "/metadata/uid", "value": object.metadata.uid})];
    // A value of null: it is not there. None of them holds a text of somebody's, which the API server may spell otherwise.
    // `key` and `audit` are there for the leader that came after us: what it wrote since is not gone over.
    for field in ["grant", "revocation", "endTime", "key", "audit"] {
        patch.push(json!({"op": "test", "path": format!("/status/{field}"), "value": before[field]}));
    }
    let fields = |status: &Value| status.as_object().cloned().unwrap_or_default();
    let (before, after) = (fields(&before), fields(&after));
    for (field, value) in &after {
        if field != "sessions" && before.get(field) != Some(value) {
            patch.push(json!({"op": "add", "path": format!("/status/{field}"), "value": value}));
        }
    }
    for field in before.keys().filter(|field| *field != "sessions" && !after.contains_key(*field)) {
        patch.push(json!({"op": "remove", "path": format!("/status/{field}")}));
    }
    Ok(patch)
}

fn is_answered_with(error: &kube::Error, codes: &[u16]) -> bool {
    matches!(error, kube::Error::Api(status) if codes.contains(&status.code))
}

/// Whether the API server says that this object is not there. A proxy's 404 on the way to it says no such thing.
fn is_gone(status: &Status, object: &InstanceAccess) -> bool {
    let named = status.details.as_ref().map(|details| details.name.as_str());
    status.code == 404 && status.reason == "NotFound" && named == object.metadata.name.as_deref()
}

/// Who writes, and how soon the API server is to give up, counted from when it has read the request.
fn query() -> String {
    format!("fieldManager={}&timeout={}s", super::FIELD_MANAGER, WRITE_TIMEOUT.as_secs())
}

fn path(object: &InstanceAccess) -> String {
    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
    let name = object.metadata.name.as_deref().unwrap_or_default();
    format!("/apis/{GROUP}/{VERSION}/namespaces/{namespace}/instanceaccesses/{name}")
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// A writer that says `Refused` of what it sends: nobody listens there.
    fn writer(leads: bool) -> Writer {
        // Whoever was first has installed it.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let nobody = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        Writer::new(Client::try_from(nobody).unwrap(), Arc::new(move || leads), Arc::new(Metrics::default()))
    }

    fn request(status: Value) -> InstanceAccess {
        serde_json::from_value(json!({
            "apiVersion": format!("{GROUP}/{VERSION}"),
            "kind": "InstanceAccess",
            "metadata": {"name": "it", "namespace": "team", "uid": "u", "resourceVersion": "1"},
            "spec": {"target": {"instanceId": "i-0123456789abcdef0"}, "osUser": "ec2-user", "sshPublicKey": "ssh-ed25519 AAAA"},
            "status": status,
        }))
        .unwrap()
    }

    #[tokio::test]
    async fn whoever_does_not_lead_sends_nothing() {
        let writer = writer(false);
        let object = request(json!({"conditions": []}));
        let still = Still { holds: &|| true, nudged: None };
        for lane in [Lane::End, Lane::Grant, Lane::Word, Lane::Leave] {
            let status = writer.status(&object, &InstanceAccessStatus::default(), lane, &still).await;
            assert!(matches!(status, Err(WriteError::Deposed)), "{lane:?}: {status:?}");
        }
        let end = writer.end(&object, &InstanceAccessStatus::default(), &still).await;
        assert!(matches!(end, Err(WriteError::Deposed)), "{end:?}");
        assert!(matches!(writer.add_finalizer(&object).await, Err(WriteError::Deposed)));
        assert!(matches!(writer.remove_finalizer(&object).await, Err(WriteError::Deposed)));
        // It may still look.
        assert!(matches!(writer.read(&object).await, Err(WriteError::Refused(_))));
    }

    #[tokio::test]
    async fn an_end_that_waited_its_turn_for_too_long_is_not_sent() {
        let (writer, object) = (writer(true), request(json!({"conditions": []})));
        let status = InstanceAccessStatus::default();
        for (is_in_time, outcome) in [(true, "refused"), (false, "stale")] {
            let all = writer.ends.acquire_many(u32::try_from(END_WRITES_MAX).unwrap()).await.unwrap();
            let in_time = AtomicBool::new(true);
            let holds = || in_time.load(Ordering::Relaxed);
            let still = Still { holds: &holds, nudged: None };
            let mut end = pin!(writer.status(&object, &status, Lane::End, &still));
            assert!(futures::poll!(end.as_mut()).is_pending(), "it has no place");
            in_time.store(is_in_time, Ordering::Relaxed);
            drop(all);
            assert_eq!(end.await.unwrap_err().as_str(), outcome);
        }
    }

    #[test]
    fn an_end_over_others_edits_needs_the_grant_as_it_was_and_leaves_alone_what_gateways_wrote() {
        let grant = |end: &str| json!({"id": "g", "startTime": "2026-03-01T08:00:00Z", "expirationTime": end});
        let (late, soon) = (grant("2026-03-01T09:00:00Z"), grant("2026-03-01T08:31:38Z"));
        let sessions = json!([{"gateway": "one", "open": 1, "total": 1, "lastStartTime": "2026-03-01T08:01:00Z"}]);
        let audit = json!({"sequence": 1, "digest": "d"});
        let conditions = json!([]);
        let object = request(json!({
            "conditions": conditions, "specDigest": "ab", "grant": late, "sessions": sessions, "audit": audit,
        }));
        let revocation = json!({"cause": "Revoked", "keyWindowClosedTime": "2026-03-01T08:31:38Z"});
        let status = json!({"conditions": conditions, "specDigest": "ab", "grant": soon, "revocation": revocation});
        let status: InstanceAccessStatus = serde_json::from_value(status).unwrap();
        let expected = json!([
            {"op": "test", "path": "/metadata/uid", "value": "u"},
            {"op": "test", "path": "/status/grant", "value": late},
            {"op": "test", "path": "/status/revocation", "value": null},
            {"op": "test", "path": "/status/endTime", "value": null},
            {"op": "test", "path": "/status/key", "value": null},
            {"op": "test", "path": "/status/audit", "value": audit},
            {"op": "add", "path": "/status/grant", "value": soon},
            {"op": "add", "path": "/status/revocation", "value": revocation},
            {"op": "remove", "path": "/status/audit"},
        ]);
        assert_eq!(json!(end_patch(&object, &status).unwrap()), expected);
    }
}
