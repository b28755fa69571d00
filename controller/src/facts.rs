//! What the controller remembers of a live object: the few values that status and decisions need.
//!
//! Whole objects are never kept, so that memory follows the number of objects and not their size.

use std::{collections::BTreeMap, net::IpAddr};

use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{Deployment, StatefulSet},
    core::v1::{PersistentVolumeClaim, Pod, Secret},
    networking::v1::Ingress,
};
use kube::api::DynamicObject;

use crate::{
    diagnose::{self, Trouble},
    fingerprint,
    kinds::Kind,
    names::{self, Component},
    scale::{
        marks,
        observation::{Mark, Removal},
    },
};

/// What is remembered of an object, by its kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Facts {
    /// It exists, and that is all that matters.
    Plain,
    /// The instances.
    Deployment(DeploymentFacts),
    /// The Redis.
    StatefulSet(StatefulSetFacts),
    /// The route.
    Ingress(IngressFacts),
    /// A volume claim.
    Claim(ClaimFacts),
    /// A pod.
    Pod(PodFacts),
    /// A Secret; fingerprints only.
    Secret(SecretFacts),
}

/// State of the Deployment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeploymentFacts {
    /// Its controller has seen the latest spec.
    pub observed: bool,
    /// `spec.replicas`.
    pub desired: i32,
    /// Pods that exist.
    pub replicas: i32,
    /// Pods of the latest template.
    pub updated: i32,
    /// Pods that are ready.
    pub ready: i32,
    /// Whether the scale field manager holds `spec.replicas`.
    pub scale_owned: bool,
    /// The count that the scale field manager wrote last.
    pub count: Option<i32>,
    /// Why pods cannot be created, in the API server's words.
    pub creation_failure: Option<String>,
    /// No progress within the deadline.
    pub stuck: bool,
    /// The drained pods that the present count was lowered for.
    pub removing: Vec<Removal>,
}

/// State of the StatefulSet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatefulSetFacts {
    /// Its uid, which its events carry.
    pub uid: String,
    /// When it was created.
    pub created: Option<Timestamp>,
    /// Its controller has seen the latest spec.
    pub observed: bool,
    /// Pods that are ready.
    pub ready: i32,
    /// Pods that exist.
    pub replicas: i32,
    /// A newer template is being rolled out.
    pub updating: bool,
}

/// State of the Ingress.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IngressFacts {
    /// First address that its controller published.
    pub address: Option<String>,
    /// When it was created.
    pub created: Option<Timestamp>,
}

/// State of a volume claim.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClaimFacts {
    /// A volume is bound to it.
    pub bound: bool,
    /// Size asked for.
    pub requested: Option<String>,
    /// StorageClass, given or filled in by Kubernetes.
    pub class: Option<String>,
    /// When it was created.
    pub created: Option<Timestamp>,
    /// Its uid, which its events carry.
    pub uid: String,
}

/// State of a pod.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own; every combination occurs")]
pub struct PodFacts {
    /// Its uid, which its events carry.
    pub uid: String,
    /// Part of the cluster.
    pub component: Option<Component>,
    /// It serves.
    pub ready: bool,
    /// It is being deleted.
    pub terminating: bool,
    /// When its time to go is up, if it is being deleted.
    pub gone_by: Option<Timestamp>,
    /// When it was created.
    pub created: Option<Timestamp>,
    /// Why it does not run, as far as its status tells.
    pub trouble: Option<Trouble>,
    /// Its address, once it has one.
    pub address: Option<IpAddr>,
    /// How often its container of ours was restarted; what is injected beside it does not count.
    pub restarts: i32,
    /// Most streams that it was made to accept; 0 is no limit.
    pub max_streams: u64,
    /// It has never run.
    pub pending: bool,
    /// It has ended and will not run again.
    pub finished: bool,
    /// Zone of its node, where Kubernetes tells it.
    pub zone: Option<String>,
    /// It is being drained to be removed.
    pub mark: Option<Mark>,
}

/// Keys of a Secret.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecretFacts {
    keys: BTreeMap<String, KeyFacts>,
}

/// One key of a Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyFacts {
    /// Changes when the value does.
    pub fingerprint: String,
    /// Whether the value can be used as a password.
    pub quality: Quality,
}

