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
//! Nothing is built around the chart: what it forgets is missing. The day, on an idle machine in seconds from its first grants
//! on:
//!
//! | at | what |
//! |---|---|
//! | 0 | grants whose ends lie two seconds apart, in waves: one for each gap; and those of the sessions below |
//! | | a request approved, logins through both gateways; one gateway killed under its sessions |
//! | | the leader's way to the API server is closed; meanwhile a session is cut by a revocation |
//! | 78 | kill -9 of the leader |
//! | 94 | the leader is stopped for longer than its lease, and goes on |
//! | 110 | the leader's bytes to the API server are lost, while it reaches AWS |
//! | 126 | SIGTERM to the leader |
//!
//! In each gap sessions end, and grants: the gateways cut on the instant, and status says so once somebody leads. A fault
//! waits until all are ready, and strikes just before the first end of its wave. Where that is past by then, or the machine
//! stood still over it, there is another wave. What was late is judged at the machine's own pace (`lab::pace`); what is true or
//! not, by the clock.

mod cluster;
mod findings;
#[path = "../common/helm.rs"]
mod helm;
#[path = "../common/http.rs"]
mod http;
mod link;
#[path = "../common/objects.rs"]
mod objects;
mod people;
mod pod;
mod rights;
mod watch;

use std::process::{ExitCode, ExitStatus};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use futures::future::{join_all, try_join_all};
use jiff::{SignedDuration, Timestamp};
use lab::pace::LateMax;
use lab::standin::{Api, Fault as AwsFault, FaultKind};
use lab::{pace, poll};
use libtest_mimic::{Arguments, Trial};
use serde_json::json;

use cluster::{BOUND, Cluster, TEAM, kubectl};
use findings::{FailOver, Fault, Past};
use link::Way;
use people::{Live, Request, machine};
use pod::Pod;
use watch::{Term, expiration, shown};

/// When the faults come, in seconds from the first grants on, if the machine lets them. A take-over needs 11 of the 16 between
/// two.
const KILLED: i64 = 78;
const STOPPED: i64 = 94;
const LOST: i64 = 110;
const TOLD: i64 = 126;
/// When the grants of a wave end, in seconds from its beginning: one while somebody leads yet, five in the gap, and two after
/// it.
const ENDS: [i64; 8] = [-2, 0, 2, 4, 6, 8, 10, 12];
/// When the grant ends that has sessions: in the middle of the gap.
const LIVE_END: i64 = 5;
/// How far ahead a later wave is: no grant is shorter than 70 s, and it takes some time to make them and to log in.
const AHEAD: SignedDuration = SignedDuration::from_secs(95);
/// How long before a wave begins its fault strikes: the first end is due just after.
const BEFORE: SignedDuration = SignedDuration::from_millis(300);
/// How late a fault may strike, or too many of the ends lie before it.
const STRIKE_LATE_MAX: SignedDuration = SignedDuration::from_secs(2);
/// How often a fault that missed its wave is tried again with a later one.
const WAVES_MAX: usize = 4;
/// How late a session may be cut after the end of its grant.
const CUT_LATE_MAX: LateMax = LateMax::of_cut(1.0);
/// And after a revocation was stored: a watch may be told a little later.
const REVOKE_LATE_MAX: LateMax = LateMax::of_cut(2.0);

fn main() -> ExitCode {
    // Two crates would otherwise each pick a provider of TLS.
    rustls::crypto::aws_lc_rs::default_provider().install_default().expect("nothing was installed before");
    pace::begin();
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
    /// The last end of all waves.
    last_end: Timestamp,
    /// How many machines waves have, each with an address of its own.
    machines: u8,
}

/// Grants that end one after the other, and sessions of one that ends amid them.
struct Wave {
    first_time: Timestamp,
    request: Request,
    /// One through each gateway; none if its time was over before they were there.
    lives: Vec<Live>,
}

