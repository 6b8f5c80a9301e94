//! Public keys: what people paste, and what EC2 Instance Connect (EIC) can deliver.
//!
//! ```text
//! spec.sshPublicKey ── OpenSSH line ─┐
//!                   └─ SSH2 block ───┴─> blob ── judged ──> PublicKey ──> "ssh-ed25519 AAAA…"
//! ```
//! A [`PublicKey`] is right ever after: a type and size that EIC takes, one line, no options, no comment. Which
//! types a policy allows, when a key is pushed and to whom is decided elsewhere.

use std::fmt;

use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD, STANDARD_NO_PAD};
use base64::engine::{DecodePaddingMode, Engine as _};
use sha2::{Digest as _, Sha256};

use crate::api::KeyType;

/// Longest text that is read, in characters. Twice what EIC takes, as an SSH2 block has headers and line breaks.
pub const TEXT_CHARS_MAX: usize = 8192;
/// Shortest line that EIC takes: an ED25519 key without a comment, to the character. Source: EIC's model, SSHPublicKey.
pub const LINE_CHARS_MIN: usize = 80;
/// Longest line that EIC takes. RSA with 4096 bits needs 732 at most. Source: EIC's model, SSHPublicKey.
pub const LINE_CHARS_MAX: usize = 4096;
/// Sizes of RSA modulus that EIC takes. Source: AWS, EC2 Instance Connect, "supported key types".
pub const RSA_BITS: [i32; 2] = [2048, 4096];
/// Longest RSA exponent that sshd can use: OpenSSL's OPENSSL_RSA_MAX_PUBEXP_BITS is 64 once the modulus exceeds 3072
/// bits. Real ones are 65537, or 3 to 37 from old tools.
const RSA_EXPONENT_BYTES_MAX: usize = 8;

/// A public key that EIC can deliver, parsed and normalized.
///
/// Equal if the keys are equal: the comment is gone. `Debug` prints type and fingerprint only.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct PublicKey {
    kind: KeyType,
    bits: i32,
    fingerprint: String,
    openssh: String,
}

impl PublicKey {
    /// Reads the text of `spec.sshPublicKey`: OpenSSH's one line, or an SSH2 block (RFC 4716).
    ///
    /// Blanks and line ends around it are ignored, as YAML's `|` leaves one. A comment is dropped: it
    /// means nothing to the host, and nobody has checked it.
    ///
    /// # Errors
    /// A [`KeyError`] says what is wrong and what would be right, and never carries a part of the text.
    pub fn parse(field_text: &str) -> Result<PublicKey, KeyError> {
        if holds_private_key(field_text) {
            return Err(KeyError::PrivateKey);
        }
        let chars = field_text.chars().count();
        if chars > TEXT_CHARS_MAX {
            return Err(KeyError::TooLong { chars });
        }
        refuse_odd_characters(field_text)?;
        let text = field_text.trim_matches([' ', '\r', '\n']);
        if text.is_empty() {
            return Err(KeyError::Empty);
        }
        let squeezed = squeezed(text);
        if squeezed.starts_with("----beginssh2publickey") {
            judge(&blob(&body_of_block(text)?)?, None)
        } else if squeezed.starts_with("-----beginpublickey") {
            Err(KeyError::PemPublicKey { format: "PKCS8" })
        } else if squeezed.starts_with("-----beginrsapublickey") {
            Err(KeyError::PemPublicKey { format: "PEM" })
        } else {
            let (name, body) = name_and_body_of_line(text)?;
            judge(&blob(body)?, Some(name))
        }
    }

    /// The key's type.
    pub fn key_type(&self) -> KeyType {
        self.kind
    }

    /// The key's size in bits, as `ssh-keygen -l` prints it: 256 for ED25519, one of [`RSA_BITS`] for RSA.
    pub fn bits(&self) -> i32 {
        self.bits
    }

    /// The fingerprint as `ssh-keygen -l` and sshd's log print it: `SHA256:` and 43 characters of base64.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The line that is delivered: type, one blank, base64. No options, no comment, no line end; it starts with
    /// `ssh-` and has [`LINE_CHARS_MIN`] to [`LINE_CHARS_MAX`] characters, all of them printable ASCII.
    pub fn openssh(&self) -> &str {
        &self.openssh
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({:?} {})", self.kind, self.fingerprint)
    }
}

