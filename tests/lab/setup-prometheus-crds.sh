#!/usr/bin/env bash
#
# Fetches the Prometheus operator's Go module, whose sum go.sum holds, and prints the directory of its CRDs. Nothing is built.
# Idempotent; needs Go.
#
#   tests/lab/setup-prometheus-crds.sh

set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/prometheus-operator
module=github.com/prometheus-operator/prometheus-operator
"$here/../needs-go.sh" "$here"
export GOWORK=off GOFLAGS=-mod=readonly
cd "$here"
go mod download "$module"
crds=$(go list -m -f '{{.Dir}}' "$module")/example/prometheus-operator-crd
[[ -r $crds/monitoring.coreos.com_prometheusrules.yaml ]] || { printf 'setup-prometheus-crds: there are no CRDs in %s\n' "$crds" >&2; exit 1; }
printf '%s\n' "$crds"
