//! The way to Redis: one pipelined connection for short commands, a deadline on each of them, and a
//! breaker that answers at once while Redis is away and closes again by itself.
//!
//! A supervisor task owns the connection. While Redis answers it asks for its time every second; when a
//! command fails as only a dead connection does, the link is *down* at once for everybody, and the
//! supervisor tries to connect every 200 ms until Redis answers again. Nothing ever waits for a
//! reconnect: a caller gets its answer within the deadline or learns that there is none.

mod batch;
mod connect;
mod supervise;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use redis::{Cmd, FromRedisValue, Pipeline, RedisError, aio::MultiplexedConnection};
use tokio::{
    sync::{Notify, watch},
    time::{error::Elapsed, timeout},
};

use self::connect::{Driver, describe, is_of_the_connection};
use crate::{
    clock::ClusterClock,
    config::RedisConfig,
    metrics::{Metrics, RedisFailure},
};

/// How long a command may take. With the fallback behind it an answer stays far below 100 ms, and an
/// undisturbed Redis answers in well under 1 ms.
pub const COMMAND_DEADLINE: Duration = Duration::from_millis(40);

/// How late a deadline must be noticed to be this process' own fault.
const STANDSTILL: Duration = Duration::from_millis(10);

/// Why a command has no result.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The breaker is open: Redis was not asked.
    #[error("Redis is away")]
    Down,
    /// No answer before the deadline. Redis may still have done what it was asked.
    #[error("Redis did not answer in time")]
    Deadline,
    /// The connection broke. Redis may have done what it was asked.
    #[error("the connection to Redis broke")]
    Connection,
    /// Redis answered with an error and did nothing.
    #[error("Redis refused: {0}")]
    Answer(String),
}

/// What the link is doing, in words that health answers and logs can show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// Commands go through.
    Up,
    /// Commands are answered at once with [`LinkError::Down`].
    Down(String),
}

#[derive(Clone)]
struct Up {
    connection: MultiplexedConnection,
    /// Ends the connection with its last user, whatever is still waiting on it.
    _driver: Arc<Driver>,
    generation: u64,
    /// Since when what Redis holds is known to be complete, milliseconds on the cluster's clock.
    complete_since: i64,
}

#[derive(Clone)]
enum State {
    Up(Box<Up>),
    Down { reason: String, since: Instant },
}

/// Handle to the link; clones share it.
#[derive(Clone)]
pub struct RedisLink(Arc<Inner>);

struct Inner {
    settings: RedisConfig,
    host: String,
    state: watch::Sender<State>,
    /// Wakes the supervisor when a command found the connection dead.
    tripped: Notify,
    /// When Redis last answered anything, microseconds since `started`.
    last_answer: AtomicU64,
    started: Instant,
    /// Redis answers but refuses writes: out of memory, read-only, disk full.
    refusing: AtomicBool,
    clock: ClusterClock,
    metrics: Arc<Metrics>,
}

impl RedisLink {
    /// A link that is down until [`Self::supervise`] runs; `None` when no host is configured.
    #[must_use]
    pub fn new(settings: &RedisConfig, clock: ClusterClock, metrics: Arc<Metrics>) -> Option<Self> {
        let host = settings.host()?.to_owned();
        Some(Self(Arc::new(Inner {
            settings: settings.clone(),
            host,
            state: watch::Sender::new(State::Down {
                reason: "not connected yet".to_owned(),
                since: Instant::now(),
            }),
            tripped: Notify::new(),
            last_answer: AtomicU64::new(0),
            started: Instant::now(),
            refusing: AtomicBool::new(false),
            clock,
            metrics,
        })))
    }

    /// Whether commands go through.
    #[must_use]
    pub fn state(&self) -> LinkState {
        match &*self.0.state.borrow() {
            State::Up(_) => LinkState::Up,
            State::Down { reason, .. } => LinkState::Down(reason.clone()),
        }
    }

