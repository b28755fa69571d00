//! A cluster from apply to deletion: it becomes Ready, serves on every instance, scales, rolls and goes.

use std::{collections::BTreeSet, time::Duration};

use k8s_openapi::api::{
    apps::v1::{Deployment, StatefulSet},
    core::v1::{ConfigMap, Node, PersistentVolumeClaim, Pod, Secret},
};
use kube::{
    Api,
    api::{ApiResource, DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::json;
use vx11_crds::VX11Cluster;
use vx11_tests::harness::{EventStream, Sandbox, TOKEN, eventually, holds, kubectl, owned, sandbox, tool};

const INSTANCE_ID: &str = "/operator/internal/instance-id";

#[tokio::test]
async fn a_cluster_of_three_serves_on_every_instance() {
    sandbox("serve", async |sandbox| {
        let cluster = sandbox.ready("simple", "{instances: 3}").await;
        every_condition_is_as_it_should_be(&cluster);
        instances_run_on_every_node_that_takes_them(sandbox).await;
        ten_requests_through_the_ingress_reach_all_three_instances(sandbox).await;
        a_token_issued_through_the_ingress_is_accepted_by_every_instance(sandbox).await;
        an_event_published_on_one_instance_reaches_streams_on_all_in_the_same_order(sandbox).await;
    })
    .await;
}

fn every_condition_is_as_it_should_be(cluster: &VX11Cluster) {
    let status = cluster.status.as_ref().unwrap();
    let expected = [
        ("Ready", "True"),
        ("Progressing", "False"),
        ("Degraded", "False"),
        ("RedisReady", "True"),
        ("BackendReady", "True"),
        ("LoadBalancerReady", "True"),
        ("Paused", "False"),
    ];
    for (kind, value) in expected {
        let condition = status.conditions.iter().find(|condition| condition.type_ == kind);
        let condition = condition.unwrap_or_else(|| panic!("no condition {kind}"));
        assert_eq!(condition.status, value, "{kind}: {}", condition.message);
        assert_eq!(condition.observed_generation, cluster.metadata.generation, "{kind}");
        assert!(!condition.reason.is_empty() && !condition.message.is_empty(), "{kind}");
    }
    assert_eq!((status.instances, status.ready_instances, status.desired_instances), (3, 3, 3));
    assert!(status.endpoint.is_some());
}

/// The nodes of the test cluster have no zones, and one of them takes no pods.
async fn instances_run_on_every_node_that_takes_them(sandbox: &Sandbox) {
    let nodes: Api<Node> = Api::all(sandbox.client.clone());
    let takes_pods = |node: &Node| {
        let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
        taints.into_iter().all(|taint| taint.effect == "PreferNoSchedule")
    };
    let nodes = nodes.list(&ListParams::default()).await.unwrap().items;
    let open = nodes.iter().filter(|node| takes_pods(node)).count();
    let pods = sandbox.pods("simple", "backend").await;
    let used: BTreeSet<_> = pods.into_iter().filter_map(|pod| pod.spec?.node_name).collect();
    assert_eq!(used.len(), open.min(3), "three instances run on {used:?}");
}

async fn ten_requests_through_the_ingress_reach_all_three_instances(sandbox: &Sandbox) {
    let (route, principal) = (sandbox.ingress("simple"), sandbox.principal("simple").await);
    // The route follows the last endpoint within a moment of Ready.
    eventually("ten requests reach all three instances", Duration::from_secs(10), async || {
        let mut reached = BTreeSet::new();
        for _ in 0..10 {
            let answer = route.get(INSTANCE_ID, &[("x-vx11-token", &principal)]).await;
            reached.insert(answer.json()["instance_id"].as_str().unwrap().to_owned());
        }
        (reached.len() == 3).then_some(())
    })
    .await;
}

async fn a_token_issued_through_the_ingress_is_accepted_by_every_instance(sandbox: &Sandbox) {
    let token = sandbox.token("simple", &sandbox.ingress("simple")).await;
    let instances = sandbox.instances("simple").await;
    assert_eq!(instances.len(), 3);
    for instance in instances {
        let mut stream =
            EventStream::open(&instance.public(), &format!("?token={token}"), &[]).await.unwrap();
        stream.until("snapshot", Duration::from_secs(5)).await;
    }
}

async fn an_event_published_on_one_instance_reaches_streams_on_all_in_the_same_order(sandbox: &Sandbox) {
    let instances = sandbox.instances("simple").await;
    let token = sandbox.token("simple", &sandbox.ingress("simple")).await;
    let mut streams = Vec::new();
    for instance in &instances {
        let mut stream =
            EventStream::open(&instance.public(), &format!("?token={token}"), &[]).await.unwrap();
        stream.until("snapshot", Duration::from_secs(5)).await;
        streams.push(stream);
    }
    let principal = sandbox.principal("simple").await;
    for number in 0..30 {
        // Each from another instance than the one before.
        let instance = &instances[number % instances.len()];
        let number = number.to_string();
        sandbox.publish(&principal, &instance.public(), &number, &number).await.unwrap();
    }
    let expected: Vec<String> = (0..30).map(|number| format!("\"{number}\"")).collect();
    for stream in &mut streams {
        let mut seen = Vec::new();
        while seen.len() < expected.len() {
            seen.push(stream.until("message", Duration::from_secs(5)).await.data);
        }
        assert_eq!(seen, expected);
    }
}

#[tokio::test]
async fn a_token_survives_a_restart_of_every_backend_pod_and_of_redis() {
    sandbox("restart", async |sandbox| {
        sandbox
            .ready("simple", "{instances: 2, backend: {stream: {drainSeconds: 0}, tokenTtlSeconds: 600}}")
            .await;
        let route = sandbox.ingress("simple");
        let token = sandbox.token("simple", &route).await;
        let principal = sandbox.principal("simple").await;
        sandbox.publish(&principal, &route, "before", "before").await.unwrap();
        assert!(is_stored(sandbox, &token), "the token is in the Redis");
        let redis = sandbox.pods("simple", "redis").await.remove(0).metadata.uid;
        let before: BTreeSet<_> = sandbox.instances("simple").await.into_iter().map(|i| i.name).collect();
        let pods: Api<Pod> = sandbox.api();
        for component in ["backend", "redis"] {
            for pod in sandbox.pods("simple", component).await {
                pods.delete(&pod.metadata.name.unwrap(), &DeleteParams::default()).await.unwrap();
            }
        }
        eventually("two new instances serve", Duration::from_secs(60), async || {
            let now: BTreeSet<_> = sandbox.instances("simple").await.into_iter().map(|i| i.name).collect();
            (now.len() == 2 && now.is_disjoint(&before)).then_some(())
        })
        .await;
        eventually("a new Redis serves", Duration::from_secs(60), async || {
            let now = sandbox.pods("simple", "redis").await.pop()?;
            (now.metadata.uid != redis && now.status?.container_statuses?.first()?.ready).then_some(())
        })
        .await;
        sandbox.until("simple", "Ready", "True").await;
        // A token is signed, so that its acceptance alone tells nothing of the Redis.
        assert!(is_stored(sandbox, &token), "the token is in the new Redis");
        assert_eq!(redis_says(sandbox, "-n 1 XLEN vx11:events"), "1", "and the event that was published");
        for instance in sandbox.instances("simple").await {
            let mut stream =
                EventStream::open(&instance.public(), &format!("?token={token}"), &[]).await.unwrap();
            stream.until("snapshot", Duration::from_secs(5)).await;
        }
    })
    .await;
}

fn is_stored(sandbox: &Sandbox, token: &str) -> bool {
    redis_says(sandbox, &format!("-n 1 EXISTS token:{token}")) == "1"
}

/// What the Redis answers to a command.
fn redis_says(sandbox: &Sandbox, command: &str) -> String {
    let command = format!("REDISCLI_AUTH=$(cat /etc/vx11/redis/password) redis-cli {command}");
    kubectl(&["-n", &sandbox.namespace, "exec", "simple-redis-0", "--", "sh", "-c", &command])
        .trim()
        .to_owned()
}

#[tokio::test]
async fn a_changed_configuration_rolls_what_depends_on_it_once() {
    sandbox("configured", async |sandbox| {
        let spec = |limit: &str| {
            let redis = format!("{{resources: {{limits: {{memory: {limit}}}}}}}");
            format!("{{instances: 1, backend: {{stream: {{drainSeconds: 0}}}}, redis: {redis}}}")
        };
        sandbox.ready("simple", &spec("128Mi")).await;
        let (deployments, sets): (Api<Deployment>, Api<StatefulSet>) = (sandbox.api(), sandbox.api());
        let generation = async || sets.get("simple-redis").await.unwrap().metadata.generation.unwrap();
        let backend = async || deployments.get("simple-backend").await.unwrap().metadata.generation;
        let maxmemory = || redis_says(sandbox, "CONFIG GET maxmemory");
        let (before, others, memory) = (generation().await, backend().await, maxmemory());
        let pod = sandbox.pods("simple", "redis").await.remove(0).metadata.uid;
        sandbox.apply("simple", &spec("192Mi")).await;
        eventually("a new Redis serves", Duration::from_secs(60), async || {
            let now = sandbox.pods("simple", "redis").await.pop()?;
            (now.metadata.uid != pod && now.status?.container_statuses?.first()?.ready).then_some(())
        })
        .await;
        sandbox.until("simple", "Ready", "True").await;
        assert_ne!(maxmemory(), memory, "with the configuration that follows from its memory");
        let rolled = sandbox.pods("simple", "redis").await.remove(0).metadata.uid;
        holds("it rolled once", Duration::from_secs(5), async || {
            let now = sandbox.pods("simple", "redis").await.pop().and_then(|pod| pod.metadata.uid);
            generation().await == before + 1 && now == rolled
        })
        .await;
        assert_eq!(backend().await, others, "what does not depend on it is not written to");
    })
    .await;
}

#[tokio::test]
async fn kubectl_scale_and_the_spec_set_the_number_of_instances() {
    sandbox("scale", async |sandbox| {
        sandbox.ready("simple", "{instances: 1, backend: {stream: {drainSeconds: 0}}}").await;
        let serve = async |count: usize| {
            eventually(&format!("{count} instances serve"), Duration::from_secs(60), async || {
                (sandbox.instances("simple").await.len() == count).then_some(())
            })
            .await;
            sandbox.until("simple", "Ready", "True").await;
            eventually(&format!("the status tells {count}"), Duration::from_secs(10), async || {
                let status = sandbox.cluster("simple").await.status.unwrap();
                (usize::try_from(status.ready_instances).unwrap() == count).then_some(())
            })
            .await;
        };
        kubectl(&["-n", &sandbox.namespace, "scale", "vx11/simple", "--replicas=3"]);
        serve(3).await;
        assert_eq!(
            sandbox.cluster("simple").await.spec.instances,
            3,
            "the scale subresource writes the spec"
        );
        sandbox.patch("simple", serde_json::json!({ "spec": { "instances": 1 } })).await;
        serve(1).await;
    })
    .await;
}

#[tokio::test]
async fn a_change_of_the_image_rolls_with_no_failed_request() {
    sandbox("roll", async |sandbox| {
        sandbox.ready("simple", "{instances: 2, backend: {stream: {drainSeconds: 2}}}").await;
        let (route, principal) = (sandbox.ingress("simple"), sandbox.principal("simple").await);
        let before: BTreeSet<_> = sandbox.instances("simple").await.into_iter().map(|i| i.name).collect();
        let image = format!("ghcr.io/vx11/operator-backend:{}-next", env!("CARGO_PKG_VERSION"));
        sandbox.patch("simple", serde_json::json!({ "spec": { "backend": { "image": image } } })).await;
        let mut answered = 0;
        eventually("every instance runs the new image", Duration::from_secs(90), async || {
            for _ in 0..10 {
                let answer = route.post(TOKEN, &[("x-vx11-token", &principal)], "").await;
                assert_eq!(answer.status, 200, "request {answered}: {}", answer.text);
                answered += 1;
            }
            let now: BTreeSet<_> = sandbox.instances("simple").await.into_iter().map(|i| i.name).collect();
            (now.len() == 2 && now.is_disjoint(&before) && sandbox.pods("simple", "backend").await.len() == 2)
                .then_some(())
        })
        .await;
        assert!(answered > 100, "only {answered} requests were made during the roll");
        sandbox.until("simple", "Ready", "True").await;
    })
    .await;
}

/// Creates or replaces a Secret of one key.
async fn secret(sandbox: &Sandbox, name: &str, key: &str, value: &str) {
    let secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name }, "stringData": { key: value } });
    let secrets: Api<Secret> = sandbox.api();
    secrets.patch(name, &PatchParams::apply("e2e").force(), &Patch::Apply(&secret)).await.unwrap();
}

