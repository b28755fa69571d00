//! The controller's own port: `/metrics`, `/livez`, `/readyz`.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::json;

use crate::{readiness::Readiness, telemetry::Metrics};

#[derive(Clone)]
struct Shared {
    metrics: Arc<Metrics>,
    readiness: Readiness,
}

/// The routes. Alive is to answer; ready is to wait for nothing, and 503 lists what is waited for.
pub fn router(metrics: Arc<Metrics>, readiness: Readiness) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(scrape))
        .with_state(Shared { metrics, readiness })
}

async fn ready(State(shared): State<Shared>) -> Response {
    let waiting_for = shared.readiness.waiting_for();
    let status = if waiting_for.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({"ready": waiting_for.is_empty(), "waitingFor": waiting_for}))).into_response()
}

async fn scrape(State(shared): State<Shared>) -> Response {
    match shared.metrics.render() {
        Ok(text) => {
            ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
                .into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    /// Status and body of an answer, over a real connection.
    async fn get(readiness: &Readiness, path: &str) -> (u16, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = router(Arc::new(Metrics::new()), readiness.clone());
        tokio::spawn(axum::serve(listener, router).into_future());
        let mut connection = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: probe\r\nConnection: close\r\n\r\n");
        connection.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    async fn ready(readiness: &Readiness) -> (u16, Value) {
        let (status, body) = get(readiness, "/readyz").await;
        (status, serde_json::from_str(&body).unwrap())
    }

    #[tokio::test]
    async fn while_something_is_waited_for_the_answer_is_503_and_lists_it() {
        let readiness = Readiness::default();
        readiness.wait("permissions", "missing: patch services");
        let list = readiness.await_list("Pod", None);
        let waiting_for =
            json!({"permissions": "missing: patch services", "list Pod": "the first list is not complete"});
        assert_eq!(ready(&readiness).await, (503, json!({"ready": false, "waitingFor": waiting_for})));
        assert_eq!(get(&readiness, "/livez").await, (200, "ok".to_owned()), "it waits, and is alive");

        list.done();
        let waiting_for = json!({"permissions": "missing: patch services"});
        assert_eq!(ready(&readiness).await, (503, json!({"ready": false, "waitingFor": waiting_for})));

        readiness.clear("permissions");
        assert_eq!(ready(&readiness).await, (200, json!({"ready": true, "waitingFor": {}})));
    }

    #[tokio::test]
    async fn the_metrics_are_open_metrics() {
        let (status, text) = get(&Readiness::default(), "/metrics").await;
        assert_eq!(status, 200);
        assert!(text.contains("# EOF"), "{text}");
    }
}
