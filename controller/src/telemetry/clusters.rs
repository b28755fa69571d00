//! The gauges of each cluster. They live as long as the controller looks after it: a figure of a cluster that is gone,
//! or that another replica looks after, would be a lie.

use std::{
    collections::BTreeMap,
    fmt::Error,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, gauge::ConstGauge},
};

use crate::{
    cache::ClusterKey,
    scale::{decision::BlockerKind, figures::Figures},
};

type Gauge = (&'static str, &'static str, fn(&Figures) -> u64);

/// Name, help and value of each gauge with one value for a cluster.
const GAUGES: [Gauge; 9] = [
    ("cluster_clients", "Open streams, as far as instances report them", |figures| figures.load.clients),
    ("cluster_issuances_per_second", "Tokens issued a second, as far as instances report them", |figures| {
        figures.load.issuances_per_second
    }),
    ("cluster_capacity_clients", "Streams that the serving instances carry", |figures| {
        figures.capacity.clients
    }),
    (
        "cluster_capacity_issuances_per_second",
        "Tokens a second that the serving instances issue",
        |figures| figures.capacity.issuances_per_second,
    ),
    (
        "cluster_utilization_percent",
        "How full the serving instances are, by the fuller dimension",
        |figures| figures.utilization_percent,
    ),
    ("cluster_needed_instances", "Instances that the load asks for, without bounds", |figures| {
        figures.needed.into()
    }),
    ("cluster_desired_instances", "Instances that the cluster is on its way to", |figures| {
        figures.desired.into()
    }),
    (
        "cluster_silent_instances",
        "Instances whose load is not known; nothing is removed meanwhile",
        |figures| figures.silent.into(),
    ),
    ("cluster_limited", "1 while the load needs more instances than maxInstances allows", |figures| {
        figures.limited.into()
    }),
];

/// The figures of all clusters; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Clusters(Arc<Mutex<BTreeMap<ClusterKey, Figures>>>);

impl Clusters {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<ClusterKey, Figures>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A cluster was looked at.
    pub fn set(&self, key: &ClusterKey, figures: Figures) {
        self.lock().insert(key.clone(), figures);
    }

    /// A cluster is gone, or cannot be looked at.
    pub fn remove(&self, key: &ClusterKey) {
        self.lock().remove(key);
    }

    /// This process looks after none.
    pub fn clear(&self) {
        self.lock().clear();
    }
}

impl Collector for Clusters {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), Error> {
        let clusters = self.lock();
        let labels = |key: &ClusterKey| [("namespace", key.namespace.clone()), ("cluster", key.name.clone())];
        for (name, help, value) in GAUGES {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (key, figures) in clusters.iter() {
                encode_value(value(figures), family.encode_family(&labels(key))?)?;
            }
        }
        let help = "Instances that exist, by where they stand: starting, ready, draining, terminating";
        let mut family = encoder.encode_descriptor("cluster_instances", help, None, MetricType::Gauge)?;
        for (key, figures) in clusters.iter() {
            for (state, count) in figures.instances {
                let [namespace, cluster] = labels(key);
                let labels = [namespace, cluster, ("state", state.to_owned())];
                encode_value(count.into(), family.encode_family(&labels)?)?;
            }
        }
        let help = "1 for each thing that keeps instances from being removed";
        let mut family = encoder.encode_descriptor("cluster_blocked", help, None, MetricType::Gauge)?;
        for (key, figures) in clusters.iter() {
            for kind in BlockerKind::ALL {
                let [namespace, cluster] = labels(key);
                let labels = [namespace, cluster, ("reason", kind.as_str().to_owned())];
                encode_value(figures.blocked_by.contains(&kind).into(), family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

fn encode_value(value: u64, encoder: prometheus_client::encoding::MetricEncoder) -> Result<(), Error> {
    ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(encoder)
}
