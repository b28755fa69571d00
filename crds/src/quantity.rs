//! Schemas for Kubernetes quantities, which the API accepts as a string (`500m`, `1Gi`) or a plain integer.

use schemars::{Schema, SchemaGenerator, json_schema};

/// The pattern Kubernetes itself publishes for quantities in custom resources.
const PATTERN: &str = r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$";

/// Schema of a map from resource name (`cpu`, `memory`, …) to quantity.
pub(crate) fn resource_map(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 16,
        "additionalProperties": {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "pattern": PATTERN,
            "x-kubernetes-int-or-string": true,
        },
    })
}

/// Schema of a size that CEL rules compare: always a string, so that `quantity(self)` can read it.
pub(crate) fn size(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "minLength": 1,
        "maxLength": 32,
        "pattern": r"^([0-9]+(\.[0-9]+)?)(([KMGTPE]i)|[kMGTPE])?$",
    })
}
