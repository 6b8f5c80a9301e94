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
use crate::domain::lifecycle::{is_over, is_settled};
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
    sample: Option<Arc<[u8]>>,
}

/// What is asked of a request without opening it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Facts {
    version: Option<u64>,
    generation: Option<i64>,
    is_deleted: bool,
    is_settled: bool,
    alike: Alike,
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

/// What others are packed against: the first of a request that had its grant, chosen once. Whoever is not granted is no
/// sample: anybody can make one.
#[derive(Debug, Default)]
struct Sample(OnceLock<Arc<[u8]>>);

/// The samples of one age: of a request, and of what was seen of it.
#[derive(Debug, Default)]
struct Pair {
    request: Sample,
    sight: Sample,
}

/// The samples. One that is over says other things than one that lives; and after a restart they come in the order of
/// their names, so that neither may wait for the first of the other.
#[derive(Debug, Default)]
pub struct Samples {
    live: Pair,
    over: Pair,
}

/// With what others it is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alike {
    is_over: bool,
    had_grant: bool,
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
            Form::Open(_) => Packed::new(&*object, |plain| samples.of(self.alike(), |pair| &pair.request, plain)),
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
        self.facts.alike.is_over
    }

    /// Whether nothing is left to do for it, whatever happens, until there is another version of it, or none.
    pub fn is_settled(&self) -> bool {
        self.facts.is_settled
    }

    /// With what others it is packed.
    pub fn alike(&self) -> Alike {
        self.facts.alike
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
    pub fn close(&mut self, samples: &Samples, alike: Alike) {
        let Self::Open(sight) = self else { return };
        // Of a live one that was hardly looked at, most of what others have is missing: after a restart that is the first.
        let is_telling = alike.is_over || sight.instances.seen().is_some();
        let alike = Alike { had_grant: alike.had_grant && is_telling, ..alike };
        if let Some(packed) = Packed::new(&**sight, |plain| samples.of(alike, |pair| &pair.sight, plain)) {
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
        sample: impl FnOnce(&[u8]) -> Option<Arc<[u8]>>,
    ) -> Option<Self> {
        let plain = serde_json::to_vec(value).ok()?;
        let sample = sample(&plain);
        let against = sample.as_deref().unwrap_or_default();
        let bytes = lz4_flex::block::compress_prepend_size_with_dict(&plain, against).into_boxed_slice();
        let packed = Self { bytes, sample };
        (packed.open().as_ref() == Some(value)).then_some(packed)
    }

    fn open<T: DeserializeOwned>(&self) -> Option<T> {
        let against = self.sample.as_deref().unwrap_or_default();
        let plain = lz4_flex::block::decompress_size_prepended_with_dict(&self.bytes, against).ok()?;
        serde_json::from_slice(&plain).ok()
    }
}

impl Samples {
    /// What to pack against: the sample of its age, which it becomes if there is none yet and it may; until there is one,
    /// the other age's; else nothing.
    fn of(&self, alike: Alike, which: impl Fn(&Pair) -> &Sample, plain: &[u8]) -> Option<Arc<[u8]>> {
        let (own, other) = if alike.is_over { (&self.over, &self.live) } else { (&self.live, &self.over) };
        let own = &which(own).0;
        if alike.had_grant && plain.len() <= SAMPLE_BYTES_MAX {
            return Some(Arc::clone(own.get_or_init(|| plain.into())));
        }
        own.get().or_else(|| which(other).0.get()).map(Arc::clone)
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
            is_settled: is_settled(object),
            alike: Alike {
                is_over: is_over(object),
                had_grant: object.status.as_ref().is_some_and(|status| status.grant.is_some()),
            },
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

    /// What one that is over may take, packed; docs/performance.md has the sum.
    const OVER_BYTES_MAX: usize = 320;
    const LIVE: Alike = Alike { is_over: false, had_grant: true };

    /// Over, as a request is that had its grant, or was refused.
    fn over(number: u32, granted: bool) -> InstanceAccess {
        let mut over = object(number, granted);
        let time = "2026-03-01T09:00:00Z";
        // What is another in each does not pack.
        let mut seed = u64::from(number);
        let mut noise = |length: usize| {
            let digit = |_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                format!("{:x}", seed >> 60)
            };
            (0..length).map(digit).collect::<String>()
        };
        let told = |type_: &str, status: &str, reason: &str, message: &str| {
            json!({
                "type": type_, "status": status, "reason": reason, "observedGeneration": 1,
                "lastTransitionTime": time, "message": message,
            })
        };
        let end = "the grant's time was over; no key is readable by the host since 2026-03-01T09:00:00Z, and no new login is possible. Sessions through a gateway are cut; others that were open are not";
        let mut status = json!({
            "observedGeneration": 1,
            "specDigest": noise(64),
            "conditions": [
                told("Approved", "True", "AdmittedByPolicy", "admitted by policy developers"),
                told("Active", "False", "Expired", end),
                told("Ended", "True", "Expired", end),
            ],
        });
        if granted {
            let had = json!({
                "policy": {"name": "developers", "uid": "policy", "generation": 3, "digest": "ab"},
                "grant": {"id": format!("g-{}", noise(32)), "startTime": time, "expirationTime": time},
                "instance": {"instanceId": format!("i-{number:017x}"), "vpcId": "vpc-1", "subnetId": "subnet-1"},
                "key": {"type": "ED25519", "bits": 256, "fingerprint": format!("SHA256:{}", noise(43)), "pushes": 13},
                "revocation": {"cause": "Expired", "keyWindowClosedTime": time},
                "endTime": time,
                "audit": {"sequence": number, "digest": noise(64)},
            });
            status.as_object_mut().unwrap().extend(had.as_object().unwrap().clone());
        }
        over.status = Some(serde_json::from_value(status).unwrap());
        over
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
            kept.close(&samples, LIVE);
            assert!(matches!(kept, KeptSight::Packed(_)));
            assert_eq!(*kept.open(), sight);
        }
        let grant = object(1, true).status.unwrap().grant.unwrap();
        kept.open().stores(None, Some(&grant));
        kept.close(&samples, LIVE);
        assert!(matches!(kept, KeptSight::Packed(_)), "with a grant of its own");

        kept.open().push.started(at("2026-03-01T08:00:02Z"));
        kept.close(&samples, LIVE);
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
        assert!(samples.live.request.0.get().is_none(), "whoever is not granted is no sample: anybody can make one");
        let mut first = Kept::new(object(2, true));
        first.close(&samples);
        let chosen = samples.live.request.0.get().cloned();
        let mut second = Kept::new(object(3, true));
        second.close(&samples);
        assert_eq!(samples.live.request.0.get().cloned(), chosen);
        for (kept, number, granted) in [(&mut before, 1, false), (&mut first, 2, true), (&mut second, 3, true)] {
            assert_eq!(*kept.open(), object(number, granted));
        }
    }

    #[test]
    fn those_that_are_over_wait_for_no_live_one_to_be_packed_small() {
        // As after a restart: whoever comes first by name is over.
        let samples = Samples::default();
        let bytes = |kept: &Kept| match &kept.form {
            Form::Packed(packed) => packed.bytes.len(),
            Form::Open(_) | Form::Both(..) => panic!("it is packed"),
        };
        let closed = |object: InstanceAccess| {
            let mut kept = Kept::new(object);
            kept.close(&samples);
            kept
        };
        let refused = closed(over(0, false));
        assert!(refused.is_settled() && samples.over.request.0.get().is_none(), "anybody can make one");
        let first = closed(over(1, true));
        let chosen = samples.over.request.0.get().cloned();
        let second = closed(over(2, true));
        let plain = serde_json::to_vec(&over(2, true)).unwrap().len();
        assert!(bytes(&second) <= OVER_BYTES_MAX, "{} of {plain} bytes", bytes(&second));
        let alone = Packed::new(&over(2, true), |_| None).unwrap().bytes.len();
        assert!(alone > 2 * bytes(&second), "{alone} bytes against nothing, {} against its kind", bytes(&second));
        assert!(bytes(&closed(over(3, false))) < bytes(&refused), "one that was refused is packed against it, too");
        let live = closed(object(4, true));
        assert_ne!(samples.live.request.0.get().cloned(), chosen, "a live one is packed against its own kind");
        let sight = |number: i64| Sight::new(jiff::Timestamp::from_second(number).unwrap());
        let mut seen = KeptSight::new(sight(1));
        seen.close(&samples, second.alike());
        assert!(samples.over.sight.0.get().is_some() && samples.live.sight.0.get().is_none());
        for (mut kept, object) in
            [(refused, over(0, false)), (first, over(1, true)), (second, over(2, true)), (live, object(4, true))]
        {
            assert_eq!(*kept.open(), object);
        }
        assert_eq!(*seen.open(), sight(1));
    }

    #[test]
    fn a_request_that_is_too_long_is_packed_and_is_no_sample() {
        let samples = Samples::default();
        let mut long = object(1, true);
        long.spec.reason = Some("x".repeat(SAMPLE_BYTES_MAX));
        let mut kept = Kept::new(long.clone());
        kept.close(&samples);
        assert!(is_packed(&kept) && samples.live.request.0.get().is_none());
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