#[tokio::test]
async fn a_changed_secret_rolls_what_depends_on_it_once() {
    sandbox("secret", async |sandbox| {
        secret(sandbox, "mine", "password", "the-first-password").await;
        sandbox
            .ready(
                "simple",
                "{instances: 1, backend: {stream: {drainSeconds: 0}}, redis: {auth: {secretName: mine}}}",
            )
            .await;
        let (deployments, sets): (Api<Deployment>, Api<StatefulSet>) = (sandbox.api(), sandbox.api());
        let generations = async || {
            let deployment = deployments.get("simple-backend").await.unwrap().metadata.generation.unwrap();
            (deployment, sets.get("simple-redis").await.unwrap().metadata.generation.unwrap())
        };
        let before = generations().await;
        secret(sandbox, "mine", "password", "the-second-password").await;
        let rolled = (before.0 + 1, before.1 + 1);
        eventually("both are written to", Duration::from_secs(40), async || {
            (generations().await == rolled).then_some(())
        })
        .await;
        sandbox.until("simple", "Ready", "True").await;
        let second = "redis-cli -a the-second-password --no-auth-warning PING";
        eventually("the Redis has the second password", Duration::from_secs(60), async || {
            let output = tool(
                "kubectl",
                &["-n", &sandbox.namespace, "exec", "simple-redis-0", "--", "sh", "-c", second],
            );
            String::from_utf8_lossy(&output.stdout).contains("PONG").then_some(())
        })
        .await;
        sandbox.until("simple", "Ready", "True").await;
        sandbox.token("simple", &sandbox.ingress("simple")).await;
        assert_eq!(generations().await, rolled, "once");
    })
    .await;
}

