//! A cluster with the chart in it, as `helm template` and `kubectl apply` install it, and its pods at work.
//!
//! The lab has an API server and no controllers: what would make pods of the workloads, bind their volumes and send
//! connections to the Service is here, and does no more than these do.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use futures::future::try_join_all;
use lab::{Lab, Launch, Options, poll, ssh, standin};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::task::JoinHandle;

use crate::helm;
use crate::objects::text;
use crate::pod::{PROGRAM, Pod, credentials, kubelet};
use crate::watch::Watch;

/// How long anything may take that takes moments on an idle machine.
pub const BOUND: Duration = Duration::from_secs(120);
/// Where the chart is installed.
pub const NAMESPACE: &str = "instance-access";
/// Where people ask.
pub const TEAM: &str = "team";
/// How people's configurations know the gateways, whichever of them answers.
pub const GATEWAY: &str = "gateway.example.com";
/// Instances with a real sshd, and their environments.
pub const INSTANCES: [(&str, &str); 5] =
    [("web-1", "prod"), ("live-kill", "dev"), ("live-stop", "dev"), ("live-cut", "dev"), ("live-revoke", "dev")];

/// All that is needed.
pub struct Cluster {
    // Dropped from the top: processes before the lab that they work on.
    pub controllers: Vec<Arc<Pod>>,
    pub gateways: Vec<Arc<Pod>>,
    pub service: Service,
    pub watch: Watch,
    pub rendered: Vec<Value>,
    pub lab: Lab,
}

impl Cluster {
    /// Installs the chart and starts what it describes; returns when all pods are ready.
    pub async fn start() -> anyhow::Result<Self> {
        let instances = INSTANCES.map(|(name, env)| Launch::new(name).tag("env", env));
        let aws = standin::Config { credentials: credentials(), ..standin::Config::default() };
        let options = Options { audit_log: true, aws: Some(aws), ..Options::default() }.instances(instances);
        let lab = Lab::start(options).await?;
        before(&lab).await?;
        let rendered = install(&lab).await?;
        people(&lab).await?;
        let lease = lease_name(&rendered)?;
        let watch = Watch::start(&lab, &lease).await?;
        let mut making = Vec::new();
        for workload in rendered.iter().filter(|object| object["kind"] == "StatefulSet") {
            for ordinal in 0..workload["spec"]["replicas"].as_u64().context("replicas")? {
                let address = address(&lab, u8::try_from(201 + making.len())?)?;
                let key = credentials().into_iter().nth(making.len()).context("an access key is left")?;
                making.push(Pod::new(&lab, workload, ordinal, address, key));
            }
        }
        let pods = try_join_all(making).await?.into_iter().map(Arc::new);
        let (controllers, gateways): (Vec<_>, Vec<_>) = pods.partition(|pod| pod.runs("controller"));
        ensure!(gateways.iter().all(|pod| pod.runs("gateway")), "there is a pod that is not known here");
        ensure!((controllers.len(), gateways.len()) == (2, 2), "{} and {}", controllers.len(), gateways.len());
        let all: Vec<Arc<Pod>> = controllers.iter().chain(&gateways).cloned().collect();
        for pod in &all {
            pod.start()?;
        }
        kubelet(&all);
        for pod in &all {
            pod.until_ready().await?;
        }
        let service = Service::of(&lab, &rendered, &gateways).await?;
        Ok(Self { controllers, gateways, service, watch, rendered, lab })
    }

    /// The pod that a Lease's holder, or an access key, belongs to.
    pub fn pod(&self, is: impl Fn(&Pod) -> bool) -> Option<&Arc<Pod>> {
        self.controllers.iter().chain(&self.gateways).find(|pod| is(pod))
    }

    /// The controller that bears this name in the Lease: a process of it had the id in there.
    pub fn controller(&self, holder: &str) -> anyhow::Result<&Arc<Pod>> {
        self.controllers
            .iter()
            .find(|pod| pod.life_of(holder).is_some())
            .with_context(|| format!("{holder} is no controller's name"))
    }

    /// Everybody's service account, as the API server spells it.
    pub fn account(&self, pods: &[Arc<Pod>]) -> anyhow::Result<String> {
        let component =
            pods.first().and_then(|pod| pod.labels.get("app.kubernetes.io/component")).context("a label")?;
        let workload = self.rendered.iter().find(|object| {
            text(object, "/spec/template/metadata/labels/app.kubernetes.io~1component") == component
                && !object["spec"]["replicas"].is_null()
        });
        let name = text(workload.context("a workload")?, "/spec/template/spec/serviceAccountName");
        Ok(format!("system:serviceaccount:{NAMESPACE}:{name}"))
    }
}

