//! Step 1 of a reconcile: read what the cluster refers to. Needs the client, writes nothing.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::api::networking::v1::IngressClass;
use vx11_crds::{
    VX11Cluster,
    spec::{LoadBalancerType, RedisType},
};

use crate::{
    cache::{ClusterKey, Freshness},
    client::ClientError,
    cluster::GeneratedData,
    context::Context,
    facts::{Facts, SecretFacts},
    kinds::Kind,
    names,
};

/// How often a Secret that the user made is read again.
///
/// A watch would tell at once, but a watch of the user's Secrets means either the right to list every
/// Secret, or one connection for every name; a read of a few names costs neither.
pub const REFERENCED_SECRET_AGE: Duration = Duration::from_secs(15);
/// Random bytes in a generated credential: 256 bits.
const CREDENTIAL_BYTES: usize = 32;

/// What a cluster refers to, as it is now.
#[derive(Clone, Debug, PartialEq)]
pub struct Referenced {
    /// Secret with the Redis password.
    pub redis_auth: SecretState,
    /// Secret with the principals.
    pub principals: SecretState,
    /// Secret with signing keys and control token.
    pub signing_key: SecretState,
    /// Whether the TLS Secret of the route exists; `None` when there is none to look for.
    pub tls_secret_exists: Option<bool>,
    /// The IngressClass of the route.
    pub class: ClassKnowledge,
}

impl Referenced {
    /// Secrets that the user made, which are only polled.
    pub fn polled(cluster: &VX11Cluster) -> impl Iterator<Item = &str> {
        let spec = &cluster.spec;
        let redis = spec.redis.auth.as_ref().map(|auth| auth.secret_name.as_str());
        let principals = spec.backend.principal_tokens.as_ref();
        let tls = spec.load_balancer.tls_secret_name.as_deref();
        redis.into_iter().chain(principals.map(|principals| principals.secret_name.as_str())).chain(tls)
    }
}

/// Has everything that is only polled read again at the next look.
pub fn doubt_polled(context: &Context, key: &ClusterKey, cluster: &VX11Cluster) {
    for name in Referenced::polled(cluster) {
        context.cache.doubt(key, Kind::Secret, name);
    }
}

/// A Secret that a cluster needs.
#[derive(Clone, Debug, PartialEq)]
pub enum SecretState {
    /// It exists.
    Found(SecretFacts),
    /// It is the user's, and does not exist.
    Missing,
    /// It is the controller's, and does not exist yet; these are its contents to be.
    Drawn(GeneratedData),
}

/// What is known of the class of an Ingress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClassKnowledge {
    /// The class exists.
    Served {
        /// Name of the class.
        name: String,
        /// Its `spec.controller`.
        controller: String,
    },
    /// No IngressClass has the name.
    Missing {
        /// The name.
        name: String,
    },
    /// The spec names none, and no class is the default.
    NoDefault,
    /// Nothing needs to be known, or this process may not list classes.
    Unknown,
}

/// Reads what the cluster refers to.
pub async fn dereference(
    context: &Context,
    key: &ClusterKey,
    cluster: &VX11Cluster,
) -> Result<Referenced, ClientError> {
    let spec = &cluster.spec;
    let redis_auth = match (&spec.redis.type_, &spec.redis.auth) {
        (RedisType::None, _) => SecretState::Missing,
        (RedisType::Standalone, Some(by_user)) => referenced(context, key, &by_user.secret_name).await?,
        (RedisType::Standalone, None) => {
            generated(context, key, &names::redis_auth(&key.name), &[names::PASSWORD_KEY]).await?
        }
    };
    let principals = match &spec.backend.principal_tokens {
        Some(by_user) => referenced(context, key, &by_user.secret_name).await?,
        None => generated(context, key, &names::principal_tokens(&key.name), &[names::PRINCIPAL_KEY]).await?,
    };
    let signing_key = generated(context, key, &names::signing_key(&key.name), &names::SIGNING_KEYS).await?;
    let tls_secret_exists = match &spec.load_balancer.tls_secret_name {
        Some(name) => Some(referenced(context, key, name).await? != SecretState::Missing),
        None => None,
    };
    let class = match spec.load_balancer.type_ {
        LoadBalancerType::None => ClassKnowledge::Unknown,
        LoadBalancerType::Ingress => {
            let wanted =
                spec.load_balancer.ingress.as_ref().and_then(|ingress| ingress.class_name.as_deref());
            match context.ingress_classes().await? {
                Some(classes) => find_class(wanted, &classes),
                None => ClassKnowledge::Unknown,
            }
        }
    };
    Ok(Referenced { redis_auth, principals, signing_key, tls_secret_exists, class })
}

