//! Reads a trail's records back, from a time on: what was said is remembered when the one whom it was said to forgot it.
//!
//! Nothing is verified here beyond what `open` verifies. What does not read as a line is left out: it is the torn end of a
//! crash, or says nothing to anybody.

use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::files;
use super::line::LINE_BYTES_MAX;
use super::tail::{closed_back, goes_on_from};

/// How much of the end of the trail is read, whatever files it stands in: half a million records. Measured with what the controller makes of them: 1.4 to
/// 3.6 s, on two cores that had much else to do.
pub(super) const READ_BYTES_MAX: u64 = 512 << 20;

/// How far back it went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadBack {
    /// The records that were told.
    pub records: u64,
    /// Set, if there is more since that time than is read: when the oldest record is from that was told.
    pub cut_off: Option<Timestamp>,
}

#[derive(Deserialize)]
struct Line<'a> {
    time: Timestamp,
    #[serde(borrow)]
    record: &'a RawValue,
}

/// Tells the records of this file, and of those beside it that were full, which were written at that time or later, in their
/// order. Blocks.
///
/// A file that is not there has none. Times that go back a little, by a clock that was set, may cost the records between.
///
/// # Errors
/// A file that is there and cannot be read.
pub fn read_back(open: &Path, since: Timestamp, tell: impl FnMut(Timestamp, &str)) -> io::Result<ReadBack> {
    let closed = closed_back(open, READ_BYTES_MAX, None)?;
    // Whoever ships closed files has taken those before.
    let is_more_before = match closed.first() {
        Some(closed) => closed.previous_file.is_some(),
        None => goes_on_from(open)?.is_some(),
    };
    let mut files: Vec<PathBuf> = closed.into_iter().map(|closed| closed.path).collect();
    files.push(open.to_owned());
    read_back_within(&files, is_more_before, since, READ_BYTES_MAX, tell)
}

/// The same of these files, the newest last, and no more than so many bytes of their end.
fn read_back_within(
    files: &[PathBuf],
    is_more_before: bool,
    since: Timestamp,
    bytes_max: u64,
    mut tell: impl FnMut(Timestamp, &str),
) -> io::Result<ReadBack> {
    let mut read = ReadBack::default();
    let lengths = files.iter().map(|path| match std::fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(0),
        metadata => Ok(metadata?.len()),
    });
    let lengths = lengths.collect::<io::Result<Vec<u64>>>()?;
    // Whether there is more before what is read, and nothing says yet that it is older than was asked for.
    let mut is_cut_off = is_more_before;
    for ((path, bytes), earliest) in files.iter().zip(&lengths).zip(files::windows(&lengths, bytes_max)) {
        let Some(earliest) = earliest else {
            is_cut_off |= *bytes > 0;
            continue;
        };
        let file = match File::open(path) {
            // Whoever ships closed files was there.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            opened => opened?,
        };
        let mut reader = BufReader::with_capacity(256 << 10, file);
        let begin = first_since(&mut reader, earliest, *bytes, since)?;
        is_cut_off = begin == earliest && (is_cut_off || earliest > 0);
        line_from(&mut reader, begin)?;
        let mut line = Vec::new();
        while next_line(&mut reader, &mut line)? > 0 {
            let Ok(Line { time, record }) = serde_json::from_slice(&line) else { continue };
            if time < since {
                is_cut_off = false;
                continue;
            }
            if std::mem::take(&mut is_cut_off) {
                read.cut_off = read.cut_off.max(Some(time));
            }
            read.records += 1;
            tell(time, record.get());
        }
    }
    Ok(read)
}

/// Finds a byte, not before `earliest`, from which on all lines are that young, or almost.
fn first_since(reader: &mut BufReader<File>, earliest: u64, end: u64, since: Timestamp) -> io::Result<u64> {
    let (mut old, mut young) = (earliest, end);
    let mut line = Vec::new();
    // Nearer than a line there is nothing to find.
    while young - old > LINE_BYTES_MAX as u64 {
        let middle = old + (young - old) / 2;
        line_from(reader, middle)?;
        next_line(reader, &mut line)?;
        match serde_json::from_slice::<Line<'_>>(&line) {
            Ok(Line { time, .. }) if time < since => old = middle,
            Ok(_) | Err(_) => young = middle,
        }
    }
    Ok(old)
}

/// Goes to the first line that begins at this byte or behind it.
fn line_from(reader: &mut BufReader<File>, byte: u64) -> io::Result<()> {
    reader.seek(SeekFrom::Start(byte.saturating_sub(1)))?;
    if byte > 0 {
        reader.skip_until(b'\n')?;
    }
    Ok(())
}

