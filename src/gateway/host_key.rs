//! The keys by which clients know the gateway: read from files, and made once if there is none.
//!
//! One key serves for years; while it is rotated, two of different kinds do. SSH shows a client one key of each kind, and a
//! client asks for the kind that it knows: so those who know the old one and those who know the new one are both let in
//! without a question. OpenSSH's own way, to announce the new one (`hostkeys-00@openssh.com`), russh does not speak as a
//! server.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use russh::keys::ssh_key::private::Ed25519Keypair;
use russh::keys::ssh_key::{Algorithm, EcdsaCurve, LineEnding};
use russh::keys::{HashAlg, PrivateKey};

/// The longest file that is read: an ED25519 key has 400 bytes, an ECDSA one 500, and a comment.
const FILE_BYTES_MAX: u64 = 16 << 10;

/// Why there is no host key.
#[derive(Debug, thiserror::Error)]
pub enum HostKeyError {
    /// The file cannot be read, or made.
    #[error("--host-key-file {path}: cannot {action}; give a path on a volume that outlives the process")]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
    /// Others may read it, or the group may change it.
    #[error(
        "--host-key-file {path}: others may read it, or its group may write it (mode {mode:o}); chmod 600 it (in a pod, defaultMode: 0440 of the Secret's volume), or, if it lay open, make a new one"
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It is no key, or none that this gateway takes.
    #[error(
        "--host-key-file {path}: is no ED25519 or ECDSA (nistp256) private key of OpenSSH's without passphrase; make one with ssh-keygen -t ed25519 -N ''"
    )]
    NotAKey {
        /// The file.
        path: PathBuf,
    },
    /// A client could not be shown both.
    #[error(
        "--host-key-file {path}: is a second key of the kind {kind}, and clients are shown one of each; make the new one of the other kind, with ssh-keygen -t {other} -N ''"
    )]
    SameKind {
        /// The second file.
        path: PathBuf,
        /// What both are.
        kind: Algorithm,
        /// What one of them could be.
        other: &'static str,
    },
    /// A rotation with a key that nobody has been told of yet.
    #[error(
        "--host-key-file {path}: is not there; of several keys none is made: look at the path, or name one file only"
    )]
    NotThere {
        /// The file.
        path: PathBuf,
    },
    /// The operating system gives no random bytes.
    #[error("no random bytes for a host key")]
    NoRandomness,
}

/// A host key. `Debug` shows the public half only.
pub struct HostKey {
    key: PrivateKey,
}

impl std::fmt::Debug for HostKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HostKey({})", self.fingerprint())
    }
}

/// The host keys of a gateway: one or two, of different kinds.
#[derive(Debug)]
pub struct HostKeys(Vec<HostKey>);

impl HostKeys {
    /// Reads the keys. If one file is named and not there, its key is made: mode 0600, whole or not at all.
    ///
    /// # Errors
    /// See [`HostKeyError`]; a file that is there is never overwritten.
    pub fn load(paths: &[PathBuf]) -> Result<Self, HostKeyError> {
        let mut keys: Vec<HostKey> = Vec::new();
        for (path, key) in paths.iter().zip(load(paths)?) {
            let kind = key.key.algorithm();
            if keys.iter().any(|other| other.key.algorithm() == kind) {
                let other = if kind == Algorithm::Ed25519 { "ecdsa" } else { "ed25519" };
                return Err(HostKeyError::SameKind { path: path.clone(), kind, other });
            }
            keys.push(key);
        }
        Ok(Self(keys))
    }

    /// Each of them.
    pub fn all(&self) -> &[HostKey] {
        &self.0
    }

    /// The private halves, for the SSH server.
    pub fn private(&self) -> Vec<PrivateKey> {
        self.0.iter().map(|key| key.key.clone()).collect()
    }

    /// Their kinds, but for ED25519.
    pub fn more_algorithms(&self) -> Vec<Algorithm> {
        self.0.iter().map(|key| key.key.algorithm()).filter(|kind| *kind != Algorithm::Ed25519).collect()
    }
}

/// The lines for `known_hosts` of all these keys, also of two that no gateway could show at once. See [`HostKeys::load`].
///
/// # Errors
/// See [`HostKeyError`].
pub fn known_hosts_lines(paths: &[PathBuf], host: &str) -> Result<String, HostKeyError> {
    Ok(load(paths)?.iter().map(|key| key.known_hosts_line(host) + "\n").collect())
}

fn load(paths: &[PathBuf]) -> Result<Vec<HostKey>, HostKeyError> {
    match paths {
        [path] => Ok(vec![HostKey::load(path)?]),
        several => several
            .iter()
            .map(|path| HostKey::find(path)?.ok_or_else(|| HostKeyError::NotThere { path: path.clone() }))
            .collect(),
    }
}

impl HostKey {
    fn load(path: &Path) -> Result<Self, HostKeyError> {
        Self::find(path)?.map_or_else(|| Self::make(path), Ok)
    }

    fn find(path: &Path) -> Result<Option<Self>, HostKeyError> {
        match File::open(path) {
            Ok(file) => Self::read(path, file).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(HostKeyError::Io { path: path.to_owned(), action: "read it", source }),
        }
    }

