//! What the gateway refuses, each with what to do instead.

use std::fs;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use lab::poll;
use lab::ssh;
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

use crate::client::Client;
use crate::jump::{Jump, both};
use crate::stand::BOUND;

pub async fn nothing_is_reached_but_the_grants_own_instance_and_port() {
    let (stand, jump) = both().await;
    let (web, vault) = (stand.lab.instance("web-1"), stand.lab.instance("vault-1"));
    let request = stand.request("alice", "bounds").with(json!({"ttlSeconds": 600})).applied().await;
    request.becomes("Granted").await;
    let client = Client::of(&request, jump);
    let port = stand.lab.ssh_port();
    let api_server = fs::read_to_string(stand.lab.kubeconfig("admin").unwrap()).unwrap();
    let api_server: serde_json::Value = serde_json::from_str(&api_server).unwrap();
    let api_server = api_server["clusters"][0]["cluster"]["server"].as_str().unwrap().trim_start_matches("https://");
    for destination in [
        format!("{}:{port}", vault.id),             // another instance, by id
        vault.address().to_string(),                // and by address
        web.address().to_string(),                  // the granted one by address: names only
        "169.254.169.254:80".to_owned(),            // the gateway's own credentials
        "[fd00:ec2::254]:80".to_owned(),            //
        "[::ffff:169.254.169.254]:80".to_owned(),   //
        "[::ffff:a9fe:a9fe]:80".to_owned(),         //
        "[64:ff9b::a9fe:a9fe]:80".to_owned(),       //
        "2852039166:80".to_owned(),                 // in decimal, in hex, in octal, with one part missing
        "0xa9fea9fe:80".to_owned(),                 //
        "0251.0376.0251.0376:80".to_owned(),        //
        "169.254.43518:80".to_owned(),              //
        "kubernetes.default.svc:443".to_owned(),    // a name that the gateway's resolver may know
        format!("127.0.0.1:{}", jump.ssh.port()),   // the gateway itself
        format!("localhost:{}", jump.ssh.port()),   //
        format!("[::1]:{}", jump.ssh.port()),       //
        format!("0.0.0.0:{}", jump.ssh.port()),     //
        api_server.to_owned(),                      // its network
        stand.lab.standin().api_addr().to_string(), //
        format!("vault-1.team:{port}"),             // a request that is not there
    ] {
        let said = client.refused(&destination).await;
        assert!(said.contains(&format!("ask for {} (bounds.team)", web.id)), "{destination}: {said}");
    }
    for wrong in [port + 1, 80, 443] {
        let said = client.refused(&format!("{}:{wrong}", web.id)).await;
        assert!(said.contains(&format!("ask for port {port}")), "{wrong}: {said}");
    }
    assert_eq!(jump.records(&request.uid, "SessionOpened").len(), 0, "something was dialled");
    client.gets_in(&[&web.id]).await;
}

/// What a client is told of a channel that is not opened: all of it, as it came.
struct Told(Arc<Mutex<Vec<String>>>);

impl russh::client::Handler for Told {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _: &russh::keys::PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        Ok(true)
    }

    async fn channel_open_failure(
        &mut self,
        _: russh::ChannelId,
        _: russh::ChannelOpenFailure,
        description: &str,
        _: &str,
        _: &mut russh::client::Session,
    ) -> Result<(), russh::Error> {
        self.0.lock().unwrap().push(description.to_owned());
        Ok(())
    }
}

