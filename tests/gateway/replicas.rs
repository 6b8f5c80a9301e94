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

use crate::client::{Client, Live, is_empty};
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

/// Stays until each gateway has so many sessions at least; returns them by gateway. They need not be as many on both: a login
/// that is tried again takes a turn of the balancer's.
async fn stay_on_both(client: &Client<'_>, host: &str, gateways: [&Jump; 2], count: usize) -> [Vec<Live>; 2] {
    let mut lives = [Vec::new(), Vec::new()];
    while lives.iter().any(|lives| lives.len() < count) {
        assert!(lives.iter().flatten().count() < 4 * count, "one gateway is left out");
        let live = client.stays(host).await;
        // No session without a record before it.
        let is_new = |at: &usize| gateways[*at].records(&client.request.uid, "SessionOpened").len() > lives[*at].len();
        let at = (0..2).find(is_new).expect("a record of the session");
        lives[at].push(live);
    }
    lives
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

    let lives = stay_on_both(&of_revoked, &revoked.id, [&one, &two], 2).await;
    let [mut on_one, mut on_two] = stay_on_both(&of_other, &stays.id, [&one, &two], 1).await;
    for (jump, name, lives) in [(&one, "replica-0", &lives[0]), (&two, "replica-1", &lives[1])] {
        let opened = jump.records(&request.uid, "SessionOpened");
        assert_eq!(opened.len(), lives.len(), "{name}: {opened:?}");
        assert!(opened.iter().all(|line| line["record"]["gateway"] == name), "{opened:?}");
    }

    let revoked_time = request.revoke("done").await;
    for (cut_time, said) in join_all(lives.into_iter().flatten().map(|live| live.is_cut(BOUND))).await {
        is_soon(cut_time, revoked_time).await;
        assert!(said.contains("the grant of replicas-revoked.team has ended: it was revoked"), "{said}");
    }
    is_empty(stand, &revoked).await;
    for live in on_one.iter_mut().chain(&mut on_two) {
        live.echoes().await;
    }

    // One dies: its sessions go with it, the other's do not notice, and new ones find the other.
    let audit_of_one = one.audit.clone();
    drop(one);
    for (_, said) in join_all(on_one.into_iter().map(|live| live.is_cut(BOUND))).await {
        assert!(!said.contains("has ended"), "nobody said so: {said}");
    }
    on_two[0].echoes().await;
    for _ in 0..2 {
        of_other.gets_in(&[&stays.id]).await;
    }
    on_two[0].echoes().await;

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
    assert_eq!(opened.len(), on_two.len() + 2, "{opened:?}");
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
