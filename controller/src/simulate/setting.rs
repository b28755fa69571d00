//! The setting of a run: every field of `spec.autoscaling` at one of a few values, by the seed, and what runs have in
//! common.

use std::num::NonZeroU32;

use super::random::Random;
use crate::scale::{
    capacity::{CapacityModel, Load, Percent},
    policy::{Policy, Target},
};

/// Seconds until the successor of a controller that died looks.
pub const CRASH_SECONDS: u64 = 15;

/// A policy for a load that asks for `peak_instances` at its peak.
pub fn policy(peak_instances: u32, random: &mut Random) -> Policy {
    let percent = [100, 100, 80, 60][random.index(4)];
    let model = CapacityModel {
        target_utilization: Percent::try_from(percent).unwrap_or(Percent::FULL),
        ..CapacityModel::default()
    };
    let peak = model.usable(peak_instances).clients;
    let min = [1, 1, 2, peak_instances / 3 + 1][random.index(4)];
    // Room to spare, or less than the peak asks for.
    let max =
        [peak_instances + peak_instances / 10 + 2, peak_instances * 2 / 3 + 1][random.index(2)].max(min);
    let expected = Load { clients: [0, 0, peak / 2][random.index(3)], issuances_per_second: 0 };
    let drain_seconds = [5, 20, 40][random.index(3)];
    // Wide enough that a third of the streams can move in one drain, and any one instance.
    let reconnects = (peak / 3).max(1000).div_ceil(drain_seconds);
    let step = |random: &mut Random| match random.index(3) {
        0 => NonZeroU32::new(peak_instances / 3 + 1),
        _ => None,
    };
    Policy {
        model,
        target: Target::Load { min, max, expected },
        scale_out_stabilization_seconds: [0, 0, 0, 10, 30][random.index(5)],
        scale_in_stabilization_seconds: [0, 30, 60, 120][random.index(4)],
        max_scale_out_step: step(random),
        max_scale_in_step: step(random),
        max_reconnects_per_second: if random.once_in(2) {
            u32::try_from(reconnects).ok().and_then(NonZeroU32::new)
        } else {
            None
        },
        drain_seconds,
        rebalance: random.once_in(2),
        ..Policy::default()
    }
}

/// The count that so many clients ask for within the bounds.
pub fn needed(policy: &Policy, clients: u64) -> u32 {
    let Target::Load { min, max, expected } = policy.target else { return 0 };
    policy.model.needed(Load { clients, issuances_per_second: 0 }.max(expected)).clamp(min, max)
}
