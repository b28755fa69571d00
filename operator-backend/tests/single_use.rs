//! R3: with `singleUse` a token opens one stream, over all instances.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on panics"
)]

mod common;

use std::time::Duration;

use common::{Backend, RedisServer, eventually};

const SOON: Duration = Duration::from_secs(5);
const FLAGS: &[&str] = &["--single-use-tokens", "--log", "info", "--max-clients", "0"];

fn three(redis: &RedisServer) -> Vec<Backend> {
    (0..3).map(|_| Backend::with_redis(redis, FLAGS)).collect()
}

async fn all_up(instances: &[Backend]) {
    for instance in instances {
        eventually("Redis is up", SOON, async || instance.metric("vx11_redis_up").await > 0.5).await;
    }
}

/// Leaves connections in the clients' pools that have served a request already. A refused stream closes the
/// connection it arrived on first, and 200,000 connections would take minutes; on a reused one it does not.
async fn keep_connections(instances: &[Backend]) {
    for instance in instances {
        futures::future::join_all((0..70).map(|_| instance.get("/health", &[]))).await;
    }
}

/// Number of redemptions that won, of `tries` at the same time over all instances.
async fn winners(instances: &[Backend], token: &str, tries: usize) -> usize {
    let redemptions =
        (0..tries).map(|number| instances[number % instances.len()].redeem(token)).collect::<Vec<_>>();
    let statuses = futures::future::join_all(redemptions).await;
    assert!(statuses.iter().all(|status| [200, 403].contains(status)), "{statuses:?}");
    statuses.iter().filter(|status| **status == 200).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r3_exactly_one_of_200_concurrent_redemptions_wins_in_1000_rounds() {
    let redis = RedisServer::start();
    let instances = three(&redis);
    all_up(&instances).await;
    for round in 0..1000 {
        if round % 20 == 0 {
            keep_connections(&instances).await;
        }
        let token = instances[round % 3].token().await;
        assert_eq!(winners(&instances, &token, 200).await, 1, "round {round}");
    }
}

#[tokio::test]
async fn r3_during_an_outage_each_instance_redeems_a_token_at_most_once_and_none_afterwards() {
    let mut redis = RedisServer::start();
    let instances = three(&redis);
    all_up(&instances).await;
    let stored = instances[0].token().await;
    redis.kill();
    let unstored = instances[0].token().await;
    for token in [&stored, &unstored] {
        for instance in &instances {
            assert_eq!(winners(std::slice::from_ref(instance), token, 20).await, 1);
        }
    }
    redis.restart();
    all_up(&instances).await;
    let newcomer = Backend::with_redis(&redis, FLAGS);
    all_up(std::slice::from_ref(&newcomer)).await;
    for token in [&stored, &unstored] {
        assert_eq!(winners(&instances, token, 60).await, 0);
        assert_eq!(newcomer.redeem(token).await, 403, "Redis was told what was redeemed without it");
    }
}

#[tokio::test]
async fn r3_a_token_of_an_outage_is_redeemed_once_after_it() {
    let mut redis = RedisServer::start();
    let instances = three(&redis);
    all_up(&instances).await;
    redis.kill();
    let token = instances[0].token().await;
    redis.restart();
    all_up(&instances).await;
    assert_eq!(winners(&instances, &token, 60).await, 1);
    assert_eq!(winners(&instances, &token, 60).await, 0);
}

#[tokio::test]
async fn alone_in_memory_a_token_is_redeemed_once_and_no_longer_counts() {
    let instance = [Backend::alone(FLAGS)];
    let token = instance[0].token().await;
    assert!((instance[0].metric("vx11_ephemeral_token_cache_size_entries").await - 1.0).abs() < 0.1);
    assert_eq!(winners(&instance, &token, 50).await, 1);
    assert!(instance[0].metric("vx11_ephemeral_token_cache_size_entries").await < 0.5);
}
