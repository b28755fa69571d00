//! Secrets stay where they belong: in no log, status, event or ConfigMap.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::api::core::v1::{ConfigMap, Event, Pod, Secret};
use kube::{
    Api, ResourceExt,
    api::{ListParams, LogParams},
};
use vx11_crds::VX11Cluster;

use super::Sandbox;

/// Shorter values are words, not secrets.
const SHORTEST: usize = 8;

/// Every ephemeral token that was issued to this process.
static ISSUED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Remembers an issued token, so that it is looked for in every log.
pub(super) fn issued(token: &str) {
    ISSUED.lock().unwrap_or_else(PoisonError::into_inner).insert(token.to_owned());
}

/// Panics when a value of a Secret of the namespace, or a token issued by a test, is found in a log of its pods
/// or of the controller, in a status, an event or a ConfigMap.
pub(super) async fn are_told_nowhere(sandbox: &Sandbox, age: Duration) {
    let mut secrets = ISSUED.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let everything = ListParams::default();
    for secret in sandbox.api::<Secret>().list(&everything).await.unwrap() {
        // A certificate is public.
        let values = secret.data.into_iter().flatten().filter(|(key, _)| key != "tls.crt");
        for (_, value) in values {
            let text = String::from_utf8_lossy(&value.0).into_owned();
            secrets
                .extend(text.lines().map(str::trim).filter(|line| line.len() >= SHORTEST).map(str::to_owned));
        }
    }
    if secrets.is_empty() {
        return;
    }

    let mut places = logs(&sandbox.api::<Pod>(), None).await;
    let controllers = Api::namespaced(sandbox.client.clone(), "vx11-system");
    places.extend(logs(&controllers, i64::try_from(age.as_secs() + 1).ok()).await);
    for cluster in sandbox.api::<VX11Cluster>().list(&everything).await.unwrap() {
        let status = serde_json::to_string(&cluster.status).unwrap();
        places.push((format!("the status of {}", cluster.name_any()), status));
    }
    for event in sandbox.api::<Event>().list(&everything).await.unwrap() {
        places.push((format!("the event {}", event.name_any()), event.message.unwrap_or_default()));
    }
    for map in sandbox.api::<ConfigMap>().list(&everything).await.unwrap() {
        let text = serde_json::to_string(&map.data).unwrap();
        places.push((format!("the ConfigMap {}", map.name_any()), text));
    }
    for (place, text) in places {
        for secret in &secrets {
            let Some(at) = text.find(secret.as_str()) else {
                continue;
            };
            let line = text[..at].rfind('\n').map_or(0, |newline| newline + 1);
            panic!("{place} tells a secret; the line begins: {}", &text[line..at]);
        }
    }
}

/// The logs of pods, by name; what a container said before its last restart included.
async fn logs(pods: &Api<Pod>, since_seconds: Option<i64>) -> Vec<(String, String)> {
    let mut logs = Vec::new();
    for pod in pods.list(&ListParams::default()).await.unwrap() {
        let name = pod.name_any();
        for previous in [false, true] {
            let parameters = LogParams { previous, since_seconds, ..LogParams::default() };
            // A pod that never started or restarted has none.
            if let Ok(log) = pods.logs(&name, &parameters).await {
                logs.push((format!("the log of {name}"), log));
            }
        }
    }
    logs
}
