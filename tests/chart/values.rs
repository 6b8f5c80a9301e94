//! The values: each setting is one, each is in the schema, on the page and in the rendered pod; a typo is refused.

use std::collections::{BTreeMap, BTreeSet};

use clap::CommandFactory;
use instance_access::config::CommandLine;
use regex::Regex;
use serde_json::Value;

use super::files::UPDATE;
use super::helm::{IMAGE, chart, container, objects, read, rendered, run, template, variable};

pub const VALUES: &str = "charts/instance-access/values.yaml";
const README: &str = "charts/instance-access/README.md";

fn schema() -> Value {
    serde_json::from_str(&read("charts/instance-access/values.schema.json")).unwrap()
}

/// `audit-file` as `auditFile`.
pub fn camel(name: &str) -> String {
    let mut parts = name.split('-');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |name, part| name + &part[..1].to_uppercase() + &part[1..])
}

/// A value for each setting that is not its default.
const SAMPLES: [(&str, &str); 11] = [
    ("auditFile", "/srv/trail/audit.jsonl"),
    ("auditFileMaxMebibytes", "64"),
    ("auditStdout", "true"),
    ("gatewayAddress", "gateway.example.com:2222"),
    ("gatewayServiceAccount", "instance-access/gateway"),
    ("lease", "ops/another"),
    ("leaseSeconds", "30"),
    ("listen", "[::]:9090"),
    ("logFormat", "text"),
    ("principal", "user.username"),
    ("pushesPerSecond", "1000"),
];

#[test]
fn every_setting_of_the_controller_is_a_value_and_reaches_it() {
    let command = CommandLine::command();
    let controller = command.find_subcommand("controller").unwrap();
    let flags: BTreeMap<String, String> = controller
        .get_arguments()
        .filter(|arg| arg.get_id() != "help")
        .map(|arg| (camel(arg.get_long().unwrap()), arg.get_env().unwrap().to_string_lossy().into_owned()))
        .collect();
    let settings = objects(&read(VALUES))[0]["settings"].as_object().unwrap().clone();
    let names = |all: Vec<&String>| all.into_iter().cloned().collect::<BTreeSet<_>>();
    let advice = "a flag of the controller is a value under settings: in values.yaml, in values.schema.json, and with a sample here";
    assert_eq!(names(settings.keys().collect()), names(flags.keys().collect()), "{advice}");
    assert_eq!(
        SAMPLES.map(|(name, _)| name.to_owned()).into_iter().collect::<BTreeSet<_>>(),
        names(flags.keys().collect()),
        "{advice}"
    );
    for (name, sample) in SAMPLES {
        let objects = rendered(&["--set", &format!("settings.{name}={sample}")]);
        assert_eq!(variable(&objects, &flags[name]).as_deref(), Some(sample), "settings.{name}");
        // Two of one name would be one too many: the last wins.
        let all = container(&objects)["env"].as_array().unwrap();
        assert_eq!(all.iter().filter(|it| it["name"] == flags[name]).count(), 1, "settings.{name}");
    }
    let port = rendered(&["--set", "settings.listen=[::]:9090"]);
    assert_eq!(container(&port)["ports"][0]["containerPort"], 9090);
}

#[test]
fn the_controller_takes_the_charts_settings_as_they_are() {
    use clap::Parser;
    let settings = objects(&read(VALUES))[0]["settings"].as_object().unwrap().clone();
    let kebab = Regex::new("([A-Z])").unwrap();
    let mut arguments = vec!["instance-access".to_owned(), "controller".to_owned()];
    for (name, value) in settings {
        let flag = format!("--{}", kebab.replace_all(&name, "-$1").to_lowercase());
        match value {
            Value::Bool(true) => arguments.push(flag),
            Value::Bool(false) => {}
            Value::String(text) if text.is_empty() => {}
            Value::String(text) => arguments.extend([flag, text]),
            other => arguments.extend([flag, other.to_string()]),
        }
    }
    CommandLine::try_parse_from(&arguments).unwrap_or_else(|error| panic!("{arguments:?}: {error}"));
}

