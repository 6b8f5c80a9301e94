//! What an expression may ask, what it comes to, and that none burns a core.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::api::{ConnectionMethod, Identity, InstanceAccessSpec, KeyDelivery};
use crate::domain::cloud::{AccountId, Instance, InstanceId, InstanceState, Region};
use crate::domain::key::PublicKey;
use crate::domain::node::AskedNode;
use crate::domain::policy::Question;

const ED25519: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFfcsBlCiP8zjAovSSo3q1ARxbGaJuUh3l6diFgdIU4t";

/// What is asked about, owned.
struct Ask {
    requester: Identity,
    spec: InstanceAccessSpec,
    instance: Option<Instance>,
    method: ConnectionMethod,
    key: PublicKey,
}

/// Alice asks on Monday, 2026-03-02, at noon in UTC.
fn ask() -> Ask {
    Ask {
        requester: Identity {
            username: "alice".into(),
            uid: None,
            groups: vec!["developers".into(), "team-a".into()],
            extra: BTreeMap::from([("mfa".to_owned(), vec!["yes".to_owned()])]),
        },
        spec: serde_json::from_value(serde_json::json!({
            "target": {"tags": {"Name": "web-1"}},
            "osUser": "ec2-user",
            "sshPublicKey": ED25519,
            "ttlSeconds": 600,
            "endTime": "2026-03-02T18:00:00Z",
            "reason": "INC-1: the disk is full",
        }))
        .unwrap(),
        instance: Some(Instance {
            id: InstanceId::parse("i-0123456789abcdef0").unwrap(),
            account_id: AccountId::parse("123456789012").unwrap(),
            region: Region::parse("us-west-2").unwrap(),
            state: InstanceState::Running,
            availability_zone: Some("us-west-2a".into()),
            vpc_id: Some("vpc-1".into()),
            subnet_id: None,
            private_ip: Some([10, 0, 1, 7].into()),
            public_ip: None,
            ipv6: None,
            tags: [("env".to_owned(), "dev".to_owned()), ("aws:x/y".to_owned(), "secret-value".to_owned())].into(),
        }),
        method: ConnectionMethod::Direct,
        key: PublicKey::parse(ED25519).unwrap(),
    }
}

/// As large as the shapes let it be.
fn largest() -> Ask {
    let text = |length: usize, number: usize| format!("{number:0length$}");
    let mut ask = ask();
    ask.requester = Identity {
        username: text(4096, 0),
        uid: Some(text(4096, 0)),
        groups: (0..512).map(|number| text(1024, number)).collect(),
        extra: (0..64).map(|key| (text(1024, key), (0..64).map(|number| text(4096, number)).collect())).collect(),
    };
    ask.spec.reason = Some("a".repeat(4096));
    ask.spec.ticket = Some("a".repeat(512));
    let tags: BTreeMap<String, String> = (0..50).map(|number| (text(512, number), text(1024, number))).collect();
    ask.spec.target.tags = Some(tags.clone());
    ask.instance.as_mut().unwrap().tags = tags;
    ask
}

impl Ask {
    fn facts(&self) -> Facts {
        Facts::of(&Question {
            now: "2026-03-02T12:00:00Z".parse().unwrap(),
            granted: None,
            requester: &self.requester,
            subject: None,
            created_time: "2026-03-02T12:00:00Z".parse().unwrap(),
            name: "fix-web-1",
            namespace: "team-a",
            spec: &self.spec,
            port: 22,
            region: None,
            instance_id: None,
            node: AskedNode::None,
            os_user: &self.spec.os_user,
            key: &self.key,
            ttl_seconds: self.spec.ttl_seconds,
            key_delivery: KeyDelivery::Continuous,
            reason: self.spec.reason.as_deref(),
            ticket: self.spec.ticket.as_deref(),
            policy_name: None,
            instance: self.instance.as_ref(),
            method: self.method,
        })
    }
}

fn compiled(expression: &str) -> Result<Conditions, Vec<String>> {
    Conditions::compile(&[PolicyCondition { expression: expression.into(), message: "ask the owner".into() }])
}

