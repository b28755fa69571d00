//! Step 5 of a reconcile: bring the live objects to what was built, writing only what differs.
//!
//! A refusal of one object does not stop the others; a lost lease stops everything.

mod route;
mod volume;
mod wish;

use std::collections::BTreeSet;

use futures::future::join_all;
use kube::api::{DynamicObject, PropagationPolicy};
use serde_json::{Value, json};

use self::wish::Wish;
pub(super) use self::wish::{ApplyError, explain};
use super::build::{Prepared, PreparedIngress, PreparedRedis};
use crate::{
    cache::ClusterKey,
    client::{ClientError, Manager},
    cluster::Identity,
    context::Context,
    diagnose::Trouble,
    diff,
    facts::{self, Facts},
    kinds::Kind,
    names,
    scale::{count::Count, marks},
};

/// The objects of a cluster after they were applied. Status is made of this only, so that it cannot speak
/// of objects that nobody applied.
#[derive(Debug, Default)]
pub struct Applied {
    /// Objects that could not be brought to what was built.
    pub failures: Vec<Failure>,
    /// Something is on its way (an object that must go before its successor comes): look again soon.
    pub waiting: bool,
    /// The Deployment has the count that was decided.
    pub counted: bool,
    /// Every object that was asked for.
    pub wanted: BTreeSet<(Kind, String)>,
}

impl Applied {
    /// Everything is as the last pass left it, which needed nothing.
    #[must_use]
    pub fn as_before() -> Self {
        Self { counted: true, ..Self::default() }
    }

    /// Every object is as it was asked for.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.failures.is_empty() && !self.waiting
    }
}

/// Why an object could not be applied.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The object, as `Kind name`.
    pub object: String,
    /// What status says; `None` for a passing error that the next try may cure by itself.
    pub trouble: Option<Trouble>,
    /// The error itself.
    pub error: String,
}

/// What became of one object.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// It is as wished.
    Settled,
    /// It must go first.
    Waiting,
    /// It was there when the pass began, and cannot be made anew by this pass.
    Vanished,
}

/// Applies everything, in the order in which the parts need each other.
pub async fn apply(context: &Context, key: &ClusterKey, prepared: Prepared) -> Result<Applied, ClientError> {
    // No `..`: an object that nobody applies does not compile.
    let Prepared {
        identity,
        credentials,
        redis,
        backend_account,
        backend_deployment,
        count,
        backend_service,
        backend_policy,
        backend_budget,
        ingress,
    } = prepared;
    let pass = Pass { context, key, identity: &identity };
    let mut report = Report::default();

    // Pods mount the credentials: without them nothing else may start.
    let mut secrets = Vec::new();
    for credential in &credentials {
        secrets.push((Wish::new(Kind::Secret, &credential.secret)?, &credential.create_with));
    }
    let made =
        join_all(secrets.iter().map(|(wish, create_with)| pass.ensure_secret(wish, create_with.as_ref())))
            .await;
    for ((wish, _), outcome) in secrets.iter().zip(made) {
        report.add(wish, outcome)?;
    }
    if report.vanished || !report.applied.failures.is_empty() {
        return Ok(report.applied);
    }

    // What the pods read and are named by comes before the pods.
    let mut before = vec![
        Wish::new(Kind::ServiceAccount, &backend_account)?,
        Wish::new(Kind::Service, &backend_service)?,
        Wish::new(Kind::NetworkPolicy, &backend_policy)?,
    ];
    let mut store = None;
    if let Some(PreparedRedis { config_map, service, policy, stateful_set, volume }) = redis {
        before.push(Wish::new(Kind::ConfigMap, &config_map)?);
        before.push(Wish::new(Kind::Service, &service)?);
        before.push(Wish::new(Kind::NetworkPolicy, &policy)?);
        store = Some((Wish::new(Kind::StatefulSet, &stateful_set)?, volume));
    }
    pass.ensure_all(&before, &mut report).await?;
    if let Some((wish, volume)) = store {
        let outcome = pass.ensure_stateful_set(&wish, volume.as_ref()).await;
        report.add(&wish, outcome)?;
    }
    let instances = Wish::new(Kind::Deployment, &backend_deployment)?;
    let outcome = pass.ensure_deployment(&instances, &count).await;
    report.applied.counted = matches!(outcome, Ok(Outcome::Settled));
    report.add(&instances, outcome)?;

    if let Some(budget) = backend_budget {
        let budget = Wish::new(Kind::PodDisruptionBudget, &budget)?;
        let outcome = pass.ensure(&budget).await;
        report.add(&budget, outcome)?;
    }
    if let Some(PreparedIngress { ingress, is_unserved }) = ingress {
        let route = Wish::new(Kind::Ingress, &ingress)?;
        let outcome = pass.ensure_ingress(&route, is_unserved).await;
        report.add(&route, outcome)?;
    }

    pass.remove_orphans(&mut report).await?;
    Ok(report.applied)
}

