//! What is rendered: for each Kubernetes that is supported, the same twice, and the same as the program prints.

use std::process::Command;

use serde_json::{Value, json};

use super::helm::{
    GATEWAY, IMAGE, chart, container, controller, named, names, objects, of_kind, read, rendered, run, template,
    template_in, the, variable,
};

/// What Helm and Argo CD ask a cluster for, and tell the chart: each version with its kinds.
const SERVED: &str = "v1,v1/Pod,apps/v1,apps/v1/Deployment,admissionregistration.k8s.io/v1";
const MUTATING: &str = "admissionregistration.k8s.io/v1/MutatingAdmissionPolicy";

fn printed(arguments: &[&str]) -> Vec<Value> {
    let done = Command::new(env!("CARGO_BIN_EXE_instance-access")).args(arguments).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    objects(&String::from_utf8(done.stdout).unwrap())
}

/// In an order that both sides share.
fn sorted(mut objects: Vec<Value>) -> Vec<Value> {
    objects.sort_by_key(|object| (object["kind"].to_string(), object["metadata"]["name"].to_string()));
    objects
}

#[test]
fn admission_policies_and_crds_are_those_that_the_program_prints() {
    for (namespace, account, gateways, mutating) in [
        ("instance-access", "operator", "", "Always"),
        ("ops", "broker.v1-2", "ops/gateway", "Always"),
        ("ops", "broker", "ops/jump,ops-2/jump.a,edge/jump,ops/jump", "Never"),
    ] {
        let account_value = format!("serviceAccount.name={account}");
        let mode = format!("admission.mutating={mutating}");
        let gateways_value = format!("settings.gatewayServiceAccount={}", gateways.replace(',', "\\,"));
        let set = ["--set", IMAGE, "--set", &account_value, "--set", &mode, "--set", &gateways_value];
        let yaml = template_in(namespace, &set).unwrap();
        let ours = objects(&yaml);
        let policies = |object: &Value| object["apiVersion"] == "admissionregistration.k8s.io/v1";
        let full_name = format!("{namespace}/{account}");
        let mut admission = vec!["admission", "--operator-service-account", &full_name];
        if !gateways.is_empty() {
            admission.extend(["--gateway-service-account", gateways]);
        }
        if mutating == "Never" {
            admission.push("--without-mutating");
        }
        let of_chart = sorted(ours.iter().filter(|object| policies(object)).cloned().collect());
        assert!(of_chart == sorted(printed(&admission)), "{full_name}: {of_chart:#?}");

        let mut crds: Vec<Value> = of_kind(&ours, "CustomResourceDefinition").into_iter().cloned().collect();
        for crd in &mut crds {
            let kept = crd["metadata"].as_object_mut().unwrap().remove("annotations").unwrap();
            assert_eq!(kept["helm.sh/resource-policy"], "keep");
            assert_eq!(kept["argocd.argoproj.io/sync-options"], "Prune=false,Delete=false");
        }
        assert!(sorted(crds) == sorted(printed(&["crds"])), "CRDs differ");
    }
}

#[test]
fn who_asks_is_filled_in_wherever_the_cluster_serves_it() {
    for minor in 32..=37 {
        let version = format!("1.{minor}.0");
        let of_cluster = if minor >= 36 { format!("{SERVED},{MUTATING}") } else { SERVED.to_owned() };
        for arguments in
            [&["--kube-version", &version, "--api-versions", &of_cluster][..], &["--kube-version", &version]]
        {
            let objects = rendered(arguments);
            let filled_in = !of_kind(&objects, "MutatingAdmissionPolicy").is_empty();
            assert_eq!(filled_in, minor >= 36, "{arguments:?}");
            assert_eq!(of_kind(&objects, "MutatingAdmissionPolicyBinding").is_empty(), !filled_in, "{arguments:?}");
            assert!(!of_kind(&objects, "ValidatingAdmissionPolicy").is_empty(), "{arguments:?}");
            assert_eq!(container(&objects)["args"], json!(["controller"]), "{arguments:?}");
        }
    }
    // A cluster that could, and whose administrator switched it off.
    let off = rendered(&["--kube-version", "1.36.0", "--api-versions", SERVED]);
    assert!(of_kind(&off, "MutatingAdmissionPolicy").is_empty());
    let refused = template(&["--set", IMAGE, "--kube-version", "1.31.9"]).unwrap_err();
    assert!(refused.contains("incompatible with Kubernetes v1.31.9"), "{refused}");
}

