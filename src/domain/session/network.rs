//! Networks that are never dialled, whatever status says.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A network in CIDR form, for example `10.96.0.0/12`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    length: u8,
}

/// Why a text is no network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be a network such as 10.96.0.0/12 or fd00::/8, with no bits set behind its length")]
pub struct NotANetwork;

impl FromStr for Network {
    type Err = NotANetwork;

    fn from_str(text: &str) -> Result<Self, NotANetwork> {
        let (address, length) = text.split_once('/').ok_or(NotANetwork)?;
        let address: IpAddr = address.parse().map_err(|_| NotANetwork)?;
        // No sign, no blanks, no leading zero: u8's own parser takes a plus.
        let is_plain = length == "0" || (length.bytes().all(|byte| byte.is_ascii_digit()) && !length.starts_with('0'));
        let length = length.parse().ok().filter(|_| is_plain).ok_or(NotANetwork)?;
        let network = Self { address, length };
        let bits = if address.is_ipv4() { 32 } else { 128 };
        (length <= bits && network.masked(address) == Some(address)).then_some(network).ok_or(NotANetwork)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl Network {
    /// The address with the host's bits cleared, if it is of this family.
    fn masked(self, address: IpAddr) -> Option<IpAddr> {
        match (self.address, address) {
            (IpAddr::V4(_), IpAddr::V4(address)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.length)).unwrap_or(0);
                Some(IpAddr::V4(Ipv4Addr::from(u32::from(address) & mask)))
            }
            (IpAddr::V6(_), IpAddr::V6(address)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.length)).unwrap_or(0);
                Some(IpAddr::V6(Ipv6Addr::from(u128::from(address) & mask)))
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => None,
        }
    }

    fn has(self, address: IpAddr) -> bool {
        self.masked(address) == Some(self.address)
    }
}

/// The metadata service of AWS, by IPv6. Source: EC2 User Guide, "Access instance metadata".
const METADATA: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

/// Networks of the operator's choice, and those that no instance's address is ever in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks(Vec<Network>);

impl Networks {
    /// Adds these to those that are never dialled anyway.
    pub fn new(networks: Vec<Network>) -> Self {
        Self(networks)
    }

    /// Whether an address must not be dialled.
    ///
    /// Never an instance's: link-local ones (among them the metadata services), multicast, broadcast, unspecified. An IPv4
    /// address in an IPv6 coat, or behind a translator, is that IPv4 address.
    pub fn has(&self, address: IpAddr) -> bool {
        let inner = match address {
            IpAddr::V6(six) => within(six).map(IpAddr::V4),
            IpAddr::V4(_) => None,
        };
        // By either form: who forbids a network of IPv6 means all of it.
        self.has_form(address) || inner.is_some_and(|inner| self.has_form(inner))
    }

    fn has_form(&self, address: IpAddr) -> bool {
        let is_nobodys = match address {
            IpAddr::V4(four) => {
                four.octets()[0] == 0 || four.is_link_local() || four.is_multicast() || four.is_broadcast()
            }
            IpAddr::V6(six) => {
                six.is_unspecified() || six.is_multicast() || six.is_unicast_link_local() || six == METADATA
            }
        };
        is_nobodys || self.0.iter().any(|network| network.has(address))
    }
}

/// The IPv4 host that an IPv6 address leads to.
fn within(six: Ipv6Addr) -> Option<Ipv4Addr> {
    match six.segments() {
        // ::1 stays itself, and so does ::.
        _ if six.is_loopback() || six.is_unspecified() => None,
        // NAT64, which subnets of AWS can have. Source: RFC 6052, 2.1.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(four(high, low)),
        // 6to4. Source: RFC 3056, 2.
        [0x2002, high, low, ..] => Some(four(high, low)),
        // ::ffff:a.b.c.d, and ::a.b.c.d, which is obsolete and still means that host to some stacks.
        _ => six.to_ipv4(),
    }
}

fn four(high: u16, low: u16) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(high) << 16 | u32::from(low))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_instance_has_is_never_dialled_and_neither_is_what_was_configured() {
        let own = Networks::new(
            ["127.0.0.0/8", "::1/128", "10.96.0.0/12", "2001:db8::/32"].map(|text| text.parse().unwrap()).into(),
        );
        for (address, never) in [
            ("169.254.169.254", true),
            ("::ffff:169.254.169.254", true),
            ("::169.254.169.254", true),
            ("::ffff:a9fe:a9fe", true),
            ("2001:db8:6::1", true),
            ("64:ff9b::169.254.169.254", true),
            ("64:ff9b::10.96.0.1", true),
            ("64:ff9b::203.0.113.17", false),
            ("2002:a9fe:a9fe::1", true),
            ("2002:7f00:1::", true),
            ("fd00:ec2::254", true),
            ("fd00:0ec2:0:0::0254", true),
            ("fe80::1", true),
            ("0.0.0.0", true),
            ("0.1.2.3", true),
            ("::", true),
            ("224.0.0.1", true),
            ("ff02::1", true),
            ("255.255.255.255", true),
            ("127.0.0.1", true),
            ("127.9.8.7", true),
            ("::ffff:127.0.0.1", true),
            ("::1", true),
            ("10.96.0.1", true),
            ("10.111.255.255", true),
            ("10.112.0.0", false),
            ("10.0.1.2", false),
            ("203.0.113.17", false),
            ("2600:1f14::17", false),
        ] {
            assert_eq!(own.has(address.parse().unwrap()), never, "{address}");
        }
        assert!(!Networks::default().has("127.0.0.1".parse().unwrap()), "loopback is for the configuration to say");
    }

    #[test]
    fn a_network_is_an_address_and_a_length_and_nothing_odd() {
        for text in ["0.0.0.0/0", "10.0.0.0/8", "10.0.0.1/32", "::/0", "fd00::/8"] {
            assert_eq!(text.parse::<Network>().map(|network| network.to_string()).as_deref(), Ok(text));
        }
        for text in [
            "",
            "10.0.0.0",
            "10.0.0.1/8",
            "10.0.0.0/33",
            "::/129",
            "10.0.0.0/+8",
            "10.0.0.0/08",
            "a/8",
            "1.1.1.1/",
            "10.0.0.0/8 ",
        ] {
            assert_eq!(text.parse::<Network>(), Err(NotANetwork), "{text:?}");
        }
        assert!(Networks::new(vec!["0.0.0.0/0".parse().unwrap()]).has("8.8.8.8".parse().unwrap()));
        assert!(!Networks::new(vec!["0.0.0.0/0".parse().unwrap()]).has("2600::1".parse().unwrap()));
        let no_six = Networks::new(vec!["::/0".parse().unwrap()]);
        assert!(no_six.has("64:ff9b::203.0.113.17".parse().unwrap()) && !no_six.has("8.8.8.8".parse().unwrap()));
    }
}
