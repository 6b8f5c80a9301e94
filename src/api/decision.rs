//! `InstanceAccessDecision`: one person's word on one request.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Identity;

/// A person's word on a request: Approve, Deny or Revoke. Made once; nothing of it changes.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "instanceaccess.dev",
    version = "v1alpha1",
    kind = "InstanceAccessDecision",
    plural = "instanceaccessdecisions",
    singular = "instanceaccessdecision",
    shortname = "iad",
    category = "instance-access",
    namespaced,
    derive = "PartialEq",
    doc = "A person's word on an InstanceAccess of the same namespace: Approve, Deny or Revoke.",
    printcolumn(
        name = "Request",
        type_ = "string",
        json_path = ".spec.requestRef.name",
        description = "The request that it is about"
    ),
    printcolumn(
        name = "Decision",
        type_ = "string",
        json_path = ".spec.decision",
        description = "Approve, Deny or Revoke"
    ),
    printcolumn(
        name = "Approver",
        type_ = "string",
        json_path = ".spec.approver.username",
        description = "Whose word it is"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".spec.reason",
        priority = 1,
        description = "Why it was decided so"
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.decision != 'Approve' || has(self.requestRef.specDigest)").message("is required of an Approve: the digest of what was seen, status.specDigest of the request").field_path(".requestRef.specDigest").reason(Reason::FieldValueRequired))]
pub struct InstanceAccessDecisionSpec {
    /// The request, in the namespace of the decision.
    pub request_ref: RequestRef,
    /// Approve, Deny or Revoke.
    pub decision: DecisionKind,
    /// Why, for the audit trail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub reason: Option<String>,
    /// Whose word it is. Filled in at admission from the caller's authenticated identity, and checked there: leave it
    /// out. On Kubernetes below 1.36 write here what `kubectl auth whoami -o yaml` shows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approver: Option<Identity>,
}

/// The request that a decision is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RequestRef {
    /// Its name, for people: what counts is the uid.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Its metadata.uid: a request that is made again under the same name is another.
    #[schemars(length(min = 1, max = 64))]
    pub uid: String,
    /// Its status.specDigest, as it was seen. Required of an Approve, which counts for exactly this; a Deny and a
    /// Revoke need none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 64, max = 64), regex(pattern = r"^[0-9a-f]{64}$"))]
    pub spec_digest: Option<String>,
}

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum DecisionKind {
    /// Yes, to exactly this spec.
    Approve,
    /// No, for good; after the grant the same as Revoke.
    Deny,
    /// Access ends now.
    Revoke,
}
