//! What must have held, whatever was done: judged afterwards, from what the API server, AWS and the trails say.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, ensure};
use jiff::{SignedDuration, Timestamp};
use lab::pace::LateMax;
use lab::standin::{Api, Entry};
use lab::{pace, ssh};
use serde_json::Value;
use tokio::process::Command;

use crate::cluster::Cluster;
use crate::objects::{condition, text, time};
use crate::people::fingerprint;
use crate::pod::{PROGRAM, Pod};
use crate::watch::{Term, expiration, is};

/// How long a host may read a pushed key.
const KEY_WINDOW: SignedDuration = SignedDuration::from_secs(60);
/// How late an end may be in status while somebody leads, in seconds; this and all that follow at the machine's own pace. Its
/// record may take one, of which a disk's standstill is no sign to whoever measures the pace; and it is to be stored.
const LATE_MAX: f64 = 2.0;
/// How late after a take-over what ended while nobody led: the new leader reads everything first. That takes half a second on
/// an idle machine, and took 3.6 s on two cores with thirty-five at work.
const TAKE_OVER_LATE_MAX: f64 = 5.0;
/// How much longer than a lease a take-over may take: whoever stands by looks at it twice a second, so it sees the last renewal
/// half a second late, and as late again that the lease has run out; and a renewal may be under way to the API server.
const TAKE_OVER_MAX: f64 = 3.0;
/// How long after a leader was told to stop the next one leads. It gives the lease back within a tenth of a second, and whoever
/// stands by looks at it twice in a second: the aim is one second, which the best of a run must keep. Half as much again for the
/// looks' own answers, and for a push that is let finish first.
const HAND_OVER_MAX: f64 = 1.5;
const HAND_OVER_AIM: f64 = 1.0;
/// How long after that the new leader has pushed a key and stored an end that was due, and after the lease of one that was
/// killed: seen, at most 0.7 s longer than the lease on an idle machine, from the kill on. The new leader opens its trail, reads
/// everything, writes records and waits for the disk, which nobody's pace tells of; and its last look may be half a second old.
const AT_WORK_MAX: f64 = 2.0;
/// How late whoever stands by may see a renewal.
const LOOK: SignedDuration = SignedDuration::from_millis(500);
/// How long a push or a write may be on its way: what left just before the lease was lost arrives just after.
const ON_THE_WAY: f64 = 1.0;
/// How soon after a take-over the new leader is to push what was left to push: the longest gap between two tries, and some.
const LEFT_TO_PUSH: f64 = 20.0;

/// Something that was done to a leader.
#[derive(Clone, Debug)]
pub struct Fault {
    pub what: &'static str,
    pub time: Timestamp,
    /// Of the term that it ended.
    pub transitions: i32,
}

/// How far behind the take-over ends were stored that fell into a gap, in seconds, by the fault that made it.
type Gaps = BTreeMap<&'static str, Vec<f64>>;

/// All that happened.
pub struct Past<'a> {
    pub cluster: &'a Cluster,
    pub faults: Vec<Fault>,
    /// How long the Lease holds.
    lease: SignedDuration,
    terms: Vec<Term>,
    pushes: Vec<Entry>,
    /// What the API server wrote down.
    audit: Vec<Value>,
}

/// What came of a fault, by whoever took over.
pub struct FailOver {
    pub lead_time: Timestamp,
    /// Its first push.
    pub push_time: Option<Timestamp>,
    /// When it stored the first of the ends that were due when it took over.
    pub end_time: Option<Timestamp>,
}

/// A write of a status, by the API server's clock.
struct Written {
    /// When it came.
    received_time: Timestamp,
    /// When it was stored and answered.
    stored_time: Timestamp,
}

