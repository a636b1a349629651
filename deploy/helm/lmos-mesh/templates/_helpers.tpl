{{- define "lmos.name" -}}
{{- if contains "lmos" .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-lmos" .Release.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- /* What selects the pods of one part: {root, part}. */ -}}
{{- define "lmos.selector" -}}
app.kubernetes.io/name: lmos-mesh
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .part | quote }}
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

{{- /* As the chart of NATS names itself, and its pods. */ -}}
{{- define "lmos.natsPods" -}}
{{- .Values.nats.nameOverride | default "nats" | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- define "lmos.natsName" -}}
{{- $name := .Values.nats.nameOverride | default "nats" }}
{{- if .Values.nats.fullnameOverride }}{{ .Values.nats.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}{{ .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "lmos.natsUrl" -}}
{{- if and .Values.nats.url .Values.nats.enabled }}
{{- fail "nats.url names servers that are there already, and nats.enabled would install others: set nats.enabled to false, or leave nats.url out" }}
{{- else if contains "@" .Values.nats.url }}
{{- fail "nats.url holds a name or a password, which everybody could read who may read Deployments: put the whole URL into a Secret and say env.LMOS_NATS_URL: {secretKeyRef: {name: …, key: …}}, or use nats.credentialsSecret" }}
{{- else if .Values.nats.url }}{{ .Values.nats.url }}
{{- else if .Values.nats.enabled }}{{ printf "nats://%s.%s.svc:4222" (include "lmos.natsName" .) .Release.Namespace }}
{{- else if not (hasKey .Values.env "LMOS_NATS_URL") }}
{{- fail "nats.url: where is NATS, if nats.enabled is false?" }}{{ end }}
{{- end }}

{{- /* The ports of NATS, as a list of JSON: of every server of the URL. */ -}}
{{- define "lmos.natsPorts" -}}
{{- $ports := list }}
{{- range splitList "," .Values.nats.url }}
{{- $ports = append $ports (regexFind ":[0-9]+$" (trimSuffix "/" (trim .)) | trimPrefix ":" | default "4222" | int) }}
{{- end }}
{{- $ports | uniq | toJson }}
{{- end }}

{{- /* The part of an agent in names and labels: {agent, tenant}. Another tenant's has it in its name. */ -}}
{{- define "lmos.agentPart" -}}
{{- $subset := .agent.subset | default "stable" }}
{{- $part := .agent.name }}
{{- if ne $subset "stable" }}{{ $part = printf "%s-%s" $part $subset }}{{ end }}
{{- $tenant := .agent.tenant | default .tenant }}
{{- if ne $tenant .tenant }}{{ $part = printf "%s-%s" $part (regexReplaceAll "[^a-z0-9]+" (lower $tenant) "-" | trimAll "-") }}{{ end }}
{{- /* Together with the release's name at most 63. */ -}}
{{- if gt (len (printf "%s-agent-%s" .name $part)) 63 }}
{{- $part = printf "%s-%s" ($part | trunc 8 | trimSuffix "-") (sha256sum $part | trunc 7) }}
{{- end }}
{{- $part }}
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
{{- $url := include "lmos.natsUrl" .root }}
{{- $env := dict "LMOS_NATS_URL" $url "LMOS_TENANT" .tenant "LMOS_LOG_FORMAT" "json" }}
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
{{- with .root.Values.podAnnotations }}
  annotations: {{- toYaml . | nindent 4 }}
{{- end }}
spec:
  serviceAccountName: {{ .account }}
  automountServiceAccountToken: {{ .token | default false }}
  terminationGracePeriodSeconds: {{ .root.Values.terminationGracePeriodSeconds }}
  securityContext: {{- toYaml .root.Values.podSecurityContext | nindent 4 }}
{{- with .root.Values.image.pullSecrets }}
  imagePullSecrets:
{{- range . }}
    - name: {{ . | quote }}
{{- end }}
{{- end }}
{{- with .root.Values.priorityClassName }}
  priorityClassName: {{ . | quote }}
{{- end }}
{{- with .root.Values.affinity }}
  affinity: {{- toYaml . | nindent 4 }}
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
      # Whoever was told of this pod goes on asking it for a moment after it was told to end.
      lifecycle: {preStop: {exec: {command: [sleep, "5"]}}}
      # Not whether the mesh is there: to start this process again would not bring it.
      startupProbe:
        httpGet: {path: /healthz, port: http}
        periodSeconds: 2
        failureThreshold: 60
      # It gives registry, router and runtime a second each.
      readinessProbe:
        httpGet: {path: /readyz, port: http}
        periodSeconds: 5
        timeoutSeconds: 3
        failureThreshold: 2
      livenessProbe:
        httpGet: {path: /healthz, port: http}
        periodSeconds: 10
        timeoutSeconds: 3
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
        secretName: {{ .root.Values.nats.credentialsSecret | quote }}
{{- end }}
{{- with .volumes }}{{ toYaml . | nindent 4 }}{{ end }}
{{- end }}

{{- define "lmos.disruption" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ .name }}
  namespace: {{ .root.Release.Namespace | quote }}
  labels: {{- include "lmos.labels" . | nindent 4 }}
spec:
  maxUnavailable: 1
  selector:
    matchLabels: {{- include "lmos.selector" . | nindent 6 }}
{{- end }}