#[tokio::test]
async fn principals_rotate_without_a_restart() {
    sandbox("rotate", async |sandbox| {
        secret(sandbox, "people", "alice", "the-first-token-of-alice").await;
        sandbox
            .ready(
                "simple",
                "{instances: 1, redis: {type: None}, backend: {principalTokens: {secretName: people}}}",
            )
            .await;
        let route = sandbox.ingress("simple");
        let issue =
            async |principal: &str| route.post(TOKEN, &[("x-vx11-token", principal)], "").await.status;
        assert_eq!(issue("the-first-token-of-alice").await, 200);
        let pod = sandbox.pods("simple", "backend").await.remove(0);
        // Both are good while clients move over.
        secret(sandbox, "people", "alice", "the-first-token-of-alice\nthe-second-token-of-alice").await;
        // The kubelet brings a changed Secret into the pod within a minute or so.
        eventually("the second token is accepted", Duration::from_mins(3), async || {
            assert_eq!(issue("the-first-token-of-alice").await, 200);
            (issue("the-second-token-of-alice").await == 200).then_some(())
        })
        .await;
        secret(sandbox, "people", "alice", "the-second-token-of-alice").await;
        eventually("the first token is refused", Duration::from_mins(3), async || {
            assert_eq!(issue("the-second-token-of-alice").await, 200);
            (issue("the-first-token-of-alice").await == 403).then_some(())
        })
        .await;
        let now = sandbox.pods("simple", "backend").await.remove(0);
        assert_eq!(now.metadata.uid, pod.metadata.uid, "the pod stayed");
        assert_eq!(
            now.status.unwrap().container_statuses.unwrap()[0].restart_count,
            0,
            "and its process too"
        );
    })
    .await;
}

