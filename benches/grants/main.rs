//! How fast grants are made and ended, against a loop that makes the same writes and nothing else.
//!
//! ```text
//! this process ─┬─ the lab: API server, etcd, AWS stand-in     ── watched ──▶ the table
//!               ├─ instance-access controller, a real process ─▶ instanceaccesses.instanceaccess.dev
//!               └─ the loop: a plain client, the same writes  ─▶ instanceaccesses.loop.example
//! ```
//! Everything shares one machine, so no figure stands alone: each is a ratio of two that were taken in one run. The loop
//! writes to a copy of the CRDs and of the admission policies under another group, so that both sides pay the same, and
//! neither sees the other. The stand-in's and the watch's work is charged to the controller's side alone.
//!
//! ```text
//! make bench                                    all of it, half an hour at most
//! make bench ARGS="--quick --json"              a tenth of the requests, five minutes at most
//! make bench ARGS="--short --program PATH"      one at a time and one burst, to compare two builds
//! ```
//! On a busy machine only the ratios and the CPU times in the details mean anything, and the shortest gaps get longer than
//! those that make one crowd of many look-ups.

mod eyes;
mod many;
mod objects;
mod plain;
mod report;
mod stand;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use futures::{TryStreamExt, pin_mut};
use jiff::{SignedDuration, Timestamp};
use kube::core::WatchEvent;
use lab::standin::Api;
use serde_json::{Value, json};

use eyes::Eyes;
use objects::{OURS, Wish};
use plain::{Held, Plain, Statuses};
use report::{Report, percentile};
use stand::{Controller, Stand};

/// What is compared.
const SIDES: [&str; 2] = ["controller", "loop"];
/// How many create at once: enough to keep the API server busy.
const CREATORS: usize = 16;
/// What the loop may choose from.
const WORKERS: [usize; 3] = [4, 8, 16];
/// How long any one phase may take.
const PHASE_BOUND: Duration = Duration::from_secs(300);
/// What a grant must have left when it is made: 60 s of the last key, 10 s of its call, and some to be made in.
const LEAST: Duration = Duration::from_secs(90);

/// Measures the controller against a loop that makes the same writes
#[derive(Debug, Parser)]
struct Args {
    /// A tenth of the requests, in less than five minutes
    #[arg(long)]
    quick: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Leave out what many live grants and many ended requests cost
    #[arg(long)]
    no_memory: bool,
    /// Leave out the larger burst
    #[arg(long)]
    no_flood: bool,
    /// Stop after the one-at-a-time figures and the first burst: for comparing two builds
    #[arg(long)]
    short: bool,
    /// Measure nothing but what many live grants and many ended requests cost
    #[arg(long, conflicts_with_all = ["no_memory", "short"])]
    only_memory: bool,
    /// Live grants for their memory [default: 10000, or 1000]
    #[arg(long)]
    live: Option<usize>,
    /// Ended requests beside them [default: 100000, or 10000]
    #[arg(long)]
    ended: Option<usize>,
    /// The program to measure
    #[arg(long, default_value = env!("CARGO_BIN_EXE_instance-access"))]
    program: PathBuf,
    /// Pushes a second, at most
    #[arg(long, default_value_t = 200)]
    pushes_per_second: u16,
    /// What cargo bench says
    #[arg(long, hide = true)]
    bench: bool,
}

/// How many of each.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    singles: usize,
    burst: usize,
    flood: usize,
    live: usize,
    ended: usize,
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
        true => Sizes { singles: 50, burst: 100, flood: 500, live: 1000, ended: 10_000 },
        false => Sizes { singles: 200, burst: 1000, flood: 5000, live: 10_000, ended: 100_000 },
    };
    let sizes = Sizes { live: args.live.unwrap_or(sizes.live), ended: args.ended.unwrap_or(sizes.ended), ..sizes };
    let stand = Stand::start(args.program.clone()).await?;
    tokio::select! {
        measured = measure(args, sizes, stand) => measured,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    }
}

