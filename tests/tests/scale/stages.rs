//! The controller dies at every stage of a scale-in; the next one finishes or rolls back.

use std::collections::BTreeSet;

use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::json;
use vx11_tests::harness::{Instance, Sandbox, eventually, sandbox};

use super::{
    PATIENCE, Publisher, follow, names, removed_empty, replicas, small, until_replicas, until_serving,
};

/// Mark of an instance that is to go.
const DRAIN: &str = "vx11.io/drain";

/// Kills every controller on the spot.
async fn kill_the_controllers(sandbox: &Sandbox) {
    let controllers: Api<Pod> = Api::namespaced(sandbox.client.clone(), "vx11-system");
    let ours = ListParams::default().labels("app.kubernetes.io/name=vx11-operator");
    for pod in controllers.list(&ours).await.unwrap() {
        let now = DeleteParams::default().grace_period(0);
        let _ = controllers.delete(&pod.metadata.name.unwrap(), &now).await;
    }
}

async fn marked(sandbox: &Sandbox) -> Vec<String> {
    let pods = sandbox.pods("simple", "backend").await.into_iter();
    let marked = pods.filter(|pod| {
        let marks = pod.metadata.annotations.iter().flatten();
        pod.metadata.deletion_timestamp.is_none() && marks.into_iter().any(|(key, _)| key == DRAIN)
    });
    marked.filter_map(|pod| pod.metadata.name).collect()
}

