//! Logs as JSON lines and metrics for Prometheus. Every label comes from a closed set.

mod clusters;

use std::time::Duration;

use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};
use tracing_subscriber::{EnvFilter, layer::SubscriberExt, util::SubscriberInitExt};

use self::clusters::Clusters;
use crate::{
    cache::ClusterKey,
    kinds::Kind,
    scale::{decision::Reason, figures::Figures},
};

/// Starts logging. A filter that does not parse falls back to `info` and says so.
pub fn start_logging(filter: &str) {
    let parsed = EnvFilter::try_new(filter);
    let complaint = parsed.as_ref().err().map(ToString::to_string);
    tracing_subscriber::registry()
        .with(parsed.unwrap_or_else(|_| EnvFilter::new("info")))
        .with(tracing_subscriber::fmt::layer().json().flatten_event(true).with_span_list(false))
        .init();
    if let Some(complaint) = complaint {
        tracing::warn!(filter, complaint, "VX11_LOG is no filter; using `info`");
    }
}

/// What a write did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    /// Server-side apply of an owned object.
    Apply,
    /// Creation of a generated Secret.
    Create,
    /// Removal of an object that the spec no longer asks for.
    Delete,
    /// Another patch: a volume claim that grows.
    Patch,
    /// Status of a cluster.
    Status,
    /// An event.
    Event,
}

impl Verb {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Apply => "apply",
            Self::Create => "create",
            Self::Delete => "delete",
            Self::Patch => "patch",
            Self::Status => "status",
            Self::Event => "event",
        }
    }
}

type Labels<const N: usize> = [(&'static str, &'static str); N];