async fn measure(args: &Args, sizes: Sizes, mut stand: Stand) -> anyhow::Result<Report> {
    let pace = args.pushes_per_second.to_string();
    let eyes = Eyes::open(stand.requester.clone(), OURS).await?;
    if args.only_memory {
        let mut report = Report::of(SIDES);
        many::measure(&mut stand, &eyes, &mut report, sizes.live, sizes.ended).await?;
        stand.lab.shutdown().await?;
        return Ok(report);
    }
    let controller = stand.controller(&["--pushes-per-second", &pace]).await?;
    let mut bench = Bench { plain: None, eyes, controller, report: Report::of(SIDES), expected: HashMap::new() };
    let sample = bench.sample(&mut stand).await?;
    let (spread_last, spread) = bench.one_at_a_time(&mut stand, sizes.singles).await?;

    let burst = bench.burst(&mut stand, "burst", sizes.burst, !args.short, spread_last).await?;
    if args.short {
        return Ok(bench.report);
    }
    let ended = tokio::time::timeout(PHASE_BOUND, sample).await.context("the sample did not end")???;
    bench.plain_mut()?.statuses = Arc::new(Statuses { ended, ..bench.plain()?.statuses.as_ref().clone() });
    bench.spread_ends(&spread).await?;
    bench.ends("burst", burst).await?;
    if !args.no_flood {
        let flood = bench.burst(&mut stand, "flood", sizes.flood, false, None).await?;
        bench.ends("flood", flood).await?;
    }
    bench.after_all(&stand).await?;
    let Bench { controller, eyes, mut report, .. } = bench;
    if !args.no_memory {
        controller.stop().await?;
        many::measure(&mut stand, &eyes, &mut report, sizes.live, sizes.ended).await?;
    }
    stand.lab.shutdown().await?;
    Ok(report)
}

/// What a burst leaves for its end.
struct Burst {
    count: usize,
    end_time: Timestamp,
    /// The loop's objects, a set for each number of workers.
    held: Vec<(usize, Vec<Held>)>,
}

struct Bench {
    plain: Option<Plain>,
    eyes: Eyes,
    controller: Controller,
    report: Report,
    /// Instances that were asked for, by phase.
    expected: HashMap<&'static str, HashSet<String>>,
}

impl Bench {
    fn plain(&self) -> anyhow::Result<&Plain> {
        self.plain.as_ref().context("the sample comes first")
    }

    fn plain_mut(&mut self) -> anyhow::Result<&mut Plain> {
        self.plain.as_mut().context("the sample comes first")
    }

    /// Lets the controller make one grant, and keeps what it writes, for the loop to write the same. Returns the end's
    /// status when there is one.
    async fn sample(&mut self, stand: &mut Stand) -> anyhow::Result<tokio::task::JoinHandle<anyhow::Result<Value>>> {
        let uri = format!("{}?watch=true&timeoutSeconds=600&fieldSelector=metadata.name%3Dsample-0", OURS.requests());
        let events = stand.requester.request_events::<Value>(http::Request::get(uri).body(Vec::new())?).await?;
        let wish = wishes(stand, "sample", 1, Some(soon(LEAST))).remove(0);
        plain::create(&stand.requester, OURS, &wish).await?;
        let (statuses, mut heard) = tokio::sync::mpsc::channel(16);
        tokio::spawn(async move {
            pin_mut!(events);
            while let Ok(Some(event)) = events.try_next().await {
                if let WatchEvent::Added(object) | WatchEvent::Modified(object) = event
                    && statuses.send(object["status"].clone()).await.is_err()
                {
                    return;
                }
            }
        });
        let mut next = async move |reason: &str| loop {
            let status =
                tokio::time::timeout(PHASE_BOUND, heard.recv()).await?.context("the watch over the sample ended")?;
            if active_reason(&status) == Some(reason) {
                return anyhow::Ok(status);
            }
        };
        let granting = next("Granting").await?;
        let granted = next("Granted").await?;
        let statuses = Arc::new(Statuses { granting, granted, ended: Value::Null });
        self.plain = Some(Plain { requester: stand.requester.clone(), operator: stand.operator.clone(), statuses });
        Ok(tokio::spawn(async move { next("Expired").await }))
    }

