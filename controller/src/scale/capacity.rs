//! How much a number of instances carries, and how many instances a load needs.
//!
//! Exact integers in 128 bits, no floats, no I/O. The formula is the scaling guide's: one instance carries
//! its clients in full; from two on the load balancer costs a share of every instance.

use std::num::NonZeroU64;

use serde::{Deserialize, Serialize};

/// A whole percentage from 1 to 100.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct Percent(u8);

impl Percent {
    /// All of it.
    pub const FULL: Self = Self(100);

    /// The number, 1 to 100.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }
}

impl TryFrom<u8> for Percent {
    type Error = PercentOutOfRange;

    fn try_from(value: u8) -> Result<Self, Self::Error> {
        if (1..=100).contains(&value) { Ok(Self(value)) } else { Err(PercentOutOfRange(value)) }
    }
}

impl From<Percent> for u8 {
    fn from(value: Percent) -> Self {
        value.0
    }
}

/// A percentage that is not between 1 and 100.
#[derive(Debug, PartialEq, Eq)]
pub struct PercentOutOfRange(u8);

impl std::fmt::Display for PercentOutOfRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} is not a percentage from 1 to 100", self.0)
    }
}

impl std::error::Error for PercentOutOfRange {}

/// Clients and issuances together: a load, or the capacity for one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Load {
    /// Open streams.
    pub clients: u64,
    /// Tokens issued a second.
    pub issuances_per_second: u64,
}

impl Load {
    /// The larger of both in each dimension.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            clients: self.clients.max(other.clients),
            issuances_per_second: self.issuances_per_second.max(other.issuances_per_second),
        }
    }
}

/// What one instance carries, what the load balancer costs, and how full the instances may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CapacityModel {
    /// Clients one instance carries.
    pub clients_per_instance: NonZeroU64,
    /// Tokens one instance issues a second.
    pub issuances_per_second_per_instance: NonZeroU64,
    /// What is left of an instance behind the load balancer.
    pub load_balancer_efficiency: Percent,
    /// How full the instances may be.
    pub target_utilization: Percent,
}

impl Default for CapacityModel {
    /// The scaling guide's numbers: 500 clients, 1000 issuances a second, 0.95.
    fn default() -> Self {
        Self {
            clients_per_instance: NonZeroU64::MIN.saturating_add(499),
            issuances_per_second_per_instance: NonZeroU64::MIN.saturating_add(999),
            load_balancer_efficiency: Percent(95),
            target_utilization: Percent::FULL,
        }
    }
}

impl CapacityModel {
    /// What `instances` carry together when they are full; saturates at `u64::MAX`.
    #[must_use]
    pub fn capacity(&self, instances: u32) -> Load {
        Load {
            clients: self.carried(instances, self.clients_per_instance),
            issuances_per_second: self.carried(instances, self.issuances_per_second_per_instance),
        }
    }

    /// The smallest number of instances whose capacity covers both loads at the target utilisation; at least
    /// 1, saturating at `u32::MAX`.
    #[must_use]
    pub fn needed(&self, load: Load) -> u32 {
        self.needed_for(load.clients, self.clients_per_instance)
            .max(self.needed_for(load.issuances_per_second, self.issuances_per_second_per_instance))
    }

    /// What `instances` take together at the target utilisation, rounded down.
    #[must_use]
    pub fn usable(&self, instances: u32) -> Load {
        let share =
            |capacity| saturate(u128::from(capacity) * u128::from(self.target_utilization.get()) / 100);
        let Load { clients, issuances_per_second } = self.capacity(instances);
        Load { clients: share(clients), issuances_per_second: share(issuances_per_second) }
    }

    /// What each of `instances` takes at the target utilisation, rounded down.
    #[must_use]
    pub fn usable_each(&self, instances: u32) -> Load {
        let (Load { clients, issuances_per_second }, count) =
            (self.usable(instances), u64::from(instances.max(1)));
        Load { clients: clients / count, issuances_per_second: issuances_per_second / count }
    }

    /// How full `instances` are under `load`: the fuller of both dimensions in percent, rounded up. 0 without
    /// load; `u64::MAX` for a load on no instance.
    #[must_use]
    pub fn utilization_percent(&self, load: Load, instances: u32) -> u64 {
        let capacity = self.capacity(instances);
        share_percent(load.clients, capacity.clients)
            .max(share_percent(load.issuances_per_second, capacity.issuances_per_second))
    }

    fn carried(&self, instances: u32, each: NonZeroU64) -> u64 {
        match instances {
            0 => 0,
            1 => each.get(),
            n => saturate(u128::from(n) * self.effective(each) / 100),
        }
    }

    fn needed_for(&self, load: u64, each: NonZeroU64) -> u32 {
        // Capacity that the load asks for: load / target, rounded up.
        let target = u128::from(self.target_utilization.get());
        let capacity = (u128::from(load) * 100).div_ceil(target);
        if capacity <= u128::from(each.get()) {
            return 1;
        }
        // floor(n x each x efficiency / 100) >= capacity, solved for n; capacity is an integer, so the floor
        // does not matter.
        let instances = (capacity * 100).div_ceil(self.effective(each)).max(2);
        u32::try_from(instances).unwrap_or(u32::MAX)
    }

    /// One instance behind the load balancer, in hundredths.
    fn effective(&self, each: NonZeroU64) -> u128 {
        u128::from(each.get()) * u128::from(self.load_balancer_efficiency.get())
    }
}

fn share_percent(load: u64, capacity: u64) -> u64 {
    match (load, capacity) {
        (0, _) => 0,
        (_, 0) => u64::MAX,
        _ => saturate((u128::from(load) * 100).div_ceil(u128::from(capacity))),
    }
}

