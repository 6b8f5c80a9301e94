//! Who may ask for others, and for whom.
//!
//! A delegate is a service account that a policy names. What it says of a subject is its word alone: the subject is
//! matched by user name, and is in no group, since nobody vouches for one.

use std::time::Duration;

use super::{EVERYTHING, Policy, Question, names};
use crate::api::{Effect, Identity, PolicyDelegate, ServiceAccountName, SubjectKind};
use crate::domain::subject::{SERVICE_ACCOUNT_PREFIX, is_person, is_service_account};
use crate::domain::time::plus;

/// The group that everybody is in who has a name.
const AUTHENTICATED_GROUP: &str = "system:authenticated";

impl Policy {
    /// Whether its subjects and delegates are about who asks, and who gets in.
    ///
    /// For an Allow whose delegate asks for others that is so whoever they ask for; `delegation_finding` says the rest. A
    /// Deny is about a request if it names either of the two.
    pub(super) fn is_about(&self, question: &Question<'_>) -> bool {
        let is_named = |identity: &Identity| self.spec.subjects.iter().any(|subject| names(subject, identity));
        match (self.spec.effect, question.subject) {
            (_, None) => is_named(question.requester),
            (Effect::Allow, Some(_)) => self.delegates(question).next().is_some(),
            (Effect::Deny, Some(subject)) => {
                is_named(question.requester)
                    || is_named(subject)
                    || self.names_everybody() && is_person(&subject.username)
            }
        }
    }

    /// What keeps a delegate from asking this: another subject than it may assert, no end, or too late a one.
    ///
    /// The window is judged from the request's creation, so that it is the same whenever it is asked about.
    pub(super) fn delegation_finding(&self, question: &Question<'_>) -> Option<String> {
        let delegates: Vec<_> = self.delegates(question).collect();
        if delegates.is_empty() {
            return None;
        }
        let may = delegates
            .iter()
            .filter(|delegate| question.subject.is_none_or(|subject| self.may_assert(delegate, subject)));
        let Some(window_seconds) = may.map(|delegate| delegate.max_window_seconds).max() else {
            return Some(
                "lets this delegate ask for others, and not for this spec.subject: it is named neither in spec.subjects as a User nor in the delegate's subjectUsernames"
                    .to_owned(),
            );
        };
        let window = Duration::from_secs(u64::try_from(window_seconds).unwrap_or_default());
        let latest = plus(question.created_time, window);
        match question.spec.end_time.as_ref().map(|time| time.0) {
            None => Some(format!(
                "requires spec.endTime of its delegates, {window_seconds} s after the request was made at the latest, which is {latest}"
            )),
            Some(end_time) if end_time > latest => Some(format!(
                "allows its delegates a spec.endTime {window_seconds} s after the request was made at the latest (maxWindowSeconds), which is {latest}, asked was {end_time}"
            )),
            Some(_) => None,
        }
    }

    /// The entries of `delegates` that name who asks.
    fn delegates<'p>(&'p self, question: &Question<'p>) -> impl Iterator<Item = &'p PolicyDelegate> {
        let requester = question.requester;
        let all = self.spec.delegates.iter().flatten();
        all.filter(move |delegate| is(&delegate.service_account, requester))
    }

    fn may_assert(&self, delegate: &PolicyDelegate, subject: &Identity) -> bool {
        match &delegate.subject_usernames {
            None => self.spec.subjects.iter().any(|named| names(named, subject)),
            Some(usernames) => usernames.iter().any(|entry| {
                // Everybody are people: who is not must be written out.
                *entry == subject.username || entry == EVERYTHING && is_person(&subject.username)
            }),
        }
    }

    /// Whether a Deny is meant for all people. An asserted subject's groups are not known, but this one is everybody's.
    fn names_everybody(&self) -> bool {
        let is_everybody = |kind, name: &str| kind == SubjectKind::Group && name == AUTHENTICATED_GROUP;
        self.spec.subjects.iter().any(|subject| is_everybody(subject.kind, &subject.name))
    }
}

/// Whether a requester is this service account, and not somebody who is called like it.
fn is(account: &ServiceAccountName, requester: &Identity) -> bool {
    let name = requester.username.strip_prefix(SERVICE_ACCOUNT_PREFIX).and_then(|rest| rest.split_once(':'));
    name == Some((&account.namespace, &account.name)) && is_service_account(requester)
}
