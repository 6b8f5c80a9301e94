//! What a person types, and reads.

use lab::ssh::{self, Output};
use tokio::process::Command;

use crate::controller::PROGRAM;

async fn said(arguments: &[&str]) -> Output {
    let mut program = Command::new(PROGRAM);
    ssh::run(program.args(arguments).env_clear().env("COLUMNS", "100")).await.unwrap()
}

pub async fn help_says_what_there_is_and_where_settings_come_from() {
    let help = said(&["--help"]).await;
    assert!(help.success());
    insta::assert_snapshot!(help.stdout, @"
    Declarative, time-boxed, audited SSH access to EC2 instances, on Kubernetes.

    People ask for access by creating an InstanceAccess; the controller checks policy, delivers their
    public key with EC2 Instance Connect, writes an audited status with the expiry, and takes access
    back when the time is over.

    Usage: instance-access <COMMAND>

    Commands:
      controller  Run the controller
      gateway     Run the gateway: an SSH jump host that ends sessions with their grants
      host-key    Print the gateway's host key as a line for known_hosts; make the key, if its file is
                  not there
      crds        Print the CustomResourceDefinitions, for kubectl apply
      admission   Print the admission policies, for kubectl apply
      ready       Ask a running controller or gateway whether it can do its work, and wait for it a
                  while
      audit       Look at an audit trail
      help        Print this message or the help of the given subcommand(s)

    Options:
      -h, --help
              Print help (see a summary with '-h')

      -V, --version
              Print version
    ");
    let controller = said(&["controller", "--help"]).await.stdout;
    for word in
        ["KUBECONFIG", "AWS_REGION", "RUST_LOG", "[env: INSTANCE_ACCESS_AUDIT_FILE=]", "[default: 0.0.0.0:8080]"]
    {
        assert!(controller.contains(word), "no {word} in {controller}");
    }
}

/// A record's number and digest.
const DIGEST: &str = "1:0000000000000000000000000000000000000000000000000000000000000000";

pub async fn a_mistake_on_the_command_line_names_its_remedy() {
    let empty = tempfile::NamedTempFile::new().unwrap();
    let empty = empty.path().to_str().unwrap();
    for (arguments, words) in [
        (&["controller"][..], "--audit-file"),
        (&["controller", "--audit-file", "a", "--pushes-per-second", "0"], "1..=1000"),
        (&["controller", "--audit-file", "a", "--listen", "nowhere"], "--listen <ADDRESS:PORT>"),
        (&["controller", "--audit-file", "a", "--principal", "usr.username"], "Undeclared reference to 'usr'"),
        (&["gateway", "--host-key-file", "k"], "--audit-file"),
        (&["gateway", "--audit-file", "a"], "--host-key-file"),
        (&["gateway", "--audit-file", "a", "--host-key-file", "k", "--never-dial", "10.0.0.1/8"], "10.96.0.0/12"),
        (&["gateway", "--audit-file", "a", "--host-key-file", "k", "--api-silence-seconds", "1"], "5..=3600"),
        (&["gateway", "--audit-file", "a", "--host-key-file", "/no/such/dir/k"], "--host-key-file /no/such/dir/k"),
        (&["host-key", "--host-key-file", "/dev/null", "gateway"], "--host-key-file /dev/null"),
        (&["admission", "--operator-service-account", "no-slash"], "no-slash"),
        (&["ready", "--wait-seconds", "0", "127.0.0.1:1"], "nothing answers at 127.0.0.1:1"),
        (&["audit", "verify", "--head", "1:abc", "f"], "SEQUENCE:DIGEST"),
        (&["audit", "verify", "/no/such/trail"], "/no/such/trail"),
        (&["audit", "verify"], "<FILE>"),
        (&["audit", "verify", "--trail", "a,,b"], "old.jsonl,new.jsonl"),
        (&["audit", "verify", "--trail", "a", "--head", DIGEST], "<FILE>"),
        (&["audit", "verify", empty, "--trail", "/no/such/trail"], "1 of 2 trails do not verify"),
        (&["audit", "verify", "/dev/null"], "it is no regular file"),
        (&["host-key", "--host-key-file", "/no/such/old,/no/such/new", "gateway"], "/no/such/old: is not there"),
    ] {
        let refused = said(arguments).await;
        assert!(!refused.success() && refused.stderr.contains(words), "{arguments:?}: {refused:?}");
    }
}

pub async fn what_is_printed_for_kubectl_is_all_there() {
    let crds = said(&["crds"]).await.stdout;
    let names: Vec<&str> = crds.lines().filter_map(|line| line.strip_prefix("  name: ")).collect();
    assert_eq!(
        names,
        [
            "instanceaccesses.instanceaccess.dev",
            "instanceaccesspolicies.instanceaccess.dev",
            "instanceaccessdecisions.instanceaccess.dev",
            "instanceaccessledgerentries.instanceaccess.dev"
        ]
    );
    let kinds =
        |yaml: &str| yaml.lines().filter_map(|line| line.strip_prefix("kind: ")).map(str::to_owned).collect::<Vec<_>>();
    let admission = said(&["admission", "--operator-service-account", "ops/broker"]).await.stdout;
    assert!(admission.contains("system:serviceaccount:ops:broker") && !admission.contains("OPERATOR_NAME"));
    let mutating = ["MutatingAdmissionPolicy", "MutatingAdmissionPolicyBinding"];
    let validating = ["ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"];
    assert_eq!(
        kinds(&admission),
        [&validating[..], &validating, &validating, &validating, &mutating, &mutating].concat()
    );
    let older = said(&["admission", "--operator-service-account", "ops/broker", "--without-mutating"]).await.stdout;
    assert_eq!(kinds(&older), [validating, validating, validating, validating].concat());
}
