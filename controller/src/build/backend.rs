//! The instances: Deployment, Service and ServiceAccount.

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment},
        core::v1::{
            Container, EnvVar, EnvVarSource, HTTPGetAction, KeyToPath, Lifecycle, LifecycleHandler,
            LocalObjectReference, ObjectFieldSelector, PodSpec, PodTemplateSpec, Probe, SecretVolumeSource,
            Service, ServiceAccount, ServicePort, ServiceSpec, SleepAction, Volume,
        },
    },
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};

use super::{load_balancer::ingress, metadata, placement};
use crate::{
    cluster::ValidatedCluster,
    names::{self, ADMIN_PORT, Component, HTTP_PORT},
    scale::policy::{Policy, Target},
};

/// User of the image; it exists in no passwd file and needs none.
const USER: i64 = 65_532;
/// Seconds a stopping pod goes on serving, so that every proxy has seen it leave the endpoints.
const PRE_STOP_SECONDS: i32 = 3;
/// How often the kubelet asks whether an instance is ready, and how many times no makes it not ready.
const READINESS_PERIOD_SECONDS: i32 = 2;
const READINESS_FAILURES: i32 = 2;
/// Seconds until every proxy knows that an instance which drains is not ready.
const DRAIN_DELAY_SECONDS: i32 = READINESS_PERIOD_SECONDS * READINESS_FAILURES + 1;
/// Seconds after the drain that a pod has for closing its last connections.
const CLOSING_SECONDS: i32 = 7;

/// Bytes of events that are kept at most, whatever the Redis has room for: each instance holds a copy of them.
const MOST_EVENT_BYTES: u64 = 32 * 1024 * 1024;
/// The least that the backend accepts.
const LEAST_EVENT_BYTES: u64 = 1024 * 1024;

const PRINCIPALS_DIR: &str = "/etc/vx11/principals";
const KEYS_DIR: &str = "/etc/vx11/keys";
const REDIS_DIR: &str = "/etc/vx11/redis";

/// Seconds that a rollout may go without progress, beyond those that it waits by itself.
const PROGRESS_DEADLINE_SECONDS: i32 = 600;

/// The Deployment, without `replicas`: those belong to the scale field manager alone.
#[must_use]
pub fn build_deployment(cluster: &ValidatedCluster) -> Deployment {
    let identity = &cluster.identity;
    // As long as the one before closes its streams, so that a rollout closes no more at a time than its surge.
    let closing_seconds = PRE_STOP_SECONDS + cluster.backend.spec.stream.drain_seconds;
    Deployment {
        metadata: metadata::owned(identity, Component::Backend, names::backend(&identity.name)),
        spec: Some(DeploymentSpec {
            min_ready_seconds: Some(closing_seconds),
            paused: None,
            progress_deadline_seconds: Some(PROGRESS_DEADLINE_SECONDS + closing_seconds),
            replicas: None,
            revision_history_limit: Some(3),
            selector: metadata::selector(identity, Component::Backend),
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_surge: Some(build_surge(&cluster.scaling)),
                    max_unavailable: Some(IntOrString::Int(0)),
                }),
            }),
            template: build_pod(cluster),
        }),
        status: None,
    }
}

/// How many instances a rollout replaces at a time: a quarter, or as many full ones as may close together by
/// `maxReconnectsPerSecond` where those are fewer; one at least, or nothing would ever be rolled out.
fn build_surge(policy: &Policy) -> IntOrString {
    let most = match policy.target {
        Target::Load { max, .. } => max,
        Target::Fixed { instances } => instances,
    };
    let affordable = policy.max_reconnects_per_second.map(|limit| {
        let closings = u64::from(limit.get()).saturating_mul(policy.drain_seconds.max(1));
        i32::try_from(closings / policy.model.clients_per_instance).unwrap_or(i32::MAX).max(1)
    });
    match affordable.filter(|affordable| i64::from(*affordable) < i64::from(most.div_ceil(4))) {
        Some(affordable) => IntOrString::Int(affordable),
        None => IntOrString::String("25%".to_owned()),
    }
}

