//! Programs that bring ssh along: rsync, git, ansible, and an editor's remote; and all of them through an endpoint.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::LazyLock;

use lab::ssh;
use lab::{Instance, poll};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdin, Command};

use crate::client::Client;
use crate::endpoint::{behind, owner, private};
use crate::jump::both;
use crate::request::Request;
use crate::stand::{BOUND, Stand};

/// An instance of a test's own, and access to it.
async fn granted<'a>(stand: &'a Stand, name: &'static str) -> (Instance, Request<'a>) {
    let instance = stand.instance(name).await;
    let request = stand.request("alice", name).on(&instance).with(json!({"ttlSeconds": 600})).applied().await;
    request.becomes("Granted").await;
    (instance, request)
}

/// A command of a person's machine, with nothing of the real one's settings.
fn command(client: &Client<'_>, program: impl AsRef<Path>, dir: &Path) -> Command {
    let program = program.as_ref();
    let mut command = Command::new(program);
    command.current_dir(dir).env("HOME", dir).env("LC_ALL", "C.UTF-8").env_remove("SSH_AUTH_SOCK");
    command.env(lab::proc::MARK, client.request.stand.lab.dir());
    command
}

/// Runs a command, which must succeed; returns what it printed.
async fn ok(command: &mut Command) -> String {
    let output = ssh::run(command).await.unwrap_or_else(|error| panic!("{error:#}; run tests/lab/setup.sh --clients"));
    assert!(output.success(), "{command:?}: {output:?}");
    output.stdout
}

/// A directory of a test's own.
fn dir(stand: &Stand, name: &str) -> PathBuf {
    let dir = stand.lab.dir().join(name);
    fs::create_dir_all(&dir).unwrap();
    dir
}

pub async fn rsync_carries_a_tree_there_and_back() {
    let (stand, jump) = both().await;
    let (instance, request) = granted(stand, "rsync").await;
    rsync(&Client::of(&request, jump), &instance, &dir(stand, "rsync-client")).await;
}

