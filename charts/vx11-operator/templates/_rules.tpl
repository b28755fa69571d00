{{/*
What the controller may do in the namespaces it watches. Every rule says why; `make check` holds the
list against controller/src/permissions.rs, so that nothing is granted that is not used.
*/}}
{{- define "vx11-operator.rules" -}}
# The clusters themselves: what to do.
- apiGroups: [vx11.io]
  resources: [vx11clusters]
  verbs: [list, watch]
# Report conditions and counts. The spec is the user's and is never written.
- apiGroups: [vx11.io]
  resources: [vx11clusters/status]
  verbs: [patch]
# Run the instances, and the identity they run with.
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch]
- apiGroups: [""]
  resources: [serviceaccounts]
  verbs: [get, list, watch, create, patch]
# Run the Redis. delete: the section changed its type, or the StatefulSet is made anew around its pod because a
# field of it changed that Kubernetes keeps as it was born.
- apiGroups: [apps]
  resources: [statefulsets]
  verbs: [get, list, watch, create, patch, delete]
# Addresses and the configuration of the Redis.
- apiGroups: [""]
  resources: [services, configmaps]
  verbs: [get, list, watch, create, patch, delete]
# Keep instances serving while nodes are drained. delete: below two instances a budget would block drains.
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
# The route, and who may talk to the instances and to the Redis.
- apiGroups: [networking.k8s.io]
  resources: [ingresses, networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
# get: referenced Secrets, by name. create, patch: the generated ones. list, watch: metadata of the generated
# ones only (by label), so that a deleted one comes back. Never delete.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, list, watch, create, patch]
# Say why an instance or the Redis does not run. patch: mark the instance that a scale-in drains, with its
# deletion cost.
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, patch]
# Say why a volume is missing; patch: let it grow.
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get, list, watch, patch]
# The kubelet's own words when a pod does not start: mounts, images, probes.
- apiGroups: [""]
  resources: [events]
  verbs: [list]
# Tell each transition to the people who look at the cluster.
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end -}}
