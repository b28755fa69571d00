//! Generated Secrets: who they belong to. Their contents are drawn once, outside, and never applied.

use k8s_openapi::api::core::v1::Secret;

use super::metadata;
use crate::{
    cluster::{GeneratedData, Identity, SecretSource},
    names::Component,
};

/// A Secret that the controller generates: labels and owner are kept, the contents only ever created.
#[derive(Clone, Debug, PartialEq)]
pub struct Credential {
    /// The Secret without contents, as it is applied.
    pub secret: Secret,
    /// Contents for its creation; `None` when it exists.
    pub create_with: Option<GeneratedData>,
}

/// The Secret behind a source, or `None` when it is the user's own.
#[must_use]
pub fn build_credential(
    identity: &Identity,
    component: Component,
    source: &SecretSource,
) -> Option<Credential> {
    let (name, create_with) = match source {
        SecretSource::Referenced(_) => return None,
        SecretSource::Generated(name) => (name, None),
        SecretSource::Missing(name, data) => (name, Some(data.clone())),
    };
    Some(Credential {
        secret: Secret { metadata: metadata::owned(identity, component, name.clone()), ..Secret::default() },
        create_with,
    })
}