/// The empty word: it holds. `!`: it does not. Any other: part of why it could not be said.
#[track_caller]
fn comes_to(ask: &Ask, expression: &str, expected: &str) {
    let conditions = compiled(expression).unwrap_or_else(|findings| panic!("{expression}: {findings:?}"));
    let findings = conditions.findings(&ask.facts());
    match expected {
        "" => assert_eq!(findings, [""; 0], "{expression}"),
        "!" => assert_eq!(findings, ["has a condition that does not hold: ask the owner"], "{expression}"),
        part => {
            assert_eq!(findings.len(), 1, "{expression}");
            let start = "has a condition that does not hold: ask the owner (";
            assert!(findings[0].starts_with(start) && findings[0].contains(part), "{expression}: {}", findings[0]);
        }
    }
}

#[track_caller]
fn is_a_mistake(expression: &str, part: &str) {
    let findings = compiled(expression).map(drop).expect_err(expression);
    assert!(
        findings.len() == 1 && findings[0].starts_with("spec.conditions") && findings[0].contains(part),
        "{expression}: {findings:?}, not {part:?}"
    );
}

#[test]
fn an_expression_may_ask_what_the_page_says() {
    #[rustfmt::skip]
    let rows = [
        ("true", ""),
        ("false", "!"),
        ("request.reason.startsWith('INC-') || instance.tags.env != 'prod'", ""),
        ("request.reason.startsWith('CHG-') || instance.tags.env == 'prod'", "!"),
        ("request.name == 'fix-web-1' && request.namespace == 'team-a' && request.osUser == 'ec2-user'", ""),
        ("request.ttlSeconds <= 600 && request.port == 22 && request.connectionMethod == 'Direct'", ""),
        ("request.key.type == 'ED25519' && request.key.bits == 256 && request.key.fingerprint.startsWith('SHA256:')", ""),
        ("request.target.tags.Name == 'web-1' && !has(request.target.instanceId)", ""),
        ("!has(request.ticket) && has(request.reason) && !has(request.startTime)", ""),
        ("request.endTime - now <= duration('6h')", ""),
        ("subject.username == 'alice' && 'team-a' in subject.groups && !has(subject.uid)", ""),
        ("subject.groups.exists(g, g == request.namespace)", ""),
        ("request.requester.username == subject.username", ""),
        ("subject.groups.all(g, g.startsWith('team-'))", "!"),
        ("'yes' in subject.extra['mfa'] && subject.extra.mfa.size() == 1", ""),
        ("subject.groups.filter(g, g.startsWith('team-')).map(g, g + '!') == ['team-a!']", ""),
        ("subject.groups.exists_one(g, g == 'team-a')", ""),
        ("instance.id.matches('^i-[0-9a-f]+$') && instance.accountId == '123456789012' && instance.region == 'us-west-2'", ""),
        ("instance.vpcId == 'vpc-1' && !has(instance.subnetId) && instance.privateIp.startsWith('10.') && !has(instance.publicIp)", ""),
        ("has(instance.tags.env) && !has(instance.tags.owner) && !('owner' in instance.tags)", ""),
        ("instance.tags['aws:x/y'] == 'secret-value'", ""),
        ("instance.tags.all(key, instance.tags[key] != 'prod')", ""),
        ("now == timestamp('2026-03-02T12:00:00Z')", ""),
        ("now.getHours('Europe/Berlin') == 13 && now.getDayOfWeek() == 1", ""),
        ("(has(request.ticket) ? request.ticket : 'none') == 'none'", ""),
        ("{'a': 1, 'b': 2}[request.name == 'x' ? 'a' : 'b'] == 2 && [1, 2][1] == 2", ""),
        ("string(request.ttlSeconds) + 's' == '600s' && int('7') % 4 == 3 && -1 < 0", ""),
        ("request['reason'] != '' && size(subject.groups) == 2", ""),
        ("matches(request.reason, 'disk')", ""),
        // What cannot be said admits nothing, and is told without a value of anything.
        ("request.ticket == 'INC-1'", "there is no ticket"),
        ("instance.tags.owner == 'alice'", "there is no owner"),
        ("instance.tags.owner == 'alice' || true", ""),
        ("instance.tags.owner == 'alice' && false", "!"),
        ("subject.groups[7] == 'x'", "could not be evaluated"),
        ("1 / 0 == 1", "could not be evaluated"),
        ("9223372036854775807 + 1 > 0", "could not be evaluated"),
        ("int(instance.tags['aws:x/y']) == 1", "int failed"),
        ("instance.tags['aws:x/y'] < 1", "(string, int)"),
        ("now.getHours('Mars/Base') == 1", "failed"),
        ("request.ttlSeconds", "neither true nor false"),
        ("null", "neither true nor false"),
    ];
    for (expression, expected) in rows {
        comes_to(&ask(), expression, expected);
        let told = compiled(expression).unwrap().findings(&ask().facts()).concat();
        assert!(!told.contains("secret-value"), "{told}");
    }
}

