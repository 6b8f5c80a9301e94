//! AWS's texts, made fit to show: one line, short, without anything that could be a secret.

use std::sync::LazyLock;

use regex::{Captures, Regex};

/// The longest message, in characters: a condition's message has room for it beside our own words.
pub(super) const CHARS_MAX: usize = 512;
/// The longest text that is looked at; the rest could not be shown anyway.
const LOOKED_AT_CHARS_MAX: usize = 8 * CHARS_MAX;
/// What stands in place of a secret.
const HIDDEN: &str = "***";

/// Where EC2 begins an encoded message, which tells whoever may decode it more than the reader may know.
static ENCODED: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?i)encoded authorization (failure )?message:?\s*\S+").expect("a constant pattern, compiled by a test")
});
/// Access key ids of every kind, JSON web tokens, the blob of an SSH key, and long unbroken runs (session tokens).
static SECRET: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(concat!(
        r"\b(?:AKIA|ASIA|AROA|AIDA|AGPA|ANPA|ABIA|ACCA)[A-Z0-9]{12,}\b",
        r"|\beyJ[A-Za-z0-9_-]{10,}(?:\.[A-Za-z0-9_-]*){1,2}",
        r"|\bAAAA[A-E][A-Za-z0-9+/]{20,}={0,2}",
        r"|[A-Za-z0-9+/=_-]{100,}",
    ))
    .expect("a constant pattern, compiled by a test")
});
/// A run as long as a secret access key (40 characters).
static RUN: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"[A-Za-z0-9+/=]{40,}").expect("a constant pattern, compiled by a test"));

/// Returns the text on one line of at most [`CHARS_MAX`] characters, with secrets as `***`.
pub(super) fn shown(text: &str) -> String {
    let plain: String =
        text.chars().take(LOOKED_AT_CHARS_MAX).map(|c| if c.is_control() || reorders(c) { ' ' } else { c }).collect();
    let line = plain.split_whitespace().collect::<Vec<_>>().join(" ");
    let line = ENCODED.replace_all(&line, "(an encoded message was left out)");
    let line = SECRET.replace_all(&line, HIDDEN);
    let line =
        RUN.replace_all(&line, |run: &Captures<'_>| if is_mixed(&run[0]) { HIDDEN.into() } else { run[0].to_owned() });
    match line.char_indices().nth(CHARS_MAX) {
        None => line.into_owned(),
        Some(_) => line.chars().take(CHARS_MAX - 1).chain(['…']).collect(),
    }
}

/// Tells whether a run looks random: lower case, upper case and digits. A path of words does not.
fn is_mixed(run: &str) -> bool {
    let has = |kind: fn(&u8) -> bool| run.bytes().any(|b| kind(&b));
    has(u8::is_ascii_lowercase) && has(u8::is_ascii_uppercase) && has(u8::is_ascii_digit)
}

/// Tells whether a character makes a terminal show the others in another order.
fn reorders(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        assert_eq!(shown(text), expected);
    }

    #[test]
    fn a_message_is_one_short_line_without_secrets() {
        check("  two\r\n\tlines\u{7}  ", "two lines");
        check("left\u{202e}right", "left right");
        check(
            "You are not authorized to perform this operation. Encoded authorization failure message: AbC-_dEf123",
            "You are not authorized to perform this operation. (an encoded message was left out)",
        );
        check("key AKIAIOSFODNN7EXAMPLE is off", "key *** is off");
        check("Credential=ASIAIOSFODNN7EXAMPLE/20260101/us-west-2", "Credential=***/20260101/us-west-2");
        check("secret wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY gone", "secret *** gone");
        check(&format!("token {} gone", "Ab1+/".repeat(30)), "token *** gone");
        check(
            "bad key ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl a@b",
            "bad key ssh-ed25519 *** a@b",
        );
        check("jwt eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.c2ln end", "jwt *** end");
    }

    #[test]
    fn what_the_operator_needs_stays() {
        let text = "User: arn:aws:sts::123456789012:assumed-role/instance-access/i-0123456789abcdef0 is not authorized \
                    to perform: ec2-instance-connect:SendSSHPublicKey on resource: \
                    arn:aws:ec2:us-west-2:123456789012:instance/i-0123456789abcdef0";
        check(text, text);
    }

    #[test]
    fn a_long_message_is_cut_on_a_character() {
        let cut = shown(&"ä ".repeat(100_000));
        assert_eq!(cut.chars().count(), CHARS_MAX);
        assert!(cut.ends_with('…'));
    }
}
