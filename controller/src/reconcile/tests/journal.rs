//! What is told and recorded of decisions, when, and how often.

use axum::http::Method;

use super::*;
use crate::{
    fake_api::Fault,
    reconcile::journal::record,
    scale::journal::{Entry, Journal},
};

/// From one instance to three, by a load that is known beforehand.
const GROWS: &str = "{instances: 1, loadBalancer: {type: None}, autoscaling: {expectedClients: 1400}}";

fn recorded(world: &World) -> Vec<Entry> {
    let map = world.api.object(JOURNAL);
    let text = map.as_ref().map_or("[]", |map| map["data"]["journal.json"].as_str().unwrap());
    Journal::parse(text).unwrap().entries().cloned().collect()
}

fn reasons(world: &World) -> Vec<&'static str> {
    recorded(world).iter().map(|entry| entry.decision.reason.as_str()).collect()
}

fn failures(world: &World) -> bool {
    !world.context.metrics.render().unwrap().contains("journal_failures_total 0")
}

/// The same decision, looked at so much later.
async fn record_later(world: &World, seconds: u64) -> Option<Trouble> {
    let referenced = dereference(&world.context, &key(), &world.cluster).await.unwrap();
    let validated = validate(&world.cluster, &referenced, &world.context.defaults).unwrap();
    let now = crate::scale::observation::Moment::from(Timestamp::now()).plus_seconds(seconds);
    let previous = vx11_crds::VX11ClusterStatus::default();
    let scaled = scale(&world.context, &key(), &validated, &previous, now).await.unwrap();
    record(&world.context, &key(), &world.cluster, &validated.identity, &scaled).await
}

#[tokio::test]
async fn a_decision_is_recorded_and_told_after_it_was_carried_out() {
    let world = World::new(GROWS).await;
    world.reconcile().await.unwrap();
    let writes = world.api.take_writes();
    let deployment = *positions(&writes, DEPLOYMENT).last().unwrap();
    assert!(deployment < positions(&writes, JOURNAL)[0], "{writes:?}");
    let event = writes.iter().position(|write| write.path.ends_with("/events")).unwrap();
    assert!(deployment < event, "{writes:?}");
    assert_eq!(reasons(&world), ["ScaleOut"]);
    assert_eq!(world.events("Scaling"), ["ScaleOut"]);
}

#[tokio::test]
async fn a_decision_that_could_not_be_carried_out_is_neither_recorded_nor_told() {
    let world = World::new(GROWS).await;
    world.api.fail(
        Method::PATCH,
        "/simple-cluster-backend",
        9,
        Fault::Refuse(403, "deployments cannot be patched"),
    );
    assert!(world.reconcile().await.is_err());
    assert_eq!((reasons(&world), world.events("Scaling").len()), (vec![], 0));
}

#[tokio::test]
async fn a_constant_load_is_recorded_once_and_writes_nothing() {
    let mut world = World::new(GROWS).await;
    for _ in 0..2 {
        world.reconcile().await.unwrap();
    }
    assert_eq!(reasons(&world), ["ScaleOut", "Steady"]);
    world.api.take_seen();
    for _ in 0..5 {
        world.reconcile().await.unwrap();
    }
    assert_eq!(world.api.take_writes(), []);
    // The next leader goes on from the journal.
    world.take_over();
    for _ in 0..5 {
        world.reconcile().await.unwrap();
    }
    assert_eq!(positions(&world.api.take_writes(), JOURNAL), [] as [usize; 0]);
    assert_eq!((reasons(&world).len(), world.events("Scaling").len()), (2, 1));
}