/// The types of key that EIC delivers; spelled as in `status.key.type` and a policy's `keys.types`.
///
/// Source: AWS, EC2 Instance Connect, "supported key types". No ECDSA, no `sk-`.
/// Why a text is no key that could be delivered.
///
/// `Copy`, so that it cannot carry what was pasted: names are ours, the rest are numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Nothing but blanks and line ends.
    #[error("spec.sshPublicKey: is empty; {GIVE}")]
    Empty,
    /// Longer than [`TEXT_CHARS_MAX`].
    #[error("spec.sshPublicKey: has {chars} characters, more than {TEXT_CHARS_MAX}; {GIVE}")]
    TooLong {
        /// Its length in characters.
        chars: usize,
    },
    /// The secret half, in whatever form: OpenSSH, PEM, PKCS #8, PuTTY, SSH2, or base64 of one of them.
    #[error(
        "spec.sshPublicKey: this is a private key: consider it compromised, make a new pair with ssh-keygen -t ed25519, \
         remove the old one wherever it is trusted, and give only the .pub file"
    )]
    PrivateKey,
    /// A tab, NUL, escape or the like. Line ends are judged as [`KeyError::MultipleLines`].
    #[error("spec.sshPublicKey: character {position} is a control character (a tab, for example); {GIVE}")]
    ControlCharacter {
        /// Counted in characters from 1.
        position: usize,
    },
    /// A character beyond ASCII: a byte order mark, a typographic dash, an accent in the comment.
    #[error(
        "spec.sshPublicKey: character {position} is not ASCII; leave the comment out if it is there, or copy the key again \
         from the .pub file, not from a web page or chat"
    )]
    NonAscii {
        /// Counted in characters from 1.
        position: usize,
    },
    /// Starts with `#`.
    #[error("spec.sshPublicKey: starts with #, which makes the line a comment; {GIVE}")]
    CommentedOut,
    /// Two keys or more.
    #[error(
        "spec.sshPublicKey: holds more than one key; give one, and make a request of its own for each of the others"
    )]
    MultipleKeys,
    /// One key in pieces, or a key and something else.
    #[error("spec.sshPublicKey: has {lines} lines, a public key has one; {GIVE}, unbroken")]
    MultipleLines {
        /// Lines that are not empty.
        lines: usize,
    },
    /// Options of an authorized_keys line, or a host name, in front of the type.
    #[error(
        "spec.sshPublicKey: something stands in front of the key's type; options such as command= or from= are not \
         delivered, so give the key alone, beginning with ssh-ed25519 or ssh-rsa"
    )]
    Options,
    /// A public key in PEM, which OpenSSH can convert.
    #[error("spec.sshPublicKey: is a PEM public key; give what ssh-keygen -i -m {format} -f FILE prints")]
    PemPublicKey {
        /// The word for `ssh-keygen -m`.
        format: &'static str,
    },
    /// Not in a form that we know.
    #[error("spec.sshPublicKey: is neither an OpenSSH public key nor an SSH2 one (RFC 4716); {GIVE}")]
    UnknownFormat,
    /// An SSH2 block that breaks RFC 4716.
    #[error("spec.sshPublicKey: SSH2 block {fault}; keep its lines as they are (in YAML: sshPublicKey: |)")]
    MalformedBlock {
        /// What is wrong with it.
        fault: &'static str,
    },
    /// A type, and nothing behind it.
    #[error("spec.sshPublicKey: nothing follows {name}; {GIVE}, to its end")]
    MissingBody {
        /// The type it states.
        name: &'static str,
    },
    /// The body is not canonical base64.
    #[error("spec.sshPublicKey: the key's body is not base64, something was lost or added; {GIVE}, to its end")]
    MalformedBase64,
    /// The body is base64, though not of a key as RFC 4253 and RFC 8709 encode it.
    #[error("spec.sshPublicKey: the key's body is incomplete or damaged; {GIVE}, to its end")]
    MalformedBody,
    /// The body is that of another type than the line states.
    #[error("spec.sshPublicKey: says {stated}, but its body is {found}; {GIVE}, as it is")]
    TypeMismatch {
        /// The type in front.
        stated: &'static str,
        /// The type inside, or `of unknown type`.
        found: &'static str,
    },
    /// Bytes after the key.
    #[error("spec.sshPublicKey: {bytes} bytes follow the key inside its body; {GIVE}, as it is")]
    TrailingBytes {
        /// How many.
        bytes: usize,
    },
    /// A sound type that EIC does not deliver.
    #[error("spec.sshPublicKey: {name} cannot be delivered; {TAKES}")]
    UnsupportedType {
        /// OpenSSH's name of the type, or `a key of unknown type`.
        name: &'static str,
    },
    /// A certificate instead of a key.
    #[error(
        "spec.sshPublicKey: {name} is a certificate and cannot be delivered; give the plain .pub file it was made from"
    )]
    Certificate {
        /// OpenSSH's name of the type.
        name: &'static str,
    },
    /// An RSA key whose size is not one of [`RSA_BITS`].
    #[error("spec.sshPublicKey: ssh-rsa with {bits} bits cannot be delivered; {TAKES}")]
    RsaBits {
        /// Its size.
        bits: i32,
    },
    /// An RSA exponent that is even, below 3, or over 64 bits: made by no sound tool, or not usable by sshd.
    #[error("spec.sshPublicKey: the RSA exponent is even, below 3 or over 64 bits; {MAKE}")]
    RsaExponent,
    /// An even RSA modulus: no product of two odd primes.
    #[error("spec.sshPublicKey: the RSA modulus is even; {MAKE}")]
    RsaModulus,
    /// An ED25519 point of small order, for which signatures can be forged without a private key, or one that is not
    /// reduced.
    #[error("spec.sshPublicKey: the ED25519 point is weak, anyone could sign for it; {MAKE}")]
    Ed25519Point,
}

