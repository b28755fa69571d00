//! The StatefulSet and its volume, which Kubernetes does not let grow together: first the claim grows, then
//! the StatefulSet is made anew around the running pod.

use kube::api::PropagationPolicy;
use serde_json::json;

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
        let same_claims = match (wish.body.pointer(templates), live_spec.pointer(templates)) {
            (Some(wish), Some(live)) => diff::differences(
                &json!({"volumeClaimTemplates": wish}),
                &json!({"volumeClaimTemplates": live}),
            )
            .is_empty(),
            (None, None) => true,
            _ => false,
        };
        if same_claims {
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
            "making the StatefulSet anew around its pod: its volume claim template cannot change"
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
