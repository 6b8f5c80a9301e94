//! A lab's place on this machine: its directory, its block of loopback addresses, and what cleans up after it.
//!
//! ```text
//! DIR  0700        kubeconfigs with tokens, keys, logs: only for the lab's user
//! HOSTS  0711      in the temporary directory: what people logged in on instances must reach (home, nss files)
//! HOSTS/owner      the process whose lab it is; a dead one's lab is swept by the next lab to start
//! warden           a shell that waits for this process's end, kills what is left, removes both directories
//! ```

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket},
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::{ids, proc};

const PREFIX: &str = "instance-access-lab.";
/// How long the dead are given to be gone; they are, in milliseconds, unless the machine is starved.
const REAP_BOUND: Duration = Duration::from_secs(10);

/// Kills a lab's processes and removes its directories once standard input ends, which no death of ours can prevent.
/// A line on standard input calls it off. Arguments: the lab's directory, the hosts' directory, what to remove.
const WARDEN: &str = r#"
read -r _ && exit
for pass in 1 2 3 4 5; do
  left=$(
    grep -lsaF -- "INSTANCE_ACCESS_LAB=$1" /proc/[0-9]*/environ
    find /proc/[0-9]*/fd/2 -maxdepth 0 -lname "$1/*"
  )
  [ "$left" ] || break
  kill -9 $(printf '%s\n' "$left" | cut -d/ -f3 | sort -u)
done
rm -rf -- "$2" "$3"
"#;

#[derive(Serialize, Deserialize)]
struct Owner {
    pid: i32,
    start_ticks: Option<u64>,
    pid_namespace: String,
    dir: PathBuf,
    /// Whether the directory was made for this lab alone, and goes with it.
    temporary: bool,
}

impl Owner {
    fn is_alive(&self) -> bool {
        self.start_ticks.is_some() && proc::start_ticks(self.pid) == self.start_ticks
    }
}

/// The directories and addresses of one lab; dropping it kills the lab's processes and removes what was temporary.
#[derive(Debug)]
pub(crate) struct Workspace {
    pub dir: PathBuf,
    pub hosts: PathBuf,
    block: [u8; 3],
    temporary: bool,
    warden: Option<Child>,
    /// Held as long as the block of addresses is ours: the kernel lets nobody else bind it.
    _claim: UdpSocket,
    /// Held as long as the directory is ours.
    _lock: fs::File,
}

impl Workspace {
    /// Makes the directories and claims the addresses; sweeps what dead labs left.
    ///
    /// # Errors
    /// If the directory belongs to another user or to a living lab.
    pub fn new(dir: Option<&Path>) -> anyhow::Result<Self> {
        sweep();
        let (dir, temporary) = match dir {
            Some(dir) => (open_dir(dir)?, false),
            None => (new_dir(PREFIX, 0o700)?, true),
        };
        let lock = lock(&dir)?;
        let hosts = new_dir(&format!("{PREFIX}hosts."), 0o711)?;
        let pid = std::process::id().cast_signed();
        let owner = Owner {
            pid,
            start_ticks: proc::start_ticks(pid),
            pid_namespace: proc::pid_namespace(),
            dir: dir.clone(),
            temporary,
        };
        fs::write(hosts.join("owner"), serde_json::to_vec(&owner)?)?;
        for sub in ["log", "home", "keys"] {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir.join(sub))?;
        }
        let (block, claim) = claim_block()?;
        let warden = Some(start_warden(&dir, &hosts, temporary)?);
        Ok(Self { dir, hosts, block, temporary, warden, _claim: claim, _lock: lock })
    }

    /// An address of this lab's own.
    pub fn address(&self, host: u8) -> IpAddr {
        let [a, b, c] = self.block;
        Ipv4Addr::new(a, b, c, host).into()
    }

    /// Addresses of this lab's own that no part of it uses: instances have those up to 209.
    pub fn spare_addresses(&self) -> Vec<IpAddr> {
        (210..254).map(|host| self.address(host)).collect()
    }

    /// A port that sshd may listen on, 22 if it can be had: as root, and if nobody holds it on all addresses.
    pub fn ssh_port(&self) -> anyhow::Result<u16> {
        let bind = |port: &u16| TcpListener::bind((self.address(254), *port)).and_then(|it| it.local_addr());
        let free = [22, 2222, 0].iter().find_map(|port| bind(port).ok());
        Ok(free.context("no port on a loopback address is free")?.port())
    }

    /// The log of one part.
    pub fn log(&self, name: &str) -> PathBuf {
        self.dir.join("log").join(format!("{name}.log"))
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        reap(&self.dir);
        let _ = fs::remove_dir_all(&self.hosts);
        if self.temporary {
            let _ = fs::remove_dir_all(&self.dir);
        }
        if let Some(mut warden) = self.warden.take() {
            let called_off = warden.stdin.take().map(|mut it| io::Write::write_all(&mut it, b"done\n"));
            if !matches!(called_off, Some(Ok(()))) {
                let _ = warden.kill();
            }
            let _ = warden.wait();
        }
    }
}

