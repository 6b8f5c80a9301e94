//! Tables made from the code: the fields of both resources, and the flags of the command line.

use std::collections::BTreeSet;

use clap::CommandFactory;
use instance_access::domain::session::SessionEnd;
use instance_access::gateway::{CONNECTIONS, GatewayMetrics, KEYS, PUSHES, REFUSALS};
use instance_access::telemetry::{Metrics, Reading};
use instance_access::{api, config::CommandLine};
use regex::Regex;
use serde_json::Value;

use super::{read, root};

/// Set to write the tables anew.
const UPDATE: &str = "UPDATE_DOCS";

/// Compares what stands between the markers of a page with what should, or writes it there.
#[track_caller]
fn stands(file: &str, name: &str, expected: &str) {
    let page = read(file);
    let (begin, end) = (format!("<!-- generated: {name} -->\n"), format!("<!-- end of {name} -->"));
    let start = page.find(&begin).unwrap_or_else(|| panic!("{file} has no line {begin}")) + begin.len();
    let length = page[start..].find(&end).unwrap_or_else(|| panic!("{file} has no line {end}"));
    let expected = format!("\n{}\n", expected.trim_end().to_owned() + "\n");
    if std::env::var_os(UPDATE).is_some() {
        let written = format!("{}{expected}{}", &page[..start], &page[start + length..]);
        if written != page {
            std::fs::write(root().join(file), written).unwrap();
        }
        return;
    }
    assert!(page[start..start + length] == expected, "{file}: {name} is stale; run {UPDATE}=1 cargo test --test docs");
}

/// Makes a text fit for a cell.
fn cell(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|").replace('<', "&lt;")
}

fn number(value: &Value) -> Option<i64> {
    #[expect(clippy::cast_possible_truncation, reason = "bounds are whole numbers below 2^53")]
    value.as_i64().or_else(|| value.as_f64().map(|float| float as i64))
}

fn span(schema: &Value, min: &str, max: &str, unit: &str) -> Option<String> {
    match (number(&schema[min]), number(&schema[max])) {
        (Some(min), Some(max)) if min == max => Some(format!("{min}{unit}")),
        (Some(min), Some(max)) => Some(format!("{min} to {max}{unit}")),
        (None, Some(max)) => Some(format!("at most {max}{unit}")),
        (Some(min), None) => Some(format!("at least {min}{unit}")),
        (None, None) => None,
    }
}

/// A field's type and bounds, in words.
fn kind(schema: &Value) -> String {
    if let Some(values) = schema["enum"].as_array() {
        let values: Vec<String> = values.iter().filter_map(Value::as_str).map(|value| format!("`{value}`")).collect();
        return values.join(", ");
    }
    let with =
        |name: &str, bound: Option<String>| bound.map_or_else(|| name.to_owned(), |bound| format!("{name}, {bound}"));
    match schema["type"].as_str() {
        Some("string") if schema["format"] == "date-time" => "time (RFC 3339)".to_owned(),
        Some("string") => {
            let text = with("string", span(schema, "minLength", "maxLength", " characters"));
            match schema["pattern"].as_str() {
                Some(pattern) => format!("{text}, `{pattern}`"),
                None => text,
            }
        }
        Some("integer") => with("integer", span(schema, "minimum", "maximum", "")),
        Some("boolean") => "boolean".to_owned(),
        Some("array") => {
            let items = &schema["items"];
            let list = with("list", span(schema, "minItems", "maxItems", " items"));
            format!("{list}; each: {}", kind(items))
        }
        Some("object") => match &schema["additionalProperties"] {
            Value::Object(_) => {
                let map = with("map", span(schema, "minProperties", "maxProperties", " entries"));
                format!("{map}; each value: {}", kind(&schema["additionalProperties"]))
            }
            _ => "object".to_owned(),
        },
        other => panic!("a schema of type {other:?}"),
    }
}

