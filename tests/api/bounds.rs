//! Every bound and rule of the CRDs, each with a value that it refuses.

use serde_json::{Value, json};

use super::world::{refused, world};
use crate::common::{Object, PUBLIC_KEY, Person, policy, request};

/// Longer than anything that is bounded: 1 MiB.
fn endless() -> Value {
    json!("a".repeat(1 << 20))
}

fn many(count: usize, item: &Value) -> Value {
    Value::Array(vec![item.clone(); count])
}

fn map(count: usize, item: &Value) -> Value {
    (0..count).map(|n| (format!("key-{n}"), item.clone())).collect::<serde_json::Map<_, _>>().into()
}

/// Asserts for each row (pointer, value, words) that the object with that value is refused with these words.
async fn check(person: &Person, base: &Object, rows: Vec<(&str, Value, &str)>) {
    let person = person.dry_run();
    person.create(base).await.expect("nothing is wrong with the base");
    for (pointer, value, words) in rows {
        let shown: String = format!("{pointer} = {value}").chars().take(100).collect();
        match person.create(&base.clone().with(pointer, value)).await {
            Ok(_) => panic!("{shown} was taken, not refused with {words:?}"),
            Err(refusal) => {
                assert!(refusal.to_string().contains(words), "{shown}: not {words:?} but {refusal}");
                assert!(refusal.json().len() < 10_000, "{shown}: the refusal is as long as what it refuses");
            }
        }
    }
}

/// Asserts for each value that it is taken.
async fn check_taken(person: &Person, base: &Object, pointer: &str, values: Vec<Value>) {
    for value in values {
        let taken = person.dry_run().create(&base.clone().with(pointer, value.clone())).await;
        assert!(taken.is_ok(), "{pointer} = {value}: {}", taken.unwrap_err());
    }
}

