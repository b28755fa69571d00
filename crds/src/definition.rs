//! The CustomResourceDefinition of `VX11Cluster`, as it is published.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt;

use crate::VX11Cluster;

/// The CustomResourceDefinition, ready to be written as YAML or applied.
///
/// Two things differ from what the types alone derive: descriptions lose the line breaks of the source, and
/// no field is nullable, so that the API server drops an explicit `null` and applies the default as if the
/// field were absent.
#[must_use]
pub fn custom_resource_definition() -> CustomResourceDefinition {
    let mut definition = VX11Cluster::crd();
    for version in &mut definition.spec.versions {
        if let Some(schema) = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut()) {
            tidy(schema);
        }
    }
    definition
}

fn tidy(schema: &mut JSONSchemaProps) {
    schema.nullable = None;
    if let Some(description) = &mut schema.description {
        *description = unwrap_lines(description);
    }
    for property in schema.properties.iter_mut().flat_map(|properties| properties.values_mut()) {
        tidy(property);
    }
    match &mut schema.items {
        Some(JSONSchemaPropsOrArray::Schema(item)) => tidy(item),
        Some(JSONSchemaPropsOrArray::Schemas(items)) => items.iter_mut().for_each(tidy),
        None => {}
    }
    if let Some(JSONSchemaPropsOrBool::Schema(value)) = &mut schema.additional_properties {
        tidy(value);
    }
}

/// Joins the lines of a paragraph; empty lines still part paragraphs.
fn unwrap_lines(text: &str) -> String {
    let paragraphs: Vec<String> = text
        .split("\n\n")
        .map(|paragraph| paragraph.lines().map(str::trim).collect::<Vec<_>>().join(" "))
        .collect();
    paragraphs.join("\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk<'a>(path: &str, schema: &'a JSONSchemaProps, visit: &mut dyn FnMut(&str, &'a JSONSchemaProps)) {
        visit(path, schema);
        for (name, property) in schema.properties.iter().flatten() {
            walk(&format!("{path}.{name}"), property, visit);
        }
        if let Some(JSONSchemaPropsOrArray::Schema(item)) = &schema.items {
            walk(&format!("{path}[]"), item, visit);
        }
    }

    fn root(definition: &CustomResourceDefinition) -> &JSONSchemaProps {
        definition.spec.versions[0].schema.as_ref().unwrap().open_api_v3_schema.as_ref().unwrap()
    }

    #[test]
    fn every_field_is_documented() {
        let definition = custom_resource_definition();
        walk("", root(&definition), &mut |path, schema| {
            let named = !path.is_empty() && !path.ends_with("[]") && path != ".metadata";
            assert!(!named || schema.description.is_some(), "{path} has no description");
        });
    }

    #[test]
    fn no_field_is_nullable_and_none_forbids_the_unknown() {
        let definition = custom_resource_definition();
        walk("", root(&definition), &mut |path, schema| {
            assert_eq!(schema.nullable, None, "{path} is nullable");
            let both = schema.properties.is_some() && schema.additional_properties.is_some();
            assert!(!both, "{path} mixes properties and additionalProperties, which the API server refuses");
        });
    }

    #[test]
    fn every_rule_names_its_field_and_a_remedy() {
        let definition = custom_resource_definition();
        let mut rules = 0;
        walk("", root(&definition), &mut |path, schema| {
            for rule in schema.x_kubernetes_validations.iter().flatten() {
                rules += 1;
                let message = rule.message.as_deref().unwrap_or_default();
                assert!(
                    message.starts_with("spec.") || message.starts_with("metadata."),
                    "{path}: the message of `{}` does not start with the field: {message}",
                    rule.rule
                );
            }
        });
        assert!(rules > 0, "the schema lost its rules");
    }

    #[test]
    fn an_empty_spec_is_complete_with_the_defaults_of_the_schema() {
        let spec: crate::VX11ClusterSpec = serde_json::from_str("{}").unwrap();
        assert_eq!(spec.instances, 1);
        assert_eq!(spec.backend, crate::spec::BackendSpec::default());
        assert_eq!(spec.backend.token_ttl_seconds, 60);
        assert_eq!(spec.redis.database, 1);
    }
}
