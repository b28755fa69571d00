//! From `spec` to policy and plan request: the one place where fields of the API get their meaning for the
//! scaling. Pure.

use std::num::{NonZeroU32, NonZeroU64};

use thiserror::Error;
use vx11_crds::{VX11ClusterSpec, spec::AutoscalingSpec};

use super::{
    capacity::{CapacityModel, Load, Percent},
    plan::{DEFAULT_COST, Request},
    policy::{Policy, Target},
};
use crate::quantity;

/// CPU and memory of an instance where the spec says nothing, as the Deployment has them.
const DEFAULT_CPU_MILLIS: u64 = 100;
const DEFAULT_MEMORY_BYTES: u64 = 256 << 20;

/// Between looks at a cluster whose load decides nothing: as often as status takes figures over.
const FIXED_INTERVAL_MS: u64 = 15_000;

/// A value that the schema refuses; it can only come from a file that no API server has seen.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{field} {problem}")]
pub struct PolicyError {
    /// Path of the field.
    pub field: &'static str,
    /// What is wrong, and what to do.
    pub problem: String,
}

/// What a spec asks of the scaling.
pub fn policy(spec: &VX11ClusterSpec) -> Result<Policy, PolicyError> {
    let drain_seconds = u64::try_from(spec.backend.stream.drain_seconds).unwrap_or(0);
    let instances = u32::try_from(spec.instances)
        .map_err(|_| problem("spec.instances", "must not be negative".to_owned()))?;
    let Some(autoscaling) = spec.autoscaling.as_ref() else {
        return Ok(Policy {
            target: Target::Fixed { instances },
            drain_seconds,
            // It closes streams, and its switch is in the section that is not there.
            rebalance: false,
            interval_ms: FIXED_INTERVAL_MS,
            ..Policy::default()
        });
    };
    let min = positive("spec.autoscaling.minInstances", autoscaling.min_instances)?.get();
    let max = positive("spec.autoscaling.maxInstances", autoscaling.max_instances)?.get();
    if min > max {
        return Err(problem(
            "spec.autoscaling.minInstances",
            format!(
                "must not be above maxInstances ({min} > {max}): lower minInstances or raise maxInstances"
            ),
        ));
    }
    let target = if instances == 0 {
        // Stopped, as the field promises, whoever owns the count.
        Target::Fixed { instances }
    } else {
        Target::Load { min, max, expected: expected(autoscaling) }
    };
    Ok(Policy {
        model: model(autoscaling)?,
        target,
        scale_out_stabilization_seconds: seconds(autoscaling.scale_out_stabilization_seconds),
        scale_in_stabilization_seconds: seconds(autoscaling.scale_in_stabilization_seconds),
        max_scale_out_step: step(autoscaling.max_scale_out_step),
        max_scale_in_step: step(autoscaling.max_scale_in_step),
        max_reconnects_per_second: step(autoscaling.max_reconnects_per_second),
        drain_seconds,
        rebalance: autoscaling.rebalance,
        ..Policy::default()
    })
}

/// What to plan for; `clients` and `issuances` of a person who asks stand in for the expected ones.
pub fn plan_request(
    spec: &VX11ClusterSpec,
    clients: Option<u64>,
    issuances: Option<u64>,
) -> Result<Request, PolicyError> {
    let policy = policy(spec)?;
    let (min, max) = match policy.target {
        Target::Load { min, max, .. } => (min, max),
        Target::Fixed { .. } => (1, 1000),
    };
    let known = spec.autoscaling.as_ref().map_or_else(Load::default, expected);
    let resources = spec.backend.resources.as_ref();
    let resource = |name: &str| {
        let of = |map: &std::collections::BTreeMap<String, _>| map.get(name).cloned();
        resources.and_then(|resources| of(&resources.limits).or_else(|| of(&resources.requests)))
    };
    let amount = |name: &'static str, field: &'static str| {
        resource(name)
            .map(|quantity: k8s_openapi::apimachinery::pkg::api::resource::Quantity| {
                quantity::billionths(&quantity.0)
                    .and_then(|billionths| u128::try_from(billionths).ok())
                    .ok_or_else(|| {
                        problem(
                            field,
                            format!("`{}` is no quantity; write it like 500m or 256Mi", quantity.0),
                        )
                    })
            })
            .transpose()
    };
    let cpu = amount("cpu", "spec.backend.resources.cpu")?;
    let memory = amount("memory", "spec.backend.resources.memory")?;
    let whole = |billionths: u128, unit: u128| u64::try_from(billionths / unit).unwrap_or(u64::MAX);
    Ok(Request {
        model: policy.model,
        load: Load {
            clients: clients.unwrap_or(known.clients),
            issuances_per_second: issuances.unwrap_or(known.issuances_per_second),
        },
        min,
        max,
        availability: spec.autoscaling.is_none() && spec.instances > 1,
        cpu_millis: cpu.map_or(DEFAULT_CPU_MILLIS, |cpu| whole(cpu, 1_000_000)),
        memory_bytes: memory.map_or(DEFAULT_MEMORY_BYTES, |memory| whole(memory, 1_000_000_000)),
        token_ttl_seconds: seconds(spec.backend.token_ttl_seconds),
        cost: DEFAULT_COST,
    })
}

