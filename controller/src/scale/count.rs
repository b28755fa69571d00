//! A count of instances. Plain values.

use super::observation::Removal;

/// How many instances there should be, 0 to 1000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct InstanceCount(i32);

impl InstanceCount {
    /// Most instances a cluster may have, as in the schema.
    pub const MAX: i32 = 1000;

    /// That many.
    pub const LARGEST: Self = Self(Self::MAX);

    /// `None` outside 0 to [`Self::MAX`].
    #[must_use]
    pub const fn new(count: i32) -> Option<Self> {
        if count >= 0 && count <= Self::MAX { Some(Self(count)) } else { None }
    }

    /// The number, as `replicas` takes it.
    #[must_use]
    pub const fn get(self) -> i32 {
        self.0
    }
}

/// How many instances, and which drained ones a lower count is to remove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Count {
    /// The Deployment's `replicas`.
    pub instances: InstanceCount,
    /// The drained instances that are to go.
    pub removing: Vec<Removal>,
}
