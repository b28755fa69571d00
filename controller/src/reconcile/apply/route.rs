//! The Ingress. It serves clients only by its class: one that nobody serves is never written over one that is
//! served, and one that moves to another class is made anew.

use kube::api::{DynamicObject, PropagationPolicy};

use super::{
    Outcome, Pass,
    wish::{ApplyError, Wish},
};
use crate::names;

const CLASS: &str = "/spec/ingressClassName";
/// What an Ingress agrees with that is left as it is.
const AS_IT_IS: &str = "as it is";

impl Pass<'_> {
    /// Brings the Ingress to its wish; without anybody who would serve it, one that exists stays as it is.
    pub(super) async fn ensure_ingress(self, wish: &Wish, is_unserved: bool) -> Result<Outcome, ApplyError> {
        let agreed = if is_unserved { AS_IT_IS } else { &wish.fingerprint };
        if self.agrees(wish, agreed) {
            return Ok(Outcome::Settled);
        }
        let Some(live) = self.read(wish.kind, &wish.name).await? else {
            return self.ensure(wish).await;
        };
        if live.metadata.deletion_timestamp.is_some() {
            return Ok(Outcome::Waiting);
        }
        if is_unserved || !moves_to_another_class(wish, &live) {
            let live = if is_unserved { live } else { self.correct(wish, live).await? };
            self.learn(wish.kind, live, Some(agreed.to_owned()));
            return Ok(Outcome::Settled);
        }
        tracing::info!(
            namespace = self.identity.namespace,
            name = wish.name,
            "making the Ingress anew: its address is of the class that it leaves"
        );
        let uid = live.metadata.uid.unwrap_or_default();
        let namespace = &self.identity.namespace;
        let client = &self.context.client;
        client.delete(wish.kind, namespace, &wish.name, &uid, PropagationPolicy::Background).await?;
        Ok(Outcome::Waiting)
    }
}

/// Whether the spec names another class than before. Nobody takes the address back that the controller of the
/// former class has published, so that the object would look served for ever.
fn moves_to_another_class(wish: &Wish, live: &DynamicObject) -> bool {
    // Somebody else changed it: the class that it is put back to gave the address.
    if wish.was_applied_to(live) {
        return false;
    }
    let present = live.data.pointer(CLASS);
    match wish.body.pointer(CLASS) {
        Some(wished) => present != Some(wished),
        // Kubernetes fills the default class in, but only into an object that is new.
        None => present.is_some() && names_class(live),
    }
}

/// Whether the class of a live Ingress is ours and not the default that Kubernetes filled in.
fn names_class(live: &DynamicObject) -> bool {
    let ours = |manager: Option<&str>| manager == Some(names::OBJECT_MANAGER);
    live.metadata.managed_fields.iter().flatten().filter(|entry| ours(entry.manager.as_deref())).any(
        |entry| {
            entry
                .fields_v1
                .as_ref()
                .is_some_and(|fields| fields.0.pointer("/f:spec/f:ingressClassName").is_some())
        },
    )
}
