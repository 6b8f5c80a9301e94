#!/usr/bin/env bash
#
# Makes this machine fit for the lab: OpenSSH's server, nss_wrapper and curl from the distribution, and the
# control plane (kube-apiserver, kubectl, etcd) built once with Go into the user's cache. Run it as often as you
# like, as root or as an ordinary user; what is there is used again.
#
#   tests/lab/setup.sh                       the version that control-plane/kubernetes/go.mod names
#   tests/lab/setup.sh --kubernetes 1.34.4   another one, beside it
#   tests/lab/setup.sh --clients             also the tests' foreign clients (rsync, git), and what AWS's CLI, moto and
#                                            ansible need
#   tests/lab/setup.sh --packages            the distribution's packages alone: nothing is built
#
# KUBEBUILDER_ASSETS, if set, names a directory that holds the three programs: then nothing is built.

set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
modules=$here/control-plane

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

# The version that a go.mod requires of a module, without its leading v.
required() { sed -nE "s|^(require)?[[:space:]]*$1 v([^ ]+).*|\2|p" "$2/go.mod" | head -n 1; }

default_version=$(required k8s.io/kubernetes "$modules/kubernetes")
etcd_version=$(required go.etcd.io/etcd/server/v3 "$modules/etcd")
version=$default_version
explicit=
clients=
packages_only=
building= # the go build that is under way, which a Ctrl-C here does not reach

while (($#)); do
  case $1 in
    --kubernetes) version=${2:?--kubernetes wants a version, as in 1.34.4}; version=${version#v}; explicit=yes; shift 2 ;;
    --clients) clients=yes; shift ;;
    --packages) packages_only=yes; shift ;;
    -h | --help) sed -n '3,13s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) die "unknown argument $1; see --help" ;;
  esac
done
[[ $version =~ ^[0-9]+\.[0-9]+\.[0-9]+$ ]] || die "--kubernetes $version: a version looks like 1.34.4"

# ---- what the distribution has -------------------------------------------------------------------------------

have_nss_wrapper() { compgen -G '/usr/lib*/libnss_wrapper.so' >/dev/null || compgen -G '/usr/lib/*/libnss_wrapper.so' >/dev/null; }
have_program() { PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null; }

