//! What the controller knows of the objects of every cluster: what the watches saw, and what a read or a
//! write told. An object is read again only when the watch has seen a version that is not the known one.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use kube::Resource;
use vx11_crds::VX11Cluster;

use crate::{facts::Facts, kinds::Kind, leader::REQUEST_DEADLINE, names};

/// Namespace and name of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterKey {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl ClusterKey {
    /// The coordinates of a cluster.
    #[must_use]
    pub fn of(cluster: &VX11Cluster) -> Self {
        Self {
            namespace: cluster.metadata.namespace.clone().unwrap_or_default(),
            name: cluster.metadata.name.clone().unwrap_or_default(),
        }
    }

    /// The cluster that an object belongs to: its owner, which nobody edits by accident, or else by its label
    /// (a pod is owned by what the cluster owns).
    #[must_use]
    pub fn of_child(metadata: &ObjectMeta) -> Option<Self> {
        let owner = metadata.owner_references.iter().flatten().find(|owner| {
            owner.controller == Some(true)
                && owner.kind == VX11Cluster::kind(&())
                && owner.api_version == VX11Cluster::api_version(&())
        });
        let name = match owner {
            Some(owner) => &owner.name,
            None => metadata.labels.as_ref()?.get(names::INSTANCE)?,
        };
        Some(Self { namespace: metadata.namespace.clone()?, name: name.clone() })
    }
}

/// How knowledge of an object stays true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// A watch tells of every change.
    Watched,
    /// Nobody tells: read again after this time.
    Polled(Duration),
}

/// Objects of a cluster, and the wish that each was found to fulfil.
pub type Agreements = BTreeMap<(Kind, String), String>;

#[derive(Debug)]
struct Seen {
    uid: String,
    version: String,
    owner_uid: Option<String>,
}

#[derive(Debug)]
struct Known {
    uid: String,
    version: String,
    /// What the watch had seen when this was learnt. As long as it sees nothing newer, it is behind us.
    behind: Option<String>,
    /// Fingerprint of the wish that this version was found to fulfil.
    agreed: Option<String>,
    facts: Facts,
    at: Instant,
}

#[derive(Debug, Default)]
struct Entry {
    seen: Option<Seen>,
    known: Option<Known>,
}

impl Entry {
    fn current(&self, freshness: Freshness) -> Option<&Known> {
        let known = self.known.as_ref()?;
        let is_current = match freshness {
            Freshness::Polled(age) => known.at.elapsed() < age,
            Freshness::Watched => match &self.seen {
                Some(seen) => {
                    seen.uid == known.uid && seen.version == known.version
                        || known.behind.as_deref() == Some(&seen.version)
                }
                None => known.behind.is_none(),
            },
        };
        is_current.then_some(known)
    }

    /// Fingerprint of the wish that the object is known to fulfil.
    fn agreed(&self) -> Option<&str> {
        self.current(Freshness::Watched)?.agreed.as_deref()
    }

    /// Uid of an object that a watch sees and that goes when this owner no longer asks for it.
    fn removable(&self, kind: Kind, owner: &str) -> Option<&str> {
        let seen = self.seen.as_ref()?;
        (kind.is_removable() && seen.owner_uid.as_deref() == Some(owner)).then_some(&seen.uid)
    }
}

type Entries = BTreeMap<(Kind, String), Entry>;

/// How long the end of an object is remembered: longer than any answer about it can be on its way.
const REMEMBERED: Duration = REQUEST_DEADLINE.saturating_mul(2);

#[derive(Debug, Default)]
struct Knowledge {
    clusters: BTreeMap<ClusterKey, Entries>,
    /// Uids of objects that a watch saw go, oldest first. The answer of a read that was sent before may
    /// arrive after; a uid never comes back, so that it is known for what it is.
    gone: VecDeque<(Instant, String)>,
}

impl Knowledge {
    fn bury(&mut self, uid: String) {
        while self.gone.front().is_some_and(|(at, _)| at.elapsed() > REMEMBERED) {
            self.gone.pop_front();
        }
        self.gone.push_back((Instant::now(), uid));
    }
}

/// The knowledge of all clusters; shared, and locked for moments only.
#[derive(Debug, Default)]
pub struct Cache {
    knowledge: Mutex<Knowledge>,
}

