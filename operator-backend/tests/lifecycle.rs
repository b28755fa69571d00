//! Start, rotation without restart, drain, end; and what the output shows of secrets.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on panics"
)]

mod common;

use std::time::{Duration, Instant};

use common::{Backend, Client, Directory, PRINCIPAL_TOKEN, RedisServer, eventually};
use serde_json::json;

const TOKEN: &str = "/operator/api/events/sse-token";
const STREAM: &str = "/operator/api/events/stream";
const AUTH: (&str, &str) = ("x-vx11-token", PRINCIPAL_TOKEN);
const SECOND: Duration = Duration::from_secs(5);

async fn status_with(backend: &Backend, token: &str) -> u16 {
    backend.keep_secret(token);
    backend.get(TOKEN, &[("x-vx11-token", token)]).await.status
}

#[tokio::test]
async fn principals_rotate_without_a_restart_and_with_overlap() {
    let directory = Directory::new();
    directory.write("team-a", "old-token-of-team-a\n");
    let backend = Backend::alone(&["--principal-tokens-dir", directory.path().to_str().unwrap()]);
    assert_eq!(status_with(&backend, "old-token-of-team-a").await, 200);
    assert_eq!(status_with(&backend, "new-token-of-team-a").await, 403);

    directory.write("team-a", "new-token-of-team-a\nold-token-of-team-a\n");
    eventually("the new token works", SECOND, async || {
        status_with(&backend, "new-token-of-team-a").await == 200
    })
    .await;
    assert_eq!(status_with(&backend, "old-token-of-team-a").await, 200);

    directory.write("team-a", "new-token-of-team-a\n");
    eventually("the old token is refused", SECOND, async || {
        status_with(&backend, "old-token-of-team-a").await == 403
    })
    .await;
    assert_eq!(status_with(&backend, "new-token-of-team-a").await, 200);
}

#[tokio::test]
async fn a_secret_volume_that_the_kubelet_swaps_is_followed() {
    let directory = Directory::new();
    let root = directory.path();
    let swap = |name: &str, token: &str| {
        let data = root.join(name);
        std::fs::create_dir(&data).unwrap();
        std::fs::write(data.join("team-a"), token).unwrap();
        std::os::unix::fs::symlink(name, root.join("..data_tmp")).unwrap();
        std::fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
    };
    swap("..1", "first-token-of-team-a");
    std::os::unix::fs::symlink("..data/team-a", root.join("team-a")).unwrap();
    let backend = Backend::alone(&["--principal-tokens-dir", root.to_str().unwrap()]);
    assert_eq!(status_with(&backend, "first-token-of-team-a").await, 200);
    swap("..2", "second-token-of-team-a");
    eventually("the swapped token works", SECOND, async || {
        status_with(&backend, "second-token-of-team-a").await == 200
    })
    .await;
    assert_eq!(status_with(&backend, "first-token-of-team-a").await, 403);
}

#[tokio::test]
async fn tokens_of_a_principal_that_is_removed_end_with_it() {
    let directory = Directory::new();
    directory.write("team-a", "token-of-team-a");
    let backend = Backend::alone(&["--principal-tokens-dir", directory.path().to_str().unwrap()]);
    let answer = backend.get(TOKEN, &[("x-vx11-token", "token-of-team-a")]).await;
    let token = answer.json()["sse_token"].as_str().unwrap().to_owned();
    assert_eq!(backend.redeem(&token).await, 200);
    std::fs::remove_file(directory.path().join("team-a")).unwrap();
    eventually("its ephemeral token is refused", SECOND, async || backend.redeem(&token).await == 403).await;
}

