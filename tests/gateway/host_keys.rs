//! The keys by which stock OpenSSH knows the gateway, and how one replaces another.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use base64::prelude::{BASE64_STANDARD, Engine};
use lab::ssh::{self, Output};
use serde_json::json;
use tokio::process::Command;

use crate::jump::{Jump, both, known_hosts_lines};
use crate::request::Request;
use crate::stand::Stand;

/// The name that all gateways of a test share, whatever their ports.
pub const ALIAS: &str = "gateway.example.com";

/// Keeps a key in a Secret, as `docs/gateway.md` says, and lays it out as a pod with `fsGroup` and `defaultMode: 0440` finds
/// it; returns the file.
pub async fn mounted(stand: &Stand, name: &str) -> PathBuf {
    let dir = stand.lab.dir().join(name);
    fs::create_dir_all(&dir).unwrap();
    let made = dir.join("host_key");
    assert!(known_hosts_lines(&made, ALIAS).starts_with(&format!("{ALIAS} ssh-ed25519 AAAA")));
    let from_file = format!("--from-file={}", made.display());
    let create = ["-n", "instance-access", "create", "secret", "generic", name, &from_file];
    stand.kubectl_ok("admin", &create).await;
    fs::remove_file(&made).unwrap();
    let get = ["-n", "instance-access", "get", "secret", name, "-o", r"jsonpath={.data.host_key}"];
    let kept = BASE64_STANDARD.decode(stand.kubectl_ok("admin", &get).await).unwrap();
    let data = dir.join("..2026_03_01");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("host_key"), kept).unwrap();
    fs::set_permissions(data.join("host_key"), PermissionsExt::from_mode(0o440)).unwrap();
    symlink("..2026_03_01", dir.join("..data")).unwrap();
    symlink("..data/host_key", &made).unwrap();
    made
}

/// Logs in at a gateway that is known by these lines; returns what came of it, and what `known_hosts` is then.
async fn logs_in(request: &Request<'_>, jump: &Jump, name: &str, lines: &str, host: &str) -> (Output, String) {
    let lab = &request.stand.lab;
    let file = lab.dir().join(format!("known-by-{name}"));
    fs::write(&file, lines).unwrap();
    // As people have it: also with OpenSSH's own update of host keys, which no gateway announces.
    let more = format!("  HostKeyAlias {ALIAS}\n  StrictHostKeyChecking yes\n  UpdateHostKeys yes");
    let config = jump.config(lab, &more, "").replace(jump.known_hosts.to_str().unwrap(), file.to_str().unwrap());
    let config = lab.ssh_config(&request.key, &config).unwrap();
    let output = ssh::run(lab.ssh(&config).unwrap().args([host, "id -un"])).await.unwrap();
    (output, fs::read_to_string(&file).unwrap())
}

pub async fn a_host_key_is_rotated_and_no_client_is_asked_anything() {
    let (stand, _) = both().await;
    let instance = stand.instance("rotated").await;
    let request = stand.request("alice", "rotated").on(&instance).with(json!({"ttlSeconds": 600})).applied().await;
    let old = mounted(stand, "rotated-host-key").await;
    let new = stand.lab.dir().join("rotated-new");
    let mut keygen = Command::new("ssh-keygen");
    keygen.args(["-q", "-t", "ecdsa", "-N", "", "-C", "", "-f"]).arg(&new);
    assert!(ssh::run(&mut keygen).await.unwrap().success());
    let pair = format!("{},{}", old.display(), new.display());
    let old_line = known_hosts_lines(&old, ALIAS);
    let new_line = known_hosts_lines(&new, ALIAS);
    let lines = known_hosts_lines(Path::new(&pair), ALIAS);
    assert_eq!(lines, format!("{old_line}{new_line}"));
    assert!(new_line.starts_with(&format!("{ALIAS} ecdsa-sha2-nistp256 AAAA")), "{new_line}");
    let known = [("old", &old_line), ("new", &new_line), ("lines", &lines)];
    request.becomes("Granted").await;

    // Before: who was given the new line too early, or too late, is turned away; who has both notices nothing.
    // Meanwhile: everybody gets in. After: who never took the new line is turned away.
    let flags = [old.to_str().unwrap(), &pair, new.to_str().unwrap()].map(|files| ["--host-key-file", files]);
    let (before, meanwhile, after) = tokio::join!(
        Jump::start(stand, "gateway-before", &flags[0]),
        Jump::start(stand, "gateway-meanwhile", &flags[1]),
        Jump::start(stand, "gateway-after", &flags[2]),
    );
    for (jump, when, let_in) in [
        (&before, "before", ["old", "lines"].as_slice()),
        (&meanwhile, "meanwhile", &["old", "new", "lines"]),
        (&after, "after", &["new", "lines"]),
    ] {
        for (name, lines) in known {
            let (output, left) = logs_in(&request, jump, &format!("{when}-{name}"), lines, &instance.id).await;
            if let_in.contains(&name) {
                assert!(output.success() && output.stdout == "ec2-user\n", "{when}, {name}: {output:?}");
            } else {
                assert!(!output.success(), "{when}, {name}: {output:?}");
                assert!(output.stderr.contains("Host key verification failed"), "{when}, {name}: {output:?}");
            }
            assert_eq!(&left, lines, "{when}, {name}");
        }
    }
    // Two of one kind a client could not be shown; nor is a third made by mistake.
    let twice = format!("{},{}", old.display(), stand.lab.dir().join("gateway/host_key").display());
    for (files, words) in [
        (twice, "is a second key of the kind ssh-ed25519"),
        (format!("{},{}/none", old.display(), stand.lab.dir().display()), "none: is not there"),
    ] {
        let mut gateway = Command::new(crate::controller::PROGRAM);
        gateway.args(["gateway", "--audit-file", "/dev/null", "--host-key-file", &files]);
        let refused = ssh::run(&mut gateway).await.unwrap();
        assert!(!refused.success() && refused.stderr.contains(words), "{refused:?}");
    }
}
