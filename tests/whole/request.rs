//! A request, from the manifest to its end, and the promises that hold for every one of them.

use std::process::Stdio;
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD, Engine};
use jiff::{SignedDuration, Timestamp};
use lab::ssh::{self, KeyPair, Output};
use lab::standin::{Api, Entry};
use lab::{Instance, poll};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::process::{Child, Command};

use crate::history::{Version, condition, conditions, stage, text, time};
use crate::stand::{BOUND, END_BOUND, Stand, kinds, merge};

/// How long AWS lets a host read a key.
pub const KEY_WINDOW: SignedDuration = SignedDuration::from_secs(60);
/// How long a grant a test asks for that wants to see a second push, in seconds. That is due 45 s after the first was answered,
/// and none leaves in the last 70 s: of 120 s that leaves five for the first, on a machine that has all tests begin, and of
/// these forty-five. No test of the whole lasts longer for it.
pub const TWO_PUSHES: i32 = 160;
/// In how many seconds a request ends that names its end, before its key is made. It can be granted until 70 s before that: so
/// long, nearly, as anything may take.
pub const ENDS_IN: i64 = 170;

/// A request in the making.
pub struct Draft<'a> {
    stand: &'a Stand,
    who: &'static str,
    name: String,
    namespace: String,
    spec: Value,
}

impl<'a> Draft<'a> {
    pub(crate) fn new(stand: &'a Stand, who: &'static str, name: &str) -> Self {
        let spec = json!({
            "target": {"instanceId": stand.lab.instance("web-1").id},
            "osUser": "ec2-user",
            "connection": {"port": stand.lab.ssh_port()},
            "ttlSeconds": 120,
            "reason": "INC-4711: look at the logs",
        });
        Self { stand, who, name: name.to_owned(), namespace: "team".to_owned(), spec }
    }

    /// For this instance.
    pub fn on(self, instance: &Instance) -> Self {
        self.with(json!({"target": {"instanceId": instance.id}}))
    }

    /// With these fields of the spec instead; `null` takes one away.
    pub fn with(mut self, more: Value) -> Self {
        merge(&mut self.spec, more);
        self
    }

    /// In another namespace than `team`.
    pub fn within(mut self, namespace: &str) -> Self {
        self.namespace = namespace.to_owned();
        self
    }

    /// What is applied, and the key in it.
    pub async fn manifest(&self) -> (Value, KeyPair) {
        let key = self.stand.lab.new_key(&format!("{}-{}", self.namespace, self.name)).await.unwrap();
        let mut spec = self.spec.clone();
        if spec.get("sshPublicKey").is_none() {
            spec["sshPublicKey"] = json!(key.public);
        }
        let object = json!({
            "apiVersion": "instanceaccess.dev/v1alpha1",
            "kind": "InstanceAccess",
            "metadata": {"name": self.name, "namespace": self.namespace},
            "spec": spec,
        });
        (object, key)
    }

    /// `kubectl apply`.
    pub async fn applied(self) -> Request<'a> {
        self.tried().await.unwrap_or_else(|refusal| panic!("kubectl apply: {refusal}"))
    }

    /// `kubectl apply`, which may be refused.
    pub async fn tried(self) -> Result<Request<'a>, String> {
        let (manifest, key) = self.manifest().await;
        let Self { stand, who, name, namespace, .. } = self;
        let done = stand.kubectl(who, &["apply", "-o", "json", "-f", &stand.manifest(&manifest)]).await;
        if !done.success() {
            return Err(done.stderr);
        }
        let made: Value = serde_json::from_str(&done.stdout).unwrap();
        let uid = text(&made, "/metadata/uid").to_owned();
        Ok(Request { stand, who, name, namespace, uid, key, manifest })
    }

    /// `kubectl apply`, of which nothing is stored.
    pub async fn dry_run(&self) -> Output {
        let (manifest, _) = self.manifest().await;
        self.stand.kubectl(self.who, &["apply", "--dry-run=server", "-f", &self.stand.manifest(&manifest)]).await
    }

    /// `kubectl apply`, which the API server must refuse; returns its words.
    pub async fn refused(self) -> String {
        let (manifest, _) = self.manifest().await;
        let refused = self.stand.kubectl(self.who, &["apply", "-f", &self.stand.manifest(&manifest)]).await;
        assert!(!refused.success(), "it was taken: {}", refused.stdout);
        refused.stderr
    }
}

