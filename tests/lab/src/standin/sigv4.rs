//! Signature Version 4, the service's side: reads a signature, and says what is wrong with it.
//!
//! The form, the scope and the time are always judged. The signature itself is judged if the secret is known.
//! Source: AWS's "Create a signed AWS API request" (IAM User Guide).

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use axum::http::request::Parts;
use jiff::{SignedDuration, Timestamp, civil, tz};
use sha2::{Digest, Sha256};

const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// What a request says about who signed it.
#[derive(Clone, Debug)]
pub(super) struct Signature {
    pub(super) access_key_id: String,
    pub(super) region: String,
    pub(super) service: String,
    pub(super) token: Option<String>,
    date: String,
    time_text: String,
    time: Timestamp,
    signed_headers: Vec<String>,
    digest: String,
    /// A presigned address is good for this long; a signed request has `None`.
    expires: Option<Duration>,
}

/// What is wrong with a signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Flaw {
    /// There is none.
    Missing,
    /// It cannot be read.
    Malformed(String),
    /// It is too old; the text says by how much.
    Old(String),
    /// It comes from the future.
    Young(String),
    /// It does not fit the request.
    Mismatch,
}

/// Reads the signature from the header `Authorization` or from the query of a presigned address.
pub(super) fn read(parts: &Parts) -> Result<Signature, Flaw> {
    let query = query(parts);
    let find = |name: &str| query.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    if find("X-Amz-Algorithm").is_some() || find("X-Amz-Signature").is_some() {
        let need = |name: &str| find(name).ok_or_else(|| Flaw::Malformed(format!("{name} is missing")));
        if need("X-Amz-Algorithm")? != ALGORITHM {
            return Err(Flaw::Malformed("X-Amz-Algorithm is not AWS4-HMAC-SHA256".into()));
        }
        let seconds: u64 =
            need("X-Amz-Expires")?.parse().map_err(|_| Flaw::Malformed("X-Amz-Expires is no number".into()))?;
        // a week is the most that Signature Version 4 allows
        if !(1..=604_800).contains(&seconds) {
            return Err(Flaw::Malformed("X-Amz-Expires is not within 1..604800".into()));
        }
        return assemble(
            &need("X-Amz-Credential")?,
            &need("X-Amz-SignedHeaders")?,
            need("X-Amz-Signature")?,
            need("X-Amz-Date")?,
            find("X-Amz-Security-Token"),
            Some(Duration::from_secs(seconds)),
        );
    }
    let header = |name: &str| parts.headers.get(name).and_then(|it| it.to_str().ok()).map(str::to_owned);
    let authorization = header("authorization").ok_or(Flaw::Missing)?;
    let fields = authorization
        .strip_prefix(ALGORITHM)
        .ok_or_else(|| Flaw::Malformed("the algorithm is not AWS4-HMAC-SHA256".into()))?;
    let fields: BTreeMap<&str, &str> = fields.split(',').filter_map(|field| field.trim().split_once('=')).collect();
    let need =
        |name: &str| fields.get(name).copied().ok_or_else(|| Flaw::Malformed(format!("Authorization has no {name}")));
    assemble(
        need("Credential")?,
        need("SignedHeaders")?,
        need("Signature")?.to_owned(),
        header("x-amz-date").ok_or_else(|| Flaw::Malformed("X-Amz-Date is missing".into()))?,
        header("x-amz-security-token"),
        None,
    )
}

fn assemble(
    credential: &str,
    signed_headers: &str,
    digest: String,
    time_text: String,
    token: Option<String>,
    expires: Option<Duration>,
) -> Result<Signature, Flaw> {
    let scope: Vec<&str> = credential.split('/').collect();
    let [access_key_id, date, region, service, "aws4_request"] = scope[..] else {
        return Err(Flaw::Malformed(format!("Credential {credential:?} is not KEY/DATE/REGION/SERVICE/aws4_request")));
    };
    if access_key_id.is_empty() || region.is_empty() {
        return Err(Flaw::Malformed("Credential has an empty part".into()));
    }
    let time = civil::DateTime::strptime("%Y%m%dT%H%M%SZ", &time_text)
        .and_then(|it| it.to_zoned(tz::TimeZone::UTC))
        .map_err(|_| Flaw::Malformed("X-Amz-Date is not of the form 20060102T150405Z".into()))?
        .timestamp();
    if !time_text.starts_with(date) {
        return Err(Flaw::Malformed("the credential's date is not X-Amz-Date's".into()));
    }
    if digest.len() != 64 || !digest.bytes().all(|it| it.is_ascii_hexdigit()) {
        return Err(Flaw::Malformed("Signature is not 64 hexadecimal digits".into()));
    }
    let signed_headers: Vec<String> = signed_headers.split(';').map(str::to_owned).collect();
    if !signed_headers.iter().any(|it| it == "host") {
        return Err(Flaw::Malformed("the header host is not signed".into()));
    }
    Ok(Signature {
        access_key_id: access_key_id.into(),
        region: region.into(),
        service: service.into(),
        token,
        date: date.into(),
        time_text,
        time,
        signed_headers,
        digest,
        expires,
    })
}

