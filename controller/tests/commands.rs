//! `plan`, `why` and `replay` as a person calls them: the real binary, with good input and bad.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on panics"
)]

use std::{
    io::{Read, Write},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
};

use rstest::rstest;
use serde_json::{Value, json};

const CLUSTER: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: another-document}
---
apiVersion: vx11.io/v1alpha1
kind: VX11Cluster
metadata: {name: simple}
spec:
  autoscaling: {maxInstances: 10, expectedClients: 1400}
";

fn run(arguments: &[&str], input: &str, kubeconfig: Option<&Path>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vx11-controller"));
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.env("KUBECONFIG", kubeconfig.unwrap_or_else(|| Path::new("/nonexistent/kubeconfig")));
    let mut child = command.spawn().unwrap();
    // One that does not read its input closes it.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn succeeds(arguments: &[&str], input: &str, kubeconfig: Option<&Path>) -> String {
    let output = run(arguments, input, kubeconfig);
    let complaint = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && complaint.is_empty(), "{arguments:?}: {complaint}");
    String::from_utf8(output.stdout).unwrap()
}

/// What a call that fails says; never on the standard output, which a program may read.
fn fails(arguments: &[&str], input: &str, kubeconfig: Option<&Path>) -> String {
    let output = run(arguments, input, kubeconfig);
    assert!(!output.status.success(), "{arguments:?} succeeded");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "", "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// A file of this test's own.
fn file(name: &str, text: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, text).unwrap();
    path
}

fn plan(arguments: &[&str]) -> Value {
    let arguments = [&["plan", "-f", "-", "-o", "json"], arguments].concat();
    serde_json::from_str(&succeeds(&arguments, CLUSTER, None)).unwrap()
}

#[rstest]
#[case(&["--clients", "500"], "Single", 1, "0.05")]
#[case(&["--clients", "501"], "Vertical", 1, "0.10")]
#[case(&["--clients", "1000"], "Vertical", 1, "0.10")]
#[case(&["--clients", "1001"], "Horizontal", 3, "0.15")]
#[case(&[], "Horizontal", 3, "0.15")]
#[case(&["--clients", "10", "--issuance", "84"], "Horizontal", 2, "0.10")]
#[case(&["--clients", "10", "--availability"], "Horizontal", 2, "0.10")]
#[case(&["--clients", "10", "--availability", "--cost", "2"], "Horizontal", 2, "4.00")]
fn a_plan_walks_the_decision_tree(
    #[case] arguments: &[&str],
    #[case] strategy: &str,
    #[case] instances: u64,
    #[case] cost: &str,
) {
    let plan = plan(arguments);
    assert_eq!(plan["recommended"], strategy, "{plan}");
    let variants = plan["variants"].as_array().unwrap();
    let chosen = variants.iter().find(|variant| variant["strategy"] == strategy).unwrap();
    assert_eq!((&chosen["instances"], &chosen["costPerHour"]), (&json!(instances), &json!(cost)));
    assert_eq!(chosen["fits"], true);
}

#[test]
fn a_plan_for_people_says_the_same_and_reads_a_file_too() {
    let path = file("plan.yaml", CLUSTER);
    let table = succeeds(&["plan", "-f", path.to_str().unwrap()], "", None);
    let plan = plan(&[]);
    assert!(table.starts_with("1,400 clients and 0 issuances a second\nHorizontal: 3 instances"), "{table}");
    assert!(table.contains(plan["recommendation"].as_str().unwrap()), "{table}");
    assert_eq!(table.lines().filter(|line| line.starts_with("* ")).count(), 1, "{table}");
}

#[rstest]
#[case::no_file(&["-f", "/nonexistent/cluster.yaml"], "", "/nonexistent/cluster.yaml: No such file")]
#[case::nothing(&["-f", "-"], "", "no VX11Cluster in it")]
#[case::another_kind(&["-f", "-"], "kind: Deployment", "-: no VX11Cluster in it: 1 documents of other kinds")]
#[case::no_yaml(&["-f", "-"], "kind: [VX11Cluster", "no VX11Cluster in it")]
#[case::no_spec(&["-f", "-"], "kind: VX11Cluster", "no VX11Cluster in it")]
#[case::a_word_for_a_number(&["-f", "-"], "{kind: VX11Cluster, apiVersion: vx11.io/v1alpha1, metadata: {name: a}, spec: {instances: many}}", "spec.instances: invalid type")]
#[case::bounds(
    &["-f", "-"],
    "{kind: VX11Cluster, apiVersion: vx11.io/v1alpha1, metadata: {name: a}, spec: {autoscaling: {minInstances: 5, maxInstances: 2}}}",
    "spec.autoscaling.minInstances must not be above maxInstances (5 > 2)"
)]
#[case::resources(
    &["-f", "-"],
    "{kind: VX11Cluster, apiVersion: vx11.io/v1alpha1, metadata: {name: a}, spec: {backend: {resources: {limits: {cpu: lots}}}}}",
    "`lots` is no quantity"
)]
#[case::negative_clients(&["-f", "-", "--clients=-1"], CLUSTER, "invalid value '-1' for '--clients")]
#[case::no_price(&["-f", "-", "--cost", "cheap"], CLUSTER, "write dollars such as 0.05")]
fn a_plan_of_nonsense_is_refused_by_name(
    #[case] arguments: &[&str],
    #[case] input: &str,
    #[case] complaint: &str,
) {
    let said = fails(&[&["plan"], arguments].concat(), input, None);
    assert!(said.contains(complaint), "{said}");
}

#[test]
fn a_file_that_is_too_large_to_be_a_manifest_is_not_read() {
    let said = fails(&["plan", "-f", "-"], &"# much\n".repeat(1 << 19), None);
    assert!(said.contains("is larger than 2097152 bytes"), "{said}");
}