#[test]
fn rendering_twice_is_identical_and_asks_neither_chance_nor_clock_nor_cluster() {
    let once = template(&["--set", IMAGE]).unwrap();
    assert!(once == template(&["--set", IMAGE]).unwrap());
    for entry in walk("charts/instance-access/templates") {
        let text = read(&entry);
        for word in ["lookup ", "rand", "uuidv4", "now ", "genCA", "genSelfSigned", "genPrivateKey", "getHostByName"] {
            let calls = text.split("{{").skip(1).filter_map(|rest| rest.split("}}").next());
            for call in calls.filter(|call| !call.starts_with("/*") && !call.starts_with("- /*")) {
                assert!(!call.contains(word), "{entry}: {word}in {call}");
            }
        }
    }
}

fn walk(folder: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(super::helm::file(folder)).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{folder}/{}", entry.file_name().to_str().unwrap());
        if entry.path().is_dir() { found.extend(walk(&path)) } else { found.push(path) }
    }
    assert!(!found.is_empty(), "{folder}");
    found
}

#[test]
fn the_operators_rights_are_those_of_the_example() {
    let ours = rendered(&[]);
    let example = objects(&read("examples/operator-rbac.yaml"));
    let role = format!("{}-operator", "access-instance-access");
    let operators = |objects: &[Value]| -> Value {
        of_kind(objects, "ClusterRole")
            .into_iter()
            .find(|it| it["metadata"]["name"].as_str().unwrap().ends_with("-operator"))
            .unwrap()["rules"]
            .clone()
    };
    assert_eq!(operators(&ours), operators(&example));
    let binding = the(&ours, "ClusterRoleBinding");
    assert_eq!(binding["roleRef"]["name"], role);
    assert_eq!(binding["subjects"], json!([{"kind": "ServiceAccount", "name": "operator", "namespace": "ops"}]));
    for rule in operators(&ours).as_array().unwrap() {
        let all =
            |field: &str| rule[field].as_array().unwrap().iter().map(|it| it.as_str().unwrap()).collect::<Vec<_>>();
        for verb in all("verbs") {
            assert!(!["*", "escalate", "bind", "impersonate", "deletecollection"].contains(&verb), "{rule}");
        }
        for resource in all("resources").into_iter().chain(all("apiGroups")) {
            assert!(!resource.contains('*') && !resource.starts_with("secrets"), "{rule}");
        }
    }
}

#[test]
fn peoples_roles_are_those_of_the_example_and_part_of_nothing_unless_asked() {
    let example: Vec<Value> =
        of_kind(&objects(&read("examples/user-rbac.yaml")), "ClusterRole").into_iter().cloned().collect();
    assert!(example.len() >= 4);
    for theirs in &example {
        let name = theirs["metadata"]["name"].as_str().unwrap();
        let key = format!("userRoles.aggregateTo.{}={{edit,admin}}", name.strip_prefix("instance-access-").unwrap());
        for (arguments, aggregated) in [(&[][..], false), (&["--set", key.as_str()], true)] {
            let ours = rendered(arguments);
            let ours =
                of_kind(&ours, "ClusterRole").into_iter().find(|it| it["metadata"]["name"] == name).unwrap().clone();
            assert_eq!(ours["rules"], theirs["rules"], "{name}");
            let labels = ours["metadata"]["labels"].as_object().unwrap();
            let aggregate = labels.iter().filter(|(key, _)| key.contains("aggregate-to"));
            assert_eq!(aggregate.count(), if aggregated { 2 } else { 0 }, "{name}: {labels:?}");
        }
    }
}

#[test]
fn two_replicas_each_with_a_volume_of_its_own_and_one_leads_by_a_lease_that_they_alone_may_write() {
    let objects = rendered(&[]);
    let spec = &controller(&objects)["spec"];
    assert_eq!((&spec["replicas"], &spec["updateStrategy"]["type"]), (&json!(2), &json!("RollingUpdate")));
    // One that cannot start holds up no other.
    assert_eq!(spec["podManagementPolicy"], "Parallel");
    assert!(of_kind(&objects, "Service").iter().any(|service| service["metadata"]["name"] == spec["serviceName"]));
    assert_eq!(variable(&objects, "INSTANCE_ACCESS_LEASE").as_deref(), Some("ops/access-instance-access"));
    // The rules are those of the example, for this Lease.
    let example = super::helm::objects(&read("examples/lease-rbac.yaml"));
    let mut rules = the(&example, "Role")["rules"].clone();
    rules[1]["resourceNames"] = json!(["access-instance-access"]);
    let role = the(&objects, "Role");
    assert_eq!((&role["rules"], &role["metadata"]["namespace"]), (&rules, &json!("ops")));
    let subject = &the(&objects, "RoleBinding")["subjects"][0];
    assert_eq!((&subject["name"], &subject["namespace"]), (&json!("operator"), &json!("ops")));
    // They are spread where that is possible, by labels that are theirs alone; a budget keeps a drain from taking all.
    let spread = spec["template"]["spec"]["topologySpreadConstraints"].as_array().unwrap();
    assert_eq!(spread.len(), 2);
    for constraint in spread {
        assert_eq!(constraint["whenUnsatisfiable"], "ScheduleAnyway");
        assert_eq!(constraint["labelSelector"]["matchLabels"], spec["selector"]["matchLabels"]);
    }
    let budget = &the(&objects, "PodDisruptionBudget")["spec"];
    assert_eq!((&budget["maxUnavailable"], &budget["selector"]), (&json!(1), &spec["selector"]));
    let refused = template(&["--set", IMAGE, "--set", "settings.lease=elsewhere/it"]).unwrap_err();
    assert!(refused.contains("not in the namespace ops"), "{refused}");
    let refused = template(&["--set", IMAGE, "--set", "replicaCount=2"]).unwrap_err();
    assert!(refused.contains("replicaCount"), "{refused}");
}

