//! The gateways: what is rendered of them, what follows from them elsewhere, and what is refused with words.

use std::collections::{BTreeMap, BTreeSet};

use clap::{CommandFactory, Parser};
use instance_access::config::CommandLine;
use serde_json::{Value, json};

use super::helm::{
    GATEWAY, IMAGE, container, controller, named, names, objects, of_gateway, of_kind, read, rendered, template, the,
    variable, with_gateway,
};
use super::values::{VALUES, camel};

/// Flags that are no value of their own, and what they are made of.
const DERIVED: [(&str, &str); 3] =
    [("hostKeyFile", "gateway.hostKey"), ("lease", "settings.lease, the controllers'"), ("name", "the pod's name")];

/// For each setting a value that is not its default, and what the gateway gets.
const SAMPLES: [(&str, &str, &str); 21] = [
    ("apiSilenceSeconds", "30", "30"),
    ("auditFile", "/srv/trail/sessions.jsonl", "/srv/trail/sessions.jsonl"),
    ("auditFileMaxMebibytes", "0", "0"),
    ("auditStdout", "true", "true"),
    ("connectionsMax", "2000", "2000"),
    ("connectionsPerKeyMax", "7", "7"),
    ("connectionsPerSourceMax", "20000", "20000"),
    ("drainSeconds", "0", "0"),
    ("endpointConnectionsMax", "0", "0"),
    ("endpointConnectionsPerUserMax", "2", "2"),
    ("idleTimeoutSeconds", "900", "900"),
    ("listen", "[::]:9090", "[::]:9090"),
    ("logFormat", "text", "text"),
    ("loginSeconds", "5", "5"),
    ("loginsMax", "1000", "1000"),
    ("loginsPerSourceMax", "1000", "1000"),
    ("neverDial", "{10.96.0.0/12,fd00::/8}", "10.96.0.0/12,fd00::/8"),
    ("ports", "{22,2222}", "22,2222"),
    ("privateVpcs", "{vpc-0123456789abcdef0}", "vpc-0123456789abcdef0"),
    ("sessionsPerGrantMax", "5", "5"),
    ("sshListen", "[::]:2022", "[::]:2022"),
];

fn pod(objects: &[Value]) -> &Value {
    &of_gateway(objects, "StatefulSet")["spec"]["template"]["spec"]
}

fn gateway(objects: &[Value]) -> &Value {
    &pod(objects)["containers"][0]
}

/// The gateway's environment, but for what the pod itself fills in.
fn environment(objects: &[Value]) -> BTreeMap<String, String> {
    let all = gateway(objects)["env"].as_array().unwrap();
    let said = all.iter().filter_map(|it| Some((it["name"].as_str()?.to_owned(), it["value"].as_str()?.to_owned())));
    let environment: BTreeMap<_, _> = said.collect();
    // Two of one name would be one too many: the last wins.
    assert_eq!(environment.len() + 1, all.len(), "{all:?}");
    environment
}

#[test]
fn every_setting_of_the_gateway_is_a_value_and_reaches_it() {
    let command = CommandLine::command();
    let flags: BTreeMap<String, String> = command
        .find_subcommand("gateway")
        .unwrap()
        .get_arguments()
        .filter(|arg| arg.get_id() != "help")
        .map(|arg| (camel(arg.get_long().unwrap()), arg.get_env().unwrap().to_string_lossy().into_owned()))
        .collect();
    let mut wanted: BTreeSet<&str> = flags.keys().map(String::as_str).collect();
    for (name, from) in DERIVED {
        assert!(wanted.remove(name), "{name}, made of {from}, is no flag any more");
    }
    let values = objects(&read(VALUES))[0]["gateway"]["settings"].as_object().unwrap().clone();
    let advice = "a flag of the gateway is a value under gateway.settings in values.yaml, in values.schema.json, and with a sample here";
    assert_eq!(values.keys().map(String::as_str).collect::<BTreeSet<_>>(), wanted, "{advice}");
    assert_eq!(SAMPLES.map(|(name, ..)| name).into_iter().collect::<BTreeSet<_>>(), wanted, "{advice}");
    for (name, sample, expected) in SAMPLES {
        let objects = with_gateway(&["--set", &format!("gateway.settings.{name}={sample}")]);
        assert_eq!(environment(&objects).get(&flags[name]).map(String::as_str), Some(expected), "{name}");
    }
}

