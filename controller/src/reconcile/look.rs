//! Reads what exists of a cluster, from the cache or, where that is behind, from the API server. Writes nothing.

use crate::{
    cache::{ClusterKey, Freshness},
    client::ClientError,
    context::Context,
    facts::{self, DeploymentFacts, Facts, PodFacts},
    kinds::Kind,
    names,
};

/// One object of a cluster; `None` when it does not exist.
pub async fn facts(
    context: &Context,
    key: &ClusterKey,
    kind: Kind,
    name: &str,
) -> Result<Option<Facts>, ClientError> {
    let cache = &context.cache;
    if let Some(facts) = cache.facts(key, kind, name, Freshness::Watched) {
        return Ok(Some(facts));
    }
    // What no watch has seen and no write has made is not there.
    if !cache.children(key).iter().any(|child| child.kind == kind && child.name == name) {
        return Ok(None);
    }
    let Some(object) = context.client.get(kind, &key.namespace, name).await? else {
        return Ok(None);
    };
    let metadata = object.metadata.clone();
    let facts = facts::of(kind, object);
    cache.learn(key, kind, &metadata, facts.clone(), None);
    Ok(Some(facts))
}

/// The Deployment of the instances.
pub async fn deployment(context: &Context, key: &ClusterKey) -> Result<Option<DeploymentFacts>, ClientError> {
    Ok(match facts(context, key, Kind::Deployment, &names::backend(&key.name)).await? {
        Some(Facts::Deployment(facts)) => Some(facts),
        _ => None,
    })
}

/// Every pod of a cluster, in the order of their names.
pub async fn pods(context: &Context, key: &ClusterKey) -> Result<Vec<(String, PodFacts)>, ClientError> {
    let mut pods = Vec::new();
    for child in context.cache.children(key) {
        if child.kind == Kind::Pod
            && let Some(Facts::Pod(facts)) = facts(context, key, Kind::Pod, &child.name).await?
        {
            pods.push((child.name, facts));
        }
    }
    Ok(pods)
}
