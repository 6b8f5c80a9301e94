//! The command line. Every flag is also an environment variable, `INSTANCE_ACCESS_…`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand};

use crate::admission::ServiceAccount;
use crate::audit::Receipt;
use crate::domain::connect::GatewayAddress;
use crate::domain::identity::PrincipalRule;
use crate::domain::session::{Network, gateway_name};
use crate::telemetry::LogFormat;

/// Declarative, time-boxed, audited SSH access to EC2 instances, on Kubernetes.
///
/// People ask for access by creating an InstanceAccess; the controller checks policy, delivers their public key with
/// EC2 Instance Connect, writes an audited status with the expiry, and takes access back when the time is over.
#[derive(Debug, Parser)]
#[command(name = "instance-access", version, max_term_width = 100)]
pub struct CommandLine {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the controller.
    ///
    /// Kubernetes is found as kubectl finds it: KUBECONFIG, ~/.kube/config, or the pod's service account. AWS is found
    /// as the AWS CLI finds it: region, credentials and endpoints come from the SDK's own chain (AWS_REGION,
    /// AWS_PROFILE, IRSA, Pod Identity, AWS_ENDPOINT_URL_…, AWS_USE_FIPS_ENDPOINT, AWS_USE_DUALSTACK_ENDPOINT). The log
    /// goes to standard error; RUST_LOG sets its level.
    Controller(ControllerArgs),
    /// Run the gateway: an SSH jump host that ends sessions with their grants.
    ///
    /// Kubernetes is found as kubectl finds it: KUBECONFIG, ~/.kube/config, or the pod's service account. AWS is found as
    /// by the controller, and needed for requests with keyDelivery OnConnect, and for instances behind an endpoint, alone.
    /// The log goes to standard error; RUST_LOG sets its level.
    Gateway(GatewayArgs),
    /// Print the gateway's host key as a line for known_hosts; make the key, if its file is not there.
    HostKey(HostKeyArgs),
    /// Print the CustomResourceDefinitions, for kubectl apply.
    Crds,
    /// Print the admission policies, for kubectl apply.
    Admission(AdmissionArgs),
    /// Ask a running controller or gateway whether it can do its work, and wait for it a while.
    Ready(ReadyArgs),
    /// Look at an audit trail.
    #[command(subcommand)]
    Audit(AuditCommand),
}

