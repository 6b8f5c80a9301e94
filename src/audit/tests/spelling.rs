//! The form of a line, and the records that have none.

use serde_json::{Value, json};

use super::super::{AppendError, Class, Limits, Receipt};
use super::{Disk, draft, now, record};

#[test]
fn a_line_is_spelled_thus() {
    let mut line = String::new();
    draft(&json!({ "z": [1, null, "ü\n"], "a": { "y": -5, "b": true } })).link(&Receipt::origin(), &mut line);
    let zeros = "0".repeat(64);
    // The digest is sha256sum's, of {"previousDigest":…,"record":…,"sequence":…,"time":…}.
    let digest = "17fe03d766cf997659d9ffd9b26c365e56cea6a98d509aabf66f57ec7c3ca62c";
    let expected = format!(
        r#"{{"sequence":1,"time":"2026-03-01T09:00:00Z","previousDigest":"{zeros}","digest":"{digest}","record":{{"a":{{"b":true,"y":-5}},"z":[1,null,"ü\n"]}}}}"#
    );
    assert_eq!(line, expected + "\n");
}

#[test]
fn a_digest_is_that_of_the_canonical_form_of_the_line_without_it() {
    let mut line = String::new();
    let receipt = draft(&json!({ "\u{20ac}": 1, "\r": 2, "😀": 3, "é": [{}] })).link(&Receipt::origin(), &mut line);
    let mut object: Value = serde_json::from_str(&line).unwrap();
    object.as_object_mut().unwrap().remove("digest");
    let canonical = serde_json_canonicalizer::to_vec(&object).unwrap();
    assert_eq!(super::super::line::sha256(&canonical), receipt.digest);
}

#[tokio::test]
async fn a_record_that_would_not_come_back_as_it_was_is_refused() {
    let (disk, limits) = (Disk::default(), Limits { record_bytes_max: 1024, ..Limits::default() });
    let trail = disk.trail_within(limits);
    let deep = (0..70).fold(json!(1), |inner, _| json!([inner]));
    for (record, reason) in [
        (json!([1]), "not an object"),
        (json!({ "a": 1.5 }), "a: 1.5 is not an integer"),
        (json!({ "a": [9_007_199_254_740_992_i64] }), "9007199254740992 is not an integer within"),
        (json!({ "a": u64::MAX }), "is not an integer within"),
        (json!({ "a": deep }), "nested more than 64 deep"),
        (json!({ "a": "x".repeat(1024) }), "1032 bytes, at most 1024 are allowed"),
        (json!({ "kind": "SegmentOpened" }), "the trail's own"),
    ] {
        let error = trail.append(record, now()).await.unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
        assert_eq!(error.class(), Class::Invalid);
    }
    let largest = json!({ "a": 9_007_199_254_740_991_i64, "b": -9_007_199_254_740_991_i64 });
    let receipt = trail.append(largest, now()).await.unwrap();
    assert_eq!(disk.verified(&[receipt]).records, 1);
    assert_eq!(trail.stats().queue_records, 0);
}

#[tokio::test]
async fn a_closed_trail_says_so() {
    let trail = Disk::default().trail();
    trail.clone().close().await;
    let error = trail.append(record(1), now()).await.unwrap_err();
    assert!(matches!(error, AppendError::Closed) && error.class() == Class::Gone);
    trail.close().await; // a second time
}
