//! The CRDs, made from the types and then held to this project's rules.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool, ValidationRule,
};
use kube::CustomResourceExt;
use serde_json::{Value, json};

use super::{InstanceAccess, InstanceAccessDecision, InstanceAccessLedgerEntry, InstanceAccessPolicy};

/// Returns all CRDs of this project, in the order in which they are applied.
pub fn crds() -> Vec<CustomResourceDefinition> {
    let mut access = InstanceAccess::crd();
    let mut policy = InstanceAccessPolicy::crd();
    let mut decision = InstanceAccessDecision::crd();
    let mut entry = InstanceAccessLedgerEntry::crd();
    for crd in [&mut access, &mut policy, &mut decision, &mut entry] {
        for version in &mut crd.spec.versions {
            if let Some(root) = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut()) {
                tidy(root);
                root.title = None; // schemars' own; the kind says it
                // A new object reads as in progress for kstatus until the operator has looked at it.
                if let Some(status) = property(root, "status") {
                    status.default = Some(k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSON(
                        json!({"observedGeneration": -1}),
                    ));
                }
            }
        }
    }
    immutable(&mut access, &["revoke"], "delete the request and make a new one");
    immutable(&mut decision, &[], "make a new decision");
    immutable(&mut entry, &[], "what was granted stays so");
    vec![access, policy, decision, entry]
}

/// Returns all CRDs as (plural name, YAML), as each stands in `crds/` and as `instance-access crds` prints it.
pub fn crds_yaml() -> Vec<(String, String)> {
    crds()
        .into_iter()
        .map(|crd| {
            let name = crd.spec.names.plural.clone();
            let mut crd = serde_json::to_value(&crd).expect("a CRD is plain data");
            whole_numbers(&mut crd);
            let yaml = serde_yaml::to_string(&crd).expect("a CRD is plain data");
            (name, yaml)
        })
        .collect()
}

/// Writes 120.0 as 120, as the API server does: a CRD's bounds are floating-point numbers in Rust.
fn whole_numbers(value: &mut Value) {
    match value {
        Value::Number(number) => {
            if let Some(float) = number.as_f64().filter(|it| it.fract() == 0.0 && it.abs() < 2f64.powi(53)) {
                #[expect(clippy::cast_possible_truncation, reason = "a whole number below 2^53")]
                let whole = float as i64;
                *number = whole.into();
            }
        }
        Value::Array(items) => items.iter_mut().for_each(whole_numbers),
        Value::Object(fields) => fields.values_mut().for_each(whole_numbers),
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

fn property<'a>(schema: &'a mut JSONSchemaProps, name: &str) -> Option<&'a mut JSONSchemaProps> {
    schema.properties.as_mut()?.get_mut(name)
}

/// Lets no field of the spec change, but those. One rule a field, so that the refusal names the field; a rule over the
/// whole spec could not leave `revoke` out.
fn immutable(crd: &mut CustomResourceDefinition, but: &[&str], remedy: &str) {
    for version in &mut crd.spec.versions {
        let root = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut());
        if let Some(spec) = root.and_then(|root| property(root, "spec")) {
            let fields = spec.properties.iter().flat_map(|fields| fields.keys());
            let rules: Vec<_> =
                fields.filter(|field| !but.contains(&field.as_str())).map(|field| rule(field, remedy)).collect();
            spec.x_kubernetes_validations.get_or_insert_default().extend(rules);
        }
    }
}

fn rule(field: &str, remedy: &str) -> ValidationRule {
    ValidationRule {
        rule: format!(
            "has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || self.{field} == oldSelf.{field})"
        ),
        message: Some(format!("is immutable; {remedy}")),
        // Forbidden, not invalid: the API server quotes what it calls invalid, and the old key is nobody's business.
        reason: Some("FieldValueForbidden".to_owned()),
        field_path: Some(format!(".{field}")),
        ..ValidationRule::default()
    }
}

/// Nothing is nullable, and kubectl explain breaks the lines.
fn tidy(schema: &mut JSONSchemaProps) {
    schema.nullable = None;
    if let Some(description) = &mut schema.description {
        let paragraphs: Vec<String> = description.split("\n\n").map(|it| it.replace('\n', " ")).collect();
        *description = paragraphs.join("\n\n");
    }
    if let Some(properties) = schema.properties.as_mut() {
        properties.values_mut().for_each(tidy);
    }
    match schema.items.as_mut() {
        Some(JSONSchemaPropsOrArray::Schema(items)) => tidy(items),
        Some(JSONSchemaPropsOrArray::Schemas(items)) => items.iter_mut().for_each(tidy),
        None => {}
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = schema.additional_properties.as_mut() {
        tidy(values);
    }
}
