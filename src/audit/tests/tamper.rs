//! What `verify` finds, and what it cannot.

use proptest::prelude::*;

use super::super::line::{Draft, LINE_BYTES_MAX};
use super::super::{Expectation, Finding, Receipt, verify};
use super::{draft, heads, now, text};

/// Two segments of three lines each, and a line edit by its number from 0.
fn lines() -> (Vec<String>, Vec<Receipt>) {
    let (text, receipts) = text(2, 2);
    (text.split_inclusive('\n').map(str::to_owned).collect(), receipts)
}

#[track_caller]
fn finds(lines: &[String], expect: Expectation, line: u64, text: &str) {
    let error = verify(lines.concat().as_bytes(), expect).expect_err("this trail should not verify");
    assert_eq!(error.line, line, "{error}");
    assert!(error.to_string().contains(text), "{error}");
}

#[test]
fn a_whole_trail_verifies_and_is_summed_up() {
    let (lines, receipts) = lines();
    let summary = verify(lines.concat().as_bytes(), heads(&receipts)).unwrap();
    assert_eq!((summary.records, summary.segments), (6, 2));
    assert_eq!((summary.first_time, summary.last_time), (Some(now()), Some(now())));
    assert_eq!(summary.head.as_ref(), receipts.last());
    assert_eq!(verify(&b""[..], Expectation::default()).unwrap().head, None);
}

#[test]
fn each_kind_of_tampering_has_its_own_message_and_line() {
    let none = Expectation::default;
    let edit = |change: fn(&mut Vec<String>)| {
        let (mut lines, _) = lines();
        change(&mut lines);
        lines
    };
    finds(&edit(|l| l[1] = l[1].replace("ec2-user", "root")), none(), 2, "edited after it was written");
    finds(&edit(|l| l[1] = l[1].replace("\"record\":{", "\"record\":{\"number\":7,")), none(), 2, "not spelled");
    finds(&edit(|l| l[1] = l[1].replace("\"record\":{", "\"record\": {")), none(), 2, "not spelled");
    finds(&edit(|l| l[1] = l[1].replace("\"number\":0", "\"number\":0.0")), none(), 2, "not an integer");
    finds(&edit(|l| l[1] = l[1].replace("ec2-user", "ec2\\u002duser")), none(), 2, "not spelled");
    finds(&edit(|l| l[1] = l[1].replace('\n', "\r\n")), none(), 2, "not spelled");
    finds(&edit(|l| l[1] = "\n".into()), none(), 2, "expected a line of the trail");
    finds(&edit(|l| drop(l.remove(3))), none(), 4, "expected record 4, found 5");
    finds(&edit(|l| l.swap(2, 3)), none(), 3, "expected record 3, found 4");
    finds(&edit(|l| l.insert(2, l[1].clone())), none(), 3, "expected record 3, found 2 again");
    finds(&edit(|l| drop(l.remove(0))), none(), 1, "the trail begins with record 2, expected 1");
    finds(&edit(|l| l.rotate_left(3)), none(), 1, "the trail begins with record 4");
    finds(&edit(|l| l[5].truncate(40)), none(), 6, "no newline");
    finds(&edit(|l| l[1] = "x".repeat(LINE_BYTES_MAX + 1)), none(), 2, "without a newline");
}

#[test]
fn a_segment_of_another_trail_does_not_fit() {
    let (mut ours, _) = lines();
    let (theirs, _) = text(2, 3);
    // The number fits, the chain does not.
    ours[4] = theirs.lines().nth(4).map(|line| format!("{line}\n")).unwrap();
    finds(&ours, Expectation::default(), 5, "record 5 continues a record with the digest");
}

#[test]
fn a_segment_opening_that_names_another_head_is_found_though_its_digests_fit() {
    let (mut lines, receipts) = lines();
    let mut forged = String::new();
    let record = serde_json::json!({ "kind": "SegmentOpened", "segment": 4, "previousHead": null, "tornBytes": 0 });
    draft(&record).link(&receipts[2], &mut forged);
    lines.truncate(3);
    lines.push(forged);
    finds(&lines, Expectation::default(), 4, "previousHead");
}

#[test]
fn a_cut_end_is_found_by_a_receipt_and_by_nothing_else() {
    let (mut lines, receipts) = lines();
    lines.truncate(4);
    assert!(verify(lines.concat().as_bytes(), Expectation::default()).is_ok());
    finds(&lines, heads(&receipts[5..]), 5, "a receipt was given for record 6, but the trail ends at record 4");
    finds(&[], heads(&receipts[..1]), 1, "the trail is empty");
}

