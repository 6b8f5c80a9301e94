//! The chart installed into a real API server, and its pods at work as processes: two controllers, of which one leads, and
//! two gateways. People do the main job through them while leaders are killed, paused and cut off; then it is judged, from
//! outside, whether anybody pushed or wrote who was deposed, whether an end was late, and whether the trails verify.
//!
//! ```text
//! chart ─ helm template ─▶ kube-apiserver ◀── link ─── controllers, gateways      kubectl, ssh as alice and erin
//!  pod.rs runs what the pod templates say:   arguments, environment, ports, volumes, service accounts
//!  link.rs is a pod's way to the API server, and can be cut       watch.rs sees every version of requests and Lease
//!  findings.rs judges: the API server's audit log, AWS's journal (it names the pusher), the trails
//! ```
//! Nothing is built around the chart: what it forgets is missing. The day, in seconds from its first grants on:
//!
//! | at | what |
//! |---|---|
//! | 0 | twenty-six grants, whose ends lie two seconds apart from 76 on, and those of the sessions below |
//! | | a request approved, logins through both gateways; one gateway killed under its sessions |
//! | 30 | the leader's way to the API server is closed; meanwhile a session is cut by a revocation |
//! | 78 | kill -9 of the leader |
//! | 94 | the leader is stopped for longer than its lease, and goes on |
//! | 110 | the leader's bytes to the API server are lost, while it reaches AWS |
//! | 126 | SIGTERM to the leader |
//!
//! In each gap sessions end, and grants: the gateways cut on the instant, and status says so once somebody leads.

mod cluster;
mod findings;
#[path = "../common/helm.rs"]
mod helm;
mod link;
#[path = "../common/objects.rs"]
mod objects;
mod people;
mod pod;
mod rights;
mod watch;

use std::ops::Range;
use std::process::{ExitCode, ExitStatus};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use futures::future::{join_all, try_join_all};
use jiff::{SignedDuration, Timestamp};
use lab::poll;
use lab::standin::{Api, Fault as AwsFault, FaultKind};
use libtest_mimic::{Arguments, Trial};
use serde_json::json;

use cluster::{BOUND, Cluster, TEAM, kubectl};
use findings::{Fault, Past};
use link::Way;
use people::{Live, Request, machine};
use pod::Pod;
use watch::{Term, expiration, shown};

/// When the faults come, in seconds from the first grants on. A take-over needs 11 of the 16 between two, and sessions end 5 after
/// a fault: a busy machine may be late by as much as is left of both.
const CLOSED: i64 = 30;
const KILLED: i64 = 78;
const STOPPED: i64 = 94;
const LOST: i64 = 110;
const TOLD: i64 = 126;
/// When the stream's grants end, two seconds apart: while somebody leads, and in each gap but the first, as no grant is so
/// short that it could.
const ENDS: std::ops::RangeInclusive<i64> = 76..=126;
/// How late a session may be cut after the end of its grant.
const CUT_LATE_MAX: f64 = 1.0;
/// How late after kubectl's return a revocation may have cut: that second, and the API server's way to the watch.
const REVOKE_LATE_MAX: f64 = 2.0;

fn main() -> ExitCode {
    // Two crates would otherwise each pick a provider of TLS.
    rustls::crypto::aws_lc_rs::default_provider().install_default().expect("nothing was installed before");
    let name = "the_installed_chart_does_its_job_while_leaders_are_killed_paused_and_cut_off";
    let day = || {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
        runtime.block_on(day()).map_err(|error| format!("{error:#}").into())
    };
    libtest_mimic::run(&Arguments::from_args(), vec![Trial::test(name, day)]).exit_code()
}

/// A day under way.
struct Day {
    cluster: Cluster,
    begin: Timestamp,
    faults: Vec<Fault>,
    figures: Vec<String>,
}

async fn day() -> anyhow::Result<()> {
    let started = Timestamp::now();
    let cluster = Cluster::start().await?;
    let begin = Timestamp::from_second(Timestamp::now().as_second() + 1)?;
    let mut day = Day { cluster, begin, faults: Vec::new(), figures: Vec::new() };
    day.say(format!("installed and ready after {:.1} s", seconds(started, Timestamp::now())));
    let outcome = day.goes_on().await;
    let said = day.figures.join("\n  ");
    eprintln!("the day's figures:\n  {said}");
    outcome?;
    day.cluster.lab.shutdown().await
}

