//! What is taken, what is refused, and with which word.

use super::*;
use proptest::prelude::*;

// Made once with ssh-keygen 9.2p1, comments cut off, private halves thrown away.
const ED25519: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFfcsBlCiP8zjAovSSo3q1ARxbGaJuUh3l6diFgdIU4t";
const ED25519_OTHER: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEQdN8roIf6IHa5zLdHevpIZrDt2NroGZHSKOvwwClyN";
const RSA_1024: &str = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQDBvLK1nhUXUq130BjC4iNCzNi3kw954uhZU6CgrmkLSvqgol3vDL18G7vL17k55N96qWtHfzY/n9kw80DvZxKJAhx2LfgfL0PxQ03h48YOJgzeqqMK+j23pxPMuqgLEwZ0N7Yl6WPhVbfBKOYsE4pdUbPDYgarg6npcIRVtDBWVw==";
const RSA_2047: &str = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAHLIZ8gmUu9RPEUM10VxMmedlbzfE5MsOHLRv86j/PPOw6mBxtbrSkLrAP4vf/w7UNPfSa84SoQrpxGFOlvyxzuurRRzLMjFrL27kYTFvPuG193MM8pn23NlRgtJb7X69aIKVBuCHxrRqv2FADc7UBb+GskRS8qt6F75WBFqvd4ZN4JnxzeFGoAs5JuHMxWBFVvf332QrqEtj+qXTv72DZpYC2o/xBma3kN1UMYgnv7dj7J9iuX6BKiY0uXJ769xnI3Lmid3VQohPAueEJzJAEJk8pMFLDvrIT0D7CVF1+zWhgkec17GpBhQAolVUiOEfqM7k7UXrLdO3w1Zieoxv8E=";
const RSA_2048: &str = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQC6n6bekvkcY0vVwCXHP/z2+M75iMPnam3e4t/850mxBs1eaUU9TtXk7SFGvaEHINrYaPFvsC9wu7FouNAtCDJ+9XnGLZHSrsUEmSqQNy/LuJnrRGNKm5dXxhMdqNfwF82NYkycOQ5AJo/InNQLNQTl+0wSD1DsdKTlgHvzykJcH1eKg6wk6NcONLtwcqAHx3gWFsMkAG6ud2s7JiPpD03l2I38CaoWTNrzHVYxQdsoWKA+hteFkhTuouwkd31YokX9fRfmwOvoWMLjRrpVBCfvVgGowY5/+X5l/Cd6Wq/lj1+iHjW1qJrKFqS6c88EUsmVpvW8bfT+5H2QbBx4P1zz";
const RSA_3072: &str = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABgQCee/gAwSrnoGHQlY1OI8hPeCNNSfGWno1U7kWxyr3DlcjUrQ5mTIX7Ta+lBMeVX7kLYggdizbqcuG89RRHExwLsb1/ZzjkK+V/vQPg91haZ1cUrOAuDUUz/aNTVHOXUtnHuulym7WNKPMAV56gZV73lUGtirjTsbMGy/yAX79Q5kMlf0+zF1PDulg/8vskCE2DqLqZltC20KgXPenZxoWyZEIOvTMFf+GPrre0tYCAUhat96PteJ5ZvtxXbebhjvyhMc0HuREaPrKTPCirtggyiOY06TkJikMgEKCeFuXAVEKY5ZUhz3KwC9fcoT7GXu0G5KKBY6E/0ilXt8Cfvf3zxpRMK3+b82EYVmce1GuWJDEFPdHjULKvwt0DbAjK/z1W1/ma4ZE2KPsuBxCWgvat03ZxvgxG/ogLJY/cxa/vBoYOPgbwAh2OjoqYFyf4eqdlwttMwV4JC6dSseoDJBMvqR4V0rDVo9fB7AqBSMRdmWMD/OGeVPByRiRWTogVIoU=";
const RSA_4096: &str = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAACAQCu+y3tGLGXsNNz4yYk2kDyD6SDnHcij1emOIAwAdnvfi5jPVIoFvLFiUYrby8MT+SlVKCpsg7mhFxhuD9RtS4FmwI8kPZmaOYA9YY4g4Le94MZ06RSANoq52n/8Q/uGjA4PHNNJ8F4b5dojn5NvOV5Op/IBlzutcb/y6lctfU42iYCd+WPNMFxCYpOhj4fuMVpTJgUw/SbY3y9/JZr8Gn0U0ncCj6XjNNhNyWDxBBzsgsU7ZiliVf0NwfRxmzZ6KfEvozpijzBftZz4HIbxTN1IW/GZmuQ2Vn9u/rENr0KF33Do2naaiimCJu8SQNDrM8KpSGpFZ6L8DcmsMI5tw5OZM85mG+iFW4UFJiXkXcFEvpiWhHqKah758rUnLzrsn2EDb8ksfoqAtoawbTcdH2Fye5DLVuPsTMWyXUrnQy3z4nYlJVJgev73NuiA2AFvjBMdTGutrXl8iTksBnoi7j5x0LZLNMq2smP6PXCWgMpH9FfSjLUZDI0lc9AJdOTXEBS6ahVZSKEG9EehAogYxpDofuIfW1jnu2hp/fwLh7v7h46Ymd6VfR8WYaPx77dUIrqzIMMMWaOAfDGpT7H2d7t/Oum747610MZ8ZiXe6jyWVCDXOsuG+HZxNTLSWT6Al/jd9mqVt2Jwn66PfsVHPD3K1XxEYeV64UJ4yivH4mEnw==";
const ECDSA_256: &str = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBK+tGAInlUmPRYXH12/kXWzz2dX4gyUsrrRcITEGl8qDj3kKiw1jux0pb1qKC7cKU/8exwDIVubRoiUNimKnISQ=";
const ECDSA_384: &str = "ecdsa-sha2-nistp384 AAAAE2VjZHNhLXNoYTItbmlzdHAzODQAAAAIbmlzdHAzODQAAABhBOsCRYZGfQgybfAeRiLimbP/nAMP8QOPY9OoAY6qHoxFWS0xSkP1ONRLnKuJbeIdXtPNGX/7cx08BVOpoXA8y7AL0HoRV19WXP4T64/hi2FIDZyUzCqXuFGq1MsuJAgMWQ==";
const ECDSA_521: &str = "ecdsa-sha2-nistp521 AAAAE2VjZHNhLXNoYTItbmlzdHA1MjEAAAAIbmlzdHA1MjEAAACFBAFxHXHe2++1ivSCeEVAeJKSaXYhHYIcLGzE/jAv7g3xi5U2QeZeQCuzDmVXup6ZBFX1QuMbvM3ppnqL2JXjydhdWAD8/Q+UN8V9KuG4KdgkdRyMTdLHORFEvAgBA5skBCLSpA0SAdgTTfLl1fL0au+7j9cw0LvmqgRP1/lCcm4ki6zTEA==";
const DSA: &str = "ssh-dss AAAAB3NzaC1kc3MAAACBAKnsT4Ew0mulT4sm4Eq+wDP3zZEfbH9kG0hMLJFVlFhkXJ8ByX5JKpsyMm4gZlJ0gRsEUE2bD7U/QuNsUA6PA9jwQzoqy/b8bBBAsyaNnAkZokSNA+8r+6X9qOzOtG2h89ZqLTXhiLbkmdzxlY04uR4HmHGZAkPm3ZLZT2yPKQvpAAAAFQCs0pywzAZPyL7aNLAUoNE5P2mQuQAAAIBGwc9YUuZ5GHCyn2ci+bekIV2qVxUN3AmmGBAiUY4hF5p8kqCS9lmT21MW0W4ovyvM2A039M/N4XJJIYYSBfNdRbQOZfTIwEGxlRU8Gm4kST1mif6iIdNNJmk50qUMqKdm1B/8gzUOpxQf9kuKpng77OUi2BFuTdCVSP2yoE/QCgAAAIBqb+G61rXhWDvMSKSUuZTq2S8Cj3XV0hFw5uTTfTwUUlST1EltA09LkeIhOlZCHYN60GO+QPVYOiUnio5bjrWPBtgp0F55s020JSEM1a+wTfKzHKBSCiMCaOb/s72xVe+LAqy9mYFpNNXFCqFq9u91NB1GjTDxlmJBYDEVd+tEmQ==";
const ED25519_CERT: &str = "ssh-ed25519-cert-v01@openssh.com AAAAIHNzaC1lZDI1NTE5LWNlcnQtdjAxQG9wZW5zc2guY29tAAAAIIEBWqPRDtR0L7trPryjg3DxFeFXo1JtXGHQLFAIqHNIAAAAIEQdN8roIf6IHa5zLdHevpIZrDt2NroGZHSKOvwwClyNAAAAAAAAAAAAAAABAAAABGNlcnQAAAAJAAAABWFsaWNlAAAAAAAAAAD//////////wAAAAAAAACCAAAAFXBlcm1pdC1YMTEtZm9yd2FyZGluZwAAAAAAAAAXcGVybWl0LWFnZW50LWZvcndhcmRpbmcAAAAAAAAAFnBlcm1pdC1wb3J0LWZvcndhcmRpbmcAAAAAAAAACnBlcm1pdC1wdHkAAAAAAAAADnBlcm1pdC11c2VyLXJjAAAAAAAAAAAAAAAzAAAAC3NzaC1lZDI1NTE5AAAAIFfcsBlCiP8zjAovSSo3q1ARxbGaJuUh3l6diFgdIU4tAAAAUwAAAAtzc2gtZWQyNTUxOQAAAEC82wda/XGl0LJM8nTD4K1g8U2Abh2trrAwULcxlmTKM/wWERXdFuQ57rEX9XIkO+fOx2RjI3/Ni52/4Bv15wIA";
const RSA_CERT: &str = "ssh-rsa-cert-v01@openssh.com AAAAHHNzaC1yc2EtY2VydC12MDFAb3BlbnNzaC5jb20AAAAgpr98jfrMtoTp/r+CIKi7rkm4UMpkkdNs5GryRAoz7UYAAAADAQABAAABAQC6n6bekvkcY0vVwCXHP/z2+M75iMPnam3e4t/850mxBs1eaUU9TtXk7SFGvaEHINrYaPFvsC9wu7FouNAtCDJ+9XnGLZHSrsUEmSqQNy/LuJnrRGNKm5dXxhMdqNfwF82NYkycOQ5AJo/InNQLNQTl+0wSD1DsdKTlgHvzykJcH1eKg6wk6NcONLtwcqAHx3gWFsMkAG6ud2s7JiPpD03l2I38CaoWTNrzHVYxQdsoWKA+hteFkhTuouwkd31YokX9fRfmwOvoWMLjRrpVBCfvVgGowY5/+X5l/Cd6Wq/lj1+iHjW1qJrKFqS6c88EUsmVpvW8bfT+5H2QbBx4P1zzAAAAAAAAAAAAAAABAAAABGNlcnQAAAAJAAAABWFsaWNlAAAAAAAAAAD//////////wAAAAAAAACCAAAAFXBlcm1pdC1YMTEtZm9yd2FyZGluZwAAAAAAAAAXcGVybWl0LWFnZW50LWZvcndhcmRpbmcAAAAAAAAAFnBlcm1pdC1wb3J0LWZvcndhcmRpbmcAAAAAAAAACnBlcm1pdC1wdHkAAAAAAAAADnBlcm1pdC11c2VyLXJjAAAAAAAAAAAAAAAzAAAAC3NzaC1lZDI1NTE5AAAAIFfcsBlCiP8zjAovSSo3q1ARxbGaJuUh3l6diFgdIU4tAAAAUwAAAAtzc2gtZWQyNTUxOQAAAED7FisWfccE8q1Vlqa0esxnLykLv4+BMeuFqeUM/LBzSIAuJZExCqlH8RKTYAc/ja6qnRpCbrTeeUvlWct0+uEF";
/// What `ssh-keygen -e` makes of the three.
const ED25519_SSH2: &str = "---- BEGIN SSH2 PUBLIC KEY ----\n\
     Comment: \"256-bit ED25519, converted by alice@laptop from OpenSSH\"\n\
     AAAAC3NzaC1lZDI1NTE5AAAAIFfcsBlCiP8zjAovSSo3q1ARxbGaJuUh3l6diFgdIU4t\n\
     ---- END SSH2 PUBLIC KEY ----";
