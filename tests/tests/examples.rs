//! Every manifest in examples/ is applied as it stands and becomes Ready.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams},
};
use vx11_crds::VX11Cluster;
use vx11_tests::harness::{Sandbox, eventually, kubectl, sandbox};

fn examples() -> Vec<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        files.filter(|path| path.extension().is_some_and(|extension| extension == "yaml")).collect();
    files.sort();
    files
}

/// What the example's own text tells its reader to do first.
fn prepare(sandbox: &Sandbox, text: &str) {
    if !text.contains("tlsSecretName") {
        return;
    }
    let folder = std::env::temp_dir().join(&sandbox.namespace);
    fs::create_dir_all(&folder).unwrap();
    let (certificate, key) = (folder.join("tls.crt"), folder.join("tls.key"));
    let (certificate, key) = (certificate.to_str().unwrap(), key.to_str().unwrap());
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=events.example.com",
        ])
        .args(["-addext", "subjectAltName=DNS:events.example.com", "-keyout", key, "-out", certificate])
        .output()
        .unwrap();
    assert!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr));
    kubectl(&[
        "-n",
        &sandbox.namespace,
        "create",
        "secret",
        "tls",
        "events-example-com-tls",
        "--cert",
        certificate,
        "--key",
        key,
    ]);
    fs::remove_dir_all(&folder).unwrap();
}

#[tokio::test]
async fn every_example_becomes_ready_as_it_stands() {
    let examples = examples();
    assert!(examples.len() >= 5, "only {} examples were found", examples.len());
    sandbox("examples", async |sandbox| {
        let clusters: Api<VX11Cluster> = sandbox.api();
        for path in examples {
            let file = path.to_str().unwrap();
            prepare(sandbox, &fs::read_to_string(&path).unwrap());
            kubectl(&["-n", &sandbox.namespace, "apply", "-f", file]);
            for cluster in clusters.list(&ListParams::default()).await.unwrap() {
                let name = cluster.name_any();
                sandbox.until(&name, "Ready", "True").await;
                println!("{file}: {name} is Ready");
                // One at a time: the test cluster is small.
                clusters.delete(&name, &DeleteParams::default()).await.unwrap();
                eventually(&format!("{name} is gone"), Duration::from_secs(60), async || {
                    clusters.get_opt(&name).await.unwrap().is_none().then_some(())
                })
                .await;
            }
        }
    })
    .await;
}
