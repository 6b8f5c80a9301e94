//! What the cloud told us, as values: places, instances, endpoints, and why a call failed.
//!
//! These types parse at the door and are right ever after. They are shared by `domain`, which judges by them, and
//! `aws`, which makes them; neither knows the other's clients.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;
use std::time::Duration;

use jiff::Timestamp;
use regex::Regex;
use serde::{Deserialize, Serialize};

pub use super::connect::TUNNEL_SECONDS_MAX;
use super::time::until;

/// Why a string is not what its field wants: the rule, for a person to read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{rule}")]
pub struct Malformed {
    /// What the value must look like, with an example.
    pub rule: &'static str,
}

macro_rules! text {
    ($(#[$doc:meta])* $name:ident, $pattern:expr, $rule:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String")]
        pub struct $name(String);

        impl TryFrom<String> for $name {
            type Error = Malformed;

            fn try_from(text: String) -> Result<Self, Malformed> {
                Self::parse(&text)
            }
        }

        impl $name {
            /// Parses the text, or names the rule that it breaks.
            pub fn parse(text: &str) -> Result<Self, Malformed> {
                static PATTERN: LazyLock<Regex> =
                    LazyLock::new(|| Regex::new($pattern).expect("a constant pattern, compiled by a test"));
                if PATTERN.is_match(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(Malformed { rule: $rule })
                }
            }

            /// Returns the text as it was parsed.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text!(
    /// The id of an EC2 instance. Source of the shape: the service model of EC2 Instance Connect (10..32 characters).
    InstanceId,
    r"\Ai-[a-f0-9]{8,30}\z",
    "must be an EC2 instance id such as i-0123456789abcdef0"
);
text!(
    /// The name of an AWS region. Nothing else may reach a host name that is built from it.
    Region,
    r"\A[a-z]{2,4}(-[a-z]{2,12}){1,3}-[0-9]{1,2}\z",
    "must be an AWS region such as us-west-2"
);
text!(
    /// The number of an AWS account.
    AccountId,
    r"\A[0-9]{12}\z",
    "must be a 12-digit AWS account id such as 123456789012"
);
text!(
    /// The login on the instance, as EC2 Instance Connect takes it.
    ///
    /// Source: the service model's pattern, whose look-ahead only asks for 1..32 characters.
    OsUser,
    r"\A[A-Za-z_][A-Za-z0-9@._-]{0,30}[A-Za-z0-9$_-]?\z",
    "must be a login of 1 to 32 characters that starts with a letter or _, such as ec2-user"
);

/// Where a call goes: whose account, which region.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// The region, always known before a call.
    pub region: Region,
}

/// EC2's word for what an instance is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum InstanceState {
    /// Starting; will run.
    Pending,
    /// Takes keys.
    Running,
    /// Going away for ever.
    ShuttingDown,
    /// Gone for ever.
    Terminated,
    /// On its way to `Stopped`.
    Stopping,
    /// May run again.
    Stopped,
    /// A word that this version does not know: not running.
    Unknown,
}

/// An EC2 instance as `DescribeInstances` showed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Its id.
    pub id: InstanceId,
    /// The account that owns it.
    pub account_id: AccountId,
    /// The region it was found in.
    pub region: Region,
    /// What it is doing.
    pub state: InstanceState,
    /// For instance `us-west-2a`.
    pub availability_zone: Option<String>,
    /// Its VPC; none for the dead and for EC2-Classic.
    pub vpc_id: Option<String>,
    /// Its subnet.
    pub subnet_id: Option<String>,
    /// The primary private IPv4 address.
    pub private_ip: Option<Ipv4Addr>,
    /// The public IPv4 address.
    pub public_ip: Option<Ipv4Addr>,
    /// The first IPv6 address of the primary network interface.
    pub ipv6: Option<Ipv6Addr>,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

/// Which instance is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TargetQuery {
    /// One instance, by id.
    Id(InstanceId),
    /// All running, pending, stopping and stopped instances that carry each of these tags, by exact value.
    Tags(BTreeMap<String, String>),
}

