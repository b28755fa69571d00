//! What the controller still waits for, by name. Ready is when nothing is left.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

/// The list of what is waited for; shared, cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    waiting: Arc<Mutex<BTreeMap<String, String>>>,
}

/// One first list that is waited for.
pub struct Waiting {
    readiness: Readiness,
    item: String,
}

impl Waiting {
    /// The list is complete.
    pub fn done(&self) {
        self.readiness.clear(&self.item);
    }
}

impl Readiness {
    /// Waits for something, or says more precisely what for.
    pub fn wait(&self, item: &str, why: impl Into<String>) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(item.to_owned(), why.into());
    }

    /// No longer waits for it.
    pub fn clear(&self, item: &str) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(item);
    }

    /// Forgets all lists that were waited for: another controller leads.
    pub fn clear_lists(&self) {
        self.waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|item, _| !item.starts_with("list "));
    }

    /// Waits for the first list of a kind.
    #[must_use]
    pub fn await_list(&self, kind: &str, namespace: Option<&str>) -> Waiting {
        let item = match namespace {
            Some(namespace) => format!("list {kind} in {namespace}"),
            None => format!("list {kind}"),
        };
        self.wait(&item, "the first list is not complete");
        Waiting { readiness: self.clone(), item }
    }

    /// What is waited for, and why; empty when ready.
    #[must_use]
    pub fn waiting_for(&self) -> BTreeMap<String, String> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether any first list is missing.
    #[must_use]
    pub fn lists_are_complete(&self) -> bool {
        !self
            .waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .keys()
            .any(|item| item.starts_with("list "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_when_nothing_is_waited_for() {
        let readiness = Readiness::default();
        readiness.wait("permissions", "patch services");
        let list = readiness.await_list("Pod", Some("a"));
        assert!(!readiness.lists_are_complete());
        assert_eq!(readiness.waiting_for().len(), 2);
        list.done();
        assert!(readiness.lists_are_complete());
        readiness.clear("permissions");
        assert!(readiness.waiting_for().is_empty());
    }
}