#[tokio::test]
async fn a_request_outside_its_bounds_is_refused_by_the_name_of_the_field() {
    let world = world().await;
    let base = request("bounds");
    let exactly = "must have exactly one of instanceId, nodeName and tags";
    let target = |value: Value| ("/spec/target", value, exactly);
    let id = "i-0123456789abcdef0";
    let rows = vec![
        target(json!({})),
        target(json!({"region": "us-west-2"})),
        target(json!({"instanceId": id, "nodeName": "a"})),
        target(json!({"instanceId": id, "tags": {"Name": "a"}})),
        target(json!({"nodeName": "a", "tags": {"Name": "a"}})),
        target(json!({"instanceId": id, "nodeName": "a", "tags": {"Name": "a"}})),
        ("/spec/target", Value::Null, "spec.target: Required value"),
        ("/spec/target/instanceId", json!("web-1"), "spec.target.instanceId"),
        ("/spec/target/instanceId", json!("i-0123456789ABCDEF0"), "spec.target.instanceId"),
        ("/spec/target/instanceId", json!("i-0123456789abcdeg0"), "spec.target.instanceId"),
        ("/spec/target/instanceId", json!("i-0123456"), "spec.target.instanceId"),
        ("/spec/target/instanceId", json!("i-0123456789abcdef0\n"), "spec.target.instanceId"),
        ("/spec/target/instanceId", json!("i-0123456789abcdef0 i-1"), "spec.target.instanceId"),
        ("/spec/target/instanceId", json!("*"), "spec.target.instanceId"),
        ("/spec/target/instanceId", json!(["i-0123456789abcdef0"]), "spec.target.instanceId"),
        ("/spec/target/instanceId", json!(17), "spec.target.instanceId"),
        ("/spec/target/instanceId", endless(), "spec.target.instanceId: Too long"),
        ("/spec/target", json!({"nodeName": ""}), "spec.target.nodeName"),
        ("/spec/target", json!({"nodeName": endless()}), "spec.target.nodeName: Too long"),
        ("/spec/target", json!({"tags": {}}), "spec.target.tags"),
        ("/spec/target", json!({"tags": {"Name": endless()}}), "spec.target.tags.Name: Too long"),
        ("/spec/target", json!({"tags": {"Name": 1}}), "spec.target.tags.Name"),
        ("/spec/target", json!({"tags": map(51, &json!("a"))}), "spec.target.tags: Too many"),
        ("/spec/target/region", json!("us-west"), "spec.target.region"),
        ("/spec/target/region", json!("us-west-2.evil.example"), "spec.target.region"),
        ("/spec/target/accountId", json!("12345678901"), "spec.target.accountId"),
        ("/spec/target/accountId", json!("12345678901x"), "spec.target.accountId"),
        ("/spec/target/accountId", json!(123_456_789_012_i64), "spec.target.accountId"),
        ("/spec/osUser", Value::Null, "spec.osUser: Required value"),
        ("/spec/osUser", json!(""), "spec.osUser"),
        ("/spec/osUser", json!("-oProxyCommand=x"), "spec.osUser"),
        ("/spec/osUser", json!("ec2-user root"), "spec.osUser"),
        ("/spec/osUser", json!("ec2-user\n"), "spec.osUser"),
        ("/spec/osUser", json!("$(id)"), "spec.osUser"),
        ("/spec/osUser", json!("a".repeat(33)), "spec.osUser: Too long"),
        ("/spec/subject", json!({}), "spec.subject.username: Required value"),
        ("/spec/subject", json!({"username": ""}), "spec.subject.username"),
        ("/spec/connection", json!({"method": "Tunnel"}), "spec.connection.method: Unsupported value"),
        ("/spec/connection", json!({"port": 0}), "spec.connection.port"),
        ("/spec/connection", json!({"port": 65536}), "spec.connection.port"),
        ("/spec/connection", json!({"port": "22"}), "spec.connection.port"),
        ("/spec/keyDelivery", json!("Never"), "spec.keyDelivery: Unsupported value"),
        ("/spec/ttlSeconds", json!(119), "spec.ttlSeconds"),
        ("/spec/ttlSeconds", json!(-1), "spec.ttlSeconds"),
        ("/spec/ttlSeconds", json!(604_801), "spec.ttlSeconds"),
        ("/spec/ttlSeconds", json!(1_i64 << 40), "spec.ttlSeconds"),
        ("/spec/ttlSeconds", json!(600.5), "spec.ttlSeconds"),
        ("/spec/ttlSeconds", json!("600"), "spec.ttlSeconds"),
        ("/spec/startTime", json!("tomorrow"), "spec.startTime"),
        ("/spec/startTime", json!("2026-03-01 08:00"), "spec.startTime"),
        ("/spec/endTime", json!(1_700_000_000), "spec.endTime"),
        ("/spec/reason", json!(""), "spec.reason"),
        ("/spec/reason", endless(), "spec.reason: Too long"),
        ("/spec/ticket", json!("a".repeat(129)), "spec.ticket: Too long"),
        ("/spec/policyName", json!("a".repeat(254)), "spec.policyName: Too long"),
        ("/spec/revoke", json!({"reason": endless()}), "spec.revoke.reason: Too long"),
        ("/spec/revoke", json!(true), "spec.revoke"),
    ];
    check(&world.alice, &base, rows).await;

    let window = base.clone().with("/spec/startTime", json!("2026-03-01T08:00:00Z"));
    let later = "spec.endTime: Forbidden: must be later than spec.startTime";
    let end = |time: &str| ("/spec/endTime", json!(time), later);
    // The last is 07:59:59Z, though it reads later.
    let rows = vec![end("2026-03-01T07:59:59Z"), end("2026-03-01T08:00:00Z"), end("2026-03-01T09:59:59+02:00")];
    check(&world.alice, &window, rows).await;
    check_taken(
        &world.alice,
        &window,
        "/spec/endTime",
        vec![json!("2026-03-01T08:00:01Z"), json!("2026-03-01T07:00:01-01:00")],
    )
    .await;
    check_taken(&world.alice, &base, "/spec/ttlSeconds", vec![json!(120), json!(604_800)]).await;
    check_taken(
        &world.alice,
        &base,
        "/spec/osUser",
        ["ubuntu", "_svc", "a", "DOMAIN$", "j.doe@corp"].map(Value::from).into(),
    )
    .await;
    check_taken(
        &world.alice,
        &base,
        "/spec/target/region",
        ["us-gov-west-1", "eu-isoe-west-1"].map(Value::from).into(),
    )
    .await;
    check_taken(
        &world.alice,
        &base,
        "/spec/connection",
        vec![json!({}), json!({"method": "Auto"}), json!({"port": 2222})],
    )
    .await;
}