impl Cache {
    fn lock(&self) -> MutexGuard<'_, Knowledge> {
        // A panic elsewhere leaves plain data that is at worst stale, and a stale entry is read again.
        self.knowledge.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A watch saw this version of an object.
    pub fn see(&self, cluster: &ClusterKey, kind: Kind, metadata: &ObjectMeta) {
        let (Some(name), Some(uid), Some(version)) =
            (&metadata.name, &metadata.uid, &metadata.resource_version)
        else {
            return;
        };
        let owner_uid = metadata
            .owner_references
            .iter()
            .flatten()
            .find(|owner| owner.controller == Some(true))
            .map(|owner| owner.uid.clone());
        let mut knowledge = self.lock();
        // An object that lost the label leaves the watch as if it were deleted, and returns with the label.
        knowledge.gone.retain(|(_, gone)| gone != uid);
        let entry =
            knowledge.clusters.entry(cluster.clone()).or_default().entry((kind, name.clone())).or_default();
        entry.seen = Some(Seen { uid: uid.clone(), version: version.clone(), owner_uid });
    }

    /// A watch saw an object go.
    pub fn lose(&self, cluster: &ClusterKey, kind: Kind, metadata: &ObjectMeta) {
        let Some(name) = &metadata.name else { return };
        let mut knowledge = self.lock();
        knowledge.bury(metadata.uid.clone().unwrap_or_default());
        let Some(entries) = knowledge.clusters.get_mut(cluster) else {
            return;
        };
        let key = (kind, name.clone());
        if let Some(entry) = entries.get_mut(&key) {
            entry.seen = None;
            // The successor may be known before the watch tells of the predecessor's end.
            let is_gone = |known: &Known| Some(&known.uid) == metadata.uid.as_ref();
            if entry.known.as_ref().is_none_or(is_gone) {
                entries.remove(&key);
            }
        }
        if entries.is_empty() {
            knowledge.clusters.remove(cluster);
        }
    }

    /// A watch has listed everything again: what it did not list is gone. Returns the clusters that lost
    /// something.
    pub fn retain(
        &self,
        kind: Kind,
        namespace: Option<&str>,
        listed: &BTreeSet<(ClusterKey, String)>,
    ) -> BTreeSet<ClusterKey> {
        let (mut bereaved, mut gone) = (BTreeSet::new(), Vec::new());
        let mut knowledge = self.lock();
        for (cluster, entries) in &mut knowledge.clusters {
            if namespace.is_some_and(|namespace| namespace != cluster.namespace) {
                continue;
            }
            entries.retain(|(entry_kind, name), entry| {
                let Some(seen) = entry.seen.as_ref().filter(|_| *entry_kind == kind) else { return true };
                if listed.contains(&(cluster.clone(), name.clone())) {
                    return true;
                }
                gone.push(seen.uid.clone());
                bereaved.insert(cluster.clone());
                false
            });
        }
        for uid in gone {
            knowledge.bury(uid);
        }
        knowledge.clusters.retain(|_, entries| !entries.is_empty());
        bereaved
    }

    /// What is known of an object, if it is still true.
    #[must_use]
    pub fn facts(&self, cluster: &ClusterKey, kind: Kind, name: &str, freshness: Freshness) -> Option<Facts> {
        let knowledge = self.lock();
        let entry = knowledge.clusters.get(cluster)?.get(&(kind, name.to_owned()))?;
        Some(entry.current(freshness)?.facts.clone())
    }

    /// Whether the object is known to be as this wish says.
    #[must_use]
    pub fn agrees(&self, cluster: &ClusterKey, kind: Kind, name: &str, wish: &str) -> bool {
        let knowledge = self.lock();
        knowledge
            .clusters
            .get(cluster)
            .and_then(|entries| entries.get(&(kind, name.to_owned())))
            .is_some_and(|entry| entry.agreed() == Some(wish))
    }

    /// The wishes that these objects fulfil; `None` when one of them is not known to.
    #[must_use]
    pub fn agreements(&self, cluster: &ClusterKey, wanted: &BTreeSet<(Kind, String)>) -> Option<Agreements> {
        let knowledge = self.lock();
        let entries = knowledge.clusters.get(cluster)?;
        wanted
            .iter()
            .map(|object| Some((object.clone(), entries.get(object)?.agreed()?.to_owned())))
            .collect()
    }

    /// Whether every object still fulfils its wish and this owner has no other that would be removed.
    #[must_use]
    pub fn still_agrees(&self, cluster: &ClusterKey, owner: &str, agreements: &Agreements) -> bool {
        let knowledge = self.lock();
        let Some(entries) = knowledge.clusters.get(cluster) else { return false };
        agreements.iter().all(|(object, wish)| {
            entries.get(object).is_some_and(|entry| entry.agreed() == Some(wish.as_str()))
        }) && entries.iter().all(|(object, entry)| {
            entry.removable(object.0, owner).is_none() || agreements.contains_key(object)
        })
    }

    /// Kind, name and uid of each object of this owner that would be removed, as nobody asks for it.
    #[must_use]
    pub fn orphans(
        &self,
        cluster: &ClusterKey,
        owner: &str,
        wanted: &BTreeSet<(Kind, String)>,
    ) -> Vec<(Kind, String, String)> {
        self.lock()
            .clusters
            .get(cluster)
            .into_iter()
            .flatten()
            .filter(|(object, _)| !wanted.contains(object))
            .filter_map(|((kind, name), entry)| {
                Some((*kind, name.clone(), entry.removable(*kind, owner)?.to_owned()))
            })
            .collect()
    }

