//! The chart in a real API server: installed, upgraded without a difference, enough for the real controller to grant and
//! to let go, no right too many, and gone again but for what must stay.
//!
//! There are no pods here: the controller is a process, with the environment that the chart renders and under the chart's
//! service account. So an image, probes and volumes are judged by the API server alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use lab::standin::Api;
use lab::{Lab, Launch, Options, poll, proc::MARK, ssh};
use serde_json::{Value, json};

use super::helm::{self, IMAGE, container, file, objects, of_kind, read, the};

/// How long anything may take that takes moments on an idle machine.
const BOUND: Duration = Duration::from_secs(60);
/// How far away a start is that does not come while the test runs.
const TO_COME: jiff::SignedDuration = jiff::SignedDuration::from_hours(1);
const PROGRAM: &str = env!("CARGO_BIN_EXE_instance-access");
const NAMESPACE: &str = "instance-access";
/// What is optional in the chart and known to every API server.
const OPTIONAL: &str = "podDisruptionBudget.enabled=true,networkPolicy.enabled=true";

/// Rights that the main job need not use, each as (verb, resource, why the operator has it).
const UNUSED: [(&str, &str, &str); 4] = [
    ("get", "instanceaccesses.instanceaccess.dev", "a request is read anew after a write that was refused or lost"),
    ("get", "instanceaccesspolicies.instanceaccess.dev/status", "to tell how many grants a policy has, now and then"),
    (
        "create",
        "instanceaccessledgerentries.instanceaccess.dev",
        "for a granted request that goes; tests/whole/ledger.rs does so, under the same rules",
    ),
    ("delete", "instanceaccessledgerentries.instanceaccess.dev", "for entries whose time is over, 400 days later"),
];

/// A controller, killed when it is dropped.
struct Controller {
    child: Child,
    listen: String,
}

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `kubectl`, which must succeed.
async fn kubectl(lab: &Lab, who: &str, arguments: &[&str]) -> String {
    let done = ssh::run(lab.kubectl(who).unwrap().current_dir(lab.dir()).args(arguments)).await.unwrap();
    assert!(done.success(), "kubectl {arguments:?}: {}{}", done.stdout, done.stderr);
    done.stdout
}

/// `helm`, as the administrator, which must succeed; returns all that it said.
async fn helm(lab: &Lab, arguments: &[&str]) -> String {
    let mut command = helm::command(&lab.dir().join("home"));
    command.env("KUBECONFIG", lab.kubeconfig("admin").unwrap()).args(["--namespace", NAMESPACE]).args(arguments);
    let done = ssh::run(&mut command.into()).await.unwrap();
    assert!(done.success(), "helm {arguments:?}: {}{}", done.stdout, done.stderr);
    format!("{}{}", done.stdout, done.stderr)
}

