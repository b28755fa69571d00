//! What every owned object carries: name, namespace, labels, owner; and the security every pod has.

use k8s_openapi::{
    api::core::v1::{
        Capabilities, ContainerPort, PodSecurityContext, SeccompProfile, SecretVolumeSource, SecurityContext,
        Volume, VolumeMount,
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta},
};

use crate::{
    cluster::Identity,
    names::{self, Component},
};

/// Metadata of an owned object.
#[must_use]
pub fn owned(identity: &Identity, component: Component, name: String) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(identity.namespace.clone()),
        labels: Some(names::labels(&identity.name, component)),
        owner_references: Some(vec![identity.owner_reference()]),
        ..ObjectMeta::default()
    }
}

/// Selector of a component's pods.
#[must_use]
pub fn selector(identity: &Identity, component: Component) -> LabelSelector {
    LabelSelector { match_labels: Some(names::selector(&identity.name, component)), match_expressions: None }
}

/// Pod security that the `restricted` standard asks for, for one user that also owns the volumes.
#[must_use]
pub fn pod_security(user: i64) -> PodSecurityContext {
    PodSecurityContext {
        run_as_non_root: Some(true),
        run_as_user: Some(user),
        run_as_group: Some(user),
        fs_group: Some(user),
        fs_group_change_policy: Some("OnRootMismatch".to_owned()),
        seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }),
        ..PodSecurityContext::default()
    }
}

/// Container security that the `restricted` standard asks for, and a read-only root.
#[must_use]
pub fn container_security() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
        privileged: Some(false),
        read_only_root_filesystem: Some(true),
        run_as_non_root: Some(true),
        ..SecurityContext::default()
    }
}

/// A named TCP port of a container.
#[must_use]
pub fn container_port(name: &str, port: i32) -> ContainerPort {
    ContainerPort {
        name: Some(name.to_owned()),
        container_port: port,
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    }
}

/// A volume with the keys of a Secret, readable by the pod's group only.
#[must_use]
pub fn secret_volume(volume: &str, secret: &str) -> Volume {
    Volume {
        name: volume.to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(secret.to_owned()),
            default_mode: Some(0o440),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    }
}

/// A mount of a volume.
#[must_use]
pub fn mount(volume: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: volume.to_owned(),
        mount_path: path.to_owned(),
        // `false` is the API's default and left out of what it stores.
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    }
}
