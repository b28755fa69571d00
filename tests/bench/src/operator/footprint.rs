//! What the controller weighs.

use std::{collections::BTreeMap, fs, time::Duration};

use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        core::v1::{ResourceQuota, ResourceQuotaSpec},
    },
    apimachinery::pkg::api::resource::Quantity,
};
use kube::api::{ListParams, ObjectMeta, PostParams};
use tokio::time::sleep;
use vx11_tests::harness::{Audit, OPERATOR, eventually, sandbox, tool};

use crate::{
    process,
    report::{Report, figure, section},
};

const CLUSTERS: usize = 100;
/// What has waited for this long is looked at once a minute, not every few seconds.
const REST: Duration = Duration::from_mins(6);
const IDLE: Duration = Duration::from_mins(1);

/// With a hundred clusters whose pods a quota keeps away.
pub async fn measure(report: &mut Report) {
    let (memory, cpu) = sandbox("footprint", async |sandbox| {
        let quota = ResourceQuota {
            metadata: ObjectMeta { name: Some("no-pods".into()), ..ObjectMeta::default() },
            spec: Some(ResourceQuotaSpec {
                hard: Some(BTreeMap::from([("pods".to_owned(), Quantity("0".into()))])),
                ..ResourceQuotaSpec::default()
            }),
            ..ResourceQuota::default()
        };
        sandbox.api().create(&PostParams::default(), &quota).await.expect("a quota");
        let mut audit = Audit::from_now();
        for number in 0..CLUSTERS {
            sandbox.apply(&format!("cluster-{number}"), "{instances: 2}").await;
        }
        eventually("the objects of all clusters are there", Duration::from_mins(5), async || {
            let made = sandbox.api::<Deployment>().list(&ListParams::default()).await.ok()?;
            (made.items.len() == CLUSTERS).then_some(())
        })
        .await;
        let mut last = tokio::time::Instant::now();
        eventually("20 seconds without a write", Duration::from_mins(10), async || {
            let asked = audit.read(OPERATOR);
            if asked.iter().any(|asked| asked.is_write() && asked.namespace == sandbox.namespace) {
                last = tokio::time::Instant::now();
            }
            (last.elapsed() > Duration::from_secs(20)).then_some(())
        })
        .await;
        sleep(REST).await;
        let controllers = controllers();
        assert!(!controllers.is_empty(), "no process vx11-controller: the nodes are on another machine");
        let before: Vec<Duration> = controllers.iter().map(|process| process::cpu(*process)).collect();
        sleep(IDLE).await;
        let used = controllers.iter().zip(before).map(|(process, before)| {
            process::cpu(*process).saturating_sub(before).as_secs_f64() / IDLE.as_secs_f64() * 100.0
        });
        let cpu = used.fold(0.0, f64::max);
        let memory = controllers.iter().map(|process| resident(*process)).fold(0.0, f64::max);
        (memory, cpu)
    })
    .await;
    section("The controller's footprint");
    let what = format!("Resident memory of the leader with {CLUSTERS} clusters");
    report.at_most(&what, memory, &format!("{} MiB", figure(memory)), 25.0, "MiB");
    let what = format!("CPU of the leader with {CLUSTERS} idle clusters");
    report.at_most(&what, cpu, &format!("{} % of a core", figure(cpu)), 1.0, "% of a core");
    let image = format!("ghcr.io/vx11/vx11-controller:{}", env!("CARGO_PKG_VERSION"));
    let output = tool("docker", &["image", "inspect", "-f", "{{.Size}}", &image]);
    let bytes: f64 = String::from_utf8_lossy(&output.stdout).trim().parse().expect("an image's size");
    let size = bytes / 1024.0 / 1024.0;
    report.at_most("The controller's image", size, &format!("{} MiB", figure(size)), 20.0, "MiB");
}

/// The processes of the installed operator; its nodes are containers of this machine.
fn controllers() -> Vec<u32> {
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    let named = processes.filter(|process| {
        fs::read_to_string(process.path().join("comm")).is_ok_and(|name| name.trim() == "vx11-controller")
    });
    named.filter_map(|process| process.file_name().to_string_lossy().parse().ok()).collect()
}

fn resident(process: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches("kB").trim().parse::<f64>().unwrap_or_default() / 1024.0
}
