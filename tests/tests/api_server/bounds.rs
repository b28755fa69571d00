//! Every bound of the schema, on it and one beyond it; the definition itself says which there are.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSONSchemaProps;
use serde_json::{Value, json};
use vx11_tests::harness::{Sandbox, sandbox};

use super::{judge, root, served, set, walk};

/// A value at a path: whether it is within the bounds.
struct Probe {
    path: String,
    value: Value,
    fits: bool,
}

/// Affinity, tolerations and spread are Kubernetes' own types; their bounds are its business.
fn is_ours(path: &str) -> bool {
    let foreign = ["affinity", "tolerations", "topologySpreadConstraints"];
    path.starts_with(".spec.") && !foreign.iter().any(|name| path.contains(&format!(".pod.{name}")))
}

#[allow(clippy::cast_possible_truncation)] // bounds are whole numbers
fn probes(path: &str, schema: &JSONSchemaProps) -> Vec<Probe> {
    let mut probes = Vec::new();
    let mut probe = |value: Value, fits: bool| {
        probes.push(Probe { path: path.to_owned(), value, fits });
    };
    if let Some(minimum) = schema.minimum {
        probe(json!(minimum as i64), true);
        probe(json!(minimum as i64 - 1), false);
    }
    if let Some(maximum) = schema.maximum {
        probe(json!(maximum as i64), true);
        probe(json!(maximum as i64 + 1), false);
    }
    if let Some(length) = schema.min_length {
        probe(text(path, length), true);
        probe(text(path, length - 1), false);
    }
    if let Some(length) = schema.max_length {
        probe(text(path, length), true);
        probe(text(path, length + 1), false);
    }
    if let Some(count) = schema.max_items {
        probe(items(path, count), true);
        probe(items(path, count + 1), false);
    }
    if let Some(count) = schema.max_properties {
        probe(entries(path, count), true);
        probe(entries(path, count + 1), false);
    }
    for value in schema.enum_.iter().flatten() {
        probe(value.0.clone(), true);
    }
    if schema.enum_.is_some() {
        probe(json!("Sideways"), false);
    }
    if schema.pattern.is_some() {
        // No host, no size and no quantity has a blank.
        probe(json!("a b"), false);
    }
    for _ in schema.required.iter().flatten() {
        probe(json!({}), false);
    }
    // A type that the field does not have.
    probe(
        match schema.type_.as_deref() {
            Some("object") => json!("text"),
            Some(_) => json!({"not": "this"}),
            None => json!([1]),
        },
        false,
    );
    probes
}

/// A text of this length that is legal wherever texts of this length are.
fn text(path: &str, length: i64) -> Value {
    let length = usize::try_from(length.max(0)).unwrap();
    json!(match path {
        ".spec.backend.allowedOrigins[]" if length > 20 => format!("https://{}", "a".repeat(length - 8)),
        ".spec.backend.allowedOrigins[]" => "*".repeat(length),
        ".spec.redis.storage.size" => "1".repeat(length),
        _ => "a".repeat(length),
    })
}

fn items(path: &str, count: i64) -> Value {
    let item = |number: i64| match path {
        ".spec.backend.allowedOrigins" => json!(format!("https://a{number}.example.com")),
        ".spec.backend.trustedProxies" => json!(format!("10.0.{number}.0/24")),
        ".spec.backend.imagePullSecrets" => json!({"name": format!("a{number}")}),
        _ => panic!("{path} has a bound of items that this test cannot fill: give it an example"),
    };
    (0..count).map(item).collect()
}

fn entries(path: &str, count: i64) -> Value {
    let value = if path.contains(".resources.") { "1" } else { "text" };
    let entry = |number: i64| (format!("example.com/key-{number}"), json!(value));
    Value::Object((0..count).map(entry).collect())
}

/// What else the spec must say so that only this bound is in question.
fn around(path: &str, spec: &mut Value) {
    let also: &[(&str, Value)] = match path {
        ".spec.autoscaling.minInstances" => &[("autoscaling.maxInstances", json!(1000))],
        ".spec.autoscaling.clientsPerInstance" => &[("backend.stream.maxClientsPerInstance", json!(0))],
        ".spec.backend.stream.drainSeconds" => &[("backend.stream.resumeWindowSeconds", json!(86400))],
        ".spec.backend.stream.resumeWindowSeconds" => &[("backend.stream.drainSeconds", json!(0))],
        ".spec.loadBalancer.tlsSecretName" => &[("loadBalancer.host", json!("a.example.com"))],
        _ => &[],
    };
    for (path, value) in also {
        set(spec, path, value.clone());
    }
}

/// Where no value on the bound is legal for another reason.
fn is_out_of_reach(path: &str) -> bool {
    // No CIDR is as long as 64 or as short as 2 characters.
    path == ".spec.backend.trustedProxies[]"
}

async fn try_probe(sandbox: &Sandbox, probe: &Probe) {
    let Probe { path, value, fits } = probe;
    // Items and map values are tried as the only one.
    let (field, wrapped) = if let Some(list) = path.strip_suffix("[]") {
        (list, json!([value]))
    } else if let Some(map) = path.strip_suffix("{}") {
        (map, json!({"example.com/key": value}))
    } else if let Some((list, rest)) = path.split_once("[].") {
        let mut item = json!({});
        set(&mut item, rest, value.clone());
        (list, json!([item]))
    } else {
        (path.as_str(), value.clone())
    };
    let mut spec = json!({});
    around(path, &mut spec);
    set(&mut spec, field.trim_start_matches(".spec."), wrapped);
    let verdict = judge(sandbox, "bounds", &spec, true).await;
    match (verdict, fits) {
        (Ok(_), true) => {}
        (Err(refusal), true) => {
            assert!(is_out_of_reach(path), "{spec} should pass: {refusal}");
        }
        (Ok(_), false) => panic!("{spec} should be refused: {path} is out of its bounds"),
        (Err(refusal), false) => {
            // Required fields are named themselves, everything else by its own path.
            let name = field.trim_start_matches('.');
            assert!(refusal.contains(name), "the refusal of {spec} does not name {name}: {refusal}");
        }
    }
}

#[tokio::test]
async fn every_bound_holds_on_it_and_one_beyond_it() {
    sandbox("bounds", async |sandbox| {
        let mut all = Vec::new();
        let definition = served(sandbox).await;
        walk("", root(&definition), &mut |path, schema| {
            if is_ours(path) {
                all.extend(probes(path, schema));
            }
        });
        assert!(all.len() > 150, "only {} bounds were found", all.len());
        for probe in &all {
            try_probe(sandbox, probe).await;
        }
    })
    .await;
}
