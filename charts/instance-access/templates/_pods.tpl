{{/*
What the pods of controller and gateway have in common.

Settings as environment variables, of a map: an empty one is none, a list is joined with commas.
*/}}
{{- define "instance-access.settingsEnv" -}}
{{- range $name, $value := . }}
{{- if kindIs "slice" $value }}
{{- $texts := list }}
{{- range $value }}{{- $texts = append $texts (kindIs "float64" . | ternary (toString (int64 .)) (toString .)) }}{{- end }}
{{- $value = join "," $texts }}
{{- else if kindIs "float64" $value }}
{{- $value = int64 $value }}
{{- end }}
{{- if not (or (kindIs "invalid" $value) (eq (toString $value) "")) }}
- name: INSTANCE_ACCESS_{{ $name | snakecase | upper }}
  value: {{ toString $value | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The AWS SDK's own variables, those that are set: an AWS_REGION that is empty would hide the one that EKS sets. */}}
{{- define "instance-access.awsEnv" -}}
{{- range $name, $variable := dict "region" "AWS_REGION" "useFipsEndpoint" "AWS_USE_FIPS_ENDPOINT" "useDualstackEndpoint" "AWS_USE_DUALSTACK_ENDPOINT" "endpointUrl" "AWS_ENDPOINT_URL" "endpointUrlEc2" "AWS_ENDPOINT_URL_EC2" "endpointUrlEc2InstanceConnect" "AWS_ENDPOINT_URL_EC2_INSTANCE_CONNECT" "endpointUrlSts" "AWS_ENDPOINT_URL_STS" }}
{{- with index $.Values.aws $name }}
- name: {{ $variable }}
  value: {{ toString . | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/*
Topology spread constraints: of (dict "given" VALUE "selector" LABELS) those that are given, else soft ones, over nodes and
zones. Also for one pod alone, which they do nothing to: so a second one restarts none.
*/}}
{{- define "instance-access.topologySpread" -}}
{{- if .given -}}
{{- toYaml .given -}}
{{- else -}}
{{- range $index, $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
- maxSkew: 1
  topologyKey: {{ $key }}
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels:
      {{- $.selector | nindent 6 }}
{{- end }}
{{- end -}}
{{- end -}}
