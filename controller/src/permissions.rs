//! The verbs that the controller uses, each with its reason, and the check that it has them.

use futures::{StreamExt, stream};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::{Api, Client, api::PostParams};

use crate::watch::Scope;

/// One rule of the controller's role.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// API group; empty for the core one.
    pub group: &'static str,
    /// Resource, with its subresource if any.
    pub resource: &'static str,
    /// Verbs.
    pub verbs: &'static [&'static str],
    /// Why.
    pub why: &'static str,
}

const OWNED: &[&str] = &["get", "list", "watch", "create", "patch", "delete"];
/// Of kinds that every cluster has one of as long as it lives.
const KEPT: &[&str] = &["get", "list", "watch", "create", "patch"];

/// Everything the controller does where clusters are. The chart's role is this list.
pub const RULES: &[Rule] = &[
    rule("vx11.io", "vx11clusters", &["list", "watch"], "what to reconcile"),
    rule("vx11.io", "vx11clusters/status", &["patch"], "report"),
    rule("apps", "deployments", KEPT, "the instances"),
    rule("apps", "statefulsets", OWNED, "the Redis"),
    rule("", "services", OWNED, "names in DNS"),
    rule("", "configmaps", OWNED, "configuration of the Redis; journal of the scaling"),
    rule("", "serviceaccounts", KEPT, "identity of the instances"),
    rule("policy", "poddisruptionbudgets", OWNED, "how many instances an eviction may take"),
    rule("networking.k8s.io", "networkpolicies", OWNED, "who may talk to the pods"),
    rule("networking.k8s.io", "ingresses", OWNED, "the route"),
    rule(
        "",
        "secrets",
        &["get", "list", "watch", "create", "patch"],
        "read by name; list and watch only metadata, by label; create generated ones once; patch their labels; never delete",
    ),
    rule(
        "",
        "pods",
        &["get", "list", "watch", "patch"],
        "why one does not run; patch: mark the one that a scale-in drains, with its deletion cost",
    ),
    rule(
        "",
        "persistentvolumeclaims",
        &["get", "list", "watch", "patch"],
        "why a volume is missing; grow it",
    ),
    rule("", "events", &["list"], "the kubelet's words about a pod that does not start"),
    rule("events.k8s.io", "events", &["create", "patch"], "tell transitions"),
];

const fn rule(
    group: &'static str,
    resource: &'static str,
    verbs: &'static [&'static str],
    why: &'static str,
) -> Rule {
    Rule { group, resource, verbs, why }
}

/// Reviews asked at a time.
const AT_ONCE: usize = 8;

/// What of [`RULES`] is not granted, as `verb resource.group (namespace)`.
///
/// # Errors
/// When the API server cannot be asked.
pub async fn missing(client: &Client, scope: &Scope) -> Result<Vec<String>, kube::Error> {
    let api: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let mut questions = Vec::new();
    for namespace in scope.parts() {
        for rule in RULES {
            for verb in rule.verbs {
                questions.push((namespace.map(str::to_owned), rule, *verb));
            }
        }
    }
    let answers: Vec<Result<Option<String>, kube::Error>> = stream::iter(questions)
        .map(|(namespace, rule, verb)| {
            let api = api.clone();
            async move {
                let review = review(namespace.clone(), rule, verb);
                let answer = api.create(&PostParams::default(), &review).await?;
                let allowed = answer.status.is_some_and(|status| status.allowed);
                Ok((!allowed).then(|| describe(namespace.as_deref(), rule, verb)))
            }
        })
        .buffered(AT_ONCE)
        .collect()
        .await;
    let mut missing = Vec::new();
    for answer in answers {
        missing.extend(answer?);
    }
    Ok(missing)
}

fn review(namespace: Option<String>, rule: &Rule, verb: &str) -> SelfSubjectAccessReview {
    let (resource, subresource) = match rule.resource.split_once('/') {
        Some((resource, subresource)) => (resource, Some(subresource.to_owned())),
        None => (rule.resource, None),
    };
    SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                namespace,
                group: Some(rule.group.to_owned()),
                resource: Some(resource.to_owned()),
                subresource,
                verb: Some(verb.to_owned()),
                ..ResourceAttributes::default()
            }),
            non_resource_attributes: None,
        },
        ..SelfSubjectAccessReview::default()
    }
}

fn describe(namespace: Option<&str>, rule: &Rule, verb: &str) -> String {
    let group = if rule.group.is_empty() { String::new() } else { format!(".{}", rule.group) };
    let place = namespace.unwrap_or("all namespaces");
    format!("{verb} {}{group} in {place}", rule.resource)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_verb_is_described_for_a_person() {
        let rule = rule("apps", "deployments", KEPT, "");
        assert_eq!(describe(None, &rule, "patch"), "patch deployments.apps in all namespaces");
        let review = review(Some("a".to_owned()), &RULES[1], "patch");
        let attributes = review.spec.resource_attributes.unwrap();
        assert_eq!(attributes.subresource.as_deref(), Some("status"));
    }

    #[test]
    fn every_rule_has_a_reason_and_secrets_are_never_deleted() {
        for rule in RULES {
            assert!(!rule.why.is_empty() || rule.verbs.is_empty(), "{}", rule.resource);
        }
        let secrets = RULES.iter().find(|rule| rule.resource == "secrets").unwrap();
        assert!(!secrets.verbs.contains(&"delete"));
    }
}
