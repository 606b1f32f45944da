{{- define "modelservice.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- $full | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{/* Labels of every object. */}}
{{- define "modelservice.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* What the pool selects: the labels of pods that take requests, whatever their role. */}}
{{- define "modelservice.servingLabels" -}}
{{- $model := .Values.modelArtifacts.name | lower | replace "/" "-" | replace "_" "-" | replace ":" "-" | trunc 63 -}}
{{- $own := dict "llm-d.ai/inference-serving" "true" "llm-d.ai/model" (trimAll "-." $model) -}}
{{- mergeOverwrite $own (deepCopy .Values.modelArtifacts.labels) | toYaml -}}
{{- end }}

{{- define "modelservice.eppImage" -}}
{{- $image := .Values.router.epp.image -}}
{{- $name := ternary (printf "%s/%s" $image.registry $image.repository) $image.repository (ne $image.registry "") -}}
{{- printf "%s:%s" $name (default .Chart.AppVersion $image.tag) -}}
{{- end }}

{{- define "modelservice.targetPorts" -}}
{{- $default := list (dict "number" .Values.routing.servicePort) -}}
{{- default $default .Values.router.modelServers.targetPorts | toYaml -}}
{{- end }}

{{/* Is there a proxy in front of decode servers? "true" or empty. */}}
{{- define "modelservice.proxied" -}}
{{- if and .Values.prefill.create .Values.routing.proxy.enabled -}}true{{- end -}}
{{- end }}
