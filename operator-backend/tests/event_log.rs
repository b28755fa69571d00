//! What the log in Redis keeps and what a reader is told of the rest: R7, the window, full and deleted logs.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on panics"
)]

mod common;

use std::{sync::Arc, time::Duration};

use common::{RedisServer, eventually};
use futures::{StreamExt, stream};
use operator_backend::{
    clock::ClusterClock,
    config::Config,
    events::{EntryId, EventLog, Item, NewEvent, Place, PublishError, Resolved},
    metrics::Metrics,
    redis_link::RedisLink,
};
use tokio::task::AbortHandle;

const SOON: Duration = Duration::from_secs(20);
const LOG: &str = "vx11:events";

/// An instance's view of the log.
struct Instance {
    log: EventLog,
    link: RedisLink,
    supervisor: AbortHandle,
}

impl Instance {
    async fn start(redis: &RedisServer, flags: &[&str]) -> Self {
        let port = redis.port().to_string();
        let all = ["--redis-host", "127.0.0.1", "--redis-port", &port];
        let config = Config::from_flags(all.iter().chain(flags).copied()).ok().unwrap();
        let link = RedisLink::new(&config.redis, ClusterClock::new(), Arc::new(Metrics::new())).unwrap();
        let supervisor = tokio::spawn(link.clone().supervise(Vec::new)).abort_handle();
        link.wait_up().await;
        let log = EventLog::new(&config, Some(link.clone()));
        log.start();
        eventually("the log is read", SOON, async || log.mirror().place().is_some()).await;
        Self { log, link, supervisor }
    }

    /// Publishes until it is accepted, and returns the place behind the event.
    async fn publish(&self, data: &str) -> Place {
        let mut published = None;
        eventually("an event is accepted", SOON, async || {
            published = self.try_publish(data, None).await.ok();
            published.is_some()
        })
        .await;
        let id = published.unwrap();
        eventually("the event is read", SOON, async || {
            self.log.mirror().place().is_some_and(|place| place.id >= id)
        })
        .await;
        Place { epoch: self.log.mirror().place().unwrap().epoch, id }
    }

