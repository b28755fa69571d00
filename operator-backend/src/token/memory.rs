//! What an instance remembers of its own tokens: how many live, which were redeemed. Bounded.

use std::{
    collections::HashMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use super::signed::{TICK_MILLISECONDS, TokenId};

/// Live tokens, counted by the second of their issue: exact to a second and independent of how many there
/// are. Nothing is stored for a token, so issuing costs no memory.
pub(super) struct LiveTokens {
    ttl_seconds: u64,
    /// One slot a second, a ring longer than the life of a token: the second in the upper 32 bits, the
    /// count in the lower.
    slots: Box<[AtomicU64]>,
}

impl LiveTokens {
    pub(super) fn new(ttl_seconds: u32) -> Self {
        let ttl_seconds = u64::from(ttl_seconds);
        Self { ttl_seconds, slots: (0..=ttl_seconds).map(|_| AtomicU64::new(0)).collect() }
    }

    fn slot(&self, second: u64) -> Option<&AtomicU64> {
        let length = u64::try_from(self.slots.len()).ok()?;
        self.slots.get(usize::try_from(second.checked_rem(length)?).ok()?)
    }

    /// Counts a token issued at `now`, in milliseconds.
    pub(super) fn issued(&self, now: i64) {
        let second = second(now);
        let Some(slot) = self.slot(second) else { return };
        // Never fails: the closure always gives a value.
        let _ = slot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |value| {
            Some(if value >> 32 == second & 0xffff_ffff { value + 1 } else { second << 32 | 1 })
        });
    }

    /// Takes back a token that was issued at `then`, rounded up to the unit of token expiry, and has been
    /// used up. The rounding may have carried it into the next second.
    pub(super) fn redeemed(&self, then: i64) {
        let seconds = [second(then.saturating_sub(TICK_MILLISECONDS - 1)), second(then)];
        for second in seconds {
            let Some(slot) = self.slot(second) else { continue };
            let taken = slot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |value| {
                (value >> 32 == second & 0xffff_ffff && value & 0xffff_ffff > 0).then(|| value - 1)
            });
            if taken.is_ok() {
                return;
            }
        }
    }

    /// Number of tokens that are not expired at `now`, in milliseconds.
    pub(super) fn count(&self, now: i64) -> u64 {
        let now = second(now);
        self.slots
            .iter()
            .map(|slot| slot.load(Ordering::Relaxed))
            .filter(|value| now.saturating_sub(value >> 32) < self.ttl_seconds && value >> 32 <= now)
            .map(|value| value & 0xffff_ffff)
            .sum()
    }
}

fn second(milliseconds: i64) -> u64 {
    u64::try_from(milliseconds).unwrap_or_default() / 1000
}

/// Redemptions that are remembered at most: 2,000 a second over the default life of 60 s, twice over.
const MOST_REDEEMED: usize = 240_000;

/// Single-use tokens redeemed here while no shared store could be asked, until they expire.
#[derive(Default)]
pub(super) struct RedeemedTokens {
    generations: Mutex<Generations>,
}

/// Tokens and when they expire. Nothing looks through them one by one: the older generation goes as a whole
/// once its last token has expired, and the younger one takes its place.
#[derive(Default)]
struct Generations {
    younger: HashMap<TokenId, i64>,
    older: HashMap<TokenId, i64>,
    last_of_younger: i64,
    last_of_older: i64,
}

impl Generations {
    fn advance(&mut self, now: i64) {
        if now >= self.last_of_older {
            self.older = std::mem::take(&mut self.younger);
            self.last_of_older = std::mem::take(&mut self.last_of_younger);
        }
    }
}

