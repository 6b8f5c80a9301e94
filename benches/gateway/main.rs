//! What the gateway costs: against straight connections to the same sshd, and by the thousand.
//!
//! ```text
//! ssh, scp ───────────────────────────────▶ sshd            straight
//! ssh, scp ──▶ instance-access gateway ───▶ sshd            through: OpenSSH's own programs
//! this process ──▶ instance-access gateway ──▶ this process a thousand sessions: russh, and a server that swallows
//!                        ▲ watch: grants that this process wrote
//!                  kube-apiserver
//! ```
//! Everything shares one machine, so no figure of speed stands alone: each is a ratio of two that were taken in turn, in one
//! run. On two cores the four programs of a stream share them; how much CPU time each takes for a byte then tells who would
//! be the limit with a core for each. Loopback has no latency: what the gateway adds to an echo is its own work.
//!
//! ```text
//! make bench-gateway                              all of it, three minutes
//! make bench-gateway ARGS="--quick --json"        smaller, a minute
//! make bench-gateway ARGS="--only idle,busy"      some of it; --program PATH compares two builds
//! ```

mod far;
mod near;
#[path = "../grants/report.rs"]
mod report;
mod sessions;
mod stand;
mod streams;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, ValueEnum};

use report::Report;
use stand::Stand;

/// Measures the gateway against straight connections
#[derive(Debug, Parser)]
struct Args {
    /// Smaller, in a minute
    #[arg(long)]
    quick: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Measure some of it alone; several with commas
    #[arg(long, value_delimiter = ',', default_value = "streams,idle,busy")]
    only: Vec<Part>,
    /// The program to measure
    #[arg(long, default_value = env!("CARGO_BIN_EXE_instance-access"))]
    program: PathBuf,
    /// What cargo bench says
    #[arg(long, hide = true)]
    bench: bool,
}

/// What can be measured by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Throughput and latency of OpenSSH's own programs
    Streams,
    /// Memory and cuts of many sessions
    Idle,
    /// CPU and memory of some that are busy
    Busy,
}

/// How many of each.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    stream_bytes: u64,
    rounds: usize,
    echoes: usize,
    banners: usize,
    sessions: usize,
    busy_bytes: u64,
}

fn main() -> ExitCode {
    let args = Args::parse();
    // Two crates would otherwise each pick a provider; ours is the first.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime can be made");
    match runtime.block_on(run(&args)) {
        Ok(report) => {
            if args.json {
                println!("{:#}", report.json());
            } else {
                println!("\n{}", report.text());
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &Args) -> anyhow::Result<Report> {
    let sizes = match args.quick {
        true => {
            Sizes { stream_bytes: 128 << 20, rounds: 1, echoes: 500, banners: 20, sessions: 200, busy_bytes: 256 << 20 }
        }
        false => {
            Sizes { stream_bytes: 512 << 20, rounds: 3, echoes: 1000, banners: 50, sessions: 1000, busy_bytes: 1 << 30 }
        }
    };
    let files = open_files_max()?;
    let wanted = 3 * sizes.sessions as u64 + 500;
    anyhow::ensure!(files >= wanted, "{files} files may be open, {wanted} are needed; say ulimit -n {wanted} before");
    let stand = Stand::start(args.program.clone()).await?;
    tokio::select! {
        measured = measure(args, sizes, stand) => measured,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    }
}

async fn measure(args: &Args, sizes: Sizes, stand: Stand) -> anyhow::Result<Report> {
    let mut report = Report::of(["gateway", "straight"]);
    if args.only.contains(&Part::Streams) {
        streams::measure(&stand, &mut report, sizes).await?;
    }
    sessions::measure(&stand, &mut report, sizes, &args.only).await?;
    stand.lab.shutdown().await?;
    Ok(report)
}

/// How many files a process may have open, this one and those that it starts.
fn open_files_max() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/self/limits")?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"));
    let soft = line.and_then(|line| line.split_whitespace().next()).context("the kernel tells no limit of files")?;
    Ok(soft.parse().unwrap_or(u64::MAX)) // unlimited
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
