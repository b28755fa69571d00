//! Every rule in words (CEL), with a manifest that keeps it and one that breaks it.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use vx11_tests::harness::sandbox;

use super::{judge, root, served, walk};

/// One rule, told from the others by the beginning of its message.
struct Case {
    /// How the rule's message begins: the field, and enough to tell it from the field's other rules.
    says: &'static str,
    /// The object before, for rules about changes.
    before: Option<Value>,
    /// A spec that the rule lets pass.
    passes: Value,
    /// A spec that this rule refuses.
    refused: Value,
}

fn case(says: &'static str, passes: Value, refused: Value) -> Case {
    Case { says, before: None, passes, refused }
}

fn change(says: &'static str, before: Value, passes: Value, refused: Value) -> Case {
    Case { says, before: Some(before), passes, refused }
}

/// Every rule but the one on the name, which is no matter of the spec.
#[allow(clippy::too_many_lines)] // a table
fn cases() -> Vec<Case> {
    let autoscaling = |fields: Value| json!({"autoscaling": fields});
    let backend = |fields: Value| json!({"backend": fields});
    let pod = |fields: Value| json!({"backend": {"pod": fields}});
    let redis = |fields: Value| json!({"redis": fields});
    let route = |fields: Value| json!({"loadBalancer": fields});
    let storage = |fields: Value| json!({"redis": {"storage": fields}});
    vec![
        case(
            "spec.redis.type None keeps tokens in one process's memory",
            json!({"instances": 1, "redis": {"type": "None"}}),
            json!({"instances": 2, "redis": {"type": "None"}}),
        ),
        case(
            "spec.autoscaling needs a Redis",
            json!({"autoscaling": {}, "redis": {"type": "Standalone"}}),
            json!({"autoscaling": {}, "redis": {"type": "None"}}),
        ),
        case(
            "spec.autoscaling.clientsPerInstance must not be above spec.backend.stream.maxClientsPerInstance",
            json!({"autoscaling": {"clientsPerInstance": 700}, "backend": {"stream": {"maxClientsPerInstance": 700}}}),
            json!({"autoscaling": {"clientsPerInstance": 701}, "backend": {"stream": {"maxClientsPerInstance": 700}}}),
        ),
        case(
            "spec.autoscaling.minInstances must not be above",
            autoscaling(json!({"minInstances": 4, "maxInstances": 4})),
            autoscaling(json!({"minInstances": 5, "maxInstances": 4})),
        ),
        case(
            "spec.autoscaling.minInstances must be at least 1",
            autoscaling(json!({"minInstances": 1})),
            autoscaling(json!({"minInstances": 0})),
        ),
        case(
            "spec.autoscaling.maxInstances must be at least 1",
            autoscaling(json!({"minInstances": 1, "maxInstances": 1})),
            autoscaling(json!({"minInstances": 1, "maxInstances": 0})),
        ),
        case(
            "spec.autoscaling.clientsPerInstance must be at least 1",
            autoscaling(json!({"clientsPerInstance": 1})),
            autoscaling(json!({"clientsPerInstance": 0})),
        ),
        case(
            "spec.autoscaling.issuancesPerSecondPerInstance must be at least 1",
            autoscaling(json!({"issuancesPerSecondPerInstance": 1})),
            autoscaling(json!({"issuancesPerSecondPerInstance": 0})),
        ),
        case(
            "spec.autoscaling.loadBalancerEfficiencyPercent must be 1 to 100",
            autoscaling(json!({"loadBalancerEfficiencyPercent": 100})),
            autoscaling(json!({"loadBalancerEfficiencyPercent": 101})),
        ),
        case(
            "spec.autoscaling.targetUtilizationPercent must be 1 to 100",
            autoscaling(json!({"targetUtilizationPercent": 1})),
            autoscaling(json!({"targetUtilizationPercent": 0})),
        ),
        case(
            "spec.backend.stream.resumeWindowSeconds must be at least drainSeconds",
            backend(json!({"stream": {"drainSeconds": 30, "resumeWindowSeconds": 30}})),
            backend(json!({"stream": {"drainSeconds": 30, "resumeWindowSeconds": 29}})),
        ),
        case(
            "spec.backend.allowedOrigins takes origins without a path",
            backend(json!({"allowedOrigins": ["https://app.example.com", "http://localhost:3000", "*"]})),
            backend(json!({"allowedOrigins": ["https://app.example.com/"]})),
        ),
        case(
            "spec.backend.trustedProxies takes CIDRs",
            backend(json!({"trustedProxies": ["10.0.0.0/8", "fd00::/8", "192.0.2.7/32"]})),
            backend(json!({"trustedProxies": ["192.0.2.7"]})),
        ),
        case(
            "spec.backend.pod.labels: keys under app.kubernetes.io/",
            pod(json!({"labels": {"team": "a"}})),
            pod(json!({"labels": {"app.kubernetes.io/instance": "other"}})),
        ),
        case(
            "spec.backend.pod.annotations: keys under vx11.io/",
            pod(json!({"annotations": {"example.com/vx11.io": "a"}})),
            pod(json!({"annotations": {"vx11.io/drain": "now"}})),
        ),
        case(
            "spec.loadBalancer.ingress needs type Ingress",
            route(json!({"type": "Ingress", "ingress": {"className": "contour"}})),
            route(json!({"type": "None", "ingress": {"className": "contour"}})),
        ),
        case(
            "spec.loadBalancer.host and tlsSecretName need a route",
            route(json!({"type": "Ingress", "host": "a.example.com", "tlsSecretName": "a"})),
            route(json!({"type": "None", "host": "a.example.com"})),
        ),
        case(
            "spec.loadBalancer.tlsSecretName needs spec.loadBalancer.host",
            route(json!({"tlsSecretName": "a", "host": "*.example.com"})),
            route(json!({"tlsSecretName": "a"})),
        ),
        case(
            "spec.redis.type None runs no Redis",
            redis(json!({"type": "None", "database": 3})),
            redis(json!({"type": "None", "persistence": false})),
        ),
        case(
            "spec.redis.storage needs persistence",
            redis(json!({"persistence": true, "storage": {"size": "2Gi"}})),
            redis(json!({"persistence": false, "storage": {"size": "2Gi"}})),
        ),
        change(
            "spec.redis.persistence cannot change",
            redis(json!({})),
            redis(json!({"persistence": true})),
            redis(json!({"persistence": false})),
        ),
        change(
            "spec.redis.storage.storageClassName cannot change",
            storage(json!({"storageClassName": "fast"})),
            storage(json!({"storageClassName": "fast", "size": "3Gi"})),
            storage(json!({"storageClassName": "slow"})),
        ),
        change(
            "spec.redis.storage.size cannot shrink",
            storage(json!({"size": "2Gi"})),
            storage(json!({"size": "2049Mi"})),
            storage(json!({"size": "2047Mi"})),
        ),
    ]
}

