//! The ways in which a Redis fails.

use std::time::Duration;

use super::RedisServer;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    Killed,
    Stopped,
    Paused,
    Unreachable,
    OutOfMemory,
}

impl Failure {
    /// How long each failure lasts.
    pub(crate) const LENGTH: Duration = Duration::from_secs(2);

    pub(crate) fn redis(self) -> RedisServer {
        if matches!(self, Self::Unreachable) { RedisServer::behind_a_line() } else { RedisServer::start() }
    }

    pub(crate) fn begin(self, redis: &mut RedisServer) {
        match self {
            Self::Killed => redis.kill(),
            Self::Stopped => redis.freeze(),
            Self::Paused => assert_eq!(
                redis.cli(&["CLIENT", "PAUSE", &Self::LENGTH.as_millis().to_string(), "ALL"]),
                "OK"
            ),
            Self::Unreachable => redis.line().drop_packets(),
            Self::OutOfMemory => assert_eq!(redis.cli(&["CONFIG", "SET", "maxmemory", "1"]), "OK"),
        }
    }

    pub(crate) fn end(self, redis: &mut RedisServer) {
        match self {
            Self::Killed => redis.restart(),
            Self::Stopped => redis.thaw(),
            // Ends by itself.
            Self::Paused => {}
            Self::Unreachable => redis.line().pass_packets(),
            Self::OutOfMemory => assert_eq!(redis.cli(&["CONFIG", "SET", "maxmemory", "0"]), "OK"),
        }
    }
}
