//! `lab`: a lab as a daemon, to look around in.

mod orders;

use std::{
    fmt::Write as _,
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use lab::{Lab, Options, PEOPLE, poll};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, setsid},
};
use orders::Order;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};

/// What the daemon says last on its standard output; what follows goes nowhere.
const READY: &str = "ready";
/// How long a lab may take to end before it is killed.
const DOWN_BOUND: Duration = Duration::from_secs(30);

/// A control plane, an AWS stand-in and instances, on this machine alone
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    action: Action,
    /// The lab's directory; one lab each [default: instance-access/lab in the user's cache]
    #[arg(long, env = "LAB_DIR", global = true)]
    dir: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Action {
    /// Start a lab; returns when it is ready
    Up(Up),
    /// End a lab, and all that lives in it
    Down,
    /// Say whether a lab runs, and where things are
    Status,
    /// Be the lab, until a SIGTERM
    #[command(hide = true)]
    Serve(Up),
    #[command(flatten)]
    Order(Order),
}

#[derive(Args)]
struct Up {
    /// Another Kubernetes version than tests/lab/setup.sh builds by default
    #[arg(long, value_name = "VERSION")]
    kubernetes: Option<String>,
    /// AWS and instances only
    #[arg(long, conflicts_with = "kubernetes")]
    no_control_plane: bool,
}

/// What `down` must know of a running lab; the rest the lab tells itself.
#[derive(Serialize, Deserialize)]
struct About {
    pid: i32,
}

impl About {
    fn path(dir: &Path) -> PathBuf {
        dir.join("about.json")
    }

    fn read(dir: &Path) -> anyhow::Result<Self> {
        let path = Self::path(dir);
        let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("reading {}", path.display()))
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done =
        cli.dir.map_or_else(lab::default_dir, |dir| Ok(std::path::absolute(dir)?)).and_then(|dir| match cli.action {
            Action::Up(up) => self::up(dir, &up),
            Action::Down => down(&dir),
            Action::Status => status(&dir),
            Action::Serve(up) => Ok(serve(dir, &up)),
            Action::Order(order) => give(&dir, &order),
        });
    done.unwrap_or_else(|error| {
        eprintln!("lab: {error:#}");
        ExitCode::FAILURE
    })
}

/// Gives an order to the running lab, and prints what it says.
fn give(dir: &Path, order: &Order) -> anyhow::Result<ExitCode> {
    if !lab::is_running(dir) {
        anyhow::bail!("none runs in {}; start one with: lab up", dir.display());
    }
    print!("{}", orders::give(dir, order)?);
    Ok(ExitCode::SUCCESS)
}

/// Starts the daemon, shows its progress, and what it says of itself.
fn up(dir: PathBuf, up: &Up) -> anyhow::Result<ExitCode> {
    if lab::is_running(&dir) {
        anyhow::bail!("a lab runs in {} already: lab status, lab down, or another --dir", dir.display());
    }
    let start = Instant::now();
    let mut daemon = Command::new(std::env::current_exe()?);
    daemon.arg("serve").arg("--dir").arg(&dir);
    if let Some(version) = &up.kubernetes {
        daemon.args(["--kubernetes", version]);
    }
    if up.no_control_plane {
        daemon.arg("--no-control-plane");
    }
    let mut daemon =
        daemon.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).current_dir("/").spawn()?;
    let lines = BufReader::new(daemon.stdout.take().context("the daemon has no output")?).lines();
    for line in lines {
        let line = line?;
        if line == READY {
            eprintln!("lab: ready ({:.1} s)", start.elapsed().as_secs_f32());
            return give(&dir, &Order::About);
        }
        eprintln!("lab: {line}");
    }
    daemon.wait()?;
    anyhow::bail!("the lab did not start; its logs are in {}", dir.join("log").display())
}

/// Ends the daemon, and waits until it is gone.
fn down(dir: &Path) -> anyhow::Result<ExitCode> {
    if !lab::is_running(dir) {
        eprintln!("lab: none runs in {}", dir.display());
        return Ok(ExitCode::SUCCESS);
    }
    let pid = Pid::from_raw(About::read(dir)?.pid);
    let gone =
        || poll::until_ok("the lab to end", DOWN_BOUND, || if lab::is_running(dir) { Err("it runs") } else { Ok(()) });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for ending in [Signal::SIGTERM, Signal::SIGKILL] {
        kill(pid, ending)?;
        if runtime.block_on(gone()).is_ok() {
            eprintln!("lab: the one in {} has ended", dir.display());
            return Ok(ExitCode::SUCCESS);
        }
    }
    anyhow::bail!("process {pid} would not end")
}

