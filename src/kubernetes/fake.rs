//! For tests: an API server that is none, behind the client that asks a real one.

use axum::handler::Handler;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Config};
use tokio::net::TcpListener;

use super::client::client_of;

/// An API server that answers everything so, as it is asked for ConfigMaps.
pub async fn served<T: 'static>(answer: impl Handler<T, ()>) -> Api<ConfigMap> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    // Ends with the test's runtime.
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(answer)).await });
    Api::namespaced(client_of(Config::new(url)).unwrap(), "team-a")
}

/// An API server that sheds load, and would have us wait for an hour.
pub fn busy() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "3600")], "not now").into_response()
}
