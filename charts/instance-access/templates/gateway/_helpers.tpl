{{- define "instance-access.gateway.fullname" -}}
{{ include "instance-access.fullname" . }}-gateway
{{- end -}}

{{- define "instance-access.gateway.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: gateway
{{- end -}}

{{/*
The gateways' service account. It is not the operator's: that one may write all of a status, and a gateway, which talks to
strangers, must not.
*/}}
{{- define "instance-access.gateway.serviceAccountName" -}}
{{- $name := .Values.gateway.serviceAccount.name -}}
{{- if not (regexMatch "^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$" $name) -}}
{{- fail (printf "gateway.serviceAccount.name: %q is no service account's name; give one of a-z, 0-9, - and ." $name) -}}
{{- end -}}
{{- if eq $name (include "instance-access.serviceAccountName" .) -}}
{{- fail (printf "gateway.serviceAccount.name is %q, as serviceAccount.name is: a gateway that strangers talk to would have the operator's rights. Give it another name" $name) -}}
{{- end -}}
{{- $name -}}
{{- end -}}

{{/*
All service accounts that gateways run under, NAMESPACE/NAME with commas: those of settings.gatewayServiceAccount, and the
chart's own gateways'. Controller and admission policies have both from here, so that they agree.
*/}}
{{- define "instance-access.gatewayServiceAccounts" -}}
{{- $accounts := list -}}
{{- range splitList "," .Values.settings.gatewayServiceAccount -}}
{{- with trim . -}}{{- $accounts = append $accounts . -}}{{- end -}}
{{- end -}}
{{- if .Values.gateway.enabled -}}
{{- $accounts = append $accounts (printf "%s/%s" .Release.Namespace (include "instance-access.gateway.serviceAccountName" .)) -}}
{{- end -}}
{{- $accounts | uniq | join "," -}}
{{- end -}}

{{/* The port that gateway.settings.listen names, and the one for SSH. */}}
{{- define "instance-access.gateway.port" -}}
{{- regexFind "[0-9]+$" .Values.gateway.settings.listen -}}
{{- end -}}

{{- define "instance-access.gateway.sshPort" -}}
{{- regexFind "[0-9]+$" .Values.gateway.settings.sshListen -}}
{{- end -}}

{{/* Where the gateway's Secret is mounted. */}}
{{- define "instance-access.gateway.hostKeys" -}}
/etc/instance-access/host-key
{{- end -}}

{{/* Whether the gateways can run as the values have it; each refusal says what to type. Nothing is rendered. */}}
{{- define "instance-access.gateway.check" -}}
{{- $gateway := .Values.gateway -}}
{{- if not $gateway.hostKey.secretName -}}
{{- fail (printf `gateway.hostKey.secretName is empty: the host key is a Secret that you make, once. Then give its name:

  instance-access host-key --host-key-file ./host_key '%s'
  kubectl -n %s create secret generic gateway-host-key --from-file=host_key
  rm host_key

  --set gateway.hostKey.secretName=gateway-host-key

The first line prints what belongs into known_hosts (docs/gateway.md, "The host key"). The program is in the image: docs/install.md, "The image", takes it out` (include "instance-access.gateway.knownHost" .) .Release.Namespace) -}}
{{- end -}}
{{- if not .Values.settings.gatewayAddress -}}
{{- fail "settings.gatewayAddress is empty, and gateway.enabled is true: say where people will reach the gateway, for example gateway.example.com:2222. A name of your own can be given before there is a load balancer for it; requests with keyDelivery OnConnect show it as what to type" -}}
{{- end -}}
{{- if not (or $gateway.settings.auditFile $gateway.settings.auditStdout) -}}
{{- fail "gateway.settings.auditFile is empty and gateway.settings.auditStdout is false: without an audit trail no session is opened; set one of them" -}}
{{- end -}}
{{- if and $gateway.settings.auditFile (not $gateway.audit.persistence.enabled) -}}
{{- fail "gateway.audit.persistence.enabled is false, and gateway.settings.auditFile names a file: it would be lost with the pod. Leave the volumes on, or set gateway.settings.auditFile to \"\" and gateway.settings.auditStdout to true" -}}
{{- end -}}
{{- if eq (include "instance-access.gateway.port" .) (include "instance-access.gateway.sshPort" .) -}}
{{- fail "gateway.settings.listen and gateway.settings.sshListen name one port; give each another" -}}
{{- end -}}
{{- if and $gateway.networkPolicy.enabled (not $gateway.networkPolicy.instanceCidrs) -}}
{{- fail "gateway.networkPolicy.instanceCidrs is empty, and gateway.networkPolicy.enabled is true: no instance could be dialled. Give the networks of your instances, for example {10.0.0.0/16}, or {0.0.0.0/0} for anywhere" -}}
{{- end -}}
{{- if and (eq $gateway.service.type "ClusterIP") (or $gateway.service.nodePort $gateway.service.loadBalancerClass $gateway.service.loadBalancerSourceRanges) -}}
{{- fail "gateway.service.type is ClusterIP: nodePort, loadBalancerClass and loadBalancerSourceRanges of gateway.service would mean nothing. Set the type to LoadBalancer, or leave them out" -}}
{{- end -}}
{{- if and (eq $gateway.service.type "NodePort") (or $gateway.service.loadBalancerClass $gateway.service.loadBalancerSourceRanges) -}}
{{- fail "gateway.service.type is NodePort: loadBalancerClass and loadBalancerSourceRanges of gateway.service would mean nothing, and every source could connect. Set the type to LoadBalancer, or leave them out; gateway.networkPolicy.sshFrom bounds sources too" -}}
{{- end -}}
{{- end -}}

{{/* The port of settings.gatewayAddress, which is 22 where it names none. */}}
{{- define "instance-access.gateway.addressPort" -}}
{{- regexReplaceAll "^[[][^]]*[]]" .Values.settings.gatewayAddress "" | regexFind ":[0-9]+$" | trimPrefix ":" | default "22" -}}
{{- end -}}

{{/* settings.gatewayAddress as known_hosts spells it: HOST for port 22, else [HOST]:PORT. */}}
{{- define "instance-access.gateway.knownHost" -}}
{{- if .Values.settings.gatewayAddress -}}
{{- $port := include "instance-access.gateway.addressPort" . -}}
{{- $host := trimSuffix (printf ":%s" $port) .Values.settings.gatewayAddress | trimPrefix "[" | trimSuffix "]" -}}
{{- if eq $port "22" -}}{{ $host }}{{- else -}}[{{ $host }}]:{{ $port }}{{- end -}}
{{- else -}}
[gateway.example.com]:2222
{{- end -}}
{{- end -}}
