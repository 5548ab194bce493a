{{- define "kwitness.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- /* The release's name, which most often has the chart's in it. */}}
{{- define "kwitness.fullname" -}}
{{- $name := include "kwitness.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- /* Never change between versions: a DaemonSet's selector cannot. */}}
{{- define "kwitness.selectorLabels" -}}
app.kubernetes.io/name: {{ include "kwitness.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "kwitness.labels" -}}
{{ include "kwitness.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
{{- end }}

{{- /* A role must not be bound to the account `default`, which every pod of the namespace has that names no other. */}}
{{- define "kwitness.serviceAccountName" -}}
{{- with .Values.serviceAccount }}
{{- if not (or .create .name (not $.Values.kubernetes.enabled)) }}
{{- fail "kubernetes.enabled without serviceAccount.create needs serviceAccount.name: all pods of the namespace could read pods" }}
{{- end }}
{{- default (ternary (include "kwitness.fullname" $) "default" .create) .name }}
{{- end }}
{{- end }}

{{- define "kwitness.exporterName" -}}
{{- printf "%s-export" (include "kwitness.fullname" . | trunc 56 | trimSuffix "-") }}
{{- end }}

{{- /* Of objects without a namespace: a release of this name may be in each namespace. No other object's name has a colon. */}}
{{- define "kwitness.clusterName" -}}
{{- printf "%s:%s" .Release.Namespace (include "kwitness.fullname" .) }}
{{- end }}

{{- define "kwitness.exporterClusterName" -}}
{{- printf "%s:%s" .Release.Namespace (include "kwitness.exporterName" .) }}
{{- end }}

{{- /* Of other pods than the daemon's: neither selects the other's. */}}
{{- define "kwitness.exporterSelectorLabels" -}}
app.kubernetes.io/name: {{ printf "%s-export" (include "kwitness.name" . | trunc 56 | trimSuffix "-") | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "kwitness.exporterLabels" -}}
{{ include "kwitness.exporterSelectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
{{- end }}

{{- /* Of the service by which an exporter reaches its own node's daemon. */}}
{{- define "kwitness.localName" -}}
{{- printf "%s-local" (include "kwitness.fullname" . | trunc 57 | trimSuffix "-") }}
{{- end }}

{{- define "kwitness.exporterAccount" -}}
{{- with .Values.exporter.serviceAccount }}
{{- if not (or .create .name (not $.Values.exporter.kubernetesEvents)) }}
{{- fail "exporter.kubernetesEvents without exporter.serviceAccount.create needs exporter.serviceAccount.name: all pods of the namespace could create events" }}
{{- end }}
{{- default (ternary (include "kwitness.exporterName" $) "default" .create) .name }}
{{- end }}
{{- end }}

{{- define "kwitness.image" -}}
{{- with .Values.image }}
{{- .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{- /* Whether the kubelet waits for what a pod says, before it says that the pod is ready. */}}
{{- define "kwitness.isProbed" -}}
{{- if and .Values.http.enabled (or .Values.startupProbe .Values.readinessProbe) -}}
true
{{- end }}
{{- end }}

{{- /* With pins, the next daemon waits on the node until this one ends: nothing is lost. Without, nothing is gained by a second pod. */}}
{{- define "kwitness.updateStrategy" -}}
{{- if .Values.updateStrategy }}
{{- toYaml .Values.updateStrategy }}
{{- else if and .Values.pins.enabled (include "kwitness.isProbed" .) -}}
type: RollingUpdate
rollingUpdate:
  maxSurge: 10%
  maxUnavailable: 0
{{- else -}}
type: RollingUpdate
rollingUpdate:
  maxSurge: 0
  maxUnavailable: 10%
{{- end }}
{{- end }}

{{- /* Whether a rollout starts the next pod of a node before it ends the last one. */}}
{{- define "kwitness.surges" -}}
{{- $strategy := include "kwitness.updateStrategy" . | fromYaml }}
{{- with $strategy.rollingUpdate }}
{{- if and (ne $strategy.type "OnDelete") .maxSurge (not (has (toString .maxSurge) (list "0" "0%"))) -}}
{{- if not (include "kwitness.isProbed" $) }}
{{- fail "updateStrategy.rollingUpdate.maxSurge needs http.enabled and a probe: the last pod must not end before the next one stands by" }}
{{- end -}}
true
{{- end }}
{{- end }}
{{- end }}

{{- /*
The daemon's configuration as TOML: the chart's own settings, then those of `config`. Each value is written as JSON, which for strings,
numbers, booleans and lists is TOML, too; toToml would write 64 as 64.0. A setting that is null is left out.
*/}}
{{- define "kwitness.toml" -}}
{{- $own := dict
  "api" (dict "socket" "/run/kwitness/kwitness.sock")
  "kernel" (dict "pin" "off")
  "kubelet" (dict "directory" .Values.kubelet.hostPath)
  "runtime" (dict "endpoint" (ternary .Values.runtime.socket "none" .Values.runtime.enabled))
}}
{{- if .Values.api.port }}
{{- $_ := set $own.api "listen" (printf "127.0.0.1:%v" .Values.api.port) }}
{{- end }}
{{- if .Values.pins.enabled }}
{{- $_ := set $own "kernel" (dict "pin" "auto" "pin_directory" "/sys/fs/bpf/kwitness") }}
{{- end }}
{{- if .Values.kubernetes.enabled }}
{{- $_ := set $own "kubernetes" (dict "enabled" true) }}
{{- end }}
{{- if .Values.http.enabled }}
{{- $_ := set $own "http" (dict "listen" (printf "%s:%v" .Values.http.address .Values.http.port)) }}
{{- end }}
{{- range $section, $settings := mergeOverwrite (deepCopy (default dict .Values.config)) $own }}
[{{ $section }}]
{{- range $key, $value := $settings }}
{{- if not (kindIs "invalid" $value) }}
{{ $key }} = {{ toJson $value }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- /*
A scraped target's labels: the job of this name, which the alerts expect whatever the chart's name is, and the node. The labels of the daemon's own pod must
go, for the metrics have their own of these names: Prometheus would rename those to exported_pod, and alerts would name the daemon's pod.
*/}}
{{- define "kwitness.relabelings" -}}
- targetLabel: job
  replacement: {{ . }}
- sourceLabels: [__meta_kubernetes_pod_node_name]
  targetLabel: node
- action: labeldrop
  regex: namespace|pod|container
{{- end }}
