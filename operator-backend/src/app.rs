//! The public port: routes, what each needs and answers. See the wire contract in `docs/protocol.md`.

mod publish;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use axum::{
    Router,
    body::Body,
    extract::{ConnectInfo, Request, State},
    http::{Extensions, HeaderMap, HeaderValue, Method, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{any, get, post},
};
use serde_json::json;

use crate::{
    answer::{ErrorAnswer, json, json_text},
    auth::Authenticator,
    client_address::TrustedProxies,
    config::Config,
    correlation::{CORRELATION_HEADER, CorrelationId},
    cors::AllowedOrigins,
    drain::{Drain, Phase},
    events::EventLog,
    identity::Principal,
    limits::{RateLimiter, address_key, retry_after},
    metrics::Metrics,
    redis_link::{LinkState, RedisLink},
    stream::Engine,
    token::{Tokens, signed::TOKEN_LENGTH},
};

/// Where tokens are issued.
pub const TOKEN_PATH: &str = "/operator/api/events/sse-token";
/// Where streams are opened.
pub const STREAM_PATH: &str = "/operator/api/events/stream";
/// Where events are published.
pub const PUBLISH_PATH: &str = "/operator/api/events";
const HEALTH_PATHS: [&str; 2] = ["/health", "/operator/api/health"];
const CACHE_STATS_PATH: &str = "/operator/internal/cache-stats";
const INSTANCE_ID_PATH: &str = "/operator/internal/instance-id";

/// Everything that requests need; one per process.
pub struct App {
    /// Name of this instance.
    pub instance_id: String,
    /// Most streams that this instance takes, 0 = no limit.
    pub max_streams: u32,
    /// Decides about credentials.
    pub authenticator: Authenticator,
    /// Issues tokens.
    pub tokens: Tokens,
    /// The way to Redis, if there is one.
    pub link: Option<RedisLink>,
    /// Takes published events.
    pub events: EventLog,
    /// Carries the streams.
    pub engine: Engine,
    /// Whether this instance drains.
    pub drain: Drain,
    /// What everything is counted in.
    pub metrics: Arc<Metrics>,
    origins: AllowedOrigins,
    proxies: TrustedProxies,
    per_principal: Option<RateLimiter<Principal>>,
    per_address: Option<RateLimiter<u128>>,
    /// What follows the token in the answer that carries it.
    token_answer_tail: String,
}

/// The parts of an [`App`] that are started before it.
pub struct Parts {
    /// See [`App::authenticator`].
    pub authenticator: Authenticator,
    /// See [`App::tokens`].
    pub tokens: Tokens,
    /// See [`App::link`].
    pub link: Option<RedisLink>,
    /// See [`App::events`].
    pub events: EventLog,
    /// See [`App::engine`].
    pub engine: Engine,
    /// See [`App::drain`].
    pub drain: Drain,
    /// See [`App::metrics`].
    pub metrics: Arc<Metrics>,
}

impl App {
    /// An application of these parts.
    #[must_use]
    pub fn new(config: &Config, parts: Parts) -> Self {
        let Parts { authenticator, tokens, link, events, engine, drain, metrics } = parts;
        let life = config.token.ttl_seconds;
        Self {
            instance_id: config.instance_id(),
            max_streams: config.limits.max_clients,
            authenticator,
            tokens,
            link,
            events,
            engine,
            drain,
            metrics,
            origins: config.auth.allowed_origins.clone(),
            proxies: config.auth.trusted_proxies.clone(),
            per_principal: RateLimiter::new(config.limits.issue_rate_per_principal),
            per_address: RateLimiter::new(config.limits.issue_rate_per_address),
            token_answer_tail: format!(
                r#"","expires_in_sec":{life},"ttl_sec":{life},"endpoint":"{STREAM_PATH}"}}"#
            ),
        }
    }

    /// What works less well than it should, in words for people; empty when all is well.
    #[must_use]
    pub fn degradations(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if let Some(link) = &self.link {
            match link.state() {
                LinkState::Down(reason) => reasons.push(format!("redis is away: {reason}")),
                LinkState::Up if link.refuses_writes() => reasons.push("redis refuses writes".to_owned()),
                LinkState::Up => {}
            }
        }
        if self.authenticator.identities().principals().is_empty() {
            reasons.push("no principal token is configured".to_owned());
        }
        reasons
    }

    fn client_address(&self, headers: &HeaderMap, extensions: &Extensions) -> IpAddr {
        let peer = extensions.get::<ConnectInfo<SocketAddr>>();
        self.proxies.client(peer.map_or(Ipv4Addr::UNSPECIFIED.into(), |peer| peer.0.ip()), headers)
    }

