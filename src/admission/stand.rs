//! Whether the validating policies stand in the cluster as they are shipped.
//!
//! Only they matter: what the mutating policy fills in, they check. Whether the API server has begun to enforce what
//! stands is not seen here; it takes it up within seconds.

use kube::{
    Api, Client,
    core::{ApiResource, DynamicObject, GroupVersionKind, TypeMeta},
};
use serde::Deserialize;

use super::{ServiceAccount, VALIDATING, rendered};

/// Returns what is missing or different, in a sentence each; nothing if all stand as they are shipped.
///
/// Asks the API server for each of six objects; the caller bounds the time.
///
/// # Errors
/// If the API server does not answer, or does not let us look.
pub async fn findings(client: &Client, operator: &ServiceAccount) -> Result<Vec<String>, kube::Error> {
    let mut findings = Vec::new();
    for ours in shipped(operator) {
        let types = ours.types.clone().unwrap_or_default();
        let kind = ApiResource::from_gvk(&gvk(&types));
        let name = ours.metadata.name.as_deref().unwrap_or_default();
        let live = Api::<DynamicObject>::all_with(client.clone(), &kind).get_opt(name).await?;
        findings.extend(finding(&types.kind, &ours, live.as_ref()));
    }
    Ok(findings)
}

/// The validating policies and their bindings.
fn shipped(operator: &ServiceAccount) -> Vec<DynamicObject> {
    let yaml = rendered(VALIDATING, operator);
    let objects = serde_yaml::Deserializer::from_str(&yaml).map(DynamicObject::deserialize);
    objects.collect::<Result<_, _>>().expect("embedded, and read by a test")
}

fn gvk(types: &TypeMeta) -> GroupVersionKind {
    GroupVersionKind::try_from(types).expect("embedded, and read by a test")
}

fn finding(kind: &str, ours: &DynamicObject, live: Option<&DynamicObject>) -> Option<String> {
    let name = ours.metadata.name.as_deref().unwrap_or_default();
    let wrong = match live {
        None => "is missing",
        Some(live) if live.metadata.deletion_timestamp.is_some() => "is being deleted",
        Some(live) if live.data["spec"] != ours.data["spec"] => "is not as it was shipped",
        Some(_) => return None,
    };
    Some(format!("{kind} {name} {wrong}"))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use serde_json::json;

    use super::*;

    fn operator() -> ServiceAccount {
        ServiceAccount::new("access", "broker").unwrap()
    }

    #[track_caller]
    fn check(bend: impl Fn(&mut DynamicObject), words: Option<&str>) {
        for ours in shipped(&operator()) {
            let mut live = ours.clone();
            bend(&mut live);
            let kind = gvk(ours.types.as_ref().unwrap()).kind;
            let found = finding(&kind, &ours, Some(&live));
            assert_eq!(found.is_some(), words.is_some(), "{found:?}");
            assert!(
                found.iter().all(|it| it.starts_with("Validating") && it.contains(words.unwrap_or_default())),
                "{found:?}"
            );
        }
    }

    #[test]
    fn all_six_objects_are_looked_for() {
        let kinds: Vec<_> = shipped(&operator()).iter().map(|it| gvk(it.types.as_ref().unwrap()).kind).collect();
        let (policy, binding) = ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding");
        assert_eq!(kinds, [policy, binding, policy, binding, policy, binding]);
        for ours in shipped(&operator()) {
            assert!(finding("It", &ours, None).unwrap().ends_with("is missing"));
        }
    }

    #[test]
    fn a_policy_stands_whatever_the_api_server_adds_to_its_metadata() {
        check(|live| live.metadata.uid = Some("1".to_owned()), None);
        check(|live| live.data["status"] = json!({"observedGeneration": 1}), None);
    }

    #[test]
    fn a_policy_that_was_bent_or_goes_does_not_stand() {
        let bent = Some("is not as it was shipped");
        check(|live| live.data["spec"]["validationActions"] = json!(["Audit"]), bent);
        check(|live| live.data["spec"]["failurePolicy"] = json!("Ignore"), bent);
        check(
            |live| live.data["spec"]["matchResources"] = json!({"namespaceSelector": {"matchLabels": {"a": "b"}}}),
            bent,
        );
        check(
            |live| live.metadata.deletion_timestamp = Some(Time(jiff::Timestamp::UNIX_EPOCH)),
            Some("is being deleted"),
        );
    }

    #[test]
    fn policies_for_another_operator_do_not_stand() {
        let other = shipped(&ServiceAccount::new("access", "other").unwrap());
        let found: Vec<_> = shipped(&operator())
            .iter()
            .zip(&other)
            .filter_map(|(ours, live)| finding("It", ours, Some(live)))
            .collect();
        assert_eq!(found.len(), 2, "both policies name it, and no binding: {found:?}");
    }
}
