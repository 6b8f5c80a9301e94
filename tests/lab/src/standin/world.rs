//! The instances and endpoints that there are, and their XML.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::ops::Bound;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::xml::Xml;

/// An EC2 instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Instance {
    /// `i-` and 8 or 17 hexadecimal digits.
    pub id: String,
    /// `running`, `stopped`, `pending`, `stopping`, `shutting-down` or `terminated`.
    pub state: String,
    /// Such as `us-west-2a`.
    pub availability_zone: String,
    /// Such as `us-west-2`.
    pub region: String,
    /// Twelve digits. Other accounts do not see the instance.
    pub account_id: String,
    /// Its VPC.
    pub vpc_id: String,
    /// Its subnet.
    pub subnet_id: String,
    /// Its private IPv4 address.
    pub private_ip: Option<IpAddr>,
    /// Its public IPv4 address.
    pub public_ip: Option<IpAddr>,
    /// Its IPv6 address.
    pub ipv6: Option<IpAddr>,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// Where its sshd listens. The address identifies it to the metadata service.
    pub host_addr: Option<SocketAddr>,
}

impl Default for Instance {
    fn default() -> Self {
        Self {
            id: "i-0123456789abcdef0".into(),
            state: "running".into(),
            availability_zone: "us-west-2a".into(),
            region: "us-west-2".into(),
            account_id: super::ACCOUNT_ID.into(),
            vpc_id: "vpc-0123456789abcdef0".into(),
            subnet_id: "subnet-0123456789abcdef0".into(),
            private_ip: None,
            public_ip: None,
            ipv6: None,
            tags: BTreeMap::new(),
            host_addr: None,
        }
    }
}

/// An EC2 Instance Connect Endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Endpoint {
    /// `eice-` and 17 hexadecimal digits.
    pub id: String,
    /// Its region.
    pub region: String,
    /// Its VPC.
    pub vpc_id: String,
    /// Its subnet.
    pub subnet_id: String,
    /// `create-complete`, `create-in-progress`, `update-complete`, `delete-failed`, …
    pub state: String,
    /// The name that clients dial; in a lab usually the stand-in's own address with its port.
    pub dns_name: String,
}

impl Default for Endpoint {
    fn default() -> Self {
        Self {
            id: "eice-0123456789abcdef0".into(),
            region: "us-west-2".into(),
            vpc_id: "vpc-0123456789abcdef0".into(),
            subnet_id: "subnet-0123456789abcdef0".into(),
            state: "create-complete".into(),
            dns_name: String::new(),
        }
    }
}

/// An instance with what follows from it.
pub(super) struct Stored {
    pub(super) instance: Instance,
    /// The reservation's `<item>`.
    pub(super) xml: String,
    /// By the stand-in's clock.
    terminated: Option<Duration>,
}

#[derive(Default)]
struct Things {
    instances: BTreeMap<String, Arc<Stored>>,
    endpoints: BTreeMap<String, Arc<Endpoint>>,
    by_host: HashMap<IpAddr, String>,
}

/// All there is.
pub(super) struct World {
    things: RwLock<Things>,
    terminated_shown_for: Duration,
}

impl World {
    pub(super) fn new(terminated_shown_for: Duration) -> Self {
        Self { things: RwLock::default(), terminated_shown_for }
    }

    pub(super) fn put_instance(&self, instance: Instance, now: Duration) {
        let mut things = self.things.write().expect("no holder panics");
        let earlier = things.instances.get(&instance.id).cloned();
        let terminated =
            (instance.state == "terminated").then(|| earlier.as_ref().and_then(|it| it.terminated).unwrap_or(now));
        if let Some(host) = earlier.as_ref().and_then(|it| it.instance.host_addr) {
            things.by_host.remove(&host.ip());
        }
        if let Some(host) = instance.host_addr {
            things.by_host.insert(host.ip(), instance.id.clone());
        }
        let stored = Stored { xml: instance_xml(&instance), terminated, instance };
        things.instances.insert(stored.instance.id.clone(), Arc::new(stored));
    }

    pub(super) fn remove_instance(&self, id: &str) -> bool {
        let mut things = self.things.write().expect("no holder panics");
        let gone = things.instances.remove(id);
        if let Some(host) = gone.as_ref().and_then(|it| it.instance.host_addr) {
            things.by_host.remove(&host.ip());
        }
        gone.is_some()
    }

