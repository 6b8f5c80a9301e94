//! AWS's own `aws ec2-instance-connect ssh`, unchanged, from the look-up to a shell on a real sshd.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use lab::standin::{Api, Config, Credential, Endpoint, Instance, Outcome, StandIn};

const ID: &str = "i-0123456789abcdef0";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

fn output(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

#[track_caller]
fn text(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

/// An sshd that knows no key but what the stand-in's metadata says. It ends with this.
struct Sshd {
    child: Child,
    log: PathBuf,
}

impl Sshd {
    fn start(dir: &Path, host: SocketAddr, metadata: SocketAddr, user: &str) -> Self {
        let program = "/usr/sbin/sshd";
        assert!(Path::new(program).exists(), "openssh-server is needed (Debian: apt-get install openssh-server)");
        if user == "root" {
            // gone after every boot, and sshd insists on it
            fs::create_dir_all("/run/sshd").unwrap();
        }
        let key = dir.join("host_key");
        text(keygen(&key));
        let log = dir.join("sshd.log");
        let config = dir.join("sshd_config");
        let text = format!(
            "ListenAddress {host}\nHostKey {}\nPidFile none\nUsePAM no\nUseDNS no\nStrictModes no\n\
             AuthorizedKeysFile none\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
             PermitRootLogin yes\nPrintMotd no\nPrintLastLog no\nLogLevel VERBOSE\n\
             AuthorizedKeysCommand /usr/bin/curl -sf -m 1 --noproxy * --interface {} \
             http://{metadata}/latest/meta-data/managed-ssh-keys/active-keys/%u\nAuthorizedKeysCommandUser {user}\n",
            key.display(),
            host.ip(),
        );
        fs::write(&config, text).unwrap();
        let errors = fs::File::create(&log).unwrap();
        let mut sshd = Command::new(program);
        let child = sshd.args(["-D", "-e", "-f"]).arg(&config).stderr(errors).stdin(Stdio::null()).spawn().unwrap();
        let sshd = Self { child, log };
        let start = Instant::now();
        while TcpStream::connect(host).is_err() {
            assert!(start.elapsed() < Duration::from_secs(60), "sshd does not listen: {}", sshd.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        sshd
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A free port on an address that nobody else uses: it says who asks for metadata.
fn free(host: IpAddr) -> SocketAddr {
    TcpListener::bind((host, 0)).unwrap().local_addr().unwrap()
}

/// The client, with a known key, and an `ssh` that trusts any host, as a person's configuration might.
fn aws(stand_in: &StandIn, dir: &Path) -> Command {
    let setup = Path::new(env!("CARGO_MANIFEST_DIR")).join("setup-aws-cli.sh");
    let program = text(output(&mut Command::new(setup)));
    let bin = dir.join("bin");
    fs::create_dir_all(&bin).unwrap();
    let ssh = bin.join("ssh");
    let script = "#!/bin/sh\nexec /usr/bin/ssh -F none -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
                  -o LogLevel=ERROR -o BatchMode=yes -o IdentitiesOnly=yes \"$@\"\n";
    fs::write(&ssh, script).unwrap();
    fs::set_permissions(&ssh, fs::Permissions::from_mode(0o755)).unwrap();
    let url = format!("http://{}", stand_in.api_addr());
    let mut command = Command::new(program);
    command
        .env("PATH", format!("{}:/usr/bin:/bin", bin.display()))
        .env("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
        .env("AWS_SECRET_ACCESS_KEY", SECRET)
        .env("AWS_REGION", "us-west-2")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("AWS_CONFIG_FILE", "/dev/null")
        .env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
        .env("AWS_ENDPOINT_URL_EC2", &url)
        .env("AWS_ENDPOINT_URL_EC2_INSTANCE_CONNECT", &url)
        .env("NO_PROXY", "127.0.0.0/8")
        .env_remove("AWS_SESSION_TOKEN")
        .env_remove("AWS_PROFILE")
        .env_remove("SSH_AUTH_SOCK")
        .arg("ec2-instance-connect");
    command
}

/// A shell that reads its commands from standard input.
fn shell(mut command: Command, script: &'static str) -> Output {
    use std::io::Write;
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

async fn off_the_runtime<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

#[tokio::test]
async fn aws_own_ssh_command_reaches_a_shell_for_sixty_seconds_after_its_push_and_no_longer() {
    let credential = Credential {
        access_key_id: "AKIDEXAMPLE".into(),
        secret_access_key: SECRET.into(),
        session_token: None,
        account_id: "123456789012".into(),
    };
    let stand_in = StandIn::start(Config { credentials: vec![credential], ..Config::default() }).await.unwrap();
    let user = text(output(Command::new("id").arg("-un")));
    let dir = tempfile::tempdir().unwrap();
    let host = free(IpAddr::from([127, 0, 77, 1]));
    stand_in.put_instance(Instance {
        private_ip: Some(IpAddr::from([10, 0, 0, 5])),
        public_ip: Some(host.ip()),
        host_addr: Some(host),
        ..Instance::default()
    });
    let metadata = stand_in.metadata_addr();
    let (path, os_user) = (dir.path().to_owned(), user.clone());
    let sshd = off_the_runtime(move || Sshd::start(&path, host, metadata, &os_user)).await;

    // the client's own key, made for this one login
    let port = host.port().to_string();
    let mut command = aws(&stand_in, dir.path());
    command.args(["ssh", "--instance-id", ID, "--os-user", &user, "--ssh-port", &port]);
    let output = off_the_runtime(move || shell(command, "echo \"I am $(id -un)\"; echo $SSH_CONNECTION\n")).await;
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains(&format!("I am {user}")), "{said} {errors} {}", sshd.log());
    assert!(said.contains(&format!("{} {port}", host.ip())), "{said}");

    let journal = stand_in.journal();
    let asked: Vec<&str> = journal.iter().filter(|it| it.api != Api::Metadata).map(|it| &*it.action).collect();
    assert_eq!(asked, ["DescribeInstances", "SendSSHPublicKey"]);
    let reads: Vec<_> = journal.iter().filter(|it| it.api == Api::Metadata).collect();
    assert!(!reads.is_empty() && reads.iter().all(|it| it.instance_ids == [ID] && it.answered == Some(1)));

    // a key of one's own: pushed by the client, used by plain ssh, and then no more
    let key = dir.path().join("key");
    let made = key.clone();
    text(off_the_runtime(move || keygen(&made)).await);
    let mut command = aws(&stand_in, dir.path());
    let public = format!("file://{}.pub", key.display());
    command.args([
        "send-ssh-public-key",
        "--instance-id",
        ID,
        "--instance-os-user",
        &user,
        "--ssh-public-key",
        &public,
    ]);
    text(off_the_runtime(move || shell(command, "")).await);
    let log_in = || {
        let mut ssh = Command::new(dir.path().join("bin/ssh"));
        ssh.arg("-i").arg(&key).args(["-p", &port, "-l", &user, &host.ip().to_string(), "echo in"]);
        off_the_runtime(move || shell(ssh, ""))
    };
    assert_eq!(text(log_in().await), "in");
    assert_eq!(text(log_in().await), "in", "a key opens many times");
    stand_in.advance(Duration::from_secs(60));
    let refused = log_in().await;
    let errors = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && errors.contains("Permission denied (publickey)"), "{errors}");
}

fn keygen(file: &Path) -> Output {
    output(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(file))
}

/// Takes TLS off for the stand-in, under a name that only a private copy of `/etc` knows.
struct Tls {
    child: Child,
}

impl Tls {
    fn start(dir: &Path, name: &str, listen: IpAddr, to: SocketAddr) -> Self {
        let (certificate, key) = (dir.join("tls.pem"), dir.join("tls.key"));
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]);
        openssl.args(["-days", "1", "-subj", "/CN=lab", "-addext", &format!("subjectAltName=DNS:{name}")]);
        openssl.arg("-keyout").arg(&key).arg("-out").arg(&certificate);
        text(output(&mut openssl));
        let mut child = Command::new("python3")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/moto/tls.py"))
            .args([&listen.to_string(), "443"])
            .args([&certificate, &key])
            .args([&to.ip().to_string(), &to.port().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "ready");

        // what the client will see of /etc
        let (hosts, bundle) = (Path::new("/etc/hosts"), Path::new("/etc/ssl/certs/ca-certificates.crt"));
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        fs::write(dir.join("hosts"), format!("{}\n{listen} {name}\n", read(hosts))).unwrap();
        let trusted = read(bundle) + &fs::read_to_string(&certificate).unwrap();
        fs::write(dir.join("bundle"), trusted).unwrap();
        Self { child }
    }
}

impl Drop for Tls {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// The same command in a mount namespace of its own, where a name and a certificate are known.
fn in_private_etc(command: &Command, dir: &Path) -> Command {
    let script = "mount --bind \"$0/hosts\" /etc/hosts && \
                  mount --bind \"$0/bundle\" /etc/ssl/certs/ca-certificates.crt && exec \"$@\"";
    let mut wrapped = Command::new("unshare");
    wrapped.args(["-m", "sh", "-c", script]).arg(dir).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    wrapped
}

#[tokio::test]
async fn aws_own_ssh_command_goes_through_an_endpoint() {
    let user = text(output(Command::new("id").arg("-un")));
    if user != "root" {
        eprintln!("left out: port 443 and a name of one's own need root");
        return;
    }
    let name = "eice-0123456789abcdef0.example.ec2-instance-connect-endpoint.us-west-2.amazonaws.com";
    let host = free(IpAddr::from([127, 0, 77, 2]));
    let config = Config {
        credentials: vec![Credential {
            access_key_id: "AKIDEXAMPLE".into(),
            secret_access_key: SECRET.into(),
            session_token: None,
            account_id: "123456789012".into(),
        }],
        extra_tunnel_ports: vec![host.port()],
        ..Config::default()
    };
    let stand_in = StandIn::start(config).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    stand_in.put_instance(Instance {
        private_ip: Some(IpAddr::from([10, 0, 0, 5])),
        host_addr: Some(host),
        ..Instance::default()
    });
    stand_in.put_endpoint(Endpoint { dns_name: name.into(), ..Endpoint::default() });
    let (path, to, metadata) = (dir.path().to_owned(), stand_in.api_addr(), stand_in.metadata_addr());
    let (_tls, sshd) = off_the_runtime(move || {
        let tls = Tls::start(&path, name, IpAddr::from([127, 0, 77, 2]), to);
        (tls, Sshd::start(&path, host, metadata, "root"))
    })
    .await;

    // no public address: the client chooses the endpoint by itself
    let port = host.port().to_string();
    let mut command = aws(&stand_in, dir.path());
    command.args(["ssh", "--instance-id", ID, "--os-user", "root", "--ssh-port", &port]);
    let command = in_private_etc(&command, dir.path());
    let output = off_the_runtime(move || shell(command, "echo \"I am $(id -un)\"\n")).await;
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("I am root"), "{said} {errors} {} {:#?}", sshd.log(), stand_in.journal());
    let journal = stand_in.journal();
    let asked: Vec<&str> = journal.iter().filter(|it| it.api != Api::Metadata).map(|it| &*it.action).collect();
    assert_eq!(asked[..4], ["DescribeInstances", "DescribeInstanceConnectEndpoints", "SendSSHPublicKey", "openTunnel"]);
    assert!(journal.iter().all(|it| it.outcome == Outcome::Ok), "{journal:#?}");
}