    /// Takes one issuance from the buckets of the principal and of the client's address.
    fn limit_issuance(&self, principal: &Principal, request: &Request) -> Result<(), ErrorAnswer> {
        let by_address = || {
            let limiter = self.per_address.as_ref()?;
            limiter.take(address_key(self.client_address(request.headers(), request.extensions()))).err()
        };
        let by_principal = || self.per_principal.as_ref()?.take(principal.clone()).err();
        match by_address().or_else(by_principal) {
            None => Ok(()),
            Some(wait) => {
                self.metrics.rate_limited.inc();
                let answer = ErrorAnswer::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited");
                Err(answer.retry_after(retry_after(wait)))
            }
        }
    }
}

/// The routes of the public port. `/operator/api/events/stream` is here for streams that arrive on reused
/// connections or over HTTP/2; the engine takes the others before they get here.
pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route(TOKEN_PATH, get(issue_token).post(issue_token))
        .route(STREAM_PATH, any(open_stream))
        .route(PUBLISH_PATH, post(publish::publish))
        .route(HEALTH_PATHS[0], get(health))
        .route(HEALTH_PATHS[1], get(health))
        .route(CACHE_STATS_PATH, get(cache_stats))
        .route(INSTANCE_ID_PATH, get(instance_id))
        .fallback(async || ErrorAnswer::new(StatusCode::NOT_FOUND, "not_found"))
        .method_not_allowed_fallback(async || {
            ErrorAnswer::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed")
        })
        .layer(middleware::from_fn_with_state(Arc::clone(&app), around))
        .with_state(app)
}

/// What every request and every answer has in common: the correlation id, CORS, counted errors.
async fn around(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let correlation = CorrelationId::of(request.headers());
    let allow = app.origins.allow(request.headers());
    let method = request.method().clone();
    let route = known(request.uri().path());

    let mut response = if method == Method::OPTIONS {
        let mut response = StatusCode::NO_CONTENT.into_response();
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, POST, OPTIONS"));
        if allow.is_some() {
            AllowedOrigins::preflight(response.headers_mut());
        }
        response
    } else {
        if route == STREAM_PATH {
            // A stream tells its id in its first event.
            request.extensions_mut().insert(correlation.clone());
        }
        next.run(request).await
    };

    let status = response.status();
    if status.is_client_error() || status.is_server_error() {
        app.metrics.error_answered(status.as_u16());
    }
    app.origins.mark(allow, response.headers_mut());
    response.headers_mut().insert(CORRELATION_HEADER, correlation.header().clone());
    // The route, not the path: a path is the client's own text and might carry a token.
    tracing::debug!(
        correlation_id = correlation.as_str(),
        %method,
        route,
        status = status.as_u16(),
        microseconds = begun.elapsed().as_micros(),
        "answered"
    );
    response
}

fn known(path: &str) -> &'static str {
    [
        TOKEN_PATH,
        STREAM_PATH,
        PUBLISH_PATH,
        HEALTH_PATHS[0],
        HEALTH_PATHS[1],
        CACHE_STATS_PATH,
        INSTANCE_ID_PATH,
    ]
    .into_iter()
    .find(|known| *known == path)
    .unwrap_or("other")
}

async fn issue_token(State(app): State<Arc<App>>, request: Request) -> Result<Response, ErrorAnswer> {
    let principal = app.authenticator.authorise_principal(request.headers())?;
    app.limit_issuance(&principal, &request).inspect_err(|_| {
        app.metrics.token_issue_errors.inc();
    })?;
    let token = app.tokens.issue(&principal).await;
    let mut text = [0; TOKEN_LENGTH];
    let head = r#"{"sse_token":""#;
    let mut body = String::with_capacity(head.len() + TOKEN_LENGTH + app.token_answer_tail.len());
    body.push_str(head);
    body.push_str(token.encode(&mut text));
    body.push_str(&app.token_answer_tail);
    Ok(json_text(StatusCode::OK, body))
}

async fn open_stream(State(app): State<Arc<App>>, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    // HEAD too: it would open a stream that nobody sees.
    if parts.method != Method::GET {
        let answer = ErrorAnswer::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed");
        return ([(header::ALLOW, "GET")], answer).into_response();
    }
    app.engine.respond(parts).await
}

async fn health(State(app): State<Arc<App>>) -> Response {
    let reasons = app.degradations();
    let mut body = json!({
        "status": if reasons.is_empty() { "ok" } else { "degraded" },
        "service": "operator_backend",
        "version": env!("CARGO_PKG_VERSION"),
        "timestamp": jiff::Timestamp::now().to_string(),
    });
    if !reasons.is_empty()
        && let Some(body) = body.as_object_mut()
    {
        body.insert("reason".to_owned(), reasons.join("; ").into());
    }
    json(StatusCode::OK, &body)
}

async fn cache_stats(State(app): State<Arc<App>>, request: Request) -> Result<Response, ErrorAnswer> {
    app.authenticator.authorise_principal(request.headers())?;
    Ok(json(StatusCode::OK, &app.tokens.stats().await))
}

async fn instance_id(State(app): State<Arc<App>>, request: Request<Body>) -> Result<Response, ErrorAnswer> {
    app.authenticator.authorise_principal(request.headers())?;
    Ok(json(StatusCode::OK, &json!({ "instance_id": app.instance_id })))
}

/// Whether the instance should get new traffic.
#[must_use]
pub fn is_ready(app: &App) -> bool {
    app.drain.phase() == Phase::Serving
}