impl Day {
    fn say(&mut self, line: String) {
        self.figures.push(line);
    }

    /// So many seconds after the beginning.
    fn at(&self, second: i64) -> Timestamp {
        self.begin + SignedDuration::from_secs(second)
    }

    async fn until(&self, moment: Timestamp) {
        let wait = Duration::try_from(moment.duration_since(Timestamp::now())).unwrap_or_default();
        tokio::time::sleep(wait).await;
    }

    async fn goes_on(&mut self) -> anyhow::Result<()> {
        let ends: Vec<i64> = ENDS.step_by(2).collect();
        let cluster = &self.cluster;
        let ask = async |second: i64| {
            let machine = machine(&cluster.lab, u8::try_from(second)?);
            cluster.ask(&format!("ends-{second}"), &machine, json!({"endTime": self.at(second).to_string()})).await
        };
        try_join_all(ends.into_iter().map(ask)).await?;
        let until = |second: i64| json!({"endTime": self.at(second).to_string()});
        let on = |name: &str| cluster.lab.instance(name).id;
        // In the middle of what will be gaps.
        let of_kill = cluster.ask("live-kill", &on("live-kill"), until(KILLED + 5)).await?;
        let of_stop = cluster.ask("live-stop", &on("live-stop"), until(STOPPED + 5)).await?;
        let of_loss = cluster.ask("live-cut", &on("live-cut"), until(LOST + 5)).await?;
        let revoked = cluster.ask("live-revoke", &on("live-revoke"), json!({"ttlSeconds": 600})).await?;

        let main_job = self.main_job().await?;
        for request in [&of_kill, &of_stop, &of_loss, &revoked] {
            self.cluster.until_granted(&request.name).await?;
        }
        self.a_gateway_dies(&main_job).await?;
        let cluster = &self.cluster;
        let both = async |request: &Request| {
            let [one, two] = [0, 1].map(|at| cluster.gateways[at].port("ssh"));
            anyhow::Ok(vec![cluster.stays(request, one?).await?, cluster.stays(request, two?).await?])
        };
        let (on_kill, on_stop, on_loss, on_revoked) =
            tokio::try_join!(both(&of_kill), both(&of_stop), both(&of_loss), both(&revoked))?;
        self.there_is_always_something_to_push().await?;

        self.until(self.at(CLOSED)).await;
        let refused = self.strike("connections refused", |pod| pod.link.set(Way::Closed)).await?;
        let cuts = tokio::spawn(join_all(on_revoked.into_iter().map(|live| live.until_cut(BOUND))));
        let patch = json!({"spec": {"revoke": {"reason": "done"}}}).to_string();
        let revoke = ["-n", TEAM, "patch", "instanceaccess", "live-revoke", "--type=merge", "-p", &patch];
        kubectl(&self.cluster.lab, "alice", &revoke).await?;
        let revoked_time = Timestamp::now();
        // Perhaps before kubectl returned.
        let late = f64::NEG_INFINITY..REVOKE_LATE_MAX;
        self.were_cut("a revocation", cuts.await?, revoked_time, late, "it was revoked")?;
        ensure!(self.nobody_leads(), "somebody led when it was revoked");
        let leader = Arc::clone(self.cluster.controller(&refused.holder)?);
        self.dies(&refused).await?;
        self.until_leader().await?;
        leader.link.set(Way::Open)?;
        self.both_are_ready().await?;

        // An end is due just after, and sessions end in the gap.
        self.until(self.at(KILLED) - SignedDuration::from_millis(300)).await;
        let killed = self.strike("kill -9", Pod::dies).await?;
        self.are_cut_at_the_end("kill -9", &of_kill, on_kill).await?;
        self.until_leader().await?;
        self.cluster.controller(&killed.holder)?.start()?;
        self.both_are_ready().await?;

        self.until(self.at(STOPPED) - SignedDuration::from_millis(300)).await;
        let stopped = self.strike("SIGSTOP", |pod| pod.signal("-STOP")).await?;
        self.are_cut_at_the_end("SIGSTOP", &of_stop, on_stop).await?;
        self.until_leader().await?;
        let frozen = Arc::clone(self.cluster.controller(&stopped.holder)?);
        frozen.signal("-CONT")?;
        self.dies(&stopped).await?;
        self.both_are_ready().await?;

        self.until(self.at(LOST) - SignedDuration::from_millis(300)).await;
        let lost = self.strike("bytes lost", |pod| pod.link.set(Way::Hole)).await?;
        let cut_off = Arc::clone(self.cluster.controller(&lost.holder)?);
        self.are_cut_at_the_end("bytes lost", &of_loss, on_loss).await?;
        // It ends by itself, and nobody had to reach it for that.
        self.dies(&lost).await?;
        self.until_leader().await?;
        cut_off.link.set(Way::Open)?;
        self.both_are_ready().await?;

        self.until(self.at(TOLD) - SignedDuration::from_millis(100)).await;
        let told = self.strike("SIGTERM", |pod| pod.signal("-TERM")).await?;
        self.until_leader().await?;
        // The lease is given back before the process has ended.
        let (status, said) = self.ends(&told).await?;
        ensure!(status.success(), "{status}: {said}");
        self.is_judged(&[of_kill, of_stop, of_loss, revoked]).await
    }