/// What an instance says of itself: whether it drains, and its streams.
async fn says(instance: &Instance) -> Option<(bool, u64)> {
    let answer = instance.admin().request(hyper::Method::GET, "/load", &[], "").await.ok()?;
    let load = answer.json();
    Some((load["draining"].as_bool()?, load["streams"].as_u64()?))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scale_in_survives_the_controller_while_it_drains_before_and_after_it_lowers() {
    sandbox("killed", async |sandbox| {
        let spec = small(
            4,
            "minInstances: 4, clientsPerInstance: 100, scaleInStabilizationSeconds: 5, maxScaleInStep: 1, rebalance: false",
        );
        sandbox.ready("simple", &spec).await;
        let instances = sandbox.instances("simple").await;
        for instance in &instances {
            assert!(says(instance).await.is_some(), "{} is reached", instance.name);
        }
        let followers = follow(sandbox, 60).await;
        let publisher = Publisher::start(sandbox).await;
        // One at a time, each with a stage of its own at which the controller dies.
        let victim = async |count: i32| {
            sandbox.patch("simple", json!({"spec": {"autoscaling": {"minInstances": count - 1}}})).await;
            let name = eventually("an instance is marked", PATIENCE, async || marked(sandbox).await.pop()).await;
            assert_eq!(replicas(sandbox).await, count);
            instances.iter().find(|instance| instance.name == name).unwrap()
        };

        let draining = victim(4).await;
        eventually("it drains", PATIENCE, async || says(draining).await?.0.then_some(())).await;
        kill_the_controllers(sandbox).await;
        assert_eq!(replicas(sandbox).await, 4, "killed while it drains");
        until_replicas(sandbox, 3).await;
        until_serving(sandbox, 3).await;

        let drained = victim(3).await;
        eventually("it is empty", PATIENCE, async || (says(drained).await? == (true, 0)).then_some(())).await;
        kill_the_controllers(sandbox).await;
        let lowered = replicas(sandbox).await;
        println!("killed when it was drained and replicas was {lowered}");
        until_replicas(sandbox, 2).await;
        until_serving(sandbox, 2).await;

        let last = victim(2).await;
        until_replicas(sandbox, 1).await;
        kill_the_controllers(sandbox).await;
        until_serving(sandbox, 1).await;
        eventually("the next leader is done", PATIENCE, async || {
            let removing = sandbox.api::<Deployment>().get("simple-backend").await.unwrap();
            let status = sandbox.cluster("simple").await.status?;
            (removing.status?.replicas == Some(1) && status.ready_instances == 1).then_some(())
        })
        .await;
        sandbox.until("simple", "Draining", "False").await;
        publisher.stop_and_check(&followers).await;
        // A controller that dies between the count and the journal leaves that decision out; of the first it did not.
        let removed = removed_empty(sandbox, 1).await;
        let chosen = BTreeSet::from([draining, drained, last].map(|victim| victim.name.clone()));
        assert!(removed.contains(&draining.name) && removed.is_subset(&chosen), "{removed:?} of {chosen:?}");
        let events = sandbox.events("simple").await;
        assert!(!events.iter().any(|event| event.starts_with("WrongInstanceRemoved")), "{events:?}");
    })
    .await;
}

/// A pod marked by a controller that died before its next request, which is too short a moment to meet: the cluster
/// is paused, so that the mark can be written by hand.
async fn mark_by_a_dead_controller(sandbox: &Sandbox) -> Instance {
    sandbox.patch("simple", json!({"spec": {"paused": true}})).await;
    sandbox.until("simple", "Paused", "True").await;
    let instance = sandbox.instances("simple").await.remove(0);
    let (now, later) = (jiff::Timestamp::now(), jiff::Timestamp::now() + jiff::SignedDuration::from_secs(60));
    let annotations = json!({
        DRAIN: format!("{now:.3}/{later:.3}"),
        "controller.kubernetes.io/pod-deletion-cost": i32::MIN.to_string(),
    });
    let mark = json!({"metadata": {"annotations": annotations}});
    let pods: Api<Pod> = sandbox.api();
    // By the name under which the controller writes it.
    let parameters =
        PatchParams { field_manager: Some("vx11-controller/scale".into()), ..PatchParams::default() };
    pods.patch(&instance.name, &parameters, &Patch::Merge(&mark)).await.unwrap();
    assert_eq!(says(&instance).await.map(|(draining, _)| draining), Some(false), "it never heard of it");
    kill_the_controllers(sandbox).await;
    instance
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_was_marked_but_never_told_is_drained_by_the_next_controller() {
    sandbox("untold", async |sandbox| {
        let spec = small(
            3,
            "minInstances: 2, clientsPerInstance: 100, scaleInStabilizationSeconds: 3600, rebalance: false",
        );
        sandbox.ready("simple", &spec).await;
        let followers = follow(sandbox, 60).await;
        let publisher = Publisher::start(sandbox).await;
        let instance = mark_by_a_dead_controller(sandbox).await;
        sandbox.patch("simple", json!({"spec": {"paused": false}})).await;
        until_replicas(sandbox, 2).await;
        until_serving(sandbox, 2).await;
        assert!(!names(sandbox).await.contains(&instance.name), "the marked one went");
        publisher.stop_and_check(&followers).await;
        assert_eq!(removed_empty(sandbox, 1).await, [instance.name.clone()].into());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_serves_again_but_is_still_marked_is_kept_by_the_next_controller() {
    sandbox("rollback", async |sandbox| {
        // The load asks for all three.
        let spec = small(3, "minInstances: 1, clientsPerInstance: 20, maxInstances: 3, rebalance: false");
        sandbox.ready("simple", &spec).await;
        let followers = follow(sandbox, 50).await;
        let publisher = Publisher::start(sandbox).await;
        let before = names(sandbox).await;
        let instance = mark_by_a_dead_controller(sandbox).await;
        sandbox.patch("simple", json!({"spec": {"paused": false}})).await;
        eventually("the mark is taken off", PATIENCE, async || {
            marked(sandbox).await.is_empty().then_some(())
        })
        .await;
        until_serving(sandbox, 3).await;
        assert_eq!(names(sandbox).await, before, "every instance stays");
        assert_eq!(says(&instance).await.map(|(draining, _)| draining), Some(false));
        assert_eq!(replicas(sandbox).await, 3);
        publisher.stop_and_check(&followers).await;
    })
    .await;
}
