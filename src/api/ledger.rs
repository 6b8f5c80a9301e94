//! `InstanceAccessLedgerEntry`: what is left of a request that had its grant and was deleted.
//!
//! It is in no category: whoever lists `instance-access` may mostly not read it, and kubectl would end with an error.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is left of a deleted request that had its grant. The operator alone writes it; nothing of it changes.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "instanceaccess.dev",
    version = "v1alpha1",
    kind = "InstanceAccessLedgerEntry",
    plural = "instanceaccessledgerentries",
    singular = "instanceaccessledgerentry",
    shortname = "iale",
    derive = "PartialEq",
    doc = "What is left of a deleted InstanceAccess that had its grant: made again with the same namespace, name and spec, it is not granted a second time. Its own name is SHA-256 over the three.",
    printcolumn(
        name = "Namespace",
        type_ = "string",
        json_path = ".spec.request.namespace",
        description = "The namespace of the request"
    ),
    printcolumn(
        name = "Request",
        type_ = "string",
        json_path = ".spec.request.name",
        description = "The name of the request"
    ),
    printcolumn(name = "User", type_ = "string", json_path = ".spec.subject.username", description = "Who got in"),
    printcolumn(name = "Instance", type_ = "string", json_path = ".spec.instanceId", description = "The EC2 instance"),
    printcolumn(name = "Ended", type_ = "string", json_path = ".spec.endTime", description = "When access ended"),
    printcolumn(
        name = "Grant",
        type_ = "string",
        json_path = ".spec.grantId",
        priority = 1,
        description = "The grant, as the audit trail names it"
    ),
    printcolumn(
        name = "Kept-Until",
        type_ = "string",
        json_path = ".spec.keepUntilTime",
        priority = 1,
        description = "When the entry may go"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct InstanceAccessLedgerEntrySpec {
    /// The request, as it was.
    pub request: LedgerRequest,
    /// The id of its grant, the same in the audit trail.
    #[schemars(length(min = 1, max = 64))]
    pub grant_id: String,
    /// Who got in.
    pub subject: LedgerSubject,
    /// The EC2 instance, for example i-0123456789abcdef0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub instance_id: Option<String>,
    /// When access began.
    pub start_time: Time,
    /// When access was to end, at the latest.
    pub expiration_time: Time,
    /// When access ended.
    pub end_time: Time,
    /// When the operator may delete this entry: a day after the request's spec.endTime, from when on the request is over
    /// by itself whoever makes it again; without one, or if that comes later, 400 days after the end.
    pub keep_until_time: Time,
}

/// A request that is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LedgerRequest {
    /// Its namespace.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Its metadata.uid.
    #[schemars(length(min = 1, max = 64))]
    pub uid: String,
    /// Its status.specDigest: SHA-256 over the JCS form of the spec without requester and revoke, in hex.
    #[schemars(length(min = 64, max = 64), regex(pattern = r"^[0-9a-f]{64}$"))]
    pub spec_digest: String,
}

/// Who got in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LedgerSubject {
    /// The user name, for example alice@example.com.
    #[schemars(length(max = 1024))]
    pub username: String,
    /// Who that is, by the operator's rule of who is one person, for example alice. After a restart the request counts by
    /// it in the subject's requestsPerHour; without it, it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub principal: Option<String>,
}