#[test]
fn another_number_of_replicas_changes_that_number_and_nothing_else() {
    let numbered = |replicas: &str| {
        let mut objects = rendered(&["--set", &format!("replicas={replicas}")]);
        let workload = objects.iter_mut().find(|it| it["kind"] == "StatefulSet").unwrap();
        workload["spec"]["replicas"].take();
        // Where several are spread, one need not be: that is settled when a pod is made, and restarts those that run.
        workload["spec"]["template"]["spec"].as_object_mut().unwrap().remove("topologySpreadConstraints");
        objects
    };
    // So one that runs knows of the lease already when a second one comes.
    assert_eq!(numbered("1"), numbered("2"));
    assert_eq!(numbered("2"), numbered("5"));
}

#[test]
fn the_trail_is_on_a_volume_that_outlives_an_uninstall_or_somebody_said_otherwise() {
    let objects = rendered(&[]);
    let spec = &controller(&objects)["spec"];
    let claim = &spec["volumeClaimTemplates"][0];
    assert_eq!(claim["spec"]["accessModes"], json!(["ReadWriteOnce"]));
    // Nothing deletes the claims: not an uninstall, not a smaller number, not Argo CD, which may take them for its own.
    let kept = json!({"whenDeleted": "Retain", "whenScaled": "Retain"});
    assert_eq!(spec["persistentVolumeClaimRetentionPolicy"], kept);
    assert_eq!(claim["metadata"]["annotations"]["argocd.argoproj.io/sync-options"], "Prune=false,Delete=false");
    assert!(of_kind(&objects, "PersistentVolumeClaim").is_empty(), "helm would delete it");
    // What cannot be changed must not change by itself, with a version for example.
    let version = env!("CARGO_PKG_VERSION");
    assert!(
        !spec["volumeClaimTemplates"].to_string().contains(version) && !spec["selector"].to_string().contains(version)
    );
    let mount = &container(&objects)["volumeMounts"][0];
    assert_eq!(mount["name"], claim["metadata"]["name"]);
    let file = variable(&objects, "INSTANCE_ACCESS_AUDIT_FILE").unwrap();
    assert_eq!(mount["mountPath"].as_str(), file.rsplit_once('/').map(|it| it.0));

    let existing = rendered(&["--set", "audit.persistence.existingClaim=trail"]);
    let spec = &controller(&existing)["spec"];
    assert!(spec["volumeClaimTemplates"].is_null());
    assert_eq!(spec["template"]["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"], "trail");

    for (values, words) in [
        (&["audit.persistence.enabled=false"][..], "audit.persistence.enabled is false"),
        (&["settings.auditFile="], "settings.auditFile is empty"),
    ] {
        let mut arguments = vec!["--set", IMAGE];
        arguments.extend(values.iter().flat_map(|value| ["--set", *value]));
        let refused = template(&arguments).unwrap_err();
        assert!(refused.contains(words), "{refused}");
    }
    let stdout = [
        "--set",
        "settings.auditFile=",
        "--set",
        "settings.auditStdout=true",
        "--set",
        "audit.persistence.enabled=false",
    ];
    let stdout = rendered(&stdout);
    assert_eq!(variable(&stdout, "INSTANCE_ACCESS_AUDIT_FILE"), None);
    assert_eq!(variable(&stdout, "INSTANCE_ACCESS_AUDIT_STDOUT").as_deref(), Some("true"));
    let spec = &controller(&stdout)["spec"];
    assert!(spec["template"]["spec"]["volumes"].is_null() && spec["volumeClaimTemplates"].is_null(), "{spec}");
}