    pub(super) fn put_endpoint(&self, endpoint: Endpoint) {
        let mut things = self.things.write().expect("no holder panics");
        things.endpoints.insert(endpoint.id.clone(), Arc::new(endpoint));
    }

    pub(super) fn remove_endpoint(&self, id: &str) -> bool {
        self.things.write().expect("no holder panics").endpoints.remove(id).is_some()
    }

    /// The instance, unless it was terminated so long ago that it is no longer shown.
    pub(super) fn instance(&self, id: &str, now: Duration) -> Option<Arc<Stored>> {
        let things = self.things.read().expect("no holder panics");
        things.instances.get(id).filter(|it| self.is_shown(it, now)).cloned()
    }

    /// The instances after `after`, by id.
    pub(super) fn instances_after(&self, after: Option<&str>, now: Duration) -> Vec<Arc<Stored>> {
        let things = self.things.read().expect("no holder panics");
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        things
            .instances
            .range::<str, _>((from, Bound::Unbounded))
            .map(|(_, it)| it)
            .filter(|it| self.is_shown(it, now))
            .cloned()
            .collect()
    }

    /// The instance whose sshd listens at this address.
    pub(super) fn instance_of_host(&self, host: IpAddr) -> Option<Arc<Stored>> {
        let things = self.things.read().expect("no holder panics");
        things.by_host.get(&host).and_then(|id| things.instances.get(id)).cloned()
    }

    /// The instance with this private address (or IPv6 address) in this VPC.
    pub(super) fn instance_in_vpc(&self, region: &str, vpc_id: &str, address: IpAddr) -> Option<Arc<Stored>> {
        let things = self.things.read().expect("no holder panics");
        let is_it = |it: &&Arc<Stored>| {
            let it = &it.instance;
            it.region == region
                && it.vpc_id == vpc_id
                && it.state != "terminated"
                && (it.private_ip == Some(address) || it.ipv6 == Some(address))
        };
        things.instances.values().find(is_it).cloned()
    }

    pub(super) fn endpoint(&self, id: &str) -> Option<Arc<Endpoint>> {
        self.things.read().expect("no holder panics").endpoints.get(id).cloned()
    }

    pub(super) fn endpoints_after(&self, after: Option<&str>) -> Vec<Arc<Endpoint>> {
        let things = self.things.read().expect("no holder panics");
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        things.endpoints.range::<str, _>((from, Bound::Unbounded)).map(|(_, it)| it).cloned().collect()
    }

    fn is_shown(&self, it: &Stored, now: Duration) -> bool {
        it.terminated.is_none_or(|at| now.saturating_sub(at) < self.terminated_shown_for)
    }
}

/// The low byte of EC2's instance state code.
pub(super) fn state_code(state: &str) -> u8 {
    match state {
        "pending" => 0,
        "running" => 16,
        "shutting-down" => 32,
        "terminated" => 48,
        "stopping" => 64,
        _ => 80,
    }
}

fn instance_xml(it: &Instance) -> String {
    let serial = it.id.trim_start_matches("i-");
    let is_gone = it.state == "terminated";
    let mut xml = Xml::default();
    xml.node("item", |xml| {
        xml.leaf("reservationId", format_args!("r-{serial}"));
        xml.leaf("ownerId", &it.account_id);
        xml.empty("groupSet");
        xml.node("instancesSet", |xml| xml.node("item", |xml| instance_item(xml, it, serial, is_gone)));
    });
    xml.0
}