    /// Whether commands go through, as cheaply as possible.
    #[must_use]
    pub fn is_up(&self) -> bool {
        matches!(&*self.0.state.borrow(), State::Up(_))
    }

    /// Whether Redis answers but has refused the latest write.
    #[must_use]
    pub fn refuses_writes(&self) -> bool {
        self.0.refusing.load(Ordering::Relaxed)
    }

    /// Notes whether Redis took the latest write.
    pub fn note_write(&self, refused: bool) {
        // A load first: the shared line stays shared while nothing changes.
        if self.0.refusing.load(Ordering::Relaxed) != refused {
            self.0.refusing.store(refused, Ordering::Relaxed);
            if refused {
                tracing::warn!(
                    "Redis answers but refuses writes: tokens are signed only, until it takes them"
                );
            } else {
                tracing::info!("Redis takes writes");
            }
        }
    }

    /// Since when the absence of a key proves that it was deleted or expired, in milliseconds on the
    /// cluster's clock; `None` while the link is down. What was written earlier may have been lost by a
    /// restart or a failover.
    #[must_use]
    pub fn complete_since(&self) -> Option<i64> {
        match &*self.0.state.borrow() {
            State::Up(up) => Some(up.complete_since),
            State::Down { .. } => None,
        }
    }

    /// Number of the configured database.
    #[must_use]
    pub fn database(&self) -> u16 {
        self.0.settings.database
    }

    /// Resolves when the link is up, which may be at once.
    pub async fn wait_up(&self) {
        // The sender lives as long as self.
        let _ = self.0.state.subscribe().wait_for(|state| matches!(state, State::Up(_))).await;
    }

    /// Whether commands go through, after waiting for the end of an outage that is younger than
    /// `patience`: a Redis that restarts or fails over at once is back by then.
    pub async fn settle(&self, patience: Duration) -> bool {
        let remaining = match &*self.0.state.borrow() {
            State::Up(_) => return true,
            State::Down { since, .. } => patience.saturating_sub(since.elapsed()),
        };
        timeout(remaining, self.wait_up()).await.is_ok()
    }

    /// Runs a command on the shared connection.
    ///
    /// # Errors
    /// [`LinkError`]; at once when the link is down, else within `deadline`.
    pub async fn query<T: FromRedisValue>(&self, command: &Cmd, deadline: Duration) -> Result<T, LinkError> {
        let Some(mut up) = self.up() else {
            return Err(LinkError::Down);
        };
        let asked = self.elapsed();
        // On the heap: it is large, and so would be the task of every request that may ask.
        let answer = answered(deadline, Box::pin(up.connection.send_packed_command(command))).await;
        let value = self.judge(answer, &up, asked)?;
        value
            .extract_error()
            .and_then(|value| redis::from_redis_value(value).map_err(RedisError::from))
            .map_err(|error| self.refused(&error))
    }

    /// Runs a pipeline on the shared connection, as one write and one read.
    ///
    /// # Errors
    /// [`LinkError`]; at once when the link is down, else within `deadline`.
    pub async fn query_pipeline<T: FromRedisValue>(
        &self,
        pipeline: &Pipeline,
        deadline: Duration,
    ) -> Result<T, LinkError> {
        let Some(mut up) = self.up() else {
            return Err(LinkError::Down);
        };
        let asked = self.elapsed();
        let answer = answered(deadline, Box::pin(pipeline.query_async::<T>(&mut up.connection))).await;
        self.judge(answer, &up, asked)
    }

    fn up(&self) -> Option<Up> {
        match &*self.0.state.borrow() {
            State::Up(up) => Some(Up::clone(up)),
            State::Down { .. } => None,
        }
    }

