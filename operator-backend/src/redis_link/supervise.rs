//! The task that keeps the link: connects, asks for the time every second, connects again.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use redis::{Pipeline, RedisError, Value};
use tokio::time::timeout;

use super::{
    LinkError, RedisLink, State, Up,
    connect::{PROBE_DEADLINE, describe, in_time},
    info_field,
};

/// How often a link that is up proves it when nobody uses it.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// Pause between attempts to connect: with the handshake's deadline the link is up again within 1 s of
/// Redis' return, and an absent Redis sees five attempts a second from each instance.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// The data that a connection found: the process it talks to and since when that is complete.
#[derive(Clone)]
struct Incarnation {
    run_id: String,
    complete_since: i64,
}

impl RedisLink {
    /// Connects, watches, connects again, until the process ends; at once after a connection that has
    /// lasted, after a pause otherwise. Before the link counts as up, whatever `replay` gives is written, so
    /// that Redis knows what happened without it; each of its steps has a deadline of its own.
    pub async fn supervise(self, replay: impl Fn() -> Vec<Pipeline>) {
        let mut generation = 0;
        let mut incarnation: Option<Incarnation> = None;
        loop {
            generation += 1;
            match self.establish(generation, incarnation.as_ref(), &replay).await {
                Ok((up, found)) => {
                    incarnation = Some(found);
                    self.0.state.send_replace(State::Up(Box::new(up)));
                    self.0.metrics.redis_up.set(1);
                    self.0.refusing.store(false, Ordering::Relaxed);
                    tracing::info!("Redis answers");
                    // What happened while the link was being declared up.
                    for step in replay() {
                        if self.query_pipeline::<Value>(&step, PROBE_DEADLINE).await.is_err() {
                            break;
                        }
                    }
                    let begun = Instant::now();
                    self.watch_over(generation).await;
                    if begun.elapsed() > RETRY_PAUSE {
                        continue;
                    }
                }
                Err(error) => self.still_down(&error),
            }
            tokio::time::sleep(RETRY_PAUSE.mul_f64(rand::random_range(0.75..1.25))).await;
        }
    }

    fn still_down(&self, error: &RedisError) {
        let reason = describe(error);
        self.0.state.send_if_modified(|state| match state {
            State::Down { reason: known, .. } if *known == reason => false,
            State::Down { reason: known, .. } => {
                tracing::warn!(reason, host = self.0.host, port = self.0.settings.port, "cannot use Redis");
                *known = reason;
                true
            }
            // Only the supervisor closes the breaker, and it is here.
            State::Up(_) => false,
        });
    }

    /// Returns when the breaker has opened.
    async fn watch_over(&self, generation: u64) {
        loop {
            if timeout(PROBE_INTERVAL, self.0.tripped.notified()).await.is_ok() && !self.is_up() {
                return;
            }
            let asked = Instant::now();
            match self.query_pipeline::<((i64, i64), Option<Vec<u8>>)>(&probe(), PROBE_DEADLINE).await {
                Ok((time, _)) => self.adopt(time, asked),
                // Answers, but not as a store: loading its dump, say.
                Err(LinkError::Answer(reason)) => self.trip(generation, &reason),
                Err(_) => {}
            }
            if !self.is_up() {
                return;
            }
        }
    }

    fn adopt(&self, (seconds, microseconds): (i64, i64), asked: Instant) {
        let told = seconds.saturating_mul(1000).saturating_add(microseconds / 1000);
        if let Some(moved) = self.0.clock.adopt(told, asked)
            && moved.abs() > 1000
        {
            tracing::warn!(
                milliseconds = moved,
                "the clock of Redis differs from the one used so far; following Redis"
            );
        }
    }

    async fn establish(
        &self,
        generation: u64,
        before: Option<&Incarnation>,
        replay: &impl Fn() -> Vec<Pipeline>,
    ) -> Result<(Up, Incarnation), RedisError> {
        let link = self.clone();
        // The driver ends when the connection does, so an outage is seen even while nobody asks.
        let (mut connection, driver) =
            self.open(move || link.trip(generation, "the connection broke")).await?;
        let asked = Instant::now();
        let mut pipeline = probe();
        pipeline.cmd("INFO").arg("server");
        let (time, _, server) =
            in_time(pipeline.query_async::<((i64, i64), Option<Vec<u8>>, String)>(&mut connection)).await?;
        self.adopt(time, asked);
        for step in replay() {
            in_time(step.query_async::<Value>(&mut connection)).await?;
        }
        let found = self.incarnation(&server, before);
        Ok((
            Up { connection, _driver: Arc::new(driver), generation, complete_since: found.complete_since },
            found,
        ))
    }

    /// A Redis process that we knew before holds what it held. One that is new to us at our own start
    /// holds everything since it began. One that took another's place holds what came since now: what
    /// was written shortly before may not have reached its disk or its replica.
    fn incarnation(&self, server: &str, before: Option<&Incarnation>) -> Incarnation {
        let run_id = info_field(server, "run_id").unwrap_or_default();
        let uptime = info_field(server, "uptime_in_seconds").and_then(|text| text.parse::<i64>().ok());
        let now = self.0.clock.now();
        let complete_since = match (before, uptime) {
            (Some(before), _) if before.run_id == run_id && !run_id.is_empty() => before.complete_since,
            // Uptime is cut to whole seconds and starts before the dump is loaded.
            (None, Some(uptime)) => now - uptime.saturating_mul(1000) + 1000,
            _ => now,
        };
        Incarnation { run_id: run_id.to_owned(), complete_since: complete_since.min(now) }
    }
}

/// The time, and a look-up: a Redis that is loading answers the first and refuses the second.
fn probe() -> Pipeline {
    let mut pipeline = redis::pipe();
    pipeline.cmd("TIME").cmd("GET").arg("token:probe");
    pipeline
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock::ClusterClock, config::Config, metrics::Metrics};

    #[test]
    fn a_known_process_keeps_its_word_and_a_new_one_starts_over() {
        let config = Config::from_flags(["--redis-host", "127.0.0.1"]).ok().unwrap();
        let link = RedisLink::new(&config.redis, ClusterClock::new(), Arc::new(Metrics::new())).unwrap();
        let now = link.0.clock.now();
        let first = link.incarnation("run_id:aa\r\nuptime_in_seconds:100\r\n", None);
        assert!((first.complete_since - (now - 99_000)).abs() < 500);
        let same = link.incarnation("run_id:aa\r\nuptime_in_seconds:130\r\n", Some(&first));
        assert_eq!(same.complete_since, first.complete_since);
        let other = link.incarnation("run_id:bb\r\nuptime_in_seconds:9999\r\n", Some(&same));
        assert!(other.complete_since >= now);
        let hidden = link.incarnation("", None);
        assert!(hidden.complete_since >= now);
    }
}
