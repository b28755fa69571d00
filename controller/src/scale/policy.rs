//! What the spec asks of the scaling, in the units that decisions are made in.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

use super::capacity::{CapacityModel, Load};

/// Seconds that a lower `spec.instances` waits for a moment at which instances can go drained: as long as a Deployment
/// may go without progress. What stands in the way then does not pass.
pub const PATIENCE_SECONDS: u64 = 600;

/// Who sets the count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum Target {
    /// The load, within bounds. `min` is at least 1 and at most `max`.
    Load {
        /// Fewest instances.
        min: u32,
        /// Most instances.
        max: u32,
        /// A load known beforehand: a floor under the observed one.
        expected: Load,
    },
    /// `spec.instances`.
    Fixed {
        /// The count; 0 stops the cluster.
        instances: u32,
    },
}

/// Seconds that a lower need lasts at least: clients whose streams were closed (levelling, a lost instance) are no
/// instance's load until they are back, and a count that follows that gap would close the next streams.
const RECONNECT_SECONDS: u64 = 15;

/// The scaling part of a spec. Seconds unless a name says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    /// What an instance carries.
    pub model: CapacityModel,
    /// Who sets the count.
    pub target: Target,
    /// How long a higher need must last.
    pub scale_out_stabilization_seconds: u64,
    /// How long a lower need must last.
    pub scale_in_stabilization_seconds: u64,
    /// Most instances added at once.
    pub max_scale_out_step: Option<NonZeroU32>,
    /// Most instances removed at once.
    pub max_scale_in_step: Option<NonZeroU32>,
    /// Most streams closed a second so that they reconnect elsewhere; absent, what the remaining instances
    /// can issue tokens for.
    pub max_reconnects_per_second: Option<NonZeroU32>,
    /// Over how many seconds a drain closes an instance's streams.
    pub drain_seconds: u64,
    /// Level the streams after a scale-out.
    pub rebalance: bool,
    /// Milliseconds between looks when nothing is under way.
    pub interval_ms: u64,
}

impl Policy {
    /// How long a lower need must last, a reconnect at least.
    #[must_use]
    pub fn scale_in_window_seconds(&self) -> u64 {
        self.scale_in_stabilization_seconds.max(RECONNECT_SECONDS)
    }

    /// How long a history must reach back: the longest stabilisation window, or the patience.
    #[must_use]
    pub fn window_ms(&self) -> u64 {
        let seconds = match self.target {
            Target::Load { .. } => self.scale_in_window_seconds().max(self.scale_out_stabilization_seconds),
            Target::Fixed { .. } => PATIENCE_SECONDS,
        };
        seconds.saturating_mul(1000)
    }
}

impl Default for Policy {
    /// The defaults of `spec.autoscaling`, for 1 to 10 instances.
    fn default() -> Self {
        Self {
            model: CapacityModel::default(),
            target: Target::Load { min: 1, max: 10, expected: Load::default() },
            scale_out_stabilization_seconds: 0,
            scale_in_stabilization_seconds: 300,
            max_scale_out_step: None,
            max_scale_in_step: None,
            max_reconnects_per_second: None,
            drain_seconds: 20,
            rebalance: true,
            interval_ms: 5000,
        }
    }
}
