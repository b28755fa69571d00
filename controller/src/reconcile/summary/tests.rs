//! Status from tables of what was seen.

use rstest::rstest;

use super::*;
use crate::{
    build::fixture::{object, referenced},
    facts::{DeploymentFacts, IngressFacts, StatefulSetFacts},
    reconcile::dereference::ClassKnowledge,
};

fn now() -> Timestamp {
    "2026-01-02T03:04:05Z".parse().unwrap()
}

fn healthy() -> Inspected {
    Inspected {
        deployment: Some(DeploymentFacts {
            observed: true,
            desired: 3,
            replicas: 3,
            updated: 3,
            ready: 3,
            scale_owned: true,
            count: Some(3),
            creation_failure: None,
            stuck: false,
            removing: Vec::new(),
        }),
        stateful_set: Some(StatefulSetFacts {
            uid: "set".to_owned(),
            created: Some(now()),
            observed: true,
            ready: 1,
            replicas: 1,
            updating: false,
        }),
        ingress: Some(IngressFacts { address: Some("192.0.2.1".to_owned()), created: Some(now()) }),
        backend_trouble: None,
        redis_trouble: None,
    }
}

/// A world to change before looking at it.
struct World {
    cluster: VX11Cluster,
    previous: VX11ClusterStatus,
    referenced: Referenced,
    invalid: Option<Trouble>,
    failures: Vec<Trouble>,
    inspected: Inspected,
    now: Timestamp,
}

impl World {
    fn healthy() -> Self {
        Self {
            cluster: object("instances: 3"),
            previous: VX11ClusterStatus::default(),
            referenced: referenced(),
            invalid: None,
            failures: Vec::new(),
            inspected: healthy(),
            now: now(),
        }
    }

    /// A cluster that has been healthy.
    fn settled() -> Self {
        let mut world = Self::healthy();
        world.previous = world.look().status;
        world
    }

    fn look(&self) -> Summary {
        summarise(&Findings {
            cluster: &self.cluster,
            previous: &self.previous,
            desired: self.invalid.is_none().then_some(self.cluster.spec.instances),
            referenced: &self.referenced,
            invalid: self.invalid.clone(),
            failures: self.failures.clone(),
            inspected: &self.inspected,
            scaling: None,
            unrecorded: None,
            now: self.now,
        })
    }

    fn deployment(&mut self) -> &mut DeploymentFacts {
        self.inspected.deployment.as_mut().unwrap()
    }

    fn redis(&mut self) -> &mut StatefulSetFacts {
        self.inspected.stateful_set.as_mut().unwrap()
    }
}

fn condition<'a>(summary: &'a Summary, type_: &str) -> (&'a str, &'a str) {
    let condition = summary.status.conditions.iter().find(|condition| condition.type_ == type_).unwrap();
    (&condition.status, &condition.reason)
}

#[test]
fn a_healthy_cluster_is_ready_with_every_condition() {
    let summary = World::healthy().look();
    assert!(summary.settled);
    insta::assert_yaml_snapshot!(summary.status);
}

#[test]
fn looking_again_changes_nothing_and_tells_nothing() {
    let mut world = World::settled();
    world.now = "2026-01-02T05:00:00Z".parse().unwrap();
    let again = world.look();
    assert_eq!(again.status, world.previous);
    assert_eq!(again.transitions, []);
}

#[test]
fn only_a_transition_changes_its_time() {
    let mut world = World::settled();
    world.now = "2026-01-02T05:00:00Z".parse().unwrap();
    world.redis().ready = 0;
    let summary = world.look();
    let since = |type_: &str| {
        let find = |status: &VX11ClusterStatus| {
            status
                .conditions
                .iter()
                .find(|condition| condition.type_ == type_)
                .map(|condition| condition.last_transition_time.clone())
        };
        (find(&summary.status), find(&world.previous))
    };
    let (new, old) = since("RedisReady");
    assert_ne!(new, old);
    let (new, old) = since("BackendReady");
    assert_eq!(new, old);
}

