//! The admission policies: who asks is filled in and checked inside the API server, without a webhook.
//!
//! ```text
//! create ──▶ mutating: requester and finalizer are filled in ──▶ CRD: shape ──▶ validating: requester is the caller
//! decide ──▶ mutating: approver is filled in ──────────────────▶ CRD: shape ──▶ validating: approver is the caller
//! status, ledger ──────────────────────────────────────────────────────────────▶ validating: caller is the operator,
//!                                                                               or a gateway with its own figures
//! ```
//! They are YAML, embedded byte for byte, with the service accounts as parameters ([`Writers`]). Who is right is for the
//! API server to judge; whether they stand as they are shipped, a [`Piece`] says of itself.
//!
//! # Caveats
//! `MutatingAdmissionPolicy` is v1 from Kubernetes 1.36 on. Below that the client fills `spec.requester` and
//! `spec.approver` in, and the same validation holds.

mod stand;

use std::{fmt, str::FromStr};

pub use stand::{Piece, Standing, pieces};

/// Fills in `spec.requester` and the finalizer, and `spec.approver` of decisions.
const MUTATING: &str = include_str!("mutating.yaml");
/// Checks `spec.requester`, `spec.approver`, the finalizer, and who writes status and the ledger.
const VALIDATING: &str = include_str!("validating.yaml");
/// What stands for the operator's namespace in both.
const NAMESPACE_PLACE: &str = "OPERATOR_NAMESPACE";
/// What stands for the name of the operator's service account in both.
const NAME_PLACE: &str = "OPERATOR_NAME";
/// What stands for the user names of the gateways' service accounts, as a list of CEL.
const GATEWAYS_PLACE: &str = "GATEWAY_USERNAMES";
/// What every service account's user name begins with. Source: Kubernetes, `ServiceAccountUsernamePrefix`.
const USERNAME_PREFIX: &str = "system:serviceaccount:";
/// Longest DNS label: a namespace. Source: RFC 1123, as Kubernetes reads it.
const LABEL_LENGTH_MAX: usize = 63;
/// Longest DNS subdomain: a service account's name. Source: as above.
const SUBDOMAIN_LENGTH_MAX: usize = 253;

/// A service account by full name, `namespace/name`. It holds nothing that YAML or CEL could misread.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServiceAccount {
    namespace: String,
    name: String,
}

impl ServiceAccount {
    /// Makes one of its two parts.
    ///
    /// # Errors
    /// If one of them is not a name that Kubernetes takes.
    pub fn new(namespace: &str, name: &str) -> Result<Self, ServiceAccountError> {
        if !is_dns_label(namespace) {
            return Err(ServiceAccountError::Namespace { namespace: namespace.to_owned() });
        }
        if name.len() > SUBDOMAIN_LENGTH_MAX || !name.split('.').all(is_dns_label_of_any_length) {
            return Err(ServiceAccountError::Name { name: name.to_owned() });
        }
        Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
    }

    /// Reads the user name under which the API server knows one; none, if it is no service account's.
    pub fn of_username(username: &str) -> Option<Self> {
        let (namespace, name) = username.strip_prefix(USERNAME_PREFIX)?.split_once(':')?;
        Self::new(namespace, name).ok()
    }

    /// Its namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The user name under which the API server knows it.
    pub fn username(&self) -> String {
        format!("{USERNAME_PREFIX}{}:{}", self.namespace, self.name)
    }
}

impl fmt::Display for ServiceAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl FromStr for ServiceAccount {
    type Err = ServiceAccountError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (namespace, name) =
            text.split_once('/').ok_or_else(|| ServiceAccountError::Form { text: text.to_owned() })?;
        Self::new(namespace, name)
    }
}

/// Who writes status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Writers {
    operator: ServiceAccount,
    gateways: Vec<ServiceAccount>,
}

impl Writers {
    /// The operator, and the gateways, in whatever order; there may be none.
    pub fn new(operator: ServiceAccount, mut gateways: Vec<ServiceAccount>) -> Self {
        // In one order, whoever renders: the operator compares with what stands.
        gateways.sort_by_key(ToString::to_string);
        gateways.dedup();
        Self { operator, gateways }
    }

    /// As the flags of `instance-access admission`.
    pub fn flags(&self) -> String {
        let gateways = self.gateways.iter().map(|gateway| format!(" --gateway-service-account {gateway}"));
        format!("--operator-service-account {}{}", self.operator, gateways.collect::<String>())
    }

    fn render(&self, text: &str) -> String {
        let gateways: Vec<String> = self.gateways.iter().map(|gateway| format!("'{}'", gateway.username())).collect();
        text.replace(NAMESPACE_PLACE, &self.operator.namespace)
            .replace(NAME_PLACE, &self.operator.name)
            .replace(GATEWAYS_PLACE, &format!("[{}]", gateways.join(", ")))
    }
}

