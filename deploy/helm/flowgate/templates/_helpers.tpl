{{- define "flowgate.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Name of all objects; some get a suffix. */}}
{{- define "flowgate.fullname" -}}
{{- $name := include "flowgate.name" . -}}
{{- $full := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) -}}
{{- default $full .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "flowgate.selector" -}}
app.kubernetes.io/name: {{ include "flowgate.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: gateway
{{- end -}}

{{- define "flowgate.labels" -}}
app.kubernetes.io/name: {{ include "flowgate.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: {{ .Values.mode }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* An object's metadata. A list: the context, the name's suffix, the object's own labels and annotations. */}}
{{- define "flowgate.metadata" -}}
{{- $context := index . 0 -}}
name: {{ include "flowgate.fullname" $context }}{{ index . 1 }}
labels:
  {{- include "flowgate.labels" $context | nindent 2 }}
  {{- with index . 2 }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge (deepCopy (index . 3)) $context.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Not empty if the pods share one quota. */}}
{{- define "flowgate.shared" -}}
{{- if ne (toString (dig "quota" "store" "memory" .Values.config)) "memory" -}}shared{{- end -}}
{{- end -}}

{{/* The pods' service account. */}}
{{- define "flowgate.serviceAccountName" -}}
{{- default (ternary (include "flowgate.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name -}}
{{- end -}}

{{/* The Service with the admin port: one outside the cluster must not offer it. */}}
{{- define "flowgate.adminService" -}}
{{- include "flowgate.fullname" . -}}
{{- if ne .Values.service.type "ClusterIP" -}}-admin{{- end -}}
{{- end -}}

{{/* The Secret with the admin token, or nothing if there is none or the configuration names a place of its own. */}}
{{- define "flowgate.adminSecret" -}}
{{- if not (dig "listen" "admin_token" "" .Values.config) -}}
{{- if .Values.adminToken.existingSecret -}}
{{- .Values.adminToken.existingSecret -}}
{{- else if .Values.adminToken.create -}}
{{- include "flowgate.fullname" . }}-admin-token
{{- end -}}
{{- end -}}
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
{{- with .Values.image -}}
{{- .repository -}}
{{- if .digest -}}@{{ .digest }}{{- else -}}:{{ default $.Chart.AppVersion .tag }}{{- end -}}
{{- end -}}
{{- end -}}

{{/* A security context. A list: the context, the map. OpenShift gives each namespace its own ids and refuses others. */}}
{{- define "flowgate.securityContext" -}}
{{- $context := index . 0 -}}
{{- $openshift := $context.Values.openshift -}}
{{- $found := $context.Capabilities.APIVersions.Has "security.openshift.io/v1" -}}
{{- if or (eq $openshift "enabled") (and (eq $openshift "auto") $found) -}}
{{- omit (index . 1) "runAsUser" "runAsGroup" "fsGroup" | toYaml -}}
{{- else -}}
{{- index . 1 | toYaml -}}
{{- end -}}
{{- end -}}

{{/* The whole configuration as a map, in YAML: the mode's defaults, overridden by the values. */}}
{{- define "flowgate.merged" -}}
{{- $proxy := ternary "127.0.0.1:8080" "0.0.0.0:8080" (eq .Values.mode "sidecar") -}}
{{- $listen := dict "proxy" $proxy "admin" "0.0.0.0:9900" -}}
{{- if eq .Values.mode "gateway" -}}
{{- $own := list -}}
{{- range list (include "flowgate.fullname" .) (include "flowgate.adminService" .) | uniq -}}
{{- $service := printf "%s.%s" . $.Release.Namespace -}}
{{- $own = concat $own (list . $service (printf "%s.svc" $service) (printf "%s.svc.cluster.local" $service)) -}}
{{- end -}}
{{- $_ := set $listen "names" (concat $own (dig "listen" "names" list .Values.config) | uniq) -}}
{{- end -}}
{{- if include "flowgate.adminSecret" . -}}
{{- $_ := set $listen "admin_token" (dict "file" "flowgate-admin-token") -}}
{{- end -}}
{{- $given := deepCopy .Values.config -}}
{{- if hasKey $given "listen" -}}
{{- $_ := unset $given.listen "names" -}}
{{- end -}}
{{- mergeOverwrite (dict "listen" $listen "log" (dict "format" "json")) $given | toYaml -}}
{{- end -}}

{{- define "flowgate.toml" -}}
{{- $merged := include "flowgate.merged" . | fromYaml -}}
{{- include "flowgate.wholeNumbers" $merged -}}
{{- toToml $merged | trim -}}
{{- end -}}

{{/* Changes the whole numbers of a map, which are floats in Helm, to integers. As TOML a float is 5.0 or 1e+06. */}}
{{- define "flowgate.wholeNumbers" -}}
{{- $map := . -}}
{{- range $key, $value := $map -}}
{{- if kindIs "map" $value -}}
{{- include "flowgate.wholeNumbers" $value -}}
{{- else if kindIs "slice" $value -}}
{{- range $value }}{{ if kindIs "map" . }}{{ include "flowgate.wholeNumbers" . }}{{ end }}{{ end -}}
{{- else if and (kindIs "float64" $value) (eq (floor $value) $value) -}}
{{- $_ := set $map $key (int64 $value) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Hash of the settings that a running Flowgate cannot change: a new hash replaces the pods. */}}
{{- define "flowgate.fixed" -}}
{{- $merged := include "flowgate.merged" . | fromYaml -}}
{{- $listen := pick $merged.listen "proxy" "admin" "socket_mode" -}}
{{- $fixed := pick $merged "mode" "upstream" "quota" "journal" -}}
{{- list $listen $fixed (dig "listen" "tls" "" $merged | empty) $merged.log.format | toJson | sha256sum -}}
{{- end -}}

{{/* The files beside flowgate.toml that a part of the configuration names, one a line. */}}
{{- define "flowgate.files" -}}
{{- range $key, $value := . }}
{{- if kindIs "map" $value }}
{{- include "flowgate.files" $value }}
{{- else if kindIs "slice" $value }}
{{- range $value }}{{ if kindIs "map" . }}{{ include "flowgate.files" . }}{{ end }}{{ end }}
{{- else if and $value (has $key (list "file" "cert" "key" "client_ca" "ca_file" "store_ca_file" "token_file")) }}
{{- if not (contains "/" $value) }}{{ $value }}{{ "\n" }}{{ end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Fails if the configuration names a file that existingSecret does not have, as far as its keys are known. */}}
{{- define "flowgate.checkFiles" -}}
{{- $files := include "flowgate.files" .Values.config | splitList "\n" | compact | uniq -}}
{{- $secret := .Values.existingSecret -}}
{{- if and $files (not $secret) -}}
{{- fail (printf "config names the files %s, but existingSecret is empty: set it to the Secret with these keys" (join ", " $files)) -}}
{{- end -}}
{{- $keys := .Values.secretKeys -}}
{{- if and $secret (not $keys) -}}
{{- $keys = lookup "v1" "Secret" .Release.Namespace $secret | dig "data" dict | keys -}}
{{- end -}}
{{- range $files -}}
{{- if and $keys (not (has . $keys)) -}}
{{- fail (printf "config names the file %s, but the Secret %s has only the keys %s" . $secret (sortAlpha $keys | join ", ")) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Seconds of a duration of the configuration, such as 25s, rounded up. */}}
{{- define "flowgate.seconds" -}}
{{- $number := regexFind "^[0-9]+" . | int -}}
{{- $unit := regexFind "[a-z]+$" . -}}
{{- get (dict "ms" (div (add $number 999) 1000) "s" $number "m" (mul $number 60) "h" (mul $number 3600)) $unit -}}
{{- end -}}

{{/* For how long a gateway's pod still gets calls after it was deleted. */}}
{{- define "flowgate.preStopSeconds" -}}5{{- end -}}

{{/* A gateway's pods end by themselves after preStop, drain.delay and drain.grace. */}}
{{- define "flowgate.terminationGracePeriodSeconds" -}}
{{- $delay := dig "drain" "delay" "0s" .Values.config | include "flowgate.seconds" | int -}}
{{- $grace := dig "drain" "grace" "25s" .Values.config | include "flowgate.seconds" | int -}}
{{- $needed := add (include "flowgate.preStopSeconds" . | int) $delay $grace -}}
{{- $given := .Values.terminationGracePeriodSeconds -}}
{{- if kindIs "invalid" $given -}}
{{- add $needed 15 -}}
{{- else if le (int $given) (int $needed) -}}
{{- fail (printf "terminationGracePeriodSeconds is %d, but a drain takes up to %d s (preStop, config.drain.delay and config.drain.grace): a pod would be killed with calls in flight" (int $given) (int $needed)) -}}
{{- else -}}
{{- int $given -}}
{{- end -}}
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
{{- with .Values.envFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
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
  {{- include "flowgate.securityContext" (list . .Values.securityContext) | nindent 2 }}
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
      {{- with include "flowgate.adminSecret" . }}
      - secret:
          name: {{ . }}
          items: [{key: {{ $.Values.adminToken.key }}, path: flowgate-admin-token}]
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

{{/* The job names the release, so that two releases are never counted together, and the alerts find it by its name. */}}
{{- define "flowgate.relabelings" -}}
- {targetLabel: job, replacement: flowgate/{{ .Release.Namespace }}/{{ .Release.Name }}}
{{- end -}}
