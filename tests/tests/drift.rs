//! Whatever happens to the objects of a cluster by hand, they come back as the spec says.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{Pod, Service},
};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
    core::ApiResource,
};
use serde_json::{Value, json};
use vx11_tests::harness::{Sandbox, eventually, holds, owned, sandbox};

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

/// Pods that no node takes: their template may change a hundred times without a container starting.
const NOWHERE: &str = "{instances: 2, backend: {pod: {nodeSelector: {nowhere: here}}}, redis: {resources: {requests: {cpu: 1k}}}}";

#[tokio::test]
async fn each_owned_field_edited_by_hand_is_put_back() {
    sandbox("edited", async |sandbox| {
        sandbox.apply("simple", NOWHERE).await;
        sandbox.until("simple", "LoadBalancerReady", "True").await;
        sandbox.until("simple", "BackendReady", "False").await;
        let edits = owned()
            .into_iter()
            .map(|(kind, name)| async move { edit_every_field(sandbox, &kind, name).await });
        let edited: usize = futures::future::join_all(edits).await.into_iter().sum();
        assert!(edited > 100, "only {edited} fields could be edited");
    })
    .await;
}

/// Edits each field that the controller owns of one object, one after the other; how many there were.
async fn edit_every_field(sandbox: &Sandbox, kind: &ApiResource, name: &str) -> usize {
    let objects = sandbox.objects(kind);
    let read = async || serde_json::to_value(objects.get(name).await.unwrap()).unwrap();
    let object = read().await;
    let (mut edited, mut refused) = (0, Vec::new());
    for path in owned_fields(&object) {
        let before = object.pointer(&path).unwrap().clone();
        let mut accepted = false;
        for value in others(&before) {
            let edit = json!([{ "op": "replace", "path": path, "value": value }]);
            let patch: Patch<()> = Patch::Json(serde_json::from_value(edit).unwrap());
            match objects.patch(name, &PatchParams::default(), &patch).await {
                Ok(_) => accepted = true,
                // Immutable, or no value that the field may have.
                Err(kube::Error::Api(_)) => continue,
                Err(error) => panic!("{name}{path}: {error}"),
            }
            let what = format!("{} {name}{path} is put back from {value} to {before}", kind.kind);
            eventually(&what, Duration::from_secs(10), async || {
                (read().await.pointer(&path) == Some(&before)).then_some(())
            })
            .await;
            break;
        }
        if accepted { edited += 1 } else { refused.push(path) }
    }
    println!("{} {name}: {edited} fields put back; Kubernetes refuses to edit {refused:?}", kind.kind);
    assert!(edited > 0, "{} {name}: no field could be edited", kind.kind);
    edited
}

/// Other values that a field might take, the likeliest first.
fn others(value: &Value) -> Vec<Value> {
    match value {
        Value::Bool(value) => vec![json!(!value)],
        Value::Number(number) => number.as_i64().into_iter().map(|number| json!(number + 1)).collect(),
        Value::String(text) => {
            let known = match text.as_str() {
                "TCP" => "UDP",
                "IfNotPresent" => "Always",
                "Prefix" => "Exact",
                "None" => "ClientIP",
                "Cluster" => "Local",
                "ClusterIP" => "NodePort",
                "ClusterFirst" => "Default",
                "FallbackToLogsOnError" => "File",
                "ScheduleAnyway" => "DoNotSchedule",
                "Retain" => "Delete",
                "Ingress" => "Egress",
                _ => "",
            };
            let guesses = [known.to_owned(), format!("{text}x"), format!("1{text}"), format!("{text}/x")];
            guesses.into_iter().filter(|guess| !guess.is_empty()).map(|guess| json!(guess)).collect()
        }
        _ => Vec::new(),
    }
}

/// Paths of the plain values that the controller owns, from what the API server recorded of its applies.
fn owned_fields(object: &Value) -> Vec<String> {
    let mut paths = BTreeSet::new();
    for manager in object["metadata"]["managedFields"].as_array().into_iter().flatten() {
        let is_ours = manager["manager"].as_str().is_some_and(|name| name.starts_with("vx11-controller"));
        if is_ours && manager["subresource"].is_null() {
            collect(&manager["fieldsV1"], object, "", &[], &mut paths);
        }
    }
    // With another owner in these the garbage collector would take the object for an orphan. The contents of a
    // Secret are drawn once, and then the user's to change.
    let is_secret = object["kind"] == "Secret";
    let is_kept_from = |path: &String| {
        let names_the_owner = ["/apiVersion", "/kind", "/name", "/uid"].iter().any(|end| path.ends_with(end));
        (is_secret && path.starts_with("/data/"))
            || (path.starts_with("/metadata/ownerReferences") && names_the_owner)
    };
    paths.into_iter().filter(|path| !is_kept_from(path)).collect()
}

fn collect(fields: &Value, value: &Value, path: &str, keys: &[String], paths: &mut BTreeSet<String>) {
    let fields = fields.as_object().unwrap();
    if fields.is_empty() {
        plain(value, path, paths);
    }
    for (field, below) in fields {
        if let Some(name) = field.strip_prefix("f:") {
            // Another key makes another entry of a list; see `a_port_edited_by_hand_is_put_back`.
            if let (Some(value), false) = (value.get(name), keys.iter().any(|key| key == name)) {
                let name = name.replace('~', "~0").replace('/', "~1");
                collect(below, value, &format!("{path}/{name}"), &[], paths);
            }
        } else if let Some(key) = field.strip_prefix("k:") {
            let key: serde_json::Map<String, Value> = serde_json::from_str(key).unwrap();
            let items = value.as_array().unwrap();
            let at =
                items.iter().position(|item| key.iter().all(|(name, value)| item.get(name) == Some(value)));
            if let Some(at) = at {
                let keys: Vec<String> = key.keys().cloned().collect();
                collect(below, &items[at], &format!("{path}/{at}"), &keys, paths);
            }
        }
    }
}

fn plain(value: &Value, path: &str, paths: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                plain(value, &format!("{path}/{}", name.replace('~', "~0").replace('/', "~1")), paths);
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                plain(item, &format!("{path}/{index}"), paths);
            }
        }
        _ => {
            paths.insert(path.to_owned());
        }
    }
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
        sandbox.ready("simple", "{instances: 1, redis: {type: None}}").await;
        sandbox.patch("simple", json!({ "spec": { "paused": true } })).await;
        sandbox.until("simple", "Paused", "True").await;
        let services: Api<Service> = sandbox.api();
        services.delete("simple-backend", &DeleteParams::default()).await.unwrap();
        holds("the deleted Service stays away while paused", Duration::from_secs(4), async || {
            services.get_opt("simple-backend").await.unwrap().is_none()
        })
        .await;
        sandbox.patch("simple", json!({ "spec": { "paused": false } })).await;
        eventually("it comes back after the pause", Duration::from_secs(5), async || {
            services.get_opt("simple-backend").await.unwrap().map(|_| ())
        })
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