#[tokio::test]
async fn a_null_is_an_absent_field_and_never_stored() {
    let world = world().await;
    let mut object = request("nulls");
    for field in
        ["requester", "subject", "connection", "keyDelivery", "ttlSeconds", "startTime", "endTime", "reason", "revoke"]
    {
        object = object.with(&format!("/spec/{field}"), Value::Null);
    }
    let stored = world.alice.create(&object.with("/spec/target/nodeName", Value::Null)).await.unwrap();
    let plain = world.alice.create(&request("plain")).await.unwrap();
    assert_eq!(stored["spec"], plain["spec"]);
    for spec in [json!(null), json!("text"), json!([])] {
        let refusal = world.alice.create(&request("spec").with("/spec", spec.clone())).await.unwrap_err();
        assert!(refusal.to_string().contains("spec"), "{spec}: {refusal}");
    }
}

#[tokio::test]
async fn a_key_that_cannot_be_delivered_is_refused_with_what_would_be_right() {
    let world = world().await;
    let body = "AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBA== alice@laptop";
    let takes =
        "spec.sshPublicKey: Forbidden: EC2 Instance Connect takes ssh-rsa (2048 or 4096 bits) and ssh-ed25519 only";
    let no_key = "spec.sshPublicKey: Forbidden: this is no public key in OpenSSH's or RFC 4716's form";
    let key = |text: String, words| ("/spec/sshPublicKey", json!(text), words);
    let rows = vec![
        key(format!("ecdsa-sha2-nistp256 {body}"), takes),
        key(format!("\n ecdsa-sha2-nistp521 {body}"), takes),
        key(format!("sk-ssh-ed25519@openssh.com {body}"), takes),
        key(format!("sk-ecdsa-sha2-nistp256@openssh.com {body}"), takes),
        key(format!("ssh-dss {body}"), takes),
        key(format!("ssh-ed25519-cert-v01@openssh.com {body}"), no_key),
        key(format!("command=\"id\" {PUBLIC_KEY}"), no_key),
        key(format!("# {PUBLIC_KEY}"), no_key),
        key("-----BEGIN PUBLIC KEY-----\nMIIB\n-----END PUBLIC KEY-----".to_owned(), no_key),
        key("AAAAC3NzaC1lZDI1NTE5".to_owned(), no_key),
        key("ssh-ed25519".to_owned(), no_key),
        key("~/.ssh/id_ed25519.pub".to_owned(), no_key),
        key(" ".to_owned(), no_key),
        key(String::new(), "spec.sshPublicKey"),
        ("/spec/sshPublicKey", Value::Null, "spec.sshPublicKey: Required value"),
        ("/spec/sshPublicKey", json!(format!("{PUBLIC_KEY}{}", "a".repeat(1 << 20))), "spec.sshPublicKey: Too long"),
    ];
    check(&world.alice, &request("key"), rows).await;
    let block = "---- BEGIN SSH2 PUBLIC KEY ----\r\nAAAA\r\n---- END SSH2 PUBLIC KEY ----\r\n";
    let taken = [
        PUBLIC_KEY,
        &format!("\n  {PUBLIC_KEY}\n"),
        block,
        "ssh-rsa\tAAAA",
        "ssh-ed25519 AAAA private key of a back-end",
    ];
    check_taken(&world.alice, &request("key"), "/spec/sshPublicKey", taken.map(Value::from).into()).await;
}

