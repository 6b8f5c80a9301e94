#!/usr/bin/env bash
#
# Builds and fetches all that the tests want and cargo does not build: two control planes, tools, foreign clients. It runs
# beside cargo (`make test`), so it prints lines, also on a terminal, and never draws over what stands there.
#
# A new machine spends minutes here, with Go; later runs find everything. Idempotent.

set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# Who is told to end passes it on: what a step has started would go on for minutes, and hold the lock of its cache.
child=
trap '[[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true; wait; exit 143' INT TERM HUP
step() {
  "$@" &
  child=$!
  wait "$child"
  child=
}
lines() { step "$@" > >(cat); }

lines "$here/setup.sh"
lines "$here/setup.sh" --kubernetes "$(cat "$here/control-plane/older")"
for tool in helm promtool etcdutl; do
  step "$here/setup-go-tool.sh" "$tool" >/dev/null
done
for script in aws-cli moto ansible prometheus-crds; do
  step "$here/setup-$script.sh" >/dev/null
done
