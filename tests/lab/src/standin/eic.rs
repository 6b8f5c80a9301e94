//! EC2 Instance Connect: SendSSHPublicKey, with the service's own validation.
//!
//! Source: the service's model 2018-04-02 (protocol json 1.1; lengths, patterns, error shapes) and messages that
//! users of AWS reported.

use std::sync::LazyLock;

use regex::Regex;
use serde_json::{Map, Value, json};

use super::Shared;
use super::api::{Caller, Refusal};
use super::keys;

/// The header's value for the one action that there is.
pub(super) const TARGET_PREFIX: &str = "AWSEC2InstanceConnectService.";

/// What a call says, before it is judged.
#[derive(Debug, Default)]
pub(super) struct Push {
    fields: Option<Map<String, Value>>,
}

impl Push {
    pub(super) fn read(body: &[u8]) -> Self {
        let fields = match serde_json::from_slice(body) {
            Ok(Value::Object(fields)) => Some(fields),
            Ok(_) | Err(_) => None,
        };
        Self { fields }
    }

    pub(super) fn field(&self, name: &str) -> Option<&str> {
        self.fields.as_ref()?.get(name)?.as_str()
    }
}

struct Constraint {
    field: &'static str,
    /// As the service writes it in its messages.
    member: &'static str,
    length: (usize, usize),
    is_required: bool,
    /// The pattern as the model has it, for the message.
    pattern: Option<&'static str>,
    accepts: fn(&str) -> bool,
}

const OS_USER: &str = r"(^[A-Za-z_][A-Za-z0-9\@\._-]{0,30}[A-Za-z0-9\$_-]?$)|(^(?=.{2,32}$)[0-9]{1,32}[A-Za-z\@\._-][A-Za-z0-9\@\._-]*[A-Za-z0-9\$_-]?$)";
const INSTANCE_ID: &str = r"^i-[a-f0-9]+$";
const ZONE: &str = r"^(\w+-){2,3}\d+\w+$";

fn pattern(it: &str) -> Regex {
    Regex::new(it).expect("the pattern is a constant")
}

static INSTANCE_ID_RE: LazyLock<Regex> = LazyLock::new(|| pattern(r"^i-[a-f0-9]+$"));
static ZONE_RE: LazyLock<Regex> = LazyLock::new(|| pattern(r"^(?-u:\w+-){2,3}(?-u:\d)+(?-u:\w)+$"));
static OS_USER_NAME: LazyLock<Regex> = LazyLock::new(|| pattern(r"^[A-Za-z_][A-Za-z0-9@._-]{0,30}[A-Za-z0-9$_-]?$"));
static OS_USER_DIGITS: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"^[0-9]{1,32}[A-Za-z@._-][A-Za-z0-9@._-]*[A-Za-z0-9$_-]?$"));

/// The model's pattern, its look-ahead (2 to 32 characters) taken out, for `regex` has none.
fn is_os_user(it: &str) -> bool {
    OS_USER_NAME.is_match(it) || ((2..=32).contains(&it.chars().count()) && OS_USER_DIGITS.is_match(it))
}

static CONSTRAINTS: [Constraint; 4] = [
    Constraint {
        field: "InstanceId",
        member: "instanceId",
        length: (10, 32),
        is_required: true,
        pattern: Some(INSTANCE_ID),
        accepts: |it| INSTANCE_ID_RE.is_match(it),
    },
    Constraint {
        field: "InstanceOSUser",
        member: "instanceOSUser",
        length: (1, 32),
        is_required: true,
        pattern: Some(OS_USER),
        accepts: is_os_user,
    },
    Constraint {
        field: "SSHPublicKey",
        member: "sSHPublicKey",
        length: (80, 4096),
        is_required: true,
        pattern: None,
        accepts: |_| true,
    },
    Constraint {
        field: "AvailabilityZone",
        member: "availabilityZone",
        length: (6, 32),
        is_required: false,
        pattern: Some(ZONE),
        accepts: |it| ZONE_RE.is_match(it),
    },
];

