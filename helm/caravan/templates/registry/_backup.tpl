{{- define "caravan.backupClaim" -}}
{{ .Values.backup.storage.existingClaim | default (printf "%s-backup" (include "caravan.fullname" .)) }}
{{- end }}

{{/* A job of PostgreSQL's client programs in /backup, the volume of dumps; REGISTRY_URL is the database. Of (dict "root" $ "script" SCRIPT). */}}
{{- define "caravan.backupJob" -}}
{{- with .root -}}
metadata:
  labels:
    {{- include "caravan.podLabels" (list . "backup") | nindent 4 }}
spec:
  backoffLimit: 2
  activeDeadlineSeconds: 3600
  template:
    metadata:
      labels:
        {{- include "caravan.podLabels" (list . "backup") | nindent 8 }}
    spec:
      restartPolicy: Never
      serviceAccountName: {{ include "caravan.fullname" . }}-registry
      automountServiceAccountToken: false
      enableServiceLinks: false
      {{- include "caravan.pullSecrets" . | nindent 6 }}
      securityContext:
        {{- include "caravan.podSecurity" .Values.postgres.userId | nindent 8 }}
      {{- if not .Values.postgres.enabled }}
      # PostgreSQL's image has no certificate authorities to know the database by.
      initContainers:
        - name: authorities
          image: {{ include "caravan.image" (list . "dashboard") }}
          imagePullPolicy: {{ .Values.images.pullPolicy }}
          command: [cp, {{ include "caravan.authorities" . }}, /tmp/ca.crt]
          resources:
            {{- toYaml .Values.backup.resources | nindent 12 }}
          securityContext:
            {{- include "caravan.containerSecurity" . | nindent 12 }}
          volumeMounts:
            - name: tmp
              mountPath: /tmp
            {{- if .Values.trust.existingConfigMap }}
            - name: trust
              mountPath: /etc/caravan/trust
              readOnly: true
            {{- end }}
      {{- end }}
      containers:
        - name: postgres
          image: {{ include "caravan.reference" (dict "name" .Values.postgres.image.repository "tag" .Values.postgres.image.tag "digest" .Values.postgres.image.digest) }}
          imagePullPolicy: {{ .Values.images.pullPolicy }}
          # The password goes from the URL into the environment: others see command lines.
          command:
            - bash
            - -euc
            - |
              cd /backup
              if [[ $REGISTRY_URL =~ ^([^:]+://[^:@/]*):([^@/]*)(@.*)$ ]]; then
                REGISTRY_URL=${BASH_REMATCH[1]}${BASH_REMATCH[3]}
                password=${BASH_REMATCH[2]//\\/\\\\}
                printf -v PGPASSWORD %b "${password//%/\\x}"
                export PGPASSWORD
              fi
              {{- $.script | trim | nindent 14 }}
          env:
            - name: REGISTRY_URL
              valueFrom:
                secretKeyRef:
                  {{- include "caravan.registrySecret" . | nindent 18 }}
            {{- if not .Values.postgres.enabled }}
            - name: SSL_CERT_FILE
              value: /tmp/ca.crt
            {{- end }}
          resources:
            {{- toYaml .Values.backup.resources | nindent 12 }}
          securityContext:
            {{- include "caravan.containerSecurity" . | nindent 12 }}
          volumeMounts:
            - name: backup
              mountPath: /backup
            - name: tmp
              mountPath: /tmp
      volumes:
        - name: backup
          persistentVolumeClaim:
            claimName: {{ include "caravan.backupClaim" . | quote }}
        - name: tmp
          emptyDir: {}
        {{- if and .Values.trust.existingConfigMap (not .Values.postgres.enabled) }}
        - name: trust
          configMap:
            name: {{ .Values.trust.existingConfigMap | quote }}
        {{- end }}
{{- end }}
{{- end }}
