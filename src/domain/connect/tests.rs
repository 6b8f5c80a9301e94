//! AWS's order row by row, and what a shell makes of the command.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::domain::cloud::{AccountId, InstanceState};

const PUBLIC: &str = "203.0.113.7";
const PRIVATE: &str = "10.0.1.7";
const IPV6: &str = "2001:db8::7";

fn instance(public: Option<&str>, private: Option<&str>, ipv6: Option<&str>) -> Instance {
    Instance {
        id: InstanceId::parse("i-0123456789abcdef0").unwrap(),
        account_id: AccountId::parse("123456789012").unwrap(),
        region: Region::parse("us-west-2").unwrap(),
        state: InstanceState::Running,
        availability_zone: None,
        vpc_id: Some("vpc-1".into()),
        subnet_id: Some("subnet-1".into()),
        private_ip: private.map(|ip| ip.parse().unwrap()),
        public_ip: public.map(|ip| ip.parse().unwrap()),
        ipv6: ipv6.map(|ip| ip.parse().unwrap()),
        tags: BTreeMap::new(),
    }
}

fn endpoint(id: &str, vpc_id: &str, subnet_id: &str) -> Endpoint {
    Endpoint { id: id.into(), vpc_id: vpc_id.into(), subnet_id: subnet_id.into(), dns_name: format!("{id}.example") }
}

/// Says a route in one word and an address, or why there is none.
fn told(route: Result<Route, NoRoute>) -> String {
    match route {
        Ok(Route::Direct { address }) => format!("direct {address}"),
        Ok(Route::Endpoint { endpoint_id, address }) => format!("{endpoint_id} {address}"),
        Err(NoRoute::NoAddress { .. }) => "no address".into(),
        Err(NoRoute::NoVpc { .. }) => "no vpc".into(),
        Err(NoRoute::NoEndpoint { .. }) => "no endpoint".into(),
    }
}

#[track_caller]
fn check(method: Method, addresses: (bool, bool, bool), with_endpoint: bool, expected: &str) {
    let (public, private, ipv6) = addresses;
    let instance = instance(public.then_some(PUBLIC), private.then_some(PRIVATE), ipv6.then_some(IPV6));
    let endpoints: Vec<_> = with_endpoint.then(|| endpoint("eice-1", "vpc-1", "subnet-1")).into_iter().collect();
    assert_eq!(told(choose(method, &instance, &endpoints)), expected);
}

#[test]
fn the_order_of_addresses_is_that_of_awss_command_line() {
    use Method::{Auto, Direct, Endpoint};
    let (public, private, ipv6) = ("direct 203.0.113.7", "direct 10.0.1.7", "direct 2001:db8::7");
    let (by_private, by_ipv6) = ("eice-1 10.0.1.7", "eice-1 2001:db8::7");
    // (public, private, ipv6): what each method makes of it, with an endpoint and without.
    for (addresses, auto, auto_without, direct, through, through_without) in [
        ((true, true, true), public, public, public, by_private, "no endpoint"),
        ((true, true, false), public, public, public, by_private, "no endpoint"),
        ((true, false, true), public, public, public, by_ipv6, "no endpoint"),
        ((true, false, false), public, public, public, "no address", "no address"),
        ((false, true, true), by_private, ipv6, ipv6, by_private, "no endpoint"),
        ((false, true, false), by_private, "no endpoint", private, by_private, "no endpoint"),
        ((false, false, true), ipv6, ipv6, ipv6, by_ipv6, "no endpoint"),
        ((false, false, false), "no address", "no address", "no address", "no address", "no address"),
    ] {
        check(Auto, addresses, true, auto);
        check(Auto, addresses, false, auto_without);
        check(Direct, addresses, true, direct);
        check(Direct, addresses, false, direct);
        check(Endpoint, addresses, true, through);
        check(Endpoint, addresses, false, through_without);
    }
}

