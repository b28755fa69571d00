//! The only way to the API server. Reads are free; every write asks the lease first, has a deadline and is
//! counted.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Api, Client,
    api::{
        DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, Preconditions,
        PropagationPolicy,
    },
    runtime::events::{Event, Recorder, Reporter},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use thiserror::Error;
use vx11_crds::VX11Cluster;

use crate::{
    kinds::Kind,
    leader::{LeaseGuard, REQUEST_DEADLINE},
    names,
    telemetry::{Metrics, Verb},
};

/// Why a request did not succeed.
#[derive(Debug, Error)]
pub enum ClientError {
    /// This process does not hold the lease, so that it wrote nothing.
    #[error("not the leader: nothing was written")]
    NotLeader,
    /// The namespace is being deleted, so that nothing was written: everything in it goes by itself.
    #[error("namespace {0} is being deleted: nothing was written")]
    NamespaceEnds(String),
    /// The API server did not answer in time.
    #[error("the API server did not answer within {} s", REQUEST_DEADLINE.as_secs())]
    Deadline,
    /// The API server refused or could not be reached.
    #[error("{}", api_message(.0))]
    Api(#[source] Box<kube::Error>),
    /// An object does not become JSON; a bug, since Kubernetes' own types always do.
    #[error("cannot be rendered: {0}")]
    Render(#[from] serde_json::Error),
}

fn api_message(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

impl From<kube::Error> for ClientError {
    fn from(error: kube::Error) -> Self {
        Self::Api(Box::new(error))
    }
}

impl ClientError {
    /// HTTP status of the API server's refusal.
    #[must_use]
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Api(error) => match error.as_ref() {
                kube::Error::Api(status) => Some(status.code),
                _ => None,
            },
            Self::NotLeader | Self::NamespaceEnds(_) | Self::Deadline | Self::Render(_) => None,
        }
    }
}

/// Whose fields a write sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manager {
    /// Everything of an owned object but the count of instances.
    Objects,
    /// The count of instances.
    Scale,
}

impl Manager {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Objects => names::OBJECT_MANAGER,
            Self::Scale => names::SCALE_MANAGER,
        }
    }
}

/// How long nothing is written to a namespace that was found to be going. A new one may take its name.
pub const NAMESPACE_ENDS: Duration = Duration::from_secs(10);

/// What an event says of an object that does not run.
#[derive(Clone, Debug)]
pub struct Warning {
    /// Why, in one word.
    pub reason: String,
    /// Why, in its reporter's words.
    pub message: String,
}

/// A client that writes only while its process leads.
#[derive(Clone)]
pub struct LeaderClient {
    /// Namespaces that are being deleted, and when the API server said so.
    ending: Arc<Mutex<BTreeMap<String, Instant>>>,
    client: Client,
    guard: LeaseGuard,
    metrics: Arc<Metrics>,
    reporter: Reporter,
    recorder: Recorder,
}

impl LeaderClient {
    /// A client behind a guard. `identity` names this process in events.
    #[must_use]
    pub fn new(client: Client, guard: LeaseGuard, metrics: Arc<Metrics>, identity: &str) -> Self {
        let reporter =
            Reporter { controller: names::OBJECT_MANAGER.to_owned(), instance: Some(identity.to_owned()) };
        Self {
            ending: Arc::default(),
            recorder: Recorder::new(client.clone(), reporter.clone()),
            reporter,
            client,
            guard,
            metrics,
        }
    }

