//! Ephemeral tokens: issuing and checking, with Redis and without.
//!
//! # Why every token is signed, and most are stored as well
//! A token must open a stream on any instance, whatever happens to Redis between its issue and its use.
//! So each one is a [signed](signed) UUID that every instance can check alone, and while Redis answers it
//! is also stored there as `token:<uuid>` with the token's life. Who decides:
//!
//! * **Redis answers and holds the token**: accepted, unless its signature contradicts.
//! * **Redis answers and does not hold it**: a token that was never stored (issued during an outage) is
//!   accepted by its signature. One that was stored has been deleted, which is how an operator revokes
//!   one, and is refused; unless Redis has since restarted or failed over and may have lost it, in
//!   which case the signature decides.
//! * **Redis cannot be asked**: the signature decides.
//!
//! Look-ups come before signatures where both can speak, so tokens of instances that do not share the
//! signing key are accepted too while Redis is up. During an outage only the key helps.
//!
//! # Single use
//! With `singleUse` the look-up is a GETDEL: exactly one redemption wins, over all instances. A token that
//! was never stored is redeemed by creating `used:<uuid>`. While Redis is away each instance redeems a
//! token at most once, and tells Redis what it redeemed before it uses it again. A token that was stored
//! and is gone counts as used even where Redis may have lost it: between one client that has to ask again
//! and one token that opens two streams, the former is the smaller harm.
//!
//! # End of life
//! A token ends by its own signed expiry on the [cluster's clock](ClusterClock), rounded up to 1/8 s, and
//! by Redis' expiry, whichever comes first: restored dumps and outages cannot extend it. A token whose own
//! expiry cannot be read (of another key, or so old that the 16 bits have wrapped) must have one in Redis.

mod memory;
mod redis;
pub mod signed;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use serde::Serialize;

pub use self::signed::TokenId;
use self::{
    memory::{LiveTokens, RedeemedTokens},
    redis::RedisStore,
    signed::{Claims, Nonces, Verdict},
};
use crate::{
    clock::ClusterClock,
    config::TokenConfig,
    identity::{Identities, Principal},
    metrics::{AuthFailure, Metrics},
    redis_link::RedisLink,
};

/// What one token costs in Redis, bytes: key, value, expiry and their share of the tables. Measured with
/// Redis 7.0 at 60,000 tokens.
const BYTES_PER_TOKEN: u64 = 177;
/// How many of the latest tokens are shown as fingerprints.
const SAMPLES: usize = 5;

/// Issues and checks ephemeral tokens. Cheap to clone.
#[derive(Clone)]
pub struct Tokens(Arc<Inner>);

struct Inner {
    store: Store,
    single_use: bool,
    life_milliseconds: i64,
    identities: Identities,
    clock: ClusterClock,
    nonces: Nonces,
    live: LiveTokens,
    redeemed: RedeemedTokens,
    latest: Mutex<[Option<TokenId>; SAMPLES]>,
    issued: AtomicU64,
    metrics: Arc<Metrics>,
}

/// Where tokens are, beside the hands of their holders.
enum Store {
    /// Nowhere: one instance, which counts what it issued and remembers what was redeemed.
    Memory,
    /// In the Redis that the instances share.
    Redis(RedisStore),
}

/// State of the token store, as `/operator/internal/cache-stats` tells it.
#[derive(Serialize)]
pub struct CacheStats {
    /// `redis`, or `fallback-memory` when Redis is away or there is none.
    pub backend: &'static str,
    /// Live tokens: of all instances (an estimate) with Redis, else those that this instance issued.
    pub cache_size: u64,
    /// Whether `cache_size` is an estimate: Redis counts every key of the database that expires.
    pub cache_size_is_estimate: bool,
    /// Tokens that this instance issued and that have not expired, exact.
    pub issued_here: u64,
    /// Memory that Redis uses, bytes; 0 without it.
    pub redis_memory_bytes: u64,
    /// Commands a second that Redis serves; 0 without it.
    pub redis_ops_per_sec: u64,
    /// One-way fingerprints of the latest tokens issued here, latest first.
    pub sample_tokens: Vec<String>,
}

/// A token that holds; see [`Tokens::redeem`].
pub struct Checked {
    /// Whose it is.
    pub principal: Principal,
    /// What is to be redeemed.
    redeemable: Option<(TokenId, Option<Claims>)>,
}

impl From<Principal> for Checked {
    /// What needs no redemption.
    fn from(principal: Principal) -> Self {
        Self { principal, redeemable: None }
    }
}

