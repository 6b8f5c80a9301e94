//! What people do: they ask, decide, log in and stay.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD, Engine};
use jiff::Timestamp;
use kube::api::PostParams;
use lab::ssh::{self, KeyPair, Output};
use lab::standin::Instance;
use lab::{Lab, pace, poll};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::cluster::{BOUND, Cluster, GATEWAY, TEAM, known_hosts, kubectl_with};
use crate::objects::text;
use crate::watch::{client, requests, shown};

/// How often a machine may be too slow for a login, one time after the other.
const TRIES_MAX: usize = 4;

/// A request that was made, with a key and an instance of its own.
pub struct Request {
    pub name: String,
    pub instance_id: String,
    pub key: KeyPair,
}

/// A key's fingerprint, as `ssh-keygen -l` shows it.
pub fn fingerprint(public_key: &str) -> String {
    let blob = public_key.split(' ').nth(1).expect("a type and a blob");
    let blob = BASE64_STANDARD.decode(blob).expect("ssh-keygen writes base64");
    format!("SHA256:{}", BASE64_STANDARD_NO_PAD.encode(Sha256::digest(blob)))
}

/// An instance that AWS alone knows: no sshd stands behind it.
pub fn machine(lab: &Lab, number: u8) -> String {
    let instance = Instance {
        id: format!("i-{}", &uuid::Uuid::new_v4().simple().to_string()[..17]),
        private_ip: Some([10, 0, 0, number].into()),
        public_ip: Some([198, 18, 0, number].into()),
        tags: [("env".to_owned(), "dev".to_owned())].into(),
        ..Instance::default()
    };
    let id = instance.id.clone();
    lab.standin().put_instance(instance);
    id
}

impl Cluster {
    /// What alice asks.
    async fn manifest(&self, name: &str, instance_id: &str, more: &Value) -> anyhow::Result<(Request, Value)> {
        let key = self.lab.new_key(name).await?;
        let mut spec = json!({
            "target": {"instanceId": instance_id},
            "osUser": "ec2-user",
            "sshPublicKey": key.public,
            "connection": {"port": self.lab.ssh_port()},
            "reason": "INC-4711: look at the logs",
        });
        spec.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        let metadata = json!({"name": name, "namespace": TEAM});
        let object = json!({"apiVersion": "instanceaccess.dev/v1alpha1", "kind": "InstanceAccess", "metadata": metadata, "spec": spec});
        Ok((Request { name: name.to_owned(), instance_id: instance_id.to_owned(), key }, object))
    }

    /// alice applies a request.
    pub async fn apply(&self, name: &str, instance_id: &str, more: Value) -> anyhow::Result<Request> {
        let (request, object) = self.manifest(name, instance_id, &more).await?;
        kubectl_with(&self.lab, "alice", &["apply", "-f", "-"], &object.to_string()).await?;
        Ok(request)
    }

    /// The same by a client of hers, which is faster.
    pub async fn ask(&self, name: &str, instance_id: &str, more: Value) -> anyhow::Result<Request> {
        let (request, object) = self.manifest(name, instance_id, &more).await?;
        let api = requests(client(&self.lab, "alice").await?);
        api.create(&PostParams::default(), &serde_json::from_value(object)?).await?;
        Ok(request)
    }

    /// Waits until a request looks as it should.
    pub async fn until(&self, name: &str, what: &str, is: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
        let what = format!("{name} to be {what}");
        let seen = poll::until_ok(&what, BOUND, || {
            let newest = self.watch.newest(name);
            if is(&newest) { Ok(newest) } else { Err(shown(&newest)) }
        });
        let logs = || self.controllers.iter().map(|pod| pod.last_words("")).collect::<Vec<_>>().join("\n");
        seen.await.with_context(logs)
    }

    /// Waits until one can get in.
    pub async fn until_granted(&self, name: &str) -> anyhow::Result<Value> {
        self.until(name, "granted", |object| crate::watch::is(object, "Active")).await
    }

    /// erin decides on what stands there.
    pub async fn approves(&self, name: &str) -> anyhow::Result<()> {
        let request = self.until(name, "waiting for people", |it| it["status"]["specDigest"].is_string()).await?;
        let reference = json!({
            "name": name,
            "uid": request["metadata"]["uid"],
            "specDigest": request["status"]["specDigest"],
        });
        let decision = json!({
            "apiVersion": "instanceaccess.dev/v1alpha1",
            "kind": "InstanceAccessDecision",
            "metadata": {"name": format!("{name}-yes"), "namespace": TEAM},
            "spec": {"decision": "Approve", "requestRef": reference, "reason": "I looked at it"},
        });
        kubectl_with(&self.lab, "erin", &["create", "-f", "-"], &decision.to_string()).await?;
        Ok(())
    }

