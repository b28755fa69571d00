//! Latencies by the second that they were seen in, and what they come to. A virtual machine is kept from its processors
//! now and then, and a server's tail must not be taken from that.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::process::stolen;

/// Percentiles of a set of latencies, microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Latency {
    /// Half of them are within this.
    pub p50: u32,
    /// 99 of 100 are within this.
    pub p99: u32,
    /// 99 of 100 of a second are within this: the median of those seconds of which a hypervisor took least.
    pub undisturbed_p99: u32,
}

/// Latencies as they come in.
pub struct Samples {
    begun: Instant,
    seconds: Vec<Second>,
    /// Number of the last of them, and what had been stolen when it began.
    present: u64,
    stolen: u64,
}

#[derive(Default)]
struct Second {
    samples: Vec<u32>,
    stolen: u64,
}

impl Samples {
    /// None yet; the first second begins.
    pub fn begin() -> Self {
        Self { begun: Instant::now(), seconds: vec![Second::default()], present: 0, stolen: stolen() }
    }

    /// Adds one that is seen now.
    pub fn add(&mut self, now: Instant, latency: Duration) {
        let second = now.duration_since(self.begun).as_secs();
        if second > self.present {
            self.end_second();
            self.present = second;
            self.seconds.push(Second::default());
        }
        let Some(present) = self.seconds.last_mut() else { return };
        present.samples.push(u32::try_from(latency.as_micros()).unwrap_or(u32::MAX));
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.seconds.iter().map(|second| second.samples.len()).sum()
    }

    /// What they come to.
    pub fn end(&mut self) -> Latency {
        self.end_second();
        let mut all: Vec<u32> =
            self.seconds.iter().flat_map(|second| second.samples.iter().copied()).collect();
        if self.seconds.len() > 1 {
            // It is not over.
            self.seconds.pop();
        }
        let least = self.seconds.iter().map(|second| second.stolen).min();
        let undisturbed = self.seconds.iter_mut().filter(|second| Some(second.stolen) == least);
        let mut p99s: Vec<u32> = undisturbed.map(|second| percentile(&mut second.samples, 99)).collect();
        Latency {
            p50: percentile(&mut all, 50),
            p99: percentile(&mut all, 99),
            undisturbed_p99: percentile(&mut p99s, 50),
        }
    }

    fn end_second(&mut self) {
        let until_now = stolen();
        if let Some(ended) = self.seconds.last_mut() {
            ended.stolen = until_now - self.stolen;
        }
        self.stolen = until_now;
    }
}

/// Sorts them.
fn percentile(samples: &mut [u32], percent: usize) -> u32 {
    samples.sort_unstable();
    let rank = (samples.len() * percent).div_ceil(100).saturating_sub(1);
    samples.get(rank).copied().unwrap_or_default()
}
