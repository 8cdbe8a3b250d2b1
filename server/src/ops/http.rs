//! The operators' HTTP endpoint: metrics, and readiness with its reasons. No part of the API, on an address of its own.

use std::error::Error;

use axum::{
    Router,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use tokio::{net::TcpListener, sync::watch};
use tonic::{
    service::Routes,
    transport::{Server, server::TcpIncoming},
};

use super::{metrics::Metrics, readiness::Readiness};

/// Serves until `shutdown` resolves: `/metrics`; `/ready`, which answers 200 while commits can be made and 503 otherwise;
/// `/ready/relay`, which does while this process's relay gets on. Both tell all of [`Readiness`] as JSON.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    metrics: Metrics,
    readiness: watch::Receiver<Readiness>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    let relay = readiness.clone();
    let router = Router::new()
        .route("/metrics", get(move || metrics.clone().page()))
        .route("/ready", get(move || answer(readiness.borrow().clone(), |readiness| readiness.ready)))
        .route("/ready/relay", get(move || answer(relay.borrow().clone(), Readiness::relay_gets_on)));
    Server::builder()
        .accept_http1(true)
        .add_routes(Routes::from(router))
        .serve_with_incoming_shutdown(TcpIncoming::from(listener), shutdown)
        .await?;
    Ok(())
}

async fn answer(readiness: Readiness, is_good: impl Fn(&Readiness) -> bool) -> impl IntoResponse {
    let status = if is_good(&readiness) { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let json = serde_json::to_string(&readiness).expect("it has a JSON form");
    (status, [(header::CONTENT_TYPE, "application/json")], json)
}
