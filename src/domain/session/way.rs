//! The way to an instance that a grant's status names, and what of it a gateway dials.
//!
//! A private address means something in its own network alone: in another one it may be anybody's. So of several
//! addresses the private one is dialled only in the VPCs that the gateway's operators name, or if there is no other.

use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;

use crate::api::{ConnectionMethod, InstanceAccessStatus, KeyDelivery};
use crate::domain::cloud::{Place, Region, TunnelTo};

use super::{Dialling, Refusal, SessionEnd, SessionGrant, request_name};

/// The ports that an endpoint connects to. Source: AWS's own refusal of any other.
pub const ENDPOINT_PORTS: [u16; 2] = [22, 3389];
/// The longest id that is asked for; AWS's have 22 characters.
const ID_LENGTH_MAX: usize = 64;

/// How an instance is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// By one of its addresses.
    Direct(Addresses),
    /// Through an EC2 Instance Connect Endpoint.
    Endpoint(Through),
}

/// The addresses of an instance that is reached by one of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The one that the operator chose.
    pub chosen: IpAddr,
    /// Its IPv6 address.
    pub ipv6: Option<IpAddr>,
    /// Its private address.
    pub private: Option<IpAddr>,
    /// The network in which that means it.
    pub vpc_id: Option<String>,
}

/// An endpoint, and whom it connects to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Through {
    /// Where the endpoint is.
    pub place: Place,
    /// The VPC that it serves.
    pub vpc_id: String,
    /// Which one.
    pub endpoint_id: String,
    /// The instance, as seen from that VPC.
    pub address: IpAddr,
}

/// What is dialled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// These one after the other, until one answers; there is at least one.
    Direct(Vec<SocketAddr>),
    /// This endpoint, for a tunnel.
    Endpoint(TunnelTo),
}

impl std::fmt::Display for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Direct(addresses) => {
                let all: Vec<String> = addresses.iter().map(ToString::to_string).collect();
                f.write_str(&all.join(", "))
            }
            Self::Endpoint(to) => {
                write!(f, "{} through {}", SocketAddr::new(to.address, to.port), to.endpoint_id)
            }
        }
    }
}

/// Reads the way out of status; `None` if what stands there does not fit together.
pub(super) fn way_of(status: &InstanceAccessStatus) -> Option<Way> {
    let (connection, instance) = (status.connection.as_ref()?, status.instance.as_ref()?);
    let parsed = |text: &str| text.parse::<IpAddr>().ok().map(|address| address.to_canonical());
    let address = parsed(&connection.address)?;
    match connection.method {
        ConnectionMethod::Direct => Some(Way::Direct(Addresses {
            chosen: address,
            ipv6: instance.ipv6.as_deref().and_then(parsed).filter(IpAddr::is_ipv6),
            private: instance.private_ip.as_deref().and_then(parsed),
            vpc_id: instance.vpc_id.clone(),
        })),
        ConnectionMethod::Endpoint => Some(Way::Endpoint(Through {
            place: Place { region: Region::parse(instance.region.as_deref()?).ok()? },
            vpc_id: instance.vpc_id.clone().filter(|id| is_id(id))?,
            endpoint_id: connection.endpoint_id.clone().filter(|id| is_id(id))?,
            address,
        })),
        ConnectionMethod::Auto => None,
    }
}

/// Whether it could be one of AWS's ids: it goes into a look-up and into a request that is signed.
fn is_id(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty() && text.len() <= ID_LENGTH_MAX && text.bytes().all(is_plain)
}