#[test]
fn the_gateway_takes_the_charts_settings_as_they_are() {
    let objects = with_gateway(&[]);
    let environment = environment(&objects);
    // As the program reads them: each variable is the flag of that name.
    let mut arguments = vec!["instance-access".to_owned()];
    arguments.extend(gateway(&objects)["args"].as_array().unwrap().iter().map(|it| it.as_str().unwrap().to_owned()));
    for (name, value) in environment.iter().filter(|(name, _)| name.starts_with("INSTANCE_ACCESS_")) {
        let flag = format!("--{}", name.trim_start_matches("INSTANCE_ACCESS_").to_lowercase().replace('_', "-"));
        match value.as_str() {
            "false" => {}
            "true" => arguments.push(flag),
            _ => arguments.push(format!("{flag}={value}")),
        }
    }
    CommandLine::try_parse_from(&arguments).unwrap_or_else(|error| panic!("{arguments:?}: {error}"));
    // Its name is the pod's: a token is bound to that, and the admission policy compares.
    let named = &gateway(&objects)["env"][0];
    assert_eq!(
        named,
        &json!({"name": "INSTANCE_ACCESS_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}})
    );
    // Never cut for idling, unless asked for; and an AWS_REGION that is empty would hide the one that EKS sets.
    assert!(environment.keys().all(|name| name != "INSTANCE_ACCESS_IDLE_TIMEOUT_SECONDS" && !name.starts_with("AWS_")));
    let aws = with_gateway(&["--set=aws.region=us-west-2,aws.useFipsEndpoint=true"]);
    let aws = self::environment(&aws);
    assert_eq!((aws["AWS_REGION"].as_str(), aws["AWS_USE_FIPS_ENDPOINT"].as_str()), ("us-west-2", "true"));
}

#[test]
fn there_is_no_gateway_unless_asked_for() {
    let objects = rendered(&["--set", "serviceMonitor.enabled=true,networkPolicy.enabled=true"]);
    let text = serde_json::to_string(
        &objects.iter().filter(|it| it["kind"] != "CustomResourceDefinition").collect::<Vec<_>>(),
    );
    assert!(!text.unwrap().contains("component\":\"gateway"));
    assert_eq!(variable(&objects, "INSTANCE_ACCESS_GATEWAY_SERVICE_ACCOUNT"), None);
    assert_eq!(names(&objects, "ServiceAccount"), ["operator"]);
}

#[test]
fn controller_and_admission_policies_are_told_of_the_gateways_by_themselves() {
    for (value, expected) in [
        ("settings.gatewayServiceAccount=", "ops/gateway"),
        ("settings.gatewayServiceAccount=edge/jump", "edge/jump,ops/gateway"),
        ("settings.gatewayServiceAccount=ops/gateway\\,edge/jump", "ops/gateway,edge/jump"),
        ("gateway.serviceAccount.name=jump.v2", "ops/jump.v2"),
    ] {
        let objects = with_gateway(&["--set", value]);
        assert_eq!(variable(&objects, "INSTANCE_ACCESS_GATEWAY_SERVICE_ACCOUNT").as_deref(), Some(expected), "{value}");
        assert_eq!(variable(&objects, "INSTANCE_ACCESS_GATEWAY_ADDRESS").as_deref(), Some("gateway.example.com:2222"));
        let policies = serde_json::to_string(&of_kind(&objects, "ValidatingAdmissionPolicy")).unwrap();
        for account in expected.split(',') {
            let username = format!("'system:serviceaccount:{}'", account.replace('/', ":"));
            assert!(policies.contains(&username), "{value}: {username}");
        }
        let account = expected.split(',').find(|it| it.starts_with("ops/")).unwrap().trim_start_matches("ops/");
        assert_eq!(pod(&objects)["serviceAccountName"], account);
        assert_eq!(of_gateway(&objects, "ClusterRoleBinding")["subjects"][0]["name"], account);
    }
}

#[test]
fn the_gateways_rights_are_those_of_the_example_and_they_hold_no_more() {
    let objects = with_gateway(&[]);
    let example = super::helm::objects(&read("examples/gateway-rbac.yaml"));
    let role = of_gateway(&objects, "ClusterRole");
    assert_eq!(role["rules"], the(&example, "ClusterRole")["rules"]);
    let binding = of_gateway(&objects, "ClusterRoleBinding");
    assert_eq!(binding["roleRef"]["name"], role["metadata"]["name"]);
    assert_eq!(binding["subjects"], json!([{"kind": "ServiceAccount", "name": "gateway", "namespace": "ops"}]));
    // They read the controllers' lease, and no other, as the example has it but for the name.
    for (values, lease) in [(&[][..], "access-instance-access"), (&["--set=settings.lease=ops/another"], "another")] {
        let objects = with_gateway(values);
        assert_eq!(environment(&objects)["INSTANCE_ACCESS_LEASE"], format!("ops/{lease}"));
        assert_eq!(variable(&objects, "INSTANCE_ACCESS_LEASE"), Some(format!("ops/{lease}")));
        let example = super::helm::objects(&read("examples/gateway-lease-rbac.yaml"));
        let mut rules = the(&example, "Role")["rules"].clone();
        rules[0]["resourceNames"] = json!([lease]);
        let role = of_gateway(&objects, "Role");
        assert_eq!((&role["rules"], &role["metadata"]["namespace"]), (&rules, &json!("ops")));
        let binding = of_gateway(&objects, "RoleBinding");
        assert_eq!(binding["roleRef"]["name"], role["metadata"]["name"]);
        assert_eq!(binding["subjects"], json!([{"kind": "ServiceAccount", "name": "gateway", "namespace": "ops"}]));
    }
    // No other binding is theirs: what the operator may, they may not.
    for kind in ["ClusterRoleBinding", "RoleBinding"] {
        let theirs =
            |it: &&Value| it["subjects"].as_array().unwrap().iter().any(|subject| subject["name"] == "gateway");
        assert_eq!(of_kind(&objects, kind).into_iter().filter(theirs).count(), 1, "{kind}");
    }
    assert_eq!(of_gateway(&objects, "ServiceAccount")["automountServiceAccountToken"], false);

    let pod = pod(&objects);
    assert_eq!((&pod["automountServiceAccountToken"], &pod["enableServiceLinks"]), (&json!(true), &json!(false)));
    // The image and the user are the controller's, and so is what neither may.
    let operator = &controller(&objects)["spec"]["template"]["spec"];
    assert_eq!(pod["securityContext"], operator["securityContext"]);
    assert_eq!(gateway(&objects)["securityContext"], container(&objects)["securityContext"]);
    assert_eq!(gateway(&objects)["image"], container(&objects)["image"]);
    for field in ["hostNetwork", "hostPID", "hostIPC", "initContainers"] {
        assert!(pod[field].is_null(), "{field}");
    }
    let given = with_gateway(&["--set=gateway.serviceAccount.create=false,gateway.rbac.create=false"]);
    assert_eq!(names(&given, "ServiceAccount"), ["operator"]);
    assert!(
        of_kind(&given, "ClusterRole").iter().all(|it| !it["metadata"]["name"].as_str().unwrap().ends_with("gateway"))
    );
}

#[test]
fn the_host_key_is_mounted_where_the_gateway_reads_it_for_its_group_alone() {
    let mounted_at = |objects: &[Value]| {
        let mounts = gateway(objects)["volumeMounts"].as_array().unwrap();
        let mount = mounts.iter().find(|it| it["name"] == "host-key").unwrap();
        assert_eq!(mount["readOnly"], true);
        mount["mountPath"].as_str().unwrap().to_owned()
    };
    for (files, names) in [("{host_key}", &["host_key"][..]), ("{host_key,next_key}", &["host_key", "next_key"])] {
        let objects = with_gateway(&["--set", &format!("gateway.hostKey.files={files}")]);
        let volume = &pod(&objects)["volumes"][0]["secret"];
        // A file that others may read is refused by the gateway; the pod's group is fsGroup.
        assert_eq!((&volume["secretName"], &volume["defaultMode"]), (&json!("gateway-host-key"), &json!(0o440)));
        assert_eq!(pod(&objects)["securityContext"]["fsGroup"], pod(&objects)["securityContext"]["runAsGroup"]);
        let items: Vec<Value> = names.iter().map(|name| json!({"key": name, "path": name})).collect();
        assert_eq!(volume["items"], json!(items));
        let paths: Vec<String> = names.iter().map(|name| format!("{}/{name}", mounted_at(&objects))).collect();
        assert_eq!(environment(&objects)["INSTANCE_ACCESS_HOST_KEY_FILE"], paths.join(","));
    }
}

#[test]
fn each_gateway_finds_its_trail_again_and_no_upgrade_is_refused_for_it() {
    let objects = with_gateway(&[]);
    let claims = &of_gateway(&objects, "StatefulSet")["spec"]["volumeClaimTemplates"];
    let mounts = gateway(&objects)["volumeMounts"].as_array().unwrap();
    let mount = mounts.iter().find(|it| it["name"] == claims[0]["metadata"]["name"]).unwrap();
    let file = environment(&objects)["INSTANCE_ACCESS_AUDIT_FILE"].clone();
    assert_eq!(mount["mountPath"].as_str(), file.rsplit_once('/').map(|it| it.0));
    let retention = &of_gateway(&objects, "StatefulSet")["spec"]["persistentVolumeClaimRetentionPolicy"];
    assert_eq!(retention, &json!({"whenDeleted": "Retain", "whenScaled": "Retain"}));
    // What Kubernetes lets nobody change later must not change with the chart's version.
    let spec = &of_gateway(&objects, "StatefulSet")["spec"];
    for fixed in [claims, &spec["selector"], &spec["serviceName"], &spec["podManagementPolicy"]] {
        assert!(!fixed.to_string().contains(env!("CARGO_PKG_VERSION")), "{fixed}");
    }
    assert!(named(&objects, "Service", spec["serviceName"].as_str().unwrap()).is_object());

    let stdout =
        "gateway.settings.auditFile=,gateway.settings.auditStdout=true,gateway.audit.persistence.enabled=false";
    let stdout = with_gateway(&["--set", stdout]);
    assert!(of_gateway(&stdout, "StatefulSet")["spec"]["volumeClaimTemplates"].is_null());
    assert_eq!(environment(&stdout)["INSTANCE_ACCESS_AUDIT_STDOUT"], "true");
    assert_eq!(environment(&stdout).get("INSTANCE_ACCESS_AUDIT_FILE"), None);
}

#[test]
fn people_reach_the_gateways_with_their_own_addresses() {
    let service = |values: &[&str]| {
        let objects = with_gateway(values);
        let name = "access-instance-access-gateway";
        let service = named(&objects, "Service", name)["spec"].clone();
        assert_eq!(service["selector"], of_gateway(&objects, "StatefulSet")["spec"]["selector"]["matchLabels"]);
        assert!(
            gateway(&objects)["ports"]
                .as_array()
                .unwrap()
                .iter()
                .any(|it| it["name"] == service["ports"][0]["targetPort"])
        );
        service
    };
    let inner = service(&[]);
    assert_eq!((&inner["type"], &inner["ports"][0]["port"]), (&json!("ClusterIP"), &json!(2222)));
    assert!(inner["externalTrafficPolicy"].is_null());
    let balanced = service(&[
        "--set=gateway.service.type=LoadBalancer,gateway.service.port=22,gateway.service.loadBalancerClass=service.k8s.aws/nlb",
        "--set=gateway.service.loadBalancerSourceRanges={203.0.113.0/24}",
    ]);
    assert_eq!((&balanced["externalTrafficPolicy"], &balanced["ports"][0]["port"]), (&json!("Local"), &json!(22)));
    assert_eq!(balanced["loadBalancerSourceRanges"], json!(["203.0.113.0/24"]));
    assert_eq!(balanced["loadBalancerClass"], "service.k8s.aws/nlb");
    let port = service(&["--set=gateway.service.type=NodePort,gateway.service.nodePort=30022"]);
    assert_eq!((&port["externalTrafficPolicy"], &port["ports"][0]["nodePort"]), (&json!("Local"), &json!(30022)));
    // The program listens where the Service leads to.
    let objects = with_gateway(&["--set", "gateway.settings.sshListen=[::]:2022,gateway.settings.listen=[::]:9090"]);
    assert_eq!(
        gateway(&objects)["ports"],
        json!([{"name": "ssh", "containerPort": 2022}, {"name": "metrics", "containerPort": 9090}])
    );
}

#[test]
fn a_gateway_that_is_stopped_has_time_to_drain() {
    for (values, seconds) in [
        ("gateway.preStopSeconds=5", 35),
        ("gateway.settings.drainSeconds=600", 615),
        ("gateway.preStopSeconds=0,gateway.settings.drainSeconds=0", 10),
    ] {
        let objects = with_gateway(&["--set", values]);
        assert_eq!(pod(&objects)["terminationGracePeriodSeconds"], seconds, "{values}");
    }
    let objects = with_gateway(&["--set=gateway.preStopSeconds=0"]);
    assert!(gateway(&objects)["lifecycle"].is_null());
}

#[test]
fn a_networkpolicy_lets_a_gateway_reach_instances_and_little_else() {
    let on = "gateway.networkPolicy.enabled=true";
    let cidrs = "gateway.networkPolicy.instanceCidrs={10.0.0.0/16}";
    let objects = with_gateway(&["--set", on, "--set", cidrs, "--set", "gateway.settings.ports={22,2022}"]);
    let spec = &of_gateway(&objects, "NetworkPolicy")["spec"];
    assert_eq!(spec["podSelector"], of_gateway(&objects, "StatefulSet")["spec"]["selector"]);
    assert_eq!(spec["policyTypes"], json!(["Ingress", "Egress"]));
    assert_eq!(spec["ingress"][0], json!({"ports": [{"port": "ssh"}]}));
    let instances = json!({"to": [{"ipBlock": {"cidr": "10.0.0.0/16"}}],
        "ports": [{"port": 22, "protocol": "TCP"}, {"port": 2022, "protocol": "TCP"}]});
    assert_eq!(spec["egress"].as_array().unwrap().last().unwrap(), &instances);
    // What has no `to` is open to anywhere: names, and the ports of API server and AWS.
    let anywhere = spec["egress"].as_array().unwrap().iter().filter(|rule| rule["to"].is_null());
    let ports: Vec<i64> =
        anywhere.flat_map(|rule| rule["ports"].as_array().unwrap()).map(|it| it["port"].as_i64().unwrap()).collect();
    assert_eq!(ports, [53, 53, 443, 6443]);
    // helm test must still be let in.
    let from = r#"gateway.networkPolicy.sshFrom=[{"ipBlock":{"cidr":"203.0.113.0/24"}}]"#;
    let narrow = with_gateway(&["--set", on, "--set", cidrs, "--set-json", from]);
    let from = of_gateway(&narrow, "NetworkPolicy")["spec"]["ingress"][0]["from"].as_array().unwrap();
    assert_eq!(from[0], json!({"ipBlock": {"cidr": "203.0.113.0/24"}}));
    let test = &of_gateway(&narrow, "Job")["spec"]["template"]["metadata"]["labels"];
    assert_eq!(&from[1]["podSelector"]["matchLabels"], test);
}

#[test]
fn what_belongs_together_finds_each_other() {
    let objects = with_gateway(&["--set", "serviceMonitor.enabled=true"]);
    let selector = &of_gateway(&objects, "StatefulSet")["spec"]["selector"];
    assert_eq!(&of_gateway(&objects, "PodDisruptionBudget")["spec"]["selector"], selector);
    let labels = &of_gateway(&objects, "StatefulSet")["spec"]["template"]["metadata"]["labels"];
    let has =
        |labels: &Value, wanted: &Value| wanted.as_object().unwrap().iter().all(|(name, value)| &labels[name] == value);
    assert!(has(labels, &selector["matchLabels"]));
    // Nothing of the controller's selects a gateway, and the other way round.
    let operator = &controller(&objects)["spec"];
    assert!(!has(labels, &operator["selector"]["matchLabels"]));
    assert!(!has(&operator["template"]["metadata"]["labels"], &selector["matchLabels"]));
    // Each ServiceMonitor finds a Service with a port called metrics.
    for monitor in of_kind(&objects, "ServiceMonitor") {
        let wanted = &monitor["spec"]["selector"]["matchLabels"];
        let found = of_kind(&objects, "Service").into_iter().filter(|it| has(&it["metadata"]["labels"], wanted));
        let ports: Vec<&Value> =
            found.map(|it| &it["spec"]["ports"][0]["name"]).filter(|name| *name == "metrics").collect();
        assert_eq!(ports.len(), 1, "{monitor}");
    }
    let spread = pod(&objects)["topologySpreadConstraints"].as_array().unwrap();
    let keys: Vec<&str> = spread.iter().map(|it| it["topologyKey"].as_str().unwrap()).collect();
    assert_eq!(keys, ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]);
    assert!(spread.iter().all(|it| it["whenUnsatisfiable"] == "ScheduleAnyway" && &it["labelSelector"] == selector));
}

#[test]
fn helm_test_asks_a_gateway_and_where_people_connect() {
    let objects = with_gateway(&["--set", "gateway.service.port=22"]);
    let job = of_gateway(&objects, "Job");
    assert_eq!(job["metadata"]["annotations"]["helm.sh/hook"], "test");
    let asked = &job["spec"]["template"]["spec"];
    let args: Vec<&str> =
        asked["containers"][0]["args"].as_array().unwrap().iter().map(|it| it.as_str().unwrap()).collect();
    let at = |name: &str| {
        let service = named(&objects, "Service", name);
        format!("{name}.ops.svc:{}", service["spec"]["ports"][0]["port"])
    };
    let (ssh, metrics) = (at("access-instance-access-gateway"), at("access-instance-access-gateway-metrics"));
    assert_eq!(args, ["ready", "--wait-seconds", "120", "--ssh", &ssh, &metrics]);
    CommandLine::try_parse_from([&["instance-access"][..], &args].concat()).unwrap();
    assert_eq!(asked["automountServiceAccountToken"], false);
    assert_eq!(asked["containers"][0]["securityContext"]["readOnlyRootFilesystem"], true);
}

#[test]
fn what_cannot_be_right_is_refused_with_what_to_type() {
    for (values, words) in [
        (
            &["gateway.hostKey.secretName="][..],
            "kubectl -n ops create secret generic gateway-host-key --from-file=host_key",
        ),
        (&["gateway.hostKey.secretName="], "host-key --host-key-file ./host_key '[gateway.example.com]:2222'"),
        (
            &["gateway.hostKey.secretName=,settings.gatewayAddress=jump.example"],
            "--host-key-file ./host_key 'jump.example'",
        ),
        (
            &["gateway.hostKey.secretName=,settings.gatewayAddress=[2001:db8::1]:2022"],
            "--host-key-file ./host_key '[2001:db8::1]:2022'",
        ),
        (&["settings.gatewayAddress="], "settings.gatewayAddress is empty, and gateway.enabled is true"),
        (&["gateway.serviceAccount.name=operator"], "would have the operator's rights"),
        (&["serviceAccount.name=gateway"], "would have the operator's rights"),
        (&["gateway.settings.auditFile="], "without an audit trail no session is opened"),
        (&["gateway.audit.persistence.enabled=false"], "would be lost with the pod"),
        (&["gateway.settings.listen=0.0.0.0:2222"], "name one port"),
        (&["gateway.networkPolicy.enabled=true"], "gateway.networkPolicy.instanceCidrs is empty"),
        (&["gateway.service.loadBalancerSourceRanges={10.0.0.0/8}"], "gateway.service.type is ClusterIP"),
        (&["gateway.service.nodePort=30022"], "gateway.service.type is ClusterIP"),
        (
            &["gateway.service.type=NodePort", "gateway.service.loadBalancerSourceRanges={10.0.0.0/8}"],
            "every source could connect",
        ),
        (&["settings.gatewayServiceAccount=edge"], "is no service account; give NAMESPACE/NAME"),
    ] {
        let mut arguments = vec!["--set", IMAGE, "--set", GATEWAY];
        arguments.extend(values.iter().flat_map(|value| ["--set", *value]));
        let refused = template(&arguments).expect_err(words);
        assert!(refused.contains(words), "{values:?}: {refused}");
    }
    // A name that would break out of CEL, whoever skips the schema.
    for name in ["a' || true || '", "a/b", "a:b", ""] {
        let values = json!({"gateway": {"serviceAccount": {"name": name}}}).to_string();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), values).unwrap();
        let values = file.path().to_str().unwrap();
        let refused = template(&["--set", IMAGE, "--set", GATEWAY, "--values", values, "--skip-schema-validation"]);
        assert!(refused.expect_err(name).contains("gateway.serviceAccount.name"), "{name}");
    }
}
