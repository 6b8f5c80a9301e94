//! The real cloud: the AWS SDK for Rust, with a time limit on everything and one attempt for a push.
//!
//! Configuration is the SDK's own default chain: `AWS_ENDPOINT_URL` and `AWS_ENDPOINT_URL_EC2` (`…_EC2_INSTANCE_CONNECT`),
//! profiles, web identity (IRSA), pod identity, FIPS, dual-stack. TLS is the SDK's default client: rustls on aws-lc.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;
use std::time::Duration;

use aws_config::timeout::TimeoutConfig;
use aws_config::{AppName, BehaviorVersion, SdkConfig};
use aws_credential_types::provider::ProvideCredentials;
use aws_sdk_ec2::config::retry::RetryConfig;
use aws_sdk_ec2::config::{ConfigBag, Intercept, RuntimeComponents, StalledStreamProtectionConfig};
use aws_sdk_ec2::error::BoxError;
use aws_sdk_ec2::types::Filter;
use aws_sdk_ec2instanceconnect::operation::RequestId;
use aws_smithy_runtime_api::client::interceptors::context::BeforeTransmitInterceptorContextRef;
use futures::FutureExt;

use crate::domain::cloud::{Endpoint, Failure, FailureClass, Instance, InstanceId, Place, Region};
use crate::domain::push::{KeyPush, PUSH_TIMEOUT};

use super::class::{self, failure};
use super::recent::Recent;
use super::{Cloud, Gate, PLACES_MAX, Pushed, Reply, TAGGED_INSTANCES_MAX, convert, locked};

mod failures;
use failures::failure_of;

/// How long a connection may take. A first packet that is lost is sent again after 1 s, and after 3 s: what comes through then
/// has two seconds for its answer and for TLS. And half of a push is left for the push.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const _: () = assert!(2 * CONNECT_TIMEOUT.as_secs() <= PUSH_TIMEOUT.as_secs());

/// How we appear in CloudTrail's `userAgent`.
const APP_NAME: &str = "instance-access";
/// The most pages of one look-up. EC2 may send empty ones; it sends no hundred for 200 ids.
const PAGES_MAX: usize = 20;
/// Items on a page of a look-up by ids: EC2's own maximum, so that 200 ids are one page.
const PAGE_ITEMS: i32 = 1000;
/// Endpoints on a page. EC2's maximum is 50.
const PAGE_ENDPOINTS: i32 = 50;
/// How long credentials are looked for, where nothing but a word in the log waits for them.
const CREDENTIALS_TIMEOUT: Duration = Duration::from_secs(30);
/// The states in which an endpoint takes connections, also while and after it is changed.
const ENDPOINT_STATES: [&str; 4] = ["create-complete", "update-in-progress", "update-complete", "update-failed"];
/// The states of an instance that may run again.
const LIVING_STATES: [&str; 4] = ["pending", "running", "stopping", "stopped"];

/// How long calls may take, and how often look-ups are tried.
#[derive(Clone, Copy, Debug)]
pub struct CallLimits {
    /// To connect: the name's look-up, TCP and TLS together.
    pub connect: Duration,
    /// One attempt of a look-up.
    pub lookup_attempt: Duration,
    /// All attempts of one page of a look-up, the pauses between them included.
    pub lookup: Duration,
    /// Attempts of a look-up.
    pub lookup_attempts: u32,
    /// A push: one attempt, credentials included.
    pub push: Duration,
}

impl Default for CallLimits {
    fn default() -> Self {
        Self {
            connect: CONNECT_TIMEOUT,
            // EC2 answers in half a second; twice that many seconds means it will not.
            lookup_attempt: Duration::from_secs(8),
            lookup: Duration::from_secs(20),
            lookup_attempts: 3,
            push: PUSH_TIMEOUT,
        }
    }
}

/// AWS itself. One pair of clients for each region in use.
pub struct SdkCloud {
    config: SdkConfig,
    limits: CallLimits,
    clients: Mutex<Recent<Region, Clients>>,
}

#[derive(Clone)]
struct Clients {
    ec2: aws_sdk_ec2::Client,
    eic: aws_sdk_ec2instanceconnect::Client,
}

