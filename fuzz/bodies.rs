//! What is fuzzed: everything of ours that reads a stranger's bytes. One function a target, called by libFuzzer
//! (`fuzz_targets/`) and, with the corpus and with made-up inputs, by `cargo test --test fuzz`.
//!
//! ```text
//! stranger     bytes from the first one on: version, packets, key exchange    ─┐
//! guest        messages inside the cipher, before a login: who has no key yet ─┴─▶ Gateway::serve_one, in memory
//! key          spec.sshPublicKey                                              ───▶ domain::key
//! endpoint     what an endpoint answers, and the frames it sends               ───▶ aws::Tunnel
//! destination  what a client asks to be connected to                          ───▶ domain::session::permit
//! ```
//! Each panics when a promise is broken. Clocks are paused: a connection that would wait for its login to be due is over at
//! once, and one that would wait for ever fails.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::prelude::{BASE64_STANDARD, Engine};
use instance_access::api::InstanceAccess;
use instance_access::audit::{Begin, Limits, Sinks, Trail};
use instance_access::aws::Tunnel;
use instance_access::domain::key::{LINE_CHARS_MAX, LINE_CHARS_MIN, PublicKey};
use instance_access::domain::session::{Destination, Dialling, EndpointLimits, Networks, Standing, permit, standing};
use instance_access::gateway::{Gateway, GatewayLimits, GatewayMetrics, GatewayParts, HostKeys};
use jiff::Timestamp;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

/// How long a login may take, and how much longer a connection may be there.
const LOGIN: Duration = Duration::from_secs(5);
const BOUND: Duration = Duration::from_secs(10);
/// The most that is said to a stranger: its version, its offers, a key exchange, a refusal for each message.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// Messages that a guest sends at most.
const MESSAGES_MAX: usize = 100;
/// The private half of the key that has a grant; no input knows it.
const SEED: [u8; 32] = [7; 32];
/// The instance of that grant.
const INSTANCE: &str = "i-0123456789abcdef0";

/// A gateway with one grant, and the time it lives in.
struct World {
    runtime: tokio::runtime::Runtime,
    gateway: Gateway,
    metrics: Arc<GatewayMetrics>,
    _dir: tempfile::TempDir,
}

thread_local! {
    static WORLD: World = World::new();
}

impl World {
    fn new() -> Self {
        // It may be there already: tests have several threads.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let metrics = Arc::new(GatewayMetrics::default());
        let parts = runtime.block_on(async {
            let sinks = Sinks { file: Some(dir.path().join("audit.jsonl")), stdout: false };
            let begin = Begin { now: now(), known_head: None, leader: None };
            let (trail, _) = Trail::open(sinks, Limits::default(), begin).await.unwrap();
            // Nobody is there, and nobody is asked.
            let nowhere = kube::Config::new("http://127.0.0.1:9".parse().unwrap());
            GatewayParts {
                client: kube::Client::try_from(nowhere).unwrap(),
                // No key is delivered to anybody.
                cloud: futures::FutureExt::shared(futures::FutureExt::boxed(std::future::ready(None))),
                trail,
                clock: Arc::new(now),
                name: "fuzzed".to_owned(),
                host_keys: HostKeys::load(&[dir.path().join("host_key")]).unwrap(),
                limits: GatewayLimits {
                    connections_max: 1,
                    connections_per_source_max: 1,
                    logins_max: 1,
                    logins_per_source_max: 1,
                    login: LOGIN,
                    connections_per_key_max: 1,
                    sessions_per_grant_max: 1,
                    idle_max: None,
                    endpoints: EndpointLimits { per_endpoint_max: 1, per_user_max: 1 },
                    silence_max: Duration::from_secs(60),
                    drain: Duration::ZERO,
                },
                dialling: dialling(),
                tunnels: None,
                lease: None,
                metrics: Arc::clone(&metrics),
            }
        });
        let gateway = runtime.block_on(async { Gateway::new(parts) });
        gateway.see(&request("web-1", INSTANCE, "203.0.113.17"));
        Self { runtime, gateway, metrics, _dir: dir }
    }

