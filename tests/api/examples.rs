//! The files in `examples/`, and what a person sees of them.

use std::fs;
use std::path::Path;

use clap::Parser;
use instance_access::config::{Command, CommandLine};
use serde::Deserialize;
use serde_json::{Value, json};

use super::world::{World, assert_unchanged, world};
use crate::common::{Object, file, kubectl, kubectl_with, request};

/// The manifests of one kind of file, by file name.
fn examples(prefix: &str) -> Vec<(String, String)> {
    let names = fs::read_dir(file("examples")).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name.starts_with(prefix) && name.ends_with(".yaml")).collect();
    names.sort();
    names.into_iter().map(|name| (name.clone(), fs::read_to_string(file("examples").join(name)).unwrap())).collect()
}

async fn applies(world: &World, user: &str, name: &str, manifest: &str) {
    let namespaced = ["-n", &world.namespace, "-f", "-"];
    let apply = [&["apply", "--validate=strict"], &namespaced[..]].concat();
    kubectl_with(world.lab, user, &apply, manifest).await.unwrap_or_else(|error| panic!("{name}: {error:#}"));
    let again = kubectl_with(world.lab, user, &apply, manifest).await.unwrap();
    assert!(again.lines().all(|line| line.ends_with(" unchanged")), "{name}: {again}");
    // Fails where there is a difference.
    let differs = kubectl_with(world.lab, user, &[&["diff"], &namespaced[..]].concat(), manifest).await.unwrap();
    assert_eq!(differs, "", "{name}");
}

#[tokio::test]
async fn every_example_applies_as_it_stands_and_again_without_a_difference() {
    let world = world().await;
    let requests = examples("request");
    assert_eq!(requests.len(), 4, "one for each form of target, and one from Git");
    for (name, manifest) in requests {
        applies(&world, "alice", &name, &manifest).await;
    }
    let policies = [examples("policy"), examples("deny")].concat();
    assert_eq!(policies.len(), 6);
    for (name, manifest) in policies {
        applies(&world, "admin", &name, &manifest).await;
    }
    let decisions = examples("approve");
    assert_eq!(decisions.len(), 1);
    for (name, manifest) in decisions {
        applies(&world, "admin", &name, &manifest).await;
    }
    let gateway = examples("gateway");
    assert_eq!(gateway.len(), 3, "its rights, those on the lease, and two of it");
    for (name, manifest) in [examples("operator-rbac"), examples("user-rbac"), gateway].concat() {
        let apply = ["apply", "--server-side", "--force-conflicts", "--validate=strict", "-f", "-"];
        let applied = kubectl_with(world.lab, "admin", &apply, &manifest).await;
        assert!(applied.is_ok(), "{name}: {applied:?}");
    }
}

