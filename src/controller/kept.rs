//! A request, and what was seen of it, as they are kept in memory: open while it has its turn, packed while it rests.
//!
//! Ten thousand rest, and a handful have their turn. An open one takes some 8 KiB in a hundred small pieces, a packed one
//! little more than one in two. Packed is JSON, compressed against a sample of its kind, since requests of one cluster
//! are alike. What is asked of all of them at once stands beside it.

use std::sync::{Arc, OnceLock};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::InstanceAccess;
use crate::domain::lifecycle::is_over;
use crate::domain::sight::Sight;

/// The longest sample, in bytes: LZ4 looks back 64 KiB, and what is packed should fit in that too.
const SAMPLE_BYTES_MAX: usize = 16 << 10;

/// The newest version of one request that was read or written.
#[derive(Debug)]
pub struct Kept {
    form: Form,
    facts: Facts,
}

#[derive(Debug)]
enum Form {
    Open(Arc<InstanceAccess>),
    /// Open, and already packed: it was only looked at.
    Both(Arc<InstanceAccess>, Packed),
    Packed(Packed),
}

/// A value, packed.
#[derive(Debug)]
pub struct Packed {
    bytes: Box<[u8]>,
    sample: Arc<[u8]>,
}

/// What is asked of a request without opening it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Facts {
    version: Option<u64>,
    generation: Option<i64>,
    is_deleted: bool,
    is_over: bool,
    /// Of one whose grant lives, the policy that made it.
    live: Option<Box<str>>,
}

/// What this process saw of one request.
#[derive(Debug)]
pub enum KeptSight {
    /// Open.
    Open(Box<Sight>),
    /// Packed.
    Packed(Packed),
}

/// What others are packed against: the first of a request whose grant lived, chosen once.
#[derive(Debug, Default)]
pub struct Sample(OnceLock<Arc<[u8]>>);

/// The samples of both kinds.
#[derive(Debug, Default)]
pub struct Samples {
    request: Sample,
    sight: Sample,
}

impl Kept {
    /// Keeps a request, open.
    pub fn new(object: InstanceAccess) -> Self {
        Self { facts: Facts::of(&object), form: Form::Open(Arc::new(object)) }
    }

    /// Keeps a newer version instead, open.
    pub fn replace(&mut self, newer: Arc<InstanceAccess>) {
        self.facts = Facts::of(&newer);
        self.form = Form::Open(newer);
    }

    /// Whatever is heard next is newer.
    pub fn doubt(&mut self) {
        self.facts.version = None;
    }

    /// Returns the request. It stays open until it is closed.
    pub fn open(&mut self) -> Arc<InstanceAccess> {
        match &self.form {
            Form::Open(object) | Form::Both(object, _) => Arc::clone(object),
            Form::Packed(packed) => {
                let object = Arc::new(packed.open().expect(OPENS));
                let Form::Packed(packed) = std::mem::replace(&mut self.form, Form::Open(Arc::clone(&object))) else {
                    unreachable!("it was packed a line ago")
                };
                self.form = Form::Both(Arc::clone(&object), packed);
                object
            }
        }
    }

    /// Returns the request, and leaves it as it lies: for a look from outside of its turn.
    pub fn read(&self) -> Arc<InstanceAccess> {
        match &self.form {
            Form::Open(object) | Form::Both(object, _) => Arc::clone(object),
            Form::Packed(packed) => Arc::new(packed.open().expect(OPENS)),
        }
    }

    /// Packs the request, unless it changed by that: then it stays open, which costs memory and nothing else.
    pub fn close(&mut self, samples: &Samples) {
        let object = match &self.form {
            Form::Packed(_) => return,
            Form::Open(object) | Form::Both(object, _) => Arc::clone(object),
        };
        let form = std::mem::replace(&mut self.form, Form::Open(Arc::clone(&object)));
        let packed = match form {
            Form::Packed(packed) | Form::Both(_, packed) => Some(packed),
            Form::Open(_) => Packed::new(&*object, samples.request.get(self.is_live())),
        };
        if let Some(packed) = packed {
            self.form = Form::Packed(packed);
        }
    }