    /// Has a client talk to the gateway; returns what it brings back once the gateway is done with it.
    fn serve<T>(&self, client: impl AsyncFnOnce(DuplexStream) -> T) -> T {
        self.runtime.block_on(async {
            let (near, far) = tokio::io::duplex(256 << 10);
            let source = SocketAddr::from(([192, 0, 2, 1], 22222));
            let both = async { tokio::join!(client(near), self.gateway.serve_one(far, source)).0 };
            tokio::time::timeout(BOUND, both).await.expect("a connection has an end")
        })
    }

    /// Nobody got further than the door.
    fn is_untouched(&self) {
        let page = self.metrics.page();
        assert!(page.contains("keys_total{outcome=\"proved\"} 0\n"), "a key was taken as proved:\n{page}");
        assert!(page.contains("sessions_open 0\n"), "a session is open:\n{page}");
    }
}

fn now() -> Timestamp {
    "2026-03-01T09:00:00Z".parse().unwrap()
}

fn dialling() -> Dialling {
    Dialling {
        never: Networks::new(vec!["127.0.0.0/8".parse().unwrap()]),
        ports: vec![22],
        private_vpcs: vec![],
        endpoints: false,
    }
}

fn key_pair() -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&SEED).unwrap()
}

/// The public half of the key that has a grant, as SSH sends it.
fn key_blob() -> Vec<u8> {
    [string(b"ssh-ed25519"), string(key_pair().public_key().as_ref())].concat()
}

/// A request with a grant for that key.
fn request(name: &str, instance_id: &str, address: &str) -> InstanceAccess {
    let key = format!("ssh-ed25519 {}", BASE64_STANDARD.encode(key_blob()));
    let fingerprint = PublicKey::parse(&key).unwrap().fingerprint().to_owned();
    serde_json::from_value(json!({
        "apiVersion": "instanceaccess.dev/v1alpha1",
        "kind": "InstanceAccess",
        "metadata": {"name": name, "namespace": "team", "uid": format!("uid-{name}")},
        "spec": {
            "requester": {"username": "alice"},
            "target": {"instanceId": instance_id},
            "osUser": "ec2-user",
            "sshPublicKey": key,
        },
        "status": {
            "conditions": [{
                "type": "Active", "status": "True", "reason": "Granted", "message": "", "observedGeneration": 1,
                "lastTransitionTime": "2026-03-01T08:59:00Z",
            }],
            "grant": {"id": format!("grant-{name}"), "startTime": "2026-03-01T08:59:00Z", "expirationTime": "2026-03-01T09:10:00Z"},
            "instance": {"instanceId": instance_id},
            "connection": {"method": "Direct", "address": address, "port": 22, "command": "ssh"},
            "key": {"type": "ED25519", "bits": 256, "fingerprint": fingerprint},
        },
    }))
    .unwrap()
}

/// Whatever is sent from the first byte on: the gateway says its version, little more, and hangs up in time.
pub fn stranger(bytes: &[u8]) {
    WORLD.with(|world| {
        let answer = world.serve(async |stream| {
            let (mut from, mut to) = tokio::io::split(stream);
            let mut answer = Vec::new();
            let say = async {
                // It may hang up in the middle of a word.
                let _ = to.write_all(bytes).await;
                let _ = to.shutdown().await;
            };
            let _ = tokio::join!(say, from.read_to_end(&mut answer)).1; // an end is an end
            answer
        });
        assert!(answer.starts_with(b"SSH-2.0-InstanceAccess\r\n"), "{answer:?}");
        assert!(answer.len() < ANSWER_BYTES_MAX, "{} bytes were said to a stranger", answer.len());
        world.is_untouched();
    });
}