#[tokio::test]
async fn a_private_key_reaches_no_store_and_no_answer_repeats_it() {
    let world = world().await;
    // Made up, and so that it can be found again wherever it went.
    let secret = "cHJpdmF0ZSBrZXkgbWF0ZXJpYWwgdGhhdCBtdXN0IG5vdCBiZSByZXBlYXRlZA";
    let pem = |label: &str, body: &str| format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n");
    let openssh = pem("OPENSSH PRIVATE KEY", &format!("b3BlbnNzaC1rZXktdjEA{secret}"));
    let pasted = [
        openssh.clone(),
        pem("RSA PRIVATE KEY", secret),
        pem("EC PRIVATE KEY", secret),
        pem("PRIVATE KEY", secret),
        pem("ENCRYPTED PRIVATE KEY", secret),
        openssh.replace('\n', " "),
        openssh.to_lowercase(),
        format!("---- BEGIN SSH2 ENCRYPTED PRIVATE KEY ----\n{secret}\n---- END SSH2 ENCRYPTED PRIVATE KEY ----\n"),
        format!("PuTTY-User-Key-File-3: ssh-ed25519\nEncryption: none\nPrivate-Lines: 1\n{secret}\n"),
        format!("{PUBLIC_KEY}\n{openssh}"),
        format!("ssh-ed25519 b3BlbnNzaC1rZXktdjEA{secret}"),
        // base64 of "-----BEGIN OPENSSH PRIVATE", as in a Secret's data.
        format!("LS0tLS1CRUdJTiBPUEVOU1NIIFBSSVZBVEU{secret}"),
        // Half of one: nothing tells that it is a secret, and it is refused all the same.
        secret.to_owned(),
        pem("RSA PRIVATE KEY", &format!("{secret}\n").repeat(200)),
    ];
    let object = request("pasted");
    for text in pasted {
        let object = object.clone().with("/spec/sshPublicKey", json!(text));
        let answers = [
            world.alice.create(&object).await,
            world.alice.dry_run().create(&object).await,
            world.alice.apply(&object, "gitops").await,
        ];
        for answer in answers {
            let refusal = refused(answer, "spec.sshPublicKey: ");
            let said = refusal.json().to_lowercase();
            assert!(!said.contains(&secret.to_lowercase()), "{said}");
            let known = !text.contains("PRIVATE") || said.contains("private key") || said.contains("too long");
            assert!(known, "{text}: {said}");
        }
        let manifest = object.0.to_string();
        let args = ["apply", "--validate=strict", "-n", &world.namespace, "-f", "-"];
        let said = crate::common::kubectl_with(world.lab, "alice", &args, &manifest).await.unwrap_err().to_string();
        assert!(said.contains("sshPublicKey") && !said.contains(secret), "{said}");
    }
    // Nor does a change of an existing request.
    let stands = request("stands");
    world.alice.create(&stands).await.unwrap();
    let refusal =
        refused(world.alice.patch(&stands, &json!({"spec": {"sshPublicKey": openssh}})).await, "spec.sshPublicKey");
    assert!(!refusal.json().contains(secret), "{}", refusal.json());

    let args = ["get", "instanceaccesses,events", "-n", &world.namespace, "-o", "json", "--show-managed-fields"];
    let stored = crate::common::kubectl(world.lab, "admin", &args).await.unwrap();
    assert!(stored.contains("stands") && !stored.contains("pasted") && !stored.contains(secret), "{stored}");
    let log = std::fs::read_to_string(world.lab.log("kube-apiserver")).unwrap();
    assert!(!log.contains(secret), "the API server logged it");
}

#[tokio::test]
async fn an_identity_outside_its_bounds_is_refused() {
    let world = world().await;
    let rows = vec![
        ("/spec/requester", json!({"username": endless()}), "spec.requester.username: Too long"),
        ("/spec/requester", json!({"username": "alice", "uid": endless()}), "spec.requester.uid: Too long"),
        (
            "/spec/requester",
            json!({"username": "alice", "groups": many(513, &json!("g"))}),
            "spec.requester.groups: Too many",
        ),
        ("/spec/requester", json!({"username": "alice", "groups": [endless()]}), "spec.requester.groups[0]: Too long"),
        (
            "/spec/requester",
            json!({"username": "alice", "extra": map(65, &json!([]))}),
            "spec.requester.extra: Too many",
        ),
        (
            "/spec/requester",
            json!({"username": "alice", "extra": {"a": many(65, &json!(""))}}),
            "spec.requester.extra.a: Too many",
        ),
        (
            "/spec/requester",
            json!({"username": "alice", "extra": {"a": [endless()]}}),
            "spec.requester.extra.a[0]: Too long",
        ),
        ("/spec/requester", json!({"username": "alice", "extra": {"a": "b"}}), "spec.requester.extra.a"),
        ("/spec/requester", json!("alice"), "spec.requester"),
    ];
    check(&world.alice, &request("identity"), rows).await;
}