/// What is dialled for a grant, if a session is to end at `end_time` at the latest.
pub(super) fn destination(
    grant: &SessionGrant,
    end_time: Timestamp,
    dialling: &Dialling,
) -> Result<Destination, Refusal> {
    let request = || request_name(&grant.request);
    if let Way::Endpoint(through) = &grant.way {
        if !dialling.endpoints {
            // The command of a grant whose key gateways deliver leads here again.
            let remedy = match grant.delivery {
                KeyDelivery::Continuous => {
                    format!("type the command of {}, in status.connection.command", request())
                }
                KeyDelivery::OnConnect => "tell the operators".to_owned(),
            };
            return Err(Refusal::Endpoint { instance_id: grant.instance_id.clone(), remedy });
        }
        if !ENDPOINT_PORTS.contains(&grant.port) {
            let endpoint_id = through.endpoint_id.clone();
            return Err(Refusal::EndpointPort { request: request(), port: grant.port, endpoint_id });
        }
    }
    if !dialling.ports.contains(&grant.port) {
        let served: Vec<String> = dialling.ports.iter().map(ToString::to_string).collect();
        return Err(Refusal::PortNotServed { request: request(), port: grant.port, served: served.join(", ") });
    }
    let never = || Refusal::NeverDialled { request: request() };
    match &grant.way {
        Way::Direct(addresses) => {
            let mut addresses = in_order(addresses, dialling);
            addresses.retain(|address| !dialling.never.has(*address));
            if addresses.is_empty() {
                return Err(never());
            }
            let socket = |address| SocketAddr::new(address, grant.port);
            Ok(Destination::Direct(addresses.into_iter().map(socket).collect()))
        }
        Way::Endpoint(through) if dialling.never.has(through.address) => Err(never()),
        Way::Endpoint(Through { place, vpc_id, endpoint_id, address }) => Ok(Destination::Endpoint(TunnelTo {
            place: place.clone(),
            vpc_id: vpc_id.clone(),
            endpoint_id: endpoint_id.clone(),
            address: *address,
            port: grant.port,
            end_time,
        })),
    }
}

/// The addresses in the order in which they are tried, each once.
fn in_order(addresses: &Addresses, dialling: &Dialling) -> Vec<IpAddr> {
    let Addresses { chosen, ipv6, private, vpc_id } = addresses;
    let is_near = vpc_id.as_ref().is_some_and(|vpc_id| dialling.private_vpcs.contains(vpc_id));
    let mut order = Vec::with_capacity(3);
    for address in [private.filter(|_| is_near), Some(*chosen), *ipv6].into_iter().flatten() {
        if !order.contains(&address) {
            order.push(address);
        }
    }
    order
}

/// Why a session through a tunnel ended, which AWS closes at the end of its time as if the instance did: because of its
/// grant, unless the tunnel `is_whole`, as long as there is any.
pub fn tunnel_end(end: SessionEnd, is_over: bool, is_whole: bool) -> SessionEnd {
    match (end, is_over) {
        (SessionEnd::InstanceLeft, true) if is_whole => SessionEnd::TunnelOver,
        (SessionEnd::InstanceLeft, true) => SessionEnd::Expired,
        (end, _) => end,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tunnel_that_is_over_was_cut_by_its_grant_or_by_the_hour_and_no_other_end_is_one_of_these() {
        for (end, is_over, is_whole, expected) in [
            (SessionEnd::InstanceLeft, false, false, SessionEnd::InstanceLeft),
            (SessionEnd::InstanceLeft, false, true, SessionEnd::InstanceLeft),
            (SessionEnd::InstanceLeft, true, false, SessionEnd::Expired),
            (SessionEnd::InstanceLeft, true, true, SessionEnd::TunnelOver),
            (SessionEnd::ClientLeft, true, true, SessionEnd::ClientLeft),
            (SessionEnd::ClientLeft, true, false, SessionEnd::ClientLeft),
        ] {
            assert_eq!(tunnel_end(end, is_over, is_whole), expected, "{end:?} {is_over} {is_whole}");
        }
    }

    #[test]
    fn an_id_is_plain() {
        assert!(is_id("eice-0123456789abcdef0") && is_id("vpc-0a1"));
        for text in ["", "eice-*", "eice-1&remotePort=1", "eice 1", "EICE-1", "eice-1/..", "eice-é", &"a".repeat(65)] {
            assert!(!is_id(text), "{text:?}");
        }
    }
}