#[test]
fn an_image_that_nobody_named_is_never_fetched() {
    let refused = template(&[]).unwrap_err();
    assert!(refused.contains("image.repository is empty: no image is published yet"), "{refused}");
    let digest = format!("sha256:{}", "0".repeat(64));
    let pinned = rendered(&["--set", &format!("image.digest={digest}"), "--set", "image.tag=ignored"]);
    assert_eq!(container(&pinned)["image"], format!("registry.example/instance-access@{digest}"));
    let by_version = format!("registry.example/instance-access:{}", env!("CARGO_PKG_VERSION"));
    assert_eq!(container(&rendered(&[]))["image"], by_version);
}

#[test]
fn a_name_that_would_break_out_of_cel_is_refused() {
    for namespace in ["a' || true || '", "a\"b", "A", "a/b", "a.b", ""] {
        let refused = template_in(namespace, &["--set", IMAGE]);
        // helm itself makes an empty one `default`.
        assert!(refused.is_err() || namespace.is_empty(), "{namespace:?} was taken");
    }
    for name in ["a' || true || '", "A", "a/b", "a:b", "-a", "a..b", "", "a\nb"] {
        let values = json!({"serviceAccount": {"name": name}}).to_string();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), values).unwrap();
        for skipping in [&[][..], &["--skip-schema-validation"]] {
            let mut arguments = vec!["--set", IMAGE, "--values", file.path().to_str().unwrap()];
            arguments.extend(skipping);
            let refused = template(&arguments).expect_err(name);
            assert!(refused.contains("serviceAccount.name") || refused.contains("/serviceAccount/name"), "{refused}");
        }
    }
}

