//! Whatever happens to the objects of a cluster by hand, they come back as the spec says.

#[path = "drift/fields.rs"]
mod fields;

use std::time::{Duration, Instant};

use k8s_openapi::api::{
    apps::v1::{Deployment, StatefulSet},
    core::v1::{Pod, Service},
};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::json;
use vx11_tests::harness::{eventually, holds, owned, sandbox};

#[tokio::test]
async fn each_owned_object_deleted_by_hand_comes_back_within_two_seconds() {
    sandbox("deleted", async |sandbox| {
        sandbox.ready("simple", "{instances: 2, backend: {stream: {drainSeconds: 0}}}").await;
        for (kind, name) in owned() {
            let objects = sandbox.objects(&kind);
            let uid = objects.get(name).await.unwrap().metadata.uid;
            objects.delete(name, &DeleteParams::background()).await.unwrap();
            let deleted = Instant::now();
            eventually(&format!("{} {name} comes back", kind.kind), Duration::from_secs(2), async || {
                let now = objects.get_opt(name).await.unwrap()?;
                (now.metadata.uid != uid && now.metadata.deletion_timestamp.is_none()).then_some(())
            })
            .await;
            println!("{} {name} came back after {:?}", kind.kind, deleted.elapsed());
        }
        sandbox.until("simple", "Ready", "True").await;
    })
    .await;
}

#[tokio::test]
async fn a_port_edited_by_hand_is_put_back() {
    sandbox("port", async |sandbox| {
        sandbox.ready("simple", "{instances: 1, redis: {type: None}}").await;
        let services: Api<Service> = sandbox.api();
        let edit = json!([{ "op": "replace", "path": "/spec/ports/0/port", "value": 9 }]);
        let patch: Patch<()> = Patch::Json(serde_json::from_value(edit).unwrap());
        services.patch("simple-backend", &PatchParams::default(), &patch).await.unwrap();
        eventually("the Service has its port, and no other", Duration::from_secs(10), async || {
            let ports = services.get("simple-backend").await.unwrap().spec?.ports?;
            (ports.iter().map(|port| port.port).collect::<Vec<_>>() == [8001]).then_some(())
        })
        .await;
        sandbox.until("simple", "Ready", "True").await;
    })
    .await;
}

#[tokio::test]
async fn a_stateful_set_of_an_older_version_is_made_anew_around_its_pod() {
    sandbox("older", async |sandbox| {
        sandbox.ready("simple", "{instances: 1, redis: {persistence: false}}").await;
        let (sets, pods): (Api<StatefulSet>, Api<Pod>) = (sandbox.api(), sandbox.api());
        let pod = pods.get("simple-redis-0").await.unwrap().metadata.uid;
        sandbox.patch("simple", json!({ "spec": { "paused": true } })).await;
        sandbox.until("simple", "Paused", "True").await;
        // The same StatefulSet as another version would have made it: this field cannot be changed.
        let mut set = sets.get("simple-redis").await.unwrap();
        let wished = set.spec.as_ref().unwrap().pod_management_policy.clone();
        sets.delete("simple-redis", &DeleteParams::orphan()).await.unwrap();
        eventually("the StatefulSet goes and leaves its pod", Duration::from_secs(20), async || {
            sets.get_opt("simple-redis").await.unwrap().is_none().then_some(())
        })
        .await;
        let other = if wished.as_deref() == Some("Parallel") { "OrderedReady" } else { "Parallel" };
        set.spec.as_mut().unwrap().pod_management_policy = Some(other.to_owned());
        set.metadata.resource_version = None;
        set.metadata.uid = None;
        set.metadata.managed_fields = None;
        sets.create(&PostParams::default(), &set).await.unwrap();
        // Before that, Kubernetes' garbage collector may not know yet whose pod it is to leave alone.
        eventually("the StatefulSet adopts the pod", Duration::from_secs(20), async || {
            let status = sets.get("simple-redis").await.unwrap().status?;
            (status.ready_replicas == Some(1)).then_some(())
        })
        .await;
        sandbox.patch("simple", json!({ "spec": { "paused": false } })).await;
        eventually("the StatefulSet is as this version wishes", Duration::from_secs(20), async || {
            let set = sets.get_opt("simple-redis").await.unwrap()?;
            (set.spec?.pod_management_policy == wished).then_some(())
        })
        .await;
        sandbox.until("simple", "Ready", "True").await;
        assert_eq!(pods.get("simple-redis-0").await.unwrap().metadata.uid, pod, "the pod ran on");
    })
    .await;
}

