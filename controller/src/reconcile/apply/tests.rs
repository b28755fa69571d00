//! What `apply` does when the API server misbehaves, and what it does not do when nothing changed.

use std::sync::Arc;

use axum::http::Method;
use kube::runtime::reflector;

use super::*;
use crate::{
    build::fixture::{defaults, object, referenced, simple_cluster},
    cache::Cache,
    client::LeaderClient,
    cluster::GeneratedData,
    fake_api::{FakeApi, Fault},
    leader::LeaseGuard,
    reconcile::{
        build::build,
        dereference::{ClassKnowledge, SecretState},
        validate::validate,
    },
    scale::count::InstanceCount,
    telemetry::Metrics,
};

const SERVICE: &str = "/api/v1/namespaces/simple-namespace/services/simple-cluster-backend";
const INGRESS: &str = "/apis/networking.k8s.io/v1/namespaces/simple-namespace/ingresses/simple-cluster";
const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/simple-namespace/deployments/simple-cluster-backend";

/// An API server with the Secrets that the fixture refers to.
async fn api() -> FakeApi {
    let api = FakeApi::start().await;
    for name in ["redis-auth", "principal-tokens", "signing-key"] {
        let name = format!("simple-cluster-{name}");
        let owner = simple_cluster().identity.owner_reference();
        let secret = json!({"metadata": {"name": name, "ownerReferences": [owner]}});
        api.merge(&format!("/api/v1/namespaces/simple-namespace/secrets/{name}"), &secret);
    }
    api
}

fn key() -> ClusterKey {
    ClusterKey { namespace: "simple-namespace".to_owned(), name: "simple-cluster".to_owned() }
}

fn context(api: &FakeApi, guard: LeaseGuard) -> Context {
    let metrics = Arc::new(Metrics::new());
    let (store, _) = reflector::store();
    Context::new(
        LeaderClient::new(api.client.clone(), guard, metrics.clone(), "test"),
        store,
        Arc::new(Cache::default()),
        metrics,
        defaults(),
    )
}

fn count(instances: i32) -> Count {
    Count { instances: InstanceCount::new(instances).unwrap(), removing: Vec::new() }
}

fn prepared(instances: i32) -> Prepared {
    build(&simple_cluster(), count(instances))
}

/// The cluster with a Redis password that is still to be made.
fn prepared_with_a_new_password() -> Prepared {
    let mut referenced = referenced();
    referenced.redis_auth =
        SecretState::Drawn(GeneratedData::new([("password".to_owned(), "fresh".to_owned())].into()));
    let cluster = validate(&object("instances: 3"), &referenced, &defaults()).unwrap();
    build(&cluster, count(3))
}

async fn applied(context: &Context, prepared: Prepared) -> Applied {
    Box::pin(apply(context, &key(), prepared)).await.unwrap()
}

#[tokio::test]
async fn the_second_pass_sends_nothing_and_a_new_leader_only_reads() {
    let api = api().await;
    let first = context(&api, LeaseGuard::open());
    assert!(applied(&first, prepared(3)).await.failures.is_empty());
    assert_eq!(api.object(DEPLOYMENT).unwrap()["spec"]["replicas"], 3);
    api.take_seen();
    assert!(applied(&first, prepared(3)).await.failures.is_empty());
    assert_eq!(api.take_seen(), []);

    // The fake keeps no managed fields, so that the count's owner cannot be known: only that is asked for.
    let next = context(&api, LeaseGuard::open());
    applied(&next, prepared(3)).await;
    let writes = api.take_writes();
    assert!(
        writes.iter().all(|write| write.path == DEPLOYMENT && write.query.contains("scale")),
        "{writes:?}"
    );
}

#[tokio::test]
async fn a_count_of_another_hand_is_known_for_one_and_put_back() {
    let api = api().await;
    let context = context(&api, LeaseGuard::open());
    applied(&context, prepared(3)).await;
    api.merge(DEPLOYMENT, &serde_json::json!({"spec": {"replicas": 7}}));
    let live = serde_json::from_value(api.object(DEPLOYMENT).unwrap()).unwrap();
    let Facts::Deployment(facts) = facts::of(Kind::Deployment, live) else { panic!("no Deployment") };
    assert_eq!((facts.desired, facts.own_count()), (7, 3));
    let next = self::context(&api, LeaseGuard::open());
    applied(&next, prepared(3)).await;
    assert_eq!(api.object(DEPLOYMENT).unwrap()["spec"]["replicas"], 3);
    // The record of it too, without which the next foreign count would stand.
    api.merge(DEPLOYMENT, &json!({"metadata": {"annotations": {"vx11.io/instances": "three"}}}));
    applied(&self::context(&api, LeaseGuard::open()), prepared(3)).await;
    assert_eq!(api.object(DEPLOYMENT).unwrap()["metadata"]["annotations"]["vx11.io/instances"], "3");
}