    /// The controller and the loop in turn, one request at a time. Returns when the last of them ends.
    async fn one_at_a_time(&mut self, stand: &mut Stand, count: usize) -> anyhow::Result<(Option<Timestamp>, String)> {
        /// After each, so that what the controller does after a grant (its Event) is not charged to the loop, and so that
        /// four a second come: five look-ups a second is what the controller allows itself of EC2's rate.
        const PAUSE: Duration = Duration::from_millis(110);
        let phase = "single";
        let wishes = wishes(stand, phase, count, None);
        let (mut ours, mut loops, mut started) = (Vec::new(), Vec::new(), Vec::new());
        let mut last = None;
        let before = stand.api_cpu() + self.controller.cpu();
        let mut loop_cpu = 0.0;
        for (number, mut wish) in wishes.into_iter().enumerate() {
            // Late enough that the bursts are over, and spread over more than half a minute.
            wish.end_time = Some(soon(Duration::from_secs(170 + (number as u64 * 7) % 30)));
            last = last.max(wish.end_time);
            let (start, wall) = (Instant::now(), Timestamp::now());
            plain::create(&stand.requester, OURS, &wish).await?;
            started.push((wish.instance_id.clone(), wall, ms(start.elapsed())));
            self.eyes.active_one(&wish.name, PHASE_BOUND).await?;
            let active = self.eyes.one(&wish.name).active.context("it was seen active")?;
            ours.push(ms(active - start));
            tokio::time::sleep(PAUSE).await;
            let cpu = stand.api_cpu();
            loops.push(ms(self.plain()?.grant(&wish).await?.0));
            loop_cpu += stand.api_cpu() - cpu;
            tokio::time::sleep(PAUSE).await;
        }
        let ours_cpu = stand.api_cpu() + self.controller.cpu() - before - loop_cpu;
        for (name, share, aim) in [("p50", 0.5, Some(1.3)), ("p99", 0.99, None)] {
            let (a, b) = (percentile(&ours, share), percentile(&loops, share));
            let what = format!("apply to Active, {count} one at a time, {name}");
            let kept = aim.map(|aim| a / b <= aim);
            let aim = aim.map_or_else(|| "-".to_owned(), |aim| format!("<= {aim}x"));
            self.report.row(&what, format!("{a:.1} ms"), format!("{b:.1} ms"), format!("{:.2}x", a / b), &aim, kept);
        }
        self.report.detail("single_p50_ms_from_the_start_to", steps(stand, &started, percentile(&ours, 0.5)));
        self.report.detail(
            "single_cpu_ms",
            json!({
                "api_server_and_controller": round(ours_cpu * 1000.0 / count as f64),
                "loop_api_server": round(loop_cpu * 1000.0 / count as f64),
            }),
        );
        Ok((last, phase.to_owned()))
    }

    /// Many at once, against the best that the loop can do.
    async fn burst(
        &mut self,
        stand: &mut Stand,
        phase: &'static str,
        count: usize,
        try_all: bool,
        not_before: Option<Timestamp>,
    ) -> anyhow::Result<Burst> {
        let choices: Vec<usize> = if try_all { WORKERS.to_vec() } else { vec![WORKERS[1]] };
        let mut held = Vec::new();
        let mut best = Duration::MAX;
        let mut loop_cpu = 0.0;
        for workers in choices {
            let wishes = wishes(stand, &format!("{phase}{workers}"), count, None);
            let before = stand.api_cpu();
            let (elapsed, set) = self.plain()?.grant_all(&wishes, workers).await?;
            if elapsed < best {
                (best, loop_cpu) = (elapsed, stand.api_cpu() - before);
            }
            self.report.detail(&format!("{phase}_loop_{workers}_workers_per_second"), rate(count, elapsed));
            held.push((workers, set));
        }
        // Time for twice what the loop took, a grant's least, and for the ends before these.
        let end_time =
            soon(LEAST + best * 2).max(not_before.map_or(Timestamp::MIN, |time| later(time, Duration::from_secs(10))));
        let wishes = wishes(stand, phase, count, Some(end_time));
        self.expected.insert(phase, wishes.iter().map(|wish| wish.instance_id.clone()).collect());
        let (api, own, bench) = (stand.api_cpu(), self.controller.cpu(), bench_cpu());
        let start = Instant::now();
        let requester = stand.requester.clone();
        let created = plain::all(wishes, CREATORS, move |wish| {
            let requester = requester.clone();
            async move { plain::create(&requester, OURS, &wish).await.map(drop) }
        });
        let created = created.await?;
        self.eyes.active(phase, count, PHASE_BOUND).await?;
        let last =
            self.eyes.phase(phase).iter().filter_map(|seen| seen.active).max().context("they were seen active")?;
        let elapsed = last - start;
        let per = |seconds: f64| round(seconds * 1000.0 / count as f64);
        self.report.detail(
            &format!("{phase}_cpu_ms_per_grant"),
            json!({
                "api_server": per(stand.api_cpu() - api),
                "controller": per(self.controller.cpu() - own),
                "this_process_with_the_stand_in": per(bench_cpu() - bench),
                "loop_api_server": per(loop_cpu),
            }),
        );
        self.report.detail(&format!("{phase}_created_after_ms"), json!(round(ms(created))));
        let (a, b) = (count as f64 / elapsed.as_secs_f64(), count as f64 / best.as_secs_f64());
        let kept = a / b >= 0.9;
        self.report.row(
            &format!("{count} requests at once, grants per second"),
            format!("{a:.0}/s"),
            format!("{b:.0}/s"),
            format!("{:.0} %", 100.0 * a / b),
            ">= 90 %",
            Some(kept),
        );
        let calls = self.look_ups(stand, phase);
        let bound = count.div_ceil(200) + 1;
        self.report.row(
            &format!("{count} requests at once, EC2 look-ups"),
            format!("{calls}"),
            "-".to_owned(),
            format!("{calls}"),
            &format!("<= {bound}"),
            Some(calls <= bound),
        );
        Ok(Burst { count, end_time, held })
    }

