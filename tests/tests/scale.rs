//! The count of instances under real streams: it follows the load, and what goes is emptied first.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on panics"
)]

#[path = "scale/drain.rs"]
mod drain;
#[path = "scale/edges.rs"]
mod edges;
#[path = "scale/owners.rs"]
mod owners;
#[path = "scale/stages.rs"]
mod stages;

use std::{collections::BTreeSet, time::Duration};

use futures::{StreamExt, stream};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::ConfigMap};
use serde_json::{Value, json};
use vx11_crds::status::ScalingStatus;
use vx11_tests::harness::{EVENTS, Follower, Instance, Route, Sandbox, eventually};

/// For pods to start, streams to come back and windows to pass, on two shared cores.
const PATIENCE: Duration = Duration::from_mins(4);

/// A cluster of small instances: the same formula, fewer streams. `autoscaling` is YAML of that section.
fn small(instances: i32, autoscaling: &str) -> String {
    let section =
        if autoscaling.is_empty() { String::new() } else { format!("autoscaling: {{{autoscaling}}}, ") };
    format!(
        "{{instances: {instances}, {section}\
         backend: {{tokenTtlSeconds: 600, stream: {{drainSeconds: 4, retryMilliseconds: 1000}}, \
         resources: {{requests: {{cpu: 5m, memory: 16Mi}}, limits: {{memory: 128Mi}}}}}}, \
         redis: {{resources: {{requests: {{cpu: 5m, memory: 16Mi}}, limits: {{memory: 128Mi}}}}}}}}"
    )
}

async fn scaling(sandbox: &Sandbox) -> Option<ScalingStatus> {
    sandbox.cluster("simple").await.status?.scaling
}

async fn replicas(sandbox: &Sandbox) -> i32 {
    let deployment = sandbox.api::<Deployment>().get("simple-backend").await.unwrap();
    deployment.spec.unwrap().replicas.unwrap()
}

async fn until_replicas(sandbox: &Sandbox, count: i32) {
    eventually(&format!("replicas is {count}"), PATIENCE, async || {
        (replicas(sandbox).await == count).then_some(())
    })
    .await;
}

async fn until_serving(sandbox: &Sandbox, count: usize) {
    eventually(&format!("{count} instances serve"), PATIENCE, async || {
        (sandbox.instances("simple").await.len() == count).then_some(())
    })
    .await;
}

/// Names of the instances that serve.
async fn names(sandbox: &Sandbox) -> BTreeSet<String> {
    sandbox.instances("simple").await.into_iter().map(|instance| instance.name).collect()
}

/// The decisions so far with what went into them, oldest first.
async fn journal(sandbox: &Sandbox) -> Vec<Value> {
    let map = sandbox.api::<ConfigMap>().get("simple-scaling").await.unwrap();
    serde_json::from_str(&map.data.unwrap()["journal.json"]).unwrap()
}

/// The instances that the controller let go, by its journal, as soon as it names this many: it is written after the
/// count. Each had no stream left when it went.
async fn removed_empty(sandbox: &Sandbox, least: usize) -> BTreeSet<String> {
    eventually(&format!("the journal names {least} that were let go"), PATIENCE, async || {
        let removed: BTreeSet<String> = journal(sandbox).await.iter().flat_map(removed_by).collect();
        (removed.len() >= least).then_some(removed)
    })
    .await
}

/// Those that one decision let go.
fn removed_by(entry: &Value) -> Vec<String> {
    let actions = entry["decision"]["actions"].as_array().unwrap();
    let removals = actions.iter().filter_map(|action| action["removing"].as_array()).flatten();
    let removed = removals.map(|removal| {
        let name = removal["name"].as_str().unwrap();
        let instances = entry["observed"]["instances"].as_array().unwrap();
        let victim = instances.iter().find(|instance| instance["name"] == name).unwrap();
        assert_eq!(victim["load"]["value"]["streams"], 0, "{victim}");
        assert_eq!(victim["load"]["value"]["draining"], true, "{victim}");
        name.to_owned()
    });
    removed.collect()
}

/// Streams of one instance, by its own account.
async fn streams(instance: &Instance) -> u64 {
    instance.admin().get("/load", &[]).await.json()["streams"].as_u64().unwrap()
}

/// Followers through the Ingress; each reconnects as a browser does.
async fn follow(sandbox: &Sandbox, count: usize) -> Vec<Follower> {
    let route = sandbox.ingress("simple");
    let token = sandbox.token("simple", &route).await;
    follow_with(&route, &token, count).await
}

/// Followers over this route with this token.
async fn follow_with(route: &Route, token: &str, count: usize) -> Vec<Follower> {
    let all = stream::iter(0..count).map(|_| Follower::start(route.clone(), token.to_owned()));
    all.buffer_unordered(20).collect().await
}

/// Publishes numbers until it is stopped; how many those were.
struct Publisher {
    stop: tokio::sync::oneshot::Sender<()>,
    task: tokio::task::JoinHandle<usize>,
}

impl Publisher {
    async fn start(sandbox: &Sandbox) -> Self {
        let (stop, mut stopped) = tokio::sync::oneshot::channel();
        let (sandbox, principal) = (sandbox.clone(), sandbox.principal("simple").await);
        let task = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(Duration::from_millis(100));
            let mut number = 0;
            while stopped.try_recv().is_err() {
                ticks.tick().await;
                // The same number until it is taken; the key keeps an uncertain one from being there twice.
                let body = json!({"data": number.to_string()}).to_string();
                let key = format!("number-{number}");
                let headers = [("x-vx11-token", principal.as_str()), ("idempotency-key", key.as_str())];
                let answer =
                    sandbox.ingress("simple").request(hyper::Method::POST, EVENTS, &headers, &body).await;
                number += usize::from(answer.is_ok_and(|answer| answer.status == 202));
            }
            number
        });
        Self { stop, task }
    }

    /// Stops, and checks that every follower got every number once, in order.
    async fn stop_and_check(self, followers: &[Follower]) {
        let _ = self.stop.send(());
        let published = self.task.await.unwrap();
        assert!(published > 20, "only {published} events were published");
        let expected: Vec<String> = (0..published).map(|number| format!("\"{number}\"")).collect();
        for (index, follower) in followers.iter().enumerate() {
            eventually(&format!("follower {index} has all {published} events"), PATIENCE, async || {
                (follower.messages().len() >= published).then_some(())
            })
            .await;
            assert_eq!(follower.messages(), expected, "follower {index}");
            assert_eq!(follower.gaps(), 0, "follower {index} was told of a gap");
        }
    }
}
