//! A request or a decision as a watch tells of it, of which no more is read than is wanted.
//!
//! Most of what a watch tells of requests are our own writes, coming back: who they are about, and in which version, is
//! enough to know that. And one object that cannot be decoded must not stop the watch over all others; nor must many that
//! are large take the memory: as text they are far smaller than decoded, and one is decoded at a time.

use std::marker::PhantomData;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Resource;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;

/// An object that was read as far as its identity.
#[derive(Clone, Debug)]
pub struct Watched<K> {
    /// Name, namespace, uid, resourceVersion and deletionTimestamp; nothing else.
    pub metadata: ObjectMeta,
    text: Box<RawValue>,
    kind: PhantomData<fn() -> K>,
}

impl<K> Watched<K> {
    /// Reads the rest.
    ///
    /// # Errors
    /// If it is no such object as this version knows it.
    pub fn decode(&self) -> Result<K, serde_json::Error>
    where
        K: DeserializeOwned,
    {
        serde_json::from_str(self.text.get())
    }

    /// The whole object, as it stands; null, if it is nested deeper than anybody reads.
    pub fn plain(&self) -> Value {
        serde_json::from_str(self.text.get()).unwrap_or_default()
    }
}

impl<'de, K> Deserialize<'de> for Watched<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Box::<RawValue>::deserialize(deserializer)?;
        let Head { metadata } = serde_json::from_str(text.get()).map_err(serde::de::Error::custom)?;
        let Identity { name, namespace, uid, resource_version, deletion_timestamp } = metadata;
        let metadata =
            ObjectMeta { name, namespace, uid, resource_version, deletion_timestamp, ..ObjectMeta::default() };
        Ok(Self { metadata, text, kind: PhantomData })
    }
}

#[derive(Deserialize)]
struct Head {
    metadata: Identity,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Identity {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    deletion_timestamp: Option<Time>,
}

impl<K: Resource> Resource for Watched<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(types: &Self::DynamicType) -> std::borrow::Cow<'_, str> {
        K::kind(types)
    }

    fn group(types: &Self::DynamicType) -> std::borrow::Cow<'_, str> {
        K::group(types)
    }

    fn version(types: &Self::DynamicType) -> std::borrow::Cow<'_, str> {
        K::version(types)
    }

    fn plural(types: &Self::DynamicType) -> std::borrow::Cow<'_, str> {
        K::plural(types)
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use kube::core::{ObjectList, WatchEvent};

    use super::*;
    use crate::api::InstanceAccess;

    const REQUEST: &str = r#"{"apiVersion":"instanceaccess.dev/v1alpha1","kind":"InstanceAccess",
        "metadata":{"name":"a","namespace":"b","uid":"c","resourceVersion":"7","generation":2,"managedFields":[{}]},
        "spec":{"target":{"instanceId":"i-0123456789abcdef0"},"osUser":"ec2-user","sshPublicKey":"ssh-ed25519 AAAA"}}"#;

    #[test]
    fn a_watch_and_a_list_are_read_as_the_api_server_writes_them() {
        let event = format!(r#"{{"type":"ADDED","object":{REQUEST}}}"#);
        let WatchEvent::Added(watched) = serde_json::from_str::<WatchEvent<Watched<InstanceAccess>>>(&event).unwrap()
        else {
            panic!("it was added")
        };
        let list = format!(
            r#"{{"apiVersion":"instanceaccess.dev/v1alpha1","kind":"InstanceAccessList","metadata":{{"resourceVersion":"9"}},"items":[{REQUEST}]}}"#
        );
        let listed = serde_json::from_str::<ObjectList<Watched<InstanceAccess>>>(&list).unwrap().items.remove(0);
        for one in [watched, listed] {
            assert_eq!((one.metadata.uid.as_deref(), one.metadata.resource_version.as_deref()), (Some("c"), Some("7")));
            let whole = one.decode().unwrap();
            assert_eq!((whole.metadata.generation, whole.spec.os_user.as_str()), (Some(2), "ec2-user"));
        }
    }

    #[test]
    fn one_that_cannot_be_decoded_still_says_who_it_is_and_that_it_goes() {
        let text = REQUEST.replace(r#""osUser":"ec2-user""#, r#""osUser":{"not":"a login"}"#);
        let watched: Watched<InstanceAccess> = serde_json::from_str(&text).unwrap();
        assert_eq!(watched.metadata.name.as_deref(), Some("a"));
        assert!(watched.decode().is_err() && watched.metadata.deletion_timestamp.is_none());
        let text = text.replace(r#""generation":2"#, r#""deletionTimestamp":"2026-03-01T08:00:00Z""#);
        let deleted: Watched<InstanceAccess> = serde_json::from_str(&text).unwrap();
        assert!(deleted.decode().is_err() && deleted.metadata.deletion_timestamp.is_some());
        assert_eq!(watched.plain()["spec"]["osUser"]["not"], "a login");
    }

    #[test]
    fn one_that_is_nested_too_deep_harms_nobody() {
        let deep = format!("{}1{}", "[".repeat(10_000), "]".repeat(10_000));
        let watched: Watched<InstanceAccess> = serde_json::from_str(&REQUEST.replace(r#""ec2-user""#, &deep)).unwrap();
        assert!(watched.decode().is_err() && watched.plain().is_null());
    }
}
