//! The operator's rights are exactly what it uses, by the API server's own account.
//!
//! It reads the audit log of everything before it, so it is the last of the end-to-end tests in the alphabet,
//! which is the order in which Cargo runs them.

use std::collections::BTreeSet;

use serde::Deserialize;
use vx11_tests::harness::{Audit, OPERATOR, is_left_out, operator_installed, tool};

/// A right: verb, API group, resource.
type Right = (String, String, String);

#[derive(Deserialize)]
struct Role {
    kind: String,
    metadata: Metadata,
    #[serde(default)]
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    api_groups: Vec<String>,
    resources: Vec<String>,
    verbs: Vec<String>,
}

fn granted() -> BTreeSet<Right> {
    let manifest = tool("helm", &["get", "manifest", "vx11-operator", "--namespace", "vx11-system"]);
    assert!(manifest.status.success(), "{}", String::from_utf8_lossy(&manifest.stderr));
    let text = String::from_utf8(manifest.stdout).unwrap();
    let mut rights = BTreeSet::new();
    for document in serde_yaml::Deserializer::from_str(&text) {
        let Ok(role) = Role::deserialize(document) else { continue };
        // Roles for users are not the operator's.
        let is_own = ["Role", "ClusterRole"].contains(&role.kind.as_str())
            && !["-view", "-edit", "-admin"].iter().any(|suffix| role.metadata.name.ends_with(suffix));
        for rule in role.rules.iter().filter(|_| is_own) {
            for verb in &rule.verbs {
                for group in &rule.api_groups {
                    rights.extend(
                        rule.resources.iter().map(|resource| (verb.clone(), group.clone(), resource.clone())),
                    );
                }
            }
        }
    }
    rights
}

#[tokio::test]
async fn every_right_of_the_operator_is_used_and_none_is_missing() {
    if is_left_out("it reads the API server's audit log") {
        return;
    }
    operator_installed().await;
    let granted = granted();
    assert!(granted.len() > 40, "the release's manifest has only {} rights", granted.len());
    assert!(
        granted.iter().all(|(verb, group, resource)| ![verb, group, resource].contains(&&"*".to_owned())),
        "no right is a wildcard"
    );

    let mut used = BTreeSet::new();
    for asked in Audit::from_beginning().read(OPERATOR) {
        // Every service account may ask about its own rights.
        if asked.group != "authorization.k8s.io" {
            // An apply that makes the object needs both rights.
            if asked.verb == "patch" && asked.code == 201 {
                used.insert(("create".to_owned(), asked.group.clone(), asked.resource.clone()));
            }
            used.insert((asked.verb, asked.group, asked.resource));
        }
    }
    let missing: Vec<_> = used.difference(&granted).collect();
    assert!(missing.is_empty(), "the operator asked for what it may not: {missing:?}");
    let idle: Vec<_> = granted.difference(&used).collect();
    assert!(
        idle.is_empty(),
        "no test made the operator use these rights, so it need not have them: {idle:?}"
    );
}
