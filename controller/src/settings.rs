//! Every setting of `vx11-controller run`: one field, one flag, one environment variable.

use std::net::SocketAddr;

use clap::Args;

use crate::{cluster::Defaults, watch::Scope};

/// Settings of the controller.
#[derive(Args, Clone, Debug)]
pub struct Settings {
    /// Image of operator-backend where a cluster names none.
    #[arg(
        long,
        env = "VX11_DEFAULT_BACKEND_IMAGE",
        default_value = concat!("ghcr.io/vx11/operator-backend:", env!("CARGO_PKG_VERSION"))
    )]
    pub backend_image: String,
    /// Image of Redis where a cluster names none.
    #[arg(long, env = "VX11_DEFAULT_REDIS_IMAGE", default_value = "docker.io/library/redis:7.2")]
    pub redis_image: String,
    /// Namespaces to look at, comma separated; none means all.
    #[arg(long, env = "WATCH_NAMESPACES", value_delimiter = ',')]
    pub watch_namespaces: Vec<String>,
    /// Name of the Lease that elects the leader.
    #[arg(long, env = "VX11_LEASE_NAME", default_value = "vx11-controller")]
    pub lease_name: String,
    /// Namespace of the Lease; the pod's own if absent.
    #[arg(long, env = "VX11_LEASE_NAMESPACE")]
    pub lease_namespace: Option<String>,
    /// Name of this pod: who holds the Lease and reports events; the host name if absent.
    #[arg(long, env = "POD_NAME")]
    pub pod_name: Option<String>,
    /// Namespace of this pod, whose controllers may reach the instances' admin port.
    #[arg(long, env = "POD_NAMESPACE", default_value = "vx11-system")]
    pub pod_namespace: String,
    /// Address of /metrics, /livez and /readyz.
    #[arg(long, env = "VX11_LISTEN", default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,
    /// Log filter in the syntax of tracing's `EnvFilter`, such as `info` or `vx11_controller=debug`.
    #[arg(long, env = "VX11_LOG", default_value = "info")]
    pub log: String,
    /// Clusters that are reconciled at the same time, 1 to 100.
    #[arg(long, env = "VX11_CONCURRENCY", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=100))]
    pub concurrency: u16,
}

impl Settings {
    /// Who this process is.
    #[must_use]
    pub fn identity(&self) -> String {
        let host_name = || std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
        let name = self
            .pod_name
            .clone()
            .or_else(host_name)
            .map(|name| name.trim().to_owned())
            .filter(|name| !name.is_empty());
        // Two processes must never share a name: the second would believe that it holds the first's lease.
        name.unwrap_or_else(|| format!("vx11-controller-{:08x}", rand::random::<u32>()))
    }

    /// Namespace of the Lease.
    #[must_use]
    pub fn lease_namespace(&self) -> &str {
        self.lease_namespace
            .as_deref()
            .filter(|namespace| !namespace.is_empty())
            .unwrap_or(&self.pod_namespace)
    }

    /// Which namespaces to look at.
    #[must_use]
    pub fn scope(&self) -> Scope {
        Scope::of(&self.watch_namespaces)
    }

    /// What a spec may leave open.
    #[must_use]
    pub fn defaults(&self) -> Defaults {
        Defaults {
            backend_image: self.backend_image.clone(),
            redis_image: self.redis_image.clone(),
            operator_namespace: self.pod_namespace.clone(),
        }
    }
}
