//! Witnesses from outside: AWS's command line client and Python SDK ask the stand-in, AWS's service models judge its
//! answers, and moto is asked the same.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::LazyLock;

use lab::standin::{Config, Credential, Endpoint, Instance};
use serde_json::{Value, json};

use super::client::{ED25519, ID, World, instance, push_body, world, world_with};

const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

/// Runs a setup script and returns the path that it prints.
fn set_up(script: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(script);
    let output = Command::new(&path).output().expect("the script can be run");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {said}");
    String::from_utf8(output.stdout).expect("a path").trim().into()
}

static VENV: LazyLock<PathBuf> = LazyLock::new(|| set_up("setup-moto.sh"));
static CLI: LazyLock<PathBuf> = LazyLock::new(|| set_up("setup-aws-cli.sh"));

fn with_credentials(command: &mut Command) -> &mut Command {
    command
        .env("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
        .env("AWS_SECRET_ACCESS_KEY", SECRET)
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("AWS_CONFIG_FILE", "/dev/null")
        .env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
        .env("AWS_REGION", "us-west-2")
        .env("AWS_DEFAULT_REGION", "us-west-2")
        .env("NO_PROXY", "127.0.0.1")
        .env_remove("AWS_PROFILE")
        .env_remove("AWS_SESSION_TOKEN")
}

fn python(script: &str) -> Command {
    let mut command = Command::new(VENV.join("bin/python"));
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/moto").join(script));
    with_credentials(&mut command);
    command
}

/// Runs to the end off the runtime, so that the stand-in goes on answering.
async fn run(mut command: Command, input: impl Into<String>) -> Output {
    let input = input.into();
    let ran = tokio::task::spawn_blocking(move || {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    });
    ran.await.unwrap()
}

#[track_caller]
fn good(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    String::from_utf8(output.stdout.clone()).expect("text")
}

/// A world that knows the one key and judges signatures.
async fn strict_world() -> World {
    let credential = Credential {
        access_key_id: "AKIDEXAMPLE".into(),
        secret_access_key: SECRET.into(),
        session_token: None,
        account_id: "123456789012".into(),
    };
    let world = world_with(Config { credentials: vec![credential], ..Config::default() }).await;
    world.stand_in.put_instance(rich_instance(ID));
    world
}

fn rich_instance(id: &str) -> Instance {
    Instance {
        public_ip: Some(IpAddr::from([203, 0, 113, 5])),
        ipv6: Some("2001:db8::5".parse().unwrap()),
        tags: BTreeMap::from([("Name".into(), "web-1 <&> \"é\"".into())]),
        ..instance(id)
    }
}

#[tokio::test]
async fn what_ec2_answers_here_stands_in_aws_own_model() {
    let world = world().await;
    world.stand_in.put_instance(rich_instance(ID));
    for (n, state) in ["stopped", "terminated", "pending", "stopping", "shutting-down"].into_iter().enumerate() {
        world.stand_in.put_instance(Instance { state: state.into(), ..instance(&format!("i-{n:017x}")) });
    }
    world.stand_in.put_endpoint(Endpoint { dns_name: "eice.example".into(), ..Endpoint::default() });
    for action in ["DescribeInstances", "DescribeInstanceConnectEndpoints"] {
        let answer = world.ec2(&[("Action", action), ("MaxResults", "5")]).await;
        let mut command = python("aws.py");
        command.args(["unknown", action]);
        let output = run(command, answer.body.clone()).await;
        assert_eq!(good(&output), "", "{}", answer.body);
    }
}

#[tokio::test]
async fn os_users_are_judged_as_aws_own_model_judges_them() {
    let world = world().await;
    // every string of up to four of the characters that the pattern tells apart, and long ones around the bounds
    let alphabet = ['a', '7', '_', '-', '.', '@', '$', ' '];
    let mut users = vec![String::new()];
    for length in 1..=4 {
        for n in 0..alphabet.len().pow(length) {
            let digit = |place| alphabet[n / alphabet.len().pow(place) % alphabet.len()];
            users.push((0..length).map(digit).collect());
        }
    }
    for (head, fill, tail) in [("a", "b", "c"), ("a", "b", "$"), ("7", "7", "a"), ("7", "a", "$"), ("7", "7", "7")] {
        for length in 30..=34 {
            users.push(format!("{head}{}{tail}", fill.repeat(length - 2)));
        }
    }
    let mut command = python("aws.py");
    command.arg("os-users");
    let output = run(command, json!(users).to_string()).await;
    let expected: Vec<bool> = serde_json::from_str(&good(&output)).unwrap();
    let mut differ = Vec::new();
    for (user, expected) in users.iter().zip(expected) {
        let answer = world.push(&push_body(json!({ "InstanceOSUser": user }))).await;
        if (answer.status == 200) != expected {
            differ.push((user, expected));
        }
    }
    assert!(differ.is_empty(), "{differ:?}");
}

#[tokio::test]
async fn aws_python_sdk_signs_asks_and_reads_as_it_does_with_aws() {
    let world = strict_world().await;
    for n in 0..6 {
        world.stand_in.put_instance(instance(&format!("i-1{n:016x}")));
    }
    let there = Instance { account_id: "210987654321".into(), ..instance("i-20000000000000000") };
    world.stand_in.put_instance(there);
    world.stand_in.put_endpoint(Endpoint { dns_name: "eice.example".into(), ..Endpoint::default() });
    let mut command = python("aws.py");
    command.args(["tour", &world.url("")]);
    let answer: Value = serde_json::from_str(&good(&run(command, ED25519).await)).unwrap();
    assert_eq!(answer["pages"].as_array().unwrap().iter().map(|it| it.as_array().unwrap().len()).sum::<usize>(), 7);
    assert_eq!(answer["pages"][0][0], ID);
    assert_eq!(
        answer["first"],
        json!({
            "PrivateIpAddress": "10.0.0.5",
            "VpcId": "vpc-0123456789abcdef0",
            "SubnetId": "subnet-0123456789abcdef0",
            "Tags": [{ "Key": "Name", "Value": "web-1 <&> \"é\"" }],
            "State": { "Code": 16, "Name": "running" },
            "Ipv6Address": "2001:db8::5",
        })
    );
    assert_eq!(answer["endpoints"], json!(["eice.example"]));
    assert_eq!(answer["push"], true);
    assert_eq!(answer["bad push"]["Code"], "InvalidArgsException");
    assert_eq!(answer["bad look-up"]["Code"], "InvalidInstanceID.NotFound");
    assert_eq!((&answer["account"], &answer["account there"]), (&json!("123456789012"), &json!("210987654321")));
    assert_eq!(answer["instances there"], 1);
    assert_eq!(world.stand_in.active_keys(ID, "ec2-user"), [ED25519]);
}

/// AWS's command line client, against the stand-in.
fn aws(world: &World, arguments: &[&str]) -> Command {
    let mut command = Command::new(&*CLI);
    with_credentials(&mut command)
        .env("AWS_ENDPOINT_URL_EC2", world.url(""))
        .env("AWS_ENDPOINT_URL_EC2_INSTANCE_CONNECT", world.url(""))
        .env("AWS_ENDPOINT_URL_STS", world.url(""))
        .env("AWS_MAX_ATTEMPTS", "1")
        .args(["--output", "json", "--no-cli-pager"])
        .args(arguments);
    command
}

#[tokio::test]
async fn aws_own_command_line_client_finds_the_instance_and_pushes_a_key() {
    let world = strict_world().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("key.pub");
    std::fs::write(&file, format!("{ED25519}\n")).unwrap();
    let key = format!("file://{}", file.display());

    let found = run(aws(&world, &["ec2", "describe-instances", "--instance-ids", ID]), "").await;
    let found: Value = serde_json::from_str(&good(&found)).unwrap();
    let found = &found["Reservations"][0]["Instances"][0];
    assert_eq!(found["InstanceId"], ID);
    assert_eq!(found["Placement"]["AvailabilityZone"], "us-west-2a");
    assert_eq!(found["PublicIpAddress"], "203.0.113.5");
    assert_eq!(found["NetworkInterfaces"][0]["Ipv6Addresses"][0]["Ipv6Address"], "2001:db8::5");

    let push = |user: &str| {
        let arguments = ["ec2-instance-connect", "send-ssh-public-key", "--instance-id", ID];
        let mut command = aws(&world, &arguments);
        command.args(["--instance-os-user", user, "--ssh-public-key", &key]);
        command
    };
    let pushed: Value = serde_json::from_str(&good(&run(push("ec2-user"), "").await)).unwrap();
    assert_eq!(pushed["Success"], true);
    assert_eq!(world.stand_in.active_keys(ID, "ec2-user"), [ED25519]);

    world.stand_in.put_instance(Instance { state: "stopped".into(), ..rich_instance(ID) });
    let refused = run(push("ec2-user"), "").await;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("(EC2InstanceStateInvalidException)"), "{said}");

    let mut command = aws(&world, &["sts", "get-caller-identity"]);
    command.env("AWS_SECRET_ACCESS_KEY", "wrong");
    let refused = run(command, "").await;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("(SignatureDoesNotMatch)"), "{said}");
    let asked: Vec<String> = world.stand_in.journal().into_iter().map(|it| it.action).collect();
    assert_eq!(asked, ["DescribeInstances", "SendSSHPublicKey", "SendSSHPublicKey", "GetCallerIdentity"]);
}

