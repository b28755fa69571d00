//! The only way to the API server. Reads are free; every write asks the lease first, has a deadline and is
//! counted.

use std::sync::Arc;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Api, Client,
    api::{
        DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, Preconditions,
        PropagationPolicy,
    },
    runtime::events::{Event, Recorder, Reporter},
};
use serde::de::DeserializeOwned;
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
            Self::NotLeader | Self::Deadline | Self::Render(_) => None,
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

/// A client that writes only while its process leads.
#[derive(Clone)]
pub struct LeaderClient {
    client: Client,
    guard: LeaseGuard,
    metrics: Arc<Metrics>,
    recorder: Recorder,
}

impl LeaderClient {
    /// A client behind a guard. `identity` names this process in events.
    #[must_use]
    pub fn new(client: Client, guard: LeaseGuard, metrics: Arc<Metrics>, identity: &str) -> Self {
        let reporter =
            Reporter { controller: names::OBJECT_MANAGER.to_owned(), instance: Some(identity.to_owned()) };
        Self { recorder: Recorder::new(client.clone(), reporter), client, guard, metrics }
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

    /// The latest warning about the object with this uid.
    pub async fn latest_warning(
        &self,
        namespace: &str,
        uid: &str,
    ) -> Result<Option<k8s_openapi::api::core::v1::Event>, ClientError> {
        let api = Api::<k8s_openapi::api::core::v1::Event>::namespaced(self.client.clone(), namespace);
        let selector = ListParams::default().fields(&format!("involvedObject.uid={uid},type=Warning"));
        let events = within_deadline(api.list(&selector)).await?;
        Ok(events.items.into_iter().max_by_key(event_time))
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
        self.check()?;
        let api = self.api(kind, namespace);
        let params = PatchParams::apply(manager.as_str());
        let patch = Patch::Apply(body);
        let applied = match within_deadline(api.patch(name, &params, &patch)).await {
            Err(error) if error.code() == Some(409) => {
                tracing::info!(kind = kind.as_str(), namespace, name, conflict = %error, "taking back fields of ours");
                self.check()?;
                within_deadline(api.patch(name, &params.force(), &patch)).await
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
        self.check()?;
        let params =
            PostParams { field_manager: Some(names::OBJECT_MANAGER.to_owned()), ..PostParams::default() };
        let created = within_deadline(self.api(kind, namespace).create(&params, object)).await?;
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
        self.check()?;
        let params =
            PatchParams { field_manager: Some(names::OBJECT_MANAGER.to_owned()), ..PatchParams::default() };
        let patched =
            within_deadline(self.api(kind, namespace).patch(name, &params, &Patch::Merge(patch))).await?;
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
        self.check()?;
        let params = DeleteParams {
            propagation_policy: Some(propagation),
            preconditions: Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None }),
            ..DeleteParams::default()
        };
        match within_deadline(self.api(kind, namespace).delete(name, &params)).await {
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
        self.check()?;
        let api = Api::<VX11Cluster>::namespaced(self.client.clone(), namespace);
        // Status has one writer: whoever else wrote it is overruled.
        let params = PatchParams::apply(names::STATUS_MANAGER).force();
        let written = within_deadline(api.patch_status(name, &params, &Patch::Apply(body))).await?;
        self.metrics.wrote("VX11Cluster", Verb::Status);
        Ok(written)
    }

    /// Publishes an event. Repetitions within six minutes are counted up, not added.
    pub async fn publish(&self, event: &Event, about: &ObjectReference) -> Result<(), ClientError> {
        self.check()?;
        within_deadline(self.recorder.publish(event, about)).await?;
        self.metrics.wrote("Event", Verb::Event);
        Ok(())
    }

    /// Whether this process may change anything, in the API server or in an instance.
    #[must_use]
    pub fn may_write(&self) -> bool {
        self.guard.may_write()
    }

    fn check(&self) -> Result<(), ClientError> {
        if self.may_write() { Ok(()) } else { Err(ClientError::NotLeader) }
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