#[test]
fn a_redis_that_went_away_degrades_while_the_instances_serve() {
    let mut world = World::settled();
    world.redis().ready = 0;
    let summary = world.look();
    assert_eq!(condition(&summary, "RedisReady"), ("False", "RedisUnavailable"));
    assert_eq!(condition(&summary, "Degraded"), ("True", "RedisUnavailable"));
    assert_eq!(condition(&summary, "BackendReady"), ("True", "InstancesServe"));
    assert_eq!(summary.status.phase, Some(Phase::Degraded));
    assert_eq!(summary.transitions.len(), 1);
    assert!(summary.transitions[0].warning);

    // Still away: the same words, no new event.
    world.previous = summary.status;
    let again = world.look();
    assert_eq!(again.transitions, []);

    world.redis().ready = 1;
    let back = world.look();
    assert_eq!(condition(&back, "Degraded"), ("False", "NothingWrong"));
    assert_eq!(back.transitions.len(), 1);
    assert!(!back.transitions[0].warning);
}

#[test]
fn a_redis_that_starts_for_the_first_time_is_not_degraded() {
    let mut world = World::healthy();
    world.redis().ready = 0;
    let summary = world.look();
    assert_eq!(condition(&summary, "RedisReady"), ("False", "RedisStarting"));
    assert_eq!(condition(&summary, "Degraded"), ("False", "NothingWrong"));
    assert_eq!(condition(&summary, "Progressing"), ("True", "RedisStarting"));
    assert_eq!(summary.transitions.iter().filter(|transition| transition.warning).count(), 0);
}

#[test]
fn a_lost_instance_degrades_and_a_wanted_one_progresses() {
    let mut lost = World::settled();
    lost.deployment().ready = 2;
    assert_eq!(condition(&lost.look(), "BackendReady"), ("False", "InstancesLost"));
    assert_eq!(lost.look().status.phase, Some(Phase::Degraded));

    let mut wanted = World::settled();
    wanted.cluster.spec.instances = 4;
    wanted.cluster.metadata.generation = Some(4);
    wanted.deployment().desired = 4;
    wanted.deployment().replicas = 4;
    wanted.deployment().updated = 4;
    let summary = wanted.look();
    assert_eq!(condition(&summary, "BackendReady"), ("False", "InstancesStarting"));
    assert_eq!(condition(&summary, "Degraded").0, "False");
    assert_eq!(summary.status.phase, Some(Phase::Progressing));
    assert_eq!(summary.status.desired_instances, 4);
}

#[test]
fn a_rollout_keeps_the_cluster_ready() {
    let mut world = World::settled();
    world.deployment().updated = 1;
    world.deployment().replicas = 4;
    let summary = world.look();
    assert_eq!(condition(&summary, "Ready"), ("True", "AllReady"));
    assert_eq!(condition(&summary, "Progressing"), ("True", "RollingOut"));
    assert!(!summary.settled);
}

#[test]
fn a_rollout_that_cannot_pull_its_image_degrades_and_keeps_serving() {
    let mut world = World::settled();
    world.deployment().updated = 1;
    world.deployment().replicas = 4;
    world.inspected.backend_trouble = Some(Trouble::new("ImagePullFailed", "pod x cannot get image y"));
    let summary = world.look();
    assert_eq!(condition(&summary, "BackendReady"), ("False", "ImagePullFailed"));
    assert_eq!(condition(&summary, "Degraded"), ("True", "ImagePullFailed"));
    assert_eq!(summary.status.ready_instances, 3);
}

#[test]
fn an_invalid_spec_says_so_and_leaves_what_runs() {
    let mut world = World::settled();
    world.invalid = Some(Trouble::new("SecretMissing", "Secret a/b does not exist"));
    let summary = world.look();
    assert_eq!(condition(&summary, "Ready"), ("False", "SecretMissing"));
    assert_eq!(condition(&summary, "Degraded"), ("True", "SecretMissing"));
    assert_eq!(condition(&summary, "BackendReady"), ("True", "InstancesServe"));
    assert_eq!(summary.status.phase, Some(Phase::Invalid));
    assert_eq!(summary.status.desired_instances, 3);
    assert_eq!(summary.transitions.len(), 1);
    assert_eq!(summary.transitions[0].reason, "SecretMissing");
}

#[test]
fn a_refused_object_degrades_and_tells_once() {
    let mut world = World::settled();
    world.failures = vec![Trouble::new("QuotaExceeded", "Service x cannot be created")];
    let summary = world.look();
    assert_eq!(condition(&summary, "Degraded"), ("True", "QuotaExceeded"));
    assert_eq!(summary.transitions.len(), 1);
    world.previous = summary.status;
    assert_eq!(world.look().transitions, []);
}

