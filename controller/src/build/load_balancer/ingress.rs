//! The Ingress, with what its class needs so that a stream is neither buffered nor cut early.

use std::collections::BTreeMap;

use k8s_openapi::api::networking::v1::{
    HTTPIngressPath, HTTPIngressRuleValue, Ingress, IngressBackend, IngressRule, IngressServiceBackend,
    IngressSpec, IngressTLS, ServiceBackendPort,
};

use crate::{
    build::metadata,
    cluster::{Route, ValidatedCluster},
    names::{self, Component},
};

/// What of the public port is routed; the rest of it stays inside.
const PATHS: [&str; 3] = ["/operator/api", "/operator/internal", "/health"];

/// The Ingress of a route.
#[must_use]
pub fn build_ingress(cluster: &ValidatedCluster, route: &Route) -> Ingress {
    let name = names::ingress(&cluster.identity.name);
    let backend = IngressBackend {
        service: Some(IngressServiceBackend {
            name: names::backend(&cluster.identity.name),
            port: Some(ServiceBackendPort { name: Some("http".to_owned()), number: None }),
        }),
        resource: None,
    };
    let paths = PATHS
        .iter()
        .map(|path| HTTPIngressPath {
            path: Some((*path).to_owned()),
            path_type: "Prefix".to_owned(),
            backend: backend.clone(),
        })
        .collect();
    let tls = route.tls_secret.as_ref().map(|secret| {
        vec![IngressTLS {
            hosts: route.host.clone().map(|host| vec![host]),
            secret_name: Some(secret.clone()),
        }]
    });
    let mut annotations = class_annotations(route);
    annotations.extend(route.annotations.clone());

    let mut metadata = metadata::owned(&cluster.identity, Component::LoadBalancer, name);
    metadata.annotations = (!annotations.is_empty()).then_some(annotations);
    Ingress {
        metadata,
        spec: Some(IngressSpec {
            default_backend: None,
            ingress_class_name: route.class_name.clone(),
            rules: Some(vec![IngressRule {
                host: route.host.clone(),
                http: Some(HTTPIngressRuleValue { paths }),
            }]),
            tls,
        }),
        status: None,
    }
}

/// Annotations by the controller that serves the class; none for classes that need or know none.
///
/// Traefik, for one, needs none: it flushes `text/event-stream` at once and has no response timeout.
fn class_annotations(route: &Route) -> BTreeMap<String, String> {
    let seconds = route.stream_timeout_seconds;
    let controller = route.controller.as_deref().unwrap_or_default();
    let pairs: Vec<(&str, String)> = if is_contour(route) {
        // Envoy's route timeout covers the whole response and is 15 s by default.
        vec![("projectcontour.io/response-timeout", format!("{seconds}s"))]
    } else if controller == "k8s.io/ingress-nginx" {
        vec![
            ("nginx.ingress.kubernetes.io/proxy-buffering", "off".to_owned()),
            ("nginx.ingress.kubernetes.io/proxy-read-timeout", seconds.to_string()),
            ("nginx.ingress.kubernetes.io/proxy-send-timeout", seconds.to_string()),
        ]
    } else if controller == "nginx.org/ingress-controller" {
        vec![
            ("nginx.org/proxy-buffering", "False".to_owned()),
            ("nginx.org/proxy-read-timeout", format!("{seconds}s")),
            ("nginx.org/proxy-send-timeout", format!("{seconds}s")),
        ]
    } else if controller == "haproxy-ingress.github.io/controller" {
        vec![("haproxy-ingress.github.io/timeout-server", format!("{seconds}s"))]
    } else {
        Vec::new()
    };
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// Annotations of the Service by the controller that serves the class of the route to it. Where that is not known
/// they are there as well: it may be Contour that serves it still, and nobody else reads them.
pub(in crate::build) fn service_annotations(route: &Route) -> BTreeMap<String, String> {
    if route.controller.is_some() && !is_contour(route) {
        return BTreeMap::new();
    }
    // Envoy refuses what exceeds 1024 connections or requests to one Service, so the 1025th stream of a whole
    // cluster. The instances have limits of their own, which they tell their clients softly.
    ["max-connections", "max-pending-requests", "max-requests"]
        .map(|limit| (format!("projectcontour.io/{limit}"), "1000000".to_owned()))
        .into()
}

fn is_contour(route: &Route) -> bool {
    route.controller.as_deref().is_some_and(|controller| controller.starts_with("projectcontour.io/"))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::build::fixture::simple_cluster;

    #[rstest]
    #[case(Some("projectcontour.io/ingress-controller"), "contour")]
    #[case(Some("k8s.io/ingress-nginx"), "ingress-nginx")]
    #[case(Some("nginx.org/ingress-controller"), "nginx-inc")]
    #[case(Some("haproxy-ingress.github.io/controller"), "haproxy")]
    #[case(Some("traefik.io/ingress-controller"), "traefik")]
    #[case(None, "unknown-class")]
    fn each_class_gets_what_a_stream_needs(#[case] controller: Option<&str>, #[case] name: &str) {
        let cluster = simple_cluster();
        let mut route = cluster.route.clone().unwrap();
        route.controller = controller.map(str::to_owned);
        let annotations = (build_ingress(&cluster, &route).metadata.annotations, service_annotations(&route));
        insta::assert_yaml_snapshot!(format!("annotations-{name}"), annotations);
    }

    #[test]
    fn an_ingress_with_host_certificate_and_own_annotations() {
        let cluster = simple_cluster();
        let mut route = cluster.route.clone().unwrap();
        route.host = Some("events.example.com".to_owned());
        route.tls_secret = Some("events-tls".to_owned());
        route.controller = Some("projectcontour.io/ingress-controller".to_owned());
        route.annotations =
            BTreeMap::from([("projectcontour.io/response-timeout".to_owned(), "infinity".to_owned())]);
        insta::assert_yaml_snapshot!(build_ingress(&cluster, &route));
    }
}