#[tokio::test]
async fn what_others_add_to_an_object_stays() {
    sandbox("foreign", async |sandbox| {
        sandbox.ready("simple", "{instances: 1, redis: {type: None}}").await;
        let services: Api<Service> = sandbox.api();
        let note = json!({ "metadata": { "annotations": { "example.com/note": "kept" } } });
        services.patch("simple-backend", &PatchParams::default(), &Patch::Merge(&note)).await.unwrap();
        // A change of the spec makes the controller write this very object.
        sandbox
            .patch("simple", json!({ "spec": { "backend": { "pod": { "labels": { "team": "a" } } } } }))
            .await;
        holds("the annotation of others stays", Duration::from_secs(3), async || {
            let service = services.get("simple-backend").await.unwrap();
            service.metadata.annotations.is_some_and(|notes| notes.contains_key("example.com/note"))
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn a_paused_cluster_is_left_alone() {
    sandbox("paused", async |sandbox| {
        sandbox.ready("simple", "{instances: 1, backend: {stream: {drainSeconds: 0}}}").await;
        sandbox.patch("simple", json!({ "spec": { "paused": true } })).await;
        sandbox.until("simple", "Paused", "True").await;
        let services: Api<Service> = sandbox.api();
        let deployments: Api<Deployment> = sandbox.api();
        let before = deployments.get("simple-backend").await.unwrap();
        services.delete("simple-backend", &DeleteParams::default()).await.unwrap();
        let image = format!("ghcr.io/vx11/operator-backend:{}-next", env!("CARGO_PKG_VERSION"));
        sandbox.patch("simple", json!({ "spec": { "instances": 2, "backend": { "image": image } } })).await;
        holds("nothing is put back or carried out while paused", Duration::from_secs(6), async || {
            let now = deployments.get("simple-backend").await.unwrap();
            services.get_opt("simple-backend").await.unwrap().is_none()
                && now.metadata.generation == before.metadata.generation
        })
        .await;
        // The status goes on: its conditions are of the changed spec, and it tells what that would take.
        sandbox.until("simple", "Paused", "True").await;
        eventually("the status tells the count that is asked for", Duration::from_secs(20), async || {
            (sandbox.cluster("simple").await.status?.desired_instances == 2).then_some(())
        })
        .await;
        let now = deployments.get("simple-backend").await.unwrap();
        assert_eq!(now.metadata.generation, before.metadata.generation, "it only tells");
        sandbox.patch("simple", json!({ "spec": { "paused": false } })).await;
        eventually("it comes back after the pause", Duration::from_secs(5), async || {
            services.get_opt("simple-backend").await.unwrap().map(|_| ())
        })
        .await;
        eventually("the new image and the second instance come too", Duration::from_secs(20), async || {
            let spec = deployments.get("simple-backend").await.unwrap().spec?;
            let now = spec.template.spec?.containers.remove(0).image;
            (spec.replicas == Some(2) && now.as_ref() == Some(&image)).then_some(())
        })
        .await;
        sandbox.until("simple", "Ready", "True").await;
    })
    .await;
}

#[tokio::test]
async fn objects_of_a_section_go_when_its_type_changes() {
    sandbox("orphans", async |sandbox| {
        sandbox.ready("simple", "{instances: 1, backend: {stream: {drainSeconds: 0}}}").await;
        sandbox.patch("simple", json!({ "spec": { "redis": { "type": "None" }, "loadBalancer": { "type": "None", "host": null } } })).await;
        for (kind, name) in owned() {
            // A Secret is never deleted: it goes with the cluster.
            let goes = (name.starts_with("simple-redis") && kind.kind != "Secret") || kind.kind == "Ingress";
            if goes {
                eventually(&format!("{} {name} goes", kind.kind), Duration::from_secs(20), async || {
                    sandbox.objects(&kind).get_opt(name).await.unwrap().is_none().then_some(())
                })
                .await;
            }
        }
        sandbox.until("simple", "Ready", "True").await;
    })
    .await;
}
