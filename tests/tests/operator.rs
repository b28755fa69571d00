//! The operator itself comes and goes: killed, upgraded, uninstalled, installed again. Clusters do not notice.
//!
//! These tests share the one operator, so they take turns.

use std::{collections::BTreeMap, time::Duration};

use futures::FutureExt;
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, StatefulSet},
        coordination::v1::Lease,
        core::v1::{Event, Pod},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams},
    core::ApiResource,
};
use serde_json::json;
use tokio::sync::{Mutex, MutexGuard};
use vx11_crds::VX11Cluster;
use vx11_tests::harness::{
    Audit, EventStream, OPERATOR, Sandbox, TOKEN, eventually, holds, install_operator, is_left_out,
    operator_installed, sandbox, tool,
};

const SYSTEM: &str = "vx11-system";
/// Why some of these tests need the test cluster.
const NO_AUDIT_LOG: &str = "it reads the API server's audit log";
/// How long nothing may happen. `make bench` looks for five minutes.
const QUIET: Duration = Duration::from_mins(1);

/// How long after its leader is told to stop the other controller leads, on a busy machine.
const HANDOVER: Duration = Duration::from_secs(5);

async fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::const_new(());
    TURN.lock().await
}

/// The pods of a namespace by name, each with what changes when it is replaced or restarted.
async fn pods(sandbox: &Sandbox) -> BTreeMap<String, (Option<String>, i32)> {
    let pods = sandbox.api::<Pod>().list(&ListParams::default()).await.unwrap();
    let identity = |pod: Pod| {
        let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
        let restarts = statuses.map(|container| container.restart_count).sum();
        (pod.name_any(), (pod.uid(), restarts))
    };
    pods.items.into_iter().map(identity).collect()
}

/// The versions of the two workloads, which every write to them changes.
async fn generations(sandbox: &Sandbox) -> (Option<i64>, Option<i64>) {
    let deployment = sandbox.api::<Deployment>().get("simple-backend").await.unwrap();
    let set = sandbox.api::<StatefulSet>().get("simple-redis").await.unwrap();
    (deployment.metadata.generation, set.metadata.generation)
}

async fn leader(sandbox: &Sandbox) -> Option<String> {
    let leases: Api<Lease> = Api::namespaced(sandbox.client.clone(), SYSTEM);
    leases.get_opt("vx11-operator").await.unwrap()?.spec?.holder_identity.filter(|holder| !holder.is_empty())
}

async fn serves(sandbox: &Sandbox) {
    let token = sandbox.token("simple", &sandbox.ingress("simple")).await;
    let mut stream =
        EventStream::open(&sandbox.ingress("simple"), &format!("?token={token}"), &[]).await.unwrap();
    stream.until("snapshot", Duration::from_secs(5)).await;
}

#[tokio::test]
#[ignore = "takes the operator away from everybody else on the test cluster: run it alone, with --ignored"]
async fn the_next_leader_finishes_what_a_killed_controller_began() {
    let _turn = turn().await;
    sandbox("leader", async |sandbox| {
        let controllers: Api<Pod> = Api::namespaced(sandbox.client.clone(), SYSTEM);
        let first =
            eventually("a controller leads", Duration::from_secs(60), async || leader(sandbox).await).await;
        sandbox.apply("simple", "{instances: 2}").await;
        // In the middle of its work: something is there, the rest is not.
        eventually("the first object is there", Duration::from_secs(20), async || {
            let objects = ListParams::default().labels("app.kubernetes.io/instance=simple");
            let secrets: Api<k8s_openapi::api::core::v1::Secret> = sandbox.api();
            (!secrets.list(&objects).await.unwrap().items.is_empty()).then_some(())
        })
        .await;
        controllers.delete(&first, &DeleteParams::default().grace_period(0)).await.unwrap();
        sandbox.until("simple", "Ready", "True").await;
        let second = eventually("another controller leads", Duration::from_secs(60), async || {
            leader(sandbox).await.filter(|leader| *leader != first)
        })
        .await;
        println!("{first} was killed, {second} finished");
        serves(sandbox).await;
    })
    .await;
}

