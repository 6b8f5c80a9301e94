{{/* The name that objects begin with: the release's, with the chart's unless it holds that already. */}}
{{- define "instance-access.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "instance-access.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: controller
{{- end -}}

{{- define "instance-access.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/part-of: instance-access
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name (.Chart.Version | replace "+" "_") }}
{{- end -}}

{{/*
The labels of an object that somebody else's selector finds: of (dict "root" . "more" LABELS "component" NAME) ours, and those
that are given. A name that is ours stays ours: twice in one object it would be refused, or the last would win.
*/}}
{{- define "instance-access.labelsAnd" -}}
{{- $own := include "instance-access.labels" .root | fromYaml -}}
{{- with .component -}}{{- $_ := set $own "app.kubernetes.io/component" . -}}{{- end -}}
{{- toYaml (merge $own .more) -}}
{{- end -}}

{{/*
The operator's service account. Its namespace and name are written into CEL: what is no name of Kubernetes' is refused
here, since `helm template` checks neither.
*/}}
{{- define "instance-access.serviceAccountName" -}}
{{- if not (regexMatch "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$" .Release.Namespace) -}}
{{- fail (printf "namespace: %q is no namespace; give one of a-z, 0-9 and - with --namespace" .Release.Namespace) -}}
{{- end -}}
{{- if not (regexMatch "^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$" .Values.serviceAccount.name) -}}
{{- fail (printf "serviceAccount.name: %q is no service account's name; give one of a-z, 0-9, - and ." .Values.serviceAccount.name) -}}
{{- end -}}
{{- .Values.serviceAccount.name -}}
{{- end -}}

{{- define "instance-access.image" -}}
{{- $image := .Values.image -}}
{{- if not $image.repository -}}
{{- fail "image.repository is empty: no image is published yet. Build one with the Containerfile, push it to a registry of yours, and give its name with --set image.repository=REGISTRY/instance-access, and its tag with --set-string image.tag=TAG" -}}
{{- end -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository (default .Chart.AppVersion $image.tag) -}}
{{- end -}}
{{- end -}}

{{/*
The Lease of the leader, NAMESPACE/NAME; also for one controller alone, so that a second one may come. Our Role is for the
release's namespace.
*/}}
{{- define "instance-access.lease" -}}
{{- $lease := .Values.settings.lease -}}
{{- if $lease -}}
{{- if not (hasPrefix (printf "%s/" .Release.Namespace) $lease) -}}
{{- fail (printf "settings.lease: %q is not in the namespace %s of the release, where the controller may write it" $lease .Release.Namespace) -}}
{{- end -}}
{{- $lease -}}
{{- else -}}
{{- printf "%s/%s" .Release.Namespace (include "instance-access.fullname" .) -}}
{{- end -}}
{{- end -}}

{{/* The port that settings.listen names. */}}
{{- define "instance-access.port" -}}
{{- regexFind "[0-9]+$" .Values.settings.listen -}}
{{- end -}}

{{/*
Whether the mutating admission policies are rendered; "true" or nothing. A cluster tells which kinds it serves, and so do
Argo CD and Flux. A plain `helm template` knows no kinds at all, not even Pod; then the version that it renders for says.
*/}}
{{- define "instance-access.mutating" -}}
{{- $mode := .Values.admission.mutating -}}
{{- $served := .Capabilities.APIVersions.Has "admissionregistration.k8s.io/v1/MutatingAdmissionPolicy" -}}
{{- if not (.Capabilities.APIVersions.Has "v1/Pod") -}}
{{- $served = or $served (semverCompare ">=1.36.0-0" .Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- if or (eq $mode "Always") (and (eq $mode "Auto") $served) -}}
true
{{- end -}}
{{- end -}}

{{/* The user names of the gateways' service accounts, as a list of CEL, in the order in which the operator has them. */}}
{{- define "instance-access.gatewayUsernames" -}}
{{- $usernames := list -}}
{{- range splitList "," (include "instance-access.gatewayServiceAccounts" .) | sortAlpha | uniq -}}
{{- if . -}}
{{- if not (regexMatch "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?/[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$" .) -}}
{{- fail (printf "settings.gatewayServiceAccount: %q is no service account; give NAMESPACE/NAME, several with commas" .) -}}
{{- end -}}
{{- $usernames = append $usernames (printf "'system:serviceaccount:%s'" (replace "/" ":" .)) -}}
{{- end -}}
{{- end -}}
[{{ join ", " $usernames }}]
{{- end -}}

{{/* An admission policy's file, for the service accounts: as the operator itself fills it in. */}}
{{- define "instance-access.admission" -}}
{{- .root.Files.Get .file | replace "GATEWAY_USERNAMES" (include "instance-access.gatewayUsernames" .root) | replace "OPERATOR_NAMESPACE" .root.Release.Namespace | replace "OPERATOR_NAME" (include "instance-access.serviceAccountName" .root) -}}
{{- end -}}

{{/* What no container of ours needs, it may not. */}}
{{- define "instance-access.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "instance-access.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}
