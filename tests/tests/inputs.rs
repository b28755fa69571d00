//! Bad input that only shows at run time: each is told by name with a remedy, and what ran keeps running.

use std::{collections::BTreeSet, time::Duration};

use hyper::Method;
use k8s_openapi::api::core::v1::Secret;
use kube::api::PostParams;
use serde_json::{Value, json};
use vx11_tests::harness::{EventStream, Sandbox, eventually, holds, kubectl, sandbox, tool};

/// Waits until a condition tells of something wrong with this reason, and an event as well; the message of each has
/// every word. Of the words one is the object's name and one the remedy's.
async fn told(sandbox: &Sandbox, kind: &str, reason: &str, words: &[&str]) {
    let status = if kind == "Degraded" { "True" } else { "False" };
    let condition = eventually(&format!("{kind} tells {reason}"), Duration::from_secs(90), async || {
        sandbox.condition("simple", kind).await.filter(|c| c.status == status && c.reason == reason)
    })
    .await;
    for word in words {
        assert!(condition.message.contains(word), "{word:?} is not in: {}", condition.message);
    }
    let what = format!("an event tells {reason} with {words:?}");
    eventually(&what, Duration::from_secs(20), async || {
        let events = sandbox.events("simple").await;
        let told = |event: &String| {
            event.starts_with(&format!("{reason} ")) && words.iter().all(|word| event.contains(word))
        };
        events.iter().any(told).then_some(())
    })
    .await;
}

/// The pods of some components, each with the restarts of its container.
async fn running(sandbox: &Sandbox, components: &[&str]) -> BTreeSet<(String, String, i32)> {
    let mut running = BTreeSet::new();
    for component in components {
        for pod in sandbox.pods("simple", component).await {
            let restarts = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
            let restarts = restarts.map(|container| container.restart_count).sum();
            running.insert((pod.metadata.name.unwrap(), pod.metadata.uid.unwrap(), restarts));
        }
    }
    running
}

const BOTH: &[&str] = &["backend", "redis"];

/// What ran before still runs, untouched, and serves and issues through its route.
async fn goes_on(sandbox: &Sandbox, components: &[&str], before: &BTreeSet<(String, String, i32)>) {
    let now = running(sandbox, components).await;
    assert!(now.is_superset(before), "{before:?} ran, and now {now:?}");
    assert_eq!(sandbox.ingress("simple").get("/health", &[]).await.status, 200);
    sandbox.token("simple", &sandbox.ingress("simple")).await;
}

async fn secret(sandbox: &Sandbox, name: &str, data: Value) {
    let secret = json!({ "metadata": { "name": name }, "stringData": data });
    let secret: Secret = serde_json::from_value(secret).unwrap();
    sandbox.api::<Secret>().create(&PostParams::default(), &secret).await.unwrap();
}

