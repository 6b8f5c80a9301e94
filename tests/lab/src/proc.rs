//! What `/proc` shows: the witness from outside, which needs no one's cooperation.

use std::{
    collections::BTreeSet,
    fs, io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use nix::{sys::signal, unistd::Pid};

/// Stands in the environment of everything that runs in a lab, with the lab's directory as value.
pub const MARK: &str = "INSTANCE_ACCESS_LAB";

/// A process that lives in a session on an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionProcess {
    /// Its id, as seen from outside the instance.
    pub pid: i32,
    /// Its `SSH_CONNECTION`: client address and port, server address and port. One value is one login.
    pub connection: String,
    /// Its command line, for a person.
    pub command: String,
}

/// All processes that may be looked at, by id.
fn pids() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// A variable in a process's environment at its start; `None` for a zombie, and for another user's process.
fn environment(pid: i32, name: &str) -> Option<String> {
    let all = fs::read(format!("/proc/{pid}/environ")).ok()?;
    all.split(|byte| *byte == 0).find_map(|pair| {
        let value = pair.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
        Some(String::from_utf8_lossy(value).into_owned())
    })
}

/// What stands in `/proc/PID/stat` after the name: state, parent, …; `None` if the process is gone or a zombie.
fn stat(pid: i32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything; the last parenthesis ends it.
    let fields: Vec<String> = stat.rsplit_once(')')?.1.split_ascii_whitespace().map(str::to_owned).collect();
    (fields.first()? != "Z").then_some(fields)
}

/// When a process started, in clock ticks since boot; with the id, it names one process for ever. `None`: gone.
pub(crate) fn start_ticks(pid: i32) -> Option<u64> {
    stat(pid)?.get(19)?.parse().ok()
}

/// A process's children, their children, and so on. Those whose parent died are not among them.
pub(crate) fn descendants(pid: i32) -> Vec<i32> {
    let parents: Vec<(i32, i32)> = pids().filter_map(|pid| Some((pid, stat(pid)?.get(1)?.parse().ok()?))).collect();
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(child, _)| child));
        next += 1;
    }
    found.split_off(1)
}

/// Names the world that process ids are counted in: another container's ids mean nothing here.
pub(crate) fn pid_namespace() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let namespace = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    format!("{} {}", boot.trim(), namespace.display())
}

/// The processes in sessions on the given server addresses and port.
pub(crate) fn session_processes(addresses: &[IpAddr], port: u16) -> Vec<SessionProcess> {
    let endings: Vec<String> = addresses.iter().map(|address| format!(" {address} {port}")).collect();
    let in_session = |pid| {
        let connection =
            environment(pid, "SSH_CONNECTION").filter(|it| endings.iter().any(|ending| it.ends_with(ending)))?;
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let command = String::from_utf8_lossy(&command).replace('\0', " ").trim_end().to_owned();
        Some(SessionProcess { pid, connection, command })
    };
    pids().filter_map(in_session).collect()
}

/// The processes of a lab: marked in their environment, or, as sshd overwrites that, with a log below `dir` as their
/// standard error. Never the calling process.
pub(crate) fn of_lab(dir: &Path) -> Vec<i32> {
    let of_lab = |pid: &i32| {
        *pid != std::process::id().cast_signed()
            && (environment(*pid, MARK).is_some_and(|it| Path::new(&it) == dir)
                || fs::read_link(format!("/proc/{pid}/fd/2")).is_ok_and(|it| it.starts_with(dir)))
    };
    pids().filter(of_lab).collect()
}

/// The processes whose standard error is the given log.
pub(crate) fn logging_to(log: &Path) -> Vec<i32> {
    pids().filter(|pid| fs::read_link(format!("/proc/{pid}/fd/2")).is_ok_and(|it| it == log)).collect()
}

/// Kills processes, those that are gone already aside.
pub(crate) fn kill(pids: &[i32]) {
    for pid in pids {
        let _ = signal::kill(Pid::from_raw(*pid), signal::Signal::SIGKILL);
    }
}

/// Whether somebody listens on an address and port, without knocking at it.
pub(crate) fn listening(address: SocketAddr) -> io::Result<bool> {
    let (bytes, table) = match address.ip() {
        IpAddr::V4(ip) => (ip.octets().to_vec(), "/proc/net/tcp"),
        IpAddr::V6(ip) => (ip.octets().to_vec(), "/proc/net/tcp6"),
    };
    // The kernel prints each four bytes of the address as one number of the machine's byte order.
    let numbers = bytes.chunks_exact(4).map(|four| u32::from_ne_bytes(four.try_into().expect("there are four")));
    let local = format!("{}:{:04X}", numbers.map(|it| format!("{it:08X}")).collect::<String>(), address.port());
    const LISTEN: &str = "0A";
    Ok(fs::read_to_string(table)?.lines().any(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        fields.next() == Some(&local) && fields.nth(1) == Some(LISTEN)
    }))
}

/// A program, searched on `PATH` and where distributions put the administrator's programs.
pub(crate) fn program(name: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs: BTreeSet<PathBuf> = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from).into();
    let found = std::env::split_paths(&path).find(|dir| dir.join(name).is_file());
    found
        .or_else(|| std::iter::from_fn(|| dirs.pop_last()).find(|dir| dir.join(name).is_file()))
        .map(|dir| dir.join(name))
        .ok_or_else(|| anyhow::anyhow!("{name} is not installed; run tests/lab/setup.sh"))
}
