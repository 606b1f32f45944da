{{/*
The values as all templates use them: `router` with the older names laid over it. YAML; read it with `fromYaml`.
*/}}
{{- define "epp.settings" -}}
{{- $router := deepCopy .Values.router -}}
{{- $provider := deepCopy .Values.provider -}}
{{- $route := deepCopy .Values.httpRoute -}}
{{- $old := default dict .Values.inferenceExtension -}}
{{- range $key := list "replicas" "image" "extProcPort" "env" "pluginsConfigFile" "pluginsCustomConfig" "flags" "affinity" "tolerations" "resources" -}}
  {{- if hasKey $old $key -}}
    {{- $given := get $old $key -}}
    {{- if kindIs "map" $given -}}
      {{- $_ := set $router.epp $key (mergeOverwrite (deepCopy (default dict (get $router.epp $key))) $given) -}}
    {{- else -}}
      {{- $_ := set $router.epp $key $given -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- range $key := list "extraServicePorts" "extraContainerPorts" -}}
  {{- if hasKey $old $key -}}{{- $_ := set $router $key (get $old $key) -}}{{- end -}}
{{- end -}}
{{- range $key := list "monitoring" "tracing" "latencyPredictor" -}}
  {{- if hasKey $old $key -}}{{- $_ := set $router $key (mergeOverwrite (get $router $key) (get $old $key)) -}}{{- end -}}
{{- end -}}
{{- if hasKey $old "failureMode" -}}{{- $_ := set $router.inferencePool "failureMode" $old.failureMode -}}{{- end -}}
{{- $pool := default dict .Values.inferencePool -}}
{{- if hasKey $pool "targetPorts" -}}{{- $_ := set $router.modelServers "targetPorts" $pool.targetPorts -}}{{- end -}}
{{- if hasKey $pool "modelServerType" -}}{{- $_ := set $router.modelServers "type" $pool.modelServerType -}}{{- end -}}
{{- if hasKey $pool "modelServerProtocol" -}}{{- $_ := set $router.modelServers "protocol" $pool.modelServerProtocol -}}{{- end -}}
{{- if hasKey $pool "modelServers" -}}{{- $_ := set $router.modelServers "matchLabels" $pool.modelServers.matchLabels -}}{{- end -}}
{{- $older := default dict .Values.experimentalHttpRoute -}}
{{- if hasKey $older "enabled" -}}{{- $_ := set $route "create" $older.enabled -}}{{- end -}}
{{- range $key := list "inferenceGatewayName" "baseModel" "requestTimeout" -}}
  {{- if hasKey $older $key -}}{{- $_ := set $route $key (get $older $key) -}}{{- end -}}
{{- end -}}
{{- if $router.latencyPredictor.enabled -}}
  {{- fail "router.latencyPredictor.enabled: nothing predicts latency yet; leave it out" -}}
{{- end -}}
{{- if and $router.proxy.enabled (ne $router.proxy.proxyType "envoy") -}}
  {{- fail (printf "router.proxy.proxyType: %s is not there; use envoy, or a gateway of your own" $router.proxy.proxyType) -}}
{{- end -}}
{{- if and $router.proxy.enabled $router.proxy.presets -}}
  {{- fail "router.proxy.presets: what llm-d's chart sets by it is said here by router.proxy.image, args, resources and failOpen" -}}
{{- end -}}
{{- if not $router.modelServers.matchLabels -}}
  {{- fail "router.modelServers.matchLabels is empty: name the labels of the model servers' pods, for example --set-string router.modelServers.matchLabels.app=vllm" -}}
{{- end -}}
{{- $several := gt (int $router.epp.replicas) 1 -}}
{{- $election := $several -}}
{{- if hasKey $router.epp.flags "ha-enable-leader-election" -}}
  {{- $election = eq (toString (get $router.epp.flags "ha-enable-leader-election")) "true" -}}
{{- end -}}
{{- if and $election $router.proxy.enabled (eq $router.proxy.mode "sidecar") $several -}}
  {{- fail "router.proxy.mode: sidecar puts an Envoy beside every replica, but only the leader is ready: use mode service, replicas 1, or flags.ha-enable-leader-election=false" -}}
{{- end -}}
{{- $secure := true -}}
{{- if hasKey $router.epp.flags "secure-serving" -}}
  {{- $secure = eq (toString (get $router.epp.flags "secure-serving")) "true" -}}
{{- end -}}
{{- $auth := and $router.monitoring.prometheus.enabled $router.monitoring.prometheus.auth.enabled -}}
{{- if hasKey $router.epp.flags "metrics-endpoint-auth" -}}
  {{- $auth = eq (toString (get $router.epp.flags "metrics-endpoint-auth")) "true" -}}
{{- end -}}
{{- dict "router" $router "provider" $provider "route" $route "election" $election "several" $several "secure" $secure "auth" $auth | toYaml -}}
{{- end -}}

{{- define "epp.pool" -}}
{{- default .Release.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "epp.name" -}}
{{- printf "%s-epp" (include "epp.pool" .) -}}
{{- end -}}

{{- define "epp.selector" -}}
app.kubernetes.io/name: epp
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: endpoint-picker
{{- end -}}

{{- define "epp.labels" -}}
{{ include "epp.selector" . }}
{{ include "epp.commonLabels" . }}
{{- end -}}

{{- define "epp.commonLabels" -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "epp.proxySelector" -}}
app.kubernetes.io/name: epp
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: gateway
{{- end -}}

{{- define "epp.serviceAccount" -}}
{{- $account := (include "epp.settings" . | fromYaml).router.epp.serviceAccount -}}
{{- default (include "epp.name" .) $account.name -}}
{{- end -}}

{{/* registry/repository:tag. Takes (dict "image" IMAGE "tag" DEFAULT). */}}
{{- define "epp.image" -}}
{{- $name := .image.repository -}}
{{- if .image.registry -}}{{- $name = printf "%s/%s" .image.registry .image.repository -}}{{- end -}}
{{- printf "%s:%s" $name (default .tag .image.tag) -}}
{{- end -}}

{{/* A number without an exponent. */}}
{{- define "epp.flag" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) -}}{{- int64 . -}}{{- else -}}{{- . -}}{{- end -}}
{{- end -}}

{{- define "epp.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "epp.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end -}}