impl Tokens {
    /// Tokens with the store that `link` leads to, or alone in memory.
    #[must_use]
    pub fn new(
        config: &TokenConfig,
        identities: Identities,
        clock: ClusterClock,
        link: Option<RedisLink>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self(Arc::new(Inner {
            store: link.map_or(Store::Memory, |link| Store::Redis(RedisStore::new(link))),
            single_use: config.single_use,
            life_milliseconds: i64::from(config.ttl_seconds) * 1000,
            identities,
            clock,
            nonces: Nonces::new(),
            live: LiveTokens::new(config.ttl_seconds),
            redeemed: RedeemedTokens::default(),
            latest: Mutex::default(),
            issued: AtomicU64::new(0),
            metrics,
        }))
    }

    /// A new token for `principal`. Never fails: with Redis away the signature alone carries it.
    pub async fn issue(&self, principal: &Principal) -> TokenId {
        let begun = Instant::now();
        let inner = &*self.0;
        let now = inner.clock.now();
        let stored = match &inner.store {
            Store::Redis(store) => {
                let stored = inner.issue_stored(store, principal, now).await;
                inner.metrics.tokens_issued_unstored.inc_by(u64::from(stored.is_none()));
                stored
            }
            Store::Memory => None,
        };
        let token = stored.unwrap_or_else(|| inner.sign(principal, now, false));
        inner.live.issued(now);
        inner.issued.fetch_add(1, Ordering::Relaxed);
        inner.metrics.tokens_issued.inc();
        {
            let mut latest = inner.latest.lock().unwrap_or_else(PoisonError::into_inner);
            latest.rotate_right(1);
            if let Some(first) = latest.first_mut() {
                *first = Some(token);
            }
        }
        inner.metrics.token_issue_latency.observe(begun.elapsed().as_secs_f64() * 1000.0);
        token
    }

    /// What a token is good for. One for single use is not used up by this, and may have been before.
    ///
    /// # Errors
    /// Why the token does not hold.
    pub async fn check(&self, text: &str) -> Result<Checked, AuthFailure> {
        let inner = &*self.0;
        let token = TokenId::parse(text).ok_or(AuthFailure::Malformed)?;
        let claims = {
            let (keys, principals) = (inner.identities.keys().load(), inner.identities.principals());
            match signed::verify(token, &keys, &principals, inner.clock.now()) {
                Verdict::Genuine(claims) => Some(claims),
                Verdict::Expired => return Err(AuthFailure::Expired),
                Verdict::Unsigned => None,
            }
        };
        if claims.is_none() && !inner.ends_by_itself(token).await {
            return Err(AuthFailure::Unknown);
        }
        if !inner.single_use {
            let principal = inner.look_up(token, claims).await?;
            return Ok(Checked { principal, redeemable: None });
        }
        // Its signature suffices for now: what Redis holds is asked for when it is redeemed.
        let principal = match &claims {
            Some(claims) => claims.principal.clone(),
            None => inner.look_up(token, None).await?,
        };
        Ok(Checked { principal, redeemable: Some((token, claims)) })
    }

    /// Uses a token up, if it is for single use; the principal that it belongs to.
    ///
    /// # Errors
    /// Why the token does not hold, above all because it has been used.
    pub async fn redeem(&self, checked: Checked) -> Result<Principal, AuthFailure> {
        let Checked { principal, redeemable } = checked;
        match redeemable {
            Some((token, claims)) => self.0.redeem(token, claims).await,
            None => Ok(principal),
        }
    }

    /// Number of tokens issued since the start.
    #[must_use]
    pub fn issued_total(&self) -> u64 {
        self.0.issued.load(Ordering::Relaxed)
    }

    /// Brings the gauges of live tokens up to date; called before a scrape.
    pub fn measure(&self) {
        let live = self.0.live.count(self.0.clock.now());
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.0.metrics.token_cache_entries.set(gauge(live));
        self.0.metrics.token_cache_bytes.set(gauge(live.saturating_mul(BYTES_PER_TOKEN)));
    }