#[tokio::test]
async fn a_version_that_moves_without_a_change_causes_no_storm() {
    let api = api().await;
    api.bump_versions();
    let context = context(&api, LeaseGuard::open());
    applied(&context, prepared(3)).await;
    api.take_seen();
    for _ in 0..10 {
        applied(&context, prepared(3)).await;
    }
    assert_eq!(api.take_seen(), []);
}

#[tokio::test]
async fn without_the_lease_nothing_is_written() {
    let api = api().await;
    let context = context(&api, LeaseGuard::default());
    let error = Box::pin(apply(&context, &key(), prepared(3))).await.unwrap_err();
    assert!(matches!(error, ClientError::NotLeader));
    assert_eq!(api.take_writes(), []);
}

#[tokio::test]
async fn a_refused_object_is_named_and_does_not_stop_the_others() {
    let api = api().await;
    let quota = "services \"x\" is forbidden: exceeded quota: small";
    api.fail(Method::PATCH, "/services/simple-cluster-backend", 1, Fault::Refuse(403, quota));
    let context = context(&api, LeaseGuard::open());
    let report = applied(&context, prepared(3)).await;
    assert_eq!(report.failures.len(), 1);
    let trouble = report.failures[0].trouble.as_ref().unwrap();
    assert_eq!(trouble.reason, "QuotaExceeded");
    assert!(trouble.message.contains("Service simple-cluster-backend"), "{}", trouble.message);
    assert!(api.object(DEPLOYMENT).is_some());
    assert!(api.object(SERVICE).is_none());
    // It is tried again, and alone.
    api.take_seen();
    assert!(applied(&context, prepared(3)).await.failures.is_empty());
    assert_eq!(api.take_writes().len(), 1);
}

#[tokio::test]
async fn to_a_namespace_that_goes_nothing_is_written_again() {
    let api = api().await;
    let going = "services \"x\" is forbidden: unable to create new content in namespace simple-namespace because it is being terminated";
    api.fail(Method::PATCH, "/services/simple-cluster-backend", 1, Fault::Refuse(403, going));
    let context = context(&api, LeaseGuard::open());
    let error = Box::pin(apply(&context, &key(), prepared(3))).await.unwrap_err();
    assert!(matches!(error, ClientError::NamespaceEnds(namespace) if namespace == "simple-namespace"));
    api.take_seen();
    Box::pin(apply(&context, &key(), prepared(3))).await.unwrap_err();
    assert_eq!(api.take_writes(), []);
}

#[tokio::test]
async fn a_port_under_another_number_is_given_its_own_back() {
    let api = api().await;
    let context = context(&api, LeaseGuard::open());
    applied(&context, prepared(3)).await;
    let ports = api.object(SERVICE).unwrap()["spec"]["ports"].clone();
    let mut edited = ports.clone();
    edited[0]["port"] = json!(9);
    api.merge(SERVICE, &json!({"spec": {"ports": edited}}));
    context.cache.doubt(&key(), Kind::Service, "simple-cluster-backend");
    api.fail(Method::PATCH, "/services/simple-cluster-backend", 1, Fault::Refuse(422, "Duplicate value"));
    api.take_seen();
    assert!(applied(&context, prepared(3)).await.failures.is_empty());
    assert_eq!(api.take_writes().len(), 3, "the refused apply, the edit, the apply");
    assert_eq!(api.object(SERVICE).unwrap()["spec"]["ports"], ports);
}

#[tokio::test]
async fn a_passing_error_is_retried_without_alarming_anybody() {
    let api = api().await;
    api.fail(Method::PATCH, "/configmaps/simple-cluster-redis", 1, Fault::Refuse(500, "etcd is busy"));
    let context = context(&api, LeaseGuard::open());
    let report = applied(&context, prepared(3)).await;
    assert_eq!(report.failures.len(), 1);
    assert_eq!(report.failures[0].trouble, None);
}

