{{/* Where the weights are, as a YAML map: `model` (the argument of `vllm serve`), `env`, `volume`, `readOnly`. */}}
{{- define "modelservice.model" -}}
{{- $a := .Values.modelArtifacts -}}
{{- $uri := tpl $a.uri . -}}
{{- if hasPrefix "hf://" $uri }}
model: {{ trimPrefix "hf://" $uri | quote }}
env:
- {name: HF_HOME, value: {{ $a.mountPath | quote }}}
volume:
  emptyDir: {sizeLimit: {{ $a.size | quote }}}
readOnly: false
{{- else if hasPrefix "pvc+hf://" $uri }}
{{- $parts := splitList "/" (trimPrefix "pvc+hf://" $uri) }}
{{- if lt (len $parts) 3 }}
{{- fail (printf "modelArtifacts.uri: %s has no ORG/MODEL at its end: pvc+hf://CLAIM/PATH/ORG/MODEL" $uri) }}
{{- end }}
{{- $names := slice $parts (sub (len $parts) 2) }}
{{- $path := slice $parts 1 (sub (len $parts) 2) }}
model: {{ join "/" $names | quote }}
env:
- {name: HF_HUB_CACHE, value: {{ join "/" (concat (list $a.mountPath) $path) | quote }}}
- {name: HF_HUB_OFFLINE, value: "1"}
volume:
  persistentVolumeClaim: {claimName: {{ first $parts | quote }}, readOnly: {{ $a.readOnly }}}
readOnly: {{ $a.readOnly }}
{{- else if hasPrefix "pvc://" $uri }}
{{- $parts := splitList "/" (trimPrefix "pvc://" $uri) }}
model: {{ join "/" (concat (list $a.mountPath) (rest $parts)) | quote }}
env: []
volume:
  persistentVolumeClaim: {claimName: {{ first $parts | quote }}, readOnly: {{ $a.readOnly }}}
readOnly: {{ $a.readOnly }}
{{- else if hasPrefix "oci://" $uri }}
model: {{ ternary $a.mountPath (printf "%s/%s" $a.mountPath $a.path) (eq $a.path "") | quote }}
env: []
volume:
  image: {reference: {{ trimPrefix "oci://" $uri | quote }}, pullPolicy: IfNotPresent}
readOnly: true
{{- else }}
{{- fail (printf "modelArtifacts.uri: %q is none of hf://, pvc://, pvc+hf://, oci://" $uri) }}
{{- end }}
{{- end }}

{{/* How one replica of a role is spread, as a YAML map: tensor, data, dataLocal, workers, and
     `spread`: none (one pod), layers (one engine over all pods), engines (each pod has engines of its own).
     Call with (dict "root" $ "role" "decode"). */}}
{{- define "modelservice.parallelism" -}}
{{- $values := index .root.Values .role -}}
{{- $p := $values.parallelism -}}
{{- $workers := int $p.workers -}}
{{- $data := int $p.data -}}
{{- $where := printf "%s.parallelism" .role -}}
{{- if and .root.Values.multinode (lt $workers 2) }}
{{- fail (printf "%s.workers: %d pod is no group: set it to 2 or more, or multinode to false" $where $workers) }}
{{- end }}
{{- if and (not .root.Values.multinode) (gt $workers 1) }}
{{- fail (printf "%s.workers: %d pods per replica need multinode: true (a LeaderWorkerSet)" $where $workers) }}
{{- end }}
{{- $spread := "none" -}}
{{- if .root.Values.multinode }}{{- $spread = ternary "engines" "layers" (gt $data 1) -}}{{- end }}
{{- $pods := ternary 1 $workers (eq $spread "layers") -}}
{{- $local := int (default (div $data $pods) $p.dataLocal) -}}
{{- if ne (mul $local $pods) $data }}
{{- fail (printf "%s: data %d is not dataLocal %d in each of %d pods" $where $data $local $pods) }}
{{- end }}
tensor: {{ $p.tensor }}
data: {{ $data }}
dataLocal: {{ $local }}
workers: {{ $workers }}
spread: {{ $spread }}
{{- end }}

{{/* NAME=PATH of every adapter, one per line. */}}
{{- define "modelservice.adapters" -}}
{{- range .Values.modelArtifacts.loraAdapters }}
- {{ printf "%s=%s" .name (trimPrefix "hf://" .uri) | quote }}
{{- end }}
{{- end }}
