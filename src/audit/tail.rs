//! The end of a file that an earlier writer left: found, verified, and mended if a crash tore it.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::files::{self, Closed};
use super::line::{self, ENVELOPE_BYTES_MAX, LINE_BYTES_MAX, Link};
use super::memory::READ_BYTES_MAX;
use super::open::{OpenError, Torn, failed};
use super::store::{FileStore, Names, real};
use super::trail::{BATCH_BYTES_MAX, BATCH_RECORDS_MAX};
use super::verify::{Joint, compare, follows_in_file};
use super::{Finding, Receipt};

/// How much of a file's end is read: a batch that a crash may have torn, and the whole line before it.
const TAIL_BYTES_MAX: u64 = 16 << 20;
const _: () = assert!(
    TAIL_BYTES_MAX as usize > BATCH_BYTES_MAX + BATCH_RECORDS_MAX * ENVELOPE_BYTES_MAX + 2 * (LINE_BYTES_MAX + 1)
);
/// How many torn pieces may lie beside a file: more than any number of crashes that nobody looked into.
pub(super) const TORN_FILES_MAX: u32 = 999;

/// The end of a store, whole and durable.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub head: Option<Receipt>,
    pub bytes: u64,
    pub torn: Option<Torn>,
    /// The first line, which tells this file from others; none for a new one, or where the first line is none.
    pub first: Option<Receipt>,
    /// Of a new one beside closed ones: which it goes on from, namely the one that ends with the head.
    pub previous_file: Option<String>,
    /// Whether the head that is known stands in this file, if it does anywhere.
    pub is_known: bool,
    /// The term that its last line opens, if it does, and what that continues.
    pub opens: Option<(i64, Receipt)>,
}

/// Opens the file, or creates it, as its one writer.
pub(super) fn lock(path: PathBuf, names: Box<dyn Names>, sink: &Arc<str>) -> Result<FileStore, OpenError> {
    if path.is_dir() {
        return Err(OpenError::NotAFile { path });
    }
    let file = match OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(OpenError::NoDirectory { path });
        }
        opened => opened.map_err(failed(sink, "open the file"))?,
    };
    if !file.metadata().map_err(failed(sink, "look at the file"))?.is_file() {
        return Err(OpenError::NotAFile { path });
    }
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(OpenError::Locked { path }),
        Err(TryLockError::Error(source)) => return Err(failed(sink, "lock the file")(source)),
    }
    let store = FileStore::new(path, file, names);
    // Between opening and locking, the writer before us may have been told to move it.
    match store.is_at_its_path() {
        Ok(true) => Ok(store),
        Ok(false) => Err(failed(sink, "keep hold of the file")(io::Error::other("it was replaced; open it again"))),
        Err(source) => Err(failed(sink, "look at the file")(source)),
    }
}

/// The files that were closed beside the open one, in the order in which they were written: all of them.
pub(super) fn closed_beside(open: &Path) -> io::Result<Vec<Closed>> {
    let names = closed_names(&real(open))?;
    Ok(files::in_order(names.into_iter().filter_map(|(_, path, number)| closed_at(path, number)).collect()))
}

/// The same, but no more of them than it takes to `bytes_min` bytes, back from the open one, and the one that is `named`.
///
/// Each names the one before, by what is in that one's name. All are opened only where that leads nowhere: one is missing
/// between others or was renamed, or the open one has no line yet.
pub(super) fn closed_back(open: &Path, bytes_min: u64, named: Option<&str>) -> io::Result<Vec<Closed>> {
    let open = real(open);
    let names = closed_names(&open)?;
    let all = names.len();
    let mut names: HashMap<_, _> = names.into_iter().map(|(digits, path, number)| (digits, (path, number))).collect();
    let mut take = |file: &str| {
        let (path, number) = names.remove(files::digits(file))?;
        closed_at(path, number).filter(|closed| closed.file.as_deref() == Some(file))
    };
    let (mut back, mut bytes) = (Vec::new(), 0);
    let mut before = goes_on_from(&open)?;
    while bytes < bytes_min
        && let Some(closed) = before.as_deref().and_then(&mut take)
    {
        bytes = bytes.saturating_add(std::fs::metadata(&closed.path).map_or(0, |it| it.len()));
        before.clone_from(&closed.previous_file);
        back.push(closed);
    }
    let is_known = |file: &str| back.iter().any(|closed| closed.file.as_deref() == Some(file));
    let named = named.filter(|file| !is_known(file)).and_then(&mut take);
    if bytes < bytes_min && back.len() < all {
        return closed_beside(&open);
    }
    back.extend(named);
    back.reverse();
    Ok(back)
}