async fn rsync(client: &Client<'_>, instance: &Instance, dir: &Path) {
    let (tree, back) = (dir.join("tree"), dir.join("back"));
    fs::create_dir_all(tree.join("below/deep")).unwrap();
    let large: Vec<u8> = (0..3_u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(tree.join("large"), &large).unwrap();
    fs::write(tree.join("below/deep/small"), "first").unwrap();
    fs::write(tree.join("goes"), "first").unwrap();
    let remote = format!("{}:tree/", instance.id);
    let rsync = |from: &str, to: &str| {
        let mut rsync = command(client, "rsync", dir);
        rsync.args(["-az", "--delete", "--stats", "-e", &format!("ssh -F {}", client.config.display()), from, to]);
        rsync
    };
    ok(&mut rsync("tree/", &remote)).await;
    // The second time it sends differences.
    fs::write(tree.join("below/deep/small"), "second").unwrap();
    fs::remove_file(tree.join("goes")).unwrap();
    let second = ok(&mut rsync("tree/", &remote)).await;
    assert!(second.contains("Number of deleted files: 1"), "{second:?}");
    assert!(second.contains("Number of regular files transferred: 1"), "{second:?}");
    ok(&mut rsync(&remote, "back/")).await;
    assert!(fs::read(back.join("large")).unwrap() == large, "not the same");
    assert_eq!(fs::read_to_string(back.join("below/deep/small")).unwrap(), "second");
    assert!(!back.join("goes").exists());
}

pub async fn git_clones_and_pushes() {
    let (stand, jump) = both().await;
    let (instance, request) = granted(stand, "git").await;
    git(&Client::of(&request, jump), &instance, &dir(stand, "git-client")).await;
}

async fn git(client: &Client<'_>, instance: &Instance, dir: &Path) {
    let made = client.typed(&[&instance.id, "git init -q --bare -b main repo.git && echo made"]).await;
    assert_eq!(made.stdout, "made\n", "{made:?}");
    let git = |arguments: &[&str]| {
        let mut git = command(client, "git", dir);
        git.env("GIT_SSH_COMMAND", format!("ssh -F {}", client.config.display())).env("GIT_CONFIG_NOSYSTEM", "1");
        git.args(["-c", "user.name=alice", "-c", "user.email=alice@example.com"]).args(arguments);
        git
    };
    let url = format!("{}:repo.git", instance.id);
    ok(&mut git(&["clone", "-q", &url, "first"])).await;
    fs::write(dir.join("first/notes"), "from alice\n".repeat(100_000)).unwrap();
    for step in [&["-C", "first", "add", "notes"][..], &["-C", "first", "commit", "-q", "-m", "notes"]] {
        ok(&mut git(step)).await;
    }
    ok(&mut git(&["-C", "first", "push", "-q", "origin", "HEAD:main"])).await;
    ok(&mut git(&["clone", "-q", "-b", "main", &url, "second"])).await;
    assert_eq!(fs::read(dir.join("second/notes")).unwrap(), fs::read(dir.join("first/notes")).unwrap());
    let here = ok(&mut git(&["-C", "second", "rev-parse", "HEAD"])).await;
    let there = client.typed(&[&instance.id, "git -C repo.git rev-parse main"]).await;
    assert_eq!(here, there.stdout, "{there:?}");
}

/// Where ansible is.
static ANSIBLE: LazyLock<PathBuf> = LazyLock::new(|| {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/setup-ansible.sh");
    let done = std::process::Command::new(script).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    PathBuf::from(String::from_utf8(done.stdout).unwrap().trim()).join("bin/ansible")
});

pub async fn ansible_runs_its_modules() {
    let (stand, jump) = both().await;
    let (instance, request) = granted(stand, "ansible").await;
    ansible(&Client::of(&request, jump), &instance, &dir(stand, "a"), stand.lab.ssh_port()).await;
}

/// The directory has a short name: ansible's ControlPath goes below it.
async fn ansible(client: &Client<'_>, instance: &Instance, dir: &Path, port: u16) {
    // The jump host's own settings stand in the file: what is typed does not reach it.
    let inventory = format!(
        "[web]\n{} ansible_port={} ansible_user=ec2-user\n[web:vars]\n\
         ansible_ssh_common_args=-F {} -o ProxyJump=gateway\nansible_python_interpreter=auto_silent\n",
        instance.id,
        port,
        client.config.display(),
    );
    fs::write(dir.join("inventory"), inventory).unwrap();
    fs::write(dir.join("carried"), "by ansible").unwrap();
    let python = tokio::task::spawn_blocking(|| ANSIBLE.clone()).await.unwrap();
    let run = async |arguments: &[&str]| {
        let mut ansible = command(client, &python, dir);
        ok(ansible.args(["-i", "inventory", "web"]).args(arguments)).await
    };
    let pong = run(&["-m", "ping"]).await;
    assert!(pong.contains("SUCCESS") && pong.contains("\"ping\": \"pong\""), "{pong}");
    let copied = run(&["-m", "copy", "-a", "src=carried dest=carried mode=0600"]).await;
    assert!(copied.contains("\"changed\": true"), "{copied}");
    let read = run(&["-m", "command", "-a", "cat carried"]).await;
    assert!(read.contains("rc=0") && read.ends_with("by ansible\n"), "{read}");
}

/// What an editor's server is to us: it listens on the instance's loopback, and outlives the connection that started it.
const SERVER: &str = r#"
import os, socket
server = socket.create_server(("127.0.0.1", 0))
print("listening on", server.getsockname()[1], flush=True)
while True:
    client, _ = server.accept()
    name = client.makefile().readline().strip()
    client.sendall(f"{name}, you are {os.environ['USER']} of process {os.getpid()}".encode())
    client.close()
"#;

/// `ssh -T -D PORT HOST bash`, with a script on its standard input: so Visual Studio Code's remote begins. This is stock
/// OpenSSH with the same arguments, not the editor.
struct Remote {
    child: Child,
    stdin: ChildStdin,
    socks: SocketAddr,
    line: String,
}

impl Remote {
    /// Starts it; returns when the script has said its first line.
    async fn start(client: &Client<'_>, instance: &Instance, script: &str) -> Self {
        // An address of the lab's own, where nobody else listens: ssh cannot choose a port by itself and say which.
        let socks = SocketAddr::new(instance.private_ip, 1080);
        let mut ssh = client.ssh();
        ssh.args(["-v", "-T", "-D", &socks.to_string(), "-o", "ConnectTimeout=120", &instance.id, "bash"]);
        let mut child = ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut stdin = child.stdin.take().expect("it is piped");
        stdin.write_all(script.as_bytes()).await.unwrap();
        let mut out = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut line = String::new();
        tokio::time::timeout(BOUND, out.read_line(&mut line)).await.expect("a line in time").unwrap();
        Self { child, stdin, socks, line: line.trim().to_owned() }
    }

    /// Asks the server, by way of the dynamic forwarding of the inner session.
    async fn asks(&self, port: u16, name: &str) -> String {
        let asked = poll::until("the server", BOUND, async || self.ask(port, name).await);
        asked.await.unwrap()
    }

    async fn ask(&self, port: u16, name: &str) -> io::Result<String> {
        let mut stream = TcpStream::connect(self.socks).await?;
        // SOCKS 5, without a login: connect to 127.0.0.1.
        stream.write_all(&[5, 1, 0]).await?;
        stream.read_exact(&mut [0; 2]).await?;
        let [high, low] = port.to_be_bytes();
        stream.write_all(&[5, 1, 0, 1, 127, 0, 0, 1, high, low]).await?;
        let mut answer = [0; 10];
        stream.read_exact(&mut answer).await?;
        if answer[1] != 0 {
            return Err(io::Error::other(format!("SOCKS says {}", answer[1])));
        }
        stream.write_all(format!("{name}\n").as_bytes()).await?;
        let mut said = String::new();
        stream.read_to_string(&mut said).await?;
        Ok(said)
    }
}

pub async fn what_an_editors_remote_does_works_and_works_again_after_a_drop() {
    let (stand, jump) = both().await;
    let (instance, request) = granted(stand, "editor").await;
    let client = Client::of(&request, jump);
    // The scripts that such editors send are long: more than every pipe and window on the way.
    let padding = format!("# {}\n", "x".repeat(1000)).repeat(300);
    let script = format!("{padding}cat >server.py <<'END'\n{SERVER}\nEND\nexec python3 server.py\n");
    let first = Remote::start(&client, &instance, &script).await;
    let port = first.line.strip_prefix("listening on ").and_then(|port| port.parse().ok());
    let port: u16 = port.unwrap_or_else(|| panic!("it said {:?}", first.line));
    let said = first.asks(port, "alice").await;
    assert!(said.starts_with("alice, you are ec2-user of process "), "{said}");
    // The connection drops; the server is there when the editor comes back.
    let Remote { mut child, stdin, .. } = first;
    child.kill().await.unwrap();
    drop(stdin);
    let second = Remote::start(&client, &instance, "echo back again\nexec cat\n").await;
    assert_eq!(second.line, "back again");
    let again = second.asks(port, "alice").await;
    assert_eq!(again, said, "another server");
    assert_eq!(jump.records(&request.uid, "SessionOpened").len(), 2);
}

pub async fn through_an_endpoint_they_all_work_as_well() {
    let (stand, jump) = both().await;
    let instance = private(stand, "programs").await;
    let request = behind(stand, "bob", "programs", &instance).applied().await;
    request.becomes("Granted").await;
    let client = owner(&request, jump, &instance);
    let dir = dir(stand, "p"); // short, as above
    let below = |name: &str| {
        let below = dir.join(name);
        fs::create_dir_all(&below).unwrap();
        below
    };
    // One after the other: an endpoint has few connections.
    rsync(&client, &instance, &below("rsync")).await;
    git(&client, &instance, &below("git")).await;
    ansible(&client, &instance, &below("a"), 22).await;
    let (batch, back) = (dir.join("batch"), dir.join("back"));
    fs::write(dir.join("there"), "by sftp").unwrap();
    let lines = format!("put {} carried\nget carried {}\n", dir.join("there").display(), back.display());
    fs::write(&batch, lines).unwrap();
    let got = ssh::run(client.program("sftp").arg("-b").arg(&batch).arg(&instance.id)).await.unwrap();
    assert!(got.success() && fs::read_to_string(&back).unwrap() == "by sftp", "{got:?}");
    // One connection for many: who needs more than a share of the endpoint's.
    let master = format!("ControlPath={}", dir.join("cm").display());
    let shared = ["-o", "ControlMaster=auto", "-o", &master, "-o", "ControlPersist=60"];
    for _ in 0..6 {
        client.gets_in(&[&shared[..], &[&instance.id]].concat()).await;
    }
    assert!(client.typed(&[&shared[..], &["-O", "exit", &instance.id]].concat()).await.success());
    let proxy = format!("ProxyCommand=ssh -F {} -W %h:22 gateway", client.config.display());
    client.gets_in(&["-o", "ProxyJump=none", "-o", &proxy, &instance.id]).await;
}