    /// A read or a write told of this version of an object; `agreed` is the wish it fulfils, when that was
    /// looked at.
    pub fn learn(
        &self,
        cluster: &ClusterKey,
        kind: Kind,
        metadata: &ObjectMeta,
        facts: Facts,
        agreed: Option<String>,
    ) {
        let (Some(name), Some(uid), Some(version)) =
            (&metadata.name, &metadata.uid, &metadata.resource_version)
        else {
            return;
        };
        let mut knowledge = self.lock();
        if knowledge.gone.iter().any(|(_, gone)| gone == uid) {
            return;
        }
        let entry =
            knowledge.clusters.entry(cluster.clone()).or_default().entry((kind, name.clone())).or_default();
        let agreed = agreed.or_else(|| {
            entry
                .known
                .take()
                .filter(|known| known.uid == *uid && known.version == *version)
                .and_then(|known| known.agreed)
        });
        entry.known = Some(Known {
            uid: uid.clone(),
            version: version.clone(),
            behind: entry
                .seen
                .as_ref()
                .filter(|seen| is_older(&seen.version, version))
                .map(|seen| seen.version.clone()),
            agreed,
            facts,
            at: Instant::now(),
        });
    }

    /// Drops what is known of an object, so that it is read again.
    pub fn doubt(&self, cluster: &ClusterKey, kind: Kind, name: &str) {
        let mut knowledge = self.lock();
        if let Some(entries) = knowledge.clusters.get_mut(cluster) {
            let key = (kind, name.to_owned());
            if let Some(entry) = entries.get_mut(&key) {
                entry.known = None;
                if entry.seen.is_none() {
                    entries.remove(&key);
                }
            }
        }
    }

    /// Whether a watch sees the object.
    #[must_use]
    pub fn sees(&self, cluster: &ClusterKey, kind: Kind, name: &str) -> bool {
        let knowledge = self.lock();
        let entry = knowledge.clusters.get(cluster).and_then(|entries| entries.get(&(kind, name.to_owned())));
        entry.is_some_and(|entry| entry.seen.is_some())
    }

    /// Names of a cluster's objects of a kind that the watches see.
    #[must_use]
    pub fn names(&self, cluster: &ClusterKey, kind: Kind) -> Vec<String> {
        self.lock()
            .clusters
            .get(cluster)
            .into_iter()
            .flatten()
            .filter(|((of, _), entry)| *of == kind && entry.seen.is_some())
            .map(|((_, name), _)| name.clone())
            .collect()
    }

    /// Forgets what reads and writes told of a cluster that is gone. What the watches see of it goes when
    /// its objects do.
    pub fn forget(&self, cluster: &ClusterKey) {
        let mut knowledge = self.lock();
        if let Some(entries) = knowledge.clusters.get_mut(cluster) {
            entries.retain(|_, entry| {
                entry.known = None;
                entry.seen.is_some()
            });
            if entries.is_empty() {
                knowledge.clusters.remove(cluster);
            }
        }
    }
}

