//! Conditions flip when their status does, and their words fit the CRD.

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn active(conditions: &[Condition]) -> &Condition {
    find(conditions, ConditionType::Active).unwrap()
}

#[test]
fn the_transition_time_moves_when_the_status_flips_and_at_no_other_time() {
    let mut conditions = Vec::new();
    let rows = [
        (Saying::inactive(ActiveReason::Granting, "a"), 0, 0),
        // Another reason, another message, another generation: no flip.
        (Saying::inactive(ActiveReason::Throttled, "a"), 1, 0),
        (Saying::inactive(ActiveReason::Throttled, "b"), 2, 0),
        (Saying::active("c"), 3, 3),
        (Saying::active("d"), 4, 3),
        (Saying::revocation_pending("e"), 5, 3),
        (Saying::inactive(ActiveReason::Revoked, "f"), 6, 6),
    ];
    for (saying, second, moved) in rows {
        let told = saying.clone();
        set(&mut conditions, saying, second, at(second));
        let found = active(&conditions);
        assert_eq!(found.last_transition_time.0, at(moved), "{told:?}");
        assert_eq!((found.status, found.reason.as_str(), &found.message), (told.status, told.reason, &told.message));
        assert_eq!(found.observed_generation, second);
        assert_eq!(conditions.len(), 1);
    }
}

#[test]
fn a_transition_time_is_a_whole_second() {
    let mut conditions = Vec::new();
    let now = at(0) + jiff::SignedDuration::from_nanos(999_999_999);
    set(&mut conditions, Saying::active("x"), 1, now);
    assert_eq!(active(&conditions).last_transition_time.0, at(0));
    set(&mut conditions, Saying::inactive(ActiveReason::Expired, "x"), 1, now);
    assert_eq!(active(&conditions).last_transition_time.0, at(0));
}

#[test]
fn conditions_of_different_types_do_not_touch_each_other() {
    let mut conditions = Vec::new();
    set(&mut conditions, Saying::approved(ApproveReason::AdmittedByPolicy, "a"), 1, at(0));
    set(&mut conditions, Saying::active("b"), 1, at(1));
    set(&mut conditions, Saying::not_ended(), 1, at(2));
    drop(&mut conditions, ConditionType::Active);
    assert!(is_true(&conditions, ConditionType::Approved));
    assert!(!is_true(&conditions, ConditionType::Ended));
    assert!(find(&conditions, ConditionType::Ended).is_some());
    assert!(find(&conditions, ConditionType::Active).is_none());
}

#[test]
fn a_text_is_cut_at_a_characters_edge() {
    for (text, most, expected) in
        [("abc", 3, "abc"), ("abcd", 3, "ab…"), ("üüü", 3, "üüü"), ("üüüü", 3, "üü…"), ("ab", 1, "…")]
    {
        assert_eq!(bounded(text.to_owned(), most), expected);
    }
    for (text, most, expected) in
        [("abc", 3, "abc"), ("abcd", 3, "…"), ("abcde", 4, "a…"), ("üüü", 5, "ü…"), ("üüü", 6, "üüü")]
    {
        assert_eq!(bounded_bytes(text.to_owned(), most), expected);
    }
    let mut conditions = Vec::new();
    set(&mut conditions, Saying::active("ü".repeat(9999)), 1, at(0));
    assert_eq!(active(&conditions).message.chars().count(), MESSAGE_LENGTH_MAX);
}

#[test]
fn every_reason_is_one_word_of_its_own() {
    let mut words: Vec<&str> = ActiveReason::ALL.iter().map(|reason| reason.as_str()).collect();
    for (reason, word) in ActiveReason::ALL.iter().zip(&words) {
        assert_eq!(format!("{reason:?}"), **word, "one word, one spelling");
    }
    for reason in [DenyReason::DeniedByPolicy, DenyReason::InvalidSpec] {
        assert_eq!(format!("{reason:?}"), reason.as_str());
    }
    words.sort_unstable();
    words.dedup();
    assert_eq!(words.len(), ActiveReason::ALL.len());
}