/// One row a field, depth first.
fn rows(path: &str, schema: &Value, table: &mut String) {
    let required: Vec<&str> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        let must = if required.contains(&name.as_str()) { " **required**" } else { "" };
        let description = field["description"].as_str().unwrap_or_else(|| panic!("{path} has no description"));
        let kind = kind(field).replace('|', "\\|");
        table.push_str(&format!("| `{path}` | {kind}{must} | {} |\n", cell(description)));
        rows(&path, field, table);
        if field["items"]["type"] == "object" {
            rows(&format!("{path}[]"), &field["items"], table);
        }
    }
}

/// What the API server refuses beyond types and bounds.
fn rules(path: &str, schema: &Value, list: &mut Vec<(String, String)>) {
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        if let Some(message) = rule["message"].as_str() {
            list.push((format!("{path}{}", rule["fieldPath"].as_str().unwrap_or_default()), cell(message)));
        }
    }
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        rules(&format!("{path}.{name}"), field, list);
    }
    if schema["items"].is_object() {
        rules(&format!("{path}[]"), &schema["items"], list);
    }
}

/// How the rules begin that make a field immutable, one a field.
const IMMUTABLE: &str = "is immutable; ";

/// The custom resources, as (kind, schema).
pub fn schemas() -> Vec<(String, Value)> {
    let schema = |crd| {
        let crd = serde_json::to_value(&crd).unwrap();
        let kind = crd["spec"]["names"]["kind"].as_str().unwrap().to_owned();
        (kind, crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone())
    };
    api::crds().into_iter().map(schema).collect()
}

#[test]
fn the_reference_has_every_field_as_the_crds_have_it() {
    for (kind, schema) in schemas() {
        for part in ["spec", "status"] {
            let schema = &schema["properties"][part];
            if schema.is_null() {
                continue; // a decision has no status
            }
            let mut text = String::from("| field | type and bounds | meaning |\n|---|---|---|\n");
            rows(part, schema, &mut text);
            let mut list = Vec::new();
            rules(part, schema, &mut list);
            if !list.is_empty() {
                text.push_str("\nThe API server refuses, besides:\n\n");
                let (fixed, others): (Vec<_>, Vec<_>) =
                    list.into_iter().partition(|(_, message)| message.starts_with(IMMUTABLE));
                if let Some((_, message)) = fixed.first() {
                    let fields: Vec<String> = fixed.iter().map(|(field, _)| format!("`{field}`")).collect();
                    text.push_str(&format!("- a change of one of {}: {message}\n", fields.join(", ")));
                }
                for (path, message) in others {
                    text.push_str(&format!("- `{path}`: {message}\n"));
                }
            }
            stands("docs/reference.md", &format!("{kind} {part}"), &text);
        }
    }
}

/// The flags and arguments of a command, but for those that every command has.
fn arguments(command: &clap::Command) -> Vec<&clap::Arg> {
    command.get_arguments().filter(|arg| !["help", "version"].contains(&arg.get_id().as_str())).collect()
}

/// A table with one row a flag or argument.
fn table_of_flags(command: &clap::Command) -> String {
    let mut text = String::from("| flag | environment variable | default | meaning |\n|---|---|---|---|\n");
    for arg in arguments(command) {
        let values: Vec<String> = arg.get_value_names().into_iter().flatten().map(|name| format!("{name}")).collect();
        let takes = arg.get_action().takes_values();
        let value = if takes && !values.is_empty() { format!(" {}", values.join(" ")) } else { String::new() };
        let flag = match arg.get_long() {
            Some(long) => format!("--{long}{value}"),
            None if matches!(arg.get_action(), clap::ArgAction::Append) => format!("{}…", value.trim()),
            None => value.trim().to_owned(),
        };
        let env = arg.get_env().map_or_else(String::new, |env| format!("`{}`", env.to_string_lossy()));
        let mut default: Vec<String> = arg
            .get_default_values()
            .iter()
            .filter(|_| takes)
            .map(|value| format!("`{}`", value.to_string_lossy()))
            .collect();
        if arg.is_required_set() {
            default.push("**required**".to_owned());
        }
        let mut meaning = cell(&arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default());
        let possible: Vec<String> =
            arg.get_possible_values().iter().filter(|_| takes).map(|value| format!("`{}`", value.get_name())).collect();
        if !meaning.ends_with('.') {
            meaning.push('.'); // clap takes the last one off
        }
        if !possible.is_empty() {
            meaning.push_str(&format!(" One of {}.", possible.join(", ")));
        }
        text.push_str(&format!("| `{flag}` | {env} | {} | {meaning} |\n", default.join(" ")));
    }
    text
}

