//! One instance of a cluster, reached by itself through the API server.

use super::Route;

/// One instance.
#[derive(Clone)]
pub struct Instance {
    /// Name of its pod.
    pub name: String,
    client: kube::Client,
    namespace: String,
}

impl Instance {
    pub(super) fn new(client: &kube::Client, namespace: &str, name: String) -> Self {
        Self { name, client: client.clone(), namespace: namespace.to_owned() }
    }

    /// The public port.
    #[must_use]
    pub fn public(&self) -> Route {
        self.port(8001)
    }

    /// The admin port.
    #[must_use]
    pub fn admin(&self) -> Route {
        self.port(9090)
    }

    fn port(&self, port: u16) -> Route {
        let (namespace, name) = (&self.namespace, &self.name);
        let base = format!("/api/v1/namespaces/{namespace}/pods/{name}:{port}/proxy");
        Route::Pod { client: self.client.clone(), base }
    }
}