#[tokio::test]
async fn a_secret_that_loses_its_key_is_named_and_everything_goes_on() {
    sandbox("key", async |sandbox| {
        secret(sandbox, "mine", json!({ "password": "good-password", "other": "x" })).await;
        sandbox.ready("simple", "{instances: 1, redis: {auth: {secretName: mine}}}").await;
        let before = running(sandbox, BOTH).await;
        kubectl_patch(sandbox, "mine", r#"{"data":{"password":null}}"#);
        told(sandbox, "Ready", "SecretKeyMissing", &["mine", "password", "add the key"]).await;
        goes_on(sandbox, BOTH, &before).await;
        // Given what it asks for, it goes on by itself.
        kubectl_patch(sandbox, "mine", r#"{"stringData":{"password":"good-password"}}"#);
        sandbox.until("simple", "Ready", "True").await;
        goes_on(sandbox, BOTH, &before).await;
    })
    .await;
}

fn kubectl_patch(sandbox: &Sandbox, secret: &str, patch: &str) {
    kubectl(&["-n", &sandbox.namespace, "patch", "secret", secret, "-p", patch]);
}

/// Nobody has it: `.invalid` resolves nowhere.
const NO_IMAGE: &str = "registry.invalid/vx11/none:1";

#[tokio::test]
async fn an_image_that_cannot_be_pulled_is_named_and_the_old_instances_serve() {
    sandbox("image", async |sandbox| {
        sandbox.ready("simple", "{instances: 1, redis: {type: None}}").await;
        let before = running(sandbox, BOTH).await;
        sandbox.patch("simple", json!({ "spec": { "backend": { "image": NO_IMAGE } } })).await;
        told(
            sandbox,
            "BackendReady",
            "ImagePullFailed",
            &["simple-backend-", NO_IMAGE, "correct the image name"],
        )
        .await;
        sandbox.until("simple", "Degraded", "True").await;
        goes_on(sandbox, BOTH, &before).await;
        sandbox.patch("simple", json!({ "spec": { "backend": { "image": null } } })).await;
        sandbox.until("simple", "Ready", "True").await;
        goes_on(sandbox, BOTH, &before).await;
    })
    .await;
}

/// The one Redis is stopped before its successor's image is pulled; docs/redis.md says what that costs.
#[tokio::test]
async fn a_redis_image_that_cannot_be_pulled_is_named_and_the_instances_go_on_without_a_redis() {
    sandbox("store", async |sandbox| {
        sandbox.ready("simple", "{instances: 2}").await;
        let (route, principal) = (sandbox.ingress("simple"), sandbox.principal("simple").await);
        let instances = sandbox.instances("simple").await;
        let before = running(sandbox, &["backend"]).await;
        let query = format!("?token={}", sandbox.token("simple", &route).await);
        let mut streams = Vec::new();
        for instance in &instances {
            let mut stream = EventStream::open(&instance.public(), &query, &[]).await.unwrap();
            stream.until("snapshot", Duration::from_secs(5)).await;
            streams.push(stream);
        }

        sandbox.patch("simple", json!({ "spec": { "redis": { "image": NO_IMAGE } } })).await;
        let words = ["simple-redis-0", NO_IMAGE, "correct the image name"];
        told(sandbox, "RedisReady", "ImagePullFailed", &words).await;
        sandbox.until("simple", "BackendReady", "True").await;
        goes_on(sandbox, &["backend"], &before).await;
        // A token of one instance is good at the other, too.
        let query = format!("?token={}", sandbox.token("simple", &instances[0].public()).await);
        EventStream::open(&instances[1].public(), &query, &[]).await.unwrap();

        sandbox.patch("simple", json!({ "spec": { "redis": { "image": null } } })).await;
        sandbox.until("simple", "Ready", "True").await;
        goes_on(sandbox, &["backend"], &before).await;
        eventually("an event is accepted again", Duration::from_secs(20), async || {
            sandbox.publish(&principal, &route, "after", "after").await.ok()
        })
        .await;
        // The streams were open all the time.
        for stream in &mut streams {
            assert_eq!(stream.until("message", Duration::from_secs(5)).await.data, "\"after\"");
        }
    })
    .await;
}

#[tokio::test]
async fn a_storage_class_that_does_not_exist_is_named() {
    sandbox("storage", async |sandbox| {
        // The class of a volume cannot change, so that nothing runs before.
        sandbox.apply("simple", "{instances: 1, redis: {storage: {storageClassName: not-there}}}").await;
        let words = ["data-simple-redis-0", "not-there", "create it"];
        told(sandbox, "RedisReady", "StorageClassMissing", &words).await;
        // The instances serve all the same: tokens are signed.
        sandbox.until("simple", "BackendReady", "True").await;
        sandbox.token("simple", &sandbox.ingress("simple")).await;
    })
    .await;
}

#[tokio::test]
async fn an_ingress_class_that_does_not_exist_is_named_and_the_route_goes_on() {
    sandbox("class", async |sandbox| {
        sandbox.ready("simple", "{instances: 1, redis: {type: None}}").await;
        let before = running(sandbox, BOTH).await;
        name_class(sandbox, &json!("not-there")).await;
        let words = ["not-there", "stays as it was", "spec.loadBalancer.ingress.className"];
        told(sandbox, "LoadBalancerReady", "IngressClassMissing", &words).await;
        let route = sandbox.ingress("simple");
        holds("the route serves", Duration::from_secs(5), async || {
            route.get("/health", &[]).await.status == 200
        })
        .await;
        goes_on(sandbox, BOTH, &before).await;
        name_class(sandbox, &Value::Null).await;
        sandbox.until("simple", "Ready", "True").await;
        goes_on(sandbox, BOTH, &before).await;
    })
    .await;
}

async fn name_class(sandbox: &Sandbox, class: &Value) {
    sandbox
        .patch("simple", json!({ "spec": { "loadBalancer": { "ingress": { "className": class } } } }))
        .await;
}

/// An IngressClass whose controller does not run. It goes with this value.
struct IdleClass(String);

impl IdleClass {
    fn new(sandbox: &Sandbox) -> Self {
        let class = Self(format!("{}-idle", sandbox.namespace));
        kubectl_apply(
            &class.0,
            &json!({ "apiVersion": "networking.k8s.io/v1", "kind": "IngressClass",
            "metadata": { "name": class.0 }, "spec": { "controller": "vx11.test/nobody" } }),
        );
        class
    }
}

impl Drop for IdleClass {
    fn drop(&mut self) {
        let _ = tool("kubectl", &["delete", "--wait=false", &format!("ingressclass/{}", self.0)]);
    }
}

/// Applies a manifest through a file of this name.
fn kubectl_apply(name: &str, manifest: &Value) {
    let file = std::env::temp_dir().join(format!("{name}.yaml"));
    std::fs::write(&file, manifest.to_string()).unwrap();
    kubectl(&["apply", "-f", file.to_str().unwrap()]);
    std::fs::remove_file(file).unwrap();
}

#[tokio::test]
async fn an_ingress_class_without_a_controller_is_named_and_an_address_of_before_does_not_hide_it() {
    sandbox("idle", async |sandbox| {
        let class = IdleClass::new(sandbox);
        sandbox.ready("simple", "{instances: 1, redis: {type: None}}").await;
        let before = running(sandbox, BOTH).await;
        name_class(sandbox, &json!(class.0)).await;
        let words = ["Ingress simple", &class.0, "check that its controller runs"];
        told(sandbox, "LoadBalancerReady", "NoAddress", &words).await;
        assert_eq!(running(sandbox, BOTH).await, before, "the instances stay");
        // The default class takes it back.
        name_class(sandbox, &Value::Null).await;
        eventually("the route serves again", Duration::from_secs(60), async || {
            // Envoy has no listener at all while there is no other Ingress: that is no answer yet.
            let answer = sandbox.ingress("simple").request(Method::GET, "/health", &[], "").await;
            answer.is_ok_and(|answer| answer.status == 200).then_some(())
        })
        .await;
        sandbox.until("simple", "Ready", "True").await;
        goes_on(sandbox, BOTH, &before).await;
    })
    .await;
}

#[tokio::test]
async fn a_password_that_is_not_the_one_redis_runs_with_is_told() {
    sandbox("password", async |sandbox| {
        sandbox.ready("simple", "{instances: 1}").await;
        let before = running(sandbox, BOTH).await;
        let wrong =
            "REDISCLI_AUTH=$(cat /etc/vx11/redis/password) redis-cli CONFIG SET requirepass another-one";
        kubectl(&["-n", &sandbox.namespace, "exec", "simple-redis-0", "--", "sh", "-c", wrong]);
        let words = ["simple-redis-0", "restore the Secret's key password"];
        told(sandbox, "RedisReady", "RedisPasswordWrong", &words).await;
        goes_on(sandbox, BOTH, &before).await;
    })
    .await;
}

#[tokio::test]
async fn a_volume_that_cannot_grow_is_told_and_the_redis_stays() {
    sandbox("grow", async |sandbox| {
        sandbox.ready("simple", "{instances: 1, redis: {storage: {size: 1Gi}}}").await;
        let before = running(sandbox, BOTH).await;
        // The StorageClass of the test cluster cannot expand volumes.
        sandbox.patch("simple", json!({ "spec": { "redis": { "storage": { "size": "2Gi" } } } })).await;
        let words = ["data-simple-redis-0", "set allowVolumeExpansion"];
        told(sandbox, "Degraded", "VolumeCannotGrow", &words).await;
        goes_on(sandbox, BOTH, &before).await;
    })
    .await;
}

/// A volume of a few megabytes on one node, with a StorageClass of its own. It goes with this value.
struct SmallVolume {
    name: String,
    node: String,
}

impl SmallVolume {
    fn new(sandbox: &Sandbox) -> Self {
        let name = sandbox.namespace.clone();
        let nodes = kubectl(&["get", "nodes", "-l", "!node-role.kubernetes.io/control-plane", "-o", "name"]);
        let node = nodes.lines().next().unwrap().trim_start_matches("node/").to_owned();
        let made = format!("mkdir -p /mnt/{name} && mount -t tmpfs -o size=16m,mode=1777 tmpfs /mnt/{name}");
        let output = tool("docker", &["exec", &node, "sh", "-c", &made]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let volume = Self { name, node };
        kubectl_apply(&volume.name, &volume.manifest());
        volume
    }

    fn manifest(&self) -> Value {
        let Self { name, node } = self;
        json!({ "apiVersion": "v1", "kind": "List", "items": [
            { "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": { "name": name },
              "provisioner": "kubernetes.io/no-provisioner" },
            { "apiVersion": "v1", "kind": "PersistentVolume", "metadata": { "name": name },
              "spec": { "capacity": { "storage": "16Mi" }, "accessModes": ["ReadWriteOnce"], "storageClassName": name,
                "hostPath": { "path": format!("/mnt/{name}") },
                "nodeAffinity": { "required": { "nodeSelectorTerms": [{ "matchExpressions": [
                  { "key": "kubernetes.io/hostname", "operator": "In", "values": [node] }] }] } } } },
        ] })
    }
}

impl Drop for SmallVolume {
    fn drop(&mut self) {
        let Self { name, node } = self;
        let _ = tool(
            "kubectl",
            &["delete", "--wait=false", &format!("pv/{name}"), &format!("storageclass/{name}")],
        );
        let _ = tool(
            "docker",
            &["exec", node, "sh", "-c", &format!("umount -l /mnt/{name} && rmdir /mnt/{name}")],
        );
    }
}

#[tokio::test]
async fn a_full_disk_is_told_and_the_instances_go_on() {
    sandbox("full", async |sandbox| {
        let volume = SmallVolume::new(sandbox);
        let storage = format!("{{size: 16Mi, storageClassName: {}}}", volume.name);
        sandbox.ready("simple", &format!("{{instances: 2, redis: {{storage: {storage}}}}}")).await;
        let before = running(sandbox, &["backend"]).await;
        let within = |command: &str| {
            tool("kubectl", &["-n", &sandbox.namespace, "exec", "simple-redis-0", "--", "sh", "-c", command])
        };
        let filled = within("cat /dev/zero > /data/filler");
        let said = String::from_utf8_lossy(&filled.stderr).into_owned();
        assert!(said.contains("No space left on device"), "the volume is not full: {said}");
        // What Redis has to write down now finds no room beyond the last page of its log.
        let (route, principal) = (sandbox.ingress("simple"), sandbox.principal("simple").await);
        for key in ["1", "2", "3", "4"] {
            let _ = sandbox.publish(&principal, &route, key, &"x".repeat(8000)).await;
        }
        let words = ["simple-redis-0", "raise spec.redis.storage.size"];
        told(sandbox, "RedisReady", "DiskFull", &words).await;
        sandbox.until("simple", "Degraded", "True").await;
        goes_on(sandbox, &["backend"], &before).await;

        let freed = within(": > /data/filler");
        assert!(freed.status.success(), "{}", String::from_utf8_lossy(&freed.stderr));
        sandbox.until("simple", "Ready", "True").await;
    })
    .await;
}