    /// The look-ups that named an instance of this phase for the first time.
    fn look_ups(&mut self, stand: &Stand, phase: &str) -> usize {
        let mut unseen = self.expected.get(phase).cloned().unwrap_or_default();
        let journal = stand.lab.standin().journal();
        let mut calls: Vec<(f64, usize)> = Vec::new();
        for entry in journal.iter().filter(|entry| entry.api == Api::Ec2) {
            let new = entry.instance_ids.iter().filter(|id| unseen.remove(*id)).count();
            if new > 0 {
                calls.push((ms(entry.offset), new));
            }
        }
        let first = calls.first().map_or(0.0, |(offset, _)| *offset);
        let told: Vec<_> = calls.iter().map(|(offset, new)| json!([round(offset - first), new])).collect();
        self.report.detail(&format!("{phase}_look_ups_as_ms_and_ids"), json!(told));
        calls.len()
    }

    /// Ends that come one after the other.
    async fn spread_ends(&mut self, phase: &str) -> anyhow::Result<()> {
        let count = self.eyes.phase(phase).len();
        self.eyes.ended(phase, count, PHASE_BOUND).await?;
        let late = lateness(&self.eyes, phase);
        let (p50, p99, most) = (percentile(&late, 0.5), percentile(&late, 0.99), percentile(&late, 1.0));
        self.report.row(
            &format!("{count} ends over time, Ended after expirationTime, p99"),
            format!("{p99:.0} ms"),
            "-".to_owned(),
            format!("p50 {p50:.0}, max {most:.0} ms"),
            "< 100 ms",
            Some(p99 < 100.0),
        );
        let metrics = self.controller.metrics().await?;
        let name = "instance_access_end_lateness_seconds";
        let within = metrics.sum(&format!("{name}_bucket{{le=\"0.1\"}}"));
        self.report.detail(
            "spread_ends_by_the_controllers_own_metric",
            json!({
                "ends": metrics.sum(&format!("{name}_count")),
                "within_100_ms": within,
            }),
        );
        Ok(())
    }

    /// Ends that come in the same second, against the loop's writes.
    async fn ends(&mut self, phase: &str, burst: Burst) -> anyhow::Result<()> {
        let Burst { count, end_time, held } = burst;
        let wait = Timestamp::now().duration_until(end_time).try_into().unwrap_or(Duration::ZERO);
        eprintln!("bench: {count} grants end at {end_time}, in {} s", wait.as_secs());
        self.eyes.ended(phase, count, wait + PHASE_BOUND).await?;
        let last = percentile(&lateness(&self.eyes, phase), 1.0);
        let mut best = Duration::MAX;
        for (workers, set) in held {
            let elapsed = self.plain()?.end_all(set, workers).await?;
            self.report.detail(&format!("{phase}_ends_loop_{workers}_workers_ms"), json!(round(ms(elapsed))));
            best = best.min(elapsed);
        }
        let ratio = last / ms(best);
        self.report.row(
            &format!("{count} ends in the same second, the last one"),
            format!("{last:.0} ms"),
            format!("{:.0} ms", ms(best)),
            format!("{ratio:.2}x"),
            "<= 1.2x",
            Some(ratio <= 1.2),
        );
        Ok(())
    }

