//! What a leader remembers of each cluster between its looks. All of it can be lost: that only makes a new leader
//! wait.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use super::{
    decision::Decision, history::History, journal::Entry, observation::Moment, reading::Counters,
    rebalance::Episode,
};
use crate::{cache::ClusterKey, cluster::Identity, diagnose::Trouble};

/// What is remembered of each cluster between looks.
#[derive(Default)]
pub struct Memories(Mutex<BTreeMap<ClusterKey, Memory>>);

/// What is remembered of one cluster.
#[derive(Default)]
pub(crate) struct Memory {
    /// A cluster deleted and created again is another one.
    uid: String,
    pub(crate) history: History,
    pub(crate) counters: Counters,
    /// The decision of the look before.
    pub(crate) last: Option<Decision>,
    /// When the load figures of status were last written.
    pub(crate) figures_at: Option<Moment>,
    /// The last decision that was told, once it was carried out.
    pub(crate) told: Option<Decision>,
    pub(crate) unwritten: Unwritten,
}

/// What the journal on the API server lacks.
#[derive(Default)]
pub(crate) struct Unwritten {
    /// Oldest first.
    pub(crate) entries: Vec<Entry>,
    /// When the last attempt failed.
    pub(crate) failed_at: Option<Moment>,
    /// What somebody has to do about that.
    pub(crate) trouble: Option<Trouble>,
}

impl Memory {
    /// A leader that is new to a cluster looks once whether a scale-out before its time left the streams
    /// uneven.
    fn new(identity: &Identity) -> Self {
        let mut history = History::default();
        history.rebalance = Some(Episode::default());
        Self { uid: identity.uid.clone(), history, ..Self::default() }
    }
}

impl Memories {
    /// A cluster is gone.
    pub fn forget(&self, key: &ClusterKey) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    /// Reconciles of one cluster never overlap, so that its memory can be lent out.
    pub(crate) fn take(&self, key: &ClusterKey, identity: &Identity) -> Memory {
        let memory = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
        memory.filter(|memory| memory.uid == identity.uid).unwrap_or_else(|| Memory::new(identity))
    }

    pub(crate) fn put(&self, key: &ClusterKey, memory: Memory) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone(), memory);
    }
}