const RSA_2048_SSH2: &str = "---- BEGIN SSH2 PUBLIC KEY ----\n\
     Comment: \"2048-bit RSA, converted by alice@laptop from OpenSSH\"\n\
     AAAAB3NzaC1yc2EAAAADAQABAAABAQC6n6bekvkcY0vVwCXHP/z2+M75iMPnam3e4t/850\n\
     mxBs1eaUU9TtXk7SFGvaEHINrYaPFvsC9wu7FouNAtCDJ+9XnGLZHSrsUEmSqQNy/LuJnr\n\
     RGNKm5dXxhMdqNfwF82NYkycOQ5AJo/InNQLNQTl+0wSD1DsdKTlgHvzykJcH1eKg6wk6N\n\
     cONLtwcqAHx3gWFsMkAG6ud2s7JiPpD03l2I38CaoWTNrzHVYxQdsoWKA+hteFkhTuouwk\n\
     d31YokX9fRfmwOvoWMLjRrpVBCfvVgGowY5/+X5l/Cd6Wq/lj1+iHjW1qJrKFqS6c88EUs\n\
     mVpvW8bfT+5H2QbBx4P1zz\n\
     ---- END SSH2 PUBLIC KEY ----";
const RSA_4096_SSH2: &str = "---- BEGIN SSH2 PUBLIC KEY ----\n\
     Comment: \"4096-bit RSA, converted by alice@laptop from OpenSSH\"\n\
     AAAAB3NzaC1yc2EAAAADAQABAAACAQCu+y3tGLGXsNNz4yYk2kDyD6SDnHcij1emOIAwAd\n\
     nvfi5jPVIoFvLFiUYrby8MT+SlVKCpsg7mhFxhuD9RtS4FmwI8kPZmaOYA9YY4g4Le94MZ\n\
     06RSANoq52n/8Q/uGjA4PHNNJ8F4b5dojn5NvOV5Op/IBlzutcb/y6lctfU42iYCd+WPNM\n\
     FxCYpOhj4fuMVpTJgUw/SbY3y9/JZr8Gn0U0ncCj6XjNNhNyWDxBBzsgsU7ZiliVf0NwfR\n\
     xmzZ6KfEvozpijzBftZz4HIbxTN1IW/GZmuQ2Vn9u/rENr0KF33Do2naaiimCJu8SQNDrM\n\
     8KpSGpFZ6L8DcmsMI5tw5OZM85mG+iFW4UFJiXkXcFEvpiWhHqKah758rUnLzrsn2EDb8k\n\
     sfoqAtoawbTcdH2Fye5DLVuPsTMWyXUrnQy3z4nYlJVJgev73NuiA2AFvjBMdTGutrXl8i\n\
     TksBnoi7j5x0LZLNMq2smP6PXCWgMpH9FfSjLUZDI0lc9AJdOTXEBS6ahVZSKEG9EehAog\n\
     YxpDofuIfW1jnu2hp/fwLh7v7h46Ymd6VfR8WYaPx77dUIrqzIMMMWaOAfDGpT7H2d7t/O\n\
     um747610MZ8ZiXe6jyWVCDXOsuG+HZxNTLSWT6Al/jd9mqVt2Jwn66PfsVHPD3K1XxEYeV\n\
     64UJ4yivH4mEnw==\n\
     ---- END SSH2 PUBLIC KEY ----";
