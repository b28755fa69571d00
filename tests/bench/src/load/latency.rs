//! Latencies, and what they come to. A virtual machine is kept from its processors now and then, and a server's tail must
//! not be taken from that.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::stalls::Watch;

/// Percentiles of a set of latencies, microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Latency {
    /// Half of them are within this.
    pub p50: u32,
    /// 99 of 100 are within this.
    pub p99: u32,
    /// 99 of 100 of those are within this that no processor stood still for.
    pub undisturbed_p99: u32,
    /// Part of them that one did stand still for.
    pub disturbed: f64,
}

/// Latencies as they come in.
#[derive(Default)]
pub struct Samples {
    watch: Option<Watch>,
    all: Vec<Sample>,
}

#[derive(Clone, Copy)]
struct Sample {
    begun: Instant,
    seen: Instant,
}

impl Samples {
    /// None yet; the processors are watched from now on. That takes time of theirs, so it is not for measurements of what a
    /// server takes.
    pub fn watched() -> Self {
        Self { watch: Some(Watch::begin()), all: Vec::new() }
    }

    /// Adds one that is seen now.
    pub fn add(&mut self, now: Instant, latency: Duration) {
        self.all.push(Sample { begun: now.checked_sub(latency).unwrap_or(now), seen: now });
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.all.len()
    }

    /// What they come to.
    pub fn end(&mut self) -> Latency {
        let stalls = self.watch.take().map(Watch::end).unwrap_or_default();
        let all: Vec<u32> = self.all.iter().map(Sample::micros).collect();
        let undisturbed: Vec<u32> = self
            .all
            .iter()
            .filter(|sample| !stalls.touch(sample.begun, sample.seen))
            .map(Sample::micros)
            .collect();
        let disturbed = (all.len() - undisturbed.len()) as f64 / all.len().max(1) as f64;
        let (p50, p99) = percentiles(all);
        let (_, undisturbed_p99) = percentiles(undisturbed);
        Latency { p50, p99, undisturbed_p99, disturbed }
    }
}

impl Sample {
    fn micros(&self) -> u32 {
        u32::try_from((self.seen - self.begun).as_micros()).unwrap_or(u32::MAX)
    }
}

/// The 50th and the 99th.
fn percentiles(mut of: Vec<u32>) -> (u32, u32) {
    of.sort_unstable();
    let rank = |percent: usize| (of.len() * percent).div_ceil(100).saturating_sub(1);
    let at = |percent| of.get(rank(percent)).copied().unwrap_or_default();
    (at(50), at(99))
}
