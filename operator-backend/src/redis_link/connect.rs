//! How a connection to Redis is made, and what its errors mean to people.

use std::time::Duration;

use redis::{
    AsyncConnectionConfig, Client, ErrorKind, IntoConnectionInfo, RedisConnectionInfo, RedisError,
    ServerErrorKind, aio::MultiplexedConnection,
};
use tokio::{net::TcpStream, task::AbortHandle, time::timeout};

use super::{RedisLink, batch::Batched};
use crate::config::{RedisConfig, Secret, secret};

/// How long a probe or a step of the handshake may take.
pub(super) const PROBE_DEADLINE: Duration = Duration::from_millis(400);
/// How long a name may take to resolve.
const RESOLVE_DEADLINE: Duration = Duration::from_secs(2);
/// Requests that may wait in the pipeline's queue; each waits no longer than its deadline.
const PIPELINE_QUEUE: usize = 4096;

/// The task that moves the bytes of a connection.
pub(super) struct Driver(AbortHandle);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl RedisLink {
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

    /// Opens the shared connection and runs it; `on_end` is called when it has ended.
    pub(super) async fn open(
        &self,
        on_end: impl FnOnce() + Send + 'static,
    ) -> Result<(MultiplexedConnection, Driver), RedisError> {
        let login = self.login().await?;
        let config =
            AsyncConnectionConfig::new().set_response_timeout(None).set_pipeline_buffer_size(PIPELINE_QUEUE);
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
            return Err(plain(ErrorKind::Io, "the name of the Redis host does not resolve in time"));
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

pub(super) async fn in_time<T>(
    attempt: impl Future<Output = Result<T, RedisError>>,
) -> Result<T, RedisError> {
    match timeout(PROBE_DEADLINE, attempt).await {
        Ok(outcome) => outcome,
        Err(_) => Err(plain(ErrorKind::Io, "no answer in time")),
    }
}

fn plain(kind: ErrorKind, text: &'static str) -> RedisError {
    RedisError::from((kind, text))
}

pub(super) fn is_of_the_connection(error: &RedisError) -> bool {
    error.is_io_error()
        || error.is_connection_dropped()
        || error.is_timeout()
        || error.is_unrecoverable_error()
}

/// What to tell people, with the remedy where there is one. Never the password: Redis does not repeat it.
pub(super) fn describe(error: &RedisError) -> String {
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
