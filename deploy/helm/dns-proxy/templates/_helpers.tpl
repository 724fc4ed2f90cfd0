{{- define "dns-proxy.labels" -}}
app.kubernetes.io/name: dns-proxy
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
{{- define "dns-proxy.labelled" -}}
{{ include "dns-proxy.labels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}
