//! What an expression may ask about, its bounds, and its values.
//!
//! The table of shapes is the one place that says which fields there are: the compiler looks names up in it and works out
//! the cost from its bounds, and no value that exceeds them is ever evaluated.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock};

use cel::Value;
use cel::common::value::{CowVal, Val};
use cel::context::VariableResolver;
use cel::objects::{Key, Map};

use crate::api::{ConnectionMethod, KeyType};
use crate::domain::policy::Question;

/// How large a value may be, and what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// A number, a truth value, a time, null.
    Plain,
    /// A text of at most so many bytes.
    Text(u64),
    /// A list of at most so many items.
    List(u64, Box<Shape>),
    /// A map of at most so many entries, with keys of at most so many bytes.
    Map(u64, u64, Box<Shape>),
    /// Fields by name; some may be absent.
    Record(Vec<(&'static str, Shape)>),
}

impl Shape {
    /// How much there is to copy or compare, in units of 64 bytes or one item.
    pub(super) fn weight(&self) -> u64 {
        match self {
            Self::Plain => 1,
            Self::Text(bytes) => 1 + bytes / 64,
            Self::List(items, item) => items.saturating_mul(item.weight()).saturating_add(1),
            Self::Map(entries, key_bytes, value) => {
                entries.saturating_mul(value.weight().saturating_add(1 + key_bytes / 64)).saturating_add(1)
            }
            Self::Record(fields) => fields.iter().fold(1, |sum, (_, field)| field.weight().saturating_add(sum)),
        }
    }

    /// Whether a value is within it.
    fn fits(&self, value: &Value) -> bool {
        let within = |length: usize, most: u64| u64::try_from(length).is_ok_and(|length| length <= most);
        match (self, value) {
            (Self::Plain, Value::Int(_) | Value::Timestamp(_) | Value::Bool(_)) => true,
            (Self::Text(bytes), Value::String(text)) => within(text.len(), *bytes),
            (Self::List(items, item), Value::List(list)) => {
                within(list.len(), *items) && list.iter().all(|value| item.fits(value))
            }
            (Self::Map(entries, key_bytes, shape), Value::Map(map)) => {
                within(map.map.len(), *entries)
                    && map.map.iter().all(|(key, value)| {
                        matches!(key, Key::String(key) if within(key.len(), *key_bytes)) && shape.fits(value)
                    })
            }
            (Self::Record(fields), Value::Map(map)) => map.map.iter().all(|(key, value)| {
                matches!(key, Key::String(key)
                    if fields.iter().any(|(name, shape)| *name == key.as_str() && shape.fits(value)))
            }),
            _ => false,
        }
    }
}

/// The variables, by name. Bounds are those of the CRD and of AWS, in bytes where they speak of characters; groups are
/// shorter than the CRD allows, or their number would leave no room for any expression over them.
pub(super) static VARIABLES: LazyLock<BTreeMap<&'static str, Shape>> = LazyLock::new(|| {
    let text = Shape::Text;
    let texts = |items, bytes| Shape::List(items, Box::new(Shape::Text(bytes)));
    let tags = || Shape::Map(50, 512, Box::new(Shape::Text(1024)));
    BTreeMap::from([
        (
            "request",
            Shape::Record(vec![
                ("name", text(253)),
                ("namespace", text(63)),
                ("osUser", text(32)),
                ("reason", text(4096)),
                ("ticket", text(512)),
                ("ttlSeconds", Shape::Plain),
                ("startTime", Shape::Plain),
                ("endTime", Shape::Plain),
                ("connectionMethod", text(8)),
                ("port", Shape::Plain),
                ("requester", Shape::Record(vec![("username", text(4096))])),
                ("key", Shape::Record(vec![("type", text(8)), ("bits", Shape::Plain), ("fingerprint", text(64))])),
                (
                    "target",
                    Shape::Record(vec![
                        ("instanceId", text(32)),
                        ("nodeName", text(253)),
                        ("tags", tags()),
                        ("region", text(32)),
                        ("accountId", text(12)),
                    ]),
                ),
            ]),
        ),
        (
            "subject",
            Shape::Record(vec![
                ("username", text(4096)),
                ("uid", text(4096)),
                ("groups", texts(512, 1024)),
                ("extra", Shape::Map(64, 1024, Box::new(texts(64, 4096)))),
            ]),
        ),
        (
            "instance",
            Shape::Record(vec![
                ("id", text(32)),
                ("accountId", text(12)),
                ("region", text(32)),
                ("availabilityZone", text(64)),
                ("vpcId", text(64)),
                ("subnetId", text(64)),
                ("privateIp", text(45)),
                ("publicIp", text(45)),
                ("ipv6", text(45)),
                ("tags", tags()),
            ]),
        ),
        ("now", Shape::Plain),
    ])
});

/// The values of one question.
#[derive(Debug)]
pub struct Facts {
    values: BTreeMap<&'static str, Box<dyn Val>>,
    has_method: bool,
    too_large: Option<&'static str>,
}

