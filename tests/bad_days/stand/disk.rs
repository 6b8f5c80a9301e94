//! A disk that can be full.
//!
//! As root a tiny tmpfs, in a mount namespace that goes with the last process in it: nothing is left to unmount. As an
//! ordinary user a limit on the size of files, which the process meets in the same place.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::Context;

/// The size of the tmpfs: room for a log and some records.
const SIZE: &str = "size=4m";

/// A small disk.
pub struct Disk {
    dir: tempfile::TempDir,
    /// The process whose mount namespace has the tmpfs; without, there is none.
    holder: Option<Child>,
}

impl Disk {
    /// Makes one.
    pub fn new() -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let is_root = fs::metadata("/proc/self").is_ok_and(|it| std::os::unix::fs::MetadataExt::uid(&it) == 0);
        let mut disk = Self { dir, holder: None };
        if is_root {
            let script =
                format!("mount -t tmpfs -o {SIZE} none '{}' && echo mounted && exec cat", disk.dir().display());
            // It ends with us: `cat` reads our end of a pipe.
            let mut holder = Command::new("unshare")
                .args(["--mount", "--propagation", "private", "sh", "-c", &script])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .context("unshare")?;
            let mut said = [0; 8];
            std::io::Read::read_exact(holder.stdout.as_mut().context("piped")?, &mut said)
                .context("mounting a tmpfs")?;
            disk.holder = Some(holder);
        }
        Ok(disk)
    }

    /// Where it is, for processes on it.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The same path, from here.
    pub fn outside(&self, path: &Path) -> PathBuf {
        match &self.holder {
            Some(holder) => PathBuf::from(format!("/proc/{}/root{}", holder.id(), path.display())),
            None => path.to_owned(),
        }
    }

    /// A command that sees the disk.
    pub fn command(&self, program: &str) -> Command {
        match &self.holder {
            Some(holder) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--mount=/proc/{}/ns/mnt", holder.id())).arg(program);
                command
            }
            None => {
                // The signal of a file that is too long would kill it; a full disk sends none.
                let mut command = Command::new("sh");
                command.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\"", program]);
                command
            }
        }
    }

    /// Fills it up to the last byte.
    pub fn fill(&self, pid: Option<u32>, audit: &Path) -> anyhow::Result<()> {
        if self.holder.is_none() {
            let size = fs::metadata(self.outside(audit))?.len();
            return limit(pid, &size.to_string());
        }
        let filler = self.outside(&self.dir().join("filler"));
        let mut file = fs::File::options().create(true).append(true).open(filler)?;
        for size in [65536, 4096, 1] {
            while std::io::Write::write_all(&mut file, &vec![b'x'; size]).is_ok() {}
        }
        // What is left of the audit file's last page is room as well: it takes a record or two.
        Ok(())
    }

    /// Makes room.
    pub fn free(&self, pid: Option<u32>) -> anyhow::Result<()> {
        match &self.holder {
            Some(_) => Ok(fs::remove_file(self.outside(&self.dir().join("filler")))?),
            None => limit(pid, "unlimited"),
        }
    }
}

fn limit(pid: Option<u32>, size: &str) -> anyhow::Result<()> {
    let pid = pid.context("a running controller")?;
    let done =
        Command::new("prlimit").args(["--pid", &pid.to_string(), &format!("--fsize={size}:unlimited")]).status()?;
    anyhow::ensure!(done.success(), "prlimit");
    Ok(())
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Some(holder) = &mut self.holder {
            let _ = holder.kill();
            let _ = holder.wait();
        }
    }
}
