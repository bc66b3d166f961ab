{{/* The cluster profile: what this installation gives to the pods of runs. Read by caravan.cluster.profile. */}}
{{- define "caravan.profile" -}}
{{- $name := include "caravan.fullname" . -}}
{{- $environment := dict "CARAVAN_STORE_URL" (include "caravan.storeUrl" .) "CARAVAN_S3_ENDPOINT" (include "caravan.storeEndpoint" .) "CARAVAN_S3_REGION" .Values.store.region "CARAVAN_LOG_FORMAT" .Values.telemetry.logFormat -}}
{{- with .Values.telemetry.otlpEndpoint }}{{ $_ := set $environment "OTEL_EXPORTER_OTLP_ENDPOINT" . }}{{ end -}}
namespace: {{ .Release.Namespace | quote }}
service_account: {{ $name }}-stage
user_id: {{ int64 .Values.podSecurity.userId }}
images:
  cpu: {{ include "caravan.image" (list . "stageCpu") }}
  gpu: {{ include "caravan.image" (list . "stageGpu") }}
  pull_policy: {{ .Values.images.pullPolicy }}
  pull_secrets: {{ .Values.images.pullSecrets | toJson }}
node_selector: {{ .Values.stages.nodeSelector | toJson }}
tolerations: {{ .Values.stages.tolerations | toJson }}
gpus:
  {{- range $type, $nodes := .Values.stages.gpus }}
  {{ $type | quote }}:
    resource: {{ $nodes.resource | default "nvidia.com/gpu" }}
    node_selector: {{ $nodes.nodeSelector | default dict | toJson }}
    tolerations: {{ $nodes.tolerations | default list | toJson }}
  {{- end }}
environment: {{ merge (dict) .Values.stages.environment $environment | toJson }}
secrets:
  - name: {{ (include "caravan.registrySecret" . | fromYaml).name | quote }}
    env: {{ dict (include "caravan.registrySecret" . | fromYaml).key "CARAVAN_REGISTRY_URL" | toJson }}
  - name: {{ include "caravan.storeSecretName" . | quote }}
    env: {{ dict (ternary "access-key" .Values.store.accessKeyKey .Values.s3.enabled) "CARAVAN_S3_ACCESS_KEY" (ternary "secret-key" .Values.store.secretKeyKey .Values.s3.enabled) "CARAVAN_S3_SECRET_KEY" | toJson }}
  {{- with .Values.stages.secrets }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
config_maps: {{ .Values.stages.configMaps | toJson }}
{{- with .Values.trust.existingConfigMap }}
trust: {config_map: {{ . | quote }}, key: {{ $.Values.trust.key | quote }}}
{{- end }}
{{- with .Values.stages.workClaim }}
work: {claim: {{ . | quote }}}
{{- end }}
{{- if .Values.stages.modelCache.enabled }}
model_cache: {claim: {{ include "caravan.modelCacheClaim" . | quote }}}
{{- end }}
queue: {{ .Values.stages.queue | quote }}
priority: {{ .Values.stages.priority | quote }}
pool_parallelism: {{ int64 .Values.stages.poolParallelism }}
retries: {count: {{ int64 .Values.stages.retries }}}
{{- if .Values.trainer.enabled }}
trainer:
  runtime: {{ $name }}-torch
  token_secret: {{ $name }}-trainer-token
{{- end }}
{{- end }}
