#!/usr/bin/env bash
#
# Measures a program as it is released: how large it is, and how long it takes from its start until it is ready, with a real
# API server and the lab's stand-in for AWS beside it (`make build` has the lab).
#
#   release/measure.sh PROGRAM [STARTS]

set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
die() { printf 'release/measure: %s\n' "$*" >&2; exit 1; }
[[ $# == 1 || $# == 2 ]] || die 'usage: release/measure.sh PROGRAM [STARTS]'
program=$(realpath "$1") starts=${2:-20}
lab=${CARGO_TARGET_DIR:-target}/debug/lab
[[ -x $lab ]] || die "$lab is missing; make build makes it"

printf 'program            %s bytes, %s by gzip\n' "$(stat --format=%s "$program")" "$(gzip --best --stdout "$program" | wc -c)"

work=$(mktemp -d)
export LAB_DIR=$work/lab
pid=
cleanup() {
  [[ -z $pid ]] || kill "$pid" 2>/dev/null || true
  "$lab" down 2>/dev/null || true
  rm -rf "$work"
}
trap cleanup EXIT

"$lab" up >/dev/null
# shellcheck source=/dev/null
. "$LAB_DIR/env"
KUBECONFIG=$("$lab" kubeconfig admin)
export KUBECONFIG
"$program" crds | kubectl apply -f - >/dev/null
kubectl wait --for condition=Established crd --all >/dev/null
"$program" admission --operator-service-account instance-access/operator | kubectl apply -f - >/dev/null
kubectl apply -f examples/operator-rbac.yaml >/dev/null
KUBECONFIG=$("$lab" kubeconfig --service-account instance-access/operator)

now() { date +%s%N; }
for ((number = 0; number < starts; number++)); do
  port=$((20000 + RANDOM % 10000))
  began=$(now)
  "$program" controller --audit-file "$work/audit.jsonl" --listen "127.0.0.1:$port" 2>"$work/log" &
  pid=$!
  until [[ $(curl --silent --output /dev/null --write-out '%{http_code}' "http://127.0.0.1:$port/readyz") == 200 ]]; do
    kill -0 "$pid" 2>/dev/null || die "it ended: $(tail -n 3 "$work/log")"
    (($(now) - began < 30000000000)) || die "it was not ready within 30 s: $(tail -n 3 "$work/log")"
  done
  echo $((($(now) - began) / 1000000)) >>"$work/times"
  kill "$pid"
  wait "$pid" || true
  pid=
done
sort -n "$work/times" | awk -v n="$starts" '{ all[NR] = $1 } END { printf "start to ready     %d ms in the middle, %d ms at most, of %d\n", all[int((n + 1) / 2)], all[n], n }'
