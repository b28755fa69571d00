//! What every reconcile shares: the client, the knowledge, the clock's memory. No decisions.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::api::{networking::v1::IngressClass, storage::v1::StorageClass};
use kube::runtime::reflector::Store;
use vx11_crds::{VX11Cluster, VX11ClusterStatus};

use crate::{
    admin_ports::AdminPorts,
    cache::{Cache, ClusterKey},
    client::{ClientError, LeaderClient, Warning},
    cluster::Defaults,
    scale::memory::Memories,
    settled::Settlements,
    telemetry::Metrics,
};

/// First pause after a failure; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
/// How long a list of classes is believed. They change about never, and all clusters share it.
const CLASSES_AGE: Duration = Duration::from_secs(10);
/// How long a warning is believed: the API server searches all events of a namespace for it.
const WARNING_AGE: Duration = Duration::from_mins(1);

/// What every reconcile shares.
pub struct Context {
    /// The way to the API server.
    pub client: LeaderClient,
    /// The way to the instances.
    pub admin_ports: AdminPorts,
    /// The clusters.
    pub store: Store<VX11Cluster>,
    /// Their objects.
    pub cache: Arc<Cache>,
    /// Metric families.
    pub metrics: Arc<Metrics>,
    /// What a spec leaves open.
    pub defaults: Defaults,
    /// What the scaling remembers.
    pub memories: Memories,
    /// What needs no pass over its objects.
    pub settlements: Settlements,
    ingress_classes: Aged<Option<Arc<Vec<IngressClass>>>>,
    storage_classes: Aged<Option<Arc<Vec<StorageClass>>>>,
    /// By the uid of the object that each is about.
    warnings: Mutex<BTreeMap<String, (Instant, Warning)>>,
    failures: Mutex<BTreeMap<ClusterKey, u32>>,
    statuses: Mutex<BTreeMap<ClusterKey, WrittenStatus>>,
}

/// A status that was written and may not have come back by the watch yet.
struct WrittenStatus {
    uid: String,
    /// Version of the cluster that the watch had delivered when it was written.
    behind: String,
    status: VX11ClusterStatus,
}

impl Context {
    /// A context that knows nothing yet.
    #[must_use]
    pub fn new(
        client: LeaderClient,
        store: Store<VX11Cluster>,
        cache: Arc<Cache>,
        metrics: Arc<Metrics>,
        defaults: Defaults,
    ) -> Self {
        Self {
            client,
            admin_ports: AdminPorts::default(),
            store,
            cache,
            metrics,
            defaults,
            memories: Memories::default(),
            settlements: Settlements::default(),
            ingress_classes: Aged::default(),
            storage_classes: Aged::default(),
            warnings: Mutex::default(),
            failures: Mutex::default(),
            statuses: Mutex::default(),
        }
    }

    /// The IngressClasses, or `None` when this process may not list them.
    pub async fn ingress_classes(&self) -> Result<Option<Arc<Vec<IngressClass>>>, ClientError> {
        if let Some(classes) = self.ingress_classes.get() {
            return Ok(classes);
        }
        let classes = self.client.list_all().await?.map(Arc::new);
        self.ingress_classes.set(classes.clone());
        Ok(classes)
    }

    /// The StorageClasses, or `None` when this process may not list them.
    pub async fn storage_classes(&self) -> Result<Option<Arc<Vec<StorageClass>>>, ClientError> {
        if let Some(classes) = self.storage_classes.get() {
            return Ok(classes);
        }
        let classes = self.client.list_all().await?.map(Arc::new);
        self.storage_classes.set(classes.clone());
        Ok(classes)
    }

    /// The latest warning about an object that does not run.
    pub async fn latest_warning(&self, namespace: &str, uid: &str) -> Result<Option<Warning>, ClientError> {
        {
            let mut warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
            warnings.retain(|_, (at, _)| at.elapsed() < WARNING_AGE);
            if let Some((_, warning)) = warnings.get(uid) {
                return Ok(Some(warning.clone()));
            }
        }
        let warning = self.client.latest_warning(namespace, uid).await?;
        if let Some(warning) = &warning {
            let mut warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
            warnings.insert(uid.to_owned(), (Instant::now(), warning.clone()));
        }
        Ok(warning)
    }

    /// A reconcile failed: how long to wait before the next.
    #[must_use]
    pub fn next_pause(&self, cluster: &ClusterKey) -> Duration {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let count = failures.entry(cluster.clone()).or_default();
        let pause = pause_after(*count);
        *count = count.saturating_add(1);
        // Spread by up to a quarter, so that clusters that failed together do not retry together.
        pause.mul_f64(1.0 - 0.25 * rand::random::<f64>())
    }

    /// A reconcile succeeded.
    pub fn reset_pause(&self, cluster: &ClusterKey) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).remove(cluster);
    }

    /// The latest status of a cluster: the one that the watch delivered, unless it is older than our own
    /// last write.
    #[must_use]
    pub fn latest_status(&self, key: &ClusterKey, cluster: &VX11Cluster) -> VX11ClusterStatus {
        let statuses = self.statuses.lock().unwrap_or_else(PoisonError::into_inner);
        match statuses.get(key) {
            Some(written)
                if Some(&written.uid) == cluster.metadata.uid.as_ref()
                    && Some(&written.behind) == cluster.metadata.resource_version.as_ref() =>
            {
                written.status.clone()
            }
            _ => cluster.status.clone().unwrap_or_default(),
        }
    }

    /// A status was written.
    pub fn remember_status(&self, key: &ClusterKey, cluster: &VX11Cluster, status: VX11ClusterStatus) {
        let written = WrittenStatus {
            uid: cluster.metadata.uid.clone().unwrap_or_default(),
            behind: cluster.metadata.resource_version.clone().unwrap_or_default(),
            status,
        };
        self.statuses.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone(), written);
    }

    /// A cluster is gone.
    pub fn forget(&self, cluster: &ClusterKey) {
        self.cache.forget(cluster);
        self.reset_pause(cluster);
        self.memories.forget(cluster);
        self.settlements.forget(cluster);
        self.metrics.remove_figures(cluster);
        self.statuses.lock().unwrap_or_else(PoisonError::into_inner).remove(cluster);
    }
}

/// Pause after this many failures in a row.
fn pause_after(failures: u32) -> Duration {
    2_u32
        .checked_pow(failures)
        .and_then(|factor| FIRST_PAUSE.checked_mul(factor))
        .map_or(LONGEST_PAUSE, |pause| pause.min(LONGEST_PAUSE))
}

/// A value that is believed for [`CLASSES_AGE`].
struct Aged<T>(Mutex<Option<(Instant, T)>>);

impl<T> Default for Aged<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T: Clone> Aged<T> {
    fn get(&self) -> Option<T> {
        let slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, value) = slot.as_ref()?;
        (at.elapsed() < CLASSES_AGE).then(|| value.clone())
    }

    fn set(&self, value: T) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_end_at_a_minute() {
        assert_eq!(pause_after(0), Duration::from_millis(500));
        assert_eq!(pause_after(3), Duration::from_secs(4));
        assert_eq!(pause_after(7), LONGEST_PAUSE);
        assert_eq!(pause_after(u32::MAX), LONGEST_PAUSE);
    }
}