    /// `ssh` with a request's key, through the gateway at an address.
    pub fn ssh(&self, request: &Request, gateway: std::net::SocketAddr) -> anyhow::Result<Command> {
        let more = format!(
            "Host gateway\n  HostName {}\n  Port {}\n  HostKeyAlias {GATEWAY}\n  UserKnownHostsFile {}\n  LogLevel INFO\n\
             Host i-*\n  ProxyJump gateway\n  Port {}\n  User ec2-user\n",
            gateway.ip(),
            gateway.port(),
            known_hosts(self.lab.dir()).display(),
            self.lab.ssh_port(),
        );
        self.lab.ssh(&self.lab.ssh_config(&request.key, &more)?)
    }

    /// Tries to log in.
    pub async fn login(&self, request: &Request, gateway: std::net::SocketAddr) -> anyhow::Result<Output> {
        ssh::run(self.ssh(request, gateway)?.args([&request.instance_id, "id -un"])).await
    }

    /// Logs in, which must work: unless the gateway says to try again after a machine that took seconds away from it, so long
    /// as it waits for the API server's word on a key that it delivers.
    pub async fn gets_in(&self, request: &Request, gateway: std::net::SocketAddr) -> anyhow::Result<()> {
        for number in 1..=TRIES_MAX {
            let begin = Timestamp::now();
            let shell = self.login(request, gateway).await?;
            if shell.success() && shell.stdout == "ec2-user\n" {
                return Ok(());
            }
            let may_try = shell.stderr.contains("try again") && pace::stolen(begin, Timestamp::now()).await > 2.0;
            ensure!(may_try, "{} by {gateway}, try {number}: {shell:?}", request.name);
            eprintln!("{} by {gateway}, try {number}: {}", request.name, shell.stderr.trim());
        }
        anyhow::bail!("{} by {gateway}: no shell in {TRIES_MAX} tries", request.name)
    }

    /// Logs in, and stays until it is cut.
    pub async fn stays(&self, request: &Request, gateway: std::net::SocketAddr) -> anyhow::Result<Live> {
        let mut command = self.ssh(request, gateway)?;
        command.args([&request.instance_id, "echo in; cat"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let stdin = child.stdin.take().context("it is piped")?;
        let mut out = BufReader::new(child.stdout.take().context("it is piped")?);
        let mut line = String::new();
        tokio::time::timeout(BOUND, out.read_line(&mut line)).await.context("a shell in time")??;
        if line != "in\n" {
            let mut said = String::new();
            child.stderr.take().context("it is piped")?.read_to_string(&mut said).await?;
            anyhow::bail!("{} by {gateway}: no shell: {line:?} {said}", request.name);
        }
        Ok(Live { request: request.name.clone(), child, stdin, out })
    }

    /// How many sessions status shows by name of the gateway: opened so far.
    pub fn sessions(&self, name: &str) -> Vec<(String, i64)> {
        let newest = self.watch.newest(name);
        let entries = newest.pointer("/status/sessions").and_then(Value::as_array);
        entries
            .into_iter()
            .flatten()
            .map(|it| (text(it, "/gateway").to_owned(), it["total"].as_i64().unwrap_or(-1)))
            .collect()
    }
}

/// A shell that is open, and echoes.
pub struct Live {
    pub request: String,
    child: Child,
    stdin: ChildStdin,
    out: BufReader<ChildStdout>,
}

impl Live {
    /// Sends a line through and back.
    pub async fn echoes(&mut self) -> anyhow::Result<()> {
        self.stdin.write_all(b"still here\n").await?;
        let mut line = String::new();
        tokio::time::timeout(BOUND, self.out.read_line(&mut line)).await.context("an echo in time")??;
        ensure!(line == "still here\n", "{}: {line:?}", self.request);
        Ok(())
    }

    /// Waits until it is cut; returns when that was, and what the terminal shows.
    pub async fn until_cut(mut self, bound: Duration) -> anyhow::Result<(Timestamp, String)> {
        let ended = tokio::time::timeout(bound, self.child.wait()).await;
        let status = ended.with_context(|| format!("a session of {} was not cut within {bound:?}", self.request))??;
        let time = Timestamp::now();
        let mut said = String::new();
        self.child.stderr.take().context("it is piped")?.read_to_string(&mut said).await?;
        ensure!(status.code() == Some(255), "{}: {status}: {said}", self.request);
        Ok((time, said))
    }
}