#[test]
fn what_is_not_known_yet_is_left_open_and_nothing_else_is() {
    let open = |expression, part| {
        let mut ask = ask();
        (ask.instance, ask.method) = (None, ConnectionMethod::Auto);
        comes_to(&ask, expression, part);
    };
    open("instance.tags.env == 'prod'", "");
    open("request.connectionMethod == 'Endpoint'", "");
    open("false && instance.id == ''", "");
    open("subject.groups.exists(instance, instance == 'team-b')", "!");
    open("request.ttlSeconds < 600", "!");
    // The way is not known, the instance is.
    let mut ask = ask();
    ask.method = ConnectionMethod::Auto;
    comes_to(&ask, "instance.tags.env == 'prod'", "!");
    comes_to(&ask, "instance.tags.env == 'prod' && has(request.connectionMethod)", "");
}

#[test]
fn a_mistake_names_the_expression_the_place_and_the_remedy() {
    #[rustfmt::skip]
    let rows = [
        ("", "spec.conditions[0].expression: at line"),
        ("1 +", "at line 1, column "),
        ("request.reson == 'x'", "there is no field reson; request has name, namespace, osUser, reason, ticket"),
        ("subject.name == 'x'", "there is no field name; subject has username, uid, groups, extra"),
        ("instance.state == 'x'", "there is no field state"),
        ("request['reson'] == 'x'", "there is no field reson"),
        ("request[request.name] == 'x'", "looks up a field by a name that is not written out"),
        ("requester == 'x'", "there is no variable requester; there are request, subject, instance and now"),
        ("request.name.foo == 'x'", "asks for a field foo of what has no fields"),
        ("request.name", "must come to true or false"),
        ("request", "must come to true or false"),
        ("request.reason.matches(request.name)", "matches takes a pattern that is written out"),
        ("request.reason.matches('(?=x)')", "the syntax is that of Rust's regex"),
        ("request.reason.matches('((a{99}){99}){99}')", "exceeds size limit"),
        ("request.reason.lowerAscii() == 'x'", "calls lowerAscii in a way that is not known; the functions are size"),
        ("dyn(1) == 1", "calls dyn"),
        ("type(1) == int", "calls type"),
        ("int == int", "there is no variable int"),
        ("size(1) == 1", "calls size"),
        ("optional.of(1).hasValue()", "there is no variable optional"),
        ("request.?reason == 'x'", "unsupported syntax"),
        ("Foo{a: 1} == 1", "Foo is no type"),
        ("request.all(x, true)", "over what is neither a list nor a map"),
        ("request.name + 1 == 'x'", "uses the operator + on what it does not take"),
        ("subject.groups.map(g, [g]) == [] ? [1] : true", "mixes values of different kinds"),
        ("subject.groups.exists(g, g)", "uses the operator ||"),
        (".request.name == 'x'", "there is no"),
    ];
    for (expression, part) in rows {
        is_a_mistake(expression, part);
    }
}