#[tokio::test]
async fn a_policy_outside_its_bounds_is_refused_by_the_name_of_the_field() {
    let world = world().await;
    let who = json!({"kind": "User", "name": "alice"});
    let tags = |expressions: Value| ("/spec/targets", json!({"instanceTags": {"matchExpressions": expressions}}));
    let values = "In and NotIn need values; Exists and DoesNotExist take none";
    let row = |(pointer, value), words| (pointer, value, words);
    let window = |field: &str, value: Value| {
        let mut window = json!({"days": ["Mon"], "start": "08:00", "end": "18:00", "timeZone": "Europe/Berlin"});
        window[field] = value;
        json!([window])
    };
    let approval = |field: &str, value: Value| {
        let mut approval = json!({"count": 1, "approvers": []});
        approval[field] = value;
        approval
    };
    let rows = vec![
        ("/spec/effect", Value::Null, "spec.effect: Required value"),
        ("/spec/effect", json!("Maybe"), "spec.effect: Unsupported value"),
        ("/spec/priority", json!(1_i64 << 40), "spec.priority"),
        ("/spec/subjects", Value::Null, "spec.subjects: Required value"),
        ("/spec/subjects", many(257, &who), "spec.subjects: Too many"),
        ("/spec/subjects", json!([{"kind": "Robot", "name": "a"}]), "spec.subjects[0].kind: Unsupported value"),
        ("/spec/subjects", json!([{"kind": "User", "name": ""}]), "spec.subjects[0].name"),
        ("/spec/subjects", json!([{"kind": "User", "name": endless()}]), "spec.subjects[0].name: Too long"),
        (
            "/spec/subjects",
            json!([{"kind": "ServiceAccount", "name": "robot"}]),
            "the name of a ServiceAccount is namespace/name",
        ),
        (
            "/spec/subjects",
            json!([{"kind": "ServiceAccount", "name": "a/b/c"}]),
            "the name of a ServiceAccount is namespace/name",
        ),
        (
            "/spec/subjects",
            json!([{"kind": "ServiceAccount", "name": "/b"}]),
            "the name of a ServiceAccount is namespace/name",
        ),
        ("/spec/namespaces", many(257, &json!("a")), "spec.namespaces: Too many"),
        ("/spec/namespaces", json!([""]), "spec.namespaces[0]"),
        ("/spec/namespaces", json!(["a".repeat(64)]), "spec.namespaces[0]: Too long"),
        ("/spec/targets", json!({}), "spec.targets: Invalid value: must say which instances"),
        ("/spec/targets", Value::Null, "spec.targets: Required value"),
        ("/spec/targets", json!({"accounts": many(257, &json!("1"))}), "spec.targets.accounts: Too many"),
        ("/spec/targets", json!({"accounts": ["1".repeat(13)]}), "spec.targets.accounts[0]: Too long"),
        ("/spec/targets", json!({"regions": many(65, &json!("a"))}), "spec.targets.regions: Too many"),
        ("/spec/targets", json!({"regions": [""]}), "spec.targets.regions[0]"),
        ("/spec/targets", json!({"instanceIds": many(1001, &json!("*"))}), "spec.targets.instanceIds: Too many"),
        ("/spec/targets", json!({"instanceIds": [endless()]}), "spec.targets.instanceIds[0]: Too long"),
        ("/spec/targets", json!({"vpcIds": many(65, &json!("*"))}), "spec.targets.vpcIds: Too many"),
        ("/spec/targets", json!({"vpcIds": [endless()]}), "spec.targets.vpcIds[0]: Too long"),
        (
            "/spec/targets",
            json!({"instanceTags": {"matchLabels": map(51, &json!("a"))}}),
            "spec.targets.instanceTags.matchLabels: Too many",
        ),
        (
            "/spec/targets",
            json!({"instanceTags": {"matchLabels": {"a": endless()}}}),
            "spec.targets.instanceTags.matchLabels.a: Too long",
        ),
        row(tags(many(33, &json!({"key": "a", "operator": "Exists"}))), "matchExpressions: Too many"),
        row(tags(json!([{"key": "a", "operator": "Is"}])), "matchExpressions[0].operator: Unsupported value"),
        row(tags(json!([{"key": "", "operator": "Exists"}])), "matchExpressions[0].key"),
        row(tags(json!([{"key": "a", "operator": "In"}])), values),
        row(tags(json!([{"key": "a", "operator": "NotIn", "values": []}])), values),
        row(tags(json!([{"key": "a", "operator": "Exists", "values": ["b"]}])), values),
        row(tags(json!([{"key": "a", "operator": "In", "values": many(65, &json!("b"))}])), "values: Too many"),
        row(tags(json!([{"key": "a", "operator": "In", "values": [endless()]}])), "values[0]: Too long"),
        ("/spec/osUsers", many(65, &json!("a")), "spec.osUsers: Too many"),
        ("/spec/osUsers", json!(["a".repeat(33)]), "spec.osUsers[0]: Too long"),
        ("/spec/connectionMethods", json!(["Auto"]), "spec.connectionMethods[0]: Unsupported value"),
        ("/spec/connectionMethods", many(3, &json!("Direct")), "spec.connectionMethods: Too many"),
        ("/spec/keyDelivery", json!(["Never"]), "spec.keyDelivery[0]: Unsupported value"),
        ("/spec/keyDelivery", many(3, &json!("OnConnect")), "spec.keyDelivery: Too many"),
        ("/spec/ttl", Value::Null, "spec.ttl: Required value: is required of an Allow policy"),
        ("/spec/ttl", json!({"maxSeconds": 600}), "spec.ttl.defaultSeconds: Required value"),
        (
            "/spec/ttl",
            json!({"defaultSeconds": 601, "maxSeconds": 600}),
            "spec.ttl.defaultSeconds: Forbidden: must not exceed maxSeconds",
        ),
        ("/spec/ttl", json!({"defaultSeconds": 119, "maxSeconds": 600}), "spec.ttl.defaultSeconds"),
        ("/spec/ttl", json!({"defaultSeconds": 600, "maxSeconds": 604_801}), "spec.ttl.maxSeconds"),
        ("/spec/keys", json!({"types": ["ECDSA"]}), "spec.keys.types[0]: Unsupported value"),
        ("/spec/keys", json!({"types": many(3, &json!("RSA"))}), "spec.keys.types: Too many"),
        ("/spec/keys", json!({"minRsaBits": 1024}), "spec.keys.minRsaBits"),
        ("/spec/keys", json!({"minRsaBits": 8192}), "spec.keys.minRsaBits"),
        ("/spec/reason", json!({"pattern": endless()}), "spec.reason.pattern: Too long"),
        ("/spec/reason", json!({"pattern": ""}), "spec.reason.pattern"),
        ("/spec/reason", json!({"required": "yes"}), "spec.reason.required"),
        ("/spec/ticket", json!({"pattern": endless()}), "spec.ticket.pattern: Too long"),
        ("/spec/approval", json!({"count": 1}), "spec.approval.approvers: Required value"),
        ("/spec/approval", approval("count", json!(0)), "spec.approval.count"),
        ("/spec/approval", approval("count", json!(17)), "spec.approval.count"),
        ("/spec/approval", approval("approvers", many(65, &who)), "spec.approval.approvers: Too many"),
        ("/spec/approval", approval("oneFromEach", many(17, &who)), "spec.approval.oneFromEach: Too many"),
        ("/spec/approval", approval("deadlineSeconds", json!(59)), "spec.approval.deadlineSeconds"),
        ("/spec/approval", approval("deadlineSeconds", json!(2_592_001)), "spec.approval.deadlineSeconds"),
        ("/spec/windows", window("days", json!([])), "spec.windows[0].days"),
        ("/spec/windows", window("days", json!(["Monday"])), "spec.windows[0].days[0]: Unsupported value"),
        ("/spec/windows", window("days", many(8, &json!("Mon"))), "spec.windows[0].days: Too many"),
        ("/spec/windows", window("start", json!("8:00")), "spec.windows[0].start"),
        ("/spec/windows", window("start", json!("24:00")), "spec.windows[0].start"),
        ("/spec/windows", window("end", json!("18:60")), "spec.windows[0].end"),
        ("/spec/windows", window("timeZone", endless()), "spec.windows[0].timeZone: Too long"),
        ("/spec/windows", many(33, &window("end", json!("09:00"))[0]), "spec.windows: Too many"),
        ("/spec/limits", json!({"activePerSubject": 0}), "spec.limits.activePerSubject"),
        ("/spec/limits", json!({"activePerInstance": 10_001}), "spec.limits.activePerInstance"),
        ("/spec/limits", json!({"requestsPerHour": -1}), "spec.limits.requestsPerHour"),
        (
            "/spec/delegates",
            json!([{"serviceAccount": {"name": "a"}, "maxWindowSeconds": 600}]),
            "spec.delegates[0].serviceAccount.namespace: Required value",
        ),
        (
            "/spec/delegates",
            json!([{"serviceAccount": {"namespace": "a", "name": "b"}, "maxWindowSeconds": 1}]),
            "spec.delegates[0].maxWindowSeconds",
        ),
        (
            "/spec/delegates",
            many(33, &json!({"serviceAccount": {"namespace": "a", "name": "b"}, "maxWindowSeconds": 600})),
            "spec.delegates: Too many",
        ),
        ("/spec/delegates", asserting(many(257, &json!("alice"))), "spec.delegates[0].subjectUsernames: Too many"),
        ("/spec/delegates", asserting(json!([""])), "spec.delegates[0].subjectUsernames[0]"),
        ("/spec/delegates", asserting(json!([endless()])), "spec.delegates[0].subjectUsernames[0]: Too long"),
        ("/spec/conditions", json!([{"expression": "true"}]), "spec.conditions[0].message: Required value"),
        (
            "/spec/conditions",
            json!([{"expression": endless(), "message": "a"}]),
            "spec.conditions[0].expression: Too long",
        ),
        (
            "/spec/conditions",
            json!([{"expression": "true", "message": endless()}]),
            "spec.conditions[0].message: Too long",
        ),
        ("/spec/conditions", many(33, &json!({"expression": "true", "message": "a"})), "spec.conditions: Too many"),
        ("/spec/session", json!({"gatewayOnly": "yes"}), "spec.session.gatewayOnly"),
        ("/spec/session", json!({"maxSessions": 0}), "spec.session.maxSessions"),
        ("/spec/session", json!({"maxSessions": 1001}), "spec.session.maxSessions"),
        ("/spec/session", json!({"idleTimeoutSeconds": 59}), "spec.session.idleTimeoutSeconds"),
        ("/spec/session", json!({"idleTimeoutSeconds": 86_401}), "spec.session.idleTimeoutSeconds"),
        ("/spec/session", json!({"end": {}}), "spec.session.end.strategy: Required value"),
        ("/spec/session", json!({"end": {"strategy": "Keep"}}), "spec.session.end.strategy: Unsupported value"),
        drain("Drain", json!(0), "spec.session.end.drainSeconds"),
        drain("Drain", json!(3601), "spec.session.end.drainSeconds"),
        drain("Drain", Value::Null, DRAIN_SECONDS),
        drain("Cut", json!(60), DRAIN_SECONDS),
        // A grant of the default length would open no session.
        drain("Drain", json!(600), "spec.session: Forbidden: must be less than spec.ttl.defaultSeconds"),
    ];
    check(&world.admin, &policy("bounds"), rows).await;
    let good = [
        json!({}),
        json!({"gatewayOnly": true, "maxSessions": 1, "idleTimeoutSeconds": 60, "end": {"strategy": "Cut"}}),
        drain("Drain", json!(599), "").1,
    ];
    check_taken(&world.admin, &policy("bounds"), "/spec/session", good.into()).await;
    let continuous = policy("bounds").with("/spec/keyDelivery", json!(["Continuous"]));
    let gateway_only = |only: bool| json!({"gatewayOnly": only});
    let contradiction = "spec.keyDelivery: Forbidden: with gatewayOnly must be left out or name OnConnect";
    check(&world.admin, &continuous, vec![("/spec/session", gateway_only(true), contradiction)]).await;
    check_taken(&world.admin, &continuous, "/spec/session", vec![gateway_only(false)]).await;
    let on_connect = policy("bounds").with("/spec/keyDelivery", json!(["Continuous", "OnConnect"]));
    check_taken(&world.admin, &on_connect, "/spec/session", vec![gateway_only(true)]).await;
}

