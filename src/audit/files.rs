//! The files of one writer: the open one, and those that were closed because they were full. What they are called, in which
//! order they were written, when one is full, how much of them is read back. Pure.
//!
//! ```text
//! audit.0000000000000001-9f86d081884c7d65.jsonl   closed: number and digest of its first record
//! audit.0000000000412077-2c26b46b68ffc68f.jsonl   closed; its first record names the file above
//! audit.jsonl                                     open; its first record names the file above
//! ```
//! The name is for people and for globs. What follows what, the files themselves say: each begins with a record that names the
//! file before it, by the digest of that one's first record.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::Receipt;

/// How many digits of the first record's digest are in a name: numbers can come twice, where a trail went back.
const DIGEST_DIGITS: usize = 16;
/// The digits of the largest number, 2^53 − 1, so that names sort as numbers do.
const NUMBER_DIGITS: usize = 16;
const _: () = assert!(super::line::INTEGER_MAX < 10_i64.pow(NUMBER_DIGITS as u32));

/// What a file is called once it is closed, beside the open one.
pub(super) fn closed_path(open: &Path, first: &Receipt) -> PathBuf {
    let mut name = open.file_stem().unwrap_or_default().to_owned();
    let digest = digits(&first.digest);
    name.push(format!(".{:0width$}-{digest}", first.sequence, width = NUMBER_DIGITS));
    if let Some(extension) = open.extension() {
        name.push(".");
        name.push(extension);
    }
    open.with_file_name(name)
}

/// What the next file is called before it takes the open one's place. Whoever reads a folder leaves out what begins with a dot.
pub(super) fn next_path(open: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(open.file_name().unwrap_or_default());
    name.push(".next");
    open.with_file_name(name)
}

/// Number and digits of the first record of a closed file, by its name; none, if it is no closed file of this open one.
pub(super) fn closed_name<'a>(open: &Path, path: &'a Path) -> Option<(i64, &'a str)> {
    let name = path.file_name()?.as_bytes();
    let rest = name.strip_prefix(open.file_stem()?.as_bytes())?.strip_prefix(b".")?;
    let rest = match open.extension() {
        Some(extension) => rest.strip_suffix(extension.as_bytes())?.strip_suffix(b".")?,
        None => rest,
    };
    let (number, digest) = std::str::from_utf8(rest).ok()?.split_once('-')?;
    let is_number = number.len() == NUMBER_DIGITS && number.bytes().all(|byte| byte.is_ascii_digit());
    let is_digest =
        digest.len() == DIGEST_DIGITS && digest.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if is_number && is_digest { Some((number.parse().ok()?, digest)) } else { None }
}

/// As much of the digest of a file's first record as is in its closed name.
pub(super) fn digits(digest: &str) -> &str {
    digest.get(..DIGEST_DIGITS).unwrap_or_default()
}

/// Whether a file in a folder is one of a trail, by its name: not what a crash had left, and nothing hidden.
pub(super) fn is_of_a_trail(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().as_bytes();
    let torn = b".torn-";
    let is_torn = name.windows(torn.len()).rposition(|part| part == torn).is_some_and(|at| {
        let number = &name[at + torn.len()..];
        !number.is_empty() && number.iter().all(u8::is_ascii_digit)
    });
    !name.starts_with(b".") && !is_torn
}

/// Whether a file of `bytes` is to be closed before a batch of that many more.
pub(super) fn is_full(bytes: u64, more: u64, bytes_max: u64) -> bool {
    bytes > 0 && bytes.saturating_add(more) > bytes_max
}

/// A closed file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Closed {
    pub path: PathBuf,
    /// The number of its first record, by its name.
    pub number: i64,
    /// The digest of its first record; none if that is no line.
    pub file: Option<String>,
    /// The file that it says it goes on from.
    pub previous_file: Option<String>,
}

impl Closed {
    /// Whether its writer's first record of all begins it.
    fn begins(&self) -> bool {
        self.file.is_some() && self.previous_file.is_none()
    }
}

/// Files are missing between others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gap;

/// Puts closed files in the order in which they were written: each behind the one that it goes on from. Where one between is
/// missing, the writer's first goes before, and then numbers decide, which is wrong where a trail went back.
pub(super) fn in_order(mut closed: Vec<Closed>) -> Vec<Closed> {
    closed.sort_by(|one, other| (one.number, &one.path).cmp(&(other.number, &other.path)));
    let mut rows = rows_of(&closed);
    rows.sort_by_key(|row| row.first().map(|first| (!closed[*first].begins(), *first)));
    rows.into_iter().flatten().map(|file| closed[file].clone()).collect()
}

fn rows_of(closed: &[Closed]) -> Vec<Vec<usize>> {
    in_rows(&closed.iter().map(|it| (it.file.as_deref(), it.previous_file.as_deref())).collect::<Vec<_>>())
}

