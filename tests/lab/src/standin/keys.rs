//! Public keys as EC2 Instance Connect takes them, and the 60 s for which a host may read them.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use sha2::{Digest, Sha256};

/// How long a host may read a pushed key. Source: AWS, SendSSHPublicKey; no call takes a key back.
pub const KEY_WINDOW: Duration = Duration::from_secs(60);

/// Pushes between two sweeps of faded keys: rare enough to cost nothing, often enough to bound the memory.
const SWEEP_EVERY: u64 = 4096;

const BEGIN: &str = "---- BEGIN SSH2 PUBLIC KEY ----";
const END: &str = "---- END SSH2 PUBLIC KEY ----";

/// A key that the service takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PublicKey {
    /// As the host will read it: as it was pushed, without white space around it.
    pub(super) text: String,
    /// `SHA256:…`, as `ssh-keygen -l` shows it.
    pub(super) fingerprint: String,
}

/// Reads a public key in OpenSSH's or RFC 4716's form; the error is a reason for people.
pub(super) fn parse(text: &str) -> Result<PublicKey, String> {
    let text = text.trim();
    let blob = if text.starts_with(BEGIN) { rfc4716(text) } else { openssh(text) }?;
    judge(&blob)?;
    let fingerprint = format!("SHA256:{}", STANDARD_NO_PAD.encode(Sha256::digest(&blob)));
    Ok(PublicKey { text: text.into(), fingerprint })
}

fn openssh(text: &str) -> Result<Vec<u8>, String> {
    if text.chars().any(|c| c.is_control() && c != '\t') {
        return Err("SSH Public key has more than one line".into());
    }
    let mut words = text.split_ascii_whitespace();
    let (Some(kind), Some(data)) = (words.next(), words.next()) else {
        return Err("SSH Public key is invalid".into());
    };
    let blob = STANDARD.decode(data).map_err(|_| format!("{kind} - SSH Public key is invalid"))?;
    match string(&mut &blob[..]) {
        Some(inner) if inner == kind.as_bytes() => Ok(blob),
        _ => Err(format!("{kind} - SSH Public key is invalid")),
    }
}

fn rfc4716(text: &str) -> Result<Vec<u8>, String> {
    let bad = || "SSH2 - SSH Public key is invalid".to_owned();
    let body = text.strip_prefix(BEGIN).and_then(|it| it.strip_suffix(END)).ok_or_else(bad)?;
    let mut data = String::new();
    let mut in_header = false;
    for line in body.lines() {
        let is_header = in_header || line.contains(':');
        in_header = is_header && line.ends_with('\\');
        if !is_header {
            data.push_str(line.trim());
        }
    }
    STANDARD.decode(data).map_err(|_| bad())
}

fn judge(blob: &[u8]) -> Result<(), String> {
    let mut rest = blob;
    match string(&mut rest) {
        Some(b"ssh-ed25519") => match string(&mut rest) {
            Some(point) if point.len() == 32 && rest.is_empty() => Ok(()),
            _ => Err("ED25519 - SSH Public key is invalid".into()),
        },
        Some(b"ssh-rsa") => {
            let bad = || "RSA - SSH Public key is invalid".to_owned();
            let exponent = string(&mut rest).ok_or_else(bad)?;
            let modulus = string(&mut rest).ok_or_else(bad)?;
            let is_positive = |it: &[u8]| it.first().is_some_and(|first| first & 0x80 == 0);
            if !is_positive(exponent) || !is_positive(modulus) || !rest.is_empty() {
                return Err(bad());
            }
            let modulus = &modulus[modulus.iter().take_while(|it| **it == 0).count()..];
            let bits = modulus.first().map_or(0, |first| modulus.len() * 8 - first.leading_zeros() as usize);
            if bits == 2048 || bits == 4096 {
                Ok(())
            } else {
                Err(format!("RSA - key length {bits} is not supported, use 2048 or 4096"))
            }
        }
        Some(kind) => Err(format!("{} - key type is not supported", String::from_utf8_lossy(kind))),
        None => Err("SSH Public key is invalid".into()),
    }
}

/// Takes one length-prefixed string (RFC 4251) off the front.
fn string<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, tail) = rest.split_first_chunk::<4>()?;
    let (head, tail) = tail.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    *rest = tail;
    Some(head)
}

/// One key on an instance.
struct Held {
    key: PublicKey,
    fades: Duration,
}

/// The keys on all instances, by instance and OS user.
#[derive(Default)]
pub(super) struct Keyring {
    held: Mutex<(Keys, u64)>,
}

/// By instance and OS user.
type Keys = HashMap<(String, String), Vec<Held>>;

/// A key that a host may read now.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ActiveKey {
    /// The instance.
    pub instance_id: String,
    /// The login.
    pub os_user: String,
    /// As it was pushed.
    pub key: String,
    /// `SHA256:…`.
    pub fingerprint: String,
    /// Milliseconds until it fades.
    pub fades_in_ms: u64,
}

impl Keyring {
    /// Puts a key on an instance for `KEY_WINDOW`; the same key again starts its window anew.
    pub(super) fn put(&self, instance_id: &str, os_user: &str, key: PublicKey, now: Duration) {
        let mut held = self.held.lock().expect("no holder panics");
        let (keys, puts) = &mut *held;
        *puts += 1;
        if puts.is_multiple_of(SWEEP_EVERY) {
            keys.retain(|_, keys| {
                keys.retain(|it| it.fades > now);
                !keys.is_empty()
            });
        }
        let keys = keys.entry((instance_id.to_owned(), os_user.to_owned())).or_default();
        keys.retain(|it| it.fades > now && it.key.fingerprint != key.fingerprint);
        keys.push(Held { key, fades: now + KEY_WINDOW });
    }

    /// The keys that the instance may read now, oldest first.
    pub(super) fn active(&self, instance_id: &str, os_user: &str, now: Duration) -> Vec<String> {
        let held = self.held.lock().expect("no holder panics");
        held.0
            .get(&(instance_id.to_owned(), os_user.to_owned()))
            .map(|keys| keys.iter().filter(|it| it.fades > now).map(|it| it.key.text.clone()).collect())
            .unwrap_or_default()
    }

    /// Every key that any host may read now, sorted.
    pub(super) fn all(&self, now: Duration) -> Vec<ActiveKey> {
        let held = self.held.lock().expect("no holder panics");
        let mut all: Vec<ActiveKey> = held
            .0
            .iter()
            .flat_map(|((instance_id, os_user), keys)| {
                keys.iter().filter(|it| it.fades > now).map(|it| ActiveKey {
                    instance_id: instance_id.clone(),
                    os_user: os_user.clone(),
                    key: it.key.text.clone(),
                    fingerprint: it.key.fingerprint.clone(),
                    fades_in_ms: u64::try_from((it.fades - now).as_millis()).unwrap_or(u64::MAX),
                })
            })
            .collect();
        all.sort_by(|a, b| (&a.instance_id, &a.os_user, &a.key).cmp(&(&b.instance_id, &b.os_user, &b.key)));
        all
    }

    /// Takes all keys off an instance: it is gone.
    pub(super) fn remove_instance(&self, instance_id: &str) {
        self.held.lock().expect("no holder panics").0.retain(|(id, _), _| id != instance_id);
    }
}
