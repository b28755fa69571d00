//! How soon a load that crosses the line is answered, and what streams feel of a scale-in.

use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::ApiResource;
use serde_json::json;
use tokio::time::{Instant, sleep};
use vx11_tests::harness::{EventStream, Follower, Sandbox, eventually, sandbox};

use super::{shown, until_seen};
use crate::report::{Report, figure, section};

const PATIENCE: Duration = Duration::from_mins(3);
/// Clusters that are measured beside each other, and crossings of each.
const CLUSTERS: usize = 4;
const CROSSINGS: usize = 5;
/// `intervalSeconds` of the controller's looks, and what is granted on top.
const INTERVAL_MS: f64 = 5000.0;
const GRANTED_MS: f64 = 1000.0;

/// From the stream that crosses the line to the Deployment's higher count.
pub async fn crossing(report: &mut Report) {
    let mut times = sandbox("crossing", async |sandbox| {
        let names: Vec<String> = (0..CLUSTERS).map(|number| format!("cluster-{number}")).collect();
        join_all(names.iter().map(|name| cross(sandbox, name))).await.concat()
    })
    .await;
    section("From the load that crosses the line to the higher count, looks every 5 s");
    let (value, text) = shown(&mut times);
    report.at_most(
        "Stream that crosses the line to `replicas` patched",
        value,
        &text,
        INTERVAL_MS + GRANTED_MS,
        "ms",
    );
}

async fn cross(sandbox: &Sandbox, name: &str) -> Vec<Duration> {
    // One instance carries 20, without a load balancer to take its share.
    let spec = "{instances: 1, autoscaling: {minInstances: 1, maxInstances: 2, clientsPerInstance: 20, \
                scaleInStabilizationSeconds: 0, rebalance: false}, \
                backend: {tokenTtlSeconds: 3600, stream: {drainSeconds: 0}}, redis: {persistence: false}}";
    sandbox.ready(name, spec).await;
    let (route, deployment) = (sandbox.ingress(name), format!("{name}-backend"));
    let deployments = sandbox.objects(&ApiResource::erase::<Deployment>(&()));
    let token = sandbox.token(name, &route).await;
    let query = format!("?token={token}");
    let mut times = Vec::new();
    for round in 0..CROSSINGS {
        // Each at another point of the interval.
        sleep(Duration::from_millis(u64::try_from(round).expect("a small number") * 1100)).await;
        let mut streams = Vec::new();
        for _ in 0..20 {
            streams.push(EventStream::open(&route, &query, &[]).await.expect("a stream"));
        }
        let cross = async || {
            streams.push(EventStream::open(&route, &query, &[]).await.expect("a stream"));
        };
        times.push(
            until_seen(&deployments, &deployment, cross, |object| {
                object.data.pointer("/spec/replicas") == Some(&json!(2))
            })
            .await,
        );
        drop(streams);
        eventually("one instance is left", PATIENCE, async || {
            let now = deployments.get(&deployment).await.ok()?;
            (now.data.pointer("/spec/replicas") == Some(&json!(1))
                && sandbox.pods(name, "backend").await.len() == 1)
                .then_some(())
        })
        .await;
    }
    times
}

/// Three instances become two under 300 streams and ten events a second.
pub async fn silence(report: &mut Report) {
    const STREAMS: usize = 300;
    let (longest, beyond, events) = sandbox("silence", async |sandbox| {
        let spec = "{instances: 3, autoscaling: {minInstances: 3, maxInstances: 3, clientsPerInstance: 320, \
                    scaleInStabilizationSeconds: 5, rebalance: false}, \
                    backend: {tokenTtlSeconds: 3600, stream: {retryMilliseconds: 1000}}}";
        sandbox.ready("simple", spec).await;
        let (route, principal) = (sandbox.ingress("simple"), sandbox.principal("simple").await);
        let token = sandbox.token("simple", &route).await;
        let mut followers = Vec::new();
        for _ in 0..STREAMS {
            followers.push(Follower::start(route.clone(), token.clone()).await);
        }
        followers.iter().for_each(Follower::forget_silence);
        sandbox.patch("simple", json!({"spec": {"autoscaling": {"minInstances": 1}}})).await;
        let begun = Instant::now();
        let mut published = 0;
        // Until the instance has gone, and a little longer.
        while sandbox.pods("simple", "backend").await.len() > 2 || begun.elapsed() < Duration::from_secs(20) {
            assert!(begun.elapsed() < PATIENCE, "the scale-in did not come to its end");
            for _ in 0..10 {
                let text = published.to_string();
                sandbox
                    .publish(&principal, &route, &format!("silence-{text}"), &text)
                    .await
                    .expect("an event");
                published += 1;
                sleep(Duration::from_millis(100)).await;
            }
        }
        for follower in &followers {
            eventually("every stream has every event", PATIENCE, async || {
                (follower.messages().len() >= published).then_some(())
            })
            .await;
            assert_eq!((follower.messages().len(), follower.gaps()), (published, 0));
        }
        let most = |of: fn(&Follower) -> Duration| followers.iter().map(of).max().unwrap_or_default();
        (most(Follower::longest_silence), most(Follower::longest_silence_beyond_retry), published)
    })
    .await;
    section("What 300 streams feel of a scale-in of one instance of three, ten events a second");
    report.note("Events that every stream got once, in order", &events.to_string());
    report.note("Longest silence of any stream", &format!("{} s", figure(longest.as_secs_f64())));
    let beyond = beyond.as_secs_f64();
    let text = format!("{} s", figure(beyond));
    report.at_most("Longest silence of any stream beyond its `retry:`", beyond, &text, 1.0, "s");
}
