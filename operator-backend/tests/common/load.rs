//! Open-loop load: requests leave at their time whether or not earlier ones were answered, and their
//! latency counts from that time. A control beside it measures what the machine itself stalls.

use std::time::Duration;

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

/// Sends `rate` requests a second for `length` and returns every answer.
pub(crate) async fn run(
    client: Client,
    path: &'static str,
    header: Option<(&'static str, &'static str)>,
    rate: u32,
    length: Duration,
) -> Vec<Sample> {
    let begun = Instant::now();
    let mut requests = JoinSet::new();
    let count = u32::try_from(length.as_millis()).unwrap() * rate / 1000;
    for number in 0..count {
        let due = Duration::from_secs(1) * number / rate;
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

/// The latency that `percent` of the samples stay within; zero of none.
pub(crate) fn percentile(samples: &[Sample], percent: usize) -> Duration {
    let mut latencies: Vec<Duration> = samples.iter().map(|sample| sample.latency).collect();
    latencies.sort_unstable();
    let at = (latencies.len() * percent).div_ceil(100).saturating_sub(1);
    latencies.get(at).copied().unwrap_or_default()
}
