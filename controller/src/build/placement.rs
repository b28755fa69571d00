//! Where the instances run: over nodes and zones, as far as possible.
//!
//! Nodes by a spread constraint and zones by affinity: the scheduler ignores every node that lacks the label of any
//! of a pod's soft constraints, so that a zone among them would undo the spread where nodes have no zones.

use k8s_openapi::api::core::v1::{
    Affinity, PodAffinityTerm, PodAntiAffinity, TopologySpreadConstraint, WeightedPodAffinityTerm,
};

use super::metadata;
use crate::{cluster::ValidatedCluster, names::Component};

/// Old and new pods of a rollout spread on their own, or the new ones would avoid the old.
fn each_revision() -> Vec<String> {
    vec!["pod-template-hash".to_owned()]
}

/// The user's constraints, or nodes. A constraint without a selector means the instances.
pub(super) fn build_spread(cluster: &ValidatedCluster) -> Vec<TopologySpreadConstraint> {
    let selector = || Some(metadata::selector(&cluster.identity, Component::Backend));
    if let Some(constraints) = &cluster.backend.spec.pod.topology_spread_constraints {
        return constraints
            .iter()
            .map(|constraint| TopologySpreadConstraint {
                label_selector: constraint.label_selector.clone().or_else(selector),
                ..constraint.clone()
            })
            .collect();
    }
    vec![TopologySpreadConstraint {
        topology_key: "kubernetes.io/hostname".to_owned(),
        max_skew: 1,
        when_unsatisfiable: "ScheduleAnyway".to_owned(),
        label_selector: selector(),
        match_label_keys: Some(each_revision()),
        ..TopologySpreadConstraint::default()
    }]
}

/// The user's affinity, or other zones.
pub(super) fn build_affinity(cluster: &ValidatedCluster) -> Affinity {
    if let Some(affinity) = &cluster.backend.spec.pod.affinity {
        return affinity.clone();
    }
    let other_zones = WeightedPodAffinityTerm {
        weight: 50,
        pod_affinity_term: PodAffinityTerm {
            topology_key: "topology.kubernetes.io/zone".to_owned(),
            label_selector: Some(metadata::selector(&cluster.identity, Component::Backend)),
            match_label_keys: Some(each_revision()),
            ..PodAffinityTerm::default()
        },
    };
    Affinity {
        pod_anti_affinity: Some(PodAntiAffinity {
            preferred_during_scheduling_ignored_during_execution: Some(vec![other_zones]),
            required_during_scheduling_ignored_during_execution: None,
        }),
        ..Affinity::default()
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::NodeAffinity;

    use super::*;
    use crate::build::fixture::simple_cluster;

    #[test]
    fn nodes_without_zones_are_spread_over_all_the_same() {
        let cluster = simple_cluster();
        let keys: Vec<String> =
            build_spread(&cluster).into_iter().map(|constraint| constraint.topology_key).collect();
        assert_eq!(keys, ["kubernetes.io/hostname"]);
    }

    #[test]
    fn what_the_user_gives_replaces_its_default_and_no_other() {
        let mut cluster = simple_cluster();
        let (spread, affinity) = (build_spread(&cluster), build_affinity(&cluster));

        let mine = Affinity { node_affinity: Some(NodeAffinity::default()), ..Affinity::default() };
        cluster.backend.spec.pod.affinity = Some(mine.clone());
        assert_eq!((build_spread(&cluster), build_affinity(&cluster)), (spread, mine));

        cluster.backend.spec.pod.affinity = None;
        cluster.backend.spec.pod.topology_spread_constraints = Some(Vec::new());
        assert_eq!((build_spread(&cluster), build_affinity(&cluster)), (Vec::new(), affinity));
    }

    #[test]
    fn a_constraint_without_a_selector_means_the_instances() {
        let mut cluster = simple_cluster();
        cluster.backend.spec.pod.topology_spread_constraints = Some(vec![TopologySpreadConstraint {
            topology_key: "rack".to_owned(),
            max_skew: 2,
            when_unsatisfiable: "DoNotSchedule".to_owned(),
            ..TopologySpreadConstraint::default()
        }]);
        let spread = build_spread(&cluster);
        assert_eq!(spread.len(), 1);
        assert_eq!(spread[0].label_selector, Some(metadata::selector(&cluster.identity, Component::Backend)));
    }
}