    /// A request that somebody has to approve, a login through each gateway, one by which the gateways push, and what status
    /// shows of it.
    async fn main_job(&self) -> anyhow::Result<Request> {
        let cluster = &self.cluster;
        let [one, two] = [0, 1].map(|at| cluster.gateways[at].port("ssh"));
        let (one, two) = (one?, two?);
        let web = cluster.lab.instance("web-1").id;
        let request = cluster.apply("web", &web, json!({"ttlSeconds": 600})).await?;
        cluster.approves("web").await?;
        let granted = cluster.until_granted("web").await?;
        ensure!(granted["status"]["approvals"][0]["approver"] == "erin", "{}", granted["status"]);
        let on_connect = json!({"ttlSeconds": 600, "keyDelivery": "OnConnect"});
        let other = cluster.apply("on-connect", &cluster.lab.instance("live-revoke").id, on_connect).await?;
        cluster.until_granted("on-connect").await?;
        for gateway in [one, two, cluster.service.address] {
            cluster.gets_in(&request, gateway).await?;
            cluster.gets_in(&other, gateway).await?;
        }
        for name in ["web", "on-connect"] {
            let shown = poll::until_ok("both gateways in status.sessions", BOUND, || {
                let mut shown = cluster.sessions(name);
                shown.sort();
                let names: Vec<&str> = shown.iter().map(|(gateway, _)| gateway.as_str()).collect();
                let total: i64 = shown.iter().map(|(_, total)| total).sum();
                let pods: Vec<&str> = cluster.gateways.iter().map(|pod| pod.name.as_str()).collect();
                if names == pods && total == 3 { Ok(()) } else { Err(format!("{name}: {shown:?}")) }
            });
            shown.await?;
        }
        // By whom the key came.
        let fingerprint = people::fingerprint(&other.key.public);
        for pod in &cluster.gateways {
            let journal = cluster.lab.standin().journal();
            let mut pushes =
                journal.iter().filter(|it| it.api == Api::Eic && it.key_fingerprint.as_ref() == Some(&fingerprint));
            ensure!(pushes.any(|push| push.access_key_id == pod.access_key_id), "{} pushed nothing", pod.name);
        }
        Ok(request)
    }

    /// Its sessions end, the other's do not notice, and whoever comes gets in by the Service.
    async fn a_gateway_dies(&mut self, request: &Request) -> anyhow::Result<()> {
        let cluster = &self.cluster;
        let (dies, lives) = (&cluster.gateways[0], &cluster.gateways[1]);
        let on_the_dead = cluster.stays(request, dies.port("ssh")?).await?;
        let mut on_the_other = cluster.stays(request, lives.port("ssh")?).await?;
        dies.dies()?;
        let killed = Timestamp::now();
        let (cut_time, said) = on_the_dead.until_cut(BOUND).await?;
        ensure!(!said.contains("has ended"), "nobody was left to say so: {said}");
        on_the_other.echoes().await?;
        for _ in 0..2 {
            cluster.gets_in(request, cluster.service.address).await?;
        }
        let line = format!("kill -9 of a gateway: its session gone after {:.2} s, ", seconds(killed, cut_time));
        let line = line + &format!("two logins through the Service within {:.1} s", seconds(killed, Timestamp::now()));
        on_the_other.echoes().await?;
        dies.start()?;
        dies.until_ready().await?;
        cluster.gets_in(request, dies.port("ssh")?).await?;
        self.say(line);
        Ok(())
    }

