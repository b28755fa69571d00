//! Whatever happens to the objects of a cluster by hand, they come back as the spec says.

use std::time::{Duration, Instant};

use k8s_openapi::api::{
    apps::v1::{Deployment, StatefulSet},
    core::v1::{ConfigMap, Secret, Service, ServiceAccount},
    networking::v1::{Ingress, NetworkPolicy},
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, Resource,
    api::{DeleteParams, DynamicObject, Patch, PatchParams},
    core::ApiResource,
};
use serde_json::{Value, json};
use vx11_tests::harness::{Sandbox, eventually, holds, sandbox};

fn resource<K: Resource<DynamicType = ()>>() -> ApiResource {
    ApiResource::erase::<K>(&())
}

/// Every object that a cluster `simple` with a Redis and an Ingress owns.
fn owned() -> Vec<(ApiResource, &'static str)> {
    vec![
        (resource::<Secret>(), "simple-redis-auth"),
        (resource::<Secret>(), "simple-signing-key"),
        (resource::<Secret>(), "simple-principal-tokens"),
        (resource::<ConfigMap>(), "simple-redis"),
        (resource::<Service>(), "simple-redis"),
        (resource::<StatefulSet>(), "simple-redis"),
        (resource::<NetworkPolicy>(), "simple-redis"),
        (resource::<ServiceAccount>(), "simple-backend"),
        (resource::<Deployment>(), "simple-backend"),
        (resource::<Service>(), "simple-backend"),
        (resource::<PodDisruptionBudget>(), "simple-backend"),
        (resource::<NetworkPolicy>(), "simple-backend"),
        (resource::<Ingress>(), "simple"),
    ]
}

fn api(sandbox: &Sandbox, kind: &ApiResource) -> Api<DynamicObject> {
    Api::namespaced_with(sandbox.client.clone(), &sandbox.namespace, kind)
}

#[tokio::test]
async fn each_owned_object_deleted_by_hand_comes_back_within_two_seconds() {
    sandbox("deleted", async |sandbox| {
        sandbox
            .ready("simple", "{instances: 2, backend: {stream: {drainSeconds: 0}}}")
            .await;
        for (kind, name) in owned() {
            let objects = api(sandbox, &kind);
            let uid = objects.get(name).await.unwrap().metadata.uid;
            objects.delete(name, &DeleteParams::background()).await.unwrap();
            let deleted = Instant::now();
            eventually(
                &format!("{} {name} comes back", kind.kind),
                Duration::from_secs(2),
                async || {
                    let now = objects.get_opt(name).await.unwrap()?;
                    (now.metadata.uid != uid && now.metadata.deletion_timestamp.is_none()).then_some(())
                },
            )
            .await;
            println!("{} {name} came back after {:?}", kind.kind, deleted.elapsed());
        }
        sandbox.until("simple", "Ready", "True").await;
    })
    .await;
}

