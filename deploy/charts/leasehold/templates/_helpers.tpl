{{- define "leasehold.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "leasehold.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains (include "leasehold.name" .) .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "leasehold.name" .) | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "leasehold.selectorLabels" -}}
app.kubernetes.io/name: {{ include "leasehold.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "leasehold.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "leasehold.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "leasehold.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}

{{- define "leasehold.vaultAddress" -}}
{{- default .Values.global.externalVaultAddr .Values.vault.address -}}
{{- end -}}

{{- define "leasehold.policyConfigMap" -}}
{{- default (printf "%s-policy" (include "leasehold.fullname" .)) .Values.policy.existingConfigMap -}}
{{- end -}}

{{/* Whether anything is asked of the API server: "true" or empty. */}}
{{- define "leasehold.usesAPI" -}}
{{- if or .Values.podEvents.enabled .Values.tokenRequest.enabled .Values.readPods.enabled -}}true{{- end -}}
{{- end -}}

{{/* Flags of one server. Takes the flags' prefix, the address and the values. */}}
{{- define "leasehold.serverArgs" -}}
{{- $prefix := .prefix -}}
{{- with .address }}
- --{{ $prefix }}-addr={{ . }}
{{- end }}
{{- with .values.namespace }}
- --{{ $prefix }}-namespace={{ . }}
{{- end }}
{{- with .values.authMount }}
- --{{ $prefix }}-mount={{ . }}
{{- end }}
{{- if .values.tls.caConfigMap }}
- --{{ $prefix }}-tls-ca-cert=/etc/leasehold/ca/{{ $prefix }}/{{ .values.tls.caKey }}
{{- end }}
{{- if .values.tls.clientSecret }}
- --{{ $prefix }}-tls-client-cert=/etc/leasehold/client/{{ $prefix }}/tls.crt
- --{{ $prefix }}-tls-client-key=/etc/leasehold/client/{{ $prefix }}/tls.key
{{- end }}
{{- with .values.tls.serverName }}
- --{{ $prefix }}-tls-server-name={{ . }}
{{- end }}
{{- if .values.tls.skipVerify }}
- --{{ $prefix }}-tls-skip-verify
{{- end }}
{{- end -}}

{{- define "leasehold.podSecurityContext" -}}
{{- $ours := dict "seccompProfile" (dict "type" "RuntimeDefault") -}}
{{- if .Values.seLinux.spcT -}}
{{- $_ := set $ours "seLinuxOptions" (dict "type" "spc_t") -}}
{{- end -}}
{{- toYaml (mergeOverwrite $ours (deepCopy .Values.daemonSet.securityContext.pod)) -}}
{{- end -}}

{{- define "leasehold.containerSecurityContext" -}}
{{- $capabilities := dict "drop" (list "ALL") -}}
{{- if .Values.fileOwnership.enabled -}}
{{- $_ := set $capabilities "add" (list "CHOWN") -}}
{{- end -}}
{{- $ours := dict "runAsUser" 0 "runAsGroup" 0 "privileged" false "allowPrivilegeEscalation" false "readOnlyRootFilesystem" true "capabilities" $capabilities "seccompProfile" (dict "type" "RuntimeDefault") -}}
{{- toYaml (mergeOverwrite $ours (deepCopy .Values.daemonSet.securityContext.container)) -}}
{{- end -}}

{{/* What a schema cannot say. */}}
{{- define "leasehold.check" -}}
{{- if not (or (include "leasehold.vaultAddress" .) .Values.openbao.address) -}}
{{- fail "no server: set vault.address or openbao.address, such as https://vault.vault.svc:8200" -}}
{{- end -}}
{{- if and .Values.podMonitor.enabled .Values.serviceMonitor.enabled -}}
{{- fail "podMonitor and serviceMonitor would both scrape every pod: enable one" -}}
{{- end -}}
{{- if and .Values.readPods.enabled (not .Values.fileOwnership.enabled) -}}
{{- fail "readPods is for fileOwner: pod, which needs fileOwnership.enabled too" -}}
{{- end -}}
{{- if not (or .Values.providers.leasehold .Values.providers.vault .Values.providers.openbao) -}}
{{- fail "no provider: enable at least one of providers.leasehold, providers.vault and providers.openbao" -}}
{{- end -}}
{{- end -}}