/// Whatever is sent in the cipher by who has not logged in: no login, no channel, no request granted.
///
/// The input: a byte that says whether the client hangs up or stays, then messages, each behind its length in two bytes.
pub fn guest(bytes: &[u8]) {
    let (stays, messages) = messages(bytes);
    let answers = WORLD.with(|world| {
        let answers = world.serve(async |stream| talk(stream, stays, |_| messages).await);
        world.is_untouched();
        answers
    });
    for answer in answers {
        // USERAUTH_SUCCESS, REQUEST_SUCCESS, CHANNEL_OPEN_CONFIRMATION.
        assert!(![52, 81, 91].contains(&answer[0]), "a guest was granted {answer:?}");
    }
}

/// Whoever has the key is let in, by the same client as [`guest`]: or that one would prove nothing.
pub fn owner() {
    let world = World::new();
    let answers =
        world.serve(async |stream| talk(stream, false, |session_id| vec![service(), login(session_id)]).await);
    assert!(answers.iter().any(|answer| answer[0] == 52), "the owner was not let in: {answers:?}");
    assert!(world.metrics.page().contains("outcome=\"proved\""));
}

/// Splits an input of [`guest`].
fn messages(bytes: &[u8]) -> (bool, Vec<Vec<u8>>) {
    let Some((flag, mut rest)) = bytes.split_first() else { return (false, Vec::new()) };
    let mut messages = Vec::new();
    while let [a, b, more @ ..] = rest
        && messages.len() < MESSAGES_MAX
    {
        let (message, left) = more.split_at(usize::from(u16::from_be_bytes([*a, *b])).min(more.len()));
        messages.push(message.to_vec());
        rest = left;
    }
    (flag & 1 == 1, messages)
}

/// An input of [`guest`].
pub fn joined(stays: bool, messages: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = vec![u8::from(stays)];
    for message in messages {
        bytes.extend(u16::try_from(message.len()).unwrap().to_be_bytes());
        bytes.extend(message);
    }
    bytes
}

/// Messages that a client sends before it is logged in, well formed: what random bytes would not find.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let none = [&[50][..], &string(b"whoever"), &string(b"ssh-connection"), &string(b"none")].concat();
    let password = [&none[..none.len() - 8], &string(b"password"), &[0], &string(b"secret")].concat();
    let offer = |signature: &[u8]| {
        let signed = [u8::from(!signature.is_empty())];
        let head = [&none[..none.len() - 8], &string(b"publickey"), &signed, &string(b"ssh-ed25519")].concat();
        [head, string(&key_blob()), signature.to_vec()].concat()
    };
    let forged = string(&[string(b"ssh-ed25519"), string(&[7; 64])].concat());
    let channel = [&[90][..], &string(b"direct-tcpip"), &[0; 4], &[0, 32, 0, 0], &[0, 0, 128, 0]].concat();
    let channel = [channel, string(INSTANCE.as_bytes()), vec![0, 0, 0, 22], string(b"127.0.0.1"), vec![0; 4]].concat();
    let global = [&[80][..], &string(b"tcpip-forward"), &[1], &string(b"0.0.0.0"), &[0, 0, 0, 22]].concat();
    let data = [&[94, 0, 0, 0, 0][..], &string(b"hello")].concat();
    vec![
        ("asks-what-there-is", joined(false, &[service(), none.clone()])),
        ("guesses-a-password", joined(false, &[service(), none.clone(), password])),
        ("names-a-key-and-stays", joined(true, &[service(), none.clone(), offer(&[])])),
        ("forges-a-signature", joined(false, &[service(), offer(&[]), offer(&forged), channel.clone()])),
        ("opens-a-channel-at-once", joined(false, &[channel, data, global.clone()])),
        ("exchanges-keys-again", joined(false, &[key_exchange(), service(), none.clone()])),
        ("says-nothing-and-stays", joined(true, &[])),
        ("says-what-means-nothing", joined(false, &[vec![2], vec![4, 0], vec![255], vec![], vec![21], global])),
    ]
}