/// What the controller runs with.
#[derive(Debug, Args)]
pub struct ControllerArgs {
    /// The file that the audit trail is written to, on a volume that outlives the process. Nothing is granted without
    /// a durable record.
    #[arg(long, env = "INSTANCE_ACCESS_AUDIT_FILE", value_name = "PATH", required_unless_present = "audit_stdout")]
    pub audit_file: Option<PathBuf>,
    /// The size of the audit file, in MiB, at which it is closed, made read-only and given a name of its own beside it, and a
    /// new one goes on. 0: it is never closed, and grows. Nothing is ever deleted.
    #[arg(long, env = "INSTANCE_ACCESS_AUDIT_FILE_MAX_MEBIBYTES", value_name = "0..65536", default_value_t = 256,
          value_parser = clap::value_parser!(u32).range(0..=65536))]
    pub audit_file_max_mebibytes: u32,
    /// Write the audit trail to standard output: beside the file as a copy, or alone, and then a record is durable once
    /// it is written there.
    #[arg(long, env = "INSTANCE_ACCESS_AUDIT_STDOUT")]
    pub audit_stdout: bool,
    /// Where to serve /livez, /readyz and /metrics.
    #[arg(long, env = "INSTANCE_ACCESS_LISTEN", value_name = "ADDRESS:PORT", default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,
    /// Pushes of keys a second, in one region, at most. AWS publishes no limit; when it throttles, the rate is halved
    /// for a while.
    #[arg(long, env = "INSTANCE_ACCESS_PUSHES_PER_SECOND", value_name = "1..1000", default_value_t = 200,
          value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub pushes_per_second: u16,
    /// Where people reach the gateway: what they type after ssh -J. Requests with keyDelivery OnConnect are granted only if
    /// it is there, since their key is delivered by a gateway alone; status.connection.command has it.
    #[arg(long, env = "INSTANCE_ACCESS_GATEWAY_ADDRESS", value_name = "HOST[:PORT]")]
    pub gateway_address: Option<GatewayAddress>,
    /// Who is the same person: a CEL expression over user {username, uid, groups, extra} that yields a text. Who yields
    /// the same text, but for case, is one person; who yields none is nobody, and may do nothing. Requester, subject and
    /// approvers are compared by it. Left out: the session's name that EKS gives for an IAM role, else
    /// the user name.
    #[arg(long, env = "INSTANCE_ACCESS_PRINCIPAL", value_name = "CEL")]
    pub principal: Option<PrincipalRule>,
    /// The Lease by which one of several controllers leads, and the others stand by; made if it is not there. Together they
    /// write one audit trail, each in a file of its own, or in turn in one that all can write. Left out: this one is alone.
    #[arg(long, env = "INSTANCE_ACCESS_LEASE", value_name = "NAMESPACE/NAME")]
    pub lease: Option<LeaseName>,
    /// How long the lease holds, in seconds: a leader that died is followed that much later. It renews the lease six times
    /// as often, and stops at two thirds of it if it cannot.
    #[arg(long, env = "INSTANCE_ACCESS_LEASE_SECONDS", value_name = "6..120", default_value_t = 9,
          value_parser = clap::value_parser!(u16).range(6..=120))]
    pub lease_seconds: u16,
    /// The service accounts that gateways run under, if there are any; several with commas. The same as for instance-access
    /// admission: the operator compares what stands in the cluster with that.
    #[arg(long, env = "INSTANCE_ACCESS_GATEWAY_SERVICE_ACCOUNT", value_name = "NAMESPACE/NAME", value_delimiter = ',')]
    pub gateway_service_account: Vec<ServiceAccount>,
    /// How log lines look.
    #[arg(long, env = "INSTANCE_ACCESS_LOG_FORMAT", value_enum, default_value = "text")]
    pub log_format: LogFormat,
}

/// The Lease of an election.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl FromStr for LeaseName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_name = |name: &str| {
            let (first, last) = (name.as_bytes().first(), name.as_bytes().last());
            let is_end = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
            let is_inner = |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.');
            name.len() <= 253 && is_end(first) && is_end(last) && name.bytes().all(is_inner)
        };
        let is_namespace = |name: &str| name.len() <= 63 && !name.contains('.') && is_name(name);
        match text.split_once('/') {
            Some((namespace, name)) if is_namespace(namespace) && is_name(name) => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err("must be NAMESPACE/NAME, for example instance-access/controller".to_owned()),
        }
    }
}

