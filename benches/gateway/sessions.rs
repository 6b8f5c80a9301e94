//! Many sessions: what they cost while they idle, what while they are busy, and how late they are cut.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use futures::{StreamExt, TryStreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use russh::Channel;
use russh::client::{Handle, Msg};
use russh::keys::PrivateKey;
use serde_json::json;
use tokio::task::JoinSet;

use super::far::Far;
use super::near::{self, Trusting};
use super::report::{Report, percentile};
use super::stand::{Gateway, Grant, Stand};
use super::{Part, Sizes, ms, round};

/// Sessions of one grant: as many as it may open at once without waiting, and have.
const PER_GRANT: usize = 50;
/// Logins at once: below what one source may have.
const LOGINS: usize = 16;
/// After which the allocator has given back what it does not need, and nothing is in flight.
const REST: Duration = Duration::from_secs(5);
/// How long the gateway's idle CPU is looked at.
const IDLE: Duration = Duration::from_secs(5);
/// How far ahead all grants are told to end: twenty writes, and their way to the gateway.
const AHEAD: SignedDuration = SignedDuration::from_secs(4);
/// How long anything may take.
const BOUND: Duration = Duration::from_secs(90);

/// Open sessions, and the connections that carry them.
struct Open {
    handles: Vec<Handle<Trusting>>,
    channels: Vec<Channel<Msg>>,
}

/// A server for all sessions, and grants that lead to it.
struct Ground<'a> {
    stand: &'a Stand,
    address: SocketAddr,
    far: Far,
}

impl Ground<'_> {
    async fn grants(&self, what: &str, count: usize) -> anyhow::Result<Vec<Grant>> {
        let mut grants = Vec::new();
        for number in 0..count {
            let made_up = (self.stand.next_number(), self.address);
            grants.push(self.stand.grant(&format!("{what}-{number}"), Some(made_up)).await?);
        }
        Ok(grants)
    }
}

/// Idle ones in both forms, each cut at one instant; then busy ones.
pub async fn measure(stand: &Stand, report: &mut Report, sizes: Sizes, parts: &[Part]) -> anyhow::Result<()> {
    let address = stand.spare_address()?;
    let ground = Ground { stand, address, far: Far::start(address).await? };
    if parts.contains(&Part::Idle) {
        let count = sizes.sessions.div_ceil(PER_GRANT);
        for (what, per_connection) in [("one", 1), ("many", PER_GRANT)] {
            idle(stand, &ground.far, report, ground.grants(what, count).await?, per_connection).await?;
        }
    }
    if parts.contains(&Part::Busy) {
        busy(stand, report, ground.grants("busy", 1).await?, sizes).await?;
    }
    Ok(())
}

async fn idle(
    stand: &Stand,
    far: &Far,
    report: &mut Report,
    mut grants: Vec<Grant>,
    per_connection: usize,
) -> anyhow::Result<()> {
    let gateway = stand.gateway(&format!("gateway-idle-{per_connection}")).await?;
    let what = match per_connection {
        1 => "each with a connection".to_owned(),
        many => format!("{many} to a connection"),
    };
    warm(stand, &gateway, &grants[0]).await?;
    let (before, cpu, start) = (gateway.resident()?, gateway.cpu(), Instant::now());
    let open = open_all(stand, &gateway, &grants, per_connection).await?;
    let count = open.channels.len();
    let name = format!("{count}_sessions_{per_connection}_to_a_connection");
    let opening = start.elapsed();
    let opening_cpu = (gateway.cpu() - cpu) * 1000.0 / count as f64;
    rest(&gateway).await?;
    let each = (gateway.resident()? - before) / count as f64;
    report.row(
        &format!("{count} idle sessions, {what}: memory of each"),
        format!("{each:.1} KiB"),
        "-".to_owned(),
        format!("{each:.1} KiB"),
        "<= 64 KiB",
        Some(each <= 64.0),
    );
    let cpu = gateway.cpu();
    tokio::time::sleep(IDLE).await;
    let idling = (gateway.cpu() - cpu) / IDLE.as_secs_f64();
    report.detail(&format!("{name}_opening_cpu_ms_each"), json!(round(opening_cpu)));
    report.detail(&format!("{name}_opened_per_second"), json!(round(count as f64 / opening.as_secs_f64())));
    report.detail(&format!("{name}_idle_cpu_percent_of_a_core"), json!(round(idling * 100.0)));

    let cuts = cut(stand, far, &mut grants, open).await?;
    let in_gateway = gateway.cuts_below(0.99).await?;
    report.detail(&format!("{name}_cut_99_of_100_in_the_gateways_own_count_below_seconds"), json!(in_gateway));
    for (side, late) in [("the client", &cuts.near), ("the instance", &cuts.far)] {
        let p99 = percentile(late, 0.99);
        report.row(
            &format!("{count} cuts at one instant, {what}: lateness that {side} sees, p99"),
            format!("{p99:.0} ms"),
            "-".to_owned(),
            format!("{p99:.0} ms (most {:.0})", percentile(late, 1.0)),
            "< 1000 ms",
            Some(p99 < 1000.0),
        );
    }
    let early = cuts.near.iter().chain(&cuts.far).filter(|late| **late < 0.0).count();
    anyhow::ensure!(early == 0, "{early} sessions ended before their time");
    is_closed(&gateway).await
}

