//! A namespace of its own for each test, and what tests do there.

use std::{
    env,
    fmt::Write,
    panic::AssertUnwindSafe,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use futures::FutureExt;
use k8s_openapi::{
    ByteString,
    api::core::v1::{Event, Namespace, Pod, Secret},
    apimachinery::pkg::apis::meta::v1::Condition,
};
use kube::{
    Api, Client, ResourceExt,
    api::{
        ApiResource, DeleteParams, DynamicObject, ListParams, LogParams, ObjectMeta, Patch, PatchParams,
        PostParams,
    },
};
use vx11_crds::VX11Cluster;

use super::{
    Instance, Route, eventually, secrets,
    tools::{KIND, connect, is_existing, operator_installed},
};

/// Label of every namespace that tests make.
pub(super) const OURS: &str = "vx11.test/sandbox";
/// Label by which Kubernetes refuses pods that ask for too much.
const POD_SECURITY: &str = "pod-security.kubernetes.io/enforce";
/// How long a cluster may take to become what it should be.
const PATIENCE: Duration = Duration::from_mins(4);

/// A namespace of its own, and what tests do there.
#[derive(Clone)]
pub struct Sandbox {
    /// The client to the API server.
    pub client: Client,
    /// Name of the namespace.
    pub namespace: String,
}

/// Runs a test in a namespace of its own, with the operator installed. After a failure it prints what the
/// namespace looked like; the namespace goes in any case.
pub async fn sandbox<T>(name: &str, test: impl AsyncFnOnce(&Sandbox) -> T) -> T {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    operator_installed().await;
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let namespace = format!("{name}-{}-{number}", std::process::id());
    let sandbox = Sandbox { client: connect().await, namespace };
    sandbox.create_namespace().await;
    let begun = Instant::now();
    let whole = async {
        let value = test(&sandbox).await;
        secrets::are_told_nowhere(&sandbox, begun.elapsed()).await;
        value
    };
    let outcome = AssertUnwindSafe(whole).catch_unwind().await;
    if outcome.is_err() {
        eprintln!("{}", sandbox.describe().await);
    }
    let namespaces: Api<Namespace> = Api::all(sandbox.client.clone());
    namespaces.delete(&sandbox.namespace, &DeleteParams::default()).await.unwrap();
    outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

impl Sandbox {
    async fn create_namespace(&self) {
        let metadata = ObjectMeta {
            name: Some(self.namespace.clone()),
            // The strictest of Kubernetes' own policies, so that every test proves that the pods keep to it.
            labels: Some(
                [(OURS, "true"), (POD_SECURITY, "restricted")]
                    .map(|(key, value)| (key.to_owned(), value.to_owned()))
                    .into(),
            ),
            ..ObjectMeta::default()
        };
        let namespace = Namespace { metadata, ..Namespace::default() };
        Api::<Namespace>::all(self.client.clone()).create(&PostParams::default(), &namespace).await.unwrap();
    }

    /// A second namespace that goes with the sandbox's process.
    pub async fn another(&self) -> Self {
        let other = Self { client: self.client.clone(), namespace: format!("{}-b", self.namespace) };
        other.create_namespace().await;
        other
    }

    /// The API for a kind in this namespace.
    #[must_use]
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Applies a cluster of this spec, as YAML; `host` of an Ingress is set so that its route is its own.
    pub async fn apply(&self, name: &str, spec: &str) -> VX11Cluster {
        self.try_apply(name, spec).await.unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Like [`Self::apply`], with the API server's refusal as an error.
    ///
    /// # Errors
    /// What the API server says.
    pub async fn try_apply(&self, name: &str, spec: &str) -> Result<VX11Cluster, kube::Error> {
        let spec: serde_json::Value = serde_yaml::from_str(spec).unwrap();
        let mut cluster = serde_json::json!({
            "apiVersion": "vx11.io/v1alpha1", "kind": "VX11Cluster", "metadata": { "name": name }, "spec": spec,
        });
        let without = ["/spec/loadBalancer/type", "/spec/loadBalancer/host"];
        if without.iter().all(|path| cluster.pointer(path).is_none()) {
            cluster["spec"]["loadBalancer"]["host"] = self.host(name).into();
        }
        // Small requests, so that many clusters fit on a small machine.
        if cluster.pointer("/spec/backend/resources").is_none() {
            cluster["spec"]["backend"]["resources"] = serde_json::json!({ "requests": { "cpu": "10m" } });
        }
        let parameters = PatchParams {
            field_validation: Some(kube::api::ValidationDirective::Strict),
            ..PatchParams::apply("e2e").force()
        };
        self.api::<VX11Cluster>().patch(name, &parameters, &Patch::Apply(&cluster)).await
    }

    /// Host name of a cluster's route.
    #[must_use]
    pub fn host(&self, name: &str) -> String {
        format!("{name}.{}.test", self.namespace)
    }

    /// The way in through the Ingress.
    #[must_use]
    pub fn ingress(&self, name: &str) -> Route {
        Route::Http { base: entrance(), host: self.host(name) }
    }

    /// The cluster as it is now.
    pub async fn cluster(&self, name: &str) -> VX11Cluster {
        self.api::<VX11Cluster>().get(name).await.unwrap()
    }

    /// A condition as it is now, if it is of the present generation.
    pub async fn condition(&self, name: &str, kind: &str) -> Option<Condition> {
        let cluster = self.cluster(name).await;
        let generation = cluster.metadata.generation;
        let conditions = cluster.status?.conditions;
        conditions.into_iter().find(|c| c.type_ == kind && c.observed_generation == generation)
    }

    /// Waits until a condition has this status; panics with the conditions otherwise.
    pub async fn until(&self, name: &str, kind: &str, status: &str) -> Condition {
        eventually(&format!("{}/{name}: {kind}={status}", self.namespace), PATIENCE, async || {
            self.condition(name, kind).await.filter(|condition| condition.status == status)
        })
        .await
    }

    /// Applies a cluster and waits until it is Ready.
    pub async fn ready(&self, name: &str, spec: &str) -> VX11Cluster {
        self.apply(name, spec).await;
        self.until(name, "Ready", "True").await;
        self.cluster(name).await
    }

    /// A merge patch of the cluster.
    pub async fn patch(&self, name: &str, patch: serde_json::Value) -> VX11Cluster {
        self.api::<VX11Cluster>().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap()
    }

    /// The instances whose pods are ready and not on their way out, by name.
    pub async fn instances(&self, name: &str) -> Vec<Instance> {
        let pods = self.pods(name, "backend").await;
        let serving = pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none() && is_ready(pod));
        serving.map(|pod| Instance::new(&self.client, &self.namespace, pod.name_any())).collect()
    }

    /// The pods of one component.
    pub async fn pods(&self, name: &str, component: &str) -> Vec<Pod> {
        let selector = format!("app.kubernetes.io/instance={name},app.kubernetes.io/component={component}");
        self.api::<Pod>().list(&ListParams::default().labels(&selector)).await.unwrap().items
    }

    /// The generated principal token of a cluster.
    pub async fn principal(&self, name: &str) -> String {
        let secret = self.api::<Secret>().get(&format!("{name}-principal-tokens")).await.unwrap();
        let ByteString(bytes) = &secret.data.unwrap()["principal"];
        String::from_utf8(bytes.clone()).unwrap().trim().to_owned()
    }

    /// An ephemeral token, issued over `route`.
    pub async fn token(&self, name: &str, route: &Route) -> String {
        let principal = self.principal(name).await;
        let answer = route.post(super::TOKEN, &[("x-vx11-token", &principal)], "").await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.json()["sse_token"].as_str().unwrap().to_owned()
    }

    /// Publishes a text over `route`; the same text is published once.
    ///
    /// # Errors
    /// The failure or refusal, in words.
    pub async fn publish(&self, principal: &str, route: &Route, key: &str, data: &str) -> Result<(), String> {
        let body = serde_json::json!({ "data": data }).to_string();
        // The way through the API server may send a request twice.
        let headers = [("x-vx11-token", principal), ("idempotency-key", key)];
        let answer = route.request(hyper::Method::POST, super::EVENTS, &headers, &body).await?;
        if answer.status == 202 { Ok(()) } else { Err(format!("{} {}", answer.status, answer.text)) }
    }

    /// Texts of the events about a cluster.
    pub async fn events(&self, name: &str) -> Vec<String> {
        let selector = format!("involvedObject.kind=VX11Cluster,involvedObject.name={name}");
        let events = self.api::<Event>().list(&ListParams::default().fields(&selector)).await.unwrap();
        let text = |event: &Event| {
            format!("{} {}", event.reason.as_deref().unwrap_or(""), event.message.as_deref().unwrap_or(""))
        };
        events.iter().map(text).collect()
    }

    /// What the namespace looks like, for people who read a failed test.
    async fn describe(&self) -> String {
        let mut text = format!("== namespace {} at the failure ==\n", self.namespace);
        // As they stand, for what made the test fail may be that one cannot be read.
        let resource = ApiResource::erase::<VX11Cluster>(&());
        let clusters: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), &self.namespace, &resource);
        for cluster in clusters.list(&ListParams::default()).await.unwrap() {
            let _ =
                writeln!(text, "{}: {}", cluster.name_any(), serde_yaml::to_string(&cluster.data).unwrap());
        }
        for event in self.api::<Event>().list(&ListParams::default()).await.unwrap() {
            let about = event.involved_object.name.as_deref().unwrap_or("");
            let (reason, message) =
                (event.reason.as_deref().unwrap_or(""), event.message.as_deref().unwrap_or(""));
            let _ = writeln!(text, "event {about}: {reason} {message}");
        }
        let pods: Api<Pod> = self.api();
        for pod in pods.list(&ListParams::default()).await.unwrap() {
            let parameters = LogParams { tail_lines: Some(15), ..LogParams::default() };
            let log = pods.logs(&pod.name_any(), &parameters).await.unwrap_or_else(|error| error.to_string());
            let _ = writeln!(text, "-- pod {} ready={}\n{log}", pod.name_any(), is_ready(&pod));
        }
        text
    }
}

/// Base URL of the Ingress controller.
fn entrance() -> String {
    env::var("VX11_ENDPOINT").unwrap_or_else(|_| {
        assert!(
            !is_existing(),
            "{KIND}=existing needs VX11_ENDPOINT: the base URL of its Ingress controller"
        );
        let port = env::var("VX11_HTTP_PORT").unwrap_or_else(|_| "8080".to_owned());
        format!("http://127.0.0.1:{port}")
    })
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
