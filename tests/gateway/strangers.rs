//! What is read before anybody is known: nothing of it stops the gateway, costs it much, or keeps others out.

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::client::Client;
use crate::jump::{Jump, both};
use crate::stand::BOUND;

/// Connections that are made: some seconds' worth.
const STRANGERS: u64 = 400;
/// At once.
const AT_ONCE: u64 = 20;
/// How long a stranger may take to log in: whoever hangs up does not wait for it, and a login takes less on a busy machine.
const LOGIN_SECONDS: &str = "30";
/// What they may cost in all: no more than a few of their largest packets.
const BYTES_MAX: u64 = 64 << 20;

/// Numbers that look random and are the same each time.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self, below: u64) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }

    fn bytes(&mut self, length: u64) -> Vec<u8> {
        (0..length).map(|_| self.next(256) as u8).collect()
    }
}

/// An SSH packet without a cipher.
fn packet(payload: &[u8]) -> Vec<u8> {
    let padding = 16 - (payload.len() + 5) % 8;
    let mut packet = u32::try_from(payload.len() + padding + 1).unwrap().to_be_bytes().to_vec();
    packet.push(padding as u8);
    packet.extend(payload);
    packet.extend(vec![0; padding]);
    packet
}

fn key_exchange() -> Vec<u8> {
    let mut payload = vec![20];
    payload.extend([7; 16]);
    for names in [
        "curve25519-sha256,ext-info-c,kex-strict-c-v00@openssh.com",
        "ssh-ed25519",
        "aes256-gcm@openssh.com",
        "aes256-gcm@openssh.com",
        "hmac-sha2-256-etm@openssh.com",
        "hmac-sha2-256-etm@openssh.com",
        "none",
        "none",
        "",
        "",
    ] {
        payload.extend(u32::try_from(names.len()).unwrap().to_be_bytes());
        payload.extend(names.as_bytes());
    }
    payload.extend([0; 5]);
    packet(&payload)
}

/// What the number `of` a stranger says.
fn said(of: u64) -> Vec<u8> {
    let mut numbers = Numbers(of);
    let mut said = b"SSH-2.0-OpenSSH_9.9\r\n".to_vec();
    match of % 8 {
        0 => return numbers.bytes(1 + of * 50),
        1 => return vec![b'a'; 1 << 16],
        2 => return b"GET / HTTP/1.1\r\nHost: gateway\r\n\r\n".repeat(20),
        3 => return "\r\n".repeat(of as usize).into_bytes(),
        4 => said.extend(numbers.bytes(1 + of * 20)),
        5 => said.extend([0xff; 64]), // a packet of 4 GiB
        6 => {
            // A key exchange, and then what it must not be followed by.
            said.extend(key_exchange());
            let kind = numbers.next(256) as u8;
            let mut payload = vec![kind];
            let length = numbers.next(200);
            payload.extend(numbers.bytes(length));
            said.extend(packet(&payload));
        }
        _ => {
            said.extend(key_exchange());
            let mut point = vec![30, 0, 0, 0, 32];
            point.extend(numbers.bytes(32));
            said.extend(packet(&point));
            for _ in 0..=numbers.next(8) {
                let at = numbers.next(said.len() as u64) as usize;
                said[at] = numbers.next(256) as u8;
            }
            if numbers.next(2) == 0 {
                said.truncate(numbers.next(said.len() as u64) as usize);
            }
        }
    }
    said
}

pub async fn whatever_a_stranger_sends_others_are_served() {
    let (stand, _) = both().await;
    let jump = Jump::start(stand, "gateway-strangers", &["--login-seconds", LOGIN_SECONDS]).await;
    let instance = stand.instance("strangers").await;
    let request = stand.request("alice", "strangers").on(&instance).with(json!({"ttlSeconds": 600})).applied().await;
    request.becomes("Granted").await;
    let client = Client::of(&request, &jump);
    client.gets_in(&[&instance.id]).await;
    let before = jump.resident_bytes();
    for start in (0..STRANGERS).step_by(AT_ONCE as usize) {
        let strangers = (start..start + AT_ONCE).map(async |of| {
            let mut stream = TcpStream::connect(jump.ssh).await.unwrap();
            // It may hang up in the middle of a word.
            let _ = stream.write_all(&said(of)).await;
            let _ = stream.shutdown().await;
            let mut answer = Vec::new();
            let end = tokio::time::timeout(BOUND, stream.read_to_end(&mut answer)).await;
            assert!(end.is_ok(), "stranger {of} is still there");
            assert!(answer.starts_with(b"SSH-2.0-InstanceAccess\r\n") && answer.len() < 4096, "{of}: {answer:?}");
        });
        futures::future::join_all(strangers).await;
    }
    client.gets_in(&[&instance.id]).await;
    let more = jump.resident_bytes().saturating_sub(before);
    assert!(more < BYTES_MAX, "{more} bytes more");
    let log = jump.log();
    assert!(!log.contains("panicked"), "{log}");
}
