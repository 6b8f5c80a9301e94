//! The probes and the metrics page.

use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::controller::{Health, WhyNotReady};
use crate::telemetry::Metrics;

/// What is served.
pub struct Pages {
    /// Whether the process does its work; if not, it is to be started anew.
    pub is_live: Box<dyn Fn() -> bool + Send + Sync>,
    /// Why it cannot do its work just now, if so.
    pub why_not_ready: Box<dyn Fn() -> Option<String> + Send + Sync>,
    /// The metrics page, in the OpenMetrics text format.
    pub metrics: Box<dyn Fn() -> String + Send + Sync>,
}

impl Pages {
    /// The controller's. One that has no health yet stands by, and is ready if it would take over.
    pub fn of_controller(
        health: Arc<OnceLock<Health>>,
        standing_by: WhyNotReady,
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> Self {
        let live = {
            let (health, clock) = (Arc::clone(&health), Arc::clone(&clock));
            move || health.get().is_none_or(|health| health.is_live(clock()))
        };
        Self {
            is_live: Box::new(live),
            why_not_ready: Box::new(move || match health.get() {
                Some(health) => health.why_not_ready(clock()),
                None => standing_by().map(str::to_owned),
            }),
            metrics: Box::new(move || metrics.page()),
        }
    }
}

/// Serves `/livez`, `/readyz` and `/metrics`, until it is stopped.
pub async fn serve(listener: TcpListener, pages: Pages, stop: CancellationToken) {
    let Pages { is_live, why_not_ready, metrics } = pages;
    let (is_live, why_not_ready, metrics) = (Arc::new(is_live), Arc::new(why_not_ready), Arc::new(metrics));
    let live = move || said(is_live(), "live", "the timers stand still");
    let ready = move || match why_not_ready() {
        None => (StatusCode::OK, "ready".to_owned()),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, why),
    };
    let page =
        move || ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], metrics());
    let router = Router::new()
        .route("/livez", get(|| async move { live() }))
        .route("/readyz", get(|| async move { ready() }))
        .route("/metrics", get(|| async move { page() }));
    let served = axum::serve(listener, router).with_graceful_shutdown(async move { stop.cancelled().await }).await;
    if let Err(error) = served {
        tracing::error!(%error, "the probes' server stopped");
    }
}

fn said(holds: bool, yes: &'static str, no: &'static str) -> impl IntoResponse {
    if holds { (StatusCode::OK, yes) } else { (StatusCode::SERVICE_UNAVAILABLE, no) }
}
