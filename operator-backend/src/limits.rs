//! Rate limits: a token bucket for each key, in one number a key and bounded memory.

use std::{
    collections::HashMap,
    hash::Hash,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Keys that are remembered at most; beyond it new keys share one bucket, so that memory stays bounded
/// and a flood of addresses limits itself.
const MOST_KEYS: usize = 65_536;

/// One bucket a key: `rate` a second, with a burst of one second's worth.
///
/// Kept as the *theoretical arrival time* (GCRA): the moment at which the bucket is full again. A moment
/// that has passed says nothing any more, so idle keys are dropped without changing any decision.
pub struct RateLimiter<K> {
    interval: Duration,
    start: Instant,
    state: Mutex<State<K>>,
}

struct State<K> {
    full_again: HashMap<K, Duration>,
    overflow: Duration,
    next_sweep: Duration,
}

impl<K: Eq + Hash> RateLimiter<K> {
    /// A limiter of `rate` requests a second; `None` when the rate is 0, which means no limit.
    #[must_use]
    pub fn new(rate: u32) -> Option<Self> {
        let interval = Duration::from_secs(1).checked_div(rate)?;
        let state = Mutex::new(State {
            full_again: HashMap::new(),
            overflow: Duration::ZERO,
            next_sweep: Duration::ZERO,
        });
        Some(Self { interval, start: Instant::now(), state })
    }

    /// Takes one from the bucket of `key`.
    ///
    /// # Errors
    /// The time after which the next try succeeds, when the bucket is empty.
    pub fn take(&self, key: K) -> Result<(), Duration> {
        self.take_at(key, self.start.elapsed())
    }

    fn take_at(&self, key: K, now: Duration) -> Result<(), Duration> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { full_again, overflow, next_sweep } = &mut *state;
        let mut crowded = full_again.len() >= MOST_KEYS && !full_again.contains_key(&key);
        if crowded && now >= *next_sweep {
            // A sweep looks at every key, so a flood must not make it run for each request.
            *next_sweep = now + Duration::from_secs(1);
            full_again.retain(|_, moment| *moment > now);
            crowded = full_again.len() >= MOST_KEYS;
        }
        let bucket = if crowded { overflow } else { full_again.entry(key).or_default() };
        // A full bucket holds one second's worth.
        let next = (*bucket).max(now) + self.interval;
        match next.checked_sub(now + Duration::from_secs(1).max(self.interval)) {
            Some(wait) if !wait.is_zero() => Err(wait),
            _ => {
                *bucket = next;
                Ok(())
            }
        }
    }
}

/// What counts as one client address: an IPv4 address, or an IPv6 /64, which one host owns whole.
#[must_use]
pub fn address_key(address: IpAddr) -> u128 {
    match address.to_canonical() {
        IpAddr::V4(address) => address.to_ipv6_mapped().into(),
        IpAddr::V6(address) => u128::from(address) >> 64 << 64,
    }
}

/// Whole seconds for a Retry-After header: rounded up, at least 1.
#[must_use]
pub fn retry_after(wait: Duration) -> u64 {
    let rounding = u64::from(wait.subsec_nanos() > 0);
    (wait.as_secs() + rounding).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_rate_of_zero_is_no_limit() {
        assert!(RateLimiter::<u8>::new(0).is_none());
    }

    #[test]
    fn a_bucket_gives_its_burst_then_its_rate() {
        let limiter = RateLimiter::new(10).unwrap();
        let at = Duration::from_millis;
        assert_eq!((0..20).filter(|_| limiter.take_at("a", at(0)).is_ok()).count(), 10);
        assert_eq!(limiter.take_at("a", at(0)), Err(at(100)));
        assert_eq!(limiter.take_at("a", at(99)), Err(at(1)));
        assert_eq!(limiter.take_at("a", at(100)), Ok(()));
        assert_eq!(limiter.take_at("b", at(100)), Ok(()));
    }

    #[test]
    fn memory_is_bounded_and_a_flood_limits_itself() {
        let limiter = RateLimiter::new(1).unwrap();
        let granted =
            (0..MOST_KEYS + 1000).filter(|key| limiter.take_at(*key, Duration::ZERO).is_ok()).count();
        assert_eq!(granted, MOST_KEYS + 1);
        assert_eq!(limiter.state.lock().unwrap().full_again.len(), MOST_KEYS);
        // An idle second later the room is free again.
        assert_eq!(limiter.take_at(usize::MAX, Duration::from_secs(2)), Ok(()));
        assert_eq!(limiter.state.lock().unwrap().full_again.len(), 1);
    }

    #[test]
    fn ipv6_neighbours_are_one_client() {
        let key = |text: &str| address_key(text.parse().unwrap());
        assert_eq!(key("2001:db8::1"), key("2001:db8::ffff"));
        assert_ne!(key("2001:db8::1"), key("2001:db8:0:1::1"));
        assert_ne!(key("192.0.2.1"), key("192.0.2.2"));
        assert_eq!(key("::ffff:192.0.2.1"), key("192.0.2.1"));
    }

    proptest! {
        #[test]
        fn never_more_than_burst_plus_rate(rate in 1_u32..500, steps in prop::collection::vec(0_u64..200, 1..300)) {
            let limiter = RateLimiter::new(rate).unwrap();
            let (mut now, mut granted) = (Duration::ZERO, 0_u32);
            for step in steps {
                now += Duration::from_millis(step);
                granted += u32::from(limiter.take_at((), now).is_ok());
            }
            let allowed = f64::from(rate) * (1.0 + now.as_secs_f64()) + 1.0;
            prop_assert!(f64::from(granted) <= allowed, "{granted} > {allowed}");
        }

        #[test]
        fn waiting_as_told_succeeds(rate in 1_u32..500, wanted in 1_u32..1000) {
            let limiter = RateLimiter::new(rate).unwrap();
            for _ in 0..wanted {
                let _ = limiter.take_at((), Duration::ZERO);
            }
            if let Err(wait) = limiter.take_at((), Duration::ZERO) {
                prop_assert_eq!(limiter.take_at((), wait), Ok(()));
            }
        }
    }
}
