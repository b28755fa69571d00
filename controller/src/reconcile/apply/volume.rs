//! The StatefulSet, most of which Kubernetes keeps as it was born: when a field of that part is to change (its
//! volume grows, a newer operator wishes for something else), the StatefulSet is made anew around the running
//! pod. A volume grows by its claim first.

use kube::api::PropagationPolicy;
use serde_json::{Value, json};

use super::{
    Outcome, Pass,
    wish::{ApplyError, Wish},
};
use crate::{
    cluster::Volume,
    diff,
    facts::{self, Facts},
    kinds::Kind,
    names, quantity,
};

/// Fields of its spec that Kubernetes lets change.
const CHANGEABLE: [&str; 7] = [
    "minReadySeconds",
    "ordinals",
    "persistentVolumeClaimRetentionPolicy",
    "replicas",
    "revisionHistoryLimit",
    "template",
    "updateStrategy",
];

/// What of a StatefulSet stays as it was born. Without claims it says so: a wish for none is a wish, too.
fn frozen_part(stateful_set: &Value) -> Value {
    let mut spec = stateful_set.get("spec").cloned().unwrap_or_default();
    if let Some(spec) = spec.as_object_mut() {
        spec.retain(|field, _| !CHANGEABLE.contains(&field.as_str()));
        let claims = spec.get("volumeClaimTemplates").and_then(Value::as_array).map_or(0, Vec::len);
        spec.insert("claims".to_owned(), json!(claims));
    }
    json!({"spec": spec})
}

impl Pass<'_> {
    pub(super) async fn ensure_stateful_set(
        self,
        wish: &Wish,
        volume: Option<&Volume>,
    ) -> Result<Outcome, ApplyError> {
        if self.agrees(wish, &wish.fingerprint) {
            return Ok(Outcome::Settled);
        }
        let Some(live) = self.read(wish.kind, &wish.name).await? else {
            return self.ensure(wish).await;
        };
        if live.metadata.deletion_timestamp.is_some() {
            return Ok(Outcome::Waiting);
        }
        let templates = "/spec/volumeClaimTemplates";
        let live_spec = serde_json::to_value(&live.data)?;
        let frozen = diff::differences(&frozen_part(&wish.body), &frozen_part(&live_spec));
        if frozen.is_empty() {
            let live = self.correct(wish, live).await?;
            self.learn(wish.kind, live, Some(wish.fingerprint.clone()));
            return Ok(Outcome::Settled);
        }
        if let Some(volume) = volume
            && let Err(refusal) = self.grow_claim(volume).await
        {
            // The volume stays as it is; everything else of the StatefulSet is still kept as wished.
            if matches!(refusal, ApplyError::Refused(..)) {
                let mut body = wish.body.clone();
                if let (Some(wished), Some(present)) =
                    (body.pointer_mut(templates), live_spec.pointer(templates))
                {
                    *wished = present.clone();
                }
                let wish = Wish {
                    kind: wish.kind,
                    name: wish.name.clone(),
                    body,
                    fingerprint: wish.fingerprint.clone(),
                };
                self.correct(&wish, live).await?;
            }
            return Err(refusal);
        }
        tracing::info!(
            namespace = self.identity.namespace,
            name = wish.name,
            fields = frozen.join(", "),
            "making the StatefulSet anew around its pod: Kubernetes does not change these fields"
        );
        let uid = live.metadata.uid.clone().unwrap_or_default();
        let namespace = &self.identity.namespace;
        self.context.client.delete(wish.kind, namespace, &wish.name, &uid, PropagationPolicy::Orphan).await?;
        Ok(Outcome::Waiting)
    }

    /// Asks for a bigger volume, if it is smaller than wished. It never shrinks.
    async fn grow_claim(self, volume: &Volume) -> Result<(), ApplyError> {
        let name = names::redis_claim(&self.identity.name);
        let kind = Kind::PersistentVolumeClaim;
        let namespace = &self.identity.namespace;
        let Some(claim) = self.context.client.get(kind, namespace, &name).await? else {
            return Ok(());
        };
        let Facts::Claim(facts) = facts::of(kind, claim) else {
            return Ok(());
        };
        let present = facts.requested.as_deref().and_then(quantity::billionths);
        if present >= quantity::billionths(&volume.size) {
            return Ok(());
        }
        let patch = json!({"spec": {"resources": {"requests": {"storage": volume.size}}}});
        match self.context.client.merge(kind, namespace, &name, &patch).await {
            Ok(claim) => {
                self.learn(kind, claim, None);
                Ok(())
            }
            Err(error) if matches!(error.code(), Some(403 | 422)) => Err(ApplyError::Refused(
                format!(
                    "PersistentVolumeClaim {name} cannot grow to {}: {}; set allowVolumeExpansion on its StorageClass if its driver can grow volumes, or move to a new cluster",
                    volume.size,
                    crate::diagnose::quote(&error.to_string())
                ),
                "VolumeCannotGrow",
            )),
            Err(error) => Err(error.into()),
        }
    }
}
