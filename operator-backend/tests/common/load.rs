//! Open-loop load: requests leave at their time whether or not earlier ones were answered, and their
//! latency counts from that time. A control beside it measures what the machine itself stalls.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::Client;

/// One answered request.
#[derive(Clone, Copy)]
pub(crate) struct Sample {
    /// When it was due, since the beginning.
    pub(crate) due: Duration,
    pub(crate) latency: Duration,
    /// `None` when there was no answer; its latency then is the client's patience.
    pub(crate) status: Option<u16>,
}

/// Sends `rate` requests a second, as many as are due until `end` (milliseconds from now; it may be set while this
/// runs), and returns every answer.
pub(crate) async fn run(
    client: Client,
    path: &'static str,
    header: Option<(&'static str, &'static str)>,
    rate: u32,
    end: Arc<AtomicU64>,
) -> Vec<Sample> {
    let begun = Instant::now();
    let mut requests = JoinSet::new();
    for number in 0.. {
        let due = Duration::from_secs(1) * number / rate;
        if due >= Duration::from_millis(end.load(Ordering::Relaxed)) {
            break;
        }
        sleep_until(begun + due).await;
        let client = client.clone();
        requests.spawn(async move {
            let headers: Vec<_> = header.into_iter().collect();
            let status = client.try_get(path, &headers).await.map(|answer| answer.status);
            Sample { due, latency: (begun + due).elapsed(), status }
        });
    }
    requests.join_all().await
}

/// The latency that `percent` of the samples stay within.
pub(crate) fn percentile(samples: &[Sample], percent: usize) -> Duration {
    let mut latencies: Vec<Duration> = samples.iter().map(|sample| sample.latency).collect();
    latencies.sort_unstable();
    let at = (latencies.len() * percent).div_ceil(100).saturating_sub(1);
    latencies[at]
}