/// What one pass over the objects came to, and which it touched.
#[derive(Default)]
struct Report {
    applied: Applied,
    vanished: bool,
}

impl Report {
    fn add(&mut self, wish: &Wish, outcome: Result<Outcome, ApplyError>) -> Result<(), ClientError> {
        self.applied.wanted.insert((wish.kind, wish.name.clone()));
        self.note(wish.kind, &wish.name, outcome)
    }

    fn note(
        &mut self,
        kind: Kind,
        name: &str,
        outcome: Result<Outcome, ApplyError>,
    ) -> Result<(), ClientError> {
        match outcome {
            Ok(Outcome::Settled) => {}
            Ok(Outcome::Waiting) => self.applied.waiting = true,
            Ok(Outcome::Vanished) => {
                self.vanished = true;
                self.applied.waiting = true;
            }
            Err(ApplyError::Client(error @ (ClientError::NotLeader | ClientError::NamespaceEnds(_)))) => {
                return Err(error);
            }
            Err(error) => {
                let object = format!("{} {name}", kind.as_str());
                self.applied.failures.push(Failure {
                    trouble: explain(&object, &error),
                    error: error.to_string(),
                    object,
                });
            }
        }
        Ok(())
    }
}

/// The pass over one cluster's objects.
#[derive(Clone, Copy)]
struct Pass<'a> {
    context: &'a Context,
    key: &'a ClusterKey,
    identity: &'a Identity,
}