async fn referenced(context: &Context, key: &ClusterKey, name: &str) -> Result<SecretState, ClientError> {
    let facts = read_secret(context, key, name, Freshness::Polled(REFERENCED_SECRET_AGE)).await?;
    Ok(facts.map_or(SecretState::Missing, SecretState::Found))
}

async fn generated(
    context: &Context,
    key: &ClusterKey,
    name: &str,
    keys: &[&str],
) -> Result<SecretState, ClientError> {
    let facts = read_secret(context, key, name, Freshness::Watched).await?;
    Ok(facts.map_or_else(|| SecretState::Drawn(draw(keys)), SecretState::Found))
}

async fn read_secret(
    context: &Context,
    key: &ClusterKey,
    name: &str,
    freshness: Freshness,
) -> Result<Option<SecretFacts>, ClientError> {
    if let Some(Facts::Secret(facts)) = context.cache.facts(key, Kind::Secret, name, freshness) {
        return Ok(Some(facts));
    }
    let Some(secret) = context.client.get(Kind::Secret, &key.namespace, name).await? else {
        return Ok(None);
    };
    let metadata = secret.metadata.clone();
    let facts = crate::facts::of(Kind::Secret, secret);
    context.cache.learn(key, Kind::Secret, &metadata, facts.clone(), None);
    Ok(match facts {
        Facts::Secret(facts) => Some(facts),
        _ => None,
    })
}

fn draw(keys: &[&str]) -> GeneratedData {
    let values: BTreeMap<String, String> =
        keys.iter().map(|key| ((*key).to_owned(), random_text())).collect();
    GeneratedData::new(values)
}

/// 256 random bits as base64url text without padding.
fn random_text() -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let bytes: [u8; CREDENTIAL_BYTES] = rand::random();
    let mut text = String::with_capacity(43);
    for chunk in bytes.chunks(3) {
        let mut group = [0_u8; 3];
        for (slot, byte) in group.iter_mut().zip(chunk) {
            *slot = *byte;
        }
        let [first, second, third] = group;
        let word = u32::from_be_bytes([0, first, second, third]);
        for position in 0..=chunk.len() {
            let index = (word >> (18 - 6 * position)) & 0x3f;
            if let Some(symbol) = usize::try_from(index).ok().and_then(|index| ALPHABET.get(index)) {
                text.push(char::from(*symbol));
            }
        }
    }
    text
}

fn find_class(wanted: Option<&str>, classes: &[IngressClass]) -> ClassKnowledge {
    let served = |class: &IngressClass| ClassKnowledge::Served {
        name: class.metadata.name.clone().unwrap_or_default(),
        controller: class.spec.as_ref().and_then(|spec| spec.controller.clone()).unwrap_or_default(),
    };
    match wanted {
        Some(name) => classes
            .iter()
            .find(|class| class.metadata.name.as_deref() == Some(name))
            .map_or_else(|| ClassKnowledge::Missing { name: name.to_owned() }, served),
        None => classes
            .iter()
            .find(|class| {
                class
                    .metadata
                    .annotations
                    .as_ref()
                    .and_then(|annotations| annotations.get("ingressclass.kubernetes.io/is-default-class"))
                    .is_some_and(|value| value == "true")
            })
            .map_or(ClassKnowledge::NoDefault, served),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn classes() -> Vec<IngressClass> {
        serde_json::from_value(json!([
            {"metadata": {"name": "plain"}, "spec": {"controller": "example.com/plain"}},
            {"metadata": {"name": "usual", "annotations": {"ingressclass.kubernetes.io/is-default-class": "true"}},
             "spec": {"controller": "example.com/usual"}},
        ]))
        .unwrap()
    }

    #[rstest]
    #[case(Some("plain"), Some("example.com/plain"))]
    #[case(None, Some("example.com/usual"))]
    #[case(Some("nobody"), None)]
    fn a_class_is_found_by_name_or_as_the_default(
        #[case] wanted: Option<&str>,
        #[case] expected: Option<&str>,
    ) {
        let controller = match find_class(wanted, &classes()) {
            ClassKnowledge::Served { controller, .. } => Some(controller),
            _ => None,
        };
        assert_eq!(controller.as_deref(), expected);
    }

    #[test]
    fn without_a_default_class_nothing_serves_an_unnamed_one() {
        assert_eq!(find_class(None, &[]), ClassKnowledge::NoDefault);
        assert_eq!(find_class(Some("x"), &[]), ClassKnowledge::Missing { name: "x".to_owned() });
    }

    #[test]
    fn credentials_are_43_characters_of_base64url_and_never_the_same() {
        let text = random_text();
        assert_eq!(text.len(), 43);
        assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')));
        assert_ne!(text, random_text());
    }
}
