//! SendSSHPublicKey and what the host reads of it.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use lab::standin::{Api, Instance, Outcome};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::client::{ED25519, ID, authorization, host, instance, push_body, world};

/// A key's line, of any kind and with any fields.
fn line(kind: &str, fields: &[&[u8]]) -> String {
    let mut blob = Vec::new();
    for field in [kind.as_bytes()].iter().chain(fields) {
        blob.extend((field.len() as u32).to_be_bytes());
        blob.extend_from_slice(field);
    }
    format!("{kind} {}", STANDARD.encode(blob))
}

/// An RSA key whose modulus has so many bits.
fn rsa(bits: usize) -> String {
    let mut modulus = vec![0xff; bits.div_ceil(8)];
    modulus[0] = 0xff >> (modulus.len() * 8 - bits);
    if modulus[0] & 0x80 != 0 {
        modulus.insert(0, 0);
    }
    line("ssh-rsa", &[&[1, 0, 1], &modulus])
}

fn rfc4716(line: &str) -> String {
    let data = line.split(' ').nth(1).unwrap();
    let folded: Vec<&str> = data.as_bytes().chunks(70).map(|it| std::str::from_utf8(it).unwrap()).collect();
    format!(
        "---- BEGIN SSH2 PUBLIC KEY ----\nComment: \"a key \\\nof alice\"\n{}\n---- END SSH2 PUBLIC KEY ----\n",
        folded.join("\n")
    )
}

#[tokio::test]
async fn every_field_is_judged_as_the_service_model_has_it() {
    let world = world().await;
    let invalid = "InvalidArgsException";
    let long_id = format!("i-{}", "a".repeat(30));
    let rows: Vec<(Value, Option<&str>)> = vec![
        (json!({}), None),
        // instance ids
        (json!({ "InstanceId": null }), Some(invalid)),
        (json!({ "InstanceId": "" }), Some(invalid)),
        (json!({ "InstanceId": "i-1234567" }), Some(invalid)),
        (json!({ "InstanceId": format!("{long_id}a") }), Some(invalid)),
        (json!({ "InstanceId": long_id }), Some("EC2InstanceNotFoundException")),
        (json!({ "InstanceId": "i-0123456789ABCDEF0" }), Some(invalid)),
        (json!({ "InstanceId": "mi-0123456789abcdef0" }), Some(invalid)),
        (json!({ "InstanceId": "i-0123456789abcdef0\n" }), Some(invalid)),
        (json!({ "InstanceId": "i-0123456789abcdef1" }), Some("EC2InstanceNotFoundException")),
        // OS users
        (json!({ "InstanceOSUser": null }), Some(invalid)),
        (json!({ "InstanceOSUser": "" }), Some(invalid)),
        (json!({ "InstanceOSUser": "root" }), None),
        (json!({ "InstanceOSUser": "alice@example.com" }), None),
        (json!({ "InstanceOSUser": "host$" }), None),
        (json!({ "InstanceOSUser": "7zip" }), None),
        (json!({ "InstanceOSUser": "7" }), Some(invalid)),
        (json!({ "InstanceOSUser": "-oProxyCommand=id" }), Some(invalid)),
        (json!({ "InstanceOSUser": "a b" }), Some(invalid)),
        (json!({ "InstanceOSUser": "../../etc" }), Some(invalid)),
        (json!({ "InstanceOSUser": "a\nroot" }), Some(invalid)),
        (json!({ "InstanceOSUser": "müller" }), Some(invalid)),
        (json!({ "InstanceOSUser": "a".repeat(33) }), Some(invalid)),
        // zones
        (json!({ "AvailabilityZone": "us-west-2a" }), None),
        (json!({ "AvailabilityZone": "us-west-2b" }), Some("EC2InstanceNotFoundException")),
        (json!({ "AvailabilityZone": "us-gov-west-1a" }), Some("EC2InstanceNotFoundException")),
        (json!({ "AvailabilityZone": "us2a" }), Some(invalid)),
        (json!({ "AvailabilityZone": "us-west" }), Some(invalid)),
        (json!({ "AvailabilityZone": "" }), Some(invalid)),
        (json!({ "AvailabilityZone": "us-west-2a; id" }), Some(invalid)),
        // keys
        (json!({ "SSHPublicKey": null }), Some(invalid)),
        (json!({ "SSHPublicKey": "ssh-ed25519 AAAA" }), Some(invalid)),
        (json!({ "SSHPublicKey": line("ssh-ed25519", &[&[7; 32]]) }), None),
        (json!({ "SSHPublicKey": format!("{ED25519}\n") }), None),
        (json!({ "SSHPublicKey": format!("{ED25519}\n{ED25519}") }), Some(invalid)),
        (json!({ "SSHPublicKey": format!("command=\"id\" {ED25519}") }), Some(invalid)),
        (json!({ "SSHPublicKey": line("ssh-ed25519", &[&[7; 31]]) + " and a comment" }), Some(invalid)),
        (json!({ "SSHPublicKey": line("ssh-ed25519", &[&[7; 32], &[0]]) }), Some(invalid)),
        (json!({ "SSHPublicKey": rsa(2048) }), None),
        (json!({ "SSHPublicKey": rsa(4096) }), None),
        (json!({ "SSHPublicKey": rsa(1024) }), Some(invalid)),
        (json!({ "SSHPublicKey": rsa(2047) }), Some(invalid)),
        (json!({ "SSHPublicKey": rsa(3072) }), Some(invalid)),
        (json!({ "SSHPublicKey": rsa(8192) }), Some(invalid)),
        (json!({ "SSHPublicKey": rsa(2048).replace("ssh-rsa", "ssh-ed25519") }), Some(invalid)),
        (json!({ "SSHPublicKey": line("ssh-dss", &[&[7; 129], &[7; 21], &[7; 128], &[7; 128]]) }), Some(invalid)),
        (json!({ "SSHPublicKey": line("ecdsa-sha2-nistp256", &[b"nistp256", &[4; 65]]) }), Some(invalid)),
        (json!({ "SSHPublicKey": line("sk-ssh-ed25519@openssh.com", &[&[7; 32], b"ssh:"]) }), Some(invalid)),
        (json!({ "SSHPublicKey": rfc4716(&rsa(2048)) }), None),
        (json!({ "SSHPublicKey": rfc4716(&line("ssh-ed25519", &[&[7; 32]])) }), None),
        (json!({ "SSHPublicKey": format!("{} {}", rsa(2048), "x".repeat(4096)) }), Some(invalid)),
        (json!({ "SSHPublicKey": format!("ssh-ed25519 {}", "!".repeat(80)) }), Some(invalid)),
        (json!({ "SSHPublicKey": "-----BEGIN PUBLIC KEY-----\n".repeat(4) }), Some(invalid)),
        // not text at all
        (json!({ "InstanceId": 7 }), Some("SerializationException")),
        (json!({ "SSHPublicKey": [] }), Some("SerializationException")),
        (json!({ "More": "is ignored" }), None),
    ];
    for (changes, expected) in rows {
        let body = push_body(changes.clone());
        let answer = world.push(&body).await;
        assert_eq!(answer.code().as_deref(), expected, "{changes}: {}", answer.body);
        if expected.is_none() {
            assert_eq!((answer.status, &answer.json()["Success"]), (200, &json!(true)), "{changes}");
            assert!(answer.json()["RequestId"].as_str().is_some_and(|it| it.len() == 36));
        } else {
            assert_eq!((answer.status, answer.json()["__type"].as_str()), (400, expected), "{changes}");
        }
    }
}

