{{- define "lmos.name" -}}
{{- if contains "lmos" .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-lmos" .Release.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- /* What selects the pods of one part: {root, part}. */ -}}
{{- define "lmos.selector" -}}
app.kubernetes.io/name: lmos-mesh
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .part }}
{{- end }}

{{- define "lmos.labels" -}}
{{ include "lmos.selector" . }}
app.kubernetes.io/part-of: lmos-mesh
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "lmos.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- /* As the chart of NATS names itself. */ -}}
{{- define "lmos.natsName" -}}
{{- if .Values.nats.fullnameOverride }}{{ .Values.nats.fullnameOverride }}
{{- else if contains "nats" .Release.Name }}{{ .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}{{ printf "%s-nats" .Release.Name | trunc 63 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "lmos.natsUrl" -}}
{{- if .Values.nats.url }}{{ .Values.nats.url }}
{{- else if .Values.nats.enabled }}{{ printf "nats://%s.%s.svc:4222" (include "lmos.natsName" .) .Release.Namespace }}
{{- else }}{{ fail "nats.url: where is NATS, if nats.enabled is false?" }}{{ end }}
{{- end }}

{{- /* How many servers keep each bucket and stream; nothing where nobody can know. */ -}}
{{- define "lmos.natsReplicas" -}}
{{- $nats := .Values.nats }}
{{- if $nats.streamReplicas }}{{ $nats.streamReplicas }}
{{- else if and $nats.enabled $nats.config.cluster.enabled (ge (int $nats.config.cluster.replicas) 3) }}3
{{- end }}
{{- end }}

{{- /* Environment of one process: {root, env, tenant}; the process's own counts. */ -}}
{{- define "lmos.env" -}}
{{- $env := dict "LMOS_NATS_URL" (include "lmos.natsUrl" .root) "LMOS_TENANT" .tenant "LMOS_LOG_FORMAT" "json" }}
{{- with include "lmos.natsReplicas" .root }}
{{- $_ := set $env "LMOS_NATS_REPLICAS" . }}
{{- end }}
{{- if .root.Values.nats.credentialsSecret }}
{{- $_ := set $env "LMOS_NATS_CREDENTIALS" "/etc/lmos/nats/nats.creds" }}
{{- end }}
{{- $env = mergeOverwrite $env (deepCopy .root.Values.env) (deepCopy (.env | default dict)) }}
{{- range $name, $value := $env }}
- name: {{ $name }}
{{- if kindIs "map" $value }}
  valueFrom: {{- toYaml $value | nindent 4 }}
{{- else }}
  value: {{ $value | toString | quote }}
{{- end }}
{{- end }}
{{- end }}

{{- /* A pod: {root, part, name, command, env, tenant, check, port, resources, account, labels, replicas}. */ -}}
{{- define "lmos.pod" -}}
metadata:
  labels: {{- include "lmos.labels" . | nindent 4 }}
{{- with .labels }}{{ toYaml . | nindent 4 }}{{ end }}
{{- with .annotations }}
  annotations: {{- toYaml . | nindent 4 }}
{{- end }}
spec:
  serviceAccountName: {{ .account }}
  automountServiceAccountToken: {{ .token | default false }}
  terminationGracePeriodSeconds: 30
  securityContext: {{- toYaml .root.Values.podSecurityContext | nindent 4 }}
{{- with .root.Values.image.pullSecrets }}
  imagePullSecrets:
{{- range . }}
    - name: {{ . }}
{{- end }}
{{- end }}
{{- with .root.Values.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
{{- end }}
{{- with .root.Values.tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
{{- end }}
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels: {{- include "lmos.selector" . | nindent 10 }}
  containers:
    - name: {{ .container }}
      image: {{ .image | default (include "lmos.image" .root) | quote }}
      imagePullPolicy: {{ .root.Values.image.pullPolicy }}
      command: {{ toJson .command }}
      env: {{- include "lmos.env" . | nindent 8 }}
{{- if .port }}
      ports:
        - name: http
          containerPort: {{ .port }}
          protocol: TCP
{{- end }}
      resources: {{- toYaml .resources | nindent 8 }}
      securityContext: {{- toYaml .root.Values.securityContext | nindent 8 }}
{{- if .port }}
      startupProbe:
        httpGet: {path: /readyz, port: http}
        periodSeconds: 2
        failureThreshold: 60
      readinessProbe:
        httpGet: {path: /readyz, port: http}
        periodSeconds: 5
        failureThreshold: 2
      livenessProbe:
        httpGet: {path: /healthz, port: http}
        periodSeconds: 10
        failureThreshold: 6
{{- else }}
      startupProbe:
        exec: {command: [python, /app/healthcheck.py, {{ .check }}]}
        periodSeconds: 3
        timeoutSeconds: 5
        failureThreshold: 60
      readinessProbe:
        exec: {command: [python, /app/healthcheck.py, {{ .check }}]}
        periodSeconds: 15
        timeoutSeconds: 5
        failureThreshold: 2
      # It asks over the bus: so long that an outage of NATS does not restart the whole mesh.
      livenessProbe:
        exec: {command: [python, /app/healthcheck.py, {{ .check }}]}
        periodSeconds: 30
        timeoutSeconds: 5
        failureThreshold: 10
{{- end }}
      volumeMounts:
        - {name: tmp, mountPath: /tmp}
{{- if .root.Values.nats.credentialsSecret }}
        - {name: nats-credentials, mountPath: /etc/lmos/nats, readOnly: true}
{{- end }}
{{- with .volumeMounts }}{{ toYaml . | nindent 8 }}{{ end }}
  volumes:
    - name: tmp
      emptyDir: {}
{{- if .root.Values.nats.credentialsSecret }}
    - name: nats-credentials
      secret:
        secretName: {{ .root.Values.nats.credentialsSecret }}
{{- end }}
{{- with .volumes }}{{ toYaml . | nindent 4 }}{{ end }}
{{- end }}

{{- define "lmos.disruption" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ .name }}
  namespace: {{ .root.Release.Namespace }}
  labels: {{- include "lmos.labels" . | nindent 4 }}
spec:
  maxUnavailable: 1
  selector:
    matchLabels: {{- include "lmos.selector" . | nindent 6 }}
{{- end }}
