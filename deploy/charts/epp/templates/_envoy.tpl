{{- define "epp.envoyContainer" -}}
{{- $s := include "epp.settings" . | fromYaml -}}
{{- $proxy := $s.router.proxy -}}
- name: envoy
  image: {{ include "epp.image" (dict "image" $proxy.image "tag" "") }}
  imagePullPolicy: {{ $proxy.image.pullPolicy }}
  args: {{ concat (list "-c" "/etc/envoy/envoy.yaml") $proxy.args | toJson }}
  ports:
  - {name: http, containerPort: 8081}
  readinessProbe:
    tcpSocket: {port: http}
    periodSeconds: 2
  # Envoy ends at once when told to, answers or not: it is told when the picker has drained. Kubernetes 1.30.
  lifecycle:
    preStop: {sleep: {seconds: 40}}
  resources: {{- toYaml $proxy.resources | nindent 4 }}
  securityContext: {{- include "epp.containerSecurity" . | nindent 4 }}
  volumeMounts:
  - {name: envoy, mountPath: /etc/envoy, readOnly: true}
{{- end -}}
