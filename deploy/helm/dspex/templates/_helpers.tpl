{{- define "dspex.labels" -}}
app.kubernetes.io/name: dspex
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .part }}
{{- end }}

{{- define "dspex.meta" -}}
name: {{ printf "%s-%s" .root.Release.Name .part | trunc 63 | trimSuffix "-" }}
labels:
  {{- include "dspex.labels" . | nindent 2 }}
  app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
  helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{/* What engines, pools and gateways have in common: .root, .part, .of (its values), .settings (of its dspex.toml), .args, .probes */}}
{{- define "dspex.deployment" -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  {{- include "dspex.meta" . | nindent 2 }}
spec:
  {{- if not (and .of.keda .of.keda.enabled) }}
  replicas: {{ .of.replicas }}
  {{- end }}
  selector:
    matchLabels:
      {{- include "dspex.labels" . | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "dspex.labels" . | nindent 8 }}
      annotations:
        checksum/settings: {{ .settings | sha256sum }}
    spec:
      automountServiceAccountToken: false
      enableServiceLinks: false # a service "nats" or "dspex-…" would set variables that dspex takes for its settings
      terminationGracePeriodSeconds: {{ .of.terminationGracePeriodSeconds | default 40 }}
      securityContext:
        runAsNonRoot: true
        runAsUser: 1000
        runAsGroup: 1000
        seccompProfile: { type: RuntimeDefault }
      containers:
        - name: dspex
          image: "{{ .root.Values.image.repository }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}"
          imagePullPolicy: {{ .root.Values.image.pullPolicy | default "IfNotPresent" }}
          args: {{ toJson .args }}
          workingDir: /app
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities: { drop: [ALL] }
          env:
            - { name: DSPEX_SERVER__USER, value: {{ .of.user | quote }} }
            - { name: DSPEX_SERVER__INBOX_PREFIX, value: {{ printf "_INBOX_%s" .of.user | quote }} }
            - name: NATS_PASSWORD
              valueFrom: { secretKeyRef: { name: {{ .of.passwordSecret.name }}, key: {{ .of.passwordSecret.key }} } }
            {{- with .root.Values.otlpEndpoint }}
            - { name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ . | quote }} }
            {{- end }}
          {{- with .of.envFrom }}
          envFrom:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          {{- with .probes }}
          {{- . | nindent 10 }}
          {{- end }}
          resources:
            {{- toYaml .of.resources | nindent 12 }}
          volumeMounts:
            - { name: settings, mountPath: /app, readOnly: true }
            - { name: tmp, mountPath: /tmp }
            {{- if .root.Values.tlsSecret }}
            - { name: tls, mountPath: /etc/dspex/tls, readOnly: true }
            {{- end }}
      volumes:
        - name: settings
          configMap: { name: {{ printf "%s-%s" .root.Release.Name .part | trunc 63 | trimSuffix "-" }} }
        - name: tmp
          emptyDir: {}
        {{- if .root.Values.tlsSecret }}
        - name: tls
          secret: { secretName: {{ .root.Values.tlsSecret }} }
        {{- end }}
---
apiVersion: v1
kind: ConfigMap
metadata:
  {{- include "dspex.meta" . | nindent 2 }}
data:
  dspex.toml: {{ .settings | quote }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  {{- include "dspex.meta" . | nindent 2 }}
spec:
  maxUnavailable: 1
  selector:
    matchLabels:
      {{- include "dspex.labels" . | nindent 6 }}
{{- end }}

{{/* Whether it makes progress, and whether it can be given work. It starts slowly where nodes are busy. */}}
{{- define "dspex.probes" -}}
ports: [{ name: http, containerPort: 8080 }]
startupProbe: { httpGet: { path: /livez, port: http }, periodSeconds: 5, failureThreshold: 36 }
livenessProbe: { httpGet: { path: /livez, port: http }, periodSeconds: 10, timeoutSeconds: 6, failureThreshold: 3 }
readinessProbe: { httpGet: { path: /readyz, port: http }, periodSeconds: 10, timeoutSeconds: 6 }
{{- end }}

{{/* The same of a pool, which listens nowhere: it touches a file while it makes progress. */}}
{{- define "dspex.alive" -}}
startupProbe: { exec: { command: ["sh", "-c", "find /tmp/alive -newermt '-60 seconds' | grep -q ."] }, periodSeconds: 5, failureThreshold: 60 }
livenessProbe: { exec: { command: ["sh", "-c", "find /tmp/alive -newermt '-60 seconds' | grep -q ."] }, periodSeconds: 10, timeoutSeconds: 6, failureThreshold: 3 }
{{- end }}