impl Facts {
    /// Takes them from the question that is asked of a policy.
    pub fn of(question: &Question<'_>) -> Self {
        let mut facts =
            Self { values: BTreeMap::new(), has_method: question.method != ConnectionMethod::Auto, too_large: None };
        let text = |text: &str| Value::from(text);
        let texts =
            |texts: &[String]| Value::List(Arc::new(texts.iter().map(|text| Value::from(text.as_str())).collect()));
        let time = |time: jiff::Timestamp| {
            let nanosecond = u32::try_from(time.subsec_nanosecond()).unwrap_or_default();
            chrono::DateTime::from_timestamp(time.as_second(), nanosecond)
                .map(|time| Value::Timestamp(time.fixed_offset()))
        };
        let spec = question.spec;
        let target = &spec.target;
        let key = question.key;
        let request = [
            ("name", Some(text(question.name))),
            ("namespace", Some(text(question.namespace))),
            ("osUser", Some(text(question.os_user))),
            ("reason", question.reason.map(text)),
            ("ticket", question.ticket.map(text)),
            ("ttlSeconds", question.ttl_seconds.map(Value::from)),
            ("startTime", spec.start_time.as_ref().and_then(|start| time(start.0))),
            ("endTime", spec.end_time.as_ref().and_then(|end| time(end.0))),
            (
                "connectionMethod",
                match question.method {
                    ConnectionMethod::Auto => None,
                    ConnectionMethod::Direct => Some(text("Direct")),
                    ConnectionMethod::Endpoint => Some(text("Endpoint")),
                },
            ),
            ("port", Some(Value::Int(question.port.into()))),
            ("requester", Some(record([("username", Some(text(&question.requester.username)))]))),
            (
                "key",
                Some(record([
                    (
                        "type",
                        Some(text(match key.key_type() {
                            KeyType::ED25519 => "ED25519",
                            KeyType::RSA => "RSA",
                        })),
                    ),
                    ("bits", Some(Value::from(key.bits()))),
                    ("fingerprint", Some(text(key.fingerprint()))),
                ])),
            ),
            (
                "target",
                Some(record([
                    ("instanceId", target.instance_id.as_deref().map(text)),
                    ("nodeName", target.node_name.as_deref().map(text)),
                    ("tags", target.tags.as_ref().map(texts_by_key)),
                    ("region", target.region.as_deref().map(text)),
                    ("accountId", target.account_id.as_deref().map(text)),
                ])),
            ),
        ];
        facts.add("request", record(request));
        // Nobody vouches for an asserted subject's groups: they are absent, so that a condition on them does not hold,
        // also one that wants somebody to be in none.
        let is_vouched = question.subject.is_none();
        let subject = question.subject.unwrap_or(question.requester);
        let extra = subject.extra.iter().map(|(key, values)| (Key::from(key.as_str()), texts(values))).collect();
        facts.add(
            "subject",
            record([
                ("username", Some(text(&subject.username))),
                ("uid", subject.uid.as_deref().map(text)),
                ("groups", is_vouched.then(|| texts(&subject.groups))),
                ("extra", is_vouched.then(|| Value::Map(Map { map: Arc::new(extra) }))),
            ]),
        );
        if let Some(instance) = question.instance {
            facts.add(
                "instance",
                record([
                    ("id", Some(text(instance.id.as_str()))),
                    ("accountId", Some(text(instance.account_id.as_str()))),
                    ("region", Some(text(instance.region.as_str()))),
                    ("availabilityZone", instance.availability_zone.as_deref().map(text)),
                    ("vpcId", instance.vpc_id.as_deref().map(text)),
                    ("subnetId", instance.subnet_id.as_deref().map(text)),
                    ("privateIp", instance.private_ip.map(|address| text(&address.to_string()))),
                    ("publicIp", instance.public_ip.map(|address| text(&address.to_string()))),
                    ("ipv6", instance.ipv6.map(|address| text(&address.to_string()))),
                    ("tags", Some(texts_by_key(&instance.tags))),
                ]),
            );
        }
        if let Some(now) = time(question.now) {
            facts.add("now", now);
        }
        facts
    }

    fn add(&mut self, name: &'static str, value: Value) {
        let fits = VARIABLES.get(name).is_some_and(|shape| shape.fits(&value));
        match Box::<dyn Val>::try_from(value) {
            Ok(value) if fits => drop(self.values.insert(name, value)),
            _ => self.too_large = Some(name),
        }
    }

    /// Whether the instance is known.
    pub(super) fn has_instance(&self) -> bool {
        self.values.contains_key("instance") || self.too_large == Some("instance")
    }

    /// Whether the way is known.
    pub(super) fn has_method(&self) -> bool {
        self.has_method
    }

    /// Which variable exceeds its bounds, if one does: then nothing is evaluated.
    pub(super) fn too_large(&self) -> Option<&'static str> {
        self.too_large
    }
}

impl VariableResolver for Facts {
    fn resolve<'b>(&'b self, variable: &str) -> Option<CowVal<'b, 'b>> {
        self.values.get(variable).map(|value| CowVal::Borrowed(value.as_ref()))
    }
}

fn record<const N: usize>(fields: [(&'static str, Option<Value>); N]) -> Value {
    let fields: HashMap<Key, Value> =
        fields.into_iter().filter_map(|(name, value)| Some((Key::from(name), value?))).collect();
    Value::Map(Map { map: Arc::new(fields) })
}

fn texts_by_key(texts: &BTreeMap<String, String>) -> Value {
    let texts = texts.iter().map(|(key, value)| (Key::from(key.as_str()), Value::from(value.as_str()))).collect();
    Value::Map(Map { map: Arc::new(texts) })
}
