{{/* The head of a policy. Takes (list $ "name" selector types). */}}
{{- define "caravan.policy" -}}
{{- $ := index . 0 }}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  {{- include "caravan.metadata" (list $ (index . 1) "network") | nindent 2 }}
spec:
  podSelector:
    {{- toYaml (index . 2) | nindent 4 }}
  policyTypes: {{ index . 3 | toJson }}
{{- end }}