fn service() -> Vec<u8> {
    [&[5][..], &string(b"ssh-userauth")].concat()
}

/// A login with a signature that is right.
fn login(session_id: &[u8]) -> Vec<u8> {
    let asked = [
        &[50][..],
        &string(b"whoever"),
        &string(b"ssh-connection"),
        &string(b"publickey"),
        &[1],
        &string(b"ssh-ed25519"),
        &string(&key_blob()),
    ];
    let asked = asked.concat();
    let signature = key_pair().sign(&[string(session_id), asked.clone()].concat());
    [asked, string(&[string(b"ssh-ed25519"), string(signature.as_ref())].concat())].concat()
}

fn string(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

/// A number as SSH writes it: without leading zeros, and positive.
fn number(bytes: &[u8]) -> Vec<u8> {
    let first = bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len());
    let digits = &bytes[first..];
    if digits.first().is_some_and(|byte| byte & 0x80 != 0) { string(&[&[0], digits].concat()) } else { string(digits) }
}

fn key_exchange() -> Vec<u8> {
    let cipher: &[u8] = b"aes128-gcm@openssh.com";
    let mac: &[u8] = b"hmac-sha2-256-etm@openssh.com";
    let names = [b"curve25519-sha256", &b"ssh-ed25519"[..], cipher, cipher, mac, mac, b"none", b"none", b"", b""];
    let mut payload = [&[20][..], &[7; 16]].concat();
    payload.extend(names.into_iter().flat_map(string));
    payload.extend([0; 5]);
    payload
}

/// One direction's cipher.
struct Sealed {
    key: LessSafeKey,
    nonce: [u8; 12],
}

impl Sealed {
    fn next(&mut self) -> Nonce {
        let nonce = Nonce::assume_unique_for_key(self.nonce);
        let counter = &mut self.nonce[4..];
        let next = u64::from_be_bytes((&*counter).try_into().unwrap()).wrapping_add(1);
        counter.copy_from_slice(&next.to_be_bytes());
        nonce
    }
}

/// A packet without its length, padded to `block` bytes; the length counts in if it is encrypted as well.
fn padded(payload: &[u8], counted: usize, block: usize) -> Vec<u8> {
    let padding = block + 4 - (counted + 1 + payload.len() + 4) % block;
    let padding = u8::try_from(padding).unwrap();
    [&[padding][..], payload, &vec![0; padding.into()]].concat()
}