#[test]
fn the_endpoint_of_the_own_subnet_comes_first_then_the_vpcs_first_by_id() {
    let instance = instance(None, Some(PRIVATE), None);
    let own = endpoint("eice-9", "vpc-1", "subnet-1");
    let later = endpoint("eice-5", "vpc-1", "subnet-3");
    let earlier = endpoint("eice-4", "vpc-1", "subnet-2");
    let foreign = endpoint("eice-1", "vpc-2", "subnet-1");
    let check = |endpoints: &[Endpoint], expected: &str| {
        assert_eq!(told(choose(Method::Endpoint, &instance, endpoints)), expected);
    };
    check(&[foreign.clone(), later.clone(), own.clone(), earlier.clone()], "eice-9 10.0.1.7");
    check(&[foreign.clone(), later.clone(), earlier.clone()], "eice-4 10.0.1.7");
    check(&[foreign], "no endpoint");
}

#[test]
fn without_a_vpc_no_endpoint_is_asked_for() {
    let mut instance = instance(None, Some(PRIVATE), None);
    instance.vpc_id = None;
    assert!(!needs_endpoints(Method::Auto, &instance));
    assert_eq!(told(choose(Method::Endpoint, &instance, &[])), "no vpc");
}

#[test]
fn a_missing_route_says_what_would_make_one() {
    let lone = instance(None, Some(PRIVATE), None);
    insta::assert_snapshot!(choose(Method::Auto, &lone, &[]).unwrap_err(), @"vpc-1 has no EC2 Instance Connect Endpoint that takes connections, and i-0123456789abcdef0 has no address that is reached without one; create one in its VPC, or, if you are inside that network, ask with spec.connection.method Direct");
    insta::assert_snapshot!(choose(Method::Auto, &instance(None, None, None), &[]).unwrap_err(), @"i-0123456789abcdef0 has no IP address; start it, and the request goes on by itself");
}

fn typed(route: &Route, os_user: &str, port: u16, tunnel_seconds: u16) -> String {
    let instance_id = InstanceId::parse("i-0123456789abcdef0").unwrap();
    let region = Region::parse("us-west-2").unwrap();
    command(route, &instance_id, &region, &OsUser::parse(os_user).unwrap(), port, tunnel_seconds)
}

#[test]
fn the_command_is_what_a_person_types() {
    let direct = |address: &str| Route::Direct { address: address.parse().unwrap() };
    let tunnel = Route::Endpoint { endpoint_id: "eice-1".into(), address: PRIVATE.parse().unwrap() };
    insta::assert_snapshot!(typed(&direct(PUBLIC), "ec2-user", 22, 60), @"ssh ec2-user@203.0.113.7");
    insta::assert_snapshot!(typed(&direct(PUBLIC), "ec2-user", 2222, 60), @"ssh -p 2222 ec2-user@203.0.113.7");
    insta::assert_snapshot!(typed(&direct(IPV6), "ops", 22, 60), @"ssh ops@2001:db8::7");
    insta::assert_snapshot!(typed(&direct(PUBLIC), "machine$", 22, 60), @"ssh 'machine$@203.0.113.7'");
    insta::assert_snapshot!(typed(&tunnel, "ec2-user", 22, 1800), @"ssh -o ProxyCommand='aws ec2-instance-connect open-tunnel --instance-id i-0123456789abcdef0 --region us-west-2 --max-tunnel-duration 1800' ec2-user@i-0123456789abcdef0");
    insta::assert_snapshot!(typed(&tunnel, "machine$", 2222, 0), @"ssh -o ProxyCommand='aws ec2-instance-connect open-tunnel --instance-id i-0123456789abcdef0 --region us-west-2 --remote-port 2222 --max-tunnel-duration 1' 'machine$@i-0123456789abcdef0'");
    assert!(typed(&tunnel, "ops", 22, u16::MAX).contains(" --max-tunnel-duration 3600'"));
}

prop_compose! {
    fn any_instance()(
        public in any::<Option<[u8; 4]>>(), private in any::<Option<[u8; 4]>>(), ipv6 in any::<Option<[u8; 16]>>(),
        vpc in prop::option::of(1..4u8), subnet in prop::option::of(1..4u8),
    ) -> Instance {
        Instance {
            public_ip: public.map(Into::into), private_ip: private.map(Into::into), ipv6: ipv6.map(Into::into),
            vpc_id: vpc.map(|n| format!("vpc-{n}")), subnet_id: subnet.map(|n| format!("subnet-{n}")),
            ..instance(None, None, None)
        }
    }
}