/// Finds the file that was closed last, of these in their order, so that another may go on from it.
///
/// `named` is the file that the lease names. If it is one of these, or one goes on from it, that row is the one to go on in;
/// if it is another writer's, it says nothing. Whoever has no lease never went back in numbers.
///
/// # Errors
/// Files are missing between these, and the order is not certain, or the lease names one before the gap.
pub(super) fn newest<'a>(closed: &'a [Closed], named: Option<&str>) -> Result<Option<&'a Closed>, Gap> {
    let Some(last) = closed.last() else { return Ok(None) };
    let rows = rows_of(closed);
    let Some(named) = named.filter(|_| rows.len() > 1) else { return Ok(Some(last)) };
    let names = |it: &Closed| [&it.file, &it.previous_file].into_iter().flatten().any(|file| file == named);
    let last_row: Vec<&Closed> =
        rows.iter().filter(|row| row.contains(&(closed.len() - 1))).flatten().map(|file| &closed[*file]).collect();
    let is_certain = if closed.iter().any(names) {
        last_row.iter().any(|it| names(it))
    } else {
        rows.len() == 2 && closed[0].begins() && last_row.first().is_some_and(|it| it.previous_file.is_some())
    };
    if is_certain { Ok(Some(last)) } else { Err(Gap) }
}

/// Finds for each file, of which its own name and the one that it goes on from are given, which one that is. Each is gone on
/// from once: of two that say so, the second goes on from none.
pub(super) fn follow(files: &[(Option<&str>, Option<&str>)]) -> Vec<Option<usize>> {
    let mut by_name = HashMap::new();
    for (number, (file, _)) in files.iter().enumerate() {
        if let Some(file) = file {
            by_name.entry(*file).or_insert(number);
        }
    }
    let mut is_followed = vec![false; files.len()];
    let previous = files.iter().enumerate().map(|(number, (_, previous))| {
        let previous = *by_name.get((*previous)?)?;
        let is_free = previous != number && !std::mem::replace(&mut is_followed[previous], true);
        is_free.then_some(previous)
    });
    previous.collect()
}

/// Puts files in rows: each row is what one writer wrote into one file after the other. Every file is in one of them, whatever
/// the files say of each other.
pub(super) fn in_rows(files: &[(Option<&str>, Option<&str>)]) -> Vec<Vec<usize>> {
    let previous = follow(files);
    let mut next = vec![None; files.len()];
    for (file, previous) in previous.iter().enumerate() {
        if let Some(previous) = previous {
            next[*previous] = Some(file);
        }
    }
    let mut is_placed = vec![false; files.len()];
    let mut rows = Vec::new();
    // Those that go on from none begin a row; what is left goes in a circle, which only a forger makes.
    let (begin, rest): (Vec<usize>, Vec<usize>) = (0..files.len()).partition(|file| previous[*file].is_none());
    for first in begin.into_iter().chain(rest) {
        let mut row = Vec::new();
        let mut at = Some(first);
        while let Some(file) = at.filter(|file| !is_placed[*file]) {
            is_placed[file] = true;
            row.push(file);
            at = next[file];
        }
        if !row.is_empty() {
            rows.push(row);
        }
    }
    rows
}