#[tokio::test]
async fn a_field_that_somebody_took_is_taken_back() {
    let api = api().await;
    let context = context(&api, LeaseGuard::open());
    applied(&context, prepared(3)).await;
    api.merge(
        SERVICE,
        &json!({"spec": {"sessionAffinity": "ClientIP"}, "metadata": {"labels": {"mine": "yes"}}}),
    );
    context.cache.doubt(&key(), Kind::Service, "simple-cluster-backend");
    api.fail(
        Method::PATCH,
        "/services/simple-cluster-backend",
        1,
        Fault::Refuse(409, "conflict with \"kubectl-edit\""),
    );
    api.take_seen();
    applied(&context, prepared(3)).await;
    let writes = api.take_writes();
    assert_eq!(writes.len(), 2);
    assert!(!writes[0].query.contains("force=true") && writes[1].query.contains("force=true"));
    let service = api.object(SERVICE).unwrap();
    assert_eq!(service["spec"]["sessionAffinity"], "None");
    assert_eq!(service["metadata"]["labels"]["mine"], "yes", "what others add stays");
    assert!(context.metrics.render().unwrap().contains("drift_corrected_total{kind=\"Service\"} 1"));
}

#[tokio::test]
async fn an_object_of_somebody_else_is_not_touched() {
    let api = api().await;
    api.merge(
        SERVICE,
        &json!({"metadata": {"name": "simple-cluster-backend"}, "spec": {"clusterIP": "10.0.0.1"}}),
    );
    let before = api.object(SERVICE);
    let context = context(&api, LeaseGuard::open());
    let report = applied(&context, prepared(3)).await;
    assert_eq!(report.failures[0].trouble.as_ref().unwrap().reason, "NameTaken");
    assert_eq!(api.object(SERVICE), before);
}

#[tokio::test]
async fn a_generated_secret_is_created_once_and_never_overwritten() {
    let api = api().await;
    api.remove("/api/v1/namespaces/simple-namespace/secrets/simple-cluster-redis-auth");
    let context = context(&api, LeaseGuard::open());
    applied(&context, prepared_with_a_new_password()).await;
    let path = "/secrets/simple-cluster-redis-auth";
    let created = api.object(path).unwrap();
    assert_eq!(created["data"]["password"], "ZnJlc2g=", "fresh");
    api.take_seen();

    // A leader that does not know of it yet loses the race and writes nothing that depends on its draw.
    let late = super::tests::context(&api, LeaseGuard::open());
    let report = applied(&late, prepared_with_a_new_password()).await;
    assert_eq!(report.failures.len(), 1);
    assert_eq!(report.failures[0].trouble, None);
    assert_eq!(api.object(path).unwrap(), created);
    let workloads = |write: &crate::fake_api::Seen| write.path.contains("/apis/apps/");
    assert!(!api.take_writes().iter().any(workloads));
}

#[tokio::test]
async fn an_answer_that_never_comes_ends_at_its_deadline() {
    let api = api().await;
    api.fail(Method::GET, "/services/simple-cluster-backend", 1, Fault::Hang);
    let context = context(&api, LeaseGuard::open());
    let read = context.client.get(Kind::Service, "simple-namespace", "simple-cluster-backend").await;
    assert!(matches!(read, Err(ClientError::Deadline)));
}

/// The cluster with this class in its spec, and what is known of it.
fn prepared_for(class: &str, knowledge: ClassKnowledge) -> Prepared {
    let spec = format!("{{instances: 3, loadBalancer: {{ingress: {{className: {class}}}}}}}");
    let mut referenced = referenced();
    referenced.class = knowledge;
    build(&validate(&object(&spec), &referenced, &defaults()).unwrap(), count(3))
}

fn contour(name: &str) -> ClassKnowledge {
    let controller = "projectcontour.io/ingress-controller".to_owned();
    ClassKnowledge::Served { name: name.to_owned(), controller }
}

