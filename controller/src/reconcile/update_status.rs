//! Step 7 of a reconcile: one patch of status, only if it changed, and an event for each transition.

use kube::{
    Resource,
    runtime::events::{Event, EventType},
};
use serde_json::json;
use vx11_crds::{VX11Cluster, VX11ClusterStatus};

use super::summary::{Summary, Transition};
use crate::{cache::ClusterKey, client::ClientError, context::Context};

/// Longest text of an event.
const MAX_NOTE: usize = 1000;

/// Writes the status if it differs from `previous`, then tells the transitions.
pub async fn update_status(
    context: &Context,
    key: &ClusterKey,
    cluster: &VX11Cluster,
    previous: &VX11ClusterStatus,
    summary: Summary,
) -> Result<(), ClientError> {
    let Summary { status, transitions, settled: _ } = summary;
    if status != *previous {
        let body = json!({
            "apiVersion": VX11Cluster::api_version(&()),
            "kind": VX11Cluster::kind(&()),
            "metadata": {"name": key.name},
            "status": status,
        });
        let written = match context.client.apply_status(&key.namespace, &key.name, &body).await {
            // Deleted meanwhile.
            Err(error) if error.code() == Some(404) => return Ok(()),
            other => other?,
        };
        if written.metadata.resource_version == cluster.metadata.resource_version {
            context.metrics.wrote_without_change();
        }
        context.remember_status(key, cluster, status);
    }
    for transition in transitions {
        tell(context, key, cluster, transition).await;
    }
    Ok(())
}

/// Publishes an event. One that cannot be told must not undo what was done; status says the same.
pub async fn tell(context: &Context, key: &ClusterKey, cluster: &VX11Cluster, transition: Transition) {
    let event = Event {
        type_: if transition.warning { EventType::Warning } else { EventType::Normal },
        reason: transition.reason,
        note: Some(transition.message.chars().take(MAX_NOTE).collect()),
        action: transition.about.to_owned(),
        secondary: None,
    };
    if let Err(error) = context.client.publish_change(&event, &cluster.object_ref(&())).await {
        tracing::warn!(namespace = key.namespace, cluster = key.name, %error, "cannot publish an event");
    }
}