/// Reads a line, bounded. Returns its bytes; none at the end.
fn next_line(reader: &mut BufReader<File>, line: &mut Vec<u8>) -> io::Result<usize> {
    line.clear();
    reader.by_ref().take(LINE_BYTES_MAX as u64 + 1).read_until(b'\n', line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn line(second: i64) -> String {
        let digest = "0".repeat(64);
        format!(
            "{{\"sequence\":{second},\"time\":\"{}\",\"previousDigest\":\"{digest}\",\"digest\":\"{digest}\",\"record\":{{\"n\":{second}}}}}\n",
            at(second)
        )
    }

    fn told(files: &[PathBuf], since: i64, bytes_max: u64) -> (Vec<i64>, ReadBack) {
        let mut told = Vec::new();
        let read = read_back_within(files, false, at(since), bytes_max, |time, record| {
            assert_eq!(record, format!("{{\"n\":{}}}", time.as_second()));
            told.push(time.as_second());
        });
        (told, read.unwrap())
    }

    #[test]
    fn the_records_since_a_time_are_told_in_order_over_several_files() {
        let dir = tempfile::tempdir().unwrap();
        let files = ["one", "two", "missing"].map(|name| dir.path().join(name));
        std::fs::write(&files[0], (1..=50).map(line).collect::<String>()).unwrap();
        std::fs::write(&files[1], (51..=60).map(line).collect::<String>() + "junk\n" + &line(61) + "{\"seq").unwrap();
        for since in [0, 1, 2, 30, 50, 51, 61, 62] {
            let (told, read) = told(&files, since, u64::MAX);
            assert_eq!(told, (since.max(1)..=61).collect::<Vec<_>>());
            assert_eq!(read, ReadBack { records: told.len() as u64, cut_off: None });
        }
    }

    #[test]
    fn of_a_long_file_no_more_is_read_than_is_young_or_than_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let files = [dir.path().join("long")];
        let text: String = (1..=20_000).map(line).collect();
        assert!(text.len() > 4 * LINE_BYTES_MAX);
        std::fs::write(&files[0], &text).unwrap();
        for since in [0, 1, 7_777, 15_000, 20_000, 20_001] {
            let (told, read) = told(&files, since, u64::MAX);
            assert_eq!(told, (since.max(1)..=20_000).collect::<Vec<_>>(), "since {since}");
            assert_eq!(read.cut_off, None);
        }
        let half = text.len() as u64 / 2;
        let (all, read) = told(&files, 1, half);
        assert_eq!((all.last(), read.cut_off), (Some(&20_000), Some(at(all[0]))));
        assert!(all.len() < 11_000 && all.len() as u64 == read.records);
        let (young, read) = told(&files, 19_000, half);
        assert_eq!((young.len(), read.cut_off), (1_001, None), "what was cut off is older than was asked for");
    }

    #[test]
    fn of_several_files_the_end_of_all_together_is_read_and_what_is_missing_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let files = ["one", "two", "three"].map(|name| dir.path().join(name));
        let texts = [1..=1000, 1001..=2000, 2001..=3000].map(|seconds| seconds.map(line).collect::<String>());
        for (file, text) in files.iter().zip(&texts) {
            std::fs::write(file, text).unwrap();
        }
        let lengths = texts.each_ref().map(|text| text.len() as u64);
        // (bytes that are read, since, the oldest that is told, whether it says that more was asked for)
        for (bytes_max, since, oldest, cut_off) in [
            (u64::MAX, 0, 1, false),
            (lengths[1] + lengths[2], 0, 1001, true),
            (lengths[1] + lengths[2], 1001, 1001, true),
            (lengths[1] + lengths[2], 1002, 1002, false),
            (lengths[1] + lengths[2], 2500, 2500, false),
            (lengths[2], 1500, 2001, true),
            (lengths[2], 2001, 2001, true),
            (lengths[2], 2002, 2002, false),
        ] {
            let (told, read) = told(&files, since, bytes_max);
            assert_eq!(told, (oldest..=3000).collect::<Vec<_>>(), "{bytes_max} bytes since {since}");
            assert_eq!(read.cut_off, cut_off.then(|| at(oldest)), "{bytes_max} bytes since {since}");
        }
    }

    #[test]
    fn a_line_without_an_end_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let files = [dir.path().join("endless")];
        std::fs::write(&files[0], "x".repeat(3 * LINE_BYTES_MAX) + "\n" + &line(5)).unwrap();
        assert_eq!(told(&files, 0, u64::MAX).0, [5]);
    }
}
