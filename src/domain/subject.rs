//! Who gets in by a request: its requester, or the subject for whom a delegate asks.
//!
//! What a request asserts of its subject is the delegate's word. The API server vouches for a user name, groups, uid and
//! extra of the requester alone; so of an asserted subject there is the user name, and nothing else that could be wrong.

use std::borrow::Cow;

use crate::api::{Identity, InstanceAccessSpec};

use super::condition::bounded;

/// How the user name of every service account begins. Source: Kubernetes, `serviceaccount.MakeUsername`.
pub(super) const SERVICE_ACCOUNT_PREFIX: &str = "system:serviceaccount:";
/// The group of all service accounts; that of a namespace's follows after a colon. A token of one always carries both.
pub(super) const SERVICE_ACCOUNT_GROUP: &str = "system:serviceaccounts";
/// How the names of Kubernetes' own users begin, service accounts among them.
const SYSTEM_PREFIX: &str = "system:";
/// The longest user name in a message, in characters.
const NAME_LENGTH_MAX: usize = 256;

/// Returns who gets in by a request: the one whose access is counted, told and limited. `None`: nobody knows who asks.
pub fn subject(spec: &InstanceAccessSpec) -> Option<Cow<'_, Identity>> {
    match asserted(spec) {
        Some(subject) => Some(Cow::Owned(subject)),
        None => spec.requester.as_ref().map(Cow::Borrowed),
    }
}

/// Returns the subject that a request asserts, of whom only the user name is known; `None`: the requester gets in.
///
/// Who names themselves asserts nobody.
pub fn asserted(spec: &InstanceAccessSpec) -> Option<Identity> {
    let subject = spec.subject.as_ref()?;
    let is_own = spec.requester.as_ref().is_some_and(|requester| requester.username == subject.username);
    (!is_own).then(|| Identity { username: subject.username.clone(), ..Identity::default() })
}

/// What is wrong with an asserted subject, whatever any policy says; for the requester to read.
pub fn finding(requester: &Identity, subject: &Identity) -> Option<String> {
    let name = &subject.username;
    if !is_service_account(requester) {
        return Some(format!(
            "spec.subject: {} may not ask for {}; only a service account that a policy names in spec.delegates may ask for others. Leave spec.subject out to ask for yourself",
            shown(requester),
            shown(subject)
        ));
    }
    if name.trim() != name || !name.chars().all(is_seen) {
        return Some(
            "spec.subject.username has blanks around it, or characters in it that do not show, so that it could be taken for another's; write what kubectl auth whoami shows that person"
                .to_owned(),
        );
    }
    None
}

/// Whether a character shows what it is: nobody approves for `alice` what is asked for `alice` with a blank of no width.
fn is_seen(character: char) -> bool {
    character.is_alphanumeric() || character.is_ascii_graphic() || character == ' '
}

/// Who gets in, and who asked for it, for people.
pub fn text(requester: &Identity, subject: Option<&Identity>) -> String {
    match subject {
        None => requester.username.clone(),
        Some(subject) => format!("{} (asked for by {})", shown(subject), shown(requester)),
    }
}

/// Whether an identity is a service account, which its token says in its user name and in its groups: somebody who is
/// called like one, by an authenticator that lets people choose their names, is none.
pub(super) fn is_service_account(identity: &Identity) -> bool {
    let namespace = identity.username.strip_prefix(SERVICE_ACCOUNT_PREFIX).and_then(|rest| rest.split_once(':'));
    namespace.is_some_and(|(namespace, _)| {
        let has = |group: &str| identity.groups.iter().any(|known| known == group);
        has(SERVICE_ACCOUNT_GROUP) && has(&format!("{SERVICE_ACCOUNT_GROUP}:{namespace}"))
    })
}

/// Whether a user name may be a person's: neither a service account's nor one of Kubernetes' own, however it is spelt.
pub(super) fn is_person(username: &str) -> bool {
    !username.trim_start().to_lowercase().starts_with(SYSTEM_PREFIX)
}