/// Expressions that cost too much, or go too deep: none reaches an evaluation.
fn hostile() -> Vec<(String, &'static str)> {
    let nested = |depth: usize| {
        let (mut text, mut close) = (String::new(), String::new());
        for level in 0..depth {
            text.push_str(&format!("[0,1,2,3,4,5,6,7,8,9].all(v{level}, "));
            close.push(')');
        }
        format!("{text}true{close}")
    };
    let over = |list: &str| format!("{list}.all(a, {list}.all(b, a != b))");
    vec![
        (nested(7), "steps on the largest request"),
        (nested(16), "nested deeper than"),
        (over("subject.groups"), "steps on the largest request"),
        ("subject.groups.all(g, subject.extra.all(k, subject.extra[k].all(v, v != g)))".into(), "steps on the largest request"),
        ("subject.groups.map(a, subject.groups.map(b, a + b)).size() > 0".into(), "larger than a MiB"),
        ("subject.groups.map(a, subject.groups).size() > 0".into(), "larger than a MiB"),
        ("['a'].map(a, request.reason + request.reason).map(a, a + a + a + a).map(a, a + a + a + a).map(a, a + a + a + a).map(a, a + a + a + a).size() > 0".into(), "larger than a MiB"),
        ("subject.groups.all(g, g.matches('^(a|b|c)*$') && subject.username.matches('x'))".into(), "steps on the largest request"),
        ("subject.groups.all(g, g in subject.groups)".into(), "steps on the largest request"),
        (format!("{}1{}", "(".repeat(1000), ")".repeat(1000)), ""),
        (format!("{}1{} == 1", "[".repeat(1000), "]".repeat(1000)), "recursion limit"),
        (format!("{}1{} == 1", "(1+".repeat(600), ")".repeat(600)), "recursion limit"),
        (format!("{}1{}", "{1:".repeat(680), "}".repeat(680)), "recursion limit"),
        (format!("1{} == 1", "+1".repeat(1000)), "nested deeper than"),
        (format!("{}true", "true ? true : ".repeat(140)), "question marks"),
        (format!("{}true", "!".repeat(2000)), ""),
        (format!("{}1 == 1", "!-".repeat(1000)), "nested deeper than"),
        (format!("request{}", ".a".repeat(1000)), "nested deeper than"),
        (format!("'a'{} == 1", ".size()".repeat(290)), "nested deeper than"),
        (format!("request.a{}", "(".repeat(1900)), "recursion limit"),
        ("request.reason.matches('((((((a{9}){9}){9}){9}){9}){9})')".into(), "exceeds size limit"),
        ("true".to_owned() + &" ".repeat(9000), "bytes long"),
        (format!(">{}?[{}{}l\0?(-", "{".repeat(63), "(".repeat(11), "{".repeat(26)), "at line"),
    ]
}

#[test]
fn what_could_burn_a_core_is_a_mistake_of_its_policy() {
    let (start, rows) = (std::time::Instant::now(), hostile());
    for (expression, part) in &rows {
        match part {
            &"" => drop(compiled(expression).unwrap()),
            part => is_a_mistake(expression, part),
        }
    }
    // They take 0.1 s unoptimised; ten seconds is a core that burns.
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    // Each alone is cheap enough, together they are not.
    let one = PolicyCondition {
        expression: "subject.groups.exists(g, g.matches('^team-[a-z]+$'))".into(),
        message: "x".into(),
    };
    assert!(Conditions::compile(std::slice::from_ref(&one)).is_ok());
    let findings = Conditions::compile(&[one.clone(), one]).unwrap_err();
    assert!(findings[0].starts_with("spec.conditions: could take 1"), "{findings:?}");
}

#[test]
fn the_deepest_expression_that_is_let_pass_has_stack_enough() {
    // Tests have threads of 2 MiB, as the runtime's are, and unoptimised frames are larger.
    let nested = |depth: usize, open: &str, close: &str| format!("{}true{}", open.repeat(depth), close.repeat(depth));
    for (open, close) in
        [("[1].all(v, ", ")"), ("[", "].size() == 1"), ("!(true == ", ")"), ("(true||true&&1==1+1*(2<", "))")]
    {
        let mut deepest = 0;
        for depth in 1..60 {
            if let Ok(conditions) = compiled(&nested(depth, open, close)) {
                deepest = depth;
                let _ = conditions.findings(&ask().facts());
            }
        }
        assert!((3..59).contains(&deepest), "{open}: {deepest}");
    }
}

/// The dearest that the bill lets pass, on the largest request that the bounds let pass.
#[test]
fn the_dearest_expression_on_the_largest_request_comes_to_an_end() {
    let ask = largest();
    assert_eq!(ask.facts().too_large(), None);
    let numbers = (0..60).map(|number| number.to_string()).collect::<Vec<_>>().join(",");
    for expression in [
        format!("[{numbers}].all(a, [{numbers}].all(b, a + b >= 0))"),
        "[0,1,2,3,4,5,6,7,8,9].all(a, [0,1,2,3,4,5,6,7,8,9].all(b, [0,1,2,3,4,5,6,7,8,9].all(c, [0,1,2,3,4,5,6,7,8,9].all(d, a + b + c + d >= 0))))".into(),
        // A pattern with many states, and a text that keeps them all alive.
        "subject.groups.all(g, !g.matches('(0*1?){40}x'))".into(),
        "request.reason.matches('^(a|aa|aaa|[a-f]+|.*a.*){30}$')".into(),
        "subject.extra.all(key, subject.extra[key][0] != key)".into(),
        "subject.groups.map(g, g.contains('1') ? 'a' : g).filter(g, g.contains('1')).size() > 0".into(),
        "subject.extra.all(k, subject.extra[k].all(v, v != subject.username))".into(),
        "instance.tags.all(k, request.target.tags.all(l, k == l || instance.tags[k] != request.target.tags[l]))".into(),
        // An error for each item, with copies of what it is about.
        "subject.groups.all(g, int(g) / 0 == 1)".into(),
    ] {
        let conditions = compiled(&expression).unwrap_or_else(|findings| panic!("{expression}: {findings:?}"));
        let (facts, start) = (ask.facts(), std::time::Instant::now());
        let findings = conditions.findings(&facts);
        let elapsed = start.elapsed();
        println!("{elapsed:?} {} {expression}", findings.len());
        // Unoptimised, beside other tests: some seconds at most. What is not bounded takes hours.
        assert!(elapsed < Duration::from_secs(20), "{elapsed:?} for {expression}");
    }
}

