//! Bring one VX11Cluster to what its spec says: read, decide, write, report.

pub mod apply;
pub mod build;
pub mod dereference;
pub mod inspect;
mod journal;
mod look;
pub mod scale;
pub mod summary;
pub mod update_status;
pub mod validate;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use kube::runtime::{controller::Action, reflector::ObjectRef};
use thiserror::Error;
use vx11_crds::{VX11Cluster, VX11ClusterStatus};

use self::{
    apply::{Applied, apply},
    build::build,
    dereference::{REFERENCED_SECRET_AGE, Referenced, dereference, doubt_polled},
    inspect::inspect,
    scale::{Scaled, scale},
    summary::{Findings, summarise},
    update_status::update_status,
    validate::{ValidateError, validate},
};
use crate::{
    cache::ClusterKey,
    client::{ClientError, NAMESPACE_ENDS},
    context::Context,
    diagnose::Trouble,
};

/// When to look again at a cluster that is not settled; changes are seen at once, this is for time itself and for
/// what no watch tells, such as the reason why something does not start.
const UNSETTLED_LOOK: Duration = Duration::from_secs(10);
/// The same for what has been unsettled for long: what has not come in minutes is not waited for by the second.
const LONGEST_UNSETTLED_LOOK: Duration = Duration::from_mins(1);
/// When to look again at a settled cluster. Watches tell of every change; this only bounds what a lost one
/// could cost.
const SETTLED_LOOK: Duration = Duration::from_mins(30);
/// When to look again at a cluster whose spec cannot be carried out.
const INVALID_LOOK: Duration = Duration::from_secs(3);
/// When to look again after an object was told to go.
const WAITING_LOOK: Duration = Duration::from_secs(1);
/// Longest pause after a failure where the load sets the count.
const LONGEST_BLIND: Duration = Duration::from_secs(15);

/// Why a reconcile is to be tried again.
#[derive(Debug, Error)]
pub enum ReconcileError {
    /// The API server.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The object has no name or namespace.
    #[error(transparent)]
    Invalid(#[from] ValidateError),
    /// Objects that could not be written; status says so.
    #[error("{0}")]
    Unapplied(String),
}

impl ReconcileError {
    /// Stable reason for metrics.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Client(ClientError::NotLeader) => "not_leader",
            Self::Client(ClientError::NamespaceEnds(_)) => "namespace_ends",
            Self::Client(ClientError::Deadline) => "deadline",
            Self::Client(ClientError::Api(_)) => "api",
            Self::Client(ClientError::Render(_)) => "render",
            Self::Invalid(_) => "invalid",
            Self::Unapplied(_) => "unapplied",
        }
    }
}

/// One reconcile, measured.
///
/// # Errors
/// What the next try may cure; everything else is in the cluster's status.
pub async fn reconcile(cluster: Arc<VX11Cluster>, context: Arc<Context>) -> Result<Action, ReconcileError> {
    let started = Instant::now();
    // On the heap: the state of all the requests in it is too big for every caller's own.
    let result = Box::pin(reconcile_once(&cluster, &context)).await;
    let outcome = result.as_ref().map_or_else(ReconcileError::reason, |_| "ok");
    context.metrics.reconciled(outcome, started.elapsed());
    if context.store.get(&ObjectRef::from_obj(cluster.as_ref())).is_none() {
        // It went meanwhile, and with it what was known of it; what this reconcile has put back since goes too.
        context.forget(&ClusterKey::of(&cluster));
    }
    match result {
        // Nothing is wrong and nothing can be done.
        Err(ReconcileError::Client(ClientError::NamespaceEnds(_))) => Ok(Action::requeue(NAMESPACE_ENDS)),
        result => result,
    }
}

