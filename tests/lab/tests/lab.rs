//! What the lab promises to the tests that stand on it.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use lab::{Instance, Lab, Launch, OS_USERS, Options, poll, ssh, ssh::KeyPair};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, geteuid},
};
use tokio::process::{Child, Command};

const BOUND: Duration = Duration::from_secs(120);

/// A lab with one running instance, its only user's key pushed.
async fn one_instance() -> (Lab, Instance, KeyPair) {
    let lab = Lab::start(Options::aws_only().instances([Launch::new("web-1")])).await.unwrap();
    let web = lab.instance("web-1");
    let key = lab.new_key("alice").await.unwrap();
    lab.push_key(&web, OS_USERS[0], &key).await.unwrap();
    (lab, web, key)
}

/// A login that goes on until it is cut or dropped.
fn linger(lab: &Lab, web: &Instance, key: &KeyPair, command: &str) -> Child {
    let config = lab.ssh_config(key, "").unwrap();
    let mut ssh = lab.ssh(&config).unwrap();
    ssh.args(["-p", &web.port.to_string(), &format!("ec2-user@{}", web.address().ip()), command]);
    ssh.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
}

async fn sessions(lab: &Lab, count: usize) {
    let what = format!("{count} sessions on web-1");
    let seen = poll::until_ok(&what, BOUND, || match lab.sessions_alive("web-1") {
        alive if alive == count => Ok(()),
        _ => Err(format!("{:?}", lab.session_processes("web-1"))),
    });
    seen.await.unwrap();
}

#[tokio::test]
async fn a_login_needs_a_key_that_the_metadata_offers() {
    let (lab, web, key) = one_instance().await;
    let shell = lab.ssh_login(&key, &web, "id -un; pwd; touch here; exit 7").await.unwrap();
    assert_eq!(shell.status, Some(7), "{shell:?}");
    let mut lines = shell.stdout.lines();
    assert_eq!(lines.next(), Some("ec2-user"));
    assert!(lines.next().unwrap().ends_with("/web-1/ec2-user"), "{shell:?}");

    let other = lab.new_key("mallory").await.unwrap();
    let refused = lab.ssh_login(&other, &web, "true").await.unwrap();
    assert_eq!(refused.status, Some(255), "{refused:?}");
    assert!(refused.stderr.contains("Permission denied (publickey)"), "{refused:?}");

    lab.standin().advance(Duration::from_secs(61));
    let refused = lab.ssh_login(&key, &web, "true").await.unwrap();
    assert!(refused.stderr.contains("Permission denied (publickey)"), "{refused:?}");
    lab.shutdown().await.unwrap();
}