#[test]
fn all_that_is_optional_is_there_when_asked_for_and_only_then() {
    let off = rendered(&["--set=podDisruptionBudget.enabled=false"]);
    let on = rendered(&[
        "--set=networkPolicy.enabled=true,serviceMonitor.enabled=true",
        "--set=serviceMonitor.labels.release=prometheus,priorityClassName=system-cluster-critical",
        "--set=serviceAccount.annotations.eks\\.amazonaws\\.com/role-arn=arn:aws:iam::123456789012:role/instance-access",
        "--set-json=topologySpreadConstraints=[{\"maxSkew\":1,\"topologyKey\":\"topology.kubernetes.io/zone\",\"whenUnsatisfiable\":\"ScheduleAnyway\"}]",
        "--set-json=networkPolicy.metricsFrom=[{\"namespaceSelector\":{\"matchLabels\":{\"kubernetes.io/metadata.name\":\"monitoring\"}}}]",
    ]);
    for kind in ["PodDisruptionBudget", "NetworkPolicy", "ServiceMonitor"] {
        assert!(of_kind(&off, kind).is_empty(), "{kind}");
    }
    let selector = &controller(&on)["spec"]["selector"]["matchLabels"];
    assert_eq!(the(&on, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"], *selector);
    let policy = named(&on, "NetworkPolicy", "access-instance-access");
    assert_eq!(policy["spec"]["podSelector"]["matchLabels"], *selector);
    let tests = named(&on, "NetworkPolicy", "access-instance-access-test");
    let job = &the(&on, "Job")["spec"]["template"];
    assert_eq!(tests["spec"]["podSelector"]["matchLabels"], job["metadata"]["labels"]);
    assert_eq!(the(&on, "Service")["spec"]["selector"], *selector);
    let labels = the(&on, "Service")["metadata"]["labels"].as_object().unwrap();
    let monitored = the(&on, "ServiceMonitor")["spec"]["selector"]["matchLabels"].as_object().unwrap();
    assert!(monitored.iter().all(|(name, value)| labels.get(name) == Some(value)), "{monitored:?} {labels:?}");
    let account = the(&on, "ServiceAccount");
    let role = "arn:aws:iam::123456789012:role/instance-access";
    assert_eq!(account["metadata"]["annotations"]["eks.amazonaws.com/role-arn"], role);
    let pod = &controller(&on)["spec"]["template"]["spec"];
    assert_eq!(pod["priorityClassName"], "system-cluster-critical");
    assert_eq!(pod["topologySpreadConstraints"][0]["maxSkew"], 1);

    let bare = rendered(&[
        "--set=crds.install=false,admission.install=false,rbac.create=false,userRoles.create=false,serviceAccount.create=false",
    ]);
    let mut kinds: Vec<&str> = bare.iter().map(|object| object["kind"].as_str().unwrap()).collect();
    kinds.sort_unstable();
    assert_eq!(kinds, ["Job", "PodDisruptionBudget", "Service", "StatefulSet"]);
}

#[test]
fn what_helm_test_asks_is_asked_where_the_service_is() {
    let objects = rendered(&[]);
    let job = the(&objects, "Job");
    assert_eq!(job["metadata"]["annotations"]["helm.sh/hook"], "test");
    // What it says is printed: of a Job helm fetches no words but by this, and --logs is for pods alone.
    let with_gateway = rendered(&["--set", GATEWAY]);
    let jobs = of_kind(&with_gateway, "Job");
    assert_eq!(jobs.len(), 2);
    for job in jobs {
        let printed = &job["metadata"]["annotations"]["helm.sh/hook-output-log-policy"];
        assert_eq!(printed, "hook-succeeded,hook-failed", "{}", job["metadata"]["name"]);
    }
    let asked = &job["spec"]["template"]["spec"]["containers"][0];
    let service = the(&objects, "Service");
    let at =
        format!("{}.ops.svc:{}", service["metadata"]["name"].as_str().unwrap(), service["spec"]["ports"][0]["port"]);
    assert_eq!(asked["args"], json!(["ready", "--wait-seconds", "120", at]));
    assert_eq!(names(&objects, "Service"), [format!("{}-metrics", "access-instance-access")]);
    assert_eq!(container(&objects)["ports"][0]["name"], service["spec"]["ports"][0]["targetPort"]);
}

#[test]
fn the_pods_hold_no_more_than_they_need() {
    let objects = rendered(&[]);
    for (kind, wants_token) in [("StatefulSet", true), ("Job", false)] {
        let pod = &the(&objects, kind)["spec"]["template"]["spec"];
        assert_eq!(pod["automountServiceAccountToken"], wants_token, "{kind}");
        // A Service called instance-access-… in the namespace would otherwise make variables that look like settings.
        assert_eq!(pod["enableServiceLinks"], false, "{kind}");
        for field in ["hostNetwork", "hostPID", "hostIPC", "initContainers"] {
            assert!(pod[field].is_null(), "{kind}: {field}");
        }
        let [container] = &pod["containers"].as_array().unwrap()[..] else { panic!("{kind}: one container") };
        assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true, "{kind}");
        assert!(container["resources"]["limits"]["memory"].is_string(), "{kind}");
    }
    assert_eq!(the(&objects, "ServiceAccount")["automountServiceAccountToken"], false);
}

#[test]
fn the_controllers_workload_is_as_it_was_reviewed() {
    insta::assert_snapshot!(template(&["--set", IMAGE, "--show-only", "templates/controller.yaml"]).unwrap());
}

/// What a release prints, without a cluster.
fn notes(arguments: &[&str]) -> String {
    let chart = chart();
    let mut all =
        vec!["install", "access", chart.to_str().unwrap(), "--dry-run=client", "--namespace", "ops", "--set", IMAGE];
    all.extend(arguments);
    let done = run(&all);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let text = String::from_utf8(done.stdout).unwrap();
    text.split_once("\nNOTES:\n").expect("a release has notes").1.to_owned()
}

#[test]
fn a_release_says_what_comes_next() {
    insta::assert_snapshot!(notes(&["--set", "aws.region=us-west-2"]));
}

#[test]
fn a_release_with_gateways_says_how_they_are_reached() {
    let named = "audit.persistence.storageClassName=gp3,gateway.audit.persistence.storageClassName=gp3";
    assert!(!notes(&["--set", GATEWAY, "--set", named]).contains("storageclass"), "each has its class");
    let balanced = ["--set", GATEWAY, "--set", "aws.region=us-west-2,gateway.service.type=LoadBalancer"];
    insta::assert_snapshot!(notes(&balanced));
    // What is typed at port 22 does not reach 2222 by itself; and nothing is missing that was given.
    let other = "settings.gatewayAddress=[2001:db8::1],gateway.service.loadBalancerSourceRanges={203.0.113.0/24}";
    let other = notes(&[&balanced[..], &["--set", other, "--set", "gateway.settings.neverDial={10.0.0.0/8}"]].concat());
    assert!(other.contains("settings.gatewayAddress means port 22, and gateway.service.port is 2222"), "{other}");
    assert!(!other.contains("loadBalancerSourceRanges is empty") && !other.contains("neverDial"), "{other}");
}

#[test]
fn a_release_says_what_is_missing() {
    let stdout =
        "settings.auditFile=,settings.auditStdout=true,audit.persistence.enabled=false,admission.mutating=Never";
    insta::assert_snapshot!(notes(&["--set", stdout, "--set", "userRoles.create=false"]));
}