packages() {
  local missing=()
  have_program sshd || missing+=(openssh-server)
  have_program ssh || missing+=(openssh-client)
  have_program curl || missing+=(curl)
  have_program jq || missing+=(jq)
  have_program setpriv && have_program flock || missing+=(util-linux)
  have_nss_wrapper || missing+=(libnss-wrapper)
  if [[ $clients ]]; then
    have_program npm || missing+=(npm)
    have_program rsync || missing+=(rsync)
    have_program git || missing+=(git)
    python3 -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3 python3-venv)
  fi
  if ((${#missing[@]} == 0)); then
    say 'sshd, ssh, curl, jq and nss_wrapper are installed'
    return
  fi
  have_program apt-get || die "missing: ${missing[*]} (Debian's names); install them with this system's package manager, then run this again"
  local install="apt-get install --yes --no-install-recommends ${missing[*]}"
  ((EUID == 0)) || die "missing: ${missing[*]}; let an administrator run: sudo apt-get update && sudo $install"
  say "installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  # A server that the distribution starts by itself would take port 22 of every address.
  local log; log=$(mktemp)
  { apt-get update && RUNLEVEL=1 $install; } >"$log" 2>&1 || { tail -n 20 "$log" >&2; rm -f "$log"; die "could not install ${missing[*]}"; }
  rm -f "$log"
}

# What root's sshd wants; /run is empty after every boot.
privilege_separation() {
  ((EUID == 0)) || return 0
  [[ -d /run/sshd ]] || { say 'making /run/sshd'; install -d -m 755 /run/sshd; }
}

# ---- what is built -------------------------------------------------------------------------------------------

# Runs a long command, and says every few seconds how far it is; its output appears only if it fails.
# The command is `go build -v`, which writes a line per package that it compiled.
watched() {
  local what=$1 log started pid status=0; shift
  log=$(mktemp "$work/log.XXXXXX"); started=$SECONDS
  "$@" >"$log" 2>&1 & pid=$!
  building=$pid
  local every=15; [[ -t 1 ]] && every=1
  while kill -0 "$pid" 2>/dev/null; do
    for ((i = 0; i < every * 5; i++)); do sleep 0.2; kill -0 "$pid" 2>/dev/null || break; done
    local line; line=$(printf 'setup: %s: %d packages done, %d s' "$what" "$(grep -cv '^go: ' "$log" || true)" $((SECONDS - started)))
    if [[ -t 1 ]]; then printf '\r\033[K%s' "$line"; else printf '%s\n' "$line"; fi
  done
  [[ -t 1 ]] && printf '\n'
  wait "$pid" || status=$?
  building=
  ((status == 0)) || { grep -E 'error|cannot|:[0-9]+:|^#|^go: ' "$log" | tail -n 20 >&2 || tail -n 20 "$log" >&2; die "$what failed with status $status"; }
  rm -f "$log"
}

go_build() {
  local dir=$1 out=$2 package=$3 ldflags=$4
  # Only ever run in the background, so that the shell may become go and die with one signal.
  cd "$dir" && GOTMPDIR=$work exec "$here/go.sh" build -v -ldflags "$ldflags" -o "$out" "$package"
}

# A module for another version than the committed one; Go's checksum database vouches for it instead of our go.sum.
other_module() {
  local dir=$1 mod
  mkdir -p "$dir"
  mod=$(cd "$dir" && GOWORK=off GOFLAGS='' go mod download -json "k8s.io/kubernetes@v$version" | sed -nE 's/^[[:space:]]*"GoMod": "(.*)",?$/\1/p')
  [[ -r $mod ]] || die "Kubernetes v$version was not found"
  {
    printf 'module instanceaccess.dev/lab/kubernetes\n\n'
    grep -E '^(go|godebug) ' "$mod"
    printf '\nrequire k8s.io/kubernetes v%s\n\nreplace (\n' "$version"
    sed -nE "s|^[[:space:]]+(k8s\.io/[a-z-]+) v0\.0\.0$|\t\1 => \1 v0.${version#*.}|p" "$mod"
    printf ')\n'
  } >"$dir/go.mod"
  (cd "$dir" && GOWORK=off GOFLAGS='' go list -mod=mod -deps k8s.io/kubernetes/cmd/kube-apiserver k8s.io/kubernetes/cmd/kubectl >/dev/null 2>"$dir/log") || { tail -n 5 "$dir/log" >&2; die "could not resolve the modules of Kubernetes v$version"; }
}

control_plane() {
  if [[ -n ${KUBEBUILDER_ASSETS:-} && -z $explicit ]]; then
    local program
    for program in kube-apiserver etcd kubectl; do
      [[ -x $KUBEBUILDER_ASSETS/$program ]] || die "KUBEBUILDER_ASSETS=$KUBEBUILDER_ASSETS holds no $program; unset it to build the control plane instead"
    done
    say "control plane: using $KUBEBUILDER_ASSETS (KUBEBUILDER_ASSETS)"
    return
  fi

  [[ -n ${XDG_CACHE_HOME:-}${HOME:-} ]] || die 'neither HOME nor XDG_CACHE_HOME is set, so there is no cache to build into; set one'
  local cache=${XDG_CACHE_HOME:-$HOME/.cache}
  local root=$cache/instance-access/control-plane
  local bin=$root/$version/bin
  mkdir -p "$root" 2>/dev/null && [[ -w $root && -O $root ]] ||
    die "$root cannot be written by $(id -un) (it, or a directory above it, is another user's); set XDG_CACHE_HOME to a directory of your own, or have an administrator run: chown -R $(id -un) $cache/instance-access"

  # What was built from what: a change of versions or flags builds anew.
  local stamp; stamp="kubernetes $version, etcd $etcd_version, recipe 1"
  current() { [[ -x $bin/kube-apiserver && -x $bin/kubectl && -x $bin/etcd && $(cat "$bin/stamp" 2>/dev/null) == "$stamp" ]]; }
  if current; then say "control plane: $stamp, in $bin"; return; fi

  command -v go >/dev/null ||
    die 'Go is needed once, to build the control plane: install 1.26 or newer (1.21 fetches it by itself) from https://go.dev/dl/ and put it on PATH, or set KUBEBUILDER_ASSETS to a directory with kube-apiserver, etcd and kubectl'

  exec 9>"$root/.lock"
  flock -n 9 || { say 'another setup is building the control plane; waiting for it'; flock 9; }
  if current; then say "control plane: $stamp, in $bin"; return; fi

  # Nobody else builds now: what a broken run left is nobody's.
  rm -rf "$root"/.building.*
  work=$(mktemp -d "$root/.building.XXXXXX")
  trap 'if [[ $building ]]; then kill "$building"; wait "$building"; fi 2>/dev/null || true; rm -rf "$work"' EXIT
  trap 'exit 130' INT TERM HUP
  say "control plane: building $stamp, once, into $bin (4 to 10 minutes on two cores)"

  local module=$modules/kubernetes
  if [[ $version != "$default_version" ]]; then
    say "resolving the modules of Kubernetes $version"
    module=$work/module; other_module "$module"
  fi
  local ldflags="-s -w -X k8s.io/component-base/version.gitVersion=v$version -X k8s.io/component-base/version.gitMajor=${version%%.*} -X k8s.io/component-base/version.gitMinor=$(cut -d. -f2 <<<"$version")"
  mkdir "$work/bin"
  watched "etcd $etcd_version" go_build "$modules/etcd" "$work/bin/etcd" go.etcd.io/etcd/server/v3 '-s -w'
  watched "kube-apiserver $version" go_build "$module" "$work/bin/kube-apiserver" k8s.io/kubernetes/cmd/kube-apiserver "$ldflags"
  watched "kubectl $version" go_build "$module" "$work/bin/kubectl" k8s.io/kubernetes/cmd/kubectl "$ldflags"
  printf '%s\n' "$stamp" >"$work/bin/stamp"

  mkdir -p "$root/$version"
  if [[ -e $bin ]]; then mv "$bin" "$work/old"; fi # running programs keep their files
  mv "$work/bin" "$bin"
  say "control plane: $stamp, in $bin"
}

packages
privilege_separation
[[ -z $packages_only ]] || exit 0
control_plane
say 'the lab is ready: cargo run -p lab -- up'