    /// Whether another is a newer version.
    pub fn is_older_than(&self, other: &InstanceAccess) -> bool {
        self.facts.version < version(&other.metadata)
    }

    /// Whether another is an older version.
    pub fn is_newer_than(&self, other: &InstanceAccess) -> bool {
        self.facts.version > version(&other.metadata)
    }

    /// Whether this is the very version that the metadata speak of.
    pub fn is_version(&self, metadata: &ObjectMeta) -> bool {
        self.facts.version == version(metadata)
    }

    /// Whether what a decision stands on changed since: its spec, or that it is being deleted. Labels and our own status
    /// do not count.
    pub fn is_changed_since(&self, decided_on: &InstanceAccess) -> bool {
        let then = &decided_on.metadata;
        self.facts.generation != then.generation || self.facts.is_deleted != then.deletion_timestamp.is_some()
    }

    /// Whether nothing is judged of it any more.
    pub fn is_over(&self) -> bool {
        self.facts.is_over
    }

    /// Whether it has a grant that has not ended.
    pub fn is_live(&self) -> bool {
        self.facts.live.is_some()
    }

    /// The policy of its grant, while that lives.
    pub fn live_policy(&self) -> Option<&str> {
        self.facts.live.as_deref()
    }
}

impl KeptSight {
    /// Keeps it, open.
    pub fn new(sight: Sight) -> Self {
        Self::Open(Box::new(sight))
    }

    /// Returns it, to be changed. It stays open until it is closed.
    pub fn open(&mut self) -> &mut Sight {
        if let Self::Packed(packed) = self {
            *self = Self::Open(Box::new(packed.open().expect(OPENS)));
        }
        match self {
            Self::Open(sight) => sight,
            Self::Packed(_) => unreachable!("it was opened a line ago"),
        }
    }

    /// Packs it, unless it changed by that.
    pub fn close(&mut self, samples: &Samples, is_live: bool) {
        if let Self::Open(sight) = self
            && let Some(packed) = Packed::new(&**sight, samples.sight.get(is_live))
        {
            *self = Self::Packed(packed);
        }
    }
}

/// Why a packed value is there again.
const OPENS: &str = "it was opened once before it was kept so";

impl Packed {
    /// Packs; none if it would not open to the same again.
    fn new<T: Serialize + DeserializeOwned + PartialEq>(
        value: &T,
        sample: impl FnOnce(&[u8]) -> Arc<[u8]>,
    ) -> Option<Self> {
        let plain = serde_json::to_vec(value).ok()?;
        let sample = sample(&plain);
        let bytes = lz4_flex::block::compress_prepend_size_with_dict(&plain, &sample).into_boxed_slice();
        let packed = Self { bytes, sample };
        (packed.open().as_ref() == Some(value)).then_some(packed)
    }

    fn open<T: DeserializeOwned>(&self) -> Option<T> {
        let plain = lz4_flex::block::decompress_size_prepended_with_dict(&self.bytes, &self.sample).ok()?;
        serde_json::from_slice(&plain).ok()
    }
}

impl Sample {
    /// The sample; what is packed becomes it, if there is none yet and it may. Until then it is packed against nothing.
    fn get(&self, may_be_it: bool) -> impl FnOnce(&[u8]) -> Arc<[u8]> {
        move |plain| {
            if may_be_it && plain.len() <= SAMPLE_BYTES_MAX {
                return Arc::clone(self.0.get_or_init(|| plain.into()));
            }
            self.0.get().map_or_else(|| Arc::from([]), Arc::clone)
        }
    }
}