#[tokio::test]
async fn signing_keys_rotate_without_a_restart_and_the_previous_key_still_verifies() {
    let directory = Directory::new();
    directory.write("current", "first-signing-key-0123456789");
    let backend = Backend::alone(&["--signing-keys-dir", directory.path().to_str().unwrap()]);
    let token = backend.token().await;
    let others = Directory::new();
    others.write("current", "second-signing-key-0123456789");
    let other = Backend::alone(&["--signing-keys-dir", others.path().to_str().unwrap()]);
    let foreign = other.token().await;
    assert_eq!(backend.redeem(&foreign).await, 403);

    directory.write("previous", "first-signing-key-0123456789");
    directory.write("current", "second-signing-key-0123456789");
    eventually("the new key is in force", SECOND, async || backend.redeem(&foreign).await == 200).await;
    assert_eq!(backend.redeem(&token).await, 200, "the previous key verifies");
    std::fs::remove_file(directory.path().join("previous")).unwrap();
    eventually("tokens are signed with the new key", SECOND, async || {
        let fresh = backend.token().await;
        other.redeem(&fresh).await == 200
    })
    .await;
    eventually("the first key is forgotten", SECOND, async || backend.redeem(&token).await == 403).await;
}

#[tokio::test]
async fn sigterm_drains_then_ends_with_code_0() {
    let mut backend = Backend::alone(&["--drain", "1"]);
    let mut stream = backend.stream(STREAM, &[AUTH]).await;
    stream.until("event: snapshot", SECOND).await;
    let admin = Client::clone(backend.admin());
    let begun = Instant::now();
    backend.signal("TERM");
    eventually("not ready", Duration::from_millis(100), async || {
        admin.get("/readyz", &[]).await.status == 503
    })
    .await;
    stream.until("event: drain", SECOND).await;
    assert_eq!(stream.next(SECOND).await, None, "the stream ends after its drain event");
    assert_eq!(backend.ended(Duration::from_secs(3)).code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn without_streams_the_end_does_not_wait_for_the_window() {
    let mut backend = Backend::alone(&["--drain", "60"]);
    backend.signal("TERM");
    assert_eq!(backend.ended(Duration::from_secs(2)).code(), Some(0));
}

#[tokio::test]
async fn a_second_sigterm_ends_at_once_with_code_0() {
    let mut backend = Backend::alone(&["--drain", "60"]);
    let mut stream = backend.stream(STREAM, &[AUTH]).await;
    stream.until("event: snapshot", SECOND).await;
    backend.signal("TERM");
    let admin = Client::clone(backend.admin());
    eventually("draining", SECOND, async || admin.get("/readyz", &[]).await.status == 503).await;
    backend.signal("TERM");
    assert_eq!(backend.ended(Duration::from_secs(1)).code(), Some(0));
}

#[tokio::test]
async fn a_drain_needs_the_control_token_and_can_be_cancelled() {
    let directory = Directory::new();
    let file = directory.write("control-token", "control-token-of-the-tests\n");
    let backend = Backend::alone(&["--control-token-file", file.to_str().unwrap()]);
    backend.keep_secret("control-token-of-the-tests");
    let admin = backend.admin();
    assert_eq!(admin.post("/drain", &[], "").await.status, 401);
    assert_eq!(admin.post("/drain", &[("authorization", "Bearer wrong")], "").await.status, 403);
    assert_eq!(admin.get("/readyz", &[]).await.status, 200);

    let control = ("authorization", "Bearer control-token-of-the-tests");
    assert_eq!(admin.post("/drain", &[control], "").await.status, 202);
    assert_eq!(admin.get("/readyz", &[]).await.status, 503);
    assert_eq!(admin.get("/load", &[]).await.json()["draining"], json!(true));
    assert!((backend.metric("vx11_draining").await - 1.0).abs() < 0.1);

    assert_eq!(admin.request("DELETE", "/drain", &[control], "").await.status, 200);
    assert_eq!(admin.get("/readyz", &[]).await.status, 200);
    let mut stream = backend.stream(STREAM, &[AUTH]).await;
    stream.until("event: snapshot", SECOND).await;
}

#[tokio::test]
async fn a_requested_drain_closes_nothing_before_its_delay_and_the_end_of_the_process_does_not_wait() {
    let mut backend = Backend::alone(&["--drain", "0", "--drain-delay", "60"]);
    let mut stream = backend.stream(STREAM, &[AUTH]).await;
    stream.until("event: snapshot", SECOND).await;
    let admin = Client::clone(backend.admin());
    assert_eq!(admin.post("/drain", &[], "").await.status, 202);
    assert_eq!(admin.get("/readyz", &[]).await.status, 503);
    let refused = backend.get(STREAM, &[AUTH]).await;
    assert_eq!(refused.status, 503, "new streams are refused at once");
    assert_eq!(admin.get("/load", &[]).await.json()["streams"], json!(1), "the open one stays");

    assert_eq!(admin.request("DELETE", "/drain", &[], "").await.status, 200);
    assert_eq!(admin.get("/readyz", &[]).await.status, 200);
    assert_eq!(admin.post("/drain", &[], "").await.status, 202);
    backend.signal("TERM");
    stream.until("event: drain", SECOND).await;
    assert_eq!(backend.ended(SECOND).code(), Some(0));
}

#[tokio::test]
async fn shed_streams_end_with_a_drain_event_while_new_ones_are_taken() {
    let directory = Directory::new();
    let file = directory.write("control-token", "control-token-of-the-tests\n");
    let backend = Backend::alone(&["--control-token-file", file.to_str().unwrap()]);
    backend.keep_secret("control-token-of-the-tests");
    let admin = backend.admin();
    assert_eq!(admin.post("/shed?count=1", &[], "").await.status, 401);
    let control = ("authorization", "Bearer control-token-of-the-tests");
    for wrong in ["/shed", "/shed?count=-1", "/shed?count=many"] {
        assert_eq!(admin.post(wrong, &[control], "").await.status, 422, "{wrong}");
    }

    let mut shed = backend.stream(STREAM, &[AUTH]).await;
    shed.until("event: snapshot", SECOND).await;
    assert_eq!(admin.post("/shed?count=1", &[control], "").await.status, 202);
    shed.until("event: drain", Duration::from_secs(10)).await;
    assert_eq!(admin.get("/load", &[]).await.json()["draining"], json!(false));
    let mut new = backend.stream(STREAM, &[AUTH]).await;
    new.until("event: snapshot", SECOND).await;
}

#[tokio::test]
async fn without_a_control_token_this_host_may_drain() {
    let backend = Backend::alone(&[]);
    assert_eq!(backend.admin().post("/drain", &[], "").await.status, 202);
    assert_eq!(backend.admin().get("/readyz", &[]).await.status, 503);
}

#[test]
fn a_missing_directory_stops_the_start_with_its_name() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_operator-backend"))
        .args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"])
        .args(["--principal-tokens-dir", "/nonexistent/vx11"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("/nonexistent/vx11"), "{text}");
}

#[tokio::test]
async fn no_token_is_in_any_output_whatever_is_done_with_it() {
    let mut redis = RedisServer::start();
    let backend = Backend::with_redis(&redis, &["--single-use-tokens", "--token-ttl", "2"]);
    let token = backend.token().await;
    // Used, used again, in odd places, while Redis is away, expired.
    for _ in 0..2 {
        backend.redeem(&token).await;
    }
    backend.get(&format!("/{token}/{PRINCIPAL_TOKEN}"), &[]).await;
    backend.get(&format!("/health?token={token}&x={PRINCIPAL_TOKEN}"), &[]).await;
    backend.get(TOKEN, &[("authorization", &format!("Basic {PRINCIPAL_TOKEN}"))]).await;
    backend.get(STREAM, &[("last-event-id", &token)]).await;
    backend.post("/operator/api/events", &[AUTH], format!("{{{token}")).await;
    redis.kill();
    let other = backend.token().await;
    for token in [&token, &other] {
        backend.redeem(token).await;
    }
    eventually("the token expires", SECOND, async || backend.redeem(&other).await == 403).await;
    let metrics = backend.admin().get("/metrics", &[]).await;
    let stats = backend.get("/operator/internal/cache-stats", &[AUTH]).await;
    for secret in [token.as_str(), &other, PRINCIPAL_TOKEN] {
        assert!(!metrics.text().contains(secret) && !stats.text().contains(secret));
    }
    assert!(backend.log().len() > 10, "the log is there to be searched");
    // Dropping the backend searches its output.
}
