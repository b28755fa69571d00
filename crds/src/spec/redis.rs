//! `spec.redis`: the Redis that holds ephemeral tokens and the event stream.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::backend::ResourceRequirements;
use crate::quantity;

/// The Redis that holds ephemeral tokens and the event stream.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("self.type != 'None' || (!has(self.image) && !has(self.resources) && !has(self.persistence) && !has(self.storage) && !has(self.auth))")
        .message("spec.redis.type None runs no Redis: remove image, resources, persistence, storage and auth, or set type to Standalone"),
    validation = Rule::new("!has(self.storage) || !has(self.persistence) || self.persistence")
        .message("spec.redis.storage needs persistence: remove storage, or set spec.redis.persistence to true"),
    validation = Rule::new("self.type != 'Standalone' || oldSelf.type != 'Standalone' || (has(self.persistence) ? self.persistence : true) == (has(oldSelf.persistence) ? oldSelf.persistence : true)")
        .message("spec.redis.persistence cannot change while the Redis runs: it decides where its data lies; create a new cluster"),
    // Here and not at the section: absent, it stands for its defaults, and the volume of those exists as well.
    validation = Rule::new("self.type != 'Standalone' || oldSelf.type != 'Standalone' || (has(self.storage) && has(self.storage.storageClassName) ? self.storage.storageClassName : '') == (has(oldSelf.storage) && has(oldSelf.storage.storageClassName) ? oldSelf.storage.storageClassName : '')")
        .message("spec.redis.storage.storageClassName cannot change: the volume exists; create a new cluster to move to another class"),
    validation = Rule::new("self.type != 'Standalone' || oldSelf.type != 'Standalone' || quantity(has(self.storage) ? self.storage.size : '1Gi').compareTo(quantity(has(oldSelf.storage) ? oldSelf.storage.size : '1Gi')) >= 0")
        .message("spec.redis.storage.size cannot shrink: set it to at least its present value, which is 1Gi where it was absent")
)]
#[serde(rename_all = "camelCase")]
pub struct RedisSpec {
    /// `Standalone`: one Redis that the controller runs. `None`: no Redis; one instance keeps tokens and
    /// events in its own memory.
    #[serde(rename = "type", default)]
    pub type_: RedisType,

    /// Image of Redis 7 or later, with a shell and redis-cli. Default: the controller's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,

    /// CPU and memory of the Redis. Its `maxmemory` is three quarters of the memory limit. Default: requests
    /// 50m and 128Mi, memory limit 256Mi (60,000 live tokens need about 11 MiB).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,

    /// Redis database of the tokens and events.
    #[serde(default = "database_one")]
    #[schemars(range(min = 0, max = 15))]
    pub database: i32,

    /// Keep the data on a volume, so that tokens and events survive a restart of the Redis. Default: true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistence: Option<bool>,

    /// The volume. Default: 1Gi of the default StorageClass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<RedisStorageSpec>,

    /// The password. Absent, the controller generates one in the Secret `NAME-redis-auth`, once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<RedisAuthSpec>,
}

/// Which Redis a cluster uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RedisType {
    /// One Redis that the controller runs.
    #[default]
    Standalone,
    /// No Redis: one instance, tokens and events in its memory.
    None,
}

/// The volume of the Redis. It exists from the first start, also when the section is absent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RedisStorageSpec {
    /// Size, such as `1Gi`. It can grow where the StorageClass allows volume expansion; it never shrinks.
    #[serde(default = "one_gibibyte")]
    #[schemars(schema_with = "quantity::size")]
    pub size: String,

    /// StorageClass. Absent: the default one of the Kubernetes cluster. It cannot change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: Option<String>,
}

/// The password of the Redis.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RedisAuthSpec {
    /// Secret in the cluster's namespace with the key `password`. When it changes, the Redis and the
    /// instances restart once with the new password.
    #[schemars(length(min = 1, max = 253))]
    pub secret_name: String,
}

impl Default for RedisSpec {
    fn default() -> Self {
        Self {
            type_: RedisType::default(),
            image: None,
            resources: None,
            database: database_one(),
            persistence: None,
            storage: None,
            auth: None,
        }
    }
}

/// Database 1, as every VX11 client and script expects.
const fn database_one() -> i32 {
    1
}

fn one_gibibyte() -> String {
    "1Gi".to_owned()
}