/// A client up to the cipher, which then sends messages and reads to the end; returns the messages that it could read.
async fn talk(mut stream: DuplexStream, stays: bool, messages: impl FnOnce(&[u8]) -> Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let (mine, my_offer) = (b"SSH-2.0-fuzz", key_exchange());
    stream.write_all(&[&mine[..], b"\r\n"].concat()).await.unwrap();
    clear(&mut stream, &my_offer).await;
    let mut theirs = Vec::new();
    while !theirs.ends_with(b"\r\n") {
        theirs.push(stream.read_u8().await.unwrap());
    }
    theirs.truncate(theirs.len() - 2);
    let their_offer = read_clear(&mut stream).await;
    let private = PrivateKey::generate(&X25519).unwrap();
    let my_point = private.compute_public_key().unwrap();
    clear(&mut stream, &[&[30][..], &string(my_point.as_ref())].concat()).await;
    let reply = read_clear(&mut stream).await;
    assert_eq!(reply[0], 31, "{reply:?}");
    let (host_key, rest) = taken(&reply[1..]);
    let (their_point, _) = taken(rest);
    let error = aws_lc_rs::error::Unspecified;
    let secret = agree(&private, UnparsedPublicKey::new(&X25519, their_point), error, |secret| Ok(number(secret)));
    let secret = secret.unwrap();
    let mut hash = Sha256::new();
    for part in [&mine[..], &theirs, &my_offer, &their_offer, host_key, my_point.as_ref(), their_point] {
        hash.update(string(part));
    }
    hash.update(&secret);
    let session_id = hash.finalize();
    assert_eq!(read_clear(&mut stream).await, [21]);
    clear(&mut stream, &[21]).await;
    let derived = |letter: u8| {
        let mut hash = Sha256::new();
        for part in [&secret[..], &session_id, &[letter], &session_id] {
            hash.update(part);
        }
        hash.finalize()
    };
    let sealed = |iv, key| Sealed {
        key: LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &derived(key)[..16]).unwrap()),
        nonce: derived(iv)[..12].try_into().unwrap(),
    };
    let (mut out, mut back) = (sealed(b'A', b'C'), sealed(b'B', b'D'));
    let messages = messages(&session_id);
    let (mut from, mut to) = tokio::io::split(stream);
    let say = async {
        for message in messages {
            let mut packet = padded(&message, 0, 16);
            let length = u32::try_from(packet.len()).unwrap().to_be_bytes();
            let nonce = out.next();
            out.key.seal_in_place_append_tag(nonce, Aad::from(length), &mut packet).unwrap();
            // It may have hung up.
            if to.write_all(&[&length[..], &packet].concat()).await.is_err() {
                return;
            }
        }
        if !stays {
            let _ = to.shutdown().await;
        }
    };
    let hear = async {
        let (mut answers, mut bytes) = (Vec::new(), 0);
        while let Ok(length) = from.read_u32().await {
            let mut packet = vec![0; length as usize + AES_128_GCM.tag_len()];
            bytes += packet.len();
            assert!(bytes < ANSWER_BYTES_MAX, "{bytes} bytes were said to a guest");
            if from.read_exact(&mut packet).await.is_err() {
                break;
            }
            // After another key exchange the key is another one: the rest is not ours to read.
            let nonce = back.next();
            let Ok(plain) = back.key.open_in_place(nonce, Aad::from(length.to_be_bytes()), &mut packet) else {
                let _ = from.read_to_end(&mut Vec::new()).await;
                break;
            };
            let padding = usize::from(plain[0]);
            answers.push(plain[1..plain.len() - padding].to_vec());
        }
        answers
    };
    // Who only said its piece waits for the answers: dropping a half too soon would hang up.
    tokio::join!(say, hear).1
}

async fn clear(stream: &mut DuplexStream, payload: &[u8]) {
    let packet = padded(payload, 4, 8);
    let length = u32::try_from(packet.len()).unwrap().to_be_bytes();
    stream.write_all(&[&length[..], &packet].concat()).await.unwrap();
}

async fn read_clear(stream: &mut DuplexStream) -> Vec<u8> {
    let mut packet = vec![0; stream.read_u32().await.unwrap() as usize];
    stream.read_exact(&mut packet).await.unwrap();
    let padding = usize::from(packet[0]);
    packet[1..packet.len() - padding].to_vec()
}

fn taken(bytes: &[u8]) -> (&[u8], &[u8]) {
    let (length, rest) = bytes.split_at(4);
    rest.split_at(u32::from_be_bytes(length.try_into().unwrap()) as usize)
}

/// Whatever is given as a key: what is taken is one line that EIC takes, and reads as itself.
pub fn key(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(key) = PublicKey::parse(text) else { return };
    let line = key.openssh();
    assert!((LINE_CHARS_MIN..=LINE_CHARS_MAX).contains(&line.len()), "{line}");
    assert!(line.starts_with("ssh-") && line.chars().all(|c| c == ' ' || c.is_ascii_graphic()), "{line}");
    assert_eq!(line.matches(' ').count(), 1, "{line}");
    assert_eq!(PublicKey::parse(line).as_ref(), Ok(&key), "{line}");
}