#[tokio::test]
async fn a_class_that_nobody_serves_takes_no_served_route_away() {
    let api = api().await;
    let context = context(&api, LeaseGuard::open());
    applied(&context, prepared_for("contour", contour("contour"))).await;
    // The watch tells of it, so that it could be taken for an orphan.
    let served = api.object(INGRESS).unwrap();
    let metadata = serde_json::from_value(served["metadata"].clone()).unwrap();
    context.cache.see(&key(), Kind::Ingress, &metadata);
    api.take_seen();
    let nobody = ClassKnowledge::Missing { name: "nobody".to_owned() };
    for knowledge in [nobody.clone(), nobody, ClassKnowledge::NoDefault] {
        assert!(applied(&context, prepared_for("nobody", knowledge)).await.failures.is_empty());
    }
    assert_eq!(
        api.take_writes(),
        [],
        "neither the Ingress nor the Service, which carries annotations of the class"
    );
    assert_eq!(api.object(INGRESS).unwrap(), served);

    // Corrected, the rest of the spec reaches it again.
    api.merge(INGRESS, &json!({"metadata": {"labels": {"app.kubernetes.io/name": "edited"}}}));
    context.cache.doubt(&key(), Kind::Ingress, "simple-cluster");
    applied(&context, prepared_for("contour", contour("contour"))).await;
    assert_eq!(api.object(INGRESS).unwrap()["metadata"]["labels"]["app.kubernetes.io/name"], "vx11");
}

#[tokio::test]
async fn a_route_without_anybody_to_serve_it_waits_for_its_class() {
    let api = api().await;
    let context = context(&api, LeaseGuard::open());
    applied(&context, prepared_for("later", ClassKnowledge::Missing { name: "later".to_owned() })).await;
    assert_eq!(api.object(INGRESS).unwrap()["spec"]["ingressClassName"], "later");
    applied(&context, prepared_for("later", contour("later"))).await;
    let annotations = api.object(INGRESS).unwrap()["metadata"]["annotations"].clone();
    assert!(annotations.get("projectcontour.io/response-timeout").is_some(), "{annotations}");
}

#[tokio::test]
async fn an_address_of_the_former_class_does_not_pass_for_one_of_the_new() {
    let api = api().await;
    let context = context(&api, LeaseGuard::open());
    applied(&context, prepared_for("first", contour("first"))).await;
    api.merge(INGRESS, &json!({"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}}));
    assert!(applied(&context, prepared_for("second", contour("second"))).await.waiting);
    context.cache.doubt(&key(), Kind::Ingress, "simple-cluster");
    assert!(!applied(&context, prepared_for("second", contour("second"))).await.waiting);
    let anew = api.object(INGRESS).unwrap();
    assert_eq!(anew["spec"]["ingressClassName"], "second");
    assert_eq!(anew.get("status"), None);

    // Edited by hand it is put back where it is: its address is of the class that it is put back to.
    api.merge(INGRESS, &json!({"spec": {"ingressClassName": "third"}}));
    context.cache.doubt(&key(), Kind::Ingress, "simple-cluster");
    api.take_seen();
    applied(&context, prepared_for("second", contour("second"))).await;
    let methods: Vec<String> = api.take_writes().into_iter().map(|write| write.method).collect();
    assert_eq!(methods, ["PATCH"]);
    assert_eq!(api.object(INGRESS).unwrap()["metadata"]["uid"], anew["metadata"]["uid"]);
}

#[tokio::test]
async fn a_class_that_is_named_no_more_is_left_for_the_default_one() {
    let api = api().await;
    let context = context(&api, LeaseGuard::open());
    applied(&context, prepared_for("named", contour("named"))).await;
    let ours = json!([{"manager": names::OBJECT_MANAGER, "operation": "Apply", "fieldsV1": {"f:spec": {"f:ingressClassName": {}}}}]);
    api.merge(INGRESS, &json!({"metadata": {"managedFields": ours}}));
    assert!(applied(&context, prepared(3)).await.waiting);
    assert_eq!(api.object(INGRESS), None);

    // What Kubernetes fills in is no class of ours.
    applied(&context, prepared(3)).await;
    api.merge(INGRESS, &json!({"spec": {"ingressClassName": "the-default"}, "metadata": {"annotations": {names::APPLIED: "before"}}}));
    context.cache.doubt(&key(), Kind::Ingress, "simple-cluster");
    assert!(!applied(&context, prepared(3)).await.waiting);
    assert_eq!(api.object(INGRESS).unwrap()["spec"]["ingressClassName"], "the-default");
}