impl Pass<'_> {
    async fn ensure_all(self, wishes: &[Wish], report: &mut Report) -> Result<(), ClientError> {
        let outcomes = join_all(wishes.iter().map(|wish| self.ensure(wish))).await;
        for (wish, outcome) in wishes.iter().zip(outcomes) {
            report.add(wish, outcome)?;
        }
        Ok(())
    }

    /// Brings one object to its wish.
    async fn ensure(self, wish: &Wish) -> Result<Outcome, ApplyError> {
        if self.agrees(wish, &wish.fingerprint) {
            return Ok(Outcome::Settled);
        }
        let Some(live) = self.read(wish.kind, &wish.name).await? else {
            let created = self.write(wish, &wish.body).await?;
            self.learn(wish.kind, created, Some(wish.fingerprint.clone()));
            return Ok(Outcome::Settled);
        };
        self.ensure_live(wish, live).await
    }

    /// Brings an object that exists to its wish.
    async fn ensure_live(self, wish: &Wish, live: DynamicObject) -> Result<Outcome, ApplyError> {
        if live.metadata.deletion_timestamp.is_some() {
            return Ok(Outcome::Waiting);
        }
        let live = self.correct(wish, live).await?;
        self.learn(wish.kind, live, Some(wish.fingerprint.clone()));
        Ok(Outcome::Settled)
    }

    /// Writes what differs between a live object and its wish, if anything does.
    async fn correct(self, wish: &Wish, live: DynamicObject) -> Result<DynamicObject, ApplyError> {
        let mut content = serde_json::to_value(&live)?;
        if let Some(metadata) = content.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
        }
        let differences = diff::differences(&wish.body, &content);
        if differences.is_empty() {
            return Ok(live);
        }
        if wish.was_applied_to(&live) {
            self.context.metrics.corrected_drift(wish.kind);
            tracing::info!(
                kind = wish.kind.as_str(),
                namespace = self.identity.namespace,
                name = wish.name,
                fields = differences.join(", "),
                "somebody changed an owned object; putting it back"
            );
        }
        let mut body = wish.body.clone();
        if let Some(metadata) = body.get_mut("metadata").and_then(Value::as_object_mut) {
            // This very object: one that is gone by now is refused, where an apply would make an empty successor.
            metadata.insert("uid".to_owned(), json!(live.metadata.uid));
        }
        let written = match self.write(wish, &body).await {
            Err(ApplyError::Client(error)) if error.code() == Some(422) => {
                self.unseat(wish, &content).await?.ok_or(error)?;
                self.write(wish, &body).await?
            }
            other => other?,
        };
        if written.metadata.resource_version == live.metadata.resource_version {
            self.context.metrics.wrote_without_change();
            tracing::warn!(
                kind = wish.kind.as_str(),
                name = wish.name,
                fields = differences.join(", "),
                "an apply changed nothing"
            );
        }
        Ok(written)
    }

    /// Gives entries of lists that stand under a key of somebody's own, such as a port with another number, their
    /// key back: an apply adds ours beside them, and the two do not go together. `None` when there are none.
    async fn unseat(self, wish: &Wish, live: &Value) -> Result<Option<DynamicObject>, ApplyError> {
        let impostors = diff::impostors(&wish.body, live);
        if impostors.is_empty() {
            return Ok(None);
        }
        let version = live.pointer("/metadata/resourceVersion");
        let mut operations =
            vec![json!({"op": "test", "path": "/metadata/resourceVersion", "value": version})];
        for (path, value) in impostors {
            operations.push(json!({"op": "replace", "path": path, "value": value}));
        }
        let namespace = &self.identity.namespace;
        Ok(Some(self.context.client.edit(wish.kind, namespace, &wish.name, operations.into()).await?))
    }

    /// Creates a generated Secret once; keeps its labels and owner, never its contents.
    async fn ensure_secret(
        self,
        wish: &Wish,
        create_with: Option<&crate::cluster::GeneratedData>,
    ) -> Result<Outcome, ApplyError> {
        let Some(data) = create_with else {
            if self.agrees(wish, &wish.fingerprint) {
                return Ok(Outcome::Settled);
            }
            let Some(live) = self.read(wish.kind, &wish.name).await? else {
                // Deleted since its content was read. An apply would make it anew without any; the next pass draws.
                self.context.cache.doubt(self.key, wish.kind, &wish.name);
                return Ok(Outcome::Vanished);
            };
            return self.ensure_live(wish, live).await;
        };
        let mut body = wish.body.clone();
        if let Some(body) = body.as_object_mut() {
            body.insert("stringData".to_owned(), serde_json::to_value(data.expose())?);
            body.insert("type".to_owned(), json!("Opaque"));
        }
        let object: DynamicObject = serde_json::from_value(body)?;
        let namespace = &self.identity.namespace;
        let created = self.context.client.create(wish.kind, namespace, &object).await?;
        self.learn(wish.kind, created, Some(wish.fingerprint.clone()));
        Ok(Outcome::Settled)
    }

    /// The Deployment under one manager and its count under another. The count is never let go by the first
    /// before the second holds it: a field that nobody holds falls back to 1.
    async fn ensure_deployment(self, wish: &Wish, count: &Count) -> Result<Outcome, ApplyError> {
        let instances = count.instances;
        let agreed = format!("{}/{}", wish.fingerprint, instances.get());
        if self.agrees(wish, &agreed) {
            return Ok(Outcome::Settled);
        }
        let live = match self.read(wish.kind, &wish.name).await? {
            Some(live) if live.metadata.deletion_timestamp.is_some() => return Ok(Outcome::Waiting),
            Some(live) => live,
            None => {
                // Born with the right count, not with 1.
                let mut body = wish.body.clone();
                if let Some(spec) = body.get_mut("spec").and_then(Value::as_object_mut) {
                    spec.insert("replicas".to_owned(), json!(instances.get()));
                }
                self.write(wish, &body).await?
            }
        };
        let live = match facts::of(Kind::Deployment, live.clone()) {
            Facts::Deployment(facts)
                if facts.scale_owned
                    && facts.desired == instances.get()
                    && facts.count == Some(instances.get()) =>
            {
                live
            }
            Facts::Deployment(facts) => {
                if !facts.scale_owned && facts.desired != instances.get() {
                    self.context.metrics.corrected_drift(wish.kind);
                }
                tracing::info!(
                    namespace = self.identity.namespace,
                    name = wish.name,
                    from = facts.desired,
                    to = instances.get(),
                    "setting the count of instances"
                );
                self.write_count(&wish.name, count).await?
            }
            _ => live,
        };
        let live = self.correct(wish, live).await?;
        self.learn(wish.kind, live, Some(agreed));
        Ok(Outcome::Settled)
    }

    async fn write_count(self, name: &str, count: &Count) -> Result<DynamicObject, ApplyError> {
        let resource = Kind::Deployment.resource();
        // With the count, and only with it: whoever leads next knows which pods it was lowered for, and what it was
        // when another hand has written it.
        let instances = count.instances.get().to_string();
        let annotations = if count.removing.is_empty() {
            json!({names::COUNT: instances})
        } else {
            json!({names::COUNT: instances, names::REMOVING: marks::write_removals(&count.removing)})
        };
        let body = json!({
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": {"name": name, "annotations": annotations},
            "spec": {"replicas": count.instances.get()},
        });
        let namespace = &self.identity.namespace;
        let client = &self.context.client;
        Ok(client.apply(Kind::Deployment, namespace, name, Manager::Scale, &body).await?)
    }

    /// Removes what belongs to this very cluster and is no longer asked for.
    async fn remove_orphans(self, report: &mut Report) -> Result<(), ClientError> {
        let orphans = self.context.cache.orphans(self.key, &self.identity.uid, &report.applied.wanted);
        for (kind, name, uid) in orphans {
            tracing::info!(
                kind = kind.as_str(),
                namespace = self.identity.namespace,
                name,
                "removing what the spec no longer asks for"
            );
            let namespace = &self.identity.namespace;
            let removed =
                self.context.client.delete(kind, namespace, &name, &uid, PropagationPolicy::Background).await;
            report.note(kind, &name, removed.map(|()| Outcome::Settled).map_err(Into::into))?;
        }
        Ok(())
    }

    fn agrees(self, wish: &Wish, agreed: &str) -> bool {
        self.context.cache.agrees(self.key, wish.kind, &wish.name, agreed)
    }

    fn learn(self, kind: Kind, object: DynamicObject, agreed: Option<String>) {
        let metadata = kube::api::ObjectMeta { managed_fields: None, ..object.metadata.clone() };
        let facts = facts::of(kind, object);
        self.context.cache.learn(self.key, kind, &metadata, facts, agreed);
    }

    /// Reads an object and makes sure that it may be written.
    async fn read(self, kind: Kind, name: &str) -> Result<Option<DynamicObject>, ApplyError> {
        let live = self.context.client.get(kind, &self.identity.namespace, name).await?;
        match live.as_ref().and_then(|live| foreign_owner(self.identity, kind, name, live)) {
            Some(refusal) => Err(refusal),
            None => Ok(live),
        }
    }

    async fn write(self, wish: &Wish, body: &Value) -> Result<DynamicObject, ApplyError> {
        let namespace = &self.identity.namespace;
        let client = &self.context.client;
        Ok(client.apply(wish.kind, namespace, &wish.name, Manager::Objects, body).await?)
    }
}

/// An object of somebody else is never taken over. One without an owner is, if it carries our labels: it was ours and
/// was orphaned.
pub(super) fn foreign_owner(
    identity: &Identity,
    kind: Kind,
    name: &str,
    live: &DynamicObject,
) -> Option<ApplyError> {
    let owner = live.metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
    let is_labelled = |key: &str, value: &str| {
        live.metadata.labels.as_ref().and_then(|labels| labels.get(key)).map(String::as_str) == Some(value)
    };
    let whose = match owner {
        Some(owner) if owner.uid == identity.uid => return None,
        None if is_labelled(names::MANAGED_BY, names::MANAGED_BY_VALUE)
            && is_labelled(names::INSTANCE, &identity.name) =>
        {
            return None;
        }
        Some(owner) => format!("belongs to {} {}", owner.kind, owner.name),
        None => "exists and is not this cluster's".to_owned(),
    };
    let message = format!("{} {name} {whose}; delete it, or give this cluster another name", kind.as_str());
    Some(ApplyError::Refused(message, "NameTaken"))
}

#[cfg(test)]
mod tests;
