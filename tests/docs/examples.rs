//! The YAML and JSON in the pages and in `examples/` is what the CRDs take.

use instance_access::api::InstanceAccessPolicy;
use instance_access::domain::policy::Policy;
use serde::Deserialize;
use serde_json::Value;

use super::tables::schemas;
use super::{pages, root, split};

/// What a manifest breaks of its schema: unknown, missing and mistyped fields. Bounds are the API server's to judge.
fn findings(path: &str, value: &Value, schema: &Value, found: &mut Vec<String>) {
    let typed = match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_i64(),
        Some("boolean") => value.is_boolean(),
        _ => true,
    };
    if !typed {
        return found.push(format!("{path} must be of type {}, is {value}", schema["type"]));
    }
    if let Some(values) = schema["enum"].as_array()
        && !values.contains(value)
    {
        found.push(format!("{path} is {value}, not one of {values:?}"));
    }
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if value.get(name).is_none() {
            found.push(format!("{path}.{name} is missing"));
        }
    }
    for (name, field) in value.as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        match (schema["properties"].get(name), &schema["additionalProperties"]) {
            (Some(schema), _) | (None, schema @ Value::Object(_)) => findings(&path, field, schema, found),
            (None, _) => found.push(format!("{path} is no field")),
        }
    }
    for (number, item) in value.as_array().into_iter().flatten().enumerate() {
        findings(&format!("{path}[{number}]"), item, &schema["items"], found);
    }
}

/// Checks every document of a YAML stream that is one of our resources; returns how many were.
fn check(place: &str, text: &str) -> usize {
    let mut ours = 0;
    for document in serde_yaml::Deserializer::from_str(text) {
        let value = Value::deserialize(document).unwrap_or_else(|error| panic!("{place}: {error}"));
        let Some(kind) = value["kind"].as_str() else { continue };
        let Some((_, schema)) = schemas().into_iter().find(|(name, _)| name == kind) else { continue };
        assert_eq!(value["apiVersion"], "instanceaccess.dev/v1alpha1", "{place}");
        let mut found = Vec::new();
        for part in ["spec", "status"] {
            if let Some(value) = value.get(part) {
                findings(part, value, &schema["properties"][part], &mut found);
            }
        }
        assert!(value.get("spec").is_some() && found.is_empty(), "{place}: {found:#?}");
        if kind == "InstanceAccessPolicy" {
            let policy: InstanceAccessPolicy = serde_json::from_value(value.clone()).unwrap();
            let problem = Policy::compile(&policy).problem().cloned();
            assert!(problem.is_none(), "{place}: {problem:?}");
        }
        ours += 1;
    }
    ours
}

#[test]
fn every_manifest_in_the_pages_is_what_the_crds_take() {
    let mut ours = 0;
    for path in pages() {
        let place = path.strip_prefix(root()).unwrap().display().to_string();
        for (language, line, text) in split(&std::fs::read_to_string(&path).unwrap()).1 {
            let place = format!("{place}:{line}");
            match language.as_str() {
                "yaml" => ours += check(&place, &text),
                "json" => drop(serde_json::from_str::<Value>(&text).unwrap_or_else(|error| panic!("{place}: {error}"))),
                _ => {}
            }
        }
    }
    assert!(ours > 3, "the pages show only {ours} manifests: this test no longer finds them");
}

#[test]
fn every_example_is_what_the_crds_take() {
    let Ok(entries) = std::fs::read_dir(root().join("examples")) else { return };
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.extension().is_some_and(|extension| extension == "yaml") {
            check(&path.display().to_string(), &std::fs::read_to_string(&path).unwrap());
        }
    }
}