#[tokio::test]
async fn a_refusal_names_every_field_in_the_services_words() {
    let world = world().await;
    let answer = world.push(&push_body(json!({ "InstanceId": "mi-0123456789abcdef0", "InstanceOSUser": null }))).await;
    assert_eq!(
        answer.json()["Message"],
        "2 validation errors detected: Value 'mi-0123456789abcdef0' at 'instanceId' failed to satisfy constraint: \
         Member must satisfy regular expression pattern: ^i-[a-f0-9]+$; Value null at 'instanceOSUser' failed to \
         satisfy constraint: Member must not be null"
    );
    let answer = world.push(&json!([])).await;
    assert_eq!(answer.code().as_deref(), Some("SerializationException"));
    let mut request = world.http.post(world.url("/")).header("x-amz-target", "AWSEC2InstanceConnectService.Other");
    for (name, value) in super::client::authorization("ec2-instance-connect", "us-west-2") {
        request = request.header(name, value);
    }
    assert_eq!(world.send(request.body("{}")).await.code().as_deref(), Some("UnknownOperationException"));
}

#[tokio::test]
async fn only_a_running_instance_of_the_callers_account_and_region_takes_a_key() {
    let world = world().await;
    for (state, expected) in [
        ("running", None),
        ("pending", Some("EC2InstanceStateInvalidException")),
        ("stopping", Some("EC2InstanceStateInvalidException")),
        ("stopped", Some("EC2InstanceStateInvalidException")),
        ("shutting-down", Some("EC2InstanceStateInvalidException")),
        ("terminated", Some("EC2InstanceStateInvalidException")),
    ] {
        world.stand_in.put_instance(Instance { state: state.into(), ..instance(ID) });
        assert_eq!(world.push(&push_body(json!({}))).await.code().as_deref(), expected, "{state}");
    }
    let not_found = Some("EC2InstanceNotFoundException");
    world.stand_in.put_instance(Instance { account_id: "210987654321".into(), ..instance(ID) });
    assert_eq!(world.push(&push_body(json!({}))).await.code().as_deref(), not_found);
    world.stand_in.put_instance(Instance { region: "eu-central-1".into(), ..instance(ID) });
    assert_eq!(world.push(&push_body(json!({}))).await.code().as_deref(), not_found);
    world.stand_in.remove_instance(ID);
    assert_eq!(world.push(&push_body(json!({}))).await.code().as_deref(), not_found);
}