impl<'a> Past<'a> {
    /// Looks back.
    pub fn new(cluster: &'a Cluster, faults: Vec<Fault>) -> anyhow::Result<Self> {
        let lease = cluster.controllers[0].variable("INSTANCE_ACCESS_LEASE_SECONDS").context("a lease's length")?;
        let lease = SignedDuration::from_secs(lease.parse()?);
        let mut pushes = cluster.lab.standin().journal();
        pushes.retain(|entry| entry.api == Api::Eic);
        pushes.sort_by_key(|entry| entry.time);
        let audit = api_server_audit(cluster)?;
        Ok(Self { cluster, faults, lease, terms: cluster.watch.terms(), pushes, audit })
    }

    fn pushes_of(&self, pods: &[Arc<Pod>]) -> impl Iterator<Item = &Entry> {
        let keys: BTreeSet<String> = pods.iter().map(|pod| pod.access_key_id.clone()).collect();
        self.pushes.iter().filter(move |push| keys.contains(&push.access_key_id))
    }

    /// The term in which a moment lies, and the one after it.
    fn term_at(&self, moment: Timestamp) -> Option<(&Term, Option<&Term>)> {
        let at = self.terms.iter().rposition(|term| term.acquire_time <= moment)?;
        Some((&self.terms[at], self.terms.get(at + 1)))
    }

    /// The term that a fault ended.
    fn term_of(&self, fault: &Fault) -> anyhow::Result<&Term> {
        self.terms.iter().find(|term| term.transitions == fault.transitions).context("a leader")
    }

    fn term_after(&self, fault: &Fault) -> anyhow::Result<&Term> {
        let next = self.terms.iter().find(|term| term.transitions > fault.transitions);
        next.with_context(|| format!("nobody led after {fault:?}"))
    }

    /// The Lease went from one to the next, none of its holders ever came back, and nobody took it who had not waited it out.
    pub async fn terms_follow_one_another(&self) -> anyhow::Result<()> {
        for fault in &self.faults {
            self.term_after(fault)?;
        }
        let holders: BTreeSet<&str> = self.terms.iter().map(|term| term.holder.as_str()).collect();
        ensure!(holders.len() == self.terms.len(), "one that was deposed led again: {:?}", self.terms);
        for pair in self.terms.windows(2) {
            ensure!(pair[0].transitions < pair[1].transitions, "{pair:?}");
            let (last, next) = (pair[0].renew_time, pair[1].acquire_time);
            if !self.faults.iter().any(|fault| fault.transitions == pair[0].transitions) {
                // A machine that stands still for as long as a lease makes its leader lose it; nothing else may.
                let lived = pace::seconds(last, next).await;
                let half = (self.lease / 2).as_secs_f64();
                ensure!(lived < half, "nothing was done to {pair:?}, who had {lived:.1} s to renew the lease");
            }
            if pair[0].release_time.is_some() {
                // How soon it was followed is judged below.
                let is_told = |it: &Fault| it.what == "SIGTERM" && it.transitions == pair[0].transitions;
                ensure!(self.faults.iter().any(is_told), "given back, and nobody had said to stop: {pair:?}");
            } else {
                // By the clocks of those who wrote it.
                ensure!(next >= last + self.lease, "taken over {} after the last renewal: {pair:?}", next - last);
                pace::soon(&format!("the take-over of {pair:?}"), last + self.lease, next, TAKE_OVER_MAX).await?;
            }
        }
        let mut best = f64::INFINITY;
        for fault in self.faults.iter().filter(|fault| fault.what == "SIGTERM") {
            let (told, next) = (self.term_of(fault)?, self.term_after(fault)?);
            ensure!(told.release_time.is_some(), "who was told to stop did not give the lease back: {told:?}");
            // Whoever waits out the lease does so by the clock. It was renewed a sixth of its length before, at most.
            let late_max = LateMax::new(HAND_OVER_MAX, (self.lease - self.lease / 6).as_secs_f64());
            pace::in_time("the hand-over", fault.time, next.acquire_time, late_max).await?;
            best = best.min(pace::seconds(fault.time, next.acquire_time).await);
        }
        ensure!(best < HAND_OVER_AIM, "the best of the hand-overs took {best} s, and the aim is {HAND_OVER_AIM} s");
        Ok(())
    }

