//! The Redis: StatefulSet, headless Service and the ConfigMap with its configuration and probes.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::{
            RollingUpdateStatefulSetStrategy, StatefulSet, StatefulSetPersistentVolumeClaimRetentionPolicy,
            StatefulSetSpec, StatefulSetUpdateStrategy,
        },
        core::v1::{
            ConfigMap, ConfigMapVolumeSource, Container, EmptyDirVolumeSource, ExecAction,
            LocalObjectReference, PersistentVolumeClaim, PersistentVolumeClaimSpec, PodSpec, PodTemplateSpec,
            Probe, Service, ServicePort, ServiceSpec, Volume, VolumeResourceRequirements,
        },
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};

use super::metadata;
use crate::{
    cluster::{Redis, ValidatedCluster},
    fingerprint,
    names::{self, Component, REDIS_PORT},
};

/// User `redis` of the official image; images with another one run under this uid as well.
const USER: i64 = 999;
const CONFIG_DIR: &str = "/etc/redis";
const AUTH_DIR: &str = "/etc/vx11/redis";

/// Starts the server. The password goes through standard input, so that it is in no argument, no variable
/// and no object; the shell passes it by a pipe, not by a file on the read-only root.
const START: &str = r#"exec redis-server /etc/redis/redis.conf - <<END
requirepass "$(cat /etc/vx11/redis/password)"
END
"#;

/// Ready is an answer PONG: not while a data set loads, not when a write failed (MISCONF), not with another
/// password. What it prints becomes the event that status quotes.
const READY: &str = r#"reply="$(REDISCLI_AUTH="$(cat /etc/vx11/redis/password)" redis-cli -h 127.0.0.1 ping 2>&1)"
case "$reply" in
  PONG) exit 0 ;;
  *) echo "$reply"; exit 1 ;;
esac
"#;

/// Alive is any answer at all: a restart cures neither loading, nor a full disk, nor a wrong password.
const ALIVE: &str = r#"reply="$(redis-cli -h 127.0.0.1 ping 2>&1)"
case "$reply" in
  "" | "Could not connect"*) echo "$reply"; exit 1 ;;
  *) exit 0 ;;
esac
"#;

/// Configuration and scripts.
#[must_use]
pub fn build_config_map(cluster: &ValidatedCluster, redis: &Redis) -> ConfigMap {
    let identity = &cluster.identity;
    ConfigMap {
        metadata: metadata::owned(identity, Component::Redis, names::redis(&identity.name)),
        data: Some(build_files(redis)),
        ..ConfigMap::default()
    }
}