    async fn try_publish(&self, data: &str, key: Option<&str>) -> Result<EntryId, PublishError> {
        let body = format!(r#"{{"data":"{data}"}}"#);
        self.log.publish(NewEvent::parse(body.as_bytes()).unwrap(), key).await
    }

    /// How many events follow a place; `None` when a gap does.
    fn following(&self, place: Place) -> Option<usize> {
        match self.log.mirror().resolve(place) {
            Resolved::At(position) => Some(self.log.mirror().read(position, usize::MAX).1.len()),
            _ => None,
        }
    }

    /// Data of the events from a position on, `None` for gaps.
    fn seen(&self, from: u64) -> Vec<Option<String>> {
        let (_, items) = self.log.mirror().read(from, usize::MAX);
        let data = |item| match item {
            Item::Event(event) => Some(event.data().to_owned()),
            Item::Gap(_) => None,
        };
        items.into_iter().map(data).collect()
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.supervisor.abort();
    }
}

#[tokio::test]
async fn what_followed_a_cursor_in_a_log_that_was_deleted_is_told_as_a_gap() {
    let redis = RedisServer::start();
    let old = Instance::start(&redis, &[]).await;
    let cursor = old.publish("seen").await;
    let missed = old.publish("missed").await;
    let position = old.log.mirror().end().0;
    assert_eq!(redis.cli(&["DEL", LOG]), "1");
    let fresh = Instance::start(&redis, &[]).await;
    let after = fresh.publish("after").await;
    assert_eq!(fresh.following(cursor), None, "`missed` is gone without a gap");
    assert_eq!(fresh.following(missed), None, "nobody knows whether it was the last");
    assert_eq!(fresh.following(after), Some(0));
    eventually("the running instance reads on", SOON, async || {
        old.seen(position) == [None, Some("\"after\"".to_owned())]
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_events_of_the_window_stay_resumable_however_many_they_are() {
    const COUNT: usize = 12_000;
    let redis = RedisServer::start();
    let instance = Instance::start(&redis, &[]).await;
    let cursor = instance.publish("first").await;
    let accepted = stream::iter(0..COUNT)
        .map(async |_| instance.try_publish("x", None).await.is_ok())
        .buffer_unordered(64)
        .filter(|accepted| std::future::ready(*accepted))
        .count()
        .await;
    assert!(accepted > 10_000, "only {accepted} events were accepted");
    let last = instance.publish("last").await;
    let fresh = Instance::start(&redis, &[]).await;
    for instance in [&instance, &fresh] {
        assert!(instance.following(cursor).is_some_and(|count| count > accepted));
        assert_eq!(instance.following(last), Some(0));
    }
}

#[tokio::test]
async fn events_older_than_the_window_leave_the_log() {
    let redis = RedisServer::start();
    for number in 1..=300 {
        redis.cli(&["XADD", LOG, &format!("{number}-0"), "epoch", "00000001", "number", "1", "data", "1"]);
    }
    let instance = Instance::start(&redis, &[]).await;
    instance.publish("new").await;
    // Whole nodes of Redis' stream go, of a hundred entries each; and the entry before the new one stays.
    assert_eq!(redis.cli(&["XLEN", LOG]), "101");
}

const LARGE: usize = 60_000;

#[tokio::test]
async fn large_events_push_the_oldest_out_and_whoever_missed_them_is_told() {
    let redis = RedisServer::start();
    let instance = Instance::start(&redis, &["--event-bytes", "1048576"]).await;
    let cursor = instance.publish("first").await;
    for _ in 0..60 {
        instance.publish(&"x".repeat(LARGE)).await;
    }
    let last = instance.publish("last").await;
    let kept: usize = redis.cli(&["XLEN", LOG]).parse().unwrap();
    assert!((10..=20).contains(&kept), "{kept} entries are kept");
    let fresh = Instance::start(&redis, &["--event-bytes", "1048576"]).await;
    for instance in [&instance, &fresh] {
        assert_eq!(instance.following(cursor), None);
        assert_eq!(instance.following(last), Some(0));
    }
}

#[tokio::test]
async fn a_redis_that_the_log_has_filled_takes_new_events_all_the_same() {
    let redis = RedisServer::with(&["--maxmemory", "8mb"]);
    let instance = Instance::start(&redis, &[]).await;
    let cursor = instance.publish("first").await;
    for number in 0..300 {
        let accepted = instance.try_publish(&"x".repeat(LARGE), None).await;
        assert!(!matches!(accepted, Err(PublishError::Unavailable)), "event {number} was refused");
    }
    let last = instance.publish("last").await;
    let fresh = Instance::start(&redis, &[]).await;
    assert_eq!(fresh.following(cursor), None);
    assert_eq!(fresh.following(last), Some(0));
}

#[tokio::test]
async fn r7_an_event_whose_outcome_nobody_told_is_published_once_by_a_retry() {
    let redis = RedisServer::start();
    let instance = Instance::start(&redis, &[]).await;
    let (mut attempt, mut key) = (0, String::new());
    // A link that was given up before the event left says "unavailable", and proves nothing.
    eventually("a publisher does not learn the outcome", SOON, async || {
        attempt += 1;
        key = format!("key-{attempt}");
        instance.link.wait_up().await;
        redis.freeze();
        let outcome = instance.try_publish(&key, Some(&key)).await;
        redis.thaw();
        matches!(outcome, Err(PublishError::Unknown))
    })
    .await;
    eventually("a retry is accepted", SOON, async || instance.try_publish(&key, Some(&key)).await.is_ok())
        .await;
    instance.publish("end").await;
    let seen = instance.seen(0);
    let times = seen.iter().flatten().filter(|data| data.contains(&key)).count();
    assert_eq!(times, 1, "{seen:?}");
}

#[tokio::test]
async fn r7_an_acknowledged_event_of_a_redis_that_is_killed_is_delivered_or_told_as_a_gap() {
    let mut redis = RedisServer::start();
    let instance = Instance::start(&redis, &[]).await;
    for round in 0..10 {
        let position = instance.log.mirror().end().0;
        let event = format!("acknowledged-{round}");
        eventually("an event is accepted", SOON, async || instance.try_publish(&event, None).await.is_ok())
            .await;
        redis.kill();
        redis.restart();
        let end = format!("end-{round}");
        instance.publish(&end).await;
        let seen = instance.seen(position);
        let first_new = seen.iter().position(|data| data.as_ref().is_some_and(|data| data.contains(&end)));
        let before = &seen[..first_new.unwrap()];
        let told = before.iter().any(|data| data.as_ref().is_none_or(|data| data.contains(&event)));
        assert!(told, "round {round}: the event vanished: {seen:?}");
    }
}
