//! Names and numbers that no two labs share.

use uuid::Uuid;

/// Lower-case random hexadecimal digits, 24 at most.
pub(crate) fn hex(digits: usize) -> String {
    // The two digits in the middle of a UUID are its version and variant, not random.
    let all = Uuid::new_v4().simple().to_string();
    format!("{}{}", &all[..12], &all[20..])[..digits].to_owned()
}

/// Random bytes.
pub(crate) fn bytes() -> [u8; 2] {
    let uuid = Uuid::new_v4();
    [uuid.as_bytes()[0], uuid.as_bytes()[1]]
}

/// An identifier as AWS makes them: the kind, and 17 hexadecimal digits.
pub(crate) fn aws(kind: &str) -> String {
    format!("{kind}-0{}", hex(16))
}

/// A secret: a token for the API server.
pub(crate) fn token() -> String {
    format!("{}{}", hex(24), hex(24))
}