    fn api(&self, kind: Kind, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, &kind.resource())
    }

    /// Reads one object; `None` when it does not exist.
    pub async fn get(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
    ) -> Result<Option<DynamicObject>, ClientError> {
        within_deadline(self.api(kind, namespace).get_opt(name)).await
    }

    /// Lists objects of a cluster-scoped kind, or `None` when this process may not.
    pub async fn list_all<K>(&self) -> Result<Option<Vec<K>>, ClientError>
    where
        K: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
    {
        let api = Api::<K>::all(self.client.clone());
        match within_deadline(api.list(&ListParams::default())).await {
            Ok(list) => Ok(Some(list.items)),
            Err(error) if error.code() == Some(403) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The latest warning about the object with this uid. Failed scheduling is none: the pod's own status says so
    /// as long as it is true, and the event stays after it.
    pub async fn latest_warning(&self, namespace: &str, uid: &str) -> Result<Option<Warning>, ClientError> {
        let api = Api::<k8s_openapi::api::core::v1::Event>::namespaced(self.client.clone(), namespace);
        let selector = ListParams::default()
            .fields(&format!("involvedObject.uid={uid},type=Warning,reason!=FailedScheduling"));
        let events = within_deadline(api.list(&selector)).await?;
        let latest = events.items.into_iter().max_by_key(event_time);
        Ok(latest.map(|event| Warning {
            reason: event.reason.unwrap_or_default(),
            message: event.message.unwrap_or_default(),
        }))
    }

    /// Server-side apply of an owned object. Another manager's hold on a field that is ours is broken, after
    /// it was seen: an edit by hand takes a field over, and putting it back has to take it back.
    pub async fn apply(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
        manager: Manager,
        body: &Value,
    ) -> Result<DynamicObject, ClientError> {
        let api = self.api(kind, namespace);
        let params = PatchParams::apply(manager.as_str());
        let patch = Patch::Apply(body);
        let applied = match self.write(namespace, api.patch(name, &params, &patch)).await {
            Err(error) if error.code() == Some(409) => {
                tracing::info!(kind = kind.as_str(), namespace, name, conflict = %error, "taking back fields of ours");
                self.write(namespace, api.patch(name, &params.force(), &patch)).await
            }
            other => other,
        }?;
        self.metrics.wrote(kind.as_str(), Verb::Apply);
        Ok(applied)
    }

    /// Creates an object that must not exist yet.
    pub async fn create(
        &self,
        kind: Kind,
        namespace: &str,
        object: &DynamicObject,
    ) -> Result<DynamicObject, ClientError> {
        let params =
            PostParams { field_manager: Some(names::OBJECT_MANAGER.to_owned()), ..PostParams::default() };
        let created = self.write(namespace, self.api(kind, namespace).create(&params, object)).await?;
        self.metrics.wrote(kind.as_str(), Verb::Create);
        Ok(created)
    }

    /// Merges a patch into an object that others own.
    pub async fn merge(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
        patch: &Value,
    ) -> Result<DynamicObject, ClientError> {
        self.patch(kind, namespace, name, &Patch::Merge(patch)).await
    }

    /// Carries out operations of a JSON patch (RFC 6902) on an object, all of them or none.
    pub async fn edit(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
        operations: Value,
    ) -> Result<DynamicObject, ClientError> {
        let patch = Patch::<()>::Json(serde_json::from_value(operations)?);
        self.patch(kind, namespace, name, &patch).await
    }

    async fn patch<P: Serialize + std::fmt::Debug>(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
        patch: &Patch<P>,
    ) -> Result<DynamicObject, ClientError> {
        let params =
            PatchParams { field_manager: Some(names::OBJECT_MANAGER.to_owned()), ..PatchParams::default() };
        let patched = self.write(namespace, self.api(kind, namespace).patch(name, &params, patch)).await?;
        self.metrics.wrote(kind.as_str(), Verb::Patch);
        Ok(patched)
    }

    /// Deletes exactly the object with this uid; one that is gone already is fine. `Orphan` leaves what it
    /// owns.
    pub async fn delete(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
        uid: &str,
        propagation: PropagationPolicy,
    ) -> Result<(), ClientError> {
        let params = DeleteParams {
            propagation_policy: Some(propagation),
            preconditions: Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None }),
            ..DeleteParams::default()
        };
        match self.write(namespace, self.api(kind, namespace).delete(name, &params)).await {
            Ok(_) => {
                self.metrics.wrote(kind.as_str(), Verb::Delete);
                Ok(())
            }
            // 404: gone. 409: another object has taken the name.
            Err(error) if matches!(error.code(), Some(404 | 409)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Writes the status of a cluster.
    pub async fn apply_status(
        &self,
        namespace: &str,
        name: &str,
        body: &Value,
    ) -> Result<VX11Cluster, ClientError> {
        let api = Api::<VX11Cluster>::namespaced(self.client.clone(), namespace);
        // Status has one writer: whoever else wrote it is overruled.
        let params = PatchParams::apply(names::STATUS_MANAGER).force();
        let written = self.write(namespace, api.patch_status(name, &params, &Patch::Apply(body))).await?;
        self.metrics.wrote("VX11Cluster", Verb::Status);
        Ok(written)
    }

    /// Publishes a change, always as an event of its own. A recorder that counts repetitions goes by the reason
    /// alone and keeps the first note: the second scale-out would be told with the numbers of the first.
    pub async fn publish_change(&self, event: &Event, about: &ObjectReference) -> Result<(), ClientError> {
        self.publish(&Recorder::new(self.client.clone(), self.reporter.clone()), event, about).await
    }

    /// Publishes a state that may be found again and again: within six minutes it is counted up, not added.
    pub async fn publish_state(&self, event: &Event, about: &ObjectReference) -> Result<(), ClientError> {
        self.publish(&self.recorder, event, about).await
    }

    async fn publish(
        &self,
        recorder: &Recorder,
        event: &Event,
        about: &ObjectReference,
    ) -> Result<(), ClientError> {
        let namespace = about.namespace.as_deref().unwrap_or_default();
        self.write(namespace, recorder.publish(event, about)).await?;
        self.metrics.wrote("Event", Verb::Event);
        Ok(())
    }

    /// Whether this process may change anything, in the API server or in an instance.
    #[must_use]
    pub fn may_write(&self) -> bool {
        self.guard.may_write()
    }

    /// One write, if this process leads and the namespace is there to stay.
    async fn write<T>(
        &self,
        namespace: &str,
        request: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, ClientError> {
        if !self.may_write() {
            return Err(ClientError::NotLeader);
        }
        if self.ends(namespace) {
            return Err(ClientError::NamespaceEnds(namespace.to_owned()));
        }
        let result = within_deadline(request).await;
        if let Err(error) = &result
            && error.code() == Some(403)
            && error.to_string().contains("because it is being terminated")
        {
            self.ending().insert(namespace.to_owned(), Instant::now());
            return Err(ClientError::NamespaceEnds(namespace.to_owned()));
        }
        result
    }

    fn ends(&self, namespace: &str) -> bool {
        let mut ending = self.ending();
        ending.retain(|_, since| since.elapsed() < NAMESPACE_ENDS);
        ending.contains_key(namespace)
    }

    fn ending(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Instant>> {
        self.ending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn event_time(event: &k8s_openapi::api::core::v1::Event) -> Option<jiff::Timestamp> {
    let series = event.series.as_ref().and_then(|series| series.last_observed_time.as_ref());
    [
        series.map(|time| time.0),
        event.last_timestamp.as_ref().map(|time| time.0),
        event.event_time.as_ref().map(|time| time.0),
        event.metadata.creation_timestamp.as_ref().map(|time| time.0),
    ]
    .into_iter()
    .flatten()
    .max()
}

async fn within_deadline<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, ClientError> {
    match tokio::time::timeout(REQUEST_DEADLINE, request).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(ClientError::Deadline),
    }
}
