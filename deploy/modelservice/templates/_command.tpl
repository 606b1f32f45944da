{{/* Command and arguments of a server, as a YAML map.
     Call with (dict "root" $ "role" "decode" "container" $c "port" 8000 "leader" true). */}}
{{- define "modelservice.command" -}}
{{- $c := .container -}}
{{- $root := .root -}}
{{- $name := $root.Values.modelArtifacts.name -}}
{{- $port := printf "%d" (int .port) -}}
{{- $adapters := $root.Values.modelArtifacts.loraAdapters -}}
{{- $args := list -}}
{{- if eq $c.modelCommand "vllmServe" }}
{{- $model := include "modelservice.model" $root | fromYaml -}}
{{- $p := include "modelservice.parallelism" . | fromYaml -}}
{{- $args = list $model.model "--port" $port "--served-model-name" $name -}}
{{- if gt (int $p.tensor) 1 }}
{{- $args = concat $args (list "--tensor-parallel-size" (printf "%d" (int $p.tensor))) -}}
{{- end }}
{{- if gt (int $p.data) 1 }}
{{- $args = concat $args (list "--data-parallel-size" (printf "%d" (int $p.data))) -}}
{{- end }}
{{- if eq $p.spread "engines" }}
{{- $args = concat $args (list "--data-parallel-size-local" (printf "%d" (int $p.dataLocal)) "--data-parallel-address" "$(LWS_LEADER_ADDRESS)" "--data-parallel-rpc-port" "5555" "--data-parallel-hybrid-lb") -}}
{{- else if eq $p.spread "layers" }}
{{- $args = concat $args (list "--pipeline-parallel-size" (printf "%d" (int $p.workers)) "--distributed-executor-backend" "mp" "--nnodes" "$(LWS_GROUP_SIZE)" "--node-rank" "$(LWS_WORKER_INDEX)" "--master-addr" "$(LWS_LEADER_ADDRESS)" "--master-port" "29500") -}}
{{- if not .leader }}{{- $args = append $args "--headless" -}}{{- end }}
{{- end }}
{{- if $adapters }}
{{- $args = concat $args (list "--enable-lora" "--max-loras" (printf "%d" (len $adapters)) "--lora-modules") (include "modelservice.adapters" $root | fromYamlArray) -}}
{{- end }}
{{- if eq $p.spread "engines" }}
{{- /* The first rank of a pod is a product, which only a shell computes. */}}
command: ["/bin/sh", "-c", {{ printf "exec vllm serve \"$@\" --data-parallel-start-rank \"$((LWS_WORKER_INDEX * %d))\"" (int $p.dataLocal) | quote }}, vllm]
{{- else }}
command: [vllm, serve]
{{- end }}
{{- else if eq $c.modelCommand "eppSim" }}
{{- $args = list "--model" $name "--host" "0.0.0.0" "--port" $port -}}
{{- if $adapters }}
{{- $args = concat $args (list "--max-loras" (printf "%d" (len $adapters)) "--lora-modules") -}}
{{- range $adapters }}{{- $args = append $args .name -}}{{- end }}
{{- end }}
command: [epp, sim]
{{- else if eq $c.modelCommand "custom" }}
{{- if not $c.command }}
{{- fail (printf "%s.containers: %s has modelCommand custom, and no command" .role $c.name) }}
{{- end }}
command: {{- toYaml $c.command | nindent 2 }}
{{- end }}
{{- $args = concat $args (default (list) $c.args) }}
args: {{- toYaml $args | nindent 2 }}
{{- end }}
