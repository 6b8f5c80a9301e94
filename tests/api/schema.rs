//! The CRDs as files: that they are what the types say, and that everything in them is bounded and documented.

use std::{fs, path::Path};

use instance_access::api;
use serde_json::Value;

/// Set to write `crds/` anew.
const UPDATE: &str = "UPDATE_CRDS";

/// The CRDs, as they are applied.
fn crds() -> Vec<(String, Value)> {
    let crds = api::crds_yaml().into_iter();
    crds.map(|(name, yaml)| (name, serde_yaml::from_str(&yaml).expect("the CRD is YAML"))).collect()
}

#[test]
fn the_files_in_crds_are_generated_from_the_types() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("crds");
    let mut expected = Vec::new();
    for (name, yaml) in api::crds_yaml() {
        let file = format!("{name}.yaml");
        let yaml = format!("# Generated from src/api; {UPDATE}=1 cargo test --test api writes it anew.\n{yaml}");
        if std::env::var_os(UPDATE).is_some() {
            fs::write(dir.join(&file), &yaml).unwrap();
        }
        let stands = fs::read_to_string(dir.join(&file)).unwrap_or_default();
        assert!(stands == yaml, "crds/{file} is stale; run {UPDATE}=1 cargo test --test api");
        expected.push(file);
    }
    let mut there: Vec<_> =
        fs::read_dir(&dir).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
    there.sort();
    expected.sort();
    assert_eq!(there, expected);
}

/// What a schema breaks of the project's rules, each finding with its path.
fn findings(path: &str, schema: &Value, findings: &mut Vec<String>) {
    let mut say = |what: &str| findings.push(format!("{path}: {what}"));
    let object = schema.as_object().expect("a schema is an object");
    let known = [
        "type",
        "description",
        "properties",
        "required",
        "items",
        "additionalProperties",
        "enum",
        "format",
        "pattern",
        "minLength",
        "maxLength",
        "minItems",
        "maxItems",
        "minProperties",
        "maxProperties",
        "minimum",
        "maximum",
        "default",
        "x-kubernetes-validations",
        "x-kubernetes-list-type",
        "x-kubernetes-list-map-keys",
    ];
    for key in object.keys().filter(|key| !known.contains(&key.as_str())) {
        say(&format!("has {key}, which no rule here knows")); // nullable, oneOf, anyOf, x-kubernetes-preserve-…
    }
    match schema["type"].as_str() {
        Some("string") => {
            let bounded =
                ["maxLength", "enum"].iter().any(|key| object.contains_key(*key)) || schema["format"] == "date-time";
            if !bounded {
                say("a string without maxLength, enum or date-time");
            }
        }
        Some("array") => {
            if !object.contains_key("maxItems") {
                say("a list without maxItems");
            }
            if schema["items"].get("default").is_some() {
                say("a default inside list items");
            }
        }
        Some("object") => {
            if object.contains_key("additionalProperties") && !object.contains_key("maxProperties") {
                say("a map without maxProperties");
            }
            if !object.contains_key("additionalProperties") && !object.contains_key("properties") {
                say("an object without fields");
            }
        }
        Some("integer") => {
            if !["int32", "int64"].iter().any(|format| schema["format"] == *format) {
                say("an integer that is neither int32 nor int64");
            }
        }
        Some("boolean") => {}
        other => say(&format!("of type {other:?}")),
    }
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        match field["description"].as_str() {
            Some(text) if text.ends_with(['.', '…']) => {}
            other => findings.push(format!("{path}: described as {other:?}, not in a sentence")),
        }
        self::findings(&path, field, findings);
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = object.get(key) {
            self::findings(&format!("{path}[]"), inner, findings);
        }
    }
}

#[test]
fn every_field_is_bounded_and_described_and_nothing_is_nullable() {
    let mut found = Vec::new();
    for (name, crd) in crds() {
        for version in crd["spec"]["versions"].as_array().unwrap() {
            findings(&name, &version["schema"]["openAPIV3Schema"], &mut found);
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn an_optional_choice_is_explained_by_its_field_and_not_by_its_type() {
    let (_, crd) = crds().remove(0);
    let spec = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"];
    let explained = |field: &Value| field["description"].as_str().unwrap().to_owned();
    assert!(explained(&spec["keyDelivery"]).contains("Left out: Continuous"), "{}", spec["keyDelivery"]);
    let method = &spec["connection"]["properties"]["method"];
    assert!(explained(method).contains("Left out: Auto"), "{method}");
}
