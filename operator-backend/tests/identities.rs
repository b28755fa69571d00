//! Who exists may change at any time: keys are rotated, principals removed, and no instance hears of it at the same
//! moment as another.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on panics"
)]

mod common;

use std::time::Duration;

use common::{Backend, Directory, PRINCIPAL_TOKEN, RedisServer, eventually};

const SOON: Duration = Duration::from_secs(10);
const STREAM: &str = "/operator/api/events/stream";
const OLD: &str = "the-old-signing-key-0123456789";
const NEW: &str = "the-new-signing-key-0123456789";

fn alone(keys: &Directory) -> Backend {
    Backend::alone(&["--signing-keys-dir", keys.path().to_str().unwrap()])
}

async fn cursor(backend: &Backend) -> String {
    let mut stream = backend.stream(STREAM, &[("x-vx11-token", PRINCIPAL_TOKEN)]).await;
    let block = stream.until("event: snapshot", SOON).await;
    block.lines().find_map(|line| line.strip_prefix("id: ")).unwrap().to_owned()
}

/// The kubelets bring a rotation to two pods up to a minute and a half apart.
#[tokio::test]
async fn a_rotation_of_the_signing_key_that_reaches_instances_one_by_one_refuses_nobody() {
    let (old_files, new_files, only_new) = (Directory::new(), Directory::new(), Directory::new());
    old_files.write("current", OLD);
    new_files.write("current", OLD);
    only_new.write("current", NEW);
    let (late, early, probe) = (alone(&old_files), alone(&new_files), alone(&only_new));
    new_files.write("previous", OLD);
    new_files.write("current", NEW);
    eventually("the new key verifies", SOON, async || early.redeem(&probe.token().await).await == 200).await;
    // One that starts meanwhile has neighbours that do not know the new key either.
    let started = alone(&new_files);

    let instances = [("late", &late), ("early", &early), ("started", &started)];
    for (of, issuer) in instances {
        for (at, instance) in instances {
            let token = issuer.token().await;
            assert_eq!(instance.redeem(&token).await, 200, "a token of {of} at {at}");
            let cursor = cursor(issuer).await;
            let resumed = instance.stream(STREAM, &[("last-event-id", &cursor)]).await;
            assert_eq!(resumed.status, 200, "a cursor of {of} at {at}");
        }
    }
}

#[tokio::test]
async fn the_tokens_of_a_removed_principal_are_refused_and_raise_no_alarm() {
    let redis = RedisServer::start();
    let principals = Directory::new();
    let leaver = principals.write("leaver", "principal-token-of-the-leaver");
    principals.write("stayer", "principal-token-of-the-stayer");
    let flags = ["--principal-tokens-dir", principals.path().to_str().unwrap()];
    let backend = Backend::with_redis(&redis, &flags);
    eventually("Redis is up", SOON, async || backend.metric("vx11_redis_up").await > 0.5).await;
    let path = "/operator/api/events/sse-token";
    let answer = backend.get(path, &[("x-vx11-token", "principal-token-of-the-leaver")]).await;
    let token = answer.json()["sse_token"].as_str().unwrap().to_owned();
    assert_eq!(backend.redeem(&token).await, 200);
    std::fs::remove_file(leaver).unwrap();
    eventually("the token is refused", SOON, async || backend.redeem(&token).await == 403).await;
    assert!(backend.metric("vx11_cache_integrity_check_failed_total").await < 0.5);
}