/// What the gateway runs with.
#[derive(Debug, Args)]
pub struct GatewayArgs {
    /// The file of the gateway's host key, ED25519 or ECDSA (nistp256) without passphrase, that only the owner and the
    /// group may read. Made as ED25519, for the owner alone, if it is not there. While it is rotated, two files of different
    /// kinds with a comma, which both must be there: each client is shown the one that it knows.
    #[arg(long, env = "INSTANCE_ACCESS_HOST_KEY_FILE", value_name = "PATH", value_delimiter = ',', required = true)]
    pub host_key_file: Vec<PathBuf>,
    /// The gateway's name in its audit trail and in status.sessions, another one for each replica: of a pod the pod's
    /// name, metadata.name, as its token says and the API server checks.
    #[arg(long, env = "INSTANCE_ACCESS_NAME", value_name = "NAME", default_value = "gateway", value_parser = gateway_name)]
    pub name: String,
    /// The file that the audit trail of sessions is written to, the gateway's own, on a volume that outlives the process. No
    /// session is opened without a durable record.
    #[arg(long, env = "INSTANCE_ACCESS_AUDIT_FILE", value_name = "PATH", required_unless_present = "audit_stdout")]
    pub audit_file: Option<PathBuf>,
    /// The size of the audit file, in MiB, at which it is closed, made read-only and given a name of its own beside it, and a
    /// new one goes on. 0: it is never closed, and grows. Nothing is ever deleted.
    #[arg(long, env = "INSTANCE_ACCESS_AUDIT_FILE_MAX_MEBIBYTES", value_name = "0..65536", default_value_t = 256,
          value_parser = clap::value_parser!(u32).range(0..=65536))]
    pub audit_file_max_mebibytes: u32,
    /// Write the audit trail to standard output: beside the file as a copy, or alone, and then a record is durable once
    /// it is written there.
    #[arg(long, env = "INSTANCE_ACCESS_AUDIT_STDOUT")]
    pub audit_stdout: bool,
    /// Where clients connect.
    #[arg(long, env = "INSTANCE_ACCESS_SSH_LISTEN", value_name = "ADDRESS:PORT", default_value = "0.0.0.0:2222")]
    pub ssh_listen: SocketAddr,
    /// Where to serve /livez, /readyz and /metrics.
    #[arg(long, env = "INSTANCE_ACCESS_LISTEN", value_name = "ADDRESS:PORT", default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,
    /// The Lease by which one of the controllers leads, the same as theirs: keys with keyDelivery OnConnect are pushed only
    /// while one does, since nobody else judges policies. Left out: nobody looks, and while no controller runs, such keys are
    /// delivered until their grants end.
    #[arg(long, env = "INSTANCE_ACCESS_LEASE", value_name = "NAMESPACE/NAME")]
    pub lease: Option<LeaseName>,
    /// Networks that are never dialled, whatever status says; several with commas. Add the cluster's own, of pods and
    /// services, if no instance is in them. Link-local, multicast and metadata addresses are never dialled anyway.
    #[arg(
        long,
        env = "INSTANCE_ACCESS_NEVER_DIAL",
        value_name = "CIDR",
        value_delimiter = ',',
        default_value = "127.0.0.0/8,::1/128"
    )]
    pub never_dial: Vec<Network>,
    /// Ports that are dialled, those of your instances' sshd; several with commas. A request names its port: what is not
    /// here stays out of reach, whatever a requester asks for.
    #[arg(long, env = "INSTANCE_ACCESS_PORTS", value_name = "PORT", value_delimiter = ',', default_value = "22",
          value_parser = clap::value_parser!(u16).range(1..))]
    pub ports: Vec<u16>,
    /// VPCs in whose network the gateway stands, or which it is connected to, so that their private addresses mean the same
    /// here; several with commas. Their instances are dialled by the private address first. Elsewhere it may be somebody
    /// else's, and is dialled only if the instance has no other.
    #[arg(long, env = "INSTANCE_ACCESS_PRIVATE_VPCS", value_name = "VPC_ID", value_delimiter = ',',
          value_parser = parse_vpc_id)]
    pub private_vpcs: Vec<String>,
    /// Connections at once through one EC2 Instance Connect Endpoint, at most; further ones are refused. AWS has 20 for
    /// everybody, whatever program they use: take what is left beside the others, divided by the replicas. With 0 no
    /// endpoint is dialled, and the gateway needs no AWS credentials for them.
    #[arg(long, env = "INSTANCE_ACCESS_ENDPOINT_CONNECTIONS_MAX", value_name = "0..1000", default_value_t = 8,
          value_parser = clap::value_parser!(u16).range(0..=1000))]
    pub endpoint_connections_max: u16,
    /// Of these, for one person, at most.
    #[arg(long, env = "INSTANCE_ACCESS_ENDPOINT_CONNECTIONS_PER_USER_MAX", value_name = "1..1000", default_value_t = 4,
          value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub endpoint_connections_per_user_max: u16,
    /// How long the API server may be silent, in seconds, before no new session is opened: a revocation would not be
    /// heard. Open sessions go on to their end.
    #[arg(long, env = "INSTANCE_ACCESS_API_SILENCE_SECONDS", value_name = "5..3600", default_value_t = 60,
          value_parser = clap::value_parser!(u16).range(5..=3600))]
    pub api_silence_seconds: u16,
    /// How long a client may take to log in, in seconds. An agent that offers many keys takes 0.1 s for each.
    #[arg(long, env = "INSTANCE_ACCESS_LOGIN_SECONDS", value_name = "5..600", default_value_t = 60,
          value_parser = clap::value_parser!(u16).range(5..=600))]
    pub login_seconds: u16,
    /// Connections at once, at most; further ones are closed.
    #[arg(long, env = "INSTANCE_ACCESS_CONNECTIONS_MAX", value_name = "1..20000", default_value_t = 2000,
          value_parser = clap::value_parser!(u16).range(1..=20000))]
    pub connections_max: u16,
    /// Of these, from one source, at most, logged in or not; a source is as for --logins-per-source-max. Behind a load balancer
    /// that hides its clients' addresses make it as large as --connections-max.
    #[arg(long, env = "INSTANCE_ACCESS_CONNECTIONS_PER_SOURCE_MAX", value_name = "1..20000", default_value_t = 200,
          value_parser = clap::value_parser!(u16).range(1..=20000))]
    pub connections_per_source_max: u16,
    /// Connections at once that have not logged in yet, at most; further ones are closed.
    #[arg(long, env = "INSTANCE_ACCESS_LOGINS_MAX", value_name = "1..2000", default_value_t = 200,
          value_parser = clap::value_parser!(u16).range(1..=2000))]
    pub logins_max: u16,
    /// Of these, from one source, at most: one IPv4 address, or one IPv6 network of 64 bits. Behind a load balancer that
    /// hides its clients' addresses they are all one source: then make it as large as --logins-max.
    #[arg(long, env = "INSTANCE_ACCESS_LOGINS_PER_SOURCE_MAX", value_name = "1..2000", default_value_t = 40,
          value_parser = clap::value_parser!(u16).range(1..=2000))]
    pub logins_per_source_max: u16,
    /// Connections at once of one key, at most; further ones are turned away.
    #[arg(long, env = "INSTANCE_ACCESS_CONNECTIONS_PER_KEY_MAX", value_name = "1..1000", default_value_t = 100,
          value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub connections_per_key_max: u16,
    /// Sessions at once under one grant, at most; further ones are refused.
    #[arg(long, env = "INSTANCE_ACCESS_SESSIONS_PER_GRANT_MAX", value_name = "1..1000", default_value_t = 50,
          value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub sessions_per_grant_max: u16,
    /// After how many seconds without a byte either way a session is cut. A policy may ask for less, not for more; an inner
    /// keepalive is a byte. Left out: never, unless the policy says so.
    // 15: a dial, in which nothing passes, may take 10.
    #[arg(long, env = "INSTANCE_ACCESS_IDLE_TIMEOUT_SECONDS", value_name = "15..86400",
          value_parser = clap::value_parser!(u32).range(15..=86400))]
    pub idle_timeout_seconds: Option<u32>,
    /// How long open sessions may go on when the gateway is told to stop, in seconds; then they are cut.
    #[arg(long, env = "INSTANCE_ACCESS_DRAIN_SECONDS", value_name = "0..3600", default_value_t = 20,
          value_parser = clap::value_parser!(u16).range(0..=3600))]
    pub drain_seconds: u16,
    /// How log lines look.
    #[arg(long, env = "INSTANCE_ACCESS_LOG_FORMAT", value_enum, default_value = "text")]
    pub log_format: LogFormat,
}

