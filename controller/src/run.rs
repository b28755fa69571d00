//! `vx11-controller run`: wait for what is needed, stand by, lead, stop.

use std::{convert::Infallible, sync::Arc, time::Duration};

use futures::{FutureExt, StreamExt, channel::mpsc, future::BoxFuture, stream::FuturesUnordered};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResourceList;
use kube::{
    Client, Resource,
    runtime::{
        controller::{self, applier},
        reflector,
    },
};
use thiserror::Error;
use tokio::{net::TcpListener, signal::unix::SignalKind};
use vx11_crds::VX11Cluster;

use crate::{
    cache::Cache,
    client::LeaderClient,
    context::Context,
    http,
    kinds::Kind,
    leader::{Elector, LeaseGuard},
    permissions,
    readiness::Readiness,
    reconcile::{after_error, reconcile},
    settings::Settings,
    telemetry::Metrics,
    watch::{SharedWriter, Watch, watch_clusters, watch_kind},
};

/// Requests for one cluster within this time become one reconcile.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// How often to look whether what is waited for is there.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// How long a stop may take before the process ends anyway.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// Why the controller cannot run at all.
#[derive(Debug, Error)]
pub enum RunError {
    /// No way to the API server is configured.
    #[error(
        "no access to Kubernetes is configured: {0}; set KUBECONFIG, or run in a pod with a service account"
    )]
    Configuration(#[from] kube::config::InferConfigError),
    /// The client cannot be built.
    #[error("cannot talk to the API server: {0}")]
    Client(#[from] kube::Error),
    /// The port is taken, or not allowed.
    #[error("cannot listen on {address}: {source}; choose another --listen")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// Signals cannot be received.
    #[error("cannot wait for signals: {0}")]
    Signal(std::io::Error),
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// What makes a start impossible; everything later is retried.
pub async fn run(settings: Settings) -> Result<(), RunError> {
    let mut terminate = tokio::signal::unix::signal(SignalKind::terminate()).map_err(RunError::Signal)?;
    let mut interrupt = tokio::signal::unix::signal(SignalKind::interrupt()).map_err(RunError::Signal)?;
    let client = Client::try_from(kube::Config::infer().await?)?;
    let metrics = Arc::new(Metrics::new());
    let readiness = Readiness::default();
    readiness.wait("start", "the controller starts");

    let listener = TcpListener::bind(settings.listen)
        .await
        .map_err(|source| RunError::Listen { address: settings.listen, source })?;
    let server = axum::serve(listener, http::router(metrics.clone(), readiness.clone())).into_future();
    let identity = settings.identity();
    let mut elector =
        Elector::new(client.clone(), settings.lease_namespace(), &settings.lease_name, &identity);
    let guard = elector.guard();
    tracing::info!(identity, version = env!("CARGO_PKG_VERSION"), scope = ?settings.scope(), "starting");

    let work = async {
        wait_for_prerequisites(&client, &settings, &readiness).await;
        loop {
            elector.acquire().await;
            tracing::info!(identity, "leading");
            metrics.set_leader(true);
            tokio::select! {
                () = lead(&client, &settings, &guard, &metrics, &readiness, &identity) => {}
                () = elector.hold() => {}
            }
            metrics.set_leader(false);
            readiness.clear_lists();
            tracing::warn!(identity, "no longer leading; standing by");
        }
    };
    tokio::select! {
        () = work => {}
        _ = server => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!(identity, "stopping");
    metrics.set_leader(false);
    if tokio::time::timeout(STOP_DEADLINE, elector.release()).await.is_err() {
        tracing::warn!("the lease could not be released in time; it expires by itself");
    }
    Ok(())
}

/// Waits for the CustomResourceDefinition and for every verb, and says by name what is missing.
async fn wait_for_prerequisites(client: &Client, settings: &Settings, readiness: &Readiness) {
    const DEFINITION: &str = "CustomResourceDefinition vx11clusters.vx11.io";
    const PERMISSIONS: &str = "permissions";
    readiness.wait(DEFINITION, "not looked for yet");
    readiness.wait(PERMISSIONS, "not checked yet");
    readiness.clear("start");
    loop {
        match is_served(client).await {
            Ok(true) => break,
            Ok(false) => {
                readiness.wait(DEFINITION, "the API server does not serve it; install it with the chart");
            }
            Err(error) => readiness.wait(DEFINITION, format!("cannot ask the API server: {error}")),
        }
        log_waiting(readiness);
        tokio::time::sleep(LOOK_EVERY).await;
    }
    readiness.clear(DEFINITION);
    loop {
        match permissions::missing(client, &settings.scope()).await {
            Ok(missing) if missing.is_empty() => break,
            Ok(missing) => readiness.wait(PERMISSIONS, format!("missing: {}", missing.join(", "))),
            Err(error) => readiness.wait(PERMISSIONS, format!("cannot ask the API server: {error}")),
        }
        log_waiting(readiness);
        tokio::time::sleep(LOOK_EVERY).await;
    }
    readiness.clear(PERMISSIONS);
}

fn log_waiting(readiness: &Readiness) {
    for (item, why) in readiness.waiting_for() {
        tracing::warn!(item, why, "waiting");
    }
}

/// Whether the API server serves VX11Clusters. Discovery needs no right of its own.
async fn is_served(client: &Client) -> Result<bool, kube::Error> {
    let api_version = VX11Cluster::api_version(&());
    let resources: Result<APIResourceList, kube::Error> = client.list_api_group_resources(&api_version).await;
    match resources {
        Ok(list) => Ok(list.resources.iter().any(|resource| resource.name == VX11Cluster::plural(&()))),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
        Err(error) => Err(error),
    }
}

/// Watches and reconciles until it is dropped.
async fn lead(
    client: &Client,
    settings: &Settings,
    guard: &LeaseGuard,
    metrics: &Arc<Metrics>,
    readiness: &Readiness,
    identity: &str,
) {
    let (store, writer) = reflector::store();
    let (requests, queue) = mpsc::unbounded();
    let scope = settings.scope();
    let context = Arc::new(Context::new(
        LeaderClient::new(client.clone(), guard.clone(), metrics.clone(), identity),
        store.clone(),
        Arc::new(Cache::default()),
        metrics.clone(),
        settings.defaults(),
    ));
    let watch =
        Watch { client: client.clone(), context: context.clone(), requests, readiness: readiness.clone() };
    let writer = SharedWriter::new(writer, &scope);
    let watches: FuturesUnordered<BoxFuture<'_, ()>> = FuturesUnordered::new();
    for namespace in scope.parts() {
        let namespace = namespace.map(str::to_owned);
        for kind in Kind::ALL {
            watches.push(watch_kind(watch.clone(), kind, namespace.clone()).boxed());
        }
        watches.push(watch_clusters(watch.clone(), namespace, writer.clone()).boxed());
    }
    drop(watch);

    let config = controller::Config::default().debounce(DEBOUNCE).concurrency(settings.concurrency);
    let work = async {
        // A child that is not known yet would look like a child that is missing.
        while !readiness.lists_are_complete() {
            tokio::time::sleep(DEBOUNCE).await;
        }
        tracing::info!(clusters = store.len(), "all lists are complete; reconciling");
        applier(
            |cluster, context| reconcile(cluster, context).boxed(),
            |cluster, error, context| after_error(&cluster, error, &context),
            context,
            store.clone(),
            queue.map(Ok::<_, Infallible>),
            config,
        )
        .for_each(|_| futures::future::ready(()))
        .await;
    };
    let watching = watches.collect::<()>();
    futures::future::join(watching, work).await;
}
