//! A cloud in memory, for the tests of this room.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use jiff::Timestamp;

use super::{Cloud, Gate, Pushed, Reply, class, locked};
use crate::domain::cloud::{
    AccountId, Endpoint, Failure, FailureClass, Instance, InstanceId, InstanceState, OsUser, Place, Region,
};
use crate::domain::key::PublicKey;
use crate::domain::push::{KeyPush, PushPermit};

/// What was called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Ids(Vec<InstanceId>),
    Tags(BTreeMap<String, String>),
    Endpoints(String),
    Push(InstanceId),
}

/// What a call does instead of answering.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    Fails(Failure),
    Hangs,
    Panics,
}

/// A cloud whose every call takes `latency`, and that journals calls.
#[derive(Default)]
pub(super) struct FakeCloud {
    pub(super) latency: Duration,
    pub(super) instances: Mutex<HashMap<InstanceId, Instance>>,
    pub(super) endpoints: Vec<Endpoint>,
    /// For the next calls, in order; then all is well.
    pub(super) faults: Mutex<VecDeque<Fault>>,
    pub(super) calls: Mutex<Vec<Call>>,
    pub(super) in_flight: Mutex<(usize, usize)>,
}

impl FakeCloud {
    pub(super) fn with(latency_ms: u64, instances: impl IntoIterator<Item = Instance>) -> Self {
        Self {
            latency: Duration::from_millis(latency_ms),
            instances: Mutex::new(instances.into_iter().map(|it| (it.id.clone(), it)).collect()),
            ..Self::default()
        }
    }

    pub(super) fn fail(&self, times: usize, class: FailureClass, code: &str) {
        let fault = Fault::Fails(class::failure(class, code, "as the test wants it"));
        locked(&self.faults).extend(std::iter::repeat_n(fault, times));
    }

    pub(super) fn calls(&self) -> Vec<Call> {
        locked(&self.calls).clone()
    }

    /// The most calls that were under way at once.
    pub(super) fn in_flight_max(&self) -> usize {
        locked(&self.in_flight).1
    }

    async fn called(&self, call: Call) -> Result<(), Failure> {
        locked(&self.calls).push(call);
        let fault = locked(&self.faults).pop_front();
        {
            let mut in_flight = locked(&self.in_flight);
            in_flight.0 += 1;
            in_flight.1 = in_flight.1.max(in_flight.0);
        }
        tokio::time::sleep(self.latency).await;
        locked(&self.in_flight).0 -= 1;
        match fault {
            None => Ok(()),
            Some(Fault::Fails(failure)) => Err(failure),
            Some(Fault::Hangs) => std::future::pending().await,
            Some(Fault::Panics) => panic!("as the test wants it"),
        }
    }
}

impl Cloud for FakeCloud {
    fn describe_by_ids<'a>(&'a self, _: &'a Place, ids: &'a [InstanceId]) -> Reply<'a, Vec<Instance>> {
        async move {
            self.called(Call::Ids(ids.to_vec())).await?;
            let instances = locked(&self.instances);
            Ok(ids.iter().filter_map(|id| instances.get(id).cloned()).collect())
        }
        .boxed()
    }

    fn describe_by_tags<'a>(&'a self, _: &'a Place, tags: &'a BTreeMap<String, String>) -> Reply<'a, Vec<Instance>> {
        async move {
            self.called(Call::Tags(tags.clone())).await?;
            // Like a filter whose pattern matches too much.
            Ok(locked(&self.instances).values().cloned().collect())
        }
        .boxed()
    }

    fn describe_endpoints<'a>(&'a self, _: &'a Place, vpc_id: &'a str) -> Reply<'a, Vec<Endpoint>> {
        async move {
            self.called(Call::Endpoints(vpc_id.to_owned())).await?;
            Ok(self.endpoints.iter().filter(|it| it.vpc_id == vpc_id).cloned().collect())
        }
        .boxed()
    }

    fn send_ssh_public_key<'a>(&'a self, push: &'a KeyPush, gate: Gate) -> Reply<'a, Pushed> {
        async move {
            if !gate() {
                return Err(class::failure(FailureClass::Bug, "GateShut", "the gate was shut"));
            }
            self.called(Call::Push(push.instance_id.clone())).await?;
            Ok(Pushed { request_id: format!("request-of-{}", push.instance_id) })
        }
        .boxed()
    }
}

/// The `n`th instance id.
pub(super) fn id(n: usize) -> InstanceId {
    InstanceId::parse(&format!("i-{n:017x}")).unwrap()
}

pub(super) fn place() -> Place {
    Place { region: Region::parse("us-west-2").unwrap() }
}

pub(super) fn instance(n: usize, tags: &[(&str, &str)]) -> Instance {
    Instance {
        id: id(n),
        account_id: AccountId::parse("123456789012").unwrap(),
        region: place().region,
        state: InstanceState::Running,
        availability_zone: Some("us-west-2a".into()),
        vpc_id: Some("vpc-1".into()),
        subnet_id: Some("subnet-1".into()),
        private_ip: None,
        public_ip: None,
        ipv6: None,
        tags: tags.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
    }
}

/// A push to the `n`th instance.
pub(super) fn push(n: usize) -> KeyPush {
    KeyPush {
        place: place(),
        instance_id: id(n),
        availability_zone: Some("us-west-2a".into()),
        os_user: OsUser::parse("ec2-user").unwrap(),
        key: PublicKey::parse("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl")
            .unwrap(),
    }
}

/// A permit for a push to the `n`th instance.
pub(super) fn permit(n: usize, not_after: Timestamp) -> PushPermit {
    PushPermit::for_test(not_after, push(n))
}

/// A wall clock that follows tokio's, so that paused tests move both; `offset` is a step of the wall clock alone.
pub(super) fn clock(offset: Arc<Mutex<Duration>>) -> super::Clock {
    let start = tokio::time::Instant::now();
    Arc::new(move || epoch() + (start.elapsed() + *locked(&offset)))
}

/// When every test begins.
pub(super) fn epoch() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}