/// An EC2 Instance Connect Endpoint, in a state in which it takes connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Its id, `eice-…`.
    pub id: String,
    /// The VPC it serves.
    pub vpc_id: String,
    /// The subnet it stands in.
    pub subnet_id: String,
    /// Its DNS name.
    pub dns_name: String,
}

/// A tunnel to ask an endpoint for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelTo {
    /// Where the endpoint is.
    pub place: Place,
    /// The VPC that it serves.
    pub vpc_id: String,
    /// Which one.
    pub endpoint_id: String,
    /// The instance, as seen from that VPC.
    pub address: IpAddr,
    /// The port of its sshd.
    pub port: u16,
    /// What it must not outlive.
    pub end_time: Timestamp,
}

/// How long AWS may take to answer the request for a tunnel, whose time it counts from its answer on.
const TUNNEL_ANSWER: Duration = Duration::from_secs(1);

impl TunnelTo {
    /// How long it may last, in seconds, if it is asked for now: AWS ends it then, whatever became of whoever asked. In
    /// whole seconds, rounded down, and at most an hour; `None` if there is not even one left.
    pub fn seconds(&self, now: Timestamp) -> Option<u16> {
        let left = until(now, self.end_time).saturating_sub(TUNNEL_ANSWER).as_secs();
        let seconds = u16::try_from(left).unwrap_or(u16::MAX).min(TUNNEL_SECONDS_MAX);
        (seconds > 0).then_some(seconds)
    }
}

/// What a failed call means for us: who must act, and when to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum FailureClass {
    /// A passing fault; again after a back-off.
    Retry,
    /// Too many calls; again after a longer back-off.
    Throttled,
    /// AWS says no to our identity: the operator's credentials or IAM policy must change.
    Refused,
    /// AWS says no to what was asked: it will say so again.
    Invalid,
    /// The instance is not there, or not in a state that takes keys.
    Gone,
    /// Nobody foresaw this.
    Bug,
}

/// A failed call, as far as a decision or a reader needs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Failure {
    /// What it means for us.
    pub class: FailureClass,
    /// AWS's own error name (`AuthException`, `UnauthorizedOperation`, …), or ours: `Timeout`, `DispatchFailure`,
    /// `CredentialsUnavailable`.
    pub code: String,
    /// AWS's text, one line, at most 512 characters, without secrets.
    pub message: String,
}

/// An address as a person types it.
pub fn address_text(address: IpAddr) -> String {
    address.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tunnel_lasts_whole_seconds_within_the_grant_and_within_an_hour() {
        let end_time: Timestamp = "2026-03-01T09:00:00Z".parse().unwrap();
        let to = TunnelTo {
            place: Place { region: Region::parse("us-west-2").unwrap() },
            vpc_id: "vpc-1".into(),
            endpoint_id: "eice-1".into(),
            address: IpAddr::from([10, 0, 0, 5]),
            port: 22,
            end_time,
        };
        for (left_ms, seconds) in [
            (-1000, None),
            (0, None),
            (1999, None),
            (2000, Some(1)),
            (2999, Some(1)),
            (120_999, Some(119)),
            (3_600_999, Some(3599)),
            (3_601_000, Some(3600)),
            (3_602_000, Some(3600)),
            (65_537_000, Some(3600)),
            (400_000_000, Some(3600)),
        ] {
            let now = end_time - jiff::SignedDuration::from_millis(left_ms);
            assert_eq!(to.seconds(now), seconds, "{left_ms} ms left");
            if let Some(seconds) = seconds {
                let ends = now + jiff::SignedDuration::from_secs(seconds.into());
                assert!(ends <= end_time, "it outlives its grant, by {left_ms}");
            }
        }
    }
}
