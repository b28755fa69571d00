//! Every setting of an instance: one field, one flag, one environment variable.
//!
//! Nothing here has `Debug` or `Display`: the struct carries secrets, and what cannot be printed
//! cannot leak.

use std::{net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use clap::{Args, Parser, builder::BoolishValueParser};

use crate::{client_address::TrustedProxies, cors::AllowedOrigins};

/// A value that must never reach a log, a metric or an error text; it has no `Debug` and no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The bytes themselves, for hashing or sending; the caller must not print them.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(value: String) -> Self {
        Self(value)
    }
}

/// Exchange principal tokens for ephemeral tokens and stream events to those who present one.
#[derive(Parser, Clone)]
#[command(name = "operator-backend", version, about, args_override_self = true)]
pub struct Config {
    /// Address of the public port.
    #[arg(long, env = "VX11_LISTEN", default_value = "0.0.0.0:8001")]
    pub listen: SocketAddr,
    /// Address of the admin port: metrics, probes, load, drain. Not for the outside.
    #[arg(long, env = "VX11_ADMIN_LISTEN", default_value = "0.0.0.0:9090")]
    pub admin_listen: SocketAddr,
    /// Name of this instance in answers and logs; the host name (in a cluster the pod name) if absent.
    #[arg(long, env = "INSTANCE_ID")]
    pub instance_id: Option<String>,
    /// Log filter in the syntax of tracing's `EnvFilter`, e.g. `info` or `operator_backend=debug`. Of libraries it never
    /// shows more detail than `info`.
    #[arg(long = "log", env = "VX11_LOG", default_value = "info")]
    pub log: String,
    /// Threads that serve requests; 0 = one for each CPU this process may use.
    #[arg(long, env = "VX11_WORKER_THREADS", default_value_t = 0)]
    pub worker_threads: usize,
    /// Redis that the instances share.
    #[command(flatten)]
    pub redis: RedisConfig,
    /// Who may come in, and with what.
    #[command(flatten)]
    pub auth: AuthConfig,
    /// The ephemeral tokens.
    #[command(flatten)]
    pub token: TokenConfig,
    /// The streams.
    #[command(flatten)]
    pub stream: StreamConfig,
    /// How much of everything.
    #[command(flatten)]
    pub limits: LimitConfig,
}

/// Where Redis is. Without a host the instance runs alone, in memory.
#[derive(Args, Clone)]
pub struct RedisConfig {
    /// Host name or address of Redis; absent or empty = run alone, in memory.
    #[arg(id = "redis_host", long = "redis-host", env = "REDIS_HOST")]
    pub host: Option<String>,
    /// Port of Redis.
    #[arg(id = "redis_port", long = "redis-port", env = "REDIS_PORT", default_value_t = 6379)]
    pub port: u16,
    /// Database number for tokens and events.
    #[arg(id = "redis_db", long = "redis-db", env = "REDIS_DB", default_value_t = 1)]
    pub database: u16,
    /// Password of Redis. Prefer the file: it is read again at every reconnect.
    #[arg(id = "redis_password", long = "redis-password", env = "REDIS_PASSWORD", hide_env_values = true)]
    pub password: Option<SecretArg>,
    /// File with the password of Redis, read again at every reconnect; wins over the password itself.
    #[arg(id = "redis_password_file", long = "redis-password-file", env = "REDIS_PASSWORD_FILE")]
    pub password_file: Option<PathBuf>,
}