/// Kills a lab's processes until there are none.
fn reap(dir: &Path) {
    let start = Instant::now();
    loop {
        let left = proc::of_lab(dir);
        if left.is_empty() || start.elapsed() > REAP_BOUND {
            return;
        }
        proc::kill(&left);
        std::thread::yield_now();
    }
}

/// Ends what labs of dead processes left behind: processes and directories. Another's lab, or one whose owner cannot
/// be judged from here, is let be.
fn sweep() {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else { return };
    for entry in entries.flatten() {
        let is_hosts = entry.file_name().to_str().is_some_and(|name| name.starts_with(&format!("{PREFIX}hosts.")));
        let is_ours = entry.metadata().is_ok_and(|it| it.is_dir() && it.uid() == nix::unistd::geteuid().as_raw());
        if !is_hosts || !is_ours {
            continue;
        }
        let Ok(owner) = fs::read(entry.path().join("owner")) else { continue };
        let Ok(owner) = serde_json::from_slice::<Owner>(&owner) else { continue };
        if owner.pid_namespace != proc::pid_namespace() || owner.is_alive() {
            continue;
        }
        reap(&owner.dir);
        if owner.temporary {
            let _ = fs::remove_dir_all(&owner.dir);
        }
        let _ = fs::remove_dir_all(entry.path());
    }
}

/// Makes a directory of a random name in the temporary directory.
fn new_dir(prefix: &str, mode: u32) -> anyhow::Result<PathBuf> {
    // Canonical, for the kernel names files so, and processes are found by the files they hold.
    let temp = fs::canonicalize(std::env::temp_dir())?;
    let dir = temp.join(format!("{prefix}{}", ids::hex(12)));
    fs::DirBuilder::new().mode(mode).create(&dir).with_context(|| format!("making {}", dir.display()))?;
    fs::set_permissions(&dir, fs::Permissions::from_mode(mode))?; // whatever the umask
    Ok(dir)
}

/// Marks a directory as a lab's, and is locked while the lab runs.
const LOCK: &str = ".lab";

/// Takes a directory that the caller chose: makes it, or makes sure that it is the caller's, and empty or a lab's.
fn open_dir(dir: &Path) -> anyhow::Result<PathBuf> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("making {}", dir.display()))?;
    let dir = fs::canonicalize(dir)?;
    let shown = dir.display();
    let uid = nix::unistd::geteuid();
    anyhow::ensure!(fs::metadata(&dir)?.uid() == uid.as_raw(), "{shown} belongs to another user");
    let is_lab = dir.join(LOCK).exists();
    anyhow::ensure!(
        is_lab || fs::read_dir(&dir)?.next().is_none(),
        "{shown} is neither empty nor a lab's; name another"
    );
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))?;
    Ok(dir)
}

/// Takes the directory for this lab, and empties it: addresses, ids and certificates are new in every lab.
fn lock(dir: &Path) -> anyhow::Result<fs::File> {
    let lock = fs::File::create(dir.join(LOCK))?;
    lock.try_lock().with_context(|| format!("a lab runs in {} already", dir.display()))?;
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        match path.is_dir() {
            true => fs::remove_dir_all(path)?,
            false if path.ends_with(LOCK) => {}
            false => fs::remove_file(path)?,
        }
    }
    Ok(lock)
}

/// Whether a lab runs in a directory.
pub(crate) fn is_running(dir: &Path) -> bool {
    let lock = fs::File::open(dir.join(LOCK));
    lock.is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(fs::TryLockError::WouldBlock)))
}

/// Claims 256 loopback addresses: on the last of them, a socket that only one lab can hold.
fn claim_block() -> anyhow::Result<([u8; 3], UdpSocket)> {
    /// Nothing else looks for this port there; any would do, above 1023 for ordinary users.
    const CLAIM_PORT: u16 = 60_022;
    let attempt = || {
        let [random_a, random_b] = ids::bytes();
        // Not 127.0, where everyone's loopback services are, and which sshd's clients call localhost.
        let block = [127, 1 + random_a % 254, random_b];
        let last = Ipv4Addr::new(block[0], block[1], block[2], 255);
        Some((block, UdpSocket::bind((last, CLAIM_PORT)).ok()?))
    };
    // Among 65,000 blocks, eight misses in a row mean that something else is wrong.
    std::iter::repeat_with(attempt).take(8).flatten().next().context("no block of loopback addresses could be claimed")
}

fn start_warden(dir: &Path, hosts: &Path, temporary: bool) -> anyhow::Result<Child> {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", WARDEN, "lab-warden"]).arg(dir).arg(hosts).arg(if temporary { dir } else { hosts });
    command.env_remove(proc::MARK).current_dir("/").process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().context("starting the warden")
}