/// Print the gateway's host key.
#[derive(Debug, Args)]
pub struct HostKeyArgs {
    /// The file of the gateway's host key; made if it is not there. Of several, with commas, each has a line, and all must
    /// be there.
    #[arg(long, env = "INSTANCE_ACCESS_HOST_KEY_FILE", value_name = "PATH", value_delimiter = ',', required = true)]
    pub host_key_file: Vec<PathBuf>,
    /// The name by which clients know the gateway, as known_hosts spells it: HOST for port 22, else [HOST]:PORT.
    #[arg(value_name = "HOST")]
    pub host: String,
}

/// Print the admission policies, for kubectl apply.
#[derive(Debug, Args)]
pub struct AdmissionArgs {
    /// The service account that the controller runs under: only it may write status, but for status.sessions.
    #[arg(long, env = "INSTANCE_ACCESS_OPERATOR_SERVICE_ACCOUNT", value_name = "NAMESPACE/NAME")]
    pub operator_service_account: ServiceAccount,
    /// The service accounts that gateways run under, if there are any; several with commas. Each gateway may write its own
    /// entry of status.sessions, and nothing else of status. The same as for the controller.
    #[arg(long, env = "INSTANCE_ACCESS_GATEWAY_SERVICE_ACCOUNT", value_name = "NAMESPACE/NAME", value_delimiter = ',')]
    pub gateway_service_account: Vec<ServiceAccount>,
    /// Leave out the MutatingAdmissionPolicy, which Kubernetes below 1.36 does not serve: there people write
    /// spec.requester themselves, and the same checks hold.
    #[arg(long, env = "INSTANCE_ACCESS_WITHOUT_MUTATING")]
    pub without_mutating: bool,
}

