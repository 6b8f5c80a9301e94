//! Whether the admission policies and the CRDs stand in the cluster as they are shipped.
//!
//! Each is one object by name, a [`Piece`]: the right to look at it needs no more than its name. What the mutating policy
//! fills in, the validating ones check; so it need not be there (Kubernetes below 1.36), but one that is there and was
//! bent could fill in another key, or another login, under the name of whoever asks.
//!
//! Whether the API server has begun to enforce what stands is not seen here; it takes it up within seconds.

use jiff::Timestamp;
use kube::{
    Api, Client,
    core::{ApiResource, DynamicObject, GroupVersionKind, ObjectMeta, TypeMeta},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{MUTATING, VALIDATING, Writers};
use crate::api;

/// An object that must stand as it is shipped.
#[derive(Clone, Debug)]
pub struct Piece {
    ours: DynamicObject,
    kind: String,
    resource: ApiResource,
    needed: bool,
}

/// How a piece stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// As it is shipped.
    Sound {
        /// Another one: it was deleted and made again.
        uid: String,
        /// Another one: its spec was changed.
        generation: i64,
        /// When its spec was last changed, by its own account; none if it keeps none.
        changed_time: Option<Timestamp>,
    },
    /// It is not there.
    Absent {
        /// Whether it must be.
        needed: bool,
    },
    /// It is there, but not as it is shipped: how.
    Bent(&'static str),
}

/// Returns the policies, their bindings and the CRDs, as they must stand for these accounts.
pub fn pieces(writers: &Writers) -> Vec<Piece> {
    let policies = |text, needed| objects(&writers.render(text)).into_iter().map(move |ours| (ours, needed));
    let crds = api::crds_yaml().into_iter().flat_map(|(_, yaml)| objects(&yaml)).map(|ours| (ours, true));
    let all = policies(VALIDATING, true).chain(policies(MUTATING, false)).chain(crds);
    all.map(|(ours, needed)| {
        let gvk = gvk(ours.types.as_ref());
        Piece { kind: gvk.kind.clone(), resource: ApiResource::from_gvk(&gvk), ours, needed }
    })
    .collect()
}

fn objects(yaml: &str) -> Vec<DynamicObject> {
    let objects = serde_yaml::Deserializer::from_str(yaml).map(DynamicObject::deserialize);
    objects.collect::<Result<_, _>>().expect("embedded, and read by a test")
}

fn gvk(types: Option<&TypeMeta>) -> GroupVersionKind {
    let types = types.expect("embedded, and read by a test");
    GroupVersionKind::try_from(types).expect("embedded, and read by a test")
}

impl Piece {
    /// Its name.
    pub fn name(&self) -> &str {
        self.ours.metadata.name.as_deref().unwrap_or_default()
    }

    /// Its kind and name, for people.
    pub fn title(&self) -> String {
        format!("{} {}", self.kind, self.name())
    }

    /// What it is called in the API server's paths and in RBAC.
    pub fn resource(&self) -> &ApiResource {
        &self.resource
    }

    /// Whether it must be there.
    pub fn is_needed(&self) -> bool {
        self.needed
    }

    /// Asks the API server how it stands; the caller bounds the time.
    ///
    /// # Errors
    /// If the API server does not answer, or does not let us look.
    pub async fn look(&self, client: &Client) -> Result<Standing, kube::Error> {
        let api = Api::<DynamicObject>::all_with(client.clone(), &self.resource);
        Ok(self.compare(api.get_opt(self.name()).await?.as_ref()))
    }

    fn compare(&self, live: Option<&DynamicObject>) -> Standing {
        let Some(live) = live else { return Standing::Absent { needed: self.needed } };
        if live.metadata.deletion_timestamp.is_some() {
            return Standing::Bent("is being deleted");
        }
        if self.essence(&live.data["spec"]) != self.essence(&self.ours.data["spec"]) {
            return Standing::Bent("is not as it was shipped");
        }
        Standing::Sound {
            uid: live.metadata.uid.clone().unwrap_or_default(),
            generation: live.metadata.generation.unwrap_or_default(),
            changed_time: changed_time(&live.metadata),
        }
    }

    /// What must be the same. Of a policy and of a binding that is all: the API server fills nothing in, as a test sees to,
    /// and what a later one may add could weaken it.
    fn essence(&self, spec: &Value) -> Value {
        if self.kind == "CustomResourceDefinition" { crd_essence(spec) } else { spec.clone() }
    }
}

/// Of a CRD's spec, what decides on what is stored and who may write it. Columns, categories and short names do not.
fn crd_essence(spec: &Value) -> Value {
    let versions = spec["versions"].as_array().into_iter().flatten().map(|version| {
        let mut schema = version["schema"].clone();
        without_descriptions(&mut schema);
        json!({
            "name": version["name"],
            "served": version["served"],
            "storage": version["storage"],
            "schema": schema,
            // Without it, status is whatever a requester writes.
            "subresources": version["subresources"],
        })
    });
    json!({
        "group": spec["group"],
        "scope": spec["scope"],
        "kind": spec["names"]["kind"],
        "plural": spec["names"]["plural"],
        // The API server fills in "None"; a webhook could rewrite what is stored.
        "conversion": spec["conversion"].get("strategy").unwrap_or(&json!("None")),
        "preserveUnknownFields": spec["preserveUnknownFields"].as_bool().unwrap_or_default(),
        "versions": versions.collect::<Vec<_>>(),
    })
}

/// Takes the words out of a schema; a property of that name is an object, and stays.
fn without_descriptions(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            fields.retain(|name, value| name != "description" || !value.is_string());
            fields.values_mut().for_each(without_descriptions);
        }
        Value::Array(items) => items.iter_mut().for_each(without_descriptions),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// When the spec was last changed, or the object made: by the times in `managedFields`, which the API server keeps and
/// does not touch where nothing changes. They survive our restarts, and who clears them is seen to have done so.
fn changed_time(metadata: &ObjectMeta) -> Option<Timestamp> {
    let entries = metadata.managed_fields.iter().flatten().filter(|entry| {
        entry.subresource.as_deref().unwrap_or_default().is_empty()
            && entry.fields_v1.as_ref().is_some_and(|fields| fields.0.get("f:spec").is_some())
    });
    // Nobody's spec, or an entry without a time: somebody wrote the account himself.
    let changes: Option<Vec<Timestamp>> = entries.map(|entry| entry.time.as_ref().map(|time| time.0)).collect();
    let last = changes?.into_iter().max()?;
    let made = metadata.creation_timestamp.as_ref()?.0;
    Some(last.max(made))
}

#[cfg(test)]
mod tests;