/// Principals, signing keys, control token.
#[derive(Args, Clone)]
pub struct AuthConfig {
    /// Adds the principal `operator`.
    #[arg(long, env = "VX11_OPERATOR_TOKEN", hide_env_values = true)]
    pub operator_token: Option<SecretArg>,
    /// Adds the principal `gateway`.
    #[arg(long, env = "VX11_GATEWAY_TOKEN", hide_env_values = true)]
    pub gateway_token: Option<SecretArg>,
    /// Adds the principal `tentaculo-link`.
    #[arg(long, env = "VX11_TENTACULO_LINK_TOKEN", hide_env_values = true)]
    pub tentaculo_link_token: Option<SecretArg>,
    /// Adds the principal `principal`.
    #[arg(long, env = "VX11_PRINCIPAL_TOKEN", hide_env_values = true)]
    pub principal_token: Option<SecretArg>,
    /// Directory of principals: each file is one, named by the file, one token a line. Re-read on change.
    #[arg(long, env = "VX11_PRINCIPAL_TOKENS_DIR")]
    pub principal_tokens_dir: Option<PathBuf>,
    /// Directory with the signing keys the instances share: `current` and optionally `previous`. Re-read on change.
    #[arg(long, env = "VX11_SIGNING_KEYS_DIR")]
    pub signing_keys_dir: Option<PathBuf>,
    /// File with the token that may drain this instance; without it only loopback peers may.
    #[arg(long, env = "VX11_CONTROL_TOKEN_FILE")]
    pub control_token_file: Option<PathBuf>,
    /// Accept a principal token in the stream's query too. It lands in access logs of proxies: off by default.
    #[arg(long, env = "VX11_ACCEPT_PRINCIPAL_TOKEN_IN_QUERY", value_parser = BoolishValueParser::new(),
          default_value = "false", num_args = 0..=1, default_missing_value = "true")]
    pub accept_principal_token_in_query: bool,
    /// Origins of pages that may use this API from a browser, comma separated; `*` = any.
    #[arg(long, env = "VX11_ALLOWED_ORIGINS", default_value = "")]
    pub allowed_origins: AllowedOrigins,
    /// CIDR list of proxies whose X-Forwarded-For is believed, comma separated.
    #[arg(long, env = "VX11_TRUSTED_PROXIES", default_value = "")]
    pub trusted_proxies: TrustedProxies,
}

/// Ephemeral tokens.
#[derive(Args, Clone)]
pub struct TokenConfig {
    /// Life of an ephemeral token in seconds, 1 to 3600.
    #[arg(id = "token_ttl", long = "token-ttl", env = "EPHEMERAL_TOKEN_TTL_SEC", default_value_t = 60,
          value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub ttl_seconds: u32,
    /// A token opens one stream, once. Off: any number of times while it lives.
    #[arg(long = "single-use-tokens", env = "VX11_SINGLE_USE_TOKENS", value_parser = BoolishValueParser::new(),
          default_value = "false", num_args = 0..=1, default_missing_value = "true")]
    pub single_use: bool,
}

/// Streams and the events on them.
#[derive(Args, Clone)]
pub struct StreamConfig {
    /// Seconds between heartbeats on an idle stream, 1 to 300.
    #[arg(id = "heartbeat", long = "heartbeat", env = "VX11_OPERATOR_SSE_HEARTBEAT", default_value_t = 15,
          value_parser = clap::value_parser!(u32).range(1..=300))]
    pub heartbeat_seconds: u32,
    /// The `retry:` value that clients are told, in milliseconds.
    #[arg(id = "stream_retry", long = "stream-retry", env = "VX11_STREAM_RETRY_MS", default_value_t = 2000,
          value_parser = clap::value_parser!(u32).range(100..=300_000))]
    pub retry_milliseconds: u32,
    /// How long after an event its cursor still authorises a resume, in seconds.
    #[arg(id = "resume_window", long = "resume-window", env = "VX11_RESUME_WINDOW_SEC", default_value_t = 300,
          value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub resume_window_seconds: u32,
    /// Seconds over which a drain spreads the closing of the streams, 0 to 600.
    #[arg(id = "drain", long = "drain", env = "VX11_DRAIN_SEC", default_value_t = 20,
          value_parser = clap::value_parser!(u32).range(0..=600))]
    pub drain_seconds: u32,
    /// Seconds between a requested drain and its first closing, 0 to 60: as long as it takes until the load
    /// balancer knows that this instance is not ready. The end of the process has its own (a preStop hook).
    #[arg(id = "drain_delay", long = "drain-delay", env = "VX11_DRAIN_DELAY_SEC", default_value_t = 0,
          value_parser = clap::value_parser!(u32).range(0..=60))]
    pub drain_delay_seconds: u32,
    /// How many events of the resume window are kept for resuming clients at most.
    #[arg(id = "event_history", long = "event-history", env = "VX11_EVENT_HISTORY", default_value_t = 100_000,
          value_parser = clap::value_parser!(u32).range(5..=1_000_000))]
    pub event_history: u32,
    /// How many bytes of them are kept at most, by each instance and in Redis; 1 MiB to 1 GiB.
    #[arg(id = "event_bytes", long = "event-bytes", env = "VX11_EVENT_BYTES", default_value_t = 33_554_432,
          value_parser = clap::value_parser!(u32).range(1_048_576..=1_073_741_824))]
    pub event_bytes: u32,
}