    /// Grants whose pushes fail are tried again and again: whoever leads has some push on its mind at any time.
    async fn there_is_always_something_to_push(&self) -> anyhow::Result<()> {
        for number in 1..=6 {
            let id = machine(&self.cluster.lab, number);
            self.cluster.lab.standin().set_fault(AwsFault {
                api: Some(Api::Eic),
                action: None,
                instance_id: Some(id.clone()),
                kind: FaultKind::ServerError(500),
                after: 0,
                times: None,
                probability: None,
            });
            self.cluster.ask(&format!("tempts-{number}"), &id, json!({"ttlSeconds": 600})).await?;
        }
        Ok(())
    }

    /// Does something to the leader, and asks for access just then; returns the term that it ends.
    async fn strike(&mut self, what: &'static str, act: impl Fn(&Pod) -> anyhow::Result<()>) -> anyhow::Result<Term> {
        let term = self.cluster.watch.terms().pop().context("somebody leads")?;
        let leader = Arc::clone(self.cluster.controller(&term.holder)?);
        let time = Timestamp::now();
        act(&leader).with_context(|| format!("{what} to {}", leader.name))?;
        self.faults.push(Fault { what, time, transitions: term.transitions });
        let id = machine(&self.cluster.lab, u8::try_from(150 + self.faults.len())?);
        self.cluster.ask(&format!("asked-in-gap-{}", self.faults.len()), &id, json!({"ttlSeconds": 600})).await?;
        Ok(term)
    }

    fn nobody_leads(&self) -> bool {
        let last = self.cluster.watch.terms().pop();
        last.zip(self.faults.last()).is_some_and(|(term, fault)| term.transitions == fault.transitions)
    }

    /// Waits until somebody leads whom nothing was done to.
    async fn until_leader(&self) -> anyhow::Result<Term> {
        let leader = poll::until_ok("a leader", BOUND, || {
            let terms = self.cluster.watch.terms();
            let fault = self.faults.last().map(|fault| fault.transitions);
            let last = terms.last().filter(|term| fault.is_none_or(|fault| term.transitions > fault));
            last.cloned().ok_or_else(|| format!("{terms:?}"))
        });
        leader.await
    }

    /// Waits until one leads and the other stands by.
    async fn both_are_ready(&self) -> anyhow::Result<()> {
        for pod in &self.cluster.controllers {
            pod.until_ready().await?;
        }
        Ok(())
    }

    /// Waits for the end of the process that led in a term; returns how it ended, and its log.
    async fn ends(&self, term: &Term) -> anyhow::Result<(ExitStatus, String)> {
        let pod = self.cluster.controller(&term.holder)?;
        let what = format!("the end of {}", term.holder);
        let ended = poll::until_ok(&what, BOUND, || {
            let life = pod.life_of(&term.holder);
            life.and_then(|life| Some((life.end?.1, life))).ok_or_else(|| pod.last_words(""))
        });
        let (status, life) = ended.await?;
        Ok((status, pod.said(&life)?))
    }

    /// Waits for the end of the process that was deposed from a term, which must say why.
    async fn dies(&self, term: &Term) -> anyhow::Result<()> {
        let (status, said) = self.ends(term).await?;
        ensure!(!status.success(), "{}: who lost its lease says so: {said}", term.holder);
        let why = ["could not be renewed in time", "not ours any more"];
        ensure!(why.iter().any(|why| said.contains(why)), "{}: {said}", term.holder);
        Ok(())
    }

    /// The sessions are cut within a second of the grant's end, while nobody leads; and nobody gets in any more.
    async fn are_cut_at_the_end(&mut self, what: &str, request: &Request, lives: Vec<Live>) -> anyhow::Result<()> {
        let newest = self.cluster.watch.newest(&request.name);
        let end = expiration(&newest).with_context(|| shown(&newest))?;
        ensure!(end > self.faults.last().context("a fault")?.time, "{what} came too late for {}", request.name);
        let cuts = join_all(lives.into_iter().map(|live| live.until_cut(BOUND))).await;
        self.were_cut(what, cuts, end, 0.0..CUT_LATE_MAX, "its time is over")?;
        ensure!(self.nobody_leads(), "{what}: somebody led at the end of {}", request.name);
        let refused = self.cluster.login(request, self.cluster.service.address).await?;
        ensure!(!refused.success() && refused.stderr.contains("Permission denied (publickey)"), "{refused:?}");
        Ok(())
    }

