//! `spec.autoscaling`: how many instances the load asks for.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// The count follows the load. While this section is present the controller owns the count, and
/// `spec.instances` is only the starting count; nothing is ever written back into the spec. The defaults
/// are the numbers of the scaling guide: 500 clients and 1000 issuances a second an instance, of which the
/// load balancer costs 5 % from the second instance on.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("self.minInstances <= self.maxInstances")
    .message("spec.autoscaling.minInstances must not be above maxInstances: lower minInstances or raise maxInstances"))]
#[serde(rename_all = "camelCase")]
pub struct AutoscalingSpec {
    /// Fewest instances.
    #[serde(default = "defaults::min_instances")]
    #[schemars(range(max = 1000))]
    #[x_kube(validation = Rule::new("self >= 1")
        .message("spec.autoscaling.minInstances must be at least 1: to stop a cluster, remove spec.autoscaling and set spec.instances to 0"))]
    pub min_instances: i32,

    /// Most instances. A load that needs more shows as the condition ScalingLimited.
    #[serde(default = "defaults::max_instances")]
    #[schemars(range(max = 1000))]
    #[x_kube(validation = Rule::new("self >= 1")
        .message("spec.autoscaling.maxInstances must be at least 1: set it to the most instances you can run"))]
    pub max_instances: i32,

    /// Clients (open streams) that one instance carries.
    #[serde(default = "defaults::clients_per_instance")]
    #[schemars(range(max = 1_000_000))]
    #[x_kube(validation = Rule::new("self >= 1")
        .message("spec.autoscaling.clientsPerInstance must be at least 1: an instance without capacity cannot carry a load; the scaling guide takes 500"))]
    pub clients_per_instance: i32,

    /// Tokens that one instance issues a second.
    #[serde(default = "defaults::issuances_per_second_per_instance")]
    #[schemars(range(max = 1_000_000))]
    #[x_kube(validation = Rule::new("self >= 1")
        .message("spec.autoscaling.issuancesPerSecondPerInstance must be at least 1: an instance without capacity cannot carry a load; the scaling guide takes 1000"))]
    pub issuances_per_second_per_instance: i32,

    /// What is left of an instance behind the load balancer, in percent. One instance alone counts in full.
    #[serde(default = "defaults::load_balancer_efficiency_percent")]
    #[x_kube(validation = Rule::new("self >= 1 && self <= 100")
        .message("spec.autoscaling.loadBalancerEfficiencyPercent must be 1 to 100: the scaling guide takes 95"))]
    pub load_balancer_efficiency_percent: i32,

    /// How full the instances may be, in percent. Below 100 there is always room for a rise in load while
    /// new instances start.
    #[serde(default = "defaults::target_utilization_percent")]
    #[x_kube(validation = Rule::new("self >= 1 && self <= 100")
        .message("spec.autoscaling.targetUtilizationPercent must be 1 to 100: 100 fills the instances, 80 keeps a fifth free"))]
    pub target_utilization_percent: i32,

    /// Clients known beforehand (an event, a launch): a floor under the observed ones.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub expected_clients: i64,

    /// Issuances a second known beforehand: a floor under the observed ones.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub expected_issuances_per_second: i64,

    /// Seconds that a higher need must last before instances are added.
    #[serde(default)]
    #[schemars(range(min = 0, max = 3600))]
    pub scale_out_stabilization_seconds: i32,

    /// Seconds that a lower need must last before instances are drained and removed. Less than 15 is taken for 15:
    /// clients between two connections are no lower load.
    #[serde(default = "defaults::scale_in_stabilization_seconds")]
    #[schemars(range(min = 0, max = 3600))]
    pub scale_in_stabilization_seconds: i32,

    /// Most instances added at once. Absent: as many as the load needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_scale_out_step: Option<i32>,

    /// Most instances drained and removed at once. Absent: as many as the reconnects allow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_scale_in_step: Option<i32>,

    /// Most streams closed a second so that they reconnect to other instances. Absent: as many as the
    /// remaining instances can issue tokens for beyond their present load.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_reconnects_per_second: Option<i32>,

    /// Let the fullest instances shed streams after a scale-out, a tenth at a time, until the spread is under
    /// 20 %. Without it new instances fill up only as clients come and go.
    #[serde(default = "defaults::rebalance")]
    pub rebalance: bool,
}

impl Default for AutoscalingSpec {
    fn default() -> Self {
        Self {
            min_instances: defaults::min_instances(),
            max_instances: defaults::max_instances(),
            clients_per_instance: defaults::clients_per_instance(),
            issuances_per_second_per_instance: defaults::issuances_per_second_per_instance(),
            load_balancer_efficiency_percent: defaults::load_balancer_efficiency_percent(),
            target_utilization_percent: defaults::target_utilization_percent(),
            expected_clients: 0,
            expected_issuances_per_second: 0,
            scale_out_stabilization_seconds: 0,
            scale_in_stabilization_seconds: defaults::scale_in_stabilization_seconds(),
            max_scale_out_step: None,
            max_scale_in_step: None,
            max_reconnects_per_second: None,
            rebalance: defaults::rebalance(),
        }
    }
}

/// The numbers of the scaling guide, and what the design adds.
mod defaults {
    pub(super) const fn min_instances() -> i32 {
        1
    }
    pub(super) const fn max_instances() -> i32 {
        10
    }
    pub(super) const fn clients_per_instance() -> i32 {
        500
    }
    pub(super) const fn issuances_per_second_per_instance() -> i32 {
        1000
    }
    pub(super) const fn load_balancer_efficiency_percent() -> i32 {
        95
    }
    pub(super) const fn target_utilization_percent() -> i32 {
        100
    }
    pub(super) const fn scale_in_stabilization_seconds() -> i32 {
        300
    }
    pub(super) const fn rebalance() -> bool {
        true
    }
}
