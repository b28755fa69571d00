//! Whole reconciles against an API server that misbehaves at will.

mod journal;
mod secrets;

use kube::{
    api::ObjectMeta,
    runtime::{
        reflector::{self, store::Writer},
        watcher::Event,
    },
};
use serde_json::{Value, json};

use super::*;
use crate::{
    build::fixture::{defaults, object, referenced},
    cache::Cache,
    client::LeaderClient,
    fake_api::{FakeApi, Seen},
    kinds::Kind,
    leader::LeaseGuard,
    scale::observation::Moment,
    telemetry::Metrics,
};

const CLUSTER: &str = "/apis/vx11.io/v1alpha1/namespaces/simple-namespace/vx11clusters/simple-cluster";
const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/simple-namespace/events/";
const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/simple-namespace/deployments/simple-cluster-backend";
const JOURNAL: &str = "/api/v1/namespaces/simple-namespace/configmaps/simple-cluster-scaling";

/// One cluster, the API server, and the controller that leads.
struct World {
    api: FakeApi,
    context: Arc<Context>,
    writer: Writer<VX11Cluster>,
    cluster: Arc<VX11Cluster>,
}

impl World {
    async fn new(spec: &str) -> Self {
        let api = FakeApi::start().await;
        api.merge(CLUSTER, &serde_json::to_value(object(spec)).unwrap());
        let cluster: VX11Cluster = serde_json::from_value(api.object(CLUSTER).unwrap()).unwrap();
        // Lists, which are asked for by name too.
        api.merge("/api/v1/namespaces/simple-namespace/events", &json!({"items": []}));
        let (store, writer) = reflector::store();
        let mut world =
            Self { context: context(&api, store), api, writer, cluster: Arc::new(cluster.clone()) };
        world.changed(cluster);
        world.api.take_seen();
        world
    }

    /// The watch tells of a cluster's change.
    fn changed(&mut self, cluster: VX11Cluster) {
        self.writer.apply_watcher_event(&Event::Apply(cluster.clone()));
        self.cluster = Arc::new(cluster);
    }

    async fn reconcile(&self) -> Result<Action, ReconcileError> {
        reconcile(self.cluster.clone(), self.context.clone()).await
    }

    /// Another controller takes over, which knows nothing yet.
    fn take_over(&mut self) {
        let (store, writer) = reflector::store();
        self.context = context(&self.api, store);
        self.writer = writer;
        self.changed(self.cluster.as_ref().clone());
        self.watch();
    }

    /// The watches tell of everything that exists now.
    fn watch(&self) {
        for (kind, part) in
            [(Kind::Secret, "/api/v1/namespaces/simple-namespace/secrets/"), (Kind::Deployment, DEPLOYMENT)]
        {
            for object in self.api.objects(part) {
                self.context.cache.see(&key(), kind, &metadata(&object));
            }
        }
    }

    fn status(&self) -> Value {
        self.api.object(CLUSTER).unwrap()["status"].clone()
    }

    fn condition(&self, type_: &str) -> (String, String, String) {
        let status = self.status();
        let conditions = status["conditions"].as_array().unwrap().clone();
        let condition = conditions.into_iter().find(|condition| condition["type"] == type_).unwrap();
        let text = |field: &str| condition[field].as_str().unwrap().to_owned();
        (text("status"), text("reason"), text("message"))
    }

    /// Reasons of the events so far, about the scaling or not.
    fn events(&self, about: &str) -> Vec<String> {
        let events = self.api.objects(EVENTS).into_iter().filter(|event| event["action"] == about);
        events.map(|event| event["reason"].as_str().unwrap().to_owned()).collect()
    }
}

pub(super) fn context(api: &FakeApi, store: reflector::Store<VX11Cluster>) -> Arc<Context> {
    let metrics = Arc::new(Metrics::new());
    let client = LeaderClient::new(api.client.clone(), LeaseGuard::open(), metrics.clone(), "test");
    Arc::new(Context::new(client, store, Arc::new(Cache::default()), metrics, defaults()))
}

pub(super) fn key() -> ClusterKey {
    ClusterKey { namespace: "simple-namespace".to_owned(), name: "simple-cluster".to_owned() }
}

fn metadata(object: &Value) -> ObjectMeta {
    serde_json::from_value(object["metadata"].clone()).unwrap()
}

/// Positions of the writes to a path.
fn positions(writes: &[Seen], path: &str) -> Vec<usize> {
    let paths = writes.iter().enumerate();
    // A creation goes to the folder of the object.
    let folder = path.rsplit_once('/').unwrap().0;
    paths
        .filter(|(_, write)| write.path == path || (write.method == "POST" && write.path == folder))
        .map(|(position, _)| position)
        .collect()
}