/// What a value is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quality {
    /// Printable text on one line that needs no quoting.
    Text,
    /// Something else; a certificate, or text with blanks or quotes.
    Other,
    /// Nothing.
    Empty,
}

impl DeploymentFacts {
    /// The count that was decided last: what stands there, unless another hand has written it.
    #[must_use]
    pub fn own_count(&self) -> u32 {
        let count = if self.scale_owned { self.desired } else { self.count.unwrap_or(self.desired) };
        u32::try_from(count).unwrap_or(0)
    }
}

impl PodFacts {
    /// Whether it does not serve and should: one that goes, or is being emptied to go, should not.
    #[must_use]
    pub const fn is_stuck(&self) -> bool {
        !self.ready && !self.terminating && self.mark.is_none()
    }
}

impl SecretFacts {
    /// Facts of plain values, for tests and for Secrets just drawn.
    #[must_use]
    pub fn of(values: &[(&str, &str)]) -> Self {
        let keys =
            values.iter().map(|(key, value)| ((*key).to_owned(), KeyFacts::of(value.as_bytes()))).collect();
        Self { keys }
    }

    /// One key, if the Secret has it.
    #[must_use]
    pub fn key(&self, key: &str) -> Option<&KeyFacts> {
        self.keys.get(key)
    }

    /// Whether any key holds something.
    #[must_use]
    pub fn has_content(&self) -> bool {
        self.keys.values().any(|key| key.quality != Quality::Empty)
    }
}

impl KeyFacts {
    fn of(value: &[u8]) -> Self {
        // Shells and editors leave a line break at the end; nobody means it.
        let trimmed = value.trim_ascii_end();
        let is_plain = |byte: &u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\'' | b'\\');
        let quality = if trimmed.is_empty() {
            Quality::Empty
        } else if trimmed.iter().all(is_plain) {
            Quality::Text
        } else {
            Quality::Other
        };
        Self { fingerprint: fingerprint::of_secret(trimmed), quality }
    }
}

/// Reads the facts out of a live object. An object that does not parse as its kind leaves only its
/// existence: nothing the API server returns may stop the controller.
#[must_use]
pub fn of(kind: Kind, object: DynamicObject) -> Facts {
    match kind {
        Kind::Deployment => object
            .try_parse()
            .map_or(Facts::Plain, |deployment: Deployment| Facts::Deployment(deployment_facts(&deployment))),
        Kind::StatefulSet => object
            .try_parse()
            .map_or(Facts::Plain, |set: StatefulSet| Facts::StatefulSet(stateful_set_facts(&set))),
        Kind::Ingress => object
            .try_parse()
            .map_or(Facts::Plain, |ingress: Ingress| Facts::Ingress(ingress_facts(&ingress))),
        Kind::PersistentVolumeClaim => object
            .try_parse()
            .map_or(Facts::Plain, |claim: PersistentVolumeClaim| Facts::Claim(claim_facts(&claim))),
        Kind::Pod => object.try_parse().map_or(Facts::Plain, |pod: Pod| Facts::Pod(pod_facts(&pod))),
        Kind::Secret => {
            object.try_parse().map_or(Facts::Plain, |secret: Secret| Facts::Secret(secret_facts(&secret)))
        }
        Kind::ConfigMap
        | Kind::NetworkPolicy
        | Kind::PodDisruptionBudget
        | Kind::Service
        | Kind::ServiceAccount => Facts::Plain,
    }
}