#[tokio::test]
async fn a_deleted_cluster_takes_everything_along_but_its_volume() {
    sandbox("delete", async |sandbox| {
        // With autoscaling, which keeps a journal of its decisions.
        let spec = "{instances: 2, autoscaling: {minInstances: 2}, backend: {stream: {drainSeconds: 0}}}";
        sandbox.ready("simple", spec).await;
        let mut owned = owned();
        owned.push((ApiResource::erase::<ConfigMap>(&()), "simple-scaling"));
        for (kind, name) in &owned {
            eventually(&format!("{} {name} is there", kind.kind), Duration::from_secs(20), async || {
                sandbox.objects(kind).get_opt(name).await.unwrap()
            })
            .await;
        }
        sandbox.api::<VX11Cluster>().delete("simple", &DeleteParams::background()).await.unwrap();
        for (kind, name) in &owned {
            eventually(&format!("{} {name} is gone", kind.kind), Duration::from_secs(60), async || {
                sandbox.objects(kind).get_opt(name).await.unwrap().is_none().then_some(())
            })
            .await;
        }
        eventually("every pod is gone", Duration::from_secs(60), async || {
            let pods = sandbox.api::<Pod>().list(&ListParams::default()).await.unwrap().items;
            pods.is_empty().then_some(())
        })
        .await;
        nothing_owned_is_left(sandbox, &owned).await;
        let claims: Api<PersistentVolumeClaim> = sandbox.api();
        assert!(claims.get("data-simple-redis-0").await.is_ok(), "the volume stays, as docs/redis.md says");
    })
    .await;
}

