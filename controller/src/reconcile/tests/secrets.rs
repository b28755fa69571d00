//! Generated Secrets that somebody deletes, at every moment of a reconcile.

use axum::http::Method;

use super::*;
use crate::fake_api::Fault;

const SPEC: &str = "{instances: 1, loadBalancer: {type: None}}";
const SECRETS: &str = "/api/v1/namespaces/simple-namespace/secrets/";
const SIGNING_KEY: &str = "/api/v1/namespaces/simple-namespace/secrets/simple-cluster-signing-key";
const PRINCIPALS: &str = "/api/v1/namespaces/simple-namespace/secrets/simple-cluster-principal-tokens";

/// A cluster whose objects exist, and of which the watches know.
async fn settled() -> World {
    let world = World::new(SPEC).await;
    world.reconcile().await.unwrap();
    world.watch();
    world.api.take_seen();
    world
}

/// Steps 1 and 2 of a reconcile, before the Secret goes.
async fn begun(world: &World) -> build::Prepared {
    let referenced = dereference(&world.context, &key(), &world.cluster).await.unwrap();
    let validated = validate(&world.cluster, &referenced, &world.context.defaults).unwrap();
    let count = crate::scale::count::Count {
        instances: crate::scale::count::InstanceCount::new(1).unwrap(),
        removing: Vec::new(),
    };
    build(&validated, count)
}

fn delete(world: &World, path: &str) {
    let object = world.api.remove(path).unwrap();
    world.context.cache.lose(&key(), Kind::Secret, &metadata(&object));
}

fn keys(world: &World, path: &str) -> Vec<String> {
    let secret = world.api.object(path).unwrap();
    secret["data"].as_object().into_iter().flatten().map(|(key, _)| key.clone()).collect()
}

#[tokio::test]
async fn one_deleted_in_the_middle_is_never_made_anew_without_its_content() {
    let world = settled().await;
    let others = [PRINCIPALS].map(|path| world.api.object(path));
    let prepared = begun(&world).await;
    delete(&world, SIGNING_KEY);
    let applied = Box::pin(apply(&world.context, &key(), prepared)).await.unwrap();
    assert!(applied.waiting && applied.failures.is_empty(), "{applied:?}");
    assert_eq!(world.api.take_writes(), [], "no Secret without content, and nothing that mounts it");

    world.reconcile().await.unwrap();
    assert_eq!(keys(&world, SIGNING_KEY), ["control-token", "current"]);
    assert_eq!([PRINCIPALS].map(|path| world.api.object(path)), others, "nothing else was drawn anew");
}

#[tokio::test]
async fn one_whose_end_no_watch_has_told_is_drawn_by_the_next_pass_at_the_latest() {
    let world = settled().await;
    // Its label was edited, so that it is looked at; by then it is gone, and the watch is behind.
    let mut newer = metadata(&world.api.object(SIGNING_KEY).unwrap());
    newer.resource_version = Some("100000".to_owned());
    let prepared = begun(&world).await;
    world.api.remove(SIGNING_KEY).unwrap();
    world.context.cache.see(&key(), Kind::Secret, &newer);
    assert!(Box::pin(apply(&world.context, &key(), prepared)).await.unwrap().waiting);
    assert_eq!(world.api.take_writes(), []);
    world.reconcile().await.unwrap();
    assert_eq!(keys(&world, SIGNING_KEY), ["control-token", "current"]);
}

#[tokio::test]
async fn one_that_goes_between_its_look_and_its_correction_is_not_written_over() {
    let world = settled().await;
    let edit = json!({"metadata": {"labels": {"app.kubernetes.io/part-of": "edited"}}});
    world.api.merge(SIGNING_KEY, &edit);
    world.watch();
    world.api.fail(Method::PATCH, "/simple-cluster-signing-key", 1, Fault::Remove);
    assert!(matches!(world.reconcile().await, Err(ReconcileError::Unapplied(_))), "tried again soon");
    assert_eq!(world.api.object(SIGNING_KEY), None, "an apply would have made an empty one");
    world.context.cache.doubt(&key(), Kind::Secret, "simple-cluster-signing-key");
    world.reconcile().await.unwrap();
    assert_eq!(keys(&world, SIGNING_KEY), ["control-token", "current"]);
}

#[tokio::test]
async fn all_of_them_deleted_at_once_are_back_after_two_passes_with_their_content() {
    let world = settled().await;
    let names: Vec<String> = world
        .api
        .objects(SECRETS)
        .iter()
        .map(|secret| secret["metadata"]["name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(names.len(), 3);
    let prepared = begun(&world).await;
    for name in &names {
        delete(&world, &format!("{SECRETS}{name}"));
    }
    Box::pin(apply(&world.context, &key(), prepared)).await.unwrap();
    world.reconcile().await.unwrap();
    for name in &names {
        assert!(!keys(&world, &format!("{SECRETS}{name}")).is_empty(), "{name}");
    }
    assert_ne!(world.condition("Degraded").1, "SecretKeyMissing");
}
