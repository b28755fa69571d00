//! Carries out what was decided, apart from `replicas` itself, which is applied with the Deployment. Needs
//! the client and the pods' network. Every action may be carried out twice: a leader that dies halfway
//! leaves marks on the pods, and the next one goes on from there.

use serde_json::{Value, json};

use super::observe::Sight;
use crate::{
    admin_ports::ControlToken,
    cache::ClusterKey,
    client::ClientError,
    context::Context,
    facts,
    kinds::Kind,
    names,
    reconcile::apply::{Failure, explain},
    scale::{
        decision::{Action, Decision},
        marks,
    },
};

/// Cost of a drained pod: far below that of any other, so that Kubernetes removes it first.
const DELETION_COST: &str = "-1000000";
const DELETION_COST_ANNOTATION: &str = "controller.kubernetes.io/pod-deletion-cost";

/// Carries out a decision's actions in their order. A refusal of an instance is logged and tried again with
/// the next look, which sees what came of it; a refusal of the API server stops the other actions, and nothing else: it is
/// no reason to leave the cluster's objects alone.
pub async fn act(
    context: &Context,
    key: &ClusterKey,
    sight: &Sight,
    decision: &Decision,
) -> Result<Option<Failure>, ClientError> {
    let Err(error) = carry_out(context, key, sight, decision).await else { return Ok(None) };
    if matches!(error, ClientError::NotLeader | ClientError::NamespaceEnds(_)) {
        return Err(error);
    }
    let object = format!("a Pod of Deployment {}", names::backend(&key.name));
    let error = error.into();
    Ok(Some(Failure { trouble: explain(&object, &error), error: error.to_string(), object }))
}

async fn carry_out(
    context: &Context,
    key: &ClusterKey,
    sight: &Sight,
    decision: &Decision,
) -> Result<(), ClientError> {
    let mut token = None;
    for action in &decision.actions {
        match action {
            Action::SetReplicas { .. } => {}
            Action::Mark { name, mark } => {
                let annotations = json!({
                    names::DRAIN: marks::write(*mark),
                    DELETION_COST_ANNOTATION: DELETION_COST,
                });
                annotate(context, key, name, annotations).await?;
            }
            Action::Drain { name } => {
                tell(context, key, sight, name, &mut token, Order::Drain).await?;
            }
            Action::Cancel { name } => {
                // First the instance, then its pod: a mark without a drain is drained again, a drain without
                // a mark would be forgotten.
                if tell(context, key, sight, name, &mut token, Order::Cancel).await? {
                    annotate(context, key, name, json!({names::DRAIN: null, DELETION_COST_ANNOTATION: null}))
                        .await?;
                }
            }
            Action::Shed { name, streams } => {
                tell(context, key, sight, name, &mut token, Order::Shed(*streams)).await?;
            }
        }
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Order {
    Drain,
    Cancel,
    Shed(u64),
}

/// Whether the instance did as it was told.
async fn tell(
    context: &Context,
    key: &ClusterKey,
    sight: &Sight,
    name: &str,
    token: &mut Option<ControlToken>,
    order: Order,
) -> Result<bool, ClientError> {
    if !context.client.may_write() {
        return Err(ClientError::NotLeader);
    }
    let token = match token {
        Some(token) => token,
        None => token.insert(read_token(context, key).await?),
    };
    let Some(address) = sight.addresses.get(name) else {
        return Ok(false);
    };
    let ports = &context.admin_ports;
    let (done, order) = match order {
        Order::Drain => (ports.begin_drain(*address, token).await, "drain"),
        Order::Cancel => (ports.cancel_drain(*address, token).await, "serve again"),
        Order::Shed(streams) => (ports.shed(*address, streams, token).await, "shed streams"),
    };
    if let Err(error) = &done {
        tracing::warn!(namespace = key.namespace, pod = name, order, %error, "an instance did not do as it was told");
        context.metrics.instance_refused();
    }
    Ok(done.is_ok())
}

async fn annotate(
    context: &Context,
    key: &ClusterKey,
    pod: &str,
    annotations: Value,
) -> Result<(), ClientError> {
    let patch = json!({"metadata": {"annotations": annotations}});
    match context.client.merge(Kind::Pod, &key.namespace, pod, &patch).await {
        Ok(object) => {
            let metadata = object.metadata.clone();
            context.cache.learn(key, Kind::Pod, &metadata, facts::of(Kind::Pod, object), None);
            Ok(())
        }
        // Gone meanwhile: the next look sees that.
        Err(error) if error.code() == Some(404) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The token is read when it is needed and never kept.
async fn read_token(context: &Context, key: &ClusterKey) -> Result<ControlToken, ClientError> {
    let secret = context.client.get(Kind::Secret, &key.namespace, &names::signing_key(&key.name)).await?;
    let value = secret
        .and_then(|secret| secret.try_parse::<k8s_openapi::api::core::v1::Secret>().ok())
        .and_then(|secret| secret.data)
        .and_then(|mut data| data.remove(names::CONTROL_TOKEN_KEY))
        .and_then(|value| String::from_utf8(value.0).ok())
        .unwrap_or_default();
    Ok(ControlToken::new(&value))
}

#[cfg(test)]
mod tests {
    use axum::http::Method;

    use super::*;
    use crate::{
        fake_api::{FakeApi, Fault},
        reconcile::tests::{context, key},
        scale::{
            decide::decide,
            drain,
            history::History,
            observation::{Moment, Observation},
            policy::Policy,
        },
    };

    #[tokio::test]
    async fn a_pod_that_cannot_be_marked_is_not_drained_and_holds_nothing_else_up() {
        let api = FakeApi::start().await;
        let no = "pods \"a\" is forbidden: User \"vx11\" cannot patch resource \"pods\"";
        api.fail(Method::PATCH, "/pods/a", 1, Fault::Refuse(403, no));
        let (store, _) = kube::runtime::reflector::store();
        let context = context(&api, store);
        let mut decision =
            decide(&Policy::default(), &Observation::default(), &History::default(), Moment(0));
        let mark = drain::mark(Moment(0), 20);
        decision.actions =
            vec![Action::Mark { name: "a".to_owned(), mark }, Action::Drain { name: "a".to_owned() }];
        let failure = act(&context, &key(), &Sight::default(), &decision).await.unwrap().unwrap();
        assert_eq!(failure.trouble.unwrap().reason, "ControllerForbidden");
        assert_eq!(api.take_seen().len(), 1, "not even the token for the drain was read");
        assert!(act(&context, &key(), &Sight::default(), &decision).await.unwrap().is_none());
    }
}
