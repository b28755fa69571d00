//! What the last pass over a cluster's objects came to. While nothing has changed since, neither the objects are built
//! nor compared: most looks are at clusters that need nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
};

use crate::{
    cache::{Agreements, Cache, ClusterKey},
    cluster::ValidatedCluster,
    kinds::Kind,
    scale::count::InstanceCount,
};

/// The last pass over each cluster that brought all of its objects to what was asked for.
#[derive(Default)]
pub struct Settlements(Mutex<BTreeMap<ClusterKey, Settlement>>);

/// What was asked for, and what fulfils it.
struct Settlement {
    cluster: ValidatedCluster,
    instances: InstanceCount,
    agreements: Agreements,
}

impl Settlements {
    /// Whether a pass for this would ask for what the last one asked for, and find it.
    #[must_use]
    pub fn hold(
        &self,
        cache: &Cache,
        key: &ClusterKey,
        cluster: &ValidatedCluster,
        instances: InstanceCount,
    ) -> bool {
        let settlements = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        settlements.get(key).is_some_and(|last| {
            last.instances == instances
                && last.cluster == *cluster
                && cache.still_agrees(key, &cluster.identity.uid, &last.agreements)
        })
    }

    /// A pass ended; `wanted` are its objects, unless one of them is not as it was asked for.
    pub fn learn(
        &self,
        cache: &Cache,
        key: &ClusterKey,
        cluster: &ValidatedCluster,
        instances: InstanceCount,
        wanted: Option<&BTreeSet<(Kind, String)>>,
    ) {
        let agreements = wanted.and_then(|wanted| cache.agreements(key, wanted));
        let mut settlements = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match agreements {
            Some(agreements) => settlements
                .insert(key.clone(), Settlement { cluster: cluster.clone(), instances, agreements }),
            None => settlements.remove(key),
        };
    }

    /// A cluster is gone.
    pub fn forget(&self, key: &ClusterKey) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
    use kube::api::ObjectMeta;

    use super::*;
    use crate::{build::fixture::simple_cluster, facts::Facts};

    const NAME: &str = "simple-cluster-backend";

    fn key() -> ClusterKey {
        ClusterKey { namespace: "simple-namespace".to_owned(), name: "simple-cluster".to_owned() }
    }

    fn service(name: &str, version: &str) -> ObjectMeta {
        ObjectMeta {
            name: Some(name.to_owned()),
            uid: Some(name.to_owned()),
            resource_version: Some(version.to_owned()),
            owner_references: Some(vec![OwnerReference {
                uid: "simple-uid".to_owned(),
                controller: Some(true),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        }
    }

    fn three() -> InstanceCount {
        InstanceCount::new(3).unwrap()
    }

    /// After a pass that asked for one Service.
    fn settled() -> (Settlements, Cache) {
        let (settlements, cache) = (Settlements::default(), Cache::default());
        cache.see(&key(), Kind::Service, &service(NAME, "1"));
        cache.learn(&key(), Kind::Service, &service(NAME, "1"), Facts::Plain, Some("wish".to_owned()));
        let wanted = BTreeSet::from([(Kind::Service, NAME.to_owned())]);
        settlements.learn(&cache, &key(), &simple_cluster(), three(), Some(&wanted));
        (settlements, cache)
    }

    fn hold(settlements: &Settlements, cache: &Cache) -> bool {
        settlements.hold(cache, &key(), &simple_cluster(), three())
    }

    #[test]
    fn nothing_is_asked_for_again_while_nothing_changes() {
        let (settlements, cache) = settled();
        assert!(hold(&settlements, &cache));
        settlements.forget(&key());
        assert!(!hold(&settlements, &cache));
    }

    #[test]
    fn another_spec_or_count_is_another_pass() {
        let (settlements, cache) = settled();
        let mut other = simple_cluster();
        other.backend.image = "example.com/backend:2".to_owned();
        assert!(!settlements.hold(&cache, &key(), &other, three()));
        assert!(!settlements.hold(&cache, &key(), &simple_cluster(), InstanceCount::new(2).unwrap()));
    }

    #[test]
    fn an_object_that_somebody_changed_or_deleted_needs_a_pass() {
        let (settlements, cache) = settled();
        cache.see(&key(), Kind::Service, &service(NAME, "2"));
        assert!(!hold(&settlements, &cache));
        let (settlements, cache) = settled();
        cache.lose(&key(), Kind::Service, &service(NAME, "1"));
        assert!(!hold(&settlements, &cache));
    }

    #[test]
    fn an_object_that_nobody_asks_for_needs_a_pass_unless_it_is_somebody_elses() {
        let (settlements, cache) = settled();
        let foreign = ObjectMeta { owner_references: None, ..service("foreign", "1") };
        cache.see(&key(), Kind::Service, &foreign);
        assert!(hold(&settlements, &cache));
        cache.see(&key(), Kind::Service, &service("orphan", "1"));
        assert!(!hold(&settlements, &cache));
    }

    #[test]
    fn a_pass_that_waits_or_fails_is_made_again() {
        let (settlements, cache) = settled();
        settlements.learn(&cache, &key(), &simple_cluster(), three(), None);
        assert!(!hold(&settlements, &cache));
    }
}
