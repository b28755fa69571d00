//! The API server judges manifests: every rule, bound and default of the definition, as a user meets them.
//!
//! Almost everything is a server-side dry run; what needs a stored object is paused, so that nothing runs.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

#[path = "api_server/bounds.rs"]
mod bounds;
#[path = "api_server/rules.rs"]
mod rules;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::{
    Api,
    api::{DynamicObject, Patch, PatchParams, ValidationDirective},
    core::ApiResource,
};
use serde_json::{Value, json};
use vx11_crds::VX11Cluster;
use vx11_tests::harness::{Sandbox, kubectl, sandbox, tool};

/// The API server's answer to a manifest: the object with its defaults, or why it was refused.
type Verdict = Result<Value, String>;

/// Applies a manifest of this name and spec with strict validation; `dry_run` leaves nothing behind.
async fn judge(sandbox: &Sandbox, name: &str, spec: &Value, dry_run: bool) -> Verdict {
    let resource = ApiResource::erase::<VX11Cluster>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(sandbox.client.clone(), &sandbox.namespace, &resource);
    let manifest = json!({
        "apiVersion": "vx11.io/v1alpha1", "kind": "VX11Cluster", "metadata": { "name": name }, "spec": spec,
    });
    let parameters = PatchParams {
        dry_run,
        force: true,
        field_manager: Some("api-server-tests".to_owned()),
        field_validation: Some(ValidationDirective::Strict),
    };
    match api.patch(name, &parameters, &Patch::Apply(&manifest)).await {
        Ok(object) => Ok(serde_json::to_value(object).unwrap()),
        Err(kube::Error::Api(refusal)) => Err(refusal.message),
        Err(error) => panic!("the API server gave no verdict on {manifest}: {error}"),
    }
}

/// The definition that the API server serves.
async fn served(sandbox: &Sandbox) -> CustomResourceDefinition {
    let definitions: Api<CustomResourceDefinition> = Api::all(sandbox.client.clone());
    definitions.get("vx11clusters.vx11.io").await.unwrap()
}

fn root(definition: &CustomResourceDefinition) -> &JSONSchemaProps {
    let schema = definition.spec.versions[0].schema.as_ref().unwrap();
    schema.open_api_v3_schema.as_ref().unwrap()
}

/// Visits every schema below `schema` with its path: `.` before a field, `[]` for items, `{}` for values.
fn walk<'a>(path: &str, schema: &'a JSONSchemaProps, visit: &mut dyn FnMut(&str, &'a JSONSchemaProps)) {
    visit(path, schema);
    for (name, field) in schema.properties.iter().flatten() {
        walk(&format!("{path}.{name}"), field, visit);
    }
    if let Some(JSONSchemaPropsOrArray::Schema(item)) = &schema.items {
        walk(&format!("{path}[]"), item, visit);
    }
    if let Some(JSONSchemaPropsOrBool::Schema(value)) = &schema.additional_properties {
        walk(&format!("{path}{{}}"), value, visit);
    }
}

/// Sets the value at a path of object fields, making the objects on the way.
fn set(object: &mut Value, path: &str, value: Value) {
    let mut place = object;
    for name in path.split('.').filter(|name| !name.is_empty()) {
        if !place.is_object() {
            *place = json!({});
        }
        place = &mut place[name];
    }
    *place = value;
}

#[tokio::test]
async fn the_served_definition_is_the_generated_one() {
    sandbox("definition", async |sandbox| {
        let served = served(sandbox).await;
        let generated = vx11_crds::custom_resource_definition();
        let versions =
            |definition: &CustomResourceDefinition| serde_json::to_value(&definition.spec.versions).unwrap();
        let (served, generated) = (versions(&served), versions(&generated));
        let differs = first_difference("", &generated, &served);
        assert_eq!(
            differs, None,
            "the chart installs another definition than the crate vx11-crds generates: run `make generate`"
        );
    })
    .await;
}