    /// Microseconds since the link was made.
    fn elapsed(&self) -> u64 {
        u64::try_from(self.0.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Tells a dead connection from a slow one and from a refusal.
    fn judge<T>(
        &self,
        answer: Result<Result<T, RedisError>, Elapsed>,
        up: &Up,
        asked: u64,
    ) -> Result<T, LinkError> {
        match answer {
            Ok(Ok(value)) => {
                self.0.last_answer.store(self.elapsed(), Ordering::Relaxed);
                Ok(value)
            }
            Ok(Err(error)) if is_of_the_connection(&error) => {
                self.0.metrics.redis_failed(RedisFailure::Connection);
                self.trip(up.generation, "the connection broke");
                Err(LinkError::Connection)
            }
            Ok(Err(error)) => Err(self.refused(&error)),
            Err(_) => {
                self.0.metrics.redis_failed(RedisFailure::Deadline);
                // Slow is not dead: as long as others get their answers, only this command gives up.
                if self.0.last_answer.load(Ordering::Relaxed) < asked {
                    self.trip(up.generation, "no answer in time");
                }
                Err(LinkError::Deadline)
            }
        }
    }

    fn refused(&self, error: &RedisError) -> LinkError {
        self.0.last_answer.store(self.elapsed(), Ordering::Relaxed);
        self.0.metrics.redis_failed(RedisFailure::Answer);
        LinkError::Answer(describe(error))
    }

    /// Opens the breaker, unless another connection has taken over since.
    fn trip(&self, generation: u64, reason: &str) {
        let tripped = self.0.state.send_if_modified(|state| match state {
            State::Up(up) if up.generation == generation => {
                *state = State::Down { reason: reason.to_owned(), since: Instant::now() };
                true
            }
            _ => false,
        });
        if tripped {
            self.0.metrics.redis_up.set(0);
            self.0.metrics.redis_outages.inc();
            tracing::warn!(reason, "Redis is away: tokens are signed only, until it is back");
            self.0.tripped.notify_one();
        }
    }
}

/// Waits until `deadline` for an answer. When the deadline is noticed late it was this process that stood
/// still (throttled, say), and the answer may be there already, unread: it gets a second chance.
async fn answered<T>(deadline: Duration, mut answer: impl Future<Output = T> + Unpin) -> Result<T, Elapsed> {
    let asked = Instant::now();
    match timeout(deadline, &mut answer).await {
        Err(_) if asked.elapsed() > deadline + STANDSTILL => timeout(deadline, answer).await,
        outcome => outcome,
    }
}

/// A field of an INFO answer.
#[must_use]
pub fn info_field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn link() -> RedisLink {
        let config = Config::from_flags(["--redis-host", "127.0.0.1", "--redis-port", "1"]).ok().unwrap();
        RedisLink::new(&config.redis, ClusterClock::new(), Arc::new(Metrics::new())).unwrap()
    }

    #[tokio::test]
    async fn a_link_that_is_down_answers_at_once() {
        let begun = Instant::now();
        let outcome: Result<(), _> = link().query(&redis::cmd("PING"), Duration::from_mins(1)).await;
        assert!(matches!(outcome, Err(LinkError::Down)));
        assert!(begun.elapsed() < Duration::from_secs(1));
    }

    #[tokio::test]
    async fn an_answer_that_came_while_the_process_stood_still_counts() {
        let deadline = Duration::from_millis(20);
        let (sender, receiver) = tokio::sync::oneshot::channel();
        // The answer is sent by a task that cannot run while this one blocks the only thread.
        tokio::spawn(async move { sender.send(7) });
        let standing_still = async {
            std::thread::sleep(deadline * 3);
            receiver.await
        };
        assert_eq!(answered(deadline, Box::pin(standing_still)).await, Ok(Ok(7)));
        assert!(answered(deadline, std::future::pending::<()>()).await.is_err());
    }

    #[test]
    fn info_fields_are_found_by_their_whole_name() {
        let info = "# Memory\r\nused_memory_human:1M\r\nused_memory:1048576\r\n";
        assert_eq!(info_field(info, "used_memory"), Some("1048576"));
        assert_eq!(info_field(info, "used"), None);
    }
}