/// A user name for people. What a request asserts may be as long as the CRD lets it, and must not push the rest out.
pub fn shown(identity: &Identity) -> String {
    bounded(identity.username.clone(), NAME_LENGTH_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::SubjectName;

    fn spec(requester: Option<&str>, subject: Option<&str>) -> InstanceAccessSpec {
        let mut spec: InstanceAccessSpec =
            serde_json::from_value(serde_json::json!({"target": {}, "osUser": "ec2-user", "sshPublicKey": "x"}))
                .unwrap();
        spec.requester = requester.map(|username| Identity {
            username: username.into(),
            uid: Some("uid".into()),
            groups: vec!["developers".into()],
            ..Identity::default()
        });
        spec.subject = subject.map(|username| SubjectName { username: username.into() });
        spec
    }

    #[test]
    fn of_an_asserted_subject_the_user_name_is_known_and_nothing_else() {
        let named = |username: &str| Identity { username: username.into(), ..Identity::default() };
        let own = spec(Some("robot"), None);
        assert_eq!(subject(&own).as_deref(), own.requester.as_ref());
        assert_eq!(asserted(&own), None);
        // Who names themselves keeps their groups, and is asserted by nobody.
        let own = spec(Some("robot"), Some("robot"));
        assert_eq!((subject(&own).as_deref(), asserted(&own)), (own.requester.as_ref(), None));
        for other in ["alice", "Robot", "robot ", "*"] {
            let spec = spec(Some("robot"), Some(other));
            assert_eq!(subject(&spec).as_deref(), Some(&named(other)));
            assert_eq!(asserted(&spec), Some(named(other)));
        }
        assert_eq!(subject(&spec(None, None)), None);
    }

    #[test]
    fn what_does_not_show_is_nobodys_name() {
        let groups = ["system:serviceaccounts", "system:serviceaccounts:argocd"].map(str::to_owned).to_vec();
        let robot = Identity { username: "system:serviceaccount:argocd:robot".into(), groups, ..Identity::default() };
        for (username, expected) in [
            ("alice", true),
            ("oidc:alice+ops@example.com", true),
            ("arn:aws:sts::123456789012:assumed-role/dev/alice", true),
            ("CN=Alice Doe, O=Example", true),
            ("Zoë", true),
            ("李雷", true),
            ("*", true),
            ("", true),
            (" alice", false),
            ("alice ", false),
            ("alice\u{a0}", false),
            ("al\nice", false),
            ("al\u{0}ice", false),
            ("alice\u{200b}", false),
            ("al\u{202e}ice", false),
            ("al\u{a0}ice", false),
        ] {
            let subject = Identity { username: username.into(), ..Identity::default() };
            assert_eq!(finding(&robot, &subject).is_none(), expected, "{username:?}");
            let alice = Identity { username: "alice".into(), ..Identity::default() };
            assert!(finding(&alice, &subject).unwrap().starts_with("spec.subject: alice may not ask for"));
        }
    }

    #[test]
    fn who_is_called_like_a_service_account_and_has_not_its_groups_is_none() {
        let both = ["system:serviceaccounts", "system:serviceaccounts:argocd", "system:authenticated"];
        let rows: &[(&str, &[&str], bool)] = &[
            ("system:serviceaccount:argocd:robot", &both, true),
            ("system:serviceaccount:argocd:robot", &["developers", "system:authenticated"], false),
            ("system:serviceaccount:argocd:robot", &["system:serviceaccounts"], false),
            ("system:serviceaccount:argocd:robot", &["system:serviceaccounts:argocd"], false),
            ("system:serviceaccount:flux:robot", &both, false),
            ("system:serviceaccount:argocd", &both, false),
            ("system:serviceaccounts:argocd:robot", &both, false),
            ("System:serviceaccount:argocd:robot", &both, false),
            ("argocd:robot", &both, false),
            ("alice", &both, false),
        ];
        for (username, groups, expected) in rows {
            let identity = Identity {
                username: (*username).into(),
                groups: groups.iter().map(|group| (*group).to_owned()).collect(),
                ..Identity::default()
            };
            assert_eq!(is_service_account(&identity), *expected, "{username} of {groups:?}");
        }
    }

    #[test]
    fn kubernetes_own_names_are_no_persons_however_they_are_spelt() {
        for (username, expected) in [
            ("alice", true),
            ("oidc:alice@example.com", true),
            ("systematic", true),
            ("*", true),
            ("system:admin", false),
            ("system:serviceaccount:argocd:robot", false),
            ("System:Admin", false),
            ("\u{a0}system:admin", false),
        ] {
            assert_eq!(is_person(username), expected, "{username:?}");
        }
    }
}