/// Limits; 0 means none.
#[derive(Args, Clone)]
pub struct LimitConfig {
    /// Streams on this instance.
    #[arg(long, env = "VX11_MAX_CLIENTS", default_value_t = 1000)]
    pub max_clients: u32,
    /// Streams of one principal on this instance.
    #[arg(long, env = "VX11_MAX_CLIENTS_PER_PRINCIPAL", default_value_t = 0)]
    pub max_clients_per_principal: u32,
    /// Streams of one client address on this instance.
    #[arg(long, env = "VX11_MAX_CLIENTS_PER_ADDRESS", default_value_t = 0)]
    pub max_clients_per_address: u32,
    /// Tokens a second that one principal may ask for, with a burst of one second's worth.
    #[arg(long, env = "VX11_ISSUE_RATE_PER_PRINCIPAL", default_value_t = 0)]
    pub issue_rate_per_principal: u32,
    /// Tokens a second that one client address may ask for, with a burst of one second's worth.
    #[arg(long, env = "VX11_ISSUE_RATE_PER_ADDRESS", default_value_t = 0)]
    pub issue_rate_per_address: u32,
}

/// A secret on the command line or in the environment; empty counts as absent.
#[derive(Clone)]
pub struct SecretArg(Option<Secret>);

impl FromStr for SecretArg {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        Ok(Self((!text.is_empty()).then(|| Secret(text.to_owned()))))
    }
}

/// The secret inside, if there is one that is not empty.
#[must_use]
pub fn secret(argument: Option<&SecretArg>) -> Option<&Secret> {
    argument.and_then(|argument| argument.0.as_ref())
}

impl RedisConfig {
    /// Host of Redis, `None` when this instance runs alone.
    #[must_use]
    pub fn host(&self) -> Option<&str> {
        self.host.as_deref().map(str::trim).filter(|host| !host.is_empty())
    }
}

impl Config {
    /// Settings from a command line alone, for tests and embedding; the environment is read as well.
    ///
    /// # Errors
    /// clap's message, which names the flag and what it accepts.
    pub fn from_flags<'a>(flags: impl IntoIterator<Item = &'a str>) -> Result<Self, clap::Error> {
        Self::try_parse_from(std::iter::once("operator-backend").chain(flags))
    }

    /// Name of this instance: the configured one, else the host name, else `operator-backend`.
    #[must_use]
    pub fn instance_id(&self) -> String {
        let host_name = || std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
        [self.instance_id.clone(), host_name()]
            .into_iter()
            .flatten()
            .map(|name| name.trim().to_owned())
            .find(|name| !name.is_empty())
            .unwrap_or_else(|| "operator-backend".to_owned())
    }
}

impl TokenConfig {
    /// Life of an ephemeral token.
    #[must_use]
    pub fn ttl(&self) -> Duration {
        Duration::from_secs(self.ttl_seconds.into())
    }
}

impl StreamConfig {
    /// Time between heartbeats.
    #[must_use]
    pub fn heartbeat(&self) -> Duration {
        Duration::from_secs(self.heartbeat_seconds.into())
    }

    /// Age up to which a cursor authorises a resume.
    #[must_use]
    pub fn resume_window(&self) -> Duration {
        Duration::from_secs(self.resume_window_seconds.into())
    }

    /// Time over which a drain closes the streams.
    #[must_use]
    pub fn drain_window(&self) -> Duration {
        Duration::from_secs(self.drain_seconds.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Config::command().debug_assert();
    }

    #[test]
    fn no_flag_is_needed() {
        let config = Config::from_flags([]).ok().unwrap();
        assert_eq!(config.token.ttl(), Duration::from_mins(1));
        assert_eq!(config.limits.max_clients, 1000);
        assert!(!config.token.single_use);
    }

    #[test]
    fn help_never_shows_a_secret_from_the_environment() {
        use clap::CommandFactory;
        for argument in Config::command().get_arguments() {
            let name = argument.get_id().as_str();
            let secret = (name.ends_with("_token") || name.ends_with("password")) && !name.contains("accept");
            assert_eq!(argument.is_hide_env_values_set(), secret, "{name}");
        }
    }

    #[test]
    fn an_empty_variable_counts_as_absent() {
        let config = Config::from_flags(["--redis-host", "", "--principal-token", " "]).ok().unwrap();
        assert!(config.redis.host().is_none());
        assert!(secret(config.auth.principal_token.as_ref()).is_none());
    }

    #[test]
    fn out_of_range_names_the_flag() {
        let message = Config::from_flags(["--token-ttl", "0"]).err().unwrap().to_string();
        assert!(message.contains("--token-ttl"), "{message}");
    }
}