/// What to type, for a text that is no whole key.
const GIVE: &str = "give the line that cat ~/.ssh/id_ed25519.pub prints";
/// What to type, for a key that should not be used.
const MAKE: &str = "make a new one with ssh-keygen -t ed25519";
/// What would be right, for a key that is sound and of no use here.
const TAKES: &str =
    "EC2 Instance Connect takes ssh-rsa (2048, 4096 bits) and ssh-ed25519. Make one with ssh-keygen -t ed25519";

impl KeyError {
    /// The variant's name: the label for metrics and audit, one of a fixed few.
    pub fn reason(&self) -> &'static str {
        match self {
            KeyError::Empty => "Empty",
            KeyError::TooLong { .. } => "TooLong",
            KeyError::PrivateKey => "PrivateKey",
            KeyError::ControlCharacter { .. } => "ControlCharacter",
            KeyError::NonAscii { .. } => "NonAscii",
            KeyError::CommentedOut => "CommentedOut",
            KeyError::MultipleKeys => "MultipleKeys",
            KeyError::MultipleLines { .. } => "MultipleLines",
            KeyError::Options => "Options",
            KeyError::PemPublicKey { .. } => "PemPublicKey",
            KeyError::UnknownFormat => "UnknownFormat",
            KeyError::MalformedBlock { .. } => "MalformedBlock",
            KeyError::MissingBody { .. } => "MissingBody",
            KeyError::MalformedBase64 => "MalformedBase64",
            KeyError::MalformedBody => "MalformedBody",
            KeyError::TypeMismatch { .. } => "TypeMismatch",
            KeyError::TrailingBytes { .. } => "TrailingBytes",
            KeyError::UnsupportedType { .. } => "UnsupportedType",
            KeyError::Certificate { .. } => "Certificate",
            KeyError::RsaBits { .. } => "RsaBits",
            KeyError::RsaExponent => "RsaExponent",
            KeyError::RsaModulus => "RsaModulus",
            KeyError::Ed25519Point => "Ed25519Point",
        }
    }
}

/// What becomes of a key, by its type's name.
#[derive(Clone, Copy)]
enum Fate {
    Taken(KeyType),
    Unsupported,
    Certificate,
}

