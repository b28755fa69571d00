//! A VX11Cluster that this version cannot read, such as one written for a newer definition: it is told, and left as
//! it is.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Api, Client, Resource,
    api::{ApiResource, DynamicObject, ListParams},
    core::error_boundary::InvalidObject,
    runtime::events::{Event, EventType},
};
use serde_json::{Value, json};
use vx11_crds::VX11Cluster;

use crate::{context::Context, diagnose::quote, leader::REQUEST_DEADLINE};

/// Tells it in the log, the metrics and an event.
pub async fn tell(context: &Context, client: &Client, invalid: &InvalidObject) {
    let metadata = &invalid.metadata;
    let why = quote(&fault(client, invalid).await);
    context.metrics.saw_invalid_object();
    tracing::error!(
        namespace = metadata.namespace,
        cluster = metadata.name,
        error = why,
        "a VX11Cluster does not parse; it is left alone"
    );
    let about = ObjectReference {
        api_version: Some(VX11Cluster::api_version(&()).into_owned()),
        kind: Some(VX11Cluster::kind(&()).into_owned()),
        name: metadata.name.clone(),
        namespace: metadata.namespace.clone(),
        uid: metadata.uid.clone(),
        ..ObjectReference::default()
    };
    let event = Event {
        type_: EventType::Warning,
        reason: "InvalidObject".to_owned(),
        note: Some(format!(
            "this controller cannot read the object and leaves everything as it is: {why}; correct it, or run the controller that belongs to its CustomResourceDefinition"
        )),
        action: "Read".to_owned(),
        secondary: None,
    };
    if let Err(error) = context.client.publish_state(&event, &about).await {
        tracing::warn!(%error, "cannot publish an event");
    }
}

/// What is wrong, with the field's path: a watch tells only what is wrong, so the object is read once more.
async fn fault(client: &Client, invalid: &InvalidObject) -> String {
    let metadata = &invalid.metadata;
    let (namespace, name) = (metadata.namespace.as_deref(), metadata.name.as_deref());
    let resource = ApiResource::erase::<VX11Cluster>(&());
    let api = Api::<DynamicObject>::namespaced_with(client.clone(), namespace.unwrap_or_default(), &resource);
    let only = ListParams::default().fields(&format!("metadata.name={}", name.unwrap_or_default()));
    // The watch waits for this, so it must not wait for long.
    let listed = tokio::time::timeout(REQUEST_DEADLINE, api.list(&only)).await;
    let found = listed.ok().and_then(Result::ok).and_then(|list| list.items.into_iter().next());
    found.and_then(|object| field(object.data)).unwrap_or_else(|| invalid.error.clone())
}

/// The field at fault and what is wrong with it; `None` when the object can be read.
fn field(mut data: Value) -> Option<String> {
    data.as_object_mut()?.insert("metadata".to_owned(), json!({}));
    let error = serde_path_to_error::deserialize::<_, VX11Cluster>(data).err()?;
    Some(format!("{}: {}", error.path(), error.inner()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_field_at_fault_is_named() {
        let newer = json!({ "spec": { "backend": { "stream": { "heartbeatSeconds": "15s" } } } });
        let told = field(newer).unwrap();
        assert!(told.starts_with("spec.backend.stream.heartbeatSeconds: invalid type: string"), "{told}");
        assert_eq!(field(json!({ "spec": {} })), None);
    }
}
