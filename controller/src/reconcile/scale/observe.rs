//! Looks at the instances of a cluster: what Kubernetes knows of their pods, and what each says of itself.
//! Needs the client and the pods' network, writes nothing.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use futures::{StreamExt, stream};
use jiff::Timestamp;

use crate::{
    admin_ports::AdminPorts,
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

/// Instances asked at a time: each is an open connection of the controller.
pub const CONCURRENCY: usize = 256;
/// For the whole look, however many instances are silent: well below the time between two looks.
pub const LOOK_DEADLINE: Duration = Duration::from_secs(2);

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

/// Looks at every instance at once; one that does not answer costs the others nothing and is missing.
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
    let asked =
        pods.iter().map(|(_, pod)| Asked { address: admin_address(pod), max_streams: pod.max_streams });
    let answers = ask_all(&context.admin_ports, asked.collect(), CONCURRENCY, LOOK_DEADLINE).await;
    context.metrics.observed(began.elapsed());

    let mut sight = Sight { exists: deployment.is_some(), ..Sight::default() };
    for ((name, pod), answer) in pods.iter().zip(answers) {
        let process = Process { uid: pod.uid.clone(), restarts: pod.restarts };
        let load = match answer {
            Ok((answer, arrived)) => counters.known(&process, &answer, arrived),
            Err(reason) => counters.unknown(&process, reason, now),
        };
        let answered = counters.knows(&process);
        sight.addresses.extend(admin_address(pod).map(|address| (name.clone(), address)));
        sight.observation.instances.push(instance(name, pod, answered, load));
    }
    if let Some(deployment) = deployment {
        sight.observation.replicas = deployment.own_count();
        sight.observation.rollout = is_rolling(&deployment);
        sight.observation.removing = deployment.removing;
    }
    Ok(sight)
}

/// Old pods are left, or the Deployment's controller has yet to look at its latest spec.
fn is_rolling(deployment: &DeploymentFacts) -> bool {
    !deployment.observed || deployment.updated < deployment.replicas
}

fn instance(name: &str, pod: &PodFacts, answered: bool, load: Observed<Reading>) -> Instance {
    Instance {
        name: name.to_owned(),
        created: pod.created.map(Moment::from).unwrap_or_default(),
        zone: pod.zone.clone(),
        pending: pod.pending,
        ready: pod.ready,
        terminating: pod.terminating,
        gone_by: pod.gone_by.map(Moment::from),
        answered,
        mark: pod.mark,
        load,
    }
}

/// One instance to ask.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// Its admin port, once its pod has an address.
    pub address: Option<SocketAddr>,
    /// The limit of streams that its pod was made with; 0 is none.
    pub max_streams: u64,
}

/// An answer and when it arrived, or why there is none.
pub type Told = Result<(Answer, Moment), String>;

/// Asks every instance, `at_a_time` of them at once, and returns what they told in the same order. Those that have not
/// answered by the `deadline` did not answer.
pub async fn ask_all(
    ports: &AdminPorts,
    asked: Vec<Asked>,
    at_a_time: usize,
    deadline: Duration,
) -> Vec<Told> {
    let late = || Err(format!("no answer within the {} s of a look", deadline.as_secs()));
    let mut told: Vec<Told> = asked.iter().map(|_| late()).collect();
    let mut answers = stream::iter(asked.into_iter().enumerate())
        .map(|(index, asked)| async move { (index, ask(ports, asked).await) })
        .buffer_unordered(at_a_time);
    let all = async {
        while let Some((index, answer)) = answers.next().await {
            if let Some(place) = told.get_mut(index) {
                *place = answer;
            }
        }
    };
    // Whoever is not done by then has its place filled already.
    let _ = tokio::time::timeout(deadline, all).await;
    told
}

async fn ask(ports: &AdminPorts, Asked { address, max_streams }: Asked) -> Told {
    let address = address.ok_or_else(|| "has no address yet".to_owned())?;
    let body = ports.get_load(address).await.map_err(|error| error.to_string())?;
    // Rates are taken over the time between two answers, not between two looks.
    let arrived = Timestamp::now().into();
    Answer::parse(&body, max_streams).map(|answer| (answer, arrived))
}

fn admin_address(pod: &PodFacts) -> Option<SocketAddr> {
    Some(SocketAddr::new(pod.address?, u16::try_from(ADMIN_PORT).ok()?))
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        sync::watch,
    };

    use super::*;

    const BODY: &str = r#"{"streams":3,"issued_total":40,"draining":false}"#;

    /// An instance that answers once `others` instances have, and tells when it did.
    async fn instance(others: usize, answered: &watch::Sender<usize>) -> (Asked, watch::Receiver<Moment>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let asked = Asked { address: Some(listener.local_addr().unwrap()), max_streams: 10 };
        let (answers, at) = watch::channel(Moment::default());
        let answered = answered.clone();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let mut head = [0; 1024];
                let _ = socket.read(&mut head).await;
                let _ = answered.subscribe().wait_for(|count| *count >= others).await;
                answers.send_replace(Timestamp::now().into());
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{BODY}", BODY.len());
                let _ = socket.write_all(answer.as_bytes()).await;
                answered.send_modify(|count| *count += 1);
            }
        });
        (asked, at)
    }

    #[tokio::test]
    async fn a_slow_instance_keeps_nobody_waiting_and_is_stamped_when_it_answers() {
        let answered = watch::Sender::new(0);
        let (slow, at) = instance(4, &answered).await;
        let mut asked = vec![slow];
        for _ in 0..4 {
            asked.push(instance(0, &answered).await.0);
        }
        let told = ask_all(&AdminPorts::default(), asked, 2, LOOK_DEADLINE).await;
        let stamps: Vec<Moment> = told.into_iter().map(|told| told.unwrap().1).collect();
        assert!(stamps[0] >= *at.borrow(), "stamped before it answered");
        assert!(stamps[0] >= stamps[4], "{stamps:?}");
    }

    #[tokio::test]
    async fn silent_instances_cost_no_more_than_the_deadline_of_a_look() {
        let answered = watch::Sender::new(0);
        let (silent, _) = instance(usize::MAX, &answered).await;
        let nowhere = Asked { address: None, max_streams: 0 };
        let began = Instant::now();
        let told =
            ask_all(&AdminPorts::default(), [vec![nowhere], vec![silent; 12]].concat(), 1, LOOK_DEADLINE)
                .await;
        assert!(began.elapsed() < LOOK_DEADLINE * 3, "{:?}", began.elapsed());
        let reasons: Vec<String> = told.into_iter().map(Result::unwrap_err).collect();
        assert_eq!(reasons.len(), 13);
        assert_eq!(reasons[0], "has no address yet");
        assert_eq!(reasons[1], "no answer within 1 s");
        assert_eq!(reasons[12], "no answer within the 2 s of a look");
    }
}
