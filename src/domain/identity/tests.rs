use super::*;

fn identity(username: &str, extra: &[(&str, &[&str])]) -> Identity {
    let values = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect();
    Identity {
        username: username.to_owned(),
        uid: Some("aws-iam-authenticator:123456789012:AROAEXAMPLE".to_owned()),
        groups: vec!["developers".to_owned()],
        extra: extra.iter().map(|(key, all)| ((*key).to_owned(), values(all))).collect(),
    }
}

/// What EKS says of a session under a role.
fn eks(username: &str, session: &str) -> Identity {
    let arn = format!("arn:aws:sts::123456789012:assumed-role/dev/{session}");
    identity(
        username,
        &[
            ("arn", &[&arn]),
            ("canonicalArn", &["arn:aws:iam::123456789012:role/dev"]),
            ("sessionName", &[session]),
            ("accessKeyId", &["ASIAEXAMPLE"]),
        ],
    )
}

#[track_caller]
fn is(rule: &str, identity: &Identity, expected: Option<&str>) {
    let rule: PrincipalRule = rule.parse().unwrap_or_else(|error| panic!("{rule}: {error}"));
    assert_eq!(rule.principal(identity).as_ref().map(Principal::as_str), expected, "{rule}");
}

#[test]
fn by_default_a_person_is_their_session_or_else_their_user_name() {
    let rows = [
        (identity("alice", &[]), Some("alice")),
        // Two people under one role are two, also where both are mapped to one user name.
        (eks("dev", "alice@example.com"), Some("alice@example.com")),
        (eks("dev", "bob@example.com"), Some("bob@example.com")),
        // One person under two roles is one.
        (eks("lead", "alice@example.com"), Some("alice@example.com")),
        // An IAM user has no session.
        (identity("carol", &[("sessionName", &[""]), ("canonicalArn", &["arn:aws:iam::1:user/carol"])]), Some("carol")),
        (identity("carol", &[("sessionName", &[])]), Some("carol")),
        // Names that SDKs make up are others each time, and the same person.
        (eks("dev", "botocore-session-1700000001"), Some("arn:aws:iam::123456789012:role/dev")),
        (eks("dev", "botocore-session-1700000002"), Some("arn:aws:iam::123456789012:role/dev")),
        (eks("dev", "aws-go-sdk-1700000003"), Some("arn:aws:iam::123456789012:role/dev")),
        // Without the role's name nobody knows whose session it is.
        (identity("dev", &[("sessionName", &["botocore-session-1"])]), None),
        (identity("system:serviceaccount:team:robot", &[]), Some("system:serviceaccount:team:robot")),
        // A spelling makes nobody another.
        (identity(" Alice ", &[]), Some("alice")),
        (eks("dev", "ALICE@example.com"), Some("alice@example.com")),
        (identity("", &[]), None),
        (identity("  ", &[]), None),
    ];
    for (identity, expected) in rows {
        is(DEFAULT_RULE, &identity, expected);
        assert_eq!(PrincipalRule::default().principal(&identity).as_ref().map(Principal::as_str), expected);
    }
}

#[test]
fn a_rule_says_who_is_one_and_who_is_nobody() {
    let alice = identity("alice@corp", &[("email", &["a@example.com"]), ("a/b", &["x", "y"])]);
    let rows: &[(&str, Option<&str>)] = &[
        ("user.username", Some("alice@corp")),
        ("user.uid", Some("aws-iam-authenticator:123456789012:aroaexample")),
        ("user.extra.email[0]", Some("a@example.com")),
        ("user.extra['a/b'][1]", Some("y")),
        ("has(user.extra.email) ? user.extra.email[0] : user.username", Some("a@example.com")),
        ("user.username.endsWith('@corp') ? 'person' : ''", Some("person")),
        // Nobody: empty, blank, an error, and too long to be shown whole.
        ("user.username == 'x' ? 'x' : ''", None),
        ("'  '", None),
        ("user.extra.missing[0]", None),
        ("user.extra.email[7]", None),
        ("user.groups.filter(g, g == 'none')[0]", None),
    ];
    for (rule, expected) in rows {
        is(rule, &alice, *expected);
    }
    is("user.username", &identity(&"x".repeat(256), &[]), Some(&"x".repeat(256)));
    is("user.username", &identity(&"x".repeat(257), &[]), None);
    // Without uid it is empty, not absent.
    is("user.uid + '/' + user.username", &Identity { username: "alice".into(), ..Identity::default() }, Some("/alice"));
}

#[test]
fn what_is_no_rule_is_refused_with_the_reason() {
    let rows = [
        ("", "is no CEL expression"),
        ("user.", "is no CEL expression"),
        ("user.username ==", "is no CEL expression"),
        ("usr.username", "Undeclared reference to 'usr'"),
        ("username", "Undeclared reference to 'username'"),
        ("user.username == 'alice'", "yields"),
        ("1", "yields"),
        ("user.groups", "yields"),
        ("null", "yields"),
    ];
    for (rule, words) in rows {
        let error = rule.parse::<PrincipalRule>().expect_err(rule).to_string();
        assert!(error.contains(words), "{rule:?}: {error}");
    }
    let long = format!("'{}'", "x".repeat(5000));
    assert!(matches!(long.parse::<PrincipalRule>(), Err(PrincipalRuleError::TooLong { length: 5002 })));
}

#[test]
fn the_largest_identity_that_the_api_takes_is_judged_in_a_moment() {
    let extra = (0..64).map(|n| (format!("key-{n}"), vec!["v".repeat(4096); 64])).collect();
    let groups = vec!["g".repeat(1024); 512];
    let largest = Identity { username: "alice".into(), uid: None, groups, extra };
    // 16 MiB of it: copied once, and never walked by the default rule.
    assert_eq!(PrincipalRule::default().principal(&largest).as_ref().map(Principal::as_str), Some("alice"));
}