/// What EKS or extraEnv sets, and no value of its own does.
const SET_ELSEWHERE: [&str; 7] = [
    "AWS_PROFILE",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_ROLE_ARN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
];

#[test]
fn every_setting_for_aws_is_a_value_or_set_by_eks() {
    let page = read("docs/configuration.md");
    let page = page.split("\n## AWS\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let table: String = page.lines().filter(|line| line.starts_with('|')).collect();
    let told: BTreeSet<String> =
        Regex::new("`(AWS_[A-Z0-9_]+)`").unwrap().captures_iter(&table).map(|found| found[1].to_owned()).collect();
    assert!(told.len() > 10, "{told:?}");
    let url = "https://vpce.example";
    let objects = rendered(&[
        "--set=aws.region=us-west-2,aws.useFipsEndpoint=true,aws.useDualstackEndpoint=true",
        &format!(
            "--set=aws.endpointUrl={url},aws.endpointUrlEc2={url},aws.endpointUrlEc2InstanceConnect={url},aws.endpointUrlSts={url}"
        ),
    ]);
    let ours = container(&objects)["env"].as_array().unwrap().iter().filter_map(|it| it["name"].as_str());
    let mut ours: BTreeSet<String> = ours.filter(|name| name.starts_with("AWS_")).map(str::to_owned).collect();
    assert_eq!(variable(&objects, "AWS_USE_FIPS_ENDPOINT").as_deref(), Some("true"));
    assert_eq!(variable(&objects, "AWS_REGION").as_deref(), Some("us-west-2"));
    ours.extend(SET_ELSEWHERE.map(str::to_owned));
    assert_eq!(ours, told);
    // Nothing is set that nobody asked for: an AWS_REGION that is empty would hide the one that EKS sets.
    let quiet = rendered(&[]);
    let env = container(&quiet)["env"].as_array().unwrap();
    assert!(env.iter().all(|it| !it["name"].as_str().unwrap().starts_with("AWS_")), "{env:?}");
}

#[test]
fn a_mistake_in_the_values_is_refused_and_named() {
    for (value, words) in [
        ("settings.pushesPerSeconds=100", "pushesPerSeconds"),
        ("settings.pushesPerSecond=0", "pushesPerSecond"),
        ("settings.pushesPerSecond=many", "pushesPerSecond"),
        ("settings.auditStdout=yes", "auditStdout"),
        ("settings.auditFile=audit.jsonl", "auditFile"),
        ("settings.auditFile=/audit.jsonl", "auditFile"),
        ("settings.gatewayAddress=root@gateway", "gatewayAddress"),
        ("settings.listen=8080", "listen"),
        ("settings.logFormat=xml", "logFormat"),
        ("setings.logFormat=text", "setings"),
        ("image.repo=a", "repo"),
        ("image.digest=sha256:abc", "digest"),
        ("aws.regoin=us-west-2", "regoin"),
        ("aws.region=US", "region"),
        ("aws.endpointUrlEc2=vpce.example", "endpointUrlEc2"),
        ("serviceAccount.annotation.a=b", "annotation"),
        ("crds.installed=false", "installed"),
        ("admission.mutating=auto", "mutating"),
        ("userRoles.aggregateTo.requester={everybody}", "requester"),
        ("userRoles.aggregateTo.policyAdmin={admin}", "policyAdmin"),
        ("audit.persistence.size=big", "size"),
        ("audit.persistence.accessModes={ReadOnlyMany}", "accessModes"),
        ("audit.enabled=false", "enabled"),
        ("resources.limit.memory=1Gi", "limit"),
        ("replicas=0", "replicas"),
        ("settings.lease=another", "lease"),
        ("settings.leaseSeconds=5", "leaseSeconds"),
        ("extraEnv[0].name=INSTANCE_ACCESS_PRINCIPAL", "extraEnv"),
        ("networkPolicy.tcpPorts={0}", "tcpPorts"),
        ("gatway.enabled=true", "gatway"),
        ("gateway.enabeld=true", "enabeld"),
        ("gateway.replicas=0", "replicas"),
        // A request has room for the entries of sixteen.
        ("gateway.replicas=17", "replicas"),
        ("gateway.address=a", "address"),
        ("gateway.hostKey.secret=a", "secret"),
        ("gateway.hostKey.files={}", "files"),
        ("gateway.hostKey.files={a,b,c}", "files"),
        ("gateway.hostKey.files={../../etc/passwd}", "files"),
        ("gateway.hostKey.files={a\\,b}", "files"),
        ("gateway.settings.drainSecond=1", "drainSecond"),
        ("gateway.settings.drainSeconds=3601", "drainSeconds"),
        ("gateway.settings.idleTimeoutSeconds=14", "idleTimeoutSeconds"),
        ("gateway.settings.hostKeyFile=/a/b", "hostKeyFile"),
        ("gateway.settings.name=gateway-7", "name"),
        ("gateway.settings.neverDial=10.0.0.0/8", "neverDial"),
        ("gateway.settings.neverDial={10.0.0.0}", "neverDial"),
        ("gateway.settings.ports={}", "ports"),
        ("gateway.settings.ports={ssh}", "ports"),
        ("gateway.settings.privateVpcs={vpc}", "privateVpcs"),
        ("gateway.settings.sshListen=2222", "sshListen"),
        ("gateway.service.type=ExternalName", "type"),
        ("gateway.service.externalTrafficPolicy=local", "externalTrafficPolicy"),
        ("gateway.service.loadBalancerSourceRanges={everybody}", "loadBalancerSourceRanges"),
        ("gateway.service.annotations.a=true", "annotations"),
        ("gateway.serviceAccount.name=A", "name"),
        ("gateway.audit.persistence.existingClaim=a", "existingClaim"),
        ("gateway.resources.limit.memory=1Gi", "limit"),
        ("gateway.extraEnv[0].name=INSTANCE_ACCESS_NAME", "extraEnv"),
        ("gateway.networkPolicy.instanceCidr={10.0.0.0/8}", "instanceCidr"),
        ("gateway.networkPolicy.sshFrom={everybody}", "sshFrom"),
        ("gateway.podDisruptionBudget.maxUnavailable=-1", "maxUnavailable"),
    ] {
        let refused = template(&["--set", IMAGE, "--set", value]).expect_err(value);
        assert!(
            refused.contains("don't meet the specifications of the schema") && refused.contains(words),
            "{value}: {refused}"
        );
    }
}

#[test]
fn a_chart_above_switches_it_on_and_off_as_is_usual_and_has_its_typos_refused() {
    let folder = tempfile::tempdir().unwrap();
    let above = folder.path().join("platform");
    std::fs::create_dir_all(above.join("charts")).unwrap();
    std::os::unix::fs::symlink(chart(), above.join("charts/instance-access")).unwrap();
    let version = env!("CARGO_PKG_VERSION");
    let about = format!(
        "apiVersion: v2\nname: platform\nversion: 0.1.0\ndependencies:\n\
         - {{name: instance-access, version: {version}, condition: instance-access.enabled}}\n"
    );
    std::fs::write(above.join("Chart.yaml"), about).unwrap();
    let image = format!("instance-access.{IMAGE}");
    let of_platform = |value: &str| {
        let done = run(&["template", "it", above.to_str().unwrap(), "--set", &image, "--set", value]);
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        if done.status.success() { Ok(objects(&String::from_utf8(done.stdout).unwrap())) } else { Err(said) }
    };
    let on = of_platform("instance-access.enabled=true").unwrap();
    assert_eq!(container(&on)["args"], serde_json::json!(["controller"]));
    assert!(of_platform("instance-access.enabled=false").unwrap().is_empty());
    for typo in ["instance-access.enabeld=true", "instance-access.enabled=on"] {
        let refused = of_platform(typo).expect_err(typo);
        assert!(refused.contains("don't meet the specifications of the schema"), "{typo}: {refused}");
    }
}

/// Maps that are one value, and have a default.
const OF_ONE_PIECE: [&str; 3] = ["resources", "gateway.resources", "dashboard.labels"];

/// A value: its path, its default, and what the comment above it says.
struct Told {
    path: String,
    default: String,
    meaning: String,
}

/// Reads values.yaml as a person does: a comment belongs to the key below it.
fn told() -> Vec<Told> {
    let all = &objects(&read(VALUES))[0];
    let key = Regex::new(r"^( *)([A-Za-z0-9-]+):").unwrap();
    let (mut told, mut path, mut comment) = (Vec::new(), Vec::<String>::new(), String::new());
    for line in read(VALUES).lines() {
        if let Some(text) = line.trim_start().strip_prefix('#') {
            comment = format!("{comment} {}", text.trim()).trim().to_owned();
        } else if let Some(found) = key.captures(line) {
            path.truncate(found[1].len() / 2);
            path.push(found[2].to_owned());
            let value = all.pointer(&format!("/{}", path.join("/"))).unwrap();
            if !comment.is_empty() {
                let default = serde_json::to_string(value).unwrap();
                told.push(Told { path: path.join("."), default, meaning: std::mem::take(&mut comment) });
            }
        } else {
            comment.clear();
        }
    }
    told
}

/// Every leaf of the values; what is free in form (an empty map or list, a map of quantities) is one.
fn leaves(path: &str, value: &Value, schema: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) if schema["properties"].is_object() && !OF_ONE_PIECE.contains(&path) => {
            for (name, field) in fields {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                leaves(&path, field, &schema["properties"][name], found);
            }
        }
        _ => drop(found.insert(path.to_owned())),
    }
}

