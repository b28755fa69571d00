//! R3: with `singleUse` a token opens one stream, over all instances.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on panics"
)]

mod common;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use common::{Backend, RedisServer, eventually};
use operator_backend::{
    clock::ClusterClock,
    config::{Config, Secret},
    identity::Identities,
    metrics::Metrics,
    redis_link::RedisLink,
    token::{Tokens, signed::TOKEN_LENGTH},
};

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

/// An instance whose connection breaks does not know whether another has taken the token meanwhile. A redemption
/// that was cut short may have used the token up, so that nobody wins.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r3_never_two_redemptions_win_while_connections_to_redis_are_cut() {
    let redis = RedisServer::start();
    let instances = three(&redis);
    let mut won = 0;
    for round in 0..100 {
        all_up(&instances).await;
        let token = instances[round % 3].token().await;
        let cut = async {
            for _ in 0..round % 4 {
                tokio::task::yield_now().await;
            }
            tokio::task::block_in_place(|| redis.cli(&["CLIENT", "KILL", "TYPE", "normal"]))
        };
        let (winners, _) = tokio::join!(winners(&instances, &token, 30), cut);
        assert!(winners <= 1, "round {round}: {winners} redemptions won");
        won += winners;
    }
    assert!(won > 20, "only {won} of 100 tokens opened a stream");
}

/// An hour's outage of a busy cluster: more than one pipeline holds within the deadline of a connection attempt.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn however_much_was_redeemed_without_redis_it_is_told_and_used_again() {
    const COUNT: usize = 40_000;
    let redis = RedisServer::start();
    let port = redis.port().to_string();
    let flags =
        ["--redis-host", "127.0.0.1", "--redis-port", &port, "--single-use-tokens", "--token-ttl", "3600"];
    let config = Config::from_flags(flags).ok().unwrap();
    let secret = vec![Secret::from("principal-token".to_owned())];
    let identities = Identities::with_principals(&BTreeMap::from([("principal".to_owned(), secret)]));
    let principal = identities.named("principal").unwrap();
    let (metrics, clock) = (Arc::new(Metrics::new()), ClusterClock::new());
    let link = RedisLink::new(&config.redis, clock.clone(), Arc::clone(&metrics)).unwrap();
    // Until it is supervised the link is down.
    let tokens = Tokens::new(&config.token, identities, clock, Some(link.clone()), metrics);
    for _ in 0..COUNT {
        let token = tokens.issue(&principal).await;
        let checked = tokens.check(token.encode(&mut [0; TOKEN_LENGTH])).await.ok().unwrap();
        assert!(tokens.redeem(checked).await.is_ok());
    }
    let replayed = tokens.clone();
    let supervisor = tokio::spawn(link.clone().supervise(move || replayed.replay()));
    eventually("Redis is used", Duration::from_secs(20), async || link.is_up()).await;
    assert_eq!(redis.cli(&["DBSIZE"]), COUNT.to_string(), "a mark for each token");
    supervisor.abort();
}

#[tokio::test]
async fn a_full_redis_that_refuses_what_it_is_told_is_used_again_all_the_same() {
    let mut redis = RedisServer::start();
    let instance = Backend::with_redis(&redis, FLAGS);
    redis.kill();
    for _ in 0..20 {
        let token = instance.token().await;
        assert_eq!(instance.redeem(&token).await, 200);
    }
    redis.restart_with(&["--maxmemory", "1"]);
    all_up(std::slice::from_ref(&instance)).await;
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