/// A request that was made.
pub struct Request<'a> {
    pub stand: &'a Stand,
    pub who: &'static str,
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub key: KeyPair,
    pub manifest: Value,
}

impl Request<'_> {
    /// What its owner types after `kubectl`.
    pub async fn kubectl(&self, arguments: &[&str]) -> String {
        let mut all = vec!["-n", &self.namespace];
        all.extend(arguments);
        self.stand.kubectl_ok(self.who, &all).await
    }

    /// All its versions so far.
    pub fn versions(&self) -> Vec<Version> {
        self.stand.history.of(&self.uid)
    }

    /// Its newest version, also if it is gone.
    pub fn newest(&self) -> Value {
        self.versions().pop().map(|version| version.object).unwrap_or_default()
    }

    /// Waits until its newest version is as wanted.
    pub async fn until(&self, what: &str, bound: Duration, is: impl Fn(&Value) -> bool) -> Value {
        let what = format!("{} {what}", self.name);
        let seen = poll::until_ok(&what, bound, || {
            let newest = self.newest();
            if is(&newest) { Ok(newest) } else { Err(format!("{} ({})", conditions(&newest), messages(&newest))) }
        });
        seen.await.unwrap()
    }

    /// Waits until `Active` has this reason.
    pub async fn becomes(&self, reason: &str) -> Value {
        self.until(&format!("becomes {reason}"), BOUND, |object| stage(object) == reason).await
    }

    /// Waits for the end, for this reason.
    pub async fn ends(&self, reason: &str) -> Value {
        let ended = self.until("ends", END_BOUND, is_over).await;
        assert_eq!(condition(&ended, "Ended").map(|(status, reason, _)| (status, reason)), Some(("True", reason)));
        ended
    }

    /// Waits until it is refused for this reason; returns the message.
    pub async fn is_denied(&self, reason: &str) -> String {
        let denied = self.until("is denied", BOUND, |object| condition(object, "Denied").is_some()).await;
        let (status, why, message) = condition(&denied, "Denied").unwrap();
        assert_eq!((status, why), ("True", reason), "{message}");
        assert!(self.pushes().is_empty(), "a refused request had a key pushed");
        message.to_owned()
    }

    /// Waits until the object is gone.
    pub async fn goes(&self) {
        let what = format!("{} goes", self.name);
        let gone = poll::until_ok(&what, BOUND + BOUND, || match self.versions().pop() {
            Some(version) if version.gone => Ok(()),
            last => Err(last.map_or_else(String::new, |version| conditions(&version.object))),
        });
        gone.await.unwrap();
    }

    /// Sets `spec.revoke`; returns when it was stored at the latest.
    pub async fn revoke(&self, reason: &str) -> Timestamp {
        let patch = json!({"spec": {"revoke": {"reason": reason}}}).to_string();
        self.kubectl(&["patch", "instanceaccess", &self.name, "--type", "merge", "-p", &patch]).await;
        self.is_stored("revoked", |version| !version.object["spec"]["revoke"].is_null()).await
    }

    /// Deletes it, and does not wait for its end; returns when that was stored at the latest.
    pub async fn delete(&self) -> Timestamp {
        self.kubectl(&["delete", "instanceaccess", &self.name, "--wait=false"]).await;
        let is_deleted = |version: &Version| version.object.pointer("/metadata/deletionTimestamp").is_some();
        self.is_stored("deleted", |version| version.gone || is_deleted(version)).await
    }

    /// After the answer to whoever wrote it: returns when that, or the watch, told of it first. A watch that is told late, on a
    /// busy machine, makes nobody else seem early.
    async fn is_stored(&self, what: &str, is: impl Fn(&Version) -> bool) -> Timestamp {
        let answered_time = Timestamp::now();
        self.is_seen(what, is).await.min(answered_time)
    }

    /// Waits for a version; returns when the watch told of the first such one. Whoever else watches was told at that time.
    pub async fn is_seen(&self, what: &str, is: impl Fn(&Version) -> bool) -> Timestamp {
        let what = format!("{} seen to be {what}", self.name);
        let seen = poll::until_ok(&what, BOUND, || match self.versions().iter().find(|version| is(version)) {
            Some(version) => Ok(version.seen_time),
            None => Err(conditions(&self.newest())),
        });
        seen.await.unwrap()
    }

    /// Logs in with exactly the command that status gives, and its own key.
    pub async fn login(&self, command: &str) -> Output {
        ssh::run(&mut self.ssh(command)).await.unwrap()
    }

    /// Logs in, and stays until it is cut or dropped.
    pub fn stays(&self) -> Child {
        let mut ssh = self.ssh("cat");
        ssh.stdin(Stdio::piped()).stdout(Stdio::null()).kill_on_drop(true).spawn().unwrap()
    }

    fn ssh(&self, command: &str) -> Command {
        let given = text(&self.newest(), "/status/connection/command").to_owned();
        assert!(given.starts_with("ssh "), "status.connection.command is {given:?}");
        let config = self.stand.lab.ssh_config(&self.key, "").unwrap();
        let line = format!("exec {given} -F {} -i {} '{command}'", config.display(), self.key.private.display());
        let mut sh = Command::new("sh");
        sh.args(["-c", &line]).env(lab::proc::MARK, self.stand.lab.dir()).env_remove("SSH_AUTH_SOCK");
        sh
    }

    /// Logs in, which must work.
    pub async fn gets_in(&self) {
        let shell = self.login("id -un").await;
        assert!(shell.success(), "{shell:?}");
        assert_eq!(shell.stdout.trim(), "ec2-user");
    }

    /// Tries to log in, which sshd must refuse.
    pub async fn is_locked_out(&self) {
        let refused = self.login("id -un").await;
        assert_eq!(refused.status, Some(255), "{refused:?}");
        assert!(refused.stderr.contains("Permission denied (publickey)"), "{refused:?}");
    }

    /// The pushes of its key that arrived at AWS, in the order of their arrival.
    pub fn pushes(&self) -> Vec<Entry> {
        let mut pushes = self.stand.lab.standin().journal();
        pushes.retain(|entry| entry.api == Api::Eic && entry.key_fingerprint.as_ref() == Some(&self.fingerprint()));
        pushes.sort_by_key(|entry| entry.time);
        pushes
    }

    /// Waits until so many pushes took effect.
    pub async fn is_pushed(&self, count: usize, bound: Duration) {
        let what = format!("{} has {count} pushes", self.name);
        let seen = poll::until_ok(&what, bound, || {
            let landed = self.pushes().iter().filter(|entry| entry.outcome.took_effect()).count();
            if landed >= count { Ok(()) } else { Err(format!("{landed}")) }
        });
        seen.await.unwrap();
    }

    /// Whether the host may read its key now.
    pub fn is_key_active(&self) -> bool {
        self.stand.lab.standin().all_active_keys().iter().any(|active| active.fingerprint == self.fingerprint())
    }

    /// Its key's fingerprint, as `ssh-keygen -l` shows it.
    pub fn fingerprint(&self) -> String {
        let blob = self.key.public.split(' ').nth(1).expect("a type and a blob");
        let blob = BASE64_STANDARD.decode(blob).expect("ssh-keygen writes base64");
        format!("SHA256:{}", BASE64_STANDARD_NO_PAD.encode(Sha256::digest(blob)))
    }

    /// The audit records about it.
    pub fn records(&self) -> Vec<Value> {
        self.stand.records(&self.uid)
    }

    /// The record that its status points at, as `--head` takes it.
    pub fn head(&self) -> String {
        let newest = self.newest();
        format!("{}:{}", newest["status"]["audit"]["sequence"], text(&newest, "/status/audit/digest"))
    }

    /// Checks what holds for every request, whatever was done to it and to the operator.
    pub async fn keeps_its_promises(&self) {
        let versions = self.versions();
        for pair in versions.windows(2) {
            let (before, after) = (&pair[0].object, &pair[1].object);
            let shown = || format!("{}: {} → {}", self.name, before["status"], after["status"]);
            for field in ["/status/grant/id", "/status/grant/startTime", "/status/endTime", "/status/specDigest"] {
                assert!(
                    text(before, field).is_empty() || text(before, field) == text(after, field),
                    "{field} moved: {}",
                    shown()
                );
            }
            if let (Some(earlier), Some(later)) = (time(before, EXPIRATION), time(after, EXPIRATION)) {
                assert!(later <= earlier, "expirationTime moved later: {}", shown());
            }
            for type_ in ["Approved", "Denied"] {
                // Unknown, while people are asked, is no word that binds.
                let holds = |object| condition(object, type_).is_some_and(|(status, _, _)| status == "True");
                assert!(!holds(before) || holds(after), "{type_} went: {}", shown());
            }
            assert!(!is_over(before) || is_over(after), "Ended went: {}", shown());
            assert!(condition(after, "Approved").is_none() || condition(after, "Denied").is_none(), "{}", shown());
        }
        let newest = self.newest();
        let records = self.records();
        let pushes = self.pushes();
        let end_intended =
            records.iter().find(|line| line["record"]["kind"] == "EndIntended").and_then(|line| time(line, "/time"));
        for (index, push) in pushes.iter().enumerate() {
            if push.outcome.took_effect() {
                let readable_until = push.time + SignedDuration::try_from(push.elapsed).unwrap() + KEY_WINDOW;
                let expiration = time(&newest, EXPIRATION).expect("a pushed key has a grant");
                assert!(
                    readable_until <= expiration,
                    "{}: a key is readable until {readable_until}, after {expiration}",
                    self.name
                );
            }
            let intended = records
                .iter()
                .filter(|line| is_intent(line) && time(line, "/time").is_some_and(|time| time <= push.time));
            assert!(
                intended.count() > index,
                "{}: push {} has no record before it: {:?}",
                self.name,
                index + 1,
                kinds(&records)
            );
            assert!(
                end_intended.is_none_or(|end| push.time <= end),
                "{}: pushed after the end was intended",
                self.name
            );
        }
        let mut grants: Vec<&str> =
            records.iter().map(|line| text(line, "/record/grantId")).filter(|id| !id.is_empty()).collect();
        grants.dedup();
        assert!(grants.len() <= 1, "{}: more than one grant: {grants:?}", self.name);
        if !pushes.is_empty() && is_over(&newest) {
            assert!(kinds(&records).contains(&"Ended"), "{}: the end has no record: {:?}", self.name, kinds(&records));
        }
        if newest.pointer("/status/audit/digest").is_some() {
            let verified = self.stand.verify(&[self.head()]).await;
            assert!(verified.success(), "{verified:?}");
        }
    }
}

/// Where the end of a grant stands.
pub const EXPIRATION: &str = "/status/grant/expirationTime";

fn is_intent(line: &Value) -> bool {
    line["record"]["kind"] == "GrantIntended" || line["record"]["kind"] == "PushIntended"
}

fn messages(object: &Value) -> String {
    let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
    conditions.into_iter().flatten().map(|condition| text(condition, "/message")).collect::<Vec<_>>().join(" | ")
}

/// Returns the whole second so many after the one that it is now, in UTC.
pub fn whole_second_in(seconds: i64) -> Timestamp {
    Timestamp::from_second(Timestamp::now().as_second() + seconds).unwrap()
}

/// How far two instants lie apart, in seconds.
pub fn seconds(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64()
}

/// Whether a request is over: `Ended` is True, and no longer False, as it is while access is possible.
pub fn is_over(object: &Value) -> bool {
    condition(object, "Ended").is_some_and(|(status, _, _)| status == "True")
}