    /// Who was killed is followed soon after its lease, and who was told to stop soon: by a leader that has pushed a key, and
    /// stored an end that was due.
    pub async fn whoever_followed_was_soon_at_work(&self) -> anyhow::Result<()> {
        for fault in &self.faults {
            let (since, late_max) = match fault.what {
                // A renewal just before counts from when it was seen.
                "kill -9" => {
                    let seen_time = self.term_of(fault)?.renew_time + LOOK;
                    (fault.time.max(seen_time) + self.lease, AT_WORK_MAX)
                }
                "SIGTERM" => (fault.time, HAND_OVER_MAX + AT_WORK_MAX),
                _ => continue,
            };
            let FailOver { push_time, end_time, .. } = self.fail_over(fault)?;
            // Less by the clock than a lease that is waited out once more.
            let late_max = LateMax::new(late_max, self.lease.as_secs_f64());
            let what = |what| format!("the next {what} after {}, from when it was due", fault.what);
            let push_time = push_time.with_context(|| format!("no push after {fault:?}"))?;
            pace::soon(&what("push"), since, push_time, late_max).await?;
            if let Some(end_time) = end_time {
                pace::soon(&what("end"), since, end_time, late_max).await?;
            }
        }
        Ok(())
    }

    /// Whether a controller led at a moment: it had the Lease, nobody else has it yet, and it had renewed it within two thirds
    /// of its length.
    async fn led(&self, name: Option<&str>, moment: Timestamp) -> anyhow::Result<()> {
        let (term, next) = self.term_at(moment).context("nobody had led yet")?;
        let leader = self.cluster.controller(&term.holder)?;
        ensure!(name == Some(&leader.name), "{} led at {moment}, since {}", term.holder, term.acquire_time);
        if next.is_some() {
            match term.release_time {
                Some(until) => ensure!(moment <= until, "{} gave the lease back at {until}", term.holder),
                None => {
                    let until = term.renew_time + self.lease * 2 / 3;
                    pace::soon(&format!("what {} led to", term.holder), until, moment, ON_THE_WAY).await?;
                }
            }
        }
        Ok(())
    }

    /// Every push of a controller was made by the one that led; and what each fault left undone was there to tempt the
    /// deposed.
    pub async fn nobody_pushed_who_was_deposed(&self) -> anyhow::Result<usize> {
        let mut count = 0;
        for push in self.pushes_of(&self.cluster.controllers) {
            let pusher = self.cluster.pod(|pod| pod.access_key_id == push.access_key_id).context("a pusher")?;
            let led = self.led(Some(&pusher.name), push.time).await;
            led.with_context(|| format!("{} pushed: {push:?}", pusher.name))?;
            count += 1;
        }
        for fault in &self.faults {
            let next = self.term_after(fault)?;
            let of = |entry: &Entry| entry.instance_ids.first().cloned();
            let pushes = || self.pushes_of(&self.cluster.controllers);
            let before: BTreeSet<_> = pushes().filter(|push| push.time < fault.time).filter_map(of).collect();
            let left = pushes()
                .filter(|push| push.time >= next.acquire_time && of(push).is_some_and(|id| before.contains(&id)))
                .map(|push| push.time)
                .min();
            let left = left.with_context(|| format!("{}: nothing was left to push", fault.what))?;
            let what = format!("what {} left to push", fault.what);
            pace::soon(&what, next.acquire_time, left, LEFT_TO_PUSH).await?;
        }
        Ok(count)
    }