/// The file that another, if it is there, begins by naming as the one before it.
pub(super) fn goes_on_from(path: &Path) -> io::Result<Option<String>> {
    match File::open(path).and_then(|file| first_line(&file)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        first => Ok(first?.and_then(|link| link.previous_file().map(str::to_owned))),
    }
}

/// What has the name of a closed file of this open one, with the digits and the number in it.
fn closed_names(open: &Path) -> io::Result<Vec<(String, PathBuf, i64)>> {
    let directory = open.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let path = entry.path();
        if let Some((number, digits)) = files::closed_name(open, &path)
            && entry.file_type()?.is_file()
        {
            names.push((digits.to_owned(), path, number));
        }
    }
    Ok(names)
}

/// A closed file, by its first line; none, if whoever ships closed files was there.
fn closed_at(path: PathBuf, number: i64) -> Option<Closed> {
    let first = match File::open(&path).and_then(|file| first_line(&file)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        // What it says matters only if it is the last one, and then it is opened again.
        first => first.ok().flatten(),
    };
    let previous_file = first.as_ref().and_then(|link| link.previous_file().map(str::to_owned));
    Some(Closed { path, number, file: first.map(|link| link.receipt.digest), previous_file })
}

/// What a crash may have left undone of closing a file: nobody writes to it any more. A manner, and no protection.
fn set_readonly(path: &Path, is_readonly: bool) {
    if let Ok(metadata) = std::fs::metadata(path) {
        let mode = metadata.permissions().mode();
        let mode = if is_readonly { mode & !0o222 } else { mode | 0o200 };
        let _ = std::fs::set_permissions(path, Permissions::from_mode(mode));
    }
}

/// The end of a closed file.
struct ClosedEnd {
    file: File,
    start: u64,
    text: Vec<u8>,
    tail: Tail,
}

impl ClosedEnd {
    /// Reads it, and misses the head that is known to stand in it.
    fn of(path: &Path, known: Option<&Receipt>, sink: &Arc<str>) -> Result<Self, OpenError> {
        let file = File::open(path).map_err(failed(sink, "open the file closed last"))?;
        // Its writer lets go of it when the next file has its place.
        match file.try_lock_shared() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::Locked { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(failed(sink, "lock the file closed last")(source)),
        }
        let broken = |offset, finding| OpenError::Broken { path: path.to_owned(), offset, finding };
        let (start, text) = end(&file).map_err(failed(sink, "read the file closed last"))?;
        let tail = tail(&text, start > 0, known).map_err(|(at, finding)| broken(start + at as u64, finding))?;
        match (known, &tail.head) {
            (_, None) => Err(broken(start + tail.whole as u64, Finding::Torn)),
            (Some(known), Some(head)) if head.sequence < known.sequence => {
                Err(OpenError::Behind { path: path.to_owned(), found: head.sequence, known: known.sequence })
            }
            _ => Ok(ClosedEnd { file, start, text, tail }),
        }
    }

    fn is_whole(&self) -> bool {
        self.tail.whole == self.text.len() && !self.tail.newline_missing
    }

    /// Refuses one that is not as whoever closed it leaves it.
    fn whole(self, path: &Path) -> Result<Self, OpenError> {
        if self.is_whole() {
            return Ok(self);
        }
        let offset = self.start + self.tail.whole as u64;
        Err(OpenError::Broken { path: path.to_owned(), offset, finding: Finding::Torn })
    }

    /// Makes it something to build on: a file that could not be closed, and whose own name was not durable yet, may have its
    /// closed one and the end of a torn batch.
    fn mend(self, path: &Path, names: &dyn Names, sink: &Arc<str>) -> Result<(Tail, Option<Torn>), OpenError> {
        let file = if self.is_whole() {
            self.file
        } else {
            set_readonly(path, false);
            OpenOptions::new().write(true).open(path).map_err(failed(sink, "write to the file closed last"))?
        };
        let (torn, _) = make_whole(path, &file, (self.start, &self.text), &self.tail, names, sink)?;
        Ok((self.tail, torn))
    }
}

/// Reads the end of a file, and says where it begins.
fn end(file: &File) -> io::Result<(u64, Vec<u8>)> {
    let bytes = file.metadata()?.len();
    let start = bytes.saturating_sub(TAIL_BYTES_MAX);
    let mut text = vec![0; usize::try_from(bytes - start).unwrap_or(0)]; // at most TAIL_BYTES_MAX
    file.read_exact_at(&mut text, start)?;
    Ok((start, text))
}