#[tokio::test]
async fn instances_launched_at_once_have_addresses_of_their_own() {
    let lab = Lab::start(Options::aws_only().instances([])).await.unwrap();
    let launches = ["web-1", "web-2", "web-3", "web-4"].map(|name| lab.launch_instance(Launch::new(name)));
    let launched = futures::future::try_join_all(launches).await.unwrap();
    let addresses: std::collections::BTreeSet<_> = launched.iter().map(Instance::address).collect();
    assert_eq!(addresses.len(), launched.len(), "{launched:?}");
    lab.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_stopped_instance_has_no_process_left_and_starts_again() {
    let (lab, web, key) = one_instance().await;
    let left = lab.ssh_login(&key, &web, "nohup setsid sleep 600 >/dev/null 2>&1 &").await.unwrap();
    assert!(left.success(), "{left:?}");
    let mut open = linger(&lab, &web, &key, "cat");
    sessions(&lab, 2).await;

    let stopped = lab.stop_instance("web-1").await.unwrap();
    assert_eq!((stopped.state.as_str(), stopped.public_ip), ("stopped", None));
    assert_eq!(lab.sessions_alive("web-1"), 0);
    assert_eq!(open.wait().await.unwrap().code(), Some(255));
    let refused = lab.ssh_login(&key, &web, "true").await.unwrap();
    assert!(refused.stderr.contains("Connection refused"), "{refused:?}");

    let again = lab.start_instance("web-1").await.unwrap();
    assert_eq!(again.address(), web.address());
    lab.push_key(&again, "ec2-user", &key).await.unwrap();
    let shell = lab.ssh_login(&key, &again, "true").await.unwrap();
    assert!(shell.success(), "{shell:?}");
    lab.terminate_instance("web-1").await.unwrap();
    assert!(lab.start_instance("web-1").await.unwrap_err().to_string().contains("terminated"));
}

#[tokio::test]
async fn a_dropped_client_ends_its_session_and_what_was_left_behind_is_seen() {
    let (lab, web, key) = one_instance().await;
    let open = linger(&lab, &web, &key, "nohup setsid sleep 600 >/dev/null 2>&1 & exec cat");
    let two = poll::until_ok("the shell's two processes", BOUND, || {
        let mut commands: Vec<_> = lab.session_processes("web-1").into_iter().map(|it| it.command).collect();
        commands.sort();
        if commands == ["cat", "sleep 600"] { Ok(()) } else { Err(format!("{commands:?}")) }
    });
    two.await.unwrap();
    drop(open);
    let one = poll::until_ok("only what ignores the cut", BOUND, || {
        let commands: Vec<_> = lab.session_processes("web-1").into_iter().map(|it| it.command).collect();
        if commands == ["sleep 600"] { Ok(()) } else { Err(format!("{commands:?}")) }
    });
    one.await.unwrap();
}

#[tokio::test]
async fn a_frozen_instance_answers_nobody_until_it_is_thawed() {
    let (lab, web, key) = one_instance().await;
    lab.freeze_instance("web-1").unwrap();
    let login = lab.ssh_login(&key, &web, "true");
    tokio::pin!(login);
    let answer = tokio::time::timeout(Duration::from_secs(1), &mut login).await;
    assert!(answer.is_err(), "{answer:?}");
    lab.thaw_instance("web-1").unwrap();
    let shell = login.await.unwrap();
    assert!(shell.success(), "{shell:?}");
}

#[tokio::test]
async fn an_instance_can_be_added_and_given_other_tags() {
    let (lab, web, _) = one_instance().await;
    let more = lab.launch_instance(Launch::new("web-2").tag("env", "dev").private()).await.unwrap();
    assert_eq!((more.state.as_str(), more.public_ip), ("running", None));
    assert_ne!(more.private_ip, web.private_ip);
    let tags = BTreeMap::from([("env".to_owned(), "prod".to_owned())]);
    assert_eq!(lab.retag_instance("web-2", tags.clone()).tags, tags);
    assert!(lab.launch_instance(Launch::new("web-2")).await.is_err());
}

#[tokio::test]
async fn a_call_that_a_stranger_signed_is_refused() {
    let (lab, web, _) = one_instance().await;
    let api = lab.aws_env().into_iter().find(|(name, _)| name == "AWS_ENDPOINT_URL_EC2").unwrap().1;
    let mut describe = Command::new("curl");
    describe.args([
        "-s",
        "--aws-sigv4",
        "aws:amz:us-west-2:ec2",
        "--user",
        "AKIAI44QH8DHBEXAMPLE:je7MtGbClwBF/2Zp9Utk/h3yCo8nvbEXAMPLEKEY",
    ]);
    describe.args(["--data", &format!("Action=DescribeInstances&Version=2016-11-15&InstanceId.1={}", web.id), &api]);
    let refused = ssh::run(&mut describe).await.unwrap();
    assert!(refused.stdout.contains("AuthFailure"), "{refused:?}");
}

#[tokio::test]
async fn scp_finds_a_home_to_write_to() {
    let (lab, web, key) = one_instance().await;
    let config = lab.ssh_config(&key, "").unwrap();
    let mut scp = Command::new("scp");
    scp.arg("-F").arg(&config).args(["-P", &web.port.to_string()]).arg(&config);
    let copied = ssh::run(scp.arg(format!("ec2-user@{}:copy", web.address().ip()))).await.unwrap();
    assert!(copied.success(), "{copied:?}");
    let read = lab.ssh_login(&key, &web, "cat copy").await.unwrap();
    assert_eq!(read.stdout, fs::read_to_string(config).unwrap());
}

#[tokio::test]
async fn two_labs_stand_side_by_side_and_one_ends_alone() {
    let (one, two) = tokio::join!(Lab::start(Options::default()), Lab::start(Options::default()));
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_ne!(one.instance("web-1").id, two.instance("web-1").id);
    for lab in [&one, &two] {
        let mut whoami = lab.kubectl("alice").unwrap();
        whoami.args(["auth", "whoami", "-o", "jsonpath={.status.userInfo.username} {.status.userInfo.groups}"]);
        let whoami = ssh::run(&mut whoami).await.unwrap();
        assert_eq!(whoami.stdout, r#"alice ["developers","system:authenticated"]"#, "{whoami:?}");
        assert_eq!(fs::metadata(lab.dir()).unwrap().mode() & 0o777, 0o700);
    }
    let dir = one.dir().to_owned();
    one.shutdown().await.unwrap();
    assert!(!dir.exists());
    assert_eq!(lab::processes(&dir), [0; 0]);

    let db = two.instance("db-1");
    let key = two.new_key("alice").await.unwrap();
    two.push_key(&db, "ec2-user", &key).await.unwrap();
    let shell = two.ssh_login(&key, &db, "true").await.unwrap();
    assert!(shell.success(), "{shell:?}");
}

#[tokio::test]
async fn the_api_server_knows_service_accounts_and_comes_back_with_its_data() {
    let lab = Lab::start(Options::control_plane_only()).await.unwrap();
    let operator = lab.kubeconfig_for_service_account("instance-access", "operator").await.unwrap();
    // Twice: the account is there, the token is new.
    assert_eq!(lab.kubeconfig_for_service_account("instance-access", "operator").await.unwrap(), operator);
    let whoami_within = async |bound: &str| {
        let mut kubectl = lab.kubectl("admin").unwrap();
        kubectl.arg("--kubeconfig").arg(&operator).args(["--request-timeout", bound]);
        ssh::run(kubectl.args(["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"])).await.unwrap()
    };
    let whoami = async || whoami_within("60s").await;
    assert_eq!(whoami().await.stdout, "system:serviceaccount:instance-access:operator");

    lab.freeze_api_server().unwrap();
    let frozen = whoami_within("1s").await;
    assert!(!frozen.success(), "{frozen:?}");
    lab.thaw_api_server().unwrap();
    assert_eq!(whoami().await.stdout, "system:serviceaccount:instance-access:operator");

    lab.stop_api_server();
    let stopped = whoami().await;
    assert!(stopped.stderr.contains("refused"), "{stopped:?}");
    lab.start_api_server().await.unwrap();
    assert_eq!(whoami().await.stdout, "system:serviceaccount:instance-access:operator");

    // No rights but what the tests give: RBAC is on.
    let mut list = lab.kubectl("alice").unwrap();
    let refused = ssh::run(list.args(["get", "namespaces"])).await.unwrap();
    assert!(refused.stderr.contains("Forbidden"), "{refused:?}");
}

/// The command `lab`, as a person runs it.
async fn command(dir: &Path, arguments: &[&str]) -> ssh::Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lab"));
    ssh::run(command.args(arguments).env("LAB_DIR", dir)).await.unwrap()
}

fn daemon(dir: &Path) -> i32 {
    let about: serde_json::Value = serde_json::from_slice(&fs::read(dir.join("about.json")).unwrap()).unwrap();
    about["pid"].as_i64().unwrap().try_into().unwrap()
}

async fn nothing_left(dir: &Path) {
    let gone = poll::until_ok("nothing of the lab to be left", BOUND, || match lab::processes(dir) {
        left if left.is_empty() && !lab::is_running(dir) => Ok(()),
        left => Err(format!("processes {left:?}")),
    });
    gone.await.unwrap();
}

#[tokio::test]
async fn the_command_starts_shows_and_ends_a_lab() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("lab");
    let none = command(&dir, &["status"]).await;
    assert_eq!(none.status, Some(1), "{none:?}");
    let up = command(&dir, &["up"]).await;
    assert!(up.success(), "{up:?}");
    assert!(up.stderr.contains("API server ready"), "{up:?}");
    assert_eq!(command(&dir, &["status"]).await.stdout, up.stdout);
    let again = command(&dir, &["up"]).await;
    assert!(again.stderr.contains("already"), "{again:?}");

    let mut shell = Command::new("sh");
    let nodes = ssh::run(shell.args(["-c", ". \"$0\"/env && kubectl get nodes"]).arg(&dir)).await.unwrap();
    assert!(nodes.success(), "{nodes:?}");

    for order in [
        "instance launch web-2 env=dev --private",
        "instance stop web-1",
        "instance retag db-1 env=dev",
        "api-server stop",
        "api-server start",
        "push-key web-2",
    ] {
        let done = command(&dir, &order.split(' ').collect::<Vec<_>>()).await;
        assert!(done.success(), "{order}: {done:?}");
    }
    let list = command(&dir, &["instance", "list"]).await.stdout;
    let states: Vec<_> =
        list.lines().skip(1).map(|line| line.split_whitespace().step_by(2).take(2).collect::<Vec<_>>()).collect();
    assert_eq!(
        states,
        [["db-1", "running"], ["old-1", "stopped"], ["web-1", "stopped"], ["web-2", "running"]],
        "{list}"
    );
    let unknown = command(&dir, &["instance", "stop", "web-9"]).await;
    assert!(unknown.stderr.contains("there are db-1, old-1, web-1, web-2"), "{unknown:?}");
    let account = command(&dir, &["kubeconfig", "--service-account", "instance-access/operator"]).await;
    assert!(Path::new(account.stdout.trim_end()).exists(), "{account:?}");

    let down = command(&dir, &["down"]).await;
    assert!(down.success(), "{down:?}");
    assert_eq!(lab::processes(&dir), [0; 0]);
}

