//! Keys that cannot be delivered, and the one that must not be seen: a private key, pasted by mistake.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::json;

use crate::days;
use crate::stand::{Ask, Day, NAMESPACE, Outcome, SOON, Stand, shared};

pub fn days() -> Vec<(&'static str, Day)> {
    days![
        a_key_that_cannot_be_delivered_is_refused_with_the_reason_and_the_remedy,
        a_private_key_is_refused_at_the_door_and_repeated_nowhere,
        a_private_key_in_disguise_is_refused_and_repeated_nowhere,
        keys_in_all_the_forms_that_can_be_delivered_are,
    ]
}

/// Makes a key with `ssh-keygen`; returns both halves.
async fn keygen(stand: &Stand, name: &str, arguments: &[&str]) -> anyhow::Result<(String, String)> {
    let path = stand.lab.dir().join(name);
    let mut keygen = tokio::process::Command::new("ssh-keygen");
    keygen.args(["-q", "-N", "", "-C", "alice@example.com"]).args(arguments).arg("-f").arg(&path);
    let made = lab::ssh::run(&mut keygen).await?;
    anyhow::ensure!(made.success(), "ssh-keygen {arguments:?}: {}", made.stderr);
    let read = |path: &Path| std::fs::read_to_string(path).with_context(|| path.display().to_string());
    Ok((read(&path)?, read(&PathBuf::from(format!("{}.pub", path.display())))?.trim_end().to_owned()))
}

async fn a_key_that_cannot_be_delivered_is_refused_with_the_reason_and_the_remedy() -> Outcome {
    let stand = shared().await?;
    let id = stand.running();
    let body = stand.key.split(' ').nth(1).context("a key has a body")?;
    let (_, rsa_1024) = keygen(&stand, "rsa-1024", &["-t", "rsa", "-b", "1024"]).await?;
    let (_, rsa_3072) = keygen(&stand, "rsa-3072", &["-t", "rsa", "-b", "3072"]).await?;
    let (_, ecdsa) = keygen(&stand, "ecdsa", &["-t", "ecdsa"]).await?;
    let sk = format!("sk-ssh-ed25519@openssh.com {body}");
    let dsa = format!("ssh-dss {body}");
    // Where it is refused, and what it must be told.
    let door = [
        ("ecdsa", ecdsa, "ssh-ed25519 only"),
        ("sk", sk, "no ECDSA, sk- or DSA"),
        ("dsa", dsa, "ssh-keygen -t ed25519"),
        ("empty", String::new(), "sshPublicKey"),
        ("too-long-for-the-door", format!("ssh-rsa {}", "A".repeat(8193)), "sshPublicKey"),
        ("prose", "my key is on the other laptop".to_owned(), ".pub"),
        ("options", format!("command=\"true\" {}", stand.key), "ssh-ed25519"),
    ];
    for (name, key, words) in door {
        let (message, whole) =
            stand.refusal("alice", &Ask::new(&format!("key-{name}")).instance(&id).key(&key)).await?;
        anyhow::ensure!(message.contains(words), "{name}: {words:?} is not in: {message}");
        anyhow::ensure!(!whole.contains(body), "{name} is repeated: {whole}");
    }
    let status = [
        ("rsa-1024", rsa_1024, vec!["1024 bits cannot be delivered", "2048", "ssh-keygen -t ed25519"]),
        ("rsa-3072", rsa_3072, vec!["3072 bits cannot be delivered", "2048"]),
        ("no-base64", "ssh-ed25519 AAAA!?".to_owned(), vec!["spec.sshPublicKey"]),
        ("cut", stand.key[..50].to_owned(), vec!["spec.sshPublicKey", "something was lost or added", "to its end"]),
        ("another-type", format!("ssh-rsa {body}"), vec!["says ssh-rsa, but its body is ssh-ed25519"]),
        ("two", format!("{}\n{}", stand.key, stand.key), vec!["spec.sshPublicKey", "more than one key"]),
    ];
    for (name, key, words) in status {
        let name = format!("key-{name}");
        stand.ask(Ask::new(&name).instance(&id).key(&key)).await?;
        let object = stand.until_denied(&name, "InvalidSpec", &words).await?;
        anyhow::ensure!(stand.controller.recorded(&object, "Denied") == 1, "{name} has no record");
        let said = serde_json::to_string(&object.status)?;
        anyhow::ensure!(!said.contains(body), "{name} is repeated in status");
    }
    anyhow::ensure!(stand.pushes(&id).is_empty(), "something was pushed");
    Ok(())
}

/// Every line of a private key's body that is long enough to be a secret.
fn secrets(private: &str) -> Vec<String> {
    let body = private.lines().filter(|line| !line.starts_with('-') && line.len() >= 30);
    // The first line is the header, the same for all keys; the second begins with the public half.
    body.skip(2).map(|line| line[..30].to_owned()).collect()
}

/// Looks for secrets in everything that is stored or told.
async fn repeated(stand: &Stand, secrets: &[String]) -> anyhow::Result<Vec<String>> {
    anyhow::ensure!(!secrets.is_empty(), "there is something to look for");
    let mut found = Vec::new();
    let mut look = |place: String, text: &[u8]| {
        let holds = |secret: &String| text.windows(secret.len()).any(|window| window == secret.as_bytes());
        if secrets.iter().any(holds) {
            found.push(place);
        }
    };
    for part in ["kube-apiserver", "etcd"] {
        look(format!("the log of {part}"), &std::fs::read(stand.lab.log(part))?);
    }
    look("the controller's log".to_owned(), &std::fs::read(stand.controller.log())?);
    look("the audit trail".to_owned(), &std::fs::read(stand.controller.audit())?);
    look("the metrics".to_owned(), stand.controller.page("/metrics").await?.1.as_bytes());
    for kind in ["/apis/events.k8s.io/v1/events", "/api/v1/events"] {
        look("the events".to_owned(), stand.read(kind).await?.as_bytes());
    }
    Ok(found)
}