const RSA_2048_PKCS8: &str = "-----BEGIN PUBLIC KEY-----\n\
     MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAup+m3pL5HGNL1cAlxz/8\n\
     9vjO+YjD52pt3uLf/OdJsQbNXmlFPU7V5O0hRr2hByDa2Gjxb7AvcLuxaLjQLQgy\n\
     fvV5xi2R0q7FBJkqkDcvy7iZ60RjSpuXV8YTHajX8BfNjWJMnDkOQCaPyJzUCzUE\n\
     5ftMEg9Q7HSk5YB788pCXB9XioOsJOjXDjS7cHKgB8d4FhbDJABurndrOyYj6Q9N\n\
     5diN/AmqFkza8x1WMUHbKFigPobXhZIU7qLsJHd9WKJF/X0X5sDr6FjC40a6VQQn\n\
     71YBqMGOf/l+Zfwnelqv5Y9foh41taiayhakunPPBFLJlab1vG30/uR9kGwceD9c\n\
     8wIDAQAB\n\
     -----END PUBLIC KEY-----";
const RSA_2048_PKCS1: &str = "-----BEGIN RSA PUBLIC KEY-----\n\
     MIIBCgKCAQEAup+m3pL5HGNL1cAlxz/89vjO+YjD52pt3uLf/OdJsQbNXmlFPU7V\n\
     5O0hRr2hByDa2Gjxb7AvcLuxaLjQLQgyfvV5xi2R0q7FBJkqkDcvy7iZ60RjSpuX\n\
     V8YTHajX8BfNjWJMnDkOQCaPyJzUCzUE5ftMEg9Q7HSk5YB788pCXB9XioOsJOjX\n\
     DjS7cHKgB8d4FhbDJABurndrOyYj6Q9N5diN/AmqFkza8x1WMUHbKFigPobXhZIU\n\
     7qLsJHd9WKJF/X0X5sDr6FjC40a6VQQn71YBqMGOf/l+Zfwnelqv5Y9foh41taia\n\
     yhakunPPBFLJlab1vG30/uR9kGwceD9c8wIDAQAB\n\
     -----END RSA PUBLIC KEY-----";
/// What `ssh-keygen -lf` prints of them.
const ED25519_PRINT: &str = "SHA256:N54ZKdvEh3b4OwugC0qgJn2zniZlnKQ4/887lRkffgE";
const ED25519_OTHER_PRINT: &str = "SHA256:soHViRYlbsx11l9QkN1fR5rfsL5oIVblLCPu7ZuPqhI";
const RSA_2048_PRINT: &str = "SHA256:3+fWZfljMn04JLXpIYEPgmIbsAXhJg6ctyMOEPt0pzI";
const RSA_4096_PRINT: &str = "SHA256:4j1/sYtryWq2lWcgOK3Ep8MPvmF5z6GKZe964WWN2xA";

/// Stands in each fake private key; no message may show it.
const CANARY: &str = "CANARYcanary0123";