/// Ask a running controller or gateway whether it can do its work, and wait for it a while.
#[derive(Debug, Args)]
pub struct ReadyArgs {
    /// Where it listens: its Service for metrics, for example.
    #[arg(value_name = "HOST:PORT")]
    pub at: String,
    /// Of a gateway, where clients connect to it: whatever answers there must greet as a gateway does. It does not log in.
    #[arg(long, value_name = "HOST:PORT")]
    pub ssh: Option<String>,
    /// How long to wait for it, in seconds.
    #[arg(long, value_name = "0..3600", default_value_t = 60, value_parser = clap::value_parser!(u64).range(0..=3600))]
    pub wait_seconds: u64,
}

/// Look at an audit trail.
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Verify the chain: finds an edit, a gap, a reorder, a file that is missing, and with --head a tail that was cut.
    Verify(VerifyArgs),
}

/// Verify the chain.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The files of one trail, in any order, or folders of them: the controllers' for example, of all replicas, with the
    /// older ones.
    #[arg(required_unless_present = "trail", value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// The files of another trail, a gateway's for example, with commas between; may be given several times. All trails
    /// are read, whatever is wrong with one of them.
    #[arg(long, value_name = "FILE,…", value_parser = parse_trail)]
    pub trail: Vec<TrailFiles>,
    /// A record that must be in the first trail, as status.audit of an object has it; may be given several times.
    #[arg(long, value_name = "SEQUENCE:DIGEST", requires = "files")]
    pub head: Vec<Receipt>,
    /// A record that is in none of the files, and that one of them continues, of whichever trail: the last one of the newest
    /// file that was shipped. One that nothing needs any more is an error; may be given several times.
    #[arg(long, value_name = "SEQUENCE:DIGEST")]
    pub after: Vec<Receipt>,
    /// A record that begins a second branch of the first trail, as a finding prints it, where you know that the Lease was
    /// deleted or etcd restored just before; that one fork is accepted; may be given several times.
    #[arg(long, value_name = "SEQUENCE:DIGEST", requires = "files")]
    pub fork: Vec<Receipt>,
}

fn parse_vpc_id(text: &str) -> Result<String, String> {
    let id = text.strip_prefix("vpc-").unwrap_or_default();
    let is_id = !id.is_empty() && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if is_id { Ok(text.to_owned()) } else { Err("must be the id of a VPC, such as vpc-0123456789abcdef0".to_owned()) }
}

/// Files of one trail.
#[derive(Clone, Debug)]
pub struct TrailFiles(pub Vec<PathBuf>);

fn parse_trail(text: &str) -> Result<TrailFiles, String> {
    let files: Vec<&str> = text.split(',').collect();
    if files.iter().any(|file| file.is_empty()) {
        return Err("must be the files of one trail with commas between, for example old.jsonl,new.jsonl".to_owned());
    }
    Ok(TrailFiles(files.into_iter().map(PathBuf::from).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_named_by_namespace_and_name_and_nothing_else() {
        let lease: LeaseName = "instance-access/controller.v2".parse().unwrap();
        assert_eq!((lease.namespace.as_str(), lease.name.as_str()), ("instance-access", "controller.v2"));
        let long = "a".repeat(254);
        for text in [
            "",
            "/",
            "controller",
            "a/",
            "/b",
            "a/b/c",
            "A/b",
            "a/B",
            "a/-b",
            "a/b-",
            "a/b c",
            "a/é",
            "a.b/c",
            &format!("{long}/b"),
            &format!("a/{long}"),
        ] {
            let refused = text.parse::<LeaseName>().unwrap_err();
            assert!(refused.contains("NAMESPACE/NAME"), "{text}: {refused}");
        }
    }
}
