//! Who owns the count: the load, the spec, or whoever writes the scale subresource.

use std::time::Duration;

use k8s_openapi::api::{apps::v1::Deployment, autoscaling::v2::HorizontalPodAutoscaler};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;
use vx11_crds::VX11Cluster;
use vx11_tests::harness::{holds, sandbox};

use super::{Publisher, follow, removed_empty, replicas, small, until_replicas, until_serving};

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
        until_replicas(sandbox, 3).await;
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
        // An instance that ends drains by itself; that the controller chose and drained it first is what it tells.
        let events = sandbox.events("simple").await;
        assert!(events.iter().any(|event| event.starts_with("Draining")), "{events:?}");
        // What drains is not ready, and nothing is wrong with it.
        assert!(!events.iter().any(|event| event.starts_with("NotHealthy")), "{events:?}");
        assert_eq!(removed_empty(sandbox, 2).await.len(), 2);
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
