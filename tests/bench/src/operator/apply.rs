//! From `kubectl apply` to Ready, beside `kubectl apply` of the objects that the operator makes.

use std::{
    io::Write,
    time::{Duration, Instant},
};

use k8s_openapi::api::{
    apps::v1::{Deployment, StatefulSet},
    networking::v1::Ingress,
};
use serde_json::{Value, json};
use vx11_tests::harness::{Sandbox, eventually, kubectl, owned, sandbox};

use crate::report::{Report, section, spread};

const PATIENCE: Duration = Duration::from_mins(3);

/// Both, in turn.
pub async fn measure(rounds: usize, report: &mut Report) {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    // The first only brings the objects, and fills caches for both.
    let (_, objects) = operator().await;
    for round in 0..rounds {
        if round % 2 == 0 {
            ours.push(operator().await.0);
            theirs.push(by_hand(&objects).await);
        } else {
            theirs.push(by_hand(&objects).await);
            ours.push(operator().await.0);
        }
    }
    section("From apply to Ready: three instances, Redis, Ingress");
    report.note("One VX11Cluster", &format!("{} s", spread(&ours).1));
    report.note("`kubectl apply` of the same objects", &format!("{} s", spread(&theirs).1));
    let ratios: Vec<f64> = ours.iter().zip(&theirs).map(|(ours, theirs)| ours / theirs).collect();
    let (value, shown) = spread(&ratios);
    report.at_most("The operator's time to that of the bare objects", value, &shown, 1.15, "");
}

/// Objects as they stand in one namespace.
struct Objects {
    namespace: String,
    json: String,
}

async fn operator() -> (f64, Objects) {
    sandbox("apply", async |sandbox| {
        let cluster = json!({
            "apiVersion": "vx11.io/v1alpha1", "kind": "VX11Cluster", "metadata": {"name": "simple"},
            "spec": {"instances": 3, "loadBalancer": {"host": sandbox.host("simple")}},
        });
        let begun = Instant::now();
        apply(sandbox, &cluster.to_string());
        sandbox.until("simple", "Ready", "True").await;
        let took = begun.elapsed().as_secs_f64();
        (took, Objects { namespace: sandbox.namespace.clone(), json: rendered(sandbox).await })
    })
    .await
}

async fn by_hand(objects: &Objects) -> f64 {
    sandbox("byhand", async |sandbox| {
        let json = objects.json.replace(&objects.namespace, &sandbox.namespace);
        let begun = Instant::now();
        apply(sandbox, &json);
        // What the condition Ready means.
        eventually("the objects serve", PATIENCE, async || {
            let deployment = sandbox.api::<Deployment>().get("simple-backend").await.ok()?;
            let redis = sandbox.api::<StatefulSet>().get("simple-redis").await.ok()?;
            let ingress = sandbox.api::<Ingress>().get("simple").await.ok()?;
            let addresses = ingress.status?.load_balancer?.ingress.unwrap_or_default();
            (deployment.status?.ready_replicas == Some(3)
                && redis.status?.ready_replicas == Some(1)
                && !addresses.is_empty())
            .then_some(())
        })
        .await;
        begun.elapsed().as_secs_f64()
    })
    .await
}

fn apply(sandbox: &Sandbox, manifest: &str) {
    let path = std::env::temp_dir().join(format!("vx11-bench-{}.json", std::process::id()));
    std::fs::File::create(&path).and_then(|mut file| file.write_all(manifest.as_bytes())).expect("a file");
    kubectl(&["apply", "-n", &sandbox.namespace, "-f", &path.to_string_lossy()]);
    std::fs::remove_file(&path).expect("the file");
}

/// What the operator made, without what the API server and the controllers of Kubernetes added.
async fn rendered(sandbox: &Sandbox) -> String {
    let mut items = Vec::new();
    for (kind, name) in owned() {
        let object = sandbox.objects(&kind).get(name).await.expect("an owned object");
        let mut object = serde_json::to_value(object).expect("JSON");
        object["apiVersion"] = json!(kind.api_version);
        object["kind"] = json!(kind.kind);
        object["metadata"] = json!({
            "name": name,
            "labels": object["metadata"]["labels"],
            "annotations": object["metadata"]["annotations"],
        });
        if let Value::Object(fields) = &mut object {
            fields.remove("status");
        }
        if let Some(Value::Object(spec)) = object.get_mut("spec")
            && kind.kind == "Service"
        {
            spec.retain(|key, value| {
                !key.starts_with("clusterIP") || value == "None" || value == &json!(["None"])
            });
        }
        items.push(object);
    }
    json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
}