const NAME_RULE: &str = "metadata.name must be at most 40";

#[tokio::test]
async fn every_rule_lets_pass_and_refuses_with_its_message() {
    sandbox("rules", async |sandbox| {
        let mut messages = BTreeSet::new();
        walk("", root(&served(sandbox).await), &mut |_, schema| {
            for rule in schema.x_kubernetes_validations.iter().flatten() {
                messages.insert(rule.message.clone().unwrap());
            }
        });

        for (number, case) in cases().into_iter().enumerate() {
            let full: Vec<_> =
                messages.iter().filter(|message| message.starts_with(case.says)).cloned().collect();
            let [message] = full.as_slice() else {
                panic!("`{}` begins {} messages of the definition, not one: {full:?}", case.says, full.len())
            };
            let name = format!("rule-{number}");
            if let Some(mut before) = case.before {
                before["paused"] = json!(true);
                let created = judge(sandbox, &name, &before, false).await;
                created.unwrap_or_else(|refusal| panic!("{}: before: {refusal}", case.says));
            }
            let passed = judge(sandbox, &name, &case.passes, true).await;
            passed.unwrap_or_else(|refusal| panic!("{}: should pass: {refusal}", case.says));
            let refusal = judge(sandbox, &name, &case.refused, true)
                .await
                .expect_err(&format!("{}: {} passed", case.says, case.refused));
            assert!(refusal.contains(message.as_str()), "not refused with `{message}` but with: {refusal}");
            messages.remove(message);
        }

        let name = messages.iter().find(|message| message.starts_with(NAME_RULE)).cloned().unwrap();
        names_are_short_and_plain(sandbox, &name).await;
        messages.remove(&name);
        assert!(messages.is_empty(), "rules without a case in this table: {messages:#?}");
    })
    .await;
}