#[tokio::test]
async fn what_is_known_of_a_cluster_goes_with_it_even_if_it_is_being_reconciled() {
    let mut world = World::new("{loadBalancer: {type: None}, autoscaling: {}}").await;
    world.reconcile().await.unwrap();
    let text = || world.context.metrics.render().unwrap();
    assert!(
        text().contains(
            "cluster_desired_instances{namespace=\"simple-namespace\",cluster=\"simple-cluster\"} 1"
        )
    );
    let gone = world.cluster.as_ref().clone();
    world.writer.apply_watcher_event(&Event::Delete(gone));
    world.context.forget(&key());
    assert!(!world.context.metrics.render().unwrap().contains("simple-cluster"));
    // A reconcile that had begun before ends after.
    world.reconcile().await.unwrap();
    assert!(!world.context.metrics.render().unwrap().contains("simple-cluster"));
}

#[tokio::test]
async fn a_cluster_that_is_being_deleted_or_is_invalid_shows_no_figures() {
    let mut world = World::new("{loadBalancer: {type: None}, autoscaling: {}}").await;
    let shows = |world: &World| world.context.metrics.render().unwrap().contains("simple-cluster");
    world.reconcile().await.unwrap();
    assert!(shows(&world));
    let valid = world.cluster.as_ref().clone();
    let mut invalid = valid.clone();
    invalid.spec.redis.auth = Some(serde_json::from_value(json!({"secretName": "nobodys"})).unwrap());
    world.changed(invalid);
    world.reconcile().await.unwrap();
    assert!(!shows(&world), "nobody looks at it");
    world.changed(valid.clone());
    world.reconcile().await.unwrap();
    assert!(shows(&world));
    let mut deleted = valid;
    deleted.metadata.deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::now()));
    world.changed(deleted);
    world.reconcile().await.unwrap();
    assert!(!shows(&world));
}

#[tokio::test]
async fn what_is_refused_for_good_does_not_keep_the_count_from_the_load() {
    let world = World::new("{autoscaling: {}}").await;
    let pause = |cluster: &VX11Cluster| {
        let error = ReconcileError::Unapplied("Ingress simple-cluster: no".to_owned());
        let mut pauses = (0..20).map(|_| after_error(cluster, &error, &world.context));
        format!("{:?}", pauses.nth(19).unwrap())
    };
    assert_eq!(pause(&world.cluster), format!("{:?}", Action::requeue(LONGEST_BLIND)));
    assert_ne!(pause(&object("instances: 3")), format!("{:?}", Action::requeue(LONGEST_BLIND)));
}

#[tokio::test]
async fn what_has_been_unsettled_for_long_is_looked_at_less_often() {
    let world = World::new("{instances: 1, loadBalancer: {type: None}}").await;
    world.reconcile().await.unwrap();
    let mut status: VX11ClusterStatus = serde_json::from_value(world.status()).unwrap();
    let since = status.conditions[0].last_transition_time.0;
    let after =
        |status: &VX11ClusterStatus, seconds| unsettled_look(status, since + Duration::from_secs(seconds));
    assert_eq!(after(&status, 0), UNSETTLED_LOOK);
    assert_eq!(after(&status, 60), UNSETTLED_LOOK);
    assert_eq!(after(&status, 120), Duration::from_secs(20));
    assert_eq!(after(&status, 3600), LONGEST_UNSETTLED_LOOK);
    let progressing =
        status.conditions.iter_mut().find(|condition| condition.type_ == "Progressing").unwrap();
    progressing.last_transition_time.0 = since + Duration::from_secs(3590);
    assert_eq!(after(&status, 3600), UNSETTLED_LOOK, "a rollout of what has long been ready");
}

#[tokio::test]
async fn what_has_no_instance_is_looked_at_until_status_says_so() {
    let world = World::new("{instances: 0, loadBalancer: {type: None}}").await;
    let validated = validate(&world.cluster, &referenced(), &world.context.defaults).unwrap();
    let look = async |seconds: u64| {
        let (status, now) = (VX11ClusterStatus::default(), Moment(seconds * 1000));
        scale(&world.context, &key(), &validated, &status, now).await.unwrap().next_look()
    };
    assert_eq!(look(100).await, None);
    assert_eq!(look(105).await, Some(Duration::from_secs(15)), "the figures of status may be older");
    assert_eq!(look(120).await, None);
}
