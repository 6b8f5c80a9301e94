//! Where the lines go: a file that can be taken back, or an output that cannot.

use std::fmt;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError};
use std::time::Duration;

use super::Receipt;
use super::files;

/// The few operations that a trail needs, each of which may fail, so that tests can make it fail.
pub(super) trait Store: Send {
    /// Checks, before a write, that this is still where we left off, `bytes` long.
    fn check(&mut self, bytes: u64) -> io::Result<()>;
    /// Writes some of `text` at `offset`, and returns how much.
    fn write_at(&mut self, text: &[u8], offset: u64) -> io::Result<usize>;
    /// Makes durable what was written.
    fn sync(&mut self) -> io::Result<()>;
    /// Takes back what was written after the first `bytes`.
    fn truncate(&mut self, bytes: u64) -> io::Result<()>;
    /// Closes what begins with this line, and goes on in something new and empty. What changed before an error, the next
    /// `check` puts back, or it fails.
    fn close(&mut self, first: &Receipt) -> io::Result<()>;
}

/// What is done to the names in a folder, each of which may fail, so that tests can make it fail, and see the order.
pub(super) trait Names: Send + fmt::Debug {
    fn create(&self, path: &Path) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    /// Makes durable what is in a file, before it gets another name.
    fn sync_file(&self, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    /// Makes durable the names in this file's folder.
    fn sync_folder_of(&self, path: &Path) -> io::Result<()> {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(parent)?.sync_all()
    }
}

/// The operating system's.
#[derive(Debug)]
pub(super) struct OnDisk;

impl Names for OnDisk {}

/// A file, and the lock on it, which goes when the file is closed.
#[derive(Debug)]
pub(super) struct FileStore {
    pub path: PathBuf,
    pub file: File,
    pub names: Box<dyn Names>,
    name: Name,
}

/// How it stands with the open file's name. Nothing is written before it is durable.
#[derive(Debug)]
enum Name {
    Durable,
    /// It has its name, and a power cut may take that.
    New,
    /// It may have its closed name already, and none has its path.
    Closing {
        path: PathBuf,
        closed: PathBuf,
    },
}

impl FileStore {
    /// A file that is open, at this path, which is durable.
    pub fn new(path: PathBuf, file: File, names: Box<dyn Names>) -> Self {
        FileStore { path, file, names, name: Name::Durable }
    }

    /// Returns whether the path still names the file that is open.
    ///
    /// A file that was removed or renamed takes writes as before, and whoever reads the path never sees them.
    pub fn is_at_its_path(&self) -> io::Result<bool> {
        let (open, named) = (self.file.metadata()?, std::fs::metadata(&self.path)?);
        Ok((open.dev(), open.ino()) == (named.dev(), named.ino()))
    }
}

impl Store for FileStore {
    /// Also puts back the name of a file that could not be closed, and makes names durable: a batch that a power cut tears
    /// is then in the file that has the path, and in no closed one.
    fn check(&mut self, bytes: u64) -> io::Result<()> {
        if let Name::Closing { path, closed } = &self.name
            && !fs::exists(path)?
        {
            self.names.rename(closed, path)?;
        }
        if !self.is_at_its_path()? {
            return Err(io::Error::other("another file was put in its place; put it back, or restart to begin there"));
        }
        if !matches!(self.name, Name::Durable) {
            self.names.sync_folder_of(&real(&self.path))?;
            self.name = Name::Durable;
        }
        let found = self.file.metadata()?.len();
        if found != bytes {
            let what = format!("it is {found} bytes long, but {bytes} were written; someone else writes to it");
            return Err(io::Error::other(what));
        }
        Ok(())
    }