/// An address of the lab's own, which none of its instances has.
fn address(lab: &Lab, host: u8) -> anyhow::Result<Ipv4Addr> {
    let IpAddr::V4(of_lab) = lab.instance("web-1").address().ip() else { anyhow::bail!("an IPv6 lab") };
    let [a, b, c, _] = of_lab.octets();
    Ok(Ipv4Addr::new(a, b, c, host))
}

/// What docs/install.md has done before the chart: a namespace that lets in restricted pods alone, and the host key.
async fn before(lab: &Lab) -> anyhow::Result<()> {
    for namespace in [NAMESPACE, TEAM] {
        kubectl(lab, "admin", &["create", "namespace", namespace]).await?;
    }
    let restricted = ["pod-security.kubernetes.io/enforce=restricted", "pod-security.kubernetes.io/warn=restricted"];
    kubectl(lab, "admin", &[&["label", "namespace", NAMESPACE], &restricted[..]].concat()).await?;
    let host_key = lab.dir().join("host_key");
    let mut print = Command::new(PROGRAM);
    let printed = ssh::run(print.args(["host-key", "--host-key-file"]).arg(&host_key).arg(GATEWAY)).await?;
    ensure!(printed.success(), "{printed:?}");
    fs::write(known_hosts(lab.dir()), &printed.stdout)?;
    let from_file = format!("--from-file=host_key={}", host_key.display());
    let create = ["-n", NAMESPACE, "create", "secret", "generic", "gateway-host-key", &from_file];
    kubectl(lab, "admin", &create).await?;
    fs::remove_file(&host_key)?;
    Ok(())
}

/// The lines that a person has of the gateways.
pub fn known_hosts(dir: &Path) -> std::path::PathBuf {
    dir.join("known-gateways")
}

/// The values that somebody gives who installs it here.
fn values(lab: &Lab) -> Value {
    let aws = format!("http://{}", lab.standin().api_addr());
    json!({
        "image": {"repository": "registry.example/instance-access"},
        "settings": {"gatewayAddress": format!("{GATEWAY}:2222")},
        "aws": {
            "region": lab::REGION,
            "endpointUrlEc2": aws,
            "endpointUrlEc2InstanceConnect": aws,
            "endpointUrlSts": aws,
        },
        "gateway": {
            "enabled": true,
            "replicas": 2,
            "hostKey": {"secretName": "gateway-host-key"},
            // The lab's instances have loopback addresses.
            "settings": {"neverDial": ["127.0.0.0/16", "::1/128"], "ports": [lab.ssh_port()]},
        },
        "podDisruptionBudget": {"enabled": true},
        "networkPolicy": {"enabled": true},
    })
}

/// Renders the chart and applies it in helm's own order, strictly validated; returns the objects.
async fn install(lab: &Lab) -> anyhow::Result<Vec<Value>> {
    let file = lab.dir().join("values.json");
    fs::write(&file, values(lab).to_string())?;
    let version = lab::default_kubernetes_version();
    let arguments = ["--kube-version", version, "--values", file.to_str().context("a path in UTF-8")?];
    let yaml = helm::template_in(NAMESPACE, &arguments).map_err(anyhow::Error::msg)?;
    let mut objects = helm::objects(&yaml);
    // A hook is no part of the release.
    objects.retain(|object| object["metadata"]["annotations"]["helm.sh/hook"].is_null());
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
    kubectl_with(lab, "admin", &["apply", "--server-side", "--validate=strict", "-f", "-"], &list).await?;
    kubectl(lab, "admin", &["wait", "--for=condition=Established", "--timeout=150s", "crd", "--all"]).await?;
    Ok(objects)
}

/// The Lease that the chart names to the controllers.
fn lease_name(rendered: &[Value]) -> anyhow::Result<String> {
    let variables =
        rendered.iter().filter_map(|object| object.pointer("/spec/template/spec/containers/0/env")?.as_array());
    let lease = variables.flatten().find(|variable| variable["name"] == "INSTANCE_ACCESS_LEASE");
    let lease = text(lease.context("no workload has a lease")?, "/value");
    Ok(lease.strip_prefix(&format!("{NAMESPACE}/")).context("in the release's namespace")?.to_owned())
}

