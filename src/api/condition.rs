//! Conditions, in the form of `metav1.Condition`, with bounds.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a condition speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum ConditionType {
    /// A policy admits the request, and whoever it asks has approved; Unknown while they are asked. True is set once and
    /// never removed, and excludes `Denied`.
    Approved,
    /// The request was refused. Set once, never removed; excludes `Approved`.
    Denied,
    /// The requester can log in now. Its reason is the STATUS column.
    Active,
    /// The request is over, for ever.
    Ended,
    /// The operator is at work, or waits for something. Meaning for kstatus: in progress.
    Reconciling,
    /// Somebody must act before it can go on. Meaning for kstatus: failed.
    Stalled,
    /// For policies: the policy is understood and in force.
    Ready,
}

/// Whether it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ConditionStatus {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// Not decided yet.
    Unknown,
}

/// One aspect of an object's state, in the form of `metav1.Condition`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What this condition speaks of, for example Active.
    #[serde(rename = "type")]
    pub type_: ConditionType,
    /// Whether it holds: True, False or Unknown.
    pub status: ConditionStatus,
    /// Why, in one word for programs, for example Granted.
    #[schemars(length(min = 1, max = 64))]
    pub reason: String,
    /// Why, and what to do next, for people.
    #[schemars(length(max = 4096))]
    pub message: String,
    /// The metadata.generation that this was judged on.
    #[schemars(range(min = 0))]
    pub observed_generation: i64,
    /// When status last changed between True, False and Unknown.
    pub last_transition_time: Time,
}
