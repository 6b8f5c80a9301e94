//! Several gateways behind one address, with nothing in common but the API server and the host key.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::future::join_all;
use lab::ssh;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::task::JoinHandle;

use crate::client::{Client, is_empty};
use crate::controller::PROGRAM;
use crate::ends::is_soon;
use crate::host_keys::{ALIAS, mounted};
use crate::jump::{Jump, both, known_hosts_lines};
use crate::request::Request;
use crate::stand::{BOUND, Stand};

/// One address for several gateways, as a Service is: each connection goes to the next one that takes it.
struct Balancer {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Balancer {
    async fn before(gateways: Vec<SocketAddr>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let next = Arc::new(AtomicUsize::new(0));
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                let (gateways, next) = (gateways.clone(), Arc::clone(&next));
                tokio::spawn(async move {
                    for _ in 0..gateways.len() {
                        let at = next.fetch_add(1, Ordering::Relaxed) % gateways.len();
                        if let Ok(mut gateway) = TcpStream::connect(gateways[at]).await {
                            // However either side ends, the other hears of it.
                            let _ = tokio::io::copy_bidirectional(&mut client, &mut gateway).await;
                            return;
                        }
                    }
                });
            }
        });
        Self { address, task }
    }

    /// What a client's configuration says of it.
    fn config(&self, stand: &Stand, known_hosts: &str) -> String {
        let file = stand.lab.dir().join("known-replicas");
        fs::write(&file, known_hosts).unwrap();
        format!(
            "Host gateway\n  HostName {}\n  Port {}\n  HostKeyAlias {ALIAS}\n  UserKnownHostsFile {}\n\
             Host i-*\n  ProxyJump gateway\n  Port {}\n  User ec2-user\n",
            self.address.ip(),
            self.address.port(),
            file.display(),
            stand.lab.ssh_port(),
        )
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub async fn several_gateways_behind_one_address_cut_alike_and_stand_in_for_one_another() {
    let (stand, _) = both().await;
    // One key for both, from a Secret: a client never learns which of them it talks to.
    let host_key = mounted(stand, "replicas-host-key").await;
    let flags = ["--host-key-file", host_key.to_str().unwrap()];
    let (one, two) = tokio::join!(Jump::start(stand, "replica-0", &flags), Jump::start(stand, "replica-1", &flags));
    let balancer = Balancer::before(vec![one.ssh, two.ssh]).await;
    let (revoked, stays) = (stand.instance("replicas-revoked").await, stand.instance("replicas-stay").await);
    let long = json!({"ttlSeconds": 600});
    let (request, other) = tokio::join!(
        stand.request("alice", "replicas-revoked").on(&revoked).with(long.clone()).applied(),
        stand.request("alice", "replicas-stay").on(&stays).with(long).applied(),
    );
    request.becomes("Granted").await;
    other.becomes("Granted").await;
    let config = balancer.config(stand, &known_hosts_lines(&host_key, ALIAS));
    let of = |request| {
        let request: &Request<'_> = request;
        stand.lab.ssh_config(&request.key, &config).unwrap()
    };
    let of_revoked = Client { request: &request, config: of(&request) };
    let of_other = Client { request: &other, config: of(&other) };

    let mut lives = Vec::new();
    for _ in 0..4 {
        lives.push(of_revoked.stays(&revoked.id).await);
    }
    let mut on_one = of_other.stays(&stays.id).await;
    let mut on_two = of_other.stays(&stays.id).await;
    for (jump, name) in [(&one, "replica-0"), (&two, "replica-1")] {
        let opened = jump.records(&request.uid, "SessionOpened");
        assert_eq!(opened.len(), 2, "{name}: {opened:?}");
        assert!(opened.iter().all(|line| line["record"]["gateway"] == name), "{opened:?}");
        assert_eq!(jump.records(&other.uid, "SessionOpened").len(), 1, "{name}");
    }

    let revoked_time = request.revoke("done").await;
    for (cut_time, said) in join_all(lives.into_iter().map(|live| live.is_cut(BOUND))).await {
        is_soon(cut_time, revoked_time).await;
        assert!(said.contains("the grant of replicas-revoked.team has ended: it was revoked"), "{said}");
    }
    is_empty(stand, &revoked).await;
    on_one.echoes().await;
    on_two.echoes().await;

    // One dies: its sessions go with it, the other's do not notice, and new ones find the other.
    let audit_of_one = one.audit.clone();
    drop(one);
    let (_, said) = on_one.is_cut(BOUND).await;
    assert!(!said.contains("has ended"), "nobody said so: {said}");
    on_two.echoes().await;
    for _ in 0..2 {
        of_other.gets_in(&[&stays.id]).await;
    }
    on_two.echoes().await;

    // All three trails in one go, each a chain of its own; and what joins them.
    let verify = async |of_two: &std::path::Path| {
        let mut verify = Command::new(PROGRAM);
        verify.args(["audit", "verify", "--head", &other.head()]).arg(&stand.audit);
        verify.arg("--trail").arg(&audit_of_one).arg("--trail").arg(of_two);
        ssh::run(&mut verify).await.unwrap()
    };
    let verified = verify(&two.audit).await;
    assert!(verified.success(), "{verified:?}");
    assert_eq!(verified.stdout.matches("\nverified: ").count(), 3, "{verified:?}");
    assert_eq!(verified.stdout.matches("\nhead: ").count(), 3, "{verified:?}");
    let granted = stand.records(&other.uid);
    let opened = two.records(&other.uid, "SessionOpened");
    assert_eq!(opened.len(), 3, "{opened:?}");
    assert!(opened.iter().all(|line| line["record"]["grantId"] == granted[0]["record"]["grantId"]), "{opened:?}");
    // A copy in the place of another's trail hides that one.
    let copied = verify(&audit_of_one).await;
    assert_eq!(copied.status, Some(1), "{copied:?}");
    assert!(copied.stdout.contains("one is a copy of the other"), "{copied:?}");
    // An edit in one of them is found, whichever it is, and the others are judged all the same.
    let edited = stand.lab.dir().join("edited.jsonl");
    let text = fs::read_to_string(&two.audit).unwrap();
    fs::write(&edited, text.replacen("\"requester\":\"alice\"", "\"requester\":\"bob\"", 1)).unwrap();
    let found = verify(&edited).await;
    assert_eq!(found.status, Some(1), "{found:?}");
    assert_eq!(found.stdout.matches("\nverified: ").count(), 2, "{found:?}");
    assert!(found.stdout.contains("it was edited after it was written"), "{found:?}");
    assert!(found.stderr.contains("1 of 3 trails do not verify"), "{found:?}");
}
