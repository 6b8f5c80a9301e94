//! Child processes that never outlive this one, however it ends.
//!
//! The kernel sends a child its parent-death signal when the *thread* that spawned it ends. Tests end threads all the
//! time; so one thread, which lives as long as the process, spawns them all.

use std::{
    fs, io,
    os::unix::process::{CommandExt, ExitStatusExt},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Mutex, OnceLock, mpsc},
};

use anyhow::Context;
use nix::{
    sys::{prctl, signal},
    unistd::{Pid, getpid, getppid},
};

use crate::proc;

type Order = (Command, mpsc::Sender<io::Result<Child>>);

/// Spawns from the one long-lived thread, so that the child dies with the process and not with a thread of it.
fn spawn_from_nursery(command: Command) -> io::Result<Child> {
    static NURSERY: OnceLock<Mutex<mpsc::Sender<Order>>> = OnceLock::new();
    let nursery = NURSERY.get_or_init(|| {
        let (orders, inbox) = mpsc::channel::<Order>();
        let thread = std::thread::Builder::new().name("lab-nursery".to_owned());
        let spawned = thread.spawn(move || {
            for (mut command, answer) in inbox {
                let _ = answer.send(spawn_mortal(&mut command));
            }
        });
        spawned.expect("a thread can be started");
        Mutex::new(orders)
    });
    let (answer, spawned) = mpsc::channel();
    nursery.lock().expect("sending does not panic").send((command, answer)).expect("the nursery never ends");
    spawned.recv().expect("the nursery answers every order")
}

/// Spawns a child that gets SIGKILL when the calling thread ends.
#[expect(unsafe_code, reason = "std offers no safe way to ask for the parent-death signal in the child")]
fn spawn_mortal(command: &mut Command) -> io::Result<Child> {
    let parent = getpid();
    // SAFETY: between fork and exec only system calls are made, and nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            prctl::set_pdeathsig(signal::Signal::SIGKILL)?;
            // The parent may have died before the line above.
            if getppid() == parent { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
        });
    }
    command.spawn()
}

/// A running child with a log. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program; its output is appended to `log`.
    pub fn spawn(name: &str, mut command: Command, log: PathBuf) -> anyhow::Result<Self> {
        let file = fs::File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("opening {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        // A Ctrl-C at the terminal is for whoever runs the lab, which then ends it in order.
        command.process_group(0);
        let child = spawn_from_nursery(command).with_context(|| format!("starting {name}"))?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    /// Its end, if it has ended: what to tell, with the last lines of its log.
    pub fn death(&mut self) -> Option<String> {
        let status = self.child.try_wait().ok().flatten()?;
        Some(format!(
            "{} ended with {}; its last words in {}:\n{}",
            self.name,
            describe(status),
            self.log.display(),
            self.last_words()
        ))
    }

    fn last_words(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(8)..].join("\n")
    }

    /// Stops it in its tracks: its sockets stay open and nothing answers.
    pub fn freeze(&self) -> anyhow::Result<()> {
        self.signal(&[self.pid()], signal::Signal::SIGSTOP)
    }

    /// Lets it go on.
    pub fn thaw(&self) -> anyhow::Result<()> {
        self.signal(&[self.pid()], signal::Signal::SIGCONT)
    }

    /// Stops it and all its descendants.
    pub fn freeze_tree(&self) -> anyhow::Result<()> {
        // From the top: a stopped process makes no children that the list would lack.
        self.freeze()?;
        self.signal(&proc::descendants(self.pid()), signal::Signal::SIGSTOP)
    }

    /// Lets it and all its descendants go on.
    pub fn thaw_tree(&self) -> anyhow::Result<()> {
        self.signal(&proc::descendants(self.pid()), signal::Signal::SIGCONT)?;
        self.thaw()
    }

    fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    fn signal(&self, pids: &[i32], signal: signal::Signal) -> anyhow::Result<()> {
        for pid in pids {
            match signal::kill(Pid::from_raw(*pid), signal) {
                Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("sending {signal} to {}, process {pid}", self.name));
                }
            }
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // An end that was seen before is fine; a killed child is gone in moments, so waiting for it does not block.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "no status".to_owned(),
    }
}