#[tokio::test]
async fn a_key_is_read_for_sixty_seconds_and_no_longer() {
    let world = world().await;
    let keys = || world.stand_in.active_keys(ID, "ec2-user");
    world.push(&push_body(json!({}))).await;
    assert_eq!(keys(), [ED25519]);
    assert!(world.stand_in.active_keys(ID, "root").is_empty(), "the key is for one login");
    world.stand_in.advance(Duration::from_millis(59_000));
    assert_eq!(keys(), [ED25519]);
    world.stand_in.advance(Duration::from_millis(1_000));
    assert!(keys().is_empty());
}

#[tokio::test]
async fn a_key_pushed_again_starts_its_window_anew_and_leaves_others_alone() {
    let world = world().await;
    let other = rsa(2048);
    world.push(&push_body(json!({}))).await;
    world.push(&push_body(json!({ "SSHPublicKey": other }))).await;
    world.stand_in.advance(Duration::from_secs(45));
    // the same key, though its comment differs
    let bare = ED25519.rsplit_once(' ').unwrap().0;
    world.push(&push_body(json!({ "SSHPublicKey": bare }))).await;
    assert_eq!(world.stand_in.active_keys(ID, "ec2-user"), [other.as_str(), bare]);
    world.stand_in.advance(Duration::from_secs(45));
    assert_eq!(world.stand_in.active_keys(ID, "ec2-user"), [bare]);
    assert_eq!(world.stand_in.all_active_keys()[0].fades_in_ms / 1000, 14);
    world.stand_in.advance(Duration::from_secs(15));
    assert!(world.stand_in.all_active_keys().is_empty());
}

#[tokio::test]
async fn a_host_reads_its_own_keys_by_its_address_and_404_when_there_are_none() {
    let world = world().await;
    let other = "i-0fedcba9876543210";
    world.stand_in.put_instance(Instance { host_addr: Some(host(21)), ..instance(ID) });
    world.stand_in.put_instance(Instance { host_addr: Some(host(22)), ..instance(other) });
    let read = async |last: u8| world.active_keys(host(last).ip(), "ec2-user").await;
    assert_eq!(read(21).await.status, 404);
    world.push(&push_body(json!({}))).await;
    let answer = read(21).await;
    assert_eq!((answer.status, answer.body), (200, format!("{ED25519}\n")));
    let answer = read(22).await;
    assert_eq!(answer.status, 404);
    assert!(answer.body.contains("404 - Not Found"));
    assert_eq!(read(23).await.status, 404, "an address of nobody");
    world.stand_in.advance(Duration::from_secs(60));
    assert_eq!(read(21).await.status, 404);

    let reads: Vec<_> = world.stand_in.journal().into_iter().filter(|it| it.api == Api::Metadata).collect();
    assert_eq!(reads.len(), 5);
    assert_eq!((reads[1].instance_ids[0].as_str(), reads[1].answered), (ID, Some(1)));
}

#[tokio::test]
async fn a_login_with_odd_characters_is_found_however_the_host_writes_it() {
    let world = world().await;
    let at = Instance { host_addr: Some(host(24)), ..instance(ID) };
    world.stand_in.put_instance(at);
    world.push(&push_body(json!({ "InstanceOSUser": "a@b.example" }))).await;
    for written in ["a@b.example", "a%40b.example"] {
        assert_eq!(world.active_keys(host(24).ip(), written).await.status, 200, "{written}");
    }
    assert_eq!(world.active_keys(host(24).ip(), "a%2540b.example").await.status, 404);
    assert_eq!(world.active_keys(host(24).ip(), "").await.status, 404);
}

