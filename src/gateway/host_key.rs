//! The key by which clients know the gateway: read from a file, and made once if that is not there.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use russh::keys::ssh_key::private::Ed25519Keypair;
use russh::keys::ssh_key::{Algorithm, LineEnding};
use russh::keys::{HashAlg, PrivateKey};

/// The longest file that is read: an ED25519 key has 400 bytes, and a comment.
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
    /// Others may read it.
    #[error(
        "--host-key-file {path}: everybody may read it (mode {mode:o}); chmod 600 it, or, if it lay open, make a new one"
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It is no key, or none that this gateway takes.
    #[error(
        "--host-key-file {path}: is no ED25519 private key without passphrase; make one with ssh-keygen -t ed25519 -N ''"
    )]
    NotAKey {
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

impl HostKey {
    /// Reads the key, or makes one if the file is not there: mode 0600, whole or not at all.
    ///
    /// # Errors
    /// See [`HostKeyError`]; a file that is there is never overwritten.
    pub fn load(path: &Path) -> Result<Self, HostKeyError> {
        match File::open(path) {
            Ok(file) => Self::read(path, file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::make(path),
            Err(source) => Err(HostKeyError::Io { path: path.to_owned(), action: "read it", source }),
        }
    }

    fn read(path: &Path, file: File) -> Result<Self, HostKeyError> {
        let io = |source| HostKeyError::Io { path: path.to_owned(), action: "read it", source };
        let mode = file.metadata().map_err(io)?.permissions().mode() & 0o777;
        // The group may: a Secret that is mounted for a pod's group is 0440.
        if mode & 0o007 != 0 {
            return Err(HostKeyError::Open { path: path.to_owned(), mode });
        }
        let mut text = String::new();
        let not_a_key = || HostKeyError::NotAKey { path: path.to_owned() };
        file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(io)?;
        let key = PrivateKey::from_openssh(&text).map_err(|_| not_a_key())?;
        let is_ours = key.algorithm() == Algorithm::Ed25519 && !key.is_encrypted();
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

    /// The private half, for the SSH server.
    pub fn private(&self) -> PrivateKey {
        self.key.clone()
    }

    /// As `ssh-keygen -l` prints it.
    pub fn fingerprint(&self) -> String {
        self.key.fingerprint(HashAlg::Sha256).to_string()
    }

    /// The line for `known_hosts`, under a name that clients use: `HOST`, or `[HOST]:PORT`.
    pub fn known_hosts_line(&self, host: &str) -> String {
        let public = self.key.public_key().to_openssh().expect("an ED25519 key has an OpenSSH form");
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

    #[test]
    fn what_others_may_read_or_is_no_key_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("host_key");
        drop(HostKey::load(&path).unwrap());
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        assert!(matches!(HostKey::load(&path), Err(HostKeyError::Open { mode: 0o644, .. })));
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
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