/// A journal of two decisions: one instance for 100 clients, and a second for 501.
fn journal() -> Value {
    let entry = |at: u64, clients: u64| {
        json!({
            "policy": serde_json::to_value(vx11_controller::scale::policy::Policy::default()).unwrap(),
            "observed": {"replicas": 1, "rollout": false, "instances": [{
                "name": "simple-backend-a", "created": 0, "ready": true, "terminating": false,
                "load": {"state": "known", "value": {"streams": clients, "issuancesPerSecond": 3, "draining": false}},
            }]},
            "history": {"spans": []},
            "at": at,
        })
    };
    [entry(1_764_000_000_000, 100), entry(1_764_000_005_000, 501)].into_iter().map(decided).collect()
}

/// Adds the decision to an entry.
fn decided(mut entry: Value) -> Value {
    use vx11_controller::scale::{decide::decide, observation::Moment};

    let read = |field: &str| entry[field].clone();
    let policy = serde_json::from_value(read("policy")).unwrap();
    let observed = serde_json::from_value(read("observed")).unwrap();
    let history = serde_json::from_value(read("history")).unwrap();
    let at = Moment(entry["at"].as_u64().unwrap());
    entry["decision"] = serde_json::to_value(decide(&policy, &observed, &history, at)).unwrap();
    entry
}

#[test]
fn a_replay_comes_out_as_recorded_and_names_every_number_that_does_not() {
    let mut journal = journal();
    let path = file("journal.json", &journal.to_string());
    let told = succeeds(&["replay", path.to_str().unwrap()], "", None);
    assert_eq!(told, "2 of 2 decisions come out as recorded\n");

    journal[1]["decision"]["desired"] = json!(7);
    let output = run(&["replay", "-"], &journal.to_string(), None);
    assert!(!output.status.success(), "a difference is a failure");
    let told = String::from_utf8(output.stdout).unwrap();
    assert_eq!(told, "decision 2: desired is 7, replayed 2\n1 of 2 decisions come out as recorded\n");
}

#[rstest]
#[case::no_file("/nonexistent/journal", "", "/nonexistent/journal: No such file")]
#[case::nothing("-", "", "- is no journal of decisions: EOF")]
#[case::another_object("-", "{}", "- is no journal of decisions")]
#[case::another_list("-", "[{\"policy\": 1}]", "- is no journal of decisions")]
fn a_replay_of_nonsense_is_refused_by_name(#[case] name: &str, #[case] input: &str, #[case] complaint: &str) {
    let said = fails(&["replay", name], input, None);
    assert!(said.contains(complaint), "{said}");
}

/// A kubeconfig for an API server that gives this answer to everything. It lives as long as the test.
fn answering(name: &str, status: &str, body: &Value) -> PathBuf {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = format!("http://{}", listener.local_addr().unwrap());
    let body = body.to_string();
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    thread::spawn(move || {
        for socket in listener.incoming() {
            let mut socket = socket.unwrap();
            let _ = socket.read(&mut [0; 4096]);
            let _ = socket.write_all(answer.as_bytes());
        }
    });
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "it",
        "clusters": [{"name": "it", "cluster": {"server": server}}],
        "users": [{"name": "it", "user": {}}],
        "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
    });
    file(&format!("kubeconfig-{name}"), &kubeconfig.to_string())
}

fn config_map(data: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "simple-scaling"}, "data": data})
}

#[test]
fn why_tells_the_decisions_and_gives_replay_what_it_reads() {
    let journal = journal();
    let map = config_map(&json!({"journal.json": journal.to_string()}));
    let kubeconfig = answering("good", "200 OK", &map);
    let story = succeeds(&["why", "prod/simple"], "", Some(&kubeconfig));
    assert!(story.starts_with("2025-11-24T16:00:00Z  1 -> 1  Steady\n"), "{story}");
    assert!(
        story.contains("2025-11-24T16:00:05Z  1 -> 2  ScaleOut\n    501 clients need 2 instances"),
        "{story}"
    );
    let json = succeeds(&["why", "prod/simple", "-o", "json"], "", Some(&kubeconfig));
    assert_eq!(serde_json::from_str::<Value>(&json).unwrap(), journal);
    assert_eq!(succeeds(&["replay", "-"], &json, None), "2 of 2 decisions come out as recorded\n");
}

#[test]
fn why_without_a_journal_says_so() {
    let missing = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404, "message": "not found"});
    let forbidden = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Forbidden", "code": 403, "message": "configmaps is forbidden"});
    for (name, status, body, complaint) in [
        ("missing", "404 Not Found", missing, "prod/simple has no journal of decisions yet"),
        ("forbidden", "403 Forbidden", forbidden, "configmaps is forbidden"),
        (
            "foreign",
            "200 OK",
            config_map(&json!({"mine": "1"})),
            "prod/simple has no journal of decisions yet",
        ),
        (
            "broken",
            "200 OK",
            config_map(&json!({"journal.json": "{"})),
            "prod/simple is no journal of decisions",
        ),
    ] {
        let kubeconfig = answering(name, status, &body);
        for output in ["table", "json"] {
            let said = fails(&["why", "prod/simple", "-o", output], "", Some(&kubeconfig));
            assert!(said.contains(complaint), "{name}: {said}");
        }
    }
}

#[test]
fn why_needs_a_name_and_a_way_to_the_api_server() {
    for wrong in ["simple", "/simple", "prod/", "prod/simple/more"] {
        let said = fails(&["why", wrong], "", None);
        assert!(said.contains(&format!("`{wrong}` does not name a cluster; write NAMESPACE/NAME")), "{said}");
    }
    assert!(!fails(&["why", "prod/simple"], "", None).is_empty());
}