/// moto's server; it ends with this.
struct Moto {
    child: Child,
    port: u16,
}

impl Moto {
    fn start() -> Self {
        let mut child =
            python("serve.py").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port = line.trim().parse().expect("moto prints its port");
        Self { child, port }
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// The texts at each path of a document; namespaces and attributes are left out.
fn paths(xml: &str) -> BTreeMap<String, Vec<String>> {
    let mut paths: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut stack: Vec<&str> = Vec::new();
    let mut rest = xml;
    while let Some((text, tail)) = rest.split_once('<') {
        let (tag, tail) = tail.split_once('>').expect("a tag ends");
        rest = tail;
        if tag.starts_with(['?', '!']) {
            continue;
        }
        let name = tag.trim_matches('/').split_whitespace().next().unwrap();
        if tag.starts_with('/') {
            let path = stack.join("/");
            if !text.trim().is_empty() {
                paths.entry(path).or_default().push(text.trim().to_owned());
            }
            assert_eq!(stack.pop(), Some(name), "tags nest");
        } else {
            stack.push(name);
            paths.entry(stack.join("/")).or_default();
            if tag.ends_with('/') {
                stack.pop();
            }
        }
    }
    assert!(stack.is_empty());
    paths
}

#[tokio::test]
async fn moto_describes_the_same_instances_at_the_same_paths() {
    let world = world().await;
    world.stand_in.remove_instance(ID);
    let moto = tokio::task::spawn_blocking(Moto::start).await.unwrap();
    let moto_url = format!("http://127.0.0.1:{}/", moto.port);
    let ask_moto = async |parameters: &[(&str, &str)]| {
        let request = world.query("ec2", parameters).build().unwrap();
        let mut there = world.http.post(&moto_url).body(request.body().unwrap().as_bytes().unwrap().to_vec());
        for (name, value) in request.headers() {
            there = there.header(name, value);
        }
        world.send(there).await
    };

    let run = [
        ("Action", "RunInstances"),
        ("ImageId", "ami-12c6146b"),
        ("MinCount", "6"),
        ("MaxCount", "6"),
        ("InstanceType", "t3.micro"),
        ("TagSpecification.1.ResourceType", "instance"),
        ("TagSpecification.1.Tag.1.Key", "Name"),
        ("TagSpecification.1.Tag.1.Value", "a & <b>"),
    ];
    let made = ask_moto(&run).await;
    assert_eq!(made.status, 200, "{}", made.body);
    let made = paths(&made.body);
    let item = "RunInstancesResponse/instancesSet/item";
    let at = |path: &str, n: usize| made[&format!("{item}/{path}")][n].clone();
    let ids = made[&format!("{item}/instanceId")].clone();
    for (n, id) in ids.iter().enumerate() {
        world.stand_in.put_instance(Instance {
            id: id.clone(),
            availability_zone: at("placement/availabilityZone", n),
            vpc_id: at("vpcId", n),
            subnet_id: at("subnetId", n),
            private_ip: Some(at("privateIpAddress", n).parse().unwrap()),
            public_ip: Some(at("ipAddress", n).parse().unwrap()),
            tags: BTreeMap::from([("Name".into(), "a & <b>".into())]),
            ..Instance::default()
        });
    }
    // moto has just made them: it says that they run from the first look-up on
    let consumed = [
        "ownerId",
        "instancesSet/item/instanceId",
        "instancesSet/item/instanceState/code",
        "instancesSet/item/instanceState/name",
        "instancesSet/item/placement/availabilityZone",
        "instancesSet/item/privateIpAddress",
        "instancesSet/item/ipAddress",
        "instancesSet/item/vpcId",
        "instancesSet/item/subnetId",
        "instancesSet/item/tagSet/item/key",
        "instancesSet/item/tagSet/item/value",
        "instancesSet/item/networkInterfaceSet/item/privateIpAddress",
        "instancesSet/item/networkInterfaceSet/item/privateIpAddressesSet/item/privateIpAddress",
    ];
    let by_id = [("Action", "DescribeInstances"), ("InstanceId.1", &*ids[0]), ("InstanceId.2", &*ids[1])];
    let by_tag = [("Action", "DescribeInstances"), ("Filter.1.Name", "tag:Name"), ("Filter.1.Value.1", "a*b>")];
    let by_state = [
        ("Action", "DescribeInstances"),
        ("Filter.1.Name", "instance-id"),
        ("Filter.1.Value.1", &*ids[0]),
        ("Filter.1.Value.2", "i-0123456789abcdef0"),
        ("Filter.2.Name", "instance-state-name"),
        ("Filter.2.Value.1", "running"),
    ];
    for parameters in [&by_id[..], &by_tag, &by_state] {
        let (theirs, ours) = (ask_moto(parameters).await, world.ec2(parameters).await);
        assert_eq!((theirs.status, ours.status), (200, 200), "{}", theirs.body);
        let (theirs, ours) = (paths(&theirs.body), paths(&ours.body));
        for path in consumed {
            let path = format!("DescribeInstancesResponse/reservationSet/item/{path}");
            // reservations may hold one instance or many, and in any order
            let set = |of: &BTreeMap<String, Vec<String>>| of[&path].iter().cloned().collect::<BTreeSet<_>>();
            assert!(ours.contains_key(&path) && theirs.contains_key(&path), "{path} is in both");
            assert_eq!(set(&ours), set(&theirs), "{path}");
        }
    }

    let page = [("Action", "DescribeInstances"), ("MaxResults", "5")];
    let (theirs, ours) = (ask_moto(&page).await, world.ec2(&page).await);
    assert!(paths(&ours.body).contains_key("DescribeInstancesResponse/nextToken"));
    // moto counts reservations, AWS and the stand-in instances: only the element's place can be compared
    let token = "DescribeInstancesResponse/nextToken";
    assert!(!theirs.body.contains("nextToken") || paths(&theirs.body).contains_key(token));

    for parameters in [
        &[("Action", "DescribeInstances"), ("InstanceId.1", "i-0123456789abcdef0")][..],
        &[("Action", "DescribeInstances"), ("InstanceId.1", &*ids[0]), ("MaxResults", "5")],
    ] {
        let (theirs, ours) = (ask_moto(parameters).await, world.ec2(parameters).await);
        assert_eq!(theirs.text("Code"), ours.text("Code"), "{parameters:?}: {}", theirs.body);
        assert_eq!(theirs.status, ours.status, "{parameters:?}");
        let keys = |body: &str| paths(body).into_keys().collect::<BTreeSet<_>>();
        assert_eq!(keys(&ours.body), keys(&theirs.body), "the envelope");
    }
}

#[tokio::test]
async fn a_tunnels_address_presigned_by_aws_signer_opens_and_a_changed_one_does_not() {
    let world = strict_world().await;
    let echo = super::tunnels::echo().await;
    world.stand_in.put_instance(Instance { host_addr: Some(echo), ..rich_instance(ID) });
    world.stand_in.put_endpoint(Endpoint::default());
    let query = "instanceConnectEndpointId=eice-0123456789abcdef0&remotePort=22&privateIpAddress=10.0.0.5\
                 &maxTunnelDuration=60";
    let mut command = python("aws.py");
    command.args(["presign", &world.stand_in.api_addr().to_string(), query]);
    let url = good(&run(command, "").await).trim().to_owned();
    let (mut tunnel, _) = tokio_tungstenite::connect_async(&url).await.expect("the signature fits");
    super::tunnels::check_echo(&mut tunnel).await;
    let changed = url.replace("maxTunnelDuration=60", "maxTunnelDuration=3600");
    let refused = super::tunnels::refusal(&changed).await;
    assert_eq!(refused, (403, "SignatureDoesNotMatch".into()));
}
