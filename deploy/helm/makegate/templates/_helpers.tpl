{{- define "makegate.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "makegate.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "makegate.labels" -}}
{{ include "makegate.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "makegate.image" -}}
{{- with .Values.image }}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{- define "makegate.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (ternary (include "makegate.name" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{- define "makegate.scheme" -}}
{{- if or .Values.tls.existingSecret .Values.config.gateway.tls }}https{{ else }}http{{ end }}
{{- end }}

{{- /* The port of an address such as 0.0.0.0:8080. */ -}}
{{- define "makegate.port" -}}
{{- regexFind "[0-9]+$" . }}
{{- end }}

{{- /* Whether replicas keep their promises together: not empty. One that does so alone may be left of several. */ -}}
{{- define "makegate.engine" -}}
{{- if or (gt (int .Values.replicas) 1) (hasKey .Values.config "replicas") }}yes{{ end }}
{{- end }}

{{- /* The configuration, with the certificate and the database that the values name. */ -}}
{{- define "makegate.config" -}}
{{- $config := deepCopy .Values.config }}
{{- if include "makegate.engine" . }}
{{- $engine := dict "url_file" "/run/secrets/makegate/postgres" "key_file" "/run/secrets/makegate/replicas.key" }}
{{- $_ := set $config "replicas" (mergeOverwrite $engine ($config.replicas | default dict)) }}
{{- end }}
{{- if .Values.tls.existingSecret }}
{{- $tls := dict "cert" "/run/secrets/tls/tls.crt" "key" "/run/secrets/tls/tls.key" }}
{{- $_ := set $config.gateway "tls" (mergeOverwrite $tls ($config.gateway.tls | default dict)) }}
{{- end }}
{{- range $section := list "caller" "issuer" "operation" }}
{{- range index $config $section }}
[[{{ $section }}]]
{{ include "makegate.toml.members" . | trim }}
{{ end }}
{{- end }}
{{- range $section, $members := omit $config "caller" "issuer" "operation" }}
{{- if kindIs "map" $members }}
[{{ $section }}]
{{ include "makegate.toml.members" $members | trim }}
{{ end }}
{{- end }}
{{- end }}

{{- define "makegate.toml.members" -}}
{{- range $key, $value := . }}
{{ include "makegate.toml.key" $key }} = {{ include "makegate.toml.value" $value }}
{{- end }}
{{- end }}

{{- define "makegate.toml.key" -}}
{{- if regexMatch "^[A-Za-z0-9_-]+$" . }}{{ . }}{{ else }}{{ toJson . }}{{ end }}
{{- end }}

{{- /* Helm reads whole numbers as floats, which TOML tells from integers. */ -}}
{{- define "makegate.toml.value" -}}
{{- if kindIs "map" . }}
{{- $members := list }}
{{- range $key, $value := . }}
{{- $members = append $members (printf "%s = %s" (include "makegate.toml.key" $key) (include "makegate.toml.value" $value)) }}
{{- end }}{ {{ join ", " $members }} }
{{- else if kindIs "slice" . }}
{{- $items := list }}
{{- range . }}{{ $items = append $items (include "makegate.toml.value" .) }}{{ end }}[{{ join ", " $items }}]
{{- else if kindIs "float64" . }}{{ if eq (floor .) . }}{{ int64 . }}{{ else }}{{ . }}{{ end }}
{{- else }}{{ toJson . }}
{{- end }}
{{- end }}
