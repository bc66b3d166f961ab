{{/* Names, labels and the parts that every pod shares.
     A number of the values is a float to Helm and would be written as 1e+06: hence `int64`. */}}

{{- define "caravan.fullname" -}}
{{- .Values.fullnameOverride | default .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{/* Labels by which objects find pods. Takes (list $ "component"). */}}
{{- define "caravan.selector" -}}
app.kubernetes.io/name: caravan
app.kubernetes.io/instance: {{ (index . 0).Release.Name | quote }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* Labels of an object. Takes (list $ "component"). */}}
{{- define "caravan.labels" -}}
{{- $ := index . 0 -}}
{{ include "caravan.selector" . }}
app.kubernetes.io/part-of: caravan
app.kubernetes.io/version: {{ $.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $.Release.Service }}
helm.sh/chart: {{ $.Chart.Name }}-{{ $.Chart.Version | replace "+" "_" }}
{{- with $.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Labels of a pod: none that changes with every version of the chart, which would restart it.
     Istio's sidecar would keep jobs from ending, and shut out stage pods, which have none. */}}
{{- define "caravan.podLabels" -}}
{{ include "caravan.selector" . }}
app.kubernetes.io/part-of: caravan
sidecar.istio.io/inject: "false"
{{- with (index . 0).Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Metadata of an object. Takes (list $ "name behind the release's" "component"). */}}
{{- define "caravan.metadata" -}}
{{- $ := index . 0 -}}
name: {{ include "caravan.fullname" $ }}{{ with index . 1 }}-{{ . }}{{ end }}
namespace: {{ $.Release.Namespace | quote }}
labels:
  {{- include "caravan.labels" (list $ (index . 2)) | nindent 2 }}
{{- end }}

{{/* Reference of one of our own images. Takes (list $ "dashboard"). */}}
{{- define "caravan.image" -}}
{{- $ := index . 0 -}}
{{- $image := index $.Values.images (index . 1) -}}
{{- $name := $image.name -}}
{{- with $.Values.images.registry }}{{ $name = printf "%s/%s" (trimSuffix "/" .) $image.name }}{{ end -}}
{{- include "caravan.reference" (dict "name" $name "tag" ($image.tag | default $.Chart.AppVersion) "digest" $image.digest) -}}
{{- end }}

{{- define "caravan.reference" -}}
{{- if .digest }}{{ .name }}@{{ .digest }}{{ else }}{{ .name }}:{{ .tag }}{{ end -}}
{{- end }}

{{- define "caravan.pullSecrets" -}}
{{- with .Values.images.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- end }}

{{/* The restricted pod-security profile. Takes a user id. */}}
{{- define "caravan.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ int64 . }}
runAsGroup: {{ int64 . }}
fsGroup: {{ int64 . }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "caravan.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* Secret and key of the registry's URL. */}}
{{- define "caravan.registrySecret" -}}
{{- if .Values.postgres.enabled -}}
name: {{ include "caravan.fullname" . }}-postgres
key: url
{{- else -}}
name: {{ .Values.registry.existingSecret | quote }}
key: {{ .Values.registry.urlKey | quote }}
{{- end -}}
{{- end }}

{{- define "caravan.storeSecretName" -}}
{{- if .Values.s3.enabled }}{{ include "caravan.fullname" . }}-s3{{ else }}{{ .Values.store.existingSecret }}{{ end -}}
{{- end }}
{{- define "caravan.storeUrl" -}}
{{- if .Values.s3.enabled }}s3://caravan/artifacts{{ else }}{{ .Values.store.url }}{{ end -}}
{{- end }}
{{- define "caravan.storeEndpoint" -}}
{{- if .Values.s3.enabled }}http://{{ include "caravan.fullname" . }}-s3:8333{{ else }}{{ .Values.store.endpoint }}{{ end -}}
{{- end }}

{{/* Where the registry is. */}}
{{- define "caravan.registryEnv" -}}
- name: CARAVAN_HOME
  value: /var/lib/caravan
- name: HOME
  value: /var/lib/caravan
- name: CARAVAN_REGISTRY_URL
  valueFrom:
    secretKeyRef:
      {{- include "caravan.registrySecret" . | nindent 6 }}
- name: CARAVAN_PRICES
  value: {{ .Values.costs.prices | toJson | quote }}
- name: CARAVAN_BUDGETS
  value: {{ .Values.costs.budgets | toJson | quote }}
- name: CARAVAN_CURRENCY
  value: {{ .Values.costs.currency | quote }}
- name: CARAVAN_PROJECT
  value: {{ .Values.costs.project | quote }}
- name: CARAVAN_LOG_FORMAT
  value: {{ .Values.telemetry.logFormat }}
{{- with .Values.telemetry.otlpEndpoint }}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ . | quote }}
{{- end }}
{{- if .Values.trust.existingConfigMap }}
- name: SSL_CERT_FILE
  value: {{ include "caravan.authorities" . }}
- name: REQUESTS_CA_BUNDLE
  value: {{ include "caravan.authorities" . }}
{{- end }}
{{- end }}

{{/* The certificate authorities in a pod of ours: the given ones, else the image's. */}}
{{- define "caravan.authorities" -}}
{{- if .Values.trust.existingConfigMap }}/etc/caravan/trust/{{ .Values.trust.key }}{{ else }}/etc/ssl/certs/ca-certificates.crt{{ end -}}
{{- end }}

{{/* Where the artifacts are. */}}
{{- define "caravan.storeEnv" -}}
- name: CARAVAN_STORE_URL
  value: {{ include "caravan.storeUrl" . | quote }}
- name: CARAVAN_S3_ENDPOINT
  value: {{ include "caravan.storeEndpoint" . | quote }}
- name: CARAVAN_S3_REGION
  value: {{ .Values.store.region | quote }}
- name: CARAVAN_S3_ACCESS_KEY
  valueFrom:
    secretKeyRef:
      name: {{ include "caravan.storeSecretName" . | quote }}
      key: {{ ternary "access-key" .Values.store.accessKeyKey .Values.s3.enabled | quote }}
- name: CARAVAN_S3_SECRET_KEY
  valueFrom:
    secretKeyRef:
      name: {{ include "caravan.storeSecretName" . | quote }}
      key: {{ ternary "secret-key" .Values.store.secretKeyKey .Values.s3.enabled | quote }}
{{- end }}

{{/* What a pod with a read-only root may write to, and the certificates it trusts. */}}
{{- define "caravan.volumes" -}}
- name: work
  emptyDir:
    sizeLimit: {{ . | dig "workSize" "1Gi" }}
- name: tmp
  emptyDir:
    sizeLimit: 1Gi
{{- with .root.Values.trust.existingConfigMap }}
- name: trust
  configMap:
    name: {{ . | quote }}
{{- end }}
{{- end }}
{{- define "caravan.volumeMounts" -}}
- name: work
  mountPath: /var/lib/caravan
- name: tmp
  mountPath: /tmp
{{- if .Values.trust.existingConfigMap }}
- name: trust
  mountPath: /etc/caravan/trust
  readOnly: true
{{- end }}
{{- end }}

{{/* The value of a Secret's key as it is in the cluster, else a new random one: generated once.
     Takes (list $ "secret" "key" length). */}}
{{- define "caravan.generated" -}}
{{- $ := index . 0 -}}
{{- $found := lookup "v1" "Secret" $.Release.Namespace (index . 1) -}}
{{- if and $found (hasKey ($found.data | default dict) (index . 2)) -}}
{{- index $found.data (index . 2) | b64dec -}}
{{- else -}}
{{- randAlphaNum (int (index . 3)) -}}
{{- end -}}
{{- end }}

{{/* Where runs are launched, and what the cluster gives to their pods. */}}
{{- define "caravan.kubeflowEnv" -}}
{{- if .Values.kubeflow.enabled -}}
- name: CARAVAN_KFP_URL
  value: {{ .Values.kubeflow.endpoint | quote }}
{{- if .Values.kubeflow.multiUser }}
- name: CARAVAN_KFP_NAMESPACE
  value: {{ .Release.Namespace | quote }}
{{- end }}
- name: CARAVAN_CLUSTER_PROFILE
  value: /etc/caravan/cluster/profile.yaml
{{- if .Values.kubeflow.serviceAccountToken }}
- name: CARAVAN_KFP_TOKEN_FILE
  value: /var/run/secrets/kubeflow/pipelines/token
{{- end }}
{{- range .Values.kubeflow.existingSecretKeys }}
- name: CARAVAN_KFP_{{ upper . }}
  valueFrom:
    secretKeyRef:
      name: {{ $.Values.kubeflow.existingSecret | quote }}
      key: {{ . }}
{{- end }}
{{- if .Values.trust.existingConfigMap }}
- name: CARAVAN_KFP_CA_FILE
  value: {{ include "caravan.authorities" . }}
{{- end }}
{{- if .Values.dashboard.host }}
- name: CARAVAN_DASHBOARD_URL
  value: https://{{ .Values.dashboard.host }}
{{- end }}
{{- end }}
{{- end }}

{{/* The token of the cluster's API is mounted only where pods are looked at. */}}
{{- define "caravan.kubeflowMounts" -}}
{{- if .Values.kubeflow.enabled -}}
- name: cluster
  mountPath: /etc/caravan/cluster
  readOnly: true
{{- if .Values.kubeflow.serviceAccountToken }}
- name: kubeflow-token
  mountPath: /var/run/secrets/kubeflow/pipelines
  readOnly: true
{{- end }}
{{- end }}
{{- end }}
{{- define "caravan.kubeflowVolumes" -}}
{{- if .Values.kubeflow.enabled -}}
- name: cluster
  configMap:
    name: {{ include "caravan.fullname" . }}-cluster
{{- if .Values.kubeflow.serviceAccountToken }}
- name: kubeflow-token
  projected:
    sources:
      - serviceAccountToken:
          path: token
          audience: pipelines.kubeflow.org
          expirationSeconds: 7200
{{- end }}
{{- end }}
{{- end }}

{{- define "caravan.modelCacheClaim" -}}
{{- .Values.stages.modelCache.existingClaim | default (printf "%s-model-cache" (include "caravan.fullname" .)) -}}
{{- end }}