/// Every leaf of the schema, likewise.
fn leaves_of_schema(path: &str, schema: &Value, found: &mut BTreeSet<String>) {
    match schema["properties"].as_object() {
        Some(fields) if !OF_ONE_PIECE.contains(&path) => {
            assert_eq!(schema["additionalProperties"], false, "{path} takes typos");
            for (name, field) in fields {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                leaves_of_schema(&path, field, found);
            }
        }
        _ => drop(found.insert(path.to_owned())),
    }
}

#[test]
fn every_value_is_in_the_schema_and_explained_and_no_other() {
    let (mut values, mut of_schema) = (BTreeSet::new(), BTreeSet::new());
    leaves("", &objects(&read(VALUES))[0], &schema(), &mut values);
    leaves_of_schema("", &schema(), &mut of_schema);
    // Helm's own, of a chart above.
    for name in ["global", "enabled"] {
        assert!(of_schema.remove(name), "{name}");
    }
    assert_eq!(values, of_schema);
    let explained: BTreeSet<String> = told().into_iter().map(|told| told.path).collect();
    let silent: Vec<_> = values.difference(&explained).collect();
    assert!(silent.is_empty(), "values.yaml says nothing of {silent:?}");
}

#[test]
fn the_table_of_values_is_made_of_the_values() {
    let mut table = String::from("| value | default | meaning |\n|---|---|---|\n");
    for Told { path, default, meaning } in told() {
        let parent = default.starts_with('{') && default != "{}" && !OF_ONE_PIECE.contains(&path.as_str());
        if !parent {
            let cell = |text: &str| text.replace('|', "\\|").replace('<', "&lt;");
            table.push_str(&format!("| `{path}` | `{}` | {} |\n", cell(&default), cell(&meaning)));
        }
    }
    let page = read(README);
    let (begin, end) = ("<!-- generated: values -->\n", "<!-- end of values -->");
    let start = page.find(begin).expect("the README has a place for the table") + begin.len();
    let stop = start + page[start..].find(end).expect("the table's place ends");
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(super::helm::file(README), format!("{}\n{table}\n{}", &page[..start], &page[stop..])).unwrap();
        return;
    }
    assert!(page[start..stop] == format!("\n{table}\n"), "{README} is stale; run make chart");
}