fn any_endpoints() -> impl Strategy<Value = Vec<Endpoint>> {
    let one = (1..9u8, 1..4u8, 1..4u8).prop_map(|(id, vpc, subnet)| {
        endpoint(&format!("eice-{id}"), &format!("vpc-{vpc}"), &format!("subnet-{subnet}"))
    });
    prop::collection::vec(one, 0..6)
}

fn any_method() -> impl Strategy<Value = Method> {
    prop_oneof![Just(Method::Auto), Just(Method::Direct), Just(Method::Endpoint)]
}

proptest! {
    #[test]
    fn a_route_uses_the_instances_own_address_and_an_endpoint_of_its_vpc(
        method in any_method(), instance in any_instance(), endpoints in any_endpoints(),
    ) {
        let own: Vec<IpAddr> = [instance.public_ip.map(IpAddr::V4), instance.private_ip.map(IpAddr::V4), instance.ipv6.map(IpAddr::V6)]
            .into_iter().flatten().collect();
        match choose(method, &instance, &endpoints) {
            Ok(Route::Direct { address }) => {
                prop_assert!(own.contains(&address));
                prop_assert!(method != Method::Endpoint);
            }
            Ok(Route::Endpoint { endpoint_id, address }) => {
                prop_assert!(own.contains(&address) && Some(address) != instance.public_ip.filter(|ip| Some(*ip) != instance.private_ip).map(IpAddr::V4));
                prop_assert!(method != Method::Direct);
                prop_assert!(needs_endpoints(method, &instance));
                let vpc_id = instance.vpc_id.clone().unwrap();
                prop_assert!(endpoints.iter().any(|e| e.id == endpoint_id && e.vpc_id == vpc_id));
                let own_subnet = |e: &Endpoint| e.vpc_id == vpc_id && Some(&e.subnet_id) == instance.subnet_id.as_ref();
                if endpoints.iter().any(own_subnet) {
                    prop_assert!(endpoints.iter().any(|e| e.id == endpoint_id && own_subnet(e)));
                }
            }
            Err(NoRoute::NoAddress { .. }) => prop_assert!(own.is_empty() || method == Method::Endpoint),
            Err(_) => prop_assert!(method != Method::Direct),
        }
    }

    #[test]
    fn the_order_of_endpoints_and_those_that_nobody_needs_change_nothing(
        method in any_method(), instance in any_instance(), endpoints in any_endpoints(),
    ) {
        let mut turned = endpoints.clone();
        turned.reverse();
        let route = choose(method, &instance, &endpoints);
        prop_assert_eq!(&route, &choose(method, &instance, &turned));
        if !needs_endpoints(method, &instance) {
            prop_assert_eq!(&route, &choose(method, &instance, &[]));
        }
    }

    #[test]
    fn nothing_but_safe_characters_reaches_the_shell_outside_quotes(
        user in "[A-Za-z_][A-Za-z0-9@._-]{0,30}[A-Za-z0-9$_-]?", port in any::<u16>(), seconds in any::<u16>(), through: bool,
    ) {
        let address = PRIVATE.parse().unwrap();
        let route = if through { Route::Endpoint { endpoint_id: "eice-1".into(), address } } else { Route::Direct { address } };
        let line = typed(&route, &user, port, seconds);
        let parts: Vec<&str> = line.split('\'').collect();
        prop_assert_eq!(parts.len() % 2, 1, "quotes come in pairs");
        for (n, part) in parts.iter().enumerate() {
            let safe = |c: char| c.is_ascii_alphanumeric() || " @._:=-".contains(c) || (n % 2 == 1 && c == '$');
            prop_assert!(part.chars().all(safe), "{}", line);
        }
        // The tunnel's own shell reads its part again, without our quotes.
        prop_assert!(!through || !parts[1].contains('$'));
    }
}