/// Whatever a first session costs belongs to none of the thousand.
async fn warm(stand: &Stand, gateway: &Gateway, grant: &Grant) -> anyhow::Result<()> {
    let key = key_of(grant)?;
    let handle = near::connect(gateway.ssh, &key).await?;
    let channel = near::open(&handle, &grant.instance_id, stand.lab.ssh_port()).await?;
    channel.close().await?;
    drop((channel, handle));
    is_closed(gateway).await?;
    rest(gateway).await?;
    Ok(())
}

/// Leaves the gateway alone but for its metrics: without a stir now and then its allocator gives nothing back.
async fn rest(gateway: &Gateway) -> anyhow::Result<()> {
    let start = Instant::now();
    while start.elapsed() < REST {
        gateway.metric("instance_access_gateway_grants").await?;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

fn key_of(grant: &Grant) -> anyhow::Result<Arc<PrivateKey>> {
    Ok(Arc::new(russh::keys::load_secret_key(&grant.key.private, None)?))
}

async fn is_closed(gateway: &Gateway) -> anyhow::Result<()> {
    let start = Instant::now();
    while gateway.metric("instance_access_gateway_sessions_open").await? > 0.0 {
        anyhow::ensure!(start.elapsed() < BOUND, "sessions are still open");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

async fn open_all(stand: &Stand, gateway: &Gateway, grants: &[Grant], per_connection: usize) -> anyhow::Result<Open> {
    let port = stand.lab.ssh_port();
    let mut connections = Vec::new();
    for grant in grants {
        let key = key_of(grant)?;
        let one = || (Arc::clone(&key), grant.instance_id.clone());
        connections.extend(std::iter::repeat_with(one).take(PER_GRANT / per_connection));
    }
    let opening = stream::iter(connections).map(|(key, host)| async move {
        let handle = near::connect(gateway.ssh, &key).await?;
        let mut channels = Vec::new();
        for _ in 0..per_connection {
            channels.push(near::open(&handle, &host, port).await?);
        }
        anyhow::Ok((handle, channels))
    });
    let opened: Vec<_> = tokio::time::timeout(BOUND, opening.buffer_unordered(LOGINS).try_collect::<Vec<_>>())
        .await
        .context("opening the sessions took too long")??;
    let (handles, channels): (Vec<_>, Vec<_>) = opened.into_iter().unzip();
    Ok(Open { handles, channels: channels.into_iter().flatten().collect() })
}

/// How late each session was cut, in milliseconds.
struct Cuts {
    near: Vec<f64>,
    far: Vec<f64>,
}

async fn cut(stand: &Stand, far: &Far, grants: &mut [Grant], open: Open) -> anyhow::Result<Cuts> {
    let count = open.channels.len();
    far.take_ends();
    let mut ends = JoinSet::new();
    for channel in open.channels {
        ends.spawn(async move {
            near::ended(channel).await;
            Timestamp::now()
        });
    }
    let time = (Timestamp::now() + AHEAD).round(jiff::Unit::Second)?;
    for grant in grants {
        stand.end_at(grant, time).await?;
    }
    anyhow::ensure!(Timestamp::now() < time, "the grants' ends were not written before they came");
    let late = |end: Timestamp| end.duration_since(time).as_secs_f64() * 1000.0;
    let mut near = Vec::new();
    while let Some(end) = tokio::time::timeout(BOUND, ends.join_next()).await.context("a session was not cut")? {
        near.push(late(end?));
    }
    let mut seen = Vec::new();
    let start = Instant::now();
    while seen.len() < count {
        anyhow::ensure!(start.elapsed() < BOUND, "the instance saw {} of {count} ends", seen.len());
        seen.extend(far.take_ends().into_iter().map(late));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    drop(open.handles);
    Ok(Cuts { near, far: seen })
}

/// As many as one grant has, each with a connection: down, up, at rest after that, and with clients that read nothing.
async fn busy(stand: &Stand, report: &mut Report, grants: Vec<Grant>, sizes: Sizes) -> anyhow::Result<()> {
    let gateway = stand.gateway("gateway-busy").await?;
    warm(stand, &gateway, &grants[0]).await?;
    let before = gateway.resident()?;
    let Open { handles, mut channels } = open_all(stand, &gateway, &grants, 1).await?;
    let count = channels.len();
    let each = sizes.busy_bytes / count as u64;
    let gib = (each * count as u64) as f64 / (1 << 30) as f64;
    for direction in ["from the instance", "to the instance"] {
        gateway.forget_most()?;
        let (cpu, start) = (gateway.cpu(), Instant::now());
        let mut running = JoinSet::new();
        for mut channel in channels.drain(..) {
            running.spawn(async move {
                match direction {
                    "from the instance" => near::receive(&mut channel, each).await?,
                    _ => near::send(&mut channel, each).await?,
                }
                anyhow::Ok(channel)
            });
        }
        while let Some(done) =
            tokio::time::timeout(BOUND, running.join_next()).await.context("a session stood still")?
        {
            channels.push(done??);
        }
        let elapsed = start.elapsed().as_secs_f64();
        let name = format!("{count}_busy_sessions_{}", direction.replace(' ', "_"));
        report.detail(
            &name,
            json!({
                "mb_per_second_together": round(gib * (1 << 30) as f64 / 1e6 / elapsed),
                "gateway_cpu_seconds_per_gib": round((gateway.cpu() - cpu) / gib),
                "memory_kib_each_at_most": round((gateway.resident_most()? - before) / count as f64),
            }),
        );
    }
    rest(&gateway).await?;
    let rested = (gateway.resident()? - before) / count as f64;
    report.row(
        &format!("{count} sessions at rest after {} MiB each way: memory of each", each >> 20),
        format!("{rested:.1} KiB"),
        "-".to_owned(),
        format!("{rested:.1} KiB"),
        "-",
        None,
    );
    // Asked for more than anybody's windows hold, and not read.
    gateway.forget_most()?;
    let start = Instant::now();
    for channel in &channels {
        channel.data_bytes(super::far::Order::Send(1 << 30).bytes()).await?;
    }
    rest(&gateway).await?;
    let stuck = (gateway.resident_most()? - before) / count as f64;
    report.row(
        &format!("{count} clients that read nothing: memory of each, at most"),
        format!("{stuck:.1} KiB"),
        "-".to_owned(),
        format!("{stuck:.1} KiB"),
        "-",
        None,
    );
    let cpu = gateway.cpu();
    tokio::time::sleep(IDLE).await;
    let idling = (gateway.cpu() - cpu) / IDLE.as_secs_f64();
    report.detail("clients_that_read_nothing_cpu_percent_of_a_core", json!(round(idling * 100.0)));
    report.detail("clients_that_read_nothing_looked_at_after_ms", json!(round(ms(start.elapsed()))));
    drop((channels, handles));
    is_closed(&gateway).await
}