/// Where what was applied is not what is served; the API server may add what it defaults.
fn first_difference(path: &str, applied: &Value, served: &Value) -> Option<String> {
    match (applied, served) {
        (Value::Object(applied), Value::Object(served)) => applied.iter().find_map(|(key, value)| {
            let path = format!("{path}/{key}");
            match served.get(key) {
                Some(served) => first_difference(&path, value, served),
                None => Some(path),
            }
        }),
        (Value::Array(applied), Value::Array(served)) if applied.len() == served.len() => {
            applied.iter().zip(served).enumerate().find_map(|(index, (applied, served))| {
                first_difference(&format!("{path}/{index}"), applied, served)
            })
        }
        _ if applied == served => None,
        _ => Some(format!("{path}: {served} instead of {applied}")),
    }
}

#[tokio::test]
async fn unknown_fields_are_refused_by_name() {
    sandbox("unknown", async |sandbox| {
        for (spec, field) in [
            (json!({"instanses": 3}), "spec.instanses"),
            (json!({"backend": {"tokenTTLSeconds": 60}}), "spec.backend.tokenTTLSeconds"),
            (json!({"redis": {"storage": {"siz": "1Gi"}}}), "spec.redis.storage.siz"),
            (json!({"loadBalancer": {"ingress": {"class": "a"}}}), "spec.loadBalancer.ingress.class"),
        ] {
            let refusal = judge(sandbox, "unknown", &spec, true).await.unwrap_err();
            assert!(
                refusal.contains(&format!(".{field}")) || refusal.contains(&format!("\"{field}\"")),
                "{refusal}"
            );
        }

        // What users type: strict is kubectl's default, and a warning is the least that the API server gives.
        let file = std::env::temp_dir().join(format!("{}.yaml", sandbox.namespace));
        std::fs::write(
            &file,
            "{apiVersion: vx11.io/v1alpha1, kind: VX11Cluster, metadata: {name: typo}, spec: {instanses: 3}}",
        )
        .unwrap();
        let file = file.to_str().unwrap().to_owned();
        let apply = |extra: &str| {
            let namespace = &sandbox.namespace;
            tool("kubectl", &["apply", "-n", namespace, "--dry-run=server", extra, "-f", &file])
        };
        let strict = apply("--validate=strict");
        assert!(!strict.status.success());
        assert!(
            String::from_utf8_lossy(&strict.stderr).contains("unknown field \"spec.instanses\""),
            "{strict:?}"
        );
        let warned = apply("--validate=warn");
        assert!(warned.status.success(), "{warned:?}");
        assert!(
            String::from_utf8_lossy(&warned.stderr).contains("unknown field \"spec.instanses\""),
            "{warned:?}"
        );
        std::fs::remove_file(file).unwrap();
    })
    .await;
}

#[tokio::test]
async fn defaults_are_filled_in_by_the_api_server() {
    sandbox("defaults", async |sandbox| {
        let mut defaults = Vec::new();
        walk("", root(&served(sandbox).await), &mut |path, schema| {
            if let (Some(default), true) = (&schema.default, path.starts_with(".spec")) {
                defaults.push((path.to_owned(), default.0.clone()));
            }
        });
        assert!(defaults.len() > 30, "the definition lost its defaults: {defaults:?}");
        for (path, default) in defaults {
            // The section that holds the field is given, empty: everything in it is then a default.
            let (section, _) = path.rsplit_once('.').unwrap();
            let mut manifest = json!({"spec": {}});
            set(&mut manifest, section, json!({}));
            let object = judge(sandbox, "defaults", &manifest["spec"], true)
                .await
                .unwrap_or_else(|refusal| panic!("{path}: {refusal}"));
            let found = object.pointer(&path.replace('.', "/"));
            assert_eq!(found, Some(&default), "{path}");
        }

        // An explicit null is an absent field.
        let object =
            judge(sandbox, "defaults", &json!({"instances": null, "backend": null}), true).await.unwrap();
        assert_eq!(object["spec"]["instances"], json!(1));
        assert_eq!(object["spec"]["backend"]["tokenTtlSeconds"], json!(60));
    })
    .await;
}

