//! What stands in an object that is JSON.

use jiff::Timestamp;
use serde_json::Value;

/// A text inside of an object; empty if it is not there.
pub fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// A time inside of an object, if it is there.
pub fn time(object: &Value, pointer: &str) -> Option<Timestamp> {
    object.pointer(pointer)?.as_str()?.parse().ok()
}

/// A condition: status, reason and message.
pub fn condition<'a>(object: &'a Value, type_: &str) -> Option<(&'a str, &'a str, &'a str)> {
    let conditions = object.pointer("/status/conditions")?.as_array()?;
    let condition = conditions.iter().find(|condition| condition["type"] == type_)?;
    Some((text(condition, "/status"), text(condition, "/reason"), text(condition, "/message")))
}
