{{/* A container of a serving pod. Keys that are not the chart's go to Kubernetes as they are.
     Call with (dict "root" $ "role" "decode" "container" $c "first" true "leader" true "serving" true). */}}
{{- define "modelservice.container" -}}
{{- $root := .root -}}
{{- $values := index $root.Values .role -}}
{{- $c := .container -}}
{{- $port := int $root.Values.routing.servicePort -}}
{{- if and (eq .role "decode") (include "modelservice.proxied" $root) }}{{- $port = int $root.Values.routing.proxy.targetPort -}}{{- end }}
{{- $p := include "modelservice.parallelism" . | fromYaml -}}
{{- $out := omit (deepCopy $c) "modelCommand" "mountModelVolume" "command" "args" -}}
{{- $_ := mergeOverwrite $out (include "modelservice.command" (merge (dict "port" $port) .) | fromYaml) -}}
{{- if not $out.args }}{{- $_ := unset $out "args" -}}{{- end }}
{{- if not $out.image }}
{{- if ne $c.modelCommand "eppSim" }}{{- fail (printf "%s.containers: %s has no image" .role $c.name) }}{{- end }}
{{- $_ := set $out "image" (include "modelservice.eppImage" $root) -}}
{{- end }}

{{- $env := list (dict "name" "DP_SIZE" "value" (toString $p.data)) (dict "name" "DP_SIZE_LOCAL" "value" (toString $p.dataLocal)) (dict "name" "TP_SIZE" "value" (toString $p.tensor)) -}}
{{- $env = concat $env (default (list) (index $root.Values.accelerator.env $root.Values.accelerator.type)) -}}
{{- $mounts := default (list) $c.volumeMounts -}}
{{- if $c.mountModelVolume }}
{{- $model := include "modelservice.model" $root | fromYaml -}}
{{- $env = concat $env $model.env -}}
{{- if $root.Values.modelArtifacts.authSecretName }}
{{- $env = append $env (dict "name" "HF_TOKEN" "valueFrom" (dict "secretKeyRef" (dict "name" $root.Values.modelArtifacts.authSecretName "key" "HF_TOKEN"))) -}}
{{- end }}
{{- $mount := dict "name" "model-storage" "mountPath" $root.Values.modelArtifacts.mountPath -}}
{{- if $model.readOnly }}{{- $_ := set $mount "readOnly" true -}}{{- end }}
{{- $mounts = append $mounts $mount -}}
{{- end }}
{{- $_ := set $out "env" (concat $env (default (list) $c.env)) -}}

{{- $resource := index $root.Values.accelerator.resources $root.Values.accelerator.type -}}
{{- if and .first $resource }}
{{- $count := toString (mul (int $p.tensor) (int $p.dataLocal)) -}}
{{- $resources := default dict $out.resources -}}
{{- range list "limits" "requests" }}
{{- $_ := set $resources . (merge (dict $resource $count) (default dict (index $resources .))) -}}
{{- end }}
{{- $_ := set $out "resources" $resources -}}
{{- /* Processes of one engine exchange tensors through shared memory, of which a container has 64 MiB. */}}
{{- if include "modelservice.sharesMemory" . }}
{{- $mounts = append $mounts (dict "name" "shared-memory" "mountPath" "/dev/shm") -}}
{{- end }}
{{- end }}
{{- if $mounts }}{{- $_ := set $out "volumeMounts" $mounts -}}{{- end }}

{{- if and .first .serving }}
{{- $ports := default (list) $c.ports -}}
{{- $known := list -}}
{{- range $ports }}{{- $known = append $known (int .containerPort) -}}{{- end }}
{{- if not (has $port $known) }}{{- $ports = prepend $ports (dict "name" "http" "containerPort" $port "protocol" "TCP") -}}{{- end }}
{{- $_ := set $out "ports" $ports -}}
{{- if $values.probes.enabled }}
{{- $health := dict "httpGet" (dict "path" "/health" "port" $port) -}}
{{- $tries := div (add (int $values.probes.startupSeconds) 9) 10 -}}
{{- $_ := set $out "startupProbe" (default (merge (dict "periodSeconds" 10 "failureThreshold" $tries) $health) $c.startupProbe) -}}
{{- $_ := set $out "livenessProbe" (default (merge (dict "periodSeconds" 10 "timeoutSeconds" 5 "failureThreshold" 3) $health) $c.livenessProbe) -}}
{{- $_ := set $out "readinessProbe" (default (merge (dict "periodSeconds" 5 "timeoutSeconds" 2 "failureThreshold" 3) $health) $c.readinessProbe) -}}
{{- end }}
{{- end }}
{{- toYaml $out -}}
{{- end }}

{{/* llm-d's routing proxy, a native sidecar: it starts before the server and stops after it. */}}
{{- define "modelservice.proxy" -}}
{{- $proxy := .Values.routing.proxy -}}
name: routing-proxy
image: {{ $proxy.image | quote }}
imagePullPolicy: {{ $proxy.imagePullPolicy }}
restartPolicy: Always
args:
- --port={{ .Values.routing.servicePort }}
- --model-server-port={{ $proxy.targetPort }}
- --kv-connector={{ $proxy.connector }}
- --secure-proxy={{ $proxy.secure }}
{{- with $proxy.certPath }}
- --cert-path={{ . }}
{{- end }}
{{- if $proxy.prefillerUseTLS }}
- --enable-tls=prefiller
{{- end }}
- --zap-encoder={{ $proxy.zapEncoder }}
- --zap-log-level={{ $proxy.zapLogLevel }}
{{- range $proxy.extraArgs }}
- {{ . | quote }}
{{- end }}
ports:
- {name: http, containerPort: {{ .Values.routing.servicePort }}, protocol: TCP}
resources: {{- toYaml $proxy.resources | nindent 2 }}
securityContext:
  allowPrivilegeEscalation: false
  runAsNonRoot: true
  capabilities: {drop: [ALL]}
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* Does the first container get a /dev/shm of its own? "true" or empty. */}}
{{- define "modelservice.sharesMemory" -}}
{{- $p := include "modelservice.parallelism" . | fromYaml -}}
{{- $c := first (index .root.Values .role).containers -}}
{{- $paths := list -}}
{{- range $c.volumeMounts }}{{- $paths = append $paths .mountPath -}}{{- end }}
{{- $accelerated := index .root.Values.accelerator.resources .root.Values.accelerator.type -}}
{{- if and $accelerated (eq $c.modelCommand "vllmServe") (gt (mul (int $p.tensor) (int $p.dataLocal)) 1) (not (has "/dev/shm" $paths)) -}}
true
{{- end -}}
{{- end }}
