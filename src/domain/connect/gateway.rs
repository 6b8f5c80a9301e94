//! The way through the gateway, as people type it.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;
use std::sync::LazyLock;

use regex::Regex;

use super::{SSH_PORT, destination};
use crate::domain::cloud::{InstanceId, Malformed, OsUser};

/// The longest name of a host. Source: RFC 1035, 2.3.4.
const HOST_LENGTH_MAX: usize = 253;

/// Where people reach the gateway: what stands after `ssh -J`.
///
/// Nothing in it is read by a shell, nor by OpenSSH as anything but a host and a port: no login, no second jump.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayAddress(String);

impl FromStr for GatewayAddress {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        static FORM: LazyLock<Regex> = LazyLock::new(|| {
            Regex::new(r"\A(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?))(?::([0-9]{1,5}))?\z")
                .expect("a constant pattern, compiled by a test")
        });
        let rule = "must be HOST or HOST:PORT, such as gateway.example.com:2222, an IPv6 address in brackets";
        let parts = FORM.captures(text).ok_or(Malformed { rule })?;
        let is_host = match (parts.get(1), parts.get(2)) {
            (Some(six), _) => six.as_str().parse::<Ipv6Addr>().is_ok(),
            (None, Some(host)) => host.len() <= HOST_LENGTH_MAX,
            (None, None) => false,
        };
        let is_port = parts.get(3).is_none_or(|port| port.as_str().parse::<u16>().is_ok_and(|port| port > 0));
        if is_host && is_port { Ok(Self(text.to_owned())) } else { Err(Malformed { rule }) }
    }
}

impl fmt::Display for GatewayAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Writes what a person types to connect through the gateway, one line that a POSIX shell reads as meant.
pub fn command_through(gateway: &GatewayAddress, instance_id: &InstanceId, os_user: &OsUser, port: u16) -> String {
    // To a shell, brackets are a pattern of file names.
    let jump = if gateway.0.contains('[') { format!("'{gateway}'") } else { gateway.to_string() };
    let port = if port == SSH_PORT { String::new() } else { format!(" -p {port}") };
    format!("ssh -J {jump}{port} {}", destination(os_user, instance_id.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_and_a_port_and_nothing_else_that_ssh_or_a_shell_would_read() {
        for good in [
            "gateway",
            "gateway.example.com",
            "gateway.example.com:2222",
            "192.0.2.7",
            "192.0.2.7:22",
            "[2001:db8::1]",
            "[2001:db8::1]:2222",
            "[::ffff:192.0.2.7]:1",
            "a_b:65535",
        ] {
            assert_eq!(good.parse::<GatewayAddress>().map(|it| it.to_string()), Ok(good.to_owned()));
        }
        let long = "a".repeat(HOST_LENGTH_MAX + 1);
        for bad in [
            "",
            ":22",
            "gateway:",
            "gateway:0",
            "gateway:65536",
            "gateway:22:22",
            "2001:db8::1",
            "[2001:db8::1",
            "[]:22",
            "[gateway]:22",
            "root@gateway",
            "one,two",
            "-oProxyCommand=x",
            "gateway-",
            "ssh://gateway",
            "gate way",
            "gateway;id",
            "$(id)",
            "gateway\n",
            "'gateway'",
            "%h",
            "[fe80::1%eth0]",
            &long,
        ] {
            let told = bad.parse::<GatewayAddress>().expect_err(bad).to_string();
            assert!(told.contains("gateway.example.com:2222"), "{bad}: {told}");
        }
    }

    #[test]
    fn the_command_is_the_one_that_stock_openssh_takes() {
        for (gateway, user, port, line) in [
            ("gateway.example.com", "ec2-user", 22, "ssh -J gateway.example.com ec2-user@i-0123456789abcdef0"),
            ("gateway:2222", "ops", 2022, "ssh -J gateway:2222 -p 2022 ops@i-0123456789abcdef0"),
            ("[2001:db8::1]:2222", "app$", 22, "ssh -J '[2001:db8::1]:2222' 'app$@i-0123456789abcdef0'"),
        ] {
            let id = InstanceId::parse("i-0123456789abcdef0").unwrap();
            let user = OsUser::parse(user).unwrap();
            assert_eq!(command_through(&gateway.parse().unwrap(), &id, &user, port), line);
        }
    }
}
