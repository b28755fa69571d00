//! The time that token expiry is measured by: one clock for the whole cluster.
//!
//! Instances run on nodes whose clocks differ, and a clock may be stepped while a process runs. So the
//! wall clock is read once at the start and advanced by the monotonic clock from then on, and whenever
//! Redis answers, its `TIME` is adopted: all instances then agree to within a round trip, whatever their
//! nodes think. During an outage they drift apart by the monotonic clocks' error only, some 50 ppm, 0.2 s
//! an hour. Without Redis there is one instance and nothing to agree on.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// A round trip slower than this says too little about the other side's clock.
const SLOWEST_ROUND_TRIP: Duration = Duration::from_millis(50);

/// Shared handle to the cluster's time; clones agree.
#[derive(Clone)]
pub struct ClusterClock {
    started: Instant,
    offset: Arc<AtomicI64>,
}

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

impl ClusterClock {
    /// A clock that begins at the system's time.
    #[must_use]
    pub fn new() -> Self {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { started: Instant::now(), offset: Arc::new(AtomicI64::new(milliseconds(unix))) }
    }

    /// Milliseconds since the Unix epoch.
    #[must_use]
    pub fn now(&self) -> i64 {
        milliseconds(self.started.elapsed()).saturating_add(self.offset.load(Ordering::Relaxed))
    }

    /// Adopts a time told by Redis, in milliseconds since the Unix epoch, for the middle of the round
    /// trip that began at `asked` and has just ended. Returns by how much this clock moved; `None` when
    /// the round trip took too long to mean anything.
    #[allow(clippy::must_use_candidate, reason = "the adoption is what it is for")]
    pub fn adopt(&self, told: i64, asked: Instant) -> Option<i64> {
        let round_trip = asked.elapsed();
        if round_trip > SLOWEST_ROUND_TRIP {
            return None;
        }
        let at = milliseconds(asked.duration_since(self.started) + round_trip / 2);
        let offset = told.saturating_sub(at);
        Some(offset.saturating_sub(self.offset.swap(offset, Ordering::Relaxed)))
    }
}

impl Default for ClusterClock {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_that_hear_the_same_time_agree() {
        let (a, b) = (ClusterClock::new(), ClusterClock::new());
        b.offset.fetch_add(90_000, Ordering::Relaxed);
        assert!(b.now() - a.now() > 80_000);
        let asked = Instant::now();
        a.adopt(1_000_000, asked).unwrap();
        let moved = b.adopt(1_000_000, asked).unwrap();
        assert!(moved < -80_000, "{moved}");
        assert!((a.now() - b.now()).abs() < 40);
    }
}