const DRAIN_SECONDS: &str = "spec.session.end.drainSeconds: Forbidden: is for the strategy Drain, which needs it";

/// A policy whose sessions end so.
fn drain(strategy: &str, seconds: Value, words: &'static str) -> (&'static str, Value, &'static str) {
    ("/spec/session", json!({"end": {"strategy": strategy, "drainSeconds": seconds}}), words)
}

/// A delegate that may assert these.
fn asserting(usernames: Value) -> Value {
    let account = json!({"namespace": "argocd", "name": "application-controller"});
    json!([{"serviceAccount": account, "subjectUsernames": usernames, "maxWindowSeconds": 2_592_000}])
}

#[tokio::test]
async fn a_policy_as_large_as_its_bounds_allow_is_judged_within_the_cost_budget() {
    let world = world().await;
    let account = json!({"kind": "ServiceAccount", "name": format!("a/{}", "b".repeat(253))});
    let expression = json!({"key": "a", "operator": "In", "values": many(64, &json!("b".repeat(256)))});
    let largest = policy("largest")
        .with("/spec/subjects", many(256, &account))
        .with("/spec/targets/instanceTags", json!({"matchExpressions": many(32, &expression)}))
        .with(
            "/spec/approval",
            json!({"count": 1, "approvers": many(64, &account), "oneFromEach": many(16, &account)}),
        );
    world.admin.dry_run().create(&largest).await.unwrap();
    let request = request("largest")
        .with("/spec/sshPublicKey", json!(format!("{PUBLIC_KEY}{}", "a".repeat(8192 - PUBLIC_KEY.len()))))
        .with("/spec/reason", json!("ü".repeat(1024)));
    world.alice.create(&request).await.unwrap();
    world.alice.patch(&request, &json!({"spec": {"revoke": {"reason": "a".repeat(1024)}}})).await.unwrap();
}