/// Finds the head of a file that is locked, and leaves whole durable lines only.
///
/// In an order in which a crash loses nothing: the torn end is copied and the copy synced before it is cut off. A file without
/// a line, beside closed ones, goes on from the one that was closed last: a crash came between two files.
pub(super) fn mend(
    store: &FileStore,
    known: Option<&Receipt>,
    head_file: Option<&str>,
    sink: &Arc<str>,
) -> Result<Found, OpenError> {
    let FileStore { path, file, names, .. } = store;
    let closed =
        closed_back(path, READ_BYTES_MAX, head_file).map_err(failed(sink, "look for closed files beside it"))?;
    let first = first_line(file).map_err(failed(sink, "read the file's beginning"))?;
    let name = first.as_ref().map(|link| link.receipt.digest.as_str());
    // A lease that was renewed before a file was full names that one. One that was shipped since, the next one names.
    let is_named = |file: Option<&str>| file.is_some() && file == head_file;
    let closed_known = closed.iter().find(|it| is_named(it.file.as_deref()));
    let is_in_open = head_file.is_none() || head_file == name;
    let is_known = is_in_open
        || closed_known.is_some()
        || is_named(first.as_ref().and_then(|link| link.previous_file()))
        || closed.iter().any(|it| is_named(it.previous_file.as_deref()));
    let (start, text) = end(file).map_err(failed(sink, "read the file's end"))?;
    // What stands in another file says nothing of this one.
    let of_open = tail(&text, start > 0, known.filter(|_| is_in_open)).map_err(|(at, finding)| OpenError::Broken {
        path: path.clone(),
        offset: start + at as u64,
        finding,
    })?;
    let last = match &of_open.head {
        Some(_) => None,
        None => files::newest(&closed, head_file).map_err(|files::Gap| OpenError::Gap { path: path.clone() })?,
    };
    if let Some(named) = closed_known.filter(|it| last.is_none_or(|last| last.path != it.path)) {
        ClosedEnd::of(&named.path, known, sink)?.whole(&named.path)?;
    }
    let (mut head, mut opens, mut previous_file) = (of_open.head.clone(), of_open.opens.clone(), None);
    let mut last_torn = None;
    if let Some(last) = last {
        let is_there = head_file.is_none() || is_named(last.file.as_deref());
        let mut end = ClosedEnd::of(&last.path, known.filter(|_| is_there), sink)?;
        if !text.is_empty() {
            end = end.whole(&last.path)?; // what was begun behind it was begun behind a whole one
        }
        (head, opens, previous_file) = (end.tail.head.clone(), end.tail.opens.clone(), last.file.clone());
        if head_file.is_none() || previous_file.is_some() {
            last_torn = end.mend(&last.path, &**names, sink)?.1;
        }
    }
    if let Some(last) = closed.last() {
        set_readonly(&last.path, true);
    }
    if head.is_some() && name.is_none() && previous_file.is_none() && head_file.is_some() {
        // Whose file it is cannot be told, nor whether it lacks the head that is known.
        let finding = Finding::Unreadable { reason: "the first line is none".to_owned() };
        return Err(OpenError::Broken { path: path.clone(), offset: 0, finding });
    }
    if let Some(known) = known.filter(|_| is_in_open && !text.is_empty()) {
        let found = head.as_ref().map_or(0, |head| head.sequence);
        if found < known.sequence {
            return Err(OpenError::Behind { path: path.clone(), found, known: known.sequence });
        }
    }
    // Where a path is a link, its file has another folder, and that one has the names.
    let there = real(path);
    let (torn, bytes) = make_whole(&there, file, (start, &text), &of_open, &**names, sink)?;
    names.sync_folder_of(&there).map_err(failed(sink, "sync the file's directory"))?;
    let first = first.filter(|_| head.is_some() && previous_file.is_none()).map(|link| link.receipt);
    Ok(Found { first, previous_file, head, bytes, torn: torn.or(last_torn), is_known, opens })
}

/// Leaves whole durable lines only. Returns what was set aside, and the length.
fn make_whole(
    path: &Path,
    file: &File,
    (start, text): (u64, &[u8]),
    tail: &Tail,
    names: &dyn Names,
    sink: &Arc<str>,
) -> Result<(Option<Torn>, u64), OpenError> {
    let mut bytes = start + tail.whole as u64;
    let torn = match &text[tail.whole..] {
        [] => None,
        torn => {
            let torn = set_aside(path, torn, names, sink)?;
            file.set_len(bytes).map_err(failed(sink, "cut off the torn end"))?;
            Some(torn)
        }
    };
    if tail.newline_missing {
        file.write_all_at(b"\n", bytes).map_err(failed(sink, "end the last line"))?;
        bytes += 1;
    }
    // Also what the writer before us left unsynced: we build on it.
    names.sync_file(file).map_err(failed(sink, "sync the file"))?;
    Ok((torn, bytes))
}

