#!/usr/bin/env bash
#
# Builds helm from its own module, once, into the user's cache, and prints the path of its program. The version is the one
# that helm/go.mod names. Idempotent; needs Go. Only the tests of the chart use it.

set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
die() { printf 'setup-helm: %s\n' "$*" >&2; exit 1; }

version=$(sed -nE 's|^[[:space:]]*helm.sh/helm/v4 v([^ ]+).*|\1|p' "$here/helm/go.mod")
[[ $version ]] || die "$here/helm/go.mod names no version of helm.sh/helm/v4"
[[ -n ${XDG_CACHE_HOME:-}${HOME:-} ]] || die 'neither HOME nor XDG_CACHE_HOME is set, so there is no cache to build into; set one'
root=${XDG_CACHE_HOME:-$HOME/.cache}/instance-access/helm
program=$root/$version/helm

if [[ ! -x $program ]]; then
  command -v go >/dev/null ||
    die 'Go is needed once, to build helm: install 1.26 or newer (1.21 fetches it by itself) from https://go.dev/dl/ and put it on PATH'
  mkdir -p "$root"
  exec 9>"$root/.lock"
  flock 9 # of two runs at once the second finds what the first built
fi
if [[ ! -x $program ]]; then
  printf 'setup-helm: building helm %s, once, into %s (two minutes on two cores)\n' "$version" "$program" >&2
  work=$(mktemp -d "$root/.building.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  (
    cd "$here/helm"
    GOTMPDIR=$work CGO_ENABLED=0 GOWORK=off GOFLAGS='' nice -n 5 go build -mod=readonly -trimpath -buildvcs=false \
      -ldflags "-s -w -X helm.sh/helm/v4/internal/version.version=v$version" -o "$work/helm" helm.sh/helm/v4/cmd/helm
  ) >&2
  mkdir -p "$root/$version"
  mv "$work/helm" "$program"
fi
printf '%s\n' "$program"