/// A heading and a table for each command that does something.
fn commands(command: &clap::Command, path: &str, text: &mut String) {
    if command.get_subcommands().next().is_none() {
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        let table = if arguments(command).is_empty() { "No flags.\n".to_owned() } else { table_of_flags(command) };
        text.push_str(&format!("### `{path}`\n\n{}\n\n{table}\n", cell(&about)));
    }
    for command in command.get_subcommands().filter(|command| command.get_name() != "help") {
        commands(command, &format!("{path} {}", command.get_name()), text);
    }
}

#[test]
fn the_table_of_flags_is_what_the_command_line_takes() {
    let command = CommandLine::command();
    let mut text = String::new();
    commands(&command, "instance-access", &mut text);
    stands("docs/configuration.md", "flags", &text);
    let controller = command.find_subcommand("controller").unwrap();
    stands("README.md", "flags of the controller", &table_of_flags(controller));
}

#[test]
fn every_flag_of_the_controller_and_the_gateway_is_an_environment_variable() {
    let command = CommandLine::command();
    for command in ["controller", "gateway"].map(|name| command.find_subcommand(name).unwrap()) {
        for arg in command.get_arguments().filter(|arg| arg.get_id() != "help") {
            let expected = format!("INSTANCE_ACCESS_{}", arg.get_long().unwrap().replace('-', "_").to_uppercase());
            assert_eq!(arg.get_env().map(|env| env.to_string_lossy().into_owned()), Some(expected));
        }
    }
}

/// The metrics of a page as it is served.
fn served(page: &str) -> BTreeSet<String> {
    let kind = Regex::new(r"(?m)^# TYPE (instance_access_\w+) (\w+)$").unwrap();
    kind.captures_iter(page)
        .map(|found| format!("{}{}", &found[1], if &found[2] == "counter" { "_total" } else { "" }))
        .collect()
}

/// The metrics that a page for people has a row for.
fn told(file: &str) -> BTreeSet<String> {
    let text = read(file);
    let rows: String =
        text.lines().filter(|line| line.starts_with("| `instance_access_")).collect::<Vec<_>>().join("\n");
    let name = Regex::new(r"`(instance_access_\w+)").unwrap();
    name.captures_iter(&rows).map(|found| found[1].to_owned()).collect()
}

#[test]
fn the_table_of_metrics_names_all_of_them_and_no_others() {
    let metrics = Metrics::default();
    metrics.led_by(|| true);
    metrics.read_from(Reading::default);
    assert_eq!(served(&metrics.page()), told("docs/configuration.md"));
}

#[test]
fn the_gateways_table_of_metrics_names_all_of_them_and_no_others() {
    let metrics = GatewayMetrics::default();
    metrics.read_from(Default::default);
    let mut served = served(&metrics.page());
    // It stands in the controller's table, which says that both have it.
    assert!(served.remove("instance_access_build_info"));
    assert_eq!(served, told("docs/gateway.md"));
    let page = read("docs/gateway.md");
    let words = SessionEnd::ALL.map(SessionEnd::as_str).into_iter().chain(CONNECTIONS).chain(KEYS).chain(PUSHES);
    for word in words.chain(REFUSALS) {
        assert!(page.contains(&format!("`{word}`")), "docs/gateway.md has no word {word}");
    }
}