    /// No push reached AWS that an instance could read after the grant's end: by nobody, controller or gateway.
    pub fn no_key_outlived_its_grant(&self) -> anyhow::Result<()> {
        let grants: BTreeMap<String, (String, Timestamp)> = self.names_by_fingerprint();
        ensure!(!self.pushes.is_empty(), "nothing was pushed");
        for push in &self.pushes {
            let fingerprint = push.key_fingerprint.as_ref().context("a key")?;
            let (name, expiration) =
                grants.get(fingerprint).with_context(|| format!("a key without a grant: {push:?}"))?;
            let readable_until = push.time + SignedDuration::try_from(push.elapsed)? + KEY_WINDOW;
            ensure!(readable_until <= *expiration, "{name}: readable until {readable_until}, after {expiration}");
        }
        Ok(())
    }

    fn names_by_fingerprint(&self) -> BTreeMap<String, (String, Timestamp)> {
        let watch = &self.cluster.watch;
        let grant = |name: String| {
            let newest = watch.newest(&name);
            Some((fingerprint(text(&newest, "/spec/sshPublicKey")), (name, expiration(&newest)?)))
        };
        watch.names().into_iter().filter_map(grant).collect()
    }

    /// The write that put a request's end into its status, if there was one: it names the version that it replaced.
    fn end_of(&self, name: &str) -> anyhow::Result<Option<Written>> {
        let versions = self.cluster.watch.of(name);
        let Some(at) = versions.iter().position(|version| is(&version.object, "Ended")) else { return Ok(None) };
        let before = &at.checked_sub(1).and_then(|at| versions.get(at)).context("a version before its end")?.object;
        let stored = self.audit.iter().find(|line| {
            text(line, "/verb") == "update"
                && text(line, "/objectRef/subresource") == "status"
                && text(line, "/objectRef/resource") == "instanceaccesses"
                && text(line, "/objectRef/name") == name
                && text(line, "/objectRef/resourceVersion") == text(before, "/metadata/resourceVersion")
                && line["responseStatus"]["code"] == 200
        });
        let seen_time = versions[at].seen_time;
        let line = stored.with_context(|| format!("{name}, seen to have ended at {seen_time}: no write of that"))?;
        Ok(Some(Written {
            received_time: time(line, "/requestReceivedTimestamp").context("a time")?,
            stored_time: time(line, "/stageTimestamp").context("a time")?,
        }))
    }