#[tokio::test]
async fn a_killed_lab_leaves_nothing_running() {
    let dir = tempfile::tempdir().unwrap();
    let dir = fs::canonicalize(dir.path()).unwrap().join("lab");
    let up = command(&dir, &["up"]).await;
    assert!(up.success(), "{up:?}");
    assert!(lab::processes(&dir).len() >= 4, "etcd, kube-apiserver, two sshds");
    kill(Pid::from_raw(daemon(&dir)), Signal::SIGKILL).unwrap();
    nothing_left(&dir).await;
    // And the directory can be used again.
    let up = command(&dir, &["up", "--no-control-plane"]).await;
    assert!(up.success(), "{up:?}");
    let down = command(&dir, &["down"]).await;
    assert!(down.success(), "{down:?}");
}

/// Without even its warden a lab is swept by the next one that starts.
#[tokio::test]
async fn what_a_crash_left_is_swept_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let dir = fs::canonicalize(dir.path()).unwrap().join("lab");
    let up = command(&dir, &["up", "--no-control-plane"]).await;
    assert!(up.success(), "{up:?}");
    let hosts = hosts_of(&dir).expect("the lab has a directory for its instances");
    let wardens = format!("/proc/{0}/task/{0}/children", daemon(&dir));
    for child in fs::read_to_string(wardens).unwrap().split_whitespace() {
        let command = fs::read(format!("/proc/{child}/cmdline")).unwrap();
        if String::from_utf8_lossy(&command).contains("lab-warden") {
            kill(Pid::from_raw(child.parse().unwrap()), Signal::SIGKILL).unwrap();
        }
    }
    kill(Pid::from_raw(daemon(&dir)), Signal::SIGKILL).unwrap();
    nothing_left(&dir).await;
    // Another test's lab may have swept already.
    Lab::start(Options::aws_only().instances([])).await.unwrap().shutdown().await.unwrap();
    assert!(!hosts.exists());
}

