//! The commands that tokens need from Redis; each is one round trip on the shared connection.

use std::time::{Duration, Instant};

use redis::{Cmd, Pipeline};

use super::signed::{LONGEST_LIFE_MILLISECONDS, TOKEN_LENGTH, TokenId};
use crate::{
    identity::Principal,
    redis_link::{COMMAND_DEADLINE, LinkError, RedisLink, info_field},
};

/// How long a redemption may take. Giving up early would leave open whether Redis gave the token away, and
/// the fallback might then give it away a second time; so a redemption waits until Redis is surely gone.
const REDEEM_DEADLINE: Duration = Duration::from_secs(1);
/// How long a redemption whose connection broke waits for the next one. Until then this instance alone may be
/// cut off, and another may have taken the token from Redis; a Redis that restarted or failed over at once is
/// back by then.
const REDEEM_RECONNECT: Duration = Duration::from_secs(1);
/// Commands of one step of the replay: what even a busy Redis does well within a probe's deadline.
const REPLAY_COMMANDS: usize = 1000;

/// Tokens in the Redis that the instances share.
pub(super) struct RedisStore {
    link: RedisLink,
}

/// What Redis says about itself.
pub(super) struct SharedStats {
    pub(super) expiring_keys: u64,
    pub(super) memory_bytes: u64,
    pub(super) operations_per_second: u64,
}

/// `prefix:` and the token's text, on the stack.
struct Key {
    bytes: [u8; 6 + TOKEN_LENGTH],
    start: usize,
}

impl Key {
    fn new(prefix: Prefix, token: TokenId) -> Self {
        let mut text = [0; TOKEN_LENGTH];
        let text = token.encode(&mut text);
        let mut bytes = [0; 6 + TOKEN_LENGTH];
        let (head, tail) = bytes.split_at_mut(6);
        tail.copy_from_slice(text.as_bytes());
        let start = match prefix {
            Prefix::Token => {
                head.copy_from_slice(b"token:");
                0
            }
            Prefix::Used => {
                head.copy_from_slice(b" used:");
                1
            }
        };
        Self { bytes, start }
    }

    fn as_bytes(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }
}

#[derive(Clone, Copy)]
enum Prefix {
    /// A token that can be used.
    Token,
    /// Proof that a token which was never stored has been used.
    Used,
}

fn command(name: &str, key: &Key) -> Cmd {
    let mut command = Cmd::with_capacity(5, 128);
    command.arg(name).arg(key.as_bytes());
    command
}

/// Seconds that cover `milliseconds`, at least 1.
fn seconds(milliseconds: i64) -> i64 {
    (milliseconds + 999).div_euclid(1000).max(1)
}

impl RedisStore {
    pub(super) fn new(link: RedisLink) -> Self {
        Self { link }
    }

    pub(super) fn is_up(&self) -> bool {
        self.link.is_up()
    }

    pub(super) fn complete_since(&self) -> Option<i64> {
        self.link.complete_since()
    }

    /// Stores a token for `life` seconds.
    pub(super) async fn put(
        &self,
        token: TokenId,
        principal: &Principal,
        life: i64,
    ) -> Result<(), LinkError> {
        let mut command = command("SETEX", &Key::new(Prefix::Token, token));
        command.arg(life).arg(principal.name());
        let outcome = self.link.query(&command, COMMAND_DEADLINE).await;
        match &outcome {
            Ok(()) => self.link.note_write(false),
            Err(LinkError::Answer(_)) => self.link.note_write(true),
            Err(_) => {}
        }
        outcome
    }

    /// Name of the principal that a token belongs to.
    pub(super) async fn get(&self, token: TokenId) -> Result<Option<String>, LinkError> {
        self.link.query(&command("GET", &Key::new(Prefix::Token, token)), COMMAND_DEADLINE).await
    }

    /// Whether Redis holds a token and will let it go in time. One without an expiry was restored or persisted
    /// by somebody and would live for ever; only its signature, if we can read it, says when it ends.
    pub(super) async fn ends(&self, token: TokenId) -> Result<bool, LinkError> {
        let remaining: i64 =
            self.link.query(&command("PTTL", &Key::new(Prefix::Token, token)), COMMAND_DEADLINE).await?;
        Ok((0..=LONGEST_LIFE_MILLISECONDS).contains(&remaining))
    }

