#!/usr/bin/env bash
# Says in one line what is missing of Go, for the modules in these folders; without any, for all that the tests build. Go from
# 1.21 on fetches by itself what a module asks for, unless GOTOOLCHAIN forbids it: so Go is asked which one it would run.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
(($#)) || set -- "$here"/control-plane/{etcd,kubernetes} "$here"/{helm,promtool,etcdutl,prometheus-operator} "$here/../gitops"

# The module that asks for the newest: what does for it does for all.
read -r wanted module < <(for folder; do sed -nE "s|^go ([0-9.]+)$|\1 $folder|p" "$folder/go.mod"; done | sort -rV)
remedy="install Go $wanted or newer from https://go.dev/dl/ (1.21 fetches it by itself), and put it on PATH"
if ! command -v go >/dev/null; then
  echo "Go is missing: $remedy" >&2
  exit 1
fi
if ! said=$(cd "$module" && GOWORK=off go version 2>&1); then
  echo "Go $wanted cannot be fetched: $remedy; Go says: $said" >&2
  exit 1
fi
have=$(sed -nE 's/^go version go([0-9.]+).*/\1/p' <<<"$said")
if [[ $have && $(printf '%s\n' "$wanted" "$have" | sort -V | head -n 1) != "$wanted" ]]; then
  echo "Go $have is too old: $remedy" >&2
  exit 1
fi