/// Writes a manifest down, for kubectl.
fn manifest(lab: &Lab, name: &str, object: &Value) -> String {
    let path = lab.dir().join(name);
    fs::write(&path, object.to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

/// The release's objects as they stand, by kind and name.
async fn standing(lab: &Lab, manifests: &str) -> BTreeMap<String, Value> {
    let all: Value =
        serde_json::from_str(&kubectl(lab, "admin", &["get", "-f", manifests, "-o", "json"]).await).unwrap();
    let items = all["items"].as_array().expect("a list").clone();
    let mut standing = BTreeMap::new();
    for mut item in items {
        // The API server writes a claim anew when it is applied unchanged; all else of it stays.
        item["metadata"].as_object_mut().unwrap().remove("resourceVersion");
        standing.insert(format!("{} {}", item["kind"], item["metadata"]["name"]), item);
    }
    standing
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_chart_installs_is_enough_to_grant_and_to_let_go_and_nothing_too_much() {
    let instances = [Launch::new("web-1").tag("env", "dev")];
    let lab = Lab::start(Options { audit_log: true, ..Options::default() }.instances(instances)).await.unwrap();
    for namespace in [NAMESPACE, "team"] {
        kubectl(&lab, "admin", &["create", "namespace", namespace]).await;
    }
    let restricted = "pod-security.kubernetes.io/enforce=restricted";
    let warned = "pod-security.kubernetes.io/warn=restricted";
    kubectl(&lab, "admin", &["label", "namespace", NAMESPACE, restricted, warned]).await;

    let rendered = install(&lab).await;
    the_same_again_changes_nothing(&lab).await;
    another_number_of_replicas_is_taken_and_another_volume_refused(&lab, &rendered).await;
    the_pods_are_let_in_where_only_the_restricted_are(&lab, &rendered).await;

    let controller = start(&lab, &rendered).await;
    grant_and_let_go(&lab).await;
    helm_waits_for_access_and_fails_on_a_refusal(&lab).await;
    no_right_is_missing_and_none_unused(&lab, &rendered);
    the_iam_policy_is_enough(&lab);
    drop(controller);

    uninstall_keeps_what_must_stay(&lab).await;
    install(&lab).await;
    lab.shutdown().await.unwrap();
}

/// Installs the chart; returns what it rendered.
async fn install(lab: &Lab) -> Vec<Value> {
    let chart = helm::chart();
    let said =
        helm(lab, &["install", "instance-access", chart.to_str().unwrap(), "--set", IMAGE, "--set", OPTIONAL]).await;
    assert!(!said.to_lowercase().contains("warning"), "{said}");
    assert!(said.contains("helm -n instance-access test instance-access"), "no notes: {said}");
    kubectl(lab, "admin", &["wait", "--for=condition=Established", "--timeout=60s", "crd", "--all"]).await;
    let manifests = helm(lab, &["get", "manifest", "instance-access"]).await;
    fs::write(lab.dir().join("release.yaml"), &manifests).unwrap();
    // Helm asked the cluster what it serves; the fields it sent are judged once more, strictly.
    kubectl(
        lab,
        "admin",
        &["apply", "--dry-run=server", "--validate=strict", "--server-side", "--force-conflicts", "-f", "release.yaml"],
    )
    .await;
    let objects = objects(&manifests);
    assert!(!of_kind(&objects, "MutatingAdmissionPolicy").is_empty(), "who asks would not be filled in");
    objects
}

async fn the_same_again_changes_nothing(lab: &Lab) {
    let before = standing(lab, "release.yaml").await;
    assert!(before.len() > 15, "{:?}", before.keys());
    let chart = helm::chart();
    helm(lab, &["upgrade", "instance-access", chart.to_str().unwrap(), "--set", IMAGE, "--set", OPTIONAL]).await;
    let after = standing(lab, "release.yaml").await;
    assert_eq!(before, after);
}

/// As docs/install.md says of what can be changed.
async fn another_number_of_replicas_is_taken_and_another_volume_refused(lab: &Lab, rendered: &[Value]) {
    let mut workload = helm::controller(rendered).clone();
    workload["spec"]["replicas"] = json!(3);
    let three = manifest(lab, "workload.json", &workload);
    kubectl(lab, "admin", &["replace", "--dry-run=server", "-f", &three]).await;
    workload["spec"]["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"] = json!("20Gi");
    let larger = manifest(lab, "workload.json", &workload);
    let mut replace = lab.kubectl("admin").unwrap();
    let refused = ssh::run(replace.args(["replace", "--dry-run=server", "-f", &larger])).await.unwrap();
    assert!(refused.stderr.contains("updates to statefulset spec for fields other than"), "{refused:?}");
}

async fn the_pods_are_let_in_where_only_the_restricted_are(lab: &Lab, rendered: &[Value]) {
    let job = helm::rendered(&[]);
    for (name, template) in [
        ("controller", &helm::controller(rendered)["spec"]["template"]),
        ("test", &the(&job, "Job")["spec"]["template"]),
    ] {
        let mut pod = template.clone();
        pod["apiVersion"] = json!("v1");
        pod["kind"] = json!("Pod");
        pod["metadata"]["name"] = json!(name);
        pod["metadata"]["namespace"] = json!(NAMESPACE);
        if name == "controller" {
            // As the StatefulSet's controller adds it, which is not there.
            let mut claim = helm::controller(rendered)["spec"]["volumeClaimTemplates"][0].clone();
            claim["metadata"]["namespace"] = json!(NAMESPACE);
            let template = claim["metadata"]["name"].as_str().unwrap();
            pod["spec"]["volumes"] = json!([{"name": template, "persistentVolumeClaim": {"claimName": "audit-0"}}]);
            let claim = manifest(lab, "claim.json", &claim);
            kubectl(lab, "admin", &["create", "--dry-run=server", "--validate=strict", "-f", &claim]).await;
        }
        kubectl(lab, "admin", &["create", "--dry-run=server", "-f", &manifest(lab, "pod.json", &pod)]).await;
        // It is judged at all: with one right more it would be refused.
        pod["spec"]["containers"][0]["securityContext"]["capabilities"] = json!({"add": ["SYS_ADMIN"]});
        let pod = manifest(lab, "pod.json", &pod);
        let refused =
            ssh::run(lab.kubectl("admin").unwrap().args(["create", "--dry-run=server", "-f", &pod])).await.unwrap();
        assert!(refused.stderr.contains("violates PodSecurity \"restricted"), "{refused:?}");
    }
}

/// Starts the program as the chart's pod would: its arguments, its environment, its service account.
async fn start(lab: &Lab, rendered: &[Value]) -> Controller {
    let container = container(rendered);
    let log = lab.dir().join("controller.log");
    let file = File::create(&log).unwrap();
    let mut command = Command::new(PROGRAM);
    command.env_clear().env(MARK, lab.dir()).env("HOME", lab.dir());
    for variable in container["env"].as_array().unwrap() {
        command.env(variable["name"].as_str().unwrap(), variable["value"].as_str().unwrap());
    }
    // What a pod has of its own: a volume, an address, and EKS's way to AWS.
    command.env("INSTANCE_ACCESS_AUDIT_FILE", lab.dir().join("audit.jsonl"));
    command.env("INSTANCE_ACCESS_LISTEN", "127.0.0.1:0");
    command.envs(lab.aws_env());
    let account = the(rendered, "ServiceAccount")["metadata"]["name"].as_str().unwrap();
    command.env("KUBECONFIG", lab.kubeconfig_for_service_account(NAMESPACE, account).await.unwrap());
    command.args(container["args"].as_array().unwrap().iter().map(|it| it.as_str().unwrap()));
    command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
    let child = command.spawn().unwrap();
    let mut controller = Controller { child, listen: String::new() };
    let listen = poll::until_ok("the controller's start", BOUND, || {
        let log = fs::read_to_string(&log).unwrap_or_default();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let said = lines.into_iter().find(|line| line["message"] == "started");
        said.and_then(|line| Some(line["listen"].as_str()?.to_owned())).ok_or(log)
    });
    controller.listen = listen.await.unwrap();
    // As helm test asks.
    let mut ready = tokio::process::Command::new(PROGRAM);
    let said = ssh::run(ready.args(["ready", "--wait-seconds", "50", &controller.listen])).await.unwrap();
    assert!(said.success() && said.stdout.contains("ready"), "{said:?}\n{}", fs::read_to_string(&log).unwrap());
    controller
}

async fn grant_and_let_go(lab: &Lab) {
    for (group, role) in [("developers", "instance-access-requester"), ("leads", "instance-access-approver")] {
        kubectl(lab, "admin", &["create", "clusterrolebinding", group, "--clusterrole", role, "--group", group]).await;
    }
    let policy = objects(&read("examples/policy.yaml")).remove(0);
    kubectl(lab, "admin", &["apply", "-f", &manifest(lab, "policy.json", &policy)]).await;
    let name = format!("instanceaccesspolicy/{}", policy["metadata"]["name"].as_str().unwrap());
    kubectl(lab, "admin", &["wait", "--for=condition=Ready", "--timeout=60s", &name]).await;

    let web = lab.instance("web-1");
    let key = lab.new_key("alice").await.unwrap();
    let request = json!({
        "apiVersion": "instanceaccess.dev/v1alpha1",
        "kind": "InstanceAccess",
        "metadata": {"name": "web-1", "namespace": "team"},
        "spec": {
            "target": {"instanceId": web.id},
            "osUser": "ec2-user",
            "sshPublicKey": key.public,
            "connection": {"port": lab.ssh_port()},
            "ttlSeconds": 600,
            "reason": "INC-4711: look at the logs",
        },
    });
    kubectl(lab, "alice", &["apply", "-f", &manifest(lab, "request.json", &request)]).await;
    let asked = ["-n", "team", "wait", "--for=condition=Active", "--timeout=50s", "instanceaccess/web-1"];
    kubectl(lab, "alice", &asked).await;
    let shell = lab.ssh_login(&key, &web, "id -un").await.unwrap();
    assert_eq!(shell.stdout.trim(), "ec2-user", "{shell:?}");

    // One that was never granted goes at once: what the operator writes for it is what it writes for any.
    let mut later = request;
    later["metadata"]["name"] = json!("later");
    later["spec"]["startTime"] = json!((Timestamp::now() + TO_COME).to_string());
    kubectl(lab, "alice", &["apply", "-f", &manifest(lab, "later.json", &later)]).await;
    let stage = "--for=jsonpath={.status.conditions[?(@.type=='Active')].reason}=Scheduled";
    kubectl(lab, "alice", &["-n", "team", "wait", stage, "--timeout=50s", "instanceaccess/later"]).await;
    kubectl(lab, "alice", &["-n", "team", "delete", "instanceaccess", "later", "--timeout=50s"]).await;
    let trail = lab.dir().join("audit.jsonl");
    let mut verify = tokio::process::Command::new(PROGRAM);
    let verified = ssh::run(verify.args(["audit", "verify"]).arg(trail)).await.unwrap();
    assert!(verified.success(), "{verified:?}");
}

/// As docs/gitops/README.md says of `helm --wait`: a release of one request.
async fn helm_waits_for_access_and_fails_on_a_refusal(lab: &Lab) {
    // helm keeps a release in a Secret.
    let verbs = "--verb=get,list,create,update";
    kubectl(lab, "admin", &["-n", "team", "create", "role", "releases", verbs, "--resource=secrets"]).await;
    kubectl(lab, "admin", &["-n", "team", "create", "rolebinding", "releases", "--role=releases", "--user=alice"])
        .await;
    let request: Value = serde_json::from_str(&fs::read_to_string(lab.dir().join("request.json")).unwrap()).unwrap();
    let install = async |name: &str, os_user: &str| {
        let chart = lab.dir().join(name);
        fs::create_dir_all(chart.join("templates")).unwrap();
        let about = json!({"apiVersion": "v2", "name": name, "version": "0.1.0"});
        fs::write(chart.join("Chart.yaml"), about.to_string()).unwrap();
        let mut request = request.clone();
        request["metadata"]["name"] = json!(name);
        request["spec"]["osUser"] = json!(os_user);
        fs::write(chart.join("templates/request.yaml"), request.to_string()).unwrap();
        let mut command = helm::command(&lab.dir().join("home"));
        command.env("KUBECONFIG", lab.kubeconfig("alice").unwrap());
        command.args(["--namespace", "team", "install", name, chart.to_str().unwrap(), "--wait", "--timeout", "60s"]);
        let start = Instant::now();
        (ssh::run(&mut command.into()).await.unwrap(), start.elapsed())
    };
    let (granted, _) = install("by-helm", "ec2-user").await;
    assert!(granted.success(), "{granted:?}");
    let stage = [
        "-n",
        "team",
        "get",
        "instanceaccess",
        "by-helm",
        "-o",
        "jsonpath={.status.conditions[?(@.type=='Active')].status}",
    ];
    assert_eq!(kubectl(lab, "alice", &stage).await, "True", "{granted:?}");

    let (refused, took) = install("by-helm-refused", "root").await;
    assert!(!refused.success() && took < BOUND / 2, "{took:?}: {refused:?}");
    assert!(refused.stderr.contains("by-helm-refused") && refused.stderr.contains("Failed"), "{refused:?}");
}

/// What the API server wrote down of the operator: each (verb, resource) that was let through.
fn used(lab: &Lab) -> BTreeSet<(String, String)> {
    let operator = format!("system:serviceaccount:{NAMESPACE}:operator");
    let log = fs::read_to_string(lab.log("kube-apiserver-audit")).unwrap();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut used = BTreeSet::new();
    for line in lines.filter(|line| line["user"]["username"] == operator.as_str()) {
        assert_ne!(line["responseStatus"]["code"], 403, "the operator asked for what it may not do: {line}");
        let object = &line["objectRef"];
        let text = |field: &str| object[field].as_str().unwrap_or_default();
        used.insert((
            line["verb"].as_str().unwrap().to_owned(),
            resource(text("apiGroup"), text("resource"), text("subresource")),
        ));
    }
    used
}

/// `nodes.`, `instanceaccesses.instanceaccess.dev/status`.
fn resource(group: &str, resource: &str, subresource: &str) -> String {
    let of = if subresource.is_empty() { String::new() } else { format!("/{subresource}") };
    format!("{resource}.{group}{of}")
}

fn no_right_is_missing_and_none_unused(lab: &Lab, rendered: &[Value]) {
    let mut given = BTreeSet::new();
    let role =
        of_kind(rendered, "ClusterRole").into_iter().find(|it| it["metadata"]["name"] == "instance-access-operator");
    for rule in role.unwrap()["rules"].as_array().unwrap() {
        let all = |field: &str| rule[field].as_array().unwrap().iter().map(|it| it.as_str().unwrap().to_owned());
        for (verb, group) in all("verbs").flat_map(|verb| all("apiGroups").map(move |group| (verb.clone(), group))) {
            for name in all("resources") {
                let (name, sub) = name.split_once('/').unwrap_or((&name, ""));
                given.insert((verb.clone(), resource(&group, name, sub)));
            }
        }
    }
    let used = used(lab);
    let excused: BTreeSet<_> = UNUSED.iter().map(|(verb, name, _)| ((*verb).to_owned(), (*name).to_owned())).collect();
    let idle: BTreeSet<_> = given.difference(&used).filter(|right| !excused.contains(*right)).collect();
    assert!(
        idle.is_empty(),
        "nothing used {idle:?}: take it out of examples/operator-rbac.yaml, or give UNUSED a reason"
    );
    assert!(excused.is_subset(&given), "UNUSED speaks of rights that nobody has any more: {excused:?}");
    // It was read at all, and is the operator's.
    assert!(used.contains(&("update".to_owned(), "instanceaccesses.instanceaccess.dev/status".to_owned())), "{used:?}");
}

/// AWS was asked for nothing that examples/iam-policy.json does not allow.
fn the_iam_policy_is_enough(lab: &Lab) {
    let policy: Value = serde_json::from_str(&read("examples/iam-policy.json")).unwrap();
    let mut allowed = BTreeSet::new();
    for statement in policy["Statement"].as_array().unwrap() {
        match &statement["Action"] {
            Value::Array(actions) => allowed.extend(actions.iter().map(|it| it.as_str().unwrap().to_owned())),
            action => drop(allowed.insert(action.as_str().unwrap().to_owned())),
        }
    }
    let journal = lab.standin().journal();
    let asked: BTreeSet<String> = journal
        .iter()
        .filter_map(|entry| match entry.api {
            Api::Ec2 => Some(format!("ec2:{}", entry.action)),
            Api::Eic => Some(format!("ec2-instance-connect:{}", entry.action)),
            _ => None,
        })
        .collect();
    assert!(asked.len() >= 2 && asked.is_subset(&allowed), "asked {asked:?}, allowed {allowed:?}");
}

async fn uninstall_keeps_what_must_stay(lab: &Lab) {
    helm(lab, &["uninstall", "instance-access"]).await;
    let crds = kubectl(lab, "admin", &["get", "crd", "-o", "name"]).await;
    assert_eq!(crds.lines().count(), fs::read_dir(file("crds")).unwrap().count(), "{crds}");
    kubectl(lab, "admin", &["get", "instanceaccesspolicy/developers"]).await;
    kubectl(lab, "admin", &["-n", "team", "get", "instanceaccess/web-1"]).await;
    let left = [
        "get",
        "deployment,statefulset,serviceaccount,networkpolicy,poddisruptionbudget,service",
        "-n",
        NAMESPACE,
        "-o",
        "name",
    ];
    let left = kubectl(lab, "admin", &left).await;
    assert!(left.trim().is_empty(), "{left}");
    let cluster = kubectl(lab, "admin", &["get", "validatingadmissionpolicy,clusterrole", "-o", "name"]).await;
    assert!(!cluster.contains("instance"), "{cluster}");
}
