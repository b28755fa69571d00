//! How many streams there may be: on the instance, of one principal, from one address.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::Notify;

use crate::{config::LimitConfig, identity::Principal, metrics::Refusal};

/// Counts the open streams against the limits.
pub(super) struct Quota {
    instance: Limit,
    per_principal: Counts<Principal>,
    per_address: Counts<u128>,
    open: AtomicUsize,
    gauge: Gauge,
    /// Told whenever the last stream has gone.
    pub(super) empty: Notify,
}

struct Limit(usize);

struct Counts<K> {
    limit: Limit,
    counts: Mutex<HashMap<K, usize>>,
}

/// One open stream; counted until it is dropped.
pub(super) struct Permit {
    quota: Arc<Quota>,
    principal: Option<Principal>,
    address: Option<u128>,
}

impl Limit {
    fn reached(&self, count: usize) -> bool {
        self.0 > 0 && count >= self.0
    }
}

impl<K: Eq + Hash> Counts<K> {
    fn new(limit: u32) -> Self {
        Self { limit: Limit(limit as usize), counts: Mutex::default() }
    }

    /// Counts one more of `key`: gives it back to remember, `None` where there is no limit.
    fn take(&self, key: K) -> Result<Option<K>, ()>
    where
        K: Clone,
    {
        if self.limit.0 == 0 {
            return Ok(None);
        }
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(key.clone()).or_default();
        if self.limit.reached(*count) {
            return Err(());
        }
        *count += 1;
        Ok(Some(key))
    }

    fn give_back(&self, key: &K) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(key);
            }
        }
    }
}

impl Quota {
    pub(super) fn new(limits: &LimitConfig, gauge: Gauge) -> Self {
        Self {
            instance: Limit(limits.max_clients as usize),
            per_principal: Counts::new(limits.max_clients_per_principal),
            per_address: Counts::new(limits.max_clients_per_address),
            open: AtomicUsize::new(0),
            gauge,
            empty: Notify::new(),
        }
    }

    pub(super) fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    /// Whether the instance has no room left; cheap, and not binding.
    pub(super) fn is_full(&self) -> bool {
        self.instance.reached(self.open())
    }

    /// Counts one more stream.
    pub(super) fn take(self: &Arc<Self>, principal: &Principal, address: u128) -> Result<Permit, Refusal> {
        let taken = self.open.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |open| {
            (!self.instance.reached(open)).then_some(open + 1)
        });
        taken.map_err(|_| Refusal::Instance)?;
        self.gauge.inc();
        // From here on dropping it gives back what was taken.
        let mut permit = Permit { quota: Arc::clone(self), principal: None, address: None };
        permit.principal = self.per_principal.take(principal.clone()).map_err(|()| Refusal::Principal)?;
        permit.address = self.per_address.take(address).map_err(|()| Refusal::Address)?;
        Ok(permit)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(principal) = &self.principal {
            self.quota.per_principal.give_back(principal);
        }
        if let Some(address) = &self.address {
            self.quota.per_address.give_back(address);
        }
        self.quota.gauge.dec();
        if self.quota.open.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.quota.empty.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn quota(flags: &[&str]) -> Arc<Quota> {
        let config = Config::from_flags(flags.iter().copied()).ok().unwrap();
        Arc::new(Quota::new(&config.limits, Gauge::default()))
    }

    #[test]
    fn each_limit_refuses_with_its_reason_and_a_drop_makes_room() {
        let (a, b) = (Principal::new("a"), Principal::new("b"));
        let quota = quota(&[
            "--max-clients",
            "3",
            "--max-clients-per-principal",
            "2",
            "--max-clients-per-address",
            "1",
        ]);
        let first = quota.take(&a, 1).unwrap();
        assert_eq!(quota.take(&a, 1).err(), Some(Refusal::Address));
        let second = quota.take(&a, 2).unwrap();
        assert_eq!(quota.take(&a, 3).err(), Some(Refusal::Principal));
        let third = quota.take(&b, 3).unwrap();
        assert_eq!(quota.take(&b, 4).err(), Some(Refusal::Instance));
        assert!(quota.is_full());
        drop((first, second, third));
        assert_eq!(quota.open(), 0);
        assert!(quota.per_address.counts.lock().unwrap().is_empty());
        assert!(quota.take(&a, 1).is_ok());
    }

    #[test]
    fn zero_is_no_limit() {
        let quota = quota(&["--max-clients", "0"]);
        let permits: Vec<_> = (0..5000).map(|_| quota.take(&Principal::new("a"), 1).unwrap()).collect();
        assert_eq!(quota.open(), permits.len());
    }
}
