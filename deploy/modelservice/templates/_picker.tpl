{{/* default-plugins.yaml: what fits prefill and adapters. */}}
{{- define "modelservice.pickerConfig" -}}
{{- $adapters := .Values.modelArtifacts.loraAdapters -}}
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
{{- if .Values.prefill.create }}
- type: decode-filter
{{- end }}
{{- if $adapters }}
- type: lora-affinity-scorer
{{- end }}
- type: queue-scorer
- type: kv-cache-utilization-scorer
- type: prefix-cache-scorer
schedulingProfiles:
- name: default
  plugins:
  {{- if .Values.prefill.create }}
  - {pluginRef: decode-filter}
  {{- end }}
  {{- if $adapters }}
  - {pluginRef: lora-affinity-scorer, weight: 3}
  {{- end }}
  - {pluginRef: queue-scorer, weight: 2}
  - {pluginRef: kv-cache-utilization-scorer, weight: 2}
  - {pluginRef: prefix-cache-scorer, weight: 3}
{{- end }}

{{/* The ConfigMap's data: the chart's file, and those of the user, which win. */}}
{{- define "modelservice.pickerFiles" -}}
{{- $files := mergeOverwrite (dict "default-plugins.yaml" (include "modelservice.pickerConfig" .)) .Values.router.epp.pluginsCustomConfig -}}
{{- if not (hasKey $files .Values.router.epp.pluginsConfigFile) }}
{{- fail (printf "router.epp.pluginsConfigFile: %s is not among router.epp.pluginsCustomConfig" .Values.router.epp.pluginsConfigFile) }}
{{- end }}
{{- toYaml $files -}}
{{- end }}

{{- define "modelservice.pickerLabels" -}}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: epp
{{- end }}