fn deployment_facts(deployment: &Deployment) -> DeploymentFacts {
    let status = deployment.status.clone().unwrap_or_default();
    let condition =
        |type_: &str| status.conditions.iter().flatten().find(|condition| condition.type_ == type_);
    let scale_owned = deployment
        .metadata
        .managed_fields
        .iter()
        .flatten()
        .filter(|entry| entry.manager.as_deref() == Some(names::SCALE_MANAGER))
        .any(|entry| {
            entry.fields_v1.as_ref().and_then(|fields| fields.0.pointer("/f:spec/f:replicas")).is_some()
        });
    let annotation = |name: &str| deployment.metadata.annotations.as_ref()?.get(name);
    DeploymentFacts {
        observed: status.observed_generation >= deployment.metadata.generation,
        desired: deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1),
        replicas: status.replicas.unwrap_or(0),
        updated: status.updated_replicas.unwrap_or(0),
        ready: status.ready_replicas.unwrap_or(0),
        scale_owned,
        count: annotation(names::COUNT).and_then(|count| count.parse().ok()),
        creation_failure: condition("ReplicaFailure")
            .filter(|condition| condition.status == "True")
            .and_then(|condition| condition.message.clone()),
        stuck: condition("Progressing")
            .is_some_and(|condition| condition.reason.as_deref() == Some("ProgressDeadlineExceeded")),
        removing: annotation(names::REMOVING).map(|text| marks::read_removals(text)).unwrap_or_default(),
    }
}

fn stateful_set_facts(set: &StatefulSet) -> StatefulSetFacts {
    let status = set.status.clone().unwrap_or_default();
    StatefulSetFacts {
        uid: set.metadata.uid.clone().unwrap_or_default(),
        created: set.metadata.creation_timestamp.as_ref().map(|time| time.0),
        observed: status.observed_generation >= set.metadata.generation,
        ready: status.ready_replicas.unwrap_or(0),
        replicas: status.replicas,
        updating: status.update_revision.is_some() && status.current_revision != status.update_revision,
    }
}

fn ingress_facts(ingress: &Ingress) -> IngressFacts {
    let address = ingress
        .status
        .as_ref()
        .and_then(|status| status.load_balancer.as_ref())
        .and_then(|balancer| balancer.ingress.as_ref())
        .into_iter()
        .flatten()
        .find_map(|entry| entry.hostname.clone().or_else(|| entry.ip.clone()));
    IngressFacts { address, created: ingress.metadata.creation_timestamp.as_ref().map(|time| time.0) }
}

fn claim_facts(claim: &PersistentVolumeClaim) -> ClaimFacts {
    let spec = claim.spec.clone().unwrap_or_default();
    ClaimFacts {
        bound: claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound"),
        requested: spec
            .resources
            .and_then(|resources| resources.requests)
            .and_then(|requests| requests.get("storage").map(|size| size.0.clone())),
        class: spec.storage_class_name,
        created: claim.metadata.creation_timestamp.as_ref().map(|time| time.0),
        uid: claim.metadata.uid.clone().unwrap_or_default(),
    }
}

fn pod_facts(pod: &Pod) -> PodFacts {
    let component =
        pod.metadata.labels.as_ref().and_then(|labels| labels.get(names::COMPONENT)).and_then(|label| {
            [Component::Backend, Component::Redis].into_iter().find(|component| component.as_str() == label)
        });
    let status = pod.status.as_ref();
    let ready = status
        .and_then(|status| status.conditions.as_ref())
        .into_iter()
        .flatten()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True");
    PodFacts {
        uid: pod.metadata.uid.clone().unwrap_or_default(),
        component,
        ready,
        terminating: pod.metadata.deletion_timestamp.is_some(),
        // The API server has added the grace period.
        gone_by: pod.metadata.deletion_timestamp.as_ref().map(|time| time.0),
        created: pod.metadata.creation_timestamp.as_ref().map(|time| time.0),
        trouble: diagnose::pod(pod),
        address: status.and_then(|status| status.pod_ip.as_ref()?.parse().ok()),
        restarts: status
            .and_then(|status| status.container_statuses.as_ref())
            .into_iter()
            .flatten()
            .find(|container| container.name == names::BACKEND_CONTAINER)
            .map_or(0, |container| container.restart_count),
        max_streams: max_streams(pod),
        pending: status.is_none_or(|status| status.phase.as_deref() == Some("Pending")),
        finished: status
            .and_then(|status| status.phase.as_deref())
            .is_some_and(|phase| matches!(phase, "Succeeded" | "Failed")),
        // Kubernetes copies it from the node since 1.33.
        zone: pod
            .metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get("topology.kubernetes.io/zone").cloned()),
        mark: pod
            .metadata
            .annotations
            .as_ref()
            .and_then(|annotations| marks::read(annotations.get(names::DRAIN)?)),
    }
}

