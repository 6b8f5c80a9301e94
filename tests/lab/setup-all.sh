#!/usr/bin/env bash
#
# Builds and fetches all that the tests want and cargo does not build: two control planes, tools, foreign clients. It runs
# beside cargo (`make test`), so it prints lines, also on a terminal, and never draws over what stands there.
#
# A new machine spends minutes here, with Go; later runs find everything. Idempotent.

set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
lines() { "$@" | cat; }

lines "$here/setup.sh"
lines "$here/setup.sh" --kubernetes "$(cat "$here/control-plane/older")"
for tool in helm promtool etcdutl; do
  "$here/setup-go-tool.sh" "$tool" >/dev/null
done
"$here/setup-aws-cli.sh" >/dev/null
"$here/setup-moto.sh" >/dev/null
"$here/setup-ansible.sh" >/dev/null
