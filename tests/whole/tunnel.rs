//! A private instance, reached by AWS's own command line through an Instance Connect Endpoint.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use lab::ssh::{self, Output};
use lab::standin::{Api, Endpoint};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::history::text;
use crate::stand::{Stand, shared};

/// What AWS calls an endpoint. AWS's client dials it on port 443, and wants a certificate that it trusts.
const NAME: &str = "eice-0123456789abcdef0.example.ec2-instance-connect-endpoint.us-west-2.amazonaws.com";

/// Takes TLS off for the stand-in. The name and the certificate are known in a private copy of `/etc` alone.
struct Tls {
    _child: Child,
    dir: PathBuf,
}

impl Tls {
    async fn start(stand: &Stand) -> Self {
        let dir = stand.lab.dir().join("tls");
        fs::create_dir_all(&dir).unwrap();
        let (certificate, key) = (dir.join("tls.pem"), dir.join("tls.key"));
        let mut openssl = Command::new("openssl");
        openssl.args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "1",
        ]);
        openssl.args(["-subj", "/CN=lab", "-addext", &format!("subjectAltName=DNS:{NAME}")]);
        let made = ssh::run(openssl.arg("-keyout").arg(&key).arg("-out").arg(&certificate)).await.unwrap();
        assert!(made.success(), "{made:?}");

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
        let trusted = read("/etc/ssl/certs/ca-certificates.crt") + &fs::read_to_string(&certificate).unwrap();
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
    let script = "mount --bind \"$0/hosts\" /etc/hosts && \
                  mount --bind \"$0/bundle\" /etc/ssl/certs/ca-certificates.crt && exec sh -c \"$1\"";
    let mut shell = Command::new("unshare");
    shell.args(["-m", "sh", "-c", script]).arg(&tls.dir).arg(line);
    shell.env_clear().envs(stand.lab.aws_env()).env("PATH", format!("{}:/usr/bin:/bin", bin.display()));
    shell.env("HOME", stand.lab.dir()).env("NO_PROXY", "127.0.0.0/8").env(lab::proc::MARK, stand.lab.dir());
    ssh::run(&mut shell).await.unwrap()
}

pub async fn the_command_for_a_private_instance_leads_in_through_the_endpoint_by_awss_own_client() {
    let whoami = ssh::run(Command::new("id").arg("-u")).await.unwrap();
    if whoami.stdout.trim() != "0" {
        eprintln!("left out: port 443 and a name of one's own need root");
        return;
    }
    let stand = shared().await;
    let db = stand.lab.instance("db-1");
    let request = stand.request("bob", "tunnel").on(&db).applied().await;
    let granted = request.becomes("Granted").await;
    stand.lab.standin().put_endpoint(Endpoint {
        id: stand.lab.endpoint_id().to_owned(),
        vpc_id: db.vpc_id.clone(),
        subnet_id: db.subnet_id.clone(),
        dns_name: NAME.to_owned(),
        ..Endpoint::default()
    });
    let tls = Tls::start(stand).await;
    let config = stand.lab.ssh_config(&request.key, "").unwrap();
    let command = text(&granted, "/status/connection/command");
    let line = format!("{command} -F {} -i {} 'id -un'", config.display(), request.key.private.display());
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
