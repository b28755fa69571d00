//! The test cluster's tools, the client to its API server, and the operator installed in it.

use std::{
    env,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Client, Config, ResourceExt,
    api::{DeleteParams, ListParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio::sync::OnceCell;

use super::kubernetes::OURS;

/// Folder of the test cluster's state.
#[must_use]
pub fn state_directory() -> PathBuf {
    let home = || PathBuf::from(env::var("HOME").unwrap_or_default());
    let base = || env::var("XDG_STATE_HOME").map_or_else(|_| home().join(".local/state"), PathBuf::from);
    env::var("VX11_STATE").map_or_else(|_| base().join("vx11"), PathBuf::from)
}

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Says which cluster the tests run on.
pub(super) const KIND: &str = "VX11_CLUSTER";

/// Whether the tests run on a cluster of the user's (`VX11_CLUSTER=existing` and `KUBECONFIG`).
pub(super) fn is_existing() -> bool {
    env::var(KIND).is_ok_and(|kind| kind == "existing")
}

/// Whether a test that needs more of the cluster than a Kubernetes has to be left out, because this one is the
/// user's. It says so in the midst of the run, where nobody overlooks it.
#[must_use]
pub fn is_left_out(why: &str) -> bool {
    if is_existing() {
        let thread = std::thread::current();
        // Not by `eprintln!`, which the test runner shows of failed tests only.
        let _ = writeln!(
            std::io::stderr(),
            "== NOT RUN on an existing cluster: {}: {why}",
            thread.name().unwrap_or("a test")
        );
    }
    is_existing()
}

/// The command for one of the test cluster's tools (`kubectl`, `helm`, `docker`), run from the repository's root.
pub(super) fn command(program: &str) -> Command {
    let variables = state_directory().join("env");
    let mut command = if is_existing() {
        assert_ne!(
            program, "docker",
            "an existing cluster's nodes are out of reach: this test cannot run there"
        );
        Command::new(program)
    } else {
        assert!(variables.exists(), "{} is missing: run `make cluster` first", variables.display());
        // The shell only reads the variables; arguments are passed on as they are.
        let mut shell = Command::new("bash");
        shell.args(["-c", ". \"$0\" && exec \"$@\""]).arg(variables).arg(program);
        shell
    };
    command.current_dir(repository());
    command
}

/// Runs a command of the test cluster's tools.
#[must_use]
pub fn tool(program: &str, arguments: &[&str]) -> Output {
    command(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"))
}

/// Runs kubectl; panics with what it said when it fails.
pub fn kubectl(arguments: &[&str]) -> String {
    let output = tool("kubectl", arguments);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "kubectl {arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

pub(super) async fn connect() -> Client {
    let path = if is_existing() {
        PathBuf::from(env::var("KUBECONFIG").expect("VX11_CLUSTER=existing needs KUBECONFIG"))
    } else {
        state_directory().join("kubeconfig")
    };
    let kubeconfig = Kubeconfig::read_from(&path).unwrap_or_else(|error| {
        panic!("no test cluster: run `make cluster` first ({}: {error})", path.display())
    });
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

/// Installs the operator with the chart of this checkout, once a process, and removes what earlier tests left.
pub async fn operator_installed() {
    static INSTALLED: OnceCell<()> = OnceCell::const_new();
    INSTALLED
        .get_or_init(|| async {
            let namespaces: Api<Namespace> = Api::all(connect().await);
            let ours = ListParams::default().labels(OURS);
            for namespace in namespaces.list(&ours).await.unwrap() {
                let name = namespace.name_any();
                if !is_in_use(&name) {
                    let _ = namespaces.delete(&name, &DeleteParams::default()).await;
                }
            }
            install_operator(&[]);
        })
        .await;
}

/// Whether the process that made a namespace still runs; its id is in the name, see [`sandbox`].
fn is_in_use(namespace: &str) -> bool {
    let process = namespace.split('-').find(|part| part.parse::<u32>().is_ok()).unwrap_or("0");
    Path::new("/proc").join(process).exists()
}

/// Installs or upgrades the operator with the chart of this checkout, with more arguments for `helm upgrade`.
pub fn install_operator(more: &[&str]) {
    // The images keep their tag while they are worked on, so their id tells whether pods are made anew.
    let name = format!("ghcr.io/vx11/vx11-controller:{}", env!("CARGO_PKG_VERSION"));
    let image = if is_existing() {
        String::new()
    } else {
        let image = tool("docker", &["image", "inspect", "-f", "{{.Id}}", &name]);
        assert!(image.status.success(), "there is no image {name}: run `make images` first");
        String::from_utf8_lossy(&image.stdout).trim().to_owned()
    };
    let image = format!("podAnnotations.vx11\\.io/image={image}");
    // One at a time: test runs beside each other share the operator.
    let lock = state_directory().join("helm.lock");
    let mut arguments = vec![lock.to_str().unwrap(), "helm", "upgrade", "--install", "vx11-operator"];
    arguments.extend(["charts/vx11-operator", "--namespace", "vx11-system", "--create-namespace"]);
    arguments.extend(["--set-string", &image, "--wait", "--timeout", "3m"]);
    arguments.extend(more);
    let output = tool("flock", &arguments);
    assert!(output.status.success(), "helm: {}", String::from_utf8_lossy(&output.stderr));
}