/// The names of types of key that people have. Source: OpenSSH's `sshkey.c` and PROTOCOL.certkeys; RFC 8709.
const TYPE_NAMES: [(&str, Fate); 19] = [
    ("ssh-ed25519", Fate::Taken(KeyType::ED25519)),
    ("ssh-rsa", Fate::Taken(KeyType::RSA)),
    ("ssh-dss", Fate::Unsupported),
    ("ssh-xmss@openssh.com", Fate::Unsupported),
    ("ssh-ed448", Fate::Unsupported),
    ("ecdsa-sha2-nistp256", Fate::Unsupported),
    ("ecdsa-sha2-nistp384", Fate::Unsupported),
    ("ecdsa-sha2-nistp521", Fate::Unsupported),
    ("sk-ecdsa-sha2-nistp256@openssh.com", Fate::Unsupported),
    ("sk-ssh-ed25519@openssh.com", Fate::Unsupported),
    ("webauthn-sk-ecdsa-sha2-nistp256@openssh.com", Fate::Unsupported),
    ("ssh-ed25519-cert-v01@openssh.com", Fate::Certificate),
    ("ssh-rsa-cert-v01@openssh.com", Fate::Certificate),
    ("ssh-dss-cert-v01@openssh.com", Fate::Certificate),
    ("ecdsa-sha2-nistp256-cert-v01@openssh.com", Fate::Certificate),
    ("ecdsa-sha2-nistp384-cert-v01@openssh.com", Fate::Certificate),
    ("ecdsa-sha2-nistp521-cert-v01@openssh.com", Fate::Certificate),
    ("sk-ecdsa-sha2-nistp256-cert-v01@openssh.com", Fate::Certificate),
    ("sk-ssh-ed25519-cert-v01@openssh.com", Fate::Certificate),
];

/// The entry of [`TYPE_NAMES`] for `name`: our text, so that none of the reader's gets into a message.
fn known_type(name: &[u8]) -> Option<(&'static str, Fate)> {
    TYPE_NAMES.into_iter().find(|(known, _)| known.as_bytes() == name)
}

