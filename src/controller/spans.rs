//! The controller's spans: what they are called, and what they say.

use crate::api::InstanceAccess;
use crate::domain::cloud::Place;
use crate::telemetry::chain;
use crate::traces::{Context, Span};

use super::write::WriteError;

/// A turn of a request, within what woke it.
pub fn turn(object: &InstanceAccess, cause: Option<Box<Context>>) -> Span {
    let mut span = match cause {
        Some(cause) => Span::child_of(*cause, "turn"),
        None => Span::root("turn"),
    };
    let status = object.status.as_ref();
    let instance = status.and_then(|status| status.instance.as_ref());
    let facts = [
        ("k8s.namespace.name", object.metadata.namespace.as_deref()),
        ("instance_access.request.name", object.metadata.name.as_deref()),
        ("instance_access.request.uid", object.metadata.uid.as_deref()),
        ("instance_access.grant.id", status.and_then(|status| status.grant.as_ref()).map(|grant| grant.id.as_str())),
        ("host.id", instance.map(|instance| instance.instance_id.as_str())),
    ];
    for (key, value) in facts {
        if let Some(value) = value {
            span.set(key, value);
        }
    }
    span
}

/// A call of AWS's, with the wait for its turn.
pub fn aws(name: &'static str, place: &Place, service: &str, method: &str, within: Context) -> Span {
    Span::call(within, name)
        .with("rpc.system.name", "aws-api")
        .with("rpc.service", service)
        .with("rpc.method", method)
        .with("cloud.region", place.region.as_str())
}

/// A write to the API server, with the wait for its turn. One that was called off did not fail.
pub async fn write<T>(
    name: &'static str,
    within: Context,
    write: impl Future<Output = Result<T, WriteError>>,
) -> Result<T, WriteError> {
    let mut span = Span::call(within, name);
    let outcome = write.await;
    match &outcome {
        Ok(_) => {}
        Err(WriteError::Stale) => span.set("instance_access.outcome", WriteError::Stale.as_str()),
        Err(error) => span.fail(error.as_str(), chain(error)),
    }
    outcome
}
