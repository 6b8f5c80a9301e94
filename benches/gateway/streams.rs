//! What a person feels: OpenSSH's own programs, through the gateway and straight to the same sshd.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;

use super::report::{Report, percentile};
use super::stand::{Gateway, Grant, Stand, cpu, run};
use super::{Sizes, ms, near, round};

/// Outer ciphers that are tried; OpenSSH's default is the first.
const OUTER: [&str; 2] = ["chacha20-poly1305@openssh.com", "aes128-gcm@openssh.com"];
/// Inner ones.
const INNER: [&str; 2] = OUTER;
/// How long any one transfer may take.
const BOUND: Duration = Duration::from_secs(120);
const GIB: f64 = (1 << 30) as f64;

/// A way to the instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Way {
    Straight,
    Through,
}

/// A client's configuration for one pair of ciphers.
struct Client<'a> {
    stand: &'a Stand,
    grant: &'a Grant,
    gateway: &'a Gateway,
    config: PathBuf,
}

impl<'a> Client<'a> {
    fn new(stand: &'a Stand, grant: &'a Grant, gateway: &'a Gateway, inner: &str, outer: &str) -> anyhow::Result<Self> {
        let (instance, id) = (&stand.instance, &stand.instance.id);
        let more = format!(
            "Host gateway\n  HostName {}\n  Port {}\n  User bench\n  UserKnownHostsFile {}\n  Ciphers {outer}\n\
             Host {id}\n  ProxyJump gateway\n  Port {port}\n  User {user}\n  Ciphers {inner}\n\
             Host straight\n  HostName {address}\n  Port {port}\n  User {user}\n  Ciphers {inner}\n",
            gateway.ssh.ip(),
            gateway.ssh.port(),
            gateway.known_hosts.display(),
            port = instance.port,
            user = lab::OS_USERS[0],
            address = instance.address().ip(),
        );
        Ok(Self { stand, grant, gateway, config: stand.lab.ssh_config(&grant.key, &more)? })
    }

    fn host(&self, way: Way) -> &str {
        match way {
            Way::Straight => "straight",
            Way::Through => &self.grant.instance_id,
        }
    }

    /// Logs in for one command.
    async fn ssh(&self, way: Way, command: &str) -> anyhow::Result<Command> {
        self.stand.push(self.grant).await?;
        let mut ssh = self.stand.lab.ssh(&self.config)?;
        ssh.arg(self.host(way)).arg(command);
        Ok(ssh)
    }

    /// One long stream, from the instance to nowhere.
    async fn stream(&self, way: Way, bytes: u64) -> anyhow::Result<Stream> {
        // The last word waits for us, so that all processes are there to be asked.
        let command = format!("echo begin >&2; head -c {bytes} /dev/zero; echo end >&2; cat");
        let mut ssh = self.ssh(way, &command).await?;
        ssh.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = ssh.spawn()?;
        let mut words = BufReader::new(child.stderr.take().context("it is piped")?).lines();
        let mut word = async |expected: &str| {
            let line = tokio::time::timeout(BOUND, words.next_line()).await.context("a stream stood still")??;
            anyhow::ensure!(line.as_deref() == Some(expected), "ssh said {line:?}");
            Ok(())
        };
        word("begin").await?;
        let (before, start) = (cpu_by_role(self.gateway), Instant::now());
        word("end").await?;
        let (elapsed, after) = (start.elapsed(), cpu_by_role(self.gateway));
        drop(child.stdin.take());
        child.wait().await?;
        let gib = bytes as f64 / GIB;
        let of = |(role, seconds): (&'static str, f64)| {
            (role, (seconds - before.get(role).copied().unwrap_or_default()) / gib)
        };
        Ok(Stream { rate: bytes as f64 / elapsed.as_secs_f64(), cpu_per_gib: after.into_iter().map(of).collect() })
    }

    /// `scp` of a file to the instance; returns how long it took.
    async fn scp(&self, way: Way, file: &Path, target: &Path) -> anyhow::Result<Duration> {
        self.stand.push(self.grant).await?;
        let mut scp = Command::new("scp");
        scp.arg("-q").arg("-F").arg(&self.config).env(lab::proc::MARK, self.stand.lab.dir());
        scp.env_remove("SSH_AUTH_SOCK").arg(file).arg(format!("{}:{}", self.host(way), target.display()));
        let start = Instant::now();
        run(scp, "").await?;
        Ok(start.elapsed())
    }

    /// How long one byte takes to a `cat` there and back, in milliseconds.
    async fn echoes(&self, way: Way, count: usize) -> anyhow::Result<Vec<f64>> {
        let mut ssh = self.ssh(way, "cat").await?;
        let mut child = ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let (mut to, mut from) =
            (child.stdin.take().context("it is piped")?, child.stdout.take().context("it is piped")?);
        let mut took = Vec::with_capacity(count);
        let mut byte = [0];
        // The first ones belong to the login.
        for number in 0..count + 20 {
            let start = Instant::now();
            to.write_all(b".").await?;
            tokio::time::timeout(BOUND, from.read_exact(&mut byte)).await.context("no echo")??;
            if number >= 20 {
                took.push(ms(start.elapsed()));
            }
        }
        drop((to, from));
        child.wait().await?;
        Ok(took)
    }
}