async fn names_are_short_and_plain(sandbox: &vx11_tests::harness::Sandbox, message: &str) {
    for name in ["a", "a1", "team-a-events", &"n".repeat(40)] {
        let verdict = judge(sandbox, name, &json!({}), true).await;
        verdict.unwrap_or_else(|refusal| panic!("{name}: {refusal}"));
    }
    for name in ["1a", "a.b", &"n".repeat(41)] {
        let refusal =
            judge(sandbox, name, &json!({}), true).await.expect_err(&format!("the name {name} passed"));
        assert!(refusal.contains(message), "{name}: {refusal}");
    }
}

/// The volume exists as its defaults say, also when the section does not.
#[tokio::test]
async fn the_section_of_the_volume_may_come_and_go_with_its_defaults_only() {
    const CLASS: &str = "spec.redis.storage.storageClassName cannot change";
    const SIZE: &str = "spec.redis.storage.size cannot shrink";
    sandbox("volume", async |sandbox| {
        let cases = [
            (json!({}), json!({"storage": {"size": "1Gi"}}), None),
            (json!({}), json!({"storage": {"size": "2Gi"}}), None),
            (json!({}), json!({"storage": {"size": "1023Mi"}}), Some(SIZE)),
            (json!({}), json!({"storage": {"storageClassName": "fast"}}), Some(CLASS)),
            (json!({"storage": {"size": "1Gi"}}), json!({}), None),
            (json!({"storage": {"size": "1025Mi"}}), json!({}), Some(SIZE)),
            (json!({"storage": {"storageClassName": "fast"}}), json!({}), Some(CLASS)),
            (
                json!({"persistence": false}),
                json!({"persistence": false, "image": "example.com/redis:8"}),
                None,
            ),
            // Nobody knows of a volume of a Redis that does not run.
            (json!({"type": "None"}), json!({"storage": {"storageClassName": "fast", "size": "1Mi"}}), None),
        ];
        for (number, (before, after, refused)) in cases.into_iter().enumerate() {
            let name = format!("volume-{number}");
            judge(sandbox, &name, &json!({"paused": true, "redis": before}), false).await.unwrap();
            let verdict = judge(sandbox, &name, &json!({"paused": true, "redis": after}), true).await;
            let told = verdict.err();
            let as_expected = match (&told, refused) {
                (None, None) => true,
                (Some(told), Some(refused)) => told.contains(refused),
                _ => false,
            };
            assert!(as_expected, "{before} -> {after}: {told:?} and not {refused:?}");
        }
    })
    .await;
}

/// What passes in the one direction and not in the other, beyond one pair a rule.
#[tokio::test]
async fn changes_that_are_safe_pass() {
    sandbox("changes", async |sandbox| {
        let before = json!({"paused": true, "redis": {"storage": {"size": "1Gi"}}});
        judge(sandbox, "safe", &before, false).await.unwrap();
        for spec in [
            json!({"redis": {"storage": {"size": "10Gi"}}}),
            json!({"redis": {"storage": {"size": "1024Mi"}}}),
            json!({"instances": 1, "redis": {"type": "None"}}),
            json!({"redis": {"storage": {"size": "1Gi"}, "image": "example.com/redis:8"}}),
        ] {
            let verdict = judge(sandbox, "safe", &spec, true).await;
            verdict.unwrap_or_else(|refusal| panic!("{spec}: {refusal}"));
        }
    })
    .await;
}
