//! Reads what exists of a cluster, from the cache or, where that is behind, from the API server. Writes nothing.

use futures::{StreamExt, TryStreamExt, stream};

use crate::{
    cache::{ClusterKey, Freshness},
    client::ClientError,
    context::Context,
    facts::{self, DeploymentFacts, Facts, PodFacts},
    kinds::Kind,
    names,
};

/// Pods read at a time.
const READS: usize = 16;

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
    if !cache.sees(key, kind, name) {
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
    // After a rollout all of them are to be read again: not one after the other.
    let pods = stream::iter(context.cache.names(key, Kind::Pod))
        .map(|name| async move {
            let facts = facts(context, key, Kind::Pod, &name).await?;
            Ok::<_, ClientError>(facts.map(|facts| (name, facts)))
        })
        .buffered(READS)
        .try_collect::<Vec<_>>()
        .await?;
    let of_pod = |(name, facts)| match facts {
        Facts::Pod(facts) => Some((name, facts)),
        _ => None,
    };
    Ok(pods.into_iter().flatten().filter_map(of_pod).collect())
}