async fn day() -> anyhow::Result<()> {
    let started = Timestamp::now();
    let cluster = Cluster::start().await?;
    let begin = Timestamp::from_second(Timestamp::now().as_second() + 1)?;
    let mut day = Day { cluster, begin, faults: Vec::new(), figures: Vec::new(), last_end: begin, machines: 0 };
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
        let kill = self.asks_for_a_wave("kill", self.at(KILLED)).await?;
        let stop = self.asks_for_a_wave("stop", self.at(STOPPED)).await?;
        let cut = self.asks_for_a_wave("cut", self.at(LOST)).await?;
        let mut told_time = self.at(TOLD);
        self.asks_for_ends("told", told_time, &ENDS[..2]).await?;

        let main_job = self.main_job().await?;
        self.a_gateway_dies(&main_job).await?;
        let (kill, stop, cut) =
            tokio::try_join!(self.with_sessions(kill), self.with_sessions(stop), self.with_sessions(cut))?;
        self.there_is_always_something_to_push().await?;

        self.a_revocation_over_a_gap().await?;
        self.over_a_gap("kill -9", "kill", kill, Pod::dies, async |day: &Self, killed: Term| {
            day.until_leader().await?;
            day.cluster.controller(&killed.holder)?.start()
        })
        .await?;
        self.over_a_gap(
            "SIGSTOP",
            "stop",
            stop,
            |pod| pod.signal("-STOP"),
            async |day: &Self, stopped: Term| {
                day.until_leader().await?;
                day.cluster.controller(&stopped.holder)?.signal("-CONT")?;
                day.dies(&stopped).await
            },
        )
        .await?;
        self.over_a_gap(
            "bytes lost",
            "cut",
            cut,
            |pod| pod.link.set(Way::Hole),
            async |day: &Self, lost: Term| {
                // It ends by itself, and nobody had to reach it for that.
                day.dies(&lost).await?;
                day.until_leader().await?;
                day.cluster.controller(&lost.holder)?.link.set(Way::Open)
            },
        )
        .await?;

        if Timestamp::now() > told_time - BEFORE {
            told_time = self.later()?;
            self.asks_for_ends("told-later", told_time, &ENDS[..2]).await?;
        }
        self.until(told_time - SignedDuration::from_millis(100)).await;
        let told = self.strike("SIGTERM", |pod| pod.signal("-TERM")).await?;
        self.until_leader().await?;
        // The lease is given back before the process has ended.
        let (status, said) = self.ends(&told).await?;
        ensure!(status.success(), "{status}: {said}");
        self.is_judged().await
    }

    /// When a wave may begin that is asked for now.
    fn later(&self) -> anyhow::Result<Timestamp> {
        Ok(Timestamp::from_second(Timestamp::now().as_second())? + AHEAD)
    }

    /// Asks for grants that end so many seconds after a moment.
    async fn asks_for_ends(&mut self, name: &str, first_time: Timestamp, ends: &[i64]) -> anyhow::Result<()> {
        let (cluster, numbers) = (&self.cluster, self.machines + 10..);
        self.machines += u8::try_from(ends.len())?;
        let ask = async |(number, second): (u8, i64)| {
            let end_time = first_time + SignedDuration::from_secs(second);
            let machine = machine(&cluster.lab, number);
            let name = format!("ends-{name}-{}", end_time.duration_since(self.begin).as_secs());
            cluster.ask(&name, &machine, json!({"endTime": end_time.to_string()})).await?;
            anyhow::Ok(end_time)
        };
        let end_times = try_join_all(numbers.zip(ends.iter().copied()).map(ask)).await?;
        self.last_end = end_times.into_iter().fold(self.last_end, Timestamp::max);
        Ok(())
    }

    /// Asks for the grants of a wave; nobody has logged in yet. The instance of its sessions has its name.
    async fn asks_for_a_wave(&mut self, name: &str, first_time: Timestamp) -> anyhow::Result<Wave> {
        self.asks_for_ends(name, first_time, &ENDS).await?;
        let end_time = first_time + SignedDuration::from_secs(LIVE_END);
        let on = self.cluster.lab.instance(&format!("live-{name}")).id;
        let request = format!("live-{name}-{}", end_time.duration_since(self.begin).as_secs());
        let request = self.cluster.ask(&request, &on, json!({"endTime": end_time.to_string()})).await?;
        Ok(Wave { first_time, request, lives: Vec::new() })
    }

    /// Logs in through both gateways, if the wave leaves the time.
    async fn with_sessions(&self, mut wave: Wave) -> anyhow::Result<Wave> {
        let what = "granted, or over";
        let is_seen = |object: &_| watch::is(object, "Active") || watch::is(object, "Ended");
        self.cluster.until(&wave.request.name, what, is_seen).await?;
        match self.both_stay(&wave.request).await {
            Ok(lives) => wave.lives = lives,
            Err(error) => {
                // Who comes when the last key has faded, or when all is over, is not let in; who comes in time is.
                let keys = self.cluster.lab.standin().active_keys(&wave.request.instance_id, "ec2-user");
                ensure!(keys.is_empty(), "{error:#}, although {keys:?} could be read");
                eprintln!("too late: {error:#}");
            }
        }
        Ok(wave)
    }

    async fn both_stay(&self, request: &Request) -> anyhow::Result<Vec<Live>> {
        let [one, two] = [0, 1].map(|at| self.cluster.gateways[at].port("ssh"));
        Ok(vec![self.cluster.stays(request, one?).await?, self.cluster.stays(request, two?).await?])
    }

    /// Does something to the leader just before the ends of a wave, and sees its sessions cut while nobody leads; then waits
    /// for the next leader, by what is to be done for that. Where the machine was too slow for its wave, once more.
    async fn over_a_gap(
        &mut self,
        what: &'static str,
        name: &str,
        mut wave: Wave,
        act: impl Fn(&Pod) -> anyhow::Result<()>,
        and_then: impl AsyncFn(&Self, Term) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        for _ in 0..WAVES_MAX {
            if wave.lives.is_empty() || Timestamp::now() > wave.first_time - BEFORE {
                self.say(format!("{what}: the machine was too slow for its wave; there is a later one"));
                wave = self.asks_for_a_wave(name, self.later()?).await?;
                wave = self.with_sessions(wave).await?;
            }
            self.until(wave.first_time - BEFORE).await;
            if wave.lives.is_empty() || Timestamp::now() > wave.first_time + STRIKE_LATE_MAX {
                wave.lives.clear();
                continue;
            }
            let Wave { request, lives, .. } = wave;
            let struck = self.strike(what, &act).await?;
            let end = self.are_cut_at_the_end(what, &request, lives).await?;
            and_then(self, struck).await?;
            self.both_are_ready().await?;
            if self.lay_in_the_gap(what, end).await? {
                return Ok(());
            }
            wave = Wave { first_time: end, request, lives: Vec::new() };
        }
        bail!("{what}: in none of {WAVES_MAX} waves did sessions end while nobody led: too slow a machine to tell")
    }

    /// Whether nobody led at this moment, for what was done last. Where the machine stood still for as long as a lease, all
    /// comes at once.
    async fn lay_in_the_gap(&mut self, what: &str, moment: Timestamp) -> anyhow::Result<bool> {
        let next = self.until_leader().await?;
        let struck_time = self.faults.last().context("a fault")?.time;
        let lay = (struck_time..next.acquire_time).contains(&moment);
        if !lay {
            let Term { holder, acquire_time, .. } = next;
            self.say(format!("{what} at {struck_time}: {holder} led from {acquire_time} on, {moment} is not between"));
        }
        Ok(lay)
    }

    /// While connections of the leader's to the API server are refused, sessions are cut by a revocation: by the gateways' own
    /// watch, as nobody leads.
    async fn a_revocation_over_a_gap(&mut self) -> anyhow::Result<()> {
        let (what, on) = ("connections refused", self.cluster.lab.instance("live-revoke").id);
        for number in 1..=WAVES_MAX {
            let request = format!("live-revoke-{number}");
            let request = self.cluster.ask(&request, &on, json!({"ttlSeconds": 600})).await?;
            self.cluster.until_granted(&request.name).await?;
            let lives = self.both_stay(&request).await?;
            let refused = self.strike(what, |pod| pod.link.set(Way::Closed)).await?;
            let stored_time = self.are_cut_by_a_revocation(&request, lives).await?;
            let leader = Arc::clone(self.cluster.controller(&refused.holder)?);
            self.dies(&refused).await?;
            self.until_leader().await?;
            leader.link.set(Way::Open)?;
            self.both_are_ready().await?;
            if self.lay_in_the_gap(what, stored_time).await? {
                return Ok(());
            }
        }
        bail!("{what}: of {WAVES_MAX} revocations none came while nobody led: too slow a machine to tell")
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
        let mut ids = Vec::new();
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
            self.cluster.ask(&format!("tempts-{number}"), &id, json!({"ttlSeconds": 3600})).await?;
            ids.push(id);
        }
        // Each was tried once, before anything is done to whoever leads.
        poll::until_ok("a push to each of them", BOUND, || {
            let journal = self.cluster.lab.standin().journal();
            let is_tried = |id: &&String| journal.iter().any(|it| it.api == Api::Eic && it.instance_ids.contains(id));
            let tried = ids.iter().filter(is_tried).count();
            if tried == ids.len() { Ok(()) } else { Err(format!("{tried} were tried")) }
        })
        .await
    }

    /// The sessions are cut soon after a revocation was stored; returns when it was, at the latest.
    async fn are_cut_by_a_revocation(&mut self, request: &Request, lives: Vec<Live>) -> anyhow::Result<Timestamp> {
        let cuts = tokio::spawn(join_all(lives.into_iter().map(|live| live.until_cut(BOUND))));
        let patch = json!({"spec": {"revoke": {"reason": "done"}}}).to_string();
        let revoke = ["-n", TEAM, "patch", "instanceaccess", &request.name, "--type=merge", "-p", &patch];
        kubectl(&self.cluster.lab, "alice", &revoke).await?;
        let answered_time = Timestamp::now();
        let is_revoked = |object: &serde_json::Value| !object["spec"]["revoke"].is_null();
        self.cluster.until(&request.name, "revoked", is_revoked).await?;
        let mut versions = self.cluster.watch.of(&request.name).into_iter();
        let seen_time = versions.find(|it| is_revoked(&it.object)).context("seen above")?.seen_time;
        // Whichever told of it first: this machine may keep any of us from hearing.
        let stored_time = seen_time.min(answered_time);
        let mut lates = Vec::new();
        for cut in cuts.await? {
            let (time, said) = cut?;
            ensure!(said.contains("it was revoked"), "a revocation: {said}");
            // Perhaps before we saw it.
            lates.push(pace::soon("a session that was revoked", stored_time, time, REVOKE_LATE_MAX).await?);
        }
        self.say(format!("a revocation: sessions cut {} after it was stored", shown_seconds(&lates)));
        Ok(stored_time)
    }

    /// Does something to the leader, and asks for access just then; returns the term that it ends.
    async fn strike(&mut self, what: &'static str, act: impl Fn(&Pod) -> anyhow::Result<()>) -> anyhow::Result<Term> {
        let term = self.cluster.watch.terms().pop().context("somebody leads")?;
        let leader = Arc::clone(self.cluster.controller(&term.holder)?);
        let time = Timestamp::now();
        act(&leader).with_context(|| format!("{what} to {}", leader.name))?;
        self.faults.push(Fault { what, time, transitions: term.transitions });
        let id = machine(&self.cluster.lab, u8::try_from(150 + self.faults.len())?);
        self.cluster.ask(&format!("asked-in-gap-{}", self.faults.len()), &id, json!({"ttlSeconds": 3600})).await?;
        Ok(term)
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

    /// The sessions are cut within a second of the grant's end, and nobody gets in any more; returns the end.
    async fn are_cut_at_the_end(
        &mut self,
        what: &str,
        request: &Request,
        lives: Vec<Live>,
    ) -> anyhow::Result<Timestamp> {
        let newest = self.cluster.watch.newest(&request.name);
        let end = expiration(&newest).with_context(|| shown(&newest))?;
        let cuts = join_all(lives.into_iter().map(|live| live.until_cut(BOUND))).await;
        let mut lates = Vec::new();
        for cut in cuts {
            let (time, said) = cut?;
            ensure!(said.contains("its time is over"), "{what}: {said}");
            lates.push(pace::in_time(&format!("{what}: the cut of {}", request.name), end, time, CUT_LATE_MAX).await?);
        }
        self.say(format!("{what}: sessions cut {} after their grant's end", shown_seconds(&lates)));
        let refused = self.cluster.login(request, self.cluster.service.address).await?;
        ensure!(!refused.success() && refused.stderr.contains("Permission denied (publickey)"), "{refused:?}");
        Ok(end)
    }

    async fn is_judged(&mut self) -> anyhow::Result<()> {
        let last_end = self.last_end;
        self.until(last_end).await;
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
            let FailOver { lead_time, push_time, end_time } = past.fail_over(fault)?;
            let after = |time: Option<Timestamp>| {
                time.map_or("none due".to_owned(), |time| format!("{:.1} s", seconds(fault.time, time)))
            };
            let (lead, push, end) = (after(Some(lead_time)), after(push_time), after(end_time));
            said.push(format!("{}: next leader after {lead}, next push {push}, next end in status {end}", fault.what));
        }
        let verdict = async {
            past.terms_follow_one_another().await?;
            past.whoever_followed_was_soon_at_work().await?;
            let pushes = past.nobody_pushed_who_was_deposed().await?;
            said.push(format!("{pushes} pushes by controllers, each by the one that led"));
            past.no_key_outlived_its_grant()?;
            let writes = past.nobody_wrote_who_was_deposed().await?;
            said.push(format!("{writes} writes by controllers, each by the one that led"));
            let (led, unled) = past.every_end_came_on_time(last_end).await?;
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
                    unled.get(what).is_some_and(|all| all.len() >= 3),
                    "hardly an end fell into the gap of {what}: {unled:?}"
                );
            }
            ensure!(!led.is_empty(), "no end while somebody led");
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
        for (name, _) in cluster::INSTANCES.iter().filter(|(name, _)| name.starts_with("live-")) {
            ensure!(self.cluster.lab.sessions_alive(name) == 0, "{name}: something lives on");
        }
        said.into_iter().for_each(|line| self.say(line));
        verdict
    }
}

/// How far two instants lie apart, in seconds.
fn seconds(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64()
}

fn shown_seconds(all: &[f64]) -> String {
    all.iter().map(|it| format!("{it:.3} s")).collect::<Vec<_>>().join(", ")
}
