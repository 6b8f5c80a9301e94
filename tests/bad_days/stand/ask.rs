//! What people ask, and how the answer is read back.

use anyhow::Context;
use http::{Method, Request};
use instance_access::api::InstanceAccess;
use jiff::Timestamp;
use kube::Client;
use serde_json::{Value, json};

use super::{NAMESPACE, Outcome, Stand};

const RESOURCES: &str = "/apis/instanceaccess.dev/v1alpha1/namespaces";

/// A request, as somebody writes it.
#[derive(Clone, Debug)]
pub struct Ask {
    pub name: String,
    pub namespace: String,
    pub metadata: Value,
    pub spec: Value,
}

impl Ask {
    /// A request for ec2-user with the stand's own key; it still lacks a target.
    pub fn new(name: &str) -> Self {
        let spec = json!({"osUser": "ec2-user"});
        Self { name: name.to_owned(), namespace: NAMESPACE.to_owned(), metadata: json!({}), spec }
    }

    /// For this instance.
    pub fn instance(self, id: &str) -> Self {
        self.with("target", json!({"instanceId": id}))
    }

    /// With this field of the spec.
    pub fn with(mut self, field: &str, value: Value) -> Self {
        self.spec[field] = value;
        self
    }

    /// With this field of the metadata.
    pub fn with_metadata(mut self, field: &str, value: Value) -> Self {
        self.metadata[field] = value;
        self
    }

    /// Until so many seconds from now, which may be less than ttlSeconds can say.
    pub fn ends_in(self, seconds: i64) -> Self {
        let end_time = Timestamp::from_second(Timestamp::now().as_second() + seconds).expect("a near time");
        self.with("endTime", json!(end_time.to_string()))
    }

    /// With this key.
    pub fn key(self, text: &str) -> Self {
        self.with("sshPublicKey", json!(text))
    }

    fn body(&self, key: &str) -> Vec<u8> {
        let mut metadata = self.metadata.clone();
        metadata["name"] = json!(self.name);
        let mut spec = self.spec.clone();
        if spec.get("sshPublicKey").is_none() {
            spec["sshPublicKey"] = json!(key);
        }
        let object = json!({
            "apiVersion": "instanceaccess.dev/v1alpha1",
            "kind": "InstanceAccess",
            "metadata": metadata,
            "spec": spec,
        });
        object.to_string().into_bytes()
    }
}

/// One question to the API server.
impl Stand {
    async fn send(&self, who: &str, method: Method, uri: String, kind: &str, body: Vec<u8>) -> anyhow::Result<String> {
        let request = Request::builder().method(method).uri(uri).header("content-type", kind).body(body)?;
        Ok(self.client(who).await?.request_text(request).await?)
    }

    /// Creates a request.
    pub async fn create(&self, who: &str, ask: &Ask) -> anyhow::Result<InstanceAccess> {
        let uri = format!("{RESOURCES}/{}/instanceaccesses", ask.namespace);
        Ok(serde_json::from_str(&self.send(who, Method::POST, uri, "application/json", ask.body(&self.key)).await?)?)
    }

    /// Asks what would become of it at the door.
    pub async fn dry_run(&self, who: &str, ask: &Ask) -> anyhow::Result<InstanceAccess> {
        let uri = format!("{RESOURCES}/{}/instanceaccesses?dryRun=All", ask.namespace);
        Ok(serde_json::from_str(&self.send(who, Method::POST, uri, "application/json", ask.body(&self.key)).await?)?)
    }

    /// alice asks.
    pub async fn ask(&self, ask: Ask) -> anyhow::Result<InstanceAccess> {
        self.create("alice", &ask).await
    }

    /// The refusal at the door, as the API server words it: the message, and all that comes with it.
    pub async fn refusal(&self, who: &str, ask: &Ask) -> anyhow::Result<(String, String)> {
        match self.create(who, ask).await {
            Ok(_) => anyhow::bail!("{} was let in", ask.name),
            Err(error) => match error.downcast_ref::<kube::Error>() {
                Some(kube::Error::Api(status)) => Ok((status.message.clone(), format!("{status:?}"))),
                _ => Err(error),
            },
        }
    }

    /// Reads a request.
    pub async fn get(&self, name: &str) -> anyhow::Result<InstanceAccess> {
        let uri = format!("{RESOURCES}/{NAMESPACE}/instanceaccesses/{name}");
        Ok(serde_json::from_str(&self.send("admin", Method::GET, uri, "application/json", vec![]).await?)?)
    }

    /// Reads every request of the namespace.
    pub async fn list(&self) -> anyhow::Result<Vec<InstanceAccess>> {
        let uri = format!("{RESOURCES}/{NAMESPACE}/instanceaccesses");
        let text = self.send("admin", Method::GET, uri, "application/json", vec![]).await?;
        let list: Value = serde_json::from_str(&text)?;
        Ok(serde_json::from_value(list["items"].clone())?)
    }

    /// Merges into a request.
    pub async fn merge(&self, who: &str, name: &str, patch: Value) -> anyhow::Result<InstanceAccess> {
        let uri = format!("{RESOURCES}/{NAMESPACE}/instanceaccesses/{name}");
        let kind = "application/merge-patch+json";
        Ok(serde_json::from_str(&self.send(who, Method::PATCH, uri, kind, patch.to_string().into_bytes()).await?)?)
    }

    /// Deletes a request; it is gone when the operator lets it go.
    pub async fn delete(&self, who: &str, name: &str) -> anyhow::Result<()> {
        let uri = format!("{RESOURCES}/{NAMESPACE}/instanceaccesses/{name}");
        self.send(who, Method::DELETE, uri, "application/json", vec![]).await.map(drop)
    }

    /// Deletes every request of the namespace.
    pub async fn delete_all(&self, who: &str) -> anyhow::Result<()> {
        let uri = format!("{RESOURCES}/{NAMESPACE}/instanceaccesses");
        self.send(who, Method::DELETE, uri, "application/json", vec![]).await.map(drop)
    }

    /// Reads anything, as it is.
    pub async fn read(&self, uri: &str) -> anyhow::Result<String> {
        self.send("admin", Method::GET, uri.to_owned(), "application/json", vec![]).await
    }
}

/// A decision about a request.
pub fn decision(name: &str, about: &str, kind: &str, uid: &str, digest: &str) -> Value {
    json!({
        "apiVersion": "instanceaccess.dev/v1alpha1",
        "kind": "InstanceAccessDecision",
        "metadata": {"name": name},
        "spec": {"decision": kind, "requestRef": {"name": about, "uid": uid, "specDigest": digest}},
    })
}

/// Says it.
pub async fn decide(client: &Client, decision: &Value) -> Outcome {
    let uri = format!("{RESOURCES}/{NAMESPACE}/instanceaccessdecisions");
    let request =
        Request::post(uri).header("content-type", "application/json").body(decision.to_string().into_bytes())?;
    client.request_text(request).await.map(drop).with_context(|| decision.to_string())
}
