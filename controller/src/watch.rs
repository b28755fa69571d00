//! Watches: every owned kind by label and metadata only, and the clusters themselves. A change becomes
//! knowledge in the cache and a request to reconcile.

use std::{collections::BTreeSet, sync::Arc};

use futures::{StreamExt, channel::mpsc::UnboundedSender, pin_mut};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Api, Client,
    api::{DynamicObject, PartialObjectMeta},
    core::DeserializeGuard,
    runtime::{
        WatchStreamExt,
        controller::ReconcileRequest,
        reflector::{ObjectRef, store::Writer},
        watcher::{self, Event, watcher},
    },
};
use vx11_crds::VX11Cluster;

use crate::{
    cache::ClusterKey,
    context::Context,
    kinds::Kind,
    names::{MANAGED_BY, MANAGED_BY_VALUE},
    readiness::Readiness,
};

/// Objects a list brings at a time, so that memory does not grow with the cluster when the watch starts.
const PAGE: u32 = 100;

/// Where requests to reconcile go.
pub type Requests = UnboundedSender<ReconcileRequest<VX11Cluster>>;

/// Which namespaces a controller looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All of them.
    All,
    /// These; not empty.
    Namespaces(Vec<String>),
}

impl Scope {
    /// From a list, where none means all.
    #[must_use]
    pub fn of(namespaces: &[String]) -> Self {
        let unique: BTreeSet<&str> = namespaces
            .iter()
            .map(|namespace| namespace.trim())
            .filter(|namespace| !namespace.is_empty())
            .collect();
        if unique.is_empty() {
            Self::All
        } else {
            Self::Namespaces(unique.into_iter().map(str::to_owned).collect())
        }
    }

    /// Each namespace by itself, or `None` for all at once.
    #[must_use]
    pub fn parts(&self) -> Vec<Option<&str>> {
        match self {
            Self::All => vec![None],
            Self::Namespaces(namespaces) => namespaces.iter().map(|name| Some(name.as_str())).collect(),
        }
    }
}

/// What a watch needs.
#[derive(Clone)]
pub struct Watch {
    /// The client of the watch; it only reads.
    pub client: Client,
    /// Where knowledge goes.
    pub context: Arc<Context>,
    /// Where requests go.
    pub requests: Requests,
    /// Told when the first list is complete.
    pub readiness: Readiness,
}

impl Watch {
    fn request(&self, cluster: &ClusterKey) {
        let reference = ObjectRef::<VX11Cluster>::new(&cluster.name).within(&cluster.namespace);
        // The receiver lives as long as the process leads; nobody waits for a request after that.
        let _ = self.requests.unbounded_send(reference.into());
    }

    fn failed(&self, kind: &'static str, error: &watcher::Error) {
        self.context.metrics.watch_failed(kind);
        tracing::warn!(kind, %error, "a watch broke; resuming it");
    }
}

/// Watches one owned kind in one namespace, or in all. Ends only with the process's leadership.
///
/// Metadata is enough: the label names the cluster, and the version tells whether the object must be read
/// again. No predicate filters events, so that no deletion can be swallowed; an event that changes nothing
/// costs a look into the cache.
pub async fn watch_kind(watch: Watch, kind: Kind, namespace: Option<String>) {
    let resource = kind.resource();
    let api: Api<PartialObjectMeta<DynamicObject>> = match &namespace {
        Some(namespace) => Api::namespaced_with(watch.client.clone(), namespace, &resource),
        None => Api::all_with(watch.client.clone(), &resource),
    };
    let config =
        watcher::Config::default().labels(&format!("{MANAGED_BY}={MANAGED_BY_VALUE}")).page_size(PAGE);
    let waiting = watch.readiness.await_list(kind.as_str(), namespace.as_deref());
    let events = watcher(api, config).default_backoff();
    pin_mut!(events);
    let mut listed = BTreeSet::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(object)) => {
                if let Some(cluster) = ClusterKey::of_child(&object.metadata) {
                    watch.context.cache.see(&cluster, kind, &object.metadata);
                    watch.request(&cluster);
                    listed.insert((cluster, object.metadata.name.unwrap_or_default()));
                }
            }
            Ok(Event::InitDone) => {
                let bereaved = watch.context.cache.retain(kind, namespace.as_deref(), &listed);
                for cluster in &bereaved {
                    watch.request(cluster);
                }
                listed.clear();
                waiting.done();
            }
            Ok(Event::Apply(object)) => {
                if let Some(cluster) = ClusterKey::of_child(&object.metadata) {
                    watch.context.cache.see(&cluster, kind, &object.metadata);
                    watch.request(&cluster);
                }
            }
            Ok(Event::Delete(object)) => {
                if let Some(cluster) = ClusterKey::of_child(&object.metadata) {
                    watch.context.cache.lose(&cluster, kind, &object.metadata);
                    watch.request(&cluster);
                }
            }
            Err(error) => watch.failed(kind.as_str(), &error),
        }
    }
}

