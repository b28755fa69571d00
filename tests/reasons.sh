#!/usr/bin/env bash
# Lists every reason that the controller gives in conditions and events, from its source.
set -euo pipefail
cd "$(dirname "$0")/../controller/src"

# Words of the same shape that are Kubernetes' own, or names of conditions and kinds.
other='BackendReady|ContainerCreating|CrashLoopBackOff|CreateContainer(Config)?Error|Deployment|ErrImage(NeverPull|Pull)|Failed'
other+='|Failed(AttachVolume|Create.*|Mount)|False|Image(InspectError|PullBackOff)|InvalidImageName|LoadBalancerReady|OOMKilled'
other+='|Paused|PodScheduled|Progressing|Ready|Degraded|Reconcile|RedisReady|RegistryUnavailable|RunContainerError|StatefulSet'
other+='|Scaling(Active|Limited)?|True|Opaque|Read|Unhealthy|Unknown|Event|Ingress|Secret|NOAUTH|WRONGPASS|MISCONF|LOADING'

for file in diagnose.rs watch.rs reconcile/{apply,inspect,validate}.rs reconcile/{summary,summary/part,apply/wish}.rs reconcile/apply/volume.rs scale/{decision,report}.rs; do
  sed '/^mod tests/,$d' "$file" | grep -v '^ *//' | grep -oE '"[A-Z][A-Za-z]+"' || true
done | tr -d '"' | grep -vxE "$other" | sort -u
