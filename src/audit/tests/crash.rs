//! Opening: what a crash, another writer or a tamperer left.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::super::{Expectation, Limits, OpenError, Receipt, Sinks, Trail, verify_files};
use super::{begin, heads, now, open, open_after, record, text, verified, write_segment};

struct Place {
    _directory: tempfile::TempDir,
    path: PathBuf,
}

fn place() -> Place {
    let directory = tempfile::tempdir().unwrap();
    Place { path: directory.path().join("audit.jsonl"), _directory: directory }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}{suffix}", path.display()))
}

#[tokio::test]
async fn a_new_file_is_private_and_begins_with_a_segment() {
    let place = place();
    let receipts = write_segment(&place.path, 2).await;
    let text = fs::read_to_string(&place.path).unwrap();
    let opening = r#""record":{"kind":"SegmentOpened","previousHead":null,"segment":1,"tornBytes":0}}"#;
    assert!(text.lines().next().unwrap().ends_with(opening), "{text}");
    assert_eq!(fs::metadata(&place.path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(receipts.iter().map(|receipt| receipt.sequence).collect::<Vec<_>>(), [1, 2, 3]);
}

#[tokio::test]
async fn a_second_opening_continues_and_names_the_head_before() {
    let place = place();
    let first = write_segment(&place.path, 2).await;
    let (trail, opened) = open(&place.path).await.unwrap();
    assert_eq!(opened.previous_head.as_ref(), first.last());
    assert_eq!((opened.head.sequence, &opened.torn), (4, &None));
    assert_eq!(trail.head(), opened.head);
    trail.close().await;
    let summary = verified(&place.path, &first);
    assert_eq!((summary.records, summary.segments), (4, 2));
    let last = fs::read_to_string(&place.path).unwrap().lines().last().unwrap().to_owned();
    let head = &first[2].digest;
    assert!(last.contains(&format!(r#""previousHead":{{"digest":"{head}","sequence":3}},"segment":4"#)), "{last}");
}

#[tokio::test]
async fn a_crash_at_any_byte_of_a_write_loses_no_whole_line_and_hides_no_torn_one() {
    let (whole, receipts) = text(1, 2);
    for bytes in 0..=whole.len() {
        let place = place();
        fs::write(&place.path, &whole[..bytes]).unwrap();
        // A line that lacks its newline only is whole.
        let ends: Vec<usize> = whole.match_indices('\n').map(|(at, _)| at).collect();
        let kept = ends.iter().filter(|end| **end <= bytes).count();
        let torn_bytes = if kept > 0 { bytes.saturating_sub(ends[kept - 1] + 1) } else { bytes };

        let (trail, opened) = open(&place.path).await.unwrap_or_else(|error| panic!("cut at {bytes}: {error}"));
        let receipt = trail.append(record(9), now()).await.unwrap();
        trail.close().await;

        assert_eq!(opened.previous_head.as_ref(), receipts[..kept].last(), "cut at {bytes}");
        assert_eq!(opened.torn.as_ref().map_or(0, |torn| torn.bytes), torn_bytes as u64, "cut at {bytes}");
        if let Some(torn) = opened.torn {
            assert_eq!(torn.path, beside(&place.path, ".torn-1"));
            assert_eq!(fs::read_to_string(&torn.path).unwrap(), whole[bytes - torn_bytes..bytes]);
            let text = fs::read_to_string(&place.path).unwrap();
            assert!(text.contains(&format!(r#""tornBytes":{torn_bytes},"tornDigest":"{}"#, torn.digest)), "{text}");
        }
        let mut expected = receipts[..kept].to_vec();
        expected.extend([opened.head, receipt]);
        assert_eq!(verified(&place.path, &expected).records, expected.len() as u64);
    }
}

#[tokio::test]
async fn pages_that_a_power_cut_left_unwritten_are_torn_off_with_all_behind_them() {
    let place = place();
    let (whole, receipts) = text(1, 4);
    let mut bytes = whole.into_bytes();
    let second_end = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').nth(1).unwrap().0 + 1;
    bytes[second_end + 10..second_end + 50].fill(0);
    let torn_bytes = (bytes.len() - second_end) as u64;
    fs::write(&place.path, bytes).unwrap();
    let (trail, opened) = open(&place.path).await.unwrap();
    assert_eq!((opened.previous_head.as_ref(), opened.torn.unwrap().bytes), (Some(&receipts[1]), torn_bytes));
    trail.close().await;
    assert_eq!(verified(&place.path, &receipts[..2]).records, 3);
}

#[tokio::test]
async fn a_last_line_that_is_no_line_is_torn_off_and_one_amid_others_is_refused() {
    let place = place();
    let (whole, receipts) = text(1, 1);
    fs::write(&place.path, format!("{whole}{{\"sequ\n")).unwrap();
    let (trail, opened) = open(&place.path).await.unwrap();
    assert_eq!(opened.previous_head.as_ref(), receipts.last());
    assert_eq!(opened.torn.unwrap().bytes, 7);
    trail.close().await;

    fs::write(&place.path, format!("{{\"sequ\n{whole}")).unwrap();
    let error = open(&place.path).await.unwrap_err();
    assert!(matches!(error, OpenError::Broken { offset: 0, .. }), "{error}");
}

#[tokio::test]
async fn a_file_that_lacks_a_line_is_refused() {
    let place = place();
    let (whole, _) = text(1, 3);
    let lines: Vec<&str> = whole.split_inclusive('\n').collect();
    fs::write(&place.path, [lines[0], lines[1], lines[3]].concat()).unwrap();
    let error = open(&place.path).await.unwrap_err();
    let offset_expected = (lines[0].len() + lines[1].len()) as u64;
    assert!(matches!(error, OpenError::Broken { offset, .. } if offset == offset_expected), "{error}");
    assert!(error.to_string().contains("expected record 3, found 4"), "{error}");
}

#[tokio::test]
async fn torn_ends_never_overwrite_one_another() {
    let place = place();
    for number in 1..=3 {
        let mut text = fs::read(&place.path).unwrap_or_default();
        text.extend_from_slice(b"{\"seq");
        fs::write(&place.path, text).unwrap();
        let (trail, opened) = open(&place.path).await.unwrap();
        assert_eq!(opened.torn.unwrap().path, beside(&place.path, &format!(".torn-{number}")));
        trail.close().await;
    }
    assert_eq!(verified(&place.path, &[]).segments, 3);
}

#[tokio::test]
async fn a_second_writer_is_refused_until_the_first_is_closed() {
    let place = place();
    let (trail, _) = open(&place.path).await.unwrap();
    let error = open(&place.path).await.unwrap_err();
    assert!(matches!(error, OpenError::Locked { .. }));
    let text = error.to_string();
    assert!(text.contains(&place.path.display().to_string()) && text.contains("stop that one"), "{text}");
    trail.append(record(1), now()).await.unwrap();
    trail.close().await;
    assert_eq!(open(&place.path).await.unwrap().1.head.sequence, 3);
}

#[tokio::test]
async fn a_file_that_does_not_verify_is_refused_and_left_as_it_is() {
    let place = place();
    write_segment(&place.path, 3).await;
    let edited = fs::read_to_string(&place.path).unwrap().replacen("ec2-user", "ec2-loser", 1);
    fs::write(&place.path, &edited).unwrap();
    let error = open(&place.path).await.unwrap_err();
    assert!(matches!(error, OpenError::Broken { offset: 1.., .. }), "{error}");
    assert!(error.to_string().contains("edited after it was written"), "{error}");
    assert_eq!(fs::read_to_string(&place.path).unwrap(), edited);
}

#[tokio::test]
async fn a_file_that_lost_its_end_is_refused_by_whoever_knows_its_head() {
    let place = place();
    let receipts = write_segment(&place.path, 3).await;
    let text = fs::read_to_string(&place.path).unwrap();
    let cut: String = text.split_inclusive('\n').take(2).collect();
    fs::write(&place.path, cut).unwrap();
    let error = open_after(&place.path, receipts.last().cloned()).await.unwrap_err();
    assert!(matches!(error, OpenError::Behind { found: 2, known: 4, .. }), "{error}");

    let stranger = Receipt { sequence: 2, digest: "a".repeat(64) };
    let error = open_after(&place.path, Some(stranger)).await.unwrap_err();
    assert!(matches!(error, OpenError::Broken { .. }), "{error}");
    assert!(open_after(&place.path, Some(receipts[1].clone())).await.is_ok());

    let nonsense = Receipt { sequence: 2, digest: "zz".into() };
    assert!(matches!(open_after(&place.path, Some(nonsense)).await, Err(OpenError::NoReceipt { sequence: 2 })));
}

#[tokio::test]
async fn a_new_file_continues_the_head_that_is_known_and_both_verify_as_one() {
    let (first, second) = (place(), place());
    let mut receipts = write_segment(&first.path, 2).await;
    let (trail, opened) = open_after(&second.path, receipts.last().cloned()).await.unwrap();
    assert_eq!((opened.head.sequence, opened.previous_head.as_ref()), (4, receipts.last()));
    receipts.push(trail.append(record(1), now()).await.unwrap());
    trail.close().await;
    let paths = [first.path, second.path];
    assert_eq!(verify_files(&paths, heads(&receipts)).unwrap().records, 5);
    let alone = verify_files(&paths[1..], Expectation::default()).unwrap_err();
    assert!(alone.to_string().contains("begins with record 4, expected 1"), "{alone}");
    assert!(alone.to_string().starts_with(&format!("{}, line 1: ", paths[1].display())), "{alone}");
}

#[tokio::test]
async fn only_the_end_of_a_long_file_is_read() {
    let place = place();
    let (mut whole, mut head) = (String::new(), Receipt::origin());
    let big = super::draft(&serde_json::json!({ "a": "x".repeat(900_000) }));
    for _ in 0..20 {
        head = big.link(&head, &mut whole);
    }
    let edited = whole.replacen("xxx", "yyy", 1); // in the first line, which opening does not read
    fs::write(&place.path, edited + "{\"torn").unwrap();
    let (trail, opened) = open(&place.path).await.unwrap();
    assert_eq!((opened.previous_head, opened.torn.unwrap().bytes), (Some(head), 6));
    trail.close().await;
    assert_eq!(verify_files(&[place.path], Expectation::default()).unwrap_err().line, 1);
}

#[tokio::test]
async fn what_cannot_be_a_trail_is_refused_with_a_remedy() {
    let place = place();
    let directory = place.path.parent().unwrap();
    for (path, text) in [
        (directory.join("none/audit.jsonl"), "mount the volume"),
        (directory.to_owned(), "not a regular file"),
        (PathBuf::from("/dev/full"), "not a regular file"),
    ] {
        let error = open(&path).await.unwrap_err().to_string();
        assert!(error.contains(text) && error.contains(&path.display().to_string()), "{error}");
    }
    let error = Trail::open(Sinks::default(), Limits::default(), begin()).await.unwrap_err();
    assert!(matches!(error, OpenError::NoSink));
}