#[test]
fn a_request_beyond_the_bounds_is_not_evaluated() {
    let larger = |change: fn(&mut Ask)| {
        let mut ask = ask();
        change(&mut ask);
        ask
    };
    for (change, what) in [
        ((|ask| ask.requester.groups = vec!["x".into(); 513]) as fn(&mut Ask), "subject is too large"),
        (|ask| ask.requester.groups.push("x".repeat(1025)), "subject is too large"),
        (|ask| drop(ask.requester.extra.insert("x".into(), vec![String::new(); 65])), "subject is too large"),
        (|ask| ask.spec.reason = Some("x".repeat(4097)), "request is too large"),
        (|ask| drop(ask.instance.as_mut().unwrap().tags.insert("x".into(), "x".repeat(1025))), "instance is too large"),
    ] {
        comes_to(&larger(change), "true || instance.id == ''", what);
    }
}

fn any_expression() -> impl Strategy<Value = String> {
    let leaf = prop::sample::select(vec![
        "true",
        "1",
        "-7",
        "1u",
        "2.5",
        "'a'",
        "b'a'",
        "null",
        "request",
        "request.reason",
        "request.ttlSeconds",
        "request.ticket",
        "subject.groups",
        "subject.extra",
        "instance.tags",
        "instance.tags.env",
        "now",
        "x",
        "[]",
        "{}",
        "duration('1h')",
        "timestamp('2026-03-02T12:00:00Z')",
        "9223372036854775807",
        "-9223372036854775808",
    ])
    .prop_map(str::to_owned);
    leaf.prop_recursive(5, 40, 3, |inner| {
        let operator = prop::sample::select(vec!["&&", "||", "==", "!=", "<", ">=", "+", "-", "*", "/", "%", "in"]);
        let function = prop::sample::select(vec![
            "size",
            "string",
            "int",
            "uint",
            "double",
            "bool",
            "timestamp",
            "duration",
            "contains",
            "startsWith",
            "matches",
            "getHours",
            "getDayOfYear",
            "has",
            "dyn",
        ]);
        let r#macro = prop::sample::select(vec!["all", "exists", "exists_one", "map", "filter"]);
        prop_oneof![
            3 => (inner.clone(), operator, inner.clone()).prop_map(|(a, op, b)| format!("({a} {op} {b})")),
            1 => (inner.clone(), inner.clone(), inner.clone()).prop_map(|(a, b, c)| format!("({a} ? {b} : {c})")),
            1 => (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("{a}[{b}]")),
            1 => (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("[{a}, {b}]")),
            1 => (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("{{{a}: {b}}}")),
            2 => (inner.clone(), r#macro, inner.clone()).prop_map(|(a, name, b)| format!("{a}.{name}(x, {b})")),
            2 => (inner.clone(), function.clone(), inner.clone()).prop_map(|(a, name, b)| format!("{a}.{name}({b})")),
            1 => (inner.clone(), function.clone()).prop_map(|(a, name)| format!("{a}.{name}()")),
            1 => (inner.clone(), function).prop_map(|(a, name)| format!("{name}({a})")),
            1 => inner.prop_map(|a| format!("!{a}")),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2048, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_expression_panics(expression in any_expression()) {
        if let Ok((condition, _)) = Condition::compile(&PolicyCondition { expression, message: "x".into() }) {
            // Not through `findings`, which would hide a panic.
            let _ = condition.evaluate(&ask().facts());
        }
    }

    #[test]
    fn no_text_panics(expression in ".{0,80}|[-!?:.,()\\[\\]{}'\"a-c0-2 ]{0,60}") {
        let _ = Condition::compile(&PolicyCondition { expression, message: "x".into() });
    }
}
