//! Looks at the instances of a cluster: what Kubernetes knows of their pods, and what each says of itself.
//! Needs the client and the pods' network, writes nothing.

use std::{collections::BTreeMap, net::SocketAddr, time::Instant};

use futures::{StreamExt, stream};

use super::admin::{self, AdminError};
use crate::{
    cache::ClusterKey,
    client::ClientError,
    context::Context,
    facts::{DeploymentFacts, PodFacts},
    names::{ADMIN_PORT, Component},
    reconcile::look,
    scale::{
        observation::{Instance, Moment, Observation, Observed, Reading},
        reading::{Answer, Counters, Process},
    },
};

/// Instances asked at a time.
const CONCURRENCY: usize = 64;

/// What was seen in one look.
#[derive(Clone, Debug, Default)]
pub struct Sight {
    /// What decisions are made of.
    pub observation: Observation,
    /// Where the admin port of each instance is, by the name of its pod.
    pub addresses: BTreeMap<String, SocketAddr>,
    /// Whether the Deployment exists.
    pub exists: bool,
}

/// Looks at every instance at once; one that does not answer costs a second and is missing.
pub async fn observe(
    context: &Context,
    key: &ClusterKey,
    counters: &mut Counters,
    now: Moment,
) -> Result<Sight, ClientError> {
    let deployment = look::deployment(context, key).await?;
    let pods: Vec<(String, PodFacts)> = look::pods(context, key)
        .await?
        .into_iter()
        .filter(|(_, pod)| pod.component == Some(Component::Backend) && !pod.finished)
        .collect();
    counters.retain(|uid| pods.iter().any(|(_, pod)| pod.uid == uid));

    let began = Instant::now();
    let addresses: Vec<_> = pods.iter().map(|(_, pod)| admin_address(pod)).collect();
    let answers: Vec<_> = stream::iter(addresses).map(ask).buffered(CONCURRENCY).collect().await;
    context.metrics.observed(began.elapsed());

    let mut sight = Sight { exists: deployment.is_some(), ..Sight::default() };
    for ((name, pod), answer) in pods.iter().zip(answers) {
        let process = Process { uid: pod.uid.clone(), restarts: pod.restarts };
        let load = match answer {
            Ok(answer) => counters.known(&process, &answer, now),
            Err(reason) => counters.unknown(&process, reason, now),
        };
        sight.addresses.extend(admin_address(pod).map(|address| (name.clone(), address)));
        sight.observation.instances.push(instance(name, pod, load));
    }
    if let Some(deployment) = deployment {
        sight.observation.replicas = u32::try_from(deployment.desired).unwrap_or(0);
        sight.observation.rollout = is_rolling(&deployment);
        sight.observation.removing = deployment.removing;
    }
    Ok(sight)
}

/// Old pods are left, or the Deployment's controller has yet to look at its latest spec.
fn is_rolling(deployment: &DeploymentFacts) -> bool {
    !deployment.observed || deployment.updated < deployment.replicas
}

fn instance(name: &str, pod: &PodFacts, load: Observed<Reading>) -> Instance {
    let created = pod.created.map_or(0, jiff::Timestamp::as_millisecond);
    Instance {
        name: name.to_owned(),
        created: Moment(u64::try_from(created).unwrap_or(0)),
        zone: pod.zone.clone(),
        pending: pod.pending,
        ready: pod.ready,
        terminating: pod.terminating,
        mark: pod.mark,
        load,
    }
}

async fn ask(address: Option<SocketAddr>) -> Result<Answer, String> {
    let address = address.ok_or_else(|| "has no address yet".to_owned())?;
    let body = admin::get_load(address).await.map_err(|error: AdminError| error.to_string())?;
    Answer::parse(&body)
}

fn admin_address(pod: &PodFacts) -> Option<SocketAddr> {
    Some(SocketAddr::new(pod.address?, u16::try_from(ADMIN_PORT).ok()?))
}