impl Signature {
    /// Judges the time of the signature against `now`.
    pub(super) fn judge_time(&self, now: Timestamp, skew_max: Duration) -> Result<(), Flaw> {
        let skew = SignedDuration::try_from(skew_max).unwrap_or(SignedDuration::MAX);
        let good_for = self.expires.map_or(skew, |it| SignedDuration::try_from(it).unwrap_or(SignedDuration::MAX));
        let age = now.duration_since(self.time);
        let now_text = now.strftime("%Y%m%dT%H%M%SZ");
        if age > good_for {
            Err(Flaw::Old(format!(
                "Signature expired: {} is now earlier than {now_text} less {} s",
                self.time_text,
                good_for.as_secs()
            )))
        } else if -age > skew {
            Err(Flaw::Young(format!(
                "Signature not yet current: {} is still later than {now_text} plus {} s",
                self.time_text,
                skew.as_secs()
            )))
        } else {
            Ok(())
        }
    }

    /// Judges the signature itself.
    pub(super) fn judge(&self, parts: &Parts, body: &[u8], secret: &str) -> Result<(), Flaw> {
        let expected = self.sign(parts, body, secret).ok_or(Flaw::Mismatch)?;
        if expected == self.digest { Ok(()) } else { Err(Flaw::Mismatch) }
    }

    fn sign(&self, parts: &Parts, body: &[u8], secret: &str) -> Option<String> {
        let mut pairs: Vec<(String, String)> = query(parts)
            .into_iter()
            .filter(|(key, _)| key != "X-Amz-Signature")
            .map(|(key, value)| (encode(&key), encode(&value)))
            .collect();
        pairs.sort();
        let query = pairs.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join("&");
        let path = if parts.uri.path().is_empty() { "/" } else { parts.uri.path() };
        let mut canonical = format!("{}\n{path}\n{query}\n", parts.method);
        for name in &self.signed_headers {
            let mut values = parts.headers.get_all(name).iter().peekable();
            values.peek()?;
            let values: Vec<String> = values
                .map(|it| Some(it.to_str().ok()?.split_whitespace().collect::<Vec<_>>().join(" ")))
                .collect::<Option<_>>()?;
            writeln!(canonical, "{name}:{}", values.join(",")).ok()?;
        }
        let payload = hex(&Sha256::digest(body));
        if let Some(claimed) = parts.headers.get("x-amz-content-sha256")
            && claimed.as_bytes() != payload.as_bytes()
        {
            return None;
        }
        write!(canonical, "\n{}\n{payload}", self.signed_headers.join(";")).ok()?;
        let scope = format!("{}/{}/{}/aws4_request", self.date, self.region, self.service);
        let text = format!("{ALGORITHM}\n{}\n{scope}\n{}", self.time_text, hex(&Sha256::digest(canonical.as_bytes())));
        let mut key = hmac(format!("AWS4{secret}").as_bytes(), self.date.as_bytes());
        for part in [&*self.region, &*self.service, "aws4_request"] {
            key = hmac(&key, part.as_bytes());
        }
        Some(hex(&hmac(&key, text.as_bytes())))
    }
}

fn query(parts: &Parts) -> Vec<(String, String)> {
    form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes()).into_owned().collect()
}

/// RFC 3986's encoding of everything that is not unreserved.
fn encode(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(byte.into());
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

/// HMAC-SHA-256 (RFC 2104).
fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut block = [0u8; 64];
    if key.len() > block.len() {
        block[..32].copy_from_slice(&Sha256::digest(key));
    } else {
        block[..key.len()].copy_from_slice(key);
    }
    let inner = Sha256::new().chain_update(block.map(|it| it ^ 0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(block.map(|it| it ^ 0x5c)).chain_update(inner).finalize().into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hmac_gives_what_rfc_4231_says() {
        let digest = hmac(b"Jefe", b"what do ya want for nothing?");
        assert_eq!(hex(&digest), "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
        let digest = hmac(&[0xaa; 131], b"Test Using Larger Than Block-Size Key - Hash Key First");
        assert_eq!(hex(&digest), "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54");
    }

    /// The example of AWS's documentation: ListUsers of 2015-08-30.
    #[test]
    fn aws_own_example_of_a_signature_is_accepted_and_any_change_of_it_refused() {
        let secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
        let signed = |path: &str| {
            axum::http::Request::get(format!("/?Action={path}&Version=2010-05-08"))
                .header("content-type", "application/x-www-form-urlencoded; charset=utf-8")
                .header("host", "iam.amazonaws.com")
                .header("x-amz-date", "20150830T123600Z")
                .header(
                    "authorization",
                    "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/iam/aws4_request, \
                     SignedHeaders=content-type;host;x-amz-date, \
                     Signature=5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7",
                )
                .body(())
                .unwrap()
                .into_parts()
                .0
        };
        let parts = signed("ListUsers");
        let signature = read(&parts).unwrap();
        assert_eq!((&*signature.region, &*signature.service), ("us-east-1", "iam"));
        assert_eq!(signature.judge(&parts, b"", secret), Ok(()));
        assert_eq!(signature.judge(&parts, b"x", secret), Err(Flaw::Mismatch));
        assert_eq!(signature.judge(&parts, b"", "other"), Err(Flaw::Mismatch));
        assert_eq!(signature.judge(&signed("ListGroups"), b"", secret), Err(Flaw::Mismatch));

        let five = Duration::from_secs(300);
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        assert_eq!(signature.judge_time(at("2015-08-30T12:41:00Z"), five), Ok(()));
        assert!(matches!(signature.judge_time(at("2015-08-30T12:41:01Z"), five), Err(Flaw::Old(_))));
        assert!(matches!(signature.judge_time(at("2015-08-30T12:30:59Z"), five), Err(Flaw::Young(_))));
    }
}
