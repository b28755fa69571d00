//! Tells a decision that was carried out, once, and adds it to the journal. Needs the client; nothing that goes wrong
//! here holds anything else up.

use kube::api::DynamicObject;
use serde_json::{Value, json};
use vx11_crds::VX11Cluster;

use super::{
    apply::{ApplyError, explain, foreign_owner},
    scale::Scaled,
    summary::Transition,
    update_status::tell,
};
use crate::{
    cache::ClusterKey,
    cluster::Identity,
    context::Context,
    diagnose::Trouble,
    kinds::Kind,
    names,
    scale::{
        journal::{Entry, JOURNAL_KEY, Journal, LENGTH},
        memory::Unwritten,
        observation::Moment,
        report::news,
    },
};

/// Between two attempts to write a journal that could not be written.
const RETRY_MS: u64 = 30_000;

/// Tells and records a decision if it is another one than the last. Returns what somebody has to do so that the journal
/// can be written.
pub async fn record(
    context: &Context,
    key: &ClusterKey,
    cluster: &VX11Cluster,
    identity: &Identity,
    scaled: &Scaled,
) -> Option<Trouble> {
    let entry = &scaled.entry;
    let mut memory = context.memories.take(key, identity);
    if memory.told.is_none() && entry.is_recorded() {
        // A new leader does not tell again what the one before has told. One that cannot know does.
        let journal = read(context, key, identity).await.map(|(_, journal)| journal);
        memory.told = journal.ok().and_then(|journal| journal.last().cloned());
    }
    if memory.told.as_ref().is_none_or(|told| entry.decision.differs_from(told)) {
        announce(context, key, cluster, entry).await;
        memory.told = Some(entry.decision.clone());
        if entry.is_recorded() {
            memory.unwritten.entries.push(entry.clone());
        }
    }
    write_up(context, key, identity, &mut memory.unwritten, entry.decision.at).await;
    let trouble = memory.unwritten.trouble.clone();
    context.memories.put(key, memory);
    trouble
}

async fn announce(context: &Context, key: &ClusterKey, cluster: &VX11Cluster, entry: &Entry) {
    let decision = &entry.decision;
    context.metrics.decided(decision.reason);
    tracing::info!(
        namespace = key.namespace,
        cluster = key.name,
        reason = decision.reason.as_str(),
        desired = decision.desired,
        message = decision.message,
        "decided"
    );
    if let Some(news) = news(&entry.observed, decision) {
        let transition = Transition {
            about: "Scaling",
            warning: news.warning,
            reason: news.reason.to_owned(),
            message: news.message,
        };
        tell(context, key, cluster, transition).await;
    }
}

/// Writes what the journal lacks. A failure is told once and tried again later.
async fn write_up(
    context: &Context,
    key: &ClusterKey,
    identity: &Identity,
    unwritten: &mut Unwritten,
    now: Moment,
) {
    let surplus = unwritten.entries.len().saturating_sub(LENGTH);
    unwritten.entries.drain(..surplus);
    if unwritten.entries.is_empty() || unwritten.failed_at.is_some_and(|at| now.since(at) < RETRY_MS) {
        return;
    }
    let Err(error) = write(context, key, identity, &unwritten.entries).await else {
        *unwritten = Unwritten::default();
        return;
    };
    context.metrics.could_not_record();
    if unwritten.failed_at.replace(now).is_none() {
        tracing::warn!(namespace = key.namespace, cluster = key.name, %error, "cannot write the journal of decisions; trying again until it is written");
    }
    unwritten.trouble = explain(&format!("ConfigMap {}", names::scaling(&key.name)), &error);
}

async fn write(
    context: &Context,
    key: &ClusterKey,
    identity: &Identity,
    entries: &[Entry],
) -> Result<(), ApplyError> {
    let (present, mut journal) = read(context, key, identity).await?;
    for entry in entries {
        journal.record(entry.clone());
    }
    let name = names::scaling(&key.name);
    let mut body = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": name,
            // Without the label of owned objects: nobody watches it, nobody corrects it, and it goes with
            // the cluster.
            "labels": names::selector(&key.name, names::Component::Backend),
            "ownerReferences": [identity.owner_reference()],
        },
        "data": {JOURNAL_KEY: journal.to_json()?},
    });
    // Exactly what was read is changed, and nothing is created over what somebody else has put there meanwhile.
    let namespace = &key.namespace;
    let Some(present) = present else {
        let object: DynamicObject = serde_json::from_value(body)?;
        context.client.create(Kind::ConfigMap, namespace, &object).await?;
        return Ok(());
    };
    if let Some(metadata) = body.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("resourceVersion".to_owned(), json!(present.metadata.resource_version));
    }
    context.client.merge(Kind::ConfigMap, namespace, &name, &body).await?;
    Ok(())
}

/// The journal so far. One of ours that does not parse is of another version: it begins anew.
async fn read(
    context: &Context,
    key: &ClusterKey,
    identity: &Identity,
) -> Result<(Option<DynamicObject>, Journal), ApplyError> {
    let name = names::scaling(&key.name);
    let Some(map) = context.client.get(Kind::ConfigMap, &key.namespace, &name).await? else {
        return Ok((None, Journal::default()));
    };
    if let Some(problem) = foreign_owner(identity, Kind::ConfigMap, &name, &map) {
        return Err(problem);
    }
    let text = map.data.pointer(&format!("/data/{JOURNAL_KEY}")).and_then(Value::as_str);
    let journal = text.and_then(|text| Journal::parse(text).ok()).unwrap_or_default();
    Ok((Some(map), journal))
}
