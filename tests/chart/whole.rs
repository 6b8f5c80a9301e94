//! The chart in a real API server: installed, upgraded without a difference, enough for the real controller to grant and
//! to let go, no right too many, and gone again but for what must stay.
//!
//! There are no pods here: controller and gateway are processes, with the environment that the chart renders and under the
//! chart's service accounts. So an image, probes and volumes are judged by the API server alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use jiff::Timestamp;
use lab::pace::{self, LateMax};
use lab::{Lab, Launch, Options, poll, proc::MARK, ssh};
use serde_json::{Value, json};

use super::again::{applied_twice_it_changes_nothing, every_values_is_taken_strictly};
use super::crds::{the_prometheus_operators_crds_are_there, what_the_schema_says_of_an_odd_value_the_others_say_too};
use super::helm::{self, GATEWAY, IMAGE, container, controller, file, named, objects, of_gateway, of_kind, read};
use super::rights::{self, Excused, SELDOM_USED};

/// How long anything may take that takes moments on an idle machine.
const BOUND: Duration = Duration::from_secs(120);
/// How soon helm says that a request was refused: it takes moments. By the clock, before its own patience is over, 150 s.
const TOLD: LateMax = LateMax::new(60.0, 140.0);
/// How far away a start is that does not come while the test runs.
const TO_COME: jiff::SignedDuration = jiff::SignedDuration::from_hours(1);
const PROGRAM: &str = env!("CARGO_BIN_EXE_instance-access");
pub const NAMESPACE: &str = "instance-access";
/// What is optional in the chart.
const OPTIONAL: &str = "networkPolicy.enabled=true,gateway.networkPolicy.enabled=true,gateway.service.type=LoadBalancer,\
     serviceMonitor.enabled=true,prometheusRule.enabled=true,dashboard.enabled=true";
/// Where the instances are: the lab's have loopback addresses, of which the gateway's own is not one.
const INSTANCES: &str =
    "gateway.networkPolicy.instanceCidrs={127.0.0.0/8},gateway.settings.neverDial={127.0.0.1/32,::1/128}";