/// The first line of a file, if that is whole: its digest tells the file from others.
fn first_line(file: &File) -> io::Result<Option<Link>> {
    let mut text = Vec::new();
    let mut reader = BufReader::new(file);
    reader.seek(SeekFrom::Start(0))?;
    reader.take(LINE_BYTES_MAX as u64 + 1).read_until(b'\n', &mut text)?;
    text.pop_if(|last| *last == b'\n');
    Ok(line::read(&text).ok())
}

#[derive(Debug)]
struct Tail {
    head: Option<Receipt>,
    /// How much of the text is whole lines.
    whole: usize,
    newline_missing: bool,
    opens: Option<(i64, Receipt)>,
}

/// Verifies the end of a trail. Errors: the offset of the line that is wrong, and what is wrong with it.
fn tail(text: &[u8], begins_amid_a_line: bool, known: Option<&Receipt>) -> Result<Tail, (usize, Finding)> {
    let mut whole = 0;
    if begins_amid_a_line {
        whole = text.iter().position(|byte| *byte == b'\n').ok_or((0, Finding::TooLong))? + 1;
    }
    let mut head: Option<Receipt> = None;
    // Where the number that is known has another digest. A file of one of several may have a number twice: then the later
    // one counts, to which the trail came back.
    let (mut other, mut newline_missing, mut opens) = (None, false, None);
    while whole < text.len() {
        let rest = &text[whole..];
        let end = rest.iter().position(|byte| *byte == b'\n');
        let line = &rest[..end.unwrap_or(rest.len())];
        if line.contains(&0) {
            break; // a page that never reached the disk: JSON has no NUL
        }
        let is_last = whole + line.len() + 1 >= text.len();
        let read = line::read(line).and_then(|link| match &head {
            Some(head) => follows_in_file(head, &link).map(|joint| (link, joint)),
            None => Ok((link, Joint::Begins)),
        });
        if let Ok((link, joint)) = &read {
            let term = link.opening.as_ref().and_then(|opening| opening.term);
            opens = term.map(|term| (term.number, link.previous()));
            if *joint == Joint::Joins {
                other = None;
            }
            if let Some(known) = known.filter(|known| known.sequence == link.receipt.sequence) {
                other = compare(known, &link.receipt).err().map(|finding| (whole, finding));
            }
        }
        match (read, end) {
            (Ok((link, _)), Some(_)) => {
                head = Some(link.receipt);
                whole += line.len() + 1;
            }
            (Ok((link, _)), None) => {
                head = Some(link.receipt);
                whole += line.len();
                newline_missing = true;
            }
            (Err(_), None) => break,
            (Err(Finding::Unreadable { .. }), Some(_)) if is_last => break,
            (Err(finding), Some(_)) => return Err((whole, finding)),
        }
    }
    if begins_amid_a_line && head.is_none() {
        return Err((whole, Finding::Torn)); // longer than any batch: no crash of ours
    }
    match other {
        Some(wrong) => Err(wrong),
        None => Ok(Tail { head, whole, newline_missing, opens }),
    }
}

/// Copies what a crash left to the first free `<file>.torn-<n>`.
fn set_aside(path: &Path, text: &[u8], names: &dyn Names, sink: &Arc<str>) -> Result<Torn, OpenError> {
    for number in 1..=TORN_FILES_MAX {
        let mut aside = path.as_os_str().to_owned();
        aside.push(format!(".torn-{number}"));
        let aside = PathBuf::from(aside);
        let file = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            opened => opened.map_err(failed(sink, "set the torn end aside"))?,
        };
        let copied =
            file.write_all_at(text, 0).and_then(|()| file.sync_all()).and_then(|()| names.sync_folder_of(path));
        if let Err(source) = copied {
            let _ = std::fs::remove_file(&aside); // a piece of it would mislead; the whole is still in the file
            return Err(failed(sink, "set the torn end aside")(source));
        }
        return Ok(Torn { path: aside, bytes: text.len() as u64, digest: line::sha256(text) });
    }
    Err(OpenError::TooTorn { path: path.to_owned() })
}