/// Looks for secrets in etcd's own files.
fn stored(stand: &Stand, secrets: &[String]) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut dirs = vec![stand.lab.dir().join("control-plane/etcd")];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|it| it == "wal" || it == "snap") || path.ends_with("db") {
                // Made with holes in advance: only what was written is looked at.
                let text = std::fs::read(&path)?;
                let holds = |secret: &String| memchr(&text, secret.as_bytes());
                if secrets.iter().any(holds) {
                    found.push(path);
                }
            }
        }
    }
    Ok(found)
}

fn memchr(text: &[u8], secret: &[u8]) -> bool {
    let first = secret[0];
    text.iter().enumerate().any(|(at, byte)| *byte == first && text[at..].starts_with(secret))
}

async fn a_private_key_is_refused_at_the_door_and_repeated_nowhere() -> Outcome {
    let stand = shared().await?;
    let id = stand.running();
    let (openssh, _) = keygen(&stand, "private-ed25519", &["-t", "ed25519"]).await?;
    let (rsa, _) = keygen(&stand, "private-rsa", &["-t", "rsa", "-b", "2048"]).await?;
    let (pem, _) = keygen(&stand, "private-pem", &["-t", "rsa", "-b", "2048", "-m", "PEM"]).await?;
    let mut all = secrets(&openssh);
    all.extend([secrets(&rsa), secrets(&pem)].concat());
    let unbroken = openssh.replace('\n', " ");
    let body: String = openssh.lines().filter(|line| !line.starts_with('-')).collect();
    let pasted = [
        ("openssh", openssh.clone(), "private key"),
        ("rsa", rsa, "private key"),
        ("pem", pem, "private key"),
        ("one-line", unbroken, "private key"),
        ("body-alone", body, ".pub"),
    ];
    for (name, key, words) in pasted {
        let ask = Ask::new(&format!("private-{name}")).instance(&id).key(&key);
        let (message, whole) = stand.refusal("alice", &ask).await?;
        anyhow::ensure!(message.contains(words), "{name}: {words:?} is not in: {message}");
        anyhow::ensure!(message.contains("spec.sshPublicKey"), "{name}: the field is not named: {message}");
        anyhow::ensure!(!all.iter().any(|secret| whole.contains(secret)), "{name}: the answer repeats the key");
    }
    let found = repeated(&stand, &all).await?;
    anyhow::ensure!(found.is_empty(), "a private key was repeated in {found:?}");
    let found = stored(&stand, &all)?;
    anyhow::ensure!(found.is_empty(), "a private key was stored in {found:?}");
    anyhow::ensure!(stand.pushes(&id).is_empty(), "something was pushed");
    Ok(())
}

async fn a_private_key_in_disguise_is_refused_and_repeated_nowhere() -> Outcome {
    // It looks like a public key, so the API server stores it; nobody else may pass it on.
    let stand = shared().await?;
    let id = stand.running();
    let (private, _) = keygen(&stand, "disguised", &["-t", "rsa", "-b", "2048", "-m", "PKCS8"]).await?;
    let secrets = secrets(&private);
    let body: String = private.lines().filter(|line| !line.starts_with('-')).collect();
    stand.ask(Ask::new("private-disguised").instance(&id).key(&format!("ssh-rsa {body}"))).await?;
    let object = stand.until_denied("private-disguised", "InvalidSpec", &["spec.sshPublicKey"]).await?;
    let said = serde_json::to_string(&object.status)?;
    anyhow::ensure!(!secrets.iter().any(|secret| said.contains(secret)), "status repeats the key");
    let events = async || {
        let events = stand.read(&format!("/apis/events.k8s.io/v1/namespaces/{NAMESPACE}/events")).await;
        match events {
            Ok(text) if text.contains("private-disguised") => Ok(()),
            Ok(_) => Err("no event yet".to_owned()),
            Err(error) => Err(format!("{error:#}")),
        }
    };
    lab::poll::until("the event of the refusal", SOON, events).await?;
    let found = repeated(&stand, &secrets).await?;
    anyhow::ensure!(found.is_empty(), "a private key was repeated in {found:?}");
    anyhow::ensure!(stand.pushes(&id).is_empty(), "something was pushed");
    Ok(())
}

async fn keys_in_all_the_forms_that_can_be_delivered_are() -> Outcome {
    let stand = shared().await?;
    let (_, rsa) = keygen(&stand, "rsa-2048", &["-t", "rsa", "-b", "2048"]).await?;
    let mut export = tokio::process::Command::new("ssh-keygen");
    export.args(["-e", "-m", "RFC4716", "-f"]).arg(stand.lab.dir().join("rsa-2048.pub"));
    let block = lab::ssh::run(&mut export).await?;
    for (name, key) in [("rsa", rsa), ("block", block.stdout), ("blanks", format!("\n {} \r\n", stand.key))] {
        let (name, id) = (format!("key-{name}"), stand.running());
        stand.ask(Ask::new(&name).instance(&id).key(&key).with("reason", json!("a form of key"))).await?;
        stand.until_granted(&name).await?;
        anyhow::ensure!(stand.pushes(&id).iter().all(|push| push.outcome.took_effect()), "{name} was refused by AWS");
    }
    Ok(())
}
