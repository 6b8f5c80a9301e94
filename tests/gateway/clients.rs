//! Stock OpenSSH, in the ways that people use it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use lab::ssh::{self, KeyPair};
use lab::{Lab, Launch, poll};
use serde_json::json;
use tokio::process::{Child, Command};

use crate::client::Client;
use crate::history::text;
use crate::jump::{Jump, both};
use crate::stand::BOUND;

pub async fn ssh_leads_in_by_every_name_of_the_instance_and_leaves_a_record() {
    let (stand, jump) = both().await;
    let web = stand.lab.instance("web-1");
    let request = stand.request("alice", "jump").applied().await;
    let granted = request.becomes("Granted").await;
    let client = Client::with(&request, jump, "", &format!("  HostKeyAlias {}", web.id));
    client.gets_in(&[&web.id]).await;
    client.gets_in(&["jump.team"]).await;
    // As clients do it that know no ProxyJump.
    let proxy = format!("ProxyCommand=ssh -F {} -W %h:%p gateway", client.config.display());
    client.gets_in(&["-o", "ProxyJump=none", "-o", &proxy, &web.id]).await;

    let ended = jump.ended(&request.uid).await;
    let opened = jump.records(&request.uid, "SessionOpened");
    assert_eq!(opened.len(), 3, "{opened:?}");
    let record = &opened[0]["record"];
    for (field, expected) in [
        ("gateway", "gateway"),
        ("requester", "alice"),
        ("grantId", text(&granted, "/status/grant/id")),
        ("keyFingerprint", &request.fingerprint()),
        ("instanceId", &web.id),
        ("osUser", "ec2-user"),
        ("asked", &format!("{}:{}", web.id, stand.lab.ssh_port())),
        ("destination", &web.address().to_string()),
        ("expirationTime", text(&granted, "/status/grant/expirationTime")),
    ] {
        assert_eq!(record[field], *expected, "{field} of {record}");
    }
    let bytes = |field| ended["record"][field].as_u64().unwrap();
    // A handshake and a login take some thousand bytes each way.
    assert!(bytes("bytesToInstance") > 1000 && bytes("bytesFromInstance") > 1000, "{ended}");
    jump.verifies();
}

pub async fn a_node_leads_in_by_its_name() {
    let (stand, jump) = both().await;
    let instance = stand.instance("by-node").await;
    let name = "ip-10-0-1-2.ec2.internal";
    let provider_id = format!("aws:///us-west-2a/{}", instance.id);
    let node = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "namespace": ""}, "spec": {"providerID": provider_id},
    });
    stand.apply(&node).await;
    let target = json!({"target": {"nodeName": name}, "ttlSeconds": 600});
    let request = stand.request("alice", "by-node").with(target).applied().await;
    request.becomes("Granted").await;
    let client = Client::with(&request, jump, "", &format!("  HostKeyAlias {}", instance.id));
    client.gets_in(&[name]).await;
    let asked = format!("{name}:{}", stand.lab.ssh_port());
    assert_eq!(jump.ended(&request.uid).await["record"]["asked"], asked);
}