    /// As [`Self::get`], and the token is gone: of all who ask, one gets the name.
    pub(super) async fn take(&self, token: TokenId) -> Result<Option<String>, LinkError> {
        self.redeem(&command("GETDEL", &Key::new(Prefix::Token, token))).await
    }

    /// Marks a token that was never stored as used for its `remaining` milliseconds; `true` for the first.
    pub(super) async fn mark_used(&self, token: TokenId, remaining: i64) -> Result<bool, LinkError> {
        let mut command = command("SET", &Key::new(Prefix::Used, token));
        command.arg(1).arg("NX").arg("EX").arg(seconds(remaining));
        let first: Option<String> = self.redeem(&command).await?;
        Ok(first.is_some())
    }

    /// Runs a redemption, and again on the next connection if there is one soon. Should the first run have
    /// had its effect, the second finds the token used: a client may have to ask again, but a token is never
    /// given away twice.
    async fn redeem(&self, command: &Cmd) -> Result<Option<String>, LinkError> {
        let begun = Instant::now();
        loop {
            let outcome = self.link.query(command, REDEEM_DEADLINE).await;
            let broke = matches!(outcome, Err(LinkError::Connection | LinkError::Down));
            if !broke || begun.elapsed() > REDEEM_DEADLINE || !self.link.settle(REDEEM_RECONNECT).await {
                return outcome;
            }
        }
    }

    /// Size and load of Redis, in one command that does not look at keys.
    pub(super) async fn stats(&self) -> Result<SharedStats, LinkError> {
        let info: String = self.link.query(&redis::cmd("INFO"), COMMAND_DEADLINE * 5).await?;
        let number = |name| info_field(&info, name).and_then(|text| text.parse().ok()).unwrap_or(0);
        let keyspace = info_field(&info, &format!("db{}", self.link.database())).unwrap_or_default();
        let expiring_keys = keyspace
            .split(',')
            .find_map(|part| part.strip_prefix("expires="))
            .and_then(|text| text.parse().ok())
            .unwrap_or(0);
        Ok(SharedStats {
            expiring_keys,
            memory_bytes: number("used_memory"),
            operations_per_second: number("instantaneous_ops_per_sec"),
        })
    }
}

/// Tells Redis which tokens were redeemed without it, whether it held them or not, in steps. A refusal (a full
/// Redis) is no reason to go on without it: this instance remembers what it redeemed.
pub(super) fn replay(redeemed: &[(TokenId, i64)], now: i64) -> Vec<Pipeline> {
    let step = |redeemed: &[(TokenId, i64)]| {
        let mut pipeline = redis::pipe();
        pipeline.ignore_errors();
        for (token, expires) in redeemed {
            let used = Key::new(Prefix::Used, *token);
            pipeline.cmd("DEL").arg(Key::new(Prefix::Token, *token).as_bytes()).ignore();
            pipeline.cmd("SET").arg(used.as_bytes()).arg(1).arg("EX").arg(seconds(expires - now)).ignore();
        }
        pipeline
    };
    redeemed.chunks(REPLAY_COMMANDS / 2).map(step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_the_ones_that_others_read() {
        let token = TokenId::from_bits(0x0123_4567_89ab_8cde_8f01_2345_6789_abcd);
        assert_eq!(Key::new(Prefix::Token, token).as_bytes(), b"token:01234567-89ab-8cde-8f01-23456789abcd");
        assert_eq!(Key::new(Prefix::Used, token).as_bytes(), b"used:01234567-89ab-8cde-8f01-23456789abcd");
    }

    #[test]
    fn a_replay_is_told_in_steps() {
        let redeemed: Vec<_> = (0..1201).map(|bits| (TokenId::from_bits(bits), 60_000)).collect();
        let steps: Vec<usize> = replay(&redeemed, 0).iter().map(Pipeline::len).collect();
        assert_eq!(steps, [1000, 1000, 402]);
        assert!(replay(&[], 0).is_empty());
    }

    #[test]
    fn a_mark_lasts_as_long_as_its_token() {
        assert_eq!([seconds(1), seconds(1000), seconds(1001), seconds(-5)], [1, 1, 2, 1]);
    }
}
