{{/* The files of the picker's ConfigMap: the one that is used, and those of the user. */}}
{{- define "epp.configFiles" -}}
{{- $s := include "epp.settings" . | fromYaml -}}
{{- $file := $s.router.epp.pluginsConfigFile -}}
{{- $files := deepCopy $s.router.epp.pluginsCustomConfig -}}
{{- if not (hasKey $files $file) -}}
  {{- $text := .Files.Get (printf "files/plugins/%s" $file) -}}
  {{- if not $text -}}
    {{- $known := list -}}
    {{- range $path, $_ := .Files.Glob "files/plugins/*.yaml" -}}{{- $known = append $known (base $path) -}}{{- end -}}
    {{- fail (printf "router.epp.pluginsConfigFile: there is no %s; give its text in router.epp.pluginsCustomConfig, or use one of %s" $file ($known | sortAlpha | join ", ")) -}}
  {{- end -}}
  {{- if ne $s.router.modelServers.type "vllm" -}}
    {{- $config := $text | fromYaml -}}
    {{- $engine := dict "type" "core-metrics-extractor" "parameters" (dict "defaultEngine" $s.router.modelServers.type) -}}
    {{- $_ := set $config "plugins" (append $config.plugins $engine) -}}
    {{- $text = $config | toYaml -}}
  {{- end -}}
  {{- $_ := set $files $file $text -}}
{{- end -}}
{{- $files | toYaml -}}
{{- end -}}

{{/* Envoy's bootstrap: the file, with the picker's address and what was asked for. */}}
{{- define "epp.envoy" -}}
{{- $s := include "epp.settings" . | fromYaml -}}
{{- $sidecar := eq $s.router.proxy.mode "sidecar" -}}
{{- $text := .Files.Get (ternary "files/envoy-sidecar.yaml" "files/envoy-service.yaml" $sidecar) -}}
{{- $envoy := $text | fromYaml -}}
{{- range $cluster := $envoy.static_resources.clusters -}}
  {{- if eq $cluster.name "picker" -}}
    {{- $address := dict "address" (ternary "127.0.0.1" (printf "%s-pods" (include "epp.name" $)) $sidecar) "port_value" $s.router.epp.extProcPort -}}
    {{- $_ := set $cluster.load_assignment "endpoints" (list (dict "lb_endpoints" (list (dict "endpoint" (dict "address" (dict "socket_address" $address)))))) -}}
    {{- if not $s.secure -}}
      {{- $_ := unset $cluster "transport_socket" -}}
      {{- range $cluster.health_checks -}}{{- $_ := unset . "tls_options" -}}{{- end -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- range $listener := $envoy.static_resources.listeners -}}
  {{- range $filter := (first (first $listener.filter_chains).filters).typed_config.http_filters -}}
    {{- if eq $filter.name "envoy.filters.http.ext_proc" -}}
      {{- $_ := set $filter.typed_config "failure_mode_allow" $s.router.proxy.failOpen -}}
      {{- if $s.router.proxy.lightMode -}}{{- $_ := set $filter.typed_config.processing_mode "response_body_mode" "NONE" -}}{{- end -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- $envoy | toYaml -}}
{{- end -}}