/// Says whether a lab runs; status 1 if none does.
fn status(dir: &Path) -> anyhow::Result<ExitCode> {
    if !lab::is_running(dir) {
        eprintln!("lab: none runs in {}; start one with: lab up", dir.display());
        return Ok(ExitCode::FAILURE);
    }
    give(dir, &Order::About)
}

/// Is the lab. Progress, failure and readiness are lines on standard output, which `up` reads.
fn serve(dir: PathBuf, up: &Up) -> ExitCode {
    // Its own session, so that the terminal's end is not the lab's; fails if it is one already.
    let _ = setsid();
    let options = Options { dir: Some(dir), control_plane: !up.no_control_plane, ..Options::default() };
    let options = Options { kubernetes_version: up.kubernetes.clone(), progress: Some(Arc::new(say)), ..options };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let served = runtime.context("starting the runtime").and_then(|runtime| runtime.block_on(serve_lab(options)));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn serve_lab(options: Options) -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let lab = tokio::select! {
        lab = Lab::start(options) => lab?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    prepare(&lab).await?;
    let inbox = orders::Inbox::open(lab.dir())?;
    fs::write(About::path(lab.dir()), serde_json::to_vec(&About { pid: std::process::id().cast_signed() })?)?;
    say(READY);
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            () = inbox.take(&lab) => {}
        }
    }
    lab.shutdown().await
}

/// A line on standard output; nobody may be reading any more.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Writes the files that a person starts from.
async fn prepare(lab: &Lab) -> anyhow::Result<()> {
    let mut exports = format!("export LAB_DIR='{}'\n", lab.dir().display());
    for (name, value) in lab.aws_env() {
        writeln!(exports, "export {name}='{value}'")?;
    }
    if lab.has_control_plane() {
        writeln!(exports, "export KUBECONFIG='{}'", lab.kubeconfig("admin")?.display())?;
        writeln!(exports, "export PATH='{}':\"$PATH\"", lab.control_plane_bin().display())?;
    }
    fs::write(lab.dir().join("env"), exports)?;
    let key = lab.new_key("me").await?;
    fs::rename(lab.ssh_config(&key, "")?, lab.dir().join("ssh_config"))?;
    Ok(())
}

/// Says where everything is.
fn about(lab: &Lab) -> anyhow::Result<String> {
    let dir = lab.dir().display();
    let mut text = format!("environment  . {dir}/env   (API server as admin, AWS stand-in, PATH)\n");
    for (person, groups) in PEOPLE.into_iter().filter(|_| lab.has_control_plane()) {
        writeln!(text, "{person:<11}  {}   ({})", lab.kubeconfig(person)?.display(), groups.join(", "))?;
    }
    writeln!(text, "key          {dir}/keys/me")?;
    writeln!(text, "ssh          ssh -F {dir}/ssh_config …   (that key; knows the instances' host keys)")?;
    writeln!(text, "logs         {dir}/log")?;
    writeln!(text, "endpoint     {}", lab.endpoint_id())?;
    writeln!(text, "\n{}", table(lab).trim_end())?;
    Ok(text)
}

/// The instances, as they are now.
fn table(lab: &Lab) -> String {
    let row = |cells: [&str; 7]| {
        let [name, id, state, private, public, port, tags] = cells;
        format!("{name:<8} {id:<20} {state:<10} {private:<16} {public:<16} {port:<5} {tags}\n")
    };
    let mut text = row(["NAME", "ID", "STATE", "PRIVATE", "PUBLIC", "PORT", "TAGS"]);
    for it in lab.instances() {
        let public = it.public_ip.map_or_else(|| "-".to_owned(), |ip| ip.to_string());
        let tags: Vec<_> = it.tags.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let (private, port) = (it.private_ip.to_string(), it.port.to_string());
        text += &row([&it.name, &it.id, &it.state, &private, &public, &port, &tags.join(",")]);
    }
    text
}