async fn reconcile_once(cluster: &VX11Cluster, context: &Context) -> Result<Action, ReconcileError> {
    let key = ClusterKey::of(cluster);
    if cluster.metadata.deletion_timestamp.is_some() {
        // The children go by owner reference; writing now would only bring them back.
        context.metrics.remove_figures(&key);
        return Ok(Action::await_change());
    }
    validate::identify(cluster)?;

    let referenced = dereference(context, &key, cluster).await?;
    let validated = validate(cluster, &referenced, &context.defaults);
    let now = Timestamp::now();
    let previous = context.latest_status(&key, cluster);
    let scaled = if let Ok(validated) = &validated {
        Some(scale(context, &key, validated, &previous, now.into()).await?)
    } else {
        context.metrics.remove_figures(&key);
        None
    };
    let mut applied = match (&validated, &scaled) {
        (Ok(validated), Some(scaled)) if !validated.paused => {
            let count = scaled.count();
            if context.settlements.hold(&context.cache, &key, validated, count.instances) {
                Applied::as_before()
            } else {
                let applied = Box::pin(apply(context, &key, build(validated, count.clone()))).await?;
                let wanted = applied.is_settled().then_some(&applied.wanted);
                context.settlements.learn(&context.cache, &key, validated, count.instances, wanted);
                applied
            }
        }
        _ => Applied::default(),
    };
    applied.failures.extend(scaled.as_ref().and_then(|scaled| scaled.failure.clone()));
    let unrecorded = match (&validated, &scaled) {
        (Ok(validated), Some(scaled)) if applied.counted && scaled.failure.is_none() => {
            journal::record(context, &key, cluster, &validated.identity, scaled).await
        }
        _ => None,
    };
    let inspected = inspect(context, &key, now).await?;
    let summary = summarise(&Findings {
        cluster,
        previous: &previous,
        desired: scaled.as_ref().map(Scaled::desired),
        referenced: &referenced,
        invalid: validated.err().map(|error| Trouble::new(error.reason(), error.to_string())),
        failures: applied.failures.iter().filter_map(|failure| failure.trouble.clone()).collect(),
        inspected: &inspected,
        scaling: scaled.as_ref().map(|scaled| &scaled.report),
        unrecorded,
        now,
    });
    let unsettled = (!summary.settled).then(|| unsettled_look(&summary.status, now));
    let invalid = scaled.is_none();
    update_status(context, &key, cluster, &previous, summary).await?;

    if let Some(failure) = applied.failures.first() {
        return Err(ReconcileError::Unapplied(format!("{}: {}", failure.object, failure.error)));
    }
    context.reset_pause(&key);
    if invalid {
        // Somebody is about to correct it, most likely a Secret.
        doubt_polled(context, &key, cluster);
        return Ok(Action::requeue(INVALID_LOOK));
    }
    Ok(next_look(cluster, &applied, unsettled, scaled.as_ref()))
}

/// A sixth of the time for which every condition has been as it is, within bounds: a rollout begins while Ready has long
/// been true.
fn unsettled_look(status: &VX11ClusterStatus, now: Timestamp) -> Duration {
    let changes = status.conditions.iter().map(|condition| condition.last_transition_time.0);
    let since = changes.max().unwrap_or(now);
    let elapsed = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    (elapsed / 6).clamp(UNSETTLED_LOOK, LONGEST_UNSETTLED_LOOK)
}

fn next_look(
    cluster: &VX11Cluster,
    applied: &Applied,
    unsettled: Option<Duration>,
    scaled: Option<&Scaled>,
) -> Action {
    let polled =
        if Referenced::polled(cluster).next().is_some() { REFERENCED_SECRET_AGE } else { SETTLED_LOOK };
    if applied.waiting {
        return Action::requeue(WAITING_LOOK);
    }
    // Spread, so that clusters that were created together are not looked at together for ever.
    let pause =
        unsettled.map_or(polled, |pause| pause.min(polled)).mul_f64(1.0 - 0.2 * rand::random::<f64>());
    Action::requeue(scaled.and_then(Scaled::next_look).map_or(pause, |look| pause.min(look)))
}

/// What happens after a failed reconcile: a pause of the cluster's own, which grows.
#[must_use]
pub fn after_error(cluster: &VX11Cluster, error: &ReconcileError, context: &Context) -> Action {
    let key = ClusterKey::of(cluster);
    let mut pause = context.next_pause(&key);
    if cluster.spec.autoscaling.is_some() {
        // What is refused for good must not keep the count from following the load.
        pause = pause.min(LONGEST_BLIND);
    }
    tracing::warn!(
        namespace = key.namespace,
        cluster = key.name,
        reason = error.reason(),
        %error,
        retry_in_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
        "reconcile failed"
    );
    Action::requeue(pause)
}

#[cfg(test)]
mod tests;
