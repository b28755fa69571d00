//! Bad input that only shows at run time: each is told by name with a remedy, and what ran keeps running.

use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::api::PostParams;
use serde_json::{Value, json};
use vx11_tests::harness::{Sandbox, eventually, kubectl, sandbox, tool};

/// Waits until a condition is False with this reason and its message has every word; then an event must tell it
/// as well.
async fn told(sandbox: &Sandbox, name: &str, kind: &str, reason: &str, words: &[&str]) {
    let condition =
        eventually(&format!("{kind} of {name} tells {reason}"), Duration::from_secs(90), async || {
            sandbox.condition(name, kind).await.filter(|c| c.status == "False" && c.reason == reason)
        })
        .await;
    for word in words {
        assert!(condition.message.contains(word), "{word:?} is not in: {}", condition.message);
    }
    eventually(&format!("an event tells {reason}"), Duration::from_secs(20), async || {
        sandbox.events(name).await.iter().any(|event| event.starts_with(reason)).then_some(())
    })
    .await;
}

async fn secret(sandbox: &Sandbox, name: &str, data: Value) {
    let secret = json!({ "metadata": { "name": name }, "stringData": data });
    let secret: Secret = serde_json::from_value(secret).unwrap();
    sandbox.api::<Secret>().create(&PostParams::default(), &secret).await.unwrap();
}

#[tokio::test]
async fn a_secret_that_lacks_its_key_is_named() {
    sandbox("key", async |sandbox| {
        secret(sandbox, "empty", json!({ "other": "x" })).await;
        sandbox.apply("simple", "{instances: 1, redis: {auth: {secretName: empty}}}").await;
        told(sandbox, "simple", "Ready", "SecretKeyMissing", &["empty", "password"]).await;
        // Given what it asks for, it goes on by itself.
        kubectl_patch(sandbox, "empty", "{\"stringData\":{\"password\":\"good-password\"}}");
        sandbox.until("simple", "Ready", "True").await;
    })
    .await;
}

fn kubectl_patch(sandbox: &Sandbox, secret: &str, patch: &str) {
    kubectl(&["-n", &sandbox.namespace, "patch", "secret", secret, "-p", patch]);
}

#[tokio::test]
async fn an_image_that_cannot_be_pulled_is_named_and_the_old_instances_serve() {
    sandbox("image", async |sandbox| {
        sandbox.ready("simple", "{instances: 1, redis: {type: None}}").await;
        let image = "registry.invalid/vx11/none:1";
        sandbox.patch("simple", json!({ "spec": { "backend": { "image": image } } })).await;
        eventually("BackendReady names the image", Duration::from_secs(90), async || {
            let condition = sandbox.condition("simple", "Degraded").await?;
            (condition.status == "True"
                && condition.reason == "ImagePullFailed"
                && condition.message.contains(image))
            .then_some(())
        })
        .await;
        assert_eq!(sandbox.instances("simple").await.len(), 1, "the instance of before stays");
        assert_eq!(sandbox.ingress("simple").get("/health", &[]).await.status, 200);
    })
    .await;
}

#[tokio::test]
async fn a_storage_class_that_does_not_exist_is_named() {
    sandbox("storage", async |sandbox| {
        sandbox.apply("simple", "{instances: 1, redis: {storage: {storageClassName: not-there}}}").await;
        told(sandbox, "simple", "RedisReady", "StorageClassMissing", &["not-there"]).await;
        // The instances serve all the same: tokens are signed.
        sandbox.until("simple", "BackendReady", "True").await;
    })
    .await;
}

#[tokio::test]
async fn an_ingress_class_that_nobody_serves_is_named() {
    sandbox("class", async |sandbox| {
        sandbox.apply("simple", "{instances: 1, redis: {type: None}, loadBalancer: {type: Ingress, ingress: {className: not-there}}}").await;
        told(sandbox, "simple", "LoadBalancerReady", "IngressClassMissing", &["not-there"]).await;
        sandbox.until("simple", "BackendReady", "True").await;
    })
    .await;
}

#[tokio::test]
async fn a_password_that_is_not_the_one_redis_runs_with_is_told() {
    sandbox("password", async |sandbox| {
        sandbox.ready("simple", "{instances: 1}").await;
        let wrong =
            "REDISCLI_AUTH=$(cat /etc/vx11/redis/password) redis-cli CONFIG SET requirepass another-one";
        kubectl(&["-n", &sandbox.namespace, "exec", "simple-redis-0", "--", "sh", "-c", wrong]);
        told(sandbox, "simple", "RedisReady", "RedisPasswordWrong", &["simple-redis"]).await;
        assert_eq!(sandbox.ingress("simple").get("/health", &[]).await.status, 200);
    })
    .await;
}

#[tokio::test]
async fn a_volume_that_cannot_grow_is_told_and_the_redis_stays() {
    sandbox("grow", async |sandbox| {
        sandbox.ready("simple", "{instances: 1, redis: {storage: {size: 1Gi}}}").await;
        let redis = sandbox.pods("simple", "redis").await.remove(0).metadata.uid;
        // The StorageClass of the test cluster cannot expand volumes.
        sandbox.patch("simple", json!({ "spec": { "redis": { "storage": { "size": "2Gi" } } } })).await;
        let condition = sandbox.until("simple", "Degraded", "True").await;
        assert_eq!(condition.reason, "VolumeCannotGrow", "{}", condition.message);
        assert!(condition.message.contains("data-simple-redis-0"), "{}", condition.message);
        assert!(condition.message.contains("allowVolumeExpansion"), "{}", condition.message);
        assert_eq!(sandbox.pods("simple", "redis").await.remove(0).metadata.uid, redis);
        sandbox.token("simple", &sandbox.ingress("simple")).await;
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
        let file = std::env::temp_dir().join(format!("{}.yaml", volume.name));
        std::fs::write(&file, volume.manifest()).unwrap();
        kubectl(&["apply", "-f", file.to_str().unwrap()]);
        std::fs::remove_file(file).unwrap();
        volume
    }

    fn manifest(&self) -> String {
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
        .to_string()
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
        let instances: Vec<_> =
            sandbox.instances("simple").await.into_iter().map(|instance| instance.name).collect();
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
        told(sandbox, "simple", "RedisReady", "DiskFull", &["simple-redis-0", "spec.redis.storage.size"])
            .await;
        sandbox.until("simple", "Degraded", "True").await;
        sandbox.token("simple", &sandbox.ingress("simple")).await;
        let now: Vec<_> =
            sandbox.instances("simple").await.into_iter().map(|instance| instance.name).collect();
        assert_eq!(now, instances, "every instance goes on");

        let freed = within(": > /data/filler");
        assert!(freed.status.success(), "{}", String::from_utf8_lossy(&freed.stderr));
        sandbox.until("simple", "Ready", "True").await;
    })
    .await;
}
