#!/usr/bin/env bash
#
# Builds etcdutl from its own module, once, into the user's cache, and prints the path of its program. The version is the
# one that etcdutl/go.mod names. Idempotent; needs Go. Only the tests of disasters use it: it restores etcd's snapshots.

set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
die() { printf 'setup-etcdutl: %s\n' "$*" >&2; exit 1; }

version=$(sed -nE 's|^(require)?[[:space:]]*go.etcd.io/etcd/etcdutl/v3 v([^ ]+).*|\2|p' "$here/etcdutl/go.mod")
[[ $version ]] || die "$here/etcdutl/go.mod names no version of go.etcd.io/etcd/etcdutl/v3"
[[ -n ${XDG_CACHE_HOME:-}${HOME:-} ]] || die 'neither HOME nor XDG_CACHE_HOME is set, so there is no cache to build into; set one'
root=${XDG_CACHE_HOME:-$HOME/.cache}/instance-access/etcdutl
program=$root/$version/etcdutl

if [[ ! -x $program ]]; then
  command -v go >/dev/null ||
    die 'Go is needed once, to build etcdutl: install 1.26 or newer (1.21 fetches it by itself) from https://go.dev/dl/ and put it on PATH'
  mkdir -p "$root"
  exec 9>"$root/.lock"
  flock 9 # of two runs at once the second finds what the first built
fi
if [[ ! -x $program ]]; then
  printf 'setup-etcdutl: building etcdutl %s, once, into %s (half a minute on two cores)\n' "$version" "$program" >&2
  work=$(mktemp -d "$root/.building.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  (
    cd "$here/etcdutl"
    GOTMPDIR=$work CGO_ENABLED=0 GOWORK=off GOFLAGS='' nice -n 5 go build -mod=readonly -trimpath -buildvcs=false \
      -ldflags '-s -w' -o "$work/etcdutl" go.etcd.io/etcd/etcdutl/v3
  ) >&2
  mkdir -p "$root/$version"
  mv "$work/etcdutl" "$program"
fi
printf '%s\n' "$program"
