//! How soon the operator acts on a change of the spec and on the loss of a child.

use std::time::Duration;

use k8s_openapi::api::networking::v1::Ingress;
use kube::{
    api::{ApiResource, DeleteParams},
    core::DynamicObject,
};
use serde_json::json;
use vx11_tests::harness::{owned, sandbox};

use super::{shown, until_seen};
use crate::report::{Report, section};

const CHANGES: usize = 100;

/// A hundred of each.
pub async fn measure(report: &mut Report) {
    let (mut changed, mut recreated) = sandbox("reaction", async |sandbox| {
        sandbox.ready("simple", "{instances: 2}").await;
        let mut changed = Vec::new();
        let ingresses = sandbox.objects(&ApiResource::erase::<Ingress>(&()));
        for number in 0..CHANGES {
            let host = format!("change-{number}.{}.test", sandbox.namespace);
            let change = async || {
                sandbox.patch("simple", json!({"spec": {"loadBalancer": {"host": host}}})).await;
            };
            let is_so =
                |object: &DynamicObject| object.data.pointer("/spec/rules/0/host") == Some(&json!(host));
            changed.push(until_seen(&ingresses, "simple", change, is_so).await);
        }
        // Those whose loss costs no pod: the time is the operator's and not the kubelet's.
        let light: Vec<_> = owned()
            .into_iter()
            .filter(|(kind, _)| !["Deployment", "StatefulSet", "Secret"].contains(&kind.kind.as_str()))
            .collect();
        let mut recreated: Vec<Duration> = Vec::new();
        for (kind, name) in light.iter().cycle().take(CHANGES) {
            let objects = sandbox.objects(kind);
            let uid = objects.get(name).await.expect("an owned object").metadata.uid;
            let delete = async || {
                objects.delete(name, &DeleteParams::default()).await.expect("a deletion");
            };
            recreated.push(
                until_seen(&objects, name, delete, |object| {
                    object.metadata.uid != uid && object.metadata.deletion_timestamp.is_none()
                })
                .await,
            );
        }
        (changed, recreated)
    })
    .await;
    section("How soon the operator acts, as a watch shows it");
    let (value, text) = shown(&mut changed);
    report.at_most("Change of the spec to the write that follows from it", value, &text, 250.0, "ms");
    let (value, text) = shown(&mut recreated);
    report.at_most("Deleted child to its recreation", value, &text, 1000.0, "ms");
}