struct Stream {
    /// Bytes a second.
    rate: f64,
    /// CPU seconds for a GiB, of all processes in one role.
    cpu_per_gib: BTreeMap<&'static str, f64>,
}

/// Streams, files, echoes, and first words.
pub async fn measure(stand: &Stand, report: &mut Report, sizes: Sizes) -> anyhow::Result<()> {
    let grant = stand.grant("streams", None).await?;
    let gateway = stand.gateway("gateway-streams").await?;
    for inner in INNER {
        streams(stand, &grant, &gateway, report, sizes, inner).await?;
    }
    let client = Client::new(stand, &grant, &gateway, INNER[0], OUTER[0])?;
    files(&client, report, sizes).await?;
    echoes(&client, report, sizes).await?;
    banners(stand, &grant, &gateway, report, sizes).await
}

async fn streams(
    stand: &Stand,
    grant: &Grant,
    gateway: &Gateway,
    report: &mut Report,
    sizes: Sizes,
    inner: &str,
) -> anyhow::Result<()> {
    let clients = OUTER.iter().map(|outer| Client::new(stand, grant, gateway, inner, outer));
    let clients = clients.collect::<anyhow::Result<Vec<_>>>()?;
    let mut straight = Vec::new();
    let mut through: Vec<Vec<Stream>> = OUTER.iter().map(|_| Vec::new()).collect();
    // In turn, so that a busy moment of the machine is nobody's alone.
    for _ in 0..sizes.rounds {
        straight.push(clients[0].stream(Way::Straight, sizes.stream_bytes).await?);
        for (client, runs) in clients.iter().zip(&mut through) {
            runs.push(client.stream(Way::Through, sizes.stream_bytes).await?);
        }
    }
    let rate = |runs: &[Stream]| percentile(&runs.iter().map(|run| run.rate).collect::<Vec<_>>(), 0.5);
    let slowest = |cpu: &BTreeMap<&'static str, f64>| {
        let slowest = cpu.iter().max_by(|(_, a), (_, b)| a.total_cmp(b));
        slowest.map(|(role, seconds)| (*role, *seconds)).context("no CPU time was used")
    };
    let base = rate(&straight);
    let base_cpu = mean(&straight);
    let (base_role, base_seconds) = slowest(&base_cpu)?;
    let (inner_name, megabytes) = (short(inner), |rate: f64| format!("{:.0} MB/s", rate / 1e6));
    report.detail(&format!("stream_{inner_name}_straight_cpu_seconds_per_gib"), json!(rounded(&base_cpu)));
    for (outer, runs) in OUTER.iter().zip(&through) {
        let outer = short(outer);
        let (rate, cpu) = (rate(runs), mean(runs));
        let what = format!("a stream, inner {inner_name}, outer {outer}");
        let ratio = rate / base;
        // On few cores all programs share them: then this says how much work there is, and not who is the limit.
        let figure = format!("{:.0} %", 100.0 * ratio);
        report.row(&what, megabytes(rate), megabytes(base), figure, ">= 95 %", Some(ratio >= 0.95));
        // With a core for each, the program that works most for a byte sets the pace.
        let (role, seconds) = slowest(&cpu)?;
        let gateway = cpu.get("gateway").copied().unwrap_or_default();
        report.row(
            &format!("{what}: CPU of the gateway against the busiest without it ({base_role})"),
            format!("{gateway:.2} s/GiB"),
            format!("{base_seconds:.2} s/GiB"),
            format!("{:.2}x; {role} limits: {seconds:.2}", gateway / base_seconds),
            "<= 1.05x",
            Some(gateway <= base_seconds * 1.05),
        );
        report.detail(&format!("stream_{inner_name}_in_{outer}_cpu_seconds_per_gib"), json!(rounded(&cpu)));
    }
    Ok(())
}

fn mean(runs: &[Stream]) -> BTreeMap<&'static str, f64> {
    let mut sums = BTreeMap::new();
    for (role, seconds) in runs.iter().flat_map(|run| &run.cpu_per_gib) {
        *sums.entry(*role).or_insert(0.0) += seconds / runs.len() as f64;
    }
    sums
}

