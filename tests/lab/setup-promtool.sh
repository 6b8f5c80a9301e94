#!/usr/bin/env bash
#
# Builds promtool, and selectors beside it, once, into the user's cache, and prints the directory that they are in. The
# version is the one that promtool/go.mod names. Idempotent; needs Go. Only the tests of the alerts use it.
#
# remove_all_sd is Prometheus' own tag: without it promtool knows each cloud's service discovery, and with it that many SDKs
# fewer are built.

set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
die() { printf 'setup-promtool: %s\n' "$*" >&2; exit 1; }

version=$(sed -nE 's|^[[:space:]]*github.com/prometheus/prometheus v([^ ]+).*|\1|p' "$here/promtool/go.mod")
[[ $version ]] || die "$here/promtool/go.mod names no version of github.com/prometheus/prometheus"
[[ -n ${XDG_CACHE_HOME:-}${HOME:-} ]] || die 'neither HOME nor XDG_CACHE_HOME is set, so there is no cache to build into; set one'
root=${XDG_CACHE_HOME:-$HOME/.cache}/instance-access/promtool
# Another selectors is another program, under the same version of Prometheus.
programs=$root/$version-$(cat "$here"/promtool/go.mod "$here"/promtool/selectors/*.go | sha256sum | head -c 12)

if [[ ! -d $programs ]]; then
  command -v go >/dev/null ||
    die 'Go is needed once, to build promtool: install 1.26 or newer (1.21 fetches it by itself) from https://go.dev/dl/ and put it on PATH'
  mkdir -p "$root"
  exec 9>"$root/.lock"
  flock 9 # of two runs at once the second finds what the first built
fi
if [[ ! -d $programs ]]; then
  printf 'setup-promtool: building promtool %s, once, into %s (a minute and a half on two cores)\n' "$version" "$programs" >&2
  work=$(mktemp -d "$root/.building.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  mkdir "$work/programs"
  (
    cd "$here/promtool"
    GOTMPDIR=$work CGO_ENABLED=0 GOWORK=off GOFLAGS='' nice -n 5 go build -mod=readonly -trimpath -buildvcs=false \
      -tags remove_all_sd -ldflags "-s -w -X github.com/prometheus/common/version.Version=$version" -o "$work/programs/" \
      github.com/prometheus/prometheus/cmd/promtool ./selectors
  ) >&2
  mv "$work/programs" "$programs"
fi
printf '%s\n' "$programs"