/// The metric families of the controller.
pub struct Metrics {
    registry: Registry,
    reconcile_duration: Family<Labels<1>, Histogram>,
    writes: Family<Labels<2>, Counter>,
    writes_without_change: Counter,
    drift_corrected: Family<Labels<1>, Counter>,
    watch_errors: Family<Labels<1>, Counter>,
    invalid_objects: Counter,
    observe_duration: Histogram,
    decisions: Family<Labels<1>, Counter>,
    instance_refusals: Counter,
    journal_failures: Counter,
    leader: Gauge,
    clusters: Gauge,
    ready: Gauge,
    figures: Clusters,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All families, at zero.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("vx11_controller");
        let reconcile_duration = Family::<Labels<1>, Histogram>::new_with_constructor(|| {
            Histogram::new([0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0])
        });
        let writes = Family::default();
        let writes_without_change = Counter::default();
        let drift_corrected = Family::default();
        let watch_errors = Family::default();
        let invalid_objects = Counter::default();
        let observe_duration = Histogram::new([0.003, 0.01, 0.03, 0.1, 0.2, 0.5, 1.0, 2.0]);
        let decisions = Family::default();
        let instance_refusals = Counter::default();
        let journal_failures = Counter::default();
        let leader = Gauge::default();
        let clusters = Gauge::default();
        let ready = Gauge::default();
        registry.register_with_unit(
            "reconcile_duration",
            "Time of one reconcile by its outcome, `ok` or the reason of its error",
            Unit::Seconds,
            reconcile_duration.clone(),
        );
        registry.register("writes", "Writes to the API server", writes.clone());
        registry.register(
            "writes_without_change",
            "Applies after which the object was as before; anything but 0 is a bug",
            writes_without_change.clone(),
        );
        registry.register(
            "drift_corrected",
            "Owned objects that somebody changed or deleted and that were put back",
            drift_corrected.clone(),
        );
        registry.register("watch_errors", "Watches that broke and were resumed", watch_errors.clone());
        registry.register(
            "invalid_objects",
            "VX11Clusters that do not parse and are left alone",
            invalid_objects.clone(),
        );
        registry.register_with_unit(
            "observe_duration",
            "Time to ask every instance of a cluster for its load",
            Unit::Seconds,
            observe_duration.clone(),
        );
        registry.register(
            "scaling_decisions",
            "Decisions about a count of instances that differ from the one before",
            decisions.clone(),
        );
        registry.register(
            "instance_refusals",
            "Orders (drain, serve again, shed) that an instance did not follow",
            instance_refusals.clone(),
        );
        registry.register(
            "journal_failures",
            "Attempts to write a journal of decisions that failed; each is repeated",
            journal_failures.clone(),
        );
        registry.register("leader", "1 while this process holds the lease", leader.clone());
        registry.register("clusters", "VX11Clusters that this process looks after", clusters.clone());
        registry.register("clusters_ready", "Of those, the ones that are Ready", ready.clone());
        let figures = Clusters::default();
        registry.register_collector(Box::new(figures.clone()));
        Self {
            registry,
            reconcile_duration,
            writes,
            writes_without_change,
            drift_corrected,
            watch_errors,
            invalid_objects,
            observe_duration,
            decisions,
            instance_refusals,
            journal_failures,
            leader,
            clusters,
            ready,
            figures,
        }
    }

    /// A reconcile ended, with `ok` or the reason of its error.
    pub fn reconciled(&self, outcome: &'static str, duration: Duration) {
        self.reconcile_duration.get_or_create(&[("outcome", outcome)]).observe(duration.as_secs_f64());
    }

    /// The API server accepted a write.
    pub fn wrote(&self, kind: &'static str, verb: Verb) {
        self.writes.get_or_create(&[("kind", kind), ("verb", verb.as_str())]).inc();
    }

    /// A write changed nothing.
    pub fn wrote_without_change(&self) {
        self.writes_without_change.inc();
    }

    /// An object was put back.
    pub fn corrected_drift(&self, kind: Kind) {
        self.drift_corrected.get_or_create(&[("kind", kind.as_str())]).inc();
    }

    /// A watch broke.
    pub fn watch_failed(&self, kind: &'static str) {
        self.watch_errors.get_or_create(&[("kind", kind)]).inc();
    }

    /// A VX11Cluster does not parse.
    pub fn saw_invalid_object(&self) {
        self.invalid_objects.inc();
    }

    /// Every instance of a cluster was asked for its load.
    pub fn observed(&self, duration: Duration) {
        self.observe_duration.observe(duration.as_secs_f64());
    }

    /// A count was decided in another way than before.
    pub fn decided(&self, reason: Reason) {
        self.decisions.get_or_create(&[("reason", reason.as_str())]).inc();
    }

    /// An instance did not do as it was told.
    pub fn instance_refused(&self) {
        self.instance_refusals.inc();
    }

    /// A journal could not be written.
    pub fn could_not_record(&self) {
        self.journal_failures.inc();
    }

    /// This process leads, or no longer.
    pub fn set_leader(&self, leads: bool) {
        self.leader.set(i64::from(leads));
        if !leads {
            self.set_clusters(0, 0);
            self.figures.clear();
        }
    }

    /// How many clusters there are, and how many are ready.
    pub fn set_clusters(&self, all: usize, ready: usize) {
        self.clusters.set(i64::try_from(all).unwrap_or(i64::MAX));
        self.ready.set(i64::try_from(ready).unwrap_or(i64::MAX));
    }

    /// The load and the count of a cluster were looked at.
    pub fn set_figures(&self, cluster: &ClusterKey, figures: Figures) {
        self.figures.set(cluster, figures);
    }

    /// A cluster is gone, or cannot be looked at.
    pub fn remove_figures(&self, cluster: &ClusterKey) {
        self.figures.remove(cluster);
    }

    /// The text that Prometheus scrapes.
    ///
    /// # Errors
    /// Only when formatting fails, which writing to a String does not.
    pub fn render(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scale::{
        decide::decide,
        history::History,
        journal::Entry,
        observation::{Instance, Moment, Observation, Observed},
        policy::Policy,
    };

    #[test]
    fn the_gauges_of_a_cluster_come_with_its_first_look_and_go_with_it() {
        let mut silent = Instance::serving("b", 0, 0);
        silent.load = Observed::Missing { reason: "no answer within 1 s".to_owned() };
        let starting =
            Instance { ready: false, answered: false, load: silent.load.clone(), ..silent.clone() };
        let observed = Observation {
            replicas: 3,
            instances: vec![Instance::serving("a", 700, 12), silent, starting],
            ..Observation::default()
        };
        let (policy, mut history) = (Policy::default(), History::default());
        (0..=300).step_by(5).for_each(|second| history.record(Moment(second * 1000), 1, 300_000));
        let decision = decide(&policy, &observed, &history, Moment(300_000));
        let entry = Entry { policy, observed, history, decision };
        let metrics = Metrics::new();
        let key = ClusterKey { namespace: "simple-namespace".to_owned(), name: "simple-cluster".to_owned() };
        metrics.set_figures(&key, Figures::of(&entry));
        let text = metrics.render().unwrap();
        let labels = "namespace=\"simple-namespace\",cluster=\"simple-cluster\"";
        for (name, more, value) in [
            ("clients", "", 700),
            ("issuances_per_second", "", 12),
            ("capacity_clients", "", 950),
            ("capacity_issuances_per_second", "", 1900),
            ("utilization_percent", "", 74),
            ("needed_instances", "", 2),
            ("desired_instances", "", 3),
            ("silent_instances", "", 1),
            ("limited", "", 0),
            ("instances", ",state=\"ready\"", 2),
            ("instances", ",state=\"starting\"", 1),
            ("instances", ",state=\"draining\"", 0),
            ("instances", ",state=\"terminating\"", 0),
            ("blocked", ",reason=\"MetricsMissing\"", 1),
            ("blocked", ",reason=\"InstancesStarting\"", 1),
            ("blocked", ",reason=\"DrainBudget\"", 0),
        ] {
            let line = format!("vx11_controller_cluster_{name}{{{labels}{more}}} {value}\n");
            assert!(text.contains(&line), "{line} is missing in\n{text}");
        }
        metrics.remove_figures(&key);
        assert!(!metrics.render().unwrap().contains("simple-cluster"));
        metrics.set_figures(&key, Figures::of(&entry));
        metrics.set_leader(false);
        assert!(!metrics.render().unwrap().contains("simple-cluster"), "another replica looks after it");
    }

    #[test]
    fn the_families_have_the_names_that_the_documentation_gives() {
        let metrics = Metrics::new();
        metrics.reconciled("ok", Duration::from_millis(5));
        metrics.wrote("Service", Verb::Apply);
        metrics.corrected_drift(Kind::Service);
        metrics.watch_failed("Service");
        let text = metrics.render().unwrap();
        for name in [
            "vx11_controller_reconcile_duration_seconds_bucket{le=\"0.01\",outcome=\"ok\"} 1",
            "vx11_controller_writes_total{kind=\"Service\",verb=\"apply\"} 1",
            "vx11_controller_writes_without_change_total 0",
            "vx11_controller_drift_corrected_total{kind=\"Service\"} 1",
            "vx11_controller_watch_errors_total{kind=\"Service\"} 1",
            "vx11_controller_invalid_objects_total 0",
            "vx11_controller_leader 0",
            "vx11_controller_clusters 0",
        ] {
            assert!(text.contains(name), "{name} is missing in\n{text}");
        }
    }
}
