//! A private instance, reached by AWS's own command line through an Instance Connect Endpoint.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use lab::Instance;
use lab::ssh::{self, Output};
use lab::standin::{Api, Endpoint};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::history::text;
use crate::stand::{Stand, shared};

/// What AWS calls an endpoint. AWS's client dials it on port 443, and wants a certificate that it trusts.
pub const NAME: &str = "eice-0123456789abcdef0.example.ec2-instance-connect-endpoint.us-west-2.amazonaws.com";

/// A shell's script: runs its arguments where the name and the certificate of a [`Tls`], its `$0`, are known.
pub const WITHIN: &str = "mount --bind \"$0/hosts\" /etc/hosts && \
    mount --bind \"$0/bundle\" /etc/ssl/certs/ca-certificates.crt && exec \"$@\"";

/// Takes TLS off for the stand-in. The name and the certificate are known in a private copy of `/etc` alone.
pub struct Tls {
    _child: Child,
    pub dir: PathBuf,
}

/// Who says that its certificate is right: rustls takes none that speaks for itself.
#[derive(Clone, Copy)]
pub enum Vouched {
    ByItself,
    ByAnAuthority,
}

impl Tls {
    pub async fn start(stand: &Stand, vouched: Vouched) -> Self {
        let dir = stand.lab.dir().join("tls");
        fs::create_dir_all(&dir).unwrap();
        let openssl = async |more: &[&str]| {
            let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"];
            let mut openssl = Command::new("openssl");
            openssl.current_dir(&dir).args(["req", "-x509"]).args(key).args(more);
            let made = ssh::run(&mut openssl).await.unwrap();
            assert!(made.success(), "{made:?}");
        };
        let name = format!("subjectAltName=DNS:{NAME}");
        let authority = match vouched {
            Vouched::ByItself => {
                openssl(&["-subj", "/CN=lab", "-addext", &name, "-keyout", "tls.key", "-out", "tls.pem"]).await;
                "tls.pem"
            }
            Vouched::ByAnAuthority => {
                openssl(&["-subj", "/CN=lab", "-keyout", "authority.key", "-out", "authority.pem"]).await;
                let own = ["-subj", "/CN=endpoint", "-addext", &name, "-addext", "basicConstraints=critical,CA:FALSE"];
                let by = ["-CA", "authority.pem", "-CAkey", "authority.key", "-keyout", "tls.key", "-out", "tls.pem"];
                openssl(&[&own[..], &by].concat()).await;
                "authority.pem"
            }
        };
        let (certificate, key) = (dir.join("tls.pem"), dir.join("tls.key"));

        // One more address of the lab's own block, where nothing else listens.
        let IpAddr::V4(web) = stand.lab.instance("web-1").private_ip else { panic!("an IPv4 lab") };
        let [a, b, c, _] = web.octets();
        let listen = Ipv4Addr::new(a, b, c, 250).to_string();
        let to = stand.lab.standin().api_addr();
        let mut tls = Command::new("python3");
        tls.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/tests/moto/tls.py")).args([&listen, "443"]);
        tls.args([&certificate, &key]).args([to.ip().to_string(), to.port().to_string()]);
        tls.env(lab::proc::MARK, stand.lab.dir()).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = tls.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).await.unwrap();
        assert_eq!(line.trim(), "ready");

        let read = |path| fs::read_to_string(path).unwrap_or_default();
        fs::write(dir.join("hosts"), format!("{}\n{listen} {NAME}\n", read("/etc/hosts"))).unwrap();
        let trusted = read("/etc/ssl/certs/ca-certificates.crt") + &fs::read_to_string(dir.join(authority)).unwrap();
        fs::write(dir.join("bundle"), trusted).unwrap();
        Self { _child: child, dir }
    }
}

/// Runs a line in a shell that has AWS's command line, and knows the endpoint's name.
async fn typed(stand: &Stand, tls: &Tls, line: &str) -> Output {
    let setup = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/setup-aws-cli.sh");
    let aws = ssh::run(&mut Command::new(setup)).await.unwrap();
    assert!(aws.success(), "{aws:?}");
    let bin = Path::new(aws.stdout.trim()).parent().unwrap().to_owned();
    let mut shell = Command::new("unshare");
    shell.args(["-m", "sh", "-c", WITHIN]).arg(&tls.dir).args(["sh", "-c", line]);
    shell.env_clear().envs(stand.lab.aws_env()).env("PATH", format!("{}:/usr/bin:/bin", bin.display()));
    shell.env("HOME", stand.lab.dir()).env("NO_PROXY", "127.0.0.0/8").env(lab::proc::MARK, stand.lab.dir());
    ssh::run(&mut shell).await.unwrap()
}

/// Whether there can be a [`Tls`].
pub async fn may_be_made() -> bool {
    let whoami = ssh::run(Command::new("id").arg("-u")).await.unwrap();
    let is_root = whoami.stdout.trim() == "0";
    if !is_root {
        eprintln!("left out: port 443 and a name of one's own need root");
    }
    is_root
}

/// The endpoint of this instance's network has its name.
pub fn named(stand: &Stand, instance: &Instance) {
    stand.lab.standin().put_endpoint(Endpoint {
        id: stand.lab.endpoint_id().to_owned(),
        vpc_id: instance.vpc_id.clone(),
        subnet_id: instance.subnet_id.clone(),
        dns_name: NAME.to_owned(),
        ..Endpoint::default()
    });
}

pub async fn the_command_for_a_private_instance_leads_in_through_the_endpoint_by_awss_own_client() {
    if !may_be_made().await {
        return;
    }
    let stand = shared().await;
    let db = stand.lab.instance("db-1");
    let request = stand.request("bob", "tunnel").on(&db).with(json!({"ttlSeconds": 600})).applied().await;
    let granted = request.becomes("Granted").await;
    named(stand, &db);
    let tls = Tls::start(stand, Vouched::ByItself).await;
    let config = stand.lab.ssh_config(&request.key, "").unwrap();
    let command = text(&granted, "/status/connection/command");
    // AWS's client takes a second and a half to start on an idle machine, and more than a minute on a very busy one.
    let patient = format!("-o ConnectTimeout=150 -F {} -i {}", config.display(), request.key.private.display());
    let line = format!("{command} {patient} 'id -un'");
    let shell = typed(stand, &tls, &line).await;
    assert!(shell.success(), "{line}: {shell:?}");
    assert_eq!(shell.stdout.trim(), "ec2-user");
    let journal = stand.lab.standin().journal();
    let opened = journal.iter().filter(|entry| entry.api == Api::Tunnel && entry.action == "openTunnel");
    assert!(opened.clone().count() > 0, "nobody opened a tunnel");

    request.revoke("done").await;
    request.ends("Revoked").await;
    let shell = typed(stand, &tls, &line).await;
    assert!(shell.stderr.contains("Permission denied (publickey)"), "{shell:?}");
    request.keeps_its_promises().await;
}