    /// State of the store, at a cost that does not depend on how many tokens there are.
    pub async fn stats(&self) -> CacheStats {
        let inner = &*self.0;
        let issued_here = inner.live.count(inner.clock.now());
        let latest = *inner.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let sample_tokens =
            latest.into_iter().flatten().map(|token| token.fingerprint().to_string()).collect();
        let shared = match &inner.store {
            Store::Redis(store) => store.stats().await.ok(),
            Store::Memory => None,
        };
        CacheStats {
            backend: if shared.is_some() { "redis" } else { "fallback-memory" },
            cache_size: shared.as_ref().map_or(issued_here, |shared| shared.expiring_keys),
            cache_size_is_estimate: shared.is_some(),
            issued_here,
            redis_memory_bytes: shared.as_ref().map_or(0, |shared| shared.memory_bytes),
            redis_ops_per_sec: shared.as_ref().map_or(0, |shared| shared.operations_per_second),
            sample_tokens,
        }
    }

    /// What Redis must be told when it is back, in steps: the tokens redeemed without it.
    #[must_use]
    pub fn replay(&self) -> Vec<::redis::Pipeline> {
        let now = self.0.clock.now();
        redis::replay(&self.0.redeemed.unexpired(now), now)
    }
}

impl Inner {
    fn sign(&self, principal: &Principal, now: i64, stored: bool) -> TokenId {
        let keys = self.identities.keys().load();
        signed::issue(&keys.current, &self.nonces, principal, now, self.life_milliseconds, stored)
    }

    async fn issue_stored(&self, store: &RedisStore, principal: &Principal, now: i64) -> Option<TokenId> {
        if !store.is_up() {
            return None;
        }
        let token = self.sign(principal, now, true);
        store.put(token, principal, self.life_milliseconds / 1000).await.ok()?;
        Some(token)
    }

    /// Whether Redis ends the life of a token that says nothing itself: one of another key, or one that is so old
    /// that its expiry has wrapped.
    async fn ends_by_itself(&self, token: TokenId) -> bool {
        match &self.store {
            Store::Redis(store) => store.ends(token).await.unwrap_or(false),
            Store::Memory => false,
        }
    }

    /// The check of a token that may be used many times.
    async fn look_up(&self, token: TokenId, claims: Option<Claims>) -> Result<Principal, AuthFailure> {
        if let Store::Redis(store) = &self.store
            && let Ok(found) = store.get(token).await
        {
            match found {
                Some(name) => return self.agree(&name, claims),
                None if claims.as_ref().is_some_and(|claims| self.may_have_been_lost(store, claims)) => {}
                None => return Err(AuthFailure::Unknown),
            }
        }
        claims.map(|claims| claims.principal).ok_or(AuthFailure::Unknown)
    }

    /// Whether Redis may know nothing of a genuine token although nobody deleted it.
    fn may_have_been_lost(&self, store: &RedisStore, claims: &Claims) -> bool {
        let issued = claims.expires - self.life_milliseconds;
        !claims.stored || store.complete_since().is_none_or(|since| issued < since)
    }

    /// The redemption of a token that may be used once.
    async fn redeem(&self, token: TokenId, claims: Option<Claims>) -> Result<Principal, AuthFailure> {
        if self.redeemed.contains(token) {
            return Err(AuthFailure::Used);
        }
        if let Store::Redis(store) = &self.store {
            match &claims {
                Some(claims) if !claims.stored => {
                    let remaining = claims.expires - self.clock.now();
                    if let Ok(first) = store.mark_used(token, remaining).await {
                        return if first { Ok(claims.principal.clone()) } else { Err(AuthFailure::Used) };
                    }
                }
                _ => {
                    if let Ok(found) = store.take(token).await {
                        return match found {
                            Some(name) => self.agree(&name, claims),
                            None if claims.is_some() => Err(AuthFailure::Used),
                            None => Err(AuthFailure::Unknown),
                        };
                    }
                }
            }
        }
        let claims = claims.ok_or(AuthFailure::Unknown)?;
        if !self.redeemed.redeem(token, claims.expires, self.clock.now()) {
            return Err(AuthFailure::Used);
        }
        self.live.redeemed(claims.expires - self.life_milliseconds);
        Ok(claims.principal)
    }

    /// What the store holds must name a principal, and the one that the signature names. A name that nobody has
    /// (any more) is no contradiction: the signature of a removed principal's token cannot be read.
    fn agree(&self, name: &str, claims: Option<Claims>) -> Result<Principal, AuthFailure> {
        match claims {
            Some(claims) if claims.principal.name() == name => Ok(claims.principal),
            Some(_) => {
                self.metrics.integrity_failures.inc();
                Err(AuthFailure::Unknown)
            }
            None => self.identities.named(name).ok_or(AuthFailure::Unknown),
        }
    }
}