impl Facts {
    fn of(object: &InstanceAccess) -> Self {
        let metadata = &object.metadata;
        let live = object.status.as_ref().filter(|status| status.grant.is_some() && status.end_time.is_none());
        let policy = |status: &crate::api::InstanceAccessStatus| {
            status.policy.as_ref().map_or_else(Box::default, |policy| policy.name.as_str().into())
        };
        Self {
            version: version(metadata),
            generation: metadata.generation,
            is_deleted: metadata.deletion_timestamp.is_some(),
            is_over: is_over(object),
            live: live.map(policy),
        }
    }
}

/// A resourceVersion as a number. Kubernetes promises since 1.35 that they compare so, and the API server has always
/// made them so from etcd's revision; one that is none counts as new.
fn version(metadata: &ObjectMeta) -> Option<u64> {
    metadata.resource_version.as_ref().map(|text| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use serde_json::{Value, json};

    use super::*;

    fn object(number: u32, granted: bool) -> InstanceAccess {
        let time = "2026-03-01T08:00:00Z";
        let status = if granted {
            json!({
                "observedGeneration": 1,
                "conditions": [{
                    "type": "Active", "status": "True", "reason": "Granted", "observedGeneration": 1,
                    "lastTransitionTime": time, "message": "the key is on the instance; \"nöthing\" \u{1F511} is \\ lost",
                }],
                "policy": {"name": "developers", "uid": format!("policy-{number}"), "generation": 3, "digest": "ab"},
                "grant": {"id": format!("grant-{number}"), "startTime": time, "expirationTime": "2026-03-01T09:00:00Z"},
            })
        } else {
            Value::Null
        };
        let object = json!({
            "apiVersion": "instanceaccess.dev/v1alpha1",
            "kind": "InstanceAccess",
            "metadata": {
                "name": format!("fix-{number}"), "namespace": "team-a", "uid": format!("uid-{number}"),
                "resourceVersion": (1000 + number).to_string(), "generation": 1, "creationTimestamp": time,
                "finalizers": ["instanceaccess.dev/end-grant"],
            },
            "spec": {
                "requester": {"username": "alice", "groups": ["developers", "system:authenticated"]},
                "target": {"instanceId": format!("i-{number:017x}")},
                "osUser": "ec2-user",
                "sshPublicKey": format!("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA{number}"),
                "ttlSeconds": 600,
                "endTime": "2026-03-01T10:00:00Z",
            },
            "status": status,
        });
        serde_json::from_value(object).unwrap()
    }

    fn is_packed(kept: &Kept) -> bool {
        matches!(kept.form, Form::Packed(_))
    }

    #[test]
    fn what_was_packed_opens_to_the_same() {
        let samples = Samples::default();
        for number in 0..20 {
            for granted in [false, true] {
                let object = object(number, granted);
                let mut kept = Kept::new(object.clone());
                kept.close(&samples);
                assert!(is_packed(&kept));
                assert_eq!(*kept.open(), object);
                kept.close(&samples);
                assert_eq!(*kept.read(), object);
                assert!(is_packed(&kept), "a look from outside opens nothing");
                assert_eq!(*kept.open(), object, "also the second time");
            }
        }
    }

    #[test]
    fn what_was_seen_is_packed_to_the_fraction_of_a_second() {
        let samples = Samples::default();
        let at = |text: &str| text.parse().unwrap();
        let mut sight = Sight::new(at("2026-03-01T08:00:00.123456789Z"));
        sight.push.started(at("2026-03-01T08:00:01.5Z"));
        sight.push.landed(at("2026-03-01T08:00:01.987654321Z"), "a request".to_owned());
        let mut kept = KeptSight::new(sight.clone());
        for _ in 0..2 {
            kept.close(&samples, true);
            assert!(matches!(kept, KeptSight::Packed(_)));
            assert_eq!(*kept.open(), sight);
        }
        let grant = object(1, true).status.unwrap().grant.unwrap();
        kept.open().stores(None, Some(&grant));
        kept.close(&samples, true);
        assert!(matches!(kept, KeptSight::Packed(_)), "with a grant of its own");

        kept.open().push.started(at("2026-03-01T08:00:02Z"));
        kept.close(&samples, true);
        assert!(kept.open().push.is_under_way(), "and a change of it is kept");
    }

    #[test]
    fn requests_of_one_kind_take_a_fraction_of_their_json() {
        let samples = Samples::default();
        Kept::new(object(0, true)).close(&samples);
        let another = object(1, true);
        let mut kept = Kept::new(another.clone());
        kept.close(&samples);
        let Form::Packed(packed) = &kept.form else { panic!("it is packed") };
        let plain = serde_json::to_vec(&another).unwrap().len();
        assert!(packed.bytes.len() * 3 < plain, "{} of {plain} bytes", packed.bytes.len());
    }

    #[test]
    fn a_sample_is_chosen_once_and_what_was_packed_before_it_still_opens() {
        let samples = Samples::default();
        let mut before = Kept::new(object(1, false));
        before.close(&samples);
        assert!(samples.request.0.get().is_none(), "whoever is not granted is no sample: anybody can make one");
        let mut first = Kept::new(object(2, true));
        first.close(&samples);
        let chosen = samples.request.0.get().cloned();
        let mut second = Kept::new(object(3, true));
        second.close(&samples);
        assert_eq!(samples.request.0.get().cloned(), chosen);
        for (kept, number, granted) in [(&mut before, 1, false), (&mut first, 2, true), (&mut second, 3, true)] {
            assert_eq!(*kept.open(), object(number, granted));
        }
    }

    #[test]
    fn a_request_that_is_too_long_is_packed_and_is_no_sample() {
        let samples = Samples::default();
        let mut long = object(1, true);
        long.spec.reason = Some("x".repeat(SAMPLE_BYTES_MAX));
        let mut kept = Kept::new(long.clone());
        kept.close(&samples);
        assert!(is_packed(&kept) && samples.request.0.get().is_none());
        assert_eq!(*kept.open(), long);
    }

    #[test]
    fn what_would_not_open_to_the_same_stays_open() {
        let samples = Samples::default();
        let mut object = object(1, true);
        // Kubernetes drops the fraction of a second when it writes a time down.
        object.spec.end_time = Some(Time("2026-03-01T10:00:00.5Z".parse().unwrap()));
        let mut kept = Kept::new(object.clone());
        kept.close(&samples);
        assert!(!is_packed(&kept));
        assert_eq!(*kept.open(), object);
    }

    #[test]
    fn a_newer_version_takes_the_place_of_a_packed_one() {
        let samples = Samples::default();
        let mut kept = Kept::new(object(1, false));
        kept.close(&samples);
        assert!((kept.is_older_than(&object(2, true)), kept.is_live()) == (true, false));
        assert!(kept.is_version(&object(1, true).metadata) && !kept.is_newer_than(&object(1, true)));
        kept.replace(Arc::new(object(2, true)));
        kept.close(&samples);
        assert_eq!(kept.live_policy(), Some("developers"));
        assert!(kept.is_newer_than(&object(1, false)) && !kept.is_older_than(&object(2, true)));
        assert_eq!(*kept.open(), object(2, true));
    }

    #[test]
    fn another_spec_or_a_deletion_is_a_change_and_another_status_is_none() {
        let mut kept = Kept::new(object(1, true));
        kept.close(&Samples::default());
        assert!(!kept.is_changed_since(&object(1, false)));
        let mut edited = object(1, true);
        edited.metadata.generation = Some(2);
        assert!(kept.is_changed_since(&edited));
        let mut deleted = object(1, true);
        deleted.metadata.deletion_timestamp = Some(Time("2026-03-01T08:30:00Z".parse().unwrap()));
        assert!(kept.is_changed_since(&deleted));
    }
}