    fn were_cut(
        &mut self,
        what: &str,
        cuts: Vec<anyhow::Result<(Timestamp, String)>>,
        since: Timestamp,
        on_time: Range<f64>,
        words: &str,
    ) -> anyhow::Result<()> {
        let mut lates = Vec::new();
        for cut in cuts {
            let (time, said) = cut?;
            let late = seconds(since, time);
            ensure!(on_time.contains(&late), "{what}: cut {late} s late");
            ensure!(said.contains(words), "{what}: {said}");
            lates.push(format!("{late:.3} s"));
        }
        self.say(format!("{what}, nobody leads: sessions cut after {}", lates.join(", ")));
        Ok(())
    }

    async fn is_judged(&mut self, lived: &[Request]) -> anyhow::Result<()> {
        let last_end = self.at(*ENDS.end());
        let ended = |name: &str| watch::is(&self.cluster.watch.newest(name), "Ended");
        for name in self.cluster.watch.names() {
            let is_over = expiration(&self.cluster.watch.newest(&name)).is_some_and(|end| end <= last_end);
            if is_over {
                self.cluster.until(&name, "ended", |_| ended(&name)).await?;
            }
        }
        for number in 1..=self.faults.len() {
            self.cluster.until_granted(&format!("asked-in-gap-{number}")).await?;
        }
        self.cluster.rights_are_those_that_are_used()?;
        self.cluster.iam_policies_are_what_is_asked()?;
        let pods = self.cluster.controllers.iter().chain(&self.cluster.gateways);
        try_join_all(pods.map(|pod| pod.goes())).await?;
        let past = Past::new(&self.cluster, self.faults.clone())?;
        let mut said = Vec::new();
        for fault in &past.faults {
            let (lead, push, end) = past.fail_over(fault)?;
            let of = |seconds: Option<f64>| seconds.map_or("none due".to_owned(), |it| format!("{it:.1} s"));
            said.push(format!(
                "{}: next leader after {lead:.1} s, next push {}, next end in status {}",
                fault.what,
                of(push),
                of(end)
            ));
        }
        let verdict = async {
            past.terms_follow_one_another()?;
            let pushes = past.nobody_pushed_who_was_deposed()?;
            said.push(format!("{pushes} pushes by controllers, each by the one that led"));
            past.no_key_outlived_its_grant()?;
            let writes = past.nobody_wrote_who_was_deposed()?;
            said.push(format!("{writes} writes by controllers, each by the one that led"));
            let (led, unled) = past.every_end_came_on_time(last_end)?;
            let most = |all: &[f64]| all.iter().copied().fold(0.0, f64::max);
            said.push(format!("{} ends while somebody led: in status after {:.3} s at most", led.len(), most(&led)));
            for (what, all) in &unled {
                said.push(format!(
                    "{} ends in the gap of {what}: {:.3} s after the take-over at most",
                    all.len(),
                    most(all)
                ));
            }
            for what in ["kill -9", "SIGSTOP", "bytes lost"] {
                ensure!(
                    unled.get(what).is_some_and(|all| all.len() >= 4),
                    "hardly an end fell into the gap of {what}: {unled:?}"
                );
            }
            ensure!(led.len() >= 3, "hardly an end while somebody led: {led:?}");
            let requests = past.every_grant_was_made_once()?;
            past.every_push_was_recorded_before()?;
            let verified = past.every_trail_verifies().await?;
            said.push(format!(
                "{requests} requests; {}",
                verified.lines().filter(|it| it.starts_with("verified")).collect::<Vec<_>>().join("; ")
            ));
            past.nobody_panicked()
        };
        let verdict = verdict.await;
        for request in lived {
            ensure!(self.cluster.lab.sessions_alive(&request.name) == 0, "{}: something lives on", request.name);
        }
        said.into_iter().for_each(|line| self.say(line));
        verdict
    }
}

/// How far two instants lie apart, in seconds.
fn seconds(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64()
}
