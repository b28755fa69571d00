//! One object as it should be, and why it could not be brought there.

use kube::api::DynamicObject;
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    client::ClientError,
    diagnose::{self, Trouble},
    fingerprint,
    kinds::Kind,
    names,
};

/// An object as it is applied.
pub(super) struct Wish {
    pub(super) kind: Kind,
    pub(super) name: String,
    pub(super) body: Value,
    /// Of the body without this very fingerprint in it.
    pub(super) fingerprint: String,
}

impl Wish {
    pub(super) fn new(kind: Kind, object: &impl Serialize) -> Result<Self, ClientError> {
        let mut body = serde_json::to_value(object)?;
        let fingerprint = fingerprint::of_value(&body);
        let name = body.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned();
        // With it on the object, a field that the wish no longer has is a difference too, and is removed.
        if let Some(metadata) = body.get_mut("metadata").and_then(Value::as_object_mut) {
            let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
            if let Some(annotations) = annotations.as_object_mut() {
                annotations.insert(names::APPLIED.to_owned(), json!(fingerprint));
            }
        }
        Ok(Self { kind, name, body, fingerprint })
    }

    /// Whether a live object was last applied with exactly this wish, so that differences are drift.
    pub(super) fn was_applied_to(&self, live: &DynamicObject) -> bool {
        live.metadata.annotations.as_ref().and_then(|annotations| annotations.get(names::APPLIED))
            == Some(&self.fingerprint)
    }
}

/// Why one object was not applied.
#[derive(Debug, thiserror::Error)]
pub(in crate::reconcile) enum ApplyError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("{0}")]
    Refused(String, &'static str),
}

impl From<serde_json::Error> for ApplyError {
    fn from(error: serde_json::Error) -> Self {
        Self::Client(error.into())
    }
}

/// What a person can do about a refusal; `None` when the next try may succeed by itself.
pub(in crate::reconcile) fn explain(object: &str, error: &ApplyError) -> Option<Trouble> {
    let error = match error {
        ApplyError::Client(error) => error,
        ApplyError::Refused(message, reason) => return Some(Trouble::new(reason, message)),
    };
    let text = error.to_string();
    let detail = diagnose::quote(&text);
    match error.code()? {
        403 if text.contains("exceeded quota") => Some(Trouble::new(
            "QuotaExceeded",
            format!("{object} cannot be created: {detail}; raise the ResourceQuota or free some of it"),
        )),
        403 if text.contains("cannot ") && text.contains(" resource ") => Some(Trouble::new(
            "ControllerForbidden",
            format!("{object}: {detail}; give the controller's role this verb"),
        )),
        400 | 403 => Some(Trouble::new(
            "ForbiddenByPolicy",
            format!("{object} was refused: {detail}; allow it in the namespace's policy"),
        )),
        422 => {
            Some(Trouble::new("Rejected", format!("{object} is not accepted: {detail}; correct the spec")))
        }
        _ => None,
    }
}
