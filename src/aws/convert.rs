//! EC2's answers as values. What does not parse is left out and logged: one odd instance must not hide the others.

use std::borrow::Cow;
use std::str::FromStr;

use aws_sdk_ec2::types::{self, InstanceNetworkInterface, InstanceStateName, Reservation};

use crate::domain::cloud::{AccountId, Endpoint, Instance, InstanceId, InstanceState, Region};

/// Writes a filter's value so that it means itself. In a value `*` and `?` are wildcards, and `\` escapes.
pub(super) fn exact(value: &str) -> Cow<'_, str> {
    if !value.contains(['*', '?', '\\']) {
        return Cow::Borrowed(value);
    }
    let mut escaped = String::with_capacity(value.len() + 8);
    for c in value.chars() {
        if matches!(c, '*' | '?' | '\\') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    Cow::Owned(escaped)
}

/// Returns the instances of a reservation, which knows the account that owns them.
pub(super) fn instances(reservation: &Reservation, region: &Region) -> Vec<Instance> {
    let account_id = reservation.owner_id().and_then(|id| AccountId::parse(id).ok());
    let found = reservation.instances().iter().map(|it| (it.instance_id(), instance(it, account_id.as_ref(), region)));
    found
        .filter_map(|(id, instance)| {
            if instance.is_none() {
                tracing::warn!(instance_id = id, owner_id = reservation.owner_id(), %region, "left out an instance that does not parse");
            }
            instance
        })
        .collect()
}

fn instance(it: &types::Instance, account_id: Option<&AccountId>, region: &Region) -> Option<Instance> {
    Some(Instance {
        id: InstanceId::parse(it.instance_id()?).ok()?,
        account_id: account_id?.clone(),
        region: region.clone(),
        state: state(it.state().and_then(|state| state.name())),
        availability_zone: it.placement().and_then(|placement| placement.availability_zone()).and_then(text),
        vpc_id: it.vpc_id().and_then(text),
        subnet_id: it.subnet_id().and_then(text),
        private_ip: it.private_ip_address().and_then(parsed),
        public_ip: it.public_ip_address().and_then(parsed),
        ipv6: primary(it.network_interfaces()).and_then(ipv6).or(it.ipv6_address()).and_then(parsed),
        tags: it
            .tags()
            .iter()
            .filter_map(|tag| Some((tag.key()?.to_owned(), tag.value().unwrap_or_default().to_owned())))
            .collect(),
    })
}

fn state(name: Option<&InstanceStateName>) -> InstanceState {
    match name {
        Some(InstanceStateName::Pending) => InstanceState::Pending,
        Some(InstanceStateName::Running) => InstanceState::Running,
        Some(InstanceStateName::ShuttingDown) => InstanceState::ShuttingDown,
        Some(InstanceStateName::Terminated) => InstanceState::Terminated,
        Some(InstanceStateName::Stopping) => InstanceState::Stopping,
        Some(InstanceStateName::Stopped) => InstanceState::Stopped,
        // The SDK's enum grows: a new word is not running until we know it.
        _ => InstanceState::Unknown,
    }
}

/// Returns the interface with device index 0, on the first network card; EC2 lists them in any order.
fn primary(interfaces: &[InstanceNetworkInterface]) -> Option<&InstanceNetworkInterface> {
    let order = |interface: &InstanceNetworkInterface| {
        let attachment = interface.attachment();
        let card = attachment.and_then(|it| it.network_card_index()).unwrap_or(0);
        (attachment.and_then(|it| it.device_index()).unwrap_or(i32::MAX), card)
    };
    interfaces.iter().min_by_key(|interface| order(interface))
}

/// Returns the address that EC2 calls primary, else the first.
fn ipv6(interface: &InstanceNetworkInterface) -> Option<&str> {
    let addresses = interface.ipv6_addresses();
    let primary = addresses.iter().find(|address| address.is_primary_ipv6() == Some(true));
    primary.or(addresses.first()).and_then(|address| address.ipv6_address())
}

/// Returns the endpoint, if it takes connections. Under FIPS its name is the FIPS one, or there is none.
pub(super) fn endpoint(it: &types::Ec2InstanceConnectEndpoint, fips: bool) -> Option<Endpoint> {
    let state = it.state().map_or("", |state| state.as_str());
    if state != "create-complete" && !state.starts_with("update-") {
        return None;
    }
    let dns_name = if fips { it.fips_dns_name() } else { it.dns_name() };
    let endpoint = (|| {
        Some(Endpoint {
            id: text(it.instance_connect_endpoint_id()?)?,
            vpc_id: text(it.vpc_id()?)?,
            subnet_id: text(it.subnet_id()?)?,
            dns_name: text(dns_name?)?,
        })
    })();
    if endpoint.is_none() {
        tracing::warn!(
            endpoint_id = it.instance_connect_endpoint_id(),
            fips,
            "left out an endpoint that lacks a field"
        );
    }
    endpoint
}

/// EC2 writes an empty element for what is not there.
fn text(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn parsed<T: FromStr>(text: &str) -> Option<T> {
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filters_value_means_itself() {
        for (value, expected) in [
            ("web-1", "web-1"),
            ("*", r"\*"),
            ("web-?", r"web-\?"),
            (r"a\*", r"a\\\*"),
            ("", ""),
            ("größe*", r"größe\*"),
        ] {
            assert_eq!(exact(value), expected);
        }
    }

    #[test]
    fn an_instance_without_id_or_owner_is_left_out_and_the_others_stay() {
        let region = Region::parse("us-west-2").unwrap();
        let named = |id: &str| types::Instance::builder().instance_id(id).build();
        let reservation = Reservation::builder()
            .owner_id("123456789012")
            .instances(named("i-0123456789abcdef0"))
            .instances(named("i-not one"))
            .instances(types::Instance::builder().build())
            .build();
        let found = instances(&reservation, &region);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].state, InstanceState::Unknown);
        let ownerless = Reservation::builder().instances(named("i-0123456789abcdef0")).build();
        assert!(instances(&ownerless, &region).is_empty());
    }

    #[test]
    fn an_endpoint_that_is_going_away_is_no_endpoint() {
        let endpoint_in = |state: &str, fips| {
            let it = types::Ec2InstanceConnectEndpoint::builder()
                .instance_connect_endpoint_id("eice-1")
                .vpc_id("vpc-1")
                .subnet_id("subnet-1")
                .dns_name("plain.example")
                .fips_dns_name("fips.example")
                .state(types::Ec2InstanceConnectEndpointState::from(state));
            endpoint(&it.build(), fips).map(|endpoint| endpoint.dns_name)
        };
        for state in ["create-complete", "update-in-progress", "update-complete", "update-failed"] {
            assert_eq!(endpoint_in(state, false).as_deref(), Some("plain.example"), "{state}");
        }
        for state in ["create-in-progress", "create-failed", "delete-in-progress", "delete-complete", ""] {
            assert_eq!(endpoint_in(state, false), None, "{state}");
        }
        assert_eq!(endpoint_in("create-complete", true).as_deref(), Some("fips.example"));
    }
}