/// Asserts what `text` is taken for: `TYPE BITS FINGERPRINT`, or the error's reason.
#[track_caller]
fn check(text: &str, expected: &str) {
    let found = match PublicKey::parse(text) {
        Ok(key) => {
            deliverable(&key);
            format!("{:?} {} {}", key.key_type(), key.bits(), key.fingerprint())
        }
        Err(error) => {
            let shown = format!("{error} {error:?}");
            assert!(error.to_string().starts_with("spec.sshPublicKey: "), "{shown}");
            assert!(format!("{error:?}").starts_with(error.reason()), "{shown}");
            assert!(!shown.contains(CANARY), "{shown}");
            error.reason().to_string()
        }
    };
    let start: String = text.chars().take(60).collect();
    assert_eq!(found, expected, "for {start:?}…");
}

/// Asserts what holds of every key that was accepted, and that ssh-key, which shares no code with us, agrees.
#[track_caller]
fn deliverable(key: &PublicKey) {
    let line = key.openssh();
    assert!(line.starts_with("ssh-"));
    assert!(line.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()));
    assert_eq!(line.matches(' ').count(), 1);
    assert!((LINE_CHARS_MIN..=LINE_CHARS_MAX).contains(&line.len()));
    assert_eq!(PublicKey::parse(line).as_ref(), Ok(key));
    let other = ssh_key::PublicKey::from_openssh(line).unwrap();
    assert_eq!(other.fingerprint(ssh_key::HashAlg::Sha256).to_string(), key.fingerprint());
    assert_eq!(other.to_openssh().as_deref(), Ok(line));
    let (kind, bits) = match other.key_data() {
        ssh_key::public::KeyData::Ed25519(_) => (KeyType::ED25519, 256),
        ssh_key::public::KeyData::Rsa(rsa) => {
            let n = rsa.n.as_positive_bytes().unwrap();
            (KeyType::RSA, n.len() as i32 * 8 - n[0].leading_zeros() as i32)
        }
        other => panic!("{other:?}"),
    };
    assert_eq!((key.key_type(), key.bits()), (kind, bits));
}

/// The base64 of a line.
fn body(line: &str) -> &str {
    line.split(' ').nth(1).unwrap()
}

fn blob_of(line: &str) -> Vec<u8> {
    STANDARD.decode(body(line)).unwrap()
}

/// A line that states `name`, around a blob of these strings.
fn line_of(name: &str, strings: &[&[u8]]) -> String {
    format!("{name} {}", STANDARD.encode(blob_with(strings)))
}

fn blob_with(strings: &[&[u8]]) -> Vec<u8> {
    let framed = |string: &&[u8]| [&(string.len() as u32).to_be_bytes(), *string].concat();
    strings.iter().flat_map(framed).collect()
}

fn block_of(line: &str) -> String {
    let body = body(line);
    format!("---- BEGIN SSH2 PUBLIC KEY ----\n{body}\n---- END SSH2 PUBLIC KEY ----\n")
}

/// A modulus of so many bits, with its sign byte; all ones, so odd.
fn modulus(bits: usize) -> Vec<u8> {
    let mut n = vec![0xff; bits.div_ceil(8)];
    if bits.is_multiple_of(8) {
        n.insert(0, 0);
    } else {
        n[0] = 0xff >> (8 - bits % 8);
    }
    n
}

fn rsa(e: &[u8], n: &[u8]) -> String {
    line_of("ssh-rsa", &[b"ssh-rsa", e, n])
}

fn ed25519(point: &[u8]) -> String {
    line_of("ssh-ed25519", &[b"ssh-ed25519", point])
}

/// Something with a private key's armour, put together here, so that no scanner of sources is alarmed.
fn fake_private(label: &str) -> String {
    let (dashes, word) = ("-----", "PRIVATE");
    let label = if label.is_empty() { String::new() } else { format!("{label} ") };
    format!("{dashes}BEGIN {label}{word} KEY{dashes}\n{CANARY}\n{dashes}END {label}{word} KEY{dashes}\n")
}

#[test]
fn a_key_has_the_fingerprint_that_ssh_keygen_prints() {
    let ed25519 = format!("ED25519 256 {ED25519_PRINT}");
    let rsa_2048 = format!("RSA 2048 {RSA_2048_PRINT}");
    let rsa_4096 = format!("RSA 4096 {RSA_4096_PRINT}");
    check(ED25519, &ed25519);
    check(ED25519_OTHER, &format!("ED25519 256 {ED25519_OTHER_PRINT}"));
    check(RSA_2048, &rsa_2048);
    check(RSA_4096, &rsa_4096);
    check(ED25519_SSH2, &ed25519);
    check(RSA_2048_SSH2, &rsa_2048);
    check(RSA_4096_SSH2, &rsa_4096);
}

#[test]
fn blanks_line_ends_and_comments_do_not_change_a_key() {
    let expected = format!("ED25519 256 {ED25519_PRINT}");
    for text in [
        format!("{ED25519}\n"),
        format!("{ED25519}\r\n"),
        format!("\n  {ED25519}  \n\n"),
        format!("{ED25519} alice@laptop"),
        format!("{ED25519} alice@laptop\n"),
        format!("{ED25519}  two words # and a hash"),
        format!("{ED25519} \"quoted\" command=x,restrict"),
        format!("{ED25519} my private key is at home"),
        format!("{ED25519} begin private key end"),
        format!("{ED25519} private key -- laptop"),
        format!("{ED25519} formerly ssh-rsa"),
        format!("{ED25519} -----"),
        ED25519.replace(' ', "   "),
    ] {
        check(&text, &expected);
        assert_eq!(PublicKey::parse(&text).unwrap().openssh(), ED25519);
    }
}

#[test]
fn an_ssh2_block_may_have_any_headers_and_line_ends() {
    let expected = format!("ED25519 256 {ED25519_PRINT}");
    let (begin, end) = ("---- BEGIN SSH2 PUBLIC KEY ----", "---- END SSH2 PUBLIC KEY ----");
    let (head, tail) = body(ED25519).split_at(40);
    for text in [
        block_of(ED25519),
        ED25519_SSH2.replace('\n', "\r\n"),
        ED25519_SSH2.replace('\n', "\r"),
        format!("\n{ED25519_SSH2}\n\n"),
        ED25519_SSH2.replace('\n', "\n  "),
        format!("{begin}\n{head}\n{tail}\n{end}"),
        format!("{begin}\nComment: a\\\nb\\\nc: d\nx-note: e\n{head}\n{tail}\n{end}"),
        format!("{begin}\r\nComment: a\\\r\nb\r\n{head}\r\n{tail}\r\n{end}\r\n"),
        format!("{begin}\nComment: \"{end}\"\n{head}{tail}\n{end}"),
        format!("{begin}\nx-command: ssh-rsa AAAA\n{head}{tail}\n{end}"),
        format!("{begin}\nSubject: alice\n\n{head}\n\n{tail}\n{end}"),
    ] {
        check(&text, &expected);
        assert_eq!(PublicKey::parse(&text).unwrap().openssh(), ED25519);
    }
}