/// The directory in the temporary directory that belongs to the lab in `dir`.
fn hosts_of(dir: &Path) -> Option<PathBuf> {
    let names_it =
        |path: &PathBuf| fs::read_to_string(path.join("owner")).is_ok_and(|it| it.contains(dir.to_str().unwrap()));
    fs::read_dir(std::env::temp_dir()).unwrap().map(|entry| entry.unwrap().path()).find(names_it)
}

#[tokio::test]
async fn what_is_not_a_labs_directory_is_not_emptied() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("thesis"), "years of work").unwrap();
    let refused = command(dir.path(), &["up", "--no-control-plane"]).await;
    assert!(refused.stderr.contains("neither empty nor a lab's"), "{refused:?}");
    assert!(dir.path().join("thesis").exists());
}

/// Runs this file's tests of AWS and instances once more, as somebody without rights.
#[tokio::test]
async fn it_works_for_an_ordinary_user() {
    if !geteuid().is_root() {
        return; // then all the tests here say so
    }
    let home = tempfile::tempdir().unwrap();
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let tests = home.path().join("tests");
    fs::copy(std::env::current_exe().unwrap(), &tests).unwrap();
    const NOBODY: &str = "65534";
    let mut run = Command::new("setpriv");
    run.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--"]).arg(&tests);
    run.args(["login", "stopped", "dropped", "frozen", "added", "stranger", "scp"]);
    run.env("HOME", home.path()).current_dir("/");
    let passed = ssh::run(&mut run).await.unwrap();
    assert!(passed.stdout.contains("7 passed"), "{}\n{}", passed.stdout, passed.stderr);
}