    /// Each end stands in status within a second, or, if nobody led, soon after somebody did. Returns the latenesses in
    /// seconds: of those, and from the take-over on of these, by the fault.
    pub async fn every_end_came_on_time(&self, last_end: Timestamp) -> anyhow::Result<(Vec<f64>, Gaps)> {
        let (mut led, mut unled) = (Vec::new(), BTreeMap::<&'static str, Vec<f64>>::new());
        for name in self.cluster.watch.names() {
            let newest = self.cluster.watch.newest(&name);
            let Some(expiration) = expiration(&newest).filter(|expiration| *expiration <= last_end) else { continue };
            let ended = self.end_of(&name)?.with_context(|| format!("{name} of {expiration} has not ended"))?;
            if !newest["spec"]["revoke"].is_null() {
                continue;
            }
            ensure!(ended.received_time >= expiration, "{name} ended {} early", expiration - ended.received_time);
            ensure!(condition(&newest, "Ended").is_some_and(|it| it.1 == "Expired"), "{name}: {}", newest["status"]);
            ensure!(
                time(&newest, "/status/endTime").is_some_and(|end| end <= expiration),
                "{name}: {}",
                newest["status"]
            );
            let (term, next) = self.term_at(expiration).context("a term")?;
            let stored_time = ended.stored_time;
            let fault = self.faults.iter().find(|it| it.transitions == term.transitions);
            // Where nothing was done to a term's leader, the machine stood still: see `terms_follow_one_another`.
            let leader = match next {
                Some(next) if fault.is_none() && next.acquire_time <= stored_time => next,
                _ => term,
            };
            let fault = match fault {
                // What was due just before the fault may have been on its way.
                Some(fault) if pace::seconds(expiration, fault.time).await < LATE_MAX => Some(fault),
                _ => None,
            };
            match fault {
                None => {
                    // Who took over a moment ago is still reading.
                    let reading = pace::seconds(expiration, leader.acquire_time).await + TAKE_OVER_LATE_MAX;
                    let what = format!("the end of {name} in status, while {} led", leader.holder);
                    led.push(pace::in_time(&what, expiration, stored_time, LATE_MAX.max(reading)).await?);
                }
                Some(fault) => {
                    let since = self.term_after(fault)?.acquire_time.max(expiration);
                    let what = format!("the end of {name} after the take-over that followed {}", fault.what);
                    let late = pace::soon(&what, since, stored_time, TAKE_OVER_LATE_MAX).await?;
                    unled.entry(fault.what).or_default().push(late);
                }
            }
        }
        Ok((led, unled))
    }

    /// One grant a request, and what was promised of it moved no later.
    pub fn every_grant_was_made_once(&self) -> anyhow::Result<usize> {
        for name in self.cluster.watch.names() {
            for pair in self.cluster.watch.of(&name).windows(2) {
                let (before, after) = (&pair[0].object, &pair[1].object);
                let id = text(before, "/status/grant/id");
                ensure!(id.is_empty() || id == text(after, "/status/grant/id"), "{name}: two grants");
                ensure!(
                    expiration(before).is_none_or(|it| expiration(after).is_some_and(|then| then <= it)),
                    "{name}: later"
                );
                ensure!(!is(before, "Ended") || is(after, "Ended"), "{name}: it ended, and then it had not");
            }
        }
        Ok(self.cluster.watch.names().len())
    }

    /// When somebody took over after a fault, and was at work.
    pub fn fail_over(&self, fault: &Fault) -> anyhow::Result<FailOver> {
        let next = self.term_after(fault)?;
        let mut pushes = self.pushes_of(&self.cluster.controllers);
        let push = pushes.find(|push| push.time >= next.acquire_time && push.outcome.took_effect());
        let mut end_time: Option<Timestamp> = None;
        for name in self.cluster.watch.names() {
            let expiration = expiration(&self.cluster.watch.newest(&name));
            if expiration.is_none_or(|expiration| expiration > next.acquire_time) {
                continue;
            }
            let stored = self.end_of(&name)?.map(|written| written.stored_time);
            let by_next = stored.filter(|stored| *stored >= next.acquire_time);
            end_time = end_time.into_iter().chain(by_next).min();
        }
        Ok(FailOver { lead_time: next.acquire_time, push_time: push.map(|push| push.time), end_time })
    }

    /// What the API server wrote down: no status was written by a controller that did not lead.
    pub async fn nobody_wrote_who_was_deposed(&self) -> anyhow::Result<usize> {
        let account = self.cluster.account(&self.cluster.controllers)?;
        let mut count = 0;
        for line in &self.audit {
            let is_write = !["get", "list", "watch"].contains(&text(line, "/verb"));
            let done = line["responseStatus"]["code"].as_u64().is_some_and(|code| code < 300);
            if text(line, "/user/username") != account
                || !is_write
                || !done
                || text(line, "/objectRef/resource") == "leases"
            {
                continue;
            }
            let by = line.pointer("/user/extra/authentication.kubernetes.io~1pod-name/0").and_then(Value::as_str);
            let received = time(line, "/requestReceivedTimestamp").context("a time")?;
            self.led(by, received).await.with_context(|| format!("{by:?} wrote: {line}"))?;
            count += 1;
        }
        ensure!(count > 0, "no write was written down");
        Ok(count)
    }

    /// Every push has a record of its intention before it.
    pub fn every_push_was_recorded_before(&self) -> anyhow::Result<()> {
        self.are_recorded_before(&self.cluster.controllers, &["GrantIntended", "PushIntended"])?;
        for gateway in self.cluster.gateways.chunks(1) {
            self.are_recorded_before(gateway, &["KeyPushIntended"])?;
        }
        Ok(())
    }

    /// The pushes of these pods have each a record of such a kind, in a trail of theirs.
    fn are_recorded_before(&self, pods: &[Arc<Pod>], kinds: &[&str]) -> anyhow::Result<()> {
        let mut intents = BTreeMap::<String, Vec<Timestamp>>::new();
        for path in trails(pods)? {
            for line in fs::read_to_string(&path)?.lines() {
                let line: Value = serde_json::from_str(line)?;
                if kinds.contains(&text(&line, "/record/kind")) {
                    let name = text(&line, "/record/request/name").to_owned();
                    intents.entry(name).or_default().push(time(&line, "/time").context("a time")?);
                }
            }
        }
        let names = self.names_by_fingerprint();
        let mut seen = BTreeMap::<&str, usize>::new();
        for push in self.pushes_of(pods) {
            let (name, _) = names.get(push.key_fingerprint.as_deref().unwrap_or_default()).context("a request")?;
            let number = seen.entry(name).or_default();
            *number += 1;
            let before = intents.get(name).map_or(0, |times| times.iter().filter(|time| **time <= push.time).count());
            ensure!(before >= *number, "{name}: push {number} has no record before it");
        }
        ensure!(!seen.is_empty(), "{:?} pushed nothing", pods.iter().map(|pod| &pod.name).collect::<Vec<_>>());
        Ok(())
    }

    /// The trail of the controllers is one chain that holds what each status points at, and each gateway's is one.
    pub async fn every_trail_verifies(&self) -> anyhow::Result<String> {
        let mut verify = Command::new(PROGRAM);
        verify.args(["audit", "verify"]);
        for name in self.cluster.watch.names() {
            let newest = self.cluster.watch.newest(&name);
            if let Some(sequence) = newest.pointer("/status/audit/sequence").and_then(Value::as_u64) {
                verify.args(["--head", &format!("{sequence}:{}", text(&newest, "/status/audit/digest"))]);
            }
        }
        // What the Lease named is there as well, and the next leader went on from it.
        let heads = self.cluster.watch.heads();
        ensure!(heads.len() >= self.terms.len(), "the Lease named {heads:?} over {} terms", self.terms.len());
        verify.args(heads.iter().flat_map(|head| ["--head", head]));
        for path in trails(&self.cluster.gateways)? {
            verify.arg("--trail").arg(path);
        }
        let done = ssh::run(verify.args(trails(&self.cluster.controllers)?)).await?;
        ensure!(done.success(), "{done:?}");
        ensure!(done.stdout.matches("\nverified: ").count() == 3, "{done:?}");
        // Each leader opened one, and none is missing.
        ensure!(done.stdout.contains(&format!(" in {} segments", self.terms.len())), "{done:?}");
        // It takes the files of all of them.
        for path in trails(&self.cluster.controllers)? {
            let alone = ssh::run(Command::new(PROGRAM).args(["audit", "verify"]).arg(&path)).await?;
            ensure!(!alone.success(), "{} verifies without the others: {alone:?}", path.display());
        }
        Ok(done.stdout)
    }

    /// Nobody panicked.
    pub fn nobody_panicked(&self) -> anyhow::Result<()> {
        for pod in self.cluster.controllers.iter().chain(&self.cluster.gateways) {
            let log = fs::read_to_string(&pod.log)?;
            ensure!(!log.contains("panicked"), "{}", pod.last_words("panicked"));
        }
        Ok(())
    }
}

/// The files of these pods' trails, each once.
fn trails(pods: &[Arc<Pod>]) -> anyhow::Result<BTreeSet<PathBuf>> {
    pods.iter().map(|pod| pod.trail()).collect()
}

/// What service accounts asked of the API server, line by line.
pub fn api_server_audit(cluster: &Cluster) -> anyhow::Result<Vec<Value>> {
    let log = fs::read_to_string(cluster.lab.log("kube-apiserver-audit"))?;
    Ok(log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}