/// The Service: the public port only.
#[must_use]
pub fn build_service(cluster: &ValidatedCluster) -> Service {
    let identity = &cluster.identity;
    let mut metadata = metadata::owned(identity, Component::Backend, names::backend(&identity.name));
    let annotations = cluster.route.as_ref().map(ingress::service_annotations).unwrap_or_default();
    metadata.annotations = (!annotations.is_empty()).then_some(annotations);
    Service {
        metadata,
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            selector: Some(names::selector(&identity.name, Component::Backend)),
            session_affinity: Some("None".to_owned()),
            internal_traffic_policy: Some("Cluster".to_owned()),
            ports: Some(vec![ServicePort {
                name: Some("http".to_owned()),
                port: HTTP_PORT,
                target_port: Some(IntOrString::String("http".to_owned())),
                protocol: Some("TCP".to_owned()),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

/// The ServiceAccount, without a token: the instances never talk to Kubernetes.
#[must_use]
pub fn build_service_account(cluster: &ValidatedCluster) -> ServiceAccount {
    let identity = &cluster.identity;
    ServiceAccount {
        metadata: metadata::owned(identity, Component::Backend, names::backend(&identity.name)),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}

fn build_pod(cluster: &ValidatedCluster) -> PodTemplateSpec {
    let identity = &cluster.identity;
    let spec = &cluster.backend.spec;
    let pod = &spec.pod;

    let mut labels = pod.labels.clone();
    labels.extend(names::labels(&identity.name, Component::Backend));
    let mut annotations = pod.annotations.clone();
    if let Some(redis) = &cluster.redis {
        annotations.insert(names::REDIS_PASSWORD_FINGERPRINT.to_owned(), redis.password_fingerprint.clone());
    }
    let pull_secrets: Vec<LocalObjectReference> = spec
        .image_pull_secrets
        .iter()
        .map(|secret| LocalObjectReference { name: secret.name.clone() })
        .collect();

    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(labels),
            annotations: (!annotations.is_empty()).then_some(annotations),
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            affinity: Some(placement::build_affinity(cluster)),
            automount_service_account_token: Some(false),
            containers: vec![build_container(cluster)],
            dns_policy: Some("ClusterFirst".to_owned()),
            enable_service_links: Some(false),
            image_pull_secrets: (!pull_secrets.is_empty()).then_some(pull_secrets),
            node_selector: (!pod.node_selector.is_empty()).then(|| pod.node_selector.clone()),
            priority_class_name: pod.priority_class_name.clone(),
            restart_policy: Some("Always".to_owned()),
            scheduler_name: Some("default-scheduler".to_owned()),
            security_context: Some(metadata::pod_security(USER)),
            service_account_name: Some(names::backend(&identity.name)),
            termination_grace_period_seconds: Some(i64::from(
                PRE_STOP_SECONDS + spec.stream.drain_seconds + CLOSING_SECONDS,
            )),
            tolerations: (!pod.tolerations.is_empty()).then(|| pod.tolerations.clone()),
            topology_spread_constraints: Some(placement::build_spread(cluster)),
            volumes: Some(build_volumes(cluster)),
            ..PodSpec::default()
        }),
    }
}

fn build_container(cluster: &ValidatedCluster) -> Container {
    let mut mounts =
        vec![metadata::mount("principals", PRINCIPALS_DIR, true), metadata::mount("keys", KEYS_DIR, true)];
    if cluster.redis.is_some() {
        mounts.push(metadata::mount("redis", REDIS_DIR, true));
    }
    Container {
        name: names::BACKEND_CONTAINER.to_owned(),
        image: Some(cluster.backend.image.clone()),
        image_pull_policy: Some(cluster.backend.spec.image_pull_policy.as_str().to_owned()),
        env: Some(build_environment(cluster)),
        ports: Some(vec![
            metadata::container_port("http", HTTP_PORT),
            metadata::container_port("admin", ADMIN_PORT),
        ]),
        resources: Some(cluster.backend.resources.clone()),
        security_context: Some(metadata::container_security()),
        volume_mounts: Some(mounts),
        lifecycle: Some(Lifecycle {
            pre_stop: Some(LifecycleHandler {
                sleep: Some(SleepAction { seconds: i64::from(PRE_STOP_SECONDS) }),
                ..LifecycleHandler::default()
            }),
            ..Lifecycle::default()
        }),
        // A second apart while it starts, so that it serves as soon as it can.
        startup_probe: Some(probe("/livez", 1, 60)),
        readiness_probe: Some(probe("/readyz", READINESS_PERIOD_SECONDS, READINESS_FAILURES)),
        liveness_probe: Some(probe("/livez", 10, 3)),
        termination_message_path: Some("/dev/termination-log".to_owned()),
        // The last lines of the log are the reason that status shows.
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        ..Container::default()
    }
}

fn build_environment(cluster: &ValidatedCluster) -> Vec<EnvVar> {
    let spec = &cluster.backend.spec;
    let stream = &spec.stream;
    let limits = &spec.limits;
    let mut variables = vec![
        ("EPHEMERAL_TOKEN_TTL_SEC", spec.token_ttl_seconds.to_string()),
        ("VX11_ACCEPT_PRINCIPAL_TOKEN_IN_QUERY", spec.accept_principal_token_in_query.to_string()),
        ("VX11_ADMIN_LISTEN", format!("0.0.0.0:{ADMIN_PORT}")),
        ("VX11_ALLOWED_ORIGINS", spec.allowed_origins.join(",")),
        ("VX11_CONTROL_TOKEN_FILE", format!("{KEYS_DIR}/control-token")),
        ("VX11_DRAIN_DELAY_SEC", DRAIN_DELAY_SECONDS.to_string()),
        ("VX11_DRAIN_SEC", stream.drain_seconds.to_string()),
        ("VX11_ISSUE_RATE_PER_ADDRESS", limits.issuances_per_second_per_address.to_string()),
        ("VX11_ISSUE_RATE_PER_PRINCIPAL", limits.issuances_per_second_per_principal.to_string()),
        ("VX11_LISTEN", format!("0.0.0.0:{HTTP_PORT}")),
        (names::MAX_CLIENTS_VARIABLE, stream.max_clients_per_instance.to_string()),
        ("VX11_MAX_CLIENTS_PER_ADDRESS", limits.clients_per_address.to_string()),
        ("VX11_MAX_CLIENTS_PER_PRINCIPAL", limits.clients_per_principal.to_string()),
        ("VX11_OPERATOR_SSE_HEARTBEAT", stream.heartbeat_seconds.to_string()),
        ("VX11_PRINCIPAL_TOKENS_DIR", PRINCIPALS_DIR.to_owned()),
        ("VX11_RESUME_WINDOW_SEC", stream.resume_window_seconds.to_string()),
        ("VX11_SIGNING_KEYS_DIR", KEYS_DIR.to_owned()),
        ("VX11_SINGLE_USE_TOKENS", spec.single_use_tokens.to_string()),
        ("VX11_STREAM_RETRY_MS", stream.retry_milliseconds.to_string()),
        ("VX11_TRUSTED_PROXIES", spec.trusted_proxies.join(",")),
    ];
    if let Some(redis) = &cluster.redis {
        // Half of a small Redis is for the tokens.
        let half = redis.max_memory.map_or(MOST_EVENT_BYTES, |bytes| bytes / 2);
        variables.extend([
            ("VX11_EVENT_BYTES", half.clamp(LEAST_EVENT_BYTES, MOST_EVENT_BYTES).to_string()),
            ("REDIS_DB", redis.database.to_string()),
            ("REDIS_HOST", names::redis(&cluster.identity.name)),
            ("REDIS_PASSWORD_FILE", format!("{REDIS_DIR}/password")),
            ("REDIS_PORT", names::REDIS_PORT.to_string()),
        ]);
    }
    variables.sort();
    let instance_id = EnvVar {
        name: "INSTANCE_ID".to_owned(),
        value: None,
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                api_version: Some("v1".to_owned()),
                field_path: "metadata.name".to_owned(),
            }),
            ..EnvVarSource::default()
        }),
    };
    std::iter::once(instance_id)
        .chain(
            variables
                .into_iter()
                // The API drops an empty value; so do we, and the flag's default is empty too.
                .filter(|(_, value)| !value.is_empty())
                .map(|(name, value)| EnvVar { name: name.to_owned(), value: Some(value), value_from: None }),
        )
        .collect()
}