impl fmt::Debug for SdkCloud {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SdkCloud").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl SdkCloud {
    /// Loads the default configuration, from the environment, profiles and the machine.
    ///
    /// Reads files, and may ask the instance metadata service. Credentials are fetched at the first call.
    pub async fn load() -> Self {
        let name = AppName::new(APP_NAME).expect("a constant of letters and a hyphen, used by a test");
        let config = aws_config::defaults(BehaviorVersion::latest()).app_name(name).load().await;
        Self::new(config, CallLimits::default())
    }

    /// Uses a configuration that was loaded elsewhere. Its retries and time limits are replaced by ours.
    pub fn new(config: SdkConfig, limits: CallLimits) -> Self {
        Self { config, limits, clients: Mutex::new(Recent::new()) }
    }

    /// Whether there is something to sign calls with now; looks for it, for a while.
    pub async fn has_credentials(&self) -> bool {
        let Some(provider) = self.config.credentials_provider() else { return false };
        matches!(tokio::time::timeout(CREDENTIALS_TIMEOUT, provider.provide_credentials()).await, Ok(Ok(_)))
    }

    /// Returns the region of the configuration: the operator's own.
    pub fn region(&self) -> Option<Region> {
        self.config.region().and_then(|region| Region::parse(region.as_ref()).ok())
    }

    /// Returns the configuration, for what is no call of the SDK's.
    pub(super) fn config(&self) -> &SdkConfig {
        &self.config
    }

    /// Returns the region's clients. At [`PLACES_MAX`] the pair unused for longest goes; it costs only its connections.
    fn clients(&self, region: &Region) -> Clients {
        let mut all = locked(&self.clients);
        if let Some(clients) = all.get(region) {
            return clients;
        }
        all.make_room(PLACES_MAX, |_| true);
        let clients = self.new_clients(region);
        all.insert(region.clone(), clients.clone());
        clients
    }

    fn new_clients(&self, region: &Region) -> Clients {
        let limits = &self.limits;
        let region = aws_config::Region::new(region.as_str().to_owned());
        let stalled = StalledStreamProtectionConfig::enabled().build();
        let lookup = TimeoutConfig::builder()
            .connect_timeout(limits.connect)
            .operation_attempt_timeout(limits.lookup_attempt)
            .operation_timeout(limits.lookup)
            .build();
        let push = TimeoutConfig::builder()
            .connect_timeout(limits.connect)
            .operation_attempt_timeout(limits.push)
            .operation_timeout(limits.push)
            .build();
        let ec2 = aws_sdk_ec2::config::Builder::from(&self.config)
            .region(region.clone())
            .timeout_config(lookup)
            .retry_config(RetryConfig::standard().with_max_attempts(limits.lookup_attempts))
            .stalled_stream_protection(stalled.clone())
            .build();
        let eic = aws_sdk_ec2instanceconnect::config::Builder::from(&self.config)
            .region(region)
            .timeout_config(push)
            // One attempt: whoever makes permits decides on the next, with its deadline before its eyes.
            .retry_config(RetryConfig::disabled())
            .stalled_stream_protection(stalled)
            .build();
        Clients { ec2: aws_sdk_ec2::Client::from_conf(ec2), eic: aws_sdk_ec2instanceconnect::Client::from_conf(eic) }
    }

    /// Describes instances page by page, until there are no more or `items_max` are enough.
    async fn describe(
        &self,
        place: &Place,
        filters: Vec<Filter>,
        page_items: i32,
        items_max: usize,
    ) -> Result<Vec<Instance>, Failure> {
        let ec2 = self.clients(&place.region).ec2;
        let mut instances = Vec::new();
        let mut token = None;
        for _ in 0..PAGES_MAX {
            let call = ec2.describe_instances().set_filters(Some(filters.clone())).max_results(page_items);
            let page = call.set_next_token(token).send().await.map_err(|error| failure_of(&error))?;
            for reservation in page.reservations() {
                instances.extend(convert::instances(reservation, &place.region));
            }
            token = page.next_token().filter(|token| !token.is_empty()).map(str::to_owned);
            if token.is_none() || instances.len() >= items_max {
                instances.truncate(items_max);
                return Ok(instances);
            }
        }
        Err(pages_without_end())
    }
}

