//! What is refused, and in which words.

use rstest::rstest;

use super::*;
use crate::build::fixture::{defaults, object, referenced, simple_cluster};

#[test]
fn an_empty_spec_is_a_complete_cluster() {
    let cluster = validate(&object("{}"), &referenced(), &defaults()).unwrap();
    assert_eq!(cluster.instances.get(), 1);
    assert_eq!(cluster.backend.image, "example.com/backend:1");
    assert_eq!(cluster.redis.unwrap().max_memory, Some(201_326_592));
    assert!(cluster.route.is_some());
}

#[rstest]
#[case("{instances: 1001}", "InvalidSpec", "spec.instances")]
#[case("{instances: 2, redis: {type: None}}", "InvalidSpec", "spec.redis.type None")]
#[case("{redis: {storage: {size: 0Gi}}}", "InvalidSpec", "spec.redis.storage.size")]
#[case("{backend: {resources: {limits: {cpu: lots}}}}", "InvalidSpec", "spec.backend.resources")]
#[case(
    "{redis: {resources: {requests: {memory: 1Gi}, limits: {memory: 512Mi}}}}",
    "InvalidSpec",
    "above its limit"
)]
fn what_the_schema_cannot_see_is_refused_by_name(
    #[case] spec: &str,
    #[case] reason: &str,
    #[case] says: &str,
) {
    let error = validate(&object(spec), &referenced(), &defaults()).unwrap_err();
    assert_eq!(error.reason(), reason);
    assert!(error.to_string().contains(says), "{error}");
}

#[test]
fn a_missing_secret_is_named_with_its_field() {
    let mut referenced = referenced();
    referenced.redis_auth = SecretState::Missing;
    let object = object("{redis: {auth: {secretName: redis-pass}}}");
    let error = validate(&object, &referenced, &defaults()).unwrap_err();
    assert_eq!(error.reason(), "SecretMissing");
    assert!(error.to_string().contains("simple-namespace/redis-pass"), "{error}");
    assert!(error.to_string().contains("spec.redis.auth"), "{error}");
}

#[rstest]
#[case(&[("passwort", "x")], "SecretKeyMissing", "no key `password`")]
#[case(&[("password", "")], "SecretKeyMissing", "no key `password`")]
#[case(&[("password", "two words")], "SecretValueInvalid", "choose another password")]
fn an_unusable_password_is_named(#[case] values: &[(&str, &str)], #[case] reason: &str, #[case] says: &str) {
    let mut referenced = referenced();
    referenced.redis_auth = SecretState::Found(SecretFacts::of(values));
    let error = validate(&object("{}"), &referenced, &defaults()).unwrap_err();
    assert_eq!(error.reason(), reason);
    assert!(error.to_string().contains(says), "{error}");
    assert!(!error.to_string().contains("two words"), "{error}");
}

#[test]
fn principals_of_nobody_are_refused() {
    let mut referenced = referenced();
    referenced.principals = SecretState::Found(SecretFacts::of(&[("someone", "")]));
    let error = validate(&object("{}"), &referenced, &defaults()).unwrap_err();
    assert_eq!(error.reason(), "SecretValueInvalid");
}

#[test]
fn a_new_password_changes_the_fingerprint_and_a_new_principal_does_not_show() {
    let before = simple_cluster();
    let mut referenced = referenced();
    referenced.principals = SecretState::Found(SecretFacts::of(&[("principal", "rotated")]));
    referenced.signing_key =
        SecretState::Found(SecretFacts::of(&[("current", "rotated"), ("control-token", "rotated")]));
    let hot = validate(&object("instances: 3"), &referenced, &defaults()).unwrap();
    assert_eq!(before, hot);
    referenced.redis_auth = SecretState::Found(SecretFacts::of(&[("password", "rotated")]));
    let rolled = validate(&object("instances: 3"), &referenced, &defaults()).unwrap();
    assert_ne!(before, rolled);
}