#[test]
fn troubles_of_one_reason_in_two_parts_are_two_events() {
    let mut world = World::settled();
    let trouble = |object: &str| Some(Trouble::new("QuotaExceeded", object));
    world.redis().ready = 0;
    world.deployment().ready = 0;
    world.inspected.redis_trouble = trouble("StatefulSet x");
    world.inspected.backend_trouble = trouble("Deployment y");
    let about: Vec<&str> = world.look().transitions.iter().map(|told| told.about).collect();
    assert_eq!(about, ["RedisReady", "BackendReady"]);
}

#[test]
fn what_the_spec_does_not_ask_for_is_no_news() {
    let mut world = World::healthy();
    world.cluster = object("{redis: {type: None}, loadBalancer: {type: None}}");
    let about: Vec<&str> = world.look().transitions.iter().map(|told| told.about).collect();
    assert_eq!(about, ["BackendReady"]);
}

#[rstest]
#[case(ClassKnowledge::Missing { name: "nobody".to_owned() }, "IngressClassMissing", "nobody")]
#[case(ClassKnowledge::NoDefault, "NoDefaultIngressClass", "className")]
fn a_class_that_nobody_serves_is_named(
    #[case] class: ClassKnowledge,
    #[case] reason: &str,
    #[case] says: &str,
) {
    let mut world = World::healthy();
    world.referenced.class = class;
    world.inspected.ingress.as_mut().unwrap().address = None;
    let summary = world.look();
    assert_eq!(condition(&summary, "LoadBalancerReady"), ("False", reason));
    assert!(summary.transitions.iter().any(|transition| transition.message.contains(says)));
}

#[test]
fn a_route_that_is_left_alone_says_that_it_is_still_served() {
    let mut world = World::settled();
    world.referenced.class = ClassKnowledge::Missing { name: "nobody".to_owned() };
    let summary = world.look();
    assert_eq!(condition(&summary, "LoadBalancerReady"), ("False", "IngressClassMissing"));
    let [told] = summary.transitions.as_slice() else { panic!("{:?}", summary.transitions) };
    assert!(told.warning && told.message.contains("stays as it was, at 192.0.2.1"), "{}", told.message);
}

#[rstest]
#[case(29, "RouteStarting")]
#[case(30, "NoAddress")]
fn a_route_without_an_address_is_told_after_half_a_minute(#[case] seconds: i64, #[case] reason: &str) {
    let mut world = World::healthy();
    world.inspected.ingress.as_mut().unwrap().address = None;
    world.now = now() + jiff::SignedDuration::from_secs(seconds);
    assert_eq!(condition(&world.look(), "LoadBalancerReady"), ("False", reason));
}

#[rstest]
#[case("{}", Some("http://192.0.2.1"))]
#[case("{loadBalancer: {host: events.example.com}}", Some("http://events.example.com"))]
#[case("{loadBalancer: {host: events.example.com, tlsSecretName: t}}", Some("https://events.example.com"))]
#[case("{loadBalancer: {host: '*.example.com'}}", Some("http://192.0.2.1"))]
#[case("{loadBalancer: {type: None}}", Some("http://simple-cluster-backend.simple-namespace.svc:8001"))]
fn the_endpoint_is_where_clients_connect(#[case] spec: &str, #[case] expected: Option<&str>) {
    let mut world = World::healthy();
    world.cluster = object(spec);
    assert_eq!(world.look().status.endpoint.as_deref(), expected);
}

#[test]
fn pausing_is_told_once_and_so_is_its_end() {
    let mut world = World::settled();
    world.cluster.spec.paused = true;
    let summary = world.look();
    assert_eq!(summary.status.phase, Some(Phase::Paused));
    assert_eq!(condition(&summary, "Paused"), ("True", "SpecPaused"));
    assert_eq!(summary.transitions.len(), 1);
    world.previous = summary.status;
    assert_eq!(world.look().transitions, []);
    world.cluster.spec.paused = false;
    assert_eq!(world.look().transitions.len(), 1);
}

#[test]
fn no_instance_asked_for_is_ready() {
    let mut world = World::healthy();
    world.cluster.spec.instances = 0;
    *world.deployment() = DeploymentFacts { observed: true, ..DeploymentFacts::default() };
    let summary = world.look();
    assert_eq!(condition(&summary, "BackendReady"), ("True", "Stopped"));
    assert_eq!(summary.status.phase, Some(Phase::Ready));
}