pub async fn a_refusal_says_nothing_that_a_terminal_would_obey() {
    let (stand, _) = both().await;
    let jump = Jump::start(stand, "gateway-terminal", &[]).await;
    let request = stand.request("alice", "terminal").with(json!({"ttlSeconds": 600})).applied().await;
    request.becomes("Granted").await;
    // OpenSSH cleans what it shows. Others may not; so this one looks at what is sent.
    let told = Arc::new(Mutex::new(Vec::new()));
    let client = russh::client::connect(Default::default(), jump.ssh, Told(Arc::clone(&told))).await;
    let mut client = client.unwrap();
    let key = russh::keys::load_secret_key(&request.key.private, None).unwrap();
    let key = russh::keys::PrivateKeyWithHashAlg::new(Arc::new(key), None);
    assert!(client.authenticate_publickey("whoever", key).await.unwrap().success());
    let names = [
        "\x1b]0;owned\x07\x1b[2J\x1b[31m".to_owned(),
        "i-0123456789abcdef0\r\nthe gateway says: type your password\0".to_owned(),
        "\u{202e}\u{9b}31m\u{7f}".to_owned(),
        "x".repeat(100_000),
    ];
    for name in &names {
        let opened = client.channel_open_direct_tcpip(name.clone(), 22, "127.0.0.1", 1).await;
        assert!(opened.is_err(), "{name:?}");
    }
    let told = poll::until_ok("all refusals", BOUND, || match told.lock().unwrap().clone() {
        told if told.len() == names.len() => Ok(told),
        told => Err(format!("{told:?}")),
    });
    let told = told.await.unwrap();
    for text in &told {
        let is_plain = text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
        assert!(is_plain && text.len() < 500, "{text:?}");
        assert!(text.contains("is none of your grants' instances"), "{text}");
    }
    // Nor does the log, which people read on terminals as well, nor the trail.
    let log = jump.log();
    let is_obeyed = |c: char| c.is_control() && c != '\n' || c == '\u{202e}';
    assert!(log.contains("refused a session") && !log.contains(is_obeyed), "{log:?}");
    assert!(log.lines().all(|line| line.len() < 2000), "a line of the log has no bound");
}

pub async fn whoever_tries_doors_is_shown_out() {
    let (stand, jump) = both().await;
    let request = stand.request("alice", "doors").with(json!({"ttlSeconds": 600})).applied().await;
    request.becomes("Granted").await;
    let client = Client::of(&request, jump);
    // Many doors over one connection, as a scanner would try them.
    let socket = stand.lab.dir().join("cm-doors").display().to_string();
    let mut master = client.ssh();
    master.args(["-M", "-N", "-S", &socket, "gateway"]).stderr(Stdio::piped());
    let master = master.spawn().unwrap();
    let is_there =
        poll::until("a master", BOUND, async || match client.typed(&["-S", &socket, "-O", "check", "gateway"]).await {
            check if check.success() => Ok(()),
            check => Err(check.stderr),
        });
    is_there.await.unwrap();
    for door in 1..=100 {
        let said = client.typed(&["-S", &socket, "-W", "10.0.0.1:22", "gateway"]).await;
        assert!(said.stdout.is_empty(), "door {door}: {said:?}");
        // With the last one the master goes; which of both OpenSSH tells first is its own affair.
        assert!(door == 100 || said.stderr.contains("refused by peer"), "door {door}: {said:?}");
    }
    let said = tokio::time::timeout(BOUND, master.wait_with_output()).await.expect("it may go on for ever").unwrap();
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.contains("100 sessions were refused"), "{said}");
}

pub async fn a_jump_host_is_no_shell_and_forwards_nothing_else() {
    let (stand, jump) = both().await;
    let request = stand.request("alice", "no-shell").with(json!({"ttlSeconds": 600})).applied().await;
    request.becomes("Granted").await;
    let client = Client::of(&request, jump);
    for arguments in [
        &["gateway"][..],
        &["gateway", "id"],
        &["-tt", "gateway"],
        &["-s", "gateway", "sftp"],
        &["-A", "gateway", "id"],
    ] {
        let said = client.typed(arguments).await;
        assert!(!said.success() && said.stdout.is_empty(), "{arguments:?}: {said:?}");
        assert!(said.stderr.contains("this gateway is a jump host and nothing else"), "{arguments:?}: {said:?}");
    }
    let fail = ["-N", "-o", "ExitOnForwardFailure=yes"];
    for forward in ["-R127.0.0.1:0:127.0.0.1:22", "-R/tmp/no-such-socket:127.0.0.1:22"] {
        let said = ssh::run(client.ssh().args(fail).args([forward, "gateway"])).await.unwrap();
        assert!(!said.success() && said.stderr.contains("forward"), "{forward}: {said:?}");
    }
    // A file of the gateway's by way of a socket's path.
    let socket = stand.lab.dir().join("streamlocal");
    let mut forwarding = client.ssh();
    forwarding.args(fail).arg(format!("-L{}:/etc/passwd", socket.display())).arg("gateway");
    let _forwarding = forwarding.spawn().unwrap();
    let mut stream = poll::until("the socket", BOUND, async || UnixStream::connect(&socket).await).await.unwrap();
    let mut read = Vec::new();
    tokio::time::timeout(BOUND, stream.read_to_end(&mut read)).await.expect("an end").unwrap();
    assert!(read.is_empty());
    assert!(jump.metric("instance_access_gateway_refusals_total{reason=\"NoSocket\"}").await > 0.0);
    for method in ["password", "keyboard-interactive", "hostbased", "none"] {
        let said = client.typed(&["-o", &format!("PreferredAuthentications={method}"), "gateway"]).await;
        assert!(said.stderr.contains("Permission denied (publickey)"), "{method}: {said:?}");
    }
}

