{{/* API versions by what the cluster offers; an offline render goes by its Kubernetes version. */}}
{{- define "caravan.cronJobVersion" -}}
{{- if or (.Capabilities.APIVersions.Has "batch/v1/CronJob") (semverCompare ">=1.21-0" .Capabilities.KubeVersion.Version) }}batch/v1{{ else }}batch/v1beta1{{ end -}}
{{- end }}
{{- define "caravan.disruptionBudgetVersion" -}}
{{- if and (.Capabilities.APIVersions.Has "policy/v1") (semverCompare ">=1.21-0" .Capabilities.KubeVersion.Version) }}policy/v1{{ else }}policy/v1beta1{{ end -}}
{{- end }}
{{- define "caravan.autoscalerVersion" -}}
{{- if and (.Capabilities.APIVersions.Has "autoscaling/v2") (semverCompare ">=1.23-0" .Capabilities.KubeVersion.Version) }}autoscaling/v2{{ else }}autoscaling/v2beta2{{ end -}}
{{- end }}