/// A controller or a gateway, killed when it is dropped.
struct Running {
    child: Child,
    /// What it logged when it started: its addresses among others.
    started: Value,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `kubectl`, which must succeed.
pub async fn kubectl(lab: &Lab, who: &str, arguments: &[&str]) -> String {
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
    pace::begin();
    let instances = [Launch::new("web-1").tag("env", "dev")];
    let lab = Lab::start(Options { audit_log: true, ..Options::default() }.instances(instances)).await.unwrap();
    for namespace in [NAMESPACE, "team"] {
        kubectl(&lab, "admin", &["create", "namespace", namespace]).await;
    }
    let restricted = "pod-security.kubernetes.io/enforce=restricted";
    let warned = "pod-security.kubernetes.io/warn=restricted";
    kubectl(&lab, "admin", &["label", "namespace", NAMESPACE, restricted, warned]).await;

    let rendered = install(&lab, lab.ssh_port()).await;
    assert!(!of_kind(&rendered, "MutatingAdmissionPolicy").is_empty(), "who asks would not be filled in");
    the_same_again_changes_nothing(&lab).await;
    another_number_of_replicas_is_taken_and_another_volume_refused(&lab, &rendered).await;
    the_pods_are_let_in_where_only_the_restricted_are(&lab, &rendered).await;

    let operator = start_controller(&lab, &rendered).await;
    grant_and_let_go(&lab).await;
    helm_waits_for_access_and_fails_on_a_refusal(&lab).await;
    let gateway = start_gateway(&lab, &rendered).await;
    log_in_through(&gateway, &lab).await;
    no_right_is_missing_and_none_unused(&lab, &rendered, "operator", &SELDOM_USED);
    no_right_is_missing_and_none_unused(&lab, &rendered, "gateway", &[]);
    the_iam_policies_are_enough(&lab);
    drop((operator, gateway));
    applied_twice_it_changes_nothing(&lab).await;
    every_values_is_taken_strictly(&lab, lab::default_kubernetes_version()).await;
    what_the_schema_says_of_an_odd_value_the_others_say_too(&lab).await;

    uninstall_keeps_what_must_stay(&lab).await;
    kubectl(&lab, "admin", &["get", "instanceaccesspolicy/developers"]).await;
    kubectl(&lab, "admin", &["-n", "team", "get", "instanceaccess/web-1"]).await;
    install(&lab, lab.ssh_port()).await;
    lab.shutdown().await.unwrap();
}

/// What the chart is installed with: all that is optional, and the port of the lab's instances.
fn values(ssh_port: u16) -> Vec<String> {
    let ports = format!("gateway.settings.ports={{{ssh_port}}}");
    [IMAGE, GATEWAY, OPTIONAL, INSTANCES, &ports].iter().map(|value| format!("--set={value}")).collect()
}

/// Installs the chart; returns what it rendered, which is also the file `release.yaml`.
pub async fn install(lab: &Lab, ssh_port: u16) -> Vec<Value> {
    the_prometheus_operators_crds_are_there(lab).await;
    let (chart, values) = (helm::chart(), values(ssh_port));
    let mut arguments = vec!["install", "instance-access", chart.to_str().unwrap()];
    arguments.extend(values.iter().map(String::as_str));
    let said = helm(lab, &arguments).await;
    assert!(!said.to_lowercase().contains("warning"), "{said}");
    assert!(said.contains("helm -n instance-access test instance-access"), "no notes: {said}");
    kubectl(lab, "admin", &["wait", "--for=condition=Established", "--timeout=150s", "crd", "--all"]).await;
    let manifests = helm(lab, &["get", "manifest", "instance-access"]).await;
    fs::write(lab.dir().join("release.yaml"), &manifests).unwrap();
    // Helm asked the cluster what it serves; the fields it sent are judged once more, strictly, and the tests' as well.
    let hooks = helm(lab, &["get", "hooks", "instance-access"]).await;
    fs::write(lab.dir().join("hooks.yaml"), &hooks).unwrap();
    assert_eq!(of_kind(&objects(&hooks), "Job").len(), 2);
    let strictly = ["apply", "--dry-run=server", "--validate=strict", "--server-side", "--force-conflicts"];
    kubectl(lab, "admin", &[&strictly[..], &["-f", "release.yaml", "-f", "hooks.yaml"]].concat()).await;
    objects(&manifests)
}

/// Upgrades the release to a chart, with what it was installed with, and more.
pub async fn upgrade(lab: &Lab, chart: &Path, ssh_port: u16, more: &[&str]) {
    let values = values(ssh_port);
    let mut arguments = vec!["upgrade", "instance-access", chart.to_str().unwrap()];
    arguments.extend(values.iter().map(String::as_str));
    arguments.extend(more);
    helm(lab, &arguments).await;
}

async fn the_same_again_changes_nothing(lab: &Lab) {
    let before = standing(lab, "release.yaml").await;
    assert!(before.len() > 15, "{:?}", before.keys());
    upgrade(lab, &helm::chart(), lab.ssh_port(), &[]).await;
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
    let jobs = objects(&fs::read_to_string(lab.dir().join("hooks.yaml")).unwrap());
    for (name, template) in [
        ("controller", &controller(rendered)["spec"]["template"]),
        ("gateway", &of_gateway(rendered, "StatefulSet")["spec"]["template"]),
        ("test", &named(&jobs, "Job", "instance-access-test")["spec"]["template"]),
        ("gateway-test", &named(&jobs, "Job", "instance-access-gateway-test")["spec"]["template"]),
    ] {
        let mut pod = template.clone();
        pod["apiVersion"] = json!("v1");
        pod["kind"] = json!("Pod");
        pod["metadata"]["name"] = json!(name);
        pod["metadata"]["namespace"] = json!(NAMESPACE);
        let set = of_kind(rendered, "StatefulSet").into_iter().find(|it| it["spec"]["template"] == *template);
        if let Some(set) = set {
            // As the StatefulSet's controller adds it, which is not there.
            let mut claim = set["spec"]["volumeClaimTemplates"][0].clone();
            claim["metadata"]["namespace"] = json!(NAMESPACE);
            let volume = json!({"name": claim["metadata"]["name"], "persistentVolumeClaim": {"claimName": "audit-0"}});
            match pod["spec"]["volumes"].as_array_mut() {
                Some(volumes) => volumes.push(volume),
                None => pod["spec"]["volumes"] = json!([volume]),
            }
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

/// Starts the program as a pod of the chart's would be: its arguments, its environment, its service account; with `changed`
/// in place of what a pod has of its own, a volume and an address.
async fn start(lab: &Lab, pod: &Value, name: &str, changed: &[(&str, String)]) -> Running {
    let container = &pod["containers"][0];
    let log = lab.dir().join(format!("{name}.log"));
    let file = File::create(&log).unwrap();
    let mut command = Command::new(PROGRAM);
    command.env_clear().env(MARK, lab.dir()).env("HOME", lab.dir());
    for variable in container["env"].as_array().unwrap() {
        // Of the pod's own fields there is its name.
        let value = if variable["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name" {
            Some(name)
        } else {
            variable["value"].as_str()
        };
        command.env(variable["name"].as_str().unwrap(), value.unwrap());
    }
    command.envs(changed.iter().map(|(name, value)| (name, value)));
    // EKS's way to AWS.
    command.envs(lab.aws_env());
    let account = pod["serviceAccountName"].as_str().unwrap();
    command.env("KUBECONFIG", lab.kubeconfig_for_service_account(NAMESPACE, account).await.unwrap());
    command.args(container["args"].as_array().unwrap().iter().map(|it| it.as_str().unwrap()));
    command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
    let child = command.spawn().unwrap();
    let mut running = Running { child, started: Value::Null };
    let started = poll::until_ok("a start", BOUND, || {
        let log = fs::read_to_string(&log).unwrap_or_default();
        let mut lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.find(|line| line["message"] == "started").ok_or(log)
    });
    running.started = started.await.unwrap();
    running
}

/// Asks as the job of `helm test` does, whose arguments these are but for the addresses.
async fn is_ready(lab: &Lab, job: &str, addresses: &[&Value]) -> String {
    let jobs = objects(&fs::read_to_string(lab.dir().join("hooks.yaml")).unwrap());
    let asked =
        named(&jobs, "Job", job)["spec"]["template"]["spec"]["containers"][0]["args"].as_array().unwrap().clone();
    let mut addresses = addresses.iter();
    let here = asked.iter().map(|it| it.as_str().unwrap()).map(|it| {
        // A Service has no address here: what it leads to is asked.
        if it.contains(".svc:") { addresses.next().expect("an address for each Service").as_str().unwrap() } else { it }
    });
    let mut ready = tokio::process::Command::new(PROGRAM);
    let said = ssh::run(ready.args(here)).await.unwrap();
    assert!(said.success() && said.stdout.contains("ready"), "{said:?}");
    said.stdout
}

async fn start_controller(lab: &Lab, rendered: &[Value]) -> Running {
    let changed = [
        ("INSTANCE_ACCESS_AUDIT_FILE", lab.dir().join("audit.jsonl").display().to_string()),
        ("INSTANCE_ACCESS_LISTEN", "127.0.0.1:0".to_owned()),
    ];
    let pod = &controller(rendered)["spec"]["template"]["spec"];
    assert_eq!(&pod["containers"][0], container(rendered));
    let running = start(lab, pod, "controller", &changed).await;
    is_ready(lab, "instance-access-test", &[&running.started["listen"]]).await;
    running
}

/// The Secret of the host key, made as the chart says, and mounted as the kubelet does it: through links, and for the
/// group to read.
async fn mount_the_host_key(lab: &Lab, pod: &Value) -> String {
    let made = lab.dir().join("host_key");
    let printed =
        Command::new(PROGRAM).args(["host-key", "--host-key-file"]).arg(&made).arg("gateway").output().unwrap();
    assert!(printed.status.success(), "{printed:?}");
    let volume = &pod["volumes"][0]["secret"];
    let secret = ["-n", NAMESPACE, "create", "secret", "generic", volume["secretName"].as_str().unwrap()];
    kubectl(lab, "admin", &[&secret[..], &["--from-file=host_key"]].concat()).await;
    let mounted = lab.dir().join("mounted");
    fs::create_dir_all(mounted.join("..2026_03_01")).unwrap();
    std::os::unix::fs::symlink("..2026_03_01", mounted.join("..data")).unwrap();
    for item in volume["items"].as_array().unwrap() {
        let (key, path) = (item["key"].as_str().unwrap(), item["path"].as_str().unwrap());
        let file = mounted.join("..2026_03_01").join(path);
        fs::copy(lab.dir().join(key), &file).unwrap();
        let mode = u32::try_from(volume["defaultMode"].as_u64().unwrap()).unwrap();
        fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        std::os::unix::fs::symlink(format!("..data/{path}"), mounted.join(path)).unwrap();
    }
    fs::write(lab.dir().join("known_hosts_gateway"), printed.stdout).unwrap();
    mounted.join("host_key").display().to_string()
}

async fn start_gateway(lab: &Lab, rendered: &[Value]) -> Running {
    let set = of_gateway(rendered, "StatefulSet");
    let pod = &set["spec"]["template"]["spec"];
    let changed = [
        ("INSTANCE_ACCESS_AUDIT_FILE", lab.dir().join("sessions.jsonl").display().to_string()),
        ("INSTANCE_ACCESS_HOST_KEY_FILE", mount_the_host_key(lab, pod).await),
        ("INSTANCE_ACCESS_LISTEN", "127.0.0.1:0".to_owned()),
        ("INSTANCE_ACCESS_SSH_LISTEN", "127.0.0.1:0".to_owned()),
    ];
    // The first pod of the set, by the name that Kubernetes gives it.
    let name = format!("{}-0", set["metadata"]["name"].as_str().unwrap());
    let gateway = start(lab, pod, &name, &changed).await;
    let started = &gateway.started;
    let said = is_ready(lab, "instance-access-gateway-test", &[&started["ssh_listen"], &started["listen"]]).await;
    assert!(said.contains("SSH-2.0-InstanceAccess"), "{said}");
    gateway
}

/// A request whose key the gateway alone delivers: granted because the controller knows its address, pushed and entered in
/// status because it may.
async fn log_in_through(gateway: &Running, lab: &Lab) {
    let (web, key) = (lab.instance("web-1"), lab.new_key("alice-by-gateway").await.unwrap());
    let mut request: Value =
        serde_json::from_str(&fs::read_to_string(lab.dir().join("request.json")).unwrap()).unwrap();
    request["metadata"]["name"] = json!("by-gateway");
    request["spec"]["sshPublicKey"] = json!(key.public);
    request["spec"]["keyDelivery"] = json!("OnConnect");
    kubectl(lab, "alice", &["apply", "-f", &manifest(lab, "by-gateway.json", &request)]).await;
    let asked = ["-n", "team", "wait", "--timeout=150s", "instanceaccess/by-gateway"];
    kubectl(lab, "alice", &[&asked[..], &["--for=condition=Active"]].concat()).await;
    let get = ["-n", "team", "get", "instanceaccess", "by-gateway", "-o", "jsonpath={.status.connection.command}"];
    let typed = kubectl(lab, "alice", &get).await;
    assert!(typed.contains("ssh -J gateway.example.com:2222"), "{typed}");

    let (host, port) = gateway.started["ssh_listen"].as_str().unwrap().rsplit_once(':').unwrap();
    let config = format!(
        "Host gateway\n  HostName {host}\n  Port {port}\n  HostKeyAlias gateway\n  UserKnownHostsFile {}\n\
         Host i-*\n  ProxyJump gateway\n  Port {}\n  User ec2-user\n",
        lab.dir().join("known_hosts_gateway").display(),
        lab.ssh_port(),
    );
    let config = lab.ssh_config(&key, &config).unwrap();
    let shell = ssh::run(lab.ssh(&config).unwrap().args([&web.id, "id -un"])).await.unwrap();
    assert_eq!(shell.stdout.trim(), "ec2-user", "{shell:?}");
    let told = "--for=jsonpath={.status.sessions[0].gateway}=instance-access-gateway-0";
    kubectl(lab, "alice", &[&asked[..], &[told]].concat()).await;
    let verified =
        Command::new(PROGRAM).args(["audit", "verify"]).arg(lab.dir().join("sessions.jsonl")).output().unwrap();
    assert!(verified.status.success(), "{verified:?}");
}

async fn grant_and_let_go(lab: &Lab) {
    for (group, role) in [("developers", "instance-access-requester"), ("leads", "instance-access-approver")] {
        kubectl(lab, "admin", &["create", "clusterrolebinding", group, "--clusterrole", role, "--group", group]).await;
    }
    let policy = objects(&read("examples/policy.yaml")).remove(0);
    kubectl(lab, "admin", &["apply", "-f", &manifest(lab, "policy.json", &policy)]).await;
    let name = format!("instanceaccesspolicy/{}", policy["metadata"]["name"].as_str().unwrap());
    kubectl(lab, "admin", &["wait", "--for=condition=Ready", "--timeout=150s", &name]).await;

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
    let asked = ["-n", "team", "wait", "--for=condition=Active", "--timeout=150s", "instanceaccess/web-1"];
    kubectl(lab, "alice", &asked).await;
    let shell = lab.ssh_login(&key, &web, "id -un").await.unwrap();
    assert_eq!(shell.stdout.trim(), "ec2-user", "{shell:?}");

    // One that was never granted goes at once: what the operator writes for it is what it writes for any.
    let mut later = request;
    later["metadata"]["name"] = json!("later");
    later["spec"]["startTime"] = json!((Timestamp::now() + TO_COME).to_string());
    kubectl(lab, "alice", &["apply", "-f", &manifest(lab, "later.json", &later)]).await;
    let stage = "--for=jsonpath={.status.conditions[?(@.type=='Active')].reason}=Scheduled";
    kubectl(lab, "alice", &["-n", "team", "wait", stage, "--timeout=150s", "instanceaccess/later"]).await;
    kubectl(lab, "alice", &["-n", "team", "delete", "instanceaccess", "later", "--timeout=150s"]).await;
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
        command.args(["--namespace", "team", "install", name, chart.to_str().unwrap(), "--wait", "--timeout", "150s"]);
        let start_time = Timestamp::now();
        (ssh::run(&mut command.into()).await.unwrap(), start_time, Timestamp::now())
    };
    let (granted, _, _) = install("by-helm", "ec2-user").await;
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

    let (refused, start_time, end_time) = install("by-helm-refused", "root").await;
    assert!(!refused.success(), "{refused:?}");
    pace::soon("helm's word of a refusal", start_time, end_time, TOLD).await.unwrap();
    assert!(refused.stderr.contains("by-helm-refused") && refused.stderr.contains("Failed"), "{refused:?}");
}

fn no_right_is_missing_and_none_unused(lab: &Lab, rendered: &[Value], account: &str, excused: &[Excused]) {
    let log = fs::read_to_string(lab.log("kube-apiserver-audit")).unwrap();
    let log: Vec<Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let used = rights::used(&log, NAMESPACE, account).unwrap();
    let given = rights::given(rendered, NAMESPACE, account);
    rights::none_is_idle(&given, &used, excused).unwrap_or_else(|error| panic!("{account} {error}"));
}

/// AWS was asked for nothing that examples/iam-policy.json and examples/gateway-iam-policy.json do not allow; tests/installed
/// asks of each whether all that it allows is asked for.
fn the_iam_policies_are_enough(lab: &Lab) {
    let policies = ["examples/iam-policy.json", "examples/gateway-iam-policy.json"];
    let allowed: BTreeSet<String> = policies.into_iter().flat_map(|file| rights::allowed(&read(file))).collect();
    let asked = rights::asked(&lab.standin().journal());
    assert!(asked.len() >= 2 && asked.is_subset(&allowed), "asked {asked:?}, allowed {allowed:?}");
}

pub async fn uninstall_keeps_what_must_stay(lab: &Lab) {
    helm(lab, &["uninstall", "instance-access"]).await;
    let crds = kubectl(lab, "admin", &["get", "crd", "-o", "name"]).await;
    let ours = crds.lines().filter(|name| name.ends_with(".instanceaccess.dev"));
    assert_eq!(ours.count(), fs::read_dir(file("crds")).unwrap().count(), "{crds}");
    let kinds = "deployment,statefulset,serviceaccount,networkpolicy,poddisruptionbudget,service,configmap,servicemonitor,\
                 prometheusrule";
    let left = kubectl(lab, "admin", &["get", kinds, "-n", NAMESPACE, "-o", "name"]).await;
    assert!(left.trim().is_empty(), "{left}");
    let cluster = kubectl(lab, "admin", &["get", "validatingadmissionpolicy,clusterrole", "-o", "name"]).await;
    assert!(!cluster.contains("instance"), "{cluster}");
}