#[tokio::test]
#[ignore = "takes the operator away from everybody else on the test cluster: run it alone, with --ignored"]
async fn a_leader_that_is_told_to_stop_is_followed_at_once() {
    let _turn = turn().await;
    sandbox("handover", async |sandbox| {
        let controllers: Api<Pod> = Api::namespaced(sandbox.client.clone(), SYSTEM);
        let first = eventually("a controller leads beside one that stands by", HANDOVER * 12, async || {
            let pods = controllers.list(&ListParams::default()).await.unwrap();
            let is_ready = |pod: &Pod| {
                let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
                conditions
                    .into_iter()
                    .any(|condition| condition.type_ == "Ready" && condition.status == "True")
            };
            let leader = leader(sandbox).await?;
            (pods.iter().filter(|pod| is_ready(pod)).count() == 2
                && pods.iter().any(|pod| pod.name_any() == leader))
            .then_some(leader)
        })
        .await;
        controllers.delete(&first, &DeleteParams::default()).await.unwrap();
        let told = std::time::Instant::now();
        // A lease that is not given back lasts 15 s.
        let second = eventually("the other one leads", HANDOVER, async || {
            leader(sandbox).await.filter(|leader| *leader != first)
        })
        .await;
        println!("{second} followed {first} after {:?}", told.elapsed());
        sandbox.ready("simple", "{instances: 1, redis: {type: None}}").await;
    })
    .await;
}

#[tokio::test]
#[ignore = "takes the operator away from everybody else on the test cluster: run it alone, with --ignored"]
async fn an_operator_of_one_namespace_runs_its_clusters_and_leaves_others_alone() {
    let _turn = turn().await;
    sandbox("scoped", async |sandbox| {
        let outside = sandbox.another().await;
        let watched = format!("watchNamespaces={{{}}}", sandbox.namespace);
        install(vec!["--set".into(), watched, "--set".into(), "rbac.classReader=false".into()]).await;
        // Whatever becomes of it, everybody else needs the operator as it was.
        let scoped = std::panic::AssertUnwindSafe(async {
            let spec = "{instances: 1, backend: {stream: {drainSeconds: 0}}}";
            outside.apply("simple", spec).await;
            sandbox.ready("simple", spec).await;
            serves(sandbox).await;
            sandbox.api::<Deployment>().delete("simple-backend", &DeleteParams::default()).await.unwrap();
            eventually("it puts back what is deleted", Duration::from_secs(10), async || {
                sandbox.api::<Deployment>().get_opt("simple-backend").await.unwrap()
            })
            .await;
            sandbox.until("simple", "Ready", "True").await;
            assert!(outside.cluster("simple").await.status.is_none(), "the one outside is not looked at");
            assert!(outside.api::<Deployment>().get_opt("simple-backend").await.unwrap().is_none());
            let secrets = ["auth", "can-i", "get", "secrets", "--as", OPERATOR, "-n"];
            let may = |namespace| {
                let asked = [&secrets[..], &[namespace]].concat();
                String::from_utf8_lossy(&tool("kubectl", &asked).stdout).trim() == "yes"
            };
            assert!(may(&sandbox.namespace) && !may(&outside.namespace), "its rights end there too");
        });
        let outcome = scoped.catch_unwind().await;
        install(Vec::new()).await;
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        outside.until("simple", "Ready", "True").await;
        outside.api::<VX11Cluster>().delete("simple", &DeleteParams::default()).await.unwrap();
    })
    .await;
}

/// Installs the operator with more arguments for `helm upgrade`, without keeping the runtime waiting.
async fn install(more: Vec<String>) {
    let install = move || install_operator(&more.iter().map(String::as_str).collect::<Vec<_>>());
    tokio::task::spawn_blocking(install).await.unwrap();
}