/// Whether one version of an object is older than another. Versions count up, as Kubernetes documents since
/// 1.35; where one is no number, nothing is taken for older, and the object is read again.
fn is_older(version: &str, than: &str) -> bool {
    let number = |text: &str| text.parse::<u128>().ok();
    number(version).zip(number(than)).is_some_and(|(version, than)| version < than)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

    use super::*;

    const KIND: Kind = Kind::Service;

    fn key() -> ClusterKey {
        ClusterKey { namespace: "simple-namespace".to_owned(), name: "simple-cluster".to_owned() }
    }

    fn version(uid: &str, version: &str) -> ObjectMeta {
        ObjectMeta {
            name: Some("object".to_owned()),
            uid: Some(uid.to_owned()),
            resource_version: Some(version.to_owned()),
            ..ObjectMeta::default()
        }
    }

    fn agrees(cache: &Cache) -> bool {
        cache.agrees(&key(), KIND, "object", "wish")
    }

    fn learn(cache: &Cache, metadata: &ObjectMeta) {
        cache.learn(&key(), KIND, metadata, Facts::Plain, Some("wish".to_owned()));
    }

    #[test]
    fn a_version_that_the_watch_confirms_is_not_read_again() {
        let cache = Cache::default();
        cache.see(&key(), KIND, &version("a", "1"));
        assert!(!agrees(&cache), "nothing was compared yet");
        learn(&cache, &version("a", "1"));
        assert!(agrees(&cache));
        assert!(!cache.agrees(&key(), KIND, "object", "another wish"));
    }

    #[test]
    fn a_write_is_known_before_the_watch_tells_of_it() {
        let cache = Cache::default();
        cache.see(&key(), KIND, &version("a", "1"));
        learn(&cache, &version("a", "2"));
        assert!(agrees(&cache), "the watch is merely behind");
        cache.see(&key(), KIND, &version("a", "2"));
        assert!(agrees(&cache));
        cache.see(&key(), KIND, &version("a", "3"));
        assert!(!agrees(&cache), "somebody changed it");
    }

    #[test]
    fn news_that_overtakes_the_answer_of_a_read_is_read_again() {
        let cache = Cache::default();
        cache.see(&key(), KIND, &version("a", "11"));
        learn(&cache, &version("a", "9"));
        assert!(!agrees(&cache), "the answer is older than what the watch has seen");
        learn(&cache, &version("a", "11"));
        assert!(agrees(&cache));
    }

    #[test]
    fn a_deleted_object_is_not_known_and_its_successor_is() {
        let cache = Cache::default();
        cache.see(&key(), KIND, &version("a", "1"));
        learn(&cache, &version("a", "1"));
        cache.lose(&key(), KIND, &version("a", "2"));
        assert!(!agrees(&cache));
        learn(&cache, &version("b", "3"));
        cache.lose(&key(), KIND, &version("a", "2"));
        assert!(agrees(&cache), "the late news of the predecessor changes nothing");
    }

    #[test]
    fn an_answer_that_the_deletion_overtook_brings_nothing_back() {
        let cache = Cache::default();
        cache.see(&key(), KIND, &version("a", "1"));
        cache.lose(&key(), KIND, &version("a", "2"));
        learn(&cache, &version("a", "1"));
        assert!(!agrees(&cache), "it is gone");
        learn(&cache, &version("b", "3"));
        assert!(agrees(&cache), "its successor is another object");

        cache.see(&key(), KIND, &version("b", "3"));
        cache.retain(KIND, None, &BTreeSet::new());
        learn(&cache, &version("b", "3"));
        assert!(!agrees(&cache), "a new list did not name it");
    }

    #[test]
    fn an_object_that_gets_its_label_back_is_known_again() {
        let cache = Cache::default();
        cache.see(&key(), KIND, &version("a", "1"));
        cache.lose(&key(), KIND, &version("a", "2"));
        cache.see(&key(), KIND, &version("a", "3"));
        learn(&cache, &version("a", "3"));
        assert!(agrees(&cache));
    }

    #[test]
    fn an_object_belongs_to_its_owner_and_else_to_the_cluster_of_its_label() {
        let labels = Some([(names::INSTANCE.to_owned(), "edited".to_owned())].into());
        let metadata =
            ObjectMeta { namespace: Some("simple-namespace".to_owned()), labels, ..ObjectMeta::default() };
        assert_eq!(ClusterKey::of_child(&metadata).unwrap().name, "edited");
        let owner = OwnerReference {
            api_version: "vx11.io/v1alpha1".to_owned(),
            kind: "VX11Cluster".to_owned(),
            name: "simple-cluster".to_owned(),
            controller: Some(true),
            ..OwnerReference::default()
        };
        let metadata = ObjectMeta { owner_references: Some(vec![owner]), ..metadata };
        assert_eq!(ClusterKey::of_child(&metadata), Some(key()));
    }

    #[test]
    fn a_new_list_removes_what_it_does_not_name() {
        let cache = Cache::default();
        cache.see(&key(), KIND, &version("a", "1"));
        let elsewhere = cache.retain(KIND, Some("other"), &BTreeSet::new());
        assert!(elsewhere.is_empty());
        let kept = cache.retain(KIND, None, &BTreeSet::from([(key(), "object".to_owned())]));
        assert!(kept.is_empty());
        let bereaved = cache.retain(KIND, Some("simple-namespace"), &BTreeSet::new());
        assert_eq!(bereaved, BTreeSet::from([key()]));
        assert!(cache.names(&key(), KIND).is_empty());
    }

    #[test]
    fn polled_knowledge_ages() {
        let cache = Cache::default();
        learn(&cache, &version("a", "1"));
        let read = |age| cache.facts(&key(), KIND, "object", Freshness::Polled(age));
        assert_eq!(read(Duration::from_mins(1)), Some(Facts::Plain));
        assert_eq!(read(Duration::ZERO), None);
    }

    #[test]
    fn a_read_without_a_comparison_keeps_the_agreement_of_the_same_version() {
        let cache = Cache::default();
        learn(&cache, &version("a", "1"));
        cache.learn(&key(), KIND, &version("a", "1"), Facts::Plain, None);
        assert!(agrees(&cache));
        cache.learn(&key(), KIND, &version("a", "2"), Facts::Plain, None);
        assert!(!agrees(&cache));
    }
}
