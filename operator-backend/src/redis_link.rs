//! The way to Redis: one pipelined connection for short commands, a deadline on each of them, and a
//! breaker that answers at once while Redis is away and closes again by itself.
//!
//! A supervisor task owns the connection. While Redis answers it asks for its time every second; when a
//! command fails as only a dead connection does, the link is *down* at once for everybody, and the
//! supervisor tries to connect every 200 ms until Redis answers again. Nothing ever waits for a
//! reconnect: a caller gets its answer within the deadline or learns that there is none.

mod batch;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, FromRedisValue, IntoConnectionInfo, Pipeline,
    RedisConnectionInfo, RedisError, ServerErrorKind, aio::MultiplexedConnection,
};
use tokio::{
    net::TcpStream,
    sync::{Notify, watch},
    task::AbortHandle,
    time::timeout,
};

use self::batch::Batched;
use crate::{
    config::{RedisConfig, Secret, secret},
    metrics::{Metrics, RedisFailure},
    token::ClusterClock,
};

/// How long a command may take. With the fallback behind it an answer stays far below 100 ms, and an
/// undisturbed Redis answers in well under 1 ms.
pub const COMMAND_DEADLINE: Duration = Duration::from_millis(40);
/// How often a link that is up proves it when nobody uses it.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// How long a probe or a step of the handshake may take.
const PROBE_DEADLINE: Duration = Duration::from_millis(400);
/// Pause between attempts to connect: with the handshake's deadline the link is up again within 1 s of
/// Redis' return, and an absent Redis sees five attempts a second from each instance.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// How long a name may take to resolve.
const RESOLVE_DEADLINE: Duration = Duration::from_secs(2);
/// Requests that may wait in the pipeline's queue; each waits no longer than its deadline.
const PIPELINE_QUEUE: usize = 4096;

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

/// The task that moves the bytes of a connection.
struct Driver(AbortHandle);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
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

