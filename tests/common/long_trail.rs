//! A trail as long use leaves it: its file is nearly full, without hours of waiting.

use std::path::{Path, PathBuf};

use instance_access::audit::{Begin, Limits, Sinks, Trail};
use jiff::Timestamp;
use serde_json::json;

/// The size at which the programs of these tests close a file: the smallest that they take.
pub const FILE_BYTES_MAX: u64 = 1 << 20;

/// Adds records to a trail that nobody writes, until its file has more bytes than one may have.
pub async fn lengthen(path: &Path) -> anyhow::Result<()> {
    let sinks = Sinks { file: Some(path.to_owned()), stdout: false };
    let begin = Begin { now: Timestamp::now(), known_head: None, leader: None };
    let (trail, _) = Trail::open(sinks, Limits::default(), begin).await?;
    while std::fs::metadata(path)?.len() <= FILE_BYTES_MAX {
        trail.append(json!({"kind": "Filler", "text": "x".repeat(32 << 10)}), Timestamp::now()).await?;
    }
    trail.close().await;
    Ok(())
}

/// All files of the trail whose open file this is.
pub fn files(open: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let stem = format!("{}.", open.file_stem().unwrap_or_default().display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(open.parent().unwrap_or(Path::new(".")))? {
        let name = entry?.file_name().display().to_string();
        if name.starts_with(&stem) && name.ends_with(".jsonl") {
            files.push(open.with_file_name(name));
        }
    }
    Ok(files)
}
