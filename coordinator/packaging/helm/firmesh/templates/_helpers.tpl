{{- define "firmesh.labels" -}}
app.kubernetes.io/name: firmesh
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: coordinator
{{- end }}
{{- define "firmesh.name" -}}
{{ printf "%s-coordinator" .Release.Name | trunc 50 | trimSuffix "-" }}
{{- end }}
