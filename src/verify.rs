//! What `instance-access audit verify` tells of one trail, or of several.

use std::collections::HashMap;
use std::error::Error;
use std::io::Write;

use crate::audit::{self, Expectation};
use crate::config::{TrailFiles, VerifyArgs};

/// Verifies each trail by itself, and that none is a copy of another; writes what was found to `out`.
///
/// # Errors
/// Why the only trail does not verify, or how many of several do not.
pub fn tell(args: VerifyArgs, out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    let VerifyArgs { files, trail, head, after, fork } = args;
    let first = (!files.is_empty()).then_some((files, Expectation { after, heads: head, forks: fork }));
    let others = trail.into_iter().map(|TrailFiles(files)| (files, Expectation::default()));
    let trails: Vec<_> = first.into_iter().chain(others).collect();
    let (number, mut failed, mut firsts) = (trails.len(), 0, HashMap::new());
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
    if failed > 0 { Err(format!("{failed} of {number} trails do not verify").into()) } else { Ok(()) }
}