    /// What the whole run must have kept.
    async fn after_all(&mut self, stand: &Stand) -> anyhow::Result<()> {
        let (pushes, late) = late_pushes(stand, &self.eyes);
        self.report.row(
            "pushes after expirationTime - 60 s",
            format!("{late} of {pushes}"),
            "-".to_owned(),
            format!("{late}"),
            "0",
            Some(late == 0),
        );
        let metrics = self.controller.metrics().await?;
        let mut told = serde_json::Map::new();
        for (name, series) in [
            ("status_writes_stored", "instance_access_status_writes_total{outcome=\"stored\"}"),
            ("status_writes_conflict", "instance_access_status_writes_total{outcome=\"conflict\"}"),
            ("events_sent", "instance_access_events_total{outcome=\"sent\"}"),
            ("events_dropped", "instance_access_events_total{outcome=\"dropped\"}"),
            ("restless_turns", "instance_access_restless_turns_total"),
            ("grants", "instance_access_grants_total"),
        ] {
            told.insert(name.to_owned(), json!(metrics.sum(series)));
        }
        self.report.detail("controller", Value::Object(told));
        let memory = self.controller.memory()?;
        self.report.detail(
            "memory_mib_before_the_memory_phase",
            json!({"now": round(memory.now), "most": round(memory.most)}),
        );
        self.report.detail("watch_resumed", json!(self.eyes.resumed()));
        let changes: u32 = self.eyes.all().iter().filter(|seen| seen.ended.is_some()).map(|seen| seen.changes).sum();
        let ended = self.eyes.all().iter().filter(|seen| seen.ended.is_some()).count();
        self.report.detail("changes_per_ended_request", json!(round(f64::from(changes) / ended as f64)));
        Ok(())
    }
}

/// Where the time of one request goes: when AWS heard of it.
fn steps(stand: &Stand, started: &[(String, Timestamp, f64)], active: f64) -> Value {
    let journal = stand.lab.standin().journal();
    let mut first: HashMap<(Api, &str), Timestamp> = HashMap::new();
    for entry in &journal {
        for id in &entry.instance_ids {
            first.entry((entry.api, id)).or_insert(entry.time);
        }
    }
    let after = |api| {
        let heard = |(id, start, _): &(String, Timestamp, f64)| {
            Some(start.duration_until(*first.get(&(api, id.as_str()))?).as_secs_f64() * 1000.0)
        };
        round(percentile(&started.iter().filter_map(heard).collect::<Vec<_>>(), 0.5))
    };
    let created: Vec<_> = started.iter().map(|(_, _, created)| *created).collect();
    json!({
        "created": round(percentile(&created, 0.5)),
        "look_up_at_aws": after(Api::Ec2),
        "push_at_aws": after(Api::Eic),
        "active": round(active),
    })
}

fn wishes(stand: &mut Stand, phase: &str, count: usize, end_time: Option<Timestamp>) -> Vec<Wish> {
    let ids = stand.instances(count);
    let wish = |(number, instance_id)| Wish { name: format!("{phase}-{number}"), instance_id, end_time };
    ids.into_iter().enumerate().map(wish).collect()
}

/// How far `Ended` was heard of behind the promise, in milliseconds.
fn lateness(eyes: &Eyes, phase: &str) -> Vec<f64> {
    let late = |seen: eyes::Seen| Some(seen.expiration?.duration_until(seen.ended?).as_secs_f64() * 1000.0);
    eyes.phase(phase).into_iter().filter_map(late).collect()
}

/// All pushes that took effect, and those after which the key could be read beyond the grant's end.
fn late_pushes(stand: &Stand, eyes: &Eyes) -> (usize, usize) {
    let expiration: HashMap<String, Timestamp> =
        eyes.all().into_iter().filter_map(|seen| Some((seen.fingerprint?, seen.expiration?))).collect();
    let journal = stand.lab.standin().journal();
    let pushes: Vec<_> = journal.iter().filter(|entry| entry.api == Api::Eic && entry.outcome.took_effect()).collect();
    let is_late = |entry: &&&lab::standin::Entry| {
        let end = entry.key_fingerprint.as_ref().and_then(|fingerprint| expiration.get(fingerprint));
        // A push of a key that no status names is worse than late.
        end.is_none_or(|end| later(entry.time, entry.elapsed + lab::standin::KEY_WINDOW) > *end)
    };
    (pushes.len(), pushes.iter().filter(is_late).count())
}

fn active_reason(status: &Value) -> Option<&str> {
    let conditions = status["conditions"].as_array()?;
    conditions.iter().find(|condition| condition["type"] == "Active")?["reason"].as_str()
}

/// A whole second, at least so far from now.
fn soon(wait: Duration) -> Timestamp {
    let time = later(Timestamp::now(), wait);
    Timestamp::from_second(time.as_second() + 1).expect("the near future fits")
}

fn later(time: Timestamp, by: Duration) -> Timestamp {
    time + SignedDuration::try_from(by).expect("minutes fit")
}

fn bench_cpu() -> f64 {
    stand::cpu(std::process::id().cast_signed())
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

fn rate(count: usize, elapsed: Duration) -> Value {
    json!(round(count as f64 / elapsed.as_secs_f64()))
}

fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