/// Watches the clusters of one namespace, or of all, into the store. A cluster that does not parse is told
/// and left alone; the others go on.
pub async fn watch_clusters(watch: Watch, namespace: Option<String>, writer: SharedWriter) {
    let api: Api<DeserializeGuard<VX11Cluster>> = match &namespace {
        Some(namespace) => Api::namespaced(watch.client.clone(), namespace),
        None => Api::all(watch.client.clone()),
    };
    let waiting = watch.readiness.await_list("VX11Cluster", namespace.as_deref());
    let events = watcher(api, watcher::Config::default().page_size(PAGE)).default_backoff();
    pin_mut!(events);
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                let listed = matches!(event, Event::InitDone);
                take_cluster_event(&watch, &writer, namespace.as_deref(), event).await;
                if listed {
                    waiting.done();
                }
            }
            Err(error) => watch.failed("VX11Cluster", &error),
        }
    }
}

/// The store's only writer, fed by one watch for each namespace.
#[derive(Clone)]
pub struct SharedWriter {
    inner: Arc<std::sync::Mutex<WriterState>>,
}

struct WriterState {
    writer: Writer<VX11Cluster>,
    /// Clusters that the watch of each namespace is listing.
    listing: std::collections::BTreeMap<Option<String>, Vec<VX11Cluster>>,
    /// Namespaces whose first list is not complete.
    unlisted: BTreeSet<Option<String>>,
}

impl SharedWriter {
    /// A writer for the watches of these namespaces. The store is ready when all of them have listed.
    #[must_use]
    pub fn new(mut writer: Writer<VX11Cluster>, scope: &Scope) -> Self {
        writer.apply_watcher_event(&Event::Init);
        Self {
            inner: Arc::new(std::sync::Mutex::new(WriterState {
                writer,
                listing: std::collections::BTreeMap::new(),
                unlisted: scope.parts().into_iter().map(|part| part.map(str::to_owned)).collect(),
            })),
        }
    }

    /// Removes a cluster that can no longer be read, if it was read before.
    fn remove(&self, metadata: &ObjectMeta) {
        let (Some(name), Some(namespace)) = (&metadata.name, &metadata.namespace) else {
            return;
        };
        let mut state = self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let reference = ObjectRef::<VX11Cluster>::new(name).within(namespace);
        if let Some(cluster) = state.writer.as_reader().get(&reference) {
            state.writer.apply_watcher_event(&Event::Delete(cluster.as_ref().clone()));
        }
    }

    /// Takes an event of one namespace's watch. Returns the clusters that are gone.
    fn take(&self, namespace: Option<&str>, event: Event<VX11Cluster>) -> Vec<VX11Cluster> {
        let mut state = self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let state = &mut *state;
        let part = namespace.map(str::to_owned);
        match event {
            Event::Init => {
                state.listing.insert(part, Vec::new());
                Vec::new()
            }
            Event::InitApply(cluster) => {
                state.listing.entry(part).or_default().push(cluster);
                Vec::new()
            }
            Event::InitDone => {
                let listed = state.listing.remove(&part).unwrap_or_default();
                let was_first = !state.unlisted.is_empty();
                state.unlisted.remove(&part);
                if was_first {
                    for cluster in listed {
                        state.writer.apply_watcher_event(&Event::InitApply(cluster));
                    }
                    if state.unlisted.is_empty() {
                        state.writer.apply_watcher_event(&Event::InitDone);
                    }
                    return Vec::new();
                }
                let names: BTreeSet<_> =
                    listed.iter().map(ObjectRef::from_obj).map(|r| r.to_string()).collect();
                let gone: Vec<VX11Cluster> = state
                    .writer
                    .as_reader()
                    .state()
                    .into_iter()
                    .filter(|cluster| {
                        namespace.is_none_or(|name| cluster.metadata.namespace.as_deref() == Some(name))
                    })
                    .filter(|cluster| !names.contains(&ObjectRef::from_obj(cluster.as_ref()).to_string()))
                    .map(|cluster| cluster.as_ref().clone())
                    .collect();
                for cluster in listed {
                    state.writer.apply_watcher_event(&Event::Apply(cluster));
                }
                for cluster in &gone {
                    state.writer.apply_watcher_event(&Event::Delete(cluster.clone()));
                }
                gone
            }
            Event::Apply(cluster) => {
                state.writer.apply_watcher_event(&Event::Apply(cluster));
                Vec::new()
            }
            Event::Delete(cluster) => {
                state.writer.apply_watcher_event(&Event::Delete(cluster.clone()));
                vec![cluster]
            }
        }
    }
}