/// The data that a connection found: the process it talks to and since when that is complete.
#[derive(Clone)]
struct Incarnation {
    run_id: String,
    complete_since: i64,
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
        let _ = self
            .0
            .state
            .subscribe()
            .wait_for(|state| matches!(state, State::Up(_)))
            .await;
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
        let answer = timeout(deadline, up.connection.send_packed_command(command)).await;
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
        let answer = timeout(deadline, pipeline.query_async::<T>(&mut up.connection)).await;
        self.judge(answer, &up, asked)
    }

    /// A connection of its own, for commands that block. It has no breaker: the caller sets
    /// `response_timeout` above its longest block and connects again after any error.
    ///
    /// # Errors
    /// What the connection attempt came to.
    pub async fn connect_dedicated(
        &self,
        response_timeout: Duration,
    ) -> Result<MultiplexedConnection, RedisError> {
        let info = (self.0.host.as_str(), self.0.settings.port).into_connection_info()?;
        let client = Client::open(info.set_redis_settings(self.login().await?))?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(PROBE_DEADLINE))
            .set_response_timeout(Some(response_timeout));
        client.get_multiplexed_async_connection_with_config(&config).await
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
        answer: Result<Result<T, RedisError>, tokio::time::error::Elapsed>,
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
                *state = State::Down {
                    reason: reason.to_owned(),
                    since: Instant::now(),
                };
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

    /// Connects, watches, connects again, until the process ends; at once after a connection that has
    /// lasted, after a pause otherwise. Before the link counts as up,
    /// whatever `replay` gives is written, so that Redis knows what happened without it.
    pub async fn supervise(self, replay: impl Fn() -> Option<Pipeline>) {
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
                    if let Some(pipeline) = replay() {
                        let _ = self.query_pipeline::<()>(&pipeline, PROBE_DEADLINE).await;
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
                tracing::warn!(
                    reason,
                    host = self.0.host,
                    port = self.0.settings.port,
                    "cannot use Redis"
                );
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
            match self
                .query_pipeline::<((i64, i64), Option<Vec<u8>>)>(&probe(), PROBE_DEADLINE)
                .await
            {
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
        replay: &impl Fn() -> Option<Pipeline>,
    ) -> Result<(Up, Incarnation), RedisError> {
        let link = self.clone();
        // The driver ends when the connection does, so an outage is seen even while nobody asks.
        let (mut connection, driver) = self
            .open(move || link.trip(generation, "the connection broke"))
            .await?;
        let asked = Instant::now();
        let mut pipeline = probe();
        pipeline.cmd("INFO").arg("server");
        let (time, _, server) =
            in_time(pipeline.query_async::<((i64, i64), Option<Vec<u8>>, String)>(&mut connection)).await?;
        self.adopt(time, asked);
        if let Some(pipeline) = replay() {
            in_time(pipeline.query_async::<()>(&mut connection)).await?;
        }
        let found = self.incarnation(&server, before);
        Ok((
            Up {
                connection,
                _driver: Arc::new(driver),
                generation,
                complete_since: found.complete_since,
            },
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
        Incarnation {
            run_id: run_id.to_owned(),
            complete_since: complete_since.min(now),
        }
    }

    /// Opens the shared connection and runs it; `on_end` is called when it has ended.
    async fn open(
        &self,
        on_end: impl FnOnce() + Send + 'static,
    ) -> Result<(MultiplexedConnection, Driver), RedisError> {
        let login = self.login().await?;
        let config = AsyncConnectionConfig::new()
            .set_response_timeout(None)
            .set_pipeline_buffer_size(PIPELINE_QUEUE);
        let socket = Batched::new(self.connect().await?);
        let handshake = MultiplexedConnection::new_with_config(&login, socket, config);
        let (connection, driver) = in_time(handshake).await?;
        let driver = tokio::spawn(async move {
            driver.await;
            on_end();
        });
        Ok((connection, Driver(driver.abort_handle())))
    }

    /// What a connection says first: the password in force now and the database.
    async fn login(&self) -> Result<RedisConnectionInfo, RedisError> {
        let login = RedisConnectionInfo::default().set_db(self.0.settings.database.into());
        Ok(match password(&self.0.settings).await? {
            Some(password) => login.set_password(password.expose()),
            None => login,
        })
    }

    /// A socket to the first address of the host that takes one.
    async fn connect(&self) -> Result<TcpStream, RedisError> {
        let host = (self.0.host.as_str(), self.0.settings.port);
        let Ok(addresses) = timeout(RESOLVE_DEADLINE, tokio::net::lookup_host(host)).await else {
            return Err(plain(
                ErrorKind::Io,
                "the name of the Redis host does not resolve in time",
            ));
        };
        let mut last = plain(ErrorKind::Io, "the name of the Redis host has no address");
        for address in addresses? {
            let attempt = async {
                let socket = TcpStream::connect(address).await?;
                socket.set_nodelay(true)?;
                Ok(socket)
            };
            match in_time(attempt).await {
                Ok(socket) => return Ok(socket),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

/// The password in force now: the file's if there is one, so that a rotation needs no restart.
async fn password(settings: &RedisConfig) -> Result<Option<Secret>, RedisError> {
    let Some(path) = &settings.password_file else {
        return Ok(secret(settings.password.as_ref()).cloned());
    };
    let text = tokio::fs::read_to_string(path).await.map_err(|error| {
        RedisError::from((
            ErrorKind::InvalidClientConfig,
            "cannot read the password file",
            format!("{}: {error}", path.display()),
        ))
    })?;
    let password = text.trim();
    Ok((!password.is_empty()).then(|| Secret::from(password.to_owned())))
}

/// The time, and a look-up: a Redis that is loading answers the first and refuses the second.
fn probe() -> Pipeline {
    let mut pipeline = redis::pipe();
    pipeline.cmd("TIME").cmd("GET").arg("token:probe");
    pipeline
}

async fn in_time<T>(attempt: impl Future<Output = Result<T, RedisError>>) -> Result<T, RedisError> {
    match timeout(PROBE_DEADLINE, attempt).await {
        Ok(outcome) => outcome,
        Err(_) => Err(plain(ErrorKind::Io, "no answer in time")),
    }
}

fn plain(kind: ErrorKind, text: &'static str) -> RedisError {
    RedisError::from((kind, text))
}

fn is_of_the_connection(error: &RedisError) -> bool {
    error.is_io_error()
        || error.is_connection_dropped()
        || error.is_timeout()
        || error.is_unrecoverable_error()
}

/// What to tell people, with the remedy where there is one. Never the password: Redis does not repeat it.
fn describe(error: &RedisError) -> String {
    match error.kind() {
        ErrorKind::AuthenticationFailed => {
            "Redis refuses the password; check REDIS_PASSWORD_FILE or REDIS_PASSWORD".to_owned()
        }
        ErrorKind::Server(ServerErrorKind::BusyLoading) => "Redis is loading its data".to_owned(),
        _ => match error.code() {
            Some("NOAUTH" | "WRONGPASS") => {
                "Redis refuses the password; check REDIS_PASSWORD_FILE or REDIS_PASSWORD".to_owned()
            }
            Some("OOM") => "Redis is out of memory (maxmemory)".to_owned(),
            Some("READONLY") => "Redis is a read-only replica".to_owned(),
            Some("MISCONF") => "Redis cannot save to its disk and refuses writes".to_owned(),
            Some(code) => format!("Redis answers {code}"),
            None => error.to_string(),
        },
    }
}

/// A field of an INFO answer.
#[must_use]
pub fn info_field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn link() -> RedisLink {
        let config = Config::from_flags(["--redis-host", "127.0.0.1", "--redis-port", "1"])
            .ok()
            .unwrap();
        RedisLink::new(&config.redis, ClusterClock::new(), Arc::new(Metrics::new())).unwrap()
    }

    #[tokio::test]
    async fn a_link_that_is_down_answers_at_once() {
        let begun = Instant::now();
        let outcome: Result<(), _> = link().query(&redis::cmd("PING"), Duration::from_mins(1)).await;
        assert!(matches!(outcome, Err(LinkError::Down)));
        assert!(begun.elapsed() < Duration::from_secs(1));
    }

    #[test]
    fn a_known_process_keeps_its_word_and_a_new_one_starts_over() {
        let link = link();
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

    #[test]
    fn info_fields_are_found_by_their_whole_name() {
        let info = "# Memory\r\nused_memory_human:1M\r\nused_memory:1048576\r\n";
        assert_eq!(info_field(info, "used_memory"), Some("1048576"));
        assert_eq!(info_field(info, "used"), None);
    }
}