/// Whatever is asked for: what is dialled is the address of a grant of that very name, and a refusal is fit for a terminal.
///
/// The input: a port in four bytes, then a host.
pub fn destination(bytes: &[u8]) {
    let Some((port, host)) = bytes.split_at_checked(4) else { return };
    let port = u32::from_be_bytes(port.try_into().unwrap());
    let host = String::from_utf8_lossy(host);
    let grant = |name, instance_id, address| match standing(&request(name, instance_id, address)) {
        Standing::Live(grant) => grant,
        other => panic!("{other:?}"),
    };
    let grants = [
        grant("web-1", INSTANCE, "203.0.113.17"),
        grant("db-1", "i-0fedcba9876543210", "203.0.113.18"),
        grant("evil", "i-00000000000000001", "127.0.0.1"),
    ];
    match permit(now(), &grants, |_| grants.to_vec(), &host, port, &dialling()) {
        Ok(dial) => {
            let address = match &*host {
                INSTANCE | "web-1.team" => "203.0.113.17:22",
                "i-0fedcba9876543210" | "db-1.team" => "203.0.113.18:22",
                other => panic!("{other:?} leads somewhere"),
            };
            assert_eq!(port, 22);
            let dialled = dial.redeem(now()).unwrap().0;
            assert_eq!(dialled, Destination::Direct(vec![address.parse().unwrap()]));
        }
        Err(refusal) => {
            let text = refusal.to_string();
            assert!(text.len() < 512 && text.chars().all(|c| c == ' ' || c.is_ascii_graphic()), "{text:?}");
        }
    }
}

/// An endpoint that sends these bytes: of the first one bit 0 says that the websocket is there already (else they answer the
/// question for it), bit 1 that it then stays.
///
/// Whatever they are, every wait ends, no more comes out than was sent, what is said of a failure is a line for a person, and
/// who is closed stays closed.
pub fn endpoint(bytes: &[u8]) {
    let Some((how, bytes)) = bytes.split_first() else { return };
    let (is_there, stays) = (how & 1 == 1, how & 2 == 2);
    WORLD.with(|world| {
        world.runtime.block_on(async {
            let (wire, mut theirs) = tokio::io::duplex(16 << 10);
            let sent = bytes.to_vec();
            let endpoint = tokio::spawn(async move {
                let (mut read, mut write) = tokio::io::split(&mut theirs);
                let says = async {
                    let _ = write.write_all(&sent).await; // whoever hangs up has heard enough
                    if stays {
                        std::future::pending::<()>().await;
                    }
                };
                let hears = async {
                    let mut heard = [0; 1024];
                    while read.read(&mut heard).await.is_ok_and(|length| length > 0) {}
                };
                tokio::select! {
                    () = says => {}
                    () = hears => {}
                }
            });
            let talk = async {
                if !is_there {
                    let host = "eice.example";
                    let failure = Tunnel::ask(Box::new(wire), host, "/openTunnel?a=b", Duration::from_secs(60)).await;
                    // Nobody who does not see the question can fit it.
                    let text = failure.expect_err("a websocket out of the blue").message;
                    assert!(text.len() < 1024 && !text.chars().any(char::is_control), "{text:?}");
                    return;
                }
                let tunnel = Tunnel::over(Box::new(wire), Duration::from_secs(60)).await;
                let mut came = 0;
                while let Ok(Some(bytes)) = tokio::time::timeout(Duration::from_secs(1), tunnel.next()).await {
                    assert!(!bytes.is_empty());
                    came += bytes.len();
                }
                assert!(came <= bytes.len(), "{came} bytes out of {}", bytes.len());
                if let Some(why) = tunnel.why_closed() {
                    assert!(why.len() < 1024 && !why.chars().any(char::is_control), "{why:?}");
                    assert_eq!(tunnel.next().await, None, "it was closed");
                }
                let _ = tunnel.send(b"SSH-2.0-").await; // to somebody who may be gone
                tunnel.end().await;
            };
            tokio::time::timeout(Duration::from_secs(120), talk).await.expect("every wait ends");
            endpoint.abort();
        });
    });
}
