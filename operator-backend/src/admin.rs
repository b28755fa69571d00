//! The admin port: metrics, probes, load and drain, for the controller, the kubelet and Prometheus.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{ConnectInfo, Query, Request, State, rejection::QueryRejection},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use hyper::{server::conn::http1, service::Service};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use serde_json::json;
use tokio::{net::TcpListener, sync::Semaphore};

use crate::{
    answer::{ErrorAnswer, json},
    app::{App, is_ready},
    auth::bearer_token,
    drain::{Drain, Phase},
};

/// Connections at a time; probes, scrapes and the controller need a handful.
const MOST_CONNECTIONS: usize = 256;
/// Over how long a shed closes its streams; the controller looks at what came of it after ten seconds.
const SHED_WINDOW: Duration = Duration::from_secs(5);
/// How long a request head may take to arrive, also on a connection that is kept: the controller keeps its own from one
/// look to the next, for 10 s.
const HEAD_DEADLINE: Duration = Duration::from_secs(15);

/// The routes of the admin port.
pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/load", get(load))
        .route("/metrics", get(metrics))
        .route("/drain", post(begin_drain).delete(cancel_drain))
        .route("/shed", post(shed))
        .fallback(async || ErrorAnswer::new(StatusCode::NOT_FOUND, "not_found"))
        .method_not_allowed_fallback(async || {
            ErrorAnswer::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed")
        })
        .with_state(app)
}

/// Serves the admin port until the instance has stopped.
pub async fn serve(listener: TcpListener, router: Router, drain: Drain) {
    let room = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let service = TowerToHyperService::new(router);
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.stopped() => return,
        };
        let (socket, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: the pause lets some come free.
                tracing::warn!(%error, "admin port: cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let service = service.clone();
        let drain = drain.clone();
        tokio::spawn(async move {
            let with_peer = hyper::service::service_fn(move |mut request: hyper::Request<_>| {
                request.extensions_mut().insert(ConnectInfo(peer));
                service.call(request)
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_DEADLINE)
                .serve_connection(TokioIo::new(socket), with_peer);
            tokio::select! {
                // A peer that misbehaves or goes away is no event worth a line.
                _ = connection => {}
                () = drain.stopped() => {}
            }
            drop(permit);
        });
    }
}

async fn readyz(State(app): State<Arc<App>>) -> Response {
    if is_ready(&app) {
        json(StatusCode::OK, &json!({ "ready": true }))
    } else {
        json(StatusCode::SERVICE_UNAVAILABLE, &json!({ "ready": false, "reason": "draining" }))
    }
}

async fn load(State(app): State<Arc<App>>) -> Response {
    let body = json!({
        "instance_id": app.instance_id,
        "streams": app.engine.streams(),
        "issued_total": app.tokens.issued_total(),
        "draining": app.drain.phase() != Phase::Serving,
        "max_streams": app.max_streams,
    });
    json(StatusCode::OK, &body)
}

async fn metrics(State(app): State<Arc<App>>) -> Response {
    app.tokens.measure();
    let content_type = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    ([(header::CONTENT_TYPE, content_type)], app.metrics.render()).into_response()
}

/// The control token decides where one is configured; else only this host may.
fn authorise(app: &App, request: &Request) -> Result<(), ErrorAnswer> {
    let forbidden = |detail| Err(ErrorAnswer::new(StatusCode::FORBIDDEN, detail));
    let token = bearer_token(request.headers());
    match app.authenticator.identities().is_control_token(token.unwrap_or_default()) {
        Some(true) => Ok(()),
        Some(false) if token.is_none() => Err(ErrorAnswer::new(StatusCode::UNAUTHORIZED, "auth_required")),
        Some(false) => forbidden("invalid_token"),
        None => match request.extensions().get::<ConnectInfo<SocketAddr>>() {
            Some(peer) if peer.0.ip().to_canonical().is_loopback() => Ok(()),
            _ => forbidden("no control token is configured: drain from this host only"),
        },
    }
}

async fn begin_drain(State(app): State<Arc<App>>, request: Request) -> Result<Response, ErrorAnswer> {
    authorise(&app, &request)?;
    if app.drain.begin() {
        tracing::info!(streams = app.engine.streams(), "drain requested");
    }
    Ok(json(StatusCode::ACCEPTED, &json!({ "draining": true, "streams": app.engine.streams() })))
}

/// How many streams to shed.
#[derive(serde::Deserialize)]
struct Shed {
    count: usize,
}

/// Closes some streams so that they come back through the load balancer, to other instances too.
async fn shed(
    State(app): State<Arc<App>>,
    query: Result<Query<Shed>, QueryRejection>,
    request: Request,
) -> Result<Response, ErrorAnswer> {
    authorise(&app, &request)?;
    let Ok(Query(Shed { count })) = query else {
        let detail = "count must be a number of streams, as in /shed?count=40";
        return Err(ErrorAnswer::new(StatusCode::UNPROCESSABLE_ENTITY, detail));
    };
    app.engine.shed(count, SHED_WINDOW);
    tracing::info!(count, streams = app.engine.streams(), "shedding streams");
    Ok(json(StatusCode::ACCEPTED, &json!({ "shed": count, "streams": app.engine.streams() })))
}

async fn cancel_drain(State(app): State<Arc<App>>, request: Request) -> Result<Response, ErrorAnswer> {
    authorise(&app, &request)?;
    match app.drain.cancel() {
        Ok(cancelled) => {
            if cancelled {
                tracing::info!("drain cancelled");
            }
            Ok(json(StatusCode::OK, &json!({ "draining": false, "streams": app.engine.streams() })))
        }
        Err(error) => Err(ErrorAnswer::new(StatusCode::CONFLICT, error.to_string())),
    }
}