/// Nothing of these kinds bears the label of what is owned, whatever its name.
async fn nothing_owned_is_left(sandbox: &Sandbox, owned: &[(ApiResource, &str)]) {
    let listed = ListParams::default().labels("app.kubernetes.io/managed-by=vx11-controller");
    for (kind, _) in owned {
        let left = sandbox.objects(kind).list(&listed).await.unwrap().items;
        let left: Vec<_> = left.into_iter().filter_map(|object| object.metadata.name).collect();
        assert!(left.is_empty(), "{}: {left:?}", kind.kind);
    }
}

#[tokio::test]
async fn clusters_beside_each_other_do_not_touch() {
    sandbox("beside", async |sandbox| {
        let spec = "{instances: 1, redis: {type: None}, backend: {stream: {drainSeconds: 0}}}";
        let other = sandbox.another().await;
        sandbox.ready("one", spec).await;
        sandbox.ready("two", spec).await;
        other.ready("one", spec).await;
        let places = [(sandbox, "one"), (sandbox, "two"), (&other, "one")];
        for (place, name) in places {
            let token = place.token(name, &place.ingress(name)).await;
            for (elsewhere, other_name) in places {
                let own = (place.namespace.as_str(), name) == (elsewhere.namespace.as_str(), other_name);
                let opened =
                    EventStream::open(&elsewhere.ingress(other_name), &format!("?token={token}"), &[]).await;
                assert_eq!(opened.is_ok(), own, "a token of {name} at {}/{other_name}", elsewhere.namespace);
            }
        }
        // Not the resource version: Kubernetes itself goes on counting who is available.
        let version = async |place: &Sandbox, name: &str| {
            let deployment = place.api::<Deployment>().get(&format!("{name}-backend")).await.unwrap();
            (deployment.metadata.uid, deployment.metadata.generation)
        };
        let (two, far) = (version(sandbox, "two").await, version(&other, "one").await);
        sandbox.api::<VX11Cluster>().delete("one", &DeleteParams::default()).await.unwrap();
        eventually("the instance of the deleted cluster is gone", Duration::from_secs(60), async || {
            sandbox.pods("one", "backend").await.is_empty().then_some(())
        })
        .await;
        assert_eq!((two, far), (version(sandbox, "two").await, version(&other, "one").await));
        other.api::<VX11Cluster>().delete("one", &DeleteParams::default()).await.unwrap();
    })
    .await;
}
