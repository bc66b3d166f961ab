{{/* Who may sign in, and where runs are launched. */}}
{{- define "caravan.dashboardEnv" -}}
{{- if .Values.oidc.enabled -}}
- name: CARAVAN_OIDC_ISSUER
  value: {{ .Values.oidc.issuer | quote }}
- name: CARAVAN_OIDC_CLIENT_ID
  value: {{ .Values.oidc.clientId | quote }}
- name: CARAVAN_OIDC_CLIENT_SECRET
  valueFrom:
    secretKeyRef:
      name: {{ .Values.oidc.existingSecret | quote }}
      key: {{ .Values.oidc.clientSecretKey | quote }}
- name: CARAVAN_OIDC_COOKIE_SECRET
  valueFrom:
    secretKeyRef:
      name: {{ .Values.oidc.existingSessionSecret | default (printf "%s-session" (include "caravan.fullname" .)) | quote }}
      key: {{ ternary .Values.oidc.sessionSecretKey "cookie-secret" (ne .Values.oidc.existingSessionSecret "") | quote }}
- name: CARAVAN_OIDC_REDIRECT_URI
  value: https://{{ .Values.dashboard.host }}/oauth2callback
- name: CARAVAN_OIDC_SCOPES
  value: {{ .Values.oidc.scopes | quote }}
- name: CARAVAN_OIDC_GROUPS_CLAIM
  value: {{ .Values.oidc.groupsClaim | quote }}
- name: CARAVAN_OIDC_TRUST_EMAIL
  value: {{ .Values.oidc.trustEmail | quote }}
- name: CARAVAN_OIDC_VIEWER_GROUPS
  value: {{ .Values.oidc.viewerGroups | toJson | quote }}
- name: CARAVAN_OIDC_LAUNCHER_GROUPS
  value: {{ .Values.oidc.launcherGroups | toJson | quote }}
- name: CARAVAN_OIDC_ADMIN_GROUPS
  value: {{ .Values.oidc.adminGroups | toJson | quote }}
- name: CARAVAN_OIDC_SESSION_HOURS
  value: {{ .Values.oidc.sessionHours | quote }}
{{- end }}
{{- end }}

{{/* The server answers on the pod's address, or on loopback only, which the kubelet cannot reach. */}}
{{- define "caravan.dashboardHealth" -}}
{{- if .Values.oidc.enabled -}}
httpGet:
  path: /_stcore/health
  port: http
{{- else -}}
exec:
  command: [python3, -c, "import urllib.request as r; r.urlopen('http://127.0.0.1:8501/_stcore/health', timeout=8)"]
{{- end -}}
{{- end }}