fn validate(push: &Push) -> Result<(), Refusal> {
    let Some(fields) = &push.fields else {
        return Err(Refusal::new("SerializationException", "Start of structure or map found where not expected."));
    };
    let mut findings = Vec::new();
    for it in &CONSTRAINTS {
        let text = match fields.get(it.field) {
            Some(Value::String(text)) => text,
            None | Some(Value::Null) => {
                if it.is_required {
                    findings.push(format!(
                        "Value null at '{}' failed to satisfy constraint: Member must not be null",
                        it.member
                    ));
                }
                continue;
            }
            Some(_) => {
                return Err(Refusal::new(
                    "SerializationException",
                    format!("{} can not be converted to a String", it.field),
                ));
            }
        };
        let mut fails = |constraint: String| {
            findings.push(format!("Value '{text}' at '{}' failed to satisfy constraint: {constraint}", it.member));
        };
        let length = text.encode_utf16().count();
        if length < it.length.0 {
            fails(format!("Member must have length greater than or equal to {}", it.length.0));
        }
        if length > it.length.1 {
            fails(format!("Member must have length less than or equal to {}", it.length.1));
        }
        if let Some(pattern) = it.pattern
            && !(it.accepts)(text)
        {
            fails(format!("Member must satisfy regular expression pattern: {pattern}"));
        }
    }
    match findings.len() {
        0 => Ok(()),
        1 => Err(invalid(format!("1 validation error detected: {}", findings[0]))),
        n => Err(invalid(format!("{n} validation errors detected: {}", findings.join("; ")))),
    }
}

fn invalid(text: String) -> Refusal {
    Refusal::new("InvalidArgsException", text)
}

pub(super) fn perform(
    shared: &Shared,
    action: &str,
    push: &Push,
    caller: &Caller,
    request_id: &str,
) -> Result<String, Refusal> {
    if action != "SendSSHPublicKey" {
        return Err(Refusal::new("UnknownOperationException", ""));
    }
    validate(push)?;
    let need = |name: &str| push.field(name).expect("it was validated");
    let key = keys::parse(need("SSHPublicKey")).map_err(|reason| {
        invalid(format!("Invalid input parameter received for Illegal argument exception: {reason}"))
    })?;
    let id = need("InstanceId");
    let now = shared.clock.now();
    let instance = shared
        .world
        .instance(id, now)
        .filter(|it| it.instance.region == caller.region && it.instance.account_id == caller.account_id)
        .filter(|it| push.field("AvailabilityZone").is_none_or(|zone| it.instance.availability_zone == zone))
        .ok_or_else(|| Refusal::new("EC2InstanceNotFoundException", "The specified instance was not found."))?;
    if instance.instance.state != "running" {
        return Err(Refusal::new(
            "EC2InstanceStateInvalidException",
            format!("The instance {id} is not in a valid state: it is {}.", instance.instance.state),
        ));
    }
    shared.keyring.put(id, need("InstanceOSUser"), key, now);
    Ok(json!({ "RequestId": request_id, "Success": true }).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_split_pattern_takes_what_the_models_pattern_takes() {
        for (user, expected) in [
            ("ec2-user", true),
            ("a", true),
            ("_", true),
            ("root", true),
            ("machine$", true),
            ("a$b", false),
            ("$", false),
            ("-a", false),
            (".a", false),
            ("@a", false),
            ("user@example.com", true),
            ("a.", true),
            ("1", false),
            ("12", false),
            ("1a", true),
            ("1.", true),
            ("1-", true),
            ("1a$", true),
            ("1$", false),
            ("1a$$", false),
            (&"1".repeat(31), false),
            (&format!("{}a", "1".repeat(31)), true),
            (&format!("{}a", "1".repeat(32)), false),
            (&"a".repeat(32), true),
            (&"a".repeat(33), false),
            ("", false),
            ("a b", false),
            ("a\n", false),
            ("1a\n", false),
            ("ä", false),
            ("a/../b", false),
            ("a;id", false),
        ] {
            assert_eq!(is_os_user(user), expected, "{user:?}");
        }
    }
}