impl RedeemedTokens {
    /// Redeems `token`, which expires at `expires`; `false` when it was redeemed before, or when so many
    /// are remembered that no promise could be kept: refusing is the safe side.
    pub(super) fn redeem(&self, token: TokenId, expires: i64, now: i64) -> bool {
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        generations.advance(now);
        let Generations { younger, older, last_of_younger, .. } = &mut *generations;
        if older.contains_key(&token) || younger.len() + older.len() >= MOST_REDEEMED {
            return false;
        }
        *last_of_younger = expires.max(*last_of_younger);
        younger.insert(token, expires).is_none()
    }

    /// Whether `token` was redeemed here.
    pub(super) fn contains(&self, token: TokenId) -> bool {
        let generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        generations.younger.contains_key(&token) || generations.older.contains_key(&token)
    }

    /// What is remembered and not expired, for telling the shared store.
    pub(super) fn unexpired(&self, now: i64) -> Vec<(TokenId, i64)> {
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        generations.advance(now);
        let all = generations.older.iter().chain(&generations.younger);
        all.filter(|(_, expires)| **expires > now).map(|(token, expires)| (*token, *expires)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_count_is_the_number_of_unexpired_tokens(
            ttl in 1_u32..20,
            steps in prop::collection::vec((0_i64..5, 0_usize..4), 1..60),
        ) {
            let live = LiveTokens::new(ttl);
            let mut now = 1_700_000_000_i64;
            let mut issued = Vec::new();
            for (pause, tokens) in steps {
                now += pause;
                for _ in 0..tokens {
                    live.issued(now * 1000);
                    issued.push(now);
                }
                let expected = issued.iter().filter(|at| now - **at < i64::from(ttl)).count();
                prop_assert_eq!(live.count(now * 1000), u64::try_from(expected).unwrap());
            }
        }
    }

    #[test]
    fn a_redeemed_token_no_longer_counts() {
        let live = LiveTokens::new(60);
        live.issued(5000);
        live.issued(5000);
        live.redeemed(6000);
        assert_eq!(live.count(6000), 1);
        live.redeemed(9000);
        assert_eq!(live.count(9000), 1);
        live.issued(5999);
        live.redeemed(5999);
        assert_eq!(live.count(9000), 1);
    }

    #[test]
    fn a_token_is_redeemed_once_and_forgotten_when_expired() {
        let redeemed = RedeemedTokens::default();
        let token = TokenId::from_bits(7);
        assert!(redeemed.redeem(token, 100, 0));
        assert!(!redeemed.redeem(token, 100, 0));
        assert!(redeemed.contains(token));
        assert_eq!(redeemed.unexpired(99).len(), 1);
        assert!(redeemed.unexpired(100).is_empty());
    }

    #[test]
    fn a_full_memory_refuses_until_its_tokens_have_expired() {
        let redeemed = RedeemedTokens::default();
        for bits in 0..u128::try_from(MOST_REDEEMED).unwrap() {
            assert!(redeemed.redeem(TokenId::from_bits(bits), 100, 0));
        }
        assert!(!redeemed.redeem(TokenId::from_bits(u128::MAX), 100, 0));
        assert!(redeemed.redeem(TokenId::from_bits(u128::MAX), 300, 101));
    }

    proptest! {
        #[test]
        fn no_token_is_redeemed_twice_in_its_life_and_none_is_kept_for_long(
            steps in prop::collection::vec((0_i64..30, 0_u128..40), 1..200),
        ) {
            let redeemed = RedeemedTokens::default();
            let (mut now, mut expected) = (0, std::collections::HashMap::new());
            for (pause, bits) in steps {
                now += pause;
                let expires = now + 60;
                let alive = expected.get(&bits).is_some_and(|until| *until > now);
                let won = redeemed.redeem(TokenId::from_bits(bits), expires, now);
                prop_assert!(!(alive && won));
                if won {
                    expected.insert(bits, expires);
                }
                let generations = redeemed.generations.lock().unwrap();
                let oldest = generations.older.values().min().copied().unwrap_or(now);
                prop_assert!(oldest >= now - 120, "kept {} past its end", now - oldest);
            }
        }
    }
}
