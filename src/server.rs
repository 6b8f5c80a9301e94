//! The probes and the metrics page.

use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::controller::Health;
use crate::telemetry::Metrics;

/// Serves `/livez`, `/readyz` and `/metrics`, until it is stopped.
pub async fn serve(
    listener: TcpListener,
    health: Health,
    clock: Clock,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    let live = {
        let (health, clock) = (health.clone(), Arc::clone(&clock));
        move || said(health.is_live(clock()), "live", "the timers stand still")
    };
    let ready = move || match health.why_not_ready(clock()) {
        None => (StatusCode::OK, "ready".to_owned()),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, why),
    };
    let page = move || {
        ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], metrics.page())
    };
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
