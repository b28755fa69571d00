//! What goes is emptied first: scale-in, rollout and eviction under streams and events.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::EvictParams};
use serde_json::{Value, json};
use vx11_tests::harness::{EventStream, Follower, Sandbox, eventually, holds, is_left_out, sandbox, tool};

use super::{
    PATIENCE, Publisher, follow, follow_with, journal, names, removed_empty, replicas, scaling, small,
    streams, until_replicas, until_serving,
};

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
        let mut loads = 0;
        for instance in sandbox.instances("simple").await {
            loads += streams(&instance).await;
        }
        assert_eq!(loads, 600);
        sandbox.patch("simple", json!({"spec": {"autoscaling": {"minInstances": 1}}})).await;
        until_replicas(sandbox, 2).await;
        until_serving(sandbox, 2).await;
        let left: BTreeSet<String> = sandbox.instances("simple").await.into_iter().map(|i| i.name).collect();
        let events = sandbox.events("simple").await;
        assert!(events.iter().any(|event| event.starts_with("Draining")), "{events:?}");
        assert!(!events.iter().any(|event| event.starts_with("WrongInstanceRemoved")), "{events:?}");
        // What drains is not ready, and nothing is wrong with it.
        assert!(!events.iter().any(|event| event.starts_with("NotHealthy")), "{events:?}");
        publisher.stop_and_check(&followers).await;
        // By the controller's own account: who was chosen for what it held, and that it held nothing in the end.
        let removed = removed_empty(sandbox, 2).await;
        assert_eq!(removed.len(), 2, "{removed:?}");
        assert!(removed.is_disjoint(&left), "{removed:?} went, {left:?} stayed");
        the_emptiest_and_newest_were_chosen(sandbox).await;
        every_decision_comes_out_again(sandbox).await;
        // retry: is 1 s here, spread by up to a half; a stream is silent for that and one second at most,
        // apart from what this machine's other work takes.
        let silences: Vec<Duration> = followers.iter().map(Follower::longest_silence).collect();
        let longest = silences.iter().max().unwrap();
        eprintln!("longest silence of any of 600 streams in a scale-in from 4 to 2: {longest:?}");
        assert!(*longest < Duration::from_secs(10), "{longest:?}");
    })
    .await;
}

/// The journal's first mark of each victim: no survivor held less, and of two that held as much the newer goes.
async fn the_emptiest_and_newest_were_chosen(sandbox: &Sandbox) {
    let mut chosen = 0;
    for entry in journal(sandbox).await {
        let actions = entry["decision"]["actions"].as_array().unwrap();
        let marked: Vec<&Value> = actions
            .iter()
            .filter(|action| action["action"] == "mark")
            .map(|action| &action["name"])
            .collect();
        if marked.is_empty() {
            continue;
        }
        chosen += marked.len();
        let rank = |instance: &Value| {
            let streams =
                instance["load"]["value"]["streams"].as_u64().unwrap_or_else(|| panic!("{instance}"));
            (streams, std::cmp::Reverse(instance["created"].as_u64().unwrap()))
        };
        let serving = entry["observed"]["instances"].as_array().unwrap().iter();
        let serving =
            serving.filter(|i| i["ready"] == true && i["terminating"] == false && i["mark"].is_null());
        let (victims, others): (Vec<&Value>, Vec<&Value>) =
            serving.partition(|i| marked.contains(&&i["name"]));
        let most = victims.into_iter().map(rank).max().unwrap();
        let least = others.into_iter().map(rank).min().unwrap();
        assert!(most <= least, "an instance with {most:?} was chosen before one with {least:?}: {entry}");
    }
    assert_eq!(chosen, 2, "two were chosen");
}

/// `why` tells the decisions, and `replay` comes to the same: with the controller's own image.
async fn every_decision_comes_out_again(sandbox: &Sandbox) {
    let program = "kubectl -n vx11-system exec -i deploy/vx11-operator -- vx11-controller";
    let pipe = format!("{program} why {}/simple -o json | {program} replay -", sandbox.namespace);
    let output = tool("bash", &["-o", "pipefail", "-c", &pipe]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let count = journal(sandbox).await.len();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains(&format!("{count} of {count} decisions come out as recorded")), "{said}");
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
        assert!(!events.iter().any(|event| event.starts_with("NotHealthy")), "{events:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_an_instance_does_not_report_nothing_is_removed() {
    if is_left_out("it cuts an instance off on its node") {
        return;
    }
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
        let by_the_mute = |by: &String| by.starts_with("MetricsMissing: ") && by.contains(&mute);
        assert!(blocked.blocked_by.iter().any(by_the_mute), "{blocked:?}");
        holds("three replicas", Duration::from_secs(10), async || replicas(sandbox).await == 3).await;
    })
    .await;
}