#[tokio::test]
async fn a_paused_cluster_tells_nothing_and_writes_nothing_but_status() {
    let paused = GROWS.replacen('{', "{paused: true, ", 1);
    let world = World::new(&paused).await;
    for _ in 0..3 {
        world.reconcile().await.unwrap();
    }
    let writes = world.api.take_writes();
    let others: Vec<_> = writes
        .iter()
        .filter(|write| !write.path.ends_with("/events") && !write.path.ends_with("/status"))
        .collect();
    assert_eq!(others, [] as [&Seen; 0]);
    assert_eq!(writes.iter().filter(|write| write.path.ends_with("/status")).count(), 1, "and that once");
    assert_eq!(world.events("Scaling"), [] as [&str; 0]);
    let scaling = world.status()["scaling"].clone();
    assert!(
        scaling["message"].as_str().unwrap().ends_with("; paused, so that nothing of it is done"),
        "{scaling}"
    );
    assert_eq!(scaling.get("lastScaleTime"), None, "nothing was scaled");
}

#[tokio::test]
async fn a_journal_that_cannot_be_written_holds_nothing_up_and_is_written_later() {
    let world = World::new(GROWS).await;
    world.api.fail(Method::POST, "/configmaps", 1, Fault::Refuse(500, "etcd is busy"));
    world.reconcile().await.unwrap();
    assert!(failures(&world));
    assert_eq!(world.condition("Degraded").1, "NothingWrong", "it passes by itself");
    world.reconcile().await.unwrap();
    assert_eq!(recorded(&world), [], "not at every look");
    assert_eq!(record_later(&world, 31).await, None);
    assert_eq!(reasons(&world), ["ScaleOut", "Steady"], "nothing was lost meanwhile");
    assert_eq!(world.events("Scaling"), ["ScaleOut"]);
}

#[tokio::test]
async fn a_journal_that_moves_under_the_hand_is_read_again() {
    let world = World::new(GROWS).await;
    world.reconcile().await.unwrap();
    world.api.fail(Method::PATCH, "/simple-cluster-scaling", 1, Fault::Remove);
    world.reconcile().await.unwrap();
    assert_eq!(world.api.object(JOURNAL), None, "it is not made anew by a patch");
    record_later(&world, 31).await;
    assert_eq!(reasons(&world), ["Steady"]);
}

#[tokio::test]
async fn a_config_map_of_somebody_else_is_left_alone_and_named() {
    let world = World::new(GROWS).await;
    world.api.merge(JOURNAL, &json!({"metadata": {"name": "simple-cluster-scaling"}, "data": {"mine": "1"}}));
    let foreign = world.api.object(JOURNAL);
    world.reconcile().await.unwrap();
    assert_eq!(world.api.object(JOURNAL), foreign);
    let (status, reason, message) = world.condition("Degraded");
    assert_eq!((status.as_str(), reason.as_str()), ("True", "NameTaken"));
    assert_eq!(
        message,
        "ConfigMap simple-cluster-scaling exists and is not this cluster's; delete it, or give this cluster another name"
    );
    assert_ne!(world.condition("Ready").1, "NameTaken", "it keeps the cluster from nothing");
    assert_eq!(world.events("Degraded"), ["NameTaken"]);
    world.reconcile().await.unwrap();
    assert_eq!(world.events("Degraded"), ["NameTaken"], "once");

    world.api.remove(JOURNAL);
    assert_eq!(record_later(&world, 31).await, None);
    assert_eq!(reasons(&world), ["ScaleOut", "Steady"]);
    world.reconcile().await.unwrap();
    assert_eq!(world.condition("Degraded").0, "False");
}

#[tokio::test]
async fn a_count_that_a_person_sets_is_recorded_when_something_is_done_about_it() {
    let mut world = World::new("{instances: 1, loadBalancer: {type: None}}").await;
    for _ in 0..2 {
        world.reconcile().await.unwrap();
    }
    assert_eq!(world.api.object(JOURNAL), None);
    let mut more = world.cluster.as_ref().clone();
    more.spec.instances = 2;
    world.changed(more);
    world.reconcile().await.unwrap();
    assert_eq!((reasons(&world), world.events("Scaling")), (vec!["Fixed"], vec!["Scaled".to_owned()]));
}