fn saturate(value: u128) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn clients(clients: u64) -> Load {
        Load { clients, ..Load::default() }
    }

    fn issuances(issuances_per_second: u64) -> Load {
        Load { issuances_per_second, ..Load::default() }
    }

    #[rstest]
    #[case(0, 0, 0)]
    #[case(1, 500, 1000)]
    #[case(2, 950, 1900)]
    #[case(3, 1425, 2850)]
    #[case(4, 1900, 3800)]
    #[case(5, 2375, 4750)]
    fn capacity_follows_the_scaling_guide(#[case] instances: u32, #[case] clients: u64, #[case] rate: u64) {
        let expected = Load { clients, issuances_per_second: rate };
        assert_eq!(CapacityModel::default().capacity(instances), expected);
    }

    #[rstest]
    #[case(clients(0), 1)]
    #[case(clients(499), 1)]
    #[case(clients(500), 1)]
    #[case(clients(501), 2)]
    #[case(clients(950), 2)]
    #[case(clients(951), 3)]
    #[case(clients(1425), 3)]
    #[case(clients(1426), 4)]
    #[case(issuances(1000), 1)]
    #[case(issuances(1001), 2)]
    #[case(issuances(2850), 3)]
    #[case(issuances(2851), 4)]
    #[case(Load { clients: 1425, issuances_per_second: 2851 }, 4)]
    #[case(Load { clients: 1426, issuances_per_second: 10 }, 4)]
    fn need_follows_the_scaling_guide(#[case] load: Load, #[case] instances: u32) {
        assert_eq!(CapacityModel::default().needed(load), instances);
    }

    #[test]
    fn a_target_below_full_keeps_room() {
        let model = CapacityModel { target_utilization: Percent(80), ..CapacityModel::default() };
        assert_eq!(model.needed(clients(400)), 1);
        assert_eq!(model.needed(clients(401)), 2);
        assert_eq!(model.needed(clients(1140)), 3);
        assert_eq!(model.needed(clients(1141)), 4);
        assert_eq!(model.usable_each(3).clients, 380);
    }

    #[test]
    fn utilization_is_the_fuller_dimension_rounded_up() {
        let model = CapacityModel::default();
        assert_eq!(model.utilization_percent(clients(1425), 3), 100);
        assert_eq!(model.utilization_percent(clients(1426), 3), 101);
        assert_eq!(model.utilization_percent(Load { clients: 10, issuances_per_second: 1425 }, 3), 50);
        assert_eq!(model.utilization_percent(clients(0), 0), 0);
        assert_eq!(model.utilization_percent(clients(1), 0), u64::MAX);
    }

    #[test]
    fn a_percentage_outside_its_range_is_refused_by_number() {
        assert_eq!(Percent::try_from(0).unwrap_err().to_string(), "0 is not a percentage from 1 to 100");
        assert!(serde_json::from_str::<Percent>("101").is_err());
    }

    prop_compose! {
        fn models()(each in 1..=u64::MAX, rate in 1..=u64::MAX, efficiency in 1..=100u8, target in 1..=100u8)
            -> CapacityModel {
            CapacityModel {
                clients_per_instance: NonZeroU64::new(each).unwrap(),
                issuances_per_second_per_instance: NonZeroU64::new(rate).unwrap(),
                load_balancer_efficiency: Percent(efficiency),
                target_utilization: Percent(target),
            }
        }
    }

    prop_compose! {
        fn everyday_models()(each in 1..5_000u64, rate in 1..5_000u64, efficiency in 1..=100u8, target in 1..=100u8)
            -> CapacityModel {
            CapacityModel {
                clients_per_instance: NonZeroU64::new(each).unwrap(),
                issuances_per_second_per_instance: NonZeroU64::new(rate).unwrap(),
                load_balancer_efficiency: Percent(efficiency),
                target_utilization: Percent(target),
            }
        }
    }

    fn covers(model: &CapacityModel, instances: u32, load: Load) -> bool {
        let capacity = model.capacity(instances);
        let target = u128::from(model.target_utilization.get());
        u128::from(load.clients) * 100 <= u128::from(capacity.clients) * target
            && u128::from(load.issuances_per_second) * 100
                <= u128::from(capacity.issuances_per_second) * target
    }

    proptest! {
        #[test]
        fn the_need_covers_the_load_and_one_instance_less_does_not(
            model in everyday_models(), clients in 0..10_000_000u64, rate in 0..10_000_000u64,
        ) {
            let load = Load { clients, issuances_per_second: rate };
            let needed = model.needed(load);
            prop_assert!(covers(&model, needed, load));
            prop_assert!(needed == 1 || !covers(&model, needed - 1, load));
        }

        #[test]
        fn more_load_never_needs_fewer_instances(
            model in models(), clients in any::<u64>(), rate in any::<u64>(), more in any::<u64>(),
        ) {
            let load = Load { clients, issuances_per_second: rate };
            let larger = Load { clients: clients.saturating_add(more), issuances_per_second: rate };
            prop_assert!(model.needed(load) <= model.needed(larger));
        }

        #[test]
        fn the_largest_numbers_neither_panic_nor_wrap(model in models(), n in any::<u32>(), load in any::<u64>()) {
            let load = Load { clients: load, issuances_per_second: u64::MAX };
            prop_assert!(model.needed(load) >= 1);
            prop_assert!(n < 2 || model.capacity(n).clients <= model.capacity(n.saturating_add(1)).clients);
            let _ = model.utilization_percent(load, n);
            let _ = model.usable_each(n);
        }
    }
}
