//! What `instance-access audit verify` tells of one trail, or of several.

use std::collections::HashMap;
use std::error::Error;
use std::io::Write;

use crate::audit::{self, Expectation, Finding, Receipt};
use crate::config::{TrailFiles, VerifyArgs};

/// Verifies each trail by itself, and that none is a copy of another; writes what was found to `out`.
///
/// # Errors
/// Why the only trail does not verify, or how many of several do not; or what is wrong with a record of `--after`, which is
/// looked for in all of them.
pub fn tell(args: VerifyArgs, out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    let VerifyArgs { files, trail, head, after, fork } = args;
    let expectation = || Expectation { after: after.clone(), ..Expectation::default() };
    let first = (!files.is_empty()).then(|| (files, Expectation { heads: head, forks: fork, ..expectation() }));
    let others = trail.into_iter().map(|TrailFiles(files)| (files, expectation()));
    let trails: Vec<_> = first.into_iter().chain(others).collect();
    let (number, mut failed, mut firsts) = (trails.len(), 0, HashMap::new());
    let mut unused = Vec::new();
    for (files, expect) in trails {
        let names = files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", ");
        if number > 1 {
            writeln!(out, "== {names}")?;
        }
        let finding = match audit::verify_files(&files, expect) {
            // A copy of another's trail verifies as well as that one does, and hides its own.
            Ok(summary) => match summary.first.clone().and_then(|first| firsts.insert(first, names)) {
                Some(other) => format!("it begins as {other} does: one is a copy of the other"),
                None => {
                    write!(out, "{summary}")?;
                    unused.push(summary.unused);
                    continue;
                }
            },
            Err(error) if number == 1 => return Err(error.into()),
            Err(error) => error.to_string(),
        };
        // The others may tell what this one does not.
        failed += 1;
        writeln!(out, "not verified: {finding}")?;
    }
    if failed > 0 {
        Err(format!("{failed} of {number} trails do not verify").into())
    } else {
        each_is_used_once(&after, &unused)
    }
}

/// Checks that one trail goes on from each record of `--after`, given those that each trail had no use for.
fn each_is_used_once(after: &[Receipt], unused: &[Vec<Receipt>]) -> Result<(), Box<dyn Error>> {
    for after in after {
        match unused.iter().filter(|unused| !unused.contains(after)).count() {
            0 => return Err(Finding::NoAfter { after: after.clone() }.to_string().into()),
            1 => {}
            _ => {
                return Err(format!(
                    "two trails go on from record {after} of --after, which is in one: one of them is another's"
                )
                .into());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use jiff::Timestamp;

    use super::*;
    use crate::audit::{Begin, Limits, Sinks, Trail};

    /// Writes a trail of some files into a folder, ships all but the last three, and returns the last records of those.
    async fn shipped(folder: &Path, kind: &str) -> Vec<Receipt> {
        let now = Timestamp::UNIX_EPOCH;
        let sinks = Sinks { file: Some(folder.join("audit.jsonl")), stdout: false };
        let limits = Limits { file_bytes_max: Some(1500), ..Limits::default() };
        let begin = Begin { now, known_head: None, leader: None };
        let (trail, _) = Trail::open(sinks, limits, begin).await.unwrap();
        for number in 0..20 {
            trail.append(serde_json::json!({"kind": kind, "number": number}), now).await.unwrap();
        }
        trail.close().await;
        // The open one sorts behind those with a number.
        let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files.truncate(files.len() - 3);
        files.into_iter().map(|path| ship(&path)).collect()
    }

    fn ship(path: &Path) -> Receipt {
        let text = fs::read_to_string(path).unwrap();
        fs::remove_file(path).unwrap();
        let line: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        format!("{}:{}", line["sequence"], line["digest"].as_str().unwrap()).parse().unwrap()
    }

    fn told(files: &[&Path], trails: &[&Path], after: &[&Receipt]) -> (String, Result<(), String>) {
        let args = VerifyArgs {
            files: files.iter().map(|path| path.to_path_buf()).collect(),
            trail: trails.iter().map(|path| TrailFiles(vec![path.to_path_buf()])).collect(),
            head: Vec::new(),
            after: after.iter().map(|note| (*note).clone()).collect(),
            fork: Vec::new(),
        };
        let mut out = Vec::new();
        let result = tell(args, &mut out).map_err(|error| error.to_string());
        (String::from_utf8(out).unwrap(), result)
    }

    #[tokio::test]
    async fn a_note_is_that_of_whichever_trail_goes_on_from_it_and_one_that_none_needs_is_told() {
        let (one, other, whole) =
            (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let notes = shipped(one.path(), "One").await;
        let others = shipped(other.path(), "Other").await;
        let sinks = Sinks { file: Some(whole.path().join("audit.jsonl")), stdout: false };
        let begin = Begin { now: Timestamp::UNIX_EPOCH, known_head: None, leader: None };
        Trail::open(sinks, Limits::default(), begin).await.unwrap().0.close().await;
        let (one, other, whole) = (one.path(), other.path(), whole.path());
        let [.., stale, needed] = &notes[..] else { panic!("{notes:?}") };
        let gateways = others.last().unwrap();

        // Whatever stands first, and beside one that was never shipped.
        for (first, trails) in [(one, [other, whole]), (other, [whole, one]), (whole, [one, other])] {
            let (out, result) = told(&[first], &trails, &[needed, gateways]);
            assert_eq!(result, Ok(()), "{out}");
            assert!(out.contains(&format!("it goes on from {gateways}, which is in none of the files")), "{out}");
        }
        assert_eq!(told(&[], &[other], &[gateways]).1, Ok(()));
        let (out, result) = told(&[one], &[other], &[needed]);
        assert_eq!(result, Err("1 of 2 trails do not verify".to_owned()));
        assert!(out.contains("not verified: ") && out.contains("from here on it is another trail"), "{out}");

        let told_of = format!("--after names record {stale}, and nothing goes on from it");
        for (first, trails, after) in [
            (one, vec![], vec![stale, needed]),
            (one, vec![other], vec![stale, needed, gateways]),
            (whole, vec![], vec![stale]),
        ] {
            let (out, result) = told(&[first], &trails, &after);
            assert!(result.as_ref().is_err_and(|error| error.starts_with(&told_of)), "{result:?} {out}");
        }
        // Two trails that go on from one record are not two.
        let note = stale.clone();
        assert_eq!(
            each_is_used_once(std::slice::from_ref(&note), &[vec![], vec![]]).unwrap_err().to_string(),
            format!("two trails go on from record {note} of --after, which is in one: one of them is another's")
        );
        assert!(each_is_used_once(std::slice::from_ref(&note), &[vec![note.clone()], vec![]]).is_ok());
    }
}
