//! Who is the same person: canonical principals, by a rule of the operator's configuration.
//!
//! The rule is one CEL expression over `user {username, uid, groups, extra}`. What it yields is compared, and nothing else
//! of an identity is: two user names may be one person, and one user name two. This is the only file that knows how CEL
//! is run for identities.
//!
//! # Guarantees
//! An expression that fails, panics, or yields no text or an empty one makes the identity nobody: `None`, who may do
//! nothing. Texts are compared without regard to case and surrounding blanks, so that nobody becomes two by a spelling.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::str::FromStr;
use std::sync::{Arc, LazyLock};

use cel::objects::{Key, Map};
use cel::{Context, Env, ExecutionError, Program, Value};

use crate::api::Identity;

/// The rule, where the operator's configuration has none.
///
/// On EKS (access entries, and aws-iam-authenticator) `extra.sessionName` is the session's name under an IAM role, and
/// empty for an IAM user; the `uid` is the role's, shared by all who assume it. A session name that an SDK makes up is
/// another one each time: those are the role's own, so that one person is never two by asking again. Everybody else is
/// their user name. Source: kubernetes-sigs/aws-iam-authenticator, `pkg/server/server.go` (arn, canonicalArn,
/// sessionName, accessKeyId).
pub const DEFAULT_RULE: &str = "\
has(user.extra.sessionName) && user.extra.sessionName.exists(name, name != '') \
? (user.extra.sessionName.exists(name, name.startsWith('botocore-session-') || name.startsWith('aws-go-sdk-') || \
name.startsWith('aws-sdk-')) ? user.extra.canonicalArn[0] : user.extra.sessionName[0]) \
: user.username";
/// The longest rule, in bytes: it is parsed by recursion.
const RULE_BYTES_MAX: usize = 4096;
/// The longest principal, in characters: it stands in status, and a longer one is nobody rather than cut, since two that
/// are cut could be one.
const PRINCIPAL_LENGTH_MAX: usize = 256;

/// A person, or a service account, whatever name they used this time. Never empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Principal(Arc<str>);

impl Principal {
    /// Makes one of a text as it is compared: without regard to case and surrounding blanks. `None`: it is nobody's.
    pub(super) fn canonical(text: &str) -> Option<Self> {
        let text = text.trim().to_lowercase();
        let is_one = !text.is_empty() && text.chars().count() <= PRINCIPAL_LENGTH_MAX;
        is_one.then(|| Self(text.into()))
    }

    /// As it is compared.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How an identity's principal is found: a CEL expression, compiled once.
#[derive(Clone)]
pub struct PrincipalRule {
    source: Arc<str>,
    program: Arc<Program>,
    env: Arc<Env>,
}

/// Why a text is no rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrincipalRuleError {
    /// It is longer than any rule needs to be.
    #[error("is {length} bytes long; at most {RULE_BYTES_MAX} are taken")]
    TooLong {
        /// How long it is.
        length: usize,
    },
    /// It is no CEL.
    #[error(
        "is no CEL expression over user {{username, uid, groups, extra}} ({error}); the default is {DEFAULT_RULE:?}"
    )]
    Syntax {
        /// What the parser says.
        error: String,
    },
    /// It speaks of what is not there, or yields something else than a text.
    #[error("{error}; it must yield a text, and knows user {{username, uid, groups, extra}} alone")]
    Meaning {
        /// What came of it.
        error: String,
    },
}

static DEFAULT: LazyLock<PrincipalRule> =
    LazyLock::new(|| DEFAULT_RULE.parse().expect("a test has parsed this very text"));

impl Default for PrincipalRule {
    fn default() -> Self {
        DEFAULT.clone()
    }
}

impl fmt::Debug for PrincipalRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PrincipalRule").field(&self.source).finish()
    }
}

impl fmt::Display for PrincipalRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)
    }
}

impl FromStr for PrincipalRule {
    type Err = PrincipalRuleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > RULE_BYTES_MAX {
            return Err(PrincipalRuleError::TooLong { length: text.len() });
        }
        let env = Arc::new(Env::stdlib());
        // A parser that panics has not parsed it.
        let program = std::panic::catch_unwind(AssertUnwindSafe(|| env.compile(text)))
            .map_err(|_| PrincipalRuleError::Syntax { error: "the parser gave up".to_owned() })?
            .map_err(|error| PrincipalRuleError::Syntax { error: one_line(&error.to_string()) })?;
        let rule = Self { source: text.into(), program: Arc::new(program), env };
        // An expression may name what is not there: found out now, and not when everybody is nobody. One that fails on
        // somebody without extra may be meant so: they are nobody.
        match rule.outcome(&Identity { username: "alice".to_owned(), ..Identity::default() }) {
            Some(Ok(Value::String(_))) => Ok(rule),
            Some(Ok(other)) => Err(PrincipalRuleError::Meaning { error: format!("yields {:?}", other.type_of()) }),
            Some(Err(error @ ExecutionError::UndeclaredReference(_))) => {
                Err(PrincipalRuleError::Meaning { error: one_line(&error.to_string()) })
            }
            Some(Err(_)) => Ok(rule),
            None => Err(PrincipalRuleError::Meaning { error: "makes the interpreter give up".to_owned() }),
        }
    }
}

impl PrincipalRule {
    /// Returns who an identity is; `None` is nobody, who may do nothing.
    pub fn principal(&self, identity: &Identity) -> Option<Principal> {
        match self.outcome(identity) {
            Some(Ok(Value::String(text))) => Principal::canonical(&text),
            Some(Ok(_) | Err(_)) | None => None,
        }
    }

    /// What the expression yields; none, if the interpreter panics: what it may panic on is written by whoever made the
    /// identity, and must not take a watch down.
    fn outcome(&self, identity: &Identity) -> Option<Result<Value, ExecutionError>> {
        let mut context = Context::with_env(Arc::clone(&self.env));
        context.add_variable_from_value("user", user(identity));
        std::panic::catch_unwind(AssertUnwindSafe(|| self.program.execute(&context))).ok()
    }
}

/// An identity as the expression sees it: no field is ever absent, so that only `extra` needs `has`.
fn user(identity: &Identity) -> Value {
    let text = |text: &str| Value::String(Arc::new(text.to_owned()));
    let texts = |texts: &[String]| Value::List(Arc::new(texts.iter().map(|it| text(it)).collect()));
    let extra = identity.extra.iter().map(|(key, values)| (key.as_str(), texts(values))).collect();
    map([
        ("username", text(&identity.username)),
        ("uid", text(identity.uid.as_deref().unwrap_or_default())),
        ("groups", texts(&identity.groups)),
        ("extra", map::<Vec<_>>(extra)),
    ])
}

fn map<'a, T: IntoIterator<Item = (&'a str, Value)>>(fields: T) -> Value {
    let fields = fields.into_iter().map(|(key, value)| (Key::String(Arc::new(key.to_owned())), value));
    Value::Map(Map { map: Arc::new(fields.collect()) })
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests;