#[test]
fn the_gateways_example_runs_what_the_command_line_takes() {
    let manifest = fs::read_to_string(file("examples/gateway.yaml")).unwrap();
    let documents = serde_yaml::Deserializer::from_str(&manifest).map(|it| Value::deserialize(it).unwrap());
    let set = documents.into_iter().find(|document| document["kind"] == "StatefulSet").unwrap();
    let pod = &set["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let arguments = container["args"].as_array().unwrap().iter().map(|argument| argument.as_str().unwrap());
    let line = CommandLine::try_parse_from(["instance-access"].into_iter().chain(arguments));
    let Ok(CommandLine { command: Command::Gateway(gateway) }) = line else { panic!("{line:?}") };
    // Everything that it reads and writes is mounted, and its port is the one that is served.
    let mounts = container["volumeMounts"].as_array().unwrap();
    let is_mounted = |path: &Path| mounts.iter().any(|mount| path.starts_with(mount["mountPath"].as_str().unwrap()));
    assert!(gateway.host_key_file.iter().chain(&gateway.audit_file).all(|path| is_mounted(path)), "{mounts:?}");
    assert_eq!(container["ports"][0]["containerPort"], gateway.ssh_listen.port());
    assert_eq!(container["ports"][1]["containerPort"], gateway.listen.port());
    let grace = pod["terminationGracePeriodSeconds"].as_u64().unwrap();
    assert!(grace > u64::from(gateway.drain_seconds) + 5, "it is killed before its last records are written");
    // Octal, as kubectl reads YAML; a key of this mode is taken, as `gateway::host_key` has it.
    assert!(manifest.contains("defaultMode: 0440"));
}

#[tokio::test]
async fn every_policy_in_the_pages_is_one_that_the_api_server_takes() {
    let world = world().await;
    let page = fs::read_to_string(file("docs/policies.md")).unwrap();
    let blocks: Vec<&str> = page.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(blocks.iter().any(|block| block.contains("gatewayOnly")), "none of {} shows a session", blocks.len());
    for block in blocks {
        let apply = ["apply", "--dry-run=server", "--validate=strict", "-f", "-"];
        kubectl_with(world.lab, "admin", &apply, block).await.unwrap_or_else(|error| panic!("{block}: {error:#}"));
    }
}

#[tokio::test]
async fn an_example_can_be_applied_by_the_server_in_the_same_way() {
    let world = world().await;
    for (name, manifest) in examples("request") {
        let apply = ["apply", "--server-side", "-n", &world.namespace, "-o", "json", "-f", "-"];
        let mut answers = Vec::new();
        for _ in 0..3 {
            let answer = kubectl_with(world.lab, "alice", &apply, &manifest).await.unwrap();
            answers.push(serde_json::from_str::<Value>(&answer).unwrap());
        }
        assert_unchanged(&answers);
        let diff = ["diff", "--server-side", "-n", &world.namespace, "-f", "-"];
        assert_eq!(kubectl_with(world.lab, "alice", &diff, &manifest).await.unwrap(), "", "{name}");
    }
}

#[tokio::test]
async fn a_misspelt_field_is_refused_by_kubectl() {
    let world = world().await;
    let manifest = request("misspelt").with("/spec/ttl", json!(600)).0.to_string();
    let apply = ["apply", "-n", &world.namespace, "-f", "-"];
    let error = kubectl_with(world.lab, "alice", &apply, &manifest).await.unwrap_err().to_string();
    assert!(error.contains("unknown field \"spec.ttl\""), "{error}");
}

/// A request as the operator leaves it once access is there.
async fn granted(world: &World) {
    let object = request("web-1")
        .with("/spec/reason", json!("INC-4711: web-1 answers slowly"))
        .with("/spec/ticket", json!("INC-4711"));
    world.alice.create(&object).await.unwrap();
    let approval = |who: &str| {
        let time = "2026-03-01T07:59:00Z";
        json!({"name": "a", "uid": "1", "approver": who, "principal": who, "decision": "Approve", "time": time})
    };
    let status = json!({
        "observedGeneration": 1,
        "approvals": [approval("erin"), approval("sam")],
        "approvers": "erin, sam",
        "policy": {"name": "developers", "uid": "1", "generation": 1, "digest": ""},
        "instance": {"instanceId": "i-0123456789abcdef0"},
        "grant": {"id": "g-1", "startTime": "2026-03-01T08:00:00Z", "expirationTime": "2026-03-01T08:30:00Z"},
        "conditions": [{
            "type": "Active", "status": "True", "reason": "Granted", "message": "", "observedGeneration": 1,
            "lastTransitionTime": "2026-03-01T08:00:00Z",
        }],
    });
    world.operator.replace_status(&Object(object.0).with("/status", status)).await.unwrap();
}

/// A table with every run of blanks as one, and the ages gone.
fn squeezed(table: &str) -> String {
    let age = |word: &str| word.ends_with('s') && word.trim_end_matches('s').parse::<u32>().is_ok();
    let words =
        |line: &str| line.split_whitespace().map(|it| if age(it) { "AGE" } else { it }).collect::<Vec<_>>().join(" ");
    table.lines().map(words).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn a_table_says_who_is_where_until_when() {
    let world = world().await;
    granted(&world).await;
    let table = async |what: &str, more: &[&str]| {
        let get = ["get", what, "-n", &world.namespace];
        squeezed(&kubectl(world.lab, "alice", &[&get[..], more].concat()).await.unwrap())
    };
    insta::assert_snapshot!(table("ia", &[]).await, @r"
    NAME INSTANCE USER POLICY STATUS EXPIRES SESSIONS AGE
    web-1 i-0123456789abcdef0 alice developers Granted 2026-03-01T08:30:00Z AGE
    ");
    insta::assert_snapshot!(table("instanceaccess", &["-o", "wide"]).await, @r"
    NAME INSTANCE USER POLICY STATUS EXPIRES SESSIONS AGE APPROVERS TICKET REASON
    web-1 i-0123456789abcdef0 alice developers Granted 2026-03-01T08:30:00Z AGE erin, sam INC-4711 INC-4711: web-1 answers slowly
    ");
    // The category, and the other kind's short name.
    assert!(table("instance-access", &[]).await.contains("web-1"));
    assert!(!table("iap", &["-o", "name"]).await.contains("No resources"));
}

#[tokio::test]
async fn explain_tells_what_to_write() {
    let world = world().await;
    for (name, path) in [
        ("request", "ia.spec"),
        ("request-target", "ia.spec.target"),
        ("request-connection", "ia.spec.connection"),
        ("request-status", "ia.status"),
        ("decision", "iad.spec"),
        ("ledger-entry", "iale.spec"),
        ("policy", "iap.spec"),
        ("policy-targets", "iap.spec.targets"),
    ] {
        let text = kubectl(world.lab, "alice", &["explain", path]).await.unwrap();
        let text: Vec<&str> = text.lines().map(str::trim_end).collect();
        insta::assert_snapshot!(format!("explain-{name}"), text.join("\n"));
    }
}
