{{/* Name of all objects. */}}
{{- define "flowgate.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 53 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 53 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "flowgate.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: gateway
{{- end -}}

{{- define "flowgate.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: {{ .Values.mode }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{/* Not empty if the pods share one quota. */}}
{{- define "flowgate.shared" -}}
{{- if ne (toString (dig "quota" "store" "memory" .Values.config)) "memory" -}}shared{{- end -}}
{{- end -}}

{{/* The pods' service account. */}}
{{- define "flowgate.serviceAccountName" -}}
{{- default (ternary (include "flowgate.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name -}}
{{- end -}}

{{/* The folder of the token, as the webhook of ACK mounts it. */}}
{{- define "flowgate.tokens" -}}/var/run/secrets/ack.alibabacloud.com/rrsa-tokens{{- end -}}

{{/* The container's variables, a list. */}}
{{- define "flowgate.env" -}}
{{- if .Values.rrsa.enabled }}
- {name: ALIBABA_CLOUD_ROLE_ARN, value: {{ .Values.rrsa.roleArn | quote }}}
- {name: ALIBABA_CLOUD_OIDC_PROVIDER_ARN, value: {{ .Values.rrsa.oidcProviderArn | quote }}}
- {name: ALIBABA_CLOUD_OIDC_TOKEN_FILE, value: {{ include "flowgate.tokens" . }}/token}
{{- with .Values.rrsa.sessionName }}
- {name: ALIBABA_CLOUD_ROLE_SESSION_NAME, value: {{ . | quote }}}
{{- end }}
{{- end }}
{{- with .Values.env }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "flowgate.image" -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}

{{/* The whole configuration as a map, in YAML: the mode's defaults, overridden by the values. */}}
{{- define "flowgate.merged" -}}
{{- $name := include "flowgate.fullname" . -}}
{{- $proxy := ternary "127.0.0.1:8080" "0.0.0.0:8080" (eq .Values.mode "sidecar") -}}
{{- $listen := dict "proxy" $proxy "admin" "0.0.0.0:9900" -}}
{{- if eq .Values.mode "gateway" -}}
{{- $service := printf "%s.%s" $name .Release.Namespace -}}
{{- $own := list $name $service (printf "%s.svc" $service) (printf "%s.svc.cluster.local" $service) -}}
{{- $_ := set $listen "names" (concat $own (dig "listen" "names" list .Values.config) | uniq) -}}
{{- end -}}
{{- $given := deepCopy .Values.config -}}
{{- if hasKey $given "listen" -}}
{{- $_ := unset $given.listen "names" -}}
{{- end -}}
{{- mergeOverwrite (dict "listen" $listen "log" (dict "format" "json")) $given | toYaml -}}
{{- end -}}

{{/* flowgate.toml. Helm's numbers are floats; Flowgate's keys are whole numbers, so a fraction of .0 is removed. */}}
{{- define "flowgate.toml" -}}
{{- $toml := include "flowgate.merged" . | fromYaml | toToml | trim -}}
{{- regexReplaceAll "(?m)^( *[^ \"]+ = -?[0-9]+)\\.0$" $toml "${1}" -}}
{{- end -}}

{{/* Hash of the settings that a running Flowgate cannot change: a new hash replaces the pods. */}}
{{- define "flowgate.fixed" -}}
{{- $merged := include "flowgate.merged" . | fromYaml -}}
{{- $listen := pick $merged.listen "proxy" "admin" "socket_mode" -}}
{{- $fixed := pick $merged "mode" "upstream" "quota" "journal" -}}
{{- list $listen $fixed (dig "listen" "tls" "" $merged | empty) $merged.log.format | toJson | sha256sum -}}
{{- end -}}

{{/* The container, without the dash of a list entry. */}}
{{- define "flowgate.container" -}}
name: flowgate
image: {{ include "flowgate.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args: ["--config", "/etc/flowgate/flowgate.toml"]
{{- with include "flowgate.env" . | trim }}
env:
  {{- . | nindent 2 }}
{{- end }}
startupProbe:
  httpGet: {path: /readyz, port: 9900}
  periodSeconds: 1
  failureThreshold: 30
livenessProbe:
  httpGet: {path: /livez, port: 9900}
  periodSeconds: 10
  timeoutSeconds: 2
readinessProbe:
  httpGet: {path: /readyz, port: 9900}
  periodSeconds: 5
  timeoutSeconds: 2
resources:
  {{- toYaml .Values.resources | nindent 2 }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
  seccompProfile: {type: RuntimeDefault}
volumeMounts:
  - {name: flowgate, mountPath: /etc/flowgate, readOnly: true}
  {{- if .Values.rrsa.enabled }}
  - {name: flowgate-rrsa, mountPath: {{ include "flowgate.tokens" . }}, readOnly: true}
  {{- end }}
  {{- with .Values.volumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* For another chart: an entry for a pod's initContainers. */}}
{{- define "flowgate.sidecar" -}}
- {{ include "flowgate.container" . | nindent 2 | trim }}
  # A native sidecar: ready before the application starts, and stopped only after the application has ended.
  restartPolicy: Always
  ports:
    - {name: flowgate-admin, containerPort: 9900}
  lifecycle:
    preStop:
      sleep: {seconds: 2}
{{- end -}}

{{/* Entries for the pod's volumes: one for the configuration and its secrets, so that changes arrive together. */}}
{{- define "flowgate.volumes" -}}
- name: flowgate
  projected:
    # Flowgate's user must be able to read it, with or without the pod's fsGroup.
    defaultMode: 0444
    sources:
      - configMap:
          name: {{ include "flowgate.fullname" . }}
          items: [{key: flowgate.toml, path: flowgate.toml}]
      {{- with .Values.existingSecret }}
      - secret:
          name: {{ . }}
      {{- end }}
{{- if .Values.rrsa.enabled }}
- name: flowgate-rrsa
  projected:
    defaultMode: 0444
    sources:
      - serviceAccountToken: {path: token, audience: sts.aliyuncs.com, expirationSeconds: {{ int .Values.rrsa.expirationSeconds }}}
{{- end }}
{{- with .Values.volumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}