/// Keeps everybody but the kubelet from a pod's admin port: it serves, and its load is not known.
async fn silence(sandbox: &Sandbox, pod: &str) {
    let pod = sandbox.api::<Pod>().get(pod).await.unwrap();
    let node = pod.spec.unwrap().node_name.unwrap();
    let uid = pod.metadata.uid.unwrap();
    let silence = format!(
        "pid=$(grep -lE '{uid}|{}' /proc/[0-9]*/cgroup | head -n 1 | cut -d/ -f3)
         within() {{ nsenter -t \"$pid\" -n \"$@\"; }}
         for probes in $(hostname -i | grep -oE '[0-9]+(\\.[0-9]+){{3}}') $(within ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p'); do
           within iptables -A INPUT -s \"$probes\" -j ACCEPT
         done
         within iptables -A INPUT -i eth0 -p tcp --dport 9090 -j DROP",
        uid.replace('-', "_")
    );
    let output = tool("docker", &["exec", &node, "sh", "-ec", &silence]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_drain_by_eviction_loses_nothing_and_closes_streams_evenly() {
    /// Streams that may come back a second: 90 in a window of 12 seconds, with some room.
    const PACE: usize = 12;
    sandbox("evict", async |sandbox| {
        let spec = small(3, "minInstances: 3, clientsPerInstance: 100, rebalance: false")
            .replace("drainSeconds: 4", "drainSeconds: 12");
        sandbox.ready("simple", &spec).await;
        let followers = follow(sandbox, 90).await;
        let publisher = Publisher::start(sandbox).await;
        let pods: Api<Pod> = sandbox.api();
        let instances = sandbox.instances("simple").await;
        let begun = Instant::now();
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
        eventually("the evicted instances are gone", PATIENCE, async || {
            let now = sandbox.pods("simple", "backend").await;
            let left = |pod: &Pod| instances.iter().any(|old| pod.metadata.name.as_ref() == Some(&old.name));
            (now.len() == 3 && !now.iter().any(left)).then_some(())
        })
        .await;
        until_serving(sandbox, 3).await;
        publisher.stop_and_check(&followers).await;
        // Seen from the clients, whose retry: spreads them further. Two seconds, for a machine that stumbles.
        let most = reconnects_within(&followers, begun, Duration::from_secs(2));
        println!("at most {most} of 90 streams came back within two seconds");
        assert!(most <= 2 * PACE, "{most} streams came back within two seconds, not over its drain window");
        assert!(
            followers.iter().all(|follower| follower.connections() > 1),
            "each was on an evicted instance"
        );
    })
    .await;
}

/// The most reconnects in any period of this length since `begun`.
fn reconnects_within(followers: &[Follower], begun: Instant, period: Duration) -> usize {
    let mut times: Vec<Instant> = followers.iter().flat_map(Follower::connected).collect();
    times.retain(|time| *time > begun);
    times.sort();
    let ends = times.iter().enumerate();
    ends.map(|(first, from)| times[first..].iter().take_while(|time| **time < *from + period).count())
        .max()
        .unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_image_under_600_streams_loses_nothing() {
    sandbox("image", async |sandbox| {
        sandbox
            .ready("simple", &small(3, "minInstances: 3, clientsPerInstance: 600, rebalance: false"))
            .await;
        let followers = follow(sandbox, 600).await;
        let publisher = Publisher::start(sandbox).await;
        let before = names(sandbox).await;
        let image = format!("ghcr.io/vx11/operator-backend:{}-next", env!("CARGO_PKG_VERSION"));
        sandbox.patch("simple", json!({"spec": {"backend": {"image": image}}})).await;
        eventually("three new instances serve, and they alone", PATIENCE, async || {
            let now = names(sandbox).await;
            let pods = sandbox.pods("simple", "backend").await;
            let run = |pod: &Pod| {
                pod.spec.as_ref().is_some_and(|spec| spec.containers[0].image.as_ref() == Some(&image))
            };
            (now.len() == 3 && now.is_disjoint(&before) && pods.len() == 3 && pods.iter().all(run))
                .then_some(())
        })
        .await;
        publisher.stop_and_check(&followers).await;
        assert!(followers.iter().all(|follower| follower.connections() > 1), "each was on an old instance");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_survives_the_drain_of_its_instance_with_an_expired_token() {
    sandbox("expired", async |sandbox| {
        let spec = small(2, "").replace("tokenTtlSeconds: 600", "tokenTtlSeconds: 2");
        sandbox.ready("simple", &spec).await;
        let route = sandbox.ingress("simple");
        let token = sandbox.token("simple", &route).await;
        let followers = follow_with(&route, &token, 10).await;
        let publisher = Publisher::start(sandbox).await;
        let refusal = eventually("the token has expired", PATIENCE, async || {
            EventStream::open(&route, &format!("?token={token}"), &[]).await.err()
        })
        .await;
        assert!(refusal.contains("403"), "{refusal}");
        sandbox.patch("simple", json!({"spec": {"instances": 1}})).await;
        until_replicas(sandbox, 1).await;
        until_serving(sandbox, 1).await;
        let moved = |follower: &Follower| follower.connections() > 1;
        assert!(followers.iter().any(moved), "some were on the instance that went");
        publisher.stop_and_check(&followers).await;
    })
    .await;
}
