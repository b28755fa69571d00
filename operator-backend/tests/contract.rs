//! The wire contract, route by route and status by status.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on panics"
)]

mod common;

use std::time::Duration;

use common::{Backend, Directory, PRINCIPAL_TOKEN, RedisServer, eventually};
use rstest::rstest;
use serde_json::json;

const TOKEN: &str = "/operator/api/events/sse-token";
const STREAM: &str = "/operator/api/events/stream";
const PUBLISH: &str = "/operator/api/events";
const AUTH: (&str, &str) = ("x-vx11-token", PRINCIPAL_TOKEN);
const SECOND: Duration = Duration::from_secs(5);

#[tokio::test]
async fn a_principal_gets_a_token_by_post_and_by_get_with_either_header() {
    let backend = Backend::alone(&[]);
    let bearer = format!("Bearer {PRINCIPAL_TOKEN}");
    for (method, header) in [
        ("POST", AUTH),
        ("GET", AUTH),
        ("POST", ("authorization", bearer.as_str())),
        ("GET", ("authorization", &bearer)),
    ] {
        let answer = backend.request(method, TOKEN, &[header], "").await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        assert_eq!(answer.header("content-type"), Some("application/json"));
        let body = answer.json();
        let token = body["sse_token"].as_str().unwrap();
        backend.keep_secret(token);
        assert_eq!(
            body,
            json!({"sse_token": token, "expires_in_sec": 60, "ttl_sec": 60, "endpoint": STREAM})
        );
        assert_eq!(uuid::Uuid::parse_str(token).unwrap().to_string(), token);
    }
}

#[rstest]
#[case::issue_by_post("POST", TOKEN)]
#[case::issue_by_get("GET", TOKEN)]
#[case::publish("POST", PUBLISH)]
#[case::cache_stats("GET", "/operator/internal/cache-stats")]
#[case::instance_id("GET", "/operator/internal/instance-id")]
#[case::stream("GET", STREAM)]
#[tokio::test]
async fn without_a_token_401_and_with_a_wrong_one_403(#[case] method: &str, #[case] path: &str) {
    let backend = Backend::alone(&[]);
    let none = backend.request(method, path, &[], "{}").await;
    assert_eq!((none.status, none.detail().as_str()), (401, "auth_required"));
    let wrong = backend.request(method, path, &[("x-vx11-token", "wrong-token-x")], "{}").await;
    assert_eq!((wrong.status, wrong.detail().as_str()), (403, "invalid_token"));
    backend.keep_secret("wrong-token-x");
    assert!(none.headers.contains_key("x-correlation-id") && wrong.headers.contains_key("x-correlation-id"));
}

#[rstest]
#[case::not_a_uuid("hello")]
#[case::never_issued("2f1b0a34-8d6e-4c55-9a9e-0c7d3f1a2b3c")]
#[case::forged_version_8("50a264af-cc4e-8b0e-b0f0-5ee0961b3747")]
#[tokio::test]
async fn a_stream_with_a_wrong_ephemeral_token_is_403(#[case] token: &str) {
    let redis = RedisServer::start();
    for backend in [Backend::alone(&[]), Backend::with_redis(&redis, &[])] {
        let answer = backend.get(&format!("{STREAM}?token={token}"), &[]).await;
        assert_eq!((answer.status, answer.detail().as_str()), (403, "invalid_token"));
        backend.keep_secret(token);
    }
}

#[tokio::test]
async fn an_ephemeral_token_opens_streams_until_it_expires() {
    let redis = RedisServer::start();
    for backend in [Backend::alone(&["--token-ttl", "1"]), Backend::with_redis(&redis, &["--token-ttl", "1"])]
    {
        let token = backend.token().await;
        assert_eq!(backend.redeem(&token).await, 200);
        assert_eq!(backend.redeem(&token).await, 200);
        eventually("the token expires", Duration::from_millis(2100), async || {
            backend.redeem(&token).await == 403
        })
        .await;
    }
}