/// From which byte on each of these files is read, if no more than `bytes_max` of their end are, all together; none for those
/// of which nothing is. Given and returned in the order in which they were written.
pub(super) fn windows(lengths: &[u64], bytes_max: u64) -> Vec<Option<u64>> {
    let mut left = bytes_max;
    let mut windows: Vec<Option<u64>> = lengths
        .iter()
        .rev()
        .map(|length| {
            let taken = left.min(*length);
            left -= taken;
            (taken > 0).then(|| length - taken)
        })
        .collect();
    windows.reverse();
    windows
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn receipt(sequence: i64, digit: &str) -> Receipt {
        Receipt { sequence, digest: digit.repeat(64) }
    }

    #[test]
    fn a_closed_file_is_named_by_its_first_record_and_known_by_its_name() {
        for (open, closed) in [
            ("/a/audit.jsonl", "/a/audit.0000000000000042-aaaaaaaaaaaaaaaa.jsonl"),
            ("trail", "trail.0000000000000042-aaaaaaaaaaaaaaaa"),
            ("/a.b/x.y.z", "/a.b/x.y.0000000000000042-aaaaaaaaaaaaaaaa.z"),
            ("/a/.hidden", "/a/.hidden.0000000000000042-aaaaaaaaaaaaaaaa"),
        ] {
            let path = closed_path(Path::new(open), &receipt(42, "a"));
            assert_eq!(path, Path::new(closed));
            let named = closed_name(Path::new(open), &path);
            assert_eq!(named, Some((42, digits(&"a".repeat(64)))), "{open}");
        }
        for other in [
            "audit.jsonl",
            "audit.jsonl.torn-1",
            ".audit.jsonl.next",
            "audit.old.jsonl",
            "audit.42-aaaaaaaaaaaaaaaa.jsonl",
            "audit.0000000000000042-aaaaaaaaaaaaaaaA.jsonl",
            "audit.000000000000004x-aaaaaaaaaaaaaaaa.jsonl",
            "audit.0000000000000042-aaaaaaaaaaaaaaaa",
            "audit.0000000000000042-aaaaaaaaaaaaaaaa.jsonl.gz",
            "audit.b.0000000000000042-aaaaaaaaaaaaaaaa.jsonl",
            "other.0000000000000042-aaaaaaaaaaaaaaaa.jsonl",
        ] {
            assert_eq!(closed_name(Path::new("/a/audit.jsonl"), Path::new(other)), None, "{other}");
        }
    }

    #[test]
    fn of_a_folder_the_trails_files_are_read_and_nothing_that_was_never_confirmed() {
        for (name, is) in [
            ("audit.jsonl", true),
            ("audit.0000000000000042-aaaaaaaaaaaaaaaa.jsonl", true),
            ("old", true),
            ("audit.jsonl.torn-1", false),
            ("audit.jsonl.torn-999", false),
            ("audit.jsonl.torn-", true),
            ("audit.torn-1.jsonl", true),
            (".audit.jsonl.next", false),
        ] {
            assert_eq!(is_of_a_trail(&Path::new("/a/.b").join(name)), is, "{name}");
        }
        assert!(!is_of_a_trail(&next_path(Path::new("/a/audit.jsonl"))));
    }

    /// Closed files by number, own name, and the one that each goes on from.
    fn closed(files: &[(i64, &str, &str)]) -> Vec<Closed> {
        let name = |name: &str| (!name.is_empty()).then(|| name.to_owned());
        let closed = files.iter().map(|(number, file, previous)| Closed {
            path: PathBuf::from(file),
            number: *number,
            file: name(file),
            previous_file: name(previous),
        });
        in_order(closed.collect())
    }

    #[test]
    fn a_new_file_goes_on_from_the_one_closed_last_or_from_none_where_that_is_not_certain() {
        #[track_caller]
        fn check(files: &[(i64, &str, &str)], named: Option<&str>, expected: Result<Option<&str>, Gap>) {
            let closed = closed(files);
            let newest = newest(&closed, named).map(|it| it.and_then(|it| it.file.as_deref()));
            assert_eq!(newest, expected, "{files:?}, {named:?}");
        }
        let (foreign, last) = (Some("else"), Ok(Some("d")));
        check(&[], None, Ok(None));
        check(&[], foreign, Ok(None));
        // Nothing is missing between them, however numbers go.
        let whole = [(1, "a", ""), (900, "b", "a"), (500, "c", "b"), (700, "d", "c")];
        for named in [None, foreign, Some("a"), Some("d")] {
            check(&whole, named, last);
            check(&whole[1..], named, last);
            check(&whole[3..], named, last);
        }
        // The third is gone. The first of all says that it is; numbers would have "b" last.
        let gap = [whole[0], whole[1], whole[3]];
        for named in [None, foreign, Some("c"), Some("d")] {
            check(&gap, named, last);
        }
        check(&gap, Some("a"), Err(Gap));
        check(&gap, Some("b"), Err(Gap));
        // The first is gone, too: by numbers "b" is last, and it is not.
        let gaps = [whole[1], whole[3]];
        for named in [foreign, Some("d"), Some("c")] {
            check(&gaps, named, Err(Gap));
        }
        check(&gaps, Some("b"), Ok(Some("b")));
        // Who has no lease never went back.
        check(&[(1, "a", ""), (400, "b", "a"), (900, "d", "c"), (700, "x", "w")], None, last);
        check(&[(1, "a", ""), (400, "b", "a"), (900, "d", "c"), (700, "x", "w")], foreign, Err(Gap));
        check(&[(1, "a", ""), (400, "b", "")], foreign, Err(Gap));
    }

    #[test]
    fn a_file_is_full_before_it_would_grow_beyond_and_never_empty() {
        for (bytes, more, bytes_max, full) in [
            (0, 1, 0, false),
            (0, 100, 10, false),
            (1, 9, 10, false),
            (1, 10, 10, true),
            (10, 0, 10, false),
            (u64::MAX, u64::MAX, u64::MAX, false),
            (u64::MAX, 1, 10, true),
        ] {
            assert_eq!(is_full(bytes, more, bytes_max), full, "{bytes} and {more} of {bytes_max}");
        }
    }

    #[test]
    fn no_more_is_read_back_than_is_bounded_and_the_newest_first() {
        assert_eq!(windows(&[10, 20, 30], 100), [Some(0), Some(0), Some(0)]);
        assert_eq!(windows(&[10, 20, 30], 45), [None, Some(5), Some(0)]);
        assert_eq!(windows(&[10, 20, 30], 30), [None, None, Some(0)]);
        assert_eq!(windows(&[10, 0, 30], 7), [None, None, Some(23)]);
        assert_eq!(windows(&[10, 0, 30], 0), [None, None, None]);
    }

    #[test]
    fn files_that_go_in_a_circle_or_on_from_one_twice_are_all_in_some_row() {
        let a = (Some("a"), None);
        assert_eq!(in_rows(&[(Some("c"), Some("b")), (Some("b"), Some("a")), a]), [[2, 1, 0]]);
        assert_eq!(in_rows(&[a, (Some("b"), Some("a")), (Some("c"), Some("a"))]), [vec![0, 1], vec![2]]);
        assert_eq!(in_rows(&[(Some("a"), Some("b")), (Some("b"), Some("a"))]), [[0, 1]]);
        assert_eq!(in_rows(&[(Some("a"), Some("a")), (None, None)]), [[0], [1]]);
        assert_eq!(in_rows(&[a, a, (Some("b"), Some("a"))]), [vec![0, 2], vec![1]]);
    }

    proptest! {
        #[test]
        fn files_are_in_the_order_in_which_they_were_written_whatever_numbers_they_begin_with(
            numbers in prop::collection::vec(1..50_i64, 1..12),
            lost in prop::collection::vec(any::<bool>(), 12),
            seed in any::<u64>(),
        ) {
            let written: Vec<Closed> = numbers.iter().enumerate().map(|(it, number)| {
                let file = |it: usize| format!("{it:064x}");
                let first = Receipt { sequence: *number, digest: format!("{it:016x}{}", "0".repeat(48)) };
                Closed {
                    path: closed_path(Path::new("audit.jsonl"), &first),
                    number: *number,
                    file: Some(file(it)),
                    previous_file: it.checked_sub(1).map(file),
                }
            }).collect();
            let mut shuffled = written.clone();
            let length = shuffled.len();
            for at in 0..length {
                let step = usize::try_from((seed >> (at % 32)) % 97).unwrap();
                shuffled.swap(at, (at * 7 + step) % length);
            }
            prop_assert_eq!(&in_order(shuffled), &written);

            // Where some are gone, those that are left still stand behind what they go on from, and each is there once.
            let left: Vec<Closed> = written.iter().zip(&lost).filter(|(_, lost)| !**lost).map(|(it, _)| it.clone()).collect();
            let order = in_order(left.clone());
            prop_assert_eq!(order.len(), left.len());
            for (at, it) in order.iter().enumerate() {
                let before = order.iter().position(|other| other.file.is_some() && other.file == it.previous_file);
                prop_assert!(before.is_none_or(|before| before < at));
                prop_assert!(left.contains(it));
            }
        }

        #[test]
        fn every_file_is_in_one_row_and_behind_what_it_goes_on_from(
            files in prop::collection::vec((prop::option::of(0..8_u8), prop::option::of(0..8_u8)), 0..12),
        ) {
            let names: Vec<(Option<String>, Option<String>)> = files.iter()
                .map(|(file, previous)| (file.map(|it| it.to_string()), previous.map(|it| it.to_string()))).collect();
            let names: Vec<(Option<&str>, Option<&str>)> =
                names.iter().map(|(file, previous)| (file.as_deref(), previous.as_deref())).collect();
            let rows = in_rows(&names);
            let mut all: Vec<usize> = rows.iter().flatten().copied().collect();
            all.sort_unstable();
            prop_assert_eq!(all, (0..files.len()).collect::<Vec<_>>());
            for row in rows {
                for pair in row.windows(2) {
                    prop_assert!(names[pair[1]].1.is_some() && names[pair[1]].1 == names[pair[0]].0);
                }
            }
        }

        #[test]
        fn windows_are_the_end_of_all_files_together(
            lengths in prop::collection::vec(0..100_u64, 0..10), bytes_max in 0..500_u64,
        ) {
            let windows = windows(&lengths, bytes_max);
            let read: u64 = windows.iter().zip(&lengths).filter_map(|(from, length)| from.map(|from| length - from)).sum();
            prop_assert_eq!(read, bytes_max.min(lengths.iter().sum()));
            // What is read is in one piece, up to the end.
            let first = windows.iter().position(Option::is_some).unwrap_or(windows.len());
            for (at, (from, length)) in windows.iter().zip(&lengths).enumerate().skip(first) {
                prop_assert!(*from == Some(0) || at == first || *length == 0);
            }
        }
    }
}
