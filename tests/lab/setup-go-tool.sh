#!/usr/bin/env bash
#
# Builds a tool of the tests from its own Go module, once, into the user's cache, and prints the directory that it is in. The
# version is the one that TOOL/go.mod names. Idempotent; needs Go.
#
#   tests/lab/setup-go-tool.sh helm       for the tests of the chart
#   tests/lab/setup-go-tool.sh promtool   for the tests of the alerts, and selectors beside it
#   tests/lab/setup-go-tool.sh etcdutl    for the tests of disasters: it restores etcd's snapshots

set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tool=${1:-}
die() { printf 'setup-go-tool: %s\n' "$*" >&2; exit 1; }

flags=()
ldflags='-s -w'
case $tool in
  helm)
    module=helm.sh/helm/v4
    packages=(helm.sh/helm/v4/cmd/helm)
    version_variable=helm.sh/helm/v4/internal/version.version version_prefix=v
    takes='two minutes'
    ;;
  promtool)
    module=github.com/prometheus/prometheus
    packages=(github.com/prometheus/prometheus/cmd/promtool ./selectors)
    version_variable=github.com/prometheus/common/version.Version version_prefix=
    # Prometheus' own tag: without it promtool knows each cloud's service discovery, and with it that many SDKs fewer are built.
    flags=(-tags remove_all_sd)
    takes='a minute and a half'
    ;;
  etcdutl)
    module=go.etcd.io/etcd/etcdutl/v3
    packages=(go.etcd.io/etcd/etcdutl/v3)
    version_variable=
    takes='half a minute'
    ;;
  *) die "usage: tests/lab/setup-go-tool.sh helm|promtool|etcdutl" ;;
esac

version=$(sed -nE "s|^(require)?[[:space:]]*$module v([^ ]+).*|\2|p" "$here/$tool/go.mod")
[[ $version ]] || die "$here/$tool/go.mod names no version of $module"
[[ $version_variable ]] && ldflags+=" -X $version_variable=$version_prefix$version"
[[ -n ${XDG_CACHE_HOME:-}${HOME:-} ]] || die 'neither HOME nor XDG_CACHE_HOME is set, so there is no cache to build into; set one'
root=${XDG_CACHE_HOME:-$HOME/.cache}/instance-access/$tool
programs=$root/$version
# Another selectors is another program, under the same version of Prometheus.
if [[ $tool == promtool ]]; then
  programs+=-$(cat "$here"/promtool/go.mod "$here"/promtool/selectors/*.go | sha256sum | head -c 12)
fi

if [[ ! -x $programs/$tool ]]; then
  "$here/needs-go.sh" "$here/$tool"
  mkdir -p "$root"
  exec 9>"$root/.lock"
  flock 9 # of two runs at once the second finds what the first built
fi
if [[ ! -x $programs/$tool ]]; then
  # Nobody else builds now: what a broken run left is nobody's.
  rm -rf "$root"/.building.*
  work=$(mktemp -d "$root/.building.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  printf 'setup-go-tool: building %s %s, once, into %s (%s on two cores)\n' "$tool" "$version" "$programs" "$takes" >&2
  mkdir "$work/programs"
  (
    cd "$here/$tool"
    GOTMPDIR=$work "$here/go.sh" build "${flags[@]}" -ldflags "$ldflags" -o "$work/programs/" "${packages[@]}"
  ) >&2
  mv -T "$work/programs" "$programs"
fi
printf '%s\n' "$programs"