#[tokio::test]
#[ignore = "takes the operator away from everybody else on the test cluster: run it alone, with --ignored"]
async fn uninstalling_leaves_clusters_running_and_installing_again_takes_them_over() {
    let _turn = turn().await;
    sandbox("uninstall", async |sandbox| {
        sandbox.ready("simple", "{instances: 2, backend: {stream: {drainSeconds: 0}}}").await;
        let (before, written) = (pods(sandbox).await, generations(sandbox).await);

        let removed = tool("helm", &["uninstall", "vx11-operator", "--namespace", SYSTEM, "--wait"]);
        assert!(removed.status.success(), "{}", String::from_utf8_lossy(&removed.stderr));
        let definitions: Api<CustomResourceDefinition> = Api::all(sandbox.client.clone());
        let definition = definitions.get("vx11clusters.vx11.io").await.unwrap();
        assert_eq!(definition.metadata.deletion_timestamp, None, "the definition stays");
        let controllers: Api<Deployment> = Api::namespaced(sandbox.client.clone(), SYSTEM);
        assert!(controllers.get_opt("vx11-operator").await.unwrap().is_none(), "the controller goes");
        sandbox.cluster("simple").await;
        holds("every pod stays as it was", Duration::from_secs(3), async || pods(sandbox).await == before)
            .await;
        serves(sandbox).await;

        // A change that nobody carries out yet.
        sandbox.patch("simple", json!({ "spec": { "instances": 1 } })).await;
        install_operator(&[]);
        sandbox.until("simple", "Ready", "True").await;
        eventually("the change is carried out", Duration::from_secs(60), async || {
            (sandbox.pods("simple", "backend").await.len() == 1).then_some(())
        })
        .await;
        for (name, identity) in pods(sandbox).await {
            assert_eq!(before.get(&name), Some(&identity), "{name} was not touched");
        }
        let now = generations(sandbox).await;
        assert_eq!(now.1, written.1, "the Redis was not written to");
        assert_eq!(now.0, written.0.map(|generation| generation + 1), "the count alone was written");
    })
    .await;
}

#[tokio::test]
#[ignore = "takes the operator away from everybody else on the test cluster: run it alone, with --ignored"]
async fn an_upgrade_replaces_controllers_and_touches_no_cluster() {
    if is_left_out(NO_AUDIT_LOG) {
        return;
    }
    let _turn = turn().await;
    sandbox("upgrade", async |sandbox| {
        sandbox.ready("simple", "{instances: 2}").await;
        let (before, written) = (pods(sandbox).await, generations(sandbox).await);
        let leading = leader(sandbox).await;
        let principal = sandbox.principal("simple").await;
        let route = sandbox.ingress("simple");

        let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
        let requests = tokio::spawn(async move {
            let mut answered = 0;
            while stopped.try_recv().is_err() {
                let answer = route.post(TOKEN, &[("x-vx11-token", &principal)], "").await;
                assert_eq!(answer.status, 200, "request {answered}: {}", answer.text);
                answered += 1;
            }
            answered
        });
        let mut audit = Audit::from_now();
        install(vec!["--set".into(), "logLevel=debug".into()]).await;
        eventually("a new controller leads", Duration::from_secs(60), async || {
            leader(sandbox).await.filter(|now| Some(now) != leading.as_ref())
        })
        .await;
        sandbox.until("simple", "Ready", "True").await;
        // The old one had nothing left to write; the new one has read everything anew, and found nothing either.
        holds("neither leader writes anything", Duration::from_secs(5), async || {
            let asked = audit.read(OPERATOR);
            let writes: Vec<_> = asked
                .iter()
                // Its status tells the load, which the requests of this very test change.
                .filter(|asked| !["events", "vx11clusters/status"].contains(&asked.resource.as_str()))
                .filter(|asked| asked.namespace == sandbox.namespace && asked.is_write())
                .collect();
            assert!(writes.is_empty(), "{writes:?}");
            true
        })
        .await;
        let _ = stop.send(());
        assert!(requests.await.unwrap() > 50, "requests went on all the while");
        assert_eq!(pods(sandbox).await, before, "no pod was replaced or restarted");
        assert_eq!(generations(sandbox).await, written, "no workload was written to");
        install(Vec::new()).await;
    })
    .await;
}

