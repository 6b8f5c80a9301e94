//! How to reach an instance: which address, through which endpoint, and what a person types.
//!
//! Pure. Who may use which method is the policy's business; whether the address answers is nobody's: nothing is
//! probed, because sshd penalises an address that knocks and leaves.

use std::net::IpAddr;

use crate::api::ConnectionMethod as Method;

use super::cloud::{Endpoint, Instance, InstanceId, OsUser, Region};

mod gateway;

pub use gateway::{GatewayAddress, command_through};

/// The longest tunnel that an EC2 Instance Connect Endpoint keeps open. Source: `maxTunnelDuration`, 1..3600 s.
pub const TUNNEL_SECONDS_MAX: u16 = 3600;
/// The port that is left out of a command, since it is everyone's default.
const SSH_PORT: u16 = 22;

/// The way that was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// Dial the address.
    Direct {
        /// Where sshd listens.
        address: IpAddr,
    },
    /// Ask the endpoint to dial the address.
    Endpoint {
        /// The endpoint's id, `eice-…`.
        endpoint_id: String,
        /// Where sshd listens, as seen from the VPC.
        address: IpAddr,
    },
}

/// Why there is no way; the text says what would make one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRoute {
    /// The instance has no address at all: it is stopped, or on its way up or down.
    #[error("{instance_id} has no IP address; start it, and the request goes on by itself")]
    NoAddress {
        /// Which instance.
        instance_id: InstanceId,
    },
    /// An address that only an endpoint reaches, and no VPC that could hold one.
    #[error(
        "{instance_id} is in no VPC, so no EC2 Instance Connect Endpoint can reach it; ask with spec.connection.method Direct"
    )]
    NoVpc {
        /// Which instance.
        instance_id: InstanceId,
    },
    /// The VPC has no endpoint that takes connections.
    #[error(
        "{vpc_id} has no EC2 Instance Connect Endpoint that takes connections, and {instance_id} has no address that is reached without one; create one in its VPC, or, if you are inside that network, ask with spec.connection.method Direct"
    )]
    NoEndpoint {
        /// Which instance.
        instance_id: InstanceId,
        /// Where an endpoint is missing.
        vpc_id: String,
    },
}

/// Tells whether `choose` will look at endpoints, so that nobody fetches them in vain.
pub fn needs_endpoints(method: Method, instance: &Instance) -> bool {
    instance.vpc_id.is_some()
        && match method {
            Method::Auto => instance.public_ip.is_none() && instance.private_ip.is_some(),
            Method::Direct => false,
            Method::Endpoint => instance.private_ip.is_some() || instance.ipv6.is_some(),
        }
}

/// Chooses the way to `instance`, in the order of AWS's own command line.
///
/// One difference: where that gives up because the VPC has no endpoint, `Auto` goes on to the IPv6 address, if there
/// is one. `endpoints` may be in any order and of any VPC: the answer depends on their ids alone.
///
/// # Errors
/// A [`NoRoute`] says what is missing.
pub fn choose(method: Method, instance: &Instance, endpoints: &[Endpoint]) -> Result<Route, NoRoute> {
    let public = instance.public_ip.map(IpAddr::V4);
    let private = instance.private_ip.map(IpAddr::V4);
    let ipv6 = instance.ipv6.map(IpAddr::V6);
    if public.or(private).or(ipv6).is_none() {
        return Err(NoRoute::NoAddress { instance_id: instance.id.clone() });
    }
    let direct = |address| Route::Direct { address };
    match method {
        Method::Direct => Ok(direct(public.or(ipv6).or(private).expect("one of them is there, see above"))),
        Method::Auto => match (public, private, ipv6) {
            (Some(public), _, _) => Ok(direct(public)),
            (None, Some(private), None) => through_endpoint(instance, private, endpoints),
            (None, Some(private), Some(ipv6)) => {
                Ok(through_endpoint(instance, private, endpoints).unwrap_or_else(|_| direct(ipv6)))
            }
            (None, None, Some(ipv6)) => Ok(direct(ipv6)),
            (None, None, None) => Err(NoRoute::NoAddress { instance_id: instance.id.clone() }),
        },
        Method::Endpoint => match private.or(ipv6) {
            Some(address) => through_endpoint(instance, address, endpoints),
            None => Err(NoRoute::NoAddress { instance_id: instance.id.clone() }),
        },
    }
}

/// Picks the endpoint of the instance's own subnet, else any of its VPC; of several, the first by id.
fn through_endpoint(instance: &Instance, address: IpAddr, endpoints: &[Endpoint]) -> Result<Route, NoRoute> {
    let Some(vpc_id) = &instance.vpc_id else {
        return Err(NoRoute::NoVpc { instance_id: instance.id.clone() });
    };
    let elsewhere = |endpoint: &Endpoint| Some(&endpoint.subnet_id) != instance.subnet_id.as_ref();
    endpoints
        .iter()
        .filter(|endpoint| endpoint.vpc_id == *vpc_id)
        .min_by_key(|endpoint| (elsewhere(endpoint), &endpoint.id))
        .map(|endpoint| Route::Endpoint { endpoint_id: endpoint.id.clone(), address })
        .ok_or_else(|| NoRoute::NoEndpoint { instance_id: instance.id.clone(), vpc_id: vpc_id.clone() })
}

/// Writes what a person types to connect, one line that a POSIX shell reads as meant.
///
/// `tunnel_seconds` bounds a tunnel through an endpoint, and is held to 1..=[`TUNNEL_SECONDS_MAX`]: AWS cuts the
/// session then, which is the one end of a session that needs nothing of ours. A direct route ignores it.
pub fn command(
    route: &Route,
    instance_id: &InstanceId,
    region: &Region,
    os_user: &OsUser,
    port: u16,
    tunnel_seconds: u16,
) -> String {
    match route {
        Route::Direct { address } => {
            let port = if port == SSH_PORT { String::new() } else { format!(" -p {port}") };
            format!("ssh{port} {}", destination(os_user, &address.to_string()))
        }
        Route::Endpoint { .. } => {
            let port = if port == SSH_PORT { String::new() } else { format!(" --remote-port {port}") };
            let seconds = tunnel_seconds.clamp(1, TUNNEL_SECONDS_MAX);
            format!(
                "ssh -o ProxyCommand='aws ec2-instance-connect open-tunnel --instance-id {instance_id} --region {region}{port} --max-tunnel-duration {seconds}' {}",
                destination(os_user, instance_id.as_str())
            )
        }
    }
}

/// `USER@HOST`, quoted if the login has a `$`: the one character of [`OsUser`] that a shell would read.
fn destination(os_user: &OsUser, host: &str) -> String {
    let plain = format!("{os_user}@{host}");
    if plain.contains('$') { format!("'{plain}'") } else { plain }
}

#[cfg(test)]
mod tests;