#[tokio::test]
async fn the_scale_subresource_reads_and_writes_the_count() {
    sandbox("scalesub", async |sandbox| {
        let spec = json!({"instances": 2, "paused": true, "loadBalancer": {"type": "None"}});
        judge(sandbox, "scaled", &spec, false).await.unwrap();
        let api: Api<VX11Cluster> = sandbox.api();
        assert_eq!(api.get_scale("scaled").await.unwrap().spec.unwrap().replicas, Some(2));

        let merge = |count: i32| Patch::Merge(json!({"spec": {"replicas": count}}));
        let parameters = PatchParams::default();
        let written = api.patch_scale("scaled", &parameters, &merge(5)).await.unwrap();
        assert_eq!(written.spec.unwrap().replicas, Some(5));
        assert_eq!(sandbox.cluster("scaled").await.spec.instances, 5);

        let refusal = api.patch_scale("scaled", &parameters, &merge(1001)).await.unwrap_err();
        assert!(refusal.to_string().contains("spec.instances"), "{refusal}");
    })
    .await;
}

#[tokio::test]
async fn kubectl_get_tells_the_story_in_columns() {
    sandbox("columns", async |sandbox| {
        judge(sandbox, "columns", &json!({"paused": true, "loadBalancer": {"type": "None"}}), false)
            .await
            .unwrap();
        let header = |arguments: &[&str]| -> Vec<String> {
            let table = kubectl(&[&["get", "-n", &sandbox.namespace], arguments].concat());
            let line = table.lines().next().unwrap_or_default();
            line.split_whitespace().map(str::to_owned).collect()
        };
        let narrow = ["NAME", "DESIRED", "READY", "CLIENTS", "CAPACITY", "UTIL%", "REDIS", "STATUS", "AGE"];
        for name in ["vx11", "vx11cluster", "vx11clusters", "vx11clusters.vx11.io"] {
            assert_eq!(header(&[name]), narrow, "kubectl get {name}");
        }
        let wide = [&narrow[..], &["ENDPOINT", "REASON", "SCALING", "COST"]].concat();
        assert_eq!(header(&["vx11", "-o", "wide"]), wide);
        assert!(
            kubectl(&["get", "-n", &sandbox.namespace, "all"]).contains("vx11cluster.vx11.io/columns"),
            "kubectl get all shows clusters"
        );
    })
    .await;
}

#[tokio::test]
async fn kubectl_explain_says_something_about_every_field() {
    sandbox("explain", async |sandbox| {
        // What `kubectl explain` reads.
        let request = hyper::Request::get("/openapi/v3/apis/vx11.io/v1alpha1").body(Vec::new()).unwrap();
        let document: Value = sandbox.client.request(request).await.unwrap();
        let schema = &document["components"]["schemas"]["io.vx11.v1alpha1.VX11Cluster"];
        let mut fields = 0;
        explain("spec", &schema["properties"]["spec"]["properties"], &mut fields);
        explain("status", &schema["properties"]["status"]["properties"], &mut fields);
        assert!(fields > 90, "only {fields} fields are described");

        let text = kubectl(&["explain", "vx11cluster.spec.backend.tokenTtlSeconds"]);
        assert!(text.contains("FIELD: tokenTtlSeconds <integer>"), "{text}");
        let description = text.split("DESCRIPTION:").nth(1).unwrap_or_default().trim();
        assert!(!description.is_empty() && description != "<empty>", "{text}");
    })
    .await;
}

fn explain(path: &str, fields: &Value, count: &mut usize) {
    for (name, field) in fields.as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        let description = field["description"].as_str().unwrap_or_default();
        assert!(!description.trim().is_empty(), "{path} has no description");
        *count += 1;
        explain(&path, &field["properties"], count);
        explain(&format!("{path}[]"), &field["items"]["properties"], count);
    }
}