#[tokio::test]
#[ignore = "loosens the definition for a moment: run it alone, with --ignored"]
async fn an_object_that_cannot_be_read_is_told_and_the_others_go_on() {
    let _turn = turn().await;
    sandbox("malformed", async |sandbox| {
        sandbox.ready("simple", "{instances: 1, redis: {type: None}}").await;
        // As a newer version's definition might, it lets a value through that this version cannot read.
        let definitions: Api<CustomResourceDefinition> = Api::all(sandbox.client.clone());
        let field = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/paused";
        let definition = serde_json::to_value(definitions.get("vx11clusters.vx11.io").await.unwrap()).unwrap();
        let strict = definition.pointer(field).unwrap().clone();
        let put = async |schema: &serde_json::Value| {
            let edit = json!([{ "op": "replace", "path": field, "value": schema }]);
            let patch: Patch<()> = Patch::Json(serde_json::from_value(edit).unwrap());
            definitions.patch("vx11clusters.vx11.io", &PatchParams::default(), &patch).await.unwrap();
        };
        put(&json!({ "x-kubernetes-preserve-unknown-fields": true })).await;
        let clusters: Api<DynamicObject> = Api::namespaced_with(
            sandbox.client.clone(),
            &sandbox.namespace,
            &ApiResource::erase::<VX11Cluster>(&()),
        );
        let odd = json!({ "apiVersion": "vx11.io/v1alpha1", "kind": "VX11Cluster", "metadata": { "name": "odd" }, "spec": { "paused": { "for": "a while" } } });
        let made = eventually("the API server takes the odd one", Duration::from_secs(30), async || {
            clusters.patch("odd", &PatchParams::apply("e2e").force(), &Patch::Apply(&odd)).await.ok()
        });
        made.await;
        eventually("an event tells what is wrong with it", Duration::from_secs(30), async || {
            sandbox.events("odd").await.iter().any(|event| event.contains("spec.paused: ")).then_some(())
        })
        .await;
        // Found again, it is counted up: no pile of events.
        let again = json!({"metadata": {"annotations": {"found": "again"}}});
        clusters.patch("odd", &PatchParams::default(), &Patch::Merge(again)).await.unwrap();
        eventually("the event is told a second time", Duration::from_secs(30), async || {
            let events = sandbox.api::<Event>().list(&ListParams::default()).await.unwrap();
            let odd = events.items.into_iter().filter(|event| event.involved_object.name.as_deref() == Some("odd"));
            let counts: Vec<_> = odd.map(|event| event.series.and_then(|series| series.count)).collect();
            (counts.len() == 1 && counts[0] >= Some(2)).then_some(())
        })
        .await;
        // The others go on: a new one, and a change of an old one.
        sandbox.ready("other", "{instances: 1, redis: {type: None}}").await;
        sandbox.api::<Deployment>().delete("simple-backend", &DeleteParams::default()).await.unwrap();
        eventually("the deleted object comes back", Duration::from_secs(5), async || {
            sandbox.api::<Deployment>().get_opt("simple-backend").await.unwrap()
        })
        .await;
        clusters.delete("odd", &DeleteParams::default()).await.unwrap();
        put(&strict).await;
        sandbox.until("simple", "Ready", "True").await;
    })
    .await;
}

#[tokio::test]
async fn a_quiet_operator_writes_nothing() {
    if is_left_out(NO_AUDIT_LOG) {
        return;
    }
    let _turn = turn().await;
    sandbox("quiet", async |sandbox| {
        let alone = "{instances: 1, redis: {type: None}}";
        sandbox.ready("simple", "{instances: 2}").await;
        sandbox.ready("alone", alone).await;
        sandbox.ready("scaled", "{autoscaling: {maxInstances: 2}, redis: {persistence: false}}").await;
        let mut audit = Audit::from_now();
        let mut writes = async || {
            let mut asked = audit.read(OPERATOR);
            asked.retain(|asked| asked.is_write() && asked.namespace == sandbox.namespace);
            asked
        };
        // What becoming Ready still has to say; load figures follow within 15 s.
        let mut silent = std::time::Instant::now();
        eventually("20 seconds without a write after Ready", Duration::from_mins(2), async || {
            if !writes().await.is_empty() {
                silent = std::time::Instant::now();
            }
            (silent.elapsed() > Duration::from_secs(20)).then_some(())
        })
        .await;
        holds("the operator writes nothing", QUIET, async || {
            let writes = writes().await;
            assert!(writes.is_empty(), "{writes:?}");
            true
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn the_chart_is_linted_and_renders_for_the_cluster_it_is_installed_in() {
    let _turn = turn().await;
    operator_installed().await;
    let lint = tool("helm", &["lint", "--strict", "charts/vx11-operator"]);
    assert!(lint.status.success(), "{}", String::from_utf8_lossy(&lint.stdout));
    let render = [
        "template",
        "vx11-operator",
        "charts/vx11-operator",
        "--namespace",
        SYSTEM,
        "--validate",
        "--is-upgrade",
    ];
    let rendered = tool("helm", &render);
    assert!(rendered.status.success(), "{}", String::from_utf8_lossy(&rendered.stderr));
    let wrong = tool("helm", &["template", "charts/vx11-operator", "--set", "replica=3"]);
    assert!(!wrong.status.success(), "an unknown value is refused");
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("replica"));
}