/// The headless Service. It names the Redis before it is ready, so that instances reconnect without waiting
/// for a probe and for DNS; a Redis that is loading says so itself.
#[must_use]
pub fn build_service(cluster: &ValidatedCluster) -> Service {
    let identity = &cluster.identity;
    Service {
        metadata: metadata::owned(identity, Component::Redis, names::redis(&identity.name)),
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            cluster_ip: Some("None".to_owned()),
            publish_not_ready_addresses: Some(true),
            selector: Some(names::selector(&identity.name, Component::Redis)),
            session_affinity: Some("None".to_owned()),
            internal_traffic_policy: Some("Cluster".to_owned()),
            ports: Some(vec![ServicePort {
                name: Some("redis".to_owned()),
                port: REDIS_PORT,
                target_port: Some(IntOrString::String("redis".to_owned())),
                protocol: Some("TCP".to_owned()),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

/// The StatefulSet: one Redis, whose volume outlives it.
#[must_use]
pub fn build_stateful_set(cluster: &ValidatedCluster, redis: &Redis) -> StatefulSet {
    let identity = &cluster.identity;
    let retain = || Some("Retain".to_owned());
    StatefulSet {
        metadata: metadata::owned(identity, Component::Redis, names::redis(&identity.name)),
        spec: Some(StatefulSetSpec {
            // The volume holds what clients resume from: it goes only when a person deletes it.
            persistent_volume_claim_retention_policy: Some(StatefulSetPersistentVolumeClaimRetentionPolicy {
                when_deleted: retain(),
                when_scaled: retain(),
            }),
            // OrderedReady would never replace a pod that is not ready: a wrong image or a changed password
            // could not be cured by the change that cures it.
            pod_management_policy: Some("Parallel".to_owned()),
            replicas: Some(1),
            revision_history_limit: Some(3),
            selector: metadata::selector(identity, Component::Redis),
            service_name: Some(names::redis(&identity.name)),
            template: build_pod(cluster, redis),
            update_strategy: Some(StatefulSetUpdateStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateStatefulSetStrategy {
                    partition: Some(0),
                    max_unavailable: None,
                }),
            }),
            volume_claim_templates: build_claim(cluster, redis).map(|claim| vec![claim]),
            ..StatefulSetSpec::default()
        }),
        status: None,
    }
}

fn build_files(redis: &Redis) -> BTreeMap<String, String> {
    BTreeMap::from([
        ("alive.sh".to_owned(), ALIVE.to_owned()),
        ("ready.sh".to_owned(), READY.to_owned()),
        ("redis.conf".to_owned(), build_configuration(redis)),
        ("start.sh".to_owned(), START.to_owned()),
    ])
}

fn build_configuration(redis: &Redis) -> String {
    let mut lines = vec![
        "bind * -::*".to_owned(),
        format!("port {REDIS_PORT}"),
        "protected-mode yes".to_owned(),
        "tcp-keepalive 60".to_owned(),
        "dir /data".to_owned(),
        // Refuse writes rather than forget a token that somebody was told is valid.
        "maxmemory-policy noeviction".to_owned(),
    ];
    if let Some(bytes) = redis.max_memory {
        lines.push(format!("maxmemory {bytes}"));
    }
    if redis.volume.is_some() {
        lines.extend([
            // At most one second of tokens and events is lost when the node dies.
            "appendonly yes".to_owned(),
            "appendfsync everysec".to_owned(),
            "save 3600 1".to_owned(),
        ]);
    } else {
        lines.extend(["appendonly no".to_owned(), "save \"\"".to_owned()]);
    }
    lines.push(String::new());
    lines.join("\n")
}

fn build_pod(cluster: &ValidatedCluster, redis: &Redis) -> PodTemplateSpec {
    let identity = &cluster.identity;
    let pull_secrets: Vec<LocalObjectReference> = cluster
        .backend
        .spec
        .image_pull_secrets
        .iter()
        .map(|secret| LocalObjectReference { name: secret.name.clone() })
        .collect();
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(names::labels(&identity.name, Component::Redis)),
            annotations: Some(BTreeMap::from([
                (names::REDIS_PASSWORD_FINGERPRINT.to_owned(), redis.password_fingerprint.clone()),
                (names::REDIS_CONFIG_FINGERPRINT.to_owned(), fingerprint::of_map(&build_files(redis))),
            ])),
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            automount_service_account_token: Some(false),
            containers: vec![build_container(cluster, redis)],
            dns_policy: Some("ClusterFirst".to_owned()),
            enable_service_links: Some(false),
            image_pull_secrets: (!pull_secrets.is_empty()).then_some(pull_secrets),
            restart_policy: Some("Always".to_owned()),
            scheduler_name: Some("default-scheduler".to_owned()),
            security_context: Some(metadata::pod_security(USER)),
            service_account_name: Some("default".to_owned()),
            // Time to write the append-only file out.
            termination_grace_period_seconds: Some(30),
            volumes: Some(build_volumes(cluster, redis)),
            ..PodSpec::default()
        }),
    }
}

fn build_container(cluster: &ValidatedCluster, redis: &Redis) -> Container {
    Container {
        name: "redis".to_owned(),
        image: Some(redis.image.clone()),
        image_pull_policy: Some(cluster.backend.spec.image_pull_policy.as_str().to_owned()),
        command: Some(vec!["sh".to_owned(), format!("{CONFIG_DIR}/start.sh")]),
        ports: Some(vec![metadata::container_port("redis", REDIS_PORT)]),
        resources: Some(redis.resources.clone()),
        security_context: Some(metadata::container_security()),
        volume_mounts: Some(vec![
            metadata::mount("config", CONFIG_DIR, true),
            metadata::mount("auth", AUTH_DIR, true),
            metadata::mount(names::REDIS_VOLUME, "/data", false),
        ]),
        // A second apart while it starts; from then on readiness decides alone, at once.
        startup_probe: Some(probe("alive.sh", 1, 120)),
        readiness_probe: Some(probe("ready.sh", 5, 2)),
        liveness_probe: Some(probe("alive.sh", 10, 6)),
        termination_message_path: Some("/dev/termination-log".to_owned()),
        // The last lines of the log are the reason that status shows.
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        ..Container::default()
    }
}