fn kind_if_taken((name, fate): (&'static str, Fate)) -> Result<(&'static str, KeyType), KeyError> {
    match fate {
        Fate::Taken(kind) => Ok((name, kind)),
        Fate::Unsupported => Err(KeyError::UnsupportedType { name }),
        Fate::Certificate => Err(KeyError::Certificate { name }),
    }
}

/// Refuses what an authorized_keys line must not hold. Line ends pass: blocks have them.
fn refuse_odd_characters(text: &str) -> Result<(), KeyError> {
    for (index, c) in text.chars().enumerate() {
        let position = index + 1;
        if !c.is_ascii() {
            return Err(KeyError::NonAscii { position });
        }
        if c.is_ascii_control() && c != '\n' && c != '\r' {
            return Err(KeyError::ControlCharacter { position });
        }
    }
    Ok(())
}

/// The text in lower case and without white space, so that a changed line break hides nothing.
fn squeezed(text: &str) -> String {
    text.chars().filter(|c| !c.is_whitespace()).map(|c| c.to_ascii_lowercase()).collect()
}

/// Whether the text holds a private key, or enough of one to call it compromised.
///
/// Leans to yes for anything with the armour of one, also broken, in one line, with dashes "improved" by a chat, or
/// as base64 (a Secret's `data`). A comment that merely says "my private key" is not one.
fn holds_private_key(text: &str) -> bool {
    /// Base64 of `openssh-key-v1`, with which the body begins: it tells a key whose armour was left out.
    const OPENSSH_BODY: &str = "b3BlbnNzaC1rZXktdjE";
    let bare: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    let decoded = BASE64_LENIENT.decode(&bare).unwrap_or_default();
    bare.contains(OPENSSH_BODY) || armours_private_key(text) || armours_private_key(&String::from_utf8_lossy(&decoded))
}

/// Looks for `BEGIN … PRIVATE KEY` or `END … PRIVATE KEY` beside a dash, and for PuTTY's words. Linear, as it comes
/// before the bound on length.
fn armours_private_key(text: &str) -> bool {
    let text = squeezed(text);
    let is_dash = |c: Option<char>| matches!(c, Some('-' | '\u{2010}'..='\u{2015}' | '\u{2212}'));
    let ends_label = |c: char| !c.is_ascii_alphanumeric();
    let mut before = None;
    for label_and_next in text.split_inclusive(ends_label) {
        let label = label_and_next.trim_end_matches(ends_label);
        let next = label_and_next.chars().last();
        if let Some((front, _)) = label.split_once("privatekey") {
            // A base64 body may have run into it: look no farther than the longest label, `SSH2 ENCRYPTED`, goes.
            let near = &front[front.len().saturating_sub("beginssh2encrypted".len())..];
            let armoured_before = is_dash(before) && (front.starts_with("begin") || front.starts_with("end"));
            let armoured_behind = is_dash(next) && (near.contains("begin") || near.contains("end"));
            if armoured_before || armoured_behind {
                return true;
            }
        }
        before = next;
    }
    ["putty-user-key-file-", "private-lines:", "private-mac:"].iter().any(|mark| text.contains(mark))
}

/// Reads base64 with or without padding: only ever to look for a private key.
const BASE64_LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// Takes OpenSSH's line apart: the type's name and the base64 body. What follows is a comment.
fn name_and_body_of_line(text: &str) -> Result<(&'static str, &str), KeyError> {
    if text.starts_with('#') {
        return Err(KeyError::CommentedOut);
    }
    let mut words = text.split_ascii_whitespace();
    let Some(known) = words.next().and_then(|word| known_type(word.as_bytes())) else {
        let has_key_behind = words.any(|word| known_type(word.as_bytes()).is_some());
        return Err(if has_key_behind { KeyError::Options } else { KeyError::UnknownFormat });
    };
    if keys_in(text) > 1 {
        return Err(KeyError::MultipleKeys);
    }
    let (name, _) = kind_if_taken(known)?;
    let lines = text.split(['\n', '\r']).filter(|line| !line.is_empty()).count();
    if lines > 1 {
        return Err(KeyError::MultipleLines { lines });
    }
    let body = words.next().ok_or(KeyError::MissingBody { name })?;
    Ok((name, body))
}

/// How many times a type's name is followed by what begins a body: every body begins with three zero bytes.
fn keys_in(text: &str) -> usize {
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    words.windows(2).filter(|pair| known_type(pair[0].as_bytes()).is_some() && pair[1].starts_with("AAAA")).count()
}

/// Takes an SSH2 block apart: its base64 body, in one piece. Headers are dropped, and with them the comment.
///
/// Lines may end in CR, LF or CRLF; a header goes on in the next line after a backslash. Source: RFC 4716, 3.
fn body_of_block(text: &str) -> Result<String, KeyError> {
    const BEGIN: &str = "---- BEGIN SSH2 PUBLIC KEY ----";
    const END: &str = "---- END SSH2 PUBLIC KEY ----";
    let malformed = |fault| Err(KeyError::MalformedBlock { fault });
    let unix = text.replace("\r\n", "\n");
    let mut lines = unix.split(['\n', '\r']).map(|line| line.trim_matches(' '));
    if lines.next() != Some(BEGIN) {
        return malformed("has more than its BEGIN line in the first line");
    }
    let mut body = String::new();
    let mut header_goes_on = false;
    loop {
        let Some(line) = lines.next() else {
            return malformed("has no END line");
        };
        if header_goes_on || (body.is_empty() && line.contains(':')) {
            header_goes_on = line.ends_with('\\');
        } else if line == END {
            break;
        } else if line == BEGIN {
            return Err(KeyError::MultipleKeys);
        } else {
            body.push_str(line);
        }
    }
    let after: String = lines.collect();
    if after.contains(BEGIN) || TYPE_NAMES.iter().any(|(name, _)| after.starts_with(name)) {
        return Err(KeyError::MultipleKeys);
    }
    if !after.is_empty() {
        return malformed("is followed by something else");
    }
    if body.is_empty() {
        return malformed("has no body");
    }
    Ok(body)
}

/// Decodes a body. Strict: padded, nothing in the spare bits, so that one key has one spelling.
fn blob(body: &str) -> Result<Vec<u8>, KeyError> {
    STANDARD.decode(body).map_err(|_| KeyError::MalformedBase64)
}

/// Judges a key by its bytes. `stated` is the type in front of an OpenSSH line; a block has none.
///
/// Read by hand: ssh-key 0.6 takes an ED25519 point whose length is stated wrongly, and judges no sizes. The tests
/// compare with it. Source: RFC 4253, 6.6; RFC 8709, 4.
fn judge(blob: &[u8], stated: Option<&'static str>) -> Result<PublicKey, KeyError> {
    let mut rest = blob;
    let inside = known_type(take_string(&mut rest).ok_or(KeyError::MalformedBody)?);
    let (name, kind) = match (inside, stated) {
        (Some((found, _)), Some(stated)) if found != stated => {
            return Err(KeyError::TypeMismatch { stated, found });
        }
        (None, Some(stated)) => {
            return Err(KeyError::TypeMismatch { stated, found: "of unknown type" });
        }
        (None, None) => {
            return Err(KeyError::UnsupportedType { name: "a key of unknown type" });
        }
        (Some(known), _) => kind_if_taken(known)?,
    };
    let mut field = || take_string(&mut rest).ok_or(KeyError::MalformedBody);
    let bits = match kind {
        KeyType::ED25519 => {
            let point = field()?.try_into().map_err(|_| KeyError::MalformedBody)?;
            sound_ed25519_bits(point)?
        }
        KeyType::RSA => {
            let e = positive(field()?).ok_or(KeyError::MalformedBody)?;
            let n = positive(field()?).ok_or(KeyError::MalformedBody)?;
            sound_rsa_bits(e, n)?
        }
    };
    if !rest.is_empty() {
        return Err(KeyError::TrailingBytes { bytes: rest.len() });
    }
    Ok(PublicKey {
        kind,
        bits,
        fingerprint: format!("SHA256:{}", STANDARD_NO_PAD.encode(Sha256::digest(blob))),
        openssh: format!("{name} {}", STANDARD.encode(blob)),
    })
}

/// Takes a string off the front: four bytes of length, then as many. Source: RFC 4251, 5.
fn take_string<'b>(rest: &mut &'b [u8]) -> Option<&'b [u8]> {
    let (length, after) = rest.split_first_chunk::<4>()?;
    let (string, after) = after.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
    *rest = after;
    Some(string)
}