#[tokio::test]
async fn keys_that_ssh_keygen_makes_are_taken_or_refused_by_kind_and_size() {
    let world = world().await;
    let dir = tempfile::tempdir().unwrap();
    for (kind, bits, expected) in [
        ("ed25519", "256", true),
        ("rsa", "2048", true),
        ("rsa", "3072", false),
        ("rsa", "4096", true),
        ("ecdsa", "256", false),
        ("ecdsa", "521", false),
    ] {
        let file = dir.path().join(format!("{kind}{bits}"));
        let keygen = |arguments: &[&str]| {
            let output = std::process::Command::new("ssh-keygen").args(arguments).arg(&file).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        keygen(&["-q", "-N", "", "-C", "alice@example.com", "-t", kind, "-b", bits, "-f"]);
        let public = std::fs::read_to_string(file.with_extension("pub")).unwrap();
        let exported = keygen(&["-e", "-m", "RFC4716", "-f"]);
        for text in [public, exported] {
            let answer = world.push(&push_body(json!({ "SSHPublicKey": text }))).await;
            assert_eq!(answer.status == 200, expected, "{kind} {bits}: {}", answer.body);
            if expected {
                let shown = keygen(&["-l", "-f"]);
                let entry = world.stand_in.journal().pop().unwrap();
                assert_eq!(shown.split(' ').nth(1), entry.key_fingerprint.as_deref(), "{kind} {bits}");
            }
        }
    }
}

#[tokio::test]
async fn a_terminated_instance_loses_its_keys() {
    let world = world().await;
    world.push(&push_body(json!({}))).await;
    world.stand_in.put_instance(Instance { state: "terminated".into(), ..instance(ID) });
    assert!(world.stand_in.active_keys(ID, "ec2-user").is_empty());
}

#[tokio::test]
async fn the_journal_says_who_pushed_what_where_and_how_it_ended() {
    let world = world().await;
    let before = jiff::Timestamp::now();
    let answer = world.push(&push_body(json!({}))).await;
    world.push(&push_body(json!({ "InstanceId": "i-0123456789abcdef1" }))).await;
    let journal = world.stand_in.journal();
    let [push, refused] = &journal[..] else { panic!("{journal:?}") };
    assert_eq!(push.request_id, answer.json()["RequestId"]);
    assert_eq!(push.action, "SendSSHPublicKey");
    assert_eq!((&*push.region, &*push.access_key_id, &*push.account_id), ("us-west-2", "AKIDEXAMPLE", "123456789012"));
    assert_eq!((&push.instance_ids[..], push.os_user.as_deref()), (&[ID.to_owned()][..], Some("ec2-user")));
    assert_eq!(push.outcome, Outcome::Ok);
    assert!(push.time >= before && push.time.subsec_nanosecond() != 0);
    assert_eq!(refused.outcome.error_code(), Some("EC2InstanceNotFoundException"));

    // as ssh-keygen sees it
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("key.pub");
    std::fs::write(&file, ED25519).unwrap();
    if let Ok(output) = std::process::Command::new("ssh-keygen").arg("-lf").arg(&file).output() {
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text.split(' ').nth(1), push.key_fingerprint.as_deref());
    }
}

/// Sends one request again and again on one connection; the client must not be what is measured.
async fn drill(addr: std::net::SocketAddr, request: Vec<u8>, times: usize) {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let mut answer = vec![0; 4096];
    for _ in 0..times {
        stream.write_all(&request).await.unwrap();
        let mut length = 0;
        // every answer to a push fits one buffer and ends with its JSON
        while !answer[..length].ends_with(b"}") {
            let n = stream.read(&mut answer[length..]).await.unwrap();
            assert_ne!(n, 0, "the connection stays open");
            length += n;
        }
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer[..length]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_pushes_are_no_bottleneck() {
    let world = world().await;
    let addr = world.stand_in.api_addr();
    lab::pace::begin();
    let begin = Timestamp::now();
    let workers: Vec<_> = (0..16)
        .map(|worker| {
            let body = push_body(json!({ "InstanceOSUser": format!("user{worker}") })).to_string();
            let mut head = "POST / HTTP/1.1\r\nhost: x\r\n\
                            x-amz-target: AWSEC2InstanceConnectService.SendSSHPublicKey\r\n"
                .to_owned();
            for (name, value) in authorization("ec2-instance-connect", "us-west-2") {
                head += &format!("{name}: {value}\r\n");
            }
            let request = format!("{head}content-length: {}\r\n\r\n{body}", body.len()).into_bytes();
            tokio::spawn(drill(addr, request, 313))
        })
        .collect();
    for worker in workers {
        worker.await.unwrap();
    }
    let end = Timestamp::now();
    assert_eq!(world.stand_in.journal().len(), 5008);
    assert_eq!(world.stand_in.all_active_keys().len(), 16);
    // generous: everything unoptimised
    let took = lab::pace::soon("5008 pushes", begin, end, 20.0).await.unwrap();
    eprintln!("5008 pushes in {took:.1} s");
}
