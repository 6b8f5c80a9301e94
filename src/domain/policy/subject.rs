//! Who a policy names.

use crate::api::{Identity, PolicySubject, SubjectKind};
use crate::domain::condition::bounded;
use crate::domain::subject::{SERVICE_ACCOUNT_GROUP, SERVICE_ACCOUNT_PREFIX};

/// Whether a policy's subject is this identity. People and service accounts are told apart by kind, so that nobody
/// becomes a person by minting a token.
pub fn names(subject: &PolicySubject, identity: &Identity) -> bool {
    let account = identity.username.strip_prefix(SERVICE_ACCOUNT_PREFIX);
    match subject.kind {
        SubjectKind::User => account.is_none() && subject.name == identity.username,
        SubjectKind::Group => {
            let of_accounts = subject.name == SERVICE_ACCOUNT_GROUP
                || subject.name.strip_prefix(SERVICE_ACCOUNT_GROUP).is_some_and(|rest| rest.starts_with(':'));
            (account.is_none() || of_accounts) && identity.groups.contains(&subject.name)
        }
        SubjectKind::ServiceAccount => match (account, subject.name.split_once('/')) {
            (Some(account), Some((namespace, name))) => account.split_once(':') == Some((namespace, name)),
            _ => false,
        },
    }
}

/// A policy's subject, for people.
pub fn subject_text(subject: &PolicySubject) -> String {
    format!("{:?} {}", subject.kind, bounded(subject.name.clone(), 64))
}