/// Binds the chart's roles to people, and says who may get what.
async fn people(lab: &Lab) -> anyhow::Result<()> {
    for (group, role) in [("developers", "instance-access-requester"), ("leads", "instance-access-approver")] {
        let bind = ["-n", TEAM, "create", "rolebinding", group, "--clusterrole", role, "--group", group];
        kubectl(lab, "admin", &bind).await?;
    }
    let policy = |name: &str, more: Value| {
        let mut spec = json!({
            "effect": "Allow",
            "subjects": [{"kind": "Group", "name": "developers"}],
            "namespaces": [TEAM],
            "targets": {"instanceTags": {"matchLabels": {"env": name}}},
            "osUsers": ["ec2-user"],
            "ttl": {"defaultSeconds": 600, "maxSeconds": 3600},
        });
        spec.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        json!({"apiVersion": "instanceaccess.dev/v1alpha1", "kind": "InstanceAccessPolicy", "metadata": {"name": name}, "spec": spec})
    };
    let approval =
        json!({"approval": {"count": 1, "approvers": [{"kind": "Group", "name": "leads"}], "deadlineSeconds": 600}});
    let list =
        json!({"apiVersion": "v1", "kind": "List", "items": [policy("dev", json!({})), policy("prod", approval)]});
    kubectl_with(lab, "admin", &["apply", "-f", "-"], &list.to_string()).await?;
    // The API server takes a moment to judge by what it was given.
    let forged = json!({
        "apiVersion": "instanceaccess.dev/v1alpha1",
        "kind": "InstanceAccess",
        "metadata": {"name": "forged", "namespace": TEAM},
        "spec": {
            "requester": {"username": "mallory"},
            "target": {"instanceId": lab.instance("web-1").id},
            "osUser": "ec2-user",
            "sshPublicKey": lab.new_key("forged").await?.public,
        },
    });
    poll::until("admission policies in force", BOUND, async || {
        match kubectl_with(lab, "alice", &["create", "--dry-run=server", "-f", "-"], &forged.to_string()).await {
            Err(error) if format!("{error:#}").contains("spec.requester.username must be your own") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await
}

/// One address for the gateways: the chart's Service.
pub struct Service {
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Service {
    async fn of(lab: &Lab, rendered: &[Value], gateways: &[Arc<Pod>]) -> anyhow::Result<Self> {
        let of_ssh = |object: &&Value| object["kind"] == "Service" && object["spec"]["ports"][0]["targetPort"] == "ssh";
        let service = rendered.iter().find(of_ssh).context("a Service that leads to the port ssh")?;
        let selector = service["spec"]["selector"].as_object().context("a selector")?;
        let chosen = |pod: &&Arc<Pod>| {
            selector.iter().all(|(key, value)| pod.labels.get(key).is_some_and(|label| value == label))
        };
        let ends: Vec<SocketAddr> =
            gateways.iter().filter(chosen).map(|pod| pod.port("ssh")).collect::<Result<_, _>>()?;
        ensure!(ends.len() == gateways.len(), "the Service leads to {ends:?}");
        let port = service["spec"]["ports"][0]["port"].as_u64().context("a port")?;
        let address = SocketAddr::from((address(lab, 200)?, u16::try_from(port)?));
        let listener = TcpListener::bind(address).await.with_context(|| format!("listening on {address}"))?;
        let task = tokio::spawn(async move {
            let next = Arc::new(AtomicUsize::new(0));
            while let Ok((mut client, _)) = listener.accept().await {
                let (ends, next) = (ends.clone(), Arc::clone(&next));
                tokio::spawn(async move {
                    for _ in 0..ends.len() {
                        let at = next.fetch_add(1, Ordering::Relaxed) % ends.len();
                        if let Ok(mut gateway) = TcpStream::connect(ends[at]).await {
                            let _ = tokio::io::copy_bidirectional(&mut client, &mut gateway).await;
                            return;
                        }
                    }
                });
            }
        });
        Ok(Self { address, task })
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// `kubectl`, which must succeed, and warn of nothing; returns what it printed.
pub async fn kubectl(lab: &Lab, who: &str, arguments: &[&str]) -> anyhow::Result<String> {
    printed(arguments, ssh::run(lab.kubectl(who)?.current_dir(lab.dir()).args(arguments)).await?)
}

/// The same, with a manifest on its standard input.
pub async fn kubectl_with(lab: &Lab, who: &str, arguments: &[&str], manifest: &str) -> anyhow::Result<String> {
    printed(arguments, ssh::run_with(lab.kubectl(who)?.args(arguments), manifest).await?)
}

fn printed(arguments: &[&str], done: ssh::Output) -> anyhow::Result<String> {
    let is_well = done.success() && !done.stderr.contains("Warning");
    ensure!(is_well, "kubectl {arguments:?}: {}{}", done.stdout, done.stderr);
    Ok(done.stdout)
}