#[tokio::test]
async fn a_principal_token_opens_a_stream_in_the_header_and_in_the_query_only_by_opt_in() {
    let strict = Backend::alone(&[]);
    assert_eq!(strict.stream(STREAM, &[AUTH]).await.status, 200);
    assert_eq!(strict.redeem(PRINCIPAL_TOKEN).await, 403);
    let lenient = Backend::alone(&["--accept-principal-token-in-query"]);
    assert_eq!(lenient.redeem(PRINCIPAL_TOKEN).await, 200);
}

#[tokio::test]
async fn a_stream_begins_with_retry_and_snapshot() {
    let backend = Backend::alone(&[]);
    let token = backend.token().await;
    let mut stream = backend.stream(&format!("{STREAM}?token={token}&follow=true"), &[]).await;
    assert_eq!(stream.status, 200);
    let header = |name: &str| stream.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    assert!(header("content-type").unwrap().starts_with("text/event-stream"));
    assert_eq!(header("cache-control").unwrap(), "no-store, no-transform");
    assert_eq!(header("x-accel-buffering").unwrap(), "no");
    assert_eq!(header("referrer-policy").unwrap(), "no-referrer");
    assert!(header("x-correlation-id").is_some());
    let snapshot = stream.until("event: snapshot", SECOND).await;
    assert!(snapshot.contains(r#""type":"snapshot""#), "{snapshot}");
}

#[tokio::test]
async fn a_published_event_reaches_the_stream() {
    let redis = RedisServer::start();
    for backend in [Backend::alone(&[]), Backend::with_redis(&redis, &[])] {
        let token = backend.token().await;
        let mut stream = backend.stream(&format!("{STREAM}?token={token}"), &[]).await;
        stream.until("event: snapshot", SECOND).await;
        let body = r#"{"event":"greeting","topic":"news","data":{"text":"hello 42"}}"#;
        let answer = backend.post(PUBLISH, &[AUTH, ("content-type", "application/json")], body).await;
        assert_eq!(answer.status, 202, "{}", answer.text());
        assert!(answer.json()["id"].is_string());
        let event = stream.until("hello 42", SECOND).await;
        assert!(event.contains("event: greeting"), "{event}");
        assert!(event.contains("id: "), "{event}");
    }
}

#[tokio::test]
async fn publishing_twice_with_one_idempotency_key_publishes_once() {
    let redis = RedisServer::start();
    for backend in [Backend::alone(&[]), Backend::with_redis(&redis, &[])] {
        let publish = async || {
            let answer = backend.post(PUBLISH, &[AUTH, ("idempotency-key", "key-1")], r#"{"data":1}"#).await;
            assert_eq!(answer.status, 202, "{}", answer.text());
            answer.json()["id"].clone()
        };
        assert_eq!(publish().await, publish().await);
    }
}

#[rstest]
#[case::no_json("no json", "")]
#[case::no_object("[1]", "")]
#[case::no_data(r#"{"event":"x"}"#, "data")]
#[case::event_is_no_text(r#"{"event":7,"data":1}"#, "event")]
#[case::event_breaks_the_line(r#"{"event":"a\nb","data":1}"#, "event")]
#[case::topic_is_no_text(r#"{"topic":[],"data":1}"#, "topic")]
#[case::severity_is_no_text(r#"{"severity":{},"data":1}"#, "severity")]
#[case::module_is_no_text(r#"{"module":1,"data":1}"#, "module")]
#[tokio::test]
async fn an_invalid_event_is_422_and_names_the_field(#[case] body: &'static str, #[case] field: &str) {
    let backend = Backend::alone(&[]);
    let answer = backend.post(PUBLISH, &[AUTH], body).await;
    assert_eq!(answer.status, 422, "{}", answer.text());
    assert!(answer.detail().contains(field), "{} should name {field:?}", answer.detail());
}

#[tokio::test]
async fn an_invalid_idempotency_key_is_422_and_named() {
    let backend = Backend::alone(&[]);
    let answer = backend.post(PUBLISH, &[AUTH, ("idempotency-key", "has space")], r#"{"data":1}"#).await;
    assert_eq!(answer.status, 422);
    assert!(answer.detail().starts_with("Idempotency-Key"), "{}", answer.detail());
}

#[tokio::test]
async fn a_body_over_64_kib_is_413_and_one_of_64_kib_is_not() {
    let backend = Backend::alone(&[]);
    let body = |length: usize| {
        let frame = r#"{"data":""}"#.len();
        format!(r#"{{"data":"{}"}}"#, "x".repeat(length - frame))
    };
    let answer = backend.post(PUBLISH, &[AUTH], body(64 * 1024)).await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    let answer = backend.post(PUBLISH, &[AUTH], body(64 * 1024 + 1)).await;
    assert_eq!((answer.status, answer.detail().as_str()), (413, "payload_too_large"));
}

#[tokio::test]
async fn issuing_too_fast_is_429_with_retry_after_for_a_principal_and_for_an_address() {
    for flag in ["--issue-rate-per-principal", "--issue-rate-per-address"] {
        let backend = Backend::alone(&[flag, "2"]);
        let answers = futures::future::join_all((0..5).map(|_| backend.get(TOKEN, &[AUTH]))).await;
        let refused: Vec<_> = answers.iter().filter(|answer| answer.status == 429).collect();
        assert!((2..=3).contains(&refused.len()), "{flag}: {} of 5 were refused", refused.len());
        for answer in &refused {
            assert_eq!(answer.detail(), "rate_limited");
            assert_eq!(answer.header("retry-after"), Some("1"));
        }
        eventually("issuing goes on", SECOND, async || backend.get(TOKEN, &[AUTH]).await.status == 200).await;
        assert!(backend.metric("vx11_rate_limited_total").await >= 2.0);
    }
}

#[tokio::test]
async fn addresses_behind_a_trusted_proxy_are_limited_each_for_itself() {
    let flags = ["--issue-rate-per-address", "1", "--trusted-proxies", "127.0.0.0/8"];
    let backend = Backend::alone(&flags);
    let from = async |address: &str| backend.get(TOKEN, &[AUTH, ("x-forwarded-for", address)]).await.status;
    assert_eq!(from("198.51.100.1").await, 200);
    assert_eq!(from("198.51.100.2").await, 200);
    assert_eq!(from("198.51.100.1").await, 429);
}

#[tokio::test]
async fn every_answer_carries_a_correlation_id() {
    let backend = Backend::alone(&[]);
    for (method, path) in
        [("GET", "/health"), ("GET", "/nope"), ("DELETE", "/health"), ("OPTIONS", STREAM), ("POST", TOKEN)]
    {
        let answer = backend.request(method, path, &[("x-correlation-id", "mine-1")], "").await;
        assert_eq!(answer.header("x-correlation-id"), Some("mine-1"), "{method} {path}");
        let answer = backend.request(method, path, &[], "").await;
        let id = answer.header("x-correlation-id").unwrap();
        assert!(uuid::Uuid::parse_str(id).is_ok(), "{id}");
    }
}

#[tokio::test]
async fn unknown_paths_are_404_and_wrong_methods_405_both_in_json() {
    let backend = Backend::alone(&[]);
    let answer = backend.get("/nope", &[]).await;
    assert_eq!((answer.status, answer.detail().as_str()), (404, "not_found"));
    let answer = backend.request("DELETE", TOKEN, &[AUTH], "").await;
    assert_eq!((answer.status, answer.detail().as_str()), (405, "method_not_allowed"));
}

#[tokio::test]
async fn health_is_ok_and_degraded_with_a_reason_when_redis_is_away() {
    let mut redis = RedisServer::start();
    let backend = Backend::with_redis(&redis, &[]);
    for path in ["/health", "/operator/api/health"] {
        let answer = backend.get(path, &[]).await;
        assert_eq!(answer.status, 200);
        let body = answer.json();
        assert_eq!((&body["status"], &body["service"]), (&json!("ok"), &json!("operator_backend")));
        assert_eq!(body["version"], json!(env!("CARGO_PKG_VERSION")));
        assert!(body["timestamp"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok());
    }
    redis.kill();
    eventually("health says degraded", SECOND, async || {
        let answer = backend.get("/health", &[]).await;
        assert_eq!(answer.status, 200);
        answer.json()["status"] == "degraded" && answer.json()["reason"].as_str().unwrap().contains("redis")
    })
    .await;
    redis.restart();
    eventually("health says ok again", SECOND, async || {
        backend.get("/health", &[]).await.json()["status"] == "ok"
    })
    .await;
}

#[tokio::test]
async fn a_wrong_redis_password_is_named_in_health_and_a_corrected_file_is_enough() {
    let redis = RedisServer::with(&["--requirepass", "redis-password-of-the-tests"]);
    let directory = Directory::new();
    let file = directory.write("password", "wrong-password");
    let backend = Backend::with_redis(&redis, &["--redis-password-file", file.to_str().unwrap()]);
    backend.keep_secret("redis-password-of-the-tests");
    backend.keep_secret("wrong-password");
    eventually("health names the password", SECOND, async || {
        backend.get("/health", &[]).await.text().contains("REDIS_PASSWORD_FILE")
    })
    .await;
    directory.write("password", "redis-password-of-the-tests\n");
    eventually("health says ok", SECOND, async || backend.get("/health", &[]).await.json()["status"] == "ok")
        .await;
}

#[tokio::test]
async fn cache_stats_count_live_tokens_and_show_none_of_them() {
    let redis = RedisServer::start();
    for (backend, kind) in
        [(Backend::alone(&[]), "fallback-memory"), (Backend::with_redis(&redis, &[]), "redis")]
    {
        let mut tokens = Vec::new();
        for _ in 0..7 {
            tokens.push(backend.token().await);
        }
        let answer = backend.get("/operator/internal/cache-stats", &[AUTH]).await;
        let body = answer.json();
        assert_eq!(body["backend"], json!(kind));
        assert_eq!(body["cache_size"], json!(7));
        assert_eq!(body["issued_here"], json!(7));
        assert_eq!(body["cache_size_is_estimate"], json!(kind == "redis"));
        assert_eq!(body["redis_memory_bytes"].as_u64().unwrap() > 0, kind == "redis");
        assert!(body["redis_ops_per_sec"].is_u64());
        assert_eq!(body["sample_tokens"].as_array().unwrap().len(), 5);
        for token in &tokens {
            assert!(!answer.text().contains(token));
            assert!(!token.split('-').any(|part| part.len() > 4 && answer.text().contains(part)));
        }
    }
}

#[tokio::test]
async fn tokens_are_stored_in_redis_under_the_key_that_others_read_and_with_their_life() {
    let redis = RedisServer::start();
    let backend = Backend::with_redis(&redis, &[]);
    let mut token = String::new();
    eventually("a token is stored", SECOND, async || {
        token = backend.token().await;
        redis.cli(&["GET", &format!("token:{token}")]) == "principal"
    })
    .await;
    let life: i64 = redis.cli(&["TTL", &format!("token:{token}")]).parse().unwrap();
    assert!((58..=60).contains(&life), "{life}");
}

#[tokio::test]
async fn instance_id_is_the_configured_one() {
    let backend = Backend::alone(&["--instance-id", "operator-7"]);
    let answer = backend.get("/operator/internal/instance-id", &[AUTH]).await;
    assert_eq!(answer.json(), json!({"instance_id": "operator-7"}));
}

#[tokio::test]
async fn pages_of_allowed_origins_may_call_and_others_may_not() {
    let backend = Backend::alone(&["--allowed-origins", "https://app.example"]);
    let allowed = ("origin", "https://app.example");
    let asks = ("access-control-request-method", "POST");
    let preflight = backend.request("OPTIONS", TOKEN, &[allowed, asks], "").await;
    assert_eq!(preflight.status, 204);
    assert_eq!(preflight.header("access-control-allow-origin"), Some("https://app.example"));
    assert!(preflight.header("access-control-allow-methods").unwrap().contains("POST"));
    assert!(preflight.header("access-control-allow-headers").unwrap().contains("X-VX11-Token"));

    let call = backend.get(TOKEN, &[AUTH, allowed]).await;
    assert_eq!(call.header("access-control-allow-origin"), Some("https://app.example"));
    assert!(call.header("vary").unwrap().contains("Origin"));
    let stream = backend.stream(STREAM, &[AUTH, allowed]).await;
    assert_eq!(stream.headers.get("access-control-allow-origin").unwrap(), "https://app.example");

    for (method, path) in [("OPTIONS", TOKEN), ("GET", TOKEN)] {
        let answer =
            backend.request(method, path, &[AUTH, ("origin", "https://evil.example"), asks], "").await;
        assert_eq!(answer.header("access-control-allow-origin"), None, "{method}");
    }
}

#[tokio::test]
async fn the_admin_port_tells_health_load_and_metrics() {
    let backend = Backend::alone(&["--instance-id", "operator-7", "--max-clients", "77"]);
    assert_eq!(backend.admin().get("/livez", &[]).await.status, 200);
    assert_eq!(backend.admin().get("/readyz", &[]).await.status, 200);
    backend.token().await;
    let load = backend.admin().get("/load", &[]).await.json();
    let expected = json!({"instance_id": "operator-7", "streams": 0, "issued_total": 1, "draining": false, "max_streams": 77});
    assert_eq!(load, expected);
    let mut stream = backend.stream(STREAM, &[AUTH]).await;
    stream.until("event: snapshot", SECOND).await;
    assert_eq!(backend.admin().get("/load", &[]).await.json()["streams"], json!(1));
    assert!(backend.metric("vx11_sse_token_issued_total").await >= 1.0);
    assert!(backend.metric("vx11_ephemeral_token_cache_size_entries").await >= 1.0);
    assert!(backend.metric("vx11_ephemeral_token_cache_size_bytes").await >= 1.0);
}

#[tokio::test]
async fn metrics_have_the_names_that_alerts_use_and_labels_from_closed_sets() {
    let backend = Backend::alone(&[]);
    backend.get("/some/unknown/path", &[]).await;
    backend.get(TOKEN, &[("x-vx11-token", "guess")]).await;
    let answer = backend.admin().get("/metrics", &[]).await;
    for name in [
        "vx11_sse_token_issued_total",
        "vx11_sse_token_issued_errors_total",
        "vx11_sse_token_issuance_latency_ms_bucket",
        "vx11_ephemeral_token_cache_size_entries",
        "vx11_ephemeral_token_cache_size_bytes",
        "vx11_sse_auth_success_total",
        "vx11_sse_auth_failures_total{reason=\"principal\"}",
        "vx11_sse_errors_by_code_total{code=\"404\"}",
        "vx11_principal_token_invalid_total",
        "vx11_cache_integrity_check_failed_total",
        "vx11_sse_streams_open",
        "vx11_redis_up",
    ] {
        assert!(answer.text().contains(name), "{name} is missing");
    }
    assert!(!answer.text().contains("unknown/path") && !answer.text().contains("guess"));
}

#[tokio::test]
async fn a_store_entry_that_contradicts_the_signature_is_refused_and_counted() {
    let redis = RedisServer::start();
    let backend = Backend::with_redis(&redis, &["--gateway-token", "gateway-token-of-the-tests"]);
    let token = backend.token().await;
    redis.cli(&["SETEX", &format!("token:{token}"), "60", "gateway"]);
    assert_eq!(backend.redeem(&token).await, 403);
    assert!((backend.metric("vx11_cache_integrity_check_failed_total").await - 1.0).abs() < 0.1);
}

#[tokio::test]
async fn a_token_deleted_from_redis_is_revoked() {
    let redis = RedisServer::start();
    // Absence proves nothing about tokens from before Redis was surely complete: its first two seconds.
    let backend = Backend::with_redis(&redis, &[]);
    eventually("a deleted token is refused", SECOND, async || {
        let token = backend.token().await;
        assert_eq!(backend.redeem(&token).await, 200);
        redis.cli(&["DEL", &format!("token:{token}")]);
        backend.redeem(&token).await == 403
    })
    .await;
}