fn max_streams(pod: &Pod) -> u64 {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    containers
        .filter(|container| container.name == names::BACKEND_CONTAINER)
        .flat_map(|container| container.env.iter().flatten())
        .find(|variable| variable.name == names::MAX_CLIENTS_VARIABLE)
        .and_then(|variable| variable.value.as_ref()?.parse().ok())
        .unwrap_or(0)
}

fn secret_facts(secret: &Secret) -> SecretFacts {
    let keys =
        secret.data.iter().flatten().map(|(key, value)| (key.clone(), KeyFacts::of(&value.0))).collect();
    SecretFacts { keys }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("s3cret!$", Quality::Text)]
    #[case("with-line-break\n", Quality::Text)]
    #[case("two words", Quality::Other)]
    #[case("quo\"te", Quality::Other)]
    #[case("two\nlines", Quality::Other)]
    #[case("\n", Quality::Empty)]
    #[case("", Quality::Empty)]
    fn a_password_is_one_line_of_printable_text(#[case] value: &str, #[case] quality: Quality) {
        assert_eq!(KeyFacts::of(value.as_bytes()).quality, quality);
    }

    #[test]
    fn a_line_break_at_the_end_is_no_new_password() {
        assert_eq!(KeyFacts::of(b"same\n"), KeyFacts::of(b"same"));
    }

    #[test]
    fn the_owner_of_replicas_is_read_from_the_managed_fields() {
        let mut deployment: Deployment = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "d", "generation": 2, "managedFields": [{
                "manager": names::SCALE_MANAGER, "operation": "Apply",
                "fieldsV1": {"f:spec": {"f:replicas": {}}},
            }]},
            "status": {"observedGeneration": 1},
        }))
        .unwrap();
        let facts = deployment_facts(&deployment);
        assert!(facts.scale_owned && !facts.observed);
        deployment.metadata.managed_fields = None;
        assert!(!deployment_facts(&deployment).scale_owned);
    }

    #[test]
    fn a_count_of_another_hand_is_not_taken_for_the_own_one() {
        let own = DeploymentFacts { desired: 7, count: Some(3), scale_owned: true, ..Default::default() };
        assert_eq!(own.own_count(), 7);
        let foreign = DeploymentFacts { scale_owned: false, ..own };
        assert_eq!(foreign.own_count(), 3);
        assert_eq!(DeploymentFacts { count: None, ..foreign }.own_count(), 7, "nothing better is known");
    }

    #[test]
    fn a_pod_that_goes_or_is_emptied_to_go_is_not_stuck() {
        let mut pod = Pod::default();
        assert!(pod_facts(&pod).is_stuck());
        let mark = "2026-01-01T00:00:00Z/2026-01-01T00:00:30Z".to_owned();
        pod.metadata.annotations = Some([(names::DRAIN.to_owned(), mark)].into());
        assert!(!pod_facts(&pod).is_stuck(), "it is not ready because it drains");
        let goes = serde_json::from_value(
            serde_json::json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:30Z"}}),
        );
        assert!(!pod_facts(&goes.unwrap()).is_stuck());
    }

    #[test]
    fn only_the_container_of_ours_counts_in_a_pod() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"deletionTimestamp": "2026-01-01T00:00:30Z"},
            "spec": {"containers": [
                {"name": "proxy", "env": [{"name": "VX11_MAX_CLIENTS", "value": "7"}]},
                {"name": "backend", "env": [{"name": "VX11_MAX_CLIENTS", "value": "800"}]},
            ]},
            "status": {"containerStatuses": [
                {"name": "proxy", "restartCount": 5, "image": "", "imageID": "", "ready": true},
                {"name": "backend", "restartCount": 2, "image": "", "imageID": "", "ready": true},
            ]},
        }))
        .unwrap();
        let facts = pod_facts(&pod);
        assert_eq!((facts.restarts, facts.max_streams), (2, 800));
        assert_eq!(facts.gone_by.unwrap().to_string(), "2026-01-01T00:00:30Z");
        assert_eq!(pod_facts(&Pod::default()).max_streams, 0, "no limit where none is set");
    }
}