pub async fn a_key_without_a_live_grant_is_not_let_in() {
    let (stand, jump) = both().await;
    let web = stand.lab.instance("web-1");
    let request = stand.request("alice", "refused-key").with(json!({"osUser": "root"})).applied().await;
    request.is_denied("DeniedByPolicy").await;
    let client = Client::of(&request, jump);
    for arguments in [&["gateway"][..], &[&web.id], &["-W", "i-0123456789abcdef0:22", "gateway"]] {
        let said = client.typed(arguments).await;
        assert!(said.stderr.contains("Permission denied (publickey)"), "{arguments:?}: {said:?}");
    }
    // Nor one that merely names a key that has a grant: without its private half there is no signature.
    let granted = stand.request("bob", "granted-key").with(json!({"ttlSeconds": 600})).applied().await;
    granted.becomes("Granted").await;
    let stolen = stand.lab.dir().join("stolen");
    fs::copy(&request.key.private, &stolen).unwrap();
    fs::write(stolen.with_extension("pub"), &granted.key.public).unwrap();
    let thief = lab::ssh::KeyPair { private: stolen, public: granted.key.public.clone() };
    let config = stand.lab.ssh_config(&thief, &jump.config(&stand.lab, "", "")).unwrap();
    let said =
        ssh::run(stand.lab.ssh(&config).unwrap().args(["-W", &format!("{}:22", web.id), "gateway"])).await.unwrap();
    assert!(!said.success() && said.stderr.contains("Permission denied (publickey)"), "{said:?}");
    assert_eq!(jump.records(&granted.uid, "SessionOpened").len(), 0);
}

pub async fn without_a_record_no_session() {
    let (stand, _) = both().await;
    let jump = Jump::start(stand, "gateway-records", &[]).await;
    let instance = stand.instance("records").await;
    let request = stand.request("alice", "records").on(&instance).with(json!({"ttlSeconds": 600})).applied().await;
    request.becomes("Granted").await;
    let client = Client::of(&request, &jump);
    let mut live = client.stays(&instance.id).await;
    let aside = jump.audit.with_extension("aside");
    fs::rename(&jump.audit, &aside).unwrap();
    let said = client.refused(&format!("{}:{}", instance.id, stand.lab.ssh_port())).await;
    assert!(said.contains("cannot write its audit trail"), "{said}");
    live.echoes().await;
    drop(live);
    // The end of the one that was open waits for the trail.
    let failed = poll::until("a failed record", BOUND, async || {
        match jump.metric("instance_access_gateway_audit_failures_total").await {
            two if two >= 2.0 => Ok(()),
            failures => Err(format!("{failures}")),
        }
    });
    failed.await.unwrap();
    fs::rename(&aside, &jump.audit).unwrap();
    assert_eq!(jump.ended(&request.uid).await["record"]["cause"], "ClientLeft");
    tokio::time::timeout(BOUND, client.gets_in(&[&instance.id])).await.unwrap();
    jump.verifies();
}