#[tokio::test]
async fn each_owned_field_edited_by_hand_is_put_back() {
    sandbox("edited", async |sandbox| {
        sandbox
            .ready("simple", "{instances: 2, backend: {stream: {drainSeconds: 0}}}")
            .await;
        let edits: Vec<(ApiResource, &str, &str, Value)> = vec![
            (
                resource::<ConfigMap>(),
                "simple-redis",
                "/data/redis.conf",
                json!("appendonly no\n"),
            ),
            (
                resource::<Service>(),
                "simple-redis",
                "/spec/publishNotReadyAddresses",
                json!(false),
            ),
            (
                resource::<StatefulSet>(),
                "simple-redis",
                "/spec/replicas",
                json!(0),
            ),
            (
                resource::<NetworkPolicy>(),
                "simple-redis",
                "/spec/policyTypes",
                json!(["Egress"]),
            ),
            (
                resource::<ServiceAccount>(),
                "simple-backend",
                "/automountServiceAccountToken",
                json!(true),
            ),
            (
                resource::<Deployment>(),
                "simple-backend",
                "/spec/replicas",
                json!(1),
            ),
            (
                resource::<Deployment>(),
                "simple-backend",
                "/spec/strategy/rollingUpdate/maxUnavailable",
                json!(1),
            ),
            (
                resource::<Service>(),
                "simple-backend",
                "/spec/ports/0/port",
                json!(9),
            ),
            (
                resource::<PodDisruptionBudget>(),
                "simple-backend",
                "/spec/maxUnavailable",
                json!(2),
            ),
            (
                resource::<NetworkPolicy>(),
                "simple-backend",
                "/spec/policyTypes",
                json!(["Egress"]),
            ),
            (
                resource::<Ingress>(),
                "simple",
                "/spec/rules/0/host",
                json!("other.test"),
            ),
            (
                resource::<Deployment>(),
                "simple-backend",
                "/metadata/labels/app.kubernetes.io~1part-of",
                json!("else"),
            ),
        ];
        for (kind, name, path, value) in edits {
            let objects = api(sandbox, &kind);
            let field = async || {
                serde_json::to_value(objects.get(name).await.unwrap())
                    .unwrap()
                    .pointer(path)
                    .cloned()
            };
            let before = field().await;
            if before == Some(value.clone()) {
                continue;
            }
            let operation = if before.is_some() { "replace" } else { "add" };
            let patch: Patch<()> = Patch::Json(
                serde_json::from_value(json!([{ "op": operation, "path": path, "value": value }])).unwrap(),
            );
            objects
                .patch(name, &PatchParams::default(), &patch)
                .await
                .unwrap_or_else(|e| panic!("{name}{path}: {e}"));
            eventually(
                &format!("{} {name}{path} is put back to {before:?}", kind.kind),
                Duration::from_secs(5),
                async || (field().await == before).then_some(()),
            )
            .await;
        }
        sandbox.until("simple", "Ready", "True").await;
    })
    .await;
}

#[tokio::test]
async fn what_others_add_to_an_object_stays() {
    sandbox("foreign", async |sandbox| {
        sandbox
            .ready("simple", "{instances: 1, redis: {type: None}}")
            .await;
        let services: Api<Service> = sandbox.api();
        let note = json!({ "metadata": { "annotations": { "example.com/note": "kept" } } });
        services
            .patch("simple-backend", &PatchParams::default(), &Patch::Merge(&note))
            .await
            .unwrap();
        // A change of the spec makes the controller write this very object.
        sandbox
            .patch(
                "simple",
                json!({ "spec": { "backend": { "pod": { "labels": { "team": "a" } } } } }),
            )
            .await;
        holds(
            "the annotation of others stays",
            Duration::from_secs(3),
            async || {
                let service = services.get("simple-backend").await.unwrap();
                service
                    .metadata
                    .annotations
                    .is_some_and(|notes| notes.contains_key("example.com/note"))
            },
        )
        .await;
    })
    .await;
}

#[tokio::test]
async fn a_paused_cluster_is_left_alone() {
    sandbox("paused", async |sandbox| {
        sandbox
            .ready("simple", "{instances: 1, redis: {type: None}}")
            .await;
        sandbox
            .patch("simple", json!({ "spec": { "paused": true } }))
            .await;
        sandbox.until("simple", "Paused", "True").await;
        let services: Api<Service> = sandbox.api();
        services
            .delete("simple-backend", &DeleteParams::default())
            .await
            .unwrap();
        holds(
            "the deleted Service stays away while paused",
            Duration::from_secs(4),
            async || services.get_opt("simple-backend").await.unwrap().is_none(),
        )
        .await;
        sandbox
            .patch("simple", json!({ "spec": { "paused": false } }))
            .await;
        eventually(
            "it comes back after the pause",
            Duration::from_secs(5),
            async || services.get_opt("simple-backend").await.unwrap().map(|_| ()),
        )
        .await;
    })
    .await;
}

#[tokio::test]
async fn objects_of_a_section_go_when_its_type_changes() {
    sandbox("orphans", async |sandbox| {
        sandbox.ready("simple", "{instances: 1, backend: {stream: {drainSeconds: 0}}}").await;
        sandbox.patch("simple", json!({ "spec": { "redis": { "type": "None" }, "loadBalancer": { "type": "None", "host": null } } })).await;
        for (kind, name) in owned() {
            let goes = name.starts_with("simple-redis") || kind.kind == "Ingress";
            if goes {
                eventually(&format!("{} {name} goes", kind.kind), Duration::from_secs(20), async || {
                    api(sandbox, &kind).get_opt(name).await.unwrap().is_none().then_some(())
                })
                .await;
            }
        }
        sandbox.until("simple", "Ready", "True").await;
    })
    .await;
}