/// An answer cut off would make an instance look absent.
fn pages_without_end() -> Failure {
    let text = format!("there was more after {PAGES_MAX} pages");
    failure(FailureClass::Retry, class::PAGES_WITHOUT_END, &text)
}

fn filter<'a>(name: &str, values: impl IntoIterator<Item = &'a str>) -> Filter {
    Filter::builder().name(name).set_values(Some(values.into_iter().map(str::to_owned).collect())).build()
}

impl Cloud for SdkCloud {
    fn describe_by_ids<'a>(&'a self, place: &'a Place, ids: &'a [InstanceId]) -> Reply<'a, Vec<Instance>> {
        async move {
            if ids.is_empty() {
                return Ok(Vec::new());
            }
            let filters = vec![filter("instance-id", ids.iter().map(InstanceId::as_str))];
            self.describe(place, filters, PAGE_ITEMS, usize::MAX).await
        }
        .boxed()
    }

    fn describe_by_tags<'a>(
        &'a self,
        place: &'a Place,
        tags: &'a BTreeMap<String, String>,
    ) -> Reply<'a, Vec<Instance>> {
        async move {
            if tags.is_empty() {
                let text = "no tags were named, which would mean every instance";
                return Err(failure(FailureClass::Invalid, "InvalidParameterValue", text));
            }
            let mut filters: Vec<Filter> =
                tags.iter().map(|(key, value)| filter(&format!("tag:{key}"), [&*convert::exact(value)])).collect();
            filters.push(filter("instance-state-name", LIVING_STATES));
            let page_items = i32::try_from(TAGGED_INSTANCES_MAX).unwrap_or(PAGE_ITEMS);
            self.describe(place, filters, page_items, TAGGED_INSTANCES_MAX).await
        }
        .boxed()
    }

    fn describe_endpoints<'a>(&'a self, place: &'a Place, vpc_id: &'a str) -> Reply<'a, Vec<Endpoint>> {
        async move {
            let ec2 = self.clients(&place.region).ec2;
            let fips = self.config.use_fips() == Some(true);
            let filters = vec![filter("vpc-id", [&*convert::exact(vpc_id)]), filter("state", ENDPOINT_STATES)];
            let mut endpoints = Vec::new();
            let mut token = None;
            for _ in 0..PAGES_MAX {
                let call = ec2.describe_instance_connect_endpoints().set_filters(Some(filters.clone()));
                let call = call.max_results(PAGE_ENDPOINTS).set_next_token(token);
                let page = call.send().await.map_err(|error| failure_of(&error))?;
                endpoints.extend(page.instance_connect_endpoints().iter().filter_map(|it| convert::endpoint(it, fips)));
                token = page.next_token().filter(|token| !token.is_empty()).map(str::to_owned);
                if token.is_none() {
                    return Ok(endpoints);
                }
            }
            Err(pages_without_end())
        }
        .boxed()
    }

    fn send_ssh_public_key<'a>(&'a self, push: &'a KeyPush, gate: Gate) -> Reply<'a, Pushed> {
        async move {
            let eic = self.clients(&push.place.region).eic;
            let answer = eic
                .send_ssh_public_key()
                .instance_id(push.instance_id.as_str())
                .instance_os_user(push.os_user.as_str())
                .ssh_public_key(push.key.openssh())
                .set_availability_zone(push.availability_zone.clone())
                .customize()
                .interceptor(AskGate(gate))
                .send()
                .await
                .map_err(|error| failure_of(&error))?;
            let header = RequestId::request_id(&answer);
            let request_id = answer.request_id.as_deref().or(header).unwrap_or_default().to_owned();
            if !answer.success {
                let text = format!("request {request_id} came back without success and without an error");
                return Err(failure(FailureClass::Retry, class::NOT_SUCCESSFUL, &text));
            }
            Ok(Pushed { request_id })
        }
        .boxed()
    }
}

/// Asks the gate when the request is signed and nothing but the wire is left.
struct AskGate(Gate);

impl fmt::Debug for AskGate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AskGate")
    }
}

impl Intercept for AskGate {
    fn name(&self) -> &'static str {
        "AskGate"
    }

    fn read_before_transmit(
        &self,
        _: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if (self.0)() { Ok(()) } else { Err("the push may no longer leave".into()) }
    }
}

#[cfg(test)]
mod tests;
