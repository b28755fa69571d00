//! Why a pod does not run, read from its status: a stable reason and a message with the remedy. Pure.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

/// Longest quote from Kubernetes or a log in a message, in characters.
const MAX_QUOTE: usize = 300;

/// Something that keeps a part of a cluster from running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// Stable, for conditions, events and metrics.
    pub reason: &'static str,
    /// What is wrong, with the object's name, and what to do.
    pub message: String,
}

impl Trouble {
    /// A trouble from its parts.
    #[must_use]
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// Shortens foreign text and keeps it on one line, so that conditions stay readable and bounded.
#[must_use]
pub fn quote(text: &str) -> String {
    let mut line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = line.char_indices().nth(MAX_QUOTE) {
        line.truncate(end);
        line.push('…');
    }
    line
}

/// What a pod's status says about why it does not run; `None` when it runs or merely starts.
#[must_use]
pub fn pod(pod: &Pod) -> Option<Trouble> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let status = pod.status.as_ref()?;
    if pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    if status.phase.as_deref() == Some("Failed") {
        let reason = status.reason.as_deref().unwrap_or("Failed");
        let detail = quote(status.message.as_deref().unwrap_or_default());
        return Some(if reason == "Evicted" {
            Trouble::new(
                "Evicted",
                format!(
                    "pod {name} was evicted from its node: {detail}; free the node's resource or raise the requests"
                ),
            )
        } else {
            Trouble::new("PodFailed", format!("pod {name} failed ({reason}): {detail}"))
        });
    }
    let unschedulable = status.conditions.iter().flatten().find(|condition| {
        condition.type_ == "PodScheduled"
            && condition.status == "False"
            && condition.reason.as_deref() == Some("Unschedulable")
    });
    if let Some(condition) = unschedulable {
        let detail = quote(condition.message.as_deref().unwrap_or_default());
        return Some(Trouble::new(
            "Unschedulable",
            format!(
                "no node takes pod {name}: {detail}; add nodes, lower the resource requests, or correct nodeSelector, tolerations or affinity"
            ),
        ));
    }
    status
        .init_container_statuses
        .iter()
        .chain(status.container_statuses.iter())
        .flatten()
        .find_map(|container| container_trouble(name, container))
}

fn container_trouble(pod: &str, container: &ContainerStatus) -> Option<Trouble> {
    let state = container.state.as_ref()?;
    let waiting = state.waiting.as_ref()?;
    let reason = waiting.reason.as_deref()?;
    let detail = quote(waiting.message.as_deref().unwrap_or_default());
    let image = &container.image;
    match reason {
        "ErrImagePull"
        | "ImagePullBackOff"
        | "InvalidImageName"
        | "ErrImageNeverPull"
        | "RegistryUnavailable"
        | "ImageInspectError" => Some(Trouble::new(
            "ImagePullFailed",
            format!(
                "pod {pod} cannot get image {image}: {detail}; correct the image name, add imagePullSecrets, or load the image onto the nodes"
            ),
        )),
        "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => Some(Trouble::new(
            "ContainerCannotStart",
            format!("pod {pod} cannot start its container: {detail}"),
        )),
        "CrashLoopBackOff" => Some(crash_trouble(pod, container)),
        _ => None,
    }
}

fn crash_trouble(pod: &str, container: &ContainerStatus) -> Trouble {
    let ended = container.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    let code = ended.map_or(0, |ended| ended.exit_code);
    let words = ended.and_then(|ended| ended.message.as_deref()).unwrap_or_default();
    // The log's end tells more than its beginning.
    let tail_start =
        words.char_indices().rev().nth(MAX_QUOTE.saturating_sub(1)).map_or(0, |(index, _)| index);
    let detail = quote(words.get(tail_start..).unwrap_or_default());
    if ended.and_then(|ended| ended.reason.as_deref()) == Some("OOMKilled") {
        return Trouble::new(
            "OutOfMemory",
            format!("pod {pod} was killed at its memory limit; raise resources.limits.memory"),
        );
    }
    if words.contains("No space left on device") {
        return Trouble::new(
            "DiskFull",
            format!("pod {pod} cannot write, its volume is full: {detail}; raise spec.redis.storage.size"),
        );
    }
    Trouble::new(
        "CrashLooping",
        format!(
            "pod {pod} ends with code {code} again and again: {detail}; see kubectl logs --previous {pod}"
        ),
    )
}

/// What the kubelet's own warning about a pod means. The probes of the Redis print its answer, which is how
/// a wrong password or a full disk becomes visible without connecting to it.
#[must_use]
pub fn pod_warning(pod: &str, reason: &str, message: &str) -> Trouble {
    let detail = quote(message);
    if ["WRONGPASS", "NOAUTH", "AUTH failed"].iter().any(|sign| message.contains(sign)) {
        return Trouble::new(
            "RedisPasswordWrong",
            format!(
                "the Redis of pod {pod} refuses the password of its Secret: {detail}; restore the Secret's key password, or delete the pod so that it starts with the present one"
            ),
        );
    }
    if message.contains("No space left on device") || message.contains("MISCONF") {
        return Trouble::new(
            "DiskFull",
            format!(
                "the Redis of pod {pod} cannot write its data: {detail}; its volume is full or broken: raise spec.redis.storage.size"
            ),
        );
    }
    if message.contains("LOADING") {
        return Trouble::new(
            "RedisLoading",
            format!("the Redis of pod {pod} reads its data set; it serves when that is done"),
        );
    }
    match reason {
        "FailedMount" | "FailedAttachVolume" => {
            Trouble::new("VolumeNotMounted", format!("pod {pod} waits for a volume: {detail}"))
        }
        "FailedCreatePodSandBox" | "FailedCreatePodContainer" => {
            Trouble::new("ContainerCannotStart", format!("pod {pod} cannot start: {detail}"))
        }
        "Unhealthy" => Trouble::new("NotHealthy", format!("pod {pod} fails its probe: {detail}")),
        _ => Trouble::new("NotReady", format!("pod {pod} is not ready: {detail}")),
    }
}

