{{/* Name of every object. */}}
{{- define "vx11-operator.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/*
Labels that select the controller's pods; they never change. The name is fixed: the NetworkPolicy of every
cluster's instances admits exactly the pods that carry it.
*/}}
{{- define "vx11-operator.selectorLabels" -}}
app.kubernetes.io/name: vx11-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "vx11-operator.labels" -}}
{{ include "vx11-operator.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/component: controller
app.kubernetes.io/part-of: vx11
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "vx11-operator.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "vx11-operator.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name: name the existing ServiceAccount, or set serviceAccount.create to true" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "vx11-operator.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "vx11-operator.backendImage" -}}
{{- default (printf "ghcr.io/vx11/operator-backend:%s" .Chart.AppVersion) .Values.defaultImages.backend -}}
{{- end -}}

{{/* The subject of every binding. */}}
{{- define "vx11-operator.subjects" -}}
- kind: ServiceAccount
  name: {{ include "vx11-operator.serviceAccountName" . }}
  namespace: {{ .Release.Namespace }}
{{- end -}}