    fn read(path: &Path, file: File) -> Result<Self, HostKeyError> {
        let io = |source| HostKeyError::Io { path: path.to_owned(), action: "read it", source };
        let mode = file.metadata().map_err(io)?.permissions().mode() & 0o777;
        // The group may read: a Secret that is mounted for a pod's group is 0440.
        if mode & 0o027 != 0 {
            return Err(HostKeyError::Open { path: path.to_owned(), mode });
        }
        let mut text = String::new();
        let not_a_key = || HostKeyError::NotAKey { path: path.to_owned() };
        file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(io)?;
        let key = PrivateKey::from_openssh(&text).map_err(|_| not_a_key())?;
        let kinds = [Algorithm::Ed25519, Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 }];
        let is_ours = kinds.contains(&key.algorithm()) && !key.is_encrypted();
        is_ours.then_some(Self { key }).ok_or_else(not_a_key)
    }

    fn make(path: &Path) -> Result<Self, HostKeyError> {
        let io = |action| move |source| HostKeyError::Io { path: path.to_owned(), action, source };
        let mut seed = [0; 32];
        let random = rustls::crypto::aws_lc_rs::default_provider().secure_random;
        random.fill(&mut seed).map_err(|_| HostKeyError::NoRandomness)?;
        let key = PrivateKey::from(Ed25519Keypair::from_seed(&seed));
        let text = key.to_openssh(LineEnding::LF).expect("an ED25519 key has an OpenSSH form");
        // Beside it first: two gateways that start at once make one key, and a crash leaves no half one.
        let beside = path.with_extension(format!("new-{}", std::process::id()));
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside).map_err(io("make it"))?;
        let written = file
            .write_all(text.as_bytes())
            .and_then(|()| file.sync_all())
            .and_then(|()| std::fs::hard_link(&beside, path));
        let removed = std::fs::remove_file(&beside);
        match written {
            Ok(()) => removed.map(|()| Self { key }).map_err(io("tidy up beside it")),
            // Somebody was faster: theirs it is.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Self::load(path),
            Err(source) => Err(io("make it")(source)),
        }
    }

    /// As `ssh-keygen -l` prints it.
    pub fn fingerprint(&self) -> String {
        self.key.fingerprint(HashAlg::Sha256).to_string()
    }

    /// The line for `known_hosts`, under a name that clients use: `HOST`, or `[HOST]:PORT`.
    pub fn known_hosts_line(&self, host: &str) -> String {
        let public = self.key.public_key().to_openssh().expect("a host key has an OpenSSH form");
        let public: Vec<&str> = public.split(' ').take(2).collect();
        format!("{host} {}", public.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_for_the_owner_alone_and_read_ever_after() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("host_key");
        let made = HostKey::load(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(HostKey::load(&path).unwrap().fingerprint(), made.fingerprint());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "something lies beside it");
        let line = made.known_hosts_line("[gateway.example.com]:2222");
        assert!(line.starts_with("[gateway.example.com]:2222 ssh-ed25519 AAAA"), "{line}");
        assert_eq!(line.split(' ').count(), 3, "{line}");
        assert!(!format!("{made:?}").contains("PRIVATE"));
    }

    fn ecdsa(path: &Path) {
        let kind = Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 };
        let key = PrivateKey::random(&mut russh::keys::key::safe_rng(), kind).unwrap();
        std::fs::write(path, key.to_openssh(LineEnding::LF).unwrap().as_bytes()).unwrap();
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
    }

    #[test]
    fn two_keys_of_different_kinds_serve_and_each_has_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let [old, new, third, none] = ["old", "new", "third", "none"].map(|name| dir.path().join(name));
        drop(HostKey::load(&old).unwrap());
        drop(HostKey::load(&third).unwrap());
        ecdsa(&new);
        let both = HostKeys::load(&[old.clone(), new.clone()]).unwrap();
        assert_eq!((both.private().len(), both.more_algorithms().len()), (2, 1));
        let kinds = |paths: &[PathBuf]| -> Vec<String> {
            let lines = known_hosts_lines(paths, "gateway").unwrap();
            lines.lines().map(|line| line.split(' ').nth(1).unwrap().to_owned()).collect()
        };
        assert_eq!(kinds(&[old.clone(), new.clone()]), ["ssh-ed25519", "ecdsa-sha2-nistp256"]);
        // Two that no client could be shown, for who gives both lines out before the one replaces the other.
        assert_eq!(kinds(&[old.clone(), third.clone()]), ["ssh-ed25519", "ssh-ed25519"]);
        for (paths, path, other) in
            [([&old, &third], &third, "ecdsa"), ([&third, &old], &old, "ecdsa"), ([&new, &new], &new, "ed25519")]
        {
            let refused = HostKeys::load(&paths.map(Clone::clone)).unwrap_err();
            assert!(
                matches!(&refused, HostKeyError::SameKind { path: found, other: advised, .. }
                    if found == path && *advised == other),
                "{refused}"
            );
        }
        let refused = HostKeys::load(&[old, none.clone()]).unwrap_err();
        assert!(matches!(&refused, HostKeyError::NotThere { path } if *path == none), "{refused}");
        assert!(!none.exists(), "a key was made that nobody was told of");
    }

    #[test]
    fn what_others_may_read_or_is_no_key_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("host_key");
        drop(HostKey::load(&path).unwrap());
        let with_mode = |mode| {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            HostKey::load(&path).map(drop)
        };
        for open in [0o644, 0o604, 0o640 | 0o020, 0o601, 0o666] {
            assert!(matches!(with_mode(open), Err(HostKeyError::Open { mode, .. }) if mode == open), "{open:o}");
        }
        // As a Secret is mounted, with and without fsGroup.
        for closed in [0o440, 0o400, 0o640, 0o600] {
            assert!(with_mode(closed).is_ok(), "{closed:o}");
        }
        for text in ["", "not a key", "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n"]
        {
            std::fs::write(&path, text).unwrap();
            assert!(matches!(HostKey::load(&path), Err(HostKeyError::NotAKey { .. })), "{text:?}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        assert!(matches!(
            HostKey::load(&dir.path().join("no/such/dir")),
            Err(HostKeyError::Io { action: "make it", .. })
        ));
    }
}
