//! A decision that cannot be decoded: it may be a no, and so it holds its request back.
//!
//! The API server stores no such object while the CRD stands as it is shipped. One is there only if it was stored by
//! another version, or while somebody had bent the CRD; both take an administrator, and so does mending it.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

/// The longest name that is kept: what Kubernetes takes.
const NAME_LENGTH_MAX: usize = 253;

/// A decision that cannot be decoded, and may be a no.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// The object's name.
    pub name: String,
    /// The object's uid.
    pub uid: String,
    /// The uid of the request.
    pub request_uid: Arc<str>,
    /// When it was made, if that can be read.
    pub time: Timestamp,
}

impl Unreadable {
    /// Reads what there is to read. `None`: it is about no request, or plainly an approval, which counts for nothing when
    /// it cannot be read as a whole.
    pub fn read(object: &Value) -> Option<Self> {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
        if text("/spec/decision") == Some("Approve") {
            return None;
        }
        let time = text("/metadata/creationTimestamp").and_then(|time| time.parse().ok());
        Some(Self {
            name: text("/metadata/name")?.chars().take(NAME_LENGTH_MAX).collect(),
            uid: text("/metadata/uid")?.to_owned(),
            request_uid: request_uid(object)?.into(),
            time: time.unwrap_or(Timestamp::MIN),
        })
    }
}

/// The uid of the request that a decision is about, which may be one that cannot be decoded.
pub fn request_uid(object: &Value) -> Option<&str> {
    object.pointer("/spec/requestRef/uid").and_then(Value::as_str)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_cannot_be_decoded_is_a_no_unless_it_is_plainly_an_approval_or_about_nothing() {
        let whole = json!({
            "metadata": {"name": "a", "uid": "u", "creationTimestamp": "2026-03-01T08:00:00Z"},
            "spec": {"requestRef": {"name": "web-1", "uid": "r"}, "decision": "Deny", "reason": 42},
        });
        let with = |pointer: &str, value: Value| {
            let mut object = whole.clone();
            *object.pointer_mut(pointer).unwrap() = value;
            object
        };
        let rows = [
            (whole.clone(), true),
            (with("/spec/decision", json!("Revoke")), true),
            (with("/spec/decision", json!("deny")), true),
            (with("/spec/decision", json!("approve")), true),
            (with("/spec/decision", json!({"kind": "Approve"})), true),
            (with("/spec/decision", Value::Null), true),
            (with("/metadata/creationTimestamp", json!(7)), true),
            (with("/spec/decision", json!("Approve")), false),
            (with("/spec/requestRef/uid", json!(7)), false),
            (with("/spec/requestRef", json!("r")), false),
            (with("/spec", Value::Null), false),
        ];
        for (object, may_be_a_no) in rows {
            let read = Unreadable::read(&object);
            assert_eq!(read.is_some(), may_be_a_no, "{object}");
            assert!(read.is_none_or(|read| &*read.request_uid == "r" && read.uid == "u" && read.name == "a"));
        }
    }
}