#[test]
fn a_malformed_ssh2_block_is_refused() {
    let (begin, end) = ("---- BEGIN SSH2 PUBLIC KEY ----", "---- END SSH2 PUBLIC KEY ----");
    let body = body(ED25519);
    check(begin, "MalformedBlock");
    check(&format!("{begin}\n{end}"), "MalformedBlock");
    check(&format!("{begin}\nComment: x\n{end}"), "MalformedBlock");
    check(&format!("{begin}\n{body}"), "MalformedBlock");
    check(&format!("{begin}\n{body}\n{end} x"), "MalformedBlock");
    check(&format!("{begin}\n{body}\n{end}\nx"), "MalformedBlock");
    check(&format!("{begin}\n{body}\nComment: late\n{end}"), "MalformedBase64");
    check(&format!("{begin}\nComment: x\\\n{body}\n{end}"), "MalformedBlock");
    check(&format!("{begin}\nComment: x\\\n{end}\n{body}"), "MalformedBlock");
    check(&format!("{begin} {body}\n{end}"), "MalformedBlock");
    check(&ED25519_SSH2.replace('\n', " "), "MalformedBlock");
    check(&ED25519_SSH2.to_lowercase(), "MalformedBlock");
    check(&format!("{begin}\n{ED25519}\n{end}"), "MalformedBase64");
    check(&format!("{begin}\n{}\n{end}", &body[..40]), "MalformedBody");
    check(&format!("{ED25519_SSH2}\n{RSA_2048_SSH2}"), "MultipleKeys");
    check(&format!("{begin}\n{body}\n{begin}\n{body}\n{end}"), "MultipleKeys");
    check(&format!("{ED25519_SSH2}\n{RSA_2048}"), "MultipleKeys");
    check(&format!("-{ED25519_SSH2}"), "UnknownFormat");
    check(&format!("{begin}\nComment: a\tb\n{body}\n{end}"), "ControlCharacter");
    check(&format!("{begin}\nComment: J\u{fc}rgen\n{body}\n{end}"), "NonAscii");
}

#[test]
fn a_type_that_eic_does_not_deliver_is_refused_in_either_form() {
    let sk_ed25519 = [b"sk-ssh-ed25519@openssh.com".as_slice(), &[7; 32], b"ssh:"];
    let sk_ecdsa = [b"sk-ecdsa-sha2-nistp256@openssh.com".as_slice(), b"nistp256", &[4; 65], b"ssh:"];
    let sk_ed25519 = line_of("sk-ssh-ed25519@openssh.com", &sk_ed25519);
    let sk_ecdsa = line_of("sk-ecdsa-sha2-nistp256@openssh.com", &sk_ecdsa);
    for line in [ECDSA_256, ECDSA_384, ECDSA_521, DSA, &sk_ed25519, &sk_ecdsa] {
        check(line, "UnsupportedType");
        check(&format!("{line} alice"), "UnsupportedType");
        check(&block_of(line), "UnsupportedType");
    }
    for line in [ED25519_CERT, RSA_CERT] {
        check(line, "Certificate");
        check(&format!("{line} alice"), "Certificate");
        check(&block_of(line), "Certificate");
    }
    for (name, fate) in TYPE_NAMES {
        match fate {
            Fate::Taken(_) => check(name, "MissingBody"),
            Fate::Unsupported => check(name, "UnsupportedType"),
            Fate::Certificate => check(name, "Certificate"),
        }
    }
    check(&block_of(&line_of("x", &[b"ssh-ed25519-new", &[7; 32]])), "UnsupportedType");
}