fn build_volumes(cluster: &ValidatedCluster, redis: &Redis) -> Vec<Volume> {
    let mut volumes = vec![
        Volume {
            name: "config".to_owned(),
            config_map: Some(ConfigMapVolumeSource {
                name: names::redis(&cluster.identity.name),
                default_mode: Some(0o444),
                ..ConfigMapVolumeSource::default()
            }),
            ..Volume::default()
        },
        metadata::secret_volume("auth", redis.auth.name()),
    ];
    if redis.volume.is_none() {
        volumes.push(Volume {
            name: names::REDIS_VOLUME.to_owned(),
            empty_dir: Some(EmptyDirVolumeSource::default()),
            ..Volume::default()
        });
    }
    volumes
}

fn build_claim(cluster: &ValidatedCluster, redis: &Redis) -> Option<PersistentVolumeClaim> {
    let volume = redis.volume.as_ref()?;
    Some(PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(names::REDIS_VOLUME.to_owned()),
            labels: Some(names::labels(&cluster.identity.name, Component::Redis)),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
            resources: Some(VolumeResourceRequirements {
                requests: Some(BTreeMap::from([("storage".to_owned(), Quantity(volume.size.clone()))])),
                limits: None,
            }),
            storage_class_name: volume.class.clone(),
            volume_mode: Some("Filesystem".to_owned()),
            ..PersistentVolumeClaimSpec::default()
        }),
        status: None,
    })
}

fn probe(script: &str, period_seconds: i32, failure_threshold: i32) -> Probe {
    Probe {
        exec: Some(ExecAction { command: Some(vec!["sh".to_owned(), format!("{CONFIG_DIR}/{script}")]) }),
        period_seconds: Some(period_seconds),
        timeout_seconds: Some(3),
        success_threshold: Some(1),
        failure_threshold: Some(failure_threshold),
        ..Probe::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::fixture::simple_cluster;

    #[test]
    fn the_redis_of_a_simple_cluster() {
        let cluster = simple_cluster();
        let redis = cluster.redis.clone().unwrap();
        insta::assert_yaml_snapshot!("config-map", build_config_map(&cluster, &redis));
        insta::assert_yaml_snapshot!("service", build_service(&cluster));
        insta::assert_yaml_snapshot!("stateful-set", build_stateful_set(&cluster, &redis));
    }

    #[test]
    fn without_persistence_nothing_is_written_to_a_volume() {
        let cluster = simple_cluster();
        let mut redis = cluster.redis.clone().unwrap();
        redis.volume = None;
        let spec = build_stateful_set(&cluster, &redis).spec.unwrap();
        assert_eq!(spec.volume_claim_templates, None);
        let volumes = spec.template.spec.unwrap().volumes.unwrap();
        assert!(volumes.iter().any(|volume| volume.name == "data" && volume.empty_dir.is_some()));
        assert!(build_configuration(&redis).contains("appendonly no"));
    }

    #[test]
    fn a_new_password_rolls_the_pod() {
        let cluster = simple_cluster();
        let mut redis = cluster.redis.clone().unwrap();
        let before = build_pod(&cluster, &redis);
        redis.password_fingerprint = "ffffff".to_owned();
        assert_ne!(before.metadata, build_pod(&cluster, &redis).metadata);
    }

    #[test]
    fn a_changed_configuration_rolls_the_pod() {
        let cluster = simple_cluster();
        let mut redis = cluster.redis.clone().unwrap();
        let before = build_pod(&cluster, &redis);
        redis.max_memory = Some(1);
        assert_ne!(before.metadata, build_pod(&cluster, &redis).metadata);
    }
}