async fn take_cluster_event(
    watch: &Watch,
    writer: &SharedWriter,
    namespace: Option<&str>,
    event: Event<DeserializeGuard<VX11Cluster>>,
) {
    let (event, key) = match event {
        Event::Apply(DeserializeGuard(Err(invalid))) | Event::InitApply(DeserializeGuard(Err(invalid))) => {
            // What was read of it before is no longer what it says.
            writer.remove(&invalid.metadata);
            return crate::invalid::tell(&watch.context, &watch.client, &invalid).await;
        }
        Event::Delete(DeserializeGuard(Err(invalid))) => return writer.remove(&invalid.metadata),
        Event::Init => (Event::Init, None),
        Event::InitDone => (Event::InitDone, None),
        Event::InitApply(DeserializeGuard(Ok(cluster))) => {
            let key = ClusterKey::of(&cluster);
            (Event::InitApply(slim(cluster)), Some(key))
        }
        Event::Apply(DeserializeGuard(Ok(cluster))) => {
            let key = ClusterKey::of(&cluster);
            (Event::Apply(slim(cluster)), Some(key))
        }
        Event::Delete(DeserializeGuard(Ok(cluster))) => (Event::Delete(cluster), None),
    };
    for gone in writer.take(namespace, event) {
        watch.context.forget(&ClusterKey::of(&gone));
    }
    if let Some(key) = key {
        watch.request(&key);
    }
    let clusters = watch.context.store.state();
    let is_ready = |cluster: &&Arc<VX11Cluster>| {
        cluster
            .status
            .iter()
            .flat_map(|status| &status.conditions)
            .any(|condition| condition.type_ == "Ready" && condition.status == "True")
    };
    watch.context.metrics.set_clusters(clusters.len(), clusters.iter().filter(is_ready).count());
}

/// Without what nobody reads and what is often the bigger half.
fn slim(mut cluster: VX11Cluster) -> VX11Cluster {
    cluster.metadata.managed_fields = None;
    if let Some(annotations) = &mut cluster.metadata.annotations {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
    cluster
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(&[], None)]
    #[case(&["", " "], None)]
    #[case(&["b", "a", "b "], Some(vec!["a", "b"]))]
    fn no_namespace_means_all(#[case] given: &[&str], #[case] expected: Option<Vec<&str>>) {
        let given: Vec<String> = given.iter().map(|name| (*name).to_owned()).collect();
        let expected = expected
            .map_or(Scope::All, |names| Scope::Namespaces(names.into_iter().map(str::to_owned).collect()));
        assert_eq!(Scope::of(&given), expected);
    }

    fn cluster(namespace: &str, name: &str) -> VX11Cluster {
        let mut cluster = VX11Cluster::new(name, serde_json::from_str("{}").unwrap());
        cluster.metadata.namespace = Some(namespace.to_owned());
        cluster
    }

    #[test]
    fn the_store_holds_every_namespace_and_drops_what_a_new_list_lacks() {
        let (store, writer) = kube::runtime::reflector::store();
        let scope = Scope::of(&["a".to_owned(), "b".to_owned()]);
        let shared = SharedWriter::new(writer, &scope);
        let list = |namespace: &str, names: &[&str]| {
            shared.take(Some(namespace), Event::Init);
            for name in names {
                shared.take(Some(namespace), Event::InitApply(cluster(namespace, name)));
            }
            shared.take(Some(namespace), Event::InitDone)
        };
        list("a", &["one", "two"]);
        assert_eq!(store.len(), 0, "namespace b has not listed yet");
        list("b", &["one"]);
        assert_eq!(store.len(), 3);
        let gone = list("a", &["two"]);
        assert_eq!(gone.len(), 1);
        assert_eq!(store.len(), 2);
        assert_eq!(shared.take(Some("b"), Event::Delete(cluster("b", "one"))).len(), 1);
        assert_eq!(store.len(), 1);
        shared.remove(&cluster("a", "two").metadata);
        assert!(store.is_empty(), "what can no longer be read is no longer reconciled");
    }
}
