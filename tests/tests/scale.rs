//! The count of instances under real streams: it follows the load, and what goes is emptied first.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on panics"
)]

use std::{collections::BTreeSet, time::Duration};

use futures::{StreamExt, stream};
use k8s_openapi::api::{apps::v1::Deployment, autoscaling::v2::HorizontalPodAutoscaler, core::v1::Pod};
use kube::{
    Api,
    api::{DeleteParams, EvictParams, ListParams, Patch, PatchParams},
};
use serde_json::json;
use vx11_crds::{VX11Cluster, status::ScalingStatus};
use vx11_tests::harness::{EventStream, Follower, Sandbox, eventually, holds, sandbox};

/// For pods to start, streams to come back and windows to pass, on two shared cores.
const PATIENCE: Duration = Duration::from_mins(2);

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

/// Streams of one instance, by its own account.
async fn streams(instance: &vx11_tests::harness::Instance) -> u64 {
    instance.admin().get("/load", &[]).await.json()["streams"].as_u64().unwrap()
}

/// Followers through the Ingress; each reconnects as a browser does.
async fn follow(sandbox: &Sandbox, count: usize) -> Vec<Follower> {
    let route = sandbox.ingress("simple");
    let token = sandbox.token("simple", &route).await;
    let all = stream::iter(0..count).map(|_| Follower::start(route.clone(), token.clone()));
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
                let answer = sandbox
                    .ingress("simple")
                    .request(hyper::Method::POST, vx11_tests::harness::EVENTS, &headers, &body)
                    .await;
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

#[tokio::test(flavor = "multi_thread")]
async fn the_count_follows_the_clients_across_each_edge_of_the_formula() {
    sandbox("edges", async |sandbox| {
        // The guide's own numbers: 500 clients an instance, at 95 % from two on.
        sandbox.ready("simple", &small(1, "rebalance: false, maxInstances: 6")).await;
        let mut followers = Vec::new();
        for (clients, instances) in [(500, 1), (501, 2), (950, 2), (951, 3), (1425, 3), (1426, 4)] {
            followers.extend(follow(sandbox, clients - followers.len()).await);
            let told =
                eventually(&format!("{clients} clients are seen and decided for"), PATIENCE, async || {
                    let status = sandbox.cluster("simple").await.status?;
                    let scaling = status.scaling?;
                    (scaling.message.replace(',', "").starts_with(&format!("{clients} clients"))
                        && scaling.desired == instances)
                        .then_some(scaling.message)
                })
                .await;
            assert!(told.contains(&format!("need {instances} instance")), "{told}");
            until_replicas(sandbox, instances).await;
        }
        // Each change is an event of its own, with its own numbers.
        eventually("every scale-out is told", PATIENCE, async || {
            let events = sandbox.events("simple").await;
            let told = |to: i32| events.iter().any(|event| event.ends_with(&format!("scaling out to {to}")));
            (told(2) && told(3) && told(4)).then_some(())
        })
        .await;
        let status = sandbox.cluster("simple").await.status.unwrap();
        assert!(status.recommendation.unwrap().starts_with("Horizontal: 4 instances"));
        assert_eq!(status.estimated_cost_per_hour.as_deref(), Some("0.20"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_count_follows_the_issuances_too() {
    sandbox("issuances", async |sandbox| {
        sandbox.ready("simple", &small(1, "issuancesPerSecondPerInstance: 5, maxInstances: 3")).await;
        let (route, principal) = (sandbox.ingress("simple"), sandbox.principal("simple").await);
        let issue = async {
            // Some 20 a second are far beyond three instances of 5.
            let mut ticks = tokio::time::interval(Duration::from_millis(50));
            loop {
                ticks.tick().await;
                route.post(vx11_tests::harness::TOKEN, &[("x-vx11-token", &principal)], "").await;
            }
        };
        let limited = async {
            until_replicas(sandbox, 3).await;
            sandbox.until("simple", "ScalingLimited", "True").await
        };
        let condition = tokio::select! {
            () = issue => unreachable!(),
            condition = limited => condition,
        };
        assert!(
            condition.message.contains("raise spec.autoscaling.maxInstances to"),
            "{}",
            condition.message
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn from_four_to_two_every_client_keeps_its_sequence_and_the_emptiest_go_empty() {
    sandbox("scalein", async |sandbox| {
        // Two instances of 320 carry 608.
        let spec = small(
            4,
            "minInstances: 4, clientsPerInstance: 320, scaleInStabilizationSeconds: 15, rebalance: false",
        );
        sandbox.ready("simple", &spec).await;
        let followers = follow(sandbox, 600).await;
        let publisher = Publisher::start(sandbox).await;
        let mut loads = Vec::new();
        for instance in sandbox.instances("simple").await {
            loads.push((streams(&instance).await, instance.name));
        }
        assert_eq!(loads.iter().map(|(streams, _)| streams).sum::<u64>(), 600);
        loads.sort();
        sandbox.patch("simple", json!({"spec": {"autoscaling": {"minInstances": 1}}})).await;
        until_replicas(sandbox, 2).await;
        until_serving(sandbox, 2).await;
        let left: BTreeSet<String> = sandbox.instances("simple").await.into_iter().map(|i| i.name).collect();
        let fullest: BTreeSet<String> = loads[2..].iter().map(|(_, name)| name.clone()).collect();
        assert_eq!(left, fullest, "of {loads:?} the emptiest go");
        let events = sandbox.events("simple").await;
        assert!(events.iter().any(|event| event.starts_with("Draining")), "{events:?}");
        assert!(!events.iter().any(|event| event.starts_with("WrongInstanceRemoved")), "{events:?}");
        publisher.stop_and_check(&followers).await;
        // retry: is 1 s here, spread by up to a half; a stream is silent for that and one second at most,
        // apart from what this machine's other work takes.
        let silences: Vec<Duration> = followers.iter().map(Follower::longest_silence).collect();
        let longest = silences.iter().max().unwrap();
        eprintln!("longest silence of any of 600 streams in a scale-in from 4 to 2: {longest:?}");
        assert!(*longest < Duration::from_secs(10), "{longest:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_that_comes_back_during_the_drain_keeps_the_instance() {
    sandbox("comeback", async |sandbox| {
        let spec = small(
            2,
            "minInstances: 2, clientsPerInstance: 20, scaleInStabilizationSeconds: 10, rebalance: false",
        )
        .replace("drainSeconds: 4", "drainSeconds: 60");
        sandbox.ready("simple", &spec).await;
        let mut followers = follow(sandbox, 16).await;
        let names: BTreeSet<String> = sandbox.instances("simple").await.into_iter().map(|i| i.name).collect();
        sandbox.patch("simple", json!({"spec": {"autoscaling": {"minInstances": 1}}})).await;
        sandbox.until("simple", "Draining", "True").await;
        followers.extend(follow(sandbox, 14).await);
        sandbox.until("simple", "Draining", "False").await;
        until_serving(sandbox, 2).await;
        let now: BTreeSet<String> = sandbox.instances("simple").await.into_iter().map(|i| i.name).collect();
        assert_eq!(now, names, "the drained instance serves again");
        for pod in sandbox.pods("simple", "backend").await {
            let annotations = pod.metadata.annotations.unwrap_or_default();
            assert!(!annotations.contains_key("vx11.io/drain"), "{annotations:?}");
            assert!(
                !annotations.contains_key("controller.kubernetes.io/pod-deletion-cost"),
                "{annotations:?}"
            );
        }
        let events = sandbox.events("simple").await;
        assert!(events.iter().any(|event| event.starts_with("DrainCancelled")), "{events:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_an_instance_does_not_report_nothing_is_removed() {
    sandbox("missing", async |sandbox| {
        let spec = small(3, "minInstances: 3, scaleInStabilizationSeconds: 5");
        sandbox.ready("simple", &spec).await;
        let mute = sandbox.instances("simple").await.remove(0).name;
        silence(sandbox, &mute).await;
        let unknown = sandbox.until("simple", "ScalingActive", "Unknown").await;
        assert!(unknown.message.contains(&mute), "{}", unknown.message);
        sandbox.patch("simple", json!({"spec": {"autoscaling": {"minInstances": 1}}})).await;
        let blocked = eventually("the scale-in is blocked", PATIENCE, async || {
            scaling(sandbox).await.filter(|scaling| scaling.reason == "ScaleInBlocked")
        })
        .await;
        assert!(blocked.blocked_by.iter().any(|by| by.contains(&mute)), "{blocked:?}");
        holds("three replicas", Duration::from_secs(10), async || replicas(sandbox).await == 3).await;
    })
    .await;
}

/// Stops a pod's processes where they stand: they hold their streams and answer nobody, until the kubelet makes
/// the container anew.
async fn silence(sandbox: &Sandbox, pod: &str) {
    let pod = sandbox.api::<Pod>().get(pod).await.unwrap();
    let node = pod.spec.unwrap().node_name.unwrap();
    let uid = pod.metadata.uid.unwrap();
    let stop = format!(
        "grep -lE '{uid}|{}' /proc/[0-9]*/cgroup | cut -d/ -f3 | xargs -r kill -STOP",
        uid.replace('-', "_")
    );
    let output = vx11_tests::harness::tool("docker", &["exec", &node, "sh", "-c", &stop]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scale_in_survives_the_controller_at_every_stage() {
    sandbox("killed", async |sandbox| {
        let controllers: Api<Pod> = Api::namespaced(sandbox.client.clone(), "vx11-system");
        let kill = async || {
            let ours = ListParams::default().labels("app.kubernetes.io/name=vx11-operator");
            for pod in controllers.list(&ours).await.unwrap() {
                let now = DeleteParams::default().grace_period(0);
                let _ = controllers.delete(&pod.metadata.name.unwrap(), &now).await;
            }
        };
        let spec = small(
            3,
            "minInstances: 3, clientsPerInstance: 100, scaleInStabilizationSeconds: 5, rebalance: false",
        );
        sandbox.ready("simple", &spec).await;
        let followers = follow(sandbox, 60).await;
        let publisher = Publisher::start(sandbox).await;
        sandbox.patch("simple", json!({"spec": {"autoscaling": {"minInstances": 1}}})).await;
        let marked = async || {
            let pods = sandbox.pods("simple", "backend").await;
            let is_marked =
                |pod: &Pod| pod.metadata.annotations.iter().flatten().any(|(key, _)| key == "vx11.io/drain");
            pods.iter().any(is_marked).then_some(())
        };
        eventually("an instance is marked", PATIENCE, marked).await;
        kill().await;
        eventually("replicas is lowered by the next leader", PATIENCE, async || {
            (replicas(sandbox).await < 3).then_some(())
        })
        .await;
        kill().await;
        until_replicas(sandbox, 1).await;
        until_serving(sandbox, 1).await;
        sandbox.until("simple", "Draining", "False").await;
        publisher.stop_and_check(&followers).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_drain_by_eviction_loses_nothing() {
    sandbox("evict", async |sandbox| {
        sandbox
            .ready("simple", &small(3, "minInstances: 3, clientsPerInstance: 100, rebalance: false"))
            .await;
        let followers = follow(sandbox, 60).await;
        let publisher = Publisher::start(sandbox).await;
        let pods: Api<Pod> = sandbox.api();
        let instances = sandbox.instances("simple").await;
        for instance in &instances {
            // As kubectl drain does: again and again, until the budget allows it.
            eventually(&format!("{} may be evicted", instance.name), PATIENCE, async || {
                assert!(sandbox.instances("simple").await.len() >= 2, "two of three serve at any time");
                match pods.evict(&instance.name, &EvictParams::default()).await {
                    Ok(_) => Some(()),
                    Err(kube::Error::Api(status)) if status.code == 429 => None,
                    Err(error) => panic!("{}: {error}", instance.name),
                }
            })
            .await;
        }
        until_serving(sandbox, 3).await;
        publisher.stop_and_check(&followers).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_under_streams_loses_nothing() {
    sandbox("rollout", async |sandbox| {
        sandbox
            .ready("simple", &small(3, "minInstances: 3, clientsPerInstance: 300, rebalance: false"))
            .await;
        let followers = follow(sandbox, 300).await;
        let publisher = Publisher::start(sandbox).await;
        let before: BTreeSet<String> =
            sandbox.instances("simple").await.into_iter().map(|i| i.name).collect();
        sandbox.patch("simple", json!({"spec": {"backend": {"pod": {"labels": {"rolled": "once"}}}}})).await;
        eventually("three new instances serve", PATIENCE, async || {
            let now: BTreeSet<String> =
                sandbox.instances("simple").await.into_iter().map(|i| i.name).collect();
            (now.len() == 3 && now.is_disjoint(&before)).then_some(())
        })
        .await;
        publisher.stop_and_check(&followers).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn new_instances_get_their_share_of_open_streams() {
    sandbox("level", async |sandbox| {
        sandbox.ready("simple", &small(1, "clientsPerInstance: 200, maxInstances: 3")).await;
        let followers = follow(sandbox, 250).await;
        until_serving(sandbox, 2).await;
        eventually("the fullest has at most 20 % of the mean more than the emptiest", PATIENCE, async || {
            let mut loads = Vec::new();
            for instance in sandbox.instances("simple").await {
                loads.push(streams(&instance).await);
            }
            let (most, least, sum) = (loads.iter().max()?, loads.iter().min()?, loads.iter().sum::<u64>());
            let mean = sum / u64::try_from(loads.len()).ok()?;
            (loads.len() == 2 && sum >= 240 && (most - least) * 100 < mean * 20).then_some(())
        })
        .await;
        drop(followers);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_count_changes_owners_without_a_jump() {
    sandbox("owner", async |sandbox| {
        sandbox.ready("simple", &small(3, "")).await;
        sandbox
            .patch("simple", json!({"spec": {"autoscaling": {"scaleInStabilizationSeconds": 3600}}}))
            .await;
        sandbox.until("simple", "ScalingActive", "True").await;
        holds("three replicas", Duration::from_secs(10), async || replicas(sandbox).await == 3).await;
        assert_eq!(
            sandbox.cluster("simple").await.spec.instances,
            3,
            "nothing is written back into the spec"
        );
        // Another hand on the Deployment is put back while the load owns the count.
        let deployments: Api<Deployment> = sandbox.api();
        let hand = json!({"spec": {"replicas": 5}});
        deployments.patch("simple-backend", &PatchParams::default(), &Patch::Merge(&hand)).await.unwrap();
        sandbox.patch("simple", json!({"spec": {"autoscaling": null}})).await;
        until_replicas(sandbox, 3).await;
        sandbox.until("simple", "ScalingActive", "False").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scale_subresource_drains_too() {
    sandbox("subresource", async |sandbox| {
        sandbox.ready("simple", &small(3, "")).await;
        let followers = follow(sandbox, 60).await;
        let publisher = Publisher::start(sandbox).await;
        // What a HorizontalPodAutoscaler does.
        let scale = json!({"spec": {"replicas": 1}});
        let clusters: Api<VX11Cluster> = sandbox.api();
        clusters.patch_scale("simple", &PatchParams::default(), &Patch::Merge(&scale)).await.unwrap();
        until_replicas(sandbox, 1).await;
        until_serving(sandbox, 1).await;
        publisher.stop_and_check(&followers).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_horizontal_pod_autoscaler_sets_the_count() {
    sandbox("hpa", async |sandbox| {
        sandbox.ready("simple", &small(1, "")).await;
        // Below its minimum and above its maximum it needs no metric to know what to do.
        let bounds = async |least: i32, most: i32| {
            let autoscaler = json!({
                "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "simple"},
                "spec": {
                    "scaleTargetRef": {"apiVersion": "vx11.io/v1alpha1", "kind": "VX11Cluster", "name": "simple"},
                    "minReplicas": least, "maxReplicas": most,
                },
            });
            let autoscalers: Api<HorizontalPodAutoscaler> = sandbox.api();
            let params = PatchParams::apply("e2e").force();
            autoscalers.patch("simple", &params, &Patch::Apply(&autoscaler)).await.unwrap();
        };
        bounds(3, 4).await;
        until_replicas(sandbox, 3).await;
        assert_eq!(sandbox.cluster("simple").await.spec.instances, 3);
        until_serving(sandbox, 3).await;
        bounds(1, 2).await;
        until_replicas(sandbox, 2).await;
        until_serving(sandbox, 2).await;
        sandbox.until("simple", "Ready", "True").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_cannot_scale_is_refused_with_its_remedy() {
    sandbox("refused", async |sandbox| {
        let refused = [
            ("{autoscaling: {minInstances: 5, maxInstances: 2}}", "lower minInstances or raise maxInstances"),
            ("{autoscaling: {minInstances: 0}}", "spec.autoscaling.minInstances must be at least 1"),
            ("{autoscaling: {maxInstances: 0}}", "spec.autoscaling.maxInstances must be at least 1"),
            ("{autoscaling: {clientsPerInstance: 0}}", "the scaling guide takes 500"),
            ("{autoscaling: {issuancesPerSecondPerInstance: 0}}", "the scaling guide takes 1000"),
            ("{autoscaling: {loadBalancerEfficiencyPercent: 0}}", "must be 1 to 100: the scaling guide takes 95"),
            ("{autoscaling: {targetUtilizationPercent: 101}}", "must be 1 to 100: 100 fills the instances"),
            ("{autoscaling: {}, redis: {type: None}}", "set spec.redis.type to Standalone, or remove spec.autoscaling"),
            ("{autoscaling: {clientsPerInstance: 1001}}", "lower the first or raise the second"),
        ];
        for (spec, remedy) in refused {
            let error = sandbox.try_apply("refused", spec).await.expect_err(spec).to_string();
            assert!(error.contains(remedy), "{spec}: {error}");
        }
        // What passes beside each of them.
        let all = "{paused: true, autoscaling: {minInstances: 2, maxInstances: 2, clientsPerInstance: 1000, \
                   issuancesPerSecondPerInstance: 1, loadBalancerEfficiencyPercent: 100, targetUtilizationPercent: 1, \
                   expectedClients: 1000000000}}";
        sandbox.apply("accepted", all).await;
        let limited = sandbox.until("accepted", "ScalingLimited", "True").await;
        assert!(limited.message.contains("raise spec.autoscaling.maxInstances to"), "{}", limited.message);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_survives_the_drain_of_its_instance_with_an_expired_token() {
    sandbox("expired", async |sandbox| {
        let spec = small(2, "").replace("tokenTtlSeconds: 600", "tokenTtlSeconds: 2");
        sandbox.ready("simple", &spec).await;
        let followers = follow(sandbox, 10).await;
        let publisher = Publisher::start(sandbox).await;
        eventually("the token has expired", PATIENCE, async || {
            let token = "00000000-0000-4000-8000-000000000000";
            EventStream::open(&sandbox.ingress("simple"), &format!("?token={token}"), &[]).await.err()
        })
        .await;
        sandbox.patch("simple", json!({"spec": {"instances": 1}})).await;
        until_replicas(sandbox, 1).await;
        publisher.stop_and_check(&followers).await;
    })
    .await;
}
