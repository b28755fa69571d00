//! Every field of every owned object, edited and removed by hand.

use std::{collections::BTreeSet, time::Duration};

use kube::{
    api::{Patch, PatchParams},
    core::ApiResource,
};
use serde_json::{Value, json};
use vx11_tests::harness::{Sandbox, eventually, owned, sandbox};

/// Pods that no node takes: their template may change a hundred times without a container starting.
const NOWHERE: &str = "{instances: 2, backend: {pod: {nodeSelector: {nowhere: here}}}, redis: {resources: {requests: {cpu: 1k}}}}";

/// What Kubernetes refuses (`refused.txt`) are selectors, claims, and what is required or has one value only.
#[tokio::test]
async fn each_owned_field_edited_or_removed_by_hand_is_put_back() {
    sandbox("edited", async |sandbox| {
        sandbox.apply("simple", NOWHERE).await;
        sandbox.until("simple", "LoadBalancerReady", "True").await;
        sandbox.until("simple", "BackendReady", "False").await;
        let edits = owned()
            .into_iter()
            .map(|(kind, name)| async move { change_every_field(sandbox, &kind, name).await });
        let refused: BTreeSet<String> =
            futures::future::join_all(edits).await.into_iter().flatten().collect();
        let expected = include_str!("refused.txt").lines().map(str::to_owned).collect();
        // Whatever else is refused is not tried: another value must be guessed for it, or the list be longer.
        let beyond: Vec<_> = refused.difference(&expected).collect();
        let accepted: Vec<_> = expected.difference(&refused).collect();
        assert!(beyond.is_empty() && accepted.is_empty(), "refused: {beyond:#?}\naccepted: {accepted:#?}");
    })
    .await;
}

/// Edits and removes each field that the controller owns of one object, one after the other; what Kubernetes
/// refused, each as a line.
async fn change_every_field(sandbox: &Sandbox, kind: &ApiResource, name: &str) -> Vec<String> {
    let objects = sandbox.objects(kind);
    let read = async || serde_json::to_value(objects.get(name).await.unwrap()).unwrap();
    let object = read().await;
    let (mut changed, mut refused) = (0, Vec::new());
    for path in owned_fields(&object) {
        let before = object.pointer(&path).unwrap().clone();
        let replace = |value| json!([{ "op": "replace", "path": path, "value": value }]);
        let edits: Vec<Value> = others(&before).into_iter().map(replace).collect();
        for (verb, patches) in [("edit", edits), ("remove", vec![json!([{ "op": "remove", "path": path }])])]
        {
            let mut accepted = None;
            for patch in patches {
                let edit: Patch<()> = Patch::Json(serde_json::from_value(patch.clone()).unwrap());
                match objects.patch(name, &PatchParams::default(), &edit).await {
                    Ok(_) => {
                        accepted = Some(patch);
                        break;
                    }
                    // Immutable, required, or no value that the field may have.
                    Err(kube::Error::Api(_)) => {}
                    Err(error) => panic!("{name}{path}: {error}"),
                }
            }
            let Some(patch) = accepted else {
                refused.push(format!("{verb} {} {name}{}", kind.kind, without_indices(&path)));
                continue;
            };
            let what = format!("{} {name} has {before} again after {patch}", kind.kind);
            eventually(&what, Duration::from_secs(10), async || {
                (read().await.pointer(&path) == Some(&before)).then_some(())
            })
            .await;
            changed += 1;
        }
    }
    println!("{} {name}: {changed} changes of fields were put back", kind.kind);
    refused
}

/// The same path for every item of a list.
fn without_indices(path: &str) -> String {
    let parts = path.split('/').map(|part| if part.parse::<usize>().is_ok() { "*" } else { part });
    parts.collect::<Vec<_>>().join("/")
}

/// Other values that a field might take, the likeliest first.
fn others(value: &Value) -> Vec<Value> {
    match value {
        Value::Bool(value) => vec![json!(!value)],
        Value::Number(number) => number.as_i64().into_iter().map(|number| json!(number + 1)).collect(),
        Value::String(text) => {
            let known = match text.as_str() {
                "TCP" => "UDP",
                "IfNotPresent" | "OnRootMismatch" => "Always",
                "Prefix" => "Exact",
                "None" => "ClientIP",
                "Cluster" => "Local",
                "ClusterIP" => "NodePort",
                "ClusterFirst" => "Default",
                "FallbackToLogsOnError" => "File",
                "ScheduleAnyway" => "DoNotSchedule",
                "Retain" => "Delete",
                "Ingress" => "Egress",
                "Egress" => "Ingress",
                "HTTP" => "HTTPS",
                "AlwaysAllow" => "IfHealthyBudget",
                "RollingUpdate" => "OnDelete",
                "metadata.name" => "metadata.namespace",
                "RuntimeDefault" => "Unconfined",
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