fn build_volumes(cluster: &ValidatedCluster) -> Vec<Volume> {
    let mut volumes = vec![
        metadata::secret_volume("principals", cluster.backend.principals.name()),
        metadata::secret_volume("keys", cluster.backend.signing_key.name()),
    ];
    if let Some(redis) = &cluster.redis {
        volumes.push(Volume {
            name: "redis".to_owned(),
            secret: Some(SecretVolumeSource {
                secret_name: Some(redis.auth.name().to_owned()),
                default_mode: Some(0o440),
                items: Some(vec![KeyToPath {
                    key: names::PASSWORD_KEY.to_owned(),
                    path: "password".to_owned(),
                    mode: None,
                }]),
                ..SecretVolumeSource::default()
            }),
            ..Volume::default()
        });
    }
    volumes
}

fn probe(path: &str, period_seconds: i32, failure_threshold: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String("admin".to_owned()),
            scheme: Some("HTTP".to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period_seconds),
        timeout_seconds: Some(2),
        success_threshold: Some(1),
        failure_threshold: Some(failure_threshold),
        ..Probe::default()
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::{
        build::fixture::{defaults, memory_cluster, object, referenced, simple_cluster},
        reconcile::validate::validate,
    };

    #[test]
    fn the_deployment_of_a_simple_cluster() {
        insta::assert_yaml_snapshot!(build_deployment(&simple_cluster()));
    }

    #[test]
    fn the_deployment_without_a_redis() {
        insta::assert_yaml_snapshot!(build_deployment(&memory_cluster()));
    }

    #[test]
    fn the_service_and_the_account() {
        let cluster = simple_cluster();
        insta::assert_yaml_snapshot!((build_service(&cluster), build_service_account(&cluster)));
    }

    #[test]
    fn the_events_leave_half_of_a_small_redis_to_the_tokens() {
        let mut cluster = simple_cluster();
        for (max_memory, expected) in
            [(None, "33554432"), (Some(50_000_000), "25000000"), (Some(1_000_000), "1048576")]
        {
            cluster.redis.as_mut().unwrap().max_memory = max_memory;
            let variables = build_environment(&cluster);
            let bytes = variables.iter().find(|variable| variable.name == "VX11_EVENT_BYTES").unwrap();
            assert_eq!(bytes.value.as_deref(), Some(expected));
        }
    }

    #[test]
    fn the_pod_outlives_its_drain() {
        let mut cluster = simple_cluster();
        cluster.backend.spec.stream.drain_seconds = 90;
        let pod = build_pod(&cluster).spec.unwrap();
        assert_eq!(pod.termination_grace_period_seconds, Some(100));
    }

    #[test]
    fn a_rollout_waits_until_what_it_replaced_has_closed() {
        let mut cluster = simple_cluster();
        cluster.backend.spec.stream.drain_seconds = 600;
        let spec = build_deployment(&cluster).spec.unwrap();
        assert_eq!(spec.min_ready_seconds, Some(603));
        assert!(spec.progress_deadline_seconds > spec.min_ready_seconds, "or the API server refuses it");
    }

    #[rstest]
    #[case::no_limit("{}", "25%")]
    #[case::two_full_ones("{maxReconnectsPerSecond: 50}", "2")]
    #[case::less_than_one("{maxReconnectsPerSecond: 1}", "1")]
    #[case::more_than_a_quarter("{maxReconnectsPerSecond: 75}", "25%")]
    #[case::a_quarter_of_more("{maxReconnectsPerSecond: 75, maxInstances: 20}", "3")]
    fn a_rollout_closes_no_more_at_a_time_than_the_budget_allows(
        #[case] autoscaling: &str,
        #[case] surge: &str,
    ) {
        let object = object(&format!("{{autoscaling: {autoscaling}}}"));
        let cluster = validate(&object, &referenced(), &defaults()).unwrap();
        let strategy = build_deployment(&cluster).spec.unwrap().strategy.unwrap();
        let built = match strategy.rolling_update.unwrap().max_surge.unwrap() {
            IntOrString::Int(number) => number.to_string(),
            IntOrString::String(text) => text,
        };
        assert_eq!(built, surge);
    }

    #[test]
    fn labels_of_the_user_never_replace_ours() {
        let mut cluster = simple_cluster();
        cluster.backend.spec.pod.labels.insert(names::INSTANCE.to_owned(), "other".to_owned());
        let labels = build_pod(&cluster).metadata.unwrap().labels.unwrap();
        assert_eq!(labels[names::INSTANCE], "simple-cluster");
    }
}
