//! The measure: the writes of a grant and nothing else, by a plain client, straight to the API server.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use http::Request;
use kube::Client;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use super::objects::{Group, LOOP, Light, Wish};

/// The statuses that the controller wrote for one request, in order: what the loop writes again.
#[derive(Clone, Debug)]
pub struct Statuses {
    pub granting: Value,
    pub granted: Value,
    pub ended: Value,
}

/// An object of the loop's, as it stands.
#[derive(Clone, Debug)]
pub struct Held {
    object: Value,
}

/// Creates a request; returns what the API server made of it.
pub async fn create(client: &Client, group: Group, wish: &Wish) -> anyhow::Result<Light> {
    let (request, _) = creation(group, wish)?;
    Ok(client.request(request).await?)
}

fn creation(group: Group, wish: &Wish) -> anyhow::Result<(Request<Vec<u8>>, Value)> {
    let object = wish.object(group);
    let uri = format!("{}?fieldManager=bench", group.requests());
    let request = Request::post(uri).header("content-type", "application/json").body(serde_json::to_vec(&object)?)?;
    Ok((request, object))
}

/// The loop's clients: the requester's, and the operator's, who alone may write status.
#[derive(Clone)]
pub struct Plain {
    pub requester: Client,
    pub operator: Client,
    pub statuses: Arc<Statuses>,
}

impl Plain {
    /// One request up to `Active`: a creation and two writes of status. Returns how long that took.
    pub async fn grant(&self, wish: &Wish) -> anyhow::Result<(Duration, Held)> {
        let start = Instant::now();
        let (request, object) = creation(LOOP, wish)?;
        let light: Light = self.requester.request(request).await?;
        let mut held = Held { object };
        held.object["metadata"]["uid"] = json!(light.metadata.uid);
        held.note(light);
        self.write(&mut held, &self.statuses.granting).await?;
        self.write(&mut held, &self.statuses.granted).await?;
        Ok((start.elapsed(), held))
    }

    /// The third write.
    pub async fn end(&self, held: &mut Held) -> anyhow::Result<()> {
        self.write(held, &self.statuses.ended).await
    }

    async fn write(&self, held: &mut Held, status: &Value) -> anyhow::Result<()> {
        held.object["status"] = status.clone();
        let name = held.object["metadata"]["name"].as_str().unwrap_or_default();
        let uri = format!("{}/status?fieldManager=instance-access", LOOP.request(name));
        let body = serde_json::to_vec(&held.object)?;
        let request = Request::put(uri).header("content-type", "application/json").body(body)?;
        held.note(self.operator.request(request).await?);
        Ok(())
    }

    /// Many requests up to `Active`, by so many workers.
    pub async fn grant_all(&self, wishes: &[Wish], workers: usize) -> anyhow::Result<(Duration, Vec<Held>)> {
        let held = Arc::new(Mutex::new(Vec::with_capacity(wishes.len())));
        let elapsed = all(wishes.to_vec(), workers, {
            let (plain, held) = (self.clone(), Arc::clone(&held));
            move |wish| {
                let (plain, held) = (plain.clone(), Arc::clone(&held));
                async move {
                    let (_, one) = plain.grant(&wish).await?;
                    held.lock().await.push(one);
                    Ok(())
                }
            }
        })
        .await?;
        Ok((elapsed, Arc::into_inner(held).context("a worker still holds the list")?.into_inner()))
    }

    /// Ends many, by so many workers.
    pub async fn end_all(&self, held: Vec<Held>, workers: usize) -> anyhow::Result<Duration> {
        let plain = self.clone();
        all(held, workers, move |mut one| {
            let plain = plain.clone();
            async move { plain.end(&mut one).await }
        })
        .await
    }
}

impl Held {
    fn note(&mut self, light: Light) {
        self.object["metadata"]["resourceVersion"] = json!(light.metadata.resource_version);
    }
}

/// Does something for all items, by so many workers; returns how long that took.
pub async fn all<T, F, Fut>(items: Vec<T>, workers: usize, each: F) -> anyhow::Result<Duration>
where
    T: Clone + Send + Sync + 'static,
    F: Fn(T) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = anyhow::Result<()>> + Send,
{
    let (items, next) = (Arc::new(items), Arc::new(AtomicUsize::new(0)));
    let start = Instant::now();
    let mut running = JoinSet::new();
    for _ in 0..workers {
        let (items, next, each) = (Arc::clone(&items), Arc::clone(&next), each.clone());
        running.spawn(async move {
            while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                each(item.clone()).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = running.join_next().await {
        done??;
    }
    Ok(start.elapsed())
}