fn model(autoscaling: &AutoscalingSpec) -> Result<CapacityModel, PolicyError> {
    let capacity = |field, value| positive(field, value).map(NonZeroU64::from);
    Ok(CapacityModel {
        clients_per_instance: capacity(
            "spec.autoscaling.clientsPerInstance",
            autoscaling.clients_per_instance,
        )?,
        issuances_per_second_per_instance: capacity(
            "spec.autoscaling.issuancesPerSecondPerInstance",
            autoscaling.issuances_per_second_per_instance,
        )?,
        load_balancer_efficiency: percent(
            "spec.autoscaling.loadBalancerEfficiencyPercent",
            autoscaling.load_balancer_efficiency_percent,
        )?,
        target_utilization: percent(
            "spec.autoscaling.targetUtilizationPercent",
            autoscaling.target_utilization_percent,
        )?,
    })
}

fn expected(autoscaling: &AutoscalingSpec) -> Load {
    Load {
        clients: u64::try_from(autoscaling.expected_clients).unwrap_or(0),
        issuances_per_second: u64::try_from(autoscaling.expected_issuances_per_second).unwrap_or(0),
    }
}

fn positive(field: &'static str, value: i32) -> Result<NonZeroU32, PolicyError> {
    u32::try_from(value)
        .ok()
        .and_then(NonZeroU32::new)
        .ok_or_else(|| problem(field, format!("must be at least 1, not {value}")))
}

fn percent(field: &'static str, value: i32) -> Result<Percent, PolicyError> {
    u8::try_from(value)
        .ok()
        .and_then(|value| Percent::try_from(value).ok())
        .ok_or_else(|| problem(field, format!("must be 1 to 100, not {value}")))
}

fn step(value: Option<i32>) -> Option<NonZeroU32> {
    value.and_then(|value| u32::try_from(value).ok()).and_then(NonZeroU32::new)
}

fn seconds(value: i32) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

const fn problem(field: &'static str, problem: String) -> PolicyError {
    PolicyError { field, problem }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    fn spec(value: Value) -> VX11ClusterSpec {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn an_empty_autoscaling_section_has_the_numbers_of_the_scaling_guide() {
        let policy = policy(&spec(json!({"instances": 3, "autoscaling": {}}))).unwrap();
        assert_eq!(policy, Policy::default());
    }

    #[test]
    fn without_autoscaling_the_spec_sets_the_count() {
        let policy = policy(&spec(json!({"instances": 3}))).unwrap();
        assert_eq!(policy.target, Target::Fixed { instances: 3 });
        assert!(!policy.rebalance, "nobody asked for it, and nobody could switch it off");
    }

    #[test]
    fn no_instances_stop_a_cluster_with_autoscaling_too() {
        let policy = policy(&spec(json!({"instances": 0, "autoscaling": {}}))).unwrap();
        assert_eq!(policy.target, Target::Fixed { instances: 0 });
    }

    #[rstest]
    #[case(json!({"minInstances": 5, "maxInstances": 2}), "minInstances must not be above maxInstances (5 > 2): lower minInstances or raise maxInstances")]
    #[case(json!({"minInstances": 0}), "minInstances must be at least 1, not 0")]
    #[case(json!({"clientsPerInstance": 0}), "clientsPerInstance must be at least 1, not 0")]
    #[case(json!({"issuancesPerSecondPerInstance": -4}), "issuancesPerSecondPerInstance must be at least 1, not -4")]
    #[case(json!({"loadBalancerEfficiencyPercent": 0}), "loadBalancerEfficiencyPercent must be 1 to 100, not 0")]
    #[case(json!({"loadBalancerEfficiencyPercent": 101}), "loadBalancerEfficiencyPercent must be 1 to 100, not 101")]
    #[case(json!({"targetUtilizationPercent": 300}), "targetUtilizationPercent must be 1 to 100, not 300")]
    fn what_the_schema_refuses_is_refused_by_name_here_too(
        #[case] autoscaling: Value,
        #[case] message: &str,
    ) {
        let error = policy(&spec(json!({"autoscaling": autoscaling}))).unwrap_err().to_string();
        assert_eq!(error, format!("spec.autoscaling.{message}"));
    }

    #[test]
    fn a_plan_takes_resources_and_expected_load_from_the_spec() {
        let spec = spec(json!({
            "autoscaling": {"expectedClients": 1400},
            "backend": {"resources": {"requests": {"cpu": "250m"}, "limits": {"memory": "1Gi"}}},
        }));
        let request = plan_request(&spec, None, Some(12)).unwrap();
        assert_eq!(request.load, Load { clients: 1400, issuances_per_second: 12 });
        assert_eq!((request.cpu_millis, request.memory_bytes), (250, 1 << 30));
    }
}
