{{/* default-plugins.yaml: what fits prefill and adapters. */}}
{{- define "modelservice.pickerConfig" -}}
{{- $adapters := .Values.modelArtifacts.loraAdapters -}}
{{- /* Without the proxy nobody would ask the prefill server that the picker names. */}}
{{- $disagg := and .Values.prefill.create .Values.routing.proxy.enabled -}}
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
{{- if $disagg }}
- type: disagg-profile-handler
  parameters:
    deciders:
      prefill: prefix-based-pd-decider
- type: prefix-based-pd-decider
  parameters:
    nonCachedTokens: {{ .Values.router.epp.nonCachedTokens }}
- type: prefill-filter
{{- end }}
{{- if .Values.prefill.create }}
- type: decode-filter
{{- end }}
{{- if $adapters }}
- type: lora-affinity-scorer
{{- end }}
- type: queue-scorer
- type: kv-cache-utilization-scorer
- type: prefix-cache-scorer
{{- if $disagg }}
- type: active-request-scorer
{{- end }}
schedulingProfiles:
{{- if $disagg }}
- name: prefill
  plugins:
  - {pluginRef: prefill-filter}
  {{- if $adapters }}
  - {pluginRef: lora-affinity-scorer, weight: 1}
  {{- end }}
  - {pluginRef: prefix-cache-scorer, weight: 2}
  - {pluginRef: queue-scorer, weight: 1}
  - {pluginRef: active-request-scorer, weight: 1}
- name: decode
  plugins:
  - {pluginRef: decode-filter}
  {{- if $adapters }}
  - {pluginRef: lora-affinity-scorer, weight: 1}
  {{- end }}
  - {pluginRef: prefix-cache-scorer, weight: 2}
  - {pluginRef: kv-cache-utilization-scorer, weight: 1}
  - {pluginRef: active-request-scorer, weight: 1}
{{- else }}
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

{{/* "true" when one of several pickers leads and the others stand by. */}}
{{- define "modelservice.election" -}}
{{- $epp := .Values.router.epp -}}
{{- $election := gt (int $epp.replicas) 1 -}}
{{- if hasKey $epp.flags "ha-enable-leader-election" -}}
  {{- $election = eq (toString (get $epp.flags "ha-enable-leader-election")) "true" -}}
{{- end -}}
{{- if $election }}true{{ end -}}
{{- end -}}