fn rounded(cpu: &BTreeMap<&'static str, f64>) -> BTreeMap<&'static str, f64> {
    cpu.iter().map(|(role, seconds)| (*role, round(*seconds))).collect()
}

/// A cipher without its maker.
fn short(cipher: &str) -> &str {
    cipher.split('@').next().unwrap_or(cipher)
}

/// Both ends of a file's way; they go with this.
struct Files {
    from: PathBuf,
    empty: PathBuf,
    to: PathBuf,
}

impl Drop for Files {
    fn drop(&mut self) {
        for path in [&self.from, &self.empty, &self.to] {
            let _ = std::fs::remove_file(path); // it may not have been made
        }
    }
}

async fn files(client: &Client<'_>, report: &mut Report, sizes: Sizes) -> anyhow::Result<()> {
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    let named = |end: &str| dir.join(format!("instance-access-bench-{}-{end}", uuid::Uuid::new_v4()));
    let files = Files { from: named("from"), empty: named("empty"), to: named("to") };
    std::fs::write(&files.empty, "")?;
    std::fs::write(&files.from, vec![0x5a; usize::try_from(sizes.stream_bytes)?])?;
    let mut rates: HashMap<Way, Vec<f64>> = HashMap::new();
    for _ in 0..sizes.rounds {
        for way in [Way::Straight, Way::Through] {
            // What the login takes is not the file's.
            let login = client.scp(way, &files.empty, &files.to).await?;
            let all = client.scp(way, &files.from, &files.to).await?;
            let copied = std::fs::metadata(&files.to)?.len();
            anyhow::ensure!(copied == sizes.stream_bytes, "{copied} bytes arrived");
            rates.entry(way).or_default().push(sizes.stream_bytes as f64 / all.saturating_sub(login).as_secs_f64());
        }
    }
    let [straight, through] = [Way::Straight, Way::Through].map(|way| percentile(&rates[&way], 0.5));
    report.row(
        &format!("scp of {} MiB", sizes.stream_bytes >> 20),
        format!("{:.0} MB/s", through / 1e6),
        format!("{:.0} MB/s", straight / 1e6),
        format!("{:.0} %", 100.0 * through / straight),
        ">= 95 %",
        Some(through / straight >= 0.95),
    );
    Ok(())
}

async fn echoes(client: &Client<'_>, report: &mut Report, sizes: Sizes) -> anyhow::Result<()> {
    let (mut straight, mut through) = (Vec::new(), Vec::new());
    for _ in 0..sizes.rounds {
        straight.extend(client.echoes(Way::Straight, sizes.echoes).await?);
        through.extend(client.echoes(Way::Through, sizes.echoes).await?);
    }
    for (name, share) in [("p50", 0.5), ("p99", 0.99)] {
        let (a, b) = (percentile(&through, share), percentile(&straight, share));
        report.row(
            &format!("echo of one byte, {name}"),
            format!("{a:.3} ms"),
            format!("{b:.3} ms"),
            format!("+{:.3} ms", a - b),
            "< 1 ms",
            Some(a - b < 1.0),
        );
    }
    Ok(())
}

async fn banners(
    stand: &Stand,
    grant: &Grant,
    gateway: &Gateway,
    report: &mut Report,
    sizes: Sizes,
) -> anyhow::Result<()> {
    let key = Arc::new(russh::keys::load_secret_key(&grant.key.private, None)?);
    let (mut straight, mut through) = (Vec::new(), Vec::new());
    for _ in 0..sizes.banners {
        let start = Instant::now();
        near::straight_banner(stand.instance.address()).await?;
        straight.push(ms(start.elapsed()));
        let start = Instant::now();
        let handle = near::connect(gateway.ssh, &key).await?;
        let channel = near::open(&handle, &grant.instance_id, stand.instance.port).await?;
        through.push(ms(start.elapsed()));
        channel.close().await?;
    }
    for (name, share) in [("p50", 0.5), ("p99", 0.99)] {
        let (a, b) = (percentile(&through, share), percentile(&straight, share));
        let what = format!("from TCP connect to the inner banner, {name}");
        report.row(&what, format!("{a:.1} ms"), format!("{b:.1} ms"), format!("+{:.1} ms", a - b), "-", None);
    }
    Ok(())
}

/// CPU time so far of all that this process started, in seconds, by what it does.
fn cpu_by_role(gateway: &Gateway) -> BTreeMap<&'static str, f64> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()) {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        children.entry(parent.unwrap_or_default()).or_default().push(pid);
    }
    let mut ours = HashSet::new();
    let mut next = vec![std::process::id().cast_signed()];
    while let Some(pid) = next.pop() {
        for child in children.get(&pid).into_iter().flatten() {
            if ours.insert(*child) {
                next.push(*child);
            }
        }
    }
    let mut roles = BTreeMap::new();
    for pid in ours {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let is_jump = line.split(|byte| *byte == 0).any(|argument| argument == b"-W");
        let role = match name.trim() {
            _ if pid == gateway.pid() => "gateway",
            "ssh" if is_jump => "ssh to the gateway",
            "ssh" => "ssh to the instance",
            name if name.starts_with("sshd") => "sshd",
            _ => continue,
        };
        *roles.entry(role).or_insert(0.0) += cpu(pid);
    }
    roles
}