pub async fn scp_and_sftp_carry_files_whole_both_ways() {
    let (stand, jump) = both().await;
    let instance = stand.instance("files").await;
    let request = stand.request("alice", "files").on(&instance).with(json!({"ttlSeconds": 600})).applied().await;
    request.becomes("Granted").await;
    let client = Client::of(&request, jump);
    let dir = stand.lab.dir().join("files");
    fs::create_dir_all(&dir).unwrap();
    // More than every window and buffer on the way.
    let content: Vec<u8> = (0..16_u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let (there, back) = (dir.join("there"), dir.join("back"));
    fs::write(&there, &content).unwrap();
    for more in [&["-O"][..], &[]] {
        for (from, to) in [
            (there.display().to_string(), format!("{}:carried", instance.id)),
            (format!("{}:carried", instance.id), back.display().to_string()),
        ] {
            let copied = ssh::run(client.program("scp").args(more).args([&from, &to])).await.unwrap();
            assert!(copied.success(), "scp {more:?} {from} {to}: {copied:?}");
        }
        assert!(fs::read(&back).unwrap() == content, "scp {more:?}: not the same");
        fs::remove_file(&back).unwrap();
    }
    let batch = dir.join("batch");
    fs::write(&batch, format!("get carried {}\nrm carried\n", back.display())).unwrap();
    let got = ssh::run(client.program("sftp").arg("-b").arg(&batch).arg(&instance.id)).await.unwrap();
    assert!(got.success(), "{got:?}");
    assert!(fs::read(&back).unwrap() == content, "sftp: not the same");
}

pub async fn a_master_connection_carries_sessions_to_several_instances() {
    let (stand, jump) = both().await;
    let (web, other) = (stand.lab.instance("web-1"), stand.instance("master").await);
    let request = stand.request("alice", "master-1").with(json!({"ttlSeconds": 600})).applied().await;
    let same_key = json!({"sshPublicKey": request.key.public, "ttlSeconds": 600});
    let second = stand.request("alice", "master-2").on(&other).with(same_key).applied().await;
    request.becomes("Granted").await;
    second.becomes("Granted").await;
    let socket = stand.lab.dir().join("cm");
    let master = format!("  ControlMaster auto\n  ControlPath {}\n  ControlPersist 60", socket.display());
    let client = Client::with(&request, jump, &master, "");
    for host in [&web.id, &other.id, &web.id] {
        client.gets_in(&[host]).await;
    }
    let check = client.typed(&["-O", "check", "gateway"]).await;
    assert!(check.success(), "{check:?}");
    // All over the one connection, which is the one that the record names.
    let sources: Vec<_> = [&request, &second]
        .into_iter()
        .flat_map(|request| jump.records(&request.uid, "SessionOpened"))
        .map(|line| line["record"]["source"].clone())
        .collect();
    assert!(sources.len() == 3 && sources.iter().all(|source| *source == sources[0]), "{sources:?}");
    assert!(client.typed(&["-O", "exit", "gateway"]).await.success());
}

/// A running agent that holds these keys, and its socket.
async fn agent(lab: &Lab, name: &str, keys: &[PathBuf]) -> (Child, PathBuf) {
    let socket = lab.dir().join(name);
    let mut agent = Command::new("ssh-agent");
    agent.arg("-D").arg("-a").arg(&socket).env(lab::proc::MARK, lab.dir()).stdout(Stdio::null()).kill_on_drop(true);
    let agent = agent.spawn().unwrap();
    poll::until_ok("the agent", BOUND, || if socket.exists() { Ok(()) } else { Err("no socket") }).await.unwrap();
    let added = ssh::run(Command::new("ssh-add").args(keys).env("SSH_AUTH_SOCK", &socket)).await.unwrap();
    assert!(added.success(), "{added:?}");
    (agent, socket)
}

pub async fn an_agent_with_twenty_keys_is_let_in_by_the_last_of_them() {
    let (stand, jump) = both().await;
    let instance = stand.instance("agent").await;
    let request = stand.request("alice", "agent").on(&instance).with(json!({"ttlSeconds": 600})).applied().await;
    request.becomes("Granted").await;
    let dir = stand.lab.dir();
    let mut keys = Vec::new();
    for number in 1..20 {
        keys.push(stand.lab.new_key(&format!("agent-{number}")).await.unwrap().private);
    }
    keys.push(request.key.private.clone());
    let (_agent, socket) = agent(&stand.lab, "agent", &keys).await;
    // Whatever the agent has is offered, in its order; the instance's sshd takes no more than six.
    let offers =
        format!("  IdentitiesOnly no\n  IdentityAgent {}\n  IdentityFile {}/none", socket.display(), dir.display());
    let config = jump.config(&stand.lab, &offers, "");
    let known_hosts = stand.lab.known_hosts();
    let common =
        "  BatchMode yes\n  GlobalKnownHostsFile /dev/null\n  StrictHostKeyChecking yes\n  ConnectTimeout 120\n";
    let inner = format!(
        "Host i-*\n  IdentityFile {}\n  IdentitiesOnly yes\n  IdentityAgent none\n  UserKnownHostsFile {}\n",
        request.key.private.display(),
        known_hosts.display()
    );
    let path = dir.join("agent.config");
    fs::write(&path, format!("{config}\n{inner}\nHost *\n{common}")).unwrap();
    let shell = ssh::run(stand.lab.ssh(Path::new(&path)).unwrap().args([&instance.id, "id -un"])).await.unwrap();
    assert!(shell.success() && shell.stdout.trim() == "ec2-user", "{shell:?}");
}

pub async fn an_rsa_key_is_let_in() {
    let (stand, jump) = both().await;
    let instance = stand.instance("rsa").await;
    let private = stand.lab.dir().join("rsa-key");
    let mut keygen = Command::new("ssh-keygen");
    keygen.args(["-q", "-t", "rsa", "-b", "2048", "-N", "", "-C", "", "-f"]).arg(&private);
    assert!(ssh::run(&mut keygen).await.unwrap().success());
    let public = fs::read_to_string(private.with_extension("pub")).unwrap().trim().to_owned();
    let key = KeyPair { private, public: public.clone() };
    let spec = json!({"sshPublicKey": public, "ttlSeconds": 600});
    let request = stand.request("alice", "rsa").on(&instance).with(spec).applied().await;
    request.becomes("Granted").await;
    let config = stand.lab.ssh_config(&key, &jump.config(&stand.lab, "", "")).unwrap();
    let shell = ssh::run(stand.lab.ssh(&config).unwrap().args([&instance.id, "id -un"])).await.unwrap();
    assert!(shell.success() && shell.stdout.trim() == "ec2-user", "{shell:?}");
    // SHA-1 signatures are not taken, whatever the client would like.
    let old = stand.lab.ssh_config(&key, &jump.config(&stand.lab, "  PubkeyAcceptedAlgorithms ssh-rsa", "")).unwrap();
    let refused = ssh::run(stand.lab.ssh(&old).unwrap().args([&instance.id, "id -un"])).await.unwrap();
    assert!(!refused.success() && refused.stderr.contains("Permission denied (publickey)"), "{refused:?}");
}

pub async fn an_agent_alone_leads_in_and_is_forwarded_to_the_instance_only() {
    let (stand, jump) = both().await;
    let instance = stand.instance("forwarded").await;
    let request = stand.request("alice", "forwarded").on(&instance).with(json!({"ttlSeconds": 600})).applied().await;
    request.becomes("Granted").await;
    let dir = stand.lab.dir();
    let (_agent, socket) = agent(&stand.lab, "agent-alone", std::slice::from_ref(&request.key.private)).await;
    // No private key in any file that ssh would find: the agent signs for both logins.
    let config = format!(
        "{}\nHost *\n  IdentityAgent {}\n  IdentityFile {}/none\n  UserKnownHostsFile {}\n  \
         GlobalKnownHostsFile /dev/null\n  StrictHostKeyChecking yes\n  BatchMode yes\n  ConnectTimeout 120\n",
        jump.config(&stand.lab, "  ForwardAgent yes", "  ForwardAgent yes"),
        socket.display(),
        dir.display(),
        stand.lab.known_hosts().display(),
    );
    let path = dir.join("agent-alone.config");
    fs::write(&path, config).unwrap();
    let client = Client { request: &request, config: path };
    let inside = client.typed(&[&instance.id, "ssh-add -l"]).await;
    assert!(inside.success() && inside.stdout.contains(&request.fingerprint()), "{inside:?}");
    // The gateway has no session in which to ask for the agent, whatever the client would let it do.
    let outside = client.typed(&["-A", "gateway", "ssh-add -l"]).await;
    assert!(!outside.success() && outside.stderr.contains("this gateway is a jump host"), "{outside:?}");
    assert!(outside.stdout.is_empty(), "{outside:?}");
}

pub async fn ipv6_leads_to_the_gateway_and_to_the_instance() {
    let (stand, _) = both().await;
    let launch = Launch::new("six").tag("env", "dev").ipv6();
    let instance = stand.lab.launch_instance(launch).await.unwrap();
    let port = instance.port.to_string();
    let more = ["--ssh-listen", "[::1]:0", "--ports", &port];
    let dials = [&more[..], &["--never-dial", "127.0.0.1/32"]].concat();
    let on_both = ["--ssh-listen", "[::]:0", "--ports", &port];
    let (jump, never) = tokio::join!(
        Jump::start(stand, "gateway-six", &dials),
        // What the lab's gateways are told, and every gateway by default: loopback is nobody's instance.
        Jump::start(stand, "gateway-never-six", &on_both),
    );
    let asked = json!({"ttlSeconds": 600, "connection": {"method": "Direct", "port": instance.port}});
    let request = stand.request("alice", "six").on(&instance).with(asked).applied().await;
    let granted = request.becomes("Granted").await;
    assert_eq!(text(&granted, "/status/connection/address"), "::1", "{}", granted["status"]);
    let client = Client::of(&request, &jump);
    client.gets_in(&["-p", &port, &instance.id]).await;
    client.gets_in(&["-p", &port, "-o", &format!("HostKeyAlias={}", instance.id), "six.team"]).await;
    let opened = jump.records(&request.uid, "SessionOpened");
    assert_eq!(opened[0]["record"]["destination"], format!("[::1]:{port}"), "{opened:?}");
    assert!(text(&opened[0], "/record/source").starts_with("[::1]:"), "{opened:?}");
    // Addresses are no names, in this family as well.
    let said = client.refused(&format!("[::1]:{port}")).await;
    assert!(said.contains("ask for i-"), "{said}");
    // By IPv4, to one that listens for both: the client's address is what it is, not what the socket makes of it.
    let alias = format!("  HostKeyAlias [::]:{}", never.ssh.port());
    let config = never.config(&stand.lab, &alias, "").replace("HostName ::\n", "HostName 127.0.0.1\n");
    let by_four = Client { request: &request, config: stand.lab.ssh_config(&request.key, &config).unwrap() };
    let said = by_four.refused(&format!("{}:{port}", instance.id)).await;
    assert!(said.contains("an address that the gateway never dials"), "{said}");
    let log = never.log();
    assert!(log.lines().any(|line| line.contains("NeverDialled") && line.contains("source=127.0.0.1:")), "{log}");
    jump.verifies();
}