/// Why a text is no service account's full name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServiceAccountError {
    /// There is no slash in it.
    #[error("{text:?} is not of the form NAMESPACE/NAME, for example instance-access/operator")]
    Form {
        /// What was given.
        text: String,
    },
    /// What stands before the slash is no namespace.
    #[error("{namespace:?} is no namespace: 1 to 63 of a-z, 0-9 and -, with neither end a -")]
    Namespace {
        /// What was given.
        namespace: String,
    },
    /// What stands behind the slash is no service account's name.
    #[error("{name:?} is no service account's name: 1 to 253 of a-z, 0-9, - and ., in parts with neither end a -")]
    Name {
        /// What was given.
        name: String,
    },
}

fn is_dns_label(text: &str) -> bool {
    text.len() <= LABEL_LENGTH_MAX && is_dns_label_of_any_length(text)
}

fn is_dns_label_of_any_length(text: &str) -> bool {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    !text.is_empty() && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// Returns the policies and their bindings as (file name, YAML stream), in the order in which they are applied.
///
/// `mutating`: whether the one that fills in is among them; Kubernetes below 1.36 does not know its kind.
pub fn manifests(writers: &Writers, mutating: bool) -> Vec<(&'static str, String)> {
    let mut manifests = vec![("validating-admission-policies.yaml", writers.render(VALIDATING))];
    if mutating {
        manifests.push(("mutating-admission-policy.yaml", writers.render(MUTATING)));
    }
    manifests
}

/// Returns the policies and their bindings as one YAML stream, for `kubectl apply -f -`.
pub fn yaml(writers: &Writers, mutating: bool) -> String {
    let streams: Vec<String> = manifests(writers, mutating).into_iter().map(|(_, yaml)| yaml).collect();
    streams.join("---\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(text: &str) {
        let account = text.parse::<ServiceAccount>();
        assert!(account.is_err(), "{text:?} was taken as {account:?}");
    }

    #[test]
    fn a_service_account_that_could_break_out_of_cel_or_yaml_is_refused() {
        for text in [
            "",
            "/",
            "a",
            "a/",
            "/b",
            "a/b/c",
            "A/b",
            "a/B",
            "a.b/c",
            "a b/c",
            "a/b c",
            "a/b'",
            "a/b\"",
            "a'||true||'/b",
            "a/b\n",
            "a\n/b",
            "a/b:c",
            "a:b/c",
            "-a/b",
            "a-/b",
            "a/-b",
            "a/b-",
            "a/b..c",
            "a/.b",
            "a/b.",
            "a/ü",
            "a/$b",
            "a/b\\",
            "a/*",
            "*/b",
            "a/b#",
        ] {
            refused(text);
        }
        refused(&format!("{}/b", "a".repeat(64)));
        refused(&format!("a/{}", "b".repeat(254)));
    }

    #[test]
    fn a_service_account_is_known_by_its_user_name() {
        let account: ServiceAccount = "instance-access/operator.v1-2".parse().unwrap();
        assert_eq!((account.namespace(), account.name()), ("instance-access", "operator.v1-2"));
        assert_eq!(account.to_string(), "instance-access/operator.v1-2");
        assert_eq!(account.username(), "system:serviceaccount:instance-access:operator.v1-2");
        assert_eq!(ServiceAccount::of_username(&account.username()), Some(account));
        for user in [
            "alice",
            "",
            "system:serviceaccount:",
            "system:serviceaccount:a",
            "system:serviceaccount:a:B",
            "system:node:a:b",
        ] {
            assert_eq!(ServiceAccount::of_username(user), None, "{user}");
        }
    }

    #[test]
    fn the_policies_name_the_operator_and_nothing_stays_open() {
        let yaml = yaml(&writers(&[]), true);
        assert!(!yaml.contains("OPERATOR") && !yaml.contains("GATEWAY"), "{yaml}");
        // One in the mutating policy, one for the finalizer, two for status, and two for the ledger.
        assert_eq!(yaml.matches("system:serviceaccount:access:broker").count(), 6, "{yaml}");
        assert!(yaml.contains(crate::api::FINALIZER));
    }

    fn writers(gateways: &[&str]) -> Writers {
        let gateways = gateways.iter().map(|gateway| gateway.parse().unwrap());
        Writers::new(ServiceAccount::new("access", "broker").unwrap(), gateways.collect())
    }

    #[test]
    fn gateways_are_named_in_one_order_and_each_once() {
        let both = writers(&["ops/jump", "access-2/b", "access/b", "ops/jump"]);
        let expected = "in ['system:serviceaccount:access-2:b', 'system:serviceaccount:access:b', 'system:serviceaccount:ops:jump'] &&";
        assert!(yaml(&both, true).contains(expected), "{}", yaml(&both, true));
        assert_eq!(both, writers(&["access/b", "ops/jump", "access-2/b"]));
        assert_eq!(
            both.flags(),
            "--operator-service-account access/broker --gateway-service-account access-2/b --gateway-service-account access/b --gateway-service-account ops/jump"
        );
        assert!(yaml(&writers(&[]), true).contains("request.userInfo.username in [] &&"));
    }

    #[test]
    fn without_the_mutating_policy_nothing_is_of_its_kind() {
        let yaml = yaml(&writers(&[]), false);
        assert!(!yaml.contains("kind: Mutating") && yaml.contains("kind: Validating"), "{yaml}");
    }
}