#[test]
fn a_chain_that_was_computed_anew_is_found_by_a_receipt_and_by_nothing_else() {
    let (_, receipts) = lines();
    let forged = text(1, 5).0;
    assert!(verify(forged.as_bytes(), Expectation::default()).is_ok());
    finds(&[forged], heads(&receipts[4..5]), 5, "but a receipt for it says");
}

#[test]
fn a_later_file_verifies_after_the_receipt_that_it_continues() {
    let (lines, receipts) = lines();
    let after = |receipt: &Receipt| Expectation {
        after: vec![receipt.clone()],
        heads: receipts[2..].to_vec(),
        ..Expectation::default()
    };
    assert_eq!(verify(lines[3..].concat().as_bytes(), after(&receipts[2])).unwrap().records, 3);
    finds(&lines[3..], Expectation { heads: receipts.clone(), ..after(&receipts[2]) }, 1, "begins after record 3");
    let stranger = Receipt { digest: "f".repeat(64), ..receipts[2].clone() };
    finds(&lines[3..], after(&stranger), 1, "another trail");
}

#[test]
fn numbers_at_the_edge_are_findings_and_no_panics() {
    for sequence in [i64::MIN, -1, 0, i64::MAX] {
        let (mut lines, _) = lines();
        lines[0] = lines[0].replace("\"sequence\":1", &format!("\"sequence\":{sequence}"));
        finds(&lines, Expectation::default(), 1, "is not within");
    }
    let deep = format!("{{\"sequence\":1,\"record\":{}", "[".repeat(100_000));
    finds(&[deep + "\n"], Expectation::default(), 1, "expected a line of the trail");
}

proptest! {
    #[test]
    fn any_edit_of_any_byte_is_found(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = text(2, 3).0.into_bytes();
        let at = at.index(bytes.len());
        prop_assume!(bytes[at] != byte);
        bytes[at] = byte;
        prop_assert!(verify(bytes.as_slice(), Expectation::default()).is_err());
    }

    #[test]
    fn any_lines_taken_out_are_found_if_the_head_is_known(kept in prop::collection::vec(any::<bool>(), 8)) {
        prop_assume!(kept.contains(&false));
        let (text, receipts) = text(2, 3);
        let left: String =
            text.split_inclusive('\n').zip(&kept).filter(|(_, kept)| **kept).map(|(line, _)| line).collect();
        prop_assert!(verify(left.as_bytes(), heads(&receipts[7..])).is_err());
        // Without a receipt, a trail that lacks nothing but its end looks like a younger one.
        let is_cut_end_only = kept.is_sorted_by(|earlier, later| *earlier || !later);
        prop_assert_eq!(verify(left.as_bytes(), Expectation::default()).is_ok(), is_cut_end_only);
    }

    #[test]
    fn any_other_order_of_lines_is_found(
        order in Just((0..8).collect::<Vec<usize>>()).prop_shuffle(),
    ) {
        prop_assume!(!order.is_sorted());
        let text = text(2, 3).0;
        let lines: Vec<&str> = text.split_inclusive('\n').collect();
        let shuffled: String = order.iter().map(|at| lines[*at]).collect();
        prop_assert!(verify(shuffled.as_bytes(), Expectation::default()).is_err());
    }

    #[test]
    fn any_bytes_are_a_finding_or_a_trail_and_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = verify(bytes.as_slice(), Expectation::default());
    }

    #[test]
    fn any_record_that_is_taken_comes_back(members in prop::collection::btree_map(".{0,9}", json(), 0..6)) {
        let record: serde_json::Map<_, _> = members.into_iter().collect();
        prop_assume!(record.get("kind").is_none());
        let mut line = String::new();
        if let Ok(draft) = Draft::new(&record, now()) {
            let receipt = draft.link(&Receipt::origin(), &mut line);
            prop_assert_eq!(verify(line.as_bytes(), heads(&[receipt])).unwrap().records, 1);
            let read: serde_json::Value = serde_json::from_str(&line).unwrap();
            prop_assert_eq!(&read["record"], &serde_json::Value::Object(record));
        }
    }
}

fn json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        (-1000..1000_i64).prop_map(Into::into),
        "\\PC{0,9}".prop_map(Into::into),
        ".{0,9}".prop_map(Into::into),
    ];
    leaf.prop_recursive(4, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
            prop::collection::btree_map(".{0,5}", inner, 0..4)
                .prop_map(|members| serde_json::Value::Object(members.into_iter().collect())),
        ]
    })
}

#[test]
fn a_reader_that_fails_is_not_called_tampering() {
    struct Bad;
    impl std::io::Read for Bad {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::from_raw_os_error(5))
        }
    }
    let error = verify(std::io::BufReader::new(Bad), Expectation::default()).unwrap_err();
    assert!(matches!(error.finding, Finding::Read(_)), "{error}");
}
