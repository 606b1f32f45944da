{{/* Labels of a role's pods; those that take no requests must not be selected by the pool.
     Call with (dict "root" $ "role" "decode" "serving" true). */}}
{{- define "modelservice.podLabels" -}}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- if .serving }}
{{ include "modelservice.servingLabels" .root }}
llm-d.ai/role: {{ .role }}
{{- else }}
app.kubernetes.io/component: {{ .role }}-worker
{{- end }}
{{- end }}

{{/* The template of a role's pods.
     Call with (dict "root" $ "role" "decode" "leader" true "serving" true). */}}
{{- define "modelservice.podTemplate" -}}
{{- $root := .root -}}
{{- $call := . -}}
{{- $values := index $root.Values .role -}}
metadata:
  labels: {{- include "modelservice.podLabels" . | nindent 4 }}
  {{- with $values.podAnnotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include "modelservice.fullname" $root }}
  automountServiceAccountToken: false
  {{- with default $root.Values.schedulerName $values.schedulerName }}
  schedulerName: {{ . }}
  {{- end }}
  {{- range $key := list "terminationGracePeriodSeconds" "priorityClassName" "runtimeClassName" }}
  {{- with index $values $key }}
  {{ $key }}: {{ . }}
  {{- end }}
  {{- end }}
  {{- range $key := list "hostIPC" "hostPID" "enableServiceLinks" }}
  {{- if hasKey $values $key }}
  {{ $key }}: {{ index $values $key }}
  {{- end }}
  {{- end }}
  {{- range $key := list "nodeSelector" "tolerations" "topologySpreadConstraints" "securityContext" "imagePullSecrets" }}
  {{- with index $values $key }}
  {{ $key }}: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- end }}
  {{- if $values.acceleratorTypes.labelKey }}
  affinity:
    nodeAffinity:
      requiredDuringSchedulingIgnoredDuringExecution:
        nodeSelectorTerms:
        - matchExpressions:
          - key: {{ $values.acceleratorTypes.labelKey }}
            operator: In
            values: {{- toYaml $values.acceleratorTypes.labelValues | nindent 12 }}
  {{- else }}
  {{- with $values.affinity }}
  affinity: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- end }}
  {{- $proxied := and (eq .role "decode") .serving (include "modelservice.proxied" $root) }}
  {{- if or $proxied $values.initContainers }}
  initContainers:
  {{- if $proxied }}
  - {{ include "modelservice.proxy" $root | nindent 4 | trim }}
  {{- end }}
  {{- with $values.initContainers }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- end }}
  containers:
  {{- $mountsModel := false }}
  {{- $shares := include "modelservice.sharesMemory" . }}
  {{- range $index, $container := $values.containers }}
  {{- if $container.mountModelVolume }}{{- $mountsModel = true }}{{- end }}
  - {{ include "modelservice.container" (merge (dict "container" $container "first" (eq $index 0)) $call) | nindent 4 | trim }}
  {{- end }}
  {{- if or $values.volumes $mountsModel $shares }}
  volumes:
  {{- with $values.volumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- if $mountsModel }}
  - name: model-storage
    {{- toYaml (include "modelservice.model" $root | fromYaml).volume | nindent 4 }}
  {{- end }}
  {{- if $shares }}
  - name: shared-memory
    emptyDir: {medium: Memory}
  {{- end }}
  {{- end }}
{{- end }}

{{/* A role: its Deployment or LeaderWorkerSet. Call with (dict "root" $ "role" "decode"). */}}
{{- define "modelservice.role" -}}
{{- $root := .root -}}
{{- $values := index $root.Values .role -}}
{{- $p := include "modelservice.parallelism" . | fromYaml -}}
{{- $leader := merge (dict "leader" true "serving" true) . -}}
{{- if $root.Values.multinode }}
apiVersion: leaderworkerset.x-k8s.io/v1
kind: LeaderWorkerSet
{{- else }}
apiVersion: apps/v1
kind: Deployment
{{- end }}
metadata:
  name: {{ include "modelservice.fullname" $root }}-{{ .role }}
  labels: {{- include "modelservice.labels" $root | nindent 4 }}
    llm-d.ai/role: {{ .role }}
  {{- if and $root.Values.multinode $values.subGroupExclusiveTopology }}
  annotations:
    leaderworkerset.sigs.k8s.io/subgroup-exclusive-topology: {{ $values.subGroupExclusiveTopology }}
  {{- end }}
spec:
  replicas: {{ $values.replicas }}
  {{- if $root.Values.multinode }}
  startupPolicy: LeaderCreated
  leaderWorkerTemplate:
    size: {{ $p.workers }}
    restartPolicy: RecreateGroupOnPodRestart
    {{- with $values.subGroupPolicy }}
    subGroupPolicy: {{- toYaml . | nindent 6 }}
    {{- end }}
    {{- if eq $p.spread "layers" }}
    {{- /* Only the leader answers HTTP. */}}
    leaderTemplate: {{- include "modelservice.podTemplate" $leader | nindent 6 }}
    workerTemplate: {{- include "modelservice.podTemplate" (merge (dict "leader" false "serving" false) .) | nindent 6 }}
    {{- else }}
    workerTemplate: {{- include "modelservice.podTemplate" $leader | nindent 6 }}
    {{- end }}
  {{- else }}
  {{- with $values.strategy }}
  strategy: {{- toYaml . | nindent 4 }}
  {{- end }}
  selector:
    matchLabels: {{- include "modelservice.podLabels" $leader | nindent 6 }}
  template: {{- include "modelservice.podTemplate" $leader | nindent 4 }}
  {{- end }}
{{- end }}

{{- define "modelservice.podMonitor" -}}
{{- $monitor := (index .root.Values .role).monitoring.podmonitor -}}
apiVersion: monitoring.coreos.com/v1
kind: PodMonitor
metadata:
  name: {{ include "modelservice.fullname" .root }}-{{ .role }}
  labels: {{- mergeOverwrite (include "modelservice.labels" .root | fromYaml) $monitor.labels | toYaml | nindent 4 }}
spec:
  selector:
    matchLabels: {{- include "modelservice.podLabels" (merge (dict "serving" true) .) | nindent 6 }}
  podMetricsEndpoints:
  - portNumber: {{ .root.Values.routing.servicePort }}
    path: {{ $monitor.path }}
    interval: {{ $monitor.interval }}
{{- end }}
