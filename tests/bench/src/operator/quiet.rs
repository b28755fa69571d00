//! What the operator writes when nothing changes, by the API server's audit log.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use vx11_tests::harness::{Asked, Audit, EventStream, OPERATOR, Sandbox, eventually, sandbox};

use crate::report::{Report, section};

const MINUTES: u64 = 5;
const STREAMS: usize = 60;

/// Three clusters, one of them with an autoscaler and a constant load.
pub async fn measure(report: &mut Report) {
    let (all, loaded) = sandbox("quiet", async |sandbox| {
        sandbox.ready("simple", "{instances: 2}").await;
        sandbox.ready("alone", "{instances: 1, redis: {type: None}}").await;
        sandbox
            .ready("scaled", "{autoscaling: {minInstances: 1, maxInstances: 3, clientsPerInstance: 100}}")
            .await;
        let route = sandbox.ingress("scaled");
        let token = sandbox.token("scaled", &route).await;
        let mut streams = Vec::new();
        for _ in 0..STREAMS {
            let stream = EventStream::open(&route, &format!("?token={token}"), &[]).await;
            streams.push(stream.expect("a stream"));
        }
        let mut audit = Audit::from_now();
        let mut last = Instant::now();
        eventually("20 seconds without a write", Duration::from_mins(3), async || {
            if !writes(&mut audit, sandbox).is_empty() {
                last = Instant::now();
            }
            (last.elapsed() > Duration::from_secs(20)).then_some(())
        })
        .await;
        sleep(Duration::from_secs(MINUTES * 60)).await;
        let all = writes(&mut audit, sandbox);
        let loaded = all.iter().filter(|write| write.name.starts_with("scaled")).count();
        drop(streams);
        (all.len(), loaded)
    })
    .await;
    section("What the operator writes when nothing changes, its lease apart");
    let what = format!("Writes in {MINUTES} minutes with 3 clusters");
    report.at_most(&what, all as f64, &all.to_string(), 0.0, "");
    let what = format!("Of these, for the cluster with an autoscaler and {STREAMS} streams");
    report.at_most(&what, loaded as f64, &loaded.to_string(), 0.0, "");
}

fn writes(audit: &mut Audit, sandbox: &Sandbox) -> Vec<Asked> {
    let mut asked = audit.read(OPERATOR);
    asked.retain(|asked| asked.is_write() && asked.namespace == sandbox.namespace);
    asked
}