/// The magnitude of an mpint, without its zero byte for the sign; `None` if negative or spelled too long.
/// Source: RFC 4251, 5.
fn positive(mpint: &[u8]) -> Option<&[u8]> {
    match mpint {
        [] => Some(mpint),
        [0, magnitude @ ..] if magnitude.first().is_some_and(|byte| *byte >= 0x80) => Some(magnitude),
        [0x01..=0x7f, ..] => Some(mpint),
        _ => None,
    }
}

/// The size of an RSA modulus in bits, if EIC takes it and sshd can use it. Both numbers are big-endian.
fn sound_rsa_bits(e: &[u8], n: &[u8]) -> Result<i32, KeyError> {
    let is_even = |number: &[u8]| number.last().is_none_or(|byte| byte % 2 == 0);
    let leading_zeros = n.first().map_or(0, |byte| byte.leading_zeros() as usize);
    let bits = i32::try_from(n.len() * 8 - leading_zeros).unwrap_or(i32::MAX);
    if !RSA_BITS.contains(&bits) {
        return Err(KeyError::RsaBits { bits });
    }
    if is_even(e) || e == [1] || e.len() > RSA_EXPONENT_BYTES_MAX {
        return Err(KeyError::RsaExponent);
    }
    if is_even(n) {
        return Err(KeyError::RsaModulus);
    }
    Ok(bits)
}

/// 256, if the point is reduced and not of small order. Whether it lies on the curve is left to sshd.
fn sound_ed25519_bits(point: &[u8; 32]) -> Result<i32, KeyError> {
    /// The y of the eight points of small order; x is but the sign bit. Source: libsodium, ge25519_has_small_order.
    const SMALL_ORDER_Y: [&str; 5] = [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    ];
    let mut y = *point;
    y[31] &= 0x7f;
    let hex: String = y.iter().map(|byte| format!("{byte:02x}")).collect();
    // Little-endian; the prime is 2^255 - 19.
    let reduced = y[0] < 0xed || y[31] != 0x7f || y[1..31].iter().any(|byte| *byte != 0xff);
    if !reduced || SMALL_ORDER_Y.contains(&hex.as_str()) {
        return Err(KeyError::Ed25519Point);
    }
    Ok(256)
}

#[cfg(test)]
mod tests;