#[test]
fn an_rsa_key_has_2048_or_4096_bits_and_a_sound_exponent() {
    check(RSA_1024, "RsaBits");
    check(RSA_2047, "RsaBits");
    check(RSA_3072, "RsaBits");
    check(&block_of(RSA_3072), "RsaBits");
    let e = &[1, 0, 1];
    for bits in 1..=4100 {
        let found = PublicKey::parse(&rsa(e, &modulus(bits))).map(|key| key.bits() as usize);
        let expected = match bits {
            2048 | 4096 => Ok(bits),
            _ => Err(KeyError::RsaBits { bits: bits as i32 }),
        };
        assert_eq!(found, expected);
    }
    let n = &modulus(2048);
    let taken = |e: &[u8]| PublicKey::parse(&rsa(e, n)).map(|key| deliverable(&key));
    for e in [
        [3].as_slice(),
        &[5],
        &[35],
        &[37],
        &[0, 0x81],
        &[0x7f; 8],
        &[0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
    ] {
        assert_eq!(taken(e), Ok(()), "{e:?}");
    }
    for e in [[].as_slice(), &[1], &[2], &[4], &[1, 0, 0], &[0, 0x80], &[1; 9], &[0x7f; 256]] {
        assert_eq!(taken(e), Err(KeyError::RsaExponent), "{e:?}");
    }
    for e in [[0].as_slice(), &[0, 3], &[0, 1, 0, 1], &[0, 0, 0x81], &[0x80], &[0xff], &[0x80, 0, 1]] {
        assert_eq!(taken(e), Err(KeyError::MalformedBody), "{e:?}");
    }
    check(&rsa(e, &[]), "RsaBits");
    check(&rsa(e, &n[1..]), "MalformedBody");
    check(&rsa(e, &[&[0], n.as_slice()].concat()), "MalformedBody");
    check(&rsa(e, &[&n[..256], &[0xfe]].concat()), "RsaModulus");
    check(&line_of("ssh-rsa", &[b"ssh-rsa", e]), "MalformedBody");
    check(&line_of("ssh-rsa", &[b"ssh-rsa"]), "MalformedBody");
    check(&rsa(n, e), "RsaBits");
}

#[test]
fn an_ed25519_point_has_32_bytes_is_reduced_and_not_of_small_order() {
    for length in (0..70).filter(|length| *length != 32) {
        check(&ed25519(&vec![7; length]), "MalformedBody");
    }
    for sign in [0, 0x80] {
        for (low, expected) in [(0, "Ed25519Point"), (1, "Ed25519Point"), (2, ""), (3, "")] {
            let mut point = [0; 32];
            (point[0], point[31]) = (low, sign);
            let found = PublicKey::parse(&ed25519(&point)).map_or_else(|error| error.reason(), |_| "");
            assert_eq!(found, expected);
        }
        for low in 0xea..=0xff {
            let mut point = [0xff; 32];
            (point[0], point[31]) = (low, 0x7f | sign);
            let found = PublicKey::parse(&ed25519(&point)).map_or_else(|error| error.reason(), |_| "");
            assert_eq!(found, if low < 0xec { "" } else { "Ed25519Point" });
        }
        for hex in [
            "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
            "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        ] {
            let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
            let mut point: Vec<u8> = (0..64).step_by(2).map(byte).collect();
            point[31] |= sign;
            check(&ed25519(&point), "Ed25519Point");
            check(&block_of(&ed25519(&point)), "Ed25519Point");
        }
    }
    // As low as a point that is not reduced, with one byte that makes it smaller.
    for (at, byte) in [(1, 0xfe), (30, 0xfe), (31, 0x7e), (31, 0xfe)] {
        let mut point = [0xff; 32];
        (point[0], point[at]) = (0xed, byte);
        assert!(PublicKey::parse(&ed25519(&point)).is_ok());
    }
    // ssh-key 0.6.7 accepts this one: a length of 64, and 32 bytes.
    let mut overstated = blob_of(ED25519);
    overstated[18] = 64;
    assert!(ssh_key::PublicKey::from_bytes(&overstated).is_ok());
    check(&format!("ssh-ed25519 {}", STANDARD.encode(overstated)), "MalformedBody");
}

#[test]
fn a_body_that_is_not_the_stated_key_and_nothing_else_is_refused() {
    check("ssh-ed25519", "MissingBody");
    check("ssh-rsa \n", "MissingBody");
    check("ssh-ed25519 alice@laptop", "MalformedBase64");
    check("ssh-ed25519 AAAA", "MalformedBody");
    check("ssh-ed25519 ====", "MalformedBase64");
    check(&ED25519[..79], "MalformedBase64");
    check(&ED25519[..76], "MalformedBody");
    check(&RSA_2048[..200], "MalformedBody");
    check(&RSA_2048[..199], "MalformedBase64");
    check(&format!("{ED25519}="), "MalformedBase64");
    check(&format!("{ED25519}===="), "MalformedBase64");
    check(&ED25519.replace("AAAAC3", "AAAA-3"), "MalformedBase64");
    check(&ED25519.replace("AAAAC3", "AAAA_3"), "MalformedBase64");
    check(&ED25519.replace("AAAAC3", "AAAA\u{2026}"), "NonAscii");
    check(&ED25519.replace("AAAAC3", "AAAA C3"), "MalformedBody");
    check(&format!("ssh-rsa {}", body(ED25519)), "TypeMismatch");
    check(&format!("ssh-ed25519 {}", body(RSA_2048)), "TypeMismatch");
    check(&format!("ssh-ed25519 {}", body(ECDSA_256)), "TypeMismatch");
    check(&format!("ssh-rsa {}", body(RSA_CERT)), "TypeMismatch");
    check(&format!("ssh-rsa {}", body(DSA)), "TypeMismatch");
    check(&line_of("ssh-ed25519", &[CANARY.as_bytes(), &[7; 32]]), "TypeMismatch");
    check(&line_of("ssh-ed25519", &[b"ssh-ed25519 ", &[7; 32]]), "TypeMismatch");
    check(&line_of("ssh-ed25519", &[b"", &[7; 32]]), "TypeMismatch");
    for line in [ED25519, RSA_2048, RSA_4096] {
        for extra in [1, 3, 64] {
            let (name, _) = line.split_once(' ').unwrap();
            let text = format!("{name} {}", STANDARD.encode([blob_of(line), vec![0; extra]].concat()));
            assert_eq!(PublicKey::parse(&text), Err(KeyError::TrailingBytes { bytes: extra }));
            check(&block_of(&text), "TrailingBytes");
        }
        for length in 0..blob_of(line).len() {
            let (name, _) = line.split_once(' ').unwrap();
            let text = format!("{name} {}", STANDARD.encode(&blob_of(line)[..length]));
            check(&text, if length == 0 { "MissingBody" } else { "MalformedBody" });
        }
    }
    // Spare bits that are not zero, and padding left out: the same bytes, spelled otherwise.
    let padded = line_of("ssh-ed25519", &[b"ssh-ed25519", &[7; 32], b""]);
    check(&padded, "TrailingBytes");
    check(&padded.replace("A==", "B=="), "MalformedBase64");
    check(&padded.replace("==", ""), "MalformedBase64");
}

#[test]
fn options_and_host_names_in_front_are_refused() {
    for front in [
        "restrict",
        "command=\"/bin/sh\"",
        "command=\"echo a b\"",
        "command=\"echo ssh-rsa AAAA\"",
        "from=\"10.0.0.0/8\",no-pty",
        "no-pty,no-X11-forwarding",
        "cert-authority",
        "@cert-authority *.example.com",
        "permitopen=\"localhost:80\"",
        "environment=\"A=b\"",
        "web-1.example.com,10.0.0.1",
        "2048",
        "key:",
    ] {
        check(&format!("{front} {ED25519}"), "Options");
        check(&format!("{front} {ECDSA_256} alice"), "Options");
        check(&format!("{front} {ED25519}\n{RSA_2048}"), "Options");
        check(&format!("{front}\n{ED25519}"), "Options");
    }
    check("restrict", "UnknownFormat");
    check(&format!("restrict,{ED25519}"), "UnknownFormat");
}

#[test]
fn one_field_holds_one_key_on_one_line() {
    check(&format!("{ED25519}\n{ED25519_OTHER}"), "MultipleKeys");
    check(&format!("{ED25519} alice\r\n{RSA_2048} bob\r\n"), "MultipleKeys");
    check(&format!("{ED25519} {ED25519_OTHER}"), "MultipleKeys");
    check(&format!("{ED25519} alice {ECDSA_256}"), "MultipleKeys");
    check(&format!("{ED25519}\n\n{ED25519}"), "MultipleKeys");
    check(&format!("{ED25519}\r{ED25519}"), "MultipleKeys");
    check(&format!("{ED25519}\nalice"), "MultipleLines");
    check(&format!("{ED25519}\n# alice"), "MultipleLines");
    check(&format!("{ED25519} a\rb"), "MultipleLines");
    check(&ED25519.replace(' ', "\n"), "MultipleLines");
    check(&RSA_2048.replace("AAAADAQAB", "AAAADAQ\nAB"), "MultipleLines");
    check(&format!("{ED25519}\n{ED25519_SSH2}"), "MultipleLines");
    let lines = PublicKey::parse(&format!("{ED25519}\r\n\r\na\r\nb")).unwrap_err();
    assert_eq!(lines, KeyError::MultipleLines { lines: 3 });
}

#[test]
fn what_is_not_printable_ascii_is_refused_with_its_position() {
    for c in (0..0x20u8).chain([0x7f]).map(char::from).filter(|c| *c != '\n' && *c != '\r') {
        check(&format!("{ED25519} a{c}b"), "ControlCharacter");
        check(&format!("{ED25519}{c}"), "ControlCharacter");
        check(&format!("{c}{ED25519}"), "ControlCharacter");
        check(&ED25519.replace(' ', &c.to_string()), "ControlCharacter");
        check(&c.to_string(), "ControlCharacter");
    }
    for c in ['\u{a0}', '\u{feff}', '\u{200b}', '\u{2028}', '\u{85}', '\u{202e}', '\u{2013}', '\u{fc}', '\u{1f511}'] {
        check(&format!("{ED25519} a{c}b"), "NonAscii");
        check(&format!("{c}{ED25519}"), "NonAscii");
        check(&format!("{ED25519}{c}"), "NonAscii");
        check(&ED25519.replace(' ', &c.to_string()), "NonAscii");
        check(&c.to_string(), "NonAscii");
    }
    let position = 3;
    assert_eq!(PublicKey::parse(" \n\0x"), Err(KeyError::ControlCharacter { position }));
    assert_eq!(PublicKey::parse("ab\u{fc}\t"), Err(KeyError::NonAscii { position }));
}

#[test]
fn what_is_no_key_at_all_is_refused() {
    for text in ["", " ", "\n", "\r\n \n"] {
        check(text, "Empty");
    }
    check(&format!("# {ED25519}"), "CommentedOut");
    check(&format!("#{ED25519}"), "CommentedOut");
    check(&format!("\n # alice\n{ED25519}\n"), "CommentedOut");
    check("alice", "UnknownFormat");
    check(body(ED25519), "UnknownFormat");
    check(&ED25519.replace("ssh-ed25519", "SSH-ED25519"), "UnknownFormat");
    check(&ED25519.replace("ssh-ed25519", "ssh-ed25519,"), "UnknownFormat");
    check(&ED25519.replace("ssh-ed25519", "ed25519"), "UnknownFormat");
    check(&format!("\"{ED25519}\""), "UnknownFormat");
    check(&STANDARD.encode(ED25519), "UnknownFormat");
    check("~/.ssh/id_ed25519.pub", "UnknownFormat");
    check("https://github.com/alice.keys", "UnknownFormat");
    check(ED25519_PRINT, "UnknownFormat");
    check("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----", "UnknownFormat");
    check("-----BEGIN PGP PUBLIC KEY BLOCK-----\nmQEN\n-----END PGP PUBLIC KEY BLOCK-----", "UnknownFormat");
    for (text, format) in [(RSA_2048_PKCS8, "PKCS8"), (RSA_2048_PKCS1, "PEM")] {
        check(text, "PemPublicKey");
        check(&text.replace('\n', " "), "PemPublicKey");
        assert_eq!(PublicKey::parse(text), Err(KeyError::PemPublicKey { format }));
    }
}

#[test]
fn text_beyond_the_bound_is_refused_and_text_within_is_read() {
    let room = TEXT_CHARS_MAX - ED25519.len() - 1;
    check(&format!("{ED25519} {}", "a".repeat(room)), &format!("ED25519 256 {ED25519_PRINT}"));
    check(&format!("{ED25519} {}", "a".repeat(room + 1)), "TooLong");
    check(&"\u{1f511}".repeat(TEXT_CHARS_MAX), "NonAscii");
    check(&"\u{1f511}".repeat(TEXT_CHARS_MAX + 1), "TooLong");
    check(&" ".repeat(TEXT_CHARS_MAX + 1), "TooLong");
    check(&"-begin private key".replace(' ', "-").repeat(100_000), "TooLong");
    check(&"beginprivate".repeat(100_000), "TooLong");
    check(&fake_private("RSA").replace(CANARY, &CANARY.repeat(1000)), "PrivateKey");
}

#[test]
fn a_private_key_is_called_compromised_and_never_shown() {
    for label in ["", "RSA", "DSA", "EC", "OPENSSH", "ENCRYPTED"] {
        let text = fake_private(label);
        let lines: Vec<&str> = text.lines().collect();
        for variant in [
            text.clone(),
            text.replace('\n', "\r\n"),
            text.replace('\n', " "),
            text.replace('\n', ""),
            text.replace('\n', "\\n"),
            text.replace('\n', "\n    "),
            text.to_lowercase().replace(&CANARY.to_lowercase(), CANARY),
            text.replace("--", "\u{2014}"),
            text.replace(CANARY, &format!("Proc-Type: 4,ENCRYPTED\nDEK-Info: AES\n\n{CANARY}")),
            text.replace(CANARY, &format!("{CANARY}\0\u{fc}")),
            format!("# mine\n{text}"),
            format!("{ED25519}\n{text}"),
            format!("{text}{ED25519}"),
            format!("Comment: x\n{text}"),
            format!("{}\n{}", lines[0], lines[1]),
            format!("{}\n{}", lines[1], lines[2]),
            lines[0].trim_start_matches('-').to_string(),
            lines[0].trim_end_matches('-').to_string(),
            lines[2].trim_start_matches('-').to_string(),
            lines[2].trim_end_matches('-').to_string(),
            text.replace("-----", "\u{2014}\u{2013}"),
            STANDARD.encode(&text),
            STANDARD_NO_PAD.encode(&text),
            STANDARD.encode(&text).replace('L', "L\n"),
        ] {
            check(&variant, "PrivateKey");
            assert_eq!(PublicKey::parse(&variant), Err(KeyError::PrivateKey));
        }
    }
    let ssh2 = fake_private("SSH2 ENCRYPTED").replace("-----", "----");
    check(&ssh2, "PrivateKey");
    for version in [2, 3] {
        let (head, lines) = (format!("PuTTY-User-Key-File-{version}: ssh-ed25519"), "Private-Lines: 1");
        check(&format!("{head}\nEncryption: none\n{lines}\n{CANARY}\n"), "PrivateKey");
        check(&format!("{head}\r\n"), "PrivateKey");
        check(&format!("{lines}\r\n{CANARY}\r\nPrivate-MAC: 00\r\n"), "PrivateKey");
    }
    let naked = STANDARD.encode([b"openssh-key-v1\0".as_slice(), CANARY.as_bytes()].concat());
    check(&naked, "PrivateKey");
    check(&format!("ssh-ed25519 {naked}"), "PrivateKey");
    check(&format!("ssh-ed25519 {} {}", &naked[..10], &naked[10..]), "PrivateKey");
}

#[test]
fn debug_shows_type_and_fingerprint_only() {
    let key = PublicKey::parse(ED25519).unwrap();
    assert_eq!(format!("{key:?}"), format!("PublicKey(ED25519 {ED25519_PRINT})"));
}

#[test]
fn a_refusal_says_what_is_wrong_what_would_be_right_and_what_to_type() {
    let says = |text: &str| PublicKey::parse(text).unwrap_err().to_string();
    assert_eq!(
        says(ECDSA_256),
        "spec.sshPublicKey: ecdsa-sha2-nistp256 cannot be delivered; EC2 Instance Connect takes ssh-rsa (2048, 4096 \
         bits) and ssh-ed25519. Make one with ssh-keygen -t ed25519"
    );
    assert_eq!(
        says(RSA_3072),
        "spec.sshPublicKey: ssh-rsa with 3072 bits cannot be delivered; EC2 Instance Connect takes ssh-rsa (2048, \
         4096 bits) and ssh-ed25519. Make one with ssh-keygen -t ed25519"
    );
    assert_eq!(
        says(&fake_private("RSA")),
        "spec.sshPublicKey: this is a private key: consider it compromised, make a new pair with ssh-keygen -t \
         ed25519, remove the old one wherever it is trusted, and give only the .pub file"
    );
    assert_eq!(
        says(RSA_2048_PKCS8),
        "spec.sshPublicKey: is a PEM public key; give what ssh-keygen -i -m PKCS8 -f FILE prints"
    );
    assert_eq!(
        says(&format!("ssh-rsa {}", body(ED25519))),
        "spec.sshPublicKey: says ssh-rsa, but its body is ssh-ed25519; give the line that cat \
         ~/.ssh/id_ed25519.pub prints, as it is"
    );
    assert_eq!(
        says(&ED25519_SSH2.replace('\n', " ")),
        "spec.sshPublicKey: SSH2 block has more than its BEGIN line in the first line; keep its lines as they are (in \
         YAML: sshPublicKey: |)"
    );
}

/// Small, so walked whole: each character of the line, replaced by each of base64's and a few more.
#[test]
fn one_changed_character_is_refused_or_another_key() {
    let symbols = base64::alphabet::STANDARD.as_str();
    for line in [ED25519, RSA_2048] {
        for at in 0..line.len() {
            for symbol in symbols.chars().chain(['=', ' ', '\n', '\0', '-']) {
                let changed = format!("{}{symbol}{}", &line[..at], &line[at + 1..]);
                if let Ok(key) = PublicKey::parse(&changed)
                    && changed != line
                {
                    assert_ne!(key.openssh(), line);
                    assert!(changed.starts_with(key.openssh()));
                }
            }
        }
    }
}

/// Pieces of which texts are put together that come close to being keys.
fn piece() -> impl Strategy<Value = String> {
    let names: Vec<&str> = TYPE_NAMES.iter().map(|(name, _)| *name).collect();
    let bodies = [ED25519, RSA_2048, RSA_4096, RSA_1024, ECDSA_256, DSA, ED25519_CERT].map(body);
    let marks = [
        " ",
        "\n",
        "\r\n",
        ":",
        "\\\n",
        "#",
        "=",
        "----",
        "-----",
        "BEGIN SSH2 PUBLIC KEY",
        "END SSH2 PUBLIC KEY",
        "---- BEGIN SSH2 PUBLIC KEY ----\n",
        "\n---- END SSH2 PUBLIC KEY ----",
        "private key",
        "Comment: ",
    ];
    prop_oneof![
        proptest::sample::select(names).prop_map(str::to_string),
        proptest::sample::select(bodies.to_vec()).prop_map(str::to_string),
        proptest::sample::select(marks.to_vec()).prop_map(str::to_string),
        proptest::collection::vec(any::<u8>(), 0..40).prop_map(|bytes| STANDARD.encode(bytes)),
        "\\PC{0,8}",
    ]
}

fn holds_or_is_refused(text: &str) {
    match PublicKey::parse(text) {
        Ok(key) => deliverable(&key),
        Err(error) => assert!(error.to_string().is_ascii() && error.to_string().len() < 320, "{error}"),
    }
}

proptest! {
    #[test]
    fn no_text_makes_parse_panic(text in any::<String>()) {
        holds_or_is_refused(&text);
    }

    #[test]
    fn no_near_miss_makes_parse_panic(pieces in proptest::collection::vec(piece(), 0..8)) {
        holds_or_is_refused(&pieces.concat());
    }

    #[test]
    fn no_bytes_in_a_body_make_parse_panic(
        name in proptest::sample::select(vec!["ssh-ed25519", "ssh-rsa"]),
        strings in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..4),
    ) {
        let mut all = vec![name.as_bytes()];
        all.extend(strings.iter().map(Vec::as_slice));
        let line = line_of(name, &all);
        holds_or_is_refused(&line);
        prop_assert_eq!(PublicKey::parse(&line), PublicKey::parse(&block_of(&line)));
    }

    #[test]
    fn both_forms_of_any_point_are_one_key(point: [u8; 32], comment in "[ -~]{0,40}") {
        let line = ed25519(&point);
        let key = PublicKey::parse(&line).unwrap();
        deliverable(&key);
        prop_assert_eq!(key.openssh(), &line);
        prop_assert_eq!(PublicKey::parse(&block_of(&line)), Ok(key.clone()));
        prop_assert_eq!(PublicKey::parse(&format!("{line} {comment}")), Ok(key));
    }
}