fn instance_item(xml: &mut Xml, it: &Instance, serial: &str, is_gone: bool) {
    xml.leaf("instanceId", &it.id);
    xml.leaf("imageId", "ami-0123456789abcdef0");
    xml.node("instanceState", |xml| {
        xml.leaf("code", state_code(&it.state));
        xml.leaf("name", &it.state);
    });
    let private_name = |ip: IpAddr| format!("ip-{}.{}.compute.internal", ip.to_string().replace('.', "-"), it.region);
    match it.private_ip {
        Some(ip) if !is_gone => xml.leaf("privateDnsName", private_name(ip)),
        _ => xml.empty("privateDnsName"),
    }
    match it.public_ip {
        Some(ip) if !is_gone => xml.leaf(
            "dnsName",
            format_args!("ec2-{}.{}.compute.amazonaws.com", ip.to_string().replace('.', "-"), it.region),
        ),
        _ => xml.empty("dnsName"),
    }
    xml.empty("reason");
    xml.leaf("amiLaunchIndex", 0);
    xml.empty("productCodes");
    xml.leaf("instanceType", "t3.micro");
    xml.leaf("launchTime", "2026-01-01T00:00:00.000Z");
    xml.node("placement", |xml| {
        xml.leaf("availabilityZone", &it.availability_zone);
        xml.empty("groupName");
        xml.leaf("tenancy", "default");
    });
    xml.node("monitoring", |xml| xml.leaf("state", "disabled"));
    // a terminated instance has lost its network
    if !is_gone {
        xml.leaf("subnetId", &it.subnet_id);
        xml.leaf("vpcId", &it.vpc_id);
        if let Some(ip) = it.private_ip {
            xml.leaf("privateIpAddress", ip);
        }
        if let Some(ip) = it.public_ip {
            xml.leaf("ipAddress", ip);
        }
        xml.leaf("sourceDestCheck", true);
    }
    xml.empty("groupSet");
    xml.leaf("architecture", "x86_64");
    xml.leaf("rootDeviceType", "ebs");
    xml.leaf("rootDeviceName", "/dev/xvda");
    xml.empty("blockDeviceMapping");
    xml.leaf("virtualizationType", "hvm");
    xml.empty("clientToken");
    if !it.tags.is_empty() {
        tag_set(xml, &it.tags);
    }
    xml.leaf("hypervisor", "xen");
    if is_gone {
        xml.empty("networkInterfaceSet");
    } else {
        xml.node("networkInterfaceSet", |xml| xml.node("item", |xml| interface_item(xml, it, serial)));
        if let Some(ip) = it.ipv6 {
            xml.leaf("ipv6Address", ip);
        }
    }
    xml.leaf("ebsOptimized", false);
    xml.node("metadataOptions", |xml| {
        xml.leaf("state", "applied");
        xml.leaf("httpTokens", "optional");
        xml.leaf("httpEndpoint", "enabled");
    });
}

fn interface_item(xml: &mut Xml, it: &Instance, serial: &str) {
    xml.leaf("networkInterfaceId", format_args!("eni-{serial}"));
    xml.leaf("subnetId", &it.subnet_id);
    xml.leaf("vpcId", &it.vpc_id);
    xml.leaf("ownerId", &it.account_id);
    xml.leaf("status", "in-use");
    let association = |xml: &mut Xml| {
        if let Some(ip) = it.public_ip {
            xml.node("association", |xml| {
                xml.leaf("publicIp", ip);
                xml.leaf("ipOwnerId", "amazon");
            });
        }
    };
    association(xml);
    if let Some(ip) = it.private_ip {
        xml.leaf("privateIpAddress", ip);
        xml.node("privateIpAddressesSet", |xml| {
            xml.node("item", |xml| {
                xml.leaf("privateIpAddress", ip);
                xml.leaf("primary", true);
                association(xml);
            });
        });
    }
    match it.ipv6 {
        Some(ip) => {
            xml.node("ipv6AddressesSet", |xml| xml.node("item", |xml| xml.leaf("ipv6Address", ip)));
        }
        None => xml.empty("ipv6AddressesSet"),
    }
}

fn tag_set(xml: &mut Xml, tags: &BTreeMap<String, String>) {
    xml.node("tagSet", |xml| {
        for (key, value) in tags {
            xml.node("item", |xml| {
                xml.leaf("key", key);
                xml.leaf("value", value);
            });
        }
    });
}

pub(super) fn endpoint_xml(it: &Endpoint, account_id: &str) -> String {
    let mut xml = Xml::default();
    xml.node("item", |xml| {
        xml.leaf("ownerId", account_id);
        xml.leaf("instanceConnectEndpointId", &it.id);
        xml.leaf(
            "instanceConnectEndpointArn",
            format_args!("arn:aws:ec2:{}:{account_id}:instance-connect-endpoint/{}", it.region, it.id),
        );
        xml.leaf("state", &it.state);
        xml.empty("stateMessage");
        xml.leaf("dnsName", &it.dns_name);
        xml.empty("networkInterfaceIdSet");
        xml.leaf("vpcId", &it.vpc_id);
        xml.leaf("availabilityZone", format_args!("{}a", it.region));
        xml.leaf("createdAt", Timestamp::UNIX_EPOCH);
        xml.leaf("subnetId", &it.subnet_id);
        xml.leaf("preserveClientIp", false);
        xml.empty("securityGroupIdSet");
        xml.empty("tagSet");
        xml.leaf("ipAddressType", "ipv4");
    });
    xml.0
}