    fn write_at(&mut self, text: &[u8], offset: u64) -> io::Result<usize> {
        self.file.write_at(text, offset)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn truncate(&mut self, bytes: u64) -> io::Result<()> {
        if self.file.metadata()?.len() < bytes {
            // Setting the length would fill it up with NUL bytes, and hide that.
            return Err(io::Error::other("durable lines were cut off by someone else; restart to have it looked at"));
        }
        self.file.set_len(bytes)
    }

    /// Two renames: the open file gets its closed name, and the next one, which is there and locked already, its path.
    ///
    /// ```text
    /// crash before the first   audit.jsonl is the full file, and is closed at the next batch
    /// between the two          no audit.jsonl: the next opening begins one that goes on from the file closed last
    /// after the second         audit.jsonl is empty: the same
    /// ```
    /// The first is durable before the second is done, so that none leaves the full file without a name. Nothing was
    /// written into the next file, so nothing of it can be lost. Its lock is held before it has its path, and the full one's
    /// until then: who comes in between finds one of them locked.
    fn close(&mut self, first: &Receipt) -> io::Result<()> {
        let path = real(&self.path);
        let (closed, next) = (files::closed_path(&path, first), files::next_path(&path));
        if fs::symlink_metadata(&closed).is_ok() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "a closed file has that name"));
        }
        match fs::remove_file(&next) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {} // of a crash: nobody was told of anything in it
        }
        self.names.sync_file(&self.file)?;
        let mode = self.file.metadata()?.permissions().mode() & 0o777;
        let file = self.names.create(&next)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.try_lock()?;
        self.name = Name::Closing { path: path.clone(), closed: closed.clone() };
        self.names.rename(&path, &closed)?;
        self.names.sync_folder_of(&path)?;
        self.names.rename(&next, &path)?;
        let full = std::mem::replace(&mut self.file, file);
        self.name = Name::New;
        // A manner, and no protection: whoever may write the folder may change it back.
        let _ = full.set_permissions(Permissions::from_mode(mode & !0o222));
        Ok(())
    }
}

/// The file itself, where a path is a link to it: its folder is where the others are.
pub(super) fn real(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

/// An output such as a pipe: what it took is as durable as it gets, and cannot be taken back.
///
/// After a line was torn by a failed write, the trail on it stays unavailable until it is opened anew.
#[derive(Debug)]
pub(super) struct OutputStore<W> {
    output: W,
    bytes_taken: u64,
}

impl<W: Write> OutputStore<W> {
    pub fn new(output: W) -> Self {
        OutputStore { output, bytes_taken: 0 }
    }
}

impl<W: Write + Send> Store for OutputStore<W> {
    fn check(&mut self, _bytes: u64) -> io::Result<()> {
        Ok(())
    }

    fn write_at(&mut self, text: &[u8], _offset: u64) -> io::Result<usize> {
        let taken = self.output.write(text)?;
        self.bytes_taken += taken as u64;
        Ok(taken)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.output.flush()
    }

    fn truncate(&mut self, bytes: u64) -> io::Result<()> {
        if bytes == self.bytes_taken {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::Unsupported, "it broke off, and an output cannot be taken back; restart"))
    }

    fn close(&mut self, _first: &Receipt) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Standard output without the buffer of `std`, which after an error does not say what it kept.
#[derive(Debug)]
pub(super) struct StandardOutput(File);

impl StandardOutput {
    pub fn new() -> io::Result<Self> {
        Ok(StandardOutput(File::from(io::stdout().as_fd().try_clone_to_owned()?)))
    }
}

impl Write for StandardOutput {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        let mut shared = io::stdout().lock(); // so that no line of others begins amid ours
        shared.flush()?;
        self.0.write(text)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How many writes may wait for a slow standard output. One is rarely more than some records; then the copy has a
/// hole, which `Stats::copies_dropped` counts; the file has all.
const COPY_QUEUE_MAX: usize = 64;
/// How long closing waits for the copy: an output that nobody reads must not hold up an exit.
const COPY_CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Copies durable lines to an output, on a thread of its own: one that blocks never holds up the file.
#[derive(Debug)]
pub(super) struct Copier {
    queue: SyncSender<String>,
    done: Receiver<()>,
}

impl Copier {
    pub fn start(mut output: impl Write + Send + 'static) -> io::Result<Self> {
        let (queue, texts) = mpsc::sync_channel::<String>(COPY_QUEUE_MAX);
        let (done_sender, done) = mpsc::channel();
        std::thread::Builder::new().name("audit-copy".into()).spawn(move || {
            for text in texts {
                if output.write_all(text.as_bytes()).and_then(|()| output.flush()).is_err() {
                    break; // the queue closes, and what comes is counted as dropped
                }
            }
            drop(done_sender);
        })?;
        Ok(Copier { queue, done })
    }

    /// Hands over whole lines. Returns whether they were taken.
    pub fn copy(&self, text: String) -> bool {
        match self.queue.try_send(text) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
        }
    }

    /// Waits until all is copied, at most `COPY_CLOSE_TIMEOUT`.
    pub fn close(self) {
        let Copier { queue, done } = self;
        drop(queue);
        let _ = done.recv_timeout(COPY_CLOSE_TIMEOUT); // ends by disconnection
    }
}