/// Why the API server refuses to create pods, from the message that a workload's controller passes on.
#[must_use]
pub fn creation_failure(workload: &str, message: &str) -> Trouble {
    let detail = quote(message);
    if message.contains("exceeded quota") {
        return Trouble::new(
            "QuotaExceeded",
            format!(
                "{workload} may not create its pods: {detail}; raise the ResourceQuota or lower the resource requests"
            ),
        );
    }
    if message.contains("forbidden") || message.contains("denied") {
        return Trouble::new(
            "ForbiddenByPolicy",
            format!("{workload} may not create its pods: {detail}; allow it in the namespace's policy"),
        );
    }
    Trouble::new("PodsNotCreated", format!("{workload} cannot create its pods: {detail}"))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn pod_with(status: &serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "simple-cluster-redis-0"}, "status": status}))
            .unwrap()
    }

    fn waiting(reason: &str, message: &str) -> serde_json::Value {
        json!({"containerStatuses": [{
            "name": "redis", "image": "example.com/redis:nope", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": reason, "message": message}},
        }]})
    }

    fn crashed(reason: &str, message: &str) -> serde_json::Value {
        json!({"containerStatuses": [{
            "name": "redis", "image": "i", "imageID": "", "ready": false, "restartCount": 4,
            "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"exitCode": 1, "reason": reason, "message": message}},
        }]})
    }

    #[rstest]
    #[case(
        waiting("ImagePullBackOff", "Back-off pulling image"),
        "ImagePullFailed",
        "example.com/redis:nope"
    )]
    #[case(waiting("ErrImageNeverPull", "not present"), "ImagePullFailed", "load the image")]
    #[case(
        waiting("CreateContainerConfigError", "secret \"x\" not found"),
        "ContainerCannotStart",
        "secret \"x\""
    )]
    #[case(crashed("Error", "FATAL CONFIG FILE ERROR"), "CrashLooping", "FATAL CONFIG FILE ERROR")]
    #[case(crashed("Error", "write: No space left on device"), "DiskFull", "spec.redis.storage.size")]
    #[case(crashed("OOMKilled", ""), "OutOfMemory", "resources.limits.memory")]
    #[case(
        json!({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}]}),
        "Unschedulable",
        "0/3 nodes"
    )]
    #[case(json!({"phase": "Failed", "reason": "Evicted", "message": "low on ephemeral-storage"}), "Evicted", "ephemeral")]
    fn a_pod_that_cannot_run_says_why_and_what_to_do(
        #[case] status: serde_json::Value,
        #[case] reason: &str,
        #[case] says: &str,
    ) {
        let trouble = pod(&pod_with(&status)).unwrap();
        assert_eq!(trouble.reason, reason);
        assert!(trouble.message.contains(says), "{}", trouble.message);
        assert!(trouble.message.contains("simple-cluster-redis-0"));
    }

    #[rstest]
    #[case(waiting("ContainerCreating", ""))]
    #[case(json!({"phase": "Running"}))]
    fn a_pod_that_merely_starts_is_no_trouble(#[case] status: serde_json::Value) {
        assert_eq!(pod(&pod_with(&status)), None);
    }

    #[rstest]
    #[case("Unhealthy", "Readiness probe failed: AUTH failed: WRONGPASS invalid", "RedisPasswordWrong")]
    #[case(
        "Unhealthy",
        "Readiness probe failed: MISCONF Errors writing to the AOF file: No space",
        "DiskFull"
    )]
    #[case("Unhealthy", "LOADING Redis is loading the dataset in memory", "RedisLoading")]
    #[case("FailedMount", "secret \"gone\" not found", "VolumeNotMounted")]
    #[case("Unhealthy", "connection refused", "NotHealthy")]
    fn warnings_of_the_kubelet_become_reasons(
        #[case] reason: &str,
        #[case] message: &str,
        #[case] expected: &str,
    ) {
        assert_eq!(pod_warning("p", reason, message).reason, expected);
    }

    #[rstest]
    #[case("pods \"x\" is forbidden: exceeded quota: small, requested: cpu=1", "QuotaExceeded")]
    #[case("pods \"x\" is forbidden: violates PodSecurity \"restricted\"", "ForbiddenByPolicy")]
    #[case("something else", "PodsNotCreated")]
    fn refusals_to_create_pods_are_told_apart(#[case] message: &str, #[case] expected: &str) {
        assert_eq!(creation_failure("Deployment d", message).reason, expected);
    }

    #[test]
    fn foreign_text_is_bounded_and_on_one_line() {
        let text = quote(&"line\n".repeat(1000));
        assert!(text.chars().count() <= MAX_QUOTE + 1);
        assert!(!text.contains('\n'));
    }
}