#[tokio::test]
async fn a_deny_policy_cannot_be_narrowed_in_silence() {
    let world = world().await;
    let deny = policy("deny").with("/spec/effect", json!("Deny")).without("/spec/ttl");
    let narrowing = [
        ("ttl", json!({"defaultSeconds": 600, "maxSeconds": 600})),
        ("keys", json!({"types": ["RSA"]})),
        ("reason", json!({"required": true})),
        ("ticket", json!({"pattern": "a"})),
        ("approval", json!({"count": 1, "approvers": []})),
        ("windows", json!([{"days": ["Mon"], "start": "08:00", "end": "18:00", "timeZone": "UTC"}])),
        ("limits", json!({"activePerSubject": 1})),
        ("delegates", json!([])),
        ("conditions", json!([])),
        ("session", json!({"idleTimeoutSeconds": 60})),
    ];
    let pointers: Vec<String> = narrowing.iter().map(|(field, _)| format!("/spec/{field}")).collect();
    let rows = narrowing.into_iter().zip(&pointers);
    let rows = rows.map(|((_, value), pointer)| (pointer.as_str(), value, "a Deny policy has subjects, namespaces"));
    check(&world.admin, &deny, rows.collect()).await;
    check_taken(&world.admin, &deny, "/spec/connectionMethods", vec![json!(["Direct"])]).await;
    check_taken(&world.admin, &deny, "/spec/priority", vec![json!(-5)]).await;
}

#[tokio::test]
async fn an_empty_list_is_taken_and_matches_nothing() {
    let world = world().await;
    let base = policy("empty");
    for field in ["subjects", "namespaces", "osUsers", "connectionMethods", "keyDelivery"] {
        let pointer = format!("/spec/{field}");
        check_taken(&world.admin, &base, &pointer, vec![json!([])]).await;
    }
    let targets =
        [json!({"accounts": []}), json!({"instanceTags": {}}), json!({"instanceTags": {"matchExpressions": []}})];
    check_taken(&world.admin, &base, "/spec/targets", targets.into()).await;
    let everywhere = json!([{"kind": "ServiceAccount", "name": "argocd/application-controller"}]);
    check_taken(&world.admin, &base, "/spec/subjects", vec![everywhere]).await;
    let delegates = [json!([]), asserting(json!([])), asserting(json!(["*"])), asserting(many(256, &json!("alice")))];
    check_taken(&world.admin, &base, "/spec/delegates", delegates.into()).await;
}
